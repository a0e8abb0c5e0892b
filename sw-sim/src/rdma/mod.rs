//! A world with an RDMA fabric in it: the product's end of queues over RDMA against a modelled controller, each behind modelled NICs.
//!
//! ```text
//!   callers ─► Lane ─► Session (HostQueue, registrations) ─► NIC ═══ NIC ◄─ Peer ─► medium
//!                │ lent, given back                            │     cut, pulled out    late data, wrong keys, nonsense
//!                └────────── judged against ◄── touches ───────┘
//! ```
//!
//! The product's: `sw_nvme::rdma::{session, host, capsule, registrations}`, with all that decides. The world's: when threads run, time, connecting, and what
//! `sw-net` does when a queue is over (disconnect, drain within a limit, release).
//!
//! Judged: memory is written and read by NICs while it is lent for that, and at no other time; nobody changes a request's memory before its
//! completion; a read gives what is on the medium, a write that succeeded is there; an answer that invalidates a key of another command ends
//! the connection; every operation ends; a NIC that goes harms nobody else; nothing stays registered.

mod host;
mod params;
mod target;

use std::sync::Arc;

use sw_engine::seam::verbs::{Device, Fabric};
use sw_mem::RemoteAddr;
use sw_nvme::rdma::Registering;

use crate::{
    fabric::{ModelFabric, Stepped, Touch},
    log::{Log, Mark, Marks},
    rng::Rng,
    shadow::Violation,
    world::{Outcome, Stats},
};
use host::{COMMAND_NS, DRAIN_NS, Lane, Lent};
pub use params::{RdmaFaults, RdmaParams};

/// Devices of targets: one for each that is pulled out, and one more.
const TARGETS: usize = 4;
/// Events of one run at most: a world that does not come to rest is a finding.
const TURNS_MAX: u64 = 1_000_000;
/// Virtual time that operations may take when faults have stopped.
const SETTLE_NS: u64 = 200_000_000;
/// Violations kept; later ones are consequences.
const VIOLATIONS_MAX: usize = 32;

/// How a conversation is cut.
#[derive(Clone, Copy, Debug)]
pub enum RdmaCut {
    /// The target ends the connection behind so many events.
    Ended(u64),
    /// The host's NIC is pulled out behind so many events.
    PulledOut(u64),
}

/// What the world planned, in a number.
#[derive(Clone, Copy)]
enum Planned {
    /// Callers ask.
    Step,
    /// The lanes look.
    Look,
    /// A command of a lane's target is due.
    Job(usize, u16),
    /// A lane's target writes late: its place in `lates`.
    Late(usize),
}

/// What all parts of a world have.
struct Shared {
    fabric: ModelFabric,
    /// The device that targets are behind.
    target: Arc<dyn Device>,
    targets_left: usize,
    log: Log,
    violations: Vec<Violation>,
    rng: Rng,
    faults: RdmaFaults,
    /// Late writes that a target just decided on.
    late: Vec<(u16, RemoteAddr, u32)>,
    asked: u64,
    is_calm: bool,
}

impl Shared {
    fn now(&self) -> u64 {
        self.fabric.now()
    }

    fn note(&mut self, what: &str, words: &[u64]) {
        self.log.note(self.fabric.now(), what, words);
    }

    fn mark(&mut self, mark: Mark) {
        self.log.marks.hit(mark);
    }

    fn violate(&mut self, rule: &'static str, evidence: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { at: self.fabric.now(), rule, evidence });
        }
    }

    fn replace_target(&mut self) {
        self.targets_left = self.targets_left.saturating_sub(1);
        let name = format!("model{}", 2 + TARGETS - 1 - self.targets_left);
        match self.fabric.open(&name) {
            Ok(device) => self.target = device,
            Err(error) => self.violate("liveness", format!("no device for targets is left: {error}")),
        }
    }
}

/// See the module documentation.
pub struct RdmaWorld {
    seed: u64,
    params: RdmaParams,
    shared: Shared,
    lanes: Vec<Lane>,
    plans: Vec<Planned>,
    lates: Vec<(usize, u16, RemoteAddr, u32)>,
    cut: Option<RdmaCut>,
    turns: u64,
    is_over: bool,
    /// The NIC of the first lane was pulled out.
    pulled: bool,
}

impl RdmaWorld {
    /// Runs `seed` to its end.
    pub fn run(seed: u64) -> Outcome {
        Self::new(seed, RdmaParams::draw(seed), None).play()
    }

