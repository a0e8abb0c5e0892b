//! The engine.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use pyo3::{
    prelude::*,
    types::{PyDict, PyString},
};
use straightway::{Completed, DataPath, Destination, Request, Uri};

use crate::{
    buffer::{Buffer, Held, dtype_named},
    checkpoint::{self, Checkpoint, Chosen},
    copy,
    error::Fail,
    foreign::{self, Access},
    object::{NewObject, Object, terms, under},
    report, wait,
};

/// Shares an engine. The last one closes it, which may wait for a device: not with the interpreter held.
#[derive(Clone)]
pub struct Handle {
    engine: straightway::Engine,
    /// Dropped after `engine`, so that the last handle's is the last clone of all.
    _last: Arc<Last>,
}

struct Last(Option<straightway::Engine>);

impl Drop for Last {
    fn drop(&mut self) {
        let engine = self.0.take();
        // Without an interpreter to leave, it is dropped here all the same.
        let _ = Python::try_attach(|py| py.detach(move || drop(engine)));
    }
}

impl Handle {
    fn new(engine: straightway::Engine) -> Self {
        Self { _last: Arc::new(Last(Some(engine.clone()))), engine }
    }
}

impl Deref for Handle {
    type Target = straightway::Engine;

    fn deref(&self) -> &straightway::Engine {
        &self.engine
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("engine")
    }
}

/// Moves bytes between objects and memory. Share one; `with` closes it at the end.
///
/// Options are those of the command line, such as `queue_depth=128`, `io_bytes="1MiB"`, `io_uring="off"`, `gpu="off"`.
#[pyclass(frozen, module = "straightway._native", weakref)]
#[derive(Debug)]
pub struct Engine {
    handle: Handle,
}

impl Engine {
    /// A share of it.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// The engine of those who do not make one, with the process that it works in.
static SHARED: Mutex<Vec<(u32, Handle)>> = Mutex::new(Vec::new());

/// A path or an address.
pub fn address(object: &Bound<'_, PyAny>) -> Result<Uri, Fail> {
    if let Ok(text) = object.cast::<PyString>() {
        return Ok(text.to_cow()?.parse()?);
    }
    let path: std::path::PathBuf = object.extract()?;
    Ok(Uri::from_path(&path)?)
}

/// Runs requests together, and sums their ways.
pub fn run_all<'py>(
    py: Python<'py>,
    engine: &straightway::Engine,
    requests: Vec<Request>,
) -> Result<Vec<Bound<'py, PyAny>>, Fail> {
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let done = wait::finish(py, engine.batch(requests))?;
    let mut ways = Ways::default();
    ways.add_all(&done);
    match done.into_iter().find_map(|done| done.result.err()) {
        Some(error) => Err(error.into()),
        None => Ok(ways.report(py)?),
    }
}

/// Ways of bytes, summed, with the operations that each had.
#[derive(Debug, Default)]
pub struct Ways(Vec<(DataPath, u64)>);

impl Ways {
    /// Adds those of operations that succeeded.
    pub fn add_all(&mut self, done: &[Completed]) {
        done.iter().filter(|done| done.result.is_ok()).for_each(|done| self.add(&done.path));
    }

    fn add(&mut self, path: &DataPath) {
        match self.0.iter_mut().find(|(way, _)| way.route == path.route && way.reason == path.reason) {
            Some((way, operations)) => {
                way.bytes += path.bytes;
                way.bounced += path.bounced;
                way.cpu_copied += path.cpu_copied;
                *operations += 1;
            }
            None => self.0.push((*path, 1)),
        }
    }

