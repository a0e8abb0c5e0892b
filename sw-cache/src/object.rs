//! An object that is read through the cache.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use sw_engine::{
    Error, Extent, Hold, Later, Resolve,
    seam::{Landed, Part, Tee},
};

use crate::{
    cache::{Inner, State},
    config::Verify,
    fill::Asked,
    index::Word,
    key::{BlockKey, Named, ObjectKey},
    shared::{
        claims::{OWNER, Waits, now},
        guest::Found,
        wire::{FIND_MAX, Reply, Request, Wanted},
    },
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
    waits: Mutex<Waits>,
}

impl fmt::Debug for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached").field("named", &self.named).finish_non_exhaustive()
    }
}

/// Blocks of a range that is told to be missing, at most.
const MISSING_MAX: u64 = 1 << 16;

/// Another process brings what is asked for, or is about to say where it is.
struct Away;

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

/// Slots that an operation of the owner's reads, and blocks that it brings.
struct Held {
    inner: Arc<Inner>,
    slots: Vec<u32>,
    claimed: Vec<BlockKey>,
}

/// The same of a guest's.
struct Lent {
    inner: Arc<Inner>,
    object: ObjectKey,
    slots: Vec<u32>,
    claimed: Vec<u32>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.inner.fork.is_child() {
            return;
        }
        self.slots.iter().for_each(|slot| self.inner.locks.release(*slot));
        let object = self.object;
        let keys = self.inner.not_busy(self.claimed.drain(..).map(|number| BlockKey { object, number }));
        if !keys.is_empty() {
            let numbers = keys.into_iter().map(|key| key.number).collect();
            self.inner.guest.tell(&Request::GiveBack { object, numbers });
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // In a child of the process nobody may be left to give the lock back.
        if !self.inner.fork.is_child() {
            let mut state = self.inner.state();
            self.slots.iter().for_each(|slot| state.slots.release(*slot));
            drop(state);
            if !self.claimed.is_empty() {
                self.inner.give_back(OWNER, self.claimed.drain(..));
            }
        }
    }
}

impl Inner {
    /// See [`Cached::set_pinning`].
    pub(crate) fn pin(&self, named: &Named, pinning: Pinning) {
        if !self.is_owner() {
            let _told = self.ask_owner(&Request::Pin { named: named.clone(), pinning });
            return;
        }
        let key = named.key();
        let changing = self.changing();
        let change = {
            let mut state = self.state();
            let pinned = pinning == Pinning::Pinned;
            if pinned {
                state.enter(key, named, self.clock.now());
            }
            let others = state.objects.iter().filter(|(other, known)| {
                let is_name = (&known.named.realm, &known.named.name) == (&named.realm, &named.name);
                pinned && is_name && **other != key
            });
            let others: Vec<ObjectKey> = others.map(|(key, _)| *key).collect();
            let mut freed = state.change_pins(&others, Pinning::Free);
            let own = state.change_pins(&[key], pinning);
            freed.gone.extend(own.gone);
            freed.objects_gone.extend(own.objects_gone);
            freed.objects.extend(own.objects);
            freed
        };
        self.commit(&changing, change);
    }
}

impl Cached {
    pub(crate) fn new(inner: Arc<Inner>, named: Named) -> Self {
        Self { inner, key: named.key(), named: Arc::new(named), source: OnceLock::new(), waits: Mutex::default() }
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
        let is_it = |key: &ObjectKey, _: &Named| *key == self.key;
        if self.inner.is_owner() {
            return self.inner.forget(is_it);
        }
        let _changing = self.inner.changing();
        self.inner.drop_fills(&is_it);
        self.inner.forget_far(self.key)
    }

    /// Says whether its blocks, those that come later too, go for others. With it pinned, other versions of the name are free.
    ///
    /// *Blocking*: waits for the disk.
    pub fn set_pinning(&self, pinning: Pinning) {
        if self.inner.fork.is_child() {
            return;
        }
        self.inner.pin(&self.named, pinning);
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
        if self.inner.is_owner() {
            return Self::missing(&self.inner, (&self.key, self.named.len), offset, most);
        }
        match self.inner.ask_owner(&Request::Missing { named: (*self.named).clone(), offset, most }) {
            Some(Reply::Range(range)) => range,
            _ => {
                let block = self.inner.block_bytes();
                let start = offset / block * block;
                (start < self.named.len).then(|| (start, most.max(block).min(self.named.len - start)))
            }
        }
    }

