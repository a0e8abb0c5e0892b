//! The cache by its seams: what a lane and a transport would ask of it, over objects whose bytes are known.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

mod bed;
mod rules;
mod shared;

use std::{
    fs::{File, Permissions},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use bed::{BLOCK, Reader, bytes_of, config, settle};
use sw_cache::{Cache, CacheConfig, Pinning, Status as CacheStatus, Verify};
use sw_engine::ErrorKind;

#[test]
fn what_was_read_is_there_the_next_time_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let len = 10 * BLOCK + 77;
    {
        let cache = Cache::open(config(dir.path(), 100)).unwrap();
        let reader = Reader::new(&cache, 1, 1, len);
        assert_eq!(reader.read_all(), 0);
        settle(&cache);
        assert_eq!(reader.read_all(), len);
        assert_eq!(reader.read(5, 2 * BLOCK), 2 * BLOCK);
        let status = cache.status();
        assert_eq!((status.blocks, status.kept_bytes, status.objects), (11, len, 1));
        assert_eq!((status.hit_bytes, status.missed_bytes), (len + 2 * BLOCK, len));
    }
    let cache = Cache::open(config(dir.path(), 100)).unwrap();
    let reader = Reader::new(&cache, 1, 1, len);
    assert_eq!(reader.read_all(), len);
    assert_eq!((cache.status().damaged_blocks, cache.status().discarded), (0, None));
    assert_eq!(cache.objects()[0].kept_bytes, len);
}

#[test]
fn parts_of_blocks_from_pieces_in_a_row_become_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(config(dir.path(), 100)).unwrap();
    let reader = Reader::new(&cache, 1, 1, 8 * BLOCK);
    // From an odd place, in odd pieces: all but the first block, of which the beginning was not read.
    let got = reader.read_by(100, 8 * BLOCK - 100, 1000);
    assert!(got.bytes == bytes_of(1, 1, 100..8 * BLOCK) && got.hit == 0);
    settle(&cache);
    assert_eq!(reader.read_all(), 7 * BLOCK);
}

#[test]
fn another_version_has_nothing_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(config(dir.path(), 100)).unwrap();
    let old = Reader::new(&cache, 1, 1, 4 * BLOCK);
    old.read_all();
    settle(&cache);
    let new = Reader::new(&cache, 1, 2, 4 * BLOCK);
    assert_eq!((new.read_all(), old.read_all()), (0, 4 * BLOCK));
    settle(&cache);
    assert_eq!((new.read_all(), old.read_all()), (4 * BLOCK, 4 * BLOCK));
    assert_eq!(cache.objects().len(), 2);
}

#[test]
fn there_are_never_more_blocks_than_the_budget_and_bytes_stay_right() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(config(dir.path(), 16)).unwrap();
    let readers: Vec<_> = (0..10).map(|number| Reader::new(&cache, number, 1, 5 * BLOCK + number)).collect();
    for _ in 0..3 {
        for reader in &readers {
            reader.read_all();
            settle(&cache);
            assert!(cache.status().blocks <= 16);
        }
    }
    assert!(cache.status().evicted_blocks > 30);
    assert_eq!(std::fs::metadata(cache.data_path()).unwrap().len(), 16 * BLOCK);
}

#[test]
fn an_operation_keeps_its_blocks_until_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(config(dir.path(), 4)).unwrap();
    let first = Reader::new(&cache, 1, 1, 4 * BLOCK);
    first.read_all();
    settle(&cache);
    let mut extents = Vec::new();
    let hold = first.resolve((0, 4 * BLOCK), &mut extents);
    assert!(extents.iter().all(|extent| extent.member == 1));
    // All of it goes, and others want its place; its bytes stay where they are.
    assert_eq!(cache.evict("").blocks, 4);
    let second = Reader::new(&cache, 2, 1, 4 * BLOCK);
    second.read_all();
    settle(&cache);
    assert_eq!((cache.status().blocks, cache.status().left_blocks), (0, 4));
    let mut bytes = vec![0; usize::try_from(4 * BLOCK).unwrap()];
    first.data.read_exact_at(&mut bytes, extents[0].at).unwrap();
    assert!(bytes == bytes_of(1, 1, 0..4 * BLOCK));
    drop(hold);
    second.read_all();
    settle(&cache);
    assert_eq!((second.read_all(), first.read_all()), (4 * BLOCK, 0));
}

