//! The subsystem: its namespaces and its controllers; Connect and properties.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sw_engine::Error;
use sw_nvme::{
    auth::Sequence,
    discovery::TransportType,
    fabrics::{ADMIN_ENTRIES_MIN, ANY_CONTROLLER, ConnectData, Nqn, PropertySize, QueueRequest},
    status::{Status, sct},
    wire::{WireError, ccr::Instance, regs},
};

use super::{
    CONNECTIONS_MAX, TargetConfig, Tells,
    access::{self, Told},
    backing::Disk,
    gate::Gate,
    resets::{Ending, Resets},
};
use crate::entropy::random_u32;

/// The largest CNTLID that may be given out (Base, "Controller Identifier").
const CONTROLLER_MAX: u16 = 0xFFEF;
/// KAS: KATO is rounded up to multiples of so many units of 100 milliseconds.
pub(super) const KEEP_ALIVE_UNITS: u16 = 1;
/// The same in milliseconds.
const KEEP_ALIVE_UNIT_MS: u32 = KEEP_ALIVE_UNITS as u32 * 100;
/// VS: 1.4, the last revision that asks for nothing of fabrics that this target lacks.
pub(super) const VERSION: u32 = 0x0001_0400;

/// What a wire has that hosts are told of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    /// TRTYPE, for the log page of discovery.
    pub(super) transport: TransportType,
    /// SGLS: which descriptors it has.
    pub(super) sgls: u32,
}

impl Offer {
    /// SGLS: supported, and with an offset into the capsule.
    const TCP: Self = Self { transport: TransportType::Tcp, sgls: 1 | 1 << 20 };
    /// SGLS: supported; keyed, which Linux hosts ask for; and with an offset into the capsule, without which they send no data in it.
    pub(super) const RDMA: Self = Self { transport: TransportType::Rdma, sgls: 1 | 1 << 2 | 1 << 20 };
}

/// Statuses that only a controller gives.
pub(super) mod says {
    use super::{Status, sct};
    /// Command ID Conflict.
    pub const CID_CONFLICT: Status = Status::new(sct::GENERIC, 0x03).with_dnr();
    /// Command Sequence Error.
    pub const SEQUENCE: Status = Status::new(sct::GENERIC, 0x0C).with_dnr();
    /// Data SGL Length Invalid.
    pub const DATA_LENGTH: Status = Status::new(sct::GENERIC, 0x0F).with_dnr();
    /// SGL Descriptor Type Invalid.
    pub const DESCRIPTOR: Status = Status::new(sct::GENERIC, 0x11).with_dnr();
    /// SGL Offset Invalid.
    pub const SGL_OFFSET: Status = Status::new(sct::GENERIC, 0x16).with_dnr();
    /// Namespace is Write Protected.
    pub const WRITE_PROTECTED: Status = Status::new(sct::GENERIC, 0x20).with_dnr();
    /// Transient Transport Error: a data digest did not fit.
    pub const TRANSPORT: Status = Status::new(sct::GENERIC, 0x22);
    /// Capacity Exceeded.
    pub const NO_SPACE: Status = Status::new(sct::GENERIC, 0x81);
    /// Feature Identifier Not Saveable.
    pub const NOT_SAVEABLE: Status = Status::new(sct::COMMAND, 0x0D).with_dnr();
    /// Connect Incompatible Format.
    pub const CONNECT_FORMAT: Status = Status::new(sct::COMMAND, 0x80).with_dnr();
    /// Connect Controller Busy.
    pub const CONNECT_BUSY: Status = Status::new(sct::COMMAND, 0x81);
    /// Connect Invalid Parameters.
    pub const CONNECT_PARAMETERS: Status = Status::new(sct::COMMAND, 0x82).with_dnr();
    /// Connect Invalid Host.
    pub const CONNECT_HOST: Status = Status::new(sct::COMMAND, 0x84).with_dnr();
    /// Authentication Required.
    pub const AUTHENTICATION: Status = Status::new(sct::COMMAND, 0x91).with_dnr();
    /// Invalid Queue Type.
    pub const QUEUE_TYPE: Status = Status::new(sct::COMMAND, 0x85).with_dnr();
    /// Invalid Field in Command.
    pub const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();
}

