//! `cargo xtask sim --mutants`: is the simulator able to find the bugs that it exists for?
//!
//! ```text
//! workspace ──copy──► target/mutants/tree ──► seed suite must pass   (else a red mutant proves nothing)
//!                          │ + one patch  ──► must compile, must fail within its stated seeds of its kind of worlds
//!                          └ ─ one patch  (restored)                         … for each mutant
//! ```
//!
//! One tree and one target directory serve all mutants: only the crates below a patch are compiled again.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::patch::{Mutant, Worlds};
use crate::proc::{Echo, Ended, Job, Outcome};
use crate::{Place, Stop};

/// Arguments of cargo that run the simulator's seed suite.
pub const SEED_SUITE: [&str; 9] =
    ["test", "--profile", "quick", "-p", "sw-sim", "--test", "seeds", "--", "--nocapture"];
/// Tells the suite how many seeds to run.
pub const SEEDS_VARIABLE: &str = "SW_SIM_SEEDS";
/// The crate whose dependencies are copied.
const ROOT_CRATE: &str = "sw-sim";
const PATCHES: &str = "sw-sim/mutants";
const TABLE: &str = "TABLE.md";
/// Compiling one mutant, on a loaded machine with two cores.
const BUILD_LIMIT: Duration = Duration::from_secs(600);
/// Running one mutant's seeds. The suite bounds virtual time itself, so this is for a mutant that spins.
const RUN_LIMIT: Duration = Duration::from_secs(300);

/// Which mutants run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// All.
    All,
    /// All, and the table is written if each is found.
    Recorded,
    /// The one of this name.
    Only(&'a str),
}

