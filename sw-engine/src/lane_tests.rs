//! The lane against a small transport in memory. The wide search for bad interleavings is the simulator's.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use sw_mem::{Buffer, ByteLen, DmaRegion, RegionId};

use super::*;
use crate::{
    checksum::Algorithm,
    layout::Layout,
    object::{Face, Granularity, Object, Residency, Version},
    op::{OpOptions, Segment, Spans, Target},
    path::Landing,
    plan::{MemoryFacts, Policy, plan},
    rate::RateTable,
    seam::{Attach, Fence, Io, Regions, Submit, Wake},
    stripe::StripeGeometry,
};

const BLOCK: u32 = 512;

struct NoWake;
impl Wake for NoWake {
    fn wake(&self) {}
}

/// Bytes in memory behind the seam. `held` I/Os wait until the test lets them go.
struct Memory {
    bytes: Vec<Vec<u8>>,
    regions: Vec<DmaRegion>,
    taken: VecDeque<Io>,
    caps: TransportCaps,
    /// Answers for the next I/Os, in place of the truth.
    lies: VecDeque<Result<u32, Fault>>,
    /// Bytes of the next I/Os that went aside.
    asides: VecDeque<u32>,
    hold: bool,
    /// Claims all bytes of an I/O and moves none.
    mute: bool,
}

impl Memory {
    fn new(bytes: Vec<Vec<u8>>, caps: TransportCaps) -> Self {
        let (regions, taken, lies, asides) = (Vec::new(), VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { bytes, regions, taken, caps, lies, asides, hold: false, mute: false }
    }

    fn region(&self, id: RegionId) -> &DmaRegion {
        self.regions.iter().find(|region| region.id() == id).expect("an I/O into a region that was never attached")
    }

    fn run(&mut self, io: &Io) -> Result<u32, Fault> {
        if self.mute {
            return Ok(io.len);
        }
        let file = &mut self.bytes[usize::try_from(io.handle / 2).unwrap()];
        let mut at = usize::try_from(io.offset).unwrap();
        let mut moved = 0;
        for segment in io.segments().to_vec() {
            let region = self.regions.iter().find(|region| region.id() == segment.region).unwrap();
            let from = segment.place.raw() - region.base().raw();
            let span = sw_mem::model_span(region, from, ByteLen(segment.len.into())).unwrap();
            let len = segment.len as usize;
            match io.kind {
                IoKind::Read => {
                    let end = (at + len).min(file.len());
                    let now = end.saturating_sub(at);
                    span.write(0, &file[at.min(end)..end]).unwrap();
                    moved += now;
                }
                IoKind::Write => {
                    if file.len() < at + len {
                        file.resize(at + len, 0);
                    }
                    span.read(0, &mut file[at..at + len]).unwrap();
                    moved += len;
                }
                _ => {}
            }
            at += len;
        }
        Ok(u32::try_from(moved).unwrap())
    }
}

/// With what stands behind its faults.
struct Disk(Arc<Mutex<Memory>>, Error);

fn disk(memory: &Arc<Mutex<Memory>>) -> Box<dyn Transport> {
    let why = Error::new(ErrorKind::NoDevice, Verb::Setup).at("mem0").detail("it burnt down").remedy("buy another");
    Box::new(Disk(Arc::clone(memory), why))
}

impl Transport for Disk {
    fn caps(&self) -> TransportCaps {
        self.0.lock().unwrap().caps
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        if let Attach::Region(region) = hint {
            self.0.lock().unwrap().regions.push(region.clone());
        }
        Ok(())
    }

    fn submit(&mut self, io: &Io) -> Submit {
        let mut memory = self.0.lock().unwrap();
        assert!(memory.taken.len() < memory.caps.queue_depth as usize, "deeper than promised");
        assert!(io.segments().iter().map(|segment| segment.len).sum::<u32>() == io.len);
        for segment in io.segments() {
            let _ = memory.region(segment.region);
        }
        memory.taken.push_back(*io);
        Submit::Accepted
    }

