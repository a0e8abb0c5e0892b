//! A connection over RDMA, waited for in every order of its thread and its device's: `cargo xtask test --only loom`.
//!
//! The device is the seam's contract in a few lines: a completion wakes if the queue was armed before it, and then once. Time does not pass in these
//! models, so that a wake-up which is lost is a wait without end; loom reports that as a deadlock.

use std::{any::Any, collections::VecDeque, sync::OnceLock, time::Duration};

use loom::thread;
use sw_engine::{
    Error, ErrorKind, Verb,
    seam::verbs::{
        Ability, Connected, Cq, Device, DeviceFacts, DmaBufRequest, FabricKind, Gid, Incoming, Listener, LocalKey, Mr,
        MrRequest, Pd, PostError, Presence, PrivateData, Qp, QpConfig, QpState, RecvWr, SendWr, Sge, Wc, WcKind,
        WcStatus,
    },
};
use sw_mem::{DmaRegion, RemoteAddr};
use sw_nvme::{
    rdma::{Registering, cm::Accept, session::Windows},
    tcp::host::Range,
};

use super::*;
use crate::{
    connection::{Broken, Places},
    rdma::{RdmaConfig, RdmaConnection, RdmaWay},
    socket::Piece,
};

#[derive(Default)]
struct Queue {
    completions: VecDeque<Wc>,
    is_armed: bool,
}

/// A device and all of it. Of one connection.
struct Nic {
    facts: DeviceFacts,
    queue: Mutex<Queue>,
    wake: OnceLock<Arc<dyn Wake>>,
}

#[derive(Clone)]
struct Part(Arc<Nic>);

struct Registered(u64);

impl Part {
    fn new() -> Self {
        let facts = DeviceFacts {
            name: "loom0".to_owned(),
            kind: FabricKind::Model,
            wr_max: 4,
            cqe_max: 8,
            message_bytes_max: 1 << 20,
            mr_bytes_max: 1 << 20,
            rd_atomic_max: 1,
            sge_max: 1,
            remote_invalidate: Ability::No,
            dma_buf: Ability::No,
        };
        Self(Arc::new(Nic { facts, queue: Mutex::new(Queue::default()), wake: OnceLock::new() }))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap()
    }

    /// The one receive of the connection ends.
    fn complete(&self, status: WcStatus) {
        let wc = Wc { wr_id: 0, qpn: 1, kind: WcKind::Recv, status, byte_len: 0, invalidated: None };
        let mut queue = self.queue();
        queue.completions.push_back(wc);
        let tell = std::mem::take(&mut queue.is_armed);
        drop(queue);
        if tell && let Some(wake) = self.0.wake.get() {
            wake.wake();
        }
    }

    fn connection(&self) -> RdmaConnection {
        let device = Arc::new(self.clone());
        let way = RdmaWay { device, registering: Registering::Kept, shelf: Arc::default() };
        RdmaConnection::open(&way, "loom", RdmaConfig { qid: 1, controller: 1, depth: 1 }, far()).unwrap()
    }
}

fn never() -> Error {
    Error::new(ErrorKind::Unsupported, Verb::Setup)
}

fn far() -> Instant {
    crate::admin::after(Duration::from_secs(3600))
}

impl Device for Part {
    fn facts(&self) -> &DeviceFacts {
        &self.0.facts
    }

    fn presence(&self) -> Presence {
        Presence::Here
    }

    fn gids(&self) -> Result<Vec<Gid>, Error> {
        Err(never())
    }

    fn alloc_pd(&self) -> Result<Arc<dyn Pd>, Error> {
        Ok(Arc::new(self.clone()))
    }

    fn create_cq(&self, _: u32, wake: Arc<dyn Wake>) -> Result<Arc<dyn Cq>, Error> {
        self.0.wake.set(wake).map_err(|_| never())?;
        Ok(Arc::new(self.clone()))
    }

    fn listen(&self, _: &str) -> Result<Box<dyn Listener>, Error> {
        Err(never())
    }
}

