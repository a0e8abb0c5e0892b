//! `cargo xtask cufile`: one conformance suite against NVIDIA's libcufile and against ours, and the report on both.
//!
//! ```text
//! target/cufile/real   NVIDIA's library and header from the package index (fetch.rs); never committed, never shipped
//! target/cufile/run    the suite (ffi/cufile/conformance/*.c), compiled against that header; what it wrote
//!
//!   suite × {NVIDIA's, ours} × {host memory, memory of the stand-in GPU} ──► rows ─┐
//!   ffi/cufile/conformance/differences.txt: why, for each case ────────────────────┴─► docs/cufile-conformance.md
//! ```
//!
//! A difference that nothing explains fails the command, and so does an explanation of what is no difference. Programs that were
//! written for cuFile are run unmodified by `clients.rs`.

mod clients;
mod compare;
mod fetch;
mod header;
mod report;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::proc::Job;
use crate::{Place, Stop};
use clients::Fetch;
use compare::{Column, Explained, Extent, Rows};
use fetch::Real;

/// Compiling the workspace's crates in the development profile, on two busy cores.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);
/// One pass of the suite over one library: seconds; a case that hangs is ended by the suite.
const RUN_LIMIT: Duration = Duration::from_secs(300);
/// Cases at once: most wait for a disk or a time.
const JOBS: &str = "6";
const DOCUMENT: &str = "docs/cufile-conformance.md";
const ORACLE: &str = "ffi/cufile/conformance/oracle.c";
const DIFFERENCES: &str = "ffi/cufile/conformance/differences.txt";
const UDEV_NAME: &str = "udev-record";
/// What NVIDIA's library looks for in udev's record of a block device.
const UDEV_RECORD: &str = "E:ID_FS_TYPE=ext4\nE:ID_FS_USAGE=filesystem\n";
const USAGE: &str = "write cargo xtask cufile [--write] [--only PREFIX] [--library FILE] [--gpu] [--clients]";

#[derive(Debug, Default)]
struct Options {
    /// Write the document instead of comparing it.
    write: bool,
    /// Cases whose names begin so; the document is then left alone.
    only: Option<String>,
    /// A library that is there already, instead of building ours.
    library: Option<PathBuf>,
    /// Memory of the machine's own GPU, instead of the stand-in's.
    gpu: bool,
    /// The clients alone, large ones too.
    clients: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Options, Stop> {
        let mut options = Options::default();
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| Stop::new(format!("{word} wants a value"), USAGE));
            match word.as_str() {
                "--write" => options.write = true,
                "--gpu" => options.gpu = true,
                "--clients" => options.clients = true,
                "--only" => options.only = Some(value()?.clone()),
                "--library" => options.library = Some(PathBuf::from(value()?)),
                other => return Err(Stop::new(format!("cufile does not know {other}"), USAGE)),
            }
        }
        Ok(options)
    }
}

