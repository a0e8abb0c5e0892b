//! A modelled RDMA fabric behind the seam of verbs: NICs in virtual time, with keys, bounds, leases and order as a NIC has them.
//!
//! ```text
//!   ModelFabric ─► devices ─► PD, CQ, QP, MR, listener (the seam)       nic   what the engines do, packet by packet
//!        │ step, advance: time                                         keys  what a key opens; what was touched
//!        └ pull_out, watch, plan: for a world
//! ```
//!
//! Nothing happens but in [`ModelFabric::step`] and [`ModelFabric::advance`]: whoever drives it decides when. The same seed, params and calls give the
//! same history. Only [`Qp::connect`], [`Listener::accept`] and [`Incoming::request`] block, for another thread; a world, which has one, connects by
//! [`ModelFabric::join`].
//!
//! What a model does is a hypothesis about hardware: retransmissions are modelled by what they would send ([`Touch::Changed`]), not as packets; there
//! is no congestion, no loss that is not the end of a connection, no SRQ, no atomics and no memory of accelerators.

mod keys;
mod nic;

use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::{
        Wake,
        verbs::{
            Ability, Access, Connected, Cq, Device, DeviceFacts, DmaBufRequest, Fabric, FabricKind, Gather, Gid,
            GidKind, Incoming, Listener, LocalKey, Mr, MrRequest, Pd, PostError, Presence, PrivateData, Qp, QpConfig,
            QpState, RecvWr, SendOp, SendWr, Sge, Wc, WcKind,
        },
    },
};
use sw_mem::RemoteAddr;

use crate::{agenda::Agenda, rng::Rng};

pub use keys::Touch;
use keys::{Entry, Held, Keys};
use nic::{CqCore, Event, Nics, QpCore};

/// Requests of one direction of a QP at most.
const WR_MAX: u32 = 1 << 12;
/// Entries of a CQ at most.
const CQE_MAX: u32 = 1 << 14;
/// Bytes of a message at most.
const MESSAGE_BYTES_MAX: u32 = 1 << 30;

/// What the network and its NICs are like. Times in nanoseconds, from and to, both included.
#[derive(Clone, Copy, Debug)]
pub struct FabricParams {
    /// Bytes of a packet, above zero.
    pub packet_bytes: u64,
    /// Between two packets of a QP.
    pub packet_ns: u64,
    /// A packet's way.
    pub delay_ns: (u64, u64),
    /// An answer's way, until the completion.
    pub ack_ns: (u64, u64),
    /// How long a peer that is not there is waited for.
    pub retry_ns: u64,
    /// Whether a send may invalidate an rkey of the receiver's.
    pub remote_invalidate: Ability,
    /// Pieces of memory of one send, 1 to [`Gather::PIECES_MAX`].
    pub sge_max: u8,
    /// Bytes of one registration at most.
    pub mr_bytes_max: u64,
    /// Registrations of a device at a time at most.
    pub registrations_max: usize,
    /// For how many devices, from the first on, the last two hold.
    pub limited: usize,
}

impl Default for FabricParams {
    fn default() -> Self {
        Self {
            packet_bytes: 32 << 10,
            packet_ns: 100,
            delay_ns: (500, 3000),
            ack_ns: (500, 5000),
            retry_ns: 2_000_000_000,
            remote_invalidate: Ability::Yes,
            sge_max: 4,
            mr_bytes_max: 1 << 32,
            registrations_max: 1 << 16,
            limited: usize::MAX,
        }
    }
}

/// A wish to connect.
struct Wish {
    from: u32,
    private: PrivateData,
    answer: Option<Connected>,
}

#[derive(Default)]
struct Manager {
    /// By port: wishes that nobody took yet.
    listeners: BTreeMap<u16, VecDeque<u64>>,
    wishes: BTreeMap<u64, Wish>,
    next_port: u16,
    next_wish: u64,
}

struct Inner {
    nics: Nics,
    manager: Manager,
    next_qpn: u32,
    next_cq: usize,
    next_pd: u64,
}

struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something and wakes whom it woke, without the lock.
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let done = act(&mut inner);
        let wakes = core::mem::take(&mut inner.nics.wakes);
        drop(inner);
        wakes.iter().for_each(|wake| wake.wake());
        done
    }

    /// Waits for another thread until `found` finds something.
    fn wait_for<T>(&self, timeout: Duration, mut found: impl FnMut(&mut Inner) -> Option<T>) -> Option<T> {
        let mut got = None;
        let inner = self.lock();
        let waited = self.changed.wait_timeout_while(inner, timeout, |inner| {
            got = found(inner);
            got.is_none()
        });
        drop(waited.unwrap_or_else(PoisonError::into_inner).0);
        got
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// The fabric did something.
    Fabric,
    /// What was [planned](ModelFabric::plan) under this number is due.
    Planned(u64),
}

/// See the module documentation.
#[derive(Clone)]
pub struct ModelFabric(Arc<Shared>);

impl ModelFabric {
    /// With so many devices, `model0` and on, each of which reaches itself and the others.
    pub fn new(seed: u64, params: FabricParams, devices: usize) -> Self {
        let nics = Nics {
            params,
            rng: Rng::split(seed, "fabric"),
            agenda: Agenda::new(),
            keys: Keys::default(),
            gone: vec![false; devices],
            qps: BTreeMap::new(),
            cqs: BTreeMap::new(),
            wakes: Vec::new(),
            overtakes: 0,
        };
        let inner = Inner { nics, manager: Manager::default(), next_qpn: 1, next_cq: 0, next_pd: 0 };
        Self(Arc::new(Shared { inner: Mutex::new(inner), changed: Condvar::new() }))
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        self.0.lock().nics.agenda.now()
    }

    /// Plans something of the driver's own, under a number of its own.
    pub fn plan(&self, delay_ns: u64, number: u64) {
        self.0.lock().nics.agenda.plan(delay_ns, Event::User(number));
    }

    /// The next event, if it is due by then; the clock goes to it. `None`: there is none, and the clock stays.
    pub fn step(&self, until_ns: u64) -> Option<Stepped> {
        self.0.with(|inner| {
            let event = inner.nics.agenda.take_until(until_ns)?;
            inner.nics.happen(event);
            Some(if let Event::User(number) = event { Stepped::Planned(number) } else { Stepped::Fabric })
        })
    }

    /// Lets so much time pass.
    pub fn advance(&self, by_ns: u64) {
        let until = self.now() + by_ns;
        while self.step(until).is_some() {}
        self.0.lock().nics.agenda.pass(until);
    }

    /// Connects two queue pairs that are not connected, at once.
    pub fn join(&self, a: u32, b: u32) {
        self.0.lock().link(a, b);
    }

    /// Pulls a device out under whoever uses it: it touches nothing any more, and nothing completes.
    pub fn pull_out(&self, device: usize) {
        self.0.with(|inner| inner.nics.pull(device));
    }

    /// Notes from now on what devices do to memory.
    pub fn watch(&self) {
        self.0.lock().nics.keys.watch();
    }

    /// What they did since.
    pub fn touches(&self) -> Vec<Touch> {
        self.0.lock().nics.keys.take_touches()
    }

    /// Messages that were received before a send that was there before them had completed.
    pub fn overtakes(&self) -> u64 {
        self.0.lock().nics.overtakes
    }

    /// Registrations and their bytes now: a gauge, which returns to zero.
    pub fn registered(&self) -> (usize, u64) {
        self.0.lock().nics.keys.count()
    }

    fn facts(&self, name: String) -> DeviceFacts {
        let params = self.0.lock().nics.params;
        DeviceFacts {
            name,
            kind: FabricKind::Model,
            wr_max: WR_MAX,
            cqe_max: CQE_MAX,
            message_bytes_max: MESSAGE_BYTES_MAX,
            mr_bytes_max: params.mr_bytes_max,
            rd_atomic_max: u8::try_from(nic::READS_MAX).unwrap_or(u8::MAX),
            sge_max: params.sge_max,
            remote_invalidate: params.remote_invalidate,
            dma_buf: Ability::No,
        }
    }
}

fn name_of(device: usize) -> String {
    format!("model{device}")
}

