//! What an engine is inside: groups of lanes, the pool of cells, and whether all is well.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crossbeam_queue::ArrayQueue;
use sw_cache::CacheConfig;
use sw_engine::{
    Completion, Counters, Error, ErrorKind, Lane, MemoryFacts, Op, Plan, Policy, RateClass, RateTable, Reason,
    Rejected, Retry, Time, Verb, inspect::Tree, seam::Wait,
};
use sw_mem::{ByteLen, ForkMark, KeptMappings};

use crate::{
    backends::{Backends, CuFileSource, Owner},
    builder::Config,
    cell::CellPool,
    clock::Clock,
    keys::NvmeTcpKeys,
    object::Object,
    policy::{BARS_MAX, Destination},
    reach::{Ask, Reach, SelfTest},
    reactor::Reactor,
    remotes::Remote,
};

/// GPUs that one engine can serve.
const GPUS_MAX: usize = 64;
/// Idle lanes for callers that run their own operation: one a core is enough, as a running one keeps a core busy.
const INLINE_LANES_MAX: usize = 16;
/// Longest sleep of a caller that runs its own operation: its lane's waits end earlier by themselves.
const INLINE_STEP: Duration = Duration::from_millis(100);
/// How long a lane that closes waits for its devices to let go of memory. What they hold then stays theirs for ever.
const FENCE_WAIT: Duration = Duration::from_secs(1);
/// How often a close looks for lanes that callers still run.
const CLOSE_STEP: Duration = Duration::from_millis(5);
/// Bytes from which an operation says something about a rate.
const RATED_BYTES: u64 = 1 << 20;

/// Where an object's bytes were when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nine tenths or more in the page cache.
    PageCache,
    /// On the device, or nobody can tell.
    Device,
}

/// Lanes that serve one destination: host memory, one GPU, or the memory behind one BAR.
pub(crate) struct Group {
    destination: Destination,
    reactors: Vec<OnceLock<Reactor>>,
    /// Held while a reactor is started: one at a time, none once the engine closes.
    starting: Mutex<()>,
    next: AtomicUsize,
    idle: ArrayQueue<Box<Lane>>,
    inline_made: AtomicUsize,
    /// Whoever closes waits for leased lanes to come back: telling it is a system call, so it says that it is there.
    returned: (Mutex<()>, Condvar),
    closing: AtomicBool,
}

/// See the module documentation.
pub(crate) struct Core {
    this: Weak<Core>,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) backends: Backends,
    pub(crate) cells: CellPool,
    pub(crate) kept: KeptMappings,
    host: Group,
    gpus: [OnceLock<Group>; GPUS_MAX],
    bars: [OnceLock<Group>; BARS_MAX],
    rates: Mutex<RateTable>,
    fork: ForkMark,
    poisoned: AtomicBool,
    closed: AtomicBool,
    stuck: AtomicU32,
}

impl Group {
    fn new(destination: Destination, reactors: u32) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            destination,
            reactors: (0..reactors).map(|_| OnceLock::new()).collect(),
            starting: Mutex::new(()),
            next: AtomicUsize::new(0),
            idle: ArrayQueue::new(cores.clamp(1, INLINE_LANES_MAX)),
            inline_made: AtomicUsize::new(0),
            returned: (Mutex::new(()), Condvar::new()),
            closing: AtomicBool::new(false),
        }
    }
}

impl Group {
    /// Lets idle lanes free what their devices have let go of since: memory of operations that missed their deadline.
    fn reap(&self, clock: Clock) {
        for _ in 0..self.idle.len() {
            let Some(mut lane) = self.idle.pop() else { break };
            if lane.slot_counts().abandoned > 0 {
                lane.poll(clock.now(), Wait::No);
            }
            let _ = self.idle.push(lane);
        }
    }
}

impl Group {
    /// Closes the idle lanes, and waits for those that callers are running: each notices the close within a step.
    /// Returns the slots that a device did not let go of, and the lanes that did not come back.
    fn close_inline(&self, clock: Clock) -> u32 {
        let until = clock.now().after(crate::Engine::CLOSE_WAIT);
        let mut stuck = 0;
        self.closing.store(true, Ordering::Release);
        loop {
            while let Some(mut lane) = self.idle.pop() {
                stuck += lane.close(clock.now(), FENCE_WAIT);
                self.inline_made.fetch_sub(1, Ordering::AcqRel);
            }
            let out = self.inline_made.load(Ordering::Acquire);
            if out == 0 || clock.now() >= until {
                return stuck + u32::try_from(out).unwrap_or(u32::MAX);
            }
            let returned = self.returned.0.lock().unwrap_or_else(PoisonError::into_inner);
            // The lock only orders the wait; a return between the look and the wait costs one step.
            drop(self.returned.1.wait_timeout(returned, CLOSE_STEP));
        }
    }

