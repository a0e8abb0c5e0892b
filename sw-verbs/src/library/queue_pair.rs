//! Queue pairs over librdmacm: a QP is made when its address is resolved, since only then is its device known; receives that were posted before
//! are held until then.
//!
//! ```text
//!   create ─ receives are held ─► connect: address ─ route ─ QP, receives ─ connect ─► established ─► a thread hears of the end
//!                             └─► accept: the identifier that came ─ QP, receives ─ accept ─► established ─►
//! ```
// UNSAFETY: calls of the libraries with objects that they made.
#![expect(unsafe_code, reason = "calls libibverbs and librdmacm")]

use std::{
    any::Any,
    ffi::c_int,
    mem,
    net::{SocketAddr, ToSocketAddrs},
    ptr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::verbs::{
        Connected, Cq, Incoming, Listener, PostError, PrivateData, Qp, QpConfig, QpState, RecvWr, SendOp, SendWr, Sge,
        Wc, WcKind, WcStatus,
    },
};

use super::{
    fabric::{Domain, Fd, LOOK_EVERY, LibraryCq, Open, Opened, RECEIVE, failed},
    wire::{self, event},
};
use crate::emulated::{now, wait_readable};

/// What the connection manager may take for an address or a route, as Linux's and SPDK's hosts have it.
const RESOLVE_MS: c_int = 2000;
/// Connections that wait for a listener.
const BACKLOG: c_int = 64;
/// RNR NAK timer 0, which librdmacm sets: one retry takes so long at least (InfiniBand, "RNR NAK Retry Timer Field").
const RNR_STEP: Duration = Duration::from_millis(655);
/// `retry_count`: without an answer a request is sent so often again.
const RETRIES: u8 = 7;
/// Reads under way that are asked for, where the device has as many.
const READS: u8 = 16;

/// An event channel; destroyed when it goes, behind the identifiers on it.
struct Channel {
    raw: *mut wire::EventChannel,
    of: Arc<Opened>,
}

// SAFETY: librdmacm is thread-safe; events of a channel are taken by one thread at a time.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: ours; identifiers on it keep it.
        unsafe { (self.of.ops().destroy_event_channel)(self.raw) };
    }
}

/// An event, copied.
struct Told {
    kind: c_int,
    status: c_int,
    private: PrivateData,
    id: *mut wire::CmId,
}

impl Channel {
    fn new(of: &Arc<Opened>) -> Result<Arc<Self>, Error> {
        // SAFETY: no arguments.
        let raw = unsafe { (of.ops().create_event_channel)() };
        if raw.is_null() {
            Err(failed("rdma_create_event_channel"))
        } else {
            Ok(Arc::new(Self { raw, of: Arc::clone(of) }))
        }
    }

    /// The next event, or `None` when the time is over.
    fn next(&self, timeout: Duration) -> Result<Option<Told>, Error> {
        // SAFETY: a live channel.
        let fd = Fd(unsafe { (*self.raw).fd });
        match wait_readable(&fd, timeout) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(_) => return Err(failed("poll")),
        }
        let mut raw: *mut wire::CmEvent = ptr::null_mut();
        // SAFETY: a live channel with an event, and a live local.
        if unsafe { (self.of.ops().get_cm_event)(self.raw, &raw mut raw) } != 0 {
            return Err(failed("rdma_get_cm_event"));
        }
        // SAFETY: an event that is ours until it is acknowledged, below.
        let told = unsafe { &*raw };
        let (kind, status, id) = (told.event, told.status, told.id);
        let mut private = PrivateData::empty();
        if matches!(kind, event::CONNECT_REQUEST | event::ESTABLISHED | event::REJECTED) {
            // Of these events the parameters are those of a connection.
            let (data, len) = (told.param.private_data, usize::from(told.param.private_data_len));
            if !data.is_null() {
                // SAFETY: the event has as many bytes of private data as it says.
                let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len.min(PrivateData::BYTES_MAX)) };
                private = PrivateData::new(bytes).unwrap_or(private);
            }
        }
        // SAFETY: the event of above, once; nothing of it is kept.
        unsafe { (self.of.ops().ack_cm_event)(raw) };
        Ok(Some(Told { kind, status, private, id }))
    }
}

