//! Facts about the machine and the source tree that a number means nothing without.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde::{Deserialize, Serialize};

/// Where a report was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Machine {
    /// Processor's name.
    pub cpu: String,
    /// Processors online.
    pub cpus: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Kernel release.
    pub kernel: String,
    /// Hypervisor's name as the processor tells it, or `none`.
    pub hypervisor: String,
    /// File system and block device under the bench files.
    pub storage: String,
    /// The device's queue settings.
    pub queue: BTreeMap<String, String>,
    /// The kernel's setting for transparent huge pages.
    pub huge_pages: String,
    /// Load average (1 minute) when the run began, as text.
    pub load_1min: String,
}

/// Reads the facts; what cannot be read stays empty.
pub(crate) fn facts(bench_dir: &Path) -> Machine {
    let cpuinfo = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = read("/proc/meminfo");
    let memory_kib = memory.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    let (storage, device) = storage(bench_dir);
    Machine {
        cpu: field("model name").unwrap_or_default(),
        cpus: std::thread::available_parallelism().map_or(0, usize::from),
        memory_mib: memory_kib.unwrap_or(0) / 1024,
        kernel: read("/proc/sys/kernel/osrelease"),
        hypervisor: hypervisor(&cpuinfo),
        storage,
        queue: queue(&device),
        huge_pages: chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        load_1min: read("/proc/loadavg").split_whitespace().next().unwrap_or_default().to_owned(),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The word in brackets of a setting like `always [madvise] never`.
fn chosen(setting: &str) -> String {
    let inside = setting.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(setting, |(word, _)| word).to_owned()
}

fn hypervisor(cpuinfo: &str) -> String {
    let vendor = read("/sys/hypervisor/type");
    match (vendor.is_empty(), cpuinfo.contains(" hypervisor")) {
        (false, _) => vendor,
        (true, true) => "some (the hypervisor bit is set)".to_owned(),
        (true, false) => "none".to_owned(),
    }
}

/// Words for the file system under `dir`, and its block device's name in sysfs.
fn storage(dir: &Path) -> (String, String) {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mounts = read("/proc/self/mounts");
    let rows = mounts.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (device, at, kind) = (words.next()?, words.next()?, words.next()?);
        dir.starts_with(at).then_some((device, at, kind))
    });
    let Some((device, _, kind)) = rows.max_by_key(|row| row.1.len()) else { return Default::default() };
    let name = device.rsplit('/').next().unwrap_or_default().to_owned();
    let model = read(&format!("/sys/block/{name}/device/model"));
    (format!("{kind} on {name} {model}").trim().to_owned(), name)
}

fn queue(device: &str) -> BTreeMap<String, String> {
    let names = ["scheduler", "nr_requests", "max_sectors_kb", "max_segments", "io_poll", "write_cache"];
    let values = names.map(|name| (name.to_owned(), chosen(&read(&format!("/sys/block/{device}/queue/{name}")))));
    values.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// The commit of the source tree, with `+changes` where tracked files differ from it.
pub(crate) fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "HEAD"]) else { return "unknown".to_owned() };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => head,
        _ => head + "+changes",
    }
}

/// `YYYY-MM-DDThh:mm:ssZ` of seconds since 1970 (days to civil date after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
pub(crate) fn utc(unix_s: u64) -> String {
    let (days, rest) = (unix_s / 86_400 + 719_468, unix_s % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_across_leap_days_and_centuries() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn chosen_word_of_a_setting() {
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen("256"), "256");
    }
}
