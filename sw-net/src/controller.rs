//! A controller behind TCP: its association, what it says of itself, and its I/O queues.
//!
//! ```text
//!   Controller::open ─► admin connection ─► Connect ─► CAP, VS, CC, CSTS ─► Identify ─► queues ─► namespaces
//!        ▲ attend: keep-alive, and a connection for each queue that a lane asks for
//! ```
//!
//! Base 2.x, "Fabrics Initialization"; order and limits as in `docs/nvme.md`.
//!
//! An association that is over stays over: [`Controller::gone`] tells why, and whoever wants it again opens it again. Its I/O
//! queues go with it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sw_engine::{Error, ErrorKind, Fault, Verb, seam::Wake};
use sw_nvme::{
    fabrics::{ANY_CONTROLLER, CONNECT_DATA_BYTES, CapsuleLimits, ConnectData, Nqn, PropertySize, QueueRequest},
    inquiry::{self, AdminQueue, Answer, Data, Known},
    namespace::Namespace,
    status::{RetryDelays, sct},
    tcp::{
        host::DEPTH_MAX,
        pdu::{ADMIN_CAPSULE_DATA_BYTES, Digests},
    },
    wire::{
        Command,
        feature::{Feature, QueueCounts},
        identify::IdentifyController,
        regs::{self, Cap, Cc, Csts, Shutdown, Version},
    },
};

use crate::{
    admin::{Admin, after},
    connection::{Connection, ConnectionConfig},
    socket::left,
};

/// Entries of the admin queue, as Linux has it.
const ADMIN_ENTRIES: u16 = 32;
/// Between two looks at CSTS.RDY.
const READY_STEP: Duration = Duration::from_millis(10);

/// Where a subsystem is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// A name or an address; one of IPv6 in brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The subsystem.
    pub subsystem: Nqn,
}

/// Who we are. The same for all associations of a host, or targets refuse them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// HOSTNQN.
    pub nqn: Nqn,
    /// HOSTID.
    pub id: [u8; 16],
}

/// How an association is made.
#[derive(Clone, Copy, Debug)]
pub struct ControllerConfig {
    /// KATO: the target gives us up after so long without a sign, and a sign is sent twice in it. Default 10 s.
    pub keep_alive: Duration,
    /// How long a connection, or an answer to an admin command, may take. Default 10 s.
    pub timeout: Duration,
    /// I/O queues to ask for, one per lane. Default 64.
    pub queues: u16,
    /// Commands of one I/O queue at a time, 1 to [`DEPTH_MAX`]; fewer where the controller has fewer. Default 128.
    pub depth: u16,
    /// Digests to ask for. Default none: TCP has a checksum, and a checksum of the data is asked for by operation.
    pub digests: Digests,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(10),
            timeout: Duration::from_secs(10),
            queues: 64,
            depth: 128,
            digests: Digests::default(),
        }
    }
}

/// What a controller said when it was opened.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Identify Controller.
    pub info: IdentifyController,
    /// CAP.
    pub cap: Cap,
    /// VS.
    pub version: Version,
    /// CNTLID of the association.
    pub id: u16,
    /// I/O queues that we may have.
    pub queues: u16,
    /// Commands of one I/O queue at a time.
    pub depth: u16,
    /// Bytes of a write that go in its capsule at most.
    pub capsule_data_bytes: u32,
    /// Digests that both ends use.
    pub digests: Digests,
}

/// An I/O queue with its connection. Dropping it closes the connection.
pub(crate) struct IoQueue {
    pub(crate) connection: Connection,
    qid: u16,
    of: Arc<Controller>,
}

impl Drop for IoQueue {
    fn drop(&mut self) {
        self.of.desk().qids.push_back(self.qid);
    }
}

/// An I/O queue that was asked for.
pub(crate) struct Ticket {
    is_ready: AtomicBool,
    answer: Mutex<Option<Result<IoQueue, Error>>>,
    wake: Arc<dyn Wake>,
}

