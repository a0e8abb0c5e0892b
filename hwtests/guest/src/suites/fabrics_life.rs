//! Associations with the kernel's target that begin, end, are cut off and change, under load: what is read, what became of writes.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use straightway::{Engine, NvmeTcp, NvmeTcpDigests, Object, WriteOutcome};
use sw_engine::ErrorKind;

use super::fabrics::{NQN, Over, SEED, SERIAL, Target, connect, known, memory, nvmet, opened, read};
use crate::block;
use crate::context::{Context, entries, read_text, write_text};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "fabrics-life",
    tests: &[
        Test::new("capsules", "bytes are right with each size of capsules and each kind of digests", capsules)
            .bed_only()
            .limit_s(120),
        Test::new("ipv6", "the same bytes by IPv6, and the same object when the subsystem comes back", ipv6)
            .bed_only()
            .limit_s(60),
        Test::new("queues", "fewer and more I/O queues with the next association: bytes, or a named reason", queues)
            .bed_only()
            .limit_s(90),
        Test::new("port", "the target is torn down and set up again under reads and writes", port)
            .bed_only()
            .limit_s(120),
        Test::new("stopped", "a host that was stopped past KATO is given up, and goes on when it runs again", stopped)
            .bed_only()
            .limit_s(90),
        Test::new("churn", "a thousand associations leave no descriptor, thread or controller behind", churn)
            .bed_only()
            .limit_s(240),
    ],
};

/// KATO of tests that wait until the target has let go. Linux's target rounds to whole seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// No write is sent for so long after one of unknown outcome: three times KATO, as any command is a sign of life to Linux's target.
const FENCE: Duration = Duration::from_secs(3);

fn engine(tcp: NvmeTcp) -> Result<Engine, Stop> {
    known()?;
    Ok(Engine::builder().nvme_tcp(tcp).build()?)
}

fn capsules(context: &Context) -> Verdict {
    let start = Instant::now();
    no_capsules(context)?;
    // Connect and nothing else, one block, Linux's default, and more.
    for bytes in [1024u64, 4096, 16384, 65536] {
        let target = Target::prepare()?;
        write_text(&nvmet("ports/1/param_inline_data_size"), &bytes.to_string())?;
        target.offer()?;
        for digests in [NvmeTcpDigests::None, NvmeTcpDigests::Header, NvmeTcpDigests::Data, NvmeTcpDigests::Both] {
            let engine = engine(NvmeTcp { digests, ..NvmeTcp::default() })?;
            let object = opened(&engine)?;
            // At both sides of what fits a capsule, and many commands' worth.
            let mut at = 0;
            for len in [4096, 8192, 16384, 20480, 65536, 69632, 1 << 20] {
                let content = block::pattern(SEED + bytes + at, at, len);
                let done = engine.write(&object, at, memory(&content)?).wait();
                let path = done.path;
                done.ok()?;
                same("the way of a write", &(path.to_string().starts_with("nvme+tcp/"), path.bounced), &(true, 0))?;
                let mut there = vec![0; len];
                target.backing()?.read_exact_at(&mut there, at)?;
                let what = format!("{len} bytes at {at} with capsules of {bytes} bytes and digests {digests:?}");
                same(&what, &(there == content, read(&engine, &object, at, len)? == content), &(true, true))?;
                at += len as u64;
            }
        }
        context.fact(&json!({"capsule_bytes": bytes, "after_s": start.elapsed().as_secs_f64()}));
    }
    Ok(())
}

/// Linux's target with capsules without data takes no Connect, whose data is in its capsule over TCP: not the kernel's initiator's either.
fn no_capsules(context: &Context) -> Verdict {
    let target = Target::prepare()?;
    write_text(&nvmet("ports/1/param_inline_data_size"), "0")?;
    target.offer()?;
    let ours = opened(&engine(NvmeTcp::default())?).err().map(|stop| stop.to_string()).unwrap_or_default();
    let theirs = connect(([127, 0, 0, 1], 4420).into(), NQN);
    context.fact(&json!({"ours": ours, "theirs": format!("{theirs:?}")}));
    same("whether they connect", &(ours.contains("sgl offset invalid"), theirs.is_err()), &(true, true))
}

fn ipv6(_: &Context) -> Verdict {
    let target = Target::prepare()?;
    for (file, text) in [("addr_adrfam", "ipv6"), ("addr_traddr", "::1")] {
        write_text(&nvmet("ports/1").join(file), text)?;
    }
    target.offer()?;
    let engine = engine(NvmeTcp::default())?;
    let object = engine.open_for_update(&format!("nvme+tcp://[::1]/{NQN}?nsid=1&serial={SERIAL}").parse()?)?;
    let content = block::pattern(SEED, 0, 3 << 20);
    engine.write(&object, 4096, memory(&content)?).wait().ok()?;
    for again in [false, true] {
        if again {
            target.withdraw()?;
            target.offer()?;
        }
        let mut there = vec![0; content.len()];
        target.backing()?.read_exact_at(&mut there, 4096)?;
        let ours = read(&engine, &object, 4096, content.len())?;
        same("the bytes", &(there == content, ours == content), &(true, true))?;
    }
    Ok(object.check_unchanged()?)
}

