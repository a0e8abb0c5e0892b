use std::{sync::Arc, time::Duration};

use sw_engine::{
    ErrorKind, Fault, Retry, Token, WriteOutcome,
    seam::{Attach, Fence, Io, IoDone, IoKind, MAX_SEGMENTS, MemorySegment, Submit, Transport, Wait},
};
use sw_mem::{ByteLen, DmaRegion, DmaSpan, HugePages, SlabPool, model_span};

use super::{Completion, NVME, NvmeConfig, NvmeTransport};
use crate::{
    controller::{Controller, ControllerConfig, Life},
    directory::{Directory, face, handle, split},
    status::Status,
    testbus::{Lie, Model, ModelNamespace, Order, TestBus},
    wire::command::opcode,
};

mod control;
mod odd;

/// Memory for reads and writes, page aligned.
const MEMORY: u64 = 4 << 20;

struct Bed {
    bus: Arc<TestBus>,
    transport: NvmeTransport<TestBus>,
    region: DmaRegion,
    _pool: SlabPool,
    out: Vec<IoDone>,
}

impl Bed {
    fn new(model: Model) -> Self {
        Self::with(model, NvmeConfig::default())
    }

    fn with(model: Model, config: NvmeConfig) -> Self {
        let bus = TestBus::new(model);
        let directory = Arc::new(Directory::default());
        let controller = Controller::open(bus.clone(), ControllerConfig::default()).unwrap();
        assert_eq!(directory.add(controller).unwrap(), 0);
        let mut transport = NvmeTransport::new(directory, bus.waiter(), config).unwrap();
        let pool = SlabPool::new(1, ByteLen(MEMORY), HugePages::Never).unwrap();
        let region = pool.region().clone();
        transport.attach(Attach::Region(&region)).unwrap();
        Self { bus, transport, region, _pool: pool, out: Vec::with_capacity(256) }
    }

    fn segment(&self, at: u64, len: u32) -> MemorySegment {
        MemorySegment { place: self.region.base().advanced(ByteLen(at)), len, region: self.region.id() }
    }

    fn io(&self, token: u64, kind: IoKind, offset: u64, pieces: &[(u64, u32)]) -> Io {
        let mut segments = [self.segment(0, 4); MAX_SEGMENTS];
        segments.iter_mut().zip(pieces).for_each(|(to, (at, len))| *to = self.segment(*at, *len));
        Io {
            token: Token::from_raw(token),
            kind,
            object: sw_engine::ObjectId(1),
            handle: handle(0, 1),
            offset,
            len: pieces.iter().map(|(_, len)| *len).sum(),
            segment_count: u8::try_from(pieces.len()).unwrap(),
            segments,
        }
    }

    fn read(&self, token: u64, offset: u64, at: u64, len: u32) -> Io {
        self.io(token, IoKind::Read, offset, &[(at, len)])
    }

    fn submit(&mut self, io: &Io) {
        assert_eq!(self.transport.submit(io), Submit::Accepted);
    }

    fn poll(&mut self) -> Vec<(u64, Result<u32, Fault>)> {
        self.transport.ring().unwrap();
        self.out.clear();
        self.transport.poll(Wait::No, &mut self.out).unwrap();
        self.out.iter().map(|done| (done.token.raw(), done.result)).collect()
    }

    fn one(&mut self, io: &Io) -> Result<u32, Fault> {
        self.submit(io);
        let done = self.poll();
        assert_eq!(done.len(), 1, "{done:?}");
        assert_eq!(done[0].0, io.token.raw());
        done[0].1
    }

    fn memory(&self) -> DmaSpan {
        model_span(&self.region, 0, ByteLen(MEMORY)).unwrap()
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory().read(at, &mut bytes).unwrap();
        bytes
    }

    fn stored(&self, at: usize, len: usize) -> Vec<u8> {
        self.bus.model().namespaces[0].data[at..at + len].to_vec()
    }

    fn commands(&self) -> usize {
        self.bus.model().io_log.len()
    }
}

fn error(kind: ErrorKind) -> impl Fn(&Result<u32, Fault>) -> bool {
    move |result| result.is_err_and(|fault| fault.kind == kind)
}

#[test]
fn a_read_brings_the_blocks_and_touches_nothing_else() {
    let mut bed = Bed::new(Model::default());
    let io = bed.read(7, 8192, 4096, 4096);
    assert_eq!(bed.one(&io), Ok(4096));
    assert_eq!(bed.bytes(4096, 4096), bed.stored(8192, 4096));
    assert!(bed.bytes(0, 4096).iter().chain(&bed.bytes(8192, 4096)).all(|byte| *byte == 0));
    assert_eq!(bed.transport.in_flight(), 0);
}

