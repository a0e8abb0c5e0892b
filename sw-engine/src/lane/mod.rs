//! A lane: one thread's way from operations to completions.
//!
//! ```text
//!   submit ─► OpState ─► Flow (a cursor) ─► Chunk in a slot ─► Transport ─► [CPU copy | CopyEngine] ─► Completion
//!             (ops)      (one per member)    (slots)            (queues)     (copiers)                  (ready)
//! ```
//!
//! Calling order: `submit` any number of operations, `ring` if they must start before the next `poll`, `poll`, then `pop`
//! until it is empty. All of it on one thread at a time; `now` never goes back.
//!
//! Back-pressure: an operation of any size takes one [`OpState`] and one flow per stripe member; its chunks wait for
//! slots, slabs and queue places. `submit` answers `Busy` when operations or flows run out, and gives the operation back.
//!
//! Fairness: each device of each transport has its own round of flows, and a flow cuts at most [`QUANTUM`] chunks before the
//! next one has its turn, so a large operation does not hold up small ones. A device has a part of a transport's places and of
//! the slabs, so one that hangs does not hold up others (`share.rs`).
//!
//! What is not here: planning (`plan.rs`), arithmetic of cuts (`split.rs`), time, threads, I/O.

mod attach;
mod close;
mod done;
mod emit;
mod flow;
mod report;
mod share;
mod take;

use std::collections::VecDeque;

use sw_mem::{HugePages, Place, Slab, SlabPool};

use crate::{
    checksum::Pieces,
    error::{Error, ErrorKind, Fault, Verb},
    object::{Device, ObjectId},
    op::{Completion, Limits, Op, OpId, Times},
    path::{ByPath, Reason},
    plan::Leg,
    seam::{CopyDone, CopyEngine, CopyEngineCaps, IoDone, IoKind, SlabPin, Transport, TransportCaps, Wait},
    slot::{SlotTable, Token},
    split::Cut,
    time::Time,
};
use attach::{Attached, Told};
use flow::FlowTable;
pub use report::Counters;
use share::Shares;

/// Chunks that a flow cuts before the next flow of the same transport has its turn.
const QUANTUM: u32 = 4;
/// Times that one chunk is resubmitted (short transfers, `EAGAIN`) before it is a fault: far above what a sane kernel does.
const RESUBMITS_MAX: u8 = 64;
/// Slots beside those of the transports, for chunks that are in a copy engine.
const COPY_SLOTS: u32 = 64;
/// Flows beside one per operation, so that stripe sets have theirs.
const STRIPE_FLOWS: u32 = crate::stripe::MEMBERS_MAX;

/// How large a lane is.
#[derive(Clone, Copy, Debug)]
pub struct LaneConfig {
    /// Operations at a time, 1 to 65,536.
    pub ops_max: u32,
    /// Bounce slabs for ragged ends: one per chunk that has such an end.
    pub bounce_slabs: u32,
    /// Bytes of a bounce slab: holds a block at each end, so twice the largest block served in place.
    pub bounce_bytes: u32,
    /// Pages of the bounce slabs: others than the default only where a transport reaches no others.
    pub bounce_pages: HugePages,
    /// Chunks of one device that a transport may have at a time, so that a device that does not answer leaves places for
    /// others: less than the depth of a transport that serves many devices.
    pub device_depth: u32,
    /// What an operation may be.
    pub limits: Limits,
}

impl Default for LaneConfig {
    /// 256 operations, 64 bounce slabs of 8 KiB (blocks of up to 4 KiB at both ends) on small pages, any number of chunks
    /// of one device.
    fn default() -> Self {
        Self {
            ops_max: 256,
            bounce_slabs: 64,
            bounce_bytes: 8192,
            bounce_pages: HugePages::Never,
            device_depth: u32::MAX,
            limits: Limits::default(),
        }
    }
}

/// What a lane is made of.
pub struct LaneParts {
    /// The transports; a [`Choice`](crate::Choice) names them by their index here.
    pub transports: Vec<Box<dyn Transport>>,
    /// Copy engines, one per device at most.
    pub copiers: Vec<Box<dyn CopyEngine>>,
    /// Slabs for staging, if the engine has a budget for them.
    pub staging: Option<SlabPool>,
}

