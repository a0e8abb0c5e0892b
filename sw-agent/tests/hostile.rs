//! Either machine against an end that says what no good one does, in drawn orders: nothing panics, nothing is believed that was not checked.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sw_agent::agent::{self, Agent, AgentConfig, ConnectionId, Ending, Facts, Key, Quota};
use sw_agent::credits::Credit;
use sw_agent::failure::{Class, Failure, Origin, Outcome};
use sw_agent::host::{self, Host, HostConfig, Want, Window};
use sw_agent::id::{Epoch, LeaseId, ObjectId, OperationId, Position, SessionId};
use sw_agent::wire::message::{Access, Flag, Grant, Hello, RevokedFor, Way};
use sw_agent::wire::{ChecksumKind, Completion, Descriptor, Message, Opcode, Path};
use sw_engine::{ErrorKind, Time};

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn small(&mut self, below: u32) -> u32 {
        u32::try_from(self.roll(u64::from(below))).unwrap()
    }

    /// One of the first names of two slots, most of the time.
    fn known(&mut self) -> u32 {
        if self.roll(10) == 0 { self.id() } else { LeaseId::new(u16::try_from(self.roll(2)).unwrap(), 1).0 }
    }

    /// A name that is likely to be one that there is.
    fn id(&mut self) -> u32 {
        LeaseId::new(u16::try_from(self.roll(3)).unwrap(), u16::try_from(self.roll(4)).unwrap()).0
    }
}

fn hello(dice: &mut Dice) -> Hello {
    let mut hello = good_hello();
    match dice.roll(6) {
        0 => hello.version_max = 9,
        1 => (hello.version_min, hello.version_max) = (2, 3),
        2 => hello.features_critical = 4,
        _ => {}
    }
    hello
}

fn good_hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features_critical: 0,
        features_optional: 0,
        node: [0; 16],
        boot: 5,
        operations_max: 2,
        leases_max: 2,
        objects_max: 2,
        payload_bytes_max: 64,
        silence_ms: 1000,
        checksums: 1,
        software: Box::default(),
    }
}

fn credit(operations: u64) -> Credit {
    Credit { operations, bytes: operations * 64 }
}

fn way(dice: &mut Dice) -> Way {
    if dice.roll(2) == 0 { Way::Frames } else { Way::SharedMemory { segment: 0, offset: 0 } }
}

/// A message of either direction, most of them possible.
fn message(dice: &mut Dice) -> Message {
    let (session, epoch) = (SessionId(1), Epoch(1 + dice.small(2)));
    let (lease, position) = (LeaseId(dice.id()), Position(dice.small(4)));
    let (request, object) = (1 + dice.small(3), ObjectId(dice.id()));
    let (resumed, settled) = (Flag::from(dice.roll(3) == 0), Flag::Clear);
    let failure = Failure::new(Class::RetryNow, Origin::Agent, ErrorKind::Busy);
    let (uri, version): (Box<str>, Box<str>) = ("file:///x".into(), Box::default());
    match dice.roll(20) {
        0 => Message::Hello(hello(dice)),
        1 => Message::Welcome(hello(dice)),
        2 => Message::Auth { kind: 0, step: 0, evidence: Box::default() },
        3 => Message::Admitted { tenant: "t".into() },
        4 => Message::SessionOpen {
            session,
            epoch,
            boot: 5,
            key: [u8::try_from(dice.roll(2)).unwrap(); 16],
            credit: credit(2),
        },
        5 => Message::Session { session, epoch, key: [0; 16], credit: credit(2), linger_ms: 9, resumed, settled },
        6 => Message::LeaseGrant(Grant {
            lease,
            access: Access::ReadWrite,
            way: way(dice),
            length: 64,
            lifetime_ms: 1000,
        }),
        7 => Message::LeaseHeld { lease },
        8 => Message::LeaseRenew { lease, lifetime_ms: 1000 },
        9 => Message::LeaseRevoke { lease, position },
        10 => Message::LeaseRevoked { lease, reason: RevokedFor::Expired },
        11 => Message::Credits(credit(dice.roll(5))),
        12 => Message::Open { request, access: Access::ReadWrite, uri, version },
        13 => Message::Opened { request, object, length: 100, granularity: 1, version },
        14 => Message::Close { request, object },
        15 => Message::Closed { request },
        16 => Message::Cancel { operation: OperationId(dice.id()), position },
        17 => Message::Drain { reason: 0, deadline_ms: 500 },
        18 => Message::Goodbye { reason: 0 },
        _ => Message::Refused { request: request - 1, failure, text: Box::default() },
    }
}

#[derive(Default)]
struct Reached {
    sessions: u32,
    starts: u32,
    touches: u32,
    completions: u32,
    broken: u32,
}