#[test]
fn a_write_and_a_flush_reach_the_blocks() {
    let mut bed = Bed::new(Model::default());
    bed.memory().fill(0, 1 << 16, 0x5A).unwrap();
    let write = bed.io(1, IoKind::Write, 512, &[(12, 1 << 16)]);
    assert_eq!(bed.one(&write), Ok(1 << 16));
    assert!(bed.stored(512, 1 << 16).iter().take((1 << 16) - 12).all(|byte| *byte == 0x5A));
    let flush = bed.io(2, IoKind::FlushAll, 0, &[]);
    assert_eq!(bed.one(&flush), Ok(0));
    assert_eq!(bed.bus.model().io_log.last().unwrap().opcode(), opcode::FLUSH);
}

#[test]
fn a_batch_costs_one_doorbell_each_way() {
    let mut bed = Bed::new(Model { order: Order::Reverse, ..Model::default() });
    let first = bed.read(99, 0, 0, 4096);
    bed.one(&first).unwrap();
    let before = bed.transport.counters().queues;
    for slot in 0..32u32 {
        let at = u64::from(slot) * 4096;
        let io = bed.read(u64::from(slot), at, at, 4096);
        bed.submit(&io);
    }
    let done = bed.poll();
    assert_eq!(done.len(), 32);
    assert_eq!(done[0].0, 31, "completions come in any order");
    let after = bed.transport.counters().queues;
    assert_eq!((after.sq_doorbells - before.sq_doorbells, after.cq_doorbells - before.cq_doorbells), (1, 1));
    assert_eq!(after.prp_list_bytes, before.prp_list_bytes, "one page needs no list");
    assert_eq!(bed.bytes(0, 32 * 4096), bed.stored(0, 32 * 4096));
    assert_eq!(bed.poll(), [], "a poll that finds nothing rings nothing");
    assert_eq!(bed.transport.counters().queues.cq_doorbells, after.cq_doorbells);
}

#[test]
fn an_io_is_cut_by_what_a_command_may_move() {
    let mut bed = Bed::new(Model { mdts: 1, ..Model::default() });
    let io = bed.read(1, 1024, 512, 64 << 10);
    assert_eq!(bed.one(&io), Ok(64 << 10));
    assert_eq!(bed.bytes(512, 64 << 10), bed.stored(1024, 64 << 10));
    assert_eq!((bed.commands(), bed.transport.counters().splits), (8, 7));
}

#[test]
fn no_command_crosses_the_boundary_of_the_namespace() {
    let mut namespace = ModelNamespace::new(1, 9, 4096);
    namespace.boundary_blocks = 16;
    let mut bed = Bed::new(Model { namespaces: vec![namespace], ..Model::default() });
    let io = bed.read(1, 12 * 512, 0, 40 * 512);
    assert_eq!(bed.one(&io), Ok(40 * 512));
    let cuts: Vec<(u64, u32)> =
        bed.bus.model().io_log.iter().map(|one| (one.range().slba, one.range().nlb.get())).collect();
    assert_eq!(cuts, [(12, 4), (16, 16), (32, 16), (48, 4)]);
}

#[test]
fn writes_that_are_cut_start_where_the_namespace_prefers_it() {
    let mut namespace = ModelNamespace::new(1, 9, 4096);
    namespace.write_blocks = 8;
    let mut bed = Bed::new(Model { mdts: 1, namespaces: vec![namespace], ..Model::default() });
    bed.memory().fill(0, 40 * 512, 0x5A).unwrap();
    for (kind, cuts) in [(IoKind::Write, [(13, 11), (24, 16), (40, 13)]), (IoKind::Read, [(13, 16), (29, 16), (45, 8)])]
    {
        bed.bus.model().io_log.clear();
        let io = bed.io(1, kind, 13 * 512, &[(0, 40 * 512)]);
        assert_eq!(bed.one(&io), Ok(40 * 512));
        let sent: Vec<(u64, u32)> =
            bed.bus.model().io_log.iter().map(|one| (one.range().slba, one.range().nlb.get())).collect();
        assert_eq!(sent, cuts, "{kind:?}");
    }
    assert!(bed.stored(13 * 512, 40 * 512).iter().all(|byte| *byte == 0x5A));
}

#[test]
fn pieces_that_meet_between_pages_go_in_one_command_and_others_do_not() {
    let mut bed = Bed::new(Model::default());
    let joined = bed.io(1, IoKind::Read, 0, &[(3584, 512), (16384, 8192), (65536, 512)]);
    assert_eq!(bed.one(&joined), Ok(512 + 8192 + 512));
    assert_eq!(bed.commands(), 1);
    let ragged = bed.io(2, IoKind::Read, 0, &[(0, 512), (17408, 8192), (65536, 512)]);
    assert_eq!(bed.one(&ragged), Ok(512 + 8192 + 512));
    assert_eq!(bed.commands(), 1 + 3);
    let mut there = bed.bytes(0, 512);
    there.extend(bed.bytes(17408, 8192));
    there.extend(bed.bytes(65536, 512));
    assert_eq!(there, bed.stored(0, 512 + 8192 + 512));
}

