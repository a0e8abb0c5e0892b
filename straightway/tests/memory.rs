//! Memory: parts that do not meet, ranges that are checked, and plans that follow the page cache.
// UNSAFETY: posix_fadvise.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::{fs, os::fd::AsRawFd, thread, time::Duration};

use straightway::{Buffer, ByteLen, Destination, Engine, ErrorKind, GpuUse, Lane, Memory, Policy, Reason, Spans, Verb};
use sw_testkit::scratch::Scratch;

fn scratch(tag: &str, len: usize) -> (Scratch, straightway::Uri) {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag);
    scratch.file("data", len);
    let uri = straightway::Uri::from_path(&scratch.path("data")).unwrap();
    (scratch, uri)
}

/// Out of the page cache, and long enough ago for the engine to look again.
fn evict_and_wait(scratch: &Scratch) {
    let file = fs::File::open(scratch.path("data")).unwrap();
    file.sync_all().unwrap();
    evict(&file);
    thread::park_timeout(Duration::from_millis(250));
}

#[expect(unsafe_code, reason = "the standard library has no posix_fadvise")]
fn evict(file: &fs::File) {
    // SAFETY: no pointers; the descriptor is open.
    let rc = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(rc, 0);
}

fn engine() -> Engine {
    Engine::builder().gpu(GpuUse::Off).reactors(1).build().unwrap()
}

fn host(engine: &Engine, len: u64) -> Memory {
    engine.allocate(Destination::Host, len, 0).unwrap()
}

#[test]
fn a_half_that_is_shared_gives_no_part_of_the_other() {
    let engine = engine();
    let (left, right) = host(&engine, 8192).split_at(4096).unwrap();
    let left = left.into_buffer().unwrap();
    let (region, base) = right.share();
    assert_eq!((base, region.len()), (4096, 4096));
    for (at, len) in [(0, 4096), (4095, 2), (base + 1, 4096), (u64::MAX, 1), (base, u64::MAX)] {
        assert_eq!(region.part(at, len).unwrap_err().kind(), ErrorKind::OutOfRange, "{at}+{len}");
    }
    assert_eq!(region.part(base, 4096).unwrap().len(), 4096);
    assert_eq!(region.clone().reclaim(0, 4096).unwrap_err().error.kind(), ErrorKind::OutOfRange);
    let not = region.reclaim(base, 4096).unwrap_err();
    assert_eq!(not.error.kind(), ErrorKind::InUse, "the left half is held");
    let not = not.region.reclaim(base + 4095, 2).unwrap_err();
    assert_eq!(not.error.kind(), ErrorKind::OutOfRange);
    assert!(left.as_slice().iter().all(|byte| *byte == 0));
    drop(left);
    assert_eq!(not.region.reclaim(base, 4096).unwrap().len(), 4096, "the region came back with the error each time");
}

#[test]
fn own_memory_has_no_second_way_in() {
    let buffer = Buffer::allocate(ByteLen(4096)).unwrap();
    assert!(buffer.region().span(0, ByteLen(1)).is_err());
    let engine = engine();
    assert_eq!(engine.register(buffer.region().clone()).unwrap_err().kind(), ErrorKind::ApiMisuse);
    // What a lane takes and gives back names the region too.
    let (_scratch, uri) = scratch("second", 4096);
    let object = engine.open(&uri).unwrap();
    let lane = engine.lane(Destination::Host).unwrap();
    let target = lane.target(&object, &Policy::Any, Verb::Read).unwrap();
    let op = Lane::op(0, Verb::Read, target, 0, host(&engine, 4096));
    let Spans::One(span) = &op.spans else { panic!("one part") };
    assert!(span.region().span(0, ByteLen(1)).is_err());
}

#[test]
fn parts_that_meet_are_refused_until_all_are_gone() {
    let (engine, (scratch, uri)) = (engine(), scratch("parts", 8192));
    let object = engine.open(&uri).unwrap();
    let (region, base) = host(&engine, 8192).share();
    let first = region.part(base, 4096).unwrap();
    let second = region.clone().part(base + 4096, 4096).unwrap();
    let meets = |at, len| region.part(base + at, len).unwrap_err().kind();
    assert_eq!([meets(0, 1), meets(4095, 2), meets(8191, 1), meets(0, 8192)], [ErrorKind::InUse; 4]);
    engine.read_vectored(&object, vec![(0, first), (4096, second)]).wait().ok().unwrap();
    let whole = region.part(base, 8192).unwrap();
    let mut bytes = vec![0; 8192];
    whole.read(0, &mut bytes).unwrap();
    assert!(bytes == fs::read(scratch.path("data")).unwrap());
    let other = region.clone();
    drop(whole);
    let not = other.reclaim(base, 8192).unwrap_err();
    assert_eq!(not.error.kind(), ErrorKind::InUse, "another handle");
    drop(not);
    assert_eq!(region.reclaim(base, 8192).unwrap().into_buffer().unwrap().as_slice(), bytes);
}

#[test]
fn a_range_of_any_size_is_checked_before_memory_is_taken_for_it() {
    let engine = engine();
    let memory = host(&engine, 4096);
    for (at, len) in [(0, u64::MAX), (u64::MAX, u64::MAX), (1, 4096), (4097, 0)] {
        assert_eq!(engine.copy_range_to_host(&memory, at, len).unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(memory.visit(at, len, |_| panic!("shown")).unwrap_err().kind(), ErrorKind::OutOfRange);
    }
    assert_eq!(engine.copy_range_to_host(&memory, 4000, 96).unwrap().len(), 96);
}

#[test]
fn a_plan_follows_the_page_cache() {
    let (engine, (scratch, uri)) = (engine(), scratch("evicted", 4 << 20));
    fs::read(scratch.path("data")).unwrap();
    let object = engine.open(&uri).unwrap();
    let faces = object.as_engine_object().faces.len();
    if object.cached_bytes().is_none_or(|bytes| bytes < 4 << 20) || faces < 2 {
        println!("skipped: no O_DIRECT here, or nobody can tell what is cached ({:?})", object.cached_bytes());
        return;
    }
    let read = || engine.read(&object, 0, host(&engine, 4 << 20)).wait().ok().unwrap().path.reason;
    assert_eq!(read(), Reason::Resident);
    evict_and_wait(&scratch);
    assert_ne!(read(), Reason::Resident, "it is not in the cache any more");
    assert_eq!(object.cached_bytes(), Some(0));
    fs::read(scratch.path("data")).unwrap();
    thread::park_timeout(Duration::from_millis(250));
    assert_eq!(read(), Reason::Resident, "and now it is again");
}
