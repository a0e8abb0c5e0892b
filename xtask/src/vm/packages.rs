//! Packages of the Debian archive: fetched by the ordinary apt client into a state of our own below `target/vm`,
//! unpacked there, never installed.
//!
//! ```text
//! apt/{sources.list,apt.conf,state,cache}   a second apt: the machine's own lists and packages are not looked at
//! apt-next/                                 a third, of the next release alone: it does not change what the second one chooses
//! debs/                                     packages asked for by name (kernels)
//! root/                                     QEMU, busybox and every library they need, down to the C library
//! ```
//!
//! The root is complete: programs run by its own loader with its own libraries, so that what the machine has installed
//! changes nothing. What is there is used again without asking the archive.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::proc::{Echo, Job};
use crate::{Place, Stop};

/// Suites that packages come from, and where the state of the apt that asks them lies.
#[derive(Debug)]
struct Suites {
    apt: &'static str,
    /// Part of the archive, and suite.
    sources: &'static [(&'static str, &'static str)],
}

/// QEMU and busybox are of the release; the archive's security part has the kernel that machines run; backports has the kernel with
/// peer-to-peer pages.
const RELEASE: Suites = Suites {
    apt: "apt",
    sources: &[("debian", "bookworm"), ("debian-security", "bookworm-security"), ("debian", "trixie-backports")],
};
/// What is to be the next release, for peers whose older versions lack what is tested: `tlshd` of 12 is none, and GnuTLS of 13 makes binders
/// of keys with SHA-256 only (`gnutls_psk_allocate_client_credentials2` came with 3.8.11).
const NEXT: Suites = Suites { apt: "apt-next", sources: &[("debian", "forky")] };
/// Where the archive is, unless [`ARCHIVE_VARIABLE`] names a mirror.
const ARCHIVE: &str = "http://deb.debian.org";
/// Names a mirror, as `http://host` with `debian` and `debian-security` below it.
const ARCHIVE_VARIABLE: &str = "STRAIGHTWAY_DEBIAN_ARCHIVE";
/// The archive's keys.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What the root holds; the rest comes with them.
const ROOT_PACKAGES: [&str; 2] = ["qemu-system-x86", "busybox-static"];
/// Where libraries lie in the root; the last are fio's.
const LIBRARIES: [&str; 3] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph"];
/// The loader.
const LOADER: &str = "ld-linux-x86-64.so.2";
/// Where programs look for it.
const LOADER_IN_GUEST: &str = "lib64/ld-linux-x86-64.so.2";
/// One call of apt or dpkg, network included.
const LIMIT: Duration = Duration::from_secs(300);
/// Lines of a failing program that an error shows.
const SHOWN_LINES: usize = 3;

/// The archive, as far as it has been fetched.
#[derive(Debug)]
pub struct Archive<'a> {
    place: &'a Place,
    dir: PathBuf,
    suites: &'static Suites,
    updated: std::cell::Cell<bool>,
}

impl<'a> Archive<'a> {
    /// `dir` is `target/vm`; nothing is fetched yet.
    pub fn new(place: &'a Place, dir: &Path) -> Archive<'a> {
        Archive { place, dir: dir.to_path_buf(), suites: &RELEASE, updated: std::cell::Cell::new(false) }
    }

    /// The same of the next release.
    pub fn next(&self) -> Archive<'a> {
        Archive { suites: &NEXT, ..Archive::new(self.place, &self.dir) }
    }

    /// The directory with QEMU and busybox, fetched and unpacked on the first call.
    ///
    /// # Errors
    /// No apt on this machine, archive not reachable, disk full.
    pub fn root(&self) -> Result<Root, Stop> {
        self.tree("root", &ROOT_PACKAGES)
    }

