//! One job of a bench: a thread with a lane, memory of its own, and a place in the file.

use std::time::Duration;

use hdrhistogram::Histogram;
use straightway::{Completion, Counters, Destination, Engine, Lane, Memory, Object, Policy, Target, Verb};

use crate::{
    fail::{Exit, Fail},
    pattern, pipeline,
    route::Ways,
    session::Stopwatch,
    signals,
};

/// Memory starts congruent to the offset modulo this many bytes: the largest block of direct I/O.
const BLOCK_BYTES: u64 = 4096;
/// Longest sleep between two looks at the clock and the signals.
const STEP: Duration = Duration::from_millis(100);
/// Longest latency that the histogram holds, in nanoseconds: 10 minutes. Longer ones count as this.
const LATENCY_MAX_NS: u64 = 600_000_000_000;

/// What one measurement does, the same for all its jobs.
#[derive(Clone, Copy, Debug)]
pub struct Cell<'a> {
    pub engine: &'a Engine,
    pub object: &'a Object,
    pub verb: Verb,
    pub into: Destination,
    pub policy: Policy,
    pub size: u64,
    pub depth: u32,
    pub jobs: u16,
    pub random: bool,
    pub shift: u64,
    pub verify: bool,
    pub seed: u64,
    /// When to stop taking new operations.
    pub bound: Bound,
}

/// The end of a measurement.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// After this time.
    Time(Duration),
    /// After so many operations of each job.
    Operations(u64),
}

/// What a job found.
pub struct Found {
    pub operations: u64,
    pub bytes: u64,
    pub verified: u64,
    pub latency: Histogram<u64>,
    pub ways: Ways,
    pub counters: Counters,
}

/// A job that is ready to start.
pub struct Worker<'a> {
    cell: Cell<'a>,
    lane: Lane,
    target: Target,
    idle: Vec<Memory>,
    places: Places,
    /// Submission times in nanoseconds, by the operation's word.
    started: Vec<u64>,
    free: Vec<usize>,
    /// For comparing and filling device memory, which has no slices.
    offsets: Vec<u64>,
    found: Found,
}

impl<'a> Worker<'a> {
    /// Makes the lane and the memory of job number `job`.
    ///
    /// # Errors
    /// Of the engine; of the planner, if the policy cannot be met.
    pub fn new(cell: Cell<'a>, job: u16) -> Result<Self, Fail> {
        let mut lane = cell.engine.lane(cell.into)?;
        let target = lane.target(cell.object, &cell.policy, cell.verb)?;
        let idle = memories(&cell)?;
        // Refused registrations make each I/O dearer, which is then what is measured.
        let _ = lane.attach_object(cell.object);
        if let Some(memory) = idle.first() {
            let _ = lane.attach_memory(memory);
        }
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)
            .map_err(|error| Fail::new(Exit::Failed, "bench", format!("no histogram: {error}"), ""))?;
        let depth = idle.len();
        let counters = *lane.counters();
        Ok(Self {
            places: Places::new(&cell, job),
            lane,
            target,
            idle,
            started: vec![0; depth],
            offsets: vec![0; depth],
            free: (0..depth).collect(),
            found: Found { operations: 0, bytes: 0, verified: 0, latency, ways: Ways::default(), counters },
            cell,
        })
    }

    /// Runs to the bound.
    ///
    /// # Errors
    /// Of an operation; a byte that is not what it should be; an interrupt.
    pub fn run(mut self) -> Result<Found, Fail> {
        let clock = Stopwatch::start();
        let mut taken = 0;
        loop {
            signals::requested()?;
            while !self.free.is_empty() && self.cell.bound.allows(taken, clock) {
                self.submit(clock)?;
                taken += 1;
            }
            if self.lane.in_flight() == 0 {
                break;
            }
            self.lane.poll_gathering(STEP);
            let now = nanos(clock);
            while let Some(done) = self.lane.pop() {
                self.complete(done, now)?;
            }
        }
        let before = self.found.counters;
        let after = *self.lane.counters();
        self.found.counters.ios = after.ios - before.ios;
        self.found.counters.doorbells = after.doorbells - before.doorbells;
        self.found.counters.polls = after.polls - before.polls;
        // The registration holds the object open; a lane that refuses is dropped next.
        let _ = self.lane.detach_object(self.cell.object);
        Ok(self.found)
    }

    fn submit(&mut self, clock: Stopwatch) -> Result<(), Fail> {
        let (Some(index), Some(memory)) = (self.free.pop(), self.idle.pop()) else { return Ok(()) };
        let offset = self.places.next();
        let memory = if self.cell.verify && self.cell.verb == Verb::Write {
            pipeline::filled(memory, self.cell.seed, offset)?
        } else {
            memory
        };
        self.offsets[index] = offset;
        self.started[index] = nanos(clock);
        let place = self.cell.object.position(self.cell.verb, offset, memory.len())?;
        let op = Lane::op(index as u64, self.cell.verb, self.target.clone(), place, memory);
        self.lane.submit(op).map(|_| ()).map_err(|rejected| rejected.error.into())
    }

    fn complete(&mut self, done: Completion, now: u64) -> Result<(), Fail> {
        self.found.bytes += done.result?;
        self.found.operations += 1;
        self.found.ways.add(&done.path);
        let index = usize::try_from(done.user).unwrap_or(0);
        self.found.latency.saturating_record(now.saturating_sub(self.started[index]).max(1));
        let memory = done
            .op
            .and_then(Lane::memory_of)
            .ok_or_else(|| Fail::new(Exit::Failed, "withheld", "the memory of an operation did not come back", ""))?;
        let memory =
            if self.cell.verify && self.cell.verb == Verb::Read { self.compare(memory, index)? } else { memory };
        self.idle.push(memory);
        self.free.push(index);
        Ok(())
    }

    fn compare(&mut self, memory: Memory, index: usize) -> Result<Memory, Fail> {
        let (offset, seed) = (self.offsets[index], self.cell.seed);
        let len = memory.len();
        let name = self.cell.object.name();
        let memory = if memory.destination() == Destination::Host {
            pipeline::compared(memory, seed, offset, name)?
        } else {
            let copy = self.cell.engine.copy_to_host(&memory)?;
            match pattern::first_difference(seed, offset, copy.as_slice()) {
                None => memory,
                Some(at) => return Err(pattern::mismatch(name, at, seed)),
            }
        };
        self.found.verified += len;
        Ok(memory)
    }
}

