//! What a seed chooses: the whole configuration of one run ("swarm": tiny and large limits, calm and hostile devices).

use core::fmt;

use sw_engine::{
    ErrorKind, Fault, LaneConfig, Limits, Retry,
    seam::{IoKind, Regions},
};

use super::nvme::NvmeSetup;
use crate::{
    copier::CopierParams,
    disk::QueueParams,
    fault::{Act, FaultRule, On},
    rng::Rng,
};
use sw_mem::DeviceId;

/// Names of transports; static, as routes demand.
pub(crate) const QUEUE_NAMES: [&str; 5] = ["sim-disk0", "sim-disk1", "sim-disk2", "sim-disk3", "sim-cache"];

/// How bad the devices are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// No fault at all: every operation must succeed.
    Calm,
    /// Errors, short transfers, refusals, lost I/Os: legal, if rare.
    Faulty,
    /// Also lies: ends twice, ends of nothing, claims of too much.
    Hostile,
}

/// Which ways there are to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Faces {
    Direct,
    Both,
    Buffered,
}

/// The configuration of one run. Printed in full when a run fails.
#[derive(Clone, Debug)]
pub struct Params {
    /// How bad the devices are.
    pub mood: Mood,
    pub(crate) disks: usize,
    pub(crate) disk_bytes: u64,
    pub(crate) stripe_unit: Option<u64>,
    pub(crate) faces: Faces,
    pub(crate) block: u32,
    pub(crate) memory: u32,
    /// One queue for all disks, or one for each.
    pub(crate) shared_queue: bool,
    /// The buffered faces have a queue of their own.
    pub(crate) cache_queue: bool,
    pub(crate) queues: Vec<QueueParams>,
    pub(crate) copiers: Vec<CopierParams>,
    /// Slabs and bytes of each.
    pub(crate) staging: Option<(u32, u64)>,
    pub(crate) lane: LaneConfig,
    /// Modelled controllers in place of modelled disk queues.
    pub(crate) nvme: Option<NvmeSetup>,
    pub(crate) work: Work,
}

/// The workload. Chances in thousandths.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) ops: u64,
    pub(crate) op_bytes_max: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    pub(crate) vectored: u64,
    pub(crate) aligned: u64,
    pub(crate) congruent: u64,
    pub(crate) on_device: u64,
    pub(crate) deadlines: u64,
    pub(crate) deadline_ns: (u64, u64),
    pub(crate) cancels: u64,
    pub(crate) abandons: u64,
    pub(crate) checksums: u64,
    pub(crate) poison: u64,
    /// Closes with operations in flight.
    pub(crate) closes_early: bool,
    /// A disk ends early: the object shrank.
    pub(crate) shrinks: bool,
}

