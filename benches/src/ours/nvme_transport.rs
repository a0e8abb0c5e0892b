//! The NVMe transport, with all its tables and checks, against a controller that completes at once and moves nothing: the
//! product's path from an I/O to its end, brought up as on a machine.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use straightway::{ByteLen, Error, ErrorKind, Verb};
use sw_engine::{
    ObjectId, Token,
    seam::{Attach, Io, IoDone, IoKind, MAX_SEGMENTS, MemorySegment, Submit, Transport, Wait},
};
use sw_mem::{DmaRegion, HugePages, SlabPool};
use sw_nvme::{
    controller::{Controller, ControllerConfig},
    directory::{Directory, handle},
    transport::{NvmeConfig, NvmeTransport},
};

use crate::{allocations, ours::per_thousand, report::Sample, usage::Usage};

#[path = "../../../sw-nvme/tests/null/mod.rs"]
#[expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "the driver's own test device, which has a clock")]
mod device;

/// Bytes of an I/O: the peers' block.
const BLOCK: u32 = 4096;
/// Batches between two looks at the clock.
const BATCHES: u64 = 256;

/// How long a job runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// So long.
    Time(Duration),
    /// At least so many I/Os, in whole batches.
    Ops(u64),
}

struct Bench {
    device: Arc<device::NullDevice>,
    transport: NvmeTransport<device::NullDevice>,
    ios: Vec<Io>,
    out: Vec<IoDone>,
    _pool: SlabPool,
}

impl Bench {
    fn new(batch: u32) -> Result<Self, Error> {
        let device = Arc::new(device::NullDevice::new());
        let directory = Arc::new(Directory::default());
        directory.add(Controller::open(Arc::clone(&device), ControllerConfig::default())?)?;
        let mut transport = NvmeTransport::new(directory, device.waiter(), NvmeConfig::default())?;
        let pool = SlabPool::new(batch, ByteLen(BLOCK.into()), HugePages::Never).map_err(no_memory)?;
        transport.attach(Attach::Region(pool.region()))?;
        let ios = (0..u64::from(batch)).map(|slot| io(pool.region(), slot)).collect();
        Ok(Self { device, transport, ios, out: Vec::with_capacity(sw_mem::index(batch.into())), _pool: pool })
    }

    /// One batch; gives how many I/Os ended well.
    fn turn(&mut self) -> Result<u64, Error> {
        for io in &mut self.ios {
            io.offset = (io.offset + u64::from(BLOCK)) & 0xFFFF_FFFF;
            if self.transport.submit(io) != Submit::Accepted {
                break;
            }
        }
        self.transport.ring()?;
        self.transport.poll(Wait::No, &mut self.out)?;
        Ok(self.out.drain(..).map(|done| u64::from(done.result == Ok(BLOCK))).sum())
    }
}

fn no_memory(cause: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::ResourceLimit, Verb::Setup).at("the reads' memory").detail(cause.to_string())
}

fn io(region: &DmaRegion, slot: u64) -> Io {
    let place = region.base().advanced(ByteLen(slot * u64::from(BLOCK)));
    let segment = MemorySegment { place, len: BLOCK, region: region.id() };
    Io {
        token: Token::from_raw(slot),
        kind: IoKind::Read,
        object: ObjectId(1),
        handle: handle(0, 1),
        offset: slot * u64::from(BLOCK),
        len: BLOCK,
        segment_count: 1,
        segments: [segment; MAX_SEGMENTS],
    }
}

/// Submits `batch` reads, rings, polls them all, and again.
pub(crate) fn run(batch: u32, until: Until) -> Result<Sample, Error> {
    let mut bench = Bench::new(batch)?;
    // The first I/Os make the queue pair.
    bench.turn()?;
    let mut sample = Sample::default();
    let rung = bench.device.doorbells();
    let (before, allocated) = (Usage::now(), allocations::count_here());
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    let wanted = |ops| match until {
        Until::Time(time) => start.elapsed() < time,
        Until::Ops(most) => ops < most,
    };
    let batches = if matches!(until, Until::Time(_)) { BATCHES } else { 1 };
    while wanted(sample.ops) {
        for _ in 0..batches {
            sample.ops += bench.turn()?;
        }
    }
    sample.seconds = start.elapsed().as_secs_f64();
    sample.bytes = sample.ops * u64::from(BLOCK);
    let allocated = allocations::count_here() - allocated;
    Usage::now().charge(before, &mut sample);
    sample.more.insert("allocations_per_1000".to_owned(), per_thousand(allocated, sample.ops));
    let [tails, heads] = bench.device.doorbells();
    for (name, count) in [("sq_doorbells_per_1000", tails - rung[0]), ("cq_doorbells_per_1000", heads - rung[1])] {
        sample.more.insert(name.to_owned(), per_thousand(count, sample.ops));
    }
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_read_ends_well_with_one_doorbell_a_batch_each_way_and_no_allocation() {
        for until in [Until::Time(Duration::from_millis(5)), Until::Ops(20_000)] {
            let sample = run(32, until).unwrap();
            assert!(sample.ops >= 32 * BATCHES && sample.ops.is_multiple_of(32), "{}", sample.ops);
            assert_eq!(sample.more["allocations_per_1000"], 0.0);
            assert_eq!(sample.more["sq_doorbells_per_1000"], 1000.0 / 32.0);
            assert_eq!(sample.more["cq_doorbells_per_1000"], 1000.0 / 32.0);
        }
    }
}
