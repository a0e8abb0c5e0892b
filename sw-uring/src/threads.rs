//! The data plane by a pool of threads that call what blocks: `preadv2` and `pwritev2`, where io_uring is blocked, or whatever
//! else a backend brings as a [`BlockingIo`].
//!
//! ```text
//!   submit ─► staged ─ring─► queue ─► N named threads ─► done ─► poll
//!             (no lock)       └──── one lock for both ────┘
//! ```
//!
//! Invariants: staged, queued, running and done I/Os together never exceed the depth, so no list grows. The lock is held
//! for list operations only, never during a call. It costs two thread switches for each I/O: this is
//! the path that always works, not the fast one.
// UNSAFETY: preadv2 and pwritev2 read and write caller memory by raw address.
#![expect(unsafe_code, reason = "preadv2 and pwritev2")]

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Fault, Reason, Token, Verb,
    seam::{
        Attach, BlockingIo, CallFault, Fence, Io, IoDone, IoKind, MAX_SEGMENTS, Regions, Submit, Transport,
        TransportCaps, Wait, Wake,
    },
};
use sw_mem::ForkMark;

use crate::{fault, handle, sys};

/// Its name in routes and reports.
pub const PREADV2: &str = "preadv2";

/// Threads that a configuration may ask for.
const THREADS_MAX: u32 = 256;

/// Longest that dropping the transport waits for its threads.
const DROP_WAIT: Duration = Duration::from_secs(1);

static LEAKED_THREADS: AtomicU64 = AtomicU64::new(0);

/// Threads of this process that were still inside a call when their transport was dropped.
pub fn leaked_threads() -> u64 {
    LEAKED_THREADS.load(Ordering::Relaxed)
}

/// What a pool is made with.
#[derive(Clone, Debug)]
pub struct ThreadsConfig {
    /// Threads, 1 to 256: as many I/Os run at once. Default 8.
    pub threads: u32,
    /// I/Os taken at most, 1 to [`crate::QUEUE_DEPTH_MAX`]. Default 64.
    pub queue_depth: u32,
    /// Bytes in one I/O at most, a multiple of 4096. Default 1 MiB.
    pub io_bytes_max: u32,
    /// Longest that a completion waits for others when a poll asks for several. Default 100 microseconds, as for io_uring.
    pub gather_us: u32,
}

impl Default for ThreadsConfig {
    fn default() -> Self {
        Self { threads: 8, queue_depth: 64, io_bytes_max: 1 << 20, gather_us: 100 }
    }
}

impl ThreadsConfig {
    /// What a transport of this configuration can do.
    pub fn caps(&self) -> TransportCaps {
        self.caps_of(&SystemCalls.caps())
    }

    /// The same over other calls, which can do so much.
    pub fn caps_of(&self, caps: &TransportCaps) -> TransportCaps {
        TransportCaps {
            queue_depth: self.queue_depth.min(caps.queue_depth),
            io_bytes_max: self.io_bytes_max.min(caps.io_bytes_max),
            ..*caps
        }
    }
}

/// Blocking calls on other threads: those of the kernel on files and block devices, unless it is made over others.
pub struct ThreadsTransport {
    shared: Arc<Shared>,
    caps: TransportCaps,
    threads: Vec<JoinHandle<()>>,
    staged: Vec<Io>,
    /// Taken and not yet given back by `poll` or `fence`.
    outstanding: u32,
    closed: bool,
    config: ThreadsConfig,
    /// A child has none of the threads, and their lock may be held for ever.
    fork: ForkMark,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled for the pool: the queue has work, or it is time to stop.
    work: Condvar,
    /// Signalled for the owner: something is done, or a wake, or a thread has ended.
    news: Condvar,
    /// Somebody asked for the end of a wait, the present one or the next.
    woken: AtomicBool,
    /// The owner waits, or is about to. Whoever wakes sets `woken` first and looks here second; the owner sets this first and looks
    /// there second, under the lock: one of the two sees the other, and a wake of a pool where nobody waits is no system call.
    waiting: AtomicBool,
    calls: Arc<dyn BlockingIo>,
}

struct State {
    queue: VecDeque<Io>,
    done: VecDeque<IoDone>,
    running: u32,
    alive: u32,
    stop: bool,
}

