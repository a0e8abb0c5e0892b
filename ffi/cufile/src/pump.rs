//! The thread that runs transfers in the order of streams.
//!
//! ```text
//!   cuFileReadAsync ─► gate closed in the stream ─► job ─► the stream has come so far ─► numbers read, transfer started
//!                                                                            end ─► *moved written ─► gate dropped, the stream goes on
//! ```
//!
//! Nobody tells when a stream has come so far, so the first job of each stream is looked at again and again; others are behind it.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread::{Builder, JoinHandle},
};

use straightway::{Pending, StreamGate, Verb};
use straightway_edge::{GATE_PAUSE, first_of_streams};

use crate::{
    code::{self, Failure},
    count::By,
    edge::{contained, negative_word},
    file::File,
    pointer::Kept,
    stream::Late,
    transfer::{Begun, Transfer},
};

/// Jobs at a time: fewer than the gates that one engine has for a GPU (1024), by more than threads that ask at the same time.
const JOBS_MAX: usize = 900;

thread_local! {
    static IS_PUMP: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread runs transfers in the order of streams: functions of a file system in user space are called by it.
pub(crate) fn is_this_thread() -> bool {
    IS_PUMP.try_with(Cell::get).unwrap_or(false)
}

/// Cloning shares it.
#[derive(Clone)]
pub(crate) struct Pump(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    fresh: Vec<Job>,
    /// Those that the thread has, besides.
    held: usize,
    /// Something ended.
    woken: bool,
    stopping: bool,
}

/// A transfer that has its place in a stream.
pub(crate) struct Job {
    file: Arc<File>,
    verb: Verb,
    late: Late,
    moved: Kept<isize>,
    run: Run,
    /// Dropped last: the stream goes on then.
    gate: StreamGate,
    stream: u64,
}

enum Run {
    Waiting,
    Running(Transfer, Pending),
    Over,
}

impl Job {
    pub(crate) fn new(
        file: Arc<File>,
        verb: Verb,
        late: Late,
        moved: Kept<isize>,
        (gate, stream): (StreamGate, u64),
    ) -> Self {
        Self { file, verb, late, moved, run: Run::Waiting, gate, stream }
    }

    /// Moves it on; whether it is over.
    fn step(&mut self, waker: &Waker) -> bool {
        if matches!(self.run, Run::Waiting) {
            match self.gate.is_reached() {
                Ok(false) => return false,
                Ok(true) => self.begin(),
                Err(error) => self.end(Err(error.into())),
            }
        }
        if let Run::Running(_, pending) = &mut self.run
            && let Poll::Ready(done) = Pin::new(pending).poll(&mut Context::from_waker(waker))
            && let Run::Running(transfer, _) = std::mem::replace(&mut self.run, Run::Over)
        {
            let result = if transfer.has_shrunk(&done) {
                transfer.run()
            } else {
                transfer.count(&done, By::Call);
                done.result.map_err(Failure::from)
            };
            self.end(result);
        }
        matches!(self.run, Run::Over)
    }

    fn begin(&mut self) {
        let transfer = Transfer::new(self.file.clone(), self.verb, self.late.numbers());
        match transfer.and_then(|transfer| Ok((transfer.begin()?, transfer))) {
            Ok((Begun::Running(pending), transfer)) => self.run = Run::Running(transfer, pending),
            Ok((Begun::Over(bytes), _)) => self.end(Ok(bytes)),
            Err(failure) => self.end(Err(failure)),
        }
    }

    fn end(&mut self, result: Result<u64, Failure>) {
        self.run = Run::Over;
        self.moved.put(match result {
            Ok(bytes) => isize::try_from(bytes).unwrap_or(isize::MAX),
            Err(failure) => negative_word(&failure),
        });
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.lock().woken = true;
        self.work.notify_all();
    }
}

impl Pump {
    /// # Errors
    /// `NOMEM_ERROR` if there is no thread for it.
    pub(crate) fn start() -> Result<Self, Failure> {
        let shared = Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), thread: Mutex::new(None) });
        let own = shared.clone();
        let thread = Builder::new().name("straightway-cf".into()).spawn(move || {
            IS_PUMP.set(true);
            own.run();
        });
        let thread =
            thread.map_err(|cause| Failure::new(code::NOMEM_ERROR, format!("a thread for streams: {cause}")))?;
        *shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Self(shared))
    }

    /// Waits until there is room for another job: a program that asks for more than its streams carry waits, as it does for
    /// a full queue of the driver's.
    pub(crate) fn wait_for_room(&self) {
        let full = |state: &mut State| !state.stopping && state.fresh.len() + state.held >= JOBS_MAX;
        drop(self.0.work.wait_while(self.0.lock(), full).unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes a job.
    ///
    /// # Errors
    /// `DRIVER_CLOSING`.
    pub(crate) fn add(&self, job: Job) -> Result<(), Failure> {
        let mut state = self.0.lock();
        if state.stopping {
            return Err(Failure::new(code::DRIVER_CLOSING, "the driver is closing"));
        }
        state.fresh.push(job);
        drop(state);
        self.0.work.notify_all();
        Ok(())
    }

    /// Ends everything and the thread. The engine is closed before: what runs has its answer.
    pub(crate) fn stop(self) {
        self.0.lock().stopping = true;
        self.0.work.notify_all();
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It ends by itself; a panic of it was contained by the engine's operations or is the end of streams only.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(self: Arc<Self>) {
        let waker = Waker::from(self.clone());
        let mut jobs: Vec<Job> = Vec::new();
        loop {
            let stopping = self.next(&mut jobs);
            let mut streams: Vec<u64> = Vec::new();
            jobs.retain_mut(|job| {
                // The others of a stream are behind its first one: until that is over, the stream does not come to them.
                if matches!(job.run, Run::Waiting) && streams.contains(&job.stream) {
                    return true;
                }
                // A panic ends one transfer, not the thread that other streams wait for.
                let over = contained(|| Ok(job.step(&waker)));
                let stays = !over.unwrap_or_else(|failure| {
                    job.end(Err(failure));
                    true
                });
                if stays {
                    streams.push(job.stream);
                }
                stays
            });
            if stopping {
                for mut job in jobs.drain(..) {
                    job.end(Err(Failure::new(code::DRIVER_CLOSING, "the driver was closed")));
                }
                return;
            }
        }
    }

    /// Waits for something to do and takes what is new; whether it is time to stop.
    fn next(&self, jobs: &mut Vec<Job>) -> bool {
        let mut state = self.lock();
        state.held = jobs.len();
        self.work.notify_all();
        if state.fresh.is_empty() && !state.woken && !state.stopping {
            let idle = |state: &mut State| state.fresh.is_empty() && !state.woken && !state.stopping;
            state = if first_of_streams(jobs, |job| job.stream).any(|job| matches!(job.run, Run::Waiting)) {
                self.work.wait_timeout(state, GATE_PAUSE).unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.work.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner)
            };
        }
        state.woken = false;
        jobs.append(&mut state.fresh);
        // While they are looked at they count: a transfer of a file system in user space may take long.
        state.held = jobs.len();
        state.stopping
    }
}
