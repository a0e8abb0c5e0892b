//! One controller as one transport uses it: a queue pair, the namespaces, the regions, and what waits for room.
//!
//! ```text
//!   submit ─► Parent ─► emit: cut by MDTS, NOIOB, NPWG and PRP joints ─► stage … ─► ring
//!                         │ no room: backlog                                   │
//!   poll ◄─ last command ◄┴─ retry after CRD ◄── status, DNR 0 ◄── completion ◄┘
//! ```

use std::{collections::VecDeque, sync::Arc};

use sw_engine::{
    Error, ErrorKind, Fault, Retry, Time,
    seam::{IoDone, IoKind},
};
use sw_mem::{DmaRegion, RegionId};

use super::{
    parents::{Parent, Parents},
    regions::RegionTable,
};
use crate::{
    bus::Bus,
    controller::{Controller, Life, Pair},
    directory,
    limits::TransferLimits,
    prp::NotPrp,
    queue::{Ended, NotStaged, QueuePair},
    status::{Class, Status},
    wire::{BlockCount, Command, IoFlags, LbaRange},
};

/// How often the commands of one I/O are sent again at most, all together: Linux's `nvme_max_retries`.
const RETRIES_MAX: u8 = 5;
/// A controller with commands in flight that completes nothing for so many looks is looked at: one second.
const SILENT_LOOKS: u32 = 10;

/// A queue pair that did nothing for so many looks is given back where others lack one: one second.
const UNUSED_LOOKS: u32 = 10;

/// The NSID names another namespace by now, or one with another format: nothing was sent.
const CHANGED: Fault = Fault::new(ErrorKind::Changed, 0);

/// A namespace, as far as the data path needs it.
#[derive(Clone, Copy, Debug)]
struct Target {
    nsid: u32,
    generation: u32,
    block_shift: u32,
    limits: TransferLimits,
    read: IoFlags,
    write: IoFlags,
}

/// A command of an I/O: where it starts and how long it is, in bytes; nothing for a flush. It travels as the word of the
/// queue's slot, in units of 512 bytes, which every block is a multiple of.
#[derive(Clone, Copy, Debug)]
struct Part {
    parent: u32,
    at: u32,
    len: u32,
}

impl Part {
    /// 16 bits of index, 24 of each length: [`DEPTH_MAX`](super::DEPTH_MAX) and 32-bit lengths fit.
    #[inline]
    fn word(self) -> u64 {
        u64::from(self.parent) | u64::from(self.at >> 9) << 16 | u64::from(self.len >> 9) << 40
    }

    #[inline]
    fn of(word: u64) -> Self {
        let field = |shift: u32, bits: u32| u32::try_from(word >> shift & ((1 << bits) - 1)).unwrap_or(0);
        Self { parent: field(0, 16), at: field(16, 24) << 9, len: field(40, 24) << 9 }
    }
}

/// A command that waits to be sent again.
#[derive(Clone, Copy, Debug)]
struct Again {
    part: Part,
    due: Time,
    /// What it failed with, in case that it is not sent again.
    fault: Fault,
}

/// Counts of one link, beside those of its queue pair.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LinkCounters {
    pub(super) retries: u64,
    pub(super) splits: u64,
}

/// How long nothing has completed, in looks.
#[derive(Clone, Copy, Debug, Default)]
struct Silence {
    completions: u64,
    looks: u32,
}

pub(super) struct Link<B: Bus> {
    pub(super) controller: Arc<Controller<B>>,
    pub(super) queue: QueuePair<B>,
    pub(super) epoch: u64,
    /// A reset of its controller was asked for.
    pub(super) asked_reset: bool,
    /// The controller confirmed its deletion, so that its identifier may be another lane's by now.
    pub(super) is_deleted: bool,
    /// Its completions raise an interrupt that the transport's waiter watches.
    pub(super) interrupts: bool,
    pub(super) regions: RegionTable,
    /// Regions that are not in the table because the bus refused them.
    refused: Vec<(RegionId, Fault)>,
    silence: Silence,
    /// How long nothing was done, in looks.
    unused: Silence,
    inventory: u64,
    targets: Vec<Target>,
    /// The one that was used last.
    recent: usize,
    write_cache: bool,
    /// I/Os that have more to send, in order.
    backlog: VecDeque<u32>,
    again: Vec<Again>,
    pub(super) counters: LinkCounters,
}

