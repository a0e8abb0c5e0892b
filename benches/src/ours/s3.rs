//! Ranges of a large object, and small objects as a whole, through a lane.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use straightway::{
    Cache, CacheStatus, Completion, Destination, Engine, Error, GpuUse, Hidden, Lane, Memory, Object, Op, Policy,
    Remote, Target, Uri, Verb, Version,
};

use crate::{
    allocations,
    ours::{Paths, per_thousand},
    peers::s3_server::BUCKET,
    report::Sample,
    usage::{self, Usage},
};

const WAIT: Duration = Duration::from_secs(10);
/// Longest that the disk of a cache is waited for.
const SETTLE: Duration = Duration::from_secs(120);

/// What is read.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct S3Read {
    /// The port of the server.
    #[arg(long)]
    pub port: u16,
    /// Bytes of a range, or of a small object.
    #[arg(long)]
    pub block: u64,
    /// Operations.
    #[arg(long)]
    pub ops: u64,
    /// Operations in flight.
    #[arg(long)]
    pub depth: u32,
    /// Small objects instead of ranges of a large one: as a listing told them, which is made before the clock starts.
    #[arg(long)]
    pub small: bool,
    /// Ranges of this local file instead.
    #[arg(long, conflicts_with = "small")]
    pub file: Option<PathBuf>,
    /// A setting of the engine, as NAME=VALUE.
    #[arg(long)]
    pub engine: Vec<String>,
    /// What is done before the clock starts.
    #[arg(long, value_enum, default_value = "nothing")]
    pub before: Prelude,
}

/// What a job does before its clock starts, or instead of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Prelude {
    Nothing,
    /// Reads all of it, until it is kept.
    Read,
    /// The same; then it tells so by a line, and waits until its input ends.
    Hold,
    /// Warms the cache with the object, which is what the clock is about; then reads it, which tells whether the bytes are right.
    Warm,
}

/// What is opened.
enum What {
    Ranges { target: Target, blocks: u64, object: Object },
    Listed(Vec<(Uri, u64, Version)>),
}

/// Does it once.
pub(crate) fn run(job: &S3Read) -> Result<Sample, Error> {
    let remote = Remote {
        s3_endpoint: Some(format!("http://127.0.0.1:{}", job.port)),
        s3_region: Some("us-east-1".to_owned()),
        ..Remote::default()
    };
    let builder = Engine::builder().queue_depth(job.depth).gpu(GpuUse::Off).remote(remote);
    let engine = job.engine.iter().try_fold(builder, |builder, setting| {
        let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
        builder.set(name, value)
    });
    let engine = engine?.build()?;
    let what = if job.small {
        let mut listed = Vec::new();
        let mut wrong = None;
        engine.walk(&format!("s3://{BUCKET}/small/").parse()?, Hidden::Given, |entry| {
            match entry.name.parse() {
                Ok(uri) => listed.push((uri, entry.len, entry.version)),
                Err(error) => wrong = Some(error),
            }
            std::ops::ControlFlow::Continue(())
        })?;
        wrong.map_or(Ok(What::Listed(listed)), Err)?
    } else {
        let uri = match &job.file {
            Some(file) => Uri::File(file.to_string_lossy().into_owned()),
            None => format!("s3://{BUCKET}/large").parse()?,
        };
        let object = engine.open(&uri)?;
        let target = engine.target(&object, Destination::Host, &Policy::Any, Verb::Read)?;
        What::Ranges { target, blocks: (object.len() / job.block).max(1), object }
    };
    let mut lane = engine.lane(Destination::Host)?;
    let mut rest = engine.allocate(Destination::Host, job.block * u64::from(job.depth), 0)?;
    lane.attach_memory(&rest)?;
    let mut idle = Vec::new();
    for _ in 0..job.depth {
        let Ok((piece, tail)) = rest.split_at(job.block) else { break };
        idle.push(piece);
        rest = tail;
    }
    let mut run =
        Run { job, engine: &engine, lane, what, idle, sent: 0, ended: 0, bytes: 0, sum: 0, paths: Paths::default() };
    let sample = run.job()?;
    drop(run);
    engine.close()?;
    Ok(sample)
}

struct Run<'a> {
    job: &'a S3Read,
    engine: &'a Engine,
    lane: Lane,
    what: What,
    /// Memory that no operation has.
    idle: Vec<Memory>,
    sent: u64,
    ended: u64,
    bytes: u64,
    sum: u64,
    paths: Paths,
}

