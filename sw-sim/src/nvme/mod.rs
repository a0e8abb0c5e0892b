//! A modelled NVMe controller: it speaks the wire, and nothing of the driver is known to it.
//!
//! ```text
//!   driver ─ SimRegisters ─► registers.rs ─ doorbell ─► rings.rs ─ fetch ─► command.rs ─► admin.rs, io.rs
//!          ─ SimMemory ───► memory.rs ◄── IOMMU (iommu.rs) ◄── DMA ──────────────┘ │ bytes: shadow, disks
//!          ◄ SimWaiter ── interrupts ◄── completion queue entries ◄── rings.rs ◄───┘
//! ```
//!
//! Facts from NVMe Base 2.x, the NVM Command Set and the PCIe Transport; decoding is this module's own, so that it shares
//! no mistake with the driver. What a real controller may do at any moment, this one does at an event of the agenda: fetch,
//! scribble, move data, complete. Every address goes through the IOMMU; every byte of a region through the shadow.
//!
//! Rules that a driver breaks become violations: *order* (barriers), *state* (registers, doorbells and queues in the wrong
//! state), *limits* (MDTS, queue sizes, ACL, NOIOB), *wire* (malformed commands), *slots* (identifiers used twice), *aliasing*
//! (addresses of nothing).

mod admin;
mod bus;
mod command;
mod identify;
mod io;
pub(crate) mod iommu;
pub(crate) mod memory;
mod params;
mod prp;
mod registers;
mod rings;
mod sgl;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use sw_mem::RegionId;

use crate::{
    agenda::Agenda,
    log::{Log, Mark},
    machine::{Event, Machine},
    medium::Medium,
    rng::Rng,
    shadow::Shadow,
};
pub use bus::{SimBus, SimInterrupt, SimMemory, SimRegisters, SimWaiter};
use command::Command;
use iommu::{Iommu, Reached};
use memory::Memories;
use params::RuleTable;
pub use params::{
    Addresses, Mishap, NamespaceParams, Noise, NvmeAct, NvmeParams, NvmeRule, OnCommand, QueueKind, StatusParams,
};
use registers::Registers;
use rings::{CompletionQueue, DoorbellBuffer, SubmissionQueue};

/// What happens to a controller at a point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NvmeEvent {
    /// CSTS.RDY follows CC.EN up.
    Ready,
    /// CSTS.RDY follows CC.EN down: nothing of before is left.
    Disabled,
    /// CSTS.SHST says that it is over.
    ShutDown,
    /// Entries are taken off a submission queue.
    Fetch { queue: u16 },
    /// A sleeping queue's shadow doorbell is looked at once more.
    LookAgain { queue: u16 },
    /// Something meaningless is written into memory of a read.
    Scribble { command: u64 },
    /// A command moves its data and ends.
    Execute { command: u64 },
    /// Data of a command that ended already moves: a lie.
    LateData { command: u64 },
    /// An entry that no command has; planned when the controller had taken so many commands.
    Extra { queue: u16, cid: u16, taken: u64 },
    /// Waiting entries are tried again.
    Post { queue: u16 },
    /// An interrupt arrives.
    Interrupt { vector: u16 },
    /// Asynchronous events happen.
    Mishap { what: Mishap },
}

/// Counts that cost tests look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NvmeCounts {
    /// Register reads.
    pub register_reads: u64,
    /// Register writes, doorbells included.
    pub register_writes: u64,
    /// Doorbells of submission queues.
    pub sq_doorbells: u64,
    /// Doorbells of completion queues.
    pub cq_doorbells: u64,
    /// Entries that were taken.
    pub fetched: u64,
    /// Entries that were given.
    pub posted: u64,
    /// Interrupts that arrived.
    pub interrupts: u64,
    /// Bytes of PRP lists that were read.
    pub list_bytes: u64,
    /// Times that it became ready.
    pub enables: u64,
    /// Abort commands.
    pub aborts: u64,
    /// Accesses that the IOMMU refused.
    pub iommu_faults: u64,
}

