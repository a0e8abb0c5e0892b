//! Operations of the host: waiting, sent, being stopped, in doubt. Each ends once.

use sw_engine::{ErrorKind, Time};

use super::{Action, Closing, End, Host, Phase, Refusal, Want, lost_failure};
use crate::failure::{Class, Failure, Origin, Outcome};
use crate::id::{Epoch, LeaseId, OperationId};
use crate::limits::DEADLINE_US_MAX;
use crate::mutant::Mutant;
use crate::wire::message::{Access, Flag, Way};
use crate::wire::{Breach, Completion, Descriptor, Message, Opcode, Path};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Waits for its lease, for credit, for a session.
    Queued,
    /// The agent has it, or will.
    Sent,
    /// The same, and it was asked to stop; it has until then.
    Stopping(Time),
    /// It was sent on a connection that is lost and not quiet.
    Doubt(Flag),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Operation {
    want: Want,
    state: State,
    /// Bytes that DATA frames brought.
    landed: u32,
    /// Its connection brings payload by DATA frames.
    is_framed: bool,
}

impl Operation {
    /// When something is to be done about it.
    pub(super) fn due(&self) -> Time {
        match self.state {
            State::Queued | State::Sent => self.want.deadline,
            State::Stopping(until) => until,
            State::Doubt(_) => Time::FOREVER,
        }
    }
}

/// A place for an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// The name of what is there, or was last.
    id: OperationId,
    pub(super) operation: Option<Operation>,
}

impl Place {
    pub(super) const fn new(slot: u16) -> Self {
        Self { id: OperationId::new(slot, u16::MAX), operation: None }
    }
}

impl Host {
    /// Takes an operation. It ends by [`Action::Done`].
    ///
    /// # Errors
    /// Before anything is done: `Busy` without a place, `Closed` while the host leaves, `NotRegistered` and `OutOfRange` for a lease that
    /// is not granted or too short, `TooLarge` for more bytes than an operation may have, `ApiMisuse` for what no descriptor can say.
    pub fn submit(&mut self, now: Time, want: Want) -> Result<OperationId, Refusal> {
        if self.draining.is_some() {
            return Err(Refusal::new(ErrorKind::Closed, "the session is being left"));
        }
        let payload_max = self.common.payload_bytes_max;
        let window = self.credit.totals().0.bytes.min(self.config.window.bytes);
        let is_known = self.phase == Phase::Up && u64::from(want.length) > window;
        if want.length > payload_max || is_known {
            return Err(Refusal::new(ErrorKind::TooLarge, "more bytes than the agent takes in one operation"));
        }
        if want.opcode.has_memory() {
            let needed = if want.opcode == Opcode::Read { Access::Write } else { Access::Read };
            self.check_window(want.lease, needed, want.region_offset, want.length)?;
        }
        if want.checksum_kind.bit() & !self.common.checksums != 0 {
            return Err(Refusal::new(ErrorKind::Unsupported, "a checksum that one of the ends does not compute"));
        }
        if !self.objects.contains_key(&want.object.0) {
            return Err(Refusal::new(ErrorKind::NotRegistered, "no such object is open"));
        }
        let slot = self.operations.iter().position(|place| place.operation.is_none());
        let slot = slot.ok_or(Refusal::new(ErrorKind::Busy, "all places for operations are taken"))?;
        let Some(place) = self.operations.get_mut(slot) else {
            return Err(Refusal::new(ErrorKind::Busy, "all places for operations are taken"));
        };
        let id = place.id.next();
        let trial = descriptor(&want, id, (crate::id::SessionId(1), Epoch(1)), want.lease, 1, Default::default());
        trial.check().map_err(|breach| Refusal::new(ErrorKind::ApiMisuse, breach.rule))?;
        place.id = id;
        place.operation = Some(Operation { want, state: State::Queued, landed: 0, is_framed: false });
        self.queue.push_back(id.slot());
        self.pump(now);
        Ok(id)
    }

