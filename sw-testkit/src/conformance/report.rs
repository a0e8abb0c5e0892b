//! What a suite found: every case with pass, skip and its reason, or failure and its evidence.

use core::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a case ended before its last line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The bed has not what the case needs; the text says what.
    Skip(String),
    /// The contract is broken; the text is the evidence.
    Fail(String),
}

/// What a case returns.
pub type CaseResult = Result<(), End>;

/// A skip with its reason.
pub fn skip<T>(reason: impl Into<String>) -> Result<T, End> {
    Err(End::Skip(reason.into()))
}

/// A failure with its evidence.
pub fn fail<T>(evidence: impl Into<String>) -> Result<T, End> {
    Err(End::Fail(evidence.into()))
}

/// A named case of a suite whose cases are functions of type `F`.
pub struct Case<F> {
    /// A sentence in snake case.
    pub name: &'static str,
    /// Runs it on a bed.
    pub run: F,
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ran and held.
    Passed,
    /// It did not run; why.
    Skipped(String),
    /// It ran and did not hold; the evidence.
    Failed(String),
}

/// One case's result.
#[derive(Clone, Debug)]
pub struct Row {
    /// The case.
    pub case: &'static str,
    /// How it ended.
    pub verdict: Verdict,
}

/// All results of one suite on one bed.
#[derive(Clone, Debug)]
pub struct Report {
    /// The suite.
    pub suite: &'static str,
    /// The bed, as its test names it.
    pub bed: String,
    /// One row a case, in the suite's order.
    pub rows: Vec<Row>,
}

impl Report {
    /// Runs all cases. A panic in a case is its failure; the next ones still run.
    pub fn of<F>(
        suite: &'static str,
        bed_name: String,
        cases: &[Case<F>],
        mut run: impl FnMut(&F) -> CaseResult,
    ) -> Report {
        let mut rows = Vec::with_capacity(cases.len());
        for case in cases {
            let ended = catch_unwind(AssertUnwindSafe(|| run(&case.run)));
            let verdict = match ended {
                Ok(Ok(())) => Verdict::Passed,
                Ok(Err(End::Skip(reason))) => Verdict::Skipped(reason),
                Ok(Err(End::Fail(evidence))) => Verdict::Failed(evidence),
                Err(panic) => Verdict::Failed(format!("panicked: {}", panic_text(panic.as_ref()))),
            };
            rows.push(Row { case: case.name, verdict });
        }
        Report { suite, bed: bed_name, rows }
    }

    /// Cases that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| matches!(row.verdict, Verdict::Failed(_)))
    }

    /// Names of the cases that were skipped.
    pub fn skipped(&self) -> impl Iterator<Item = &'static str> {
        self.rows.iter().filter(|row| matches!(row.verdict, Verdict::Skipped(_))).map(|row| row.case)
    }

    /// Prints the report; then all must have passed but those in `may_skip`.
    ///
    /// # Panics
    /// If a case failed, or one was skipped that is not in `may_skip`: a skip of something promised is a failure.
    pub fn assert_green(&self, may_skip: &[&str]) {
        println!("{self}");
        let failed: Vec<_> = self.failed().map(|row| row.case).collect();
        assert!(failed.is_empty(), "{} on {}: failed {failed:?}\n{self}", self.suite, self.bed);
        let surprising: Vec<_> = self.skipped().filter(|case| !may_skip.contains(case)).collect();
        assert!(surprising.is_empty(), "{} on {}: skipped {surprising:?}\n{self}", self.suite, self.bed);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "conformance {} on {}", self.suite, self.bed)?;
        for row in &self.rows {
            match &row.verdict {
                Verdict::Passed => writeln!(f, "  pass  {}", row.case)?,
                // With the bed: such lines are collected far from this heading.
                Verdict::Skipped(reason) => writeln!(f, "  skip  {} ({}: {reason})", row.case, self.bed)?,
                Verdict::Failed(evidence) => writeln!(f, "  FAIL  {} ({evidence})", row.case)?,
            }
        }
        Ok(())
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "with a value that is no text".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_and_an_unlisted_skip_are_failures() {
        let cases: [Case<fn() -> CaseResult>; 3] = [
            Case { name: "passes", run: || Ok(()) },
            Case { name: "panics", run: || panic!("boom") },
            Case { name: "skips", run: || skip("no disk") },
        ];
        let report = Report::of("suite", "bed".into(), &cases, |run| run());
        assert_eq!(report.failed().map(|row| row.case).collect::<Vec<_>>(), ["panics"]);
        assert_eq!(report.skipped().collect::<Vec<_>>(), ["skips"]);
        assert!(report.to_string().contains("skip  skips (bed: no disk)"));
        let quiet = Report { rows: report.rows.into_iter().filter(|row| row.case != "panics").collect(), ..report };
        quiet.assert_green(&["skips"]);
        assert!(catch_unwind(|| quiet.assert_green(&[])).is_err());
    }
}
