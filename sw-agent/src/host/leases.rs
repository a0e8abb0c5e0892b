//! Leases of the host: memory that the agent may touch until it says that it does not, or cannot.

use core::time::Duration;

use sw_engine::{ErrorKind, Time};

use super::{Action, Host, Phase, Refusal};
use crate::id::LeaseId;
use crate::wire::message::{Access, Flag, Grant, RevokedFor, Way};
use crate::wire::{Breach, Message};

/// Memory that is to be leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Bytes.
    pub length: u64,
    /// What the agent may do.
    pub access: Access,
    /// How.
    pub way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// There is no session to lease it to.
    Idle,
    /// LEASE_GRANT was sent.
    Granting,
    /// The agent has it; it is renewed then.
    Held(Time),
    /// LEASE_REVOKE was sent.
    Revoking,
    /// The agent has let go of it; operations have not ended.
    Revoked(RevokedFor),
    /// The connection is lost and not quiet. Set: it comes back when it is.
    Doubt(Flag),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lease {
    window: Window,
    /// Its name on the wire, which each grant makes anew.
    wire: LeaseId,
    state: State,
}

/// A place for a lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    id: LeaseId,
    /// The last name on the wire.
    wire: LeaseId,
    lease: Option<Lease>,
}

impl Place {
    pub(super) const fn new(slot: u16) -> Self {
        Self { id: LeaseId::new(slot, u16::MAX), wire: LeaseId::new(slot, u16::MAX), lease: None }
    }

    pub(super) fn due(&self) -> Option<Time> {
        match self.lease.as_ref()?.state {
            State::Held(renewal) => Some(renewal),
            _ => None,
        }
    }
}

impl Host {
    /// Leases memory: to this session and, until it is revoked, to those that follow. [`Action::LeaseHeld`] says when the agent has it.
    ///
    /// # Errors
    /// `Busy` without a place, `Closed` while the host leaves, `OutOfRange` for no bytes or too many.
    pub fn grant(&mut self, now: Time, window: Window) -> Result<LeaseId, Refusal> {
        if self.draining.is_some() {
            return Err(Refusal::new(ErrorKind::Closed, "the session is being left"));
        }
        if !(1..=crate::limits::LEASE_BYTES_MAX).contains(&window.length) {
            return Err(Refusal::new(ErrorKind::OutOfRange, "a window of no bytes, or of more than a lease can have"));
        }
        let places = usize::from(self.common.leases_max);
        let free = self.leases.iter_mut().take(places).find(|place| place.lease.is_none());
        let place = free.ok_or(Refusal::new(ErrorKind::Busy, "all places for leases are taken"))?;
        place.id = place.id.next();
        place.lease = Some(Lease { window, wire: LeaseId::NONE, state: State::Idle });
        let id = place.id;
        self.grant_again(now);
        Ok(id)
    }

    /// Takes memory back. Operations in it are stopped; [`Action::LeaseBack`] says when nothing touches it any more.
    pub fn revoke(&mut self, now: Time, id: LeaseId) {
        self.fail_queued_of(id);
        let position = self.position;
        let Some(lease) = self.lease(id) else { return };
        match lease.state {
            State::Idle => {
                lease.state = State::Revoked(RevokedFor::Asked);
                self.lease_back_if_unused(id);
            }
            State::Granting | State::Held(_) => {
                lease.state = State::Revoking;
                let wire = lease.wire;
                self.send(now, Message::LeaseRevoke { lease: wire, position });
            }
            State::Doubt(_) => lease.state = State::Doubt(Flag::Set),
            State::Revoking | State::Revoked(_) => {}
        }
    }

    pub(super) fn revoke_all(&mut self, now: Time) {
        let ids: Vec<_> = self.leases.iter().filter(|place| place.lease.is_some()).map(|place| place.id).collect();
        ids.into_iter().for_each(|id| self.revoke(now, id));
    }

    pub(super) fn leases_open(&self) -> usize {
        self.leases.iter().filter(|place| place.lease.is_some()).count()
    }

    fn lease(&mut self, id: LeaseId) -> Option<&mut Lease> {
        let place = self.leases.get_mut(usize::from(id.slot()))?;
        if place.id == id { place.lease.as_mut() } else { None }
    }

    /// The lease that has a name on the wire.
    pub(super) fn lease_of_wire(&self, wire: LeaseId) -> Option<LeaseId> {
        let place = self.leases.get(usize::from(wire.slot()))?;
        place.lease.as_ref().filter(|lease| lease.wire == wire).map(|_| place.id)
    }

    /// Its name on the wire and its way, if the agent has it.
    pub(super) fn wire_lease(&mut self, id: LeaseId) -> Option<(LeaseId, Way)> {
        let lease = self.lease(id)?;
        matches!(lease.state, State::Held(_)).then_some((lease.wire, lease.window.way))
    }

    /// Whether a lease is not being taken back.
    pub(super) fn is_lease_lasting(&mut self, id: LeaseId) -> bool {
        let is_over =
            |lease: &Lease| matches!(lease.state, State::Revoking | State::Revoked(_) | State::Doubt(Flag::Set));
        self.lease(id).is_some_and(|lease| !is_over(lease))
    }

