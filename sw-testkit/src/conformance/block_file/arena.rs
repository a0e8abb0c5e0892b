//! Memory for one case: a region full of guard bytes, of which I/Os get pieces.

use sw_engine::seam::MemorySegment;
use sw_mem::{Buffer, ByteLen, DmaRegion, DmaSpan, HugePages, Populate, index};

use super::Bed;
use crate::conformance::{CaseResult, End, fail};

/// What memory holds that no I/O was given.
const GUARD: u8 = 0xA5;

/// One region; pieces are cut from it in order, with a gap between each two.
pub(super) struct Arena {
    span: DmaSpan,
    used: u64,
    pieces: Vec<Piece>,
}

/// A piece: its place in the arena.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) at: u64,
    pub(super) len: u32,
}

impl Arena {
    pub(super) fn new(bed: &mut dyn Bed, bytes: u64) -> Result<Self, End> {
        let buffer = Buffer::allocate_with(ByteLen(bytes), 0, HugePages::Never, Populate::Lazy);
        let span = match buffer {
            Ok(buffer) => buffer.into_span(),
            Err(error) => return fail(format!("no memory for the case: {error}")),
        };
        bed.memory(span.region());
        let arena = Self { span, used: 0, pieces: Vec::new() };
        arena.fill(0, bytes, GUARD)?;
        Ok(arena)
    }

    pub(super) fn region(&self) -> &DmaRegion {
        self.span.region()
    }

    /// Cuts a piece of `len` bytes whose address is congruent to `phase` modulo `align`, behind a gap.
    pub(super) fn piece(&mut self, len: u32, align: u64, phase: u64) -> Result<Piece, End> {
        let align = align.max(64);
        let start = self.used.next_multiple_of(align) + align + phase % align;
        let end = start + u64::from(len);
        if end + align > self.span.len().0 {
            return fail(format!("the case's arena of {:?} is too small: a bug of the suite", self.span.len()));
        }
        self.used = end;
        let piece = Piece { at: start, len };
        self.pieces.push(piece);
        Ok(piece)
    }

    /// The piece as an I/O names it.
    pub(super) fn segment(&self, piece: Piece) -> Result<MemorySegment, End> {
        let place = self.span.place().checked_add(ByteLen(piece.at));
        match place {
            Some(place) => Ok(MemorySegment { place, len: piece.len, region: self.span.region().id() }),
            None => fail("a piece outside of its arena: a bug of the suite"),
        }
    }

    pub(super) fn read(&self, piece: Piece) -> Result<Vec<u8>, End> {
        let mut bytes = vec![0; piece.len as usize];
        match self.span.read(piece.at, &mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) => fail(error.to_string()),
        }
    }

    pub(super) fn write(&self, piece: Piece, bytes: &[u8]) -> CaseResult {
        self.span.write(piece.at, bytes).or_else(|error| fail(error.to_string()))
    }

    /// Makes a piece hold guard bytes again.
    pub(super) fn clear(&self, piece: Piece) -> CaseResult {
        self.fill(piece.at, u64::from(piece.len), GUARD)
    }

    fn fill(&self, at: u64, len: u64, byte: u8) -> CaseResult {
        self.span.fill(at, len, byte).or_else(|error| fail(error.to_string()))
    }

    /// Everything outside the pieces still holds guard bytes.
    pub(super) fn check_guards(&self) -> CaseResult {
        let mut whole = vec![0; index(self.span.len().0)];
        self.span.read(0, &mut whole).or_else(|error| fail(error.to_string()))?;
        for piece in &self.pieces {
            let range = index(piece.at)..index(piece.at + u64::from(piece.len));
            whole.get_mut(range).into_iter().for_each(|bytes| bytes.fill(GUARD));
        }
        match whole.iter().position(|byte| *byte != GUARD) {
            None => Ok(()),
            Some(at) => {
                fail(format!("memory at arena byte {at}, outside of every piece, was written: {:?}", self.pieces))
            }
        }
    }

    /// Everything, pieces included, as it is now.
    pub(super) fn snapshot(&self) -> Result<Vec<u8>, End> {
        let mut whole = vec![0; index(self.span.len().0)];
        match self.span.read(0, &mut whole) {
            Ok(()) => Ok(whole),
            Err(error) => fail(error.to_string()),
        }
    }
}
