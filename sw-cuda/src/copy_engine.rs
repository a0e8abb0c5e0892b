//! The engine's [`CopyEngine`] seam on streams and events.
//!
//! ```text
//!  submit ─► staged ──ring──► copies on the stream of their direction, one event behind them = a group
//!                                │
//!  poll  ◄── tokens of the groups whose event was reached, in the order of their stream
//! ```
//!
//! Invariants: at most `queue_depth` copies between `submit` and their [`CopyDone`]; every list has room for all of them
//! from the start, so nothing here allocates, locks or waits once it is made (but `fence`, bounded). A group has one
//! event; there are as many events as copies, so the pool cannot run dry. The context is pushed and popped once for each
//! `ring` and `poll`, whatever their number of copies.
//!
//! A lost device: the driver says that nothing more will run in the context, and not whether a copy that was running has
//! stopped. So copies that were in flight stay in flight: `fence` answers `Busy`, and the engine quarantines the memory.
// UNSAFETY: driver calls with addresses that the seam's contract vouches for.
#![expect(unsafe_code, reason = "driver calls")]

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::{Arc, Weak};
use std::time::Duration;

use cudarc::driver::sys::CUstream;
use sw_engine::seam::{CopyDirection, CopyDone, CopyEngine, CopyEngineCaps, CopyJob, Fence, SlabPin};
use sw_engine::{ErrorKind, Fault, Token};
use sw_mem::{DmaRegion, HostVa, index};

use crate::context::{Context, Entered};
use crate::error::{CudaError, NOT_READY, SUCCESS, breaks_context, fault_of};
use crate::pin::HostPin;
use crate::stream::{Event, ForeignStream, Stream};
use crate::table::Table;
use crate::wait;

/// Copies in flight at most, whatever is asked for: an event each, some 100 bytes of driver memory.
pub const QUEUE_DEPTH_MAX: u32 = 4096;
/// Streams for one direction at most; devices have one to a few copy engines.
pub const STREAMS_MAX: u32 = 8;
/// How long dropping an engine waits for copies that nobody fenced.
const DROP_WAIT: Duration = Duration::from_secs(2);

/// How copies are ordered with a stream of the caller's.
#[derive(Clone, Copy, Debug, Default)]
pub enum StreamOrder {
    /// Not at all: the caller looks at completions.
    #[default]
    Unordered,
    /// Copies start after what the stream held when they were rung, and work submitted to the stream after that `ring`
    /// starts after them.
    Around(ForeignStream),
}

/// How to make a [`CudaCopyEngine`].
#[derive(Clone, Copy, Debug)]
pub struct CopyEngineConfig {
    /// Copies in flight at most, 1 to [`QUEUE_DEPTH_MAX`]; 64 unless told: 64 slabs of 1 MiB are 2.5 ms of a 25 GB/s link.
    pub queue_depth: u32,
    /// Streams for each direction, 1 to [`STREAMS_MAX`]; 1 unless told. Not measured on hardware yet.
    pub streams: u32,
    /// Order with a stream of the caller's.
    pub order: StreamOrder,
}

impl Default for CopyEngineConfig {
    fn default() -> Self {
        Self { queue_depth: 64, streams: 1, order: StreamOrder::Unordered }
    }
}

/// Copies that share an event.
#[derive(Clone, Copy, Debug)]
struct Group {
    /// Index of the event; `None` once it was reached and given back.
    event: Option<u32>,
    /// Copies not yet told.
    count: u32,
}

/// One stream with what is in it.
#[derive(Debug)]
struct Lane {
    stream: Stream,
    groups: VecDeque<Group>,
    tokens: VecDeque<Token>,
    /// Copies issued since the last event.
    open: u32,
}

/// A pinned range, while its pin lives.
#[derive(Debug)]
struct Pinned {
    base: u64,
    len: u64,
    alive: Weak<()>,
}

/// Copies between pinned host slabs and one device's memory.
#[derive(Debug)]
pub struct CudaCopyEngine {
    lanes: Vec<Lane>,
    events: Vec<Event>,
    free_events: Vec<u32>,
    order: Option<(ForeignStream, Event)>,
    staged: Vec<CopyJob>,
    refused: VecDeque<CopyDone>,
    pins: Vec<Pinned>,
    /// Copies between `submit` and their [`CopyDone`].
    in_flight: u32,
    depth: u32,
    next_lane: u32,
    lost: Option<Fault>,
    // Last: the streams and events above are destroyed in it.
    context: Context,
}

