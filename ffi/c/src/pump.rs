//! The thread that tells callers of ends: one for each engine that has operations with a callback or an eventfd.
//!
//! ```text
//!   reactor ─► waker of an operation ─► queue of numbers ─► pump: poll the operation ─► eventfd, callback
//! ```
//!
//! Callbacks run here and not on a reactor, so that one that takes long, or that waits for another operation, holds up nothing but
//! other callbacks.

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{Builder, JoinHandle},
};

use straightway::{Error, ErrorKind, Verb};
use straightway_edge::{GATE_PAUSE, first_of_streams};

use crate::{
    edge::contained,
    engine::{EngineState, PumpSlot},
    op::{Gated, Op},
};

/// Other operations that are looked at before streams are again.
const LOOKS_MAX: u32 = 64;

/// A stream: the GPU that has it, and its handle.
pub(crate) type Place = (u32, u64);

/// Cloning shares it.
#[derive(Clone)]
pub(crate) struct Pump(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    next: AtomicU64,
    /// The process that has the thread: a child of a fork has none.
    process: u32,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    /// Operations whose end was not told yet.
    live: HashMap<u64, Arc<Op>>,
    /// Those to look at. One operation is in it a bounded number of times: when it begins, when it is woken, when it ends.
    queue: VecDeque<u64>,
    /// Those that have a place in a stream, in the order of their places, until they are over.
    gated: Vec<Placed>,
    /// Operations that were looked at since those were.
    since_gated: u32,
    stopping: bool,
}

/// An operation that has a place in a stream.
struct Placed {
    number: u64,
    stream: Place,
    /// Its stream had come so far: from then on its waker tells, before that nobody does.
    begun: bool,
}

thread_local! {
    static IS_PUMP: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is one that runs callbacks.
pub(crate) fn is_this_thread() -> bool {
    IS_PUMP.get()
}

impl Pump {
    /// The pump of an engine, made if there is none yet.
    ///
    /// # Errors
    /// `ResourceLimit` if there is no thread for it; `Forked` in a child of the process that made it; `Closed`.
    pub(crate) fn of(engine: &EngineState) -> Result<Self, Error> {
        let mut slot = engine.pump.lock().unwrap_or_else(PoisonError::into_inner);
        let pump = match &*slot {
            PumpSlot::Some(pump) => pump.clone(),
            PumpSlot::None => {
                let pump = Self::start()?;
                *slot = PumpSlot::Some(pump.clone());
                pump
            }
            PumpSlot::Closed => {
                return Err(Error::new(ErrorKind::Closed, Verb::Setup)
                    .at("C interface")
                    .detail("the engine was closed")
                    .remedy("make a new one"));
            }
        };
        if pump.0.process == std::process::id() {
            return Ok(pump);
        }
        Err(Error::new(ErrorKind::Forked, Verb::Setup)
            .at("C interface")
            .detail("the process was forked after the engine was made")
            .remedy("make a new engine in the child"))
    }

    fn start() -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            next: AtomicU64::new(1),
            process: std::process::id(),
            thread: Mutex::new(None),
        });
        let own = shared.clone();
        let thread = Builder::new().name("straightway-cb".into()).spawn(move || {
            IS_PUMP.set(true);
            own.run();
        });
        let thread = thread.map_err(|cause| {
            Error::new(ErrorKind::ResourceLimit, Verb::Setup).at("thread").detail(cause.to_string()).caused_by(cause)
        })?;
        *shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Self(shared))
    }

    /// A number for an operation.
    pub(crate) fn number(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes an operation, until its end was told.
    pub(crate) fn add(&self, number: u64, op: Arc<Op>) {
        self.0.lock().live.insert(number, op);
    }

    /// Forgets an operation.
    pub(crate) fn remove(&self, number: u64) {
        let mut state = self.0.lock();
        state.gated.retain(|placed| placed.number != number);
        let gone = state.live.remove(&number);
        drop(state);
        drop(gone);
    }

    /// Looks at an operation soon.
    pub(crate) fn look(&self, number: u64) {
        let mut state = self.0.lock();
        if state.live.contains_key(&number) {
            state.queue.push_back(number);
            self.0.work.notify_one();
        }
    }

    /// Looks at an operation again and again, until its stream has come so far.
    pub(crate) fn watch(&self, number: u64, stream: Place) {
        self.0.lock().gated.push(Placed { number, stream, begun: false });
        self.0.work.notify_one();
    }

    /// Tells every end that there is, and ends the thread. The engine has answered everything before.
    pub(crate) fn stop(&self) {
        if self.0.process != std::process::id() {
            return;
        }
        self.0.lock().stopping = true;
        self.0.work.notify_one();
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|_| !is_this_thread()) {
            // It contains its panics.
            let _ = thread.join();
        }
    }
}

impl State {
    /// Those that are the first of their streams and were not begun.
    fn to_look_at(&self) -> impl Iterator<Item = u64> {
        let first = first_of_streams(&self.gated, |placed| placed.stream);
        first.filter(|placed| !placed.begun).map(|placed| placed.number)
    }

    fn look_at_gated(&mut self) {
        self.since_gated = 0;
        let first: Vec<u64> = self.to_look_at().collect();
        self.queue.extend(first);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(number) = self.next() {
            self.serve(number);
        }
        // Nothing moves any more. What has no answer now gets none from the engine.
        let left: Vec<(u64, Arc<Op>)> = self.lock().live.iter().map(|(number, op)| (*number, op.clone())).collect();
        for (number, op) in left {
            if op.poll().is_none() {
                op.give_up(ErrorKind::Closed, "the engine was closed");
            }
            self.serve(number);
        }
    }

    /// The next operation to look at; none when the pump is to stop.
    fn next(&self) -> Option<u64> {
        let mut state = self.lock();
        loop {
            if state.since_gated >= LOOKS_MAX {
                state.look_at_gated();
            }
            if let Some(number) = state.queue.pop_front() {
                state.since_gated += 1;
                return Some(number);
            }
            if state.stopping {
                return None;
            }
            if state.to_look_at().next().is_none() {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (woken, wait) = self.work.wait_timeout(state, GATE_PAUSE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if wait.timed_out() {
                state.look_at_gated();
            }
        }
    }

    fn serve(&self, number: u64) {
        let op = self.lock().live.get(&number).cloned();
        let outcome = op.as_ref().and_then(|op| op.poll());
        let waits = op.as_ref().is_some_and(|op| op.is_gated() == Gated::Yes);
        let mut state = self.lock();
        if op.is_none() || outcome.is_some() {
            state.gated.retain(|placed| placed.number != number);
        } else if !waits && let Some(placed) = state.gated.iter_mut().find(|placed| placed.number == number) {
            placed.begun = true;
        }
        drop(state);
        let (Some(op), Some(outcome)) = (op, outcome) else { return };
        // A panic of ours must not end the thread.
        let _ = contained(|| {
            op.tell(&outcome);
            Ok(())
        });
        let gone = self.lock().live.remove(&number);
        drop(gone);
    }
}
