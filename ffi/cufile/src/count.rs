//! Counters: what the statistics of cuFile and the reports of this library are made from.
//!
//! Routes are always counted; the statistics of cuFile at their level. Nothing here is locked, and a counter never goes back but
//! by a reset.

use std::{
    cell::Cell,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
};

use straightway::{DataPath, Landing, Reason, Times, Verb};

use crate::abi::GPUS_MAX;

/// Transports that routes are counted for, at most: more than there are.
const TRANSPORTS_MAX: usize = 8;
const LANDINGS: [Landing; 3] = [Landing::Dma, Landing::KernelCopy, Landing::Staged];
/// Places of the histograms.
const SIZES: usize = 32;

/// Transports by the order in which they were first seen.
static TRANSPORTS: [OnceLock<&'static str>; TRANSPORTS_MAX] = [const { OnceLock::new() }; TRANSPORTS_MAX];

/// What a call does, in the order of the structure of level 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Read,
    Write,
    HandleRegister,
    HandleDeregister,
    BufRegister,
    BufDeregister,
    Readv,
    Writev,
}

/// Calls of batches, and their entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchWhat {
    Submit,
    Complete,
    SetUp,
    Cancel,
    Destroy,
    /// An entry that was begun.
    Enqueued,
    /// An entry that ended.
    Processed,
}

#[derive(Default)]
pub(crate) struct Pair {
    ok: AtomicU64,
    err: AtomicU64,
}

impl Pair {
    fn add<T, E>(&self, result: &Result<T, E>) {
        if result.is_ok() { &self.ok } else { &self.err }.fetch_add(1, Relaxed);
    }

    pub(crate) fn get(&self) -> (u64, u64) {
        (self.ok.load(Relaxed), self.err.load(Relaxed))
    }

    fn reset(&self) {
        self.ok.store(0, Relaxed);
        self.err.store(0, Relaxed);
    }
}

/// Bytes one way.
#[derive(Default)]
pub(crate) struct Way {
    pub(crate) bytes: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) nanos: AtomicU64,
}

impl Way {
    fn add(&self, bytes: u64, nanos: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.calls.fetch_add(1, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
    }

    fn reset(&self) {
        [&self.bytes, &self.calls, &self.nanos].iter().for_each(|word| word.store(0, Relaxed));
    }
}

/// A GPU of level 3.
#[derive(Default)]
pub(crate) struct Gpu {
    pub(crate) read: Way,
    pub(crate) write: Way,
    /// Reads and writes that a device put in place, and those that were not a device's.
    pub(crate) in_place: [AtomicU64; 2],
    pub(crate) others: [AtomicU64; 2],
    pub(crate) unaligned: [AtomicU64; 2],
    pub(crate) errors: [AtomicU64; 2],
    pub(crate) registered: AtomicU64,
    pub(crate) deregistered: AtomicU64,
    pub(crate) registered_bytes: AtomicU64,
}

/// Bytes by their way.
#[derive(Default)]
pub(crate) struct Routes {
    each: [[Route; LANDINGS.len()]; TRANSPORTS_MAX],
    failed: AtomicU64,
}

#[derive(Default)]
struct Route {
    operations: AtomicU64,
    bytes: AtomicU64,
    bounced: AtomicU64,
    /// A bit for each reason that was told.
    reasons: AtomicU64,
}

/// One row of a report.
pub(crate) struct RouteSum {
    pub(crate) transport: &'static str,
    pub(crate) landing: Landing,
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    pub(crate) bounced: u64,
    pub(crate) reasons: Vec<Reason>,
}

impl Routes {
    fn add(&self, path: &DataPath) {
        let transport =
            TRANSPORTS.iter().position(|slot| *slot.get_or_init(|| path.route.transport) == path.route.transport);
        let landing = LANDINGS.iter().position(|landing| *landing == path.route.landing);
        let reason = Reason::ALL.iter().position(|reason| *reason == path.reason);
        let (Some(transport), Some(landing), Some(reason)) = (transport, landing, reason) else { return };
        let route = &self.each[transport][landing];
        route.operations.fetch_add(1, Relaxed);
        route.bytes.fetch_add(path.bytes.total(), Relaxed);
        route.bounced.fetch_add(path.bounced, Relaxed);
        route.reasons.fetch_or(1 << reason, Relaxed);
    }