    /// A directory with packages and all they need, fetched and unpacked on the first call.
    ///
    /// # Errors
    /// As [`Archive::root`].
    pub fn tree(&self, name: &str, packages: &[&str]) -> Result<Root, Stop> {
        let dir = self.dir.join(name);
        let stamp = self.dir.join(format!("{name}.stamp"));
        let wanted = packages.join(" ");
        if std::fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) {
            return Ok(Root { dir });
        }
        self.update()?;
        println!("    fetching {wanted} and what they need");
        let fetched = self.state().join("fetched");
        remove_dir(&fetched)?;
        make_dir(&fetched.join("partial"))?;
        let option = format!("Dir::Cache::archives={}", fetched.display());
        self.apt(&[&["-y", "--download-only", "-o", &option, "install"], packages].concat())?;
        remove_dir(&dir)?;
        make_dir(&dir)?;
        for deb in files_ending(&fetched, ".deb")? {
            self.unpack(&deb, &dir)?;
        }
        remove_dir(&fetched)?;
        write(&stamp, wanted.as_bytes())?;
        Ok(Root { dir })
    }

    /// Fetches one package and gives its file; one that is there already is not fetched again.
    ///
    /// # Errors
    /// As [`Archive::root`].
    pub fn deb(&self, package: &str) -> Result<PathBuf, Stop> {
        let debs = self.dir.join("debs");
        make_dir(&debs)?;
        // NAME_VERSION_ARCHITECTURE.deb
        let prefix = debs.join(format!("{package}_")).display().to_string();
        let there =
            || Ok(files_ending(&debs, ".deb")?.into_iter().rfind(|path| path.to_string_lossy().starts_with(&prefix)));
        if let Some(path) = there()? {
            return Ok(path);
        }
        self.update()?;
        println!("    fetching {package}");
        self.apt(&["download", package])?;
        there()?.ok_or_else(|| Stop::new(format!("apt left no file of {package}"), "free some space below target/vm"))
    }

    /// Unpacks a package's files below `dir`.
    ///
    /// # Errors
    /// A broken package, disk full.
    pub fn unpack(&self, deb: &Path, dir: &Path) -> Result<(), Stop> {
        let args = ["-x".to_string(), deb.display().to_string(), dir.display().to_string()];
        collect("dpkg-deb", Job::program(self.place, Path::new("dpkg-deb"), &args)).map(drop)
    }

    /// What `package` depends on, in the suite `suite`, first names only.
    ///
    /// # Errors
    /// As [`Archive::root`].
    pub fn depends(&self, package: &str, suite: &str) -> Result<Vec<String>, Stop> {
        self.update()?;
        let args = ["-c", &self.conf(), "-t", suite, "depends", package].map(String::from);
        let lines = collect("apt-cache depends", Job::program(self.place, Path::new("apt-cache"), &args))?;
        Ok(lines.iter().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(String::from).collect())
    }

    fn state(&self) -> PathBuf {
        self.dir.join(self.suites.apt)
    }

    fn conf(&self) -> String {
        self.state().join("apt.conf").display().to_string()
    }

    /// Runs apt-get with our state, in `debs`.
    fn apt(&self, args: &[&str]) -> Result<Vec<String>, Stop> {
        let conf = self.conf();
        let mut all = vec!["-c".to_string(), conf, "-q".to_string()];
        all.extend(args.iter().map(|arg| (*arg).to_string()));
        let debs = self.dir.join("debs");
        make_dir(&debs)?;
        let job = Job::program(self.place, Path::new("apt-get"), &all).dir(&debs);
        collect(&format!("apt-get {}", args.join(" ")), job.env("DEBIAN_FRONTEND", "noninteractive"))
    }

    /// Package lists, once a process and only when something is missing.
    fn update(&self) -> Result<(), Stop> {
        if self.updated.get() {
            return Ok(());
        }
        let apt = self.state();
        for part in ["state/lists/partial", "cache/archives/partial", "log"] {
            make_dir(&apt.join(part))?;
        }
        if !Path::new(KEYRING).is_file() {
            let remedy = "install the package debian-archive-keyring";
            return Err(Stop::new(format!("the archive's keys are missing ({KEYRING})"), remedy));
        }
        let archive = std::env::var(ARCHIVE_VARIABLE).unwrap_or_else(|_| ARCHIVE.to_string());
        let sources: Vec<String> = self
            .suites
            .sources
            .iter()
            .map(|(part, suite)| format!("deb [signed-by={KEYRING}] {archive}/{part} {suite} main\n"))
            .collect();
        write(&apt.join("sources.list"), sources.concat().as_bytes())?;
        // An empty list of installed packages: everything down to the C library is fetched.
        write(&apt.join("state/status"), b"")?;
        write(&apt.join("apt.conf"), configuration(&apt).as_bytes())?;
        println!("    fetching package lists");
        self.apt(&["update"]).map_err(|stop| {
            let remedy = format!("make {archive} reachable, or name a mirror in {ARCHIVE_VARIABLE}");
            Stop::new(format!("package lists could not be fetched ({stop})"), remedy)
        })?;
        self.updated.set(true);
        Ok(())
    }
}

fn configuration(apt: &Path) -> String {
    let at = apt.display();
    format!(
        "Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\n\
         Dir::State \"{at}/state\";\nDir::State::lists \"{at}/state/lists\";\nDir::State::status \"{at}/state/status\";\n\
         Dir::Cache \"{at}/cache\";\nDir::Log \"{at}/log\";\nAPT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\nAPT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\nAcquire::Retries \"3\";\nAPT::Update::Error-Mode \"any\";\n"
    )
}

