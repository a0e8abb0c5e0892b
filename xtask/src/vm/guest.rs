//! What a guest runs: the test program, built as a static binary, and the initial file system around it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cpio::{self, Mode};
use super::kernels::Prepared;
use super::packages::{self, Root};
use crate::proc::{Ended, Job};
use crate::{Place, Stop};

const TARGET: &str = "x86_64-unknown-linux-musl";
/// What it loads, or is linked with.
const DYNAMIC_LIBRARIES: [&str; 3] =
    ["usr/lib/x86_64-linux-gnu/libssl.so.3", "lib/x86_64-linux-gnu/libgcc_s.so.1", "lib/x86_64-linux-gnu/libm.so.6"];
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
    /// The `straightway` command once more, as `/bin/straightway-dynamic`, with OpenSSL: one that is static loads no library.
    Dynamic,
    /// The distribution's fio with its libraries, as `/usr/bin/fio`: 80 MB, so only where speeds are compared.
    Fio,
}

/// Builds the test program, and the command if `extras` has it, into one directory.
///
/// # Errors
/// They do not compile, or the target's standard library cannot be had.
pub fn build(place: &Place, extras: &[Extra]) -> Result<PathBuf, Stop> {
    let listed = Job::program(place, Path::new("rustup"), &["target", "list", "--installed"].map(String::from));
    let installed = packages::collect("rustup target list", listed).unwrap_or_default();
    if !installed.iter().any(|line| line == TARGET) {
        let add = Job::program(place, Path::new("rustup"), &["target", "add", TARGET].map(String::from));
        packages::collect("rustup target add", add).map_err(|stop| {
            let remedy = format!("rustup target add {TARGET}");
            Stop::new(format!("the standard library of {TARGET} is missing ({stop})"), remedy)
        })?;
    }
    let mut args =
        ["build", "--quiet", "--locked", "--target", TARGET, "--profile", PROFILE].map(String::from).to_vec();
    args.extend(["-p", "straightway-guest"].map(String::from));
    if extras.contains(&Extra::Straightway) {
        args.extend(["-p", "straightway-cli"].map(String::from));
    }
    // Its own directory: the flags differ from those of every other build, and neither shall evict the other.
    let target = place.target.join("vm-guest");
    let job = Job::cargo(place, &args)
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
        .env("CARGO_TARGET_DIR", target.display().to_string())
        .limit(BUILD_LIMIT);
    run(job, TARGET)?;
    if extras.contains(&Extra::Dynamic) {
        // As the demo does it, so that nothing is compiled twice.
        let args = ["build", "--release", "--quiet", "--workspace", "--bin", "straightway"].map(String::from);
        run(Job::cargo(place, &args).limit(BUILD_LIMIT), "this machine")?;
    }
    Ok(target.join(TARGET).join(PROFILE))
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
        program("sw/straightway-guest", &self.built.join("straightway-guest"))?;
        if self.extras.contains(&Extra::Straightway) {
            program("bin/straightway", &self.built.join("straightway"))?;
        }
        if let (true, Some(fio)) = (self.extras.contains(&Extra::Fio), self.fio) {
            for (name, path) in fio.closure(place, "usr/bin/fio")? {
                program(&name, &path)?;
            }
        }
        if let (true, Some(tree)) = (self.extras.contains(&Extra::Dynamic), self.dynamic) {
            program("bin/straightway-dynamic", &place.target.join("release/straightway"))?;
            // Each library once: all of them need the C library.
            let mut files = std::collections::BTreeMap::new();
            for library in DYNAMIC_LIBRARIES {
                files.extend(tree.closure(place, library)?);
            }
            for (name, path) in files {
                program(&name, &path)?;
            }
        }
        for module in &self.kernel.modules {
            let name = module.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            program(&format!("sw/modules/{name}"), module)?;
        }
        let notes: String = notes.iter().map(|note| format!("{note}\n")).collect();
        archive.file(NOTES, Mode::Data, notes.as_bytes());
        packages::write(to, &archive.finish())
    }
}
