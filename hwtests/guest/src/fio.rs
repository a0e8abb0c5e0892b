//! fio, the yardstick: how fast the kernel's own driver is on the same emulated controller in the same run.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::registry::{Stop, fail, skip};

/// Where a guest that carries it has it.
const PROGRAM: &str = "/usr/bin/fio";

/// What is read.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Of one read. Small ones are random, others in rising order.
    pub block_bytes: u32,
    /// Reads at a time.
    pub depth: u32,
}

impl Shape {
    /// Whether reads of this size are random.
    pub fn is_random(self) -> bool {
        self.block_bytes < 64 << 10
    }
}

/// Reads through the kernel for `seconds`: commands a second.
///
/// # Errors
/// A skip where the guest carries no fio; a failure with fio's words.
pub fn reads(node: &Path, shape: Shape, seconds: u32) -> Result<f64, Stop> {
    if !Path::new(PROGRAM).exists() {
        return skip("this guest carries no fio");
    }
    let file = format!("--filename={}", node.display());
    let (depth, seconds) = (format!("--iodepth={}", shape.depth), format!("--runtime={seconds}"));
    let (block, way) = (format!("--bs={}", shape.block_bytes), if shape.is_random() { "randread" } else { "read" });
    let output = Command::new(PROGRAM)
        .args([
            "--name=yardstick",
            "--ioengine=io_uring",
            "--fixedbufs=1",
            "--registerfiles=1",
            "--direct=1",
            "--time_based=1",
            &block,
            &format!("--rw={way}"),
        ])
        .args(["--thread", "--output-format=json", "--randrepeat=1", &file, &depth, &seconds])
        .output()?;
    if !output.status.success() {
        return fail(format!("fio: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // fio may warn before the document begins.
    let json: Value = serde_json::from_str(text.get(text.find('{').unwrap_or(0)..).unwrap_or_default())?;
    let number = |path: &str| json.pointer(path).and_then(Value::as_f64);
    match number("/jobs/0/read/iops") {
        Some(iops) if iops > 0.0 => Ok(iops),
        _ => fail("fio's answer has no rate"),
    }
}