/// A status and the first eight bytes of the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: Status,
    pub(super) value: u64,
}

impl Answer {
    pub(super) const SUCCESS: Answer = Answer::of(Status::SUCCESS);

    pub(super) const fn of(status: Status) -> Self {
        Self { status, value: 0 }
    }

    pub(super) const fn value(value: u64) -> Self {
        Self { status: Status::SUCCESS, value }
    }
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self::of(status)
    }
}

/// Connect Invalid Parameters: which byte of the data is wrong (IPO, IATTR 1).
fn data_wrong(at: u64) -> Answer {
    Answer { status: says::CONNECT_PARAMETERS, value: at | 1 << 16 }
}

/// Connect Invalid Parameters: which byte of the command is wrong (IPO, IATTR 0).
fn command_wrong(at: u64) -> Answer {
    Answer { status: says::CONNECT_PARAMETERS, value: at }
}

/// What a controller is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// I/O.
    Io,
    /// The discovery service.
    Discovery,
}

/// A controller: one host's association.
pub(super) struct Controller {
    pub(super) role: Role,
    pub(super) host: Nqn,
    pub(super) host_id: [u8; 16],
    /// Whether the host is who it says: it showed it, or needs not.
    pub(super) is_known: bool,
    /// KATO in milliseconds, a multiple of [`KEEP_ALIVE_UNIT_MS`]; 0 is none.
    pub(super) keep_alive_ms: u32,
    /// Asynchronous Event Configuration.
    pub(super) event_config: u32,
    /// What it was told of access.
    pub(super) told: Told,
    /// The first byte of Host Behavior Support.
    pub(super) host_behavior: u8,
    /// This life of it.
    pub(super) instance: Instance,
    /// What it was asked to reset.
    pub(super) resets: Resets,
    cc: u32,
    csts: u32,
    /// The connection of the admin queue.
    connection: u64,
    /// The connection of each I/O queue.
    queues: BTreeMap<u16, u64>,
}

/// CC: EN.
const ENABLE: u32 = 1;
/// CSTS: RDY, CFS, SHST 10b.
const READY: u32 = 1;
const FATAL: u32 = 1 << 1;
const SHUTDOWN_DONE: u32 = 2 << 2;

impl Controller {
    /// Whether commands other than fabrics commands may come.
    pub(super) fn is_ready(&self) -> bool {
        self.cc & ENABLE != 0 && self.csts & READY != 0
    }

    /// Rounds KATO up to what the timer can do.
    pub(super) fn set_keep_alive(&mut self, milliseconds: u32) {
        let units = milliseconds.div_ceil(KEEP_ALIVE_UNIT_MS);
        self.keep_alive_ms = units.saturating_mul(KEEP_ALIVE_UNIT_MS);
    }

    /// Whether it has the host that another one has.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        (&self.host, self.host_id) == (&other.host, other.host_id)
    }

    /// The connections that end with it.
    fn into_connections(self) -> BTreeSet<u64> {
        self.queues.into_values().chain([self.connection]).collect()
    }

    /// Sets CC. Gives the connections that end with it: a disabled controller has no I/O queues (Base, "Controller Level Reset").
    fn set_cc(&mut self, cc: u32) -> BTreeSet<u64> {
        let before = core::mem::replace(&mut self.cc, cc);
        let mut ended = BTreeSet::new();
        if cc & ENABLE != 0 && before & ENABLE == 0 {
            // IOCQES, IOSQES, AMS, MPS, CSS: the only values there are here.
            let fits = cc >> 20 & 0xF == 4 && cc >> 16 & 0xF == 6 && cc >> 4 & 0x3FF == 0;
            self.csts = if fits { READY } else { FATAL };
        }
        if cc & ENABLE == 0 && before & ENABLE != 0 {
            self.csts = 0;
            ended = core::mem::take(&mut self.queues).into_values().collect();
        }
        if cc >> 14 & 3 != 0 {
            self.csts |= SHUTDOWN_DONE;
        }
        ended
    }
}