    /// Stops an operation; its [`Action::Done`] comes when it has stopped. One that has ended already is left alone.
    pub fn cancel(&mut self, now: Time, id: OperationId) {
        match self.operation(id).map(|operation| operation.state) {
            Some(State::Queued) => self.end_unsent(id, ErrorKind::Cancelled),
            Some(State::Sent) => self.stop(now, id),
            Some(State::Doubt(_)) => {
                if let Some(operation) = self.operation(id) {
                    operation.state = State::Doubt(Flag::Set);
                }
            }
            Some(State::Stopping(_)) | None => {}
        }
    }

    fn stop(&mut self, now: Time, id: OperationId) {
        let until = now.after(self.config.grace);
        let position = self.position;
        if let Some(operation) = self.operation(id) {
            operation.state = State::Stopping(until);
            self.send(now, Message::Cancel { operation: id, position });
        }
    }

    fn operation(&mut self, id: OperationId) -> Option<&mut Operation> {
        let place = self.operations.get_mut(usize::from(id.slot()))?;
        if place.id == id { place.operation.as_mut() } else { None }
    }

    pub(super) fn is_lease_used(&self, lease: LeaseId) -> bool {
        let uses = |place: &Place| {
            place.operation.as_ref().is_some_and(|o| o.want.lease == lease && o.want.opcode.has_memory())
        };
        self.operations.iter().any(uses)
    }

    pub(super) fn is_object_used(&self, object: crate::id::ObjectId) -> bool {
        self.operations.iter().any(|place| place.operation.as_ref().is_some_and(|o| o.want.object == object))
    }

    fn end(&mut self, id: OperationId, end: End) {
        let Some(place) = self.operations.get_mut(usize::from(id.slot())).filter(|place| place.id == id) else {
            return;
        };
        let Some(operation) = place.operation.take() else { return };
        self.queue.retain(|slot| *slot != id.slot());
        self.act(Action::Done(id, end));
        self.lease_back_if_unused(operation.want.lease);
    }

    /// It never was sent in this epoch, and what was sent before, reads only, changed nothing.
    fn end_unsent(&mut self, id: OperationId, kind: ErrorKind) {
        let Some(operation) = self.operation(id) else { return };
        let outcome = if operation.want.opcode.changes() { Outcome::NotApplied } else { Outcome::Nothing };
        let class = match kind {
            ErrorKind::Closed => Class::RetryNow,
            _ => Class::Caller,
        };
        self.end(id, failed(Failure::new(class, Origin::Host, kind), outcome));
    }

    /// All that wait will not be sent.
    pub(super) fn fail_queued(&mut self, kind: ErrorKind) {
        for id in self.queued() {
            self.end_unsent(id, kind);
        }
    }

    /// Those that wait for a lease will not get it.
    pub(super) fn fail_queued_of(&mut self, lease: LeaseId) {
        for id in self.queued() {
            if self.operation(id).is_some_and(|operation| operation.want.lease == lease) {
                self.end_unsent(id, ErrorKind::Cancelled);
            }
        }
    }

    fn queued(&self) -> Vec<OperationId> {
        self.queue.iter().filter_map(|slot| Some(self.operations.get(usize::from(*slot))?.id)).collect()
    }