#[test]
fn what_is_pinned_stays_and_what_is_evicted_by_name_goes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(config(dir.path(), 8)).unwrap();
    let kept = Reader::new(&cache, 1, 1, 4 * BLOCK);
    kept.read_all();
    settle(&cache);
    assert_eq!(cache.set_pinning("s3://b/1", Pinning::Pinned), 1);
    for number in 10..20 {
        Reader::new(&cache, number, 1, 4 * BLOCK).read_all();
        settle(&cache);
    }
    assert_eq!(kept.read_all(), 4 * BLOCK);
    assert_eq!((cache.evict("s3://b/nobody").blocks, cache.evict("s3://b/1").blocks), (0, 4));
    assert_eq!(kept.read_all(), 0);
    settle(&cache);
    assert_eq!(cache.evict("s3://b/").bytes, 8 * BLOCK);
}

#[test]
fn what_is_evicted_on_its_way_does_not_come() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(config(dir.path(), 64)).unwrap();
    for version in 0..60 {
        let reader = Reader::new(&cache, 1, version, 20 * BLOCK);
        reader.read_all();
        // Somewhere between memory and the disk.
        if version % 3 > 0 {
            std::thread::park_timeout(Duration::from_micros(version * 40));
        }
        if version % 2 == 0 {
            cache.evict("s3://b/1");
        } else {
            reader.cached.forget();
        }
        settle(&cache);
        assert_eq!((cache.status().blocks, cache.status().kept_bytes), (0, 0), "round {version}");
        assert_eq!(reader.read_all(), 0);
        cache.evict("");
    }
    drop(cache);
    let cache = Cache::open(config(dir.path(), 64)).unwrap();
    assert_eq!((cache.status().blocks, cache.status().objects), (0, 0));
}

#[test]
fn where_all_is_pinned_nothing_comes_and_what_is_freed_goes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(config(dir.path(), 4)).unwrap();
    let kept = Reader::new(&cache, 1, 1, 4 * BLOCK);
    kept.cached.set_pinning(Pinning::Pinned);
    kept.read_all();
    settle(&cache);
    Reader::new(&cache, 2, 1, 4 * BLOCK).read_all();
    settle(&cache);
    assert_eq!((cache.status().blocks, cache.status().left_blocks, kept.read_all()), (4, 4, 4 * BLOCK));
    kept.cached.set_pinning(Pinning::Free);
    let other = Reader::new(&cache, 2, 1, 4 * BLOCK);
    for _ in 0..4 {
        other.read_all();
        settle(&cache);
    }
    assert!(other.read_all() > 0);
    // One of which there is nothing is known for as long as it is pinned.
    let none = Reader::new(&cache, 3, 1, BLOCK);
    none.cached.set_pinning(Pinning::Pinned);
    let is_known = |cache: &Cache| cache.objects().iter().any(|object| object.name == "s3://b/3" && object.pinned);
    assert!(is_known(&cache));
    drop((kept, other, none, cache));
    let cache = Cache::open(config(dir.path(), 4)).unwrap();
    assert!(is_known(&cache));
    assert_eq!(cache.set_pinning("s3://b/3", Pinning::Free), 1);
    assert!(cache.objects().iter().all(|object| object.name != "s3://b/3"));
}

#[test]
fn who_looks_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Cache::look(dir.path()).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let cache = Cache::open(config(dir.path(), 8)).unwrap();
    Reader::new(&cache, 1, 1, 3 * BLOCK).read_all();
    settle(&cache);
    let (status, objects) = (cache.status(), cache.objects());
    let (asked, asked_objects) = Cache::look(dir.path()).unwrap();
    assert_eq!((CacheStatus { guests: 0, ..asked }, &asked_objects), (status.clone(), &objects));
    drop(cache);
    let files = || ["sizes", "lock", "index.redb", "data"].map(|name| std::fs::read(dir.path().join(name)).unwrap());
    let before = files();
    assert_eq!(Cache::look(dir.path()).unwrap(), (status, objects));
    assert!(files() == before && std::fs::read_dir(dir.path()).unwrap().count() == 4);
}

#[test]
fn objects_go_with_their_last_block() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let cache = Cache::open(config(dir.path(), 16)).unwrap();
        for number in 0..100 {
            Reader::new(&cache, number, 1, BLOCK).read_all();
            settle(&cache);
        }
        let status = cache.status();
        assert_eq!((status.objects, status.blocks, status.kept_bytes), (16, 16, 16 * BLOCK));
    }
}

