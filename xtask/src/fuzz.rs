//! `cargo xtask fuzz`: every fuzz target of the tree, for a bounded time each.
//!
//! A crate with decoders has a `fuzz/` directory with a manifest of its own (its own workspace: the product needs
//! neither libFuzzer nor a C++ compiler). The targets are built with the stable toolchain and LLVM's coverage
//! instrumentation; `cargo fuzz` on nightly, with the address sanitizer, runs the same targets.
//!
//! ```text
//! <crate>/fuzz/fuzz_targets/NAME.rs ──build──► {target}/fuzz/…/NAME ──► crash: artefact kept, step fails
//! <crate>/testdata, <crate>/fuzz/corpus/NAME ────seeds───┘      └──► new inputs: {target}/fuzz/corpus
//! ```
//!
//! Seeds in `testdata` are the files that end in `.NAME`, in it and in its folders; where there are none, the folders as a whole.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::proc::{Echo, Job};
use crate::{Place, Stop};

/// Seconds per target unless the command line says otherwise.
const SECONDS_DEFAULT: u64 = 10;
/// Compiling libFuzzer and the targets.
const BUILD_LIMIT: Duration = Duration::from_secs(600);
/// What a target may take beyond its time: reading seeds, and the last input (libFuzzer's own limit is 10 s).
const SLACK: Duration = Duration::from_secs(60);
/// Coverage as libFuzzer reads it (LLVM "SanitizerCoverage", inline 8-bit counters and traced comparisons).
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1";

/// Our own crates are optimised, and what they decode with. The rest is only there to link, half of the time of a build otherwise: what a
/// target's crate needs of the engine brings every remote system's client with it.
const OPTIMISED: [&str; 16] = [
    "sw-agent",
    "sw-checkpoint",
    "sw-data",
    "sw-engine",
    "sw-mem",
    "sw-net",
    "sw-nvme",
    "sw-sim",
    "sw-zip",
    "crc-fast",
    "brotli-decompressor",
    "flate2",
    "miniz_oxide",
    "lz4_flex",
    "ruzstd",
    "snap",
];

/// A target that is built.
struct Ready {
    dir: PathBuf,
    name: String,
    program: PathBuf,
}

/// Builds all, then runs as many at a time as there are CPUs; goes on after a crash.
pub fn run(place: &Place, args: &[String]) -> Result<ExitCode, Stop> {
    let (seconds, only) = parse(args)?;
    let mut ready = Vec::new();
    for dir in fuzz_dirs(place)? {
        let names: Vec<String> =
            target_names(&dir)?.into_iter().filter(|name| only.is_empty() || only.contains(name)).collect();
        if names.is_empty() {
            continue;
        }
        let built = build(place, &dir)?;
        ready.extend(names.into_iter().map(|name| Ready { dir: dir.clone(), program: built.join(&name), name }));
    }
    if ready.is_empty() {
        return Err(Stop::new("no fuzz target matches", "targets are <crate>/fuzz/fuzz_targets/NAME.rs"));
    }
    let bad = run_targets(place, &ready, seconds)?;
    println!("fuzz: {} targets, {bad} with a crash", ready.len());
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How many crashed. A target has one thread, so each gets a CPU of its own for its time.
fn run_targets(place: &Place, ready: &[Ready], seconds: u64) -> Result<usize, Stop> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut bad = 0;
        while let Some(target) = ready.get(next.fetch_add(1, Ordering::Relaxed)) {
            match run_target(place, target, seconds)? {
                Some(runs) => println!("fuzz: {}: {runs} inputs in {seconds} s, no crash", target.name),
                None => bad += 1,
            }
        }
        Ok(bad)
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let told: Vec<Result<usize, Stop>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cpus.min(ready.len())).map(|_| scope.spawn(worker)).collect();
        let died = |_| Err(Stop::new("a worker of the fuzz run died", "its panic is above"));
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(died)).collect()
    });
    told.into_iter().sum()
}

fn parse(args: &[String]) -> Result<(u64, Vec<String>), Stop> {
    let mut seconds = SECONDS_DEFAULT;
    let mut only = Vec::new();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        if word == "--seconds" {
            let number = words.next().and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
            seconds = number.ok_or_else(|| Stop::new("--seconds wants a number above 0", "write --seconds 60"))?;
        } else if word.starts_with('-') {
            return Err(Stop::new(format!("fuzz does not know {word}"), "cargo xtask help lists the options"));
        } else {
            only.push(word.clone());
        }
    }
    Ok((seconds, only))
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Stop> {
    let failed = |error| Stop::new(format!("cannot read {} ({error})", dir.display()), "check out the tree again");
    let listed: Result<Vec<_>, _> =
        std::fs::read_dir(dir).map_err(failed)?.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = listed.map_err(failed)?;
    paths.sort();
    Ok(paths)
}

fn fuzz_dirs(place: &Place) -> Result<Vec<PathBuf>, Stop> {
    let crates = entries(&place.root)?;
    Ok(crates.iter().map(|dir| dir.join("fuzz")).filter(|dir| dir.join("Cargo.toml").is_file()).collect())
}

fn target_names(dir: &Path) -> Result<Vec<String>, Stop> {
    let files = entries(&dir.join("fuzz_targets"))?;
    let stem = |path: &PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    Ok(files.iter().filter(|path| path.extension().is_some_and(|end| end == "rs")).filter_map(stem).collect())
}