impl Bound {
    fn allows(self, taken: u64, clock: Stopwatch) -> bool {
        match self {
            Self::Time(time) => clock.elapsed() < time,
            Self::Operations(operations) => taken < operations,
        }
    }
}

fn nanos(clock: Stopwatch) -> u64 {
    u64::try_from(clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Distance of two operations in the file, and of their memory: `size` in whole blocks.
fn stride(size: u64) -> u64 {
    size.next_multiple_of(BLOCK_BYTES)
}

/// One allocation, cut into as many parts as operations are under way, each placed for its offsets.
fn memories(cell: &Cell<'_>) -> Result<Vec<Memory>, Fail> {
    let stride = stride(cell.size);
    let bytes = stride.checked_mul(u64::from(cell.depth)).ok_or_else(|| {
        Fail::usage(
            format!("{} operations of {} bytes are over 2^64 bytes", cell.depth, cell.size),
            "use smaller numbers",
        )
    })?;
    let mut rest = cell.engine.allocate(cell.into, bytes, cell.shift)?;
    let lost = |_| Fail::new(Exit::Failed, "bench", "memory could not be cut", "");
    let mut parts = Vec::with_capacity(usize::try_from(cell.depth).unwrap_or(0));
    for _ in 1..cell.depth {
        let (part, more) = rest.split_at(stride).map_err(lost)?;
        parts.push(part);
        rest = more;
    }
    parts.push(rest);
    parts.into_iter().map(|part| shorten(part, cell.size)).collect()
}

fn shorten(memory: Memory, len: u64) -> Result<Memory, Fail> {
    if memory.len() == len {
        return Ok(memory);
    }
    memory
        .split_at(len)
        .map(|(part, _)| part)
        .map_err(|_| Fail::new(Exit::Failed, "bench", "memory could not be cut", ""))
}

/// Where the operations of a job go: every [`stride`] bytes, so that memory placed once fits each of them.
struct Places {
    stride: u64,
    shift: u64,
    /// Blocks of the file that this job uses: first and count, which is not 0.
    first: u64,
    count: u64,
    /// Operations so far.
    at: u64,
    random: Option<u64>,
}

impl Places {
    /// Sequential jobs share the file out; random ones each use all of it.
    fn new(cell: &Cell<'_>, job: u16) -> Self {
        let blocks = (cell.object.len().saturating_sub(cell.shift.saturating_add(cell.size)) / stride(cell.size)) + 1;
        let share = (blocks / u64::from(cell.jobs)).max(1);
        let first = (share * u64::from(job)) % blocks;
        let (first, count) = if cell.random { (0, blocks) } else { (first, share.min(blocks - first)) };
        let random = cell.random.then(|| pattern::word(cell.seed, u64::from(job)));
        Self { stride: stride(cell.size), shift: cell.shift, first, count, at: 0, random }
    }

    fn next(&mut self) -> u64 {
        let turn = match self.random {
            Some(seed) => pattern::word(seed, self.at),
            None => self.at,
        };
        self.at += 1;
        self.shift + (self.first + turn % self.count) * self.stride
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(first: u64, count: u64, random: Option<u64>) -> Places {
        Places { stride: 4096, shift: 5, first, count, at: 0, random }
    }

    #[test]
    fn sequential_places_go_round() {
        let mut places = places(2, 3, None);
        let got: Vec<u64> = (0..4).map(|_| places.next()).collect();
        assert_eq!(got, [2 * 4096 + 5, 3 * 4096 + 5, 4 * 4096 + 5, 2 * 4096 + 5]);
    }

    #[test]
    fn random_places_stay_inside_and_replay() {
        let (mut one, mut other) = (places(0, 100, Some(7)), places(0, 100, Some(7)));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let place = one.next();
            assert_eq!(place, other.next());
            assert!(place < 100 * 4096 + 5 && place % 4096 == 5);
            seen.insert(place);
        }
        assert!(seen.len() > 95, "{} of 100 places", seen.len());
    }

    #[test]
    fn a_bound_of_operations_is_exact() {
        let clock = Stopwatch::start();
        assert!(Bound::Operations(3).allows(2, clock));
        assert!(!Bound::Operations(3).allows(3, clock));
        assert!(!Bound::Time(Duration::ZERO).allows(0, clock));
    }
}
