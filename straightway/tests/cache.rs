//! Remote objects through the cache: what is kept is read from a local file as any file is, against an S3 server in this process.
// UNSAFETY: the environment is written.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
#![expect(unsafe_code, reason = "keys of the server are set in the environment, where those of a store are looked for")]

use std::{fs, os::unix::fs::FileExt, sync::Once, time::Duration};

use straightway::{
    CacheConfig, Completed, DataPath, Destination, Engine, ErrorKind, GpuUse, Object, Pinning, Remote, Uri, Warmed,
    parse_policy,
};
use sw_testkit::{
    s3::{KEY, Request, Server, Wire},
    scratch::Scratch,
};

const BLOCK: u64 = 64 << 10;

fn scratch(tag: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), &format!("cache-{tag}"))
}

fn content(len: u64, salt: u64) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(0x9e37_79b9 + salt * 2) >> 7).to_le_bytes()[0]).collect()
}

fn put(server: &Server, key: &str, bytes: &[u8]) -> Uri {
    fs::write(server.path(key), bytes).unwrap();
    Server::uri(key).parse().unwrap()
}

fn remote(server: &Server) -> Remote {
    static KEYS: Once = Once::new();
    KEYS.call_once(|| {
        for (name, value) in [("AWS_ACCESS_KEY_ID", KEY.0), ("AWS_SECRET_ACCESS_KEY", KEY.1)] {
            // SAFETY: once, before the first engine of this process; tests that wait here read no environment meanwhile.
            unsafe { std::env::set_var(name, value) };
        }
    });
    let [(_, endpoint), ..] = server.environment();
    Remote { s3_endpoint: Some(endpoint), timeout: Duration::from_secs(20), ..Remote::default() }
}

fn config(scratch: &Scratch, blocks: u64) -> CacheConfig {
    let block_bytes = u32::try_from(BLOCK).unwrap();
    CacheConfig { block_bytes, ..CacheConfig::new(scratch.path("cache"), blocks * BLOCK) }
}

fn engine(server: &Server, config: CacheConfig) -> Engine {
    Engine::builder().gpu(GpuUse::Off).reactors(2).remote(remote(server)).cache(config).build().unwrap()
}

fn read(engine: &Engine, object: &Object, offset: u64, len: u64) -> (Vec<u8>, DataPath) {
    let memory = engine.allocate(Destination::Host, len, offset).unwrap();
    let done = engine.read(object, offset, memory).deadline(Duration::from_secs(60)).wait().ok().unwrap();
    let path = done.path;
    (engine.copy_to_host(&done.into_memory().unwrap()).unwrap(), path)
}

fn status(engine: &Engine) -> straightway::CacheStatus {
    engine.cache().unwrap().unwrap().status()
}

fn settle(engine: &Engine) {
    assert!(engine.cache().unwrap().unwrap().wait_for_room(u64::MAX, Duration::from_secs(60)));
}

fn is_of_a_file(path: &DataPath) -> bool {
    ["io_uring", "preadv2"].contains(&path.route.transport)
}

#[test]
fn what_was_read_once_is_read_again_without_the_server_as_a_file_is() {
    let (scratch, server) = (scratch("twice"), Server::start());
    let bytes = content(20 * BLOCK + 123, 1);
    let uri = put(&server, "one", &bytes);
    let engine = engine(&server, config(&scratch, 100));
    let object = engine.open(&uri).unwrap();
    let len = object.len();
    let (first, path) = read(&engine, &object, 0, len);
    assert!(first == bytes && path.route.transport == "http", "{path:?}");
    settle(&engine);
    let root = server.stop();
    let (second, path) = read(&engine, &object, 0, len);
    assert!(second == bytes && is_of_a_file(&path), "{path:?}");
    let (part, path) = read(&engine, &object, BLOCK - 7, 3 * BLOCK);
    assert!(part == bytes[65_529..65_529 + 3 * 65_536] && is_of_a_file(&path), "{path:?}");
    let status = status(&engine);
    assert_eq!((status.missed_bytes, status.hit_bytes, status.blocks), (len, len + 3 * BLOCK, 21));
    drop(root);
}

