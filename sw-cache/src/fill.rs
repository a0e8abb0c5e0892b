//! On the way to the disk: parts of blocks, whole blocks, and the threads that keep them.
//!
//! ```text
//!   landed ─► Partial ── whole ─► ready ─► filler: slot, bytes, sync, index
//!      │                            ▲
//!      └─ a part alone, twice ─► wanted ─► fetcher: reads the block, past the cache (its bytes land as any others)
//! ```
//!
//! All of it has a limit: blocks in memory (`fill_bytes`), blocks that are wanted, names of parts. What there is no room for is left.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use sw_engine::{Error, ErrorKind, Verb, seam::Landed};

use crate::{
    cache::{Cache, Inner},
    config::CacheConfig,
    key::{BlockKey, Named, ObjectKey},
    object::Source,
    rules::{Step, look_after},
    shared::{
        claims::now,
        guest::TEND,
        wire::{Reply, Request},
    },
};

/// Blocks that become durable together, at most.
const BATCH_MAX: usize = 32;
/// Blocks that wait to be read as a whole, at most.
const WANTED_MAX: usize = 256;
/// Parts of blocks that are remembered to have been asked for.
const TOUCHED_MAX: usize = 1 << 16;
/// Longest that the end of a cache waits for what is on its way.
const CLOSE_WAIT: Duration = Duration::from_secs(10);
/// Longest that one question whether all is kept takes.
const SETTLE_STEP: Duration = Duration::from_secs(5);
/// Bytes that direct I/O takes as a whole: blocks end on a multiple of it in the file.
const PAGE: usize = 4096;

/// A block of which some bytes are there.
struct Partial {
    bytes: Vec<u8>,
    /// Disjoint ranges that are there, sorted, none of which touch.
    have: Vec<(u32, u32)>,
    len: u32,
}

impl Partial {
    /// Adds a range; whether all is there.
    fn add(&mut self, (from, to): (u32, u32)) -> bool {
        let at = self.have.partition_point(|(_, end)| *end < from);
        let mut joined = (from, to);
        while let Some((start, end)) = self.have.get(at).copied().filter(|(start, _)| *start <= joined.1) {
            joined = (joined.0.min(start), joined.1.max(end));
            self.have.remove(at);
        }
        self.have.insert(at, joined);
        self.have == [(0, self.len)]
    }
}

/// One that is in memory, and of what.
struct Begun {
    named: Arc<Named>,
    partial: Arc<Mutex<Partial>>,
}

/// What a read wants of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// All from its beginning, or up to its end: what is missing comes with the next one, if somebody reads from one end to the other.
    ToAnEnd,
    /// A part with something missing on both sides.
    InTheMiddle,
    /// The same, of which an earlier piece spoke.
    InTheMiddleBefore,
}

/// A block that is whole.
pub(crate) struct Ready {
    pub(crate) key: BlockKey,
    pub(crate) named: Arc<Named>,
    pub(crate) len: u32,
    buffer: Vec<u8>,
    /// Whoever read it warms its object.
    pub(crate) is_warmed: bool,
}

impl Ready {
    /// Of a pass over everything, as far as is known.
    pub(crate) fn new(key: BlockKey, named: Arc<Named>, (len, buffer): (u32, Vec<u8>)) -> Self {
        Self { key, named, len, buffer, is_warmed: false }
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.len as usize).unwrap_or_default()
    }

    /// Its bytes, and zeros up to a page.
    pub(crate) fn padded(&self) -> &[u8] {
        self.buffer.get(..(self.len as usize).next_multiple_of(PAGE)).unwrap_or(&self.buffer)
    }
}

/// A block to be read as a whole.
struct Wanted {
    key: BlockKey,
    len: u32,
    source: Arc<dyn Source>,
}

#[derive(Default)]
struct Fill {
    partial: HashMap<BlockKey, Begun>,
    /// As they began; some may be gone.
    order: VecDeque<BlockKey>,
    ready: VecDeque<Ready>,
    /// Those that are ready or being kept.
    busy: HashSet<BlockKey>,
    spare: Vec<Vec<u8>>,
    wanted: VecDeque<Wanted>,
    touched: HashSet<BlockKey>,
    touched_order: VecDeque<BlockKey>,
    stop: bool,
    /// Threads that have not ended, of each kind.
    running: [u32; 2],
}

