//! The workload: operations of every shape, and callers that cancel and walk away.

use std::sync::Arc;

use sw_engine::{
    Choice, ErrorKind, MemoryFacts, Op, OpId, OpOptions, Policy, Reason, Rejected, Segment, Spans, Target, Time, Verb,
    checksum::Algorithm, plan,
};
use sw_mem::{Buffer, ByteLen, DmaRegion, DmaSpan, GpuVa, HugePages, Populate, RegionId, index};

use super::{World, params::Faces};
use crate::{log::Mark, medium::written, shadow::Belongs};

/// What memory around an operation's bytes holds.
pub(crate) const GUARD: u8 = 0xA7;
/// Guard bytes on each side, at least.
const GUARD_BYTES: u64 = 4096;
/// The unit in which writes of different operations keep apart: a page of the modelled cache.
const PAGE: u64 = 4096;

/// A piece of an operation: where in the object, where in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) region: RegionId,
    pub(crate) at: u64,
    pub(crate) region_len: u64,
}

impl Part {
    /// Whether it has an end inside a block.
    fn is_odd(&self, block: u64) -> bool {
        !self.offset.is_multiple_of(block) || !self.len.is_multiple_of(block)
    }
}

/// What the world knows of an operation. No handle of its memory: holders are counted.
#[derive(Clone, Debug)]
pub(crate) struct LiveOp {
    pub(crate) user: u64,
    pub(crate) id: Option<OpId>,
    pub(crate) verb: Verb,
    pub(crate) object: usize,
    pub(crate) parts: Vec<Part>,
    pub(crate) len: u64,
    pub(crate) submitted: u64,
    pub(crate) deadline: Option<u64>,
    pub(crate) checksum: Option<Algorithm>,
    pub(crate) on_device: bool,
    pub(crate) congruent: bool,
    /// Pages that a write holds.
    pub(crate) pages: Vec<(usize, u64)>,
    /// For a write: what its bytes in the object were.
    pub(crate) before: Vec<u8>,
}

impl World {
    /// Draws an operation and gives it to the lane. True if one was drawn at all.
    pub(super) fn submit_one(&mut self) -> bool {
        let Some((mut live, spans)) = self.draw_op() else { return true };
        let object = Arc::clone(&self.object(live.object).object);
        let Some(target) = self.target(&object, &live) else {
            self.put_away(&live);
            return true;
        };
        let options = self.draw_options(&mut live);
        let now = self.now();
        live.submitted = now.0;
        self.lend(&live);
        let offset = live.parts.first().map_or(0, |part| part.offset);
        let op = Op { user: live.user, verb: live.verb, target, offset, spans, options };
        match self.lane.submit(now, op) {
            Ok(id) => {
                live.id = Some(id);
                self.took(live);
                if self.rng.per_mille(500) {
                    self.lane.ring();
                }
            }
            Err(rejected) => self.refused(&live, rejected),
        }
        true
    }

    fn took(&mut self, live: LiveOp) {
        self.stats.ops += 1;
        if self.wants_missing_slab(&live) {
            let text = format!("op {} was taken, and no slab can ever hold its ends", live.user);
            self.hub.lock().violate("status", text);
        }
        let words = [live.user, live.verb as u64, live.object as u64, live.len, live.parts.len() as u64];
        let mut machine = self.hub.lock();
        machine.note("op", &words);
        if self.objects.get(live.object).is_some_and(super::targets::SimObject::is_striped) {
            machine.mark(Mark::StripedOp);
        }
        if live.parts.len() > 1 {
            machine.mark(Mark::VectoredOp);
        }
        if !live.congruent {
            machine.mark(Mark::Misaligned);
        }
        drop(machine);
        self.written.extend(live.pages.iter().copied());
        self.live.insert(live.user, live);
    }

