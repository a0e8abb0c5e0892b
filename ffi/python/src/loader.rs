//! The loader: options from Python, waiting in slices, its state.
//!
//! ```text
//!   options ─► [started by the first question] ─► next: wait a slice without the interpreter, look for signals ─► Batch
//!                       ▲ state                                                                                └► epoch ends
//! ```
//!
//! Nothing runs until the first batch is asked for, so that a state can be given before.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pyo3::{
    prelude::*,
    types::{PyDict, PyString},
};
use straightway::{Error, ErrorKind, Verb, parse_policy};
use sw_data::{
    index::Index,
    loader::{
        self, LastBatch, Layout, LoadError, LoaderOptions, LoaderState, LoaderStats, Next, OnBad, PadTo, SampleId,
    },
    order::{Method, Tail, World},
};

use crate::{
    batch::{Batch, Content},
    dataset::Dataset,
    engine::{Engine, Handle},
    error::{Fail, misuse},
    map, mishap, report, wait,
};

/// Reads samples ahead by threads, and gives them as batches.
#[pyclass(frozen, module = "straightway._native", weakref)]
pub struct Loader {
    engine: Handle,
    tables: Arc<[Arc<Index>]>,
    weights: Vec<u32>,
    options: LoaderOptions,
    content: Content,
    /// Read by map functions.
    over: Arc<AtomicBool>,
    process: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Option<Arc<Running>>,
    /// Where to go on from when it is started; where it was when it was closed.
    at: Option<LoaderState>,
    /// As of the end.
    stats: LoaderStats,
    quarantined: Vec<BadRow>,
    is_closed: bool,
}

/// A loader with threads. Dropping it waits for them, and they may wait for the interpreter: so it is left meanwhile.
struct Running(Option<loader::Loader>);

impl Deref for Running {
    type Target = Option<loader::Loader>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let loader = self.0.take();
        // Without an interpreter to leave, it is dropped here all the same.
        let _ = Python::try_attach(|py| py.detach(move || drop(loader)));
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What a question about the loader ends with.
enum Ended {
    Load(LoadError),
    Closed,
}

/// `(dataset, number, object, offset, bytes, why)`.
type BadRow = (u32, u64, String, u64, u64, String);

impl Loader {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A child of the process that made it has neither its threads nor its locks.
    fn check_process(&self) -> Result<(), Fail> {
        if std::process::id() == self.process {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forked, Verb::Read)
            .at("a loader")
            .detail("the process was forked after the loader was made")
            .remedy("make a loader in the child, or start workers with spawn")
            .into())
    }

    /// The loader, started if it is not. Not with the interpreter held.
    fn running(&self) -> Result<Arc<Running>, Ended> {
        let mut state = self.lock();
        if let Some(running) = &state.running {
            return Ok(running.clone());
        }
        if state.is_closed {
            return Err(Ended::Closed);
        }
        let dataset = |(table, weight): (&Arc<Index>, &u32)| loader::Dataset::new(table.clone()).weight(*weight);
        let datasets = self.tables.iter().zip(&self.weights).map(dataset).collect();
        let started = loader::Loader::new(&self.engine, datasets, self.options.clone(), state.at.clone());
        let running = Arc::new(Running(Some(started.map_err(Ended::Load)?)));
        state.running = Some(running.clone());
        Ok(running)
    }

    /// Asks the loader, started if it is not, without the interpreter.
    fn ask<T: Send>(
        &self,
        py: Python<'_>,
        question: impl FnOnce(&loader::Loader) -> Result<T, LoadError> + Send,
    ) -> Result<T, Fail> {
        self.check_process()?;
        let answer = py.detach(|| {
            wait::contained(|| {
                let running = self.running()?;
                question(running.as_ref().as_ref().ok_or(Ended::Closed)?).map_err(Ended::Load)
            })
        })?;
        answer.map_err(|ended| match ended {
            // Whatever its threads said when they were ended.
            Ended::Load(_) if self.lock().is_closed => closed(),
            Ended::Load(error) => Fail::Python(mishap::raise(py, &error)),
            Ended::Closed => closed(),
        })
    }

