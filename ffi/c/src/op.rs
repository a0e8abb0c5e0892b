//! # Transfers that are started
//!
//! An operation that is started goes on by itself. Its end is found by asking (`sw_op_poll`), by waiting (`sw_op_wait`,
//! `sw_op_wait_many`), by a callback or by an eventfd, in any combination.
// UNSAFETY: exported names, and structures that C callers fill.
#![expect(unsafe_code, reason = "exported names, and structures that C callers fill")]

use std::{
    fs::File,
    future::Future,
    io::Write,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use straightway::{Completed, Error, ErrorKind, Pending, Request, StreamGate, Verb};

use crate::{
    edge::{ask, call, misuse},
    engine::EngineState,
    handle::{Handle, Kind, Table},
    io::{SW_IO_EVENT_FD, SW_IO_STREAM, SwCallback, SwCompletion, SwIoOptions, SwPart, What, moved, with_options},
    last::{self, Failure},
    object::{ObjectState, SW_VERB_FLUSH, SW_VERB_READ, SW_VERB_WRITE, SwObject, SwVerb},
    pointer::{self, Addr, In, Out, own_descriptor, stream, versioned},
    pump::{self, Pump},
    region::SwRegion,
    status::{SW_OK, SW_PENDING, SwStatus, status_of},
    wait::{Parker, Until},
};

/// An operation that was started. Any thread may use it. Freed by `sw_op_free`.
#[repr(C)]
pub struct SwOp {
    _opaque: [u8; 0],
}

impl Kind for SwOp {
    type State = Op;
    const TAG: u8 = 0xa4;
    const NAME: &'static str = "an operation";

    fn table() -> &'static Table<Op> {
        static TABLE: Table<Op> = Table::new();
        &TABLE
    }
}

/// An operation to start.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SwRequest {
    /// Size of this structure in bytes, set by the caller; the same for all of an array.
    pub size: usize,
    /// The object.
    pub object: Handle<SwObject>,
    /// What to do.
    pub verb: SwVerb,
    /// Zero.
    pub reserved: u32,
    /// Bytes from the start of the object.
    pub offset: u64,
    /// The region; NULL for a flush, and for one with parts.
    pub region: Handle<SwRegion>,
    /// Bytes from the start of the region.
    pub region_offset: u64,
    /// Bytes.
    pub length: u64,
    /// Parts of a vectored operation, or NULL.
    pub parts: In<SwPart>,
    /// How many parts.
    pub part_count: usize,
    /// How; NULL: the defaults.
    pub options: In<SwIoOptions>,
}

versioned!(SwRequest, "sw_request", 80);

/// No limit of time.
pub const SW_FOREVER: u64 = u64::MAX;

/// Operations of one `sw_submit` or `sw_op_wait_many` at most.
pub const SW_OPS_MAX: u32 = 65_536;

/// What is behind a handle of an operation.
pub struct Op {
    run: Mutex<Run>,
    signal: Arc<Signal>,
    user: Addr,
    /// The GPU and the stream that it has its place in.
    stream: (u32, u64),
    told: Option<Told>,
}

enum Run {
    /// Not begun: the handles of others that start with it are still being made.
    Fresh(Start),
    /// Until everything before it in its stream is done.
    Waiting(Start),
    Running {
        pending: Pending,
        /// Dropped after it.
        _gate: Option<StreamGate>,
    },
    Over(Arc<Outcome>),
}

/// What begins an operation, and its place in a stream. Dropped with or without an end: the stream goes on then.
struct Start {
    request: Option<Request>,
    gate: Option<StreamGate>,
}

/// The end of an operation.
pub(crate) struct Outcome {
    completion: SwCompletion,
    failure: Option<Arc<Failure>>,
}

/// Whom the end is told to.
struct Told {
    callback: SwCallback,
    event: Option<File>,
    handle: OnceLock<u64>,
    /// Once: told, or not wanted any more.
    settled: AtomicBool,
    /// Held while the callback runs.
    running: Mutex<()>,
}

/// Wakes who waits for an operation.
struct Signal {
    waiting: Mutex<Vec<Arc<Parker>>>,
    /// The pump that looks at the operation, and the operation's number there.
    pump: Option<(Pump, u64)>,
}