#[test]
fn where_the_controller_takes_lists_ragged_pieces_go_in_one_command() {
    let never = NvmeConfig { scatter_gather: super::ScatterGather::Never, ..NvmeConfig::default() };
    for (config, commands) in [(NvmeConfig::default(), 1), (never, 3)] {
        let mut bed = Bed::with(Model { sgl_offered: true, ..Model::default() }, config);
        let pieces = [(0, 512), (17408, 8192), (65536, 512)];
        let ragged = bed.io(2, IoKind::Read, 0, &pieces);
        assert_eq!(bed.one(&ragged), Ok(512 + 8192 + 512));
        assert_eq!(bed.commands(), commands);
        let there: Vec<u8> = pieces.iter().flat_map(|(at, len)| bed.bytes(*at, *len as usize)).collect();
        assert_eq!(there, bed.stored(0, 512 + 8192 + 512));
        assert_eq!(bed.transport.counters().queues.sgl_commands, u64::from(commands == 1));
        // A joint inside a block: only a list can describe that.
        let inside = bed.io(3, IoKind::Read, 0, &[(0, 100), (17408, 412)]);
        let result = bed.one(&inside);
        if commands == 1 {
            assert_eq!(result, Ok(512));
        } else {
            assert!(error(ErrorKind::Unsupported)(&result), "{result:?}");
        }
    }
}

#[test]
fn an_io_of_more_commands_than_the_queue_has_places_goes_through() {
    let namespaces = vec![ModelNamespace::new(1, 12, 512)];
    let config = NvmeConfig { commands_per_controller: 3, ..NvmeConfig::default() };
    let mut bed = Bed::with(Model { namespaces, mdts: 0, order: Order::Reverse, ..Model::default() }, config);
    bed.bus.model().namespaces[0].boundary_blocks = 1;
    bed.transport.directory.get(0).unwrap().rescan().unwrap();
    let ios = [bed.read(1, 0, 0, 1 << 20), bed.read(2, 1 << 20, 1 << 20, 1 << 20)];
    ios.iter().for_each(|io| bed.submit(io));
    let mut done = Vec::new();
    for _ in 0..400 {
        done.extend(bed.poll());
    }
    assert_eq!(done, [(1, Ok(1 << 20)), (2, Ok(1 << 20))]);
    assert_eq!(bed.commands(), 512);
    assert_eq!(bed.bytes(0, 2 << 20), bed.stored(0, 2 << 20));
}

#[test]
fn bytes_before_a_bad_block_are_reported_and_the_rest_is_the_error() {
    let mut bed = Bed::new(Model { mdts: 1, ..Model::default() });
    let bad = Status::UNRECOVERED_READ.with_dnr();
    bed.bus.model().statuses.extend([Status::SUCCESS, bad, Status::SUCCESS, Status::SUCCESS]);
    let io = bed.read(1, 0, 0, 32 << 10);
    assert_eq!(bed.one(&io), Ok(8 << 10));
    bed.bus.model().statuses.extend([bad]);
    let rest = bed.read(2, 8 << 10, 8 << 10, 24 << 10);
    let result = bed.one(&rest);
    assert!(error(ErrorKind::Io)(&result), "{result:?}");
    assert_eq!(result.unwrap_err().code, i32::from(bad.code()));
}

#[test]
fn a_status_that_allows_it_is_retried_after_its_delay() {
    let mut bed = Bed::new(Model { crdt1: 2, ..Model::default() });
    bed.bus.model().statuses.extend([Status::NAMESPACE_NOT_READY.with_crd(1)]);
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    assert_eq!(bed.poll(), []);
    bed.bus.model().now_ns += 199_000_000;
    assert_eq!(bed.poll(), []);
    assert_eq!(bed.commands(), 1, "the delay is not over");
    bed.bus.model().now_ns += 1_000_000;
    bed.poll();
    assert_eq!(bed.poll(), [(1, Ok(4096))]);
    assert_eq!((bed.commands(), bed.transport.counters().retries), (2, 1));
}

#[test]
fn a_command_that_waits_for_its_retry_fails_with_its_own_status_if_another_one_fails_for_good() {
    let mut bed = Bed::new(Model { mdts: 1, crdt1: 2, ..Model::default() });
    let bad = Status::UNRECOVERED_READ.with_dnr();
    bed.bus.model().statuses.extend([Status::NAMESPACE_NOT_READY.with_crd(1), bad]);
    let io = bed.read(1, 0, 0, 16 << 10);
    bed.submit(&io);
    let mut done = bed.poll();
    done.extend(bed.poll());
    assert!(done.len() == 1 && error(ErrorKind::Busy)(&done[0].1), "{done:?}");
    assert_eq!(bed.commands(), 2);
}

