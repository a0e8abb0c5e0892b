//! The lane with a copy engine: who is waited for, and what a broken engine leaves.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use sw_mem::{Buffer, ByteLen, DeviceId, DmaRegion, DmaSpan, GpuVa};

use super::*;
use crate::{
    object::{Face, Granularity, Object, Residency, Version},
    op::{OpOptions, Spans, Target},
    path::Landing,
    plan::{MemoryFacts, Policy, plan},
    rate::RateTable,
    seam::{Attach, CopyJob, Fence, Io, Regions, Submit, Wake},
};

const DEVICE: DeviceId = DeviceId(DeviceId::MODEL_FIRST);

/// What was asked of transport and copy engine, in order, and how the engine behaves.
struct World {
    log: Vec<&'static str>,
    ios: VecDeque<Token>,
    copies: Vec<Token>,
    rung: usize,
    lost: Option<Fault>,
    /// I/Os that end at one poll, and copies that may still end.
    ios_per_poll: usize,
    copies_may_end: usize,
}

impl Default for World {
    fn default() -> Self {
        let (log, ios, copies) = (Vec::new(), VecDeque::new(), Vec::new());
        Self { log, ios, copies, rung: 0, lost: None, ios_per_poll: usize::MAX, copies_may_end: usize::MAX }
    }
}

impl World {
    fn logged(&self, what: &str) -> usize {
        self.log.iter().filter(|entry| **entry == what).count()
    }
}

struct NoWake;
impl Wake for NoWake {
    fn wake(&self) {}
}

/// Ends the I/Os at the next poll, moving nothing.
struct Disk(Arc<Mutex<World>>);

impl Transport for Disk {
    fn caps(&self) -> TransportCaps {
        let (host, device, regions) = (Ok(()), Err(Reason::NoPeerPages), Regions::Any);
        TransportCaps { name: "mem", queue_depth: 8, io_bytes_max: 16 << 10, segments_max: 3, host, device, regions }
    }

    fn attach(&mut self, _hint: Attach<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn submit(&mut self, io: &Io) -> Submit {
        let mut world = self.0.lock().unwrap();
        world.log.push("io");
        world.ios.push_back(io.token);
        Submit::Accepted
    }

    fn ring(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let mut world = self.0.lock().unwrap();
        if let Wait::For { timeout, .. } = wait {
            world.log.push(if timeout > Duration::from_millis(1) { "long wait" } else { "short wait" });
        }
        let before = out.len();
        let now = world.ios.len().min(world.ios_per_poll);
        out.extend(world.ios.drain(..now).map(|token| IoDone { token, result: Ok(4096), aside: 0 }));
        Ok(out.len() - before)
    }

    fn cancel(&mut self, _token: Token) {}

    fn fence(&mut self, _timeout: Duration, _out: &mut Vec<IoDone>) -> Fence {
        Fence::Quiet
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(NoWake)
    }
}

/// Ends the copies that were rung at the next poll, or is lost with them.
struct Engine(Arc<Mutex<World>>);

struct Pin;
impl SlabPin for Pin {}

impl CopyEngine for Engine {
    fn caps(&self) -> CopyEngineCaps {
        CopyEngineCaps { device: DEVICE, queue_depth: 2 }
    }

    fn pin(&mut self, _slabs: &DmaRegion) -> Result<Box<dyn SlabPin>, Fault> {
        Ok(Box::new(Pin))
    }

    fn submit(&mut self, job: &CopyJob) -> Result<(), Fault> {
        let mut world = self.0.lock().unwrap();
        world.log.push("copy");
        world.copies.push(job.token);
        Ok(())
    }

    fn ring(&mut self) -> Result<(), Fault> {
        let mut world = self.0.lock().unwrap();
        world.rung = world.copies.len();
        world.log.push("rung");
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<CopyDone>) -> Result<usize, Fault> {
        let mut world = self.0.lock().unwrap();
        if let Some(fault) = world.lost {
            return Err(fault);
        }
        let ended = world.rung.min(world.copies_may_end);
        world.rung -= ended;
        world.copies_may_end -= ended;
        world.log.extend((0..ended).map(|_| "copied"));
        out.extend(world.copies.drain(..ended).map(|token| CopyDone { token, result: Ok(()) }));
        Ok(ended)
    }

