//! Set-up of a ring and the one system call that drives it.
// UNSAFETY: io_uring_enter and io_uring_register take pointers.
#![expect(unsafe_code, reason = "io_uring_enter")]

use std::{
    os::fd::{AsRawFd, RawFd},
    ptr,
    time::Duration,
};

use io_uring::{EnterFlags, IoUring};
use sw_engine::{Error, ErrorKind, TransportName, Verb};

use crate::{fault, sys};

use super::{UringConfig, shape::Shape};

/// Times that one call is tried again after a signal.
const INTERRUPTS_MAX: u32 = 16;

/// Entries beyond the I/Os: the eventfd's poll, and cancels.
const EXTRA_ENTRIES: u32 = 8;

/// Completion entries per submission entry. Twice the depth would do; cancels of every I/O may come on top.
const CQ_FACTOR: u32 = 4;

/// From here on an I/O is large: the device spends far longer on it than a system call takes.
const LARGE_IO_BYTES: u32 = 256 << 10;

/// Entries for one call at most while large I/Os are staged.
///
/// Of more than two entries in one call the kernel gathers the requests first (`need_plug` in linux `io_uring/io_uring.c`)
/// and makes one of those that are neighbours on the disk, up to `max_sectors_kb`. Small I/Os gain by that. Of a sequential job
/// of 1 MiB it leaves the device a third of the requests to work on at once.
const LARGE_TOGETHER: u32 = 2;

/// How the kernel runs completions; the best that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskRun {
    /// One thread owns the ring; completions are posted when it asks (`DEFER_TASKRUN`, Linux 6.1).
    Deferred,
    /// Any thread may take the ring over; completions are posted at the submitting thread's next system call
    /// (`COOP_TASKRUN`, 5.19). Handed over in flight, an I/O can come late by a tick while the thread that submitted it
    /// computes; if that thread ends, the kernel may cancel it (it then ends as `Cancelled`).
    Cooperative,
    /// By interrupting the thread: an older kernel, or a kernel thread submits.
    Interrupting,
}

/// How completions come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completions {
    /// The device interrupts, the kernel posts.
    Posted,
    /// Whoever waits asks the device (`IORING_SETUP_IOPOLL`).
    Polled,
}

/// How the submission queue is laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entries {
    /// In order, and a bad one does not hold up those behind it (Linux 6.6 and 5.18).
    Plain,
    /// By an index array, as older kernels want it.
    Indexed,
}

/// A ring and what it was given.
pub(super) struct Ring<S: Shape> {
    pub(super) uring: IoUring<S::Submission, S::Completion>,
    pub(super) task_run: TaskRun,
    /// The kernel can gather completions for a short time (`IORING_FEAT_MIN_TIMEOUT`, Linux 6.12).
    pub(super) gathers: bool,
    sqpoll: bool,
    enabled: bool,
    /// Entries for one call at most.
    together: u32,
    /// Calls of `io_uring_enter` so far.
    pub(super) enters: u64,
    /// Its index in the owner's table of registered rings.
    registered: Option<u32>,
}

/// How an enter ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// As asked, or early: completions may be there.
    Done,
    /// The time was over.
    TimedOut,
    /// The kernel has no room or memory now; what was staged stays staged.
    Later,
}

/// What an enter waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Until {
    pub(super) min: u32,
    pub(super) timeout: Duration,
    /// With `min` above one: return with fewer after this long, once there is one.
    pub(super) gather: Duration,
}

impl<S: Shape> Ring<S> {
    pub(super) fn new(config: &UringConfig, completions: Completions) -> Result<Self, i32> {
        let mut last = libc::EINVAL;
        for task_run in candidates(config, completions) {
            // Newer conveniences first; a kernel that does not know a flag says EINVAL.
            for entries in [Entries::Plain, Entries::Indexed] {
                match build::<S>(config, completions, task_run, entries) {
                    Ok(uring) => {
                        let gathers = uring.params().is_feature_min_timeout();
                        let enabled = task_run != TaskRun::Deferred;
                        let sqpoll = config.sqpoll.is_some();
                        return Ok(Self {
                            uring,
                            task_run,
                            gathers,
                            sqpoll,
                            enabled,
                            together: u32::MAX,
                            enters: 0,
                            registered: None,
                        });
                    }
                    Err(libc::EINVAL) => last = libc::EINVAL,
                    Err(errno) => return Err(errno),
                }
            }
        }
        Err(last)
    }

    /// An I/O of so many bytes was staged.
    #[inline]
    pub(super) fn staged_io(&mut self, len: u32) {
        if len >= LARGE_IO_BYTES {
            self.together = LARGE_TOGETHER;
        }
    }