    fn ring(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn poll(&mut self, _wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let mut memory = self.0.lock().unwrap();
        if memory.hold {
            return Ok(0);
        }
        let before = out.len();
        // The last one first: completions come in any order.
        while out.len() < out.capacity() {
            let Some(io) = memory.taken.pop_back() else { break };
            let truth = memory.run(&io);
            let result = memory.lies.pop_front().unwrap_or(truth);
            let aside = memory.asides.pop_front().unwrap_or(0);
            out.push(IoDone { token: io.token, result, aside });
        }
        Ok(out.len() - before)
    }

    fn cancel(&mut self, _token: Token) {}

    fn fence(&mut self, _timeout: Duration, _out: &mut Vec<IoDone>) -> Fence {
        let mut memory = self.0.lock().unwrap();
        if memory.hold {
            return Fence::Busy(u32::try_from(memory.taken.len()).unwrap());
        }
        memory.taken.clear();
        Fence::Quiet
    }

    fn explain(&self, handle: u64, fault: Fault) -> Option<&Error> {
        (handle == 0 && fault.kind == ErrorKind::NoDevice).then_some(&self.1)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(NoWake)
    }
}

struct Bed {
    lane: Lane,
    memory: Arc<Mutex<Memory>>,
    objects: Vec<Arc<Object>>,
}

fn pattern(file: usize, at: usize) -> u8 {
    (at * 7 + at / 253 + file * 31).to_le_bytes()[0]
}

fn object(file: usize, len: usize) -> Arc<Object> {
    let face = |handle: usize, granularity, landing| Face {
        transport: "mem",
        handle: handle as u64,
        granularity,
        write_unit: if granularity == Granularity::ANY { 1 } else { 4096 },
        landing,
        because: None,
    };
    Arc::new(Object {
        id: Object::next_id(),
        name: format!("mem{file}").into(),
        len: len as u64,
        version: Version::default(),
        faces: vec![
            face(file * 2, Granularity { block: BLOCK, memory: BLOCK }, Landing::Dma),
            face(file * 2 + 1, Granularity::ANY, Landing::KernelCopy),
        ],
        residency: Residency::Unknown.into(),
        composed: None,
        keep: Box::new(()),
    })
}

fn bed_with(files: usize, len: usize, segments_max: u8, depth: u32) -> Bed {
    let caps = TransportCaps {
        name: "mem",
        queue_depth: depth,
        io_bytes_max: 16 << 10,
        segments_max,
        host: Ok(()),
        device: Err(Reason::MemoryUnreachable),
        regions: Regions::Any,
    };
    let bytes = (0..files).map(|file| (0..len).map(|at| pattern(file, at)).collect()).collect();
    let memory = Arc::new(Mutex::new(Memory::new(bytes, caps)));
    let staging = SlabPool::new(4, ByteLen(8192), HugePages::Never).unwrap();
    let parts = LaneParts { transports: vec![disk(&memory)], copiers: Vec::new(), staging: Some(staging) };
    let lane = Lane::new(LaneConfig { ops_max: 4, bounce_slabs: 2, ..LaneConfig::default() }, parts).unwrap();
    Bed { lane, memory, objects: (0..files).map(|file| object(file, len)).collect() }
}

fn bed() -> Bed {
    bed_with(1, 100_000, 3, 4)
}

impl Bed {
    fn buffer(&mut self, len: u64, phase: u64) -> Buffer {
        let buffer = Buffer::allocate_with(ByteLen(len), phase, HugePages::Never, sw_mem::Populate::Lazy).unwrap();
        self.lane.attach(Attach::Region(buffer.region())).unwrap();
        buffer
    }

    fn target(&self, file: usize, policy: Policy, verb: Verb) -> Target {
        let object = self.objects[file].clone();
        let caps = self.lane.transport_caps();
        let choice = plan(&object, &MemoryFacts::HOST, &caps, &policy, &RateTable::new(), verb).choice.unwrap();
        Target::new(object, choice).unwrap()
    }

    fn op(&self, verb: Verb, offset: u64, spans: Spans) -> Op {
        Op { user: 7, verb, target: self.target(0, Policy::Any, verb), offset, spans, options: OpOptions::default() }
    }

    fn run(&mut self) -> Completion {
        for _ in 0..10_000 {
            self.lane.poll(Time(1), Wait::No);
            if let Some(done) = self.lane.pop() {
                return done;
            }
        }
        panic!("no completion\n{}", self.lane.inspect());
    }