    /// As Python has them.
    pub fn report<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.0.iter().map(|(path, operations)| report::path(py, path, *operations)).collect()
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (**options))]
    fn new(options: Option<&Bound<'_, PyDict>>) -> Result<Self, Fail> {
        let mut builder = straightway::Engine::builder();
        for (name, value) in options.into_iter().flatten() {
            builder = builder.set(name.str()?.to_cow()?.as_ref(), value.str()?.to_cow()?.as_ref())?;
        }
        Ok(Self { handle: Handle::new(builder.build()?) })
    }

    /// The engine that this process shares. A child of a fork gets one of its own.
    #[staticmethod]
    fn shared() -> Result<Self, Fail> {
        let process = std::process::id();
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, handle)) = shared.iter().find(|(of, _)| *of == process) {
            return Ok(Self { handle: handle.clone() });
        }
        // The parent's stays in the list: closing it here would wait for threads that a child does not have.
        let handle = Handle::new(straightway::Engine::builder().build()?);
        shared.push((process, handle.clone()));
        Ok(Self { handle })
    }

    /// Opens a path or an address.
    fn open(&self, py: Python<'_>, uri: &Bound<'_, PyAny>) -> Result<Object, Fail> {
        let uri = address(uri)?;
        let object = wait::detached(py, || self.handle.open(&uri))?;
        Ok(Object::new(self.handle.clone(), object))
    }

    /// Starts a new object of `size` bytes: in place as a whole once it is committed, never half.
    fn create(&self, py: Python<'_>, uri: &Bound<'_, PyAny>, size: u64) -> Result<NewObject, Fail> {
        let uri = address(uri)?;
        let new = wait::detached(py, || self.handle.create(&uri, size))?;
        Ok(NewObject::new(self.handle.clone(), new))
    }

    /// Fresh memory. An address congruent to `phase` modulo the page size lets a read from that offset land in place.
    #[pyo3(signature = (nbytes, into="host", *, phase=0))]
    fn allocate(&self, py: Python<'_>, nbytes: u64, into: &str, phase: u64) -> Result<Buffer, Fail> {
        let into: Destination = into.parse()?;
        if nbytes == 0 {
            return Ok(Buffer::bytes(Arc::new(Held::empty(into)), None));
        }
        let memory = wait::detached(py, || self.handle.allocate(into, nbytes, phase))?;
        Ok(Buffer::bytes(Arc::new(Held::new(memory)), None))
    }

    /// Fills each target of `(object, offset, target)`, all at once; returns the ways that the bytes took.
    #[pyo3(signature = (parts, *, policy="any", deadline=None))]
    fn read_many<'py>(
        &self,
        py: Python<'py>,
        parts: Vec<(Bound<'py, Object>, u64, Bound<'py, PyAny>)>,
        policy: &str,
        deadline: Option<f64>,
    ) -> Result<Vec<Bound<'py, PyAny>>, Fail> {
        let terms = terms(policy, deadline)?;
        let mut requests = Vec::with_capacity(parts.len());
        for (object, offset, target) in &parts {
            if let Some(memory) = foreign::memory_of(&self.handle, target, Access::Target)? {
                requests.push(under(self.handle.read(&object.get().inner()?, *offset, memory), terms));
            }
        }
        run_all(py, &self.handle, requests)
    }

    /// Copies each source of `(source, target)` into its target, of the same length, by several threads; returns the bytes
    /// copied. Sources are memory of the host or of a GPU, targets of the host.
    fn copy_many(&self, py: Python<'_>, parts: Vec<copy::Pair<'_>>) -> Result<u64, Fail> {
        copy::many(py, &self.handle, &parts)
    }

    /// A copy of `buffer` in host memory.
    fn to_host(&self, py: Python<'_>, buffer: &Buffer) -> Result<Buffer, Fail> {
        let len = buffer.len;
        let Some(part) = foreign::part_of(&self.handle, buffer)? else {
            return Buffer::bytes(Arc::new(Held::empty(Destination::Host)), None).typed(
                buffer.dtype,
                buffer.shape.clone(),
                0,
            );
        };
        let memory = wait::detached(py, move || {
            let fresh = self.handle.allocate(Destination::Host, len, 0)?;
            checkpoint::fill(fresh, &self.handle.copy_range_to_host(&part, 0, len)?)
        })?;
        Buffer::bytes(Arc::new(Held::new(memory)), None).typed(buffer.dtype, buffer.shape.clone(), 0)
    }

    /// Opens a checkpoint: its tensors by name, without reading one.
    fn open_checkpoint(&self, py: Python<'_>, uri: &Bound<'_, PyAny>) -> Result<Checkpoint, Fail> {
        Checkpoint::open(py, self.handle.clone(), address(uri)?)
    }

    /// Loads a checkpoint: `(list of (name, buffer), report)`. `tensors` is a pattern, a list of names, or None for all.
    /// `verify`: auto, off or require. `progress` is called with bytes that have arrived and bytes in all; what it raises ends the load.
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python method")]
    #[pyo3(signature = (uri, *, into="host", tensors=None, policy="any", verify="auto", progress=None))]
    fn load<'py>(
        &self,
        uri: &Bound<'py, PyAny>,
        into: &str,
        tensors: Option<&Bound<'py, PyAny>>,
        policy: &str,
        verify: &str,
        progress: Option<&Bound<'py, PyAny>>,
    ) -> Result<checkpoint::LoadedList<'py>, Fail> {
        let (chosen, options) = (Chosen::from_python(tensors)?, checkpoint::load_options(into, policy, verify)?);
        checkpoint::load(uri.py(), &self.handle, address(uri)?, chosen, (options, progress))
    }

    /// Saves `(name, element type, shape, bytes)` in a directory; returns the names of the files.
    #[pyo3(signature = (directory, tensors, *, stem="model", metadata=None, shard_bytes=None))]
    fn save(
        slf: &Bound<'_, Self>,
        directory: std::path::PathBuf,
        tensors: Vec<Given<'_>>,
        stem: &str,
        metadata: Option<std::collections::BTreeMap<String, String>>,
        shard_bytes: Option<u64>,
    ) -> Result<Vec<String>, Fail> {
        let given = given(&slf.get().handle, tensors)?;
        let layout = sw_checkpoint::LayoutOptions {
            shard_len_max_bytes: shard_bytes,
            stem: stem.to_owned(),
            metadata: metadata.unwrap_or_default(),
            ..sw_checkpoint::LayoutOptions::default()
        };
        checkpoint::save(slf.py(), &slf.get().handle, (checkpoint::Target::Directory, directory), given, layout)
    }

    /// Saves `(name, element type, shape, bytes)` as one file.
    #[pyo3(signature = (path, tensors, *, metadata=None))]
    fn save_file(
        slf: &Bound<'_, Self>,
        path: std::path::PathBuf,
        tensors: Vec<Given<'_>>,
        metadata: Option<std::collections::BTreeMap<String, String>>,
    ) -> Result<(), Fail> {
        let given = given(&slf.get().handle, tensors)?;
        let layout = sw_checkpoint::LayoutOptions {
            metadata: metadata.unwrap_or_default(),
            ..sw_checkpoint::LayoutOptions::default()
        };
        let target = (checkpoint::Target::File, path);
        checkpoint::save(slf.py(), &slf.get().handle, target, given, layout).map(drop)
    }

    /// What this machine can do, and what to change.
    fn doctor<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>, Fail> {
        let doctor = wait::detached(py, || Ok(self.handle.doctor()))?;
        Ok(report::doctor(py, &doctor)?)
    }

    /// The live state, as text.
    fn inspect(&self, py: Python<'_>) -> Result<String, Fail> {
        wait::detached(py, || Ok(self.handle.inspect().to_string()))
    }

    /// Ends everything in flight and stops. Later operations raise `Closed`. If it was the one that the process shares,
    /// the next who asks for that gets a new one.
    fn close(&self, py: Python<'_>) -> Result<(), Fail> {
        let mine = |handle: &Handle| Arc::ptr_eq(&handle._last, &self.handle._last);
        SHARED.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, handle)| !mine(handle));
        let engine = straightway::Engine::clone(&self.handle);
        wait::detached(py, || engine.close())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) -> Result<bool, Fail> {
        self.close(py)?;
        Ok(false)
    }

    fn __repr__(&self) -> &'static str {
        "<straightway.Engine>"
    }
}

/// A tensor as Python gives it: name, element type, shape, bytes.
pub type Given<'py> = (String, String, Vec<u64>, Bound<'py, PyAny>);

/// The memory of tensors that Python gave; `None` for one without bytes.
///
/// # Errors
/// As [`foreign::memory_of`]; `ApiMisuse` for an unknown element type.
pub fn given(
    engine: &Handle,
    tensors: Vec<Given<'_>>,
) -> Result<Vec<(sw_checkpoint::TensorSpec, Option<straightway::Memory>)>, Fail> {
    let mut given = Vec::with_capacity(tensors.len());
    for (name, dtype, shape, source) in tensors {
        let memory = foreign::memory_of(engine, &source, Access::Source)?;
        given.push((sw_checkpoint::TensorSpec { name, dtype: dtype_named(&dtype)?, shape }, memory));
    }
    Ok(given)
}
