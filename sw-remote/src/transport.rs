//! The data plane: each I/O is a task on the runtime's threads, which lands bytes and tells the end.
//!
//! ```text
//!   submit ─► staged ─ring─► one task each ── Remote::read ─► landing ─┐
//!                                                                      ▼ (dropped or done: exactly one end)
//!   poll ◄──────────────────────────────────────────────────────────── ended
//! ```
//!
//! A task lands bytes between two waits and never after its end was told: the end is told by the last thing of a task that goes, be it
//! done, cancelled or unwound.

use std::{
    collections::{HashMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use sw_engine::{
    Error, ErrorKind, Fault, Reason, Retry, Token, TransportName, Verb,
    seam::{
        Attach, Fence, Io, IoDone, IoKind, MAX_SEGMENTS, Regions, Submit, Tee, Transport, TransportCaps, Wait, Wake,
    },
};
use tokio::task::AbortHandle;

use crate::{HTTP, copies::Copies, directory::Directory, land::Landing, remote::Remote, runtime::Runtime};

/// I/Os in flight in one transport, at most.
pub const QUEUE_DEPTH_MAX: u32 = 1024;
/// Bytes in one I/O, at most.
pub const IO_BYTES_MAX: u32 = 64 << 20;
/// Errors of which the text is kept for [`Transport::explain`].
const TOLD_MAX: usize = 16;

/// What a transport is made with.
#[derive(Clone, Copy, Debug)]
pub struct RemoteConfig {
    /// The name in routes and reports of the systems that it serves. Default [`HTTP`].
    pub name: TransportName,
    /// I/Os in flight, 1 to 1,024. Default 64.
    pub queue_depth: u32,
    /// Bytes in one I/O, a multiple of 4096, at most 64 MiB. Each is a request of its own. Default 8 MiB.
    pub io_bytes_max: u32,
}

impl Default for RemoteConfig {
    fn default() -> Self {
        Self { name: HTTP, queue_depth: 64, io_bytes_max: 8 << 20 }
    }
}

impl RemoteConfig {
    /// What a transport of this configuration can do.
    pub fn caps(&self) -> TransportCaps {
        TransportCaps {
            name: self.name,
            queue_depth: self.queue_depth.clamp(1, QUEUE_DEPTH_MAX),
            io_bytes_max: self.io_bytes_max.clamp(4096, IO_BYTES_MAX) & !4095,
            segments_max: 3,
            host: Ok(()),
            device: Err(Reason::MemoryUnreachable),
            regions: Regions::Any,
        }
    }
}

const _: () = assert!(MAX_SEGMENTS == 3);

/// Requests on remote objects.
pub struct RemoteTransport {
    shared: Arc<Shared>,
    caps: TransportCaps,
    runtime: Runtime,
    directory: Directory,
    staged: Vec<Io>,
    /// Taken and not yet given back.
    outstanding: u32,
    closed: bool,
    /// What stands behind the last faults.
    told: VecDeque<(u64, Fault, Error)>,
}

/// What tasks and the owner share.
struct Shared {
    state: Mutex<State>,
    /// Signalled for the owner: something ended, or a wake.
    news: Condvar,
    woken: AtomicBool,
    /// The owner waits, or is about to: see `wake`.
    waiting: AtomicBool,
}

#[derive(Default)]
struct State {
    running: HashMap<Token, AbortHandle>,
    ended: VecDeque<Ended>,
}

struct Ended {
    token: Token,
    handle: u64,
    result: Result<u32, Error>,
}

impl Shared {
    /// Every section is list operations: a panic under it leaves nothing half-done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, ended: Ended) {
        let mut state = self.lock();
        state.running.remove(&ended.token);
        state.ended.push_back(ended);
        drop(state);
        if self.waiting.load(Ordering::SeqCst) {
            self.news.notify_all();
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

/// Tells the end of a task when the task goes.
struct End {
    shared: Arc<Shared>,
    token: Token,
    handle: u64,
    result: Option<Result<u32, Error>>,
}

impl End {
    /// Tells what came of it.
    fn tell(mut self, result: Result<u32, Error>) {
        self.result = Some(result);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let cancelled =
            || Err(Error::new(ErrorKind::Cancelled, Verb::Read).at(HTTP).detail("the request was cancelled"));
        let result = self.result.take().unwrap_or_else(cancelled);
        self.shared.end(Ended { token: self.token, handle: self.handle, result });
    }
}

/// Does one I/O from its beginning to its end.
async fn perform(remote: Option<Arc<dyn Remote>>, tee: Option<Arc<dyn Tee>>, io: &Io) -> Result<u32, Error> {
    let verb = match io.kind {
        IoKind::Read => Verb::Read,
        IoKind::Write => Verb::Write,
        IoKind::FlushData | IoKind::FlushAll => Verb::Flush,
    };
    let remote = remote.ok_or_else(|| Error::new(ErrorKind::Closed, verb).at(HTTP).detail("the object is closed"))?;
    let landing = Landing::of(io);
    let mut landing =
        landing.ok_or_else(|| Error::new(ErrorKind::NotRegistered, verb).at(HTTP).detail("memory of a device"))?;
    match io.kind {
        IoKind::Read => {
            let range = io.offset..io.offset.saturating_add(io.len.into());
            landing.copies = tee.map(|tee| Copies::new(tee, range));
            let read = remote.read(io.offset, &mut landing).await;
            // Of one that ended early it is what came before.
            landing.copies.iter_mut().for_each(Copies::give);
            read.map(|()| landing.done())
        }
        IoKind::Write => remote.write(io.offset, &mut landing).await.map(|()| io.len),
        IoKind::FlushData | IoKind::FlushAll => remote.flush(io.kind).await.map(|()| 0),
    }
}

impl RemoteTransport {
    pub(crate) fn new(runtime: Runtime, directory: Directory, config: RemoteConfig) -> Self {
        let caps = config.caps();
        let shared = Shared {
            state: Mutex::default(),
            news: Condvar::new(),
            woken: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
            caps,
            runtime,
            directory,
            staged: Vec::new(),
            outstanding: 0,
            closed: false,
            told: VecDeque::new(),
        }
    }

    fn start(&self, runtime: &tokio::runtime::Handle, io: Io) {
        let (remote, tee) = (self.directory.find(io.handle), self.directory.tee(io.handle));
        let end = End { shared: self.shared.clone(), token: io.token, handle: io.handle, result: None };
        // Under the lock, so that a task that ends at once is entered before it is taken out.
        let mut state = self.shared.lock();
        let task = runtime.spawn(async move {
            // A task that unwinds would tell that it was cancelled.
            let done = AssertUnwindSafe(perform(remote, tee, &io)).catch_unwind().await;
            end.tell(done.unwrap_or_else(|_panic| Err(Error::new(ErrorKind::Poisoned, Verb::Read).at(HTTP))));
        });
        state.running.insert(io.token, task.abort_handle());
    }

    fn take(&mut self, out: &mut Vec<IoDone>) -> usize {
        let before = out.len();
        let mut ended = Vec::new();
        {
            let mut state = self.shared.lock();
            let room = (out.capacity() - before).min(state.ended.len());
            ended.extend(state.ended.drain(..room));
        }
        for Ended { token, handle, result } in ended {
            let result = result.map_err(|error| self.note(handle, error));
            out.push(IoDone { token, result, aside: 0 });
        }
        let taken = out.len() - before;
        self.outstanding = self.outstanding.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
        taken
    }

    /// Keeps what an error says, and gives its fault.
    fn note(&mut self, handle: u64, error: Error) -> Fault {
        let retry = match error.retry() {
            // Nothing of ours touches memory behind the end of a task.
            Retry::AfterFence => Retry::Never,
            retry => retry,
        };
        let fault = Fault { retry, ..Fault::new(error.kind(), error.code()) };
        if error.kind() != ErrorKind::Cancelled {
            self.told.retain(|(known, same, _)| (*known, *same) != (handle, fault));
            if self.told.len() == TOLD_MAX {
                self.told.pop_front();
            }
            self.told.push_back((handle, fault, error));
        }
        fault
    }

    /// Ends what no task was made of.
    fn cancel_staged(&mut self, which: impl Fn(&Io) -> bool) {
        for io in self.staged.extract_if(.., |io| which(io)) {
            drop(End { shared: self.shared.clone(), token: io.token, handle: io.handle, result: None });
        }
    }

    fn abort_all(&self) {
        // Aborting may drop a task on this thread, which takes the lock.
        let tasks: Vec<AbortHandle> = self.shared.lock().running.values().cloned().collect();
        tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Transport for RemoteTransport {
    fn caps(&self) -> TransportCaps {
        self.caps
    }

    fn attach(&mut self, _hint: Attach<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn submit(&mut self, io: &Io) -> Submit {
        if self.closed || self.outstanding >= self.caps.queue_depth || self.runtime.is_in_child() {
            return Submit::Full;
        }
        self.staged.push(*io);
        self.outstanding += 1;
        Submit::Accepted
    }

    fn ring(&mut self) -> Result<(), Error> {
        if self.staged.is_empty() {
            return Ok(());
        }
        let runtime = self.runtime.handle()?;
        for io in std::mem::take(&mut self.staged) {
            self.start(&runtime, io);
        }
        Ok(())
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let Wait::For { timeout, .. } = wait else { return Ok(self.take(out)) };
        self.ring()?;
        let shared = self.shared.clone();
        let nothing = |state: &mut State| state.ended.is_empty() && !shared.woken.load(Ordering::SeqCst);
        shared.waiting.store(true, Ordering::SeqCst);
        drop(shared.news.wait_timeout_while(shared.lock(), timeout, nothing));
        shared.waiting.store(false, Ordering::SeqCst);
        // The wake that it takes away, if this wait never saw it, is one whose cause the caller sees next.
        shared.woken.swap(false, Ordering::SeqCst);
        Ok(self.take(out))
    }

    fn cancel(&mut self, token: Token) {
        self.cancel_staged(|io| io.token == token);
        let task = self.shared.lock().running.get(&token).cloned();
        if let Some(task) = task {
            task.abort();
        }
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        self.closed = true;
        if self.runtime.is_in_child() {
            return Fence::Quiet;
        }
        self.cancel_staged(|_| true);
        self.abort_all();
        self.shared.waiting.store(true, Ordering::SeqCst);
        let running = |state: &mut State| !state.running.is_empty();
        drop(self.shared.news.wait_timeout_while(self.shared.lock(), timeout, running));
        self.shared.waiting.store(false, Ordering::SeqCst);
        self.take(out);
        match self.shared.lock().running.len() {
            0 => Fence::Quiet,
            running => Fence::Busy(u32::try_from(running).unwrap_or(u32::MAX)),
        }
    }

    fn explain(&self, handle: u64, fault: Fault) -> Option<&Error> {
        self.told.iter().rev().find(|(known, same, _)| (*known, *same) == (handle, fault)).map(|(_, _, error)| error)
    }

    fn rests(&self) -> bool {
        true
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.shared.clone()
    }
}

impl Drop for RemoteTransport {
    fn drop(&mut self) {
        if !self.runtime.is_in_child() {
            let mut ended = Vec::with_capacity(sw_mem::index(u64::from(self.outstanding)));
            self.fence(Duration::from_secs(1), &mut ended);
        }
    }
}
