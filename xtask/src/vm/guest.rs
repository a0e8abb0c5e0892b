//! What a guest runs: the test program, built as a static binary, and the initial file system around it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cpio::{self, Mode};
use super::kernels::Prepared;
use super::packages::{self, Root};
use crate::proc::{Ended, Job};
use crate::{Place, Stop};

const PACKAGE: &str = "straightway-guest";
const TARGET: &str = "x86_64-unknown-linux-musl";
/// Cargo profile of the guest: optimised, without the link-time optimisation that costs minutes.
const PROFILE: &str = "guest";
const BUILD_LIMIT: Duration = Duration::from_secs(600);
/// The first program of the guest.
const INIT: &str = "hwtests/vm/init.sh";
/// Where notes of the first phase lie in the second.
const NOTES: &str = "sw/notes";

/// Builds the test program.
///
/// # Errors
/// It does not compile, or the target's standard library cannot be had.
pub fn build(place: &Place) -> Result<PathBuf, Stop> {
    let listed = Job::program(place, Path::new("rustup"), &["target", "list", "--installed"].map(String::from));
    let installed = packages::collect("rustup target list", listed).unwrap_or_default();
    if !installed.iter().any(|line| line == TARGET) {
        let add = Job::program(place, Path::new("rustup"), &["target", "add", TARGET].map(String::from));
        packages::collect("rustup target add", add).map_err(|stop| {
            Stop::new(
                format!("the standard library of {TARGET} is missing ({stop})"),
                format!("rustup target add {TARGET}"),
            )
        })?;
    }
    let args =
        ["build", "--quiet", "--locked", "-p", PACKAGE, "--target", TARGET, "--profile", PROFILE].map(String::from);
    // Its own directory: the flags differ from those of every other build, and neither shall evict the other.
    let target = place.target.join("vm-guest");
    let job = Job::cargo(place, &args)
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
        .env("CARGO_TARGET_DIR", target.display().to_string())
        .limit(BUILD_LIMIT);
    let outcome = job.run()?;
    if outcome.ended != Ended::Exit(0) {
        return Err(Stop::new(
            format!("{PACKAGE} does not build for {TARGET} ({:?})", outcome.ended),
            "see the errors above",
        ));
    }
    Ok(target.join(TARGET).join(PROFILE).join(PACKAGE))
}

/// Writes the initial file system: busybox, modules, the test program, `init`, and notes of an earlier phase.
///
/// # Errors
/// A file cannot be read or written.
pub fn write_initramfs(
    place: &Place,
    root: &Root,
    kernel: &Prepared,
    program: &Path,
    notes: &[String],
    to: &Path,
) -> Result<(), Stop> {
    let mut archive = cpio::Archive::default();
    for dir in ["dev", "proc", "sys", "tmp", "run", "mnt", "bin", "sw/modules"] {
        archive.directory(dir);
    }
    archive.device("dev/console", 5, 1);
    archive.file("init", Mode::Program, &packages::read(&place.root.join(INIT))?);
    archive.file("bin/busybox", Mode::Program, &packages::read(&root.busybox())?);
    archive.file("sw/straightway-guest", Mode::Program, &packages::read(program)?);
    for module in &kernel.modules {
        let name = module.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        archive.file(&format!("sw/modules/{name}"), Mode::Data, &packages::read(module)?);
    }
    archive.file(NOTES, Mode::Data, notes.iter().map(|note| format!("{note}\n")).collect::<String>().as_bytes());
    packages::write(to, &archive.finish())
}