/// What an agent must never do, whatever the host says.
struct AtAgent {
    agent: Agent,
    now: Time,
    running: BTreeMap<Key, Descriptor>,
    /// Leases that are granted and not told to be over, by connection.
    leases: BTreeMap<LeaseId, Grant>,
    reached: Reached,
}

impl AtAgent {
    fn new() -> Self {
        let config = AgentConfig {
            hello: good_hello(),
            connections_max: 3,
            sessions_max: 2,
            window_max: credit(2),
            patience: Duration::from_secs(1),
            linger: Duration::from_secs(1),
        };
        let (running, leases) = (BTreeMap::new(), BTreeMap::new());
        Self { agent: Agent::new(config), now: Time::ZERO, running, leases, reached: Reached::default() }
    }

    fn act(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            match action {
                agent::Action::Authenticate(id, ..) => {
                    self.agent.admit(self.now, id, "t", Quota { sessions: 1, window: credit(2) }, [1; 16]);
                }
                agent::Action::Open { session, epoch, request, access, .. } => {
                    let facts = Facts { length: 100, granularity: 1, version: Box::default() };
                    self.agent.opened(self.now, (session, epoch, request), access, Ok(facts));
                }
                agent::Action::Start(key, descriptor) => {
                    self.reached.starts += 1;
                    let free = self.running.insert(key, descriptor).is_none();
                    assert!(free, "an operation is started twice");
                    assert!(
                        self.running.keys().filter(|other| other.epoch == key.epoch).count() <= 2,
                        "more than the window"
                    );
                }
                agent::Action::Send(_, Message::Session { .. }) => {
                    self.reached.sessions += 1;
                    self.leases.clear();
                    assert!(self.running.is_empty(), "a session is attached while operations of it run");
                }
                agent::Action::Send(_, Message::LeaseRevoked { lease, .. }) => {
                    self.leases.remove(&lease);
                    let is_used = self.running.values().any(|descriptor| descriptor.lease == lease);
                    assert!(!is_used, "a lease is told to be over that is used");
                }
                agent::Action::Complete(..) => self.reached.completions += 1,
                agent::Action::Close(_, why) => {
                    self.reached.broken += u32::from(matches!(why, agent::Closing::Broken(_)));
                    self.leases.clear();
                }
                _ => {}
            }
        }
        let [connections, sessions, operations, leases] = self.agent.gauges();
        assert!(connections <= 3 && sessions <= 1 && operations <= 2 && leases <= 2, "limits of one tenant");
        assert_eq!(operations, self.running.len());
    }

    fn backend(&mut self, dice: &mut Dice) {
        let Some((key, descriptor)) = self.running.iter().nth(dice.small(2) as usize).map(|(key, it)| (*key, *it))
        else {
            return;
        };
        if dice.roll(2) == 0 {
            let (at, len) = if dice.roll(3) == 0 { (dice.small(80), dice.small(80)) } else { (0, descriptor.length) };
            if let Some(touch) = self.agent.touch(key, at, len) {
                self.reached.touches += 1;
                let grant = self.leases.get(&touch.lease).expect("memory is touched under a lease that is granted");
                let end = touch.offset + u64::from(len);
                assert!(touch.lease == descriptor.lease && end <= grant.length, "and inside it");
                assert!(at + len <= descriptor.length, "and inside the operation");
            }
        } else {
            let status = if dice.roll(2) == 0 { Ok(()) } else { Err(Failure::caller(ErrorKind::Io)) };
            let ending = Ending {
                status,
                outcome: Outcome::Unknown,
                bytes: descriptor.length,
                checksum: 0,
                path: Path::default(),
            };
            self.running.remove(&key);
            self.agent.ended(self.now, key, ending);
        }
    }
}

fn descriptor(dice: &mut Dice, position: u32) -> Descriptor {
    let opcode = Opcode::of(1 + u8::try_from(dice.roll(5)).unwrap()).unwrap();
    let memory = opcode.has_memory();
    let most = if dice.roll(10) == 0 { 66 } else { 60 };
    let length = if memory || opcode == Opcode::Prefetch { 1 + dice.small(most) } else { 0 };
    Descriptor {
        opcode,
        flags: 0,
        checksum_kind: ChecksumKind::None,
        session: SessionId(1),
        epoch: Epoch(1 + u32::from(dice.roll(20) == 0)),
        operation: OperationId::new(u16::try_from(dice.roll(2)).unwrap(), u16::try_from(1 + position % 9).unwrap()),
        lease: if memory { LeaseId(dice.known()) } else { LeaseId::NONE },
        object: ObjectId(if dice.roll(10) == 0 { dice.id() } else { ObjectId::new(0, 1).0 }),
        region_offset: if memory { dice.roll(3) } else { 0 },
        object_offset: 0,
        length,
        deadline_us: 1_000_000,
        checksum: 0,
        position: Position(if dice.roll(20) == 0 { dice.small(5) } else { position }),
    }
}