#[test]
fn another_engine_finds_what_is_kept_and_a_version_that_is_not_is_never_read_from_it() {
    let (scratch, server) = (scratch("versions"), Server::start());
    let (old, new) = (content(8 * BLOCK, 1), content(8 * BLOCK, 2));
    let uri = put(&server, "one", &old);
    let first = engine(&server, config(&scratch, 100));
    let object = first.open(&uri).unwrap();
    assert!(read(&first, &object, 0, 4 * BLOCK).0 == old[..4 * 65_536]);
    drop(object);
    first.close().unwrap();

    let second = engine(&server, config(&scratch, 100));
    let object = second.open(&uri).unwrap();
    server.set(Wire::TooMuch(Request::Range, u64::MAX));
    let (got, path) = read(&second, &object, 0, 4 * BLOCK);
    assert!(got == old[..4 * 65_536] && is_of_a_file(&path), "{path:?}");
    server.set(Wire::Good);
    assert_eq!(server.refused(), 0);

    // Half of it is kept: the read shows both ways.
    let before = status(&second);
    let (got, path) = read(&second, &object, 2 * BLOCK, 4 * BLOCK);
    assert!(got == old[2 * 65_536..6 * 65_536]);
    assert_eq!(path.bytes.total(), 4 * BLOCK, "{path:?}");
    let after = status(&second);
    let read_since = (after.hit_bytes - before.hit_bytes, after.missed_bytes - before.missed_bytes);
    assert_eq!(read_since, (2 * BLOCK, 2 * BLOCK), "{path:?}");

    put(&server, "one", &new);
    // Whoever has the old one open has what is kept of it, and hears that there is no more of it.
    assert!(read(&second, &object, 0, 4 * BLOCK).0 == old[..4 * 65_536]);
    let memory = second.allocate(Destination::Host, 8 * BLOCK, 0).unwrap();
    let error = second.read(&object, 0, memory).wait().result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    assert_eq!(object.check_unchanged().unwrap_err().kind(), ErrorKind::Changed);
    let object = second.open(&uri).unwrap();
    assert!(read(&second, &object, 0, 8 * BLOCK).0 == new);
    settle(&second);
    assert!(read(&second, &object, 0, 8 * BLOCK).0 == new);
}

