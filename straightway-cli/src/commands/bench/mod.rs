//! `bench`: rates, latencies and costs of the engine, beside what the machine gives without it.
//!
//! ```text
//!   ceilings (plain system calls) ─► for each size and depth: jobs, each with a lane ─► histogram, processor time, routes
//! ```
//!
//! Setting up (lanes, memory, registrations) is not measured. A cell of several jobs starts when all are ready.

mod ceiling;
mod report;
mod worker;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Barrier,
};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use straightway::{Destination, Engine, ErrorKind, Object, Uri, Verb};

use self::{
    report::{Calls, Ceilings, Cell as CellReport, Cpu, Latency, Machine, Report},
    worker::{Bound, Cell, Found, Worker},
};
use crate::{
    args::{BenchRead, BenchWrite, Pipeline, Workload},
    fail::{Exit, Fail},
    out::Out,
    pipeline::{self, Cuts, Spare},
    session::{self, Stopwatch},
    signals, size,
};

/// How files are laid out and read back, outside of what is measured.
const LAYOUT: Pipeline = Pipeline { piece: 4 << 20, depth: 8 };

/// Runs `bench read`.
///
/// # Errors
/// Those of opening, planning and reading; a byte that is not the pattern's; an interrupt.
pub fn read(args: &BenchRead, out: &mut Out) -> Result<(), Fail> {
    let report = session::with_engine(&args.load.engine, |engine| {
        let object = engine.open(&args.uri)?;
        let bench = Bench { engine, object: &object, verb: Verb::Read, into: args.into, load: &args.load };
        bench.check()?;
        let ceilings = match (&args.uri, args.load.no_ceiling) {
            (Uri::File(path), false) => Some(ceiling::read(engine, Path::new(path), object.len(), args.into)?),
            _ => None,
        };
        bench.run(args.uri.to_string(), ceilings, out)
    })?;
    out.report(&report)
}

/// Runs `bench write`. The file has a hidden name until it is kept, and goes away with every other end.
///
/// # Errors
/// Those of creating, planning and writing; a byte that does not read back; an interrupt.
pub fn write(args: &BenchWrite, out: &mut Out) -> Result<(), Fail> {
    let report = session::with_engine(&args.load.engine, |engine| {
        if args.keep && !args.overwrite && engine.stat(&args.uri).is_ok() {
            return Err(Fail::new(
                Exit::InUse,
                ErrorKind::AlreadyExists.name(),
                format!("{} exists and --keep would replace it", args.uri),
                "name another file, or add --overwrite",
            ));
        }
        let new = engine.create(&args.uri, args.file_size)?;
        let object = new.object();
        let bench = Bench { engine, object, verb: Verb::Write, into: args.into, load: &args.load };
        bench.check()?;
        bench.lay_out(out)?;
        let ceilings = match (&args.uri, args.load.no_ceiling) {
            (Uri::File(path), false) => Some(ceiling::write(engine, Path::new(path), object.len(), args.into)?),
            _ => None,
        };
        let mut report = bench.run(args.uri.to_string(), ceilings, out)?;
        if args.load.verify {
            let verified = bench.read_back(out)?;
            report.cells.iter_mut().for_each(|cell| cell.verified_bytes = verified);
        }
        if args.keep {
            new.commit()?;
        }
        Ok(report)
    })?;
    out.report(&report)
}

struct Bench<'a> {
    engine: &'a Engine,
    object: &'a Object,
    verb: Verb,
    into: Destination,
    load: &'a Workload,
}

