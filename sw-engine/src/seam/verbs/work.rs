//! Keys, work requests and their completions.

use core::fmt;

/// What may be done with registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    /// Our own requests read it.
    pub const LOCAL_READ: Self = Self(0);
    /// Receives and reads of ours write it.
    pub const LOCAL_WRITE: Self = Self(1);
    /// A peer reads it.
    pub const REMOTE_READ: Self = Self(2);
    /// A peer writes it. Needs [`Access::LOCAL_WRITE`] beside it.
    pub const REMOTE_WRITE: Self = Self(4);

    /// Both.
    #[must_use]
    pub const fn with(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    /// Whether all of `wanted` may be done.
    pub const fn allows(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

/// The hash by which logs tell keys apart without showing them: Knuth's multiplicative one, upper half.
fn fingerprint(key: u32) -> u32 {
    key.wrapping_mul(2_654_435_761) >> 16
}

/// An lkey: opens memory for requests of our own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LocalKey(pub u32);

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lkey~{:04x}", fingerprint(self.0))
    }
}

/// An rkey: opens memory for the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RemoteKey(pub u32);

impl fmt::Debug for RemoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rkey~{:04x}", fingerprint(self.0))
    }
}

/// Bytes of registered memory. Made by [`Mr::sge`](super::Mr::sge).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sge {
    /// First byte, as its MR names it.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The MR.
    pub lkey: LocalKey,
}

/// Pieces of memory of one request, one after the other as the message has them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Gather {
    list: [Sge; Self::PIECES_MAX],
    count: u8,
}

impl Gather {
    /// Pieces at most; a device may take fewer ([`DeviceFacts::sge_max`](super::DeviceFacts::sge_max)). A capsule, and three pieces of data.
    pub const PIECES_MAX: usize = 4;
    /// No bytes.
    pub const NONE: Self = Self { list: [Sge { addr: 0, len: 0, lkey: LocalKey(0) }; Self::PIECES_MAX], count: 0 };

    /// One piece.
    pub fn of(sge: Sge) -> Self {
        let mut one = Self::NONE;
        (one.list[0], one.count) = (sge, 1);
        one
    }

    /// One piece more; `None`: there are [`Gather::PIECES_MAX`].
    #[must_use]
    pub fn and(mut self, sge: Sge) -> Option<Self> {
        *self.list.get_mut(usize::from(self.count))? = sge;
        self.count += 1;
        Some(self)
    }

    /// The pieces.
    pub fn pieces(&self) -> &[Sge] {
        self.list.get(..usize::from(self.count)).unwrap_or(&self.list)
    }

    /// Bytes of all.
    pub fn bytes(&self) -> u64 {
        self.pieces().iter().map(|sge| u64::from(sge.len)).sum()
    }
}

impl From<Option<Sge>> for Gather {
    fn from(sge: Option<Sge>) -> Self {
        sge.map_or(Self::NONE, Self::of)
    }
}

impl fmt::Debug for Gather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.pieces()).finish()
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOp {
    /// SEND: into the peer's next receive.
    Send,
    /// SEND with Invalidate: the peer's rkey opens nothing any more when its receive completes.
    SendWithInvalidate(RemoteKey),
    /// RDMA WRITE: into the peer's memory, which gets no sign of it.
    RdmaWrite(sw_mem::RemoteAddr),
    /// RDMA READ: out of the peer's memory, which gets no sign of it.
    RdmaRead(sw_mem::RemoteAddr),
}

/// A send, write or read.
#[derive(Clone, Copy, Debug)]
pub struct SendWr {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// What it does.
    pub op: SendOp,
    /// Our memory, one piece for a read; [`Gather::NONE`]: a message without bytes.
    pub memory: Gather,
}

/// A receive.
#[derive(Clone, Copy, Debug)]
pub struct RecvWr {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// Where the message goes.
    pub sge: Sge,
}

/// Why a request was not posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PostError {
    /// The queue is full (`ENOMEM`): wait for completions.
    Full,
    /// It is not connected yet.
    NotConnected,
    /// Longer than a message may be.
    TooLong,
    /// More pieces of memory than the device, or a read, takes.
    Pieces,
    /// The device is gone ([`Device::presence`](super::Device::presence)).
    Gone,
    /// The device refuses; an errno.
    Device(i32),
}

impl fmt::Display for PostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the work queue is full"),
            Self::NotConnected => f.write_str("the queue pair is not connected"),
            Self::TooLong => f.write_str("the message is longer than the device takes"),
            Self::Pieces => f.write_str("the request has more pieces of memory than the device takes"),
            Self::Gone => f.write_str("the device is gone"),
            Self::Device(errno) => write!(f, "the device refused the request (errno {errno})"),
        }
    }
}

impl std::error::Error for PostError {}

/// What a completion is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WcKind {
    /// SEND, with or without Invalidate.
    Send,
    /// RDMA WRITE.
    RdmaWrite,
    /// RDMA READ.
    RdmaRead,
    /// A receive.
    Recv,
}

