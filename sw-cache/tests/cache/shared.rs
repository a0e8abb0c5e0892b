//! Several caches on one directory, in this process and in others.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sw_cache::{Cache, CacheConfig, Pinning, Verify};

use crate::bed::{BLOCK, LIMIT, Reader, bytes_of, config, settle};

#[expect(clippy::disallowed_methods, reason = "a test owns its clock")]
fn now() -> Instant {
    Instant::now()
}

/// Until something is so.
fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let start = now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn open(dir: &Path, blocks: u64) -> Cache {
    Cache::open(config(dir, blocks)).unwrap()
}

#[test]
fn what_one_process_read_another_one_has_whoever_owns_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (owner, guest) = (open(dir.path(), 64), open(dir.path(), 7));
    assert!(owner.is_owner() && !guest.is_owner());
    let len = 9 * BLOCK + 5;
    let at = |cache: &Cache, number| Reader::new(cache, number, 1, len);
    assert_eq!(at(&owner, 1).read_all(), 0);
    settle(&owner);
    assert_eq!((at(&guest, 1).read_all(), at(&guest, 1).read(100, 3 * BLOCK)), (len, 3 * BLOCK));
    assert_eq!(at(&guest, 2).read_all(), 0);
    settle(&guest);
    assert_eq!((at(&owner, 2).read_all(), at(&guest, 2).read_all()), (len, len));
    // What a guest asks is the owner's.
    wait_for("sums come", || owner.status().hit_bytes == 3 * len + 3 * BLOCK);
    assert_eq!((guest.status().blocks, guest.status().missed_bytes, guest.status().fault), (20, 2 * len, None));
    assert_eq!(guest.objects(), owner.objects());
    assert_eq!(at(&guest, 1).cached.next_missing(0, BLOCK), None);
    assert_eq!(at(&guest, 3).cached.next_missing(BLOCK, 2 * BLOCK), Some((BLOCK, 2 * BLOCK)));
    at(&guest, 1).cached.set_pinning(Pinning::Pinned);
    assert!(owner.objects()[0].pinned);
    assert_eq!(guest.set_pinning("s3://b/1", Pinning::Free), 1);
    assert_eq!((guest.evict("s3://b/1").blocks, at(&guest, 2).cached.forget().blocks), (10, 10));
    assert_eq!((at(&owner, 1).read_all(), owner.status().blocks), (0, 0));
}

#[test]
fn a_guest_takes_the_place_of_an_owner_that_is_gone_and_its_objects_stay_open() {
    let dir = tempfile::tempdir().unwrap();
    let owner = open(dir.path(), 64);
    let guests = [open(dir.path(), 64), open(dir.path(), 64)];
    let len = 9 * BLOCK;
    let readers = [&guests[0], &guests[1]].map(|cache| Reader::new(cache, 1, 1, len));
    Reader::new(&owner, 1, 1, len).read_all();
    settle(&owner);
    assert_eq!(readers.each_ref().map(Reader::read_all), [len; 2]);
    drop(owner);
    // Without it they read from where the object is, and then one of them has it.
    for reader in &readers {
        reader.read_all();
    }
    wait_for("an owner", || guests.iter().any(Cache::is_owner));
    for reader in &readers {
        wait_for("hits", || reader.read_all() == len);
    }
    assert_eq!(guests.iter().filter(|cache| cache.is_owner()).count(), 1);
    let new = Reader::new(&guests[0], 2, 1, len);
    new.read_all();
    settle(&guests[0]);
    assert_eq!(Reader::new(&guests[1], 2, 1, len).read_all(), len);
}

#[test]
fn blocks_behind_what_a_process_has_open_are_read_from_where_the_object_is() {
    let dir = tempfile::tempdir().unwrap();
    let (owner, guest) = (open(dir.path(), 8), open(dir.path(), 8));
    let at = |cache: &Cache| Reader::new(cache, 1, 1, 4 * BLOCK);
    at(&owner).read_all();
    settle(&owner);
    for cache in [&owner, &guest] {
        cache.reads_up_to(2 * BLOCK);
        let mut extents = Vec::new();
        let hold = at(cache).resolve((0, 4 * BLOCK), &mut extents);
        assert!(extents.iter().all(|extent| extent.member == 0 || extent.at + extent.len <= 2 * BLOCK), "{extents:?}");
        drop(hold);
        assert_eq!(at(cache).read_all(), 2 * BLOCK);
        cache.reads_up_to(8 * BLOCK);
        assert_eq!(at(cache).read_all(), 4 * BLOCK);
    }
}

/// All extents of an object, which are in the data file, are as they were.
fn check_kept(data: &File, extents: &[sw_engine::Extent]) {
    let mut bytes = Vec::new();
    for extent in extents {
        assert_eq!(extent.member, 1);
        let mut piece = vec![0; usize::try_from(extent.len).unwrap()];
        data.read_exact_at(&mut piece, extent.at).unwrap();
        bytes.extend(piece);
    }
    assert!(bytes == bytes_of(1, 1, 0..4 * BLOCK), "what a guest reads was written over");
}

