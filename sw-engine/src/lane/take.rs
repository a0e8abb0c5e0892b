//! Taking an operation: everything is checked before anything is done.

use super::{
    Lane, Phase, Way,
    done::explain_copy,
    emit::{Queued, Stop},
    flow::Flow,
    op_id,
};
use crate::{
    checksum::Pieces,
    error::{Error, ErrorKind, Verb},
    object::Object,
    op::{Op, OpId, Rejected, Segment, Spans},
    path::Reason,
    plan::{Choice, Leg, Via},
    slot::Token,
    split::{congruent, is_ragged},
    time::Time,
};
use sw_mem::{DmaSpan, Place};

/// Offsets stay below this, as `off_t` demands.
const OFFSET_MAX: u64 = i64::MAX as u64;

impl Lane {
    /// Takes an operation. It starts at the next `ring` or `poll`.
    ///
    /// # Errors
    /// [`Rejected`] with the operation and: `Busy` (poll, then try again), `Closed`, `ApiMisuse`, `OutOfRange`,
    /// `TooLarge`, `PolicyUnmet` (memory or ends that the policy's route cannot take), or what a transport that must be told
    /// of memory says about the operation's. Nothing was done.
    pub fn submit(&mut self, now: Time, op: Op) -> Result<OpId, Rejected> {
        if let Err(error) = self.check(&op).and_then(|()| check_core(&op)) {
            return Err(Rejected { op, error });
        }
        let members = op.target.member_choices().len();
        if !self.has_room() || self.flows.free_count() < members.max(1) {
            let error = Error::new(ErrorKind::Busy, op.verb)
                .detail("the lane is full")
                .remedy("poll for completions, then try again");
            return Err(Rejected { op, error });
        }
        if let Err(error) = self.attach_memory(&op) {
            return Err(Rejected { op, error });
        }
        if let (Some(byte), Verb::Read) = (op.options.poison, op.verb) {
            poison(&op.spans, byte);
        }
        self.now = now;
        if let Some(deadline) = op.options.deadline {
            self.next_deadline = self.next_deadline.min(deadline);
        }
        let pieces = op.options.checksum.map(|algorithm| Box::new(Pieces::new(algorithm)));
        let way = Way::planned(&op.target.choice.main, members);
        // There is a free slot: `has_room` said so.
        let Some((token, state)) = self.ops.stage() else { return Ok(op_id(Token::from_raw(u64::MAX))) };
        state.begin(op, now, way, pieces);
        self.counters.ops += 1;
        if members == 0 {
            self.start(token, None);
        } else {
            self.start_members(token, members);
        }
        self.finish_if_over(token);
        Ok(op_id(token))
    }

    #[inline(never)]
    fn start_members(&mut self, token: Token, members: usize) {
        // At most 64, checked when the stripe set was made.
        (0..64).take(members).for_each(|member| self.start(token, Some(member)));
    }

    /// Starts a flow: its first chunk leaves at once if nobody waits in that queue; a flow with more joins the round.
    #[inline(always)]
    fn start(&mut self, token: Token, member: Option<u32>) {
        let Some(op) = self.ops.get(token).and_then(|(state, _)| state.op.as_ref()) else { return };
        let mut flow = Flow::new(token, op, member);
        let queue = match self.cut_one(Queued::No, &mut flow) {
            Err(Stop::Exhausted) => return,
            Err(Stop::Failed(fault)) => return self.fail_op(token, fault, flow.at, Phase::Io),
            Err(Stop::NoPlace(queue) | Stop::NoSlab(queue) | Stop::Elsewhere(queue)) => queue,
            Ok(queue) => queue,
        };
        if let Some(index) = self.flows.take(flow) {
            if let Some(state) = self.ops.get_mut(token) {
                state.flows += 1;
            }
            self.queues[usize::from(queue)].round.push_back(index);
        }
    }

    #[inline(never)]
    fn check(&self, op: &Op) -> Result<(), Error> {
        match (&op.spans, op.verb) {
            _ if self.closed || op.target.transports() > self.queues.len() => Err(self.unusable(op)),
            (Spans::One(span), Verb::Read | Verb::Write) => self.check_span(op, 0, span),
            (Spans::None, Verb::Flush) => Ok(()),
            (Spans::Many(segments), Verb::Read | Verb::Write) => self.check_many(op, segments),
            _ => Err(Error::new(ErrorKind::ApiMisuse, op.verb)
                .at(op.target.object.name.clone())
                .detail("a lane reads and writes with memory and flushes without")),
        }
    }

