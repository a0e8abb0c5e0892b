//! `cargo xtask vm`: small QEMU guests where the NVMe driver and the kernel's direct routes run for real.
//!
//! ```text
//! target/vm ── packages (apt, unpacked) ──► QEMU, busybox, kernels ┐
//! cargo (musl) ──► straightway-guest ──► initial file system ──────┼──► guest ──► lines ──► verdict, record
//! machine: controllers, peer BAR, switch, faults ──────────────────┘      ◄── requests (pull a device, cut power)
//! ```
//!
//! Nothing is installed on the machine; everything is below `target/vm` and is used again. Software emulation only: what
//! this proves is logic and bytes, never speed. `hwtests/guest` has the tests, [`boots`] the rows, [`machine`] the
//! devices, [`host`] what a test may ask for.

mod boots;
mod cpio;
mod drive;
mod foreign;
mod guest;
mod host;
mod kernels;
mod logwrites;
mod machine;
mod own;
mod pace;
mod packages;
mod qmp;
mod record;
mod spent;
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use self::boots::{BOOTS, Boot};
use self::drive::{Ended, Outcome};
use self::guest::{Content, Extra};
use self::kernels::{Kernel, Prepared};
use self::pace::Pace;
use self::packages::{Archive, Root};
use self::spent::{Spent, Stopwatch};
use self::wire::{End, Test};
use crate::proc::Job;
use crate::{Place, Stop};

/// Lines of the console that a failure shows; the whole is in the file.
const CONSOLE_LINES_SHOWN: usize = 25;
/// Words in the kernel's log that fail a row whatever the tests say.
const KERNEL_TROUBLE: [&str; 6] = ["BUG:", "WARNING:", "Oops", "hung_task", "general protection", "Kernel panic"];
/// What is asked for instead of guests of a group.
const VERBS: [&str; 3] = ["shell", "fetch", "kernel"];
/// Guests at a time, where they wait for much of their time: two cores carry two of them.
const AT_A_TIME: usize = 2;
/// Guests of this group take a processor all of their time, and one compares rates.
const ALONE: &str = "nvme";
/// How long to wait for another run of the bed in the same clone.
const TURN_LIMIT: Duration = Duration::from_secs(1800);
const TURN_POLL: Duration = Duration::from_millis(500);
/// A step that took less is not in the table.
const STEP_SHOWN_S: f64 = 0.5;
/// Most times that a test is repeated.
const REPEAT_MAX: u32 = 1000;
/// What the tree for programs that are linked dynamically holds: OpenSSL, and what a Rust program needs; and what does TLS for the kernel.
const DYNAMIC: [&str; 4] = ["libssl3t64", "libgcc-s1", "ktls-utils", "nvme-cli"];
/// What the tree with RDMA holds: the libraries with the kernel's own providers, the tool that makes devices, and Python.
const RDMA: [&str; 7] = [
    "libibverbs1",
    "ibverbs-providers",
    "librdmacm1",
    "iproute2",
    "libgcc-s1",
    "python3.11-minimal",
    "libpython3.11-stdlib",
];
/// What the tree with fio holds.
const FIO: [&str; 1] = ["fio"];

const USAGE: &str =
    "cargo xtask vm GROUP... [--boot NAME]... [--only TEST] [--repeat N] [--kernel stock|backports|own] [--record]
cargo xtask vm shell     a guest with its console here and no tests (of --boot NAME, else of the first)
cargo xtask vm --list    the guests and what each shows
cargo xtask vm fetch     packages and kernels only
cargo xtask vm kernel    build the bed's own kernel";

/// The bed's directory below the root: shared by every target directory, like the Python environment.
pub fn directory(place: &Place) -> PathBuf {
    place.root.join("target/vm")
}

