//! What I/Os over a fabric cost in allocations, and what associations leave behind.
//!
//! A program of its own, because it counts with a global allocator.
// UNSAFETY: a global allocator is unsafe to implement; this one passes everything on.
#![expect(unsafe_code, reason = "a counting allocator")]
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use straightway::{
    Buffer, ByteLen,
    target::{Backing, Nqn, Target, TargetConfig},
};
use sw_engine::{
    Object, Residency, Token,
    seam::{Attach, Io, IoDone, IoKind, MemorySegment, Submit, Transport, Wait},
};
use sw_mem::DmaSpan;
use sw_net::{
    Address, Controller, ControllerConfig, Directory, HostIdentity, Paths, Registering, TcpConfig, TcpTransport, Way,
    Wire, face,
};
use sw_verbs::emulated::EmulatedDevice;

struct Counting;

/// Bytes that the process has of the allocator.
static LIVE: AtomicI64 = AtomicI64::new(0);

thread_local! {
    // Constant and without a destructor, so that counting allocates nothing itself.
    static HERE: Cell<u64> = const { Cell::new(0) };
}

fn add(bytes: usize) {
    LIVE.fetch_add(i64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    HERE.set(HERE.get() + 1);
}

// SAFETY: every call goes to the system's allocator unchanged; the counters are plain numbers. What it does not have itself is made of these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(i64::try_from(layout.size()).unwrap_or(0), Ordering::Relaxed);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test at a time: each counts what the process has.
static TURN: Mutex<()> = Mutex::new(());

const LIMIT: Duration = Duration::from_secs(60);

#[expect(clippy::disallowed_methods, reason = "tests have a clock")]
fn now() -> Instant {
    Instant::now()
}

fn config(name: &str) -> TargetConfig {
    let subsystem = Nqn::new(&format!("nqn.2026-11.io.straightway:{name}")).unwrap();
    TargetConfig { namespaces: vec![Backing::Memory(1 << 20)], subsystem, ..TargetConfig::default() }
}

/// An association with a lane that reads and writes.
struct Host {
    controller: Arc<Controller>,
    attendant: Option<JoinHandle<()>>,
    object: Object,
    transport: TcpTransport,
    memory: DmaSpan,
    done: Vec<IoDone>,
}

impl Host {
    fn new(way: Way, wire: Wire, (target, name): (&Target, &str)) -> Self {
        let (host, port) = (target.address().ip().to_string(), target.address().port());
        let address = Address { host, port, subsystem: config(name).subsystem };
        let nqn = Nqn::new("nqn.2026-11.io.straightway:host").unwrap();
        let identity = HostIdentity { nqn, id: [7; 16], keys: None, tls: None };
        let controller = Controller::open_by(way, address, identity, ControllerConfig::default()).unwrap();
        let directory: Arc<Directory> = Arc::default();
        let index = directory.add(Paths::of(controller.clone())).unwrap();
        let attended = controller.clone();
        let attendant = std::thread::Builder::new().spawn(move || attended.attend()).unwrap();
        let facts = controller.facts();
        let namespace = &facts.namespaces[0];
        let object = Object {
            id: Object::next_id(),
            name: "1".into(),
            len: namespace.len_bytes(),
            version: namespace.version(),
            faces: vec![face(wire, index, namespace, controller.landing()).unwrap()],
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(()),
        };
        let mut transport = TcpTransport::new(directory, TcpConfig { wire, ..TcpConfig::default() }).unwrap();
        let memory = Buffer::allocate(ByteLen(128 << 10)).unwrap().into_span();
        transport.attach(Attach::Region(memory.region())).unwrap();
        Self { controller, attendant: Some(attendant), object, transport, memory, done: Vec::with_capacity(4) }
    }

    fn run(&mut self, kind: IoKind, len: u32) {
        let segment = MemorySegment { place: self.memory.place(), len, region: self.memory.region().id() };
        let io = Io {
            token: Token::from_raw(1),
            kind,
            object: self.object.id,
            handle: self.object.faces[0].handle,
            offset: 0,
            len,
            segment_count: 1,
            segments: [segment; 3],
        };
        assert_eq!(self.transport.submit(&io), Submit::Accepted);
        self.transport.ring().unwrap();
        let begun = now();
        while self.done.is_empty() {
            assert!(now() - begun < LIMIT, "nothing comes");
            let wait = Wait::For { timeout: Duration::from_millis(100), min: 1 };
            self.transport.poll(wait, &mut self.done).unwrap();
        }
        assert_eq!(self.done.pop().map(|done| done.result), Some(Ok(len)));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.controller.shut_down();
        self.attendant.take().unwrap().join().unwrap();
    }
}

/// I/Os of each measurement, and before it: connections are made, memory is registered.
const ROUNDS: u64 = 1000;
const WARM_UP: u64 = 50;

#[test]
fn an_io_over_a_fabric_allocates_nothing_on_its_lane() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let tcp = Target::start(config("tcp")).unwrap();
    let rdma = Target::start_rdma(config("rdma"), EmulatedDevice::open()).unwrap();
    let by = |registering| Way::rdma(EmulatedDevice::open(), registering);
    for (what, mut host) in [
        ("TCP", Host::new(Way::Tcp, Wire::Tcp, (&tcp, "tcp"))),
        ("RDMA, registrations kept", Host::new(by(Registering::Kept), Wire::EmulatedRdma, (&rdma, "rdma"))),
    ] {
        for (kind, len) in
            [(IoKind::Read, 4096), (IoKind::Write, 4096), (IoKind::Read, 128 << 10), (IoKind::Write, 128 << 10)]
        {
            (0..WARM_UP).for_each(|_| host.run(kind, len));
            let before = HERE.get();
            (0..ROUNDS).for_each(|_| host.run(kind, len));
            let count = HERE.get() - before;
            println!("{what}, {kind:?} of {len} bytes: {count} allocations in {ROUNDS} I/Os");
            assert_eq!(count, 0, "{what}, {kind:?} of {len} bytes");
        }
    }
}

