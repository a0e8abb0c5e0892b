//! Calls that block: what a pool of threads makes a [`Transport`](super::Transport) of.

use super::transport::{Io, TransportCaps};
use crate::error::{Error, Fault};

/// Does one I/O from its beginning to its end, on the thread that asks.
///
/// A backend whose library or kernel interface has no queue implements this; a pool of threads elsewhere gives it one, with
/// bounds, cancelling, fencing and an end of every wait, so that each backend need not have its own.
///
/// *Thread*: any number of threads call `perform` at a time. *Blocking*: for as long as the I/O takes; whoever waits for it does so
/// elsewhere, with a deadline. *Memory*: `perform` touches the segments of its I/O until it returns, and not afterwards; one that
/// does not return keeps them, as the contract of [`Transport`](super::Transport) allows.
pub trait BlockingIo: Send + Sync {
    /// What it can do; constant. Depth and bytes in one I/O are bounds of its own, and the pool's are below them.
    fn caps(&self) -> TransportCaps;

    /// Does it. Gives the bytes that were moved from its start on, at most its length; 0 for a flush. May be short.
    ///
    /// # Errors
    /// See [`CallFault`].
    fn perform(&self, io: &Io) -> Result<u32, CallFault>;

    /// What stands behind a fault of an I/O, where more is known than the fault says: as
    /// [`Transport::explain`](super::Transport::explain).
    fn explain(&self, fault: Fault) -> Option<&Error> {
        let _ = fault;
        None
    }
}

/// Why an I/O was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFault {
    /// The system said so, by a number of `errno(3)` (positive); the pool knows the class of each.
    Errno(i32),
    /// With a class.
    Known(Fault),
}
