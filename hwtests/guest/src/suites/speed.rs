//! Rates in one run on one emulated controller. Time means little under emulation; the ratio of two drivers that serve
//! the same queue of the same device means something on a machine that does nothing else. So it is noted, and judged by whoever makes a
//! record: beside other jobs a guest gets its two processors when the host has them, and a polling driver loses most by that.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::block;
use crate::context::Context;
use crate::fio;
use crate::pci::Device;
use crate::registry::{Stop, Suite, Test, Verdict, fail, skip};

pub const SUITE: Suite = Suite {
    name: "speed",
    tests: &[Test::new(
        "beside-the-kernel",
        "4 KiB random reads by both drivers; the ratio is noted, not judged",
        beside,
    )
    .limit_s(150)],
};

/// Seconds of one job.
const SECONDS: u32 = 1;
/// Jobs of each driver and depth, in turns; the medians are compared.
const ROUNDS: usize = 5;
const DEPTHS: [u32; 2] = [1, 32];
/// Ways to notice completions that are measured; which is the faster depends on how busy the host's cores are.
const COMPLETIONS: [&str; 2] = ["polled", "hybrid"];

/// The command: beside this program, as docs/hardware.md says, or where a guest that carries it has it.
///
/// # Errors
/// A skip where it is in neither place.
fn command() -> Result<PathBuf, Stop> {
    let own = std::env::current_exe().ok().map(|own| own.with_file_name("straightway"));
    let found = own.into_iter().chain([PathBuf::from("/bin/straightway")]).find(|path| path.is_file());
    found.map_or_else(|| skip("no straightway beside this program, nor in /bin"), Ok)
}

fn beside(context: &Context) -> Verdict {
    let device = context.device("nvme-a")?;
    let mut rates: [[Vec<f64>; 2]; 3] = Default::default();
    for _ in 0..ROUNDS {
        let found = block::namespaces(context, &device, 2)?;
        let Some(namespace) = found.first() else { return fail("no namespace") };
        for (at, depth) in DEPTHS.iter().enumerate() {
            rates[0][at].push(fio::random_reads(&namespace.node, *depth, SECONDS)?);
        }
        for (way, completion) in COMPLETIONS.iter().enumerate() {
            for (at, iops) in ours(&device, completion)?.into_iter().enumerate() {
                rates[1 + way][at].push(iops);
            }
        }
    }
    let [kernel, polled, hybrid] = rates.map(|depths| depths.map(median));
    for (at, depth) in DEPTHS.iter().enumerate() {
        let (kernel, polled, hybrid) = (kernel[at], polled[at], hybrid[at]);
        if [kernel, polled, hybrid].iter().any(|rate| !rate.is_normal()) {
            return fail(format!("at depth {depth}: fio {kernel}, polled {polled}, hybrid {hybrid} reads a second"));
        }
        let ratio = polled.max(hybrid) / kernel;
        context.fact(&json!({
            "depth": depth, "fio_kernel_iops": kernel, "polled_iops": polled, "hybrid_iops": hybrid, "ratio": ratio
        }));
    }
    Ok(())
}

/// Reads a second at each depth, by the command's own bench: all of the engine is in it.
fn ours(device: &Device, completion: &str) -> Result<Vec<f64>, Stop> {
    let program = command()?;
    device.bind("vfio-pci")?;
    let depths = DEPTHS.map(|depth| depth.to_string()).join(",");
    let (uri, time) = (format!("nvme://{}/1", device.address), format!("{SECONDS}s"));
    let engine = format!("nvme_completion={completion}");
    let output = Command::new(program)
        .args(["bench", "read", &uri, "--size", "4k", "--random", "--no-ceiling", "--json", "--depth", &depths])
        .args(["--time", &time, "--engine", &engine])
        .output()?;
    if !output.status.success() {
        return fail(format!("bench: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    let cells = report["cells"].as_array().cloned().unwrap_or_default();
    let rates: Vec<f64> = cells.iter().filter_map(|cell| cell["operations_per_s"].as_f64()).collect();
    if rates.len() == DEPTHS.len() { Ok(rates) } else { fail("the bench has not measured every depth") }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}
