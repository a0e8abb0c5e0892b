//! Bytes of an index file, read as they are needed and kept within a bound.
//!
//! The file is cut into blocks of one size. A request names all bytes that it wants; the blocks that are missing are read
//! together, by the engine, and the request has them all in hand ([`View`]) whatever the cache drops meanwhile. Nothing is mapped:
//! a file that was cut after it was opened is an error of a read, not a signal.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use straightway::{Destination, Engine, Error, ErrorKind, Object, Verb};

use crate::formats::Extent;

/// A place that bytes come from.
pub(super) trait Source: Send + Sync {
    /// Its name, for errors.
    fn name(&self) -> &str;

    /// Bytes that it has.
    fn len(&self) -> u64;

    /// Reads each of `extents`, all of which it has.
    fn read(&self, extents: &[Extent]) -> Result<Vec<Box<[u8]>>, Error>;
}

/// An object of the engine's.
pub(super) struct FromEngine {
    pub engine: Engine,
    pub object: Object,
}

/// Bytes of one read of several extents at most; more are read in turns.
const TURN_BYTES: u64 = 16 << 20;
/// The unit of parts of one allocation, so that reads past the page cache land in place.
const PART_UNIT: u64 = 4096;

impl FromEngine {
    /// Reads extents into one piece of memory, each at a place of its own.
    fn turn(&self, extents: &[Extent], whole: u64, to: &mut Vec<Box<[u8]>>) -> Result<(), Error> {
        let (region, start) = self.engine.allocate(Destination::Host, whole.max(PART_UNIT), 0)?.share();
        let mut at = start;
        let mut parts = Vec::with_capacity(extents.len());
        for extent in extents.iter().filter(|extent| extent.len > 0) {
            let skew = extent.offset % PART_UNIT;
            parts.push((extent.offset, region.part(at + skew, extent.len)?));
            at += (skew + extent.len).next_multiple_of(PART_UNIT);
        }
        // One operation, which this thread drives: its parts are in flight together, and none costs a thread switch.
        let memories = match parts.is_empty() {
            true => Vec::new(),
            false => self.engine.read_vectored(&self.object, parts).wait().ok()?.into_memories(),
        };
        let mut memories = memories.into_iter();
        for extent in extents {
            let mut bytes = vec![0; usize::try_from(extent.len).unwrap_or(0)].into_boxed_slice();
            if let Some(memory) = (extent.len > 0).then(|| memories.next()).flatten() {
                memory.read(0, &mut bytes)?;
            }
            to.push(bytes);
        }
        Ok(())
    }
}

impl Source for FromEngine {
    fn name(&self) -> &str {
        self.object.name()
    }

    fn len(&self) -> u64 {
        self.object.len()
    }

    fn read(&self, extents: &[Extent]) -> Result<Vec<Box<[u8]>>, Error> {
        let mut all = Vec::with_capacity(extents.len());
        let needs = |extent: &Extent| (extent.offset % PART_UNIT + extent.len).next_multiple_of(PART_UNIT);
        let mut rest = extents;
        while !rest.is_empty() {
            let mut whole = 0;
            let mut count = 0;
            for extent in rest {
                if count > 0 && whole + needs(extent) > TURN_BYTES {
                    break;
                }
                whole += needs(extent);
                count += 1;
            }
            let (turn, later) = rest.split_at(count);
            self.turn(turn, whole, &mut all)?;
            rest = later;
        }
        Ok(all)
    }
}

/// Most bytes of blocks that are read as one.
const RUN_BYTES: u64 = 1 << 20;

/// Bytes in memory.
pub(super) struct FromMemory(pub Vec<u8>);

impl Source for FromMemory {
    fn name(&self) -> &str {
        "memory"
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, extents: &[Extent]) -> Result<Vec<Box<[u8]>>, Error> {
        let one = |extent: &Extent| {
            let from = usize::try_from(extent.offset).ok()?;
            let to = from.checked_add(usize::try_from(extent.len).ok()?)?;
            self.0.get(from..to).map(Box::from)
        };
        let short = || Error::new(ErrorKind::ShortData, Verb::Read).at("memory");
        extents.iter().map(|extent| one(extent).ok_or_else(short)).collect()
    }
}

/// See the module documentation.
pub(super) struct Blocks {
    source: Box<dyn Source>,
    /// Bytes of a block.
    size: u64,
    kept: Mutex<Kept>,
}

/// A block and its number.
type Numbered = (u64, Arc<[u8]>);

struct Kept {
    blocks: HashMap<u64, Arc<[u8]>>,
    /// Oldest first.
    order: VecDeque<u64>,
    most: usize,
}

/// Bytes that one request asked for.
pub(super) struct View {
    size: u64,
    blocks: HashMap<u64, Arc<[u8]>>,
}

impl Blocks {
    /// Blocks of `size` bytes, of which `kept_bytes` are kept.
    pub fn new(source: Box<dyn Source>, size: u64, kept_bytes: u64) -> Self {
        let most = usize::try_from(kept_bytes / size).unwrap_or(usize::MAX).max(1);
        Self { source, size, kept: Mutex::new(Kept { blocks: HashMap::new(), order: VecDeque::new(), most }) }
    }

    pub fn source(&self) -> &dyn Source {
        &*self.source
    }