/// Numbers that connections add to.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) commands: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) terminations: AtomicU64,
    pub(super) panics: AtomicU64,
    pub(super) keep_alive_expired: AtomicU64,
    pub(super) cross_resets: AtomicU64,
    pub(super) authenticated: AtomicU64,
    pub(super) authentication_failed: AtomicU64,
    pub(super) tls_failed: AtomicU64,
}

/// Adds to a number of [`Tally`].
pub(super) fn add(to: &AtomicU64, amount: u64) {
    to.fetch_add(amount, Ordering::Relaxed);
}

/// A queue that Connect made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) controller: u16,
    pub(super) role: Role,
    pub(super) qid: u16,
    pub(super) entries: u16,
}

/// See the module documentation.
pub(super) struct Subsystem {
    pub(super) config: TargetConfig,
    pub(super) disks: Vec<Disk>,
    pub(super) access: access::Table,
    pub(super) tally: Tally,
    /// What the wire has.
    pub(super) offer: Offer,
    controllers: Mutex<Controllers>,
    /// Tells whoever waits for the end of a life.
    pub(super) left: Condvar,
    /// Numbers of challenges; none: the system gave no random bytes.
    sequence: Mutex<Option<Sequence>>,
}

#[derive(Default)]
pub(super) struct Controllers {
    pub(super) live: BTreeMap<u16, Controller>,
    /// Lives that are over, while commands of their connections may still be carried out.
    pub(super) ending: Vec<Ending>,
    last: u16,
    /// CIU that was given out last.
    last_uniquifier: u8,
}

impl Controllers {
    /// An identifier that is not in use, other than the last ones given out as long as that goes.
    fn free_id(&mut self) -> Option<u16> {
        for _ in 0..=2 * CONNECTIONS_MAX {
            self.last = if self.last >= CONTROLLER_MAX { 1 } else { self.last + 1 };
            let is_ending = self.ending.iter().any(|ending| ending.instance.controller == self.last);
            if !self.live.contains_key(&self.last) && !is_ending {
                return Some(self.last);
            }
        }
        None
    }

    /// A life of a controller that begins. Without random bytes of the system's it has no CIU, and cannot be named.
    fn next_life(&mut self, controller: u16) -> Instance {
        let random = random_u32().and_then(|low| Ok(u64::from(low) | u64::from(random_u32()?) << 32));
        self.last_uniquifier = self.last_uniquifier.checked_add(1).unwrap_or(1);
        let uniquifier = if random.is_ok() { self.last_uniquifier } else { 0 };
        Instance { controller, uniquifier, random: random.unwrap_or(0) }
    }

    /// A controller is taken out, as if its host had gone; gives its connections, which end now.
    pub(super) fn cut(&mut self, id: u16) -> Vec<u64> {
        let Some(controller) = self.live.remove(&id) else { return Vec::new() };
        let instance = controller.instance;
        let connections = controller.into_connections();
        self.ends(instance, connections.clone());
        connections.into_iter().collect()
    }

    /// A life is over, and its connections are about to end.
    pub(super) fn ends(&mut self, instance: Instance, connections: BTreeSet<u64>) {
        if connections.is_empty() {
            return self.ended(instance);
        }
        self.ending.push(Ending { instance, connections });
    }

    /// Nothing of a life is carried out any more.
    fn ended(&mut self, instance: Instance) {
        self.live.values_mut().for_each(|controller| controller.resets.ended(instance));
    }
}

impl Subsystem {
    pub(super) fn new(config: TargetConfig) -> Result<Self, Error> {
        let open = |backing| Disk::open(backing, config.block_bytes);
        let disks = config.namespaces.iter().map(open).collect::<Result<_, _>>()?;
        let sequence = random_u32().ok().map(Sequence::from_random).into();
        let (tally, controllers, left) = (Tally::default(), Mutex::default(), Condvar::new());
        let access = match config.tells {
            Tells::Nothing => access::Table::default(),
            Tells::Access => access::Table::new(1 + config.more.len(), config.namespaces.len()),
        };
        Ok(Self { config, disks, access, tally, offer: Offer::TCP, controllers, left, sequence })
    }

