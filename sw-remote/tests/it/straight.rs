//! Ranges that go straight from their connections to their place, from servers that say what few do, and connections that are used again.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sw_engine::{
    ErrorKind, Version,
    seam::{Hidden, OpenMode, Store},
};
use sw_remote::{
    System,
    objects::{ObjectStores, ObjectsConfig, Settings},
};
use sw_testkit::{pattern, s3::Server, scripted};

use crate::client::{config, read, stores as stores_of};

const TAG: &str = "ETag: \"1\"\r\nLast-Modified: Tue, 01 Dec 2026 10:00:00 GMT\r\n";
const LEN: usize = 3 << 20;

/// Answers a request that is the nth of its connection.
type Script = dyn Fn(&str, usize, &mut TcpStream) -> Flow + Send + Sync;

/// Whether a connection stays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Stay,
    Close,
}

/// A server that keeps connections, and how many there were.
fn keeping(
    script: impl Fn(&str, usize, &mut TcpStream) -> Flow + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let (script, counted): (Arc<Script>, _) = (Arc::new(script), count.clone());
    let serve = move || {
        for socket in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::Relaxed);
            let script = script.clone();
            std::thread::Builder::new().spawn(move || serve_one(socket, &*script)).unwrap();
        }
    };
    std::thread::Builder::new().spawn(serve).unwrap();
    (address, count)
}

fn serve_one(mut socket: TcpStream, script: &Script) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    for number in 0.. {
        let lines = reader.by_ref_lines();
        if lines.is_empty() || script(&lines, number, &mut socket) == Flow::Close {
            return;
        }
    }
}

trait Lines {
    /// The lines of a head, in lower case.
    fn by_ref_lines(&mut self) -> String;
}

impl Lines for BufReader<TcpStream> {
    fn by_ref_lines(&mut self) -> String {
        let (mut head, mut line) = (String::new(), String::new());
        while self.read_line(&mut line).is_ok_and(|len| len > 0) && line != "\r\n" {
            head += &line.trim_end().to_lowercase();
            head.push('\n');
            line.clear();
        }
        head
    }
}

fn stores_at(address: SocketAddr) -> ObjectStores {
    let pairs = [
        ("AWS_ENDPOINT_URL", format!("http://{address}")),
        ("AWS_ACCESS_KEY_ID", "A".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "S".to_owned()),
    ];
    let mut config = config(pairs);
    (config.http.silence, config.patience) = (Duration::from_secs(2), Duration::from_secs(10));
    stores_of(config)
}

/// An answer without the header that closes.
fn staying(answer: Vec<u8>) -> Vec<u8> {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let text = String::from_utf8(answer[..head].to_vec()).unwrap().replace("Connection: close\r\n", "");
    [text.as_bytes(), &answer[head..]].concat()
}

fn good(request: &str, bytes: &[u8]) -> Vec<u8> {
    let answer = match request.starts_with("head") {
        true => scripted::head_of(bytes.len(), TAG),
        false => scripted::part_of(request, TAG, bytes),
    };
    staying(answer)
}

#[test]
fn a_connection_is_used_again_and_one_that_was_closed_is_replaced() {
    let bytes = pattern::bytes(7, 0, LEN);
    let object_bytes = bytes.clone();
    // Closes each connection behind its second answer, without saying so.
    let (address, count) = keeping(move |request, number, socket| {
        socket.write_all(&good(request, &object_bytes)).unwrap();
        if number == 1 { Flow::Close } else { Flow::Stay }
    });
    let stores = stores_at(address);
    let object = stores.open("s3://b/k", OpenMode::Read).unwrap();
    for _ in 0..3 {
        assert!(read(&stores, &object).unwrap() == bytes);
    }
    // One for the opening; nine ranges, two on each of the others.
    assert_eq!(count.load(Ordering::Relaxed), 1 + 5);
}

#[test]
fn what_comes_behind_an_answer_is_of_no_other() {
    let bytes = pattern::bytes(7, 0, LEN);
    let object_bytes = bytes.clone();
    let (address, _) = keeping(move |request, _, socket| {
        let mut answer = good(request, &object_bytes);
        if request.starts_with("get") {
            // Another answer, to the next request, of other bytes.
            answer.extend(staying(scripted::part_of("range: bytes=0-1048575", TAG, &vec![9; LEN])));
        }
        let _gone = socket.write_all(&answer);
        Flow::Stay
    });
    let stores = stores_at(address);
    let object = stores.open("s3://b/k", OpenMode::Read).unwrap();
    for _ in 0..3 {
        assert!(read(&stores, &object).unwrap() == bytes);
    }
}

