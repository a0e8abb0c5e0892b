//! What the data path costs in counts, which do not depend on the machine: allocations and system calls.
//!
//! A program of its own because it counts with a global allocator.
// UNSAFETY: a global allocator is unsafe to implement; this one passes everything on.
#![expect(unsafe_code, reason = "a counting allocator")]
#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure to prepare is a failed test")]

#[path = "it/support.rs"]
#[expect(dead_code, reason = "shared with the other tests; this one needs a part of it")]
mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::Write as _,
};

use sw_engine::{
    Token,
    seam::{Attach, IoDone, IoKind, OpenMode, Submit, Transport, Wait},
};
use sw_uring::{UringConfig, UringTransport};

use support::{PATIENCE, io, memory, open, pattern, scratch, segment};

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

/// I/Os ended, allocations, system calls.
fn drive(transport: &mut UringTransport, face: usize) -> (u64, u64, u64) {
    let scratch = scratch("cost");
    std::fs::File::create(scratch.path("file")).unwrap().write_all(&pattern(1 << 20, 50)).unwrap();
    let object = open(transport, &scratch.path("file"), OpenMode::Read);
    let span = memory(u64::from(DEPTH) * 8192, 0);
    transport.attach(Attach::Object(&object)).unwrap();
    transport.attach(Attach::Region(span.region())).unwrap();
    let mut pieces: Vec<_> = (0..DEPTH)
        .map(|at| {
            let (first, second) = (u64::from(at) * 8192, u64::from(at) * 8192 + 4096);
            let parts = [segment(&span, first, 4096), segment(&span, second, 4096)];
            // Every fourth is in two pieces of memory.
            let parts = if at % 4 == 0 { &parts[..] } else { &parts[..1] };
            let mut piece = io(IoKind::Read, &object, face.min(object.faces.len() - 1), first, parts);
            piece.token = Token::from_raw(1 << 32 | u64::from(at));
            piece
        })
        .collect();
    let mut out: Vec<IoDone> = Vec::with_capacity(DEPTH as usize);
    let mut ended = 0;
    let (mut allocations, mut calls) = (0, 0);
    for round in 0..=ROUNDS {
        if round == 1 {
            // The first round warms up: it arms the wake-up, and makes the owner.
            (ended, allocations, calls) = (0, ALLOCATIONS.with(Cell::get), transport.system_calls());
        }
        for piece in &mut pieces {
            piece.offset = (piece.offset + 4096) % (1 << 19);
            assert_eq!(transport.submit(piece), Submit::Accepted);
        }
        while transport.in_flight() > 0 {
            transport.poll(Wait::For { timeout: PATIENCE, min: DEPTH }, &mut out).unwrap();
            ended += out.len() as u64;
            out.drain(..).for_each(|done| assert!(done.result.is_ok_and(|bytes| bytes % 4096 == 0), "{done:?}"));
        }
    }
    (ended, ALLOCATIONS.with(Cell::get) - allocations, transport.system_calls() - calls)
}

#[test]
fn a_thousand_ios_allocate_nothing_and_take_at_most_125_system_calls() {
    for single_issuer in [false, true] {
        // Face 9 is the last one: the page cache, where the pace of a disk plays no part.
        for face in [0, 9] {
            let config = UringConfig { queue_depth: DEPTH, single_issuer, gather_us: 20_000, ..UringConfig::default() };
            let mut transport = UringTransport::new(config).unwrap();
            let (ended, allocations, calls) = drive(&mut transport, face);
            println!("one thread {single_issuer}, face {face}: {ended} I/Os, {allocations} allocations, {calls} calls");
            assert_eq!(ended, ROUNDS * u64::from(DEPTH));
            assert_eq!(allocations, 0);
            assert!(calls * 1000 <= 125 * ended, "{calls} system calls for {ended} I/Os");
        }
    }
}

#[test]
fn large_ios_are_handed_over_two_at_a_time_when_the_ring_is_rung() {
    const LARGE: u32 = 256 << 10;
    let scratch = scratch("large");
    std::fs::File::create(scratch.path("file")).unwrap().write_all(&pattern(8 * LARGE as usize, 51)).unwrap();
    let mut transport = UringTransport::new(UringConfig::default()).unwrap();
    let object = open(&transport, &scratch.path("file"), OpenMode::Read);
    let span = memory(8 * u64::from(LARGE), 0);
    let mut out: Vec<IoDone> = Vec::with_capacity(8);
    // A small I/O beside large ones is handed over as they are.
    for (small, calls) in [(0, 4), (4, 4), (8, 1)] {
        let before = transport.system_calls();
        for at in 0..8u32 {
            let len = if at < small { 4096 } else { LARGE };
            let first = u64::from(at) * u64::from(LARGE);
            let mut piece = io(IoKind::Read, &object, object.faces.len() - 1, first, &[segment(&span, first, len)]);
            piece.token = Token::from_raw(1 << 32 | u64::from(at));
            assert_eq!(transport.submit(&piece), Submit::Accepted);
        }
        assert_eq!(transport.system_calls(), before, "a file system may hold the caller: not in submit");
        transport.ring().unwrap();
        assert_eq!(transport.system_calls() - before, calls, "{small} small ones of eight");
        while transport.in_flight() > 0 {
            transport.poll(Wait::For { timeout: PATIENCE, min: 1 }, &mut out).unwrap();
            out.drain(..).for_each(|done| assert!(done.result.is_ok(), "{done:?}"));
        }
    }
}
