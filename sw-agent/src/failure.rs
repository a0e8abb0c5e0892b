//! Why something failed, as both ends tell it: five classes, where it arose, and a kind.

use core::fmt;

use sw_engine::ErrorKind;

/// What trying again can do. The number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// The same may be sent again at once, here or elsewhere: nothing was applied.
    RetryNow = 1,
    /// It may be sent again only once the earlier try provably cannot be applied any more.
    RetryAfterFence = 2,
    /// The caller asked for what cannot be.
    Caller = 3,
    /// Bytes are not what they should be.
    Integrity = 4,
    /// The session, or what it needs, is over.
    Fatal = 5,
}

impl Class {
    /// From the wire.
    pub const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::RetryNow,
            2 => Self::RetryAfterFence,
            3 => Self::Caller,
            4 => Self::Integrity,
            5 => Self::Fatal,
            _ => return None,
        })
    }
}

/// Where it arose. The number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Origin {
    /// At the host's end.
    Host = 1,
    /// Between the ends.
    Carrier = 2,
    /// In the agent.
    Agent = 3,
    /// What the agent asked for the bytes.
    Storage = 4,
    /// The medium behind that.
    Media = 5,
}

impl Origin {
    /// From the wire.
    pub const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Host,
            2 => Self::Carrier,
            3 => Self::Agent,
            4 => Self::Storage,
            5 => Self::Media,
            _ => return None,
        })
    }
}

/// Every kind that an end may tell.
const KINDS: [ErrorKind; 27] = {
    use ErrorKind as K;
    [
        K::ApiMisuse,
        K::BadUri,
        K::NotFound,
        K::PermissionDenied,
        K::WrongKind,
        K::OutOfRange,
        K::TooLarge,
        K::NotRegistered,
        K::NoDevice,
        K::PolicyUnmet,
        K::ShortData,
        K::Changed,
        K::Io,
        K::NoSpace,
        K::ResourceLimit,
        K::Busy,
        K::DeadlineExceeded,
        K::Cancelled,
        K::Closed,
        K::ChecksumMismatch,
        K::Protocol,
        K::Forked,
        K::Poisoned,
        K::Unsupported,
        K::BadFormat,
        K::InUse,
        K::AlreadyExists,
    ]
};

/// The stable number of an [`ErrorKind`] in a byte. A number that this version does not know is kept as it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Detail(pub u8);

impl Detail {
    /// The number of a kind; 255 for one that a byte does not hold, which none is.
    pub fn of(kind: ErrorKind) -> Self {
        Self(u8::try_from(kind.code()).unwrap_or(u8::MAX))
    }

    /// The kind; `None` for a number that this version does not know.
    pub fn kind(self) -> Option<ErrorKind> {
        KINDS.into_iter().find(|kind| Self::of(*kind) == self)
    }
}

impl fmt::Debug for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kind {}", self.0)
    }
}

/// Why something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Failure {
    /// What trying again can do.
    pub class: Class,
    /// Where it arose.
    pub origin: Origin,
    /// What it was.
    pub detail: Detail,
}

impl Failure {
    /// Put together.
    pub fn new(class: Class, origin: Origin, kind: ErrorKind) -> Self {
        Self { class, origin, detail: Detail::of(kind) }
    }

    /// A mistake of whoever asked, found by the agent.
    pub fn caller(kind: ErrorKind) -> Self {
        Self::new(Class::Caller, Origin::Agent, kind)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?} ({:?})", self.class, self.origin, self.detail)
    }
}

/// What became of what an operation should change. The number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Outcome {
    /// It changes nothing: a read.
    #[default]
    Nothing = 0,
    /// All of it was applied.
    Applied = 1,
    /// Nothing of it was applied, and nothing will be.
    NotApplied = 2,
    /// Nobody knows.
    Unknown = 3,
}

impl Outcome {
    /// From the wire.
    pub const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Nothing,
            1 => Self::Applied,
            2 => Self::NotApplied,
            3 => Self::Unknown,
            _ => return None,
        })
    }
}
