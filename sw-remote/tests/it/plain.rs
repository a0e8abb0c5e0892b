//! Plain HTTP: a server that says little of its files.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
};

use sw_engine::{
    ErrorKind,
    seam::{OpenMode, Store},
};
use sw_remote::objects::ObjectsConfig;
use sw_testkit::pattern;

use crate::client::{read, stores};

/// What is told of the one file: lines of headers, and its bytes.
#[derive(Clone, Default)]
struct File {
    told: &'static str,
    bytes: Vec<u8>,
}

/// A server of one file, and the requests that it got.
struct Plain {
    address: SocketAddr,
    file: Arc<Mutex<File>>,
    asked: Arc<Mutex<Vec<String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plain {
    /// One whose thread goes on until the process ends.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (file, asked) = (Arc::<Mutex<File>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (its_file, its_asked) = (file.clone(), asked.clone());
        let serve = move || listener.incoming().flatten().for_each(|socket| answer(socket, &its_file, &its_asked));
        std::thread::Builder::new().spawn(serve).unwrap();
        Self { address, file, asked }
    }

    fn set(&self, told: &'static str, bytes: &[u8]) {
        *lock(&self.file) = File { told, bytes: bytes.to_vec() };
    }

    fn uri(&self) -> String {
        format!("http://{}/file", self.address)
    }
}

/// Answers one request, and closes.
fn answer(mut socket: TcpStream, file: &Mutex<File>, asked: &Mutex<Vec<String>>) {
    let lines = BufReader::new(socket.try_clone().unwrap()).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    let File { told, bytes } = lock(file).clone();
    let range = head.iter().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-'));
    let range = range.map(|(from, to)| from.parse().unwrap()..to.parse::<usize>().unwrap() + 1);
    let (status, of, body) = match range {
        Some(range) if range.end <= bytes.len() => {
            let of = format!("Content-Range: bytes {}-{}/{}\r\n", range.start, range.end - 1, bytes.len());
            ("206 Partial Content", of, &bytes[range])
        }
        _ => ("200 OK", String::new(), &bytes[..]),
    };
    let len = body.len();
    let body = if head.first().is_some_and(|line| line.starts_with("head")) { &[] } else { body };
    lock(asked).push(head.join("\n"));
    let answer = format!("HTTP/1.1 {status}\r\n{told}{of}Content-Length: {len}\r\nConnection: close\r\n\r\n");
    let _closed = socket.write_all(answer.as_bytes()).and_then(|()| socket.write_all(body));
}

const THEN: &str = "Last-Modified: Tue, 01 Dec 2026 10:00:00 GMT\r\n";
const LATER: &str = "Last-Modified: Tue, 01 Dec 2026 10:00:01 GMT\r\n";

#[test]
fn a_file_of_which_nothing_is_told_is_not_opened() {
    let (server, stores) = (Plain::start(), stores(ObjectsConfig::default()));
    for told in ["", "ETag: W/\"1\"\r\n"] {
        server.set(told, &[1; 10]);
        let error = stores.open(&server.uri(), OpenMode::Read).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{told:?}: {error}");
        assert!(error.to_string().contains("ETag"), "{error}");
    }
}

#[test]
fn a_file_that_changed_is_noticed_by_what_the_server_tells_of_it() {
    let (server, stores) = (Plain::start(), stores(ObjectsConfig::default()));
    let weak_then = "ETag: W/\"1\"\r\nLast-Modified: Tue, 01 Dec 2026 10:00:00 GMT\r\n";
    let weak_later = "ETag: W/\"1\"\r\nLast-Modified: Tue, 01 Dec 2026 10:00:01 GMT\r\n";
    let tags = ("ETag: \"1\"\r\n", "ETag: \"2\"\r\n");
    for ((then, later), condition) in [
        ((THEN, LATER), "if-unmodified-since: tue, 01 dec 2026 10:00:00 gmt"),
        ((weak_then, weak_later), "if-unmodified-since: tue, 01 dec 2026 10:00:00 gmt"),
        (tags, "if-match: \"1\""),
    ] {
        let bytes = pattern::bytes(1, 0, 100_000);
        server.set(then, &bytes);
        let object = stores.open(&server.uri(), OpenMode::Read).unwrap();
        assert!(!sw_remote::is_versioned(&object), "a tag of a web server may be of its time alone");
        assert!(read(&stores, &object).unwrap() == bytes, "{then:?}");
        let asked = lock(&server.asked).last().unwrap().clone();
        assert!(asked.contains(condition), "{asked}");
        // This server does not look at conditions; of the same length.
        server.set(later, &pattern::bytes(2, 0, 100_000));
        let error = read(&stores, &object).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{then:?}: {error}");
    }
}
