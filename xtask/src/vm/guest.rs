//! What a guest runs: the test program, built as a static binary, and the initial file system around it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::boots::Boot;
use super::cpio::{self, Mode};
use super::foreign;
use super::kernels::Prepared;
use super::packages::{self, Root};
use crate::proc::{Ended, Job};
use crate::{Place, Stop};

const TARGET: &str = "x86_64-unknown-linux-musl";
/// Of programs that load libraries.
const TARGET_DYNAMIC: &str = "x86_64-unknown-linux-gnu";
/// What a test program with RDMA loads, and the tool that makes devices.
const RDMA_LIBRARIES: [&str; 5] = [
    "usr/lib/x86_64-linux-gnu/libibverbs.so.1",
    "usr/lib/x86_64-linux-gnu/librdmacm.so.1",
    "usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav34.so",
    "lib/x86_64-linux-gnu/libgcc_s.so.1",
    "lib/x86_64-linux-gnu/libm.so.6",
];
/// What tells libibverbs of its provider.
const RDMA_DRIVER: &str = "etc/libibverbs.d/rxe.driver";
/// What makes devices.
const RDMA_TOOL: &str = "usr/bin/rdma";
/// What it loads, or is linked with; and what does TLS for the kernel and knows its keys.
const DYNAMIC_FILES: [&str; 5] = [
    "usr/lib/x86_64-linux-gnu/libssl.so.3",
    "usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
    "usr/lib/x86_64-linux-gnu/libm.so.6",
    "usr/sbin/tlshd",
    "usr/sbin/nvme",
];
/// Cargo profile of the guest: optimised, without the link-time optimisation that costs minutes.
const PROFILE: &str = "quick";
/// Two minutes on two idle cores; a machine that others use has taken twelve.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);
/// The first program of the guest.
const INIT: &str = "hwtests/vm/init.sh";
/// Where notes of the first phase lie in the second.
const NOTES: &str = "sw/notes";

/// A program that only some guests carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// The `straightway` command, as `/bin/straightway`.
    Straightway,
    /// The `straightway` command once more, as `/bin/straightway-dynamic`, with OpenSSL: one that is static loads no library. Beside it
    /// `tlshd` and `nvme`, as `/usr/sbin/…`.
    Dynamic,
    /// The test program is linked dynamically, and has libibverbs, librdmacm and the kernel's modules with it: one that is static loads no library.
    /// Beside it another host of NVMe over RDMA, in Python.
    Rdma,
    /// The distribution's fio with its libraries, as `/usr/bin/fio`: 80 MB, so only where speeds are compared.
    Fio,
}

/// Builds the test program as `boots` carry it, and the command if some do, into one directory; each kind of it lies below in one of its own.
///
/// # Errors
/// They do not compile, or the target's standard library cannot be had.
pub fn build(place: &Place, boots: &[&Boot]) -> Result<PathBuf, Stop> {
    let has = |extra| boots.iter().any(|boot| boot.extras.contains(&extra));
    // Its own directory: the flags differ from those of every other build, and neither shall evict the other.
    let dir = place.target.join("vm-guest");
    let job = |target: &str, packages: &[&str]| {
        let words = ["build", "--quiet", "--locked", "--target", target, "--profile", PROFILE];
        let packages = packages.iter().flat_map(|package| ["-p", package]);
        let args: Vec<String> = words.into_iter().chain(packages).map(String::from).collect();
        let job = Job::cargo(place, &args).limit(BUILD_LIMIT);
        job.env("CARGO_TARGET_DIR", dir.display().to_string())
    };
    if boots.iter().any(|boot| !boot.extras.contains(&Extra::Rdma)) || has(Extra::Straightway) {
        add_target(place)?;
        // The command too, whether these guests carry it or not: what is below both is compiled for what both ask of it, and a build without
        // the one would compile most of it once more for the guests of another group.
        run(
            job(TARGET, &["straightway-guest", "straightway-cli"])
                .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld"),
            TARGET,
        )?;
    }
    if has(Extra::Rdma) {
        run(job(TARGET_DYNAMIC, &["straightway-guest"]), TARGET_DYNAMIC)?;
    }
    if has(Extra::Dynamic) {
        // As the demo does it, so that nothing is compiled twice.
        place.build("straightway", BUILD_LIMIT)?;
    }
    Ok(dir)
}

