//! `save`: a checkpoint from CPU memory, durable, beside the writers that people use.

use crate::{
    bench::{Bench, words},
    data,
    fault::Fault,
    peers::python::{SAVERS, Writer},
    report::{Bound, Case, Metric, Role},
    rounds::{Before, Subject},
    worker::Worker,
};

/// The tensors, a copy, page cache of a peer, and what is read back.
const BACKED_COPIES: u64 = 4;
const BACKED_EXTRA_BYTES: u64 = 512 << 20;
/// Staging memory of the side that may not have as much as it saves.
const SMALL_STAGING_BYTES: u64 = 128 << 20;
/// What a save may have besides: layouts, threads, the engine's own.
const BESIDE_STAGING_BYTES: u64 = 32 << 20;
/// Head and alignment of the file, and the slabs of the background.
const EXTRA_STAGING_BYTES: u64 = 64 << 20;

const US: &str = "straightway";
const US_AGAIN: &str = "straightway, kept staging";
const US_AHEAD: &str = "straightway, staging made ahead";
const US_SMALL: &str = "straightway, 128 MiB of staging";
const US_DCP: &str = "straightway, dcp, kept staging";
/// Under `async_save` of torch, by our writer.
const US_PYTHON: [&str; 3] = ["straightway-async", "straightway-async-kept", "straightway-async-ahead"];
const CEILING: &str = "pwrite-direct-2";
const DCP_ASYNC: &str = "dcp-async";

/// Staging for all and for a part, fresh and kept, both formats, beside the peers.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let checkpoint = data::checkpoint(&bench.dir, bench.size.checkpoint_bytes(), bench.seed)?;
    let whole = checkpoint.tensor_bytes + EXTRA_STAGING_BYTES;
    let to = bench.scratch.join("saved");
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    for (name, staging, extra) in [
        (US, whole, &[][..]),
        (US_AGAIN, whole, &["--again"][..]),
        (US_AHEAD, whole, &["--ahead"][..]),
        (US_SMALL, SMALL_STAGING_BYTES, &["--again"][..]),
        (US_DCP, whole, &["--again", "--dcp"][..]),
    ] {
        let (index, to) = (checkpoint.index.to_string_lossy(), to.to_string_lossy());
        let mut args =
            words(&["save", &index, &to, &format!("--seed={}", bench.seed), &format!("--staging={staging}")]);
        args.extend(words(extra));
        subjects.push(Box::new(Worker {
            name: name.to_owned(),
            role: Role::Ours,
            own_memory: None,
            args,
            files: Vec::new(),
            scratch: bench.scratch.clone(),
        }));
    }
    for &(name, role) in SAVERS {
        let (files, python) = (checkpoint.shards.clone(), bench.python.clone());
        subjects.push(Box::new(Writer { name, role, files, to: to.clone(), seed: bench.seed, python }));
    }
    let what = format!("{} MiB of tensors in CPU memory to one checkpoint, flushed", checkpoint.tensor_bytes >> 20);
    let before = Before {
        cache: None,
        back_bytes: BACKED_COPIES * checkpoint.tensor_bytes + BACKED_EXTRA_BYTES,
        digest: Some(checkpoint.digest.clone()),
    };
    let mut case = bench.case("save", &what, subjects, &before);
    goals(&mut case, whole);
    Ok(vec![case])
}

fn goals(case: &mut Case, whole: u64) {
    for us in [US, US_AGAIN, US_AHEAD].into_iter().chain(US_PYTHON) {
        let text = "caller held at most 0.3 of what DCP async holds it";
        case.hold(text, Metric::StallSeconds, us, Some(DCP_ASYNC), Bound::AtMost(0.3));
    }
    for us in [US, US_AGAIN, US_SMALL, US_DCP] {
        let text = "durable rate at least 0.85 of plain O_DIRECT writes";
        case.hold(text, Metric::BytesPerSecond, us, Some(CEILING), Bound::AtLeast(0.85));
    }
    for (us, staging) in [(US, whole), (US_AGAIN, whole), (US_AHEAD, whole), (US_SMALL, SMALL_STAGING_BYTES)] {
        #[expect(clippy::cast_precision_loss, reason = "sizes stay far below 2^52")]
        let most = (staging + BESIDE_STAGING_BYTES) as f64;
        let text = format!("memory grows by its staging budget of {} MiB at most, and 32 MiB", staging >> 20);
        case.hold(&text, Metric::RisenBytes, us, None, Bound::AtMost(most));
    }
}
