//! Worlds whose disks are namespaces of modelled controllers: the product's own controller and transport stand between the
//! lane and the wire.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use sw_engine::{LaneConfig, Limits, Object, Reason, Residency, seam::Transport};
use sw_nvme::{
    controller::{Controller, ControllerConfig, ShadowDoorbells},
    directory::{Directory, face},
    transport::{Completion, NvmeConfig, NvmeTransport},
};

use super::{
    params::{Faces, Mood, Params, draw_copier, draw_work},
    targets::SimObject,
};
use crate::{
    attendant::Attendant,
    hub::{Hub, WakeFlag},
    nvme::{
        Addresses, Mishap, NamespaceParams, Noise, NvmeAct, NvmeParams, NvmeRule, OnCommand, QueueKind, SimBus,
        StatusParams,
    },
    rng::Rng,
};

const READ: u8 = 0x02;
const WRITE: u8 = 0x01;
/// Rounds of work after one wake-up at most: a row of resets ends long before.
const ROUNDS_MAX: u32 = 100;
const IDENTIFY: u8 = 0x06;
/// Admin commands that a driver sends in the middle of a run: create and delete queues, log pages, identify, abort.
const ADMIN_OPCODES: [u8; 6] = [0x00, 0x01, 0x02, 0x05, IDENTIFY, 0x08];

/// The controllers of a world and how the driver is set up.
#[derive(Clone, Debug)]
pub(crate) struct NvmeSetup {
    pub(crate) controllers: Vec<NvmeParams>,
    /// For each controller: what befalls it, and how long after it was brought up; 0 is before that.
    pub(crate) mishaps: Vec<Vec<(u64, Mishap)>>,
    /// What the controllers choose first: a fuzzer's bytes.
    pub(crate) tape: Vec<u8>,
    pub(crate) transport: NvmeConfig,
    pub(crate) controller: ControllerConfig,
    pub(crate) control: ControlBy,
}

/// Who does the slow work of the controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControlBy {
    /// Somebody else, between two steps of the world, if he was woken: a thread that is always fast enough.
    Attendant,
    /// A thread of its own, which runs while the lane polls.
    Thread,
    /// The lane itself.
    Lane,
}

impl NvmeSetup {
    /// Whether Identify may fail in the middle of a run.
    pub(super) fn loses_names(&self) -> bool {
        let fails = |rule: &NvmeRule| {
            let identify = rule.on.queue == QueueKind::Admin && rule.on.opcode == Some(IDENTIFY);
            identify && matches!(rule.act, NvmeAct::Fail(_))
        };
        self.controllers.iter().flat_map(|controller| &controller.rules).any(fails)
    }
}

/// The driver's side of a world. Dropped after the lane.
#[derive(Default)]
pub(super) struct Drivers {
    directory: Arc<Directory<SimBus>>,
    pub(super) controllers: Vec<Arc<Controller<SimBus>>>,
    /// For each of them, if somebody attends: whether there is work.
    bells: Vec<Arc<WakeFlag>>,
    attendant: Option<Attendant>,
}

impl Drivers {
    /// Brings the controllers up; one that does not come up is left out.
    pub(super) fn open(hub: &Hub, seed: u64, setup: &NvmeSetup) -> Result<(Self, Vec<String>), String> {
        let (mut drivers, mut failed) = (Self::default(), Vec::new());
        for (params, mishaps) in setup.controllers.iter().zip(&setup.mishaps) {
            let bus = hub.add_controller(params.clone(), seed);
            hub.choose(bus.number(), &setup.tape);
            mishaps
                .iter()
                .filter(|(after, _)| *after == 0)
                .for_each(|(_, mishap)| hub.befall(bus.number(), 0, *mishap));
            match Controller::open(Arc::new(bus), setup.controller) {
                Ok(controller) => {
                    drivers.directory.add(Arc::clone(&controller)).map_err(|error| error.to_string())?;
                    match setup.control {
                        ControlBy::Attendant => {
                            let bell = Arc::new(WakeFlag::default());
                            controller.attend(bell.clone());
                            drivers.bells.push(bell);
                        }
                        ControlBy::Thread => controller.attend(hub.baton().bell.clone()),
                        ControlBy::Lane => {}
                    }
                    drivers.controllers.push(controller);
                }
                Err(error) => failed.push(error.to_string()),
            }
        }
        if setup.control == ControlBy::Thread {
            let attended = drivers.controllers.clone();
            let work = move || attended.iter().for_each(|controller| work_on(controller));
            drivers.attendant = Some(Attendant::start(hub, work)?);
        }
        for (number, mishaps) in setup.mishaps.iter().enumerate() {
            let later = mishaps.iter().filter(|(after, _)| *after > 0);
            later.for_each(|(after, mishap)| hub.befall(number, *after, *mishap));
        }
        Ok((drivers, failed))
    }

