//! `nvme-tcp`: our initiator on our target, loopback, beside a bare stream and clients of NBD.

use std::path::Path;

use crate::{
    bench::{Bench, Size, words},
    cases::counts::{OPS, Traced},
    fault::Fault,
    ours::nvme_tcp::Serve,
    peers::{
        served::{Client, Program, Served},
        tcp::{self, Nbd, Way},
    },
    report::{Best, Bound, Case, Metric, Role},
    rounds::{Before, Subject},
    worker::Worker,
};

const US: &str = "straightway";
const DIGESTS: &str = "straightway-digests";
const IPERF: &str = "iperf3";
const STREAM: &str = "tcp-stream";

/// Bytes of the namespace.
fn namespace_bytes(size: Size) -> u64 {
    match size {
        Size::Smoke => 32 << 20,
        Size::Real => 1 << 30,
    }
}

/// What is done to the namespace.
#[derive(Clone, Copy)]
struct Shape {
    way: Way,
    block: u32,
    depth: u32,
}

/// Whether both ends make digests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Digests {
    Off,
    On,
}

/// 128 KiB at depth 32 and 4 KiB at depth 128, reads and writes, and what of it are system calls.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let mut cases = Vec::new();
    for (name, way) in [("read", Way::Read), ("write", Way::Write)] {
        if bench.wants(&format!("nvme-tcp/{name}-128KiB")) {
            cases.push(large(bench, name, Shape { way, block: 128 << 10, depth: 32 })?);
        }
    }
    for (name, way) in [("read", Way::Read), ("write", Way::Write)] {
        if bench.wants(&format!("nvme-tcp/{name}-4KiB")) {
            cases.push(small(bench, name, Shape { way, block: 4096, depth: 128 })?);
        }
    }
    if bench.wants("nvme-tcp/counts") {
        cases.push(counts(bench)?);
    }
    Ok(cases)
}

/// Whether this machine has something that subsystems could know it by.
fn known() -> Result<(), Fault> {
    let there = ["/etc/nvme/hostid", "/etc/machine-id"].iter().any(|path| Path::new(path).exists());
    let what = "the machine has no hostid and no machine-id".to_owned();
    there.then_some(()).ok_or(Fault::Missing { what, remedy: "write a UUID to /etc/nvme/hostid" })
}

/// Arguments of a worker for a job.
fn job(shape: Shape, digests: Digests) -> Vec<String> {
    let Shape { way, block, depth } = shape;
    let mut args = words(&["disk", &format!("--block={block}"), &format!("--depth={depth}")]);
    args.extend((way == Way::Write).then(|| "--write".to_owned()));
    args.extend((block < 65536).then(|| "--random".to_owned()));
    args.extend((digests == Digests::On).then(|| "--digests".to_owned()));
    args
}

fn target(bytes: u64) -> Result<Program, Fault> {
    let me = std::env::current_exe().map_err(Fault::os("find", "our own program"))?;
    let args = words(&["worker", "nvme-tcp-target", "--port=PORT", &format!("--bytes={bytes}")]);
    Ok(Program { path: me.to_string_lossy().into_owned(), args, remedy: "build it again" })
}

/// A side that is a worker on the namespace at a port.
fn worker(bench: &Bench<'_>, name: &str, args: Vec<String>) -> Client {
    let (name, scratch) = (name.to_owned(), bench.scratch.clone());
    Box::new(move |port| {
        let mut args = args.clone();
        args.push(format!("--uri={}", Serve::uri(port)));
        let (name, scratch) = (name.clone(), scratch.clone());
        Worker { name, role: Role::Ours, own_memory: None, args, files: Vec::new(), scratch }.run()
    })
}

/// Writes all of the namespace: what was never written is read more cheaply.
fn fill(bench: &Bench<'_>) -> Client {
    let ops = namespace_bytes(bench.size) >> 20;
    let args = words(&["disk", "--write", "--block=1048576", "--depth=4", &format!("--ops={ops}")]);
    let mut fill = worker(bench, "fill", args);
    Box::new(move |port| known().and_then(|()| fill(port)))
}

fn ours(bench: &Bench<'_>, name: &str, shape: Shape, digests: Digests) -> Result<Box<dyn Subject>, Fault> {
    let mut args = job(shape, digests);
    args.extend(words(&[&format!("--time-ms={}", bench.size.time_ms()), &format!("--seed={}", bench.seed)]));
    let (server, prepare) = (target(namespace_bytes(bench.size))?, Some(fill(bench)));
    Ok(Box::new(Served { name: name.to_owned(), role: Role::Ours, server, prepare, client: worker(bench, name, args) }))
}

fn nbd(bench: &Bench<'_>, Shape { way, block, depth }: Shape) -> Nbd {
    let random = (block < 65536).then_some(bench.seed);
    let (bytes, time_ms) = (namespace_bytes(bench.size), bench.size.time_ms());
    Nbd { bytes, way, block, depth, time_ms, random, scratch: bench.scratch.clone() }
}