impl Pd for Part {
    fn reg_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        Ok(Box::new(Registered(memory.len)))
    }

    fn reg_bound_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        self.reg_mr(memory)
    }

    fn reg_dmabuf_mr(&self, _: DmaBufRequest) -> Result<Box<dyn Mr>, Error> {
        Err(never())
    }

    fn create_qp(&self, _: QpConfig) -> Result<Box<dyn Qp>, Error> {
        Ok(Box::new(self.clone()))
    }
}

impl Mr for Registered {
    fn len(&self) -> u64 {
        self.0
    }

    fn sge(&self, at: u64, len: u32) -> Option<Sge> {
        Some(Sge { addr: at, len, lkey: LocalKey(1) })
    }

    fn remote(&self, _: u64) -> Option<RemoteAddr> {
        None
    }

    fn deregister(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

impl Cq for Part {
    fn poll(&self, out: &mut Vec<Wc>) -> usize {
        let found = self.queue().completions.pop_front();
        out.extend(found);
        found.iter().len()
    }

    fn arm(&self) -> Result<(), Error> {
        self.queue().is_armed = true;
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
        let answer = Accept { receive_entries: 1 }.encode();
        PrivateData::new(&answer).map(Connected::Accepted).ok_or_else(never)
    }

    fn accept(&mut self, _: Box<dyn Incoming>, _: &PrivateData) -> Result<(), Error> {
        Err(never())
    }

    fn post_recv(&mut self, _: RecvWr) -> Result<(), PostError> {
        Ok(())
    }

    fn post_send(&mut self, _: SendWr) -> Result<(), PostError> {
        Err(PostError::Full)
    }

    fn to_error(&mut self) {}
}

/// There are no commands.
struct Nowhere;

impl Windows for Nowhere {
    fn window(&self, _: Range) -> Option<(DmaRegion, u64)> {
        None
    }
}

impl Places for Nowhere {
    fn pieces(&self, _: Range, _: &mut Vec<Piece>) {}
}

#[test]
fn loom_a_completion_ends_the_wait_whenever_it_comes() {
    loom::model(|| {
        let nic = Part::new();
        let mut connection = nic.connection();
        let other = thread::spawn(move || nic.complete(WcStatus::RetryExc));
        assert!(matches!(connection.run(&Nowhere, far()), (Err(Broken::Verbs(_)), None)));
        other.join().unwrap();
    });
}

#[test]
fn loom_a_flush_ends_the_drain_whenever_it_comes() {
    loom::model(|| {
        let nic = Part::new();
        let mut connection = nic.connection();
        let other = thread::spawn(move || nic.complete(WcStatus::WrFlush));
        assert_eq!(connection.hang_up(), sw_nvme::rdma::Memory::Free);
        other.join().unwrap();
    });
}

#[test]
fn loom_an_end_that_is_asked_for_ends_the_wait() {
    loom::model(|| {
        let nic = Part::new();
        let mut connection = nic.connection();
        let relay = connection.relay();
        let other = thread::spawn(move || relay.end());
        assert!(matches!(connection.run(&Nowhere, far()), (Err(Broken::Closed), None)));
        other.join().unwrap();
        nic.complete(WcStatus::WrFlush);
    });
}

/// Says of wakes that there was one.
#[derive(Default)]
struct Told(Mutex<bool>);

impl Wake for Told {
    fn wake(&self) {
        *self.0.lock().unwrap() = true;
    }
}

#[test]
fn loom_a_lane_hears_of_the_wake_that_comes_while_it_asks_for_it() {
    loom::model(|| {
        let (relay, told) = (Arc::new(Relay::default()), Arc::new(Told::default()));
        let waking = Arc::clone(&relay);
        let other = thread::spawn(move || waking.wake());
        relay.pass_to(Arc::clone(&told) as Arc<dyn Wake>);
        other.join().unwrap();
        assert!(*told.0.lock().unwrap());
    });
}
