//! One world: both machines, what is between them, who carries operations out, and what is known to be true.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use sw_engine::{ErrorKind, Landing, Time};

use crate::agent::{self, Agent, AgentConfig, ConnectionId, Ending, Facts, Key, Quota};
use crate::credits::Credit;
use crate::failure::{Class, Failure, Origin, Outcome};
use crate::host::{self, End, Host, HostConfig, Want, Window};
use crate::id::{Epoch, LeaseId, ObjectId, OperationId};
use crate::mutant::{Mutant, Mutation};
use crate::wire::message::{Access, Flag, Hello, Way};
use crate::wire::{ChecksumKind, Completion, Descriptor, Message, Opcode, Path};

/// Bytes of an operation.
const LEN: u32 = 8;
/// Two moves of the clock are enough for the deadline and the grace behind it.
pub(super) const TICK: Duration = Duration::from_secs(10);

/// What may happen in a world, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) way: Way,
    /// Operations under way.
    pub(super) window: u64,
    /// Opcodes of the operations, one under each lease.
    pub(super) operations: [Opcode; 2],
    pub(super) cancels: u8,
    pub(super) revokes: u8,
    pub(super) cuts: u8,
    pub(super) restarts: u8,
    pub(super) failures: u8,
    pub(super) ticks: u8,
    pub(super) source: Source,
}

/// What the first operation is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// It answers, sooner or later.
    Answers,
    /// It does not, unless it is told to stop; the user cancels then.
    Hangs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Move {
    Start,
    Submit,
    Cancel,
    /// The same, of what would hang.
    CancelHanging,
    Revoke,
    ControlToAgent,
    IoToAgent,
    ControlToHost,
    IoToHost,
    /// Something of a connection that was cut comes after all.
    Ghost(usize),
    Touch(Key),
    EndWell(Key),
    EndBadly(Key),
    Cut,
    Restart,
    HostSees,
    AgentSees,
    Quiet,
    Connect,
    Tick,
}

impl Move {
    /// Whether it must happen sooner or later. The others may, or may not.
    pub(super) fn is_progress(&self) -> bool {
        !matches!(self, Self::Cancel | Self::Revoke | Self::Cut | Self::Restart | Self::Tick | Self::Ghost(_))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ToAgent {
    Descriptor(Descriptor),
    Data(OperationId, Epoch, LeaseId, u64, u32),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ToHost {
    Completion(Completion),
    Data(OperationId, Epoch, LeaseId, u64, u32),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Running {
    descriptor: Descriptor,
    connection: u32,
    is_touched: bool,
    is_fed: bool,
    is_aborted: bool,
}

/// What is true of an operation, whoever says what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Truth {
    lease: usize,
    end: Option<End>,
    is_read: bool,
    starts: u8,
    applied: u8,
    /// The epoch whose bytes its memory has, all of them.
    bytes_of: Option<Epoch>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    plan: Plan,
    now: Time,
    host: Host,
    agent: Agent,
    boot: u64,
    connection: u32,
    /// Both ends may use it.
    is_up: bool,
    is_seen_by_host: bool,
    is_seen_by_agent: bool,
    /// Connections up to this one cannot touch memory any more.
    quiet: u32,
    control_to_agent: VecDeque<Message>,
    control_to_host: VecDeque<Message>,
    io_to_agent: VecDeque<ToAgent>,
    io_to_host: VecDeque<ToHost>,
    ghosts: Vec<ToHost>,
    running: BTreeMap<Key, Running>,
    leases: Vec<LeaseId>,
    held: BTreeSet<LeaseId>,
    back: BTreeSet<LeaseId>,
    is_revoked: bool,
    /// The leases' names on the wire for which the agent said that they are over.
    revoked: BTreeSet<(Epoch, LeaseId)>,
    object: ObjectId,
    submitted: Vec<OperationId>,
    truth: BTreeMap<OperationId, Truth>,
    epoch: Epoch,
    broken: Option<String>,
    marks: BTreeSet<&'static str>,
}

fn hello(boot: u64) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features_critical: 0,
        features_optional: 0,
        node: [7; 16],
        boot,
        operations_max: 2,
        leases_max: 2,
        objects_max: 1,
        payload_bytes_max: LEN,
        silence_ms: 60_000,
        checksums: 0,
        software: Box::default(),
    }
}

fn agent_of(plan: &Plan, boot: u64, mutation: Mutation) -> Agent {
    let window = Credit { operations: plan.window, bytes: plan.window * u64::from(LEN) };
    let mut agent = Agent::new(AgentConfig {
        hello: hello(boot),
        connections_max: 4,
        sessions_max: 4,
        window_max: window,
        patience: Duration::from_secs(1000),
        linger: Duration::from_secs(1000),
    });
    agent.mutate(mutation);
    agent
}

impl World {
    /// With a session, two leases and an object: everything of interest comes after that.
    pub(super) fn new(plan: Plan, mutant: Option<Mutant>) -> Self {
        let mutation = Mutation(mutant);
        let window = Credit { operations: plan.window, bytes: plan.window * u64::from(LEN) };
        let mut host = Host::new(HostConfig {
            hello: hello(1),
            window,
            auth_kind: 0,
            patience: Duration::from_secs(1000),
            grace: TICK,
            lifetime_ms: 3_600_000,
        });
        host.mutate(mutation);
        let mut world = Self {
            plan,
            now: Time::ZERO,
            host,
            agent: agent_of(&plan, 100, mutation),
            boot: 100,
            connection: 0,
            is_up: false,
            is_seen_by_host: true,
            is_seen_by_agent: true,
            quiet: 0,
            control_to_agent: VecDeque::new(),
            control_to_host: VecDeque::new(),
            io_to_agent: VecDeque::new(),
            io_to_host: VecDeque::new(),
            ghosts: Vec::new(),
            running: BTreeMap::new(),
            leases: Vec::new(),
            held: BTreeSet::new(),
            back: BTreeSet::new(),
            is_revoked: false,
            revoked: BTreeSet::new(),
            object: ObjectId::NONE,
            submitted: Vec::new(),
            truth: BTreeMap::new(),
            epoch: Epoch(0),
            broken: None,
            marks: BTreeSet::new(),
        };
        world.connect();
        let give = Window { length: u64::from(LEN), access: Access::ReadWrite, way: plan.way };
        world.leases = (0..2).map(|_| world.host.grant(world.now, give).expect("a place")).collect();
        world.settle();
        world.host.open(world.now, "file:///x", Access::ReadWrite, "").expect("a session");
        world.act();
        world.settle();
        assert!(world.object.is_some() && world.held.len() == 2 && world.broken.is_none(), "{world:?}");
        world
    }

