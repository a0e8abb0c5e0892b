//! A world with a network in it: the product's NVMe/TCP initiator against a modelled target, for what no test with sockets shows: what
//! is carried out late.
//!
//! ```text
//!   User ─► Lane (works, ledger) ─► Stream (HostQueue, outgoing) ─► Wire ─► Target ─► medium
//!             │ doubt, is_safe                                      cut,        late, deaf, short,
//!             ▼                                                     held,       keep-alive, CQT
//!           Attendant (association) ────────────────────────────────late
//!                                        History ◄── asked, answered, carried out ──┘
//! ```
//!
//! The product's: `sw_nvme::tcp::{association, ledger, works, outgoing, host, pdu}`, with all that decides. The world's: when threads
//! run, sockets, and the engine above, of which only "a read may be asked for again" is there.
//!
//! Judged: [`history`] for what is read and written; memory is lent while bytes land or are taken, and at no other time; every
//! operation ends when faults stop; every place in a queue comes back.

mod attendant;
mod history;
mod lane;
mod params;
mod resets;
mod stream;
mod target;
mod user;
mod wire;

use std::rc::Rc;

use sw_engine::{Token, seam::IoKind};

use crate::{
    agenda::Agenda,
    log::{Log, Mark, Marks},
    rng::Rng,
    shadow::Violation,
    world::{Outcome, Stats},
};
use attendant::{Attendant, Family};
use history::History;
use lane::{LOOK_EVERY_NS, Lane};
pub use params::{CallerParams, HostParams, NetParams};
pub use resets::ResetParams;
use target::Target;
pub use target::TargetParams;
use user::{Op, User};
use wire::Wire;
pub use wire::{Cut, CutKind, Way, WireParams};

/// Until a write that takes long has surely reached the target.
const AMBUSH_NS: u64 = 20_000_000;
/// Virtual time in which things may go wrong.
const PLAY_NS: u64 = 120_000_000_000;
/// Virtual time that operations may take when faults have stopped: far above every limit of a host, one after the other.
const DRAIN_NS: u64 = 60_000_000_000;
/// Virtual time behind the last answer, for what comes late: of drawn worlds, and of a conversation.
const SETTLE_NS: u64 = 15_000_000_000;
const SETTLE_SHORT_NS: u64 = 500_000_000;
/// Between two steps of callers that have as much under way as they may at most.
const FULL_STEP_NS: u64 = 50_000_000;
/// Events of one run at most: a world that does not come to rest is a finding.
const TURNS_MAX: u64 = 2_000_000;
/// Violations kept; later ones are consequences.
const VIOLATIONS_MAX: usize = 32;

/// What happens next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// Something of a stream is due.
    Deliver(usize, Way),
    /// A command of the target's is due.
    Job(u64),
    /// The timer of an association of the target's.
    KeepAlive(u16),
    /// A reset of a controller of the target's is over.
    Reset(usize),
    /// The host looks around.
    Tick,
    /// The callers do something.
    Step,
    /// An operation is called off.
    Deadline(u64),
    /// The association is lost under a lane.
    Ambush(usize),
}

/// What all parts of a world have.
pub(crate) struct Shared {
    pub(crate) agenda: Agenda<Event>,
    pub(crate) wire: Wire,
    pub(crate) history: History,
    log: Log,
    violations: Vec<Violation>,
    /// Until when the host sends no write.
    fence: Option<u64>,
}

impl Shared {
    pub(crate) fn now(&self) -> u64 {
        self.agenda.now()
    }

    pub(crate) fn note(&mut self, what: &str, words: &[u64]) {
        self.log.note(self.agenda.now(), what, words);
    }

    pub(crate) fn mark(&mut self, mark: Mark) {
        self.log.marks.hit(mark);
    }

    pub(crate) fn violate(&mut self, rule: &'static str, evidence: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { at: self.agenda.now(), rule, evidence });
        }
    }

    /// The target carried out a write of a block.
    pub(crate) fn carried_out(&mut self, block: u64, tag: u64) {
        let now = self.now();
        self.note("carried out", &[block, tag]);
        if self.history.is_unknown(tag) {
            self.mark(Mark::NetUnknownCarriedOut);
        }
        let broken = self.history.carried_out(now, block, tag, self.fence);
        broken.into_iter().for_each(|(rule, text)| self.violate(rule, text));
    }
}

