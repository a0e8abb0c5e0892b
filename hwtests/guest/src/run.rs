//! Runs suites: a process for each test, with a limit, and one line for each end.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::context::{Context, Words};
use crate::kernel_log::KernelLog;
use crate::registry::{Stop, Suite, Test, Verdict};
use crate::suites;
use crate::wire::Wire;

/// Where a test leaves its end.
const RESULT: &str = "/tmp/sw-result";
/// Between two looks at a running test.
const POLL: Duration = Duration::from_millis(5);

/// `run`: the suites that the kernel's command line names.
pub fn all() -> ExitCode {
    let words = Words::read();
    let mut wire = Wire::open(words.in_bed());
    let mut failed = false;
    for name in words.suites() {
        wire.send(&format!("SW-BEGIN {name}"));
        match suites::all().iter().find(|suite| suite.name == name) {
            Some(suite) => failed |= !run_suite(suite, &words, &mut wire),
            None => {
                wire.send(&format!("SW-TEST {name}.exists fail 0 there is no such suite"));
                failed = true;
            }
        }
    }
    for line in KernelLog::from_start().lines() {
        wire.send(&format!("SW-LOG {line}"));
    }
    let status = u8::from(failed);
    wire.send(&format!("SW-END {status} {:.2}", uptime_s()));
    ExitCode::from(status)
}

fn run_suite(suite: &Suite, words: &Words, wire: &mut Wire) -> bool {
    let mut good = true;
    for test in suite.tests.iter().filter(|test| test.phase == words.phase()) {
        let name = format!("{}.{}", suite.name, test.name);
        if words.get("only").is_some_and(|only| !name.contains(only)) {
            continue;
        }
        for _ in 0..words.repeat() {
            good &= run_test(&name, test, wire);
        }
    }
    good
}

fn run_test(name: &str, test: &Test, wire: &mut Wire) -> bool {
    println!("--- {name}");
    let start = Instant::now();
    let verdict = in_process(name, test, Path::new(RESULT), &[]);
    let seconds = start.elapsed().as_secs_f64();
    let (word, reason) = match &verdict {
        Ok(()) => ("ok", ""),
        Err(Stop::Skip(reason)) => ("skip", reason.as_str()),
        Err(Stop::Fail(reason)) => ("fail", reason.as_str()),
    };
    println!("--- {name} {word} {reason}");
    wire.send(&format!("SW-TEST {name} {word} {seconds:.2} {reason}"));
    word != "fail"
}

/// Runs a test in a process of its own, with `more` arguments, and gives its end, which it leaves in the file `result`.
/// What it prints is for people.
pub fn in_process(name: &str, test: &Test, result: &Path, more: &[String]) -> Verdict {
    drop(std::fs::remove_file(result));
    let mut command = Command::new("/proc/self/exe");
    command.args(["test", name]).arg(result).args(more).stdin(Stdio::null());
    if !more.is_empty() {
        // Stdout may carry a record.
        command.stdout(std::io::stderr());
    }
    let child = command.spawn();
    let mut child = child.map_err(|error| Stop::Fail(format!("cannot start a process ({error})")))?;
    let ended = wait(&mut child, Duration::from_secs(test.limit_s));
    match (ended, std::fs::read_to_string(result)) {
        (Some(_), Ok(text)) => parse_result(&text),
        (Some(status), Err(_)) => Err(Stop::Fail(format!("the test ended without a result ({status})"))),
        (None, _) => Err(Stop::Fail(format!("over its {} s, killed", test.limit_s))),
    }
}

fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(POLL);
    }
    drop(child.kill());
    drop(child.wait());
    None
}

/// `test NAME FILE`: runs it here and leaves its end in the file. `context` gives what the test is given.
pub fn one(name: &str, file: &Path, context: impl FnOnce(&Test) -> Context) -> ExitCode {
    let test = name.split_once('.').and_then(|(suite, test)| {
        suites::all().iter().find(|other| other.name == suite)?.tests.iter().find(|other| other.name == test)
    });
    let Some(test) = test else {
        eprintln!("there is no test {name}");
        return ExitCode::from(2);
    };
    let path = file.to_path_buf();
    std::panic::set_hook(Box::new(move |info| {
        eprintln!("{info}");
        drop(std::fs::write(&path, format!("fail {info}")));
    }));
    let verdict = (test.run)(&context(test));
    if let Err(error) = std::fs::write(file, result_text(&verdict)) {
        eprintln!("{}: {error}", file.display());
    }
    ExitCode::SUCCESS
}

fn result_text(verdict: &Verdict) -> String {
    match verdict {
        Ok(()) => "ok".to_string(),
        Err(Stop::Skip(reason)) => format!("skip {reason}"),
        Err(Stop::Fail(reason)) => format!("fail {reason}"),
    }
}

fn parse_result(text: &str) -> Verdict {
    match text.split_once(' ').unwrap_or((text, "")) {
        ("ok", _) => Ok(()),
        ("skip", reason) => Err(Stop::Skip(reason.to_string())),
        ("fail", reason) => Err(Stop::Fail(reason.to_string())),
        _ => Err(Stop::Fail(format!("the test left {text:?}"))),
    }
}

fn uptime_s() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split_whitespace().next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_survives_its_file() {
        for verdict in [Ok(()), Err(Stop::Skip("no peer here".into())), Err(Stop::Fail("a b".into()))] {
            assert_eq!(parse_result(&result_text(&verdict)), verdict);
        }
        assert!(matches!(parse_result(""), Err(Stop::Fail(_))));
    }
}
