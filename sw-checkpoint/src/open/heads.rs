//! Heads by the engine: one range, or many small ones at once.

use std::collections::VecDeque;

use straightway::{Destination, Engine, Error, ErrorKind, Memory, Object, Pending, Verb};

use crate::ranges::Ranges;

/// Small reads in flight: what a disk needs to be busy (its queue is deeper than that of large reads).
const HEADS_IN_FLIGHT: usize = 64;

/// Two ranges with at most this many bytes between them are read as one: one more read costs a disk as much.
const GAP_MAX_BYTES: u64 = 64 << 10;

/// Longest read of several ranges together.
const TOGETHER_MAX_BYTES: u64 = 1 << 20;

/// Blocks that reads of heads begin and end on, so that direct ones bounce nothing.
const BLOCK_BYTES: u64 = 4096;

/// Reads at most `len` bytes from `offset`: fewer where the object ends.
pub(crate) fn read_range(engine: &Engine, object: &Object, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
    // The head may be asked for past the end of a short file: the reader of heads says so better than a range check.
    let len = len.min(object.len().saturating_sub(offset));
    if len == 0 {
        return Ok(Vec::new());
    }
    let memory = engine.allocate(Destination::Host, len, offset)?;
    let memory = engine.read(object, offset, memory).wait().ok()?.into_memory();
    let memory = memory.ok_or_else(|| Error::new(ErrorKind::Protocol, Verb::Read).at(object.name()))?;
    engine.copy_range_to_host(&memory, 0, len)
}

/// Bytes of an object that were fetched: where they begin, and they. Sorted, and apart.
pub(crate) type Fetched = Vec<(u64, Vec<u8>)>;

/// Fetches ranges (first byte, length), which are sorted, in as few reads as make sense, many at a time.
pub(crate) fn fetch(engine: &Engine, object: &Object, ranges: &[(u64, u64)]) -> Result<Fetched, Error> {
    let mut fetched = Vec::new();
    let mut running: VecDeque<(u64, u64, Pending)> = VecDeque::with_capacity(HEADS_IN_FLIGHT);
    let land = |read: Option<(u64, u64, Pending)>, fetched: &mut Fetched| -> Result<(), Error> {
        let Some((offset, len, pending)) = read else { return Ok(()) };
        let memory: Option<Memory> = pending.wait().ok()?.into_memory();
        let memory = memory.ok_or_else(|| Error::new(ErrorKind::Protocol, Verb::Read).at(object.name()))?;
        fetched.push((offset, engine.copy_range_to_host(&memory, 0, len)?));
        Ok(())
    };
    for (offset, len) in together(ranges, object.len()) {
        if running.len() == HEADS_IN_FLIGHT {
            land(running.pop_front(), &mut fetched)?;
        }
        let memory = engine.allocate(Destination::Host, len, offset)?;
        running.push_back((offset, len, engine.read(object, offset, memory).start()));
    }
    while !running.is_empty() {
        land(running.pop_front(), &mut fetched)?;
    }
    Ok(fetched)
}

/// Sorted ranges widened to whole blocks, neighbours joined, inside `end`.
fn together(ranges: &[(u64, u64)], end: u64) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for &(offset, len) in ranges {
        let from = offset - offset % BLOCK_BYTES;
        let to = offset.saturating_add(len).checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX).min(end);
        if from >= to {
            continue;
        }
        match joined.last_mut() {
            Some((start, last))
                if from <= last.saturating_add(GAP_MAX_BYTES) && to.max(*last) - *start <= TOGETHER_MAX_BYTES =>
            {
                *last = to.max(*last);
            }
            // Never twice: what the one before has is not read again.
            Some((_, last)) if from < *last => {
                let from = *last;
                if to > from {
                    joined.push((from, to));
                }
            }
            _ => joined.push((from, to)),
        }
    }
    joined.into_iter().map(|(from, to)| (from, to - from)).collect()
}

/// A part of an object, some of which was fetched before.
pub(crate) struct ObjectRanges<'e> {
    engine: &'e Engine,
    object: &'e Object,
    base: u64,
    len: u64,
    fetched: &'e [(u64, Vec<u8>)],
}

impl<'e> ObjectRanges<'e> {
    /// All of it.
    pub(crate) fn whole(engine: &'e Engine, object: &'e Object) -> Self {
        Self { engine, object, base: 0, len: object.len(), fetched: &[] }
    }

    /// `len` bytes from `base`, which lie inside.
    pub(crate) const fn part(
        engine: &'e Engine,
        object: &'e Object,
        (base, len): (u64, u64),
        fetched: &'e [(u64, Vec<u8>)],
    ) -> Self {
        Self { engine, object, base, len, fetched }
    }

    /// What was fetched of a range, if all of it was, in at most two pieces.
    fn near(&self, from: u64, len: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut at = self.fetched.partition_point(|(offset, _)| *offset <= from).checked_sub(1)?;
        while (bytes.len() as u64) < len {
            let (offset, piece) = self.fetched.get(at)?;
            let skip = usize::try_from((from + bytes.len() as u64).checked_sub(*offset)?).ok()?;
            let rest = piece.get(skip..).filter(|rest| !rest.is_empty())?;
            let missing = usize::try_from(len).ok()? - bytes.len();
            bytes.extend_from_slice(&rest[..missing.min(rest.len())]);
            at += 1;
        }
        Some(bytes)
    }
}

impl Ranges for ObjectRanges<'_> {
    type Error = Error;

    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
        let from = self.base.saturating_add(offset);
        if let Some(bytes) = self.near(from, len) {
            return Ok(bytes);
        }
        let bytes = read_range(self.engine, self.object, from, len)?;
        if bytes.len() as u64 == len {
            return Ok(bytes);
        }
        Err(Error::new(ErrorKind::ShortData, Verb::Read)
            .at(self.object.name())
            .in_range(from, len)
            .detail("the file ends inside its head")
            .remedy("fetch the file again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_near_each_other_are_one_read_and_no_byte_is_read_twice() {
        assert_eq!(together(&[(10, 100), (5_000, 10), (200_000, 1)], 1 << 30), [(0, 8192), (196_608, 4096)]);
        assert_eq!(together(&[(0, 10), (4_000, 10_000_000)], 5_000), [(0, 5_000)]);
        // Too long to be one read.
        assert_eq!(together(&[(0, 5_000), (8_000, 2_000_000)], 1 << 30), [(0, 8192), (8192, 2_002_944)]);
        assert_eq!(together(&[(9_000, 10)], 5_000), []);
        let many: Vec<(u64, u64)> = (0..10_000).map(|at| (at * 5_000, 4_096)).collect();
        let reads = together(&many, u64::MAX);
        assert!(reads.iter().all(|(_, len)| *len <= TOGETHER_MAX_BYTES));
        assert!(reads.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        assert!(reads.len() < 60, "{}", reads.len());
    }
}
