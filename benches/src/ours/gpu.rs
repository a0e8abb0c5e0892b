//! A file into the first GPU's memory through the engine, and the copies of that way alone: pinned slabs to the device.

use std::{path::PathBuf, time::Instant};

use straightway::{Destination, Engine, Memory, Object, Uri};
use sw_cuda::{Context, CopyEngineConfig, CudaCopyEngine, DeviceBuffer, Driver, QUEUE_DEPTH_MAX};
use sw_engine::{
    Error, Token, Verb,
    seam::{CopyDirection, CopyDone, CopyEngine, CopyJob, SlabPin},
};
use sw_mem::{Buffer, ByteLen, DmaSpan, GpuVa, HostVa};

use crate::{
    data::digest_of_parts,
    fault::Fault,
    ours::Paths,
    report::Sample,
    usage::{self, Usage},
};

/// What devices of the project's stand-in driver are called.
const STANDIN_NAME: &str = "Stand-in GPU";
/// Reads before the clock starts, at least: one for each reactor that a side of the case has.
const WARM_OPS: usize = 16;

/// The device that the case is about.
pub(crate) struct Gpu {
    /// The maker's name.
    pub name: String,
    /// Version and file of the driver.
    pub driver: String,
}

impl Gpu {
    /// The first one, or why there is none. Makes no context.
    pub(crate) fn first() -> Result<Self, String> {
        let driver = Driver::load().map_err(|why| format!("no GPU: {why}; {}", why.remedy()))?;
        let device = driver.device(0).map_err(|error| error.to_string())?;
        let name = device.name().map_err(|error| error.to_string())?;
        Ok(Self { name, driver: format!("{} from {}", driver.version(), driver.path()) })
    }

    /// What a report says of it.
    pub(crate) fn told(&self) -> String {
        let warning =
            if self.is_standin() { " The driver is the STAND-IN: no rate and no ratio means anything." } else { "" };
        format!("{}, driver {}.{warning}", self.name, self.driver)
    }

    /// Whether it is host memory behind the stand-in driver: its rates say nothing about a GPU.
    pub(crate) fn is_standin(&self) -> bool {
        self.name.starts_with(STANDIN_NAME)
    }
}

/// Staged reads of a whole file.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Staged {
    /// The file.
    pub file: PathBuf,
    /// Bytes of one read.
    #[arg(long)]
    pub part_bytes: u64,
    /// How often the file is read while the clock runs; once or more before.
    #[arg(long)]
    pub passes: u32,
    /// Threads that move bytes; the engine's own choice unless told.
    #[arg(long)]
    pub reactors: Option<u32>,
    /// The staging slabs, BYTESxCOUNT; measured by the engine unless told.
    #[arg(long)]
    pub staging: Option<String>,
    /// Seed of the sampled places.
    #[arg(long)]
    pub seed: u64,
}

/// Copies from pinned slabs, nothing else.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Copies {
    /// Bytes to copy for each size while the clock runs.
    #[arg(long)]
    pub bytes: u64,
    /// Sizes of a slab, bytes; the fastest counts.
    #[arg(long, value_delimiter = ',', required = true)]
    pub slab_bytes: Vec<u32>,
    /// Bytes of all slabs.
    #[arg(long)]
    pub ring_bytes: u64,
}

/// Reads the file `passes` times, all parts at once, then takes the digest of what is on the device.
pub(crate) fn read(job: &Staged) -> Result<Sample, Fault> {
    let builder = Engine::builder();
    let builder = job.reactors.map_or(builder.clone(), |count| builder.reactors(count));
    let engine = match &job.staging {
        None => builder.build()?,
        Some(shape) => builder.set("staging", shape)?.build()?,
    };
    let object = engine.open(&Uri::from_path(&job.file)?)?;
    let mut memory = allocate(&engine, object.len(), job.part_bytes)?;
    // Makes every lane and measures slabs: what a program pays once.
    for _ in 0..WARM_OPS.div_ceil(memory.len().max(1)) {
        memory = pass(&engine, &object, job, memory, &mut Paths::default())?;
    }
    let (mut sample, mut paths) = (Sample::default(), Paths::default());
    sample.rss_before_bytes = usage::resident_bytes();
    let before = Usage::now();
    let start = now();
    for _ in 0..job.passes {
        sample.ops += memory.len() as u64;
        memory = pass(&engine, &object, job, memory, &mut paths)?;
    }
    sample.seconds = start.elapsed().as_secs_f64();
    Usage::now().charge(before, &mut sample);
    sample.bytes = object.len() * u64::from(job.passes);
    paths.tell(&mut sample);
    tell_staging(&engine, &mut sample);
    sample.checksum = Some(digest(&engine, object.len(), (job.part_bytes, job.seed), &memory)?);
    drop((memory, object));
    engine.close()?;
    Ok(sample)
}