    /// Stops its threads; what they were about is kept.
    fn stop(&self, py: Python<'_>, close: Close) -> Result<(), Fail> {
        self.check_process()?;
        py.detach(|| {
            wait::contained(|| {
                let mut state = self.lock();
                let running = state.running.take();
                if let Some(loader) = running.as_ref().and_then(|running| running.as_ref().as_ref()) {
                    state.at = Some(loader.state());
                    state.stats = loader.stats();
                    state.quarantined = bad_rows(loader);
                }
                state.is_closed |= close == Close::ForGood;
                drop(state);
                // What is mapped from now on nobody gets.
                self.over.store(true, Ordering::Release);
                running.into_iter().for_each(end);
                self.over.store(false, Ordering::Release);
            })
        })?;
        Ok(())
    }
}

/// Ends a loader, here rather than in a thread that waits for a batch of it: that one is done within a slice.
fn end(mut running: Arc<Running>) {
    let mut looks = 0;
    while let Err(shared) = Arc::try_unwrap(running) {
        if looks == LOOKS_MAX {
            return;
        }
        looks += 1;
        running = shared;
        std::thread::park_timeout(wait::SLICE / 10);
    }
}

/// How often it is looked whether others have let go of a loader: for a second.
const LOOKS_MAX: u32 = 200;

/// Whether it may be started again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Close {
    ForGood,
    ForNow,
}

fn closed() -> Fail {
    Error::new(ErrorKind::Closed, Verb::Read).at("the loader").remedy("make a new one from its state").into()
}

fn bad_rows(loader: &loader::Loader) -> Vec<BadRow> {
    let row = |bad: loader::BadSample| {
        let (why, object) = (bad.why.to_string(), bad.object.to_string());
        (bad.id.dataset, bad.id.number, object, bad.extent.offset, bad.extent.len, why)
    };
    loader.quarantined().into_iter().map(row).collect()
}

#[pymethods]
impl Loader {
    /// Of `(dataset, weight)`, with options by name.
    #[new]
    #[pyo3(signature = (engine, datasets, map=None, **options))]
    fn new(
        engine: &Engine,
        datasets: Vec<(Bound<'_, Dataset>, u32)>,
        map: Option<Py<PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> Result<Self, Fail> {
        let tables: Arc<[Arc<Index>]> = datasets.iter().map(|(dataset, _)| dataset.get().index.clone()).collect();
        let over = Arc::new(AtomicBool::new(false));
        let mut set = LoaderOptions::default();
        for (name, value) in options.into_iter().flatten() {
            set_option(&mut set, name.cast::<PyString>().map_err(PyErr::from)?.to_cow()?.as_ref(), &value)?;
        }
        let content = if map.is_some() { Content::Mapped } else { Content::Stored };
        set.map = map.map(|function| map::map_fn(function, tables.clone(), over.clone()));
        Ok(Self {
            engine: engine.handle().clone(),
            tables,
            weights: datasets.into_iter().map(|(_, weight)| weight).collect(),
            options: set,
            content,
            over,
            process: std::process::id(),
            state: Mutex::default(),
        })
    }

    /// What comes next: a batch, the number of the epoch that is over, or None at the end of everything.
    fn next<'py>(&self, py: Python<'py>) -> Result<Option<Bound<'py, PyAny>>, Fail> {
        loop {
            match self.ask(py, |loader| loader.next_within(wait::SLICE))? {
                Next::NotYet => py.check_signals()?,
                Next::End => return Ok(None),
                Next::EpochEnd(epoch) => return Ok(Some(epoch.into_pyobject(py).map_err(PyErr::from)?.into_any())),
                Next::Batch(batch) => {
                    let batch = Batch::new(*batch, self.tables.clone(), self.content);
                    return Ok(Some(Bound::new(py, batch)?.into_any()));
                }
            }
        }
    }

    /// Where the caller is, as JSON: after the last batch that it took.
    fn state(&self, py: Python<'_>) -> Result<String, Fail> {
        self.check_process()?;
        let stopped = {
            let state = self.lock();
            if state.running.is_some() { None } else { state.at.clone() }
        };
        let state = match stopped {
            Some(state) => state,
            None => self.ask(py, |loader| Ok(loader.state()))?,
        };
        serde_json::to_string(&state).map_err(|error| misuse(error.to_string(), "report this"))
    }

