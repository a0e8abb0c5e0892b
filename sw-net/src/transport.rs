//! The engine's transport over NVMe/TCP: a connection per controller and lane, made when the first I/O asks for it.
//!
//! ```text
//!   Io ─► Work ─► one or more commands ─► HostQueue ─► socket … ─► ends ─► IoDone
//! ```
//!
//! An [`Io`] becomes several commands where the controller's limits ask for it. If some fail, the bytes before the first one that
//! failed are reported; the engine asks for the rest and gets the fault with its place.
//!
//! When a connection is lost, reads under way end with [`Retry::Now`](sw_engine::Retry): the engine hands them over again and they
//! wait for the next connection; nothing of the old one can land any more, since landing is a system call of this thread. Writes
//! end as failed with an unknown outcome: the target may still carry them out. Then the association ends, and no further write is sent
//! until the target has provably let go of them ([`Controller`] has the fence).
//!
//! *Thread*: one at a time. On the data path nothing is locked, and nothing allocated once the tables have grown. The control plane is
//! the [`Controller`]'s own thread: a lane asks it for a connection and goes on.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use sw_engine::{
    Error, ErrorKind, Fault, Reason, Retry, Token, Verb,
    seam::{Attach, Fence, Io, IoDone, IoKind, Regions, Submit, Transport, TransportCaps, Wait, Wake},
};
use sw_mem::ForkMark;
use sw_nvme::{
    directory::{CONTROLLERS_MAX, in_handle},
    tcp::host::{End, Outcome},
};

use crate::{
    connection::{Broken, ConnectionCounters},
    controller::{Controller, IoQueue, Ticket, is_late},
    directory::{Directory, split},
    wait::{Interest, Waiter},
    works::{Memory, Part, Tables, Work, command_of},
};

/// Its name in routes and reports.
pub const NVME_TCP: &str = "nvme+tcp";
/// I/Os in flight at most that a configuration may ask for.
pub const QUEUE_DEPTH_MAX: u32 = 1 << 14;
/// How often commands are looked at that are late.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A connection that nobody looked at for so long is looked at before something is sent.
const RESTED_AFTER: Duration = Duration::from_millis(100);
/// Longest sleep of a fence between two looks.
const FENCE_STEP: Duration = Duration::from_millis(10);
const SEGMENTS_MAX: u8 = 3;
/// Connections that an I/O waits for at most: each was lost before a byte of it was sent.
const CONNECTIONS_PER_IO_MAX: u8 = 8;

/// What a transport is made with.
#[derive(Clone, Copy, Debug)]
pub struct TcpConfig {
    /// I/Os in flight at most, over all controllers, 1 to [`QUEUE_DEPTH_MAX`]. Default 128.
    pub queue_depth: u32,
    /// Bytes in one I/O at most, a multiple of 4096. Default 1 MiB. Commands are cut further by what the controller takes.
    pub io_bytes_max: u32,
    /// After this long without an answer the connection is closed. Default 30 s, Linux's `nvme_core.io_timeout`.
    pub command_timeout: Duration,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self { queue_depth: 128, io_bytes_max: 1 << 20, command_timeout: Duration::from_secs(30) }
    }
}

impl TcpConfig {
    /// What a transport of this configuration can do.
    pub fn caps(&self) -> TransportCaps {
        TransportCaps {
            name: NVME_TCP,
            queue_depth: self.queue_depth,
            io_bytes_max: self.io_bytes_max,
            segments_max: SEGMENTS_MAX,
            host: Ok(()),
            device: Err(Reason::MemoryUnreachable),
            regions: Regions::Any,
        }
    }
}

/// A connection, with the commands on it.
struct Link {
    queue: IoQueue,
    controller: Arc<Controller>,
    parts: Vec<Part>,
    free: Vec<u32>,
    /// Commands that were let go of, which keep their place in the queue until they are answered, and since when.
    zombies: Vec<(u16, Instant)>,
    /// Works that have commands to send and found no place.
    waiting: VecDeque<u32>,
    interest: Interest,
    /// When bytes were last asked for.
    seen: Instant,
    /// Writes that were under way when an earlier connection was lost may still be carried out: none is sent before they cannot.
    is_fenced: bool,
}