    /// A number for a challenge.
    pub(super) fn number(&self) -> Option<NonZeroU32> {
        self.sequence.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(Sequence::take)
    }

    /// What stands before a queue of `host`'s; `None`: it is not let in.
    fn gate(&self, role: Role, host: &Nqn) -> Option<Gate> {
        match (&self.config.authentication, role) {
            (Some(keys), Role::Io) => Gate::shut(keys, host, &self.config.subsystem),
            (None, _) | (_, Role::Discovery) => Some(Gate::Open),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Controllers> {
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Controllers that there are.
    pub(super) fn controllers(&self) -> u64 {
        self.lock().live.len() as u64
    }

    /// Does something with a controller; `None` if it is gone.
    pub(super) fn with<T>(&self, id: u16, what: impl FnOnce(&mut Controller) -> T) -> Option<T> {
        self.lock().live.get_mut(&id).map(what)
    }

    /// A connection ended, and carries nothing out any more. The controller ends with its admin queue: gives the connections of its I/O queues.
    pub(super) fn leave(&self, joined: &Joined, connection: u64) -> Vec<u64> {
        let mut controllers = self.lock();
        let mut also = Vec::new();
        match controllers.live.get_mut(&joined.controller) {
            Some(controller) if controller.connection == connection => {
                also = controllers.cut(joined.controller);
                also.retain(|one| *one != connection);
            }
            Some(controller) if controller.queues.get(&joined.qid) == Some(&connection) => {
                controller.queues.remove(&joined.qid);
            }
            _ => {}
        }
        let (over, ending) = core::mem::take(&mut controllers.ending)
            .into_iter()
            .map(|ending| ending.without(connection))
            .partition::<Vec<_>, _>(|ending| ending.connections.is_empty());
        controllers.ending = ending;
        over.into_iter().for_each(|ending| controllers.ended(ending.instance));
        self.left.notify_all();
        also
    }

    /// Property Set of CC; gives the connections that end with it, if the controller is there.
    pub(super) fn set_cc(&self, id: u16, cc: u32) -> Option<Vec<u64>> {
        let mut controllers = self.lock();
        let controller = controllers.live.get_mut(&id)?;
        let (was_enabled, instance) = (controller.cc & ENABLE != 0, controller.instance);
        let ended = controller.set_cc(cc);
        if was_enabled && cc & ENABLE == 0 {
            // What comes next is another life of it.
            let next = controllers.next_life(id);
            controllers.live.get_mut(&id)?.instance = next;
            controllers.ends(instance, ended.clone());
        }
        Some(ended.into_iter().collect())
    }

    /// Connect on a connection that has no queue yet: the queue, and what stands before it, whatever becomes of its controller meanwhile.
    pub(super) fn connect(
        &self,
        queue: QueueRequest,
        data: &[u8],
        (port, connection): (usize, u64),
    ) -> Result<(Joined, Gate), Answer> {
        let data = ConnectData::decode(data).map_err(|error| match error {
            WireError::Field { field: "SUBNQN", .. } => data_wrong(256),
            WireError::Field { field: "HOSTNQN", .. } => data_wrong(512),
            _ => Answer::of(says::DATA_LENGTH),
        })?;
        let role = match &data.subsystem {
            name if *name == self.config.subsystem => Role::Io,
            name if *name == Nqn::discovery() => Role::Discovery,
            _ => return Err(data_wrong(256)),
        };
        if data.host_id == [0; 16] {
            return Err(data_wrong(0));
        }
        if !self.config.hosts.is_empty() && !self.config.hosts.contains(&data.host) {
            return Err(Answer::of(says::CONNECT_HOST));
        }
        let least = if queue.qid == 0 { ADMIN_ENTRIES_MIN } else { 2 };
        if queue.entries < least || queue.entries > self.config.queue_entries {
            return Err(command_wrong(44));
        }
        let gate = self.gate(role, &data.host).ok_or(Answer::of(says::CONNECT_HOST))?;
        let joined = match queue.qid {
            0 => self.connect_admin(queue, data, role, (connection, self.access.changes(port))),
            _ => self.connect_io(queue, &data, role, connection),
        };
        Ok((joined?, gate))
    }

    fn connect_admin(
        &self,
        queue: QueueRequest,
        data: ConnectData,
        role: Role,
        (connection, told): (u64, u64),
    ) -> Result<Joined, Answer> {
        if data.controller != ANY_CONTROLLER {
            // The controllers are dynamic: nobody chooses one.
            return Err(data_wrong(16));
        }
        let mut controllers = self.lock();
        // A name has one identifier and an identifier one name, as Linux's host has it (`nvmf_host_add`): two hosts that both claim the
        // identifier would be one to whoever fences or reserves by it. Whoever does not know the key keeps nobody out.
        let is_mixed =
            |there: &Controller| there.is_known && (there.host == data.host) != (there.host_id == data.host_id);
        if controllers.live.values().any(is_mixed) {
            return Err(Answer::of(says::CONNECT_HOST));
        }
        let id = controllers.free_id().ok_or(Answer::of(says::CONNECT_BUSY))?;
        let instance = controllers.next_life(id);
        let mut controller = Controller {
            role,
            host: data.host,
            host_id: data.host_id,
            is_known: self.config.authentication.is_none(),
            keep_alive_ms: 0,
            event_config: 0,
            told: Told::Changes(told),
            host_behavior: 0,
            instance,
            resets: Resets::default(),
            cc: 0,
            csts: 0,
            connection,
            queues: BTreeMap::new(),
        };
        controller.set_keep_alive(queue.keep_alive_ms);
        controllers.live.insert(id, controller);
        Ok(Joined { controller: id, role, qid: 0, entries: queue.entries })
    }

    fn connect_io(
        &self,
        queue: QueueRequest,
        data: &ConnectData,
        role: Role,
        connection: u64,
    ) -> Result<Joined, Answer> {
        let mut controllers = self.lock();
        let controller = controllers.live.get_mut(&data.controller).ok_or(data_wrong(16))?;
        if controller.host != data.host {
            return Err(data_wrong(512));
        }
        if controller.host_id != data.host_id {
            return Err(data_wrong(0));
        }
        if controller.role != role {
            return Err(data_wrong(256));
        }
        if role == Role::Discovery || queue.qid > self.config.queues_max {
            return Err(command_wrong(42));
        }
        if !controller.is_ready() {
            return Err(Answer::of(says::SEQUENCE));
        }
        if controller.queues.contains_key(&queue.qid) {
            // Without DNR: a host that comes again may be faster than the end of its last connection.
            return Err(Answer::of(Status::INVALID_QUEUE_ID));
        }
        controller.queues.insert(queue.qid, connection);
        Ok(Joined { controller: data.controller, role, qid: queue.qid, entries: queue.entries })
    }

    /// Property Get.
    pub(super) fn property(&self, controller: &Controller, offset: u32, size: PropertySize) -> Answer {
        match (offset, size) {
            (regs::CAP, PropertySize::Eight) => Answer::value(self.cap()),
            (regs::VS, PropertySize::Four) => Answer::value(VERSION.into()),
            (regs::CC, PropertySize::Four) => Answer::value(controller.cc.into()),
            (regs::CSTS, PropertySize::Four) => Answer::value(controller.csts.into()),
            _ => Answer::of(says::INVALID_FIELD),
        }
    }

    /// CAP: MQES, CQR, TO of 7.5 seconds, the NVM command set, pages of 4 KiB.
    fn cap(&self) -> u64 {
        let mqes_z = u64::from(self.config.queue_entries) - 1;
        mqes_z | 1 << 16 | 15 << 24 | 1 << 37
    }

    /// The longest keep-alive of a controller; `None`: it has none, or is gone.
    pub(super) fn keep_alive(&self, id: u16) -> Option<Duration> {
        let milliseconds = self.with(id, |controller| controller.keep_alive_ms)?;
        (milliseconds > 0).then(|| Duration::from_millis(milliseconds.into()))
    }
}
