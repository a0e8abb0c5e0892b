//! The saver: the caller's side of a save, and the thread behind it.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, SyncSender, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use straightway::{Engine, Error, ErrorKind, Memory, Policy, Uri, Verb};

use crate::{
    CHECKSUMS_FILE, CHECKSUMS_LEN_MAX_BYTES, Cancel, Checksums, LayoutOptions, TensorSpec, checksums::CHUNK_LEN_BYTES,
    load::malformed, write_plan::tensor_len,
};

use super::{
    Bytes, Commit, IfExists, Layout, NewTensor, Part, PendingCheckpoint, Rank, Slice,
    capture::{Capture, Captured, Lender, lent_chunks},
    layout::RankLayout,
    part,
    pump::{Earlier, Job, Moved, OWN_SLABS, Outcome, Pump},
    slabs::Slabs,
};

/// Least and default staging memory in bytes.
const STAGING_MIN_BYTES: u64 = 16 << 20;
const STAGING_DEFAULT_BYTES: u64 = 512 << 20;
/// Most threads of a capture, and most by default: a few take the whole bandwidth of memory.
const CAPTURE_THREADS_MAX: usize = 64;
const CAPTURE_THREADS_DEFAULT_MAX: usize = 4;
/// Jobs that wait at the thread: one, since a save waits for the one before.
const JOBS_WAITING: usize = 1;

/// What a save does while another one of the same saver is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WhenBusy {
    /// Waits for it. The stall tells.
    #[default]
    Wait,
    /// `Busy`, at once.
    Refuse,
}

/// When staging memory is mapped and gets its pages. Zeroing fresh memory takes about as long as copying into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Staging {
    /// At the first save that needs it, which holds its caller longer for that. Slabs that came back while it copied are used
    /// again; what is missing to what it lent is made when it is over, so that the next save finds all of it.
    #[default]
    WhenUsed,
    /// All of it, in the background, from [`Saver::new`] on: for tensors that are lent. A save that begins before it is there
    /// takes what there is.
    Ahead,
}

/// How far a save is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// The directory of the checkpoint in the making is there.
    Began,
    /// The caller is released.
    Captured,
    /// So many more bytes are with the device; not durable yet.
    Wrote(u64),
    /// The bytes of a file are durable.
    FileDone(&'a str),
    /// The bytes of all files of this rank are durable.
    Prepared,
    /// Everything is durable; the rename is next.
    Committing,
    /// The checkpoint has its name.
    Committed,
}

/// Hears how far a save is, on whatever thread it is done; it is waited for.
pub type Observer = Arc<dyn Fn(Progress<'_>) + Send + Sync>;

/// How a saver works.
#[derive(Clone)]
pub struct SaverOptions {
    /// Most staging memory in bytes: from 16 MiB, default 512 MiB. What is captured beyond it waits for writes to end, so a
    /// caller that must not stall gives as much as it saves. It is kept until the saver is dropped.
    pub staging_bytes: u64,
    /// When that memory is mapped.
    pub staging: Staging,
    /// Threads that copy what is lent, the caller's among them: 1 to 64, by default as many as this process has CPUs, at most
    /// 4. They live as long as the caller is held. Sources are asked in the order of the files by one thread only.
    pub capture_threads: usize,
    /// What a save does while another one is running.
    pub when_busy: WhenBusy,
    /// Hears how far saves are.
    pub observer: Option<Observer>,
    /// Ends the save that is running early, and every one that comes. What was given away is not read after that, unless
    /// all of it was read before: then the checkpoint may still appear, whole.
    pub cancel: Cancel,
}

impl Default for SaverOptions {
    fn default() -> Self {
        Self {
            staging_bytes: STAGING_DEFAULT_BYTES,
            staging: Staging::default(),
            capture_threads: thread::available_parallelism().map_or(1, usize::from).min(CAPTURE_THREADS_DEFAULT_MAX),
            when_busy: WhenBusy::default(),
            observer: None,
            cancel: Cancel::default(),
        }
    }
}

impl fmt::Debug for SaverOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { staging_bytes, staging, capture_threads, when_busy, observer, cancel } = self;
        let mut text = f.debug_struct("SaverOptions");
        text.field("staging_bytes", staging_bytes).field("staging", staging).field("capture_threads", capture_threads);
        text.field("when_busy", when_busy);
        text.field("observer", &observer.is_some()).field("cancel", cancel).finish()
    }
}

