//! `nvme-driver`: what a command costs when the controller completes at once.

use crate::{
    bench::{Bench, words},
    fault::Fault,
    report::{Bound, Case, Metric, Role},
    rounds::Before,
};

/// Commands per batch, on both sides.
const BATCH: &str = "32";
/// Commands a second and core that the driver must reach.
const RATE_MIN: f64 = 5e6;

/// Our queue pair, and our transport, on a model controller in memory, and a bare io_uring no-op loop.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let time = bench.size.time_ms().to_string();
    let timed = |job: &str| words(&[job, "--batch", BATCH, "--time-ms", &time]);
    let ours = bench.worker("straightway", Role::Ours, &timed("nvme"), &[]);
    let transport = bench.worker("straightway-transport", Role::Ours, &timed("nvme-transport"), &[]);
    let nop = bench.worker("io_uring-nop", Role::Peer, &timed("nop"), &[]);
    let what = "4 KiB NVMe reads staged, rung and reaped against a queue in memory that completes at once, batches of 32, one thread";
    let mut case = bench.case("nvme-driver", what, vec![ours, transport, nop], &Before::default());
    let (rate, per_core) = (Metric::OpsPerCpuSecond, "commands per CPU second at least 5 million");
    // The queue alone, and the whole of the product's transport above it.
    for side in ["straightway", "straightway-transport"] {
        case.hold(per_core, rate, side, None, Bound::AtLeast(RATE_MIN));
        let text = "commands per CPU second at least io_uring's no-ops at the same batch";
        case.hold(text, rate, side, Some("io_uring-nop"), Bound::AtLeast(1.0));
        case.hold("no allocation", Metric::AllocationsPerThousand, side, None, Bound::AtMost(0.0));
    }
    Ok(vec![case])
}
