//! Completion queues of the emulation.

use std::{
    any::Any,
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use sw_engine::{
    Error,
    seam::{
        Wake,
        verbs::{Cq, Presence, Wc},
    },
};

use super::{memory::Keys, power::Power};

/// See the module documentation.
pub(super) struct EmulatedCq {
    inner: Mutex<Inner>,
    entries: usize,
    wake: Arc<dyn Wake>,
    /// Of its device.
    keys: Arc<Keys>,
    power: Arc<Power>,
}

struct Inner {
    /// Each with the number of requests of its queue whose completion nobody took yet.
    queue: VecDeque<(Wc, Arc<AtomicU32>)>,
    is_armed: bool,
    /// Requests of the QPs that complete here: there is room for the completion of each.
    reserved: usize,
}

impl EmulatedCq {
    pub(super) fn new(entries: usize, wake: Arc<dyn Wake>, (keys, power): (Arc<Keys>, Arc<Power>)) -> Self {
        let queue = VecDeque::with_capacity(entries);
        Self { inner: Mutex::new(Inner { queue, is_armed: false, reserved: 0 }), entries, wake, keys, power }
    }

    /// The device is gone: whoever waits looks once more.
    pub(super) fn tell(&self) {
        self.wake.wake();
    }

    /// Whether it is of the device that has these keys.
    pub(super) fn is_of(&self, keys: &Arc<Keys>) -> bool {
        Arc::ptr_eq(&self.keys, keys)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps room for so many requests; whether there is.
    pub(super) fn reserve(&self, requests: usize) -> bool {
        let mut inner = self.inner();
        let fits = inner.reserved + requests <= self.entries;
        if fits {
            inner.reserved += requests;
        }
        fits
    }

    pub(super) fn release(&self, requests: usize) {
        let mut inner = self.inner();
        inner.reserved = inner.reserved.saturating_sub(requests);
    }

    /// Takes the completions of a QP that is gone out.
    pub(super) fn forget(&self, qpn: u32) {
        self.inner().queue.retain(|(wc, _)| wc.qpn != qpn);
    }

    pub(super) fn push(&self, wc: Wc, open: &Arc<AtomicU32>) {
        let mut inner = self.inner();
        inner.queue.push_back((wc, Arc::clone(open)));
        let tell = std::mem::take(&mut inner.is_armed);
        drop(inner);
        if tell {
            self.wake.wake();
        }
    }
}

impl Cq for EmulatedCq {
    fn poll(&self, out: &mut Vec<Wc>) -> usize {
        if self.power.presence() == Presence::Gone {
            // What was under way has no end: harder than most NICs, whose drivers flush.
            return 0;
        }
        let mut inner = self.inner();
        let room = (out.capacity() - out.len()).min(inner.queue.len());
        out.extend(inner.queue.drain(..room).map(|(wc, open)| {
            open.fetch_sub(1, Ordering::Relaxed);
            wc
        }));
        room
    }

    fn arm(&self) -> Result<(), Error> {
        self.power.expect()?;
        self.inner().is_armed = true;
        Ok(())
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