    fn settle(&mut self) {
        while let Some(step) =
            [Move::ControlToAgent, Move::ControlToHost].into_iter().find(|step| self.is_enabled(step))
        {
            self.do_move(step);
        }
    }

    fn is_enabled(&self, step: &Move) -> bool {
        match step {
            Move::ControlToAgent => self.is_up && !self.control_to_agent.is_empty(),
            Move::ControlToHost => self.is_up && !self.control_to_host.is_empty(),
            _ => false,
        }
    }

    pub(super) fn marks(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.marks.iter().copied()
    }

    /// What can happen now.
    pub(super) fn moves(&self) -> Vec<Move> {
        let plan = &self.plan;
        let live = self.submitted.first().is_some_and(|id| self.truth[id].end.is_none());
        let hangs = plan.source == Source::Hangs;
        let has_agent_seen = self.is_up || !self.is_seen_by_agent;
        let mut moves = vec![
            (self.submitted.len() < 2, Move::Submit),
            (plan.cancels > 0 && live && !hangs, Move::Cancel),
            (plan.cancels > 0 && live && hangs, Move::CancelHanging),
            (plan.revokes > 0, Move::Revoke),
            (self.is_enabled(&Move::ControlToAgent), Move::ControlToAgent),
            (self.is_up && !self.io_to_agent.is_empty(), Move::IoToAgent),
            (self.is_enabled(&Move::ControlToHost), Move::ControlToHost),
            (self.is_up && !self.io_to_host.is_empty(), Move::IoToHost),
            (plan.cuts > 0 && self.is_up, Move::Cut),
            (plan.restarts > 0 && has_agent_seen, Move::Restart),
            (!self.is_up && !self.is_seen_by_host, Move::HostSees),
            (!self.is_up && !self.is_seen_by_agent, Move::AgentSees),
            (!self.is_up && self.is_seen_by_host && self.quiet < self.connection, Move::Quiet),
            (!self.is_up && self.quiet == self.connection, Move::Connect),
            (plan.ticks > 0, Move::Tick),
        ];
        // Until the host sees the cut they are its stream, in order and without a gap.
        let ghosts = if self.is_seen_by_host { self.ghosts.len() } else { self.ghosts.len().min(1) };
        moves.extend((0..ghosts).map(|index| (true, Move::Ghost(index))));
        for (key, running) in &self.running {
            let is_read = running.descriptor.opcode == Opcode::Read;
            // By frames a write's bytes come; otherwise they are fetched.
            let is_there = running.is_fed || (running.is_touched && (is_read || plan.way != Way::Frames));
            moves.push((!running.is_touched && (is_read || plan.way != Way::Frames), Move::Touch(*key)));
            let waits = hangs && self.submitted.first() == Some(&key.operation) && !running.is_aborted;
            moves.push((is_there && !waits, Move::EndWell(*key)));
            moves.push((running.is_aborted || plan.failures > 0, Move::EndBadly(*key)));
        }
        moves.into_iter().filter_map(|(is_enabled, step)| is_enabled.then_some(step)).collect()
    }

