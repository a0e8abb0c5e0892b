//! Handles on the machine: what the engine is given (transports, copy engines) and what tests hold.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sw_engine::{
    Error, Face, Fault, Granularity, Object, Residency, Time, Token, Verb, Version,
    seam::{
        Attach, CopyDone, CopyEngine, CopyEngineCaps, CopyJob, Fence, Io, IoDone, SlabPin, Submit, Transport,
        TransportCaps, Wait, Wake,
    },
};
use sw_mem::{ByteLen, DeviceId, DmaRegion, GpuVa};

use crate::{
    attendant::Baton,
    copier::{Copier, CopierParams},
    disk::{Queue, QueueParams},
    log::Marks,
    machine::{Event, FaceParams, Machine},
    medium::Medium,
    shadow::{Belongs, Violation},
};

/// The modelled hardware, shared by its transports and copy engines. One thread at a time; the lock is never contended.
#[derive(Clone, Debug)]
pub struct Hub {
    machine: Arc<Mutex<Machine>>,
    baton: Arc<Baton>,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

/// A number for a disk's name, as different as those that systems give to devices (FNV-1a).
fn identity(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Hub {
    /// An empty machine at time zero.
    pub fn new() -> Self {
        Self { machine: Arc::new(Mutex::new(Machine::new())), baton: Arc::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn baton(&self) -> &Baton {
        &self.baton
    }

    /// The attendant's turn, if it has something to do. Not with the machine locked.
    pub(crate) fn take_turns(&self) {
        self.baton.let_it_run(self.now().0);
    }

    /// One of the two threads lets time pass until `until`, and the other one runs meanwhile.
    pub(crate) fn pause_until(&self, until: u64) {
        if self.baton.is_attendants() {
            if !self.baton.pause_until(until) {
                self.run_until(Time(until));
            }
            return;
        }
        self.take_turns();
        while let Some(due) = self.baton.due_before(until) {
            self.run_until(Time(due.max(self.now().0)));
            self.take_turns();
        }
        self.run_until(Time(until.max(self.now().0)));
        self.take_turns();
    }

    /// Virtual time.
    pub fn now(&self) -> Time {
        Time(self.lock().now())
    }

    /// Lets time pass.
    pub fn run_until(&self, until: Time) {
        self.lock().run_until(until.0);
    }

    /// Adds a disk that holds `bytes`, and gives its index.
    pub fn add_disk(&self, bytes: Vec<u8>) -> usize {
        let mut machine = self.lock();
        machine.disks.push(Medium::new(bytes));
        machine.disks.len() - 1
    }

    /// Adds a disk of `len` bytes with generation 0 of its content.
    pub(crate) fn add_original_disk(&self, len: u64) -> usize {
        let mut machine = self.lock();
        let number = machine.disks.len();
        machine.disks.push(Medium::original(number as u64, len));
        number
    }

    /// What a disk holds now.
    pub fn disk_bytes(&self, disk: usize) -> Vec<u8> {
        self.lock().disks.get(disk).map(|disk| disk.bytes().to_vec()).unwrap_or_default()
    }

    /// Makes reads of a disk end at `end`, as if the file had shrunk.
    pub fn shrink_disk(&self, disk: usize, end: u64) {
        if let Some(disk) = self.lock().disks.get_mut(disk) {
            disk.end = end;
        }
    }

    /// Adds a queue and gives its transport.
    pub fn add_queue(&self, params: QueueParams, seed: u64) -> SimTransport {
        let mut machine = self.lock();
        let queue = machine.queues.len();
        if let Some(at) = params.breaks_at {
            machine.agenda.plan(at, Event::BreakQueue { queue });
        }
        machine.queues.push(Queue::new(params, seed, queue));
        SimTransport { hub: self.clone(), queue, wake: Arc::new(WakeFlag(AtomicBool::new(false))) }
    }

    /// Adds a copy engine.
    pub fn add_copier(&self, params: CopierParams, seed: u64) -> SimCopyEngine {
        let mut machine = self.lock();
        let copier = machine.copiers.len();
        if let Some(at) = params.breaks_at {
            machine.agenda.plan(at, Event::BreakCopier { copier });
        }
        machine.copiers.push(Copier::new(params, seed, copier));
        SimCopyEngine { hub: self.clone(), copier }
    }

    /// Adds a face and gives the handle that I/Os name it by.
    pub fn add_face(&self, face: FaceParams) -> u64 {
        let mut machine = self.lock();
        machine.faces.push(face);
        machine.faces.len() as u64 - 1
    }

    /// An object on a disk with these faces, each given with the transport's name.
    pub fn object(&self, name: &str, len: u64, faces: &[(&'static str, FaceParams)]) -> Arc<Object> {
        let faces = faces.iter().map(|(transport, face)| Face {
            transport,
            handle: self.add_face(*face),
            granularity: Granularity { block: face.block, memory: face.memory },
            // The page of a cache that has no larger blocks below it.
            write_unit: if face.block > 1 { 4096.max(face.block) } else { 1 },
            landing: face.landing,
            because: None,
        });
        Arc::new(Object {
            id: Object::next_id(),
            name: Arc::from(name),
            len,
            version: Version { identity: (identity(name), 0), stamp: 0 },
            faces: faces.collect(),
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(()),
        })
    }

    /// Tells the shadow about memory.
    pub fn memory(&self, region: &DmaRegion, belongs: Belongs) {
        self.lock().shadow.register(region, belongs);
    }

    /// Memory of a modelled device, known to the shadow.
    ///
    /// # Errors
    /// A range that is none, or a device that is no model.
    pub fn device_memory(
        &self,
        device: DeviceId,
        base: GpuVa,
        len: ByteLen,
        belongs: Belongs,
    ) -> Result<DmaRegion, sw_mem::MemError> {
        let region = DmaRegion::modelled(device, base, len)?;
        self.memory(&region, belongs);
        Ok(region)
    }

    /// Bytes of a region, past every owner.
    pub fn peek(&self, region: &DmaRegion, at: u64, len: u64) -> Vec<u8> {
        self.lock().shadow.get(region.id(), at, len)
    }

    /// Changes bytes of a region, past every owner.
    pub fn poke(&self, region: &DmaRegion, at: u64, bytes: &[u8]) {
        self.lock().shadow.put(region.id(), at, bytes);
    }

    /// Broken rules so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().shadow.violations.clone()
    }

    /// Branches reached so far.
    pub fn marks(&self) -> Marks {
        self.lock().log.marks.clone()
    }

    /// Hash of the event log so far.
    pub fn event_hash(&self) -> u64 {
        self.lock().log.hash()
    }
}

/// A modelled queue as the engine sees it.
#[derive(Debug)]
pub struct SimTransport {
    hub: Hub,
    queue: usize,
    wake: Arc<WakeFlag>,
}

#[derive(Debug, Default)]
pub(crate) struct WakeFlag(pub(crate) AtomicBool);

impl Wake for WakeFlag {
    fn wake(&self) {
        // Relaxed: a flag of one thread with itself; virtual time has no other threads to order.
        self.0.store(true, Ordering::Relaxed);
    }
}

fn broken(fault: Fault) -> Error {
    Error::from_fault(fault, Verb::Setup).detail("the modelled queue broke").remedy("replay the seed")
}

pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl Transport for SimTransport {
    fn caps(&self) -> TransportCaps {
        let machine = self.hub.lock();
        let params = machine.queues.get(self.queue).map(|queue| queue.params.caps());
        params.unwrap_or_else(|| QueueParams::calm("sim-gone").caps())
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        match hint {
            Attach::Region(region) => {
                // Regions of the caller are known already; what else comes is the engine's own.
                self.hub.memory(region, Belongs::Engine);
                self.hub.lock().attach_region(self.queue, region.id());
            }
            Attach::RegionGone(region) => self.hub.lock().detach_region(self.queue, region),
            Attach::Object(_) | Attach::ObjectGone(_) => {}
        }
        Ok(())
    }

    fn submit(&mut self, io: &Io) -> Submit {
        self.hub.lock().submit_io(self.queue, io)
    }

    fn ring(&mut self) -> Result<(), Error> {
        self.hub.lock().ring_queue(self.queue).map_err(broken)
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let mut machine = self.hub.lock();
        let now = machine.now();
        machine.run_until(now);
        let Wait::For { timeout, min } = wait else {
            let is_broken = machine.queues.get(self.queue).is_some_and(|queue| queue.broken);
            let taken = machine.take_ends(self.queue, out);
            return if is_broken && taken == 0 {
                Err(broken(Fault::new(sw_engine::ErrorKind::Io, 19)))
            } else {
                Ok(taken)
            };
        };
        machine.ring_queue(self.queue).map_err(broken)?;
        let until = now.saturating_add(nanos(timeout));
        let woken = self.wake.0.swap(false, Ordering::Relaxed);
        let enough = |machine: &Machine| {
            machine.queues.get(self.queue).is_none_or(|queue| queue.broken || queue.has_done() >= min.max(1) as usize)
        };
        while !woken && !enough(&machine) {
            if !machine.step_until(until) {
                machine.run_until(until);
                break;
            }
        }
        Ok(machine.take_ends(self.queue, out))
    }

    fn cancel(&mut self, token: Token) {
        self.hub.lock().cancel_io(self.queue, token);
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        let mut machine = self.hub.lock();
        let fence = machine.fence_queue(self.queue, nanos(timeout));
        machine.take_ends(self.queue, out);
        fence
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.wake) as Arc<dyn Wake>
    }
}

impl Drop for SimTransport {
    fn drop(&mut self) {
        self.hub.lock().drop_queue(self.queue);
    }
}

/// A modelled copy engine as the engine sees it.
#[derive(Debug)]
pub struct SimCopyEngine {
    hub: Hub,
    copier: usize,
}

struct Pin;

impl SlabPin for Pin {}

impl CopyEngine for SimCopyEngine {
    fn caps(&self) -> CopyEngineCaps {
        let machine = self.hub.lock();
        let caps = machine.copiers.get(self.copier).map(Copier::caps);
        caps.unwrap_or(CopyEngineCaps { device: DeviceId(DeviceId::MODEL_FIRST), queue_depth: 1 })
    }

    fn pin(&mut self, slabs: &DmaRegion) -> Result<Box<dyn SlabPin>, Fault> {
        self.hub.memory(slabs, Belongs::Engine);
        if let Some(copier) = self.hub.lock().copiers.get_mut(self.copier) {
            copier.pinned.push(slabs.id());
        }
        Ok(Box::new(Pin))
    }

    fn submit(&mut self, job: &CopyJob) -> Result<(), Fault> {
        self.hub.lock().submit_copy(self.copier, job)
    }

    fn ring(&mut self) -> Result<(), Fault> {
        self.hub.lock().ring_copier(self.copier)
    }

    fn poll(&mut self, out: &mut Vec<CopyDone>) -> Result<usize, Fault> {
        let mut machine = self.hub.lock();
        let now = machine.now();
        machine.run_until(now);
        machine.poll_copier(self.copier, out)
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<CopyDone>) -> Fence {
        self.hub.lock().fence_copier(self.copier, nanos(timeout), out)
    }
}

impl Drop for SimCopyEngine {
    fn drop(&mut self) {
        self.hub.lock().drop_copier(self.copier);
    }
}