/// FNV-1a, 64 bits (draft-eastlake-fnv, "The FNV Non-Cryptographic Hash Algorithm"): names caches and compares bytes.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What the command line asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    /// Groups of rows; or `shell`, `fetch` or `kernel`.
    what: Vec<String>,
    boots: Vec<String>,
    only: Option<String>,
    /// How often each test runs in one guest; once if it is not said.
    repeat: Option<u32>,
    kernel: Option<Kernel>,
    list: bool,
    record: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Options, Stop> {
        let unknown = |what: String| Stop::new(what, format!("usage:\n{USAGE}"));
        let mut options = Options::default();
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().cloned().ok_or_else(|| unknown(format!("{word} wants a value")));
            match word.as_str() {
                "--list" => options.list = true,
                "--record" => options.record = true,
                "--only" => options.only = Some(value()?),
                "--repeat" => {
                    let text = value()?;
                    let times = text.parse().ok().filter(|times| (1..=REPEAT_MAX).contains(times));
                    let wrong = || unknown(format!("--repeat wants 1 to {REPEAT_MAX}, not {text}"));
                    options.repeat = Some(times.ok_or_else(wrong)?);
                }
                "--boot" => {
                    let name = value()?;
                    if !BOOTS.iter().any(|boot| boot.name == name) {
                        return Err(unknown(format!("no guest is called {name}")));
                    }
                    options.boots.push(name);
                }
                "--kernel" => {
                    let name = value()?;
                    let kernel = Kernel::named(&name).ok_or_else(|| unknown(format!("no kernel is called {name}")))?;
                    options.kernel = Some(kernel);
                }
                word if !word.starts_with('-') => options.what.push(word.to_string()),
                other => return Err(unknown(format!("vm does not know {other}"))),
            }
        }
        if options.what.is_empty() && !options.list {
            return Err(unknown("vm wants to know what".to_string()));
        }
        let is_group = |word: &String| BOOTS.iter().any(|boot| boot.group == word.as_str());
        let is_verb = matches!(&options.what[..], [word] if VERBS.contains(&word.as_str()));
        match options.what.iter().find(|word| !is_group(word)) {
            Some(word) if !is_verb => Err(unknown(format!("vm does not know {word}"))),
            _ => Ok(options),
        }
    }

    /// Whether every test of every guest of one group is wanted, once, as the rows say.
    fn is_whole(&self) -> bool {
        self.what.len() == 1
            && self.boots.is_empty()
            && self.only.is_none()
            && self.repeat.is_none()
            && self.kernel.is_none()
    }

    fn wants(&self, boot: &Boot) -> bool {
        (self.what.is_empty() || self.what.iter().any(|group| group == boot.group))
            && (self.boots.is_empty() || self.boots.iter().any(|name| name == boot.name))
    }
}