    /// The world after a move, or the promise that it broke.
    pub(super) fn step(&self, step: Move) -> Result<Self, String> {
        let mut next = self.clone();
        next.do_move(step);
        next.check();
        match next.broken.take() {
            Some(promise) => Err(promise),
            None => Ok(next),
        }
    }

    fn do_move(&mut self, step: Move) {
        let (now, id) = (self.now, ConnectionId(self.connection));
        match step {
            Move::Start => {}
            Move::Submit => self.submit(),
            Move::Cancel | Move::CancelHanging => {
                self.plan.cancels -= 1;
                self.host.cancel(now, self.submitted[0]);
            }
            Move::Revoke => {
                self.plan.revokes -= 1;
                self.is_revoked = true;
                self.host.revoke(now, self.leases[0]);
            }
            Move::ControlToAgent => {
                let message = self.control_to_agent.pop_front().expect("enabled");
                self.agent.handle(now, id, agent::Event::Message(message));
            }
            Move::IoToAgent => self.agent_hears(),
            Move::ControlToHost => {
                let message = self.control_to_host.pop_front().expect("enabled");
                self.host.handle(now, host::Event::Message(message));
            }
            Move::IoToHost => {
                let came = self.io_to_host.pop_front().expect("enabled");
                self.hears(came);
            }
            Move::Ghost(index) => {
                self.marks.insert("a ghost came");
                let came = self.ghosts.remove(index);
                self.hears(came);
            }
            Move::Touch(key) => self.touch(key),
            Move::EndWell(key) => self.end(key, Ok(())),
            Move::EndBadly(key) => {
                if !self.running[&key].is_aborted {
                    self.plan.failures -= 1;
                }
                self.end(key, Err(Failure::new(Class::RetryNow, Origin::Storage, ErrorKind::Io)));
            }
            Move::Cut => {
                self.plan.cuts -= 1;
                self.cut();
            }
            Move::Restart => self.restart(),
            Move::HostSees => {
                self.is_seen_by_host = true;
                self.host.handle(now, host::Event::Disconnected);
            }
            Move::AgentSees => {
                self.is_seen_by_agent = true;
                self.agent.handle(now, id, agent::Event::Disconnected);
            }
            Move::Quiet => {
                self.quiet = self.connection;
                self.host.handle(now, host::Event::Quiet);
            }
            Move::Connect => self.connect(),
            Move::Tick => {
                self.plan.ticks -= 1;
                self.now = now.after(TICK);
                self.agent.handle_time(self.now);
                self.host.handle(self.now, host::Event::Time);
            }
        }
        self.act();
    }

    fn agent_hears(&mut self) {
        let event = match self.io_to_agent.pop_front().expect("enabled") {
            ToAgent::Descriptor(descriptor) => agent::Event::Descriptor(descriptor),
            ToAgent::Data(operation, epoch, lease, offset, len) => {
                agent::Event::Data { operation, epoch, lease, offset, len }
            }
        };
        self.agent.handle(self.now, ConnectionId(self.connection), event);
    }

    fn hears(&mut self, came: ToHost) {
        let event = match came {
            ToHost::Completion(completion) => host::Event::Completion(completion),
            ToHost::Data(operation, epoch, lease, offset, len) => {
                host::Event::Data { operation, epoch, lease, offset, len }
            }
        };
        if let host::Event::Data { operation, .. } = event {
            self.host.handle(self.now, event);
            self.land(operation);
        } else {
            self.host.handle(self.now, event);
        }
    }

