//! Requests: an operation before it starts, while it runs, and when it is over.

use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use sw_engine::{
    Completion, DataPath, Error, ErrorKind, Layout, Op, OpOptions, Policy, Rejected, Segment, Spans, Target, Time,
    Times, Verb, WriteOutcome, checksum::Algorithm,
};

use crate::{
    cell::{Cell, thread_parker},
    core::{Core, Source},
    memory::Memory,
    object::Object,
    policy::Destination,
    reach::Ask,
    reactor::{Command, Reactor},
};

/// An operation that has not started. Call [`Request::wait`], [`Request::start`], or `.await` it.
#[must_use = "a request does nothing until it is waited for, started or awaited"]
#[derive(Debug)]
pub struct Request {
    core: Arc<Core>,
    object: Object,
    verb: Verb,
    offset: u64,
    spans: Spans,
    policy: Policy,
    deadline: Option<Duration>,
    options: OpOptions,
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completed {
    /// Bytes moved (all that were asked for), or why not.
    pub result: Result<u64, Error>,
    /// The way that the bytes took.
    pub path: DataPath,
    /// Where the time went.
    pub times: Times,
    /// The checksum that was asked for, if the operation succeeded and the CPU saw its bytes: not those that a device put
    /// straight into another device's memory.
    pub checksum: Option<u64>,
    spans: Option<Spans>,
}

/// An operation that was started. Dropping it gives up the answer: the operation is ended early, and its memory is freed
/// when no device touches it any more.
#[derive(Debug)]
pub struct Pending {
    core: Arc<Core>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// No room in the queue yet.
    Unsent(Unsent),
    /// With a reactor.
    Sent { cell: Arc<Cell>, destination: Destination, reactor: usize },
    /// Over before it started, or run in line.
    Over(Option<Box<Completed>>),
}

#[derive(Debug)]
struct Unsent {
    op: Op,
    destination: Destination,
    since: Time,
}

/// An operation that only has to be carried out, in whose memory; or what it came to before.
type Ready = Result<(Op, Destination), Box<Completed>>;

impl Request {
    pub(crate) fn new(core: Arc<Core>, object: Object, verb: Verb, offset: u64, spans: Spans) -> Self {
        let options = OpOptions::default();
        Self { core, object, verb, offset, spans, policy: Policy::Any, deadline: None, options }
    }

    /// Which routes are accepted. Default: the best.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// How long to wait at most, from the start of the operation. Default: for ever.
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = Some(after);
        self
    }

    /// Asks for a checksum of the operation's bytes.
    pub fn checksum(mut self, algorithm: Algorithm) -> Self {
        self.options.checksum = Some(algorithm);
        self
    }

    /// Fills host memory with `byte` before a read, so that bytes that never arrived in place show; bounced ends are copied
    /// over it.
    pub fn poison(mut self, byte: u8) -> Self {
        self.options.poison = Some(byte);
        self
    }

    /// For a flush: all metadata too.
    pub fn all_metadata(mut self) -> Self {
        self.options.all_metadata = true;
        self
    }

    /// Runs it and waits: on this thread where a lane is idle, else on a reactor.
    #[inline]
    pub fn wait(self) -> Completed {
        let (core, object, ready) = self.prepare();
        let (op, destination) = match ready {
            Ok(ready) => ready,
            Err(completed) => return *completed,
        };
        let source = source_of(&op);
        let group = match core.group(destination) {
            Ok(group) => group,
            Err(error) => return rejected(Rejected { op, error }).into(),
        };
        match core.run_inline(group, op, object.name()) {
            Ok(done) => {
                core.rate(&done, destination, source);
                done.into()
            }
            Err(op) => Pending::send(core, op, destination).wait(),
        }
    }

    /// Starts it on a reactor and returns at once.
    pub fn start(self) -> Pending {
        let (core, _, ready) = self.prepare();
        match ready {
            Ok((op, destination)) => Pending::send(core, op, destination),
            Err(completed) => Pending { core, state: State::Over(Some(completed)) },
        }
    }

