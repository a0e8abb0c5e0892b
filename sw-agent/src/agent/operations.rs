//! Operations at the agent: each is started once, may touch memory until it is stopped, and ends once.

use core::time::Duration;

use sw_engine::{ErrorKind, Time};

use super::{Action, Agent, ConnectionId, Ending, Key, Session, Touch};
use crate::failure::{Class, Failure, Origin, Outcome};
use crate::id::{Epoch, LeaseId, ObjectId, OperationId, Position, SessionId};
use crate::limits::DATA_BYTES_MAX;
use crate::mutant::Mutant;
use crate::wire::message::{Access, Way};
use crate::wire::{Breach, Completion, Descriptor, Opcode, Path};

/// Why an operation is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stop {
    Cancelled,
    Late,
    /// Nobody is there to be told.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Operation {
    descriptor: Descriptor,
    way: Option<Way>,
    until: Time,
    stop: Option<Stop>,
    /// Bytes of memory that may have been touched, or that came for it.
    moved: u64,
    /// An access was refused: it cannot have succeeded.
    is_cut: bool,
}

impl Operation {
    pub(super) fn due(&self) -> Option<Time> {
        self.stop.is_none().then_some(self.until)
    }

    pub(super) const fn object(&self) -> ObjectId {
        self.descriptor.object
    }

    pub(super) fn is_under(&self, lease: LeaseId) -> bool {
        self.descriptor.lease == lease
    }
}

/// What came on the control stream ahead of descriptors that were sent before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Deferred {
    Cancel(OperationId),
    Revoke(LeaseId),
}

impl Agent {
    /// Whether memory of an operation may be touched now, and where: a read's is written, a write's is read. `at` and `len` in bytes, within
    /// the operation. `None`: it is being stopped, or over; nothing may be touched. By [`Way::Frames`] a read's bytes go in their order, at
    /// most [`DATA_BYTES_MAX`] in a frame, and a write's came by [`Action::Feed`].
    pub fn touch(&mut self, key: Key, at: u32, len: u32) -> Option<Touch> {
        let can_touch_late = self.mutation.has(Mutant::CancelledTooEarly) || self.mutation.has(Mutant::RevokedTooEarly);
        let operation = self.sessions.get_mut(&key.session)?.operations.get_mut(&(key.epoch, key.operation))?;
        if operation.stop.is_some() && !can_touch_late {
            operation.is_cut = true;
            self.counters.refused_touches = self.counters.refused_touches.saturating_add(1);
            return None;
        }
        let descriptor = operation.descriptor;
        let way = operation.way?;
        let end = u64::from(at) + u64::from(len);
        let is_inside = len > 0 && end <= u64::from(descriptor.length);
        let is_framed = way == Way::Frames;
        let is_next = descriptor.opcode == Opcode::Read && u64::from(at) == operation.moved && len <= DATA_BYTES_MAX;
        if !is_inside || (is_framed && !is_next) {
            operation.is_cut = true;
            return None;
        }
        operation.moved += u64::from(len);
        let offset = descriptor.region_offset + u64::from(at);
        Some(Touch { lease: descriptor.lease, way, offset })
    }

    /// An operation has ended: whoever carried it out touches none of its memory any more. To be called once for each [`Action::Start`].
    pub fn ended(&mut self, now: Time, key: Key, ending: Ending) {
        let Some(session) = self.sessions.get_mut(&key.session) else { return };
        let Some(operation) = session.operations.remove(&(key.epoch, key.operation)) else { return };
        let descriptor = operation.descriptor;
        let ending = told(&operation, ending);
        if ending.outcome == Outcome::Unknown && descriptor.opcode.changes() {
            session.is_unsettled = true;
        }
        let is_current = key.epoch == session.epoch && session.connection.is_some();
        if is_current {
            let is_lost = operation.stop.is_some() && self.mutation.has(Mutant::CreditLost);
            if !is_lost {
                session.credit.end(descriptor.length);
            }
            self.complete(now, key, ending);
            self.lease_over_if_unused(now, key.session, descriptor.lease);
        }
        self.attach_if_settled(now, key.session);
        self.sessions_time(now);
    }

