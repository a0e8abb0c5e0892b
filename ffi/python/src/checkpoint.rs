//! Checkpoints: their tensors by name, loading all of them, saving.

use std::{ops::Range, path::PathBuf, sync::Arc};

use pyo3::{
    prelude::*,
    types::{PyDict, PyString},
};
use straightway::{Destination, Error, ErrorKind, Memory, Uri, Verb, parse_policy};
use sw_checkpoint::{
    Bytes, Cancel, Dtype, Held as Placed, LayoutOptions, LoadOptions, Loaded, NewTensor, Pattern, SaveOptions, Saver,
    SaverOptions, Saving, TensorSpec, Want,
};

use crate::{
    buffer::{Buffer, Held},
    engine::Handle,
    error::{Fail, misuse},
    report, wait,
};

/// A checkpoint whose heads were read and checked.
#[pyclass(frozen, module = "straightway._native")]
#[derive(Debug)]
pub struct Checkpoint {
    engine: Handle,
    opened: Arc<sw_checkpoint::Checkpoint>,
}

impl Checkpoint {
    /// Opens the files of a checkpoint, without reading a tensor.
    pub fn open(py: Python<'_>, engine: Handle, at: Uri) -> Result<Self, Fail> {
        let inner = straightway::Engine::clone(&engine);
        let opened = wait::interruptible(py, &Cancel::default(), move || sw_checkpoint::Checkpoint::open(&inner, &at))?;
        Ok(Self { engine, opened: Arc::new(opened) })
    }

    /// A whole tensor, or the box of it that half-open ranges cut out, one for each dimension.
    fn want(&self, name: &str, ranges: Option<&[(u64, u64)]>) -> Result<Want, Fail> {
        let catalog = self.opened.catalog();
        let ranges: Vec<Range<u64>> = match ranges {
            Some(ranges) => ranges.iter().map(|(start, end)| *start..*end).collect(),
            None => catalog.get(name).into_iter().flat_map(|tensor| tensor.shape.iter().map(|dim| 0..*dim)).collect(),
        };
        Want::slice(catalog, name, &ranges)
            .map_err(|cause| misuse(cause.to_string(), "ask for a tensor and ranges that it has"))
    }
}

fn row_of(tensor: &sw_checkpoint::Tensor) -> Row<'_> {
    (&*tensor.name, tensor.dtype.name(), tensor.shape.to_vec(), tensor.len_bytes)
}

/// Half-open ranges of a tensor, one for each dimension; None for all of it.
type Ranges = Option<Vec<(u64, u64)>>;

/// `(name, element type, shape, bytes)`.
type Row<'a> = (&'a str, &'static str, Vec<u64>, u64);

/// `(file, offset, bytes, first element, elements)` of a chunk, both of them for each dimension.
type Place<'a> = (&'a str, u64, u64, Vec<u64>, Vec<u64>);

#[pymethods]
impl Checkpoint {
    /// `(name, element type, shape, bytes)` of each tensor, in the order of the files and of the offsets in them.
    fn tensors(&self) -> Vec<Row<'_>> {
        let mut tensors: Vec<_> = self.opened.catalog().tensors().iter().collect();
        tensors.sort_by_key(|tensor| tensor.chunks().first().map(|chunk| (chunk.file, chunk.file_offset)));
        tensors.into_iter().map(row_of).collect()
    }

    /// The chunks that hold a tensor, each a dense box: `(file, offset, bytes, first element, elements)`, the last two for each
    /// dimension. The file is a path below the checkpoint's directory.
    fn places(&self, name: &str) -> Result<Vec<Place<'_>>, Fail> {
        let catalog = self.opened.catalog();
        let tensor =
            catalog.get(name).ok_or_else(|| misuse(format!("no tensor {name:?}"), "ask for one that it has"))?;
        if let Placed::Refused(why) = &tensor.held {
            return Err(Error::new(ErrorKind::BadFormat, Verb::Read)
                .at(self.opened.at().to_string())
                .detail(format!("tensor {name:?}: {why}"))
                .remedy("leave it out")
                .into());
        }
        let place = |chunk: &sw_checkpoint::Chunk| {
            let file = catalog.files().get(chunk.file).map_or("", |file| &file.name);
            (file, chunk.file_offset, chunk.len_bytes, chunk.offsets.to_vec(), chunk.sizes.to_vec())
        };
        Ok(tensor.chunks().iter().map(place).collect())
    }

    /// Reads `(name, ranges)`: the box of a tensor that half-open ranges cut out, one for each dimension, or, for None, all of it.
    /// Gives buffers in the same order, and the report.
    #[pyo3(signature = (wants, *, into="host", policy="any", verify="auto"))]
    fn read<'py>(
        slf: &Bound<'py, Self>,
        wants: Vec<(String, Ranges)>,
        into: &str,
        policy: &str,
        verify: &str,
    ) -> Result<LoadedList<'py>, Fail> {
        let Self { engine, opened } = slf.get();
        let wants = wants.iter().map(|(name, ranges)| slf.get().want(name, ranges.as_deref()));
        let wants = wants.collect::<Result<Vec<_>, _>>()?;
        let options = load_options(into, policy, verify)?;
        let (into, inner, at) = (options.into, straightway::Engine::clone(engine), opened.clone());
        let cancel = options.cancel.clone();
        let loaded = wait::interruptible(slf.py(), &cancel, move || at.load(&inner, &wants, &options))?;
        as_buffers(slf.py(), engine, &opened.at().to_string(), (loaded, into))
    }

    /// Free-form strings of a file's header.
    #[pyo3(signature = (file=0))]
    fn metadata<'py>(&self, py: Python<'py>, file: usize) -> PyResult<Bound<'py, PyDict>> {
        let strings = PyDict::new(py);
        for (key, value) in self.opened.catalog().files().get(file).into_iter().flat_map(|file| &file.metadata) {
            strings.set_item(key, value)?;
        }
        Ok(strings)
    }

    fn __repr__(&self) -> String {
        let tensors = self.opened.catalog().tensors().len();
        format!("<straightway.Checkpoint {tensors} tensors in {} files>", self.opened.objects().len())
    }
}

