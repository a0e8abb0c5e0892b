//! Finds out what a checkpoint is and opens it: its files by the engine, their heads read and checked.
//!
//! ```text
//!   a file ──► its first bytes: a zip file of torch.save, else safetensors; an index is named *.json
//!   a directory ──► .metadata: DCP, Megatron if metadata.json and common.pt are beside it
//!               ├─► latest_checkpointed_iteration.txt: Megatron, the directory of that iteration
//!               ├─► one index, or one file
//!               └─► safetensors shards that tell their place in DCP_SHARDING_INFO
//! ```

mod dcp;
mod heads;

use std::sync::{Arc, OnceLock};

use straightway::{Engine, Entry, EntryKind, Error, ErrorKind, Object, Uri, Verb};

use crate::checksums::{CHECKSUMS_FILE, CHECKSUMS_LEN_MAX_BYTES, Checksums};
use crate::ranges::Failed;
use crate::torch::{self, LEGACY_MAGIC, TorchError, ZIP_MAGIC};
use crate::{Catalog, HeadReader, Header, INDEX_LEN_MAX_BYTES, Pattern, Shard, ShardIndex, Want, load::unplanned};

pub(crate) use heads::{ObjectRanges, fetch, read_range};

/// Most bytes of the file that names Megatron's last iteration: a number or `release`.
const TRACKER_LEN_MAX_BYTES: u64 = 64;

/// Endings of files that `torch.save` wrote, where a directory has one of them and nothing better.
const TORCH_ENDINGS: &[&str] = &[".pt", ".pth", ".bin", ".ckpt"];

/// An open checkpoint: what it holds, and its files.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    at: Uri,
    opened: Opened,
    /// Read when first asked for.
    checksums: Arc<OnceLock<Option<Arc<Checksums>>>>,
}

impl Checkpoint {
    /// Opens the files of a checkpoint and checks their heads, without reading a tensor.
    ///
    /// `at` is a `.safetensors` file, an `*.index.json`, a file of `torch.save`, a directory of
    /// `torch.distributed.checkpoint` or Megatron, a directory with one of the former, or any other object that holds the
    /// bytes of one file (a part of a raw namespace, say).
    ///
    /// # Errors
    /// `BadFormat` with file, tensor and remedy; what opening and reading return.
    pub fn open(engine: &Engine, at: &Uri) -> Result<Self, Error> {
        Ok(Self { at: at.clone(), opened: open_files(engine, at)?, checksums: Arc::default() })
    }

    /// Where it was opened.
    #[must_use]
    pub const fn at(&self) -> &Uri {
        &self.at
    }

    /// What it holds.
    #[must_use]
    pub const fn catalog(&self) -> &Catalog {
        &self.opened.catalog
    }

    /// Its files, at the positions of [`Catalog::files`].
    #[must_use]
    pub fn objects(&self) -> &[Object] {
        &self.opened.objects
    }

    /// The checksums that lie beside its files, if there are any: `straightway.checksums.json` in the directory. Read once.
    ///
    /// # Errors
    /// `BadFormat` for a file of that name that holds something else; what reading returns.
    pub fn checksums(&self, engine: &Engine) -> Result<Option<&Checksums>, Error> {
        Ok(self.read_checksums(engine)?.map(Arc::as_ref))
    }

    /// As [`Checkpoint::checksums`], to be shared.
    pub(crate) fn shared_checksums(&self, engine: &Engine) -> Result<Option<Arc<Checksums>>, Error> {
        Ok(self.read_checksums(engine)?.cloned())
    }

    fn read_checksums(&self, engine: &Engine) -> Result<Option<&Arc<Checksums>>, Error> {
        if let Some(known) = self.checksums.get() {
            return Ok(known.as_ref());
        }
        let read = Checksums::beside(engine, &self.at)?;
        Ok(self.checksums.get_or_init(|| read.map(Arc::new)).as_ref())
    }

    /// Ranges of a file (first byte, length) that are whole files of `torch.save`.
    pub(crate) fn containers(&self, file: usize) -> Vec<(u64, u64)> {
        let of_file = self.opened.containers.iter().filter(|(at, ..)| *at == file);
        of_file.map(|&(_, offset, len)| (offset, len)).collect()
    }

    /// All of each tensor that `pattern` matches.
    ///
    /// # Errors
    /// `NotFound` if an item of the pattern matches none.
    pub fn wants(&self, pattern: &Pattern) -> Result<Vec<Want>, Error> {
        Want::matching(self.catalog(), pattern).map_err(|cause| unplanned(&self.at, cause))
    }

    /// All of each tensor that `names` has, in the catalog's order, each once.
    ///
    /// # Errors
    /// `NotFound` with the names of which there is no tensor.
    pub fn wants_named<N: AsRef<str>>(&self, names: &[N]) -> Result<Vec<Want>, Error> {
        Want::named(self.catalog(), names).map_err(|cause| unplanned(&self.at, cause))
    }
}

