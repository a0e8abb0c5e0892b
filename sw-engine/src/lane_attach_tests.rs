//! The lane with a transport that must be told about memory.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use sw_mem::{Buffer, ByteLen, RegionId};

use super::*;
use crate::{
    object::{Face, Granularity, Object, Residency, Version},
    op::{OpOptions, Segment, Spans, Target},
    path::Landing,
    plan::{MemoryFacts, Policy, plan},
    rate::RateTable,
    seam::{Attach, Fence, Io, Regions, Submit, Wake},
};

struct NoWake;
impl Wake for NoWake {
    fn wake(&self) {}
}

/// What the transport was told, and how much it bears.
#[derive(Default)]
struct World {
    attached: Vec<RegionId>,
    /// Calls of `attach` for a region, refused ones included.
    told: usize,
    gone: Vec<RegionId>,
    open: Vec<Io>,
    /// Regions that it bears; `None`: any number.
    most: Option<usize>,
    hold: bool,
}

struct Device(Arc<Mutex<World>>, Regions);

impl Transport for Device {
    fn caps(&self) -> TransportCaps {
        let (host, device, regions) = (Ok(()), Err(Reason::NoPeerPages), self.1);
        TransportCaps { name: "dev", queue_depth: 256, io_bytes_max: 16 << 10, segments_max: 3, host, device, regions }
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        let mut world = self.0.lock().unwrap();
        match hint {
            Attach::Region(region) => {
                world.told += 1;
                if world.most.is_some_and(|most| world.attached.len() >= most) {
                    return Err(Error::new(ErrorKind::ResourceLimit, Verb::Register).detail("no more"));
                }
                world.attached.push(region.id());
            }
            Attach::RegionGone(id) => {
                let held = world.open.iter().any(|io| io.segments().iter().any(|piece| piece.region == id));
                assert!(!held, "a region with an I/O in flight was taken away");
                world.attached.retain(|held| *held != id);
                world.gone.push(id);
            }
            _ => {}
        }
        Ok(())
    }

    fn submit(&mut self, io: &Io) -> Submit {
        let mut world = self.0.lock().unwrap();
        for piece in io.segments() {
            let known = self.1 == Regions::Any || world.attached.contains(&piece.region);
            assert!(known, "an I/O into memory that was never attached");
        }
        world.open.push(*io);
        Submit::Accepted
    }

