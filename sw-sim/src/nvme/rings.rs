//! Submission and completion queues: doorbells, fetching, posting, interrupts.
//!
//! What is checked of the driver: a tail stays inside its queue and never passes the head; a head of a completion queue never
//! passes what was posted; an entry is visible before the doorbell that tells of it. What is kept to: no entry is posted
//! over one that the driver has not acknowledged, so a driver that never rings the head hangs.

use std::collections::VecDeque;

use super::{NvmeAct, NvmeEvent, Step, command::Entry, iommu::Reached};
use crate::log::Mark;

/// Bytes of entries.
const SQE: u64 = 64;
const CQE: u64 = 16;
/// Between two fetches of one queue.
const FETCH_NS: u64 = 150;
/// Between the event index and the second look at a shadow doorbell.
const LOOK_NS: u64 = 100;
/// Between two looks at a full queue's shadow doorbell.
const FULL_NS: u64 = 2_000;
/// Commands after which a CID may come again: 4 bits of generation and a queue of one slot.
const CID_AGAIN: u64 = 15;
/// CIDs that ended and are remembered, for stale entries.
const ENDED_MAX: usize = 64;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct SubmissionQueue {
    iova: u64,
    entries: u32,
    pub(super) cq: u16,
    head: u32,
    tail: u32,
    /// For each slot: the stretch of stores in which its doorbell was rung.
    rung: Vec<u64>,
    fetching: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    iova: u64,
    entries: u32,
    head: u32,
    tail: u32,
    phase: bool,
    /// The interrupt vector, if it asked for one.
    vector: Option<u16>,
    waiting: VecDeque<Entry>,
}

/// Where shadow doorbells and event indexes lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct DoorbellBuffer {
    pub(super) shadow: u64,
    pub(super) events: u64,
}

/// Which of a queue pair's doorbells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Tail,
    Head,
}

fn ahead(from: u32, to: u32, entries: u32) -> u32 {
    (to + entries - from) % entries
}

impl CompletionQueue {
    pub(super) fn new(iova: u64, entries: u32, vector: Option<u16>) -> Self {
        Self { iova, entries, head: 0, tail: 0, phase: true, vector, waiting: VecDeque::new() }
    }

    fn is_full(&self) -> bool {
        ahead(self.head, self.tail, self.entries) == self.entries - 1
    }
}

impl SubmissionQueue {
    pub(super) fn new(iova: u64, entries: u32, cq: u16) -> Self {
        Self { iova, entries, cq, head: 0, tail: 0, rung: vec![0; entries as usize], fetching: false }
    }
}