impl CudaCopyEngine {
    /// Makes streams and events. Control plane.
    ///
    /// # Errors
    /// `ApiMisuse` for a depth or a number of streams outside its range; the driver's.
    pub fn new(context: &Context, config: CopyEngineConfig) -> Result<Self, CudaError> {
        let ordinal = Some(context.device().ordinal());
        if !(1..=QUEUE_DEPTH_MAX).contains(&config.queue_depth) || !(1..=STREAMS_MAX).contains(&config.streams) {
            let remedy = "use a depth of 1 to 4096 and 1 to 8 streams";
            return Err(CudaError::ours(ErrorKind::ApiMisuse, "copy engine set-up", ordinal, remedy));
        }
        let depth = config.queue_depth as usize;
        let mut lanes = Vec::new();
        // The first half carries bytes to the device, the second half from it (`lane_for`).
        for _ in 0..2 * config.streams {
            lanes.push(Lane {
                stream: Stream::new(context)?,
                groups: VecDeque::with_capacity(depth),
                tokens: VecDeque::with_capacity(depth),
                open: 0,
            });
        }
        let events = (0..depth).map(|_| Event::new(context)).collect::<Result<Vec<_>, _>>()?;
        let order = match config.order {
            StreamOrder::Unordered => None,
            StreamOrder::Around(stream) => Some((stream, Event::new(context)?)),
        };
        Ok(Self {
            lanes,
            free_events: (0..config.queue_depth).rev().collect(),
            events,
            order,
            staged: Vec::with_capacity(depth),
            refused: VecDeque::with_capacity(depth),
            pins: Vec::new(),
            in_flight: 0,
            depth: config.queue_depth,
            next_lane: 0,
            lost: None,
            context: context.clone(),
        })
    }

    /// Its context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// [`CopyEngine::pin`] with the driver's words. Control plane.
    ///
    /// # Errors
    /// As [`HostPin::new`].
    pub fn pin_slabs(&mut self, slabs: &DmaRegion) -> Result<Box<dyn SlabPin>, CudaError> {
        let pin = HostPin::new(&self.context, slabs)?;
        let alive = Arc::new(());
        self.pins.retain(|pin| pin.alive.strong_count() > 0);
        let base = slabs.base().raw();
        self.pins.push(Pinned { base, len: slabs.len().0, alive: Arc::downgrade(&alive) });
        Ok(Box::new(SlabGuard { _alive: alive, _pin: pin }))
    }

    fn is_pinned(&self, host: HostVa, len: u32) -> bool {
        let at = host.raw();
        self.pins.iter().any(|pin| {
            at.checked_sub(pin.base).is_some_and(|offset| {
                offset <= pin.len && u64::from(len) <= pin.len - offset && pin.alive.strong_count() > 0
            })
        })
    }

    /// The lane for a direction, in turn.
    fn lane_for(&mut self, direction: CopyDirection) -> usize {
        let each_way = self.lanes.len() / 2;
        let turn = self.next_lane as usize % each_way;
        self.next_lane = self.next_lane.wrapping_add(1);
        if direction == CopyDirection::ToDevice { turn } else { each_way + turn }
    }

    /// Issues what is staged. The context is current.
    fn issue(&mut self, table: &Table) {
        if let Some(code) = self.order_before(table) {
            self.lose(code);
            return;
        }
        for at in 0..self.staged.len() {
            let Some(job) = self.staged.get(at).copied() else { break };
            let lane = self.lane_for(job.direction);
            let Some(lane) = self.lanes.get_mut(lane) else { break };
            match copy(table, &job, lane.stream.raw()) {
                SUCCESS => {
                    lane.tokens.push_back(job.token);
                    lane.open += 1;
                }
                code if breaks_context(code) => {
                    // The driver may report an earlier error here; whether this copy started is not known.
                    lane.tokens.push_back(job.token);
                    lane.open += 1;
                    self.staged.drain(..=at);
                    self.lose(code);
                    return;
                }
                code => self.refused.push_back(CopyDone { token: job.token, result: Err(fault_of(code)) }),
            }
        }
        self.staged.clear();
        for at in 0..self.lanes.len() {
            if let Some(code) = self.close_group(table, at) {
                self.lose(code);
                return;
            }
        }
    }

