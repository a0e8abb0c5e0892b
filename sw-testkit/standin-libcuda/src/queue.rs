//! Streams: what was queued, what has run, and who may go first.
//!
//! A task runs when everything before it in its stream has run and, for a wait, when another stream has come far enough.
//! Nothing else orders two streams. In mode lazy a question about one stream runs that stream and what it waits for, and
//! no other: a program that forgot an order sees the wrong bytes every time, not once a month.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::abi::{self, Answer, Code, HostFunction, ILLEGAL_ADDRESS, INVALID_HANDLE, LAUNCH_FAILED, LAUNCH_TIMEOUT};
use crate::arena;
use crate::config::Mode;
use crate::fault::{COPY, KERNEL, SILENT_DAMAGE, SILENT_SHORT};
use crate::kernels::Launch;
use crate::state::{self, State};

/// How long a wait for a value in memory may stall everything, in milliseconds. The real one would wait for ever.
const STALL_MS: u64 = 10_000;

/// What a task does.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Moves bytes.
    Copy { dst: u64, src: u64, len: u64 },
    /// Fills bytes.
    Fill { dst: u64, byte: u8, len: u64 },
    /// Writes a 32-bit word.
    Store32 { dst: u64, value: u32 },
    /// Holds the stream until the word at `src` is at least `value` (or equal, or has a common bit).
    Await32 { src: u64, value: u32, how: u32 },
    /// Holds the stream until another one has finished task `seq`.
    Await { stream: u64, seq: u64 },
    /// Calls the program back.
    Host { function: HostFunction, data: u64 },
    /// Runs a kernel.
    Kernel(Launch),
    /// Nothing: the place of an event.
    Mark,
}

#[derive(Clone, Copy, Debug)]
struct Task {
    seq: u64,
    work: Work,
    due: Instant,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    /// Context that made it.
    pub context: u64,
    /// Whether it is a default stream.
    pub is_default: bool,
    /// Whether it orders itself with the default stream (it was not made with `CU_STREAM_NON_BLOCKING`).
    pub blocking: bool,
    /// Last task queued.
    pub queued: u64,
    /// Last task done.
    pub done: u64,
    /// Answers "not ready" still to give, mode lazy.
    pub polls: u32,
    tasks: VecDeque<Task>,
    busy: bool,
}

impl Stream {
    /// The default stream of a context.
    pub fn default_of(context: u64) -> Self {
        Self { is_default: true, ..Self::new(context, 0) }
    }

    /// An empty stream. Flags of cuda.h, "enum CUstream_flags": non-blocking 1.
    pub fn new(context: u64, flags: u32) -> Self {
        Self {
            context,
            is_default: false,
            blocking: flags & 1 == 0,
            queued: 0,
            done: 0,
            polls: 0,
            tasks: VecDeque::new(),
            busy: false,
        }
    }
}

/// One event.
#[derive(Debug)]
pub struct Event {
    /// Context that made it.
    pub context: u64,
    /// The task it marks: stream and number. `None` before it is recorded.
    pub mark: Option<(u64, u64)>,
    /// Answers "not ready" still to give, mode lazy.
    pub polls: u32,
    /// When it was recorded, for `cuEventElapsedTime`.
    pub at: Option<Instant>,
}

#[expect(clippy::disallowed_methods, reason = "the stand-in plays a device, which has a clock of its own")]
pub fn now() -> Instant {
    Instant::now()
}

/// Puts work at the end of `stream`; answers its number. The caller has checked the handle.
pub fn push(s: &mut State, stream: u64, work: Work) -> Answer<u64> {
    order_with_default(s, stream)?;
    let (polls, due) = (s.config.query_polls, now() + Duration::from_micros(s.config.delay_us));
    let target = s.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
    target.queued += 1;
    target.polls = polls;
    target.tasks.push_back(Task { seq: target.queued, work, due });
    let seq = target.queued;
    s.stats.queue_peak = s.stats.queue_peak.max(target.tasks.len() as u64);
    Ok(seq)
}

/// After the lock is given up: lets the mode do its part.
pub fn after_push(stream: u64, seq: u64) -> Answer {
    match state::with(|s| s.config.mode) {
        Mode::Lazy => Ok(()),
        Mode::Eager => run_to(stream, seq),
        Mode::Worker => {
            start_worker();
            state::PROGRESS.notify_all();
            Ok(())
        }
    }
}