impl ThreadsTransport {
    /// Starts the threads.
    ///
    /// # Errors
    /// `ApiMisuse` for a configuration out of range; `ResourceLimit` if the system gives no thread.
    pub fn new(config: ThreadsConfig) -> Result<Self, Error> {
        let mut made = Self::over(config, Arc::new(SystemCalls))?;
        // Dropping `made` on the way out stops those that run already.
        made.start_threads()?;
        Ok(made)
    }

    /// A pool over other calls, which is made for few to use: its threads start with its first I/O.
    ///
    /// # Errors
    /// `ApiMisuse` for a configuration out of range.
    pub fn over(config: ThreadsConfig, calls: Arc<dyn BlockingIo>) -> Result<Self, Error> {
        let caps = config.caps_of(&calls.caps());
        let misuse = |what: &'static str| Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup).at(caps.name).detail(what));
        if !(1..=THREADS_MAX).contains(&config.threads) {
            return misuse("threads must be 1 to 256");
        }
        if !(1..=crate::QUEUE_DEPTH_MAX).contains(&config.queue_depth) {
            return misuse("queue_depth must be 1 to 16384");
        }
        if config.io_bytes_max == 0 || !config.io_bytes_max.is_multiple_of(4096) {
            return misuse("io_bytes_max must be a multiple of 4096 above zero");
        }
        let depth = sw_mem::index(u64::from(caps.queue_depth));
        let state = State {
            queue: VecDeque::with_capacity(depth),
            done: VecDeque::with_capacity(depth),
            running: 0,
            alive: 0,
            stop: false,
        };
        let shared = Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            news: Condvar::new(),
            woken: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            calls,
        };
        Ok(Self {
            shared: Arc::new(shared),
            caps,
            threads: Vec::new(),
            staged: Vec::with_capacity(depth),
            outstanding: 0,
            closed: false,
            config,
            fork: ForkMark::new(),
        })
    }

    /// Those that do not run yet.
    fn start_threads(&mut self) -> Result<(), Error> {
        for number in self.threads.len()..sw_mem::index(u64::from(self.config.threads)) {
            let thread = self.start(number)?;
            self.threads.push(thread);
        }
        Ok(())
    }

    fn start(&self, number: usize) -> Result<JoinHandle<()>, Error> {
        let shared = self.shared.clone();
        self.shared.lock().alive += 1;
        Builder::new().name(format!("sw-file-{number}")).spawn(move || shared.serve()).map_err(|error| {
            self.shared.lock().alive -= 1;
            Error::new(ErrorKind::ResourceLimit, Verb::Setup)
                .at(self.caps.name)
                .with_code(sys::code(&error))
                .detail("the system gives no more threads")
                .remedy("raise the limit of processes (ulimit -u) or ask for fewer threads")
                .caused_by(error)
        })
    }

    fn check_fork(&self) -> Result<(), Error> {
        if self.fork.is_child() { Err(fault::forked(self.caps.name)) } else { Ok(()) }
    }

    fn take(&mut self, state: &mut State, out: &mut Vec<IoDone>) -> usize {
        let before = out.len();
        while out.len() < out.capacity()
            && let Some(done) = state.done.pop_front()
        {
            out.push(done);
        }
        let taken = out.len() - before;
        self.outstanding = self.outstanding.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
        taken
    }

    /// Ends every I/O that no thread has begun.
    fn cancel_waiting(&mut self, state: &mut State) {
        let cancelled = |io: Io| IoDone { token: io.token, result: Err(fault::fault(libc::ECANCELED)), aside: 0 };
        state.done.extend(state.queue.drain(..).chain(self.staged.drain(..)).map(cancelled));
    }
}

impl Transport for ThreadsTransport {
    fn caps(&self) -> TransportCaps {
        self.caps
    }

    fn attach(&mut self, _hint: Attach<'_>) -> Result<(), Error> {
        // The calls know neither registered files nor pinned memory.
        Ok(())
    }

    fn submit(&mut self, io: &Io) -> Submit {
        if self.fork.is_child() || self.closed || self.outstanding >= self.caps.queue_depth {
            return Submit::Full;
        }
        self.staged.push(*io);
        self.outstanding += 1;
        Submit::Accepted
    }

