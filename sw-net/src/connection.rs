//! One queue over one connection: moves bytes between a socket and the memory of commands.
//!
//! ```text
//!   HostQueue ─► units ─► [head][data of the caller's][digest] … ─► sendmsg
//!   readv ─► [data into its place][digest][head of the next unit] … ─► HostQueue                                    landing
//! ```
//!
//! A head is asked for without a byte more than the shortest one has, and data together with the head behind it: data lands in its
//! place and nowhere else, in one call a unit. Where a controller keeps the order of the commands, the data and heads of the units that
//! are foreseen are asked for in the same call. Nothing is staged, but what comes in another order than was foreseen: see [`Landing`].
//!
//! *Thread*: one at a time. Once it is [broken](Broken) it stays so, and touches no memory any more.
// UNSAFETY: the lists of pieces have addresses in them, which does not keep a connection from going to another thread.
#![expect(unsafe_code, reason = "a connection may go to another thread")]

use std::{fmt, io, time::Instant};

use sw_engine::{Error, ErrorKind, Verb};
use sw_nvme::{
    rdma::session::Windows,
    tcp::{
        host::{HostConfig, HostQueue, Range, Terminated},
        outgoing::{Outgoing, Sending},
        pdu::{self, Breach, DIGEST_BYTES, Digests, FatalStatus, Head, Header, IcReq, IcResp, Kind, Layout},
    },
};

use crate::{
    landing::{Landing, add, no_bytes},
    socket::{PIECES_MAX, PIECES_ROOM, Piece, Ready, Socket, Waited, skip},
    tls::{self, Peers, Protection},
};

/// Calls that receive in a row, until others have their turn.
const RECEIVES_MAX: usize = 64;

/// Where the data of commands lies.
pub(crate) trait Places: Windows {
    /// Appends the memory of a range, piece by piece, all of it.
    fn pieces(&self, of: Range, into: &mut Vec<Piece>);
}

/// Why a connection is over.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The system says so.
    System(io::Error),
    /// The controller closed it.
    Closed,
    /// The controller broke the protocol.
    Breach(Breach),
    /// The controller says that we broke it.
    Terminated(Terminated),
    /// A command was not answered in time.
    Silent,
    /// The association that the connection belongs to is over.
    Association,
    /// We closed it: the transport was fenced.
    Fenced,
    /// The RDMA device says so.
    Verbs(String),
    /// The RDMA device is gone; its name.
    DeviceGone(String),
    /// The controller broke the rules of NVMe over RDMA.
    Rdma(sw_nvme::rdma::Breach),
    /// The target answered with an alert of TLS: it demands TLS.
    WantsTls,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(error) => write!(f, "the connection was lost: {error}"),
            Self::Closed => f.write_str("the target closed the connection"),
            Self::Breach(breach) => write!(f, "the target broke the protocol: {breach}"),
            Self::Rdma(breach) => write!(f, "the target broke the protocol: {breach}"),
            Self::Verbs(what) => write!(f, "the RDMA connection is over: {what}"),
            Self::DeviceGone(device) => write!(f, "the RDMA device {device} is gone"),
            Self::Terminated(Terminated { status, information }) => {
                let name = FatalStatus::name(*status);
                write!(f, "the target ended the connection: {name} (FES {status}, FEI {information:#x})")
            }
            Self::Association => f.write_str("the association with the target was lost"),
            Self::WantsTls => f.write_str("the target demands tls, and this host asked for a connection in the clear"),
            Self::Fenced => f.write_str("the connection was closed on this side"),
            Self::Silent => f.write_str("the target did not answer a command in time; the connection was closed"),
        }
    }
}