/// Whether files that have not changed since an earlier checkpoint are written again.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Incremental {
    /// Every file is written.
    #[default]
    Off,
    /// A file all of whose chunks have the checksums of the file of that name in the earlier checkpoint becomes a link to
    /// it. `None`, or a directory without checksums of such a save: everything is written, and the next one can compare.
    Since(Option<PathBuf>),
}

/// How to save.
#[derive(Clone, Debug, Default)]
pub struct SaveOptions {
    /// Format, names, shard size, alignment, metadata.
    pub layout: Layout,
    /// Which routes are accepted.
    pub policy: Policy,
    /// What to do if there is a checkpoint of that name.
    pub if_exists: IfExists,
    /// Whether unchanged files are written again.
    pub incremental: Incremental,
}

/// What to save.
#[derive(Default)]
pub struct Contents<'a> {
    /// The tensors.
    pub tensors: Vec<NewTensor<'a>>,
    /// Things that are no tensors, by name, as bytes that the framework made (`torch.save`); for layouts that have those.
    pub objects: Vec<(String, Vec<u8>)>,
}

impl<'a> From<Vec<NewTensor<'a>>> for Contents<'a> {
    fn from(tensors: Vec<NewTensor<'a>>) -> Self {
        Self { tensors, objects: Vec::new() }
    }
}

/// A saved checkpoint.
#[derive(Debug)]
pub struct Saved {
    /// Where it is: a directory, or the file of [`Saver::save_file`].
    pub at: PathBuf,
    /// Names of the files in the directory: those with tensors, then metadata, then checksums.
    pub files: Vec<String>,
    /// Where its bytes went.
    pub moved: Moved,
    /// The memory that was given away, by position in the list of tensors.
    pub memory: Vec<Option<Memory>>,
}

/// What one rank has saved of a checkpoint that is still in the making.
#[derive(Debug)]
pub struct Prepared {
    /// For [`commit`](crate::commit).
    pub part: Part,
    /// Where its bytes went.
    pub moved: Moved,
    /// The memory that was given away, by position in the list of tensors.
    pub memory: Vec<Option<Memory>>,
}

/// A save that failed, with what was given to it.
#[derive(Debug)]
pub struct SaveError {
    /// Why.
    pub error: Error,
    /// The memory that was given away, by position in the list of tensors; `None` also where a device may still read it.
    pub memory: Vec<Option<Memory>>,
}

impl fmt::Display for SaveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for SaveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl From<SaveError> for Error {
    /// Lets the memory go.
    fn from(failed: SaveError) -> Error {
        failed.error
    }
}

/// A save that goes on in the background. Dropped, it goes on all the same and its answer is lost.
#[derive(Debug)]
pub struct Saving<T = Saved> {
    answer: Receiver<Result<T, SaveError>>,
    came: Option<Result<T, SaveError>>,
    stall: Duration,
}

impl<T> Saving<T> {
    /// How long the caller was held: for a save before, for staging memory, for copies.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// Whether it is over, without waiting.
    pub fn poll(&mut self) -> bool {
        if self.came.is_none() {
            match self.answer.try_recv() {
                Ok(answer) => self.came = Some(answer),
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => self.came = Some(Err(poisoned())),
            }
        }
        true
    }

    /// Waits until it is over.
    ///
    /// # Errors
    /// [`SaveError`]: what went wrong, with the memory that was given away. The old checkpoint is whole, the new one is not
    /// there.
    pub fn wait(self) -> Result<T, SaveError> {
        self.came.unwrap_or_else(|| self.answer.recv().unwrap_or_else(|_| Err(poisoned())))
    }
}

