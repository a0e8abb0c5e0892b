//! The product's NVMe driver over the modelled controller: the suite that every backend runs, what its work costs, and a
//! controller that makes no sense.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
#![forbid(unsafe_code)]

use std::{sync::Arc, time::Duration};

use sw_engine::{
    Object, ObjectId, Residency, Token,
    seam::{Attach, Io, IoDone, IoKind, MemorySegment, Submit, Transport, Wait},
};
use sw_mem::{Buffer, ByteLen, DmaRegion};
use sw_nvme::{
    commands::{Blocks, Commands, Durability},
    controller::{Controller, ControllerConfig},
    directory::{Directory, face, handle},
    namespace::Unusable,
    status::Status,
    transport::{Completion, NvmeConfig, NvmeTransport},
};
use sw_sim::{
    Belongs, Hub, NamespaceParams, NvmeAct, NvmeParams, NvmeRule, OnCommand, Rng, SimBus, StatusParams, World,
};
use sw_testkit::conformance::{
    End,
    block_file::{self, Bed, Clock, Target},
};

const READ: u8 = 0x02;

struct Modelled {
    hub: Hub,
    directory: Arc<Directory<SimBus>>,
    controllers: Vec<Arc<Controller<SimBus>>>,
    what: &'static str,
    params: NvmeParams,
    config: NvmeConfig,
}

impl Modelled {
    fn new(what: &'static str, params: NvmeParams, config: NvmeConfig) -> Self {
        let (hub, directory) = (Hub::new(), Arc::default());
        Self { hub, directory, controllers: Vec::new(), what, params, config }
    }

    /// A controller of its own for each object.
    fn add(&mut self, content: &[u8], rules: Vec<NvmeRule>) -> Target {
        let disk = self.hub.add_disk(content.to_vec());
        let namespaces = vec![NamespaceParams { nsid: 1, disk, block: 512, metadata: 0, boundary_blocks: 64 }];
        let params = NvmeParams { namespaces, rules, ..self.params.clone() };
        let bus = Arc::new(self.hub.add_controller(params, disk as u64));
        let controller = Controller::open(bus, ControllerConfig::default()).unwrap();
        let index = self.directory.add(Arc::clone(&controller)).unwrap();
        let namespace = controller.namespaces().pop().unwrap();
        self.controllers.push(controller);
        let object = Object {
            id: Object::next_id(),
            name: format!("{disk}").into(),
            len: content.len() as u64,
            version: namespace.version(),
            faces: vec![face(index, &namespace).unwrap()],
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(()),
        };
        Target { object: Arc::new(object), face: 0 }
    }
}

impl Bed for Modelled {
    fn name(&self) -> String {
        format!("{}, {:?}", self.what, self.config.completion)
    }

    fn transport(&mut self) -> Result<Box<dyn Transport>, End> {
        let transport = NvmeTransport::new(Arc::clone(&self.directory), self.hub.waiter(), self.config);
        Ok(Box::new(transport.unwrap()))
    }

    fn object(&mut self, content: &[u8]) -> Result<Target, End> {
        if !content.len().is_multiple_of(512) {
            return Err(End::Skip("a namespace has whole blocks".to_owned()));
        }
        Ok(self.add(content, Vec::new()))
    }

    fn content(&mut self, target: &Target) -> Result<Vec<u8>, End> {
        Ok(self.hub.disk_bytes(target.object.name.parse().unwrap()))
    }

    fn failing_object(&mut self) -> Result<Target, End> {
        let unreadable = StatusParams { kind: 2, code: 0x81, do_not_retry: true, delay: 0 };
        let on = OnCommand { opcode: Some(READ), ..OnCommand::default() };
        Ok(self.add(&[0; 64 << 10], vec![NvmeRule { on, act: NvmeAct::Fail(unreadable) }]))
    }

    fn memory(&mut self, region: &DmaRegion) {
        self.hub.memory(region, Belongs::Engine);
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.hub.now().0)
    }

    fn clock(&self) -> Clock {
        Clock::Virtual
    }
}

/// Cases that mean nothing here: a namespace has blocks, and virtual time does not pass while another thread acts.
const SKIPS: &[&str] = &[
    "any_offset_and_address_on_a_bytewise_face",
    "a_wake_from_another_thread_ends_a_wait",
    "a_read_over_the_end_is_short_or_an_error",
];

const SPIN: Completion = Completion::Hybrid { spin: Duration::from_micros(50) };

