//! What networks, servers and other writers do.

use std::{fs, time::Duration};

use sw_engine::{
    ErrorKind,
    seam::{EntryKind, Names, OpenMode, Store},
};
use sw_remote::objects::ObjectsConfig;
use sw_testkit::pattern;

use sw_testkit::s3::{Server, Wire};

use crate::client::{config, put, read, stores as stores_of, write};

const MIB: usize = 1 << 20;

/// An object of these bytes, put there behind the server's back.
fn given(server: &Server, key: &str, len: usize) -> Vec<u8> {
    let bytes = pattern::bytes(7, 0, len);
    fs::create_dir_all(server.path(key).parent().unwrap()).unwrap();
    fs::write(server.path(key), &bytes).unwrap();
    bytes
}

#[test]
fn connections_that_are_cut_in_an_answer_cost_no_byte() {
    let server = Server::start();
    let stores = stores_of(config(&server));
    let bytes = given(&server, "object", 3 * MIB + 17);
    let object = stores.open(&Server::uri("object"), OpenMode::Read).unwrap();
    // In the status line, in the headers, at the start of the data, in it, and near its end.
    for after in [1, 100, 400, 600, 70_000, MIB as u64, MIB as u64 + 300] {
        server.set(Wire::CutOnce(after));
        let got = read(&stores, &object).unwrap_or_else(|error| panic!("cut after {after}: {error}"));
        assert!(got == bytes, "cut after {after}");
    }
}

#[test]
fn a_server_that_falls_silent_ends_in_time_and_with_that_reason() {
    let server = Server::start();
    let mut config = crate::client::config(&server);
    (config.http.silence, config.patience) = (Duration::from_millis(200), Duration::from_secs(1));
    let stores = stores_of(config);
    given(&server, "object", MIB);
    let object = stores.open(&Server::uri("object"), OpenMode::Read).unwrap();
    for after in [0, 100, 100_000] {
        server.set(Wire::HoldAfter(after));
        let error = read(&stores, &object).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "held after {after}: {error}");
    }
    server.set(Wire::HoldAfter(0));
    let error = stores.open(&Server::uri("object"), OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
}

#[test]
fn a_store_that_is_asked_too_much_is_asked_again() {
    let server = Server::start();
    let stores = stores_of(config(&server));
    let bytes = given(&server, "object", 2 * MIB);
    let object = stores.open(&Server::uri("object"), OpenMode::Read).unwrap();
    server.set(Wire::TooMuch(3));
    assert!(read(&stores, &object).unwrap() == bytes);
    assert_eq!(server.refused(), 3);
    let impatient = ObjectsConfig { patience: Duration::from_secs(1), ..config(&server) };
    let stores = stores_of(impatient);
    server.set(Wire::TooMuch(u64::MAX));
    let error = stores.open(&Server::uri("object"), OpenMode::Read).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Busy, 503), "{error}");
}

#[test]
fn an_object_that_was_replaced_is_never_mixed_with_the_one_that_was_opened() {
    let server = Server::start();
    let stores = stores_of(config(&server));
    let bytes = pattern::bytes(1, 0, MIB);
    put(&stores, &Server::uri("object"), &bytes).unwrap();
    let object = stores.open(&Server::uri("object"), OpenMode::Read).unwrap();
    assert!(sw_remote::objects::unchanged(&object).unwrap().is_ok());
    // Of the same length, and within the second that HTTP's dates know.
    put(&stores, &Server::uri("object"), &pattern::bytes(2, 0, MIB)).unwrap();
    let error = read(&stores, &object).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    let error = sw_remote::objects::unchanged(&object).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
}

#[test]
fn who_may_not_is_told_so() {
    let server = Server::start();
    given(&server, "object", 10);
    let wrong = |change: fn(&mut ObjectsConfig)| {
        let mut config = crate::client::config(&server);
        change(&mut config);
        stores_of(config).open(&Server::uri("object"), OpenMode::Read).unwrap_err()
    };
    let error = wrong(|config| config.settings.set("AWS_SECRET_ACCESS_KEY", "another"));
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(!error.to_string().contains("another"), "{error}");
    let error = wrong(|config| config.settings.set("AWS_ACCESS_KEY_ID", "nobody"));
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    let stores = stores_of(config(&server));
    let error = stores.open("s3://no-such-bucket/object", OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    for name in ["s3://bucket//a", "s3://bucket/a//b", "s3://bucket/../a", "s3://"] {
        assert_eq!(stores.open(name, OpenMode::Read).unwrap_err().kind(), ErrorKind::BadUri, "{name}");
    }
}

#[test]
fn a_server_that_is_not_there_ends_within_the_patience() {
    let server = Server::start();
    let config = ObjectsConfig { patience: Duration::from_secs(1), ..config(&server) };
    let stores = stores_of(config);
    drop(server.stop());
    let error = stores.open(&Server::uri("object"), OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains(&Server::uri("object")), "{error}");
}

#[test]
fn an_upload_of_many_parts_appears_as_a_whole_and_one_that_is_given_up_leaves_nothing() {
    let server = Server::start();
    let stores = stores_of(ObjectsConfig { part_bytes: 5 << 20, ..config(&server) });
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
    let object = stores.open(&name, OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == bytes, "the one before is still there");
    // In the background.
    for _ in 0..200 {
        if server.uploads_left().unwrap().is_empty() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    panic!("{:?} are left", server.uploads_left());
}

#[test]
fn what_was_not_written_is_zeros_and_an_open_length_is_cut() {
    let server = Server::start();
    let stores = stores_of(ObjectsConfig { part_bytes: 5 << 20, ..config(&server) });
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
    let intent = stores.create_open(&Server::uri("never")).unwrap();
    assert_eq!(intent.commit(Names::Durable).unwrap_err().kind(), ErrorKind::ApiMisuse);
}

#[test]
fn uploads_survive_cuts() {
    let server = Server::start();
    let stores = stores_of(ObjectsConfig { part_bytes: 5 << 20, ..config(&server) });
    let bytes = pattern::bytes(4, 0, 11 * MIB);
    for after in [0, 20, 150] {
        server.set(Wire::CutOnce(after));
        put(&stores, &Server::uri("object"), &bytes).unwrap_or_else(|error| panic!("cut after {after}: {error}"));
        assert!(fs::read(server.path("object")).unwrap() == bytes, "cut after {after}");
    }
}
