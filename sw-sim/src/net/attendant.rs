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
    inquiry::Answer,
    namespace::Namespace,
    paths::{Fences, Holder},
    resets::{Errand, Errands, Life, Verdict},
    tcp::{
        association::{Association, Duty, Patience, Wanted},
        host::{Outcome, Range, Transfer},
        ledger::Gate,
    },
    wire::{
        Command, DataPointer, IDENTIFY_BYTES,
        ana::Access,
        ccr::{ENTRY_BYTES, HEADER_BYTES, Log},
        identify::IdentifyController,
        log::LogPage,
    },
};

use super::{
    Shared,
    params::HostParams,
    stream::{Memory, Stream},
    target::Target,
};
use crate::log::Mark;

/// Commands of the admin queue.
const ADMIN_DEPTH: u16 = 31;
/// Of the log page of resets that is read: a start of it, as no association asks for many.
const PAGE_BYTES: usize = HEADER_BYTES + ENTRY_BYTES * 30;
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
    /// Its controller is asked to reset another one.
    Ask(Errand, u64),
    /// The log page of that is read.
    Look(u64),
}

/// Making a connection: when it is given up, and whether Connect is on its way.
struct Exchange {
    stream: Stream,
    until: u64,
    is_asked: bool,
}

/// The data of Connect, or of a log page.
enum Letter {
    Connect(Vec<u8>),
    Page(Vec<u8>),
}

impl Memory for Letter {
    fn take(&mut self, of: Range, _: &mut Shared) -> Vec<u8> {
        let from = sw_mem::index(of.at.into());
        let Self::Connect(data) = self else { return Vec::new() };
        data.get(from..from + sw_mem::index(of.bytes.into())).unwrap_or_default().to_vec()
    }

    fn land(&mut self, of: Range, bytes: &[u8], shared: &mut Shared) {
        let Self::Page(page) = self else {
            return shared.violate("memory", format!("{} bytes come for a command of the attendant", of.bytes));
        };
        page.iter_mut().skip(sw_mem::index(of.at.into())).zip(bytes).for_each(|(to, from)| *to = *from);
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
    /// How the controller of each association names itself.
    lives: BTreeMap<u64, Life>,
    errands: Option<Errands>,
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
            letter: Letter::Connect(Vec::new()),
            lives: BTreeMap::new(),
            errands: None,
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
        for (association, safe) in self.association.fences(now) {
            let holder = Holder { controller: self.path.into(), association };
            self.family.0.borrow_mut().raise(holder, safe, self.lives.get(&association));
        }
    }

