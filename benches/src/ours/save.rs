//! A checkpoint from host memory through `sw_checkpoint::Saver`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use straightway::{Engine, Error, Memory, Uri};
use sw_checkpoint::{
    Bytes, Contents, DcpOptions, Layout, LoadOptions, Loaded, NewTensor, SaveOptions, Saver, SaverOptions, Staging,
    TensorSpec, load,
};

use crate::{
    backing, data,
    fault::Fault,
    ours::load::digest,
    report::Sample,
    usage::{self, Usage},
};

/// How the job is done.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Save {
    /// The index file of the checkpoint whose tensors are saved.
    index: std::path::PathBuf,
    /// Where to: a directory that does not exist.
    to: std::path::PathBuf,
    /// Seed of the sampled places.
    #[arg(long)]
    seed: u64,
    /// Staging memory in bytes.
    #[arg(long)]
    staging: u64,
    /// Saves once before the clock starts, as a program that saves every few minutes.
    #[arg(long)]
    again: bool,
    /// Has the staging memory made ahead, in the background, and starts the clock when it is there.
    #[arg(long)]
    ahead: bool,
    /// Writes the directory of `torch.distributed.checkpoint`.
    #[arg(long)]
    dcp: bool,
}

/// Tensors in memory, each of which lends its bytes.
struct Lent {
    specs: Vec<TensorSpec>,
    memory: Vec<Memory>,
}

/// Loads the tensors, starts the clock, saves them, stops it when they are durable, then reads back.
pub(crate) fn run(job: &Save) -> Result<Sample, Fault> {
    let engine = Engine::builder().build()?;
    let mut lent = Lent::of(load(&engine, &Uri::from_path(&job.index)?, &LoadOptions::default())?)?;
    let staging = if job.ahead { Staging::Ahead } else { Staging::WhenUsed };
    // What loading took besides is no part of what the save takes.
    usage::forget_peak();
    let resident = usage::resident_bytes();
    let saver = Saver::new(&engine, SaverOptions { staging_bytes: job.staging, staging, ..SaverOptions::default() })?;
    saver.wait_staging();
    let layout = if job.dcp { Layout::Dcp(DcpOptions::default()) } else { Layout::default() };
    let options = SaveOptions { layout, ..SaveOptions::default() };
    remove(&job.to);
    if job.again {
        saver.save(&job.to, lent.contents(), &options)?.wait()?;
        remove(&job.to);
        pause();
    }
    // The host took back what the harness had backed, while the tensors were loaded.
    backing::prepare(job.staging)?;
    let mut sample = Sample { rss_before_bytes: resident, ..Sample::default() };
    let before = Usage::now();
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    let saving = saver.save(&job.to, lent.contents(), &options)?;
    let stall = start.elapsed().as_secs_f64();
    let saved = saving.wait()?;
    sample.seconds = start.elapsed().as_secs_f64();
    Usage::now().charge(before, &mut sample);
    sample.peak_rss_bytes = usage::peak_resident_bytes();
    sample.more.insert("stall_s".to_owned(), stall);
    sample.ops = lent.specs.len() as u64;
    sample.bytes = lent.memory.iter().map(Memory::len).sum();
    let moved = saved.moved;
    sample.path = Some(serde_json::json!({
        "dma_bytes": moved.bytes.dma, "kernel_copy_bytes": moved.bytes.kernel_copy, "staged_bytes": moved.staged_bytes,
        "in_place_bytes": moved.in_place_bytes, "staging_memory_bytes": saver.staging_bytes(),
    }));
    if !job.dcp {
        let loaded = load(&engine, &Uri::from_path(&job.to)?, &LoadOptions::default())?;
        sample.checksum = Some(digest(&loaded, job.seed)?);
    }
    remove(&job.to);
    drop(saver);
    engine.close()?;
    Ok(sample)
}

/// The time between two saves, far shorter than in any program.
#[expect(clippy::disallowed_methods, reason = "the job is a program that does something else between two saves")]
fn pause() {
    std::thread::sleep(Duration::from_secs(1));
}

/// Writes the tensors of `index` as a DCP directory, unless it is there; gives its files.
pub(crate) fn dcp(index: &Path, to: &Path) -> Result<Vec<PathBuf>, Fault> {
    if !to.exists() {
        write_dcp(index, to)?;
    }
    data::files_in(to)
}

fn write_dcp(index: &Path, to: &Path) -> Result<(), Error> {
    let engine = Engine::builder().build()?;
    let mut lent = Lent::of(load(&engine, &Uri::from_path(index)?, &LoadOptions::default())?)?;
    let saver = Saver::new(&engine, SaverOptions::default())?;
    let options = SaveOptions { layout: Layout::Dcp(DcpOptions::default()), ..SaveOptions::default() };
    saver.save(to, lent.contents(), &options)?.wait()?;
    Ok(())
}

fn remove(directory: &Path) {
    // It is the harness's own; what stays is written over, or told by the save.
    let _ = fs::remove_dir_all(directory);
}

impl Lent {
    /// Every tensor as a part of the memory that it was loaded into.
    fn of(loaded: Loaded) -> Result<Self, Error> {
        let regions: Vec<_> = loaded.regions.into_iter().map(Memory::share).collect();
        let (mut specs, mut memory) = (Vec::new(), Vec::new());
        for tensor in loaded.tensors {
            let Some((region, base)) = tensor.place.and_then(|(region, _)| regions.get(region)) else { continue };
            let at = tensor.place.map_or(0, |(_, offset)| offset);
            memory.push(region.part(base + at, tensor.len_bytes)?);
            specs.push(TensorSpec { name: tensor.name, dtype: tensor.dtype, shape: tensor.shape });
        }
        Ok(Self { specs, memory })
    }

    fn contents(&mut self) -> Contents<'_> {
        let mut tensors = Vec::with_capacity(self.specs.len());
        for (spec, memory) in self.specs.iter().zip(&mut self.memory) {
            tensors.push(NewTensor::new(spec.clone(), Bytes::Memory(memory)));
        }
        tensors.into()
    }
}