impl Params {
    /// Draws everything from `seed`.
    pub fn draw(seed: u64) -> Self {
        let rng = &mut Rng::split(seed, "params");
        let mood = rng.pick_or(&[Mood::Calm, Mood::Faulty, Mood::Faulty, Mood::Hostile], Mood::Calm);
        let disks = rng.range(1, 4);
        let faces = rng.pick_or(&[Faces::Both, Faces::Both, Faces::Direct, Faces::Buffered], Faces::Both);
        let (block, memory) = rng.pick_or(&[(512, 512), (512, 4), (4096, 512), (4096, 4096)], (512, 512));
        let (shared_queue, cache_queue) = (rng.per_mille(300), rng.per_mille(300) && faces == Faces::Both);
        let disks = usize::try_from(disks).unwrap_or(1);
        let stripe_unit = (disks > 1 && rng.per_mille(700)).then(|| rng.pick_or(&[4096, 8192, 16_384], 4096));
        let of_disks = QUEUE_NAMES.iter().take(if shared_queue { 1 } else { disks });
        let of_cache = QUEUE_NAMES.last().filter(|_| cache_queue);
        let mut queues: Vec<_> = of_disks.chain(of_cache).map(|name| draw_queue(rng, name, mood)).collect();
        let told = &mut Rng::split(seed, "regions");
        queues
            .iter_mut()
            .for_each(|queue| queue.regions = told.pick_or(&[Regions::Any, Regions::Attached], Regions::Any));
        // Where a device keeps its I/Os for good, pools are small enough to be lost whole.
        let keeps = queues.iter().any(|queue| queue.rules.first().is_some_and(|rule| rule.act == Act::Lost));
        let slabs: [&[u32]; 2] = if keeps { [&[1], &[1]] } else { [&[1, 2, 8], &[1, 2, 16]] };
        let staging =
            rng.per_mille(800).then(|| (rng.pick_or(slabs[0], 2), rng.pick_or(&[8192, 16_384, 65_536], 16_384)));
        let devices = if staging.is_some() { rng.range(0, 2) } else { 0 };
        let copiers = (0..devices).map(|device| draw_copier(rng, device, mood)).collect();
        // Where bounce slabs do not hold a block at each end, staging slabs stand in; without any the lane must refuse.
        let bounce_bytes = rng.pick_or(&[8192, 8192, 4096], 8192);
        let lane = LaneConfig {
            ops_max: rng.pick_or(&[1, 4, 32], 32),
            bounce_slabs: rng.pick_or(slabs[1], 2),
            bounce_bytes,
            bounce_pages: sw_mem::HugePages::Never,
            device_depth: Rng::split(seed, "devices").pick_or(&[u32::MAX, 1, 2, 8], u32::MAX),
            limits: Limits::default(),
        };
        Self {
            mood,
            disks,
            disk_bytes: rng.pick_or(&[128 << 10, 256 << 10], 128 << 10),
            stripe_unit,
            faces,
            block,
            memory,
            shared_queue,
            cache_queue,
            queues,
            copiers,
            staging,
            lane,
            nvme: None,
            work: draw_work(rng, mood),
        }
    }
}

fn draw_queue(rng: &mut Rng, name: &'static str, mood: Mood) -> QueueParams {
    let bad = mood != Mood::Calm;
    let mut rules = Vec::new();
    if bad {
        for _ in 0..rng.range(0, 3) {
            rules.push(draw_rule(rng, mood));
        }
        if rng.per_mille(80) {
            // A disk that fills up: writes end short, and then there is no space for the rest.
            let on = |every| On { kind: Some(IoKind::Write), range: None, every, times: 0 };
            rules.push(FaultRule { on: on(2), act: Act::Short { blocks: 1 } });
            rules.push(FaultRule { on: on(1), act: Act::Fail(Fault::new(ErrorKind::NoSpace, 28).not_applied()) });
        }
    }
    let stubborn = bad && rng.per_mille(80);
    if stubborn {
        // A device that loses I/Os and that no fence can stop.
        let on = On { kind: None, range: None, every: rng.range(2, 8), times: 3 };
        rules.insert(0, FaultRule { on, act: Act::Lost });
    }
    let low = rng.pick_or(&[1_000, 10_000], 1_000);
    QueueParams {
        name,
        queue_depth: rng.pick_or(&[1, 2, 4, 16, 64], 4),
        io_bytes_max: rng.pick_or(&[12 << 10, 16 << 10, 32 << 10, 128 << 10], 16 << 10),
        segments_max: rng.pick_or(&[1, 2, 3, 3], 3),
        regions: Regions::Any,
        latency_ns: (low, low * rng.pick_or(&[1, 3, 30], 3)),
        tail: if rng.per_mille(300) { (20, 3_000_000) } else { (0, 0) },
        full: if rng.per_mille(300) { 100 } else { 0 },
        scribble: rng.pick_or(&[0, 300], 0),
        partial_poll: rng.pick_or(&[0, 300], 0),
        cancel_wins: rng.pick_or(&[0, 500, 1000], 500),
        fence_kills: !bad || (!stubborn && rng.per_mille(600)),
        breaks_at: (bad && rng.per_mille(if stubborn { 600 } else { 120 })).then(|| rng.range(10_000, 3_000_000)),
        rules,
    }
}

