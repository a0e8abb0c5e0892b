//! What happens when a transport or a copy engine answers, up to the completion.

use sw_mem::Place;

use super::{
    Answer, Chunk, Counters, Failure, Lane, NO_TRANSPORT, OpState, Others, Phase, Pieces, Queue, RESUBMITS_MAX,
    ReadyList, Stash, op_id,
};
use crate::{
    checksum::Running,
    error::{Error, ErrorKind, Fault, Retry, Verb, WriteOutcome},
    layout::{Extent, Placed},
    op::{Completion, Op},
    path::{ByPath, DataPath, Landing, Reason, Route, TransportName},
    plan::{Leg, Via},
    seam::{CopyDone, IoDone, IoKind},
    slot::{SlotState, Token},
    time::Time,
};

impl Lane {
    /// An I/O ended.
    #[inline(always)]
    pub(super) fn io_ended(&mut self, end: &IoDone) {
        let Some(mut slot) = self.slots.live(end.token) else { return self.stale() };
        let state = slot.state();
        let chunk = slot.body();
        // The common end: everything at once, nothing to copy, and somebody waits for it.
        if chunk.plain
            && state == SlotState::InFlight
            && end.result.is_ok_and(|bytes| bytes == chunk.cut.len)
            && end.aside == 0
        {
            return self.plain_ended(end.token);
        }
        self.io_ended_otherwise(end);
    }

    /// An end that names no live slot, or one that waits for something else.
    #[cold]
    fn stale(&mut self) {
        self.counters.stale += 1;
    }

    #[inline(never)]
    fn io_ended_otherwise(&mut self, end: &IoDone) {
        let Some((chunk, state)) = self.slots.get(end.token) else { return self.stale() };
        if chunk.phase != Phase::Io || state == SlotState::Quarantined {
            return self.stale();
        }
        if let Err(fault) = end.result
            && fault.keeps_memory()
        {
            return self.keep(end.token, fault);
        }
        if !matches!(state, SlotState::InFlight | SlotState::Staged) {
            return self.retire(end.token, Moved::No);
        }
        match end.result {
            Ok(bytes) => self.io_moved(end.token, bytes, end.aside),
            Err(fault) if fault.retry == Retry::Now => self.resubmit(end.token, fault),
            Err(fault) => self.chunk_failed(end.token, fault),
        }
    }

    /// Success is not evidence: the bytes are counted before they are believed.
    fn io_moved(&mut self, token: Token, bytes: u32, aside: u32) {
        let Some(chunk) = self.slots.get_mut(token) else { return };
        let (cut, block) = (chunk.cut, chunk.leg.granularity.block);
        if bytes > cut.len - chunk.have {
            return self.chunk_failed(token, Fault::new(ErrorKind::Protocol, 0));
        }
        chunk.have += bytes;
        chunk.plain = false;
        if aside > 0 {
            chunk.aside += aside.min(bytes);
            chunk.as_planned = false;
        }
        let needed = if chunk.kind == IoKind::Read { cut.skip + cut.want } else { cut.len };
        if chunk.have >= needed {
            return self.chunk_moved(token);
        }
        self.counters.short += 1;
        // The end of the object inside what was asked for: it shrank, or the device lies. Otherwise the rest is asked for.
        if bytes == 0 || chunk.have & (block - 1) != 0 {
            return self.chunk_failed(token, Fault::new(ErrorKind::ShortData, 0));
        }
        self.resubmit(token, Fault::new(ErrorKind::Protocol, 0));
    }

    fn resubmit(&mut self, token: Token, fault: Fault) {
        let Some(chunk) = self.slots.get_mut(token) else { return };
        chunk.resubmits += 1;
        chunk.in_doubt |= !fault.is_not_applied();
        if chunk.resubmits > RESUBMITS_MAX {
            return self.chunk_failed(token, fault.with_retry(Retry::Never));
        }
        self.counters.resubmits += 1;
        // A second end for the first hand-over must not pass for an end of the next one.
        if let Some(again) = self.slots.renew(token) {
            self.send(again);
        }
    }

