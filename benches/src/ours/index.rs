//! Indexes: made by the product, opened, searched, and loaded from.

use std::{
    fs,
    io::{self, Write as _},
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use straightway::{Engine, GpuUse, Uri};
use sw_data::{
    index::{BuildOptions, Index, SideCars, build},
    loader::{Dataset, LoadError, Loader, LoaderOptions},
    order::{Method, Sampler},
    samples::Samples as _,
};

use crate::{
    data::splitmix64,
    fault::Fault,
    report::Sample,
    usage::{self, Usage},
};

/// Arrays of samples of one length.
pub(crate) struct Arrays {
    pub(crate) samples: u64,
    pub(crate) shards: u64,
    pub(crate) sample_bytes: u64,
    /// The seed of their bytes; `None`: they are holes, so that a dataset of a terabyte takes no space.
    pub(crate) filled: Option<u64>,
}

/// An index and what it is of.
pub(crate) struct Indexed {
    pub(crate) index: PathBuf,
    pub(crate) shards: Vec<PathBuf>,
}

impl Indexed {
    pub(crate) fn index_bytes(&self) -> u64 {
        fs::metadata(&self.index).map_or(0, |found| found.len())
    }
}

/// Makes arrays and their index in a folder, if the index is not there.
pub(crate) fn indexed(dir: &Path, arrays: &Arrays) -> Result<Indexed, Fault> {
    let index = dir.join("samples.index.arrow");
    let shards: Vec<PathBuf> = (0..arrays.shards).map(|number| dir.join(format!("shard-{number:06}.npy"))).collect();
    if index.exists() {
        return Ok(Indexed { index, shards });
    }
    fs::create_dir_all(dir).map_err(Fault::os("create", dir))?;
    for (number, path) in (0u64..).zip(&shards) {
        let count = arrays.samples / arrays.shards + u64::from(number < arrays.samples % arrays.shards);
        array(path, count, arrays, number).map_err(Fault::os("write", path))?;
    }
    let engine = Engine::builder().gpu(GpuUse::Off).build()?;
    let options = BuildOptions {
        sidecars: SideCars::Ignore,
        ..BuildOptions::new(std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    };
    let sources = [dir.to_string_lossy().into_owned()];
    build(&engine, &sources, &Uri::from_path(&index)?, &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(Indexed { index, shards })
}

/// An array of so many items (NumPy, `numpy.lib.format` version 1.0).
fn array(path: &Path, items: u64, arrays: &Arrays, number: u64) -> io::Result<()> {
    let head = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({items}, {}), }}", arrays.sample_bytes);
    let head = format!("{head:117}\n");
    let mut file = io::BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    file.write_all(b"\x93NUMPY\x01\x00\x76\x00")?;
    file.write_all(head.as_bytes())?;
    let len = items * arrays.sample_bytes;
    match arrays.filled {
        None => file.into_inner()?.set_len(128 + len),
        Some(seed) => {
            let mut state = splitmix64(seed ^ number);
            for _ in 0..len / 8 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                file.write_all(&state.to_le_bytes())?;
            }
            file.flush()
        }
    }
}

/// What to search for.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Look {
    /// The index.
    index: PathBuf,
    /// Samples that are looked up at once.
    #[arg(long)]
    batch: u64,
    /// Samples that are looked up.
    #[arg(long)]
    lookups: u64,
    /// Seed of the order.
    #[arg(long)]
    seed: u64,
}

/// Opens an index (`open_ms`) and looks up random samples: the sample is of the latter.
pub(crate) fn look(job: &Look) -> Result<Sample, Fault> {
    let engine = Engine::builder().gpu(GpuUse::Off).build()?;
    let uri = Uri::from_path(&job.index)?;
    let mut sample = Sample { rss_before_bytes: usage::resident_bytes(), ..Sample::default() };
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    let index = Index::open(&engine, &uri)?;
    sample.more.insert("open_ms".to_owned(), start.elapsed().as_secs_f64() * 1e3);
    let broken = |_| Fault::Loader("no order of so many samples".to_owned());
    let epoch = Sampler::new(index.len(), job.seed, Method::Shuffle).map_err(broken)?.epoch(0);
    let (mut numbers, mut places) = (Vec::new(), Vec::new());
    let before = Usage::now();
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    for from in (0..job.lookups.min(index.len())).step_by(usize::try_from(job.batch).unwrap_or(usize::MAX)) {
        numbers.clear();
        places.clear();
        numbers.extend((from..(from + job.batch).min(index.len())).filter_map(|position| epoch.at(position)));
        index.locate(&numbers, &mut places)?;
        sample.ops += places.len() as u64;
    }
    sample.seconds = start.elapsed().as_secs_f64();
    Usage::now().charge(before, &mut sample);
    engine.close()?;
    Ok(sample)
}

/// What to load.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct First {
    /// The index.
    index: PathBuf,
    /// Samples of a batch.
    #[arg(long)]
    batch: u32,
    /// Seed of the order.
    #[arg(long)]
    seed: u64,
}

/// From nothing to the first batch (`first_batch_ms`), and how long its index took to open.
pub(crate) fn first(job: &First) -> Result<Sample, Fault> {
    let mut sample = Sample { rss_before_bytes: usage::resident_bytes(), ..Sample::default() };
    let before = Usage::now();
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    let engine = Engine::builder().queue_depth(128).build()?;
    let index = Index::open(&engine, &Uri::from_path(&job.index)?)?;
    let open_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut options = LoaderOptions::default();
    (options.batch, options.seed) = (job.batch, job.seed);
    let failed = |error: LoadError| Fault::Loader(error.to_string());
    let loader = Loader::new(&engine, vec![Dataset::new(Arc::new(index))], options, None).map_err(failed)?;
    let batch = loader.next_batch().map_err(failed)?;
    sample.seconds = start.elapsed().as_secs_f64();
    Usage::now().charge(before, &mut sample);
    let samples = batch.iter().flat_map(|batch| (0..batch.len()).filter_map(|index| batch.sample(index)));
    for bytes in samples {
        sample.ops += 1;
        sample.bytes += bytes.len() as u64;
    }
    let more = [("first_batch_ms", sample.seconds * 1e3), ("engine_and_index_ms", open_ms)];
    sample.more.extend(more.map(|(name, value)| (name.to_owned(), value)));
    drop(batch);
    drop(loader);
    engine.close()?;
    Ok(sample)
}