    /// Runs one conversation, the same each time but for `cut`.
    pub fn converse(registering: Registering, cut: Option<RdmaCut>) -> Outcome {
        Self::new(1, RdmaParams::of_conversation(registering), cut).play()
    }

    fn new(seed: u64, params: RdmaParams, cut: Option<RdmaCut>) -> Self {
        let fabric = ModelFabric::new(seed, params.fabric, 2 + TARGETS);
        fabric.watch();
        let open = |device: usize| fabric.open(&format!("model{device}"));
        // There are so many.
        let target = open(2).unwrap_or_else(|error| unreachable!("{error}"));
        let lanes = (0..params.lanes).filter_map(|number| Lane::new(number, open(number).ok()?, &params)).collect();
        let shared = Shared {
            target,
            fabric,
            targets_left: TARGETS - 1,
            log: Log::new(),
            violations: Vec::new(),
            rng: Rng::split(seed, "rdma"),
            faults: params.faults,
            late: Vec::new(),
            asked: 0,
            is_calm: params.is_calm() && cut.is_none(),
        };
        let (plans, lates) = (Vec::new(), Vec::new());
        Self { seed, params, shared, lanes, plans, lates, cut, turns: 0, is_over: false, pulled: false }
    }

    fn plan(&mut self, delay: u64, what: Planned) {
        self.plans.push(what);
        self.shared.fabric.plan(delay, self.plans.len() as u64 - 1);
    }

    fn holds(&self) -> bool {
        self.shared.violations.is_empty()
    }

    fn play(mut self) -> Outcome {
        self.plan(0, Planned::Step);
        let wants = |world: &Self| world.shared.asked < world.params.ops && !world.lanes.iter().all(Lane::is_gone);
        while self.holds() && wants(&self) && self.turn(u64::MAX) {}
        // Faults stop: everything ends.
        (self.is_over, self.shared.faults) = (true, RdmaFaults::default());
        self.lanes.iter_mut().for_each(|lane| lane.stalled_until = 0);
        let until = self.shared.now() + SETTLE_NS;
        while self.holds() && self.turn(until) {}
        for lane in &mut self.lanes {
            lane.visit(&mut self.shared, &self.params);
        }
        for lane in &self.lanes {
            lane.judge(&mut self.shared);
        }
        self.finish()
    }

    /// The next event; `false`: there is none until then.
    fn turn(&mut self, until: u64) -> bool {
        let Some(stepped) = self.shared.fabric.step(until) else { return false };
        self.turns += 1;
        if self.turns > TURNS_MAX {
            self.shared.violate("liveness", "the world does not come to rest".to_owned());
        }
        match self.cut {
            Some(RdmaCut::Ended(at)) if at == self.turns => self.end_connection(0),
            Some(RdmaCut::PulledOut(at)) if at == self.turns => self.shared.fabric.pull_out(0),
            _ => {}
        }
        if let Stepped::Planned(number) = stepped
            && let Some(planned) = self.plans.get(sw_mem::index(number)).copied()
        {
            match planned {
                Planned::Step => self.step(),
                Planned::Look => {}
                Planned::Job(lane, cid) => self.job(lane, cid),
                Planned::Late(late) => self.late(late),
            }
        }
        // As it was when they touched it: what is given back is given back behind.
        self.judge_touches();
        self.look();
        true
    }

    /// Callers ask, and things go wrong.
    fn step(&mut self) {
        if self.is_over {
            return;
        }
        let faults = self.params.faults;
        let lane = sw_mem::index(self.shared.rng.below(self.lanes.len() as u64));
        if self.shared.rng.per_mille(faults.cuts) {
            self.end_connection(lane);
        }
        if self.shared.rng.per_mille(faults.pulls) && !self.pulled {
            // Of the first lane only: the other one must not be harmed.
            self.pulled = true;
            self.shared.fabric.pull_out(0);
        }
        if self.shared.rng.per_mille(faults.peer_pulls) && self.shared.targets_left > 1 {
            self.shared.mark(Mark::RdmaPeerGone);
            let device = 2 + TARGETS - 1 - self.shared.targets_left;
            self.shared.fabric.pull_out(device);
            self.shared.replace_target();
        }
        if let Some(one) = self.lanes.get_mut(lane) {
            if self.shared.rng.per_mille(100) && self.params.stall_ns > 0 {
                one.stalled_until = self.shared.now() + self.shared.rng.below(self.params.stall_ns);
            } else {
                one.ask(&mut self.shared, &self.params);
            }
            let until = one.stalled_until.saturating_sub(self.shared.now());
            self.plan(until, Planned::Look);
            // When what was asked for is late.
            self.plan(until + COMMAND_NS + 1, Planned::Look);
            self.plan(until + COMMAND_NS + DRAIN_NS + 2, Planned::Look);
        }
        let pause = self.shared.rng.range(100, self.params.step_ns);
        self.plan(pause, Planned::Step);
    }

