//! A submission ring and a completion ring, and what is in flight between them.
//!
//! ```text
//!   stage ─► slot, CID, PRP list of the slot, entry at the tail        (memory only)
//!   ring  ─► barrier, one tail doorbell for all that was staged
//!   poll  ─► phase word, barrier, entry ─► checks ─► slot free ─► … ─► one head doorbell
//! ```
//!
//! One allocation holds both rings and the PRP lists, a list per slot. A CID is the slot's index in its low bits and a
//! generation above: a late or repeated completion names a dead generation and is found out. Base, "Submission Queues and
//! Completion Queues"; PCIe Transport, "Doorbell registers".
//!
//! What the controller says is checked: the CID names a command that was rung, SQID is this queue, SQHD lies in the ring.
//! SQHD is a snapshot of when the entry was made, and entries of several engines may overtake each other, so one that goes
//! back is counted and means nothing. Nothing depends on it: a command without its completion has a slot, there is a slot
//! less than the ring has entries, and what was not fetched has no completion, so the tail never meets the controller's head.
//! A breach breaks the queue: nothing more is staged, rung or believed, and only a
//! disabled controller frees what is in flight.
//!
//! *Thread*: one. Nothing is allocated, locked or waited for after [`QueuePair::new`].

use sw_engine::{Error, ErrorKind, Verb};
use sw_mem::{ByteLen, Iova, index};

use crate::{
    bus::{Bus, QueueMemory, Registers},
    prp::{self, ListMemory, NotPrp, PageSize, Segment},
    sgl::{self, SglAlignment, SglSupport},
    status::Status,
    wire::{
        CQE_BYTES, Command, Completion, DataPointer, SQE_BYTES,
        completion::{PHASE_WORD_AT, phase_of},
        regs::DoorbellStride,
    },
};

/// Entries of a queue at most: 12 bits of index leave 4 bits of generation in a CID.
pub const ENTRIES_MAX: u32 = 4096;
/// The page of rings and lists: the one memory page size that the driver selects (CC.MPS 0).
const PAGE: usize = 4096;
/// Descriptors of a scatter gather list at most: pieces of memory in one I/O, rounded up to a power of two.
const DESCRIPTORS: usize = 4;
/// Room that a slot's list has for them, at least.
const SGL_BYTES: usize = DESCRIPTORS * sgl::DESCRIPTOR_BYTES;
/// A slot that holds no command.
const NOBODY: u32 = u32::MAX;
/// Not used as a CID: the Error Information log page uses it for "no command" (Base, "Common Command Format").
const NO_CID: u16 = u16::MAX;

/// How large a queue pair is.
#[derive(Clone, Copy, Debug)]
pub struct QueueShape {
    /// Its identifier in both rings; 0 is the admin queue.
    pub qid: u16,
    /// Entries of each ring: a power of two, 2 to [`ENTRIES_MAX`], within CAP.MQES. One less can be in flight.
    pub entries: u32,
    /// Bytes of data of one command at most; what the PRP lists are made for. 0: no lists.
    pub data_bytes_max: u32,
    /// Where the doorbells lie.
    pub stride: DoorbellStride,
}

/// What a controller did that no controller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Breach {
    /// A completion for a command that ended before.
    #[error("a second completion for CID {0:#06x}")]
    Duplicate(u16),
    /// A completion for a command that never was, or one that was not handed over yet.
    #[error("a completion for CID {0:#06x}, which names no command in flight")]
    UnknownCid(u16),
    /// A completion that names another submission queue.
    #[error("a completion for submission queue {got} in the completion queue of {want}")]
    WrongQueue {
        /// SQID of the entry.
        got: u16,
        /// The queue.
        want: u16,
    },
    /// A submission queue head outside the ring.
    #[error("submission queue head {got} in a ring of {entries} entries")]
    Head {
        /// SQHD of the entry.
        got: u16,
        /// Of the ring.
        entries: u32,
    },
}

/// Why a command was not staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStaged {
    /// No slot, and thereby perhaps no room in the ring: a completion makes some.
    Full,
    /// The queue is broken.
    Broken,
    /// PRP entries cannot describe the data.
    Shape(NotPrp),
}

