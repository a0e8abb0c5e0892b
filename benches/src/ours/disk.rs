//! Files through a lane: random and sequential, aligned and odd, reads and writes.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use straightway::{
    Completion, Destination, Engine, Error, ErrorKind, Lane, Memory, NvmeTcp, NvmeTcpDigests, Object, Op, Policy,
    Target, Uri, Verb,
};
use sw_mem::{Buffer, ByteLen, HugePages, Populate};

use crate::{
    allocations,
    data::splitmix64,
    ours::{Paths, per_thousand},
    report::Sample,
    usage::{self, Usage},
};

/// Longest wait for a completion before the job looks again.
const WAIT: Duration = Duration::from_secs(10);
/// Completions between two looks at the clock of the job.
const LOOK: u64 = 64;
/// Memory starts at this distance, and is congruent to the offsets of the job modulo it.
const BLOCK: u64 = 4096;

/// What to do to a file.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Disk {
    /// The file; for a write an existing one, overwritten in place.
    #[arg(long, required_unless_present = "uri")]
    pub file: Option<PathBuf>,
    /// Addresses of things that are no files, in its stead: of one length, read in turns.
    #[arg(long)]
    pub uri: Vec<String>,
    /// A setting of the engine, as NAME=VALUE.
    #[arg(long)]
    pub engine: Vec<String>,
    /// Ask for digests on connections.
    #[arg(long)]
    pub digests: bool,
    /// Write instead of read.
    #[arg(long)]
    pub write: bool,
    /// Random offsets, multiples of the block, instead of rising ones.
    #[arg(long)]
    pub random: bool,
    /// Distance of offsets, bytes.
    #[arg(long)]
    pub block: u64,
    /// Operations in flight.
    #[arg(long)]
    pub depth: u32,
    /// Bytes added to each offset.
    #[arg(long, default_value_t = 0)]
    pub shift: u64,
    /// Bytes that each operation is shorter than the block.
    #[arg(long, default_value_t = 0)]
    pub shorter: u64,
    /// End after this many operations.
    #[arg(long)]
    pub ops: Option<u64>,
    /// End after this many milliseconds.
    #[arg(long)]
    pub time_ms: Option<u64>,
    /// Memory of 4 KiB pages, as fio's, instead of the engine's own (huge pages where there are some).
    #[arg(long)]
    pub small_pages: bool,
    /// Seed of the random offsets.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Whether operations that end are followed by new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Draining,
}

struct Run<'a> {
    disk: &'a Disk,
    lane: Lane,
    targets: Vec<Target>,
    /// Operations submitted.
    sent: u64,
    blocks: u64,
    ended: u64,
    bytes: u64,
    paths: Paths,
    latency_ns: Histogram<u64>,
}

/// Does it once.
pub(crate) fn run(disk: &Disk) -> Result<Sample, Error> {
    let digests = if disk.digests { NvmeTcpDigests::Both } else { NvmeTcpDigests::None };
    let nvme_tcp = NvmeTcp { digests, ..NvmeTcp::default() };
    let builder = Engine::builder().queue_depth(disk.depth).nvme_tcp(nvme_tcp);
    let engine = disk.engine.iter().try_fold(builder, |builder, setting| {
        let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
        builder.set(name, value)
    });
    let engine = engine?.build()?;
    let uris = match &disk.file {
        Some(file) if disk.uri.is_empty() => vec![Uri::File(file.to_string_lossy().into_owned())],
        _ => disk.uri.iter().map(|uri| uri.parse()).collect::<Result<Vec<Uri>, _>>()?,
    };
    let open = |uri: &Uri| if disk.write { engine.open_for_update(uri) } else { engine.open(uri) };
    let objects = uris.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut lane = engine.lane(Destination::Host)?;
    let verb = if disk.write { Verb::Write } else { Verb::Read };
    let mut targets = Vec::new();
    for object in &objects {
        lane.attach_object(object)?;
        targets.push(lane.target(object, &Policy::Any, verb)?);
    }
    let first =
        targets.first().cloned().ok_or_else(|| Error::new(ErrorKind::ApiMisuse, verb).detail("nothing is named"))?;
    let memories = memories(&engine, &mut lane, disk)?;
    let mut run = Run {
        disk,
        lane,
        targets,
        sent: 0,
        blocks: objects.iter().map(|object| blocks(object, disk)).min().unwrap_or(1),
        ended: 0,
        bytes: 0,
        paths: Paths::default(),
        latency_ns: Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap_or_else(|_| fallback()),
    };
    let op = |memory| Lane::op(0, verb, first.clone(), 0, memory);
    let mut ops: Vec<Op> = memories.into_iter().map(op).collect();
    if !disk.uri.is_empty() {
        run.warm(&mut ops)?;
    }
    let sample = run.measure(ops)?;
    for object in &objects {
        run.lane.detach_object(object)?;
    }
    drop(run);
    engine.close()?;
    Ok(sample)
}

fn fallback() -> Histogram<u64> {
    let histogram = Histogram::new(3);
    histogram.unwrap_or_else(|_| unreachable!("three digits are within the histogram's range of one to five"))
}

/// Whole blocks of the file that the job may start at.
fn blocks(object: &Object, disk: &Disk) -> u64 {
    let reach = object.len().saturating_sub(disk.shift);
    (reach / disk.block).max(1)
}

