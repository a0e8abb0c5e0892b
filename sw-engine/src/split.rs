//! Splitting: the aligned core goes direct, only ragged ends are bounced, limits are respected.
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
    /// Bytes at its start that go through a bounce block: 0, one block, or all of it.
    pub(crate) head: u32,
    /// Bytes at its end that go through a bounce block: 0 or one block.
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
    /// In place, with ragged ends bounced: at most two blocks.
    InPlace,
    /// In a slab, as a whole.
    InSlab,
}

/// Cuts the next chunk off `at..at + left`, at most `most` bytes for the device.
///
/// `most` is a multiple of the block and holds at least three of them. `left` is above zero and `at + left` fits in 64
/// bits (both checked when the operation was taken).
pub(crate) fn cut(at: u64, left: u64, granularity: Granularity, most: u32, landed: Landed) -> Cut {
    if is_ragged(at, left, granularity) {
        return cut_ragged(at, left, granularity, most, landed);
    }
    Cut::whole(at, left, most)
}

fn cut_ragged(at: u64, left: u64, granularity: Granularity, most: u32, landed: Landed) -> Cut {
    let block = u64::from(granularity.block);
    let start = align_down(at, block);
    let skip = at - start;
    // `most` bounds everything below to 32 bits.
    let want = left.min(u64::from(most) - skip);
    let end = at + want;
    // A chunk in the middle ends on a block, so that only the operation's own ends are ragged.
    let end = if want < left { align_down(end, block) } else { end };
    let outer_end = align_up(end, block).unwrap_or(end);
    let (len, want) = (narrow(outer_end - start), narrow(end - at));
    let skip = narrow(skip);
    let block = granularity.block;
    let ragged_head = skip > 0;
    let ragged_tail = outer_end > end;
    let (head, tail) = match landed {
        Landed::InSlab => (0, 0),
        // One or two blocks with a ragged side have no core worth a piece of its own.
        Landed::InPlace
            if (ragged_head || ragged_tail) && len <= 2 * block && (ragged_head == ragged_tail || len == block) =>
        {
            (len, 0)
        }
        Landed::InPlace => (if ragged_head { block } else { 0 }, if ragged_tail { block } else { 0 }),
    };
    Cut { offset: start, len, skip, want, head, tail }
}

/// Whether memory at `place` can take a direct read at `at`: both have the same phase modulo the alignment.
pub(crate) fn congruent(place: u64, at: u64, granularity: Granularity) -> bool {
    let memory = u64::from(granularity.memory);
    align_down(place.wrapping_sub(at), memory) == place.wrapping_sub(at)
}

/// Whether `at..at + len` has an end inside a block.
pub(crate) fn is_ragged(at: u64, len: u64, granularity: Granularity) -> bool {
    let block = u64::from(granularity.block);
    at & (block - 1) != 0 || len & (block - 1) != 0
}

fn narrow(value: u64) -> u32 {
    debug_assert!(value <= u64::from(u32::MAX), "a chunk is bounded by a 32-bit limit");
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
