//! The suite for [`CopyEngine`]: device memory, real, stood in for, or modelled.

use std::{collections::BTreeMap, time::Duration};

use sw_engine::{
    Fault, Token,
    seam::{CopyDirection, CopyDone, CopyEngine, CopyJob, Fence, SlabPin},
};
use sw_mem::{Buffer, ByteLen, DmaRegion, DmaSpan, HugePages, Place, Populate, index};

use super::{Case, CaseResult, End, Report, fail};
use crate::pattern;

/// Bytes of host slabs and of device memory in a case.
const MEMORY: u64 = 1 << 20;
/// Time by the bed's clock in which any batch of a case must have ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// Polls in one batch at most.
const POLLS_MAX: u32 = 20_000_000;
/// What a fence gets.
const FENCE: Duration = Duration::from_secs(20);

/// Makes what the cases need. What it cannot make it refuses with [`End::Skip`] and the reason.
pub trait Bed {
    /// Printed in the report: the backend and its setting.
    fn name(&self) -> String;

    /// A fresh copy engine with nothing in flight.
    ///
    /// # Errors
    /// [`End::Skip`] where the machine has none.
    fn engine(&mut self) -> Result<Box<dyn CopyEngine>, End>;

    /// Fresh memory of the engine's device.
    ///
    /// # Errors
    /// [`End::Skip`] if there is none.
    fn device_memory(&mut self, len: ByteLen) -> Result<DmaRegion, End>;

    /// Tells about host memory that the suite will use. A model needs it; others have no use for it.
    fn memory(&mut self, _region: &DmaRegion) {}

    /// Time, from any start.
    fn now(&self) -> Duration;

    /// Called between polls that gave nothing: a model moves its clock here, others yield.
    fn idle(&mut self);
}

/// A case of this suite.
pub type Run = fn(&mut dyn Bed) -> CaseResult;

/// The cases, in the order they run.
pub const CASES: &[Case<Run>] = &[
    Case { name: "caps_are_sane_and_constant", run: caps_are_sane },
    Case { name: "bytes_reach_device_memory_and_come_back", run: there_and_back },
    Case { name: "any_length_and_offset", run: any_length_and_offset },
    Case { name: "bytes_beside_a_copy_are_left_alone", run: bytes_beside_are_left_alone },
    Case { name: "many_copies_end_exactly_once", run: many_end_exactly_once },
    Case { name: "poll_keeps_to_the_capacity_of_its_output", run: poll_keeps_to_capacity },
    Case { name: "a_poll_without_work_gives_nothing", run: a_poll_without_work },
    Case { name: "two_pinned_regions_are_both_usable", run: two_pins },
    Case { name: "a_fence_with_nothing_in_flight_is_quiet", run: fence_idle },
    Case { name: "a_fence_ends_what_is_in_flight_and_then_is_quiet", run: fence_busy },
];

/// Runs all cases on one bed.
pub fn run(bed: &mut dyn Bed) -> Report {
    let name = bed.name();
    Report::of("copy_engine", name, CASES, |run| run(bed))
}

/// An engine with pinned slabs and device memory.
struct Rig<'a> {
    bed: &'a mut dyn Bed,
    engine: Box<dyn CopyEngine>,
    slabs: DmaSpan,
    device: DmaRegion,
    next: u64,
    open: BTreeMap<u64, CopyJob>,
    ends: BTreeMap<u64, Result<(), Fault>>,
    /// Dropped before the slabs are.
    _pin: Box<dyn SlabPin>,
}

fn told<T>(what: &str, result: Result<T, impl core::fmt::Debug>) -> Result<T, End> {
    result.or_else(|error| fail(format!("{what}: {error:?}")))
}

fn host_memory(bed: &mut dyn Bed) -> Result<DmaSpan, End> {
    let buffer = told("host memory", Buffer::allocate_with(ByteLen(MEMORY), 0, HugePages::Never, Populate::Now))?;
    bed.memory(buffer.region());
    Ok(buffer.into_span())
}

