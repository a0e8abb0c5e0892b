//! Memory of batches: within a budget, used again and again, since fresh memory costs page faults and zeroing.
//!
//! ```text
//!   acquire ─► job ─► Batch ─lend─► caller … drop ─► take_back ─► free ─► acquire
//!      held: free memory and memory of jobs. What the caller has is the caller's and does not count, nor does one that came back
//!      when the budget was full: the next batch that goes makes room for it.
//! ```

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use straightway::{Destination, Engine, Memory};

use super::error::LoadError;

/// Sizes are rounded up to an eighth of a power of two, at least this: batches of nearly one size use the same memory.
const STEP_MIN: u64 = 64 << 10;
/// What is at least half a huge page becomes whole ones. A device writes a sample into one piece of memory then, not into a piece
/// for each 4 KiB: random reads of 16 KiB into 24 MiB were 1.35 times as fast (46.7 against 34.8 thousand a second, io_uring,
/// O_DIRECT, 128 in flight, virtio disk, 2026-11-28).
const HUGE_PAGE: u64 = 2 << 20;

/// See the module documentation.
pub(super) struct Pool {
    engine: Engine,
    into: Destination,
    budget: u64,
    state: Mutex<State>,
    freed: Condvar,
    process: u32,
}

#[derive(Default)]
struct State {
    /// Bytes of `free` and of what jobs have.
    held: u64,
    free: Vec<Memory>,
    /// Came back and found no room.
    parked: Option<Memory>,
    closed: bool,
    fresh: u64,
    reused: u64,
}

/// What memory is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    /// Bytes of it, at least.
    pub(super) bytes: u64,
    /// Bytes of it, at most: earlier memory may be larger than what is asked for.
    pub(super) most: u64,
    /// Bytes that whoever asks has beside it: they are in the budget too, until they are forgotten.
    pub(super) beside: u64,
}

/// Whether to wait for memory within the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Until there is some.
    Wait,
    /// Not: for what can be had later.
    Try,
    /// Not: for who has memory already and would wait for itself.
    None,
}

/// How often memory was fresh and how often used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MemoryUse {
    /// Allocations.
    pub fresh: u64,
    /// Times that earlier memory was used.
    pub reused: u64,
    /// Bytes that the loader holds now, in batches on their way and for later ones.
    pub held_bytes: u64,
    /// Bytes beside them, of a batch that the caller gave back while there was no room.
    pub parked_bytes: u64,
}

impl MemoryUse {
    /// That of two pools.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            fresh: self.fresh + other.fresh,
            reused: self.reused + other.reused,
            held_bytes: self.held_bytes + other.held_bytes,
            parked_bytes: self.parked_bytes + other.parked_bytes,
        }
    }
}

