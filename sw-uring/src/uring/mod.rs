//! The data plane by io_uring.
//!
//! ```text
//!   submit ─► SQE ─┐ (user_data = token)                  ┌─► CQE ─► IoDone
//!   submit ─► SQE ─┴─ ring, or poll that waits: one call ─┘
//! ```
//!
//! Invariants:
//! - One I/O is one entry. Nothing is allocated, locked or logged between `submit` and `poll`.
//! - Completion entries are four times the submission entries, so the kernel never has to hold completions back; if it
//!   does all the same, `poll` fetches them.
//! - Dropped with I/Os in flight, the ring and the regions it registered are leaked on purpose and counted
//!   ([`leaked_rings`]): the kernel may still write.
//!
//! It does not choose, split or retry. Read on: `io_uring(7)`; [`sw_engine::seam::Transport`] for the contract.
// UNSAFETY: submission entries carry raw addresses that the kernel reads and writes.
#![expect(unsafe_code, reason = "submission entries carry addresses")]

mod ring;
mod tables;
mod wake;

use std::{
    mem::ManuallyDrop,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use io_uring::{opcode, squeue, types};
use sw_engine::{
    Error, ErrorKind, Fault, Reason, Token, Verb,
    seam::{Attach, Fence, Io, IoDone, IoKind, MAX_SEGMENTS, Submit, Transport, TransportCaps, Wait, Wake},
};

use crate::{fault, handle};

pub use ring::TaskRun;
use ring::{Entered, Ring, Until};
use tables::Tables;
use wake::RingWaker;

/// Its name in routes and reports.
pub const IO_URING: &str = "io_uring";

/// Words that no token is: their low half would name a slot past any table.
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

/// I/Os in flight at most that a configuration may ask for: the kernel's `IORING_MAX_ENTRIES` less what we add.
pub const QUEUE_DEPTH_MAX: u32 = 16 << 10;

/// Longest that `fence` sleeps before it looks again for completions that another thread's exit posts.
const FENCE_STEP: Duration = Duration::from_millis(50);

/// Longest that dropping the transport waits for I/Os in flight.
const DROP_WAIT: Duration = Duration::from_millis(100);

/// What a ring is made with.
#[derive(Clone, Debug)]
pub struct UringConfig {
    /// I/Os in flight at most, 1 to [`QUEUE_DEPTH_MAX`]. Default 128.
    pub queue_depth: u32,
    /// Bytes in one I/O at most, a multiple of 4096. Default 1 MiB: larger ones are split by the block layer anyway.
    pub io_bytes_max: u32,
    /// A kernel thread takes the submissions; it sleeps after so many milliseconds without one. Default none: it burns
    /// a core.
    pub sqpoll: Option<u32>,
    /// One thread will own the ring: the one that rings or polls first. Cheaper; any other thread then gets
    /// `ApiMisuse`. Default false: the ring may be handed over.
    pub single_issuer: bool,
    /// Objects' descriptors that can be registered at once. Default 1024.
    pub files_max: u32,
    /// Buffers (regions, or GiB of larger ones) that can be registered at once, up to 16384. Default 1024.
    pub buffers_max: u16,
    /// With `min` of a wait above one: the longest that the first completion waits for more, in microseconds. It is
    /// also how late a wake can be then. Default 100, about one read of an SSD. Linux 6.12; without it `min` is one.
    pub gather_us: u32,
}

impl Default for UringConfig {
    fn default() -> Self {
        Self {
            queue_depth: 128,
            io_bytes_max: 1 << 20,
            sqpoll: None,
            single_issuer: false,
            files_max: 1024,
            buffers_max: 1024,
            gather_us: 100,
        }
    }
}

impl UringConfig {
    /// What a transport of this configuration can do.
    pub fn caps(&self) -> TransportCaps {
        TransportCaps {
            name: IO_URING,
            queue_depth: self.queue_depth,
            io_bytes_max: self.io_bytes_max,
            segments_max: 3,
            host: Ok(()),
            device: Err(Reason::NoPeerPages),
        }
    }

    fn validate(&self) -> Result<(), Error> {
        let misuse = |what: &'static str| Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup).at(IO_URING).detail(what));
        if !(1..=QUEUE_DEPTH_MAX).contains(&self.queue_depth) {
            return misuse("queue_depth must be 1 to 16384");
        }
        if self.io_bytes_max == 0 || !self.io_bytes_max.is_multiple_of(4096) {
            return misuse("io_bytes_max must be a multiple of 4096 above zero");
        }
        if self.buffers_max > 16 << 10 {
            return misuse("buffers_max must be at most 16384");
        }
        Ok(())
    }
}

static LEAKED_RINGS: AtomicU64 = AtomicU64::new(0);

/// Rings of this process that were dropped while the kernel could still write, and therefore never freed.
pub fn leaked_rings() -> u64 {
    LEAKED_RINGS.load(Ordering::Relaxed)
}

/// Files and block devices by io_uring.
///
/// *Thread*: one at a time; with `single_issuer` always the same one. *Fork*: the child has no ring (it is not copied).
pub struct UringTransport {
    /// Dropped only when the kernel holds nothing.
    core: ManuallyDrop<Core>,
    config: UringConfig,
}

struct Core {
    ring: Ring,
    tables: Tables,
    waker: Arc<RingWaker>,
    /// The eventfd's poll is with the kernel.
    armed: bool,
    in_flight: u32,
    /// Vectors of multi-piece I/Os, one per submission entry: an entry is reused only after the kernel took it, and the
    /// kernel copies the vectors then (`IORING_FEAT_SUBMIT_STABLE`).
    vectors: Box<[[libc::iovec; MAX_SEGMENTS]]>,
    next_vector: usize,
    /// Upper bound of the entries in the submission queue that are no I/Os.
    specials: u32,
    /// I/Os that never reached the kernel, with room for all.
    refused: Vec<IoDone>,
    closed: bool,
}

// SAFETY: the raw addresses inside `vectors` are only handed to the kernel, never followed here; everything else is
// `Send` by itself. The ring is used by one thread at a time because every method takes `&mut self`.
unsafe impl Send for Core {}

impl UringTransport {
    /// Makes a ring.
    ///
    /// # Errors
    /// `ApiMisuse` for a configuration out of range. `Unsupported` with the errno where io_uring is blocked or too old:
    /// [`crate::ThreadsTransport`] then serves. `ResourceLimit` where locked memory or descriptors run out.
    pub fn new(config: UringConfig) -> Result<Self, Error> {
        config.validate()?;
        let ring = Ring::new(&config).map_err(crate::probe::setup_error)?;
        let waker = RingWaker::new().map_err(|errno| fault::error(errno, Verb::Setup, "eventfd"))?;
        let tables = Tables::new(&ring.uring.submitter(), config.files_max, config.buffers_max);
        let entries = sw_mem::index(u64::from(ring.uring.params().sq_entries()));
        let unused = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let core = Core {
            ring,
            tables,
            waker: Arc::new(waker),
            armed: false,
            in_flight: 0,
            vectors: vec![[unused; MAX_SEGMENTS]; entries].into_boxed_slice(),
            next_vector: 0,
            specials: 0,
            refused: Vec::with_capacity(sw_mem::index(u64::from(config.queue_depth))),
            closed: false,
        };
        Ok(Self { core: ManuallyDrop::new(core), config })
    }

    /// How completions are run: the best that the kernel took.
    pub fn task_run(&self) -> TaskRun {
        self.core.ring.task_run
    }

    /// Files and regions that are registered now.
    pub fn registered(&self) -> (usize, usize) {
        self.core.tables.counts()
    }

    /// System calls that moved I/Os or waited for them so far.
    pub fn system_calls(&self) -> u64 {
        self.core.ring.enters
    }

    /// I/Os without their completion.
    pub fn in_flight(&self) -> u32 {
        self.core.in_flight
    }
}

impl Transport for UringTransport {
    fn caps(&self) -> TransportCaps {
        self.config.caps()
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        let Core { ring, tables, .. } = &mut *self.core;
        let submitter = ring.uring.submitter();
        match hint {
            Attach::Object(object) => tables.add_object(&submitter, object, IO_URING),
            Attach::Region(region) => tables.add_region(&submitter, region),
            Attach::ObjectGone(object) => {
                tables.remove_object(&submitter, object);
                Ok(())
            }
            Attach::RegionGone(region) => {
                tables.remove_region(&submitter, region);
                Ok(())
            }
        }
    }

    #[inline]
    fn submit(&mut self, io: &Io) -> Submit {
        let core = &mut *self.core;
        if core.closed || core.in_flight >= self.config.queue_depth {
            return Submit::Full;
        }
        match core.entry(io) {
            Err(fault) => {
                core.refused.push(IoDone { token: io.token, result: Err(fault) });
                core.in_flight += 1;
                Submit::Accepted
            }
            // SAFETY: the entry's memory stays valid and unreferenced until its completion or a quiet fence: the
            // contract of `Transport` puts that on the caller. Its vector, if it has one, lives in `core.vectors`.
            Ok(entry) => match unsafe { core.ring.uring.submission().push(&entry) } {
                Ok(()) => {
                    core.in_flight += 1;
                    Submit::Accepted
                }
                Err(_) => Submit::Full,
            },
        }
    }

    fn ring(&mut self) -> Result<(), Error> {
        self.core.ring.submit().map(drop)
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let core = &mut *self.core;
        match wait {
            Wait::No => {
                core.ring.flush_completions()?;
                Ok(core.reap(out))
            }
            Wait::For { timeout, min } => {
                let gather = Duration::from_micros(u64::from(self.config.gather_us));
                core.wait(Until { min: min.max(1), timeout, gather }, out)
            }
        }
    }

    fn cancel(&mut self, token: Token) {
        let entry = opcode::AsyncCancel::new(token.raw()).build();
        self.core.push_cancel(entry);
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        self.core.fence(timeout, out)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.core.waker.clone()
    }
}

impl Core {
    /// The submission entry of an I/O.
    #[inline]
    fn entry(&mut self, io: &Io) -> Result<squeue::Entry, Fault> {
        let raw_fd = handle::fd(io.handle);
        let (fd, flags) = match self.tables.file(io.object, raw_fd) {
            // A registered file travels in the descriptor's field, told apart by the flag.
            Some(slot) => (types::Fd(slot.cast_signed()), squeue::Flags::FIXED_FILE),
            None => (types::Fd(raw_fd), squeue::Flags::empty()),
        };
        let entry = match io.kind {
            IoKind::FlushData => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            IoKind::FlushAll => opcode::Fsync::new(fd).build(),
            IoKind::Read | IoKind::Write => self.transfer(io, fd)?,
        };
        Ok(entry.flags(flags).user_data(io.token.raw()))
    }

    #[inline]
    fn transfer(&mut self, io: &Io, fd: types::Fd) -> Result<squeue::Entry, Fault> {
        let write = io.kind == IoKind::Write;
        let [segment] = io.segments() else { return self.vectored(io, fd) };
        let va = segment.place.host().ok_or(UNREACHABLE)?;
        let base: *mut u8 = ptr::with_exposed_provenance_mut(sw_mem::index(va.raw()));
        Ok(match (self.tables.buffer(segment), write) {
            (Some(slot), false) => opcode::ReadFixed::new(fd, base, segment.len, slot).offset(io.offset).build(),
            (Some(slot), true) => opcode::WriteFixed::new(fd, base, segment.len, slot).offset(io.offset).build(),
            (None, false) => opcode::Read::new(fd, base, segment.len).offset(io.offset).build(),
            (None, true) => opcode::Write::new(fd, base, segment.len).offset(io.offset).build(),
        })
    }

    fn vectored(&mut self, io: &Io, fd: types::Fd) -> Result<squeue::Entry, Fault> {
        let segments = io.segments();
        if segments.is_empty() {
            return Err(Fault::new(ErrorKind::ApiMisuse, libc::EINVAL));
        }
        let place = self.next_vector % self.vectors.len();
        let vector = self.vectors.get_mut(place).ok_or(Fault::new(ErrorKind::ApiMisuse, 0))?;
        for (part, segment) in vector.iter_mut().zip(segments) {
            let va = segment.place.host().ok_or(UNREACHABLE)?;
            part.iov_base = ptr::with_exposed_provenance_mut(sw_mem::index(va.raw()));
            part.iov_len = sw_mem::index(u64::from(segment.len));
        }
        self.next_vector = place + 1;
        let (parts, count) = (vector.as_ptr(), u32::from(io.segment_count));
        Ok(match io.kind {
            IoKind::Write => opcode::Writev::new(fd, parts, count).offset(io.offset).build(),
            _ => opcode::Readv::new(fd, parts, count).offset(io.offset).build(),
        })
    }

    /// Moves ended I/Os to `out` while it has room.
    #[inline]
    fn reap(&mut self, out: &mut Vec<IoDone>) -> usize {
        let before = out.len();
        while out.len() < out.capacity()
            && let Some(done) = self.refused.pop()
        {
            out.push(done);
        }
        let mut queue = self.ring.uring.completion();
        while out.len() < out.capacity() {
            let Some(entry) = queue.next() else { break };
            match entry.user_data() {
                // A poll that fires again says so; without that it has ended.
                WAKE => self.armed = io_uring::cqueue::more(entry.flags()),
                CANCEL => {}
                raw => out.push(IoDone { token: Token::from_raw(raw), result: fault::outcome(entry.result()) }),
            }
        }
        drop(queue);
        let done = out.len() - before;
        self.in_flight = self.in_flight.saturating_sub(u32::try_from(done).unwrap_or(u32::MAX));
        done
    }

    fn wait(&mut self, until: Until, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let have = self.reap(out);
        let missing = until.min.saturating_sub(u32::try_from(have).unwrap_or(u32::MAX)).min(self.in_flight);
        let enough = have > 0 && missing == 0;
        if enough || out.len() == out.capacity() || !self.waker.begin_wait() {
            self.ring.submit()?;
            return Ok(have);
        }
        self.arm();
        // With nothing in flight only a wake can end it early.
        let min = if self.ring.gathers { missing.max(1) } else { 1 };
        // What is here already waits for more no longer than what comes first.
        let timeout = if have > 0 { until.timeout.min(until.gather) } else { until.timeout };
        let entered = self.ring.submit_and_wait(Until { min, timeout, ..until });
        self.waker.end_wait();
        if entered? == Entered::Later {
            // The kernel wants completions taken first; they are, just below, and the caller comes again.
            self.ring.flush_completions()?;
        }
        Ok(have + self.reap(out))
    }

    /// Lets the kernel watch the eventfd, if it does not yet.
    fn arm(&mut self) {
        if self.armed {
            return;
        }
        let events = u32::from(libc::POLLIN.cast_unsigned());
        let entry = opcode::PollAdd::new(types::Fd(self.waker.eventfd()), events).multi(true).build().user_data(WAKE);
        self.armed = self.push_special(&entry);
    }

    /// Stages an entry that is no I/O and names no memory. False: there is no room.
    fn push_special(&mut self, entry: &squeue::Entry) -> bool {
        if self.ring.staged() == 0 {
            self.specials = 0;
        }
        // SAFETY: the entry names no memory: it is a cancel, or the poll of the eventfd, which lives as long as the ring.
        let pushed = unsafe { self.ring.uring.submission().push(entry) }.is_ok();
        self.specials += u32::from(pushed);
        pushed
    }

    /// Stages a cancel; makes room if there is none. A cancel that finds none is dropped: it is only a wish.
    fn push_cancel(&mut self, entry: squeue::Entry) {
        // Successes need no completion of their own.
        let entry = entry.user_data(CANCEL).flags(squeue::Flags::SKIP_SUCCESS);
        for _ in 0..2 {
            if self.push_special(&entry) || self.ring.submit().is_err() {
                return;
            }
        }
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        #[expect(clippy::disallowed_methods, reason = "several kernel waits share one bound, and the seam has no now")]
        let start = Instant::now();
        self.reap(out);
        self.closed = true;
        if self.in_flight > 0 {
            self.push_cancel(opcode::AsyncCancel2::new(types::CancelBuilder::any()).build());
        }
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            if self.in_flight == 0 {
                return Fence::Quiet;
            }
            // Nothing to gain from waiting once the caller's list is full, or the time is over.
            if left.is_zero() || out.len() == out.capacity() {
                return Fence::Busy(self.in_flight);
            }
            let until = Until { min: 1, timeout: left.min(FENCE_STEP), gather: Duration::ZERO };
            if self.ring.submit_and_wait(until).is_err() {
                // Not our ring to enter (another thread's), or broken: entries that the kernel never took are still
                // in the queue and are not in flight; the rest may still end by itself.
                return self.fence_without_kernel(out);
            }
            self.reap(out);
        }
    }

    fn fence_without_kernel(&mut self, out: &mut Vec<IoDone>) -> Fence {
        self.reap(out);
        // At least so many of the entries that wait are I/Os.
        let untouched = self.ring.staged().saturating_sub(self.specials);
        match self.in_flight.saturating_sub(untouched) {
            0 => Fence::Quiet,
            busy => Fence::Busy(busy),
        }
    }
}

const UNREACHABLE: Fault = Fault::new(ErrorKind::Unsupported, 0);

impl Drop for UringTransport {
    fn drop(&mut self) {
        // A vector of its own: without one, ended I/Os could not be told from running ones.
        let mut ended = Vec::with_capacity(sw_mem::index(u64::from(self.config.queue_depth)));
        match self.core.fence(DROP_WAIT, &mut ended) {
            Fence::Quiet => {
                // SAFETY: dropped once, here; the field is not touched afterwards.
                unsafe { ManuallyDrop::drop(&mut self.core) }
            }
            Fence::Busy(count) => {
                LEAKED_RINGS.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    in_flight = count,
                    "ring dropped with I/Os in flight; it and its regions are kept for ever"
                );
            }
        }
    }
}
