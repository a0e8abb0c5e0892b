//! Moving a range in pieces, several under way, in order, with bounded memory.
//!
//! ```text
//!   range ─► Cuts ─► [read][read][read]… ─► the oldest is waited for ─► consumer ─► its memory goes to the next read
//! ```
//!
//! Pieces start on multiples of their length (but for the first), so that only the ends of the range are ragged.

use std::{collections::VecDeque, ops::Range};

use straightway::{Buffer, Destination, Engine, Memory, Object, Pending, Policy, checksum::Algorithm};

use crate::{
    args::Pipeline,
    fail::{Exit, Fail},
    pattern,
    route::Ways,
    signals,
};

/// Checksum by which copies are compared: 64 bits, cheap on every core.
pub const CHECKSUM: Algorithm = Algorithm::Crc64Nvme;
/// Memory is placed congruent to the object's offset modulo this many bytes: the largest block of direct I/O.
const CONGRUENCE_BYTES: u64 = 4096;

/// A range cut into pieces.
#[derive(Clone, Debug)]
pub struct Cuts {
    rest: Range<u64>,
    piece: u64,
}

impl Cuts {
    /// `range` in pieces of at most `piece` bytes, which is not 0.
    pub fn new(range: Range<u64>, piece: u64) -> Self {
        Self { rest: range, piece }
    }
}

impl Iterator for Cuts {
    /// Offset and length.
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let Range { start, end } = self.rest;
        if start >= end {
            return None;
        }
        let len = (self.piece - start % self.piece).min(end - start);
        self.rest.start = start + len;
        Some((start, len))
    }
}

/// Host memory for pieces, used again where it fits.
pub struct Spare<'a> {
    engine: &'a Engine,
    kept: Vec<Memory>,
}

impl<'a> Spare<'a> {
    /// Nothing kept yet.
    pub fn new(engine: &'a Engine) -> Self {
        Self { engine, kept: Vec::new() }
    }

    /// Memory for `len` bytes at `offset` of an object.
    ///
    /// # Errors
    /// What allocation gives.
    pub fn take(&mut self, offset: u64, len: u64) -> Result<Memory, Fail> {
        let fits =
            |memory: &Memory| memory.len() == len && memory.address() % CONGRUENCE_BYTES == offset % CONGRUENCE_BYTES;
        match self.kept.iter().position(fits) {
            Some(index) => Ok(self.kept.swap_remove(index)),
            // What is kept does not fit any more: it goes before more is taken, so that memory stays bounded.
            None => {
                self.kept.pop();
                Ok(self.engine.allocate(Destination::Host, len, offset)?)
            }
        }
    }

    /// Gives memory back.
    pub fn put(&mut self, memory: Memory) {
        self.kept.push(memory);
    }
}

/// A piece that was moved.
pub struct Piece {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Its checksum; 0 if none was asked for.
    pub checksum: u64,
    /// Its memory.
    pub memory: Memory,
}

/// Waits for a started piece and notes its way.
///
/// # Errors
/// The operation's.
pub fn finish((offset, len): (u64, u64), pending: Pending, ways: &mut Ways) -> Result<Piece, Fail> {
    let done = pending.wait().ok()?;
    ways.add(&done.path);
    let checksum = done.checksum.unwrap_or_default();
    let memory = done.into_memory().ok_or_else(|| withheld(len, offset))?;
    Ok(Piece { offset, len, checksum, memory })
}

/// The failure for memory that did not come back with a success, which the engine rules out.
pub fn withheld(len: u64, offset: u64) -> Fail {
    Fail::new(Exit::Failed, "withheld", format!("the memory of {len} bytes at {offset} did not come back"), "")
}

/// Reads `range` of `object` and gives each piece to `each`, in order; `each` gives its memory back.
///
/// # Errors
/// Of reading; of `each`; an interrupt.
pub fn read_in_order(
    (engine, object): (&Engine, &Object),
    range: Range<u64>,
    pipeline: Pipeline,
    policy: Policy,
    mut each: impl FnMut(Piece) -> Result<Memory, Fail>,
) -> Result<Ways, Fail> {
    let mut cuts = Cuts::new(range, pipeline.piece);
    let mut spare = Spare::new(engine);
    let mut window: VecDeque<(u64, u64, Pending)> = VecDeque::with_capacity(usize::from(pipeline.depth));
    let mut ways = Ways::default();
    loop {
        signals::requested()?;
        while window.len() < usize::from(pipeline.depth) {
            let Some((offset, len)) = cuts.next() else { break };
            let memory = spare.take(offset, len)?;
            let request = engine.read(object, offset, memory).policy(policy).checksum(CHECKSUM);
            window.push_back((offset, len, request.start()));
        }
        let Some((offset, len, pending)) = window.pop_front() else { return Ok(ways) };
        spare.put(each(finish((offset, len), pending, &mut ways)?)?);
    }
}

/// Host memory filled with the pattern.
///
/// # Errors
/// `Unsupported` for memory that has no slices.
pub fn filled(memory: Memory, seed: u64, offset: u64) -> Result<Memory, Fail> {
    let mut buffer = buffer_of(memory)?;
    pattern::fill(seed, offset, buffer.as_mut_slice());
    Ok(buffer.into())
}

/// Host memory compared with the pattern.
///
/// # Errors
/// Verification, with the first byte that differs; `Unsupported` for memory that has no slices.
pub fn compared(memory: Memory, seed: u64, offset: u64, name: &str) -> Result<Memory, Fail> {
    let buffer = buffer_of(memory)?;
    match pattern::first_difference(seed, offset, buffer.as_slice()) {
        None => Ok(buffer.into()),
        Some(at) => Err(pattern::mismatch(name, at, seed)),
    }
}

/// Host memory with slices.
///
/// # Errors
/// `Unsupported` for memory that has none.
pub fn buffer_of(memory: Memory) -> Result<Buffer, Fail> {
    memory.into_buffer().map_err(|memory| {
        Fail::new(Exit::Unsupported, "unsupported", format!("{memory} has no slices"), "use --into host")
    })
}

/// A checksum that grows piece by piece, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum(u64);

impl Default for Sum {
    fn default() -> Self {
        Self(CHECKSUM.of(&[]))
    }
}

impl Sum {
    /// Adds the next `len` bytes by their checksum.
    pub fn add(&mut self, value: u64, len: u64) {
        self.0 = CHECKSUM.combine(self.0, value, len);
    }

    /// The checksum so far.
    pub fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_cover_the_range_and_start_on_multiples() {
        let cuts: Vec<_> = Cuts::new(10..100, 32).collect();
        assert_eq!(cuts, [(10, 22), (32, 32), (64, 32), (96, 4)]);
        assert_eq!(Cuts::new(5..5, 32).next(), None);
        assert_eq!(Cuts::new(0..32, 32).collect::<Vec<_>>(), [(0, 32)]);
    }

    #[test]
    fn sums_of_pieces_are_the_sum_of_the_whole() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut sum = Sum::default();
        for part in bytes.chunks(100) {
            sum.add(CHECKSUM.of(part), part.len() as u64);
        }
        assert_eq!(sum.value(), CHECKSUM.of(&bytes));
    }
}
