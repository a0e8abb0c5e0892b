//! What a loader is made with.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use straightway::{Destination, Policy};

use super::error::{Cause, LoadError, SampleId};
use crate::{
    order::{Method, Tail, World},
    samples::Format,
};

/// How samples lie in the memory of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Layout {
    /// Each as it is, at an offset of its own: see [`Batch::offsets`](super::Batch::offsets). Samples lie where a read put
    /// them, so there are gaps, and they need not lie in the order of the batch. Nothing is copied but samples that are decoded,
    /// and those of a window that is read as a whole.
    #[default]
    Ragged,
    /// Each in a place of equal length, the rest of it zero (in device memory: not written).
    Padded(PadTo),
    /// All of one length, end to end. A sample of another length is a bad one.
    Fixed {
        /// Bytes of a sample; `None`: as many as the first one of the batch has.
        bytes: Option<u64>,
    },
}

/// How long a padded place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PadTo {
    /// As the longest sample of the batch.
    Longest,
    /// So many bytes. A longer sample is a bad one.
    Bytes(u64),
}

/// What to do with the last samples of an epoch, when they are fewer than a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LastBatch {
    /// A short batch.
    #[default]
    Keep,
    /// None: they are not seen in this epoch. Every rank has the same number of batches then, as with [`Tail::Drop`].
    Drop,
}

/// What to do with a sample that cannot be had: damaged, changed, unreadable, refused by the map function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnBad {
    /// An error instead of its batch.
    #[default]
    Raise,
    /// Its batch without it, counted; an error once more than `max` were left out.
    Skip {
        /// The limit over the loader's life.
        max: u64,
    },
    /// As `Skip`, and it is put on a list ([`Loader::quarantined`](super::Loader::quarantined)) and not read again.
    Quarantine {
        /// The limit over the loader's life, and of the list.
        max: u64,
    },
}

/// Whether checksums that the table knows are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Verify {
    /// They are.
    #[default]
    Known,
    /// They are not.
    Never,
}

/// A sample, as a map function sees it.
#[derive(Clone, Copy, Debug)]
pub struct SampleRef<'a> {
    /// Which.
    pub id: SampleId,
    /// The epoch.
    pub epoch: u64,
    /// What its object holds.
    pub format: Format,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// Turns a sample into the bytes that its batch gets: appends them to the second argument.