impl Ticket {
    /// The answer, once there is one.
    pub(crate) fn take(&self) -> Option<Result<IoQueue, Error>> {
        if !self.is_ready.load(Ordering::Acquire) {
            return None;
        }
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn give(&self, answer: Result<IoQueue, Error>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        self.is_ready.store(true, Ordering::Release);
        self.wake.wake();
    }
}

/// What lanes want of whoever attends the controller.
struct Desk {
    wanted: VecDeque<Arc<Ticket>>,
    /// Free identifiers, the one that was used last at the end: a target may not have noticed yet that a queue is gone.
    qids: VecDeque<u16>,
    is_closed: bool,
}

/// See the module documentation.
pub struct Controller {
    name: String,
    address: Address,
    host: HostIdentity,
    config: ControllerConfig,
    facts: Facts,
    namespaces: Box<[Namespace]>,
    /// None once the association is over: its connection is closed, whatever still holds the controller.
    admin: Mutex<Option<Admin>>,
    desk: Mutex<Desk>,
    wanted: Condvar,
    gone: OnceLock<String>,
}

impl Controller {
    /// Makes an association. Blocks, three times [`ControllerConfig::timeout`] at most if nobody answers.
    ///
    /// # Errors
    /// `NotFound` for a name, `NoDevice` for a target that is not there or does not have the subsystem, `PermissionDenied` where the
    /// host is not allowed, `Unsupported` where authentication is demanded, `DeadlineExceeded`, `Protocol`.
    pub fn open(address: Address, host: HostIdentity, config: ControllerConfig) -> Result<Arc<Self>, Error> {
        let Address { host: to, port, subsystem } = &address;
        let name = format!("nvme+tcp://{to}:{port}/{subsystem}");
        let limits = ConnectionConfig {
            digests: config.digests,
            depth: ADMIN_ENTRIES - 1,
            capsule_data_bytes: ADMIN_CAPSULE_DATA_BYTES,
        };
        let connection = Connection::open(to, *port, limits, after(config.timeout))?;
        let digests = connection.digests;
        let mut admin = Admin::new(name.clone(), connection, config.timeout)?;
        let request = QueueRequest { qid: 0, entries: ADMIN_ENTRIES, keep_alive_ms: millis(config.keep_alive) };
        let data = ConnectData {
            host_id: host.id,
            controller: ANY_CONTROLLER,
            subsystem: subsystem.clone(),
            host: host.nqn.clone(),
        };
        let id = connect(&mut admin, request, &data)?;
        let (cap, version) = enable(&mut admin, config.timeout)?;
        let info = inquiry::identify_controller(&mut admin)?;
        let capsules = capsules(&admin)?;
        let queues = negotiate(&mut admin, config.queues)?;
        let namespaces =
            inquiry::namespaces(&mut admin, Known { info: &info, version, page_bytes_min: cap.page_bytes_min })?;
        let entries = u16::try_from(cap.queue_entries_max).unwrap_or(u16::MAX);
        let likes = if info.commands_max == 0 { u16::MAX } else { info.commands_max };
        let depth = config.depth.min(entries - 1).min(likes).clamp(1, DEPTH_MAX);
        let facts =
            Facts { info, cap, version, id, queues, depth, capsule_data_bytes: capsules.io_data_bytes, digests };
        Ok(Arc::new(Self {
            name,
            address,
            host,
            config,
            facts,
            namespaces: namespaces.into(),
            admin: Mutex::new(Some(admin)),
            desk: Mutex::new(Desk { wanted: VecDeque::new(), qids: (1..=queues).collect(), is_closed: false }),
            wanted: Condvar::new(),
            gone: OnceLock::new(),
        }))
    }

