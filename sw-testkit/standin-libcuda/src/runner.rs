//! Runs test cases against the stand-in driver, each in a process of its own.
//!
//! The loader reads `LD_LIBRARY_PATH` at process start, and a driver is loaded once in a process: so the parent installs
//! the stand-in into a folder and starts itself once for each case, with the settings that the case names. A case ends
//! with nothing alive in the stand-in, no copy out of bounds, and no panic caught at its edge.
//!
//! A test target that uses it says `harness = false` in its manifest, and its `main` is `runner::main("name", cases())`.
//! `cargo test -p CRATE --test TARGET -- NAME` runs the cases whose name contains NAME.
#![expect(clippy::disallowed_methods, reason = "a test runner of its own: it reads its environment and keeps time")]

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{self, Control};

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

/// What must hold in the stand-in at the end of a case.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing is alive.
    Clean,
    /// What a lost device may still touch is kept for ever; nothing was freed under a copy.
    Kept,
}

/// Among a case's settings: the stand-in runs kernels, as code of this machine. Without a compiler for it the case is skipped.
pub const KERNELS: (&str, &str) = ("STANDIN_KERNELS", "built for the case");

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Says what holds.
    pub name: &'static str,
    /// What the child finds.
    pub library: Library,
    /// Settings of the stand-in, as environment variables.
    pub settings: &'static [(&'static str, &'static str)],
    /// What is left at the end.
    pub end: End,
    /// What the child does.
    pub run: fn() -> Outcome,
}

/// A case with the stand-in in mode lazy: copies run only when asked for, so an order left to luck shows.
pub const fn case(name: &'static str, run: fn() -> Outcome) -> Case {
    Case { name, library: Library::Standin, settings: &[("STANDIN_MODE", "lazy")], end: End::Clean, run }
}

/// Variable that tells a child which case it is.
const CHILD: &str = "STANDIN_TEST_CASE";
/// How long one case may take.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

/// The whole of a test target's `main`. `suite` names the folder of its installed libraries.
pub fn main(suite: &str, cases: &[Case]) -> ExitCode {
    if let Ok(name) = std::env::var(CHILD) {
        return child(&name, cases);
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        cases.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    let wanted = words.iter().find(|word| !word.starts_with('-')).cloned().unwrap_or_default();
    let root = std::env::temp_dir().join(format!("{suite}-{}", std::process::id()));
    let (mut passed, mut failed) = (0, Vec::new());
    for case in cases.iter().filter(|case| case.name.contains(&wanted)) {
        match parent(case, &root) {
            Ok(said) if said.starts_with("skip") => println!("{said}"),
            Ok(said) => {
                println!("ok   {}{}", case.name, if said.is_empty() { String::new() } else { format!(": {said}") });
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

/// Installs what the case wants, starts the child, waits for it with a limit; answers what it said.
fn parent(case: &Case, root: &Path) -> Result<String, String> {
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
    // Files, not pipes: a child that says much must not wait for a reader.
    let (said, warned) = (dir.join("stdout"), dir.join("stderr"));
    let file = |path: &Path| std::fs::File::create(path).map_err(|e| format!("{}: {e}", path.display()));
    let mut command = Command::new(program);
    command.env(CHILD, case.name).env("LD_LIBRARY_PATH", &dir).stdin(Stdio::null());
    command.stdout(file(&said)?).stderr(file(&warned)?).envs(case.settings.iter().copied());
    if case.settings.contains(&KERNELS) {
        match harness::kernel_code()? {
            Some(code) => command.env(KERNELS.0, code),
            None => return Ok(format!("skip: {}: there is no g++ to compile kernels with; install g++", case.name)),
        };
    }
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let deadline = Instant::now() + CASE_TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        if Instant::now() > deadline {
            let _killed = child.kill().and_then(|()| child.wait());
            let text = [said, warned].map(|path| std::fs::read_to_string(path).unwrap_or_default()).concat();
            return Err(format!("still running after {CASE_TIMEOUT:?}\n{text}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = [said, warned].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    if status.success() {
        return Ok(text[0].trim().replace('\n', "; "));
    }
    Err(format!("{status}\n{}", text.concat()))
}

fn child(name: &str, cases: &[Case]) -> ExitCode {
    let Some(case) = cases.iter().find(|case| case.name == name) else { return ExitCode::FAILURE };
    let outcome = (case.run)().and_then(|()| match case.library {
        Library::Standin => nothing_left(case.end),
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
fn nothing_left(end: End) -> Outcome {
    let control = Control::open()?;
    let always = ["canaries_hurt", "panics", "freed_in_flight"].iter();
    let clean = ["live", "pending"].iter().filter(|_| end == End::Clean);
    for gauge in always.chain(clean) {
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
///
/// # Errors
/// A sentence with both.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Outcome {
    if got == want { Ok(()) } else { Err(format!("{what}: got {got:?}, want {want:?}")) }
}

/// Fails the case with a sentence unless it holds.
///
/// # Errors
/// The sentence.
#[expect(clippy::fn_params_excessive_bools, reason = "an assertion takes the truth as it is")]
pub fn holds(what: &str, yes: bool) -> Outcome {
    if yes { Ok(()) } else { Err(format!("does not hold: {what}")) }
}

/// Any error as the reason of a failure.
pub fn text(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}