/// Saves whole tensors, which are given away, and waits: for programs that save once.
///
/// # Errors
/// As [`Saver::save`] and [`Saving::wait`].
pub fn save(
    engine: &Engine,
    target: &Path,
    tensors: Vec<(TensorSpec, Memory)>,
    options: &SaveOptions,
) -> Result<Saved, SaveError> {
    let owned = |(spec, memory)| NewTensor::new(spec, Bytes::Owned(memory));
    let contents = Contents::from(tensors.into_iter().map(owned).collect::<Vec<_>>());
    match Saver::new(engine, SaverOptions::default()) {
        Ok(saver) => saver.save(target, contents, options)?.wait(),
        Err(error) => Err(Taken::new(contents).failed(error)),
    }
}

/// Saves checkpoints in the background, one at a time, with staging memory that it keeps.
///
/// *Thread*: any; saves of several threads queue. Dropping it waits for the save that is running.
pub struct Saver {
    shared: Arc<Shared>,
    jobs: Option<SyncSender<Box<Task>>>,
    thread: Option<JoinHandle<()>>,
    /// Makes staging memory ahead, until it is waited for.
    ahead: Mutex<Option<JoinHandle<()>>>,
    when_busy: WhenBusy,
}

struct Shared {
    engine: Engine,
    /// Slabs that the caller fills, and slabs of the background.
    slabs: Arc<Slabs>,
    own: Arc<Slabs>,
    capture_threads: usize,
    observer: Option<Observer>,
    cancel: Cancel,
    /// The saver is being dropped.
    over: AtomicBool,
    busy: Mutex<bool>,
    idle: Condvar,
}

/// The right to be the one that saves; ends when it is dropped.
struct Turn(Arc<Shared>);

struct Task {
    job: Job,
    finish: Finish,
    turn: Turn,
}

/// Ends a save, and gives what sends the answer.
type Finish = Box<dyn FnOnce(&Shared, Result<Outcome, Error>, Vec<Option<Memory>>) -> Box<dyn FnOnce()> + Send>;