    /// Payload that came is copied where the host says, in the move in which it came.
    fn land(&mut self, operation: OperationId) {
        let (epoch, mut others) = (self.epoch, Vec::new());
        while let Some(action) = self.host.poll_action() {
            match action {
                host::Action::Land { lease, .. } => self.written(operation, lease, epoch),
                other => others.push(other),
            }
        }
        others.into_iter().for_each(|action| self.host_acts(action));
    }

    fn submit(&mut self) {
        let index = self.submitted.len();
        let opcode = self.plan.operations[index];
        let want = Want {
            opcode,
            flags: 0,
            checksum_kind: ChecksumKind::None,
            checksum: 0,
            lease: self.leases[index],
            region_offset: 0,
            object: self.object,
            object_offset: 0,
            length: LEN,
            deadline: self.now.after(TICK),
        };
        let truth = Truth { lease: index, is_read: opcode == Opcode::Read, ..Truth::default() };
        let id = match self.host.submit(self.now, want) {
            Ok(id) => id,
            Err(_) => {
                // Its lease is being taken back, or its object is gone: the user is told at once.
                let id = OperationId::new(u16::MAX, u16::try_from(index).unwrap_or(0) + 1);
                let failure = Failure::caller(ErrorKind::NotRegistered);
                let (outcome, path) = (Outcome::NotApplied, Path::default());
                let end = End { status: Err(failure), outcome, bytes: 0, checksum: 0, path };
                self.truth.insert(id, Truth { end: Some(end), ..truth });
                self.submitted.push(id);
                return;
            }
        };
        self.truth.insert(id, truth);
        self.submitted.push(id);
    }

    fn touch(&mut self, key: Key) {
        let touched = self.agent.touch(key, 0, LEN);
        let running = self.running.get_mut(&key).expect("enabled");
        running.is_touched = true;
        let (connection, is_read) = (running.connection, running.descriptor.opcode == Opcode::Read);
        let Some(touch) = touched else {
            self.marks.insert("a touch was refused");
            return;
        };
        if self.revoked.contains(&(key.epoch, touch.lease)) {
            self.breaks("memory is touched under a lease that was said to be over");
        }
        if touch.way == Way::Frames {
            if self.is_up && connection == self.connection {
                self.io_to_host.push_back(ToHost::Data(key.operation, key.epoch, touch.lease, touch.offset, LEN));
            }
        } else if connection > self.quiet {
            // What is quiet reaches nothing: the window is gone, the queue pair in error.
            let lease = self.leases[self.truth[&key.operation].lease];
            if is_read {
                self.written(key.operation, lease, key.epoch);
            } else if self.truth[&key.operation].end.is_some() {
                self.breaks("memory of a write that has ended is read");
            }
        }
    }

    /// Bytes come into memory.
    fn written(&mut self, operation: OperationId, lease: LeaseId, epoch: Epoch) {
        let truth = self.truth.get_mut(&operation).expect("submitted");
        truth.bytes_of = Some(epoch);
        let (is_over, is_back) = (truth.end.is_some(), self.back.contains(&lease));
        if is_over {
            self.breaks("memory of an operation that has ended is written");
        }
        if is_back {
            self.breaks("memory of a lease that came back is written");
        }
    }

    fn end(&mut self, key: Key, status: Result<(), Failure>) {
        let running = self.running.remove(&key).expect("enabled");
        let changes = running.descriptor.opcode.changes();
        let outcome = match status {
            _ if !changes => Outcome::Nothing,
            Ok(()) => Outcome::Applied,
            Err(_) => Outcome::NotApplied,
        };
        if changes && status.is_ok() {
            let truth = self.truth.get_mut(&key.operation).expect("submitted");
            truth.applied += 1;
            if matches!(truth.end, Some(End { outcome: Outcome::NotApplied, .. })) {
                self.breaks("a write is applied that was told as not applied");
            }
        }
        let bytes = if status.is_ok() { LEN } else { 0 };
        let path = Path { transport: 1, landing: Some(Landing::KernelCopy), copies: 1, bounced_bytes: bytes };
        self.agent.ended(self.now, key, Ending { status, outcome, bytes, checksum: 0, path });
    }

