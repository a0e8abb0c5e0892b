//! Cutting chunks off flows and handing them to transports and copy engines.

use sw_mem::{ByteLen, HostVa, Place, RegionId, SlabPool};

use super::{
    Answer, Chunk, Counters, Lane, OpState, Phase, QUANTUM, Queue, Stash,
    attach::Told,
    flow::{Flow, Piece, Shape, Spot},
    share::Gone,
};
use crate::{
    checksum::Running,
    error::{ErrorKind, Fault, Verb},
    object::Device,
    op::{Op, Spans},
    plan::{Leg, Via},
    seam::{CopyDirection, CopyJob, Io, IoKind, MAX_SEGMENTS, MemorySegment, Submit, TransportCaps},
    slot::{SlotTable, Token},
    split::{self, Cut, Grid, Landed, is_ragged},
    time::Time,
};

/// Every slab, or every place that the device may have, is quarantined: none will ever come back.
const NONE_LEFT: Fault = Fault::new(ErrorKind::ResourceLimit, 0);

/// A write would carry bytes that nobody gave. Checks before the first chunk keep it from happening; it is never sent.
const RAGGED_WRITE: Fault = Fault::new(ErrorKind::Protocol, 0);

/// Why a flow cut no further chunk. The number is the queue that its next chunk goes to.
pub(super) enum Stop {
    /// It has no bytes left.
    Exhausted,
    /// Its next piece goes over another transport, or others wait there already.
    Elsewhere(u8),
    /// The queue is at its depth, or the device has its part of it; a completion will make room.
    NoPlace(u8),
    /// It waits for its own kind of thing, which others may not need: all slabs are out, or the checksum's earlier bytes are
    /// too far behind.
    Later(u8),
    /// The operation failed.
    Failed(Fault),
}

/// Whether it is a flow's turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Queued {
    /// It is new: it may go first only if nobody waits.
    No,
    /// It has its turn in this queue.
    Turn(u8),
}

impl Lane {
    /// Cuts as many chunks as there is room for, in rounds.
    pub(super) fn pump(&mut self) {
        for index in 0..self.queues.len() {
            self.resubmit_refused(index);
            for device in self.queues[index].shares.devices() {
                self.pump_device(index, device);
            }
        }
    }

    /// The same for the flows of one device.
    fn pump_device(&mut self, index: usize, device: Device) {
        // Flows in a row that wait: when all do, a completion must come first.
        let mut waiting = 0;
        while let Some(flow) = self.queues[index].shares.next(device) {
            let stop = self.turn(index, flow);
            let shares = &mut self.queues[index].shares;
            match stop {
                None => {
                    waiting = 0;
                    shares.wait_last(device, flow);
                }
                Some(Stop::NoPlace(_)) => {
                    shares.wait_first(device, flow);
                    break;
                }
                Some(Stop::Later(_)) => {
                    shares.wait_last(device, flow);
                    waiting += 1;
                    if waiting >= shares.waiting_of(device) {
                        break;
                    }
                }
                Some(Stop::Elsewhere(queue)) => self.queues[usize::from(queue)].shares.wait_last(device, flow),
                Some(Stop::Exhausted) => self.end_flow(flow),
                Some(Stop::Failed(fault)) => {
                    let Flow { op, here, .. } = self.flows.get(flow);
                    self.fail_op(op, fault, here.at, Phase::Io);
                    self.end_flow(flow);
                }
            }
        }
    }

    fn resubmit_refused(&mut self, index: usize) {
        for _ in 0..self.queues[index].refused.len() {
            let Some(token) = self.queues[index].refused.pop_front() else { return };
            self.send(token);
        }
    }

    /// One turn of a flow. `None`: it has more to cut.
    fn turn(&mut self, queue: usize, index: u32) -> Option<Stop> {
        let mut flow = self.flows.get(index);
        // A lane has at most 64 transports.
        let queued = Queued::Turn(u8::try_from(queue).unwrap_or(u8::MAX));
        let stop = (0..QUANTUM).find_map(|_| match self.cut_next(queued, &mut flow) {
            Ok(more) => more.is_none().then_some(Stop::Exhausted),
            Err(stop) => Some(stop),
        });
        self.flows.set(index, flow);
        stop
    }