/// Connections of this guest to the target that are up, seen from our end.
fn connections() -> Result<usize, Stop> {
    // 4420 is 1144 in hexadecimal; 01 is established (Linux, `Documentation/networking/proc_net_tcp.rst`).
    let is_ours = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.len() > 3 && words[2].ends_with(":1144") && words[3] == "01"
    };
    Ok(read_text(Path::new("/proc/net/tcp"))?.lines().filter(|line| is_ours(line)).count())
}

/// Many reads at a time; how many gave their bytes, and which errors the others ended with.
fn reads(engine: &Engine, object: &Object, content: &[u8]) -> Result<(usize, Vec<ErrorKind>), Stop> {
    let len = 64 << 10;
    let requests = content
        .chunks(len)
        .enumerate()
        .map(|(n, _)| Ok(engine.read(object, (n * len) as u64, memory(&vec![0; len])?)))
        .collect::<Result<Vec<_>, Stop>>()?;
    let mut good = 0;
    let mut errors = Vec::new();
    for (wanted, done) in content.chunks(len).zip(engine.batch(requests).wait()) {
        match done.result.as_ref().err().map(straightway::Error::kind) {
            Some(kind) if errors.contains(&kind) => {}
            Some(kind) => errors.push(kind),
            None => {
                let mut got = vec![0; len];
                done.into_memory().ok_or_else(|| Stop::Fail("no memory".into()))?.read(0, &mut got)?;
                same("the bytes of a read", &(got == wanted), &true)?;
                good += 1;
            }
        }
    }
    Ok((good, errors))
}

fn queues(context: &Context) -> Verdict {
    let target = Target::make()?;
    let content = block::pattern(SEED, 0, 8 << 20);
    target.backing()?.write_all_at(&content, 0)?;
    known()?;
    let engine = Engine::builder().reactors(4).build()?;
    let object = opened(&engine)?;
    let count = content.len() / (64 << 10);
    for (queues, few) in [(8, false), (1, true), (2, true), (8, false)] {
        // The kernel ends the associations itself when the number changes.
        write_text(&nvmet(&format!("subsystems/{NQN}/attr_qid_max")), &queues.to_string())?;
        // In line, so that the next association is there.
        let first = read(&engine, &object, 0, 4096);
        let (good, errors) = reads(&engine, &object, &content)?;
        let up = connections()?;
        context.fact(&json!({"queues": queues, "first": format!("{:?}", first.as_ref().map(Vec::len)), "good": good,
            "errors": format!("{errors:?}"), "connections": up}));
        if up > queues + 1 {
            return fail(format!("{up} connections, where there are {queues} queues and the admin queue"));
        }
        let whole = errors.is_empty() && good == count && first.is_ok_and(|bytes| bytes == content[..4096]);
        // Each lane has a queue of its own or says that there is none.
        let only_queues = errors.iter().all(|kind| *kind == ErrorKind::ResourceLimit);
        if !(whole || few && only_queues) {
            return fail(format!("with {queues} queues {good} reads of {count} are good, others end with {errors:?}"));
        }
    }
    Ok(object.check_unchanged()?)
}

/// Writes into one place, and what it may hold: a number for each content.
struct Place {
    at: u64,
    may_hold: BTreeSet<u64>,
    next: u64,
}

/// What became of writes.
#[derive(Default)]
struct Writes {
    applied: u64,
    not_applied: u64,
    /// Connections were lost with these on them.
    unknown: u64,
    /// Refused by a status.
    answered: u64,
    ends: BTreeMap<String, u64>,
    /// From before each loss with a write of unknown outcome until a write was applied again.
    fenced_s: Vec<f64>,
}

impl Writes {
    fn add(&mut self, more: Self) {
        self.applied += more.applied;
        self.not_applied += more.not_applied;
        self.unknown += more.unknown;
        self.answered += more.answered;
        self.fenced_s.extend(more.fenced_s);
        more.ends.into_iter().for_each(|(end, count)| *self.ends.entry(end).or_default() += count);
    }
}

const PIECE: usize = 512 << 10;
/// Places of each thread that writes, of which there are so many: while one makes contents, others have writes under way.
const PLACES: u64 = 8;
const WRITERS: u64 = 3;
/// Times that the target goes at most.
const ROUNDS_MAX: u32 = 15;

