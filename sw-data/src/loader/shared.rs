//! What the threads of a loader share: queues between the stages, and how all of them end.
//!
//! ```text
//!   planner ─► Inbox ─► reader ─► Work ─► workers ─► Outlet ─► caller
//!                ▲         │
//!                └ openers ◄ Queue
//! ```
//!
//! Every queue is bounded by the batches ahead. A stop closes all of them; whoever waits is woken and leaves.
//!
//! Wake-up protocol of the inbox, whose reader waits in its lane: the reader says that it sleeps, then looks into the inbox,
//! then waits; whoever puts something in does so first and looks for a sleeper second. One of the two sees the other.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use straightway::{Destination, Engine, LaneWaker};

use super::{
    batch::{Batch, Parts},
    clock,
    deal::LoaderState,
    decode::BlockCache,
    error::{BadSample, LoadError, SampleId, Why},
    objects::{OpenOrder, Opened},
    options::{LoaderOptions, Verify},
    plan::{From, Item, Job, Key},
    pool::Pool,
    stats::{BadBook, Counts},
};
use crate::{
    formats::Extent,
    loader::source::AnySamples,
    samples::{ObjectEntry, Place},
};

/// Objects of which is kept what was indexed: about 200 bytes each.
const ENTRIES_MAX: usize = 16 << 10;

/// See the module documentation.
pub(super) struct Shared {
    pub(super) engine: Engine,
    pub(super) options: LoaderOptions,
    pub(super) datasets: Vec<Arc<dyn AnySamples>>,
    pub(super) pool: Arc<Pool>,
    /// Memory of the windows of a block shuffle.
    pub(super) windows: Arc<Pool>,
    pub(super) counts: Counts,
    pub(super) bad: BadBook,
    pub(super) blocks: Arc<BlockCache>,
    pub(super) inbox: Inbox,
    pub(super) opens: Queue<OpenOrder>,
    pub(super) work: Work,
    pub(super) out: Outlet,
    pub(super) watch: Watch,
    /// What was indexed of objects that were asked for.
    entries: Mutex<HashMap<Key, Arc<ObjectEntry>>>,
    stopped: AtomicBool,
    alive: (Mutex<usize>, Condvar),
}

impl Shared {
    pub(super) fn new(
        engine: &Engine,
        datasets: Vec<Arc<dyn AnySamples>>,
        options: LoaderOptions,
        state: LoaderState,
    ) -> Self {
        Self {
            engine: engine.clone(),
            pool: Pool::new(engine.clone(), options.into, options.memory_bytes),
            // One that samples are taken from, and one that is read meanwhile.
            windows: Pool::new(engine.clone(), Destination::Host, options.block_bytes.saturating_mul(2)),
            counts: Counts::default(),
            bad: BadBook::new(options.on_bad, options.bad_max(), options.leave_out.clone()),
            blocks: BlockCache::new(options.block_bytes),
            inbox: Inbox::default(),
            opens: Queue::default(),
            work: Work::default(),
            out: Outlet::new(options.ahead, state),
            watch: Watch::default(),
            entries: Mutex::default(),
            stopped: AtomicBool::new(false),
            alive: (Mutex::new(0), Condvar::new()),
            options,
            datasets,
        }
    }

