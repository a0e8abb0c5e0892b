//! One queue over one connection, whichever wire it is: what controllers, lanes and the admin queue ask of either.

use std::{
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::fd::RawFd,
    sync::Arc,
    time::Instant,
};

use sw_engine::{
    Error, Landing, Reason,
    seam::{
        Wake,
        verbs::{Device, FabricKind, Presence},
    },
};
use sw_mem::RegionId;
use sw_nvme::{
    discovery::TransportType,
    rdma::{Memory, Registering},
    tcp::{
        host::{End, Transfer},
        ledger::{Commands, Pieces},
        pdu::{Breach, Digests},
    },
    wire::Command,
};

use crate::{
    connection::{Broken, Connection, ConnectionConfig, ConnectionCounters, Places},
    controller::Address,
    rdma::{RdmaConfig, RdmaConnection, RdmaWay},
    relay::Relay,
    tls::{self, Peers, Protection},
};

/// By what controllers are reached.
#[derive(Clone)]
pub enum Way {
    /// TCP.
    Tcp,
    /// RDMA.
    Rdma(RdmaWay),
}

impl Way {
    /// By a device, with a shelf of its own for what its connections keep registered.
    pub fn rdma(device: Arc<dyn Device>, registering: Registering) -> Self {
        Self::Rdma(RdmaWay { device, registering, shelf: Arc::default() })
    }

    /// The scheme of addresses that go this way.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Tcp => "nvme+tcp",
            Self::Rdma(_) => "nvme+rdma",
        }
    }

    /// Whether nothing is reached this way any more: its device is gone.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Rdma(way) if way.device.presence() == Presence::Gone)
    }

    /// What errors and logs call a subsystem that is reached this way: an emulation is not told as a NIC.
    pub(crate) fn name_of(&self, Address { host, port, subsystem }: &Address) -> String {
        let fabric = match self {
            Self::Rdma(way) if way.device.facts().kind == FabricKind::Emulated => "?fabric=emulated",
            Self::Tcp | Self::Rdma(_) => "",
        };
        format!("{}://{host}:{port}/{subsystem}{fabric}", self.scheme())
    }

    /// Who writes the last copy of bytes that come this way over connections with `protection`, and why nobody better does.
    pub(crate) fn landing(&self, protection: Protection) -> (Landing, Option<Reason>) {
        match (self, protection) {
            // Where a library has the bytes in between, the kernel's copy is not the last one.
            (Self::Tcp, Protection::TlsLibrary) => (Landing::Staged, Some(Reason::TlsInUserSpace)),
            (Self::Tcp, Protection::None | Protection::TlsKernel) => (Landing::KernelCopy, None),
            (Self::Rdma(way), _) => match way.device.facts().kind {
                FabricKind::Hardware | FabricKind::Model => (Landing::Dma, None),
                // The kernel copies each byte once: out of a packet (rxe, siw), out of a socket.
                FabricKind::Software | FabricKind::Emulated => (Landing::KernelCopy, None),
            },
        }
    }

    /// What log pages of discovery call it.
    pub fn transport_type(&self) -> TransportType {
        match self {
            Self::Tcp => TransportType::Tcp,
            Self::Rdma(_) => TransportType::Rdma,
        }
    }
}

/// Ends a connection that another thread waits for.
pub(crate) enum HangUp {
    Tcp(TcpStream),
    Rdma(Arc<Relay>),
}

impl HangUp {
    pub(crate) fn end(&self) {
        match self {
            // One that is over already says so.
            Self::Tcp(stream) => drop(stream.shutdown(std::net::Shutdown::Both)),
            Self::Rdma(relay) => relay.end(),
        }
    }
}

/// Which queue a connection is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueOf {
    /// QID.
    pub(crate) qid: u16,
    /// CNTLID, of an I/O queue.
    pub(crate) controller: u16,
}

impl QueueOf {
    pub(crate) const ADMIN: Self = Self { qid: 0, controller: 0 };
}

/// See the module documentation.
pub(crate) enum Carrier {
    Tcp(Box<Connection>),
    Rdma(Box<RdmaConnection>),
}

impl Commands for Carrier {
    fn pieces(&self) -> Pieces {
        match self {
            Self::Tcp(_) => Pieces::Any,
            Self::Rdma(_) => Pieces::One,
        }
    }

    fn submit(&mut self, command: &Command, transfer: Transfer, user: u32) -> Option<u16> {
        match self {
            Self::Tcp(connection) => connection.queue.submit(command, transfer, user),
            Self::Rdma(connection) => connection.queue().submit(command, transfer, user),
        }
    }

    /// Over RDMA the peer has the memory's key until it answers.
    fn let_go(&mut self, cid: u16) -> bool {
        match self {
            Self::Tcp(connection) => connection.queue.let_go(cid),
            Self::Rdma(connection) => connection.queue().let_go(cid),
        }
    }

    fn is_let_go(&self, cid: u16) -> bool {
        match self {
            Self::Tcp(connection) => connection.queue.is_let_go(cid),
            Self::Rdma(_) => false,
        }
    }
}