/// Runs the suite and the clients.
///
/// # Errors
/// What cannot be built or run. Differences are not errors but a bad exit.
pub fn run(place: &Place, args: &[String]) -> Result<ExitCode, Stop> {
    let options = Options::parse(args)?;
    let bench = Bench::set_up(place, &options)?;
    let (conforms, works) = match fetch::real(place) {
        Ok(real) => {
            let fetch = if options.clients { Fetch::All } else { Fetch::Small };
            let conforms = options.clients || conformance(&bench, &real, &options)?;
            (conforms, options.only.is_some() || options.gpu || clients::run(&bench, &real, fetch)?)
        }
        Err(reason) => {
            println!("skip NVIDIA's library and the clients: {reason}");
            (alone(&bench, &options)?, true)
        }
    };
    Ok(if conforms && works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the shared libraries as the step `unit` does, not optimised, and gives their folder: without the tests, or chosen by `-p`, what
/// they are made of has other features and is compiled once more.
///
/// # Errors
/// They do not build.
pub fn build_for_tests(place: &Place) -> Result<PathBuf, Stop> {
    let args = ["test", "--quiet", "--no-run", "--workspace", "--test", "cufile", "--test", "c"];
    let job = Job::cargo(place, &args.map(String::from));
    let status = job.env("CARGO_TARGET_DIR", place.target.display().to_string()).limit(BUILD_LIMIT).watch()?;
    match status {
        0 => Ok(place.target.join("debug/deps")),
        _ => Err(Stop::new(format!("the libraries did not build: {status}"), "see the output above")),
    }
}

/// Where things are that both parts use.
struct Bench<'a> {
    place: &'a Place,
    /// Our library, under the name that programs ask for.
    ours: PathBuf,
    /// A folder with the stand-in driver as libcuda.so.1.
    driver: PathBuf,
    /// What is compiled and written.
    run: PathBuf,
    oracle: Oracle,
}

/// What NVIDIA's library needs on a small machine; see its source, `oracle.c`.
struct Oracle {
    library: PathBuf,
    udev_record: PathBuf,
}

impl Oracle {
    fn beside(&self, job: Job) -> Job {
        job.env("LD_PRELOAD", self.library.display().to_string())
            .env("CONFORMANCE_UDEV_RECORD", self.udev_record.display().to_string())
            // It looks at every device of the machine at each open otherwise; cases about that undo it.
            .env("CUFILE_SKIP_TOPOLOGY_DETECTION", "true")
    }
}

impl<'a> Bench<'a> {
    fn set_up(place: &'a Place, options: &Options) -> Result<Bench<'a>, Stop> {
        let built = match options.library {
            None => build_for_tests(place)?,
            Some(_) => place.target.join("debug/deps"),
        };
        let library = options.library.clone().unwrap_or_else(|| built.join("libstraightway_cufile.so"));
        let run = place.root.join("target/cufile/run");
        let (ours, driver) = (run.join("ours"), run.join("driver"));
        link(&library, &ours.join("libcufile.so.0"))?;
        for name in ["libcuda.so.1", "libcuda.so"] {
            link(&built.join("libstandin_libcuda.so"), &driver.join(name))?;
        }
        let oracle = Oracle { library: run.join("oracle.so"), udev_record: run.join(UDEV_NAME) };
        let bench = Bench { place, ours: ours.join("libcufile.so.0"), driver, run, oracle };
        let mut args = words("-std=gnu11 -Wall -Wextra -Werror -O1 -U_FORTIFY_SOURCE -shared -fPIC");
        args.push(place.root.join(ORACLE).display().to_string());
        args.extend(words("-ldl -o"));
        args.push(bench.oracle.library.display().to_string());
        bench.compile(&args)?;
        bench.write(UDEV_NAME, UDEV_RECORD)?;
        Ok(bench)
    }

    /// Compiles C code; Err: there is no compiler, or it failed.
    fn compile(&self, args: &[String]) -> Result<(), Stop> {
        match Job::program(self.place, Path::new("cc"), args).limit(BUILD_LIMIT).watch()? {
            0 => Ok(()),
            status => Err(Stop::new(format!("cc ended with {status}"), "see its output above")),
        }
    }

    /// A program that loads libcufile, with the header in `include`.
    fn program(&self, include: &Path, sources: &[String], to: &Path) -> Result<(), Stop> {
        let mut args = words("-std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Werror -O1 -g -isystem");
        args.push(include.display().to_string());
        args.extend(sources.iter().cloned());
        args.extend(words("-pthread -ldl -o"));
        args.push(to.display().to_string());
        self.compile(&args)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, Stop> {
        let path = self.run.join(name);
        std::fs::write(&path, text).map_err(|error| failed(&path, &error))?;
        Ok(path)
    }
}

fn link(target: &Path, at: &Path) -> Result<(), Stop> {
    let folder = at.parent().unwrap_or(at);
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    let target = std::fs::canonicalize(target).map_err(|error| failed(target, &error))?;
    let _absent = std::fs::remove_file(at);
    symlink(target, at).map_err(|error| failed(at, &error))
}

fn failed(path: &Path, error: &std::io::Error) -> Stop {
    Stop::new(format!("{}: {error}", path.display()), "build the libraries, or check who may write below target")
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_string).collect()
}

/// The four passes, and what they say beside what is committed. Whether all is well.
fn conformance(bench: &Bench<'_>, real: &Real, options: &Options) -> Result<bool, Stop> {
    let suite = Suite::build(bench, &real.include)?;
    let mut findings = header::findings(bench, real, &suite.files)?;
    if !suite.takes_files(&real.library, options)? {
        println!("skip NVIDIA's library: it takes no file of this file system");
        findings.extend(suite.ours(options)?);
        return Ok(tell(&findings));
    }
    let mut rows = Rows::default();
    for column in Column::ALL {
        let library = if column.is_ours() { &bench.ours } else { &real.library };
        rows.take(column, &suite.pass(column, library, options)?)?;
    }
    let explained = explained(bench)?;
    // Cases that were left out are no difference.
    let whole = options.only.is_none() && !options.gpu;
    findings.extend(rows.findings(&explained, if whole { Extent::Whole } else { Extent::Part }));
    let document = report::render(&rows, &explained);
    if options.gpu {
        let at = bench.write("gpu.md", &document)?;
        println!("the report on this machine's GPU: {}", at.display());
    } else if options.write {
        let at = bench.place.root.join(DOCUMENT);
        std::fs::write(&at, &document).map_err(|error| failed(&at, &error))?;
    } else if whole && std::fs::read_to_string(bench.place.root.join(DOCUMENT)).unwrap_or_default() != document {
        let fresh = bench.write("cufile-conformance.md", &document)?;
        findings
            .push(format!("{DOCUMENT} is not what was found now ({}); cargo xtask cufile --write", fresh.display()));
    }
    passed(rows.well(&explained));
    Ok(tell(&findings))
}

/// Ours without NVIDIA's, against our own header.
fn alone(bench: &Bench<'_>, options: &Options) -> Result<bool, Stop> {
    let suite = Suite::build(bench, &bench.place.root.join("ffi/cufile/include"))?;
    Ok(tell(&suite.ours(options)?))
}

fn explained(bench: &Bench<'_>) -> Result<Explained, Stop> {
    let path = bench.place.root.join(DIFFERENCES);
    Explained::read(&std::fs::read_to_string(&path).map_err(|error| failed(&path, &error))?)
}

/// In the form that the suite of steps counts.
fn passed(count: usize) {
    println!("test result: ok. {count} passed; 0 failed; 0 ignored");
}

/// Prints what is wrong; whether nothing is.
fn tell(findings: &[String]) -> bool {
    for finding in findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        println!("test result: FAILED. 0 passed; {} failed; 0 ignored", findings.len());
    }
    findings.is_empty()
}

/// The compiled suite.
struct Suite<'a> {
    bench: &'a Bench<'a>,
    /// Its sources.
    files: Vec<String>,
    program: PathBuf,
}

