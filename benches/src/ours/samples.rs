//! An epoch of a dataset through the loader.

use std::{path::Path, sync::Arc, time::Instant};

use straightway::Engine;
use sw_data::{
    formats::Extent,
    loader::{Dataset, LoadError, Loader, LoaderOptions, LoaderStats},
    order::Method,
    samples::{Format, ObjectEntry, Place},
    table::Table,
};

use crate::{
    allocations,
    fault::Fault,
    ours::per_thousand,
    report::Sample,
    samples::{Digest, List},
    usage::{self, Usage},
};

/// How an epoch is shuffled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Every order as likely as any other.
    Full,
    /// Blocks of [`BLOCK_BYTES`] shuffled, and samples within windows of [`WINDOW_BLOCKS`].
    Blocks,
}

impl std::str::FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "full" => Ok(Self::Full),
            "blocks" => Ok(Self::Blocks),
            _ => Err(format!("`{text}` is neither full nor blocks")),
        }
    }
}

/// Bytes of a block: what a disk reads in about the time that it seeks.
const BLOCK_BYTES: u64 = 2 << 20;
/// Samples of a block at least.
const BLOCK_SAMPLES_MIN: u64 = 64;
/// Blocks of a window.
const WINDOW_BLOCKS: u64 = 16;

impl Order {
    /// The method for samples of this many bytes on average. At least 1,024 are mixed: peers that shuffle what they read in
    /// sequence mix 1,000.
    fn method(self, sample_bytes: u64) -> Method {
        match self {
            Self::Full => Method::Shuffle,
            Self::Blocks => {
                let samples = BLOCK_BYTES.checked_shr(sample_bytes.max(1).ilog2()).unwrap_or(0);
                Method::Blocks { samples: samples.max(BLOCK_SAMPLES_MIN), blocks: WINDOW_BLOCKS }
            }
        }
    }
}

/// Makes an engine and a loader, takes a shuffled epoch, stops the clock.
pub(crate) fn run(list: &Path, batch: u32, seed: u64, order: Order) -> Result<Sample, Fault> {
    let table = Arc::new(table(list)?);
    let samples = table.places().len() as u64;
    let average = table.places().iter().map(|place| place.extent.len).sum::<u64>() / samples.max(1);
    let mut sample = Sample { rss_before_bytes: usage::resident_bytes(), ..Sample::default() };
    let (before, allocated) = (Usage::now(), allocations::count());
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    let engine = Engine::builder().queue_depth(128).build()?;
    let mut options = LoaderOptions::default();
    (options.batch, options.seed, options.method) = (batch, seed, order.method(average));
    let failed = |error: LoadError| Fault::Loader(error.to_string());
    let loader = Loader::new(&engine, vec![Dataset::new(table)], options, None).map_err(failed)?;
    let (mut digest, mut first_ms) = (Digest::default(), None);
    let mut resident = Resident::new(samples, batch);
    while let Some(batch) = loader.next_batch().map_err(failed)? {
        resident.look(digest.samples);
        first_ms.get_or_insert_with(|| start.elapsed().as_secs_f64() * 1e3);
        (0..batch.len()).filter_map(|index| batch.sample(index)).for_each(|bytes| digest.add(bytes));
    }
    sample.seconds = start.elapsed().as_secs_f64();
    Usage::now().charge(before, &mut sample);
    let allocated = allocations::count() - allocated;
    (sample.ops, sample.bytes) = (digest.samples, digest.bytes);
    sample.checksum = Some(digest.text());
    let stats = loader.stats();
    sample.path = Some(told(&stats));
    let seconds = |time: std::time::Duration| time.as_secs_f64();
    let more = [
        ("growth_bytes", resident.growth()),
        ("first_batch_ms", first_ms.unwrap_or(0.0)),
        ("allocations_per_1000", per_thousand(allocated, digest.samples)),
        ("reading_s", seconds(stats.reading)),
        ("planning_s", seconds(stats.planning)),
        ("planning_held_s", seconds(stats.planning_held)),
        ("ready_s", seconds(stats.ready)),
        ("starved_s", seconds(stats.starved)),
    ];
    sample.more.extend(more.map(|(name, value)| (name.to_owned(), value)));
    drop(loader);
    engine.close()?;
    Ok(sample)
}

/// The most that was resident in each half of an epoch, looked at a few hundred times: a look costs microseconds.
struct Resident {
    samples: u64,
    every: u64,
    most: [u64; 2],
}

impl Resident {
    fn new(samples: u64, batch: u32) -> Self {
        Self { samples, every: (samples / 200).next_multiple_of(batch.into()).max(1), most: [0; 2] }
    }

    /// So many samples were taken.
    fn look(&mut self, taken: u64) {
        if taken.is_multiple_of(self.every) {
            let half = &mut self.most[usize::from(taken >= self.samples / 2)];
            *half = usage::resident_bytes().max(*half);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "memory sizes stay far below 2^52")]
    fn growth(&self) -> f64 {
        self.most[1] as f64 - self.most[0] as f64
    }
}

fn table(list: &Path) -> Result<Table, Fault> {
    let missing = || Fault::Missing { what: format!("{} is no list", list.display()), remedy: "make it again" };
    let list = List::read(list)?;
    let mut objects = Vec::with_capacity(list.files.len());
    for path in &list.files {
        let len = std::fs::metadata(path).map_err(Fault::os("look at", path))?.len();
        let uri = path.to_string_lossy().into_owned();
        objects.push(ObjectEntry { uri, len, version: String::new(), format: Format::Raw, coding: String::new() });
    }
    let place = |&(object, offset, len): &(u32, u64, u64)| Place {
        object,
        extent: Extent { offset, len },
        row: None,
        crc32c: None,
    };
    Table::new(objects, list.places.iter().map(place).collect()).map_err(|_| missing())
}

fn told(stats: &LoaderStats) -> serde_json::Value {
    let row = |way: &sw_data::loader::Way| {
        serde_json::json!({
            "route": way.path.route.to_string(),
            "reason": way.path.reason.code(),
            "reads": way.reads,
            "bytes": way.path.bytes.total(),
            "bounced_bytes": way.path.bounced,
            "cpu_copied_bytes": way.path.cpu_copied,
        })
    };
    serde_json::json!({
        "ways": stats.ways.iter().map(row).collect::<Vec<_>>(),
        "read_bytes": stats.read_bytes,
        "assembled_bytes": stats.assembled_bytes,
        "windows": stats.windows,
        "window_samples": stats.window_samples,
        "apart": stats.apart.iter().map(|(why, samples)| format!("{samples}: {why}")).collect::<Vec<_>>(),
        "opens": stats.opens,
        "memory_fresh": stats.memory.fresh,
        "memory_reused": stats.memory.reused,
    })
}