/// The legacy default stream waits for all blocking streams of its context, and they wait for it
/// (CUDA Driver API, "Stream synchronization behavior").
fn order_with_default(s: &mut State, stream: u64) -> Answer {
    let this = s.streams.get(&stream).ok_or(INVALID_HANDLE)?;
    let (context, is_default, blocking) = (this.context, this.is_default, this.blocking);
    if !blocking {
        return Ok(());
    }
    let waits: Vec<(u64, u64)> = s
        .streams
        .iter()
        .filter(|(handle, other)| {
            **handle != stream && other.context == context && other.blocking && other.is_default != is_default
        })
        .filter(|(_, other)| other.queued > other.done)
        .map(|(handle, other)| (*handle, other.queued))
        .collect();
    let target = s.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
    for (other, seq) in waits {
        target.queued += 1;
        target.tasks.push_back(Task { seq: target.queued, work: Work::Await { stream: other, seq }, due: now() });
    }
    Ok(())
}

/// Whether task `seq` of `stream` has run. A destroyed stream has finished everything.
pub fn is_done(s: &State, stream: u64, seq: u64) -> bool {
    s.streams.get(&stream).is_none_or(|st| st.done >= seq)
}

/// Runs `stream` up to task `seq`, and what that waits for. Answers the sticky error of the context, if there is one.
pub fn run_to(stream: u64, seq: u64) -> Answer {
    let context = state::with(|s| s.streams.get(&stream).map(|st| st.context));
    let mut goals = vec![(stream, seq)];
    let stalled_at = now() + Duration::from_millis(STALL_MS);
    while let Some((target, until)) = goals.last().copied() {
        match step(target, until) {
            Step::Reached => {
                goals.pop();
            }
            Step::Ran => state::PROGRESS.notify_all(),
            Step::Needs(other, needed) => goals.push((other, needed)),
            Step::Stalled if now() > stalled_at => {
                break_context(target, LAUNCH_TIMEOUT);
            }
            Step::Stalled => wait_for_progress(),
        }
    }
    match context {
        Some(context) => state::with(|s| s.health(context)),
        None => Ok(()),
    }
}

enum Step {
    Reached,
    Ran,
    Needs(u64, u64),
    Stalled,
}

fn step(stream: u64, until: u64) -> Step {
    let host = state::with(|s| {
        let Some(st) = s.streams.get(&stream) else { return Err(Step::Reached) };
        if st.done >= until {
            return Err(Step::Reached);
        }
        if st.busy {
            return Err(Step::Stalled);
        }
        let Some(task) = st.tasks.front().copied() else { return Err(Step::Reached) };
        let broken = s.health(st.context).is_err();
        match task.work {
            Work::Await { stream: other, seq } if !is_done(s, other, seq) => return Err(Step::Needs(other, seq)),
            Work::Await32 { src, value, how } if !broken && !word_is_there(s, src, value, how) => {
                return Err(Step::Stalled);
            }
            Work::Host { function, data } if !broken => {
                if let Some(st) = s.streams.get_mut(&stream) {
                    st.busy = true;
                }
                return Ok((function, data, task.seq));
            }
            work if !broken => execute(s, stream, work),
            _ => {}
        }
        finish(s, stream, task.seq);
        Err(Step::Ran)
    });
    match host {
        Err(step) => step,
        Ok((function, data, seq)) => {
            // Without the lock: the function may take its time, and locks of its own.
            abi::call_host(function, data);
            state::with(|s| finish(s, stream, seq));
            Step::Ran
        }
    }
}

fn finish(s: &mut State, stream: u64, seq: u64) {
    if let Some(st) = s.streams.get_mut(&stream) {
        st.tasks.pop_front();
        st.done = seq;
        st.busy = false;
    }
}

fn execute(s: &mut State, stream: u64, work: Work) {
    let outcome = match work {
        Work::Copy { dst, src, len } => copy_now(s, dst, src, len),
        Work::Fill { dst, byte, len } => match s.arena.reach(dst, len) {
            Some(place) => {
                arena::fill(place, byte, len);
                Ok(())
            }
            None => Err(ILLEGAL_ADDRESS),
        },
        Work::Store32 { dst, value } => match s.arena.reach(dst, 4) {
            Some(place) => abi::write_at(place, value),
            None => Err(ILLEGAL_ADDRESS),
        },
        Work::Kernel(launch) => run_kernel(s, &launch),
        Work::Await { .. } | Work::Await32 { .. } | Work::Host { .. } | Work::Mark => Ok(()),
    };
    if let (Err(code), Some(context)) = (outcome, s.streams.get(&stream).map(|st| st.context))
        && let Some(context) = s.contexts.get_mut(&context)
    {
        context.sticky = code;
    }
}