impl Signal {
    fn raise(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|parker| parker.wake());
        if let Some((pump, number)) = &self.pump {
            pump.look(*number);
        }
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.raise();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.raise();
    }
}

impl Op {
    fn new(ready: Ready, engine: &EngineState) -> Result<Self, Error> {
        let Ready { request, options, event, gate } = ready;
        let start = Start { request: Some(request), gate };
        // Somebody has to look when its stream has come so far.
        let is_told = options.callback.is_some() || event.is_some() || start.gate.is_some();
        let pump = if is_told { Some(Pump::of(engine)?).map(|pump| (pump.clone(), pump.number())) } else { None };
        let told = is_told.then(|| Told {
            callback: options.callback,
            event,
            handle: OnceLock::new(),
            settled: AtomicBool::new(false),
            running: Mutex::default(),
        });
        let signal = Arc::new(Signal { waiting: Mutex::default(), pump });
        Ok(Self {
            run: Mutex::new(Run::Fresh(start)),
            signal,
            user: options.user,
            stream: (options.stream_gpu, options.stream.raw()),
            told,
        })
    }

    fn begin(self: &Arc<Self>, handle: Handle<SwOp>) {
        if let Some(told) = &self.told {
            let _ = told.handle.set(handle.raw());
        }
        if let Some((pump, number)) = &self.signal.pump {
            pump.add(*number, self.clone());
        }
        let mut run = self.lock();
        let gated = if let Run::Fresh(start) = &mut *run {
            let start = start.taken();
            let gated = start.gate.is_some();
            *run = if gated { Run::Waiting(start) } else { start.begun() };
            gated
        } else {
            false
        };
        drop(run);
        if gated && let Some((pump, number)) = &self.signal.pump {
            pump.watch(*number, self.stream);
        }
        // The first look leaves the waker, without which the pump would not hear of the end.
        if self.told.is_some() {
            self.poll();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end, if it is there.
    pub(crate) fn poll(&self) -> Option<Arc<Outcome>> {
        let mut run = self.lock();
        if let Run::Waiting(start) = &mut *run {
            match start.gate.as_ref().map_or(Ok(true), StreamGate::is_reached) {
                Ok(false) => return None,
                Ok(true) => {
                    let start = start.taken();
                    *run = start.begun();
                }
                Err(error) => {
                    return Some(self.end(run, SwCompletion::failed(status_of(error.kind()), self.user), Some(error)));
                }
            }
        }
        let pending = match &mut *run {
            Run::Over(outcome) => return Some(outcome.clone()),
            Run::Fresh(_) | Run::Waiting(_) => return None,
            Run::Running { pending, .. } => pending,
        };
        let waker = Waker::from(self.signal.clone());
        let done = match Pin::new(pending).poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => return None,
            Poll::Ready(done) => done,
        };
        let (completion, error) = without_memory(done, self.user);
        Some(self.end(run, completion, error))
    }

    /// Its stream goes on now, not when the handle ends.
    fn end(&self, mut run: MutexGuard<'_, Run>, completion: SwCompletion, error: Option<Error>) -> Arc<Outcome> {
        let outcome = Arc::new(Outcome { completion, failure: error.map(Failure::new) });
        let before = std::mem::replace(&mut *run, Run::Over(outcome.clone()));
        drop(run);
        drop(before);
        // Whoever did not find the end learns that another did.
        self.signal.raise();
        outcome
    }

    /// Ends it without an answer of the engine's.
    pub(crate) fn give_up(&self, kind: ErrorKind, why: &'static str) {
        let error = Error::new(kind, Verb::Setup).at("operation").detail(why);
        let run = self.lock();
        if !matches!(*run, Run::Over(_)) {
            self.end(run, SwCompletion::failed(status_of(kind), self.user), Some(error));
        }
    }

    /// Whether it waits for its stream.
    pub(crate) fn is_gated(&self) -> Gated {
        if matches!(*self.lock(), Run::Waiting(_)) { Gated::Yes } else { Gated::No }
    }

    /// Tells whom it concerns, once.
    pub(crate) fn tell(&self, outcome: &Outcome) {
        let Some(told) = &self.told else { return };
        let _running = told.running.lock().unwrap_or_else(PoisonError::into_inner);
        if told.settled.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(mut event) = told.event.as_ref() {
            // It fails only if nobody read it 2^64 times.
            let _ = event.write(&1_u64.to_ne_bytes());
        }
        if let Some(callback) = told.callback {
            outcome.status();
            let handle = told.handle.get().copied().unwrap_or_default();
            callback(Handle::from_raw(handle), In::lent(&outcome.completion), self.user);
        }
    }

    /// Nobody is told any more; waits for a callback that runs, unless this is one.
    fn silence(&self) {
        let Some(told) = &self.told else { return };
        told.settled.store(true, Ordering::Release);
        if !pump::is_this_thread() {
            drop(told.running.lock().unwrap_or_else(PoisonError::into_inner));
        }
        if let Some((pump, number)) = &self.signal.pump {
            pump.remove(*number);
        }
    }
}

/// What is told of an end. Its memory goes back here: whoever learns of the end may free the region.
fn without_memory(done: Completed, user: Addr) -> (SwCompletion, Option<Error>) {
    (SwCompletion::new(&done, user), done.result.err())
}

/// Whether an operation waits for its stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gated {
    Yes,
    No,
}

