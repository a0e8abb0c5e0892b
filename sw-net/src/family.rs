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
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use sw_engine::Time;
use sw_nvme::{
    fabrics::Nqn,
    namespace::Namespace,
    paths::{Fences, Holder, Lineage},
    resets::{Errand, Errands, Life, Verdict},
    tcp::ledger::Gate,
};

use crate::{clock::now, controller::Controller};

static FAMILIES: Mutex<BTreeMap<Nqn, Arc<Family>>> = Mutex::new(BTreeMap::new());

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Family {
    lineage: Mutex<Lineage>,
    fences: Mutex<Fences>,
    /// That of the fences, for lanes to look at without their lock.
    doubts: AtomicU64,
    members: AtomicU64,
    /// Who may be asked to reset another one.
    callees: Mutex<Vec<Weak<Controller>>>,
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

    /// A controller that is called when another one may be asked about.
    pub(crate) fn enlist(&self, controller: &Arc<Controller>) {
        let mut callees = self.callees.lock().unwrap_or_else(PoisonError::into_inner);
        callees.retain(|one| one.strong_count() > 0);
        callees.push(Arc::downgrade(controller));
    }

    /// Calls all of them. One that is about to rest just then looks up by itself, soon enough.
    pub(crate) fn call(&self) {
        let callees = self.callees.lock().unwrap_or_else(PoisonError::into_inner).clone();
        callees.iter().filter_map(Weak::upgrade).for_each(|controller| controller.called());
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

    /// A holder has not let go before `safe`; `life` is how others ask about it.
    pub(crate) fn raise(&self, holder: Holder, safe: Time, life: Option<&Life>) {
        let mut fences = self.fences();
        fences.raise(holder, safe, life);
        self.doubts.store(fences.doubts(), Ordering::Release);
    }

    /// See [`Fences::claim`].
    pub(crate) fn claim(&self, errands: &Errands) -> Option<Errand> {
        self.fences().claim(errands, now())
    }

    /// Whether there is something to claim.
    pub(crate) fn has_claim(&self, errands: &Errands) -> bool {
        self.fences().claimable(errands, now()).is_some()
    }

    /// See [`Fences::settle`]. Where it failed somebody else may be asked.
    pub(crate) fn settle(&self, errand: &Errand, verdict: Verdict) {
        self.fences().settle(errand, verdict);
        if verdict == Verdict::Failed {
            self.call();
        }
    }

    /// How often writes were safe before their time, as another controller told.
    #[cfg(test)]
    pub(crate) fn proofs(&self) -> u64 {
        self.fences().proofs()
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