    #[cold]
    fn unusable(&self, op: &Op) -> Error {
        if self.closed {
            return Error::new(ErrorKind::Closed, op.verb)
                .at(op.target.object.name.clone())
                .detail("the lane is closed");
        }
        Error::new(ErrorKind::ApiMisuse, op.verb)
            .at(op.target.object.name.clone())
            .detail("the choice names a transport that this lane does not have")
    }

    fn check_many(&self, op: &Op, segments: &[Segment]) -> Result<(), Error> {
        let limit = self.config.limits.segments_max;
        if segments.len() > limit as usize {
            let detail = format!("{} segments in one operation, at most {limit}", segments.len());
            let error = Error::new(ErrorKind::TooLarge, op.verb).at(op.target.object.name.clone());
            return Err(error.detail(detail).remedy("split the operation"));
        }
        let total = op.spans.len();
        if total > self.config.limits.op_bytes_max {
            return Err(self.too_large(op, total));
        }
        segments.iter().try_for_each(|segment| self.check_span(op, segment.offset, &segment.span))
    }

    #[cold]
    fn too_large(&self, op: &Op, total: u64) -> Error {
        let detail = format!("{total} bytes in one operation, at most {}", self.config.limits.op_bytes_max);
        Error::new(ErrorKind::TooLarge, op.verb)
            .at(op.target.object.name.clone())
            .detail(detail)
            .remedy("split the operation")
    }

    #[inline(always)]
    fn check_span(&self, op: &Op, shift: u64, span: &DmaSpan) -> Result<(), Error> {
        let len = span.len().0;
        let object = &*op.target.object;
        let end = op.offset.checked_add(shift).and_then(|start| start.checked_add(len)).unwrap_or(u64::MAX);
        // A file grows by writing past its end; a stripe set has no end to grow.
        let limit = if op.verb == Verb::Read || object.stripe.is_some() { object.len } else { OFFSET_MAX };
        if end > limit {
            return Err(out_of_range(op, shift, len));
        }
        if len > self.config.limits.op_bytes_max {
            return Err(self.too_large(op, len));
        }
        let (start, place) = (end - len, span.place());
        match &object.stripe {
            None => self.check_choice(&op.target.choice, object, op.verb, (start, len), place),
            // Units are whole pages, so the phase of memory and member is the same for every member.
            Some((_, members)) => {
                let mut members = members.iter().zip(op.target.member_choices());
                members.try_for_each(|(member, choice)| self.check_choice(choice, member, op.verb, (start, len), place))
            }
        }
    }

    #[inline(always)]
    fn check_choice(
        &self,
        choice: &Choice,
        object: &Object,
        verb: Verb,
        range: (u64, u64),
        place: Place,
    ) -> Result<(), Error> {
        let (at, len) = range;
        let main = &choice.main;
        if !self.reaches(main, place) {
            let error = Error::new(ErrorKind::ApiMisuse, verb).at(object.name.clone());
            return Err(error.detail("the route was planned for another kind of memory than it was given"));
        }
        if let (Via::Staged, Place::Device(device, _)) = (main.via, place)
            && let Some(fault) = self.copier_of(device).and_then(|copier| self.copiers[copier].broken)
        {
            return Err(explain_copy(Error::from_fault(fault, verb).at(object.name.clone())));
        }
        let refused = |kind, reason| {
            Err(Error::new(kind, verb)
                .at(object.name.clone())
                .in_range(at, len)
                .with_reasons(vec![reason])
                .remedy(reason_remedy(reason)))
        };
        let misplaced = main.via == Via::Direct && !congruent(place.raw(), at, main.granularity);
        if misplaced && choice.unaligned.is_none() {
            return refused(ErrorKind::PolicyUnmet, Reason::MemoryMisaligned);
        }
        let leg = if misplaced { choice.unaligned.as_ref().unwrap_or(main) } else { main };
        if self.wants_slab(leg, verb, at, len) && !self.has_slab_for(leg.granularity.block) {
            return refused(ErrorKind::Unsupported, Reason::NoStaging);
        }
        let unit = unit_of(choice, verb);
        if (at | len) & (unit - 1) != 0 {
            let has_other_way = verb == Verb::Write && choice.ends.is_some();
            if !choice.ends_may_bounce && (main.via == Via::Direct || has_other_way) {
                return refused(ErrorKind::PolicyUnmet, Reason::RaggedEnds);
            }
            if verb == Verb::Write && !has_other_way {
                return refused(ErrorKind::Unsupported, Reason::RaggedWrite);
            }
        }
        Ok(())
    }

    /// Whether bytes of that range need a staging slab: a staged leg, or ragged ends of blocks that the bounce slabs cannot
    /// hold two of.
    #[inline]
    fn wants_slab(&self, leg: &Leg, verb: Verb, at: u64, len: u64) -> bool {
        let large = u64::from(leg.granularity.block) * 2 > self.bounce.slab_bytes().0;
        leg.via == Via::Staged || (large && verb == Verb::Read && is_ragged(at, len, leg.granularity))
    }