    fn ring(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn poll(&mut self, _wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let mut world = self.0.lock().unwrap();
        if world.hold {
            return Ok(0);
        }
        let count = world.open.len();
        out.extend(world.open.drain(..).map(|io| IoDone { token: io.token, result: Ok(io.len), aside: 0 }));
        Ok(count)
    }

    fn cancel(&mut self, _token: Token) {}

    fn fence(&mut self, _timeout: Duration, _out: &mut Vec<IoDone>) -> Fence {
        self.0.lock().unwrap().open.clear();
        Fence::Quiet
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(NoWake)
    }
}

fn bed(most: Option<usize>) -> (Lane, Arc<Mutex<World>>) {
    bed_of(Regions::Attached, most)
}

fn bed_of(regions: Regions, most: Option<usize>) -> (Lane, Arc<Mutex<World>>) {
    let world = Arc::new(Mutex::new(World { most, ..World::default() }));
    let staging = SlabPool::new(2, ByteLen(8192), HugePages::Never).unwrap();
    let device = Box::new(Device(world.clone(), regions));
    let parts = LaneParts { transports: vec![device], copiers: Vec::new(), staging: Some(staging) };
    (Lane::new(LaneConfig { ops_max: 128, ..LaneConfig::default() }, parts).unwrap(), world)
}

fn target(lane: &Lane, policy: &Policy) -> Target {
    let granularity = Granularity { block: 512, memory: 512 };
    let face = Face { transport: "dev", handle: 0, granularity, write_unit: 1, landing: Landing::Dma, because: None };
    let object = Arc::new(Object {
        id: Object::next_id(),
        name: "dev0".into(),
        len: 1 << 30,
        version: Version::default(),
        faces: vec![face],
        residency: Residency::Unknown.into(),
        composed: None,
        keep: Box::new(()),
    });
    let caps = lane.transport_caps();
    let choice = plan(&object, &MemoryFacts::HOST, &caps, policy, &RateTable::new(), Verb::Read).choice.unwrap();
    Target::new(object, choice).unwrap()
}

fn op(target: &Target) -> Op {
    let memory = Buffer::allocate(ByteLen(4096)).unwrap().into_span();
    let (target, spans) = (target.clone(), Spans::One(memory));
    Op { user: 0, verb: Verb::Read, target, offset: 0, spans, options: OpOptions::default() }
}

fn region(op: &Op) -> RegionId {
    op.spans.iter().next().unwrap().region().id()
}

fn run(lane: &mut Lane) -> Vec<Completion> {
    lane.poll(Time(1), Wait::No);
    core::iter::from_fn(|| lane.pop()).collect()
}

#[test]
fn slabs_are_attached_at_once_and_memory_once_before_its_first_chunk() {
    let (mut lane, world) = bed(None);
    let slabs = world.lock().unwrap().attached.len();
    assert_eq!(slabs, 2, "bounce and staging");
    let target = target(&lane, &Policy::Any);
    let mut again = op(&target);
    for _ in 0..3 {
        lane.submit(Time(0), again).unwrap();
        let done = run(&mut lane).pop().unwrap();
        assert_eq!(done.result.unwrap(), 4096);
        again = done.op.unwrap();
    }
    // Ragged: its ends go through the bounce slabs, which are no business of the operation's.
    again.offset = 100;
    lane.submit(Time(0), again).unwrap();
    assert!(run(&mut lane).pop().unwrap().result.is_ok());
    assert_eq!(world.lock().unwrap().told, slabs + 1);
}

#[test]
fn one_that_need_not_know_hears_of_slabs_with_the_first_chunk_that_takes_one() {
    // A refusal changes nothing.
    for (most, told) in [(None, 1), (Some(0), 1)] {
        let (mut lane, world) = bed_of(Regions::Any, most);
        let target = target(&lane, &Policy::Any);
        let mut again = op(&target);
        for (offset, told) in [(0, 0), (100, told), (200, told)] {
            again.offset = offset;
            lane.submit(Time(0), again).unwrap();
            let done = run(&mut lane).pop().unwrap();
            assert_eq!(done.result.unwrap(), 4096);
            assert_eq!(world.lock().unwrap().told, told, "after the read at {offset}");
            again = done.op.unwrap();
        }
    }
}

#[test]
fn a_refusal_fails_the_submit_and_nothing_was_done() {
    let (mut lane, world) = bed(Some(2));
    let target = target(&lane, &Policy::Any);
    let rejected = lane.submit(Time(0), op(&target)).unwrap_err();
    assert_eq!((rejected.error.kind(), rejected.error.verb()), (ErrorKind::ResourceLimit, Verb::Register));
    assert_eq!(lane.in_flight(), 0);
    assert!(world.lock().unwrap().open.is_empty());
    world.lock().unwrap().most = None;
    lane.submit(Time(0), rejected.op).unwrap();
    assert!(run(&mut lane).pop().unwrap().result.is_ok());
}

#[test]
fn a_lane_whose_slabs_are_refused_is_not_made() {
    let world = Arc::new(Mutex::new(World { most: Some(0), ..World::default() }));
    let parts =
        LaneParts { transports: vec![Box::new(Device(world, Regions::Attached))], copiers: Vec::new(), staging: None };
    let error = Lane::new(LaneConfig::default(), parts).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceLimit);
}

#[test]
fn a_transport_that_runs_out_gets_the_places_of_idle_regions_back() {
    let (mut lane, world) = bed(Some(4));
    let target = target(&lane, &Policy::Any);
    let (first, second) = (op(&target), op(&target));
    let idle = [region(&first), region(&second)];
    lane.submit(Time(0), first).unwrap();
    lane.submit(Time(0), second).unwrap();
    let done = run(&mut lane);
    lane.submit(Time(0), op(&target)).unwrap();
    assert_eq!(world.lock().unwrap().gone, idle);
    assert!(run(&mut lane).pop().unwrap().result.is_ok());
    drop(done);
}

