//! Cells: where a reactor leaves a completion for the caller that waits or polls.
//!
//! ```text
//!   caller: Request ─start─► command queue ─► reactor ─► lane … ─► completion ─► Cell.put ─► waker ─► caller: Cell.take
//! ```
//!
//! A cell holds one completion in a lock-free queue of one, and a waker beside it. The caller registers its waker first
//! and looks second; the reactor puts first and wakes second: one of the two sees the other. Cells come from a pool and
//! return to it, so that a started operation allocates nothing once the pool is warm.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;
use sw_engine::Completion;

/// Cells that are kept for reuse.
const POOL_MAX: usize = 1024;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Cell {
    done: ArrayQueue<Completion>,
    waker: AtomicWaker,
    /// The caller wants no answer any more.
    dropped: AtomicBool,
    /// The caller wants the operation ended early.
    cancelled: AtomicBool,
}

impl Cell {
    fn new() -> Self {
        let (done, waker) = (ArrayQueue::new(1), AtomicWaker::new());
        Self { done, waker, dropped: AtomicBool::new(false), cancelled: AtomicBool::new(false) }
    }

    /// Reactor: leaves the completion and wakes.
    pub(crate) fn put(&self, completion: Completion) {
        // One operation, one completion: there is room. Were there none, the memory in it would just be dropped.
        let _ = self.done.push(completion);
        self.waker.wake();
    }

    /// Caller: takes the completion, or is woken when there is one.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<Completion> {
        self.waker.register(context.waker());
        self.done.pop().map_or(Poll::Pending, Poll::Ready)
    }

    /// Caller: gives up.
    pub(crate) fn drop_answer(&self) {
        self.dropped.store(true, Ordering::Release);
    }

    /// Reactor: whether the caller gave up.
    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    /// Caller: asks for an early end.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Reactor: whether an early end is wanted.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// Cells for reuse.
#[derive(Debug)]
pub(crate) struct CellPool(ArrayQueue<Arc<Cell>>);

impl CellPool {
    pub(crate) fn new() -> Self {
        Self(ArrayQueue::new(POOL_MAX))
    }

    pub(crate) fn take(&self) -> Arc<Cell> {
        self.0.pop().unwrap_or_else(|| Arc::new(Cell::new()))
    }

    /// Keeps a cell that both sides are done with; one that the reactor still holds is left to its last owner.
    pub(crate) fn put(&self, mut cell: Arc<Cell>) {
        if let Some(inner) = Arc::get_mut(&mut cell) {
            *inner.dropped.get_mut() = false;
            *inner.cancelled.get_mut() = false;
            inner.waker.take();
            inner.done.pop();
            let _ = self.0.push(cell);
        }
    }
}

/// A waker that unparks a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The calling thread's waker; made once a thread.
pub(crate) fn thread_waker() -> Waker {
    thread_local! {
        static WAKER: OnceLock<Waker> = const { OnceLock::new() };
    }
    WAKER.with(|waker| waker.get_or_init(|| Waker::from(Arc::new(Unpark(thread::current())))).clone())
}

/// Parks the calling thread until its waker is used or `timeout` is over. May return early.
pub(crate) fn park(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => thread::park_timeout(timeout),
        None => thread::park(),
    }
}