/// What opening gives.
#[derive(Clone, Debug)]
struct Opened {
    catalog: Catalog,
    objects: Vec<Object>,
    /// File, first byte and length of each range that is a whole file of `torch.save`.
    containers: Vec<(usize, u64, u64)>,
}

impl Opened {
    /// Files of another format.
    const fn plain(catalog: Catalog, objects: Vec<Object>) -> Self {
        Self { catalog, objects, containers: Vec::new() }
    }
}

fn open_files(engine: &Engine, at: &Uri) -> Result<Opened, Error> {
    if !matches!(at, Uri::File(_) | Uri::Remote(_)) {
        return open_single(engine, at, at.to_string());
    }
    if at.file_name() == Some(crate::dcp::METADATA_NAME)
        && let Some(directory) = at.parent()
    {
        return open_directory(engine, &directory);
    }
    match engine.stat(at)?.kind {
        EntryKind::Directory => open_directory(engine, at),
        _ => open_file(engine, at),
    }
}

fn open_file(engine: &Engine, at: &Uri) -> Result<Opened, Error> {
    let name = at.file_name().unwrap_or_default();
    if name.ends_with(".json") { open_index(engine, at) } else { open_single(engine, at, name.to_owned()) }
}

/// The names in a directory.
fn names_in(engine: &Engine, directory: &Uri) -> Result<Vec<String>, Error> {
    let last = |entry: &Entry| entry.name.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    Ok(engine.list(directory)?.iter().map(last).collect())
}

/// A directory: see the picture at the top.
fn open_directory(engine: &Engine, directory: &Uri) -> Result<Opened, Error> {
    let names = names_in(engine, directory)?;
    let has = |name: &str| names.iter().any(|known| known == name);
    if has(crate::dcp::METADATA_NAME) {
        return dcp::open(engine, directory, &names);
    }
    if has(dcp::TRACKER_NAME) {
        let text = read_small(engine, &directory.join(dcp::TRACKER_NAME)?, TRACKER_LEN_MAX_BYTES)?;
        let iteration = directory.join(&dcp::iteration_directory(&text).map_err(|detail| odd(directory, detail))?)?;
        let names = names_in(engine, &iteration)?;
        return dcp::open(engine, &iteration, &names);
    }
    let ending = |ends: &[&str]| {
        let fits = |name: &&String| ends.iter().any(|end| name.ends_with(end));
        names.iter().filter(fits).map(|name| directory.join(name)).collect::<Result<Vec<Uri>, Error>>()
    };
    let indexes = ending(&[".safetensors.index.json"])?;
    let (files, pickles) = (ending(&[".safetensors"])?, ending(TORCH_ENDINGS)?);
    match (indexes.as_slice(), files.as_slice(), pickles.as_slice()) {
        ([index], ..) => open_file(engine, index),
        ([], [file], _) | ([], [], [file]) => open_file(engine, file),
        ([], [_, _, ..], _) => open_distributed(engine, directory, &files),
        _ => Err(odd(
            directory,
            format!(
                "the directory has {} index files, {} safetensors files and {} files of torch.save",
                indexes.len(),
                files.len(),
                pickles.len()
            ),
        )),
    }
}

fn odd(directory: &Uri, detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::BadFormat, Verb::Open)
        .at(directory.to_string())
        .detail(detail.into())
        .remedy("name the file, the *.safetensors.index.json or the directory of the checkpoint itself")
}

/// One file, by its first bytes.
fn open_single(engine: &Engine, at: &Uri, name: String) -> Result<Opened, Error> {
    let object = engine.open(at)?;
    let first = read_range(engine, &object, 0, crate::FIRST_STEP_LEN_BYTES)?;
    if first.starts_with(&ZIP_MAGIC) {
        let mut ranges = ObjectRanges::whole(engine, &object);
        let catalog = torch::catalog(name, &mut ranges).map_err(|failed| unread(at, failed))?;
        let containers = vec![(0, 0, object.len())];
        return Ok(Opened { catalog, objects: vec![object], containers });
    }
    if first.starts_with(&LEGACY_MAGIC) {
        return Err(malformed(at, TorchError::Legacy));
    }
    let header = read_header(engine, at, &object, &first)?;
    Ok(Opened::plain(Catalog::single(name, header), vec![object]))
}