/// What a thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// What is on its way to the disk.
    Fills,
    /// Guests.
    Guests,
}

/// See the module documentation.
pub(crate) struct Fills {
    fill: Mutex<Fill>,
    /// Something to keep, or the end.
    ready: Condvar,
    /// Something to read, or the end.
    wanted: Condvar,
    /// Something was kept, or a thread ended.
    done: Condvar,
    blocks_max: usize,
}

impl Fills {
    pub(crate) fn new(config: &CacheConfig) -> Self {
        let blocks_max = sw_mem::index(config.fill_bytes / u64::from(config.block_bytes));
        let (ready, wanted, done) = (Condvar::new(), Condvar::new(), Condvar::new());
        Self { fill: Mutex::default(), ready, wanted, done, blocks_max }
    }

    /// Every section is operations on lists.
    fn lock(&self) -> MutexGuard<'_, Fill> {
        self.fill.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fill {
    fn in_memory(&self) -> usize {
        self.partial.len() + self.busy.len()
    }

    /// Whether a part of that block was asked for before.
    fn touch(&mut self, key: BlockKey) -> bool {
        if self.touched.remove(&key) {
            return true;
        }
        self.touched.insert(key);
        self.touched_order.push_back(key);
        while self.touched_order.len() > TOUCHED_MAX {
            if let Some(oldest) = self.touched_order.pop_front() {
                self.touched.remove(&oldest);
            }
        }
        false
    }

    fn put_spare(&mut self, buffer: Vec<u8>, blocks_max: usize) {
        if self.spare.len() < blocks_max {
            self.spare.push(buffer);
        }
    }

    /// Room for one more block: that of the block in parts which began first, if there is no other. Whether there is.
    fn make_room(&mut self, blocks_max: usize) -> bool {
        while self.in_memory() >= blocks_max {
            let Some(oldest) = self.order.pop_front() else { return false };
            self.partial.remove(&oldest);
        }
        true
    }

    fn begin(&mut self, named: &Arc<Named>, (key, len): (BlockKey, u32), block_bytes: usize) -> Arc<Mutex<Partial>> {
        let mut bytes = self.spare.pop().unwrap_or_else(|| vec![0; block_bytes]);
        // What was there before ends where this begins.
        bytes[len as usize..].fill(0);
        let partial = Arc::new(Mutex::new(Partial { bytes, have: Vec::new(), len }));
        self.partial.insert(key, Begun { named: named.clone(), partial: partial.clone() });
        self.order.push_back(key);
        if self.order.len() > 4 * (self.partial.len() + 16) {
            let Self { order, partial, .. } = self;
            order.retain(|key| partial.contains_key(key));
        }
        partial
    }
}

impl Inner {
    /// Drops what is in memory of objects, but for what is being kept.
    pub(crate) fn drop_fills(&self, which: &impl Fn(&ObjectKey, &Named) -> bool) {
        let mut fill = self.fills.lock();
        let Fill { partial, ready, busy, .. } = &mut *fill;
        partial.retain(|key, begun| !which(&key.object, &begun.named));
        ready.retain(|ready| {
            let is_left = !which(&ready.key.object, &ready.named);
            if !is_left {
                busy.remove(&ready.key);
            }
            is_left
        });
        drop(fill);
        self.fills.done.notify_all();
    }