#[test]
fn engines_share_a_directory_and_the_second_takes_it_when_the_first_is_closed() {
    let (scratch, server) = (scratch("two"), Server::start());
    let bytes = content(3 * BLOCK, 1);
    let uri = put(&server, "one", &bytes);
    let first = engine(&server, config(&scratch, 100));
    let object = first.open(&uri).unwrap();
    let (got, path) = read(&first, &object, 0, 3 * BLOCK);
    assert!(got == bytes && path.route.transport == "http", "{path:?}");
    settle(&first);
    let second = engine(&server, config(&scratch, 100));
    let object = second.open(&uri).unwrap();
    let is_owner = |engine: &Engine| engine.cache().unwrap().unwrap().is_owner();
    assert!(object.is_cached() && is_owner(&first) && !is_owner(&second));
    let (got, path) = read(&second, &object, 0, 3 * BLOCK);
    assert!(got == bytes && is_of_a_file(&path), "{path:?}");
    // What is warmed by the second is there for the first.
    let other = put(&server, "other", &bytes);
    let warmed = second.open(&other).unwrap();
    assert!(second.warm([Ok((warmed.clone(), 0, warmed.len()))]).unwrap().is_all);
    let (got, path) = read(&first, &first.open(&other).unwrap(), 0, 3 * BLOCK);
    assert!(got == bytes && is_of_a_file(&path), "{path:?}");
    first.close().unwrap();
    for _ in 0..600 {
        // Now and then from the server, until the second one has it.
        assert!(read(&second, &object, 0, 3 * BLOCK).0 == bytes);
        if is_owner(&second) {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let (got, path) = read(&second, &object, 0, 3 * BLOCK);
    assert!(got == bytes && is_owner(&second) && is_of_a_file(&path), "{path:?}");
    let plain = Engine::builder().gpu(GpuUse::Off).remote(remote(&server)).build().unwrap();
    assert!(plain.cache().is_none());
}

#[test]
fn an_object_is_known_by_the_address_that_its_client_came_to_and_by_no_other() {
    let (scratch, server, other) = (scratch("places"), Server::start(), Server::start());
    let bytes = content(3 * BLOCK, 1);
    let uri = put(&server, "one", &bytes);
    // The same name, bytes, tag and time at another place.
    put(&other, "one", &bytes);
    let time = fs::metadata(server.path("one")).unwrap().modified().unwrap();
    fs::File::options().write(true).open(other.path("one")).unwrap().set_modified(time).unwrap();
    let at = |endpoint: String| {
        let remote = Remote { s3_endpoint: Some(endpoint), ..remote(&server) };
        let builder = Engine::builder().gpu(GpuUse::Off).remote(remote);
        builder.cache(config(&scratch, 100)).set("cache_max_age", "7d").unwrap().build().unwrap()
    };
    let place = |server: &Server| server.environment()[0].1.clone();
    let is_kept = |engine: Engine| {
        let object = engine.open(&uri).unwrap();
        let (got, path) = read(&engine, &object, 0, 3 * BLOCK);
        assert!(got == bytes && object.is_cached());
        settle(&engine);
        engine.close().unwrap();
        is_of_a_file(&path)
    };
    assert!(!is_kept(at(place(&server))));
    assert!(is_kept(at(place(&server))));
    // Another spelling of the same address.
    assert!(is_kept(at(format!("{}/", place(&server)))));
    assert!(!is_kept(at(place(&other))));
    let engine = at(place(&server));
    let versions: Vec<_> = engine.open(&uri).map(|_| engine.cache().unwrap().unwrap().objects()).unwrap();
    assert_eq!(versions.len(), 2, "{versions:?}");
    assert_eq!(versions[0].version, versions[1].version);
}

#[test]
fn ages_are_settings() {
    let set = |name, value| Engine::builder().set(name, value);
    for good in ["90s", "15m", "12h", "30d"] {
        set("cache_max_age", good).unwrap();
    }
    for bad in ["", "s", "0d", "30", "-1d", "1.5h", "99999999999999999999d", "9999999999999999999d"] {
        assert_eq!(set("cache_max_age", bad).err().unwrap().kind(), ErrorKind::ApiMisuse, "{bad:?}");
    }
    let alone = set("cache_dir", "/x").and_then(|builder| builder.set("cache_max_age_above", "1GiB")).unwrap();
    assert_eq!(alone.build().err().unwrap().kind(), ErrorKind::ApiMisuse);
}

/// Bytes of the object that processes share.
const SHARED: u64 = 32 << 20;

/// What one of several processes does: reads all of an object, in pieces.
#[test]
#[ignore = "a part of the test of several processes, which runs it in others"]
fn reads_what_others_read_too() {
    #[expect(clippy::disallowed_methods, reason = "the other process is told by its environment")]
    let said = |name: &str| std::env::var(name).unwrap();
    let remote = Remote {
        s3_endpoint: Some(said("SW_CACHE_TEST_ENDPOINT")),
        timeout: Duration::from_secs(20),
        ..Remote::default()
    };
    let config = CacheConfig::new(said("SW_CACHE_TEST_DIR"), 2 * SHARED);
    let engine = Engine::builder().gpu(GpuUse::Off).reactors(2).remote(remote).cache(config).build().unwrap();
    let object = engine.open(&Server::uri("shared").parse().unwrap()).unwrap();
    let (mut sum, mut local) = (straightway::checksum::Running::new(straightway::checksum::Algorithm::Crc64Nvme), 0);
    for offset in (0..object.len()).step_by(8 << 20) {
        let (bytes, path) = read(&engine, &object, offset, (8 << 20).min(object.len() - offset));
        sum.update(&bytes);
        local += u64::from(is_of_a_file(&path)) * bytes.len() as u64;
    }
    println!("sum {:016x} local {local}", sum.value());
}

#[test]
fn eight_processes_that_read_an_object_have_most_of_it_from_the_one_that_has_the_cache() {
    // In memory, where that can be: how long a disk takes to sync is not what this is of.
    let base = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { env!("CARGO_TARGET_TMPDIR") };
    let (scratch, server) = (Scratch::new(base, "straightway-cache-eight"), Server::start());
    let bytes = content(SHARED, 9);
    put(&server, "shared", &bytes);
    let [(_, endpoint), ..] = server.environment();
    let children: Vec<_> = (0..8)
        .map(|_| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "reads_what_others_read_too", "--nocapture"])
                .env("SW_CACHE_TEST_DIR", scratch.path("cache"))
                .env("SW_CACHE_TEST_ENDPOINT", &endpoint)
                .env("AWS_ACCESS_KEY_ID", KEY.0)
                .env("AWS_SECRET_ACCESS_KEY", KEY.1)
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let expected = format!("sum {:016x} local ", straightway::checksum::Algorithm::Crc64Nvme.of(&bytes));
    let mut from_server = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        let (_, local) = text.split_once(&expected).unwrap_or_else(|| panic!("{text}"));
        let local: u64 = local.split_whitespace().next().unwrap().parse().unwrap();
        from_server += SHARED - local;
    }
    let engine = engine(&server, CacheConfig { block_bytes: 0, ..config(&scratch, 2 * SHARED / BLOCK) });
    let status = status(&engine);
    println!("{from_server} bytes of an object of {SHARED} not from the file alone; {status:?}");
    // Once by all of them, and what each of them reads before the owner answers for the first time, 8 MiB or two times that: they begin together.
    assert!(from_server <= SHARED * 4, "{status:?}");
}