impl<'a> Rig<'a> {
    fn new(bed: &'a mut dyn Bed) -> Result<Self, End> {
        let slabs = host_memory(bed)?;
        let device = bed.device_memory(ByteLen(MEMORY))?;
        let mut engine = bed.engine()?;
        let pin = told("pin", engine.pin(slabs.region()))?;
        if !matches!(device.base(), Place::Device(owner, _) if owner == engine.caps().device) {
            return fail(format!("memory of {:?} for an engine of {:?}", device.base(), engine.caps().device));
        }
        Ok(Self { bed, engine, slabs, device, next: 1, open: BTreeMap::new(), ends: BTreeMap::new(), _pin: pin })
    }

    fn job(&mut self, direction: CopyDirection, host_at: u64, device_at: u64, len: u32) -> Result<CopyJob, End> {
        let token = Token::from_raw(self.next << 32);
        self.next += 1;
        let host = self.slabs.place().host().and_then(|va| va.checked_add(ByteLen(host_at)));
        let device = match self.device.base() {
            Place::Device(_, va) => va.checked_add(ByteLen(device_at)),
            Place::Host(_) => None,
        };
        match (host, device) {
            (Some(host), Some(device)) => Ok(CopyJob { token, direction, host, device, len }),
            _ => fail("a range outside of memory: a bug of the suite"),
        }
    }

    fn submit(&mut self, job: &CopyJob) -> CaseResult {
        told("submit", self.engine.submit(job))?;
        self.open.insert(job.token.raw(), *job);
        Ok(())
    }

    fn book(&mut self, ends: &[CopyDone]) -> CaseResult {
        for end in ends {
            if self.open.remove(&end.token.raw()).is_none() {
                return fail(format!("token {:#x} ended, which is not in flight", end.token.raw()));
            }
            self.ends.insert(end.token.raw(), end.result);
        }
        Ok(())
    }

    fn poll(&mut self, capacity: usize) -> Result<usize, End> {
        let mut out = Vec::with_capacity(capacity);
        let counted = told("poll", self.engine.poll(&mut out))?;
        if counted != out.len() || counted > capacity {
            return fail(format!("poll says {counted} and gave {} into room for {capacity}", out.len()));
        }
        self.book(&out)?;
        Ok(counted)
    }

    /// Submits all, never more than the depth at once, and waits until all have ended well.
    fn run(&mut self, jobs: &[CopyJob]) -> CaseResult {
        let depth = self.engine.caps().queue_depth as usize;
        let start = self.bed.now();
        let mut todo = jobs.iter();
        let mut left = jobs.len();
        for _ in 0..POLLS_MAX {
            while self.open.len() < depth
                && let Some(job) = todo.next()
            {
                self.submit(job)?;
                left -= 1;
            }
            if self.open.is_empty() && left == 0 {
                break;
            }
            told("ring", self.engine.ring())?;
            if self.poll(64)? == 0 {
                self.bed.idle();
                if self.bed.now().saturating_sub(start) > PATIENCE {
                    return fail(format!("{} copies did not end within {PATIENCE:?}", self.open.len()));
                }
            }
        }
        let failed = jobs.iter().find(|job| !matches!(self.ends.get(&job.token.raw()), Some(Ok(()))));
        failed.map_or(Ok(()), |job| fail(format!("{job:?} gave {:?}", self.ends.get(&job.token.raw()))))
    }

    fn copy(&mut self, direction: CopyDirection, host_at: u64, device_at: u64, len: u32) -> CaseResult {
        let job = self.job(direction, host_at, device_at, len)?;
        self.run(&[job])
    }

    fn put(&self, at: u64, bytes: &[u8]) -> CaseResult {
        told("slab", self.slabs.write(at, bytes))
    }

    fn get(&self, at: u64, len: u64) -> Result<Vec<u8>, End> {
        let mut bytes = vec![0; index(len)];
        told("slab", self.slabs.read(at, &mut bytes))?;
        Ok(bytes)
    }
}

