//! The NVMe driver's queue against a controller that completes at once: what is left is the cost of staging, ringing and
//! reaping a command.
// UNSAFETY: driver and controller share the memory of the rings, so it enters as foreign memory.
#![expect(unsafe_code, reason = "the contract of DmaRegion::from_foreign")]

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use straightway::{ByteLen, DmaRegion, Error, ErrorKind, Verb};
use sw_engine::{Time, seam::Wake};
use sw_mem::{DmaSpan, HostMapping, HugePages, Iova, Place, Populate, barrier};
use sw_nvme::{
    bus::{Bus, QueueMemory, Registers, Waiter},
    prp::Segment,
    queue::{QueuePair, QueueShape},
    wire::{BlockCount, Command, IoFlags, LbaRange, regs::DoorbellStride},
};

use crate::{allocations, ours::per_thousand, report::Sample, usage::Usage};

/// Bytes of a command: the peers' block.
const BLOCK: u32 = 4096;
/// Entries of the rings: one can stay free with a whole batch in flight.
const ENTRIES: u32 = 64;
const QID: u16 = 1;
/// Bytes of the register file: doorbells start at 4096.
const REGISTERS: u32 = 8192;
/// Where data would lie; nothing follows the address.
const DATA: u64 = 1 << 32;
/// Batches between two looks at whether the time is over.
const BATCHES: u64 = 256;

/// The controller: on a tail doorbell it completes every new entry in order.
struct Device {
    rings: Option<DmaSpan>,
    head: u32,
    tail: u32,
    phase: u32,
}

impl Device {
    /// Entries are 64 bytes each, completions 16; rings lie one behind the other, page aligned.
    fn run(&mut self, until: u32) {
        let Some(rings) = &self.rings else { return };
        let completions = u64::from(ENTRIES * 64).next_multiple_of(4096);
        while self.head != until {
            let cdw0 = rings.load32(u64::from(self.head) * 64).unwrap_or(0);
            self.head = (self.head + 1) % ENTRIES;
            let at = completions + u64::from(self.tail) * 16;
            let _ = rings.store32(at + 8, self.head | u32::from(QID) << 16);
            let _ = rings.store32(at + 12, cdw0 >> 16 | self.phase << 16);
            self.tail = (self.tail + 1) % ENTRIES;
            self.phase ^= u32::from(self.tail == 0);
        }
    }
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Device>>);

impl Shared {
    fn device(&self) -> MutexGuard<'_, Device> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registers for Shared {
    fn len(&self) -> u32 {
        REGISTERS
    }
    fn read32(&self, _at: u32) -> u32 {
        0
    }
    fn write32(&self, at: u32, value: u32) {
        if DoorbellStride::new(0).sq_tail(QID) == Some(at) {
            self.device().run(value);
        }
    }
    fn read64(&self, _at: u32) -> u64 {
        0
    }
    fn write64(&self, _at: u32, _value: u64) {}
}

struct Memory(DmaSpan);

impl QueueMemory for Memory {
    fn iova(&self) -> Iova {
        Iova::new(4096)
    }
    fn len(&self) -> usize {
        sw_mem::index(self.0.len().0)
    }
    fn read(&self, at: usize, to: &mut [u8]) {
        let _ = self.0.read(at as u64, to);
    }
    fn write(&self, at: usize, from: &[u8]) {
        let _ = self.0.write(at as u64, from);
    }
    fn load32(&self, at: usize) -> u32 {
        self.0.load32(at as u64).unwrap_or(0)
    }
    fn store32(&self, at: usize, value: u32) {
        let _ = self.0.store32(at as u64, value);
    }
    fn before_doorbell(&self) {
        barrier::to_device_before_doorbell();
    }
    fn after_valid(&self) {
        barrier::from_device_after_valid();
    }
    fn store_then_load(&self) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}

/// Nobody waits here.
struct Never;

impl Waiter for Never {
    type Interrupt = ();
    fn watch(&mut self, _interrupt: &()) -> Result<(), Error> {
        Ok(())
    }
    fn wait(&mut self, _timeout: Duration) -> bool {
        false
    }
    fn woken(&mut self) -> bool {
        false
    }
    fn relax(&mut self) {}
    fn now(&self) -> Time {
        Time::ZERO
    }
    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(Nobody)
    }
}

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

struct AtOnce(Shared);

