//! fio, the yardstick: how fast the kernel's own driver is on the same emulated controller in the same run.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::registry::{Stop, fail, skip};

/// Where a guest that carries it has it.
const PROGRAM: &str = "/usr/bin/fio";

/// Random reads of 4096 bytes through the kernel for `seconds`, `depth` at a time: commands a second.
///
/// # Errors
/// A skip where the guest carries no fio; a failure with fio's words.
pub fn random_reads(node: &Path, depth: u32, seconds: u32) -> Result<f64, Stop> {
    if !Path::new(PROGRAM).exists() {
        return skip("this guest carries no fio");
    }
    let file = format!("--filename={}", node.display());
    let (depth, seconds) = (format!("--iodepth={depth}"), format!("--runtime={seconds}"));
    let output = Command::new(PROGRAM)
        .args([
            "--name=yardstick",
            "--ioengine=io_uring",
            "--fixedbufs=1",
            "--registerfiles=1",
            "--direct=1",
            "--rw=randread",
            "--bs=4k",
            "--time_based=1",
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
