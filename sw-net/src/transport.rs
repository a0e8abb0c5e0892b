//! The engine's transport over NVMe/TCP: a connection per controller and lane, made when the first I/O asks for it.
//!
//! ```text
//!   Io ─► Work ─► path (legs) ─► one or more commands ─► HostQueue ─► socket … ─► ends ─► IoDone
//! ```
//!
//! An [`Io`] becomes several commands where the controller's limits ask for it. If some fail, the bytes before the first one that
//! failed are reported; the engine asks for the rest and gets the fault with its place.
//!
//! When a connection is lost, reads under way end with [`Retry::Now`](sw_engine::Retry): the engine hands them over again and they
//! wait for the next connection; nothing of the old one can land any more, since landing is a system call of this thread. Writes
//! end as failed with an unknown outcome: the target may still carry them out. Then the association ends, and no further write is sent, by
//! whichever controller of the subsystem, until the target has provably let go of them ([`Family`](crate::family::Family) has the fence). What
//! was not sent goes by another path, or waits for one.
//!
//! *Thread*: one at a time. On the data path nothing is locked, and nothing allocated once the tables have grown. The control plane is
//! the [`Controller`]'s own thread: a lane asks it for a connection and goes on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sw_engine::{
    Error, ErrorKind, Fault, Reason, Retry, Time, Token, Verb,
    seam::{Attach, Fence, Io, IoDone, Regions, Submit, Transport, TransportCaps, Wait, Wake},
};
use sw_mem::{DmaRegion, ForkMark, RegionId, WeakRegion};
use sw_nvme::{
    rdma::{Memory as Left, WINDOW_SHARED, session::Windows},
    status::Status,
    tcp::{
        host::Range,
        ledger::{Ledger, Loss, Reached, Side},
        works::{Work, Works},
    },
};

use crate::{
    carrier::Carrier,
    clock::now,
    connection::{Broken, ConnectionCounters, Places},
    controller::{Controller, IoQueue},
    directory::{Directory, split},
    family::Awaited,
    socket::Piece,
    wait::{Interest, Waiter},
};

mod legs;
mod route;

use legs::{Head, Leg, Place};

/// Its name in routes and reports.
pub const NVME_TCP: &str = "nvme+tcp";
/// The name of the transport over the emulated RDMA fabric. The kernel copies each byte between a socket and its place: never "dma".
pub const NVME_RDMA_EMULATED: &str = "nvme+rdma-emulated";
/// The name of the transport over RDMA devices of the system's: NICs, and the kernel's software ones (rxe, siw). Which of both it is, the landing says.
pub const NVME_RDMA: &str = "nvme+rdma";
/// Bytes in one I/O over RDMA at most: a command names less than 16 MiB.
const RDMA_IO_BYTES_MAX: u32 = 8 << 20;
const _: () = assert!(RDMA_IO_BYTES_MAX as u64 <= WINDOW_SHARED, "each I/O lies in one window of its region");
/// I/Os in flight at most that a configuration may ask for.
pub const QUEUE_DEPTH_MAX: u32 = 1 << 14;
/// How often commands are looked at that are late.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A connection that nobody looked at for so long is looked at before something is sent.
const RESTED_AFTER: Duration = Duration::from_millis(100);
/// Longest sleep of a fence between two looks.
const FENCE_STEP: Duration = Duration::from_millis(10);
const SEGMENTS_MAX: u8 = 3;

/// What a transport is made with.
#[derive(Clone, Copy, Debug)]
pub struct TcpConfig {
    /// I/Os in flight at most, over all controllers, 1 to [`QUEUE_DEPTH_MAX`]. Default 128.
    pub queue_depth: u32,
    /// Bytes in one I/O at most, a multiple of 4096. Default 1 MiB. Commands are cut further by what the controller takes.
    pub io_bytes_max: u32,
    /// After this long without an answer the connection is closed. Default 30 s, Linux's `nvme_core.io_timeout`.
    pub command_timeout: Duration,
    /// The wire. Default TCP.
    pub wire: Wire,
}

