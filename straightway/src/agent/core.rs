//! The state machine of the agent behind a lock, and what it asks for.

use std::{
    collections::{HashMap, VecDeque},
    io::Read,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use sw_agent::{
    agent::{Action, Agent, AgentConfig, ConnectionId, Ending, Event, Facts, Key, Quota, Touch},
    credits::Credit,
    failure::{Class, Failure, Origin, Outcome},
    id::{Epoch, ObjectId, SessionId},
    psk,
    wire::{
        ChecksumKind, Completion, Descriptor, Header, Kind, Message, Opcode, VERSION, VERSION_MIN,
        frame::control_frame,
        message::{Access, Hello},
    },
};
use sw_engine::ErrorKind;
use sw_mem::{DmaRegion, SharedSegment};

use super::{
    AgentCounters, TenantKeys,
    connection::{Out, Outgoing, Peer},
};
use crate::{Engine, Memory, Object, OpenObject, clock::Clock};

/// Operations and bytes under way in one session.
const WINDOW: Credit = Credit { operations: 256, bytes: 64 << 20 };
/// Connections and sessions at a time.
const CONNECTIONS_MAX: u32 = 1024;

/// An object that a host has open.
pub(super) enum Opened {
    Reading(Object),
    /// Its end so far; nothing once it is committed.
    Making(Mutex<(Option<OpenObject>, u64)>, Object),
}

/// An operation that was started.
pub(super) struct Running {
    pub(super) key: Key,
    pub(super) connection: ConnectionId,
    pub(super) descriptor: Descriptor,
    pub(super) object: Option<Arc<Opened>>,
    pub(super) segment: Option<DmaRegion>,
    /// Payload that came by frames.
    pub(super) payload: Mutex<Vec<u8>>,
    pub(super) aborted: AtomicBool,
}

/// What workers do.
pub(super) enum Job {
    Open((SessionId, Epoch, u32), Access, Box<str>, Box<str>),
    Ask(SessionId, Epoch, Message),
    Operation(Arc<Running>),
    /// Dropped where it may take a while.
    Close(Arc<Opened>),
}

struct Host {
    out: Arc<Outgoing>,
    peer: Peer,
    segment: Option<SharedSegment>,
    session: (SessionId, Epoch),
    /// The tenant that it says it is, and both nonces.
    claim: Option<(String, [u8; psk::BYTES], [u8; psk::BYTES])>,
}

struct Core {
    agent: Agent,
    hosts: HashMap<ConnectionId, Host>,
    objects: HashMap<(SessionId, ObjectId), Arc<Opened>>,
    running: HashMap<Key, Arc<Running>>,
    counters: AgentCounters,
}

pub(super) struct Shared {
    pub(super) engine: Engine,
    pub(super) allow: Vec<String>,
    keys: TenantKeys,
    clock: Clock,
    core: Mutex<Core>,
    jobs: Mutex<VecDeque<Job>>,
    news: Condvar,
    connections: AtomicU32,
    over: AtomicBool,
}

/// Random bytes of the kernel's.
fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).ok()?;
    Some(bytes)
}

fn config() -> AgentConfig {
    let boot = random().map_or(0, u64::from_le_bytes);
    AgentConfig {
        hello: Hello {
            version_min: VERSION_MIN,
            version_max: VERSION,
            features_critical: 0,
            features_optional: 0,
            node: random().unwrap_or_default(),
            boot,
            operations_max: 256,
            leases_max: 16,
            objects_max: 4096,
            payload_bytes_max: 1 << 20,
            silence_ms: 10_000,
            checksums: ChecksumKind::Crc32c.bit() | ChecksumKind::Crc64Nvme.bit(),
            software: concat!("straightway ", env!("CARGO_PKG_VERSION")).into(),
        },
        connections_max: CONNECTIONS_MAX,
        sessions_max: CONNECTIONS_MAX,
        window_max: WINDOW,
        patience: Duration::from_secs(10),
        linger: Duration::from_secs(30),
    }
}

impl Shared {
    pub(super) fn new(engine: Engine, allow: Vec<String>, keys: TenantKeys) -> Self {
        let core = Core {
            agent: Agent::new(config()),
            hosts: HashMap::new(),
            objects: HashMap::new(),
            running: HashMap::new(),
            counters: AgentCounters::default(),
        };
        Self {
            engine,
            allow,
            keys,
            clock: Clock::start(),
            core: Mutex::new(core),
            jobs: Mutex::default(),
            news: Condvar::new(),
            connections: AtomicU32::new(0),
            over: AtomicBool::new(false),
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(super) fn counters(&self) -> AgentCounters {
        let core = self.core();
        let segments = core.hosts.values().filter(|host| host.segment.is_some()).count() as u64;
        AgentCounters { gauges: core.agent.gauges(), segments, ..core.counters }
    }

    pub(super) fn connected(
        &self,
        out: Arc<Outgoing>,
        peer: Peer,
        segment: Option<SharedSegment>,
    ) -> Option<ConnectionId> {
        if self.is_over() {
            return None;
        }
        let id = ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed));
        let host = Host { out, peer, segment, session: Default::default(), claim: None };
        let mut core = self.core();
        core.counters.connections += 1;
        core.hosts.insert(id, host);
        core.agent.handle(self.clock.now(), id, Event::Connected);
        self.act(&mut core, &[]);
        Some(id)
    }

