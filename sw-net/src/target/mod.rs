//! A small NVMe/TCP target over memory or files: for tests, demonstrations, and faults that no real target makes on demand.
//!
//! ```text
//!   Target ── listener thread ── one thread a connection ─► Connection   units in, units out     wire, connection
//!                                                             │ Connect, properties, admin       subsystem, admin, pages
//!                                                             │ Read, Write, Flush …             io, backing
//!                                                             └ what shall go wrong              faults
//! ```
//!
//! Blocking sockets, no unsafe code, no runtime. Invariants:
//! - What a host says is no length, index or state before it was checked: a broken rule of the transport ends the connection with a
//!   termination (C2HTermReq), a broken rule of a command ends the command with a status. Nothing panics.
//! - A connection holds at most [`TRANSFERS_MAX`] writes of [`TargetConfig::transfer_bytes`] each, one read of as much, one unit of it on
//!   its way out, one capsule and as many commands as its queue has entries. There are at most [`TargetConfig::connections_max`]
//!   connections.
//! - Every wait ends: with bytes, with the end of the socket, with a deadline (initialisation, keep-alive, a host that reads nothing),
//!   or with [`Target::stop`], which shuts all sockets down.
//!
//! With keys it demands DH-HMAC-CHAP of every queue, but of those of the discovery service ([`Authentication`]); and TLS of every
//! connection ([`Tls`]). It may listen at several ports, and tell by which of them each namespace is reached how ([`Target::set_access`]). It has no
//! namespaces that change, no reservations. A host may have one of its controllers reset another one ([`CrossReset`]). It is not fast on purpose: a connection carries out one command after the other.
//!
//! Source: NVM Express TCP Transport Specification 1.x; Base Specification 2.x, "Fabrics Command Set"; what the Linux host asks of a
//! controller beside it (linux `drivers/nvme/host/core.c`, `nvme_init_identify`).

mod access;
mod admin;
mod backing;
mod connection;
mod faults;
mod gate;
mod io;
mod listen;
mod pages;
mod rdma;
mod resets;
mod secure;
mod session;
mod subsystem;
mod wire;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use sw_engine::{Error, ErrorKind, Verb};
use sw_nvme::{fabrics, fabrics::Nqn, tcp::pdu};

pub use sw_nvme::wire::ana::Access as PortAccess;

pub use faults::{Fault, Faults, InitializeFault, Seen};
pub use gate::Authentication;
pub use listen::{PortState, Target};
pub use secure::Tls;

/// Ports at most.
pub const PORTS_MAX: usize = 16;
/// Connections at a time at most.
pub const CONNECTIONS_MAX: usize = 256;
/// Writes of one connection whose data is on its way; more wait for their turn.
pub const TRANSFERS_MAX: usize = 4;
/// Bytes of a memory namespace at most: its table of pieces is made at the start.
pub const MEMORY_BYTES_MAX: u64 = 1 << 36;
/// The largest MDTS: 256 pages of 4 KiB, 1 MiB.
pub const MDTS_MAX: u8 = 8;
/// Namespaces at most: one page of Identify lists them.
pub const NAMESPACES_MAX: usize = 1024;

/// What may be done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads and writes.
    ReadWrite,
    /// Reads; the namespace says that it is write protected.
    ReadOnly,
}

/// What a namespace consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// So many bytes of memory, zero at first, taken when they are written. A part of a block at the end does not count.
    Memory(u64),
    /// A file or block device as long as it is at the start. A part of a block at the end does not count.
    File(PathBuf, Access),
}

/// Whether a target tells how its namespaces are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tells {
    /// It says nothing of that: all ports are alike.
    #[default]
    Nothing,
    /// Asymmetric namespace access; each namespace is a group of its own, optimized by every port at first.
    Access,
}

/// What a target does when a host has one of its controllers reset another one, which it does not reach any more (Cross-Controller Reset).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CrossReset {
    /// It does so, and says when nothing of the other one is carried out any more.
    #[default]
    Offered,
    /// It has no such command.
    Refused,
    /// A fault on purpose: it accepts, resets nothing, and says a little later that it failed.
    Fails,
}