#[test]
fn that_nothing_was_written_is_said_of_all_commands_or_not_at_all() {
    let refused = Status::LBA_OUT_OF_RANGE.with_dnr();
    let (none, unknown) = (WriteOutcome::NotApplied, WriteOutcome::Unknown);
    for (statuses, outcome) in [
        (vec![refused, refused], none),
        (vec![refused, Status::SUCCESS], unknown),
        (vec![refused, Status::WRITE_FAULT.with_dnr()], unknown),
    ] {
        let mut bed = Bed::new(Model { mdts: 1, ..Model::default() });
        bed.bus.model().statuses.extend(statuses);
        let io = bed.io(1, IoKind::Write, 0, &[(0, 16 << 10)]);
        let fault = bed.one(&io).unwrap_err();
        assert_eq!((fault.code, fault.outcome), (i32::from(refused.code()), outcome));
    }
    // A first try that failed in another way may have written; one that was refused has not.
    for (first, outcome) in
        [(Status::INTERNAL, unknown), (Status::NAMESPACE_NOT_READY, unknown), (Status::LBA_OUT_OF_RANGE, none)]
    {
        let mut bed = Bed::new(Model::default());
        bed.bus.model().statuses.extend([first, refused]);
        let io = bed.io(1, IoKind::Write, 0, &[(0, 4096)]);
        bed.submit(&io);
        let done: Vec<_> = (0..10).flat_map(|_| bed.poll()).collect();
        assert!(done.len() == 1 && done[0].1.is_err_and(|fault| fault.outcome == outcome), "{done:?}");
    }
}

#[test]
fn retries_end() {
    let mut bed = Bed::new(Model::default());
    bed.bus.model().statuses.extend([Status::INTERNAL; 20]);
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    let mut done = Vec::new();
    for _ in 0..30 {
        done.extend(bed.poll());
    }
    assert!(done.len() == 1 && error(ErrorKind::Io)(&done[0].1), "{done:?}");
    assert_eq!(done[0].1.unwrap_err().retry, Retry::Never, "the engine does not retry what was retried");
    assert_eq!(bed.commands(), 6);
}

#[test]
fn attached_memory_goes_with_its_owner() {
    let mut bed = Bed::new(Model::default());
    let region = sw_mem::Buffer::allocate(ByteLen(8192)).unwrap().into_span().region().clone();
    bed.transport.attach(Attach::Region(&region)).unwrap();
    assert_eq!(region.holders(), 2, "the model keeps what it maps, the transport nothing");
    bed.bus.model().memory.forget(region.id());
    let weak = region.downgrade();
    drop(region);
    assert!(!weak.is_alive());
    bed.transport.attach(Attach::RegionGone(weak.id())).unwrap();
}

#[test]
fn memory_that_was_not_attached_is_refused_before_anything_is_sent() {
    let mut bed = Bed::new(Model::default());
    let good = bed.read(1, 0, 0, 4096);
    bed.one(&good).unwrap();
    let mut foreign = good;
    foreign.segments[0].region = sw_mem::RegionId(u64::MAX);
    assert!(error(ErrorKind::NotRegistered)(&bed.one(&foreign)));
    let mut outside = good;
    outside.segments[0].place = bed.region.base().advanced(ByteLen(MEMORY));
    assert!(error(ErrorKind::NotRegistered)(&bed.one(&outside)));
    bed.transport.attach(Attach::RegionGone(bed.region.id())).unwrap();
    assert!(error(ErrorKind::NotRegistered)(&bed.one(&good)));
    assert_eq!(bed.commands(), 1);
    assert!(bed.bus.model().memory.faults.is_empty());
}

#[test]
fn memory_goes_when_its_owner_lets_go_of_it() {
    let mut bed = Bed::new(Model::default());
    let good = bed.read(1, 0, 0, 4096);
    bed.one(&good).unwrap();
    for _ in 0..500 {
        let pool = SlabPool::new(1, ByteLen(4096), HugePages::Never).unwrap();
        let (region, holders) = (pool.region().clone(), pool.region().holders());
        bed.transport.attach(Attach::Region(&region)).unwrap();
        bed.bus.model().memory.unmap(region.id());
        assert_eq!(region.holders(), holders, "the transport holds none");
    }
    bed.transport.attach(Attach::Region(&bed.region)).unwrap();
    assert!(bed.transport.attached.len() <= 2, "dead regions leave the tables");
    assert_eq!(bed.one(&good), Ok(4096));
}

#[test]
fn what_is_not_there_is_no_device() {
    let mut bed = Bed::new(Model::default());
    let mut io = bed.read(1, 0, 0, 4096);
    io.handle = handle(3, 1);
    assert!(error(ErrorKind::NoDevice)(&bed.one(&io)));
    io.handle = handle(0, 2);
    assert!(error(ErrorKind::NoDevice)(&bed.one(&io)));
    io.handle = handle(0, 1);
    io.offset = 4096 * 512 - 512;
    assert!(error(ErrorKind::OutOfRange)(&bed.one(&io)));
}

