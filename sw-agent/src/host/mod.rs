//! The host's end: it has memory and wants bytes.
//!
//! ```text
//!   Down ──Connected──► Hello ──WELCOME──► Auth ──ADMITTED──► Opening ──SESSION──► Up
//!    ▲ │                  │                  │                  │                  │
//!    │ └─ quiet? ◄────────┴── lost, silent, broken rules, out of time ─────────────┘
//!    └ operations: reads go on in the next epoch, writes end as unknown; only when the carrier says [`Event::Quiet`]
//! ```
//!
//! A carrier promises: what it handed over came in order on each of its streams; after [`Event::Disconnected`] (or after it did
//! [`Action::Close`]) it says [`Event::Quiet`] once nothing of the connection can touch memory any more, and [`Event::Connected`] only after
//! that. What it cannot prove it does not say: memory then stays under its lease.
//!
//! An operation ends once, by [`Action::Done`], and its memory is free then. A lease comes back once, by [`Action::LeaseBack`].

mod leases;
mod operations;
mod requests;
mod session;

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use sw_engine::{ErrorKind, Time};

use crate::credits::{Credit, Spender};
use crate::failure::{Failure, Outcome};
use crate::id::{Epoch, LeaseId, ObjectId, OperationId, Position, SessionId};
use crate::mutant::Mutation;
use crate::wire::message::{Access, Flag, Hello, RevokedFor, Way};
use crate::wire::{Breach, ChecksumKind, Completion, Descriptor, Message, Opcode, Path};

/// What a host decides for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostConfig {
    /// What it says of itself.
    pub hello: Hello,
    /// What it asks for with a session: operations and payload bytes under way.
    pub window: Credit,
    /// Who it is, as AUTH numbers kinds; 0: whoever the carrier says.
    pub auth_kind: u16,
    /// Each answer of the agent comes within so long.
    pub patience: Duration,
    /// After a deadline the agent has so long to stop an operation and say so; then the connection is given up.
    pub grace: Duration,
    /// Leases live so long unless they are renewed, which happens at half of it.
    pub lifetime_ms: u32,
}