    /// Checks and plans: what is left to do is the data path. Engine and object come back, for who goes on needs them.
    #[inline]
    fn prepare(self) -> (Arc<Core>, Object, Ready) {
        let Self { core, object, verb, offset, mut spans, policy, deadline, options } = self;
        let planned = core
            .check(verb)
            .and_then(|()| placed(&object, verb, offset, &mut spans))
            .and_then(|offset| Ok((offset, destination_of(&spans, verb)?)))
            .and_then(|(offset, destination)| {
                Ok((target(&core, &object, destination, &policy, verb)?, offset, destination))
            });
        let ready = match planned {
            Ok((target, offset, destination)) => {
                let deadline = deadline.map(|after| core.clock.now().after(after));
                let options = OpOptions { deadline, ..options };
                Ok((Op { user: 0, verb, target, offset, spans, options }, destination))
            }
            Err(error) => {
                let mut completed: Completed = failed(error).into();
                completed.spans = Some(spans);
                Err(Box::new(completed))
            }
        };
        (core, object, ready)
    }
}

/// Offsets of the part that the object is become offsets of the whole.
fn placed(object: &Object, verb: Verb, offset: u64, spans: &mut Spans) -> Result<u64, Error> {
    match spans {
        Spans::None => Ok(offset),
        Spans::One(span) => object.position(verb, offset, span.len().0),
        Spans::Many(segments) => {
            for segment in segments.iter_mut() {
                segment.offset = object.position(verb, segment.offset, segment.span.len().0)?;
            }
            Ok(offset)
        }
    }
}

/// Whose memory it is; one operation has one kind of memory.
fn destination_of(spans: &Spans, verb: Verb) -> Result<Destination, Error> {
    let of = |span: &sw_mem::DmaSpan| Destination::of(span.region());
    match spans {
        Spans::None => Ok(Destination::Host),
        Spans::One(span) => Ok(of(span)),
        Spans::Many(segments) => {
            let first = segments.first().map_or(Destination::Host, |segment| of(&segment.span));
            if segments.iter().all(|segment| of(&segment.span) == first) {
                Ok(first)
            } else {
                Err(Error::new(ErrorKind::ApiMisuse, verb)
                    .detail("the parts of one operation lie in different memories")
                    .remedy("make one operation for each"))
            }
        }
    }
}

/// The target of an object for a destination and a policy.
pub(crate) fn target(
    core: &Core,
    object: &Object,
    destination: Destination,
    policy: &Policy,
    verb: Verb,
) -> Result<Target, Error> {
    let vendor = &core.backends.vendor;
    let policy = &vendor.policy(*policy);
    let cached = object.cached_target(destination, *policy, verb);
    // One that names the object itself means the same to every engine; one of a vendor's library is of the engine that planned it.
    let usable = |target: &Target| Arc::ptr_eq(&target.object, object.inner()) || vendor.viewed(&target.object);
    if let Some(target) = cached.get(usable) {
        return Ok(target.clone());
    }
    let by = |inner: &Arc<sw_engine::Object>, policy: &Policy| {
        core.plan(object, inner, (destination, Ask::Proof), policy, verb)
    };
    let plan = |inner: &Arc<sw_engine::Object>| by(inner, policy);
    let target = match &object.inner().composed {
        None => {
            let (planned, plan) = plan(object.inner());
            Target::new(planned, plan.choice?)?
        }
        Some((Layout::Stripe(_), members)) => {
            let choices = members.iter().map(|member| plan(member).1.choice).collect::<Result<_, _>>()?;
            Target::composed(object.inner().clone(), choices)?
        }
        Some((Layout::Pieces(_), members)) => {
            let (origin, copies) = members.split_first().ok_or_else(|| Error::new(ErrorKind::ApiMisuse, verb))?;
            let choice = plan(origin).1.choice?;
            // The policy is of the object's own way; copies go the best that there is, or are not used.
            let copies = copies.iter().map(|copy| by(copy, &Policy::Any).1.choice);
            match std::iter::once(Ok(choice)).chain(copies).collect() {
                Ok(choices) => Target::composed(object.inner().clone(), choices)?,
                Err(_not_planned) => return Target::new(origin.clone(), choice),
            }
        }
    };
    // What was planned for now only is planned again.
    if object.members().all(|inner| is_settled(object, inner, destination)) {
        let _ = cached.set(target.clone());
    }
    Ok(target)
}

/// Whether the same plan follows next time from what is known of `inner` (`object`, or a member of it) and a destination.
fn is_settled(object: &Object, inner: &sw_engine::Object, destination: Destination) -> bool {
    match destination {
        Destination::Host | Destination::Gpu(_) | Destination::Bar(_) => true,
        Destination::PeerMemory(provider) => object.reaches().is_settled(inner.id, provider),
    }
}

