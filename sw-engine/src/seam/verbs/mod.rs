//! RDMA verbs: what a fabric offers to whoever speaks over it, by object: device, PD, MR, CQ, QP, and the connection manager's part.
//!
//! ```text
//!   Fabric ─► Device ─► Pd ─► Mr   memory that the NIC may touch: lkey for us, rkey for the peer
//!               │        └──► Qp   post_send, post_recv … Wc        connect / accept: 32 bytes of private data and more
//!               ├─► Cq             poll; arm, then poll once more, then sleep
//!               └─► Listener ─► Incoming ─► Qp::accept or reject
//! ```
//!
//! Reliable connections (RC) only. Names are those of the InfiniBand Architecture Specification and of `ibv_*`(3).
//!
//! The contract, for every fabric, emulated and modelled ones included:
//!
//! - **Memory.** An [`Mr`] keeps its region's memory, or is [bound](Pd::reg_bound_mr) to it. Between a post and its [`Wc`] the NIC may touch what the request names; between the
//!   registration and [`Mr::deregister`] a peer may touch what an rkey opens, at any time and without a sign. No Rust reference to such bytes exists
//!   then (`DmaRegion`). When `deregister` returns, nothing reaches them any more, and a peer that tries gets [`WcStatus::RemAccess`],
//!   which puts both QPs into [`QpState::Error`].
//! - **Order.** Requests of one QP are carried out in the order of their posts. Their completions come in that order too. When a
//!   receive completes, all that the peer wrote before that send is visible to the CPU of this end, for host memory.
//! - **Completion.** [`WcStatus::Success`] of a send, write or read says that the peer's NIC carried it out. A request gives exactly one
//!   completion. In [`QpState::Error`] all that is outstanding, and all that is posted then, completes with [`WcStatus::WrFlush`]; the first
//!   failure has its own status. After the last one of them the NIC touches nothing of the QP's requests, and nothing of the peer lands: before it,
//!   a packet may be in the midst of being placed. A QP with nothing outstanding tells nothing; there, deregistration does.
//! - **Room.** A full queue refuses ([`PostError::Full`]): the caller waits for completions. A CQ has room for all requests of its QPs, or the
//!   QP is not made: it cannot overrun.
//! - **Waiting**, so that no wake-up is lost: poll until nothing comes; [`Cq::arm`]; *poll once more*; sleep only if that gave nothing. A
//!   completion behind `arm` calls the CQ's [`Wake`] once; one before it is found by the second poll. A wake that finds nothing is no error.
//! - **Gone.** A device may go at any time. From then on it reads and writes nothing: requests are flushed, or give no completion at all; what is
//!   posted is refused or flushed, and whatever is made is refused with `NoDevice`. Deregistration stays the proof, also then: [`Mr::deregister`]
//!   says whether it worked. Memory that cannot be deregistered is kept for ever, that of a [bound](Pd::reg_bound_mr) one too unless its last
//!   handle is gone already; and whoever lent it must not be told that it is free.
//! - **End.** Disconnect or [`Qp::to_error`]; poll until all is flushed; drop the QP; deregister; drop the CQ, the PD, the device.
//!
//! *Thread*: a QP has one owner at a time (`&mut`); the rest may be shared. *Blocking*: `connect`, `accept` of a listener and `request` of what
//! came, each with its deadline; registration may take the kernel long.

mod gid;
mod work;

use core::{any::Any, time::Duration};
use std::sync::Arc;

use sw_mem::{DmaRegion, RemoteAddr};

pub use gid::{Gid, GidChoice, GidKind, choose_gid};
pub use work::{
    Access, Gather, LocalKey, PostError, PrivateData, RecvWr, RemoteKey, SendOp, SendWr, Sge, Wc, WcKind, WcStatus,
};

use crate::error::{Error, ErrorKind, Verb};
use crate::seam::Wake;

/// Who moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FabricKind {
    /// A NIC, by DMA.
    Hardware,
    /// The kernel's RDMA over an ordinary network device (rxe, siw): a CPU copies.
    Software,
    /// A stand-in in this process, over a byte stream: a CPU copies, and no statement about a NIC's speed follows from it.
    Emulated,
    /// A model in virtual time.
    Model,
}

