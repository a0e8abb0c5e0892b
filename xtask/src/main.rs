//! Developer commands: what a developer types by hand is what CI runs.
//!
//! ```text
//! cargo xtask test [--only NAME]… [--list] [--keep-going]   everything that CI runs, fastest first
//! cargo xtask tidy                                          the project's own checks over the tree
//! cargo xtask demo [ARGS]                                   build the release command line and run its demo
//! cargo xtask bench [ARGS]                                  build and run the benchmarks
//! cargo xtask sim [--seeds N] [--mutants [NAME|--record]]   simulator seeds; mutants must be found
//! cargo xtask fuzz [--seconds N] [NAME]…                    the fuzz targets of every crate
//! cargo xtask python [PYTEST ARGS]                         the Python package: pip install from the tree, pytest
//! cargo xtask kernels [--check]                             the PTX of kernels/ from its sources
//! cargo xtask install --prefix DIR                          the C library with its headers, and libcufile.so.0
//! cargo xtask cufile [--write] [--gpu] [--clients]          one suite against NVIDIA's libcufile and ours, and clients of both
//! cargo xtask interop [SYSTEM]…                            real servers of storage systems, started, tested and stopped
//! cargo xtask peers                                         other people's NVMe/TCP programs at the other end of ours
//! cargo xtask vm nvme | fabrics | shell | --list | fetch | kernel     guests on an emulated machine with NVMe controllers
//! ```
//!
//! Kept small on purpose: one dependency (a JSON reader for `cargo metadata`), so that the first call after a clone
//! starts in seconds. Steps of `test` are rows of data in [`steps`]; add a row there with the first module that it
//! can catch something in.
#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_methods,
    reason = "a developer command reads the clock and the environment and starts threads; nothing links it"
)]

mod cufile;
mod disk;
mod fuzz;
mod install;
mod interop;
mod kernels;
mod mutants;
mod needs;
mod patch;
mod peers;
mod proc;
mod pyenv;
mod python;
mod servers;
mod steps;
mod suite;
mod tidy;
mod vm;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Why a command stopped: what happened, and what to do about it.
#[derive(Debug)]
pub struct Stop {
    what: String,
    remedy: String,
}

impl Stop {
    /// Both in lower case, without a final full stop: they are joined by a semicolon on one line.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Stop {
        Stop { what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// Where things are. Made once from the environment that cargo gives, then passed down.
#[derive(Debug, Clone)]
pub struct Place {
    /// The workspace root.
    pub root: PathBuf,
    /// Cargo's target directory: `CARGO_TARGET_DIR` if it is set, else `target` below the root.
    pub target: PathBuf,
    /// How programs are built that a user would run.
    pub profile: Profile,
}

/// A profile of cargo, of the optimised ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// What a user gets.
    Release,
    /// The same without the link-time optimisation that costs minutes: tests, which judge no rates, share one build of it.
    Quick,
}

impl Profile {
    /// Names it to a command of this program.
    pub const VARIABLE: &str = "STRAIGHTWAY_XTASK_PROFILE";

    /// Its name, which is that of its folder too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Quick => "quick",
        }
    }

    fn find() -> Self {
        if std::env::var(Self::VARIABLE).as_deref() == Ok(Self::Quick.name()) { Self::Quick } else { Self::Release }
    }
}

impl Place {
    fn find() -> Result<Place, Stop> {
        // Asked when it runs, not when it is compiled: two clones may share one target directory, and with it this program.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let manifest = manifest.ok_or_else(|| Stop::new("CARGO_MANIFEST_DIR is not set", "run it as cargo xtask"))?;
        let root = manifest
            .parent()
            .ok_or_else(|| Stop::new("xtask has no parent directory", "run it from a clone of the repository"))?
            .to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => root.join(dir),
            None => root.join("target"),
        };
        Ok(Place { root, target, profile: Profile::find() })
    }

    /// Builds a program of the workspace, optimised, and tells where it is. With the features of the whole workspace, so that the programs share
    /// what they are made of.
    ///
    /// # Errors
    /// It does not build within `limit`.
    pub fn build(&self, name: &str, limit: Duration) -> Result<PathBuf, Stop> {
        let args =
            ["build", "--profile", self.profile.name(), "--quiet", "--workspace", "--bin", name].map(String::from);
        match proc::Job::cargo(self, &args).limit(limit).watch()? {
            0 => Ok(self.built(name)),
            status => Err(Stop::new(format!("{name} does not build (cargo: {status})"), "see the errors above")),
        }
    }

    /// Where a program or library of an optimised build lies.
    pub fn built(&self, name: &str) -> PathBuf {
        self.target.join(self.profile.name()).join(name)
    }
}

