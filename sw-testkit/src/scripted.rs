//! Servers of HTTP that answer as they are told to, which no well-behaved one would.

#![expect(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
};

/// What a server says to a request, of which it sees the line and the headers, in lower case, and the body: an answer as it goes over the wire.
type Script = dyn Fn(&str, &[u8]) -> Vec<u8> + Send + Sync;

/// It, and what it was asked.
pub struct Scripted {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    /// One whose threads go on until the process ends.
    ///
    /// # Panics
    /// If the machine has no port or thread for it.
    pub fn start(script: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start_with_bodies(move |head, _body| script(head))
    }

    /// The same of one that looks at the bodies of requests too.
    ///
    /// # Panics
    /// If the machine has no port or thread for it.
    pub fn start_with_bodies(script: impl Fn(&str, &[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
        let (script, told): (Arc<Script>, _) = (Arc::new(script), asked.clone());
        let serve = move || {
            for socket in listener.incoming().flatten() {
                let (script, told) = (script.clone(), told.clone());
                std::thread::Builder::new().spawn(move || answer(socket, &*script, &told)).unwrap();
            }
        };
        std::thread::Builder::new().spawn(serve).unwrap();
        Self { address, asked }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests whose lines begin so.
    pub fn asked(&self, begin: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|request| request.starts_with(begin)).cloned().collect()
    }
}

/// Answers one request, and closes.
fn answer(mut socket: TcpStream, script: &Script, asked: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    let head: Vec<String> = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let head = head.join("\n").to_lowercase();
    let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
    let mut body = vec![0; len];
    if head.is_empty() || reader.read_exact(&mut body).is_err() {
        return;
    }
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
    let _gone = socket.write_all(&script(&head, &body));
}

/// An answer with its length.
pub fn say(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A refusal of S3's.
pub fn error(status: &str, code: &str) -> Vec<u8> {
    say(status, "", format!("<Error><Code>{code}</Code><Message>as told</Message></Error>").as_bytes())
}

/// The answer to HEAD of an object of so many bytes.
pub fn head_of(len: usize, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {len}\r\nConnection: close\r\n\r\n").into_bytes()
}

/// The range that a request asks for, of `bytes`.
///
/// # Panics
/// If it asks for none.
pub fn part_of(request: &str, headers: &str, bytes: &[u8]) -> Vec<u8> {
    let range = request.lines().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-')).unwrap();
    let (from, to): (usize, usize) = (range.0.parse().unwrap(), range.1.parse().unwrap());
    let of = format!("{headers}Content-Range: bytes {from}-{to}/{}\r\n", bytes.len());
    say("206 Partial Content", &of, &bytes[from..=to])
}
