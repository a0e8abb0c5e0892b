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
    mem, ptr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::verbs::{
        Connected, Cq, Gather, Incoming, PostError, Presence, PrivateData, Qp, QpConfig, QpState, RecvWr, SendOp,
        SendWr, Sge, Wc, WcKind, WcStatus,
    },
};

use super::{
    Refusal,
    cm::{Arrived, Id, Told, expect, resolved},
    fabric::{Domain, LOOK_EVERY, LibraryCq, Open, RECEIVE, failed},
    wire::{self, event},
};
use crate::emulated::now;

/// RNR NAK timer 0, which librdmacm sets: one retry takes so long at least (InfiniBand, "RNR NAK Retry Timer Field").
const RNR_STEP: Duration = Duration::from_millis(655);
/// Why a connection was refused, as the kernel numbers it (linux `include/rdma/ib_cm.h`, `ib_cm_rej_reason`): no one listens.
const REJECTED_UNKNOWN_SERVICE: c_int = 8;
/// The peer still has its end of a connection of before, of a queue pair with this number.
const REJECTED_STALE: c_int = 10;
/// The peer's program refused it, with private data. Another reason is want of resources.
const REJECTED_BY_CONSUMER: c_int = 28;
/// `retry_count`: without an answer a request is sent so often again.
const RETRIES: u8 = 7;
/// Reads under way that are asked for, where the device has as many.
const READS: u8 = 16;

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

fn raw_sge(sge: &Sge) -> wire::Sge {
    wire::Sge { addr: sge.addr, length: sge.len, lkey: sge.lkey.0 }
}

/// What a refusal says, by its reason.
fn rejected(told: &Told, to: &str) -> Result<Connected, Error> {
    let absent = |text: String| Error::new(ErrorKind::NoDevice, Verb::Open).at(to.to_owned()).detail(text);
    match told.status {
        REJECTED_BY_CONSUMER => Ok(Connected::Rejected(told.private)),
        REJECTED_STALE => Ok(Connected::Stale),
        // As the system says it of sockets.
        REJECTED_UNKNOWN_SERVICE => Err(absent("nobody listens there".to_owned()).with_code(libc::ECONNREFUSED)),
        reason => Err(absent(format!("nobody takes the connection (reason {reason})")).with_code(reason)),
    }
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
            max_send_sge: self.domain.of.facts.sge_max.into(),
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

    /// An index that somebody chose is the one that is used: the connection manager chooses by address, and an address may have several.
    fn expect_index(&self, id: &Id) -> Result<(), Error> {
        let Some(wanted) = self.domain.of.from.and_then(|from| from.index) else { return Ok(()) };
        let (attr, _) = self.queried(id, wire::QP_AV)?;
        let used = u32::from(attr.source_gid_index());
        if used == wanted {
            return Ok(());
        }
        self.heard.over("another address was used than was asked for");
        id.disconnect();
        Err(Error::new(ErrorKind::NoDevice, Verb::Open)
            .at(self.domain.of.facts.name.clone())
            .detail(format!("connections from that address use gid {used}, not {wanted}"))
            .remedy(format!(
                "write gid={used}, or change default_roce_mode of the device in the kernel's configfs (rdma_cm)"
            )))
    }

    /// What the device says of the QP.
    fn queried(&self, id: &Id, mask: c_int) -> Result<(wire::QpAttr, wire::QpInitAttr), Error> {
        let mut attr = wire::QpAttr { qp_state: 0, rest: [0; 63] };
        // SAFETY: a structure of integers and pointers, of which all zeroes is a value.
        let mut init: wire::QpInitAttr = unsafe { mem::zeroed() };
        let query = self.domain.of.ops().query_qp;
        // SAFETY: a live QP, and live structures with room for what the library writes.
        match unsafe { query(id.qp(), &raw mut attr, mask, &raw mut init) } {
            0 => Ok((attr, init)),
            errno => Err(Refusal::System("ibv_query_qp", errno).error()),
        }
    }

    /// Starts the thread that hears of the end.
    fn watch(&mut self, id: &Arc<Id>) -> Result<(), Error> {
        let (id, heard, is_ended) = (Arc::clone(id), Arc::clone(&self.heard), Arc::clone(&self.is_ended));
        let known = self.domain.of.known.clone();
        let thread = Builder::new().name("rdma cm".to_owned()).spawn(move || {
            while !is_ended.load(Ordering::Acquire) {
                match id.channel.next(LOOK_EVERY) {
                    Ok(Some(told)) if told.kind == event::DISCONNECTED => {
                        id.disconnect();
                        heard.over("the peer ended the connection");
                    }
                    Ok(Some(told)) if told.kind == event::DEVICE_REMOVAL => {
                        known.is_gone();
                        heard.over("the device is gone");
                    }
                    _ => {}
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
        let mut sge = raw_sge(&wr.sge);
        let (next, sg_list) = (ptr::null_mut(), &raw mut sge);
        let mut raw = wire::RecvWr { wr_id: wr.wr_id | RECEIVE, next, sg_list, num_sge: 1 };
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
        let pieces = wr.memory.pieces();
        let mut list = [const { wire::Sge { addr: 0, length: 0, lkey: 0 } }; Gather::PIECES_MAX];
        list.iter_mut().zip(pieces).for_each(|(to, from)| *to = raw_sge(from));
        let (opcode, remote_addr, rkey, invalidate_rkey) = match wr.op {
            SendOp::RdmaWrite(to) => (0, to.addr, to.rkey(), 0),
            SendOp::Send => (2, 0, 0, 0),
            SendOp::RdmaRead(from) => (4, from.addr, from.rkey(), 0),
            SendOp::SendWithInvalidate(key) => (9, 0, 0, key.0),
        };
        let mut raw = wire::SendWr {
            wr_id: wr.wr_id,
            next: ptr::null_mut(),
            sg_list: list.as_mut_ptr(),
            // Four at most.
            num_sge: c_int::try_from(pieces.len()).unwrap_or(0),
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
        if self.queried(id, wire::QP_STATE).is_ok_and(|(attr, _)| attr.qp_state == wire::QPS_ERR) {
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
        let of = &self.domain.of;
        let id = resolved(&of.library, (of.from.map(|from| from.ip), to), until)?;
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
            return rejected(&told, to);
        }
        self.expect_index(&id)?;
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
        if self.domain.of.known.presence() == Presence::Gone {
            return Err(PostError::Gone);
        }
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
        let facts = &self.domain.of.facts;
        if wr.memory.bytes() > facts.message_bytes_max.into() {
            return Err(PostError::TooLong);
        }
        let pieces_max = if matches!(wr.op, SendOp::RdmaRead(_)) { 1 } else { facts.sge_max };
        if wr.memory.pieces().len() > pieces_max.into() {
            return Err(PostError::Pieces);
        }
        if self.domain.of.known.presence() == Presence::Gone {
            return Err(PostError::Gone);
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
