//! Objects: something with bytes at offsets, and the faces by which transports reach it.

use std::{any::Any, fmt, sync::Arc};

use crate::{
    path::{Landing, Reason, TransportName},
    stripe::StripeGeometry,
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
    /// Who writes (or reads) memory that the transport can reach: [`Landing::Dma`] or [`Landing::KernelCopy`].
    pub landing: Landing,
    /// Why this face is not better, where it stands in for a better one (buffered instead of direct).
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
    /// What the page cache held when it was opened.
    pub residency: Residency,
    /// Members and geometry, if it is a stripe set; it then has no faces of its own.
    pub stripe: Option<(StripeGeometry, Vec<Arc<Object>>)>,
    /// Keeps descriptors or sessions open; dropped after the last operation.
    pub keep: Box<dyn Any + Send + Sync>,
}

impl Object {
    /// A fresh [`ObjectId`].
    pub fn next_id() -> ObjectId {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        ObjectId(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether the page cache held nearly all of it when it was opened: nine tenths, because a few evicted pages cost less
    /// than a second pass over the device.
    pub fn is_resident(&self) -> bool {
        matches!(self.residency, Residency::Cached(bytes) if bytes > 0 && bytes >= self.len / 10 * 9)
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