impl FabricKind {
    /// The name that reports use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::Software => "software",
            Self::Emulated => "emulated",
            Self::Model => "model",
        }
    }
}

/// Whether a device can do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// It can.
    Yes,
    /// It cannot.
    No,
}

/// What a device says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its name, as in `/sys/class/infiniband`.
    pub name: String,
    /// Who moves the bytes.
    pub kind: FabricKind,
    /// Requests of one direction of a QP at most.
    pub wr_max: u32,
    /// Entries of a CQ at most.
    pub cqe_max: u32,
    /// Bytes of one message at most.
    pub message_bytes_max: u32,
    /// Bytes of one MR at most.
    pub mr_bytes_max: u64,
    /// Reads that a QP of its may have under way towards us at most.
    pub rd_atomic_max: u8,
    /// Pieces of memory of one send or write at most, from 1.
    pub sge_max: u8,
    /// Whether a send may invalidate an rkey of the receiver's.
    pub remote_invalidate: Ability,
    /// Whether memory of an accelerator can be registered by its dma-buf.
    pub dma_buf: Ability,
}

/// Whether a device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is, as far as anybody told.
    Here,
    /// It was pulled out, unbound, or failed for good (`IBV_EVENT_DEVICE_FATAL`), and does not come back in this object: one that is there again is opened anew.
    Gone,
}

/// How a QP is made.
#[derive(Clone)]
pub struct QpConfig {
    /// Where sends, writes and reads complete.
    pub send_cq: Arc<dyn Cq>,
    /// Where receives complete; may be the same one.
    pub recv_cq: Arc<dyn Cq>,
    /// Sends, writes and reads at a time, from 1.
    pub send_wr_max: u32,
    /// Receives at a time, from 1.
    pub recv_wr_max: u32,
    /// How long a send to this end's peer waits for a receive there, until it ends with [`WcStatus::RnrRetryExc`]. A NIC counts it in
    /// retries; it rounds up.
    pub rnr_wait: Duration,
}

/// Where a QP is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QpState {
    /// Made; receives may be posted.
    Init,
    /// Connected: ready to send.
    Rts,
    /// Over. All requests are flushed.
    Error,
}

/// What came of a wish to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connected {
    /// The peer accepted, with its private data.
    Accepted(PrivateData),
    /// The peer refused, with its private data. The QP is in [`QpState::Error`].
    Rejected(PrivateData),
    /// The peer's connection manager has an end of a connection of before that it takes this wish for (InfiniBand, "Stale Connection"; nobody behind it was
    /// asked). It lets go of that end now: another QP's wish may be taken. This QP is in [`QpState::Error`].
    Stale,
}

/// Memory to register.
#[derive(Clone, Copy, Debug)]
pub struct MrRequest<'a> {
    /// Where it lies.
    pub region: &'a DmaRegion,
    /// First byte, counted from the region's start.
    pub at: u64,
    /// Bytes, above zero.
    pub len: u64,
    /// What may be done with it.
    pub access: Access,
}

/// A dma-buf to register. What a device that cannot do so says is `Unsupported`.
#[derive(Clone, Copy, Debug)]
pub struct DmaBufRequest {
    /// The descriptor's number.
    pub fd: i32,
    /// First byte in the dma-buf.
    pub at: u64,
    /// Bytes, above zero.
    pub len: u64,
    /// The address that work requests and peers name its first byte by: with the same offset in a page as `at`.
    pub iova: u64,
    /// What may be done with it.
    pub access: Access,
}