impl Carrier {
    /// Connects.
    ///
    /// # Errors
    /// As [`Connection::open`] and [`RdmaConnection::open`].
    pub(crate) fn open(
        (way, peers): (&Way, Option<Peers<'_>>),
        (host, port): (&str, u16),
        (of, limits): (QueueOf, ConnectionConfig),
        until: Instant,
    ) -> Result<Self, Error> {
        match way {
            Way::Tcp => Connection::open((host, port), peers, limits, until).map(Box::new).map(Self::Tcp),
            Way::Rdma(_) if peers.is_some() => Err(tls::not_over_rdma(host)),
            Way::Rdma(way) => {
                let config = RdmaConfig { qid: of.qid, controller: of.controller, depth: limits.depth };
                RdmaConnection::open(way, &format!("{host}:{port}"), config, until).map(Box::new).map(Self::Rdma)
            }
        }
    }

    /// The address of the peer, by which it was asked for as `host` and `port`.
    ///
    /// # Errors
    /// The connection is gone, or the name.
    pub(crate) fn peer(&self, host: &str, port: u16) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(connection) => connection.peer(),
            Self::Rdma(_) => format!("{host}:{port}").to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound.into()),
        }
    }

    /// Digests that both ends use.
    pub(crate) fn digests(&self) -> Digests {
        match self {
            Self::Tcp(connection) => connection.digests,
            Self::Rdma(_) => Digests::default(),
        }
    }

    /// How bytes are protected.
    pub(crate) fn protection(&self) -> Protection {
        match self {
            Self::Tcp(connection) => connection.protection(),
            Self::Rdma(_) => Protection::None,
        }
    }

    /// Whether it is to be received from before anybody sleeps.
    pub(crate) fn may_hold(&self) -> bool {
        matches!(self, Self::Tcp(connection) if connection.may_hold())
    }

    pub(crate) fn counters(&self) -> ConnectionCounters {
        match self {
            Self::Tcp(connection) => connection.counters,
            Self::Rdma(connection) => connection.counters(),
        }
    }

    pub(crate) fn pop_end(&mut self) -> Option<End> {
        match self {
            Self::Tcp(connection) => connection.queue.pop_end(),
            Self::Rdma(connection) => connection.pop_end(),
        }
    }

    /// Whether no byte of a command went out: the controller cannot know of it.
    pub(crate) fn is_untouched(&self, cid: u16) -> bool {
        match self {
            Self::Tcp(connection) => connection.is_untouched(cid),
            Self::Rdma(connection) => connection.is_unsent(cid),
        }
    }

    /// Whether there is something to send.
    pub(crate) fn has_units(&mut self) -> bool {
        match self {
            Self::Tcp(connection) => connection.queue.has_units(),
            Self::Rdma(connection) => connection.queue().has_capsules(),
        }
    }

    pub(crate) fn set_capsule_data_bytes(&mut self, bytes: u32) {
        match self {
            Self::Tcp(connection) => connection.queue.set_capsule_data_bytes(bytes),
            Self::Rdma(connection) => connection.set_capsule_data_bytes(bytes),
        }
    }

    /// Whether there is something to send for which there is no room.
    pub(crate) fn is_blocked(&self) -> bool {
        matches!(self, Self::Tcp(connection) if connection.is_blocked())
    }

    pub(crate) fn send(&mut self, places: &impl Places) -> Result<(), Broken> {
        match self {
            Self::Tcp(connection) => connection.send(places),
            Self::Rdma(connection) => connection.send(places),
        }
    }

    pub(crate) fn receive(&mut self, places: &impl Places) -> Result<(), Broken> {
        match self {
            Self::Tcp(connection) => connection.receive(places),
            Self::Rdma(connection) => connection.receive(),
        }
    }

    /// Sends and receives until a command ends, or the connection.
    pub(crate) fn run(&mut self, places: &impl Places, until: Instant) -> (Result<(), Broken>, Option<End>) {
        match self {
            Self::Rdma(connection) => connection.run(places, until),
            Self::Tcp(connection) => {
                let mut end = None;
                let driven = connection.drive(places, until, |queue| {
                    end = end.or_else(|| queue.pop_end());
                    end.is_some()
                });
                (driven, end)
            }
        }
    }

    /// Tells the controller which rule it broke.
    pub(crate) fn terminate(&self, breach: &Breach) {
        if let Self::Tcp(connection) = self {
            connection.terminate(breach);
        }
    }

    /// Another handle, to end a wait of another thread with.
    pub(crate) fn handle(&self) -> Option<HangUp> {
        match self {
            Self::Tcp(connection) => connection.handle().ok().map(HangUp::Tcp),
            Self::Rdma(connection) => Some(HangUp::Rdma(connection.relay())),
        }
    }

    /// A region is let go of: nothing of it stays registered but for commands that are under way.
    pub(crate) fn region_gone(&mut self, region: RegionId) {
        if let Self::Rdma(connection) = self {
            connection.region_gone(region);
        }
    }

    /// Ends the connection: nothing of it lands any more, unless it is said that memory stays.
    pub(crate) fn hang_up(&mut self) -> Memory {
        match self {
            Self::Tcp(connection) => {
                connection.hang_up();
                Memory::Free
            }
            Self::Rdma(connection) => connection.hang_up(),
        }
    }

    /// What a lane waits for; `None`: it is rung for instead, see [`Carrier::ring`].
    pub(crate) fn fd(&self) -> Option<RawFd> {
        match self {
            Self::Tcp(connection) => Some(connection.fd()),
            Self::Rdma(_) => None,
        }
    }

    /// Rings for what comes from now on, on a connection without a descriptor.
    pub(crate) fn ring(&self, lane: Arc<dyn Wake>) {
        if let Self::Rdma(connection) = self {
            connection.relay().pass_to(lane);
        }
    }
}