#[test]
fn the_driver_conforms_in_every_completion_mode() {
    for completion in [Completion::Polled, Completion::Interrupt, SPIN] {
        let config = NvmeConfig { completion, queue_depth: 16, ..NvmeConfig::default() };
        let mut bed = Modelled::new("calm", NvmeParams::calm(Vec::new()), config);
        block_file::run(&mut bed).assert_green(SKIPS);
        assert_eq!(bed.hub.violations(), []);
    }
}

#[test]
fn the_driver_conforms_over_an_unruly_controller() {
    let params = NvmeParams {
        entries_max: 4,
        mdts: 1,
        doorbell_buffer: true,
        lists: 4,
        tail: (100, 5_000_000),
        fetch_burst: 1,
        barrier_ns: 500,
        scribble: 500,
        interrupts_lost: 200,
        interrupts_spurious: 300,
        interrupt_ns: 20_000,
        left_enabled: true,
        ..NvmeParams::calm(Vec::new())
    };
    for completion in [Completion::Polled, Completion::Interrupt, SPIN] {
        let config = NvmeConfig { completion, queue_depth: 16, commands_per_controller: 3, ..NvmeConfig::default() };
        let mut bed = Modelled::new("unruly", params.clone(), config);
        block_file::run(&mut bed).assert_green(SKIPS);
        assert_eq!(bed.hub.violations(), []);
    }
}

/// One doorbell for a batch, one for a poll that found something, and nothing else: no register is read on the way.
#[test]
fn a_thousand_reads_cost_one_doorbell_a_batch_and_one_a_poll() {
    const DEPTH: u32 = 32;
    let config = NvmeConfig { queue_depth: DEPTH, commands_per_controller: DEPTH, ..NvmeConfig::default() };
    let params = NvmeParams { latency_ns: (1_000, 1_000), fetch_burst: 64, ..NvmeParams::calm(Vec::new()) };
    let mut bed = Modelled::new("lite", params, config);
    bed.add(&vec![7; 1 << 20], Vec::new());
    let mut transport = bed.transport().unwrap();
    let region = Buffer::allocate(ByteLen(4096 * u64::from(DEPTH))).unwrap().region().clone();
    bed.memory(&region);
    transport.attach(Attach::Region(&region)).unwrap();
    let io = |n: u32| {
        let place = region.base().checked_add(ByteLen(4096 * u64::from(n % DEPTH))).unwrap();
        let segment = MemorySegment { place, len: 4096, region: region.id() };
        Io {
            token: Token::from_raw(u64::from(n) << 32 | u64::from(n)),
            kind: IoKind::Read,
            object: ObjectId(1),
            handle: handle(0, 1),
            offset: 4096 * u64::from(n % 256),
            len: 4096,
            segment_count: 1,
            segments: [segment; 3],
        }
    };
    let mut out: Vec<IoDone> = Vec::with_capacity(64);
    // The first I/O makes the queue pair.
    while transport.submit(&io(0)) != Submit::Accepted {
        transport.poll(Wait::For { timeout: Duration::from_millis(10), min: 1 }, &mut out).unwrap();
    }
    transport.poll(Wait::For { timeout: Duration::from_millis(10), min: 1 }, &mut out).unwrap();
    let before = bed.hub.nvme_counts(0);
    let (mut batches, mut polls) = (0, 0);
    for batch in 0..1000u32.div_ceil(DEPTH) {
        (0..DEPTH).for_each(|n| assert_eq!(transport.submit(&io(1 + batch * DEPTH + n)), Submit::Accepted));
        transport.ring().unwrap();
        batches += 1;
        let mut open = DEPTH;
        while open > 0 {
            out.clear();
            bed.hub.run_until(sw_engine::Time(bed.hub.now().0 + 2_000));
            let found = transport.poll(Wait::No, &mut out).unwrap();
            assert!(out.iter().all(|done| done.result == Ok(4096)), "{out:?}");
            open -= u32::try_from(found).unwrap();
            polls += u64::from(found > 0);
        }
    }
    let after = bed.hub.nvme_counts(0);
    assert_eq!(after.sq_doorbells - before.sq_doorbells, batches);
    assert_eq!(after.cq_doorbells - before.cq_doorbells, polls);
    assert_eq!((after.register_reads - before.register_reads, after.list_bytes - before.list_bytes), (0, 0));
    assert!(polls <= 2 * batches, "{polls} polls found something in {batches} batches");
    println!("1000 reads, depth {DEPTH}: {batches} SQ doorbells, {polls} CQ doorbells, 0 register reads, 0 list bytes");
    drop(transport);
    assert_eq!(bed.hub.violations(), []);
}