/// What write `number` puts at `at`: every block names both. Quick, so that most of the time writes are under way.
fn content(number: u64, at: u64) -> Vec<u8> {
    let mut bytes = vec![0x5A; PIECE];
    for (n, block) in bytes.chunks_mut(512).enumerate() {
        block[..8].copy_from_slice(&number.to_le_bytes());
        block[504..].copy_from_slice(&(at + 512 * n as u64).to_le_bytes());
    }
    bytes
}

/// Writes into all places until `stop`.
fn write_on(
    engine: &Engine,
    object: &Object,
    places: &mut [Place],
    (stop, shown): (&AtomicBool, &AtomicBool),
) -> Result<Writes, Stop> {
    let mut told = Writes::default();
    let mut doubt: Option<Instant> = None;
    let mut round = 0;
    // Writes of unknown outcome are written over before the end, so that what is there is known.
    while !stop.load(Ordering::Relaxed) || places.iter().any(|place| place.may_hold.len() > 1) {
        round += 1;
        if round > 10_000 {
            return fail("writes come to no end");
        }
        let sent = Instant::now();
        let requests = places
            .iter()
            .map(|place| Ok(engine.write(object, place.at, memory(&content(place.next, place.at))?)))
            .collect::<Result<Vec<_>, Stop>>()?;
        let mut unknown = false;
        for (place, done) in places.iter_mut().zip(engine.batch(requests).wait()) {
            match done.result {
                Ok(_) => {
                    told.applied += 1;
                    place.may_hold = [place.next].into();
                }
                Err(error) if error.outcome() == Some(WriteOutcome::NotApplied) => told.not_applied += 1,
                Err(error) => {
                    // One that the target answered is over there, whatever became of it: nothing to wait for.
                    let text = error.to_string();
                    let is_answered = text.contains("the target answered");
                    told.answered += u64::from(is_answered);
                    told.unknown += u64::from(!is_answered);
                    unknown |= !is_answered;
                    *told.ends.entry(text.split(" failed: ").last().unwrap_or_default().to_owned()).or_default() += 1;
                    place.may_hold.insert(place.next);
                }
            }
            place.next += 1;
        }
        match (unknown, doubt) {
            // Of the same batch may be writes that waited until they were safe: the loss was somewhere since it was sent.
            (true, _) => doubt = Some(sent),
            (false, Some(since)) => {
                told.fenced_s.push(since.elapsed().as_secs_f64());
                shown.store(true, Ordering::Relaxed);
                doubt = None;
            }
            _ => {}
        }
    }
    Ok(told)
}

fn port(context: &Context) -> Verdict {
    port_over(context, Over::Tcp)
}

pub(super) fn port_over(context: &Context, over: Over) -> Verdict {
    let target = Target::make_over(over)?;
    let bytes = block::pattern(SEED, 0, 2 << 20);
    target.backing()?.write_all_at(&bytes, 0)?;
    let engine = engine(NvmeTcp { keep_alive: KEEP_ALIVE, ..NvmeTcp::default() })?;
    let object = over.opened(&engine)?;
    let place = |n: u64| Place { at: (4 << 20) + n * PIECE as u64, may_hold: BTreeSet::new(), next: 0 };
    let mut places: Vec<Place> = (0..WRITERS * PLACES).map(place).collect();
    let (stop, shown) = (AtomicBool::new(false), AtomicBool::new(false));
    let (writes, reads) = std::thread::scope(|scope| {
        let (engine, object, stop, shown, bytes) = (&engine, &object, &stop, &shown, &bytes);
        let parts = places.chunks_mut(sw_mem::index(PLACES));
        let writing: Vec<_> = parts.map(|part| scope.spawn(|| write_on(engine, object, part, (stop, shown)))).collect();
        let reading = scope.spawn(|| {
            let mut reads = 0u64;
            while !stop.load(Ordering::Relaxed) {
                same("the bytes", &(read(engine, object, 0, bytes.len())? == *bytes), &true)?;
                reads += 1;
            }
            Ok::<_, Stop>(reads)
        });
        // Three times, and on until a fence was seen to its end: a target that goes may have answered all that was under way.
        let done =
            (0..ROUNDS_MAX).take_while(|round| *round < 3 || !shown.load(Ordering::Relaxed)).try_for_each(|_| {
                std::thread::sleep(Duration::from_millis(4500));
                target.restart(Duration::from_millis(300))
            });
        stop.store(true, Ordering::Relaxed);
        let panicked = |_| Stop::Fail("a thread panicked".into());
        let mut writes = Writes::default();
        for part in writing {
            writes.add(part.join().map_err(panicked)??);
        }
        let reads = reading.join().map_err(panicked)??;
        done.map(|()| (writes, reads))
    })?;
    context.fact(&json!({"reads": reads, "applied": writes.applied, "not_applied": writes.not_applied,
        "unknown": writes.unknown, "answered": writes.answered, "ends": writes.ends, "fenced_s": writes.fenced_s}));
    if writes.unknown == 0 || reads == 0 || writes.fenced_s.is_empty() {
        return fail(format!("{} writes of unknown outcome, {reads} reads: nothing was shown", writes.unknown));
    }
    if let Some(early) = writes.fenced_s.iter().find(|span| **span < FENCE.as_secs_f64()) {
        return fail(format!("a write was applied {early} s after one of unknown outcome, not {FENCE:?}"));
    }
    // What was carried out late would show now.
    std::thread::sleep(FENCE);
    for place in &places {
        let Some(number) = place.may_hold.first() else { return fail("a place was never written") };
        let wanted = content(*number, place.at);
        let mut there = vec![0; PIECE];
        target.backing()?.read_exact_at(&mut there, place.at)?;
        let ours = read(&engine, &object, place.at, PIECE)?;
        same(&format!("what is at {}", place.at), &(there == wanted, ours == wanted), &(true, true))?;
    }
    Ok(object.check_unchanged()?)
}

