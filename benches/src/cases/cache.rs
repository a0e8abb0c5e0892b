//! `cache`: what the cache of remote objects gives and costs, beside a local file and beside no cache, of one server on the loopback.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::{
    bench::{Bench, Size, words},
    cases::s3,
    data::{self, CacheState},
    fault::Fault,
    peers::{
        s3_server::{self, KEYS},
        served::{Client, Program, Served},
    },
    report::{Bound, Case, Metric, Role},
    rounds::{Before, Subject},
    worker::Worker,
};

const FILE: &str = "local-file";
const HIT: &str = "hit";
const FIRST: &str = "hit-first-use";
const GUEST: &str = "hit-guest";
const NONE: &str = "no-cache";
const MISS: &str = "miss";
const WARM: &str = "warm";
/// Bytes of an operation where all of the object is read by large ones.
const LARGE: u64 = 8 << 20;
/// The same of small ones.
const SMALL: u64 = 128 << 10;

/// What is read: all of an object, in its order.
#[derive(Clone)]
struct Job {
    server: Program,
    /// What the server has, which a side may read itself.
    file: PathBuf,
    /// The directory of the cache.
    dir: PathBuf,
    scratch: PathBuf,
    bytes: u64,
    block: u64,
    depth: u32,
}

/// Where a side's bytes are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    File,
    Server,
    Cache,
}

impl Job {
    fn of(bench: &Bench<'_>, (block, depth): (u64, u32)) -> Result<Self, Fault> {
        let bytes = match bench.size {
            Size::Smoke => 32 << 20,
            Size::Real => 1 << 30,
        };
        let (server, file) = s3::server(bench, bytes)?;
        let (dir, scratch) = (bench.scratch.join("cache"), bench.scratch.clone());
        Ok(Self { server, file, dir, scratch, bytes, block, depth })
    }

    fn digest(&self) -> String {
        let count = self.bytes / self.block;
        let sum = s3_server::sum((0..count).map(|number| number * self.block));
        format!("{count}-{}-{sum:016x}", self.bytes)
    }

    fn args(&self, port: u16, from: From, before: &str) -> Vec<String> {
        let Self { bytes, block, depth, dir, file, .. } = self;
        let mut args =
            words(&["s3", &format!("--port={port}"), &format!("--block={block}"), &format!("--depth={depth}")]);
        args.extend([format!("--ops={}", bytes / block), format!("--before={before}")]);
        match from {
            From::Server => {}
            From::File => args.push(format!("--file={}", file.display())),
            From::Cache => {
                args.extend([
                    format!("--engine=cache_dir={}", dir.display()),
                    format!("--engine=cache_bytes={}", 2 * bytes),
                ]);
            }
        }
        args
    }

    fn worker(&self, name: &str, args: Vec<String>) -> Worker {
        let (name, scratch) = (name.to_owned(), self.scratch.clone());
        Worker { name, role: Role::Ours, own_memory: None, args, files: Vec::new(), scratch }
    }

    /// A side with a cache that nobody has filled, or with none.
    fn side(&self, (name, role): (&str, Role), from: From, before: &'static str) -> Box<dyn Subject> {
        let (job, called) = (self.clone(), name.to_owned());
        let client: Client = Box::new(move |port| {
            job.clear()?;
            // A local file is read past the page cache, as the cache's own is; the server sends it from there.
            let state = if from == From::File { CacheState::Cold } else { CacheState::Warm };
            data::set_cache(std::slice::from_ref(&job.file), state)?;
            let sample = job.worker(&called, job.args(port, from, before)).run();
            job.clear()?;
            sample
        });
        Box::new(Served { name: name.to_owned(), role, server: self.server.clone(), prepare: None, client })
    }

    /// One that reads what another process has kept, and left.
    fn after_another(&self) -> Box<dyn Subject> {
        let (job, its) = (self.clone(), self.clone());
        let prepare: Client = Box::new(move |port| {
            its.clear()?;
            its.worker(FIRST, its.args(port, From::Cache, "read")).run()
        });
        let client: Client = Box::new(move |port| {
            let sample = job.worker(FIRST, job.args(port, From::Cache, "nothing")).run();
            job.clear()?;
            sample
        });
        let (name, server) = (FIRST.to_owned(), self.server.clone());
        Box::new(Served { name, role: Role::Ours, server, prepare: Some(prepare), client })
    }

    /// One that reads what another process keeps, which has the cache.
    fn beside_another(&self) -> Box<dyn Subject> {
        let job = self.clone();
        let client: Client = Box::new(move |port| {
            job.clear()?;
            let holder = Holder::start(&job.args(port, From::Cache, "hold"))?;
            let sample = job.worker(GUEST, job.args(port, From::Cache, "nothing")).run();
            drop(holder);
            job.clear()?;
            sample
        });
        let (name, server) = (GUEST.to_owned(), self.server.clone());
        Box::new(Served { name, role: Role::Ours, server, prepare: None, client })
    }

