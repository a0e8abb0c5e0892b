//! Loads tensors by an engine: every byte through its pipeline, each file with the way that its bytes took.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use straightway::{
    CopyOut, DataPath, Destination, Engine, Error, ErrorKind, Memory, Object, Pending, Policy, Uri, Verb,
};

use crate::{
    Catalog, Dtype, HeadReader, Header, INDEX_LEN_MAX_BYTES, LoadLimits, LoadPlan, Pattern, PlanError, ReadPart, Shard,
    ShardIndex,
};

/// Parts in flight: with parts of 8 MiB and I/Os of 1 MiB enough to keep the queues of a few reactors full, and few enough
/// that memory of one part is what a failure throws away.
const PARTS_IN_FLIGHT: usize = 8;

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where tensors land.
    pub into: Destination,
    /// Which tensors. Default: all.
    pub tensors: Pattern,
    /// Which routes are accepted for the tensors' bytes.
    pub policy: Policy,
    /// Whether to compute SHA-256 of each tensor's bytes.
    pub digest: bool,
    /// Limits of the plan.
    pub limits: LoadLimits,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            into: Destination::Host,
            tensors: Pattern::all(),
            policy: Policy::Any,
            digest: false,
            limits: LoadLimits::default(),
        }
    }
}

/// Reads that went the same way for the same reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The way, with its bytes summed.
    pub path: DataPath,
    /// How many reads.
    pub reads: u64,
}

/// What was read of one file.
#[derive(Clone, Debug)]
pub struct FileReport {
    /// Its path.
    pub name: String,
    /// The ways of its bytes. The header is read apart and is not in them.
    pub ways: Vec<Way>,
}

impl FileReport {
    fn add(&mut self, path: DataPath) {
        let same = |way: &&mut Way| way.path.route == path.route && way.path.reason == path.reason;
        match self.ways.iter_mut().find(same) {
            Some(way) => {
                way.path.bytes += path.bytes;
                way.path.bounced += path.bounced;
                way.path.cpu_copied += path.cpu_copied;
                way.reads += 1;
            }
            None => self.ways.push(Way { path, reads: 1 }),
        }
    }
}

/// A tensor in memory.
#[derive(Clone, Debug)]
pub struct LoadedTensor {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Position of its file in [`Loaded::files`].
    pub file: usize,
    /// Region and offset of its first byte; `None` exactly if it has no bytes.
    pub place: Option<(usize, u64)>,
    /// SHA-256 of its bytes, if it was asked for.
    pub digest: Option<[u8; 32]>,
}

/// A loaded checkpoint.
#[derive(Debug)]
pub struct Loaded {
    /// The memory. Tensors lie in it with the gaps and padding of their files.
    pub regions: Vec<Memory>,
    /// The tensors, by file and then by offset.
    pub tensors: Vec<LoadedTensor>,
    /// What was read of each file.
    pub files: Vec<FileReport>,
    /// Bytes of the tensors.
    pub tensor_bytes: u64,
    /// Bytes read beside them, because reading on is cheaper than a second read.
    pub gap_bytes: u64,
}

impl Loaded {
    /// Copies a tensor's bytes out, whatever memory they are in.
    ///
    /// # Errors
    /// The copy engine's; `NotFound` for a tensor that is not of this checkpoint.
    pub fn bytes_of(&self, engine: &Engine, tensor: &LoadedTensor) -> Result<Vec<u8>, Error> {
        match tensor.place {
            Some((region, offset)) => engine.copy_range_to_host(self.region(region, tensor)?, offset, tensor.len_bytes),
            None => Ok(Vec::new()),
        }
    }

    /// Shows a tensor's bytes to `each` in order, whatever memory they are in, in copies of at most 1 MiB each.
    ///
    /// # Errors
    /// As [`Loaded::bytes_of`]; `each` may have seen a part then.
    pub fn visit(&self, engine: &Engine, tensor: &LoadedTensor, each: impl FnMut(&[u8])) -> Result<(), Error> {
        let Some((region, _)) = tensor.place else { return Ok(()) };
        let destination = self.region(region, tensor)?.destination();
        self.visit_by(&mut engine.copy_out(destination)?, tensor, each)
    }

    /// [`Loaded::visit`] by a way out that was made before.
    fn visit_by(&self, out: &mut CopyOut, tensor: &LoadedTensor, each: impl FnMut(&[u8])) -> Result<(), Error> {
        let Some((region, offset)) = tensor.place else { return Ok(()) };
        out.visit(self.region(region, tensor)?, offset, tensor.len_bytes, each)
    }

