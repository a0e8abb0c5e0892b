//! `s3`: ranges of 8 MiB and objects of 16 KiB by S3, beside the clients that people use, all of the same server on the loopback.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    bench::{Bench, Size, words},
    cases::counts::Traced,
    fault::Fault,
    peers::{
        s3_server::{self, BUCKET, KEYS, SMALL_BYTES},
        served::{Client, Program, Served},
    },
    report::{Best, Bound, Case, Metric, Role, Sample},
    rounds::{Before, Subject},
    usage::{self, Finished},
    worker::{self, Worker},
};

const US: &str = "straightway";
const S5CMD: &str = "s5cmd";
const LIMIT: Duration = Duration::from_secs(300);
/// Clients of `peers/s3.py`.
const CLIENTS: [&str; 3] = ["boto3", "obstore", "s3torchconnector"];
const RANGE_BYTES: u64 = 8 << 20;

/// What is read.
#[derive(Clone, Copy)]
struct Shape {
    /// Bytes of the file that the server has.
    file_bytes: u64,
    /// Of a range, or of a small object.
    block: u64,
    count: u64,
    depth: u32,
}

impl Shape {
    fn ranges(size: Size) -> Self {
        let (file_bytes, count) = match size {
            Size::Smoke => (32 << 20, 4),
            Size::Real => (1 << 30, 256),
        };
        Self { file_bytes, block: RANGE_BYTES, count, depth: 8 }
    }

    fn small(size: Size) -> Self {
        let (file_bytes, count) = match size {
            Size::Smoke => (32 << 20, 100),
            Size::Real => (1 << 30, 20_000),
        };
        Self { file_bytes, block: SMALL_BYTES, count, depth: 32 }
    }

    fn is_small(self) -> bool {
        self.block == SMALL_BYTES
    }

    /// The digest that all clients tell that see where their bytes are from.
    fn digest(self) -> String {
        let blocks = self.file_bytes / self.block;
        let sum = s3_server::sum((0..self.count).map(|number| number % blocks * self.block));
        format!("{}-{}-{sum:016x}", self.count, self.count * self.block)
    }
}

/// The two jobs, and what of them are system calls.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let mut cases = Vec::new();
    let (ranges, small) = (Shape::ranges(bench.size), Shape::small(bench.size));
    for (name, shape, what) in [
        ("s3/ranges-8MiB", ranges, "ranges of 8 MiB of an object of 1 GiB, 8 in flight"),
        (
            "s3/objects-16KiB",
            small,
            "objects of 16 KiB, 32 in flight, whose names, lengths and versions are known by a listing before the clock starts",
        ),
    ] {
        if bench.wants(name) {
            cases.push(case(bench, name, shape, what)?);
        }
    }
    if bench.wants("s3/counts") {
        cases.push(counts(bench, &[("8MiB", ranges), ("16KiB", Shape { count: small.count / 10, ..small })])?);
    }
    Ok(cases)
}

pub(super) fn server(bench: &Bench<'_>, file_bytes: u64) -> Result<(Program, PathBuf), Fault> {
    let file = bench.dir.join(format!("s3-{file_bytes}"));
    s3_server::make(&file, file_bytes)?;
    let me = std::env::current_exe().map_err(Fault::os("find", "our own program"))?;
    let args = words(&["worker", "s3-server", "--port=PORT", &format!("--file={}", file.display())]);
    Ok((Program { path: me.to_string_lossy().into_owned(), args, remedy: "build it again" }, file))
}

fn job(shape: Shape, port: u16) -> Vec<String> {
    let Shape { block, depth, .. } = shape;
    let mut args = words(&["s3", &format!("--port={port}"), &format!("--block={block}"), &format!("--depth={depth}")]);
    args.extend(shape.is_small().then(|| "--small".to_owned()));
    args
}

fn case(bench: &mut Bench<'_>, name: &str, shape: Shape, what: &str) -> Result<Case, Fault> {
    let (serve, _) = server(bench, shape.file_bytes)?;
    let side = |name: &str, role, client| -> Box<dyn Subject> {
        Box::new(Served { name: name.to_owned(), role, server: serve.clone(), prepare: None, client })
    };
    let mut subjects = vec![side(US, Role::Ours, ours(bench, shape))];
    for client in CLIENTS {
        subjects.push(side(client, Role::Peer, python(bench, client, shape)));
    }
    subjects.push(side(S5CMD, Role::Peer, s5cmd(bench, shape)));
    let what = format!(
        "{what}; a server of the harness on the loopback, in another process, sends them from the page cache by sendfile and looks at no signature, \
         all clients sign; {S5CMD} writes them to /dev/null, its cost is that of its whole process; CPU is that of the client, server_cpu_s_per_gib that of the server"
    );
    let before = Before { digest: Some(shape.digest()), ..Before::default() };
    let mut case = bench.case(name, &what, subjects, &before);
    let best = case.best_peer(Metric::OpsPerCpuSecond, Best::Highest, |_| true).map(|side| side.name.clone());
    // Without one the goal stays in the report, as not measured.
    let best = best.unwrap_or(CLIENTS[1].to_owned());
    let text = "per CPU second at least 1.5 times the best peer";
    case.hold(text, Metric::OpsPerCpuSecond, US, Some(&best), Bound::AtLeast(1.5));
    let text = "at most 1.2 copies of each byte behind the kernel's own, 2.2 with it";
    case.hold(text, Metric::CpuCopiesPerByte, US, None, Bound::AtMost(2.2));
    Ok(case)
}

