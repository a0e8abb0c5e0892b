//! One run: a seed becomes a configuration, a workload and a verdict.
//!
//! ```text
//!  draw ─► build ─► [ submit | cancel | abandon | poll | let time pass ]* ─► faults stop, drain ─► close ─► late landings ─► judge
//! ```
//!
//! The lane under test is the product's own. Invariants judged after every step and at the end are listed in `judge.rs`.

mod image;
mod judge;
mod nvme;
mod params;
mod targets;
mod work;

use core::fmt;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sw_engine::{Lane, LaneParts, RateTable, Time, seam::Transport, seam::Wait};
use sw_mem::{ByteLen, HugePages, SlabPool};

use crate::{
    hub::Hub,
    log::{Mark, Marks},
    rng::Rng,
    shadow::Violation,
};
use image::Image;
use nvme::Drivers;
pub use params::{Mood, Params};
use targets::SimObject;
use work::LiveOp;

/// Virtual time that a drain may take after faults stopped: far above the longest modelled delay times the queue.
const DRAIN_NS: u64 = 3_000_000_000;
/// The same over controllers: commands time out, are aborted, controllers are reset three times, each within its limits.
const NVME_DRAIN_NS: u64 = 30_000_000_000;
/// How long a machine sleeps that is suspended in the middle of its work.
const SLEEP_NS: u64 = 40_000_000_000;
/// Polls in a drain at most.
const DRAIN_POLLS: u32 = 200_000;
/// What a close gets for each queue.
const CLOSE: Duration = Duration::from_millis(50);

/// Counts of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Operations that the lane took.
    pub ops: u64,
    /// Of them, those that succeeded.
    pub ok: u64,
    /// Those that failed.
    pub failed: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Events of the machine.
    pub events: u64,
    /// Virtual nanoseconds.
    pub virtual_ns: u64,
}

/// What came out of one run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Broken invariants; empty is what one hopes for.
    pub violations: Vec<Violation>,
    /// Rare branches that were reached.
    pub marks: Marks,
    /// Hash of all events: equal in every run of the seed.
    pub event_hash: u64,
    /// Counts.
    pub stats: Stats,
    /// Everything needed to look into a failure; empty if there is none.
    pub report: String,
}

impl Outcome {
    /// Whether no invariant was broken.
    pub fn holds(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.violations.first();
        let text = first.map_or("holds".to_string(), |first| {
            format!("failed at {} ns: {}: {}", first.at, first.rule, first.evidence)
        });
        write!(f, "seed {} {text}", self.seed)
    }
}

/// Drivers, transports, and an object for each disk.
type Targets = (Drivers, Vec<Box<dyn Transport>>, Vec<SimObject>);

/// A run in progress.
pub struct World {
    seed: u64,
    params: Params,
    hub: Hub,
    lane: Lane,
    rates: RateTable,
    rng: Rng,
    objects: Vec<SimObject>,
    /// The drivers of modelled controllers, if there are any. They outlive the lane.
    drivers: Drivers,
    live: BTreeMap<u64, LiveOp>,
    /// Answered without their memory, or abandoned: the lane keeps it until the device let go.
    withheld: BTreeMap<u64, LiveOp>,
    next_user: u64,
    next_gpu_va: u64,
    /// Disk pages with a write that is not over.
    written: BTreeSet<(usize, u64)>,
    image: Image,
    /// A pool had lost every slab when the lane was closed; a close may stop the devices after all.
    lost_before_close: bool,
    slot_capacity: u32,
    /// Polls in a row that were to wait, gave nothing and took no time.
    idle_polls: u32,
    /// When the controllers gave their last completion, and how many there were.
    progress: (u64, u64),
    stats: Stats,
}

impl World {
    /// Runs `seed` to its end.
    pub fn run(seed: u64) -> Outcome {
        Self::run_with(seed, Params::draw(seed))
    }

    /// Runs `seed` over modelled NVMe controllers to its end.
    pub fn run_nvme(seed: u64) -> Outcome {
        Self::run_with(seed, Params::draw_nvme(seed))
    }

    /// Runs a world of modelled NVMe controllers that make no sense, with the choices of a fuzzer.
    pub fn run_fuzzed(bytes: &[u8]) -> Outcome {
        let (seed, params) = Params::fuzzed(bytes);
        Self::run_with(seed, params)
    }

    /// The caller as a fuzzer would have it, over controllers as `draw_nvme` gives them: the first eight bytes are the seed,
    /// the others decide, word by word, what the caller does: which operations, of which shape and memory, when it polls,
    /// cancels, walks away and closes.
    pub fn run_fuzzed_caller(bytes: &[u8]) -> Outcome {
        let seed = bytes.first_chunk().map_or(0, |seed| u64::from_le_bytes(*seed));
        Self::run_taped(seed, Params::draw_nvme(seed), bytes.get(8..).unwrap_or_default())
    }

    /// Runs `seed` with a configuration of the caller's.
    pub fn run_with(seed: u64, params: Params) -> Outcome {
        Self::run_taped(seed, params, &[])
    }

