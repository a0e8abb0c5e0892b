//! Checkpoints in the making, for frameworks that save with several ranks, and the checkpoints of a run.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use pyo3::{
    prelude::*,
    types::{PyBytes, PyDict},
};
use straightway::{Error, ErrorKind, Verb, parse_policy};
use sw_checkpoint::{
    Cancel, Commit, Contents, DcpOptions, IfExists, Incremental, Keep, Layout, Part, Prepared, Rank, SaveOptions,
    Saver, SaverOptions, Saving,
};

use crate::{
    checkpoint::all_owned,
    engine::{Engine, Given, Handle, given},
    error::{Fail, misuse},
    report, wait,
};

/// A DCP checkpoint in the making: nobody sees it until it is committed. Dropped by the rank that began it, it is removed.
#[pyclass(frozen, module = "straightway._native")]
pub struct PendingCheckpoint {
    engine: Handle,
    /// Empty once it is committed or given up.
    inner: Arc<Mutex<Option<sw_checkpoint::PendingCheckpoint>>>,
}

/// What a rank has written: its part for the commit, `(name, file, offset, bytes)` of everything, and the report.
type Wrote<'py> = (Bound<'py, PyBytes>, Vec<(String, String, u64, u64)>, Bound<'py, PyAny>);

impl PendingCheckpoint {
    fn new(engine: &Bound<'_, Engine>, inner: sw_checkpoint::PendingCheckpoint) -> Self {
        Self { engine: engine.get().handle().clone(), inner: Arc::new(Mutex::new(Some(inner))) }
    }
}

fn over() -> Error {
    Error::new(ErrorKind::Closed, Verb::Write)
        .at("a checkpoint in the making")
        .detail("it was committed or given up before")
        .remedy("begin another one")
}

fn if_exists(text: &str) -> Result<IfExists, Fail> {
    match text {
        "refuse" => Ok(IfExists::Refuse),
        "replace" => Ok(IfExists::Replace),
        other => Err(misuse(format!("if_exists is {other:?}"), "say refuse or replace")),
    }
}

#[pymethods]
impl PendingCheckpoint {
    /// Begins the checkpoint `target`, whose parent exists. Leftovers of dead writers of that name are removed.
    #[staticmethod]
    #[pyo3(signature = (engine, target, *, if_exists="refuse"))]
    fn begin(engine: &Bound<'_, Engine>, target: PathBuf, if_exists: &str) -> Result<Self, Fail> {
        let how = self::if_exists(if_exists)?;
        let begun = wait::detached(engine.py(), || sw_checkpoint::PendingCheckpoint::begin(&target, how))?;
        Ok(Self::new(engine, begun))
    }

    /// Takes part in what another process began, by its `directory`.
    #[staticmethod]
    fn join(engine: &Bound<'_, Engine>, directory: PathBuf) -> Result<Self, Fail> {
        let joined = wait::detached(engine.py(), || sw_checkpoint::PendingCheckpoint::join(&directory))?;
        Ok(Self::new(engine, joined))
    }