impl Fabric for ModelFabric {
    fn devices(&self) -> Result<Vec<DeviceFacts>, Error> {
        let gone = self.0.lock().nics.gone.clone();
        let here = gone.iter().enumerate().filter(|(_, gone)| !**gone);
        Ok(here.map(|(device, _)| self.facts(name_of(device))).collect())
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>, Error> {
        let count = self.0.lock().nics.gone.len();
        let device = (0..count).find(|device| name_of(*device) == name);
        let device = device.ok_or_else(|| {
            Error::new(ErrorKind::NoDevice, Verb::Open).at(name.to_owned()).detail("the model has no such device")
        })?;
        let facts = self.facts(name.to_owned());
        Ok(Arc::new(ModelDevice { fabric: Arc::clone(&self.0), device, facts }))
    }
}

impl Inner {
    fn link(&mut self, a: u32, b: u32) {
        for (own, peer) in [(a, b), (b, a)] {
            let wants = self.nics.qps.get(&peer).map_or(0, |qp| qp.wants_rnr_ns);
            if let Some(qp) = self.nics.qps.get_mut(&own) {
                (qp.peer, qp.phase, qp.rnr_ns) = (Some(peer), QpState::Rts, wants);
            }
        }
    }

    fn expect(&self, device: usize) -> Result<(), Error> {
        if !self.nics.is_gone(device) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NoDevice, Verb::Setup).at(name_of(device)).detail("the device is gone"))
    }
}

struct ModelDevice {
    fabric: Arc<Shared>,
    device: usize,
    facts: DeviceFacts,
}

impl Device for ModelDevice {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn presence(&self) -> Presence {
        if self.fabric.lock().nics.is_gone(self.device) { Presence::Gone } else { Presence::Here }
    }

    fn gids(&self) -> Result<Vec<Gid>, Error> {
        let raw = std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
        Ok(vec![Gid { index: 0, kind: GidKind::RoceV2, raw }])
    }

    fn alloc_pd(&self) -> Result<Arc<dyn Pd>, Error> {
        let mut inner = self.fabric.lock();
        inner.expect(self.device)?;
        inner.next_pd += 1;
        let (fabric, domain) = (Arc::clone(&self.fabric), (self.device, inner.next_pd));
        Ok(Arc::new(ModelPd { fabric, domain }))
    }

    fn create_cq(&self, entries: u32, wake: Arc<dyn Wake>) -> Result<Arc<dyn Cq>, Error> {
        if !(1..=CQE_MAX).contains(&entries) {
            let error = Error::new(ErrorKind::ApiMisuse, Verb::Setup).at("cq");
            return Err(error.detail(format!("{entries} entries; there may be 1 to {CQE_MAX}")));
        }
        let mut inner = self.fabric.lock();
        inner.expect(self.device)?;
        let number = inner.next_cq;
        inner.next_cq += 1;
        let (device, queue) = (self.device, VecDeque::new());
        inner.nics.cqs.insert(number, CqCore { device, entries, reserved: 0, queue, is_armed: false, wake });
        Ok(Arc::new(ModelCq { fabric: Arc::clone(&self.fabric), number, device }))
    }

    fn listen(&self, _at: &str) -> Result<Box<dyn Listener>, Error> {
        let mut inner = self.fabric.lock();
        inner.expect(self.device)?;
        let manager = &mut inner.manager;
        manager.next_port += 1;
        let port = manager.next_port;
        manager.listeners.insert(port, VecDeque::new());
        Ok(Box::new(ModelListener { fabric: Arc::clone(&self.fabric), port }))
    }
}

struct ModelPd {
    fabric: Arc<Shared>,
    domain: (usize, u64),
}

impl ModelPd {
    fn register(&self, memory: MrRequest<'_>, held: Held) -> Result<Box<dyn Mr>, Error> {
        let refuse = |kind, text: &str| Err(Error::new(kind, Verb::Setup).at("mr").detail(text.to_owned()));
        let MrRequest { region, at, len, access } = memory;
        if len == 0 || at.checked_add(len).is_none_or(|end| end > region.len().0) {
            return refuse(ErrorKind::OutOfRange, "the range is outside of the region, or empty");
        }
        if access.allows(Access::REMOTE_WRITE) && !access.allows(Access::LOCAL_WRITE) {
            return refuse(ErrorKind::ApiMisuse, "remote write needs local write beside it");
        }
        let Some(base) = region.base().host().and_then(|va| va.checked_add(sw_mem::ByteLen(at))) else {
            return refuse(ErrorKind::Unsupported, "the model reaches host memory only");
        };
        let mut inner = self.fabric.lock();
        inner.expect(self.domain.0)?;
        let params = inner.nics.params;
        let is_limited = self.domain.0 < params.limited;
        if is_limited && len > params.mr_bytes_max {
            return refuse(ErrorKind::ResourceLimit, "longer than the device registers at once");
        }
        if is_limited && inner.nics.keys.of_device(self.domain.0) >= params.registrations_max {
            return refuse(ErrorKind::ResourceLimit, "too much memory is registered");
        }
        let Nics { keys, rng, .. } = &mut inner.nics;
        let lkey = keys.register(self.domain, (held, base.raw(), at, len), access, rng);
        Ok(Box::new(ModelMr { fabric: Arc::clone(&self.fabric), lkey, len }))
    }