    /// Puts an event behind the copies issued to a lane; answers the code if that fails.
    fn close_group(&mut self, table: &Table, at: usize) -> Option<u32> {
        let lane = self.lanes.get_mut(at)?;
        if lane.open == 0 {
            return None;
        }
        let event = self.free_events.pop()?;
        let handle = self.events.get(event as usize)?.raw();
        // SAFETY: a checked symbol, our own live event and stream, a current context.
        let mut answer = unsafe { (table.cuEventRecord)(handle, lane.stream.raw()) };
        if let (SUCCESS, Some((stream, _))) = (answer, &self.order) {
            // SAFETY: as above; the caller's stream lives by the promise of `ForeignStream::from_raw`.
            answer = unsafe { (table.cuStreamWaitEvent)(stream.raw(), handle, 0) };
        }
        if answer != SUCCESS {
            self.free_events.push(event);
            return Some(answer);
        }
        lane.groups.push_back(Group { event: Some(event), count: lane.open });
        lane.open = 0;
        None
    }

    /// Makes all lanes wait for what the caller's stream holds now; answers the code if that fails.
    fn order_before(&self, table: &Table) -> Option<u32> {
        let (stream, event) = self.order.as_ref()?;
        // SAFETY: a checked symbol, our own live event, the caller's live stream, a current context.
        let answer = unsafe { (table.cuEventRecord)(event.raw(), stream.raw()) };
        if answer != SUCCESS {
            return Some(answer);
        }
        for lane in &self.lanes {
            // SAFETY: a checked symbol, our own live stream and event, a current context.
            let answer = unsafe { (table.cuStreamWaitEvent)(lane.stream.raw(), event.raw(), 0) };
            if answer != SUCCESS {
                return Some(answer);
            }
        }
        None
    }

    fn lose(&mut self, code: u32) {
        let fault = fault_of(code);
        if self.lost.is_none() {
            tracing::error!(
                gpu = self.context.device().ordinal(),
                code,
                "copies to the device failed; it takes no more"
            );
        }
        self.lost.get_or_insert(fault);
    }

    /// Asks for the events at the head of each lane and frees those reached. The context is current.
    fn reap(&mut self, table: &Table) {
        let mut broken = None;
        for lane in &mut self.lanes {
            for group in &mut lane.groups {
                let Some(event) = group.event else { continue };
                let Some(handle) = self.events.get(event as usize).map(Event::raw) else { break };
                // SAFETY: a checked symbol and our own live event.
                match unsafe { (table.cuEventQuery)(handle) } {
                    SUCCESS => {
                        group.event = None;
                        self.free_events.push(event);
                    }
                    NOT_READY => break,
                    code => {
                        broken = Some(code);
                        break;
                    }
                }
            }
        }
        if let Some(code) = broken {
            self.lose(code);
        }
    }

    /// Tells refused and ended copies while `out` has room; answers how many.
    fn tell(&mut self, out: &mut Vec<CopyDone>) -> usize {
        let before = out.len();
        while out.len() < out.capacity() {
            let Some(done) = self.refused.pop_front() else { break };
            out.push(done);
        }
        for lane in &mut self.lanes {
            while let Some(group) = lane.groups.front_mut().filter(|group| group.event.is_none()) {
                while group.count > 0 && out.len() < out.capacity() {
                    let Some(token) = lane.tokens.pop_front() else { break };
                    group.count -= 1;
                    out.push(CopyDone { token, result: Ok(()) });
                }
                if group.count > 0 {
                    break;
                }
                lane.groups.pop_front();
            }
        }
        let told = out.len() - before;
        self.in_flight -= u32::try_from(told).unwrap_or(self.in_flight);
        told
    }

    /// Copies that may still touch memory.
    fn running(&self) -> u32 {
        let running =
            |lane: &Lane| lane.open + lane.groups.iter().filter(|g| g.event.is_some()).map(|g| g.count).sum::<u32>();
        self.lanes.iter().map(running).sum()
    }
}

