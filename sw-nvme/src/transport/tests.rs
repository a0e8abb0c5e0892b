use std::{sync::Arc, time::Duration};

use sw_engine::{
    ErrorKind, Fault, Retry, Token,
    seam::{Attach, Fence, Io, IoDone, IoKind, MAX_SEGMENTS, MemorySegment, Submit, Transport, Wait},
};
use sw_mem::{ByteLen, DmaRegion, DmaSpan, HostMapping, HugePages, SlabPool, model_span};

use super::{Completion, NVME, NvmeConfig, NvmeTransport};
use crate::{
    controller::{Controller, ControllerConfig},
    directory::{Directory, face, handle},
    status::Status,
    testbus::{Lie, Model, ModelNamespace, Order, TestBus},
    wire::command::opcode,
};

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

    /// Submits, and makes the queue pair if there is none.
    fn submit(&mut self, io: &Io) {
        if self.transport.submit(io) == Submit::Full {
            let found = self.transport.poll(Wait::No, &mut self.out).unwrap();
            assert_eq!(found, 0);
            assert_eq!(self.transport.submit(io), Submit::Accepted);
        }
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