    /// The same of an object of so many bytes.
    pub(crate) fn missing(
        inner: &Inner,
        (object, len): (&ObjectKey, u64),
        offset: u64,
        most: u64,
    ) -> Option<(u64, u64)> {
        let (block, state) = (inner.block_bytes(), inner.state());
        let is_kept = |at: u64| {
            let number = u32::try_from(at / block);
            number.is_ok_and(|number| state.blocks.contains_key(&BlockKey { object: *object, number }))
        };
        let mut start = offset / block * block;
        while start < len && is_kept(start) {
            start += block;
        }
        // However much is asked for: nobody else comes to the state meanwhile.
        let most = most.clamp(block, block.saturating_mul(MISSING_MAX));
        let limit = len.min(start.saturating_add(most));
        let mut end = start;
        while end < limit && !is_kept(end) {
            end = end.saturating_add(block);
        }
        (start < len).then(|| (start, end.min(len) - start))
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

    /// Lays a range out: what `find` has a word for is in the data file. Gives the bytes that are there, and those that are not.
    fn lay(
        &self,
        range: (u64, u64),
        out: &mut Vec<Extent>,
        mut find: impl FnMut(&BlockKey) -> Option<Word>,
    ) -> (u64, u64) {
        let first = out.len();
        let (mut at, mut hit, mut missed) = (range.0, 0, 0);
        for (key, inside, len) in self.parts(range) {
            let word = find(&key).filter(|word| inside + len <= u64::from(word.len));
            let extent = match word {
                Some(word) => {
                    hit += len;
                    Extent { member: DATA, at: u64::from(word.slot) * self.inner.block_bytes() + inside, len }
                }
                None => {
                    missed += len;
                    Extent { member: ORIGIN, at, len }
                }
            };
            at += len;
            match out.get_mut(first..).and_then(<[Extent]>::last_mut) {
                Some(last) if last.member == extent.member && last.at + last.len == extent.at => last.len += len,
                _ => out.push(extent),
            }
        }
        (hit, missed)
    }

    /// Everything where it is.
    fn all_at_origin(ranges: &[(u64, u64)], out: &mut Vec<Extent>) -> Hold {
        out.extend(ranges.iter().map(|(at, len)| Extent { member: ORIGIN, at: *at, len: *len }));
        Box::new(())
    }

    /// Blocks of ranges, each once, and how much of each is wanted.
    fn wanted(&self, ranges: &[(u64, u64)]) -> Vec<(u32, Wanted)> {
        let block = self.inner.block_bytes();
        let mut blocks: Vec<(u32, Wanted)> = Vec::new();
        for (key, inside, len) in ranges.iter().flat_map(|range| self.parts(*range)) {
            let whole = block.min(self.named.len - u64::from(key.number) * block);
            let wanted = if inside == 0 && len == whole { Wanted::Whole } else { Wanted::Part };
            if let Some((_, how)) = blocks.last_mut().filter(|(last, _)| *last == key.number) {
                if wanted == Wanted::Whole {
                    *how = wanted;
                }
            } else if blocks.len() < FIND_MAX {
                blocks.push((key.number, wanted));
            } else {
                break;
            }
        }
        blocks
    }

    /// As the owner.
    fn resolve_own(&self, ranges: &[(u64, u64)], out: &mut Vec<Extent>) -> Result<Hold, Away> {
        let mut held = Held { inner: self.inner.clone(), slots: Vec::new(), claimed: Vec::new() };
        let now_s = self.inner.clock.now();
        let mut state = self.inner.state();
        if !self.inner.is_owner() {
            // Its engine was closed since.
            drop(state);
            return Ok(Self::all_at_origin(ranges, out));
        }
        let checked = self.unchecked(&mut state, ranges);
        if !checked.is_empty() {
            drop(state);
            self.inner.verify(&checked);
            state = self.inner.state();
            checked.iter().for_each(|(_, word)| state.slots.release(word.slot));
        }
        if state.fault.is_none() {
            held.claimed = self.claim(&mut state, ranges)?;
        }
        let checked: HashSet<BlockKey> = checked.into_iter().map(|(key, _)| key).collect();
        for range in ranges {
            let (hit, missed) = self.lay(*range, out, |key| {
                let block = state.blocks.get(key);
                let kept = block.filter(|block| !self.inner.needs_check(block) || checked.contains(key));
                let word = kept.map(|block| block.word).filter(|word| self.inner.is_readable(word))?;
                state.slots.hold(word.slot);
                held.slots.push(word.slot);
                state.used(key);
                Some(word)
            });
            state.sums.hit_bytes += hit;
            state.sums.missed_bytes += missed;
        }
        state.use_object(&self.key, now_s);
        drop(state);
        Ok(Box::new(held))
    }

    /// Says that this process brings what is missing, unless a guest brings some of it.
    fn claim(&self, state: &mut State, ranges: &[(u64, u64)]) -> Result<Vec<BlockKey>, Away> {
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        for (number, wanted) in self.wanted(ranges) {
            let key = BlockKey { object: self.key, number };
            match wanted {
                _ if state.blocks.contains_key(&key) => {}
                Wanted::Whole => whole.push(number),
                Wanted::Part => parts.push(number),
            }
        }
        if !state.claims.take(OWNER, self.key, (&whole, &parts), now()) {
            return Err(Away);
        }
        Ok(whole.into_iter().map(|number| BlockKey { object: self.key, number }).collect())
    }

    /// As a guest.
    fn resolve_lent(&self, ranges: &[(u64, u64)], out: &mut Vec<Extent>) -> Result<Hold, Away> {
        let inner = &self.inner;
        let blocks = self.wanted(ranges);
        let take = |words| self.take_locks(&blocks, words);
        let (lent, mut known) = match inner.guest.find(self.key, blocks.clone(), take) {
            Found::Away => return Ok(Self::all_at_origin(ranges, out)),
            Found::Later => return Err(Away),
            Found::Taken(taken) => taken,
        };
        if inner.config.verify == Verify::Always {
            self.leave_wrong(&mut known);
        }
        let (mut hit_bytes, mut missed_bytes) = (0, 0);
        for range in ranges {
            let (hit, missed) = self.lay(*range, out, |key| known.get(&key.number).copied());
            (hit_bytes, missed_bytes) = (hit_bytes + hit, missed_bytes + missed);
        }
        inner.guest.tell(&Request::Read { hit_bytes, missed_bytes });
        Ok(Box::new(lent))
    }

    /// Locks the slots that an owner told of blocks. Gives which it has of them.
    fn take_locks(&self, blocks: &[(u32, Wanted)], words: Vec<Option<Word>>) -> (Lent, HashMap<u32, Word>) {
        let mut lent = Lent { inner: self.inner.clone(), object: self.key, slots: Vec::new(), claimed: Vec::new() };
        let mut known = HashMap::new();
        for ((number, wanted), word) in blocks.iter().zip(words) {
            match word {
                Some(word) if self.inner.is_readable(&word) && self.inner.locks.hold(word.slot) => {
                    lent.slots.push(word.slot);
                    known.insert(*number, word);
                }
                None if *wanted == Wanted::Whole => lent.claimed.push(*number),
                _ => {}
            }
        }
        (lent, known)
    }

    /// Compares blocks, of which at most so many bytes: others are read from where the object is.
    fn leave_wrong(&self, known: &mut HashMap<u32, Word>) {
        let mut buffer = vec![0; sw_mem::index(self.inner.block_bytes())];
        let (mut left, mut slots) = (CHECKED_MAX, Vec::new());
        known.retain(|_, word| {
            let is_more = left < u64::from(word.len);
            left = left.saturating_sub(word.len.into());
            let is_right = !is_more && self.inner.is_right(word, &mut buffer);
            if !is_right && !is_more {
                slots.push(word.slot);
            }
            is_right
        });
        if !slots.is_empty() {
            self.inner.guest.tell(&Request::Failed { slots });
        }
    }
}

impl Resolve for Cached {
    fn resolve(&self, ranges: &mut dyn Iterator<Item = (u64, u64)>, out: &mut Vec<Extent>) -> Result<Hold, Later> {
        let ranges: Vec<(u64, u64)> = ranges.filter(|(_, len)| *len > 0).collect();
        if self.inner.fork.is_child() {
            return Ok(Self::all_at_origin(&ranges, out));
        }
        let operation = (ranges.first().map_or(0, |(at, _)| *at), ranges.iter().map(|(_, len)| len).sum());
        let resolved =
            if self.inner.is_owner() { self.resolve_own(&ranges, out) } else { self.resolve_lent(&ranges, out) };
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        match resolved {
            Ok(hold) => {
                waits.ended(operation);
                Ok(hold)
            }
            Err(Away) => match waits.wait(operation, now()) {
                Some(wait) => Err(Later(wait)),
                None => Ok(Self::all_at_origin(&ranges, out)),
            },
        }
    }

    fn failed(&self, extent: Extent) {
        if extent.member != DATA || self.inner.fork.is_child() {
            return;
        }
        let block = self.inner.block_bytes();
        let slots = extent.at / block..(extent.at + extent.len).div_ceil(block);
        if !self.inner.is_owner() {
            let slots = slots.filter_map(|slot| u32::try_from(slot).ok()).collect();
            return self.inner.guest.tell(&Request::Failed { slots });
        }
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
