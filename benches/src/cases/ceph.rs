//! `ceph`: RADOS objects and snapshots of RBD images of a cluster that is there, beside the programs `rados` and `rbd`.
//!
//! The cluster is the one that the programs find (`CEPH_CONF`, else `/etc/ceph/ceph.conf`); what is read is put into the pool
//! `straightway-bench` there, and stays.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    bench::{Bench, Size, words},
    data,
    fault::Fault,
    report::{Bound, Case, Metric, Role, Sample},
    rounds::{Before, Subject},
    usage,
};

const US: &str = "straightway";
const POOL: &str = "straightway-bench";
const LIMIT: Duration = Duration::from_secs(300);
/// Bytes of one request; an image's objects are as large.
const BLOCK: u64 = 4 << 20;

/// Bytes of the image; a RADOS object has 64 MiB at most here, and is read as often as makes as much.
fn bytes(size: Size) -> u64 {
    match size {
        Size::Smoke => 64 << 20,
        Size::Real => 1 << 30,
    }
}

const OBJECT_BYTES: u64 = 64 << 20;

/// A program of the distribution's that reads something once, or so many times.
struct Tool {
    name: &'static str,
    /// What the shell runs.
    line: String,
    bytes: u64,
    scratch: PathBuf,
}

fn shell(line: &str, scratch: &Path) -> Result<usage::Finished, Fault> {
    let mut command = Command::new("sh");
    command.args(["-ec", line]);
    usage::run(command, scratch, LIMIT)
}

impl Subject for Tool {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
        let start = Instant::now();
        let finished = shell(&self.line, &self.scratch)?;
        let (user, sys) = (finished.usage.user_s, finished.usage.sys_s);
        Ok(Sample {
            ops: self.bytes.div_ceil(BLOCK),
            bytes: self.bytes,
            seconds: start.elapsed().as_secs_f64(),
            cpu_user_s: user,
            cpu_sys_s: sys,
            process_cpu_s: user + sys,
            peak_rss_bytes: finished.usage.peak_rss_bytes,
            ..Sample::default()
        })
    }
}

/// Puts what is read into the cluster.
fn fill(bench: &Bench<'_>) -> Result<(), Fault> {
    let there = shell("ceph --connect-timeout 5 fsid", &bench.scratch);
    there.map_err(|_| Fault::Missing {
        what: "there is no cluster of Ceph's, or no program of its".to_owned(),
        remedy: "install ceph-common, and name a cluster's configuration by CEPH_CONF",
    })?;
    let image = data::plain(&bench.dir, bytes(bench.size), bench.seed)?;
    let object = bench.scratch.join("object");
    let line = format!(
        "ceph osd pool create {POOL} 8 2>&1
         head -c {OBJECT_BYTES} '{image}' > '{object}'
         rados -p {POOL} put object '{object}'
         rm '{object}'
         rbd snap purge --no-progress {POOL}/image 2>/dev/null || true
         rbd rm --no-progress {POOL}/image 2>/dev/null || true
         rbd import --no-progress '{image}' {POOL}/image
         rbd snap create --no-progress {POOL}/image@one",
        image = image.display(),
        object = object.display(),
    );
    shell(&line, &bench.scratch).map(drop)
}

/// Both, in requests of 4 MiB, 16 in flight.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let there = fill(bench);
    let (total, times) = (bytes(bench.size), bytes(bench.size) / OBJECT_BYTES);
    let rados = format!("for n in $(seq {times}); do rados -p {POOL} get object /dev/null; done");
    let rbd = format!("rbd export --no-progress {POOL}/image@one - > /dev/null");
    let jobs = [
        ("rados", "rados-get", format!("rados://{POOL}/object"), rados),
        ("rbd", "rbd-export", format!("rbd://{POOL}/image@one"), rbd),
    ];
    let mut cases = Vec::new();
    for (kind, name, uri, line) in jobs {
        let ops = total / BLOCK;
        let args = words(&[
            "disk",
            &format!("--uri={uri}"),
            &format!("--block={BLOCK}"),
            "--depth=16",
            &format!("--ops={ops}"),
        ]);
        let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
        match &there {
            Ok(()) => {
                subjects.push(bench.worker(US, Role::Ours, &args, &[]));
                subjects.push(Box::new(Tool { name, line, bytes: total, scratch: bench.scratch.clone() }));
            }
            Err(fault) => (bench.tell)(&format!("ceph/{kind}: absent: {}", fault.line())),
        }
        let what = format!(
            "reads of 4 MiB in rising order, 16 in flight, of one cluster; {name} is a program whose start, and end, are in its time and CPU"
        );
        let mut case = bench.case(&format!("ceph/{kind}"), &what, subjects, &Before::default());
        case.hold("rate at least that of the program", Metric::BytesPerSecond, US, Some(name), Bound::AtLeast(1.0));
        case.hold(
            "requests per CPU second at least those of the program",
            Metric::OpsPerCpuSecond,
            US,
            Some(name),
            Bound::AtLeast(1.0),
        );
        cases.push(case);
    }
    Ok(cases)
}
