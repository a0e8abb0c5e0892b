//! Ranges of a large object, and small objects as a whole, through a lane.

use std::time::{Duration, Instant};

use straightway::{
    Completion, Destination, Engine, Error, GpuUse, Hidden, Lane, Memory, Op, Policy, Remote, Target, Uri, Verb,
    Version,
};

use crate::{
    allocations,
    ours::{Paths, per_thousand},
    peers::s3_server::BUCKET,
    report::Sample,
    usage::{self, Usage},
};

const WAIT: Duration = Duration::from_secs(10);

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
}

/// What is opened.
enum What {
    Ranges { target: Target, blocks: u64 },
    Listed(Vec<(Uri, u64, Version)>),
}

/// Does it once.
pub(crate) fn run(job: &S3Read) -> Result<Sample, Error> {
    let remote = Remote {
        s3_endpoint: Some(format!("http://127.0.0.1:{}", job.port)),
        s3_region: Some("us-east-1".to_owned()),
        ..Remote::default()
    };
    let engine = Engine::builder().queue_depth(job.depth).gpu(GpuUse::Off).remote(remote).build()?;
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
        let object = engine.open(&format!("s3://{BUCKET}/large").parse()?)?;
        let target = engine.target(&object, Destination::Host, &Policy::Any, Verb::Read)?;
        What::Ranges { target, blocks: (object.len() / job.block).max(1) }
    };
    let mut lane = engine.lane(Destination::Host)?;
    let mut rest = engine.allocate(Destination::Host, job.block * u64::from(job.depth), 0)?;
    lane.attach_memory(&rest)?;
    let mut memories = Vec::new();
    for _ in 0..job.depth {
        let Ok((piece, tail)) = rest.split_at(job.block) else { break };
        memories.push(piece);
        rest = tail;
    }
    let mut run =
        Run { job, engine: &engine, lane, what, sent: 0, ended: 0, bytes: 0, sum: 0, paths: Paths::default() };
    let sample = run.measure(memories)?;
    drop(run);
    engine.close()?;
    Ok(sample)
}

struct Run<'a> {
    job: &'a S3Read,
    engine: &'a Engine,
    lane: Lane,
    what: What,
    sent: u64,
    ended: u64,
    bytes: u64,
    sum: u64,
    paths: Paths,
}

impl Run<'_> {
    fn measure(&mut self, memories: Vec<Memory>) -> Result<Sample, Error> {
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
            return Ok(());
        }
        let number = self.sent;
        self.sent += 1;
        let (target, offset) = match &self.what {
            What::Ranges { target, blocks } => (target.clone(), number % blocks * self.job.block),
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
