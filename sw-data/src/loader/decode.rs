//! Blocks that hold several samples: read once, decoded once, kept for later samples within a bound.
//!
//! ```text
//!   planner: want(block) ─► slot, and whether this batch must read it ─► reader ─► worker: decode, settle ─► slot.wait: rows
//! ```
//!
//! A batch waits only for blocks of itself and of batches planned before it, and workers take batches in that order: so the
//! wait ends.

use std::{
    any::Any,
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{error::Why, plan::Key};
use crate::{decode::Rows, formats::Extent};

/// What became of a block.
type Decoded = Result<Arc<Rows>, Why>;

/// Where a block will be.
#[derive(Default)]
pub(crate) struct BlockSlot {
    state: Mutex<Option<Decoded>>,
    there: Condvar,
}

impl BlockSlot {
    fn lock(&self) -> MutexGuard<'_, Option<Decoded>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the block, or why there is none; what is there stays.
    fn put(&self, block: Decoded) {
        self.lock().get_or_insert(block);
        self.there.notify_all();
    }

    /// Waits for the block.
    pub(crate) fn wait(&self) -> Decoded {
        let state = self.there.wait_while(self.lock(), |state| state.is_none()).unwrap_or_else(PoisonError::into_inner);
        match &*state {
            Some(block) => block.clone(),
            None => Err(Why::GivenUp),
        }
    }
}

/// The duty to fill a slot: whoever lets it go without a block leaves an error, so that nobody waits for ever.
pub(crate) struct Promise {
    cache: Arc<BlockCache>,
    at: At,
    slot: Arc<BlockSlot>,
}

impl Promise {
    /// The block is there, or will never be. The first word counts.
    pub(crate) fn settle(&self, block: Decoded) {
        if self.slot.lock().is_none() {
            self.cache.settled(self.at, &block);
            self.slot.put(block);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.settle(Err(Why::GivenUp));
    }
}

/// An object, and the block in it.
type At = (Key, Extent);

/// Decoded blocks, the least recently wanted of which go first.
pub(crate) struct BlockCache {
    max_bytes: u64,
    state: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    blocks: HashMap<At, Entry>,
    /// Those that are decoded, by when they were wanted last.
    decoded: BTreeMap<u64, At>,
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

impl Kept {
    fn remove(&mut self, at: At) {
        let Some(entry) = self.blocks.remove(&at) else { return };
        if let Some(bytes) = entry.bytes {
            self.decoded.remove(&entry.wanted);
            self.bytes -= bytes;
        }
    }
}

impl BlockCache {
    pub(crate) fn new(max_bytes: u64) -> Arc<Self> {
        Arc::new(Self { max_bytes, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot of a block, and the promise to fill it if nobody has given it.
    pub(crate) fn want(self: &Arc<Self>, key: Key, extent: Extent) -> (Arc<BlockSlot>, Option<Promise>) {
        let at = (key, extent);
        let mut guard = self.lock();
        let kept = &mut *guard;
        kept.clock += 1;
        let wanted = kept.clock;
        if let Some(entry) = kept.blocks.get_mut(&at) {
            if entry.bytes.is_some() {
                kept.decoded.remove(&entry.wanted);
                kept.decoded.insert(wanted, at);
            }
            entry.wanted = wanted;
            return (entry.slot.clone(), None);
        }
        let slot = Arc::new(BlockSlot::default());
        kept.blocks.insert(at, Entry { slot: slot.clone(), bytes: None, wanted });
        (slot.clone(), Some(Promise { cache: self.clone(), at, slot }))
    }

    /// A block is there, or will never be.
    fn settled(&self, at: At, block: &Decoded) {
        let mut guard = self.lock();
        let kept = &mut *guard;
        let bytes = block.as_ref().map(|block| block.memory_len());
        match (bytes, kept.blocks.get_mut(&at)) {
            // One that does not fit by itself is for those who wait for it, and sends no other away.
            (Ok(bytes), Some(entry)) if bytes <= self.max_bytes => {
                entry.bytes = Some(bytes);
                kept.decoded.insert(entry.wanted, at);
                kept.bytes += bytes;
            }
            // Another batch tries again.
            _ => kept.remove(at),
        }
        while kept.bytes > self.max_bytes
            && let Some((_, at)) = kept.decoded.pop_first()
        {
            kept.remove(at);
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

    fn at(offset: u64) -> Extent {
        Extent { offset, len: 1 }
    }

    /// An item of so many bytes, which takes 8 more.
    fn block(bytes: usize) -> Decoded {
        Ok(Arc::new(Rows::of(&[&vec![1; bytes]])))
    }

    #[test]
    fn a_block_is_read_once_and_the_least_recently_wanted_goes() {
        let cache = BlockCache::new(3100);
        for offset in [0, 1] {
            cache.want(KEY, at(offset)).1.unwrap().settle(block(1000));
        }
        assert!(cache.want(KEY, at(0)).1.is_none(), "it is there");
        let (slot, promise) = cache.want(KEY, at(2));
        assert!(cache.want(KEY, at(2)).1.is_none(), "somebody reads it");
        promise.unwrap().settle(block(1500));
        assert_eq!(slot.wait().unwrap().len(), 1);
        assert!(cache.want(KEY, at(0)).1.is_none() && cache.want(KEY, at(1)).1.is_some(), "block 1 went");
        assert!(cache.want(KEY, Extent { offset: 0, len: 2 }).1.is_some(), "another block begins there too");
    }

    #[test]
    fn a_block_that_does_not_fit_sends_no_other_away() {
        let cache = BlockCache::new(2000);
        cache.want(KEY, at(0)).1.unwrap().settle(block(1000));
        let (slot, promise) = cache.want(KEY, at(1));
        promise.unwrap().settle(block(3000));
        assert!(slot.wait().is_ok(), "whoever waits for it has it");
        assert!(cache.want(KEY, at(0)).1.is_none() && cache.want(KEY, at(1)).1.is_some());
    }

    #[test]
    fn a_promise_that_is_dropped_ends_the_wait_and_another_batch_tries_again() {
        let cache = BlockCache::new(10_000);
        let (slot, promise) = cache.want(KEY, at(0));
        drop(promise);
        assert!(matches!(slot.wait(), Err(Why::GivenUp)));
        let (slot, promise) = cache.want(KEY, at(0));
        promise.expect("nobody has promised it").settle(block(10));
        assert!(slot.wait().is_ok());
        let kept = cache.lock();
        assert_eq!((kept.bytes, kept.decoded.len()), (slot.wait().unwrap().memory_len(), 1));
    }

    #[test]
    fn a_panic_of_others_is_an_error() {
        let told = guarded("map function", || -> u32 { panic!("on {}", "purpose") });
        assert!(matches!(told, Err(Why::Panicked { who: "map function", message }) if message == "on purpose"));
    }
}
