//! Open objects and operations on them.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use pyo3::prelude::*;
use straightway::{Completed, Destination, Error, ErrorKind, Pending, Policy, Request, Verb, parse_policy};

use crate::{
    aio::Completions,
    buffer::{Buffer, Held},
    engine::Handle,
    error::{Fail, misuse},
    foreign::{self, Access},
    report, wait,
};

/// Something with bytes at offsets: a file, a block device, a namespace, a stripe set.
#[pyclass(frozen, module = "straightway._native", weakref)]
#[derive(Debug)]
pub struct Object {
    engine: Handle,
    /// `None` once it was closed.
    object: Mutex<Option<straightway::Object>>,
}

/// A policy and a deadline as Python gives them.
pub fn terms(policy: &str, deadline: Option<f64>) -> Result<(Policy, Option<Duration>), Fail> {
    let policy = parse_policy(policy)?;
    let seconds = deadline.map(Duration::try_from_secs_f64).transpose();
    let deadline =
        seconds.map_err(|_| misuse("a deadline is a number of seconds from 0 on", "give seconds, or None"))?;
    Ok((policy, deadline))
}

/// A request under its terms.
pub fn under(request: Request, (policy, deadline): (Policy, Option<Duration>)) -> Request {
    let request = request.policy(policy);
    match deadline {
        Some(after) => request.deadline(after),
        None => request,
    }
}

impl Object {
    /// Wraps an open object.
    pub fn new(engine: Handle, object: straightway::Object) -> Self {
        Self { engine, object: Mutex::new(Some(object)) }
    }

    /// The engine's object.
    ///
    /// # Errors
    /// `Closed`.
    pub fn inner(&self) -> Result<straightway::Object, Fail> {
        let object = self.object.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let closed =
            Error::new(ErrorKind::Closed, Verb::Read).at("object").detail("it was closed").remedy("open it again");
        Ok(object.ok_or(closed)?)
    }

    fn start_fresh(
        slf: &Bound<'_, Self>,
        (offset, length): (u64, Option<u64>),
        into: &str,
        terms: (Policy, Option<Duration>),
    ) -> Result<Operation, Fail> {
        let (engine, object) = (&slf.get().engine, &slf.get().inner()?);
        let into: Destination = into.parse()?;
        let length = match length {
            Some(length) => length,
            None => object.len().checked_sub(offset).ok_or_else(|| outside(object, offset))?,
        };
        if length == 0 {
            object.position(Verb::Read, offset, 0)?;
            return Ok(Operation::over(Outcome::Fresh(Arc::new(Held::empty(into)))));
        }
        // Before the allocation: a length from outside may be any number.
        object.position(Verb::Read, offset, length)?;
        let memory = wait::detached(slf.py(), || engine.allocate(into, length, offset))?;
        let held = Arc::new(Held::new(memory));
        let Some(part) = held.part(0, length)? else { return Ok(Operation::over(Outcome::Fresh(held))) };
        let request = under(engine.read(object, offset, part), terms);
        Ok(Operation::start(request, Outcome::Fresh(held)))
    }

    fn start_into(
        slf: &Bound<'_, Self>,
        target: &Bound<'_, PyAny>,
        offset: u64,
        terms: (Policy, Option<Duration>),
    ) -> Result<Operation, Fail> {
        let (engine, object) = (&slf.get().engine, &slf.get().inner()?);
        match foreign::memory_of(engine, target, Access::Target)? {
            Some(memory) => Ok(Operation::start(under(engine.read(object, offset, memory), terms), Outcome::Path)),
            None => {
                object.position(Verb::Read, offset, 0)?;
                Ok(Operation::over(Outcome::Path))
            }
        }
    }
}

fn outside(object: &straightway::Object, offset: u64) -> Error {
    Error::new(ErrorKind::OutOfRange, Verb::Read)
        .at(object.name())
        .in_range(offset, 0)
        .detail(format!("the range begins past the object, which has {} bytes", object.len()))
        .remedy("ask for bytes that it has")
}

#[pymethods]
impl Object {
    /// Its name in the operator's words.
    #[getter]
    fn name(&self) -> Result<String, Fail> {
        Ok(self.inner()?.name().to_owned())
    }

    /// Bytes when it was opened.
    #[getter]
    fn size(&self) -> Result<u64, Fail> {
        Ok(self.inner()?.len())
    }

    /// Bytes of it in the page cache, or None if nobody can tell.
    #[getter]
    fn cached_bytes(&self) -> Result<Option<u64>, Fail> {
        Ok(self.inner()?.cached_bytes())
    }

