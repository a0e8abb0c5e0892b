//! Reactors: threads that own a lane each.
//!
//! Commands reach a reactor by a bounded lock-free queue. *Wake-up protocol*: a caller pushes its command, then (after a
//! full fence) looks at `asleep`, and wakes the lane's transport if it is set. The reactor sets `asleep`, then (after a
//! full fence) looks at the queue once more before it waits. One of the two sees the other, so no command is left lying;
//! the bounded wait is a second net, not the mechanism.
//!
//! *Back-pressure*: a full queue makes the caller wait for room ([`Room`]), never grow. The reactor moves commands into a
//! backlog of bounded length, where it can see their deadlines and cancels, and from there into the lane as it has room.
//!
//! *The end*: the reactor sets `ended`, then (after a full fence) empties the queue for the last time. A caller that pushes
//! looks at `ended` afterwards, and empties the queue itself if it is set. So every command is answered, whatever ends the
//! thread: close, or a panic of ours, which poisons the engine. The lane's own drop fences the transports before any
//! memory is freed.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
    task::Waker,
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_queue::ArrayQueue;
use sw_engine::{
    Completion, Counters, Error, ErrorKind, Lane, Op, OpId, Rejected, Retry, Time, Verb, WriteOutcome,
    inspect::Tree,
    seam::{Wait, Wake},
};

use crate::{cell::Cell, clock::Clock, core::Core};

/// Commands that wait in the queue at most, and as many again in the backlog.
const COMMANDS_MAX: usize = 1024;
/// Longest sleep of an idle reactor: the second net of the wake-up protocol.
const IDLE: Duration = Duration::from_secs(1);
/// Longest sleep of a reactor whose every transport broke: it has nothing to wait on but must answer.
const BROKEN: Duration = Duration::from_millis(10);

/// A started operation on its way to a reactor.
pub(crate) struct Command {
    pub(crate) op: Op,
    pub(crate) cell: Arc<Cell>,
    /// When the caller started it.
    pub(crate) since: Time,
}

/// Callers that wait for a place in a full queue, each with its deadline.
#[derive(Default)]
struct Room {
    wanted: AtomicBool,
    wakers: Mutex<Vec<(Waker, Time)>>,
}

impl Room {
    /// Wakes those whose deadline is over, or everybody. Returns the next deadline.
    fn wake(&self, until: Time) -> Time {
        if !self.wanted.swap(false, Ordering::SeqCst) {
            return Time::FOREVER;
        }
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        let (over, left): (Vec<_>, Vec<_>) = std::mem::take(&mut *wakers).into_iter().partition(|(_, at)| *at <= until);
        let next = left.iter().map(|(_, at)| *at).min().unwrap_or(Time::FOREVER);
        if !left.is_empty() {
            self.wanted.store(true, Ordering::SeqCst);
        }
        *wakers = left;
        drop(wakers);
        over.into_iter().for_each(|(waker, _)| waker.wake());
        next
    }
}

/// What callers and the reactor's thread share.
struct Link {
    commands: ArrayQueue<Command>,
    room: Room,
    asleep: AtomicBool,
    stop: AtomicBool,
    /// The thread takes no more: see the module documentation.
    ended: AtomicBool,
    /// Some caller cancelled or gave up: the reactor looks at its cells.
    attention: AtomicBool,
    /// Looks at the lane that somebody waits for.
    wanted: AtomicU64,
    seen: Mutex<Seen>,
    looked: Condvar,
}

/// The last look at the lane, for reports.
#[derive(Default)]
struct Seen {
    counters: Counters,
    tree: Option<Tree>,
    looks: u64,
}

impl Link {
    /// Answers what is in the queue after the end.
    fn refuse_rest(&self) {
        while let Some(command) = self.commands.pop() {
            answer(&command.cell, refusal(command.op, ErrorKind::Closed, "the engine is closed".into()));
        }
    }
}

/// Leaves an answer; a panic of the caller's waker ends here.
fn answer(cell: &Cell, completion: Completion) {
    let _ = catch_unwind(AssertUnwindSafe(|| cell.put(completion)));
}

/// The completion of an operation that never reached a lane: its memory comes back, nothing was done.
fn refusal(op: Op, kind: ErrorKind, detail: String) -> Completion {
    let error =
        Error::new(kind, op.verb).at(op.target.object.name.clone()).in_range(op.offset, op.spans.len()).detail(detail);
    let error = if op.verb == Verb::Write { error.with_outcome(WriteOutcome::NotApplied) } else { error };
    crate::request::rejected(Rejected { op, error })
}

/// A reactor, seen by callers.
pub(crate) struct Reactor {
    link: Arc<Link>,
    wakers: Vec<Arc<dyn Wake>>,
    thread: Mutex<Option<JoinHandle<u32>>>,
}