/// What became of a command that was to be sent.
enum Emitted {
    /// It is staged; so many units.
    Yes(u32),
    /// No room.
    Full,
    /// It cannot be sent.
    Fault(Fault),
}

impl<B: Bus> Link<B> {
    /// From a pair that was just made. `depth` is how many I/Os there can be.
    pub(super) fn new(controller: Arc<Controller<B>>, pair: Pair<B>, depth: u32) -> Self {
        let entries = sw_mem::index(u64::from(pair.queue.entries()));
        let depth = sw_mem::index(u64::from(depth));
        let mut link = Self {
            write_cache: controller.facts().write_cache,
            controller,
            queue: pair.queue,
            epoch: pair.epoch,
            asked_reset: false,
            is_deleted: false,
            interrupts: false,
            regions: RegionTable::new(),
            refused: Vec::new(),
            silence: Silence::default(),
            unused: Silence::default(),
            inventory: 0,
            targets: Vec::new(),
            recent: 0,
            backlog: VecDeque::with_capacity(depth),
            again: Vec::with_capacity(entries),
            counters: LinkCounters::default(),
        };
        link.refresh();
        link
    }

    /// Lets I/Os use a region that they do not use yet. A refusal is kept for them.
    pub(super) fn attach(&mut self, region: &DmaRegion) -> Result<(), Error> {
        self.refused.retain(|(id, _)| *id != region.id());
        match self.controller.bus().map(region) {
            Ok(iova) => self.regions.add(region, iova),
            Err(error) => {
                self.refused.push((region.id(), super::refusal(&error)));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Forgets a region.
    pub(super) fn detach(&mut self, id: RegionId) {
        self.regions.remove(id);
        self.refused.retain(|(refused, _)| *refused != id);
    }

    /// Why a region cannot be used, if the bus refused it.
    pub(super) fn refused(&self, id: RegionId) -> Option<Fault> {
        self.refused.iter().find(|(refused, _)| *refused == id).map(|(_, fault)| *fault)
    }

    /// Takes over the controller's list of namespaces if it changed. One atomic load if it did not.
    #[inline]
    pub(super) fn refresh(&mut self) {
        if self.controller.inventory() != self.inventory {
            self.reload();
        }
    }

    #[cold]
    fn reload(&mut self) {
        self.inventory = self.controller.inventory();
        self.targets = self
            .controller
            .namespaces()
            .iter()
            .filter_map(|namespace| {
                let (read, write) = namespace.io_flags();
                let limits = namespace.limits?;
                let block_shift = limits.block_bytes.trailing_zeros();
                let generation = directory::in_handle(namespace.generation);
                Some(Target { nsid: namespace.nsid, generation, block_shift, limits, read, write })
            })
            .collect();
        self.recent = 0;
    }

    /// Index of the entry of an I/O's namespace.
    #[inline]
    fn target(&mut self, parent: &Parent) -> Result<usize, Fault> {
        let recent = self.targets.get(self.recent).filter(|target| target.nsid == parent.nsid);
        let Some(target) = recent else { return self.seek(parent) };
        if target.generation == parent.generation { Ok(self.recent) } else { Err(CHANGED) }
    }

    #[cold]
    fn seek(&mut self, parent: &Parent) -> Result<usize, Fault> {
        let Some(found) = self.targets.iter().position(|target| target.nsid == parent.nsid) else {
            return Err(Fault::new(ErrorKind::NoDevice, i32::from(Status::INVALID_NAMESPACE.code())));
        };
        self.recent = found;
        if self.targets[found].generation == parent.generation { Ok(found) } else { Err(CHANGED) }
    }

    /// Whether it has something in flight or waiting.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.in_flight() == 0 && self.backlog.is_empty() && self.again.is_empty()
    }

    /// Whether a flush has nothing to do: without a volatile write cache a completed write lasts.
    #[inline]
    pub(super) fn flushes_at_once(&self) -> bool {
        !self.write_cache
    }

    /// Sends what there is room for; the rest waits. Gives the end of the I/O if it is over already.
    #[inline]
    pub(super) fn begin(&mut self, index: u32, parents: &mut Parents) -> Option<IoDone> {
        if self.backlog.is_empty() {
            return self.send(index, parents);
        }
        self.backlog.push_back(index);
        None
    }

    /// Sends as much of an I/O as there is room for.
    #[inline]
    fn send(&mut self, index: u32, parents: &mut Parents) -> Option<IoDone> {
        let parent = parents.get_mut(index)?;
        while parent.sent < parent.work && !parent.stops() {
            match self.emit(parent, index) {
                Emitted::Yes(units) => {
                    parent.sent += units;
                    parent.open += 1;
                    self.counters.splits += u64::from(parent.sent < parent.work);
                }
                Emitted::Full => {
                    self.backlog.push_back(index);
                    return None;
                }
                Emitted::Fault(fault) => parent.fail(parent.sent, fault),
            }
        }
        if parent.is_over() { parents.finish(index) } else { None }
    }

    /// Stages the next command of an I/O.
    #[inline]
    fn emit(&mut self, parent: &Parent, index: u32) -> Emitted {
        let at = parent.sent;
        let found = match self.target(parent) {
            Ok(found) => found,
            Err(fault) => return Emitted::Fault(fault),
        };
        let target = &self.targets[found];
        if !parent.moves() {
            return staged(stage(&mut self.queue, parent, target, Part { parent: index, at: 0, len: 0 }), 1);
        }
        let first = parent.offset + u64::from(at);
        let left = u64::from(parent.work - at);
        if (first | left) & ((1 << target.block_shift) - 1) != 0 {
            // Whole blocks only: cut off, it would land at another place.
            return Emitted::Fault(Fault::new(ErrorKind::ApiMisuse, 0));
        }
        let (slba, left) = (first >> target.block_shift, left >> target.block_shift);
        let next = if parent.kind == IoKind::Write {
            target.limits.next_write(slba, left)
        } else {
            target.limits.next(slba, left)
        };
        let Some(blocks) = next else {
            return Emitted::Fault(Fault::new(ErrorKind::ApiMisuse, 0));
        };
        let len = blocks.get() << target.block_shift;
        match stage(&mut self.queue, parent, target, Part { parent: index, at, len }) {
            Ok(_) => Emitted::Yes(len),
            Err(why) => stage_less(&mut self.queue, parent, target, Part { parent: index, at, len: 0 }, why),
        }
    }

    /// Takes at most `budget` completions; each ends at most one I/O, whose end goes to `out`.
    #[inline]
    pub(super) fn poll(&mut self, budget: usize, parents: &mut Parents, out: &mut Vec<IoDone>) -> usize {
        let Self { queue, again, backlog, controller, counters, .. } = self;
        queue.poll(budget, |ended: Ended| {
            let part = Part::of(ended.user);
            let Some(parent) = parents.get_mut(part.parent) else { return };
            if ended.status.is_success() {
                parent.open -= 1;
                parent.moved = true;
            } else if let Some(due) = retry_due(parent, ended.status, controller) {
                counters.retries += 1;
                parent.retries += 1;
                let fault = fault_of(parent, ended.status);
                parent.moved |= !fault.is_not_applied();
                again.push(Again { part, due, fault });
            } else {
                parent.open -= 1;
                parent.fail(part.at, fault_of(parent, ended.status));
            }
            if parent.is_over() {
                if parent.sent < parent.work {
                    // Given up before all was sent.
                    backlog.retain(|waiting| *waiting != part.parent);
                }
                out.extend(parents.finish(part.parent));
            }
        })
    }

    /// Whether the controller still lives in the link's epoch. One atomic load.
    #[inline]
    pub(super) fn is_current(&self) -> bool {
        self.controller.life() == Life::Up(self.epoch)
    }

    /// Hands over what was staged, unless the controller is being reset.
    #[inline]
    pub(super) fn ring(&mut self) {
        if self.is_current() {
            self.queue.ring();
        }
    }

    /// Whether something waits for room or for its time.
    #[inline]
    pub(super) fn has_waiting(&self) -> bool {
        !self.backlog.is_empty() || !self.again.is_empty()
    }

    /// Counts a look; whether nothing completed for [`SILENT_LOOKS`] of them.
    pub(super) fn is_silent(&mut self) -> bool {
        let completions = self.queue.counters().completions;
        let looks = if completions == self.silence.completions { self.silence.looks + 1 } else { 0 };
        self.silence = Silence { completions, looks: looks % SILENT_LOOKS };
        looks >= SILENT_LOOKS
    }

    /// Counts a look; whether nothing was done for [`UNUSED_LOOKS`] of them.
    pub(super) fn is_unused(&mut self) -> bool {
        let completions = self.queue.counters().completions;
        let same = completions == self.unused.completions && self.is_idle();
        self.unused = Silence { completions, looks: if same { self.unused.looks.saturating_add(1) } else { 0 } };
        self.unused.looks >= UNUSED_LOOKS
    }

    /// Looks whether a silent controller lives, and tells it once more what there is to do. `true`: it does not.
    pub(super) fn is_ill(&mut self) -> bool {
        let ill = self.controller.is_ill(self.epoch);
        // While it is being disabled it has no doorbells, and afterwards it does not know this queue.
        if !ill && self.is_current() {
            self.queue.nudge();
        }
        ill
    }

    /// Takes the completions that are left after the queue was deleted.
    pub(super) fn take_last(&mut self, parents: &mut Parents, out: &mut Vec<IoDone>) {
        let all = sw_mem::index(u64::from(self.queue.entries()));
        self.queue.retire();
        self.poll(all, parents, out);
    }

    /// Gives the pair back. Nothing is in flight.
    pub(super) fn discard(self) {
        if !self.is_deleted {
            self.controller.discard(self.queue, self.epoch);
        }
    }

    /// Never frees rings and lists: the controller may still touch them.
    pub(super) fn leak(self) {
        self.queue.leak();
    }

    /// Sends what waited for room or for its time. Ends go to `out`, which has room for all I/Os.
    #[inline]
    pub(super) fn resume(&mut self, parents: &mut Parents, out: &mut Vec<IoDone>) {
        if !self.again.is_empty() {
            self.send_again(parents, out);
        }
        while self.queue.room() > 0
            && let Some(index) = self.backlog.pop_front()
        {
            out.extend(self.send(index, parents));
        }
        self.ring();
    }

    #[cold]
    fn send_again(&mut self, parents: &mut Parents, out: &mut Vec<IoDone>) {
        let now = self.controller.bus().now();
        let mut at = 0;
        while let Some(again) = self.again.get(at).copied() {
            let index = again.part.parent;
            let Some(parent) = parents.get_mut(index) else {
                self.again.swap_remove(at);
                continue;
            };
            if parent.stops() {
                // Another command of the I/O failed for good, or it was cancelled: this one is not sent again.
                let cancelled = Fault::new(ErrorKind::Cancelled, again.fault.code);
                parent.fail(again.part.at, if parent.cancelled { cancelled } else { again.fault });
            } else if again.due > now {
                at += 1;
                continue;
            } else {
                let found = self.target(parent);
                match found.map(|found| stage(&mut self.queue, parent, &self.targets[found], again.part)) {
                    Ok(Ok(_)) => {
                        self.again.swap_remove(at);
                        continue;
                    }
                    Ok(Err(NotStaged::Full | NotStaged::Broken)) => return,
                    Ok(Err(NotStaged::Shape(_))) => parent.fail(again.part.at, Fault::new(ErrorKind::Protocol, 0)),
                    Err(fault) => parent.fail(again.part.at, fault),
                }
            }
            self.again.swap_remove(at);
            parent.open -= 1;
            if parent.is_over() {
                self.backlog.retain(|waiting| *waiting != index);
                out.extend(parents.finish(index));
            }
        }
    }

    /// When the first command that waits is to be sent again; `None` also while there is no room, which a completion makes,
    /// and while the controller is being reset, after which it goes no more.
    pub(super) fn next_due(&self) -> Option<Time> {
        let room = self.queue.room() > 0 && self.is_current();
        self.again.iter().map(|again| again.due).min().filter(|_| room)
    }

    /// Asks the controller for an early end of all commands of an I/O, within ACL.
    ///
    /// Gives how many it was asked for.
    pub(super) fn abort(&self, index: u32) -> u64 {
        let mine = self.queue.live().filter(|(_, word, _)| Part::of(*word).parent == index);
        mine.filter(|(cid, ..)| self.controller.abort(self.queue.qid(), *cid)).count() as u64
    }

    /// Forgets an I/O that waits and has nothing open.
    pub(super) fn forget(&mut self, index: u32) {
        self.backlog.retain(|waiting| *waiting != index);
    }
}

/// When a command may be sent again, if it may.
#[cold]
fn retry_due<B: Bus>(parent: &Parent, status: Status, controller: &Controller<B>) -> Option<Time> {
    if parent.stops()
        || parent.retries >= RETRIES_MAX
        || matches!(status.class(), Class::Aborted | Class::NamespaceGone)
    {
        return None;
    }
    let now = || controller.bus().now();
    match status.retry(&controller.facts().retry_delays) {
        Retry::Now => Some(now()),
        Retry::After(delay) => Some(now().after(delay)),
        Retry::Never | Retry::AfterFence => None,
    }
}

/// The engine's word for a status that is final: the transport has retried what a retry can help.
#[cold]
fn fault_of(parent: &Parent, status: Status) -> Fault {
    if parent.cancelled && status.class() == Class::Aborted {
        return Fault::new(ErrorKind::Cancelled, i32::from(status.code()));
    }
    let fault = status.fault(&crate::status::RetryDelays::default());
    fault.unwrap_or(Fault::new(ErrorKind::Io, 0)).with_retry(Retry::Never)
}

/// Stages as much as PRP entries can describe, for what they cannot as a whole.
#[cold]
fn stage_less<B: Bus>(
    queue: &mut QueuePair<B>,
    parent: &Parent,
    target: &Target,
    part: Part,
    why: NotStaged,
) -> Emitted {
    let NotStaged::Shape(NotPrp::Ragged { after_bytes } | NotPrp::ListFull { fits_bytes: after_bytes }) = why else {
        return staged(Err(why), 0);
    };
    // Whole blocks that fit; without one, nothing does.
    let len = u32::try_from(after_bytes).unwrap_or(0) >> target.block_shift << target.block_shift;
    if len == 0 {
        return Emitted::Fault(Fault::new(ErrorKind::Unsupported, 0));
    }
    staged(stage(queue, parent, target, Part { len, ..part }), len)
}

/// Stages one command.
#[inline]
fn stage<B: Bus>(queue: &mut QueuePair<B>, parent: &Parent, target: &Target, part: Part) -> Result<u16, NotStaged> {
    let Some(nlb) = BlockCount::new(part.len >> target.block_shift) else {
        return queue.stage(&[], part.word(), |_| Command::flush(target.nsid));
    };
    let slba = (parent.offset + u64::from(part.at)) >> target.block_shift;
    let range = LbaRange { nsid: target.nsid, slba, nlb };
    let reads = parent.kind == IoKind::Read;
    let command = |data| {
        if reads { Command::read(range, data, target.read) } else { Command::write(range, data, target.write) }
    };
    // The common one is a single piece, all of it.
    if part.at == 0 && parent.segment_count == 1 && u64::from(part.len) == parent.segments[0].len.0 {
        return queue.stage(&parent.segments[..1], part.word(), command);
    }
    let (memory, count) = parent.memory(part.at, part.len);
    queue.stage(memory.get(..count).unwrap_or(&[]), part.word(), command)
}

#[inline]
fn staged(result: Result<u16, NotStaged>, units: u32) -> Emitted {
    match result {
        Ok(_) => Emitted::Yes(units),
        Err(NotStaged::Full | NotStaged::Broken) => Emitted::Full,
        // Memory at odd addresses or past the address space: the engine checks that before.
        Err(NotStaged::Shape(_)) => Emitted::Fault(Fault::new(ErrorKind::Unsupported, 0)),
    }
}
