//! Two connected ends with memory.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::Builder,
    time::Duration,
};

use sw_engine::seam::{
    Wake,
    verbs::{
        Access, Connected, Cq, Device, Mr, MrRequest, Pd, PostError, PrivateData, Qp, QpConfig, QpState, RecvWr,
        SendOp, SendWr, Sge, Wc, WcKind, WcStatus,
    },
};
use sw_mem::{Buffer, ByteLen, DmaSpan, HugePages, Populate, RemoteAddr};

use super::{
    super::{End, fail},
    Bed,
};

/// Bytes of memory of each end.
pub(super) const MEMORY: u64 = 1 << 20;
/// The registered window begins here; what is before and behind it is a guard.
pub(super) const AT: u64 = 4096;
/// Its bytes.
pub(super) const WINDOW: u64 = MEMORY - 2 * AT;
/// Requests of each queue.
pub(super) const DEPTH: u32 = 16;
/// Time by the bed's clock in which anything must have ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a connection may take.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// Everything that may be done.
pub(super) const ALL: Access = Access::LOCAL_WRITE.with(Access::REMOTE_READ).with(Access::REMOTE_WRITE);

/// Counts wakes, and ends the sleep of who waits for one.
#[derive(Default)]
pub(super) struct Count {
    wakes: Mutex<u32>,
    told: Condvar,
}

impl Wake for Count {
    fn wake(&self) {
        *self.wakes() += 1;
        self.told.notify_all();
    }
}

impl Count {
    fn wakes(&self) -> MutexGuard<'_, u32> {
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn so_far(&self) -> u32 {
        *self.wakes()
    }