impl Run<'_> {
    /// What is to be done, and which share of the bytes that the clock was about the cache had.
    fn job(&mut self) -> Result<Sample, Error> {
        let warmed = match self.job.before {
            Prelude::Nothing => None,
            Prelude::Warm => self.warm()?,
            Prelude::Read | Prelude::Hold => {
                self.measure()?;
                self.settle()?;
                None
            }
        };
        if self.job.before == Prelude::Hold {
            println!("held");
            // Until whoever started it closes its end.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        }
        let before = self.status()?;
        let mut sample = self.measure()?;
        if let (Some(before), Some(after)) = (before, self.status()?) {
            let bytes = |status: &CacheStatus| (status.hit_bytes, status.hit_bytes + status.missed_bytes);
            let (then, now) = (bytes(&before), bytes(&after));
            sample.more.insert("cache_hit_share".to_owned(), per_thousand(now.0 - then.0, now.1 - then.1) / 1000.0);
            let settled = self.settle()?;
            sample.more.insert("kept_after_s".to_owned(), settled);
            let left = self.status()?.map_or(0, |status| status.left_blocks - before.left_blocks);
            sample.more.insert("left_blocks_per_1000".to_owned(), per_thousand(left, sample.bytes >> 20));
        }
        let Some(mut warmed) = warmed else { return Ok(sample) };
        warmed.checksum = sample.checksum;
        warmed.more.extend(sample.more.into_iter().filter(|(name, _)| name == "cache_hit_share"));
        Ok(warmed)
    }

    fn status(&self) -> Result<Option<CacheStatus>, Error> {
        self.engine.cache().map(|cache| cache.map(Cache::status)).transpose()
    }

    /// Waits until all that came is kept; how long that took.
    fn settle(&self) -> Result<f64, Error> {
        #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
        let start = Instant::now();
        if let Some(cache) = self.engine.cache() {
            cache?.wait_for_room(u64::MAX, SETTLE);
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn warm(&self) -> Result<Option<Sample>, Error> {
        let What::Ranges { object, .. } = &self.what else { return Ok(None) };
        let before = Usage::now();
        #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
        let start = Instant::now();
        let warmed = self.engine.warm([Ok((object.clone(), 0, object.len()))])?;
        let mut sample = Sample { seconds: start.elapsed().as_secs_f64(), ..Sample::default() };
        Usage::now().charge(before, &mut sample);
        (sample.bytes, sample.ops) = (warmed.bytes, warmed.bytes / self.job.block);
        Ok(Some(sample))
    }

    fn measure(&mut self) -> Result<Sample, Error> {
        (self.sent, self.ended, self.bytes, self.sum, self.paths) = (0, 0, 0, 0, Paths::default());
        let memories = std::mem::take(&mut self.idle);
        let mut sample = Sample { rss_before_bytes: usage::resident_bytes(), ..Sample::default() };
        let before = (Usage::now(), allocations::count(), *self.lane.counters());
        #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
        let start = Instant::now();
        for memory in memories {
            self.send(memory)?;
        }
        while self.lane.in_flight() > 0 {
            self.lane.poll_gathering(WAIT);
            while let Some(completion) = self.lane.pop() {
                self.end(completion)?;
            }
        }
        sample.seconds = start.elapsed().as_secs_f64();
        let allocated = allocations::count() - before.1;
        let copied = self.lane.counters().cpu_copied - before.2.cpu_copied;
        Usage::now().charge(before.0, &mut sample);
        (sample.ops, sample.bytes) = (self.ended, self.bytes);
        self.paths.tell(&mut sample);
        sample.checksum = Some(format!("{}-{}-{:016x}", self.ended, self.bytes, self.sum));
        let more = [
            ("cpu_copies_per_byte", per_thousand(copied, self.bytes) / 1000.0),
            ("allocations_per_1000", per_thousand(allocated, self.ended)),
        ];
        sample.more.extend(more.map(|(name, value)| (name.to_owned(), value)));
        Ok(sample)
    }

    /// Submits the next operation, if there is one more.
    fn send(&mut self, memory: Memory) -> Result<(), Error> {
        if self.sent == self.job.ops {
            self.idle.push(memory);
            return Ok(());
        }
        let number = self.sent;
        self.sent += 1;
        let (target, offset) = match &self.what {
            What::Ranges { target, blocks, .. } => (target.clone(), number % blocks * self.job.block),
            What::Listed(listed) => {
                let at = usize::try_from(number).unwrap_or(usize::MAX) % listed.len().max(1);
                let Some((uri, len, version)) = listed.get(at) else { return Ok(()) };
                let object = self.engine.open_known(uri, *len, *version)?;
                (self.lane.target(&object, &Policy::Any, Verb::Read)?, 0)
            }
        };
        let op: Op = Lane::op(number, Verb::Read, target, offset, memory);
        self.lane.submit(op).map(|_| ()).map_err(|rejected| rejected.error)
    }

    fn end(&mut self, completion: Completion) -> Result<(), Error> {
        self.bytes += completion.result?;
        self.ended += 1;
        self.paths.add(&completion.path);
        let Some(memory) = completion.op.and_then(Lane::memory_of) else { return Ok(()) };
        let mut first = [0; 8];
        memory.read(0, &mut first)?;
        self.sum = self.sum.wrapping_add(u64::from_le_bytes(first));
        self.send(memory)
    }
}