impl Bench<'_> {
    /// Refuses what cannot be measured, before anything is.
    fn check(&self) -> Result<(), Fail> {
        let longest = self.load.size.iter().copied().max().unwrap_or(0);
        let need = longest.saturating_add(self.load.offset_shift);
        if self.object.len() < need {
            return Err(Fail::new(
                Exit::Failed,
                ErrorKind::OutOfRange.name(),
                format!("{} has {} bytes, one operation needs {need}", self.object.name(), self.object.len()),
                "use a longer file, or a smaller --size or --offset-shift",
            ));
        }
        if self.verb == Verb::Write && self.load.verify && self.into != Destination::Host {
            return Err(Fail::usage("--verify of writes fills host memory", "use --into host"));
        }
        Ok(())
    }

    fn run(&self, uri: String, ceilings: Option<Ceilings>, out: &Out) -> Result<Report, Fail> {
        let ceiling = ceilings.as_ref().map(|ceilings| ceilings.sequential.bytes_per_s);
        let count = self.load.size.len() * self.load.depth.len();
        let progress = out.steps(count as u64, "measure");
        let mut cells = Vec::with_capacity(count);
        for &size in &self.load.size {
            for &depth in &self.load.depth {
                cells.push(self.measure(size, depth, ceiling)?);
                progress.add(1);
            }
        }
        Ok(Report {
            schema: "straightway.bench/1",
            verb: if self.verb == Verb::Read { "read" } else { "write" },
            uri,
            into: self.into.to_string(),
            len: self.object.len(),
            order: if self.load.random { "random" } else { "sequential" },
            jobs: self.load.jobs,
            offset_shift: self.load.offset_shift,
            verify: self.load.verify,
            seed: self.load.seed,
            machine: machine(),
            ceilings,
            cells,
        })
    }

    /// One size at one depth.
    fn measure(&self, size: u64, depth: u32, ceiling: Option<f64>) -> Result<CellReport, Fail> {
        let jobs = self.load.jobs;
        let bound = match self.load.bytes {
            Some(bytes) => Bound::Operations(bytes.div_ceil(size).div_ceil(u64::from(jobs))),
            None => Bound::Time(self.load.time),
        };
        let cell = Cell {
            engine: self.engine,
            object: self.object,
            verb: self.verb,
            into: self.into,
            policy: self.load.policy,
            size,
            depth,
            jobs,
            random: self.load.random,
            shift: self.load.offset_shift,
            verify: self.load.verify,
            seed: self.load.seed,
            bound,
        };
        let (found, seconds, usage) = run_jobs(cell)?;
        cell_report(&cell, found, seconds, usage, ceiling)
    }

    /// Writes the pattern over the whole file, so that what is measured overwrites blocks that are there.
    fn lay_out(&self, out: &Out) -> Result<(), Fail> {
        let progress = out.progress(self.object.len(), "lay out");
        let mut window = std::collections::VecDeque::new();
        let (mut spare, mut ways) = (Spare::new(self.engine), crate::route::Ways::default());
        let mut cuts = Cuts::new(0..self.object.len(), LAYOUT.piece);
        loop {
            signals::requested()?;
            while window.len() < usize::from(LAYOUT.depth) {
                let Some((offset, len)) = cuts.next() else { break };
                let memory = pipeline::filled(spare.take(offset, len)?, self.load.seed, offset)?;
                window.push_back(((offset, len), self.engine.write(self.object, offset, memory).start()));
            }
            let Some((at, pending)) = window.pop_front() else { break };
            let piece = pipeline::finish(at, pending, &mut ways)?;
            progress.add(piece.len);
            spare.put(piece.memory);
        }
        self.engine.flush(self.object).wait().ok()?;
        Ok(())
    }

    /// Compares the whole file with the pattern.
    fn read_back(&self, out: &Out) -> Result<u64, Fail> {
        let progress = out.progress(self.object.len(), "read back");
        let seed = self.load.seed;
        let range = 0..self.object.len();
        pipeline::read_in_order((self.engine, self.object), range, LAYOUT, self.load.policy, |piece| {
            progress.add(piece.len);
            let offset = piece.offset;
            pipeline::compared(piece.memory, seed, offset, self.object.name())
        })?;
        Ok(self.object.len())
    }
}

