//! A TCP connection that never blocks, and moves bytes between the wire and raw memory.
// UNSAFETY: vectored I/O on memory that has no Rust reference; poll.
#![expect(unsafe_code, reason = "system calls on raw memory")]

use std::{
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::fd::{AsRawFd, RawFd},
    time::{Duration, Instant},
};

use sw_engine::{Error, ErrorKind, Verb};

use crate::tls::{self, Channel, Peers, Protection};

/// Pieces of memory in one call at most: far below the kernel's `IOV_MAX` of 1,024.
pub(crate) const PIECES_MAX: usize = 128;

/// Room for a list of pieces: the last unit of it may have a few more than one call takes.
pub(crate) const PIECES_ROOM: usize = PIECES_MAX + 8;

/// Memory as a system call names it. Whoever makes one sees to it that it stays memory until the call is over.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) base: *mut u8,
    pub(crate) len: usize,
}

impl Piece {
    /// `len` bytes from an address of this process on.
    pub(crate) fn at(address: u64, len: u64) -> Self {
        Self { base: std::ptr::with_exposed_provenance_mut(sw_mem::index(address)), len: sw_mem::index(len) }
    }
}

/// What a wait on a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// Bytes, or the end.
    ToRead,
    /// Bytes, or the end, or room.
    ToReadOrWrite,
}

/// See the module documentation.
pub(crate) struct Socket {
    /// Before the socket, which it uses to its end.
    channel: Channel,
    stream: TcpStream,
}

impl Socket {
    /// Connects, to the first address of the name that answers.
    ///
    /// # Errors
    /// `NotFound` for a name that nobody knows; what the system says, with the address; `DeadlineExceeded`.
    pub(crate) fn connect(host: &str, port: u16, until: Instant) -> Result<Self, Error> {
        let at = || format!("{host}:{port}");
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let found: Vec<SocketAddr> = (bare, port)
            .to_socket_addrs()
            .map_err(|error| {
                Error::new(ErrorKind::NotFound, Verb::Open)
                    .at(at())
                    .detail(format!("the name was not found: {error}"))
                    .remedy("check the name, or write the address")
            })?
            .collect();
        let mut last = None;
        for (at, address) in found.iter().enumerate() {
            // An address that does not answer leaves time for those behind it.
            let tries = u32::try_from(found.len() - at).unwrap_or(u32::MAX);
            let share = left(until).unwrap_or_default() / tries;
            match Self::to(*address, share) {
                Ok(socket) => return Ok(socket),
                Err(error) => last = Some(error),
            }
        }
        let error = last.unwrap_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        Err(refused(&error, &at()))
    }

    fn to(address: SocketAddr, limit: Duration) -> io::Result<Self> {
        if limit.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { channel: Channel::Plain, stream })
    }

    /// Protects all bytes from here on; none were moved yet.
    ///
    /// # Errors
    /// Those of [`tls::connect`].
    pub(crate) fn secure(&mut self, peers: Peers<'_>, (at, until): (&str, Instant)) -> Result<(), Error> {
        let await_socket = |what, until| self.wait(what, until).map(|waited| waited == Waited::Ready);
        self.channel = tls::connect(&self.stream, peers, (at, until), await_socket)?;
        Ok(())
    }

    /// How its bytes are protected.
    pub(crate) fn protection(&self) -> Protection {
        self.channel.protection()
    }

    /// Whether something that is told as unsent goes out with whatever is sent next.
    pub(crate) fn owes(&self) -> bool {
        matches!(&self.channel, Channel::Library(session) if session.owes())
    }

    /// Whether bytes may have come that a wait for the socket does not see: inside of a library. They are to be received first.
    pub(crate) fn may_hold(&self) -> bool {
        matches!(&self.channel, Channel::Library(session) if !session.is_dry())
    }

    /// Another handle of the connection, to end it with.
    pub(crate) fn handle(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    /// Ends the connection both ways, whoever else has its descriptor.
    pub(crate) fn hang_up(&self) {
        self.channel.close(&self.stream);
        // One that is over already says so.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Whom it is to.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// Receives into `pieces`, in order; 0 is the end. `WouldBlock`: there is nothing.
    pub(crate) fn receive(&self, pieces: &[Piece]) -> io::Result<usize> {
        if let Channel::Library(session) = &self.channel {
            return session.receive(pieces);
        }
        loop {
            let mut parts = [EMPTY; PIECES_MAX];
            let count = vectors(&mut parts, pieces);
            // SAFETY: the first `count` vectors name memory that the caller keeps until this returns; nobody has a reference to
            // it. The descriptor is ours.
            let got = unsafe { libc::readv(self.fd(), parts.as_ptr(), count) };
            match usize::try_from(got) {
                Ok(got) => return Ok(got),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => {
                        if !self.channel.look_at_control(&self.stream, error)? {
                            return Ok(0);
                        }
                    }
                },
            }
        }
    }

    /// Sends `pieces`, in order, as far as there is room. `WouldBlock`: there is none.
    pub(crate) fn send(&self, pieces: &[Piece]) -> io::Result<usize> {
        if let Channel::Library(session) = &self.channel {
            return session.send(pieces);
        }
        send(self.fd(), pieces)
    }

    /// Waits until the socket is ready or the time is over; says which. It does not wait while a library holds bytes.
    pub(crate) fn wait(&self, what: Ready, until: Instant) -> io::Result<Waited> {
        if self.may_hold() { Ok(Waited::Ready) } else { wait_for(self.fd(), what, until) }
    }
}

