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

mod channel;
mod files;
mod ring;
pub(crate) mod shape;
pub(crate) mod tables;
mod wake;

use std::{
    mem::ManuallyDrop,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use io_uring::{cqueue, opcode, squeue, types};
use sw_engine::{
    Error, ErrorKind, Reason, Token, TransportName, Verb,
    seam::{Attach, Fence, Io, IoDone, Regions, Submit, Transport, TransportCaps, Wait, Wake},
};

use sw_mem::ForkMark;

use crate::fault;

use channel::Channel;
pub use files::Files;
pub use ring::{Completions, TaskRun};
use ring::{Entered, Until};
use shape::Shape;
use wake::RingWaker;

/// Its name in routes and reports.
pub const IO_URING: &str = "io_uring";

/// User data that no I/O has: as a token, its low half would name a slot past any table.
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

/// I/Os in flight at most that a configuration may ask for: the kernel's `IORING_MAX_ENTRIES` less what we add.
pub const QUEUE_DEPTH_MAX: u32 = 16 << 10;

/// Longest that `fence` sleeps before it looks again for completions that another thread's exit posts.
const FENCE_STEP: Duration = Duration::from_millis(50);

/// The same with I/Os in a polled ring.
const FENCE_STEP_POLLED: Duration = Duration::from_micros(100);

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
    /// Completions of direct reads and writes are polled for, without interrupts: `poll` then burns a core while they are
    /// in flight. The device needs poll queues (`/sys/block/NAME/queue/io_poll` is 1), else such I/Os end as
    /// `Unsupported`. Regions are pinned twice. Not together with `sqpoll`. Default false.
    pub iopoll: bool,
    /// One thread will own the ring: the one that rings or polls first. Cheaper; any other thread then gets
    /// `ApiMisuse`. Default false: the ring may be handed over.
    pub single_issuer: bool,
    /// Objects' descriptors that can be registered at once. Default 1024.
    pub files_max: u32,
    /// Buffers (regions, or GiB of larger ones) that can be registered at once, up to 16384; 0: hints about regions are
    /// ignored, and nothing is pinned. Default 1024.
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
            iopoll: false,
            single_issuer: false,
            files_max: 1024,
            buffers_max: 1024,
            gather_us: 100,
        }
    }
}

impl UringConfig {
    /// What a [`UringTransport`] of this configuration can do.
    pub fn caps(&self) -> TransportCaps {
        self.caps_of::<Files>()
    }

    pub(crate) fn caps_of<S: Shape>(&self) -> TransportCaps {
        TransportCaps {
            name: S::NAME,
            queue_depth: self.queue_depth,
            io_bytes_max: self.io_bytes_max,
            segments_max: S::SEGMENTS_MAX,
            host: Ok(()),
            device: Err(Reason::NoPeerPages),
            regions: Regions::Any,
        }
    }