    fn connect(&mut self) {
        self.connection += 1;
        (self.is_up, self.is_seen_by_host, self.is_seen_by_agent) = (true, false, false);
        self.agent.handle(self.now, ConnectionId(self.connection), agent::Event::Connected);
        self.host.handle(self.now, host::Event::Connected);
        self.act();
    }

    fn cut(&mut self) {
        self.is_up = false;
        self.ghosts.extend(self.io_to_host.drain(..));
        self.control_to_agent.clear();
        self.control_to_host.clear();
        self.io_to_agent.clear();
    }

    /// Another process: it knows nothing, and what the old one did has ended.
    fn restart(&mut self) {
        self.marks.insert("the agent began anew");
        self.plan.restarts -= 1;
        self.boot += 1;
        if self.is_up {
            self.cut();
        }
        let (boot, plan) = (self.boot, self.plan);
        let mutation = self.agent.mutation();
        self.agent = agent_of(&plan, boot, mutation);
        self.running.clear();
        self.is_seen_by_agent = true;
    }

    /// Does what the machines say.
    fn act(&mut self) {
        loop {
            if let Some(action) = self.host.poll_action() {
                self.host_acts(action);
            } else if let Some(action) = self.agent.poll_action() {
                self.agent_acts(action);
            } else {
                return;
            }
        }
    }

    fn host_acts(&mut self, action: host::Action) {
        match action {
            host::Action::Send(message) if self.is_up => self.control_to_agent.push_back(message),
            host::Action::Submit(descriptor) if self.is_up => {
                self.io_to_agent.push_back(ToAgent::Descriptor(descriptor));
                if descriptor.opcode == Opcode::Write && self.plan.way == Way::Frames {
                    let Descriptor { operation, epoch, lease, region_offset, .. } = descriptor;
                    self.io_to_agent.push_back(ToAgent::Data(operation, epoch, lease, region_offset, LEN));
                }
            }
            host::Action::Done(id, end) => self.done(id, end),
            host::Action::LeaseHeld(lease) => {
                self.held.insert(lease);
            }
            host::Action::LeaseBack(lease, _) => {
                if !self.back.insert(lease) {
                    self.breaks("a lease comes back twice");
                }
                let users = self.truth.values().filter(|truth| self.leases[truth.lease] == lease);
                if users.into_iter().any(|truth| truth.end.is_none()) {
                    self.breaks("a lease comes back before its operations have ended");
                }
            }
            host::Action::Answer(_, Ok(Message::Opened { object, .. })) => self.object = object,
            host::Action::Up { epoch, settled, resumed } => {
                self.epoch = epoch;
                let is_running =
                    |(key, running): (&Key, &Running)| key.epoch < epoch && running.descriptor.opcode.changes();
                if resumed == Flag::Set && epoch.0 > 1 {
                    self.marks.insert("a session was attached again");
                }
                if settled == Flag::Set && self.running.iter().any(is_running) {
                    self.breaks("what is said to be settled is being carried out");
                }
            }
            host::Action::Land { .. } => self.breaks("something lands that did not come"),
            host::Action::Close(host::Closing::Broken(breach)) => {
                self.breaks(&format!("the host finds that the agent broke a rule: {breach}"));
            }
            host::Action::Close(why) => {
                if matches!(why, host::Closing::Stuck(_)) {
                    self.marks.insert("an operation could not be stopped in time");
                }
                self.is_seen_by_host = true;
                if self.is_up {
                    self.cut();
                }
            }
            _ => {}
        }
    }

    fn done(&mut self, id: OperationId, end: End) {
        let truth = self.truth.get_mut(&id).expect("submitted");
        if truth.end.replace(end).is_some() {
            return self.breaks("an operation ends twice");
        }
        let (applied, bytes_of, is_read) = (truth.applied, truth.bytes_of, truth.is_read);
        match (end.status, end.outcome) {
            (Ok(()), _) if is_read && bytes_of != Some(self.epoch) => {
                self.breaks("a read succeeds without its bytes");
            }
            (Ok(()), _) if !is_read && applied == 0 => self.breaks("a write succeeds that was not applied"),
            (_, Outcome::NotApplied) if applied > 0 => self.breaks("a write is told as not applied that was"),
            (Err(failure), Outcome::Unknown) if failure.class != Class::RetryAfterFence => {
                self.breaks("a write of unknown outcome may be sent again at once");
            }
            (_, Outcome::Unknown) => {
                self.marks.insert("an outcome is unknown");
            }
            (Ok(()), _) if end.path.landing.is_none() => self.breaks("a success says nothing of its way"),
            (Ok(()), _) => {
                self.marks.insert("an operation succeeded");
            }
            (Err(_), _) => {
                self.marks.insert("an operation failed");
            }
        }
    }