    fn ring(&mut self) -> Result<(), Error> {
        self.check_fork()?;
        if self.staged.is_empty() {
            return Ok(());
        }
        if self.threads.is_empty() {
            self.start_threads()?;
        }
        let count = self.staged.len();
        self.shared.lock().queue.extend(self.staged.drain(..));
        if count == 1 {
            self.shared.work.notify_one()
        } else {
            self.shared.work.notify_all()
        }
        Ok(())
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        self.check_fork()?;
        let shared = self.shared.clone();
        let Wait::For { timeout, min } = wait else {
            return Ok(self.take(&mut shared.lock(), out));
        };
        self.ring()?;
        let room = out.capacity() - out.len();
        // More than are outstanding will not come.
        let min = sw_mem::index(u64::from(min.min(self.outstanding).max(1))).min(room);
        // One is what the caller needs; the others are gathered for a short time, so that a slow one holds up nobody.
        let few =
            |state: &State, count: usize| state.done.len() < count.min(min) && !shared.woken.load(Ordering::SeqCst);
        shared.waiting.store(true, Ordering::SeqCst);
        let result = shared.news.wait_timeout_while(shared.lock(), timeout, |state| few(state, 1));
        let (state, first) = result.unwrap_or_else(PoisonError::into_inner);
        let gather =
            if first.timed_out() { Duration::ZERO } else { Duration::from_micros(self.config.gather_us.into()) };
        let result = shared.news.wait_timeout_while(state, gather.min(timeout), |state| few(state, min));
        let (mut state, _) = result.unwrap_or_else(PoisonError::into_inner);
        shared.waiting.store(false, Ordering::SeqCst);
        // A swap, not a store: the wake that it takes away, if this wait never saw it, is one whose cause the caller sees next.
        shared.woken.swap(false, Ordering::SeqCst);
        Ok(self.take(&mut state, out))
    }

    fn cancel(&mut self, token: Token) {
        if self.fork.is_child() {
            return;
        }
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let done = IoDone { token, result: Err(fault::fault(libc::ECANCELED)), aside: 0 };
        if let Some(at) = state.queue.iter().position(|io| io.token == token) {
            state.queue.remove(at);
            state.done.push_back(done);
        } else if let Some(at) = self.staged.iter().position(|io| io.token == token) {
            self.staged.remove(at);
            state.done.push_back(done);
        }
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        if self.fork.is_child() {
            return Fence::Quiet;
        }
        let shared = self.shared.clone();
        self.closed = true;
        let mut state = shared.lock();
        self.cancel_waiting(&mut state);
        let result = shared.news.wait_timeout_while(state, timeout, |state| state.running > 0);
        let (mut state, _) = result.unwrap_or_else(PoisonError::into_inner);
        self.take(&mut state, out);
        match state.running {
            0 => Fence::Quiet,
            running => Fence::Busy(running),
        }
    }

    fn explain(&self, _handle: u64, fault: Fault) -> Option<&Error> {
        self.shared.calls.explain(fault)
    }

    fn rests(&self) -> bool {
        true
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.shared.clone()
    }
}

impl Drop for ThreadsTransport {
    fn drop(&mut self) {
        if self.fork.is_child() {
            return;
        }
        let shared = self.shared.clone();
        let mut state = shared.lock();
        self.cancel_waiting(&mut state);
        state.stop = true;
        shared.work.notify_all();
        let result = shared.news.wait_timeout_while(state, DROP_WAIT, |state| state.alive > 0);
        let alive = result.unwrap_or_else(PoisonError::into_inner).0.alive;
        if alive == 0 {
            // They have said goodbye; joining takes no more than the end of the thread itself.
            self.threads.drain(..).for_each(|thread| drop(thread.join()));
        } else {
            LEAKED_THREADS.fetch_add(u64::from(alive), Ordering::Relaxed);
            tracing::error!(threads = alive, "dropped while threads are inside a call; they end when it does");
        }
    }
}