    /// The routes that were taken, and the operations that failed.
    pub(crate) fn sums(&self) -> (Vec<RouteSum>, u64) {
        let mut sums = Vec::new();
        for (name, row) in TRANSPORTS.iter().zip(&self.each) {
            let Some(transport) = name.get() else { break };
            for (landing, route) in LANDINGS.iter().zip(row) {
                let operations = route.operations.load(Relaxed);
                if operations == 0 {
                    continue;
                }
                let told = route.reasons.load(Relaxed);
                let reasons = Reason::ALL.iter().enumerate().filter(|(at, _)| told & 1 << at != 0);
                sums.push(RouteSum {
                    transport,
                    landing: *landing,
                    operations,
                    bytes: route.bytes.load(Relaxed),
                    bounced: route.bounced.load(Relaxed),
                    reasons: reasons.map(|(_, reason)| *reason).collect(),
                });
            }
        }
        (sums, self.failed.load(Relaxed))
    }
}

const _: () = assert!(Reason::ALL.len() <= 64, "each reason has a bit");

/// See the module documentation.
#[derive(Default)]
pub(crate) struct Counts {
    level: AtomicU8,
    stopped: AtomicBool,
    pub(crate) calls: [Pair; 8],
    pub(crate) batch: [Pair; 7],
    pub(crate) ways: [Way; 4],
    pub(crate) batch_ways: [Way; 2],
    pub(crate) sizes: [[AtomicU64; SIZES]; 2],
    pub(crate) gpus: [Gpu; GPUS_MAX],
    pub(crate) routes: Routes,
}

/// The way of a thread's last transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastPath {
    pub(crate) handle: u64,
    pub(crate) verb: Verb,
    pub(crate) path: DataPath,
    pub(crate) times: Times,
    pub(crate) failed: bool,
}

thread_local! {
    static LAST: Cell<Option<LastPath>> = const { Cell::new(None) };
}

/// The way of the calling thread's last transfer.
pub(crate) fn last_path() -> Option<LastPath> {
    LAST.try_with(Cell::get).ok().flatten()
}

/// A transfer that ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) what: What,
    pub(crate) handle: u64,
    pub(crate) gpu: Option<u16>,
    /// Bytes; none if it failed.
    pub(crate) moved: Option<u64>,
    pub(crate) path: DataPath,
    pub(crate) times: Times,
    pub(crate) by: By,
}

/// Who asked for a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// A call of its own.
    Call,
    /// A batch.
    Batch,
}

/// Which way bytes go, as places of arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Read = 0,
    Write = 1,
}

impl Counts {
    pub(crate) fn set_level(&self, level: u64) {
        self.level.store(u8::try_from(level).unwrap_or(3), Relaxed);
    }

