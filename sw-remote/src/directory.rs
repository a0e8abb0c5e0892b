//! The open remote objects of an engine, by the handles that faces carry.
// UNSAFETY: a test forks.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use sw_mem::ForkMark;

use crate::{remote::Remote, runtime::leak};

/// All of them. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Directory(Arc<Inner>);

struct Inner {
    next: AtomicU64,
    /// A child of this process touches none of it: a thread that is not there may hold the lock.
    fork: ForkMark,
    open: RwLock<HashMap<u64, Weak<dyn Remote>>>,
}

/// An entry, which is there as long as this is: an object keeps it.
pub(crate) struct Kept {
    pub(crate) handle: u64,
    directory: Directory,
    // Behind the directory: what looks it up meanwhile finds it, or nothing. There until it is dropped.
    remote: Option<Arc<dyn Remote>>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kept").field(&self.handle).finish()
    }
}

impl Kept {
    pub(crate) fn remote(&self) -> Option<Arc<dyn Remote>> {
        self.remote.clone()
    }
}

impl Directory {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner { next: AtomicU64::new(0), fork: ForkMark::new(), open: RwLock::default() }))
    }

    /// Adds one.
    pub(crate) fn add(&self, remote: Arc<dyn Remote>) -> Kept {
        let handle = self.0.next.fetch_add(1, Ordering::Relaxed);
        let weak = Arc::downgrade(&remote);
        self.0.open.write().unwrap_or_else(PoisonError::into_inner).insert(handle, weak);
        Kept { handle, directory: self.clone(), remote: Some(remote) }
    }

    /// The one with this handle, if it is still open.
    pub(crate) fn find(&self, handle: u64) -> Option<Arc<dyn Remote>> {
        self.0.open.read().unwrap_or_else(PoisonError::into_inner).get(&handle)?.upgrade()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.directory.0.fork.is_child() {
            leak(self.remote.take());
            return;
        }
        self.directory.0.open.write().unwrap_or_else(PoisonError::into_inner).remove(&self.handle);
    }
}

#[cfg(test)]
mod tests {
    // UNSAFETY: fork, waitpid and _exit.
    #![expect(unsafe_code, reason = "forks")]

    use futures_util::{FutureExt, future::BoxFuture};
    use sw_engine::{Error, seam::IoKind};

    use super::*;
    use crate::land::Landing;

    struct Nothing;

    impl Remote for Nothing {
        fn read<'a>(&'a self, _offset: u64, _landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
            async { Ok(()) }.boxed()
        }

        fn write<'a>(&'a self, _offset: u64, _landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
            async { Ok(()) }.boxed()
        }

        fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
            async { Ok(()) }.boxed()
        }

        fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
            async { Ok(()) }.boxed()
        }
    }

    #[test]
    fn a_child_that_drops_an_object_waits_for_no_thread_of_its_parent() {
        let directory = Directory::new();
        let kept = directory.add(Arc::new(Nothing));
        // As another thread would have it at the fork, which the child has not.
        let held = directory.0.open.write().unwrap();
        // SAFETY: the child drops one thing and leaves by _exit; an alarm ends one that hangs.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: it has no precondition.
            unsafe { libc::alarm(10) };
            drop(kept);
            // SAFETY: ends the child without the parent's handlers.
            unsafe { libc::_exit(0) }
        }
        let mut status = -1;
        // SAFETY: a child of ours and a writable status.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!((waited, status), (child, 0));
        drop(held);
        assert!(directory.find(kept.handle).is_some());
    }
}