/// A controller, as far as this transport got with it.
enum Place {
    /// Not used yet, or lost: the next I/O asks for a connection.
    Unlinked,
    /// A connection was asked for: works wait.
    Asked(Arc<Ticket>, VecDeque<u32>),
    Linked(Box<Link>),
}

/// See the module documentation.
pub struct TcpTransport {
    directory: Arc<Directory>,
    config: TcpConfig,
    waiter: Waiter,
    places: Vec<Place>,
    /// Why the last I/Os of a place failed, in the words of whoever refused or lost the connection.
    whys: Vec<Option<Error>>,
    tables: Tables,
    ended: Vec<IoDone>,
    /// Works that a look at a connection found over.
    over: Vec<u32>,
    in_flight: u32,
    looked: Option<Instant>,
    /// Of connections that are gone.
    counters: ConnectionCounters,
    fork: ForkMark,
    /// It was fenced: nothing is taken any more.
    closed: bool,
}

impl Link {
    fn new(queue: IoQueue, controller: Arc<Controller>) -> Self {
        let depth = u32::from(queue.facts.depth);
        let none = Part { work: 0, at: 0, cid: 0, since: now(), live: false };
        Self {
            queue,
            controller,
            parts: vec![none; sw_mem::index(u64::from(depth))],
            free: (0..depth).rev().collect(),
            zombies: Vec::new(),
            waiting: VecDeque::new(),
            interest: Interest::Read,
            seen: now(),
            // To be asked about with the first write.
            is_fenced: true,
        }
    }

    /// Whether its association is up.
    fn is_up(&self) -> bool {
        self.queue.is_up()
    }

    /// Whether a write may not be sent yet. Once it may, nobody is asked any more: a fence comes with the end of this connection.
    fn is_fenced(&mut self, now: Instant) -> bool {
        self.is_fenced = self.is_fenced && !self.controller.is_safe(now);
        self.is_fenced
    }

    /// Sends the commands of a work, as many as there are places for; the rest waits.
    fn begin(&mut self, index: u32, tables: &mut Tables, now: Instant) {
        let Some(work) = tables.get(index) else { return };
        let (_, nsid, generation) = split(work.io.handle);
        let facts = Arc::clone(&self.queue.facts);
        let found = facts.namespace(nsid).filter(|found| in_handle(found.generation) == generation);
        let Some((namespace, limits)) = found.and_then(|found| Some((found, found.limits?))) else {
            return work.fail(work.sent, Fault::new(ErrorKind::Changed, 0));
        };
        if work.io.kind == IoKind::Write && !work.stops() && self.is_fenced && self.is_fenced(now) {
            return self.waiting.push_back(index);
        }
        while !work.stops() && work.sent < work.units() {
            let Some(user) = self.free.last().copied() else { break };
            let Some((command, transfer, step)) = command_of(work, namespace, limits) else {
                return work.fail(work.sent, Fault::new(ErrorKind::ApiMisuse, 0));
            };
            let Some(cid) = self.queue.connection.queue.submit(&command, transfer, user) else { break };
            self.free.pop();
            let part = Part { work: index, at: work.sent, cid, since: now, live: true };
            if let Some(place) = self.parts.get_mut(sw_mem::index(u64::from(user))) {
                *place = part;
            }
            (work.sent, work.open) = (work.sent + step, work.open + 1);
        }
        if !work.stops() && work.sent < work.units() {
            self.waiting.push_back(index);
        }
    }

    /// Notes the end of a command; the work that is over by it.
    fn over(&mut self, end: End, tables: &mut Tables) -> Option<u32> {
        let part = self.parts.get_mut(sw_mem::index(u64::from(end.user))).filter(|part| part.live)?;
        part.live = false;
        let Part { work: index, at, .. } = *part;
        self.free.push(end.user);
        let delays = self.queue.facts.info.retry_delays;
        let work = tables.get(index)?;
        work.open = work.open.saturating_sub(1);
        match end.outcome {
            Outcome::Told(status) => {
                if let Some(fault) = status.fault(&delays) {
                    work.fail(at, fault);
                }
            }
            // The target's word against what came: it lies, or lost data.
            Outcome::Short { .. } => work.fail(at, Fault::new(ErrorKind::ShortData, 0)),
            Outcome::WrongDigest => {
                work.fail(at, Fault { kind: ErrorKind::ChecksumMismatch, code: 0, retry: Retry::Now });
            }
            // Bytes of it may be anywhere.
            Outcome::LetGo => work.fail(at, Fault::new(ErrorKind::Cancelled, 0)),
        }
        work.is_over().then_some(index)
    }

