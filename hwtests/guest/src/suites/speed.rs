//! Rates in one run on one emulated controller. Time means little under emulation; the ratio of two drivers that serve
//! the same queue of the same device means something.

use serde_json::json;

use crate::block;
use crate::context::Context;
use crate::fio;
use crate::registry::{Suite, Test, Verdict, fail};

pub const SUITE: Suite = Suite {
    name: "speed",
    tests: &[Test::new("kernel", "fio measures the kernel's driver at depth 1 and 32", kernel).limit_s(60)],
};

/// Seconds of one job.
const SECONDS: u32 = 2;

fn kernel(context: &Context) -> Verdict {
    let device = context.device("nvme-a")?;
    let found = block::namespaces(context, &device, 2)?;
    let Some(namespace) = found.first() else { return fail("no namespace") };
    for depth in [1, 32] {
        let rate = fio::random_reads(&namespace.node, depth, SECONDS)?;
        context.fact(&json!({"driver": "kernel", "depth": depth, "iops": rate.iops, "median_us": rate.median_us}));
    }
    Ok(())
}