fn no_memory(cause: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::ResourceLimit, Verb::Setup).at("the model's rings").detail(cause.to_string())
}

impl Bus for AtOnce {
    type Registers = Shared;
    type Memory = Memory;
    type Waiter = Never;

    fn name(&self) -> &str {
        "at-once"
    }
    fn registers(&self) -> Shared {
        self.0.clone()
    }
    fn allocate(&self, len: usize) -> Result<Memory, Error> {
        let mapping =
            HostMapping::map(ByteLen(len as u64), 4096, HugePages::Never, Populate::Now).map_err(no_memory)?;
        let (base, len) = (Place::Host(mapping.base()), mapping.len());
        // SAFETY: the mapping is the region's owner; both sides touch it by copies only, on one thread.
        let region = unsafe { DmaRegion::from_foreign(base, len, Box::new(mapping)) }.map_err(no_memory)?;
        self.0.device().rings = Some(region.span(0, len).map_err(no_memory)?);
        Ok(Memory(region.span(0, len).map_err(no_memory)?))
    }
    fn map(&self, _region: &DmaRegion) -> Result<Iova, Error> {
        Ok(Iova::new(DATA))
    }
    fn vectors(&self) -> u16 {
        0
    }
    fn interrupt(&self, _vector: u16) -> Result<(), Error> {
        Ok(())
    }
    fn now(&self) -> Time {
        Time::ZERO
    }
    fn pause(&self, _span: Duration) {}
    fn stop(&self) -> bool {
        true
    }
}

/// Stages `batch` reads, rings, reaps them all, and again, for `time`.
pub(crate) fn run(batch: u32, time: Duration) -> Result<Sample, Error> {
    let bus = AtOnce(Shared(Arc::new(Mutex::new(Device { rings: None, head: 0, tail: 0, phase: 1 }))));
    let shape = QueueShape { qid: QID, entries: ENTRIES, data_bytes_max: 1 << 20, stride: DoorbellStride::new(0) };
    let mut queue = QueuePair::new(&bus, shape)?;
    turn(&mut queue, batch.min(ENTRIES - 1));
    let mut sample = Sample::default();
    let (before, allocated) = (Usage::now(), allocations::count_here());
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..BATCHES {
            sample.ops += turn(&mut queue, batch.min(ENTRIES - 1));
        }
    }
    sample.seconds = start.elapsed().as_secs_f64();
    sample.bytes = sample.ops * u64::from(BLOCK);
    let allocated = allocations::count_here() - allocated;
    Usage::now().charge(before, &mut sample);
    sample.more.insert("allocations_per_1000".to_owned(), per_thousand(allocated, sample.ops));
    let counters = queue.counters();
    let doorbells =
        [("sq_doorbells_per_1000", counters.sq_doorbells), ("cq_doorbells_per_1000", counters.cq_doorbells)];
    for (name, count) in doorbells {
        sample.more.insert(name.to_owned(), per_thousand(count, counters.commands));
    }
    Ok(sample)
}

/// One batch; gives how many commands ended well.
fn turn(queue: &mut QueuePair<AtOnce>, batch: u32) -> u64 {
    let mut ended = 0;
    for number in 0..u64::from(batch) {
        let place = DATA + number * u64::from(BLOCK);
        let data = [Segment { iova: Iova::new(place), len: ByteLen(u64::from(BLOCK)) }];
        let Some(nlb) = BlockCount::new(BLOCK / 512) else { return 0 };
        let range = LbaRange { nsid: 1, slba: number * 8, nlb };
        if queue.stage(&data, number, |pointer| Command::read(range, pointer, IoFlags::NONE)).is_err() {
            break;
        }
    }
    queue.ring();
    let budget = sw_mem::index(u64::from(batch));
    queue.poll(budget, |end| ended += u64::from(end.status.is_success()));
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_ends_well_with_one_doorbell_a_batch_and_no_allocation() {
        let sample = run(32, Duration::from_millis(5)).unwrap();
        assert!(sample.ops >= 32 * BATCHES && sample.ops.is_multiple_of(32), "{}", sample.ops);
        assert_eq!(sample.more["allocations_per_1000"], 0.0);
        assert_eq!(sample.more["sq_doorbells_per_1000"], 1000.0 / 32.0);
        assert_eq!(sample.more["cq_doorbells_per_1000"], 1000.0 / 32.0);
    }
}