fn source_of(op: &Op) -> Source {
    if op.target.object.is_resident() { Source::PageCache } else { Source::Device }
}

impl Pending {
    fn send(core: Arc<Core>, op: Op, destination: Destination) -> Self {
        let since = core.clock.now();
        let mut pending = Self { core, state: State::Unsent(Unsent { op, destination, since }) };
        pending.try_send(None);
        pending
    }

    fn is_unsent(&self) -> bool {
        matches!(self.state, State::Unsent(_))
    }

    /// Hands an unsent operation to a reactor, or registers `waker` for when there is room or its deadline is over.
    fn try_send(&mut self, waker: Option<&Waker>) {
        let State::Unsent(unsent) = std::mem::replace(&mut self.state, State::Over(None)) else { return };
        let Unsent { op, destination, since } = unsent;
        let deadline = op.options.deadline.unwrap_or(Time::FOREVER);
        let now = self.core.clock.now();
        if deadline <= now {
            let waited = now.since(since).as_millis();
            let detail =
                format!("deadline exceeded after {waited} ms; waited for a place in a queue, nothing was begun");
            return self.refuse(op, ErrorKind::DeadlineExceeded, detail);
        }
        let found = self.core.check(op.verb).and_then(|()| self.core.group(destination));
        let found = found.and_then(|group| self.core.reactor(group));
        let (index, reactor) = match found {
            Ok(found) => found,
            Err(error) => {
                self.state = State::Over(Some(Box::new(rejected(Rejected { op, error }).into())));
                return;
            }
        };
        let cell = self.core.cells.take();
        match reactor.send(Command { op, cell: cell.clone(), since }, waker, deadline) {
            Ok(()) => self.state = State::Sent { cell, destination, reactor: index },
            Err(Command { op, .. }) => {
                self.core.cells.put(cell);
                self.state = State::Unsent(Unsent { op, destination, since });
            }
        }
    }

    /// Ends an operation that nobody began: its memory comes back.
    fn refuse(&mut self, op: Op, kind: ErrorKind, detail: String) {
        let error = Error::new(kind, op.verb).at(op.target.object.name.clone()).detail(detail);
        let error = if op.verb == Verb::Write { error.with_outcome(WriteOutcome::NotApplied) } else { error };
        self.state = State::Over(Some(Box::new(rejected(Rejected { op, error }).into())));
    }

    fn with_reactor(&self, act: impl Fn(&Cell, &Reactor)) {
        if let State::Sent { cell, destination, reactor } = &self.state
            && let Some(reactor) = self.core.started_reactor(*destination, *reactor)
        {
            act(cell, reactor);
        }
    }

    /// Asks for an early end. The answer still comes: `Cancelled`, or what the operation came to first.
    pub fn cancel(&mut self) {
        if self.is_unsent() {
            let State::Unsent(unsent) = std::mem::replace(&mut self.state, State::Over(None)) else { return };
            return self.refuse(unsent.op, ErrorKind::Cancelled, "cancelled before it was begun".into());
        }
        self.with_reactor(|cell, reactor| {
            cell.cancel();
            reactor.attend();
        });
    }

    /// Waits on this thread.
    pub fn wait(self) -> Completed {
        wait_for(self)
    }
}

/// Drives a future of ours on the calling thread, without touching the thread's own park token.
fn wait_for<F: Future + Unpin>(mut future: F) -> F::Output {
    let (parker, waker) = thread_parker();
    let mut context = Context::from_waker(&waker);
    loop {
        match Pin::new(&mut future).poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => parker.park(),
        }
    }
}

impl Future for Pending {
    type Output = Completed;