/// Sends `pieces`, in order, as far as there is room, or as one call takes: the first [`PIECES_MAX`]. `WouldBlock`: there is none.
pub(crate) fn send(fd: RawFd, pieces: &[Piece]) -> io::Result<usize> {
    loop {
        let mut parts = [EMPTY; PIECES_MAX];
        let count = vectors(&mut parts, pieces);
        // SAFETY: all zeroes is a message without address and control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = count as _;
        // SAFETY: the message names the vectors above, and they memory that the caller keeps until this returns. A peer that is
        // gone gives an error, not a signal.
        let sent = unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) };
        match usize::try_from(sent) {
            Ok(sent) => return Ok(sent),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
}

/// Waits until the socket is ready or the time is over; says which.
pub(crate) fn wait_for(fd: RawFd, what: Ready, until: Instant) -> io::Result<Waited> {
    let events = match what {
        Ready::ToRead => libc::POLLIN,
        Ready::ToReadOrWrite => libc::POLLIN | libc::POLLOUT,
    };
    let Some(left) = left(until) else { return Ok(Waited::TimeOver) };
    let millis = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
    let mut one = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one descriptor of ours, in a live local.
    match unsafe { libc::poll(&raw mut one, 1, millis) } {
        0 => Ok(Waited::TimeOver),
        n if n > 0 => Ok(Waited::Ready),
        _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => Ok(Waited::Ready),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.channel.close(&self.stream);
    }
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Something may be ready.
    Ready,
    /// The time is over.
    TimeOver,
}

/// The time until then; `None` if it is over.
pub(crate) fn left(until: Instant) -> Option<Duration> {
    #[expect(clippy::disallowed_methods, reason = "a wait of the control plane has an end")]
    until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
}

/// The error of a connection that was not made.
fn refused(error: &io::Error, at: &str) -> Error {
    let made = |kind| Error::new(kind, Verb::Open).at(at).with_code(error.raw_os_error().unwrap_or(0));
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => made(ErrorKind::DeadlineExceeded)
            .detail("nobody answered: the connection was not made in time")
            .remedy("look whether the target runs and no firewall drops the packets"),
        io::ErrorKind::ConnectionRefused => made(ErrorKind::NoDevice)
            .detail("nobody listens there")
            .remedy("look at address and port; NVMe/TCP is at 4420 as a rule"),
        _ => made(ErrorKind::NoDevice)
            .detail(format!("no connection: {error}"))
            .remedy("look at the route to the target"),
    }
}

/// Takes `bytes` off the pieces from the `first` one on.
pub(crate) fn skip(pieces: &mut Vec<Piece>, first: usize, bytes: usize) {
    let mut left = bytes;
    let mut gone = 0;
    for piece in pieces.iter_mut().skip(first) {
        let take = left.min(piece.len);
        *piece = Piece { base: piece.base.wrapping_add(take), len: piece.len - take };
        left -= take;
        if piece.len > 0 {
            break;
        }
        gone += 1;
    }
    pieces.drain(first..first + gone);
}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// The pieces as the system wants them; how many.
fn vectors(into: &mut [libc::iovec; PIECES_MAX], pieces: &[Piece]) -> i32 {
    let mut count = 0;
    for (to, piece) in into.iter_mut().zip(pieces) {
        *to = libc::iovec { iov_base: piece.base.cast(), iov_len: piece.len };
        count += 1;
    }
    count
}
