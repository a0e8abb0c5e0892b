//! A modelled copy engine with its device memory: bytes are visible when the copy ends, not before.

use std::collections::{BTreeMap, VecDeque};

use sw_engine::{
    ErrorKind, Fault,
    seam::{CopyDirection, CopyDone, CopyEngineCaps, CopyJob, Fence},
};
use sw_mem::{DeviceId, Place, RegionId};

use crate::{
    log::Mark,
    machine::{Event, Machine},
    rng::Rng,
    shadow::{Access, Spot, Way},
};

/// What a lost device's faults carry (the model's own number).
const DEVICE_LOST: i32 = 46;
/// How long after a fence that said `Busy` its copies land.
const BUSY_LANDING_NS: u64 = 300_000_000;

/// What a copy engine is like. Times in nanoseconds; chances in thousandths.
#[derive(Clone, Debug)]
pub struct CopierParams {
    /// Whose memory; at least [`DeviceId::MODEL_FIRST`].
    pub device: DeviceId,
    /// Copies in flight at most.
    pub queue_depth: u32,
    /// Shortest and longest time of a copy.
    pub latency_ns: (u64, u64),
    /// Chance that a copy fails.
    pub fails: u64,
    /// Chance that a submit is refused by the driver.
    pub refuses: u64,
    /// Whether a fence provably stops copies.
    pub fence_kills: bool,
    /// When the device is lost.
    pub breaks_at: Option<u64>,
}

impl CopierParams {
    /// Without faults: depth 8, 2 to 20 microseconds.
    pub fn calm(device: DeviceId) -> Self {
        Self {
            device,
            queue_depth: 8,
            latency_ns: (2_000, 20_000),
            fails: 0,
            refuses: 0,
            fence_kills: true,
            breaks_at: None,
        }
    }
}

#[derive(Debug)]
struct ModelCopy {
    job: CopyJob,
    host: Option<Spot>,
    device: Option<Spot>,
    owned: Vec<u64>,
    fails: bool,
}

/// The state of one copy engine.
#[derive(Debug)]
pub(crate) struct Copier {
    pub(crate) params: CopierParams,
    rng: Rng,
    jobs: BTreeMap<u64, ModelCopy>,
    staged: VecDeque<u64>,
    next_job: u64,
    done: VecDeque<CopyDone>,
    pub(crate) pinned: Vec<RegionId>,
    broken: bool,
    fenced: bool,
}

impl Copier {
    pub(crate) fn new(params: CopierParams, seed: u64, number: usize) -> Self {
        Self {
            params,
            rng: Rng::split(seed, &format!("copier {number}")),
            jobs: BTreeMap::new(),
            staged: VecDeque::new(),
            next_job: 0,
            done: VecDeque::new(),
            pinned: Vec::new(),
            broken: false,
            fenced: false,
        }
    }

    pub(crate) fn caps(&self) -> CopyEngineCaps {
        CopyEngineCaps { device: self.params.device, queue_depth: self.params.queue_depth }
    }

    pub(crate) fn calm_down(&mut self) {
        (self.params.fails, self.params.refuses) = (0, 0);
    }
}

impl Machine {
    pub(crate) fn submit_copy(&mut self, copier: usize, job: &CopyJob) -> Result<(), Fault> {
        let lost = Fault::new(ErrorKind::NoDevice, DEVICE_LOST);
        let model = self.copiers.get_mut(copier).ok_or(lost)?;
        if model.fenced || model.broken {
            return Err(lost);
        }
        if model.rng.per_mille(model.params.refuses) {
            self.mark(Mark::CopyFailed);
            return Err(Fault::new(ErrorKind::ResourceLimit, 2));
        }
        let (depth, open) = (model.params.queue_depth as usize, model.jobs.len() + model.done.len());
        let (device_id, fails) = (model.params.device, model.rng.per_mille(model.params.fails));
        if open >= depth {
            self.violate("limits", format!("copy engine {copier} of depth {depth} got copy number {}", open + 1));
        }
        let host = self.shadow.find(Place::Host(job.host), job.len.into());
        let device = self.shadow.find(Place::Device(device_id, job.device), job.len.into());
        let pinned =
            self.copiers.get(copier).is_some_and(|model| host.is_some_and(|host| model.pinned.contains(&host.region)));
        if host.is_none() || device.is_none() || !pinned || job.len == 0 {
            let text = format!("copy of {} bytes outside of pinned slabs or device memory", job.len);
            self.violate("aliasing", text);
        }
        let (from, to) = match job.direction {
            CopyDirection::ToDevice => (host, device),
            CopyDirection::FromDevice => (device, host),
        };
        let name = self.copiers.get(copier).map_or(0, |model| model.next_job);
        let (now, who) = (self.now(), who(copier, name));
        let mut owned = Vec::new();
        owned.extend(from.map(|spot| self.shadow.begin(now, spot, Access::Reads, who)));
        owned.extend(to.map(|spot| self.shadow.begin(now, spot, Access::Writes, who)));
        self.note("copy", &[copier as u64, name, job.token.raw(), job.direction as u64, u64::from(job.len)]);
        if let Some(model) = self.copiers.get_mut(copier) {
            model.next_job += 1;
            model.staged.push_back(name);
            model.jobs.insert(name, ModelCopy { job: *job, host, device, owned, fails });
        }
        Ok(())
    }

