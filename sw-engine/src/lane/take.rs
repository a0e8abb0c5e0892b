//! Taking an operation: everything is checked before anything is done.

use super::{Lane, OpState, flow::Flow, op_id};
use crate::{
    checksum::Pieces,
    error::{Error, ErrorKind, Verb},
    object::Object,
    op::{Op, OpId, Rejected, Spans},
    path::{Reason, Route},
    plan::{Choice, Leg, Via},
    seam::IoKind,
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
    /// `TooLarge`, `PolicyUnmet` (memory or ends that the policy's route cannot take). Nothing was done.
    #[expect(clippy::result_large_err, reason = "the operation goes back to its owner by value, as the design demands")]
    pub fn submit(&mut self, now: Time, op: Op) -> Result<OpId, Rejected> {
        if let Err(error) = self.check(&op) {
            return Err(Rejected { op, error });
        }
        let members = op.target.object.stripe.as_ref().map_or(0, |(geometry, _)| geometry.width());
        if !self.has_room() || self.flows.free_count() < members.max(1) as usize {
            let error = Error::new(ErrorKind::Busy, op.verb)
                .detail("the lane is full")
                .remedy("poll for completions, then try again");
            return Err(Rejected { op, error });
        }
        if let (Some(byte), Verb::Read) = (op.options.poison, op.verb) {
            poison(&op.spans, byte);
        }
        let deadline = op.options.deadline.unwrap_or(Time::FOREVER);
        self.now = now;
        let token = self.admit(op, members);
        self.next_deadline = self.next_deadline.min(deadline);
        self.finish_if_over(token);
        Ok(op_id(token))
    }

    fn admit(&mut self, op: Op, members: u32) -> crate::slot::Token {
        let kind = match (op.verb, op.options.all_metadata) {
            (Verb::Read, _) => IoKind::Read,
            (Verb::Write, _) => IoKind::Write,
            (_, true) => IoKind::FlushAll,
            (_, false) => IoKind::FlushData,
        };
        let pieces = op.options.checksum.map(|algorithm| Box::new(Pieces::new(algorithm)));
        let first = op.target.member_choices().first().unwrap_or(&op.target.choice);
        let (route, reason) = (first.route, first.main.reason);
        let state = OpState { op: Some(op), submitted: self.now, route, reason, pieces, ..OpState::empty() };
        let token = self.ops.stage(state).unwrap_or(crate::slot::Token::from_raw(u64::MAX));
        self.ops.fly(token);
        self.counters.ops += 1;
        for member in 0..members.max(1) {
            self.start_flow(Flow::new(token, kind, (members > 0).then_some(member)));
        }
        token
    }

    fn start_flow(&mut self, mut flow: Flow) {
        let token = flow.op;
        let Some(state) = self.ops.get_mut(token) else { return };
        let Some(op) = &state.op else { return };
        let leg = if matches!(flow.kind, IoKind::FlushData | IoKind::FlushAll) {
            flow.choice(op).main
        } else if flow.open(op) {
            flow.piece(op).leg
        } else {
            return;
        };
        if leg.reason == Reason::MemoryMisaligned {
            // The operation's bulk goes another way than planned; the report says so.
            state.reason = leg.reason;
            let transport = self.queues[usize::from(leg.transport)].caps.name;
            state.route = Route { transport, landing: leg.landing };
        }
        if let Some(index) = self.flows.take(flow) {
            state.flows += 1;
            self.enqueue(usize::from(leg.transport), index);
        }
    }

    pub(super) fn enqueue(&mut self, queue: usize, index: u32) {
        let mut flow = self.flows.get(index);
        flow.queued = true;
        self.flows.set(index, flow);
        self.queues[queue].round.push_back(index);
    }

    fn check(&self, op: &Op) -> Result<(), Error> {
        let fail = |kind| Error::new(kind, op.verb).at(op.target.object.name.clone());
        if self.closed {
            return Err(fail(ErrorKind::Closed).detail("the lane is closed"));
        }
        match (&op.spans, op.verb) {
            (Spans::None, Verb::Flush) | (Spans::One(_) | Spans::Many(_), Verb::Read | Verb::Write) => {}
            _ => {
                return Err(
                    fail(ErrorKind::ApiMisuse).detail("a lane reads and writes with memory and flushes without")
                );
            }
        }
        self.check_members(op)?;
        let (limit, total) = (self.config.limits.op_bytes_max, op.spans.len());
        if total > limit {
            return Err(fail(ErrorKind::TooLarge).detail(format!("{total} bytes in one operation, at most {limit}")));
        }
        match &op.spans {
            Spans::None => Ok(()),
            Spans::One(span) => self.check_span(op, 0, span),
            Spans::Many(segments) => {
                let limit = self.config.limits.segments_max;
                if segments.len() > limit as usize {
                    let detail = format!("{} segments in one operation, at most {limit}", segments.len());
                    return Err(fail(ErrorKind::TooLarge).detail(detail).remedy("split the operation"));
                }
                segments.iter().try_for_each(|segment| self.check_span(op, segment.offset, &segment.span))
            }
        }
    }

    fn check_members(&self, op: &Op) -> Result<(), Error> {
        let object = &op.target.object;
        let width = object.stripe.as_ref().map_or(0, |(geometry, _)| geometry.width());
        let members = object.stripe.as_ref().map_or(0, |(_, members)| members.len());
        let legs = core::iter::once(&op.target.choice).chain(op.target.member_choices().iter());
        let mut legs = legs.flat_map(|choice| [Some(choice.main), choice.unaligned, choice.ends]).flatten();
        if op.target.member_choices().len() != width as usize || members != width as usize {
            let detail = "the target does not have one choice for each member of its stripe set";
            return Err(Error::new(ErrorKind::ApiMisuse, op.verb).at(object.name.clone()).detail(detail));
        }
        if legs.any(|leg| usize::from(leg.transport) >= self.queues.len()) {
            let detail = "the choice names a transport that this lane does not have";
            return Err(Error::new(ErrorKind::ApiMisuse, op.verb).at(object.name.clone()).detail(detail));
        }
        Ok(())
    }

    fn check_span(&self, op: &Op, shift: u64, span: &DmaSpan) -> Result<(), Error> {
        let len = span.len().0;
        let object = &op.target.object;
        let start =
            op.offset.checked_add(shift).filter(|start| start.checked_add(len).is_some_and(|end| end <= OFFSET_MAX));
        let Some(start) = start else {
            return Err(Error::new(ErrorKind::OutOfRange, op.verb).at(object.name.clone()).in_range(op.offset, len));
        };
        let fail = |kind| Error::new(kind, op.verb).at(object.name.clone()).in_range(start, len);
        // A file grows by writing past its end; a stripe set has no end to grow.
        if (op.verb == Verb::Read || object.stripe.is_some()) && start + len > object.len {
            let detail = format!("the range ends past the object, which has {} bytes", object.len);
            return Err(fail(ErrorKind::OutOfRange).detail(detail).remedy("ask for its length first"));
        }
        match &object.stripe {
            None => self.check_choice(&op.target.choice, object, op.verb, start, len, span.place()),
            // Units are whole pages, so the phase of memory and member is the same for every member.
            Some((_, members)) => members
                .iter()
                .zip(op.target.member_choices().iter())
                .try_for_each(|(member, choice)| self.check_choice(choice, member, op.verb, start, len, span.place())),
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the four facts of a range and the two of its route; a struct would be made here only"
    )]
    fn check_choice(
        &self,
        choice: &Choice,
        object: &Object,
        verb: Verb,
        at: u64,
        len: u64,
        place: Place,
    ) -> Result<(), Error> {
        let fail = |kind, reason| {
            Err(Error::new(kind, verb).at(object.name.clone()).in_range(at, len).with_reasons(vec![reason]))
        };
        let main = &choice.main;
        if !self.reaches(main, place) {
            let error = Error::new(ErrorKind::ApiMisuse, verb).at(object.name.clone());
            return Err(error.detail("the route was planned for another kind of memory than it was given"));
        }
        let aligned = main.via == Via::Staged || congruent(place.raw(), at, main.granularity);
        if !aligned && choice.unaligned.is_none() {
            return fail(ErrorKind::PolicyUnmet, Reason::MemoryMisaligned);
        }
        if is_ragged(at, len, main.granularity) {
            if main.via == Via::Direct && !choice.ends_may_bounce {
                return fail(ErrorKind::PolicyUnmet, Reason::RaggedEnds);
            }
            if verb == Verb::Write && (choice.ends.is_none() || !choice.ends_may_bounce) {
                return fail(ErrorKind::Unsupported, Reason::RaggedWrite);
            }
        }
        Ok(())
    }

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