    /// Goes on from a state; None: from the beginning. What was read ahead is given up.
    fn set_state(&self, py: Python<'_>, state: Option<&str>) -> Result<(), Fail> {
        let wrong = |error: serde_json::Error| misuse(error.to_string(), "give what `state_dict` returned");
        let state: Option<LoaderState> = state.map(serde_json::from_str).transpose().map_err(wrong)?;
        self.stop(py, Close::ForNow)?;
        let mut own = self.lock();
        if own.is_closed {
            return Err(closed());
        }
        own.at = state;
        Ok(())
    }

    /// What was done so far, times in seconds.
    fn stats<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>, Fail> {
        self.check_process()?;
        let (running, last) = {
            let state = self.lock();
            (state.running.clone(), state.stats.clone())
        };
        let stats = running.as_ref().and_then(|running| running.as_ref().as_ref()).map_or(last, loader::Loader::stats);
        Ok(stats_dict(py, &stats)?)
    }

    /// `(dataset, number, object, offset, bytes, why)` of the samples on the quarantine list.
    fn quarantined(&self) -> Result<Vec<BadRow>, Fail> {
        self.check_process()?;
        let (running, last) = {
            let state = self.lock();
            (state.running.clone(), state.quarantined.clone())
        };
        Ok(running.as_ref().and_then(|running| running.as_ref().as_ref()).map_or(last, bad_rows))
    }

    /// Ends its threads. Batches stay whole. State and statistics can still be asked for.
    fn close(&self, py: Python<'_>) -> Result<(), Fail> {
        self.stop(py, Close::ForGood)
    }
}

/// Sets an option by its name in Python.
fn set_option(set: &mut LoaderOptions, name: &str, value: &Bound<'_, PyAny>) -> Result<(), Fail> {
    match name {
        "batch_size" => set.batch = value.extract()?,
        "seed" => set.seed = value.extract()?,
        "epochs" => set.epochs = value.extract::<Option<u64>>()?.unwrap_or(u64::MAX),
        "shuffle" => set.method = method(value)?,
        "rank_of" => {
            let (rank, world): (u64, u64) = value.extract()?;
            set.world = World::new(rank, world).map_err(|error| misuse(error.to_string(), "give rank and world"))?;
        }
        "into" => set.into = value.extract::<String>()?.parse()?,
        "policy" => set.policy = parse_policy(&value.extract::<String>()?)?,
        "layout" => set.layout = layout(&value.extract::<String>()?)?,
        "on_bad" => set.on_bad = on_bad(&value.extract::<String>()?)?,
        "leave_out" => {
            let numbers: Vec<(u32, u64)> = value.extract()?;
            set.leave_out = numbers.into_iter().map(|(dataset, number)| SampleId { dataset, number }).collect();
        }
        "memory_bytes" => set.memory_bytes = value.extract()?,
        "block_bytes" => set.block_bytes = value.extract()?,
        "deadline" => {
            let seconds: f64 = value.extract()?;
            set.deadline = Duration::try_from_secs_f64(seconds)
                .map_err(|error| misuse(format!("deadline {seconds}: {error}"), "give seconds"))?;
        }
        "drop_last" => set.last = if value.is_truthy()? { LastBatch::Drop } else { LastBatch::Keep },
        "tail" => set.tail = tail(&value.extract::<String>()?)?,
        "workers" => set.workers = value.extract()?,
        "ahead" => set.ahead = value.extract()?,
        "gap_bytes" => set.gap_bytes = value.extract()?,
        "join_bytes" => set.join_bytes = value.extract()?,
        other => return Err(misuse(format!("{other} is no option of a loader"), "see help(straightway.Loader)")),
    }
    Ok(())
}

/// A word, and the numbers behind its colon.
fn parts(text: &str) -> (&str, Option<&str>) {
    text.split_once(':').map_or((text, None), |(word, rest)| (word, Some(rest)))
}