    /// All bytes of a chunk are where the transport was told to put them (or take them from).
    fn chunk_moved(&mut self, token: Token) {
        let Some((chunk, _)) = self.slots.get(token) else { return };
        if chunk.kind != IoKind::Read {
            return self.retire(token, Moved::Yes);
        }
        let Some(op) = self.ops.get(chunk.op).and_then(|(state, _)| state.op.as_ref()) else { return };
        let place = op.spans.get(chunk.span).map(sw_mem::DmaSpan::place);
        if let (Via::Staged, Some(Place::Device(device, _))) = (chunk.leg.via, place) {
            let Some(copier) = self.copier_of(device) else {
                return self.chunk_failed(token, Fault::new(ErrorKind::NoDevice, 0));
            };
            self.digest_slab(token);
            self.leave_queue(token);
            if let Some(chunk) = self.slots.get_mut(token) {
                chunk.phase = Phase::CopyOut;
            }
            return self.copiers[copier].backlog.push_back(token);
        }
        self.land(token);
        self.retire(token, Moved::Yes);
    }

    /// Copies what was bounced or staged into the caller's host memory, and takes the checksum in the same pass. An operation
    /// some bytes of which went into memory that the CPU does not see has none.
    fn land(&mut self, token: Token) {
        let Some((chunk, _)) = self.slots.get(token) else { return };
        let Some(state) = self.ops.get_mut(chunk.op) else { return };
        let Some(span) = state.op.as_ref().and_then(|op| op.spans.get(chunk.span)) else { return };
        let (pool, base) = match (&chunk.stash, &self.staging) {
            (Stash::Staging(slab), Some(pool)) => (pool, pool.offset(slab)),
            (Stash::Bounce(slab), _) => (&self.bounce, self.bounce.offset(slab)),
            // In place as a whole: only a checksum has business with it.
            _ if state.pieces.is_none() => return,
            _ => (&self.bounce, 0),
        };
        let mut running = state.pieces.as_ref().map(|pieces| Running::new(pieces.algorithm()));
        let mut seen = true;
        for part in parts(chunk) {
            let to = chunk.memory + part.at;
            // In range: the cut keeps bounced parts inside the slab, and the flow keeps them inside the span.
            let landed = match (part.slab_at, &mut running) {
                (None, None) => Ok(()),
                (None, Some(running)) => {
                    seen &= span.visit(to, part.len, |bytes| running.update(bytes)).is_ok();
                    Ok(())
                }
                (Some(from), None) => span.copy_from(to, pool.memory(), base + from, part.len),
                (Some(from), Some(running)) => {
                    let mut at = to;
                    pool.memory().visit(base + from, part.len, |bytes| {
                        running.update(bytes);
                        let _ = span.write(at, bytes);
                        at += bytes.len() as u64;
                    })
                }
            };
            debug_assert!(landed.is_ok(), "a bounced part left its memory: {landed:?}");
        }
        if !seen {
            state.pieces = None;
        }
        if let (Some(running), Some(pieces)) = (running, &mut state.pieces) {
            pieces.add(chunk.logical, u64::from(chunk.cut.want), running.value());
        }
    }

    /// The checksum of a staged read, from its slab before the copy engine takes it.
    fn digest_slab(&mut self, token: Token) {
        let Some((chunk, _)) = self.slots.get(token) else { return };
        let Some(pieces) = self.ops.get_mut(chunk.op).and_then(|state| state.pieces.as_mut()) else { return };
        let (Stash::Staging(slab), Some(pool)) = (&chunk.stash, &self.staging) else { return };
        let mut running = Running::new(pieces.algorithm());
        let (from, want) = (pool.offset(slab) + u64::from(chunk.cut.skip), u64::from(chunk.cut.want));
        let _ = pool.memory().visit(from, want, |bytes| running.update(bytes));
        pieces.add(chunk.logical, want, running.value());
    }

    /// A copy ended.
    pub(super) fn copy_ended(&mut self, end: CopyDone) {
        let Some((chunk, state)) = self.slots.get(end.token) else {
            self.counters.stale += 1;
            return;
        };
        let phase = chunk.phase;
        if phase == Phase::Io || state == SlotState::Quarantined {
            self.counters.stale += 1;
            return;
        }
        self.leave_copier(end.token);
        if state != SlotState::InFlight && state != SlotState::Staged {
            return self.retire(end.token, Moved::No);
        }
        match (end.result, phase) {
            (Err(fault), _) => self.chunk_failed(end.token, fault),
            (Ok(()), Phase::CopyOut) => self.retire(end.token, Moved::Yes),
            (Ok(()), _) => {
                if let Some(chunk) = self.slots.get_mut(end.token) {
                    chunk.phase = Phase::Io;
                }
                self.digest_source(end.token);
                self.send(end.token);
            }
        }
    }