/// The one place where bytes are set in motion.
fn copy(table: &Table, job: &CopyJob, stream: CUstream) -> u32 {
    let host = std::ptr::with_exposed_provenance_mut::<c_void>(index(job.host.raw()));
    let len = index(u64::from(job.len));
    match job.direction {
        // SAFETY: a checked symbol and a current context. The host side lies in a live pin (checked by `submit`); the
        // driver checks the device side; both stay alive until the matching `CopyDone` (contract of `CopyEngine`).
        CopyDirection::ToDevice => unsafe {
            (table.cuMemcpyHtoDAsync_v2)(job.device.raw(), host.cast_const(), len, stream)
        },
        // SAFETY: as above.
        CopyDirection::FromDevice => unsafe { (table.cuMemcpyDtoHAsync_v2)(host, job.device.raw(), len, stream) },
    }
}

impl CopyEngine for CudaCopyEngine {
    fn caps(&self) -> CopyEngineCaps {
        CopyEngineCaps { device: self.context.device().id(), queue_depth: self.depth }
    }

    fn pin(&mut self, slabs: &DmaRegion) -> Result<Box<dyn SlabPin>, Fault> {
        self.pin_slabs(slabs).map_err(|error| {
            tracing::warn!(%error, bytes = slabs.len().0, "slabs not pinned");
            error.fault()
        })
    }

    fn submit(&mut self, job: &CopyJob) -> Result<(), Fault> {
        if let Some(fault) = self.lost {
            return Err(fault);
        }
        if job.len == 0 {
            return Err(Fault::new(ErrorKind::ApiMisuse, 0));
        }
        if self.in_flight >= self.depth {
            return Err(Fault::new(ErrorKind::Busy, 0));
        }
        if !self.is_pinned(job.host, job.len) {
            return Err(Fault::new(ErrorKind::NotRegistered, 0));
        }
        self.staged.push(*job);
        self.in_flight += 1;
        Ok(())
    }

    fn ring(&mut self) -> Result<(), Fault> {
        if let Some(fault) = self.lost {
            return Err(fault);
        }
        if self.staged.is_empty() {
            return Ok(());
        }
        self.enter(Self::issue);
        self.lost.map_or(Ok(()), Err)
    }

    fn poll(&mut self, out: &mut Vec<CopyDone>) -> Result<usize, Fault> {
        if self.lost.is_none() && self.running() > 0 {
            self.enter(Self::reap);
        }
        // What ended before the loss is told first: it did end.
        match (self.tell(out), self.lost) {
            (0, Some(fault)) => Err(fault),
            (told, _) => Ok(told),
        }
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<CopyDone>) -> Fence {
        // Never handed to the device: they touch nothing and will not be told.
        self.in_flight -= u32::try_from(self.staged.len()).unwrap_or(0);
        self.staged.clear();
        let quiet = wait::until(timeout, || {
            if self.running() > 0 {
                self.enter(Self::reap);
            }
            self.lost.map_or(Ok(self.running() == 0), Err)
        });
        self.tell(out);
        match (quiet, self.running()) {
            (Ok(true), _) | (_, 0) => Fence::Quiet,
            (_, running) => Fence::Busy(running),
        }
    }
}

impl CudaCopyEngine {
    /// Runs `f` with the context current; a context that cannot be entered is lost.
    fn enter(&mut self, f: impl FnOnce(&mut Self, &Table)) {
        let context = self.context.clone();
        let entered: Result<Entered<'_>, u32> = context.enter_fast();
        match entered {
            Ok(entered) => f(self, entered.driver().table()),
            Err(code) => self.lose(code),
        }
    }
}

impl Drop for CudaCopyEngine {
    fn drop(&mut self) {
        if self.running() > 0
            && let Fence::Busy(copies) = self.fence(DROP_WAIT, &mut Vec::new())
        {
            tracing::error!(gpu = self.context.device().ordinal(), copies, "closed with copies that may still run");
        }
    }
}

/// What `pin` gives out.
struct SlabGuard {
    _alive: Arc<()>,
    _pin: HostPin,
}

impl SlabPin for SlabGuard {}