    fn end_connection(&mut self, lane: usize) {
        if let Some(peer) = self.lanes.get_mut(lane).and_then(Lane::peer) {
            peer.qp.to_error();
        }
    }

    fn job(&mut self, number: usize, cid: u16) {
        let Self { lanes, shared, .. } = self;
        let Some((peer, medium)) = lanes.get_mut(number).and_then(Lane::peer_and_medium) else { return };
        let (mut rng, faults) = (shared.rng.clone(), shared.faults);
        peer.carry_out(cid, (medium, &mut rng, &faults), shared);
        shared.rng = rng;
    }

    fn late(&mut self, late: usize) {
        let Some((lane, cid, to, bytes)) = self.lates.get(late) else { return };
        if let Some(peer) = self.lanes.get_mut(*lane).and_then(Lane::peer) {
            peer.write_late(*cid, to, *bytes);
        }
    }

    /// The threads of both sides run as far as they can.
    fn look(&mut self) {
        for number in 0..self.lanes.len() {
            let now = self.shared.now();
            let Self { lanes, shared, params, .. } = self;
            let Some(lane) = lanes.get_mut(number) else { continue };
            if lane.stalled_until <= now {
                lane.visit(shared, params);
            }
            let Some((peer, medium)) = lane.peer_and_medium() else { continue };
            let begun = peer.look(medium, shared);
            let late = core::mem::take(&mut shared.late);
            for cid in begun {
                let delay = self.shared.rng.below(self.params.latency_ns);
                self.plan(delay, Planned::Job(number, cid));
            }
            for (cid, to, bytes) in late {
                self.lates.push((number, cid, to, bytes));
                let most = self.shared.rng.pick_or(&[5_000, 500_000], 5_000);
                let delay = self.shared.rng.below(most);
                self.plan(delay, Planned::Late(self.lates.len() - 1));
            }
        }
    }

    fn judge_touches(&mut self) {
        for touch in self.shared.fabric.touches() {
            let lent = |region| self.lanes.iter().find_map(|lane| lane.lent(region));
            let broken = match touch {
                Touch::Landed { region, .. } => match lent(region) {
                    Some(Lent::No | Lent::ToWrite) => Some("a NIC writes memory that is not lent to a read"),
                    _ => None,
                },
                Touch::Taken { region, .. } => match lent(region) {
                    Some(Lent::No | Lent::ToRead) => Some("a NIC reads memory that is not lent to a write"),
                    _ => None,
                },
                Touch::Changed { qpn, .. } => {
                    let is_hosts =
                        self.lanes.iter_mut().all(|lane| lane.peer().is_none_or(|peer| peer.qp.number() != qpn));
                    is_hosts.then_some("memory of a request is changed before its completion")
                }
            };
            if let Some(broken) = broken {
                self.shared.violate("memory", broken.to_owned());
            }
        }
    }

    fn finish(mut self) -> Outcome {
        self.lanes.iter_mut().for_each(Lane::end);
        let left = self.shared.fabric.registered();
        if self.holds() && left != (0, 0) {
            self.shared
                .violate("registrations", format!("{} of {} bytes stay when everything is over", left.0, left.1));
        }
        let Self { seed, params, shared, lanes, turns, .. } = self;
        let Shared { log, violations, fabric, asked, .. } = shared;
        let mut marks: Marks = log.marks.clone();
        if fabric.overtakes() > 0 {
            marks.hit(Mark::RdmaOvertaken);
        }
        let sum = |of: fn(&Lane) -> u64| lanes.iter().map(of).sum();
        let stats = Stats {
            ops: asked,
            ok: sum(|lane| lane.ok),
            failed: sum(|lane| lane.failed),
            bytes: sum(|lane| lane.bytes),
            events: turns,
            virtual_ns: fabric.now(),
        };
        let report = if violations.is_empty() {
            String::new()
        } else {
            let lines: Vec<String> = violations.iter().map(|one| format!("{one:?}")).collect();
            let replay =
                format!("replay: SW_SIM_SEED={seed} cargo test -p sw-sim --test seeds one_rdma_seed -- --nocapture");
            format!("seed {seed}\n{params:#?}\n{log}{}\n{replay}", lines.join("\n"))
        };
        Outcome { seed, violations, marks, event_hash: log.hash(), stats, report }
    }
}