impl Start {
    fn taken(&mut self) -> Self {
        Self { request: self.request.take(), gate: self.gate.take() }
    }

    fn begun(self) -> Run {
        match self.request {
            Some(request) => Run::Running { pending: request.start(), _gate: self.gate },
            None => Run::Fresh(self),
        }
    }
}

impl Outcome {
    /// Its status, with the error as the thread's last one.
    fn status(&self) -> SwStatus {
        if let Some(failure) = &self.failure {
            last::set(failure.clone());
        }
        self.completion.status
    }
}

/// An operation that could begin.
struct Ready {
    request: Request,
    options: SwIoOptions,
    event: Option<File>,
    gate: Option<StreamGate>,
}

fn ready(state: &ObjectState, verb: SwVerb, what: What, options: SwIoOptions) -> Result<Ready, Error> {
    let request = with_options(moved(state, verb, what)?.request(state, verb), &options)?;
    let event = if options.flags & SW_IO_EVENT_FD == 0 {
        None
    } else {
        let own = own_descriptor(options.event_fd);
        let refused =
            |cause: std::io::Error| misuse(format!("event_fd {}: {cause}", options.event_fd), "give an open eventfd");
        Some(File::from(own.map_err(refused)?))
    };
    let gate = if options.flags & SW_IO_STREAM == 0 {
        None
    } else {
        let gpu = u16::try_from(options.stream_gpu).map_err(|_| {
            misuse(format!("stream_gpu {} is no GPU", options.stream_gpu), "count as the driver counts")
        })?;
        Some(state.engine.engine.stream_gate(gpu, stream(options.stream))?)
    };
    Ok(Ready { request, options, event, gate })
}

/// Begins one operation.
fn start(
    object: Handle<SwObject>,
    verb: SwVerb,
    what: What,
    options: In<SwIoOptions>,
    op: Out<Handle<SwOp>>,
) -> SwStatus {
    call(|| {
        let options = options.sized()?;
        let place = place(op, std::iter::once(options.callback))?;
        let state = object.get()?;
        let op = Arc::new(Op::new(ready(&state, verb, what, options)?, &state.engine)?);
        let handle = match place {
            Some(_) => Handle::make(op.clone())?,
            None => Handle::NULL,
        };
        if let Some(place) = place {
            place.put(handle);
        }
        op.begin(handle);
        Ok(())
    })
}

/// Where handles go; none for operations whose end is told to a callback and that nobody else asks for.
fn place(
    ops: Out<Handle<SwOp>>,
    mut callbacks: impl Iterator<Item = SwCallback>,
) -> Result<Option<pointer::Ready<Handle<SwOp>>>, Error> {
    if ops.is_null() && callbacks.all(|callback| callback.is_some()) { Ok(None) } else { ops.ready("op").map(Some) }
}

