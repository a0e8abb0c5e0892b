//! What networks, servers and other writers do.

use std::{fs, time::Duration};

use sw_engine::{
    ErrorKind,
    seam::{OpenMode, Store},
};
use sw_remote::objects::ObjectsConfig;
use sw_testkit::pattern;
use sw_testkit::{
    s3::{CERTIFICATE, Request, Server, Wire},
    scratch::Scratch,
};

use crate::client::{config, put, read, stores as stores_of};

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
    let stores = stores_of(config(server.environment()));
    let bytes = given(&server, "object", 3 * MIB + 17);
    let object = stores.open(&Server::uri("object"), OpenMode::Read).unwrap();
    // In the status line, in the headers, at the start of the data, in it, and near its end.
    for after in [1, 100, 400, 600, 70_000, MIB as u64, MIB as u64 + 300] {
        for wire in [Wire::CutOnce(after), Wire::ResetOnce(after)] {
            server.set(wire);
            let got = read(&stores, &object).unwrap_or_else(|error| panic!("{wire:?}: {error}"));
            assert!(got == bytes, "{wire:?}");
        }
    }
}

#[test]
fn one_request_at_a_time_is_enough_for_an_answer_that_is_cut() {
    let server = Server::start();
    let mut config = crate::client::config(server.environment());
    config.http.requests_max = 1;
    let stores = stores_of(config);
    let bytes = given(&server, "object", 3 * MIB);
    let object = stores.open(&Server::uri("object"), OpenMode::Read).unwrap();
    for after in [600, 70_000, MIB as u64] {
        server.set(Wire::CutOnce(after));
        let got = read(&stores, &object).unwrap_or_else(|error| panic!("cut after {after}: {error}"));
        assert!(got == bytes, "cut after {after}");
    }
}

#[test]
fn a_server_that_falls_silent_ends_in_time_and_with_that_reason() {
    let server = Server::start();
    let mut config = crate::client::config(server.environment());
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
    let stores = stores_of(config(server.environment()));
    let bytes = given(&server, "object", 2 * MIB);
    let object = stores.open(&Server::uri("object"), OpenMode::Read).unwrap();
    server.set(Wire::TooMuch(Request::Any, 3));
    assert!(read(&stores, &object).unwrap() == bytes);
    assert_eq!(server.refused(), 3);
    let impatient = ObjectsConfig { patience: Duration::from_secs(1), ..config(server.environment()) };
    let stores = stores_of(impatient);
    server.set(Wire::TooMuch(Request::Any, u64::MAX));
    let error = stores.open(&Server::uri("object"), OpenMode::Read).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Busy, 503), "{error}");
}

#[test]
fn an_object_that_was_replaced_is_never_mixed_with_the_one_that_was_opened() {
    let server = Server::start();
    let stores = stores_of(config(server.environment()));
    let bytes = pattern::bytes(1, 0, MIB);
    put(&stores, &Server::uri("object"), &bytes).unwrap();
    let object = stores.open(&Server::uri("object"), OpenMode::Read).unwrap();
    assert!(sw_remote::unchanged(&object).unwrap().is_ok());
    // Of the same length, and within the second that HTTP's dates know.
    put(&stores, &Server::uri("object"), &pattern::bytes(2, 0, MIB)).unwrap();
    let error = read(&stores, &object).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    let error = sw_remote::unchanged(&object).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
}

#[test]
fn what_is_read_as_a_whole_is_compared_with_the_checksum_that_the_store_has() {
    let server = Server::start();
    let stores = stores_of(config(server.environment()));
    let bytes = pattern::bytes(1, 0, MIB);
    put(&stores, &Server::uri("object"), &bytes).unwrap();
    let object = stores.open(&Server::uri("object"), OpenMode::Read).unwrap();
    assert!(sw_remote::stored_checksum(&object).is_some());
    server.set(Wire::CutOnce(MIB as u64 / 2));
    assert!(read(&stores, &object).unwrap() == bytes);
    let mut damaged = bytes;
    damaged[MIB - 1] ^= 1;
    fs::write(server.path("object"), &damaged).unwrap();
    let object = stores.open(&Server::uri("object"), OpenMode::Read).unwrap();
    let error = read(&stores, &object).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ChecksumMismatch, "{error}");
    // Of one for which the store has none, nothing is said.
    let given = given(&server, "given", 1000);
    let object = stores.open(&Server::uri("given"), OpenMode::Read).unwrap();
    assert_eq!(sw_remote::stored_checksum(&object), None);
    assert!(read(&stores, &object).unwrap() == given);
}

#[test]
fn who_may_not_is_told_so() {
    let server = Server::start();
    given(&server, "object", 10);
    let wrong = |change: fn(&mut ObjectsConfig)| {
        let mut config = crate::client::config(server.environment());
        change(&mut config);
        stores_of(config).open(&Server::uri("object"), OpenMode::Read).unwrap_err()
    };
    let error = wrong(|config| config.settings.set("AWS_SECRET_ACCESS_KEY", "another"));
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(!error.to_string().contains("another"), "{error}");
    let error = wrong(|config| config.settings.set("AWS_ACCESS_KEY_ID", "nobody"));
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    let stores = stores_of(config(server.environment()));
    let error = stores.open("s3://no-such-bucket/object", OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    for name in ["s3://bucket//a", "s3://bucket/a//b", "s3://bucket/../a", "s3://"] {
        assert_eq!(stores.open(name, OpenMode::Read).unwrap_err().kind(), ErrorKind::BadUri, "{name}");
    }
}

#[test]
fn a_certificate_is_trusted_or_not_and_a_cut_is_no_end_of_an_object() {
    let server = Server::start_with_tls();
    let folder = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "tls");
    let path = folder.path("ca.pem");
    fs::write(&path, CERTIFICATE).unwrap();
    let trusting = stores_of({
        let mut config = config(server.environment());
        config.http.ca_file = Some(path);
        config
    });
    let bytes = pattern::bytes(3, 0, 3 * MIB);
    put(&trusting, &Server::uri("object"), &bytes).unwrap();
    let object = trusting.open(&Server::uri("object"), OpenMode::Read).unwrap();
    for wire in [Wire::Good, Wire::CutOnce(500_000), Wire::ResetOnce(500_000)] {
        server.set(wire);
        assert!(read(&trusting, &object).unwrap() == bytes, "{wire:?}");
    }
    let stores = stores_of(config(server.environment()));
    let error = stores.open(&Server::uri("object"), OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(error.to_string().contains("remote_ca_file"), "{error}");
}

#[test]
fn a_server_that_is_not_there_ends_within_the_patience() {
    let server = Server::start();
    let config = ObjectsConfig { patience: Duration::from_secs(1), ..config(server.environment()) };
    let stores = stores_of(config);
    drop(server.stop());
    let error = stores.open(&Server::uri("object"), OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains(&Server::uri("object")), "{error}");
}
