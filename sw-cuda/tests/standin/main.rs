//! Runs the real code of this crate against the project's stand-in driver, each case in a process of its own.
//!
//! The loader reads `LD_LIBRARY_PATH` at process start, and a driver is loaded once in a process: so the parent installs
//! the stand-in into a folder and starts itself once for each case, with the settings that the case names. A case ends
//! with nothing alive in the stand-in, no copy out of bounds, and no panic caught at its edge.
//!
//! `cargo test -p sw-cuda --test standin -- NAME` runs the cases whose name contains NAME.
// UNSAFETY: cases play callers of unsafe constructors; each file says which.
#![expect(unsafe_code, reason = "cases act as the callers of unsafe constructors, with memory that they allocated")]
#![expect(clippy::disallowed_methods, reason = "a test runner of its own: it reads its environment and keeps time")]

mod copies;
mod faults;
mod memory;
mod probes;

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use standin_libcuda::harness::{self, Control};

/// What a case answers: `Err` is the reason of its failure.
pub type Outcome = Result<(), String>;

/// Where the child finds its driver.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// The stand-in.
    Standin,
    /// The stand-in without one of its exports.
    Without(&'static str),
    /// A file of that name that is no library.
    Broken,
    /// Nothing.
    Absent,
}

/// One case.
pub struct Case {
    /// Says what holds.
    pub name: &'static str,
    /// What the child finds.
    pub library: Library,
    /// Settings of the stand-in, as environment variables.
    pub settings: &'static [(&'static str, &'static str)],
    /// What the child does.
    pub run: fn() -> Outcome,
}

/// A case with the stand-in in mode lazy: copies run only when asked for, so an order left to luck shows.
pub const fn case(name: &'static str, run: fn() -> Outcome) -> Case {
    Case { name, library: Library::Standin, settings: &[("STANDIN_MODE", "lazy")], run }
}

/// Variable that tells a child which case it is.
const CHILD: &str = "SW_CUDA_TEST_CASE";
/// How long one case may take.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

fn cases() -> Vec<Case> {
    [probes::cases(), memory::cases(), copies::cases(), faults::cases()].into_iter().flatten().collect()
}

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(CHILD) {
        return child(&name);
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        cases().iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    let wanted = words.iter().find(|word| !word.starts_with('-')).cloned().unwrap_or_default();
    let root = std::env::temp_dir().join(format!("sw-cuda-standin-{}", std::process::id()));
    let (mut passed, mut failed) = (0, Vec::new());
    for case in cases().iter().filter(|case| case.name.contains(&wanted)) {
        match parent(case, &root) {
            Ok(()) => {
                println!("ok   {}", case.name);
                passed += 1;
            }
            Err(reason) => {
                println!("FAIL {}: {reason}", case.name);
                failed.push(case.name);
            }
        }
    }
    let _best_effort = std::fs::remove_dir_all(&root);
    println!("{passed} passed, {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Installs what the case wants, starts the child, waits for it with a limit.
fn parent(case: &Case, root: &std::path::Path) -> Outcome {
    let dir = root.join(case.name);
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    match case.library {
        Library::Standin => harness::install(&dir, &[])?,
        Library::Without(name) => harness::install(&dir, &[name])?,
        Library::Broken => {
            for name in harness::NAMES {
                std::fs::write(dir.join(name), "not a library").map_err(|e| e.to_string())?;
            }
        }
        Library::Absent => {}
    }
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(program);
    command.env(CHILD, case.name).env("LD_LIBRARY_PATH", &dir).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.envs(case.settings.iter().copied());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let deadline = Instant::now() + CASE_TIMEOUT;
    loop {
        if child.try_wait().map_err(|e| e.to_string())?.is_some() {
            break;
        }
        if Instant::now() > deadline {
            let _killed = child.kill();
            return Err(format!("still running after {CASE_TIMEOUT:?}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&text)))
}

fn child(name: &str) -> ExitCode {
    let all = cases();
    let Some(case) = all.iter().find(|case| case.name == name) else { return ExitCode::FAILURE };
    let outcome = (case.run)().and_then(|()| match case.library {
        Library::Standin => nothing_left(),
        _ => Ok(()),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("{reason}");
            ExitCode::FAILURE
        }
    }
}

/// What must hold after every case, faults or not.
fn nothing_left() -> Outcome {
    let control = Control::open()?;
    for gauge in ["live", "pending", "canaries_hurt", "panics", "freed_in_flight"] {
        let value = control.stat(gauge);
        if value != 0 {
            let detail: Vec<String> = ["device", "managed", "host", "registered", "streams", "events", "retains"]
                .iter()
                .map(|part| format!("{part} {}", control.stat(&format!("live.{part}"))))
                .collect();
            return Err(format!("{gauge} is {value} at the end, not 0 ({})", detail.join(", ")));
        }
    }
    Ok(())
}

/// Fails the case with the two values unless they are equal.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Outcome {
    if got == want { Ok(()) } else { Err(format!("{what}: got {got:?}, want {want:?}")) }
}

/// Fails the case with a sentence unless it holds.
#[expect(clippy::fn_params_excessive_bools, reason = "an assertion takes the truth as it is")]
pub fn holds(what: &str, yes: bool) -> Outcome {
    if yes { Ok(()) } else { Err(format!("does not hold: {what}")) }
}

/// Any error as the reason of a failure.
pub fn text(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

/// The first device's primary context.
pub fn first_context() -> Result<sw_cuda::Context, String> {
    let driver = sw_cuda::Driver::load().map_err(text)?;
    sw_cuda::Context::primary(&driver.device(0).map_err(text)?).map_err(text)
}