impl Shared {
    /// A panic of ours under this lock is not possible to observe half-done: every section is list operations.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// *Blocking*.
    fn perform(&self, io: &Io) -> Result<u32, Fault> {
        // A thread that unwound would leave its I/O running for ever.
        let done = catch_unwind(AssertUnwindSafe(|| self.calls.perform(io)));
        match done {
            Ok(Ok(moved)) => Ok(moved),
            Ok(Err(CallFault::Errno(errno))) => Err(fault::fault(errno)),
            Ok(Err(CallFault::Known(fault))) => Err(fault),
            Err(_panic) => Err(Fault::new(ErrorKind::Poisoned, 0)),
        }
    }

    /// A thread's life.
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(io) = state.queue.pop_front() {
                state.running += 1;
                drop(state);
                let done = IoDone { token: io.token, result: self.perform(&io), aside: 0 };
                state = self.lock();
                state.running -= 1;
                state.done.push_back(done);
                self.news.notify_all();
            } else if state.stop {
                state.alive -= 1;
                self.news.notify_all();
                return;
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Wake for Shared {
    fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) {
            // Between its look and its sleep the owner holds the lock.
            drop(self.lock());
            self.news.notify_all();
        }
    }
}

/// The kernel's calls on a descriptor.
struct SystemCalls;

impl BlockingIo for SystemCalls {
    fn caps(&self) -> TransportCaps {
        TransportCaps {
            name: PREADV2,
            queue_depth: crate::QUEUE_DEPTH_MAX,
            io_bytes_max: u32::MAX,
            segments_max: 3,
            host: Ok(()),
            device: Err(Reason::NoPeerPages),
            regions: Regions::Any,
        }
    }

    fn perform(&self, io: &Io) -> Result<u32, CallFault> {
        perform(io)
    }
}

fn perform(io: &Io) -> Result<u32, CallFault> {
    let fd = handle::fd(io.handle);
    let mut vector = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; MAX_SEGMENTS];
    let segments = io.segments();
    for (part, segment) in vector.iter_mut().zip(segments) {
        let va = segment.place.host().ok_or(CallFault::Known(Fault::new(ErrorKind::Unsupported, 0)))?;
        part.iov_base = ptr::with_exposed_provenance_mut(sw_mem::index(va.raw()));
        part.iov_len = sw_mem::index(u64::from(segment.len));
    }
    let offset = i64::try_from(io.offset).map_err(|_| CallFault::Errno(libc::EINVAL))?;
    let (parts, count) = (vector.as_ptr(), i32::from(io.segment_count));
    for _ in 0..sys::INTERRUPTS_MAX {
        let done = match io.kind {
            // SAFETY: no pointers.
            IoKind::FlushData => unsafe { libc::fdatasync(fd) as isize },
            // SAFETY: no pointers.
            IoKind::FlushAll => unsafe { libc::fsync(fd) as isize },
            // SAFETY: `parts` is a live array of `count` entries; the memory they name stays valid and unreferenced
            // until the completion or a quiet fence: the contract of `Transport` puts that on the caller.
            IoKind::Read => unsafe { libc::preadv2(fd, parts, count, offset, 0) },
            // SAFETY: as for the read.
            IoKind::Write => unsafe { libc::pwritev2(fd, parts, count, offset, 0) },
        };
        if let Ok(done) = u32::try_from(done) {
            return Ok(done);
        }
        // The C library falls back to preadv by itself where the kernel (before 4.6) has no preadv2.
        match sys::errno() {
            libc::EINTR => {}
            errno => return Err(CallFault::Errno(errno)),
        }
    }
    Err(CallFault::Errno(libc::EINTR))
}

#[cfg(test)]
mod tests {
    use sw_engine::ObjectId;
    use sw_mem::{HostVa, Place, RegionId};

    use super::*;

    const PANICS: i32 = 9999;

    /// Moves nothing: fails with the I/O's offset as an errno, or as a fault where there is none of that number.
    struct Failing;

    impl BlockingIo for Failing {
        fn caps(&self) -> TransportCaps {
            TransportCaps { name: "failing", queue_depth: 4, io_bytes_max: 1 << 16, ..SystemCalls.caps() }
        }

        fn perform(&self, io: &Io) -> Result<u32, CallFault> {
            let number = i32::try_from(io.offset).unwrap_or(i32::MAX);
            assert_ne!(number, PANICS, "on purpose");
            Err(if number < 4096 {
                CallFault::Errno(number)
            } else {
                CallFault::Known(Fault::new(ErrorKind::NotRegistered, number))
            })
        }
    }

