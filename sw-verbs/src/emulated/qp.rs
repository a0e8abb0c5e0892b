//! A queue pair of the emulation: its state, which the owner and the two threads of its NIC share.
//!
//! ```text
//!   owner ─ post_send ─► queued ─► (writer) ─► sent ─► ack, response, NAK (reader) ─► send CQ
//!         ─ post_recv ─► receives ─► (reader) ─► receive CQ
//!                        replies ◄─ (reader) … (writer)
//! ```
//!
//! Invariants:
//! - Each chunk is copied under `rx` or `tx`, behind a look at the state; [`Core::fail`] takes both once before it flushes. So behind the
//!   completion of a request, and behind `to_error`, nothing of the QP touches memory.
//! - The state has a failure's first status; everything else is flushed, in the order of the posts.

use std::{
    any::Any,
    collections::VecDeque,
    net::TcpStream,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::verbs::{
        Connected, Incoming, PostError, Presence, PrivateData, Qp, QpConfig, QpState, RecvWr, RemoteKey, SendOp,
        SendWr, Wc, WcKind, WcStatus,
    },
};

use super::{
    MESSAGE_BYTES_MAX, READS_MAX, WR_MAX,
    cm::{self, Arrived},
    cq::EmulatedCq,
    frame::{Frame, Kind},
    memory::{Keys, Window},
    nic,
    power::Power,
    wire,
};

/// Answers that wait for the peer to take them at most: as many as it may have requests under way.
const REPLIES_MAX: usize = WR_MAX as usize;

/// What goes to the peer beside requests.
pub(super) enum Reply {
    Control(Frame),
    /// The response to a read.
    Read(u64, Window),
}

/// A request with its number.
#[derive(Clone, Copy)]
pub(super) struct Numbered {
    pub(super) psn: u64,
    pub(super) wr: SendWr,
}

impl Numbered {
    pub(super) fn is_read(&self) -> bool {
        matches!(self.wr.op, SendOp::RdmaRead(_))
    }
}

pub(super) struct State {
    pub(super) phase: QpState,
    why: Option<String>,
    pub(super) queued: VecDeque<Numbered>,
    /// Begun, without their answer.
    pub(super) sent: VecDeque<Numbered>,
    /// Below this all bytes of requests are with the socket.
    pub(super) transmitted: u64,
    pub(super) receives: VecDeque<RecvWr>,
    /// The receive that a message is coming into.
    pub(super) receiving: Option<RecvWr>,
    pub(super) replies: VecDeque<Reply>,
    /// All that was outstanding at the failure is flushed.
    is_flushed: bool,
    /// The reader takes nothing from the socket any more.
    pub(super) is_deaf: bool,
    next_psn: u64,
}

/// How a QP comes to its end.
pub(super) struct Failure {
    /// The request that failed first, and how.
    pub(super) send: Option<(u64, WcStatus)>,
    /// How the receive failed that a message was coming into.
    pub(super) recv: Option<WcStatus>,
    /// What the peer is told.
    pub(super) goodbye: Option<Frame>,
    pub(super) why: String,
}

impl Failure {
    pub(super) fn of(why: impl Into<String>) -> Self {
        Self { send: None, recv: None, goodbye: None, why: why.into() }
    }
}

/// What the owner of a QP and its NIC share.
pub(super) struct Core {
    pub(super) number: u32,
    pub(super) pd: u64,
    pub(super) keys: Arc<Keys>,
    send_cq: Arc<EmulatedCq>,
    recv_cq: Arc<EmulatedCq>,
    state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) rx: Mutex<()>,
    pub(super) tx: Mutex<()>,
    /// Requests whose completion nobody took yet.
    sends_open: Arc<AtomicU32>,
    receives_open: Arc<AtomicU32>,
}

impl Core {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_over(&self) -> bool {
        self.state().phase == QpState::Error
    }

    fn tell_send(&self, numbered: &Numbered, status: WcStatus) {
        let kind = match numbered.wr.op {
            SendOp::Send | SendOp::SendWithInvalidate(_) => WcKind::Send,
            SendOp::RdmaWrite(_) => WcKind::RdmaWrite,
            SendOp::RdmaRead(_) => WcKind::RdmaRead,
        };
        let wr_id = numbered.wr.wr_id;
        let wc = Wc { wr_id, qpn: self.number, kind, status, byte_len: 0, invalidated: None };
        self.send_cq.push(wc, &self.sends_open);
    }

    fn tell_recv(&self, wr: &RecvWr, status: WcStatus, byte_len: u32, invalidated: Option<RemoteKey>) {
        let wc = Wc { wr_id: wr.wr_id, qpn: self.number, kind: WcKind::Recv, status, byte_len, invalidated };
        self.recv_cq.push(wc, &self.receives_open);
    }

