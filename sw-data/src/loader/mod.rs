//! The loader: samples in order, read ahead by threads, as batches in memory.
//!
//! ```text
//!            planner                    reader                          workers                     caller
//!   Cursor ─► samples ─► places ─► runs ─► lane ─► [opened by openers] ─► [check, decode, map, copy] ─► next_batch()
//!      ▲                 (table)  (joined, placed)                                                         │
//!      └──────────────────────────────── LoaderState: what the caller has taken ◄──────────────────────────┘
//! ```
//!
//! - Threads, not processes. Memory is bounded by [`LoaderOptions::memory_bytes`] and used again from batch to batch.
//! - Batches come in the order of [`order`](crate::order), whatever finishes first.
//! - A full stage makes those before it wait. What stages wait for is counted: [`LoaderStats`].
//! - In the layout [`Layout::Ragged`] without map function nothing that lies in files as it is is copied by us: a device, or the kernel,
//!   writes each sample where the caller finds it. [`LoaderStats::ways`] tells which way bytes took. A block shuffle is the exception:
//!   its windows are read as a whole and samples are copied out of them, so that reads are large ([`LoaderStats::windows`]).
//! - Dropping a [`Loader`] at any point ends its threads within seconds; batches that the caller has stay whole.
//!
//! ```no_run
//! use std::sync::Arc;
//! use sw_data::{loader::{Dataset, Loader, LoaderOptions}, table::Table};
//!
//! # fn load(table: Table) -> Result<(), Box<dyn std::error::Error>> {
//! let engine = straightway::Engine::builder().build()?;
//! let loader = Loader::new(&engine, vec![Dataset::new(Arc::new(table))], LoaderOptions::default(), None)?;
//! while let Some(batch) = loader.next_batch()? {
//!     println!("{} samples, the first of {:?} bytes", batch.len(), batch.sample(0).map(<[u8]>::len));
//! }
//! # Ok(())
//! # }
//! ```

mod batch;
mod clock;
mod deal;
mod decode;
mod error;
mod objects;
mod options;
mod plan;
mod planner;
mod pool;
mod reader;
mod shared;
mod source;
mod stats;
mod window;
mod worker;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use straightway::Engine;

pub use batch::Batch;
pub use deal::LoaderState;
pub(crate) use decode::{BlockCache, BlockSlot, Promise};
pub use error::{BadSample, Cause, LoadError, SampleId, Why};
pub use options::{LastBatch, Layout, LoaderOptions, MapFn, OnBad, PadTo, SampleRef, Verify};
pub(crate) use plan::Key;
pub use pool::MemoryUse;
pub use source::Dataset;
pub use stats::{Apart, LoaderStats, Way};

use deal::Dealer;
use reader::Reader;
use shared::{Found, Shared, Step};

/// Loads samples of one dataset, or of several by weight. *Thread*: any, several at once: each batch goes to one of them.
pub struct Loader {
    shared: Arc<Shared>,
    process: u32,
}

/// How often a caller who waits looks whether the reader is held.
const LOOK: Duration = Duration::from_millis(250);
/// Time beyond the deadline of reads after which the reader is taken to be held: its own waits end within 100 ms.
const HELD_MORE: Duration = Duration::from_secs(1);

/// What comes next.
#[derive(Debug)]
pub enum Next {
    /// A batch.
    Batch(Box<Batch>),
    /// That epoch is over; the next one is being read already.
    EpochEnd(u64),
    /// Everything is over, and stays so.
    End,
    /// Nothing within the time.
    NotYet,
}

impl Loader {
    /// Longest that dropping it waits for its threads. One that is held up by a map function, or by a file system that does
    /// not answer, ends by itself later.
    pub const STOP_WAIT: Duration = Duration::from_secs(5);

    /// Begins to load `datasets` from `state` on, or from the beginning. The order goes through several datasets as a mixture
    /// by weight, which has no end.
    ///
    /// # Errors
    /// Options out of their ranges; a state of another order; a lane or thread that cannot be had. No thread is left then.
    pub fn new(
        engine: &Engine,
        datasets: Vec<Dataset>,
        options: LoaderOptions,
        state: Option<LoaderState>,
    ) -> Result<Self, LoadError> {
        options.check()?;
        let lens: Vec<(u64, u32)> = datasets.iter().map(|dataset| (dataset.samples.len(), dataset.weight)).collect();
        let dealer = Dealer::new(&lens, &options, state)?;
        let lane = engine.lane(options.into).map_err(|error| LoadError::Engine(Arc::new(error)))?;
        let datasets = datasets.into_iter().map(|dataset| dataset.samples).collect();
        let (openers, workers) = (options.openers, options.workers);
        let shared = Arc::new(Shared::new(engine, datasets, options, dealer.state()));
        let loader = Self { shared: shared.clone(), process: std::process::id() };
        let mut reader = Reader::new(shared.clone(), lane);
        loader.spawn("reader", move |_| reader.run())?;
        for _ in 0..openers {
            loader.spawn("opener", run_opener)?;
        }
        for _ in 0..workers {
            loader.spawn("worker", worker::run)?;
        }
        loader.spawn("planner", move |shared| planner::run(shared, dealer))?;
        Ok(loader)
    }