    /// What the threads that attend the controllers do when they were woken, and only then. It may take long.
    pub(super) fn work(&self, hub: &Hub) {
        for (controller, bell) in self.controllers.iter().zip(&self.bells) {
            if bell.0.swap(false, Ordering::Relaxed) {
                work_on(controller);
            }
        }
        hub.take_turns();
    }

    /// Nobody attends any more.
    pub(super) fn dismiss(&mut self) {
        self.attendant = None;
        self.controllers.iter().for_each(|controller| controller.leave());
    }

    /// The one transport over all of them.
    pub(super) fn transport(&self, hub: &Hub, setup: &NvmeSetup) -> Result<Box<dyn Transport>, String> {
        let transport = NvmeTransport::new(Arc::clone(&self.directory), hub.waiter(), setup.transport);
        transport.map(|transport| Box::new(transport) as _).map_err(|error| error.to_string())
    }

    /// An object for each namespace, as the store of the product makes them.
    pub(super) fn objects(&self, hub: &Hub, params: &Params) -> Result<Vec<SimObject>, String> {
        // Who is told nonsense may find namespaces that there are not.
        let nonsense = hub.lock().taint.all;
        let mut objects = Vec::new();
        for (index, controller) in (0..).zip(&self.controllers) {
            let number = controller.bus().number();
            let known = params.nvme.iter().flat_map(|setup| setup.controllers.get(number));
            let known: Vec<NamespaceParams> = known.flat_map(|controller| controller.namespaces.clone()).collect();
            for namespace in controller.namespaces() {
                let model = known.iter().find(|model| model.nsid == namespace.nsid);
                let (model, face) = match (model, face(index, &namespace)) {
                    (Some(model), Ok(face)) if face.granularity.block == params.block => (model, face),
                    _ if nonsense => continue,
                    (_, found) => return Err(format!("the driver made of namespace {}: {found:?}", namespace.nsid)),
                };
                let object = Object {
                    id: Object::next_id(),
                    name: Arc::from(format!("nvme://sim{number}/{}", namespace.nsid)),
                    len: params.disk_bytes,
                    version: namespace.version(),
                    faces: vec![face],
                    residency: Residency::Unknown.into(),
                    composed: None,
                    keep: Box::new(()),
                };
                objects.push(SimObject::plain(Arc::new(object), model.disk, params.disk_bytes));
            }
        }
        Ok(objects)
    }
}

fn work_on(controller: &Controller<SimBus>) {
    for _ in 0..ROUNDS_MAX {
        controller.work();
        if !controller.wants_work() {
            break;
        }
    }
}

impl Params {
    /// A world of one controller that makes no sense, as a fuzzer chooses: the first bytes are the seed, the others what
    /// the controller makes of everything.
    pub(super) fn fuzzed(bytes: &[u8]) -> (u64, Self) {
        let seed = bytes.first_chunk().map_or(0, |seed| u64::from_le_bytes(*seed));
        let mut params = Self { mood: Mood::Hostile, ..Self::draw_nvme(seed) };
        if let Some(setup) = &mut params.nvme {
            let rng = &mut Rng::split(seed, "fuzz");
            let after = if rng.per_mille(500) { 0 } else { rng.range(1, 1_000_000) };
            setup.mishaps.iter_mut().for_each(|mishaps| *mishaps = vec![(after, Mishap::Noise(draw_noise(rng)))]);
            setup.tape = bytes.get(8..).unwrap_or_default().to_vec();
        }
        (seed, params)
    }