/// Starts a read and returns at once; otherwise as `sw_read`. `op` may be NULL if there is a callback: the operation is freed
/// after it then. If all queues are full the operation waits for a place, and moves when somebody asks for it.
#[unsafe(no_mangle)]
pub extern "C" fn sw_read_start(
    object: Handle<SwObject>,
    offset: u64,
    region: Handle<SwRegion>,
    region_offset: u64,
    length: u64,
    options: In<SwIoOptions>,
    op: Out<Handle<SwOp>>,
) -> SwStatus {
    start(object, SW_VERB_READ, What::One { offset, region, region_offset, length }, options, op)
}

/// Starts a write; as `sw_read_start`.
#[unsafe(no_mangle)]
pub extern "C" fn sw_write_start(
    object: Handle<SwObject>,
    offset: u64,
    region: Handle<SwRegion>,
    region_offset: u64,
    length: u64,
    options: In<SwIoOptions>,
    op: Out<Handle<SwOp>>,
) -> SwStatus {
    start(object, SW_VERB_WRITE, What::One { offset, region, region_offset, length }, options, op)
}

/// Starts `count` operations together (1 to `SW_OPS_MAX`), of any objects of any engines. `ops` is an array of as many handles;
/// NULL if every request has a callback. They may begin and end in any order. All requests are checked before the first begins:
/// after an error none has.
#[unsafe(no_mangle)]
pub extern "C" fn sw_submit(requests: In<SwRequest>, count: usize, ops: Out<Handle<SwOp>>) -> SwStatus {
    call(|| {
        check_count(count)?;
        let stride = requests.stride()?;
        let made = (0..count).map(|index| {
            let read = requests.sized_at(index * stride).and_then(|request| of_request(&request));
            read.map_err(|error| in_request(&error, index))
        });
        let made = made.collect::<Result<Vec<_>, Error>>()?;
        let place = place(ops, made.iter().map(|op| op.told.as_ref().and_then(|told| told.callback)))?;
        let mut handles = Vec::with_capacity(count);
        for op in &made {
            let handle = if place.is_some() { Handle::make(op.clone()) } else { Ok(Handle::NULL) };
            handles.push(handle.inspect_err(|_| handles.iter().for_each(|handle: &Handle<SwOp>| forget(*handle)))?);
        }
        for (index, (op, handle)) in made.iter().zip(handles).enumerate() {
            if let Some(place) = place {
                place.put_at(index, handle);
            }
            op.begin(handle);
        }
        Ok(())
    })
}

fn forget(handle: Handle<SwOp>) {
    let _ = handle.end(|_| Ok(()));
}

fn check_count(count: usize) -> Result<(), Error> {
    if (1..=SW_OPS_MAX as usize).contains(&count) {
        return Ok(());
    }
    Err(misuse(format!("{count} operations"), "give 1 to 65,536"))
}

fn of_request(request: &SwRequest) -> Result<Arc<Op>, Error> {
    let options = request.options.sized()?;
    let SwRequest { offset, region, region_offset, length, parts, .. } = *request;
    let what = match (parts.is_null(), region.is_null()) {
        (false, false) => return Err(misuse("a request with a region and with parts", "give one of them")),
        (false, true) => What::Parts { parts, count: request.part_count },
        (true, true) if request.verb == SW_VERB_FLUSH => What::Nothing,
        (true, _) => What::One { offset, region, region_offset, length },
    };
    let state = request.object.get()?;
    Ok(Arc::new(Op::new(ready(&state, request.verb, what, options)?, &state.engine)?))
}

/// The same error, with the request that it is about.
fn in_request(error: &Error, index: usize) -> Error {
    let place = error.location().name.as_deref().unwrap_or_default();
    let (offset, len) = error.location().range.unwrap_or_default();
    let named = Error::new(error.kind(), error.verb())
        .at(format!("request {index}: {place}"))
        .detail(error.to_string())
        .remedy(error.remedy_text().to_owned())
        .with_code(error.code())
        .with_reasons(error.reasons().to_vec());
    if len == 0 { named } else { named.in_range(offset, len) }
}