impl Reactor {
    /// Starts a thread that owns `lane`.
    pub(crate) fn start(index: usize, lane: Lane, clock: Clock, core: Weak<Core>) -> Result<Self, Error> {
        let wakers = lane.wakers();
        let link = Arc::new(Link {
            commands: ArrayQueue::new(COMMANDS_MAX),
            room: Room::default(),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            attention: AtomicBool::new(false),
            wanted: AtomicU64::new(0),
            seen: Mutex::default(),
            looked: Condvar::new(),
        });
        let (backlog, later, cells, free) = (VecDeque::new(), Vec::new(), Vec::new(), Vec::new());
        let mut worker = Worker { lane, clock, link: link.clone(), backlog, later, cells, free };
        let run = move || {
            let ran = catch_unwind(AssertUnwindSafe(move || {
                worker.run();
                worker.end()
            }));
            ran.unwrap_or_else(|_panic| {
                if let Some(core) = core.upgrade() {
                    core.poison();
                }
                0
            })
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

    /// Hands over a command, or gives it back if there is no room: `waker` is then used when there is, or at `deadline`.
    pub(crate) fn send(&self, command: Command, waker: Option<&Waker>, deadline: Time) -> Result<(), Command> {
        let refused = match self.link.commands.push(command) {
            Ok(()) => {
                self.sent();
                return Ok(());
            }
            Err(refused) => refused,
        };
        let Some(waker) = waker else { return Err(refused) };
        self.link.room.wakers.lock().unwrap_or_else(PoisonError::into_inner).push((waker.clone(), deadline));
        self.link.room.wanted.store(true, Ordering::SeqCst);
        self.nudge();
        // Room may have come between the two: then nobody would wake us.
        match self.link.commands.push(refused) {
            Ok(()) => {
                self.sent();
                Ok(())
            }
            Err(refused) => Err(refused),
        }
    }

    /// A command is in the queue: the reactor hears of it, or it is answered here because there is no reactor any more.
    fn sent(&self) {
        fence(Ordering::SeqCst);
        if self.link.ended.load(Ordering::SeqCst) {
            self.link.refuse_rest();
        }
        self.nudge();
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

    /// The lane's counters and state, freshly looked at unless the reactor takes longer than `timeout`.
    pub(crate) fn report(&self, timeout: Duration) -> (Counters, Option<Tree>) {
        let seen = self.link.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.looks;
        self.link.wanted.fetch_add(1, Ordering::SeqCst);
        self.nudge();
        let fresh = |seen: &mut Seen| seen.looks == before && !self.link.ended.load(Ordering::SeqCst);
        let (seen, _) =
            self.link.looked.wait_timeout_while(seen, timeout, fresh).unwrap_or_else(PoisonError::into_inner);
        (seen.counters, seen.tree.clone())
    }

    /// Ends the thread: everything in flight is answered. Returns the slots that a device did not let go of.
    pub(crate) fn stop(&self) -> u32 {
        self.link.stop.store(true, Ordering::SeqCst);
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
    /// Commands that the lane has no room for yet.
    backlog: VecDeque<Command>,
    /// Those whose bytes are about to be elsewhere, and when each is tried anew.
    later: Vec<(Time, Command)>,
    /// By the operation's `user` word.
    cells: Vec<Option<(Arc<Cell>, OpId)>>,
    free: Vec<usize>,
}

impl Worker {
    fn run(&mut self) {
        while !self.link.stop.load(Ordering::SeqCst) {
            let took = self.take_commands();
            let now = self.clock.now();
            let next = if took { self.link.room.wake(Time::FOREVER) } else { self.link.room.wake(now) };
            if self.link.attention.swap(false, Ordering::SeqCst) {
                self.attend();
            }
            self.look();
            let next = next.min(self.expire_backlog(now));
            let next = self.later.iter().fold(next, |next, (due, _)| next.min(*due));
            let wait = if took { Wait::No } else { self.wait(next) };
            if self.lane.is_broken() && wait != Wait::No {
                std::thread::park_timeout(BROKEN);
            }
            self.lane.poll(self.clock.now(), wait);
            self.link.asleep.store(false, Ordering::SeqCst);
            self.deliver();
        }
    }

    /// How long to wait: arms the wake-up first, then looks once more.
    fn wait(&self, next: Time) -> Wait {
        self.link.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let link = &self.link;
        let called = link.stop.load(Ordering::SeqCst)
            || link.attention.load(Ordering::SeqCst)
            || link.wanted.load(Ordering::SeqCst) > 0;
        if called || (!link.commands.is_empty() && self.backlog.len() + self.later.len() < COMMANDS_MAX) {
            return Wait::No;
        }
        let deadline = self.lane.next_deadline().unwrap_or(Time::FOREVER).min(next);
        let timeout = deadline.since(self.clock.now()).min(IDLE);
        Wait::gathering(timeout, self.lane.in_flight())
    }

    /// Moves commands from the queue to the backlog, and from there to the lane. Whether any moved.
    fn take_commands(&mut self) -> bool {
        let mut moved = self.take_later();
        while self.backlog.len() + self.later.len() < COMMANDS_MAX {
            let Some(command) = self.link.commands.pop() else { break };
            self.backlog.push_back(command);
            moved = true;
        }
        while self.lane.has_room() {
            let Some(Command { mut op, cell, since }) = self.backlog.pop_front() else { break };
            if let Some(kind) = self.unwanted(&op, &cell) {
                self.refuse(Command { op, cell, since }, kind);
                continue;
            }
            let index = self.free.pop().unwrap_or_else(|| {
                self.cells.push(None);
                self.cells.len() - 1
            });
            op.user = index as u64;
            match self.lane.submit(self.clock.now(), op) {
                Ok(id) => {
                    self.cells[index] = Some((cell, id));
                    moved = true;
                }
                Err(Rejected { op, error }) => {
                    self.free.push(index);
                    if let (ErrorKind::Busy, Retry::After(wait)) = (error.kind(), error.retry()) {
                        self.later.push((self.clock.now().after(wait), Command { op, cell, since }));
                        continue;
                    }
                    if error.kind() == ErrorKind::Busy {
                        // It has its turn when something ended.
                        self.backlog.push_front(Command { op, cell, since });
                        break;
                    }
                    cell.put(crate::request::rejected(Rejected { op, error }));
                }
            }
        }
        moved
    }

    /// Puts what is to be tried anew before the rest. Whether there is any.
    fn take_later(&mut self) -> bool {
        if self.later.is_empty() {
            return false;
        }
        let now = self.clock.now();
        let due: Vec<_> = self.later.extract_if(.., |(due, _)| *due <= now).collect();
        let is_any = !due.is_empty();
        // In their order.
        due.into_iter().rev().for_each(|(_, command)| self.backlog.push_front(command));
        is_any
    }

    /// Why an operation that has not begun need not begin.
    fn unwanted(&self, op: &Op, cell: &Cell) -> Option<ErrorKind> {
        let late = op.options.deadline.is_some_and(|deadline| deadline <= self.clock.now());
        match (cell.is_dropped() || cell.is_cancelled(), late) {
            (true, _) => Some(ErrorKind::Cancelled),
            (false, true) => Some(ErrorKind::DeadlineExceeded),
            (false, false) => None,
        }
    }

    fn refuse(&self, Command { op, cell, since }: Command, kind: ErrorKind) {
        let waited = self.clock.now().since(since).as_millis();
        let detail = format!(
            "{} after {waited} ms; waited for a place in a lane, nothing was begun",
            kind.name().replace('_', " ")
        );
        cell.put(refusal(op, kind, detail));
    }

    /// Answers what passed its deadline or was cancelled in the backlog. Returns the next deadline there.
    fn expire_backlog(&mut self, now: Time) -> Time {
        let deadline = |command: &Command| command.op.options.deadline.unwrap_or(Time::FOREVER);
        let next = self.backlog.iter().map(deadline).min().unwrap_or(Time::FOREVER);
        if next <= now {
            self.sift_backlog();
        }
        self.backlog.iter().map(deadline).min().unwrap_or(Time::FOREVER)
    }

    fn sift_backlog(&mut self) {
        for _ in 0..self.backlog.len() {
            let Some(command) = self.backlog.pop_front() else { break };
            match self.unwanted(&command.op, &command.cell) {
                Some(kind) => self.refuse(command, kind),
                None => self.backlog.push_back(command),
            }
        }
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
        self.sift_backlog();
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

    /// Looks at the lane, if somebody waits for it.
    fn look(&self) {
        if self.link.wanted.swap(0, Ordering::SeqCst) > 0 {
            self.record();
        }
    }

    fn record(&self) {
        let mut seen = self.link.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let looks = seen.looks + 1;
        *seen = Seen { counters: *self.lane.counters(), tree: Some(self.lane.inspect()), looks };
        drop(seen);
        self.link.looked.notify_all();
    }

    /// The thread's last act: everybody is answered, everything fenced.
    fn end(&mut self) -> u32 {
        let stuck = self.lane.close(self.clock.now(), crate::Engine::CLOSE_WAIT);
        self.deliver();
        self.record();
        stuck
    }
}

impl Drop for Worker {
    /// Also when a panic unwinds: nobody may wait for an answer that never comes.
    fn drop(&mut self) {
        self.link.ended.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        for (cell, _) in self.cells.drain(..).flatten() {
            let error = Error::new(ErrorKind::Closed, Verb::Read)
                .at("reactor")
                .detail("the reactor ended before the operation did");
            answer(&cell, crate::request::failed(error));
        }
        let later = self.later.drain(..).map(|(_, command)| command);
        for command in self.backlog.drain(..).chain(later) {
            answer(&command.cell, refusal(command.op, ErrorKind::Closed, "the engine is closed".into()));
        }
        self.link.refuse_rest();
        let _ = catch_unwind(AssertUnwindSafe(|| self.link.room.wake(Time::FOREVER)));
        self.link.looked.notify_all();
    }
}