/// Runs the command.
///
/// # Errors
/// What the bed is made of cannot be had; a test that fails is an exit status.
pub fn run(place: &Place, args: &[String]) -> Result<ExitCode, Stop> {
    let options = Options::parse(args)?;
    let archive = Archive::new(place, &directory(place));
    match options.what.first().map_or("", String::as_str) {
        "kernel" => {
            let _turn = Turn::take(place, "own.lock")?;
            return own::build(place, &archive).map(|_| ExitCode::SUCCESS);
        }
        "fetch" => {
            let _turn = Turn::take(place, "bed.lock")?;
            let root = archive.root()?;
            for kernel in [Kernel::Stock, Kernel::Backports] {
                println!("vm: kernel {} is {}", kernel.name(), kernels::stock(place, &archive, &root, kernel)?.release);
            }
            return Ok(ExitCode::SUCCESS);
        }
        "shell" => return shell(place, &archive, &options),
        _ => {}
    }
    let chosen: Vec<&Boot> = BOOTS.iter().filter(|boot| options.wants(boot)).collect();
    if chosen.is_empty() {
        return Err(Stop::new(format!("no guest belongs to {:?}", options.what), "cargo xtask vm --list shows them"));
    }
    if options.list {
        for boot in chosen {
            println!("{:<10} {:<10} {}\n{:<21} suites {}", boot.group, boot.name, boot.why, "", boot.suites.join(", "));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let _turn = Turn::take(place, "bed.lock")?;
    rows(place, &archive, &options, &chosen)
}

/// Boots the machine of a row for somebody to look around.
fn shell(place: &Place, archive: &Archive<'_>, options: &Options) -> Result<ExitCode, Stop> {
    let named = options.boots.first();
    let boot = BOOTS.iter().find(|boot| named.is_none_or(|name| name == boot.name));
    let boot = boot.ok_or_else(|| Stop::new("there is no guest", "cargo xtask vm --list shows them"))?;
    let _turn = Turn::take(place, "bed.lock")?;
    let root = archive.root()?;
    let built = guest::build(place, &[boot])?;
    let fio = tree(archive, boot.extras, (Extra::Fio, "fio", &FIO))?;
    let dynamic = tree(&archive.next(), boot.extras, (Extra::Dynamic, "dynamic", &DYNAMIC))?;
    let rdma = rdma(place, archive, boot.extras)?;
    let kernel = options.kernel.unwrap_or(boot.kernel);
    let kernel = prepared(place, archive, &root, kernel)?.ok_or_else(|| Stop::new("no kernel", own::ABSENT))?;
    let content = Content {
        root: &root,
        kernel: &kernel,
        built: &built,
        extras: boot.extras,
        fio: fio.as_ref(),
        dynamic: dynamic.as_ref(),
        rdma: rdma.as_ref().map(|(tree, site)| (tree, &**site)),
    };
    let dir = directory(place).join("runs/shell");
    packages::remove_dir(&dir)?;
    packages::make_dir(&dir)?;
    machine::make_disks(boot.devices, &dir)?;
    let initramfs = dir.join("initramfs.cpio");
    content.write_initramfs(place, &[], &initramfs)?;
    println!("vm: {} on {}; poweroff -f ends it", boot.name, kernel.release);
    drive::shell(&drive::Guest {
        boot,
        root: &root,
        kernel: &kernel,
        dir: &dir,
        initramfs,
        phase: 1,
        // The last word of a name wins.
        words: vec!["sw.suites= sw.shell".to_string()],
        deadline: Instant::now(),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A kernel, if it can be had without building it.
fn prepared(place: &Place, archive: &Archive<'_>, root: &Root, kernel: Kernel) -> Result<Option<Prepared>, Stop> {
    match kernel {
        Kernel::Own => own::cached(place),
        kernel => kernels::stock(place, archive, root, kernel).map(Some),
    }
}

/// One run of the bed at a time in a clone: they share directories, and one run has as many guests at a time as two cores carry.
struct Turn {
    _lock: std::fs::File,
}

impl Turn {
    fn take(place: &Place, name: &str) -> Result<Turn, Stop> {
        let dir = directory(place);
        packages::make_dir(&dir)?;
        let path = dir.join(name);
        let lock = std::fs::File::create(&path).map_err(|error| packages::at(&path, "cannot make", &error))?;
        let start = Instant::now();
        let mut told = false;
        while lock.try_lock().is_err() {
            if !told {
                println!("vm: waiting for another run of the bed");
                told = true;
            }
            if start.elapsed() > TURN_LIMIT {
                let remedy = "wait for the other run of the bed, or end it";
                return Err(Stop::new(format!("{} is held by another run", path.display()), remedy));
            }
            std::thread::sleep(TURN_POLL);
        }
        Ok(Turn { _lock: lock })
    }
}

/// A row that was run, or not.
#[derive(Debug)]
pub struct Row {
    boot: &'static Boot,
    release: String,
    /// One for each phase.
    outcomes: Vec<Outcome>,
    verdict: Verdict,
    spent: Spent,
}

impl Row {
    fn tests(&self) -> impl Iterator<Item = &Test> {
        self.outcomes.iter().flat_map(|outcome| &outcome.tests)
    }

    /// One for which there is no kernel.
    fn skipped(boot: &'static Boot) -> Row {
        let verdict = Verdict::Skipped(own::ABSENT.to_string());
        Row { boot, release: String::new(), outcomes: Vec::new(), verdict, spent: Spent::default() }
    }

    fn count(&self, end: End) -> usize {
        self.tests().filter(|test| test.end == end).count()
    }
}

/// What became of a row.
#[derive(Debug)]
enum Verdict {
    Passed,
    Failed(Vec<String>),
    Skipped(String),
}

impl Verdict {
    fn word(&self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed(_) => "failed",
            Verdict::Skipped(_) => "skipped",
        }
    }

    fn reasons(&self) -> Vec<String> {
        match self {
            Verdict::Passed => Vec::new(),
            Verdict::Failed(reasons) => reasons.clone(),
            Verdict::Skipped(reason) => vec![reason.clone()],
        }
    }
}

fn rows(place: &Place, archive: &Archive<'_>, options: &Options, chosen: &[&'static Boot]) -> Result<ExitCode, Stop> {
    let mut steps = Steps::new();
    let root = steps.take("QEMU", || archive.root())?;
    let setting = record::Setting::find(place, &version(place, &root)?);
    let extras: Vec<Extra> = chosen.iter().flat_map(|boot| boot.extras).copied().collect();
    let built = steps.take("programs of the guests", || guest::build(place, chosen))?;
    let fio = steps.take("fio", || tree(archive, &extras, (Extra::Fio, "fio", &FIO)))?;
    let dynamic = tree(&archive.next(), &extras, (Extra::Dynamic, "dynamic", &DYNAMIC))?;
    let rdma = rdma(place, archive, &extras)?;
    let (root, fio, dynamic, built) = (&root, fio.as_ref(), dynamic.as_ref(), &built);
    let rdma = rdma.as_ref().map(|(tree, site)| (tree, &**site));
    let mut kernels = Vec::new();
    for boot in chosen {
        let kernel = options.kernel.unwrap_or(boot.kernel);
        kernels.push(steps.take(&format!("kernel {}", kernel.name()), || prepared(place, archive, root, kernel))?);
    }
    let run = |at: usize| -> Result<Row, Stop> {
        let (boot, kernel) = (chosen[at], &kernels[at]);
        println!("\n--> {}: {}", boot.name, boot.why);
        let row = match kernel {
            Some(kernel) => {
                let content = Content { root, kernel, built, extras: boot.extras, fio, dynamic, rdma };
                Bench { place, content, options }.run(boot)?
            }
            None => Row::skipped(boot),
        };
        record::write(&directory(place).join("records"), &setting, &row)?;
        if options.record {
            record::write(&place.root.join("hwtests/records"), &setting, &row)?;
        }
        Ok(row)
    };
    // For a record, too, nothing but it shall take processors.
    let alone = options.record || chosen.iter().any(|boot| boot.group == ALONE);
    let rows = in_turns(chosen.len(), if alone { 1 } else { AT_A_TIME }, &run)?;
    let all = steps.all();
    let mut pace = Pace::InTime;
    if let (true, [group]) = (options.is_whole(), &options.what[..]) {
        pace = Pace::of(all, pace::processors());
        record::write_run(&directory(place).join("records"), &setting, group, (&steps, all), &rows)?;
        if options.record {
            record::write_run(&place.root.join("hwtests/records"), &setting, group, (&steps, all), &rows)?;
        }
    }
    Ok(report((&steps, all), &pace, &rows))
}

/// Runs `count` things, so many at a time, begun in their order; what each came to, in their order. After an error no other is begun.
fn in_turns<T: Send>(
    count: usize,
    at_a_time: usize,
    run: &(impl Fn(usize) -> Result<T, Stop> + Sync),
) -> Result<Vec<T>, Stop> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let one_after_the_other = || {
        let mut done = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                break;
            }
            let came_to = run(at);
            failed.fetch_or(came_to.is_err(), Ordering::Relaxed);
            done.push((at, came_to));
        }
        done
    };
    let mut done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..at_a_time.min(count)).map(|_| scope.spawn(one_after_the_other)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, came_to)| came_to).collect()
}

