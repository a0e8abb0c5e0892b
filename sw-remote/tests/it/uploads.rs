//! Writing, and what networks and servers do to it.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use sw_engine::{
    ErrorKind, WriteOutcome,
    seam::{EntryKind, Names, OpenMode, Store},
};
use sw_remote::{System, objects::ObjectsConfig};
use sw_testkit::{
    pattern,
    s3::{Request, Server, Then, Wire},
};

use crate::client::{config, put, read, stores as stores_of, write};

const MIB: usize = 1 << 20;

fn little_parts(server: &Server) -> ObjectsConfig {
    ObjectsConfig { part_bytes: 5 << 20, ..config(server.environment()) }
}

#[test]
fn an_upload_of_many_parts_appears_as_a_whole_and_one_that_is_given_up_leaves_nothing() {
    let server = Server::start();
    let stores = stores_of(little_parts(&server));
    let bytes = pattern::bytes(3, 0, 17 * MIB + 5);
    let name = Server::uri("a/b/large");
    let intent = stores.create(&name, bytes.len() as u64).unwrap();
    // From the middle on, then from the start: parts fill up in any order.
    write(&stores, intent.object(), 7 * MIB as u64, &bytes[7 * MIB..]).unwrap();
    assert_eq!(stores.stat(&name).unwrap_err().kind(), ErrorKind::NotFound);
    write(&stores, intent.object(), 0, &bytes[..7 * MIB]).unwrap();
    intent.commit(Names::Durable).unwrap();
    let object = stores.open(&name, OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == bytes);
    assert!(fs::read(server.path("a/b/large")).unwrap() == bytes);
    assert_eq!(stores.stat("s3://bucket/a/").unwrap().kind, EntryKind::Directory);

    let intent = stores.create(&name, bytes.len() as u64).unwrap();
    write(&stores, intent.object(), 0, &bytes[..12 * MIB]).unwrap();
    let error = write(&stores, intent.object(), 0, &bytes[..MIB]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "these bytes are on their way: {error}");
    drop(intent);
    // At once: the process may end now.
    assert_eq!(server.uploads_left().unwrap(), Vec::<PathBuf>::new());
    let object = stores.open(&name, OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == bytes, "the one before is still there");
}