    /// A chunk failed and nothing touches its memory any more.
    pub(super) fn chunk_failed(&mut self, token: Token, fault: Fault) {
        let Some((chunk, _)) = self.slots.get(token) else { return };
        let (op, offset) = (chunk.op, chunk.cut.offset + u64::from(chunk.cut.skip));
        let (phase, face) = (chunk.phase, (chunk.leg.transport, chunk.leg.handle));
        // What was refused before the first byte left nothing behind, unless a try before it may have.
        let refused = fault.is_not_applied() && chunk.have == 0 && !chunk.in_doubt;
        let is_of_copy = phase == Phase::Io && self.is_copy_told(token);
        self.counters.faults += 1;
        self.fail_op(op, fault, offset, phase);
        self.met_at(op, fault, face);
        if let Some(failure) = self.ops.get_mut(op).and_then(|state| state.fault.as_mut()) {
            failure.may_have_moved |= !refused;
            failure.of_copies &= is_of_copy;
        }
        self.retire(token, Moved::No);
    }

    /// Whether a chunk that failed is of a copy of bytes that the first member has. Who gave it is told.
    fn is_copy_told(&self, token: Token) -> bool {
        let Some((chunk, _)) = self.slots.get(token) else { return false };
        let Some(op) = self.ops.get(chunk.op).and_then(|(state, _)| state.op.as_ref()) else { return false };
        let (Some(resolver), Some(placed)) = (op.target.resolver(), op.target.placed()) else { return false };
        let holds = |placed: &&Placed| (placed.logical..placed.logical + placed.extent.len).contains(&chunk.logical);
        let Some(Placed { extent, logical, .. }) = placed.iter().find(holds).filter(|found| found.extent.member > 0)
        else {
            return false;
        };
        let (at, want) = (extent.at + (chunk.logical - logical), u64::from(chunk.cut.want));
        resolver.failed(Extent { member: extent.member, at, len: want });
        true
    }

    /// Begins an operation anew of which nothing failed but reads of copies, without those. Whether it did.
    #[cold]
    fn begin_anew(&mut self, token: Token) -> bool {
        let Some(state) = self.ops.get_mut(token) else { return false };
        let Some(op) = state.op.as_ref().filter(|op| op.verb == Verb::Read) else { return false };
        if !state.fault.as_ref().is_some_and(|failure| failure.of_copies) {
            return false;
        }
        let members = op.target.member_choices().len();
        let Some(Ok(target)) = op.target.resolve_first(op) else { return false };
        if self.closed || self.flows.free_count() < members {
            return false;
        }
        state.pieces = op.options.checksum.map(|algorithm| Box::new(Pieces::new(algorithm)));
        (state.fault, state.planned, state.others) = (None, 0, Others::NONE);
        if let Some(op) = &mut state.op {
            op.target = target;
        }
        self.start(token, members);
        true
    }

    /// Remembers the first fault of an operation, met in `phase`.
    pub(super) fn fail_op(&mut self, op: Token, fault: Fault, offset: u64, phase: Phase) {
        let copying = phase != Phase::Io;
        if let Some(state) = self.ops.get_mut(op) {
            state.fault.get_or_insert_with(|| {
                let of_copies = true;
                Box::new(Failure { fault, offset, may_have_moved: false, copying, face: None, of_copies })
            });
        }
    }

    /// Which transport reported the fault of an operation, for which handle.
    pub(super) fn met_at(&mut self, op: Token, fault: Fault, face: (u8, u64)) {
        let failure = self.ops.get_mut(op).and_then(|state| state.fault.as_mut());
        if let Some(failure) = failure.filter(|failure| failure.fault == fault) {
            failure.face.get_or_insert(face);
        }
    }

    /// Frees a slot: its owner let go. A chunk that went through is counted.
    pub(super) fn retire(&mut self, token: Token, moved: Moved) {
        let Some(slot) = self.slots.live(token) else { return };
        let chunk = slot.free();
        let op = chunk.op;
        let (shares, device) = (&mut self.queues[usize::from(chunk.leg.transport)].shares, chunk.device);
        if chunk.phase != Phase::CopyOut {
            shares.give_place(device);
        }
        shares.give_slab(device, &chunk.stash);
        let over = self.ops.get_mut(op).is_some_and(|state| {
            if moved == Moved::Yes {
                state.count(chunk);
            }
            state.lose_slot()
        });
        let stash = core::mem::take(&mut chunk.stash);
        self.put_stash(stash);
        if over {
            self.finish(op);
        }
    }