    fn clear(&self) -> Result<(), Fault> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Fault::os("remove", &self.dir)(error)),
            _ => Ok(()),
        }
    }
}

/// A process that has the cache, until it is dropped.
struct Holder(Child);

impl Holder {
    fn start(args: &[String]) -> Result<Self, Fault> {
        let me = std::env::current_exe().map_err(Fault::os("find", "our own program"))?;
        let mut command = Command::new(&me);
        command.arg("worker").args(args).envs(KEYS).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = Self(command.spawn().map_err(Fault::os("start", &me))?);
        let mut line = String::new();
        if let Some(told) = holder.0.stdout.take() {
            // It ends with the process: its reads have their limits.
            BufReader::new(told).read_line(&mut line).map_err(Fault::os("hear", &me))?;
        }
        if line.trim() == "held" {
            return Ok(holder);
        }
        Err(Fault::Output { program: "the process that has the cache".to_owned(), words: line })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // One that ended by itself is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All four.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let mut cases = Vec::new();
    for (name, shape) in [("cache/hit-8MiB", (LARGE, 8)), ("cache/hit-128KiB", (SMALL, 32))] {
        if bench.wants(name) {
            cases.push(hit(bench, name, shape)?);
        }
    }
    if bench.wants("cache/miss") {
        cases.push(miss(bench)?);
    }
    if bench.wants("cache/warm") {
        cases.push(warm(bench)?);
    }
    Ok(cases)
}

fn hit(bench: &mut Bench<'_>, name: &str, shape: (u64, u32)) -> Result<Case, Fault> {
    let job = Job::of(bench, shape)?;
    let subjects = vec![
        job.side((FILE, Role::Peer), From::File, "nothing"),
        job.side((HIT, Role::Ours), From::Cache, "read"),
        job.after_another(),
        job.beside_another(),
    ];
    let what = format!(
        "an object of {} MiB from its beginning to its end by reads of {} KiB, {} in flight, all of it kept, in blocks of 1 MiB: \
         {FILE}: the same bytes of a local file on the same disk, past the page cache; {HIT}: behind a read of all in the same process; \
         {FIRST}: in a process that compares each block with its checksum first; {GUEST}: beside a process that has the cache, whose CPU is not in it",
        job.bytes >> 20,
        job.block >> 10,
        job.depth
    );
    let before = Before { digest: Some(job.digest()), ..Before::default() };
    let mut case = bench.case(name, &what, subjects, &before);
    let text = "a hit at least 0.95 of a direct local read";
    case.hold(text, Metric::BytesPerSecond, HIT, Some(FILE), Bound::AtLeast(0.95));
    let text = "a hit of a guest at least 0.95 of a direct local read";
    case.hold(text, Metric::BytesPerSecond, GUEST, Some(FILE), Bound::AtLeast(0.95));
    Ok(case)
}

fn miss(bench: &mut Bench<'_>) -> Result<Case, Fault> {
    let job = Job::of(bench, (LARGE, 8))?;
    let subjects = vec![
        job.side((NONE, Role::Peer), From::Server, "nothing"),
        job.side((MISS, Role::Ours), From::Cache, "nothing"),
    ];
    let what = format!(
        "an object of {} MiB from its beginning to its end by reads of 8 MiB, 8 in flight, from a server of the harness on the loopback: \
         {NONE}, and {MISS} with an empty cache beside it; kept_after_s is the time until all that the cache took is on its disk, which is not in the time, \
         left_blocks_per_1000 the blocks of a thousand that it left",
        job.bytes >> 20
    );
    let before = Before { digest: Some(job.digest()), ..Before::default() };
    let mut case = bench.case("cache/miss", &what, subjects, &before);
    let text = "a miss takes at most 1.03 of the time without a cache";
    case.hold(text, Metric::Seconds, MISS, Some(NONE), Bound::AtMost(1.03));
    Ok(case)
}

fn warm(bench: &mut Bench<'_>) -> Result<Case, Fault> {
    let job = Job::of(bench, (LARGE, 4))?;
    let subjects =
        vec![job.side((NONE, Role::Peer), From::Server, "nothing"), job.side((WARM, Role::Ours), From::Cache, "warm")];
    let what = format!(
        "an object of {} MiB from a server of the harness on the loopback: {NONE}, a read of all by 8 MiB, 4 in flight, into memory; {WARM}, until all of it is \
         on the disk of the cache, which is then read and compared",
        job.bytes >> 20
    );
    let before = Before { digest: Some(job.digest()), ..Before::default() };
    Ok(bench.case("cache/warm", &what, subjects, &before))
}
