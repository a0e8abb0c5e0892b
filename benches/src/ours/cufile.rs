//! Jobs of programs that were written for cuFile, on our `libcufile.so.0`, and the engine's own batch.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Instant,
};

use sha2::{Digest, Sha256};
use straightway::{Destination, Engine, Error, Memory as EngineMemory, Uri, Verb};

use crate::{
    data::hex,
    fault::Fault,
    ours::{
        Paths,
        cufile_library::{CuFile, Memory},
        gpu,
        reads::{Reads, digest},
    },
    peers::pread::Way,
    report::{Sample, median},
};

/// `cuFileRead` after `cuFileRead` of a descriptor with `O_DIRECT` into registered host memory.
pub(crate) fn read(library: &Path, reads: &Reads) -> Result<Sample, Fault> {
    with_file(library, reads, |cufile, file, memory| {
        let blocks = reads.blocks()?;
        reads.measure(|| {
            for op in 0..reads.ops {
                cufile.read(file, memory, reads.place(op), (reads.offset(op, blocks), reads.block))?;
            }
            Ok(())
        })
    })
}

/// The same in batches of as many entries as there are slots.
pub(crate) fn batch(library: &Path, reads: &Reads) -> Result<Sample, Fault> {
    with_file(library, reads, |cufile, file, memory| {
        let blocks = reads.blocks()?;
        let mut batch = cufile.batch(file, memory, reads.slots, reads.block)?;
        let sample = reads.measure(|| {
            for first in (0..reads.ops).step_by(reads.slots as usize) {
                let offset = |slot: usize| reads.offset(first + u32::try_from(slot).unwrap_or(0), blocks);
                cufile.run(&mut batch, offset)?;
            }
            Ok(())
        });
        cufile.destroy(&batch);
        sample
    })
}

fn with_file(
    library: &Path,
    reads: &Reads,
    job: impl FnOnce(&CuFile, crate::ours::cufile_library::File, &mut Memory) -> Result<Sample, Fault>,
) -> Result<Sample, Fault> {
    let cufile = CuFile::load(library)?;
    let mut memory = Memory::new(reads.memory_bytes());
    // Present before the clock starts, as every side's.
    memory.bytes_mut().fill(0xA5);
    cufile.open()?;
    let descriptor = reads.open_direct()?;
    let file = cufile.register(descriptor.as_fd())?;
    cufile.register_memory(&mut memory)?;
    let mut sample = job(&cufile, file, &mut memory)?;
    sample.checksum = Some(digest(memory.bytes()));
    sample.path = cufile.report(file);
    cufile.deregister_memory(&mut memory)?;
    cufile.deregister(file);
    cufile.close()?;
    Ok(sample)
}

/// The same reads as a batch of the engine: memory goes in with each request and comes back with its answer.
pub(crate) fn engine_batch(reads: &Reads) -> Result<Sample, Fault> {
    let engine = Engine::builder().build()?;
    let object = engine.open(&Uri::File(reads.file.to_string_lossy().into_owned()))?;
    let blocks = reads.blocks()?;
    let mut memories = pieces(&engine, reads)?;
    let mut paths = Paths::default();
    let mut sample = reads.measure(|| {
        for first in (0..reads.ops).step_by(reads.slots as usize) {
            let offsets = (first..).map(|op| reads.offset(op, blocks));
            let requests = memories.drain(..).zip(offsets).map(|(memory, at)| engine.read(&object, at, memory));
            for completed in engine.batch(requests.collect()).wait() {
                let completed = completed.ok()?;
                paths.add(&completed.path);
                memories.extend(completed.into_memory());
            }
        }
        Ok(())
    })?;
    paths.tell(&mut sample);
    let mut sha = Sha256::new();
    for memory in &memories {
        sha.update(engine.copy_to_host(memory)?);
    }
    sample.checksum = Some(hex(&sha.finalize()));
    drop((memories, object));
    engine.close()?;
    Ok(sample)
}

fn pieces(engine: &Engine, reads: &Reads) -> Result<Vec<EngineMemory>, Error> {
    let block = reads.block as u64;
    (0..reads.slots).map(|_| engine.allocate(Destination::Host, block, 0)).collect()
}

/// A file into the memory of the first GPU by `cuFileRead`, one read after the other.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OnGpu {
    /// The library, of whoever.
    #[arg(long)]
    pub library: PathBuf,
    /// The file.
    #[arg(long)]
    pub file: PathBuf,
    /// How its descriptor is opened.
    #[arg(long)]
    pub way: Way,
    /// Bytes of one read.
    #[arg(long)]
    pub part_bytes: u64,
    /// How often the file is read while the clock runs.
    #[arg(long)]
    pub passes: u32,
    /// Seed of the sampled places.
    #[arg(long)]
    pub seed: u64,
}