    /// Sends what can be sent, in the order of submission: what waits for its lease is passed by, what waits for credit is not.
    pub(super) fn pump(&mut self, now: Time) {
        if self.phase != Phase::Up || self.draining.is_some() {
            return;
        }
        for id in self.queued() {
            let want = self.operation(id).map(|operation| operation.want);
            let Some(want) = want.filter(|want| now < want.deadline) else { continue };
            let (lease, way) = match want.opcode.has_memory() {
                true => match self.wire_lease(want.lease) {
                    Some(held) => held,
                    None => continue,
                },
                false => (LeaseId::NONE, Way::Frames),
            };
            if !self.credit.has(want.length) && !self.mutation.has(Mutant::CreditOverdrawn) {
                break;
            }
            let left_us = want.deadline.since(now).as_micros().clamp(1, u128::from(DEADLINE_US_MAX));
            let left_us = u32::try_from(left_us).unwrap_or(DEADLINE_US_MAX);
            let whose = (self.session, self.epoch);
            let descriptor = descriptor(&want, id, whose, lease, left_us, self.position);
            self.credit.spend(want.length);
            self.position = self.position.next();
            self.spoke = now;
            self.queue.retain(|slot| *slot != id.slot());
            if let Some(operation) = self.operation(id) {
                (operation.state, operation.landed) = (State::Sent, 0);
                operation.is_framed = way == Way::Frames;
            }
            self.act(Action::Submit(descriptor));
        }
    }

    pub(super) fn operations_time(&mut self, now: Time) {
        let due: Vec<_> = self
            .operations
            .iter()
            .filter(|place| place.operation.is_some_and(|o| o.due() <= now))
            .map(|place| place.id)
            .collect();
        for id in due {
            match self.operation(id).map(|operation| operation.state) {
                Some(State::Queued) => self.end_unsent(id, ErrorKind::DeadlineExceeded),
                Some(State::Sent) => self.stop(now, id),
                Some(State::Stopping(_)) => self.close(Closing::Stuck(id)),
                Some(State::Doubt(_)) | None => {}
            }
        }
    }

    pub(super) fn operations_lost(&mut self) {
        for operation in self.operations.iter_mut().filter_map(|place| place.operation.as_mut()) {
            match operation.state {
                State::Sent => operation.state = State::Doubt(Flag::Clear),
                State::Stopping(_) => operation.state = State::Doubt(Flag::Set),
                State::Queued | State::Doubt(_) => {}
            }
        }
    }

    /// What was in doubt ends, or is sent again where that cannot do harm: a read.
    pub(super) fn operations_quiet(&mut self) {
        let ids: Vec<_> = self.operations.iter().map(|place| place.id).collect();
        let mut again = Vec::new();
        for id in ids {
            let Some(operation) = self.operation(id).copied() else { continue };
            let State::Doubt(stop) = operation.state else { continue };
            let changes = operation.want.opcode.changes();
            if stop == Flag::Set {
                let outcome = if changes { Outcome::Unknown } else { Outcome::Nothing };
                let class = if changes { Class::RetryAfterFence } else { Class::Caller };
                self.end(id, failed(Failure::new(class, Origin::Host, ErrorKind::Cancelled), outcome));
            } else if changes && !self.mutation.has(Mutant::WriteSentAgain) {
                self.end(id, failed(lost_failure(Class::RetryAfterFence), Outcome::Unknown));
            } else if self.draining.is_some() {
                self.end(id, failed(lost_failure(Class::RetryNow), Outcome::Nothing));
            } else if operation.want.opcode.has_memory() && !self.is_lease_lasting(operation.want.lease) {
                self.end(id, failed(Failure::new(Class::Caller, Origin::Host, ErrorKind::Cancelled), Outcome::Nothing));
            } else if let Some(operation) = self.operation(id) {
                operation.state = State::Queued;
                again.push(id.slot());
            }
        }
        again.iter().rev().for_each(|slot| self.queue.push_front(*slot));
    }