impl Step<'_> {
    /// The admin queues, each by address and entries.
    pub(super) fn make_queues(&mut self, queue: u16, sq: (u64, u32), cq: (u64, u32)) {
        let vector = (self.ctrl.params.vectors > 0).then_some(0);
        self.ctrl.cqs.insert(queue, CompletionQueue::new(cq.0, cq.1, vector));
        self.ctrl.sqs.insert(queue, SubmissionQueue::new(sq.0, sq.1, queue));
    }

    /// Memory of the driver's is freed. A controller that still has a ring there would use whatever comes to lie there; one that
    /// makes no sense may have said that it has not.
    pub(crate) fn memory_freed(&mut self, iova: u64, len: u64) {
        if self.ctrl.registers.is_gone() || self.ctrl.noise.is_some() {
            return;
        }
        let sqs = self.ctrl.sqs.iter().map(|(id, queue)| (*id, queue.iova));
        let cqs = self.ctrl.cqs.iter().map(|(id, queue)| (*id, queue.iova));
        let within = |(_, at): &(u16, u64)| (iova..iova + len).contains(at);
        if let Some((id, at)) = sqs.chain(cqs).find(within) {
            self.violate("aliasing", format!("the ring at {at:#x} is freed while the controller has queue {id}"));
        }
    }

    /// A doorbell register, by its offset from the first one.
    pub(super) fn doorbell(&mut self, at: u32, value: u32) {
        let stride = 4u32 << self.ctrl.params.stride;
        let (index, queue) = (at / stride, u16::try_from(at / stride / 2).unwrap_or(u16::MAX));
        if !at.is_multiple_of(stride) {
            return self.violate("limits", format!("{at:#x} is no doorbell"));
        }
        if !self.is_ready() {
            return self.violate("state", format!("a doorbell of queue {queue} is rung while CSTS.RDY or CC.EN is 0"));
        }
        self.note("doorbell", &[self.number as u64, u64::from(index), u64::from(value)]);
        let side = if index % 2 == 0 { Side::Tail } else { Side::Head };
        if let Some((shadow, _)) = self.shadow_word(queue, side)
            && shadow != value
        {
            self.violate("state", format!("the doorbell of queue {queue} says {value}, its shadow {shadow}"));
        }
        match side {
            Side::Tail => {
                self.ctrl.counts.sq_doorbells += 1;
                let rung = self.memories.stretch();
                self.move_tail(queue, value, rung);
            }
            Side::Head => {
                self.ctrl.counts.cq_doorbells += 1;
                self.move_head(queue, value);
                self.post(queue);
            }
        }
    }

    fn move_tail(&mut self, queue: u16, tail: u32, rung: u64) {
        let Some(sq) = self.ctrl.sqs.get_mut(&queue) else {
            return self.violate("limits", format!("a doorbell of submission queue {queue}, which is not there"));
        };
        if tail >= sq.entries {
            let entries = sq.entries;
            return self.violate("limits", format!("tail {tail} of submission queue {queue} of {entries} entries"));
        }
        let (new, taken) = (ahead(sq.tail, tail, sq.entries), ahead(sq.head, sq.tail, sq.entries));
        if new + taken > sq.entries - 1 {
            let (head, entries) = (sq.head, sq.entries);
            let text = format!("tail {tail} passes head {head} of submission queue {queue} of {entries} entries");
            return self.violate("limits", text);
        }
        for n in 0..new {
            let slot = (sq.tail + n) % sq.entries;
            sq.rung.get_mut(slot as usize).into_iter().for_each(|at| *at = rung);
        }
        sq.tail = tail;
        let full = new + taken == sq.entries - 1;
        let starts = !sq.fetching && new > 0;
        sq.fetching |= starts;
        if full {
            self.mark(Mark::NvmeSqFull);
        }
        if starts {
            self.plan(FETCH_NS, NvmeEvent::Fetch { queue });
        }
    }

    fn move_head(&mut self, queue: u16, head: u32) {
        let Some(cq) = self.ctrl.cqs.get_mut(&queue) else {
            return self.violate("limits", format!("a doorbell of completion queue {queue}, which is not there"));
        };
        let (entries, tail) = (cq.entries, cq.tail);
        if head >= entries || ahead(cq.head, head, entries) > ahead(cq.head, tail, entries) {
            let text = format!("head {head} of completion queue {queue} of {entries} entries, whose tail is {tail}");
            return self.violate("limits", text);
        }
        cq.head = head;
    }

    /// Takes entries off a submission queue.
    pub(super) fn fetch(&mut self, queue: u16) {
        let takes = self.takes_commands();
        self.read_shadow_tail(queue);
        for _ in 0..self.ctrl.params.fetch_burst.max(1) {
            let Some(sq) = self.ctrl.sqs.get_mut(&queue).filter(|_| takes) else { return };
            if sq.head == sq.tail {
                break;
            }
            let (slot, at) = (sq.head, sq.iova + u64::from(sq.head) * SQE);
            let rung = sq.rung.get(slot as usize).copied().unwrap_or(0);
            sq.head = (sq.head + 1) % sq.entries;
            self.ctrl.counts.fetched += 1;
            match self.dma_read(at, SQE, rung) {
                Some(bytes) => self.accept(queue, &bytes, rung),
                None => self.sent_astray("an entry of a submission queue", at),
            }
        }
        let Some(sq) = self.ctrl.sqs.get_mut(&queue) else { return };
        if sq.head != sq.tail {
            return self.plan(FETCH_NS, NvmeEvent::Fetch { queue });
        }
        sq.fetching = false;
        let tail = sq.tail;
        if self.write_event_index(queue, Side::Tail, tail) {
            self.plan(LOOK_NS, NvmeEvent::LookAgain { queue });
        }
    }

    /// The event index is out; whoever stored before he could see it is found now.
    pub(super) fn look_again(&mut self, queue: u16) {
        let before = self.ctrl.sqs.get(&queue).map(|sq| (sq.tail, sq.fetching));
        self.read_shadow_tail(queue);
        let after = self.ctrl.sqs.get(&queue).map(|sq| (sq.tail, sq.fetching));
        if before != after {
            self.mark(Mark::NvmeShadowSeenLate);
        }
    }

    fn read_shadow_tail(&mut self, queue: u16) {
        let Some((tail, stored)) = self.shadow_word(queue, Side::Tail) else { return };
        if self.ctrl.sqs.get(&queue).is_some_and(|sq| sq.tail != tail) {
            self.move_tail(queue, tail, stored);
        }
    }

    fn buffer_at(&self, queue: u16, side: Side) -> Option<(DoorbellBuffer, u64)> {
        let buffer = self.ctrl.doorbell_buffer.filter(|_| queue > 0)?;
        let index = 2 * u64::from(queue) + u64::from(side == Side::Head);
        Some((buffer, index * (4 << self.ctrl.params.stride)))
    }

    /// A shadow doorbell of an I/O queue, and when it was stored.
    fn shadow_word(&mut self, queue: u16, side: Side) -> Option<(u32, u64)> {
        let (buffer, at) = self.buffer_at(queue, side)?;
        match self.translate(buffer.shadow + at, 4)?.first() {
            Some(Reached::Queue(name, at, _)) => self.memories.device_word(*name, *at),
            _ => None,
        }
    }

    /// False if there are no event indexes.
    fn write_event_index(&mut self, queue: u16, side: Side, value: u32) -> bool {
        let Some((buffer, at)) = self.buffer_at(queue, side) else { return false };
        if !self.dma_write(buffer.events + at, &value.to_le_bytes()) {
            self.sent_astray("an event index", buffer.events + at);
        }
        true
    }

    /// Puts an entry in line for its completion queue.
    pub(super) fn give(&mut self, entry: Entry) {
        let Some(cq) = self.ctrl.sqs.get(&entry.queue).map(|sq| sq.cq) else { return };
        self.ctrl.ended.push_back((entry.queue, entry.cid));
        if self.ctrl.ended.len() > ENDED_MAX {
            self.ctrl.ended.pop_front();
        }
        if let Some(queue) = self.ctrl.cqs.get_mut(&cq) {
            queue.waiting.push_back(entry);
        }
        self.post(cq);
    }

    /// Writes waiting entries while there is room.
    pub(super) fn post(&mut self, queue: u16) {
        loop {
            let shadow = self.shadow_word(queue, Side::Head);
            if let Some((head, _)) = shadow
                && self.ctrl.cqs.get(&queue).is_some_and(|cq| cq.head != head)
            {
                self.move_head(queue, head);
            }
            let Some(cq) = self.ctrl.cqs.get_mut(&queue) else { return };
            if cq.waiting.is_empty() {
                return;
            }
            if cq.is_full() {
                let head = cq.head;
                self.mark(Mark::NvmeCqFull);
                if self.write_event_index(queue, Side::Head, head) {
                    self.plan(FULL_NS, NvmeEvent::Post { queue });
                }
                return;
            }
            if let Some(entry) = cq.waiting.pop_front() {
                self.write_entry(queue, entry);
            }
        }
    }

    fn write_entry(&mut self, queue: u16, entry: Entry) {
        let head = self.ctrl.sqs.get(&entry.queue).map_or((0, 1), |sq| (sq.head, sq.entries));
        let Some(cq) = self.ctrl.cqs.get_mut(&queue) else { return };
        let (slot, vector) = (cq.tail, cq.vector);
        let mut phase = cq.phase;
        cq.tail = (cq.tail + 1) % cq.entries;
        if cq.tail == 0 {
            cq.phase = !cq.phase;
        }
        let (at, lap) = (cq.iova + u64::from(slot) * CQE, cq.entries);
        if cq.tail == 0 {
            self.mark(Mark::NvmeCqWrapped);
        }
        let act = entry.act;
        if act == Some(NvmeAct::WrongPhase) {
            self.ctrl.wrong_phase = lap;
        }
        if self.ctrl.wrong_phase > 0 {
            self.ctrl.wrong_phase -= 1;
            phase = !phase;
        }
        let sq_id = if act == Some(NvmeAct::WrongSq) { entry.queue + 1 } else { entry.queue };
        let sq_head = if act == Some(NvmeAct::WrongHead) { head.1 + 3 } else { head.0 };
        let mut bytes = [0u8; 16];
        let words = [
            u64::from(entry.dw0),
            u64::from(sq_head & 0xFFFF)
                | u64::from(sq_id) << 16
                | u64::from(entry.cid) << 32
                | u64::from(entry.status << 1 | u16::from(phase)) << 48,
        ];
        bytes.as_chunks_mut().0.iter_mut().zip(words).for_each(|(to, word)| *to = word.to_le_bytes());
        self.garble(&mut bytes, Noisy::Entry);
        self.ctrl.counts.posted += 1;
        let told = [self.number as u64, u64::from(queue), u64::from(slot), u64::from(entry.cid), entry.status.into()];
        self.note("entry", &told);
        if !self.dma_write(at, &bytes) {
            self.sent_astray("an entry of a completion queue", at);
        }
        vector.into_iter().for_each(|vector| self.raise(vector));
    }

    /// An entry that no command has. A CID that is in use again after many commands is not named: a CID has few bits, and
    /// then no driver can tell.
    pub(super) fn extra_entry(&mut self, queue: u16, cid: u16, taken: u64) {
        let again = self.ctrl.commands.values().any(|open| open.queue == queue && open.sqe.cid() == cid);
        if again && self.ctrl.next_command - taken >= CID_AGAIN {
            return;
        }
        *self.lies += 1;
        self.note("lie", &[self.number as u64, u64::from(queue), u64::from(cid)]);
        let Some(cq) = self.ctrl.sqs.get(&queue).map(|sq| sq.cq) else { return };
        if let Some(to) = self.ctrl.cqs.get_mut(&cq) {
            to.waiting.push_back(Entry { queue, cid, status: 0, dw0: 0, act: None });
        }
        self.post(cq);
    }

    /// An interrupt, unless it is lost; one that is under way takes this one along.
    fn raise(&mut self, vector: u16) {
        let params = &self.ctrl.params;
        let (lost, late, spurious) = (params.interrupts_lost, params.interrupt_ns, params.interrupts_spurious);
        if self.ctrl.moods.per_mille(lost) {
            return self.mark(Mark::NvmeInterruptLost);
        }
        if !self.ctrl.under_way.insert(vector) {
            return self.mark(Mark::NvmeInterruptMerged);
        }
        let delay = self.ctrl.moods.range(0, late);
        self.plan(delay, NvmeEvent::Interrupt { vector });
        if self.ctrl.moods.per_mille(spurious) {
            let later = delay + self.ctrl.moods.range(1, 100_000);
            self.mark(Mark::NvmeInterruptSpurious);
            self.plan(later, NvmeEvent::Interrupt { vector });
        }
    }

    pub(super) fn interrupt(&mut self, vector: u16) {
        self.ctrl.counts.interrupts += 1;
        self.ctrl.under_way.remove(&vector);
        self.ctrl.pending.insert(vector);
    }

    /// Makes noise of bytes, if that is what this controller does.
    pub(super) fn garble(&mut self, bytes: &mut [u8], what: Noisy) {
        let Some(noise) = self.ctrl.noise else { return };
        let chance = match what {
            Noisy::Entry => noise.entries,
            Noisy::Data => noise.data,
        };
        if !self.ctrl.moods.per_mille(chance) {
            return;
        }
        // A few bytes, or all of them: what is nearly right goes further into a driver.
        let all = self.ctrl.moods.per_mille(200);
        let times = if all { bytes.len() as u64 } else { self.ctrl.moods.range(1, 4) };
        for n in 0..times {
            let at = if all { n } else { self.ctrl.moods.below(bytes.len() as u64) };
            let noise = self.ctrl.moods.next_u64().to_le_bytes();
            if let Some(byte) = bytes.get_mut(sw_mem::index(at)) {
                *byte = noise[0];
            }
        }
    }
}

/// What noise is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noisy {
    Entry,
    Data,
}
