//! Splitting: the aligned core goes direct, only ragged ends are bounced, limits are respected.
//!
//! What must be bounced is decided by the block that the device takes, how much by the edge that it likes.
//!
//! ```text
//!        offset            wanted bytes                          a chunk, as the device sees it
//!   ──┬────┆───────┬───────────────┬────┆──┬──        ┌──────────────┬───────────────┬──────────────┐
//!     │ b  ┆ skip →│    block      │    ┆  │          │ head (bounce)│ core in place │ tail (bounce)│
//!   ──┴────┆───────┴───────────────┴────┆──┴──        └──────────────┴───────────────┴──────────────┘
//! ```
//!
//! Pure arithmetic; the lane gives it numbers and gets one chunk.

use sw_mem::{align_down, align_up};

use crate::object::Granularity;

/// One chunk: an aligned range of the object and which of its bytes the caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Cut {
    /// First byte for the device; a multiple of the block.
    pub(crate) offset: u64,
    /// Bytes for the device; a multiple of the block, above zero.
    pub(crate) len: u32,
    /// Bytes at its start that nobody asked for.
    pub(crate) skip: u32,
    /// Bytes that were asked for, above zero.
    pub(crate) want: u32,
    /// Bytes at its start that go through a bounce slab: 0, one edge, or all of it.
    pub(crate) head: u32,
    /// Bytes at its end that go through a bounce slab: at most one edge.
    pub(crate) tail: u32,
}

impl Cut {
    /// Whole blocks from `at` on: at most `most` bytes of `left`, both some whole blocks.
    #[inline(always)]
    pub(crate) fn whole(at: u64, left: u64, most: u32) -> Self {
        let len = narrow(left.min(u64::from(most)));
        Self { offset: at, len, skip: 0, want: len, head: 0, tail: 0 }
    }

    /// Bytes of the caller's that pass through bounce blocks.
    pub(crate) fn bounced(&self) -> u32 {
        let (want_end, core_end) = (self.skip + self.want, self.len - self.tail);
        let head = self.head.min(want_end).saturating_sub(self.skip);
        head + want_end.saturating_sub(core_end.max(self.head))
    }
}

/// What a range is cut for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Landed {
    /// In place, with ragged ends bounced: at most two edges.
    InPlace,
    /// In a slab, as a whole.
    InSlab,
}

/// Where a cut may lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// The device takes whole multiples of this; a power of two.
    pub(crate) block: u32,
    /// A ragged end is bounced up to a multiple of this; a power of two, at least the block.
    pub(crate) edge: u32,
    /// Nothing is asked for past this: the end of the object in whole blocks.
    pub(crate) end: u64,
}

/// The unit in which nearly every device works, whatever smaller block it takes: most drives that take 512 bytes have
/// physical sectors of this size, and an I/O off them costs them more than one on them.
const EDGE_BYTES: u32 = 4096;

/// An operation of this size pays for edges that are wider than its device's block: at most 7 KiB more are read of it.
const LONG_BYTES: u64 = 256 << 10;

impl Grid {
    /// For `left` bytes of an object of `object_len`, cut into chunks of at most `most` (whole blocks), whose ragged
    /// ends go through `bounce` bytes at most.
    pub(crate) fn new(block: u32, object_len: u64, left: u64, most: u32, bounce: u64) -> Self {
        let wide = left >= LONG_BYTES && most >= 3 * EDGE_BYTES && bounce >= u64::from(2 * EDGE_BYTES);
        let end = align_up(object_len, u64::from(block)).unwrap_or(object_len);
        Self { block, edge: if wide { block.max(EDGE_BYTES) } else { block }, end }
    }
}

/// Cuts the next chunk off `at..at + left`, at most `most` bytes for the device.
///
/// `most` is a multiple of the block and holds at least three edges. `left` is above zero and `at + left` fits in 64
/// bits (both checked when the operation was taken).
pub(crate) fn cut(at: u64, left: u64, grid: Grid, most: u32, landed: Landed) -> Cut {
    if is_ragged(at, left, grid.block) {
        return cut_ragged(at, left, grid, most, landed);
    }
    Cut::whole(at, left, most)
}

fn cut_ragged(at: u64, left: u64, grid: Grid, most: u32, landed: Landed) -> Cut {
    let (block, edge, most) = (u64::from(grid.block), u64::from(grid.edge), u64::from(most));
    let ragged_head = at & (block - 1) != 0;
    let start = if ragged_head { align_down(at, edge) } else { at };
    // `most` bounds everything below to 32 bits.
    let end = at + left.min(most - (at - start));
    // A chunk in the middle ends on an edge, so that only the operation's own ends are ragged.
    let end = if end < at + left { align_down(end, edge) } else { end };
    let ragged_tail = end & (block - 1) != 0;
    let up_to = |unit| align_up(end, unit).unwrap_or(end);
    let outer_end = if ragged_tail { up_to(edge).min(start + most).min(grid.end.max(up_to(block))) } else { end };
    let (len, want, skip) = (narrow(outer_end - start), narrow(end - at), narrow(at - start));
    let head = if ragged_head { grid.edge.min(len) } else { 0 };
    let tail = if ragged_tail { narrow(outer_end - align_down(end, edge).max(start + u64::from(head))) } else { 0 };
    let (head, tail) = match landed {
        Landed::InSlab => (0, 0),
        // No core is left between them.
        Landed::InPlace if head + tail == len => (len, 0),
        Landed::InPlace => (head, tail),
    };
    Cut { offset: start, len, skip, want, head, tail }
}

/// Whether memory at `place` can take a direct read at `at`: both have the same phase modulo the alignment.
pub(crate) fn congruent(place: u64, at: u64, granularity: Granularity) -> bool {
    let memory = u64::from(granularity.memory);
    align_down(place.wrapping_sub(at), memory) == place.wrapping_sub(at)
}

/// Whether `at..at + len` has an end inside a block.
pub(crate) fn is_ragged(at: u64, len: u64, block: u32) -> bool {
    let block = u64::from(block);
    at & (block - 1) != 0 || len & (block - 1) != 0
}

fn narrow(value: u64) -> u32 {
    debug_assert!(value <= u64::from(u32::MAX), "a chunk is bounded by a 32-bit limit");
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