impl Saver {
    /// A saver that writes by `engine`.
    ///
    /// # Errors
    /// `ApiMisuse` for too little staging memory or a number of threads out of range; `ResourceLimit` if there is no thread.
    pub fn new(engine: &Engine, options: SaverOptions) -> Result<Self, Error> {
        if !(1..=CAPTURE_THREADS_MAX).contains(&options.capture_threads) {
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup)
                .detail(format!("{} capture threads; 1 to {CAPTURE_THREADS_MAX}", options.capture_threads)));
        }
        if options.staging_bytes < STAGING_MIN_BYTES {
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup)
                .detail(format!("{} bytes of staging memory; at least {STAGING_MIN_BYTES}", options.staging_bytes)));
        }
        let count = usize::try_from(options.staging_bytes / CHUNK_LEN_BYTES).unwrap_or(usize::MAX);
        let own = OWN_SLABS.min(count / 2);
        let shared = Arc::new(Shared {
            engine: engine.clone(),
            slabs: Slabs::new(count - own),
            own: Slabs::new(own),
            capture_threads: options.capture_threads,
            observer: options.observer,
            cancel: options.cancel,
            over: AtomicBool::new(false),
            busy: Mutex::new(false),
            idle: Condvar::new(),
        });
        let (jobs, waiting) = mpsc::sync_channel(JOBS_WAITING);
        let thread = Some(spawn("straightway-save", &shared, move |shared| serve(shared, &waiting))?);
        let ahead = match options.staging {
            Staging::WhenUsed => None,
            Staging::Ahead => Some(spawn("straightway-staging", &shared, |shared| {
                // What cannot be had now is asked for again, and told, when a save needs it.
                let _ = shared.slabs.make(&shared.engine, usize::MAX, || shared.over.load(Ordering::Acquire));
            })?),
        };
        Ok(Self { shared, jobs: Some(jobs), thread, ahead: Mutex::new(ahead), when_busy: options.when_busy })
    }

    /// Saves a checkpoint as the directory `target`, whose parent exists. Returns as soon as the tensors that are lent are
    /// captured; the rest is done in the background, and the last step gives the directory its name.
    ///
    /// # Errors
    /// [`SaveError`] for what is known before the caller is released: `ApiMisuse` if a tensor's memory does not have the
    /// length of its shape, `BadFormat` for what the layout cannot hold, `InUse`, `AlreadyExists`, `Busy`, and whatever
    /// fails while tensors are captured.
    pub fn save(&self, target: &Path, contents: Contents<'_>, options: &SaveOptions) -> Result<Saving, SaveError> {
        let taken = Taken::new(contents);
        let pending = match PendingCheckpoint::begin(target, options.if_exists) {
            Ok(pending) => pending,
            Err(error) => return Err(taken.failed(error)),
        };
        self.shared.tell(Progress::Began);
        let directory = pending.directory().to_owned();
        let how = Commit { layout: options.layout.clone(), if_exists: options.if_exists, metadata: None };
        let claimed = part::claim(&pending, Rank::ALONE);
        self.start(taken, claimed.map(|()| directory), Rank::ALONE, options, move |shared, part, moved, memory| {
            let at = pending.target().to_owned();
            match part::commit_telling(&shared.engine, pending, vec![part], &how, &|progress| shared.tell(progress)) {
                Ok(files) => Ok(Saved { at, files, moved, memory }),
                Err(error) => Err(SaveError { error, memory }),
            }
        })
    }

    /// Saves one `.safetensors` file, which takes the place of any file of that name as the last step. Checksums are not kept:
    /// they are for checkpoints in directories of their own.
    ///
    /// # Errors
    /// As [`Saver::save`].
    pub fn save_file(
        &self,
        target: &Path,
        contents: Contents<'_>,
        metadata: BTreeMap<String, String>,
        policy: Policy,
    ) -> Result<Saving, SaveError> {
        let taken = Taken::new(contents);
        let pending = match PendingCheckpoint::begin_file(target) {
            Ok(pending) => pending,
            Err(error) => return Err(taken.failed(error)),
        };
        self.shared.tell(Progress::Began);
        let directory = pending.directory().to_owned();
        let layout = LayoutOptions { metadata, ..LayoutOptions::default() };
        let options = SaveOptions { layout: layout.into(), policy, ..SaveOptions::default() };
        self.start(taken, Ok(directory), Rank::ALONE, &options, move |shared, part, moved, memory| {
            let at = pending.target().to_owned();
            let name = part.files.first().map_or_else(String::new, |file| file.name.clone());
            match pending.put_file_in_place(&name, &|progress| shared.tell(progress)) {
                Ok(()) => Ok(Saved { at, files: Vec::new(), moved, memory }),
                Err(error) => Err(SaveError { error, memory }),
            }
        })
    }

    /// Saves what one rank has of a checkpoint that several write together. `pending` stays with the caller: the rank that
    /// began it passes it to [`commit`](crate::commit) with all parts, the others keep it until then.
    ///
    /// # Errors
    /// As [`Saver::save`].
    pub fn prepare(
        &self,
        pending: &PendingCheckpoint,
        rank: Rank,
        contents: Contents<'_>,
        options: &SaveOptions,
    ) -> Result<Saving<Prepared>, SaveError> {
        let claimed = part::claim(pending, rank).map(|()| pending.directory().to_owned());
        self.start(Taken::new(contents), claimed, rank, options, |_, part, moved, memory| {
            Ok(Prepared { part, moved, memory })
        })
    }

    /// Waits until the staging memory that is made [ahead](Staging::Ahead) is there; returns at once if none is.
    pub fn wait_staging(&self) {
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = ahead {
            drop(thread.join());
        }
    }

    /// Bytes of staging memory that exist now.
    pub fn staging_bytes(&self) -> u64 {
        self.shared.slabs.bytes() + self.shared.own.bytes()
    }

    fn start<T: Send + 'static>(
        &self,
        mut taken: Taken<'_>,
        directory: Result<PathBuf, Error>,
        rank: Rank,
        options: &SaveOptions,
        end: impl FnOnce(&Shared, Part, Moved, Vec<Option<Memory>>) -> Result<T, SaveError> + Send + 'static,
    ) -> Result<Saving<T>, SaveError> {
        let since = now();
        let ready = directory.and_then(|directory| {
            let layout = taken.lay_out(&directory, rank, options)?;
            Ok((directory, layout, self.shared.turn(self.when_busy)?))
        });
        let (directory, layout, turn) = match ready {
            Ok(ready) => ready,
            Err(error) => return Err(taken.failed(error)),
        };
        let (slabs, filled) = mpsc::channel();
        let (answer, answers) = mpsc::sync_channel(1);
        let abort = Arc::new(AtomicBool::new(false));
        let lent: Arc<[bool]> = taken.lenders.iter().map(Option::is_some).collect();
        let capturing = Arc::new(AtomicBool::new(true));
        let job = Job {
            layout: layout.clone(),
            lent: lent.clone(),
            owned: std::mem::take(&mut taken.owned),
            filled,
            capturing: capturing.clone(),
            abort: abort.clone(),
            cancel: self.shared.cancel.clone(),
            directory,
            policy: options.policy,
            earlier: earlier(&self.shared.engine, &options.incremental),
        };
        let specs = std::mem::take(&mut taken.specs);
        let objects: Vec<String> = taken.objects.drain(..).map(|(name, _)| name).collect();
        let finish: Finish = {
            let layout = layout.clone();
            Box::new(move |shared, outcome, memory| {
                // Looked at once more when no write is on its way: what the caller changes from here on is not in the files.
                let outcome = outcome.and_then(|outcome| shared.cancel.check(Verb::Write).map(|()| outcome));
                let ended = match outcome {
                    Ok(outcome) => {
                        shared.tell(Progress::Prepared);
                        let part = Part::new(rank, &layout, &specs, &objects, &outcome);
                        end(shared, part, outcome.moved, memory)
                    }
                    Err(error) => Err(SaveError { error, memory }),
                };
                // Nobody may be waiting for it.
                Box::new(move || drop(answer.send(ended)))
            })
        };
        let task = Box::new(Task { job, finish, turn });
        if let Some(Err(mpsc::SendError(task))) = self.jobs.as_ref().map(|jobs| jobs.send(task)) {
            return Err(SaveError { error: poisoned().error, memory: task.job.owned });
        }
        let Shared { engine, slabs: pool, capture_threads, .. } = &*self.shared;
        let capture = Capture { engine, pool, layout: &layout, lent: &lent, lenders: &taken.lenders, abort: &abort };
        let captured = capture.run(*capture_threads, slabs);
        capturing.store(false, Ordering::Release);
        let stall = since.elapsed();
        let saving = Saving { answer: answers, came: None, stall };
        match captured {
            Ok(Captured::All) => {
                self.shared.tell(Progress::Captured);
                Ok(saving)
            }
            // The background gave up, and says why.
            Ok(Captured::Stopped) => Err(saving.wait().err().unwrap_or_else(poisoned)),
            Err(error) => {
                let memory = saving.wait().err().map_or_else(Vec::new, |failed| failed.memory);
                Err(SaveError { error, memory })
            }
        }
    }
}

