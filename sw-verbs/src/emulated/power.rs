//! Whether an emulated device is there: it can be pulled out under whoever uses it, as a NIC can.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicBool, Ordering},
};

use sw_engine::{Error, ErrorKind, Verb, seam::verbs::Presence};

use super::{
    DEVICE,
    cq::EmulatedCq,
    qp::{Core, Failure},
};

/// See the module documentation.
#[derive(Default)]
pub(super) struct Power {
    is_gone: AtomicBool,
    plugged: Mutex<Plugged>,
}

/// What is told when it goes.
#[derive(Default)]
struct Plugged {
    cores: Vec<Weak<Core>>,
    cqs: Vec<Weak<EmulatedCq>>,
}

/// One more, and without those that are gone.
fn admit<T>(all: &mut Vec<Weak<T>>, one: &Arc<T>) {
    all.retain(|held| held.strong_count() > 0);
    all.push(Arc::downgrade(one));
}

impl Power {
    pub(super) fn presence(&self) -> Presence {
        if self.is_gone.load(Ordering::Acquire) { Presence::Gone } else { Presence::Here }
    }

    /// Nothing is made of a device that is gone.
    pub(super) fn expect(&self) -> Result<(), Error> {
        if self.presence() == Presence::Here {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NoDevice, Verb::Setup).at(DEVICE).detail("the device is gone").remedy("open it anew"))
    }

    pub(super) fn plug_qp(&self, core: &Arc<Core>) {
        admit(&mut self.plugged.lock().unwrap_or_else(PoisonError::into_inner).cores, core);
    }

    pub(super) fn plug_cq(&self, cq: &Arc<EmulatedCq>) {
        admit(&mut self.plugged.lock().unwrap_or_else(PoisonError::into_inner).cqs, cq);
    }

    /// Pulls it out. When this returns it touches no memory any more, and nothing completes.
    pub(super) fn pull(&self) {
        self.is_gone.store(true, Ordering::Release);
        let Plugged { cores, cqs } = std::mem::take(&mut *self.plugged.lock().unwrap_or_else(PoisonError::into_inner));
        // Without a word to the peer, which finds out by itself.
        cores.iter().filter_map(Weak::upgrade).for_each(|core| core.fail(Failure::of("the device is gone")));
        cqs.iter().filter_map(Weak::upgrade).for_each(|cq| cq.tell());
    }
}