    /// Ends the commands of a work for their caller, where their memory can be left alone from now on.
    fn let_go(&mut self, index: u32) {
        for part in self.parts.iter().filter(|part| part.live && part.work == index) {
            let queue = &mut self.queue.connection.queue;
            if queue.let_go(part.cid) && queue.is_let_go(part.cid) {
                self.zombies.push((part.cid, part.since));
            }
        }
        self.bury();
    }

    /// Forgets commands that were let go of and answered since.
    fn bury(&mut self) {
        let queue = &self.queue.connection.queue;
        self.zombies.retain(|(cid, _)| queue.is_let_go(*cid));
    }

    /// Whether a command is late, one that nobody waits for included: its place in the queue is taken.
    fn is_late(&mut self, limit: Duration, now: Instant) -> bool {
        self.bury();
        self.parts.iter().any(|part| part.live && is_late(part.since, limit, now))
            || self.zombies.iter().any(|(_, since)| is_late(*since, limit, now))
    }

    /// Moves bytes both ways; gives the works that are over.
    fn pump(&mut self, tables: &mut Tables, over: &mut Vec<u32>, now: Instant) -> Result<(), Broken> {
        let is_up = self.is_up();
        let memory = Memory { parts: &self.parts, works: &tables.works };
        let connection = &mut self.queue.connection;
        // One that was lost while it rested takes bytes all the same: a write would be of unknown outcome, and needs not be sent.
        let rested = now.saturating_duration_since(self.seen) >= RESTED_AFTER;
        self.seen = now;
        let mut moved = if rested { connection.receive(&memory) } else { Ok(()) };
        if moved.is_ok() {
            let sent = if is_up { connection.send(&memory) } else { Ok(()) };
            // The controller's reason tells more than that nothing can be sent any more.
            moved = connection.receive(&memory).and(sent);
        }
        // What was answered before the connection was lost is answered: a write must not be told as unknown.
        while let Some(end) = self.queue.connection.queue.pop_end() {
            over.extend(self.over(end, tables));
        }
        if !is_up {
            return Err(Broken::Association);
        }
        moved?;
        for _ in 0..self.waiting.len() {
            let Some(index) = self.waiting.pop_front() else { break };
            self.begin(index, tables, now);
            if tables.get(index).is_some_and(|work| work.is_over()) {
                over.push(index);
            }
        }
        let memory = Memory { parts: &self.parts, works: &tables.works };
        // What the controller just asked for, and the next commands.
        if self.queue.connection.queue.has_units() && !self.queue.connection.is_blocked() {
            self.queue.connection.send(&memory)?;
        }
        Ok(())
    }
}

impl TcpTransport {
    /// One for a lane.
    ///
    /// # Errors
    /// `ApiMisuse` for a configuration out of range.
    pub fn new(directory: Arc<Directory>, config: TcpConfig) -> Result<Self, Error> {
        let misuse = |text: &'static str| Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup).at(NVME_TCP).detail(text));
        if !(1..=QUEUE_DEPTH_MAX).contains(&config.queue_depth) {
            return misuse("queue_depth must be 1 to 16384");
        }
        if config.io_bytes_max == 0 || !config.io_bytes_max.is_multiple_of(4096) {
            return misuse("io_bytes_max must be a multiple of 4096 above zero");
        }
        Ok(Self {
            directory,
            config,
            waiter: Waiter::default(),
            places: Vec::new(),
            whys: Vec::new(),
            tables: Tables::default(),
            ended: Vec::new(),
            over: Vec::new(),
            in_flight: 0,
            looked: None,
            counters: ConnectionCounters::default(),
            fork: ForkMark::new(),
            closed: false,
        })
    }

    /// Of all connections that this lane has and had.
    pub fn counters(&self) -> ConnectionCounters {
        let linked = self.places.iter().filter_map(|place| match place {
            Place::Linked(link) => Some(link.queue.connection.counters),
            Place::Unlinked | Place::Asked(..) => None,
        });
        linked.fold(self.counters, |sum, more| sum.and(more))
    }

