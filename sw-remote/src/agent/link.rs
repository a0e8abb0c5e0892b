//! The link to one agent: a task that owns the state machine of the host, connects it when something is wanted, and again when it is lost.
//!
//! ```text
//!   objects ──Ask: open, stat, list, close, operations──► drive ──► Host ──actions──► Connection
//!                       ▲ answers, each once                ▲ frames, time
//! ```

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sw_agent::{
    credits::Credit,
    failure::{Class, Failure, Origin},
    host::{Action, Closing, End, Event, Host, HostConfig, Want, Window},
    id::{LeaseId, ObjectId, OperationId},
    psk,
    wire::{
        ChecksumKind, Completion, Frame, Header, Kind, Message, Opcode, VERSION, VERSION_MIN,
        frame::{DATA_HEAD_BYTES, DataHead, control_frame},
        message::{Access, Hello, Way},
    },
};
use sw_engine::{ErrorKind, Time};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    AgentConfig,
    carrier::{Came, Connection, Place},
    room::{PLACE_BYTES, PLACES, Room, Slot},
};
use crate::random::random_u64;

/// Longest that connecting takes.
const CONNECT: Duration = Duration::from_secs(10);
/// A connection that was lost is tried again after so long.
const AGAIN: Duration = Duration::from_millis(100);
/// An agent has so long to stop an operation.
const GRACE: Duration = Duration::from_secs(10);
/// A lease lives so long without a word.
const LIFETIME_MS: u32 = 60_000;

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) failure: Failure,
    pub(super) text: Box<str>,
}

impl Refusal {
    fn of(class: Class, origin: Origin, kind: ErrorKind, text: &str) -> Self {
        Self { failure: Failure::new(class, origin, kind), text: text.into() }
    }
}

/// A question that a message answers.
pub(super) enum Question {
    Open(String, Access, String),
    Stat(String),
    List(String, String),
    Close(ObjectId),
}

/// What is to be done with an object.
pub(super) struct Work {
    pub(super) opcode: Opcode,
    pub(super) flags: u8,
    pub(super) checksum: u64,
    pub(super) object: ObjectId,
    /// Of the objects' [`Link::generation`].
    pub(super) generation: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
    /// Its memory; none for what has none.
    pub(super) slot: Option<Slot>,
}

/// How it ended, and its memory.
pub(super) struct Worked {
    pub(super) end: End,
    pub(super) slot: Option<Slot>,
}

enum Ask {
    Question(Question, Instant, oneshot::Sender<Result<Message, Refusal>>),
    Work(u64, Work, Instant, oneshot::Sender<Result<Worked, Refusal>>),
    Cancel(u64),
}

/// The link. Its task ends with it.
pub(super) struct Link {
    asks: mpsc::UnboundedSender<Ask>,
    tags: AtomicU64,
    generation: Arc<AtomicU64>,
    patience: Duration,
    pub(super) room: Room,
}

/// Stops an operation that nobody waits for any more.
struct Stop<'a>(&'a Link, u64);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        let _ = self.0.asks.send(Ask::Cancel(self.1));
    }
}

impl Link {
    pub(super) fn start(runtime: &tokio::runtime::Handle, place: Place, config: AgentConfig) -> std::io::Result<Self> {
        let (asks, asked) = mpsc::unbounded_channel();
        let (room, generation) = (Room::new()?, Arc::new(AtomicU64::new(0)));
        let patience = config.patience;
        let drive = Drive {
            way: match place {
                Place::Unix(_) => Way::SharedMemory { segment: 0, offset: 0 },
                Place::Tcp(_) => Way::Frames,
            },
            host: Host::new(host_config(&config)),
            place,
            config,
            room: room.clone(),
            generation: generation.clone(),
            start: Instant::now(),
            connection: None,
            lease: LeaseId::NONE,
            nonce: [0; psk::BYTES],
            waiting: VecDeque::new(),
            questions: HashMap::new(),
            works: HashMap::new(),
            tags: HashMap::new(),
            was_up: false,
            drains: false,
            again: None,
        };
        runtime.spawn(drive.run(asked));
        Ok(Self { asks, tags: AtomicU64::new(1), generation, patience, room })
    }