    /// The way that every good chunk takes: all of it is where it belongs, and it has no slab.
    #[inline(always)]
    fn plain_ended(&mut self, token: Token) {
        let Some(slot) = self.slots.live(token) else { return };
        let chunk = slot.free();
        self.queues[usize::from(chunk.leg.transport)].shares.give_place(chunk.device);
        let op = chunk.op;
        let Some(state) = self.ops.get_mut(op) else { return };
        state.count(chunk);
        match (state.lose_slot(), state.answer) {
            (false, _) => {}
            (true, Answer::Owed) if state.fault.is_none() => {
                state.make_ready(op, self.now, &mut self.counters, &mut self.ready);
            }
            (true, _) => self.finish(op),
        }
    }

    fn leave_queue(&mut self, token: Token) {
        if let Some((chunk, _)) = self.slots.get(token) {
            self.queues[usize::from(chunk.leg.transport)].shares.give_place(chunk.device);
        }
    }

    fn leave_copier(&mut self, token: Token) {
        let Some((chunk, _)) = self.slots.get(token) else { return };
        let op = self.ops.get(chunk.op).and_then(|(state, _)| state.op.as_ref());
        let place = op.and_then(|op| op.spans.get(chunk.span)).map(sw_mem::DmaSpan::place);
        if let Some(Place::Device(device, _)) = place
            && let Some(index) = self.copier_of(device)
        {
            let copier = &mut self.copiers[index];
            copier.taken = copier.taken.saturating_sub(1);
        }
    }

    /// Ends an operation whose last slot and flow are gone.
    #[inline]
    pub(super) fn finish_if_over(&mut self, token: Token) {
        if self.ops.get(token).is_some_and(|(state, _)| state.is_over()) {
            self.finish(token);
        }
    }

    /// The caller is owed its answer: that is ready now. Nobody waits any more: the memory is freed.
    fn finish(&mut self, token: Token) {
        let Some(state) = self.ops.get_mut(token) else { return };
        if state.answer == Answer::Owed && state.fault.is_some() && self.begin_anew(token) {
            return;
        }
        let Some(state) = self.ops.get_mut(token) else { return };
        match state.answer {
            Answer::Owed => state.make_ready(token, self.now, &mut self.counters, &mut self.ready),
            Answer::Ready => {}
            Answer::Given | Answer::Kept => {
                if state.answer == Answer::Kept {
                    self.kept.extend(state.op.take());
                }
                state.drop_parts();
                self.ops.free(token);
            }
        }
    }
}

/// How often the CPU copies a byte that came to another place than its own: aside, and from there to its place.
const ASIDE_COPIES: u64 = 2;

/// Less direct ways rank higher, above zero. Ragged ends explain less than what concerns the bulk; beyond that the order of
/// the reasons decides, so that the order of completions does not.
fn rank_of(landing: Landing, reason: Reason) -> u16 {
    let bulk = u16::from(reason != Reason::RaggedEnds);
    ((landing as u16) << 9 | bulk << 8 | (reason as u16 & 0xff)) + 1
}

impl Others {
    fn note(&mut self, leg: &Leg, bytes: u64) {
        let (leader, lead) = (&mut self.transports[leg.landing as usize], &mut self.leads[leg.landing as usize]);
        if *leader == leg.transport {
            *lead += bytes;
        } else if *leader == NO_TRANSPORT || bytes > *lead {
            (*leader, *lead) = (leg.transport, bytes - *lead);
        } else {
            *lead -= bytes;
        }
        let rank = rank_of(leg.landing, leg.reason);
        if rank > self.rank {
            (self.rank, self.reason) = (rank, leg.reason);
        }
    }

    /// The transport that leads by most, whatever its landing.
    fn leader(&self) -> Option<u8> {
        let known = self.transports.iter().zip(self.leads).filter(|(transport, _)| **transport != NO_TRANSPORT);
        known.max_by_key(|(_, lead)| *lead).map(|(transport, _)| *transport)
    }

