//! The modelled hardware as one state: clock, media, queues, copy engines, shadow and log.

use std::collections::BTreeSet;

use sw_engine::{Landing, seam::IoDone};

use crate::{
    agenda::Agenda,
    copier::Copier,
    disk::Queue,
    log::{Log, Mark},
    medium::Medium,
    nvme::{Controller, NvmeEvent, Taint, memory::Memories},
    shadow::Shadow,
};

/// One way to reach a disk.
#[derive(Clone, Copy, Debug)]
pub struct FaceParams {
    /// Index of the disk.
    pub disk: usize,
    /// Object offset and length are multiples of this many bytes.
    pub block: u32,
    /// Memory addresses are multiples of this many bytes.
    pub memory: u32,
    /// [`Landing::Dma`] for a device, [`Landing::KernelCopy`] for a modelled page cache.
    pub landing: Landing,
}

/// What happens at a point in time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// A device writes something meaningless into memory that it owns, as it may until the I/O ends.
    Scribble { queue: usize, io: u64 },
    /// An I/O moves its bytes and ends.
    Land { queue: usize, io: u64 },
    /// An end that no I/O has.
    Extra { queue: usize, done: IoDone },
    /// A queue breaks.
    BreakQueue { queue: usize },
    /// A copy moves its bytes and ends.
    CopyEnd { copier: usize, job: u64 },
    /// A copy engine breaks.
    BreakCopier { copier: usize },
    /// A controller does something; what an earlier life of it planned is nothing any more.
    Nvme { number: usize, life: u64, what: NvmeEvent },
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) agenda: Agenda<Event>,
    pub(crate) log: Log,
    pub(crate) shadow: Shadow,
    pub(crate) disks: Vec<Medium>,
    pub(crate) faces: Vec<FaceParams>,
    pub(crate) queues: Vec<Queue>,
    pub(crate) copiers: Vec<Copier>,
    pub(crate) nvme: Vec<Controller>,
    /// Memory of the controllers' rings and lists.
    pub(crate) memories: Memories,
    /// Bytes that no oracle may judge.
    pub(crate) taint: Taint,
    /// Operations whose caller has an answer although their memory stayed.
    pub(crate) answered: BTreeSet<u64>,
    /// Ends that no I/O had: a lane may count as many stale ones, and no more.
    pub(crate) lies: u64,
    /// I/Os on one disk that a queue may have at a time.
    pub(crate) device_depth: usize,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            agenda: Agenda::new(),
            log: Log::new(),
            shadow: Shadow::default(),
            disks: Vec::new(),
            faces: Vec::new(),
            queues: Vec::new(),
            copiers: Vec::new(),
            nvme: Vec::new(),
            memories: Memories::new(),
            taint: Taint::default(),
            answered: BTreeSet::new(),
            lies: 0,
            device_depth: usize::MAX,
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.agenda.now()
    }

    pub(crate) fn note(&mut self, what: &str, words: &[u64]) {
        let now = self.now();
        self.log.note(now, what, words);
    }

    pub(crate) fn mark(&mut self, mark: Mark) {
        self.log.marks.hit(mark);
    }

    pub(crate) fn violate(&mut self, rule: &'static str, evidence: String) {
        let now = self.now();
        self.log.note(now, "VIOLATION", &[]);
        self.shadow.violate(now, rule, evidence);
    }

    /// Lets everything happen that is due until `until`; the clock stands there afterwards.
    pub(crate) fn run_until(&mut self, until: u64) {
        while let Some(event) = self.agenda.take_until(until) {
            self.happen(event);
        }
        self.agenda.pass(until);
    }

    /// Lets the next thing happen if it is due until `until`.
    pub(crate) fn step_until(&mut self, until: u64) -> bool {
        let event = self.agenda.take_until(until);
        event.is_some_and(|event| {
            self.happen(event);
            true
        })
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Scribble { queue, io } => self.scribble(queue, io),
            Event::Land { queue, io } => self.land_io(queue, io),
            Event::Extra { queue, done } => self.extra_end(queue, done),
            Event::BreakQueue { queue } => self.break_queue(queue),
            Event::CopyEnd { copier, job } => self.end_copy(copier, job),
            Event::BreakCopier { copier } => self.break_copier(copier),
            Event::Nvme { number, life, what } => self.nvme_event(number, life, what),
        }
    }
}