#[test]
fn without_a_write_cache_a_flush_is_done_at_once() {
    let mut bed = Bed::new(Model { write_cache: false, ..Model::default() });
    let flush = bed.io(2, IoKind::FlushData, 0, &[]);
    assert_eq!(bed.one(&flush), Ok(0));
    assert_eq!(bed.commands(), 0);
}

#[test]
fn a_cancelled_io_is_aborted_and_ends_once() {
    let mut bed = Bed::new(Model { hold: true, ..Model::default() });
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    assert_eq!(bed.poll(), []);
    bed.transport.cancel(Token::from_raw(2));
    bed.transport.cancel(io.token);
    let done = bed.poll();
    assert!(done.len() == 1 && error(ErrorKind::Cancelled)(&done[0].1), "{done:?}");
    assert_eq!((bed.transport.in_flight(), bed.transport.counters().aborts), (0, 1));
}

#[test]
fn a_cancelled_io_that_waits_for_room_ends_without_a_command() {
    let config = NvmeConfig { commands_per_controller: 1, ..NvmeConfig::default() };
    let mut bed = Bed::with(Model { hold: true, ..Model::default() }, config);
    let ios = [bed.read(1, 0, 0, 4096), bed.read(2, 0, 4096, 4096)];
    ios.iter().for_each(|io| bed.submit(io));
    assert_eq!(bed.poll(), []);
    bed.transport.cancel(ios[1].token);
    let done = bed.poll();
    assert!(done.len() == 1 && done[0].0 == 2 && error(ErrorKind::Cancelled)(&done[0].1), "{done:?}");
    bed.bus.model().release();
    assert_eq!(bed.poll(), [(1, Ok(4096))]);
    assert_eq!(bed.commands(), 1);
}

#[test]
fn a_lie_of_the_controller_ends_in_a_reset_and_the_ios_may_go_again() {
    let lies = [Lie::Twice, Lie::StaleCid, Lie::UnknownCid, Lie::OtherQueue, Lie::HeadOutside];
    for lie in lies {
        let mut bed = Bed::new(Model::default());
        let warm_up = bed.read(9, 0, 0, 4096);
        bed.one(&warm_up).unwrap();
        bed.bus.model().lie = Some(lie);
        let ios = [bed.read(1, 0, 0, 4096), bed.read(2, 4096, 4096, 4096)];
        ios.iter().for_each(|io| bed.submit(io));
        let mut done = bed.poll();
        done.extend(bed.poll());
        assert_eq!(done.len(), 2, "{lie:?}: {done:?}");
        let again = done.iter().filter(|(_, result)| result.is_err()).count();
        assert_eq!(again, if lie == Lie::Twice { 1 } else { 2 }, "{lie:?}: {done:?}");
        let now = |result: &Result<u32, Fault>| result.is_ok() || result.is_err_and(|fault| fault.retry == Retry::Now);
        assert!(done.iter().all(|(_, result)| now(result)), "{lie:?}: {done:?}");
        let counters = bed.transport.counters();
        assert_eq!((counters.queues.breaches, counters.resets, counters.pairs), (1, 1, 1), "{lie:?}");
        assert_eq!(bed.one(&ios[1]), Ok(4096), "{lie:?}: it works again");
        assert_eq!(bed.transport.counters().pairs, 2);
        assert_eq!(bed.bus.model().bad_doorbells, 0, "{lie:?}");
    }
}

#[test]
fn a_controller_that_is_gone_fails_its_ios() {
    for completion in [Completion::Polled, Completion::Interrupt, Completion::Hybrid { spin: Duration::from_millis(1) }]
    {
        let mut bed =
            Bed::with(Model { hold: true, ..Model::default() }, NvmeConfig { completion, ..NvmeConfig::default() });
        let io = bed.read(1, 0, 0, 4096);
        bed.submit(&io);
        bed.transport.ring().unwrap();
        bed.bus.model().gone = true;
        let wait = Wait::For { timeout: Duration::from_secs(10), min: 1 };
        bed.out.clear();
        bed.transport.poll(wait, &mut bed.out).unwrap();
        assert!(error(ErrorKind::NoDevice)(&bed.out[0].result), "{:?}", bed.out);
        assert!(error(ErrorKind::NoDevice)(&bed.one(&io)), "later ones fail at once");
        assert_eq!(bed.transport.fence(Duration::from_secs(1), &mut bed.out), Fence::Quiet);
    }
}