    /// Adds a chunk that went through. `on_host`: its memory is the host's.
    fn count(&mut self, chunk: &Chunk, on_host: impl FnOnce() -> bool) {
        let want = u64::from(chunk.cut.want);
        self.note(&chunk.leg, want);
        // Of a block that is bounced, bytes that nobody wanted may be among those that went aside.
        let aside = u64::from(chunk.aside).min(want);
        let copied = want * u64::from(chunk.leg.copies) + aside * ASIDE_COPIES;
        if chunk.leg.via == Via::Staged {
            self.bytes.add(Landing::Staged, want);
            self.bounced += want;
            self.cpu_copied += copied + if on_host() { want } else { 0 };
            return;
        }
        let bounced = match chunk.stash {
            Stash::None => 0,
            Stash::Bounce(_) => u64::from(chunk.cut.bounced()),
            // A block too large for the bounce slabs goes through a staging slab although its leg is direct.
            Stash::Staging(_) => want,
        };
        let aside = aside.min(want - bounced);
        if aside > 0 {
            self.note(&Leg { landing: Landing::Staged, reason: Reason::OutOfOrder, ..chunk.leg }, aside);
        }
        self.bytes.add(chunk.leg.landing, want - bounced - aside);
        self.bytes.add(Landing::Staged, bounced + aside);
        self.bounced += bounced;
        self.cpu_copied += bounced + copied;
    }
}

impl OpState {
    /// Adds a chunk that went through.
    #[inline(always)]
    fn count(&mut self, chunk: &Chunk) {
        if chunk.as_planned { self.planned += u64::from(chunk.cut.want) } else { self.count_other(chunk) }
    }

    #[inline(never)]
    fn count_other(&mut self, chunk: &Chunk) {
        let span = self.op.as_ref().and_then(|op| op.spans.get(chunk.span));
        self.others.count(chunk, || span.is_some_and(|span| span.place().host().is_some()));
    }

    /// One slot fewer names it. Whether it is over now.
    #[inline(always)]
    pub(super) fn lose_slot(&mut self) -> bool {
        self.slots = self.slots.saturating_sub(1);
        self.is_over()
    }

    /// Bytes that moved.
    #[inline]
    pub(super) fn moved(&self) -> u64 {
        self.planned + self.others.bytes.total()
    }

    /// Bytes that moved, by who wrote them finally.
    #[inline]
    pub(super) fn bytes(&self) -> ByPath {
        let mut bytes = self.others.bytes;
        if let Some(op) = &self.op {
            bytes.add(op.target.choice.main.landing, self.planned);
        }
        bytes
    }

    /// Bytes that a CPU copied.
    #[inline]
    pub(super) fn cpu_copied(&self) -> u64 {
        let copies = self.op.as_ref().map_or(0, |op| op.target.choice.main.copies);
        self.others.cpu_copied + self.planned * u64::from(copies)
    }

    /// It is over, and its completion is ready.
    #[inline(always)]
    fn make_ready(&mut self, token: Token, now: Time, counters: &mut Counters, ready: &mut ReadyList) {
        (self.answer, self.ended) = (Answer::Ready, now);
        counters.count(self);
        ready.push_over(token);
    }

    /// Whether nothing moved but by plan.
    #[inline]
    pub(super) fn all_planned(&self) -> bool {
        self.others.rank == 0
    }

    /// How the bytes went.
    fn path(&self, queues: &[Queue]) -> DataPath {
        let Some(op) = &self.op else { return Completion::NO_PATH };
        let (main, others, bytes) = (&op.target.choice.main, &self.others, self.bytes());
        // The landing of most bytes; the planned one at a tie.
        let landings = [Landing::Staged, Landing::KernelCopy, Landing::Dma].into_iter();
        let most = landings.max_by_key(|landing| bytes.of(*landing)).unwrap_or(main.landing);
        let landing = if bytes.of(most) > bytes.of(main.landing) { most } else { main.landing };
        // Two transports may land alike: the one that took more of them.
        let planned = if landing == main.landing { self.planned } else { 0 };
        let transport = match others.transports[landing as usize] {
            // Bounced bytes alone, of a leg that lands otherwise.
            NO_TRANSPORT if self.planned == 0 => others.leader().unwrap_or(main.transport),
            NO_TRANSPORT => main.transport,
            _ if planned > 0 && planned >= others.leads[landing as usize] => main.transport,
            transport => transport,
        };
        // For a stripe set the members' own ways count, as far as their bytes moved. A vendor's library is told of its own bytes
        // alone: those that did not go by plan are in the others, each with its reason.
        let none_of_it = main.reason == Reason::VendorDecides && self.planned == 0 && !self.all_planned();
        let counts = op.target.member_choices().is_empty() && !none_of_it;
        let planned_rank = if counts { rank_of(main.landing, main.reason) } else { 0 };
        let (rank, reason) =
            if others.rank > planned_rank { (others.rank, others.reason) } else { (planned_rank, main.reason) };
        // Bounced bytes of chunks that went direct.
        let ends_only = others.bounced > 0 && rank < rank_of(Landing::KernelCopy, Reason::RaggedEnds);
        DataPath {
            route: Route { transport: name_of(queues, transport), landing },
            bytes,
            bounced: others.bounced,
            cpu_copied: self.cpu_copied(),
            reason: if ends_only { Reason::RaggedEnds } else { reason },
        }
    }

