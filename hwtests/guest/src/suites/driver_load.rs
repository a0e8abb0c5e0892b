//! Our driver with much in flight: every depth, every queue pair, and resets meanwhile. A [`Mill`] writes a block, reads it
//! back, compares, and goes on with the next content, in many places at a time: nothing may be lost, doubled or mixed up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use sw_engine::seam::{Fence, IoDone, IoKind, Submit, Transport, Wait};
use sw_engine::{ErrorKind, Fault, Object, Retry, Token};
use sw_mem::DmaSpan;
use sw_nvme::bus::Bus;
use sw_nvme::controller::{Life, Reset, ResetLimits};
use sw_nvme::transport::{Completion, NvmeConfig};
use sw_vfio::Backend;

use crate::block;
use crate::context::Context;
use crate::io::{bytes, io, piece};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};
use crate::vfio_rig::{Lane, Rig, attach, data, on_each};

pub const SUITE: Suite = Suite {
    name: "driver-load",
    tests: &[
        Test::new("depths", "a lane keeps as much in flight as it was made for, and no more", depths).limit_s(90),
        Test::new("queues", "all queue pairs work at once, each with its thread; one more is refused by type", queues)
            .limit_s(90),
        Test::new("reset", "lanes outlive resets of the controller and lose nothing; too many end it by type", reset)
            .limit_s(90),
        Test::new(
            "function-reset",
            "a reset of the function behind the driver's back is noticed and mended",
            function_reset,
        )
        .limit_s(90),
    ],
};

/// Bytes of one I/O: a block of either size.
const BYTES: u32 = 4096;
/// Where mills work, and how much each may have: 16 of them, as many as the driver asks queue pairs for, fit 64 MiB.
const AT: u64 = 4 << 20;
const ROOM: u64 = 3 << 20;
const STEP: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(30);
const LIMITS: ResetLimits = ResetLimits { queue: Duration::from_secs(10), ready: Duration::MAX };

/// What a place of a mill does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Writing,
    Reading,
}

/// A lane at work. See the module documentation.
struct Mill<'a> {
    lane: Lane,
    object: &'a Object,
    span: DmaSpan,
    /// First byte in the object; place `n` has the `n`th 4096 bytes from there.
    at: u64,
    places: Vec<(Doing, u64)>,
    /// Places with nothing in flight.
    idle: Vec<usize>,
    ended: Vec<IoDone>,
    /// Blocks that were written, read back and found right.
    turns: u64,
    in_flight_max: usize,
    faults: Vec<Fault>,
}

impl<'a> Mill<'a> {
    fn new(mut lane: Lane, object: &'a Object, backend: Backend, number: u64, places: usize) -> Result<Self, Stop> {
        let span = data(backend, (places as u64 * u64::from(BYTES)).max(1 << 20), 0)?;
        attach(&mut lane, span.region())?;
        Ok(Self {
            lane,
            object,
            span,
            at: AT + number * ROOM,
            places: vec![(Doing::Writing, number << 32); places],
            idle: (0..places).collect(),
            ended: Vec::with_capacity(places),
            turns: 0,
            in_flight_max: 0,
            faults: Vec::new(),
        })
    }

    /// Fills the lane, waits a little, and takes what has ended.
    fn pump(&mut self) -> Verdict {
        while let Some(place) = self.idle.pop() {
            if !self.begin(place)? {
                self.idle.push(place);
                break;
            }
        }
        self.in_flight_max = self.in_flight_max.max(self.lane.in_flight());
        let mut ended = std::mem::take(&mut self.ended);
        let polled = self.lane.poll(Wait::For { timeout: STEP, min: 1 }, &mut ended);
        for done in ended.drain(..) {
            self.end(&done)?;
        }
        self.ended = ended;
        polled?;
        Ok(())
    }

    /// Begins what a place does next; `false`: the lane is full.
    fn begin(&mut self, place: usize) -> Result<bool, Stop> {
        let offset = place as u64 * u64::from(BYTES);
        let (doing, content) = self.places[place];
        let kind = if doing == Doing::Writing { IoKind::Write } else { IoKind::Read };
        match doing {
            Doing::Writing => self.span.write(offset, &block::pattern(content, offset, BYTES as usize))?,
            Doing::Reading => self.span.fill(offset, BYTES.into(), 0xA5)?,
        }
        let mut next = io(kind, self.object, self.at + offset, Some(piece(&self.span, offset, BYTES)?))?;
        next.token = Token::from_raw(place as u64);
        Ok(self.lane.submit(&next) == Submit::Accepted)
    }