fn ours(bench: &Bench<'_>, shape: Shape) -> Client {
    let scratch = bench.scratch.clone();
    Box::new(move |port| {
        let (mut args, scratch) = (job(shape, port), scratch.clone());
        args.push(format!("--ops={}", shape.count));
        let name = US.to_owned();
        Worker { name, role: Role::Ours, own_memory: None, args, files: Vec::new(), scratch }.run()
    })
}

fn python(bench: &Bench<'_>, client: &'static str, shape: Shape) -> Client {
    let python = bench.python.clone();
    Box::new(move |port| {
        let Shape { file_bytes, block, count, depth } = shape;
        let numbers = [u64::from(port), file_bytes, block, count, u64::from(depth)].map(|number| number.to_string());
        let [port, file_bytes, block, count, depth] = numbers.each_ref().map(String::as_str);
        let args = [
            "--peer",
            client,
            "--port",
            port,
            "--file-bytes",
            file_bytes,
            "--block",
            block,
            "--count",
            count,
            "--depth",
            depth,
        ];
        worker::parse(client, &python.peer("s3.py", &args, &[])?)
    })
}

/// The program reads an object as often as it takes, or the small ones by a list of commands.
fn s5cmd(bench: &Bench<'_>, shape: Shape) -> Client {
    let (scratch, program) = (bench.scratch.clone(), bench.python.beside(S5CMD));
    Box::new(move |port| {
        let line = |number: u64| match shape.is_small() {
            true => format!("cat s3://{BUCKET}/{}\n", s3_server::small(number % (shape.file_bytes / shape.block))),
            false => {
                format!("cat --concurrency {} --part-size {} s3://{BUCKET}/large\n", shape.depth, shape.block >> 20)
            }
        };
        let lines = if shape.is_small() { shape.count } else { shape.count * shape.block / shape.file_bytes };
        let list = scratch.join("s5cmd.txt");
        let text: String = (0..lines.max(1)).map(line).collect();
        std::fs::write(&list, text).map_err(Fault::os("write", &list))?;
        let workers = if shape.is_small() { shape.depth } else { 1 };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec \"$0\" \"$@\" >/dev/null"]).arg(&program);
        command.args([
            "--endpoint-url",
            &format!("http://127.0.0.1:{port}"),
            "--numworkers",
            &workers.to_string(),
            "run",
        ]);
        command.arg(&list).envs(KEYS);
        timed(&program, shape, || usage::run(command, &scratch, LIMIT))
    })
}

fn timed(program: &Path, shape: Shape, run: impl FnOnce() -> Result<Finished, Fault>) -> Result<Sample, Fault> {
    if !program.exists() {
        let what = format!("{} is not there", program.display());
        return Err(Fault::Missing { what, remedy: "make it with `cargo xtask bench peers`, where Go is installed" });
    }
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = std::time::Instant::now();
    let finished = run()?;
    let seconds = start.elapsed().as_secs_f64();
    let (ops, bytes) = (shape.count, shape.count * shape.block);
    let mut sample = Sample { ops, bytes, seconds, ..Sample::default() };
    finished.usage.charge(usage::Usage::default(), &mut sample);
    sample.process_cpu_s = sample.cpu_s();
    Ok(sample)
}

/// System calls and allocations, counted as in `counts`.
fn counts(bench: &mut Bench<'_>, shapes: &[(&str, Shape)]) -> Result<Case, Fault> {
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    for (name, shape) in shapes {
        let (name, shape, scratch) = (format!("{US}-{name}"), *shape, bench.scratch.clone());
        let ((server, _), called) = (server(bench, shape.file_bytes)?, name.clone());
        let client: Client = Box::new(move |port| {
            let args = job(shape, port);
            Traced { name: called.clone(), args, files: Vec::new(), scratch: scratch.clone(), ops: shape.count }.run()
        });
        subjects.push(Box::new(Served { name, role: Role::Ours, server, prepare: None, client }));
    }
    let what = "calls and allocations per 1,000 reads; times are strace's";
    Ok(bench.case("s3/counts", what, subjects, &Before::default()))
}
