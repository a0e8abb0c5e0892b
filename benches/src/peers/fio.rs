//! fio, as the peer for raw I/O and as the measure of the device's ceiling.

use std::{path::PathBuf, process::Command, time::Duration};

use serde::Deserialize;

use crate::{
    backing::HugePool,
    fault::Fault,
    report::{Role, Sample},
    rounds::Subject,
    usage,
};

const LIMIT: Duration = Duration::from_secs(300);
const HOW_TO_GET: &str = "install fio (Debian: apt-get install fio)";

/// One fio job.
#[derive(Clone, Debug)]
pub(crate) struct Fio {
    /// Name of the side.
    pub name: String,
    /// Whose side it plays.
    pub role: Role,
    /// fio's own arguments beside those that every job has.
    pub args: Vec<String>,
    /// Files that it reads or writes, joined for `--filename`.
    pub files: Vec<PathBuf>,
    /// Where its output is kept for a moment.
    pub scratch: PathBuf,
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    read: Direction,
    write: Direction,
    /// Milliseconds.
    job_runtime: f64,
    /// Percent of `job_runtime`.
    usr_cpu: f64,
    /// Percent of `job_runtime`.
    sys_cpu: f64,
    minf: u64,
    majf: u64,
}

#[derive(Deserialize)]
struct Direction {
    io_bytes: u64,
    total_ios: u64,
    /// Milliseconds.
    runtime: f64,
    clat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

impl Fio {
    /// fio's words for a job on registered files and buffers by io_uring.
    pub(crate) fn uring(rw: &str, block_bytes: u32, depth: u32, seed: u64) -> Vec<String> {
        let words = [
            "--direct=1".to_owned(),
            format!("--rw={rw}"),
            format!("--bs={block_bytes}"),
            "--ioengine=io_uring".to_owned(),
            format!("--iodepth={depth}"),
            "--registerfiles".to_owned(),
            "--fixedbufs".to_owned(),
            "--norandommap".to_owned(),
            "--randrepeat=0".to_owned(),
            format!("--randseed={seed}"),
        ];
        words.into()
    }

    fn parse(stdout: &str) -> Result<Sample, Fault> {
        // fio may say a word before its JSON.
        let json = stdout.find('{').and_then(|at| stdout.get(at..)).unwrap_or_default();
        let output: Option<Output> = serde_json::from_str(json).ok();
        let job = output.and_then(|output| output.jobs.into_iter().next());
        let Some(job) = job else {
            let words = stdout.chars().take(200).collect();
            return Err(Fault::Output { program: "fio".to_owned(), words });
        };
        let side = if job.read.total_ios > 0 { &job.read } else { &job.write };
        let cpu = |percent: f64| percent / 100.0 * job.job_runtime / 1e3;
        let mut sample = Sample {
            ops: side.total_ios,
            bytes: side.io_bytes,
            seconds: side.runtime / 1e3,
            cpu_user_s: cpu(job.usr_cpu),
            cpu_sys_s: cpu(job.sys_cpu),
            minor_faults: job.minf,
            major_faults: job.majf,
            ..Sample::default()
        };
        // It asks for the usage of the job's thread (fio `stat.c`, `update_rusage_stat`).
        sample.more.insert("thread_cpu_s".to_owned(), sample.cpu_s());
        for (percent, name) in [("50.000000", "p50_us"), ("99.000000", "p99_us"), ("99.900000", "p99_9_us")] {
            if let Some(ns) = side.clat_ns.percentile.get(percent) {
                sample.more.insert(name.to_owned(), ns / 1e3);
            }
        }
        Ok(sample)
    }
}

impl Subject for Fio {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn role(&self) -> Role {
        self.role
    }

    fn reads(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        if version().is_none() {
            return Err(Fault::Missing { what: "fio is not on this machine".to_owned(), remedy: HOW_TO_GET });
        }
        let mut command = Command::new("fio");
        command.args(["--name=job", "--output-format=json"]).args(&self.args);
        if !self.files.is_empty() {
            command.arg(format!("--filename={}", joined(&self.files)));
        }
        let finished = usage::run(command, &self.scratch, LIMIT)?;
        let mut sample = Self::parse(&finished.stdout)?;
        sample.process_cpu_s = finished.usage.user_s + finished.usage.sys_s;
        sample.peak_rss_bytes = finished.usage.peak_rss_bytes;
        Ok(sample)
    }
}

/// fio with buffers of huge pages, which it takes from the kernel's pool.
pub(crate) struct HugeFio {
    fio: Fio,
    pool_bytes: u64,
}

impl HugeFio {
    /// `fio` with buffers of `buffer_bytes` in all.
    pub(crate) fn new(mut fio: Fio, buffer_bytes: u64) -> Self {
        fio.args.extend(["--mem=shmhuge".to_owned(), "--hugepage-size=2m".to_owned()]);
        // Room for its own bookkeeping, which lies in the same segment.
        Self { fio, pool_bytes: buffer_bytes + (8 << 20) }
    }
}

impl Subject for HugeFio {
    fn name(&self) -> String {
        self.fio.name()
    }

    fn role(&self) -> Role {
        self.fio.role()
    }

    fn reads(&self) -> Vec<PathBuf> {
        self.fio.reads()
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        let _pool = HugePool::grow(self.pool_bytes)?;
        self.fio.run()
    }
}

/// Paths as fio's `--filename` wants them: a colon separates, so one inside a name is escaped.
fn joined(files: &[PathBuf]) -> String {
    let escaped = |path: &PathBuf| path.display().to_string().replace(':', "\\:");
    files.iter().map(escaped).collect::<Vec<_>>().join(":")
}

/// What `fio --version` says.
pub(crate) fn version() -> Option<String> {
    let output = Command::new("fio").arg("--version").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = r#"fio: a note
{"jobs": [{"job_runtime": 2000, "usr_cpu": 10.0, "sys_cpu": 40.0, "minf": 7, "majf": 1,
  "read": {"io_bytes": 8192, "total_ios": 2, "runtime": 1999, "clat_ns": {"percentile": {"50.000000": 1500}}},
  "write": {"io_bytes": 0, "total_ios": 0, "runtime": 0, "clat_ns": {}}}]}"#;

    #[test]
    fn output_becomes_a_sample() {
        let sample = Fio::parse(OUTPUT).unwrap();
        assert_eq!((sample.ops, sample.bytes, sample.seconds), (2, 8192, 1.999));
        assert!((sample.cpu_s() - 1.0).abs() < 1e-9);
        assert_eq!(sample.more.get("p50_us"), Some(&1.5));
    }

    #[test]
    fn output_that_is_no_result_is_a_fault() {
        assert!(Fio::parse("fio: bad option").is_err());
        assert!(Fio::parse(r#"{"jobs": []}"#).is_err());
    }

    #[test]
    fn colon_in_a_name_does_not_split_it() {
        assert_eq!(joined(&["/a:b".into(), "/c".into()]), "/a\\:b:/c");
    }
}
