//! `cargo xtask test`: runs the rows of [`crate::steps`] in order and tells what happened to each.
//!
//! A step passes, fails, or is skipped with a reason; what did not run because an earlier step failed is skipped too.
//! The closing line counts steps. Tests inside a step that skip print a line that starts with `skip`; those lines are
//! collected and shown at the end, so that a skip is never mistaken for a pass.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::disk::Room;
use crate::needs::Machine;
use crate::proc::{Echo, Ended, Job, Outcome};
use crate::steps::{Program, STEPS, Skips, Step, Turn};
use crate::{Place, Profile, Stop};

/// Skip lines shown at the end; the rest is counted.
const SKIPS_SHOWN_MAX: usize = 200;
/// Lines of a failed step shown once more at the end: those that name a failure, with what follows each, and its last.
const FAILURE_LINES_MAX: usize = 60;
const LINES_AFTER_A_FAILURE: usize = 4;
const LAST_LINES: usize = 12;

/// What the command line asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Names of the steps to run; all if empty.
    only: Vec<String>,
    list: bool,
    keep_going: bool,
}

impl Options {
    /// # Errors
    /// Unknown options and step names.
    pub fn parse(args: &[String]) -> Result<Options, Stop> {
        let mut options = Options::default();
        let mut words = args.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--list" => options.list = true,
                "--keep-going" => options.keep_going = true,
                "--only" => {
                    let name = words.next().map(String::as_str).unwrap_or_default();
                    if !STEPS.iter().any(|step| step.name == name) {
                        let remedy = "cargo xtask test --list shows the steps";
                        return Err(Stop::new(format!("no step is called {name:?}"), remedy));
                    }
                    options.only.push(name.to_string());
                }
                other => {
                    return Err(Stop::new(format!("test does not know {other}"), "cargo xtask help lists the options"));
                }
            }
        }
        Ok(options)
    }

    fn wants(&self, step: &Step) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == step.name)
    }
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Passed,
    Failed(String),
    Skipped(String),
}

struct Record {
    name: &'static str,
    fate: Fate,
    elapsed: Duration,
    tests: Tests,
    /// What a failed step said of it.
    said: Vec<String>,
}

/// Runs the suite.
pub fn run(place: &Place, options: &Options) -> Result<ExitCode, Stop> {
    let chosen: Vec<&'static Step> = STEPS.iter().filter(|step| options.wants(step)).collect();
    if options.list {
        for step in chosen {
            println!("{:<14} {}\n{:<14} {}", step.name, step.why, "", step.shown());
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(warning) = Room::now(place).warning() {
        println!("note: {warning}");
    }
    let machine = Machine::new(place);
    if options.only.is_empty() {
        machine.begin_python();
    }
    Ok(report(&run_all(place, &machine, chosen, options)))
}

/// What became of each, in the order in which they ended.
fn run_all(place: &Place, machine: &Machine<'_>, chosen: Vec<&'static Step>, options: &Options) -> Vec<Record> {
    std::thread::scope(|scope| {
        let mut records: Vec<Record> = Vec::new();
        let mut beside = None;
        for step in chosen {
            // One at a time: more would take the processors from the step whose turn it is.
            if step.turn == Turn::Beside || beside.as_ref().is_some_and(std::thread::ScopedJoinHandle::is_finished) {
                records.extend(join(beside.take()));
            }
            let done = match start(place, machine, step, first_failed(&records).filter(|_| !options.keep_going)) {
                Err(record) => Some(*record),
                Ok(started) if step.turn == Turn::Alone => Some(started.finish()),
                Ok(started) => {
                    beside = Some(scope.spawn(|| started.finish()));
                    None
                }
            };
            records.extend(done);
        }
        records.extend(join(beside));
        records
    })
}

fn first_failed(records: &[Record]) -> Option<&'static str> {
    records.iter().find(|record| matches!(record.fate, Fate::Failed(_))).map(|record| record.name)
}

fn join(beside: Option<std::thread::ScopedJoinHandle<'_, Record>>) -> Option<Record> {
    // A panic in there is one here.
    beside.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// A step whose needs are met.
struct Started<'a> {
    place: &'a Place,
    step: &'static Step,
    at: Instant,
}

/// Meets the needs of a step. Err: it will not run.
fn start<'a>(
    place: &'a Place,
    machine: &Machine<'_>,
    step: &'static Step,
    failed: Option<&'static str>,
) -> Result<Started<'a>, Box<Record>> {
    let at = Instant::now();
    let skipped = |reason| {
        Box::new(Record {
            name: step.name,
            fate: Fate::Skipped(reason),
            elapsed: at.elapsed(),
            tests: Tests::default(),
            said: Vec::new(),
        })
    };
    if let Some(earlier) = failed {
        return Err(skipped(format!("not run, {earlier} failed before it")));
    }
    let beside = if step.turn == Turn::Beside { " (beside the next ones)" } else { "" };
    println!("\n==> {}{beside}: {}\n    {}", step.name, step.why, step.shown());
    for need in step.needs {
        if let Err(reason) = machine.meet(*need) {
            println!("==> {} skipped: {reason}", step.name);
            return Err(skipped(reason));
        }
    }
    Ok(Started { place, step, at })
}