    fn spawn(&self, stage: &'static str, run: impl FnOnce(&Shared) + Send + 'static) -> Result<(), LoadError> {
        let shared = self.shared.clone();
        shared.begin_thread();
        let body = move || {
            if catch_unwind(AssertUnwindSafe(|| run(&shared))).is_err() {
                shared.stop(Some(LoadError::Broken { stage }));
            }
            shared.end_thread();
        };
        match std::thread::Builder::new().name(format!("sw-load {stage}")).spawn(body) {
            // Nobody joins it: a thread whose ring has a read that never ends is held in its last system call, long after it
            // did its last here. It is counted instead.
            Ok(_) => Ok(()),
            Err(error) => {
                self.shared.end_thread();
                Err(LoadError::NoThread { errno: error.raw_os_error().unwrap_or(0) })
            }
        }
    }

    /// The next batch; `None` at the end of each epoch, after which the next call gives the next epoch's first, and for ever
    /// once all epochs are over ([`Loader::next_within`] tells the two apart). *Blocking*.
    ///
    /// # Errors
    /// [`LoadError`] in place of a batch; the next call gives the batch after it.
    pub fn next_batch(&self) -> Result<Option<Batch>, LoadError> {
        loop {
            match self.next_within(Duration::from_secs(3600))? {
                Next::Batch(batch) => return Ok(Some(*batch)),
                Next::EpochEnd(_) | Next::End => return Ok(None),
                Next::NotYet => {}
            }
        }
    }

    /// What comes next, waited for at most so long. *Blocking*.
    ///
    /// # Errors
    /// As [`Loader::next_batch`].
    pub fn next_within(&self, patience: Duration) -> Result<Next, LoadError> {
        if self.is_forked() {
            return Err(LoadError::Forked);
        }
        let start = clock::now();
        let found = loop {
            let left = patience.saturating_sub(clock::now().duration_since(start));
            let found = self.shared.out.take(left.min(LOOK));
            if !matches!(found, Found::Nothing) || left <= LOOK {
                break found;
            }
            self.expect_answers()?;
        };
        self.shared.counts.starved.since(start);
        match found {
            Found::Nothing => {
                self.expect_answers()?;
                Ok(Next::NotYet)
            }
            Found::Closed(Some(why)) => Err(why),
            Found::Closed(None) | Found::Step(Step::End, _) => Ok(Next::End),
            Found::Step(Step::EpochEnd { epoch, .. }, _) => Ok(Next::EpochEnd(epoch)),
            Found::Step(Step::Failed(error), _) => Err(error),
            Found::Step(Step::Batch(batch), since) => Ok(Next::Batch(self.taken(batch, since))),
        }
    }

    /// An error if the reader is held in the kernel for longer than any read may take: its own deadlines cannot end that.
    fn expect_answers(&self) -> Result<(), LoadError> {
        let Some((held, after)) = self.shared.watch.stuck(self.shared.options.deadline + HELD_MORE) else {
            return Ok(());
        };
        let object = self.shared.entry(held.key).map_or(String::new(), |entry| entry.uri.clone());
        Err(LoadError::Stuck { object: object.as_str().into(), extent: held.extent, reads: held.reads, after })
    }

    fn taken(&self, batch: Box<Batch>, since: Instant) -> Box<Batch> {
        let counts = &self.shared.counts;
        counts.ready.since(since);
        counts.batches.add(1);
        counts.samples.add(batch.len() as u64);
        counts.sample_bytes.add(batch.lengths().iter().sum());
        // Its memory is the caller's until it is dropped.
        self.shared.pool.forget(batch.capacity());
        batch
    }

    /// Where the caller is: after the last batch that it took, not where the reading is.
    pub fn state(&self) -> LoaderState {
        self.shared.out.state()
    }

    /// What was done so far.
    pub fn stats(&self) -> LoaderStats {
        let memory = self.shared.pool.used().and(self.shared.windows.used());
        self.shared.counts.told(self.shared.bad.left_out(), memory)
    }

    /// Samples that were put on the quarantine list, with why: [`OnBad::Quarantine`].
    pub fn quarantined(&self) -> Vec<BadSample> {
        self.shared.bad.found()
    }

    /// Whether this is a child of the process that made it: its threads are not here, and its locks may be held for ever.
    fn is_forked(&self) -> bool {
        std::process::id() != self.process
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Drop for Loader {
    /// *Blocking*: at most [`Loader::STOP_WAIT`].
    fn drop(&mut self) {
        if self.is_forked() {
            return;
        }
        self.shared.stop(None);
        self.shared.wait_threads(Self::STOP_WAIT);
    }
}

/// The thread that opens objects.
fn run_opener(shared: &Shared) {
    while let Some(order) = shared.opens.pop() {
        // Closing may take as long as opening.
        drop(order.closing);
        let options = &shared.options;
        let entry = shared.entry(order.key);
        let result = entry.and_then(|entry| objects::open(&shared.engine, &entry, options.into, &options.policy));
        shared.counts.opens.add(1);
        shared.inbox.opened(order.key, result);
    }
}