impl Broken {
    /// How I/Os that were under way on the connection end.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Breach(_) | Self::Terminated(_) | Self::Rdma(_) => ErrorKind::Protocol,
            Self::WantsTls => ErrorKind::PermissionDenied,
            Self::DeviceGone(_) => ErrorKind::NoDevice,
            Self::System(_) | Self::Closed | Self::Silent | Self::Association | Self::Fenced | Self::Verbs(_) => {
                ErrorKind::Io
            }
        }
    }

    /// The error, for those who wait for an answer of the control plane.
    pub(crate) fn refusal(&self, at: &str) -> Error {
        self.of_kind(if matches!(self, Self::Silent) { ErrorKind::DeadlineExceeded } else { self.kind() }, at)
    }

    /// The error of a connection that got no first answer.
    fn refusal_at_once(&self, protection: Protection, at: &str) -> Error {
        let error = self.refusal(at);
        match (self, protection) {
            (Self::System(_) | Self::Closed, Protection::None) => error.remedy(
                "see the target's log and the network; targets that demand tls close like this (nvme_tcp_tls_key_file)",
            ),
            _ => error,
        }
    }

    /// What stands behind the [faults](sw_nvme::tcp::ledger::lost_with) of I/Os.
    pub(crate) fn error(&self, at: &str) -> Error {
        self.of_kind(self.kind(), at)
    }

    fn of_kind(&self, kind: ErrorKind, at: &str) -> Error {
        let error = Error::new(kind, Verb::Open).at(at).detail(self.to_string());
        match self {
            Self::Breach(_) | Self::Rdma(_) => error.remedy("report it to whoever makes the target"),
            Self::Terminated(_) => error.remedy("see the target's log, and report it to us"),
            Self::System(_) | Self::Closed | Self::Association | Self::Verbs(_) => {
                error.remedy("see the target's log and the network")
            }
            Self::Silent => error.remedy("see the target's log; a longer time may be given"),
            Self::DeviceGone(_) => error.remedy(
                "see the kernel's log; open the engine anew when the device is there again, or go by another one (device=)",
            ),
            Self::Fenced => error,
            Self::WantsTls => error.with_code(tls::REFUSED).remedy(
                "set nvme_tcp_tls=required, and nvme_tcp_tls_key_file to the file of the key that the target has",
            ),
        }
    }
}

/// What a connection is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionConfig {
    /// Digests to ask for. The controller may refuse; see `sw_nvme::tcp::pdu`.
    pub(crate) digests: Digests,
    /// Commands at a time.
    pub(crate) depth: u16,
    /// Bytes of a write that go in its capsule at most.
    pub(crate) capsule_data_bytes: u32,
}

/// Counts since the connection was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounters {
    /// System calls that sent.
    pub sends: u64,
    /// System calls that received.
    pub receives: u64,
    /// Data bytes that came.
    pub bytes_in: u64,
    /// Bytes of units that went out.
    pub bytes_out: u64,
    /// Times that memory of commands was registered, over RDMA.
    pub registrations: u64,
    /// Windows of regions for which there was no room, so that memory was registered command by command, over RDMA.
    pub windows_refused: u64,
    /// Writes whose data went in their capsule, over RDMA.
    pub in_capsule: u64,
    /// Of the bytes that came, heads included, those that were received to where others were foreseen, and copied aside and from there to
    /// their place.
    pub bytes_moved: u64,
}

impl ConnectionCounters {
    /// The sums of both.
    pub(crate) fn and(self, more: Self) -> Self {
        Self {
            sends: self.sends + more.sends,
            receives: self.receives + more.receives,
            bytes_in: self.bytes_in + more.bytes_in,
            bytes_out: self.bytes_out + more.bytes_out,
            registrations: self.registrations + more.registrations,
            windows_refused: self.windows_refused + more.windows_refused,
            in_capsule: self.in_capsule + more.in_capsule,
            bytes_moved: self.bytes_moved + more.bytes_moved,
        }
    }
}

/// See the module documentation.
pub(crate) struct Connection {
    socket: Socket,
    pub(crate) queue: HostQueue,
    pub(crate) digests: Digests,
    outgoing: Outgoing,
    /// The socket had no room for all of it.
    blocked: bool,
    pieces: Vec<Piece>,
    landing: Landing,
    pub(crate) counters: ConnectionCounters,
}

// SAFETY: the pieces name memory of the operations that are under way, which the engine keeps; between two calls the list means
// nothing. Everything else is owned.
unsafe impl Send for Connection {}

impl Connection {
    /// Connects, has TLS if there are `peers` for it, and agrees on digests and limits.
    ///
    /// # Errors
    /// As [`Socket::connect`] and [`Socket::secure`]; `Protocol` for an answer that is none; `DeadlineExceeded`.
    pub(crate) fn open(
        (host, port): (&str, u16),
        peers: Option<Peers<'_>>,
        config: ConnectionConfig,
        until: Instant,
    ) -> Result<Self, Error> {
        let at = format!("{host}:{port}");
        let mut socket = Socket::connect(host, port, until)?;
        if let Some(peers) = peers {
            socket.secure(peers, (&at, until))?;
        }
        let asked = IcReq { format: 0, alignment: 0, digests: config.digests, r2t_max: 0 };
        let refused = |broken: Broken| broken.refusal_at_once(socket.protection(), &at);
        exchange_out(&socket, &asked.encode(), until).map_err(refused)?;
        let answer = exchange_in(&socket, until).map_err(refused)?;
        let answer = IcResp::decode(&answer, &asked).map_err(|breach| Broken::Breach(breach).refusal(&at))?;
        let layout = Layout { digests: answer.digests, alignment: answer.alignment };
        let ConnectionConfig { depth, capsule_data_bytes, .. } = config;
        let queue =
            HostQueue::new(HostConfig { depth, layout, h2c_bytes_max: answer.h2c_bytes_max, capsule_data_bytes });
        Ok(Self {
            socket,
            queue,
            digests: answer.digests,
            outgoing: Outgoing::default(),
            blocked: false,
            pieces: Vec::with_capacity(PIECES_ROOM),
            landing: Landing::new(),
            counters: ConnectionCounters::default(),
        })
    }