    /// Whether an operation may name a part of a lease.
    pub(super) fn check_window(&mut self, id: LeaseId, access: Access, offset: u64, len: u32) -> Result<(), Refusal> {
        let gone = Refusal::new(ErrorKind::NotRegistered, "no such lease, or it is being taken back");
        if !self.is_lease_lasting(id) {
            return Err(gone);
        }
        let lease = self.lease(id).ok_or(gone)?;
        if !lease.window.access.allows(access) {
            return Err(Refusal::new(ErrorKind::PermissionDenied, "the lease does not allow that"));
        }
        let end = offset.checked_add(u64::from(len));
        if end.is_none_or(|end| end > lease.window.length) {
            return Err(Refusal::new(ErrorKind::OutOfRange, "a range outside the window of the lease"));
        }
        Ok(())
    }

    /// Grants what has no session, if there is one.
    pub(super) fn grant_again(&mut self, now: Time) {
        if self.phase != Phase::Up || self.draining.is_some() {
            return;
        }
        let lifetime_ms = self.config.lifetime_ms;
        let mut grants = Vec::new();
        for place in &mut self.leases {
            let Some(lease) = place.lease.as_mut().filter(|lease| lease.state == State::Idle) else { continue };
            place.wire = place.wire.next();
            (lease.wire, lease.state) = (place.wire, State::Granting);
            let Window { length, access, way } = lease.window;
            grants.push(Grant { lease: lease.wire, access, way, length, lifetime_ms });
        }
        grants.into_iter().for_each(|grant| self.send(now, Message::LeaseGrant(grant)));
    }

    pub(super) fn lease_held(&mut self, now: Time, wire: LeaseId) -> Result<(), Breach> {
        let renewal = now.after(Duration::from_millis(u64::from(self.config.lifetime_ms / 2)));
        let known = self.lease_of_wire(wire);
        let Some(lease) = known.and_then(|id| self.lease(id)) else {
            return Err(Breach::of("a lease is held that was not granted"));
        };
        match lease.state {
            State::Granting => {
                lease.state = State::Held(renewal);
                self.actions.extend(known.map(Action::LeaseHeld));
                Ok(())
            }
            State::Held(_) | State::Revoking => Ok(()),
            _ => Err(Breach::of("a lease is held that is over")),
        }
    }

    pub(super) fn lease_revoked(&mut self, wire: LeaseId, reason: RevokedFor) -> Result<(), Breach> {
        let known = self.lease_of_wire(wire);
        let Some((id, lease)) = known.and_then(|id| Some((id, self.lease(id)?))) else {
            return Err(Breach::of("a lease is over that was not granted"));
        };
        if matches!(lease.state, State::Revoked(_)) {
            return Err(Breach::of("a lease is over twice"));
        }
        lease.state = State::Revoked(reason);
        self.fail_queued_of(id);
        self.lease_back_if_unused(id);
        Ok(())
    }

    /// A lease that is over comes back with the last operation in it.
    pub(super) fn lease_back_if_unused(&mut self, id: LeaseId) {
        let Some(State::Revoked(reason)) = self.lease(id).map(|lease| lease.state) else { return };
        if self.is_lease_used(id) {
            return;
        }
        if let Some(place) = self.leases.get_mut(usize::from(id.slot())) {
            place.lease = None;
        }
        self.act(Action::LeaseBack(id, reason));
    }

    pub(super) fn leases_time(&mut self, now: Time) {
        let lifetime_ms = self.config.lifetime_ms;
        let renewal = now.after(Duration::from_millis(u64::from(lifetime_ms / 2)));
        let mut due = Vec::new();
        for lease in self.leases.iter_mut().filter_map(|place| place.lease.as_mut()) {
            if let State::Held(at) = lease.state
                && now >= at
            {
                lease.state = State::Held(renewal);
                due.push(lease.wire);
            }
        }
        due.into_iter().for_each(|lease| self.send(now, Message::LeaseRenew { lease, lifetime_ms }));
    }

    pub(super) fn leases_lost(&mut self) {
        for lease in self.leases.iter_mut().filter_map(|place| place.lease.as_mut()) {
            lease.state = match lease.state {
                State::Idle | State::Revoked(_) => lease.state,
                State::Granting | State::Held(_) => State::Doubt(Flag::Clear),
                State::Revoking => State::Doubt(Flag::Set),
                State::Doubt(back) => State::Doubt(back),
            };
        }
    }

    pub(super) fn leases_quiet(&mut self) {
        let is_leaving = self.draining.is_some();
        let ids: Vec<_> = self.leases.iter().map(|place| place.id).collect();
        for id in ids {
            let Some(lease) = self.lease(id) else { continue };
            let State::Doubt(back) = lease.state else { continue };
            let is_over = back == Flag::Set || is_leaving;
            lease.state = if is_over { State::Revoked(RevokedFor::Asked) } else { State::Idle };
            self.lease_back_if_unused(id);
        }
    }
}
