//! `null`: what an operation costs when no device is behind it.

use crate::{
    bench::{Bench, words},
    fault::Fault,
    peers::fio::Fio,
    report::{Bound, Case, Metric, Role},
    rounds::Before,
};

/// Operations per batch, on every side.
const BATCH: &str = "32";

/// Our engine on the null transport, fio's null engine, a bare io_uring no-op loop.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let time = bench.size.time_ms().to_string();
    let timed = |job: &str| words(&[job, "--batch", BATCH, "--time-ms", &time]);
    let ours = bench.worker("straightway", Role::Ours, &timed("null"), &[]);
    let nop = bench.worker("io_uring-nop", Role::Peer, &timed("nop"), &[]);
    let fio = |name: &str, depth: &str| {
        let seconds = time.parse::<u64>().unwrap_or(1000).div_ceil(1000).to_string();
        let args = words(&[
            "--ioengine=null",
            "--rw=randread",
            "--bs=4k",
            "--size=100g",
            "--norandommap",
            "--gtod_reduce=1",
            "--time_based",
            &format!("--runtime={seconds}"),
            &format!("--iodepth={depth}"),
        ]);
        Box::new(Fio {
            name: name.to_owned(),
            role: Role::Peer,
            args,
            files: Vec::new(),
            scratch: bench.scratch.clone(),
        })
    };
    let subjects: Vec<Box<dyn crate::rounds::Subject>> =
        vec![ours, nop, fio("fio-null", "1"), fio("fio-null-32", BATCH)];
    let what = "4 KiB operations from submit to completion with no device behind them, batches of 32, one thread";
    let mut case = bench.case("null", what, subjects, &Before::default());
    for (text, peer) in [
        ("operations per CPU second at least fio's null engine", "fio-null"),
        ("operations per CPU second at least a bare io_uring no-op loop at the same batch", "io_uring-nop"),
    ] {
        case.hold(text, Metric::OpsPerCpuSecond, "straightway", Some(peer), Bound::AtLeast(1.0));
    }
    case.hold("no allocation", Metric::AllocationsPerThousand, "straightway", None, Bound::AtMost(0.0));
    Ok(vec![case])
}