    /// The number of a CQ of this device's.
    fn own(&self, cq: &Arc<dyn Cq>) -> Option<usize> {
        let cq: Arc<ModelCq> = Arc::clone(cq).into_any().downcast().ok()?;
        (Arc::ptr_eq(&cq.fabric, &self.fabric) && cq.device == self.domain.0).then_some(cq.number)
    }
}

impl Pd for ModelPd {
    fn reg_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        self.register(memory, Held::Region(memory.region.clone()))
    }

    fn reg_bound_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        self.register(memory, Held::Bound(memory.region.downgrade()))
    }

    fn reg_dmabuf_mr(&self, _memory: DmaBufRequest) -> Result<Box<dyn Mr>, Error> {
        let error = Error::new(ErrorKind::Unsupported, Verb::Setup).at("mr");
        Err(error.detail("the model has no memory of accelerators").remedy("stage it in host memory"))
    }

    fn create_qp(&self, config: QpConfig) -> Result<Box<dyn Qp>, Error> {
        let refuse = |kind, text: &str| Err(Error::new(kind, Verb::Setup).at("qp").detail(text.to_owned()));
        let within = |wr: u32| (1..=WR_MAX).contains(&wr);
        if !within(config.send_wr_max) || !within(config.recv_wr_max) {
            return refuse(ErrorKind::ApiMisuse, "a queue has requests, and no more than the device takes");
        }
        let (Some(send), Some(recv)) = (self.own(&config.send_cq), self.own(&config.recv_cq)) else {
            return refuse(ErrorKind::ApiMisuse, "the completion queue is of another device");
        };
        let mut inner = self.fabric.lock();
        inner.expect(self.domain.0)?;
        let wants = [(send, config.send_wr_max), (recv, config.recv_wr_max)];
        for (at, (cq, requests)) in wants.iter().enumerate() {
            let Some(core) = inner.nics.cqs.get_mut(cq) else { continue };
            if core.reserved + requests > core.entries {
                for (cq, requests) in wants.iter().take(at) {
                    inner.nics.cqs.get_mut(cq).into_iter().for_each(|core| core.reserved -= requests);
                }
                return refuse(ErrorKind::ResourceLimit, "the completion queue has no room for all requests");
            }
            core.reserved += requests;
        }
        let number = inner.next_qpn;
        inner.next_qpn += 1;
        let rnr_ns = u64::try_from(config.rnr_wait.as_nanos()).unwrap_or(u64::MAX);
        inner.nics.qps.insert(number, QpCore::new(self.domain, (send, recv), rnr_ns));
        drop(inner);
        Ok(Box::new(ModelQp {
            fabric: Arc::clone(&self.fabric),
            number,
            wants,
            _cqs: (config.send_cq, config.recv_cq),
        }))
    }
}

struct ModelMr {
    fabric: Arc<Shared>,
    lkey: LocalKey,
    len: u64,
}

impl ModelMr {
    fn look<T>(&self, look: impl FnOnce(&Entry) -> Option<T>) -> Option<T> {
        self.fabric.lock().nics.keys.entry(self.lkey).and_then(look)
    }
}

impl Mr for ModelMr {
    fn len(&self) -> u64 {
        self.len
    }

    fn sge(&self, at: u64, len: u32) -> Option<Sge> {
        at.checked_add(len.into()).filter(|end| *end <= self.len)?;
        self.look(|entry| Some(Sge { addr: entry.base + at, len, lkey: self.lkey }))
    }

    fn remote(&self, at: u64) -> Option<RemoteAddr> {
        self.look(|entry| {
            (entry.is_remote() && at <= self.len).then(|| RemoteAddr::new(entry.base + at, self.lkey.0 | 1))
        })
    }