#[test]
fn an_interim_answer_is_followed_by_the_one_that_counts() {
    let bytes = pattern::bytes(7, 0, LEN);
    let whole = bytes.clone();
    let (address, _) = keeping(move |request, _, socket| {
        let interim: &[u8] = if request.starts_with("get") { b"HTTP/1.1 100 Continue\r\n\r\n" } else { b"" };
        socket.write_all(&[interim, &good(request, &whole)].concat()).unwrap();
        Flow::Stay
    });
    let stores = stores_at(address);
    let object = stores.open("s3://b/k", OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == bytes);
}

#[test]
fn answers_that_are_too_long_or_are_none_are_told() {
    for (kind, answer) in [
        (
            ErrorKind::Protocol,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1048575/3145728\r\nContent-Length: 1048577\r\n",
        ),
        (
            ErrorKind::Protocol,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1048575/3145728\r\nContent-Length: x\r\n",
        ),
        (ErrorKind::Protocol, "HTTP/9.9 what\r\n"),
        (ErrorKind::Protocol, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1048575/3145728\r\n"),
    ] {
        let answer = format!("{answer}{TAG}\r\n");
        let (address, _) = keeping(move |request, _, socket| {
            if request.starts_with("head") {
                socket.write_all(&good(request, &vec![0; LEN])).unwrap();
                return Flow::Stay;
            }
            let _gone = socket.write_all(answer.as_bytes()).and_then(|()| socket.write_all(&vec![1; 1_048_577]));
            Flow::Close
        });
        let stores = stores_at(address);
        let object = stores.open("s3://b/k", OpenMode::Read).unwrap();
        let error = read(&stores, &object).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[test]
fn a_refusal_without_a_length_keeps_its_word() {
    let (address, _) = keeping(move |request, _, socket| {
        if request.starts_with("head") {
            socket.write_all(&good(request, &vec![0; LEN])).unwrap();
            return Flow::Stay;
        }
        let body = "<Error><Code>ExpiredToken</Code><Message>gone</Message></Error>";
        let chunked = format!(
            "HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        socket.write_all(chunked.as_bytes()).unwrap();
        Flow::Stay
    });
    let stores = stores_at(address);
    let object = stores.open("s3://b/k", OpenMode::Read).unwrap();
    let error = read(&stores, &object).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(error.to_string().contains("ExpiredToken"), "{error}");
}

#[test]
fn what_a_listing_told_is_opened_without_a_request_and_read_in_that_version_alone() {
    let server = Server::start();
    let stores = stores_of(config(server.environment()));
    let bytes = pattern::bytes(7, 0, LEN);
    std::fs::write(server.path("object"), &bytes).unwrap();
    let mut listed = Vec::new();
    stores
        .walk(&Server::uri(""), Hidden::Given, &mut |entry| {
            listed.push(entry);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let entry = listed.into_iter().find(|entry| entry.name.ends_with("/object")).unwrap();
    let object = stores.open_known(&entry.name, entry.len, entry.version).unwrap();
    assert!(read(&stores, &object).unwrap() == bytes);
    // Of another version, or another length.
    for (len, version) in [
        (entry.len, Version { stamp: entry.version.stamp + 1_000_000_000, ..entry.version }),
        (entry.len, Version { identity: (0, 1), ..entry.version }),
        (entry.len - 1, entry.version),
    ] {
        let other = stores.open_known(&entry.name, len, version).unwrap();
        let error = read(&stores, &other).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    }
    std::fs::write(server.path("object"), pattern::bytes(8, 0, LEN)).unwrap();
    let again = stores.open_known(&entry.name, entry.len, entry.version).unwrap();
    assert_eq!(read(&stores, &again).unwrap_err().kind(), ErrorKind::Changed);
    assert_eq!(read(&stores, &object).unwrap_err().kind(), ErrorKind::Changed, "one that was read before");
    std::fs::remove_file(server.path("object")).unwrap();
    let gone = stores.open_known(&entry.name, entry.len, entry.version).unwrap();
    assert_eq!(read(&stores, &gone).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_known_object_of_which_an_answer_says_nothing_is_not_read() {
    let server = scripted::Scripted::start(|request| scripted::part_of(request, "", &[7; 1000]));
    let settings = [
        ("AWS_ENDPOINT_URL", format!("http://{}", server.address())),
        ("AWS_ACCESS_KEY_ID", "A".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "S".to_owned()),
    ];
    let settings = Settings::from_environment(settings.map(|(name, value)| (name.into(), value.into())));
    let stores = stores_of(ObjectsConfig { settings, patience: Duration::from_secs(2), ..ObjectsConfig::default() });
    let object = stores.open_known("s3://b/k", 1000, Version::default()).unwrap();
    read(&stores, &object).unwrap_err();
}