#[test]
fn a_lost_command_is_aborted_and_then_the_controller_is_reset() {
    let interrupt = NvmeConfig { completion: Completion::Interrupt, ..NvmeConfig::default() };
    let mut bed = Bed::with(Model { lose: 1, ..Model::default() }, interrupt);
    let lost = bed.read(1, 0, 0, 4096);
    bed.submit(&lost);
    bed.transport.ring().unwrap();
    let begun = bed.bus.model().now_ns;
    bed.out.clear();
    let wait = Wait::For { timeout: Duration::from_secs(300), min: 1 };
    assert_eq!(bed.transport.poll(wait, &mut bed.out).unwrap(), 1);
    assert_eq!(bed.out[0].result, Err(Fault::new(ErrorKind::Io, 0).with_retry(Retry::Now)));
    let seconds = (bed.bus.model().now_ns - begun) / 1_000_000_000;
    assert!((40..45).contains(&seconds), "{seconds}");
    let counters = bed.transport.counters();
    assert_eq!((counters.aborts, counters.resets), (1, 1));
    assert_eq!(bed.one(&lost), Ok(4096));
}

#[test]
fn a_clock_that_jumps_makes_no_command_late() {
    let mut bed = Bed::new(Model { hold: true, ..Model::default() });
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    bed.poll();
    bed.bus.model().now_ns += 3_600_000_000_000;
    for _ in 0..1000 {
        assert_eq!(bed.poll(), []);
    }
    assert_eq!((bed.transport.counters().aborts, bed.transport.counters().resets), (0, 0));
    bed.bus.model().release();
    assert_eq!(bed.poll(), [(1, Ok(4096))]);
}

#[test]
fn a_fence_with_nothing_in_flight_gives_the_queue_back() {
    let mut bed = Bed::new(Model::default());
    let io = bed.read(1, 0, 0, 4096);
    bed.one(&io).unwrap();
    assert_eq!(bed.transport.fence(Duration::from_secs(1), &mut bed.out), Fence::Quiet);
    let controller = bed.transport.directory.get(0).unwrap();
    assert_eq!((controller.queue_pairs_in_use(), controller.counters().resets), (0, 0));
    assert_eq!(bed.transport.submit(&io), Submit::Full, "closed");
}

#[test]
fn a_fence_ends_what_is_in_flight() {
    for lose in [0, 2] {
        let mut bed = Bed::new(Model { hold: true, lose, ..Model::default() });
        let ios = [bed.read(1, 0, 0, 4096), bed.read(2, 0, 4096, 4096)];
        ios.iter().for_each(|io| bed.submit(io));
        if lose > 0 {
            bed.transport.ring().unwrap();
            bed.bus.model().release();
        }
        bed.out.clear();
        assert_eq!(bed.transport.fence(Duration::from_secs(1), &mut bed.out), Fence::Quiet);
        assert_eq!(bed.out.len(), 2);
        assert!(bed.out.iter().all(|done| error(ErrorKind::Cancelled)(&done.result)), "{:?}", bed.out);
        let controller = bed.transport.directory.get(0).unwrap();
        assert_eq!(controller.counters().resets, u64::from(lose > 0), "a reset only if aborts do not help");
        assert_eq!(controller.queue_pairs_in_use(), 0);
    }
}

#[test]
fn a_controller_that_cannot_be_stopped_keeps_its_memory_for_ever() {
    let mut bed = Bed::new(Model { lose: 1, can_stop: false, ..Model::default() });
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    bed.poll();
    bed.bus.model().stays_ready = true;
    let holders = bed.region.holders();
    let leaked = super::leaked_pairs();
    bed.out.clear();
    // Long enough for all that CAP.TO allows.
    assert_eq!(bed.transport.fence(Duration::from_secs(4), &mut bed.out), Fence::Busy(1));
    assert!(bed.out.len() == 1 && bed.out[0].result.unwrap_err().keeps_memory(), "{:?}", bed.out);
    let Bed { transport, region, .. } = bed;
    drop(transport);
    assert!(super::leaked_pairs() > leaked);
    assert!(region.holders() > holders - 1, "a handle of the region is kept for the controller");
}

