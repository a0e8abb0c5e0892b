//! The seam: what the driver holds of a modelled function.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use sw_engine::{Error, ErrorKind, Fault, Time, Verb, seam::Wake};
use sw_mem::{DmaRegion, GuestKey, Iova};
use sw_nvme::bus::{Bus, QueueMemory, Registers, Waiter};

use super::iommu::{Behind, PAGE, Refused};
use crate::{
    hub::{Hub, WakeFlag, nanos},
    log::Mark,
    machine::Machine,
    shadow::Belongs,
};

/// Time that a look without a wait takes at most: a loop of looks makes time pass, up to the next event.
const RELAX_NS: u64 = 20_000;

/// Time that a wait takes at least, as a system call does.
const WAIT_NS: u64 = 500;
/// Waits for no time in a row, at most: more of them are a loop that burns a core.
const HOT_WAITS_MAX: u32 = 200;

/// One modelled function.
#[derive(Debug)]
pub struct SimBus {
    hub: Hub,
    number: usize,
    name: String,
    key: GuestKey,
}

/// Its register file.
#[derive(Clone, Debug)]
pub struct SimRegisters {
    hub: Hub,
    number: usize,
}

/// Memory of its rings. The last handle frees it.
#[derive(Debug)]
pub struct SimMemory(Arc<Allocation>);

#[derive(Debug)]
struct Allocation {
    hub: Hub,
    number: usize,
    name: u64,
    iova: u64,
    len: usize,
}

/// A vector of one function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SimInterrupt {
    number: usize,
    vector: u16,
}

/// How the one thread of a world waits: by letting things happen.
#[derive(Debug)]
pub struct SimWaiter {
    hub: Hub,
    watched: BTreeSet<SimInterrupt>,
    wake: Arc<WakeFlag>,
    /// Waits for no time at all, in a row.
    hot: u32,
}

/// What ends with a region: its entry in the IOMMU. Dropped under locks of others, so it only leaves a note.
struct Mapped {
    iova: u64,
    gone: Arc<Mutex<Vec<u64>>>,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).push(self.iova);
    }
}

impl Hub {
    /// Adds a controller and gives the function that a driver holds.
    pub fn add_controller(&self, params: super::NvmeParams, seed: u64) -> SimBus {
        let number = self.lock().add_controller(params, seed);
        SimBus { hub: self.clone(), number, name: format!("sim:{number:02x}.0"), key: GuestKey::fresh() }
    }

    /// The controller's choices begin with these bytes: a fuzzer's.
    pub fn choose(&self, number: usize, bytes: &[u8]) {
        if let Some(ctrl) = self.lock().nvme.get_mut(number) {
            ctrl.moods = ctrl.moods.clone().with_tape(bytes);
        }
    }

    /// Adds a namespace. A driver sees it when it looks again.
    pub fn add_namespace(&self, number: usize, namespace: super::NamespaceParams) {
        if let Some(ctrl) = self.lock().nvme.get_mut(number) {
            ctrl.params.namespaces.push(namespace);
        }
    }

    /// Something befalls a controller after so many nanoseconds.
    pub fn befall(&self, number: usize, after_ns: u64, what: super::Mishap) {
        let what = super::NvmeEvent::Mishap { what };
        self.lock().agenda.plan(after_ns, crate::machine::Event::Nvme { number, life: u64::MAX, what });
    }

    /// A waiter for transports over modelled functions.
    pub fn waiter(&self) -> SimWaiter {
        SimWaiter { hub: self.clone(), watched: BTreeSet::new(), wake: Arc::default(), hot: 0 }
    }

    /// What a controller counted.
    pub fn nvme_counts(&self, number: usize) -> super::NvmeCounts {
        self.lock().nvme.get(number).map(|ctrl| ctrl.counts).unwrap_or_default()
    }

    /// Entries of a controller's IOMMU now.
    pub fn iommu_entries(&self, number: usize) -> usize {
        let mut machine = self.lock();
        machine.controller(number).map_or(0, |mut step| {
            step.sweep();
            step.ctrl.iommu.count()
        })
    }

    /// Allocations of rings and lists that nobody freed.
    pub fn queue_memories(&self) -> usize {
        self.lock().memories.count()
    }
}

fn refused(why: Refused) -> Error {
    let error = Error::from_fault(Fault::new(ErrorKind::ResourceLimit, 28), Verb::Register);
    match why {
        Refused::Full => error.detail("the modelled IOMMU has no entry left").remedy("map fewer regions at once"),
        _ => error.detail("the modelled IOMMU refuses").remedy("replay the seed"),
    }
}