fn number(text: &str) -> Result<u64, Fail> {
    text.parse().map_err(|_| misuse(format!("{text:?} is no number"), "give a whole number"))
}

fn method(value: &Bound<'_, PyAny>) -> Result<Method, Fail> {
    let Ok(text) = value.cast::<PyString>() else {
        return Ok(if value.is_truthy()? { Method::Shuffle } else { Method::Sequence });
    };
    let text = text.to_cow()?;
    match parts(&text) {
        ("blocks", Some(rest)) if rest.contains('x') => {
            let (samples, blocks) = rest.split_once('x').unwrap_or((rest, "1"));
            Ok(Method::Blocks { samples: number(samples)?, blocks: number(blocks)? })
        }
        _ => Err(misuse(format!("{text:?} is no shuffle"), "use True, False or blocks:SAMPLESxBLOCKS")),
    }
}

fn layout(text: &str) -> Result<Layout, Fail> {
    match parts(text) {
        ("ragged", None) => Ok(Layout::Ragged),
        ("padded", None) => Ok(Layout::Padded(PadTo::Longest)),
        ("padded", Some(bytes)) => Ok(Layout::Padded(PadTo::Bytes(number(bytes)?))),
        ("fixed", bytes) => Ok(Layout::Fixed { bytes: bytes.map(number).transpose()? }),
        _ => Err(misuse(format!("{text:?} is no layout"), "use ragged, padded, padded:BYTES, fixed or fixed:BYTES")),
    }
}

/// Bad samples that are left out at most, if nothing is said.
const BAD_MAX: u64 = 1000;

fn on_bad(text: &str) -> Result<OnBad, Fail> {
    let (word, max) = parts(text);
    let most = max.map(number).transpose()?;
    let max = most.unwrap_or(BAD_MAX);
    match word {
        "raise" if most.is_none() => Ok(OnBad::Raise),
        "skip" => Ok(OnBad::Skip { max }),
        "quarantine" => Ok(OnBad::Quarantine { max }),
        _ => Err(misuse(
            format!("{text:?} is no policy for bad samples"),
            "use raise, skip, skip:N, quarantine or quarantine:N",
        )),
    }
}

fn tail(text: &str) -> Result<Tail, Fail> {
    match text {
        "uneven" => Ok(Tail::Uneven),
        "drop" => Ok(Tail::Drop),
        "repeat" => Ok(Tail::Repeat),
        _ => Err(misuse(format!("{text:?} is no tail"), "use uneven, drop or repeat")),
    }
}

fn stats_dict<'py>(py: Python<'py>, stats: &LoaderStats) -> PyResult<Bound<'py, PyDict>> {
    let told = PyDict::new(py);
    let numbers = [
        ("batches", stats.batches),
        ("samples", stats.samples),
        ("sample_bytes", stats.sample_bytes),
        ("reads", stats.reads),
        ("read_bytes", stats.read_bytes),
        ("assembled_bytes", stats.assembled_bytes),
        ("windows", stats.windows),
        ("window_samples", stats.window_samples),
        ("opens", stats.opens),
        ("left_out", stats.left_out),
        ("quarantined", stats.quarantined),
        ("read_again", stats.read_again),
        ("memory_fresh", stats.memory.fresh),
        ("memory_reused", stats.memory.reused),
        ("memory_held_bytes", stats.memory.held_bytes),
        ("memory_parked_bytes", stats.memory.parked_bytes),
    ];
    for (name, number) in numbers {
        told.set_item(name, number)?;
    }
    let times = [
        ("planning", stats.planning),
        ("planning_held", stats.planning_held),
        ("reading", stats.reading),
        ("working", stats.working),
        ("ready", stats.ready),
        ("starved", stats.starved),
    ];
    for (name, time) in times {
        told.set_item(name, time.as_secs_f64())?;
    }
    let ways = stats.ways.iter().map(|way| report::path(py, &way.path, way.reads)).collect::<PyResult<Vec<_>>>()?;
    told.set_item("ways", ways)?;
    let apart: Vec<(String, u64)> = stats.apart.iter().map(|(why, samples)| (why.to_string(), *samples)).collect();
    told.set_item("apart", apart)?;
    Ok(told)
}