#[test]
fn a_loud_controller_ends_its_ios_with_memory_that_stays_and_the_others_go_on() {
    let mut bed = Bed::new(Model { lose: 1, can_stop: false, ..Model::default() });
    let other = TestBus::new(Model::default());
    let second = Controller::open(other.clone(), ControllerConfig::default()).unwrap();
    assert_eq!(bed.transport.directory.add(second).unwrap(), 1);
    bed.transport.attach(Attach::RegionGone(bed.region.id())).unwrap();
    let region = bed.region.clone();
    bed.transport.attach(Attach::Region(&region)).unwrap();
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    let well = Io { handle: handle(1, 1), ..bed.read(2, 8192, 8192, 4096) };
    other.model().hold = true;
    bed.submit(&well);
    assert_eq!(bed.poll(), []);
    bed.bus.model().stays_ready = true;
    bed.bus.model().fatal = true;
    bed.out.clear();
    let wait = Wait::For { timeout: Duration::from_secs(60), min: 1 };
    assert_eq!(bed.transport.poll(wait, &mut bed.out).unwrap(), 1);
    let fault = bed.out[0].result.unwrap_err();
    assert!(bed.out[0].token == io.token && fault.kind == ErrorKind::NoDevice && fault.keeps_memory(), "{fault:?}");
    // What comes later is not sent, so that its memory is free; and it is told why.
    let later = bed.one(&bed.read(3, 0, 0, 4096)).unwrap_err();
    assert!(later.kind == ErrorKind::NoDevice && !later.keeps_memory(), "{later:?}");
    let why = bed.transport.explain(io.handle, later).unwrap().to_string();
    assert!(why.contains("0000:00:04.0") && why.contains("neither be disabled nor stopped"), "{why}");
    other.model().release();
    assert_eq!(bed.poll(), [(2, Ok(4096))], "the other controller goes on");
    assert_eq!(bed.one(&well), Ok(4096));
    assert_eq!(bed.transport.fence(Duration::from_millis(200), &mut bed.out), Fence::Busy(1), "the one that was kept");
    assert!(bed.out.iter().all(|done| done.result.is_ok() || done.token == io.token), "{:?}", bed.out);
}

#[test]
fn a_reset_by_one_transport_is_learnt_by_the_other() {
    let mut bed = Bed::new(Model { hold: true, ..Model::default() });
    let directory = bed.transport.directory.clone();
    let mut other = NvmeTransport::new(directory, bed.bus.waiter(), NvmeConfig::default()).unwrap();
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    assert_eq!(bed.poll(), []);
    other.attach(Attach::Region(&bed.region)).unwrap();
    assert_eq!(other.submit(&io), Submit::Accepted);
    other.ring().unwrap();
    bed.bus.model().mute = Some(crate::wire::admin::opcode::ABORT);
    bed.bus.model().refuse = Some((crate::wire::admin::opcode::DELETE_SQ, Status::INVALID_QUEUE_ID));
    assert_eq!(other.fence(Duration::from_millis(100), &mut bed.out), Fence::Quiet);
    let done = bed.poll();
    assert_eq!(done, [(1, Err(Fault::new(ErrorKind::Io, 0).with_retry(Retry::Now)))]);
    bed.bus.model().hold = false;
    assert_eq!(bed.one(&io), Ok(4096));
    assert_eq!(bed.bus.model().bad_doorbells, 0);
}

#[test]
fn waits_end_by_interrupt_wake_up_and_time() {
    let interrupt = NvmeConfig { completion: Completion::Interrupt, ..NvmeConfig::default() };
    let mut bed = Bed::with(Model::default(), interrupt);
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    let wait = Wait::For { timeout: Duration::from_secs(5), min: 1 };
    bed.out.clear();
    assert_eq!(bed.transport.poll(wait, &mut bed.out).unwrap(), 1, "it rings before it waits");
    // The interrupt of the first read is still there: it is no wake-up, and the poll waits on.
    let before = bed.bus.model().now_ns;
    assert_eq!(bed.transport.poll(wait, &mut bed.out).unwrap(), 0);
    let waited = bed.bus.model().now_ns - before;
    assert!((5_000_000_000..5_200_000_000).contains(&waited), "{waited}");
    bed.transport.waker().wake();
    let before = bed.bus.model().now_ns;
    assert_eq!(bed.transport.poll(wait, &mut bed.out).unwrap(), 0);
    assert!(bed.bus.model().now_ns - before < 1_000_000);
}

#[test]
fn a_lost_interrupt_costs_a_moment() {
    let interrupt = NvmeConfig { completion: Completion::Interrupt, ..NvmeConfig::default() };
    let mut bed = Bed::with(Model { hold: true, interrupts_lost: true, ..Model::default() }, interrupt);
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    assert_eq!(bed.poll(), []);
    bed.bus.model().release_at = Some(5_000_000_000);
    bed.bus.model().now_ns = 4_999_000_000;
    bed.out.clear();
    let wait = Wait::For { timeout: Duration::from_secs(5), min: 1 };
    assert_eq!(bed.transport.poll(wait, &mut bed.out).unwrap(), 1);
    assert!(bed.bus.model().now_ns < 5_050_000_000, "{}", bed.bus.model().now_ns);
    assert_eq!(bed.transport.counters().lost_interrupts, 1);
}

