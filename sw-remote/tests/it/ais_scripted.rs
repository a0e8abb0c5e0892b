//! Clusters of AIStore that answer as no good one does: a proxy and a target by one server.

use std::{sync::Mutex, time::Duration};

use sw_engine::{
    ErrorKind, WriteOutcome,
    checksum::Algorithm,
    seam::{OpenMode, Store},
};
use sw_remote::objects::ObjectStores;
use sw_testkit::scripted::{Scripted, head_of, part_of, say};

use crate::client::{config, put, read, stores};

const BYTES: &[u8] = b"123456789";
const ONE: &str = "Ais-Version: 1\r\nAis-Checksum-Type: xxhash2\r\nAis-Checksum-Value: 8cb841db40e6ae83\r\n";

pub fn stores_of(server: &Scripted) -> ObjectStores {
    let endpoint = format!("http://{}", server.address());
    let mut config = config([("AIS_ENDPOINT", endpoint), ("AIS_AUTHN_TOKEN", "word".to_owned()), ("", String::new())]);
    config.patience = Duration::from_secs(2);
    config.part_bytes = 5 << 20;
    config.ais_batch = true;
    stores(config)
}

/// Whom a request was sent to.
pub fn host(request: &str) -> &str {
    request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap()
}

pub fn map(place: &str) -> Vec<u8> {
    let net = format!("{{\"direct_url\":\"http://{place}\"}}");
    say("200 OK", "", format!("{{\"pmap\":{{}},\"tmap\":{{\"t\":{{\"public_net\":{net}}}}}}}").as_bytes())
}

/// Sends a request on.
pub fn on(request: &str, place: &str) -> Vec<u8> {
    let path = request.split(' ').nth(1).unwrap();
    let status = if request.starts_with("get") { "301 Moved Permanently" } else { "307 Temporary Redirect" };
    say(status, &format!("Location: http://{place}{path}&pid=p&utm=1\r\n"), b"")
}

