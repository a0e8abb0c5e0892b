//! The engine on a transport that completes at once and moves nothing: what is left is the engine's own cost per
//! operation, from submit to completion.

use std::time::{Duration, Instant};

use sw_engine::{
    Completion, Granularity, Lane, LaneConfig, LaneParts, MemoryFacts, Op, OpOptions, Policy, RateTable, Spans, Target,
    Time, Verb, seam::Wait,
};
use sw_mem::{Buffer, ByteLen};
use sw_testkit::null::NullTransport;

use crate::{allocations, ours::per_thousand, report::Sample, usage::Usage};

/// Bytes of an operation: the peers' block.
const BLOCK: u64 = 4096;
/// Object that the operations walk through.
const OBJECT_BYTES: u64 = 1 << 40;
/// Batches between two looks at whether the time is over.
const BATCHES: u64 = 256;

/// Submits `batch` reads, polls, takes all completions, and again, for `time`.
pub(crate) fn run(batch: u32, time: Duration) -> Result<Sample, straightway::Error> {
    let transports: Vec<Box<dyn sw_engine::seam::Transport>> = vec![Box::new(NullTransport::new(batch, 1 << 20))];
    let config = LaneConfig { ops_max: batch.max(1), ..LaneConfig::default() };
    let mut lane = Lane::new(config, LaneParts { transports, copiers: Vec::new(), staging: None })?;
    let object = NullTransport::object(OBJECT_BYTES, Granularity::ANY);
    let caps = lane.transport_caps();
    let plan = sw_engine::plan(&object, &MemoryFacts::HOST, &caps, &Policy::Any, &RateTable::default(), Verb::Read);
    let target = Target::new(object, plan.choice?)?;
    let mut ops = Vec::with_capacity(batch as usize);
    for user in 0..u64::from(batch) {
        let Ok(memory) = Buffer::allocate(ByteLen(BLOCK)) else { continue };
        let spans = Spans::One(memory.into_span());
        ops.push(Op {
            user,
            verb: Verb::Read,
            target: target.clone(),
            offset: user * BLOCK,
            spans,
            options: OpOptions::default(),
        });
    }
    turn(&mut lane, &mut ops, Time::ZERO);
    measure(&mut lane, ops, time)
}

fn measure(lane: &mut Lane, mut ops: Vec<Op>, time: Duration) -> Result<Sample, straightway::Error> {
    let mut sample = Sample::default();
    let (before, allocated) = (Usage::now(), allocations::count_here());
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            break;
        }
        for _ in 0..BATCHES {
            // A caller reads its clock once per poll; so does this loop.
            let now = Time::ZERO.after(start.elapsed());
            sample.ops += turn(lane, &mut ops, now);
        }
    }
    sample.seconds = start.elapsed().as_secs_f64();
    sample.bytes = sample.ops * BLOCK;
    let allocated = allocations::count_here() - allocated;
    Usage::now().charge(before, &mut sample);
    sample.more.insert("allocations_per_1000".to_owned(), per_thousand(allocated, sample.ops));
    Ok(sample)
}

/// One batch through the lane; gives how many operations ended well. Those that did not are not counted and not retried.
fn turn(lane: &mut Lane, ops: &mut Vec<Op>, now: Time) -> u64 {
    while let Some(op) = ops.pop() {
        if let Err(rejected) = lane.submit(now, op) {
            ops.push(rejected.op);
            break;
        }
    }
    let mut ended = 0;
    lane.poll(now, Wait::For { timeout: Duration::from_secs(1), min: 1 });
    while let Some(Completion { result, op, .. }) = lane.pop() {
        ended += u64::from(result.is_ok());
        if let Some(op) = op {
            ops.push(op);
        }
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_end_well_and_nothing_is_allocated_for_them() {
        let sample = run(32, Duration::from_millis(5)).unwrap();
        assert!(sample.ops >= 32 * BATCHES, "{}", sample.ops);
        assert_eq!(sample.more["allocations_per_1000"], 0.0);
    }
}