/// Runs them.
pub fn run(place: &Place, which: Which<'_>) -> Result<ExitCode, Stop> {
    let only = if let Which::Only(name) = which { Some(name) } else { None };
    let mutants = load(&place.root.join(PATCHES), only)?;
    let tree = Copied::make(place)?;
    println!("mutants: {} in {PATCHES}; first the unchanged code", mutants.len());
    let clean = tree.build("unchanged", 0)?;
    let bounds: Vec<(Worlds, u64)> =
        Worlds::ALL.into_iter().filter_map(|worlds| Some((worlds, bound(&mutants, worlds)?))).collect();
    let outcomes = std::thread::scope(|scope| {
        let runs = bounds.iter().map(|(worlds, bound)| scope.spawn(|| tree.seeds(&clean, *worlds, *bound)));
        runs.collect::<Vec<_>>().into_iter().map(join).collect::<Result<Vec<_>, Stop>>()
    })?;
    for ((worlds, bound), outcome) in bounds.iter().zip(outcomes) {
        if !outcome.ok() {
            show_tail(&outcome);
            return Err(Stop::new("the seed suite fails on unchanged code", "cargo xtask sim shows the failing seed"));
        }
        println!("unchanged: {bound} seeds of {} pass in {:.1} s", worlds.name(), outcome.elapsed.as_secs_f64());
    }
    let found = try_all(&tree, &mutants)?;
    let missed = found.iter().filter(|found| found.is_none()).count();
    let rows: Vec<(&Mutant, Option<u64>)> =
        mutants.iter().zip(&found).filter_map(|(mutant, found)| Some((mutant, (*found)?))).collect();
    println!("mutants: {} found, {missed} missed", mutants.len() - missed);
    if which == Which::Recorded && missed == 0 {
        let path = place.root.join(PATCHES).join(TABLE);
        std::fs::write(&path, table(&rows))
            .map_err(|error| Stop::new(format!("cannot write {} ({error})", path.display()), "see its directory"))?;
        println!("mutants: {PATCHES}/{TABLE} written");
    }
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Seeds that the mutants of those worlds want at most.
fn bound(mutants: &[Mutant], worlds: Worlds) -> Option<u64> {
    mutants.iter().filter(|mutant| mutant.worlds == worlds).map(|mutant| mutant.seeds).max()
}

/// Compiles one after the other, and runs each while the next one is compiled. Of each, `None`: it was missed; else the seed that found it,
/// if it was named.
fn try_all(tree: &Copied<'_>, mutants: &[Mutant]) -> Result<Vec<Option<Option<u64>>>, Stop> {
    std::thread::scope(|scope| {
        let (mut running, mut found) = (None, Vec::new());
        for (nth, mutant) in mutants.iter().enumerate() {
            let touched = tree.apply(mutant)?;
            // The one before may still run; that before it has ended.
            let program = tree.build(&mutant.name, nth % 2)?;
            tree.restore(&touched)?;
            let run = scope.spawn(move || tree.seeds(&program, mutant.worlds, mutant.seeds));
            if let Some((before, run)) = running.replace((mutant, run)) {
                found.push(tell(before, &join(run)?));
            }
        }
        if let Some((last, run)) = running {
            found.push(tell(last, &join(run)?));
        }
        Ok(found)
    })
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    // A panic in there is one here.
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Says what became of a mutant.
fn tell(mutant: &Mutant, outcome: &Outcome) -> Option<Option<u64>> {
    let Mutant { name, seeds, why, worlds, .. } = mutant;
    let worlds = worlds.name();
    match verdict(outcome) {
        Verdict::Found(line) => {
            let seed = seed_in(&line);
            let first = seed.map_or("seed not named".to_string(), |seed| format!("first failing seed {seed}"));
            println!("found   {name} within {seeds} seeds of {worlds} ({first}): {}", line.trim());
            Some(seed)
        }
        Verdict::Missed(reason) => {
            show_tail(outcome);
            println!("MISSED  {name} ({why}): {reason} with {seeds} seeds of {worlds}");
            None
        }
    }
}

/// The table: one row for each mutant, with the first seed that found it.
fn table(rows: &[(&Mutant, Option<u64>)]) -> String {
    let mut text =
        "# Known bugs that the simulator must find\n\nWritten by `cargo xtask sim --mutants --record`. Each is a \
                    patch in this directory; seeds are tried from 0 on.\n\n| Mutant | What is wrong | Found within seeds | \
                    First failing seed |\n|---|---|---|---|\n"
            .to_string();
    for (mutant, seed) in rows {
        let seed = seed.map_or("not named".to_string(), |seed| seed.to_string());
        text += &format!(
            "| `{}` | {} | {} of {} | {seed} |\n",
            mutant.name,
            mutant.why.replace('|', "\\|"),
            mutant.seeds,
            mutant.worlds.name()
        );
    }
    text
}

fn load(dir: &Path, only: Option<&str>) -> Result<Vec<Mutant>, Stop> {
    let unreadable = |path: &Path, error: std::io::Error| {
        Stop::new(format!("cannot read {} ({error})", path.display()), "check out the tree again")
    };
    let mut mutants = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|error| unreadable(dir, error))? {
        let path = entry.map_err(|error| unreadable(dir, error))?.path();
        if path.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if only.is_none_or(|only| only == name) {
            let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, error))?;
            mutants.push(Mutant::parse(&name, &text)?);
        }
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    if mutants.is_empty() {
        return Err(Stop::new(format!("no mutant to run in {PATCHES}"), "check the name, or add a patch"));
    }
    Ok(mutants)
}

/// Whether a mutant was found.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// With the line that says so.
    Found(String),
    Missed(&'static str),
}

/// A mutant counts as found only if a test of the suite failed: a crash of the harness, a kill for time or a suite
/// that ran nothing proves nothing about the simulator.
fn verdict(outcome: &Outcome) -> Verdict {
    match outcome.ended {
        Ended::OverLimit => return Verdict::Missed("the run did not end"),
        Ended::Exit(0) => return Verdict::Missed("every seed passed"),
        Ended::Exit(_) => {}
    }
    if !outcome.lines.iter().any(|line| line.starts_with("test result: FAILED")) {
        return Verdict::Missed("the suite ended without a test result");
    }
    // A panic's message stands below its "panicked at" line; before it, a suite may print which seeds passed.
    let panic = outcome.lines.iter().position(|line| line.contains("panicked at")).unwrap_or(0);
    let telling = outcome.lines.iter().skip(panic).find(|line| seed_in(line).is_some());
    Verdict::Found(telling.cloned().unwrap_or_else(|| "the suite failed".to_string()))
}