/// An identifier of the connection manager, with its QP once there is one. The fields go in this order behind its own drop.
struct Id {
    raw: *mut wire::CmId,
    channel: Arc<Channel>,
}

// SAFETY: as for `Channel`.
unsafe impl Send for Id {}
// SAFETY: as for `Channel`.
unsafe impl Sync for Id {}

impl Id {
    fn new(channel: &Arc<Channel>) -> Result<Self, Error> {
        let mut raw = ptr::null_mut();
        let ops = channel.of.ops();
        // SAFETY: a live channel and a live local.
        match unsafe { (ops.create_id)(channel.raw, &raw mut raw, ptr::null_mut(), wire::PS_TCP) } {
            0 => Ok(Self { raw, channel: Arc::clone(channel) }),
            _ => Err(failed("rdma_create_id")),
        }
    }

    fn qp(&self) -> *mut wire::Qp {
        // SAFETY: a live identifier.
        unsafe { (*self.raw).qp }
    }

    /// Ends the connection: the QP goes to error.
    fn disconnect(&self) {
        let ops = self.channel.of.ops();
        // SAFETY: a live identifier. One that is not connected any more says so.
        unsafe { (ops.disconnect)(self.raw) };
        if !self.qp().is_null() {
            let mut attr = wire::QpAttr { qp_state: wire::QPS_ERR, rest: [0; 63] };
            // SAFETY: a live QP, and a live structure of which the state alone is looked at.
            unsafe { (ops.modify_qp)(self.qp(), &raw mut attr, wire::QP_STATE) };
        }
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        let ops = self.channel.of.ops();
        if !self.qp().is_null() {
            // SAFETY: a live identifier with a QP of ours.
            unsafe { (ops.destroy_qp)(self.raw) };
        }
        // SAFETY: ours, once; its events were acknowledged.
        unsafe { (ops.destroy_id)(self.raw) };
    }
}

/// An address as the system has it.
struct Address(libc::sockaddr_storage);

impl Address {
    fn of(text: &str) -> Result<Self, Error> {
        let unknown =
            || Error::new(ErrorKind::NotFound, Verb::Open).at(text.to_owned()).detail("the name is not known");
        let at = text.to_socket_addrs().ok().and_then(|mut all| all.next()).ok_or_else(unknown)?;
        // SAFETY: a structure of integers, of which all zeroes is a value.
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        match at {
            SocketAddr::V4(at) => {
                let to: *mut libc::sockaddr_in = (&raw mut storage).cast();
                let addr = libc::in_addr { s_addr: u32::from_ne_bytes(at.ip().octets()) };
                let (sin_family, sin_port) = (2, at.port().to_be());
                // SAFETY: storage is made for each kind of address.
                unsafe { to.write(libc::sockaddr_in { sin_family, sin_port, sin_addr: addr, sin_zero: [0; 8] }) };
            }
            SocketAddr::V6(at) => {
                let to: *mut libc::sockaddr_in6 = (&raw mut storage).cast();
                let whole = libc::sockaddr_in6 {
                    sin6_family: 10,
                    sin6_port: at.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: at.ip().octets() },
                    sin6_scope_id: at.scope_id(),
                };
                // SAFETY: storage is made for each kind of address.
                unsafe { to.write(whole) };
            }
        }
        Ok(Self(storage))
    }

    fn raw(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.0).cast()
    }
}

/// Waits for an identifier's next event, which must be `wanted` or `REJECTED`.
fn expect(channel: &Channel, wanted: c_int, until: Instant, at: &str) -> Result<Told, Error> {
    let left = until.saturating_duration_since(now());
    let Some(told) = channel.next(left)? else {
        return Err(Error::new(ErrorKind::DeadlineExceeded, Verb::Open).at(at.to_owned()).detail("no answer in time"));
    };
    if told.kind == wanted || told.kind == event::REJECTED {
        return Ok(told);
    }
    let text = format!("the connection manager says no (event {}, status {})", told.kind, told.status);
    Err(Error::new(ErrorKind::NoDevice, Verb::Open).at(at.to_owned()).detail(text).with_code(told.status))
}

