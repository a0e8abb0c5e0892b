//! The bytes of a connection: over its socket, or over TLS that its host must have.
//!
//! ```text
//!   no key    Wire::plain
//!   a key     first byte ─┬─ 16h, a handshake ─► TLS ─► Wire, with the names that the host's key is for
//!                         └─ anything else ─► an alert of TLS, and the end: nothing goes on in the clear
//! ```

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSliceMut, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use sw_engine::Error;
use sw_nvme::{
    fabrics::{ConnectData, Nqn},
    keyring::Keys,
    psk::{ConfiguredPsk, Derivation},
};

use super::wire::{LONG_BYTES, WRITE_TIMEOUT, now};
use crate::{
    socket::{self, Piece, Ready, Waited, wait_for},
    tls::{Channel, KernelTls, ServerTls, WANTS_TLS},
};

/// What waits to be sent is sent at the latest when it is so many bytes.
const WAITING_BYTES_MAX: usize = 64 << 10;
/// A read that may wait for ever looks again so often.
const LOOKED_AFTER: Duration = Duration::from_secs(60);
/// Type of the record that a handshake begins with (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// TLS that a target demands of its hosts. A host that has no key has no connection.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The keys of hosts, each its own or all the same; of one suite.
    pub psk: Keys<ConfiguredPsk>,
    /// How hosts make their keys of it. Identities of both versions are taken.
    pub derivation: Derivation,
    /// Whether the kernel shall do it.
    pub kernel: KernelTls,
}

impl Tls {
    /// # Errors
    /// `Unsupported`: no OpenSSL. `ApiMisuse`: keys of two suites, or none.
    pub(super) fn server(&self, subsystem: &Nqn) -> Result<ServerTls, Error> {
        let (subsystem, discovery) = (subsystem.clone(), Nqn::discovery());
        let is_ours = move |name: &Nqn| *name == subsystem || *name == discovery;
        ServerTls::new(self.psk.clone(), self.derivation, self.kernel, is_ours)
    }
}

/// See the module documentation.
pub(super) struct Wire<'s> {
    channel: Channel,
    stream: &'s TcpStream,
    /// Whom the key is for, that the host has shown: its own name and the subsystem's.
    names: Option<(Nqn, Nqn)>,
    waiting: RefCell<Waiting>,
    /// Sending failed, perhaps in the midst of a unit: what comes behind that would be taken for its rest.
    is_broken: Cell<bool>,
    /// Until when a read by the library may wait for a whole record; `None`: for ever. A timeout of the socket would begin anew with each
    /// byte, so that a host that sends one now and then would keep the thread as long as it likes: the socket does not block then.
    until: Cell<Option<Instant>>,
}

/// What is to be sent.
#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Means something during one call only.
    pieces: Vec<Piece>,
}

impl<'s> Wire<'s> {
    pub(super) fn plain(stream: &'s TcpStream) -> Self {
        Self {
            channel: Channel::Plain,
            stream,
            names: None,
            waiting: RefCell::default(),
            is_broken: Cell::default(),
            until: Cell::default(),
        }
    }

    /// Has TLS with the host, until `until` at most; `None`: it will not, or not with the key.
    pub(super) fn secure(stream: &'s TcpStream, tls: &ServerTls, until: Instant) -> Option<Self> {
        let left = until.saturating_duration_since(now());
        let mut first = [0];
        // The shortest wait that the system knows is above zero.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).ok()?;
        let begins = stream.peek(&mut first).ok().filter(|bytes| *bytes > 0)?;
        if first.get(..begins) != Some(&[HANDSHAKE]) {
            tracing::debug!("a host does without tls, which is demanded");
            // So that the host can tell what is wrong. What it sent stays unread, which may end the connection before.
            let mut to = stream;
            to.write_all(&WANTS_TLS).ok();
            stream.shutdown(Shutdown::Write).ok();
            drain(stream);
            return None;
        }
        let made = tls.accept(stream, until);
        let (channel, answer) =
            made.inspect_err(|fault| tracing::debug!(?fault, "a host came without the key of tls")).ok()?;
        stream.set_read_timeout(None).ok()?;
        tracing::debug!(identity = answer.psk.identity(), protection = ?channel.protection(), "tls");
        let names = Some((answer.host, answer.subsystem));
        let (waiting, is_broken, until) = (RefCell::default(), Cell::default(), Cell::default());
        Some(Self { channel, stream, names, waiting, is_broken, until })
    }

