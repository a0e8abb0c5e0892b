//! Waiting for the engine without the interpreter, in slices, so that a signal is answered.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use pyo3::prelude::*;
use straightway::{Error, ErrorKind, Verb};
use sw_checkpoint::Cancel;

use crate::error::Fail;

/// Longest time without a look for signals: Ctrl-C is answered within it.
pub const SLICE: Duration = Duration::from_millis(50);

/// Unparks the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Drives a future of the engine on this thread, without the interpreter. Each slice ends with a look for signals.
///
/// # Errors
/// The exception of a signal handler (`KeyboardInterrupt`): `future` is dropped then, which gives up its answer. `Poisoned`
/// for a panic of ours.
pub fn finish<F>(py: Python<'_>, mut future: F) -> Result<F::Output, Fail>
where
    F: Future + Unpin + Send,
    F::Output: Send,
{
    loop {
        let slice = py.detach(|| contained(|| look(&mut future)))?;
        match slice {
            Some(output) => return Ok(output),
            None => py.check_signals()?,
        }
    }
}

/// Polls until there is an answer or one slice is over.
fn look<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    if let Poll::Ready(output) = Pin::new(&mut *future).poll(&mut context) {
        return Some(output);
    }
    // Wakes early if the answer came in between, or for a token that somebody else left: then the next slice looks again.
    thread::park_timeout(SLICE);
    match Pin::new(future).poll(&mut context) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Runs what may block or take long without the interpreter.
///
/// # Errors
/// That of `work`; `Poisoned` for a panic of ours.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Fail> {
    py.detach(|| contained(work))?.map_err(Fail::from)
}

/// Runs what takes long on a thread of its own, so that this one answers signals meanwhile. After a signal `cancel` is set:
/// work that looks at it ends early, other work goes on to its end by itself, and what it made is dropped.
///
/// # Errors
/// As [`finish`] and [`detached`].
pub fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    cancel: &Cancel,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Fail> {
    watched(py, cancel, (None, || (0, 0)), work)
}

/// As [`interruptible`], and between the slices and at the end `tell` is called with what `read` gives: how much is done, and how
/// much there is in all. What it raises ends the work like a signal.
///
/// # Errors
/// As [`interruptible`], and that of `tell`.
pub fn watched<T: Send + 'static>(
    py: Python<'_>,
    cancel: &Cancel,
    (tell, read): (Option<&Bound<'_, PyAny>>, impl Fn() -> (u64, u64)),
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Fail> {
    let look = || tell.map_or(Ok(()), |tell| tell.call1(read()).map(drop));
    let waiting = thread::current();
    let builder = thread::Builder::new().name("straightway-py".into());
    let worker = builder.spawn(move || {
        let done = contained(work);
        waiting.unpark();
        done
    });
    let worker = worker.map_err(|cause| {
        Error::new(ErrorKind::ResourceLimit, Verb::Setup).at("thread").detail(cause.to_string()).caused_by(cause)
    })?;
    loop {
        if worker.is_finished() {
            let done = worker.join().map_err(|_| poisoned("a panic was contained: a thread".into()))???;
            look()?;
            return Ok(done);
        }
        py.detach(|| thread::park_timeout(SLICE));
        py.check_signals().and_then(|()| look()).inspect_err(|_| cancel.cancel())?;
    }
}

/// A panic stops here.
///
/// # Errors
/// `Poisoned` in its place.
pub fn contained<T>(work: impl FnOnce() -> T) -> Result<T, Error> {
    straightway_edge::contained(work).map_err(poisoned)
}

fn poisoned(told: String) -> Error {
    Error::new(ErrorKind::Poisoned, Verb::Setup)
        .at("python")
        .detail(told)
        .remedy("make a new engine, and report this with the message")
}
