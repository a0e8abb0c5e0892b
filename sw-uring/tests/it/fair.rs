//! One ring for two devices, of which one does not answer.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure to prepare is a failed test")]
#![expect(clippy::disallowed_methods, reason = "a bound in time ends a test that hangs")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use sw_engine::{
    Completion, Lane, LaneConfig, LaneParts, MemoryFacts, Object, Op, OpOptions, Policy, RateTable, Spans, Target,
    Time, Verb, plan,
    seam::{OpenMode, Transport, Wait},
};
use sw_mem::{Buffer, ByteLen};
use sw_uring::{UringConfig, UringTransport};

use crate::mounts::{LoopMount, tool};
use crate::support::{PATIENCE, open, scratch};

const IO_BYTES: u64 = 64 << 10;
const RING_DEPTH: u32 = 16;
const DEVICE_DEPTH: u32 = 4;
/// More than the ring has places.
const IOS: u64 = 24;

fn file(lane_of: &dyn Transport, path: &Path) -> Arc<Object> {
    std::fs::write(path, vec![1; usize::try_from(IOS * IO_BYTES).unwrap()]).unwrap();
    open(lane_of, path, OpenMode::Update)
}

fn submit(lane: &mut Lane, object: &Arc<Object>, verb: Verb) {
    let caps = lane.transport_caps();
    let choice = plan(object, &MemoryFacts::HOST, &caps, &Policy::Any, &RateTable::new(), verb).choice.unwrap();
    let target = Target::new(object.clone(), choice).unwrap();
    for at in 0..IOS {
        let spans = Spans::One(Buffer::allocate(ByteLen(IO_BYTES)).unwrap().into_span());
        let (target, offset) = (target.clone(), at * IO_BYTES);
        lane.submit(Time(0), Op { user: at, verb, target, offset, spans, options: OpOptions::default() }).unwrap();
    }
}

/// Completions until there are `count` or [`PATIENCE`] is over.
fn some(lane: &mut Lane, count: u64) -> Vec<Completion> {
    let (start, mut done) = (Instant::now(), Vec::new());
    while (done.len() as u64) < count && start.elapsed() < PATIENCE {
        lane.poll(Time(1), Wait::For { timeout: Duration::from_millis(10), min: 1 });
        done.extend(core::iter::from_fn(|| lane.pop()));
    }
    done
}

#[test]
fn a_file_system_that_hangs_does_not_hold_up_another() {
    let scratch = scratch("fair");
    let disk = match LoopMount::new(&["mkfs.ext4", "-q"], &scratch.path(""), 16 << 20) {
        Ok(disk) => disk,
        Err(why) => return println!("skip: {why}"),
    };
    let ring = UringConfig { queue_depth: RING_DEPTH, ..UringConfig::default() };
    let transport = match UringTransport::new(ring) {
        Ok(transport) => Box::new(transport),
        Err(why) => return println!("skip: {why}"),
    };
    let (held, free) = (file(&*transport, &disk.path().join("file")), file(&*transport, &scratch.path("file")));
    let parts = LaneParts { transports: vec![transport], copiers: Vec::new(), staging: None };
    let mut lane = Lane::new(LaneConfig { device_depth: DEVICE_DEPTH, ..LaneConfig::default() }, parts).unwrap();
    // Writers wait in the kernel until it is thawed.
    tool("fsfreeze", &["-f", disk.path().to_str().unwrap()]).unwrap();
    submit(&mut lane, &held, Verb::Write);
    lane.ring();
    submit(&mut lane, &free, Verb::Read);
    let done = some(&mut lane, IOS);
    let tree = lane.inspect().to_string();
    tool("fsfreeze", &["-u", disk.path().to_str().unwrap()]).unwrap();
    let all_read = done.iter().all(|end| end.op.as_ref().is_some_and(|op| op.verb == Verb::Read) && end.result.is_ok());
    assert!(all_read && done.len() as u64 == IOS, "{} of {IOS}\n{tree}", done.len());
    let done = some(&mut lane, IOS);
    assert!(done.iter().all(|end| end.result.is_ok()) && done.len() as u64 == IOS, "{}", lane.inspect());
}
