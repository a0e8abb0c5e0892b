//! The agent's end: it has the bytes and is told whose memory they go into.
//!
//! ```text
//!   connection: Hello ──HELLO──► Auth ──admit──► Opening ──SESSION_OPEN──► Waiting ──nothing of old epochs runs──► Up
//!   session:    attached to one connection at a time; kept for a while when that is lost; each time it is attached its epoch rises
//!   operation:  Start ──► touch, touch, … ──► ended ──► a completion        Abort: touch is refused from now on, `ended` must still come
//!   lease:      held ──REVOKE, lifetime──► its operations are stopped ──the last has ended──► REVOKED
//! ```
//!
//! Whoever composes this opens objects and moves bytes. It asks [`Agent::touch`] before *each* access to a host's memory, and calls
//! [`Agent::ended`] once it will not touch it any more: completions, REVOKED and the next SESSION are sent on the strength of that.

mod leases;
mod operations;
mod requests;
mod session;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sw_engine::Time;

use crate::credits::{Credit, Granter};
use crate::failure::{Failure, Outcome};
use crate::id::{Epoch, LeaseId, ObjectId, OperationId, Position, SessionId};
use crate::mutant::Mutation;
use crate::wire::message::{Access, Flag, Hello, Way};
use crate::wire::{Breach, Completion, Descriptor, Message, Path};

/// What an agent decides for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AgentConfig {
    /// What it says of itself; its features are what it has.
    pub hello: Hello,
    /// Connections at a time at most.
    pub connections_max: u32,
    /// Sessions at a time at most, of all tenants.
    pub sessions_max: u32,
    /// Operations and bytes under way in one session at most.
    pub window_max: Credit,
    /// Each answer of a host comes within so long.
    pub patience: Duration,
    /// A session without a connection is kept for so long.
    pub linger: Duration,
}

/// What a tenant may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Sessions at a time.
    pub sessions: u32,
    /// Operations and bytes under way in all of them.
    pub window: Credit,
}

/// A connection, as its carrier numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u32);

/// An operation of an epoch of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The session.
    pub session: SessionId,
    /// The epoch in which it was sent.
    pub epoch: Epoch,
    /// The host's name for it.
    pub operation: OperationId,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A host connected.
    Connected,
    /// A connection is gone.
    Disconnected,
    /// A control message came.
    Message(Message),
    /// A descriptor came.
    Descriptor(Descriptor),
    /// Payload of a write came, in a DATA frame. [`Action::Feed`] says that it belongs to it; without one it is dropped.
    Data {
        /// Of which operation.
        operation: OperationId,
        /// Of which epoch.
        epoch: Epoch,
        /// Under which lease.
        lease: LeaseId,
        /// Where in the window, in bytes.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// A frame broke a rule before it became any of these.
    Broken(Breach),
}

/// How an operation ended, as whoever carried it out tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ending {
    /// Success or why not.
    pub status: Result<(), Failure>,
    /// What became of what it should change. `Unknown` only where it may still be applied later.
    pub outcome: Outcome,
    /// Bytes in the host's memory, or taken from it.
    pub bytes: u32,
    /// Their checksum, if one was asked for.
    pub checksum: u64,
    /// Their way.
    pub path: Path,
}

/// Where to touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Touch {
    /// The lease, as it was granted.
    pub lease: LeaseId,
    /// How.
    pub way: Way,
    /// Where in the window, in bytes.
    pub offset: u64,
}

