use std::{
    any::Any,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use sw_engine::seam::verbs::{
    Connected, DeviceFacts, DmaBufRequest, FabricKind, Gid, Incoming, Listener, LocalKey, PrivateData, QpState, Sge,
};
use sw_mem::RemoteAddr;

use super::*;
use crate::{
    status::Status,
    wire::{BlockCount, Command, Completion, DataPointer, IoFlags, LbaRange, completion::CompletionFields},
};

/// What a device and all of it share: completions come as the test says.
#[derive(Default)]
struct Shared {
    is_gone: AtomicBool,
    completions: Mutex<VecDeque<Wc>>,
    /// Completions that come behind the last look and before the arm: nobody is woken by them.
    before_arm: Mutex<VecDeque<Wc>>,
}

impl Shared {
    fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }
}

struct Fake(Arc<Shared>, DeviceFacts);

struct Part(Arc<Shared>);

struct Registered(Arc<Shared>, u64, u64);

fn fake(shared: &Arc<Shared>) -> Arc<dyn Device> {
    let facts = DeviceFacts {
        name: "fake0".to_owned(),
        kind: FabricKind::Model,
        wr_max: 64,
        cqe_max: 256,
        message_bytes_max: 1 << 30,
        mr_bytes_max: 1 << 40,
        rd_atomic_max: 1,
        sge_max: 2,
        remote_invalidate: Ability::No,
        dma_buf: Ability::No,
    };
    Arc::new(Fake(Arc::clone(shared), facts))
}

fn never() -> Error {
    Error::new(ErrorKind::Unsupported, Verb::Setup)
}

impl Device for Fake {
    fn facts(&self) -> &DeviceFacts {
        &self.1
    }

    fn presence(&self) -> Presence {
        if self.0.is_gone() { Presence::Gone } else { Presence::Here }
    }

    fn gids(&self) -> Result<Vec<Gid>, Error> {
        Err(never())
    }

    fn alloc_pd(&self) -> Result<Arc<dyn Pd>, Error> {
        Ok(Arc::new(Part(Arc::clone(&self.0))))
    }

    fn create_cq(&self, _: u32, _: Arc<dyn Wake>) -> Result<Arc<dyn Cq>, Error> {
        Ok(Arc::new(Part(Arc::clone(&self.0))))
    }

    fn listen(&self, _: &str) -> Result<Box<dyn Listener>, Error> {
        Err(never())
    }
}

impl Pd for Part {
    fn reg_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        let base = memory.region.base().raw() + memory.at;
        Ok(Box::new(Registered(Arc::clone(&self.0), base, memory.len)))
    }

    fn reg_bound_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        self.reg_mr(memory)
    }

    fn reg_dmabuf_mr(&self, _: DmaBufRequest) -> Result<Box<dyn Mr>, Error> {
        Err(never())
    }

    fn create_qp(&self, _: QpConfig) -> Result<Box<dyn Qp>, Error> {
        Ok(Box::new(Part(Arc::clone(&self.0))))
    }
}

impl Mr for Registered {
    fn len(&self) -> u64 {
        self.2
    }

    fn sge(&self, at: u64, len: u32) -> Option<Sge> {
        Some(Sge { addr: self.1 + at, len, lkey: LocalKey(1) })
    }

    fn remote(&self, at: u64) -> Option<RemoteAddr> {
        Some(RemoteAddr::new(self.1 + at, 2))
    }

    /// A device that is gone lets go of nothing.
    fn deregister(self: Box<Self>) -> Result<(), Error> {
        if self.0.is_gone() { Err(Error::new(ErrorKind::Io, Verb::Setup)) } else { Ok(()) }
    }
}

impl Cq for Part {
    fn poll(&self, out: &mut Vec<Wc>) -> usize {
        let mut all = self.0.completions.lock().unwrap();
        let room = (out.capacity() - out.len()).min(all.len());
        out.extend(all.drain(..room));
        room
    }

