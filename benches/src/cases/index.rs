//! `index`: an index of 10⁸ samples opened and searched; a loader's first batch from an index of 10⁶.

use std::path::PathBuf;

use crate::{
    bench::{Bench, words},
    data::CacheState,
    fault::Fault,
    ours::index::{Arrays, indexed},
    report::{Bound, Case, Metric, Role},
    rounds::Before,
};

const US: &str = "straightway";
/// Samples that are looked up at once: a batch of a loader.
const BATCH: u32 = 256;
/// Random lookups of a run.
const LOOKUPS: u32 = 100_000;
/// Bytes of a sample of the large index, whose arrays are holes, and of the other, whose arrays are there.
const LARGE_SAMPLE: u64 = 16 << 10;
const SMALL_SAMPLE: u64 = 1 << 10;

/// Opening and searching, then first batches; both cold and warm.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let mut cases = searches(bench)?;
    cases.extend(first_batches(bench)?);
    Ok(cases)
}

fn searches(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let samples = bench.size.indexed();
    let arrays = Arrays { samples, shards: (samples / 100_000).max(1), sample_bytes: LARGE_SAMPLE, filled: None };
    let made = indexed(&bench.dir.join(format!("index-holes-{samples}")), &arrays)?;
    let index = made.index.to_string_lossy();
    let args = ["index", &index, &format!("--batch={BATCH}"), &format!("--lookups={LOOKUPS}")];
    let args = words(&[&args[..], &[&format!("--seed={}", bench.seed)]].concat());
    let mut cases = Vec::new();
    for state in CacheState::ALL {
        let name = state.name();
        let subjects = vec![bench.worker(US, Role::Ours, &args, std::slice::from_ref(&made.index))];
        let what = format!(
            "an index of {samples} samples ({} MiB) opened (open_ms), and random samples looked up, {BATCH} at once, one thread; {name}",
            made.index_bytes() >> 20
        );
        let mut case = bench.case(&format!("index/{name}"), &what, subjects, &before(state));
        case.hold("opened in under 100 ms", Metric::OpenMillis, US, None, Bound::AtMost(100.0));
        cases.push(case);
    }
    Ok(cases)
}

fn first_batches(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let samples = bench.size.first_batch_of();
    let filled = Some(bench.seed);
    let arrays = Arrays { samples, shards: 16, sample_bytes: SMALL_SAMPLE, filled };
    let made = indexed(&bench.dir.join(format!("index-arrays-{samples}-{:x}", bench.seed)), &arrays)?;
    let index = made.index.to_string_lossy();
    let args = words(&["first-batch", &index, &format!("--batch={BATCH}"), &format!("--seed={}", bench.seed)]);
    let files: Vec<PathBuf> = made.shards.iter().chain([&made.index]).cloned().collect();
    let mut cases = Vec::new();
    for state in CacheState::ALL {
        let name = state.name();
        let subjects = vec![bench.worker(US, Role::Ours, &args, &files)];
        let what = format!(
            "engine made, index of {samples} samples opened, loader made, first shuffled batch of {BATCH} samples of 1 KiB in memory; the start of the process is not in it; {name}"
        );
        let mut case = bench.case(&format!("first-batch/{name}"), &what, subjects, &before(state));
        case.hold("first batch in under 100 ms", Metric::FirstBatchMillis, US, None, Bound::AtMost(100.0));
        cases.push(case);
    }
    Ok(cases)
}

fn before(state: CacheState) -> Before {
    Before { cache: Some(state), ..Before::default() }
}