    /// The association is another one, or over.
    fn set_errands(&mut self, next: Option<Errands>) {
        for errand in core::mem::replace(&mut self.errands, next).into_iter().flat_map(Errands::end) {
            self.family.0.borrow_mut().settle(&errand, Verdict::Failed);
        }
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
    pub(crate) fn run(&mut self, target: &Target, shared: &mut Shared) {
        if shared.now() < self.stalled_until {
            self.next = self.stalled_until;
            return;
        }
        // Each turn begins or ends an exchange, so that there are few.
        for _ in 0..64 {
            let is_done = match self.task.take() {
                Some(task) => self.go_on(task, target, shared),
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
                if self.begin_errand(now) {
                    return true;
                }
                let due = self.errands.as_ref().and_then(Errands::due).map_or(u64::MAX, |due| due.0);
                self.next = now.after(span).0.min(due);
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

    /// Asks for a reset, or looks how one goes, if that is to be done.
    fn begin_errand(&mut self, now: Time) -> bool {
        let Some(errands) = &self.errands else { return false };
        let until = now.0 + self.params.timeout_ns;
        let claimed = self.family.0.borrow_mut().claim(errands, now);
        let (command, transfer, task) = if let Some(errand) = claimed {
            (Some(Command::cross_controller_reset(errand.instance)), Transfer::None, Task::Ask(errand, until))
        } else if errands.due().is_some_and(|due| due <= now) {
            self.letter = Letter::Page(vec![0; PAGE_BYTES]);
            let bytes = u32::try_from(PAGE_BYTES).unwrap_or(0);
            let command = Command::get_log_page(LogPage::Resets, 0, bytes, DataPointer::None);
            (command, Transfer::In(bytes), Task::Look(until))
        } else {
            return false;
        };
        let queue = self.admin.as_mut().and_then(|admin| admin.queue.as_mut());
        if let (Some(queue), Some(command)) = (queue, command) {
            queue.submit(&command, transfer, 0);
        }
        self.task = Some(task);
        true
    }

    /// Goes on with such a task; whether it is over.
    fn go_on_errand(&mut self, task: Task, until: u64, shared: &mut Shared) -> bool {
        let now = Time(shared.now());
        let Some(answer) = self.answered(until, shared) else {
            (self.task, self.next) = (Some(task), until);
            return false;
        };
        let told = answer.as_ref().ok().and_then(|(outcome, value)| match outcome {
            Outcome::Told(status) => {
                Some(Answer { status: *status, dw0: u32::try_from(value & 0xFFFF_FFFF).unwrap_or(0) })
            }
            _ => None,
        });
        let over = match (&mut self.errands, task) {
            (Some(errands), Task::Ask(errand, _)) => {
                vec![(errand, errands.answered(errand, told, now), Mark::NetResetDone)]
            }
            (None, Task::Ask(errand, _)) => vec![(errand, Verdict::Failed, Mark::NetResetFailed)],
            (Some(errands), _) => {
                let page = if let Letter::Page(page) = &self.letter { page.as_slice() } else { &[] };
                let log = told.filter(|told| told.status.is_success()).and_then(|_| Log::decode(page).ok());
                let over = errands.told(log.as_ref(), now);
                over.into_iter().map(|(errand, verdict)| (errand, verdict, Mark::NetResetTold)).collect()
            }
            (None, _) => Vec::new(),
        };
        for (errand, verdict, mark) in over {
            let of = errand.of;
            shared
                .note("host is told of a reset", &[of.controller, of.association, u64::from(verdict == Verdict::Done)]);
            match verdict {
                Verdict::Done => shared.mark(mark),
                Verdict::Failed if mark == Mark::NetResetTold && now >= errand.until => {
                    shared.mark(Mark::NetResetUntold)
                }
                Verdict::Failed if mark == Mark::NetResetTold => shared.mark(Mark::NetResetFailed),
                Verdict::Failed | Verdict::Open => {}
            }
            if verdict == Verdict::Done && of.controller == u64::from(self.path) {
                shared.mark(Mark::NetResetOfOwnPast);
            }
            self.family.0.borrow_mut().settle(&errand, verdict);
        }
        if answer.is_err() {
            self.lost(now, shared);
        }
        self.association.exchanged(now);
        self.tell_fence(now);
        true
    }

    fn exchange(&self, stream: Stream, now: Time) -> Exchange {
        Exchange { stream, until: now.0 + self.params.timeout_ns, is_asked: false }
    }

    fn let_go(&mut self, shared: &mut Shared) {
        self.set_errands(None);
        self.admin.take().into_iter().for_each(|admin| admin.hang_up(shared));
    }

    /// Goes on with a task; whether it is over.
    fn go_on(&mut self, task: Task, target: &Target, shared: &mut Shared) -> bool {
        let now = Time(shared.now());
        match task {
            Task::Ask(_, until) | Task::Look(until) => return self.go_on_errand(task, until, shared),
            Task::Sign(until) => {
                let Some(answer) = self.answered(until, shared) else {
                    (self.task, self.next) = (Some(Task::Sign(until)), until);
                    return false;
                };
                match answer {
                    Ok((Outcome::Told(status), _)) if status.is_success() => self.association.signed(now),
                    _ => self.lost(now, shared),
                }
                self.tell_fence(now);
            }
            Task::Associate(mut exchange) => {
                let Some(answer) = self.connect(&mut exchange, 0, shared) else {
                    self.next = exchange.until;
                    self.task = Some(Task::Associate(exchange));
                    return false;
                };
                self.associated(exchange.stream, answer, target, shared);
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

    /// Waits for the answer to a command of the admin queue: its outcome, with the first eight bytes of the completion.
    fn answered(&mut self, until: u64, shared: &mut Shared) -> Option<Result<(Outcome, u64), ErrorKind>> {
        let Some(admin) = &mut self.admin else { return Some(Err(ErrorKind::Io)) };
        admin.send(&mut self.letter, shared);
        let moved = admin.receive(&mut self.letter, shared);
        if let Some(end) = admin.queue.as_mut().and_then(|queue| queue.pop_end()) {
            return Some(Ok((end.outcome, end.value)));
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
            self.letter = Letter::Connect(data.encode().to_vec());
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

    /// What Identify Controller says.
    fn identify(&self, target: &Target) -> Option<IdentifyController> {
        let (of, mut page) = (target.instance(self.controller), vec![0; IDENTIFY_BYTES]);
        let most = target.resets_max();
        let parts: [(usize, &[u8]); 6] = [
            (4, b"SIM"),
            (78, &of.controller.to_le_bytes()),
            (135, &[of.uniquifier]),
            (136, &of.random.to_le_bytes()),
            (512, &[0x66, 0x44]),
            (1807, &[most]),
        ];
        for (at, bytes) in parts {
            page.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        }
        IdentifyController::decode(&page).ok()
    }

    fn associated(&mut self, stream: Stream, answer: Result<u16, ErrorKind>, target: &Target, shared: &mut Shared) {
        let now = Time(shared.now());
        match answer {
            Ok(controller) => {
                (self.admin, self.controller) = (Some(stream), controller);
                self.made += 1;
                let (by, host) = (Holder { controller: self.path.into(), association: self.made }, Nqn::discovery());
                if let Some(info) = self.identify(target) {
                    self.lives.extend(Life::of(&info, controller, (&host, [0; 16])).map(|life| (self.made, life)));
                    self.set_errands(Errands::of(by, &info, controller, (&host, [0; 16])));
                }
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