    /// Nothing was done; the reason must be one that the operation deserves.
    fn refused(&mut self, live: &LiveOp, rejected: Rejected) {
        let kind = rejected.error.kind();
        let object = self.object(live.object);
        let past_end = live.parts.iter().any(|part| part.offset + part.len > object.object.len);
        let deserved = match (kind, rejected.error.reasons()) {
            (ErrorKind::Busy, _) => true,
            (ErrorKind::Unsupported, [Reason::NoStaging]) => self.wants_missing_slab(live),
            (ErrorKind::Unsupported, _) => {
                live.verb == Verb::Write && self.has_odd_part(live) && !object.takes_odd_writes(&self.params)
            }
            (ErrorKind::PolicyUnmet, _) => !live.congruent && self.params.staging.is_none(),
            (ErrorKind::OutOfRange, _) => past_end,
            (ErrorKind::ResourceLimit, _) => self.hub.marks().count(Mark::IommuFull) > 0,
            (ErrorKind::NoDevice, _) => live.on_device && self.lost_a_device(),
            _ => false,
        };
        let mark = match kind {
            ErrorKind::Busy => Some(Mark::LaneBusy),
            ErrorKind::Unsupported if live.verb == Verb::Read => Some(Mark::NoSlabForEnds),
            _ => None,
        };
        mark.into_iter().for_each(|mark| self.hub.lock().mark(mark));
        if !deserved {
            let text = format!("op {} ({:?}) was refused without cause: {}", live.user, live.verb, rejected.error);
            self.hub.lock().violate("status", text);
        }
        if !live.parts.is_empty() && rejected.op.spans.len() != live.len {
            self.hub.lock().violate("status", format!("op {} was refused and lost its memory", live.user));
        }
        self.take_back(live);
        self.put_away(live);
    }

    fn has_odd_part(&self, live: &LiveOp) -> bool {
        let block = u64::from(self.params.block);
        live.parts.iter().any(|part| part.is_odd(block))
    }

    /// Whether a device broke. Its copy engine tells the lane at the next call, and the lane tells the caller.
    fn lost_a_device(&self) -> bool {
        self.hub.lock().log.marks.count(Mark::CopyEngineBroke) > 0
    }

    /// Whether a read has ragged ends that neither kind of slab can hold, nor another face take: there are no staging slabs,
    /// and bounce slabs hold less than a block at each end. Memory that the blocks' face cannot take goes another way, without ends.
    fn wants_missing_slab(&self, live: &LiveOp) -> bool {
        let (block, memory) = (u64::from(self.params.block), u64::from(self.params.memory));
        let none = self.params.staging.is_none() && u64::from(self.params.lane.bounce_bytes) < 2 * block;
        // Regions begin on a page, so the phase of memory is that of its place in the region.
        let in_place = |part: &Part| part.at % memory == part.offset % memory;
        none && live.verb == Verb::Read
            && self.params.faces == Faces::Direct
            && live.parts.iter().any(|part| in_place(part) && part.is_odd(block))
    }

    fn draw_op(&mut self) -> Option<(LiveOp, Spans)> {
        let user = self.next_user;
        self.next_user += 1;
        let which = index(self.rng.below(self.objects.len() as u64));
        let work = self.params.work.clone();
        let roll = self.rng.below(1000);
        let verb = match roll {
            _ if roll < work.flushes => Verb::Flush,
            _ if roll < work.flushes + work.writes => Verb::Write,
            _ => Verb::Read,
        };
        let mut live = LiveOp {
            user,
            id: None,
            verb,
            object: which,
            parts: Vec::new(),
            len: 0,
            submitted: 0,
            deadline: None,
            checksum: None,
            on_device: false,
            congruent: true,
            pages: Vec::new(),
            before: Vec::new(),
        };
        if verb == Verb::Flush {
            return Some((live, Spans::None));
        }
        live.on_device = !self.params.copiers.is_empty() && self.rng.per_mille(work.on_device);
        live.congruent = self.rng.per_mille(work.congruent);
        let ranges = self.draw_ranges(which, verb);
        if verb == Verb::Write && !self.hold_pages(&mut live, &ranges) {
            return None;
        }
        let mut spans = Vec::new();
        for (offset, len) in ranges {
            let (part, span) = self.memory_for(&live, offset, len)?;
            live.len += len;
            live.parts.push(part);
            spans.push(Segment { offset, span });
        }
        if verb == Verb::Write {
            self.fill_for_write(&mut live);
        }
        let base = live.parts.first().map_or(0, |part| part.offset);
        spans.iter_mut().for_each(|segment| segment.offset -= base);
        let spans = match spans.len() {
            1 => spans.pop().map_or(Spans::None, |segment| Spans::One(segment.span)),
            _ => Spans::Many(spans.into()),
        };
        Some((live, spans))
    }