    fn end(pool: &mut ThreadsTransport, offset: i32) -> Result<u32, Fault> {
        let segment =
            sw_engine::seam::MemorySegment { place: Place::Host(HostVa::new(4096)), len: 1, region: RegionId(0) };
        let io = Io {
            token: Token::from_raw(1 << 32),
            kind: IoKind::Read,
            object: ObjectId(1),
            handle: 0,
            offset: u64::try_from(offset).unwrap(),
            len: 1,
            segment_count: 1,
            segments: [segment; MAX_SEGMENTS],
        };
        assert_eq!(pool.submit(&io), Submit::Accepted);
        let mut out = Vec::with_capacity(1);
        while out.is_empty() {
            pool.poll(Wait::For { timeout: Duration::from_secs(10), min: 1 }, &mut out).unwrap();
        }
        out.remove(0).result
    }

    #[test]
    fn a_pool_over_other_calls_starts_with_its_first_io_and_gives_their_faults() {
        let config = ThreadsConfig { threads: 2, ..ThreadsConfig::default() };
        let mut pool = ThreadsTransport::over(config, Arc::new(Failing)).unwrap();
        let caps = pool.caps();
        assert_eq!((caps.name, caps.queue_depth, caps.io_bytes_max), ("failing", 4, 1 << 16));
        assert!(pool.threads.is_empty());
        pool.waker().wake();
        assert!(pool.threads.is_empty());
        assert_eq!(end(&mut pool, libc::ENOSPC), Err(fault::fault(libc::ENOSPC)));
        assert_eq!(pool.threads.len(), 2);
        assert_eq!(end(&mut pool, 5027), Err(Fault::new(ErrorKind::NotRegistered, 5027)));
    }

    #[test]
    fn a_call_that_panics_is_a_fault_and_its_thread_serves_on() {
        let config = ThreadsConfig { threads: 1, ..ThreadsConfig::default() };
        let mut pool = ThreadsTransport::over(config, Arc::new(Failing)).unwrap();
        for _ in 0..2 {
            assert_eq!(end(&mut pool, PANICS), Err(Fault::new(ErrorKind::Poisoned, 0)));
        }
        assert_eq!(end(&mut pool, 5027), Err(Fault::new(ErrorKind::NotRegistered, 5027)));
        assert_eq!(pool.fence(Duration::from_secs(10), &mut Vec::with_capacity(1)), Fence::Quiet);
    }

    /// The owner sleeps for long if a wake is lost, and never sees the number that came before it.
    #[expect(clippy::disallowed_methods, reason = "a test of real threads has a real clock")]
    #[test]
    fn no_wake_is_lost() {
        use std::sync::atomic::AtomicU32;
        const WAKES: u32 = 30_000;
        let mut pool = ThreadsTransport::over(ThreadsConfig::default(), Arc::new(Failing)).unwrap();
        let (waker, said, seen) = (pool.waker(), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..=WAKES {
                    said.store(number, Ordering::Relaxed);
                    waker.wake();
                    // Now at once, now when the owner is nearly asleep.
                    (0..number % 257).for_each(|_| std::hint::spin_loop());
                    while number % 3 > 0 && seen.load(Ordering::Relaxed) < number {
                        std::hint::spin_loop();
                    }
                }
            });
            let mut out = Vec::with_capacity(1);
            while said.load(Ordering::Relaxed) < WAKES {
                let started = std::time::Instant::now();
                // Every eighth ends by its time, about when a wake comes.
                let short = seen.load(Ordering::Relaxed).is_multiple_of(8);
                let timeout = if short { Duration::from_micros(2) } else { Duration::from_secs(10) };
                pool.poll(Wait::For { timeout, min: 1 }, &mut out).unwrap();
                let is_late = !short && started.elapsed() > Duration::from_secs(5);
                if is_late {
                    // The other thread ends too.
                    seen.store(u32::MAX, Ordering::Relaxed);
                }
                assert!(!is_late, "a wake was lost");
                seen.store(said.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        });
    }
}