    /// Cuts one chunk off a flow and sends it on its way. `Ok`: the queue of its next one, if it has more.
    #[inline(never)]
    pub(super) fn cut_next(&mut self, queued: Queued, flow: &mut Flow) -> Result<Option<u8>, Stop> {
        let (ops, mut out) = self.split();
        let Some(state) = ops.get_mut(flow.op) else { return Err(Stop::Exhausted) };
        let left = out.cut_one(queued, state, flow)?;
        let more = state.op.as_ref().is_some_and(|op| flow.goes_on(op, left.want));
        left.waiting.into_iter().for_each(|token| self.send_first(token));
        Ok(more.then_some(left.queue))
    }

    /// The operations, and what their chunks take on their way out.
    #[inline(always)]
    pub(super) fn split(&mut self) -> (&mut SlotTable<OpState>, Outlet<'_>) {
        let out = Outlet {
            queues: &mut self.queues,
            slots: &mut self.slots,
            bounce: &mut self.bounce,
            staging: self.staging.as_mut(),
            told: &mut self.told,
            counters: &mut self.counters,
            now: self.now,
        };
        (&mut self.ops, out)
    }

    /// Sends a chunk that is more than its I/O.
    pub(super) fn send_first(&mut self, token: Token) {
        match self.slots.get(token) {
            Some((chunk, _)) if chunk.kind == IoKind::Write => self.send_write(token),
            _ => self.send(token),
        }
    }

    /// A write: bytes that are staged go into the slab first.
    fn send_write(&mut self, token: Token) {
        let Some((chunk, _)) = self.slots.get(token) else { return };
        let Some(op) = self.ops.get(chunk.op).and_then(|(state, _)| state.op.as_ref()) else { return };
        let Some(span) = op.spans.get(chunk.span) else { return };
        let (want, memory) = (u64::from(chunk.cut.want), chunk.memory);
        let (Stash::Staging(slab), Some(pool)) = (&chunk.stash, &self.staging) else {
            self.digest_source(token);
            return self.send(token);
        };
        if let Place::Device(device, _) = span.place() {
            let copier = self.copier_of(device);
            if let Some(chunk) = self.slots.get_mut(token) {
                chunk.phase = Phase::CopyIn;
            }
            return match copier {
                Some(index) => self.copiers[index].backlog.push_back(token),
                None => self.chunk_failed(token, Fault::new(ErrorKind::NoDevice, 0)),
            };
        }
        // In range: the flow keeps `memory + want` inside the span, and a chunk fits its slab.
        let copied = pool.memory().copy_from(pool.offset(slab), span, memory, want);
        debug_assert!(copied.is_ok(), "staged write left its memory: {copied:?}");
        self.digest_source(token);
        self.send(token);
    }

    /// Adds the checksum of a write's bytes, from the slab if they are there, else from the caller's memory.
    pub(super) fn digest_source(&mut self, token: Token) {
        let Some((chunk, _)) = self.slots.get(token) else { return };
        let (logical, want) = (chunk.logical, u64::from(chunk.cut.want));
        let Some(state) = self.ops.get_mut(chunk.op) else { return };
        let Some(pieces) = &mut state.pieces else { return };
        let mut running = Running::new(pieces.algorithm());
        match (&chunk.stash, &self.staging, &state.op) {
            (Stash::Staging(slab), Some(pool), _) => {
                let _ = pool.memory().visit(pool.offset(slab), want, |bytes| running.update(bytes));
            }
            (_, _, Some(op)) => {
                if let Some(span) = op.spans.get(chunk.span) {
                    let _ = span.visit(chunk.memory, want, |bytes| running.update(bytes));
                }
            }
            _ => return,
        }
        pieces.add(logical, want, running.value());
    }

    /// Hands a chunk to its transport, from `have` on.
    pub(super) fn send(&mut self, token: Token) {
        let Some((chunk, _)) = self.slots.get(token) else { return };
        let Some(op) = self.ops.get(chunk.op).and_then(|(state, _)| state.op.as_ref()) else { return };
        let io = self.io_of(token, chunk, op);
        let queue = &mut self.queues[usize::from(chunk.leg.transport)];
        match queue.broken {
            Some(fault) => self.chunk_failed(token, fault),
            None => {
                if hand_over(queue, &mut self.counters, &io) == Submit::Accepted {
                    self.slots.fly(token);
                }
            }
        }
    }

