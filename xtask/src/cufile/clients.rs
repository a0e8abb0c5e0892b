//! Programs that were written for cuFile, unmodified, on our library and on memory of the stand-in GPU.
//!
//! ```text
//! fio      its own engine file from the source package of the distribution, loaded by the distribution's fio
//! KvikIO   from the package index; finds the library because it is loaded before it
//! NIXL     the same, its GDS plugins; 310 MB, so it is fetched for `--clients` only
//! both     a program that has NVIDIA's library and ours loaded at once
//! route    the other way round: our own command, which moves bytes by NVIDIA's library
//! ```
//!
//! elbencho is in neither the distribution nor the package index.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fetch::{self, Real};
use super::{BUILD_LIMIT, Bench, failed, link, words};
use crate::Stop;
use crate::proc::{Echo, Ended, Job};

/// One client, with what it imports: seconds.
const RUN_LIMIT: Duration = Duration::from_secs(120);
/// The configuration of fio's source: some hundred small programs are compiled.
const CONFIGURE_LIMIT: Duration = Duration::from_secs(300);
const ROUTE_TEST: &str = "vendor::nvidias_own_library_moves_bytes_and_ours_is_refused";
/// A program's exit where the machine or its file system does not let it run.
const CANNOT: i32 = 77;
/// What fio runs: verified bytes, then each direction from two threads, at sizes that are no power of two too.
const FIO_JOBS: [&str; 4] = [
    "--rw=randwrite --bs=64k --direct=1 --verify=crc32c",
    "--rw=randread --bs=64k --direct=1 --thread --numjobs=2",
    "--rw=write --bs=1m --direct=1 --thread --numjobs=2",
    "--rw=randrw --bs=12k --direct=0",
];

/// Which clients are fetched if they are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// Small ones; a large one is run if it is there already.
    Small,
    All,
}

/// Whether all that can be had here work.
///
/// # Errors
/// What cannot be written or started. A client that cannot be had is a skip.
pub fn run(bench: &Bench<'_>, real: &Real, fetch: Fetch) -> Result<bool, Stop> {
    let folder = bench.run.join("clients");
    std::fs::create_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
    let clients = Clients { bench, real, folder };
    let mut well = true;
    for (name, outcome) in [
        ("fio's libcufile engine", clients.fio()?),
        ("KvikIO", clients.kvikio()?),
        ("NIXL", clients.nixl(fetch)?),
        ("NVIDIA's library beside ours", clients.both()?),
        ("NVIDIA's library as a route of the command line", clients.route()?),
    ] {
        match outcome {
            Ran::Well(count) => {
                println!("    {name}: works");
                println!("test result: ok. {count} passed; 0 failed; 0 ignored");
            }
            Ran::Badly(said) => {
                println!("{name} failed:\n{said}\ntest result: FAILED. 0 passed; 1 failed; 0 ignored");
                well = false;
            }
            Ran::Not(reason) => println!("skip {name}: {reason}"),
        }
    }
    Ok(well)
}

/// What became of a client.
enum Ran {
    /// So many tests of it passed.
    Well(u64),
    Badly(String),
    Not(String),
}

struct Clients<'a> {
    bench: &'a Bench<'a>,
    real: &'a Real,
    folder: PathBuf,
}

