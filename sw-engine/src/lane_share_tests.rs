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
    /// Polls that may wait.
    waits: u32,
    /// The object whose device does not answer.
    hangs: Option<ObjectId>,
}

struct Ring(Arc<Mutex<World>>);

/// A ring that has nothing to look after.
struct Resting(Ring);

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

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let mut world = self.0.lock().unwrap();
        world.waits += u32::from(wait != Wait::No);
        let hangs = world.hangs;
        let (stay, go): (Vec<_>, Vec<_>) = world.open.drain(..).partition(|io| Some(io.object) == hangs);
        world.open = stay;
        out.extend(go.iter().map(|io| IoDone { token: io.token, result: Ok(io.len), aside: 0 }));
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

impl Transport for Resting {
    fn caps(&self) -> TransportCaps {
        self.0.caps()
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        self.0.attach(hint)
    }

    fn submit(&mut self, io: &Io) -> Submit {
        self.0.submit(io)
    }

    fn ring(&mut self) -> Result<(), Error> {
        self.0.ring()
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        self.0.poll(wait, out)
    }

    fn cancel(&mut self, token: Token) {
        self.0.cancel(token);
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        self.0.fence(timeout, out)
    }

    fn rests(&self) -> bool {
        true
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.0.waker()
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
        composed: None,
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

#[test]
fn an_idle_lane_waits_on_the_last_transport_that_has_something_to_look_after() {
    let worlds: [Arc<Mutex<World>>; 4] = Default::default();
    let waited = |kinds: [bool; 4]| {
        let transport = |(world, rests): (&Arc<Mutex<World>>, bool)| -> Box<dyn Transport> {
            let ring = Ring(world.clone());
            if rests { Box::new(Resting(ring)) } else { Box::new(ring) }
        };
        let transports = worlds.iter().zip(kinds).map(transport).collect();
        let mut lane =
            Lane::new(LaneConfig::default(), LaneParts { transports, copiers: vec![], staging: None }).unwrap();
        lane.poll(Time::ZERO, Wait::For { timeout: Duration::from_secs(1), min: 1 });
        worlds.each_ref().map(|world| std::mem::take(&mut world.lock().unwrap().waits))
    };
    // As a lane has them: files, commands, controllers with queue pairs that others may lack, and a pool.
    assert_eq!(waited([false, false, false, true]), [0, 0, 1, 0]);
    assert_eq!(waited([false, true, true, true]), [1, 0, 0, 0]);
    assert_eq!(waited([true; 4]), [0, 0, 0, 1]);
}