/// How a target is made.
#[derive(Clone)]
pub struct TargetConfig {
    /// Where it listens; port 0 is any free one. Default: any port of 127.0.0.1.
    pub listen: SocketAddr,
    /// Where it listens besides; with [`TargetConfig::listen`] [`PORTS_MAX`] at most. Default: nowhere. Over RDMA it has one port.
    pub more: Vec<SocketAddr>,
    /// Whether it tells how namespaces are reached by its ports. Default: it does not.
    pub tells: Tells,
    /// Its name (SUBNQN). Not the discovery service's, which it answers to besides.
    pub subsystem: Nqn,
    /// The hosts that may connect (HOSTNQN); empty, the default, is all.
    pub hosts: Vec<Nqn>,
    /// The keys that hosts must have; `None`, the default, is none.
    pub authentication: Option<Authentication>,
    /// TLS that hosts must have; `None`, the default: all goes in the clear.
    pub tls: Option<Tls>,
    /// Namespaces 1, 2, …; [`NAMESPACES_MAX`] at most. Default: one of 64 MiB of memory.
    pub namespaces: Vec<Backing>,
    /// SN, 1 to 20 printable ASCII characters.
    pub serial: String,
    /// The digests that it agrees to if the host wants them. Default: both.
    pub digests: pdu::Digests,
    /// MDTS: a command moves at most 2^MDTS pages of 4 KiB; 1 to [`MDTS_MAX`], the default.
    pub mdts: u8,
    /// Bytes of a write that may lie in its capsule, of I/O queues: a multiple of 16, 0 to 65,536. Default 8,192.
    pub capsule_data_bytes: u32,
    /// MAXH2CDATA, bytes of one H2CData at most: a multiple of 4, from 4,096 to 1 MiB. Default 131,072.
    pub h2c_bytes_max: u32,
    /// Bytes of one R2T at most, so that a write takes several: a multiple of 4, from 512. Default 1 MiB.
    pub r2t_bytes_max: u32,
    /// Bytes of one C2HData at most, so that a read comes in several: a multiple of 4, from 512. Default 131,072.
    pub c2h_bytes_max: u32,
    /// CPDA: where data of the host's begins, at multiples of 4 × (CPDA + 1) bytes; 0 to 31. Default 0, and Linux hosts take no other
    /// (linux `drivers/nvme/host/tcp.c`, "unsupported cpda returned").
    pub alignment: u8,
    /// Connections at a time, 1 to [`CONNECTIONS_MAX`], the default; one more is closed at once and counted.
    pub connections_max: usize,
    /// How long a host may take from the connection to the end of Connect, and of authentication if it is demanded, 10 ms to 5 minutes. Default 10 s.
    pub connect_timeout: Duration,
    /// I/O queues of a controller, 1 to 255. Default 16.
    pub queues_max: u16,
    /// Entries of a queue, [`fabrics::ADMIN_ENTRIES_MIN`] to 1,024. Default 128.
    pub queue_entries: u16,
    /// Bytes of a logical block: a power of two, 512 to 65,536. Default 4,096.
    pub block_bytes: u32,
    /// Whether hosts may have a controller of theirs reset by another one. Default: they may.
    pub cross_reset: CrossReset,
    /// What goes wrong on purpose. Default: nothing.
    pub faults: Option<Arc<dyn Faults>>,
}

/// SUBNQN of [`TargetConfig::default`].
const DEFAULT_NQN: &str = "nqn.2026-11.io.straightway:target";

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            more: Vec::new(),
            tells: Tells::Nothing,
            subsystem: Nqn::new(DEFAULT_NQN).unwrap_or_else(Nqn::discovery),
            hosts: Vec::new(),
            authentication: None,
            tls: None,
            namespaces: vec![Backing::Memory(64 << 20)],
            serial: "SWTARGET0001".to_owned(),
            digests: pdu::Digests { header: true, data: true },
            mdts: MDTS_MAX,
            capsule_data_bytes: 8192,
            h2c_bytes_max: 128 << 10,
            r2t_bytes_max: 1 << 20,
            c2h_bytes_max: 128 << 10,
            alignment: 0,
            connections_max: CONNECTIONS_MAX,
            connect_timeout: Duration::from_secs(10),
            queues_max: 16,
            queue_entries: 128,
            block_bytes: 4096,
            cross_reset: CrossReset::Offered,
            faults: None,
        }
    }
}