/// The tree of packages of an extra, if that is among `extras`.
fn tree(
    archive: &Archive<'_>,
    extras: &[Extra],
    (of, name, packages): (Extra, &str, &[&str]),
) -> Result<Option<Root>, Stop> {
    extras.contains(&of).then(|| archive.tree(name, packages)).transpose()
}

/// What guests with RDMA carry: the tree of packages, and the folder with other people's host.
fn rdma(place: &Place, archive: &Archive<'_>, extras: &[Extra]) -> Result<Option<(Root, PathBuf)>, Stop> {
    let Some(tree) = tree(archive, extras, (Extra::Rdma, "rdma", &RDMA))? else { return Ok(None) };
    Ok(Some((tree, foreign::packages(place, &directory(place))?)))
}

/// What QEMU says that it is.
fn version(place: &Place, root: &Root) -> Result<String, Stop> {
    let (program, mut args, modules) = root.qemu();
    args.push("--version".to_string());
    let lines = packages::collect("QEMU", Job::program(place, &program, &args).env(modules.0, modules.1))?;
    Ok(lines.into_iter().next().unwrap_or_default())
}

/// What was made ready before guests ran, and what that took.
#[derive(Debug)]
struct Steps {
    taken: Vec<(String, Spent)>,
    since: Stopwatch,
}