    fn agent_acts(&mut self, action: agent::Action) {
        let is_here = |id: ConnectionId, world: &Self| world.is_up && id.0 == world.connection;
        match action {
            agent::Action::Send(id, message) => {
                if let (Message::LeaseRevoked { lease, .. }, true) = (&message, is_here(id, self)) {
                    self.revoked.insert((self.epoch, *lease));
                }
                if is_here(id, self) {
                    self.control_to_host.push_back(message);
                }
            }
            agent::Action::Complete(id, completion) if is_here(id, self) => {
                self.io_to_host.push_back(ToHost::Completion(completion));
            }
            agent::Action::Authenticate(id, ..) => {
                let window = Credit { operations: 100, bytes: 1000 };
                self.agent.admit(self.now, id, "tenant", Quota { sessions: 2, window }, [9; 16]);
            }
            agent::Action::Open { session, epoch, request, access, .. } => {
                let facts = Facts { length: 1 << 20, granularity: 1, version: "v".into() };
                self.agent.opened(self.now, (session, epoch, request), access, Ok(facts));
            }
            agent::Action::Start(key, descriptor) => {
                let truth = self.truth.get_mut(&key.operation).expect("submitted");
                truth.starts += 1;
                if truth.starts > 1 && !truth.is_read {
                    self.breaks("a write is carried out twice");
                }
                let connection = self.connection;
                let running = Running { descriptor, connection, is_touched: false, is_fed: false, is_aborted: false };
                if self.running.insert(key, running).is_some() {
                    self.breaks("an operation is started twice in one epoch");
                }
            }
            agent::Action::Abort(key) => {
                if let Some(running) = self.running.get_mut(&key) {
                    running.is_aborted = true;
                }
            }
            agent::Action::Feed(key, ..) => {
                if let Some(running) = self.running.get_mut(&key) {
                    running.is_fed = true;
                }
            }
            agent::Action::Close(_, agent::Closing::Broken(breach)) => {
                self.breaks(&format!("the agent finds that the host broke a rule: {breach}"));
            }
            agent::Action::Close(id, _) if is_here(id, self) => {
                self.is_seen_by_agent = true;
                self.cut();
            }
            _ => {}
        }
    }

    fn breaks(&mut self, promise: &str) {
        self.broken.get_or_insert_with(|| promise.to_owned());
    }

    /// What holds in every state.
    fn check(&mut self) {
        let (granted, used) = self.host.credit();
        if !used.is_within(granted) {
            self.breaks("a host used more credit than it had");
        }
        let (session, epoch) = self.host.session();
        if let Some((told, came, ended)) = self.agent.credit(session).filter(|_| self.is_up && epoch == self.epoch) {
            let window = self.plan.window;
            let is_bound =
                came.is_within(told) && ended.is_within(came) && told.operations - ended.operations <= window;
            if !is_bound {
                self.breaks("an agent's account of credit does not add up");
            }
        }
    }

    /// What holds when nothing more must happen.
    pub(super) fn at_rest(&self) -> Result<(), String> {
        let open: Vec<_> = self.truth.iter().filter(|(_, truth)| truth.end.is_none()).map(|(id, _)| *id).collect();
        if !open.is_empty() {
            return Err(format!("operations never end: {open:?}"));
        }
        if self.is_revoked && !self.back.contains(&self.leases[0]) {
            return Err("a lease that was revoked never comes back".to_owned());
        }
        let (session, _) = self.host.session();
        let (granted, used) = self.host.credit();
        let Some((told, came, ended)) = self.agent.credit(session) else {
            return Err("there is no session any more".to_owned());
        };
        let window = Credit { operations: self.plan.window, bytes: self.plan.window * u64::from(LEN) };
        if granted != told || used != came || came != ended || told != ended.plus(window) {
            return Err(format!("credit is lost: {granted:?} {used:?}, {told:?} {came:?} {ended:?}"));
        }
        let [_, _, operations, leases] = self.agent.gauges();
        if operations != 0 || leases + self.back.len() != 2 {
            return Err(format!("the agent keeps {operations} operations and {leases} leases"));
        }
        Ok(())
    }
}