    /// Sleeps until there was another one than those of before; whether there was within `limit`.
    pub(super) fn sleep_past(&self, before: u32, limit: Duration) -> bool {
        let slept = self.told.wait_timeout_while(self.wakes(), limit, |wakes| *wakes == before);
        !slept.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// One end.
pub(super) struct EndPoint {
    pub(super) pd: Arc<dyn Pd>,
    pub(super) cq: Arc<dyn Cq>,
    pub(super) wakes: Arc<Count>,
    pub(super) qp: Box<dyn Qp>,
    pub(super) mr: Option<Box<dyn Mr>>,
    pub(super) span: DmaSpan,
}

pub(super) fn told<T>(what: &str, result: Result<T, impl core::fmt::Debug>) -> Result<T, End> {
    result.or_else(|error| fail(format!("{what}: {error:?}")))
}

pub(super) fn there<T>(what: &str, found: Option<T>) -> Result<T, End> {
    found.map_or_else(|| fail(format!("{what} is missing")), Ok)
}

pub(super) fn span(bytes: u64) -> Result<DmaSpan, End> {
    Ok(told("memory", Buffer::allocate_with(ByteLen(bytes), 0, HugePages::Never, Populate::Now))?.into_span())
}

pub(super) fn register(pd: &Arc<dyn Pd>, span: &DmaSpan, access: Access) -> Result<Box<dyn Mr>, End> {
    let memory = MrRequest { region: span.region(), at: span.offset() + AT, len: span.len().0 - 2 * AT, access };
    told("registration", pd.reg_mr(memory))
}

impl EndPoint {
    pub(super) fn new(device: &Arc<dyn Device>, access: Access) -> Result<Self, End> {
        let pd = told("pd", device.alloc_pd())?;
        let wakes = Arc::new(Count::default());
        let cq = told("cq", device.create_cq(2 * DEPTH, Arc::clone(&wakes) as Arc<dyn Wake>))?;
        let qp = told("qp", pd.create_qp(config(&cq)))?;
        let span = span(MEMORY)?;
        let mr = register(&pd, &span, access)?;
        Ok(Self { pd, cq, wakes, qp, mr: Some(mr), span })
    }

    pub(super) fn sge(&self, at: u64, len: u32) -> Result<Sge, End> {
        there("local memory", self.mr.as_ref().and_then(|mr| mr.sge(at, len)))
    }

    pub(super) fn remote(&self, at: u64) -> Result<RemoteAddr, End> {
        there("remote memory", self.mr.as_ref().and_then(|mr| mr.remote(at)))
    }

    pub(super) fn recv(&mut self, wr_id: u64, at: u64, len: u32) -> Result<(), End> {
        let sge = self.sge(at, len)?;
        told("receive", self.qp.post_recv(RecvWr { wr_id, sge }))
    }

    pub(super) fn post(&mut self, wr_id: u64, op: SendOp, at: u64, len: u32) -> Result<(), End> {
        told("post", self.try_post(wr_id, op, at, len)?)
    }

    pub(super) fn try_post(&mut self, wr_id: u64, op: SendOp, at: u64, len: u32) -> Result<Result<(), PostError>, End> {
        let sge = if len == 0 { None } else { Some(self.sge(at, len)?) };
        Ok(self.qp.post_send(SendWr { wr_id, op, memory: sge.into() }))
    }

    /// Writes into the window.
    pub(super) fn put(&self, at: u64, bytes: &[u8]) -> Result<(), End> {
        told("write", self.span.write(AT + at, bytes))
    }

    /// Reads from the window.
    pub(super) fn get(&self, at: u64, len: usize) -> Result<Vec<u8>, End> {
        let mut bytes = vec![0; len];
        told("read", self.span.read(AT + at, &mut bytes))?;
        Ok(bytes)
    }

    /// The next `count` completions.
    pub(super) fn wait(&self, bed: &mut dyn Bed, count: usize) -> Result<Vec<Wc>, End> {
        // One at a time: what comes behind belongs to the next wait.
        let (mut all, mut some) = (Vec::new(), Vec::with_capacity(1));
        let begun = bed.now();
        while all.len() < count {
            some.clear();
            if self.cq.poll(&mut some) == 0 {
                if bed.now().saturating_sub(begun) > PATIENCE {
                    return fail(format!("{count} completions were due, and came: {all:?}"));
                }
                bed.idle();
            }
            all.extend_from_slice(&some);
        }
        Ok(all)
    }

    /// The next completion, which must be of a request and have a status.
    pub(super) fn expect(&self, bed: &mut dyn Bed, (wr_id, kind, status): (u64, WcKind, WcStatus)) -> Result<Wc, End> {
        let wc = self.wait(bed, 1)?[0];
        // What a failed one is of need not be told.
        let fits = wc.wr_id == wr_id && wc.status == status && (status != WcStatus::Success || wc.kind == kind);
        if fits && wc.qpn == self.qp.number() {
            Ok(wc)
        } else {
            fail(format!("{kind:?} {wr_id} should end with {status}: {wc:?}"))
        }
    }

    /// Waits until the QP is in error.
    pub(super) fn expect_error(&self, bed: &mut dyn Bed) -> Result<(), End> {
        let begun = bed.now();
        while self.qp.state() != QpState::Error {
            if bed.now().saturating_sub(begun) > PATIENCE {
                return fail("the queue pair does not go to error");
            }
            bed.idle();
        }
        if self.qp.why().is_none() { fail("nobody says why the queue pair is in error") } else { Ok(()) }
    }

    /// Nothing may come.
    pub(super) fn quiet(&self) -> Result<(), End> {
        let mut some = Vec::with_capacity(4);
        self.cq.poll(&mut some);
        if some.is_empty() { Ok(()) } else { fail(format!("completions of nothing: {some:?}")) }
    }
}

pub(super) fn config(cq: &Arc<dyn Cq>) -> QpConfig {
    QpConfig {
        send_cq: Arc::clone(cq),
        recv_cq: Arc::clone(cq),
        send_wr_max: DEPTH,
        recv_wr_max: DEPTH,
        rnr_wait: Duration::from_millis(200),
    }
}

/// What the listening end does with a wish.
pub(super) enum Answer {
    Accept,
    Reject,
}

/// Connects two ends; what the first one was told, and the private data that the second one got.
pub(super) fn join(
    bed: &dyn Bed,
    device: &Arc<dyn Device>,
    (a, b): (&mut EndPoint, &mut EndPoint),
    (words, answer): ((PrivateData, PrivateData), Answer),
) -> Result<(Connected, PrivateData), End> {
    let mut listener = told("listen", device.listen(&bed.address()))?;
    let (to, qp) = (listener.address(), &mut b.qp);
    std::thread::scope(|scope| {
        let accepting = Builder::new().name("accept".to_owned()).spawn_scoped(scope, move || {
            let incoming = told("accept", listener.accept(CONNECT))?;
            let mut incoming = there("the connection", incoming)?;
            let asked = told("request", incoming.request(CONNECT))?;
            match answer {
                Answer::Accept => told("accept", qp.accept(incoming, &words.1))?,
                Answer::Reject => incoming.reject(&words.1),
            }
            Ok(asked)
        });
        let accepting = told("thread", accepting)?;
        let connected = told("connect", a.qp.connect(&to, &words.0, CONNECT));
        let asked = accepting.join().unwrap_or_else(|_| fail("the accepting end panicked"))?;
        Ok((connected?, asked))
    })
}

/// A device with two connected ends.
pub(super) fn pair_with(bed: &mut dyn Bed, access: Access) -> Result<(Arc<dyn Device>, EndPoint, EndPoint), End> {
    let device = bed.device()?;
    let (mut a, mut b) = (EndPoint::new(&device, ALL)?, EndPoint::new(&device, access)?);
    let words = (PrivateData::empty(), PrivateData::empty());
    match join(bed, &device, (&mut a, &mut b), (words, Answer::Accept))? {
        (Connected::Accepted(_), _) => Ok((device, a, b)),
        (refused, _) => fail(format!("not connected: {refused:?}")),
    }
}

pub(super) fn pair(bed: &mut dyn Bed) -> Result<(Arc<dyn Device>, EndPoint, EndPoint), End> {
    pair_with(bed, ALL)
}

/// Bytes that differ by place and seed.
pub(super) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}
