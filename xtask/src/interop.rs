//! `cargo xtask interop [SYSTEM…]`: the real servers of storage systems. Each is brought, started, filled, tested and stopped.
//!
//! ```text
//!   System ── needs: packages ── brings: what no package has, into target/servers ──► cargo test --test it SYSTEM:: -- --ignored
//! ```
//!
//! The tests start their servers themselves, on the loopback or in a network namespace, and stop them by process. To add one: a row in
//! [`SYSTEMS`], and a module of its name in `tests/it` of `sw-remote`, or of `sw-data`, whose tests are ignored otherwise.

use std::process::ExitCode;
use std::time::Duration;

use crate::needs::{Machine, Need};
use crate::proc::Job;
use crate::servers::{self, Brought};
use crate::{Place, Stop};

/// A system with a real server.
struct System {
    /// Its name: the beginning of its tests' names too.
    name: &'static str,
    /// What the server is.
    what: &'static str,
    needs: &'static [Need],
    /// Brings what no package has; the variables tell the tests where it is.
    brings: Option<Bring>,
    /// Fewer passed tests than this are a failure.
    tests_min: u64,
    runs: Runs,
}

/// Makes a server's programs, and names them to the tests.
type Bring = fn(&Place) -> Brought;

/// When a system is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    /// In every `cargo xtask test`.
    Always,
    /// Where it is named, or nothing is.
    ByName,
}

const SYSTEMS: &[System] = &[
    System {
        name: "rgw",
        what: "Ceph's S3 gateway over one monitor and one store in memory",
        needs: &[
            Need::Tool { program: "radosgw", package: "radosgw" },
            Need::Tool { program: "ceph-mon", package: "ceph-mon" },
            Need::Tool { program: "ceph-osd", package: "ceph-osd" },
            Need::Tool { program: "ceph", package: "ceph-common" },
            Need::Tool { program: "openssl", package: "openssl" },
        ],
        brings: None,
        tests_min: 1,
        runs: Runs::Always,
    },
    System {
        name: "hdfs",
        what: "Apache's HDFS, a namenode and a datanode",
        needs: &[
            Need::Tool { program: "java", package: "default-jre-headless" },
            Need::Tool { program: "mvn", package: "maven" },
        ],
        brings: Some(servers::hadoop),
        tests_min: 1,
        runs: Runs::Always,
    },
    System {
        name: "hdfs_faults",
        what: "the same, killed, stopped and started again",
        needs: &[
            Need::Tool { program: "java", package: "default-jre-headless" },
            Need::Tool { program: "mvn", package: "maven" },
        ],
        brings: Some(servers::hadoop),
        tests_min: 2,
        runs: Runs::ByName,
    },
    System {
        name: "nfs",
        what: "nfs-ganesha over files of this machine, NFS version 3",
        needs: &[
            Need::Tool { program: "ganesha.nfsd", package: "nfs-ganesha" },
            // Its files are a plug-in, which has no program.
            Need::Tool { program: "/usr/share/doc/nfs-ganesha-vfs/copyright", package: "nfs-ganesha-vfs" },
            Need::Tool { program: "rpcbind", package: "rpcbind" },
            Need::Tool { program: "nsenter", package: "util-linux" },
        ],
        brings: None,
        tests_min: 1,
        runs: Runs::Always,
    },
    System {
        name: "ceph",
        what: "Ceph by its own libraries: RADOS, RBD and CephFS over one monitor, one store on a disk and one MDS",
        needs: &[
            Need::Tool { program: "ceph-mon", package: "ceph-mon" },
            Need::Tool { program: "ceph-osd", package: "ceph-osd" },
            Need::Tool { program: "ceph-mds", package: "ceph-mds" },
            // It brings librados2, librbd1 and libcephfs2.
            Need::Tool { program: "ceph", package: "ceph-common" },
        ],
        brings: None,
        tests_min: 1,
        runs: Runs::ByName,
    },
    System {
        name: "ais",
        what: "NVIDIA's AIStore, a proxy and two targets",
        needs: &[
            Need::Tool { program: "go", package: "golang-go" },
            Need::Tool { program: "unshare", package: "util-linux" },
            Need::Tool { program: "ip", package: "iproute2" },
        ],
        brings: Some(servers::aisnode),
        tests_min: 1,
        runs: Runs::ByName,
    },
    System {
        name: "minio",
        what: "MinIO, on one folder",
        needs: &[
            Need::Tool { program: "go", package: "golang-go" },
            Need::Tool { program: "openssl", package: "openssl" },
        ],
        brings: Some(servers::minio),
        tests_min: 1,
        runs: Runs::ByName,
    },
    System {
        name: "alluxio",
        what: "Alluxio, a master, a worker and a proxy over a folder",
        needs: &[
            Need::Tool { program: "java", package: "default-jre-headless" },
            Need::Tool { program: "mvn", package: "maven" },
        ],
        brings: Some(servers::alluxio),
        tests_min: 1,
        runs: Runs::ByName,
    },
    System {
        name: "juicefs",
        what: "JuiceFS over a Redis: volumes of files and of a bucket, filled by its mount and its gateway",
        needs: &[
            Need::Tool { program: "go", package: "golang-go" },
            Need::Tool { program: "redis-server", package: "redis-server" },
        ],
        brings: Some(servers::juicefs),
        tests_min: 2,
        runs: Runs::ByName,
    },
    System {
        name: "milvus",
        what: "Milvus, standalone, over an object store of the test's process",
        needs: &[
            Need::Tool { program: "python3", package: "python3-venv" },
            Need::Tool { program: "unshare", package: "util-linux" },
            Need::Tool { program: "ip", package: "iproute2" },
        ],
        brings: Some(servers::milvus),
        tests_min: 1,
        runs: Runs::ByName,
    },
];

