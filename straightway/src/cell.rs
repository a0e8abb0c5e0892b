//! Cells: where a reactor leaves a completion for the caller that waits or polls.
//!
//! ```text
//!   caller: Request ─start─► command queue ─► reactor ─► lane … ─► completion ─► Cell.put ─► waker ─► caller: Cell.poll
//! ```
//!
//! A cell holds one completion in a lock-free queue of one, and a waker beside it. The caller registers its waker first
//! and looks second; the reactor puts first and wakes second: one of the two sees the other. Cells come from a pool and
//! return to it, so that a started operation allocates nothing once the pool is warm.

use std::{
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;
use sw_engine::Completion;

/// Cells that are kept for reuse.
const POOL_MAX: usize = 1024;
/// Pooled cells that are looked at before a new one is made: the last ones may still be in a reactor's hand.
const POOL_LOOKS: usize = 4;

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

    /// A cell that nobody else has.
    pub(crate) fn take(&self) -> Arc<Cell> {
        for _ in 0..POOL_LOOKS {
            let Some(mut cell) = self.0.pop() else { break };
            if let Some(inner) = Arc::get_mut(&mut cell) {
                *inner.dropped.get_mut() = false;
                *inner.cancelled.get_mut() = false;
                inner.waker.take();
                inner.done.pop();
                return cell;
            }
            // The reactor has not let go of it yet: a moment later it has.
            let _ = self.0.push(cell);
        }
        Arc::new(Cell::new())
    }

    /// Keeps a cell that the caller is done with.
    pub(crate) fn put(&self, cell: Arc<Cell>) {
        let _ = self.0.push(cell);
    }
}

/// Where a thread waits for its waker. Not `thread::park`: its one token belongs to whoever runs us, an executor say, and
/// must not be eaten by a wait inside one of its tasks.
#[derive(Debug, Default)]
pub(crate) struct Parker {
    woken: Mutex<bool>,
    wake: Condvar,
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_one();
    }
}

impl Parker {
    /// Waits until the waker was used since the last wait.
    pub(crate) fn park(&self) {
        let woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut woken = self.wake.wait_while(woken, |woken| !*woken).unwrap_or_else(PoisonError::into_inner);
        *woken = false;
    }
}

/// The calling thread's parker with its waker; made once a thread.
pub(crate) fn thread_parker() -> (Arc<Parker>, Waker) {
    thread_local! {
        static PARKER: OnceLock<(Arc<Parker>, Waker)> = const { OnceLock::new() };
    }
    PARKER.with(|parker| {
        let made = parker.get_or_init(|| {
            let parker = Arc::new(Parker::default());
            (parker.clone(), Waker::from(parker))
        });
        made.clone()
    })
}
