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
/// What the goals are about.
const TORCH: &str = "torch-2";
/// What the largest side holds, and something: memory that the host took back would cost its first user a host fault a page.
const BACKED_BYTES: u64 = 1 << 30;
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
            let made = samples::dataset(&bench.dir, packing, size, total_bytes(bench.size), bench.seed)?;
            cases.push(one(bench, packing, size_name, &made));
        }
    }
    Ok(cases)
}

fn one(bench: &mut Bench<'_>, packing: Packing, size_name: &str, made: &Dataset) -> Case {
    let batch = if size_name == "1MiB" { 8 } else { 64 };
    let list = made.list.to_string_lossy();
    let args = words(&["samples", &list, &format!("--batch={batch}"), &format!("--seed={}", bench.seed)]);
    let mut subjects: Vec<Box<dyn Subject>> = vec![bench.worker(US, Role::Ours, &args, &made.files)];
    let peers: &[&'static str] = match packing {
        Packing::Loose => &[TORCH, "threads-2", "threads-8"],
        Packing::Tar => &[TORCH, "threads-2", "threads-8", "webdataset", "webdataset-2"],
        Packing::TfRecord => &[TORCH, "threads-2", "threads-8", "tf.data"],
    };
    for &name in peers {
        let (list, files, python) = (made.list.clone(), made.files.clone(), bench.python.clone());
        subjects.push(Box::new(Sampler { name, batch, seed: bench.seed, list, files, python }));
    }
    let name = format!("loader/{size_name}-{}", packing.name());
    let what = format!(
        "{} MiB of samples of {size_name} and up to 499 bytes more, {}, shuffled, cold, batches of {batch} in CPU memory",
        made.bytes >> 20,
        match packing {
            Packing::Loose => "a file each",
            Packing::Tar => "in tar shards of 64 MiB",
            Packing::TfRecord => "in TFRecord shards of 64 MiB",
        }
    );
    let before = Before { cache: Some(CacheState::Cold), back_bytes: BACKED_BYTES, digest: Some(made.digest.clone()) };
    let mut case = bench.case(&name, &what, subjects, &before);
    goals(&mut case);
    case
}

fn goals(case: &mut Case) {
    let others = |side: &Side| side.name != TORCH;
    for (metric, what) in [(Metric::OpsPerSecond, "a second"), (Metric::OpsPerCpuSecond, "a CPU second")] {
        let text = format!("samples {what} at least 3 times torch's DataLoader with 2 workers");
        case.hold(&text, metric, US, Some(TORCH), Bound::AtLeast(3.0));
        let best = case.best_peer(metric, Best::Highest, others).map(|side| side.name.clone());
        if let Some(name) = best {
            let text = format!("samples {what} at least 1.5 times the best other peer");
            case.hold(&text, metric, US, Some(&name), Bound::AtLeast(1.5));
        }
    }
}
