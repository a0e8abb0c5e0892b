//! The record: one JSON document a run.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::harness::Row;
use crate::machine::{KernelLog, Machine};

/// Changes when a field changes its meaning.
const SCHEMA: &str = "straightway-hwtests/1";

#[derive(Serialize)]
struct Record {
    schema: &'static str,
    /// `hardware`, or `stand-in`: then it proves logic only.
    driver_kind: &'static str,
    date: String,
    commit: String,
    kernel: String,
    cpu: String,
    driver: serde_json::Value,
    gpus: Vec<serde_json::Map<String, serde_json::Value>>,
    tests: Vec<Row>,
    kernel_log: KernelLog,
}

/// Writes the record into `folder` under a name of its own.
///
/// # Errors
/// A sentence with the path.
pub fn write(folder: &Path, machine: &Machine, tests: Vec<Row>, kernel_log: KernelLog) -> Result<PathBuf, String> {
    let kind = if machine.is_standin() { "stand-in" } else { "hardware" };
    let gpu = machine.gpus.first().and_then(|gpu| gpu.name.clone().ok()).unwrap_or_else(|| "no-gpu".to_owned());
    let record = Record {
        schema: SCHEMA,
        driver_kind: kind,
        date: machine.date.clone(),
        commit: machine.commit.clone(),
        kernel: machine.kernel.clone(),
        cpu: machine.cpu.clone(),
        driver: driver_facts(machine),
        gpus: machine.gpus.iter().map(device_facts).collect(),
        tests,
        kernel_log,
    };
    let prefix = if machine.is_standin() { "stand-in-" } else { "" };
    let name = format!("{prefix}{}-{}.json", file_safe(&gpu), file_safe(&machine.date));
    let path = folder.join(name);
    let text = serde_json::to_string_pretty(&record).map_err(|e| e.to_string())?;
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    std::fs::write(&path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}

/// The four facts, each a value or a reason.
fn driver_facts(machine: &Machine) -> serde_json::Value {
    let probe = &machine.probe;
    let fact = |value: Result<String, &sw_cuda::Refusal>| match value {
        Ok(value) => serde_json::json!({ "value": value }),
        Err(refusal) => serde_json::json!({ "missing": refusal.code(), "reason": refusal.to_string() }),
    };
    serde_json::json!({
        "found": fact(probe.library.as_ref().map(|path| base_name(path))),
        "symbols": fact(probe.symbols.as_ref().map(ToString::to_string)),
        "version": fact(probe.version.as_ref().map(ToString::to_string)),
        "devices": fact(probe.devices.as_ref().map(ToString::to_string)),
    })
}

fn device_facts(gpu: &sw_cuda::DeviceReport) -> serde_json::Map<String, serde_json::Value> {
    let one = |(name, finding): (&str, Result<String, sw_cuda::Gap>)| {
        let value = match finding {
            Ok(value) => serde_json::json!({ "value": value }),
            Err(gap) => serde_json::json!({ "gap": gap.to_string() }),
        };
        (name.to_owned(), value)
    };
    gpu.lines().into_iter().map(one).collect()
}

/// A record does not tell where things lie on the machine.
fn base_name(path: &str) -> String {
    Path::new(path).file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn file_safe(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' }).collect()
}