    #[cold]
    pub(super) fn error(&self, queues: &[Queue]) -> Error {
        let fault = Fault::new(ErrorKind::Protocol, 0);
        let unknown = Failure { fault, offset: 0, may_have_moved: true, copying: false, face: None, of_copies: false };
        let failure = self.fault.as_deref().copied().unwrap_or(unknown);
        let Failure { fault, offset, copying, .. } = failure;
        let Some(op) = &self.op else { return Error::from_fault(fault, Verb::Read) };
        let error = Error::from_fault(fault, op.verb).at(op.target.object.name.clone());
        let left = (op.offset + op.spans.len()).saturating_sub(offset);
        let error = error.in_range(offset, left);
        let why = failure.face.filter(|_| !copying).and_then(|(transport, handle)| {
            queues.get(usize::from(transport)).and_then(|queue| queue.transport.explain(handle, fault))
        });
        let error = match why {
            Some(why) => error.explained_by(why),
            None if copying => explain_copy(error),
            None => explain(error, fault),
        };
        if op.verb == Verb::Write { error.with_outcome(self.outcome(failure)) } else { error }
    }

    /// What became of a failed write: only a write whose every chunk was refused as a whole left nothing behind.
    fn outcome(&self, failure: Failure) -> WriteOutcome {
        let refused = failure.fault.is_not_applied() && !failure.may_have_moved;
        if self.started == Time::FOREVER || (self.moved() == 0 && refused) {
            WriteOutcome::NotApplied
        } else {
            WriteOutcome::Unknown
        }
    }

    /// The path, if all went by plan.
    #[inline(always)]
    pub(super) fn planned_path(&self, main: &Leg, queues: &[Queue]) -> DataPath {
        DataPath {
            route: Route { transport: name_of(queues, main.transport), landing: main.landing },
            bytes: ByPath::only(main.landing, self.planned),
            bounced: 0,
            cpu_copied: self.planned * u64::from(main.copies),
            reason: main.reason,
        }
    }

    /// The operation and its memory, if there is nothing to tell of it but that what was planned happened. It is over.
    #[inline(always)]
    pub(super) fn take_if_planned(&mut self) -> Option<Op> {
        let plain = self.all_planned() && self.fault.is_none() && self.pieces.is_none();
        if plain { self.op.take() } else { None }
    }

    /// The answer of an operation that is over; its memory goes with it.
    #[inline(never)]
    pub(super) fn completion(&mut self, token: Token, queues: &[Queue]) -> Completion {
        let result = if self.fault.is_none() { Ok(self.moved()) } else { Err(self.error(queues)) };
        self.answered(token, result, queues)
    }

    /// The answer with a given result; memory goes with it if nothing can touch it any more.
    pub(super) fn answered(&mut self, token: Token, result: Result<u64, Error>, queues: &[Queue]) -> Completion {
        let path = self.path(queues);
        let checksum = match &self.pieces {
            Some(pieces) if result.is_ok() => pieces.whole(self.moved()),
            _ => None,
        };
        let user = self.op.as_ref().map_or(0, |op| op.user);
        let op = if self.slots == 0 { self.op.take() } else { None };
        let op = op.map(Op::unresolved);
        Completion { id: op_id(token), user, result, path, times: self.times(), checksum, op }
    }
}

#[inline]
fn name_of(queues: &[Queue], transport: u8) -> TransportName {
    queues.get(usize::from(transport)).map_or("none", |queue| queue.caps.name)
}

/// Whether a retired chunk's bytes are where they belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// They are.
    Yes,
    /// It failed, or its operation was answered before.
    No,
}