    fn complete(&mut self, now: Time, key: Key, ending: Ending) {
        let Some(session) = self.sessions.get_mut(&key.session) else { return };
        let Some(id) = session.connection else { return };
        let due = session.credit.due();
        let Ending { status, outcome, bytes, checksum, path } = ending;
        let Key { operation, epoch, .. } = key;
        self.act(Action::Complete(id, Completion { operation, epoch, status, outcome, path, bytes, checksum }));
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.spoke = now;
        }
        if let Some(credit) = due {
            self.send(now, id, crate::wire::Message::Credits(credit));
        }
    }

    pub(super) fn descriptor(&mut self, now: Time, id: ConnectionId, descriptor: &Descriptor) -> Result<(), Breach> {
        let name = self.attached(id)?;
        let payload_max = self.connections.get(&id).map_or(0, |connection| connection.common.payload_bytes_max);
        let checksums = self.connections.get(&id).map_or(0, |connection| connection.common.checksums);
        let places = self.connections.get(&id).map_or(0, |connection| connection.common.operations_max);
        let Some(session) = self.sessions.get_mut(&name) else { return Ok(()) };
        if descriptor.session == name && descriptor.epoch < session.epoch {
            self.counters.stale = self.counters.stale.saturating_add(1);
            return Ok(());
        }
        descriptor.check()?;
        if descriptor.session != name || descriptor.epoch != session.epoch {
            return Err(Breach::of("a descriptor of another session, or of an epoch that is not yet"));
        }
        if descriptor.position != session.position {
            return Err(Breach::of("a descriptor out of its position: one is lost, or came twice"));
        }
        let place = (session.epoch, descriptor.operation);
        let is_taken = |(epoch, operation): &(Epoch, OperationId)| {
            *epoch == place.0 && operation.slot() == descriptor.operation.slot()
        };
        if descriptor.operation.slot() >= places || session.operations.keys().any(is_taken) {
            return Err(Breach::of("an operation in a place that is taken, or that there is not"));
        }
        if !session.credit.spend(descriptor.length) {
            return Err(Breach::of("a descriptor without credit"));
        }
        session.position = session.position.next();
        let key = Key { session: name, epoch: session.epoch, operation: descriptor.operation };
        let is_unfit = descriptor.length > payload_max || descriptor.checksum_kind.bit() & !checksums != 0;
        let allowed =
            if is_unfit { Err(Failure::caller(ErrorKind::TooLarge)) } else { admissible(session, descriptor) };
        match allowed {
            Ok(way) => {
                let until = now.after(Duration::from_micros(u64::from(descriptor.deadline_us)));
                let operation = Operation { descriptor: *descriptor, way, until, stop: None, moved: 0, is_cut: false };
                session.operations.insert(place, operation);
                self.act(Action::Start(key, *descriptor));
            }
            Err(failure) => {
                session.credit.end(descriptor.length);
                let outcome = if descriptor.opcode.changes() { Outcome::NotApplied } else { Outcome::Nothing };
                let status = Err(failure);
                self.complete(now, key, Ending { status, outcome, bytes: 0, checksum: 0, path: Path::default() });
            }
        }
        self.catch_up(now, name);
        Ok(())
    }

    /// Carries out what came ahead of the descriptors that are here now.
    fn catch_up(&mut self, now: Time, name: SessionId) {
        let Some(session) = self.sessions.get_mut(&name) else { return };
        let position = session.position;
        let (due, later): (Vec<_>, Vec<_>) =
            core::mem::take(&mut session.deferred).into_iter().partition(|(at, _)| position.ahead_of(*at).is_some());
        session.deferred = later;
        for (_, deferred) in due {
            match deferred {
                Deferred::Cancel(operation) => self.stop(name, operation, Stop::Cancelled),
                Deferred::Revoke(lease) => {
                    self.lease_ends(now, name, lease, crate::wire::message::RevokedFor::Asked);
                }
            }
        }
    }

    /// Whether descriptors are missing that were sent before; if so it is kept for when they are here.
    pub(super) fn is_deferred(&mut self, name: SessionId, at: Position, deferred: Deferred) -> Result<bool, Breach> {
        let Some(session) = self.sessions.get_mut(&name) else { return Ok(false) };
        let Some(ahead) = at.ahead_of(session.position).filter(|ahead| *ahead > 0) else { return Ok(false) };
        let (told, used, _) = session.credit.totals();
        if u64::from(ahead) > told.operations - used.operations {
            return Err(Breach::of("a position ahead of all credit"));
        }
        if session.deferred.iter().any(|(_, other)| *other == deferred) {
            return Err(Breach::of("the same is asked for twice"));
        }
        let (places, leases) = (self.config.hello.operations_max, session.leases.len());
        let is_cancel = |other: &Deferred| matches!(other, Deferred::Cancel(_));
        let most = if is_cancel(&deferred) { usize::from(places) } else { leases };
        let same = session.deferred.iter().filter(|(_, other)| is_cancel(other) == is_cancel(&deferred)).count();
        if same >= most {
            return Err(Breach::of("more is asked for than there can be"));
        }
        session.deferred.push((at, deferred));
        Ok(true)
    }

    pub(super) fn cancel(
        &mut self,
        _now: Time,
        name: SessionId,
        operation: OperationId,
        at: Position,
    ) -> Result<(), Breach> {
        // One that runs needs no waiting; one that does not is over, or still to come.
        let Some(session) = self.sessions.get(&name) else { return Ok(()) };
        let runs =
            session.operations.contains_key(&(session.epoch, operation)) || self.mutation.has(Mutant::CancelForgotten);
        if !runs && self.is_deferred(name, at, Deferred::Cancel(operation))? {
            return Ok(());
        }
        self.stop(name, operation, Stop::Cancelled);
        Ok(())
    }

    /// One that has ended is left alone: its completion is on its way.
    fn stop(&mut self, name: SessionId, operation: OperationId, why: Stop) {
        let Some(session) = self.sessions.get_mut(&name) else { return };
        let epoch = session.epoch;
        let key = Key { session: name, epoch, operation };
        let is_early = self.mutation.has(Mutant::CancelledTooEarly) && why == Stop::Cancelled;
        let Some(running) = session.operations.get_mut(&(epoch, operation)) else { return };
        if running.stop.is_none() {
            running.stop = Some(why);
            let descriptor = running.descriptor;
            self.actions.push_back(Action::Abort(key));
            if is_early {
                self.cancelled_too_early(key, &descriptor);
            }
        }
    }

    fn cancelled_too_early(&mut self, key: Key, descriptor: &Descriptor) {
        let Some(id) = self.sessions.get(&key.session).and_then(|session| session.connection) else { return };
        let outcome = if descriptor.opcode.changes() { Outcome::Unknown } else { Outcome::Nothing };
        let class = if descriptor.opcode.changes() { Class::RetryAfterFence } else { Class::Caller };
        let status = Err(Failure::new(class, Origin::Agent, ErrorKind::Cancelled));
        let Key { operation, epoch, .. } = key;
        let path = Path::default();
        self.act(Action::Complete(id, Completion { operation, epoch, status, outcome, path, bytes: 0, checksum: 0 }));
    }

    /// Stops what runs under a lease that is over.
    pub(super) fn abort_under(&mut self, name: SessionId, lease: LeaseId) {
        let Some(session) = self.sessions.get(&name) else { return };
        let epoch = session.epoch;
        let under = |((of, id), operation): (&(Epoch, OperationId), &Operation)| {
            (*of == epoch && operation.is_under(lease)).then_some(*id)
        };
        let under: Vec<_> = session.operations.iter().filter_map(under).collect();
        under.into_iter().for_each(|operation| self.stop(name, operation, Stop::Cancelled));
    }

    /// The connection is lost.
    pub(super) fn abort_all(&mut self, name: SessionId) {
        let Some(session) = self.sessions.get_mut(&name) else { return };
        let mut aborts = Vec::new();
        for ((epoch, operation), running) in &mut session.operations {
            if running.stop.is_none() {
                aborts.push(Action::Abort(Key { session: name, epoch: *epoch, operation: *operation }));
            }
            running.stop = Some(Stop::Lost);
        }
        self.actions.extend(aborts);
    }

    pub(super) fn operations_time(&mut self, now: Time) {
        let late = |(name, session): (&SessionId, &Session)| {
            let late = session.operations.iter().filter(|(_, operation)| operation.due().is_some_and(|due| now >= due));
            late.map(|((_, operation), _)| (*name, *operation)).collect::<Vec<_>>()
        };
        let late: Vec<_> = self.sessions.iter().flat_map(late).collect();
        late.into_iter().for_each(|(name, operation)| self.stop(name, operation, Stop::Late));
    }

    pub(super) fn data(
        &mut self,
        id: ConnectionId,
        whose: (OperationId, Epoch, LeaseId),
        offset: u64,
        len: u32,
    ) -> Result<(), Breach> {
        let name = self.attached(id)?;
        let (operation, epoch, lease) = whose;
        let Some(session) = self.sessions.get_mut(&name) else { return Ok(()) };
        if epoch > session.epoch {
            return Err(Breach::of("data of an epoch that is not yet"));
        }
        // What is not there has ended: refused, or stopped, while its payload was on the way.
        let Some(running) = session.operations.get_mut(&(epoch, operation)).filter(|running| running.stop.is_none())
        else {
            self.counters.stale = self.counters.stale.saturating_add(1);
            return Ok(());
        };
        let descriptor = running.descriptor;
        if descriptor.opcode != Opcode::Write || running.way != Some(Way::Frames) || descriptor.lease != lease {
            return Err(Breach::of("data that was not asked for"));
        }
        let left = u64::from(descriptor.length) - running.moved;
        if len == 0 || offset != descriptor.region_offset + running.moved || u64::from(len) > left {
            return Err(Breach::of("data outside its operation, or not in its order"));
        }
        let at = u32::try_from(running.moved).unwrap_or(u32::MAX);
        running.moved += u64::from(len);
        self.act(Action::Feed(Key { session: name, epoch, operation }, at, len));
        Ok(())
    }
}

