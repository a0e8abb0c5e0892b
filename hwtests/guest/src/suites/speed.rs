//! Rates in one run on one emulated controller. Time means little under emulation; the ratio of two drivers that serve
//! the same queue of the same device means something on a machine that does nothing else. So it is noted, and judged by whoever makes a
//! record: beside other jobs a guest gets its two processors when the host has them, and a polling driver loses most by that.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::fabrics::{self, Target, known};
use crate::block;
use crate::context::{Context, write_text};
use crate::fio::{self, Shape};
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

pub const SUITE_OVER_TCP: Suite = Suite {
    name: "fabrics-speed",
    tests: &[Test::new(
        "beside-the-kernel",
        "reads of one target of the kernel's by both initiators; rates and CPU are noted, not judged",
        beside_over_tcp,
    )
    .bed_only()
    .limit_s(120)],
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
            rates[0][at].push(fio::reads(&namespace.node, Shape { block_bytes: 4096, depth: *depth }, SECONDS)?);
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

/// Reads a second at each depth, by our driver.
fn ours(device: &Device, completion: &str) -> Result<Vec<f64>, Stop> {
    device.bind("vfio-pci")?;
    let uri = format!("nvme://{}/1", device.address);
    let engine = format!("nvme_completion={completion}");
    DEPTHS.iter().map(|depth| bench(&uri, Shape { block_bytes: 4096, depth: *depth }, &["--engine", &engine])).collect()
}

/// Reads a second by the command's own bench: all of the engine is in it.
fn bench(uri: &str, shape: Shape, more: &[&str]) -> Result<f64, Stop> {
    let (time, depth, block) = (format!("{SECONDS}s"), shape.depth.to_string(), shape.block_bytes.to_string());
    let random: &[&str] = if shape.is_random() { &["--random"] } else { &[] };
    let output = Command::new(command()?)
        .args(["bench", "read", uri, "--size", &block, "--no-ceiling", "--json", "--depth", &depth, "--time", &time])
        .args(random)
        .args(more)
        .output()?;
    if !output.status.success() {
        return fail(format!("bench: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    let rate = report.pointer("/cells/0/operations_per_s").and_then(Value::as_f64);
    rate.map_or_else(|| fail("the bench has measured nothing"), Ok)
}

/// Reads over TCP.
const OVER_TCP: [Shape; 2] = [Shape { block_bytes: 128 << 10, depth: 32 }, Shape { block_bytes: 4096, depth: 128 }];
/// Jobs of each side and shape.
const ROUNDS_OVER_TCP: usize = 3;

/// Processor seconds of this guest so far, of all of it: much of an initiator's and of a target's work is the kernel's.
fn busy_s() -> Result<f64, Stop> {
    // user, nice, system; behind idle and iowait: irq, softirq, in hundredths of a second (proc(5)).
    let text = std::fs::read_to_string("/proc/stat")?;
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.map_while(|field| field.parse().ok()).collect();
    Ok([0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum::<f64>() / 100.0)
}

/// What one side did with one shape.
#[derive(Default)]
struct Measured {
    rates: Vec<f64>,
    cpu_us_per_read: Vec<f64>,
}

impl Measured {
    fn add(&mut self, job: impl FnOnce() -> Result<f64, Stop>) -> Verdict {
        let before = busy_s()?;
        let rate = job()?;
        self.cpu_us_per_read.push((busy_s()? - before) * 1e6 / (rate * f64::from(SECONDS)));
        self.rates.push(rate);
        Ok(())
    }
}

fn beside_over_tcp(context: &Context) -> Verdict {
    let _target = Target::make()?;
    known()?;
    let controller = fabrics::connect(([127, 0, 0, 1], 4420).into(), fabrics::NQN)?;
    let namespace = fabrics::namespace_of(context, &controller)?;
    let uri = fabrics::uri(fabrics::NQN, "")?.to_string();
    let mut sides: [[Measured; 2]; 2] = Default::default();
    for _ in 0..ROUNDS_OVER_TCP {
        for (at, shape) in OVER_TCP.into_iter().enumerate() {
            sides[0][at].add(|| fio::reads(&namespace.node, shape, SECONDS))?;
            sides[1][at].add(|| bench(&uri, shape, &[]))?;
        }
    }
    write_text(Path::new(&format!("/sys/class/nvme/{controller}/delete_controller")), "1")?;
    let medians = sides.map(|side| side.map(|one| (median(one.rates), median(one.cpu_us_per_read))));
    for (at, shape) in OVER_TCP.iter().enumerate() {
        let [(kernel, kernel_cpu), (ours, ours_cpu)] = [medians[0][at], medians[1][at]];
        if ![kernel, ours, kernel_cpu, ours_cpu].iter().all(|number| number.is_normal()) {
            return fail(format!("{shape:?}: fio {kernel}, ours {ours} reads a second"));
        }
        // The processor time is that of the whole guest, target and starting of the program included.
        context.fact(&json!({"block_bytes": shape.block_bytes, "depth": shape.depth, "kernel_reads_per_s": kernel,
            "our_reads_per_s": ours, "ratio": ours / kernel, "guest_cpu_us_per_read_kernel": kernel_cpu,
            "guest_cpu_us_per_read_ours": ours_cpu}));
    }
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}