/// What the controllers of a transport are behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// TCP.
    Tcp,
    /// The emulated RDMA fabric.
    EmulatedRdma,
    /// RDMA devices of the system's.
    Rdma,
}

impl Wire {
    /// The name of the transport in routes and reports.
    pub fn transport(self) -> &'static str {
        match self {
            Self::Tcp => NVME_TCP,
            Self::EmulatedRdma => NVME_RDMA_EMULATED,
            Self::Rdma => NVME_RDMA,
        }
    }

    /// Which regions it must know: over RDMA a command names one piece of memory, of a region that is known. An I/O of several pieces has a command for each.
    fn regions(self) -> Regions {
        match self {
            Self::Tcp => Regions::Any,
            Self::EmulatedRdma | Self::Rdma => Regions::Attached,
        }
    }
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self { queue_depth: 128, io_bytes_max: 1 << 20, command_timeout: Duration::from_secs(30), wire: Wire::Tcp }
    }
}

impl TcpConfig {
    /// What a transport of this configuration can do.
    pub fn caps(&self) -> TransportCaps {
        let regions = self.wire.regions();
        let (io_bytes_max, segments_max) = match regions {
            Regions::Any => (self.io_bytes_max, SEGMENTS_MAX),
            Regions::Attached => (self.io_bytes_max.min(RDMA_IO_BYTES_MAX), SEGMENTS_MAX),
        };
        TransportCaps {
            name: self.wire.transport(),
            queue_depth: self.queue_depth,
            io_bytes_max,
            segments_max,
            host: Ok(()),
            device: Err(Reason::MemoryUnreachable),
            regions,
        }
    }
}

/// What a look at a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// What was submitted goes out. What came is left to the next look: the lane polls anyway.
    Send,
    /// Bytes move both ways.
    Both,
}

/// A connection, with the commands on it.
struct Link {
    queue: IoQueue,
    controller: Arc<Controller>,
    ledger: Ledger,
    interest: Interest,
    /// When bytes were last asked for.
    seen: Time,
}

/// The data of commands: the memory of their I/Os.
struct Memory<'a> {
    ledger: &'a Ledger,
    works: &'a Works,
    /// What was attached, for a wire that needs it.
    regions: &'a BTreeMap<RegionId, WeakRegion>,
}

impl Places for Memory<'_> {
    fn pieces(&self, of: Range, into: &mut Vec<Piece>) {
        let Some((work, at)) = self.ledger.place(of, self.works) else { return };
        work.memory(at, of.bytes.into(), |place, skip, len| {
            if let Some(base) = place.host() {
                into.push(Piece::at(base.raw().wrapping_add(skip), len));
            }
        });
    }
}

impl Windows for Memory<'_> {
    fn window(&self, of: Range) -> Option<(DmaRegion, u64)> {
        let (work, at) = self.ledger.place(of, self.works)?;
        let (segment, skip) = work.piece_at(at)?;
        let region = self.regions.get(&segment.region)?.upgrade()?;
        let at = segment.place.raw().checked_sub(region.base().raw())?.checked_add(skip)?;
        (skip + u64::from(of.bytes) <= u64::from(segment.len)).then_some((region, at))
    }
}

/// See the module documentation.
pub struct TcpTransport {
    directory: Arc<Directory>,
    config: TcpConfig,
    waiter: Waiter,
    /// By the index of the directory.
    heads: Vec<Option<Head>>,
    legs: Vec<Leg>,
    /// Why the last I/Os of a head failed, in the words of whoever refused or lost the connection.
    whys: Vec<Option<Error>>,
    works: Works,
    /// Writes that go on though their end was asked for, and what keeps others back until they are over.
    awaited: Vec<(u32, Awaited)>,
    /// Those that were attached, over RDMA.
    regions: BTreeMap<RegionId, WeakRegion>,
    ended: Vec<IoDone>,
    /// Works that a look at a connection found over.
    over: Vec<u32>,
    /// Works that are without a path, and go by another one or wait.
    homeless: Vec<u32>,
    in_flight: u32,
    /// I/Os that ended with memory that stays with a device.
    kept: u32,
    looked: Option<Time>,
    /// Of connections that are gone.
    counters: ConnectionCounters,
    fork: ForkMark,
    /// It was fenced: nothing is taken any more.
    closed: bool,
}