    /// A leased lane comes back; one whose transports all broke is replaced at the next lease.
    fn give_back(&self, lane: Box<Lane>) {
        if lane.is_broken() {
            drop(lane);
            self.inline_made.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        // There is room: at most as many lanes exist as the queue holds.
        let _ = self.idle.push(lane);
        if self.closing.load(Ordering::Acquire) {
            self.returned.1.notify_all();
        }
    }
}

impl Core {
    pub(crate) fn new(
        config: Config,
        cufile: CuFileSource,
        keys: NvmeTcpKeys,
        remote: (Remote, Option<CacheConfig>),
    ) -> Arc<Self> {
        let clock = Clock::start();
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            config,
            clock,
            backends: Backends::find(config, clock, cufile, keys, remote),
            cells: CellPool::new(),
            kept: KeptMappings::new(ByteLen(config.keep_bytes)),
            host: Group::new(Destination::Host, config.reactors),
            gpus: [const { OnceLock::new() }; GPUS_MAX],
            bars: [const { OnceLock::new() }; BARS_MAX],
            rates: Mutex::default(),
            fork: ForkMark::new(),
            poisoned: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            stuck: AtomicU32::new(0),
        })
    }

    /// Whether this engine may be used here and now.
    pub(crate) fn check(&self, verb: Verb) -> Result<(), Error> {
        let fail = |kind| Error::new(kind, verb).at("engine");
        if let Some(error) = self.forked() {
            return Err(error);
        }
        if self.poisoned.load(Ordering::Acquire) {
            return Err(fail(ErrorKind::Poisoned)
                .detail("a bug of ours was contained; this engine takes no more work")
                .remedy("report the panic message and make a new engine"));
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(fail(ErrorKind::Closed).detail("the engine is closed"));
        }
        Ok(())
    }

    /// The error of a forked child; `None` in the process that made the engine.
    pub(crate) fn forked(&self) -> Option<Error> {
        self.fork.is_child().then(|| {
            Error::new(ErrorKind::Forked, Verb::Setup)
                .at("engine")
                .detail("the process was forked after the engine was made; its rings and threads belong to the parent")
                .remedy("make an engine in the child, or start workers with spawn instead of fork")
        })
    }

    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    pub(crate) fn group(&self, destination: Destination) -> Result<&Group, Error> {
        let slot = match destination {
            // Peer memory has addresses of this process: the same lanes move its bytes.
            Destination::Host | Destination::PeerMemory(_) => return Ok(&self.host),
            Destination::Gpu(ordinal) => self.gpus.get(usize::from(ordinal)),
            Destination::Bar(bar) => {
                if bar.known().is_none() {
                    // Opens it, which gives it a place.
                    self.backends.check_device(destination)?;
                }
                bar.known().and_then(|index| self.bars.get(usize::from(index)))
            }
        };
        let slot = slot.ok_or_else(|| {
            Error::new(ErrorKind::NoDevice, Verb::Setup)
                .at(destination.to_string())
                .detail("an engine serves GPUs 0 to 63, and a process 64 different BARs")
        })?;
        if let Some(group) = slot.get() {
            return Ok(group);
        }
        self.backends.check_device(destination)?;
        Ok(slot.get_or_init(|| Group::new(destination, self.config.reactors)))
    }

    /// A new lane for a group.
    pub(crate) fn make_lane(&self, group: &Group, owner: Owner) -> Result<Lane, Error> {
        Lane::new(self.backends.lane_config(), self.backends.parts(owner, group.destination)?)
    }

    /// The next reactor of a group with its index, started if need be. One that cannot be started is tried again by the
    /// next operation: memory that was refused may be there then.
    pub(crate) fn reactor<'a>(&self, group: &'a Group) -> Result<(usize, &'a Reactor), Error> {
        let index = group.next.fetch_add(1, Ordering::Relaxed) % group.reactors.len();
        self.reactor_at(group, index).map(|reactor| (index, reactor))
    }

    /// Starts all reactors of a group, so that the next operations set up nothing.
    pub(crate) fn start_all(&self, group: &Group) -> Result<(), Error> {
        (0..group.reactors.len()).try_for_each(|index| self.reactor_at(group, index).map(drop))
    }

    fn reactor_at<'a>(&self, group: &'a Group, index: usize) -> Result<&'a Reactor, Error> {
        let slot = &group.reactors[index];
        if let Some(reactor) = slot.get() {
            return Ok(reactor);
        }
        let _starting = group.starting.lock().unwrap_or_else(PoisonError::into_inner);
        self.check(Verb::Setup)?;
        if slot.get().is_none() {
            let lane = self.make_lane(group, Owner::OneThread)?;
            let reactor = Reactor::start(index, lane, self.clock, self.this.clone())?;
            return Ok(slot.get_or_init(|| reactor));
        }
        slot.get().ok_or_else(|| Error::new(ErrorKind::Closed, Verb::Setup))
    }

    /// A reactor that was started before.
    pub(crate) fn started_reactor(&self, destination: Destination, index: usize) -> Option<&Reactor> {
        self.group(destination).ok()?.reactors.get(index)?.get()
    }

    /// Plans over the transports that every lane of this engine has, for `object`: all of `whole`, or a member of it. What comes back
    /// with the plan is what an operation names: `object`, or the same with one more face.
    pub(crate) fn plan(
        &self,
        whole: &Object,
        object: &Arc<sw_engine::Object>,
        (destination, ask): (Destination, Ask),
        policy: &Policy,
        verb: Verb,
    ) -> (Arc<sw_engine::Object>, Plan) {
        let present = match ask {
            Ask::Facts => self.backends.expect_memory(destination),
            // Whoever is about to use it has it.
            Ask::Proof => Ok(()),
        };
        let facts = MemoryFacts {
            device: destination.device(),
            present: if present.is_ok() { Ok(()) } else { Err(Reason::NoSuchMemory) },
            in_place: self.reach(whole, object, destination, ask).in_place,
            may_go: matches!(destination, Destination::PeerMemory(_)),
            copy_engine: self.backends.copy_engine_verdict(destination),
            staging: Ok(()),
        };
        let mut caps = self.backends.transport_caps(destination);
        let rates = if is_rated(destination) { self.rates() } else { RateTable::new() };
        let policy = self.backends.vendor.policy(*policy);
        // In a child the lock of the registration may be held for ever.
        let view = (!self.fork.is_child())
            .then(|| self.backends.vendor.view((whole, object), (destination, ask), &policy, verb))
            .flatten();
        let planned = view.as_ref().map_or(object, |view| &view.object).clone();
        if let Some(view) = &view {
            view.judge(&mut caps);
        }
        let plan = sw_engine::plan(&planned, &facts, &caps, &policy, &rates, verb);
        let plan = match (present, view) {
            // It says what is missing, and what to do.
            (Err(error), _) => Plan { choice: Err(error), ..plan },
            (Ok(()), Some(view)) => view.explain(plan, verb),
            (Ok(()), None) => plan,
        };
        (planned, plan)
    }

    /// What is known of `object` (a member of `whole`, or all of it) and a destination.
    pub(crate) fn reach(
        &self,
        whole: &Object,
        object: &sw_engine::Object,
        destination: Destination,
        ask: Ask,
    ) -> Reach {
        match destination {
            Destination::Host | Destination::Gpu(_) => Reach::UNASKED,
            Destination::Bar(bar) if self.backends.nvme.has_peer(bar) => {
                Reach { self_test: SelfTest::Done, ..Reach::UNASKED }
            }
            Destination::Bar(_) => Reach { self_test: SelfTest::AtFirstUse, ..Reach::UNASKED },
            Destination::PeerMemory(provider) => whole.reaches().get(object, provider, ask, &self.backends.scratches),
        }
    }

    /// Runs an operation on the calling thread, in a lane that is idle; gives it back if there is none. `name` is its object's.
    pub(crate) fn run_inline(&self, group: &Group, op: Op, name: &str) -> Result<Completion, Op> {
        let Some(mut lane) = self.idle_lane(group) else { return Err(op) };
        let verb = op.verb;
        let ran = catch_unwind(AssertUnwindSafe(move || {
            let done = self.drive(&mut lane, op);
            (lane, done)
        }));
        match ran {
            Ok((lane, done)) => {
                group.give_back(lane);
                Ok(done.unwrap_or_else(|rejected| crate::request::rejected(*rejected)))
            }
            Err(_panic) => {
                group.inline_made.fetch_sub(1, Ordering::AcqRel);
                self.poison();
                let error = Error::new(ErrorKind::Poisoned, verb).at(name).detail("a bug of ours was contained");
                Ok(crate::request::failed(error))
            }
        }
    }

    fn idle_lane(&self, group: &Group) -> Option<Box<Lane>> {
        if let Some(lane) = group.idle.pop() {
            return Some(lane);
        }
        let made = group.inline_made.fetch_add(1, Ordering::AcqRel);
        if made < group.idle.capacity()
            && let Ok(lane) = self.make_lane(group, Owner::Anybody)
        {
            return Some(Box::new(lane));
        }
        group.inline_made.fetch_sub(1, Ordering::AcqRel);
        None
    }

    /// Lets idle lanes free what their devices have let go of since. For whoever is about to ask for memory.
    pub(crate) fn reap(&self) {
        self.groups().for_each(|group| group.reap(self.clock));
    }

    /// Submits and drives one operation to its end, which the closing of the engine may bring.
    fn drive(&self, lane: &mut Lane, op: Op) -> Result<Completion, Box<Rejected>> {
        let clock = self.clock;
        let mut op = op;
        loop {
            match lane.submit(clock.now(), op) {
                Ok(_) => break,
                // Slots of operations that missed their deadline may fill an idle lane; they end, or the caller's deadline does.
                Err(rejected)
                    if rejected.error.kind() == ErrorKind::Busy
                        && !self.closed.load(Ordering::Acquire)
                        && !is_late(&rejected.op, clock.now()) =>
                {
                    op = rejected.op;
                    match rejected.error.retry() {
                        Retry::After(wait) => std::thread::park_timeout(wait.min(INLINE_STEP)),
                        _ => drop(lane.poll(clock.now(), Wait::For { timeout: INLINE_STEP, min: 1 })),
                    }
                }
                Err(rejected) => return Err(Box::new(rejected)),
            }
        }
        loop {
            if let Some(done) = lane.pop() {
                return Ok(done);
            }
            if self.closed.load(Ordering::Acquire) {
                let stuck = lane.close(clock.now(), FENCE_WAIT);
                self.stuck.fetch_add(stuck, Ordering::AcqRel);
                continue;
            }
            let now = clock.now();
            let until = lane.next_deadline().unwrap_or(Time::FOREVER).since(now);
            let min = 4;
            lane.poll(now, Wait::For { timeout: until.min(INLINE_STEP), min });
        }
    }

    /// Remembers how fast a large operation into (or from) `destination` was.
    pub(crate) fn rate(&self, completion: &Completion, destination: Destination, source: Source) {
        if let Ok(bytes) = completion.result
            && bytes >= RATED_BYTES
            && is_rated(destination)
            && let Some(class) = completion.rate_class()
        {
            let class = RateClass { resident: source == Source::PageCache, ..class };
            // On the data path: nobody waits for the lock. One rate less changes nothing.
            if let Ok(mut rates) = self.rates.try_lock() {
                rates.record(class, bytes, completion.times.moving_ns);
            }
        }
    }

    pub(crate) fn rates(&self) -> RateTable {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn groups(&self) -> impl Iterator<Item = &Group> {
        std::iter::once(&self.host).chain(self.gpus.iter().chain(&self.bars).filter_map(OnceLock::get))
    }

    /// Counters and state of every lane that can be looked at now: reactors, and lanes that no caller is running.
    pub(crate) fn reports(&self) -> Vec<(Counters, Option<Tree>)> {
        let mut all = Vec::new();
        for group in self.groups() {
            group.reap(self.clock);
            let started = group.reactors.iter().filter_map(OnceLock::get);
            all.extend(started.map(|reactor| reactor.report(Duration::from_millis(100))));
            for _ in 0..group.idle.len() {
                let Some(lane) = group.idle.pop() else { break };
                all.push((*lane.counters(), Some(lane.inspect())));
                let _ = group.idle.push(lane);
            }
        }
        all
    }

    /// Ends everything; idempotent. Returns the slots that a device did not let go of.
    pub(crate) fn close(&self) -> u32 {
        if self.fork.is_child() || self.closed.swap(true, Ordering::AcqRel) {
            return self.stuck.load(Ordering::Acquire);
        }
        let mut stuck = 0;
        for group in self.groups() {
            // Whoever is starting a reactor ends first; nobody starts one afterwards.
            drop(group.starting.lock().unwrap_or_else(PoisonError::into_inner));
            stuck += group.reactors.iter().filter_map(OnceLock::get).map(Reactor::stop).sum::<u32>();
            stuck += group.close_inline(self.clock);
        }
        self.stuck.fetch_add(stuck, Ordering::AcqRel);
        self.backends.nvme.shut_down();
        self.backends.all_fabrics().for_each(crate::fabrics::Fabrics::shut_down);
        stuck
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.close();
    }
}

/// Whether rates of this memory are kept, and looked at in its plans. Behind PCI the same landing has another rate than in
/// host memory, and the table does not tell the two apart; a GPU's is always staged.
fn is_rated(destination: Destination) -> bool {
    match destination {
        Destination::Host | Destination::Gpu(_) => true,
        Destination::Bar(_) | Destination::PeerMemory(_) => false,
    }
}

fn is_late(op: &Op, now: Time) -> bool {
    op.options.deadline.is_some_and(|deadline| deadline <= now)
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