fn run_kernel(s: &mut State, launch: &Launch) -> Answer {
    s.stats.kernels += 1;
    if let Some(code) = s.faults.due(KERNEL) {
        return Err(code);
    }
    // A module that was unloaded under its launch: the real driver waits for it or faults, nobody may count on either.
    let (_, function) = s.functions.get(&launch.function).ok_or(LAUNCH_FAILED)?;
    s.code.ok_or(LAUNCH_FAILED)?.run(function, launch, &s.arena)
}

/// Moves bytes at once, with the faults of [`COPY`].
pub fn copy_now(s: &mut State, dst: u64, src: u64, len: u64) -> Answer {
    let to = s.arena.reach(dst, len).ok_or(ILLEGAL_ADDRESS)?;
    let from = s.arena.reach(src, len).ok_or(ILLEGAL_ADDRESS)?;
    s.stats.copies += 1;
    s.stats.copied_bytes += len;
    match s.faults.due(COPY) {
        None => arena::copy(to, from, len),
        Some(SILENT_SHORT) => arena::copy(to, from, len.saturating_sub(1)),
        Some(SILENT_DAMAGE) => {
            arena::copy(to, from, len);
            if len > 0 {
                arena::flip(to);
            }
        }
        Some(code) => return Err(code),
    }
    Ok(())
}

fn word_is_there(s: &State, src: u64, value: u32, how: u32) -> bool {
    let Some(place) = s.arena.reach(src, 4) else { return true };
    let word = arena::load_u32(place);
    // cuda.h, "enum CUstreamWaitValue_flags": GEQ 0 (cyclic), EQ 1, AND 2, NOR 3.
    match how & 3 {
        0 => word.wrapping_sub(value) < 1 << 31,
        1 => word == value,
        2 => word & value != 0,
        _ => !(word | value) != 0,
    }
}

/// Gives the context of `stream` a sticky error.
fn break_context(stream: u64, code: Code) {
    state::with(|s| {
        if let Some(context) = s.streams.get(&stream).map(|st| st.context)
            && let Some(context) = s.contexts.get_mut(&context)
        {
            context.sticky = code;
        }
    });
}

fn wait_for_progress() {
    let guard = state::lock();
    let waited = state::PROGRESS.wait_timeout(guard, Duration::from_millis(1));
    drop(waited);
}

/// Runs everything that was queued in `context` so far.
pub fn drain_context(context: u64) -> Answer {
    let goals: Vec<(u64, u64)> = state::with(|s| {
        s.streams.iter().filter(|(_, st)| st.context == context).map(|(handle, st)| (*handle, st.queued)).collect()
    });
    let mut outcome = Ok(());
    for (stream, seq) in goals {
        outcome = outcome.and(run_to(stream, seq));
    }
    outcome
}

/// Whether anything that was queued and has not run touches one of `len` bytes from `base`.
pub fn is_pending_on(s: &State, base: u64, len: u64) -> bool {
    let meets = |at: u64, bytes: u64| at < base.saturating_add(len) && base < at.saturating_add(bytes);
    let touches = |task: &Task| match task.work {
        Work::Copy { dst, src, len } => meets(dst, len) || meets(src, len),
        Work::Fill { dst, len, .. } => meets(dst, len),
        Work::Store32 { dst, .. } => meets(dst, 4),
        Work::Await32 { src, .. } => meets(src, 4),
        // Which memory a kernel touches is in its jobs, which lie in device memory: any word of its values may name it.
        Work::Kernel(launch) => launch.values.iter().any(|value| meets(*value, 1)),
        Work::Await { .. } | Work::Host { .. } | Work::Mark => false,
    };
    s.streams.values().flat_map(|stream| &stream.tasks).any(touches)
}

fn start_worker() {
    let start = state::with(|s| !std::mem::replace(&mut s.worker_started, true));
    if start {
        let _detached = std::thread::Builder::new().name("standin-gpu".to_owned()).spawn(worker);
    }
}

fn worker() {
    loop {
        let due = state::with(|s| {
            let time = now();
            // A stream that waits for a word holds up no other.
            let may_run = |task: &Task| match task.work {
                Work::Await32 { src, value, how } => word_is_there(s, src, value, how),
                _ => true,
            };
            let ready = |st: &Stream| !st.busy && st.tasks.front().is_some_and(|t| t.due <= time && may_run(t));
            s.streams.iter().find(|(_, st)| ready(st)).map(|(handle, st)| (*handle, st.done + 1))
        });
        match due {
            Some((stream, seq)) => {
                let _sticky: Answer = run_to(stream, seq);
            }
            None => wait_for_progress(),
        }
    }
}