impl SimBus {
    /// Its index among the hub's controllers.
    pub fn number(&self) -> usize {
        self.number
    }

    fn map_behind(&self, behind: Behind, len: u64) -> Result<u64, Error> {
        let mut machine = self.hub.lock();
        let Some(mut step) = machine.controller(self.number) else { return Err(refused(Refused::Full)) };
        step.sweep();
        let reused = step.ctrl.iommu.reused;
        let (mapped, map_ns) = (step.ctrl.iommu.map(behind, len), step.ctrl.params.map_ns);
        let marks = [
            (mapped == Err(Refused::Full), Mark::IommuFull),
            (step.ctrl.iommu.reused > reused, Mark::IommuReused),
            (map_ns > 0, Mark::IommuSlow),
        ];
        marks.iter().filter(|(reached, _)| *reached).for_each(|(_, mark)| machine.mark(*mark));
        let until = machine.now() + map_ns;
        machine.run_until(until);
        mapped.map_err(refused)
    }
}

impl Bus for SimBus {
    type Registers = SimRegisters;
    type Memory = SimMemory;
    type Waiter = SimWaiter;

    fn name(&self) -> &str {
        &self.name
    }

    fn registers(&self) -> SimRegisters {
        SimRegisters { hub: self.hub.clone(), number: self.number }
    }

    fn allocate(&self, len: usize) -> Result<SimMemory, Error> {
        let len = len.max(1).next_multiple_of(sw_mem::index(PAGE));
        let name = self.hub.lock().memories.reserve();
        let iova = self.map_behind(Behind::Queue(name), len as u64)?;
        self.hub.lock().memories.allocate(name, self.number, iova, len);
        Ok(SimMemory(Arc::new(Allocation { hub: self.hub.clone(), number: self.number, name, iova, len })))
    }

    fn map(&self, region: &DmaRegion) -> Result<Iova, Error> {
        // Regions of the caller are known already; what else comes is the engine's own.
        self.hub.memory(region, Belongs::Engine);
        let before = region.base().raw() % PAGE;
        region.bind(self.key, || {
            let behind = Behind::Region { region: region.id(), before, len: region.len().0 };
            let iova = self.map_behind(behind, before + region.len().0)?;
            let gone = self.hub.lock().nvme.get(self.number).map(|ctrl| Arc::clone(&ctrl.gone)).unwrap_or_default();
            Ok::<_, Error>(Box::new(Mapped { iova, gone }) as sw_mem::Guest)
        })?;
        let iova = region.bound(self.key, |mapped: &Mapped| mapped.iova);
        iova.map(|iova| Iova::new(iova + before)).ok_or_else(|| refused(Refused::Partial))
    }

    fn vectors(&self) -> u16 {
        self.hub.lock().nvme.get(self.number).map_or(0, |ctrl| ctrl.params.vectors)
    }

    fn interrupt(&self, vector: u16) -> Result<SimInterrupt, Error> {
        if vector >= self.vectors() {
            return Err(refused(Refused::Full).detail("there is no such vector"));
        }
        Ok(SimInterrupt { number: self.number, vector })
    }

    fn now(&self) -> Time {
        self.hub.now()
    }

    fn pause(&self, span: Duration) {
        self.hub.pause_until(self.hub.now().0.saturating_add(nanos(span)));
    }

    fn stop(&self) -> bool {
        self.hub.lock().controller(self.number).is_some_and(|mut step| step.stop())
    }
}