#[test]
fn a_directory_that_cannot_be_is_told_and_does_not_stop_a_reader() {
    let (scratch, server) = (scratch("nowhere"), Server::start());
    let bytes = content(100, 1);
    let uri = put(&server, "one", &bytes);
    fs::write(scratch.path("file"), b"").unwrap();
    let engine = engine(&server, CacheConfig::new(scratch.path("file"), 1 << 30));
    let object = engine.open(&uri).unwrap();
    assert!(read(&engine, &object, 0, 100).0 == bytes);
    let error = engine.cache().unwrap().unwrap_err();
    assert!(!error.remedy_text().is_empty(), "{error}");
    let wrong = Engine::builder().cache(CacheConfig::new("/x", 17)).build().unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::ApiMisuse);
}

#[test]
fn reads_of_many_threads_in_a_cache_that_is_too_small_have_the_right_bytes() {
    let (scratch, server) = (scratch("small"), Server::start());
    let objects: Vec<_> = (0..4u64).map(|salt| content(12 * BLOCK + salt * 1000, salt)).collect();
    let uris: Vec<_> = objects.iter().enumerate().map(|(at, bytes)| put(&server, &format!("o{at}"), bytes)).collect();
    let engine = engine(&server, config(&scratch, 20));
    let opened: Vec<_> = uris.iter().map(|uri| engine.open(uri).unwrap()).collect();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (engine, opened, objects) = (&engine, &opened, &objects);
            scope.spawn(move || {
                let mut state = thread + 1;
                let mut draw = |below: u64| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33) % below
                };
                for _ in 0..60 {
                    let at = usize::try_from(draw(4)).unwrap();
                    let offset = draw(opened[at].len());
                    let len = 1 + draw((opened[at].len() - offset).min(5 * BLOCK));
                    let (got, path) = read(engine, &opened[at], offset, len);
                    let from = usize::try_from(offset).unwrap();
                    assert!(got == objects[at][from..from + got.len()], "{at} {offset} {len} {path:?}");
                }
            });
        }
    });
    settle(&engine);
    let status = status(&engine);
    assert!(status.hit_bytes > 0 && status.evicted_blocks > 0 && status.blocks <= 20, "{status:?}");
    assert_eq!((status.damaged_blocks, status.fault), (0, None));
}

#[test]
fn parts_of_an_operation_each_have_their_own_bytes_from_wherever_they_are() {
    let (scratch, server) = (scratch("vectored"), Server::start());
    let bytes = content(30 * BLOCK, 3);
    let uri = put(&server, "one", &bytes);
    let engine = engine(&server, config(&scratch, 100));
    let object = engine.open(&uri).unwrap();
    read(&engine, &object, 4 * BLOCK, 6 * BLOCK);
    read(&engine, &object, 20 * BLOCK, 3 * BLOCK);
    settle(&engine);
    let ranges = [(9 * BLOCK - 5, 4 * BLOCK), (100, 1), (3 * BLOCK + 1, 2 * BLOCK), (19 * BLOCK, 6 * BLOCK), (0, 7)];
    let parts = ranges.map(|(offset, len)| (offset, engine.allocate(Destination::Host, len, offset).unwrap()));
    let done: Completed = engine.read_vectored(&object, parts.into()).wait().ok().unwrap();
    let straightway::CacheStatus { hit_bytes, missed_bytes, .. } = status(&engine);
    assert!(hit_bytes > 0 && missed_bytes > 0, "{hit_bytes} {missed_bytes}");
    for ((offset, len), memory) in ranges.into_iter().zip(done.into_memories()) {
        let from = usize::try_from(offset).unwrap();
        assert!(engine.copy_to_host(&memory).unwrap() == bytes[from..from + usize::try_from(len).unwrap()], "{offset}");
    }
}