    /// The first request that is without its answer ends well.
    pub(super) fn answered(&self) {
        let mut state = self.state();
        if let Some(first) = state.sent.pop_front() {
            self.tell_send(&first, WcStatus::Success);
        }
        drop(state);
        // A read may wait for others to end.
        self.changed.notify_all();
    }

    /// A message is complete.
    pub(super) fn received(&self, byte_len: u32, invalidated: Option<RemoteKey>) {
        let mut state = self.state();
        if state.phase == QpState::Rts
            && let Some(wr) = state.receiving.take()
        {
            self.tell_recv(&wr, WcStatus::Success, byte_len, invalidated);
        }
    }

    /// Something for the peer; `false`: it takes none of what is waiting for it, which is as much as it may have asked for.
    pub(super) fn reply(&self, reply: Reply) -> bool {
        let mut state = self.state();
        if state.replies.len() >= REPLIES_MAX {
            return false;
        }
        if state.phase == QpState::Rts {
            state.replies.push_back(reply);
        }
        drop(state);
        self.changed.notify_all();
        true
    }

    /// Puts the QP into error; the first failure counts. Not to be called with `rx` or `tx`.
    pub(super) fn fail(&self, failure: Failure) {
        let is_first = {
            let mut state = self.state();
            let is_first = state.phase != QpState::Error;
            if is_first {
                state.phase = QpState::Error;
                state.why = Some(failure.why);
                state.replies.clear();
                state.replies.extend(failure.goodbye.map(Reply::Control));
            }
            is_first
        };
        self.changed.notify_all();
        drop(self.rx.lock().unwrap_or_else(PoisonError::into_inner));
        drop(self.tx.lock().unwrap_or_else(PoisonError::into_inner));
        if !is_first {
            // Somebody else flushes; no copy is under way for this one either.
            return;
        }
        let mut state = self.state();
        let State { sent, queued, receiving, receives, is_flushed, .. } = &mut *state;
        for numbered in sent.drain(..).chain(queued.drain(..)) {
            let first = failure.send.filter(|(psn, _)| *psn == numbered.psn);
            self.tell_send(&numbered, first.map_or(WcStatus::WrFlush, |(_, status)| status));
        }
        if let Some(wr) = receiving.take() {
            self.tell_recv(&wr, failure.recv.unwrap_or(WcStatus::WrFlush), 0, None);
        }
        for wr in receives.drain(..) {
            self.tell_recv(&wr, WcStatus::WrFlush, 0, None);
        }
        *is_flushed = true;
    }
}

/// See the module documentation.
pub(super) struct EmulatedQp {
    core: Arc<Core>,
    power: Arc<Power>,
    send_wr_max: u32,
    recv_wr_max: u32,
    rnr_ms: u32,
}

impl EmulatedQp {
    /// `None`: a CQ has no room.
    pub(super) fn new(
        number: u32,
        (pd, keys, power): (u64, Arc<Keys>, Arc<Power>),
        (send_cq, recv_cq): (Arc<EmulatedCq>, Arc<EmulatedCq>),
        config: &QpConfig,
    ) -> Option<Self> {
        let (sends, receives) = (sw_mem::index(config.send_wr_max.into()), sw_mem::index(config.recv_wr_max.into()));
        if !send_cq.reserve(sends) {
            return None;
        }
        if !recv_cq.reserve(receives) {
            send_cq.release(sends);
            return None;
        }
        let state = State {
            phase: QpState::Init,
            why: None,
            queued: VecDeque::with_capacity(sends),
            sent: VecDeque::with_capacity(sends),
            transmitted: 0,
            receives: VecDeque::with_capacity(receives),
            receiving: None,
            replies: VecDeque::new(),
            is_flushed: false,
            is_deaf: false,
            next_psn: 0,
        };
        let core = Core {
            number,
            pd,
            keys,
            send_cq,
            recv_cq,
            state: Mutex::new(state),
            changed: Condvar::new(),
            rx: Mutex::default(),
            tx: Mutex::default(),
            sends_open: Arc::default(),
            receives_open: Arc::default(),
        };
        let rnr_ms = u32::try_from(config.rnr_wait.as_millis()).unwrap_or(u32::MAX);
        let core = Arc::new(core);
        power.plug_qp(&core);
        Some(Self { core, power, send_wr_max: config.send_wr_max, recv_wr_max: config.recv_wr_max, rnr_ms })
    }

    fn expect_init(&self) -> Result<(), Error> {
        self.power.expect()?;
        if self.state() == QpState::Init {
            return Ok(());
        }
        let error = Error::new(ErrorKind::ApiMisuse, Verb::Open).at(format!("qp {}", self.core.number));
        Err(error.detail("a queue pair is connected once"))
    }