#[test]
fn a_server_that_is_gone_holds_nobody_who_gives_up() {
    let server = Server::start();
    let mut config = little_parts(&server);
    (config.http.silence, config.patience) = (Duration::from_millis(200), Duration::from_secs(1));
    let stores = stores_of(config);
    let intent = stores.create(&Server::uri("object"), 11 * MIB as u64).unwrap();
    write(&stores, intent.object(), 0, &vec![1; 6 * MIB]).unwrap();
    server.set(Wire::HoldAfter(0));
    // The abort is given up with the patience; a longer one is left to the background (`Runtime::linger`).
    #[expect(clippy::disallowed_methods, reason = "the wait is one of time")]
    let start = Instant::now();
    drop(intent);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn an_upload_that_is_given_up_with_parts_on_their_way_leaves_nothing() {
    let server = Server::start();
    let stores = stores_of(little_parts(&server));
    let intent = stores.create(&Server::uri("object"), 30 * MIB as u64).unwrap();
    let object = intent.object().clone();
    // Some 3 s for what is written.
    server.set(Wire::Slow(64 << 10));
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| write(&stores, &object, 0, &vec![1; 15 * MIB]));
        while server.arriving().unwrap().is_empty() {
            std::thread::yield_now();
        }
        drop(intent);
        assert_eq!(server.uploads_left().unwrap(), Vec::<PathBuf>::new());
        // Whatever came of them, they do not begin another.
        drop(writes.join().unwrap());
    });
    assert_eq!(server.uploads_left().unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn a_byte_that_changes_on_its_way_is_noticed_by_the_store() {
    let server = Server::start();
    let bytes = pattern::bytes(9, 0, 3 * MIB);
    let with = |checksum: Option<&str>| {
        let mut config = little_parts(&server);
        // Or the signature would notice it.
        config.settings.set("AWS_UNSIGNED_PAYLOAD", "true");
        if let Some(checksum) = checksum {
            config.settings.set("AWS_CHECKSUM_ALGORITHM", checksum);
        }
        server.set(Wire::AlterOnce(Request::Put));
        put(&stores_of(config), &Server::uri("object"), &bytes)
    };
    let error = with(None).unwrap_err();
    assert!(error.to_string().contains("BadDigest"), "{error}");
    // That the wire does it at all is seen where nobody looks.
    with(Some("none")).unwrap();
    assert!(fs::read(server.path("object")).unwrap() != bytes);
}

#[test]
fn bytes_that_come_behind_a_commit_are_refused() {
    let server = Server::start();
    let stores = stores_of(little_parts(&server));
    for len in [3 * MIB, 11 * MIB] {
        let bytes = pattern::bytes(5, 0, len);
        let intent = stores.create(&Server::uri("object"), len as u64).unwrap();
        let object = intent.object().clone();
        write(&stores, &object, 0, &bytes).unwrap();
        intent.commit(Names::Durable).unwrap();
        let error = write(&stores, &object, len as u64 - 100, &[9; 100]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
        assert!(fs::read(server.path("object")).unwrap() == bytes);
    }
}

#[test]
fn a_part_that_could_not_be_sent_has_its_bytes_still() {
    let server = Server::start();
    let mut config = little_parts(&server);
    config.patience = Duration::from_secs(1);
    let stores = stores_of(config);
    let bytes = pattern::bytes(6, 0, 20 * MIB);
    let half = MIB / 2;
    for again in [true, false] {
        let intent = stores.create(&Server::uri("object"), bytes.len() as u64).unwrap();
        let put = |from: usize, to: usize| write(&stores, intent.object(), from as u64, &bytes[from..to]);
        // Two parts that are whole but for one write that reaches into both, and one that is not whole.
        put(10 * MIB + half, 15 * MIB).unwrap();
        put(0, 10 * MIB - half).unwrap();
        put(16 * MIB, 20 * MIB).unwrap();
        server.set(Wire::TooMuch(Request::Any, u64::MAX));
        let error = put(10 * MIB - half, 10 * MIB + half).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        server.set(Wire::Good);
        if again {
            put(10 * MIB - half, 10 * MIB + half).unwrap();
        }
        put(15 * MIB, 16 * MIB).unwrap();
        intent.commit(Names::Durable).unwrap();
        assert!(fs::read(server.path("object")).unwrap() == bytes, "again: {again}");
    }
}

#[test]
fn a_server_that_takes_long_for_a_part_is_not_silent() {
    let server = Server::start();
    let mut config = config(server.environment());
    (config.http.silence, config.patience) = (Duration::from_millis(800), Duration::from_secs(4));
    let stores = stores_of(config);
    let bytes = pattern::bytes(7, 0, 10 * MIB);
    // 6 MB a second at most: twice what a server may be silent at most, and one request.
    server.set(Wire::Slow(64 << 10));
    put(&stores, &Server::uri("object"), &bytes).unwrap();
    assert!(fs::read(server.path("object")).unwrap() == bytes);
}

#[test]
fn a_commit_whose_answer_is_lost_is_found_done() {
    let server = Server::start();
    let stores = stores_of(little_parts(&server));
    for (request, len) in [(Request::Complete, 11 * MIB), (Request::Put, MIB)] {
        let bytes = pattern::bytes(8, 0, len);
        server.set(Wire::Lose(request, Then::Good));
        put(&stores, &Server::uri("object"), &bytes).unwrap_or_else(|error| panic!("{request:?}: {error}"));
        assert!(fs::read(server.path("object")).unwrap() == bytes, "{request:?}");
        assert_eq!(server.uploads_left().unwrap(), Vec::<PathBuf>::new(), "{request:?}");
    }
}

#[test]
fn a_commit_of_which_nothing_is_heard_any_more_is_told_as_unknown() {
    let server = Server::start();
    let mut config = little_parts(&server);
    (config.http.silence, config.patience) = (Duration::from_millis(200), Duration::from_secs(1));
    let stores = stores_of(config);
    for (request, len) in [(Request::Complete, 11 * MIB), (Request::Put, MIB)] {
        let intent = stores.create(&Server::uri("object"), len as u64).unwrap();
        write(&stores, intent.object(), 0, &vec![1; len]).unwrap();
        server.set(Wire::Lose(request, Then::Silent));
        let error = intent.commit(Names::Durable).unwrap_err();
        assert_eq!(error.outcome(), Some(WriteOutcome::Unknown), "{request:?}: {error}");
        server.set(Wire::Good);
    }
}

#[test]
fn what_was_not_written_is_zeros_and_an_open_length_is_cut() {
    let server = Server::start();
    let stores = stores_of(little_parts(&server));
    let intent = stores.create(&Server::uri("holes"), 11 * MIB as u64).unwrap();
    write(&stores, intent.object(), 6 * MIB as u64, &[1; 100]).unwrap();
    intent.commit(Names::Durable).unwrap();
    let mut want = vec![0; 11 * MIB];
    want[6 * MIB..6 * MIB + 100].fill(1);
    assert!(fs::read(server.path("holes")).unwrap() == want);

    let intent = stores.create_open(&Server::uri("open")).unwrap();
    write(&stores, intent.object(), 0, &want[..7 * MIB]).unwrap();
    intent.cut(7 * MIB as u64 - 3).unwrap();
    intent.commit(Names::Durable).unwrap();
    assert!(fs::read(server.path("open")).unwrap() == want[..7 * MIB - 3]);
    // Within a part that was full, and behind two that are.
    for (written, len) in [(10 * MIB, 10 * MIB - 3), (5 * MIB, 5 * MIB - 3), (10 * MIB, 10 * MIB)] {
        let intent = stores.create_open(&Server::uri("open")).unwrap();
        write(&stores, intent.object(), 0, &want[..written]).unwrap();
        intent.cut(len as u64).unwrap();
        intent.commit(Names::Durable).unwrap_or_else(|error| panic!("{len} of {written}: {error}"));
        assert!(fs::read(server.path("open")).unwrap() == want[..len]);
        assert_eq!(server.uploads_left().unwrap(), Vec::<PathBuf>::new());
    }
    let intent = stores.create_open(&Server::uri("never")).unwrap();
    assert_eq!(intent.commit(Names::Durable).unwrap_err().kind(), ErrorKind::ApiMisuse);
}

#[test]
fn uploads_survive_cuts() {
    let server = Server::start();
    let stores = stores_of(little_parts(&server));
    let bytes = pattern::bytes(4, 0, 11 * MIB);
    for after in [0, 20, 150] {
        server.set(Wire::CutOnce(after));
        put(&stores, &Server::uri("object"), &bytes).unwrap_or_else(|error| panic!("cut after {after}: {error}"));
        assert!(fs::read(server.path("object")).unwrap() == bytes, "cut after {after}");
    }
    // Of an upload whose begin is heard of nothing is left. One whose name was lost with an answer is the store's to clean up.
    let before = server.uploads_left().unwrap();
    for wire in [Wire::Lose(Request::Part, Then::Good), Wire::ResetOnce(20), Wire::ResetOnce(150)] {
        if let Wire::ResetOnce(_) = wire {
            // Behind the answer to the begin.
            let intent = stores.create(&Server::uri("object"), bytes.len() as u64).unwrap();
            write(&stores, intent.object(), 0, &bytes[..5 * MIB]).unwrap();
            server.set(wire);
            write(&stores, intent.object(), 5 * MIB as u64, &bytes[5 * MIB..]).unwrap();
            intent.commit(Names::Durable).unwrap_or_else(|error| panic!("{wire:?}: {error}"));
        } else {
            server.set(wire);
            put(&stores, &Server::uri("object"), &bytes).unwrap_or_else(|error| panic!("{wire:?}: {error}"));
        }
        assert!(fs::read(server.path("object")).unwrap() == bytes, "{wire:?}");
        assert_eq!(server.uploads_left().unwrap(), before, "{wire:?}");
    }
}

#[test]
fn an_object_that_is_refused_is_told_as_not_written() {
    let server = Server::start();
    let mut config = little_parts(&server);
    config.settings.set("AWS_SECRET_ACCESS_KEY", "another");
    let stores = stores_of(config);
    let intent = stores.create(&Server::uri("object"), 10).unwrap();
    write(&stores, intent.object(), 0, &[1; 10]).unwrap();
    let error = intent.commit(Names::Durable).unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::PermissionDenied, Some(WriteOutcome::NotApplied)),
        "{error}"
    );
}