impl DmaBufRequest {
    /// Whether it can be registered at all, whoever does so.
    ///
    /// # Errors
    /// `OutOfRange` for no bytes or an end past 2^64; `ApiMisuse` for an `iova` at another offset in a page than `at`, and for
    /// [`Access::REMOTE_WRITE`] without [`Access::LOCAL_WRITE`].
    pub fn validate(&self) -> Result<(), Error> {
        let refuse = |kind, text: &str| Err(Error::new(kind, Verb::Setup).at("mr").detail(text.to_owned()));
        let Self { at, len, iova, access, .. } = *self;
        if len == 0 || at.checked_add(len).is_none() || iova.checked_add(len).is_none() {
            return refuse(ErrorKind::OutOfRange, "the range of the dma-buf is empty, or past the end of addresses");
        }
        // ibv_reg_dmabuf_mr(3): offset and iova have the same offset in a page.
        if at % 4096 != iova % 4096 {
            return refuse(ErrorKind::ApiMisuse, "the address has another offset in its page than the dma-buf's byte");
        }
        if access.allows(Access::REMOTE_WRITE) && !access.allows(Access::LOCAL_WRITE) {
            return refuse(ErrorKind::ApiMisuse, "remote write needs local write beside it");
        }
        Ok(())
    }
}

/// Devices of one library, emulation or model.
pub trait Fabric: Send + Sync {
    /// The devices that there are.
    ///
    /// # Errors
    /// `NoDevice` with the reason and the remedy: no library, no kernel support. An empty list is no error.
    fn devices(&self) -> Result<Vec<DeviceFacts>, Error>;

    /// Opens one by name.
    ///
    /// # Errors
    /// `NoDevice`, `PermissionDenied`, `ResourceLimit`.
    fn open(&self, name: &str) -> Result<Arc<dyn Device>, Error>;
}

/// An open device.
pub trait Device: Send + Sync {
    /// What it says of itself. Constant.
    fn facts(&self) -> &DeviceFacts;

    /// Whether it is there. It never comes back.
    fn presence(&self) -> Presence;

    /// The addresses of its port, for [`choose_gid`].
    ///
    /// # Errors
    /// `Io`: the kernel does not tell.
    fn gids(&self) -> Result<Vec<Gid>, Error>;

    /// A protection domain: only its own MRs and QPs fit together.
    ///
    /// # Errors
    /// `ResourceLimit`.
    fn alloc_pd(&self) -> Result<Arc<dyn Pd>, Error>;

    /// A completion queue; `wake` is called once for each [`Cq::arm`], by any thread.
    ///
    /// # Errors
    /// `ApiMisuse` for an `entries` of 0 or past [`DeviceFacts::cqe_max`]; `ResourceLimit`.
    fn create_cq(&self, entries: u32, wake: Arc<dyn Wake>) -> Result<Arc<dyn Cq>, Error>;

    /// Listens for connections at an address, `HOST:PORT`.
    ///
    /// # Errors
    /// `InUse`, `PermissionDenied`, `NoDevice` for an address that is not the device's.
    fn listen(&self, at: &str) -> Result<Box<dyn Listener>, Error>;
}

/// A protection domain.
pub trait Pd: Send + Sync {
    /// Registers host memory.
    ///
    /// # Errors
    /// `OutOfRange` for a range outside of the region, `ApiMisuse` for [`Access::REMOTE_WRITE`] without [`Access::LOCAL_WRITE`],
    /// `Unsupported` for memory that is no host memory, `ResourceLimit` for a budget or a limit on locked memory.
    fn reg_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error>;

    /// As [`Pd::reg_mr`], for whoever keeps registrations: this one does not keep the memory. It ends with the region's last handle at the
    /// latest, before the memory goes; then it opens nothing, and [`Mr::sge`] and [`Mr::remote`] give `None`.
    ///
    /// # Errors
    /// As [`Pd::reg_mr`].
    fn reg_bound_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error>;

    /// Registers memory of an accelerator. Good only after a self-test: a registration that succeeds proves nothing.
    ///
    /// # Errors
    /// `Unsupported` where device or kernel cannot; as [`Pd::reg_mr`].
    fn reg_dmabuf_mr(&self, memory: DmaBufRequest) -> Result<Box<dyn Mr>, Error>;