/// One allocation, cut into one piece per operation in flight, each congruent to the offsets of the job.
fn memories(engine: &Engine, lane: &mut Lane, disk: &Disk) -> Result<Vec<Memory>, Error> {
    let phase = disk.shift % BLOCK;
    let stride = disk.block.next_multiple_of(BLOCK) + if phase > 0 { BLOCK } else { 0 };
    let len = stride * u64::from(disk.depth);
    let mut rest =
        if disk.small_pages { small_pages(len, phase)? } else { engine.allocate(Destination::Host, len, phase)? };
    lane.attach_memory(&rest)?;
    let mut pieces = Vec::new();
    for _ in 0..disk.depth {
        let Ok((piece, tail)) = rest.split_at(stride) else { break };
        let Ok((piece, _)) = piece.split_at(disk.block - disk.shorter) else { break };
        pieces.push(piece);
        rest = tail;
    }
    Ok(pieces)
}

fn small_pages(len: u64, phase: u64) -> Result<Memory, Error> {
    let buffer = Buffer::allocate_with(ByteLen(len), phase, HugePages::Never, Populate::Now);
    let refused = |cause| Error::new(ErrorKind::ResourceLimit, Verb::Setup).detail("no memory").caused_by(cause);
    buffer.map(Memory::from).map_err(refused)
}

impl Run<'_> {
    /// One operation before the meters are on: the first one of a lane makes its connection.
    fn warm(&mut self, ops: &mut Vec<Op>) -> Result<(), Error> {
        let Some(first) = ops.pop() else { return Ok(()) };
        self.lane.submit(first).map_err(|rejected| rejected.error)?;
        while self.lane.in_flight() > 0 {
            self.lane.poll_gathering(WAIT);
            while let Some(completion) = self.lane.pop() {
                completion.result?;
                ops.extend(completion.op);
            }
        }
        Ok(())
    }

    fn measure(&mut self, ops: Vec<Op>) -> Result<Sample, Error> {
        let mut sample = Sample { rss_before_bytes: usage::resident_bytes(), ..Sample::default() };
        let before = (Usage::now(), allocations::count(), *self.lane.counters());
        let thread_before = Usage::of_this_thread();
        #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
        let start = Instant::now();
        for op in ops {
            self.send(op)?;
        }
        let limit = self.disk.time_ms.map(Duration::from_millis);
        let mut phase = Phase::Running;
        while self.lane.in_flight() > 0 {
            self.lane.poll_gathering(WAIT);
            while let Some(completion) = self.lane.pop() {
                let look = self.ended.is_multiple_of(LOOK) || self.disk.depth == 1;
                if look && limit.is_some_and(|limit| start.elapsed() >= limit) {
                    phase = Phase::Draining;
                }
                self.end(completion, phase)?;
            }
        }
        sample.seconds = start.elapsed().as_secs_f64();
        let counters = *self.lane.counters();
        let allocated = allocations::count() - before.1;
        let mut thread = Sample::default();
        Usage::of_this_thread().charge(thread_before, &mut thread);
        Usage::now().charge(before.0, &mut sample);
        (sample.ops, sample.bytes) = (self.ended, self.bytes);
        self.paths.tell(&mut sample);
        let bounced = counters.bounced - before.2.bounced;
        let copied = counters.cpu_copied - before.2.cpu_copied;
        let more = [
            ("cpu_copies_per_byte", per_thousand(copied, self.bytes) / 1000.0),
            ("allocations_per_1000", per_thousand(allocated, self.ended)),
            ("doorbells_per_1000", per_thousand(counters.doorbells - before.2.doorbells, self.ended)),
            ("polls_per_1000", per_thousand(counters.polls - before.2.polls, self.ended)),
            ("bounced_bytes_per_op", per_thousand(bounced, self.ended) / 1000.0),
            ("thread_cpu_s", thread.cpu_s()),
            ("p50_us", self.latency_us(50.0)),
            ("p99_us", self.latency_us(99.0)),
            ("p99_9_us", self.latency_us(99.9)),
        ];
        sample.more.extend(more.map(|(name, value)| (name.to_owned(), value)));
        Ok(sample)
    }

    #[expect(clippy::cast_precision_loss, reason = "latencies are under a minute, in nanoseconds")]
    fn latency_us(&self, percent: f64) -> f64 {
        self.latency_ns.value_at_percentile(percent) as f64 / 1e3
    }

    /// Gives an operation its next offset and submits it.
    fn send(&mut self, mut op: Op) -> Result<(), Error> {
        let block = if self.disk.random {
            splitmix64(self.disk.seed.wrapping_add(self.sent)) % self.blocks
        } else {
            self.sent % self.blocks
        };
        op.offset = block * self.disk.block + self.disk.shift;
        if let [_, _, ..] = self.targets.as_slice() {
            let turn = sw_mem::index(self.sent) % self.targets.len();
            self.targets.get(turn).into_iter().for_each(|target| op.target = target.clone());
        }
        self.sent += 1;
        self.lane.submit(op).map(|_| ()).map_err(|rejected| rejected.error)
    }

    fn end(&mut self, completion: Completion, phase: Phase) -> Result<(), Error> {
        self.bytes += completion.result?;
        self.ended += 1;
        self.paths.add(&completion.path);
        let nanos = completion.times.total().as_nanos();
        self.latency_ns.saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
        let more = self.disk.ops.is_none_or(|ops| self.sent < ops);
        match completion.op {
            Some(op) if more && phase == Phase::Running => self.send(op),
            _ => Ok(()),
        }
    }
}
