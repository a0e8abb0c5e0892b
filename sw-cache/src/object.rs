//! An object that is read through the cache.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use sw_engine::{
    Error, Extent, Hold, Resolve,
    seam::{Landed, Part, Tee},
};

use crate::{
    cache::{Inner, State},
    fill::Asked,
    index::Word,
    key::{BlockKey, Named, ObjectKey},
    status::{Evicted, Pinning},
};

/// Which member of the object is itself, and which the data file.
const ORIGIN: u32 = 0;
const DATA: u32 = 1;

/// Bytes that one operation has compared with their checksums at most; what is more of it is read from where the object is. The lane
/// waits for it.
const CHECKED_MAX: u64 = 256 << 20;

/// Reads of an object where it is, past the cache; what comes is given to [`Tee::landed`] on its way to nobody.
pub trait Source: Send + Sync {
    /// Reads a range.
    ///
    /// *Blocking*.
    ///
    /// # Errors
    /// Those of the read.
    fn read(&self, offset: u64, len: u64) -> Result<(), Error>;
}

/// An object in one version, of which a cache has some blocks and gets others.
pub struct Cached {
    inner: Arc<Inner>,
    key: ObjectKey,
    named: Arc<Named>,
    source: OnceLock<Arc<dyn Source>>,
}

impl fmt::Debug for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached").field("named", &self.named).finish_non_exhaustive()
    }
}

/// See [`Cached::warming`].
#[derive(Debug)]
pub struct Warming {
    inner: Arc<Inner>,
    key: ObjectKey,
}

impl Drop for Warming {
    fn drop(&mut self) {
        if !self.inner.fork.is_child() {
            self.inner.state().warmed.remove(&self.key);
        }
    }
}

/// Slots that an operation reads.
struct Held {
    inner: Arc<Inner>,
    slots: Vec<u32>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // In a child of the process nobody may be left to give the lock back.
        if !self.inner.fork.is_child() {
            let mut state = self.inner.state();
            self.slots.iter().for_each(|slot| state.slots.release(*slot));
        }
    }
}

impl Cached {
    pub(crate) fn new(inner: Arc<Inner>, named: Named) -> Self {
        Self { inner, key: named.key(), named: Arc::new(named), source: OnceLock::new() }
    }

    /// Says how blocks are read of which parts were asked for twice. Without it they are not.
    pub fn set_source(&self, source: Arc<dyn Source>) {
        let _ = self.source.set(source);
    }

    /// Lets go of all that is kept of it, and of what is on its way: its bytes are found to be wrong.
    ///
    /// *Blocking*: waits for the disk.
    pub fn forget(&self) -> Evicted {
        if self.inner.fork.is_child() {
            return Evicted::default();
        }
        self.inner.forget(|key, _| *key == self.key)
    }

    /// Says whether its blocks, those that come later too, go for others. With it pinned, other versions of the name are free.
    ///
    /// *Blocking*: waits for the disk.
    pub fn set_pinning(&self, pinning: Pinning) {
        if self.inner.fork.is_child() {
            return;
        }
        let changing = self.inner.changing();
        let change = {
            let mut state = self.inner.state();
            let pinned = pinning == Pinning::Pinned;
            if pinned {
                state.enter(self.key, &self.named);
            }
            let others = state.objects.iter().filter(|(key, known)| {
                let is_name = (&known.named.realm, &known.named.name) == (&self.named.realm, &self.named.name);
                pinned && is_name && **key != self.key
            });
            let others: Vec<ObjectKey> = others.map(|(key, _)| *key).collect();
            let mut freed = state.change_pins(&others, Pinning::Free);
            let own = state.change_pins(&[self.key], pinning);
            freed.gone.extend(own.gone);
            freed.objects_gone.extend(own.objects_gone);
            freed.objects.extend(own.objects);
            freed
        };
        self.inner.commit(&changing, change);
    }

    /// Its blocks that come are to stay, until that is dropped: they do not come in one pass over everything.
    pub fn warming(&self) -> Warming {
        self.inner.state().warmed.insert(self.key);
        Warming { inner: self.inner.clone(), key: self.key }
    }

    /// What it is.
    pub fn named(&self) -> &Named {
        &self.named
    }

    /// The next range from `offset` on of which the cache has nothing, in whole blocks and at most `most` bytes; `None` if it has all
    /// to the end.
    pub fn next_missing(&self, offset: u64, most: u64) -> Option<(u64, u64)> {
        let (block, state) = (self.inner.block_bytes(), self.inner.state());
        let is_kept = |at: u64| self.block(at).is_some_and(|key| state.blocks.contains_key(&key));
        let mut start = offset / block * block;
        while start < self.named.len && is_kept(start) {
            start += block;
        }
        let limit = self.named.len.min(start.saturating_add(most.max(block)));
        let mut end = start;
        while end < limit && !is_kept(end) {
            end += block;
        }
        (start < self.named.len).then(|| (start, end.min(self.named.len) - start))
    }

    fn block(&self, at: u64) -> Option<BlockKey> {
        let number = u32::try_from(at / self.inner.block_bytes()).ok()?;
        Some(BlockKey { object: self.key, number })
    }