/// Bytes whose content a fault made nobody's promise: a lie that no driver can see. The oracles ask before they judge.
#[derive(Debug, Default)]
pub(crate) struct Taint {
    /// Operations whose memory was not filled, or filled late.
    pub(crate) ops: BTreeSet<u64>,
    /// Regions into which a controller put data that was not for them: nothing is promised of any of their bytes.
    pub(crate) regions: BTreeSet<RegionId>,
    /// A slab was hit: any staged byte may be wrong.
    pub(crate) slabs: bool,
    /// A controller makes no sense: nothing is promised of any byte.
    pub(crate) all: bool,
    /// Ranges of disks whose writes were swallowed: disk, offset, length.
    pub(crate) ranges: Vec<(usize, u64, u64)>,
}

impl Taint {
    /// Whether some byte of some disk is nobody's promise.
    pub(crate) fn any_range(&self) -> bool {
        self.all || !self.ranges.is_empty()
    }

    /// Whether a byte of a disk is nobody's promise.
    pub(crate) fn covers(&self, disk: usize, at: u64) -> bool {
        self.all || self.ranges.iter().any(|(on, from, len)| *on == disk && *from <= at && at - from < *len)
    }
}

/// One controller with its IOMMU.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) params: NvmeParams,
    registers: Registers,
    /// Counts resets: events of an earlier life are nothing any more.
    life: u64,
    sqs: BTreeMap<u16, SubmissionQueue>,
    cqs: BTreeMap<u16, CompletionQueue>,
    commands: BTreeMap<u64, Command>,
    next_command: u64,
    doorbell_buffer: Option<DoorbellBuffer>,
    /// I/O queue pairs that Set Features gave.
    granted: Option<u16>,
    /// What Set Features set, by its identifier.
    features: BTreeMap<u8, u32>,
    /// Asynchronous event requests that wait, and events that wait for one.
    event_requests: VecDeque<u64>,
    events: VecDeque<u32>,
    /// CIDs that ended lately, by queue: what a stale entry names.
    ended: VecDeque<(u16, u16)>,
    /// Entries that still come with the phase of the lap before.
    wrong_phase: u32,
    /// Commands are taken and none ends.
    stuck: bool,
    rules: RuleTable,
    latency: Rng,
    moods: Rng,
    pub(crate) iommu: Iommu,
    /// Interrupts that arrived and that nobody took.
    pub(crate) pending: BTreeSet<u16>,
    /// Interrupts under way.
    under_way: BTreeSet<u16>,
    /// Addresses whose regions are gone; emptied before each look at the IOMMU.
    gone: Arc<Mutex<Vec<u64>>>,
    pub(crate) counts: NvmeCounts,
    /// Whether bus mastering was taken away.
    stopped: bool,
    /// It made no sense at some time: what the driver sends it may make none either.
    hostile: bool,
    noise: Option<Noise>,
}

impl Controller {
    fn new(params: NvmeParams, seed: u64, number: usize) -> Self {
        let split = |purpose: &str| Rng::split(seed, &format!("nvme {number} {purpose}"));
        let iommu = Iommu::new(params.iova_first, params.iommu_entries, params.stale_ns, params.addresses);
        Self {
            registers: Registers::new(&params),
            life: 0,
            sqs: BTreeMap::new(),
            cqs: BTreeMap::new(),
            commands: BTreeMap::new(),
            next_command: 0,
            doorbell_buffer: None,
            granted: None,
            features: BTreeMap::new(),
            event_requests: VecDeque::new(),
            events: VecDeque::new(),
            ended: VecDeque::new(),
            wrong_phase: 0,
            stuck: false,
            rules: RuleTable::new(&params.rules),
            latency: split("latency"),
            moods: split("moods"),
            iommu,
            pending: BTreeSet::new(),
            under_way: BTreeSet::new(),
            gone: Arc::default(),
            counts: NvmeCounts::default(),
            stopped: false,
            hostile: false,
            noise: None,
            params,
        }
    }

    /// Faults stop: the liveness phase. What is gone stays gone.
    pub(crate) fn calm_down(&mut self) {
        self.rules.quiet = true;
        self.params.reset_hangs = 0;
        self.params.interrupts_lost = 0;
        self.noise = None;
    }

    /// Time that passes in a barrier.
    fn draw_barrier(&mut self) -> u64 {
        self.moods.range(0, self.params.barrier_ns)
    }
}

/// A controller with the parts of the machine that it touches: one step of it.
pub(crate) struct Step<'a> {
    number: usize,
    pub(crate) ctrl: &'a mut Controller,
    memories: &'a mut Memories,
    agenda: &'a mut Agenda<Event>,
    log: &'a mut Log,
    shadow: &'a mut Shadow,
    disks: &'a mut Vec<Medium>,
    taint: &'a mut Taint,
    lies: &'a mut u64,
}