/// The number after the word `seed`, as in `seed 17 failed` or `seed=17`.
fn seed_in(line: &str) -> Option<u64> {
    let lower = line.to_lowercase();
    lower.match_indices("seed").find_map(|(at, word)| {
        let rest = lower.get(at + word.len()..)?.trim_start_matches([' ', '=', ':', '#']);
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    })
}

fn show_tail(outcome: &Outcome) {
    let from = outcome.lines.len().saturating_sub(20);
    for line in outcome.lines.iter().skip(from) {
        println!("    {line}");
    }
}

/// A place that one run has alone, until what this gives is dropped.
fn locked(base: &Path) -> Result<File, Stop> {
    let at = base.join("lock");
    let made = std::fs::create_dir_all(base).and_then(|()| File::create(&at));
    let remedy = "free some space below the target directory";
    let lock = made.map_err(|error| Stop::new(format!("cannot make {} ({error})", at.display()), remedy))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(_) => Err(Stop::new("another run of the mutants is at work in this target directory", "wait for its end")),
    }
}

/// The copy of the crates that the simulator needs.
struct Copied<'a> {
    place: &'a Place,
    tree: PathBuf,
    target: PathBuf,
    /// Held as long as the copy is used: another run would change it meanwhile.
    _lock: File,
}

impl Copied<'_> {
    /// Makes the copy equal to the workspace. Files that are equal already keep their times, so that cargo compiles
    /// only what changed since the last run.
    fn make(place: &Place) -> Result<Copied<'_>, Stop> {
        let base = place.target.join("mutants");
        let lock = locked(&base)?;
        let copied = Copied { place, tree: base.join("tree"), target: base.join("target"), _lock: lock };
        let dirs = crate::needs::crates_below(place, ROOT_CRATE)?;
        let mut wanted: BTreeSet<PathBuf> = BTreeSet::new();
        let mut args = ["ls-files", "--cached", "--others", "--exclude-standard", "--"].map(String::from).to_vec();
        args.extend(dirs.iter().cloned());
        let listed = Job::program(place, Path::new("git"), &args).echo(Echo::Hidden).run()?;
        for path in listed.lines {
            if let Ok(bytes) = std::fs::read(place.root.join(&path)) {
                copied.put(&path, &bytes)?;
                wanted.insert(copied.tree.join(&path));
            }
        }
        let manifest = copied.read_original("Cargo.toml")?;
        copied.put("Cargo.toml", reduce_members(&manifest, &dirs)?.as_bytes())?;
        copied.put("Cargo.lock", copied.read_original("Cargo.lock")?.as_bytes())?;
        wanted.extend([copied.tree.join("Cargo.toml"), copied.tree.join("Cargo.lock")]);
        remove_others(&copied.tree, &wanted)?;
        Ok(copied)
    }

    fn read_original(&self, path: &str) -> Result<String, Stop> {
        std::fs::read_to_string(self.place.root.join(path))
            .map_err(|error| Stop::new(format!("cannot read {path} ({error})"), "check out the tree again"))
    }

    fn put(&self, path: &str, bytes: &[u8]) -> Result<(), Stop> {
        let full = self.tree.join(path);
        if std::fs::read(&full).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        let written = full.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&full, bytes));
        written.map_err(|error| {
            Stop::new(
                format!("cannot write {} ({error})", full.display()),
                "free some space below the target directory",
            )
        })
    }

    /// Applies a mutant and gives the files that it touched. All changes must fit before one is written.
    fn apply(&self, mutant: &Mutant) -> Result<Vec<String>, Stop> {
        let texts = changed(mutant, |file| self.read_original(file))?;
        for (file, text) in &texts {
            self.put(file, text.as_bytes())?;
        }
        Ok(texts.into_iter().map(|(file, _)| file).collect())
    }

    fn restore(&self, touched: &[String]) -> Result<(), Stop> {
        touched.iter().try_for_each(|file| self.put(file, self.read_original(file)?.as_bytes()))
    }

    /// Compiles the suite, and gives a copy of its program that the next build does not write over. `slot` names the copy.
    fn build(&self, name: &str, slot: usize) -> Result<PathBuf, Stop> {
        let mut args = SEED_SUITE.iter().take_while(|arg| **arg != "--").map(|arg| arg.to_string()).collect::<Vec<_>>();
        args.extend(["--no-run", "--message-format=json", "--quiet"].map(String::from));
        let built = self.job(&args).echo(Echo::Hidden).limit(BUILD_LIMIT).run()?;
        let program = built.lines.iter().find_map(|line| program_of(line)).filter(|_| built.ok());
        let Some(program) = program else {
            show_tail(&built);
            return Err(Stop::new(
                format!("{name} does not compile"),
                "a mutant must be legal Rust that is wrong when it runs",
            ));
        };
        let kept = self.target.join(format!("seeds-{slot}"));
        std::fs::copy(&program, &kept).map_err(|error| {
            Stop::new(
                format!("cannot copy {} ({error})", program.display()),
                "free some space below the target directory",
            )
        })?;
        Ok(kept)
    }

    /// Runs seeds of a program that was [built](Self::build).
    fn seeds(&self, program: &Path, worlds: Worlds, count: u64) -> Result<Outcome, Stop> {
        let args = ["--nocapture", "--exact", worlds.test()].map(String::from);
        let job = Job::program(self.place, program, &args).dir(&self.tree).env(SEEDS_VARIABLE, count.to_string());
        job.merge_stderr().echo(Echo::Hidden).limit(RUN_LIMIT).run()
    }

    fn job(&self, args: &[String]) -> Job {
        // What the build before left is used again, whatever the caller's builds do: a mutant changes one function, and that
        // halves the time of its build.
        Job::cargo(self.place, args)
            .dir(&self.tree)
            .env("CARGO_TARGET_DIR", self.target.display().to_string())
            .env("CARGO_INCREMENTAL", "1")
            // Smaller units: fewer functions beside the changed one are compiled again (a third less time).
            .env("CARGO_PROFILE_QUICK_CODEGEN_UNITS", "64")
    }
}