impl Link {
    fn new(queue: IoQueue, controller: Arc<Controller>) -> Self {
        let ledger = Ledger::new(queue.facts.depth);
        Self { queue, controller, ledger, interest: Interest::Read, seen: now() }
    }

    /// Whether its association is up.
    fn is_up(&self) -> bool {
        self.queue.is_up()
    }

    /// Commands and works that are with it.
    fn busy(&self) -> usize {
        self.ledger.busy()
    }

    /// The commands, and what they are made with.
    fn sides(&mut self) -> (&mut Ledger, Side<'_, Carrier>) {
        let Self { queue: IoQueue { connection, facts, .. }, controller, ledger, .. } = self;
        (ledger, Side { queue: connection, namespaces: &facts.namespaces, gate: &**controller.family() })
    }

    /// Takes what the controller said of its namespaces since.
    fn hear(&mut self) {
        if self.controller.revision() != self.queue.facts.revision {
            let facts = self.controller.facts();
            if facts.association == self.queue.facts.association {
                self.queue.facts = facts;
            }
        }
    }

    /// Sends the commands of a work; whether it is over by this.
    fn begin(&mut self, index: u32, works: &mut Works, now: Time) -> bool {
        self.hear();
        let (ledger, mut side) = self.sides();
        ledger.begin(index, works, &mut side, now)
    }