/// A cluster whose target answers so.
fn cluster(target: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Scripted {
    Scripted::start(move |request| match request {
        _ if request.contains("what=smap") => map(host(request)),
        _ if !request.contains("pid=p") => on(request, host(request)),
        _ => target(request),
    })
}

/// An answer that ends early.
fn cut(mut answer: Vec<u8>, bytes: usize) -> Vec<u8> {
    answer.truncate(answer.len() - bytes);
    answer
}

#[test]
fn the_rest_of_an_answer_that_is_cut_is_asked_for_where_it_was() {
    let gets = Mutex::new(0);
    let server = cluster(move |request| {
        if request.starts_with("head") {
            return head_of(BYTES.len(), ONE);
        }
        *gets.lock().unwrap() += 1;
        let part = part_of(request, ONE, BYTES);
        if *gets.lock().unwrap() == 1 { cut(part, 4) } else { part }
    });
    let stores = stores_of(&server);
    let object = stores.open("ais://b/k", OpenMode::Read).unwrap();
    assert_eq!(read(&stores, &object).unwrap(), BYTES);
    let asked = server.asked("get /v1/objects");
    assert!(asked.len() == 2 && asked[1].contains("range: bytes=5-8"), "{asked:?}");
    assert!(asked.iter().all(|request| request.contains("pid=p") && request.contains("authorization: bearer word")));
}

#[test]
fn bytes_of_two_versions_are_not_mixed_where_an_answer_is_cut() {
    for two in [ONE.replace("Version: 1", "Version: 2"), ONE.replace("8cb8", "8cb9")] {
        let (heads, gets) = (Mutex::new(0), Mutex::new(0));
        let server = cluster(move |request| {
            let count = if request.starts_with("head") { &heads } else { &gets };
            *count.lock().unwrap() += 1;
            match *count.lock().unwrap() {
                1 if request.starts_with("head") => head_of(BYTES.len(), ONE),
                1 => cut(part_of(request, ONE, BYTES), 4),
                _ if request.starts_with("head") => head_of(BYTES.len(), &two),
                _ => part_of(request, &two, b"abcdefghi"),
            }
        });
        let stores = stores_of(&server);
        let object = stores.open("ais://b/k", OpenMode::Read).unwrap();
        assert_eq!(read(&stores, &object).unwrap_err().kind(), ErrorKind::Changed);
    }
}

#[test]
fn bytes_that_are_not_those_of_the_checksum_are_an_error() {
    let server = cluster(|request| match request {
        _ if request.starts_with("head") => head_of(BYTES.len(), ONE),
        _ => part_of(request, ONE, b"123456780"),
    });
    let stores = stores_of(&server);
    let object = stores.open("ais://b/k", OpenMode::Read).unwrap();
    assert_eq!(read(&stores, &object).unwrap_err().kind(), ErrorKind::ChecksumMismatch);
}

#[test]
fn nobody_is_followed_who_is_not_in_the_map() {
    let stranger = Scripted::start(|_| head_of(BYTES.len(), ONE));
    let place = stranger.address().to_string();
    let server = Scripted::start(move |request| match request {
        _ if request.contains("what=smap") => map("127.0.0.1:1"),
        _ => on(request, &place),
    });
    let stores = stores_of(&server);
    let error = stores.open("ais://b/k", OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    let error = put(&stores, "ais://b/k", b"1").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(stranger.asked("").is_empty());
    // What is no map.
    for map in [&b"<html>"[..], b"{}", b"{\"tmap\":{\"t\":{}}}"] {
        let server = Scripted::start(move |request| match request {
            _ if request.contains("what=smap") => say("200 OK", "", map),
            _ => on(request, host(request)),
        });
        let error = stores_of(&server).open("ais://b/k", OpenMode::Read).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    }
}

#[test]
fn answers_that_are_none_are_errors() {
    let listing = |told: &'static str| {
        let server = Scripted::start(move |_| say("200 OK", "", told.as_bytes()));
        stores_of(&server).list("ais://b/").unwrap_err().kind()
    };
    for none in ["", "[]", "{\"entries\":[{}]}", "{\"entries\":[{\"name\":\"a\",\"size\":\"x\"}]}", "{\"entries\":1}"] {
        assert_eq!(listing(none), ErrorKind::Protocol, "{none}");
    }
    // Not the range, and not a range.
    for answer in [
        say("200 OK", ONE, BYTES),
        say("206 Partial Content", &format!("{ONE}Content-Range: bytes 1-9/10\r\n"), BYTES),
        say("206 Partial Content", ONE, BYTES),
    ] {
        let server = cluster(move |request| match request {
            _ if request.starts_with("head") => head_of(BYTES.len(), ONE),
            _ => answer.clone(),
        });
        let stores = stores_of(&server);
        let object = stores.open("ais://b/k", OpenMode::Read).unwrap();
        let error = read(&stores, &object).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Protocol | ErrorKind::Changed), "{error}");
    }
    // An object by which nothing tells another version.
    let server = cluster(|_| head_of(BYTES.len(), ""));
    assert_eq!(stores_of(&server).open("ais://b/k", OpenMode::Read).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_listing_from_which_names_may_be_missing_is_refused() {
    // A page ends at a name that a target has behind those below a directory, if there is one.
    let listed = |last: &'static str, below: &'static str| {
        let pages = Mutex::new(0);
        let server = Scripted::start(move |_| {
            *pages.lock().unwrap() += 1;
            let told = match *pages.lock().unwrap() {
                1 => format!(
                    "{{\"uuid\":\"u\",\"continuation_token\":\"{last}\",\"entries\":[{{\"name\":\"{last}\",\"version\":\"1\"}}]}}"
                ),
                2 if last.contains('.') => format!("{{\"entries\":{below}}}"),
                _ => "{\"entries\":[{\"name\":\"z\",\"version\":\"1\"}]}".to_owned(),
            };
            say("200 OK", "", told.as_bytes())
        });
        stores_of(&server).list("ais://b/")
    };
    assert_eq!(listed("a.b", "[{\"name\":\"a/b\",\"version\":\"1\"}]").unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(listed("a.b", "null").unwrap().len(), 2);
    assert_eq!(listed("ab", "null").unwrap().len(), 2);
}

/// What comes of an object of two parts whose last answer is lost, where the cluster then says so of it.
fn completed(now: &'static str) -> Result<(), sw_engine::Error> {
    let bytes = vec![3; 6 << 20];
    let sum = format!("{:08x}", Algorithm::Crc32c.of(&bytes));
    let (completions, len) = (Mutex::new(0), bytes.len());
    let server = cluster(move |request| match request {
        _ if request.starts_with("head") => head_of(len, &now.replace("SUM", &sum)),
        _ if request.starts_with("put") => say("200 OK", "", b""),
        _ if !request.contains("uploadid=") => say("200 OK", "", b"upload"),
        _ if request.starts_with("delete") => say("404 Not Found", "", b""),
        _ => {
            *completions.lock().unwrap() += 1;
            // Nothing at all, and then that there is no such upload.
            if *completions.lock().unwrap() == 1 { Vec::new() } else { say("404 Not Found", "", b"") }
        }
    });
    put(&stores_of(&server), "ais://b/k", &bytes)
}

#[test]
fn an_object_whose_last_answer_is_lost_is_known_by_its_checksum() {
    completed("Ais-Version: 1\r\nAis-Checksum-Type: crc32c\r\nAis-Checksum-Value: SUM\r\n").unwrap();
    for other in [ONE, "Ais-Version: 1\r\nAis-Checksum-Type: crc32c\r\nAis-Checksum-Value: 01234567\r\n"] {
        assert_eq!(completed(other).unwrap_err().outcome(), Some(WriteOutcome::Unknown));
    }
}
