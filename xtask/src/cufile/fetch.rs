//! What comes from the package index, below `target/cufile`: NVIDIA's libcufile with its header, and the clients.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Place;
use crate::proc::{Echo, Job};

/// NVIDIA's library with its header, and the header of CUDA that this one includes. Exact: an oracle that changes by itself is no
/// oracle, and the report names the version.
const REAL: [&str; 2] = ["nvidia-cufile==1.20.0.107", "nvidia-cuda-runtime==13.0.96"];
/// KvikIO, which loads a libcufile at run time, with what it imports and nothing else.
const KVIKIO: [&str; 6] = [
    "kvikio-cu13==26.10.0",
    "libkvikio-cu13==26.10.0",
    "rapids-logger==0.3.0",
    "cuda-pathfinder==1.9.1",
    "packaging",
    "numpy==2.4.6",
];
/// NIXL with what its GDS plugins load.
const NIXL: [&str; 4] = ["nixl==1.5.1", "nixl-cu13==1.5.1", "numpy==2.4.6", "nvidia-cuda-runtime==13.0.96"];
/// What `cuda_runtime.h` includes.
const CUDA_HEADERS: [&str; 2] = ["nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88"];
/// The distribution whose source packages are asked for, and its keys.
const DISTRIBUTION: &str = "bookworm";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where its archive is, unless [`ARCHIVE_VARIABLE`] names a mirror; as for `cargo xtask vm`.
const ARCHIVE: &str = "http://deb.debian.org";
const ARCHIVE_VARIABLE: &str = "STRAIGHTWAY_DEBIAN_ARCHIVE";
/// A package index over a slow network.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// NVIDIA's library.
pub struct Real {
    pub library: PathBuf,
    /// With `cufile.h` and `cuda.h`.
    pub include: PathBuf,
}

/// The version in the report.
pub fn real_version() -> &'static str {
    REAL.first().and_then(|pin| pin.split_once("==")).map_or("", |(_, version)| version)
}

/// NVIDIA's library, fetched on the first call, or why it is not there.
pub fn real(place: &Place) -> Result<Real, String> {
    let dir = place.root.join("target/cufile/real");
    install(place, &dir, &REAL)?;
    let tree = dir.join("nvidia/cu13");
    let real = Real { library: tree.join("lib/libcufile.so.0"), include: tree.join("include") };
    for path in [&real.library, &real.include.join("cufile.h"), &real.include.join("cuda.h")] {
        if !path.is_file() {
            return Err(format!("the package index gave no {}", path.display()));
        }
    }
    Ok(real)
}

/// The folder to put into PYTHONPATH for KvikIO, or why it is not there.
pub fn kvikio(place: &Place) -> Result<PathBuf, String> {
    let dir = place.root.join("target/cufile/kvikio");
    install(place, &dir, &KVIKIO).map(|()| dir)
}

/// The same for NIXL.
pub fn nixl(place: &Place) -> Result<PathBuf, String> {
    let dir = nixl_dir(place);
    install(place, &dir, &NIXL).map(|()| dir)
}

/// Whether it has been fetched.
pub fn has_nixl(place: &Place) -> bool {
    nixl_dir(place).join("pins").is_file()
}

fn nixl_dir(place: &Place) -> PathBuf {
    place.root.join("target/cufile/nixl")
}

/// The folder with `cuda_runtime_api.h`, or why it is not there.
pub fn cuda_headers(place: &Place) -> Result<PathBuf, String> {
    let dir = place.root.join("target/cufile/cuda");
    install(place, &dir, &CUDA_HEADERS).map(|()| dir.join("nvidia/cu13/include"))
}

/// The source of that version of fio from the distribution's archive, unpacked, or why it is not there.
pub fn fio_source(place: &Place, version: &str) -> Result<PathBuf, String> {
    let dir = place.root.join("target/cufile/fio");
    let source = dir.join(format!("fio-{version}"));
    if source.join("engines/libcufile.c").is_file() {
        return Ok(source);
    }
    if !Path::new(KEYRING).is_file() {
        return Err(format!("{KEYRING} is missing; install debian-archive-keyring"));
    }
    let write = |path: &Path, text: String| {
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, text));
        made.map_err(|error| format!("{}: {error}", path.display()))
    };
    let apt = dir.join("apt");
    let archive = std::env::var(ARCHIVE_VARIABLE).unwrap_or_else(|_| ARCHIVE.to_string());
    write(&apt.join("sources.list"), format!("deb-src [signed-by={KEYRING}] {archive}/debian {DISTRIBUTION} main\n"))?;
    for folder in ["state/lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(apt.join(folder)).map_err(|error| format!("{}: {error}", apt.display()))?;
    }
    let at = apt.display();
    let settings = format!(
        "Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\nDir::State \"{at}/state\";\n\
         Dir::Cache \"{at}/cache\";\nAPT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\n"
    );
    let conf = apt.join("apt.conf");
    write(&conf, settings)?;
    let conf = conf.display().to_string();
    let ask = |program: &str, args: &[&str]| {
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        let job = Job::program(place, Path::new(program), &args).dir(&dir).echo(Echo::Hidden).limit(INSTALL_LIMIT);
        job.run().is_ok_and(|outcome| outcome.ok())
    };
    let fetched = ask("apt-get", &["-c", &conf, "-q", "update"])
        && ask("apt-get", &["-c", &conf, "-q", "source", "--download-only", "fio"]);
    let archive = format!("fio_{version}.orig.tar.gz");
    if !fetched || !dir.join(&archive).is_file() {
        return Err(format!("the archive gave no source of fio {version}; make {ARCHIVE} reachable"));
    }
    if !ask("tar", &["xf", &archive]) || !source.is_dir() {
        return Err(format!("{archive} could not be unpacked; install tar and gzip"));
    }
    Ok(source)
}

/// The environment whose pip installs, and whose Python runs the clients.
pub fn python(place: &Place) -> PathBuf {
    place.root.join("target/cufile/env/bin/python")
}

fn install(place: &Place, dir: &Path, packages: &[&str]) -> Result<(), String> {
    let (stamp, pins) = (dir.join("pins"), packages.join("\n"));
    if std::fs::read_to_string(&stamp).is_ok_and(|there| there == pins) {
        return Ok(());
    }
    let python = python(place);
    if !python.is_file() {
        let env = place.root.join("target/cufile/env").display().to_string();
        if !ask(place, Path::new("python3"), &["-m", "venv", "--clear", &env]) {
            return Err("python3 -m venv failed; install python3 (3.11 or later) and python3-venv".into());
        }
    }
    // A folder of half a package is no package.
    let _absent = std::fs::remove_dir_all(dir);
    let folder = dir.display().to_string();
    let flags =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--target"];
    let args = [&flags[..], &[folder.as_str()], packages].concat();
    if !ask(place, &python, &args) {
        return Err(format!("pip could not fetch {}; make the package index reachable", packages.join(" ")));
    }
    std::fs::write(&stamp, pins).map_err(|error| format!("{}: {error}", stamp.display()))
}

fn ask(place: &Place, program: &Path, args: &[&str]) -> bool {
    let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
    let job = Job::program(place, program, &args).echo(Echo::Hidden).limit(INSTALL_LIMIT);
    job.run().is_ok_and(|outcome| outcome.ok())
}
