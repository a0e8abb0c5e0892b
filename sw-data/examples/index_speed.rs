//! Builds an index of many samples, opens it, and looks samples up in random order: time, and memory of the process.
//!
//!     cargo run --release -p sw-data --example index_speed -- FOLDER [SAMPLES] [SHARDS]
//!
//! The shards are sparse arrays, so that a dataset of a terabyte takes no space. `drop_caches` before opening, if it may, makes the first
//! lookups cold.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::{
    error::Error,
    fs,
    io::Write as _,
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use straightway::{Engine, GpuUse, Uri};
use sw_data::{
    index::{BuildOptions, Checksums, Index, OnError, build},
    order::{Method, Sampler},
    samples::Samples as _,
};

/// Bytes of a sample.
const SAMPLE_BYTES: u64 = 16 << 10;
/// Samples that are looked up in one call: a batch of a loader.
const BATCH: usize = 256;
/// Batches of lookups.
const BATCHES: usize = 400;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("name a folder")?);
    let samples: u64 = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let shards: u64 = arguments.next().map_or(Ok(1000), |text| text.parse())?;
    fs::create_dir_all(&folder)?;
    for number in 0..shards {
        let count = samples / shards + u64::from(number < samples % shards);
        sparse(&folder.join(format!("shard-{number:06}.npy")), count)?;
    }
    let engine = Engine::builder().gpu(GpuUse::Off).build()?;
    let to = Uri::from_path(&folder.join("samples.index.arrow"))?;
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let options = BuildOptions {
        threads,
        format: None,
        column: None,
        checksums: Checksums::Stored,
        on_error: OnError::Fail,
        older: None,
    };
    let clock = Instant::now();
    let sources = [folder.display().to_string()];
    let built = build(&engine, &sources, &to, &options, &mut |_| ControlFlow::Continue(()))?;
    let seconds = clock.elapsed().as_secs_f64();
    let rate = built.samples as f64 / seconds;
    println!("build  {} samples of {} objects in {seconds:.2} s, {rate:.0} a second", built.samples, built.objects);
    println!("       {} MiB of index, peak memory {} MiB", built.index_bytes >> 20, memory("VmHWM")?);
    // Fails where it may not: the first lookups are warm then.
    let cold = fs::write("/proc/sys/vm/drop_caches", "3").is_ok();
    look(&engine, &to, if cold { "cold" } else { "warm" })?;
    look(&engine, &to, "warm")
}

/// Opens, and looks up in random order.
fn look(engine: &Engine, to: &Uri, state: &str) -> Result<(), Box<dyn Error>> {
    let before = memory("VmRSS")?;
    let clock = Instant::now();
    let index = Index::open(engine, to)?;
    println!("{state}   open in {:.2} ms", clock.elapsed().as_secs_f64() * 1e3);
    let epoch = Sampler::new(index.len(), 1, Method::Shuffle)?.epoch(0);
    let mut places = Vec::new();
    for round in ["first", "again"] {
        let clock = Instant::now();
        let mut looked = 0;
        for batch in 0..BATCHES {
            let from = (batch * BATCH) as u64;
            let numbers: Vec<u64> = (from..from + BATCH as u64).filter_map(|position| epoch.at(position)).collect();
            places.clear();
            index.locate(&numbers, &mut places)?;
            looked += places.len();
        }
        let rate = looked as f64 / clock.elapsed().as_secs_f64();
        println!("       {looked} random lookups in batches of {BATCH}, {round}: {rate:.0} a second");
    }
    println!("       {} MiB more memory than before", memory("VmRSS")?.saturating_sub(before));
    Ok(())
}

/// An array of so many items, of which only the head takes space.
fn sparse(path: &Path, items: u64) -> std::io::Result<()> {
    let head = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({items}, {SAMPLE_BYTES}), }}");
    let head = format!("{head:117}\n");
    let mut file = fs::File::create(path)?;
    file.write_all(b"\x93NUMPY\x01\x00\x76\x00")?;
    file.write_all(head.as_bytes())?;
    file.set_len(128 + items * SAMPLE_BYTES)
}

/// A line of the process's status, in MiB.
fn memory(line: &str) -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(found.ok_or("the system does not tell")? >> 10)
}
