//! A function for unit tests: registers, memory, interrupts and a clock over a [`Model`] of a controller.
//!
//! Everything is behind one lock. The clock moves when somebody looks at it or waits, so that no wait is for ever.

mod model;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};
use std::time::Duration;

use sw_engine::{Error, ErrorKind, Time, Verb, seam::Wake};
use sw_mem::{DmaRegion, Iova};

use crate::bus::{Bus, QueueMemory, Registers, Waiter};
pub(crate) use model::{Lie, Model, ModelNamespace, Order};

/// How far the clock moves for each look at it.
const LOOK_NS: u64 = 100;

#[derive(Clone)]
pub(crate) struct TestBus(Arc<Shared>);

struct Shared {
    model: Mutex<Model>,
    wake: Arc<Flag>,
}

#[derive(Default)]
pub(crate) struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl TestBus {
    pub(crate) fn new(model: Model) -> Arc<Self> {
        Arc::new(Self(Arc::new(Shared { model: Mutex::new(model), wake: Arc::default() })))
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.0.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles of the function; memory that was allocated has one each.
    pub(crate) fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    pub(crate) fn waiter(&self) -> TestWaiter {
        TestWaiter { bus: self.clone(), watched: Vec::new(), wakes_late: false }
    }
}

impl Registers for TestBus {
    fn len(&self) -> u32 {
        0x2000
    }

    fn read32(&self, at: u32) -> u32 {
        self.model().read32(at)
    }

    fn write32(&self, at: u32, value: u32) {
        self.model().write32(at, value);
    }

    fn read64(&self, at: u32) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    fn write64(&self, at: u32, value: u64) {
        self.write32(at, u32::try_from(value & 0xFFFF_FFFF).unwrap());
        self.write32(at + 4, u32::try_from(value >> 32).unwrap());
    }
}

pub(crate) struct TestMemory {
    bus: TestBus,
    iova: u64,
    len: usize,
}

impl QueueMemory for TestMemory {
    fn iova(&self) -> Iova {
        Iova::new(self.iova)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, at: usize, to: &mut [u8]) {
        assert!(at + to.len() <= self.len, "read outside queue memory");
        assert!(self.bus.model().memory.read(self.iova + at as u64, to));
    }

    fn write(&self, at: usize, from: &[u8]) {
        assert!(at + from.len() <= self.len, "write outside queue memory");
        assert!(self.bus.model().memory.write(self.iova + at as u64, from));
    }

    fn load32(&self, at: usize) -> u32 {
        assert!(at.is_multiple_of(4));
        let mut word = [0; 4];
        self.read(at, &mut word);
        u32::from_le_bytes(word)
    }

    fn store32(&self, at: usize, value: u32) {
        assert!(at.is_multiple_of(4));
        self.write(at, &value.to_le_bytes());
    }

    fn before_doorbell(&self) {
        self.bus.model().barriers += 1;
    }

    fn after_valid(&self) {}

    fn store_then_load(&self) {
        self.bus.model().full_barriers += 1;
    }

    fn alias(&self) -> Option<Self> {
        Some(Self { bus: self.bus.clone(), iova: self.iova, len: self.len })
    }
}

pub(crate) struct TestWaiter {
    bus: TestBus,
    watched: Vec<u16>,
    /// The next wait takes a wake-up that comes in the moment in which its time is over.
    pub(crate) wakes_late: bool,
}

impl Waiter for TestWaiter {
    type Interrupt = u16;

    fn watch(&mut self, interrupt: &u16) -> Result<(), Error> {
        self.watched.push(*interrupt);
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        if self.woken() {
            return true;
        }
        let late = core::mem::take(&mut self.wakes_late);
        let mut model = self.bus.model();
        model.waits += 1;
        let raised = model.take_interrupts(&self.watched);
        if !raised {
            model.now_ns += u64::try_from(timeout.as_nanos()).unwrap();
            model.let_time_pass();
        }
        late
    }

    fn woken(&mut self) -> bool {
        self.bus.0.wake.0.swap(false, Ordering::SeqCst)
    }

    fn relax(&mut self) {
        let mut model = self.bus.model();
        model.now_ns += 10_000;
        model.let_time_pass();
    }

    fn now(&self) -> Time {
        self.bus.now()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.bus.0.wake.clone()
    }
}

impl Bus for TestBus {
    type Registers = TestBus;
    type Memory = TestMemory;
    type Waiter = TestWaiter;

    fn name(&self) -> &str {
        "0000:00:04.0"
    }

    fn registers(&self) -> TestBus {
        self.clone()
    }

    fn allocate(&self, len: usize) -> Result<TestMemory, Error> {
        let len = len.next_multiple_of(4096);
        let Some(iova) = self.model().memory.allocate(len) else {
            return Err(Error::new(ErrorKind::ResourceLimit, Verb::Register).detail("the test says no"));
        };
        Ok(TestMemory { bus: self.clone(), iova, len })
    }

    fn map(&self, region: &DmaRegion) -> Result<Iova, Error> {
        if self.model().told_gone {
            return Err(Error::new(ErrorKind::NoDevice, Verb::Register).detail("it is gone"));
        }
        match self.model().memory.map(region) {
            Some(iova) => Ok(Iova::new(iova)),
            None => Err(Error::new(ErrorKind::ResourceLimit, Verb::Register).detail("the test says no")),
        }
    }

    fn vectors(&self) -> u16 {
        self.model().vectors
    }

    fn interrupt(&self, vector: u16) -> Result<u16, Error> {
        Ok(vector)
    }

    fn now(&self) -> Time {
        let mut model = self.model();
        model.now_ns += LOOK_NS;
        Time(model.now_ns)
    }

    fn pause(&self, span: Duration) {
        let mut model = self.model();
        model.now_ns += u64::try_from(span.as_nanos()).unwrap();
        model.let_time_pass();
    }

    fn stop(&self) -> bool {
        let mut model = self.model();
        model.stops += 1;
        let stopped = model.can_stop;
        if stopped {
            model.kill();
        }
        stopped
    }

    fn is_gone(&self) -> bool {
        self.model().told_gone
    }
}