    fn end(&mut self, done: &IoDone) -> Verdict {
        let place = usize::try_from(done.token.raw())?;
        if self.idle.contains(&place) {
            return fail(format!("place {place} ended twice"));
        }
        self.idle.push(place);
        let (doing, content) = &mut self.places[place];
        match (done.result, *doing) {
            // The same again: a write may have been done or not.
            (Err(fault), _) => {
                *doing = Doing::Writing;
                self.faults.push(fault);
            }
            (Ok(BYTES), Doing::Writing) => *doing = Doing::Reading,
            (Ok(BYTES), Doing::Reading) => {
                let offset = place as u64 * u64::from(BYTES);
                let got = bytes(&self.span, offset, BYTES as usize)?;
                same(&format!("place {place}"), &(got == block::pattern(*content, offset, BYTES as usize)), &true)?;
                (*doing, *content) = (Doing::Writing, *content + 1);
                self.turns += 1;
            }
            (Ok(other), _) => return fail(format!("{other} bytes of {BYTES}")),
        }
        Ok(())
    }

    /// Works until `turns` more are done.
    fn work(&mut self, turns: u64) -> Verdict {
        let (start, until) = (Instant::now(), self.turns + turns);
        while self.turns < until {
            self.pump()?;
            if start.elapsed() > PATIENCE {
                return fail(format!("{} of {until} turns; faults {:?}", self.turns, self.faults.last()));
            }
        }
        Ok(())
    }

    /// Works until it is told to stop or the lane gives up; tells of its turns meanwhile.
    fn run(&mut self, stop: &AtomicBool, turns: &AtomicU64) -> Verdict {
        while !stop.load(Ordering::Relaxed) && !self.faults.iter().any(|fault| fault.retry == Retry::Never) {
            self.pump()?;
            turns.store(self.turns, Ordering::Relaxed);
        }
        Ok(())
    }

    fn fence(&mut self) -> Verdict {
        same("fence", &self.lane.fence(PATIENCE, &mut self.ended), &Fence::Quiet)
    }
}

fn depths(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-a", backend)?;
        let object = rig.object(1)?;
        let mut reached = Vec::new();
        for depth in [1u32, 2, 3, 7, 31, 32, 33, 64, 127, 255, 500] {
            let config = NvmeConfig { queue_depth: depth, commands_per_controller: depth, ..NvmeConfig::default() };
            let places = usize::try_from(depth)?;
            let mut mill = Mill::new(rig.lane_with(config)?, &object, backend, 0, places + 1)?;
            mill.work(u64::from(depth) * 2 + 20)?;
            same(&format!("in flight at depth {depth}"), &mill.in_flight_max, &places)?;
            same("faults", &mill.faults.len(), &0)?;
            let queues = mill.lane.counters().queues;
            reached.push(json!({"depth": depth, "commands": queues.commands, "sq_doorbells": queues.sq_doorbells}));
            mill.fence()?;
        }
        context.fact(&json!({"backend": backend.name(), "depths": reached}));
        Ok(())
    })
}

fn queues(context: &Context) -> Verdict {
    const TURNS: u64 = 150;
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-a", backend)?;
        let objects = rig.two_objects()?;
        let pairs = rig.controller.facts().queue_pairs;
        let mut mills = Vec::new();
        for number in 0..u64::from(pairs) {
            // Every way to notice completions; vectors may be fewer than pairs.
            let completion = match number % 3 {
                0 => Completion::Polled,
                1 => Completion::Interrupt,
                _ => Completion::Hybrid { spin: Duration::from_micros(100) },
            };
            let config = NvmeConfig { completion, queue_depth: 16, ..NvmeConfig::default() };
            // Half of the places on each namespace, if there are two, and apart from each other in any case.
            mills.push(Mill::new(rig.lane_with(config)?, &objects[usize::from(number % 2 == 1)], backend, number, 16)?);
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = mills.iter_mut().map(|mill| scope.spawn(|| mill.work(TURNS))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| fail("a lane panicked")))
        })?;
        same("pairs in use", &rig.controller.queue_pairs_in_use(), &usize::from(pairs))?;
        // All pairs are out: the next lane is told so, and works once one is given back.
        let mut late = Mill::new(rig.lane_with(NvmeConfig::default())?, &objects[0], backend, 9, 1)?;
        let start = Instant::now();
        while late.faults.is_empty() && start.elapsed() < PATIENCE {
            late.pump()?;
        }
        let fault = late.faults.first().map(|fault| fault.kind);
        same("one lane more", &fault, &Some(ErrorKind::ResourceLimit))?;
        let turns: u64 = mills.iter().map(|mill| mill.turns).sum();
        let sleeps: u64 = mills.iter().map(|mill| mill.lane.counters().lost_interrupts).sum();
        context.fact(&json!({"backend": backend.name(), "queue_pairs": pairs, "vectors": rig.function.vectors(),
            "blocks_checked": turns, "waits_without_their_interrupt": sleeps}));
        mills.iter().try_for_each(|mill| same("faults", &mill.faults.len(), &0))?;
        drop(mills.pop());
        late.faults.clear();
        late.work(10)
    })
}