/// What a QP and the thread that hears of its end share.
struct Heard {
    is_over: AtomicBool,
    why: Mutex<Option<String>>,
}

impl Heard {
    fn over(&self, why: &str) {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| why.to_owned());
        self.is_over.store(true, Ordering::Release);
    }
}

/// See the module documentation. The fields go in this order behind its own drop.
struct LibraryQp {
    id: Option<Arc<Id>>,
    number: u32,
    heard: Arc<Heard>,
    is_ended: Arc<AtomicBool>,
    monitor: Option<JoinHandle<()>>,
    held: Vec<RecvWr>,
    open: Arc<Open>,
    config: QpConfig,
    send_cq: Arc<LibraryCq>,
    recv_cq: Arc<LibraryCq>,
    domain: Arc<Domain>,
}

/// Makes one.
pub(super) fn create(domain: &Arc<Domain>, config: QpConfig) -> Result<Box<dyn Qp>, Error> {
    let refuse = |kind, text: &str| Err(Error::new(kind, Verb::Setup).at("qp").detail(text.to_owned()));
    let within = |wr: u32| (1..=domain.of.facts.wr_max).contains(&wr);
    if !within(config.send_wr_max) || !within(config.recv_wr_max) {
        return refuse(ErrorKind::ApiMisuse, "a queue has requests, and no more than the device takes");
    }
    let own = |cq: &Arc<dyn Cq>| {
        let cq = Arc::clone(cq).into_any().downcast::<LibraryCq>().ok()?;
        cq.is_of(&domain.of).then_some(cq)
    };
    let (Some(send_cq), Some(recv_cq)) = (own(&config.send_cq), own(&config.recv_cq)) else {
        return refuse(ErrorKind::ApiMisuse, "the completion queue is of another device");
    };
    if !send_cq.reserve(config.send_wr_max) {
        return refuse(ErrorKind::ResourceLimit, "the completion queue has no room for all requests");
    }
    if !recv_cq.reserve(config.recv_wr_max) {
        send_cq.release(config.send_wr_max);
        return refuse(ErrorKind::ResourceLimit, "the completion queue has no room for all requests");
    }
    Ok(Box::new(LibraryQp {
        id: None,
        number: 0,
        heard: Arc::new(Heard { is_over: AtomicBool::new(false), why: Mutex::default() }),
        is_ended: Arc::default(),
        monitor: None,
        held: Vec::new(),
        open: Arc::default(),
        config,
        send_cq,
        recv_cq,
        domain: Arc::clone(domain),
    }))
}

fn raw_sge(sge: Option<Sge>) -> (wire::Sge, c_int) {
    let raw = sge.map_or(wire::Sge::default(), |sge| wire::Sge { addr: sge.addr, length: sge.len, lkey: sge.lkey.0 });
    (raw, c_int::from(sge.is_some()))
}

fn post_error(errno: c_int) -> PostError {
    if errno == libc::ENOMEM { PostError::Full } else { PostError::Device(errno) }
}

