//! What a loader counts: where the time goes, which way bytes take, what was left out.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use straightway::DataPath;

use super::{
    clock,
    error::{BadSample, LoadError, SampleId},
    options::OnBad,
    pool::MemoryUse,
};

/// Reads that went the same way for the same reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The way, with its bytes summed.
    pub path: DataPath,
    /// How many reads.
    pub reads: u64,
}

/// Why a sample of a block shuffle is read with its batch, and not with the window that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Apart {
    /// Batches land in device memory, where nothing is put together.
    Device,
    /// The window does not fit into its share of [`LoaderOptions::block_bytes`](super::LoaderOptions::block_bytes).
    TooLarge {
        /// Bytes of memory that it needs, at least: the most of all such windows.
        need_bytes: u64,
        /// Bytes that it may have.
        max_bytes: u64,
    },
    /// The window's samples are not all among so many next ones of this rank.
    TooLong {
        /// How many.
        samples: u64,
    },
    /// A batch has samples of more windows of a dataset than may be held at once, or takes more of a dataset than this rank gets
    /// of a window. What lies together in such a batch is read together.
    Spans,
    /// Most samples that this rank takes out of the window are not so near others that they are read in one piece: reading them
    /// to their batches is as fast, and copies nothing.
    Alone,
    /// The table did not tell where the window's samples are.
    Unknown,
}

impl std::fmt::Display for Apart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device => write!(f, "batches land in device memory: windows are read into the host"),
            Self::TooLarge { need_bytes, max_bytes } => write!(
                f,
                "a window needs {need_bytes} bytes or more and may have {max_bytes}; make windows smaller or raise block_bytes"
            ),
            Self::TooLong { samples } => write!(f, "a window ends more than {samples} samples ahead; make it smaller"),
            Self::Spans => write!(
                f,
                "a batch has more samples than a window, or of more windows than are held at once; make windows larger"
            ),
            Self::Alone => {
                write!(f, "most samples of the window are not near enough to others to be read in one piece")
            }
            Self::Unknown => write!(f, "the table did not tell where the window's samples are"),
        }
    }
}

/// What a loader did so far. Times are sums over batches, which overlap: they say which stage the others wait for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LoaderStats {
    /// Batches that the caller took.
    pub batches: u64,
    /// Samples in them.
    pub samples: u64,
    /// Bytes of those samples, as the caller got them.
    pub sample_bytes: u64,
    /// Reads that ended well.
    pub reads: u64,
    /// Bytes that were read, whole blocks and gaps included.
    pub read_bytes: u64,
    /// Bytes that a worker copied to put batches together.
    pub assembled_bytes: u64,
    /// Blocks decoded.
    pub blocks: u64,
    /// Windows of a block shuffle that were read as a whole, the reads that failed aside.
    pub windows: u64,
    /// Samples that batches take out of them, batches that are planned included.
    pub window_samples: u64,
    /// Samples of a block shuffle that are read with their batches instead, batches that are planned included: why, and how many.
    /// Samples of decoded blocks are in neither of the two.
    pub apart: Vec<(Apart, u64)>,
    /// Objects opened.
    pub opens: u64,
    /// Samples that could not be had and were left out.
    pub left_out: u64,
    /// Samples that were not read because they are on the quarantine list.
    pub quarantined: u64,
    /// Batches read again because a device kept their memory.
    pub read_again: u64,
    /// Asking the table and planning reads.
    pub planning: Duration,
    /// Planning waited for memory or for room ahead: the caller, or the budget, is the bound.
    pub planning_held: Duration,
    /// From the first read of a batch to its last: storage.
    pub reading: Duration,
    /// Checking, decoding, mapping and copying.
    pub working: Duration,
    /// Batches lay ready until the caller took them.
    pub ready: Duration,
    /// The caller waited for a batch.
    pub starved: Duration,
    /// Memory of batches and windows.
    pub memory: MemoryUse,
    /// The ways that bytes took.
    pub ways: Vec<Way>,
}

/// A counter of nanoseconds or of things.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Adds the time since `start`.
    pub(super) fn since(&self, start: Instant) {
        self.add(u64::try_from(clock::now().duration_since(start).as_nanos()).unwrap_or(u64::MAX));
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn time(&self) -> Duration {
        Duration::from_nanos(self.get())
    }
}