    /// Ascending ranges of the object that do not meet.
    fn draw_ranges(&mut self, which: usize, verb: Verb) -> Vec<(u64, u64)> {
        let work = self.params.work.clone();
        let object = self.object(which);
        let odd_is_fine = verb == Verb::Read || object.takes_odd_writes(&self.params);
        let end = object.object.len;
        let aligned = self.rng.per_mille(work.aligned) || (!odd_is_fine && !self.rng.per_mille(50));
        let unit = if aligned { u64::from(self.params.block) } else { 1 };
        let count = if self.rng.per_mille(work.vectored) { self.rng.range(2, 4) } else { 1 };
        let most = (work.op_bytes_max / count).clamp(unit, end / count);
        let len_of = |world: &mut World| (world.rng.range(1, most) / unit * unit).max(unit);
        let mut ranges = Vec::new();
        // Each part has its own stretch of the object, so that they do not meet.
        let stretch = end / count / unit * unit;
        for n in 0..count {
            let len = len_of(self).min(stretch);
            let at = n * stretch + self.rng.below((stretch - len) / unit + 1) * unit;
            ranges.push((at, len));
        }
        if count == 1 && verb == Verb::Read && self.rng.per_mille(10) {
            // Past the end: to be refused. Or nothing at all: to succeed.
            ranges = if self.rng.per_mille(500) { vec![(end - 1, unit.max(2))] } else { vec![(end / 2, 0)] };
        }
        ranges
    }

    /// Takes the pages of a write, or none if another write has one of them.
    fn hold_pages(&mut self, live: &mut LiveOp, ranges: &[(u64, u64)]) -> bool {
        let object = self.object(live.object);
        for (offset, len) in ranges {
            let mut at = *offset;
            while at < offset + len {
                let (disk, place) = object.locate(at);
                live.pages.push((disk, place / PAGE));
                at = (at / PAGE + 1) * PAGE;
            }
        }
        live.pages.dedup();
        !live.pages.iter().any(|page| self.written.contains(page))
    }

    /// Memory for one part, guarded on both sides.
    fn memory_for(&mut self, live: &LiveOp, offset: u64, len: u64) -> Option<(Part, DmaSpan)> {
        let phase = if live.congruent { offset % PAGE } else { self.rng.below(PAGE) };
        let region_len = len + 2 * GUARD_BYTES + PAGE;
        let region = if live.on_device { self.device_region(region_len)? } else { host_region(region_len)? };
        self.hub.memory(&region, Belongs::Caller);
        let at = GUARD_BYTES + phase;
        let span = sw_mem::model_span(&region, at, ByteLen(len)).ok()?;
        self.hub.poke(&region, 0, &vec![GUARD; index(region.len().0)]);
        Some((Part { offset, len, region: region.id(), at, region_len: region.len().0 }, span))
    }

    fn device_region(&mut self, len: u64) -> Option<DmaRegion> {
        let device = self.rng.pick(&self.params.copiers)?.device;
        let base = GpuVa::new(self.next_gpu_va);
        self.next_gpu_va += len.next_multiple_of(1 << 16);
        DmaRegion::modelled(device, base, ByteLen(len)).ok()
    }

    fn fill_for_write(&mut self, live: &mut LiveOp) {
        let mut at = 0;
        for part in live.parts.clone() {
            let bytes: Vec<u8> = (at..at + part.len).map(|at| written(live.user, at)).collect();
            self.hub.lock().shadow.put(part.region, part.at, &bytes);
            live.before.extend(self.object_bytes(live.object, part.offset, part.len));
            at += part.len;
        }
    }

    /// Bytes of an object as its disks hold them now.
    pub(super) fn object_bytes(&self, which: usize, offset: u64, len: u64) -> Vec<u8> {
        let object = self.object(which);
        let machine = self.hub.lock();
        let byte = |at| {
            let (disk, place) = object.locate(at);
            machine.disks.get(disk).and_then(|disk| disk.bytes().get(index(place))).copied().unwrap_or(0)
        };
        (offset..offset + len).map(byte).collect()
    }