impl LibraryQp {
    fn expect_init(&self) -> Result<(), Error> {
        if self.id.is_none() && !self.heard.is_over.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ApiMisuse, Verb::Open).at("qp").detail("a queue pair is connected once"))
    }

    /// Makes the QP on an identifier whose device is known, and posts what was held.
    fn make(&mut self, id: Id) -> Result<Arc<Id>, Error> {
        // SAFETY: a live identifier.
        if unsafe { (*id.raw).verbs } != self.domain.of.context {
            return Err(Error::new(ErrorKind::NoDevice, Verb::Open)
                .at(self.domain.of.facts.name.clone())
                .detail("the address is reached by another device")
                .remedy("choose the device that has a route there"));
        }
        let mut attr = wire::QpInitAttr {
            qp_context: ptr::null_mut(),
            send_cq: self.send_cq.raw,
            recv_cq: self.recv_cq.raw,
            srq: ptr::null_mut(),
            max_send_wr: self.config.send_wr_max,
            max_recv_wr: self.config.recv_wr_max,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 0,
            qp_type: wire::QPT_RC,
            sq_sig_all: 1,
        };
        // SAFETY: a live identifier without a QP, a live domain of its device, and live CQs.
        if unsafe { (self.domain.of.ops().create_qp)(id.raw, self.domain.raw, &raw mut attr) } != 0 {
            return Err(failed("rdma_create_qp"));
        }
        // SAFETY: made above.
        self.number = unsafe { (*id.qp()).qp_num };
        self.send_cq.admit(self.number, &self.open);
        self.recv_cq.admit(self.number, &self.open);
        let id = Arc::new(id);
        self.id = Some(Arc::clone(&id));
        for wr in mem::take(&mut self.held) {
            self.put_recv(wr)
                .map_err(|error| Error::new(ErrorKind::ResourceLimit, Verb::Open).at("qp").detail(error.to_string()))?;
        }
        Ok(id)
    }

    fn param(&self, private: &PrivateData) -> wire::ConnParam {
        let bytes = private.as_bytes();
        let retries = self.config.rnr_wait.as_millis().div_ceil(RNR_STEP.as_millis()).clamp(1, 6);
        let reads = self.domain.of.facts.rd_atomic_max.min(READS);
        wire::ConnParam {
            private_data: bytes.as_ptr().cast(),
            private_data_len: u8::try_from(bytes.len()).unwrap_or(0),
            responder_resources: reads,
            initiator_depth: reads,
            flow_control: 1,
            retry_count: RETRIES,
            rnr_retry_count: u8::try_from(retries).unwrap_or(6),
            srq: 0,
            qp_num: 0,
        }
    }

    /// Starts the thread that hears of the end.
    fn watch(&mut self, id: &Arc<Id>) -> Result<(), Error> {
        let (id, heard, is_ended) = (Arc::clone(id), Arc::clone(&self.heard), Arc::clone(&self.is_ended));
        let thread = Builder::new().name("rdma cm".to_owned()).spawn(move || {
            while !is_ended.load(Ordering::Acquire) {
                if let Ok(Some(told)) = id.channel.next(LOOK_EVERY)
                    && matches!(told.kind, event::DISCONNECTED | event::DEVICE_REMOVAL)
                {
                    id.disconnect();
                    heard.over("the peer ended the connection");
                }
            }
        });
        let thread = thread.map_err(|cause| {
            let limit = Error::new(ErrorKind::ResourceLimit, Verb::Open).at("rdma cm");
            limit.with_code(cause.raw_os_error().unwrap_or(0)).caused_by(cause)
        })?;
        self.monitor = Some(thread);
        Ok(())
    }

    fn put_recv(&self, wr: RecvWr) -> Result<(), PostError> {
        let Some(id) = &self.id else { return Err(PostError::NotConnected) };
        let (mut sge, num_sge) = raw_sge(Some(wr.sge));
        let (next, sg_list) = (ptr::null_mut(), &raw mut sge);
        let mut raw = wire::RecvWr { wr_id: wr.wr_id | RECEIVE, next, sg_list, num_sge };
        let (qp, mut bad) = (id.qp(), ptr::null_mut());
        // SAFETY: a live QP.
        let context = unsafe { (*qp).context };
        // SAFETY: a context that stays.
        let post = unsafe { (*context).post_recv };
        // SAFETY: a live QP and live structures, which the call copies.
        match unsafe { post(qp, &raw mut raw, &raw mut bad) } {
            0 => Ok(()),
            errno => Err(post_error(errno)),
        }
    }

    fn put_send(&self, wr: &SendWr) -> Result<(), PostError> {
        let Some(id) = &self.id else { return Err(PostError::NotConnected) };
        let (mut sge, num_sge) = raw_sge(wr.sge);
        let (opcode, remote_addr, rkey, invalidate_rkey) = match wr.op {
            SendOp::RdmaWrite(to) => (0, to.addr, to.rkey(), 0),
            SendOp::Send => (2, 0, 0, 0),
            SendOp::RdmaRead(from) => (4, from.addr, from.rkey(), 0),
            SendOp::SendWithInvalidate(key) => (9, 0, 0, key.0),
        };
        let mut raw = wire::SendWr {
            wr_id: wr.wr_id,
            next: ptr::null_mut(),
            sg_list: &raw mut sge,
            num_sge,
            opcode,
            send_flags: wire::SEND_SIGNALED,
            invalidate_rkey,
            remote_addr,
            rkey,
            tail: [0; 9],
        };
        let (qp, mut bad) = (id.qp(), ptr::null_mut());
        // SAFETY: a live QP.
        let context = unsafe { (*qp).context };
        // SAFETY: a context that stays.
        let post = unsafe { (*context).post_send };
        // SAFETY: a live QP and live structures, which the call copies.
        match unsafe { post(qp, &raw mut raw, &raw mut bad) } {
            0 => Ok(()),
            errno => Err(post_error(errno)),
        }
    }

    /// Completes what was never given to a device.
    fn flush_held(&mut self) {
        for wr in mem::take(&mut self.held) {
            self.flushed(&self.recv_cq, wr.wr_id, WcKind::Recv);
        }
    }

    fn flushed(&self, cq: &LibraryCq, wr_id: u64, kind: WcKind) {
        let count = if kind == WcKind::Recv { &self.open.receives } else { &self.open.sends };
        count.fetch_sub(1, Ordering::AcqRel);
        let (status, invalidated) = (WcStatus::WrFlush, None);
        cq.push(Wc { wr_id, qpn: self.number, kind, status, byte_len: 0, invalidated }, &self.open);
    }

    fn resolved(&self, to: &str, until: Instant) -> Result<Id, Error> {
        let ops = self.domain.of.ops();
        let channel = Channel::new(&self.domain.of)?;
        let id = Id::new(&channel)?;
        let mut address = Address::of(to)?;
        // SAFETY: a live identifier and a live address, which the call copies.
        if unsafe { (ops.resolve_addr)(id.raw, ptr::null_mut(), address.raw(), RESOLVE_MS) } != 0 {
            return Err(failed("rdma_resolve_addr"));
        }
        expect(&channel, event::ADDR_RESOLVED, until, to)?;
        // SAFETY: a live identifier whose address is resolved.
        if unsafe { (ops.resolve_route)(id.raw, RESOLVE_MS) } != 0 {
            return Err(failed("rdma_resolve_route"));
        }
        expect(&channel, event::ROUTE_RESOLVED, until, to)?;
        Ok(id)
    }
}