/// A command that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// The word that came with it.
    pub user: u64,
    /// What became of it.
    pub status: Status,
    /// Dword 0 of the completion: command specific.
    pub dw0: u32,
    /// Its identifier, which may name another command from now on.
    pub cid: u16,
}

/// Counts since the queue was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Commands staged.
    pub commands: u64,
    /// Completions taken.
    pub completions: u64,
    /// Tail doorbells written to a register.
    pub sq_doorbells: u64,
    /// Head doorbells written to a register.
    pub cq_doorbells: u64,
    /// Doorbells that a shadow buffer took, so that no register was written.
    pub shadowed: u64,
    /// Bytes written to PRP lists.
    pub prp_list_bytes: u64,
    /// Commands whose data a scatter gather list describes.
    pub sgl_commands: u64,
    /// Breaches of the controller.
    pub breaches: u64,
    /// Submission queue heads that went back, or past what was handed over.
    pub odd_heads: u64,
}

impl core::ops::AddAssign for QueueCounters {
    fn add_assign(&mut self, more: Self) {
        self.commands += more.commands;
        self.completions += more.completions;
        self.sq_doorbells += more.sq_doorbells;
        self.cq_doorbells += more.cq_doorbells;
        self.shadowed += more.shadowed;
        self.prp_list_bytes += more.prp_list_bytes;
        self.sgl_commands += more.sgl_commands;
        self.breaches += more.breaches;
        self.odd_heads += more.odd_heads;
    }
}

#[derive(Clone, Copy)]
struct Slot {
    /// The CID of its command, or [`NOBODY`].
    live: u32,
    /// The number of its command in the order of staging, to tell whether it was rung.
    number: u32,
    user: u64,
    /// The caller's tick when it was staged.
    born: u32,
    /// The CID of its next command.
    next: u16,
}

/// Shadow doorbells of one queue (Base, "Doorbell Buffer Config command").
pub struct Shadow<M> {
    /// A handle of the shadow doorbell buffer: doorbells as the registers would have them.
    pub doorbells: M,
    /// A handle of the EventIdx buffer, laid out the same.
    pub events: M,
    /// Offset of the tail's word in both, in bytes.
    pub sq_at: usize,
    /// Offset of the head's word in both, in bytes.
    pub cq_at: usize,
}

impl<M: QueueMemory> Shadow<M> {
    /// Stores a new value and says whether the register must be written too: the event index lies among the entries that
    /// became visible with it.
    fn moves(&self, at: usize, old: u32, new: u32) -> bool {
        self.doorbells.store32(at, new);
        // The controller stores its event index and then looks at the doorbell; we do the reverse. One of us sees the other.
        self.doorbells.store_then_load();
        let event = self.events.load32(at);
        let span = |from: u32| new.wrapping_sub(from) & 0xFFFF;
        span(event.wrapping_add(1)) < span(old)
    }
}

/// Where things lie in the queue's memory, in bytes.
#[derive(Clone, Copy, Debug)]
struct Layout {
    cq_at: usize,
    lists_at: usize,
    /// Of one slot. Below a page a power of two, so that no list crosses one; above, whole pages.
    list_bytes: usize,
    len: usize,
}

impl Layout {
    fn of(shape: &QueueShape) -> Self {
        let entries = index(u64::from(shape.entries));
        let pages = |bytes: usize| bytes.next_multiple_of(PAGE);
        let cq_at = pages(entries * SQE_BYTES);
        let lists_at = cq_at + pages(entries * CQE_BYTES);
        // The first page of data is PRP1's; the others need an entry each, and data may start inside a page.
        let needed = index(u64::from(shape.data_bytes_max)).div_ceil(PAGE);
        let per_page = PAGE / prp::ENTRY_BYTES;
        let list_bytes = match needed {
            0 => 0,
            few if few <= per_page => (few * prp::ENTRY_BYTES).next_power_of_two().max(SGL_BYTES),
            // The last entry of each page but the last one is a link.
            many => (many - 1).div_ceil(per_page - 1) * PAGE,
        };
        let len = lists_at + pages(entries * list_bytes);
        Self { cq_at, lists_at, list_bytes, len }
    }
}