    /// *Cancel safety*: dropping it at any point is fine; see [`Pending`].
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completed> {
        if self.is_unsent() {
            self.try_send(Some(context.waker()));
        }
        match &mut self.state {
            State::Unsent(_) => Poll::Pending,
            State::Over(completed) => Poll::Ready(completed.take().map_or_else(polled_again, |completed| *completed)),
            State::Sent { .. } => {
                // A child of a fork has no reactor that could ever answer.
                let forked = self.core.forked();
                let State::Sent { cell, .. } = &self.state else { return Poll::Pending };
                let done = match (forked, cell.poll(context)) {
                    (_, Poll::Ready(done)) => done,
                    (Some(error), Poll::Pending) => failed(error),
                    (None, Poll::Pending) => return Poll::Pending,
                };
                if let State::Sent { cell, destination, .. } = std::mem::replace(&mut self.state, State::Over(None)) {
                    self.core.cells.put(cell);
                    if let Some(op) = &done.op {
                        self.core.rate(&done, destination, source_of(op));
                    }
                }
                Poll::Ready(done.into())
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.with_reactor(|cell, reactor| {
            cell.drop_answer();
            reactor.attend();
        });
    }
}

impl IntoFuture for Request {
    type Output = Completed;
    type IntoFuture = Pending;

    fn into_future(self) -> Pending {
        self.start()
    }
}

/// Requests that run together. Wait for all, or await it.
#[must_use = "a batch was started; wait for it or await it"]
#[derive(Debug)]
pub struct Batch {
    pending: Vec<Pending>,
    done: Vec<Completed>,
    /// Everything before it was handed to a reactor.
    unsent: usize,
}

impl Batch {
    pub(crate) fn start(requests: Vec<Request>) -> Self {
        let pending: Vec<_> = requests.into_iter().map(Request::start).collect();
        let unsent = pending.iter().position(Pending::is_unsent).unwrap_or(pending.len());
        Self { done: Vec::with_capacity(pending.len()), pending, unsent }
    }

    /// Waits for all of them; the answers have the order of the requests.
    pub fn wait(self) -> Vec<Completed> {
        wait_for(self)
    }
}

impl Future for Batch {
    type Output = Vec<Completed>;

    /// Hands over what had no room before, then takes the answers in order: each request is looked at a bounded number of
    /// times, however many there are.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Vec<Completed>> {
        let Self { pending, done, unsent } = &mut *self;
        while let Some(next) = pending.get_mut(*unsent) {
            if next.is_unsent() {
                next.try_send(Some(context.waker()));
            }
            if next.is_unsent() {
                break;
            }
            *unsent += 1;
        }
        while let Some(first) = pending.get_mut(done.len()) {
            match Pin::new(first).poll(context) {
                Poll::Ready(completed) => done.push(completed),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(std::mem::take(done))
    }
}

impl Completed {
    /// The memory of an operation with one part. `None` if a device may still touch it, or if there is none.
    pub fn into_memory(self) -> Option<Memory> {
        match self.spans? {
            Spans::One(span) => Some(Memory { span }),
            Spans::Many(segments) => segments.into_iter().next().map(|Segment { span, .. }| Memory { span }),
            Spans::None => None,
        }
    }

    /// The memory of all parts, in their order; empty if a device may still touch it.
    pub fn into_memories(self) -> Vec<Memory> {
        match self.spans {
            Some(Spans::One(span)) => vec![Memory { span }],
            Some(Spans::Many(segments)) => segments.into_iter().map(|Segment { span, .. }| Memory { span }).collect(),
            Some(Spans::None) | None => Vec::new(),
        }
    }

    /// The memory with the path and checksum, or the error.
    ///
    /// # Errors
    /// The operation's; its memory is dropped then.
    pub fn ok(self) -> Result<Completed, Error> {
        match self.result {
            Ok(_) => Ok(self),
            Err(error) => Err(error),
        }
    }
}

impl From<Completion> for Completed {
    fn from(done: Completion) -> Self {
        let Completion { result, path, times, checksum, op, .. } = done;
        let result = result.map_err(|error| explained(error, op.as_ref()));
        Self { result, path, times, checksum, spans: op.map(|op| op.spans) }
    }
}

/// A refusal of the kernel between a drive and peer memory in the words of the PCI tree; any other error as it is.
fn explained(error: Error, op: Option<&Op>) -> Error {
    let destination = op.and_then(|op| destination_of(&op.spans, op.verb).ok());
    match (op, destination) {
        (Some(op), Some(Destination::PeerMemory(provider))) => {
            sw_uring::peer::explain(error, &op.target.object, provider)
        }
        _ => error,
    }
}

/// A completion for an operation that a lane did not take.
pub(crate) fn rejected(rejected: Rejected) -> Completion {
    Completion { op: Some(rejected.op), ..failed(rejected.error) }
}

/// A completion without memory.
pub(crate) fn failed(error: Error) -> Completion {
    Completion::failed(error)
}

fn polled_again() -> Completed {
    failed(Error::new(ErrorKind::ApiMisuse, Verb::Read).detail("a finished operation was polled again")).into()
}