fn expect(what: &str, got: &[u8], want: &[u8]) -> CaseResult {
    match pattern::first_difference(got, want) {
        None if got.len() == want.len() => Ok(()),
        None => fail(format!("{what}: {} bytes instead of {}", got.len(), want.len())),
        Some((at, got, want)) => fail(format!("{what}: byte {at} is {got:#04x} instead of {want:#04x}")),
    }
}

fn caps_are_sane(bed: &mut dyn Bed) -> CaseResult {
    let engine = bed.engine()?;
    let (first, second) = (engine.caps(), engine.caps());
    match first.queue_depth > 0 && format!("{first:?}") == format!("{second:?}") {
        true => Ok(()),
        false => fail(format!("{first:?}, then {second:?}")),
    }
}

fn there_and_back(bed: &mut dyn Bed) -> CaseResult {
    let mut rig = Rig::new(bed)?;
    let len = 256 << 10;
    let bytes = pattern::bytes(1, 0, len as usize);
    rig.put(0, &bytes)?;
    rig.copy(CopyDirection::ToDevice, 0, 4096, len)?;
    rig.copy(CopyDirection::FromDevice, 512 << 10, 4096, len)?;
    expect("what came back", &rig.get(512 << 10, len.into())?, &bytes)?;
    expect("the source", &rig.get(0, len.into())?, &bytes)
}

fn any_length_and_offset(bed: &mut dyn Bed) -> CaseResult {
    let mut rig = Rig::new(bed)?;
    for (n, (host_at, device_at, len)) in
        (2u64..).zip([(0, 0, 1), (1, 7, 3), (63, 4095, 2), (511, 513, 4097), (4095, 1, 65_537)])
    {
        let bytes = pattern::bytes(n, 0, len as usize);
        rig.put(host_at, &bytes)?;
        rig.copy(CopyDirection::ToDevice, host_at, device_at, len)?;
        rig.copy(CopyDirection::FromDevice, (512 << 10) + 3, device_at, len)?;
        expect("an odd copy", &rig.get((512 << 10) + 3, len.into())?, &bytes)?;
    }
    Ok(())
}

fn bytes_beside_are_left_alone(bed: &mut dyn Bed) -> CaseResult {
    let mut rig = Rig::new(bed)?;
    let len = 64 << 10;
    let mut image = pattern::bytes(3, 0, len as usize);
    rig.put(0, &image)?;
    rig.copy(CopyDirection::ToDevice, 0, 0, len)?;
    let middle = pattern::bytes(4, 0, 1001);
    rig.put(128 << 10, &middle)?;
    rig.copy(CopyDirection::ToDevice, 128 << 10, 20_001, 1001)?;
    image.iter_mut().skip(20_001).zip(&middle).for_each(|(to, from)| *to = *from);
    // Into guarded slab memory: what lies beside must keep its bytes.
    rig.put(256 << 10, &vec![0xA5; 128 << 10])?;
    rig.copy(CopyDirection::FromDevice, (256 << 10) + 4096, 0, len)?;
    expect("device memory", &rig.get((256 << 10) + 4096, len.into())?, &image)?;
    expect("slab before", &rig.get(256 << 10, 4096)?, &[0xA5; 4096])?;
    expect("slab behind", &rig.get((256 << 10) + 4096 + u64::from(len), 4096)?, &[0xA5; 4096])
}

fn many_end_exactly_once(bed: &mut dyn Bed) -> CaseResult {
    let mut rig = Rig::new(bed)?;
    let (count, len) = (200u64, 1000u32);
    let mut jobs = Vec::new();
    for n in 0..count {
        rig.put(n * 1024, &pattern::bytes(100 + n, 0, len as usize))?;
        jobs.push(rig.job(CopyDirection::ToDevice, n * 1024, n * 1024, len)?);
    }
    rig.run(&jobs)?;
    let back: Result<Vec<_>, End> =
        (0..count).map(|n| rig.job(CopyDirection::FromDevice, (512 << 10) + n * 1024, n * 1024, len)).collect();
    rig.run(&back?)?;
    for n in 0..count {
        expect(
            "one of many",
            &rig.get((512 << 10) + n * 1024, len.into())?,
            &pattern::bytes(100 + n, 0, len as usize),
        )?;
    }
    rig.poll(64).map(|_| ())
}