    fn io_of(&self, token: Token, chunk: &Chunk, op: &Op) -> Io {
        let mut io = plain_io(token, chunk, None);
        let (mut start, mut used) = (0u32, 0u8);
        for (place, region, len) in self.memory_of(chunk, op).into_iter().flatten() {
            // Skip what earlier answers delivered.
            let gone = chunk.have.saturating_sub(start).min(len);
            start += len;
            if let (true, Some(segment)) = (gone < len, io.segments.get_mut(usize::from(used))) {
                *segment = MemorySegment { place: place.advanced(ByteLen(u64::from(gone))), len: len - gone, region };
                used += 1;
            }
        }
        Io { segment_count: used, ..io }
    }

    /// The pieces of memory that the device sees, in object order.
    fn memory_of(&self, chunk: &Chunk, op: &Op) -> [Option<(Place, sw_mem::RegionId, u32)>; MAX_SEGMENTS] {
        let cut = &chunk.cut;
        if cut.len == 0 {
            return [None; MAX_SEGMENTS];
        }
        let in_pool = |pool: &sw_mem::SlabPool, slab: &sw_mem::Slab, at: u32, len: u32| {
            let place = pool.memory().place().checked_add(ByteLen(pool.offset(slab) + u64::from(at)))?;
            (len > 0).then_some((place, pool.region().id(), len))
        };
        if let (Stash::Staging(slab), Some(pool)) = (&chunk.stash, &self.staging) {
            return [in_pool(pool, slab, 0, cut.len), None, None];
        }
        let core = cut.len - cut.head - cut.tail;
        // The first wanted byte is at `memory`; the core starts where the head block ends.
        let core_at = chunk.memory + u64::from(cut.head.saturating_sub(cut.skip));
        let in_place = op
            .spans
            .get(chunk.span)
            .filter(|_| core > 0)
            .and_then(|span| Some((span.place().checked_add(ByteLen(core_at))?, span.region().id(), core)));
        match &chunk.stash {
            Stash::Bounce(slab) => {
                let tail = in_pool(&self.bounce, slab, cut.head, cut.tail);
                [in_pool(&self.bounce, slab, 0, cut.head), in_place, tail]
            }
            _ => [in_place, None, None],
        }
    }

    /// Hands waiting chunks to a copy engine, within its depth.
    pub(super) fn feed_copier(&mut self, index: usize) {
        while self.copiers[index].taken < self.copiers[index].caps.queue_depth {
            let Some(token) = self.copiers[index].backlog.pop_front() else { return };
            let Some(job) = self.job_of(token) else { continue };
            let copier = &mut self.copiers[index];
            match copier.engine.submit(&job) {
                Ok(()) => {
                    copier.taken += 1;
                    self.counters.copies += 1;
                    self.slots.fly(token);
                }
                Err(fault) => self.chunk_failed(token, fault),
            }
        }
    }

    fn job_of(&self, token: Token) -> Option<CopyJob> {
        let (chunk, _) = self.slots.get(token)?;
        let op = self.ops.get(chunk.op)?.0.op.as_ref()?;
        let (Stash::Staging(slab), Some(pool)) = (&chunk.stash, &self.staging) else { return None };
        let Place::Device(_, device) = op.spans.get(chunk.span)?.place() else { return None };
        let direction = match chunk.phase {
            Phase::CopyIn => CopyDirection::FromDevice,
            _ => CopyDirection::ToDevice,
        };
        // A read has its wanted bytes behind the skip; a write puts them at the slab's start.
        let skip = if op.verb == Verb::Read { chunk.cut.skip } else { 0 };
        let host = pool.memory().place().host()?.checked_add(ByteLen(pool.offset(slab) + u64::from(skip)))?;
        let device = device.checked_add(ByteLen(chunk.memory))?;
        Some(CopyJob { token, direction, host, device, len: chunk.cut.want })
    }