/// Most begin as a good host would.
fn opening(dice: &mut Dice) -> Vec<Message> {
    let mut script = vec![Message::Hello(good_hello()), Message::Auth { kind: 0, step: 0, evidence: Box::default() }];
    script.push(Message::SessionOpen {
        session: SessionId(0),
        epoch: Epoch(0),
        boot: 0,
        key: [0; 16],
        credit: credit(2),
    });
    script.push(Message::Open {
        request: 1,
        access: Access::ReadWrite,
        uri: "file:///x".into(),
        version: Box::default(),
    });
    for slot in 0..2 {
        let (lease, way) = (LeaseId::new(slot, 1), way(dice));
        script.push(Message::LeaseGrant(Grant {
            lease,
            access: Access::ReadWrite,
            way,
            length: 64,
            lifetime_ms: 60_000,
        }));
    }
    script.truncate(script.len() - usize::try_from(dice.roll(2) * dice.roll(5)).unwrap());
    script
}

#[test]
fn a_hostile_host_gets_nothing() {
    let mut all = Reached::default();
    for seed in 0..3000 {
        let mut dice = Dice(seed);
        let mut world = AtAgent::new();
        let id = ConnectionId(1);
        let script = opening(&mut dice);
        let (mut script, mut position) = (script.into_iter(), 0);
        world.agent.handle(world.now, id, agent::Event::Connected);
        for _ in 0..60 {
            let event = match script.next() {
                Some(message) => agent::Event::Message(message),
                None if dice.roll(3) != 0 => {
                    let descriptor = descriptor(&mut dice, position);
                    position += 1;
                    agent::Event::Descriptor(descriptor)
                }
                None if dice.roll(6) == 0 => agent::Event::Data {
                    operation: OperationId(dice.id()),
                    epoch: Epoch(1 + dice.small(2)),
                    lease: LeaseId(dice.id()),
                    offset: dice.roll(3),
                    len: dice.small(70),
                },
                None if dice.roll(40) == 0 => agent::Event::Disconnected,
                None if dice.roll(40) == 0 => agent::Event::Connected,
                None => agent::Event::Message(message(&mut dice)),
            };
            if let agent::Event::Message(Message::LeaseGrant(grant)) = &event {
                // What is refused never counts: then the connection ends, and with it all leases.
                world.leases.entry(grant.lease).or_insert(*grant);
            }
            world.agent.handle(world.now, id, event);
            world.act();
            world.backend(&mut dice);
            world.act();
            if dice.roll(10) == 0 {
                world.now = world.now.after(Duration::from_millis(dice.roll(900)));
                world.agent.handle_time(world.now);
                world.act();
            }
        }
        all.sessions += world.reached.sessions;
        all.starts += world.reached.starts;
        all.touches += world.reached.touches;
        all.completions += world.reached.completions;
        all.broken += world.reached.broken;
    }
    let least = [all.sessions, all.starts, all.touches, all.completions, all.broken].into_iter().min();
    assert!(least > Some(100), "{} {} {} {} {}", all.sessions, all.starts, all.touches, all.completions, all.broken);
}

/// A host that has a session, two leases, an object and two operations, and hears anything.
#[test]
fn a_hostile_agent_gets_nothing() {
    let (mut done, mut landed, mut closed) = (0, 0, 0);
    for seed in 0..3000 {
        let mut dice = Dice(seed);
        let mut world = AtHost::new(&mut dice);
        for _ in 0..60 {
            let event = match dice.roll(10) {
                0 | 7 => {
                    let is_good = dice.roll(4) != 0;
                    host::Event::Data {
                        operation: OperationId::new(if is_good { 0 } else { 1 }, 1),
                        epoch: Epoch(1 + u32::from(dice.roll(8) == 0)),
                        lease: LeaseId::new(if is_good { 0 } else { 1 }, 1),
                        offset: dice.roll(3) * 16,
                        len: if is_good { 16 } else { dice.small(40) },
                    }
                }
                1 => host::Event::Completion(completion(&mut dice)),
                3 if dice.roll(5) == 0 => host::Event::Disconnected,
                3 | 4 => host::Event::Quiet,
                5 if dice.roll(4) == 0 => host::Event::Connected,
                6 => {
                    world.now = world.now.after(Duration::from_millis(dice.roll(400)));
                    host::Event::Time
                }
                _ if dice.roll(3) != 0 => host::Event::Message(Message::Heartbeat { count: 1 }),
                _ => host::Event::Message(message(&mut dice)),
            };
            world.host.handle(world.now, event);
            world.act();
        }
        // Whatever was said: silence ends all.
        world.now = world.now.after(Duration::from_secs(100));
        for event in [host::Event::Time, host::Event::Disconnected, host::Event::Quiet, host::Event::Time] {
            world.host.handle(world.now, event);
            world.act();
        }
        assert_eq!(world.host.operations_open(), 0, "all have ended (seed {seed})");
        done += world.done.len();
        landed += world.landed;
        closed += world.closed;
    }
    assert!(done > 3000 && landed > 100 && closed > 1000, "{done} {landed} {closed}");
}