    fn idle(&self) {
        let counts = self.lane.slot_counts();
        assert_eq!((counts.staged, counts.in_flight, counts.abandoned), (0, 0, 0), "{}", self.lane.inspect());
        assert_eq!(self.lane.slabs_out(), (0, 0));
        assert_eq!(self.lane.in_flight(), 0);
    }
}

fn buffer_of(done: Completion) -> Buffer {
    match done.op.unwrap().spans {
        Spans::One(span) => span.into_buffer().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_odd_read_lands_in_place_with_two_blocks_bounced() {
    for segments_max in [1, 2, 3] {
        let mut bed = bed_with(1, 100_000, segments_max, 4);
        let buffer = bed.buffer(60_001, 1_003);
        let mut op = bed.op(Verb::Read, 1_003, Spans::One(buffer.into_span()));
        op.options.checksum = Some(Algorithm::Crc32c);
        op.options.poison = Some(0xdb);
        bed.lane.submit(Time(0), op).unwrap();
        let done = bed.run();
        assert_eq!(done.result.as_ref().unwrap(), &60_001);
        // Head: 1003..1024. Tail: from the last block boundary 60928 to 61004.
        assert_eq!(done.path.bounced, 21 + 76);
        assert_eq!(done.path.bytes, ByPath { dma: 60_001 - 97, kernel_copy: 0, staged: 97 });
        assert_eq!(done.path.reason, Reason::RaggedEnds);
        let expected: Vec<u8> = (1_003..61_004).map(|at| pattern(0, at)).collect();
        assert_eq!(done.checksum, Some(Algorithm::Crc32c.of(&expected)));
        assert!(buffer_of(done).as_slice() == expected);
        bed.idle();
    }
}

#[test]
fn a_long_odd_read_bounces_up_to_sectors_but_never_past_the_end() {
    // Whole blocks of 512 bytes, and half a sector at the end.
    const LEN: u64 = (512 << 10) + 2048;
    for segments_max in [1, 3] {
        let mut bed = bed_with(1, usize::try_from(LEN).unwrap(), segments_max, 4);
        let buffer = bed.buffer(LEN - 1_004, 1_003);
        let op = bed.op(Verb::Read, 1_003, Spans::One(buffer.into_span()));
        bed.lane.submit(Time(0), op).unwrap();
        let done = bed.run();
        assert_eq!(done.result.as_ref().unwrap(), &(LEN - 1_004));
        // The head ends at the sector 4096 where head, core and tail fit one I/O, else at the block 1024. The tail is the
        // last of many chunks, a short one.
        let head = if segments_max == 3 { 4096 - 1_003 } else { 1024 - 1_003 };
        assert_eq!(done.path.bounced, head + 511);
        let expected: Vec<u8> = (1_003..sw_mem::index(LEN) - 1).map(|at| pattern(0, at)).collect();
        assert!(buffer_of(done).as_slice() == expected);
        bed.idle();
    }
}

#[test]
fn misaligned_memory_goes_another_way_and_the_report_says_so() {
    let mut bed = bed();
    let buffer = bed.buffer(5_000, 1);
    let op = bed.op(Verb::Read, 512, Spans::One(buffer.into_span()));
    bed.lane.submit(Time(0), op).unwrap();
    let done = bed.run();
    assert_eq!(done.path.reason, Reason::MemoryMisaligned);
    assert_eq!(done.path.bytes.dma, 0);
    let expected: Vec<u8> = (512..5_512).map(|at| pattern(0, at)).collect();
    assert!(buffer_of(done).as_slice() == expected);
    bed.idle();
}

#[test]
fn a_policy_that_cannot_be_met_names_the_reason() {
    let mut bed = bed();
    let require = Policy::Require(crate::plan::RouteMatch { transport: None, landing: Some(Landing::Dma) });
    for (phase, offset, reason) in [(1, 512, Reason::MemoryMisaligned), (0, 512, Reason::RaggedEnds)] {
        let buffer = bed.buffer(5_000, phase);
        let mut op = bed.op(Verb::Read, offset, Spans::One(buffer.into_span()));
        op.target = bed.target(0, require, Verb::Read);
        let rejected = bed.lane.submit(Time(0), op).unwrap_err();
        assert_eq!(rejected.error.kind(), ErrorKind::PolicyUnmet);
        assert_eq!(rejected.error.reasons(), [reason]);
    }
    bed.idle();
}

#[test]
fn a_ragged_write_keeps_its_neighbours() {
    let mut bed = bed();
    let mut buffer = bed.buffer(20_000, 5_001);
    buffer.as_mut_slice().fill(0xee);
    let mut op = bed.op(Verb::Write, 5_001, Spans::One(buffer.into_span()));
    op.options.checksum = Some(Algorithm::Crc64Nvme);
    bed.lane.submit(Time(0), op).unwrap();
    let done = bed.run();
    assert_eq!(done.result.as_ref().unwrap(), &20_000);
    assert_eq!(done.checksum, Some(Algorithm::Crc64Nvme.of(&[0xee; 20_000])));
    // The core is whole pages: 8192..24576.
    assert_eq!(done.path.bytes, ByPath { dma: 16_384, kernel_copy: 3_616, staged: 0 });
    let file = bed.memory.lock().unwrap().bytes[0].clone();
    let expected = |at: usize| if (5_001..25_001).contains(&at) { 0xee } else { pattern(0, at) };
    assert!(file.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
    bed.idle();
}

#[test]
fn short_transfers_are_continued_and_a_sudden_end_is_an_error() {
    let mut bed = bed();
    bed.memory.lock().unwrap().lies.extend([Ok(512), Ok(1024)]);
    let buffer = bed.buffer(4_096, 0);
    let op = bed.op(Verb::Read, 0, Spans::One(buffer.into_span()));
    bed.lane.submit(Time(0), op).unwrap();
    let done = bed.run();
    assert_eq!(done.result.as_ref().unwrap(), &4_096);
    assert_eq!(bed.lane.counters().short, 2);

    for (lie, kind) in
        [(Ok(0), ErrorKind::ShortData), (Ok(100), ErrorKind::ShortData), (Ok(9_999), ErrorKind::Protocol)]
    {
        bed.memory.lock().unwrap().lies.push_back(lie);
        let buffer = bed.buffer(4_096, 0);
        let op = bed.op(Verb::Read, 0, Spans::One(buffer.into_span()));
        bed.lane.submit(Time(0), op).unwrap();
        let done = bed.run();
        assert_eq!(done.result.as_ref().unwrap_err().kind(), kind);
        assert!(done.op.is_some(), "memory comes back on failure too");
    }
    bed.idle();
}

#[test]
fn endless_short_transfers_end() {
    let mut bed = bed();
    let again = Fault::new(ErrorKind::Busy, 11).with_retry(crate::error::Retry::Now);
    bed.memory.lock().unwrap().lies.extend(std::iter::repeat_n(Err(again), 100));
    let buffer = bed.buffer(4_096, 0);
    let op = bed.op(Verb::Read, 0, Spans::One(buffer.into_span()));
    bed.lane.submit(Time(0), op).unwrap();
    let done = bed.run();
    assert_eq!(done.result.unwrap_err().code(), 11);
    assert_eq!(bed.lane.counters().resubmits, u64::from(RESUBMITS_MAX));
}

#[test]
fn a_refusal_says_that_nothing_was_written_only_if_no_try_before_may_have() {
    let full = Fault::new(ErrorKind::NoSpace, 28).not_applied();
    let again = Fault::new(ErrorKind::Io, 0).with_retry(crate::error::Retry::Now);
    for (lies, outcome) in [
        (vec![Err(full)], crate::error::WriteOutcome::NotApplied),
        (vec![Err(again.not_applied()), Err(full)], crate::error::WriteOutcome::NotApplied),
        (vec![Err(again), Err(full)], crate::error::WriteOutcome::Unknown),
        (vec![Err(Fault::new(ErrorKind::NoSpace, 28))], crate::error::WriteOutcome::Unknown),
    ] {
        let mut bed = bed();
        bed.memory.lock().unwrap().lies.extend(lies);
        let buffer = bed.buffer(4_096, 0);
        let op = bed.op(Verb::Write, 0, Spans::One(buffer.into_span()));
        bed.lane.submit(Time(0), op).unwrap();
        let error = bed.run().result.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::NoSpace, Some(outcome)));
    }
}

#[test]
fn memory_past_its_deadline_stays_until_the_device_lets_go() {
    let mut bed = bed();
    bed.memory.lock().unwrap().hold = true;
    let buffer = bed.buffer(4_096, 0);
    let mut op = bed.op(Verb::Read, 0, Spans::One(buffer.into_span()));
    op.options.deadline = Some(Time(100));
    bed.lane.submit(Time(0), op).unwrap();
    bed.lane.poll(Time(50), Wait::No);
    assert!(bed.lane.pop().is_none());
    bed.lane.poll(Time(100), Wait::No);
    let done = bed.lane.pop().unwrap();
    assert_eq!(done.result.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert!(done.op.is_none(), "a device may still write it");
    assert_eq!(bed.lane.slot_counts().abandoned, 1);
    bed.memory.lock().unwrap().hold = false;
    bed.lane.poll(Time(200), Wait::No);
    assert!(bed.lane.pop().is_none());
    bed.idle();
}

#[test]
fn a_device_that_cannot_be_stopped_is_quarantined_at_close() {
    let mut bed = bed();
    bed.memory.lock().unwrap().hold = true;
    let buffer = bed.buffer(4_096, 0);
    let op = bed.op(Verb::Write, 0, Spans::One(buffer.into_span()));
    bed.lane.submit(Time(0), op).unwrap();
    bed.lane.ring();
    assert_eq!(bed.lane.close(Time(1), Duration::ZERO), 1);
    let error = bed.lane.pop().unwrap().result.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Closed, Some(crate::error::WriteOutcome::Unknown)));
    assert_eq!(bed.lane.slot_counts().quarantined, 1);
    let buffer = bed.buffer(1, 0);
    let op = bed.op(Verb::Read, 0, Spans::One(buffer.into_span()));
    assert_eq!(bed.lane.submit(Time(2), op).unwrap_err().error.kind(), ErrorKind::Closed);
}

const KEPT: Fault = Fault::new(ErrorKind::NoDevice, 0).kept();

#[test]
fn an_io_that_ends_with_memory_that_stays_is_quarantined_and_the_queue_goes_on() {
    let mut bed = bed();
    let buffer = bed.buffer(4_096, 0);
    let weak = buffer.region().downgrade();
    let op = bed.op(Verb::Write, 0, Spans::One(buffer.into_span()));
    bed.memory.lock().unwrap().lies.push_back(Err(KEPT));
    bed.lane.submit(Time(0), op).unwrap();
    let done = bed.run();
    let error = done.result.unwrap_err();
    assert!(done.op.is_none(), "a device may still touch it");
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::NoDevice, Some(crate::error::WriteOutcome::Unknown)));
    assert!(error.to_string().contains("failed: mem0: it burnt down ["), "{error}");
    assert_eq!(error.remedy_text(), "buy another");
    assert_eq!((bed.lane.slot_counts().quarantined, bed.lane.counters().quarantined), (1, 1));
    // Others go on in the places that are left.
    for _ in 0..20 {
        let buffer = bed.buffer(40_960, 0);
        let op = bed.op(Verb::Read, 0, Spans::One(buffer.into_span()));
        bed.lane.submit(Time(0), op).unwrap();
        assert_eq!(bed.run().result.unwrap(), 40_960);
    }
    assert_eq!(bed.lane.counters().broken, 0);
    bed.memory.lock().unwrap().regions.clear();
    assert_eq!(bed.lane.close(Time(1), Duration::ZERO), 1, "a quiet fence frees none that was given up");
    drop(bed);
    assert!(weak.is_alive(), "leaked on purpose");
}

