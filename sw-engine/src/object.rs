//! Objects: something with bytes at offsets, and the faces by which transports reach it.

use std::{
    any::Any,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    layout::Layout,
    path::{Landing, Reason, TransportName},
};

/// Names an open object for as long as the process lives; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub u64);

/// What an I/O on a face must be a multiple of, in bytes. All powers of two; 1 means anything goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granularity {
    /// Object offset and length.
    pub block: u32,
    /// Memory address.
    pub memory: u32,
}

impl Granularity {
    /// Bytes at any offset, into any address.
    pub const ANY: Granularity = Granularity { block: 1, memory: 1 };
}

/// One way to reach an object's bytes: a transport, what it demands, and who writes host memory on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Face {
    /// The transport that understands `handle`.
    pub transport: TransportName,
    /// A word that means something to that transport only (a descriptor, a namespace index).
    pub handle: u64,
    /// What it demands.
    pub granularity: Granularity,
    /// Unit in bytes (a power of two) that a write over this face and one over another face of the object must not share:
    /// the page of the cache or the block of the file system, whichever is larger. 1 where it means nothing: the bytewise
    /// face, an object with one face only, or one that is not open for writing.
    pub write_unit: u32,
    /// Who writes (or reads) memory that the transport can reach. [`Landing::Staged`]: it goes through a buffer of the transport's own.
    pub landing: Landing,
    /// Why this face is not better, where it stands in for a better one (buffered instead of direct, threads instead of
    /// io_uring).
    pub because: Option<Reason>,
}

/// What tells two states of an object apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Version {
    /// Device and inode, or another identity.
    pub identity: (u64, u64),
    /// Modification time in nanoseconds since 1970, or a generation number.
    pub stamp: i128,
}

/// How much of an object a cache holds that is faster than its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Residency {
    /// Nobody can tell.
    #[default]
    Unknown,
    /// Bytes in the page cache when it was asked.
    Cached(u64),
}

/// A [`Residency`] that is asked for again now and then, by whoever composes the engine; planners look at it.
#[derive(Debug)]
pub struct ResidencyNow {
    word: AtomicU64,
    /// Length in bytes that the answer is about; [`ResidencyNow::UNKNOWN`]: that of the object.
    of: AtomicU64,
}

impl ResidencyNow {
    const UNKNOWN: u64 = u64::MAX;
    /// Of the answer: nobody asked yet.
    const UNASKED: u64 = u64::MAX - 1;

    /// Nobody asked yet: that takes as long as the cache holds much, and whoever opens may never read.
    pub fn unasked() -> Self {
        Self { word: AtomicU64::new(Self::UNASKED), of: AtomicU64::new(Self::UNKNOWN) }
    }

    fn word(residency: Residency) -> u64 {
        match residency {
            Residency::Unknown => Self::UNKNOWN,
            Residency::Cached(bytes) => bytes.min(Self::UNASKED - 1),
        }
    }

    /// The last answer; unknown if nobody asked.
    pub fn get(&self) -> Residency {
        match self.word.load(Ordering::Relaxed) {
            Self::UNKNOWN | Self::UNASKED => Residency::Unknown,
            bytes => Residency::Cached(bytes),
        }
    }

    /// Whether somebody asked.
    pub fn is_asked(&self) -> bool {
        self.word.load(Ordering::Relaxed) != Self::UNASKED
    }

    /// A newer answer.
    pub fn set(&self, residency: Residency) {
        self.word.store(Self::word(residency), Ordering::Relaxed);
    }

    /// Bytes that the object has now, for one whose [`Object::len`] only bounds what it may grow to.
    pub fn set_len(&self, len: u64) {
        self.of.store(len.min(Self::UNKNOWN - 1), Ordering::Relaxed);
    }

    fn len(&self, object_len: u64) -> u64 {
        match self.of.load(Ordering::Relaxed) {
            Self::UNKNOWN => object_len,
            len => len,
        }
    }
}

impl From<Residency> for ResidencyNow {
    fn from(residency: Residency) -> Self {
        Self { word: AtomicU64::new(Self::word(residency)), of: AtomicU64::new(Self::UNKNOWN) }
    }
}

/// Something with bytes at offsets. Made by a store, shared by `Arc`, alive while any operation uses it.
pub struct Object {
    /// Its name in the process.
    pub id: ObjectId,
    /// Its name in the operator's words: a path or an address.
    pub name: Arc<str>,
    /// Length in bytes when it was opened.
    pub len: u64,
    /// Its version when it was opened.
    pub version: Version,
    /// Ways to reach it, best first.
    pub faces: Vec<Face>,
    /// What the page cache held when it was last asked.
    pub residency: ResidencyNow,
    /// Members and how its bytes lie on them, if it is made of others; it then has no faces of its own.
    pub composed: Option<(Layout, Vec<Arc<Object>>)>,
    /// Keeps descriptors or sessions open; dropped after the last operation.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// A device, as transports and rates tell it apart from others: a few bits of its identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device(pub(crate) u8);

impl fmt::Display for Device {
    /// A number below 16; it means nothing outside of this process's engine.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Device {
    /// How many there are; devices whose bits are the same are one.
    pub(crate) const COUNT: u32 = 16;
}

impl Object {
    /// The device that it lies on; for a stripe set its members have theirs.
    #[inline]
    pub(crate) fn device(&self) -> Device {
        // The highest bits of a product with the golden ratio depend on all others.
        let mixed = self.version.identity.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - Device::COUNT.ilog2());
        Device(u8::try_from(mixed).unwrap_or(0))
    }

    /// A fresh [`ObjectId`].
    pub fn next_id() -> ObjectId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        ObjectId(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether the page cache held nearly all of it when it was last asked: nine tenths, because a few evicted pages cost less
    /// than a second pass over the device.
    pub fn is_resident(&self) -> bool {
        self.is_resident_with(self.residency.get())
    }

    /// [`Object::is_resident`] for another answer.
    pub fn is_resident_with(&self, residency: Residency) -> bool {
        matches!(residency, Residency::Cached(bytes) if bytes > 0 && bytes >= self.residency.len(self.len) / 10 * 9)
    }

    /// What a range must be whole multiples of (offset and length, in bytes), so that any face moves it in place and no other
    /// write shares a unit with it. A power of two.
    pub fn whole_unit(&self) -> u32 {
        self.faces.iter().map(|face| face.write_unit.max(face.granularity.block)).max().unwrap_or(1)
    }

    /// Those whose being unchanged is its own: the members of a stripe set; of an object whose copies lie elsewhere, the first; else it
    /// itself.
    pub fn origins(self: &Arc<Self>) -> &[Arc<Object>] {
        match &self.composed {
            None => std::slice::from_ref(self),
            Some((Layout::Stripe(_), members)) => members,
            Some((Layout::Pieces(_), members)) => members.get(..1).unwrap_or_default(),
        }
    }

    /// The face whose handle takes any offset, length and address, if there is one.
    pub fn bytewise_face(&self) -> Option<usize> {
        self.faces.iter().position(|face| face.granularity == Granularity::ANY)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("id", &self.id.0)
            .field("name", &self.name)
            .field("len", &self.len)
            .field("faces", &self.faces)
            .finish_non_exhaustive()
    }
}
