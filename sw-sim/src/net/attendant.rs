//! Who attends the association, with the product's [`Association`] telling what is to be done: as the thread of `sw-net` that runs
//! `Controller::attend`, one exchange after the other.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};

use sw_engine::{ErrorKind, Time};
use sw_nvme::{
    fabrics::{ANY_CONTROLLER, CONNECT_DATA_BYTES, ConnectData, Nqn, QueueRequest},
    namespace::Namespace,
    paths::Fences,
    tcp::{
        association::{Association, Duty, Patience, Wanted},
        host::{Outcome, Range, Transfer},
        ledger::Gate,
    },
    wire::{Command, ana::Access},
};

use super::{
    Shared,
    params::HostParams,
    stream::{Memory, Stream},
};
use crate::log::Mark;

/// Commands of the admin queue.
const ADMIN_DEPTH: u16 = 31;
/// In-capsule data of admin commands.
const ADMIN_CAPSULE: u32 = 8192;

/// The fences of all paths, for lanes to ask about writes.
#[derive(Default)]
pub(crate) struct Family(pub(crate) RefCell<Fences>);

/// A write of a lane that goes on though its user was told that its outcome is unknown: others wait until this is dropped.
pub(crate) struct Awaited(Rc<Family>);

impl Awaited {
    pub(crate) fn new(family: &Rc<Family>) -> Self {
        family.0.borrow_mut().awaits();
        Self(Rc::clone(family))
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.0.borrow_mut().answered();
    }
}

impl Gate for Family {
    fn doubts(&self) -> u64 {
        self.0.borrow().doubts()
    }

    fn is_safe(&self, now: Time) -> bool {
        self.0.borrow_mut().is_safe(now)
    }
}

/// A stream with an I/O queue, and the association that it is of.
pub(crate) struct Queue {
    pub(crate) stream: Stream,
    pub(crate) association: u64,
}

/// What the attendant is at.
enum Task {
    Associate(Exchange),
    Sign(u64),
    Connect(Exchange, usize),
}

/// Making a connection: when it is given up, and whether Connect is on its way.
struct Exchange {
    stream: Stream,
    until: u64,
    is_asked: bool,
}

/// The data of Connect.
struct Letter([u8; CONNECT_DATA_BYTES]);

impl Memory for Letter {
    fn take(&mut self, of: Range, _: &mut Shared) -> Vec<u8> {
        let from = sw_mem::index(of.at.into());
        self.0.get(from..from + sw_mem::index(of.bytes.into())).unwrap_or_default().to_vec()
    }

    fn land(&mut self, of: Range, _: &[u8], shared: &mut Shared) {
        shared.violate("memory", format!("{} bytes come for a command of the attendant", of.bytes));
    }
}

/// See the module documentation.
pub(crate) struct Attendant {
    association: Association,
    /// Which path it is.
    path: u8,
    pub(crate) family: Rc<Family>,
    params: HostParams,
    admin: Option<Stream>,
    /// CNTLID.
    controller: u16,
    task: Option<Task>,
    wanted: VecDeque<usize>,
    pub(crate) answers: BTreeMap<usize, Result<Queue, ErrorKind>>,
    made: u64,
    pub(crate) is_gone: bool,
    /// When it has something to do at the latest.
    pub(crate) next: u64,
    /// It does nothing before.
    pub(crate) stalled_until: u64,
    letter: Letter,
}

impl Attendant {
    pub(crate) fn new(path: u8, params: &HostParams, family: Rc<Family>) -> Self {
        let millis = Duration::from_millis;
        let mut first =
            Association::new(millis(params.keep_alive_ms), millis(params.patience_ms), (0, params.hold), Time::ZERO);
        // The first one is made as any other is: `sw-net` makes it before it attends, and fails at once if it cannot.
        first.lost(Time::ZERO);
        Self {
            association: first,
            path,
            family,
            params: params.clone(),
            admin: None,
            controller: 0,
            task: None,
            wanted: VecDeque::new(),
            answers: BTreeMap::new(),
            made: 0,
            is_gone: false,
            next: 0,
            stalled_until: 0,
            letter: Letter([0; CONNECT_DATA_BYTES]),
        }
    }

    pub(crate) fn is_up(&self, association: u64) -> bool {
        self.association.up() == Some(association)
    }

    /// Whether an association is up.
    pub(crate) fn is_any_up(&self) -> bool {
        self.association.up().is_some()
    }

    /// The stream of the association that is up.
    pub(crate) fn admin_stream(&self) -> Option<usize> {
        self.admin.as_ref().map(|admin| admin.number)
    }