    /// Starts the NIC's threads over a connection; `rnr_ms`: how long the peer's sends wait for a receive here.
    fn start(&self, stream: TcpStream, rnr_ms: u32) -> Result<(), Error> {
        self.core.state().phase = QpState::Rts;
        let started = nic::start(&self.core, stream, Duration::from_millis(rnr_ms.into()));
        if self.power.presence() == Presence::Gone {
            // It went meanwhile, and may not have found this one connected.
            self.core.fail(Failure::of("the device is gone"));
        }
        started.map_err(|cause| {
            self.core.fail(Failure::of("the system gives no thread"));
            Error::new(ErrorKind::ResourceLimit, Verb::Open)
                .at("emulated nic")
                .with_code(cause.raw_os_error().unwrap_or(0))
                .caused_by(cause)
        })
    }
}

impl Qp for EmulatedQp {
    fn number(&self) -> u32 {
        self.core.number
    }

    fn state(&self) -> QpState {
        self.core.state().phase
    }

    fn why(&self) -> Option<String> {
        self.core.state().why.clone()
    }

    fn connect(&mut self, to: &str, private: &PrivateData, timeout: Duration) -> Result<Connected, Error> {
        self.expect_init()?;
        let (stream, answer) = cm::connect(to, private, self.rnr_ms, wire::now() + timeout)?;
        match answer.word {
            super::frame::Word::Accept => {
                self.start(stream, answer.rnr_ms)?;
                Ok(Connected::Accepted(answer.private))
            }
            _ => {
                self.core.fail(Failure::of("the peer refused the connection"));
                Ok(Connected::Rejected(answer.private))
            }
        }
    }

    fn accept(&mut self, incoming: Box<dyn Incoming>, private: &PrivateData) -> Result<(), Error> {
        self.expect_init()?;
        let arrived: Box<Arrived> = incoming.into_any().downcast().map_err(|_: Box<dyn Any>| {
            Error::new(ErrorKind::ApiMisuse, Verb::Open).at("cm").detail("a connection of another fabric")
        })?;
        let (stream, rnr_ms) = arrived.accept(private, self.rnr_ms)?;
        self.start(stream, rnr_ms)
    }

    fn post_recv(&mut self, wr: RecvWr) -> Result<(), PostError> {
        if self.power.presence() == Presence::Gone {
            return Err(PostError::Gone);
        }
        let open = &self.core.receives_open;
        if open.load(Ordering::Relaxed) >= self.recv_wr_max {
            return Err(PostError::Full);
        }
        open.fetch_add(1, Ordering::Relaxed);
        let mut state = self.core.state();
        if state.is_flushed {
            self.core.tell_recv(&wr, WcStatus::WrFlush, 0, None);
            return Ok(());
        }
        state.receives.push_back(wr);
        drop(state);
        // A message may wait for it.
        self.core.changed.notify_all();
        Ok(())
    }

    fn post_send(&mut self, wr: SendWr) -> Result<(), PostError> {
        if self.power.presence() == Presence::Gone {
            return Err(PostError::Gone);
        }
        if wr.memory.bytes() > MESSAGE_BYTES_MAX.into() {
            return Err(PostError::TooLong);
        }
        if matches!(wr.op, SendOp::RdmaRead(_)) && wr.memory.pieces().len() > 1 {
            return Err(PostError::Pieces);
        }
        let open = &self.core.sends_open;
        let mut state = self.core.state();
        if state.phase == QpState::Init {
            return Err(PostError::NotConnected);
        }
        if open.load(Ordering::Relaxed) >= self.send_wr_max {
            return Err(PostError::Full);
        }
        open.fetch_add(1, Ordering::Relaxed);
        let numbered = Numbered { psn: state.next_psn, wr };
        state.next_psn += 1;
        if state.is_flushed {
            self.core.tell_send(&numbered, WcStatus::WrFlush);
            return Ok(());
        }
        state.queued.push_back(numbered);
        drop(state);
        self.core.changed.notify_all();
        Ok(())
    }

    fn to_error(&mut self) {
        let goodbye = Some(Frame::control(Kind::Disconnect, 0, 0));
        self.core.fail(Failure { goodbye, ..Failure::of("it was ended on this side") });
    }
}

impl Drop for EmulatedQp {
    fn drop(&mut self) {
        self.to_error();
        let Core { send_cq, recv_cq, number, .. } = &*self.core;
        // Another thread may be about to flush: that has ended when the state says so.
        let mut state = self.core.state();
        while !state.is_flushed {
            drop(state);
            std::thread::yield_now();
            state = self.core.state();
        }
        send_cq.forget(*number);
        recv_cq.forget(*number);
        send_cq.release(sw_mem::index(self.send_wr_max.into()));
        recv_cq.release(sw_mem::index(self.recv_wr_max.into()));
    }
}

impl State {
    /// The next thing to send; requests that read wait while as many are under way as the peer answers at a time.
    pub(super) fn next_request(&mut self) -> Option<Numbered> {
        let reads = self.sent.iter().filter(|numbered| numbered.is_read()).count();
        if self.queued.front()?.is_read() && reads >= usize::from(READS_MAX) {
            return None;
        }
        let next = self.queued.pop_front()?;
        self.sent.push_back(next);
        Some(next)
    }
}