#[test]
fn what_a_guest_reads_is_not_written_over_by_any_owner() {
    let dir = tempfile::tempdir().unwrap();
    let (owner, guest) = (open(dir.path(), 4), open(dir.path(), 4));
    let reader = Reader::new(&guest, 1, 1, 4 * BLOCK);
    reader.read_all();
    settle(&guest);
    let mut extents = Vec::new();
    let hold = reader.resolve((0, 4 * BLOCK), &mut extents);
    let other = |cache: &Cache, number| {
        let reader = Reader::new(cache, number, 1, 4 * BLOCK);
        reader.read_all();
        settle(cache);
        check_kept(&reader.data, &extents);
    };
    // All goes, and others want the place: of this owner, of the guest itself when it is the next one, and of one that is opened anew.
    assert_eq!(owner.evict("").blocks, 4);
    other(&owner, 2);
    assert_eq!(owner.status().blocks, 0);
    drop(owner);
    Reader::new(&guest, 3, 1, BLOCK).read_all();
    wait_for("the guest owns it", || guest.is_owner());
    guest.evict("");
    other(&guest, 4);
    assert_eq!(guest.status().blocks, 0);
    drop((guest, reader));
    // The hold keeps what it needs of the guest. Smaller blocks, fewer of them: nothing is cut under it.
    let mut next = None;
    wait_for("the directory is free, or is shared", || Cache::open(config(dir.path(), 1)).is_ok());
    next.get_or_insert_with(|| open(dir.path(), 1));
    check_kept(&File::open(dir.path().join("data")).unwrap(), &extents);
    drop(hold);
    let next = next.unwrap();
    wait_for("it is owned", || next.is_owner());
    let last = Reader::new(&next, 5, 1, BLOCK);
    wait_for("the place is free", || {
        last.read_all();
        settle(&next);
        next.status().blocks == 1
    });
    assert_eq!(last.read_all(), BLOCK);
}

#[test]
fn threads_of_one_guest_do_not_void_each_others_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (owner, guest) = (open(dir.path(), 12), open(dir.path(), 12));
    let (start, hits) = (now(), std::sync::atomic::AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..12u64 {
            let (guest, hits) = (&guest, &hits);
            scope.spawn(move || {
                let readers: Vec<_> = (0..16).map(|number| Reader::new(guest, number, 1, 2 * BLOCK)).collect();
                let mut state = thread;
                while start.elapsed() < Duration::from_secs(4) {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let reader = &readers[usize::try_from((state >> 33) % 16).unwrap()];
                    hits.fetch_add(reader.read_all(), std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    assert!(hits.into_inner() > 0 && owner.status().evicted_blocks > 100, "{:?}", owner.status());
}

#[test]
fn what_somebody_else_brings_is_waited_for_and_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (owner, guest) = (open(dir.path(), 64), open(dir.path(), 64));
    let len = 8 * BLOCK;
    for (first, second) in [(&owner, &guest), (&guest, &owner)] {
        let number = u64::from(first.is_owner());
        let (first, second) = (Reader::new(first, number, 1, len), Reader::new(second, number, 1, len));
        let mut extents = Vec::new();
        let hold = first.resolve((0, len), &mut extents);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| second.read(BLOCK, 10));
            std::thread::park_timeout(Duration::from_millis(100));
            assert!(!waiting.is_finished());
            // A read of its own has them come.
            first.read_all();
            assert_eq!(waiting.join().unwrap(), 10, "it was waited for");
        });
        drop(hold);
    }
    // Nothing comes, and then whoever said so is over.
    let (first, second) = (Reader::new(&owner, 7, 1, len), Reader::new(&guest, 7, 1, len));
    let hold = first.resolve((0, len), &mut Vec::new());
    let start = now();
    assert_eq!(second.read(0, 10), 0);
    assert!(start.elapsed() > Duration::from_millis(500) && start.elapsed() < Duration::from_secs(20));
    drop(hold);
    // Others of the object come meanwhile: that is not what is waited for.
    let third = open(dir.path(), 64);
    let len = 1000 * BLOCK;
    let [first, second, third] = [&guest, &owner, &third].map(|cache| Reader::new(cache, 9, 1, len));
    let hold = first.resolve((0, BLOCK), &mut Vec::new());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| second.read(0, 10));
        let start = now();
        let mut at = BLOCK;
        while !waiting.is_finished() {
            assert!(start.elapsed() < Duration::from_secs(20), "it waits for ever");
            third.read(at, BLOCK);
            at += BLOCK;
            std::thread::park_timeout(Duration::from_millis(100));
        }
    });
    let len = 8 * BLOCK;
    let again = Reader::new(&owner, 8, 1, len).resolve((0, len), &mut Vec::new());
    drop((hold, again));
    let start = now();
    assert_eq!(Reader::new(&guest, 8, 1, len).read(0, 10), 0);
    assert!(start.elapsed() < Duration::from_millis(500), "what was given back is not waited for");
}