impl Clients<'_> {
    fn kvikio(&self) -> Result<Ran, Stop> {
        let packages = match fetch::kvikio(self.bench.place) {
            Ok(packages) => packages,
            Err(reason) => return Ok(Ran::Not(reason)),
        };
        self.python("kvikio_round_trip.py", &packages)
    }

    fn nixl(&self, wanted: Fetch) -> Result<Ran, Stop> {
        if wanted == Fetch::Small && !fetch::has_nixl(self.bench.place) {
            return Ok(Ran::Not("310 MB; cargo xtask cufile --clients fetches and runs it".into()));
        }
        match fetch::nixl(self.bench.place) {
            Ok(packages) => self.python("nixl_batches.py", &packages),
            Err(reason) => Ok(Ran::Not(reason)),
        }
    }

    /// A script with packages, our library and the stand-in driver; its last line is of the form that tests have.
    fn python(&self, script: &str, packages: &Path) -> Result<Ran, Stop> {
        // KvikIO's stream calls want some file of settings to be there.
        let settings = self.bench.write("clients/cufile.json", "{}\n")?;
        let path = self.bench.place.root.join("ffi/cufile/conformance/clients").join(script);
        let ours = self.bench.ours.display().to_string();
        let args = [path.display().to_string(), self.folder.display().to_string(), ours.clone()];
        // Where NIXL's plugins look for the CUDA runtime that is among its packages.
        let libraries = format!("{}:{}", self.bench.driver.display(), packages.join("nvidia/cu13/lib").display());
        let job = Job::program(self.bench.place, &fetch::python(self.bench.place), &args)
            .env("PYTHONPATH", packages.display().to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("LD_LIBRARY_PATH", libraries)
            .env("LD_PRELOAD", ours)
            .env("CUFILE_ENV_PATH_JSON", settings.display().to_string());
        let outcome = job.merge_stderr().echo(Echo::Hidden).limit(RUN_LIMIT).run()?;
        let last = outcome.lines.last().and_then(|line| line.strip_prefix("test result: ok. "));
        let count = last.and_then(|text| text.split(' ').next()).and_then(|digits| digits.parse().ok());
        Ok(match count {
            Some(count) if outcome.ok() => Ran::Well(count),
            _ => Ran::Badly(outcome.lines.join("\n")),
        })
    }

    /// Either library is the first to be loaded and the first to go.
    fn both(&self) -> Result<Ran, Stop> {
        let program = self.folder.join("both");
        let source = self.bench.place.root.join("ffi/cufile/conformance/clients/both.c");
        self.bench.program(&self.real.include, &[source.display().to_string()], &program)?;
        for first in ["nvidia", "ours"] {
            let paths = [&self.real.library, &self.bench.ours, &self.folder];
            let mut args: Vec<String> = paths.map(|path| path.display().to_string()).into();
            args.push(first.to_string());
            let job = self.bench.oracle.beside(Job::program(self.bench.place, &program, &args)).dir(&self.folder);
            let outcome = job.merge_stderr().echo(Echo::Hidden).limit(RUN_LIMIT).run()?;
            if outcome.ended == Ended::Exit(CANNOT) {
                return Ok(Ran::Not(outcome.lines.join("; ")));
            }
            let well = outcome.lines.last().is_some_and(|line| line.starts_with("test result: ok. "));
            if !outcome.ok() || !well {
                return Ok(Ran::Badly(format!("{first} first: {}", outcome.lines.join("\n"))));
            }
        }
        Ok(Ran::Well(2))
    }

    /// The test of the command line that needs the real library.
    fn route(&self) -> Result<Ran, Stop> {
        let args = [
            "test",
            "--quiet",
            "--workspace",
            "--test",
            "cli",
            "--",
            "--ignored",
            "--exact",
            ROUTE_TEST,
            "--nocapture",
        ];
        let job = Job::cargo(self.bench.place, &args.map(String::from))
            .env("CARGO_TARGET_DIR", self.bench.place.target.display().to_string())
            .env("STRAIGHTWAY_LIBCUFILE", self.real.library.display().to_string())
            .env("STRAIGHTWAY_LIBCUFILE_OURS", self.bench.ours.display().to_string())
            .env("STRAIGHTWAY_LIBCUFILE_BESIDE", self.bench.oracle.library.display().to_string())
            .env("CONFORMANCE_UDEV_RECORD", self.bench.oracle.udev_record.display().to_string())
            .env("CUFILE_SKIP_TOPOLOGY_DETECTION", "true");
        let outcome = job.merge_stderr().echo(Echo::Hidden).limit(BUILD_LIMIT).run()?;
        if let Some(reason) = outcome.lines.iter().find_map(|line| line.strip_prefix("skip: ")) {
            return Ok(Ran::Not(reason.to_string()));
        }
        let well = outcome.lines.iter().any(|line| line.starts_with("test result: ok. 1 passed"));
        Ok(if outcome.ok() && well { Ran::Well(1) } else { Ran::Badly(outcome.lines.join("\n")) })
    }

    fn fio(&self) -> Result<Ran, Stop> {
        let version = match self.ask(Path::new("fio"), "--version", &self.folder) {
            Some(lines) => lines.first().and_then(|line| line.strip_prefix("fio-")).unwrap_or_default().to_string(),
            None => return Ok(Ran::Not("fio is missing; install fio".into())),
        };
        let source = match fetch::fio_source(self.bench.place, &version) {
            Ok(source) => source,
            Err(reason) => return Ok(Ran::Not(reason)),
        };
        let headers = match fetch::cuda_headers(self.bench.place) {
            Ok(headers) => headers,
            Err(reason) => return Ok(Ran::Not(reason)),
        };
        let engine = self.engine(&source, &headers)?;
        let file = self.folder.join("fio.data");
        let mut ran = 0;
        for job in FIO_JOBS {
            let line = format!(
                "--name=job --ioengine=external:{} --cuda_io=cufile --gpu_dev_ids=0 --size=8m --filename={} {job}",
                engine.display(),
                file.display()
            );
            let job = Job::program(self.bench.place, Path::new("fio"), &words(&line)).dir(&self.folder);
            let job = job.env("LD_LIBRARY_PATH", self.stage().display().to_string());
            let outcome = job.merge_stderr().echo(Echo::Hidden).limit(RUN_LIMIT).run()?;
            let clean = outcome.lines.iter().any(|line| line.contains("err= 0"));
            if !outcome.ok()
                || !clean
                || outcome.lines.iter().any(|line| line.contains("verify:") || line.contains("err=-"))
            {
                return Ok(Ran::Badly(outcome.lines.join("\n")));
            }
            ran += 1;
        }
        let _gone = std::fs::remove_file(file);
        Ok(Ran::Well(ran))
    }

    /// Libraries under the names that a linker and a program look for.
    fn stage(&self) -> PathBuf {
        self.folder.join("lib")
    }

    /// fio's engine, as its source has it, as a library that fio loads.
    fn engine(&self, source: &Path, headers: &Path) -> Result<PathBuf, Stop> {
        let (stage, engine) = (self.stage(), self.folder.join("libcufile-engine.so"));
        for name in ["libcufile.so", "libcufile.so.0"] {
            link(&self.bench.ours, &stage.join(name))?;
        }
        for name in ["libcuda.so", "libcuda.so.1"] {
            link(&self.bench.driver.join("libcuda.so.1"), &stage.join(name))?;
        }
        let shim = self.bench.place.root.join("ffi/cufile/conformance/clients/cudart.c");
        let includes =
            [headers, &self.real.include].map(|path| ["-isystem".to_string(), path.display().to_string()]).concat();
        let mut args = words("-shared -fPIC -O1 -Wall -Wextra -Werror -Wl,-soname,libcudart.so.13");
        args.extend(includes.clone());
        args.extend([shim.display().to_string(), "-L".into(), stage.display().to_string()]);
        args.extend(["-lcuda".into(), "-o".into(), stage.join("libcudart.so.13").display().to_string()]);
        self.bench.compile(&args)?;
        link(&stage.join("libcudart.so.13"), &stage.join("libcudart.so"))?;
        // Warnings are its authors' matter.
        let mut args = words("-shared -fPIC -O2 -w -D_GNU_SOURCE -DCONFIG_DYNAMIC_ENGINES -include");
        args.extend([source.join("config-host.h").display().to_string(), "-I".into(), source.display().to_string()]);
        args.extend(includes);
        args.extend([
            source.join("engines/libcufile.c").display().to_string(),
            "-L".into(),
            stage.display().to_string(),
        ]);
        args.extend(words("-lcufile -lcudart -lcuda -o"));
        args.push(engine.display().to_string());
        self.configure(source)?;
        // Under a name without its version, for tests of other engines.
        link(source, &source.with_file_name("configured"))?;
        self.bench.compile(&args)?;
        Ok(engine)
    }

    /// Makes the header that says what the compiler and the machine have, once.
    fn configure(&self, source: &Path) -> Result<(), Stop> {
        if source.join("config-host.h").is_file() {
            return Ok(());
        }
        let script = source.join("configure");
        let job = Job::program(self.bench.place, &script, &words("--disable-native")).dir(source);
        let outcome = job.echo(Echo::Hidden).limit(CONFIGURE_LIMIT).run()?;
        if outcome.ok() {
            return Ok(());
        }
        Err(Stop::new(format!("fio's configure ended with {:?}", outcome.ended), format!("run {}", script.display())))
    }

    fn ask(&self, program: &Path, word: &str, dir: &Path) -> Option<Vec<String>> {
        let job =
            Job::program(self.bench.place, program, &[word.to_string()]).dir(dir).echo(Echo::Hidden).limit(RUN_LIMIT);
        job.run().ok().filter(|outcome| outcome.ok()).map(|outcome| outcome.lines)
    }
}