/// Sees to the standard library of the static target.
fn add_target(place: &Place) -> Result<(), Stop> {
    let listed = Job::program(place, Path::new("rustup"), &["target", "list", "--installed"].map(String::from));
    let installed = packages::collect("rustup target list", listed).unwrap_or_default();
    if installed.iter().any(|line| line == TARGET) {
        return Ok(());
    }
    let add = Job::program(place, Path::new("rustup"), &["target", "add", TARGET].map(String::from));
    packages::collect("rustup target add", add).map(drop).map_err(|stop| {
        let remedy = format!("rustup target add {TARGET}");
        Stop::new(format!("the standard library of {TARGET} is missing ({stop})"), remedy)
    })
}

fn run(job: Job, target: &str) -> Result<(), Stop> {
    let outcome = job.run()?;
    if outcome.ended == Ended::Exit(0) {
        return Ok(());
    }
    let what = format!("the guest's programs do not build for {target} ({:?})", outcome.ended);
    Err(Stop::new(what, "see the errors above"))
}

/// What goes into a guest.
#[derive(Debug)]
pub struct Content<'a> {
    pub root: &'a Root,
    pub kernel: &'a Prepared,
    /// Directory of the built programs.
    pub built: &'a Path,
    pub extras: &'a [Extra],
    /// The tree with fio, if a guest carries it.
    pub fio: Option<&'a Root>,
    /// The tree with what a dynamic program needs, if a guest carries one.
    pub dynamic: Option<&'a Root>,
    /// The tree with what RDMA needs and the folder with other people's host, if a guest has them.
    pub rdma: Option<(&'a Root, &'a Path)>,
}

impl Content<'_> {
    /// Writes the initial file system: busybox, modules, programs, `init`, and notes of an earlier phase.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn write_initramfs(&self, place: &Place, notes: &[String], to: &Path) -> Result<(), Stop> {
        let mut archive = cpio::Archive::default();
        for dir in ["dev", "proc", "sys", "tmp", "run", "mnt", "bin", "sw/modules"] {
            archive.directory(dir);
        }
        archive.device("dev/console", 5, 1);
        let mut program = |name: &str, path: &Path| -> Result<(), Stop> {
            archive.file(name, Mode::Program, &packages::read(path)?);
            Ok(())
        };
        program("init", &place.root.join(INIT))?;
        program("bin/busybox", &self.root.busybox())?;
        let rdma = self.rdma.filter(|_| self.extras.contains(&Extra::Rdma));
        let target = if rdma.is_some() { TARGET_DYNAMIC } else { TARGET };
        program("sw/straightway-guest", &self.built.join(target).join(PROFILE).join("straightway-guest"))?;
        if self.extras.contains(&Extra::Straightway) {
            program("bin/straightway", &self.built.join(TARGET).join(PROFILE).join("straightway"))?;
        }
        if let Some((tree, site)) = rdma {
            program(RDMA_DRIVER, &tree.file(RDMA_DRIVER))?;
            let mut files = closures(place, tree, RDMA_LIBRARIES.iter().chain([&RDMA_TOOL]))?;
            files.extend(foreign::files(place, tree, site)?);
            for (name, path) in files {
                program(&name, &path)?;
            }
        }
        if let (true, Some(fio)) = (self.extras.contains(&Extra::Fio), self.fio) {
            for (name, path) in fio.closure(place, "usr/bin/fio")? {
                program(&name, &path)?;
            }
        }
        if let (true, Some(tree)) = (self.extras.contains(&Extra::Dynamic), self.dynamic) {
            program("bin/straightway-dynamic", &place.built("straightway"))?;
            for (name, path) in closures(place, tree, DYNAMIC_FILES.iter())? {
                program(&name, &path)?;
            }
        }
        let more = if rdma.is_some() { &self.kernel.rdma[..] } else { &[] };
        for module in self.kernel.modules.iter().chain(more) {
            let name = module.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            program(&format!("sw/modules/{name}"), module)?;
        }
        let notes: String = notes.iter().map(|note| format!("{note}\n")).collect();
        archive.file(NOTES, Mode::Data, notes.as_bytes());
        packages::write(to, &archive.finish())
    }
}

/// Libraries and programs with all they need, each once: all of them need the C library.
fn closures<'a>(
    place: &Place,
    tree: &Root,
    wanted: impl Iterator<Item = &'a &'a str>,
) -> Result<std::collections::BTreeMap<String, PathBuf>, Stop> {
    let mut files = std::collections::BTreeMap::new();
    for name in wanted {
        files.extend(tree.closure(place, name)?);
    }
    Ok(files)
}