#[test]
fn damage_is_told_and_read_from_the_server() {
    let (scratch, server) = (scratch("damage"), Server::start());
    let bytes = content(4 * BLOCK, 1);
    let uri = put(&server, "one", &bytes);
    let first = engine(&server, config(&scratch, 100));
    let object = first.open(&uri).unwrap();
    read(&first, &object, 0, 4 * BLOCK);
    drop(object);
    first.close().unwrap();
    let data = fs::File::options().write(true).open(scratch.path("cache/data")).unwrap();
    data.write_all_at(b"x", 2 * BLOCK + 77).unwrap();
    drop(data);
    let second = engine(&server, config(&scratch, 100));
    let object = second.open(&uri).unwrap();
    let before = status(&second).missed_bytes;
    let (got, path) = read(&second, &object, 0, 4 * BLOCK);
    assert!(got == bytes);
    assert_eq!(status(&second).missed_bytes - before, BLOCK, "{path:?}");
    assert_eq!(status(&second).damaged_blocks, 1);
}

#[test]
fn what_is_found_wrong_as_a_whole_is_forgotten_and_read_from_the_server() {
    let (scratch, server) = (scratch("forget"), Server::start());
    let bytes = content(4 * BLOCK, 1);
    let uri = put(&server, "one", &bytes);
    let engine = engine(&server, config(&scratch, 100));
    let object = engine.open(&uri).unwrap();
    read(&engine, &object, 0, 4 * BLOCK);
    settle(&engine);
    object.part(7, None).unwrap().forget_kept();
    assert_eq!(status(&engine).blocks, 0);
    let (got, path) = read(&engine, &object, 0, 4 * BLOCK);
    assert!(got == bytes && path.route.transport == "http", "{path:?}");
}

#[test]
fn a_data_file_that_cannot_be_read_costs_a_reader_the_cache_and_nothing_else() {
    let (scratch, server) = (scratch("short"), Server::start());
    let bytes = content(6 * BLOCK + 5, 1);
    let uri = put(&server, "one", &bytes);
    let engine = engine(&server, config(&scratch, 100));
    let object = engine.open(&uri).unwrap();
    read(&engine, &object, 0, 4 * BLOCK);
    settle(&engine);
    assert_eq!(status(&engine).blocks, 4);
    // Behind two blocks, and in the midst of another one, there is nothing any more.
    let data = fs::File::options().write(true).open(scratch.path("cache/data")).unwrap();
    data.set_len(2 * BLOCK + 4096).unwrap();
    for _ in 0..2 {
        let memory = engine.allocate(Destination::Host, object.len(), 0).unwrap();
        let request = engine.read(&object, 0, memory).checksum(straightway::checksum::Algorithm::Crc64Nvme);
        let done = request.deadline(Duration::from_secs(60)).wait().ok().unwrap();
        assert_eq!(done.checksum, Some(straightway::checksum::Algorithm::Crc64Nvme.of(&bytes)));
        assert!(engine.copy_to_host(&done.into_memory().unwrap()).unwrap() == bytes);
    }
    assert!(status(&engine).damaged_blocks >= 1, "{:?}", status(&engine));
}

#[test]
fn a_policy_is_of_the_objects_own_way() {
    let (scratch, server) = (scratch("policy"), Server::start());
    let bytes = content(2 * BLOCK, 1);
    let uri = put(&server, "one", &bytes);
    let engine = engine(&server, config(&scratch, 100));
    let object = engine.open(&uri).unwrap();
    let by = |policy: &str| {
        let memory = engine.allocate(Destination::Host, 2 * BLOCK, 0).unwrap();
        engine.read(&object, 0, memory).policy(parse_policy(policy).unwrap()).wait().ok()
    };
    let first = by("require=http").unwrap();
    assert_eq!(first.path.route.transport, "http");
    settle(&engine);
    let second = by("require=http").unwrap();
    assert!(is_of_a_file(&second.path) && engine.copy_to_host(&second.into_memory().unwrap()).unwrap() == bytes);
    assert_eq!(by("require=dma").unwrap_err().kind(), ErrorKind::PolicyUnmet);
}