#[test]
fn without_a_free_queue_pair_an_io_fails_and_the_next_one_asks_again() {
    let mut bed = Bed::new(Model { queues_given: 1, ..Model::default() });
    let directory = bed.transport.directory.clone();
    let mut other = NvmeTransport::new(directory.clone(), bed.bus.waiter(), NvmeConfig::default()).unwrap();
    let io = bed.read(1, 0, 0, 4096);
    bed.one(&io).unwrap();
    other.attach(Attach::Region(&bed.region)).unwrap();
    let mut done = Vec::with_capacity(4);
    assert_eq!(other.submit(&io), Submit::Accepted);
    other.poll(Wait::No, &mut done).unwrap();
    assert!(error(ErrorKind::ResourceLimit)(&done[0].result), "{done:?}");
    bed.transport.fence(Duration::from_secs(1), &mut bed.out);
    assert_eq!(other.submit(&io), Submit::Accepted);
    done.clear();
    other.poll(Wait::No, &mut done).unwrap();
    assert_eq!(done[0].result, Ok(4096));
}

#[test]
fn a_queue_pair_that_is_never_answered_costs_a_reset_and_the_io_waits() {
    let mut bed = Bed::new(Model::default());
    bed.bus.model().mute = Some(crate::wire::admin::opcode::CREATE_CQ);
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    assert_eq!(bed.poll(), [], "the admin queue is stuck, and the controller was reset");
    let controller = bed.transport.directory.get(0).unwrap();
    assert_eq!((controller.life(), controller.queue_pairs_in_use()), (Life::Up(3), 0));
    bed.bus.model().mute = None;
    assert_eq!(bed.poll(), [(1, Ok(4096))]);
    assert_eq!(controller.counters().resets, 2);
}

#[test]
fn a_controller_that_never_answers_is_given_up() {
    let mut bed = Bed::new(Model::default());
    bed.bus.model().mute = Some(crate::wire::admin::opcode::CREATE_CQ);
    let io = bed.read(1, 0, 0, 4096);
    bed.submit(&io);
    let done: Vec<_> = (0..4).flat_map(|_| bed.poll()).collect();
    assert!(done.len() == 1 && error(ErrorKind::NoDevice)(&done[0].1), "{done:?}");
}

#[test]
fn shadow_doorbells_spare_registers_and_a_nudge_helps_a_device_that_missed_one() {
    let mut bed = Bed::new(Model { shadow_offered: true, ..Model::default() });
    for token in 0..200 {
        let io = bed.read(token, 0, 0, 4096);
        bed.submit(&io);
        bed.transport.ring().unwrap();
        // The device looks at its shadow buffer in its own time.
        bed.bus.model().let_time_pass();
        assert_eq!(bed.poll(), [(token, Ok(4096))]);
    }
    let counters = bed.transport.counters().queues;
    assert!(counters.shadowed > 0 && counters.sq_doorbells + counters.cq_doorbells < 400, "{counters:?}");
    assert_eq!(counters.shadowed + counters.sq_doorbells + counters.cq_doorbells, 400);
    assert!(bed.bus.model().full_barriers >= 400);
}

#[test]
fn a_namespace_that_comes_later_is_found() {
    let mut bed = Bed::new(Model::default());
    let mut io = bed.read(1, 0, 0, 4096);
    bed.one(&io).unwrap();
    bed.bus.model().namespaces.push(ModelNamespace::new(5, 12, 16));
    bed.bus.model().raise(0x0004_0002);
    bed.bus.model().now_ns += 200_000_000;
    (0..256).for_each(|_| drop(bed.poll()));
    let namespaces = bed.transport.directory.get(0).unwrap().namespaces();
    let face = face(0, &namespaces[1]).unwrap();
    assert_eq!((split(face.handle), face.transport, face.granularity.block), ((0, 5), NVME, 4096));
    io.handle = face.handle;
    assert_eq!(bed.one(&io), Ok(4096));
}

#[test]
fn every_length_and_offset_of_a_page_arrives() {
    let namespaces = vec![ModelNamespace::new(1, 9, 8192)];
    let mut bed = Bed::new(Model { namespaces, mdts: 9, ..Model::default() });
    for (len, at) in [(512, 0), (512, 3584), (512, 3588), (4096, 4), (8192, 0), (8192, 2048), (12288, 4092)]
        .into_iter()
        .chain([(1 << 20, 0), (1 << 20, 4), (1 << 20, 4092), ((1 << 20) - 512, 2044)])
    {
        bed.memory().fill(0, MEMORY, 0xEE).unwrap();
        let io = bed.read(1, 512, at, len);
        assert_eq!(bed.one(&io), Ok(len), "{len} at {at}");
        let (start, end) = (usize::try_from(at).unwrap(), usize::try_from(at).unwrap() + len as usize);
        let all = bed.bytes(0, usize::try_from(MEMORY).unwrap());
        assert_eq!(all[start..end], bed.stored(512, len as usize), "{len} at {at}");
        assert!(all[..start].iter().chain(&all[end..]).all(|byte| *byte == 0xEE), "{len} at {at}");
    }
    assert_eq!(bed.transport.counters().splits, 0);
}
