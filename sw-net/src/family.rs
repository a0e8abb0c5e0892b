//! What all controllers of one subsystem have in common in a process: which of their namespaces are the same, and when writes are safe.
//!
//! ```text
//!   Controller (by any port, any wire, of any engine) ─► Family of its subsystem's NQN ◄─ the next Controller, when that one is gone
//! ```
//!
//! By the NQN alone, which names one subsystem and no other (Base 2.1, "NVMe Qualified Names"): a write in doubt overtakes a later
//! one whichever port, wire or engine, and whatever name of this host, either goes by.
//!
//! Bounded: a family that no controller has, and whose fences are over, is forgotten when the next one is asked for.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use sw_engine::Time;
use sw_nvme::{
    fabrics::Nqn,
    namespace::Namespace,
    paths::{Fences, Lineage},
    tcp::ledger::Gate,
};

use crate::clock::now;

static FAMILIES: Mutex<BTreeMap<Nqn, Arc<Family>>> = Mutex::new(BTreeMap::new());

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Family {
    lineage: Mutex<Lineage>,
    fences: Mutex<Fences>,
    /// That of the fences, for lanes to look at without their lock.
    doubts: AtomicU64,
    members: AtomicU64,
}

impl Family {
    /// That of a subsystem.
    pub(crate) fn of(subsystem: &Nqn) -> Arc<Self> {
        let mut families = FAMILIES.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        families.retain(|_, family| Arc::strong_count(family) > 1 || !family.is_safe(now));
        Arc::clone(families.entry(subsystem.clone()).or_default())
    }

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

    /// A write goes on though its end was told: no other one is sent until what this gives is dropped.
    pub(crate) fn awaits(self: &Arc<Self>) -> Awaited {
        let mut fences = self.fences();
        fences.awaits();
        self.doubts.store(fences.doubts(), Ordering::Release);
        Awaited(Arc::clone(self))
    }

    /// A controller has not let go before `safe`.
    pub(crate) fn raise(&self, member: u64, safe: Time) {
        let mut fences = self.fences();
        fences.raise(member, safe);
        self.doubts.store(fences.doubts(), Ordering::Release);
    }
}

/// A write that goes on though its end was told, as unknown.
pub(crate) struct Awaited(Arc<Family>);

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.fences().answered();
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