    fn fence(&mut self, _timeout: Duration, _out: &mut Vec<CopyDone>) -> Fence {
        let copies = self.0.lock().unwrap().copies.len();
        if copies > 0 { Fence::Busy(u32::try_from(copies).unwrap()) } else { Fence::Quiet }
    }
}

struct Bed {
    lane: Lane,
    world: Arc<Mutex<World>>,
}

fn bed() -> Bed {
    bed_with(LaneConfig { ops_max: 4, ..LaneConfig::default() })
}

fn bed_with(config: LaneConfig) -> Bed {
    let world = Arc::new(Mutex::new(World::default()));
    let staging = SlabPool::new(4, ByteLen(4096), HugePages::Never).unwrap();
    let parts = LaneParts {
        transports: vec![Box::new(Disk(world.clone()))],
        copiers: vec![Box::new(Engine(world.clone()))],
        staging: Some(staging),
    };
    Bed { lane: Lane::new(config, parts).unwrap(), world }
}

impl Bed {
    /// `len` bytes of device memory to or from a file of 64 KiB.
    fn op(&self, verb: Verb, len: u64) -> Op {
        let facts = MemoryFacts { device: Some(DEVICE), ..MemoryFacts::HOST };
        let region = DmaRegion::modelled(DEVICE, GpuVa::new(1 << 40), ByteLen(64 << 10)).unwrap();
        self.op_into(verb, &facts, region.span(0, ByteLen(len)).unwrap())
    }

    fn op_into(&self, verb: Verb, facts: &MemoryFacts, span: DmaSpan) -> Op {
        let granularity = Granularity { block: 4096, memory: 4096 };
        let face =
            Face { transport: "mem", handle: 0, granularity, write_unit: 1, landing: Landing::Dma, because: None };
        let object = Arc::new(Object {
            id: Object::next_id(),
            name: "mem".into(),
            len: 64 << 10,
            version: Version::default(),
            faces: vec![face],
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(()),
        });
        let caps = self.lane.transport_caps();
        let choice = plan(&object, facts, &caps, &Policy::Any, &RateTable::new(), verb).choice.unwrap();
        let spans = Spans::One(span);
        let target = Target::new(object, choice).unwrap();
        Op { user: 0, verb, target, offset: 0, spans, options: OpOptions::default() }
    }