    fn run_taped(seed: u64, params: Params, tape: &[u8]) -> Outcome {
        let hub = Hub::new();
        match Self::build(seed, params.clone(), hub.clone()) {
            // A controller that is late or hostile need not come up; one that is well must.
            Ok(world) if world.objects.is_empty() => {
                if params.mood == Mood::Calm {
                    hub.lock().violate("liveness", "no controller came up".to_string());
                }
                drop(world);
                outcome(seed, &params, &hub, Stats::default(), String::new())
            }
            Ok(mut world) => {
                world.rng = world.rng.clone().with_tape(tape);
                world.play();
                world.finish()
            }
            Err(why) => {
                hub.lock().violate("model", format!("the world cannot be built: {why}"));
                outcome(seed, &params, &hub, Stats::default(), String::new())
            }
        }
    }

    fn build(seed: u64, params: Params, hub: Hub) -> Result<Self, String> {
        hub.lock().device_depth = sw_mem::index(u64::from(params.lane.device_depth));
        for _ in 0..params.disks {
            hub.add_original_disk(params.disk_bytes);
        }
        let image = Image::of(&hub.lock().disks);
        let (drivers, transports, plain) = Self::build_targets(seed, &params, &hub)?;
        let objects = targets::with_stripe_set(plain, &params);
        let copiers = params.copiers.iter().map(|copier| Box::new(hub.add_copier(copier.clone(), seed)) as _).collect();
        let pool = |(count, bytes)| SlabPool::new(count, ByteLen(bytes), HugePages::Never);
        let staging = params.staging.map(pool).transpose().map_err(|error| error.to_string())?;
        let parts = LaneParts { transports, copiers, staging };
        let lane = Lane::new(params.lane, parts).map_err(|error| error.to_string())?;
        let slot_capacity = judge::slots_in_all(&lane);
        let rng = Rng::split(seed, "work");
        Ok(Self {
            seed,
            params,
            hub,
            lane,
            rates: RateTable::new(),
            rng,
            objects,
            drivers,
            live: BTreeMap::new(),
            withheld: BTreeMap::new(),
            next_user: 1,
            next_gpu_va: 1 << 40,
            written: BTreeSet::new(),
            image,
            lost_before_close: false,
            slot_capacity,
            idle_polls: 0,
            progress: (0, 0),
            stats: Stats::default(),
        })
    }

    fn build_targets(seed: u64, params: &Params, hub: &Hub) -> Result<Targets, String> {
        if let Some(setup) = &params.nvme {
            let (drivers, failed) = Drivers::open(hub, seed, setup)?;
            if let Some(why) = failed.first().filter(|_| params.mood == Mood::Calm) {
                return Err(format!("a controller without faults does not come up: {why}"));
            }
            let (transport, objects) = (drivers.transport(hub, setup)?, drivers.objects(hub, params)?);
            return Ok((drivers, vec![transport], objects));
        }
        let transports = params.queues.iter().map(|queue| {
            let transport: Box<dyn Transport> = Box::new(hub.add_queue(queue.clone(), seed));
            transport
        });
        Ok((Drivers::default(), transports.collect(), targets::build(hub, params)))
    }

    fn now(&self) -> Time {
        self.hub.now()
    }

    fn clean(&self) -> bool {
        self.hub.lock().shadow.violations.is_empty()
    }

    /// The workload.
    fn play(&mut self) {
        let (mut left, mut steps) = (self.params.work.ops, 0u32);
        if self.params.work.shrinks {
            self.hub.shrink_disk(0, self.params.disk_bytes / 2 + 100);
        }
        // Each step takes an operation or lets time pass, so the bound is generous.
        while left > 0 && steps < 20_000 && self.clean() {
            steps += 1;
            match self.rng.below(100) {
                0..45 => left -= u64::from(self.submit_one()),
                45..60 => self.poll(Wait::No),
                60..90 => {
                    let timeout = Duration::from_nanos(self.rng.pick_or(&[1_000, 50_000, 1_000_000], 50_000));
                    let min = self.rng.range32(1, 4);
                    self.poll(Wait::For { timeout, min });
                }
                90..95 => self.meddle(),
                _ if self.sleeps() => {
                    // A machine that was suspended: the controller's time went on, and every timer of the driver is over.
                    self.hub.lock().mark(Mark::NvmeSlept);
                    let until = self.now().0 + SLEEP_NS;
                    self.hub.run_until(Time(until));
                }
                _ => {
                    let until = self.now().0 + self.rng.pick_or(&[100, 20_000, 300_000], 100);
                    self.hub.run_until(Time(until));
                }
            }
        }
    }

    fn sleeps(&mut self) -> bool {
        self.params.nvme.is_some() && self.params.mood != Mood::Calm && self.rng.per_mille(30)
    }