    pub(crate) fn ring_copier(&mut self, copier: usize) -> Result<(), Fault> {
        let Some(model) = self.copiers.get_mut(copier) else { return Ok(()) };
        if model.broken {
            return Err(Fault::new(ErrorKind::NoDevice, DEVICE_LOST));
        }
        while let Some(name) = model.staged.pop_front() {
            let (low, high) = model.params.latency_ns;
            let delay = model.rng.range(low, high);
            self.agenda.plan(delay, Event::CopyEnd { copier, job: name });
        }
        Ok(())
    }

    /// A copy moves its bytes and ends.
    pub(crate) fn end_copy(&mut self, copier: usize, name: u64) {
        let Some(copy) = self.copiers.get_mut(copier).and_then(|model| model.jobs.remove(&name)) else { return };
        let (now, who) = (self.now(), who(copier, name));
        if !copy.fails
            && let (Some(host), Some(device)) = (copy.host, copy.device)
        {
            match copy.job.direction {
                CopyDirection::ToDevice => {
                    let slab_way = self.shadow.way_at(host);
                    let way = if slab_way == Way::Kernel { Way::SlabKernel } else { Way::SlabDma };
                    let bytes = self.shadow.fetch(now, host, who, slab_way);
                    self.shadow.land(now, device, who, &bytes, way);
                }
                CopyDirection::FromDevice => {
                    let bytes = self.shadow.fetch(now, device, who, Way::SlabDma);
                    self.shadow.land(now, host, who, &bytes, Way::Untouched);
                }
            }
        }
        copy.owned.iter().for_each(|owned| self.shadow.end(*owned));
        if copy.fails {
            self.mark(Mark::CopyFailed);
        }
        self.note("copied", &[copier as u64, name, copy.job.token.raw(), u64::from(copy.fails)]);
        let result = if copy.fails { Err(Fault::new(ErrorKind::Io, 700)) } else { Ok(()) };
        if let Some(model) = self.copiers.get_mut(copier) {
            model.done.push_back(CopyDone { token: copy.job.token, result });
        }
    }

    pub(crate) fn poll_copier(&mut self, copier: usize, out: &mut Vec<CopyDone>) -> Result<usize, Fault> {
        let Some(model) = self.copiers.get_mut(copier) else { return Ok(0) };
        if model.broken && !model.fenced {
            return Err(Fault::new(ErrorKind::NoDevice, DEVICE_LOST));
        }
        let count = (out.capacity() - out.len()).min(model.done.len());
        out.extend(model.done.drain(..count));
        Ok(count)
    }

    pub(crate) fn break_copier(&mut self, copier: usize) {
        self.note("copy engine breaks", &[copier as u64]);
        if let Some(model) = self.copiers.get_mut(copier).filter(|model| !model.fenced) {
            model.broken = true;
            self.mark(Mark::CopyEngineBroke);
        }
    }

    pub(crate) fn fence_copier(&mut self, copier: usize, timeout_ns: u64, out: &mut Vec<CopyDone>) -> Fence {
        let until = self.now().saturating_add(timeout_ns);
        let Some(model) = self.copiers.get_mut(copier) else { return Fence::Quiet };
        model.fenced = true;
        let staged: Vec<u64> = model.staged.drain(..).collect();
        let (kills, broken) = (model.params.fence_kills, model.broken);
        staged.into_iter().for_each(|name| self.kill_copy(copier, name));
        let flying = |machine: &Machine| -> Vec<u64> {
            machine.copiers.get(copier).map_or_else(Vec::new, |model| model.jobs.keys().copied().collect())
        };
        // A lost device that cannot be stopped does not end its copies either, until much later.
        let ends = kills || !broken;
        while ends && !flying(self).is_empty() && self.step_until(until) {}
        let left = flying(self);
        self.note("copy fence", &[copier as u64, left.len() as u64]);
        if kills {
            left.into_iter().for_each(|name| self.kill_copy(copier, name));
        } else if !left.is_empty() {
            self.agenda.pass(until);
            self.mark(Mark::FenceBusy);
            left.iter().for_each(|name| self.agenda.plan(BUSY_LANDING_NS, Event::CopyEnd { copier, job: *name }));
            return Fence::Busy(u32::try_from(left.len()).unwrap_or(u32::MAX));
        }
        if let Some(model) = self.copiers.get_mut(copier) {
            let count = (out.capacity() - out.len()).min(model.done.len());
            out.extend(model.done.drain(..count));
        }
        Fence::Quiet
    }

    fn kill_copy(&mut self, copier: usize, name: u64) {
        let Some(copy) = self.copiers.get_mut(copier).and_then(|model| model.jobs.remove(&name)) else { return };
        copy.owned.iter().for_each(|owned| self.shadow.end(*owned));
        self.mark(Mark::FenceKilled);
    }

    pub(crate) fn drop_copier(&mut self, copier: usize) {
        let Some(model) = self.copiers.get_mut(copier) else { return };
        model.fenced = true;
        if model.params.fence_kills {
            let all: Vec<u64> = model.jobs.keys().copied().collect();
            all.into_iter().for_each(|name| self.kill_copy(copier, name));
        }
    }
}

/// A copy's name in the shadow, apart from those of I/Os.
fn who(copier: usize, name: u64) -> u64 {
    1 << 60 | (copier as u64) << 40 | name
}