/// A transport with its round of flows.
struct Queue {
    /// `Some` until the lane leaks it on purpose.
    transport: Box<dyn Transport>,
    caps: TransportCaps,
    /// As the transport says.
    rests: bool,
    /// Its places, and its flows with bytes left to cut. A chunk in a device-to-slab copy before a write has a place too.
    shares: Shares,
    /// I/Os that it took since the last ring.
    unrung: u32,
    /// Ready to be submitted, but the transport said `Full`.
    refused: VecDeque<Token>,
    /// Why it takes no more, once it broke.
    broken: Option<Fault>,
    /// What was attached to it for operations, if it must be told of memory.
    attached: Option<Box<Attached>>,
}

/// A copy engine with its backlog.
struct Copier {
    engine: Box<dyn CopyEngine>,
    caps: CopyEngineCaps,
    taken: u32,
    backlog: VecDeque<Token>,
    /// Why it takes no more, once it broke.
    broken: Option<Fault>,
    /// Pins of the staging slabs; dropped before the slabs.
    _pin: Option<Box<dyn SlabPin>>,
}

/// Where a chunk's bytes rest on their way.
#[derive(Debug, Default)]
enum Stash {
    #[default]
    None,
    Bounce(Slab),
    Staging(Slab),
}

/// What a chunk waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The transport.
    Io,
    /// A copy engine, before the transport (a write from device memory).
    CopyIn,
    /// A copy engine, after the transport (a read into device memory).
    CopyOut,
}

/// The body of a slot.
#[derive(Debug)]
struct Chunk {
    op: Token,
    kind: IoKind,
    phase: Phase,
    resubmits: u8,
    /// A try of it failed that may have written something.
    in_doubt: bool,
    /// The transport moves its bytes in place, nobody sums them, and none have come so far: when all come at once, nothing is
    /// left to do.
    plain: bool,
    /// It takes the way that was planned for the operation, so its bytes are counted as such.
    as_planned: bool,
    /// Offset in the operation of the first wanted byte.
    logical: u64,
    /// Offset in its span of the first wanted byte.
    memory: u64,
    span: u32,
    /// Bytes of the cut that the transport has moved.
    have: u32,
    /// Of these, what the transport [copied aside](crate::seam::IoDone::aside).
    aside: u32,
    cut: Cut,
    stash: Stash,
    device: Device,
    object: ObjectId,
    leg: Leg,
}

/// The bytes of an operation that were not moved by plan, in place over the main leg of a plain object, and their way.
#[derive(Clone, Copy, Debug)]
struct Others {
    bytes: ByPath,
    bounced: u64,
    cpu_copied: u64,
    /// The transport that most such bytes of each landing took, of two; [`NO_TRANSPORT`] before.
    transports: [u8; 3],
    /// By how many bytes it leads.
    leads: [u64; 3],
    /// Why the least direct chunk of these went no better way.
    reason: Reason,
    /// How indirect that chunk was (`rank_of` in `done.rs`); 0 before there is one.
    rank: u16,
}

/// A lane has 64 transports at most.
const NO_TRANSPORT: u8 = u8::MAX;

impl Others {
    const NONE: Self = Self {
        bytes: ByPath { dma: 0, kernel_copy: 0, staged: 0 },
        bounced: 0,
        cpu_copied: 0,
        transports: [NO_TRANSPORT; 3],
        leads: [0; 3],
        reason: Reason::Best,
        rank: 0,
    };
}

/// An operation in the lane.
struct OpState {
    op: Option<Op>,
    submitted: Time,
    /// When the first chunk left; [`Time::FOREVER`] until then.
    started: Time,
    /// Flows that still have bytes to cut.
    flows: u32,
    /// Slots that name this operation.
    slots: u32,
    /// Bytes that moved by plan.
    planned: u64,
    /// Those that did not.
    others: Others,
    answer: Answer,
    /// When its last slot and flow were gone.
    ended: Time,
    /// Boxed: the common operation has none.
    fault: Option<Box<Failure>>,
    pieces: Option<Box<Pieces>>,
}

/// What the caller of an operation gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Its completion, at the end.
    Owed,
    /// Its completion, which waits to be popped. The operation is over.
    Ready,
    /// Nothing more: it has its answer, or wants none.
    Given,
    /// Likewise, and a device may touch its memory for ever.
    Kept,
}