    /// Takes bytes `part` of a block of `len` bytes from `bytes`, or leaves them.
    pub(crate) fn take_part(
        &self,
        (named, source): (&Arc<Named>, Option<&Arc<dyn Source>>),
        (key, len): (BlockKey, u32),
        (part, asked): ((u32, u32), Asked),
        bytes: &mut dyn Landed,
    ) {
        let partial = self.partial_for((named, source), (key, len), asked);
        let Some(partial) = partial else { return bytes.skip(part.1 - part.0) };
        let is_whole = {
            let mut partial = partial.lock().unwrap_or_else(PoisonError::into_inner);
            match partial.bytes.get_mut(part.0 as usize..part.1 as usize) {
                Some(to) => bytes.copy_to(to),
                // Another thread made it whole.
                None => bytes.skip(part.1 - part.0),
            }
            partial.add(part)
        };
        if !is_whole {
            return;
        }
        let mut fill = self.fills.lock();
        // It may have given way meanwhile.
        let is_ours = fill.partial.get(&key).is_some_and(|begun| Arc::ptr_eq(&begun.partial, &partial));
        if is_ours && fill.partial.remove(&key).is_some() {
            let buffer = std::mem::take(&mut partial.lock().unwrap_or_else(PoisonError::into_inner).bytes);
            fill.busy.insert(key);
            fill.ready.push_back(Ready::new(key, named.clone(), (len, buffer)));
            self.fills.ready.notify_one();
        }
    }

    /// The block that a part belongs to, if it is wanted.
    fn partial_for(
        &self,
        (named, source): (&Arc<Named>, Option<&Arc<dyn Source>>),
        (key, len): (BlockKey, u32),
        asked: Asked,
    ) -> Option<Arc<Mutex<Partial>>> {
        if !self.takes_fills() {
            return None;
        }
        {
            let state = self.state();
            if state.fault.is_some() || state.blocks.contains_key(&key) {
                return None;
            }
        }
        let mut fill = self.fills.lock();
        if fill.stop || fill.busy.contains(&key) {
            return None;
        }
        if let Some(known) = fill.partial.get(&key) {
            return Some(known.partial.clone());
        }
        if asked != Asked::ToAnEnd {
            if asked == Asked::InTheMiddle && fill.touch(key) {
                self.want(&mut fill, source, (key, len));
            }
            return None;
        }
        if !fill.make_room(self.fills.blocks_max) {
            drop(fill);
            self.state().sums.left += 1;
            return None;
        }
        Some(fill.begin(named, (key, len), sw_mem::index(self.block_bytes())))
    }

    fn want(&self, fill: &mut Fill, source: Option<&Arc<dyn Source>>, (key, len): (BlockKey, u32)) {
        let Some(source) = source.cloned() else { return };
        let is_known = fill.wanted.iter().any(|wanted| wanted.key == key);
        if !is_known && fill.wanted.len() < WANTED_MAX {
            fill.wanted.push_back(Wanted { key, len, source });
            self.fills.wanted.notify_one();
        }
    }