/// Runs the jobs of a cell: what they found, the time from the common start to the last end, and the processor time of
/// the process in between.
fn run_jobs(cell: Cell<'_>) -> Result<(Vec<Found>, f64, UsedTime), Fail> {
    let jobs = usize::from(cell.jobs);
    let gate = Barrier::new(jobs + 1);
    std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(jobs);
        for job in 0..cell.jobs {
            let gate = &gate;
            // Every thread passes both gates whatever happens in it, so that nobody waits for ever.
            threads.push(scope.spawn(move || {
                let worker = contained(|| Worker::new(cell, job));
                gate.wait();
                let found = worker.and_then(|worker| contained(|| worker.run()));
                gate.wait();
                found
            }));
        }
        gate.wait();
        let (clock, before) = (Stopwatch::start(), UsedTime::now());
        gate.wait();
        let (seconds, used) = (clock.seconds(), UsedTime::now().since(before));
        let found = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(bug())));
        Ok((found.collect::<Result<Vec<_>, _>>()?, seconds, used))
    })
}

/// A panic in a job is a failure of the bench, not a hang of the others.
fn contained<T>(work: impl FnOnce() -> Result<T, Fail>) -> Result<T, Fail> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(bug()))
}

fn bug() -> Fail {
    Fail::new(Exit::Failed, "bug", "a job of the bench panicked", "report the message above")
}

/// Processor time of this process.
#[derive(Clone, Copy)]
struct UsedTime {
    user_s: f64,
    system_s: f64,
    switches: u64,
}

impl UsedTime {
    fn now() -> Self {
        let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        let switches = |usage: &Usage| usage.voluntary_context_switches() + usage.involuntary_context_switches();
        match getrusage(UsageWho::RUSAGE_SELF) {
            Ok(usage) => Self {
                user_s: seconds(usage.user_time()),
                system_s: seconds(usage.system_time()),
                switches: u64::try_from(switches(&usage)).unwrap_or(0),
            },
            // The call has no way to fail with this argument (getrusage(2), ERRORS).
            Err(_) => Self { user_s: 0.0, system_s: 0.0, switches: 0 },
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            user_s: self.user_s - before.user_s,
            system_s: self.system_s - before.system_s,
            switches: self.switches.saturating_sub(before.switches),
        }
    }
}

fn cell_report(
    cell: &Cell<'_>,
    found: Vec<Found>,
    seconds: f64,
    used: UsedTime,
    ceiling: Option<f64>,
) -> Result<CellReport, Fail> {
    let mut found = found.into_iter();
    let mut sum = found.next().ok_or_else(bug)?;
    for more in found {
        sum.operations += more.operations;
        sum.bytes += more.bytes;
        sum.verified += more.verified;
        sum.ways.join(more.ways);
        sum.counters.ios += more.counters.ios;
        sum.counters.doorbells += more.counters.doorbells;
        sum.counters.polls += more.counters.polls;
        // Both histograms have the same bounds.
        let _ = sum.latency.add(&more.latency);
    }
    let operations = sum.operations.max(1) as f64;
    let bytes_per_s = size::rate(sum.bytes, seconds);
    let cpu_s = used.user_s + used.system_s;
    let counters = sum.counters;
    Ok(CellReport {
        size: cell.size,
        depth: cell.depth,
        seconds,
        operations: sum.operations,
        bytes: sum.bytes,
        bytes_per_s,
        operations_per_s: size::rate(sum.operations, seconds),
        of_ceiling: ceiling.filter(|ceiling| *ceiling > 0.0).map(|ceiling| bytes_per_s / ceiling),
        latency_ns: Latency::of(&sum.latency),
        cpu: Cpu {
            user_s: used.user_s,
            system_s: used.system_s,
            ns_per_operation: cpu_s * 1e9 / operations,
            s_per_gib: cpu_s / (sum.bytes.max(1) as f64 / f64::from(1 << 30)),
            context_switches: used.switches,
        },
        calls: Calls {
            ios: counters.ios,
            doorbells: counters.doorbells,
            polls: counters.polls,
            doorbells_per_operation: counters.doorbells as f64 / operations,
            system_calls_per_operation_max: (counters.doorbells + counters.polls) as f64 / operations,
        },
        copies_per_byte: sum.ways.cpu_copied() as f64 / sum.bytes.max(1) as f64,
        bounced_bytes_per_operation: sum.ways.bounced() as f64 / operations,
        verified_bytes: sum.verified,
        routes: sum.ways.report(),
    })
}

fn machine() -> Machine {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Machine {
        kernel: kernel.trim().to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        version: env!("CARGO_PKG_VERSION"),
    }
}