impl Started<'_> {
    fn finish(self) -> Record {
        let Started { place, step, at } = self;
        let job = step.job(place).map(|job| {
            let job = job.env(Profile::VARIABLE, Profile::Quick.name());
            job.limit(Duration::from_secs(step.limit_s))
        });
        // Stderr too, as that is where a program says what stopped it.
        let outcome = job.map(Job::merge_stderr).and_then(|job| match step.turn {
            Turn::Alone => job.run(),
            Turn::Beside => {
                let outcome = job.echo(Echo::Hidden).run()?;
                // In one piece, so that it does not mix with the step whose turn it is.
                println!("\n==> what {} said:\n{}", step.name, outcome.lines.join("\n"));
                Ok(outcome)
            }
        });
        let (fate, tests, said) = match outcome {
            Ok(outcome) => {
                let tests = Tests::read(&outcome.lines);
                let fate = fate_of(&outcome, &tests, step);
                let said = if fate == Fate::Passed { Vec::new() } else { failure_lines(&outcome.lines) };
                (fate, tests, said)
            }
            Err(stop) => (Fate::Failed(stop.to_string()), Tests::default(), Vec::new()),
        };
        let word = match &fate {
            Fate::Passed => "passed".to_string(),
            Fate::Failed(reason) => format!("FAILED ({reason})"),
            Fate::Skipped(reason) => format!("skipped ({reason})"),
        };
        println!("==> {} {word} in {:.1} s; {}", step.name, at.elapsed().as_secs_f64(), Room::now(place).shown());
        Record { name: step.name, fate, elapsed: at.elapsed(), tests, said }
    }
}

fn fate_of(outcome: &Outcome, tests: &Tests, step: &Step) -> Fate {
    match outcome.ended {
        Ended::Exit(0) if tests.passed < step.tests_min => {
            Fate::Failed(format!("{} tests passed, at least {} must", tests.passed, step.tests_min))
        }
        Ended::Exit(0) if step.skips == Skips::Refused && !tests.skips.is_empty() => {
            Fate::Failed(format!("a test skipped although the step's needs are met: {}", tests.skips.join(", ")))
        }
        Ended::Exit(0) => Fate::Passed,
        Ended::Exit(status) => Fate::Failed(format!("exit status {status}")),
        Ended::OverLimit => Fate::Failed(format!("over its budget of {} s, killed", step.limit_s)),
    }
}

/// What the lines of a step say about the tests inside it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tests {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Lines that start with `skip`.
    skips: Vec<String>,
}