/// As many operations as the lane holds end with memory that stays: the lane has room for others all the same.
#[test]
fn kept_memory_takes_no_place_of_an_operation() {
    let mut bed = bed_with(1, 100_000, 3, 16);
    let mut kept = Vec::new();
    for _ in 0..4 {
        let buffer = bed.buffer(4_096, 0);
        kept.push(buffer.region().downgrade());
        let op = bed.op(Verb::Write, 0, Spans::One(buffer.into_span()));
        bed.memory.lock().unwrap().lies.push_back(Err(KEPT));
        bed.lane.submit(Time(0), op).unwrap();
    }
    for _ in 0..4 {
        assert_eq!(bed.run().result.unwrap_err().kind(), ErrorKind::NoDevice);
    }
    assert!(bed.lane.has_room() && bed.lane.in_flight() == 0, "{}", bed.lane.inspect());
    assert_eq!((bed.lane.slot_counts().quarantined, bed.lane.counters().quarantined), (4, 4));
    assert!(bed.lane.inspect().to_string().contains("kept"), "{}", bed.lane.inspect());
    let buffer = bed.buffer(40_960, 0);
    let op = bed.op(Verb::Read, 0, Spans::One(buffer.into_span()));
    bed.lane.submit(Time(0), op).unwrap();
    assert_eq!(bed.run().result.unwrap(), 40_960);
    bed.memory.lock().unwrap().regions.clear();
    drop(bed);
    assert!(kept.iter().all(sw_mem::WeakRegion::is_alive), "leaked on purpose");
}

