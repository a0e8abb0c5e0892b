//! Programs of servers that no package of the distribution has: built or fetched once, by the tools of their own registries, into
//! `target/servers`. Each with the version and, where its registry leaves that to us, the sums that the tree names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::proc::Job;
use crate::{Place, Stop};

/// What tests are told of it: variables of the environment.
pub type Brought = Result<Vec<(&'static str, PathBuf)>, Stop>;

/// What copies jars out of Maven's repository.
const COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies";
/// Bringing 220 MB over a slow network.
const BRING_LIMIT: Duration = Duration::from_secs(600);
/// Compiling a large program and what it needs, on two slow cores.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

fn folder(place: &Place, name: &str) -> Result<PathBuf, Stop> {
    let folder = place.target.join("servers").join(name);
    let failed = |error: std::io::Error| Stop::new(format!("{}: {error}", folder.display()), "look at its rights");
    std::fs::create_dir_all(&folder).map_err(failed)?;
    Ok(folder)
}

/// Jars with those that they need, into `target/servers/NAME/jars`.
fn jars(place: &Place, name: &str, (group, version): (&str, &str), artifacts: &[&str]) -> Result<PathBuf, Stop> {
    let folder = folder(place, name)?;
    let (jars, whole) = (folder.join("jars"), folder.join("whole"));
    if whole.exists() {
        return Ok(jars);
    }
    let failed = |error: std::io::Error| Stop::new(format!("{}: {error}", folder.display()), "look at its rights");
    let dependency = |artifact: &&str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>"
        )
    };
    let dependencies: String = artifacts.iter().map(dependency).collect();
    let pom = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion><groupId>straightway</groupId>\
         <artifactId>servers</artifactId><version>1</version><packaging>pom</packaging><dependencies>{dependencies}</dependencies></project>"
    );
    std::fs::write(folder.join("pom.xml"), pom).map_err(failed)?;
    let args = ["-q", "-B", COPY, "-DoutputDirectory=jars"].map(String::from);
    let brought = Job::program(place, Path::new("mvn"), &args).dir(&folder).limit(BRING_LIMIT).run()?;
    if !brought.ok() {
        return Err(Stop::new(
            format!("the jars of {name} were not brought"),
            "see above; Maven's repository is needed once",
        ));
    }
    std::fs::write(whole, version).map_err(failed)?;
    Ok(jars)
}

/// Hadoop's jars, 118 files.
pub fn hadoop(place: &Place) -> Brought {
    let artifacts = ["hadoop-common", "hadoop-hdfs", "hadoop-hdfs-client"];
    let jars = jars(place, "hadoop-3.4.2", ("org.apache.hadoop", "3.4.2"), &artifacts)?;
    Ok(vec![("STRAIGHTWAY_HDFS_JARS", jars)])
}

/// Alluxio's jars, 310 files, and the command.
pub fn alluxio(place: &Place) -> Brought {
    let artifacts = ["alluxio-minicluster", "alluxio-underfs-local"];
    let jars = jars(place, "alluxio-2.9.6", ("org.alluxio", "2.9.6"), &artifacts)?;
    Ok(vec![("STRAIGHTWAY_ALLUXIO_JARS", jars), command(place)?])
}

/// A program in Go, of the version and with the sums that `hwtests/servers/NAME` names.
fn go(place: &Place, name: &str, (program, package): (&str, &str)) -> Result<PathBuf, Stop> {
    let program = folder(place, "")?.join(program);
    let to = program.display().to_string();
    let args = ["build", "-mod=readonly", "-o", &to, package];
    let built = Job::program(place, Path::new("go"), &args.map(String::from))
        .dir(&place.root.join("hwtests/servers").join(name))
        .limit(BUILD_LIMIT)
        .run()?;
    if built.ok() {
        return Ok(program);
    }
    Err(Stop::new(format!("{package} was not built"), "see above; Go's module proxy is needed once"))
}

/// AIStore's program.
pub fn aisnode(place: &Place) -> Brought {
    Ok(vec![("STRAIGHTWAY_AISNODE", go(place, "ais", ("aisnode", "github.com/NVIDIA/aistore/cmd/aisnode"))?)])
}

/// MinIO's program, and the command. What is there is taken: its build takes longer than all tests of it.
pub fn minio(place: &Place) -> Brought {
    let there = folder(place, "")?.join("minio");
    let program = if there.exists() { there } else { go(place, "minio", ("minio", "github.com/minio/minio"))? };
    Ok(vec![("STRAIGHTWAY_MINIO", program), command(place)?])
}