    pub(super) fn disconnected(&self, id: ConnectionId) {
        self.core().hosts.remove(&id);
    }

    pub(super) fn handle(&self, id: ConnectionId, event: Event, payload: &[u8]) {
        let mut core = self.core();
        core.agent.handle(self.clock.now(), id, event);
        self.act(&mut core, payload);
    }

    pub(super) fn time(&self) {
        let mut core = self.core();
        core.agent.handle_time(self.clock.now());
        self.act(&mut core, &[]);
    }

    pub(super) fn drain(&self, limit: Duration) {
        let now = self.clock.now();
        let mut core = self.core();
        core.agent.drain(now, now.after(limit), 0);
        self.act(&mut core, &[]);
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.news.notify_all();
        self.core().hosts.values().for_each(|host| host.out.close());
    }

    pub(super) fn touch(&self, key: Key, at: u32, len: u32) -> Option<Touch> {
        self.core().agent.touch(key, at, len)
    }

    /// Payload went out: a sign of life.
    pub(super) fn sent(&self, _id: ConnectionId) {}

    pub(super) fn ended(&self, key: Key, ending: Ending) {
        let mut core = self.core();
        let running = core.running.remove(&key);
        match (ending.status, running.map(|running| running.descriptor.opcode)) {
            (Ok(()), Some(Opcode::Read)) => {
                core.counters.reads.0 += 1;
                core.counters.reads.1 += u64::from(ending.bytes);
            }
            (Ok(()), Some(Opcode::Write)) => {
                core.counters.writes.0 += 1;
                core.counters.writes.1 += u64::from(ending.bytes);
            }
            (Err(_), _) => core.counters.failed += 1,
            _ => {}
        }
        core.agent.ended(self.clock.now(), key, ending);
        self.act(&mut core, &[]);
    }

    /// The bytes of a read go out by frames; it has ended then.
    pub(super) fn send_payload(&self, running: &Running, memory: Memory, ending: Ending) {
        let out = self.core().hosts.get(&running.connection).map(|host| host.out.clone());
        match out {
            Some(out) => out.send(Out::Payload(running.key, running.descriptor, memory, ending)),
            None => self.ended(running.key, Ending { status: Err(lost()), bytes: 0, ..ending }),
        }
    }

    pub(super) fn opened(
        &self,
        whose: (SessionId, Epoch, u32),
        access: Access,
        opened: Result<(Facts, Arc<Opened>), (Failure, Box<str>)>,
    ) {
        let (told, object) = match opened {
            Ok((facts, object)) => (Ok(facts), Some(object)),
            Err(why) => (Err(why), None),
        };
        let mut core = self.core();
        core.counters.failed += u64::from(object.is_none());
        let id = core.agent.opened(self.clock.now(), whose, access, told);
        match (id, object) {
            (Some(id), Some(object)) => drop(core.objects.insert((whose.0, id), object)),
            (None, Some(object)) => self.push(Job::Close(object)),
            (_, None) => {}
        }
        self.act(&mut core, &[]);
    }

    pub(super) fn answer(&self, whose: (SessionId, Epoch, u32), answer: Result<Message, (Failure, Box<str>)>) {
        let mut core = self.core();
        core.counters.failed += u64::from(answer.is_err());
        core.agent.answer(self.clock.now(), whose, answer);
        self.act(&mut core, &[]);
    }