/// Whether a descriptor may be carried out: what it names is there and allows it.
fn admissible(session: &Session, descriptor: &Descriptor) -> Result<Option<Way>, Failure> {
    let object: ObjectId = descriptor.object;
    let known = session.objects.get(&object.slot()).filter(|(id, _)| *id == object);
    let (_, access) = known.ok_or(Failure::caller(ErrorKind::NotRegistered))?;
    let of_object = if descriptor.opcode.changes() { Access::Write } else { Access::Read };
    if !access.allows(of_object) {
        return Err(Failure::caller(ErrorKind::PermissionDenied));
    }
    if !descriptor.opcode.has_memory() {
        return Ok(None);
    }
    let lease = session.lease(descriptor.lease).filter(|lease| lease.is_held());
    let lease = lease.ok_or(Failure::caller(ErrorKind::NotRegistered))?;
    let of_memory = if descriptor.opcode == Opcode::Read { Access::Write } else { Access::Read };
    if !lease.grant.access.allows(of_memory) {
        return Err(Failure::caller(ErrorKind::PermissionDenied));
    }
    if descriptor.region_offset + u64::from(descriptor.length) > lease.grant.length {
        return Err(Failure::caller(ErrorKind::OutOfRange));
    }
    Ok(Some(lease.grant.way))
}

