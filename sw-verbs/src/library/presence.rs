//! Whether a device of the system's is there still.
//!
//! Three things tell: `IBV_EVENT_DEVICE_FATAL` (ibv_get_async_event(3)), which the kernel also gives when it takes a device away from programs
//! (linux `drivers/infiniband/core/uverbs_main.c`, `ib_uverbs_remove_one`); `RDMA_CM_EVENT_DEVICE_REMOVAL` of a connection, or of an identifier
//! that is kept for this alone, since connections may have ended a moment before; and a channel of
//! completions that gives errors. Whichever comes first counts, for all that is open of the device.
//!
//! *Thread*: any. The events of a context are read by the threads of its completion queues, one at a time: two that read would wait for each
//! other's event.
// UNSAFETY: calls of the library with objects that it made.
#![expect(unsafe_code, reason = "calls libibverbs")]

use std::{
    collections::BTreeMap,
    ffi::c_int,
    ptr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sw_engine::{Error, ErrorKind, Verb, seam::verbs::Presence};

use super::{
    cm::Sentinel,
    fabric::{Fd, Opened},
    wire,
};
use crate::emulated::wait_readable;

/// `IBV_EVENT_DEVICE_FATAL`.
const DEVICE_FATAL: c_int = 8;
/// Events that are taken in one look.
const EVENTS_MAX: usize = 16;

/// What is known of a context, whoever has opened it: contexts are librdmacm's and stay.
#[derive(Clone, Default)]
pub(super) struct Known(Arc<AtomicBool>);

impl Known {
    /// That of a context.
    pub(super) fn of(context: *mut wire::Context) -> Self {
        static ALL: Mutex<BTreeMap<usize, Known>> = Mutex::new(BTreeMap::new());
        ALL.lock().unwrap_or_else(PoisonError::into_inner).entry(context.addr()).or_default().clone()
    }

    pub(super) fn presence(&self) -> Presence {
        if self.0.load(Ordering::Acquire) { Presence::Gone } else { Presence::Here }
    }

    /// It does not come back.
    pub(super) fn is_gone(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Opened {
    /// Whether it is there, as far as anybody has told by now.
    pub(super) fn presence(&self) -> Presence {
        if self.known.presence() == Presence::Here && self.sentinel.as_ref().is_some_and(Sentinel::has_heard) {
            self.known.is_gone();
        }
        self.known.presence()
    }

    /// Nothing is made of a device that is gone.
    pub(super) fn expect(&self) -> Result<(), Error> {
        if self.presence() == Presence::Here {
            return Ok(());
        }
        let absent = Error::new(ErrorKind::NoDevice, Verb::Setup).at(self.facts.name.clone());
        Err(absent.detail("the device is gone").remedy("see the kernel's log; open it anew when it is there again"))
    }

    /// Takes the events of the device that came.
    pub(super) fn listen_for_the_end(&self) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a context that stays.
        let fd = Fd(unsafe { (*self.context).async_fd });
        for _ in 0..EVENTS_MAX {
            if !matches!(wait_readable(&fd, Duration::ZERO), Ok(true)) {
                return;
            }
            let mut event = wire::AsyncEvent { element: ptr::null_mut(), kind: 0 };
            // SAFETY: a context that stays and a live local; an event is there, and nobody else reads meanwhile. Without one it fails at once.
            if unsafe { (self.ops().get_async_event)(self.context, &raw mut event) } != 0 {
                self.known.is_gone();
                return;
            }
            // SAFETY: the event of above, once.
            unsafe { (self.ops().ack_async_event)(&raw mut event) };
            if event.kind == DEVICE_FATAL {
                self.known.is_gone();
            }
        }
    }
}