    /// Rises when what was opened before is gone.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) async fn ask(&self, question: Question) -> Result<Message, Refusal> {
        let (answer, answered) = oneshot::channel();
        let _ = self.asks.send(Ask::Question(question, Instant::now() + self.patience, answer));
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// *Cancel safety*: dropped, it is stopped at the agent, and its memory stays away until that is so.
    pub(super) async fn work(&self, work: Work) -> Result<Worked, Refusal> {
        let (answer, answered) = oneshot::channel();
        let tag = self.tags.fetch_add(1, Ordering::Relaxed);
        let _ = self.asks.send(Ask::Work(tag, work, Instant::now() + self.patience, answer));
        let _stop = Stop(self, tag);
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Closes an object without waiting for it.
    pub(super) fn close(&self, object: ObjectId, generation: u64) {
        if generation == self.generation() {
            let (answer, _) = oneshot::channel();
            let until = Instant::now() + self.patience;
            let _ = self.asks.send(Ask::Question(Question::Close(object), until, answer));
        }
    }
}

fn gone() -> Refusal {
    Refusal::of(Class::RetryNow, Origin::Host, ErrorKind::Closed, "the link to the agent has ended")
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    bytes.chunks_mut(8).for_each(|part| {
        let word = random_u64().to_le_bytes();
        part.iter_mut().zip(word).for_each(|(to, from)| *to = from);
    });
    bytes
}

fn host_config(config: &AgentConfig) -> HostConfig {
    let bytes = u64::from(PLACES) * u64::from(PLACE_BYTES);
    HostConfig {
        hello: Hello {
            version_min: VERSION_MIN,
            version_max: VERSION,
            features_critical: 0,
            features_optional: 0,
            node: random(),
            boot: random_u64(),
            operations_max: PLACES * 2,
            leases_max: 4,
            objects_max: 4096,
            payload_bytes_max: PLACE_BYTES,
            silence_ms: u32::try_from(config.silence.as_millis()).unwrap_or(u32::MAX).clamp(100, 60_000),
            checksums: ChecksumKind::Crc32c.bit() | ChecksumKind::Crc64Nvme.bit(),
            software: concat!("straightway ", env!("CARGO_PKG_VERSION")).into(),
        },
        window: Credit { operations: u64::from(PLACES) * 2, bytes },
        auth_kind: if config.key.is_some() { psk::KIND } else { 0 },
        patience: config.patience,
        grace: GRACE,
        lifetime_ms: LIFETIME_MS,
    }
}

/// An operation's tag, its memory, and who waits for it.
type UnderWay = (u64, Option<Slot>, oneshot::Sender<Result<Worked, Refusal>>);

/// What the task has.
struct Drive {
    place: Place,
    config: AgentConfig,
    way: Way,
    host: Host,
    room: Room,
    generation: Arc<AtomicU64>,
    start: Instant,
    connection: Option<Connection>,
    lease: LeaseId,
    nonce: [u8; psk::BYTES],
    /// Until there is a session.
    waiting: VecDeque<Ask>,
    questions: HashMap<u32, oneshot::Sender<Result<Message, Refusal>>>,
    works: HashMap<OperationId, UnderWay>,
    tags: HashMap<u64, OperationId>,
    was_up: bool,
    /// The agent leaves: whoever answers there next has a session with another host of ours (DRAIN, docs/agp.md).
    drains: bool,
    /// Not tried again before.
    again: Option<Instant>,
}

/// What the task woke for.
enum News {
    Asked(Option<Ask>),
    Came(Came),
    Time,
}

impl Drive {
    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Ask>) {
        loop {
            if self.connection.is_none() && self.has_need() {
                self.connect().await;
            }
            match self.news(&mut asked).await {
                News::Asked(None) => return,
                News::Asked(Some(ask)) => self.asked(ask),
                News::Came(came) => self.came(came),
                News::Time => self.handle(Event::Time),
            }
            self.give_up_late();
        }
    }

    async fn news(&mut self, asked: &mut mpsc::UnboundedReceiver<Ask>) -> News {
        let due = self.due();
        let frames = async {
            match &mut self.connection {
                Some(connection) => connection.frames.recv().await,
                None => std::future::pending().await,
            }
        };
        let asked = std::pin::pin!(asked.recv());
        let frames = std::pin::pin!(frames);
        let both = futures_util::future::select(asked, frames);
        match tokio::time::timeout_at(due, both).await {
            Err(_elapsed) => News::Time,
            Ok(futures_util::future::Either::Left((ask, _))) => News::Asked(ask),
            Ok(futures_util::future::Either::Right((came, _))) => News::Came(came.unwrap_or(Came::Lost)),
        }
    }