/// An operation that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Want {
    /// What.
    pub opcode: Opcode,
    /// See [`flags`](crate::wire::descriptor::flags).
    pub flags: u8,
    /// Which checksum is wanted of the bytes.
    pub checksum_kind: ChecksumKind,
    /// What it must be, with the flag `EXPECT`.
    pub checksum: u64,
    /// As [`Host::grant`] gave it; none where there is no memory.
    pub lease: LeaseId,
    /// Where in the window, in bytes.
    pub region_offset: u64,
    /// As [`Action::Answer`] gave it.
    pub object: ObjectId,
    /// Where in the object, in bytes.
    pub object_offset: u64,
    /// Bytes.
    pub length: u32,
    /// When it must have ended.
    pub deadline: Time,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The carrier has a connection.
    Connected,
    /// It has it no more.
    Disconnected,
    /// Nothing of the last connection can touch memory any more.
    Quiet,
    /// A control message came.
    Message(Message),
    /// A completion came.
    Completion(Completion),
    /// Payload came, in a DATA frame. [`Action::Land`] says that it belongs where it says; without one it is dropped.
    Data {
        /// Of which operation.
        operation: OperationId,
        /// Of which epoch.
        epoch: Epoch,
        /// The lease, as it was granted on the wire.
        lease: LeaseId,
        /// Where in the window, in bytes.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// A frame broke a rule before it became any of these.
    Broken(Breach),
    /// Time passed.
    Time,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct End {
    /// Success or why not.
    pub status: Result<(), Failure>,
    /// What became of what it should change.
    pub outcome: Outcome,
    /// Bytes in memory, or taken from it.
    pub bytes: u32,
    /// Their checksum, of the kind that was asked for.
    pub checksum: u64,
    /// Their way at the agent.
    pub path: Path,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Send this.
    Send(Message),
    /// Send this; with frames, the payload of a write behind it.
    Submit(Descriptor),
    /// Copy the payload that just came into the window of a lease.
    Land {
        /// The lease, as [`Host::grant`] named it.
        lease: LeaseId,
        /// Where, in bytes.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// An operation has ended; its memory is free.
    Done(OperationId, End),
    /// The agent has a lease.
    LeaseHeld(LeaseId),
    /// A lease is over: nothing will touch its memory.
    LeaseBack(LeaseId, RevokedFor),
    /// A request was answered, or not, and what the agent says of that.
    Answer(u32, Result<Message, (Failure, Box<str>)>),
    /// There is a session. `settled`: whatever ended as unknown before will not be applied any more, if it was not.
    Up {
        /// Its epoch.
        epoch: Epoch,
        /// It is the one of before.
        resumed: Flag,
        /// See above.
        settled: Flag,
    },
    /// Objects are gone with the session that they were opened in.
    ObjectsLost,
    /// Evidence is wanted: [`Host::present`]. What the agent said before, if it did.
    Authenticate(u16, Box<[u8]>),
    /// The agent will go: another one should be looked for.
    Draining,
    /// Close the connection.
    Close(Closing),
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closing {
    /// The agent broke a rule.
    Broken(Breach),
    /// It did not answer in time, or was silent.
    Silent,
    /// It could not be made to stop an operation in time.
    Stuck(OperationId),
    /// It refused.
    Refused(Failure),
    /// All is done.
    Goodbye,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// No connection. With `quiet` a new one may come.
    Down {
        quiet: Flag,
    },
    /// Waiting for the agent, until then.
    Hello(Time),
    Auth(Time, u16),
    Opening(Time),
    Up,
}

/// Counters that only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HostCounters {
    /// Completions and data of older epochs, or of operations that had ended with their epoch: dropped.
    pub stale: u32,
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    config: HostConfig,
    phase: Phase,
    session: SessionId,
    epoch: Epoch,
    boot: u64,
    key: [u8; 16],
    /// What both ends can do.
    common: Hello,
    credit: Spender,
    position: Position,
    operations: Vec<operations::Place>,
    /// Slots of operations that wait to be sent, in the order of submission.
    queue: VecDeque<u16>,
    leases: Vec<leases::Place>,
    objects: BTreeMap<u32, Access>,
    requests: BTreeMap<u32, requests::Request>,
    request_last: u32,
    heard: Time,
    spoke: Time,
    beats: u64,
    draining: Option<Time>,
    actions: VecDeque<Action>,
    counters: HostCounters,
    mutation: Mutation,
}

/// Why an intent was refused, before anything was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{rule}")]
pub struct Refusal {
    /// The kind.
    pub kind: ErrorKind,
    /// The rule.
    pub rule: &'static str,
}

impl Refusal {
    const fn new(kind: ErrorKind, rule: &'static str) -> Self {
        Self { kind, rule }
    }
}

impl Host {
    /// Without a connection.
    pub fn new(config: HostConfig) -> Self {
        let hello = &config.hello;
        let operations = (0..hello.operations_max).map(operations::Place::new).collect();
        let leases = (0..hello.leases_max).map(leases::Place::new).collect();
        Self {
            phase: Phase::Down { quiet: Flag::Set },
            session: SessionId::default(),
            epoch: Epoch::default(),
            boot: 0,
            key: [0; 16],
            common: hello.clone(),
            credit: Spender::default(),
            position: Position::default(),
            operations,
            queue: VecDeque::new(),
            leases,
            objects: BTreeMap::new(),
            requests: BTreeMap::new(),
            request_last: 0,
            heard: Time::ZERO,
            spoke: Time::ZERO,
            beats: 0,
            draining: None,
            actions: VecDeque::new(),
            counters: HostCounters::default(),
            mutation: Mutation::NONE,
            config,
        }
    }

    /// Whether there is a session and nobody leaves it.
    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up && self.draining.is_none()
    }

    /// What is counted.
    pub fn counters(&self) -> HostCounters {
        self.counters
    }

    /// What was granted and used in this epoch.
    pub fn credit(&self) -> (Credit, Credit) {
        self.credit.totals()
    }

    /// The session and its epoch, for headers of frames.
    pub fn session(&self) -> (SessionId, Epoch) {
        match self.phase {
            Phase::Up => (self.session, self.epoch),
            _ => (SessionId::default(), Epoch::default()),
        }
    }

    /// Operations that have not ended.
    pub fn operations_open(&self) -> usize {
        self.operations.iter().filter(|place| place.operation.is_some()).count()
    }

    /// Something happened.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Connected => self.connected(now),
            Event::Disconnected => self.lost(),
            Event::Quiet => self.quiet(now),
            Event::Broken(breach) => self.close(Closing::Broken(breach)),
            Event::Message(message) if self.is_connected() => {
                self.heard = now;
                let handled = self.message(now, message);
                self.unless_broken(handled);
            }
            Event::Completion(completion) => {
                let handled = self.completion(now, &completion);
                self.unless_broken(handled);
            }
            Event::Data { operation, epoch, lease, offset, len } => {
                let handled = self.data(now, (operation, epoch, lease), offset, len);
                self.unless_broken(handled);
            }
            // A message of a connection that was given up.
            Event::Message(_) => self.counters.stale = self.counters.stale.saturating_add(1),
            Event::Time => {}
        }
        self.time(now);
        self.pump(now);
        self.leave_if_done(now);
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Time`] is due at the latest.
    pub fn poll_timeout(&self) -> Option<Time> {
        let phase = match self.phase {
            Phase::Down { .. } => None,
            Phase::Hello(until) | Phase::Auth(until, _) | Phase::Opening(until) => Some(until),
            Phase::Up => Some(self.heard.after(self.silence()).min(self.spoke.after(self.beat()))),
        };
        let operations = self.operations.iter().filter_map(|place| Some(place.operation.as_ref()?.due()));
        let leases = self.leases.iter().filter_map(leases::Place::due);
        let requests = self.requests.values().filter_map(requests::Request::due);
        phase.into_iter().chain(operations).chain(leases).chain(requests).chain(self.draining).min()
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn send(&mut self, now: Time, message: Message) {
        self.spoke = now;
        self.act(Action::Send(message));
    }

    fn is_connected(&self) -> bool {
        !matches!(self.phase, Phase::Down { .. })
    }

    fn unless_broken(&mut self, handled: Result<(), Breach>) {
        if let Err(breach) = handled {
            self.close(Closing::Broken(breach));
        }
    }

    /// Gives the connection up.
    fn close(&mut self, why: Closing) {
        if self.is_connected() {
            self.act(Action::Close(why));
            self.lost();
        }
    }

    fn time(&mut self, now: Time) {
        match self.phase {
            Phase::Hello(until) | Phase::Auth(until, _) | Phase::Opening(until) if now >= until => {
                self.close(Closing::Silent);
            }
            Phase::Up if now >= self.heard.after(self.silence()) => self.close(Closing::Silent),
            Phase::Up if now >= self.spoke.after(self.beat()) => {
                self.beats = self.beats.wrapping_add(1);
                self.send(now, Message::Heartbeat { count: self.beats });
            }
            _ => {}
        }
        if self.draining.is_some_and(|until| now >= until) {
            self.draining = Some(Time::FOREVER);
            self.close(Closing::Silent);
        }
        self.operations_time(now);
        self.leases_time(now);
        self.requests_time(now);
    }

    fn silence(&self) -> Duration {
        Duration::from_millis(u64::from(self.common.silence_ms))
    }

    /// The agent gives up who is silent for `silence`: a sign of life four times in it.
    fn beat(&self) -> Duration {
        self.silence() / 4
    }

    /// Makes a mistake on purpose.
    #[cfg(test)]
    pub(crate) fn mutate(&mut self, mutation: Mutation) {
        self.mutation = mutation;
    }
}

/// What a failure of the connection looks like.
fn lost_failure(class: crate::failure::Class) -> Failure {
    Failure::new(class, crate::failure::Origin::Carrier, ErrorKind::Closed)
}

/// The way of a lease is a part of what is granted.
pub use leases::Window;

const _: () = assert!(core::mem::size_of::<Way>() <= 16, "a way is copied into each place of a lease");