    pub(super) fn put_stash(&mut self, stash: Stash) {
        match (stash, &mut self.staging) {
            (Stash::Bounce(slab), _) => self.bounce.put(slab),
            (Stash::Staging(slab), Some(pool)) => pool.put(slab),
            (Stash::None | Stash::Staging(_), _) => {}
        }
    }

    fn end_flow(&mut self, index: u32) {
        let token = self.flows.get(index).op;
        if let Some(state) = self.ops.get_mut(token) {
            state.flows = state.flows.saturating_sub(1);
        }
        self.flows.put(index);
        self.finish_if_over(token);
    }
}

/// What a chunk takes on its way out, besides its operation.
pub(super) struct Outlet<'a> {
    queues: &'a mut [Queue],
    slots: &'a mut SlotTable<Chunk>,
    bounce: &'a mut SlabPool,
    staging: Option<&'a mut SlabPool>,
    told: &'a mut Told,
    pub(super) counters: &'a mut Counters,
    now: Time,
}

/// A chunk that was cut.
pub(super) struct Left {
    /// The chunk, if more is to be done for it than to hand it over (which was done otherwise).
    pub(super) waiting: Option<Token>,
    /// Bytes of the operation that it takes.
    pub(super) want: u64,
    /// The queue that it went to.
    pub(super) queue: u8,
}

impl Outlet<'_> {
    /// Cuts one chunk off a flow and puts it into a slot.
    fn cut_one(&mut self, queued: Queued, state: &mut OpState, flow: &mut Flow) -> Result<Left, Stop> {
        let Some(op) = &state.op else { return Err(Stop::Exhausted) };
        if state.fault.is_some() || state.answer != Answer::Owed || !flow.has_more(op) {
            return Err(Stop::Exhausted);
        }
        if flow.shape == Shape::Whole {
            return self.cut_whole(queued, state, flow.op, flow.here);
        }
        let (piece, kind) = (flow.piece(op), kind_of(op));
        let room = room_in(self.queues, queued, (piece.leg.transport, flow.device))?;
        if self.slots.free_count() == 0 {
            return Err(Stop::NoPlace(piece.leg.transport));
        }
        // Twice what can be on its way: no flow waits as long as none lags by more than that.
        let most = self.slots.capacity() * 2;
        if state.pieces.as_ref().is_some_and(|pieces| pieces.must_wait(flow.here.logical, most)) {
            return Err(Stop::Later(piece.leg.transport));
        }
        let (cut, stash) = if flow.shape == Shape::Flush {
            (Cut::default(), Stash::None)
        } else {
            let staging = self.staging.as_deref();
            let (cut, landed) = shape(&room.caps, self.bounce, staging, &piece, kind);
            if kind == IoKind::Write && cut.want != cut.len {
                return Err(Stop::Failed(RAGGED_WRITE));
            }
            let may = room.shares.check_slab(flow.device, landed);
            let stash = stash_for((self.bounce, self.staging.as_deref_mut()), &cut, landed, may);
            let stash = stash.map_err(|gone| match gone {
                Gone::ForNow if !self.all_kept(landed) => Stop::Later(piece.leg.transport),
                Gone::ForNow | Gone::ForEver => Stop::Failed(NONE_LEFT),
            })?;
            self.told.before(&stash, self.queues, (self.bounce, self.staging.as_deref()));
            (cut, stash)
        };
        let mut chunk = Chunk::of(flow.op, op, flow.here, kind, piece.leg);
        (chunk.object, chunk.cut, chunk.stash, chunk.device) = (flow.object(op).id, cut, stash, flow.device);
        self.emit(state, chunk, piece.memory)
    }

    /// Whether no slab that what lands so goes through will ever come back.
    #[cold]
    fn all_kept(&self, landed: Landed) -> bool {
        let staging = self.staging.as_ref().map_or(0, |pool| pool.capacity());
        let count = if landed == Landed::InSlab { staging } else { self.bounce.capacity() };
        self.queues.iter().map(|queue| queue.shares.slabs_kept(landed)).sum::<u32>() >= count
    }

    /// Cuts whole blocks of one span, in place: nothing is left to decide but their number.
    #[inline(always)]
    pub(super) fn cut_whole(
        &mut self,
        queued: Queued,
        state: &mut OpState,
        token: Token,
        here: Spot,
    ) -> Result<Left, Stop> {
        let Some(op) = &state.op else { return Err(Stop::Exhausted) };
        let Spans::One(span) = &op.spans else { return Err(Stop::Exhausted) };
        let leg = &op.target.choice.main;
        let device = op.target.device;
        let room = room_in(self.queues, queued, (leg.transport, device))?;
        let kind = if op.verb == Verb::Write { IoKind::Write } else { IoKind::Read };
        let mut chunk = Chunk::of(token, op, here, kind, leg);
        (chunk.as_planned, chunk.device) = (true, device);
        chunk.cut = Cut::whole(here.at, here.left, most_of(&room.caps, leg));
        let memory = here.memory_in(span);
        self.emit(state, chunk, Some(memory))
    }

    /// Puts a chunk into a slot, and hands it over if nothing else is to be done for it.
    #[inline(always)]
    fn emit(&mut self, state: &mut OpState, mut chunk: Chunk, memory: Option<(Place, RegionId)>) -> Result<Left, Stop> {
        let (want, queue) = (u64::from(chunk.cut.want), chunk.leg.transport);
        let Some(mut slot) = self.slots.stage() else { return Err(Stop::NoPlace(queue)) };
        let room = &mut self.queues[usize::from(queue)];
        room.shares.take(chunk.device, &chunk.stash);
        state.slots += 1;
        state.started = state.started.min(self.now);
        chunk.plain = matches!(chunk.stash, Stash::None) && state.pieces.is_none();
        let (token, plain) = (slot.token(), chunk.plain);
        let io = plain_io(token, &chunk, memory);
        *slot.body() = chunk;
        if !plain {
            return Ok(Left { waiting: Some(token), want, queue });
        }
        if hand_over(room, self.counters, &io) == Submit::Accepted {
            slot.fly();
        }
        Ok(Left { waiting: None, want, queue })
    }
}