    fn now(&self) -> Time {
        Time::ZERO.after(self.start.elapsed())
    }

    fn due(&self) -> Instant {
        let hour = Instant::now() + Duration::from_secs(3600);
        let of_host =
            self.host.poll_timeout().map(|time| self.start + time.since(Time::ZERO).min(Duration::from_secs(1 << 30)));
        let of_waiting = self.waiting.iter().filter_map(Ask::until).min();
        let again = self.again.filter(|_| self.connection.is_none() && self.has_need());
        [of_host, of_waiting, again].into_iter().flatten().fold(hour, Instant::min)
    }

    fn has_need(&self) -> bool {
        !self.waiting.is_empty() || !self.works.is_empty()
    }

    async fn connect(&mut self) {
        if self.again.is_some_and(|again| Instant::now() < again) {
            return;
        }
        self.again = Some(Instant::now() + AGAIN);
        match Connection::open(&self.place, &self.room.segment(), CONNECT.min(self.config.patience)).await {
            Ok(connection) => {
                self.connection = Some(connection);
                self.handle(Event::Connected);
            }
            Err(error) => {
                // One that was there may come back; one that never was is told at once.
                if !self.was_up {
                    let kind = match error.kind() {
                        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                        std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                        std::io::ErrorKind::TimedOut => ErrorKind::DeadlineExceeded,
                        _ => ErrorKind::Io,
                    };
                    let text = format!("no agent answers there: {error}");
                    self.fail_all(&Refusal::of(Class::RetryNow, Origin::Carrier, kind, &text));
                }
            }
        }
    }

    fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Cancel(tag) => {
                if let Some(id) = self.tags.remove(&tag) {
                    self.host.cancel(self.now(), id);
                    self.act();
                }
                self.waiting.retain(|ask| !matches!(ask, Ask::Work(other, ..) if *other == tag));
            }
            ask if self.host.is_up() => {
                self.take(ask);
                self.act();
            }
            // What it would close is gone with its session, or is when that is over: nobody connects for it.
            Ask::Question(Question::Close(_), ..) => {}
            ask => self.waiting.push_back(ask),
        }
    }

    /// Hands a question or an operation to the host.
    fn take(&mut self, ask: Ask) {
        let now = self.now();
        match ask {
            Ask::Question(question, _, answer) => {
                let asked = match &question {
                    Question::Open(uri, access, version) => self.host.open(now, uri, *access, version),
                    Question::Stat(uri) => self.host.stat(now, uri),
                    Question::List(uri, cursor) => self.host.list(now, uri, cursor, 1024),
                    Question::Close(object) => self.host.close_object(now, *object),
                };
                match asked {
                    Ok(request) => drop(self.questions.insert(request, answer)),
                    Err(refusal) => {
                        let _ = answer.send(Err(Refusal::of(Class::Caller, Origin::Host, refusal.kind, refusal.rule)));
                    }
                }
            }
            Ask::Work(tag, work, until, answer) => {
                if work.generation != self.generation.load(Ordering::Acquire) {
                    let _ = answer.send(Err(lost_object()));
                    return;
                }
                let want = Want {
                    opcode: work.opcode,
                    flags: work.flags,
                    checksum_kind: if work.slot.is_some() { ChecksumKind::Crc32c } else { ChecksumKind::None },
                    checksum: work.checksum,
                    lease: if work.slot.is_some() { self.lease } else { LeaseId::NONE },
                    region_offset: work.slot.as_ref().map_or(0, Slot::at),
                    object: work.object,
                    object_offset: work.offset,
                    length: work.length,
                    deadline: now.after(until.saturating_duration_since(Instant::now())),
                };
                match self.host.submit(now, want) {
                    Ok(id) => {
                        self.tags.insert(tag, id);
                        self.works.insert(id, (tag, work.slot, answer));
                    }
                    Err(refusal) => {
                        let _ = answer.send(Err(Refusal::of(Class::Caller, Origin::Host, refusal.kind, refusal.rule)));
                    }
                }
            }
            Ask::Cancel(_) => {}
        }
    }

    fn came(&mut self, came: Came) {
        match came {
            Came::Frame(frame, payload) => self.frame(frame, &payload),
            Came::Broken(breach) => {
                self.host.handle(self.now(), Event::Broken(breach));
                self.act();
            }
            Came::Lost => self.lost(),
        }
    }

    fn frame(&mut self, frame: Frame, payload: &[u8]) {
        let now = self.now();
        match frame {
            Frame::Control(message) => self.host.handle(now, Event::Message(message)),
            Frame::Unknown(_) => self.host.handle(now, Event::Time),
            Frame::Completions(completions) => {
                completions.into_iter().for_each(|one: Completion| self.host.handle(now, Event::Completion(one)));
            }
            Frame::Data(DataHead { operation, epoch, lease, offset }, _) => {
                let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                self.host.handle(now, Event::Data { operation, epoch, lease, offset, len });
                return self.act_with(payload);
            }
            Frame::Descriptors(_) => self.host.handle(now, Event::Message(Message::Goodbye { reason: 1 })),
        }
        self.act();
    }

    fn handle(&mut self, event: Event) {
        self.host.handle(self.now(), event);
        self.act();
    }

    /// The connection is gone. Other memory takes the place of what it was lent, so nothing of it touches what is read any more.
    fn lost(&mut self) {
        if self.connection.take().is_none() {
            return;
        }
        if self.drains {
            // What was not asked yet is asked of the next one.
            let waiting = std::mem::take(&mut self.waiting);
            self.reset(&gone());
            self.waiting = waiting;
            return;
        }
        self.host.handle(self.now(), Event::Disconnected);
        self.act();
        if self.room.renew().is_ok() {
            self.handle(Event::Quiet);
        } else {
            let text = "the system gives no memory for another connection to the agent";
            self.reset(&Refusal::of(Class::RetryNow, Origin::Host, ErrorKind::ResourceLimit, text));
        }
    }

    fn act(&mut self) {
        self.act_with(&[]);
    }

    fn act_with(&mut self, payload: &[u8]) {
        while let Some(action) = self.host.poll_action() {
            match action {
                Action::Send(message) => {
                    let ((session, epoch), mut frame) = (self.host.session(), Vec::new());
                    control_frame(&message, session, epoch, &mut frame);
                    self.send(frame);
                }
                Action::Submit(descriptor) => self.submit(&descriptor),
                Action::Land { offset, .. } => self.room.put(offset, payload),
                Action::Done(id, end) => {
                    if let Some((tag, slot, answer)) = self.works.remove(&id) {
                        self.tags.remove(&tag);
                        let _ = answer.send(Ok(Worked { end, slot }));
                    }
                }
                Action::Answer(request, answer) => {
                    if let Some(asker) = self.questions.remove(&request) {
                        let _ = asker.send(answer.map_err(|(failure, text)| Refusal { failure, text }));
                    }
                }
                Action::Up { .. } => self.up(),
                Action::ObjectsLost => drop(self.generation.fetch_add(1, Ordering::AcqRel)),
                Action::Draining => self.drains = true,
                Action::Authenticate(step, said) => self.authenticate(step, &said),
                Action::LeaseBack(lease, _) if lease == self.lease => self.lease = self.grant(),
                Action::Close(why) => return self.closed(why),
                _ => {}
            }
        }
    }

    fn grant(&mut self) -> LeaseId {
        let length = u64::from(PLACES) * u64::from(PLACE_BYTES);
        let window = Window { length, access: Access::ReadWrite, way: self.way };
        self.host.grant(self.now(), window).unwrap_or(LeaseId::NONE)
    }

    fn up(&mut self) {
        self.was_up = true;
        if self.lease == LeaseId::NONE {
            self.lease = self.grant();
        }
        for ask in std::mem::take(&mut self.waiting) {
            self.take(ask);
        }
    }

    fn send(&self, bytes: Vec<u8>) {
        if let Some(connection) = &self.connection {
            connection.send(bytes);
        }
    }

    /// A descriptor, and with frames the payload of a write behind it.
    fn submit(&self, descriptor: &sw_agent::wire::Descriptor) {
        let (session, epoch) = self.host.session();
        let head = |kind, length| Header { kind, message_type: 0, flags: 0, length, session, epoch };
        let mut out = Vec::new();
        head(Kind::Descriptors, 64).encode(&mut out);
        out.extend(descriptor.encode());
        if descriptor.opcode == Opcode::Write && self.way == Way::Frames {
            // A place is no longer than a frame may be.
            let payload = u32::try_from(DATA_HEAD_BYTES).unwrap_or(u32::MAX).saturating_add(descriptor.length);
            head(Kind::Data, payload).encode(&mut out);
            let (operation, lease, offset) = (descriptor.operation, descriptor.lease, descriptor.region_offset);
            DataHead { operation, epoch, lease, offset }.encode(&mut out);
            out.extend(self.room.get(offset, descriptor.length));
        }
        self.send(out);
    }

    fn authenticate(&mut self, step: u16, said: &[u8]) {
        let Some((tenant, key)) = self.config.key.clone() else { return };
        let now = self.now();
        if step == 0 {
            self.nonce = random();
            let _ = self.host.present(now, psk::KIND, &psk::first(&tenant, &self.nonce));
            return;
        }
        let known = psk::parse_challenge(said);
        let known = known
            .filter(|(nonce, proof)| psk::is_proof(proof, &key, psk::Prover::Agent, &tenant, (&self.nonce, nonce)));
        match known {
            Some((nonce, _)) => {
                let proof = psk::proof(&key, psk::Prover::Host, &tenant, (&self.nonce, &nonce));
                let _ = self.host.present(now, psk::KIND, &proof);
            }
            None => {
                let text = "who answers there does not know the key";
                self.reset(&Refusal::of(Class::Caller, Origin::Carrier, ErrorKind::PermissionDenied, text));
            }
        }
    }

    fn closed(&mut self, why: Closing) {
        match why {
            Closing::Refused(failure) if failure.class != Class::RetryNow || !self.was_up => {
                self.reset(&Refusal { failure, text: "the agent does not take this host".into() });
            }
            Closing::Goodbye => self.reset(&gone()),
            Closing::Broken(breach) if !self.was_up => {
                let text = format!("what answers there is no agent of this version: {breach}");
                self.reset(&Refusal::of(Class::Fatal, Origin::Carrier, ErrorKind::Protocol, &text));
            }
            Closing::Silent if !self.was_up => {
                let text = "what listens there does not answer as an agent";
                self.reset(&Refusal::of(Class::RetryNow, Origin::Carrier, ErrorKind::DeadlineExceeded, text));
            }
            _ => self.lost(),
        }
    }

    /// All that is under way has failed, and what comes next begins anew.
    fn reset(&mut self, why: &Refusal) {
        self.connection = None;
        self.fail_all(why);
        self.host = Host::new(host_config(&self.config));
        (self.lease, self.drains) = (LeaseId::NONE, false);
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.again = Some(Instant::now() + AGAIN);
        // What cannot be had here is told when the next connection is wanted.
        let _ = self.room.renew();
    }

    fn fail_all(&mut self, why: &Refusal) {
        for ask in std::mem::take(&mut self.waiting) {
            ask.fail(why);
        }
        self.questions.drain().for_each(|(_, asker)| drop(asker.send(Err(why.clone()))));
        self.works.drain().for_each(|(_, (_, _, asker))| drop(asker.send(Err(why.clone()))));
        self.tags.clear();
    }

    fn give_up_late(&mut self) {
        let now = Instant::now();
        if self.waiting.iter().all(|ask| ask.until().is_none_or(|until| now < until)) {
            return;
        }
        let late = Refusal::of(Class::Caller, Origin::Carrier, ErrorKind::DeadlineExceeded, "the agent is not there");
        for ask in std::mem::take(&mut self.waiting) {
            if ask.until().is_some_and(|until| now >= until) {
                ask.fail(&late);
            } else {
                self.waiting.push_back(ask);
            }
        }
    }
}

/// An object of a session that is over.
pub(super) fn lost_object() -> Refusal {
    Refusal::of(Class::RetryNow, Origin::Host, ErrorKind::Closed, "the session of the object is over")
}

impl Ask {
    fn until(&self) -> Option<Instant> {
        match self {
            Self::Question(_, until, _) | Self::Work(_, _, until, _) => Some(*until),
            Self::Cancel(_) => None,
        }
    }

    fn fail(self, why: &Refusal) {
        match self {
            Self::Question(_, _, answer) => drop(answer.send(Err(why.clone()))),
            Self::Work(_, _, _, answer) => drop(answer.send(Err(why.clone()))),
            Self::Cancel(_) => {}
        }
    }
}

const _: () = assert!(PLACE_BYTES <= sw_agent::limits::DATA_BYTES_MAX);
