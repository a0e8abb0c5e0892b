//! What all controllers of one subsystem have in common in an engine: which of their namespaces are the same, and when writes are safe.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use sw_engine::Time;
use sw_nvme::{
    namespace::Namespace,
    paths::{Fences, Lineage},
    tcp::ledger::Gate,
};

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Family {
    lineage: Mutex<Lineage>,
    fences: Mutex<Fences>,
    /// That of the fences, for lanes to look at without their lock.
    doubts: AtomicU64,
    members: AtomicU64,
}

impl Family {
    fn fences(&self) -> MutexGuard<'_, Fences> {
        self.fences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A controller more; its number.
    pub(crate) fn join(&self) -> u64 {
        self.members.fetch_add(1, Ordering::Relaxed)
    }

    /// Gives the namespaces that a controller of a subsystem with that serial number has their generations.
    pub(crate) fn name(&self, namespaces: &mut [Namespace], serial: &str) {
        let mut lineage = self.lineage.lock().unwrap_or_else(PoisonError::into_inner);
        namespaces.iter_mut().for_each(|namespace| lineage.name(namespace, serial));
    }

    /// A controller has not let go before `safe`.
    pub(crate) fn raise(&self, member: u64, safe: Time) {
        let mut fences = self.fences();
        fences.raise(member, safe);
        self.doubts.store(fences.doubts(), Ordering::Release);
    }
}

impl Gate for Family {
    fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Acquire)
    }

    fn is_safe(&self, now: Time) -> bool {
        self.fences().is_safe(now)
    }
}