/// What the process has: descriptors, threads, bytes of its allocator.
fn held() -> (usize, usize, i64) {
    let count = |of: &str| std::fs::read_dir(of).unwrap().count();
    let (descriptors, threads) = (count("/proc/self/fd"), count("/proc/self/task"));
    (descriptors, threads, LIVE.load(Ordering::Relaxed))
}

#[test]
fn a_thousand_associations_over_rdma_leave_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (near, far) = (EmulatedDevice::open(), EmulatedDevice::open());
    let target = Target::start_rdma(config("churn"), far.clone()).unwrap();
    let associate = || {
        let way = Way::rdma(near.clone(), Registering::Kept);
        let mut host = Host::new(way, Wire::EmulatedRdma, (&target, "churn"));
        host.run(IoKind::Read, 4096);
    };
    let rest = || {
        let begun = now();
        while near.registered() != (0, 0) || far.registered() != (0, 0) || target.counters().connections_open > 0 {
            assert!(now() - begun < LIMIT, "{:?} {:?} {:?}", near.registered(), far.registered(), target.counters());
            std::thread::park_timeout(Duration::from_millis(20));
        }
        // The target's listener looks for threads that are over ten times a second.
        std::thread::park_timeout(Duration::from_millis(400));
        held()
    };
    // What is made once: tables, and room in them.
    (0..WARM_UP).for_each(|_| associate());
    let before = rest();
    (0..ROUNDS).for_each(|_| associate());
    let begun = now();
    let mut after = rest();
    while after != before && now() - begun < Duration::from_secs(5) {
        after = rest();
    }
    println!("descriptors, threads, bytes before and after {ROUNDS} associations: {before:?}, {after:?}");
    assert_eq!(after, before);
    let counters = target.counters();
    assert_eq!((counters.controllers, counters.panics, counters.connections), (0, 0, 2 * (WARM_UP + ROUNDS)));
}