    fn deregister(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

impl Drop for ModelMr {
    fn drop(&mut self) {
        let removed = self.fabric.lock().nics.keys.remove(self.lkey);
        // Its memory goes without the lock.
        drop(removed);
    }
}

struct ModelCq {
    fabric: Arc<Shared>,
    number: usize,
    device: usize,
}

impl Cq for ModelCq {
    fn poll(&self, out: &mut Vec<Wc>) -> usize {
        let mut inner = self.fabric.lock();
        if inner.nics.is_gone(self.device) {
            return 0;
        }
        let Nics { cqs, qps, .. } = &mut inner.nics;
        let Some(core) = cqs.get_mut(&self.number) else { return 0 };
        let room = (out.capacity() - out.len()).min(core.queue.len());
        for wc in core.queue.drain(..room) {
            if let Some(qp) = qps.get_mut(&wc.qpn) {
                let open = if wc.kind == WcKind::Recv { &mut qp.receives_open } else { &mut qp.sends_open };
                *open = open.saturating_sub(1);
            }
            out.push(wc);
        }
        room
    }

    fn arm(&self) -> Result<(), Error> {
        let mut inner = self.fabric.lock();
        inner.expect(self.device)?;
        inner.nics.cqs.get_mut(&self.number).into_iter().for_each(|core| core.is_armed = true);
        Ok(())
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Drop for ModelCq {
    fn drop(&mut self) {
        let removed = self.fabric.lock().nics.cqs.remove(&self.number);
        drop(removed);
    }
}

struct ModelQp {
    fabric: Arc<Shared>,
    number: u32,
    /// What is reserved in its CQs.
    wants: [(usize, u32); 2],
    _cqs: (Arc<dyn Cq>, Arc<dyn Cq>),
}

impl ModelQp {
    fn expect_init(&self) -> Result<(), Error> {
        if self.state() == QpState::Init {
            return Ok(());
        }
        let error = Error::new(ErrorKind::ApiMisuse, Verb::Open).at(format!("qp {}", self.number));
        Err(error.detail("a queue pair is connected once"))
    }

    fn device(&self) -> usize {
        self.fabric.lock().nics.qps.get(&self.number).map_or(usize::MAX, |qp| qp.device)
    }
}

impl Qp for ModelQp {
    fn number(&self) -> u32 {
        self.number
    }

    fn state(&self) -> QpState {
        self.fabric.lock().nics.qps.get(&self.number).map_or(QpState::Error, |qp| qp.phase)
    }

    fn why(&self) -> Option<String> {
        self.fabric.lock().nics.qps.get(&self.number).and_then(|qp| qp.why).map(str::to_owned)
    }

    fn connect(&mut self, to: &str, private: &PrivateData, timeout: Duration) -> Result<Connected, Error> {
        self.expect_init()?;
        let failed = |kind, text: &str| Err(Error::new(kind, Verb::Open).at(to.to_owned()).detail(text.to_owned()));
        let port = to.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let mut inner = self.fabric.lock();
        let Manager { listeners, wishes, next_wish, .. } = &mut inner.manager;
        let Some(waiting) = port.and_then(|port| listeners.get_mut(&port)) else {
            return failed(ErrorKind::NoDevice, "nobody listens there");
        };
        let number = *next_wish;
        *next_wish += 1;
        waiting.push_back(number);
        wishes.insert(number, Wish { from: self.number, private: *private, answer: None });
        drop(inner);
        self.fabric.changed.notify_all();
        let answer = self
            .fabric
            .wait_for(timeout, |inner| inner.manager.wishes.get_mut(&number).and_then(|wish| wish.answer.take()));
        self.fabric.lock().manager.wishes.remove(&number);
        match answer {
            Some(connected) => {
                if matches!(connected, Connected::Rejected(_)) {
                    let refused = "the peer refused the connection";
                    self.fabric.with(|inner| inner.nics.not_connected(self.number, refused));
                }
                Ok(connected)
            }
            None => failed(ErrorKind::DeadlineExceeded, "nobody answered"),
        }
    }

    fn accept(&mut self, incoming: Box<dyn Incoming>, private: &PrivateData) -> Result<(), Error> {
        self.expect_init()?;
        let arrived: Box<Arrived> = incoming.into_any().downcast().map_err(|_: Box<dyn Any>| {
            Error::new(ErrorKind::ApiMisuse, Verb::Open).at("cm").detail("a connection of another fabric")
        })?;
        arrived.answer(Connected::Accepted(*private), Some(self.number));
        Ok(())
    }

    fn post_recv(&mut self, wr: RecvWr) -> Result<(), PostError> {
        let (device, most) = (self.device(), self.wants[1].1);
        self.fabric.with(|inner| {
            if inner.nics.is_gone(device) {
                return Err(PostError::Gone);
            }
            if inner.nics.qps.get(&self.number).is_some_and(|qp| qp.receives_open >= most) {
                return Err(PostError::Full);
            }
            inner.nics.post_recv(self.number, wr);
            Ok(())
        })
    }

    fn post_send(&mut self, wr: SendWr) -> Result<(), PostError> {
        let (device, most) = (self.device(), self.wants[0].1);
        self.fabric.with(|inner| {
            let Inner { nics, .. } = inner;
            let is_read = matches!(wr.op, SendOp::RdmaRead(_));
            let pieces_max = if is_read { 1 } else { nics.params.sge_max };
            if wr.memory.bytes() > MESSAGE_BYTES_MAX.into() {
                return Err(PostError::TooLong);
            }
            if wr.memory.pieces().len() > usize::from(pieces_max).min(Gather::PIECES_MAX) {
                return Err(PostError::Pieces);
            }
            if nics.is_gone(device) {
                return Err(PostError::Gone);
            }
            match nics.qps.get(&self.number) {
                Some(qp) if qp.phase == QpState::Init => return Err(PostError::NotConnected),
                Some(qp) if qp.sends_open >= most => return Err(PostError::Full),
                _ => {}
            }
            nics.post_send(self.number, wr);
            Ok(())
        })
    }

    fn to_error(&mut self) {
        self.fabric.with(|inner| inner.nics.end(self.number));
    }
}

impl Drop for ModelQp {
    fn drop(&mut self) {
        self.to_error();
        let mut inner = self.fabric.lock();
        inner.nics.qps.remove(&self.number);
        for (cq, requests) in self.wants {
            if let Some(core) = inner.nics.cqs.get_mut(&cq) {
                core.queue.retain(|wc| wc.qpn != self.number);
                core.reserved -= requests;
            }
        }
    }
}

struct ModelListener {
    fabric: Arc<Shared>,
    port: u16,
}

impl Listener for ModelListener {
    fn address(&self) -> String {
        format!("10.0.0.1:{}", self.port)
    }

    fn accept(&mut self, timeout: Duration) -> Result<Option<Box<dyn Incoming>>, Error> {
        let port = self.port;
        let found = self.fabric.wait_for(timeout, |inner| inner.manager.listeners.get_mut(&port)?.pop_front());
        Ok(found.map(|wish| {
            let arrived = Arrived { fabric: Arc::clone(&self.fabric), wish, is_answered: false };
            Box::new(arrived) as Box<dyn Incoming>
        }))
    }
}

impl Drop for ModelListener {
    fn drop(&mut self) {
        self.fabric.lock().manager.listeners.remove(&self.port);
    }
}

struct Arrived {
    fabric: Arc<Shared>,
    wish: u64,
    is_answered: bool,
}

impl Arrived {
    fn answer(mut self, answer: Connected, with: Option<u32>) {
        self.is_answered = true;
        let mut inner = self.fabric.lock();
        let from = inner.manager.wishes.get_mut(&self.wish).map(|wish| {
            wish.answer = Some(answer);
            wish.from
        });
        if let (Some(from), Some(with)) = (from, with) {
            inner.link(from, with);
        }
        drop(inner);
        self.fabric.changed.notify_all();
    }
}

impl Incoming for Arrived {
    fn request(&mut self, _timeout: Duration) -> Result<PrivateData, Error> {
        let inner = self.fabric.lock();
        let wish = inner.manager.wishes.get(&self.wish);
        wish.map(|wish| wish.private)
            .ok_or_else(|| Error::new(ErrorKind::Protocol, Verb::Open).at("cm").detail("it is gone"))
    }

    fn reject(self: Box<Self>, private: &PrivateData) {
        self.answer(Connected::Rejected(*private), None);
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        if let Some(wish) = self.fabric.lock().manager.wishes.get_mut(&self.wish) {
            wish.answer = Some(Connected::Rejected(PrivateData::empty()));
        }
        self.fabric.changed.notify_all();
    }
}
