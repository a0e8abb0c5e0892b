//! What a bench found, as JSON and as text.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    route::Way,
    size::{Bytes, Nanos, Rate},
};

/// A whole run.
#[derive(Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub verb: &'static str,
    pub uri: String,
    pub into: String,
    pub len: u64,
    pub order: &'static str,
    pub jobs: u16,
    pub offset_shift: u64,
    pub verify: bool,
    pub seed: u64,
    pub machine: Machine,
    pub ceilings: Option<Ceilings>,
    pub cells: Vec<Cell>,
}

/// What it ran on.
#[derive(Serialize)]
pub struct Machine {
    pub kernel: String,
    pub cpus: usize,
    pub version: &'static str,
}

/// What the machine gives without the engine, measured in the same run.
#[derive(Serialize)]
pub struct Ceilings {
    pub sequential: Sequential,
    pub memory_copy_bytes_per_s: f64,
    /// Between pinned host memory and the GPU, the way that the bytes go; null for other memory.
    pub pinned_copy_bytes_per_s: Option<f64>,
}

/// A sequential pass by plain system calls.
#[derive(Serialize)]
pub struct Sequential {
    pub bytes: u64,
    pub seconds: f64,
    pub bytes_per_s: f64,
    pub threads: u32,
    pub io_bytes: u64,
    pub o_direct: bool,
}

/// One size at one depth.
#[derive(Serialize)]
pub struct Cell {
    pub size: u64,
    pub depth: u32,
    pub seconds: f64,
    pub operations: u64,
    pub bytes: u64,
    pub bytes_per_s: f64,
    pub operations_per_s: f64,
    /// Rate over the sequential ceiling; null without one.
    pub of_ceiling: Option<f64>,
    pub latency_ns: Latency,
    pub cpu: Cpu,
    pub calls: Calls,
    pub copies_per_byte: f64,
    pub bounced_bytes_per_operation: f64,
    pub verified_bytes: u64,
    pub routes: Vec<Way>,
}

/// Times from submission to completion, in nanoseconds.
#[derive(Serialize)]
pub struct Latency {
    pub min: u64,
    pub mean: f64,
    pub p50: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub max: u64,
}

impl Latency {
    /// From a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            min: if histogram.is_empty() { 0 } else { histogram.min() },
            mean: histogram.mean(),
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

/// Processor time of the whole process while the cell ran; threads of the kernel's own are not in it.
#[derive(Serialize)]
pub struct Cpu {
    pub user_s: f64,
    pub system_s: f64,
    pub ns_per_operation: f64,
    pub s_per_gib: f64,
    pub context_switches: u64,
}

/// Calls of the lanes into their transports.
#[derive(Serialize)]
pub struct Calls {
    /// I/Os that the operations were split into.
    pub ios: u64,
    /// Calls that handed I/Os over; one system call each on io_uring.
    pub doorbells: u64,
    /// Calls that asked for completions; at most one system call each.
    pub polls: u64,
    pub doorbells_per_operation: f64,
    /// Upper bound of the system calls of one operation: doorbells and polls.
    pub system_calls_per_operation_max: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({}), {} order, {} job(s)", self.verb, self.uri, Bytes(self.len), self.order, self.jobs)?;
        if self.offset_shift > 0 {
            write!(f, ", offsets shifted by {}", self.offset_shift)?;
        }
        if let Some(ceilings) = &self.ceilings {
            write!(f, "\n  {ceilings}")?;
        }
        write!(
            f,
            "\n  {:>9} {:>6} {:>12} {:>10} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6}",
            "size", "depth", "rate", "ops/s", "ceiling", "p50", "p99", "p99.9", "max", "cpu/op", "cpu/GiB", "calls"
        )?;
        self.cells.iter().try_for_each(|cell| write!(f, "\n  {cell}"))
    }
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sequential { bytes_per_s, threads, io_bytes, o_direct, .. } = self.sequential;
        let how = if o_direct { "O_DIRECT" } else { "page cache (no O_DIRECT here)" };
        write!(
            f,
            "ceiling: sequential {} ({threads} threads of {}, {how}); memory copy {}",
            Rate(bytes_per_s),
            Bytes(io_bytes),
            Rate(self.memory_copy_bytes_per_s)
        )?;
        self.pinned_copy_bytes_per_s.map_or(Ok(()), |rate| write!(f, "; pinned copy {}", Rate(rate)))
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ceiling = self.of_ceiling.map_or_else(|| "-".to_owned(), |of| format!("{:.0}%", of * 100.0));
        write!(
            f,
            "{:>9} {:>6} {:>12} {:>10.0} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6.2}",
            Bytes(self.size).to_string().replace(".00", ""),
            self.depth,
            Rate(self.bytes_per_s).to_string(),
            self.operations_per_s,
            ceiling,
            Nanos(self.latency_ns.p50 as f64),
            Nanos(self.latency_ns.p99 as f64),
            Nanos(self.latency_ns.p99_9 as f64),
            Nanos(self.latency_ns.max as f64),
            Nanos(self.cpu.ns_per_operation),
            format!("{:.3} s", self.cpu.s_per_gib),
            self.calls.system_calls_per_operation_max,
        )?;
        for way in &self.routes {
            write!(f, "\n            {way}")?;
        }
        if self.verified_bytes > 0 {
            write!(f, "\n            verified {}", Bytes(self.verified_bytes))?;
        }
        Ok(())
    }
}
