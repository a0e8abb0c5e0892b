//! The index of a sharded checkpoint: `*.safetensors.index.json`.
//!
//! `{"metadata": {"total_size": N, …}, "weight_map": {"tensor": "file", …}}`, as `huggingface_hub` writes it. The file names
//! come from outside and are opened next to the index, so only plain names of that directory are accepted.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use thiserror::Error;

use crate::header_json::text_offset;
use crate::quote::Quoted;
use crate::shards::SHARD_COUNT_MAX;

/// Longest index in bytes. The format has no limit; ours is that of a header, since an index names the same tensors.
pub const INDEX_LEN_MAX_BYTES: u64 = 100_000_000;

/// Longest file name in bytes (`NAME_MAX` of Linux file systems).
const NAME_LEN_MAX_BYTES: usize = 255;

/// Why an index is refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IndexError {
    /// Longer than the limit.
    #[error(
        "index has {len_bytes} bytes, over the limit of {INDEX_LEN_MAX_BYTES}; this is not an index of safetensors files"
    )]
    TooLong {
        /// Its length.
        len_bytes: u64,
    },
    /// Not text.
    #[error("index is not UTF-8 at byte {file_offset}; the file is damaged or is another format")]
    NotUtf8 {
        /// First byte that is not UTF-8.
        file_offset: u64,
    },
    /// Not JSON, or of another shape.
    #[error(
        "index json is wrong at byte {file_offset}; it must be an object whose `weight_map` maps tensor names to file names"
    )]
    Json {
        /// Where the parser stopped.
        file_offset: u64,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// No `weight_map`.
    #[error("index has no `weight_map`; name the .safetensors file itself if the checkpoint is a single file")]
    NoWeightMap,
    /// A key occurs twice.
    #[error("{} occurs twice in the index, so which one is meant is a guess; write the index again", Quoted(.name))]
    Duplicate {
        /// The key: of a tensor, or `weight_map` or `metadata` itself.
        name: String,
    },
    /// More shards than the naming scheme has numbers.
    #[error(
        "index names {shard_count} shards, over the limit of {SHARD_COUNT_MAX}; write the checkpoint with larger shards"
    )]
    TooManyShards {
        /// Distinct file names.
        shard_count: usize,
    },
    /// A file name that is not a plain name of the index's directory.
    #[error("index places {} in {}: {reason}; shards must be plain .safetensors names in the directory of the index", Quoted(.tensor), Quoted(.file))]
    ShardName {
        /// The tensor.
        tensor: String,
        /// The file name found.
        file: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl IndexError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "index-too-long",
            Self::NotUtf8 { .. } => "index-not-utf8",
            Self::Json { .. } => "index-json",
            Self::NoWeightMap => "index-no-weight-map",
            Self::Duplicate { .. } => "index-duplicate",
            Self::TooManyShards { .. } => "index-too-many-shards",
            Self::ShardName { .. } => "index-shard-name",
        }
    }
}

/// Checks that `file` is a plain file name that stays in its directory on every system.
///
/// # Errors
/// The reason, as a phrase.
pub fn check_shard_name(file: &str) -> Result<(), &'static str> {
    if file.is_empty() {
        return Err("the name is empty");
    }
    if file.len() > NAME_LEN_MAX_BYTES {
        return Err("the name is longer than 255 bytes");
    }
    // A backslash separates and a colon names a drive or a stream on Windows; no writer uses either.
    if file.contains(['/', '\\', ':']) {
        return Err("the name has a path separator");
    }
    if file.chars().any(char::is_control) {
        return Err("the name has a control character");
    }
    // Catches `.` and `..` too.
    if file.starts_with('.') {
        return Err("the name starts with a dot");
    }
    if !file.ends_with(".safetensors") {
        return Err("the name does not end in .safetensors");
    }
    Ok(())
}

/// A checked index: names only; whether the shards agree is [`Catalog::sharded`](crate::Catalog::sharded)'s business.
#[derive(Clone, Debug)]
pub struct ShardIndex {
    /// Shard names, sorted, each once.
    files: Vec<String>,
    /// Tensor name and index into `files`, sorted by name, each once.
    tensors: Vec<(Box<str>, u32)>,
    total_len_bytes: Option<u64>,
}