/// The list of one slot.
struct SlotList<'a, M> {
    memory: &'a M,
    at: usize,
    bytes: usize,
}

impl<M: QueueMemory> ListMemory for SlotList<'_, M> {
    #[inline]
    fn chunk(&self, index: u32) -> Option<(Iova, u32)> {
        let skip = sw_mem::index(u64::from(index)) * PAGE;
        let entries = self.bytes.checked_sub(skip).filter(|left| *left > 0)?.min(PAGE) / prp::ENTRY_BYTES;
        let iova = self.memory.iova().checked_add(ByteLen((self.at + skip) as u64))?;
        Some((iova, u32::try_from(entries).ok()?))
    }

    #[inline]
    fn put(&mut self, index: u32, at_bytes: usize, entries: &[u8]) {
        self.memory.write(self.at + sw_mem::index(u64::from(index)) * PAGE + at_bytes, entries);
    }
}

/// See the module documentation. Calling order: `stage` any number of commands, `ring`, `poll`.
///
/// Dropping it frees the memory of its rings: only after the controller was seen to let go of it (queue deleted or
/// controller disabled); [`QueuePair::leak`] is the other way.
pub struct QueuePair<B: Bus> {
    memory: B::Memory,
    registers: B::Registers,
    shadow: Option<Shadow<B::Memory>>,
    /// What the controller takes where PRP entries cannot describe the data.
    sgl: SglSupport,
    layout: Layout,
    qid: u16,
    /// Entries less one: entries are a power of two.
    mask: u32,
    sq_doorbell: u32,
    cq_doorbell: u32,
    tail: u32,
    /// The tail that the controller was told.
    rung: u32,
    /// How far the controller says it took entries, for people.
    head: u32,
    cq_head: u32,
    /// What the phase bit of a new entry is.
    phase: bool,
    /// Commands staged and rung so far, wrapping.
    staged_count: u32,
    rung_count: u32,
    tick: u32,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    breach: Option<Breach>,
    /// Its doorbells are not there any more.
    retired: bool,
    counters: QueueCounters,
}

impl<B: Bus> QueuePair<B> {
    /// Makes the rings in memory of `bus`. The controller does not know of them yet.
    ///
    /// # Errors
    /// `ApiMisuse` for a shape out of range, `Protocol` for doorbells outside the register file, what
    /// [`Bus::allocate`] says.
    pub fn new(bus: &B, shape: QueueShape) -> Result<Self, Error> {
        let refuse = |kind, text: &'static str| Err(Error::new(kind, Verb::Setup).at(bus.name()).detail(text));
        if !shape.entries.is_power_of_two() || !(2..=ENTRIES_MAX).contains(&shape.entries) {
            return refuse(ErrorKind::ApiMisuse, "a queue has 2 to 4096 entries, a power of two");
        }
        let registers = bus.registers();
        let inside = |at: &u32| at.checked_add(4).is_some_and(|end| end <= registers.len());
        let doorbells = (shape.stride.sq_tail(shape.qid), shape.stride.cq_head(shape.qid));
        let (Some(sq_doorbell), Some(cq_doorbell)) = (doorbells.0.filter(inside), doorbells.1.filter(inside)) else {
            return refuse(ErrorKind::Protocol, "the queue's doorbells lie outside the register file");
        };
        let layout = Layout::of(&shape);
        let memory = bus.allocate(layout.len)?;
        let slot = |cid| Slot { live: NOBODY, number: 0, user: 0, born: 0, next: cid };
        // Below 4096, checked above.
        let entries = u16::try_from(shape.entries).unwrap_or(0);
        Ok(Self {
            memory,
            registers,
            shadow: None,
            sgl: SglSupport::decode(0),
            layout,
            qid: shape.qid,
            mask: shape.entries - 1,
            sq_doorbell,
            cq_doorbell,
            tail: 0,
            rung: 0,
            head: 0,
            cq_head: 0,
            phase: true,
            staged_count: 0,
            rung_count: 0,
            tick: 0,
            slots: (0..entries).map(slot).collect(),
            free: (0..entries - 1).rev().collect(),
            breach: None,
            retired: false,
            counters: QueueCounters::default(),
        })
    }

