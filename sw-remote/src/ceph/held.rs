//! Handles of Ceph's libraries, closed on threads that may wait: closing one waits for the library's threads, and whoever lets go of the last
//! part of it may be one of those.

use std::{
    ops::Deref,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{Runtime, runtime::leak};

/// Threads for calls that block, and a count of what is being closed on them. Cloning shares it.
#[derive(Clone)]
pub(super) struct Calls {
    pub(super) runtime: Runtime,
    closing: Arc<(Mutex<usize>, Condvar)>,
}

impl Calls {
    pub(super) fn new(threads: usize) -> Self {
        Self { runtime: Runtime::for_calls(threads), closing: Arc::default() }
    }

    fn count(&self) -> MutexGuard<'_, usize> {
        self.closing.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing is being closed, at most `limit`. Whether it is so.
    pub(super) fn wait_closed(&self, limit: Duration) -> bool {
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
pub(super) struct Held<T: Send + 'static> {
    /// There until it is dropped.
    inner: Option<T>,
    calls: Calls,
}

impl<T: Send + 'static> Held<T> {
    pub(super) fn new(inner: T, calls: &Calls) -> Self {
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
        threads.spawn_blocking(move || {
            drop(inner);
            drop(closing);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

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
        let calls = Calls::new(2);
        let (tell, told) = mpsc::channel();
        drop(Held::new(Tells(tell), &calls));
        assert!(calls.wait_closed(Duration::from_secs(20)));
        assert_ne!(told.try_recv().unwrap(), thread::current().id());
    }

    #[test]
    fn what_does_not_close_is_waited_for_no_longer_than_said() {
        let calls = Calls::new(1);
        let (go, may_go) = mpsc::channel::<()>();
        drop(Held::new(Waits(may_go), &calls));
        assert!(!calls.wait_closed(Duration::from_millis(10)));
        drop(go);
        assert!(calls.wait_closed(Duration::from_secs(20)));
    }
}