impl Qp for LibraryQp {
    fn number(&self) -> u32 {
        self.number
    }

    fn state(&self) -> QpState {
        if self.heard.is_over.load(Ordering::Acquire) {
            return QpState::Error;
        }
        let Some(id) = &self.id else { return QpState::Init };
        let mut attr = wire::QpAttr { qp_state: 0, rest: [0; 63] };
        // SAFETY: a structure of integers and pointers, of which all zeroes is a value.
        let mut init: wire::QpInitAttr = unsafe { mem::zeroed() };
        let query = self.domain.of.ops().query_qp;
        // SAFETY: a live QP, and live structures with room for what the library writes.
        let asked = unsafe { query(id.qp(), &raw mut attr, wire::QP_STATE, &raw mut init) };
        if asked == 0 && attr.qp_state == wire::QPS_ERR {
            self.heard.over("the device put the queue pair into error");
            return QpState::Error;
        }
        QpState::Rts
    }

    fn why(&self) -> Option<String> {
        self.heard.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn connect(&mut self, to: &str, private: &PrivateData, timeout: Duration) -> Result<Connected, Error> {
        self.expect_init()?;
        let until = now() + timeout;
        let id = self.resolved(to, until)?;
        let id = self.make(id)?;
        let mut param = self.param(private);
        // SAFETY: a live identifier with a QP, and live parameters, which the call copies.
        if unsafe { (self.domain.of.ops().connect)(id.raw, &raw mut param) } != 0 {
            return Err(failed("rdma_connect"));
        }
        let told = match expect(&id.channel, event::ESTABLISHED, until, to) {
            Ok(told) => told,
            Err(error) => {
                id.disconnect();
                self.heard.over("it was not connected");
                return Err(error);
            }
        };
        if told.kind == event::REJECTED {
            id.disconnect();
            self.heard.over("the peer refused the connection");
            // IB_CM_REJ_CONSUMER_DEFINED; another reason is nobody who listens, or a stale connection.
            if told.status != 28 {
                let text = format!("nobody takes the connection (reason {})", told.status);
                let absent = Error::new(ErrorKind::NoDevice, Verb::Open).at(to.to_owned());
                return Err(absent.detail(text).with_code(told.status));
            }
            return Ok(Connected::Rejected(told.private));
        }
        self.watch(&id)?;
        Ok(Connected::Accepted(told.private))
    }

    fn accept(&mut self, incoming: Box<dyn Incoming>, private: &PrivateData) -> Result<(), Error> {
        self.expect_init()?;
        let arrived: Box<Arrived> = incoming.into_any().downcast().map_err(|_: Box<dyn Any>| {
            Error::new(ErrorKind::ApiMisuse, Verb::Open).at("cm").detail("a connection of another fabric")
        })?;
        let id = self.make(arrived.take()?)?;
        let mut param = self.param(private);
        // SAFETY: a live identifier with a QP, and live parameters, which the call copies.
        if unsafe { (self.domain.of.ops().accept)(id.raw, &raw mut param) } != 0 {
            return Err(failed("rdma_accept"));
        }
        expect(&id.channel, event::ESTABLISHED, now() + Duration::from_secs(5), "rdma accept")?;
        self.watch(&id)
    }

    fn post_recv(&mut self, wr: RecvWr) -> Result<(), PostError> {
        if self.open.receives.load(Ordering::Acquire) >= self.config.recv_wr_max {
            return Err(PostError::Full);
        }
        self.open.receives.fetch_add(1, Ordering::AcqRel);
        // rxe does not look at a receive queue in error: what is posted then is flushed here.
        if self.heard.is_over.load(Ordering::Acquire) {
            self.flushed(&self.recv_cq, wr.wr_id, WcKind::Recv);
            return Ok(());
        }
        if self.id.is_none() {
            self.held.push(wr);
            return Ok(());
        }
        let posted = self.put_recv(wr);
        if posted.is_err() {
            self.open.receives.fetch_sub(1, Ordering::AcqRel);
        }
        posted
    }

    fn post_send(&mut self, wr: SendWr) -> Result<(), PostError> {
        if self.id.is_none() {
            return Err(PostError::NotConnected);
        }
        if wr.sge.is_some_and(|sge| sge.len > self.domain.of.facts.message_bytes_max) {
            return Err(PostError::TooLong);
        }
        if self.open.sends.load(Ordering::Acquire) >= self.config.send_wr_max {
            return Err(PostError::Full);
        }
        self.open.sends.fetch_add(1, Ordering::AcqRel);
        if self.heard.is_over.load(Ordering::Acquire) {
            self.flushed(&self.send_cq, wr.wr_id, WcKind::Send);
            return Ok(());
        }
        let posted = self.put_send(&wr);
        if posted.is_err() {
            self.open.sends.fetch_sub(1, Ordering::AcqRel);
        }
        posted
    }

    fn to_error(&mut self) {
        self.heard.over("it was ended on this side");
        match &self.id {
            Some(id) => id.disconnect(),
            None => self.flush_held(),
        }
    }
}

impl Drop for LibraryQp {
    fn drop(&mut self) {
        self.to_error();
        self.is_ended.store(true, Ordering::Release);
        if let Some(monitor) = self.monitor.take() {
            // One that panicked has ended too.
            let _ = monitor.join();
        }
        self.id = None;
        self.send_cq.dismiss(self.number, &self.open);
        self.recv_cq.dismiss(self.number, &self.open);
        self.send_cq.release(self.config.send_wr_max);
        self.recv_cq.release(self.config.recv_wr_max);
    }
}

struct LibraryListener {
    id: Id,
    at: SocketAddr,
}

/// Listens.
pub(super) fn listen(of: &Arc<Opened>, at: &str) -> Result<Box<dyn Listener>, Error> {
    let channel = Channel::new(of)?;
    let id = Id::new(&channel)?;
    let mut address = Address::of(at)?;
    // SAFETY: a live identifier and a live address, which the call copies.
    if unsafe { (of.ops().bind_addr)(id.raw, address.raw()) } != 0 {
        let error = failed("rdma_bind_addr");
        return Err(match error.code() {
            libc::EADDRINUSE => Error::new(ErrorKind::InUse, Verb::Setup).at(at.to_owned()),
            libc::EADDRNOTAVAIL | libc::ENODEV => Error::new(ErrorKind::NoDevice, Verb::Setup).at(at.to_owned()),
            _ => error,
        });
    }
    // SAFETY: a live identifier that is bound.
    if unsafe { (of.ops().listen)(id.raw, BACKLOG) } != 0 {
        return Err(failed("rdma_listen"));
    }
    // SAFETY: likewise.
    let port = u16::from_be(unsafe { (of.ops().get_src_port)(id.raw) });
    let known = at.to_socket_addrs().ok().and_then(|mut all| all.next());
    let mut known = known.ok_or_else(|| Error::new(ErrorKind::NotFound, Verb::Setup).at(at.to_owned()))?;
    known.set_port(port);
    Ok(Box::new(LibraryListener { id, at: known }))
}

impl Listener for LibraryListener {
    fn address(&self) -> String {
        self.at.to_string()
    }

