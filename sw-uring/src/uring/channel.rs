//! One ring with its tables and its shape.
// UNSAFETY: submission entries carry raw addresses that the kernel reads and writes.
#![expect(unsafe_code, reason = "submission entries carry addresses")]

use sw_engine::{Fault, seam::Io};

use super::{UringConfig, ring::Completions, ring::Ring, shape::Shape, tables::Tables};

/// From here on an I/O is large: the device spends far longer on it than a system call takes.
const LARGE_IO_BYTES: u32 = 256 << 10;

/// Large I/Os that wait for one call at most.
///
/// Of more than two entries in one call the kernel gathers the requests first (`need_plug` in linux `io_uring/io_uring.c`)
/// and makes one of those that are neighbours on the disk, up to `max_sectors_kb`. Small I/Os gain by that. Of a sequential job
/// of 1 MiB it leaves the device a third of the requests to work on at once.
const LARGE_TOGETHER: u32 = 2;

/// A ring, what is registered with it, and what its entries need to be remembered.
///
/// One thread at a time uses it, because every method takes `&mut self`.
pub(super) struct Channel<S: Shape> {
    pub(super) ring: Ring<S>,
    pub(super) tables: Tables,
    pub(super) shape: S,
}

impl<S: Shape> Channel<S> {
    /// # Errors
    /// The errno of the kernel that refuses the ring.
    pub(super) fn new(config: &UringConfig, completions: Completions) -> Result<Self, i32> {
        let ring: Ring<S> = Ring::new(config, completions)?;
        let tables = Tables::new(&ring.uring.submitter(), config.files_max, config.buffers_max);
        let shape = S::new(ring.uring.params().sq_entries(), config.queue_depth, completions);
        Ok(Self { ring, tables, shape })
    }

    /// Stages an I/O; hands over what is staged once two large ones are. False: the submission queue is full.
    ///
    /// # Errors
    /// An I/O that the kernel cannot do; nothing is staged.
    #[inline]
    pub(super) fn push(&mut self, io: &Io) -> Result<bool, Fault> {
        let mut queue = self.ring.uring.submission();
        if queue.is_full() {
            return Ok(false);
        }
        let entry = self.shape.entry(io, &self.tables)?;
        // SAFETY: the entry's memory stays valid and unreferenced until its completion or a quiet fence: the contract of
        // `Transport` puts that on the caller. What else it points to lives in `self.shape`.
        let pushed = unsafe { queue.push(&entry) }.is_ok();
        drop(queue);
        if io.len >= LARGE_IO_BYTES && self.ring.staged() >= LARGE_TOGETHER {
            // What the kernel does not take now stays staged, and a ring that is broken says so when it is rung.
            let _ = self.ring.submit();
        }
        Ok(pushed)
    }
}
