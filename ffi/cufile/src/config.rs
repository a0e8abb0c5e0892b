//! `cufile.json` and the environment: the only module that reads either.
//!
//! Precedence: call > environment > file > default.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;
use straightway::parse_policy;

use crate::{
    code::{DRIVER_INVALID_PROPS, Failure},
    json::without_comments,
    settings::{ALIASES, Effect, ErrorForm, FLAGS, Origin, Own, SIZES, SLABS, TEXTS, VERSIONS, Values},
};

/// Where the file is if nobody says.
const DEFAULT_PATH: &str = "/etc/cufile.json";
/// A file that is larger is not one: bytes.
const FILE_MAX: u64 = 1 << 20;
/// Deepest group in the file.
const DEPTH_MAX: usize = 4;

/// What was read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) values: Values,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// What was set and does nothing: its name, and why.
    pub(crate) ignored: Vec<(String, String)>,
}

/// A variable of the environment; one that is empty is none.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's environment.
#[expect(
    clippy::disallowed_methods,
    reason = "this library is the outermost layer, and cuFile is set up by the environment"
)]
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Names of all variables that begin so.
fn names(prefix: &str) -> Vec<String> {
    let all = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    all.filter(|name| name.starts_with(prefix)).collect()
}

/// Reads `cufile.json` and the environment.
///
/// # Errors
/// `DRIVER_INVALID_PROPS` with what is wrong where.
pub(crate) fn load() -> Result<Loaded, Failure> {
    let named = environment("CUFILE_ENV_PATH_JSON");
    let path = PathBuf::from(named.as_deref().unwrap_or(DEFAULT_PATH));
    let mut loaded = Loaded::default();
    match read(&path) {
        Ok(text) => {
            apply_text(&mut loaded, &text).map_err(|what| wrong(&path.display().to_string(), &what))?;
            loaded.file = Some(path);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if named.is_some() {
                let why = format!("{}: there is no such file", path.display());
                loaded.ignored.push(("CUFILE_ENV_PATH_JSON".to_owned(), why));
            }
        }
        Err(error) => return Err(wrong(&path.display().to_string(), &error.to_string())),
    }
    apply_environment(&mut loaded, &environment, &names("CUFILE_"))?;
    Ok(loaded)
}

fn wrong(place: &str, what: &str) -> Failure {
    Failure::new(DRIVER_INVALID_PROPS, format!("{place}: {what}"))
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    // A device tells no length.
    let read = std::fs::File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_MAX {
        return Err(std::io::Error::other(format!("more than {FILE_MAX} bytes are too many for a configuration")));
    }
    Ok(text)
}

/// Takes values over from the text of a file.
fn apply_text(loaded: &mut Loaded, text: &str) -> Result<(), String> {
    let value: Value = serde_json::from_str(&without_comments(text)?).map_err(|error| error.to_string())?;
    let Value::Object(_) = &value else { return Err("it is no object".to_owned()) };
    let mut flat = BTreeMap::new();
    flatten(&value, "", &mut flat);
    let mut slabs = BTreeMap::new();
    for (key, value) in flat {
        let known = ALIASES.iter().find(|(other, _)| *other == key).map_or(key.as_str(), |(_, known)| known);
        if SLABS.iter().any(|(sizes, counts)| known == *sizes || known == *counts) {
            slabs.insert(known.to_owned(), numbers(value).ok_or_else(|| format!("{key} is no list of numbers"))?);
        } else if !apply(loaded, known, value, Origin::File).map_err(|what| format!("{key} {what}"))? {
            loaded.ignored.push((key.clone(), "this library has no such setting".to_owned()));
        }
    }
    for (index, (sizes, counts)) in SLABS.iter().enumerate() {
        match (slabs.get(*sizes), slabs.get(*counts)) {
            (None, None) => {}
            (Some(some), Some(others)) if some.len() == others.len() => {
                let pairs = some.iter().copied().zip(others.iter().copied()).collect();
                loaded.values.slabs[index] = (pairs, Origin::File);
                loaded.ignored.push(((*sizes).to_owned(), "staging memory is the engine's own".to_owned()));
            }
            _ => return Err(format!("{sizes} and {counts} are not of the same length")),
        }
    }
    Ok(())
}

/// Values by their path: `properties.io_batchsize`.
fn flatten<'a>(value: &'a Value, path: &str, into: &mut BTreeMap<String, &'a Value>) {
    match value {
        Value::Object(fields) if path.matches('.').count() < DEPTH_MAX => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(field, &path, into);
            }
        }
        other => {
            into.insert(path.to_owned(), other);
        }
    }
}

