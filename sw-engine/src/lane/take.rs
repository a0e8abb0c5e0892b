//! Taking an operation: everything is checked before anything is done.

use super::{
    Lane, Phase,
    done::explain_copy,
    emit::{Left, Queued, Stop},
    flow::{Flow, Shape, Spot},
    op_id,
};
use crate::{
    checksum::Pieces,
    error::{Error, ErrorKind, Verb},
    layout::Layout,
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

/// What the bytes of an operation need.
enum Fit {
    /// Whole blocks in place, from there on.
    Whole(Spot),
    /// A look at each piece; or there are none.
    Mixed,
}

impl Lane {
    /// Takes an operation. It starts at the next `ring` or `poll` at the latest.
    ///
    /// # Errors
    /// [`Rejected`] with the operation and: `Busy` (poll, then try again), `Closed`, `ApiMisuse`, `OutOfRange`,
    /// `TooLarge`, `PolicyUnmet` (memory or ends that the policy's route cannot take), or what a transport that must be told
    /// of memory says about the operation's. Nothing was done.
    pub fn submit(&mut self, now: Time, op: Op) -> Result<OpId, Rejected> {
        let fit = match self.check(&op) {
            Ok(fit) => fit,
            Err(error) => return Err(Rejected { op, error }),
        };
        let members = op.target.member_choices().len();
        if !self.has_room() || self.flows.free_count() < members.max(1) {
            return Err(self.no_room(op));
        }
        if let Err(error) = self.attach_memory(&op) {
            return Err(Rejected { op, error });
        }
        let op = if members == 0 { op } else { resolved(op)? };
        if let (Some(byte), Verb::Read) = (op.options.poison, op.verb) {
            poison(&op.spans, byte);
        }
        self.now = now;
        if let Some(deadline) = op.options.deadline {
            self.next_deadline = self.next_deadline.min(deadline);
        }
        let pieces = op.options.checksum.map(|algorithm| Box::new(Pieces::new(algorithm)));
        let (ops, mut out) = self.split();
        // There is a free slot: `has_room` said so.
        let Some(slot) = ops.stage() else { return Ok(op_id(Token::from_raw(u64::MAX))) };
        let token = slot.token();
        let state = slot.into_body();
        state.begin(now, pieces);
        state.put(op);
        out.counters.ops += 1;
        let Fit::Whole(here) = fit else {
            self.start(token, members);
            return Ok(op_id(token));
        };
        match out.cut_whole(Queued::No, state, token, here) {
            // The common operation: all of it is with its transport.
            Ok(Left { waiting: None, want, .. }) if want == here.left => {}
            left => self.started(token, left),
        }
        Ok(op_id(token))
    }

    /// Full, or closed.
    #[cold]
    fn no_room(&self, op: Op) -> Rejected {
        let error = if self.closed {
            self.unusable(&op)
        } else {
            Error::new(ErrorKind::Busy, op.verb)
                .detail("the lane is full")
                .remedy("poll for completions, then try again")
        };
        Rejected { op, error }
    }

    /// Starts the flows of an operation, one for each member of a stripe set.
    #[inline(never)]
    pub(super) fn start(&mut self, token: Token, members: usize) {
        // At most 64, checked when the stripe set was made.
        let members = (0..64).take(members).map(Some);
        let plain = members.len() == 0;
        for member in members.chain(plain.then_some(None)) {
            let Some(op) = self.ops.get(token).and_then(|(state, _)| state.op.as_ref()) else { break };
            let shape = if op.verb == Verb::Flush { Shape::Flush } else { Shape::Mixed };
            let mut flow = Flow::new(token, op, shape, member);
            if self.ends_apart(flow.choice(op), op.verb) {
                flow.shape = Shape::EndsApart;
            }
            let next = self.cut_next(Queued::No, &mut flow);
            self.join(flow, next);
        }
        self.finish_if_over(token);
    }

    /// What is left to do for whole blocks after their first chunk.
    #[inline(never)]
    fn started(&mut self, token: Token, left: Result<Left, Stop>) {
        let Some(op) = self.ops.get(token).and_then(|(state, _)| state.op.as_ref()) else { return };
        let mut flow = Flow::new(token, op, Shape::Whole, None);
        let next = match left {
            Ok(left) => {
                let more = flow.goes_on(op, left.want);
                left.waiting.into_iter().for_each(|token| self.send_first(token));
                Ok(more.then_some(left.queue))
            }
            Err(stop) => Err(stop),
        };
        self.join(flow, next);
        self.finish_if_over(token);
    }

    /// A flow that has more joins the round of the queue that its next chunk goes to.
    fn join(&mut self, flow: Flow, next: Result<Option<u8>, Stop>) {
        let queue = match next {
            Ok(None) | Err(Stop::Exhausted) => return,
            Err(Stop::Failed(fault)) => return self.fail_op(flow.op, fault, flow.here.at, Phase::Io),
            Err(Stop::NoPlace(queue) | Stop::Later(queue) | Stop::Elsewhere(queue)) | Ok(Some(queue)) => queue,
        };
        if let Some(index) = self.flows.take(flow) {
            if let Some(state) = self.ops.get_mut(flow.op) {
                state.flows += 1;
            }
            self.queues[usize::from(queue)].shares.wait_last(flow.device, index);
        }
    }

    /// Whether the lane can take it, and what its bytes need on their way.
    #[inline(always)]
    fn check(&self, op: &Op) -> Result<Fit, Error> {
        match &op.spans {
            Spans::One(span) if op.verb != Verb::Flush && self.is_whole(op, op.offset, span) => {
                Ok(Fit::Whole(Spot::start(op, span)))
            }
            _ => self.check_parts(op).map(|()| Fit::Mixed),
        }
    }

    /// Whether a span is in range and takes the main leg in place, as whole blocks: all that is checked otherwise holds then.
    #[inline(always)]
    fn is_whole(&self, op: &Op, at: u64, span: &DmaSpan) -> bool {
        let (len, place, object) = (span.len().0, span.place(), &*op.target.object);
        let limit = if op.verb == Verb::Read { object.len } else { OFFSET_MAX };
        len > 0
            && len <= self.config.limits.op_bytes_max
            && at.checked_add(len).is_some_and(|end| end <= limit)
            && op.target.whole().hold(op.verb, at, len, place.raw())
            && self.queues.get(usize::from(op.target.choice.main.transport)).is_some_and(|queue| queue.reaches(place))
            && op.target.transports() <= self.queues.len()
    }

    #[inline(never)]
    fn check_parts(&self, op: &Op) -> Result<(), Error> {
        match (&op.spans, op.verb) {
            _ if self.closed || op.target.transports() > self.queues.len() => return Err(self.unusable(op)),
            (_, Verb::Write) if is_only_read(&op.target.object) => return Err(only_read(op)),
            (Spans::One(span), Verb::Read | Verb::Write) => self.check_span(op, 0, span)?,
            (Spans::None, Verb::Flush) => {}
            (Spans::Many(segments), Verb::Read | Verb::Write) => self.check_many(op, segments)?,
            _ => {
                return Err(Error::new(ErrorKind::ApiMisuse, op.verb)
                    .at(op.target.object.name.clone())
                    .detail("a lane reads and writes with memory and flushes without"));
            }
        }
        check_core(op)
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

    fn check_span(&self, op: &Op, shift: u64, span: &DmaSpan) -> Result<(), Error> {
        let len = span.len().0;
        let object = &*op.target.object;
        let end = op.offset.checked_add(shift).and_then(|start| start.checked_add(len)).unwrap_or(u64::MAX);
        // A file grows by writing past its end; a stripe set has no end to grow.
        let limit = if op.verb == Verb::Read || object.composed.is_some() { object.len } else { OFFSET_MAX };
        if end > limit {
            return Err(out_of_range(op, shift, len));
        }
        if len > self.config.limits.op_bytes_max {
            return Err(self.too_large(op, len));
        }
        let (start, place) = (end - len, span.place());
        match &object.composed {
            None => self.check_choice(&op.target.choice, object, op.verb, (start, len), place),
            // Units are whole pages, so the phase of memory and member is the same for every member.
            Some((_, members)) => {
                let mut members = members.iter().zip(op.target.member_choices());
                members.try_for_each(|(member, choice)| self.check_choice(choice, member, op.verb, (start, len), place))
            }
        }
    }

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
        let apart = !misplaced && self.ends_apart(choice, verb);
        if self.wants_slab(leg, verb, at, len) && !self.has_slab_for(leg.granularity.block) && !apart {
            return refused(ErrorKind::Unsupported, Reason::NoStaging);
        }
        let unit = u64::from(choice.unit_of(verb));
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
    fn wants_slab(&self, leg: &Leg, verb: Verb, at: u64, len: u64) -> bool {
        let large = self.is_too_large_to_bounce(leg.granularity.block);
        leg.via == Via::Staged || (large && verb == Verb::Read && is_ragged(at, len, leg.granularity.block))
    }

    fn is_too_large_to_bounce(&self, block: u32) -> bool {
        u64::from(block) * 2 > self.bounce.slab_bytes().0
    }

    /// Whether ragged ends of a read in place take the leg for ends, because no slab holds the blocks that they lie in.
    fn ends_apart(&self, choice: &Choice, verb: Verb) -> bool {
        let block = choice.main.granularity.block;
        verb == Verb::Read
            && choice.main.via == Via::Direct
            && choice.ends_may_bounce
            && choice.ends.is_some_and(|ends| ends.via == Via::Direct)
            && self.is_too_large_to_bounce(block)
            && !self.has_slab_for(block)
    }

    fn has_slab_for(&self, block: u32) -> bool {
        self.staging.as_ref().is_some_and(|pool| pool.slab_bytes().0 >= u64::from(block))
    }

    fn reaches(&self, leg: &Leg, place: Place) -> bool {
        match (leg.via, place) {
            (Via::Direct, _) => self.queues[usize::from(leg.transport)].reaches(place),
            (Via::Staged, Place::Host(_)) => self.staging.is_some(),
            (Via::Staged, Place::Device(device, _)) => self.staging.is_some() && self.copier_of(device).is_some(),
        }
    }

    pub(super) fn copier_of(&self, device: sw_mem::DeviceId) -> Option<usize> {
        self.copiers.iter().position(|copier| copier.caps.device == device)
    }
}

/// The operation, with the places of its bytes where those are found out for each.
#[inline(never)]
fn resolved(mut op: Op) -> Result<Op, Rejected> {
    match op.target.resolve(&op) {
        None => Ok(op),
        Some(Ok(target)) => {
            op.target = target;
            Ok(op)
        }
        Some(Err(error)) => Err(Rejected { op, error }),
    }
}

/// Where the policy wants the whole blocks to go its way, there must be one.
fn check_core(op: &Op) -> Result<(), Error> {
    if op.target.choice.core_required && op.verb != Verb::Flush { find_core(op) } else { Ok(()) }
}

#[cold]
fn find_core(op: &Op) -> Result<(), Error> {
    let target = &op.target;
    let on_main = |choice: &Choice, at: u64, len: u64| {
        let unit = u64::from(choice.unit_of(op.verb));
        // A staged read has no ends that go another way.
        let no_ends = op.verb == Verb::Read && choice.main.via == Via::Staged;
        no_ends || sw_mem::align_up(at, unit).is_some_and(|start| at + len >= start.saturating_add(unit))
    };
    let has_core = |at: u64, len: u64| match &target.object.composed {
        None => on_main(&target.choice, at, len),
        Some((Layout::Stripe(geometry), _)) => (0..).zip(target.member_choices()).any(|(member, choice)| {
            geometry.on_member(member, at, len).is_some_and(|range| on_main(choice, range.member_offset, range.len))
        }),
        // Wherever they are: pages of the object are pages there.
        Some((Layout::Pieces(_), _)) => target.member_choices().iter().all(|choice| on_main(choice, at, len)),
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
    let unit = target.choice.unit_of(op.verb);
    Err(Error::new(ErrorKind::PolicyUnmet, op.verb)
        .at(target.object.name.clone())
        .in_range(op.offset, op.spans.len())
        .with_reasons(vec![Reason::RaggedEnds])
        .detail(format!("no whole unit of {unit} bytes is in the range: all of it would go another way"))
        .remedy("ask for at least one whole unit, or relax the policy"))
}

fn is_only_read(object: &Object) -> bool {
    matches!(object.composed, Some((Layout::Pieces(_), _)))
}

#[cold]
fn only_read(op: &Op) -> Error {
    Error::new(ErrorKind::Unsupported, op.verb)
        .at(op.target.object.name.clone())
        .detail("the object is open for reading")
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