    #[inline]
    fn has_slab_for(&self, block: u32) -> bool {
        self.staging.as_ref().is_some_and(|pool| pool.slab_bytes().0 >= u64::from(block))
    }

    #[inline]
    fn reaches(&self, leg: &Leg, place: Place) -> bool {
        let caps = &self.queues[usize::from(leg.transport)].caps;
        match (leg.via, place) {
            (Via::Direct, Place::Host(_)) => caps.host.is_ok(),
            (Via::Direct, Place::Device(..)) => caps.device.is_ok(),
            (Via::Staged, Place::Host(_)) => self.staging.is_some(),
            (Via::Staged, Place::Device(device, _)) => self.staging.is_some() && self.copier_of(device).is_some(),
        }
    }

    pub(super) fn copier_of(&self, device: sw_mem::DeviceId) -> Option<usize> {
        self.copiers.iter().position(|copier| copier.caps.device == device)
    }
}

/// What the ends of a range must be multiples of to need no other way: the write unit where a write has another way, else
/// the block.
#[inline]
fn unit_of(choice: &Choice, verb: Verb) -> u64 {
    let block = choice.main.granularity.block;
    let shared = verb == Verb::Write && choice.ends.is_some();
    u64::from(if shared { choice.write_unit.max(block) } else { block })
}

/// Where the policy wants the whole blocks to go its way, there must be one.
#[inline]
fn check_core(op: &Op) -> Result<(), Error> {
    if op.target.choice.core_required && op.verb != Verb::Flush { find_core(op) } else { Ok(()) }
}

#[cold]
fn find_core(op: &Op) -> Result<(), Error> {
    let target = &op.target;
    let on_main = |choice: &Choice, at: u64, len: u64| {
        let unit = unit_of(choice, op.verb);
        // A staged read has no ends that go another way.
        let no_ends = op.verb == Verb::Read && choice.main.via == Via::Staged;
        no_ends || sw_mem::align_up(at, unit).is_some_and(|start| at + len >= start.saturating_add(unit))
    };
    let has_core = |at: u64, len: u64| match &target.object.stripe {
        None => on_main(&target.choice, at, len),
        Some((geometry, _)) => (0..).zip(target.member_choices()).any(|(member, choice)| {
            geometry.on_member(member, at, len).is_some_and(|range| on_main(choice, range.member_offset, range.len))
        }),
    };
    // Sums fit: every part was checked before.
    let met = match &op.spans {
        Spans::None => true,
        Spans::One(span) => has_core(op.offset, span.len().0),
        Spans::Many(segments) => segments.iter().any(|part| has_core(op.offset + part.offset, part.span.len().0)),
    };
    if met || op.spans.is_empty() {
        return Ok(());
    }
    let unit = unit_of(&target.choice, op.verb);
    Err(Error::new(ErrorKind::PolicyUnmet, op.verb)
        .at(target.object.name.clone())
        .in_range(op.offset, op.spans.len())
        .with_reasons(vec![Reason::RaggedEnds])
        .detail(format!("no whole unit of {unit} bytes is in the range: all of it would go another way"))
        .remedy("ask for at least one whole unit, or relax the policy"))
}

#[cold]
fn out_of_range(op: &Op, shift: u64, len: u64) -> Error {
    let object = &op.target.object;
    Error::new(ErrorKind::OutOfRange, op.verb)
        .at(object.name.clone())
        .in_range(op.offset.saturating_add(shift), len)
        .detail(format!("the range ends past the object, which has {} bytes", object.len))
        .remedy("ask for its length first")
}

fn reason_remedy(reason: Reason) -> &'static str {
    match reason {
        Reason::MemoryMisaligned => "place the memory congruent to the offset, or relax the policy",
        Reason::RaggedEnds => "use whole blocks, or the policy require-core",
        Reason::NoStaging => "give the engine staging slabs of at least one block",
        _ => "use whole blocks",
    }
}

/// Poison shows bytes that never arrived; device memory is left alone (its copy engine would need a slab of poison).
fn poison(spans: &Spans, byte: u8) {
    let fill = |span: &DmaSpan| {
        if span.place().host().is_some() {
            // The whole of a span is in range of itself.
            let _ = span.fill(0, span.len().0, byte);
        }
    };
    match spans {
        Spans::None => {}
        Spans::One(span) => fill(span),
        Spans::Many(segments) => segments.iter().for_each(|segment| fill(&segment.span)),
    }
}
