//! Tables of samples: an index file, or objects that are scanned into memory.

use std::{
    fmt,
    num::NonZeroUsize,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use pyo3::{prelude::*, types::PyDict};
use straightway::{Error, Uri};
use sw_checkpoint::Cancel;
use sw_data::{
    index::{self, BuildOptions, Built, Checksums, Event, Index, OnError, SideCars},
    samples::{Format, Label, Samples as _},
};

use crate::{
    engine::{Engine, Handle, address},
    error::{Fail, misuse},
    wait,
};

/// Samples of existing objects: how many, where each is, what it is called.
#[pyclass(frozen, module = "straightway._native")]
pub struct Dataset {
    engine: Handle,
    /// The table itself.
    pub index: Arc<Index>,
    made_of: MadeOf,
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dataset {:?}", self.index)
    }
}

/// What a table was made of.
enum MadeOf {
    /// An index file.
    Index(String),
    /// A scan, what came of it, and what it left out.
    Scan(Wish, Built, Vec<Skipped>),
}

/// `(address, kind of the error, its text)` of an object that was left out.
type Skipped = (String, &'static str, String);

/// What is to be scanned.
#[derive(Clone)]
struct Wish {
    sources: Vec<String>,
    format: Option<Format>,
    column: Option<String>,
    on_error: OnError,
    sidecars: SideCars,
}

impl Wish {
    fn options<'a>(&'a self, checksums: Checksums, older: Option<&'a Index>) -> BuildOptions<'a> {
        BuildOptions {
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            format: self.format,
            column: self.column.as_deref(),
            sidecars: self.sidecars,
            checksums,
            on_error: self.on_error,
            older,
        }
    }
}

/// What to do about an object that cannot be indexed.
fn policy(text: &str) -> Result<OnError, Fail> {
    match text {
        "fail" => Ok(OnError::Fail),
        "skip" => Ok(OnError::Skip),
        other => Err(misuse(format!("on_bad={other:?}"), "use 'fail', 'skip' or 'quarantine=FILE'")),
    }
}

/// What to do with an index beside a shard.
fn beside(text: &str) -> Result<SideCars, Fail> {
    match text {
        "use" => Ok(SideCars::Use),
        "ignore" => Ok(SideCars::Ignore),
        other => Err(misuse(format!("sidecars={other:?}"), "use 'use' or 'ignore'")),
    }
}

/// Runs a scan; a signal ends it, and what `progress` raises, which is called with objects done and objects found. Objects that are
/// left out are listed: no more than were found, whose addresses are in memory too.
fn scanned<T: Send + 'static>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    scan: impl FnOnce(&mut dyn FnMut(Event<'_>) -> ControlFlow<()>) -> Result<T, Error> + Send + 'static,
) -> Result<(T, Vec<Skipped>), Fail> {
    let cancel = Cancel::default();
    let seen = cancel.clone();
    let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let counted = counts.clone();
    let read = || (counts.0.load(Ordering::Relaxed), counts.1.load(Ordering::Relaxed));
    wait::watched(py, &cancel, (progress, read), move || {
        let mut skipped = Vec::new();
        let done = scan(&mut |event| {
            if let Event::Damaged { uri, error } = &event {
                skipped.push(((*uri).to_owned(), error.kind().name(), error.to_string()));
            }
            match event {
                Event::Found { objects } => counted.1.store(objects, Ordering::Relaxed),
                Event::Object { .. } | Event::Damaged { .. } => drop(counted.0.fetch_add(1, Ordering::Relaxed)),
                Event::SideCar { .. } | Event::Deletes { .. } => {}
            }
            if seen.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok((done, skipped))
    })
}

/// Names of samples, in that order.
pub fn labels(py: Python<'_>, index: &Index, numbers: &[u64]) -> Result<Vec<Label>, Fail> {
    wait::detached(py, || {
        let mut labels = Vec::with_capacity(numbers.len());
        index.labels(numbers, &mut labels)?;
        Ok(labels)
    })
}

/// `(address, bytes, format, version)`.
type ObjectRow = (String, u64, &'static str, String);

/// `(key, object, offset, bytes, row, fields as (name, offset, bytes))`.
type SampleRow = (String, String, u64, u64, Option<u32>, Vec<(String, u64, u64)>);

#[pymethods]
impl Dataset {
    /// Opens the index that `sources` is, or scans what it names.
    #[new]
    #[pyo3(signature = (engine, sources, *, format=None, column=None, on_bad="fail", sidecars="use", progress=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn new(
        py: Python<'_>,
        engine: &Engine,
        sources: Vec<String>,
        format: Option<&str>,
        column: Option<String>,
        on_bad: &str,
        sidecars: &str,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> Result<Self, Fail> {
        let engine = engine.handle().clone();
        let format = format.map(str::parse).transpose()?;
        let (on_error, sidecars) = (policy(on_bad)?, beside(sidecars)?);
        let inner = straightway::Engine::clone(&engine);
        if let ([only], None, None) = (&*sources, format, &column)
            && let Ok(uri) = only.parse::<Uri>()
        {
            let opened = wait::interruptible(py, &Cancel::default(), move || {
                // What cannot be looked at here is told by the scan.
                let is_one = Index::is_one(&inner, &uri).unwrap_or(false);
                is_one.then(|| Index::open(&inner, &uri)).transpose()
            })?;
            if let Some(index) = opened {
                return Ok(Self { engine, index: Arc::new(index), made_of: MadeOf::Index(only.clone()) });
            }
        }
        let wish = Wish { sources, format, column, on_error, sidecars };
        let (inner, wanted) = (straightway::Engine::clone(&engine), wish.clone());
        let ((built, index), skipped) = scanned(py, progress, move |progress| {
            index::build_in_memory(&inner, &wanted.sources, &wanted.options(Checksums::Stored, None), progress)
        })?;
        Ok(Self { engine, index: Arc::new(index), made_of: MadeOf::Scan(wish, built, skipped) })
    }

    /// What it was made of.
    #[getter]
    fn name(&self) -> String {
        match &self.made_of {
            MadeOf::Index(name) => name.clone(),
            MadeOf::Scan(wish, ..) => wish.sources.join(", "),
        }
    }

    /// Whether it is an index file.
    #[getter]
    fn is_index(&self) -> bool {
        matches!(self.made_of, MadeOf::Index(_))
    }

    /// What the scan counted; `None` for an index file.
    #[getter]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        match &self.made_of {
            MadeOf::Index(_) => Ok(None),
            MadeOf::Scan(_, built, _) => built_dict(py, built).map(Some),
        }
    }

    /// Objects that the scan left out: `(address, kind of the error, its text)`.
    #[getter]
    fn skipped(&self) -> Vec<Skipped> {
        match &self.made_of {
            MadeOf::Index(_) => Vec::new(),
            MadeOf::Scan(_, _, skipped) => skipped.clone(),
        }
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.index.len()).unwrap_or(usize::MAX)
    }

    /// Objects that samples lie in.
    #[getter]
    fn object_count(&self) -> u32 {
        self.index.object_count()
    }

    /// `(address, bytes, format, version)` of an object.
    fn object(&self, py: Python<'_>, number: u32) -> Result<ObjectRow, Fail> {
        let entry = wait::detached(py, || self.index.object(number))?;
        Ok((entry.uri, entry.len, entry.format.name(), entry.version))
    }

    /// Keys of the samples from `start` to before `stop`.
    fn keys(&self, py: Python<'_>, start: u64, stop: u64) -> Result<Vec<String>, Fail> {
        let numbers: Vec<u64> = (start..stop.min(self.index.len())).collect();
        Ok(labels(py, &self.index, &numbers)?.into_iter().map(|label| label.key).collect())
    }

    /// Where a sample is and what it consists of.
    fn sample(&self, py: Python<'_>, number: u64) -> Result<SampleRow, Fail> {
        let label = labels(py, &self.index, &[number])?.pop().unwrap_or_default();
        let (place, object) = wait::detached(py, || {
            let mut places = Vec::new();
            self.index.locate(&[number], &mut places)?;
            let object = places.first().map(|place| self.index.object(place.object)).transpose()?;
            Ok((places.pop(), object.map(|object| object.uri).unwrap_or_default()))
        })?;
        let place = place.ok_or_else(|| misuse("there is no such sample", "ask for one that there is"))?;
        let fields = label.parts.into_iter().map(|part| (part.name, part.extent.offset, part.extent.len)).collect();
        Ok((label.key, object, place.extent.offset, place.extent.len, place.row, fields))
    }

    /// Writes the index of a dataset that was scanned: whole, or not at all. What did not change since is not read again. Returns what
    /// was counted, and what was left out.
    #[pyo3(signature = (path, *, checksums=false, progress=None))]
    #[expect(clippy::fn_params_excessive_bools, reason = "a keyword argument of Python")]
    fn write_index<'py>(
        &self,
        py: Python<'py>,
        path: &Bound<'py, PyAny>,
        checksums: bool,
        progress: Option<&Bound<'py, PyAny>>,
    ) -> Result<(Bound<'py, PyDict>, Vec<Skipped>), Fail> {
        let MadeOf::Scan(wish, ..) = &self.made_of else {
            return Err(misuse(
                "the dataset is an index file already",
                "copy the file, or make a dataset of the objects",
            ));
        };
        let checksums = if checksums { Checksums::Computed } else { Checksums::Stored };
        let (engine, wish, older) = (straightway::Engine::clone(&self.engine), wish.clone(), self.index.clone());
        let to = address(path)?;
        let (built, skipped) = scanned(py, progress, move |progress| {
            index::build(&engine, &wish.sources, &to, &wish.options(checksums, Some(&older)), progress)
        })?;
        Ok((built_dict(py, &built)?, skipped))
    }

    fn __repr__(&self) -> String {
        let how = if self.is_index() { "index" } else { "scan of" };
        format!("<Dataset {} samples in {} objects, {how} {}>", self.index.len(), self.object_count(), self.name())
    }
}

fn built_dict<'py>(py: Python<'py>, built: &Built) -> PyResult<Bound<'py, PyDict>> {
    let told = PyDict::new(py);
    let numbers = [
        ("samples", built.samples),
        ("checksums", built.checksums),
        ("objects", built.objects),
        ("object_bytes", built.object_bytes),
        ("taken_over", built.taken_over),
        ("damaged", built.damaged),
        ("passed_files", built.passed_files),
        ("passed_members", built.passed_members),
        ("deleted_rows", built.deleted_rows),
        ("unflushed_rows", built.unflushed_rows),
        ("sidecars", built.sidecars),
        ("sidecars_unfit", built.sidecars_unfit),
        ("sidecar_samples", built.sidecar_samples),
        ("sidecar_heads_unchecked", built.sidecar_heads_unchecked),
        ("index_bytes", built.index_bytes),
    ];
    for (name, number) in numbers {
        told.set_item(name, number)?;
    }
    Ok(told)
}
