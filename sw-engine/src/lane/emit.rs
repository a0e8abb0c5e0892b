//! Cutting chunks off flows and handing them to transports and copy engines.

use sw_mem::{ByteLen, Place};

use super::{Chunk, Lane, Phase, QUANTUM, Stash, flow::Flow};
use crate::{
    checksum::Running,
    error::{ErrorKind, Fault, Verb},
    object::ObjectId,
    plan::{Leg, Via},
    seam::{CopyDirection, CopyJob, Io, IoKind, MAX_SEGMENTS, MemorySegment, Submit},
    slot::Token,
    split::{Cut, Landed, cut},
};

/// Why a flow cut no further chunk.
enum Stop {
    /// It has no bytes left.
    Exhausted,
    /// Its next piece goes over another transport.
    Elsewhere(u8),
    /// The queue is at its depth; a completion will make room.
    NoPlace,
    /// All slabs are out; others may need none.
    NoSlab,
    /// The operation failed.
    Failed(Fault),
}

impl Lane {
    /// Cuts as many chunks as there is room for, in rounds.
    pub(super) fn pump(&mut self) {
        for index in 0..self.queues.len() {
            self.resubmit_refused(index);
            // Flows in a row that found no slab: when all have, a completion must come first.
            let mut without_slab = 0;
            while let Some(flow) = self.queues[index].round.pop_front() {
                match self.turn(index, flow) {
                    None => {
                        without_slab = 0;
                        self.queues[index].round.push_back(flow);
                    }
                    Some(Stop::NoPlace) => {
                        self.queues[index].round.push_front(flow);
                        break;
                    }
                    Some(Stop::NoSlab) => {
                        self.queues[index].round.push_back(flow);
                        without_slab += 1;
                        if without_slab >= self.queues[index].round.len() {
                            break;
                        }
                    }
                    Some(Stop::Elsewhere(queue)) => self.queues[usize::from(queue)].round.push_back(flow),
                    Some(Stop::Exhausted) => self.end_flow(flow),
                    Some(Stop::Failed(fault)) => {
                        let Flow { op, at, .. } = self.flows.get(flow);
                        self.fail_op(op, fault, at);
                        self.end_flow(flow);
                    }
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
        for _ in 0..QUANTUM {
            if let Err(stop) = self.cut_one(queue, index) {
                return Some(stop);
            }
        }
        None
    }

    fn cut_one(&mut self, queue: usize, index: u32) -> Result<(), Stop> {
        let mut flow = self.flows.get(index);
        let state = self.ops.get(flow.op).map(|(state, _)| state).ok_or(Stop::Exhausted)?;
        let op = state.op.as_ref().filter(|_| state.fault.is_none() && !state.answered).ok_or(Stop::Exhausted)?;
        if matches!(flow.kind, IoKind::FlushData | IoKind::FlushAll) {
            // `left` marks that the one chunk of a flush was cut.
            if flow.left == 1 {
                return Err(Stop::Exhausted);
            }
            let leg = flow.choice(op).main;
            self.place(queue, &flow, leg, Cut::default(), Stash::None)?;
            flow.left = 1;
            self.flows.set(index, flow);
            return Ok(());
        }
        if !flow.open(op) {
            return Err(Stop::Exhausted);
        }
        let piece = flow.piece(op);
        if usize::from(piece.leg.transport) != queue {
            self.flows.set(index, flow);
            return Err(Stop::Elsewhere(piece.leg.transport));
        }
        let (chunk, landed) = self.shape(&piece.leg, flow.kind, piece.at, piece.len);
        let stash = self.stash_for(&chunk, landed).ok_or(Stop::NoSlab)?;
        self.place(queue, &flow, piece.leg, chunk, stash)?;
        let op = self.ops.get(flow.op).and_then(|(state, _)| state.op.as_ref()).ok_or(Stop::Exhausted)?;
        flow.advance(op, u64::from(chunk.want));
        let more = flow.open(op);
        self.flows.set(index, flow);
        if more { Ok(()) } else { Err(Stop::Exhausted) }
    }

    /// The next chunk of a piece, within the limits of transport and slabs.
    fn shape(&self, leg: &Leg, kind: IoKind, at: u64, len: u64) -> (Cut, Landed) {
        let caps = &self.queues[usize::from(leg.transport)].caps;
        let block = leg.granularity.block;
        let slab = self.staging.as_ref().map_or(0, |pool| pool.slab_bytes().0);
        let fits_bounce = kind == IoKind::Write || u64::from(block) * 2 <= self.bounce.slab_bytes().0;
        if leg.via == Via::Staged || !fits_bounce {
            let most =
                u32::try_from(slab.min(u64::from(caps.io_bytes_max))).unwrap_or(caps.io_bytes_max) & !(block - 1);
            return (cut(at, len, leg.granularity, most, Landed::InSlab), Landed::InSlab);
        }
        let most = caps.io_bytes_max & !(block - 1);
        let whole = cut(at, len, leg.granularity, most, Landed::InPlace);
        let pieces =
            u8::from(whole.head > 0) + u8::from(whole.tail > 0) + u8::from(whole.head + whole.tail < whole.len);
        if pieces <= caps.segments_max {
            return (whole, Landed::InPlace);
        }
        // A transport with few segments gets ragged ends as I/Os of their own.
        let alone =
            if whole.head > 0 { whole.head - whole.skip } else { whole.want - (whole.want + whole.skip) % block };
        (cut(at, u64::from(alone), leg.granularity, most, Landed::InPlace), Landed::InPlace)
    }

    fn stash_for(&mut self, chunk: &Cut, landed: Landed) -> Option<Stash> {
        match landed {
            Landed::InSlab => self.staging.as_mut()?.take().map(Stash::Staging),
            Landed::InPlace if chunk.head + chunk.tail > 0 => self.bounce.take().map(Stash::Bounce),
            Landed::InPlace => Some(Stash::None),
        }
    }

    /// Puts a chunk into a slot and on its way.
    fn place(&mut self, queue: usize, flow: &Flow, leg: Leg, cut: Cut, stash: Stash) -> Result<(), Stop> {
        let room = &mut self.queues[queue];
        if let Some(fault) = room.broken {
            self.put_stash(stash);
            return Err(Stop::Failed(fault));
        }
        if room.taken >= room.caps.queue_depth || self.slots.free_count() == 0 {
            self.put_stash(stash);
            return Err(Stop::NoPlace);
        }
        room.taken += 1;
        let (memory, logical, span) = (flow.memory, flow.logical, flow.span);
        let phase = Phase::Io;
        let state = self.ops.get(flow.op).map(|(state, _)| state);
        let object = state.and_then(|state| state.op.as_ref()).map_or(ObjectId(0), |op| flow.object(op).id);
        let (op, kind) = (flow.op, flow.kind);
        let chunk = Chunk { op, kind, object, leg, span, cut, memory, logical, have: 0, stash, phase, resubmits: 0 };
        let Some(token) = self.slots.stage(chunk) else { return Err(Stop::NoPlace) };
        if let Some(state) = self.ops.get_mut(flow.op) {
            state.slots += 1;
            state.started.get_or_insert(self.now);
        }
        if flow.kind == IoKind::Write {
            self.send_write(token)
        } else {
            self.send(token)
        }
        Ok(())
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
        let Some(io) = self.io_of(token) else { return };
        let Some((chunk, _)) = self.slots.get(token) else { return };
        let queue = &mut self.queues[usize::from(chunk.leg.transport)];
        if let Some(fault) = queue.broken {
            return self.chunk_failed(token, fault);
        }
        match queue.transport.submit(&io) {
            Submit::Accepted => {
                self.counters.ios += 1;
                queue.unrung.push(token);
            }
            Submit::Full => queue.refused.push_back(token),
        }
    }

    fn io_of(&self, token: Token) -> Option<Io> {
        let (chunk, _) = self.slots.get(token)?;
        let op = self.ops.get(chunk.op)?.0.op.as_ref()?;
        let nowhere = MemorySegment { place: Place::Host(sw_mem::HostVa::new(0)), len: 0, region: sw_mem::RegionId(0) };
        let mut io = Io {
            token,
            kind: chunk.kind,
            object: chunk.object,
            handle: chunk.leg.handle,
            offset: chunk.cut.offset + u64::from(chunk.have),
            len: chunk.cut.len - chunk.have,
            segment_count: 0,
            segments: [nowhere; MAX_SEGMENTS],
        };
        let mut start = 0u32;
        for (place, region, len) in self.memory_of(chunk, op).into_iter().flatten() {
            // Skip what earlier answers delivered.
            let gone = chunk.have.saturating_sub(start).min(len);
            start += len;
            if gone < len {
                let place = place.checked_add(ByteLen(u64::from(gone)))?;
                *io.segments.get_mut(usize::from(io.segment_count))? = MemorySegment { place, len: len - gone, region };
                io.segment_count += 1;
            }
        }
        Some(io)
    }

    /// The pieces of memory that the device sees, in object order.
    fn memory_of(&self, chunk: &Chunk, op: &crate::op::Op) -> [Option<(Place, sw_mem::RegionId, u32)>; MAX_SEGMENTS] {
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
