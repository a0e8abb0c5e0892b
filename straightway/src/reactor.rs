//! Reactors: threads that own a lane each.
//!
//! Commands reach a reactor by a bounded lock-free queue. *Wake-up protocol*: a caller pushes its command, then (after a
//! full fence) looks at `asleep`, and wakes the lane's transport if it is set. The reactor sets `asleep`, then (after a
//! full fence) looks at the queue once more before it waits. One of the two sees the other, so no command is left lying;
//! the bounded wait is a second net, not the mechanism.
//!
//! *Back-pressure*: a full queue makes the caller wait for room (`Room`), never grow. The reactor takes commands only
//! while its lane has room.
//!
//! *Panics*: a panic of ours ends the loop, poisons the engine and answers everybody; the lane's own drop fences the
//! transports before any memory is freed.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
    task::Waker,
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_queue::ArrayQueue;
use sw_engine::{
    Counters, Error, ErrorKind, Lane, Op, OpId, Time, Verb,
    inspect::Tree,
    seam::{Wait, Wake},
};

use crate::{cell::Cell, clock::Clock, core::Core};

/// Commands that wait for a reactor at most.
const COMMANDS_MAX: usize = 1024;
/// Longest sleep of an idle reactor: the second net of the wake-up protocol.
const IDLE: Duration = Duration::from_secs(1);
/// Completions that a busy reactor lets gather before it is woken: an eighth of the default depth.
const GATHER: u32 = 8;

/// A started operation on its way to a reactor.
pub(crate) struct Command {
    pub(crate) op: Op,
    pub(crate) cell: Arc<Cell>,
}

/// Callers that wait for a place in a full queue.
#[derive(Default)]
struct Room {
    wanted: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

/// What callers and the reactor's thread share.
struct Link {
    commands: ArrayQueue<Command>,
    room: Room,
    asleep: AtomicBool,
    stop: AtomicBool,
    /// Some caller cancelled or gave up: the reactor looks at its cells.
    attention: AtomicBool,
    state: Mutex<Seen>,
    wanted: AtomicU64,
}

/// The last look at the lane, for reports.
#[derive(Default)]
struct Seen {
    counters: Counters,
    tree: Option<Tree>,
}

/// A reactor, seen by callers.
pub(crate) struct Reactor {
    link: Arc<Link>,
    wakers: Vec<Arc<dyn Wake>>,
    thread: Mutex<Option<JoinHandle<u32>>>,
}

impl Reactor {
    /// Starts a thread that owns `lane`.
    pub(crate) fn start(
        index: usize,
        mut lane: Lane,
        clock: Clock,
        core: std::sync::Weak<Core>,
    ) -> Result<Self, Error> {
        let wakers = lane.wakers();
        let link = Arc::new(Link {
            commands: ArrayQueue::new(COMMANDS_MAX),
            room: Room::default(),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            attention: AtomicBool::new(false),
            state: Mutex::default(),
            wanted: AtomicU64::new(0),
        });
        let shared = link.clone();
        let run = move || {
            // A refused registration makes bounced chunks dearer, not wrong.
            let _ = lane.attach_slabs();
            let mut worker = Worker { lane, clock, link: shared, cells: Vec::new(), free: Vec::new() };
            let outcome = catch_unwind(AssertUnwindSafe(|| worker.run()));
            if outcome.is_err()
                && let Some(core) = core.upgrade()
            {
                core.poison();
            }
            worker.end()
        };
        let thread = std::thread::Builder::new().name(format!("straightway-{index}")).spawn(run).map_err(|cause| {
            Error::new(ErrorKind::ResourceLimit, Verb::Setup)
                .detail("the system refuses a thread")
                .remedy("raise the limit of processes (ulimit -u)")
                .with_code(cause.raw_os_error().unwrap_or(0))
                .caused_by(cause)
        })?;
        Ok(Self { link, wakers, thread: Mutex::new(Some(thread)) })
    }

    /// Hands over a command, or gives it back if there is no room: `waker` is then used when there is.
    pub(crate) fn send(&self, command: Command, waker: Option<&Waker>) -> Result<(), Command> {
        let refused = match self.link.commands.push(command) {
            Ok(()) => {
                self.nudge();
                return Ok(());
            }
            Err(refused) => refused,
        };
        let Some(waker) = waker else { return Err(refused) };
        self.link.room.wakers.lock().unwrap_or_else(PoisonError::into_inner).push(waker.clone());
        self.link.room.wanted.store(true, Ordering::SeqCst);
        // Room may have come between the two: then nobody would wake us.
        match self.link.commands.push(refused) {
            Ok(()) => {
                self.nudge();
                Ok(())
            }
            Err(refused) => Err(refused),
        }
    }

    /// A caller cancelled or gave up.
    pub(crate) fn attend(&self) {
        self.link.attention.store(true, Ordering::SeqCst);
        self.nudge();
    }

    fn nudge(&self) {
        fence(Ordering::SeqCst);
        if self.link.asleep.swap(false, Ordering::SeqCst) {
            self.wakers.iter().for_each(|waker| waker.wake());
        }
    }