/// For one system's tests, servers that die included.
const LIMIT: Duration = Duration::from_secs(1200);

/// Runs those that are named, all if none is; `--quick`: those of every test run.
///
/// # Errors
/// A name of none.
pub fn run(place: &Place, args: &[String]) -> Result<ExitCode, Stop> {
    let chosen: Vec<&System> = match args {
        [] => SYSTEMS.iter().collect(),
        [word] if word == "--quick" => SYSTEMS.iter().filter(|system| system.runs == Runs::Always).collect(),
        names => names.iter().map(|name| find(name)).collect::<Result<_, _>>()?,
    };
    let machine = Machine::new(place);
    let mut failed = Vec::new();
    for system in chosen {
        println!("interop: {}: {}", system.name, system.what);
        if let Some(reason) = system.needs.iter().find_map(|need| machine.meet(*need).err()) {
            // The suite collects lines that begin so.
            println!("skipped {}: {reason}", system.name);
        } else if let Err(stop) = system.test(place) {
            println!("interop: {} FAILED: {stop}", system.name);
            failed.push(system.name);
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Stop::new(format!("failed against {}", failed.join(", ")), "see above; name one to run it alone"))
}

fn find(name: &str) -> Result<&'static System, Stop> {
    SYSTEMS.iter().find(|system| system.name == name).ok_or_else(|| {
        let names: Vec<&str> = SYSTEMS.iter().map(|system| system.name).collect();
        Stop::new(format!("no system is called {name:?}"), format!("use {}", names.join(", ")))
    })
}

impl System {
    fn test(&self, place: &Place) -> Result<(), Stop> {
        let brought = self.brings.map_or_else(|| Ok(Vec::new()), |bring| bring(place))?;
        let filter = format!("{}::", self.name);
        let args = ["test", "--workspace", "--test", "it", &filter, "--", "--ignored"].map(String::from);
        let job = brought
            .iter()
            .fold(Job::cargo(place, &args), |job, (name, path)| job.env(name, path.display().to_string()));
        let outcome = job.limit(LIMIT).run()?;
        let passed = crate::suite::passed(&outcome.lines);
        if !outcome.ok() {
            return Err(Stop::new("tests failed", "see them above"));
        }
        if passed < self.tests_min {
            return Err(Stop::new(
                format!("{passed} tests passed, at least {} must", self.tests_min),
                "look at their names",
            ));
        }
        Ok(())
    }
}
