//! Checkpoints: their tensors by name, loading all of them, saving.

use std::{path::PathBuf, sync::Arc};

use pyo3::{
    prelude::*,
    types::{PyDict, PyString},
};
use straightway::{Destination, Error, ErrorKind, Memory, Uri, Verb, parse_policy};
use sw_checkpoint::{Dtype, LayoutOptions, LoadOptions, Loaded, Pattern, SaveOptions, TensorSpec};

use crate::{
    buffer::{Buffer, Held},
    engine::Handle,
    error::{Fail, misuse},
    object::Object,
    report, wait,
};

/// A checkpoint whose headers were read and checked.
#[pyclass(frozen, module = "straightway._native")]
#[derive(Debug)]
pub struct Checkpoint {
    engine: Handle,
    opened: sw_checkpoint::Checkpoint,
}

impl Checkpoint {
    /// Opens the files of a checkpoint, without reading a tensor.
    pub fn open(py: Python<'_>, engine: Handle, at: Uri) -> Result<Self, Fail> {
        let inner = straightway::Engine::clone(&engine);
        let opened = wait::interruptible(py, move || sw_checkpoint::Checkpoint::open(&inner, &at))?;
        Ok(Self { engine, opened })
    }
}

/// `(name, element type, shape, bytes, file, offset in the file)`.
type Row<'a> = (&'a str, &'static str, Vec<u64>, u64, usize, u64);

#[pymethods]
impl Checkpoint {
    /// `(name, element type, shape, bytes, file, offset in the file)` of each tensor, by file and offset.
    ///
    /// A tensor that is not one range of one file (in several chunks, or a view that is not contiguous) is an error.
    fn tensors(&self) -> Result<Vec<Row<'_>>, Fail> {
        let row = |tensor: &'_ sw_checkpoint::Tensor| match tensor.chunks() {
            [chunk] => Ok((chunk.file, chunk.file_offset)),
            [] if tensor.len_bytes == 0 => Ok((0, 0)),
            chunks => Err(misuse(
                format!("tensor {:?} is in {} chunks", tensor.name, chunks.len()),
                "load it instead of asking where it is",
            )),
        };
        let mut rows = Vec::with_capacity(self.opened.catalog().tensors().len());
        for tensor in self.opened.catalog().tensors() {
            let (file, offset) = row(tensor)?;
            rows.push((&*tensor.name, tensor.dtype.name(), tensor.shape.to_vec(), tensor.len_bytes, file, offset));
        }
        rows.sort_by_key(|row: &Row<'_>| (row.4, row.5));
        Ok(rows)
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

    /// One of its files.
    #[pyo3(signature = (file=0))]
    fn object(&self, file: usize) -> Result<Object, Fail> {
        let object = self.opened.objects().get(file).ok_or_else(|| misuse("there is no such file", "count from 0"))?;
        Ok(Object::new(self.engine.clone(), object.clone()))
    }

    fn __repr__(&self) -> String {
        let tensors = self.opened.catalog().tensors().len();
        format!("<straightway.Checkpoint {tensors} tensors in {} files>", self.opened.objects().len())
    }
}

/// Options of a load from what Python gives: a pattern, a list of names, or nothing for all tensors.
pub fn load_options(into: &str, tensors: Option<&Bound<'_, PyAny>>, policy: &str) -> Result<LoadOptions, Fail> {
    let text = match tensors {
        None => None,
        Some(given) => match given.cast::<PyString>() {
            Ok(pattern) => Some(pattern.to_cow()?.into_owned()),
            Err(_) => {
                Some(given.extract::<Vec<String>>()?.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(","))
            }
        },
    };
    let tensors = match text {
        None => Pattern::all(),
        Some(text) => {
            Pattern::parse(&text).map_err(|cause| misuse(cause.to_string(), "give a pattern or a list of names"))?
        }
    };
    Ok(LoadOptions { into: into.parse()?, tensors, policy: parse_policy(policy)?, ..LoadOptions::default() })
}

/// A name as a pattern that matches it alone.
fn quoted(name: &str) -> String {
    name.chars().fold(String::with_capacity(name.len()), |mut text, c| {
        if matches!(c, ',' | '*' | '?' | '\\') {
            text.push('\\');
        }
        text.push(c);
        text
    })
}

/// Tensors by name, and the report.
pub type LoadedList<'py> = (Vec<(String, Buffer)>, Bound<'py, PyAny>);

/// Loads, and gives each tensor as a buffer.
pub fn load<'py>(py: Python<'py>, engine: &Handle, at: Uri, options: LoadOptions) -> Result<LoadedList<'py>, Fail> {
    let into = options.into;
    let (name, inner) = (at.to_string(), straightway::Engine::clone(engine));
    let loaded = wait::interruptible(py, move || sw_checkpoint::load(&inner, &at, &options))?;
    let Loaded { regions, tensors, files, tensor_bytes, gap_bytes } = loaded;
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

/// Saves; memory `None` is a tensor without bytes.
pub fn save(
    py: Python<'_>,
    engine: &Handle,
    directory: PathBuf,
    given: Vec<(TensorSpec, Option<Memory>)>,
    layout: LayoutOptions,
) -> Result<Vec<String>, Fail> {
    let mut tensors = Vec::with_capacity(given.len());
    for (spec, memory) in given {
        let memory = match memory {
            Some(memory) => memory,
            None => no_bytes(engine)?,
        };
        tensors.push((spec, memory));
    }
    let (engine, options) = (straightway::Engine::clone(engine), SaveOptions { layout, ..SaveOptions::default() });
    let saved = wait::interruptible(py, move || {
        let saved = sw_checkpoint::save(&engine, &directory, tensors, &options)?;
        Ok(saved.files)
    })?;
    Ok(saved)
}

fn no_bytes(engine: &straightway::Engine) -> Result<Memory, Error> {
    let one = engine.allocate(Destination::Host, 1, 0)?;
    one.split_at(0).map(|(none, _)| none).map_err(|_| Error::new(ErrorKind::OutOfRange, Verb::Register))
}
