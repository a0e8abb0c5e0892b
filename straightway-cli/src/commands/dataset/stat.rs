//! `dataset stat`.

use std::{collections::BTreeMap, fmt};

use hdrhistogram::Histogram;
use serde::Serialize;
use sw_data::{index::Index, samples::Samples as _};

use crate::{
    args::EngineArgs,
    dataset_args::Stat,
    fail::{Exit, Fail},
    out::Out,
    session, signals,
    size::Bytes,
};

use super::open;

/// Objects of one format.
#[derive(Serialize, Default)]
struct FormatReport {
    format: &'static str,
    objects: u64,
    samples: u64,
    object_bytes: u64,
}

/// Sizes of samples in bytes.
#[derive(Serialize)]
struct Sizes {
    min: u64,
    p1: u64,
    p50: u64,
    p99: u64,
    max: u64,
    mean: f64,
}

/// An index summed up.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    index: String,
    samples: u64,
    sample_bytes: u64,
    objects: u64,
    object_bytes: u64,
    checksums: u64,
    formats: Vec<FormatReport>,
    /// Null if there are no samples.
    sizes: Option<Sizes>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.index)?;
        writeln!(f, "  samples    {} ({})", self.samples, Bytes(self.sample_bytes))?;
        write!(f, "  objects    {} ({})", self.objects, Bytes(self.object_bytes))?;
        for format in &self.formats {
            let FormatReport { format, objects, samples, object_bytes } = format;
            write!(f, "\n  {format:<10} {samples} samples in {objects} objects ({})", Bytes(*object_bytes))?;
        }
        write!(f, "\n  checksums  {} of {}", self.checksums, self.samples)?;
        let Some(Sizes { min, p1, p50, p99, max, mean }) = &self.sizes else { return Ok(()) };
        write!(f, "\n  bytes      mean {mean:.0}, min {min}, p1 {p1}, median {p50}, p99 {p99}, max {max}")
    }
}

/// Objects that are summed between two looks at signals.
const OBJECTS_A_TURN: u32 = 4096;

/// Runs it.
///
/// # Errors
/// Those of opening and reading the index; an interrupt.
pub fn run(args: &Stat, out: &mut Out) -> Result<(), Fail> {
    session::with_engine(&EngineArgs::default(), |engine| {
        let index = open(engine, &args.index)?;
        let mut formats: BTreeMap<&'static str, FormatReport> = BTreeMap::new();
        let mut checksums = 0;
        for number in 0..index.object_count() {
            if number.is_multiple_of(OBJECTS_A_TURN) {
                signals::requested()?;
            }
            let (entry, held) = (index.object(number)?, index.held(number)?);
            let format = formats.entry(entry.format.name()).or_default();
            format.format = entry.format.name();
            format.objects += 1;
            format.samples += held.samples;
            format.object_bytes += entry.len;
            checksums += held.checksums;
        }
        let (sizes, sample_bytes) = sizes(&index)?;
        let formats: Vec<FormatReport> = formats.into_values().collect();
        out.report(&Report {
            schema: "straightway.dataset.stat/1",
            index: index.name().to_owned(),
            samples: index.len(),
            sample_bytes,
            objects: formats.iter().map(|format| format.objects).sum(),
            object_bytes: formats.iter().map(|format| format.object_bytes).sum(),
            checksums,
            formats,
            sizes,
        })
    })
}

/// Percentiles to three digits, and the sum. Rows of one block count the block each.
fn sizes(index: &Index) -> Result<(Option<Sizes>, u64), Fail> {
    let failed =
        |error: &dyn fmt::Display| Fail::new(Exit::Failed, "histogram", format!("counting failed: {error}"), "");
    // It grows by itself.
    let mut histogram = Histogram::<u64>::new(3).map_err(|error| failed(&error))?;
    let (mut first, mut sum, mut min, mut max) = (0, 0u64, u64::MAX, 0);
    while first < index.len() {
        signals::requested()?;
        let lens = index.lens_from(first)?;
        first += lens.len() as u64;
        for len in lens {
            histogram.record(len).map_err(|error| failed(&error))?;
            sum = sum.saturating_add(len);
            (min, max) = (min.min(len), max.max(len));
        }
    }
    let at = |percent| histogram.value_at_quantile(percent).clamp(min, max);
    let sizes = (index.len() > 0).then(|| Sizes {
        min,
        p1: at(0.01),
        p50: at(0.5),
        p99: at(0.99),
        max,
        mean: sum as f64 / index.len() as f64,
    });
    Ok((sizes, sum))
}