    /// A queue pair in [`QpState::Init`].
    ///
    /// # Errors
    /// `ApiMisuse` for numbers out of range or a CQ of another device, `ResourceLimit` for a CQ without room for its requests.
    fn create_qp(&self, config: QpConfig) -> Result<Box<dyn Qp>, Error>;
}

/// Registered memory. Dropping it deregisters it.
pub trait Mr: Send + Sync {
    /// Bytes.
    fn len(&self) -> u64;

    /// Never true.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `len` bytes from byte `at` for our own requests; `None` past the end.
    fn sge(&self, at: u64, len: u32) -> Option<Sge>;

    /// Byte `at` for a peer; `None` past the end, or if no peer may touch it.
    fn remote(&self, at: u64) -> Option<RemoteAddr>;

    /// Ends it. When this returns well nobody reaches the memory by it any more. *Blocking*: until a copy that is under way ends, which no
    /// peer can draw out.
    ///
    /// # Errors
    /// `Io`: the device refused, as one may that is gone. The memory may be reached for ever, and is kept for ever.
    fn deregister(self: Box<Self>) -> Result<(), Error>;
}

/// A completion queue.
pub trait Cq: Send + Sync {
    /// Appends completions to `out` without growing it past its capacity; how many.
    fn poll(&self, out: &mut Vec<Wc>) -> usize;

    /// Asks for one wake by the next completion. See the module documentation for what to do behind it.
    ///
    /// # Errors
    /// `Io`: the device is gone.
    fn arm(&self) -> Result<(), Error>;

    /// For the fabric that it is of.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// A queue pair of a reliable connection. Dropping it ends the connection; what is outstanding then gives no completion, and when the drop returns the
/// NIC touches nothing of it.
pub trait Qp: Send {
    /// QPN.
    fn number(&self) -> u32;

    /// Where it is in its life.
    fn state(&self) -> QpState;

    /// Why it is in [`QpState::Error`], in the words of whoever saw it.
    fn why(&self) -> Option<String>;

    /// Connects to `HOST:PORT`, within `timeout`. *Blocking.*
    ///
    /// # Errors
    /// `NotFound` for a name, `NoDevice` if nobody listens, `DeadlineExceeded`, `Protocol`; `ApiMisuse` unless in [`QpState::Init`].
    fn connect(&mut self, to: &str, private: &PrivateData, timeout: Duration) -> Result<Connected, Error>;

    /// Accepts what a listener got.
    ///
    /// # Errors
    /// As [`Qp::connect`].
    fn accept(&mut self, incoming: Box<dyn Incoming>, private: &PrivateData) -> Result<(), Error>;

    /// Posts a receive.
    ///
    /// # Errors
    /// [`PostError`]; nothing is posted.
    fn post_recv(&mut self, wr: RecvWr) -> Result<(), PostError>;

    /// Posts a send, write or read.
    ///
    /// # Errors
    /// [`PostError`]; nothing is posted.
    fn post_send(&mut self, wr: SendWr) -> Result<(), PostError>;

    /// Ends the connection: this end goes to [`QpState::Error`], and the peer's does when it hears of it. What was outstanding is flushed; until
    /// the last of that is polled, the peer's bytes may still land.
    fn to_error(&mut self);
}

/// Waits for connections.
pub trait Listener: Send {
    /// Where it listens, `HOST:PORT`, with the port that it got.
    fn address(&self) -> String;

    /// The next one, or `None` after `timeout`. *Blocking.*
    ///
    /// # Errors
    /// `ResourceLimit`, `Io`: the system gives none.
    fn accept(&mut self, timeout: Duration) -> Result<Option<Box<dyn Incoming>>, Error>;
}

/// A wish to connect. Dropping it refuses it without private data.
pub trait Incoming: Send {
    /// The private data of the wish, within `timeout`. *Blocking.*
    ///
    /// # Errors
    /// `DeadlineExceeded`: it may be asked for again. `Protocol`, `Io`: it is gone.
    fn request(&mut self, timeout: Duration) -> Result<PrivateData, Error>;

    /// Refuses.
    fn reject(self: Box<Self>, private: &PrivateData);

    /// For the fabric that it is of.
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}