/// Options of a load.
pub fn load_options(into: &str, policy: &str, verify: &str) -> Result<LoadOptions, Fail> {
    let (into, policy, verify) = (into.parse()?, parse_policy(policy)?, verify.parse()?);
    Ok(LoadOptions { into, policy, verify, ..LoadOptions::default() })
}

/// Which tensors to load.
#[derive(Debug)]
pub enum Chosen {
    /// All that match.
    Matching(Pattern),
    /// All of the list.
    Named(Vec<String>),
}

impl Chosen {
    /// From a pattern, a list of names, or nothing for all tensors.
    ///
    /// # Errors
    /// `ApiMisuse` for a text that is no pattern.
    pub fn from_python(given: Option<&Bound<'_, PyAny>>) -> Result<Self, Fail> {
        let Some(given) = given else { return Ok(Self::Matching(Pattern::all())) };
        match given.cast::<PyString>() {
            Ok(text) => match Pattern::parse(&text.to_cow()?) {
                Ok(pattern) => Ok(Self::Matching(pattern)),
                Err(cause) => Err(misuse(cause.to_string(), "give a pattern or a list of names")),
            },
            Err(_) => Ok(Self::Named(given.extract()?)),
        }
    }

    fn wants(&self, of: &sw_checkpoint::Checkpoint) -> Result<Vec<Want>, Error> {
        match self {
            Self::Matching(pattern) => of.wants(pattern),
            Self::Named(names) => of.wants_named(names),
        }
    }
}

/// Tensors by name, and the report.
pub type LoadedList<'py> = (Vec<(String, Buffer)>, Bound<'py, PyAny>);

/// Loads, and gives each tensor as a buffer.
pub fn load<'py>(
    py: Python<'py>,
    engine: &Handle,
    at: Uri,
    chosen: Chosen,
    (options, progress): (LoadOptions, Option<&Bound<'py, PyAny>>),
) -> Result<LoadedList<'py>, Fail> {
    let (into, name, inner) = (options.into, at.to_string(), straightway::Engine::clone(engine));
    let (cancel, meter) = (options.cancel.clone(), options.meter.clone());
    let loaded = wait::watched(py, &cancel, (progress, || meter.read()), move || {
        let checkpoint = sw_checkpoint::Checkpoint::open(&inner, &at)?;
        checkpoint.load(&inner, &chosen.wants(&checkpoint)?, &options)
    })?;
    as_buffers(py, engine, &name, (loaded, into))
}