/// What a run of one conversation came to.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// The verdict.
    pub outcome: Outcome,
    /// Bytes of each direction of the streams that were opened.
    pub bytes: Vec<[u64; 2]>,
}

/// See the module documentation.
pub struct NetWorld {
    seed: u64,
    params: NetParams,
    shared: Shared,
    target: Target,
    /// Of each path.
    attendants: Vec<Attendant>,
    family: Rc<Family>,
    lanes: Vec<Lane>,
    user: User,
    rng: Rng,
    next_tick: u64,
    /// Operations that are asked for one after the other, last one first, in place of drawn ones.
    script: Option<Vec<Op>>,
    /// Callers ask for nothing more.
    is_over: bool,
    /// Events so far.
    turns: u64,
}

impl NetWorld {
    /// Runs `seed` to its end.
    pub fn run(seed: u64) -> Outcome {
        Self::run_with(seed, NetParams::draw(seed))
    }

    /// The same with two paths.
    pub fn run_paths(seed: u64) -> Outcome {
        Self::run_with(seed, NetParams::draw_paths(seed))
    }

    /// The same with one path or two, to a target that resets controllers for its hosts.
    pub fn run_resets(seed: u64) -> Outcome {
        Self::run_with(seed, NetParams::draw_resets(seed))
    }

    fn run_with(seed: u64, params: NetParams) -> Outcome {
        let mut world = Self::new(seed, params, Vec::new());
        world.play();
        world.finish().outcome
    }

    /// Runs one conversation, the same each time but for `cut`: writes with data in the capsule and on demand, of one command and of two,
    /// reads, a flush.
    pub fn converse(cut: Option<Cut>) -> Conversation {
        let mut world = Self::new(0, NetParams::of_conversation(), cut.into_iter().collect());
        let (read, write) = (IoKind::Read, IoKind::Write);
        let ops = [(write, (0, 1)), (write, (0, 8)), (read, (0, 2)), (write, (1, 3)), (IoKind::FlushData, (0, 0))];
        let ops = ops.into_iter().chain([(write, (1, 1)), (read, (0, 8))]);
        world.script = Some(ops.rev().map(|(kind, blocks)| Op::new(0, kind, blocks)).collect());
        world.play();
        world.finish()
    }

    fn new(seed: u64, params: NetParams, cuts: Vec<Cut>) -> Self {
        let wire = Wire::new(params.wire, seed, cuts);
        let family = Rc::<Family>::default();
        let (agenda, history, log) = (Agenda::new(), History::default(), Log::new());
        let shared = Shared { agenda, wire, history, log, violations: Vec::new(), fence: None };
        Self {
            seed,
            shared,
            target: Target::new(params.target, seed),
            attendants: (0..)
                .take(params.host.paths)
                .map(|path| Attendant::new(path, &params.host, family.clone()))
                .collect(),
            family,
            lanes: (0..params.host.lanes).map(|number| Lane::new(number, &params.host)).collect(),
            user: User::default(),
            rng: Rng::split(seed, "callers"),
            next_tick: u64::MAX,
            script: None,
            is_over: false,
            turns: 0,
            params,
        }
    }

    fn holds(&self) -> bool {
        self.shared.violations.is_empty()
    }

    fn play(&mut self) {
        self.shared.agenda.plan(0, Event::Step);
        let wants = |world: &Self| match &world.script {
            Some(script) => !script.is_empty() || !world.user.live.is_empty(),
            None => world.user.count() < world.params.caller.ops,
        };
        while self.holds() && wants(self) && self.turn(PLAY_NS) {}
    }