/// The counters while the loader runs.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) batches: Count,
    pub(super) samples: Count,
    pub(super) sample_bytes: Count,
    pub(super) reads: Count,
    pub(super) read_bytes: Count,
    pub(super) assembled_bytes: Count,
    pub(super) blocks: Count,
    pub(super) windows: Count,
    pub(super) window_samples: Count,
    pub(super) opens: Count,
    pub(super) quarantined: Count,
    pub(super) read_again: Count,
    pub(super) planning: Count,
    pub(super) planning_held: Count,
    pub(super) reading: Count,
    pub(super) working: Count,
    pub(super) ready: Count,
    pub(super) starved: Count,
    ways: Mutex<Vec<Way>>,
    apart: Mutex<Vec<(Apart, u64)>>,
}

impl Counts {
    /// A read ended well.
    pub(super) fn read(&self, path: DataPath, bytes: u64) {
        self.reads.add(1);
        self.read_bytes.add(bytes);
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |way: &&mut Way| way.path.route == path.route && way.path.reason == path.reason;
        match ways.iter_mut().find(same) {
            Some(way) => {
                way.path.bytes += path.bytes;
                way.path.bounced += path.bounced;
                way.path.cpu_copied += path.cpu_copied;
                way.reads += 1;
            }
            None => ways.push(Way { path, reads: 1 }),
        }
    }

    /// A sample of a block shuffle is read with its batch.
    pub(super) fn apart(&self, why: Apart) {
        let mut told = self.apart.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &Apart| std::mem::discriminant(known) == std::mem::discriminant(&why);
        match told.iter_mut().find(|(known, _)| same(known)) {
            Some((known, samples)) => {
                if let (Apart::TooLarge { need_bytes, .. }, Apart::TooLarge { need_bytes: more, .. }) = (known, why) {
                    *need_bytes = more.max(*need_bytes);
                }
                *samples += 1;
            }
            None => told.push((why, 1)),
        }
    }

    pub(super) fn told(&self, left_out: u64, memory: MemoryUse) -> LoaderStats {
        LoaderStats {
            batches: self.batches.get(),
            samples: self.samples.get(),
            sample_bytes: self.sample_bytes.get(),
            reads: self.reads.get(),
            read_bytes: self.read_bytes.get(),
            assembled_bytes: self.assembled_bytes.get(),
            blocks: self.blocks.get(),
            windows: self.windows.get(),
            window_samples: self.window_samples.get(),
            apart: self.apart.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            opens: self.opens.get(),
            left_out,
            quarantined: self.quarantined.get(),
            read_again: self.read_again.get(),
            planning: self.planning.time(),
            planning_held: self.planning_held.time(),
            reading: self.reading.time(),
            working: self.working.time(),
            ready: self.ready.time(),
            starved: self.starved.time(),
            memory,
            ways: self.ways.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Bad samples: how many, and which are not to be read again.
pub(super) struct BadBook {
    policy: OnBad,
    max: Option<u64>,
    state: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    left_out: u64,
    /// Not to be read: what the caller named, and what was found bad.
    avoided: BTreeSet<SampleId>,
    found: Vec<BadSample>,
}

impl BadBook {
    pub(super) fn new(policy: OnBad, max: Option<u64>, leave_out: BTreeSet<SampleId>) -> Self {
        Self { policy, max, state: Mutex::new(Book { avoided: leave_out, ..Book::default() }) }
    }

    /// Takes those out that are not to be read; tells how many.
    pub(super) fn sift<T>(&self, samples: &mut Vec<T>, id: impl Fn(&T) -> SampleId) -> u64 {
        let book = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = samples.len();
        if !book.avoided.is_empty() {
            samples.retain(|sample| !book.avoided.contains(&id(sample)));
        }
        (before - samples.len()) as u64
    }

    /// What becomes of a batch with these bad samples.
    ///
    /// # Errors
    /// By the policy: the first of them, or too many.
    pub(super) fn judge(&self, bad: Vec<BadSample>) -> Result<(), LoadError> {
        let Some(max) = self.max else {
            return match bad.into_iter().next() {
                Some(first) => Err(LoadError::Sample(Box::new(first))),
                None => Ok(()),
            };
        };
        let mut book = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for sample in bad {
            book.left_out += 1;
            if book.left_out > max {
                return Err(LoadError::TooManyBad { bad: book.left_out, max, last: Box::new(sample) });
            }
            if matches!(self.policy, OnBad::Quarantine { .. }) && book.avoided.insert(sample.id) {
                book.found.push(sample);
            }
        }
        Ok(())
    }

    pub(super) fn left_out(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).left_out
    }

    pub(super) fn found(&self) -> Vec<BadSample> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).found.clone()
    }
}