    /// Reads `length` bytes (default: up to the end) from `offset` into fresh memory.
    #[pyo3(signature = (offset=0, length=None, *, into="host", policy="any", deadline=None))]
    fn read<'py>(
        slf: &Bound<'py, Self>,
        offset: u64,
        length: Option<u64>,
        into: &str,
        policy: &str,
        deadline: Option<f64>,
    ) -> Result<Bound<'py, PyAny>, Fail> {
        Self::start_fresh(slf, (offset, length), into, terms(policy, deadline)?)?.finish(slf.py())
    }

    /// Fills `target` with the bytes from `offset` on, in place; returns the way that they took.
    #[pyo3(signature = (target, offset=0, *, policy="any", deadline=None))]
    fn read_into<'py>(
        slf: &Bound<'py, Self>,
        target: &Bound<'py, PyAny>,
        offset: u64,
        policy: &str,
        deadline: Option<f64>,
    ) -> Result<Bound<'py, PyAny>, Fail> {
        Self::start_into(slf, target, offset, terms(policy, deadline)?)?.finish(slf.py())
    }

    /// As `read`, without waiting.
    #[pyo3(signature = (offset=0, length=None, *, into="host", policy="any", deadline=None))]
    fn start_read(
        slf: &Bound<'_, Self>,
        offset: u64,
        length: Option<u64>,
        into: &str,
        policy: &str,
        deadline: Option<f64>,
    ) -> Result<Operation, Fail> {
        Self::start_fresh(slf, (offset, length), into, terms(policy, deadline)?)
    }

    /// As `read_into`, without waiting.
    #[pyo3(signature = (target, offset=0, *, policy="any", deadline=None))]
    fn start_read_into(
        slf: &Bound<'_, Self>,
        target: &Bound<'_, PyAny>,
        offset: u64,
        policy: &str,
        deadline: Option<f64>,
    ) -> Result<Operation, Fail> {
        Self::start_into(slf, target, offset, terms(policy, deadline)?)
    }

    /// As `read`, for `await`.
    #[pyo3(signature = (offset=0, length=None, *, into="host", policy="any", deadline=None))]
    fn read_async<'py>(
        slf: &Bound<'py, Self>,
        offset: u64,
        length: Option<u64>,
        into: &str,
        policy: &str,
        deadline: Option<f64>,
    ) -> Result<Bound<'py, PyAny>, Fail> {
        awaitable(slf.py(), Self::start_fresh(slf, (offset, length), into, terms(policy, deadline)?)?)
    }

    /// As `read_into`, for `await`.
    #[pyo3(signature = (target, offset=0, *, policy="any", deadline=None))]
    fn read_into_async<'py>(
        slf: &Bound<'py, Self>,
        target: &Bound<'py, PyAny>,
        offset: u64,
        policy: &str,
        deadline: Option<f64>,
    ) -> Result<Bound<'py, PyAny>, Fail> {
        awaitable(slf.py(), Self::start_into(slf, target, offset, terms(policy, deadline)?)?)
    }

    /// Every route that a read into that memory could take, with a verdict for each.
    #[pyo3(signature = (into="host", policy="any"))]
    fn plan<'py>(&self, py: Python<'py>, into: &str, policy: &str) -> Result<Bound<'py, PyAny>, Fail> {
        let (destination, policy): (Destination, _) = (into.parse()?, parse_policy(policy)?);
        let object = self.inner()?;
        let plan = wait::detached(py, || Ok(self.engine.plan(&object, destination, policy, Verb::Read)))?;
        Ok(report::plan(py, object.name(), into, &plan)?)
    }

    /// Raises `Changed` if the name leads to something else by now.
    fn check_unchanged(&self, py: Python<'_>) -> Result<(), Fail> {
        let object = self.inner()?;
        wait::detached(py, || object.check_unchanged())
    }

    /// Lets go of it. What was started goes on; later operations raise `Closed`.
    fn close(&self, py: Python<'_>) -> Result<(), Fail> {
        let object = self.object.lock().unwrap_or_else(PoisonError::into_inner).take();
        wait::detached(py, move || {
            drop(object);
            Ok(())
        })
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) -> Result<bool, Fail> {
        self.close(py)?;
        Ok(false)
    }

    fn __repr__(&self) -> String {
        match self.inner() {
            Ok(object) => format!("<straightway.Object {:?} {} bytes>", object.name(), object.len()),
            Err(_) => "<straightway.Object closed>".to_owned(),
        }
    }
}

fn awaitable(py: Python<'_>, operation: Operation) -> Result<Bound<'_, PyAny>, Fail> {
    Ok(py.import("straightway._aio")?.call_method1("finish", (operation,))?)
}

/// What a finished operation gives.
#[derive(Debug)]
enum Outcome {
    /// The memory that it filled.
    Fresh(Arc<Held>),
    /// The way of its bytes.
    Path,
}

/// An operation that was started.
#[pyclass(frozen, module = "straightway._native")]
#[derive(Debug)]
pub struct Operation(Mutex<State>);

#[derive(Debug)]
enum State {
    Running(Pending, Outcome),
    /// There was nothing to do.
    Idle(Outcome),
    Taken,
}

impl Operation {
    fn start(request: Request, outcome: Outcome) -> Self {
        Self(Mutex::new(State::Running(request.start(), outcome)))
    }

    fn over(outcome: Outcome) -> Self {
        Self(Mutex::new(State::Idle(outcome)))
    }

    fn take(&self) -> State {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), State::Taken)
    }

    fn finish<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>, Fail> {
        match self.take() {
            State::Running(pending, outcome) => {
                let done = wait::finish(py, pending)?;
                outcome.give(py, Some(done))
            }
            State::Idle(outcome) => outcome.give(py, None),
            State::Taken => Err(misuse("the result of this operation was taken before", "keep what it gave")),
        }
    }
}

