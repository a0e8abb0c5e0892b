//! From places to reads: what is near each other in one object is read in one piece, and every byte has its place in memory
//! before anything is read.
//!
//! ```text
//!   object    ──┬──a──┬───gap───┬──b──┬────────────────────┬──c──┬──        a, b and c are samples of one batch
//!   runs        ├───────── 1 ─────────┤                    ├─ 2 ─┤          gap ≤ gap_bytes, run ≤ join_bytes
//!   memory      │  page  ┆ 1: a gap b │ page ┆ 2: c │                       each congruent to its offset, in pages of its own
//! ```
//!
//! A run that starts as far into a page of memory as into a page of the object, and has its pages alone, can be widened to
//! whole blocks when its object is known, so that a device writes it in place and nothing is copied.

use std::sync::Arc;

use straightway::Memory;

use super::{
    deal::LoaderState,
    decode::{BlockSlot, Promise},
    error::{BadSample, SampleId},
    window::{Lost, Window},
};
use crate::{formats::Extent, samples::Place};

/// What runs are placed by: a multiple of every block that direct I/O asks for in practice. A device with larger blocks costs
/// bounced ends, nothing else.
pub(super) const PAGE: u64 = 4096;

/// Names an object of a loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) dataset: u32,
    pub(crate) object: u32,
}

/// A batch on its way.
pub(super) struct Job {
    /// Its number, from 0: the order in which batches are given out, ends of epochs among them.
    pub(super) seq: u64,
    /// Its number among the batches and windows that are read: workers take the earliest that is there.
    pub(super) turn: u64,
    /// Its number among those with decoded samples, if it is one: a worker takes it after those before it, for whose blocks it
    /// may wait.
    pub(super) line: Option<u64>,
    pub(super) epoch: u64,
    pub(super) after: LoaderState,
    pub(super) items: Vec<Item>,
    pub(super) runs: Vec<Run>,
    /// Owners of the bytes of the runs; each run has a range of it.
    pub(super) owners: Vec<Owner>,
    pub(super) blocks: Vec<BlockRead>,
    /// The window that it reads, if it is no batch, and the runs that could not be.
    pub(super) reads: Option<(Arc<Window>, Vec<Lost>)>,
    /// The windows that its samples are in.
    pub(super) waits: Vec<Arc<Window>>,
    /// Bytes of memory that the runs need.
    pub(super) room: u64,
    /// Bytes of a place, where every sample has one of equal length.
    pub(super) stride: Option<u64>,
    /// What is read into; `None` while the reader has it, or if nothing is read.
    pub(super) memory: Option<Memory>,
    pub(super) bad: Vec<BadSample>,
}

impl Job {
    /// One that reads nothing yet.
    pub(super) fn new(seq: u64, turn: u64, epoch: u64, after: LoaderState) -> Self {
        Self {
            seq,
            turn,
            line: None,
            epoch,
            after,
            items: Vec::new(),
            runs: Vec::new(),
            owners: Vec::new(),
            blocks: Vec::new(),
            reads: None,
            waits: Vec::new(),
            room: 0,
            stride: None,
            memory: None,
            bad: Vec::new(),
        }
    }

    /// Whether a worker puts it together, out of blocks and windows that it shares with other batches.
    pub(super) fn shares(&self) -> bool {
        self.line.is_some() || !self.waits.is_empty()
    }

    /// Plans the reads of all samples and blocks that are not lost. `None` if that is beyond 64 bits.
    pub(super) fn lay_out(&mut self, placing: Placing) -> Option<()> {
        let mut pieces = Vec::with_capacity(self.items.len());
        for (index, item) in (0u32..).zip(&self.items) {
            if let (From::Memory(_), false, true) = (&item.from, item.lost, item.place.extent.len > 0) {
                pieces.push(Piece { key: item.key(), extent: item.place.extent, owner: Owner::Item(index) });
            }
        }
        for (index, block) in (0u32..).zip(&self.blocks) {
            if !block.lost && block.place.extent.len > 0 {
                pieces.push(Piece { key: block.key, extent: block.place.extent, owner: Owner::Block(index) });
            }
        }
        let (runs, owners, room) = place(&mut pieces, placing)?;
        for run in &runs {
            for owner in owners_of(&owners, run) {
                let at = |offset: u64| run.at + (offset - run.extent.offset);
                match *owner {
                    Owner::Item(index) => {
                        if let Some(item) = self.items.get_mut(usize::try_from(index).ok()?) {
                            item.from = From::Memory(at(item.place.extent.offset));
                        }
                    }
                    Owner::Block(index) => {
                        if let Some(block) = self.blocks.get_mut(usize::try_from(index).ok()?) {
                            block.at = at(block.place.extent.offset);
                        }
                    }
                }
            }
        }
        (self.runs, self.owners, self.room) = (runs, owners, room);
        Some(())
    }
}