    /// Hands the staged entries over and does not wait.
    #[inline]
    pub(super) fn submit(&mut self) -> Result<Entered, Error> {
        let (entered, staged) = self.hand_over_most()?;
        if entered == Entered::Later || staged == 0 {
            return Ok(entered);
        }
        self.enter(staged, EnterFlags::empty(), None)
    }

    /// Hands entries over until one call takes the rest; says how many that are.
    #[inline]
    fn hand_over_most(&mut self) -> Result<(Entered, u32), Error> {
        let mut staged = self.staged();
        while staged > self.together {
            if self.enter(self.together, EnterFlags::empty(), None)? != Entered::Done {
                return Ok((Entered::Later, staged));
            }
            // A kernel thread that submits takes them when it likes, and in one go.
            let before = std::mem::replace(&mut staged, self.staged());
            if staged == before {
                break;
            }
        }
        // What is staged behind that call may go together again.
        self.together = u32::MAX;
        Ok((Entered::Done, staged))
    }

    /// Entries that the kernel has not taken.
    #[inline]
    pub(super) fn staged(&mut self) -> u32 {
        u32::try_from(self.uring.submission().len()).unwrap_or(u32::MAX)
    }

    /// Lets the kernel post what it holds back: deferred work, or entries that found the completion queue full.
    #[inline]
    pub(super) fn flush_completions(&mut self) -> Result<(), Error> {
        let queue = self.uring.submission();
        let pending = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if pending {
            self.enter(0, EnterFlags::GETEVENTS, None)?;
        }
        Ok(())
    }

    /// Asks the devices of a polled ring for what has ended.
    #[inline]
    pub(super) fn look(&mut self) -> Result<(), Error> {
        self.enter(0, EnterFlags::GETEVENTS, None).map(drop)
    }

    /// Hands the staged entries over and waits: in one system call, but for large I/Os.
    #[inline]
    pub(super) fn submit_and_wait(&mut self, until: Until) -> Result<Entered, Error> {
        let (entered, staged) = self.hand_over_most()?;
        if entered == Entered::Later {
            return Ok(entered);
        }
        self.enter(staged, EnterFlags::GETEVENTS, Some(until))
    }