    /// A block from a guest, if there is room for it within `limit`. Whether there is, or it is there already.
    pub(crate) fn enqueue(&self, ready: Ready, limit: Duration) -> bool {
        let is_kept = {
            let state = self.state();
            state.fault.is_none().then(|| state.blocks.contains_key(&ready.key))
        };
        let full = |fill: &mut Fill| fill.in_memory() >= self.fills.blocks_max && !fill.stop;
        let waited = self.fills.done.wait_timeout_while(self.fills.lock(), limit, full);
        let (mut fill, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if is_kept == Some(false) && !waited.timed_out() && !fill.stop {
            if fill.busy.insert(ready.key) {
                fill.partial.remove(&ready.key);
                fill.ready.push_back(ready);
                self.fills.ready.notify_one();
            } else {
                fill.put_spare(ready.buffer, self.fills.blocks_max);
            }
            return true;
        }
        fill.put_spare(ready.buffer, self.fills.blocks_max);
        drop(fill);
        let mut state = self.state();
        state.claims.ended(&ready.key, now());
        state.sums.left += u64::from(is_kept != Some(true));
        is_kept == Some(true)
    }

    /// Memory for a block.
    pub(crate) fn spare_buffer(&self) -> Vec<u8> {
        let spare = self.fills.lock().spare.pop();
        spare.unwrap_or_else(|| vec![0; sw_mem::index(self.block_bytes())])
    }

    /// Those of blocks that are not on their way to the disk.
    pub(crate) fn not_busy(&self, keys: impl Iterator<Item = BlockKey>) -> Vec<BlockKey> {
        let fill = self.fills.lock();
        keys.filter(|key| !fill.busy.contains(key)).collect()
    }

    /// Keeps what becomes whole, until the end.
    fn run_filler(self: &Arc<Self>) {
        let mut look = now() + look_after(&self.config, Step::Done);
        loop {
            let wait = |fill: &mut Fill| fill.ready.is_empty() && !fill.stop;
            if self.is_owner() {
                let left = look.saturating_duration_since(now());
                drop(self.fills.ready.wait_timeout_while(self.fills.lock(), left, wait));
                if now() >= look {
                    let (_gone, step) = self.look_at_ages();
                    look = now() + look_after(&self.config, step);
                }
            } else {
                // One that ends takes no place.
                if !self.fills.lock().stop {
                    self.tend();
                }
                drop(self.fills.ready.wait_timeout_while(self.fills.lock(), TEND, wait));
            }
            let changing = self.changing();
            let (batch, is_end): (Vec<Ready>, bool) = {
                let mut fill = self.fills.lock();
                let count = fill.ready.len().min(BATCH_MAX);
                (fill.ready.drain(..count).collect(), fill.stop)
            };
            match (batch.is_empty(), is_end) {
                (false, _) if self.is_owner() => self.keep(&changing, &batch),
                (false, _) => self.hand_over(&batch),
                (true, true) => break,
                // Somebody evicted it.
                (true, false) => continue,
            }
            drop(changing);
            let mut fill = self.fills.lock();
            for Ready { key, buffer, .. } in batch {
                fill.busy.remove(&key);
                fill.put_spare(buffer, self.fills.blocks_max);
            }
            self.fills.done.notify_all();
        }
        self.settle();
    }

    /// Reads blocks that are wanted as a whole, until the end.
    fn run_fetcher(self: &Arc<Self>) {
        loop {
            let wait = |fill: &mut Fill| fill.wanted.is_empty() && !fill.stop;
            let fill = self.fills.wanted.wait_while(self.fills.lock(), wait);
            let mut fill = fill.unwrap_or_else(PoisonError::into_inner);
            let Some(Wanted { key, len, source }) = fill.wanted.pop_front().filter(|_| !fill.stop) else { return };
            drop(fill);
            if self.state().blocks.contains_key(&key) {
                continue;
            }
            // Whoever reads the object hears of what is wrong with it.
            if source.read(u64::from(key.number) * self.block_bytes(), len.into()).is_ok() {
                self.state().sums.fetched += 1;
            }
        }
    }

    /// One more thread, until that is dropped.
    pub(crate) fn begin(self: &Arc<Self>, work: Work) -> Running {
        self.fills.lock().running[work as usize] += 1;
        Running { inner: self.clone(), work }
    }
}

impl Cache {
    /// Blocks that may be on their way to the disk.
    pub fn fill_blocks(&self) -> u64 {
        self.inner().fills.blocks_max as u64
    }

