//! The order of samples: seeks by a pure function.

use std::time::Instant;

use sw_data::order::{Method, Sampler};

use crate::{data::splitmix64, report::Sample, usage::Usage};

/// Neighbours of a block, and blocks of a window, of the method `blocks`.
const BLOCKS: Method = Method::Blocks { samples: 1024, blocks: 256 };

/// How to order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum By {
    Shuffle,
    Blocks,
}

/// What to look up.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Seeks {
    /// Samples of the dataset.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub samples: u64,
    /// How they are ordered.
    #[arg(long, value_enum)]
    pub method: By,
    /// Positions to look up, each in an epoch of its own.
    #[arg(long)]
    pub seeks: u64,
    /// Seed of order and positions.
    #[arg(long)]
    pub seed: u64,
}

/// Does it once. An operation is a seek: the epoch's order made, one position looked up.
pub(crate) fn run(job: &Seeks) -> Result<Sample, straightway::Error> {
    let method = match job.method {
        By::Shuffle => Method::Shuffle,
        By::Blocks => BLOCKS,
    };
    let misuse = |cause: sw_data::order::OrderError| {
        straightway::Error::new(straightway::ErrorKind::ApiMisuse, straightway::Verb::Plan).detail(cause.to_string())
    };
    let sampler = Sampler::new(job.samples, job.seed, method).map_err(misuse)?;
    let mut sample = Sample { ops: job.seeks, ..Sample::default() };
    let before = Usage::now();
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    let mut sum = 0u64;
    for seek in 0..job.seeks {
        let position = splitmix64(job.seed.wrapping_add(seek)) % job.samples;
        sum = sum.wrapping_add(sampler.epoch(seek).at(position).unwrap_or(0));
    }
    std::hint::black_box(sum);
    sample.seconds = start.elapsed().as_secs_f64();
    Usage::now().charge(before, &mut sample);
    Ok(sample)
}
