//! The machine: what a record needs so that its numbers mean something.

use std::process::Command;

use serde::Serialize;
use sw_cuda::{DeviceReport, Driver, ProbeReport, Refusal};

/// The name by which the stand-in's devices are known.
const STANDIN_NAME: &str = "Stand-in GPU";
/// Words of the kernel log that tell of a device in trouble: the GPU driver's Xid, PCIe errors, IOMMU faults.
const TROUBLE: [&str; 5] = ["NVRM: Xid", "AER:", "PCIe Bus Error", "DMAR:", "AMD-Vi: Event"];
/// Lines of the kernel log kept at most.
const LINES_MAX: usize = 50;

/// What the kernel said during the run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelLog {
    /// Lines of trouble that are new since the start.
    Lines(Vec<String>),
    /// It could not be read.
    Unreadable(String),
}

/// This machine.
pub struct Machine {
    /// The driver, or why there is none.
    pub driver: Result<Driver, Refusal>,
    /// The four facts.
    pub probe: ProbeReport,
    /// Devices, without what needs a context.
    pub gpus: Vec<DeviceReport>,
    /// Kernel release.
    pub kernel: String,
    /// Processor, as the kernel names it.
    pub cpu: String,
    /// Commit of the tree, with `-dirty` if it has changes; "unknown" outside a checkout.
    pub commit: String,
    /// Date in UTC, ISO 8601.
    pub date: String,
    log_before: Result<Vec<String>, String>,
}

impl Machine {
    /// Looks around. Makes no context.
    pub fn look() -> Self {
        let driver = Driver::load();
        let gpus = match &driver {
            Ok(driver) => driver.devices().unwrap_or_default().iter().map(|d| DeviceReport::gather(d, None)).collect(),
            Err(_) => Vec::new(),
        };
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
        Self {
            driver,
            probe: Driver::probe(),
            gpus,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            cpu: model.unwrap_or("unknown").to_owned(),
            commit: output("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
            date: output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
            log_before: kernel_trouble(),
        }
    }

    /// Whether the driver is the project's stand-in: then nothing here says anything about hardware.
    pub fn is_standin(&self) -> bool {
        self.gpus.iter().any(|gpu| gpu.name.as_ref().is_ok_and(|name| name.starts_with(STANDIN_NAME)))
    }

    /// Lines of trouble in the kernel log that were not there at the start.
    pub fn new_kernel_messages(&self) -> KernelLog {
        match (&self.log_before, kernel_trouble()) {
            (Ok(before), Ok(after)) => {
                let new = after.into_iter().filter(|line| !before.contains(line)).take(LINES_MAX);
                KernelLog::Lines(new.collect())
            }
            (Err(why), _) => KernelLog::Unreadable(why.clone()),
            (_, Err(why)) => KernelLog::Unreadable(why),
        }
    }

    /// For the terminal.
    pub fn summary(&self) -> String {
        let gpus = match &self.driver {
            Ok(driver) => {
                let names: Vec<String> =
                    self.gpus.iter().map(|gpu| gpu.name.clone().unwrap_or_else(|gap| gap.to_string())).collect();
                format!("CUDA driver {} from {}: {}", driver.version(), driver.path(), names.join(", "))
            }
            Err(refusal) => format!("no GPU: {refusal}; {}", refusal.remedy()),
        };
        let warning =
            if self.is_standin() { "\nthe driver is the STAND-IN: nothing here is about hardware" } else { "" };
        format!("kernel {}, {}, commit {}\n{gpus}{warning}", self.kernel, self.cpu, self.commit)
    }
}

/// First line of a command's output; "unknown" if it cannot be had.
fn output(program: &str, arguments: &[&str]) -> String {
    let answer = Command::new(program).args(arguments).output();
    let text = answer.ok().filter(|a| a.status.success()).map(|a| String::from_utf8_lossy(&a.stdout).into_owned());
    text.as_deref().and_then(|text| text.lines().next()).unwrap_or("unknown").trim().to_owned()
}

fn kernel_trouble() -> Result<Vec<String>, String> {
    let answer = Command::new("dmesg").output().map_err(|e| format!("dmesg: {e}"))?;
    if !answer.status.success() {
        return Err(String::from_utf8_lossy(&answer.stderr).trim().to_owned());
    }
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    let trouble = text.lines().filter(|line| TROUBLE.iter().any(|word| line.contains(word)));
    Ok(trouble.map(str::to_owned).collect())
}