    pub(crate) fn start(&self) {
        self.stopped.store(false, Relaxed);
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// The level of the statistics.
    pub(crate) fn level(&self) -> u8 {
        self.level.load(Relaxed)
    }

    /// Whether what belongs to a level is counted now.
    fn counts(&self, level: u8) -> bool {
        self.level.load(Relaxed) >= level && !self.stopped.load(Relaxed)
    }

    /// A call that moves no bytes.
    pub(crate) fn call<T, E>(&self, what: What, result: &Result<T, E>) {
        if self.counts(1) {
            self.calls[what as usize].add(result);
        }
    }

    /// Calls or entries of batches.
    pub(crate) fn batch<T, E>(&self, what: BatchWhat, result: &Result<T, E>) {
        if self.counts(1) {
            self.batch[what as usize].add(result);
        }
    }

    /// Device memory was registered.
    pub(crate) fn registered(&self, gpu: u16, len: u64) {
        if let Some(gpu) = self.gpu(gpu) {
            gpu.registered.fetch_add(1, Relaxed);
            gpu.registered_bytes.fetch_add(len, Relaxed);
        }
    }

    /// Device memory was deregistered.
    pub(crate) fn deregistered(&self, gpu: u16, len: u64) {
        if let Some(gpu) = self.gpu(gpu) {
            gpu.deregistered.fetch_add(1, Relaxed);
            let less = |bytes: u64| Some(bytes.saturating_sub(len));
            let _ = gpu.registered_bytes.fetch_update(Relaxed, Relaxed, less);
        }
    }

    fn gpu(&self, gpu: u16) -> Option<&Gpu> {
        self.gpus.get(usize::from(gpu)).filter(|_| self.counts(3))
    }

    /// A transfer that ended; its file has routes of its own.
    pub(crate) fn transfer(&self, ended: &Ended, of_file: &Routes) {
        let Ended { what, handle, gpu, moved, path, times, by } = ended;
        let (side, verb) = match what {
            What::Write | What::Writev => (Side::Write, Verb::Write),
            _ => (Side::Read, Verb::Read),
        };
        let last = LastPath { handle: *handle, verb, path: *path, times: *times, failed: moved.is_none() };
        let _ = LAST.try_with(|slot| slot.set(Some(last)));
        for routes in [&self.routes, of_file] {
            match moved {
                Some(_) => routes.add(path),
                None => _ = routes.failed.fetch_add(1, Relaxed),
            }
        }
        if !self.counts(1) {
            return;
        }
        if *by == By::Call {
            self.calls[*what as usize].add(&moved.ok_or(()));
        }
        let nanos = u64::try_from(times.total().as_nanos()).unwrap_or(u64::MAX);
        if let Some(bytes) = moved {
            let way = match (what, by) {
                (_, By::Batch) => &self.batch_ways[side as usize],
                (What::Readv | What::Writev, By::Call) => &self.ways[2 + side as usize],
                (_, By::Call) => &self.ways[side as usize],
            };
            way.add(*bytes, nanos);
            if self.counts(2) {
                self.sizes[side as usize][size_place(*bytes)].fetch_add(1, Relaxed);
            }
        }
        if let Some(gpu) = gpu.and_then(|gpu| self.gpu(gpu)) {
            gpu.add(side, *moved, path, nanos);
        }
    }

    /// Everything of cuFile's statistics starts from zero; routes stay.
    pub(crate) fn reset(&self) {
        self.calls.iter().chain(&self.batch).for_each(Pair::reset);
        self.ways.iter().chain(&self.batch_ways).for_each(Way::reset);
        self.sizes.iter().flatten().for_each(|count| count.store(0, Relaxed));
        for gpu in &self.gpus {
            gpu.read.reset();
            gpu.write.reset();
            let words = [&gpu.in_place, &gpu.others, &gpu.unaligned, &gpu.errors];
            words.into_iter().flatten().for_each(|word| word.store(0, Relaxed));
        }
    }
}

impl Gpu {
    fn add(&self, side: Side, moved: Option<u64>, path: &DataPath, nanos: u64) {
        let at = side as usize;
        match moved {
            Some(bytes) => {
                [&self.read, &self.write][at].add(bytes, nanos);
                let words = if path.route.landing == Landing::Dma { &self.in_place } else { &self.others };
                words[at].fetch_add(1, Relaxed);
                if matches!(path.reason, Reason::RaggedEnds | Reason::MemoryMisaligned) {
                    self.unaligned[at].fetch_add(1, Relaxed);
                }
            }
            None => _ = self.errors[at].fetch_add(1, Relaxed),
        }
    }
}

/// Place of a size in a histogram: `n` for sizes up to 4 KiB * 2^n.
fn size_place(bytes: u64) -> usize {
    let pages = bytes.div_ceil(4096).max(1);
    let place = u64::BITS - (pages - 1).leading_zeros();
    usize::try_from(place).unwrap_or(SIZES).min(SIZES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_places_by_powers_of_two() {
        for (bytes, place) in [(0, 0), (1, 0), (4096, 0), (4097, 1), (8192, 1), (1 << 20, 8), (u64::MAX, 31)] {
            assert_eq!(size_place(bytes), place, "{bytes}");
        }
    }
}