/// The owners of a run's bytes.
pub(super) fn owners_of<'a>(owners: &'a [Owner], run: &Run) -> &'a [Owner] {
    let index = |at: u32| usize::try_from(at).unwrap_or(usize::MAX);
    owners.get(index(run.owners.0)..index(run.owners.1)).unwrap_or_default()
}

impl Item {
    pub(super) fn key(&self) -> Key {
        Key { dataset: self.id.dataset, object: self.place.object }
    }
}

/// A sample of a batch.
pub(super) struct Item {
    pub(super) id: SampleId,
    pub(super) place: Place,
    pub(super) from: From,
    /// A read, or the plan, failed for it: it is in `bad`.
    pub(super) lost: bool,
}

/// Where a sample's bytes come from.
pub(super) enum From {
    /// Memory of the job, from this byte on.
    Memory(u64),
    /// A decoded block, by the place's row.
    Block(Arc<BlockSlot>),
    /// A window, by the sample's index in it.
    Window(Arc<Window>, usize),
}

/// A block that this job reads and decodes.
pub(super) struct BlockRead {
    pub(super) key: Key,
    pub(super) place: Place,
    /// First byte in the job's memory.
    pub(super) at: u64,
    pub(super) promise: Promise,
    /// Why it was not read.
    pub(super) lost: bool,
}

/// Whose bytes a part of a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Item(u32),
    Block(u32),
}

/// One read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) key: Key,
    /// Bytes of the object that are wanted, gaps included.
    pub(super) extent: Extent,
    /// Where its first byte goes in the job's memory.
    pub(super) at: u64,
    /// Its owners, as a range of the job's.
    pub(super) owners: (u32, u32),
}

/// Bytes that somebody wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) key: Key,
    pub(super) extent: Extent,
    pub(super) owner: Owner,
}

/// What is read in one piece, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Placing {
    /// Neighbours together, each run in pages of its own.
    Joined { gap_bytes: u64, join_bytes: u64 },
    /// Each piece alone, in pages of its own.
    Alone,
    /// Each piece alone, the one of item n at `n * stride`.
    Strided { stride: u64 },
}

/// Places pieces (which it sorts) in memory. Returns the runs, their owners, and the bytes of memory that they need; `None` if
/// that is beyond 64 bits.
pub(super) fn place(pieces: &mut [Piece], placing: Placing) -> Option<(Vec<Run>, Vec<Owner>, u64)> {
    pieces.sort_unstable_by_key(|piece| (piece.key, piece.extent.offset, piece.extent.len));
    let owners = pieces.iter().map(|piece| piece.owner).collect();
    let mut runs: Vec<Run> = Vec::with_capacity(pieces.len());
    let mut room = 0u64;
    for (index, piece) in (0u32..).zip(&*pieces) {
        let Piece { key, extent, owner } = *piece;
        let end = extent.offset.checked_add(extent.len)?;
        if let (Placing::Joined { gap_bytes, join_bytes }, Some(last)) = (placing, runs.last_mut())
            && last.key == key
            && extent.offset - last.extent.offset <= last.extent.len.saturating_add(gap_bytes)
            && end - last.extent.offset <= join_bytes.max(last.extent.len)
        {
            last.extent.len = last.extent.len.max(end - last.extent.offset);
            last.owners.1 = index + 1;
            room = whole_pages(last.at.checked_add(last.extent.len)?)?;
            continue;
        }
        let at = match (placing, owner) {
            (Placing::Strided { stride }, Owner::Item(item)) => u64::from(item).checked_mul(stride)?,
            _ => room.checked_add(extent.offset % PAGE)?,
        };
        runs.push(Run { key, extent, at, owners: (index, index + 1) });
        let behind = at.checked_add(extent.len)?;
        room = match placing {
            Placing::Strided { .. } => room.max(behind),
            _ => whole_pages(behind)?,
        };
    }
    Some((runs, owners, room))
}

fn whole_pages(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(PAGE)
}