#[test]
fn regions_in_use_keep_their_places_and_idle_ones_give_way() {
    let (mut lane, world) = bed(None);
    let target = target(&lane, &Policy::Any);
    world.lock().unwrap().hold = true;
    for _ in 0..64 {
        lane.submit(Time(0), op(&target)).unwrap();
    }
    let rejected = lane.submit(Time(0), op(&target)).unwrap_err();
    assert_eq!(rejected.error.kind(), ErrorKind::Busy);
    assert!(world.lock().unwrap().gone.is_empty());
    // A cancelled operation's memory stays with the device, and so does its place.
    let early = lane.submit(Time(0), rejected.op).unwrap_err().op;
    let held = lane.ops.live_tokens().next().unwrap().0;
    lane.cancel(Time(1), OpId(held));
    let early = lane.submit(Time(1), early).unwrap_err().op;
    world.lock().unwrap().hold = false;
    assert_eq!(run(&mut lane).len(), 64);
    let wanted = region(&early);
    lane.submit(Time(2), early).unwrap();
    assert!(run(&mut lane).pop().unwrap().result.is_ok());
    let world = world.lock().unwrap();
    assert_eq!((world.gone.len(), world.attached.len()), (1, 2 + 64));
    assert!(world.attached.contains(&wanted));
}

#[test]
fn an_operation_over_more_regions_than_there_are_places_is_too_large() {
    let (mut lane, _world) = bed(None);
    let target = target(&lane, &Policy::Any);
    let segments = |count: u64| {
        let segment = |n| Segment { offset: n * 4096, span: Buffer::allocate(ByteLen(4096)).unwrap().into_span() };
        Op { spans: Spans::Many((0..count).map(segment).collect()), ..op(&target) }
    };
    let rejected = lane.submit(Time(0), segments(65)).unwrap_err();
    assert_eq!(rejected.error.kind(), ErrorKind::TooLarge, "{}", rejected.error);
    lane.submit(Time(0), segments(64)).unwrap();
    assert_eq!(run(&mut lane).pop().unwrap().result.unwrap(), 64 * 4096);
}

#[test]
fn the_owner_of_memory_can_take_it_away_between_operations_only() {
    let (mut lane, world) = bed(None);
    let target = target(&lane, &Policy::Any);
    let op = op(&target);
    let id = region(&op);
    world.lock().unwrap().hold = true;
    lane.submit(Time(0), op).unwrap();
    lane.poll(Time(1), Wait::No);
    assert_eq!(lane.attach(Attach::RegionGone(id)).unwrap_err().kind(), ErrorKind::Busy);
    world.lock().unwrap().hold = false;
    let done = run(&mut lane).pop().unwrap();
    lane.attach(Attach::RegionGone(id)).unwrap();
    lane.attach(Attach::RegionGone(id)).unwrap();
    assert_eq!(world.lock().unwrap().gone, [id]);
    // Slabs are the lane's.
    let slabs = lane.bounce.region().clone();
    lane.attach(Attach::RegionGone(slabs.id())).unwrap();
    lane.attach(Attach::Region(&slabs)).unwrap();
    drop(done);
    let world = world.lock().unwrap();
    assert_eq!((world.gone.len(), world.told), (1, 3));
}

#[test]
fn a_staged_operation_needs_no_memory_attached() {
    let (mut lane, world) = bed(None);
    let policy = Policy::Require(crate::plan::RouteMatch { transport: None, landing: Some(Landing::Staged) });
    let target = target(&lane, &policy);
    lane.submit(Time(0), op(&target)).unwrap();
    assert!(run(&mut lane).pop().unwrap().result.is_ok());
    assert_eq!(world.lock().unwrap().told, 2);
}
