//! Handles of foreign libraries, closed on threads that may wait: closing one waits for the library's threads, and whoever lets go of the last
//! part of it may be one of those.

use std::{
    any::Any,
    ops::Deref,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sw_engine::{Error, ErrorKind, Verb, WriteOutcome};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};

use crate::{Runtime, runtime::leak};

/// What is said of an end that did not come, with how many seconds were waited.
pub(crate) type Late = fn(Verb, &str, u64) -> Error;

/// What changes something and was not waited for to its end may have changed it, or do so yet.
pub(crate) fn late_is_unknown(error: Error) -> Error {
    let is_late = error.kind() == ErrorKind::DeadlineExceeded && error.outcome().is_none();
    if is_late { error.with_outcome(WriteOutcome::Unknown) } else { error }
}

/// What must be there as long as a library works on a call: the handle that it was made on, and the place among those that are under way.
pub(crate) struct Keep {
    _handle: Arc<dyn Any + Send + Sync>,
    _place: OwnedSemaphorePermit,
}

impl Keep {
    pub(crate) fn new(handle: Arc<dyn Any + Send + Sync>, place: OwnedSemaphorePermit) -> Self {
        Self { _handle: handle, _place: place }
    }
}

/// Threads for calls that block, places of requests that are under way, and a count of what is being closed. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Calls {
    pub(crate) runtime: Runtime,
    places: Arc<Semaphore>,
    /// Longest that one request is waited for.
    limit: Duration,
    late: Late,
    closing: Arc<(Mutex<usize>, Condvar)>,
}

/// A call that is not begun if nobody waits for it any more.
struct Wanted<T>(JoinHandle<T>);

impl<T> Drop for Wanted<T> {
    fn drop(&mut self) {
        // One that has begun goes on.
        self.0.abort();
    }
}

impl Calls {
    pub(crate) fn new(threads: usize, requests: usize, limit: Duration, late: Late) -> Self {
        let places = Arc::new(Semaphore::new(requests.clamp(1, 1024)));
        Self { runtime: Runtime::for_calls(threads), places, limit, late, closing: Arc::default() }
    }

    /// Longest that one request is waited for.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// What is said of an end that did not come within [`limit`](Self::limit).
    pub(crate) fn late(&self, verb: Verb, name: &str) -> Error {
        (self.late)(verb, name, self.limit.as_secs())
    }

    /// A place among the requests that are under way.
    pub(crate) async fn place(&self, verb: Verb, name: &str) -> Result<OwnedSemaphorePermit, Error> {
        let late = |_| self.late(verb, name);
        let place = tokio::time::timeout(self.limit, self.places.clone().acquire_owned()).await.map_err(late)?;
        place.map_err(|_| Error::new(ErrorKind::Closed, verb).at(name))
    }

    /// What a call says that blocks.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        (verb, name): (Verb, &str),
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let done = tokio::time::timeout(self.limit, self.begin((verb, name), work)).await;
        done.map_err(|_| self.late(verb, name))?
    }

    /// The same without a limit of its own.
    pub(crate) async fn begin<T: Send + 'static>(
        &self,
        (verb, name): (Verb, &str),
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let mut work = Wanted(self.runtime.handle()?.spawn_blocking(work));
        let done = (&mut work.0).await;
        done.map_err(|_| Error::new(ErrorKind::Poisoned, verb).at(name).detail("a call stopped its thread"))?
    }

    fn count(&self) -> MutexGuard<'_, usize> {
        self.closing.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing is being closed, at most `limit`. Whether it is so.
    pub(crate) fn wait_closed(&self, limit: Duration) -> bool {
        let waited = self.closing.1.wait_timeout_while(self.count(), limit, |count| *count > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

/// Counts itself out.
struct Closing(Calls);

impl Drop for Closing {
    fn drop(&mut self) {
        *self.0.count() -= 1;
        self.0.closing.1.notify_all();
    }
}

/// One that is held.
pub(crate) struct Held<T: Send + 'static> {
    /// There until it is dropped.
    inner: Option<T>,
    calls: Calls,
}

impl<T: Send + 'static> Held<T> {
    pub(crate) fn new(inner: T, calls: &Calls) -> Self {
        Self { inner: Some(inner), calls: calls.clone() }
    }
}

impl<T: Send + 'static> Deref for Held<T> {
    type Target = T;

    #[expect(clippy::unreachable, reason = "only the destructor takes it")]
    fn deref(&self) -> &T {
        self.inner.as_ref().unwrap_or_else(|| unreachable!("it is there until it is dropped"))
    }
}

impl<T: Send + 'static> Drop for Held<T> {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        // Of a parent's handle a child has nothing that could be closed.
        let Ok(threads) = self.calls.runtime.handle() else { return leak(inner) };
        *self.calls.count() += 1;
        let closing = Closing(self.calls.clone());
        let close = move || {
            drop(inner);
            drop(closing);
        };
        // A system that gives no thread stops it, and this may run while something else unwinds.
        let begun = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(threads.spawn_blocking(close))));
        if begun.is_err() {
            tracing::warn!("a handle of a client library is not closed: the system gives no thread");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    fn late(verb: Verb, name: &str, _seconds: u64) -> Error {
        Error::new(ErrorKind::DeadlineExceeded, verb).at(name)
    }

    struct Tells(mpsc::Sender<thread::ThreadId>);

    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).unwrap();
        }
    }

    struct Waits(mpsc::Receiver<()>);

    impl Drop for Waits {
        fn drop(&mut self) {
            let _closed = self.0.recv();
        }
    }

    #[test]
    fn what_is_held_is_closed_elsewhere_and_waited_for() {
        let calls = Calls::new(2, 1, Duration::from_secs(20), late);
        let (tell, told) = mpsc::channel();
        drop(Held::new(Tells(tell), &calls));
        assert!(calls.wait_closed(Duration::from_secs(20)));
        assert_ne!(told.try_recv().unwrap(), thread::current().id());
    }

    #[test]
    fn a_call_that_nobody_waits_for_any_more_is_not_begun() {
        let calls = Calls::new(1, 1, Duration::from_millis(50), late);
        let (go, may_go) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let runtime = Runtime::new(1);
        let (begin, begun) = mpsc::channel();
        let first = calls.clone();
        runtime.handle().unwrap().spawn(async move {
            let stuck = move || {
                begin.send(()).unwrap();
                let _closed = may_go.recv();
                Ok(())
            };
            first.call((Verb::Open, "first"), stuck).await
        });
        // It has the only thread.
        begun.recv().unwrap();
        let second = calls.clone();
        let late = runtime.wait((Verb::Open, "second"), Duration::from_secs(20), async move {
            let tells = move || {
                tell.send(()).unwrap();
                Ok(())
            };
            second.call((Verb::Create, "second"), tells).await
        });
        assert_eq!(late.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        drop(go);
        // Its closure went without having run.
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn what_does_not_close_is_waited_for_no_longer_than_said() {
        let calls = Calls::new(1, 1, Duration::from_secs(20), late);
        let (go, may_go) = mpsc::channel::<()>();
        drop(Held::new(Waits(may_go), &calls));
        assert!(!calls.wait_closed(Duration::from_millis(10)));
        drop(go);
        assert!(calls.wait_closed(Duration::from_secs(20)));
    }
}