impl Machine {
    pub(crate) fn add_controller(&mut self, params: NvmeParams, seed: u64) -> usize {
        let number = self.nvme.len();
        self.nvme.push(Controller::new(params, seed, number));
        number
    }

    pub(crate) fn controller(&mut self, number: usize) -> Option<Step<'_>> {
        let ctrl = self.nvme.get_mut(number)?;
        Some(Step {
            number,
            ctrl,
            memories: &mut self.memories,
            agenda: &mut self.agenda,
            log: &mut self.log,
            shadow: &mut self.shadow,
            disks: &mut self.disks,
            taint: &mut self.taint,
            lies: &mut self.lies,
        })
    }

    /// `life`: the life of the controller that it was planned in, or all ones for what a reset does not call off.
    pub(crate) fn nvme_event(&mut self, number: usize, life: u64, what: NvmeEvent) {
        let Some(mut step) = self.controller(number) else { return };
        if life == u64::MAX || life == step.ctrl.life {
            step.happen(what);
        }
    }
}

impl Step<'_> {
    fn now(&self) -> u64 {
        self.agenda.now()
    }

    pub(crate) fn registers_len(&self) -> u32 {
        self.ctrl.registers.len()
    }

    fn note(&mut self, what: &str, words: &[u64]) {
        let now = self.agenda.now();
        self.log.note(now, what, words);
    }

    fn mark(&mut self, mark: Mark) {
        self.log.marks.hit(mark);
    }

    fn violate(&mut self, rule: &'static str, evidence: String) {
        // Who is told nonsense may ask for nonsense. Barriers and memory are the driver's own affair all the same.
        if self.ctrl.hostile && matches!(rule, "limits" | "wire" | "slots" | "state") {
            return;
        }
        let now = self.agenda.now();
        self.log.note(now, "VIOLATION", &[]);
        self.shadow.violate(now, rule, format!("nvme {}: {evidence}", self.number));
    }

    fn complain(&mut self, complaint: memory::Complaint) {
        if let Some(evidence) = complaint {
            self.violate("order", evidence);
        }
    }

    /// Plans an event of this life.
    fn plan(&mut self, delay: u64, what: NvmeEvent) {
        let event = Event::Nvme { number: self.number, life: self.ctrl.life, what };
        self.agenda.plan(delay, event);
    }

    fn happen(&mut self, what: NvmeEvent) {
        if self.ctrl.registers.is_gone() && !matches!(what, NvmeEvent::Interrupt { .. }) {
            return;
        }
        match what {
            NvmeEvent::Ready => self.become_ready(),
            NvmeEvent::Disabled => self.become_disabled(),
            NvmeEvent::ShutDown => self.become_shut_down(),
            NvmeEvent::Fetch { queue } => self.fetch(queue),
            NvmeEvent::LookAgain { queue } => self.look_again(queue),
            NvmeEvent::Scribble { command } => self.scribble(command),
            NvmeEvent::Execute { command } => self.execute(command),
            NvmeEvent::LateData { command } => self.late_data(command),
            NvmeEvent::Extra { queue, cid, taken } => self.extra_entry(queue, cid, taken),
            NvmeEvent::Post { queue } => self.post(queue),
            NvmeEvent::Interrupt { vector } => self.interrupt(vector),
            NvmeEvent::Mishap { what } => self.mishap(what),
        }
    }

    fn mishap(&mut self, mishap: Mishap) {
        if self.ctrl.rules.quiet {
            return;
        }
        self.note(mishap.name(), &[self.number as u64]);
        match mishap {
            Mishap::Fatal => {
                self.mark(Mark::NvmeFatal);
                self.ctrl.registers.fail();
                self.ctrl.stuck = true;
            }
            Mishap::Stuck => {
                self.mark(Mark::NvmeStuck);
                self.ctrl.stuck = true;
            }
            Mishap::Gone => {
                self.mark(Mark::NvmeGone);
                self.let_go();
                self.ctrl.registers.vanish();
            }
            Mishap::Events(count) => (0..count).for_each(|n| self.raise_event(n)),
            Mishap::Detached => {
                self.mark(Mark::NvmeDetached);
                self.ctrl.params.namespaces.pop();
                self.raise_event(0);
            }
            Mishap::Noise(noise) => {
                self.mark(Mark::NvmeNoise);
                self.ctrl.noise = Some(noise);
                self.ctrl.hostile = true;
                self.taint.all = true;
            }
        }
    }

    /// Nothing of the controller touches memory any more: its queues and commands are no more.
    fn let_go(&mut self) {
        self.ctrl.life += 1;
        for command in core::mem::take(&mut self.ctrl.commands).into_values() {
            command.owned.iter().for_each(|name| self.shadow.end(*name));
            self.mark(Mark::NvmeDroppedByReset);
        }
        self.ctrl.sqs.clear();
        self.ctrl.cqs.clear();
        self.ctrl.doorbell_buffer = None;
        self.ctrl.granted = None;
        self.ctrl.features.clear();
        self.ctrl.event_requests.clear();
        self.ctrl.events.clear();
        self.ctrl.wrong_phase = 0;
        self.ctrl.stuck = false;
        self.ctrl.under_way.clear();
    }

    /// Stops all DMA from outside. False: it cannot be stopped.
    pub(crate) fn stop(&mut self) -> bool {
        self.note("stop", &[self.number as u64]);
        if !self.ctrl.params.stop_works && !self.ctrl.registers.is_gone() {
            self.mark(Mark::NvmeStopRefused);
            return false;
        }
        self.ctrl.stopped = true;
        self.let_go();
        self.ctrl.registers.reset();
        true
    }

    /// Forgets entries whose regions are gone.
    pub(crate) fn sweep(&mut self) {
        let now = self.now();
        let gone = core::mem::take(&mut *self.ctrl.gone.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        gone.into_iter().for_each(|at| self.ctrl.iommu.forget(now, at));
    }

    /// What a range of addresses reaches, or `None` if the IOMMU refuses; that is recorded.
    fn translate(&mut self, at: u64, len: u64) -> Option<Vec<Reached>> {
        self.sweep();
        let now = self.now();
        let stale_hits = self.ctrl.iommu.stale_hits;
        let found = self.ctrl.iommu.translate(now, at, len).ok();
        if self.ctrl.iommu.stale_hits > stale_hits {
            self.mark(Mark::IommuStale);
        }
        if found.is_none() {
            self.ctrl.counts.iommu_faults += 1;
            self.mark(Mark::IommuFault);
            self.note("iommu fault", &[self.number as u64, at, len]);
        }
        found
    }

    /// Reads memory of rings, lists and admin data. `rung`: see [`Memories::device_read`].
    fn dma_read(&mut self, at: u64, len: u64, rung: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for reached in self.translate(at, len)? {
            match reached {
                Reached::Queue(name, at, len) => {
                    let (read, complaint) = self.memories.device_read(name, at, len, rung);
                    self.complain(complaint);
                    bytes.extend(read);
                }
                Reached::Region(region, at, len) => bytes.extend(self.shadow.get(region, at, len)),
            }
        }
        Some(bytes)
    }

    /// Writes memory of rings and admin data. False: the IOMMU refused.
    fn dma_write(&mut self, at: u64, bytes: &[u8]) -> bool {
        let Some(places) = self.translate(at, bytes.len() as u64) else { return false };
        let mut left = bytes;
        for reached in places {
            let (Reached::Queue(_, _, len) | Reached::Region(_, _, len)) = reached;
            let (here, rest) = left.split_at(left.len().min(sw_mem::index(len)));
            match reached {
                Reached::Queue(name, at, _) => self.memories.device_write(name, at, here),
                Reached::Region(region, at, _) => self.land_anywhere(region, at, here),
            }
            left = rest;
        }
        true
    }

    /// A ring or an identify buffer in a region of the caller's: allowed only while it is lent.
    fn land_anywhere(&mut self, region: RegionId, at: u64, bytes: &[u8]) {
        let spot = crate::shadow::Spot { region, at, len: bytes.len() as u64 };
        let (now, who) = (self.now(), (1 << 60) | (self.number as u64) << 40);
        self.shadow.land(now, spot, who, bytes, crate::shadow::Way::Untouched);
    }

    /// An honest controller was sent to an address that is not mapped: somebody freed what was still in use, or made a
    /// wrong address.
    fn sent_astray(&mut self, what: &str, at: u64) {
        self.violate("aliasing", format!("{what} at {at:#x}, which is not mapped"));
    }
}
