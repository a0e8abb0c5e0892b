//! From what was named to the objects that samples lie in.

use std::{ops::ControlFlow, sync::Arc};

use straightway::{Destination, Engine, Entry, EntryKind, Error, ErrorKind, Hidden, Uri, Verb};

use crate::{
    formats::{MdsShard, mds_index},
    samples::Format,
};

use super::{
    build::Event,
    milvus,
    scan::malformed,
    sniff::{self, ByName},
};

/// Names that braces may stand for at most.
const NAMES_MAX: usize = 10_000_000;
/// Most bytes of an `index.json`: a hundred thousand shards.
const JSON_MAX: u64 = 256 << 20;

/// What is told of what happens, and whether to go on.
pub(super) type Progress<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a;

/// An object whose samples are wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub uri: Uri,
    /// Which of the sources it came from.
    pub group: u32,
    /// What the store says of it.
    pub entry: Entry,
    pub what: What,
}

/// How its samples are found.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// The object tells.
    Alone(Format),
    /// A file that is a sample: its path below what was named.
    File(String),
    /// The index of its folder tells.
    Mds(Arc<MdsShard>),
    /// An index beside it tells.
    Tokens(Uri),
    /// Binlogs beside it tell.
    Milvus(Arc<milvus::Log>),
}

impl What {
    pub fn format(&self) -> Format {
        match self {
            Self::Alone(format) => *format,
            Self::File(_) => Format::Raw,
            Self::Mds(_) => Format::Mds,
            Self::Tokens(_) => Format::Tokens,
            Self::Milvus(_) => Format::Milvus,
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub wanted: Vec<Wanted>,
    /// Files of folders that hold no samples: beside shards, hidden, or belonging to others.
    pub passed: u64,
    /// Rows of collections that are not flushed, and so not there.
    pub unflushed: u64,
}

/// What is said of all sources.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// The format of each file.
    pub format: Option<Format>,
    /// The field of collections.
    pub column: Option<&'a str>,
}

/// The names that one with braces stands for: `a-{000..123}.tar`, `{train,test}/{0..9}.tar`. Numbers have the width of the first.
///
/// # Errors
/// `BadUri` for braces that are not closed or empty, and for more names than 10 million.
pub fn expand_braces(text: &str) -> Result<Vec<String>, Error> {
    let bad = |detail: String| {
        Error::new(ErrorKind::BadUri, Verb::Parse)
            .at(text)
            .detail(detail)
            .remedy("write shard-{000000..000123}.tar or {a,b}; quote it for the shell")
    };
    let Some((before, rest)) = text.split_once('{') else { return Ok(vec![text.to_owned()]) };
    let (inside, after) = rest.split_once('}').ok_or_else(|| bad("a brace is not closed".to_owned()))?;
    let too_many = || bad(format!("more than {NAMES_MAX} names"));
    let choices: Vec<String> = match inside.split_once("..") {
        None if inside.is_empty() => return Err(bad("a pair of braces is empty".to_owned())),
        None => inside.split(',').map(str::to_owned).collect(),
        Some((from, to)) => {
            let number = |text: &str| text.parse::<u64>().map_err(|_| bad(format!("`{text}` is no number")));
            let (first, last) = (number(from)?, number(to)?);
            let count = last.checked_sub(first).ok_or_else(|| bad(format!("{first} is after {last}")))?;
            if count >= NAMES_MAX as u64 {
                return Err(too_many());
            }
            (first..=last).map(|number| format!("{number:0width$}", width = from.len())).collect()
        }
    };
    let rests = expand_braces(after)?;
    if choices.len().saturating_mul(rests.len()) > NAMES_MAX {
        return Err(too_many());
    }
    let names = choices.iter().flat_map(|choice| rests.iter().map(move |rest| format!("{before}{choice}{rest}")));
    Ok(names.collect())
}

/// Finds the objects of sources, in the order in which they were named, those of folders in byte order of their paths.
///
/// # Errors
/// What looking at them returns; what their names or indexes have wrong.
pub(super) fn find(
    engine: &Engine,
    named: &[String],
    asked: Asked<'_>,
    progress: &mut Progress<'_>,
) -> Result<Sources, Error> {
    let mut all = Sources::default();
    for (group, text) in named.iter().enumerate() {
        let group = u32::try_from(group).unwrap_or(u32::MAX);
        // A file whose name has braces is meant by it.
        let is_there = |text: &str| text.parse::<Uri>().and_then(|uri| entry_of(engine, &uri)).is_ok();
        let names = if text.contains('{') && is_there(text) { vec![text.clone()] } else { expand_braces(text)? };
        for name in names {
            let uri: Uri = name.parse()?;
            let entry = entry_of(engine, &uri)?;
            match entry.kind {
                EntryKind::Directory => folder(engine, &uri, (group, asked), (&mut all, &mut *progress))?,
                _ if is_collection(&name, asked.format)? => {
                    rows_of(engine, &uri, (group, asked), (&mut all, &mut *progress))?
                }
                _ => all.wanted.extend(single(engine, uri, entry, (group, asked.format))?),
            }
        }
    }
    Ok(all)
}

/// Facts of an address. Those that a store cannot tell without opening are taken from the open object.
pub(super) fn entry_of(engine: &Engine, uri: &Uri) -> Result<Entry, Error> {
    match uri {
        Uri::File(_) | Uri::Nvme(_) | Uri::NvmeTcp(_) | Uri::Remote(_) => engine.stat(uri),
        Uri::Stripe { .. } | Uri::Part { .. } => {
            let object = engine.open(uri)?;
            let (name, len, version) = (uri.to_string(), object.len(), object.version());
            Ok(Entry { name, kind: EntryKind::Object, len, version })
        }
    }
}

/// The object of one name, or the shards of one index.
fn single(
    engine: &Engine,
    uri: Uri,
    entry: Entry,
    (group, format): (u32, Option<Format>),
) -> Result<Vec<Wanted>, Error> {
    let text = uri.to_string();
    let base = text.rsplit('/').next().unwrap_or(&text).to_owned();
    if base == "index.json" && format.is_none_or(|format| format == Format::Mds) {
        return shards(engine, &uri, group);
    }
    if let Some(bin) = text.strip_suffix(".idx").filter(|_| format.is_none_or(|format| format == Format::Tokens)) {
        let data: Uri = format!("{bin}.bin").parse()?;
        let entry = engine.stat(&data)?;
        return Ok(vec![Wanted { uri: data, group, entry, what: What::Tokens(uri) }]);
    }
    let format = match format {
        Some(format) => format,
        None => match sniff::by_name(&text)? {
            ByName::Is(format) => format,
            ByName::Beside => {
                return Err(Error::new(ErrorKind::Unsupported, Verb::Parse)
                    .at(text)
                    .detail("an index of another file holds no samples")
                    .remedy("name the file that it belongs to"));
            }
            ByName::Unknown => by_bytes(engine, &uri, entry.len)?,
        },
    };
    let what = match format {
        Format::Raw => match token_index(engine, &text) {
            Some(index) => What::Tokens(index),
            None => What::File(base),
        },
        Format::Mds => {
            let index: Uri = format!("{}/index.json", folder_text(&text)).parse()?;
            let of_it = shards(engine, &index, group)?.into_iter().filter(|wanted| wanted.uri == uri);
            return Ok(of_it.collect());
        }
        Format::Tokens => What::Tokens(format!("{}.idx", text.strip_suffix(".bin").unwrap_or(&text)).parse()?),
        format => What::Alone(format),
    };
    Ok(vec![Wanted { uri, group, entry, what }])
}

/// Whether a name is that of a collection's manifest.
fn is_collection(name: &str, format: Option<Format>) -> Result<bool, Error> {
    match format {
        Some(format) => Ok(format == Format::Milvus),
        None => Ok(sniff::by_name(name)? == ByName::Is(Format::Milvus)),
    }
}

/// The binlogs of a collection.
fn rows_of(
    engine: &Engine,
    manifest: &Uri,
    (group, asked): (u32, Asked<'_>),
    (all, progress): (&mut Sources, &mut Progress<'_>),
) -> Result<(), Error> {
    let (wanted, unflushed) = milvus::collection(engine, manifest, (group, asked.column), progress)?;
    all.wanted.extend(wanted);
    all.unflushed += unflushed;
    Ok(())
}

fn folder_text(path: &str) -> &str {
    path.rfind('/').map_or(".", |slash| &path[..slash])
}

/// The index of token data of that name, if there is one.
fn token_index(engine: &Engine, data: &str) -> Option<Uri> {
    let index: Uri = format!("{}.idx", data.strip_suffix(".bin")?).parse().ok()?;
    engine.stat(&index).is_ok().then_some(index)
}

fn by_bytes(engine: &Engine, uri: &Uri, len: u64) -> Result<Format, Error> {
    let first = read_start(engine, uri, sniff::FIRST_BYTES.min(len))?;
    Ok(sniff::by_bytes(&first, len))
}

/// The first bytes of an object.
fn read_start(engine: &Engine, uri: &Uri, len: u64) -> Result<Vec<u8>, Error> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let object = engine.open(uri)?;
    let memory = engine.allocate(Destination::Host, len, 0)?;
    let memory = engine.read(&object, 0, memory).wait().ok()?.into_memory();
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    memory.map_or(Ok(()), |memory| memory.read(0, &mut bytes))?;
    Ok(bytes)
}

/// The shards that an `index.json` of MDS names.
fn shards(engine: &Engine, index: &Uri, group: u32) -> Result<Vec<Wanted>, Error> {
    let text = index.to_string();
    let entry = engine.stat(index)?;
    if entry.len > JSON_MAX {
        return Err(Error::new(ErrorKind::TooLarge, Verb::Parse)
            .at(text)
            .detail(format!("an index of {} bytes, and {JSON_MAX} is the most that is read", entry.len))
            .remedy("split the dataset"));
    }
    let bytes = read_start(engine, index, entry.len)?;
    let shards = mds_index(&bytes).map_err(|error| malformed(&text, &error))?;
    let folder = folder_text(&text);
    let wanted = |shard: MdsShard| {
        let uri: Uri = format!("{folder}/{}", shard.name).parse()?;
        let entry = engine.stat(&uri)?;
        Ok(Wanted { uri, group, entry, what: What::Mds(Arc::new(shard)) })
    };
    shards.into_iter().map(wanted).collect()
}

/// A file of a folder.
struct File {
    entry: Entry,
    /// Its path below the folder that was named.
    below: String,
    by_name: ByName,
}

/// Everything below a folder. Where there are shards, files that are none belong to them and hold no samples.
fn folder(
    engine: &Engine,
    root: &Uri,
    (group, asked): (u32, Asked<'_>),
    (all, progress): (&mut Sources, &mut Progress<'_>),
) -> Result<(), Error> {
    let format = asked.format;
    let files = files_below(engine, root, all)?;
    let is_mds = |file: &&File| file.below.rsplit('/').next() == Some("index.json");
    let mut found = Vec::new();
    if format.is_none_or(|format| format == Format::Mds) {
        for index in files.iter().filter(is_mds) {
            // A file of that name that is no such index is an ordinary one.
            match shards(engine, &index.entry.name.parse()?, group) {
                Ok(shards) => found.extend(shards),
                Err(error) if format.is_some() || error.kind() == ErrorKind::Unsupported => return Err(error),
                Err(_) => {}
            }
        }
    }
    let has_shards = |format: &ByName| matches!(format, ByName::Is(format) if *format != Format::Raw);
    let by_name = !found.is_empty() || files.iter().any(|file| has_shards(&file.by_name));
    let (mut others, mut is_collection) = (Vec::new(), false);
    for file in files {
        let uri: Uri = file.entry.name.parse()?;
        let is = match (format, file.by_name) {
            (Some(format), _) => Some(format),
            (None, ByName::Is(format)) => Some(format),
            (None, ByName::Beside) => None,
            (None, ByName::Unknown) if token_index(engine, &file.entry.name).is_some() => Some(Format::Tokens),
            (None, ByName::Unknown) if by_name || file.entry.name.ends_with(".idx") => None,
            (None, ByName::Unknown) => Some(by_bytes(engine, &uri, file.entry.len)?),
        };
        match is {
            // Found by their index.
            Some(Format::Mds) | None => all.passed += 1,
            Some(Format::Milvus) => {
                rows_of(engine, &uri, (group, asked), (&mut *all, &mut *progress))?;
                is_collection = true;
            }
            Some(Format::Raw) => others.push((uri, file)),
            Some(Format::Tokens) => {
                let what = single(engine, uri, file.entry, (group, Some(Format::Tokens)))?;
                found.extend(what);
            }
            Some(format) => found.push(Wanted { uri, group, entry: file.entry, what: What::Alone(format) }),
        }
    }
    if found.is_empty() && !is_collection {
        let file = |(uri, file): (Uri, File)| Wanted { uri, group, entry: file.entry, what: What::File(file.below) };
        found.extend(others.into_iter().map(file));
    } else {
        all.passed += others.len() as u64;
    }
    all.wanted.append(&mut found);
    Ok(())
}

/// The files below a folder, but for hidden ones.
fn files_below(engine: &Engine, root: &Uri, all: &mut Sources) -> Result<Vec<File>, Error> {
    let above = root.to_string().trim_end_matches('/').len();
    let (mut files, mut wrong) = (Vec::new(), Ok(()));
    engine.walk(root, Hidden::LeftOut, |entry| {
        if entry.kind != EntryKind::Object {
            all.passed += 1;
            return ControlFlow::Continue(());
        }
        let below = entry.name.get(above..).unwrap_or(&entry.name).trim_start_matches('/').to_owned();
        match sniff::by_name(&entry.name) {
            Ok(by_name) => files.push(File { entry, below, by_name }),
            Err(error) => {
                wrong = Err(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    wrong.map(|()| files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_stand_for_names() {
        let of = |text| expand_braces(text).unwrap();
        assert_eq!(of("a.tar"), ["a.tar"]);
        assert_eq!(of("a-{08..11}.tar"), ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]);
        assert_eq!(of("{x,y}/{0..1}"), ["x/0", "x/1", "y/0", "y/1"]);
        assert_eq!(of("{a,}b"), ["ab", "b"]);
        for bad in ["a{", "a{}", "a{1..x}", "a{2..1}", "a{0..99999999999}", "{0..9999}{0..9999}"] {
            assert_eq!(expand_braces(bad).unwrap_err().kind(), ErrorKind::BadUri, "{bad}");
        }
    }
}
