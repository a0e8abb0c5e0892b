//! Blocks that hold several samples: read once, decoded once, kept for later samples within a bound.
//!
//! ```text
//!   planner: want(block) ─► slot, and whether this batch must read it ─► reader ─► worker: decode, slot.put ─► slot.wait: rows
//! ```
//!
//! A batch waits only for blocks of itself and of batches planned before it, and workers take batches in that order: so the
//! wait ends.

use std::{
    any::Any,
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{
    error::{Cause, Why},
    plan::Key,
};
use crate::{formats::Extent, samples::ObjectEntry};

/// Turns the bytes of a block into its items. Called by many threads at once.
pub trait Decoder: Send + Sync {
    /// Decodes the block at `extent` of `object`, whose bytes are `bytes`.
    ///
    /// # Errors
    /// What is wrong with the block: every sample of it is a bad one then.
    fn decode(&self, object: &ObjectEntry, extent: Extent, bytes: &[u8]) -> Result<Arc<dyn Block>, Cause>;
}

/// A decoded block.
pub trait Block: Send + Sync {
    /// How many items it has.
    fn rows(&self) -> u32;

    /// The bytes of an item; `None` if there is no such one.
    fn row(&self, row: u32) -> Option<&[u8]>;

    /// Bytes of memory that it takes.
    fn bytes(&self) -> u64;
}

/// Items end to end: the simplest block.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Rows {
    /// Adds an item.
    pub fn push(&mut self, item: &[u8]) {
        self.bytes.extend_from_slice(item);
        self.ends.push(self.bytes.len());
    }
}

impl Block for Rows {
    fn rows(&self) -> u32 {
        u32::try_from(self.ends.len()).unwrap_or(u32::MAX)
    }

    fn row(&self, row: u32) -> Option<&[u8]> {
        let row = usize::try_from(row).ok()?;
        let end = *self.ends.get(row)?;
        let start = row.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.bytes.get(start..end)
    }

    fn bytes(&self) -> u64 {
        (self.bytes.capacity() + self.ends.capacity() * size_of::<usize>()) as u64
    }
}

/// Where a block will be.
#[derive(Default)]
pub(super) struct BlockSlot {
    state: Mutex<Option<Result<Arc<dyn Block>, Why>>>,
    there: Condvar,
}

impl BlockSlot {
    fn lock(&self) -> MutexGuard<'_, Option<Result<Arc<dyn Block>, Why>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the block, or why there is none; what is there stays.
    pub(super) fn put(&self, block: Result<Arc<dyn Block>, Why>) {
        self.lock().get_or_insert(block);
        self.there.notify_all();
    }

    /// Waits for the block.
    pub(super) fn wait(&self) -> Result<Arc<dyn Block>, Why> {
        let state = self.there.wait_while(self.lock(), |state| state.is_none()).unwrap_or_else(PoisonError::into_inner);
        match &*state {
            Some(block) => block.clone(),
            None => Err(GIVEN_UP),
        }
    }
}

/// A block that its reader let go of.
const GIVEN_UP: Why = Why::Panicked { who: "loader", message: String::new() };

/// The duty to fill a slot: whoever lets it go without a block leaves an error, so that nobody waits for ever.
pub(super) struct Promise(Arc<BlockSlot>);

impl Promise {
    pub(super) fn slot(&self) -> &Arc<BlockSlot> {
        &self.0
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.put(Err(GIVEN_UP));
    }
}

/// Decoded blocks, the least recently wanted of which go first.
pub(super) struct BlockCache {
    max_bytes: u64,
    state: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    blocks: HashMap<(Key, u64), Entry>,
    bytes: u64,
    /// Counts wishes, to tell which was last.
    clock: u64,
}

struct Entry {
    slot: Arc<BlockSlot>,
    /// `None` until it is decoded: such a block does not go.
    bytes: Option<u64>,
    wanted: u64,
}