/// The version of JuiceFS that is tested with.
const JUICEFS: &str = "v1.4.1";
/// Its parts that no test uses, left out: other storages and engines of metadata (its Makefile, `juicefs.lite`, which has no gateway).
const JUICEFS_WITHOUT: &str = "nowebdav,nocos,nobos,nohdfs,noibmcos,noobs,nooss,noqingstor,nosftp,noswift,noazure,nogs,noufile,nob2,nonfs,nodragonfly,nosqlite,nomysql,nopg,notikv,nobadger,noetcd,nocifs,nostorj,noqiniu,notos,noks3";

/// JuiceFS's program as `target/servers/juicefs-VERSION`. It is built inside of its own module, whose go.sum holds what it needs: it replaces
/// some of that by its own, which Go does for the main module alone.
pub fn juicefs(place: &Place) -> Brought {
    let program = place.target.join("servers").join(format!("juicefs-{JUICEFS}"));
    if !program.exists() {
        let folder = folder(place, "juicefs-source")?;
        // The module's folder is read-only; a copy of it is not.
        let script = format!(
            "set -e; [ -f go.mod ] || go mod init straightway/juicefs; go mod download github.com/juicedata/juicefs@{JUICEFS}; rm -rf source; \
             cp -r \"$(go env GOMODCACHE)/github.com/juicedata/juicefs@{JUICEFS}\" source; chmod -R u+w source; cd source; \
             go build -trimpath -ldflags='-s -w' -tags {JUICEFS_WITHOUT} -o ../built .; cd ..; rm -rf source; mv built \"$0\""
        );
        let args = ["-c".to_owned(), script, program.display().to_string()];
        let built = Job::program(place, Path::new("sh"), &args).dir(&folder).limit(BUILD_LIMIT).run()?;
        if !built.ok() {
            return Err(Stop::new("JuiceFS was not built", "see above; Go's module proxy is needed once"));
        }
    }
    Ok(vec![("STRAIGHTWAY_JUICEFS", program)])
}

/// The command line, for those whose commands are tried with a server.
fn command(place: &Place) -> Result<(&'static str, PathBuf), Stop> {
    let args = ["build", "--workspace", "--bin", "straightway"].map(String::from);
    if !Job::cargo(place, &args).limit(BUILD_LIMIT).run()?.ok() {
        return Err(Stop::new("the command line was not built", "see above"));
    }
    Ok(("STRAIGHTWAY_COMMAND", place.target.join("debug/straightway")))
}

/// The version of Milvus that is tested with, and what its client needs with it.
const MILVUS: &str = "2.3.5";
const MILVUS_PACKAGES: [&str; 5] = ["milvus==2.3.5", "pymilvus>=2.3,<2.4", "setuptools<81", "marshmallow<4", "numpy<3"];
/// Writes programs and configuration out of the package, and starts the server for a moment: in a namespace, as it listens everywhere.
const MILVUS_UNPACK: &str = "ip link set lo up && exec venv/bin/python -c 'import sys; from milvus import MilvusServer; \
                             s = MilvusServer(); s.set_base_dir(sys.argv[1]); s.start(); s.stop()' \"$0\"";

/// Milvus with its client for Python, about 900 MB, into `target/servers/milvus-VERSION`.
pub fn milvus(place: &Place) -> Brought {
    let folder = folder(place, &format!("milvus-{MILVUS}"))?;
    let whole = folder.join("whole");
    if !whole.exists() {
        let failed = |error: std::io::Error| Stop::new(format!("{}: {error}", folder.display()), "look at its rights");
        let run = |program: &str, args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            let ended = Job::program(place, Path::new(program), &args).dir(&folder).limit(BRING_LIMIT).run()?;
            match ended.ok() {
                true => Ok(()),
                false => Err(Stop::new("Milvus was not brought", "see above; Python's package index is needed once")),
            }
        };
        run("python3", &["-m", "venv", "venv"])?;
        let pip = folder.join("venv/bin/python").display().to_string();
        run(&pip, &[&["-m", "pip", "install", "-q"][..], &MILVUS_PACKAGES].concat())?;
        let base = folder.join("srv").display().to_string();
        std::fs::create_dir_all(&base).map_err(failed)?;
        run("unshare", &["--map-root-user", "--net", "sh", "-c", MILVUS_UNPACK, &base])?;
        std::fs::write(whole, MILVUS).map_err(failed)?;
    }
    Ok(vec![("STRAIGHTWAY_MILVUS", folder)])
}
