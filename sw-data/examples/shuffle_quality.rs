//! How good a block shuffle is, by numbers; prints the table of `docs/shuffle.md`.
//!
//! The dataset is the worst case: sorted by a label that runs evenly from 0 to 1. A batch of independent samples then has a
//! mean label that spreads with variance 1/12/batch around one half. What a method's batches spread more than that is noise
//! that the optimiser sees because samples of a block come together: the inflation of the variance, 1.0 for a full shuffle.
//!
//! ```text
//! cargo run --release -p sw-data --example shuffle_quality
//! ```

use std::{collections::BTreeSet, time::Instant};

use sw_data::order::{Method, OrderError, Sampler};

/// Samples of the dataset.
const LEN: u64 = 1 << 20;
/// Samples of a batch.
const BATCH: u64 = 256;
/// Epochs over which is measured, so that the inflation is known to a few percent.
const EPOCHS: u64 = 8;
/// Positions that are looked up to measure time.
const LOOKUPS: u64 = 1 << 20;

struct Quality {
    /// Variance of the batches' mean labels, over that of independent samples.
    inflation: f64,
    /// Distinct blocks in a batch, mean.
    blocks: f64,
    /// Nanoseconds a lookup, in sequence.
    nanos: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn measure(method: Method) -> Result<Quality, OrderError> {
    let sampler = Sampler::new(LEN, 1, method)?;
    let neighbours = if let Method::Blocks { samples, .. } = method { samples } else { 1 };
    let (mut spread, mut distinct, mut batches) = (0.0, 0u64, 0u64);
    for epoch in 0..EPOCHS {
        let epoch = sampler.epoch(epoch);
        for batch in 0..LEN / BATCH {
            let mut sum = 0.0;
            let mut blocks = BTreeSet::new();
            for position in batch * BATCH..(batch + 1) * BATCH {
                let Some(sample) = epoch.at(position) else { continue };
                sum += sample as f64 / LEN as f64;
                blocks.insert(sample / neighbours);
            }
            spread += (sum / BATCH as f64 - 0.5).powi(2);
            distinct += blocks.len() as u64;
            batches += 1;
        }
    }
    let epoch = sampler.epoch(0);
    #[expect(clippy::disallowed_methods, reason = "an example that measures reads the clock")]
    let start = Instant::now();
    let sum = (0..LOOKUPS).filter_map(|position| epoch.at(position)).fold(0u64, u64::wrapping_add);
    let nanos = start.elapsed().as_secs_f64() * 1e9 / LOOKUPS as f64;
    std::hint::black_box(sum);
    let independent = 1.0 / 12.0 / BATCH as f64;
    Ok(Quality { inflation: spread / batches as f64 / independent, blocks: distinct as f64 / batches as f64, nanos })
}

fn main() -> Result<(), OrderError> {
    println!(
        "| block, samples | window, blocks | samples in memory | variance of a batch's mean | blocks in a batch | ns a lookup |"
    );
    println!("|---|---|---|---|---|---|");
    let mut methods = vec![Method::Shuffle];
    for samples in [64, 256, 1024] {
        methods.extend([16, 64, 256].map(|blocks| Method::Blocks { samples, blocks }));
    }
    methods.push(Method::Sequence);
    for method in methods {
        let quality = measure(method)?;
        let what = match method {
            Method::Blocks { samples, blocks } => format!("{samples} | {blocks} | {}", samples * blocks),
            Method::Shuffle => format!("full shuffle | – | {LEN}"),
            _ => "in sequence | – | 1".to_owned(),
        };
        println!("| {what} | {:.2} | {:.0} | {:.0} |", quality.inflation, quality.blocks, quality.nanos);
    }
    Ok(())
}