/// What the host is told of an ending: one that was stopped, or lacks bytes, is no success.
fn told(operation: &Operation, ending: Ending) -> Ending {
    let descriptor = &operation.descriptor;
    let changes = descriptor.opcode.changes();
    let is_short = descriptor.opcode.has_memory() && ending.bytes != descriptor.length
        || descriptor.opcode == Opcode::Read && operation.moved < u64::from(descriptor.length);
    let mut ending = ending;
    if !changes {
        ending.outcome = Outcome::Nothing;
    }
    if ending.status.is_ok() && (operation.is_cut || is_short) {
        let kind = if operation.stop.is_some() { ErrorKind::Cancelled } else { ErrorKind::ShortData };
        let class = match (changes, operation.stop) {
            (true, _) => Class::RetryAfterFence,
            (false, Some(_)) => Class::Caller,
            (false, None) => Class::Integrity,
        };
        ending.status = Err(Failure::new(class, Origin::Agent, kind));
    } else if let (Err(failure), Some(stop)) = (&mut ending.status, operation.stop)
        && failure.class != Class::Integrity
    {
        let kind = if stop == Stop::Late { ErrorKind::DeadlineExceeded } else { ErrorKind::Cancelled };
        let class = if changes && ending.outcome == Outcome::Unknown { Class::RetryAfterFence } else { Class::Caller };
        *failure = Failure::new(class, Origin::Agent, kind);
    }
    match (ending.status, ending.outcome) {
        (Ok(()), _) if changes => ending.outcome = Outcome::Applied,
        (Err(_), Outcome::Nothing | Outcome::Applied) if changes => ending.outcome = Outcome::Unknown,
        (Err(failure), Outcome::Unknown) if failure.class == Class::RetryNow => {
            ending.status = Err(Failure { class: Class::RetryAfterFence, ..failure });
        }
        _ => {}
    }
    ending.bytes = ending.bytes.min(descriptor.length);
    ending
}