    /// The lane's counters and state, as of the last look that the reactor took; asks it for a fresh one.
    pub(crate) fn report(&self, timeout: Duration, clock: Clock) -> (Counters, Option<Tree>) {
        let before = self.link.wanted.fetch_add(1, Ordering::SeqCst) + 1;
        self.link.asleep.store(true, Ordering::SeqCst);
        self.nudge();
        let until = clock.now().after(timeout);
        loop {
            let seen = self.link.state.lock().unwrap_or_else(PoisonError::into_inner);
            if self.link.wanted.load(Ordering::SeqCst) < before || clock.now() >= until {
                return (seen.counters, seen.tree.clone());
            }
            drop(seen);
            crate::cell::park(Some(Duration::from_micros(200)));
        }
    }

    /// Ends the thread: everything in flight is answered. Returns the slots that a device did not let go of.
    pub(crate) fn stop(&self) -> u32 {
        self.link.stop.store(true, Ordering::SeqCst);
        self.link.asleep.store(true, Ordering::SeqCst);
        self.nudge();
        // The last owner of the engine may be the reactor itself: it ends on its own then.
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = thread.filter(|thread| thread.thread().id() != std::thread::current().id());
        // Bounded: the worker's end fences each transport with a time limit.
        thread.and_then(|thread| thread.join().ok()).unwrap_or(0)
    }
}

struct Worker {
    lane: Lane,
    clock: Clock,
    link: Arc<Link>,
    /// By the operation's `user` word.
    cells: Vec<Option<(Arc<Cell>, OpId)>>,
    free: Vec<usize>,
}

impl Worker {
    fn run(&mut self) {
        while !self.link.stop.load(Ordering::SeqCst) {
            let took = self.take_commands();
            if self.link.attention.swap(false, Ordering::SeqCst) {
                self.attend();
            }
            self.report();
            let wait = if took > 0 { Wait::No } else { self.wait() };
            self.lane.poll(self.clock.now(), wait);
            self.link.asleep.store(false, Ordering::SeqCst);
            self.deliver();
        }
    }

    /// How long to wait: arms the wake-up first, then looks once more.
    fn wait(&self) -> Wait {
        self.link.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let pending = !self.link.commands.is_empty() && self.lane.has_room();
        if pending || self.link.stop.load(Ordering::SeqCst) || self.link.attention.load(Ordering::SeqCst) {
            return Wait::No;
        }
        let now = self.clock.now();
        let deadline = self.lane.next_deadline().unwrap_or(Time::FOREVER);
        let timeout = deadline.since(now).min(IDLE);
        let min = u32::try_from(self.lane.in_flight() / 4).unwrap_or(1).clamp(1, GATHER);
        Wait::For { timeout, min }
    }

    fn take_commands(&mut self) -> usize {
        let mut took = 0;
        while self.lane.has_room() {
            let Some(Command { mut op, cell }) = self.link.commands.pop() else { break };
            took += 1;
            let index = self.free.pop().unwrap_or_else(|| {
                self.cells.push(None);
                self.cells.len() - 1
            });
            op.user = index as u64;
            match self.lane.submit(self.clock.now(), op) {
                Ok(id) => self.cells[index] = Some((cell, id)),
                Err(rejected) => {
                    self.free.push(index);
                    cell.put(crate::request::rejected(rejected));
                }
            }
        }
        if took > 0 && self.link.room.wanted.swap(false, Ordering::SeqCst) {
            let wakers = std::mem::take(&mut *self.link.room.wakers.lock().unwrap_or_else(PoisonError::into_inner));
            wakers.into_iter().for_each(Waker::wake);
        }
        took
    }

    fn deliver(&mut self) {
        while let Some(completion) = self.lane.pop() {
            let Ok(index) = usize::try_from(completion.user) else { continue };
            if let Some((cell, _)) = self.cells.get_mut(index).and_then(Option::take) {
                self.free.push(index);
                cell.put(completion);
            }
        }
    }

    /// Ends operations whose callers cancelled or gave up.
    fn attend(&mut self) {
        let now = self.clock.now();
        for index in 0..self.cells.len() {
            let Some((cell, id)) = &self.cells[index] else { continue };
            let id = *id;
            if cell.is_dropped() {
                self.cells[index] = None;
                self.free.push(index);
                self.lane.abandon(now, id);
            } else if cell.is_cancelled() {
                self.lane.cancel(now, id);
            }
        }
    }

    fn report(&self) {
        if self.link.wanted.load(Ordering::SeqCst) > 0 {
            let mut seen = self.link.state.lock().unwrap_or_else(PoisonError::into_inner);
            *seen = Seen { counters: *self.lane.counters(), tree: Some(self.lane.inspect()) };
            self.link.wanted.store(0, Ordering::SeqCst);
        }
    }

    /// The thread's last act: everybody is answered, everything fenced.
    fn end(mut self) -> u32 {
        let stuck = self.lane.close(self.clock.now(), Duration::from_secs(5));
        self.deliver();
        while let Some(Command { op, cell }) = self.link.commands.pop() {
            let error =
                Error::new(ErrorKind::Closed, op.verb).at(op.target.object.name.clone()).detail("the engine is closed");
            cell.put(crate::request::rejected(sw_engine::Rejected { op, error }));
        }
        self.link.wanted.store(1, Ordering::SeqCst);
        self.report();
        stuck
    }
}