#[test]
fn what_is_warmed_into_a_full_cache_is_there_or_it_is_told() {
    let (scratch, server) = (scratch("full"), Server::start());
    let (other, one) = (content(40 * BLOCK, 1), content(30 * BLOCK, 2));
    let (other_uri, uri) = (put(&server, "other", &other), put(&server, "one", &one));
    // Memory for two blocks on their way to the disk.
    let engine = engine(&server, CacheConfig { fill_bytes: 2 * BLOCK, ..config(&scratch, 40) });
    let filling = engine.open(&other_uri).unwrap();
    let whole = |object: &Object| engine.warm([Ok((object.clone(), 0, object.len()))]).unwrap();
    assert_eq!(whole(&filling), Warmed { bytes: 40 * BLOCK, is_all: true });
    read(&engine, &filling, 0, 40 * BLOCK);
    let object = engine.open(&uri).unwrap();
    assert_eq!(whole(&object), Warmed { bytes: 30 * BLOCK, is_all: true });
    let (got, path) = read(&engine, &object, 0, 30 * BLOCK);
    assert!(got == one && is_of_a_file(&path), "{path:?}");
    // Nothing of it goes, and there is no place for all of the other one: that is told.
    assert!(object.set_pinning(Pinning::Pinned));
    assert!(!whole(&filling).is_all);
    let (_, path) = read(&engine, &object, 0, 30 * BLOCK);
    assert!(is_of_a_file(&path), "{path:?}");
    // Another version of it takes its place, and the pin.
    put(&server, "one", &content(30 * BLOCK, 3));
    let object = engine.open(&uri).unwrap();
    assert!(object.set_pinning(Pinning::Pinned));
    assert!(whole(&object).is_all);
    let kept = engine.cache().unwrap().unwrap().objects();
    let pinned: Vec<_> = kept.iter().filter(|kept| kept.pinned).collect();
    assert!(pinned.len() == 1 && pinned[0].kept_bytes == 30 * BLOCK, "{kept:?}");
}

#[test]
fn a_block_of_which_parts_are_asked_for_twice_comes_as_a_whole() {
    let (scratch, server) = (scratch("parts"), Server::start());
    let bytes = content(4 * BLOCK, 1);
    let uri = put(&server, "one", &bytes);
    let engine = engine(&server, config(&scratch, 100));
    let object = engine.open(&uri).unwrap();
    read(&engine, &object, BLOCK + 1000, 100);
    settle(&engine);
    assert_eq!(status(&engine).blocks, 0);
    read(&engine, &object, BLOCK + 5000, 100);
    for _ in 0..600 {
        if status(&engine).blocks > 0 {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let (got, path) = read(&engine, &object, BLOCK + 9000, 100);
    assert!(got == bytes[74_536..74_636] && is_of_a_file(&path), "{path:?}");
    assert_eq!(status(&engine).fetched_blocks, 1);
}

#[test]
fn what_is_warmed_is_there_and_what_cannot_be_is_told() {
    let (scratch, server) = (scratch("warm"), Server::start());
    let bytes = content(300 * BLOCK + 5, 1);
    let uri = put(&server, "one", &bytes);
    let engine = engine(&server, config(&scratch, 400));
    let object = engine.open(&uri).unwrap();
    let whole = |object: &Object| engine.warm([Ok((object.clone(), 0, object.len()))]);
    assert_eq!(whole(&object).unwrap(), Warmed { bytes: object.len(), is_all: true });
    assert_eq!(whole(&object).unwrap(), Warmed { bytes: 0, is_all: true });
    server.set(Wire::TooMuch(Request::Range, u64::MAX));
    let (got, path) = read(&engine, &object, 0, object.len());
    assert!(got == bytes && is_of_a_file(&path), "{path:?}");
    assert_eq!(server.refused(), 0);
    let part = object.part(0, Some(10)).unwrap();
    assert_eq!(engine.warm([Ok((part, 5, 10))]).unwrap_err().kind(), ErrorKind::OutOfRange);
    let local: Uri = scratch.text("cache/data").parse().unwrap();
    let local = engine.open(&local).unwrap();
    assert_eq!(whole(&local).unwrap_err().kind(), ErrorKind::Unsupported);
}