fn numbers(value: &Value) -> Option<Vec<u64>> {
    value.as_array()?.iter().map(Value::as_u64).collect()
}

/// Takes one value over; no if there is no such parameter.
fn apply(loaded: &mut Loaded, key: &str, value: &Value, origin: Origin) -> Result<bool, String> {
    let values = &mut loaded.values;
    let effect = if let Some(index) = SIZES.iter().position(|size| size.key == key) {
        // Some files have numbers and yes or no in quotation marks.
        let number = value.as_u64().or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
        values.sizes[index] = (number.ok_or("is no whole number")?, origin);
        SIZES[index].effect
    } else if let Some(index) = FLAGS.iter().position(|flag| flag.key == key) {
        let flag = value.as_bool().or_else(|| value.as_u64().map(|number| number != 0));
        let flag = flag.or_else(|| value.as_str().and_then(yes_or_no));
        values.flags[index] = (flag.ok_or("is neither true nor false")?, origin);
        FLAGS[index].effect
    } else if let Some(index) = TEXTS.iter().position(|text| text.key == key) {
        values.texts[index] = (value.as_str().ok_or("is no text")?.to_owned(), origin);
        TEXTS[index].effect
    } else {
        return Ok(false);
    };
    if let Effect::Kept(why) = effect {
        loaded.ignored.push((key.to_owned(), why.to_owned()));
    }
    Ok(true)
}