    fn accept(&mut self, timeout: Duration) -> Result<Option<Box<dyn Incoming>>, Error> {
        let until = now() + timeout;
        loop {
            let left = until.saturating_duration_since(now());
            match self.id.channel.next(left)? {
                None => return Ok(None),
                Some(told) if told.kind == event::CONNECT_REQUEST => {
                    let id = Id { raw: told.id, channel: Arc::clone(&self.id.channel) };
                    return Ok(Some(Box::new(Arrived { id: Some(id), private: told.private })));
                }
                // Of connections that went before they were taken.
                Some(_) => {}
            }
        }
    }
}

/// A connection that was asked for.
struct Arrived {
    id: Option<Id>,
    private: PrivateData,
}

impl Arrived {
    /// Takes the identifier, with a channel of its own.
    fn take(mut self) -> Result<Id, Error> {
        let gone = || Error::new(ErrorKind::Io, Verb::Open).at("cm").detail("the connection was taken before");
        let mut id = self.id.take().ok_or_else(gone)?;
        let channel = Channel::new(&id.channel.of)?;
        // SAFETY: a live identifier whose events were acknowledged, and a live channel.
        if unsafe { (channel.of.ops().migrate_id)(id.raw, channel.raw) } != 0 {
            return Err(failed("rdma_migrate_id"));
        }
        id.channel = channel;
        Ok(id)
    }
}

impl Incoming for Arrived {
    fn request(&mut self, _timeout: Duration) -> Result<PrivateData, Error> {
        Ok(self.private)
    }

    fn reject(self: Box<Self>, private: &PrivateData) {
        if let Some(id) = &self.id {
            let bytes = private.as_bytes();
            let len = u8::try_from(bytes.len()).unwrap_or(0);
            // SAFETY: a live identifier that waits for an answer, and live bytes, which the call copies.
            unsafe { (id.channel.of.ops().reject)(id.raw, bytes.as_ptr().cast(), len) };
        }
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