    fn enter(&mut self, staged: u32, mut flags: EnterFlags, until: Option<Until>) -> Result<Entered, Error> {
        if !self.enabled {
            self.enable()?;
        }
        if self.sqpoll {
            if self.uring.submission().need_wakeup() {
                flags.insert(EnterFlags::SQ_WAKEUP);
            } else if until.is_none() && !flags.contains(EnterFlags::GETEVENTS) {
                return Ok(Entered::Done);
            }
        }
        for _ in 0..INTERRUPTS_MAX {
            self.enters += 1;
            match self.call(staged, flags.bits(), until) {
                Ok(()) => return Ok(Entered::Done),
                Err(libc::ETIME) => return Ok(Entered::TimedOut),
                // A signal ends a wait: the caller looks around and waits again.
                Err(libc::EINTR) if until.is_some() => return Ok(Entered::Done),
                Err(libc::EINTR) => {}
                Err(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => return Ok(Entered::Later),
                Err(errno) => return Err(broken(S::NAME, errno)),
            }
        }
        Ok(Entered::Later)
    }

    /// One `io_uring_enter`.
    #[inline]
    fn call(&self, staged: u32, flags: u32, until: Option<Until>) -> Result<(), i32> {
        let (fd, registered) = match self.registered {
            Some(index) => (i64::from(index), ENTER_REGISTERED_RING),
            None => (i64::from(self.uring.as_raw_fd()), 0),
        };
        let until = until.unwrap_or(Until { min: 0, timeout: Duration::ZERO, gather: Duration::ZERO });
        let waits = until.min > 0;
        let timeout = until.timeout.min(FOREVER);
        let span = Timespec {
            seconds: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: i64::from(timeout.subsec_nanos()),
        };
        let gather = if until.min > 1 { u32::try_from(until.gather.as_micros()).unwrap_or(u32::MAX) } else { 0 };
        let wait = WaitArgument {
            signal_mask: 0,
            signal_mask_bytes: 0,
            gather_us: gather,
            timeout: (&raw const span).expose_provenance() as u64,
        };
        let (argument, bytes, extended) = match waits {
            true => (&raw const wait, size_of::<WaitArgument>(), EnterFlags::EXT_ARG.bits()),
            false => (ptr::null(), 0, 0),
        };
        let flags = flags | registered | extended;
        // SAFETY: `wait` and the time span that it points to are live until the call returns, and have the layout that
        // the flag announces; the staged entries were checked when they were pushed.
        let done = unsafe { libc::syscall(libc::SYS_io_uring_enter, fd, staged, until.min, flags, argument, bytes) };
        if done < 0 { Err(sys::errno()) } else { Ok(()) }
    }

    /// Makes the calling thread the ring's owner.
    fn enable(&mut self) -> Result<(), Error> {
        self.uring.submitter().register_enable_rings().map_err(|refused| broken(S::NAME, sys::code(&refused)))?;
        self.enabled = true;
        let mut update = RingUpdate { offset: u32::MAX, reserved: 0, data: 0 };
        update.data = u64::try_from(self.uring.as_raw_fd()).unwrap_or(u64::MAX);
        // A convenience (Linux 5.18): without it the kernel looks the descriptor up each time.
        let done = register_ring(self.uring.as_raw_fd(), REGISTER_RING_FDS, &mut update);
        self.registered = (done == 1).then_some(update.offset);
        Ok(())
    }
}

impl<S: Shape> Drop for Ring<S> {
    fn drop(&mut self) {
        if let Some(offset) = self.registered {
            // From another thread this fails: the owner's table then keeps the ring until the owner ends.
            let mut update = RingUpdate { offset, reserved: 0, data: 0 };
            register_ring(self.uring.as_raw_fd(), UNREGISTER_RING_FDS, &mut update);
        }
    }
}

/// Registers the ring's own descriptor in the calling thread's table, or takes it out. Returns how many, or -1.
fn register_ring(fd: RawFd, operation: u32, update: &mut RingUpdate) -> i64 {
    let update = ptr::from_mut(update);
    // SAFETY: one live structure of the layout that the operation takes; the kernel writes at most that.
    unsafe { libc::syscall(libc::SYS_io_uring_register, fd, operation, update, 1u32) }
}

/// Of linux `include/uapi/linux/io_uring.h`, as are the structures below.
const ENTER_REGISTERED_RING: u32 = 1 << 4;
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArgument {
    signal_mask: u64,
    signal_mask_bytes: u32,
    gather_us: u32,
    timeout: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

// The kernel tells the versions of the argument apart by its size.
const _: () = assert!(size_of::<WaitArgument>() == 24 && size_of::<RingUpdate>() == 16);

/// The longest wait that the kernel's signed nanoseconds take without care: a year.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

fn candidates(config: &UringConfig, completions: Completions) -> impl Iterator<Item = TaskRun> {
    let first = match (config.sqpoll.is_some() || completions == Completions::Polled, config.single_issuer) {
        (true, _) => 2,
        (false, true) => 0,
        (false, false) => 1,
    };
    [TaskRun::Deferred, TaskRun::Cooperative, TaskRun::Interrupting].into_iter().skip(first)
}

fn build<S: Shape>(
    config: &UringConfig,
    completions: Completions,
    task_run: TaskRun,
    layout: Entries,
) -> Result<IoUring<S::Submission, S::Completion>, i32> {
    let entries = config.queue_depth.saturating_add(EXTRA_ENTRIES).next_power_of_two();
    let mut builder = IoUring::<S::Submission, S::Completion>::builder();
    builder.setup_cqsize(entries.saturating_mul(CQ_FACTOR)).setup_clamp();
    if layout == Entries::Plain {
        builder.setup_no_sqarray().setup_submit_all();
    }
    match task_run {
        TaskRun::Deferred => {
            // Disabled until its owner uses it first: the kernel takes the enabling thread for the owner.
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_r_disabled();
        }
        TaskRun::Cooperative => {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        TaskRun::Interrupting => {}
    }
    if let Some(idle_ms) = config.sqpoll {
        builder.setup_sqpoll(idle_ms);
    }
    if completions == Completions::Polled {
        builder.setup_iopoll();
    }
    builder.dontfork();
    let uring = builder.build(entries).map_err(|refused| sys::code(&refused))?;
    // EXT_ARG (5.11) gives the wait its timeout, NODROP (5.5) keeps every completion, SUBMIT_STABLE (5.5) lets the
    // vectors go once an entry is taken. Without them the thread pool serves better.
    let params = uring.params();
    if params.is_feature_ext_arg() && params.is_feature_nodrop() && params.is_feature_submit_stable() {
        Ok(uring)
    } else {
        Err(libc::ENOSYS)
    }
}

fn broken(name: TransportName, errno: i32) -> Error {
    let error = Error::new(fault::classify(errno).0, Verb::Setup).at(name).with_code(errno);
    match errno {
        libc::EEXIST => Error::new(ErrorKind::ApiMisuse, Verb::Setup)
            .at(name)
            .with_code(errno)
            .detail("a ring for one thread was used by another")
            .remedy("use it from the thread that used it first, or make it without single_issuer"),
        _ => error.detail("the kernel refuses to drive the ring"),
    }
}