/// Facts of an object that was opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Bytes.
    pub length: u64,
    /// Offsets and lengths are best multiples of it; a power of two.
    pub granularity: u32,
    /// Its version.
    pub version: Box<str>,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Send this.
    Send(ConnectionId, Message),
    /// Send this, behind all payload of its operation.
    Complete(ConnectionId, Completion),
    /// Say whether this host is who it says: [`Agent::admit`], [`Agent::challenge`] or [`Agent::refuse`].
    Authenticate(ConnectionId, u16, Box<[u8]>),
    /// Open this: [`Agent::opened`].
    Open {
        /// For whom.
        session: SessionId,
        /// And when.
        epoch: Epoch,
        /// The request.
        request: u32,
        /// What for.
        access: Access,
        /// What.
        uri: Box<str>,
        /// Of which version; empty: any.
        version: Box<str>,
    },
    /// Answer this, a STAT or LIST: [`Agent::answer`].
    Ask(SessionId, Epoch, Message),
    /// An object is not needed any more.
    CloseObject(SessionId, ObjectId),
    /// Carry this out: [`Agent::touch`], [`Agent::ended`].
    Start(Key, Descriptor),
    /// Stop that. [`Agent::ended`] must still be called, soon.
    Abort(Key),
    /// The payload that just came belongs to a write, there in the operation.
    Feed(Key, u32, u32),
    /// A session is over.
    SessionGone(SessionId),
    /// Close the connection.
    Close(ConnectionId, Closing),
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closing {
    /// The host broke a rule.
    Broken(Breach),
    /// It did not answer in time, or was silent.
    Silent,
    /// It may not have what it wants.
    Refused(Failure),
    /// Its session is attached by another connection.
    Replaced,
    /// All is done.
    Goodbye,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Waiting for the host, until then.
    Hello(Time),
    Auth(Time, u16),
    Opening(Time),
    /// Operations of the session's old epoch run still.
    Waiting(SessionId),
    Up(SessionId),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Connection {
    phase: Phase,
    heard: Time,
    spoke: Time,
    silence: Duration,
    beats: u64,
    /// The version's limits that both have.
    common: Hello,
    tenant: Box<str>,
    quota: Quota,
    key: [u8; 16],
    /// The host's last epoch.
    epoch: Epoch,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Session {
    tenant: Box<str>,
    key: [u8; 16],
    epoch: Epoch,
    connection: Option<ConnectionId>,
    /// Who attaches it next.
    waiting: Option<ConnectionId>,
    until: Time,
    /// Something of an older epoch may still be applied.
    is_unsettled: bool,
    credit: Granter,
    /// Descriptors that came in this epoch.
    position: Position,
    operations: BTreeMap<(Epoch, OperationId), operations::Operation>,
    leases: BTreeMap<u16, leases::Lease>,
    objects: BTreeMap<u16, (ObjectId, Access)>,
    object_last: u16,
    requests: BTreeSet<u32>,
    deferred: Vec<(Position, operations::Deferred)>,
}

/// Counters that only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AgentCounters {
    /// Descriptors and data of older epochs, or of operations that have ended: dropped.
    pub stale: u32,
    /// Accesses to memory that were refused since their operation is being stopped.
    pub refused_touches: u32,
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    config: AgentConfig,
    connections: BTreeMap<ConnectionId, Connection>,
    sessions: BTreeMap<SessionId, Session>,
    session_last: u32,
    draining: Option<Time>,
    actions: VecDeque<Action>,
    counters: AgentCounters,
    mutation: Mutation,
}

impl Agent {
    /// Without connections.
    pub fn new(config: AgentConfig) -> Self {
        Self {
            config,
            connections: BTreeMap::new(),
            sessions: BTreeMap::new(),
            session_last: 0,
            draining: None,
            actions: VecDeque::new(),
            counters: AgentCounters::default(),
            mutation: Mutation::NONE,
        }
    }

    /// What is counted.
    pub fn counters(&self) -> AgentCounters {
        self.counters
    }

    /// Connections, sessions, operations and leases that there are.
    pub fn gauges(&self) -> [usize; 4] {
        let operations = self.sessions.values().map(|session| session.operations.len()).sum();
        let leases = self.sessions.values().map(|session| session.leases.len()).sum();
        [self.connections.len(), self.sessions.len(), operations, leases]
    }

    /// What of a session was granted, used and is ended, in this epoch.
    pub fn credit(&self, session: SessionId) -> Option<(Credit, Credit, Credit)> {
        Some(self.sessions.get(&session)?.credit.totals())
    }

    /// Something happened on a connection.
    pub fn handle(&mut self, now: Time, id: ConnectionId, event: Event) {
        let handled = match event {
            Event::Connected => {
                self.connected(now, id);
                Ok(())
            }
            Event::Disconnected => {
                self.lost(now, id);
                Ok(())
            }
            Event::Broken(breach) => Err(breach),
            Event::Message(message) => self.heard(now, id, |agent| agent.message(now, id, message)),
            Event::Descriptor(descriptor) => self.heard(now, id, |agent| agent.descriptor(now, id, &descriptor)),
            Event::Data { operation, epoch, lease, offset, len } => {
                self.heard(now, id, |agent| agent.data(id, (operation, epoch, lease), offset, len))
            }
        };
        if let Err(breach) = handled {
            self.close(now, id, Closing::Broken(breach));
        }
    }

    /// Time passed.
    pub fn handle_time(&mut self, now: Time) {
        let mut silent = Vec::new();
        let mut beats = Vec::new();
        for (id, connection) in &mut self.connections {
            let is_late = match connection.phase {
                Phase::Hello(until) | Phase::Auth(until, _) | Phase::Opening(until) => now >= until,
                Phase::Waiting(_) | Phase::Up(_) => false,
            };
            if is_late || now >= connection.heard.after(connection.silence) {
                silent.push(*id);
            } else if matches!(connection.phase, Phase::Up(_)) && now >= connection.spoke.after(connection.silence / 4)
            {
                connection.beats = connection.beats.wrapping_add(1);
                beats.push((*id, connection.beats));
            }
        }
        for (id, count) in beats {
            self.send(now, id, Message::Heartbeat { count });
        }
        for id in silent {
            self.close(now, id, Closing::Silent);
        }
        if self.draining.is_some_and(|until| now >= until) {
            self.draining = Some(Time::FOREVER);
            let all: Vec<_> = self.connections.keys().copied().collect();
            all.into_iter().for_each(|id| self.close(now, id, Closing::Goodbye));
        }
        self.operations_time(now);
        self.leases_time(now);
        self.sessions_time(now);
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`handle_time`](Self::handle_time) is due at the latest.
    pub fn poll_timeout(&self) -> Option<Time> {
        let connections = self.connections.values().map(|connection| match connection.phase {
            Phase::Hello(until) | Phase::Auth(until, _) | Phase::Opening(until) => {
                until.min(connection.heard.after(connection.silence))
            }
            Phase::Waiting(_) => connection.heard.after(connection.silence),
            Phase::Up(_) => {
                connection.heard.after(connection.silence).min(connection.spoke.after(connection.silence / 4))
            }
        });
        let sessions = self.sessions.values().flat_map(|session| {
            let operations = session.operations.values().filter_map(operations::Operation::due);
            let leases = session.leases.values().filter_map(leases::Lease::due);
            let until = session.connection.is_none().then_some(session.until);
            operations.chain(leases).chain(until)
        });
        connections.chain(sessions).chain(self.draining).min()
    }

    /// Goes: hosts are told, no session is opened any more, and at `until` connections are closed.
    pub fn drain(&mut self, now: Time, until: Time, reason: u16) {
        if self.draining.is_some() {
            return;
        }
        self.draining = Some(until);
        let deadline_ms = u32::try_from(until.since(now).as_millis()).unwrap_or(u32::MAX);
        let is_up =
            |(id, connection): (&ConnectionId, &Connection)| matches!(connection.phase, Phase::Up(_)).then_some(*id);
        let up: Vec<_> = self.connections.iter().filter_map(is_up).collect();
        for id in up {
            self.send(now, id, Message::Drain { reason, deadline_ms });
        }
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn send(&mut self, now: Time, id: ConnectionId, message: Message) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.spoke = now;
            self.act(Action::Send(id, message));
        }
    }

    /// Of a connection that is gone nothing is heard any more.
    fn heard(
        &mut self,
        now: Time,
        id: ConnectionId,
        then: impl FnOnce(&mut Self) -> Result<(), Breach>,
    ) -> Result<(), Breach> {
        let Some(connection) = self.connections.get_mut(&id) else {
            self.counters.stale = self.counters.stale.saturating_add(1);
            return Ok(());
        };
        connection.heard = now;
        then(self)
    }

    fn close(&mut self, now: Time, id: ConnectionId, why: Closing) {
        if self.connections.contains_key(&id) {
            self.act(Action::Close(id, why));
            self.lost(now, id);
        }
    }

    /// The session that is attached by a connection.
    fn attached(&self, id: ConnectionId) -> Result<SessionId, Breach> {
        match self.connections.get(&id).map(|connection| &connection.phase) {
            Some(Phase::Up(session)) => Ok(*session),
            _ => Err(Breach::of("it needs a session")),
        }
    }

    /// Makes a mistake on purpose.
    #[cfg(test)]
    pub(crate) fn mutate(&mut self, mutation: Mutation) {
        self.mutation = mutation;
    }

    /// The mistake that it makes.
    #[cfg(test)]
    pub(crate) fn mutation(&self) -> Mutation {
        self.mutation
    }
}

/// Whether a flag is set.
fn is_set(flag: Flag) -> bool {
    flag == Flag::Set
}