    /// What the other ranks join.
    #[getter]
    fn directory(&self) -> Result<PathBuf, Fail> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(inner.as_ref().ok_or_else(over)?.directory().to_owned())
    }

    /// Writes what rank `number` of `of` has: tensors, then things that are no tensors as bytes, each under a name of its own.
    /// They are durable when it returns. With `since`, a path, files get the checksums that a later save compares, and those that
    /// are as in the checkpoint there become links to them; an empty path has none. `file_bytes`: most bytes of tensors in one file.
    #[pyo3(signature = (rank, tensors, objects, *, policy="any", since=None, file_bytes=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn write<'py>(
        slf: &Bound<'py, Self>,
        rank: (u32, u32),
        tensors: Vec<Given<'py>>,
        objects: Vec<(String, Vec<u8>)>,
        policy: &str,
        since: Option<PathBuf>,
        file_bytes: Option<u64>,
    ) -> Result<Wrote<'py>, Fail> {
        let Self { engine, inner } = slf.get();
        let given = given(engine, tensors)?;
        let layout = Layout::Dcp(DcpOptions { file_len_max_bytes: file_bytes });
        let earlier = |since: PathBuf| Incremental::Since((!since.as_os_str().is_empty()).then_some(since));
        let incremental = since.map_or(Incremental::Off, earlier);
        let options = SaveOptions { layout, policy: parse_policy(policy)?, incremental, ..SaveOptions::default() };
        let (engine, inner, cancel) = (straightway::Engine::clone(engine), inner.clone(), Cancel::default());
        let how = SaverOptions { cancel: cancel.clone(), ..SaverOptions::default() };
        let wrote = wait::interruptible(slf.py(), &cancel, move || {
            let tensors = all_owned(&engine, given)?;
            let inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
            let pending = inner.as_ref().ok_or_else(over)?;
            let rank = Rank { number: rank.0, of: rank.1 };
            let saver = Saver::new(&engine, how)?;
            Ok(saver.prepare(pending, rank, Contents { tensors, objects }, &options).and_then(Saving::wait)?)
        })?;
        answer(slf.py(), &wrote)
    }

    /// Makes it a checkpoint, with the part of every rank and the framework's own metadata by file name; returns the names of
    /// the files. It is gone afterwards, whether that went well or not.
    #[pyo3(signature = (parts, metadata, *, if_exists="refuse"))]
    fn commit(
        slf: &Bound<'_, Self>,
        parts: Vec<Vec<u8>>,
        metadata: Vec<(String, Vec<u8>)>,
        if_exists: &str,
    ) -> Result<Vec<String>, Fail> {
        let Self { engine, inner } = slf.get();
        let layout = Layout::Dcp(DcpOptions::default());
        let how = Commit { layout, if_exists: self::if_exists(if_exists)?, metadata: Some(metadata) };
        wait::detached(slf.py(), || {
            let pending = inner.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(over)?;
            let parts = parts.iter().map(|part| Part::from_bytes(part)).collect::<Result<Vec<_>, _>>()?;
            sw_checkpoint::commit(engine, pending, parts, &how)
        })
    }

    /// Gives it up: the rank that began it removes everything.
    fn abandon(&self, py: Python<'_>) -> Result<(), Fail> {
        wait::detached(py, || {
            drop(self.inner.lock().unwrap_or_else(PoisonError::into_inner).take());
            Ok(())
        })
    }

    fn __repr__(&self) -> String {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let what = inner.as_ref().map_or_else(|| "over".to_owned(), |inner| inner.directory().display().to_string());
        format!("<straightway.PendingCheckpoint {what}>")
    }
}

fn answer<'py>(py: Python<'py>, wrote: &Prepared) -> Result<Wrote<'py>, Fail> {
    let place =
        |entry: sw_checkpoint::Entry<'_>| (entry.name.to_owned(), entry.file.to_owned(), entry.offset, entry.len);
    let fields = PyDict::new(py);
    fields.set_item("bytes", wrote.moved.bytes.total())?;
    fields.set_item("dma", wrote.moved.bytes.dma)?;
    fields.set_item("kernel_copy", wrote.moved.bytes.kernel_copy)?;
    fields.set_item("staged", wrote.moved.staged_bytes)?;
    fields.set_item("in_place", wrote.moved.in_place_bytes)?;
    fields.set_item("linked", wrote.moved.linked_bytes)?;
    let report = report::make(py, "SaveReport", fields)?;
    Ok((PyBytes::new(py, &wrote.part.to_bytes()), wrote.part.entries().map(place).collect(), report))
}

/// The checkpoints of a run: `ROOT/step-000123`, which there are, which is the latest, which stay.
#[pyclass(frozen, module = "straightway._native")]
pub struct Steps {
    steps: sw_checkpoint::Steps,
}

#[pymethods]
impl Steps {
    #[new]
    fn new(root: PathBuf) -> Self {
        Self { steps: sw_checkpoint::Steps::new(root) }
    }

    /// Where the checkpoint of `step` is, or will be.
    fn path(&self, step: u64) -> PathBuf {
        self.steps.path(step)
    }

    /// The committed steps in ascending order; what did not come from a commit is not among them.
    fn list(&self, py: Python<'_>) -> Result<Vec<u64>, Fail> {
        wait::detached(py, || self.steps.list())
    }

    /// The committed step with the highest number, or None.
    fn latest(&self, py: Python<'_>) -> Result<Option<u64>, Fail> {
        wait::detached(py, || self.steps.latest())
    }

    /// Keeps the last so many, and every step that is a multiple of `every`; removes the others and returns their steps.
    #[pyo3(signature = (last, *, every=None))]
    fn retain(&self, py: Python<'_>, last: usize, every: Option<u64>) -> Result<Vec<u64>, Fail> {
        wait::detached(py, || self.steps.retain(Keep { last, every }))
    }

    fn __repr__(&self) -> String {
        format!("<straightway.Steps {}>", self.steps.root().display())
    }
}