    /// The next event; `false`: there is none until then.
    fn turn(&mut self, until: u64) -> bool {
        let Some(event) = self.shared.agenda.take_until(until) else { return false };
        self.turns += 1;
        if self.turns > TURNS_MAX {
            self.shared.violate("liveness", format!("the world does not come to rest: {event:?} is next"));
        }
        let shared = &mut self.shared;
        match event {
            Event::Deliver(stream, way) => {
                shared.wire.deliver(stream, way, &mut shared.agenda);
                if way == Way::ToTarget {
                    self.target.arrived(stream, shared);
                }
            }
            Event::Job(id) => self.target.job(id, shared),
            Event::KeepAlive(number) => self.target.timer(number, shared),
            Event::Reset(id) => self.target.reset_over(id, shared),
            Event::Tick => self.next_tick = u64::MAX,
            Event::Step => self.step(),
            Event::Ambush(lane) => self.spring(lane),
            Event::Deadline(op) => {
                if let Some(lane) = self.user.live.get(&op).and_then(|op| self.lanes.get_mut(op.lane)) {
                    shared.note("deadline", &[op]);
                    // As the product's lane: whoever asked is told at once, and the transport goes on with it.
                    if lane.cancel(Token::from_raw(op), &self.family) {
                        self.user.told(op, shared);
                    }
                }
            }
        }
        self.run_host();
        // What the host took makes room.
        self.target.flush_all(&mut self.shared);
        for kind in core::mem::take(&mut self.shared.wire.happened) {
            let mark = match kind {
                CutKind::Reset => Mark::NetReset,
                CutKind::HalfClose => Mark::NetHalfClose,
                CutKind::Partition(_) => Mark::NetPartition,
            };
            self.shared.mark(mark);
        }
        true
    }

    /// The host's threads run as far as they can.
    fn run_host(&mut self) {
        // What a lane wants the attendant may have at once, and the other way round.
        for _ in 0..2 {
            let Self { lanes, user, attendants, target, shared, .. } = self;
            attendants.iter_mut().for_each(|attendant| attendant.run(target, shared));
            let now = shared.now();
            for lane in lanes.iter_mut().filter(|lane| lane.stalled_until <= now) {
                lane.visit(&mut user.arena, attendants, shared);
            }
            self.shared.fence = self.family.0.borrow().fence().map(|fence| fence.0);
            self.take_ends();
        }
        let now = self.shared.now();
        let mut next = self.attendants.iter().map(|attendant| attendant.next).min().unwrap_or(u64::MAX);
        for lane in self.lanes.iter().filter(|lane| lane.under_way() + lane.taken() > 0) {
            next = next.min((now + LOOK_EVERY_NS).max(lane.stalled_until));
        }
        if next < self.next_tick {
            self.next_tick = next.max(now + 1);
            self.shared.agenda.plan(self.next_tick - now, Event::Tick);
        }
    }

    fn take_ends(&mut self) {
        for number in 0..self.lanes.len() {
            let ended = self.lanes.get_mut(number).map(|lane| core::mem::take(&mut lane.ended)).unwrap_or_default();
            for done in ended {
                if let Some((lane, io)) = self.user.ended(&done, &mut self.shared)
                    && let Some(lane) = self.lanes.get_mut(lane)
                {
                    lane.submit(&io, &mut self.user.arena, &mut self.attendants, &mut self.shared);
                }
                // The next one of a conversation.
                if self.script.is_some() && self.user.live.is_empty() {
                    self.shared.agenda.plan(0, Event::Step);
                }
            }
        }
    }

    /// The callers do something, and so may the network and the threads.
    fn step(&mut self) {
        if self.is_over {
            return;
        }
        if let Some(script) = &mut self.script {
            if self.user.live.is_empty()
                && let Some(op) = script.pop()
            {
                self.submit(op);
            }
            return;
        }
        let caller = self.params.caller;
        let has_room = self.user.live.len() < caller.at_a_time && self.user.count() < caller.ops;
        if has_room {
            self.meddle();
            let op = self.draw_op();
            self.submit(op);
        }
        let pause = self.rng.range(1_000, if has_room { caller.step_ns } else { FULL_STEP_NS });
        self.shared.agenda.plan(pause, Event::Step);
    }