fn as_buffers<'py>(
    py: Python<'py>,
    engine: &Handle,
    name: &str,
    (loaded, into): (Loaded, Destination),
) -> Result<LoadedList<'py>, Fail> {
    let Loaded { regions, tensors, files, tensor_bytes, gap_bytes, verification, .. } = loaded;
    let held: Vec<Arc<Held>> = regions.into_iter().map(|memory| Arc::new(Held::new(memory))).collect();
    let mut realigned = 0;
    let mut list = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let place = tensor.place.and_then(|(region, offset)| Some((held.get(region)?.clone(), offset)));
        let (memory, offset) = match place {
            None => (Arc::new(Held::empty(into)), 0),
            Some((memory, offset)) if is_aligned(&memory, offset, tensor.dtype) => (memory, offset),
            Some((memory, offset)) => {
                realigned += tensor.len_bytes;
                (Arc::new(realign(py, engine, &memory, (offset, tensor.len_bytes))?), 0)
            }
        };
        let (dtype, shape, len) = (tensor.dtype, tensor.shape, tensor.len_bytes);
        list.push((tensor.name, Buffer { held: memory, offset, dtype, shape, len, path: None }));
    }
    let fields = PyDict::new(py);
    fields.set_item("name", name)?;
    fields.set_item("into", into.to_string())?;
    fields.set_item("files", files.iter().map(|file| report::file(py, file)).collect::<PyResult<Vec<_>>>()?)?;
    fields.set_item("tensors", list.len())?;
    fields.set_item("tensor_bytes", tensor_bytes)?;
    fields.set_item("gap_bytes", gap_bytes)?;
    fields.set_item("realigned_bytes", realigned)?;
    fields.set_item("verification", verification.name())?;
    Ok((list, report::make(py, "LoadReport", fields)?))
}

/// Whether elements lie on multiples of their size: arrays of every framework want that.
fn is_aligned(memory: &Held, offset: u64, dtype: Dtype) -> bool {
    (memory.address() + offset).is_multiple_of((dtype.bits() / 8).max(1))
}

/// A copy on an aligned address of the host. Files of old writers have tensors at odd offsets.
fn realign(py: Python<'_>, engine: &Handle, memory: &Held, (offset, len): (u64, u64)) -> Result<Held, Fail> {
    if memory.destination() != Destination::Host {
        return Err(Error::new(ErrorKind::Unsupported, Verb::Copy)
            .at(format!("{} memory", memory.destination()))
            .detail("the file has a tensor at an offset that is no multiple of its element size")
            .remedy("load it into the host, or save the file again")
            .into());
    }
    let part = memory.part(offset, len)?;
    let copied = wait::detached(py, move || {
        let fresh = engine.allocate(Destination::Host, len, 0)?;
        let mut bytes = Vec::new();
        if let Some(part) = part {
            bytes = engine.copy_range_to_host(&part, 0, len)?;
        }
        fill(fresh, &bytes)
    })?;
    Ok(Held::new(copied))
}

/// Fresh host memory with `bytes` in it.
pub fn fill(memory: Memory, bytes: &[u8]) -> Result<Memory, Error> {
    let fail = |memory: Memory| Error::new(ErrorKind::ApiMisuse, Verb::Copy).detail(format!("{memory} has no slices"));
    let mut buffer = memory.into_buffer().map_err(fail)?;
    buffer.as_mut_slice().copy_from_slice(bytes);
    Ok(buffer.into())
}

/// What a save makes.
#[derive(Clone, Copy)]
pub enum Target {
    /// A directory with checksums.
    Directory,
    /// One file in a directory that may have others.
    File,
}

/// Saves; memory `None` is a tensor without bytes.
pub fn save(
    py: Python<'_>,
    engine: &Handle,
    (target, path): (Target, PathBuf),
    given: Vec<(TensorSpec, Option<Memory>)>,
    layout: LayoutOptions,
) -> Result<Vec<String>, Fail> {
    let engine = straightway::Engine::clone(engine);
    let cancel = Cancel::default();
    let options = SaverOptions { cancel: cancel.clone(), ..SaverOptions::default() };
    let saved = wait::interruptible(py, &cancel, move || {
        let saver = Saver::new(&engine, options)?;
        let contents = all_owned(&engine, given)?.into();
        let saving = match target {
            Target::File => saver.save_file(&path, contents, layout.metadata, straightway::Policy::Any),
            Target::Directory => {
                saver.save(&path, contents, &SaveOptions { layout: layout.into(), ..SaveOptions::default() })
            }
        };
        Ok(saving.and_then(Saving::wait)?.files)
    })?;
    Ok(saved)
}

/// Tensors that are given away; memory `None` is a tensor without bytes.
pub fn all_owned(
    engine: &straightway::Engine,
    given: Vec<(TensorSpec, Option<Memory>)>,
) -> Result<Vec<NewTensor<'static>>, Error> {
    let owned = |(spec, memory): (TensorSpec, Option<Memory>)| {
        let memory = memory.map_or_else(|| no_bytes(engine), Ok)?;
        Ok(NewTensor::new(spec, Bytes::Owned(memory)))
    };
    given.into_iter().map(owned).collect()
}

/// Memory without bytes.
fn no_bytes(engine: &straightway::Engine) -> Result<Memory, Error> {
    let one = engine.allocate(Destination::Host, 1, 0)?;
    one.split_at(0).map(|(none, _)| none).map_err(|_| Error::new(ErrorKind::OutOfRange, Verb::Register))
}