    /// A lane lost a connection.
    pub(crate) fn suspect(&mut self) {
        self.association.suspect();
    }

    /// The namespaces that its controller has.
    pub(crate) fn namespaces(&self) -> &[Namespace] {
        self.params.namespaces.get(usize::from(self.path)..).unwrap_or_default().get(..1).unwrap_or_default()
    }

    /// How they are reached, as it tells.
    pub(crate) fn access(&self) -> Option<Access> {
        (self.path == 1).then_some(self.params.second_access)
    }

    /// Tells the others of its fence.
    fn tell_fence(&self, now: Time) {
        let fence = self.association.fence().filter(|safe| *safe > now);
        fence.into_iter().for_each(|safe| self.family.0.borrow_mut().raise(self.path.into(), safe));
    }

    /// A lane wants a queue.
    pub(crate) fn ask(&mut self, lane: usize) {
        self.wanted.push_back(lane);
    }

    /// A lane lost a connection with writes on it.
    pub(crate) fn doubt(&mut self, association: u64, shared: &mut Shared) {
        let now = Time(shared.now());
        let up = self.association.up();
        shared.mark(Mark::NetInDoubt);
        if up.is_some_and(|up| up != association) {
            shared.mark(Mark::NetInDoubtLate);
        }
        if matches!(self.task, Some(Task::Sign(_))) {
            shared.mark(Mark::NetInDoubtDuringSign);
        }
        self.association.doubt(association, self.params.hold, now);
        self.tell_fence(now);
    }

    /// Does what can be done now.
    pub(crate) fn run(&mut self, shared: &mut Shared) {
        if shared.now() < self.stalled_until {
            self.next = self.stalled_until;
            return;
        }
        // Each turn begins or ends an exchange, so that there are few.
        for _ in 0..64 {
            let is_done = match self.task.take() {
                Some(task) => self.go_on(task, shared),
                None => self.begin(shared),
            };
            if !is_done {
                return;
            }
        }
    }

    /// Begins what is due; whether there was something.
    fn begin(&mut self, shared: &mut Shared) -> bool {
        let now = Time(shared.now());
        if self.is_gone {
            self.next = u64::MAX;
            return false;
        }
        let wanted = if self.wanted.is_empty() { Wanted::None } else { Wanted::Queues };
        let duty = self.association.duty(now, wanted);
        match duty {
            Duty::Rest(span) => {
                self.next = now.after(span).0;
                return false;
            }
            Duty::LetGo => self.let_go(shared),
            Duty::Associate => {
                let stream = Stream::open(self.params.digests, (ADMIN_DEPTH, ADMIN_CAPSULE), shared);
                self.task = Some(Task::Associate(self.exchange(stream, now)));
            }
            Duty::Sign => {
                let queue = self.admin.as_mut().and_then(|admin| admin.queue.as_mut());
                queue.and_then(|queue| queue.submit(&Command::keep_alive(), Transfer::None, 0));
                self.task = Some(Task::Sign(now.0 + self.params.timeout_ns));
            }
            Duty::Connect => {
                if let Some(lane) = self.wanted.pop_front() {
                    let limits = (self.params.depth, self.params.capsule_data_bytes);
                    let stream = Stream::open(self.params.digests, limits, shared);
                    self.task = Some(Task::Connect(self.exchange(stream, now), lane));
                }
            }
        }
        true
    }

    fn exchange(&self, stream: Stream, now: Time) -> Exchange {
        Exchange { stream, until: now.0 + self.params.timeout_ns, is_asked: false }
    }

    fn let_go(&mut self, shared: &mut Shared) {
        self.admin.take().into_iter().for_each(|admin| admin.hang_up(shared));
    }

    /// Goes on with a task; whether it is over.
    fn go_on(&mut self, task: Task, shared: &mut Shared) -> bool {
        let now = Time(shared.now());
        match task {
            Task::Sign(until) => {
                let Some(answer) = self.sign(until, shared) else {
                    (self.task, self.next) = (Some(Task::Sign(until)), until);
                    return false;
                };
                match answer {
                    Ok(()) => self.association.signed(now),
                    Err(_) => self.lost(now, shared),
                }
                self.tell_fence(now);
            }
            Task::Associate(mut exchange) => {
                let Some(answer) = self.connect(&mut exchange, 0, shared) else {
                    self.next = exchange.until;
                    self.task = Some(Task::Associate(exchange));
                    return false;
                };
                self.associated(exchange.stream, answer, shared);
            }
            Task::Connect(mut exchange, lane) => {
                let Some(answer) = self.connect(&mut exchange, u16::try_from(lane + 1).unwrap_or(1), shared) else {
                    self.next = exchange.until;
                    self.task = Some(Task::Connect(exchange, lane));
                    return false;
                };
                self.connected(exchange.stream, lane, answer, shared);
                self.association.exchanged(now);
                self.tell_fence(now);
            }
        }
        true
    }

