//! The connection manager's part: a hello with private data each way, before the first frame.

use std::{
    any::Any,
    io,
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::verbs::{Incoming, Listener, PrivateData},
};

use super::{
    frame::{HELLO_BYTES, Hello, Word},
    wire::{Ready, fill, fill_on, now, put, wait},
};

/// How long the answer to a wish may take to leave.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

fn refusal(at: &str, cause: io::Error) -> Error {
    let kind = match cause.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ErrorKind::DeadlineExceeded,
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            ErrorKind::NoDevice
        }
        io::ErrorKind::AddrInUse => ErrorKind::InUse,
        io::ErrorKind::AddrNotAvailable => ErrorKind::NoDevice,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        _ => ErrorKind::Io,
    };
    let code = cause.raw_os_error().unwrap_or(0);
    Error::new(kind, Verb::Open).at(format!("emulated rdma {at}")).with_code(code).caused_by(cause)
}

fn no_hello(at: &str) -> Error {
    Error::new(ErrorKind::Protocol, Verb::Open)
        .at(format!("emulated rdma {at}"))
        .detail("what is there does not speak the emulation of this version")
        .remedy("use the same build of straightway at both ends; a real RDMA target needs a NIC")
}

fn hello(stream: &TcpStream, until: Instant) -> io::Result<Option<Hello>> {
    let mut raw = [0; HELLO_BYTES];
    fill(stream, &mut raw, Some(until))?;
    Ok(Hello::decode(&raw))
}

/// Connects; the peer's answer.
pub(super) fn connect(
    to: &str,
    private: &PrivateData,
    rnr_ms: u32,
    until: Instant,
) -> Result<(TcpStream, Hello), Error> {
    let addresses = to.to_socket_addrs().map_err(|cause| {
        Error::new(ErrorKind::NotFound, Verb::Open).at(to.to_owned()).detail("the name is not known").caused_by(cause)
    })?;
    let stream = open(addresses, until).map_err(|cause| refusal(to, cause))?;
    let wish = Hello { word: Word::Request, rnr_ms, private: *private };
    put(&stream, &wish.encode(), Some(until)).map_err(|cause| refusal(to, cause))?;
    match hello(&stream, until) {
        Ok(Some(answer)) if answer.word != Word::Request => Ok((stream, answer)),
        Ok(_) => Err(no_hello(to)),
        Err(cause) => Err(refusal(to, cause)),
    }
}

fn open(addresses: impl Iterator<Item = SocketAddr>, until: Instant) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for address in addresses {
        let left = until.saturating_duration_since(now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Listens.
pub(super) struct EmulatedListener(TcpListener);

impl EmulatedListener {
    pub(super) fn bind(at: &str) -> Result<Self, Error> {
        let listener = TcpListener::bind(at).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        listener.map(Self).map_err(|cause| refusal(at, cause))
    }
}

impl Listener for EmulatedListener {
    fn address(&self) -> String {
        self.0.local_addr().map_or_else(|_| "unknown".to_owned(), |at| at.to_string())
    }

    fn accept(&mut self, timeout: Duration) -> Result<Option<Box<dyn Incoming>>, Error> {
        let until = now() + timeout;
        loop {
            match self.0.accept() {
                Ok((stream, peer)) => {
                    let at = peer.to_string();
                    stream.set_nonblocking(true).map_err(|cause| refusal(&at, cause))?;
                    return Ok(Some(Box::new(Arrived {
                        stream: Some(stream),
                        at,
                        come: ([0; HELLO_BYTES], 0),
                        wish: None,
                    })));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait(&self.0, Ready::ToRead, Some(until)).map_err(|cause| refusal(&self.address(), cause))? {
                        return Ok(None);
                    }
                }
                // One that was gone before it was taken is no end of the listener's.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(refusal(&self.address(), error)),
            }
        }
    }
}

/// How long a wish may take to come that nobody asked for: refused it is all the same, as a connection manager does.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(20);

/// A connection whose wish was not answered yet.
pub(super) struct Arrived {
    /// There until it is answered.
    stream: Option<TcpStream>,
    at: String,
    /// What came of the wish so far, and how many bytes.
    come: ([u8; HELLO_BYTES], usize),
    wish: Option<Hello>,
}

impl Arrived {
    /// Accepts; the connection, and how long the peer's sends wait for a receive.
    pub(super) fn accept(mut self, private: &PrivateData, rnr_ms: u32) -> Result<(TcpStream, u32), Error> {
        self.request(ANSWER_TIMEOUT)?;
        let asked = self.wish.map_or(0, |wish| wish.rnr_ms);
        let stream = self.answer(Word::Accept, private, rnr_ms).map_err(|cause| refusal(&self.at, cause))?;
        Ok((stream, asked))
    }

    fn answer(&mut self, word: Word, private: &PrivateData, rnr_ms: u32) -> io::Result<TcpStream> {
        let stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
        let answer = Hello { word, rnr_ms, private: *private };
        put(&stream, &answer.encode(), Some(now() + ANSWER_TIMEOUT))?;
        Ok(stream)
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        if self.stream.is_some() && self.request(REFUSAL_TIMEOUT).is_ok() {
            // One that is gone needs no answer.
            let _ = self.answer(Word::Reject, &PrivateData::empty(), 0);
        }
    }
}

impl Incoming for Arrived {
    fn request(&mut self, timeout: Duration) -> Result<PrivateData, Error> {
        if let Some(wish) = self.wish {
            return Ok(wish.private);
        }
        let stream = self.stream.as_ref().ok_or_else(|| refusal(&self.at, io::ErrorKind::NotConnected.into()))?;
        let (raw, have) = (&mut self.come.0, &mut self.come.1);
        fill_on(stream, (raw, have), Some(now() + timeout)).map_err(|cause| refusal(&self.at, cause))?;
        let wish = Hello::decode(raw).filter(|wish| wish.word == Word::Request).ok_or_else(|| no_hello(&self.at))?;
        self.wish = Some(wish);
        Ok(wish.private)
    }

    fn reject(mut self: Box<Self>, private: &PrivateData) {
        // One that is gone needs no answer.
        let _ = self.answer(Word::Reject, private, 0);
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