    /// Draws a world of modelled controllers from `seed`.
    pub fn draw_nvme(seed: u64) -> Self {
        let rng = &mut Rng::split(seed, "nvme params");
        let mood = rng.pick_or(&[Mood::Calm, Mood::Faulty, Mood::Faulty, Mood::Hostile, Mood::Hostile], Mood::Calm);
        let block = rng.pick_or(&[512, 512, 4096], 512);
        let mut disks = 0;
        let mut controllers = Vec::new();
        for _ in 0..if rng.per_mille(300) { 2 } else { 1 } {
            let namespaces = draw_namespaces(rng, &mut disks, block);
            controllers.push(draw_controller(rng, namespaces, mood));
        }
        let mishaps = controllers.iter().map(|_| draw_mishaps(rng, mood)).collect();
        // Commands whose lists fill more than a page: large, therefore few and rare.
        let long = rng.per_mille(40);
        let (mut transport, controller) = (draw_transport(rng), draw_driver(rng));
        if long {
            for controller in &mut controllers {
                controller.mdts = 0;
                controller.namespaces.iter_mut().for_each(|namespace| namespace.boundary_blocks = 0);
            }
            transport.io_bytes_max = 4 << 20;
        }
        let mut work = draw_work(rng, mood);
        if transport.device.is_ok() {
            // In place in a device's memory, whole blocks only and no checksum: what a lane does with others is its own story.
            (work.aligned, work.checksums) = (1000, 0);
        }
        if long {
            (work.ops, work.op_bytes_max, work.aligned, work.vectored) = (6, 3 << 20, 1000, 0);
        }
        let by = [ControlBy::Thread, ControlBy::Thread, ControlBy::Attendant, ControlBy::Lane];
        let control = Rng::split(seed, "control").pick_or(&by, ControlBy::Lane);
        let setup = NvmeSetup { controllers, mishaps, tape: Vec::new(), transport, controller, control };
        let staging =
            rng.per_mille(700).then(|| (rng.pick_or(&[1, 2, 8], 2), rng.pick_or(&[8192, 16_384, 65_536], 16_384)));
        let devices = if staging.is_some() { rng.range(0, 1) } else { 0 };
        let lane = LaneConfig {
            ops_max: rng.pick_or(&[1, 4, 32], 32),
            bounce_slabs: rng.pick_or(&[1, 2, 16], 2),
            bounce_bytes: rng.pick_or(&[8192, 8192, 4096], 8192),
            bounce_pages: sw_mem::HugePages::Never,
            device_depth: u32::MAX,
            limits: Limits::default(),
        };
        Self {
            mood,
            disks,
            disk_bytes: if long { 4 << 20 } else { rng.pick_or(&[128 << 10, 256 << 10], 128 << 10) },
            stripe_unit: (disks > 1 && !long && rng.per_mille(600)).then(|| rng.pick_or(&[4096, 8192, 16_384], 4096)),
            faces: Faces::Direct,
            block,
            memory: 4,
            shared_queue: true,
            cache_queue: false,
            queues: Vec::new(),
            copiers: (0..devices).map(|device| draw_copier(rng, device, mood)).collect(),
            staging,
            lane,
            nvme: Some(setup),
            work,
        }
    }
}

fn draw_namespaces(rng: &mut Rng, disks: &mut usize, block: u32) -> Vec<NamespaceParams> {
    let boundary = rng.pick_or(&[0, 0, 8, 32], 0);
    // Numbers need not be dense.
    let first = rng.pick_or(&[1, 1, 3], 1);
    let count = if rng.per_mille(300) { 2 } else { 1 };
    let mut namespaces = Vec::new();
    for n in 0..count {
        let boundary_blocks = if block == 512 { boundary } else { boundary / 8 };
        namespaces.push(NamespaceParams { nsid: first + 4 * n, disk: *disks, block, metadata: 0, boundary_blocks });
        *disks += 1;
    }
    namespaces
}