    fn poll(&mut self) -> Option<Completion> {
        self.lane.poll(Time(1), Wait::For { timeout: Duration::from_secs(1), min: 1 });
        self.lane.pop()
    }
}

#[test]
fn a_write_from_device_memory_is_copied_before_anybody_waits() {
    for rings in [false, true] {
        let mut bed = bed();
        bed.lane.submit(Time(0), bed.op(Verb::Write, 8192)).unwrap();
        if rings {
            bed.lane.ring();
            assert_eq!(bed.world.lock().unwrap().log.last(), Some(&"rung"));
        }
        let done = (0..10).find_map(|_| bed.poll()).unwrap();
        assert_eq!((done.result.unwrap(), done.path.bytes.staged), (8192, 8192));
        let log = &bed.world.lock().unwrap().log;
        let first = |what| log.iter().position(|entry| *entry == what);
        assert!(first("rung") < first("io") && first("copy") < first("rung"), "{log:?}");
        let waits_before_io = log.iter().take_while(|entry| **entry != "io").filter(|entry| **entry == "long wait");
        assert_eq!(waits_before_io.count(), 0, "{log:?}");
    }
}

#[test]
fn a_lost_engine_keeps_only_what_it_was_given_and_refuses_the_rest() {
    let mut bed = bed();
    let fault = Fault::new(ErrorKind::Io, 719);
    bed.world.lock().unwrap().lost = Some(fault);
    bed.lane.submit(Time(0), bed.op(Verb::Write, 4 * 4096)).unwrap();
    let done = (0..10).find_map(|_| bed.poll()).unwrap();
    let error = done.result.unwrap_err();
    assert_eq!((error.kind(), error.code(), done.op.is_none()), (ErrorKind::Io, 719, true), "{error}");
    assert!(error.to_string().contains("device memory") && !error.remedy_text().is_empty(), "{error}");
    // Two copies were with the engine; the other two chunks only waited for it.
    assert_eq!((bed.lane.slot_counts().quarantined, bed.lane.slabs_out().0), (2, 2), "{}", bed.lane.inspect());
    assert_eq!(bed.lane.counters().abandoned, 2);
    let refused = bed.lane.submit(Time(2), bed.op(Verb::Read, 4096)).unwrap_err();
    assert_eq!((refused.error.kind(), refused.error.code()), (ErrorKind::Io, 719));
    assert_eq!(bed.lane.close(Time(3), Duration::ZERO), 2);
}

#[test]
fn a_lost_engine_keeps_no_place_of_the_transport() {
    let mut bed = bed_with(LaneConfig { ops_max: 4, device_depth: 2, ..LaneConfig::default() });
    bed.world.lock().unwrap().lost = Some(Fault::new(ErrorKind::Io, 719));
    // Both places that the disk may have are taken for writes whose bytes the engine has when it is lost.
    bed.lane.submit(Time(0), bed.op(Verb::Write, 2 * 4096)).unwrap();
    let done = (0..10).find_map(|_| bed.poll()).unwrap();
    assert!(done.result.is_err());
    assert_eq!(bed.lane.slot_counts().quarantined, 2, "{}", bed.lane.inspect());
    let memory = Buffer::allocate(ByteLen(4096)).unwrap().into_span();
    bed.lane.submit(Time(2), bed.op_into(Verb::Read, &MemoryFacts::HOST, memory)).unwrap();
    let done = (0..10).find_map(|_| bed.poll()).unwrap_or_else(|| panic!("{}", bed.lane.inspect()));
    assert_eq!(done.result.unwrap(), 4096);
    assert_eq!(bed.lane.in_flight(), 0);
    assert_eq!(bed.lane.close(Time(3), Duration::ZERO), 2);
}

#[test]
fn reads_go_on_while_copies_are_under_way() {
    let mut bed = bed();
    {
        let mut world = bed.world.lock().unwrap();
        (world.ios_per_poll, world.copies_may_end) = (1, 0);
    }
    // Eight chunks by the three slabs of four that one device may have.
    bed.lane.submit(Time(0), bed.op(Verb::Read, 8 * 4096)).unwrap();
    for _ in 0..2 {
        assert!(bed.poll().is_none());
    }
    let seen = |bed: &Bed| {
        let world = bed.world.lock().unwrap();
        (world.logged("io"), world.logged("copy"), world.logged("copied"))
    };
    // Two slabs are with the copy engine, which does not answer, and the device has the third.
    assert_eq!(seen(&bed), (3, 2, 0), "{}", bed.lane.inspect());
    assert_eq!(bed.world.lock().unwrap().ios.len(), 1);
    // One copy ends: its slab is read into at once, beside the other copy.
    bed.world.lock().unwrap().copies_may_end = 1;
    assert!(bed.poll().is_none());
    let (ios, copies, copied) = seen(&bed);
    assert_eq!((ios, copied), (4, 1), "{}", bed.lane.inspect());
    assert!(copies > copied, "no copy is under way");
    // And nothing waits for anything else.
    {
        let mut world = bed.world.lock().unwrap();
        (world.ios_per_poll, world.copies_may_end) = (usize::MAX, usize::MAX);
    }
    let done = (0..20).find_map(|_| bed.poll()).unwrap();
    assert_eq!((done.result.unwrap(), done.path.bytes.staged), (8 * 4096, 8 * 4096));
    assert_eq!(seen(&bed), (8, 8, 8));
}