fn poll_keeps_to_capacity(bed: &mut dyn Bed) -> CaseResult {
    let mut rig = Rig::new(bed)?;
    let count = rig.engine.caps().queue_depth.min(4);
    for n in 0..u64::from(count) {
        let job = rig.job(CopyDirection::ToDevice, n * 4096, n * 4096, 4096)?;
        rig.submit(&job)?;
    }
    told("ring", rig.engine.ring())?;
    let start = rig.bed.now();
    while !rig.open.is_empty() {
        let mut out: Vec<CopyDone> = Vec::with_capacity(1);
        let room = out.capacity();
        told("poll", rig.engine.poll(&mut out))?;
        if out.capacity() != room {
            return fail(format!("poll grew its output from {room} to {}", out.capacity()));
        }
        rig.book(&out)?;
        rig.bed.idle();
        if rig.bed.now().saturating_sub(start) > PATIENCE {
            return fail(format!("{} copies did not end", rig.open.len()));
        }
    }
    Ok(())
}

fn a_poll_without_work(bed: &mut dyn Bed) -> CaseResult {
    let mut rig = Rig::new(bed)?;
    told("ring", rig.engine.ring())?;
    match rig.poll(8)? {
        0 => Ok(()),
        ended => fail(format!("{ended} ends of nothing")),
    }
}

fn two_pins(bed: &mut dyn Bed) -> CaseResult {
    let other = host_memory(bed)?;
    let mut rig = Rig::new(bed)?;
    let pin = told("a second pin", rig.engine.pin(other.region()))?;
    let bytes = pattern::bytes(9, 0, 4096);
    told("slab", other.write(0, &bytes))?;
    let mut job = rig.job(CopyDirection::ToDevice, 0, 0, 4096)?;
    let Some(host) = other.place().host() else { return fail("a slab that is no host memory") };
    job.host = host;
    rig.run(&[job])?;
    rig.copy(CopyDirection::FromDevice, 8192, 0, 4096)?;
    expect("through the second region", &rig.get(8192, 4096)?, &bytes)?;
    drop(pin);
    rig.copy(CopyDirection::FromDevice, 16_384, 0, 4096)?;
    expect("after the second pin is gone", &rig.get(16_384, 4096)?, &bytes)
}

fn fence_idle(bed: &mut dyn Bed) -> CaseResult {
    let mut rig = Rig::new(bed)?;
    let mut out = Vec::with_capacity(8);
    match rig.engine.fence(FENCE, &mut out) {
        Fence::Quiet if out.is_empty() => Ok(()),
        other => fail(format!("{other:?} and {} ends with nothing in flight", out.len())),
    }
}

fn fence_busy(bed: &mut dyn Bed) -> CaseResult {
    let mut rig = Rig::new(bed)?;
    let count = rig.engine.caps().queue_depth.min(8);
    // What comes back differs from what is there, or a copy that goes on after `Quiet` would not be seen.
    let len = count * 65_536;
    rig.put(0, &pattern::bytes(11, 0, len as usize))?;
    rig.copy(CopyDirection::ToDevice, 0, 0, len)?;
    rig.put(0, &vec![0; len as usize])?;
    for n in 0..u64::from(count) {
        let job = rig.job(CopyDirection::FromDevice, n * 65_536, n * 65_536, 65_536)?;
        rig.submit(&job)?;
    }
    told("ring", rig.engine.ring())?;
    let mut quiet = false;
    for _ in 0..8 {
        let mut out = Vec::with_capacity(64);
        let fenced = rig.engine.fence(FENCE, &mut out);
        rig.book(&out)?;
        quiet = fenced == Fence::Quiet;
        if quiet {
            break;
        }
    }
    if !quiet {
        return fail("still busy after 8 fences");
    }
    let still = rig.get(0, MEMORY)?;
    (0..100).for_each(|_| rig.bed.idle());
    expect("slabs after Quiet", &rig.get(0, MEMORY)?, &still)
}
