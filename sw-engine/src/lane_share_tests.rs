//! Two devices behind one transport, of which one does not answer.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use sw_mem::{Buffer, ByteLen};

use super::*;
use crate::{
    object::{Face, Granularity, Object, Residency, Version},
    op::{OpOptions, Spans, Target},
    path::Landing,
    plan::{MemoryFacts, Policy, plan},
    rate::RateTable,
    seam::{Attach, Fence, Io, Regions, Submit, Wake},
};

const DEPTH: u32 = 16;
const DEVICE_DEPTH: u32 = 4;
/// Slabs of the staging pool; a device may have three quarters.
const SLABS: u32 = 4;

struct NoWake;
impl Wake for NoWake {
    fn wake(&self) {}
}

#[derive(Default)]
struct World {
    open: Vec<Io>,
    /// The object whose device does not answer.
    hangs: Option<ObjectId>,
}

struct Ring(Arc<Mutex<World>>);

impl Transport for Ring {
    fn caps(&self) -> TransportCaps {
        let (host, device, regions) = (Ok(()), Err(Reason::NoPeerPages), Regions::Any);
        let (name, queue_depth, io_bytes_max) = ("ring", DEPTH, 16 << 10);
        TransportCaps { name, queue_depth, io_bytes_max, segments_max: 3, host, device, regions }
    }

    fn attach(&mut self, _hint: Attach<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn submit(&mut self, io: &Io) -> Submit {
        self.0.lock().unwrap().open.push(*io);
        Submit::Accepted
    }

    fn ring(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn poll(&mut self, _wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let mut world = self.0.lock().unwrap();
        let hangs = world.hangs;
        let (stay, go): (Vec<_>, Vec<_>) = world.open.drain(..).partition(|io| Some(io.object) == hangs);
        world.open = stay;
        out.extend(go.iter().map(|io| IoDone { token: io.token, result: Ok(io.len) }));
        Ok(go.len())
    }

    fn cancel(&mut self, _token: Token) {}

    fn fence(&mut self, _timeout: Duration, _out: &mut Vec<IoDone>) -> Fence {
        let mut world = self.0.lock().unwrap();
        match world.open.is_empty() || world.hangs.is_none() {
            true => Fence::Quiet,
            false => Fence::Busy(u32::try_from(world.open.drain(..).count()).unwrap()),
        }
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(NoWake)
    }
}

fn bed() -> (Lane, Arc<Mutex<World>>) {
    let world = Arc::new(Mutex::new(World::default()));
    let staging = SlabPool::new(SLABS, ByteLen(16 << 10), HugePages::Never).unwrap();
    let parts =
        LaneParts { transports: vec![Box::new(Ring(world.clone()))], copiers: Vec::new(), staging: Some(staging) };
    let config = LaneConfig { ops_max: 64, device_depth: DEVICE_DEPTH, ..LaneConfig::default() };
    (Lane::new(config, parts).unwrap(), world)
}

/// A read of an object on the device.
fn reads(lane: &Lane, device: u64) -> Target {
    let granularity = Granularity { block: 512, memory: 512 };
    let face = Face { transport: "ring", handle: 0, granularity, write_unit: 1, landing: Landing::Dma, because: None };
    let object = Arc::new(Object {
        id: Object::next_id(),
        name: format!("file on {device}").into(),
        len: 1 << 30,
        version: Version { identity: (device, 7), stamp: 0 },
        faces: vec![face],
        residency: Residency::Unknown.into(),
        stripe: None,
        keep: Box::new(()),
    });
    let caps = lane.transport_caps();
    let choice = plan(&object, &MemoryFacts::HOST, &caps, &Policy::Any, &RateTable::new(), Verb::Read).choice.unwrap();
    Target::new(object, choice).unwrap()
}

/// Two devices with shares of their own.
fn devices(lane: &Lane) -> (Target, Target) {
    let one = reads(lane, 0xfe00);
    let other = (0xfe01..).map(|device| reads(lane, device));
    let apart = |other: &Target| other.object.device() != one.object.device();
    let other = other.into_iter().find(apart).unwrap();
    (one, other)
}

/// Reads from `at` of memory; one that is not aligned goes through a staging slab.
fn op(target: &Target, at: u64) -> Op {
    let memory = Buffer::allocate(ByteLen(8192)).unwrap().into_span().share();
    let spans = Spans::One(memory.part(at, ByteLen(4096)).unwrap());
    Op {
        user: target.object.version.identity.0,
        verb: Verb::Read,
        target: target.clone(),
        offset: 0,
        spans,
        options: OpOptions::default(),
    }
}

/// Submits so many reads into memory that begins at a byte of its page.
fn start(lane: &mut Lane, now: Time, target: &Target, (count, at): (u32, u64)) {
    for _ in 0..count {
        lane.submit(now, op(target, at)).unwrap();
    }
}

fn run(lane: &mut Lane, now: u64) -> Vec<Completion> {
    lane.poll(Time(now), Wait::No);
    core::iter::from_fn(|| lane.pop()).collect()
}

#[test]
fn a_device_that_hangs_leaves_places_for_others() {
    let (mut lane, world) = bed();
    let (hung, good) = devices(&lane);
    world.lock().unwrap().hangs = Some(hung.object.id);
    start(&mut lane, Time(0), &hung, (DEPTH + 4, 0));
    assert!(run(&mut lane, 1).is_empty());
    assert_eq!(world.lock().unwrap().open.len(), DEVICE_DEPTH as usize, "its part of the ring");
    start(&mut lane, Time(1), &good, (DEPTH + 4, 0));
    let done: usize = (2..12).map(|now| run(&mut lane, now).iter().filter(|done| done.result.is_ok()).count()).sum();
    assert_eq!(done, DEPTH as usize + 4, "{}", lane.inspect());
    // It answers after all, and those that waited for it go.
    world.lock().unwrap().hangs = None;
    let done: usize = (12..22).map(|now| run(&mut lane, now).iter().filter(|done| done.result.is_ok()).count()).sum();
    assert_eq!((done, lane.in_flight()), (DEPTH as usize + 4, 0), "{}", lane.inspect());
}

#[test]
fn and_slabs() {
    let (mut lane, world) = bed();
    let (hung, good) = devices(&lane);
    world.lock().unwrap().hangs = Some(hung.object.id);
    // Memory that the device cannot reach as it lies.
    start(&mut lane, Time(0), &hung, (SLABS + 2, 3));
    assert!(run(&mut lane, 1).is_empty());
    assert_eq!(lane.slabs_out(), (SLABS - 1, 0));
    start(&mut lane, Time(1), &good, (SLABS, 3));
    let done: usize = (2..12).map(|now| run(&mut lane, now).iter().filter(|done| done.result.is_ok()).count()).sum();
    assert_eq!(done, SLABS as usize, "{}", lane.inspect());
    world.lock().unwrap().hangs = None;
    (12..22).for_each(|now| drop(run(&mut lane, now)));
    assert_eq!((lane.slabs_out(), lane.in_flight()), ((0, 0), 0), "{}", lane.inspect());
}