/// Some I/Os of an operation are kept, others end: its memory stays, also if its caller went away.
#[test]
fn an_operation_of_which_one_io_is_kept_keeps_all_its_memory() {
    let mut bed = bed_with(1, 100_000, 3, 16);
    let buffer = bed.buffer(40_960, 0);
    let weak = buffer.region().downgrade();
    let op = bed.op(Verb::Read, 0, Spans::One(buffer.into_span()));
    bed.memory.lock().unwrap().lies.push_back(Err(KEPT));
    let id = bed.lane.submit(Time(0), op).unwrap();
    bed.lane.ring();
    bed.lane.abandon(Time(1), id);
    bed.lane.poll(Time(2), Wait::No);
    assert!(bed.lane.pop().is_none());
    assert_eq!((bed.lane.in_flight(), bed.lane.slot_counts().quarantined), (0, 1));
    bed.memory.lock().unwrap().regions.clear();
    assert!(weak.is_alive());
}

#[test]
fn an_abandoned_io_that_ends_so_is_quarantined_too() {
    let mut bed = bed();
    bed.memory.lock().unwrap().hold = true;
    let buffer = bed.buffer(4_096, 0);
    let mut op = bed.op(Verb::Read, 0, Spans::One(buffer.into_span()));
    op.options.deadline = Some(Time(10));
    bed.lane.submit(Time(0), op).unwrap();
    bed.lane.ring();
    bed.lane.poll(Time(10), Wait::No);
    assert_eq!(bed.lane.pop().unwrap().result.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    let mut memory = bed.memory.lock().unwrap();
    memory.hold = false;
    memory.lies.push_back(Err(KEPT));
    drop(memory);
    bed.lane.poll(Time(20), Wait::No);
    let counts = bed.lane.slot_counts();
    assert_eq!((counts.abandoned, counts.quarantined), (0, 1));
}

#[test]
fn a_queue_whose_every_place_is_kept_is_broken_and_nobody_waits_for_it() {
    let mut bed = bed_with(1, 100_000, 3, 2);
    bed.memory.lock().unwrap().lies.extend([Err(KEPT), Err(KEPT)]);
    for offset in [0, 4_096, 8_192] {
        let buffer = bed.buffer(4_096, 0);
        let op = bed.op(Verb::Read, offset, Spans::One(buffer.into_span()));
        bed.lane.submit(Time(0), op).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(bed.run().result.unwrap_err().kind(), ErrorKind::NoDevice);
    }
    assert_eq!((bed.lane.counters().broken, bed.lane.slot_counts().quarantined), (1, 2));
}

#[test]
fn vectored_and_striped_operations_reach_every_byte() {
    let mut bed = bed_with(3, 32_768, 3, 4);
    let geometry = StripeGeometry::new(4096, 3).unwrap();
    let members: Vec<_> = (0..3).map(|file| bed.target(file, Policy::Any, Verb::Read)).collect();
    let set = Arc::new(Object {
        id: Object::next_id(),
        name: "stripe".into(),
        len: geometry.logical_len(32_768),
        version: Version::default(),
        faces: Vec::new(),
        residency: Residency::Unknown.into(),
        composed: Some((Layout::Stripe(geometry), bed.objects.clone())),
        keep: Box::new(()),
    });
    let logical = |x: usize| pattern(x / 4096 % 3, x / 4096 / 3 * 4096 + x % 4096);
    let (first, second) = (bed.buffer(30_000, 777), bed.buffer(10_000, 0));
    let spans = Spans::Many(Box::new([
        Segment { offset: 777, span: first.into_span() },
        Segment { offset: 40_960, span: second.into_span() },
    ]));
    let target = Target::composed(set, members.iter().map(|target| target.choice).collect()).unwrap();
    let options = OpOptions { checksum: Some(Algorithm::Crc32c), ..OpOptions::default() };
    bed.lane.submit(Time(0), Op { user: 1, verb: Verb::Read, target, offset: 0, spans, options }).unwrap();
    let done = bed.run();
    assert_eq!(done.result.as_ref().unwrap(), &40_000);
    let expected: Vec<u8> = (777..30_777).chain(40_960..50_960).map(logical).collect();
    assert_eq!(done.checksum, Some(Algorithm::Crc32c.of(&expected)));
    let Spans::Many(segments) = done.op.unwrap().spans else { panic!() };
    let got: Vec<u8> = segments.into_iter().flat_map(|s| s.span.into_buffer().unwrap().as_slice().to_vec()).collect();
    assert!(got == expected);
    bed.idle();
}

#[test]
fn a_full_lane_gives_the_operation_back() {
    let mut bed = bed();
    bed.memory.lock().unwrap().hold = true;
    for _ in 0..4 {
        let buffer = bed.buffer(50_000, 0);
        let op = bed.op(Verb::Read, 0, Spans::One(buffer.into_span()));
        bed.lane.submit(Time(0), op).unwrap();
    }
    let buffer = bed.buffer(9, 0);
    let op = bed.op(Verb::Read, 0, Spans::One(buffer.into_span()));
    let rejected = bed.lane.submit(Time(0), op).unwrap_err();
    assert_eq!(rejected.error.kind(), ErrorKind::Busy);
    assert_eq!(rejected.op.spans.len(), 9);
    bed.memory.lock().unwrap().hold = false;
    for _ in 0..4 {
        assert_eq!(bed.run().result.unwrap(), 50_000);
    }
    bed.idle();
}

#[test]
fn ends_that_nobody_waits_for_touch_nothing() {
    let mut bed = bed();
    for raw in [0, 3, u64::MAX, 1 << 32] {
        bed.lane.io_ended(&IoDone { token: Token::from_raw(raw), result: Ok(512), aside: 0 });
        bed.lane.copy_ended(CopyDone { token: Token::from_raw(raw), result: Ok(()) });
    }
    assert_eq!(bed.lane.counters().stale, 8);
    bed.idle();
}

#[test]
fn ranges_and_kinds_are_checked_before_anything_is_done() {
    let mut bed = bed();
    let kind = |bed: &mut Bed, verb, offset, len| {
        let buffer = bed.buffer(len, 0);
        let op = bed.op(verb, offset, Spans::One(buffer.into_span()));
        bed.lane.submit(Time(0), op).unwrap_err().error.kind()
    };
    assert_eq!(kind(&mut bed, Verb::Read, 99_999, 2), ErrorKind::OutOfRange);
    assert_eq!(kind(&mut bed, Verb::Read, u64::MAX, 2), ErrorKind::OutOfRange);
    assert_eq!(kind(&mut bed, Verb::Write, i64::MAX as u64, 2), ErrorKind::OutOfRange);
    assert_eq!(kind(&mut bed, Verb::Flush, 0, 2), ErrorKind::ApiMisuse);
    let op = bed.op(Verb::Read, 100_000, Spans::Many(Box::new([])));
    bed.lane.submit(Time(0), op).unwrap();
    assert_eq!(bed.run().result.unwrap(), 0);
    let op = bed.op(Verb::Flush, 0, Spans::None);
    bed.lane.submit(Time(0), op).unwrap();
    assert_eq!(bed.run().result.unwrap(), 0);
    bed.idle();
}

#[test]
fn what_needs_a_slab_that_no_pool_has_is_refused_not_left_waiting() {
    let caps = bed().memory.lock().unwrap().caps;
    let bytes = vec![(0..65_536).map(|at| pattern(0, at)).collect()];
    let memory = Arc::new(Mutex::new(Memory::new(bytes, caps)));
    let parts = LaneParts { transports: vec![disk(&memory)], copiers: Vec::new(), staging: None };
    let config = LaneConfig { bounce_bytes: 4096, ..LaneConfig::default() };
    let mut bed = Bed { lane: Lane::new(config, parts).unwrap(), memory, objects: vec![object(0, 65_536)] };
    let mut large = bed.target(0, Policy::Any, Verb::Read).choice;
    large.main.granularity = Granularity { block: 4096, memory: 512 };
    let buffer = bed.buffer(10_000, 100);
    let mut op = bed.op(Verb::Read, 100, Spans::One(buffer.into_span()));
    let mut blocks_only = large;
    blocks_only.ends = None;
    op.target = Target::new(bed.objects[0].clone(), blocks_only).unwrap();
    let rejected = bed.lane.submit(Time(0), op).unwrap_err();
    assert_eq!(rejected.error.reasons(), [Reason::NoStaging]);
    // Another face takes the ends, byte for byte.
    let mut op = rejected.op;
    op.target = Target::new(bed.objects[0].clone(), large).unwrap();
    bed.lane.submit(Time(0), op).unwrap();
    let end = bed.run();
    assert_eq!(end.path.bytes, ByPath { dma: 4096, kernel_copy: 3996 + 1908, staged: 0 });
    assert_eq!((end.path.reason, end.path.bounced), (Reason::RaggedEnds, 0));
    let expected: Vec<u8> = (100..10_100).map(|at| pattern(0, at)).collect();
    assert!(buffer_of(end).as_slice() == expected);
    // Whole blocks have no ends, so they need no slab.
    let whole = bed.buffer(8192, 4096);
    let mut op = bed.op(Verb::Read, 4096, Spans::One(whole.into_span()));
    op.target = Target::new(bed.objects[0].clone(), large).unwrap();
    bed.lane.submit(Time(0), op).unwrap();
    let end = bed.run();
    assert_eq!(end.result.unwrap(), 8192);
    assert_eq!((end.path.bytes.dma, end.path.bounced), (8192, 0));
}

#[test]
fn what_no_slab_is_left_for_fails_with_a_remedy() {
    let mut bed = bed();
    // As after fences that said Busy: two devices keep both.
    let kept = [bed.lane.bounce.take().unwrap(), bed.lane.bounce.take().unwrap()].map(Stash::Bounce);
    for (device, stash) in (1..).map(Device).zip(&kept) {
        bed.lane.queues[0].shares.take(device, stash);
        bed.lane.queues[0].shares.keep_slab(device, stash);
    }
    let buffer = bed.buffer(1000, 7);
    let op = bed.op(Verb::Read, 7, Spans::One(buffer.into_span()));
    bed.lane.submit(Time(0), op).unwrap();
    let error = bed.run().result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceLimit);
    assert!(!error.remedy_text().is_empty() && error.to_string().contains("slab"), "{error}");
    kept.into_iter().for_each(|stash| bed.lane.put_stash(stash));
}