fn completion(dice: &mut Dice) -> Completion {
    let failure = Failure::new(Class::Fatal, Origin::Storage, ErrorKind::Io);
    let status = if dice.roll(2) == 0 { Ok(()) } else { Err(failure) };
    Completion {
        operation: OperationId::new(u16::try_from(dice.roll(2)).unwrap(), 1),
        epoch: Epoch(1 + dice.small(2)),
        status,
        outcome: Outcome::of(u8::try_from(dice.roll(4)).unwrap()).unwrap(),
        path: Path::default(),
        bytes: if dice.roll(2) == 0 { 32 } else { dice.small(70) },
        checksum: 0,
    }
}

struct AtHost {
    host: Host,
    now: Time,
    submitted: BTreeMap<OperationId, (LeaseId, Opcode)>,
    done: BTreeSet<OperationId>,
    back: BTreeSet<LeaseId>,
    landed: usize,
    closed: usize,
}

impl AtHost {
    fn new(dice: &mut Dice) -> Self {
        let config = HostConfig {
            hello: good_hello(),
            window: credit(2),
            auth_kind: 0,
            patience: Duration::from_secs(1),
            grace: Duration::from_secs(1),
            lifetime_ms: 60_000,
        };
        let (now, host) = (Time::ZERO, Host::new(config));
        let (submitted, done, back) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut world = Self { host, now, submitted, done, back, landed: 0, closed: 0 };
        let length = 64;
        let leases = [0, 1]
            .map(|_| world.host.grant(now, Window { length, access: Access::ReadWrite, way: way(dice) }).unwrap());
        let (resumed, settled, key) = (Flag::Clear, Flag::Clear, [1; 16]);
        let session = Message::Session {
            session: SessionId(1),
            epoch: Epoch(1),
            key,
            credit: credit(2),
            linger_ms: 9,
            resumed,
            settled,
        };
        let held = [0, 1].map(|slot| Message::LeaseHeld { lease: LeaseId::new(slot, 1) });
        let object = ObjectId::new(0, 1);
        let opened = Message::Opened { request: 1, object, length: 100, granularity: 1, version: Box::default() };
        world.host.handle(now, host::Event::Connected);
        for message in
            [Message::Welcome(good_hello()), Message::Admitted { tenant: "t".into() }, session].into_iter().chain(held)
        {
            world.host.handle(now, host::Event::Message(message));
        }
        world.host.open(now, "file:///x", Access::ReadWrite, "").expect("a session");
        world.host.handle(now, host::Event::Message(opened));
        for (lease, opcode) in leases.into_iter().zip([Opcode::Read, Opcode::Write]) {
            let want = Want {
                opcode,
                flags: 0,
                checksum_kind: ChecksumKind::None,
                checksum: 0,
                lease,
                region_offset: 0,
                object,
                object_offset: 0,
                length: 32,
                deadline: Time::ZERO.after(Duration::from_secs(20)),
            };
            let id = world.host.submit(now, want).expect("all is there");
            world.submitted.insert(id, (lease, opcode));
        }
        world.act();
        world
    }

    fn act(&mut self) {
        while let Some(action) = self.host.poll_action() {
            match action {
                host::Action::Done(id, end) => {
                    assert!(self.submitted.contains_key(&id) && self.done.insert(id), "it ends once");
                    let is_applied = end.outcome == Outcome::Applied;
                    let is_write = self.submitted[&id].1 == Opcode::Write;
                    assert!(end.status.is_err() || (end.bytes == 32 && is_applied == is_write), "a success is whole");
                }
                host::Action::Land { lease, offset, len } => {
                    self.landed += 1;
                    let read = self.submitted.iter().find(|(_, (of, opcode))| *of == lease && *opcode == Opcode::Read);
                    let (id, _) = read.expect("only a read's memory is written");
                    assert!(!self.done.contains(id), "and only while it is under way");
                    assert!(offset + u64::from(len) <= 32, "and only inside it");
                }
                host::Action::LeaseBack(lease, _) => {
                    assert!(self.back.insert(lease), "it comes back once");
                    let users = self.submitted.iter().filter(|(_, (of, _))| *of == lease);
                    assert!(users.into_iter().all(|(id, _)| self.done.contains(id)), "and not while it is used");
                }
                host::Action::Close(_) => self.closed += 1,
                _ => {}
            }
        }
    }
}