    pub(super) fn completion(&mut self, now: Time, completion: &Completion) -> Result<(), Breach> {
        let is_old = self.phase != Phase::Up || completion.epoch != self.epoch;
        if is_old && !self.mutation.has(Mutant::OldCompletionTaken) {
            if self.phase == Phase::Up && completion.epoch > self.epoch {
                return Err(Breach::of("a completion of an epoch that is not yet"));
            }
            self.counters.stale = self.counters.stale.saturating_add(1);
            return Ok(());
        }
        self.heard = now;
        completion.check()?;
        let Some(operation) = self.operation(completion.operation).copied() else {
            return Err(Breach::of("a completion of no operation that is under way"));
        };
        if !matches!(operation.state, State::Sent | State::Stopping(_)) {
            return Err(Breach::of("a completion of an operation that was not sent"));
        }
        let want = operation.want;
        let outcome_fits = match (want.opcode.changes(), completion.status) {
            (false, _) => completion.outcome == Outcome::Nothing,
            (true, Ok(())) => completion.outcome == Outcome::Applied,
            (true, Err(failure)) => {
                completion.outcome != Outcome::Nothing
                    && !(failure.class == Class::RetryNow && completion.outcome != Outcome::NotApplied)
            }
        };
        if !outcome_fits {
            return Err(Breach::of("an outcome that the operation cannot have"));
        }
        let is_short = completion.bytes != want.length && want.opcode.has_memory();
        if completion.bytes > want.length || (completion.status.is_ok() && is_short) {
            return Err(Breach::of("a success of other bytes than were asked for"));
        }
        let is_read = want.opcode == Opcode::Read;
        if operation.is_framed && is_read && completion.status.is_ok() && operation.landed != want.length {
            return Err(Breach::of("a success of bytes that did not come"));
        }
        let Completion { status, outcome, bytes, checksum, path, .. } = *completion;
        let expects = want.flags & crate::wire::descriptor::flags::EXPECT != 0;
        let status = match status {
            Ok(()) if expects && checksum != want.checksum => {
                Err(Failure::new(Class::Integrity, Origin::Agent, ErrorKind::ChecksumMismatch))
            }
            status => status,
        };
        self.end(completion.operation, End { status, outcome, bytes, checksum, path });
        Ok(())
    }

    pub(super) fn data(
        &mut self,
        now: Time,
        whose: (OperationId, Epoch, LeaseId),
        offset: u64,
        len: u32,
    ) -> Result<(), Breach> {
        let (id, epoch, wire) = whose;
        if (self.phase != Phase::Up || epoch != self.epoch) && !self.mutation.has(Mutant::StrayDataLands) {
            if self.phase == Phase::Up && epoch > self.epoch {
                return Err(Breach::of("data of an epoch that is not yet"));
            }
            self.counters.stale = self.counters.stale.saturating_add(1);
            return Ok(());
        }
        if self.mutation.has(Mutant::StrayDataLands)
            && let Some(lease) = self.lease_of_wire(wire)
        {
            self.act(Action::Land { lease, offset, len });
        }
        self.heard = now;
        let Some(operation) = self.operation(id).copied() else {
            return Err(Breach::of("data of no operation that is under way"));
        };
        let want = operation.want;
        let is_under_way = matches!(operation.state, State::Sent | State::Stopping(_)) && operation.is_framed;
        if !is_under_way || want.opcode != Opcode::Read || self.lease_of_wire(wire) != Some(want.lease) {
            return Err(Breach::of("data that was not asked for"));
        }
        let expected = want.region_offset + u64::from(operation.landed);
        if len == 0 || offset != expected || len > want.length - operation.landed {
            return Err(Breach::of("data outside its operation, or not in its order"));
        }
        if let Some(operation) = self.operation(id) {
            operation.landed += len;
        }
        self.act(Action::Land { lease: want.lease, offset, len });
        Ok(())
    }
}

fn failed(failure: Failure, outcome: Outcome) -> End {
    End { status: Err(failure), outcome, bytes: 0, checksum: 0, path: Path::default() }
}

fn descriptor(
    want: &Want,
    operation: OperationId,
    (session, epoch): (crate::id::SessionId, Epoch),
    lease: LeaseId,
    deadline_us: u32,
    position: crate::id::Position,
) -> Descriptor {
    let Want { opcode, flags, checksum_kind, checksum, region_offset, object, object_offset, length, .. } = *want;
    Descriptor {
        opcode,
        flags,
        checksum_kind,
        session,
        epoch,
        operation,
        lease,
        object,
        region_offset,
        object_offset,
        length,
        deadline_us,
        checksum,
        position,
    }
}