    /// Moves bytes both ways; gives the works that are over.
    fn pump(
        &mut self,
        (works, regions): (&mut Works, &BTreeMap<RegionId, WeakRegion>),
        over: &mut Vec<u32>,
        (look, now): (Look, Time),
    ) -> Result<(), Broken> {
        let is_up = self.is_up();
        let memory = Memory { ledger: &self.ledger, works, regions };
        let connection = &mut self.queue.connection;
        // One that was lost while it rested takes bytes all the same: a write would be of unknown outcome, and needs not be sent.
        let rested = now.since(self.seen) >= RESTED_AFTER;
        self.seen = now;
        let mut moved = if rested { connection.receive(&memory) } else { Ok(()) };
        if moved.is_ok() {
            let sent = if is_up { connection.send(&memory) } else { Ok(()) };
            // The controller's reason tells more than that nothing can be sent any more.
            let receives = look == Look::Both || sent.is_err();
            moved = if receives { connection.receive(&memory).and(sent) } else { sent };
        }
        // What was answered before the connection was lost is answered: a write must not be told as unknown.
        while let Some(end) = self.queue.connection.pop_end() {
            over.extend(self.ledger.ended(end, works, &self.queue.facts.info.retry_delays));
        }
        if !is_up {
            return Err(Broken::Association);
        }
        moved?;
        // What waited goes by what the controller has now.
        self.hear();
        let (ledger, mut side) = self.sides();
        ledger.resume(works, &mut side, over, now);
        let memory = Memory { ledger: &self.ledger, works, regions };
        // What the controller just asked for, and the next commands.
        if self.queue.connection.has_units() && !self.queue.connection.is_blocked() {
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
        let at = config.wire.transport();
        let misuse = |text: &'static str| Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup).at(at).detail(text));
        if !(1..=QUEUE_DEPTH_MAX).contains(&config.queue_depth) {
            return misuse("queue_depth must be 1 to 16384");
        }
        if config.io_bytes_max == 0 || !config.io_bytes_max.is_multiple_of(4096) {
            return misuse("io_bytes_max must be a multiple of 4096 above zero");
        }
        let depth = sw_mem::index(u64::from(config.queue_depth));
        Ok(Self {
            directory,
            config,
            waiter: Waiter::default(),
            heads: Vec::new(),
            legs: Vec::new(),
            whys: Vec::new(),
            works: Works::with_room(depth),
            awaited: Vec::new(),
            regions: BTreeMap::new(),
            ended: Vec::with_capacity(depth),
            over: Vec::with_capacity(depth),
            homeless: Vec::with_capacity(depth),
            in_flight: 0,
            kept: 0,
            looked: None,
            counters: ConnectionCounters::default(),
            fork: ForkMark::new(),
            closed: false,
        })
    }

    /// Of all connections that this lane has and had.
    pub fn counters(&self) -> ConnectionCounters {
        let linked = self.legs.iter().filter_map(|leg| match &leg.place {
            Place::Linked(link) => Some(link.queue.connection.counters()),
            Place::Unlinked | Place::Asked(_) => None,
        });
        linked.fold(self.counters, |sum, more| sum.and(more))
    }

    fn check_fork(&self) -> Result<(), Error> {
        if !self.fork.is_child() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forked, Verb::Setup)
            .at(self.config.wire.transport())
            .detail("the process was forked after the connection was made, which belongs to the parent")
            .remedy("make an engine in the child, or start workers with spawn instead of fork"))
    }

    /// Ends an I/O that nobody began.
    fn refuse(&mut self, io: &Io, fault: Fault) {
        self.ended.push(IoDone { token: io.token, result: Err(fault), aside: 0 });
    }

    /// Whether the memory of an I/O is known, where the wire asks for that.
    fn reaches(&self, io: &Io) -> bool {
        let is_known = |region| self.regions.get(region).is_some_and(WeakRegion::is_alive);
        self.config.wire.regions() == Regions::Any || io.segments().iter().all(|segment| is_known(&segment.region))
    }

    /// Takes an I/O.
    fn begin(&mut self, io: &Io) {
        let (head, ..) = split(io.handle);
        if !self.reaches(io) {
            return self.refuse(io, Fault::new(ErrorKind::NotRegistered, 0));
        }
        if !self.meet(head) {
            return self.refuse(io, Fault::new(ErrorKind::NoDevice, 0));
        }
        // As many as the depth; the caller looked.
        let index = self.works.take(io, head);
        self.send(index, now());
    }

    fn explain_by(&mut self, head: usize, why: Error) {
        if let Some(to) = self.whys.get_mut(head) {
            *to = Some(why);
        }
    }

    /// Keeps the words for a status, if the fault is one. An I/O that ends as the one before it needs no new ones.
    fn explain_status(&mut self, head: usize, fault: Fault) {
        let known = self.whys.get(head).and_then(Option::as_ref);
        let is_known = known.is_some_and(|why| (why.kind(), why.code()) == (fault.kind, fault.code));
        let Ok(code) = u16::try_from(fault.code) else { return };
        if code == 0 || is_known {
            return;
        }
        let [sct, sc] = code.to_be_bytes();
        let status = Status::new(sct, sc);
        let told = if fault.retry == Retry::Never { status.with_dnr() } else { status };
        let why =
            Error::new(fault.kind, Verb::Read).with_code(fault.code).detail(format!("the target answered: {told}"));
        self.explain_by(head, why.remedy(status.remedy().unwrap_or("see the target's log")));
    }

    fn finish_if_over(&mut self, index: u32) {
        if self.works.look(index).is_some_and(Work::is_over) {
            let done = self.finish(index);
            self.ended.extend(done);
        }
    }

    /// Looks at a leg: takes a connection that was asked for, moves bytes.
    fn visit(&mut self, leg: usize, (look, now): (Look, Time)) {
        let Some(at) = self.legs.get_mut(leg) else { return };
        match &mut at.place {
            Place::Asked(ticket) => {
                let Some(answer) = ticket.take() else { return };
                at.place = Place::Unlinked;
                match answer {
                    Ok(queue) => self.link(leg, queue, now),
                    Err(error) => self.refused(leg, error, now),
                }
            }
            Place::Linked(link) => {
                let pumped = link.pump((&mut self.works, &self.regions), &mut self.over, (look, now));
                let interest = if link.queue.connection.is_blocked() { Interest::ReadWrite } else { Interest::Read };
                if interest != link.interest
                    && let Some(fd) = link.queue.connection.fd()
                    && self.waiter.change(fd, interest).is_ok()
                {
                    link.interest = interest;
                }
                self.take_over(leg, now);
                if let Err(broken) = pumped {
                    self.unlink(leg, &broken);
                }
            }
            Place::Unlinked => {}
        }
    }

    /// Gives out the works that a look at a leg found over.
    fn take_over(&mut self, leg: usize, now: Time) {
        while let Some(index) = self.over.pop() {
            let done = self.end(leg, index, now);
            self.ended.extend(done);
        }
    }

    fn link(&mut self, leg: usize, queue: IoQueue, now: Time) {
        let paths = self.paths_of(leg);
        let Some(at) = self.legs.get_mut(leg) else { return };
        let (head, number) = (at.head, at.number());
        if !queue.is_up() {
            // Its association is over already; works may be of the next one.
            return self.send_waiting(head, now);
        }
        let watched = match queue.connection.fd() {
            Some(fd) => self.waiter.watch(fd),
            None => self.waiter.watch_bell().inspect(|()| queue.connection.ring(self.waiter.bell())),
        };
        let (Ok(()), Some(controller)) = (watched, paths.as_ref().and_then(|paths| paths.controller(number))) else {
            let error = Error::new(ErrorKind::ResourceLimit, Verb::Setup)
                .at(self.config.wire.transport())
                .detail("a connection cannot be waited for");
            return self.refused(leg, error, now);
        };
        at.place = Place::Linked(Box::new(Link::new(queue, Arc::clone(controller))));
        self.send_waiting(head, now);
        self.visit(leg, (Look::Both, now));
    }

    /// Closes a connection: nothing of it lands any more. What of works was not sent goes by another path, or waits for the next connection.
    fn unlink(&mut self, leg: usize, broken: &Broken) {
        let Some(at) = self.legs.get_mut(leg) else { return };
        let Place::Linked(link) = std::mem::replace(&mut at.place, Place::Unlinked) else { return };
        let head = at.head;
        let Link { mut queue, controller, ledger, .. } = *link;
        if let Broken::Breach(breach) = broken {
            queue.connection.terminate(breach);
        }
        self.counters = self.counters.and(queue.connection.counters());
        // A child that was forked has the descriptor too, which keeps the connection and its place among what is waited for.
        if let Some(fd) = queue.connection.fd() {
            self.waiter.forget(fd);
        }
        let sent = match queue.connection.hang_up() {
            Left::Free => Reached::Controller,
            Left::Stays => Reached::Kept,
        };
        let reached = |cid| if queue.connection.is_untouched(cid) { Reached::Nobody } else { sent };
        let Loss { in_doubt, over, unsent } = ledger.lost(&mut self.works, broken.kind(), reached);
        let facts = Arc::clone(&queue.facts);
        drop(queue);
        let name = controller.name();
        if !matches!(broken, Broken::Fenced) {
            tracing::warn!(controller = name, %broken, "an I/O connection is over");
        }
        if matches!(broken, Broken::System(_) | Broken::Closed | Broken::Silent | Broken::Verbs(_)) {
            controller.suspect();
        }
        self.explain_by(head, broken.error(name));
        if in_doubt {
            controller.doubt(&facts);
        }
        for index in over {
            let done = self.finish(index);
            let is_kept = |done: &IoDone| done.result.is_err_and(|fault| fault.keeps_memory());
            self.kept += u32::from(done.as_ref().is_some_and(is_kept));
            self.ended.extend(done);
        }
        self.homeless.extend(unsent.into_iter().rev());
        self.send_homeless(now());
    }

    /// Closes connections on which a command is late.
    fn look(&mut self, now: Time) {
        if self.looked.is_some_and(|before| now.since(before) < LOOK_EVERY) {
            return;
        }
        self.looked = Some(now);
        for leg in 0..self.legs.len() {
            if let Some(Leg { place: Place::Linked(link), .. }) = self.legs.get_mut(leg)
                && link.ledger.is_late(&link.queue.connection, self.config.command_timeout, now)
            {
                self.unlink(leg, &Broken::Silent);
            }
        }
        self.look_for_paths(now);
    }

    /// Moves everything forward, without waiting; how many ends it gave out.
    fn pass(&mut self, out: &mut Vec<IoDone>) -> usize {
        let now = now();
        for leg in 0..self.legs.len() {
            self.visit(leg, (Look::Both, now));
        }
        self.look(now);
        let room = out.capacity() - out.len();
        let given = self.ended.len().min(room);
        out.extend(self.ended.drain(..given));
        self.in_flight = self.in_flight.saturating_sub(u32::try_from(given).unwrap_or(u32::MAX));
        given
    }

    /// Whether a connection is to be received from before anybody sleeps: its bytes may be in a library, where no descriptor tells of them.
    fn may_hold(&self) -> bool {
        self.legs.iter().any(|leg| matches!(&leg.place, Place::Linked(link) if link.queue.connection.may_hold()))
    }
}