/// Answers that wait to be popped, oldest first.
///
/// Those of operations that are over keep their slots, so there are no more of them than slots. A lane with that many others
/// takes no operation ([`Lane::has_room`]), so there are fewer than twice that many of those.
struct ReadyList {
    /// Whose answer: a slot of an operation that is over, of which the completion is made when it is popped; or [`EARLY`].
    order: VecDeque<Token>,
    /// Answers before the end: deadline, cancel, close.
    early: VecDeque<Completion>,
}

/// In the place of a slot: the next one of [`ReadyList::early`].
const EARLY: Token = Token::from_raw(u64::MAX);

impl ReadyList {
    fn new(ops_max: u32) -> Self {
        Self { order: VecDeque::with_capacity(ops_max as usize * 2), early: VecDeque::new() }
    }

    #[inline]
    fn push_over(&mut self, token: Token) {
        self.order.push_back(token);
    }

    fn push_early(&mut self, completion: Completion) {
        self.order.push_back(EARLY);
        self.early.push_back(completion);
    }

    /// Operations that are over and keep their slots.
    fn over(&self) -> usize {
        self.order.len() - self.early.len()
    }
}

/// Why an operation fails.
#[derive(Clone, Copy, Debug)]
struct Failure {
    /// The first fault.
    fault: Fault,
    /// The object offset of its chunk.
    offset: u64,
    /// Some chunk failed in a way that may have left bytes behind.
    may_have_moved: bool,
    /// It was the copy between slab and device memory, not the I/O.
    copying: bool,
    /// The transport that reported it, and the handle of the I/O.
    face: Option<(u8, u64)>,
    /// All that failed are reads of copies of bytes that another member has.
    of_copies: bool,
}

/// One thread's engine. See the module documentation.
pub struct Lane {
    config: LaneConfig,
    queues: Vec<Queue>,
    /// A bit for each queue whose transport must be told of memory.
    must_attach: u64,
    copiers: Vec<Copier>,
    staging: Option<SlabPool>,
    bounce: SlabPool,
    told: Told,
    /// Operations whose memory a device may touch for ever. They are over, and their places are free.
    kept: Vec<Op>,
    ops: SlotTable<OpState>,
    slots: SlotTable<Chunk>,
    flows: FlowTable,
    ready: ReadyList,
    now: Time,
    next_deadline: Time,
    counters: Counters,
    closed: bool,
    /// Scratch for the transports' and copy engines' answers; allocated once.
    io_done: Vec<IoDone>,
    copy_done: Vec<CopyDone>,
}