    /// Bytes that a window of one dataset may take.
    pub(super) fn window_max(&self) -> u64 {
        self.options.block_bytes / (self.datasets.len() as u64).max(1)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Ends all threads; `broken` says that one ended by itself.
    pub(super) fn stop(&self, broken: Option<LoadError>) {
        self.stopped.store(true, Ordering::Release);
        self.out.close(broken);
        self.pool.close();
        self.windows.close();
        self.opens.close();
        self.work.close();
        self.inbox.nudge();
    }

    /// A thread begins.
    pub(super) fn begin_thread(&self) {
        *lock(&self.alive.0) += 1;
    }

    /// A thread is over.
    pub(super) fn end_thread(&self) {
        *lock(&self.alive.0) -= 1;
        self.alive.1.notify_all();
    }

    /// Waits until all threads are over, at most so long.
    pub(super) fn wait_threads(&self, patience: Duration) {
        let alive = lock(&self.alive.0);
        drop(self.alive.1.wait_timeout_while(alive, patience, |alive| *alive > 0));
    }

    /// An object of a dataset, as it was indexed. The last ones are kept: tables may be files.
    pub(super) fn entry(&self, key: Key) -> Result<Arc<ObjectEntry>, Why> {
        if let Some(entry) = lock(&self.entries).get(&key) {
            return Ok(Arc::clone(entry));
        }
        let dataset = usize::try_from(key.dataset).ok().and_then(|number| self.datasets.get(number));
        let has = dataset.filter(|dataset| key.object < dataset.object_count());
        let entry = has.ok_or(Why::NoObject { object: key.object })?.object(key.object).map_err(Why::Table)?;
        let entry = Arc::new(entry);
        let mut entries = lock(&self.entries);
        if entries.len() >= ENTRIES_MAX {
            entries.clear();
        }
        entries.insert(key, Arc::clone(&entry));
        Ok(entry)
    }

    /// A bad sample, with the name of its object.
    pub(super) fn bad_sample(&self, id: SampleId, place: &Place, why: Why) -> BadSample {
        let key = Key { dataset: id.dataset, object: place.object };
        let object = self.entry(key).map_or_else(|_| "no object".into(), |entry| entry.uri.as_str().into());
        BadSample { id, object, extent: place.extent, why }
    }

    /// What a batch that was read needs next.
    pub(super) fn read_done(&self, job: Box<Job>) {
        let known = |item: &Item| item.place.crc32c.is_some();
        let host = self.options.into == Destination::Host;
        let checked = host && self.options.verify == Verify::Known && job.items.iter().any(known);
        if self.options.assembles() || job.shares() || checked {
            self.work.push(job);
        } else {
            self.hand_over(job);
        }
    }

    /// Gives an error out in the place of a batch that no worker has had.
    pub(super) fn fail(&self, job: Box<Job>, error: LoadError) {
        let (seq, line) = (job.seq, job.line);
        // Who waits for blocks of it is told before their turn comes.
        drop(job);
        line.into_iter().for_each(|line| self.work.skip(line));
        self.out.put(seq, Step::Failed(error));
    }

    /// Gives a batch out whose samples lie where they were read to.
    pub(super) fn hand_over(&self, job: Box<Job>) {
        let count = job.items.len();
        let mut parts = Parts {
            seq: job.seq,
            epoch: job.epoch,
            after: job.after,
            ids: Vec::with_capacity(count),
            offsets: Vec::with_capacity(count),
            lengths: Vec::with_capacity(count),
            stride: job.stride,
            used: job.room,
        };
        for item in &job.items {
            if let (From::Memory(at), false) = (&item.from, item.lost) {
                parts.push(item.id, *at, item.place.extent.len);
            }
        }
        self.finish(parts, job.memory, job.bad);
    }

    /// Gives a batch out, or an error in its place.
    pub(super) fn finish(&self, parts: Parts, memory: Option<straightway::Memory>, bad: Vec<BadSample>) {
        let seq = parts.seq;
        match self.bad.judge(bad) {
            Ok(()) => self.out.put(seq, Step::Batch(Box::new(Batch::new(parts, memory, self.pool.clone())))),
            Err(error) => {
                memory.into_iter().for_each(|memory| self.pool.put(memory));
                self.out.put(seq, Step::Failed(error));
            }
        }
    }

    /// Whether the bytes of an extent have the checksum that the table knows.
    pub(super) fn check(&self, stored: Option<u32>, bytes: &[u8]) -> Result<(), Why> {
        let Some(stored) = stored.filter(|_| self.options.verify == Verify::Known) else { return Ok(()) };
        let computed = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
        same_checksum(stored, computed)
    }
}

/// Compares a checksum that the table knows with one of 32 bits in a wider word.
pub(super) fn same_checksum(stored: u32, computed: u64) -> Result<(), Why> {
    let computed = u32::try_from(computed & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    if stored == computed { Ok(()) } else { Err(Why::Checksum { stored, computed }) }
}

impl Parts {
    pub(super) fn push(&mut self, id: SampleId, offset: u64, len: u64) {
        self.ids.push(id);
        self.offsets.push(offset);
        self.lengths.push(len);
    }
}

/// The bytes of an extent in memory of a job.
pub(super) fn bytes_at(memory: &[u8], at: u64, extent: Extent) -> Option<&[u8]> {
    let start = usize::try_from(at).ok()?;
    memory.get(start..start.checked_add(usize::try_from(extent.len).ok()?)?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks guard is whole at every moment at which somebody else's code could panic: never inside.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A queue that ends.
pub(super) struct Queue<T> {
    state: Mutex<(VecDeque<T>, bool)>,
    there: Condvar,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { state: Mutex::new((VecDeque::new(), false)), there: Condvar::new() }
    }
}

impl<T> Queue<T> {
    pub(super) fn push(&self, item: T) {
        lock(&self.state).0.push_back(item);
        self.there.notify_one();
    }

    /// The next item, waited for; `None` once the queue is closed.
    pub(super) fn pop(&self) -> Option<T> {
        let mut state = lock(&self.state);
        loop {
            if state.1 {
                return None;
            }
            if let Some(item) = state.0.pop_front() {
                return Some(item);
            }
            state = self.there.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        let mut state = lock(&self.state);
        state.1 = true;
        let left = std::mem::take(&mut state.0);
        drop(state);
        drop(left);
        self.there.notify_all();
    }
}

/// What the reader is told.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<Mail>,
    there: Condvar,
    asleep: AtomicBool,
    waker: OnceLock<LaneWaker>,
}

#[derive(Default)]
pub(super) struct Mail {
    pub(super) jobs: VecDeque<Box<Job>>,
    pub(super) opened: Vec<(Key, Result<Opened, Why>)>,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.opened.is_empty()
    }
}

impl Inbox {
    pub(super) fn set_waker(&self, waker: LaneWaker) {
        let _ = self.waker.set(waker);
    }

    pub(super) fn job(&self, job: Box<Job>) {
        lock(&self.state).jobs.push_back(job);
        self.nudge();
    }

    pub(super) fn opened(&self, key: Key, result: Result<Opened, Why>) {
        lock(&self.state).opened.push((key, result));
        self.nudge();
    }

    pub(super) fn nudge(&self) {
        // Under the lock, so that a reader between its look and its wait hears it.
        drop(lock(&self.state));
        self.there.notify_all();
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
    }

    /// Takes what is there.
    pub(super) fn take(&self, into: &mut Mail) {
        std::mem::swap(&mut *lock(&self.state), into);
    }

    /// Waits for mail, at most so long: for a reader with nothing in its lane.
    pub(super) fn wait(&self, patience: Duration, stopped: impl Fn() -> bool) {
        let state = lock(&self.state);
        drop(self.there.wait_timeout_while(state, patience, |mail| mail.is_empty() && !stopped()));
    }

    /// The reader is about to wait in its lane; whether there is mail already.
    pub(super) fn falls_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        !lock(&self.state).is_empty()
    }

    pub(super) fn wakes_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }
}