impl Tests {
    fn read(lines: &[String]) -> Tests {
        let mut tests = Tests::default();
        for line in lines {
            let line = line.trim();
            if let Some(counts) = line.strip_prefix("test result: ") {
                tests.passed += count_before(counts, " passed");
                tests.failed += count_before(counts, " failed");
                tests.ignored += count_before(counts, " ignored");
            } else if let Some(counts) = pytest_counts(line) {
                tests.passed += count_before(counts, " passed");
                tests.failed += count_before(counts, " failed") + count_before(counts, " error");
            } else if line.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("skip")) {
                tests.skips.push(line.to_string());
            }
        }
        tests.skips.sort();
        tests.skips.dedup();
        tests
    }

    fn shown(&self) -> String {
        let mut parts = Vec::new();
        if self.passed + self.failed + self.ignored > 0 {
            parts.push(format!("{} tests passed", self.passed));
        }
        for (count, word) in [(self.failed, "failed"), (self.ignored, "ignored"), (self.skips.len() as u64, "skipped")]
        {
            if count > 0 {
                parts.push(format!("{count} {word}"));
            }
        }
        parts.join(", ")
    }
}

/// Tests that passed, by what their runners printed.
pub fn passed(lines: &[String]) -> u64 {
    Tests::read(lines).passed
}

/// The counts of pytest's closing line, as in `12 passed, 1 skipped in 0.52s`, with or without a ruler around it.
fn pytest_counts(line: &str) -> Option<&str> {
    let (counts, time) = line.trim_matches(['=', ' ']).split_once(" in ")?;
    let timed = time.starts_with(|c: char| c.is_ascii_digit()) && time.contains('s');
    let counted = [" passed", " failed", " error"].iter().any(|word| count_before(counts, word) > 0);
    (timed && counted).then_some(counts)
}

