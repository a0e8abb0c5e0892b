//! Suites and tests as data, and how a test ends.

use std::fmt;

use crate::context::Context;

/// Tests of one subject, run in order.
#[derive(Debug)]
pub struct Suite {
    /// A row of the host's table names it.
    pub name: &'static str,
    pub tests: &'static [Test],
}

/// One test.
#[derive(Debug)]
pub struct Test {
    /// Unique in its suite; `SUITE.NAME` is the test's full name.
    pub name: &'static str,
    /// Completes "this test shows that …".
    pub why: &'static str,
    /// After so many seconds it is killed and has failed.
    pub limit_s: u64,
    /// 1, or 2 for what is looked at after a power cut.
    pub phase: u32,
    pub harm: Harm,
    pub needs: Needs,
    pub run: fn(&Context) -> Verdict,
}

/// What a test does to the devices of its roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// It reads, and leaves each device with the driver that has it.
    Nothing,
    /// It writes to a device, resets it, or takes it from its driver.
    Device,
}

/// Where a test can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Any device that can play the role.
    Devices,
    /// The bed: its host does something, or the test expects sizes, serials or programs that only its guests have.
    Bed,
}

/// Limit of a test that names none. Tests take milliseconds; an emulated machine on loaded cores takes its time.
const LIMIT_S: u64 = 30;

impl Test {
    pub const fn new(name: &'static str, why: &'static str, run: fn(&Context) -> Verdict) -> Test {
        Test { name, why, limit_s: LIMIT_S, phase: 1, harm: Harm::Device, needs: Needs::Devices, run }
    }

    pub const fn limit_s(self, limit_s: u64) -> Test {
        Test { limit_s, ..self }
    }

    /// Marks a test that is known to leave devices as they are. Without the mark it counts as destructive.
    pub const fn harmless(self) -> Test {
        Test { harm: Harm::Nothing, ..self }
    }

    /// Marks a test that means nothing outside of the bed.
    pub const fn bed_only(self) -> Test {
        Test { needs: Needs::Bed, ..self }
    }

    /// Runs after a power cut only.
    pub const fn after_power_cut(self) -> Test {
        Test { phase: 2, ..self }
    }
}

/// What a test gives: passed, or why not.
pub type Verdict = Result<(), Stop>;

/// Why a test did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It could not be run here, for this reason. Never for something that should have worked.
    Skip(String),
    Fail(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Skip(reason) => write!(f, "skipped: {reason}"),
            Stop::Fail(reason) => f.write_str(reason),
        }
    }
}

/// Any error is a failure, with its causes.
impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Stop {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Stop::Fail(text)
    }
}

/// Ends a test as failed.
pub fn fail<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Fail(reason.into()))
}

/// Ends a test as not possible here.
pub fn skip<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Skip(reason.into()))
}

/// Fails unless the two are equal; `what` names what was looked at.
pub fn same<T: PartialEq + fmt::Debug>(what: &str, got: &T, wanted: &T) -> Verdict {
    if got == wanted { Ok(()) } else { fail(format!("{what}: {got:?}, expected {wanted:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_causes() {
        let read = || -> Verdict {
            std::fs::read("/no/such/file")?;
            Ok(())
        };
        assert!(matches!(read(), Err(Stop::Fail(text)) if text.contains("No such file")));
        assert!(same("n", &1, &2).is_err() && same("n", &1, &1).is_ok());
    }

    #[test]
    fn names_are_unique_and_fit_a_line() {
        let mut seen = std::collections::BTreeSet::new();
        for suite in crate::suites::all() {
            for test in suite.tests {
                assert!(seen.insert(format!("{}.{}", suite.name, test.name)), "{} twice", test.name);
                assert!(!test.name.contains([' ', '.', ',']) && !test.why.is_empty(), "{}", test.name);
                assert!(test.limit_s > 0 && (1..=2).contains(&test.phase), "{}", test.name);
            }
        }
    }
}