#[test]
fn an_operation_over_the_limits_is_refused() {
    let mut bed = bed();
    bed.lane.config.limits = crate::Limits { op_bytes_max: 1000, segments_max: 2 };
    let buffer = bed.buffer(1001, 0);
    let op = bed.op(Verb::Read, 0, Spans::One(buffer.into_span()));
    assert_eq!(bed.lane.submit(Time(0), op).unwrap_err().error.kind(), ErrorKind::TooLarge);
    let spans = (0..3).map(|_| Segment { offset: 0, span: bed.buffer(1, 0).into_span() }).collect();
    let op = bed.op(Verb::Read, 0, Spans::Many(spans));
    assert_eq!(bed.lane.submit(Time(0), op).unwrap_err().error.kind(), ErrorKind::TooLarge);
    let spans = (0..2).map(|_| Segment { offset: 0, span: bed.buffer(501, 0).into_span() }).collect();
    let op = bed.op(Verb::Read, 0, Spans::Many(spans));
    assert_eq!(bed.lane.submit(Time(0), op).unwrap_err().error.kind(), ErrorKind::TooLarge);
}

#[path = "lane_path_tests.rs"]
mod path;
#[path = "lane_pieces_tests.rs"]
mod pieces;
#[path = "lane_stripe_tests.rs"]
mod stripe;