impl Steps {
    fn new() -> Steps {
        Steps { taken: Vec::new(), since: Stopwatch::start() }
    }

    fn take<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T, Stop>) -> Result<T, Stop> {
        let watch = Stopwatch::start();
        let done = step()?;
        self.taken.push((name.to_string(), watch.spent()));
        Ok(done)
    }

    /// All of it, and the rows: of which several may have run at a time.
    fn all(&self) -> Spent {
        self.since.spent()
    }
}

/// What a row runs on.
struct Bench<'a> {
    place: &'a Place,
    content: Content<'a>,
    options: &'a Options,
}

impl Bench<'_> {
    fn run(&self, boot: &'static Boot) -> Result<Row, Stop> {
        let watch = Stopwatch::start();
        let dir = directory(self.place).join("runs").join(boot.name);
        let deadline = Instant::now() + Duration::from_secs(boot.limit_s) * self.options.repeat.unwrap_or(1);
        let mut outcomes = self.phases(boot, &dir, deadline)?;
        if let Some(signal) = crashed(&outcomes) {
            show_console(&dir, outcomes.len());
            println!(
                "    QEMU itself ended by signal {signal}, which is no test's word; the whole row once more, with fresh disks"
            );
            outcomes = self.phases(boot, &dir, deadline)?;
        }
        for (index, outcome) in outcomes.iter().enumerate() {
            let path = dir.join(format!("kernel-{}.log", index + 1));
            packages::write(&path, outcome.kernel_log.join("\n").as_bytes())?;
        }
        let release = self.content.kernel.release.clone();
        // Others may run meanwhile.
        let cpu_s = outcomes.iter().map(|outcome| outcome.cpu_s).sum();
        let spent = Spent { cpu_s, ..watch.spent() };
        let mut row = Row { boot, release, outcomes, verdict: Verdict::Passed, spent };
        // With `--only`, one passed test is enough and none is a typing error.
        let tests_min = if self.options.only.is_some() { 1 } else { boot.tests_min };
        let reasons = reasons(&row, tests_min);
        if !reasons.is_empty() {
            show_console(&dir, row.outcomes.len());
            row.verdict = Verdict::Failed(reasons);
        }
        Ok(row)
    }

    /// Every guest of a row, on fresh disks.
    fn phases(&self, boot: &'static Boot, dir: &Path, deadline: Instant) -> Result<Vec<Outcome>, Stop> {
        packages::remove_dir(dir)?;
        packages::make_dir(dir)?;
        machine::make_disks(boot.devices, dir)?;
        let mut outcomes = vec![self.phase(boot, dir, 1, &[], deadline)?];
        if let Some(cut) = outcomes.first().filter(|outcome| outcome.ended == Ended::PowerCut) {
            let notes = cut.notes.clone();
            power_cut(boot, dir)?;
            outcomes.push(self.phase(boot, dir, 2, &notes, deadline)?);
        }
        Ok(outcomes)
    }

    /// One guest. A boot that never reached `init` says nothing about a test and is tried once more, visibly.
    fn phase(
        &self,
        boot: &'static Boot,
        dir: &Path,
        phase: u32,
        notes: &[String],
        deadline: Instant,
    ) -> Result<Outcome, Stop> {
        let initramfs = dir.join(format!("initramfs-{phase}.cpio"));
        self.content.write_initramfs(self.place, notes, &initramfs)?;
        let only = self.options.only.iter().map(|only| format!("sw.only={only}"));
        let words = only.chain(self.options.repeat.iter().map(|times| format!("sw.repeat={times}"))).collect();
        let guest = drive::Guest {
            boot,
            root: self.content.root,
            kernel: self.content.kernel,
            dir,
            initramfs,
            phase,
            words,
            deadline,
        };
        let outcome = drive::run(&guest)?;
        if outcome.up_s.is_some() || outcome.ended == Ended::OverTime {
            return Ok(outcome);
        }
        println!("    the guest did not reach its first program ({:?}); once more", outcome.ended);
        drive::run(&guest)
    }
}