const USAGE: &str = "usage: cargo xtask <command>
  test [--only NAME]... [--list] [--keep-going]   everything that CI runs, fastest first
  tidy                                            the project's own checks over the tree
  demo [ARGS]                                     build the release command line and run its demo
  bench [ARGS]                                    build and run the benchmarks
  sim [--seeds N] [--mutants [NAME|--record]]     simulator seeds; each mutant must be found within its bound; --record
                                                  writes sw-sim/mutants/TABLE.md
  fuzz [--seconds N] [NAME]...                    the fuzz targets of every crate, ten seconds each
  python [PYTEST ARGS]                            the Python package: pip install from the tree, then its tests
  kernels [--check]                               the PTX of kernels/ from its sources; --check: only compare
  install --prefix DIR [--library FILE] [--cufile FILE]   the C library with its headers, pkg-config and CMake files, and libcufile.so.0;
                                                  with a FILE only that library, which is not built
  cufile [--write] [--only PREFIX] [--library FILE] [--gpu] [--clients]
                                                  one suite against NVIDIA's libcufile and ours; --write: the report
  interop [SYSTEM]... | --quick                   real servers of storage systems: brought, started, tested, stopped
  peers                                           other people's NVMe/TCP programs in user space at the other end of ours
  vm nvme | fabrics | shell | --list | fetch | kernel       guests on an emulated machine with NVMe controllers";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(code) => code,
        Err(stop) => {
            eprintln!("xtask: {stop}");
            ExitCode::from(2)
        }
    }
}

fn dispatch(args: &[String]) -> Result<ExitCode, Stop> {
    let place = Place::find()?;
    let (verb, rest) = match args.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => ("help", args),
    };
    match verb {
        "test" => suite::run(&place, &suite::Options::parse(rest)?),
        "tidy" => tidy::run(&place),
        "demo" => demo(&place, rest),
        "bench" => bench(&place, rest),
        "sim" => sim(&place, rest),
        "fuzz" => fuzz::run(&place, rest),
        "python" => python::run(&place, rest),
        "kernels" => kernels::run(&place, rest),
        "install" => install::run(&place, rest),
        "interop" => interop::run(&place, rest),
        "cufile" => cufile::run(&place, rest),
        "peers" => peers::run(&place),
        "vm" => vm::run(&place, rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        other => Err(Stop::new(format!("unknown command {other}"), "cargo xtask help lists the commands")),
    }
}

/// Limit of the commands that a developer starts and watches, in hours; it exists so that no wait is endless.
const WATCHED_LIMIT: Duration = Duration::from_secs(6 * 3600);

fn demo(place: &Place, rest: &[String]) -> Result<ExitCode, Stop> {
    let args: Vec<String> = std::iter::once("demo".to_string()).chain(rest.iter().cloned()).collect();
    run_built(place, "straightway", &args)
}

fn bench(place: &Place, rest: &[String]) -> Result<ExitCode, Stop> {
    // With those that read it: what is not measured is not built.
    let names = ["all", "c-call", "cufile", "gpu"];
    let mut args = rest.to_vec();
    let smoke =
        rest.windows(2).any(|pair| pair == ["--size", "smoke"]) || rest.iter().any(|word| word == "--size=smoke");
    if rest.iter().any(|word| names.contains(&word.as_str()))
        && !rest.iter().any(|word| word.starts_with("--libraries"))
    {
        let folder = if smoke { cufile::build_for_tests(place)? } else { install::build_all(place)? };
        args.push(format!("--libraries={}", folder.display()));
    }
    if place.profile != Profile::Release && !smoke {
        let variable = Profile::VARIABLE;
        return Err(Stop::new(
            format!("{variable} is set: rates are those of other programs than users have"),
            format!("unset {variable}"),
        ));
    }
    run_built(place, "straightway-benches", &args)
}

/// Builds a program of the workspace optimised and runs it.
fn run_built(place: &Place, name: &str, args: &[String]) -> Result<ExitCode, Stop> {
    let binary = place.build(name, WATCHED_LIMIT)?;
    Ok(exit_code(proc::Job::program(place, &binary, args).limit(WATCHED_LIMIT).watch()?))
}

fn sim(place: &Place, rest: &[String]) -> Result<ExitCode, Stop> {
    let mut seeds = None;
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--mutants" => {
                let which = match (words.next().map(String::as_str), words.next()) {
                    (None, _) => mutants::Which::All,
                    (Some("--record"), None) => mutants::Which::Recorded,
                    (Some(name), None) if !name.starts_with('-') => mutants::Which::Only(name),
                    _ => {
                        let remedy = "write --mutants, --mutants NAME or --mutants --record";
                        return Err(Stop::new("--mutants takes one word at most", remedy));
                    }
                };
                return mutants::run(place, which);
            }
            "--seeds" => {
                let text = words.next().map(String::as_str).unwrap_or_default();
                let count: u64 = text
                    .parse()
                    .map_err(|_| Stop::new(format!("--seeds wants a number, got {text:?}"), "write --seeds 1000"))?;
                seeds = Some(count);
            }
            other => return Err(Stop::new(format!("sim does not know {other}"), "cargo xtask help lists options")),
        }
    }
    let mut job = proc::Job::cargo(place, &mutants::SEED_SUITE.map(String::from)).limit(WATCHED_LIMIT);
    if let Some(count) = seeds {
        job = job.env(mutants::SEEDS_VARIABLE, count.to_string());
    }
    Ok(exit_code(job.watch()?))
}

/// Passes a child's exit status on; what does not fit into a byte becomes 1.
fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
