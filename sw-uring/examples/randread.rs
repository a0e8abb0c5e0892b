//! Random reads through the bare transport: `randread PATH [SECONDS] [DEPTH] [BATCH] [MODE]`, MODE coop|defer|plain.
#![expect(clippy::disallowed_methods, reason = "a measurement owns its clock")]

use std::time::{Duration, Instant};

use sw_engine::{
    Token,
    seam::{Attach, Io, IoDone, IoKind, MemorySegment, OpenMode, Store, Submit, Transport, Wait},
};
use sw_mem::{Buffer, ByteLen};
use sw_uring::{FileStore, IO_URING, UringConfig, UringTransport};

const BLOCK: u32 = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: randread PATH [SECONDS] [DEPTH] [BATCH] [MODE]")?;
    let number = |text: Option<String>, default: u32| text.map_or(Ok(default), |text| text.parse());
    let (seconds, depth) = (number(args.next(), 5)?, number(args.next(), 32)?);
    let batch = number(args.next(), 1)?;
    let mode = args.next().unwrap_or_else(|| "coop".into());
    let config = UringConfig { queue_depth: depth, single_issuer: mode == "defer", ..UringConfig::default() };
    let mut transport = UringTransport::new(config)?;
    let object = FileStore::new(IO_URING).open(&path, OpenMode::Read)?;
    let span = Buffer::allocate(ByteLen(u64::from(BLOCK * depth)))?.into_span();
    span.fill(0, span.len().0, 0)?;
    if mode != "plain" {
        transport.attach(Attach::Object(&object))?;
        transport.attach(Attach::Region(span.region()))?;
    }
    let blocks = object.len / u64::from(BLOCK);
    let handle = object.faces.first().ok_or("no face")?.handle;
    let mut seed = 1u64;
    let mut one = |index: u32| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = span.place().checked_add(ByteLen(u64::from(index * BLOCK))).unwrap_or(span.place());
        let segment = MemorySegment { place, len: BLOCK, region: span.region().id() };
        Io {
            token: Token::from_raw(1 << 32 | u64::from(index)),
            kind: IoKind::Read,
            object: object.id,
            handle,
            offset: (seed >> 20) % blocks * u64::from(BLOCK),
            len: BLOCK,
            segment_count: 1,
            segments: [segment; 3],
        }
    };
    let mut out: Vec<IoDone> = Vec::with_capacity(usize::try_from(depth)?);
    let (start, cpu) = (Instant::now(), cpu_ns());
    let mut ended = 0u64;
    let mut polls = 0u64;
    for index in 0..depth {
        if transport.submit(&one(index)) != Submit::Accepted {
            return Err("refused".into());
        }
    }
    while start.elapsed() < Duration::from_secs(u64::from(seconds)) {
        transport.poll(Wait::For { timeout: Duration::from_secs(5), min: batch }, &mut out)?;
        polls += 1;
        ended += out.len() as u64;
        for done in out.drain(..) {
            if done.result != Ok(BLOCK) {
                return Err(format!("{done:?}").into());
            }
            transport.submit(&one(done.token.index()));
        }
    }
    let (wall, cpu) = (start.elapsed(), cpu_ns() - cpu);
    println!(
        "{:?} depth {depth} batch {batch}: {:.0} IOPS, {:.0} ns CPU per I/O, {:.0} polls per 1000",
        transport.task_run(),
        ended as f64 / wall.as_secs_f64(),
        cpu as f64 / ended as f64,
        polls as f64 * 1000.0 / ended as f64,
    );
    Ok(())
}

fn cpu_ns() -> u64 {
    // Field 14 and 15 of /proc/self/stat have 10 ms steps; schedstat counts nanoseconds.
    std::fs::read_to_string("/proc/self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next().and_then(|first| first.parse().ok()))
        .unwrap_or(0)
}