fn draw_rule(rng: &mut Rng, mood: Mood) -> FaultRule {
    let retry = Fault::new(ErrorKind::Busy, 11).with_retry(Retry::Now);
    let legal = [
        Act::Fail(Fault::new(ErrorKind::Io, 5)),
        Act::Fail(Fault::new(ErrorKind::NoSpace, 28).not_applied()),
        Act::Fail(retry),
        Act::Short { blocks: 1 },
        Act::Short { blocks: 2 },
        Act::Short { blocks: 1 << 20 },
        Act::Zero,
        Act::Slow(5_000_000),
        Act::Lost,
    ];
    let lies = [Act::Overclaim, Act::Twice(1), Act::Twice(20_000), Act::Twice(500_000), Act::Foreign];
    let act = if mood == Mood::Hostile && rng.per_mille(700) {
        rng.pick_or(&lies, Act::Overclaim)
    } else {
        rng.pick_or(&legal, Act::Zero)
    };
    let kinds = [None, Some(IoKind::Read), Some(IoKind::Write)];
    let range = rng.per_mille(300).then(|| (rng.range(0, 15) * 8192, 8192));
    // Only a write can find no space.
    let kind = if matches!(act, Act::Fail(fault) if fault.kind == ErrorKind::NoSpace) {
        Some(IoKind::Write)
    } else {
        rng.pick_or(&kinds, None)
    };
    let on = On { kind, range, every: rng.range(1, 20), times: rng.pick_or(&[1, 3, 0], 3) };
    FaultRule { on, act }
}

pub(super) fn draw_copier(rng: &mut Rng, device: u64, mood: Mood) -> CopierParams {
    let device = DeviceId(DeviceId::MODEL_FIRST + u16::try_from(device).unwrap_or(0));
    let bad = mood != Mood::Calm;
    CopierParams {
        queue_depth: rng.pick_or(&[1, 2, 8], 8),
        latency_ns: (1_000, rng.pick_or(&[2_000, 50_000, 400_000], 2_000)),
        fails: if bad { rng.pick_or(&[0, 0, 50], 0) } else { 0 },
        refuses: if bad { rng.pick_or(&[0, 0, 30], 0) } else { 0 },
        fence_kills: !bad || rng.per_mille(600),
        breaks_at: (bad && rng.per_mille(100)).then(|| rng.range(10_000, 3_000_000)),
        ..CopierParams::calm(device)
    }
}

pub(super) fn draw_work(rng: &mut Rng, mood: Mood) -> Work {
    let short = rng.per_mille(500);
    Work {
        ops: rng.range(20, 80),
        op_bytes_max: rng.pick_or(&[600, 9_000, 40_000, 100_000], 9_000),
        writes: rng.pick_or(&[0, 300, 500, 900], 300),
        flushes: rng.pick_or(&[0, 50], 50),
        vectored: rng.pick_or(&[0, 200, 600], 200),
        aligned: rng.pick_or(&[0, 300, 1000], 300),
        congruent: rng.pick_or(&[200, 900, 1000], 900),
        on_device: rng.pick_or(&[0, 300, 800], 300),
        deadlines: rng.pick_or(&[0, 100, 500], 100),
        deadline_ns: if short { (1_000, 200_000) } else { (100_000, 8_000_000) },
        cancels: rng.pick_or(&[0, 0, 60], 0),
        abandons: rng.pick_or(&[0, 0, 60], 0),
        checksums: rng.pick_or(&[0, 300], 300),
        poison: rng.pick_or(&[0, 300], 0),
        closes_early: rng.per_mille(200),
        shrinks: mood != Mood::Calm && rng.per_mille(150),
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:?}: {} disks of {} bytes, stripe unit {:?}, faces {:?}, block {}, memory {}, shared queue {}, cache queue {}",
            self.mood,
            self.disks,
            self.disk_bytes,
            self.stripe_unit,
            self.faces,
            self.block,
            self.memory,
            self.shared_queue,
            self.cache_queue
        )?;
        self.queues.iter().try_for_each(|queue| writeln!(f, "  {queue:?}"))?;
        self.copiers.iter().try_for_each(|copier| writeln!(f, "  {copier:?}"))?;
        if let Some(setup) = &self.nvme {
            setup.controllers.iter().zip(&setup.mishaps).try_for_each(|pair| writeln!(f, "  {pair:?}"))?;
            writeln!(f, "  {:?}\n  {:?}", setup.transport, setup.controller)?;
        }
        writeln!(f, "  staging {:?}, {:?}", self.staging, self.lane)?;
        write!(f, "  {:?}", self.work)
    }
}
