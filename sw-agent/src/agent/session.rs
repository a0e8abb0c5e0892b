//! From a connection to a session; sessions that outlive their connections.

use sw_engine::{ErrorKind, Time};

use super::{Action, Agent, Closing, Connection, ConnectionId, Phase, Quota, Session};
use crate::credits::{Credit, Granter};
use crate::failure::{Class, Failure, Origin};
use crate::id::{Epoch, Position, SessionId};
use crate::limits::AUTH_STEPS_MAX;
use crate::mutant::Mutant;
use crate::wire::message::{Flag, Hello};
use crate::wire::{Breach, Message, VERSION, VERSION_MIN};

impl Agent {
    /// The host of a connection is of that tenant, which may have so much. `key`: 16 random bytes, for a session that it may open.
    pub fn admit(&mut self, now: Time, id: ConnectionId, tenant: &str, quota: Quota, key: [u8; 16]) {
        let until = now.after(self.config.patience);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !matches!(connection.phase, Phase::Auth(..)) {
            return;
        }
        connection.phase = Phase::Opening(until);
        (connection.tenant, connection.quota, connection.key) = (tenant.into(), quota, key);
        self.send(now, id, Message::Admitted { tenant: tenant.into() });
    }

    /// More is wanted of the host.
    pub fn challenge(&mut self, now: Time, id: ConnectionId, kind: u16, evidence: &[u8]) {
        let Some(connection) = self.connections.get(&id) else { return };
        let Phase::Auth(_, step) = connection.phase else { return };
        // `step` counts what the host has said; the challenge answers the last of that.
        self.send(now, id, Message::Auth { kind, step: step.saturating_sub(1), evidence: evidence.into() });
    }

    /// The host is not let in.
    pub fn refuse(&mut self, now: Time, id: ConnectionId, failure: Failure, text: &str) {
        self.send(now, id, Message::Refused { request: 0, failure, text: text.into() });
        self.close(now, id, Closing::Refused(failure));
    }

    pub(super) fn connected(&mut self, now: Time, id: ConnectionId) {
        if self.connections.contains_key(&id) {
            return;
        }
        let hello = self.config.hello.clone();
        let connection = Connection {
            phase: Phase::Hello(now.after(self.config.patience)),
            heard: now,
            spoke: now,
            silence: core::time::Duration::from_millis(u64::from(hello.silence_ms)),
            beats: 0,
            common: hello,
            tenant: Box::default(),
            quota: Quota { sessions: 0, window: Credit::default() },
            key: [0; 16],
            epoch: Epoch::default(),
        };
        let is_full = self.connections.len() >= usize::try_from(self.config.connections_max).unwrap_or(usize::MAX);
        self.connections.insert(id, connection);
        if is_full || self.draining.is_some() {
            let kind = if is_full { ErrorKind::ResourceLimit } else { ErrorKind::Closed };
            self.refuse(now, id, Failure::new(Class::RetryNow, Origin::Agent, kind), "no more hosts are taken");
        }
    }