    pub(super) fn stream(&self) -> &'s TcpStream {
        self.stream
    }

    /// Until when the next read may wait, with so much `left`; `None`: for ever.
    pub(super) fn set_deadline(&self, until: Option<Instant>, left: Option<Duration>) -> io::Result<()> {
        self.until.set(until);
        if matches!(self.channel, Channel::Library(_)) {
            return Ok(());
        }
        // The shortest wait that the system knows is above zero.
        self.stream.set_read_timeout(left.map(|left| left.max(Duration::from_millis(1))))
    }

    /// Waits until the socket is ready, for a library that wants it; `TimedOut`.
    fn await_socket(&self, what: Ready, until: Option<Instant>) -> io::Result<()> {
        let until = until.unwrap_or_else(|| now() + LOOKED_AFTER);
        match wait_for(self.stream.as_raw_fd(), what, until)? {
            Waited::TimeOver => Err(io::ErrorKind::TimedOut.into()),
            Waited::Ready => Ok(()),
        }
    }

    /// Whether Connect names those whom the key is for.
    pub(super) fn lets(&self, data: &ConnectData) -> bool {
        self.names.as_ref().is_none_or(|(host, subsystem)| *host == data.host && *subsystem == data.subsystem)
    }

    /// Takes a unit to be sent behind all that came before it: `head`, `data`, `tail`. It waits for others, until the next [`Wire::flush`] or
    /// read; with long data it is sent at once, from where it lies.
    pub(super) fn put<'d>(
        &self,
        head: &[u8],
        data: impl Iterator<Item = &'d [u8]> + Clone,
        tail: &[u8],
    ) -> io::Result<()> {
        let mut waiting = self.waiting.borrow_mut();
        let Waiting { bytes, pieces } = &mut *waiting;
        bytes.extend_from_slice(head);
        if data.clone().any(|part| part.len() >= LONG_BYTES) {
            pieces.clear();
            pieces.push(piece(bytes));
            pieces.extend(data.map(piece));
            pieces.push(piece(tail));
            return self.send(&mut waiting);
        }
        data.for_each(|part| bytes.extend_from_slice(part));
        bytes.extend_from_slice(tail);
        if bytes.len() < WAITING_BYTES_MAX {
            return Ok(());
        }
        drop(waiting);
        self.flush()
    }

    /// Sends what waits.
    pub(super) fn flush(&self) -> io::Result<()> {
        let mut waiting = self.waiting.borrow_mut();
        let Waiting { bytes, pieces } = &mut *waiting;
        pieces.clear();
        pieces.push(piece(bytes));
        self.send(&mut waiting)
    }

    /// Sends all pieces, and nothing waits any more, whatever comes of it.
    fn send(&self, Waiting { bytes, pieces }: &mut Waiting) -> io::Result<()> {
        if self.is_broken.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let sent = self.send_all(pieces);
        self.is_broken.set(sent.is_err());
        bytes.clear();
        sent
    }

    /// The kernel and the library read what is listed, and this waits for them.
    fn send_all(&self, pieces: &mut Vec<Piece>) -> io::Result<()> {
        pieces.retain(|piece| piece.len > 0);
        while !pieces.is_empty() {
            let sent = match &self.channel {
                Channel::Library(session) => match session.send(pieces) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.await_socket(Ready::ToReadOrWrite, Some(now() + WRITE_TIMEOUT))?;
                        continue;
                    }
                    sent => sent?,
                },
                Channel::Plain | Channel::Kernel(_) => socket::send(self.stream.as_raw_fd(), pieces)?,
            };
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            socket::skip(pieces, 0, sent);
        }
        Ok(())
    }

    /// Sends nothing more than what waits.
    pub(super) fn half_close(&self) {
        // A host that is gone takes no more of it.
        self.flush().ok();
        self.channel.close(self.stream);
        // A socket that is closed already is as good.
        self.stream.shutdown(Shutdown::Write).ok();
    }
}

fn piece(part: &[u8]) -> Piece {
    Piece { base: part.as_ptr().cast_mut(), len: part.len() }
}

/// Reads what still comes for a moment: a socket closed with bytes unread sends a reset, which may take the alert with it.
fn drain(stream: &TcpStream) {
    stream.set_read_timeout(Some(super::wire::LINGER)).ok();
    let (mut stream, mut drop) = (stream, [0; 4096]);
    // A host that waits for an answer sends no more than one request.
    for _ in 0..2 {
        if !matches!(stream.read(&mut drop), Ok(1..)) {
            return;
        }
    }
}

/// Nothing is waited for before what waits was sent.
impl Read for &Wire<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(into)])
    }

    fn read_vectored(&mut self, into: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.flush()?;
        match &self.channel {
            Channel::Library(session) => {
                let Some(into) = into.iter_mut().find(|into| !into.is_empty()) else { return Ok(0) };
                loop {
                    match session.receive_record(Piece { base: into.as_mut_ptr(), len: into.len() }) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        done => return done,
                    }
                    self.await_socket(Ready::ToRead, self.until.get())?;
                }
            }
            Channel::Plain | Channel::Kernel(_) => loop {
                let mut stream = self.stream;
                match stream.read_vectored(into) {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => {
                        if !self.channel.look_at_control(self.stream, error)? {
                            return Ok(0);
                        }
                    }
                }
            },
        }
    }
}

impl Drop for Wire<'_> {
    fn drop(&mut self) {
        self.channel.close(self.stream);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_a_failed_send_left_is_never_sent_and_nothing_behind_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut host = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        let wire = Wire::plain(&stream);
        // The host takes nothing: a unit is sent in part, and the rest not in time.
        let unit = vec![1; 1 << 20];
        let put = |head: u8| wire.put(&[head; 8], [&unit[..]].into_iter(), &[]);
        assert!((0..100).any(|_| put(2).is_err()));
        host.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (mut came, mut last) = ([0; 1 << 16], 0);
        while let Ok(bytes @ 1..) = host.read(&mut came) {
            last = came[bytes - 1];
        }
        // Now it would: the next unit would be taken for the rest of that one.
        assert_eq!(last, 1, "the middle of a unit");
        assert_eq!(
            wire.put(&[3; 8], [].into_iter(), &[]).and(wire.flush()).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        assert_eq!(put(3).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        wire.half_close();
        assert_eq!(host.read(&mut came).unwrap(), 0);
    }
}
