//! What an operation through the facade costs in allocations, on whatever thread they are made.
//!
//! A program of its own, with one test, because it counts with a global allocator.
// UNSAFETY: a global allocator is unsafe to implement; this one passes everything on.
#![expect(unsafe_code, reason = "a counting allocator")]
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use straightway::{Destination, Engine, GpuUse, Landing, Lane, Object, Policy, RouteMatch, Verb};
use sw_testkit::scratch::Scratch;

/// Operations of each measurement.
const ROUNDS: u64 = 1000;
/// Operations before it: rings are made, a reactor starts, an object is planned for.
const WARM_UP: u64 = 50;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counter is a plain number.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
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

/// Allocations of [`ROUNDS`] turns of `one`, after the warm-up.
fn allocations(mut one: impl FnMut()) -> u64 {
    (0..WARM_UP).for_each(|_| one());
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (0..ROUNDS).for_each(|_| one());
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// The page cache, where the pace of a disk plays no part.
const CACHED: Policy = Policy::Prefer(RouteMatch { transport: None, landing: Some(Landing::KernelCopy) });

fn waited(engine: &Engine, object: &Object, len: u64) -> u64 {
    let mut memory = Some(engine.allocate(Destination::Host, len, 0).unwrap());
    allocations(|| {
        let done = engine.read(object, 0, memory.take().unwrap()).policy(CACHED).wait();
        assert_eq!(done.result.as_ref().unwrap(), &len);
        memory = done.into_memory();
    })
}

fn started(engine: &Engine, object: &Object, len: u64) -> u64 {
    let mut memory = Some(engine.allocate(Destination::Host, len, 0).unwrap());
    allocations(|| {
        let done = engine.read(object, 0, memory.take().unwrap()).policy(CACHED).start().wait();
        assert_eq!(done.result.as_ref().unwrap(), &len);
        memory = done.into_memory();
    })
}

fn in_a_lane(engine: &Engine, object: &Object, len: u64) -> u64 {
    let mut lane = engine.lane(Destination::Host).unwrap();
    let target = lane.target(object, &CACHED, Verb::Read).unwrap();
    let memory = engine.allocate(Destination::Host, len, 0).unwrap();
    let mut op = Some(Lane::op(0, Verb::Read, target, 0, memory));
    allocations(|| {
        lane.submit(op.take().unwrap()).unwrap();
        while lane.poll(Duration::from_secs(1), 1) == 0 {}
        let done = lane.pop().unwrap();
        assert_eq!(done.result.as_ref().unwrap(), &len);
        op = done.op;
    })
}

/// Allocations of [`ROUNDS`] started operations at most. A reactor that has not let go of the cell of the last one makes the
/// caller take another, made of two allocations; cells stay in the pool, so soon there are enough. Measured: 0 to 2.
const STARTED_MAX: u64 = 40;

/// A thousand operations of each kind, small ones, and ones that a rate is taken of.
#[test]
fn an_operation_allocates_nothing_whichever_way_it_is_run() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "cost");
    scratch.file("data", 2 << 20);
    let engine = Engine::builder().gpu(GpuUse::Off).reactors(1).build().unwrap();
    let object = engine.open(&scratch.text("data").parse().unwrap()).unwrap();
    type Run = fn(&Engine, &Object, u64) -> u64;
    let runs: [(&str, Run, u64); 3] =
        [(".wait()", waited, 0), (".start().wait()", started, STARTED_MAX), ("a lane", in_a_lane, 0)];
    for len in [4096, 2 << 20] {
        for (how, run, most) in runs {
            let count = run(&engine, &object, len);
            println!("{how}, {len} bytes: {count} allocations in {ROUNDS} operations");
            assert!(count <= most, "{how}, {len} bytes: {count} allocations, at most {most}");
        }
    }
}