    pub(super) fn message(&mut self, now: Time, id: ConnectionId, message: Message) -> Result<(), Breach> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        match (&connection.phase, message) {
            (Phase::Up(session), message) => {
                let session = *session;
                self.message_up(now, id, session, message)
            }
            (Phase::Hello(_), Message::Hello(hello)) => self.hello(now, id, &hello),
            (Phase::Auth(until, step), Message::Auth { kind, step: theirs, evidence }) if *step == theirs => {
                if step + 1 >= AUTH_STEPS_MAX {
                    return Err(Breach::of("more steps than there may be"));
                }
                connection.phase = Phase::Auth(*until, step + 1);
                self.act(Action::Authenticate(id, kind, evidence));
                Ok(())
            }
            (Phase::Opening(_), Message::SessionOpen { session, epoch, key, credit, .. }) => {
                connection.epoch = epoch;
                self.session_open(now, id, (session, key), credit);
                Ok(())
            }
            _ => Err(Breach::of("a message that may not come now")),
        }
    }

    fn hello(&mut self, now: Time, id: ConnectionId, hello: &Hello) -> Result<(), Breach> {
        let ours = self.config.hello.clone();
        let version = hello.version_max.min(VERSION);
        let has = ours.features_critical | ours.features_optional;
        let offered = hello.features_critical | hello.features_optional;
        let lacks = hello.features_critical & !has != 0 || ours.features_critical & !offered != 0;
        if version < hello.version_min.max(VERSION_MIN) || lacks {
            let text = format!(
                "versions {VERSION_MIN} to {VERSION} and features {has:#x} are here, {} to {} and {:#x} are wanted",
                hello.version_min, hello.version_max, hello.features_critical
            );
            let failure = Failure::new(Class::Caller, Origin::Agent, ErrorKind::Unsupported);
            self.refuse(now, id, failure, &text);
            return Ok(());
        }
        let in_force = has & offered;
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        let common = Hello {
            operations_max: ours.operations_max.min(hello.operations_max),
            leases_max: ours.leases_max.min(hello.leases_max),
            objects_max: ours.objects_max.min(hello.objects_max),
            payload_bytes_max: ours.payload_bytes_max.min(hello.payload_bytes_max),
            silence_ms: ours.silence_ms.min(hello.silence_ms),
            checksums: ours.checksums & hello.checksums,
            ..hello.clone()
        };
        connection.silence = core::time::Duration::from_millis(u64::from(common.silence_ms));
        connection.phase = Phase::Auth(now.after(self.config.patience), 0);
        connection.common = common;
        let welcome = Hello {
            version_min: version,
            version_max: version,
            features_critical: in_force,
            features_optional: has & !in_force,
            ..ours
        };
        self.send(now, id, Message::Welcome(welcome));
        Ok(())
    }

    fn session_open(&mut self, now: Time, id: ConnectionId, (session, key): (SessionId, [u8; 16]), asked: Credit) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (tenant, quota, new_key) = (connection.tenant.clone(), connection.quota, connection.key);
        if self.draining.is_some() {
            let failure = Failure::new(Class::RetryNow, Origin::Agent, ErrorKind::Closed);
            return self.refuse(now, id, failure, "the agent goes");
        }
        let is_theirs = |old: &Session| old.tenant == tenant && old.key == key;
        if self.sessions.get(&session).is_some_and(is_theirs) {
            return self.session_attach(now, id, session, asked);
        }
        // One that is unknown, or another one's, which is not told apart: a new one.
        let theirs = self.sessions.values().filter(|other| other.tenant == tenant).count();
        let most = usize::try_from(quota.sessions.min(self.config.sessions_max)).unwrap_or(usize::MAX);
        let all = usize::try_from(self.config.sessions_max).unwrap_or(usize::MAX);
        let window = self.window(&tenant, quota, asked, None);
        if theirs >= most || self.sessions.len() >= all || window.operations == 0 || window.bytes == 0 {
            let failure = Failure::new(Class::RetryNow, Origin::Agent, ErrorKind::ResourceLimit);
            return self.refuse(now, id, failure, "the tenant's quota, or the agent's limit, is used up");
        }
        self.session_last = self.session_last.checked_add(1).unwrap_or(1);
        while self.sessions.contains_key(&SessionId(self.session_last)) {
            self.session_last = self.session_last.checked_add(1).unwrap_or(1);
        }
        let name = SessionId(self.session_last);
        let new = Session {
            tenant,
            key: new_key,
            epoch: Epoch(0),
            connection: None,
            waiting: None,
            until: Time::FOREVER,
            is_unsettled: false,
            credit: Granter::new(window),
            position: Position::default(),
            operations: Default::default(),
            leases: Default::default(),
            objects: Default::default(),
            object_last: 0,
            requests: Default::default(),
            deferred: Vec::new(),
        };
        self.sessions.insert(name, new);
        self.session_up(now, id, name, window, Flag::Clear);
    }

    /// What a session gets of what it asks for.
    fn window(&self, tenant: &str, quota: Quota, asked: Credit, except: Option<SessionId>) -> Credit {
        let others = self.sessions.iter().filter(|(id, other)| *other.tenant == *tenant && Some(**id) != except);
        let used = others.fold(Credit::default(), |sum, (_, other)| sum.plus(other.credit.window()));
        let most = self.config.window_max;
        Credit {
            operations: asked
                .operations
                .min(most.operations)
                .min(quota.window.operations.saturating_sub(used.operations)),
            bytes: asked.bytes.min(most.bytes).min(quota.window.bytes.saturating_sub(used.bytes)),
        }
    }

    /// A session is attached again, once nothing of its old epoch runs.
    fn session_attach(&mut self, now: Time, id: ConnectionId, name: SessionId, asked: Credit) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (tenant, quota) = (connection.tenant.clone(), connection.quota);
        let window = self.window(&tenant, quota, asked, Some(name));
        let old = self.sessions.get(&name).map(|session| (session.connection, session.waiting));
        let (attached, waiting) = old.unwrap_or_default();
        [attached, waiting].into_iter().flatten().for_each(|other| self.close(now, other, Closing::Replaced));
        let Some(session) = self.sessions.get_mut(&name) else { return };
        session.waiting = Some(id);
        session.credit = Granter::new(window);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.phase = Phase::Waiting(name);
        }
        self.attach_if_settled(now, name);
    }

    pub(super) fn attach_if_settled(&mut self, now: Time, name: SessionId) {
        let Some(session) = self.sessions.get_mut(&name) else { return };
        let runs = !session.operations.is_empty() && !self.mutation.has(Mutant::ResumedTooEarly);
        if runs {
            return;
        }
        let Some(id) = session.waiting.take() else { return };
        let window = session.credit.window();
        self.session_up(now, id, name, window, Flag::Set);
    }

    fn session_up(&mut self, now: Time, id: ConnectionId, name: SessionId, window: Credit, resumed: Flag) {
        let theirs = self.connections.get(&id).map(|connection| connection.epoch).unwrap_or_default();
        let Some(session) = self.sessions.get_mut(&name) else { return };
        // Above the host's last one, too, whoever gave that: a new session, of another agent even, never has an epoch of before.
        let Some(epoch) = session.epoch.max(theirs).0.checked_add(1) else {
            let failure = Failure::new(Class::Fatal, Origin::Agent, ErrorKind::ResourceLimit);
            return self.refuse(now, id, failure, "the session was attached too often");
        };
        session.epoch = Epoch(epoch);
        session.connection = Some(id);
        session.position = Position::default();
        session.credit = Granter::new(window);
        let settled = Flag::from(super::is_set(resumed) && !session.is_unsettled);
        let message = Message::Session {
            session: name,
            epoch: session.epoch,
            key: session.key,
            credit: window,
            linger_ms: u32::try_from(self.config.linger.as_millis()).unwrap_or(u32::MAX),
            resumed,
            settled,
        };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.phase = Phase::Up(name);
        }
        self.send(now, id, message);
    }

    fn message_up(&mut self, now: Time, id: ConnectionId, name: SessionId, message: Message) -> Result<(), Breach> {
        match message {
            Message::LeaseGrant(grant) => self.lease_grant(now, id, name, grant),
            Message::LeaseRenew { lease, lifetime_ms } => self.lease_renew(now, name, lease, lifetime_ms),
            Message::LeaseRevoke { lease, position } => self.lease_revoke(now, name, lease, position),
            Message::Cancel { operation, position } => self.cancel(now, name, operation, position),
            Message::Heartbeat { .. } | Message::Drain { .. } => Ok(()),
            Message::Goodbye { .. } => {
                self.close(now, id, Closing::Goodbye);
                if let Some(session) = self.sessions.get_mut(&name) {
                    session.until = now;
                }
                self.sessions_time(now);
                Ok(())
            }
            request => self.request(now, id, name, request),
        }
    }

    /// A connection is gone: what it asked for is stopped, and nobody is told.
    pub(super) fn lost(&mut self, now: Time, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let until = now.after(self.config.linger);
        match connection.phase {
            Phase::Up(name) => {
                if let Some(session) = self.sessions.get_mut(&name).filter(|session| session.connection == Some(id)) {
                    (session.connection, session.until) = (None, until);
                    session.leases.clear();
                    session.requests.clear();
                    session.deferred.clear();
                    self.abort_all(name);
                }
            }
            Phase::Waiting(name) => {
                if let Some(session) = self.sessions.get_mut(&name).filter(|session| session.waiting == Some(id)) {
                    session.waiting = None;
                }
            }
            Phase::Hello(_) | Phase::Auth(..) | Phase::Opening(_) => {}
        }
    }

    /// Sessions that nobody came back for.
    pub(super) fn sessions_time(&mut self, now: Time) {
        let is_over = |session: &Session| {
            let is_alone = session.connection.is_none() && session.waiting.is_none();
            is_alone && now >= session.until && session.operations.is_empty()
        };
        let over: Vec<_> = self.sessions.iter().filter(|(_, session)| is_over(session)).map(|(id, _)| *id).collect();
        for name in over {
            let Some(session) = self.sessions.remove(&name) else { continue };
            for (object, _) in session.objects.values() {
                self.actions.push_back(Action::CloseObject(name, *object));
            }
            self.act(Action::SessionGone(name));
        }
    }
}