    fn push(&self, job: Job) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push_back(job);
        self.news.notify_one();
    }

    /// The next job; nothing once it is over. Bounded by credit and by requests.
    pub(super) fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match jobs.pop_front() {
                Some(job) => return Some(job),
                None if self.is_over() => return None,
                None => jobs = self.news.wait(jobs).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Does what the state machine wants.
    fn act(&self, core: &mut Core, payload: &[u8]) {
        while let Some(action) = core.agent.poll_action() {
            match action {
                Action::Send(id, message) => send(core, id, &message),
                Action::Complete(id, completion) => complete(core, id, &completion),
                Action::Authenticate(id, kind, evidence) => self.authenticate(core, id, kind, &evidence),
                Action::Open { session, epoch, request, access, uri, version } => {
                    self.push(Job::Open((session, epoch, request), access, uri, version));
                }
                Action::Ask(session, epoch, question) => self.push(Job::Ask(session, epoch, question)),
                Action::CloseObject(session, object) => {
                    if let Some(object) = core.objects.remove(&(session, object)) {
                        self.push(Job::Close(object));
                    }
                }
                Action::Start(key, descriptor) => self.start(core, key, descriptor),
                Action::Abort(key) => self.abort(core, key),
                Action::Feed(key, at, len) => self.feed(core, key, (at, len), payload),
                Action::SessionGone(_) => {}
                Action::Close(id, _) => {
                    if let Some(host) = core.hosts.get(&id) {
                        host.out.close();
                    }
                }
                _ => {}
            }
        }
    }

    fn start(&self, core: &mut Core, key: Key, descriptor: Descriptor) {
        let of_session = core.hosts.iter().find(|(_, host)| host.session == (key.session, key.epoch));
        let connection = of_session.map_or(ConnectionId(u32::MAX), |(id, _)| *id);
        let segment = of_session.and_then(|(_, host)| Some(host.segment.as_ref()?.region().clone()));
        let object = core.objects.get(&(key.session, descriptor.object)).cloned();
        let waits = descriptor.opcode == Opcode::Write && segment.is_none();
        let running = Running {
            key,
            connection,
            descriptor,
            object,
            segment,
            payload: Mutex::default(),
            aborted: AtomicBool::new(false),
        };
        let running = Arc::new(running);
        core.running.insert(key, running.clone());
        if !waits {
            self.push(Job::Operation(running));
        }
    }

    fn abort(&self, core: &mut Core, key: Key) {
        let Some(running) = core.running.get(&key) else { return };
        running.aborted.store(true, Ordering::Release);
        let came = running.payload.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        let waits = running.descriptor.opcode == Opcode::Write && running.segment.is_none();
        if waits && came < u64::from(running.descriptor.length) {
            // It waits for payload that does not come any more.
            core.running.remove(&key);
            let (status, outcome) = (Err(Failure::caller(ErrorKind::Cancelled)), Outcome::NotApplied);
            let ending = Ending { status, outcome, bytes: 0, checksum: 0, path: Default::default() };
            core.agent.ended(self.clock.now(), key, ending);
        }
    }

    fn feed(&self, core: &Core, key: Key, (at, len): (u32, u32), payload: &[u8]) {
        let Some(running) = core.running.get(&key) else { return };
        let mut whole = running.payload.lock().unwrap_or_else(PoisonError::into_inner);
        // In their order, as the state machine has seen to.
        whole.extend_from_slice(payload.get(..sw_mem::index(u64::from(len))).unwrap_or(payload));
        if at + len == running.descriptor.length {
            self.push(Job::Operation(running.clone()));
        }
    }

    fn authenticate(&self, core: &mut Core, id: ConnectionId, kind: u16, evidence: &[u8]) {
        let now = self.clock.now();
        let (Some(host), Some(key)) = (core.hosts.get_mut(&id), random()) else { return };
        let quota = Quota { sessions: CONNECTIONS_MAX, window: Credit { operations: 1 << 20, bytes: 1 << 40 } };
        let us = rustix::process::geteuid().as_raw();
        match (kind, host.claim.take(), host.peer) {
            (0, _, Peer::User(uid)) if uid == us || uid == 0 => {
                return core.agent.admit(now, id, &format!("uid-{uid}"), quota, key);
            }
            (psk::KIND, None, _) => {
                let claim = psk::parse_first(evidence).zip(random());
                if let Some(((tenant, theirs), ours)) = claim {
                    // A tenant that is unknown is told as one with a wrong key: what proves nothing is sent, and taken from nobody.
                    let secret =
                        self.keys.get(tenant).cloned().or_else(|| random::<32>().map(Vec::from)).unwrap_or_default();
                    let proof = psk::proof(&secret, psk::Prover::Agent, tenant, (&theirs, &ours));
                    host.claim = Some((tenant.to_owned(), theirs, ours));
                    return core.agent.challenge(now, id, psk::KIND, &[ours, proof].concat());
                }
            }
            (psk::KIND, Some((tenant, theirs, ours)), _) => {
                let known = self.keys.get(&tenant).is_some_and(|secret| {
                    psk::is_proof(evidence, secret, psk::Prover::Host, &tenant, (&theirs, &ours))
                });
                if known {
                    return core.agent.admit(now, id, &tenant, quota, key);
                }
            }
            _ => {}
        }
        let failure = Failure::new(Class::Caller, Origin::Agent, ErrorKind::PermissionDenied);
        core.agent.refuse(now, id, failure, "the host is not let in");
    }
}

fn lost() -> Failure {
    Failure::new(Class::RetryNow, Origin::Carrier, ErrorKind::Closed)
}

fn send(core: &mut Core, id: ConnectionId, message: &Message) {
    let Some(host) = core.hosts.get_mut(&id) else { return };
    if let Message::Session { session, epoch, .. } = message {
        host.session = (*session, *epoch);
    }
    let mut frame = Vec::new();
    control_frame(message, host.session.0, host.session.1, &mut frame);
    host.out.send(Out::Bytes(frame));
}

fn complete(core: &Core, id: ConnectionId, completion: &Completion) {
    let Some(host) = core.hosts.get(&id) else { return };
    let (session, epoch) = host.session;
    let body = completion.encode();
    let length = u32::try_from(body.len()).unwrap_or(0);
    let mut frame = Vec::new();
    Header { kind: Kind::Completions, message_type: 0, flags: 0, length, session, epoch }.encode(&mut frame);
    frame.extend(body);
    host.out.send(Out::Bytes(frame));
}