impl<'a> Suite<'a> {
    /// With the header in `include`.
    fn build(bench: &'a Bench<'a>, include: &Path) -> Result<Suite<'a>, Stop> {
        let source = bench.place.root.join("ffi/cufile/conformance");
        let program = bench.run.join("conformance");
        let entries = std::fs::read_dir(&source).map_err(|error| failed(&source, &error))?;
        let files = entries.flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> = files
            .filter(|path| path.extension().is_some_and(|end| end == "c") && !path.ends_with("oracle.c"))
            .collect();
        files.sort();
        let files: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
        bench.program(include, &files, &program)?;
        Ok(Suite { bench, files, program })
    }

    /// Whether NVIDIA's library registers a plain file where the cases write.
    fn takes_files(&self, library: &Path, options: &Options) -> Result<bool, Stop> {
        let one = Options { only: Some("handle.buffered".into()), library: None, ..*options };
        let mut rows = Rows::default();
        rows.take(Column::RealHost, &self.pass(Column::RealHost, library, &one)?)?;
        Ok(rows.count(Column::RealHost, compare::Verdict::Pass) == 1)
    }

    /// Ours, with nothing beside it: what fails and is not explained.
    fn ours(&self, options: &Options) -> Result<Vec<String>, Stop> {
        let mut rows = Rows::default();
        for column in Column::ALL.into_iter().filter(|column| column.is_ours()) {
            rows.take(column, &self.pass(column, &self.bench.ours, options)?)?;
        }
        let explained = explained(self.bench)?;
        passed(rows.well(&explained));
        Ok(rows.findings(&explained, Extent::Part))
    }

    /// One pass; its lines.
    fn pass(&self, column: Column, library: &Path, options: &Options) -> Result<Vec<String>, Stop> {
        let scratch = self.bench.run.join(column.folder());
        std::fs::create_dir_all(&scratch).map_err(|error| failed(&scratch, &error))?;
        let mut args = words(&format!("--jobs {JOBS} --memory {}", column.memory()));
        args.extend(["--library".into(), library.display().to_string()]);
        args.extend(["--scratch".into(), scratch.display().to_string()]);
        args.extend(options.only.iter().flat_map(|prefix| ["--only".into(), prefix.clone()]));
        let mut job =
            Job::program(self.bench.place, &self.program, &args).limit(RUN_LIMIT).echo(crate::proc::Echo::Hidden);
        if !column.is_ours() {
            job = self.bench.oracle.beside(job);
        }
        if column.memory() == "device" && !options.gpu {
            job = job.env("LD_LIBRARY_PATH", self.bench.driver.display().to_string());
        }
        let outcome = job.run()?;
        if !outcome.ok() {
            let remedy = format!("run {} by hand", self.program.display());
            return Err(Stop::new(format!("the suite ended badly in {}: {:?}", column.title(), outcome.ended), remedy));
        }
        println!("    {}: {} cases in {:.1} s", column.title(), outcome.lines.len(), outcome.elapsed.as_secs_f64());
        Ok(outcome.lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let parse = |line: &str| Options::parse(&words(line));
        let options = parse("--only read. --library a.so --gpu").unwrap();
        assert_eq!((options.only.as_deref(), options.library.as_deref()), (Some("read."), Some(Path::new("a.so"))));
        assert!(options.gpu && !options.write && !options.clients);
        assert!(parse("--only").is_err() && parse("--fast").is_err());
    }
}