fn draw_controller(rng: &mut Rng, namespaces: Vec<NamespaceParams>, mood: Mood) -> NvmeParams {
    let bad = mood != Mood::Calm;
    let low = rng.pick_or(&[1_000, 10_000], 1_000);
    let ready = rng.pick_or(&[100_000, 3_000_000], 100_000);
    let late = bad && rng.per_mille(60);
    let mut rules: Vec<NvmeRule> =
        if bad { (0..rng.range(0, 3)).map(|_| draw_rule(rng, mood)).collect() } else { Vec::new() };
    let hangs = bad && rng.per_mille(100);
    if hangs {
        // One that keeps commands for ever and that perhaps nobody can stop.
        let on = OnCommand { every: rng.range(2, 8), times: 3, ..OnCommand::default() };
        rules.insert(0, NvmeRule { on, act: NvmeAct::Lost });
    }
    NvmeParams {
        entries_max: rng.pick_or(&[2, 2, 4, 16, 64, 1024], 16),
        queue_pairs: rng.pick_or(&[1, 2, 8], 1),
        vectors: rng.pick_or(&[0, 1, 2, 9], 2),
        stride: rng.pick_or(&[0, 0, 1, 4], 0),
        mdts: rng.pick_or(&[0, 1, 2, 5], 2),
        lists: rng.pick_or(&[0, 0, 1, 4], 0),
        doorbell_buffer: rng.per_mille(400),
        aborts_max: rng.pick_or(&[1, 4], 4),
        events_max: rng.pick_or(&[1, 4], 4),
        timeout_halves: 1,
        // Around the limit of CAP.TO: just before it, or just after.
        ready_ns: if late { (470_000_000, 515_000_000) } else { (ready, 2 * ready) },
        left_enabled: rng.per_mille(200),
        write_cache: rng.per_mille(600),
        latency_ns: (low, low * rng.pick_or(&[1, 3, 30], 3)),
        tail: if rng.per_mille(300) { (20, 3_000_000) } else { (0, 0) },
        fetch_burst: rng.pick_or(&[1, 4, 64], 4),
        barrier_ns: rng.pick_or(&[0, 300, 2_000], 0),
        scribble: rng.pick_or(&[0, 300], 0),
        interrupts_lost: if bad { rng.pick_or(&[0, 100], 0) } else { 0 },
        interrupt_ns: rng.pick_or(&[0, 5_000], 0),
        interrupts_spurious: rng.pick_or(&[0, 100], 0),
        abort_wins: rng.pick_or(&[0, 500, 1000], 500),
        stop_works: !hangs || rng.per_mille(500),
        reset_hangs: if hangs { rng.pick_or(&[300, 1000], 300) } else { 0 },
        iommu_entries: if rng.per_mille(150) { sw_mem::index(rng.range(12, 30)) } else { 65_535 },
        iova_first: rng.pick_or(&[0x1000, 0xFED0_0000, 1 << 40], 0x1000),
        // No draw of its own, so that seeds stay the worlds that they were.
        addresses: if low > 1_000 { Addresses::LowestFree } else { Addresses::Fresh },
        stale_ns: if bad { rng.pick_or(&[0, 1_000_000], 0) } else { 0 },
        map_ns: rng.pick_or(&[0, 0, 200_000], 0),
        retry_delays: rng.pick_or(&[[0, 0, 0], [1, 1, 2]], [0, 0, 0]),
        rules,
        ..NvmeParams::calm(namespaces)
    }
}

fn draw_rule(rng: &mut Rng, mood: Mood) -> NvmeRule {
    let status = |kind, code, do_not_retry| StatusParams { kind, code, do_not_retry, delay: 0 };
    let soon = |delay| NvmeAct::Fail(StatusParams { kind: 0, code: 0x82, do_not_retry: false, delay });
    let on = |opcode| OnCommand { queue: QueueKind::Io, opcode, every: 1, times: 1 };
    let legal = [
        // Unrecovered Read Error and Write Fault, Capacity Exceeded, Internal Error, Command Interrupted.
        (on(Some(READ)), NvmeAct::Fail(status(2, 0x81, true))),
        (on(Some(WRITE)), NvmeAct::Fail(status(2, 0x80, true))),
        (on(Some(WRITE)), NvmeAct::Fail(status(0, 0x81, true))),
        (on(None), NvmeAct::Fail(status(0, 0x06, false))),
        (on(None), NvmeAct::Fail(status(0, 0x21, false))),
        (on(None), soon(0)),
        (on(None), soon(1)),
        (on(None), soon(3)),
        (on(None), NvmeAct::Slow(5_000_000)),
        (on(None), NvmeAct::Slow(250_000_000)),
        (on(None), NvmeAct::Lost),
        (on(None), NvmeAct::Lost),
    ];
    let lies = [
        NvmeAct::Twice(1),
        NvmeAct::Twice(2_000),
        NvmeAct::Twice(20_000),
        NvmeAct::Twice(500_000),
        NvmeAct::UnknownCid,
        NvmeAct::WrongSq,
        // Twice, since it needs another command under way.
        NvmeAct::Misplaced,
        NvmeAct::Misplaced,
        NvmeAct::WrongHead,
        NvmeAct::WrongPhase,
        NvmeAct::ShortData,
        NvmeAct::LostPage,
        NvmeAct::LateData(1),
        NvmeAct::LateData(300_000),
    ];
    let admin = [
        NvmeAct::Lost,
        NvmeAct::Slow(30_000_000),
        NvmeAct::Fail(status(0, 0x06, true)),
        NvmeAct::Fail(status(0, 0x06, false)),
    ];
    let first = on(None);
    let (on, act) = if mood == Mood::Hostile && rng.per_mille(650) {
        (first, rng.pick_or(&lies, NvmeAct::Twice(1)))
    } else if rng.per_mille(150) {
        let opcode = rng.pick(&ADMIN_OPCODES).copied();
        (OnCommand { queue: QueueKind::Admin, opcode, ..first }, rng.pick_or(&admin, NvmeAct::Lost))
    } else {
        rng.pick_or(&legal, (first, NvmeAct::Lost))
    };
    NvmeRule { on: OnCommand { every: rng.range(1, 20), times: rng.pick_or(&[1, 3, 0], 3), ..on }, act }
}