#[test]
fn damage_and_a_full_memory_cost_a_guest_the_cache_alone() {
    let dir = tempfile::tempdir().unwrap();
    let len = 4 * BLOCK;
    {
        let cache = open(dir.path(), 4);
        Reader::new(&cache, 1, 1, len).read_all();
        settle(&cache);
    }
    let data = File::options().write(true).open(dir.path().join("data")).unwrap();
    data.write_all_at(b"x", 2 * BLOCK + 9).unwrap();
    let owner = open(dir.path(), 4);
    let always = CacheConfig { verify: Verify::Always, ..config(dir.path(), 4) };
    let guests = [open(dir.path(), 4), Cache::open(always).unwrap()];
    assert_eq!(Reader::new(&guests[0], 1, 1, len).read_all(), len - BLOCK);
    settle(&guests[0]);
    // Later damage is found by those that compare always.
    data.write_all_at(b"x", BLOCK + 9).unwrap();
    assert_eq!(Reader::new(&guests[1], 1, 1, len).read_all(), len - BLOCK);
    wait_for("it is dropped", || owner.status().damaged_blocks == 2);
}

/// What a process of its own does: reads objects of few blocks through a cache that is too small for them, and looks at each byte.
#[test]
#[ignore = "a part of tests of several processes, which run it in others"]
fn reads_until_it_is_killed() {
    #[expect(clippy::disallowed_methods, reason = "the other process is told by its environment")]
    let dir = std::env::var("SW_CACHE_TEST_DIR").unwrap();
    let cache = Cache::open(config(Path::new(&dir), 48)).unwrap();
    println!("open");
    let mut state = u64::from(std::process::id());
    loop {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = (state >> 33) % 16;
        let reader = Reader::new(&cache, number, 1, 5 * BLOCK + 13 * number);
        let offset = (state >> 40) % BLOCK;
        // Slots are held for a while, as by a disk.
        let mut extents = Vec::new();
        let hold = reader.resolve((0, BLOCK), &mut extents);
        reader.read(offset, 4 * BLOCK);
        drop(hold);
        reader.read_all();
    }
}

/// A process that goes with the test, however that ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A process that reads, after its first word.
fn reader_process(dir: &Path) -> Process {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "shared::reads_until_it_is_killed", "--nocapture"])
        .env("SW_CACHE_TEST_DIR", dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let child = Process(child);
    assert!(lines.map_while(Result::ok).any(|line| line.ends_with("open")), "it did not begin");
    child
}

/// The process that has the directory, as far as its lock says.
fn owner_of(dir: &Path) -> Option<i32> {
    std::fs::read_to_string(dir.join("lock")).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[test]
fn owners_that_are_killed_at_any_time_leave_no_wrong_byte_to_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let mut children: Vec<Process> = (0..3).map(|_| reader_process(dir.path())).collect();
    let mut guest = open(dir.path(), 48);
    let (mut hits, mut owners) = (0, 0);
    for round in 0..20u64 {
        for number in 0..16 {
            hits += Reader::new(&guest, number, 1, 5 * BLOCK + 13 * number).read_all();
        }
        std::thread::park_timeout(Duration::from_millis(7 + 23 * (round % 7)));
        for child in &mut children {
            let ended = child.0.try_wait().unwrap();
            assert!(ended.is_none(), "a process found something wrong: {ended:?}");
        }
        if guest.is_owner() {
            // One of the others is to be it.
            drop(guest);
            std::thread::park_timeout(Duration::from_millis(150));
            guest = open(dir.path(), 48);
        }
        let owner = owner_of(dir.path());
        let at = children.iter().position(|child| i32::try_from(child.0.id()).ok() == owner);
        owners += u32::from(at.is_some());
        let at = at.unwrap_or(usize::try_from(round).unwrap() % children.len());
        drop(children.swap_remove(at));
        children.push(reader_process(dir.path()));
    }
    drop(children);
    println!("{owners} owners killed, {hits} bytes from the cache");
    assert!(hits > 0 && owners > 5, "{owners} owners, {hits} bytes");
    wait_for("this one owns it at last", || {
        Reader::new(&guest, 0, 1, 5 * BLOCK).read_all();
        guest.is_owner()
    });
}

#[test]
fn an_owner_that_stands_still_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let child = reader_process(dir.path());
    let owner = owner_of(dir.path()).unwrap();
    assert_eq!(owner, i32::try_from(child.0.id()).unwrap());
    let guest = open(dir.path(), 48);
    let reader = Reader::new(&guest, 3, 1, 5 * BLOCK + 39);
    wait_for("a hit", || reader.read_all() > 0);
    signal(owner, Signal::STOP);
    let start = now();
    // Its threads stop one by one.
    wait_for("it stands still", || reader.read_all() == 0);
    for _ in 0..200 {
        assert_eq!(reader.read_all(), 0);
    }
    // Without an answer a question takes 0.25 s once, and others are not asked.
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(guest.status().fault.is_some());
    signal(owner, Signal::CONT);
    wait_for("a hit", || reader.read_all() > 0);
    drop(child);
}
