//! One ring with its tables and its shape.
// UNSAFETY: submission entries carry raw addresses that the kernel reads and writes.
#![expect(unsafe_code, reason = "submission entries carry addresses")]

use sw_engine::{Fault, seam::Io};

use super::{UringConfig, ring::Completions, ring::Ring, shape::Shape, tables::Tables};

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

    /// Stages an I/O. False: the submission queue is full.
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
        self.ring.staged_io(io.len);
        Ok(pushed)
    }
}