    /// Another handle of the connection, to end it with.
    pub(crate) fn handle(&self) -> io::Result<std::net::TcpStream> {
        self.socket.handle()
    }

    /// Whether no byte of a command went to the socket: the controller cannot know of it.
    pub(crate) fn is_untouched(&self, cid: u16) -> bool {
        self.outgoing.is_untouched(cid, &self.queue)
    }

    /// How its bytes are protected.
    pub(crate) fn protection(&self) -> Protection {
        self.socket.protection()
    }

    /// Whether it is to be received from before anybody waits for its descriptor: [`Socket::may_hold`].
    pub(crate) fn may_hold(&self) -> bool {
        self.socket.may_hold()
    }

    /// Ends the connection, whoever else has its descriptor.
    pub(crate) fn hang_up(&self) {
        self.socket.hang_up();
    }

    pub(crate) fn fd(&self) -> std::os::fd::RawFd {
        self.socket.fd()
    }

    /// Whom it is to.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) fn peer(&self) -> io::Result<std::net::SocketAddr> {
        self.socket.peer()
    }

    /// Whether there is something to send for which the socket has no room.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Sends as much as the socket takes.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn send(&mut self, places: &impl Places) -> Result<(), Broken> {
        loop {
            self.stage(places);
            if self.outgoing.is_empty() {
                self.blocked = false;
                return Ok(());
            }
            let offered = self.gather(places);
            self.counters.sends += 1;
            match self.socket.send(&self.pieces) {
                Ok(sent) => {
                    self.sent(sent);
                    self.blocked = sent < offered;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocked = true,
                Err(error) => return Err(Broken::System(error)),
            }
            if self.blocked {
                return Ok(());
            }
        }
    }

    /// Takes units of the queue until as many as may be are with the socket.
    fn stage(&mut self, places: &impl Places) {
        let Self { outgoing, queue, pieces, .. } = self;
        while outgoing.stage(queue, |unit| {
            pieces.clear();
            unit.data.into_iter().for_each(|data| places.pieces(data, pieces));
            let mut sum = no_bytes();
            pieces.iter().for_each(|piece| add(&mut sum, *piece));
            pdu::digest(&sum)
        }) {}
    }

    /// Lists what of the units is not sent, as many pieces as one call takes; how many bytes that is.
    fn gather(&mut self, places: &impl Places) -> usize {
        let Self { pieces, outgoing, .. } = self;
        pieces.clear();
        for Sending { unit, digest, written, .. } in outgoing.iter() {
            let first = pieces.len();
            // The kernel reads only what is listed to be sent.
            pieces.push(Piece { base: unit.head.as_bytes().as_ptr().cast_mut(), len: unit.head.as_bytes().len() });
            if let Some(data) = unit.data {
                places.pieces(data, pieces);
            }
            if unit.digest {
                pieces.push(Piece { base: digest.as_ptr().cast_mut(), len: DIGEST_BYTES });
            }
            skip(pieces, first, *written);
            if pieces.len() >= PIECES_MAX {
                break;
            }
        }
        pieces.truncate(PIECES_MAX);
        pieces.iter().map(|piece| piece.len).sum()
    }

    fn sent(&mut self, bytes: usize) {
        self.counters.bytes_out += bytes as u64;
        self.outgoing.written(bytes, &mut self.queue);
    }

    /// Receives what is there, a bounded number of times.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn receive(&mut self, places: &impl Places) -> Result<(), Broken> {
        for _ in 0..RECEIVES_MAX {
            let offered = self.landing.offer(&mut self.queue, places);
            self.counters.receives += 1;
            let got = match self.socket.receive(self.landing.pieces()) {
                Ok(0) => return Err(self.queue.terminated().map_or(Broken::Closed, Broken::Terminated)),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(Broken::System(error)),
            };
            let landed = self.landing.came(got, &mut self.queue, places);
            self.counters.bytes_in += self.landing.take_data_bytes();
            self.counters.bytes_moved += self.landing.take_moved_bytes();
            landed.map_err(Broken::Breach)?;
            if let Some(why) = self.queue.terminated() {
                return Err(Broken::Terminated(why));
            }
            if got < offered {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sends and receives until `is_over` says so. For the control plane, which has nothing else to do.
    ///
    /// # Errors
    /// [`Broken`]; `Silent` when the time is over.
    pub(crate) fn drive(
        &mut self,
        places: &impl Places,
        until: Instant,
        mut is_over: impl FnMut(&mut HostQueue) -> bool,
    ) -> Result<(), Broken> {
        loop {
            let sent = self.send(places);
            let moved = self.receive(places).and(sent);
            if let Err(broken @ (Broken::Breach(_) | Broken::Terminated(_))) = moved {
                return Err(broken);
            }
            // An answer counts though the controller hangs up behind it, as it may when it refuses Connect.
            if is_over(&mut self.queue) {
                return Ok(());
            }
            moved?;
            let what = if self.blocked { Ready::ToReadOrWrite } else { Ready::ToRead };
            match self.socket.wait(what, until) {
                Ok(Waited::Ready) => {}
                Ok(Waited::TimeOver) => return Err(Broken::Silent),
                Err(error) => return Err(Broken::System(error)),
            }
        }
    }

    /// Tells the controller which rule it broke, if the socket takes that; nothing is sent afterwards.
    pub(crate) fn terminate(&self, breach: &Breach) {
        // In the midst of a unit nobody would understand it; and commands that are told as unsent must stay so.
        if self.outgoing.is_between_units() && !self.socket.owes() {
            let head = pdu::termination(Kind::H2cTerm, breach);
            let _ = self.socket.send(&[of_head(&head)]);
        }
    }
}

fn of_head(head: &Head) -> Piece {
    Piece { base: head.as_bytes().as_ptr().cast_mut(), len: head.as_bytes().len() }
}

/// Sends a head on a new connection.
fn exchange_out(socket: &Socket, head: &Head, until: Instant) -> Result<(), Broken> {
    let mut pieces = vec![of_head(head)];
    while !pieces.is_empty() {
        match socket.send(&pieces) {
            Ok(sent) => skip(&mut pieces, 0, sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                await_socket(socket, Ready::ToReadOrWrite, until)?
            }
            Err(error) => return Err(Broken::System(error)),
        }
    }
    Ok(())
}

/// The answer to ICReq.
fn exchange_in(socket: &Socket, until: Instant) -> Result<[u8; pdu::INITIALIZE_BYTES], Broken> {
    let mut raw = [0; pdu::INITIALIZE_BYTES];
    let mut have = 0;
    loop {
        // What ends the connection may be shorter; with the header that it is about, it is longer.
        let term = have >= pdu::COMMON_BYTES && Kind::of(raw[0]) == Some(Kind::C2hTerm);
        if term && have >= Kind::C2hTerm.header_bytes() {
            let (status, information) = pdu::terminated(&raw);
            return Err(Broken::Terminated(Terminated { status, information }));
        }
        if tls::is_alert(raw.get(..have).unwrap_or_default()) {
            return Err(Broken::WantsTls);
        }
        if have >= raw.len() {
            break;
        }
        let rest = raw.get_mut(have..).unwrap_or_default();
        match socket.receive(&[Piece { base: rest.as_mut_ptr(), len: rest.len() }]) {
            Ok(0) => return Err(Broken::Closed),
            Ok(got) => have += got,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => await_socket(socket, Ready::ToRead, until)?,
            Err(error) => return Err(Broken::System(error)),
        }
    }
    let mut common = [0; pdu::COMMON_BYTES];
    common.copy_from_slice(&raw[..pdu::COMMON_BYTES]);
    let header = Header::decode(&common, Digests::default(), u32::MAX).map_err(Broken::Breach)?;
    if header.kind == Kind::IcResp {
        return Ok(raw);
    }
    let rule = "the first unit is no answer to the request for a connection";
    Err(Broken::Breach(Breach { status: FatalStatus::Sequence, information: 0, rule }))
}

fn await_socket(socket: &Socket, what: Ready, until: Instant) -> Result<(), Broken> {
    match socket.wait(what, until) {
        Ok(Waited::Ready) => Ok(()),
        Ok(Waited::TimeOver) => Err(Broken::Silent),
        Err(error) => Err(Broken::System(error)),
    }
}