    fn check_fork(&self) -> Result<(), Error> {
        if !self.fork.is_child() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forked, Verb::Setup)
            .at(NVME_TCP)
            .detail("the process was forked after the connection was made, which belongs to the parent")
            .remedy("make an engine in the child, or start workers with spawn instead of fork"))
    }

    /// Ends an I/O that nobody began.
    fn refuse(&mut self, io: &Io, fault: Fault) {
        self.ended.push(IoDone { token: io.token, result: Err(fault) });
    }

    /// Takes an I/O for a place.
    fn begin(&mut self, io: &Io) {
        let (place, ..) = split(io.handle);
        if self.tables.free.is_empty() {
            // As many as the depth; the caller looked.
            let next = u32::try_from(self.tables.works.len()).unwrap_or(u32::MAX);
            let none = Work { io: *io, place, live: false, cancelled: false, sent: 0, open: 0, failed: None, lost: 0 };
            self.tables.works.push(none);
            self.tables.free.push(next);
        }
        if place >= self.places.len() && place < CONTROLLERS_MAX {
            self.places.resize_with(place + 1, || Place::Unlinked);
            self.whys.resize_with(place + 1, || None);
        }
        if matches!(self.places.get(place), Some(Place::Linked(link)) if !link.is_up()) {
            // The handle may be of the next association, which the connection knows nothing of.
            self.visit(place, now());
        }
        if !matches!(self.places.get(place), Some(Place::Linked(_) | Place::Asked(..)))
            && let Err(fault) = self.ask(place, VecDeque::new())
        {
            return self.refuse(io, fault);
        }
        let Some(index) = self.tables.take(io, place) else { return self.refuse(io, Fault::new(ErrorKind::Busy, 0)) };
        match self.places.get_mut(place) {
            Some(Place::Linked(link)) => {
                link.begin(index, &mut self.tables, now());
                self.finish_if_over(index);
            }
            Some(Place::Asked(_, waiting)) => waiting.push_back(index),
            Some(Place::Unlinked) | None => {}
        }
    }

    /// Asks for a connection of a place.
    fn ask(&mut self, place: usize, waiting: VecDeque<u32>) -> Result<(), Fault> {
        let Some(controller) = self.directory.get(u32::try_from(place).unwrap_or(u32::MAX)) else {
            return Err(Fault::new(ErrorKind::NoDevice, 0));
        };
        if controller.is_gone() {
            self.explain_by(place, controller.lost());
            return Err(Fault::new(ErrorKind::NoDevice, 0));
        }
        if let Some(to) = self.places.get_mut(place) {
            *to = Place::Asked(controller.ask_for_queue(self.waiter.bell()), waiting);
        }
        Ok(())
    }

    fn explain_by(&mut self, place: usize, why: Error) {
        if let Some(to) = self.whys.get_mut(place) {
            *to = Some(why);
        }
    }

    fn finish_if_over(&mut self, index: u32) {
        if self.tables.get(index).is_some_and(|work| work.is_over()) {
            self.ended.extend(self.tables.finish(index));
        }
    }

    /// Looks at a place: takes a connection that was asked for, moves bytes.
    fn visit(&mut self, place: usize, now: Instant) {
        match self.places.get_mut(place) {
            Some(Place::Asked(ticket, _)) => {
                let Some(answer) = ticket.take() else { return };
                let Some(Place::Asked(_, waiting)) =
                    self.places.get_mut(place).map(|at| std::mem::replace(at, Place::Unlinked))
                else {
                    return;
                };
                match answer {
                    Ok(queue) => self.link(place, queue, waiting, now),
                    Err(error) => self.refuse_all(place, waiting, error),
                }
            }
            Some(Place::Linked(link)) => {
                let pumped = link.pump(&mut self.tables, &mut self.over, now);
                let interest = if link.queue.connection.is_blocked() { Interest::ReadWrite } else { Interest::Read };
                if interest != link.interest && self.waiter.change(link.queue.connection.fd(), interest).is_ok() {
                    link.interest = interest;
                }
                while let Some(index) = self.over.pop() {
                    self.ended.extend(self.tables.finish(index));
                }
                if let Err(broken) = pumped {
                    self.unlink(place, &broken);
                }
            }
            Some(Place::Unlinked) | None => {}
        }
    }

    fn link(&mut self, place: usize, queue: IoQueue, waiting: VecDeque<u32>, now: Instant) {
        if !queue.is_up() {
            // Its association is over already; works may be of the next one.
            return self.ask_again(place, waiting);
        }
        let watched = self.waiter.watch(queue.connection.fd());
        let (Ok(()), Some(controller)) = (watched, self.directory.get(u32::try_from(place).unwrap_or(u32::MAX))) else {
            let error = Error::new(ErrorKind::ResourceLimit, Verb::Setup)
                .at(NVME_TCP)
                .detail("a connection cannot be waited for");
            return self.refuse_all(place, waiting, error);
        };
        let mut link = Box::new(Link::new(queue, controller));
        for index in waiting {
            link.begin(index, &mut self.tables, now);
            self.finish_if_over(index);
        }
        if let Some(to) = self.places.get_mut(place) {
            *to = Place::Linked(link);
        }
        self.visit(place, now);
    }

    /// Ends works that wait for a connection which is not made.
    fn refuse_all(&mut self, place: usize, waiting: VecDeque<u32>, error: Error) {
        let fault = Fault::new(error.kind(), error.code());
        self.explain_by(place, error);
        for index in waiting {
            if let Some(work) = self.tables.get(index) {
                work.fail(work.sent, fault);
            }
            self.finish_if_over(index);
        }
    }

    /// Closes a connection: nothing of it lands any more. What of works was not sent waits for the next one.
    fn unlink(&mut self, place: usize, broken: &Broken) {
        let Some(at) = self.places.get_mut(place) else { return };
        let Place::Linked(link) = std::mem::replace(at, Place::Unlinked) else { return };
        let Link { queue, controller, parts, waiting, .. } = *link;
        if let Broken::Breach(breach) = broken {
            queue.connection.terminate(breach);
        }
        self.counters = self.counters.and(queue.connection.counters);
        let untouched = |part: &Part| queue.connection.is_untouched(part.cid);
        let parts: Vec<(Part, bool)> =
            parts.into_iter().filter(|part| part.live).map(|part| (part, untouched(&part))).collect();
        // A child that was forked has the descriptor too, which keeps the connection and its place among what is waited for.
        self.waiter.forget(queue.connection.fd());
        queue.connection.hang_up();
        let facts = Arc::clone(&queue.facts);
        drop(queue);
        let name = controller.name();
        if !matches!(broken, Broken::Fenced) {
            tracing::warn!(controller = name, %broken, "an I/O connection is over");
        }
        if matches!(broken, Broken::System(_) | Broken::Closed | Broken::Silent) {
            controller.suspect();
        }
        self.explain_by(place, broken.error(name));
        let is_write = |part: &Part| self.tables.works.get(sw_mem::index(part.work.into())).is_some_and(Work::is_write);
        if parts.iter().any(|(part, is_untouched)| !is_untouched && is_write(part)) {
            controller.doubt(&facts);
        }
        for (part, is_untouched) in &parts {
            let Some(work) = self.tables.get(part.work) else { continue };
            work.open = work.open.saturating_sub(1);
            if *is_untouched {
                // Commands are sent in their order: those behind it were not sent either.
                work.sent = work.sent.min(part.at);
            } else {
                work.fail(part.at, broken.fault(work.verb()));
            }
        }
        let mut unsent = VecDeque::new();
        for index in parts.iter().map(|(part, _)| part.work).chain(waiting) {
            let Some(work) = self.tables.get(index).filter(|_| !unsent.contains(&index)) else { continue };
            work.lost = work.lost.saturating_add(1);
            if work.lost > CONNECTIONS_PER_IO_MAX && !work.stops() {
                work.fail(work.sent, broken.fault(work.verb()));
            }
            // One that was cancelled before a command of it was sent is over, too.
            if work.is_over() {
                self.finish_if_over(index);
            } else {
                unsent.push_back(index);
            }
        }
        self.ask_again(place, unsent);
    }

    /// Asks for the next connection of works that wait for one; ends them if there is none to be had.
    fn ask_again(&mut self, place: usize, waiting: VecDeque<u32>) {
        if waiting.is_empty() {
            return;
        }
        let Err(fault) = self.ask(place, waiting.clone()) else { return };
        for index in waiting {
            if let Some(work) = self.tables.get(index) {
                work.fail(work.sent, fault);
            }
            self.finish_if_over(index);
        }
    }

    /// Closes connections on which a command is late.
    fn look(&mut self, now: Instant) {
        if self.looked.is_some_and(|before| now.saturating_duration_since(before) < LOOK_EVERY) {
            return;
        }
        self.looked = Some(now);
        for place in 0..self.places.len() {
            if let Some(Place::Linked(link)) = self.places.get_mut(place)
                && link.is_late(self.config.command_timeout, now)
            {
                self.unlink(place, &Broken::Silent);
            }
        }
    }

    /// Moves everything forward, without waiting; how many ends it gave out.
    fn pass(&mut self, out: &mut Vec<IoDone>) -> usize {
        let now = now();
        for place in 0..self.places.len() {
            self.visit(place, now);
        }
        self.look(now);
        let room = out.capacity() - out.len();
        let given = self.ended.len().min(room);
        out.extend(self.ended.drain(..given));
        self.in_flight = self.in_flight.saturating_sub(u32::try_from(given).unwrap_or(u32::MAX));
        given
    }

    /// Asks for the early end of the works that `which` chooses.
    fn let_go(&mut self, which: impl Fn(&Work) -> bool) {
        for index in 0..self.tables.works.len() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let Some(work) = self.tables.get(index).filter(|work| which(work)) else { continue };
            work.cancelled = true;
            match self.places.get_mut(work.place) {
                Some(Place::Linked(link)) => link.let_go(index),
                Some(Place::Asked(_, waiting)) => {
                    waiting.retain(|queued| *queued != index);
                    self.finish_if_over(index);
                }
                Some(Place::Unlinked) | None => {}
            }
        }
    }
}