/// Device memory for a file of so many bytes, in parts.
pub(crate) fn allocate(engine: &Engine, len: u64, part_bytes: u64) -> Result<Vec<Memory>, Error> {
    let starts = (0..len).step_by(sw_mem::index(part_bytes.max(1)));
    starts.map(|at| engine.allocate(Destination::Gpu(0), part_bytes.min(len - at), at)).collect()
}

fn pass(
    engine: &Engine,
    object: &Object,
    job: &Staged,
    memory: Vec<Memory>,
    paths: &mut Paths,
) -> Result<Vec<Memory>, Error> {
    let requests = (0..).zip(memory).map(|(n, part): (u64, _)| engine.read(object, n * job.part_bytes, part));
    let mut back = Vec::new();
    for done in engine.batch(requests.collect()).wait() {
        let done = done.ok()?;
        paths.add(&done.path);
        back.extend(done.into_memory());
    }
    Ok(back)
}

/// The ring's shape, as numbers and in the engine's words: `32 slabs of 1024 KiB (measured: …)`.
fn tell_staging(engine: &Engine, sample: &mut Sample) {
    let tree = engine.inspect().to_string();
    let Some(line) = tree.lines().find(|line| line.contains(" slabs of ")) else { return };
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<f64>().ok());
    if let Some(at) = words.iter().position(|word| *word == "slabs")
        && let (Some(count), Some(kib)) = (at.checked_sub(1).and_then(number), number(at + 2))
    {
        sample.more.insert("slabs".to_owned(), count);
        sample.more.insert("slab_bytes".to_owned(), kib * 1024.0);
    }
    if let Some(path) = sample.path.as_mut().and_then(|path| path.as_object_mut()) {
        path.insert("staging".to_owned(), line.trim().into());
    }
}

/// Of sampled bytes of a file that lies in parts in device memory.
pub(crate) fn digest(
    engine: &Engine,
    len: u64,
    (part_bytes, seed): (u64, u64),
    memory: &[Memory],
) -> Result<String, Fault> {
    // One part at a time comes back whole; its samples are taken from there.
    let mut here: Option<(usize, Vec<u8>)> = None;
    digest_of_parts(len, part_bytes, seed, |part, at, to| {
        let (_, bytes) = match here.take().filter(|(kept, _)| *kept == part) {
            Some(kept) => here.insert(kept),
            None => {
                let memory = memory.get(part).ok_or_else(|| Fault::Missing {
                    what: format!("part {part} of the memory did not come back"),
                    remedy: "report this",
                })?;
                here.insert((part, engine.copy_to_host(memory)?))
            }
        };
        let from = sw_mem::index(at);
        if let Some(sample) = bytes.get(from..from + to.len()) {
            to.copy_from_slice(sample);
        }
        Ok(())
    })
}

/// The primary context of the first GPU.
pub(crate) fn context() -> Result<Context, Fault> {
    let driver = Driver::load()
        .map_err(|why| Fault::Missing { what: format!("no GPU: {why}"), remedy: "run this where there is one" })?;
    let setup = |error: sw_cuda::CudaError| error.into_error(Verb::Setup);
    Ok(Context::primary(&driver.device(0).map_err(setup)?).map_err(setup)?)
}

