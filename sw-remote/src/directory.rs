//! The open remote objects of an engine, by the handles that faces carry.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use sw_engine::seam::Tee;
use sw_mem::ForkMark;

use crate::{remote::Remote, runtime::leak};

/// All of them. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Directory(Arc<Inner>);

struct Inner {
    next: AtomicU64,
    /// A child of this process touches none of it: a thread that is not there may hold the lock.
    fork: ForkMark,
    open: RwLock<HashMap<u64, Entry>>,
}

/// An object, and who gets copies of what is read of it.
struct Entry {
    remote: Weak<dyn Remote>,
    tee: Option<Weak<dyn Tee>>,
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

    /// Gives copies of what is read of it to `tee` from now on, as long as that is there.
    pub(crate) fn set_tee(&self, tee: Weak<dyn Tee>) {
        let mut open = self.directory.0.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = open.get_mut(&self.handle) {
            entry.tee = Some(tee);
        }
    }
}

impl Directory {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner { next: AtomicU64::new(0), fork: ForkMark::new(), open: RwLock::default() }))
    }

    /// Adds one.
    pub(crate) fn add(&self, remote: Arc<dyn Remote>) -> Kept {
        let handle = self.0.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { remote: Arc::downgrade(&remote), tee: None };
        self.0.open.write().unwrap_or_else(PoisonError::into_inner).insert(handle, entry);
        Kept { handle, directory: self.clone(), remote: Some(remote) }
    }

    /// The one with this handle, if it is still open.
    pub(crate) fn find(&self, handle: u64) -> Option<Arc<dyn Remote>> {
        self.0.open.read().unwrap_or_else(PoisonError::into_inner).get(&handle)?.remote.upgrade()
    }

    /// Who gets copies of what is read of it.
    pub(crate) fn tee(&self, handle: u64) -> Option<Arc<dyn Tee>> {
        self.0.open.read().unwrap_or_else(PoisonError::into_inner).get(&handle)?.tee.as_ref()?.upgrade()
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
#[path = "directory_tests.rs"]
mod tests;