fn draw_mishaps(rng: &mut Rng, mood: Mood) -> Vec<(u64, Mishap)> {
    let mut mishaps = Vec::new();
    let at = |rng: &mut Rng| rng.range(10_000, 3_000_000);
    if rng.per_mille(200) {
        mishaps.push((at(rng), Mishap::Events(rng.pick_or(&[1, 6], 1))));
    }
    if mood == Mood::Calm {
        return mishaps;
    }
    if rng.per_mille(250) {
        let mishap = rng.pick_or(&[Mishap::Fatal, Mishap::Stuck, Mishap::Gone, Mishap::Detached], Mishap::Fatal);
        mishaps.push((at(rng), mishap));
    }
    if mood == Mood::Hostile && rng.per_mille(300) {
        let noise = draw_noise(rng);
        let early = rng.per_mille(300);
        mishaps.push((if early { 0 } else { at(rng) }, Mishap::Noise(noise)));
    }
    mishaps
}

fn draw_noise(rng: &mut Rng) -> Noise {
    Noise {
        registers: rng.pick_or(&[0, 20], 0),
        entries: rng.pick_or(&[0, 100], 0),
        data: rng.pick_or(&[0, 300], 0),
        extra: rng.pick_or(&[0, 200], 0),
    }
}

fn draw_transport(rng: &mut Rng) -> NvmeConfig {
    let spin = Duration::from_nanos(rng.pick_or(&[5_000, 50_000], 5_000));
    let completions = [Completion::Polled, Completion::Interrupt, Completion::Hybrid { spin }];
    NvmeConfig {
        queue_depth: rng.pick_or(&[1, 2, 8, 64], 8),
        commands_per_controller: rng.pick_or(&[1, 2, 7, 31, 128], 7),
        io_bytes_max: rng.pick_or(&[12 << 10, 16 << 10, 64 << 10, 1 << 20], 16 << 10),
        completion: rng.pick_or(&completions, Completion::Polled),
        // A peer's memory that is mapped as the host's is.
        device: rng.pick_or(&[Ok(()), Err(Reason::NoPeerPages)], Ok(())),
        command_timeout: Duration::from_millis(rng.pick_or(&[100, 200], 100)),
        abort_timeout: Duration::from_millis(100),
        ..NvmeConfig::default()
    }
}

fn draw_driver(rng: &mut Rng) -> ControllerConfig {
    let shadow = [ShadowDoorbells::WhereOffered, ShadowDoorbells::WhereOffered, ShadowDoorbells::Never];
    ControllerConfig {
        queue_pairs: rng.pick_or(&[1, 4], 1),
        admin_timeout: Duration::from_millis(rng.pick_or(&[100, 400], 100)),
        shadow_doorbells: rng.pick_or(&shadow, ShadowDoorbells::WhereOffered),
        resets_max: rng.pick_or(&[1, 3], 3),
    }
}
