//! Leases at the agent: what it may touch, until when.

use core::time::Duration;

use sw_engine::Time;

use super::operations::Deferred;
use super::{Agent, ConnectionId, Session};
use crate::id::{LeaseId, Position, SessionId};
use crate::mutant::Mutant;
use crate::wire::message::{Grant, RevokedFor};
use crate::wire::{Breach, Message};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) grant: Grant,
    until: Time,
    /// It is over; what runs under it is being stopped.
    over: Option<RevokedFor>,
}

impl Lease {
    pub(super) fn due(&self) -> Option<Time> {
        self.over.is_none().then_some(self.until)
    }

    /// Whether something new may be begun under it.
    pub(super) const fn is_held(&self) -> bool {
        self.over.is_none()
    }
}

impl Session {
    pub(super) fn lease(&self, lease: LeaseId) -> Option<&Lease> {
        self.leases.get(&lease.slot()).filter(|held| held.grant.lease == lease)
    }
}

impl Agent {
    pub(super) fn lease_grant(
        &mut self,
        now: Time,
        id: ConnectionId,
        name: SessionId,
        grant: Grant,
    ) -> Result<(), Breach> {
        let most = self.connections.get(&id).map_or(0, |connection| connection.common.leases_max);
        let Some(session) = self.sessions.get_mut(&name) else { return Ok(()) };
        if grant.lease.slot() >= most {
            return Err(Breach::of("more leases than were agreed on"));
        }
        if session.leases.contains_key(&grant.lease.slot()) {
            return Err(Breach::of("a lease in the place of one that is not over"));
        }
        let until = now.after(Duration::from_millis(u64::from(grant.lifetime_ms)));
        session.leases.insert(grant.lease.slot(), Lease { grant, until, over: None });
        self.send(now, id, Message::LeaseHeld { lease: grant.lease });
        Ok(())
    }

    pub(super) fn lease_renew(
        &mut self,
        now: Time,
        name: SessionId,
        lease: LeaseId,
        lifetime_ms: u32,
    ) -> Result<(), Breach> {
        let Some(session) = self.sessions.get_mut(&name) else { return Ok(()) };
        let connection = session.connection;
        let held = session.leases.get_mut(&lease.slot()).filter(|held| held.grant.lease == lease && held.is_held());
        // One that is over is told so; the two messages crossed.
        if let (Some(held), Some(id)) = (held, connection) {
            held.until = now.after(Duration::from_millis(u64::from(lifetime_ms)));
            self.send(now, id, Message::LeaseHeld { lease });
        }
        Ok(())
    }

    pub(super) fn lease_revoke(
        &mut self,
        now: Time,
        name: SessionId,
        lease: LeaseId,
        position: Position,
    ) -> Result<(), Breach> {
        // One that is unknown was over before: the host has been told.
        if self.sessions.get(&name).and_then(|session| session.lease(lease)).is_none() {
            return Ok(());
        }
        if self.is_deferred(name, position, Deferred::Revoke(lease))? {
            return Ok(());
        }
        self.lease_ends(now, name, lease, RevokedFor::Asked);
        Ok(())
    }

    /// Nothing new is begun under it, what runs is stopped, and when that has ended the host is told.
    pub(super) fn lease_ends(&mut self, now: Time, name: SessionId, lease: LeaseId, why: RevokedFor) {
        let Some(session) = self.sessions.get_mut(&name) else { return };
        let Some(held) = session.leases.get_mut(&lease.slot()).filter(|held| held.grant.lease == lease) else { return };
        held.over.get_or_insert(why);
        self.abort_under(name, lease);
        self.lease_over_if_unused(now, name, lease);
    }

    pub(super) fn lease_over_if_unused(&mut self, now: Time, name: SessionId, lease: LeaseId) {
        let Some(session) = self.sessions.get_mut(&name) else { return };
        let Some(reason) = session.lease(lease).and_then(|held| held.over) else { return };
        let epoch = session.epoch;
        let is_used = session.operations.iter().any(|((of, _), operation)| *of == epoch && operation.is_under(lease));
        if is_used && !self.mutation.has(Mutant::RevokedTooEarly) {
            return;
        }
        session.leases.remove(&lease.slot());
        if let Some(id) = session.connection {
            self.send(now, id, Message::LeaseRevoked { lease, reason });
        }
    }

    pub(super) fn leases_time(&mut self, now: Time) {
        let due = |(name, session): (&SessionId, &Session)| {
            let late = session.leases.values().filter(|lease| lease.due().is_some_and(|until| now >= until));
            late.map(|lease| (*name, lease.grant.lease)).collect::<Vec<_>>()
        };
        let due: Vec<_> = self.sessions.iter().flat_map(due).collect();
        for (name, lease) in due {
            self.lease_ends(now, name, lease, RevokedFor::Expired);
        }
    }
}
