//! `loader`: a shuffled epoch of samples, cold, beside the loaders that people use.

use crate::{
    bench::{Bench, Size, words},
    data::CacheState,
    fault::Fault,
    peers::python::Sampler,
    report::{Best, Bound, Case, Metric, Role, Side},
    rounds::{Before, Subject},
    samples::{self, Dataset, Packing},
};

const US: &str = "straightway";
/// Our side in a block shuffle: against those that read shards from front to back, or row groups, and mix what they read.
const US_BLOCKS: &str = "straightway-blocks";
/// What the goals are about.
const TORCH: &str = "torch-2";
/// What the largest side holds, and something: memory that the host took back would cost its first user a host fault a page.
const BACKED_BYTES: u64 = 1 << 30;
/// Reads in flight of the ceiling: as many as our side has.
const DEPTH: u32 = 128;
/// Nominal bytes of a sample, and the name of the size.
const SIZES: [(u64, &str); 2] = [(16 << 10, "16KiB"), (1 << 20, "1MiB")];

/// Bytes of a dataset.
fn total_bytes(size: Size) -> u64 {
    match size {
        Size::Smoke => 8 << 20,
        Size::Real => 512 << 20,
    }
}

/// Every packing at both sizes.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let mut cases = Vec::new();
    for (size, size_name) in SIZES {
        for packing in Packing::ALL {
            let name = format!("loader/{size_name}-{}", packing.name());
            if !bench.wants(&name) {
                continue;
            }
            let bytes = (size, total_bytes(bench.size));
            cases.push(match samples::dataset(&bench.dir, packing, bytes, bench.seed, &bench.python) {
                Ok(made) => one(bench, packing, (&name, size_name), &made),
                // Nobody can read what the format's library has not written.
                Err(fault @ Fault::Missing { .. }) => {
                    (bench.tell)(&format!("{name}: {}", fault.line()));
                    nobody(&name, &fault)
                }
                Err(fault) => return Err(fault),
            });
        }
    }
    Ok(cases)
}

/// A case that could not be made ready.
fn nobody(name: &str, fault: &Fault) -> Case {
    let mut side = Side {
        name: US.to_owned(),
        role: Role::Ours,
        own_memory: None,
        absent: None,
        failed: false,
        samples: Vec::new(),
    };
    side.leave_out(fault);
    Case { name: name.to_owned(), what: "a shuffled epoch".to_owned(), sides: vec![side], goals: Vec::new() }
}

fn one(bench: &mut Bench<'_>, packing: Packing, (name, size_name): (&str, &str), made: &Dataset) -> Case {
    let batch = if size_name == "1MiB" { 8 } else { 64 };
    let list = made.list.to_string_lossy();
    let args = words(&["samples", &list, &format!("--batch={batch}"), &format!("--seed={}", bench.seed)]);
    let mut subjects: Vec<Box<dyn Subject>> = vec![bench.worker(US, Role::Ours, &args, &made.files)];
    if packing != Packing::Loose {
        let args: Vec<String> = args.iter().cloned().chain(["--order=blocks".to_owned()]).collect();
        subjects.push(bench.worker(US_BLOCKS, Role::Ours, &args, &made.files));
    }
    let peers: &[&'static str] = match packing {
        Packing::Loose => &[TORCH, "threads-2", "threads-8"],
        Packing::Tar => &[TORCH, "threads-2", "threads-8", "webdataset", "webdataset-2"],
        Packing::TfRecord => &[TORCH, "threads-2", "threads-8", "tf.data"],
        Packing::Mds => &[TORCH, "threads-2", "threads-8", "streaming", "streaming-2"],
        Packing::Parquet => &[TORCH, "pyarrow-2", "pyarrow-8"],
    };
    // That a peer runs is seen at one size; most of a small run is the start of its interpreter.
    let shown = if bench.size == Size::Smoke && size_name == "1MiB" { 1 } else { peers.len() };
    for &name in peers.iter().take(shown) {
        let (list, files, python) = (made.list.clone(), made.files.clone(), bench.python.clone());
        subjects.push(Box::new(Sampler { name, batch, seed: bench.seed, list, files, python }));
    }
    let args = words(&["extents", &list, &format!("--depth={DEPTH}"), &format!("--seed={}", bench.seed)]);
    subjects.push(bench.worker("io_uring", Role::Ceiling, &args, &made.files));
    let what = format!(
        "{} MiB of samples of {size_name} and up to 499 bytes more, {}, shuffled, cold, batches of {batch} in CPU memory",
        made.bytes >> 20,
        match packing {
            Packing::Loose => "a file each",
            Packing::Tar => "in tar shards of 64 MiB",
            Packing::TfRecord => "in TFRecord shards of 64 MiB",
            Packing::Mds => "in MDS shards of 64 MiB",
            Packing::Parquet => "rows of Parquet files of 64 MiB, neither encoded nor compressed",
        }
    );
    let before = Before { cache: Some(CacheState::Cold), back_bytes: BACKED_BYTES, digest: Some(made.digest.clone()) };
    let mut case = bench.case(name, &what, subjects, &before);
    goals(&mut case, packing);
    case
}

/// Whether a peer reads shards or row groups as they lie, and mixes samples in memory.
fn mixes(peer: &str, packing: Packing) -> bool {
    let random = peer.starts_with("threads-") || (peer == TORCH && packing != Packing::Parquet);
    !random
}

fn goals(case: &mut Case, packing: Packing) {
    for (metric, what) in [(Metric::OpsPerSecond, "a second"), (Metric::OpsPerCpuSecond, "a CPU second")] {
        let ours = if mixes(TORCH, packing) { US_BLOCKS } else { US };
        let text = format!("samples {what} at least 3 times torch's DataLoader with 2 workers");
        case.hold(&text, metric, ours, Some(TORCH), Bound::AtLeast(3.0));
        // Each order against the peers that have it.
        for (ours, kind) in [(US, "that reads samples at random"), (US_BLOCKS, "that mixes what it reads in sequence")]
        {
            let others = |side: &Side| side.name != TORCH && mixes(&side.name, packing) == (ours == US_BLOCKS);
            let best = case.best_peer(metric, Best::Highest, others).map(|side| side.name.clone());
            if let Some(name) = best {
                let text = format!("samples {what} at least 1.5 times the best other peer {kind}");
                case.hold(&text, metric, ours, Some(&name), Bound::AtLeast(1.5));
            }
        }
    }
    let sides = if packing == Packing::Loose { &[US][..] } else { &[US, US_BLOCKS] };
    for &ours in sides {
        let text = "resident memory of the second half of the epoch at most 8 MiB above that of the first";
        case.hold(text, Metric::GrowthBytes, ours, None, Bound::AtMost(f64::from(8 << 20)));
        let text = "resident memory at most the loader's budget of 256 MiB above that before, and 16 MiB";
        case.hold(text, Metric::RisenBytes, ours, None, Bound::AtMost(f64::from((256 + 16) << 20)));
    }
}