    /// The network may fail, and threads may do something else.
    fn meddle(&mut self) {
        let caller = self.params.caller;
        if self.rng.per_mille(caller.partitions) {
            self.shared.wire.partition(&mut self.shared.agenda);
        }
        if self.rng.per_mille(caller.cuts) {
            self.shared.wire.meddle(&mut self.shared.agenda);
        }
        if self.rng.per_mille(caller.ambushes) {
            self.ambush();
        }
        if self.rng.per_mille(caller.ambushes) {
            self.blindfold();
        }
        if self.rng.per_mille(caller.stalls.0) {
            let until = self.shared.now() + self.rng.below(caller.stalls.1);
            let which = sw_mem::index(self.rng.below(self.lanes.len() as u64 + 1));
            match self.lanes.get_mut(which) {
                Some(lane) => lane.stalled_until = until,
                None => self.attendants.iter_mut().take(1).for_each(|attendant| attendant.stalled_until = until),
            }
        }
    }

    /// The admin stream of the first path whose association is up.
    fn admin_stream(&self) -> Option<usize> {
        self.attendants.iter().find_map(Attendant::admin_stream)
    }

    /// Whether the only controller that is left does not lead to the namespace.
    fn leads_elsewhere(&self) -> bool {
        let is_gone = self.attendants.first().is_some_and(|attendant| attendant.is_gone);
        is_gone && self.params.target.wrong_path.is_some()
    }

    /// A write that takes long, and soon behind it [what comes of it](Self::spring).
    fn ambush(&mut self) {
        if self.lanes.len() < 2 || self.admin_stream().is_none() {
            return;
        }
        let lane = self.write_for_long();
        self.shared.agenda.plan(AMBUSH_NS, Event::Ambush(lane));
    }

    /// The association is lost under a lane that looks elsewhere: it tells of its doubt when others have long gone on with the next one.
    fn spring(&mut self, lane: usize) {
        let Some(stream) = self.admin_stream().filter(|_| !self.is_over) else { return };
        let until = self.shared.now() + self.rng.range(AMBUSH_NS, AMBUSH_NS + self.params.target.quiesce_ns);
        self.lanes.get_mut(lane).into_iter().for_each(|lane| lane.stalled_until = until);
        self.shared.wire.cut(stream, Way::ToTarget, CutKind::Reset, &mut self.shared.agenda);
    }

    /// A write that the target takes long for; gives its lane.
    fn write_for_long(&mut self) -> usize {
        let mut op = self.draw_op();
        (op.kind, op.deadline) = (IoKind::Write, None);
        let lane = op.lane;
        self.target.linger();
        self.submit(op);
        lane
    }

    /// The host loses its queues while commands are on their way, and the target hears of the end of the association very late: what
    /// arrives meanwhile may keep the association alive.
    fn blindfold(&mut self) {
        let Some(admin) = self.admin_stream() else { return };
        self.write_for_long();
        let (keep_alive, agenda) = (1_000_000 * self.params.host.keep_alive_ms, &mut self.shared.agenda);
        for stream in admin..self.shared.wire.streams() {
            let (low, high) = if stream == admin { (keep_alive, 6 * keep_alive) } else { (1, keep_alive) };
            let held = self.rng.range(low, high);
            self.shared.wire.cut(stream, Way::ToTarget, CutKind::Partition(held), agenda);
            if stream != admin {
                self.shared.wire.cut(stream, Way::ToHost, CutKind::HalfClose, agenda);
            }
        }
    }

    fn draw_op(&mut self) -> Op {
        let caller = self.params.caller;
        let kind = match self.rng.below(1000) {
            0..20 => IoKind::FlushData,
            roll if roll < 20 + caller.writes => IoKind::Write,
            _ => IoKind::Read,
        };
        let blocks = self.rng.range(1, caller.blocks_max);
        let slba = self.rng.below(self.params.target.blocks - blocks + 1);
        let now = self.shared.now();
        let awake = self.lanes.iter().enumerate().filter(|(_, lane)| lane.stalled_until <= now);
        let awake: Vec<usize> = awake.map(|(number, _)| number).collect();
        let any = sw_mem::index(self.rng.below(self.lanes.len() as u64));
        let mut op = Op::new(self.rng.pick_or(&awake, any), kind, (slba, blocks));
        if self.rng.per_mille(caller.deadlines.0) {
            op.deadline = Some(self.shared.now() + self.rng.range(1, caller.deadlines.1));
        }
        op
    }