impl fmt::Debug for Saver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saver").field("staging_bytes", &self.staging_bytes()).finish_non_exhaustive()
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.jobs = None;
        self.shared.over.store(true, Ordering::Release);
        self.wait_staging();
        if let Some(thread) = self.thread.take() {
            // A panic of it was told to whoever waited for the save.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn tell(&self, progress: Progress<'_>) {
        if let Some(observer) = &self.observer {
            observer(progress);
        }
    }

    /// Waits until nobody else saves.
    fn turn(self: &Arc<Self>, when_busy: WhenBusy) -> Result<Turn, Error> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while *busy {
            if when_busy == WhenBusy::Refuse {
                return Err(Error::new(ErrorKind::Busy, Verb::Write)
                    .detail("the saver has a save running")
                    .remedy("wait for it, or let the saver wait"));
            }
            busy = self.idle.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        *busy = true;
        Ok(Turn(self.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.busy.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.idle.notify_one();
    }
}

fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    run: impl FnOnce(&Shared) + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let behind = shared.clone();
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || run(&behind));
    thread.map_err(|error| Error::new(ErrorKind::ResourceLimit, Verb::Setup).at(name).detail(error.to_string()))
}

/// The thread behind a saver, until the saver is dropped.
fn serve(shared: &Shared, jobs: &Receiver<Box<Task>>) {
    while let Ok(task) = jobs.recv() {
        let Task { job, finish, turn } = *task;
        let lent = lent_chunks(&job.layout, &job.lent);
        let tell = |progress: Progress<'_>| shared.tell(progress);
        let pump = Pump::new(&shared.engine, job, (&shared.slabs, &shared.own), &tell);
        let (outcome, memory) = pump.run();
        let answer = finish(shared, outcome, memory);
        // Whoever has the answer may save again.
        drop(turn);
        answer();
        // The next one will lend as much.
        let over = || {
            let busy = *shared.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy || shared.over.load(Ordering::Acquire)
        };
        let _ = shared.slabs.make(&shared.engine, lent, over);
    }
}