/// The number in front of `word`, as in `12 passed; 0 failed`.
fn count_before(text: &str, word: &str) -> u64 {
    let head = text.split(word).next().filter(|head| head.len() < text.len()).unwrap_or_default();
    head.rsplit([' ', ';']).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// The lines that say what failed: panics, failed tests of libtest and pytest, errors, with what follows each; and the last ones.
fn failure_lines(lines: &[String]) -> Vec<String> {
    let names_failure = |line: &String| {
        let line = line.trim_start();
        line.contains(" panicked at ")
            || line.ends_with("... FAILED")
            || line.starts_with("test result: FAILED")
            || ["FAILED", "MISSED", "ERROR", "error", "xtask: ", "E  "].iter().any(|start| line.starts_with(start))
    };
    let last = lines.len().saturating_sub(LAST_LINES);
    let mut shown = vec![false; lines.len()];
    for (index, _) in lines.iter().enumerate().filter(|(index, line)| *index >= last || names_failure(line)) {
        for mark in shown.iter_mut().skip(index).take(1 + LINES_AFTER_A_FAILURE) {
            *mark = true;
        }
    }
    let said: Vec<String> = lines.iter().zip(shown).filter(|(_, shown)| *shown).map(|(line, _)| line.clone()).collect();
    let first = said.len().saturating_sub(FAILURE_LINES_MAX);
    said.into_iter().skip(first).collect()
}

fn report(records: &[Record]) -> ExitCode {
    println!("\n{:<14} {:<8} {:>8}  note", "step", "result", "seconds");
    for record in records {
        let (word, reason) = match &record.fate {
            Fate::Passed => ("passed", ""),
            Fate::Failed(reason) => ("FAILED", reason.as_str()),
            Fate::Skipped(reason) => ("skipped", reason.as_str()),
        };
        let notes: Vec<String> =
            [reason.to_string(), record.tests.shown()].into_iter().filter(|note| !note.is_empty()).collect();
        println!("{:<14} {word:<8} {:>8.1}  {}", record.name, record.elapsed.as_secs_f64(), notes.join("; "));
    }
    let skips: Vec<(&str, &String)> =
        records.iter().flat_map(|record| record.tests.skips.iter().map(|line| (record.name, line))).collect();
    if !skips.is_empty() {
        println!("\nskipped inside steps:");
        for (name, line) in skips.iter().take(SKIPS_SHOWN_MAX) {
            println!("  {name}: {line}");
        }
        if skips.len() > SKIPS_SHOWN_MAX {
            println!("  and {} more", skips.len() - SKIPS_SHOWN_MAX);
        }
    }
    // Last, as whoever sees the end of a log only is to see why.
    for record in records.iter().filter(|record| !record.said.is_empty()) {
        println!("\n{} failed; it said:", record.name);
        for line in &record.said {
            println!("  {line}");
        }
    }
    let count = |wanted: fn(&Fate) -> bool| records.iter().filter(|record| wanted(&record.fate)).count();
    let failed = count(|fate| matches!(fate, Fate::Failed(_)));
    let skipped = count(|fate| matches!(fate, Fate::Skipped(_)));
    println!("\n{} passed, {failed} failed, {skipped} skipped", count(|fate| *fate == Fate::Passed));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Step {
    /// The command, as one would type it.
    fn shown(&self) -> String {
        let env: Vec<String> = self.env.iter().map(|(name, value)| format!("{name}={value:?} ")).collect();
        let program = match self.program {
            Program::Cargo => "cargo",
            Program::Xtask => "cargo xtask",
        };
        format!("{}{program} {}", env.concat(), self.args.join(" "))
    }

    fn job(&self, place: &Place) -> Result<Job, Stop> {
        let (target, root) = (place.target.display().to_string(), place.root.display().to_string());
        let filled = |text: &str| text.replace("{target}", &target).replace("{root}", &root);
        let args: Vec<String> = self.args.iter().map(|arg| filled(arg)).collect();
        let job = match self.program {
            Program::Cargo => Job::cargo(place, &args),

            Program::Xtask => {
                let own = std::env::current_exe().map_err(|error| {
                    Stop::new(format!("cannot find xtask's own program ({error})"), "run it through cargo xtask")
                })?;
                Job::program(place, &own, &args)
            }
        };
        Ok(self.env.iter().fold(job, |job, (name, value)| job.env(name, filled(value))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let options = Options::parse(&words("--only fmt --only tidy --keep-going")).unwrap();
        assert_eq!(options.only, ["fmt", "tidy"]);
        assert!(options.keep_going && !options.list);
        assert!(Options::parse(&words("--only no-such-step")).is_err());
        assert!(Options::parse(&words("--only")).is_err());
        assert!(Options::parse(&words("--fast")).is_err());
    }

    #[test]
    fn over_budget_a_bad_exit_and_too_few_tests_are_failures() {
        let outcome = |ended| Outcome { ended, elapsed: Duration::ZERO, lines: Vec::new() };
        let tests = |passed| Tests { passed, ..Tests::default() };
        let step = Step { tests_min: 3, limit_s: 9, ..STEPS[0] };
        assert_eq!(fate_of(&outcome(Ended::Exit(0)), &tests(3), &step), Fate::Passed);
        assert!(matches!(fate_of(&outcome(Ended::Exit(0)), &tests(2), &step), Fate::Failed(_)));
        assert!(matches!(fate_of(&outcome(Ended::Exit(101)), &tests(3), &step), Fate::Failed(_)));
        let over = fate_of(&outcome(Ended::OverLimit), &tests(3), &step);
        assert_eq!(over, Fate::Failed("over its budget of 9 s, killed".into()));
        let skipping = Tests { passed: 3, skips: vec!["skipped: no reason".into()], ..Tests::default() };
        let listed = Step { skips: Skips::Listed, ..step };
        let refused = Step { skips: Skips::Refused, ..step };
        assert_eq!(fate_of(&outcome(Ended::Exit(0)), &skipping, &listed), Fate::Passed);
        assert!(matches!(fate_of(&outcome(Ended::Exit(0)), &skipping, &refused), Fate::Failed(_)));
    }

    #[test]
    fn counts_and_skips_come_from_the_lines() {
        let lines = [
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured",
            "skipped: no loop device",
            "SKIP xfs: mkfs.xfs is missing",
            "skipped: no loop device",
            "test skip_is_a_name ... ok",
            "==== 2 failed, 5 passed, 1 skipped in 0.52s ====",
            "1 passed in 61.10s (0:01:01)",
            "3 passed in a row",
        ]
        .map(String::from);
        let tests = Tests::read(&lines);
        assert_eq!((tests.passed, tests.failed, tests.ignored), (20, 5, 1));
        assert_eq!(tests.skips, ["SKIP xfs: mkfs.xfs is missing", "skipped: no loop device"]);
        assert_eq!(tests.shown(), "20 tests passed, 5 failed, 1 ignored, 2 skipped");
    }

    #[test]
    fn what_failed_is_said_once_more_and_not_everything() {
        let noise = |count| (0..count).map(|line| format!("test name_{line} ... ok"));
        let lines: Vec<String> = noise(300)
            .chain(["thread 'the_test' panicked at src/lib.rs:3:4:", "left: 1", "right: 2"].map(String::from))
            .chain(noise(300))
            .chain(["test result: FAILED. 600 passed; 1 failed; 0 ignored".to_string()])
            .collect();
        let said = failure_lines(&lines);
        assert!(said.len() < 40, "{}", said.len());
        assert_eq!(said[..3], lines[300..303]);
        assert_eq!(said.last(), lines.last());
        let many: Vec<String> = (0..500).map(|line| format!("error: number {line}")).collect();
        assert_eq!(failure_lines(&many).len(), FAILURE_LINES_MAX);
    }

    /// `cargo WORD`, in turn or beside.
    const fn cargo(name: &'static str, args: &'static [&'static str], turn: Turn) -> Step {
        let (program, skips) = (Program::Cargo, Skips::Listed);
        Step { name, why: "a test", program, args, env: &[], needs: &[], tests_min: 0, skips, limit_s: 60, turn }
    }

    #[test]
    fn a_step_beside_others_ends_the_suite_like_one_in_turn() {
        static GOOD: Step = cargo("good", &["--version"], Turn::Alone);
        static BESIDE: Step = cargo("beside", &["--version"], Turn::Beside);
        static SECOND: Step = cargo("second", &["--list"], Turn::Beside);
        static BAD: Step = cargo("bad", &["no-such-word"], Turn::Beside);
        let root = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let place = Place { target: root.join("target"), root, profile: crate::Profile::Release };
        let machine = Machine::new(&place);
        let run = |steps: &[&'static Step]| {
            let records = run_all(&place, &machine, steps.to_vec(), &Options::default());
            let mut fates: Vec<_> = records.into_iter().map(|record| (record.name, record.fate)).collect();
            fates.sort_by_key(|(name, _)| *name);
            fates
        };
        let passed = [("beside", Fate::Passed), ("good", Fate::Passed), ("second", Fate::Passed)];
        assert_eq!(run(&[&BESIDE, &GOOD, &SECOND]), passed);
        // A failure is known before the next one beside takes its turn.
        let fates = run(&[&BAD, &SECOND, &GOOD]);
        assert!(
            matches!(&fates[..], [("bad", Fate::Failed(_)), ("good", Fate::Skipped(_)), ("second", Fate::Skipped(_))]),
            "{fates:?}"
        );
    }

    #[test]
    fn a_failed_step_fails_the_suite_and_a_skip_does_not() {
        let record =
            |fate| Record { name: "x", fate, elapsed: Duration::ZERO, tests: Tests::default(), said: Vec::new() };
        let code = |fates: Vec<Fate>| format!("{:?}", report(&fates.into_iter().map(record).collect::<Vec<_>>()));
        let success = format!("{:?}", ExitCode::SUCCESS);
        assert_eq!(code(vec![Fate::Passed, Fate::Skipped("r".into())]), success);
        assert_ne!(code(vec![Fate::Passed, Fate::Failed("r".into())]), success);
    }
}