    fn submit(&mut self, op: Op) {
        let (lane, deadline) = (op.lane, op.deadline);
        let io = self.user.begin(op, &mut self.shared);
        if let Some(deadline) = deadline {
            let number = io.token.raw();
            self.shared.agenda.plan(deadline - self.shared.now(), Event::Deadline(number));
        }
        if self.shared.fence.is_some() && io.kind == IoKind::Write {
            self.shared.mark(Mark::NetWriteBehindFence);
        }
        if let Some(lane) = self.lanes.get_mut(lane) {
            // Its thread is here, whatever it did before.
            lane.stalled_until = 0;
            lane.submit(&io, &mut self.user.arena, &mut self.attendants, &mut self.shared);
        }
    }

    /// Faults stop: everything ends, what is late comes, and the whole medium is read.
    fn finish(mut self) -> Conversation {
        self.is_over = true;
        self.target.calm_down();
        self.shared.wire.calm_down(&mut self.shared.agenda);
        self.attendants.iter_mut().for_each(|attendant| attendant.stalled_until = 0);
        self.lanes.iter_mut().for_each(|lane| lane.stalled_until = 0);
        self.drain();
        if self.attendants.iter().any(|attendant| !attendant.is_gone) && !self.leads_elsewhere() {
            for slba in 0..self.params.target.blocks {
                self.submit(Op::new(0, IoKind::Read, (slba, 1)));
            }
            self.drain();
        }
        let settle = if self.script.is_some() { SETTLE_SHORT_NS } else { SETTLE_NS };
        let until = self.shared.now() + settle;
        while self.holds() && self.turn(until) {}
        for lane in &self.lanes {
            let (taken, under_way) = (lane.taken(), lane.under_way());
            if self.holds() && taken + under_way > 0 {
                let text =
                    format!("{taken} places of a queue and {under_way} works are taken, and nothing is under way");
                self.shared.violate("places", text);
            }
        }
        if self.holds() {
            let broken = self.shared.history.judge();
            broken.into_iter().for_each(|(rule, text)| self.shared.violate(rule, text));
        }
        self.outcome()
    }

    fn drain(&mut self) {
        let until = self.shared.now() + DRAIN_NS;
        while self.holds() && !self.user.live.is_empty() && self.turn(until) {}
        if self.holds()
            && let Some((number, op)) = self.user.live.first_key_value()
        {
            let text = format!("op {number} does not end though nothing goes wrong any more: {op:?}");
            self.shared.violate("liveness", text);
        }
        if self.holds() && self.params.is_calm && self.user.failed > 0 {
            self.shared.violate("liveness", "an operation failed where nothing goes wrong".to_owned());
        }
    }

    fn outcome(self) -> Conversation {
        let Self { seed, shared, user, params, turns, .. } = self;
        let Shared { log, violations, wire, agenda, .. } = shared;
        let mut marks: Marks = log.marks.clone();
        if wire.flipped > 0 {
            marks.hit(Mark::NetBitFlipped);
        }
        let stats = Stats {
            ops: user.count(),
            ok: user.done,
            failed: user.failed,
            bytes: user.bytes,
            events: turns,
            virtual_ns: agenda.now(),
        };
        let report = match violations.first() {
            None => String::new(),
            Some(_) => {
                let lines: Vec<String> = violations.iter().map(|one| format!("{one:?}")).collect();
                let test = match params.host.paths {
                    _ if params.target.resets.is_some() => "one_resets_seed",
                    1 => "one_net_seed",
                    _ => "one_paths_seed",
                };
                let replay =
                    format!("replay: SW_SIM_SEED={seed} cargo test -p sw-sim --test seeds {test} -- --nocapture");
                format!("seed {seed}\n{params:#?}\n{log}{}\n{replay}", lines.join("\n"))
            }
        };
        let bytes = (0..wire.streams()).map(|stream| Way::ALL.map(|way| wire.written(stream, way))).collect();
        let outcome = Outcome { seed, violations, marks, event_hash: log.hash(), stats, report };
        Conversation { outcome, bytes }
    }
}