/// Two lanes at work while `disturb` runs; it gets their turns. Gives the lanes' faults.
fn disturbed(
    rig: &Rig,
    backend: Backend,
    disturb: impl FnOnce(&dyn Fn(u64) -> Verdict) -> Verdict,
) -> Result<Vec<Fault>, Stop> {
    let objects = rig.two_objects()?;
    let (stop, turns) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    let mut mills = Vec::new();
    for (number, (object, completion)) in (0..).zip(objects.iter().zip([Completion::Polled, Completion::Interrupt])) {
        let config = NvmeConfig { completion, queue_depth: 16, ..NvmeConfig::default() };
        mills.push(Mill::new(rig.lane_with(config)?, object, backend, number, 16)?);
    }
    // Waits until each of the lanes has done so many turns more.
    let progress = |more: u64| {
        let before: Vec<u64> = turns.iter().map(|turns| turns.load(Ordering::Relaxed)).collect();
        let start = Instant::now();
        let done = || turns.iter().zip(&before).all(|(now, before)| now.load(Ordering::Relaxed) >= before + more);
        while !done() {
            if start.elapsed() > PATIENCE {
                return fail(format!("no {more} turns more after {before:?}: {turns:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let stop = &stop;
        let threads: Vec<_> =
            mills.iter_mut().zip(&turns).map(|(mill, turns)| scope.spawn(|| mill.run(stop, turns))).collect();
        let disturbed = disturb(&progress);
        if disturbed.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        // Lanes that live are told to stop; those whose controller was given up have stopped.
        let limit = Instant::now();
        while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) && limit.elapsed() < PATIENCE {
            if matches!(rig.controller.life(), Life::Up(_)) {
                stop.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(STEP);
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| fail("a lane panicked")))?;
        disturbed
    })?;
    mills.iter_mut().try_for_each(Mill::fence)?;
    Ok(mills.into_iter().flat_map(|mill| mill.faults).collect())
}

fn epoch(rig: &Rig) -> Result<u64, Stop> {
    match rig.controller.life() {
        Life::Up(epoch) => Ok(epoch),
        other => fail(format!("the controller is {other:?}")),
    }
}

/// Kinds and advice of faults, for the record.
fn told(faults: &[Fault]) -> Vec<String> {
    let mut kinds: Vec<String> = faults.iter().map(|fault| format!("{:?} {:?}", fault.kind, fault.retry)).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

fn reset(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-a", backend)?;
        let faults = disturbed(&rig, backend, |progress| {
            for round in 0..3 {
                progress(50)?;
                let before = epoch(&rig)?;
                same("reset", &rig.controller.reset(before, LIMITS), &Reset::Again(before + 1))?;
                progress(50).or_else(|stop| fail(format!("after reset {round}: {stop}")))?;
            }
            Ok(())
        })?;
        let hopeless = faults.iter().find(|fault| fault.retry == Retry::Never);
        same("a reset is no reason to give up", &hopeless, &None)?;
        context.fact(&json!({"backend": backend.name(), "resets": rig.controller.counters().resets,
            "faults": faults.len(), "kinds": told(&faults)}));
        // The fourth in a row: the controller is given up, and lanes say that it is gone.
        let faults = disturbed(&rig, backend, |progress| {
            progress(20)?;
            same("a fourth reset", &rig.controller.reset(epoch(&rig)?, LIMITS), &Reset::Dead)
        })?;
        let last: Vec<&Fault> = faults.iter().filter(|fault| fault.retry == Retry::Never).collect();
        same("lanes were told", &(!last.is_empty()), &true)?;
        last.iter().try_for_each(|fault| same("the last word", &fault.kind, &ErrorKind::NoDevice))
    })
}

fn function_reset(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-b", backend)?;
        let object = rig.object(1)?;
        let config = NvmeConfig { queue_depth: 16, ..NvmeConfig::default() };
        let mut mill = Mill::new(rig.lane_with(config)?, &object, backend, 0, 16)?;
        mill.work(100)?;
        // In flight, and nobody tells the driver.
        rig.function.reset()?;
        let start = Instant::now();
        mill.work(100)?;
        let resets = rig.controller.counters().resets;
        context.fact(&json!({"backend": backend.name(), "again_after_s": start.elapsed().as_secs_f64(),
            "faults": mill.faults.len(), "kinds": told(&mill.faults), "resets": resets}));
        same("resets of the controller", &resets, &1)?;
        mill.fence()
    })
}