    fn region(&self, region: usize, tensor: &LoadedTensor) -> Result<&Memory, Error> {
        self.regions.get(region).ok_or_else(|| Error::new(ErrorKind::NotFound, Verb::Copy).at(tensor.name.as_str()))
    }
}

/// Loads a checkpoint: a `.safetensors` file, an `*.index.json`, a directory with one of them, or any other object that
/// holds the bytes of one `.safetensors` file (a part of a raw namespace, say).
///
/// *Blocking*: until every byte is there. Memory: the regions of the plan and the engine's staging, nothing else.
///
/// # Errors
/// `BadFormat` with file, tensor and remedy; what opening and reading return; `PolicyUnmet`. Nothing is returned half.
pub fn load(engine: &Engine, at: &Uri, options: &LoadOptions) -> Result<Loaded, Error> {
    let (catalog, objects) = open_catalog(engine, at)?;
    let plan = LoadPlan::new(&catalog, &options.tensors, options.limits).map_err(|cause| unplanned(at, cause))?;
    let mut files: Vec<FileReport> =
        objects.iter().map(|object| FileReport { name: object.name().to_owned(), ways: Vec::new() }).collect();
    let regions = read_all(engine, &plan, &objects, options, &mut files)?;
    objects.iter().try_for_each(Object::check_unchanged)?;
    let tensors = plan.views().iter().filter_map(|view| {
        let info = catalog.shards().get(view.file)?.header.tensors().get(view.tensor)?;
        Some(LoadedTensor {
            name: info.name.to_string(),
            dtype: info.dtype,
            shape: info.shape.to_vec(),
            len_bytes: view.len_bytes,
            file: view.file,
            place: view.place.map(|place| (place.region, place.region_offset)),
            digest: None,
        })
    });
    let tensors = tensors.collect();
    let totals = plan.totals();
    let mut loaded = Loaded { regions, tensors, files, tensor_bytes: totals.tensor_bytes, gap_bytes: totals.gap_bytes };
    if options.digest {
        // One way out for all: a copy engine is made once.
        let mut out = engine.copy_out(options.into)?;
        for at in 0..loaded.tensors.len() {
            let mut hash = Sha256::new();
            loaded.visit_by(&mut out, &loaded.tensors[at], |piece| hash.update(piece))?;
            loaded.tensors[at].digest = Some(hash.finalize().into());
        }
    }
    Ok(loaded)
}

/// A part on its way, with the file that it belongs to.
struct Running {
    file: usize,
    pending: Pending,
}

fn read_all(
    engine: &Engine,
    plan: &LoadPlan,
    objects: &[Object],
    options: &LoadOptions,
    files: &mut [FileReport],
) -> Result<Vec<Memory>, Error> {
    let mut regions = Vec::with_capacity(plan.regions().len());
    for region in plan.regions() {
        regions.push((engine.allocate(options.into, region.len_bytes, 0)?.share(), region.len_bytes));
    }
    let mut running = VecDeque::with_capacity(PARTS_IN_FLIGHT);
    let mut failed = None;
    for part in plan.parts() {
        if running.len() == PARTS_IN_FLIGHT {
            failed = settle(running.pop_front(), files);
        }
        let Some(object) = objects.get(part.file).filter(|_| failed.is_none()) else { break };
        let Some(((region, base), _)) = regions.get(part.region) else { break };
        let read = to_whole_blocks(plan, &part, object);
        let memory = region.part(base + read.region_offset, read.len_bytes)?;
        let pending = engine.read(object, read.file_offset, memory).policy(options.policy).start();
        running.push_back(Running { file: part.file, pending });
    }
    // After a failure the rest is still waited for: its memory must not be given back under a device.
    while let Some(part) = running.pop_front() {
        let later = settle(Some(part), files);
        failed = failed.or(later);
    }
    match failed {
        Some(error) => Err(error),
        None => regions.into_iter().map(|((region, base), len)| Ok(region.reclaim(base, len)?)).collect(),
    }
}

fn settle(part: Option<Running>, files: &mut [FileReport]) -> Option<Error> {
    let Running { file, pending } = part?;
    let done = pending.wait();
    if let (Ok(_), Some(report)) = (&done.result, files.get_mut(file)) {
        report.add(done.path);
    }
    done.result.err()
}

/// The part widened to whole blocks, for which the plan left room, so that nothing is bounced; never past the end of the
/// file.
fn to_whole_blocks(plan: &LoadPlan, part: &ReadPart, object: &Object) -> ReadPart {
    let wide = plan.blocks_of(part);
    let end = object.len().min(wide.file_offset + wide.len_bytes);
    ReadPart { len_bytes: end.saturating_sub(wide.file_offset), ..wide }
}