impl Chunk {
    /// The bytes of an operation from `here` on, of which nothing was cut yet.
    #[inline(always)]
    fn of(token: Token, op: &Op, here: Spot, kind: IoKind, leg: &Leg) -> Self {
        Self {
            op: token,
            kind,
            phase: Phase::Io,
            resubmits: 0,
            in_doubt: false,
            plain: false,
            as_planned: false,
            logical: here.logical,
            memory: here.memory,
            span: here.span,
            have: 0,
            aside: 0,
            cut: Cut::default(),
            stash: Stash::None,
            device: Device::default(),
            object: op.target.object.id,
            leg: *leg,
        }
    }
}

/// The queue, if a chunk for a device may go there now.
#[inline(always)]
fn room_in(queues: &mut [Queue], queued: Queued, (transport, device): (u8, Device)) -> Result<&mut Queue, Stop> {
    let room = &mut queues[usize::from(transport)];
    match queued {
        Queued::Turn(queue) if queue != transport => return Err(Stop::Elsewhere(transport)),
        Queued::No if room.shares.has_waiting(device) => return Err(Stop::Elsewhere(transport)),
        _ => {}
    }
    if let Some(fault) = room.broken {
        return Err(Stop::Failed(fault));
    }
    match room.shares.check_place(device) {
        Ok(()) => Ok(room),
        Err(Gone::ForNow) => Err(Stop::NoPlace(transport)),
        Err(Gone::ForEver) => Err(Stop::Failed(NONE_LEFT)),
    }
}

#[inline(always)]
fn kind_of(op: &Op) -> IoKind {
    match (op.verb, op.options.all_metadata) {
        (Verb::Read, _) => IoKind::Read,
        (Verb::Write, _) => IoKind::Write,
        (_, true) => IoKind::FlushAll,
        (_, false) => IoKind::FlushData,
    }
}

/// What stands in the pieces of an I/O that are not in use.
const NOWHERE: MemorySegment = MemorySegment { place: Place::Host(HostVa::new(0)), len: 0, region: RegionId(0) };