fn stopped(context: &Context) -> Verdict {
    let target = Target::make()?;
    let bytes = block::pattern(SEED, 0, 1 << 20);
    target.backing()?.write_all_at(&bytes, 0)?;
    let engine = engine(NvmeTcp { keep_alive: KEEP_ALIVE, ..NvmeTcp::default() })?;
    let object = opened(&engine)?;
    same("the bytes", &(read(&engine, &object, 0, bytes.len())? == bytes), &true)?;
    drop(context.kernel_log());
    // Nobody in this process does anything meanwhile: another one wakes it.
    let script = format!("kill -STOP {0}; sleep 6; kill -CONT {0}", std::process::id());
    let start = Instant::now();
    let mut waker = Command::new("/bin/busybox").args(["sh", "-c", &script]).spawn()?;
    waker.wait()?;
    let log: Vec<String> = context.kernel_log().into_iter().filter(|line| line.contains("keep-alive")).collect();
    context.fact(&json!({"stopped_s": start.elapsed().as_secs_f64(), "kernel": log}));
    if !log.iter().any(|line| line.contains("expired")) {
        return fail("the target did not give the host up");
    }
    same("the bytes afterwards", &(read(&engine, &object, 0, bytes.len())? == bytes), &true)?;
    let more = block::pattern(SEED + 1, 0, 1 << 20);
    engine.write(&object, 0, memory(&more)?).wait().ok()?;
    let mut there = vec![0; more.len()];
    target.backing()?.read_exact_at(&mut there, 0)?;
    same("what the target has", &(there == more), &true)?;
    Ok(object.check_unchanged()?)
}

/// Descriptors and threads of this process.
pub(super) fn held() -> (usize, usize) {
    (entries(Path::new("/proc/self/fd")).len(), entries(Path::new("/proc/self/task")).len())
}

/// Makes so many associations over a wire, two at a time, each with a read; descriptors and threads afterwards are those of before.
pub(super) fn associations(context: &Context, over: Over, rounds: u32) -> Verdict {
    let target = Target::make_over(over)?;
    let bytes = block::pattern(SEED, 0, 64 << 10);
    target.backing()?.write_all_at(&bytes, 0)?;
    known()?;
    let uri = over.uri(NQN, "")?;
    let busy = AtomicU64::new(0);
    let once = || -> Verdict {
        // One thread beside the caller's: an association is what is measured.
        let engine = Engine::builder().reactors(1).build()?;
        // Linux's target lets nobody in while it still takes down many of before (`nvmet_tcp_install_queue`).
        let mut patience = 0..4000;
        let object = loop {
            match engine.open(&uri) {
                Err(error) if error.to_string().contains("busy") && patience.next().is_some() => {
                    busy.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => break other?,
            }
        };
        same("the bytes", &(read(&engine, &object, 0, bytes.len())? == bytes), &true)?;
        drop(object);
        Ok(engine.close()?)
    };
    once()?;
    let before = held();
    let start = Instant::now();
    // Two at a time, as a guest has two processors.
    std::thread::scope(|scope| {
        let half = || (0..rounds / 2).try_for_each(|_| once());
        let other = scope.spawn(half);
        half()?;
        other.join().unwrap_or_else(|_| fail("the other thread panicked"))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    // The thread of an association ends by itself when it was told to.
    let after = context.until(Duration::from_secs(10), "threads end", || Some(held()).filter(|now| now.1 <= before.1));
    context.fact(&json!({"seconds": seconds, "busy": busy.into_inner(), "before": format!("{before:?}"),
        "after": format!("{after:?}")}));
    same("descriptors and threads", &after?, &before)
}

fn churn(context: &Context) -> Verdict {
    associations(context, Over::Tcp, 1000)?;
    context.until(Duration::from_secs(10), "connections end", || connections().ok().filter(|up| *up == 0)).map(drop)
}