    /// Faults stop; everything that was taken must end. Then the lane closes, and the last late bytes land.
    fn finish(mut self) -> Outcome {
        if !self.params.work.closes_early {
            self.calm_down();
            self.drain();
        } else if !self.live.is_empty() {
            self.hub.lock().mark(Mark::ClosedInFlight);
        }
        // What the lane looked like when it was found out, not after it was closed.
        let tree = if self.clean() { String::new() } else { self.lane.inspect().to_string() };
        self.lost_before_close = self.all_slabs_lost();
        let begun = self.now();
        let quarantined = self.lane.close(begun, CLOSE);
        self.judge_close(begun);
        self.drivers.work(&self.hub);
        self.drivers.dismiss();
        self.take_completions();
        if quarantined > 0 {
            self.hub.lock().mark(Mark::MemoryQuarantined);
        }
        self.judge_closed(quarantined);
        self.shut_down();
        let (seed, params, hub) = (self.seed, self.params.clone(), self.hub.clone());
        let tree = if tree.is_empty() && !self.clean() { self.lane.inspect().to_string() } else { tree };
        let stats = self.stats;
        self.judge_after(quarantined);
        outcome(seed, &params, &hub, stats, tree)
    }

    /// Some controllers are shut down in good order; the others are dropped.
    fn shut_down(&mut self) {
        for controller in &self.drivers.controllers {
            let asked = self.rng.per_mille(500);
            if let Some(Err(error)) = asked.then(|| controller.shut_down())
                && self.params.mood == Mood::Calm
            {
                self.hub.lock().violate("liveness", format!("a controller that is well did not shut down: {error}"));
            }
        }
    }

    fn calm_down(&mut self) {
        let mut machine = self.hub.lock();
        machine.queues.iter_mut().for_each(crate::disk::Queue::calm_down);
        machine.copiers.iter_mut().for_each(crate::copier::Copier::calm_down);
        machine.nvme.iter_mut().for_each(crate::nvme::Controller::calm_down);
    }

    fn drain(&mut self) {
        let until = self.now().0 + if self.params.nvme.is_some() { NVME_DRAIN_NS } else { DRAIN_NS };
        for _ in 0..DRAIN_POLLS {
            if self.live.is_empty() || self.now().0 > until || !self.clean() {
                break;
            }
            self.poll(Wait::For { timeout: Duration::from_millis(10), min: 1 });
        }
        self.judge_drained();
    }

    fn poll(&mut self, wait: Wait) {
        let (now, broken) = (self.now(), self.lane.counters().broken);
        let ready = self.lane.poll(now, wait);
        if self.lane.counters().broken == broken {
            self.judge_poll(now, wait);
        }
        self.take_completions();
        self.judge_step(now);
        self.judge_promptness();
        let waited = wait == Wait::No || ready > 0 || self.now() > now;
        self.idle_polls = if waited { 0 } else { self.idle_polls + 1 };
        if !waited {
            // The caller's loop takes time too.
            self.hub.run_until(Time(now.0 + 1_000));
        }
        self.judge_idle();
        self.drivers.work(&self.hub);
    }
}

fn outcome(seed: u64, params: &Params, hub: &Hub, mut stats: Stats, tree: String) -> Outcome {
    let machine = hub.lock();
    stats.events = machine.log.events();
    stats.virtual_ns = machine.now();
    let violations = machine.shadow.violations.clone();
    let mut report = String::new();
    if !violations.is_empty() {
        report = format!("seed {seed}\n{params}\n{}", machine.log);
        for violation in &violations {
            report += &format!("violation at {} ns: {}: {}\n", violation.at, violation.rule, violation.evidence);
        }
        report += &tree;
        report += &format!(
            "\nreplay: SW_SIM_SEED={seed} cargo test --release -p sw-sim --test seeds -- --nocapture {}\n",
            if params.nvme.is_some() { "one_nvme_seed" } else { "one_seed" }
        );
    }
    Outcome { seed, violations, marks: machine.log.marks.clone(), event_hash: machine.log.hash(), stats, report }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays `seed` without faults and changes one byte of a disk behind everybody's back.
    fn with_a_stray_byte(seed: u64, disk: usize, place: u64, byte: u8) -> Outcome {
        let params = Params { mood: Mood::Calm, ..Params::draw(seed) };
        let mut world = World::build(seed, params, Hub::new()).unwrap();
        world.play();
        world.hub.lock().disks[disk].write(0, place, &[byte]);
        world.finish()
    }

    #[test]
    fn a_byte_that_no_operation_wrote_is_found() {
        // A seed whose workload only reads, so that nothing covers the byte up.
        let seed = (0..).find(|seed| {
            let params = Params::draw(*seed);
            params.mood == Mood::Calm && params.work.writes == 0
        });
        let seed = seed.unwrap();
        let pristine = crate::medium::origin(0, 70_001);
        let clean = with_a_stray_byte(seed, 0, 70_001, pristine);
        assert!(clean.holds(), "{clean}");
        let stray = with_a_stray_byte(seed, 0, 70_001, !pristine);
        let found = stray
            .violations
            .iter()
            .any(|violation| violation.rule == "writes" && violation.evidence.contains("byte 70001 of disk 0"));
        assert!(found, "{}", stray.report);
        let grown = with_a_stray_byte(seed, 0, 1 << 20, 7);
        assert!(grown.violations.iter().any(|violation| violation.evidence.contains("bytes instead of")), "{grown}");
    }
}
