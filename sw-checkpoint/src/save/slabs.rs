//! Staging memory: equal slabs of one chunk each, made when first needed, kept between saves.
//!
//! A [`Slab`] goes back to its pool when it is dropped, wherever that is; lent to a write, its [`Loan`] does that.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use straightway::{Buffer, Destination, Engine, Error, ErrorKind, Memory, Region, Verb};

use crate::checksums::CHUNK_LEN_BYTES;

/// Least size of a page.
const PAGE_BYTES: usize = 4096;
/// How long a taker sleeps before it looks at the abort flag again, if nobody wakes it.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A pool for takers and givers on different threads. The pages of a slab are paid for once.
#[derive(Debug)]
pub(super) struct Slabs {
    state: Mutex<State>,
    returned: Condvar,
    most: usize,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Buffer>,
    made: usize,
    /// Takers that wait.
    waiting: usize,
}

/// One slab, out of its pool until it is dropped.
#[derive(Debug)]
pub(super) struct Slab {
    buffer: Option<Buffer>,
    pool: Arc<Slabs>,
}

/// A slab whose first bytes are with an operation. Dropped after the operation's memory, it gives the slab back.
#[derive(Debug)]
pub(super) struct Loan {
    region: Option<(Region, u64)>,
    pool: Arc<Slabs>,
}

impl Slab {
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], Buffer::as_slice)
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], Buffer::as_mut_slice)
    }

    /// Its first `len` bytes for an operation, and what keeps the rest.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub(super) fn lend(mut self, len: u64) -> Result<(Loan, Memory), Error> {
        let region = self.buffer.take().map(|buffer| Memory::from(buffer).share());
        let loan = Loan { region, pool: self.pool.clone() };
        match &loan.region {
            Some((region, start)) => {
                let memory = region.part(*start, len)?;
                Ok((loan, memory))
            }
            None => Err(Error::new(ErrorKind::OutOfRange, Verb::Write).detail("the slab has no bytes")),
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.put(buffer);
        }
    }
}

impl Loan {
    /// The slab, once the memory of the operation is gone; `None` if a device may still read it.
    pub(super) fn back(mut self) -> Option<Slab> {
        self.reclaim()
    }

    fn reclaim(&mut self) -> Option<Slab> {
        let (region, start) = self.region.take()?;
        if let Ok(Ok(buffer)) = region.reclaim(start, CHUNK_LEN_BYTES).map(Memory::into_buffer) {
            return Some(Slab { buffer: Some(buffer), pool: self.pool.clone() });
        }
        // It does not come back, and its budget is free for a fresh one.
        self.pool.lost();
        None
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        drop(self.reclaim());
    }
}

impl Slabs {
    /// At most `most` slabs.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), returned: Condvar::new(), most })
    }

    /// A free slab, a fresh one while there is budget, or one that comes back; `None` once `over` says that nobody needs it.
    ///
    /// # Errors
    /// `ResourceLimit` from mapping a fresh one.
    pub(super) fn take(self: &Arc<Self>, engine: &Engine, over: impl Fn() -> bool) -> Result<Option<Slab>, Error> {
        loop {
            if over() {
                return Ok(None);
            }
            if let Some(slab) = self.try_take(engine)? {
                return Ok(Some(slab));
            }
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.free.is_empty() && state.made == self.most {
                state.waiting += 1;
                let (mut state, _) =
                    self.returned.wait_timeout(state, LOOK_AGAIN).unwrap_or_else(PoisonError::into_inner);
                state.waiting -= 1;
            }
        }
    }

    /// A free slab, or a fresh one while there is budget; `None` if all are out.
    ///
    /// # Errors
    /// As [`Slabs::take`].
    pub(super) fn try_take(self: &Arc<Self>, engine: &Engine) -> Result<Option<Slab>, Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let free = state.free.pop();
        if free.is_none() && state.made == self.most {
            return Ok(None);
        }
        state.made += usize::from(free.is_none());
        drop(state);
        let buffer = free.map_or_else(|| fresh(engine).inspect_err(|_| self.lost()), Ok)?;
        Ok(Some(Slab { buffer: Some(buffer), pool: self.clone() }))
    }

    /// Whether somebody waits for a slab.
    pub(super) fn are_wanted(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).waiting > 0
    }

    /// Makes slabs until there are `count` or as many as the budget allows, one after the other, and touches their pages,
    /// until `over`.
    ///
    /// # Errors
    /// As [`Slabs::take`].
    pub(super) fn make(&self, engine: &Engine, count: usize, over: impl Fn() -> bool) -> Result<(), Error> {
        while !over() {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.made >= self.most.min(count) {
                break;
            }
            state.made += 1;
            drop(state);
            let mut buffer = fresh(engine).inspect_err(|_| self.lost())?;
            buffer.as_mut_slice().iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 0);
            self.put(buffer);
        }
        Ok(())
    }

    fn put(&self, buffer: Buffer) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).free.push(buffer);
        self.returned.notify_one();
    }

    fn lost(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.made = state.made.saturating_sub(1);
        drop(state);
        self.returned.notify_one();
    }

    /// Wakes whoever waits, to look at its abort flag.
    pub(super) fn wake(&self) {
        self.returned.notify_all();
    }

    /// Bytes of staging memory that exist.
    pub(super) fn bytes(&self) -> u64 {
        let made = self.state.lock().unwrap_or_else(PoisonError::into_inner).made;
        made as u64 * CHUNK_LEN_BYTES
    }
}

fn fresh(engine: &Engine) -> Result<Buffer, Error> {
    let memory = engine.allocate(Destination::Host, CHUNK_LEN_BYTES, 0)?;
    memory.into_buffer().map_err(|memory| {
        Error::new(ErrorKind::Protocol, Verb::Register).at(memory.to_string()).detail("allocated memory has no slices")
    })
}