/// Opens the files of a checkpoint and checks their headers, without reading a tensor.
///
/// # Errors
/// As [`load`].
pub fn open_catalog(engine: &Engine, at: &Uri) -> Result<(Catalog, Vec<Object>), Error> {
    let Uri::File(path) = at else {
        let (header, object) = open_header(engine, at)?;
        return Ok((Catalog::single(at.to_string(), header), vec![object]));
    };
    let path = resolve(engine, Path::new(path))?;
    let at = &Uri::from_path(&path)?;
    if path.extension().is_none_or(|extension| extension != "json") {
        let (header, object) = open_header(engine, at)?;
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        return Ok((Catalog::single(name, header), vec![object]));
    }
    let index = ShardIndex::parse(&read_small(engine, at)?).map_err(|cause| malformed(at, cause))?;
    let directory = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    let mut shards = Vec::with_capacity(index.files().len());
    let mut objects = Vec::with_capacity(index.files().len());
    // Sorted by name, as the catalog keeps them: positions agree.
    for name in index.files() {
        let (header, object) = open_header(engine, &Uri::from_path(&directory.join(name))?)?;
        shards.push(Shard { name: name.clone(), header });
        objects.push(object);
    }
    let catalog = Catalog::sharded(&index, shards).map_err(|cause| malformed(at, cause))?;
    Ok((catalog, objects))
}

/// The file to start from: the path itself, or the one index or one model file of a directory.
fn resolve(engine: &Engine, path: &Path) -> Result<PathBuf, Error> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let entries = engine.list(&Uri::from_path(path)?)?;
    let ending = |end: &str| {
        entries.iter().filter(|entry| entry.name.ends_with(end)).map(|entry| entry.name.clone()).collect::<Vec<_>>()
    };
    match (ending(".safetensors.index.json").as_slice(), ending(".safetensors").as_slice()) {
        ([index], _) => Ok(index.into()),
        ([], [file]) => Ok(file.into()),
        (indexes, files) => Err(Error::new(ErrorKind::BadFormat, Verb::Open)
            .at(path.to_string_lossy().as_ref())
            .detail(format!("the directory has {} index files and {} model files", indexes.len(), files.len()))
            .remedy("name the file or the *.safetensors.index.json itself")),
    }
}

fn open_header(engine: &Engine, at: &Uri) -> Result<(Header, Object), Error> {
    let object = engine.open(at)?;
    let mut head = HeadReader::new(object.len()).map_err(|cause| malformed(at, cause))?;
    while let Some(step) = head.need() {
        let bytes = read_range(engine, &object, step.file_offset, step.len_bytes)?;
        head.push(&bytes).map_err(|cause| malformed(at, cause))?;
    }
    Ok((head.finish().map_err(|cause| malformed(at, cause))?, object))
}

/// An index file, which is bounded.
fn read_small(engine: &Engine, at: &Uri) -> Result<Vec<u8>, Error> {
    let object = engine.open(at)?;
    if object.len() > INDEX_LEN_MAX_BYTES {
        return Err(Error::new(ErrorKind::BadFormat, Verb::Open)
            .at(object.name())
            .detail(format!("an index of {} bytes; at most {INDEX_LEN_MAX_BYTES} are read", object.len()))
            .remedy("check that it is the index of a checkpoint"));
    }
    read_range(engine, &object, 0, object.len())
}

fn read_range(engine: &Engine, object: &Object, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
    // The head may be asked for past the end of a short file: the reader of heads says so better than a range check.
    let len = len.min(object.len().saturating_sub(offset));
    if len == 0 {
        return Ok(Vec::new());
    }
    let memory = engine.allocate(Destination::Host, len, offset)?;
    let memory = engine.read(object, offset, memory).wait().ok()?.into_memory();
    let memory = memory.ok_or_else(|| Error::new(ErrorKind::Protocol, Verb::Read).at(object.name()))?;
    engine.copy_range_to_host(&memory, 0, len)
}

/// Nothing is wrong with the file: what was asked of it cannot be had.
fn unplanned(at: &Uri, cause: PlanError) -> Error {
    let kind = match cause {
        PlanError::NoMatch { .. } => ErrorKind::NotFound,
        PlanError::OverBudget { .. } => ErrorKind::TooLarge,
        PlanError::BadAlign { .. } | PlanError::BadPart { .. } => ErrorKind::ApiMisuse,
    };
    Error::new(kind, Verb::Plan).at(at.to_string()).detail(cause.to_string()).caused_by(cause)
}

pub(crate) fn malformed(at: &Uri, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::BadFormat, Verb::Parse).at(at.to_string()).detail(cause.to_string()).caused_by(cause)
}