fn large(bench: &mut Bench<'_>, name: &str, shape: Shape) -> Result<Case, Fault> {
    let time_ms = bench.size.time_ms();
    let mut subjects = vec![ours(bench, US, shape, Digests::Off)?, ours(bench, DIGESTS, shape, Digests::On)?];
    let way = if shape.way == Way::Read { "read" } else { "write" };
    let stream = words(&[
        "tcp-stream",
        &format!("--way={way}"),
        &format!("--block={}", shape.block),
        &format!("--depth={}", shape.depth),
        &format!("--time-ms={time_ms}"),
    ]);
    subjects.push(bench.worker(STREAM, Role::Ceiling, &stream, &[]));
    subjects.push(Box::new(tcp::iperf3(shape.way, time_ms, &bench.scratch)));
    subjects.push(Box::new(nbd(bench, shape).by_fio()));
    if shape.way == Way::Read {
        subjects.push(Box::new(nbd(bench, shape).by_nbdcopy()));
    }
    let what = format!(
        "128 KiB {name}s in rising order, 32 in flight, one connection on the loopback, a namespace in memory in another process; a bare \
         stream and iperf3 move the same bytes without commands; both ends of {DIGESTS} make CRC-32C of all heads and data; CPU is that of \
         the end that asks, server_cpu_s_per_gib that of the other"
    );
    let mut case = bench.case(&format!("nvme-tcp/{name}-128KiB"), &what, subjects, &Before::default());
    let text = "rate at least 0.8 of one stream of iperf3";
    case.hold(text, Metric::BytesPerSecond, US, Some(IPERF), Bound::AtLeast(0.8));
    let text = "rate at least 0.8 of a bare stream";
    case.hold(text, Metric::BytesPerSecond, US, Some(STREAM), Bound::AtLeast(0.8));
    one_copy(&mut case);
    Ok(case)
}

fn small(bench: &mut Bench<'_>, name: &str, shape: Shape) -> Result<Case, Fault> {
    let subjects = vec![
        ours(bench, US, shape, Digests::Off)?,
        ours(bench, DIGESTS, shape, Digests::On)?,
        Box::new(nbd(bench, shape).by_fio()),
    ];
    let what = format!(
        "4 KiB random {name}s, 128 in flight, one connection on the loopback, a namespace in memory in another process; CPU is that of \
         the end that asks; both ends of {DIGESTS} make CRC-32C of all heads and data"
    );
    let mut case = bench.case(&format!("nvme-tcp/{name}-4KiB"), &what, subjects, &Before::default());
    let best = case.best_peer(Metric::OpsPerCpuSecond, Best::Highest, |_| true).map(|side| side.name.clone());
    // Without one the goal stays in the report, as not measured.
    let best = best.unwrap_or("fio-nbd".to_owned());
    let text = "per CPU second at least 3 times the best user-space peer";
    case.hold(text, Metric::OpsPerCpuSecond, US, Some(&best), Bound::AtLeast(3.0));
    case.hold("no allocation", Metric::AllocationsPerThousand, US, None, Bound::AtMost(0.0));
    one_copy(&mut case);
    Ok(case)
}

/// The kernel's, between the socket and the bytes' place.
fn one_copy(case: &mut Case) {
    case.hold("one copy of each byte", Metric::CpuCopiesPerByte, US, None, Bound::AtMost(1.0));
}

/// System calls and allocations, counted as in `counts`.
fn counts(bench: &mut Bench<'_>) -> Result<Case, Fault> {
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    // strace doubles the operations; of the large ones there are fewer, so that it ends.
    for (name, block, depth, ops) in [("4KiB", 4096, 128, OPS), ("128KiB", 128 << 10, 32, OPS / 10)] {
        for (way, verb) in [(Way::Read, "read"), (Way::Write, "write")] {
            let side = format!("{US}-{verb}-{name}");
            let (args, scratch) = (job(Shape { way, block, depth }, Digests::Off), bench.scratch.clone());
            let called = side.clone();
            let client: Client = Box::new(move |port| {
                let mut args = args.clone();
                args.push(format!("--uri={}", Serve::uri(port)));
                let (name, scratch) = (called.clone(), scratch.clone());
                Traced { name, args, files: Vec::new(), scratch, ops }.run()
            });
            let (server, prepare) = (target(namespace_bytes(bench.size))?, Some(fill(bench)));
            subjects.push(Box::new(Served { name: side, role: Role::Ours, server, prepare, client }));
        }
    }
    let what = "calls and allocations per 1,000 commands of the end that asks; times are strace's";
    let mut case = bench.case("nvme-tcp/counts", what, subjects, &Before::default());
    let text = "no allocation for a 4 KiB read";
    case.hold(text, Metric::AllocationsPerThousand, "straightway-read-4KiB", None, Bound::AtMost(0.0));
    Ok(case)
}