    /// The parts of a range by blocks: number, first byte in it, bytes.
    fn parts(&self, (offset, len): (u64, u64)) -> impl Iterator<Item = (BlockKey, u64, u64)> {
        let (block, end, object) = (self.inner.block_bytes(), offset + len, self.key);
        let numbers = offset / block..end.div_ceil(block);
        numbers.filter_map(move |number| {
            let (start, stop) = ((number * block).max(offset), ((number + 1) * block).min(end));
            let number = u32::try_from(number).ok()?;
            Some((BlockKey { object, number }, start % block, stop - start))
        })
    }

    /// Blocks of the ranges that are to be compared first, held so that they stay.
    fn unchecked(&self, state: &mut State, ranges: &[(u64, u64)]) -> Vec<(BlockKey, Word)> {
        let mut blocks = Vec::new();
        let mut left = CHECKED_MAX;
        for (key, ..) in ranges.iter().flat_map(|range| self.parts(*range)) {
            let Some(block) = state.blocks.get(&key).filter(|block| self.inner.needs_check(block)) else { continue };
            if left < u64::from(block.word.len) {
                break;
            }
            if blocks.last().is_none_or(|(last, _)| *last != key) {
                left -= u64::from(block.word.len);
                blocks.push((key, block.word));
            }
        }
        blocks.iter().for_each(|(_, word)| state.slots.hold(word.slot));
        blocks
    }

    fn locate(
        &self,
        state: &mut State,
        range: (u64, u64),
        is_checked: impl Fn(&BlockKey) -> bool,
        out: &mut Vec<Extent>,
        slots: &mut Vec<u32>,
    ) {
        let first = out.len();
        let mut at = range.0;
        for (key, inside, len) in self.parts(range) {
            let kept = state.blocks.get(&key).filter(|block| !self.inner.needs_check(block) || is_checked(&key));
            let word = kept.map(|block| block.word).filter(|word| inside + len <= u64::from(word.len));
            let extent = match word {
                Some(word) => {
                    state.slots.hold(word.slot);
                    slots.push(word.slot);
                    state.used(&key);
                    state.sums.hit_bytes += len;
                    Extent { member: DATA, at: u64::from(word.slot) * self.inner.block_bytes() + inside, len }
                }
                None => {
                    state.sums.missed_bytes += len;
                    Extent { member: ORIGIN, at, len }
                }
            };
            at += len;
            match out.get_mut(first..).and_then(<[Extent]>::last_mut) {
                Some(last) if last.member == extent.member && last.at + last.len == extent.at => last.len += len,
                _ => out.push(extent),
            }
        }
    }
}

impl Resolve for Cached {
    fn resolve(&self, ranges: &mut dyn Iterator<Item = (u64, u64)>, out: &mut Vec<Extent>) -> Hold {
        let ranges: Vec<(u64, u64)> = ranges.filter(|(_, len)| *len > 0).collect();
        if self.inner.fork.is_child() {
            out.extend(ranges.iter().map(|(at, len)| Extent { member: ORIGIN, at: *at, len: *len }));
            return Box::new(());
        }
        let mut held = Held { inner: self.inner.clone(), slots: Vec::new() };
        let mut state = self.inner.state();
        let checked = self.unchecked(&mut state, &ranges);
        if !checked.is_empty() {
            drop(state);
            self.inner.verify(&checked);
            state = self.inner.state();
            checked.iter().for_each(|(_, word)| state.slots.release(word.slot));
        }
        let checked: std::collections::HashSet<BlockKey> = checked.into_iter().map(|(key, _)| key).collect();
        for range in ranges {
            self.locate(&mut state, range, |key| checked.contains(key), out, &mut held.slots);
        }
        drop(state);
        Box::new(held)
    }

    fn failed(&self, extent: Extent) {
        if extent.member != DATA || self.inner.fork.is_child() {
            return;
        }
        let block = self.inner.block_bytes();
        let slots = extent.at / block..(extent.at + extent.len).div_ceil(block);
        self.inner.retire(|slot| slots.contains(&u64::from(slot)));
    }
}

impl Tee for Cached {
    fn landed(&self, Part { offset, len, of }: Part, bytes: &mut dyn Landed) {
        let end = self.named.len.min(offset.saturating_add(len.into()));
        if self.inner.fork.is_child() || offset >= end {
            return;
        }
        let block = self.inner.block_bytes();
        for (key, inside, len) in self.parts((offset, end - offset)) {
            let whole = block.min(self.named.len - u64::from(key.number) * block);
            // Below a block's size, which has 32 bits.
            let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
            let part = (narrow(inside), narrow(inside + len));
            let start = u64::from(key.number) * block;
            // Only the first part of a read speaks for it.
            let asked = match (of.start <= start || of.end >= start + whole, of.start == offset) {
                (true, _) => Asked::ToAnEnd,
                (false, true) => Asked::InTheMiddle,
                (false, false) => Asked::InTheMiddleBefore,
            };
            self.inner.take_part((&self.named, self.source.get()), (key, narrow(whole)), (part, asked), bytes);
        }
    }

    fn disown(&self) {
        self.forget();
    }
}