/// The program that cargo tells of in a line of JSON, if it tells of one.
fn program_of(line: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    message.get("executable")?.as_str().map(PathBuf::from)
}

/// The files that a mutant changes, each with its changed text; `read` gives the unchanged one.
fn changed(mutant: &Mutant, read: impl Fn(&str) -> Result<String, Stop>) -> Result<Vec<(String, String)>, Stop> {
    let mut texts: Vec<(String, String)> = Vec::new();
    for change in &mutant.changes {
        let known = texts.iter().position(|(file, _)| *file == change.file);
        let before = match known.and_then(|at| texts.get(at)) {
            Some((_, text)) => text.clone(),
            None => read(&change.file)?,
        };
        let after = change.apply(&mutant.name, &before)?;
        match known.and_then(|at| texts.get_mut(at)) {
            Some(entry) => entry.1 = after,
            None => texts.push((change.file.clone(), after)),
        }
    }
    Ok(texts)
}

/// The root manifest with only `dirs` as members.
fn reduce_members(manifest: &str, dirs: &BTreeSet<String>) -> Result<String, Stop> {
    let parts = manifest.split_once("members = [").and_then(|(head, rest)| Some((head, rest.split_once(']')?.1)));
    let (head, tail) = parts.ok_or_else(|| {
        Stop::new("the root manifest has no members list", "keep `members = [...]` in one list in Cargo.toml")
    })?;
    let members: Vec<String> = dirs.iter().map(|dir| format!("{dir:?}")).collect();
    Ok(format!("{head}members = [{}]{tail}", members.join(", ")))
}