/// Looks whether an operation is over. If it is: the completion is filled (unless it is NULL), and its status is returned.
/// Otherwise `SW_PENDING`. It may be asked again and again.
#[unsafe(no_mangle)]
pub extern "C" fn sw_op_poll(op: Handle<SwOp>, completion: Out<SwCompletion>) -> SwStatus {
    sw_op_wait(op, 0, completion)
}

/// Waits for an operation for at most `timeout_ns` nanoseconds; `SW_FOREVER`: as long as it takes. As `sw_op_poll` otherwise.
#[unsafe(no_mangle)]
pub extern "C" fn sw_op_wait(op: Handle<SwOp>, timeout_ns: u64, completion: Out<SwCompletion>) -> SwStatus {
    ask(|| {
        let out = completion.optional()?;
        let op = op.get()?;
        let outcome = match op.poll() {
            None if timeout_ns > 0 => wait_for(std::slice::from_ref(&op), 1, timeout_ns).pop().flatten(),
            found => found,
        };
        Ok(outcome.map_or(SW_PENDING, |outcome| {
            out.put(|| outcome.completion);
            outcome.status()
        }))
    })
}

/// Waits until at least `min` of `count` operations are over (`min` up to `count`; `count` up to `SW_OPS_MAX`), for at most
/// `timeout_ns` nanoseconds. `over` tells how many are. `SW_PENDING` if there are fewer than `min`. Ask each with `sw_op_poll` then.
#[unsafe(no_mangle)]
pub extern "C" fn sw_op_wait_many(
    ops: In<Handle<SwOp>>,
    count: usize,
    min: usize,
    timeout_ns: u64,
    over: Out<usize>,
) -> SwStatus {
    ask(|| {
        let over = over.ready("over")?;
        check_count(count)?;
        if min > count {
            return Err(misuse(format!("{min} of {count} operations"), "wait for as many as there are"));
        }
        let ops = (0..count).map(|index| ops.element(index, "ops")?.get()).collect::<Result<Vec<_>, Error>>()?;
        let found = wait_for(&ops, min, timeout_ns).iter().flatten().count();
        over.put(found);
        Ok(if found >= min { SW_OK } else { SW_PENDING })
    })
}

fn wait_for(ops: &[Arc<Op>], min: usize, timeout_ns: u64) -> Vec<Option<Arc<Outcome>>> {
    let until = Until::after(timeout_ns);
    let parker = Arc::new(Parker::default());
    let lists = || ops.iter().map(|op| op.signal.waiting.lock().unwrap_or_else(PoisonError::into_inner));
    lists().for_each(|mut list| list.push(parker.clone()));
    let mut found: Vec<Option<Arc<Outcome>>> = vec![None; ops.len()];
    loop {
        for (op, found) in ops.iter().zip(&mut found) {
            if found.is_none() {
                *found = op.poll();
            }
        }
        if found.iter().flatten().count() >= min || !parker.park(until) {
            break;
        }
    }
    lists().for_each(|mut list| list.retain(|other| !Arc::ptr_eq(other, &parker)));
    found
}

/// Asks for an early end of an operation. It still comes to an end of its own: `SW_ERR_CANCELLED`, or what it came to first.
#[unsafe(no_mangle)]
pub extern "C" fn sw_op_cancel(op: Handle<SwOp>) -> SwStatus {
    call(|| {
        let op = op.get()?;
        if let Run::Running { pending, .. } = &mut *op.lock() {
            pending.cancel();
        }
        if op.is_gated() == Gated::Yes {
            op.give_up(ErrorKind::Cancelled, "cancelled while it waited for its stream");
        }
        // One that was not begun has its end now.
        op.poll();
        Ok(())
    })
}

/// Frees an operation. One that is not over is ended early, and nobody learns of its end; its memory is held until no device
/// touches it any more. Whoever waits for it is told `SW_ERR_CANCELLED`. Its callback is not running when this returns, unless
/// this was called from a callback.
#[unsafe(no_mangle)]
pub extern "C" fn sw_op_free(op: Handle<SwOp>) -> SwStatus {
    call(|| {
        let op = op.end(|_| Ok(()))?;
        op.silence();
        op.give_up(ErrorKind::Cancelled, "the operation was freed before its end");
        Ok(())
    })
}
