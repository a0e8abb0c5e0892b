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
    /// Memory of batches.
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

    pub(super) fn told(&self, left_out: u64, memory: MemoryUse) -> LoaderStats {
        LoaderStats {
            batches: self.batches.get(),
            samples: self.samples.get(),
            sample_bytes: self.sample_bytes.get(),
            reads: self.reads.get(),
            read_bytes: self.read_bytes.get(),
            assembled_bytes: self.assembled_bytes.get(),
            blocks: self.blocks.get(),
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
    pub(super) fn sift(&self, samples: &mut Vec<SampleId>) -> u64 {
        let book = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = samples.len();
        if !book.avoided.is_empty() {
            samples.retain(|sample| !book.avoided.contains(sample));
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