#[test]
fn what_is_somebody_elses_is_left_as_it_is() {
    let make = || tempfile::tempdir().unwrap();
    let refused = |dir: &Path| Cache::open(config(dir, 4)).unwrap_err().kind();
    for name in ["data", "index.redb", "sizes", "lock", "thesis"] {
        let dir = make();
        let path = dir.path().join(name);
        std::fs::write(&path, b"mine alone").unwrap();
        assert_eq!(refused(dir.path()), ErrorKind::WrongKind, "{name}");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine alone", "{name}");
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [name], "something was made");
        assert!(!Cache::is_in(dir.path()));
    }
    // A link in a cache leads out of it.
    let (dir, other) = (make(), make());
    drop(Cache::open(config(dir.path(), 4)).unwrap());
    for name in ["data", "index.redb", "sizes", "lock"] {
        let (path, target) = (dir.path().join(name), other.path().join(name));
        std::fs::rename(&path, &target).unwrap();
        let before = std::fs::read(&target).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert_eq!(refused(dir.path()), ErrorKind::WrongKind, "{name}");
        assert_eq!(std::fs::read(&target).unwrap(), before);
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&target, &path).unwrap();
    }
    drop(Cache::open(config(dir.path(), 4)).unwrap());
    for mode in [0o770, 0o702] {
        std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        assert_eq!(refused(dir.path()), ErrorKind::PermissionDenied, "{mode:o}");
    }
}

#[test]
fn files_of_a_cache_are_for_its_user_alone() {
    let dir = tempfile::tempdir().unwrap();
    let open = || drop(Cache::open(config(dir.path(), 4)).unwrap());
    open();
    let names = ["data", "index.redb", "sizes", "lock"].map(|name| dir.path().join(name));
    let modes = || names.each_ref().map(|path| std::fs::metadata(path).unwrap().mode() & 0o777);
    assert_eq!(modes(), [0o600; 4]);
    for path in &names[..2] {
        std::fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
    }
    open();
    assert_eq!(modes(), [0o600; 4]);
}

#[test]
fn a_smaller_budget_keeps_what_has_place_and_another_block_size_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let len = 8 * BLOCK;
    let open = |config| {
        let cache = Cache::open(config).unwrap();
        let reader = Reader::new(&cache, 1, 1, len);
        let hit = reader.read_all();
        settle(&cache);
        (hit, cache.status().discarded.is_some())
    };
    assert_eq!(open(config(dir.path(), 100)), (0, false));
    assert_eq!(open(config(dir.path(), 5)), (5 * BLOCK, false));
    assert_eq!(open(CacheConfig { block_bytes: 8192, ..config(dir.path(), 8) }), (0, true));
}

/// Turns each of `places` of a file over, one at a time, and looks what comes of it.
fn turned(path: &Path, places: impl Iterator<Item = u64>, mut look: impl FnMut(u64)) {
    for at in places {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
        look(at);
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&byte, at).unwrap();
    }
}

#[test]
fn every_byte_of_the_data_turned_over_is_found() {
    let dir = tempfile::tempdir().unwrap();
    // Short ones, so that few of the file's bytes are of an object: each of those has its block read anew.
    let len = 300;
    let config = CacheConfig { verify: Verify::Always, ..config(dir.path(), 2) };
    let cache = Cache::open(config).unwrap();
    let readers = [1, 2].map(|number| Reader::new(&cache, number, 1, len));
    for reader in &readers {
        reader.read_all();
        settle(&cache);
    }
    let mut damaged = 0;
    turned(&cache.data_path(), 0..2 * BLOCK, |at| {
        let is_of_one = at % BLOCK < len;
        damaged += u64::from(is_of_one);
        let hit: u64 = readers.iter().map(Reader::read_all).sum();
        let expected = if is_of_one { len } else { 2 * len };
        assert_eq!((hit, cache.status().damaged_blocks), (expected, damaged), "byte {at}");
        settle(&cache);
    });
    assert_eq!(damaged, 2 * len);
}

#[test]
fn a_damaged_block_is_found_by_the_first_read_of_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let len = 4 * BLOCK;
    let fill = || {
        let cache = Cache::open(config(dir.path(), 4)).unwrap();
        let reader = Reader::new(&cache, 1, 1, len);
        reader.read_all();
        settle(&cache);
        cache.data_path()
    };
    let data = fill();
    turned(&data, (0..len).step_by(509), |at| {
        let cache = Cache::open(config(dir.path(), 4)).unwrap();
        let reader = Reader::new(&cache, 1, 1, len);
        assert_eq!(reader.read_all(), len - BLOCK, "byte {at}");
        settle(&cache);
        drop((reader, cache));
    });
}