pub type MapFn = dyn Fn(SampleRef<'_>, &mut Vec<u8>) -> Result<(), Cause> + Send + Sync;

/// Options of a [`Loader`](super::Loader): set fields of [`LoaderOptions::default`].
#[derive(Clone)]
#[non_exhaustive]
pub struct LoaderOptions {
    /// Samples of a batch, 1 to 2²⁴. Default 64.
    pub batch: u32,
    /// What becomes of the samples that do not fill a batch.
    pub last: LastBatch,
    /// Seed of the order. Default 0.
    pub seed: u64,
    /// The order of samples in an epoch. Default: shuffled.
    pub method: Method,
    /// Which rank this is. Default: one alone.
    pub world: World,
    /// What becomes of samples that cannot be dealt evenly to the ranks. Default: the first ranks get one more, unless short
    /// batches are dropped.
    pub tail: Tail,
    /// The epoch to stop before, counted from 0, so that a job that goes on from a state ends where it would have; `u64::MAX`:
    /// no end. Default 1. A mixture has no epochs and no end.
    pub epochs: u64,
    /// How samples lie in a batch.
    pub layout: Layout,
    /// Where batches land. Default: host memory.
    pub into: Destination,
    /// Which routes are accepted. Default: the best, which is past the page cache unless the object is in it.
    pub policy: Policy,
    /// Bytes of memory that the loader may hold, batches that the caller has not. Default 256 MiB. Beside it, each worker
    /// may hold one finished batch, and the memory of one that the caller gave back waits until there is room.
    pub memory_bytes: u64,
    /// Batches that are planned, read, worked on or ready at once, at most: 1 to 4096. Default 16.
    pub ahead: u32,
    /// Reads in flight, 1 to 4096; the engine's queue depth bounds them too. Default 128.
    pub reads: u32,
    /// Bytes of reads in flight at most. One read is always allowed. Default 64 MiB.
    pub read_bytes: u64,
    /// Bytes between two samples of one object up to which they are read in one piece. Default 16 KiB: reading on is cheaper
    /// than one more read.
    pub gap_bytes: u64,
    /// Bytes of a read that joins several samples, at most. Default 1 MiB. Disks and object stores want more.
    pub join_bytes: u64,
    /// Objects open at once, 1 to 65,536. Each has two descriptors. Default 128.
    pub objects: u32,
    /// Threads that open objects, 1 to 64. Default 4: opening a file that is not cached waits for its device.
    pub openers: u32,
    /// Threads that check, decode, map and copy, 1 to 256. Default: one a core, at most 8.
    pub workers: u32,
    /// How long opening or reading may take. Default 60 s.
    pub deadline: Duration,
    /// What to do with a sample that cannot be had.
    pub on_bad: OnBad,
    /// Samples to leave out from the beginning: a quarantine list of an earlier run.
    pub leave_out: BTreeSet<SampleId>,
    /// Whether checksums are compared.
    pub verify: Verify,
    /// Bytes of decoded blocks that are kept for later samples. Default 64 MiB. Beside them there are those that batches on their
    /// way share, until the last of these is ready. A block that decodes to more than [`LoaderOptions::memory_bytes`] is an error.
    ///
    /// With [`Method::Blocks`] also the bytes of a window, in host memory, of samples that lie in their objects as they are: it is
    /// read as a whole, and the next one meanwhile into as many bytes again. What is kept of each sample, about 60 bytes, is counted
    /// too. Several datasets share it evenly. Samples of a window that does not fit are read one by one, which
    /// [`LoaderStats::apart`](super::LoaderStats::apart) tells.
    pub block_bytes: u64,
    /// The map function, which runs on the workers.
    pub map: Option<Arc<MapFn>>,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            batch: 64,
            last: LastBatch::Keep,
            seed: 0,
            method: Method::Shuffle,
            world: World::ALONE,
            tail: Tail::Uneven,
            epochs: 1,
            layout: Layout::Ragged,
            into: Destination::Host,
            policy: Policy::Any,
            memory_bytes: 256 << 20,
            ahead: 16,
            reads: 128,
            read_bytes: 64 << 20,
            gap_bytes: 16 << 10,
            join_bytes: 1 << 20,
            objects: 128,
            openers: 4,
            workers: u32::try_from(cores.clamp(1, 8)).unwrap_or(1),
            deadline: Duration::from_secs(60),
            on_bad: OnBad::Raise,
            leave_out: BTreeSet::new(),
            verify: Verify::Known,
            block_bytes: 64 << 20,
            map: None,
        }
    }
}

impl LoaderOptions {
    /// Checks every range.
    pub(super) fn check(&self) -> Result<(), LoadError> {
        let ranges: [(&'static str, u64, u64, &'static str); 7] = [
            ("batch", self.batch.into(), 1 << 24, "1 to 16,777,216"),
            ("ahead", self.ahead.into(), 4096, "1 to 4096"),
            ("reads", self.reads.into(), 4096, "1 to 4096"),
            ("objects", self.objects.into(), 1 << 16, "1 to 65,536"),
            ("openers", self.openers.into(), 64, "1 to 64"),
            ("workers", self.workers.into(), 256, "1 to 256"),
            ("memory_bytes", self.memory_bytes, 1 << 50, "1 to 2^50"),
        ];
        for (option, value, max, range) in ranges {
            if value == 0 || value > max {
                return Err(LoadError::BadOption { option, value, range });
            }
        }
        let device = self.into != Destination::Host;
        if device && self.map.is_some() {
            return Err(LoadError::Unsupported {
                what: "map functions work in host memory",
                remedy: "load into the host, or without one",
            });
        }
        if matches!(self.into, Destination::Bar(_) | Destination::PeerMemory(_)) {
            return Err(LoadError::Unsupported {
                what: "batches land in host or GPU memory",
                remedy: "load into host or gpuN",
            });
        }
        Ok(())
    }

    /// Whether every batch is put together by a worker, out of memory that was read into; those with decoded samples are anyway.
    pub(super) fn assembles(&self) -> bool {
        self.into == Destination::Host && (self.layout != Layout::Ragged || self.map.is_some())
    }

    /// The most samples that may be left out; `None`: none may.
    pub(super) fn bad_max(&self) -> Option<u64> {
        match self.on_bad {
            OnBad::Raise => None,
            OnBad::Skip { max } | OnBad::Quarantine { max } => Some(max),
        }
    }
}

impl std::fmt::Debug for LoaderOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoaderOptions")
            .field("batch", &self.batch)
            .field("layout", &self.layout)
            .field("into", &self.into)
            .field("memory_bytes", &self.memory_bytes)
            .field("map", &self.map.is_some())
            .finish_non_exhaustive()
    }
}
