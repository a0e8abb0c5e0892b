//! What a step needs from the machine: met, made, or a reason why not. A reason becomes the step's skip line.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::proc::{Echo, Job};
use crate::pyenv::Env;
use crate::{Place, Stop};

/// One requirement of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A program from a Debian package; installed with apt-get when we are root and it can be reached.
    Tool { program: &'static str, package: &'static str },
    /// As `Tool`, but the step runs without it and its own tests say what they skip.
    Helps { program: &'static str, package: &'static str },
    /// The nightly toolchain with Miri.
    Miri,
    /// The nightly toolchain with the source of the standard library, for targets that no toolchain here has.
    StdSource,
    /// The Python environment of the tests (`pyenv.rs`) with the pinned packages.
    Python,
    /// The same, with torch.
    Torch,
    /// The compiler of `cargo xtask kernels`.
    KernelCompiler,
}

/// Installing packages or components over a slow network.
const INSTALL_LIMIT: Duration = Duration::from_secs(300);
/// Asking a tool for its version or a package list.
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// Meets needs; remembers what need not be done twice.
pub struct Machine<'a> {
    place: &'a Place,
    apt_updated: Cell<Option<bool>>,
    /// The Python environment on its way.
    early: Cell<Option<JoinHandle<()>>>,
}

impl<'a> Machine<'a> {
    pub fn new(place: &'a Place) -> Machine<'a> {
        Machine { place, apt_updated: Cell::new(None), early: Cell::new(None) }
    }

    /// Begins with the whole Python environment, which waits for the network, while steps before it compile. What fails here is
    /// tried again, and told, when a step needs it.
    pub fn begin_python(&self) {
        let place = self.place.clone();
        self.early.set(Some(std::thread::spawn(move || {
            let env = Env::new(&place);
            let _told_later = env.packages().and_then(|()| env.torch()).and_then(|()| env.adapted());
        })));
    }

    fn env(&self) -> Env<'_> {
        if let Some(early) = self.early.take() {
            // A panic there is on stderr, and what it left undone is done below.
            let _told = early.join();
        }
        Env::new(self.place)
    }

    /// Nothing if the need is met now, else the reason.
    pub fn meet(&self, need: Need) -> Result<(), String> {
        match need {
            Need::Tool { program, package } => self.tool(program, package),
            Need::Helps { program, package } => {
                if let Err(reason) = self.tool(program, package) {
                    println!("    without {program}: {reason}");
                }
                Ok(())
            }
            Need::Miri => self.nightly_with("Miri", &["miri", "rust-src"], || {
                self.ask("cargo", &["+nightly", "miri", "--version"], ASK_LIMIT).is_some()
            }),
            Need::StdSource => self.nightly_with("the standard library's source", &["rust-src"], || {
                let root = self.ask("rustc", &["+nightly", "--print", "sysroot"], ASK_LIMIT);
                let root = root.as_ref().and_then(|lines| lines.first());
                root.is_some_and(|root| Path::new(root).join("lib/rustlib/src/rust/library/std/Cargo.toml").is_file())
            }),
            Need::Python => self.env().packages(),
            Need::Torch => {
                let env = self.env();
                env.packages()?;
                env.torch()
            }
            Need::KernelCompiler => crate::kernels::compiler(self.place),
        }
    }

    fn ask(&self, program: &str, args: &[&str], limit: Duration) -> Option<Vec<String>> {
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        let job = Job::program(self.place, Path::new(program), &args).echo(Echo::Hidden).limit(limit);
        let job = job.env("DEBIAN_FRONTEND", "noninteractive");
        job.run().ok().filter(|outcome| outcome.ok()).map(|outcome| outcome.lines)
    }

    fn is_root(&self) -> bool {
        self.ask("id", &["-u"], ASK_LIMIT).is_some_and(|lines| lines.first().is_some_and(|uid| uid == "0"))
    }

    fn tool(&self, program: &str, package: &str) -> Result<(), String> {
        if on_path(program) {
            return Ok(());
        }
        let remedy = format!("install {package}");
        if !on_path("apt-get") {
            return Err(format!("{program} is missing and there is no apt-get; {remedy}"));
        }
        if !self.is_root() {
            return Err(format!("{program} is missing and installing needs root; {remedy}"));
        }
        if self.apt_updated.get().is_none() {
            let updated = self.ask("apt-get", &["update", "-q"], INSTALL_LIMIT).is_some();
            self.apt_updated.set(Some(updated));
        }
        let args = ["install", "-q", "-y", "--no-install-recommends", package];
        let installed = self.ask("apt-get", &args, INSTALL_LIMIT).is_some();
        if installed && on_path(program) {
            return Ok(());
        }
        let update =
            if self.apt_updated.get() == Some(false) { ", the package list could not be fetched either" } else { "" };
        Err(format!("{program} is missing and apt-get could not install {package}{update}; {remedy}"))
    }

    /// A nightly toolchain with components, installed where rustup is there; `there` says whether they are.
    fn nightly_with(&self, what: &str, components: &[&str], there: impl Fn() -> bool) -> Result<(), String> {
        if there() {
            return Ok(());
        }
        if !on_path("rustup") {
            return Err(format!("{what} needs a nightly toolchain and there is no rustup; install rustup"));
        }
        let args = [&["component", "add"], components, &["--toolchain", "nightly"]].concat();
        if self.ask("rustup", &args, INSTALL_LIMIT).is_some() && there() {
            return Ok(());
        }
        Err(format!("no nightly with {what}; run rustup {}", args.join(" ")))
    }
}

/// Whether a program is on PATH or in the directories of system tools, which a user's PATH may lack.
fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|dir| dir.join(program).is_file())
}

/// Directories of `name` and of every workspace crate that it needs to build its tests.
///
/// # Errors
/// If cargo does not answer, or the crate does not exist.
pub fn crates_below(place: &Place, name: &str) -> Result<BTreeSet<String>, Stop> {
    let workspace = crate::tidy::members(place)?;
    let mut dirs = BTreeSet::new();
    let mut waiting = vec![name.to_string()];
    while let Some(name) = waiting.pop() {
        let Some(package) = workspace.find(&name) else { continue };
        if dirs.insert(package.dir.clone()) {
            waiting.extend(package.dependencies.iter().map(|dependency| dependency.name.clone()));
        }
    }
    if dirs.is_empty() {
        return Err(Stop::new(format!("there is no crate {name}"), "see docs/ARCHITECTURE.md for the crates"));
    }
    Ok(dirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_gives_a_reason_with_a_remedy() {
        let dir = std::env::temp_dir();
        let place = Place { root: dir.clone(), target: dir, profile: crate::Profile::Release };
        let machine = Machine::new(&place);
        // Pretend that the package list was fetched: the test must not need a network.
        machine.apt_updated.set(Some(true));
        assert!(machine.meet(Need::Tool { program: "sh", package: "dash" }).is_ok());
        let reason = machine.tool("no-such-program-here", "no-such-package-here").unwrap_err();
        assert!(reason.contains("no-such-program-here") && reason.contains("install no-such-package-here"), "{reason}");
    }
}