/// Unpacked packages with every library they need.
#[derive(Debug, Clone)]
pub struct Root {
    dir: PathBuf,
}

impl Root {
    /// A program (a path below the root) and its libraries, each with the path at which a guest needs it.
    ///
    /// # Errors
    /// The loader does not find a library.
    pub fn closure(&self, place: &Place, program: &str) -> Result<Vec<(String, PathBuf)>, Stop> {
        let (loader, mut args) = self.runner(program);
        args.insert(0, "--list".to_string());
        let lines = collect(&format!("the loader of {program}"), Job::program(place, &loader, &args))?;
        let mut files = vec![(program.to_string(), self.dir.join(program)), (LOADER_IN_GUEST.to_string(), loader)];
        for line in lines {
            // NAME => PATH (ADDRESS); the loader and the kernel's own library have no arrow.
            let Some((_, rest)) = line.split_once(" => ") else { continue };
            let Some(path) = rest.split_whitespace().next().filter(|path| path.starts_with('/')) else {
                return Err(Stop::new(format!("{program} lacks a library: {line}"), "remove target/vm and try again"));
            };
            let path = PathBuf::from(path);
            let inside = path.strip_prefix(&self.dir).unwrap_or(&path);
            files.push((inside.display().to_string().trim_start_matches('/').to_string(), path.clone()));
        }
        Ok(files)
    }

    /// A file by its path below the root.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// busybox, which is static.
    pub fn busybox(&self) -> PathBuf {
        self.dir.join("bin/busybox")
    }

    /// The loader, and what to pass before the arguments of `program` (a path below the root).
    pub fn runner(&self, program: &str) -> (PathBuf, Vec<String>) {
        // Where it is since all of it lies below `usr`, else where it was.
        let places = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| self.dir.join(dir).join(LOADER));
        let loader = places.iter().find(|path| path.exists()).unwrap_or(&places[1]).clone();
        let libraries: Vec<String> = LIBRARIES.iter().map(|part| self.dir.join(part).display().to_string()).collect();
        let args =
            vec!["--library-path".to_string(), libraries.join(":"), self.dir.join(program).display().to_string()];
        (loader, args)
    }

    /// QEMU with its modules and firmware; arguments are to follow.
    pub fn qemu(&self) -> (PathBuf, Vec<String>, (&'static str, String)) {
        let (loader, mut args) = self.runner("usr/bin/qemu-system-x86_64");
        for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            args.extend(["-L".to_string(), self.dir.join(data).display().to_string()]);
        }
        let modules = self.dir.join("usr/lib/x86_64-linux-gnu/qemu").display().to_string();
        (loader, args, ("QEMU_MODULE_DIR", modules))
    }
}

/// Runs a program quietly and gives its lines; a failure becomes an error with the last of them.
pub fn collect(shown: &str, job: Job) -> Result<Vec<String>, Stop> {
    let outcome = job.merge_stderr().echo(Echo::Hidden).limit(LIMIT).run()?;
    if outcome.ok() {
        return Ok(outcome.lines);
    }
    let telling = |line: &&String| line.starts_with("E:") || line.contains("error");
    let mut last: Vec<&str> = outcome.lines.iter().filter(telling).map(String::as_str).take(SHOWN_LINES).collect();
    if last.is_empty() {
        last = outcome.lines.iter().rev().take(SHOWN_LINES).map(String::as_str).collect();
        last.reverse();
    }
    Err(Stop::new(format!("{shown} failed ({:?}): {}", outcome.ended, last.join(" | ")), "see its output"))
}

pub fn make_dir(dir: &Path) -> Result<(), Stop> {
    std::fs::create_dir_all(dir).map_err(|error| at(dir, "cannot make", &error))
}

pub fn remove_dir(dir: &Path) -> Result<(), Stop> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(dir, "cannot remove", &error)),
        _ => Ok(()),
    }
}

pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Stop> {
    std::fs::write(path, bytes).map_err(|error| at(path, "cannot write", &error))
}

pub fn read(path: &Path) -> Result<Vec<u8>, Stop> {
    std::fs::read(path).map_err(|error| at(path, "cannot read", &error))
}

/// Files of one directory with this ending, sorted.
pub fn files_ending(dir: &Path, ending: &str) -> Result<Vec<PathBuf>, Stop> {
    let entries = std::fs::read_dir(dir).map_err(|error| at(dir, "cannot list", &error))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = paths.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    files.sort();
    Ok(files)
}

/// An error of the file system, with its place.
pub fn at(path: &Path, what: &str, error: &std::io::Error) -> Stop {
    Stop::new(format!("{what} {} ({error})", path.display()), "free some space below target/vm, or remove it")
}
