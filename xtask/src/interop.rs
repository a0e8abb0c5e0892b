//! `cargo xtask interop [SYSTEM…]`: the real servers of storage systems. Each is brought, started, filled, tested and stopped.
//!
//! ```text
//!   System ── needs: packages ── brings: what no package has, into target/servers ──► cargo test --test it SYSTEM:: -- --ignored
//! ```
//!
//! The tests start their servers themselves, on the loopback or in a network namespace, and stop them by process. To add one: a row in
//! [`SYSTEMS`], and a module of its name in `sw-remote/tests/it` whose tests are ignored otherwise.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::needs::{Machine, Need};
use crate::proc::Job;
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
type Bring = fn(&Place) -> Result<Vec<(&'static str, PathBuf)>, Stop>;

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
        brings: Some(hadoop),
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
        brings: Some(hadoop),
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
        brings: Some(aisnode),
        tests_min: 1,
        runs: Runs::ByName,
    },
];

/// The version of Hadoop that is tested with.
const HADOOP: &str = "3.4.2";
/// What copies jars out of Maven's repository.
const COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies";
/// Bringing 65 MB over a slow network.
const BRING_LIMIT: Duration = Duration::from_secs(600);

/// Hadoop's jars with those that they need, 118 files, into `target/servers/hadoop-VERSION`.
fn hadoop(place: &Place) -> Result<Vec<(&'static str, PathBuf)>, Stop> {
    let folder = place.target.join("servers").join(format!("hadoop-{HADOOP}"));
    let jars = folder.join("jars");
    let whole = folder.join("whole");
    if !whole.exists() {
        let failed = |error: std::io::Error| Stop::new(format!("{}: {error}", folder.display()), "look at its rights");
        let dependency = |name: &str| {
            format!(
                "<dependency><groupId>org.apache.hadoop</groupId><artifactId>{name}</artifactId><version>{HADOOP}</version></dependency>"
            )
        };
        let dependencies = ["hadoop-common", "hadoop-hdfs", "hadoop-hdfs-client"].map(dependency).concat();
        let pom = format!(
            "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion><groupId>straightway</groupId>\
             <artifactId>hadoop</artifactId><version>1</version><packaging>pom</packaging><dependencies>{dependencies}</dependencies></project>"
        );
        std::fs::create_dir_all(&folder).map_err(failed)?;
        std::fs::write(folder.join("pom.xml"), pom).map_err(failed)?;
        let args = ["-q", "-B", COPY, "-DoutputDirectory=jars"].map(String::from);
        let brought = Job::program(place, Path::new("mvn"), &args).dir(&folder).limit(BRING_LIMIT).run()?;
        if !brought.ok() {
            return Err(Stop::new("Hadoop's jars were not brought", "see above; Maven's repository is needed once"));
        }
        std::fs::write(whole, HADOOP).map_err(failed)?;
    }
    Ok(vec![("STRAIGHTWAY_HDFS_JARS", jars)])
}

/// Compiling AIStore and what it needs, on two slow cores.
const AISNODE_LIMIT: Duration = Duration::from_secs(1200);

/// AIStore's program, of the version and with the sums that `hwtests/servers/ais` names, as `target/servers/aisnode`.
fn aisnode(place: &Place) -> Result<Vec<(&'static str, PathBuf)>, Stop> {
    let program = place.target.join("servers").join("aisnode");
    let args =
        ["build", "-mod=readonly", "-o", &program.display().to_string(), "github.com/NVIDIA/aistore/cmd/aisnode"];
    let built = Job::program(place, Path::new("go"), &args.map(String::from))
        .dir(&place.root.join("hwtests/servers/ais"))
        .limit(AISNODE_LIMIT)
        .run()?;
    if !built.ok() {
        return Err(Stop::new("AIStore was not built", "see above; Go's module proxy is needed once"));
    }
    Ok(vec![("STRAIGHTWAY_AISNODE", program)])
}

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