/// `ibv_wc_status`. What is not named here survives as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WcStatus {
    /// It was carried out.
    Success,
    /// 1: a message longer than the receive.
    LocLen,
    /// 4: an lkey that does not open the memory.
    LocProt,
    /// 5: flushed, since the QP is in error. The first failure has another status.
    WrFlush,
    /// 9: the peer cannot take such a request.
    RemInvReq,
    /// 10: an rkey that does not open the peer's memory for that.
    RemAccess,
    /// 11: the peer failed at it.
    RemOp,
    /// 12: the peer does not answer.
    RetryExc,
    /// 13: the peer posted no receive in time.
    RnrRetryExc,
    /// Another one.
    Other(u32),
}

impl WcStatus {
    /// The number in `ibv_wc_status`.
    pub fn code(self) -> u32 {
        match self {
            Self::Success => 0,
            Self::LocLen => 1,
            Self::LocProt => 4,
            Self::WrFlush => 5,
            Self::RemInvReq => 9,
            Self::RemAccess => 10,
            Self::RemOp => 11,
            Self::RetryExc => 12,
            Self::RnrRetryExc => 13,
            Self::Other(code) => code,
        }
    }

    /// From the number in `ibv_wc_status`.
    pub fn of(code: u32) -> Self {
        match code {
            0 => Self::Success,
            1 => Self::LocLen,
            4 => Self::LocProt,
            5 => Self::WrFlush,
            9 => Self::RemInvReq,
            10 => Self::RemAccess,
            11 => Self::RemOp,
            12 => Self::RetryExc,
            13 => Self::RnrRetryExc,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Success => "success",
            Self::LocLen => "a message is longer than its receive",
            Self::LocProt => "local memory is not registered for that",
            Self::WrFlush => "flushed",
            Self::RemInvReq => "the peer cannot take the request",
            Self::RemAccess => "the peer's memory is not open for that",
            Self::RemOp => "the peer failed at the request",
            Self::RetryExc => "the peer does not answer",
            Self::RnrRetryExc => "the peer posted no receive in time",
            Self::Other(_) => "another error",
        };
        write!(f, "{text} (wc status {})", self.code())
    }
}

/// A completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wc {
    /// Of the request.
    pub wr_id: u64,
    /// QPN.
    pub qpn: u32,
    /// What it is of. Means nothing if it failed, but for the emulation and models.
    pub kind: WcKind,
    /// How it ended.
    pub status: WcStatus,
    /// Bytes of the message, of a receive.
    pub byte_len: u32,
    /// The rkey that the peer's send invalidated, of a receive.
    pub invalidated: Option<RemoteKey>,
}

/// Bytes that go with a wish to connect and with its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PrivateData {
    bytes: [u8; Self::BYTES_MAX],
    len: u8,
}

impl PrivateData {
    /// Bytes at most: what the connection manager leaves of a request over IP (`rdma_connect`(3)).
    pub const BYTES_MAX: usize = 56;

    /// From bytes; `None` for more than [`PrivateData::BYTES_MAX`].
    pub fn new(from: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::BYTES_MAX];
        bytes.get_mut(..from.len())?.copy_from_slice(from);
        Some(Self { bytes, len: u8::try_from(from.len()).ok()? })
    }

    /// None.
    pub const fn empty() -> Self {
        Self { bytes: [0; Self::BYTES_MAX], len: 0 }
    }

    /// The bytes. A transport may give more than were sent, filled with zeroes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }
}

impl fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", self.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_keep_their_numbers_and_keys_are_not_shown() {
        for code in 0..24 {
            assert_eq!(WcStatus::of(code).code(), code);
        }
        assert!(!format!("{:?} {:?}", RemoteKey(0xdead_beef), LocalKey(0xdead_beef)).contains("dead"));
    }

    #[test]
    fn access_is_what_was_given_and_no_more() {
        let both = Access::LOCAL_WRITE.with(Access::REMOTE_READ);
        assert!(both.allows(Access::REMOTE_READ) && both.allows(Access::LOCAL_READ));
        assert!(!both.allows(Access::REMOTE_WRITE));
        assert!(!both.allows(Access::REMOTE_WRITE.with(Access::REMOTE_READ)));
    }

    #[test]
    fn a_gather_has_so_many_pieces_and_no_more() {
        let sge = |len| Sge { addr: 0, len, lkey: LocalKey(1) };
        let three = Gather::of(sge(u32::MAX)).and(sge(2)).and_then(|two| two.and(sge(3))).unwrap();
        assert_eq!((three.pieces().len(), three.bytes()), (3, u64::from(u32::MAX) + 5));
        assert_eq!(three.and(sge(4)).unwrap().and(sge(5)), None);
        assert_eq!((Gather::from(None), Gather::NONE.pieces().len()), (Gather::NONE, 0));
    }

    #[test]
    fn private_data_is_bounded() {
        assert_eq!(PrivateData::new(&[7; 32]).unwrap().as_bytes(), [7; 32]);
        assert_eq!(PrivateData::new(&[0; 57]), None);
    }
}