impl Transport for TcpTransport {
    fn caps(&self) -> TransportCaps {
        self.config.caps()
    }

    fn attach(&mut self, _hint: Attach<'_>) -> Result<(), Error> {
        self.check_fork()
    }

    fn submit(&mut self, io: &Io) -> Submit {
        if self.fork.is_child() || self.closed || self.in_flight >= self.config.queue_depth {
            return Submit::Full;
        }
        self.in_flight += 1;
        self.begin(io);
        Submit::Accepted
    }

    fn ring(&mut self) -> Result<(), Error> {
        self.check_fork()?;
        let now = now();
        for place in 0..self.places.len() {
            self.visit(place, now);
        }
        Ok(())
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        self.check_fork()?;
        let mut found = self.pass(out);
        let Wait::For { timeout, .. } = wait else { return Ok(found) };
        let begun = now();
        while found == 0 && out.len() < out.capacity() {
            let Some(left) = timeout.checked_sub(now().saturating_duration_since(begun)).filter(|left| !left.is_zero())
            else {
                break;
            };
            let woken = self.waiter.wait(left.min(LOOK_EVERY));
            found = self.pass(out);
            if woken {
                break;
            }
        }
        Ok(found)
    }

    fn cancel(&mut self, token: Token) {
        if !self.fork.is_child() {
            self.let_go(|work| work.io.token == token);
        }
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        if self.fork.is_child() {
            // What is in flight is the parent's, in the parent's memory.
            return Fence::Quiet;
        }
        self.closed = true;
        self.let_go(|_| true);
        let begun = now();
        while self.in_flight > 0 && now().saturating_duration_since(begun) < timeout && out.len() < out.capacity() {
            if self.pass(out) == 0 {
                self.waiter.wait(timeout.min(FENCE_STEP));
            }
        }
        // Only this thread's calls put bytes into memory or read it: without connections nothing does.
        for place in 0..self.places.len() {
            self.unlink(place, &Broken::Fenced);
        }
        self.pass(out);
        Fence::Quiet
    }

    fn explain(&self, handle: u64, fault: Fault) -> Option<&Error> {
        let why = self.whys.get(split(handle).0)?.as_ref();
        why.filter(|why| (why.kind(), why.code()) == (fault.kind, fault.code))
    }

    fn rests(&self) -> bool {
        // A connection with nothing on it wants nothing of its lane; that it was lost is seen by the next I/O.
        true
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.waiter.waker()
    }
}

#[expect(clippy::disallowed_methods, reason = "sockets are waited for by the kernel's clock, and the seam has no now")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
