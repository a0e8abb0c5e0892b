//! `cargo xtask vm kernel`: builds the bed's own kernel from the distribution's source package and keeps the image.
//!
//! Half an hour on two cores, so nothing builds it on the way to something else: suites that need it run when it is
//! there and are skipped with that reason otherwise. The image's directory carries the hash of the configuration and
//! the version of the source: `own/HASH-VERSION/{vmlinuz,release,config}`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::kernels::Prepared;
use super::packages::{self, Archive, at};
use crate::needs::{Machine, Need};
use crate::proc::{Echo, Ended, Job};
use crate::{Place, Stop};

/// What the kernel has on top of nothing.
const FRAGMENT: &str = "hwtests/vm/kernel.config";
/// The source package, of the backports suite.
const SOURCE: &str = "linux-source-7.3";
const LIMIT: Duration = Duration::from_secs(3 * 3600);
/// Programs that the build calls.
const TOOLS: [Need; 6] = [
    Need::Tool { program: "make", package: "make" },
    Need::Tool { program: "gcc", package: "gcc" },
    Need::Tool { program: "flex", package: "flex" },
    Need::Tool { program: "bison", package: "bison" },
    Need::Tool { program: "bc", package: "bc" },
    Need::Tool { program: "lz4", package: "lz4" },
];
/// A header of libelf, which the kernel's own build tool is linked with.
const LIBELF_HEADER: &str = "/usr/include/gelf.h";

/// Why there is no own kernel, for the skip line.
pub const ABSENT: &str = "the bed's own kernel is not built; cargo xtask vm kernel builds it (half an hour)";

/// The kernel, if one of this configuration has been built.
///
/// # Errors
/// The configuration cannot be read.
pub fn cached(place: &Place) -> Result<Option<Prepared>, Stop> {
    let fragment = packages::read(&place.root.join(FRAGMENT))?;
    let prefix = format!("{:016x}-", super::fnv1a(&fragment));
    let Ok(entries) = std::fs::read_dir(super::directory(place).join("own")) else { return Ok(None) };
    let fits = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    let mut dirs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(fits).collect();
    dirs.sort();
    let Some(dir) = dirs.into_iter().rfind(|dir| dir.join("release").is_file()) else { return Ok(None) };
    let release = String::from_utf8_lossy(&packages::read(&dir.join("release"))?).trim().to_string();
    Ok(Some(Prepared { image: dir.join("vmlinuz"), release, modules: Vec::new(), rdma: Vec::new() }))
}

/// Builds it, unless it is there.
///
/// # Errors
/// A tool or the source is missing, an option did not take, or the build failed.
pub fn build(place: &Place, archive: &Archive<'_>) -> Result<Prepared, Stop> {
    if let Some(there) = cached(place)? {
        println!("vm: own kernel {} is there", there.release);
        return Ok(there);
    }
    let machine = Machine::new(place);
    for need in TOOLS {
        machine.meet(need).map_err(|reason| Stop::new(reason, "the kernel cannot be built without it"))?;
    }
    libelf(place)?;
    let fragment = packages::read(&place.root.join(FRAGMENT))?;
    let own = super::directory(place).join("own");
    let work = own.join("work");
    packages::remove_dir(&work)?;
    packages::make_dir(&work)?;
    let deb = archive.deb(SOURCE)?;
    let version = deb.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let version = version.split('_').nth(1).unwrap_or("unknown").to_string();
    archive.unpack(&deb, &work)?;
    let log = own.join("build.log");
    println!("vm: building {SOURCE} {version}, log in {}", log.display());
    shell(place, &work, &log, &format!("tar -xf usr/src/{SOURCE}.tar.xz && rm -r usr"))?;
    let tree = work.join(SOURCE);
    let config = place.root.join(FRAGMENT).display().to_string();
    let merge =
        format!("make allnoconfig && scripts/kconfig/merge_config.sh -m .config '{config}' && make olddefconfig");
    shell(place, &tree, &log, &merge)?;
    let taken = packages::read(&tree.join(".config"))?;
    let lost = not_taken(&String::from_utf8_lossy(&fragment), &String::from_utf8_lossy(&taken));
    if !lost.is_empty() {
        return Err(Stop::new(format!("options did not take: {}", lost.join(", ")), format!("correct {FRAGMENT}")));
    }
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    shell(place, &tree, &log, &format!("nice -n 19 make -j{cores} bzImage"))?;
    let release = packages::read(&tree.join("include/config/kernel.release"))?;
    let dir = own.join(format!("{:016x}-{version}", super::fnv1a(&fragment)));
    packages::make_dir(&dir)?;
    let image = dir.join("vmlinuz");
    std::fs::copy(tree.join("arch/x86/boot/bzImage"), &image).map_err(|error| at(&image, "cannot copy to", &error))?;
    packages::write(&dir.join("config"), &taken)?;
    // Last: a directory without it is not taken for a kernel.
    packages::write(&dir.join("release"), &release)?;
    packages::remove_dir(&work)?;
    cached(place)?.ok_or_else(|| Stop::new("the kernel was built and is not there", "see the directory own"))
}

/// Runs a line of shell in `dir`, output added to `log`.
fn shell(place: &Place, dir: &Path, log: &Path, line: &str) -> Result<(), Stop> {
    let script = format!("{{ {line}; }} >> \"$0\" 2>&1");
    let args = ["-c".to_string(), script, log.display().to_string()];
    let outcome = Job::program(place, Path::new("sh"), &args).dir(dir).echo(Echo::Hidden).limit(LIMIT).run()?;
    if outcome.ended == Ended::Exit(0) {
        return Ok(());
    }
    Err(Stop::new(format!("{line:?} failed ({:?})", outcome.ended), format!("see the end of {}", log.display())))
}

/// Installs libelf's header if we may.
fn libelf(place: &Place) -> Result<(), Stop> {
    let there = || Path::new(LIBELF_HEADER).is_file();
    if !there() {
        let args = ["install", "-q", "-y", "--no-install-recommends", "libelf-dev"].map(String::from);
        let job = Job::program(place, Path::new("apt-get"), &args).env("DEBIAN_FRONTEND", "noninteractive");
        let installed = packages::collect("apt-get install libelf-dev", job);
        if let (Err(stop), false) = (installed, there()) {
            return Err(Stop::new(format!("{LIBELF_HEADER} is missing ({stop})"), "install libelf-dev"));
        }
    }
    Ok(())
}

/// Lines of the fragment that the finished configuration lacks.
fn not_taken(fragment: &str, config: &str) -> Vec<String> {
    let there: std::collections::BTreeSet<&str> = config.lines().collect();
    // Lines "is not set" are left out: an option that depends on what is off does not appear at all.
    let set = |line: &&str| line.starts_with("CONFIG_");
    fragment.lines().filter(set).filter(|line| !there.contains(line)).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_did_not_take_is_named() {
        let fragment = "# Comment.\nCONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n";
        assert_eq!(not_taken(fragment, "CONFIG_A=y\n# CONFIG_B is not set\n"), ["CONFIG_B=y"]);
        assert!(not_taken(fragment, "CONFIG_B=y\nCONFIG_A=y\n").is_empty());
    }
}