/// A part of a chunk's wanted bytes.
struct Part {
    /// First byte, counted from the first wanted one.
    at: u64,
    len: u64,
    /// Where it rests in the slab; `None` if the device put it in place.
    slab_at: Option<u64>,
}

/// The wanted bytes of a read chunk in order: bounced head, core in place, bounced tail; or all of it in a slab.
fn parts(chunk: &Chunk) -> impl Iterator<Item = Part> {
    let cut = &chunk.cut;
    let (skip, want_end) = (u64::from(cut.skip), u64::from(cut.skip + cut.want));
    let head = if matches!(chunk.stash, Stash::Staging(_)) { u64::from(cut.len) } else { u64::from(cut.head) };
    let core_end = u64::from(cut.len - cut.tail).max(head);
    let ranges = [(skip, head, Some(skip)), (head.max(skip), core_end, None), (core_end, want_end, Some(head))];
    ranges.into_iter().filter_map(move |(from, to, slab_at)| {
        let to = to.min(want_end);
        (to > from).then(|| Part { at: from - skip, len: to - from, slab_at })
    })
}

/// The text and remedy of a copy's fault; the code is the device driver's.
pub(super) fn explain_copy(error: Error) -> Error {
    error.detail("the copy between a staging slab and device memory failed").remedy(
        "see `straightway doctor` and the kernel log for the device; a device that was lost needs a new process",
    )
}

/// The text and remedy of a fault, in the words of someone who runs storage.
fn explain(error: Error, fault: Fault) -> Error {
    match fault.kind {
        ErrorKind::ShortData => error
            .detail("the object ended before the range did: it shrank while it was read, or its source gave less than it promised")
            .remedy("read it again after the writer is done"),
        ErrorKind::ResourceLimit if fault.code == Fault::NO_QUEUE_LEFT => error
            .with_code(0)
            .detail("all queue pairs of the device are in use by other lanes, each thread that reads or writes has one")
            .remedy("use fewer threads or reactors, or close an engine that uses the device"),
        ErrorKind::ResourceLimit if fault.code == Fault::NOT_MAPPED => error
            .with_code(0)
            .detail("the device may reach no more memory: locked memory or mappings of the IOMMU ran out")
            .remedy("raise the limit of locked memory (ulimit -l, LimitMEMLOCK=), or register less memory"),
        // The lane's own: a driver's limit comes with its code.
        ErrorKind::ResourceLimit if fault.code == 0 => error
            .detail("every slab or queue place that the bytes could take is kept by a device that did not stop")
            .remedy("make a new engine, which has its own; see the kernel log for the device"),
        ErrorKind::NoSpace => error.detail("no space left").remedy("free space or raise the quota"),
        ErrorKind::Io => error.detail("the device or file system reported an I/O error").remedy("see the kernel log for the medium"),
        ErrorKind::Protocol => error.detail("the transport broke its contract (more bytes than asked, or endless short transfers)"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_transports_that_land_alike_the_one_with_more_bytes_is_named() {
        let leg = |transport| Leg { transport, ..super::super::flow::NO_LEG };
        let told = |notes: &[(u8, u64)]| {
            let mut others = Others::NONE;
            notes.iter().for_each(|(transport, bytes)| others.note(&leg(*transport), *bytes));
            let landing = super::super::flow::NO_LEG.landing as usize;
            (others.transports[landing], others.leads[landing])
        };
        assert_eq!(told(&[]), (NO_TRANSPORT, 0));
        assert_eq!(told(&[(3, 100), (0, 30), (3, 5), (0, 30)]), (3, 45));
        assert_eq!(told(&[(0, 30), (3, 100), (0, 30)]), (3, 40));
        assert_eq!(told(&[(0, 30), (3, 30)]), (0, 0));
    }

    #[test]
    fn each_limit_has_its_own_words_and_no_made_up_code() {
        let told = |code| {
            let fault = Fault::new(ErrorKind::ResourceLimit, code);
            explain(Error::from_fault(fault, Verb::Read), fault).to_string()
        };
        for (code, words) in [(Fault::NO_QUEUE_LEFT, "queue pairs"), (Fault::NOT_MAPPED, "ulimit -l"), (0, "slab")] {
            let text = told(code);
            assert!(text.contains(words) && !text.contains("(code"), "{text}");
        }
        assert!(told(12).contains("(code 12)"));
    }
}
