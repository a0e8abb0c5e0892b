//! What a ring carries: how an I/O becomes a submission entry, and a completion entry the end of an I/O.

use std::os::fd::RawFd;

use io_uring::{cqueue, squeue};
use sw_engine::{
    Fault, Token, TransportName,
    seam::{Io, IoDone},
};

use super::{ring::Completions, tables::Tables};

/// A kind of submission entries, with what it must remember of those that are with the kernel.
///
/// *Words*: an entry's user data may be anything but the two highest values, which are the ring's own. [`Shape::end`] is called once for each entry
/// that was made and whose completion came; an entry is never made and then dropped.
pub trait Shape: Sized + Send {
    /// Submission entries: 64 or 128 bytes.
    type Submission: squeue::EntryMarker;
    /// Completion entries: 16 or 32 bytes.
    type Completion: cqueue::EntryMarker;

    /// The transport's name in routes and reports.
    const NAME: TransportName;
    /// Memory pieces of one I/O at most.
    const SEGMENTS_MAX: u8;
    /// What to do about a kernel that is too old for such a ring.
    const TOO_OLD: &'static str;

    /// For a ring of `entries` submission entries with `queue_depth` I/Os at most.
    fn new(entries: u32, queue_depth: u32, completions: Completions) -> Self;

    /// The descriptor in a face's handle.
    fn fd(handle: u64) -> RawFd;

    /// Whether a ring whose completions are polled for takes the I/O.
    fn is_polled(io: &Io) -> bool;

    /// The submission entry of an I/O. There is room for it.
    ///
    /// # Errors
    /// An I/O that the kernel cannot do; nothing is remembered.
    fn entry(&mut self, io: &Io, tables: &Tables) -> Result<Self::Submission, Fault>;

    /// The end of an I/O, from its completion entry. None: no entry of this shape has that word.
    fn end(&mut self, word: u64, result: i32) -> Option<IoDone>;

    /// The word of an I/O that is with the kernel, if the kernel can cancel it.
    fn word(&self, token: Token) -> Option<u64>;
}
