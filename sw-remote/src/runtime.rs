//! The threads on which everything asynchronous of this crate runs.

use std::{
    future::Future,
    io,
    sync::{Arc, OnceLock, mpsc},
    time::Duration,
};

use sw_engine::{Error, ErrorKind, Verb};
use sw_mem::ForkMark;

/// Threads that it has at most.
pub const THREADS_MAX: usize = 64;

/// Threads of a runtime, started with the first work. Cloning shares them; they end with the last clone.
#[derive(Clone, Debug)]
pub struct Runtime(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    threads: usize,
    /// Threads for calls that block.
    calls: usize,
    runtime: OnceLock<Result<Owned, (io::ErrorKind, String)>>,
    /// A child of this process has none of the threads.
    fork: ForkMark,
}

/// One, and what starts work on it.
#[derive(Debug)]
struct Owned(tokio::runtime::Runtime, tokio::runtime::Handle);

impl Drop for Inner {
    /// Without waiting: whoever drops the last clone may be one of its own tasks. In a child nothing of it is touched: a thread that is
    /// not there may hold its locks.
    fn drop(&mut self) {
        let Some(Ok(Owned(runtime, handle))) = self.runtime.take() else { return };
        if self.fork.is_child() {
            leak((runtime, handle));
        } else {
            runtime.shutdown_background();
        }
    }
}

/// Leaves what belongs to the threads of the parent as it is.
#[expect(clippy::mem_forget, reason = "its destructors take locks that nobody in this process gives back")]
pub(crate) fn leak<T>(what: T) {
    std::mem::forget(what);
}

impl Runtime {
    /// One with `threads` threads, 1 to 64. Nothing is started yet.
    pub fn new(threads: usize) -> Self {
        Self::with(threads, threads)
    }

    /// One for calls that block, with `threads` threads for them, 1 to 64.
    pub(crate) fn for_calls(threads: usize) -> Self {
        Self::with(1, threads)
    }

    fn with(threads: usize, calls: usize) -> Self {
        let (threads, calls) = (threads.clamp(1, THREADS_MAX), calls.clamp(1, THREADS_MAX));
        Self(Arc::new(Inner { threads, calls, runtime: OnceLock::new(), fork: ForkMark::new() }))
    }

    /// Whether this is a child of the process that made it, in which nothing of it runs.
    pub fn is_in_child(&self) -> bool {
        self.0.fork.is_child()
    }

    /// A handle to start work by.
    ///
    /// # Errors
    /// `Forked`; `ResourceLimit` if the system gives no threads.
    pub fn handle(&self) -> Result<tokio::runtime::Handle, Error> {
        if self.is_in_child() {
            return Err(Error::new(ErrorKind::Forked, Verb::Setup)
                .at(crate::HTTP)
                .detail("the process was forked after the engine was made")
                .remedy("make an engine of its own in the child"));
        }
        let made = self.0.runtime.get_or_init(|| {
            let made = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(self.0.threads)
                .max_blocking_threads(self.0.calls)
                .thread_name("sw-remote")
                .enable_all()
                .build();
            let owned = |runtime: tokio::runtime::Runtime| {
                let handle = runtime.handle().clone();
                Owned(runtime, handle)
            };
            made.map(owned).map_err(|error| (error.kind(), error.to_string()))
        });
        made.as_ref().map(|owned| owned.1.clone()).map_err(|(kind, text)| {
            Error::new(ErrorKind::ResourceLimit, Verb::Setup)
                .at(crate::HTTP)
                .detail(format!("the system gives no threads for remote objects: {text}"))
                .remedy("raise the limit of processes (ulimit -u) or of descriptors (ulimit -n)")
                .caused_by(io::Error::from(*kind))
        })
    }

    /// Runs `work` on its threads and waits for its end, at most `limit`; the work is given up then. Any thread may call it, one that
    /// belongs to a runtime of the caller's too.
    ///
    /// # Errors
    /// As [`Runtime::handle`]; `DeadlineExceeded`; `Poisoned` if the work panicked; those of the work.
    pub fn wait<T: Send + 'static>(
        &self,
        (verb, name): (Verb, &str),
        limit: Duration,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let (done, end) = mpsc::sync_channel(1);
        let task = self.handle()?.spawn(async move { drop(done.send(work.await)) });
        end.recv_timeout(limit).unwrap_or_else(|why| {
            if why == mpsc::RecvTimeoutError::Disconnected {
                return Err(Error::new(ErrorKind::Poisoned, verb)
                    .at(name)
                    .detail("what a store says, or what was said of it, stopped its client")
                    .remedy("look at the settings of the store, and at the text before this one"));
            }
            task.abort();
            Err(Error::new(ErrorKind::DeadlineExceeded, verb)
                .at(name)
                .detail(format!("no answer within {} s", limit.as_secs()))
                .remedy(
                    "look whether the server can be reached; the setting remote_patience_ms says how long is waited",
                ))
        })
    }

    /// Runs `work` on its threads and waits for its end, at most `limit`; it goes on in the background then.
    pub fn linger(&self, limit: Duration, work: impl Future<Output = ()> + Send + 'static) {
        // In a child, or without threads, there is nothing to do it by.
        let Ok(runtime) = self.handle() else { return };
        let (done, end) = mpsc::sync_channel::<()>(1);
        runtime.spawn(async move {
            work.await;
            drop(done);
        });
        // The channel closes with the work.
        let _ended = end.recv_timeout(limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_runs_and_its_end_is_told() {
        let runtime = Runtime::new(1);
        let told = runtime.wait((Verb::Open, "a"), Duration::from_secs(20), async { Ok(7) });
        assert_eq!(told.unwrap(), 7);
    }

    #[test]
    fn work_that_does_not_end_is_given_up_with_its_name() {
        let runtime = Runtime::new(1);
        let (token, alive) = mpsc::channel::<()>();
        let never = async move {
            std::future::pending::<()>().await;
            drop(token);
            Ok(())
        };
        let error = runtime.wait((Verb::Open, "s3://b/k"), Duration::from_millis(10), never).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        assert!(error.to_string().contains("s3://b/k"), "{error}");
        // Its future is dropped, not left behind.
        assert_eq!(alive.recv_timeout(Duration::from_secs(20)), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn work_that_panics_is_told_at_once() {
        let runtime = Runtime::new(1);
        let panics = async { if true { panic!("as a library would") } else { Ok(()) } };
        let error = runtime.wait((Verb::Open, "a"), Duration::from_secs(3600), panics).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    }

    #[test]
    fn a_thread_of_another_runtime_may_wait() {
        let outer = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let told =
            outer.block_on(async { Runtime::new(1).wait((Verb::Open, "a"), Duration::from_secs(20), async { Ok(1) }) });
        assert_eq!(told.unwrap(), 1);
    }

    #[test]
    fn what_lingers_is_waited_for_and_goes_on_where_that_is_too_long() {
        let runtime = Runtime::new(1);
        let (done, end) = mpsc::channel();
        let told = done.clone();
        runtime.linger(Duration::from_secs(20), async move { told.send(1).unwrap() });
        assert_eq!(end.try_recv(), Ok(1));
        let (go, may_go) = tokio::sync::oneshot::channel::<()>();
        runtime.linger(Duration::from_millis(10), async move {
            drop(may_go.await);
            done.send(2).unwrap();
        });
        assert_eq!(end.try_recv(), Err(mpsc::TryRecvError::Empty));
        drop(go);
        assert_eq!(end.recv_timeout(Duration::from_secs(20)), Ok(2));
    }
}