impl Outcome {
    fn give(self, py: Python<'_>, done: Option<Completed>) -> Result<Bound<'_, PyAny>, Fail> {
        let path = match done {
            Some(done) => {
                // The memory that it had goes back before others see the result.
                let path = done.path;
                done.ok()?;
                Some(path)
            }
            None => None,
        };
        match self {
            Self::Fresh(held) => {
                let buffer = Buffer::bytes(held, path.map(|path| (path, 1)));
                Ok(Bound::new(py, buffer)?.into_any())
            }
            Self::Path => match path {
                Some(path) => Ok(report::path(py, &path, 1)?),
                None => Ok(py.None().into_bound(py)),
            },
        }
    }
}

#[pymethods]
impl Operation {
    /// Waits, and gives what it came to.
    fn wait<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>, Fail> {
        self.finish(py)
    }

    /// `(result,)` if it is over, else None, and `token` is announced when it is worth asking again.
    fn poll<'py>(
        &self,
        py: Python<'py>,
        completions: &Completions,
        token: u64,
    ) -> Result<Option<(Bound<'py, PyAny>,)>, Fail> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match &mut *state {
            State::Running(pending, _) => {
                let waker = completions.waker(token);
                match Pin::new(pending).poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(done) => done,
                    Poll::Pending => return Ok(None),
                }
            }
            State::Idle(_) | State::Taken => {
                drop(state);
                return self.finish(py).map(|result| Some((result,)));
            }
        };
        let over = std::mem::replace(&mut *state, State::Taken);
        drop(state);
        match over {
            State::Running(_, outcome) | State::Idle(outcome) => {
                outcome.give(py, Some(done)).map(|result| Some((result,)))
            }
            State::Taken => Ok(None),
        }
    }

    /// Asks for an early end.
    fn cancel(&self) {
        if let State::Running(pending, _) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            pending.cancel();
        }
    }
}

/// An object in the making: in place as a whole after `commit`, and gone without it.
#[pyclass(frozen, module = "straightway._native")]
pub struct NewObject {
    engine: Handle,
    inner: Mutex<Option<straightway::NewObject>>,
    object: straightway::Object,
}

impl NewObject {
    /// Wraps a new object.
    pub fn new(engine: Handle, inner: straightway::NewObject) -> Self {
        let object = inner.object().clone();
        Self { engine, inner: Mutex::new(Some(inner)), object }
    }

    fn take(&self) -> Option<straightway::NewObject> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn over() -> Fail {
    misuse("this object was committed or given up", "create it again")
}

#[pymethods]
impl NewObject {
    /// Writes the bytes of each `(offset, source)`, all at once; returns the way that they took.
    #[pyo3(signature = (parts, *, policy="any", deadline=None))]
    fn write<'py>(
        &self,
        py: Python<'py>,
        parts: Vec<(u64, Bound<'py, PyAny>)>,
        policy: &str,
        deadline: Option<f64>,
    ) -> Result<Vec<Bound<'py, PyAny>>, Fail> {
        let terms = terms(policy, deadline)?;
        if self.inner.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Err(over());
        }
        let mut requests = Vec::with_capacity(parts.len());
        for (offset, source) in &parts {
            if let Some(memory) = foreign::memory_of(&self.engine, source, Access::Source)? {
                requests.push(under(self.engine.write(&self.object, *offset, memory), terms));
            }
        }
        crate::engine::run_all(py, &self.engine, requests)
    }

    /// Makes it durable under its name.
    fn commit(&self, py: Python<'_>) -> Result<(), Fail> {
        let inner = self.take().ok_or_else(over)?;
        wait::detached(py, || inner.commit())
    }

    /// Gives it up: nothing has changed.
    fn discard(&self, py: Python<'_>) -> Result<(), Fail> {
        let inner = self.take();
        wait::detached(py, move || {
            drop(inner);
            Ok(())
        })
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// Commits, unless an exception is on its way.
    fn __exit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) -> Result<bool, Fail> {
        let committed = self.inner.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        match (committed, kind.is_none()) {
            (true, _) => {}
            (false, true) => self.commit(py)?,
            (false, false) => self.discard(py)?,
        }
        Ok(false)
    }

    fn __repr__(&self) -> String {
        format!("<straightway.NewObject {:?} {} bytes>", self.object.name(), self.object.len())
    }
}