/// Builds all targets of one directory and gives the directory of the programs.
fn build(place: &Place, dir: &Path) -> Result<PathBuf, Stop> {
    let told = Job::program(place, Path::new("rustc"), &["-vV".to_string()]).echo(Echo::Hidden).run()?;
    let host = told.lines.iter().find_map(|line| line.strip_prefix("host: ").map(String::from));
    let host = host.ok_or_else(|| Stop::new("rustc does not name its host", "run rustc -vV to see why"))?;
    let target = place.target.join("fuzz");
    let manifest = dir.join("Cargo.toml").display().to_string();
    // An explicit target keeps the instrumentation away from build scripts and procedural macros.
    let mut args =
        ["build", "--release", "--quiet", "--manifest-path", &manifest, "--target", &host].map(String::from).to_vec();
    let level =
        |package: &str, level: u32| ["--config".into(), format!("profile.release.package.{package}.opt-level={level}")];
    args.extend(level("\"*\"", 0));
    args.extend(OPTIMISED.iter().flat_map(|package| level(package, 2)));
    let built = Job::cargo(place, &args)
        .env("RUSTFLAGS", FLAGS)
        .env("CARGO_TARGET_DIR", target.display().to_string())
        .limit(BUILD_LIMIT)
        .run()?;
    if !built.ok() {
        return Err(Stop::new(format!("{manifest} does not build"), "see the compiler's message above"));
    }
    Ok(target.join(host).join("release"))
}

/// Inputs run, or nothing after a crash, a hang or a run without inputs, which is told.
fn run_target(place: &Place, target: &Ready, seconds: u64) -> Result<Option<u64>, Stop> {
    let Ready { dir, name, program } = target;
    let crate_dir = dir.parent().unwrap_or(dir);
    let crate_name = crate_dir.file_name().unwrap_or_default().to_string_lossy();
    let corpus = place.target.join(format!("fuzz/corpus/{crate_name}/{name}"));
    std::fs::create_dir_all(&corpus)
        .map_err(|error| Stop::new(format!("cannot make {} ({error})", corpus.display()), "free some space"))?;
    let artefacts = place.target.join(format!("fuzz/{crate_name}-{name}-"));
    let mut args = vec![
        format!("-max_total_time={seconds}"),
        // A hang, not slowness: an input may take a second of CPU, and other work may have the cores.
        "-timeout=60".to_string(),
        "-rss_limit_mb=2048".to_string(),
        "-verbosity=1".to_string(),
        format!("-artifact_prefix={}", artefacts.display()),
        corpus.display().to_string(),
    ];
    let known = dir.join("corpus").join(name);
    args.extend(known.is_dir().then(|| known.display().to_string()));
    args.extend(seeds(&crate_dir.join("testdata"), name));
    let limit = Duration::from_secs(seconds) + SLACK;
    let outcome = Job::program(place, program, &args).merge_stderr().echo(Echo::Hidden).limit(limit).run()?;
    let runs = runs_done(&outcome.lines);
    if outcome.ok() && runs > 0 {
        return Ok(Some(runs));
    }
    // One piece: other targets run and print beside it.
    let tail = outcome.lines.iter().skip(outcome.lines.len().saturating_sub(40));
    let tail: String = tail.map(|line| format!("    {line}\n")).collect();
    println!(
        "{tail}fuzz: {name}: {:?} after {runs} inputs; run the program with the artefact named above",
        outcome.ended
    );
    Ok(None)
}

/// libFuzzer's arguments for the seeds of a target.
fn seeds(testdata: &Path, name: &str) -> Vec<String> {
    let here = entries(testdata).unwrap_or_default();
    let folders: Vec<&PathBuf> = here.iter().filter(|path| path.is_dir()).collect();
    let inside = folders.iter().flat_map(|folder| entries(folder).unwrap_or_default());
    let is_own = |path: &PathBuf| path.extension().is_some_and(|ending| ending == name);
    let own: Vec<String> =
        here.iter().cloned().chain(inside).filter(is_own).map(|path| path.display().to_string()).collect();
    if own.is_empty() {
        return folders.iter().map(|folder| folder.display().to_string()).collect();
    }
    vec![format!("-seed_inputs={}", own.join(","))]
}

/// From libFuzzer's closing line, `Done 12345 runs in 10 second(s)`.
fn runs_done(lines: &[String]) -> u64 {
    let words = lines.iter().rev().find_map(|line| line.strip_prefix("Done "));
    words.and_then(|rest| rest.split(' ').next()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        assert_eq!(parse(&words("--seconds 3 header")).unwrap(), (3, vec!["header".to_string()]));
        assert_eq!(parse(&[]).unwrap(), (SECONDS_DEFAULT, Vec::new()));
        assert!(parse(&words("--seconds 0")).is_err());
        assert!(parse(&words("--seconds")).is_err());
        assert!(parse(&words("--fast")).is_err());
    }

    #[test]
    fn seeds_are_the_files_of_a_targets_ending_or_all_folders() {
        let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sw-data/testdata");
        let shards = seeds(&testdata, "mds");
        assert_eq!(shards.len(), 1);
        assert!(shards[0].starts_with("-seed_inputs=/") && shards[0].contains("/mds/shard.00001.mds"), "{shards:?}");
        let all = seeds(&testdata, "none");
        assert!(all.len() >= 2 && all.iter().all(|folder| Path::new(folder).is_dir()), "{all:?}");
    }

    #[test]
    fn a_run_without_inputs_is_seen() {
        let lines = ["INFO: seed corpus", "Done 12345 runs in 10 second(s)"].map(String::from);
        assert_eq!(runs_done(&lines), 12345);
        assert_eq!(runs_done(&lines[..1]), 0);
    }
}
