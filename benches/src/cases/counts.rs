//! `counts`: system calls and allocations per 1,000 operations. Counts do not swing with the load of the machine.
//!
//! System calls are counted from outside, by strace, over two runs of which one has more operations. The difference is
//! what those operations cost: start and end of the program fall out.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command, time::Duration};

use crate::{
    bench::{Bench, words},
    data::{self, CacheState},
    fault::Fault,
    ours::per_thousand,
    peers::s3_server::KEYS,
    report::{Bound, Case, Metric, Role, Sample},
    rounds::{Before, Subject},
    usage, worker,
};

/// Operations of the short run; the long one has this many more.
pub(crate) const OPS: u64 = 20_000;
const DEPTH: u32 = 32;
/// strace stops the job twice per system call.
const LIMIT: Duration = Duration::from_secs(300);

/// A worker of ours that is counted.
pub(crate) struct Traced {
    /// Name of the side.
    pub name: String,
    /// Its arguments, but for the number of operations.
    pub args: Vec<String>,
    /// Files that it reads.
    pub files: Vec<PathBuf>,
    /// Where outputs are kept for a moment.
    pub scratch: PathBuf,
    /// Operations of the short run.
    pub ops: u64,
}

impl Traced {
    /// System calls by name, and the job's own sample.
    fn trace(&self, ops: u64) -> Result<(BTreeMap<String, u64>, Sample), Fault> {
        let me = std::env::current_exe().map_err(Fault::os("find", "our own program"))?;
        let table = self.scratch.join("strace");
        let mut command = Command::new("strace");
        command
            .args(["-f", "-c", "-o"])
            .arg(&table)
            .arg(me)
            .arg("worker")
            .args(&self.args)
            .arg(format!("--ops={ops}"))
            .envs(KEYS);
        let finished = usage::run(command, &self.scratch, LIMIT)?;
        let text = fs::read_to_string(&table).map_err(Fault::os("read", &table))?;
        Ok((parse(&text), worker::parse("counts", &finished)?))
    }
}

/// The rows of `strace -c`: percent, seconds, microseconds per call, calls, perhaps errors, name.
fn parse(table: &str) -> BTreeMap<String, u64> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, calls) = (words.last()?, words.get(3)?.parse().ok()?);
        (*name != "total").then(|| ((*name).to_owned(), calls))
    };
    table.lines().filter_map(row).collect()
}

impl Subject for Traced {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn role(&self) -> Role {
        Role::Ours
    }

    fn reads(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        if Command::new("strace").arg("-V").output().is_err() {
            let what = "strace is not on this machine".to_owned();
            return Err(Fault::Missing { what, remedy: "install strace (Debian: apt-get install strace)" });
        }
        let (short, _) = self.trace(self.ops)?;
        let (long, mut sample) = self.trace(2 * self.ops)?;
        let mut all = 0;
        for (name, calls) in &long {
            let more = calls.saturating_sub(short.get(name).copied().unwrap_or(0));
            all += more;
            if more > 0 {
                sample.more.insert(format!("{name}_per_1000"), per_thousand(more, self.ops));
            }
        }
        sample.more.insert("syscalls_per_1000".to_owned(), per_thousand(all, self.ops));
        // Contended locks end in futex; a job without any has none. A lock that nobody else wants is not seen here.
        sample.more.entry("futex_per_1000".to_owned()).or_insert(0.0);
        Ok(sample)
    }
}

/// 4 KiB random reads at depth 32, counted: from a file, and by our NVMe transport from a controller in memory.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let file = data::plain(&bench.dir, bench.size.file_bytes(), bench.seed)?;
    let name = file.to_string_lossy();
    let args = words(&["disk", "--file", &name, "--random", "--block=4096", &format!("--depth={DEPTH}")]);
    let subjects: Vec<Box<dyn Subject>> = vec![traced(bench, args, vec![file.clone()])];
    let what = "4 KiB random reads, 32 in flight: calls and allocations of 20,000 operations more; times are strace's";
    let before = Before { cache: Some(CacheState::Cold), ..Before::default() };
    let mut case = bench.case("counts", what, subjects, &before);
    case.hold(
        "at most 125 system calls per 1,000 operations",
        Metric::SyscallsPerThousand,
        US,
        None,
        Bound::AtMost(125.0),
    );
    case.hold("no allocation", Metric::AllocationsPerThousand, US, None, Bound::AtMost(0.0));
    case.hold(FUTEX, Metric::FutexPerThousand, US, None, Bound::AtMost(0.0));
    Ok(vec![case, nvme(bench)])
}

/// The product's side of a case.
const US: &str = "straightway";
const FUTEX: &str = "no wait for a lock (futex; a lock that is not contended is not seen)";

fn traced(bench: &Bench<'_>, args: Vec<String>, files: Vec<PathBuf>) -> Box<dyn Subject> {
    Box::new(Traced { name: US.to_owned(), args, files, scratch: bench.scratch.clone(), ops: OPS })
}

fn nvme(bench: &mut Bench<'_>) -> Case {
    let args = words(&["nvme-transport", &format!("--batch={DEPTH}")]);
    let subjects: Vec<Box<dyn Subject>> = vec![traced(bench, args, Vec::new())];
    let what =
        "4 KiB NVMe reads, polled, 32 in flight, on a controller in memory: calls and allocations of 20,000 more";
    let mut case = bench.case("counts-nvme", what, subjects, &Before::default());
    case.hold("no system call", Metric::SyscallsPerThousand, US, None, Bound::AtMost(0.0));
    case.hold("no allocation", Metric::AllocationsPerThousand, US, None, Bound::AtMost(0.0));
    case.hold(FUTEX, Metric::FutexPerThousand, US, None, Bound::AtMost(0.0));
    case
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_strace_is_read_with_and_without_errors() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                      99.00    0.100000           5     20000         3 io_uring_enter\n\
                       1.00    0.001000           1        42           close\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                     100.00    0.101000           5     20042         3 total\n";
        let calls = parse(table);
        assert_eq!(calls.get("io_uring_enter"), Some(&20_000));
        assert_eq!(calls.get("close"), Some(&42));
        assert_eq!(calls.len(), 2);
    }
}