impl Transport for TcpTransport {
    fn caps(&self) -> TransportCaps {
        self.config.caps()
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        self.check_fork()?;
        match hint {
            Attach::Region(region) if self.config.wire.regions() == Regions::Attached => {
                self.regions.insert(region.id(), region.downgrade());
            }
            Attach::RegionGone(region) => {
                self.regions.remove(&region);
                for leg in &mut self.legs {
                    if let Place::Linked(link) = &mut leg.place {
                        link.queue.connection.region_gone(region);
                    }
                }
            }
            Attach::Region(_) | Attach::Object(_) | Attach::ObjectGone(_) => {}
        }
        Ok(())
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
        for leg in 0..self.legs.len() {
            self.visit(leg, (Look::Send, now));
        }
        Ok(())
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        self.check_fork()?;
        let mut found = self.pass(out);
        let Wait::For { timeout, .. } = wait else { return Ok(found) };
        let begun = now();
        while found == 0 && out.len() < out.capacity() {
            let Some(left) = timeout.checked_sub(now().since(begun)).filter(|left| !left.is_zero()) else {
                break;
            };
            let woken = self.waiter.wait(if self.may_hold() { Duration::ZERO } else { left.min(LOOK_EVERY) });
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
        while self.in_flight > 0 && now().since(begun) < timeout && out.len() < out.capacity() {
            if self.pass(out) == 0 {
                self.waiter.wait(timeout.min(FENCE_STEP));
            }
        }
        // Over TCP only this thread's calls touch memory; over RDMA a connection that was hung up reaches none: without connections nothing does, but for
        // what was told as kept.
        for leg in 0..self.legs.len() {
            self.unlink(leg, &Broken::Fenced);
        }
        self.pass(out);
        if self.kept > 0 { Fence::Busy(self.kept) } else { Fence::Quiet }
    }

    fn explain(&self, handle: u64, fault: Fault) -> Option<&Error> {
        let why = self.whys.get(split(handle).0)?.as_ref();
        why.filter(|why| (why.kind(), why.code()) == (fault.kind, fault.code))
    }

    fn waits(&self, handle: u64) -> Option<Error> {
        let (head, ..) = split(handle);
        let there = self.heads.get(head)?.as_ref().filter(|head| !head.waiting.is_empty())?;
        let why = there.paths.controllers().map(|controller| controller.why_not()).find(|why| !why.is_empty());
        let text = why.unwrap_or_else(|| "a connection to the target is not there yet".to_owned());
        Some(Error::new(ErrorKind::NoDevice, Verb::Read).detail(text).remedy("see the target's log and the network"))
    }

    fn rests(&self) -> bool {
        // A connection with nothing on it wants nothing of its lane; that it was lost is seen by the next I/O.
        true
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.waiter.waker()
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