    fn arm(&self) -> Result<(), Error> {
        self.0.completions.lock().unwrap().append(&mut self.0.before_arm.lock().unwrap());
        Ok(())
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Qp for Part {
    fn number(&self) -> u32 {
        1
    }

    fn state(&self) -> QpState {
        QpState::Rts
    }

    fn why(&self) -> Option<String> {
        None
    }

    fn connect(&mut self, _: &str, _: &PrivateData, _: Duration) -> Result<Connected, Error> {
        Err(never())
    }

    fn accept(&mut self, _: Box<dyn Incoming>, _: &PrivateData) -> Result<(), Error> {
        Err(never())
    }

    fn post_recv(&mut self, _: RecvWr) -> Result<(), PostError> {
        if self.0.is_gone() { Err(PostError::Gone) } else { Ok(()) }
    }

    fn post_send(&mut self, wr: SendWr) -> Result<(), PostError> {
        self.0.completions.lock().unwrap().push_back(completed(wr.wr_id, WcKind::Send));
        Ok(())
    }

    fn to_error(&mut self) {}
}

fn completed(wr_id: u64, kind: WcKind) -> Wc {
    Wc { wr_id, qpn: 1, kind, status: WcStatus::Success, byte_len: 16, invalidated: None }
}

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

/// The data of all commands.
struct Memory(DmaSpan);

impl Windows for Memory {
    fn window(&self, _: Range) -> Option<(DmaRegion, u64)> {
        Some((self.0.region().clone(), self.0.offset()))
    }
}

/// A session with writes that were sent, and what answers them.
struct Bed {
    shared: Arc<Shared>,
    session: Session,
    cids: Vec<u16>,
}

impl Bed {
    fn new(registering: Registering, writes: u32) -> Self {
        let shared = Arc::new(Shared::default());
        let config = SessionConfig { depth: 32, registering, shelf: Arc::default(), rnr_wait: Duration::from_secs(1) };
        let mut session = Session::new(&fake(&shared), Arc::new(Nobody), config).unwrap();
        let memory = Memory(Buffer::allocate(ByteLen(4096)).unwrap().into_span());
        let range = LbaRange { nsid: 1, slba: 0, nlb: BlockCount::new(8).unwrap() };
        let write = Command::write(range, DataPointer::None, IoFlags::default());
        let cids = (0..writes).map(|user| session.queue().submit(&write, Transfer::Out(4096), user).unwrap()).collect();
        session.send(&memory).unwrap();
        Self { shared, session, cids }
    }

    /// The command at an index is answered.
    fn answer(&self, index: usize) {
        let (cid, place) = (self.cids[index], index as u64);
        let told = CompletionFields { dw0: 0, sq_head: 0, sq_id: 1, cid, phase: false, status: Status::SUCCESS };
        let responses = &self.session.responses.span;
        responses.write(place * RESPONSE_BYTES as u64, Completion::build(told).bytes()).unwrap();
        self.shared.completions.lock().unwrap().push_back(completed(place, WcKind::Recv));
    }

    fn ended(&mut self) -> usize {
        core::iter::from_fn(|| self.session.pop_end()).count()
    }
}

#[test]
fn what_was_answered_before_a_device_went_is_answered() {
    let mut bed = Bed::new(Registering::Kept, 12);
    (0..10).for_each(|index| bed.answer(index));
    bed.shared.is_gone.store(true, Ordering::Relaxed);
    assert_eq!(bed.session.receive(), Err(Over::Gone("fake0".to_owned())));
    assert_eq!(bed.ended(), 10, "answers that came are lost");
}

#[test]
fn what_comes_between_the_last_look_and_the_arm_is_found() {
    let mut bed = Bed::new(Registering::Kept, 1);
    // The completion of the SEND is taken, and nothing else is there.
    assert_eq!((bed.session.receive(), bed.ended()), (Ok(Looked::Armed), 0));
    bed.answer(0);
    core::mem::swap(&mut *bed.shared.before_arm.lock().unwrap(), &mut *bed.shared.completions.lock().unwrap());
    assert_eq!((bed.session.receive(), bed.ended()), (Ok(Looked::Armed), 1), "nobody wakes for it");
    // Of the receives of the queue one was posted again; all end when it is over, behind the look of the drain.
    let flushed = (0..32).map(|place| Wc { status: WcStatus::WrFlush, ..completed(place, WcKind::Recv) });
    bed.shared.before_arm.lock().unwrap().extend(flushed);
    bed.session.disconnect();
    assert!(bed.session.drain(), "nobody wakes for the flush");
}

#[test]
fn a_release_says_whether_memory_stays_with_the_device() {
    use crate::rdma::registrations::Memory::{Free, Stays};
    for registering in [Registering::Kept, Registering::PerCommand] {
        for (answers, told) in [(0, Stays), (1, Stays), (2, Free)] {
            let mut bed = Bed::new(registering, 2);
            (0..answers).for_each(|index| bed.answer(index));
            bed.session.receive().unwrap();
            bed.shared.is_gone.store(true, Ordering::Relaxed);
            bed.session.disconnect();
            assert!(bed.session.drain(), "nothing is waited for");
            assert_eq!(bed.session.release(), told, "{registering:?}, {answers} answers");
            assert_eq!(bed.session.release(), Free, "it is told once");
        }
        let mut bed = Bed::new(registering, 2);
        assert_eq!(bed.session.release(), Free, "{registering:?}: the device is there");
    }
}