/// Since when the reader is in its lane, and with what: a file system may hold it there (FUSE with direct I/O does, in the
/// system call that starts a read), and a thread that is held cannot tell.
#[derive(Default)]
pub(super) struct Watch(Mutex<Option<(Instant, InFlight)>>);

/// A read in flight, for all of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub(super) key: Key,
    pub(super) extent: Extent,
    pub(super) reads: u32,
}

impl Watch {
    pub(super) fn enter(&self, what: InFlight) {
        *lock(&self.0) = Some((clock::now(), what));
    }

    pub(super) fn leave(&self) {
        *lock(&self.0) = None;
    }

    /// What the reader has been held with for longer than `patience`, and for how long.
    pub(super) fn stuck(&self, patience: Duration) -> Option<(InFlight, Duration)> {
        let (since, what) = (*lock(&self.0))?;
        let held = clock::now().duration_since(since);
        (held > patience).then_some((what, held))
    }
}

/// Batches to be worked on.
#[derive(Default)]
pub(super) struct Work {
    state: Mutex<Waiting>,
    there: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: BTreeMap<u64, Box<Job>>,
    /// Whose place in line is next, and places whose batches never come.
    line: u64,
    gone: BTreeSet<u64>,
    closed: bool,
}

impl Waiting {
    /// The earliest batch that need not wait for its place in line.
    fn next(&mut self) -> Option<Box<Job>> {
        while self.gone.remove(&self.line) {
            self.line += 1;
        }
        let free = |job: &Job| job.line.is_none_or(|line| line == self.line);
        let turn = self.jobs.iter().find(|(_, job)| free(job)).map(|(turn, _)| *turn)?;
        let job = self.jobs.remove(&turn)?;
        self.line += u64::from(job.line.is_some());
        Some(job)
    }
}

