//! `load`: a sharded safetensors checkpoint into CPU memory, cold and warm, beside the loaders that people use.

use std::path::PathBuf;

use crate::{
    bench::{Bench, words},
    data::{self, CacheState, Checkpoint},
    fault::Fault,
    peers::{
        fio::Fio,
        python::{Format, LOADERS, Loader},
    },
    report::{Best, Bound, Case, Metric, Role},
    rounds::{Before, Subject},
    worker::Worker,
};

/// Destination and page cache or bytes object of a peer, and something for its libraries.
const BACKED_COPIES: u64 = 2;
const BACKED_EXTRA_BYTES: u64 = 512 << 20;
/// Packages that a load must not be slower than, cold.
const RIVALS: &[&str] = &["safetensors", "fastsafetensors", "runai", "tensorizer", "torch"];

/// Names of our sides: a first load, and a load into memory that the engine kept.
const US: &str = "straightway";
const US_AGAIN: &str = "straightway, kept memory";

struct Files {
    checkpoint: Checkpoint,
    torch: Vec<PathBuf>,
    tensorizer: Vec<PathBuf>,
}

/// Cold from the device, then warm from the page cache.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let checkpoint = data::checkpoint(&bench.dir, bench.size.checkpoint_bytes(), bench.seed)?;
    let convert = |kind: &str| {
        let folder = checkpoint.index.with_file_name(kind);
        bench.python.convert(kind, &folder, &checkpoint.shards)
    };
    let (torch, tensorizer) = (convert("torch"), convert("tensorizer"));
    for (kind, result) in [("torch", &torch), ("tensorizer", &tensorizer)] {
        if let Err(fault) = result {
            (bench.tell)(&format!("load: no files for {kind}: {}", fault.line()));
        }
    }
    let files = Files { torch: torch.unwrap_or_default(), tensorizer: tensorizer.unwrap_or_default(), checkpoint };
    let mut cold = one(bench, &files, CacheState::Cold);
    cold_goals(&mut cold);
    let mut warm = one(bench, &files, CacheState::Warm);
    warm_goals(&mut warm);
    Ok(vec![cold, warm])
}

fn one(bench: &mut Bench<'_>, files: &Files, state: CacheState) -> Case {
    let checkpoint = &files.checkpoint;
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    if state == CacheState::Cold {
        let mut args = Fio::uring("read", 1 << 20, 16, bench.seed);
        args.extend(words(&["--file_service_type=sequential", "--readonly"]));
        let (role, files) = (Role::Ceiling, checkpoint.shards.clone());
        subjects.push(Box::new(Fio { name: "fio".into(), role, args, files, scratch: bench.scratch.clone() }));
    }
    for (name, extra) in [(US, &[][..]), (US_AGAIN, &["--again"][..])] {
        let index = checkpoint.index.to_string_lossy();
        let mut args = words(&["load", &index, &format!("--seed={}", bench.seed)]);
        args.extend(words(extra));
        subjects.push(Box::new(Worker {
            name: name.to_owned(),
            role: Role::Ours,
            own_memory: Some(true),
            args,
            files: checkpoint.shards.clone(),
            scratch: bench.scratch.clone(),
        }));
    }
    for (name, format, own_memory) in LOADERS {
        let files = match format {
            Format::Safetensors => &checkpoint.shards,
            Format::Torch => &files.torch,
            Format::Tensorizer => &files.tensorizer,
            Format::Dcp => continue,
        };
        if files.is_empty() {
            continue;
        }
        let (name, own_memory, files) = (*name, *own_memory, files.clone());
        let loader =
            Loader { name, role: Role::Peer, own_memory, files, seed: bench.seed, python: bench.python.clone() };
        subjects.push(Box::new(loader));
    }
    let (size, from) = (checkpoint.tensor_bytes >> 20, state.source());
    let what = format!("{size} MiB of safetensors in two shards from {from} into CPU memory");
    let before = Before {
        cache: Some(state),
        back_bytes: BACKED_COPIES * checkpoint.tensor_bytes + BACKED_EXTRA_BYTES,
        digest: Some(checkpoint.digest.clone()),
    };
    bench.case(&format!("load/{}", state.name()), &what, subjects, &before)
}

fn cold_goals(case: &mut Case) {
    let text = "rate at least 0.97 of the sequential O_DIRECT ceiling";
    case.hold(text, Metric::BytesPerSecond, US, Some("fio"), Bound::AtLeast(0.97));
    let rival = |name: &str| RIVALS.iter().any(|rival| name.starts_with(rival));
    let fastest = case.best_peer(Metric::BytesPerSecond, Best::Highest, |side| rival(&side.name));
    if let Some(name) = fastest.map(|side| side.name.clone()) {
        let text = "not slower than any of safetensors, fastsafetensors, runai-model-streamer, tensorizer, torch";
        case.hold(text, Metric::BytesPerSecond, US, Some(&name), Bound::AtLeast(1.0));
    }
    let own = |side: &crate::report::Side| side.own_memory == Some(true) && rival(&side.name);
    let cheapest = case.best_peer(Metric::CpuSeconds, Best::Lowest, own);
    if let Some(name) = cheapest.map(|side| side.name.clone()) {
        // Fresh memory is zeroed by the kernel, which alone costs more than a third: docs/decisions/0009.
        let text = "at most the CPU time of the best that returns memory of its own";
        case.hold(text, Metric::CpuSeconds, US, Some(&name), Bound::AtMost(1.0));
        let text = "at most a third of it, into memory that the engine kept from the load before";
        case.hold(text, Metric::CpuSeconds, US_AGAIN, Some(&name), Bound::AtMost(1.0 / 3.0));
    }
    memory_goal(case, US);
}

fn warm_goals(case: &mut Case) {
    let own = |side: &crate::report::Side| side.own_memory == Some(true);
    let fastest = case.best_peer(Metric::BytesPerSecond, Best::Highest, own);
    if let Some(name) = fastest.map(|side| side.name.clone()) {
        let text = "rate at least 1.3 times the best that returns memory of its own";
        case.hold(text, Metric::BytesPerSecond, US, Some(&name), Bound::AtLeast(1.3));
    }
    memory_goal(case, US);
}

pub(super) fn memory_goal(case: &mut Case, us: &str) {
    // The engine's default staging budget is 32 MiB.
    let text = "peak memory at most destination, staging budget and 64 MiB";
    case.hold(text, Metric::ExtraMemoryBytes, us, None, Bound::AtMost(f64::from(96 << 20)));
}
