//! What the data path costs in counts, which do not depend on the machine: doorbells, PRP bytes, allocations.
//!
//! A program of its own because it counts with a global allocator.
// UNSAFETY: a global allocator is unsafe to implement; this one passes everything on.
#![expect(unsafe_code, reason = "a counting allocator")]
#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure to prepare is a failed test")]
#![expect(clippy::disallowed_methods, reason = "the null device has a clock")]

mod null;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Arc,
};

use sw_engine::{
    Lane, LaneConfig, LaneParts, MemoryFacts, Object, Op, OpOptions, Policy, RateTable, Residency, Spans, Target, Time,
    Token, Verb, plan,
    seam::{Attach, Io, IoDone, IoKind, MAX_SEGMENTS, MemorySegment, Submit, Transport, Wait},
};
use sw_mem::{Buffer, ByteLen, HugePages, SlabPool};
use sw_nvme::{
    controller::{Controller, ControllerConfig},
    directory::{Directory, face, handle},
    transport::{NvmeConfig, NvmeTransport},
};

const DEPTH: u32 = 32;
const ROUNDS: u64 = 1000;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; the counter is a plain number of this thread, which
// neither allocates nor runs a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

struct Bed {
    device: Arc<null::NullDevice>,
    controller: Arc<Controller<null::NullDevice>>,
    transport: NvmeTransport<null::NullDevice>,
}

fn bed() -> Bed {
    let device = Arc::new(null::NullDevice::new());
    let waiter = device.waiter();
    let controller = Controller::open(device.clone(), ControllerConfig::default()).unwrap();
    let directory = Arc::new(Directory::default());
    directory.add(controller.clone()).unwrap();
    let transport = NvmeTransport::new(directory, waiter, NvmeConfig::default()).unwrap();
    Bed { device, controller, transport }
}

/// Through the engine: a thousand batches of 32 reads of 4 KiB.
#[test]
fn a_batch_of_reads_costs_a_doorbell_each_way_and_no_allocation() {
    let Bed { device, controller, transport } = bed();
    let parts = LaneParts { transports: vec![Box::new(transport)], copiers: Vec::new(), staging: None };
    let mut lane = Lane::new(LaneConfig::default(), parts).unwrap();
    let namespace = controller.namespaces().remove(0);
    let object = Arc::new(Object {
        id: Object::next_id(),
        name: "nvme://null/1".into(),
        len: namespace.len_bytes(),
        version: namespace.version(),
        faces: vec![face(0, &namespace).unwrap()],
        residency: Residency::Unknown.into(),
        composed: None,
        keep: Box::new(()),
    });
    let (caps, rates) = (lane.transport_caps(), RateTable::default());
    let choice = plan(&object, &MemoryFacts::HOST, &caps, &Policy::default(), &rates, Verb::Read).choice.unwrap();
    let target = Target::new(object, choice).unwrap();
    let shared = Buffer::allocate(ByteLen(u64::from(DEPTH) * 4096)).unwrap().into_span().share();
    let mut spans: Vec<_> =
        (0..u64::from(DEPTH)).map(|slot| shared.part(slot * 4096, ByteLen(4096)).unwrap()).collect();
    let mut warm = (0, [0; 2]);
    for round in 0..=ROUNDS {
        if round == 1 {
            // The first round attaches the memory and makes the queue pair.
            warm = (allocations(), device.doorbells());
        }
        for span in spans.drain(..) {
            let spans = Spans::One(span);
            let (target, options) = (target.clone(), OpOptions::default());
            let op = Op { user: 0, verb: Verb::Read, target, offset: round * 4096, spans, options };
            lane.submit(Time::ZERO, op).unwrap();
        }
        lane.ring();
        while spans.len() < DEPTH as usize {
            lane.poll(Time::ZERO, Wait::No);
            while let Some(done) = lane.pop() {
                assert_eq!(done.result.unwrap(), 4096);
                assert_eq!(done.path.bytes.dma, 4096);
                let Some(Spans::One(span)) = done.op.map(|op| op.spans) else { panic!("no memory came back") };
                spans.push(span);
            }
        }
    }
    let (allocated, doorbells) = (allocations() - warm.0, device.doorbells());
    let rung = [doorbells[0] - warm.1[0], doorbells[1] - warm.1[1]];
    println!("{} reads: {allocated} allocations, {rung:?} doorbells", ROUNDS * u64::from(DEPTH));
    assert_eq!((allocated, rung), (0, [ROUNDS, ROUNDS]));
}

/// The transport alone: 4 KiB needs no list, 1 MiB needs one entry of eight bytes a page after the first.
#[test]
fn prp_bytes_are_eight_a_page() {
    let Bed { mut transport, .. } = bed();
    let pool = SlabPool::new(1, ByteLen(1 << 20), HugePages::Never).unwrap();
    let region = pool.region();
    transport.attach(Attach::Region(region)).unwrap();
    let mut out: Vec<IoDone> = Vec::with_capacity(DEPTH as usize);
    let mut start = 0;
    for round in 0..=ROUNDS {
        if round == 1 {
            start = allocations();
        }
        for (token, len) in [(1, 4096), (2, 1 << 20)] {
            let segment = MemorySegment { place: region.base(), len, region: region.id() };
            let io = Io {
                token: Token::from_raw(token),
                kind: IoKind::Read,
                object: sw_engine::ObjectId(1),
                handle: handle(0, 1),
                offset: 0,
                len,
                segment_count: 1,
                segments: [segment; MAX_SEGMENTS],
            };
            assert_eq!(transport.submit(&io), Submit::Accepted);
        }
        transport.ring().unwrap();
        out.clear();
        assert_eq!(transport.poll(Wait::No, &mut out).unwrap(), 2);
    }
    assert_eq!(allocations() - start, 0);
    let counters = transport.counters();
    assert_eq!((counters.queues.commands, counters.splits), (2 * (ROUNDS + 1), 0));
    // 256 pages: the first is PRP1's; the poison behind the list is one entry more.
    let per_list = counters.queues.prp_list_bytes / (ROUNDS + 1);
    assert_eq!(per_list, 256 * 8);
}