/// What a save was given, taken apart: what is lent stays with the caller, the rest goes to the background.
struct Taken<'a> {
    specs: Vec<(TensorSpec, Option<Slice>)>,
    lenders: Vec<Option<Lender<'a>>>,
    owned: Vec<Option<Memory>>,
    lens: Vec<u64>,
    objects: Vec<(String, Vec<u8>)>,
}

impl<'a> Taken<'a> {
    fn new(Contents { tensors, objects }: Contents<'a>) -> Self {
        let count = tensors.len();
        let (mut specs, mut lens) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let (mut lenders, mut owned) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for NewTensor { spec, slice, bytes } in tensors {
            specs.push((spec, slice));
            lens.push(bytes.len());
            let (lender, memory) = match bytes {
                Bytes::Source(source) => (Some(Lender::Source(source)), None),
                Bytes::Memory(memory) => (Some(Lender::Memory(memory.view())), None),
                Bytes::Owned(memory) => (None, Some(memory)),
            };
            lenders.push(lender);
            owned.push(memory);
        }
        Self { specs, lenders, owned, lens, objects }
    }

    fn failed(self, error: Error) -> SaveError {
        SaveError { error, memory: self.owned }
    }

    fn lay_out(&self, at: &Path, rank: Rank, options: &SaveOptions) -> Result<Arc<RankLayout>, Error> {
        let uri = Uri::from_path(at)?;
        let misuse = |name: &str, detail: String, remedy: &'static str| {
            Err(Error::new(ErrorKind::ApiMisuse, Verb::Write).at(name).detail(detail).remedy(remedy))
        };
        if rank.number >= rank.of {
            return misuse("rank", format!("{} of {}", rank.number, rank.of), "count ranks from 0");
        }
        let layout =
            options.layout.lay_out(rank, &self.specs, &self.objects).map_err(|cause| malformed(&uri, cause))?;
        for ((spec, slice), have) in self.specs.iter().zip(&self.lens) {
            let want = tensor_len(spec).map_err(|cause| malformed(&uri, cause))?;
            if *have != want {
                let detail = format!("{have} bytes of memory for a tensor of {want}");
                return misuse(&spec.name, detail, "pass the whole tensor");
            }
            if slice.as_ref().is_some_and(|slice| !slice.holds(&spec.shape)) {
                let detail = format!("a part of shape {:?} does not lie in {slice:?}", spec.shape);
                return misuse(&spec.name, detail, "give the offset of its first element in each dimension");
            }
        }
        Ok(Arc::new(layout))
    }
}

/// The files of the checkpoint to compare with. One that cannot be read has none: everything is written then, as the
/// numbers of the save tell.
fn earlier(engine: &Engine, incremental: &Incremental) -> Option<Earlier> {
    let directory = match incremental {
        Incremental::Off => return None,
        Incremental::Since(directory) => directory.clone().unwrap_or_default(),
    };
    let text = part::read_small(engine, &directory.join(CHECKSUMS_FILE), CHECKSUMS_LEN_MAX_BYTES);
    let checksums = text.ok().and_then(|text| Checksums::parse(&text).ok());
    let checksums = checksums.filter(|checksums| checksums.chunk_bytes == CHUNK_LEN_BYTES);
    Some(Earlier { directory, files: checksums.unwrap_or_default().files })
}

fn poisoned() -> SaveError {
    let error = Error::new(ErrorKind::Poisoned, Verb::Write).detail("the thread of the saver is gone");
    SaveError { error: error.remedy("make another saver"), memory: Vec::new() }
}

#[expect(clippy::disallowed_methods, reason = "the stall is time that passed for the caller; nothing is decided by it")]
fn now() -> Instant {
    Instant::now()
}