/// The fastest of the sizes, each measured after a first round that does not count.
pub(crate) fn copies(job: &Copies) -> Result<Sample, Fault> {
    let context = context()?;
    let mut best: Option<Sample> = None;
    for slab_bytes in &job.slab_bytes {
        let mut ring = Ring::new(&context, *slab_bytes, job.ring_bytes)?;
        ring.run(ring.bytes())?;
        let mut sample = Sample { rss_before_bytes: usage::resident_bytes(), ..Sample::default() };
        let before = Usage::now();
        let start = now();
        sample.ops = ring.run(job.bytes)?;
        sample.seconds = start.elapsed().as_secs_f64();
        Usage::now().charge(before, &mut sample);
        sample.bytes = sample.ops * u64::from(*slab_bytes);
        sample.more.insert("slab_bytes".to_owned(), f64::from(*slab_bytes));
        sample.more.insert("slabs".to_owned(), f64::from(ring.slabs));
        // Sizes may copy a little more or less than asked for: rates are compared, not times.
        let rate = |sample: &Sample| sample.value(crate::report::Metric::BytesPerSecond).unwrap_or(0.0);
        if best.as_ref().is_none_or(|best| rate(&sample) > rate(best)) {
            best = Some(sample);
        }
    }
    best.ok_or(Fault::Missing { what: "no slab size was given".to_owned(), remedy: "give one with --slab-bytes" })
}

/// Pinned slabs with as much device memory, and the copy engine between them.
struct Ring {
    engine: CudaCopyEngine,
    _pin: Box<dyn SlabPin>,
    host: DmaSpan,
    device: DeviceBuffer,
    slab_bytes: u32,
    slabs: u32,
    done: Vec<CopyDone>,
}

impl Ring {
    fn new(context: &Context, slab_bytes: u32, ring_bytes: u64) -> Result<Self, Error> {
        let setup = |error: sw_cuda::CudaError| error.into_error(Verb::Setup);
        let slabs = u32::try_from(ring_bytes / u64::from(slab_bytes.max(1))).unwrap_or(u32::MAX);
        let slabs = slabs.clamp(2, QUEUE_DEPTH_MAX);
        let len = ByteLen(u64::from(slabs) * u64::from(slab_bytes));
        let config = CopyEngineConfig { queue_depth: slabs, ..CopyEngineConfig::default() };
        let mut engine = CudaCopyEngine::new(context, config).map_err(setup)?;
        let host = Buffer::allocate(len)
            .map_err(|cause| {
                Error::new(sw_engine::ErrorKind::ResourceLimit, Verb::Setup).detail("no memory").caused_by(cause)
            })?
            .into_span();
        let pin = engine.pin_slabs(host.region()).map_err(setup)?;
        let device = DeviceBuffer::allocate(context, len).map_err(setup)?;
        Ok(Self { engine, _pin: pin, host, device, slab_bytes, slabs, done: Vec::with_capacity(slabs as usize) })
    }

    fn bytes(&self) -> u64 {
        u64::from(self.slabs) * u64::from(self.slab_bytes)
    }

    /// Copies at least `bytes`, all slabs in flight; answers the copies.
    fn run(&mut self, bytes: u64) -> Result<u64, Error> {
        let fault = |fault| Error::from_fault(fault, Verb::Copy);
        let slab = u64::from(self.slab_bytes);
        let count = bytes.div_ceil(slab);
        let host = self.host.place().host().map_or(0, HostVa::raw);
        let (mut sent, mut ended) = (0, 0);
        while ended < count {
            while sent < count && sent - ended < u64::from(self.slabs) {
                let at = sent % u64::from(self.slabs) * slab;
                let job = CopyJob {
                    token: Token::from_raw(sent),
                    direction: CopyDirection::ToDevice,
                    host: HostVa::new(host + at),
                    device: GpuVa::new(self.device.base().raw() + at),
                    len: self.slab_bytes,
                };
                self.engine.submit(&job).map_err(fault)?;
                sent += 1;
            }
            self.engine.ring().map_err(fault)?;
            self.done.clear();
            ended += self.engine.poll(&mut self.done).map_err(fault)? as u64;
            self.done.iter().try_for_each(|done| done.result).map_err(fault)?;
            std::hint::spin_loop();
        }
        Ok(count)
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}