    /// Its address, as an address of an object has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it said.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Its active namespaces, as they were when it was opened.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// Why the association is over, if it is.
    pub fn gone(&self) -> Option<&str> {
        self.gone.get().map(String::as_str)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admin(&self) -> MutexGuard<'_, Option<Admin>> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is due and what lanes ask for, until the association is over: signs of life, connections for queues. One thread of
    /// whoever composes the engine runs it.
    pub fn attend(self: &Arc<Self>) {
        // Half of the time that the target waits; a sign that is late by as much again is still in time.
        let every = self.config.keep_alive / 2;
        let mut next = after(every);
        loop {
            let mut desk = self.desk();
            if desk.is_closed || self.gone().is_some() {
                return;
            }
            if let Some(ticket) = desk.wanted.pop_front() {
                drop(desk);
                ticket.give(self.connect_queue());
                continue;
            }
            if let Some(left) = left(next) {
                drop(self.wanted.wait_timeout(desk, left));
                continue;
            }
            drop(desk);
            let sign = |admin: &mut Admin| admin.expect("keep alive", Data::None, |_| Command::keep_alive());
            let told = self.admin().as_mut().map(sign);
            if let Some(Err(error)) = told {
                self.lose(&error.to_string());
            }
            next = after(every);
        }
    }

    /// The association is over.
    fn lose(&self, why: &str) {
        let _ = self.gone.set(why.to_owned());
        *self.admin() = None;
        for ticket in self.desk().wanted.drain(..) {
            ticket.give(Err(self.lost()));
        }
    }

    /// The error of whoever wants something of an association that is over.
    pub fn lost(&self) -> Error {
        Error::new(ErrorKind::NoDevice, Verb::Open)
            .at(self.name.clone())
            .detail(format!("the association with the target is over: {}", self.gone().unwrap_or("it was closed")))
            .remedy("open it again")
    }

    /// Asks for an I/O queue; `wake` is told when there is an answer.
    pub(crate) fn ask_for_queue(&self, wake: Arc<dyn Wake>) -> Arc<Ticket> {
        let ticket = Arc::new(Ticket { is_ready: AtomicBool::new(false), answer: Mutex::new(None), wake });
        let mut desk = self.desk();
        if desk.is_closed || self.gone().is_some() {
            drop(desk);
            ticket.give(Err(self.lost()));
            return ticket;
        }
        desk.wanted.push_back(Arc::clone(&ticket));
        drop(desk);
        self.wanted.notify_one();
        ticket
    }

    fn connect_queue(self: &Arc<Self>) -> Result<IoQueue, Error> {
        let qid = self.desk().qids.pop_front().ok_or_else(|| {
            Error::new(ErrorKind::ResourceLimit, Verb::Setup)
                .at(self.name.clone())
                .with_code(Fault::NO_QUEUE_LEFT)
                .detail(format!("all {} I/O queues of the controller are in use", self.facts.queues))
        })?;
        let made = self.connect_queue_as(qid);
        made.map(|connection| IoQueue { connection, qid, of: Arc::clone(self) })
            .inspect_err(|_| self.desk().qids.push_back(qid))
    }

    fn connect_queue_as(&self, qid: u16) -> Result<Connection, Error> {
        let Self { address: Address { host: to, port, subsystem }, host, config, facts, .. } = self;
        let limits = ConnectionConfig {
            digests: config.digests,
            depth: facts.depth,
            // Connect is larger than what a controller without data in capsules takes of a write.
            capsule_data_bytes: facts.capsule_data_bytes.max(CONNECT_DATA_BYTES as u32),
        };
        let connection = Connection::open(to, *port, limits, after(config.timeout))?;
        let mut first = Admin::new(self.name.clone(), connection, config.timeout)?;
        let request = QueueRequest { qid, entries: facts.depth + 1, keep_alive_ms: 0 };
        let data = ConnectData {
            host_id: host.id,
            controller: facts.id,
            subsystem: subsystem.clone(),
            host: host.nqn.clone(),
        };
        connect(&mut first, request, &data)?;
        let mut connection = first.into_connection();
        connection.queue.set_capsule_data_bytes(facts.capsule_data_bytes);
        Ok(connection)
    }

    /// Ends the association in good order. I/O queues that are in use end when their lanes see it.
    pub fn shut_down(&self) {
        self.desk().is_closed = true;
        self.wanted.notify_all();
        if let Some(admin) = self.admin().as_mut()
            && let Ok(cc) = admin.property(regs::CC, PropertySize::Four)
        {
            let cc = Cc::from_raw(u32::try_from(cc).unwrap_or(0)).shutdown(Shutdown::Normal);
            // The target ends the association by itself when the connection goes.
            let _ = admin.run(Data::None, |_| Command::property_set(regs::CC, cc.raw()));
        }
        self.lose("it was closed");
    }
}

fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

/// Connect; gives CNTLID.
fn connect(admin: &mut Admin, request: QueueRequest, data: &ConnectData) -> Result<u16, Error> {
    admin.fill_page(&data.encode());
    let answer = admin.run(Data::Out(CONNECT_DATA_BYTES), |_| Command::connect(request))?;
    if !answer.status.is_success() {
        return Err(refused(admin, answer, data));
    }
    // AUTHREQ: bits 17 and 18, which are ASCR and ATR.
    if answer.dw0 >> 17 & 3 != 0 {
        return Err(admin
            .error(ErrorKind::Unsupported, "the subsystem demands authentication, which is not built in yet")
            .remedy("allow the host without a key, or use another subsystem"));
    }
    Ok(u16::try_from(answer.dw0 & 0xFFFF).unwrap_or(0))
}

/// Why Connect was refused (Base, "Connect Command – Status").
fn refused(admin: &Admin, answer: Answer, data: &ConnectData) -> Error {
    let Answer { status, dw0 } = answer;
    let told = |kind, text: String, remedy: String| {
        admin.error(kind, format!("{text} ({status})")).with_code(i32::from(status.code())).remedy(remedy)
    };
    match (status.sct(), status.sc()) {
        (sct::COMMAND, 0x84) => told(
            ErrorKind::PermissionDenied,
            "the subsystem does not let this host in".into(),
            format!("allow the host {} there", data.host),
        ),
        // IATTR in bit 16: the data; IPO in the low half: SUBNQN at 256, HOSTNQN at 512.
        (sct::COMMAND, 0x82) if dw0 & 0x1_FFFF == 0x1_0100 => told(
            ErrorKind::NoDevice,
            "the target has no such subsystem".into(),
            "look at the name of the subsystem behind the address".into(),
        ),
        (sct::COMMAND, 0x82) => told(
            ErrorKind::Protocol,
            format!("the target does not take the parameters of the connection (at {dw0:#x})"),
            "see the target's log".into(),
        ),
        (sct::COMMAND, 0x81) => {
            told(ErrorKind::Busy, "the controller is busy".into(), "try again, or look who else uses it".into())
        }
        (sct::COMMAND, 0x91) => told(
            ErrorKind::Unsupported,
            "the subsystem demands authentication, which is not built in yet".into(),
            "allow the host without a key".into(),
        ),
        _ => {
            let fault = status.fault(&RetryDelays::default()).unwrap_or(Fault::new(ErrorKind::Protocol, 0));
            told(fault.kind, "the connection was refused".into(), "see the target's log".into())
        }
    }
}

/// Sets CC and waits for CSTS.RDY.
fn enable(admin: &mut Admin, timeout: Duration) -> Result<(Cap, Version), Error> {
    let raw = admin.property(regs::CAP, PropertySize::Eight)?;
    let cap = Cap::decode(raw).map_err(|cause| {
        admin.error(ErrorKind::Protocol, format!("the controller's data is not what it should be: {cause}"))
    })?;
    let version = Version(u32::try_from(admin.property(regs::VS, PropertySize::Four)?).unwrap_or(0));
    let sets = cap
        .nvm_command_set()
        .ok_or_else(|| admin.error(ErrorKind::Unsupported, "the controller has no NVM command set"))?;
    // Fabrics use no memory pages; the field is there all the same.
    let page = cap.page_code(cap.page_bytes_min).unwrap_or(0);
    let cc = Cc::enabled(page, sets);
    admin.expect("enable the controller", Data::None, |_| Command::property_set(regs::CC, cc.raw()))?;
    let until = after(cap.ready_limit(None).max(timeout));
    loop {
        let csts = Csts(u32::try_from(admin.property(regs::CSTS, PropertySize::Four)?).unwrap_or(0));
        if csts.is_ready() {
            return Ok((cap, version));
        }
        if csts.is_fatal() {
            return Err(
                admin.error(ErrorKind::Io, "the controller reports a fatal error (CSTS.CFS) instead of becoming ready")
            );
        }
        if left(until).is_none() {
            return Err(admin.error(ErrorKind::DeadlineExceeded, "the controller did not become ready (CSTS.RDY)"));
        }
        pause(READY_STEP);
    }
}

#[expect(clippy::disallowed_methods, reason = "a target has no interrupt for its readiness; bounded by its own limit")]
fn pause(span: Duration) {
    std::thread::sleep(span);
}

/// What the page that was just identified says of capsules.
fn capsules(admin: &Admin) -> Result<CapsuleLimits, Error> {
    let limits = CapsuleLimits::decode(&admin.page()).map_err(|cause| {
        admin.error(ErrorKind::Protocol, format!("the controller's data is not what it should be: {cause}"))
    })?;
    // Data in capsules begins right behind the command over TCP; another offset would be another transport's.
    Ok(if limits.data_offset_16 == 0 { limits } else { CapsuleLimits { io_data_bytes: 0, ..limits } })
}

/// Asks for `wanted` I/O queues; how many there are.
fn negotiate(admin: &mut Admin, wanted: u16) -> Result<u16, Error> {
    let wanted = u32::from(wanted.max(1));
    // Within 1 to 65,535.
    let dword11 = QueueCounts { submission: wanted, completion: wanted }.encode().unwrap_or(0);
    let feature = Feature::NumberOfQueues { dword11 };
    let answer = admin.expect("set number of queues", Data::None, |data| Command::set_features(&feature, data))?;
    let there = QueueCounts::decode(answer.dw0);
    Ok(u16::try_from(there.submission.min(there.completion).min(wanted)).unwrap_or(u16::MAX))
}

/// When something that began `since` is late.
pub(crate) fn is_late(since: Instant, limit: Duration, now: Instant) -> bool {
    now.saturating_duration_since(since) >= limit
}