/// The commands that the engine's path has no use for, on both block sizes; and a format that nobody may use.
#[test]
fn every_io_command_does_what_the_standard_says() {
    let hub = Hub::new();
    let namespaces = [(1, 512, 0), (2, 4096, 0), (3, 512, 8)].map(|(nsid, block, metadata)| {
        let disk = hub.add_disk(vec![0x11; 1 << 20]);
        NamespaceParams { nsid, disk, block, metadata, boundary_blocks: 0 }
    });
    let bus = Arc::new(hub.add_controller(NvmeParams::calm(namespaces.to_vec()), 1));
    let controller = Controller::open(bus, ControllerConfig::default()).unwrap();
    let mut run = Commands::new(Arc::clone(&controller), Duration::from_secs(1)).unwrap();
    let found = controller.namespaces();
    assert!(matches!(found[2].unusable, Some(Unusable::Metadata(_))), "{:?}", found[2].unusable);
    for of in &found[..2] {
        let block = of.block_bytes() as usize;
        let mut want: Vec<u8> = (0..4 * block).map(|at| u8::try_from(at % 251).unwrap()).collect();
        assert_eq!(run.write(of, 8, &want, Durability::AtOnce).unwrap(), Status::SUCCESS);
        assert_eq!(run.compare(of, 8, &want).unwrap(), Status::SUCCESS);
        want[3 * block] ^= 1;
        assert_eq!(run.compare(of, 8, &want).unwrap().code(), Status::COMPARE_FAILURE.code());
        want[3 * block] ^= 1;
        assert_eq!(run.write_zeroes(of, Blocks { slba: 9, count: 1 }).unwrap(), Status::SUCCESS);
        want[block..2 * block].fill(0);
        assert_eq!(run.verify(of, Blocks { slba: 8, count: 4 }).unwrap(), Status::SUCCESS);
        assert_eq!(run.deallocate(of, &[Blocks { slba: 11, count: 1 }]).unwrap(), Status::SUCCESS);
        // What deallocated blocks read as is the controller's choice; this one's are zero.
        want[3 * block..].fill(0);
        let mut back = vec![0xA5; 4 * block];
        assert_eq!(run.read(of, 8, &mut back).unwrap(), Status::SUCCESS);
        assert!(back == want);
        let end = of.blocks();
        for past in [
            run.read(of, end - 1, &mut back[..2 * block]).unwrap(),
            run.verify(of, Blocks { slba: end, count: 1 }).unwrap(),
            run.write_zeroes(of, Blocks { slba: end - 1, count: 2 }).unwrap(),
            run.deallocate(of, &[Blocks { slba: end - 1, count: 2 }]).unwrap(),
        ] {
            assert_eq!(past.code(), Status::LBA_OUT_OF_RANGE.code());
        }
        let odd = run.write_uncorrectable(of, Blocks { slba: 0, count: 1 }).unwrap();
        assert_eq!(odd.code(), Status::INVALID_OPCODE.code());
        assert_eq!(run.flush(of).unwrap(), Status::SUCCESS);
    }
    drop(run);
    assert_eq!(hub.violations(), []);
}

/// Whatever the controller says, the driver neither panics, nor hangs, nor lets memory be touched that is not lent.
#[test]
fn a_controller_that_makes_no_sense_is_survived() {
    for seed in 0..150u64 {
        let mut rng = Rng::split(seed, "bytes");
        let len = sw_mem::index(rng.range(8, 600));
        let bytes: Vec<u8> = (0..len).map(|_| rng.next_u64().to_le_bytes()[0]).collect();
        let outcome = World::run_fuzzed(&bytes);
        assert!(outcome.holds(), "seed {seed}: {}", outcome.report);
    }
}

/// Whatever the caller does, in any order, no rule is broken; and its choices replay.
#[test]
fn a_caller_that_makes_no_sense_is_survived() {
    let mut shapes = std::collections::BTreeSet::new();
    for seed in 0..50u64 {
        let mut rng = Rng::split(seed, "caller");
        let len = sw_mem::index(rng.range(8, 1600));
        let mut bytes: Vec<u8> = (0..len).map(|_| rng.next_u64().to_le_bytes()[0]).collect();
        let outcome = World::run_fuzzed_caller(&bytes);
        assert!(outcome.holds(), "seed {seed}: {}", outcome.report);
        assert_eq!(World::run_fuzzed_caller(&bytes).event_hash, outcome.event_hash, "seed {seed}");
        // The same world with another caller is another story.
        bytes.truncate(8);
        shapes.insert(World::run_fuzzed_caller(&bytes).event_hash == outcome.event_hash);
    }
    assert!(shapes.contains(&false), "the bytes decide nothing");
}
