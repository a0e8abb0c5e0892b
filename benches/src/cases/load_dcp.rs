//! `load-dcp`: a directory of `torch.distributed.checkpoint` into CPU memory by one process, cold and warm, beside torch.

use std::path::{Path, PathBuf};

use crate::{
    bench::{Bench, words},
    data::{self, CacheState, Checkpoint},
    fault::Fault,
    ours,
    peers::{
        fio::Fio,
        python::{Format, LOADERS, Loader},
    },
    report::{Best, Bound, Case, Metric, Role, Side},
    rounds::{Before, Subject},
    worker::Worker,
};

/// Destination, page cache or what a peer unpickles into, and something for its libraries.
const BACKED_COPIES: u64 = 2;
const BACKED_EXTRA_BYTES: u64 = 512 << 20;

const US: &str = "straightway";
const US_AGAIN: &str = "straightway, kept memory";
/// Our reader under `dcp.load`, into tensors of torch.
const US_IN_TORCH: &str = "straightway-dcp";
const TORCH: &str = "dcp";

/// Cold from the device, then warm from the page cache.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let checkpoint = data::checkpoint(&bench.dir, bench.size.checkpoint_bytes(), bench.seed)?;
    let folder = checkpoint.index.with_file_name("dcp");
    let files = match bench.python.convert("dcp", &folder, &checkpoint.shards) {
        Ok(files) => files,
        Err(fault) => {
            (bench.tell)(&format!("load-dcp: written by our own saver, not by torch: {}", fault.line()));
            ours::save::dcp(&checkpoint.index, &folder)?
        }
    };
    let mut cold = one(bench, (&checkpoint, &folder, &files), CacheState::Cold);
    let text = "rate at least 0.97 of the sequential O_DIRECT ceiling";
    cold.hold(text, Metric::BytesPerSecond, US, Some("fio"), Bound::AtLeast(0.97));
    goals(&mut cold);
    let mut warm = one(bench, (&checkpoint, &folder, &files), CacheState::Warm);
    goals(&mut warm);
    Ok(vec![cold, warm])
}

fn one(
    bench: &mut Bench<'_>,
    (checkpoint, folder, files): (&Checkpoint, &Path, &[PathBuf]),
    state: CacheState,
) -> Case {
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    if state == CacheState::Cold {
        let mut args = Fio::uring("read", 1 << 20, 16, bench.seed);
        args.extend(words(&["--file_service_type=sequential", "--readonly"]));
        let large = |path: &&PathBuf| path.extension().is_some_and(|ending| ending == "distcp");
        let (role, files) = (Role::Ceiling, files.iter().filter(large).cloned().collect());
        subjects.push(Box::new(Fio { name: "fio".into(), role, args, files, scratch: bench.scratch.clone() }));
    }
    for (name, extra) in [(US, &[][..]), (US_AGAIN, &["--again"][..])] {
        let mut args = words(&["load", &folder.to_string_lossy(), &format!("--seed={}", bench.seed)]);
        args.extend(words(extra));
        subjects.push(Box::new(Worker {
            name: name.to_owned(),
            role: Role::Ours,
            own_memory: Some(true),
            args,
            files: files.to_vec(),
            scratch: bench.scratch.clone(),
        }));
    }
    for (name, _, own_memory) in LOADERS.iter().filter(|(_, format, _)| *format == Format::Dcp) {
        let (name, own_memory, files) = (*name, *own_memory, files.to_vec());
        let role = if name == US_IN_TORCH { Role::Ours } else { Role::Peer };
        subjects.push(Box::new(Loader {
            name,
            role,
            own_memory,
            files,
            seed: bench.seed,
            python: bench.python.clone(),
        }));
    }
    let what = format!(
        "{} MiB of tensors of a torch.distributed.checkpoint directory from {} into CPU memory, one process",
        checkpoint.tensor_bytes >> 20,
        state.source()
    );
    let before = Before {
        cache: Some(state),
        back_bytes: BACKED_COPIES * checkpoint.tensor_bytes + BACKED_EXTRA_BYTES,
        digest: Some(checkpoint.digest.clone()),
    };
    bench.case(&format!("load-dcp/{}", state.name()), &what, subjects, &before)
}

fn goals(case: &mut Case) {
    let peers = |side: &Side| side.role == Role::Peer;
    let fastest = case.best_peer(Metric::BytesPerSecond, Best::Highest, peers).map(|side| side.name.clone());
    let other = fastest.unwrap_or_else(|| TORCH.to_owned());
    for us in [US, US_IN_TORCH] {
        case.hold("faster than torch's reader", Metric::BytesPerSecond, us, Some(&other), Bound::AtLeast(1.0));
        case.hold("at less CPU time", Metric::CpuSeconds, us, Some(&other), Bound::AtMost(1.0));
        super::load::memory_goal(case, us);
    }
}