impl TargetConfig {
    /// Bytes that one command moves at most: 2^MDTS pages of 4 KiB.
    pub fn transfer_bytes(&self) -> u32 {
        4096 << self.mdts.min(MDTS_MAX)
    }

    /// Checks every field against its range.
    fn validate(&self) -> Result<(), Error> {
        let four = |bytes: u32, least: u32| bytes >= least && bytes <= 1 << 20 && bytes.is_multiple_of(4);
        let serial = (1..=20).contains(&self.serial.len()) && self.serial.bytes().all(|byte| byte.is_ascii_graphic());
        let block = self.block_bytes.is_power_of_two() && (512..=65536).contains(&self.block_bytes);
        let capsule = self.capsule_data_bytes.is_multiple_of(16) && self.capsule_data_bytes <= 65536;
        let offer = self.authentication.as_ref().map(|keys| &keys.offer);
        let offers = offer.is_none_or(|offer| !offer.hashes.is_empty() && !offer.groups.is_empty());
        let rules = [
            (self.more.len() < PORTS_MAX, "more: it has 16 ports at most"),
            (offers, "authentication: there is at least one hash and one group"),
            (self.subsystem != Nqn::discovery(), "subsystem: the discovery service's name is no subsystem's"),
            ((1..=NAMESPACES_MAX).contains(&self.namespaces.len()), "namespaces: there are 1 to 1,024"),
            (serial, "serial: it has 1 to 20 printable ASCII characters"),
            ((1..=MDTS_MAX).contains(&self.mdts), "mdts: it is 1 to 8"),
            (capsule, "capsule_data_bytes: a multiple of 16 up to 65,536"),
            (four(self.h2c_bytes_max, pdu::MAXH2C_MIN), "h2c_bytes_max: a multiple of 4, 4,096 to 1 MiB"),
            (four(self.r2t_bytes_max, 512), "r2t_bytes_max: a multiple of 4, 512 to 1 MiB"),
            (four(self.c2h_bytes_max, 512), "c2h_bytes_max: a multiple of 4, 512 to 1 MiB"),
            (self.alignment <= 31, "alignment: it is 0 to 31"),
            ((1..=CONNECTIONS_MAX).contains(&self.connections_max), "connections_max: it is 1 to 256"),
            ((10..=300_000).contains(&self.connect_timeout.as_millis()), "connect_timeout: it is 10 ms to 5 minutes"),
            ((1..=255).contains(&self.queues_max), "queues_max: it is 1 to 255"),
            ((fabrics::ADMIN_ENTRIES_MIN..=1024).contains(&self.queue_entries), "queue_entries: it is 32 to 1,024"),
            (block, "block_bytes: a power of two, 512 to 65,536"),
            (self.block_bytes <= self.transfer_bytes(), "block_bytes: a command moves at least one block (mdts)"),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup).at("nvme/tcp target").detail(rule)),
            None => Ok(()),
        }
    }
}

/// What a target has done since its start. Bytes are those of logical blocks that commands moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were accepted.
    pub connections: u64,
    /// Connections that are open now.
    pub connections_open: u64,
    /// Connections closed at once because of [`TargetConfig::connections_max`].
    pub connections_refused: u64,
    /// Controllers that exist now.
    pub controllers: u64,
    /// Commands that came, of every kind.
    pub commands: u64,
    /// Read commands that succeeded.
    pub reads: u64,
    /// Write commands that succeeded.
    pub writes: u64,
    /// Bytes of those reads.
    pub read_bytes: u64,
    /// Bytes of those writes.
    pub written_bytes: u64,
    /// Connections that ended with a termination, because the host broke a rule of the transport.
    pub terminations: u64,
    /// Connections whose thread panicked: a bug of the target's, never a host's doing.
    pub panics: u64,
    /// Queues whose host showed who it is.
    pub authenticated: u64,
    /// Connections that ended because their host did not, or did not believe us.
    pub authentication_failed: u64,
    /// Connections that ended because their host came without TLS, or without its key.
    pub tls_failed: u64,
    /// Controllers that were torn down because their host was silent past KATO.
    pub keep_alive_expired: u64,
    /// Controllers that were torn down because their host had another one reset them.
    pub cross_resets: u64,
}

#[cfg(test)]
mod tests;
