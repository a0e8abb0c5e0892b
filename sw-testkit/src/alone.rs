//! A test in a process of its own, for what is counted by process: page faults, threads, descriptors, memory.
//!
//! ```text
//!  cargo test ─► test program ─► the test: in_own_process(..) is false ─► same program, `--exact`, this test only
//!                                                                           └► is true: the test's body runs here
//! ```

use std::{env, fmt, process::Command};

/// Says to a test program which test it was started for.
const VARIABLE: &str = "SW_TESTKIT_ALONE";

/// Why the other process could not do its part, with what it printed.
pub struct NotPassed(String);

// What `unwrap` prints: lines as the child wrote them.
impl fmt::Debug for NotPassed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Whether this process runs no test but `test`, its path as `--list` shows it. Where it does not, a process that does is
/// run to its end first; its test has passed then, and the caller has nothing left to do.
///
/// # Errors
/// The other process could not be started, failed, or knows no such test.
#[expect(clippy::disallowed_methods, reason = "how a process tells its child what it is for")]
pub fn in_own_process(test: &str) -> Result<bool, NotPassed> {
    if env::var(VARIABLE).is_ok_and(|it| it == test) {
        return Ok(true);
    }
    let failed = |error: std::io::Error| NotPassed(format!("cannot run {test} in a process of its own: {error}"));
    let mut command = Command::new(env::current_exe().map_err(failed)?);
    command.args([test, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"]).env(VARIABLE, test);
    let output = command.output().map_err(failed)?;
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(NotPassed(format!("in a process of its own, {}:\n{said}{complained}", output.status)));
    }
    if !said.contains("test result: ok. 1 passed") {
        return Err(NotPassed(format!("this program has no test {test}:\n{said}")));
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_once_in_another_process() {
        if in_own_process("alone::tests::it_runs_once_in_another_process").unwrap() {
            println!("in {}", std::process::id());
        }
    }

    #[test]
    #[ignore = "run by the next test only, which wants it to fail"]
    fn fails() {
        assert!(!in_own_process("alone::tests::fails").unwrap(), "on purpose");
    }

    #[test]
    fn a_failure_there_and_a_test_that_is_not_there_are_errors() {
        let told = format!("{:?}", in_own_process("alone::tests::fails").err().unwrap());
        assert!(told.contains("on purpose"), "{told}");
        let told = format!("{:?}", in_own_process("alone::tests::no_such_test").err().unwrap());
        assert!(told.contains("no test"), "{told}");
    }
}