impl ShardIndex {
    /// Parses and checks the whole text of an index file.
    ///
    /// # Errors
    /// Every [`IndexError`].
    pub fn parse(json: &[u8]) -> Result<Self, IndexError> {
        let len_bytes = json.len() as u64;
        if len_bytes > INDEX_LEN_MAX_BYTES {
            return Err(IndexError::TooLong { len_bytes });
        }
        let text = std::str::from_utf8(json)
            .map_err(|fault| IndexError::NotUtf8 { file_offset: fault.valid_up_to() as u64 })?;
        let mut state = State::default();
        let mut parser = serde_json::Deserializer::from_str(text);
        if let Err(source) = Top(&mut state).deserialize(&mut parser).and_then(|()| parser.end()) {
            return Err(state.fault.take().unwrap_or_else(|| IndexError::Json {
                file_offset: text_offset(text, source.line(), source.column()),
                source,
            }));
        }
        let entries = state.entries.ok_or(IndexError::NoWeightMap)?;
        Self::build(entries, state.total_len_bytes)
    }

    fn build(mut entries: Vec<(Box<str>, Box<str>)>, total_len_bytes: Option<u64>) -> Result<Self, IndexError> {
        entries.sort();
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(IndexError::Duplicate { name: pair[0].0.to_string() });
        }
        let mut names: Vec<&str> = entries.iter().map(|(_, file)| file.as_ref()).collect();
        names.sort_unstable();
        names.dedup();
        if names.len() > SHARD_COUNT_MAX {
            return Err(IndexError::TooManyShards { shard_count: names.len() });
        }
        for file in &names {
            if let Err(reason) = check_shard_name(file) {
                let tensor = entries.iter().find(|entry| entry.1.as_ref() == *file).map(|entry| entry.0.to_string());
                return Err(IndexError::ShardName {
                    tensor: tensor.unwrap_or_default(),
                    file: (*file).to_owned(),
                    reason,
                });
            }
        }
        let files: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut tensors = Vec::with_capacity(entries.len());
        for (tensor, file) in entries {
            let at = files.binary_search_by(|known| known.as_str().cmp(&file)).unwrap_or_default();
            tensors.push((tensor, u32::try_from(at).unwrap_or(u32::MAX)));
        }
        Ok(Self { files, tensors, total_len_bytes })
    }

    /// Shard file names, sorted; each is a plain name in the index's directory.
    #[must_use]
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// The shard that the index names for `tensor`.
    #[must_use]
    pub fn file_of(&self, tensor: &str) -> Option<&str> {
        let at = self.tensors.binary_search_by(|(name, _)| name.as_ref().cmp(tensor)).ok()?;
        self.files.get(self.tensors[at].1 as usize).map(String::as_str)
    }

    /// Tensor names and their shards, sorted by tensor name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tensors.iter().filter_map(|(name, file)| Some((name.as_ref(), self.files.get(*file as usize)?.as_str())))
    }

    /// `metadata.total_size` in bytes, if it is there and a whole number. A claim only: writers disagree on what it
    /// counts when tensors are shared.
    #[must_use]
    pub const fn total_len_bytes(&self) -> Option<u64> {
        self.total_len_bytes
    }
}

#[derive(Default)]
struct State {
    entries: Option<Vec<(Box<str>, Box<str>)>>,
    metadata_seen: bool,
    total_len_bytes: Option<u64>,
    fault: Option<IndexError>,
}

impl State {
    fn give_up<E: serde::de::Error>(&mut self, fault: IndexError) -> E {
        self.fault = Some(fault);
        E::custom("see the typed fault")
    }
}