impl Work {
    fn push(&self, job: Box<Job>) {
        let mut state = lock(&self.state);
        if !state.closed {
            state.jobs.insert(job.turn, job);
        }
        drop(state);
        self.there.notify_all();
    }

    /// A batch never comes: those behind it in line do not wait for it.
    fn skip(&self, line: u64) {
        lock(&self.state).gone.insert(line);
        self.there.notify_all();
    }

    /// The next batch, waited for; `None` once everything ends.
    pub(super) fn pop(&self) -> Option<Box<Job>> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.next() {
                return Some(job);
            }
            state = self.there.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        drop(jobs);
        self.there.notify_all();
    }
}

/// What the caller gets next.
pub(super) enum Step {
    Batch(Box<Batch>),
    EpochEnd { epoch: u64, after: LoaderState },
    End,
    Failed(LoadError),
}

/// Batches in the order of the caller.
pub(super) struct Outlet {
    ahead: u64,
    state: Mutex<Ready>,
    /// The caller waits for a batch.
    there: Condvar,
    /// The planner waits for the caller.
    room: Condvar,
}

struct Ready {
    steps: BTreeMap<u64, (Step, Instant)>,
    next: u64,
    /// Once everything ends: why.
    closed: Option<Option<LoadError>>,
    state: LoaderState,
}

/// What a caller finds.
pub(super) enum Found {
    Step(Step, Instant),
    Nothing,
    Closed(Option<LoadError>),
}

impl Outlet {
    fn new(ahead: u32, state: LoaderState) -> Self {
        let ready = Ready { steps: BTreeMap::new(), next: 0, closed: None, state };
        Self { ahead: ahead.into(), state: Mutex::new(ready), there: Condvar::new(), room: Condvar::new() }
    }

    /// Waits until batch `seq` may be planned; whether it may.
    pub(super) fn wait_room(&self, seq: u64) -> bool {
        let full = |ready: &mut Ready| ready.closed.is_none() && seq >= ready.next.saturating_add(self.ahead);
        let state = self.room.wait_while(lock(&self.state), full).unwrap_or_else(PoisonError::into_inner);
        state.closed.is_none()
    }

    pub(super) fn put(&self, seq: u64, step: Step) {
        let mut state = lock(&self.state);
        let is_next = seq == state.next;
        let left = match state.closed {
            None => state.steps.insert(seq, (step, clock::now())).map(|(step, _)| step),
            Some(_) => Some(step),
        };
        drop(state);
        // A batch that nobody wants gives its memory back: not under the lock.
        drop(left);
        if is_next {
            self.there.notify_all();
        }
    }

    /// The next step, waited for at most so long.
    pub(super) fn take(&self, patience: Duration) -> Found {
        let waits = |ready: &mut Ready| ready.closed.is_none() && !ready.steps.contains_key(&ready.next);
        let waited = self.there.wait_timeout_while(lock(&self.state), patience, waits);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let next = state.next;
        let Some((step, since)) = state.steps.remove(&next) else {
            return match &state.closed {
                Some(why) => Found::Closed(why.clone()),
                None => Found::Nothing,
            };
        };
        match &step {
            Step::Batch(batch) => state.state = batch.state().clone(),
            Step::EpochEnd { after, .. } => state.state = after.clone(),
            Step::Failed(_) => {}
            Step::End => {
                // It stays the answer.
                state.steps.insert(next, (Step::End, since));
                return Found::Step(step, since);
            }
        }
        state.next += 1;
        drop(state);
        self.room.notify_all();
        // Another caller may wait for what is next now.
        self.there.notify_all();
        Found::Step(step, since)
    }

    pub(super) fn state(&self) -> LoaderState {
        lock(&self.state).state.clone()
    }

    fn close(&self, why: Option<LoadError>) {
        let mut state = lock(&self.state);
        state.closed.get_or_insert(why);
        let steps = std::mem::take(&mut state.steps);
        drop(state);
        drop(steps);
        self.there.notify_all();
        self.room.notify_all();
    }
}