    /// Waits until there is memory for `bytes` more, or all that is on its way is kept if they are more than there is; at most `limit`.
    /// Whether it came to that.
    pub fn wait_for_room(&self, bytes: u64, limit: Duration) -> bool {
        let inner = self.inner();
        let until = now() + limit;
        let has_room = inner.settled(bytes, limit);
        let all = inner.block_bytes().saturating_mul(inner.fills.blocks_max as u64);
        if inner.is_owner() || !has_room || bytes < all {
            return has_room;
        }
        // What was handed over is kept by the owner. One that is gone keeps nothing.
        loop {
            let left = until.saturating_duration_since(now()).min(SETTLE_STEP);
            let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            match inner.ask_owner(&Request::Settle { millis }) {
                Some(Reply::Count(0)) if left > Duration::ZERO => {}
                answer => return answer != Some(Reply::Count(0)),
            }
        }
    }
}

impl Inner {
    /// As [`Cache::wait_for_room`], of this process.
    pub(crate) fn settled(&self, bytes: u64, limit: Duration) -> bool {
        let blocks = sw_mem::index(bytes.div_ceil(self.block_bytes()));
        let most = self.fills.blocks_max.saturating_sub(blocks);
        let full = |fill: &mut Fill| fill.busy.len() > most;
        let waited = self.fills.done.wait_timeout_while(self.fills.lock(), limit, full);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// No thread, by the system's answer.
pub(crate) fn refuse_thread(cause: std::io::Error) -> Error {
    Error::new(ErrorKind::ResourceLimit, Verb::Setup)
        .detail("the system refuses a thread for the cache")
        .remedy("raise the limit of processes (ulimit -u)")
        .with_code(cause.raw_os_error().unwrap_or(0))
        .caused_by(cause)
}

/// A thread that has not ended, however it ends.
#[derive(Debug)]
pub(crate) struct Running {
    inner: Arc<Inner>,
    work: Work,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inner.fills.lock().running[self.work as usize] -= 1;
        self.inner.fills.done.notify_all();
    }
}

/// What a thread does until the end.
type Run = fn(&Arc<Inner>);

/// The threads of a cache.
#[derive(Debug)]
pub(crate) struct Threads {
    inner: Arc<Inner>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    pub(crate) fn start(inner: &Arc<Inner>) -> Result<Self, Error> {
        let threads = Self { inner: inner.clone(), handles: Mutex::default() };
        let runs: [(&str, Run); 2] = [("sw-cache-fill", Inner::run_filler), ("sw-cache-fetch", Inner::run_fetcher)];
        for (name, run) in runs {
            let running = inner.begin(Work::Fills);
            let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&running.inner));
            let handle = started.map_err(refuse_thread)?;
            threads.handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        }
        Ok(threads)
    }
}

impl Threads {
    /// Waits for threads of a kind. Whether they ended.
    fn ended(&self, work: Work, handles: &[JoinHandle<()>], until: Instant) -> bool {
        // The last owner may be one of them: it ends on its own.
        let own = std::thread::current().id();
        let own_count = u32::from(handles.iter().any(|handle| handle.thread().id() == own));
        let fills = &self.inner.fills;
        let running = |fill: &mut Fill| fill.running[work as usize] > own_count;
        let left = until.saturating_duration_since(now());
        let waited = fills.done.wait_timeout_while(fills.lock(), left, running);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Threads {
    /// What is whole is kept first, unless the disk takes too long. A child of the process has none of the threads.
    #[expect(clippy::mem_forget, reason = "threads of the parent are not waited for")]
    fn drop(&mut self) {
        let mut handles = std::mem::take(self.handles.get_mut().unwrap_or_else(PoisonError::into_inner));
        if self.inner.fork.is_child() {
            std::mem::forget((handles, self.inner.clone()));
            return;
        }
        {
            let mut fill = self.inner.fills.lock();
            fill.stop = true;
            fill.partial.clear();
            fill.wanted.clear();
            self.inner.fills.ready.notify_all();
            self.inner.fills.wanted.notify_all();
        }
        let until = now() + CLOSE_WAIT;
        // Before guests are looked at: a thread of these may have taken the place of an owner just now.
        let is_over = self.ended(Work::Fills, &handles, until);
        let serving = self.inner.serving.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sessions = serving.map(|serving| serving.stop()).unwrap_or_default();
        if !is_over || !self.ended(Work::Guests, &sessions, until) {
            tracing::warn!("the disk of the cache does not answer; what was on its way to it is not kept");
            return;
        }
        // They have done all that they had to. With them goes what they held of the directory.
        handles.extend(sessions);
        let own = std::thread::current().id();
        for handle in handles.into_iter().filter(|handle| handle.thread().id() != own) {
            drop(handle.join());
        }
        self.inner.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_in_any_order_make_a_whole() {
        let cuts = [(0, 10), (10, 30), (25, 70), (70, 100)];
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
            let mut partial = Partial { bytes: Vec::new(), have: Vec::new(), len: 100 };
            let told: Vec<bool> = order.into_iter().map(|at: usize| partial.add(cuts[at])).collect();
            assert_eq!(told, [false, false, false, true], "{order:?}");
        }
    }
}