    fn validate(&self, name: TransportName) -> Result<(), Error> {
        let misuse = |what: &'static str| Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup).at(name).detail(what));
        if !(1..=QUEUE_DEPTH_MAX).contains(&self.queue_depth) {
            return misuse("queue_depth must be 1 to 16384");
        }
        if self.io_bytes_max == 0 || !self.io_bytes_max.is_multiple_of(4096) {
            return misuse("io_bytes_max must be a multiple of 4096 above zero");
        }
        if self.buffers_max > 16 << 10 {
            return misuse("buffers_max must be at most 16384");
        }
        if self.iopoll && self.sqpoll.is_some() {
            return misuse("iopoll and sqpoll are not offered together");
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
pub type UringTransport = RingTransport<Files>;

/// A transport that is a ring (two, if completions are polled for); the shape says what its entries are.
///
/// *Thread*: one at a time; with `single_issuer` always the same one. *Fork*: in a child every call is `Forked` or does
/// nothing.
pub struct RingTransport<S: Shape> {
    /// Dropped only when the kernel holds nothing.
    core: ManuallyDrop<Core<S>>,
    config: UringConfig,
    /// The ring's memory does not exist in a child.
    fork: ForkMark,
}

struct Core<S: Shape> {
    /// For everything, or for what a polled ring does not take.
    plain: Channel<S>,
    /// For what can be polled ([`Shape::is_polled`]), if completions are polled for.
    polled: Option<Channel<S>>,
    waker: Arc<RingWaker>,
    /// The eventfd's poll is with the kernel.
    armed: bool,
    /// I/Os taken and not yet ended, in both rings.
    in_flight: u32,
    /// Those of them in the polled ring.
    polled_in_flight: u32,
    /// Upper bound of the entries in the plain submission queue that are no I/Os.
    specials: u32,
    /// I/Os that never reached the kernel, with room for all.
    refused: Vec<IoDone>,
    closed: bool,
}

impl<S: Shape> RingTransport<S> {
    /// Makes a ring.
    ///
    /// # Errors
    /// `ApiMisuse` for a configuration out of range. `Unsupported` with the errno where io_uring is blocked or too old:
    /// [`crate::ThreadsTransport`] then serves files. `ResourceLimit` where locked memory or descriptors run out.
    pub fn new(config: UringConfig) -> Result<Self, Error> {
        config.validate(S::NAME)?;
        let refused = |errno| crate::probe::setup_error(S::NAME, S::TOO_OLD, errno);
        let channel = |completions| Channel::new(&config, completions).map_err(refused);
        let polled = config.iopoll.then(|| channel(Completions::Polled)).transpose()?;
        let waker = RingWaker::new().map_err(|errno| fault::error(errno, Verb::Setup, "eventfd"))?;
        let core = Core {
            plain: channel(Completions::Posted)?,
            polled,
            waker: Arc::new(waker),
            armed: false,
            in_flight: 0,
            polled_in_flight: 0,
            specials: 0,
            refused: Vec::with_capacity(sw_mem::index(u64::from(config.queue_depth))),
            closed: false,
        };
        Ok(Self { core: ManuallyDrop::new(core), config, fork: ForkMark::new() })
    }

    fn check_fork(&self) -> Result<(), Error> {
        if self.fork.is_child() { Err(fault::forked(S::NAME)) } else { Ok(()) }
    }

    /// How completions are run: the best that the kernel took.
    pub fn task_run(&self) -> TaskRun {
        self.core.plain.ring.task_run
    }

    /// Files and regions that are registered now.
    pub fn registered(&self) -> (usize, usize) {
        self.core.plain.tables.counts()
    }

    /// System calls that moved I/Os or waited for them so far.
    pub fn system_calls(&self) -> u64 {
        self.core.plain.ring.enters + self.core.polled.as_ref().map_or(0, |polled| polled.ring.enters)
    }

    /// I/Os without their completion.
    pub fn in_flight(&self) -> u32 {
        self.core.in_flight
    }
}

impl<S: Shape> Transport for RingTransport<S> {
    fn caps(&self) -> TransportCaps {
        self.config.caps_of::<S>()
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        self.check_fork()?;
        let core = &mut *self.core;
        for Channel { ring, tables, .. } in core.polled.iter_mut().chain([&mut core.plain]) {
            let submitter = ring.uring.submitter();
            match hint {
                Attach::Object(object) => tables.add_object::<S>(&submitter, object)?,
                Attach::Region(region) => tables.add_region(&submitter, region)?,
                Attach::ObjectGone(object) => tables.remove_object(&submitter, object),
                Attach::RegionGone(region) => tables.remove_region(&submitter, region),
            }
        }
        Ok(())
    }

    #[inline]
    fn submit(&mut self, io: &Io) -> Submit {
        let core = &mut *self.core;
        if self.fork.is_child() || core.closed || core.in_flight >= self.config.queue_depth {
            return Submit::Full;
        }
        let pushed = match &mut core.polled {
            Some(polled) if S::is_polled(io) => {
                let pushed = polled.push(io);
                core.polled_in_flight += u32::from(pushed == Ok(true));
                pushed
            }
            _ => core.plain.push(io),
        };
        match pushed {
            Ok(false) => return Submit::Full,
            Ok(true) => {}
            Err(fault) => core.refused.push(IoDone { token: io.token, result: Err(fault), aside: 0 }),
        }
        core.in_flight += 1;
        Submit::Accepted
    }

    fn ring(&mut self) -> Result<(), Error> {
        self.check_fork()?;
        self.core.submit()
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        self.check_fork()?;
        let core = &mut *self.core;
        match wait {
            Wait::No => {
                core.flush_completions()?;
                Ok(core.reap(out))
            }
            Wait::For { timeout, min } => {
                let gather = Duration::from_micros(u64::from(self.config.gather_us));
                core.wait(Until { min: min.max(1), timeout, gather }, out)
            }
        }
    }

    fn cancel(&mut self, token: Token) {
        if self.fork.is_child() {
            return;
        }
        if let Some(word) = self.core.plain.shape.word(token) {
            self.core.push_cancel(opcode::AsyncCancel::new(word).build());
        }
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        if self.fork.is_child() {
            // What is in flight is the parent's, in the parent's memory.
            return Fence::Quiet;
        }
        self.core.fence(timeout, out)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.core.waker.clone()
    }
}

impl<S: Shape> Core<S> {
    /// Moves ended I/Os to `out` while it has room.
    #[inline]
    fn reap(&mut self, out: &mut Vec<IoDone>) -> usize {
        let before = out.len();
        while out.len() < out.capacity()
            && let Some(done) = self.refused.pop()
        {
            out.push(done);
        }
        let mut queue = self.plain.ring.uring.completion();
        while out.len() < out.capacity() {
            let Some(entry) = queue.next() else { break };
            let entry: cqueue::Entry = entry.into();
            match entry.user_data() {
                // A poll that fires again says so; without that it has ended.
                WAKE => self.armed = cqueue::more(entry.flags()),
                CANCEL => {}
                word => out.extend(self.plain.shape.end(word, entry.result())),
            }
        }
        drop(queue);
        if let Some(polled) = self.polled.as_mut().filter(|_| self.polled_in_flight > 0) {
            let mut queue = polled.ring.uring.completion();
            while out.len() < out.capacity()
                && let Some(entry) = queue.next()
            {
                let entry: cqueue::Entry = entry.into();
                out.extend(polled.shape.end(entry.user_data(), entry.result()));
                self.polled_in_flight = self.polled_in_flight.saturating_sub(1);
            }
        }
        let done = out.len() - before;
        self.in_flight = self.in_flight.saturating_sub(u32::try_from(done).unwrap_or(u32::MAX));
        done
    }

    /// Hands over what is staged in both rings.
    #[inline]
    fn submit(&mut self) -> Result<(), Error> {
        if let Some(polled) = &mut self.polled {
            polled.ring.submit()?;
        }
        self.plain.ring.submit().map(drop)
    }

    /// Lets the kernel post what has ended.
    #[inline]
    fn flush_completions(&mut self) -> Result<(), Error> {
        if let Some(polled) = self.polled.as_mut().filter(|_| self.polled_in_flight > 0) {
            polled.ring.look()?;
        }
        self.plain.ring.flush_completions()
    }

    /// Waits without sleeping: completions of a polled ring are found only by looking.
    fn spin(&mut self, until: Until, mut have: usize, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let start = now();
        loop {
            self.submit()?;
            self.flush_completions()?;
            have += self.reap(out);
            let none_left = have > 0 && self.in_flight == 0;
            let enough = sw_mem::index(u64::from(until.min)) <= have || none_left || out.len() == out.capacity();
            if enough || self.waker.take() || start.elapsed() >= until.timeout {
                return Ok(have);
            }
        }
    }

    fn wait(&mut self, until: Until, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let have = self.reap(out);
        let missing = until.min.saturating_sub(u32::try_from(have).unwrap_or(u32::MAX)).min(self.in_flight);
        let enough = have > 0 && missing == 0;
        if !enough && out.len() < out.capacity() && self.polled_in_flight > 0 {
            return self.spin(until, have, out);
        }
        if enough || out.len() == out.capacity() || !self.waker.begin_wait() {
            self.submit()?;
            return Ok(have);
        }
        self.arm();
        // With nothing in flight only a wake can end it early.
        let min = if self.plain.ring.gathers { missing.max(1) } else { 1 };
        // What is here already waits for more no longer than what comes first.
        let timeout = if have > 0 { until.timeout.min(until.gather) } else { until.timeout };
        let entered = self.plain.ring.submit_and_wait(Until { min, timeout, ..until });
        self.waker.end_wait();
        if entered? == Entered::Later {
            // The kernel wants completions taken first; they are, just below, and the caller comes again.
            self.plain.ring.flush_completions()?;
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
        if self.plain.ring.staged() == 0 {
            self.specials = 0;
        }
        // SAFETY: the entry names no memory: it is a cancel, or the poll of the eventfd, which lives as long as the ring.
        let pushed = unsafe { self.plain.ring.uring.submission().push(&entry.clone().into()) }.is_ok();
        self.specials += u32::from(pushed);
        pushed
    }

    /// Stages a cancel; makes room if there is none. A cancel that finds none is dropped: it is only a wish.
    fn push_cancel(&mut self, entry: squeue::Entry) {
        let mut entry = entry.user_data(CANCEL);
        if self.plain.ring.uring.params().is_feature_skip_cqe_on_success() {
            // Successes need no completion of their own.
            entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
        }
        for _ in 0..2 {
            if self.push_special(&entry) || self.plain.ring.submit().is_err() {
                return;
            }
        }
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        let start = now();
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
            // A polled ring ends nothing by itself: look often.
            let step = if self.polled_in_flight > 0 { FENCE_STEP_POLLED } else { FENCE_STEP };
            let until = Until { min: 1, timeout: left.min(step), gather: Duration::ZERO };
            if self.submit().and_then(|()| self.flush_completions()).is_err()
                || self.plain.ring.submit_and_wait(until).is_err()
            {
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
        let untouched = self.plain.ring.staged().saturating_sub(self.specials);
        match self.in_flight.saturating_sub(untouched) {
            0 => Fence::Quiet,
            busy => Fence::Busy(busy),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "several waits share one bound, and the seam has no now")]
fn now() -> Instant {
    Instant::now()
}

impl<S: Shape> Drop for RingTransport<S> {
    fn drop(&mut self) {
        if self.fork.is_child() {
            // The ring is the parent's; this process keeps its few bytes until it ends.
            return;
        }
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
                    transport = S::NAME,
                    in_flight = count,
                    "ring dropped with I/Os in flight; it and its regions are kept for ever"
                );
            }
        }
    }
}