struct Top<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with weight_map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let state = self.0;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "weight_map" if state.entries.is_some() => {
                    return Err(state.give_up(IndexError::Duplicate { name: key }));
                }
                "weight_map" => {
                    let entries = map.next_value_seed(WeightMap)?;
                    state.entries = Some(entries);
                }
                "metadata" => {
                    if std::mem::replace(&mut state.metadata_seen, true) {
                        return Err(state.give_up(IndexError::Duplicate { name: key }));
                    }
                    map.next_value_seed(Metadata(&mut state.total_len_bytes))?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Keeps every entry, so that duplicates are found afterwards.
struct WeightMap;

impl<'de> DeserializeSeed<'de> for WeightMap {
    type Value = Vec<(Box<str>, Box<str>)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for WeightMap {
    type Value = Vec<(Box<str>, Box<str>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that maps tensor names to file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry::<Box<str>, Box<str>>()? {
            entries.push(entry);
        }
        Ok(entries)
    }
}

/// Free-form, except that `total_size` is picked out.
struct Metadata<'a>(&'a mut Option<u64>);

impl<'de> DeserializeSeed<'de> for Metadata<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "total_size" {
                // Some writers put a float; such a claim is not kept.
                *self.0 = map.next_value::<serde_json::Value>()?.as_u64();
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(json: &str) -> &'static str {
        ShardIndex::parse(json.as_bytes()).unwrap_err().code()
    }

    #[test]
    fn reads_names_and_total() {
        let json = br#"{"metadata":{"total_size":12,"x":{"y":[1]}},"weight_map":{"b":"m-2.safetensors","a":"m-1.safetensors"}}"#;
        let index = ShardIndex::parse(json).unwrap();
        assert_eq!(index.files(), ["m-1.safetensors", "m-2.safetensors"]);
        assert_eq!(index.file_of("b"), Some("m-2.safetensors"));
        assert_eq!(index.file_of("c"), None);
        assert_eq!(index.total_len_bytes(), Some(12));
        assert_eq!(index.tensors().count(), 2);
    }

    #[test]
    fn a_float_total_is_not_a_claim() {
        let index = ShardIndex::parse(br#"{"metadata":{"total_size":1.5e3},"weight_map":{}}"#).unwrap();
        assert_eq!(index.total_len_bytes(), None);
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for file in [
            "../a.safetensors",
            "/etc/a.safetensors",
            "sub/a.safetensors",
            "..",
            ".",
            "",
            "..\\\\a.safetensors",
            "C:a.safetensors",
            "a.safetensors\\u0000",
            ".hidden.safetensors",
            "pytorch_model-1.bin",
        ] {
            let json = format!(r#"{{"weight_map":{{"t":"{file}"}}}}"#);
            assert_eq!(code(&json), "index-shard-name", "{file}");
        }
        assert_eq!(check_shard_name(&("x".repeat(300) + ".safetensors")), Err("the name is longer than 255 bytes"));
        assert_eq!(check_shard_name("model-00001-of-00002.safetensors"), Ok(()));
    }

    #[test]
    fn duplicates_and_wrong_shapes_are_refused() {
        assert_eq!(
            code(r#"{"weight_map":{"t":"a.safetensors","u":"a.safetensors","t":"b.safetensors"}}"#),
            "index-duplicate"
        );
        assert_eq!(code(r#"{"weight_map":{},"weight_map":{}}"#), "index-duplicate");
        assert_eq!(code(r#"{"metadata":{},"metadata":{},"weight_map":{}}"#), "index-duplicate");
        assert_eq!(code(r#"{"metadata":{}}"#), "index-no-weight-map");
        assert_eq!(code(r#"{"weight_map":{"t":1}}"#), "index-json");
        assert_eq!(code(r#"{"weight_map":["t"]}"#), "index-json");
        assert_eq!(code(r#"{"weight_map":{}} x"#), "index-json");
        assert_eq!(code("[]"), "index-json");
        assert_eq!(ShardIndex::parse(b"{\"\xff\":1}").unwrap_err().code(), "index-not-utf8");
    }

    #[test]
    fn json_errors_carry_the_byte() {
        let Err(IndexError::Json { file_offset, .. }) = ShardIndex::parse(b"{\n \"weight_map\": 7}") else {
            panic!("expected a json error")
        };
        assert!((14..=18).contains(&file_offset), "{file_offset}");
    }
}