fn yes_or_no(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Takes values over from variables of the environment.
fn apply_environment(loaded: &mut Loaded, of: Lookup<'_>, names: &[String]) -> Result<(), Failure> {
    let sizes = SIZES.iter().filter_map(|size| Some((size.environment?, size.key)));
    let flags = FLAGS.iter().filter_map(|flag| Some((flag.environment?, flag.key)));
    let texts = TEXTS.iter().filter_map(|text| Some((text.environment?, text.key)));
    let known: Vec<(&str, &str)> = sizes.chain(flags).chain(texts).collect();
    for (name, key) in &known {
        let Some(text) = of(name) else { continue };
        apply(loaded, key, &Value::String(text.clone()), Origin::Environment)
            .map_err(|what| wrong(name, &format!("{text:?} {what}")))?;
    }
    let unknown = |name: &&String| *name != "CUFILE_ENV_PATH_JSON" && known.iter().all(|(known, _)| known != name);
    let unknown = names.iter().filter(unknown);
    loaded.ignored.extend(unknown.map(|name| (name.clone(), "this library has no such setting".to_owned())));
    Ok(())
}

/// Settings of this library's own.
///
/// # Errors
/// `DRIVER_INVALID_PROPS` with the variable; the rest has its defaults then.
pub(crate) fn own(of: Lookup<'_>) -> (Own, Result<(), Failure>) {
    let mut own = Own::default();
    let mut trouble = Ok(());
    let mut told = |name: &str, what: String| trouble = Err(wrong(name, &what));
    if let Some(text) = of("SW_CUFILE_POLICY") {
        match parse_policy(&text) {
            Ok(policy) => (own.policy, own.policy_text) = (policy, text),
            Err(error) => told("SW_CUFILE_POLICY", error.to_string()),
        }
    }
    match of("SW_CUFILE_ERRORS").as_deref() {
        None | Some("documented") => {}
        Some("observed") => own.errors = ErrorForm::Observed,
        Some(other) => told("SW_CUFILE_ERRORS", format!("{other:?} is neither documented nor observed")),
    }
    if let Some(text) = of("SW_CUFILE_VERSION") {
        match text.parse().ok().filter(|version| VERSIONS.contains(version)) {
            Some(version) => own.version = version,
            None => told("SW_CUFILE_VERSION", format!("{text:?} is none of {VERSIONS:?}")),
        }
    }
    own.engine = of("SW_CUFILE_ENGINE").unwrap_or_default();
    (own, trouble)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{BATCH, LOG_LEVEL, STATS_LEVEL};

    fn loaded(text: &str) -> Result<Loaded, String> {
        let mut loaded = Loaded::default();
        apply_text(&mut loaded, text).map(|()| loaded)
    }

    #[test]
    fn a_file_with_comments_sets_what_it_names_and_the_rest_is_told() {
        let loaded = loaded(
            r#"{ // as NVIDIA's
                "logging": { "level": "INFO" /* more */ },
                "profile": { "cufile_stats": 3, "io_batchsize": 64 },
                "properties": { "allow_compat_mode": "false", "posix_pool_slab_size_kb": [4, 8],
                                "posix_pool_slab_count": [1, 2], "rdma_dev_addr_list": [] },
                "fs": { "lustre": { "posix_gds_min_kb": 0 } },
                "denylist": { "drivers": [] } }"#,
        );
        let loaded = loaded.unwrap();
        assert_eq!(loaded.values.sizes[STATS_LEVEL], (3, Origin::File));
        assert_eq!(loaded.values.sizes[BATCH], (64, Origin::File));
        assert_eq!(loaded.values.texts[LOG_LEVEL], ("INFO".to_owned(), Origin::File));
        assert_eq!(loaded.values.flags[1], (false, Origin::File));
        assert_eq!(loaded.values.slabs[0], (vec![(4, 1), (8, 2)], Origin::File));
        assert_eq!(loaded.values.slabs[1].1, Origin::Default);
        let ignored: Vec<&str> = loaded.ignored.iter().map(|(name, _)| name.as_str()).collect();
        let all = [
            "denylist.drivers",
            "fs.lustre.posix_gds_min_kb",
            "properties.allow_compat_mode",
            "properties.rdma_dev_addr_list",
            "properties.posix_pool_slab_size_kb",
        ];
        assert_eq!(ignored, all);
    }

    #[test]
    fn a_broken_file_is_told_in_words() {
        for (text, word) in [
            ("{", "line 1"),
            ("[]", "no object"),
            ("{ \"profile\": { \"cufile_stats\": \"x\" } }", "profile.cufile_stats is no whole number"),
            ("{ \"properties\": { \"use_poll_mode\": 1.5 } }", "neither true nor false"),
            ("{ \"logging\": { \"level\": 1 } }", "no text"),
            ("{ \"properties\": { \"posix_pool_slab_count\": [1] } }", "same length"),
            ("{ /* ", "does not end"),
        ] {
            let told = loaded(text).unwrap_err();
            assert!(told.contains(word), "{text}: {told}");
        }
        // As deep as anybody likes.
        let deep = format!("{}1{}", "{\"a\":".repeat(100), "}".repeat(100));
        assert_eq!(loaded(&deep).unwrap().ignored.len(), 1);
    }

    proptest::proptest! {
        /// Whatever is in the file, it is taken or refused in words: also what is nearly right.
        #[test]
        fn no_text_is_too_odd(text in r#"([{}\[\]:,"/*\n\\]|//|/\*|\*/|é|properties|io_batchsize|true|-?[0-9]{1,25}|\PC){0,40}"#) {
            if let Ok(plain) = without_comments(&text) {
                assert_eq!(plain.chars().count(), text.chars().count());
            }
            if let Err(told) = loaded(&text) {
                assert!(!told.is_empty());
            }
            let inside = format!("{{ \"properties\": {{ \"io_batchsize\": 64 {text} }} }}");
            if let Ok(loaded) = loaded(&inside) {
                assert!(loaded.values.sizes[BATCH].1 == Origin::File);
            }
        }
    }

    #[test]
    fn the_environment_is_above_the_file() {
        let mut loaded = loaded(r#"{ "profile": { "cufile_stats": 3 } }"#).unwrap();
        let of = |name: &str| (name == "CUFILE_STATS_LEVEL").then(|| "1".to_owned());
        apply_environment(&mut loaded, &of, &["CUFILE_NEW".to_owned()]).unwrap();
        assert_eq!(loaded.values.sizes[STATS_LEVEL], (1, Origin::Environment));
        assert_eq!(loaded.ignored.last().map(|(name, _)| name.as_str()), Some("CUFILE_NEW"));
        let of = |name: &str| (name == "CUFILE_FORCE_COMPAT_MODE").then(|| "perhaps".to_owned());
        let told = apply_environment(&mut loaded, &of, &[]).unwrap_err();
        assert_eq!(told.code, DRIVER_INVALID_PROPS);
        assert!(told.text.contains("CUFILE_FORCE_COMPAT_MODE"), "{}", told.text);
    }

    #[test]
    fn own_settings_are_checked_by_name() {
        let (own, trouble) = own(&|_| None);
        assert!(trouble.is_ok() && own.version == 1200 && own.errors == ErrorForm::Documented);
        for name in ["SW_CUFILE_POLICY", "SW_CUFILE_ERRORS", "SW_CUFILE_VERSION"] {
            let (_, trouble) = super::own(&|asked| (asked == name).then(|| "x".to_owned()));
            assert!(trouble.unwrap_err().text.contains(name));
        }
        let (own, _) = super::own(&|name| (name == "SW_CUFILE_VERSION").then(|| "1170".to_owned()));
        assert_eq!(own.version, 1170);
    }
}