/// Makes the disk with the write log anew, as the cut may have left it.
fn power_cut(boot: &Boot, dir: &Path) -> Result<(), Stop> {
    if boot.devices.contains(&machine::Device::NvmeLog) {
        let log = dir.join("phase-1.log");
        let from = dir.join("disk-log1.log");
        std::fs::rename(&from, &log).map_err(|error| packages::at(&from, "cannot move", &error))?;
        machine::make_disks(&[machine::Device::NvmeLog], dir)?;
        let done = logwrites::replay(&log, &dir.join("disk-log1.img"))?;
        println!(
            "    power cut: {} writes kept, {} after the last of {} flushes dropped",
            done.applied, done.dropped, done.flushes
        );
    }
    Ok(())
}

/// The signal by which QEMU ended, unless a test had failed before.
fn crashed(outcomes: &[Outcome]) -> Option<i32> {
    let failed = outcomes.iter().flat_map(|outcome| &outcome.tests).any(|test| test.end == End::Fail);
    match outcomes.last()?.ended {
        Ended::Crashed(signal) if !failed => Some(signal),
        _ => None,
    }
}

/// Why a row failed; empty if it passed.
fn reasons(row: &Row, tests_min: usize) -> Vec<String> {
    let mut reasons: Vec<String> = Vec::new();
    for test in row.tests().filter(|test| test.end == End::Fail) {
        reasons.push(format!("{}: {}", test.name, test.reason));
    }
    match row.outcomes.last().map(|outcome| outcome.ended) {
        Some(Ended::Success) => {}
        Some(Ended::OverTime) => reasons.push(format!("over its {} s, killed", row.boot.limit_s)),
        Some(Ended::Crashed(signal)) => {
            reasons.push(format!("QEMU itself ended by signal {signal}, twice or after a failed test"))
        }
        Some(Ended::PowerCut) => reasons.push("the second phase asked for a power cut".to_string()),
        // The tests ended, and a failed one is named above.
        Some(Ended::Status(_))
            if !reasons.is_empty() && row.outcomes.last().is_some_and(|last| last.end_s.is_some()) => {}
        Some(Ended::Status(status)) => {
            reasons.push(format!("the guest ended before its tests did (QEMU status {status})"));
        }
        None => reasons.push("no guest ran".to_string()),
    }
    let passed = row.count(End::Ok);
    if passed < tests_min {
        reasons.push(format!("{passed} tests passed, at least {tests_min} must"));
    }
    let log = row.outcomes.iter().flat_map(|outcome| &outcome.kernel_log);
    let trouble = log.filter(|line| KERNEL_TROUBLE.iter().any(|word| line.contains(word)));
    reasons.extend(trouble.map(|line| format!("kernel log: {line}")));
    reasons
}