fn remove_others(dir: &Path, wanted: &BTreeSet<PathBuf>) -> Result<(), Stop> {
    let failed = |error: std::io::Error| {
        Stop::new(format!("cannot clean {} ({error})", dir.display()), "remove the directory by hand")
    };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            remove_others(&path, wanted)?;
        } else if !wanted.contains(&path) {
            std::fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(ended: Ended, lines: &[&str]) -> Outcome {
        Outcome { ended, elapsed: Duration::ZERO, lines: lines.iter().map(|line| line.to_string()).collect() }
    }

    #[test]
    fn only_a_failed_test_counts_as_found() {
        let failed = [
            "seed 16 passed",
            "thread 'seeds' panicked at sw-sim/tests/seeds.rs:9:5:",
            "seed 17: foreign byte at 0x10",
            "test result: FAILED. 0 passed; 1 failed",
        ];
        assert_eq!(verdict(&outcome(Ended::Exit(101), &failed)), Verdict::Found(failed[2].to_string()));
        for (ended, lines) in [
            (Ended::Exit(0), &["test result: ok. 1 passed"][..]),
            (Ended::Exit(101), &["error: could not compile"]),
            (Ended::OverLimit, &failed),
        ] {
            assert!(matches!(verdict(&outcome(ended, lines)), Verdict::Missed(_)), "{lines:?}");
        }
    }

    /// The step that runs them takes long; that one no longer fits the code is to be known before.
    #[test]
    fn every_mutant_fits_the_code() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for mutant in load(&root.join(PATCHES), None).unwrap() {
            let changed = changed(&mutant, |file| Ok(std::fs::read_to_string(root.join(file)).unwrap()));
            assert!(changed.as_ref().is_ok_and(|texts| !texts.is_empty()), "{}", changed.unwrap_err());
        }
    }

    /// A mutant that was added, renamed, reworded or given other bounds since the table was written makes it wrong. Without
    /// a table, what is written for all mutants is held against the same.
    #[test]
    fn the_table_has_every_mutant_as_its_patch_says() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PATCHES);
        let mutants = load(&dir, None).unwrap();
        let made = table(&mutants.iter().map(|mutant| (mutant, Some(7))).collect::<Vec<_>>());
        let text = std::fs::read_to_string(dir.join(TABLE)).unwrap_or(made);
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(rows.len(), mutants.len(), "write it anew: cargo xtask sim --mutants --record");
        for (row, mutant) in rows.iter().zip(&mutants) {
            let start =
                format!("| `{}` | {} | {} of {} | ", mutant.name, mutant.why, mutant.seeds, mutant.worlds.name());
            assert!(row.starts_with(&start), "{row} is not {start}");
            let seed = row[start.len()..].trim_end_matches(" |").parse::<u64>();
            assert!(seed.is_ok_and(|seed| seed < mutant.seeds), "{row}");
        }
    }

    #[test]
    fn the_seed_is_read_from_the_line() {
        assert_eq!(seed_in("seed 17 failed"), Some(17));
        assert_eq!(seed_in("FAILED with seed=42, op 3"), Some(42));
        assert_eq!(seed_in("40 seeds failed at seed: 7"), Some(7));
        assert_eq!(seed_in("no number after the seed"), None);
    }

    #[test]
    fn the_manifest_keeps_everything_but_members() {
        let manifest = "[workspace]\nmembers = [\n    \"a\",\n    \"b\",\n]\n\n[workspace.package]\nversion = \"1\"\n";
        let dirs = BTreeSet::from(["b".to_string(), "b/nested".to_string()]);
        let reduced = reduce_members(manifest, &dirs).unwrap();
        assert_eq!(reduced, "[workspace]\nmembers = [\"b\", \"b/nested\"]\n\n[workspace.package]\nversion = \"1\"\n");
        assert!(reduce_members("[workspace]\n", &dirs).is_err());
    }
}