/// The I/O of a chunk whose memory is one piece in the caller's span; a flush has none.
#[inline(always)]
fn plain_io(token: Token, chunk: &Chunk, memory: Option<(Place, RegionId)>) -> Io {
    let len = chunk.cut.len - chunk.have;
    let (place, region) = memory.unwrap_or((NOWHERE.place, NOWHERE.region));
    let segments = [MemorySegment { place, len, region }, NOWHERE, NOWHERE];
    Io {
        token,
        kind: chunk.kind,
        object: chunk.object,
        handle: chunk.leg.handle,
        offset: chunk.cut.offset + u64::from(chunk.have),
        len,
        segment_count: u8::from(len > 0),
        segments,
    }
}

#[inline(always)]
fn hand_over(queue: &mut Queue, counters: &mut Counters, io: &Io) -> Submit {
    let taken = queue.transport.submit(io);
    match taken {
        Submit::Accepted => {
            counters.ios += 1;
            queue.unrung += 1;
        }
        Submit::Full => queue.refused.push_back(io.token),
    }
    taken
}

/// Bytes in one I/O of a leg at most: whole blocks.
#[inline(always)]
fn most_of(caps: &TransportCaps, leg: &Leg) -> u32 {
    caps.io_bytes_max & !(leg.granularity.block - 1)
}

/// The next chunk of a piece, within the limits of transport and slabs.
fn shape(
    caps: &TransportCaps,
    bounce: &SlabPool,
    staging: Option<&SlabPool>,
    piece: &Piece<'_>,
    kind: IoKind,
) -> (Cut, Landed) {
    let Piece { leg, at, len, object_len, .. } = *piece;
    let block = leg.granularity.block;
    let most = most_of(caps, leg);
    let cut = |len: u64, most: u32, landed: Landed| {
        let bounce = match landed {
            Landed::InSlab => u64::MAX,
            // Head, core and tail are one I/O, or the ends are I/Os of their own, which are short.
            Landed::InPlace if usize::from(caps.segments_max) < MAX_SEGMENTS => 0,
            Landed::InPlace => bounce.slab_bytes().0,
        };
        (split::cut(at, len, Grid::new(block, object_len, len, most, bounce), most, landed), landed)
    };
    // Whole blocks have no ends to bounce, however large the blocks are.
    let ends_fit = kind == IoKind::Write || u64::from(block) * 2 <= bounce.slab_bytes().0 || !is_ragged(at, len, block);
    if leg.via == Via::Direct && !ends_fit && at & u64::from(block - 1) == 0 && len >= u64::from(block) {
        // The core of a range whose ends are too large for a bounce slab.
        return cut(len & !u64::from(block - 1), most, Landed::InPlace);
    }
    if leg.via == Via::Staged || !ends_fit {
        let head = at & u64::from(block - 1);
        let len = if leg.via == Via::Direct && head > 0 { len.min(u64::from(block) - head) } else { len };
        let slab = staging.map_or(0, |pool| pool.slab_bytes().0);
        let most = u32::try_from(slab).unwrap_or(u32::MAX).min(most) & !(block - 1);
        return cut(len, most, Landed::InSlab);
    }
    let (whole, landed) = cut(len, most, Landed::InPlace);
    let ends = u8::from(whole.head > 0) + u8::from(whole.tail > 0);
    let pieces = ends + u8::from(whole.head + whole.tail < whole.len);
    if ends == 0 || pieces <= caps.segments_max {
        return (whole, landed);
    }
    // A transport with few segments gets ragged ends as I/Os of their own.
    let alone = if whole.head > 0 { whole.head - whole.skip } else { whole.len - whole.tail };
    cut(u64::from(alone), most, Landed::InPlace)
}

/// A slab for what cannot land in place, if the device may have one and not all are out.
fn stash_for(
    (bounce, staging): (&mut SlabPool, Option<&mut SlabPool>),
    cut: &Cut,
    landed: Landed,
    may: Result<(), Gone>,
) -> Result<Stash, Gone> {
    let stash = match landed {
        Landed::InPlace if cut.head + cut.tail == 0 => return Ok(Stash::None),
        Landed::InPlace => may.map(|()| bounce.take().map(Stash::Bounce))?,
        Landed::InSlab => may.map(|()| staging.and_then(SlabPool::take).map(Stash::Staging))?,
    };
    stash.ok_or(Gone::ForNow)
}