    /// Waits for the answer to a sign of life.
    fn sign(&mut self, until: u64, shared: &mut Shared) -> Option<Result<(), ErrorKind>> {
        let Some(admin) = &mut self.admin else { return Some(Err(ErrorKind::Io)) };
        admin.send(&mut self.letter, shared);
        let moved = admin.receive(&mut self.letter, shared);
        if let Some(end) = admin.queue.as_mut().and_then(|queue| queue.pop_end()) {
            let is_good = matches!(end.outcome, Outcome::Told(status) if status.is_success());
            return Some(if is_good { Ok(()) } else { Err(ErrorKind::Io) });
        }
        match moved {
            Err(kind) => Some(Err(kind)),
            Ok(()) if shared.now() >= until => Some(Err(ErrorKind::DeadlineExceeded)),
            Ok(()) => None,
        }
    }

    fn lost(&mut self, now: Time, shared: &mut Shared) {
        shared.note("host ends association", &[self.made]);
        self.association.lost(now);
        self.let_go(shared);
    }

    /// Connects a queue; gives CNTLID.
    fn connect(&mut self, exchange: &mut Exchange, qid: u16, shared: &mut Shared) -> Option<Result<u16, ErrorKind>> {
        let Exchange { stream, until, is_asked } = exchange;
        let mut moved = stream.receive(&mut self.letter, shared);
        if let Some(queue) = stream.queue.as_mut().filter(|_| !*is_asked) {
            *is_asked = true;
            let keep_alive_ms = u32::try_from(self.params.keep_alive_ms).unwrap_or(u32::MAX);
            let request = QueueRequest { qid, entries: 32, keep_alive_ms: if qid == 0 { keep_alive_ms } else { 0 } };
            let controller = if qid == 0 { ANY_CONTROLLER } else { self.controller };
            let host = Nqn::discovery();
            let data = ConnectData { host_id: [self.path + 1; 16], controller, subsystem: host.clone(), host };
            self.letter = Letter(data.encode());
            let bytes = u32::try_from(CONNECT_DATA_BYTES).unwrap_or(0);
            queue.submit(&Command::connect(request), Transfer::Out(bytes), 0);
        }
        stream.send(&mut self.letter, shared);
        if moved.is_ok() {
            moved = stream.receive(&mut self.letter, shared);
        }
        if let Some(end) = stream.queue.as_mut().and_then(|queue| queue.pop_end()) {
            return Some(match end.outcome {
                Outcome::Told(status) if status.is_success() => Ok(u16::try_from(end.value & 0xFFFF).unwrap_or(0)),
                _ => Err(ErrorKind::Io),
            });
        }
        match moved {
            Err(kind) => Some(Err(kind)),
            Ok(()) if shared.now() >= *until => Some(Err(ErrorKind::DeadlineExceeded)),
            Ok(()) => None,
        }
    }

    fn associated(&mut self, stream: Stream, answer: Result<u16, ErrorKind>, shared: &mut Shared) {
        let now = Time(shared.now());
        match answer {
            Ok(controller) => {
                (self.admin, self.controller) = (Some(stream), controller);
                self.made += 1;
                shared.note("host has association", &[self.made]);
                self.association.made(self.made, self.params.hold, now);
            }
            Err(_) => {
                stream.hang_up(shared);
                if self.association.failed(now) == Patience::Over {
                    shared.mark(Mark::NetPatienceOver);
                    self.is_gone = true;
                    for lane in self.wanted.drain(..) {
                        self.answers.insert(lane, Err(ErrorKind::NoDevice));
                    }
                }
            }
        }
    }

    fn connected(&mut self, mut stream: Stream, lane: usize, answer: Result<u16, ErrorKind>, shared: &mut Shared) {
        match answer {
            Ok(_) => {
                stream.connected();
                self.answers.insert(lane, Ok(Queue { stream, association: self.made }));
            }
            // As `sw-net`: it looks whether the association is over, and the lane waits for the next one then.
            Err(_) => {
                stream.hang_up(shared);
                self.association.suspect();
                self.wanted.push_front(lane);
            }
        }
    }
}