/// The end of the console of the last phase.
fn show_console(dir: &Path, phase: usize) {
    let mate = ["console-mate.log", "qemu-mate.log"].map(String::from);
    for file in [format!("console-{phase}.log"), format!("qemu-{phase}.log")].into_iter().chain(mate) {
        let path = dir.join(file);
        if !path.exists() {
            continue;
        }
        let text = std::fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        println!("    {} ({} lines), trouble and the last:", path.display(), lines.len());
        let trouble = lines.iter().filter(|line| KERNEL_TROUBLE.iter().any(|word| line.contains(word)));
        for line in trouble.take(CONSOLE_LINES_SHOWN) {
            println!("      ! {}", line.trim_end());
        }
        for line in lines.iter().skip(lines.len().saturating_sub(CONSOLE_LINES_SHOWN)) {
            println!("      | {}", line.trim_end());
        }
    }
}

/// One line of the table.
fn line(name: &str, result: &str, spent: Spent, note: &str) {
    println!("{name:<22} {result:<8} {:>8.1} {:>8.1}  {note}", spent.wall_s, spent.cpu_s);
}

fn report((steps, all): (&Steps, Spent), pace: &Pace, rows: &[Row]) -> ExitCode {
    println!("\n{:<22} {:<8} {:>8} {:>8}  note", "guest", "result", "seconds", "of CPUs");
    for (name, spent) in steps.taken.iter().filter(|(_, spent)| spent.wall_s >= STEP_SHOWN_S) {
        line(name, "ready", *spent, "");
    }
    for row in rows {
        let mut notes = Vec::new();
        if !row.outcomes.is_empty() {
            notes.extend([row.release.clone(), format!("{} ok", row.count(End::Ok))]);
        }
        let skipped = row.count(End::Skip);
        if skipped > 0 {
            notes.push(format!("{skipped} skipped"));
        }
        line(row.boot.name, row.verdict.word(), row.spent, &notes.join(", "));
        for reason in row.verdict.reasons() {
            println!("{:<22} {reason}", "");
        }
        if let Verdict::Skipped(reason) = &row.verdict {
            // The line that `cargo xtask test` collects.
            println!("skipped guest {}: {reason}", row.boot.name);
        }
    }
    line("all", pace.word(), all, pace.text());
    let sum = |end| rows.iter().map(|row| row.count(end)).sum::<usize>();
    let failed = rows.iter().filter(|row| matches!(row.verdict, Verdict::Failed(_))).count() + pace.failures();
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let (passed, bad, skipped) = (sum(End::Ok), sum(End::Fail).max(failed), sum(End::Skip));
    println!("\ntest result: {word}. {passed} passed; {bad} failed; {skipped} ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let options =
            Options::parse(&words("nvme --boot nvme --only bed.io --repeat 20 --kernel own --record")).unwrap();
        assert_eq!((&options.what[..], options.kernel), (&["nvme".to_string()][..], Some(Kernel::Own)));
        assert!(options.record && options.wants(&BOOTS[0]) && options.repeat == Some(20) && !options.is_whole());
        assert!(Options::parse(&words("nvme --record")).unwrap().is_whole());
        let two = Options::parse(&words("fabrics rdma")).unwrap();
        let wanted = BOOTS.iter().filter(|boot| two.wants(boot));
        assert!(!two.is_whole() && wanted.clone().count() > 1 && wanted.clone().all(|boot| boot.group != "nvme"));
        for line in [
            "",
            "nvme --boot none",
            "nvme --kernel minix",
            "nvme --only",
            "nvme --repeat 0",
            "nvme --fast",
            "nvme minix",
            "nvme shell",
            "fetch kernel",
        ] {
            assert!(Options::parse(&words(line)).is_err(), "{line}");
        }
    }

    fn row(tests: &[(&str, End)], ended: Ended, log: &[&str]) -> Row {
        let test = |(name, end): &(&str, End)| Test {
            name: (*name).to_string(),
            end: *end,
            seconds: 0.0,
            reason: "r".to_string(),
        };
        let outcome = Outcome {
            ended,
            up_s: Some(1.0),
            end_s: Some(2.0),
            wall: Duration::ZERO,
            cpu_s: 0.0,
            tests: tests.iter().map(test).collect(),
            facts: Vec::new(),
            notes: Vec::new(),
            kernel_log: log.iter().map(|line| (*line).to_string()).collect(),
            requests: Vec::new(),
        };
        let (release, outcomes, spent) = (String::new(), vec![outcome], Spent::default());
        Row { boot: &BOOTS[0], release, outcomes, verdict: Verdict::Passed, spent }
    }

    #[test]
    fn things_run_so_many_at_a_time_and_end_in_their_order() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let run = |at: usize| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::yield_now();
            running.fetch_sub(1, Ordering::SeqCst);
            if at == 40 { Err(Stop::new("forty", "none")) } else { Ok(at) }
        };
        for at_a_time in [1, 2] {
            assert_eq!(in_turns(30, at_a_time, &run).unwrap(), (0..30).collect::<Vec<_>>());
            assert!(most.load(Ordering::SeqCst) <= at_a_time);
            assert!(in_turns(1_000_000, at_a_time, &run).unwrap_err().to_string().contains("forty"));
        }
        assert!(in_turns(0, 2, &run).unwrap().is_empty());
    }

    #[test]
    fn a_row_is_run_again_for_a_crash_of_qemu_only_and_not_after_a_failed_test() {
        let crash = |tests: &[(&str, End)], ended| crashed(&row(tests, ended, &[]).outcomes);
        assert_eq!(crash(&[("a.b", End::Ok)], Ended::Crashed(11)), Some(11));
        assert_eq!(crash(&[("a.b", End::Ok), ("a.c", End::Fail)], Ended::Crashed(11)), None);
        assert_eq!(crash(&[("a.b", End::Ok)], Ended::Status(-1)), None);
    }

    #[test]
    fn nothing_but_enough_passed_tests_and_a_clean_end_is_success() {
        let reasons = |row: &Row| super::reasons(row, 3);
        let enough: Vec<(&str, End)> = (0..3).map(|_| ("a.b", End::Ok)).collect();
        assert!(reasons(&row(&enough, Ended::Success, &["quiet"])).is_empty());
        let with = |extra| [enough.clone(), vec![extra]].concat();
        let mut failed = row(&with(("a.c", End::Fail)), Ended::Status(3), &[]);
        assert_eq!(reasons(&failed), ["a.c: r"]);
        // A guest that died on the way says so, whatever failed before.
        failed.outcomes[0].end_s = None;
        assert_eq!(reasons(&failed).len(), 2);
        assert!(!reasons(&row(&enough, Ended::Status(0), &[])).is_empty());
        assert!(!reasons(&row(&enough, Ended::OverTime, &[])).is_empty());
        assert!(!reasons(&row(&enough, Ended::PowerCut, &[])).is_empty());
        assert!(!reasons(&row(&enough, Ended::Crashed(11), &[])).is_empty());
        assert!(!reasons(&row(&enough[1..], Ended::Success, &[])).is_empty());
        assert!(!reasons(&row(&enough, Ended::Success, &["[ 1.0] WARNING: CPU: 0"])).is_empty());
        assert!(!reasons(&row(&[], Ended::Success, &[])).is_empty());
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