impl Pool {
    pub(super) fn new(engine: Engine, into: Destination, budget: u64) -> Arc<Self> {
        let process = std::process::id();
        Arc::new(Self { engine, into, budget, state: Mutex::default(), freed: Condvar::new(), process })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that memory for `bytes` takes; `None` if that is beyond 64 bits.
    pub(super) fn size_of(bytes: u64) -> Option<u64> {
        rounded(bytes)
    }

    /// Memory of at least `bytes`; `None` once the pool is closed, and with [`Patience::Try`] if there is none now.
    ///
    /// # Errors
    /// [`LoadError::OverBudget`]; the engine's.
    pub(super) fn acquire(&self, bytes: u64, patience: Patience) -> Result<Option<Memory>, LoadError> {
        self.acquire_for(Ask { bytes, most: u64::MAX, beside: 0 }, patience)
    }

    /// The same, by all of what is asked.
    ///
    /// # Errors
    /// As [`Pool::acquire`].
    pub(super) fn acquire_for(&self, ask: Ask, patience: Patience) -> Result<Option<Memory>, LoadError> {
        let Ask { bytes, most, beside } = ask;
        let over = LoadError::OverBudget { need_bytes: bytes, budget_bytes: self.budget };
        let Some(size) = rounded(bytes) else { return Err(over) };
        // The rounding is ours, so it does not make a batch too large.
        if bytes > self.budget && patience != Patience::None {
            return Err(over);
        }
        let size = if size > self.budget { bytes } else { size };
        let mut state = self.lock();
        loop {
            if state.closed {
                return Ok(None);
            }
            let found = take_fitting(&mut state.free, size, most);
            let room = self.budget.saturating_sub(state.held).saturating_sub(beside);
            let serves = |parked: &mut Memory| found.is_none() && parked.len() <= room && fits(parked, size, most);
            let parked = state.parked.take_if(serves);
            let more = if found.is_some() { 0 } else { parked.as_ref().map_or(size, Memory::len) };
            let more = more.saturating_add(beside);
            while more > 0
                && state.held.saturating_add(more) > self.budget
                && let Some(other) = state.free.pop()
            {
                state.held -= other.len();
                drop(other);
            }
            if more == 0 || state.held.saturating_add(more) <= self.budget || patience == Patience::None {
                state.held = state.held.saturating_add(more);
                if let Some(memory) = found.or(parked) {
                    state.reused += 1;
                    return Ok(Some(memory));
                }
                state.fresh += 1;
                break;
            }
            state.free.extend(found);
            if patience == Patience::Try {
                return Ok(None);
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // It is of another size than what is used now.
        let parked = state.parked.take();
        drop(state);
        drop(parked);
        let memory = self.allocate(size).map(Some);
        if memory.is_err() {
            self.forget(beside);
        }
        memory
    }

    /// Memory in place of as much that will never come back: not a byte more, so that nobody waits for what it took. `None` once
    /// the pool is closed.
    ///
    /// # Errors
    /// The engine's.
    pub(super) fn instead(&self, bytes: u64) -> Result<Option<Memory>, LoadError> {
        let mut state = self.lock();
        if state.closed {
            state.held -= bytes.min(state.held);
            return Ok(None);
        }
        state.fresh += 1;
        drop(state);
        self.allocate(bytes).map(Some)
    }

    /// Fresh memory that is counted already.
    fn allocate(&self, size: u64) -> Result<Memory, LoadError> {
        self.engine.allocate(self.into, size, 0).map_err(|error| {
            self.forget(size);
            LoadError::Engine(Arc::new(error))
        })
    }

    /// A job is done with memory.
    pub(super) fn put(&self, memory: Memory) {
        let mut state = self.lock();
        let len = memory.len();
        if state.closed || state.held > self.budget {
            state.held -= len.min(state.held);
            drop(state);
            drop(memory);
        } else {
            state.free.push(memory);
        }
        self.freed.notify_all();
    }

    /// Memory of so many bytes went to the caller, or will never come back.
    pub(super) fn forget(&self, bytes: u64) {
        let mut state = self.lock();
        state.held -= bytes.min(state.held);
        drop(state);
        self.freed.notify_all();
    }

    /// The caller is done with memory. It is kept if it fits, in place of smaller memory that is free if need be; else it is parked.
    pub(super) fn take_back(&self, memory: Memory) {
        // In a forked child the lock may be held by a thread that is not there.
        if std::process::id() != self.process {
            return;
        }
        let len = memory.len();
        // It serves every batch that these would: while they stayed, each larger one would be fresh.
        let serves = |free: &Memory| free.len() < len && fits(&memory, free.len(), u64::MAX);
        let mut dropped = Vec::new();
        let mut state = self.lock();
        if state.closed {
            return;
        }
        let served: u64 = state.free.iter().filter(|free| serves(free)).map(Memory::len).sum();
        if state.held.saturating_sub(served).saturating_add(len) > self.budget {
            dropped.extend(state.parked.replace(memory));
        } else {
            while state.held + len > self.budget
                && let Some(at) = state.free.iter().position(serves)
            {
                let smaller = state.free.swap_remove(at);
                state.held -= smaller.len();
                dropped.push(smaller);
            }
            state.held += len;
            state.free.push(memory);
        }
        drop(state);
        drop(dropped);
        self.freed.notify_all();
    }

    /// Frees what is free; whoever waits is told that there is nothing more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let (free, parked) = (std::mem::take(&mut state.free), state.parked.take());
        state.held -= free.iter().map(Memory::len).sum::<u64>().min(state.held);
        drop(state);
        drop((free, parked));
        self.freed.notify_all();
    }

    pub(super) fn used(&self) -> MemoryUse {
        let state = self.lock();
        let parked_bytes = state.parked.as_ref().map_or(0, Memory::len);
        MemoryUse { fresh: state.fresh, reused: state.reused, held_bytes: state.held, parked_bytes }
    }
}

/// The smallest that is large enough, unless most of it would lie idle; of those the last that was put back, which caches may
/// still have.
fn take_fitting(free: &mut Vec<Memory>, size: u64, most: u64) -> Option<Memory> {
    let fitting = free.iter().enumerate().rev().filter(|(_, memory)| fits(memory, size, most));
    let (at, _) = fitting.min_by_key(|(_, memory)| memory.len())?;
    Some(free.swap_remove(at))
}

/// Whether memory is large enough, and most of it used.
fn fits(memory: &Memory, size: u64, most: u64) -> bool {
    (size..=size.saturating_mul(2).min(most)).contains(&memory.len())
}

fn rounded(bytes: u64) -> Option<u64> {
    let least = if bytes >= HUGE_PAGE / 2 { HUGE_PAGE } else { STEP_MIN };
    let step = (bytes.checked_next_power_of_two()? / 8).max(least);
    bytes.max(1).checked_next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn pool(budget: u64) -> Arc<Pool> {
        Pool::new(Engine::builder().build().unwrap(), Destination::Host, budget)
    }

    fn acquire(pool: &Pool, bytes: u64) -> Memory {
        pool.acquire(bytes, Patience::Wait).unwrap().unwrap()
    }

    #[test]
    fn batches_of_nearly_one_size_use_the_same_memory() {
        let pool = pool(8 * MIB);
        for bytes in [MIB, 2 * MIB - 70_000, MIB + 3, 2 * MIB] {
            let memory = acquire(&pool, bytes);
            pool.forget(memory.len());
            pool.take_back(memory);
        }
        assert_eq!(pool.used(), MemoryUse { fresh: 1, reused: 3, held_bytes: 2 * MIB, parked_bytes: 0 });
    }

    #[test]
    fn batches_around_a_step_do_not_throw_out_each_others_memory() {
        // Small ones fill the budget before the first large one comes; then both in turn, one of them with the caller.
        let pool = pool(4 * MIB);
        let small: Vec<_> = (0..7).map(|_| acquire(&pool, 512 << 10)).collect();
        small.into_iter().for_each(|memory| pool.put(memory));
        let mut lent = None;
        for turn in 0..100 {
            let next = acquire(&pool, (512 << 10) + u64::from(turn % 3 != 0));
            if let Some(memory) = lent.take() {
                pool.take_back(memory);
            }
            pool.forget(next.len());
            lent = Some(next);
        }
        let used = pool.used();
        assert!(used.fresh <= 7 + 2 && used.held_bytes <= 4 * MIB, "{used:?}");
    }

    #[test]
    fn a_full_budget_uses_what_comes_back_when_the_next_one_goes() {
        // Two are read ahead, and the caller takes one before it lets go of the one before: there is never room for what comes back.
        let pool = pool(8 * MIB);
        let mut ahead: std::collections::VecDeque<Memory> = (0..2).map(|_| acquire(&pool, 4 * MIB)).collect();
        let mut before = None;
        for _ in 0..20 {
            assert!(pool.acquire(4 * MIB, Patience::Try).unwrap().is_none());
            let taken = ahead.pop_front().unwrap();
            pool.forget(taken.len());
            ahead.push_back(acquire(&pool, 4 * MIB));
            if let Some(memory) = before.replace(taken) {
                pool.take_back(memory);
            }
        }
        assert_eq!(pool.used(), MemoryUse { fresh: 4, reused: 18, held_bytes: 8 * MIB, parked_bytes: 4 * MIB });
        // Nobody waits for room that what is parked would take: fresh memory of the size that fits has it.
        ahead.into_iter().for_each(|memory| pool.put(memory));
        let (first, small) = (acquire(&pool, 4 * MIB), acquire(&pool, 3 * MIB));
        assert_eq!((first.len(), small.len(), pool.used().fresh), (4 * MIB, 4 * MIB, 4));
    }

    #[test]
    fn what_is_less_than_half_a_huge_page_is_not_made_one() {
        let sizes = [1, 64 << 10, MIB - 1, MIB, 3 * MIB, 17 * MIB].map(rounded);
        let want = [64 << 10, 64 << 10, MIB, 2 * MIB, 4 * MIB, 20 * MIB].map(Some);
        assert_eq!((sizes, rounded(u64::MAX)), (want, None));
    }

    #[test]
    fn what_the_caller_has_does_not_count_and_what_is_free_makes_room() {
        let pool = pool(9 * MIB);
        let held: Vec<Memory> = (0..10).map(|_| acquire(&pool, 6 * MIB)).inspect(|m| pool.forget(m.len())).collect();
        assert_eq!(pool.used().held_bytes, 0);
        held.into_iter().for_each(|memory| pool.take_back(memory));
        let used = pool.used();
        assert_eq!(
            (used.held_bytes, used.parked_bytes),
            (6 * MIB, 6 * MIB),
            "one fits, one is parked, the rest was freed"
        );
        let (other, used) = (acquire(&pool, 8 * MIB), pool.used());
        assert_eq!((used.held_bytes, used.parked_bytes), (other.len(), 0), "both went");
        assert!(pool.acquire(10 * MIB, Patience::Wait).is_err());
        assert!(pool.acquire(10 * MIB, Patience::None).unwrap().is_some());
    }

    #[test]
    fn earlier_memory_is_not_larger_than_allowed_and_makes_room() {
        let pool = pool(8 * MIB);
        let large = acquire(&pool, 8 * MIB);
        pool.put(large);
        let least = |most| pool.acquire_for(Ask { bytes: 4 * MIB, most, beside: 0 }, Patience::Try);
        let small = least(8 * MIB - 1).unwrap().unwrap();
        assert_eq!((small.len(), pool.used().held_bytes), (4 * MIB, 4 * MIB), "the large one went");
        drop(small);
        let instead = pool.instead(4 * MIB).unwrap().unwrap();
        assert_eq!((instead.len(), pool.used().held_bytes), (4 * MIB, 4 * MIB));
        pool.put(instead);
        pool.close();
        assert!(pool.instead(4 * MIB).unwrap().is_none());
    }

    #[test]
    fn what_lies_beside_memory_is_in_the_budget_until_it_is_forgotten() {
        let pool = pool(8 * MIB);
        let with = |beside| pool.acquire_for(Ask { bytes: 4 * MIB, most: 4 * MIB, beside }, Patience::Try).unwrap();
        let first = with(MIB).unwrap();
        assert!(with(0).is_none(), "a MiB is missing");
        pool.put(first);
        assert!(with(4 * MIB).is_none());
        assert_eq!(
            pool.used(),
            MemoryUse { fresh: 1, reused: 0, held_bytes: 5 * MIB, parked_bytes: 0 },
            "it is still free"
        );
        pool.forget(MIB);
        let again = with(4 * MIB).unwrap();
        assert_eq!(pool.used(), MemoryUse { fresh: 1, reused: 1, held_bytes: 8 * MIB, parked_bytes: 0 });
        pool.put(again);
        pool.forget(4 * MIB);
        assert!(with(0).is_some());
    }

    #[test]
    fn whoever_waits_gets_what_is_put_back_and_is_sent_away_at_the_end() {
        let pool = pool(2 * MIB);
        let first = acquire(&pool, 2 * MIB);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| acquire(&pool, 2 * MIB).len());
            pool.put(first);
            assert_eq!(waiting.join().unwrap(), 2 * MIB);
            let waiting = scope.spawn(|| pool.acquire(2 * MIB, Patience::Wait).unwrap().is_none());
            pool.close();
            assert!(waiting.join().unwrap());
        });
    }
}