impl BlockCache {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot of a block, and the promise to fill it if nobody has given it.
    pub(super) fn want(&self, key: Key, offset: u64) -> (Arc<BlockSlot>, Option<Promise>) {
        let mut kept = self.lock();
        kept.clock += 1;
        let wanted = kept.clock;
        if let Some(entry) = kept.blocks.get_mut(&(key, offset)) {
            entry.wanted = wanted;
            return (entry.slot.clone(), None);
        }
        let slot = Arc::new(BlockSlot::default());
        kept.blocks.insert((key, offset), Entry { slot: slot.clone(), bytes: None, wanted });
        (slot.clone(), Some(Promise(slot)))
    }

    /// A block is there, or will never be.
    pub(super) fn settled(&self, key: Key, offset: u64, block: &Result<Arc<dyn Block>, Why>) {
        let mut kept = self.lock();
        match block {
            Ok(block) => {
                let bytes = block.bytes();
                if let Some(entry) = kept.blocks.get_mut(&(key, offset)) {
                    entry.bytes = Some(bytes);
                    kept.bytes += bytes;
                }
            }
            // Another batch tries again.
            Err(_) => {
                kept.blocks.remove(&(key, offset));
            }
        }
        while kept.bytes > self.max_bytes {
            let decoded = kept.blocks.iter().filter(|(_, entry)| entry.bytes.is_some());
            let Some(at) = decoded.min_by_key(|(_, entry)| entry.wanted).map(|(at, _)| *at) else { break };
            let gone = kept.blocks.remove(&at).and_then(|entry| entry.bytes).unwrap_or(0);
            kept.bytes -= gone.min(kept.bytes);
        }
    }
}

/// Calls somebody else's code; a panic in it ends here.
pub(super) fn guarded<T>(who: &'static str, call: impl FnOnce() -> T) -> Result<T, Why> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| Why::Panicked { who, message: message_of(&*panic) })
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { dataset: 0, object: 0 };

    fn block(bytes: usize) -> Result<Arc<dyn Block>, Why> {
        let mut rows = Rows::default();
        rows.push(&vec![1; bytes]);
        Ok(Arc::new(rows))
    }

    #[test]
    fn items_are_told_apart() {
        let mut rows = Rows::default();
        for item in [&b"one"[..], b"", b"three"] {
            rows.push(item);
        }
        let items: Vec<_> = (0..4).map(|row| rows.row(row)).collect();
        assert_eq!(items, [Some(&b"one"[..]), Some(b""), Some(b"three"), None]);
    }

    #[test]
    fn a_block_is_read_once_and_the_least_recently_wanted_goes() {
        let cache = BlockCache::new(3000);
        for offset in [0, 1] {
            let (_, promise) = cache.want(KEY, offset);
            let promise = promise.unwrap();
            let block = block(1000);
            cache.settled(KEY, offset, &block);
            promise.slot().put(block);
        }
        assert!(cache.want(KEY, 0).1.is_none(), "it is there");
        let (slot, promise) = cache.want(KEY, 2);
        assert!(cache.want(KEY, 2).1.is_none(), "somebody reads it");
        let large = block(1500);
        cache.settled(KEY, 2, &large);
        promise.unwrap().slot().put(large);
        assert_eq!(slot.wait().unwrap().rows(), 1);
        assert!(cache.want(KEY, 0).1.is_none() && cache.want(KEY, 1).1.is_some(), "block 1 went");
    }

    #[test]
    fn a_promise_that_is_dropped_ends_the_wait() {
        let cache = BlockCache::new(10);
        let (slot, promise) = cache.want(KEY, 0);
        drop(promise);
        assert!(slot.wait().is_err());
    }

    #[test]
    fn a_panic_of_others_is_an_error() {
        let told = guarded("map function", || -> u32 { panic!("on {}", "purpose") });
        assert!(matches!(told, Err(Why::Panicked { who: "map function", message }) if message == "on purpose"));
    }
}