    /// Gets every block that `wanted` touches.
    ///
    /// # Errors
    /// `ShortData` for bytes that the file does not have; those of reading.
    pub fn view(&self, wanted: impl IntoIterator<Item = Extent>) -> Result<View, Error> {
        let len = self.source.len();
        let mut blocks = HashMap::new();
        let mut missing = Vec::new();
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            for extent in wanted.into_iter().filter(|extent| extent.len > 0) {
                let last = extent.offset.checked_add(extent.len - 1).filter(|last| *last < len);
                let last = last.ok_or_else(|| self.short(extent))?;
                for number in extent.offset / self.size..=last / self.size {
                    match (blocks.contains_key(&number), kept.blocks.get(&number)) {
                        (true, _) => {}
                        (false, Some(block)) => drop(blocks.insert(number, Arc::clone(block))),
                        (false, None) => missing.push(number),
                    }
                }
            }
        }
        missing.sort_unstable();
        missing.dedup();
        let fresh = self.read(&missing)?;
        self.keep(&fresh);
        blocks.extend(fresh);
        Ok(View { size: self.size, blocks })
    }

    /// Reads blocks, those that follow each other at once.
    fn read(&self, numbers: &[u64]) -> Result<Vec<Numbered>, Error> {
        let most = (RUN_BYTES / self.size).max(1);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for number in numbers {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == *number && *count < most => *count += 1,
                _ => runs.push((*number, 1)),
            }
        }
        let extent = |(first, count): &(u64, u64)| {
            let offset = first * self.size;
            Extent { offset, len: (count * self.size).min(self.source.len() - offset) }
        };
        let extents: Vec<Extent> = runs.iter().map(extent).collect();
        let read = if extents.is_empty() { Vec::new() } else { self.source.read(&extents)? };
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        let blocks = runs.iter().zip(&read).flat_map(|((first, _), bytes)| (*first..).zip(bytes.chunks(size)));
        Ok(blocks.map(|(number, block)| (number, Arc::from(block))).collect())
    }

    fn keep(&self, fresh: &[Numbered]) {
        if fresh.is_empty() {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, block) in fresh {
            if kept.blocks.insert(*number, Arc::clone(block)).is_none() {
                kept.order.push_back(*number);
            }
            while kept.blocks.len() > kept.most {
                let Some(oldest) = kept.order.pop_front() else { break };
                kept.blocks.remove(&oldest);
            }
        }
    }

    fn short(&self, extent: Extent) -> Error {
        Error::new(ErrorKind::ShortData, Verb::Read)
            .at(self.source.name())
            .in_range(extent.offset, extent.len)
            .detail(format!("the index ends before, after {} bytes", self.source.len()))
            .remedy("it was cut or damaged; index the dataset again")
    }
}

impl View {
    /// Bytes that were asked for; those that were not are left out.
    pub fn bytes(&self, extent: Extent) -> Vec<u8> {
        let mut all = Vec::with_capacity(usize::try_from(extent.len).unwrap_or(0));
        let mut at = extent.offset;
        let end = extent.offset.saturating_add(extent.len);
        while at < end {
            let number = at / self.size;
            let Some(block) = self.blocks.get(&number) else { break };
            let start = number * self.size;
            let from = usize::try_from(at - start).unwrap_or(usize::MAX);
            let until = usize::try_from((end - start).min(self.size)).unwrap_or(usize::MAX);
            all.extend_from_slice(block.get(from..until.min(block.len())).unwrap_or_default());
            at = start + self.size;
        }
        all
    }

    /// `N` bytes that were asked for.
    pub fn word<const N: usize>(&self, offset: u64) -> [u8; N] {
        let start = offset / self.size * self.size;
        let from = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let inside = self.blocks.get(&(start / self.size)).and_then(|block| block.get(from..)?.first_chunk::<N>());
        match inside {
            Some(word) => *word,
            // Over the edge of a block: words of Arrow are aligned, so that this is a file of another writer.
            None => self.bytes(Extent { offset, len: N as u64 }).first_chunk::<N>().copied().unwrap_or([0; N]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_kept_the_bytes_are_those_of_the_file() {
        let file: Vec<u8> = (0..1003u32).map(|at| (at % 251).to_le_bytes()[0]).collect();
        for kept in [0, 64, 10_000] {
            let blocks = Blocks::new(Box::new(FromMemory(file.clone())), 32, kept);
            for (offset, len) in [(0, 1), (31, 2), (990, 13), (5, 900), (0, 1003), (64, 32)] {
                let extents = [Extent { offset, len }, Extent { offset: 7, len: 8 }];
                let view = blocks.view(extents).unwrap();
                let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
                assert_eq!(view.bytes(extents[0]), file[range]);
                assert_eq!(view.word::<8>(7), file[7..15]);
            }
            let view = blocks.view([Extent { offset: 28, len: 8 }]).unwrap();
            assert_eq!(view.word::<8>(28), file[28..36]);
            let kept = blocks.kept.lock().unwrap();
            assert!(kept.blocks.len() <= kept.most);
        }
    }

    #[test]
    fn bytes_that_are_not_there_are_told() {
        let blocks = Blocks::new(Box::new(FromMemory(vec![0; 100])), 32, 64);
        for (offset, len) in [(100, 1), (99, 2), (u64::MAX, 2), (0, u64::MAX)] {
            let error = blocks.view([Extent { offset, len }]).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::ShortData);
        }
        assert!(blocks.view([Extent { offset: 100, len: 0 }]).is_ok());
    }
}
