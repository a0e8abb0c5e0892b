//! How far a load is.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Tells any thread how far a load is. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    all: AtomicU64,
}

impl Meter {
    /// Bytes that have arrived, and bytes in all; both are 0 until the load is planned. Bytes that are read only for
    /// checksums are in neither.
    #[must_use]
    pub fn read(&self) -> (u64, u64) {
        let all = self.0.all.load(Ordering::Acquire);
        (self.0.done.load(Ordering::Relaxed).min(all), all)
    }

    pub(crate) fn expect(&self, all: u64) {
        self.0.done.store(0, Ordering::Relaxed);
        self.0.all.store(all, Ordering::Release);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What was not counted one by one, such as gaps, is there as well.
    pub(crate) fn complete(&self) {
        self.0.done.store(self.0.all.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