    /// Its identifier.
    pub fn qid(&self) -> u16 {
        self.qid
    }

    /// Entries of each ring.
    pub fn entries(&self) -> u32 {
        self.mask + 1
    }

    /// Where the controller finds the submission ring.
    pub fn sq_iova(&self) -> Iova {
        self.memory.iova()
    }

    /// Where the controller finds the completion ring.
    pub fn cq_iova(&self) -> Iova {
        Iova::new(self.memory.iova().raw() + self.layout.cq_at as u64)
    }

    /// Commands that may be staged now.
    #[inline]
    pub fn room(&self) -> u32 {
        if self.breach.is_some() { 0 } else { u32::try_from(self.free.len()).unwrap_or(u32::MAX) }
    }

    /// Commands without their completion, staged ones included.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.mask - u32::try_from(self.free.len()).unwrap_or(self.mask)
    }

    /// What the controller did wrong, if it did.
    #[inline]
    pub fn breach(&self) -> Option<Breach> {
        self.breach
    }

    /// Counts so far.
    pub fn counters(&self) -> QueueCounters {
        self.counters
    }

    /// CID, word and tick of each command in flight.
    pub fn live(&self) -> impl Iterator<Item = (u16, u64, u32)> + '_ {
        let cid = |slot: &Slot| u16::try_from(slot.live).ok();
        self.slots.iter().filter_map(move |slot| Some((cid(slot)?, slot.user, slot.born)))
    }

    /// The number that commands staged from now on are born with: a coarse clock of the caller's.
    pub fn set_tick(&mut self, tick: u32) {
        self.tick = tick;
    }

    /// Gives it shadow doorbells. Before the first command.
    pub fn set_shadow(&mut self, shadow: Shadow<B::Memory>) {
        self.shadow = Some(shadow);
    }

    /// Allows scatter gather lists, as far as the controller takes them, for pieces of memory that meet inside a page.
    pub fn set_sgl(&mut self, support: SglSupport) {
        self.sgl = support;
    }

    /// Writes an entry behind the tail. `data` is what the command moves (empty for none); `command` gets its pointer.
    ///
    /// Nothing reaches the controller before [`QueuePair::ring`].
    ///
    /// # Errors
    /// [`NotStaged`]; nothing was taken then.
    #[inline]
    pub fn stage(
        &mut self,
        data: &[Segment],
        user: u64,
        command: impl FnOnce(DataPointer) -> Command,
    ) -> Result<u16, NotStaged> {
        let next_tail = (self.tail + 1) & self.mask;
        if self.breach.is_some() || self.retired {
            return Err(NotStaged::Broken);
        }
        let Some(slot) = self.free.last().copied() else { return Err(NotStaged::Full) };
        let pointer = self.describe(slot, data)?;
        self.free.pop();
        let place = &mut self.slots[usize::from(slot)];
        let cid = place.next;
        (place.live, place.number, place.user, place.born) = (u32::from(cid), self.staged_count, user, self.tick);
        self.staged_count = self.staged_count.wrapping_add(1);
        let entry = command(pointer).with_cid(cid);
        self.memory.write(index(u64::from(self.tail)) * SQE_BYTES, entry.bytes());
        self.tail = next_tail;
        self.counters.commands += 1;
        Ok(cid)
    }

    #[inline]
    fn describe(&mut self, slot: u16, data: &[Segment]) -> Result<DataPointer, NotStaged> {
        match data {
            [] => return Ok(DataPointer::None),
            [one] => {
                if let Some(prps) = prp::short(PageSize::KIB4, *one) {
                    return Ok(prps.pointer());
                }
            }
            _ => {}
        }
        let at = self.layout.lists_at + usize::from(slot) * self.layout.list_bytes;
        let mut list = SlotList { memory: &self.memory, at, bytes: self.layout.list_bytes };
        match prp::describe(PageSize::KIB4, data, &mut list) {
            Ok(prps) => {
                self.counters.prp_list_bytes += u64::from(prps.list_bytes);
                Ok(prps.pointer())
            }
            Err(ragged @ NotPrp::Ragged { .. }) => self.describe_ragged(at, data).ok_or(NotStaged::Shape(ragged)),
            Err(other) => Err(NotStaged::Shape(other)),
        }
    }

    /// A scatter gather list at `at` for pieces that meet inside a page; `None` if the controller takes none.
    fn describe_ragged(&mut self, at: usize, data: &[Segment]) -> Option<DataPointer> {
        if self.layout.list_bytes < SGL_BYTES || self.sgl.alignment == SglAlignment::None {
            return None;
        }
        let mut list = [[0; sgl::DESCRIPTOR_BYTES]; DESCRIPTORS];
        let iova = self.memory.iova().checked_add(ByteLen(at as u64))?;
        let (pointer, bytes) = sgl::describe(self.sgl, data, (iova, &mut list)).ok()?;
        self.memory.write(at, list.as_flattened().get(..index(u64::from(bytes)))?);
        self.counters.sgl_commands += 1;
        Some(pointer)
    }

    /// Hands over what was staged, by one doorbell; says whether there was something.
    #[inline]
    pub fn ring(&mut self) -> bool {
        if self.tail == self.rung || self.breach.is_some() || self.retired {
            return false;
        }
        self.memory.before_doorbell();
        let (old, new) = (self.rung, self.tail);
        (self.rung, self.rung_count) = (new, self.staged_count);
        match &self.shadow {
            Some(shadow) if !shadow.moves(shadow.sq_at, old, new) => self.counters.shadowed += 1,
            _ => {
                self.registers.write32(self.sq_doorbell, new);
                self.counters.sq_doorbells += 1;
            }
        }
        true
    }

    /// Whether a completion is there to be taken: one load.
    #[inline]
    pub fn has_completion(&self) -> bool {
        let at = self.layout.cq_at + index(u64::from(self.cq_head)) * CQE_BYTES;
        phase_of(self.memory.load32(at + PHASE_WORD_AT)) == self.phase
    }

    /// Takes at most `budget` completions, then writes the head doorbell once if there were any. Stops at a breach, which
    /// [`QueuePair::breach`] then tells.
    #[inline]
    pub fn poll(&mut self, budget: usize, mut ended: impl FnMut(Ended)) -> usize {
        let old = self.cq_head;
        let mut found = 0;
        while found < budget && self.breach.is_none() {
            let at = self.layout.cq_at + index(u64::from(self.cq_head)) * CQE_BYTES;
            if phase_of(self.memory.load32(at + PHASE_WORD_AT)) != self.phase {
                break;
            }
            self.memory.after_valid();
            let mut entry = [0; CQE_BYTES];
            self.memory.read(at, &mut entry);
            self.cq_head = (self.cq_head + 1) & self.mask;
            self.phase ^= self.cq_head == 0;
            match self.take(&Completion::new(entry)) {
                Ok(end) => ended(end),
                Err(breach) => {
                    self.breach = Some(breach);
                    self.counters.breaches += 1;
                    break;
                }
            }
            found += 1;
        }
        if found > 0 {
            self.counters.completions += found as u64;
            self.tell_head(old);
        }
        found
    }

    fn tell_head(&mut self, old: u32) {
        if self.retired {
            return;
        }
        match &self.shadow {
            Some(shadow) if !shadow.moves(shadow.cq_at, old, self.cq_head) => self.counters.shadowed += 1,
            _ => {
                self.registers.write32(self.cq_doorbell, self.cq_head);
                self.counters.cq_doorbells += 1;
            }
        }
    }

    /// Checks an entry and frees its slot.
    #[inline]
    fn take(&mut self, entry: &Completion) -> Result<Ended, Breach> {
        let cid = entry.cid();
        if entry.sq_id() != self.qid {
            return Err(Breach::WrongQueue { got: entry.sq_id(), want: self.qid });
        }
        let head = u32::from(entry.sq_head());
        let passed = |to: u32| to.wrapping_sub(self.head) & self.mask;
        if head > self.mask {
            return Err(Breach::Head { got: entry.sq_head(), entries: self.entries() });
        }
        let is_odd = passed(head) > passed(self.rung);
        let (mask, rung) = (self.mask, self.rung_count);
        let slot = usize::try_from(u32::from(cid) & mask).unwrap_or(0);
        let place = &mut self.slots[slot];
        // Rung commands have numbers below the count, by less than half of what 32 bits hold.
        let was_rung = rung.wrapping_sub(place.number).wrapping_sub(1) < 1 << 31;
        if place.live != u32::from(cid) || !was_rung {
            return Err(not_in_flight(place, cid, mask));
        }
        place.live = NOBODY;
        place.next = next_cid(cid, mask);
        let user = place.user;
        // An index below 4096.
        self.free.push(u16::try_from(slot).unwrap_or(0));
        self.counters.odd_heads += u64::from(is_odd);
        self.head = if is_odd { self.head } else { head };
        Ok(Ended { user, status: entry.status(), dw0: entry.dw0(), cid })
    }

    /// Writes both doorbells to their registers whatever the shadow buffer says: for a controller that was silent for long.
    pub fn nudge(&mut self) {
        if self.breach.is_none() && !self.retired {
            self.memory.before_doorbell();
            self.registers.write32(self.sq_doorbell, self.rung);
            self.registers.write32(self.cq_doorbell, self.cq_head);
            self.counters.sq_doorbells += 1;
            self.counters.cq_doorbells += 1;
        }
    }

    /// Writes no doorbell from now on: the queue is deleted, or about to be. Completions that are there can be taken.
    pub fn retire(&mut self) {
        self.retired = true;
    }

    /// Back to empty rings, for a controller that was disabled in between: commands in flight are forgotten, generations
    /// go on. The caller has seen CSTS.RDY fall.
    pub fn reset(&mut self) {
        let zeroes = [0; PAGE];
        (0..self.layout.lists_at).step_by(PAGE).for_each(|at| self.memory.write(at, &zeroes));
        (self.tail, self.rung, self.head, self.cq_head, self.phase) = (0, 0, 0, 0, true);
        (self.staged_count, self.rung_count, self.breach) = (0, 0, None);
        let mask = self.mask;
        for (at, slot) in (0..).zip(&mut self.slots) {
            if slot.live != NOBODY {
                (slot.live, slot.next) = (NOBODY, next_cid(slot.next, mask));
                self.free.push(at);
            }
        }
    }

    /// What was written to the rings is visible to the controller before the next register write: for whoever enables it.
    pub fn publish(&self) {
        self.memory.before_doorbell();
    }

    /// Never frees the memory of rings and lists: the controller may still read or write it.
    #[expect(clippy::mem_forget, reason = "the controller may still reach this memory; the caller counts it")]
    pub fn leak(self) {
        core::mem::forget(self.memory);
        core::mem::forget(self.shadow);
    }
}

/// The same slot, next generation.
#[inline]
fn next_cid(cid: u16, mask: u32) -> u16 {
    // Index and mask have at most 12 bits.
    let step = u16::try_from(mask + 1).unwrap_or(0);
    match cid.wrapping_add(step) {
        NO_CID => NO_CID.wrapping_add(step),
        next => next,
    }
}

#[cold]
fn not_in_flight(slot: &Slot, cid: u16, mask: u32) -> Breach {
    if slot.live == NOBODY && next_cid(cid, mask) == slot.next {
        Breach::Duplicate(cid)
    } else {
        Breach::UnknownCid(cid)
    }
}

impl<B: Bus> core::fmt::Debug for QueuePair<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("QueuePair")
            .field("qid", &self.qid)
            .field("entries", &self.entries())
            .field("tail", &self.tail)
            .field("rung", &self.rung)
            .field("head", &self.head)
            .field("cq_head", &self.cq_head)
            .field("in_flight", &self.in_flight())
            .field("breach", &self.breach)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