fn open_index(engine: &Engine, at: &Uri) -> Result<Opened, Error> {
    let index =
        ShardIndex::parse(&read_small(engine, at, INDEX_LEN_MAX_BYTES)?).map_err(|cause| malformed(at, cause))?;
    let directory = at.parent().unwrap_or_else(|| at.clone());
    let mut shards = Vec::with_capacity(index.files().len());
    let mut objects = Vec::with_capacity(index.files().len());
    // Sorted by name, as the catalog keeps them: positions agree.
    for name in index.files() {
        let (header, object) = open_header(engine, &directory.join(name)?)?;
        shards.push(Shard { name: name.clone(), header });
        objects.push(object);
    }
    let catalog = Catalog::sharded(&index, shards).map_err(|cause| malformed(at, cause))?;
    Ok(Opened::plain(catalog, objects))
}

/// Several safetensors files without an index: shards of a distributed checkpoint, if they say so.
fn open_distributed(engine: &Engine, directory: &Uri, files: &[Uri]) -> Result<Opened, Error> {
    let several = || odd(directory, format!("the directory has no index file and {} safetensors files", files.len()));
    let mut shards = Vec::with_capacity(files.len());
    let mut objects = Vec::with_capacity(files.len());
    for file in files {
        let (header, object) = match open_header(engine, file) {
            Ok((header, object)) => (header, object),
            // The first one decides what the directory is; one that is no safetensors file decides nothing.
            Err(error) if shards.is_empty() && error.kind() == ErrorKind::BadFormat => return Err(several()),
            Err(error) => return Err(error),
        };
        if shards.is_empty() && !header.metadata().contains_key(crate::shards::SHARDING_KEY) {
            return Err(several());
        }
        shards.push(Shard { name: file.file_name().unwrap_or_default().to_owned(), header });
        objects.push(object);
    }
    let catalog = Catalog::distributed(shards).map_err(|cause| malformed(directory, cause))?;
    Ok(Opened::plain(catalog, objects))
}

fn open_header(engine: &Engine, at: &Uri) -> Result<(Header, Object), Error> {
    let object = engine.open(at)?;
    let first = read_range(engine, &object, 0, crate::FIRST_STEP_LEN_BYTES)?;
    Ok((read_header(engine, at, &object, &first)?, object))
}

/// The header of a file of which `first` is the first step.
fn read_header(engine: &Engine, at: &Uri, object: &Object, first: &[u8]) -> Result<Header, Error> {
    let mut head = HeadReader::new(object.len()).map_err(|cause| malformed(at, cause))?;
    head.push(first).map_err(|cause| malformed(at, cause))?;
    while let Some(step) = head.need() {
        let bytes = read_range(engine, object, step.file_offset, step.len_bytes)?;
        head.push(&bytes).map_err(|cause| malformed(at, cause))?;
    }
    head.finish().map_err(|cause| malformed(at, cause))
}

/// A whole file, which is bounded.
fn read_small(engine: &Engine, at: &Uri, max: u64) -> Result<Vec<u8>, Error> {
    let object = engine.open(at)?;
    if object.len() > max {
        return Err(Error::new(ErrorKind::BadFormat, Verb::Open)
            .at(object.name())
            .detail(format!("a file of {} bytes; at most {max} are read", object.len()))
            .remedy("check that it belongs to a checkpoint"));
    }
    read_range(engine, &object, 0, object.len())
}

impl Checksums {
    /// Reads those that lie beside a checkpoint: a directory, or a file in it. `None` where there are none, and beside what is
    /// no file.
    ///
    /// # Errors
    /// `BadFormat` for a file of that name that holds something else; what reading returns.
    pub fn beside(engine: &Engine, at: &Uri) -> Result<Option<Self>, Error> {
        if !matches!(at, Uri::File(_) | Uri::Remote(_)) {
            return Ok(None);
        }
        let is_directory = engine.stat(at)?.kind == EntryKind::Directory;
        let directory = if is_directory { Some(at.clone()) } else { at.parent() };
        let Some(directory) = directory else { return Ok(None) };
        let at = directory.join(CHECKSUMS_FILE)?;
        match engine.stat(&at) {
            Ok(entry) if entry.kind == EntryKind::Object => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            // Stores say so of what is not there to those who may not list it (Amazon S3 API, "HeadObject").
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                tracing::warn!(%at, %error, "whether there are checksums beside it is not known: nothing is compared with them");
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let text = read_small(engine, &at, CHECKSUMS_LEN_MAX_BYTES)?;
        Self::parse(&text).map(Some).map_err(|cause| malformed(&at, cause))
    }
}

/// A head that could not be had, as an error of the engine's.
fn unread<F: std::error::Error + Send + Sync + 'static>(at: &Uri, failed: Failed<Error, F>) -> Error {
    match failed {
        Failed::Read(error) => error,
        Failed::Format(cause) => malformed(at, cause),
    }
}

pub(crate) fn malformed(at: &Uri, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::BadFormat, Verb::Parse).at(at.to_string()).detail(cause.to_string()).caused_by(cause)
}