impl SimRegisters {
    /// A read takes time, so that a loop of reads does.
    fn with<R>(&self, time: Takes, act: impl FnOnce(&mut super::Step<'_>) -> R) -> Option<R> {
        let mut machine = self.hub.lock();
        if time == Takes::Time {
            let ns = machine.nvme.get(self.number).map_or(0, |ctrl| ctrl.params.read_ns);
            let until = machine.now() + ns;
            machine.run_until(until);
        }
        machine.controller(self.number).map(|mut step| act(&mut step))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Time,
    None,
}

impl Registers for SimRegisters {
    fn len(&self) -> u32 {
        self.with(Takes::None, |step| step.registers_len()).unwrap_or(0)
    }

    fn read32(&self, at: u32) -> u32 {
        self.with(Takes::Time, |step| step.read_register(at)).unwrap_or(u32::MAX)
    }

    fn write32(&self, at: u32, value: u32) {
        self.with(Takes::None, |step| step.write_register(at, value));
    }

    fn read64(&self, at: u32) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    fn write64(&self, at: u32, value: u64) {
        let half = |value: u64| u32::try_from(value & 0xFFFF_FFFF).unwrap_or(0);
        self.write32(at, half(value));
        self.write32(at + 4, half(value >> 32));
    }
}

impl Allocation {
    fn complain(&self, machine: &mut Machine, complaint: super::memory::Complaint) {
        if let Some(mut step) = machine.controller(self.number) {
            step.complain(complaint);
        }
    }

    /// A barrier takes a moment, in which the controller goes on.
    fn barrier(&self, act: impl FnOnce(&mut super::memory::Memories)) {
        let mut machine = self.hub.lock();
        act(&mut machine.memories);
        let ns = machine.nvme.get_mut(self.number).map_or(0, super::Controller::draw_barrier);
        if ns > 0 {
            let until = machine.now() + ns;
            machine.run_until(until);
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let mut machine = self.hub.lock();
        if let Some(mut step) = machine.controller(self.number) {
            step.memory_freed(self.iova, self.len as u64);
        }
        machine.memories.free(self.name);
        let now = machine.now();
        if let Some(ctrl) = machine.nvme.get_mut(self.number) {
            ctrl.iommu.forget(now, self.iova);
        }
    }
}

impl QueueMemory for SimMemory {
    fn iova(&self) -> Iova {
        Iova::new(self.0.iova)
    }

    fn len(&self) -> usize {
        self.0.len
    }

    fn read(&self, at: usize, to: &mut [u8]) {
        let mut machine = self.0.hub.lock();
        let complaint = machine.memories.cpu_read(self.0.name, at, to);
        self.0.complain(&mut machine, complaint);
    }

    fn write(&self, at: usize, from: &[u8]) {
        let mut machine = self.0.hub.lock();
        let complaint = machine.memories.cpu_write(self.0.name, at, from);
        self.0.complain(&mut machine, complaint);
    }

    fn load32(&self, at: usize) -> u32 {
        let mut machine = self.0.hub.lock();
        let (value, complaint) = machine.memories.cpu_load(self.0.name, at);
        self.0.complain(&mut machine, complaint);
        value
    }

    fn store32(&self, at: usize, value: u32) {
        let mut machine = self.0.hub.lock();
        let complaint = machine.memories.cpu_store(self.0.name, at, value);
        self.0.complain(&mut machine, complaint);
    }

    fn before_doorbell(&self) {
        self.0.barrier(super::memory::Memories::before_doorbell);
    }

    fn after_valid(&self) {
        self.0.barrier(super::memory::Memories::after_valid);
    }

    fn store_then_load(&self) {
        self.0.barrier(super::memory::Memories::store_then_load);
    }

    fn alias(&self) -> Option<Self> {
        Some(Self(Arc::clone(&self.0)))
    }
}

impl Waiter for SimWaiter {
    type Interrupt = SimInterrupt;

    fn watch(&mut self, interrupt: &SimInterrupt) -> Result<(), Error> {
        self.watched.insert(*interrupt);
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        let mut machine = self.hub.lock();
        self.hot = if timeout.is_zero() { self.hot + 1 } else { 0 };
        if self.hot == HOT_WAITS_MAX {
            machine.violate("liveness", format!("{HOT_WAITS_MAX} waits in a row were for no time at all"));
        }
        let until = machine.now().saturating_add(nanos(timeout).max(WAIT_NS));
        drop(machine);
        loop {
            self.hub.take_turns();
            let next = self.hub.baton().due_before(until).unwrap_or(until);
            let mut machine = self.hub.lock();
            let next = next.max(machine.now());
            loop {
                let woken = self.wake.0.swap(false, Ordering::Relaxed);
                if take_pending(&mut machine, &self.watched) || woken {
                    return woken;
                }
                if !machine.step_until(next) {
                    machine.run_until(next);
                    break;
                }
            }
            if next >= until {
                return false;
            }
        }
    }

    fn woken(&mut self) -> bool {
        self.wake.0.swap(false, Ordering::Relaxed)
    }

    fn relax(&mut self) {
        let mut machine = self.hub.lock();
        let until = machine.now() + RELAX_NS;
        if !machine.step_until(until) {
            machine.run_until(until);
        }
        drop(machine);
        self.hub.take_turns();
    }

    fn now(&self) -> Time {
        self.hub.now()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.wake) as Arc<dyn Wake>
    }
}

/// Takes every watched interrupt that came.
fn take_pending(machine: &mut Machine, watched: &BTreeSet<SimInterrupt>) -> bool {
    let mut any = false;
    for interrupt in watched {
        if let Some(ctrl) = machine.nvme.get_mut(interrupt.number) {
            any |= ctrl.pending.remove(&interrupt.vector);
        }
    }
    any
}
