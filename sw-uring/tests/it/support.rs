//! What the tests share: a scratch directory, memory, and a transport driven to the end of one I/O.
#![expect(clippy::unwrap_used, reason = "test code: a failure to prepare is a failed test")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use sw_engine::{
    Fault, Object, Token,
    seam::{Io, IoDone, IoKind, MemorySegment, OpenMode, Store, Submit, Transport, Wait},
};
use sw_mem::{Buffer, ByteLen, DmaSpan, HugePages, Populate};
use sw_testkit::scratch::Scratch;
use sw_uring::{FileStore, ThreadsConfig, ThreadsTransport, UringConfig, UringTransport};

/// Longest that a test waits for one I/O.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A directory beside the build, which is on a disk: the temporary directory is often a tmpfs without O_DIRECT.
pub(crate) fn scratch(tag: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag)
}

/// Bytes that differ from place to place, so that a shifted copy is seen.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed).to_le_bytes()[5]).collect()
}

/// Page-aligned memory of `len` bytes, filled with `byte`.
pub(crate) fn memory(len: u64, byte: u8) -> DmaSpan {
    let mut buffer = Buffer::allocate_with(ByteLen(len), 0, HugePages::Never, Populate::Lazy).unwrap();
    buffer.as_mut_slice().fill(byte);
    buffer.into_span()
}

pub(crate) fn bytes(span: &DmaSpan, at: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    span.read(at, &mut out).unwrap();
    out
}

pub(crate) fn segment(span: &DmaSpan, at: u64, len: u32) -> MemorySegment {
    let place = span.place().checked_add(ByteLen(at)).unwrap();
    MemorySegment { place, len, region: span.region().id() }
}

/// Makes I/Os with fresh tokens.
pub(crate) fn io(kind: IoKind, object: &Object, face: usize, offset: u64, parts: &[MemorySegment]) -> Io {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let generation = u64::from(NEXT.fetch_add(1, Ordering::Relaxed));
    let none = memory_free_segment();
    let part = |at: usize| parts.get(at).or(parts.first()).copied().unwrap_or(none);
    Io {
        token: Token::from_raw(generation << 32 | 3),
        kind,
        object: object.id,
        handle: object.faces[face].handle,
        offset,
        len: parts.iter().map(|part| part.len).sum(),
        segment_count: u8::try_from(parts.len()).unwrap(),
        segments: [part(0), part(1), part(2)],
    }
}

fn memory_free_segment() -> MemorySegment {
    MemorySegment { place: sw_mem::Place::Host(sw_mem::HostVa::new(0)), len: 0, region: sw_mem::RegionId(0) }
}

/// Runs one I/O to its end.
pub(crate) fn run(transport: &mut dyn Transport, io: &Io) -> Result<u32, Fault> {
    assert_eq!(transport.submit(io), Submit::Accepted);
    let mut out: Vec<IoDone> = Vec::with_capacity(1);
    for _ in 0..100 {
        transport.poll(Wait::For { timeout: PATIENCE, min: 1 }, &mut out).unwrap();
        if let Some(done) = out.pop() {
            assert_eq!(done.token, io.token);
            return done.result;
        }
    }
    panic!("no completion of {io:?}");
}

pub(crate) fn read(
    transport: &mut dyn Transport,
    object: &Object,
    face: usize,
    offset: u64,
    len: u32,
) -> Result<Vec<u8>, Fault> {
    let span = memory(u64::from(len).max(1), 0xAA);
    let got = run(transport, &io(IoKind::Read, object, face, offset, &[segment(&span, 0, len)]))?;
    Ok(bytes(&span, 0, got as usize))
}

pub(crate) fn write(
    transport: &mut dyn Transport,
    object: &Object,
    face: usize,
    offset: u64,
    data: &[u8],
) -> Result<u32, Fault> {
    let span = memory(data.len() as u64, 0);
    span.write(0, data).unwrap();
    let len = u32::try_from(data.len()).unwrap();
    run(transport, &io(IoKind::Write, object, face, offset, &[segment(&span, 0, len)]))
}

pub(crate) fn open(transport: &dyn Transport, path: &Path, mode: OpenMode) -> Arc<Object> {
    FileStore::new(transport.caps().name).open(path.to_str().unwrap(), mode).unwrap()
}

/// Every transport that works here, in every shape it has.
pub(crate) fn transports() -> Vec<(&'static str, Box<dyn Transport>)> {
    let mut all: Vec<(&'static str, Box<dyn Transport>)> =
        vec![("preadv2", Box::new(ThreadsTransport::new(ThreadsConfig::default()).unwrap()))];
    let shapes = [
        ("io_uring", UringConfig::default()),
        ("io_uring, one thread", UringConfig { single_issuer: true, ..UringConfig::default() }),
        ("io_uring, sqpoll", UringConfig { sqpoll: Some(50), ..UringConfig::default() }),
    ];
    for (name, config) in shapes {
        match UringTransport::new(config) {
            Ok(transport) => all.push((name, Box::new(transport))),
            Err(error) => println!("skip {name}: {error}"),
        }
    }
    all
}