impl Run {
    /// The run widened to whole blocks of `block` bytes, within an object of `object_len` bytes and within its own pages: what
    /// to read, and where its first byte goes.
    pub(super) fn widened(&self, block: u64, object_len: u64) -> (Extent, u64) {
        let Extent { offset, len } = self.extent;
        if block <= 1 || block > PAGE {
            return (self.extent, self.at);
        }
        let skip = offset % block;
        let (start, end) = (offset - skip, offset.saturating_add(len));
        let end = end.checked_next_multiple_of(block).unwrap_or(end).min(object_len).max(end);
        (Extent { offset: start, len: end - start }, self.at - skip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(item: u32, object: u32, offset: u64, len: u64) -> Piece {
        Piece { key: Key { dataset: 0, object }, extent: Extent { offset, len }, owner: Owner::Item(item) }
    }

    const JOINED: Placing = Placing::Joined { gap_bytes: 1000, join_bytes: 100_000 };

    /// Where each item's bytes go.
    fn places(pieces: &[Piece], runs: &[Run], owners: &[Owner]) -> Vec<(Owner, u64)> {
        let of = |owner: Owner| pieces.iter().find(|piece| piece.owner == owner).unwrap().extent.offset;
        let in_run = |run: &Run| {
            let owners = &owners[run.owners.0 as usize..run.owners.1 as usize];
            owners.iter().map(|owner| (*owner, run.at + of(*owner) - run.extent.offset)).collect::<Vec<_>>()
        };
        runs.iter().flat_map(in_run).collect()
    }

    #[test]
    fn neighbours_are_read_together_and_what_is_far_apart_is_not() {
        let mut pieces =
            [piece(0, 0, 50_000, 100), piece(1, 1, 0, 10), piece(2, 0, 10_000, 100), piece(3, 0, 11_100, 5)];
        let (runs, owners, room) = place(&mut pieces, JOINED).unwrap();
        let extents: Vec<_> = runs.iter().map(|run| (run.key.object, run.extent.offset, run.extent.len)).collect();
        assert_eq!(extents, [(0, 10_000, 1105), (0, 50_000, 100), (1, 0, 10)]);
        let item = |number| Owner::Item(number);
        let told = places(&pieces, &runs, &owners);
        assert_eq!(told, [(item(2), 1808), (item(3), 2908), (item(0), 4096 + 848), (item(1), 8192)]);
        assert_eq!(room, 12_288);
        // One byte further apart than allowed.
        let (runs, ..) = place(&mut [piece(0, 0, 0, 10), piece(1, 0, 1011, 10)], JOINED).unwrap();
        assert_eq!(runs.len(), 2);
    }

    #[test]
    fn joined_runs_are_bounded_and_a_larger_sample_is_a_run_of_its_own() {
        let many: Vec<_> = (0..40).map(|number| piece(number, 0, u64::from(number) * 10_000, 10_000)).collect();
        let (runs, owners, _) = place(&mut many.clone(), JOINED).unwrap();
        assert_eq!((runs.len(), owners.len()), (4, 40));
        assert!(runs.iter().all(|run| run.extent.len == 100_000));
        let (runs, ..) = place(&mut [piece(0, 0, 0, 1 << 30), piece(1, 0, 1 << 30, 5)], JOINED).unwrap();
        assert_eq!(runs.iter().map(|run| run.extent.len).collect::<Vec<_>>(), [1 << 30, 5]);
    }

    #[test]
    fn the_same_bytes_twice_are_read_once() {
        let (runs, _, room) =
            place(&mut [piece(0, 0, 100, 50), piece(1, 0, 100, 50), piece(2, 0, 120, 10)], JOINED).unwrap();
        assert_eq!((runs.len(), runs[0].extent.len, room), (1, 50, 4096));
    }

    #[test]
    fn runs_have_their_pages_alone_and_widen_within_them() {
        let mut word = 7u64;
        let mut pieces = Vec::new();
        for item in 0..500 {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            pieces.push(piece(item, item % 3, word >> 40, 1 + (word & 0x7fff)));
        }
        let (runs, _, room) = place(&mut pieces, JOINED).unwrap();
        let mut end = 0;
        for run in &runs {
            for block in [512, 4096] {
                let (wide, at) = run.widened(block, u64::MAX >> 8);
                assert_eq!((wide.offset % block, wide.len % block), (0, 0));
                assert_eq!(at % PAGE, wide.offset % PAGE, "memory is congruent");
                assert!(at >= end && at + wide.len <= room, "{run:?} leaves its pages");
                assert!(wide.offset <= run.extent.offset);
                assert!(wide.offset + wide.len >= run.extent.offset + run.extent.len);
            }
            end = (run.at + run.extent.len).next_multiple_of(PAGE);
        }
        assert_eq!(end, room);
        let run = Run { extent: Extent { offset: 5000, len: 100 }, ..runs[0] };
        assert_eq!(run.widened(4096, 5100).0, Extent { offset: 4096, len: 1004 }, "never past the end");
    }

    #[test]
    fn strided_pieces_lie_where_their_item_does() {
        let mut pieces = [piece(2, 0, 77, 10), piece(0, 0, 87, 9), piece(1, 5, 0, 10)];
        let (runs, owners, room) = place(&mut pieces, Placing::Strided { stride: 10 }).unwrap();
        let told = places(&pieces, &runs, &owners);
        assert_eq!(told, [(Owner::Item(2), 20), (Owner::Item(0), 0), (Owner::Item(1), 10)]);
        assert_eq!(room, 30);
    }

    #[test]
    fn what_does_not_fit_into_64_bits_is_no_plan() {
        assert!(place(&mut [piece(0, 0, u64::MAX, 2)], JOINED).is_none());
        assert!(place(&mut [piece(0, 0, 0, u64::MAX - 5), piece(1, 1, 0, u64::MAX - 5)], JOINED).is_none());
    }
}
