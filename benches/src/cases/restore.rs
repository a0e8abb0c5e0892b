//! `restore`: a model on four local ranks from a directory of `torch.distributed.checkpoint` that another number of ranks
//! wrote, cold and warm: torch's reader and ours under the same `dcp.load`, and our own entry, `load_state_dict_together`.

use std::path::PathBuf;

use crate::{
    bench::{Bench, Size},
    data::{self, CacheState, Checkpoint},
    fault::Fault,
    peers::restore::{self, Restore},
    report::{Bound, Case, Metric, Role},
    rounds::{Before, Subject},
};

/// Under `dcp.load`, and by our own entry.
const OURS: [&str; 2] = ["straightway", "straightway-own"];
const TORCH: &str = "torch";
/// Ranks that restore.
const RANKS: u32 = 4;
/// For the libraries of four interpreters.
const EXTRA_BYTES: u64 = 1 << 30;

/// How a model lies on its ranks, ranks that wrote it, and the part of a checkpoint's bytes that it has: what every rank wants
/// whole takes four times its size in memory.
const SHAPES: [(&str, u32, u64); 2] = [("sharded", 8, 1), ("replicated", 2, 2)];

/// Every shape, cold and warm; one of them at smoke size.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let mut cases = Vec::new();
    for (shape, writers, part) in SHAPES {
        if bench.size == Size::Smoke && shape != "replicated" {
            continue;
        }
        let wanted = |state: &CacheState| bench.wants(&case_name(shape, *state));
        let states: Vec<_> = CacheState::ALL.into_iter().filter(wanted).collect();
        if states.is_empty() {
            continue;
        }
        let checkpoint = data::checkpoint(&bench.dir, bench.size.checkpoint_bytes() / part, bench.seed)?;
        let folder = checkpoint.index.with_file_name(format!("dcp-{shape}-{writers}"));
        let written = restore::write(&bench.python, (writers, shape), &folder, &checkpoint.shards);
        if let Err(fault) = &written {
            (bench.tell)(&format!("restore: no files: {}", fault.line()));
        }
        let files = written.unwrap_or_default();
        for state in states {
            cases.push(one(bench, (shape, writers), (&checkpoint, &files), state));
        }
    }
    Ok(cases)
}

fn case_name(shape: &str, state: CacheState) -> String {
    format!("restore/{shape}-{}", state.name())
}

fn one(
    bench: &mut Bench<'_>,
    (shape, writers): (&'static str, u32),
    (checkpoint, files): (&Checkpoint, &[PathBuf]),
    state: CacheState,
) -> Case {
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    let sides = OURS.map(|name| (name, Role::Ours)).into_iter().chain([(TORCH, Role::Peer)]);
    for (name, role) in sides {
        subjects.push(Box::new(Restore {
            name,
            role,
            ranks: RANKS,
            shape,
            files: files.to_vec(),
            sources: checkpoint.shards.clone(),
            seed: bench.seed,
            python: bench.python.clone(),
        }));
    }
    let size = checkpoint.tensor_bytes;
    let what = format!(
        "{} MiB of tensors, {shape}, that {writers} ranks wrote, to {RANKS} local ranks from {}",
        size >> 20,
        state.source()
    );
    let copies = if shape == "replicated" { u64::from(RANKS) } else { 2 };
    let back_bytes = (copies + 1) * size + EXTRA_BYTES;
    let before = Before { cache: Some(state), back_bytes, digest: None };
    let mut case = bench.case(&case_name(shape, state), &what, subjects, &before);
    goals(&mut case, state);
    case
}

fn goals(case: &mut Case, state: CacheState) {
    for ours in OURS {
        let text = "at least 2.5 times faster than torch's reader";
        case.hold(text, Metric::BytesPerSecond, ours, Some(TORCH), Bound::AtLeast(2.5));
        case.hold("at less CPU time of all ranks", Metric::CpuSeconds, ours, Some(TORCH), Bound::AtMost(1.0));
        // Heads of chunks, and blocks at the ends of reads.
        let text = "bytes that all ranks asked storage for, per byte of the checkpoint";
        case.hold(text, Metric::AskedPerByte, ours, None, Bound::AtMost(1.02));
        if state == CacheState::Cold {
            let text = "bytes that the kernel read from storage for all ranks, per byte of the checkpoint";
            case.hold(text, Metric::StorageReadPerByte, ours, None, Bound::AtMost(1.02));
        }
        let text = "peak memory of a rank at most its tensors, staging budget and 64 MiB";
        case.hold(text, Metric::RankExtraMemoryBytes, ours, None, Bound::AtMost(f64::from(96 << 20)));
    }
}