impl Lane {
    /// Makes a lane of `parts`.
    ///
    /// # Errors
    /// `ApiMisuse` for a configuration out of range, `ResourceLimit` if memory for bounce slabs or pins is refused; what a
    /// transport that must be told of memory says to the slabs.
    pub fn new(config: LaneConfig, parts: LaneParts) -> Result<Self, Error> {
        check_config(&config, &parts)?;
        let bounce =
            SlabPool::new(config.bounce_slabs, sw_mem::ByteLen(u64::from(config.bounce_bytes)), config.bounce_pages)
                .map_err(|cause| {
                    Error::new(ErrorKind::ResourceLimit, Verb::Setup)
                        .detail("no memory for bounce slabs")
                        .caused_by(cause)
                })?;
        let staging = parts.staging.as_ref().map_or(0, SlabPool::capacity);
        let queue = |transport| Queue::new(transport, config.device_depth, (bounce.capacity(), staging));
        let queues: Vec<Queue> = parts.transports.into_iter().map(queue).collect();
        let copiers = parts
            .copiers
            .into_iter()
            .map(|engine| Copier::new(engine, parts.staging.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let depth: u32 = queues.iter().map(|queue| queue.caps.queue_depth).sum();
        let copies: u32 = copiers.iter().map(|copier| copier.caps.queue_depth.max(COPY_SLOTS)).sum();
        let done = (depth as usize).max(64);
        let must_attach = (0..).zip(&queues).filter(|(_, queue)| queue.attached.is_some());
        let must_attach = must_attach.fold(0, |bits, (index, _): (u32, _)| bits | 1 << index);
        let mut lane = Self {
            config,
            queues,
            must_attach,
            copiers,
            staging: parts.staging,
            bounce,
            told: Told::default(),
            kept: Vec::new(),
            ops: SlotTable::new(config.ops_max, OpState::empty),
            slots: SlotTable::new(depth + copies, Chunk::empty),
            flows: FlowTable::new(config.ops_max + STRIPE_FLOWS),
            ready: ReadyList::new(config.ops_max),
            now: Time::ZERO,
            next_deadline: Time::FOREVER,
            counters: Counters::default(),
            closed: false,
            io_done: Vec::with_capacity(done),
            copy_done: Vec::with_capacity(done),
        };
        lane.attach_slabs_where_needed()?;
        Ok(lane)
    }

    /// What each transport can do, in the order that choices index.
    pub fn transport_caps(&self) -> Vec<TransportCaps> {
        self.queues.iter().map(|queue| queue.caps).collect()
    }

    /// A handle that ends a wait in [`Lane::poll`], one per transport.
    pub fn wakers(&self) -> Vec<std::sync::Arc<dyn crate::seam::Wake>> {
        self.queues.iter().map(|queue| queue.transport.waker()).collect()
    }

    /// Hands everything taken to the devices.
    ///
    /// # Errors
    /// None that end the lane: a broken transport fails its operations.
    pub fn ring(&mut self) {
        self.pump();
        for index in 0..self.queues.len() {
            self.ring_queue(index);
        }
        self.start_copies();
    }

    /// Moves everything forward; waits at most as `wait` says, and not at all if completions are ready.
    ///
    /// Returns the number of completions that [`Lane::pop`] has ready.
    pub fn poll(&mut self, now: Time, wait: Wait) -> usize {
        self.now = now;
        self.expire();
        self.pump();
        // A write's bytes leave the device first: nothing may wait for a transport that has nothing to do before that.
        self.start_copies();
        let waiter = self.pick_waiter(wait);
        for index in 0..self.queues.len() {
            match waiter {
                Some((chosen, wait)) if chosen == index => self.poll_queue(index, wait),
                _ => {
                    self.ring_queue(index);
                    self.poll_queue(index, Wait::No);
                }
            }
        }
        for index in 0..self.copiers.len() {
            self.poll_copier(index);
        }
        self.pump();
        self.ready.order.len()
    }

    /// The next completion, in the order in which they ended.
    pub fn pop(&mut self) -> Option<Completion> {
        let token = self.ready.order.pop_front()?;
        if token == EARLY {
            return self.ready.early.pop_front();
        }
        let state = self.ops.free(token)?;
        let Some(op) = state.take_if_planned() else { return Some(state.completion(token, &self.queues)) };
        Some(Completion {
            id: op_id(token),
            user: op.user,
            result: Ok(state.planned),
            path: state.planned_path(&op.target.choice.main, &self.queues),
            times: state.times(),
            checksum: None,
            op: Some(op),
        })
    }

    /// Operations that have not completed.
    pub fn in_flight(&self) -> usize {
        self.config.ops_max as usize - self.ops.free_count() - self.ready.over()
    }

    /// Room for operations. One that ended keeps its place until its completion is popped.
    #[inline]
    pub fn has_room(&self) -> bool {
        !self.closed && self.ops.free_count() > 0 && self.ready.early.len() < self.config.ops_max as usize
    }

    /// The earliest deadline of a live operation.
    pub fn next_deadline(&self) -> Option<Time> {
        (self.next_deadline != Time::FOREVER).then_some(self.next_deadline)
    }

    /// Which queue waits, and how: the one with most in flight; of several the last that has something to look after. Shortly if a
    /// copy engine is busy too.
    fn pick_waiter(&self, wait: Wait) -> Option<(usize, Wait)> {
        let Wait::For { timeout, min } = wait else { return None };
        if !self.ready.order.is_empty() {
            return None;
        }
        // A copy engine has no wake-up; half a microsecond per KiB of a 64 KiB copy is its scale.
        let copying = self.copiers.iter().any(|copier| copier.taken > 0);
        let others = self.queues.iter().filter(|queue| queue.shares.busy() > 0).count() > 1;
        let cap = match (copying, others) {
            (true, _) => core::time::Duration::from_micros(20),
            (false, true) => core::time::Duration::from_micros(200),
            (false, false) => timeout,
        };
        // A broken queue does not wait; chosen, it would make every poll return at once.
        let works = |index: &usize| self.queues[*index].broken.is_none();
        let by = |index: &usize| (self.queues[*index].shares.busy(), !self.queues[*index].rests);
        let busiest = (0..self.queues.len()).filter(works).max_by_key(by)?;
        let min = min.clamp(1, self.queues[busiest].shares.busy().max(1));
        Some((busiest, Wait::For { timeout: timeout.min(cap), min }))
    }

    fn ring_queue(&mut self, index: usize) {
        let queue = &mut self.queues[index];
        if queue.unrung == 0 || queue.broken.is_some() {
            return;
        }
        let outcome = queue.transport.ring();
        self.mark_rung(index);
        if let Err(error) = outcome {
            self.break_queue(index, &error);
        }
    }

    fn mark_rung(&mut self, index: usize) {
        let unrung = core::mem::take(&mut self.queues[index].unrung);
        self.counters.doorbells += u64::from(unrung > 0);
    }

    fn poll_queue(&mut self, index: usize, wait: Wait) {
        let queue = &mut self.queues[index];
        if queue.broken.is_some() || (queue.shares.busy() == 0 && wait == Wait::No) {
            return;
        }
        let mut done = core::mem::take(&mut self.io_done);
        done.clear();
        let outcome = queue.transport.poll(wait, &mut done);
        self.counters.polls += 1;
        self.mark_rung(index);
        for end in &done {
            self.io_ended(end);
        }
        self.io_done = done;
        match outcome {
            Err(error) => self.break_queue(index, &error),
            Ok(_) if self.queues[index].shares.is_lost() => {
                self.break_queue(index, &lost_error(self.queues[index].caps.name))
            }
            Ok(_) => {}
        }
    }

    /// Hands waiting copies to their engines.
    fn start_copies(&mut self) {
        for index in 0..self.copiers.len() {
            if self.copiers[index].backlog.is_empty() {
                continue;
            }
            self.feed_copier(index);
            let copier = &mut self.copiers[index];
            if copier.taken > 0
                && let Err(fault) = copier.engine.ring()
            {
                self.break_copier(index, fault);
            }
        }
    }

    fn poll_copier(&mut self, index: usize) {
        self.feed_copier(index);
        let copier = &mut self.copiers[index];
        if copier.taken == 0 {
            return;
        }
        let mut done = core::mem::take(&mut self.copy_done);
        done.clear();
        let outcome = copier.engine.ring().and_then(|()| copier.engine.poll(&mut done).map(|_| ()));
        for end in &done {
            self.copy_ended(*end);
        }
        self.copy_done = done;
        match outcome {
            Err(fault) => self.break_copier(index, fault),
            Ok(()) => self.feed_copier(index),
        }
    }
}

impl Queue {
    /// Whether the transport can be given such memory.
    #[inline]
    fn reaches(&self, place: Place) -> bool {
        match place {
            Place::Host(_) => self.caps.host.is_ok(),
            Place::Device(..) => self.caps.device.is_ok(),
        }
    }

    fn new(transport: Box<dyn Transport>, device_depth: u32, slabs: (u32, u32)) -> Self {
        let caps = transport.caps();
        let depth = caps.queue_depth as usize;
        Self {
            rests: transport.rests(),
            transport,
            caps,
            shares: Shares::new(caps.queue_depth, device_depth, slabs),
            unrung: 0,
            refused: VecDeque::with_capacity(depth),
            broken: None,
            attached: Attached::for_transport(&caps),
        }
    }
}

impl Copier {
    fn new(mut engine: Box<dyn CopyEngine>, staging: Option<&SlabPool>) -> Result<Self, Error> {
        let caps = engine.caps();
        let pin = staging.map(|pool| engine.pin(pool.region())).transpose().map_err(|fault| {
            Error::from_fault(fault, Verb::Register)
                .detail("the copy engine cannot pin the staging slabs")
                .remedy("raise the limit of locked memory or lower the staging budget")
        })?;
        Ok(Self {
            engine,
            caps,
            taken: 0,
            backlog: VecDeque::with_capacity(caps.queue_depth as usize),
            broken: None,
            _pin: pin,
        })
    }
}

impl Chunk {
    fn empty() -> Self {
        Self {
            op: Token::from_raw(0),
            kind: IoKind::Read,
            phase: Phase::Io,
            resubmits: 0,
            in_doubt: false,
            plain: true,
            as_planned: false,
            logical: 0,
            memory: 0,
            span: 0,
            have: 0,
            aside: 0,
            cut: Cut::default(),
            stash: Stash::None,
            device: Device::default(),
            object: ObjectId(0),
            leg: flow::NO_LEG,
        }
    }
}

impl OpState {
    fn empty() -> Self {
        Self {
            op: None,
            submitted: Time::ZERO,
            started: Time::FOREVER,
            flows: 0,
            slots: 0,
            planned: 0,
            others: Others::NONE,
            answer: Answer::Owed,
            ended: Time::ZERO,
            fault: None,
            pieces: None,
        }
    }

    /// Makes room for an operation. The last one's numbers are overwritten in place; its memory is gone already.
    #[inline(always)]
    fn begin(&mut self, now: Time, pieces: Option<Box<Pieces>>) {
        if self.op.is_some() || self.pieces.is_some() || self.fault.is_some() {
            self.drop_parts();
        }
        if pieces.is_some() {
            self.pieces = pieces;
        }
        (self.submitted, self.started) = (now, Time::FOREVER);
        (self.flows, self.slots, self.planned) = (0, 0, 0);
        self.others = Others::NONE;
        self.answer = Answer::Owed;
    }

    /// The operation itself, after [`OpState::begin`].
    #[inline(always)]
    #[expect(clippy::mem_forget, reason = "there is none: forgetting that spares each operation a call that looks")]
    fn put(&mut self, op: Op) {
        let before = self.op.replace(op);
        debug_assert!(before.is_none(), "an operation was never given back");
        core::mem::forget(before);
    }

    /// What owns memory. Apart, so that the common operation, which has none of these left, does not carry the code.
    #[cold]
    fn drop_parts(&mut self) {
        (self.op, self.pieces, self.fault) = (None, None, None);
    }

    #[inline]
    fn is_over(&self) -> bool {
        self.flows == 0 && self.slots == 0
    }

    fn times(&self) -> Times {
        let (ended, started) = (self.ended.0, self.started.min(self.ended).0);
        Times { queued_ns: started.saturating_sub(self.submitted.0), moving_ns: ended.saturating_sub(started) }
    }
}

fn check_config(config: &LaneConfig, parts: &LaneParts) -> Result<(), Error> {
    let wrong = |detail: &'static str| Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup).detail(detail));
    if !(1..=1 << 16).contains(&config.ops_max) {
        return wrong("a lane holds 1 to 65,536 operations");
    }
    if config.bounce_slabs == 0 || config.bounce_bytes < 1024 || config.limits.op_bytes_max > 1 << 62 {
        return wrong("a lane needs at least one bounce slab of 1 KiB, and operations of at most 2^62 bytes");
    }
    if parts.transports.is_empty() || parts.transports.len() > 64 || parts.copiers.len() > 64 {
        return wrong("a lane has 1 to 64 transports and at most 64 copy engines");
    }
    let odd = |caps: TransportCaps| {
        caps.queue_depth == 0 || caps.io_bytes_max < 12 << 10 || caps.io_bytes_max > 1 << 30 || caps.segments_max == 0
    };
    if parts.transports.iter().any(|transport| odd(transport.caps())) {
        return wrong("a transport offers no depth, no segment, or an I/O size below 12 KiB or above 1 GiB");
    }
    Ok(())
}

#[cold]
fn lost_error(name: crate::path::TransportName) -> Error {
    Error::new(ErrorKind::NoDevice, Verb::Setup)
        .at(name)
        .detail("every place of the lane's queue is kept by a device that did not stop")
        .remedy("make a new engine; see the kernel log for the device")
}

/// The public name of an operation's slot.
fn op_id(token: Token) -> OpId {
    OpId(token)
}

#[cfg(test)]
#[path = "../lane_attach_tests.rs"]
mod attach_tests;
#[cfg(test)]
#[path = "../lane_copy_tests.rs"]
mod copy_tests;
#[cfg(test)]
#[path = "../lane_share_tests.rs"]
mod share_tests;
#[cfg(test)]
#[path = "../lane_tests.rs"]
mod tests;