/// Reads the file; the first part is read once before, which makes what a program pays once.
pub(crate) fn read_on_gpu(job: &OnGpu) -> Result<Sample, Fault> {
    let reads =
        Reads { file: job.file.clone(), block: sw_mem::index(job.part_bytes), ops: 0, slots: 1, seed: job.seed };
    let descriptor = match job.way {
        Way::Direct => reads.open_direct()?,
        Way::Cached => std::fs::File::open(&job.file).map_err(Fault::os("open", &job.file))?,
    };
    let len = descriptor.metadata().map_err(Fault::os("look at", &job.file))?.len();
    let engine = Engine::builder().build()?;
    let memory = gpu::allocate(&engine, len, job.part_bytes)?;
    let places: Vec<(u64, usize)> = memory.iter().map(|part| (part.address(), sw_mem::index(part.len()))).collect();
    // cuFile is called in a context, by its documentation.
    let context = gpu::context()?;
    let _entered = context.enter().map_err(|error| error.into_error(Verb::Setup))?;
    let cufile = CuFile::load(&job.library)?;
    cufile.open()?;
    let file = cufile.register(descriptor.as_fd())?;
    places.iter().try_for_each(|(address, len)| cufile.register_device(*address, *len))?;
    let pass = |count: usize| {
        let offsets = (0..).step_by(sw_mem::index(job.part_bytes.max(1)));
        let mut parts = places.iter().zip(offsets).take(count);
        parts.try_for_each(|((address, len), offset)| cufile.read_to_device(file, *address, (offset, *len)))
    };
    pass(1)?;
    let mut sample = reads.measure(|| (0..job.passes).try_for_each(|_| pass(usize::MAX)))?;
    (sample.ops, sample.bytes) = (places.len() as u64 * u64::from(job.passes), len * u64::from(job.passes));
    sample.path = cufile.report(file);
    places.iter().try_for_each(|(address, _)| cufile.deregister_device(*address))?;
    cufile.deregister(file);
    cufile.close()?;
    sample.checksum = Some(gpu::digest(&engine, len, (job.part_bytes, job.seed), &memory)?);
    drop(memory);
    engine.close()?;
    Ok(sample)
}

/// What is set up before the first transfer.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SetUp {
    /// The library.
    #[arg(long)]
    pub library: PathBuf,
    /// A file to register.
    #[arg(long)]
    pub file: PathBuf,
    /// How often.
    #[arg(long)]
    pub times: u32,
    /// Bytes of the memory that is registered.
    #[arg(long)]
    pub bytes: usize,
}

/// The driver opened and closed, a handle registered, memory registered. The sample is of the first opening and closing of the
/// process, with a first transfer never made; the rest is in `more`: medians, but for the first memory, whose pages no one has touched.
pub(crate) fn set_up(job: &SetUp) -> Result<Sample, Fault> {
    let cufile = CuFile::load(&job.library)?;
    let reads = Reads { file: job.file.clone(), block: 4096, ops: 1, slots: 1, seed: 0 };
    let mut sample = reads.measure(|| cufile.open().and_then(|()| cufile.close()))?;
    (sample.ops, sample.bytes) = (1, 0);
    let mut more = vec![("first_driver_ms", sample.seconds * 1e3)];
    let (mut openings, mut registrations) = (Vec::new(), Vec::new());
    for _ in 0..job.times {
        openings.push(micros(|| cufile.open().and_then(|()| cufile.close()))?.1 / 1e3);
    }
    more.extend(median(openings).map(|ms| ("driver_ms", ms)));
    cufile.open()?;
    let descriptor = reads.open_direct()?;
    for _ in 0..job.times {
        let (file, us) = micros(|| cufile.register(descriptor.as_fd()))?;
        registrations.push(us);
        cufile.deregister(file);
    }
    more.extend(median(registrations).map(|us| ("handle_register_us", us)));
    let mut memory = Memory::new(job.bytes);
    more.push(("untouched_memory_register_us", micros(|| cufile.register_memory(&mut memory))?.1));
    cufile.deregister_memory(&mut memory)?;
    memory.bytes_mut().iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    more.push(("memory_register_us", micros(|| cufile.register_memory(&mut memory))?.1));
    more.push(("memory_deregister_us", micros(|| cufile.deregister_memory(&mut memory))?.1));
    cufile.close()?;
    sample.more.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value)));
    Ok(sample)
}

/// What a call gives, and the microseconds that it took.
fn micros<T>(call: impl FnOnce() -> Result<T, Fault>) -> Result<(T, f64), Fault> {
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    let given = call()?;
    Ok((given, start.elapsed().as_secs_f64() * 1e6))
}