#[test]
fn an_index_with_any_byte_turned_over_leads_to_no_wrong_byte() {
    let dir = tempfile::tempdir().unwrap();
    let len = 3 * BLOCK;
    let open = || Cache::open(config(dir.path(), 8)).unwrap();
    {
        let cache = open();
        for number in 0..2 {
            Reader::new(&cache, number, 1, len).read_all();
        }
        settle(&cache);
    }
    let index = dir.path().join("index.redb");
    let whole = std::fs::read(&index).unwrap();
    let data = std::fs::read(dir.path().join("data")).unwrap();
    // What is not zero, and a part of the rest: the file is mostly empty pages.
    let used = (0..whole.len()).filter(|at| whole[*at] != 0 || at % 4093 == 0);
    let step = (used.clone().count() / 150).max(1);
    let (mut found, mut tried) = (0, 0);
    for at in used.step_by(step) {
        let mut bytes = whole.clone();
        bytes[at] = !bytes[at];
        // Another file: a library that stops at one keeps it until the process ends.
        std::fs::remove_file(&index).unwrap();
        std::fs::write(&index, &bytes).unwrap();
        std::fs::write(dir.path().join("data"), &data).unwrap();
        let cache = open();
        let hit: u64 = (0..2).map(|number| Reader::new(&cache, number, 1, len).read_all()).sum();
        let status = cache.status();
        found += u64::from(hit < 2 * len || status.damaged_blocks > 0 || status.discarded.is_some());
        tried += 1;
    }
    println!("{tried} of {} bytes turned over, {found} of them found", whole.len());
    assert!(found > 0);
}

#[test]
fn an_index_that_is_cut_or_is_something_else_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let len = 3 * BLOCK;
    let index = dir.path().join("index.redb");
    let mut whole = None;
    for cut in [None, Some(0), Some(1), Some(100), Some(4096), Some(20_000)] {
        if let (Some(cut), Some(whole)) = (cut, &whole) {
            let whole: &Vec<u8> = whole;
            std::fs::write(&index, &whole[..cut]).unwrap();
        }
        let cache = Cache::open(config(dir.path(), 8)).unwrap();
        let reader = Reader::new(&cache, 1, 1, len);
        reader.read_all();
        settle(&cache);
        assert_eq!(reader.read_all(), len, "{cut:?}");
        drop((reader, cache));
        whole.get_or_insert_with(|| std::fs::read(&index).unwrap());
    }
    std::fs::write(&index, vec![0xa5; 1 << 20]).unwrap();
    let cache = Cache::open(config(dir.path(), 8)).unwrap();
    assert!(cache.status().discarded.is_some());
}

/// What a killed process does: reads objects in a cache that is too small for them, until it is killed.
#[test]
#[ignore = "a part of the test of kills, which runs it in a process of its own"]
fn fills_until_it_is_killed() {
    #[expect(clippy::disallowed_methods, reason = "the other process is told by its environment")]
    let dir = std::env::var("SW_CACHE_TEST_DIR").unwrap();
    // Its looks write last uses, and take out versions that it left.
    let max_age = Some(Duration::from_secs(1));
    let cache = Cache::open(CacheConfig { max_age, ..config(Path::new(&dir), 32) }).unwrap();
    println!("open");
    for round in 0.. {
        for number in 0..12 {
            let version = round / 3;
            Reader::new(&cache, number, version, 5 * BLOCK + 13 * number).read_all();
        }
    }
}

#[test]
fn a_process_that_is_killed_at_any_time_leaves_no_wrong_byte() {
    let dir = tempfile::tempdir().unwrap();
    let mut hits = 0;
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "fills_until_it_is_killed", "--nocapture"])
            .env("SW_CACHE_TEST_DIR", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Somewhere in its opening, its filling or its commits.
        std::thread::park_timeout(Duration::from_millis(20 + 37 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let cache = Cache::open(config(dir.path(), 32)).unwrap();
        let kept = cache.objects();
        for object in kept {
            let number: u64 = object.name.rsplit('/').next().unwrap().parse().unwrap();
            hits += Reader::new(&cache, number, object.version.identity.0, object.len).read_all();
        }
        assert_eq!(cache.status().discarded, None, "round {round}");
    }
    assert!(hits > 0, "nothing was ever kept");
}