    fn target(&self, object: &Arc<sw_engine::Object>, live: &LiveOp) -> Option<Target> {
        let staging = if self.params.staging.is_some() { Ok(()) } else { Err(Reason::NoStaging) };
        let first = live.parts.first().map(|part| part.region);
        let device = first.filter(|_| live.on_device).and_then(|region| self.hub.lock().shadow.device_of(region));
        let facts = MemoryFacts { device, staging, ..MemoryFacts::HOST };
        let caps = self.lane.transport_caps();
        let choose = |object: &sw_engine::Object| -> Option<Choice> {
            plan(object, &facts, &caps, &Policy::Any, &self.rates, live.verb).choice.ok()
        };
        match &object.composed {
            None => Target::new(Arc::clone(object), choose(object)?).ok(),
            Some((_, members)) => {
                let choices = members.iter().map(|member| choose(member)).collect::<Option<Vec<_>>>()?;
                Target::composed(Arc::clone(object), choices).ok()
            }
        }
    }

    fn draw_options(&mut self, live: &mut LiveOp) -> OpOptions {
        let work = self.params.work.clone();
        let now = self.now().0;
        let (low, high) = work.deadline_ns;
        live.deadline = self.rng.per_mille(work.deadlines).then(|| now + self.rng.range(low, high));
        let algorithm = self.rng.pick_or(&[Algorithm::Crc32c, Algorithm::Crc64Nvme], Algorithm::Crc32c);
        live.checksum = (live.verb != Verb::Flush && self.rng.per_mille(work.checksums)).then_some(algorithm);
        OpOptions {
            deadline: live.deadline.map(Time),
            checksum: live.checksum,
            poison: self.rng.per_mille(work.poison).then_some(0xDB),
            all_metadata: self.rng.per_mille(500),
        }
    }

    fn lend(&self, live: &LiveOp) {
        let mut machine = self.hub.lock();
        let now = machine.now();
        live.parts.iter().for_each(|part| machine.shadow.lend(now, part.region, part.at, part.len, live.user));
    }

    fn take_back(&self, live: &LiveOp) {
        let mut machine = self.hub.lock();
        let now = machine.now();
        for part in &live.parts {
            machine.shadow.give_back(now, part.region, part.at, part.len, live.user);
        }
    }

    /// The world is done with the memory.
    pub(super) fn put_away(&self, live: &LiveOp) {
        let mut machine = self.hub.lock();
        live.parts.iter().for_each(|part| machine.shadow.forget(part.region));
    }

    pub(super) fn object(&self, which: usize) -> super::targets::SimObject {
        // Cheap: an Arc and two small fields. The index was drawn below the number of objects, of which there is one.
        self.objects.get(which).or(self.objects.first()).cloned().unwrap_or_else(|| unreachable!("a world has objects"))
    }

    /// A caller that cancels, or walks away.
    pub(super) fn meddle(&mut self) {
        // What is ready already is an answer; only what is not can be called off.
        self.take_completions();
        let users: Vec<u64> = self.live.keys().copied().collect();
        let Some(user) = self.rng.pick(&users).copied() else { return };
        let (cancel, abandon) =
            (self.rng.per_mille(self.params.work.cancels * 10), self.rng.per_mille(self.params.work.abandons * 10));
        let Some(id) = self.live.get(&user).and_then(|live| live.id) else { return };
        let now = self.now();
        if cancel {
            self.hub.lock().note("caller cancels", &[user]);
            self.lane.cancel(now, id);
            self.take_completions();
        } else if abandon {
            self.hub.lock().note("caller leaves", &[user]);
            if let Some(live) = self.live.remove(&user) {
                self.hub.lock().mark(Mark::Abandoned);
                self.withhold(live);
            }
            self.lane.abandon(now, id);
        }
    }

    /// The lane keeps the memory.
    pub(super) fn withhold(&mut self, live: LiveOp) {
        self.hub.lock().answered.insert(live.user);
        self.withheld.insert(live.user, live);
    }
}

fn host_region(len: u64) -> Option<DmaRegion> {
    let buffer = Buffer::allocate_with(ByteLen(len), 0, HugePages::Never, Populate::Lazy).ok()?;
    Some(buffer.region().clone())
}
