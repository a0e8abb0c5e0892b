//! I/Os of a lane: what each still has to send, what its commands came to, and where their data lies.

use core::time::Duration;

use sw_engine::{
    ErrorKind, Fault, Retry, Time, Verb, WriteOutcome,
    seam::{Io, IoDone, IoKind, MemorySegment},
};
use sw_mem::Place;

use super::{
    host::Transfer,
    ledger::{CONNECTIONS_PER_IO_MAX, Pieces},
};
use crate::{
    limits::TransferLimits,
    namespace::Namespace,
    wire::{BlockCount, Command, DataPointer, LbaRange},
};

/// An I/O with its commands.
#[derive(Clone, Debug)]
pub struct Work {
    /// The I/O.
    pub io: Io,
    /// Whom it is for, by the index of the lane's subsystems.
    pub place: usize,
    live: bool,
    /// An early end was asked for: no further command is sent.
    cancelled: bool,
    /// Bytes that were sent, or 1 for a flush.
    pub(super) sent: u32,
    /// Commands without their end.
    pub(super) open: u32,
    /// The lowest byte at which a command failed, with its fault.
    failed: Option<(u32, Fault)>,
    /// A command of it succeeded, or failed in a way that leaves open what it did: bytes may have moved.
    moved: bool,
    /// Connections that were lost before all of it was sent.
    pub(super) lost: u8,
    /// Bytes of it that were copied aside, and from there to their place.
    pub(super) aside: u32,
    /// Since when no path can take it.
    pathless: Option<Time>,
}

/// Works, with room for as many as it was made for, or as there were at a time.
#[derive(Default)]
pub struct Works {
    works: Vec<Work>,
    free: Vec<u32>,
}

impl Works {
    /// With places for so many at a time, so that nothing is allocated up to there.
    pub fn with_room(works: usize) -> Self {
        Self { works: Vec::with_capacity(works), free: Vec::with_capacity(works) }
    }

    /// Takes an I/O. There are as many places as there were I/Os at a time: whoever takes them has a limit.
    pub fn take(&mut self, io: &Io, place: usize) -> u32 {
        let work = Work {
            io: *io,
            place,
            live: true,
            cancelled: false,
            sent: 0,
            open: 0,
            failed: None,
            moved: false,
            lost: 0,
            aside: 0,
            pathless: None,
        };
        if let Some(index) = self.free.pop()
            && let Some(at) = self.works.get_mut(sw_mem::index(u64::from(index)))
        {
            *at = work;
            return index;
        }
        self.works.push(work);
        u32::try_from(self.works.len() - 1).unwrap_or(u32::MAX)
    }

    /// A work that is under way.
    pub fn get(&mut self, index: u32) -> Option<&mut Work> {
        self.works.get_mut(sw_mem::index(u64::from(index))).filter(|work| work.live)
    }

    /// The same, to look at.
    pub fn look(&self, index: u32) -> Option<&Work> {
        self.works.get(sw_mem::index(u64::from(index))).filter(|work| work.live)
    }

    /// Places: works that are under way have indexes below.
    pub fn places(&self) -> u32 {
        u32::try_from(self.works.len()).unwrap_or(u32::MAX)
    }

    /// Works that are under way.
    pub fn under_way(&self) -> usize {
        self.works.len() - self.free.len()
    }

    /// Frees a work that is over, and gives its end.
    pub fn finish(&mut self, index: u32) -> Option<IoDone> {
        let work = self.get(index)?;
        work.live = false;
        let done = IoDone { token: work.io.token, result: work.result(), aside: work.aside };
        self.free.push(index);
        Some(done)
    }
}

impl Work {
    /// Calls `each` with the memory of bytes of the I/O, piece by piece, in order: where it lies, and its length.
    pub fn memory(&self, at: u64, bytes: u64, mut each: impl FnMut(Place, u64, u64)) {
        let (mut skip, mut left) = (at, bytes);
        for segment in self.io.segments() {
            let have = u64::from(segment.len);
            if skip >= have {
                skip -= have;
                continue;
            }
            let take = (have - skip).min(left);
            if take == 0 {
                return;
            }
            each(segment.place, skip, take);
            (skip, left) = (0, left - take);
        }
    }

    /// The piece of memory that byte `at` of the I/O lies in, and its first byte there; `None`: past the end.
    pub fn piece_at(&self, at: u64) -> Option<(&MemorySegment, u64)> {
        let mut skip = at;
        for segment in self.io.segments() {
            match skip.checked_sub(segment.len.into()) {
                None => return Some((segment, skip)),
                Some(left) => skip = left,
            }
        }
        None
    }

    /// Bytes to send, or 1 for a flush.
    pub(super) fn units(&self) -> u32 {
        if self.moves() { self.io.len } else { 1 }
    }

    fn moves(&self) -> bool {
        matches!(self.io.kind, IoKind::Read | IoKind::Write)
    }

    /// Whether it writes blocks.
    pub fn is_write(&self) -> bool {
        self.io.kind == IoKind::Write
    }

    /// What it is.
    pub fn verb(&self) -> Verb {
        match self.io.kind {
            IoKind::Read => Verb::Read,
            IoKind::Write => Verb::Write,
            IoKind::FlushData | IoKind::FlushAll => Verb::Flush,
        }
    }

    /// Asks for an early end: no further command is sent.
    pub fn cancel(&mut self) {
        self.cancelled = true;
    }

    /// Whether it sends no further commands.
    pub fn stops(&self) -> bool {
        self.cancelled || self.failed.is_some()
    }

    /// Whether nothing of it is under way or to be sent.
    pub fn is_over(&self) -> bool {
        self.open == 0 && (self.stops() || self.sent >= self.units())
    }

    /// Whether commands of it are under way.
    pub fn is_under_way(&self) -> bool {
        self.open > 0
    }

    /// Notes that a command of it was carried out.
    pub(super) fn moved(&mut self) {
        self.moved = true;
    }

    /// Notes that a connection for it was not made; whether it may wait for another one.
    pub fn may_go_on(&mut self) -> bool {
        self.lost = self.lost.saturating_add(1);
        self.lost <= CONNECTIONS_PER_IO_MAX
    }

    /// No path can take it now.
    pub fn waits(&mut self, now: Time) {
        self.pathless.get_or_insert(now);
    }

    /// A path takes it.
    pub fn goes(&mut self) {
        self.pathless = None;
    }

    /// How long no path could take it so far.
    pub fn waited(&self, now: Time) -> Duration {
        self.pathless.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Notes that its command at byte `at` failed.
    pub(super) fn fail_at(&mut self, at: u32, fault: Fault) {
        self.moved |= !fault.is_not_applied();
        let counts = self.failed.is_none_or(|(before, first)| match (first.retry, fault.retry) {
            // Memory that stays with a device is told, whatever else there is to tell.
            (Retry::AfterFence, _) => false,
            (_, Retry::AfterFence) => true,
            // A write of which one command may still be carried out is not sent again, whatever the others came to.
            (Retry::Now, again) if self.io.kind != IoKind::Read && again != Retry::Now => true,
            (never, Retry::Now) if self.io.kind != IoKind::Read && never != Retry::Now => false,
            _ => at < before,
        });
        if counts {
            self.failed = Some((at, fault));
        }
    }

    /// Notes that what of it was not sent cannot be: by that nothing was written.
    pub fn fail(&mut self, fault: Fault) {
        self.fail_at(self.sent, if self.is_write() { fault.not_applied() } else { fault });
    }

    fn result(&self) -> Result<u32, Fault> {
        match self.failed {
            None if self.sent >= self.units() => Ok(if self.moves() { self.io.len } else { 0 }),
            None => Err(Fault::new(ErrorKind::Cancelled, 0)),
            // That nothing was written is said of all commands or not at all.
            Some((at, fault)) if at == 0 || self.cancelled || self.io.kind != IoKind::Read || fault.keeps_memory() => {
                Err(if self.moved { Fault { outcome: WriteOutcome::Unknown, ..fault } } else { fault })
            }
            Some((at, _)) => Ok(at),
        }
    }
}

/// The next command of a work, what it moves, and how many units of the work it is. `None`: no command moves what is next, as where a command
/// names one piece of memory and a block lies in two.
pub(super) fn command_of(
    work: &Work,
    namespace: &Namespace,
    (limits, pieces): (TransferLimits, Pieces),
) -> Option<(Command, Transfer, u32)> {
    if !work.moves() {
        return Some((Command::flush(namespace.nsid), Transfer::None, 1));
    }
    let block = u64::from(limits.block_bytes);
    let left = match pieces {
        Pieces::Any => u64::from(work.io.len - work.sent),
        Pieces::One => work.piece_at(work.sent.into()).map(|(segment, skip)| u64::from(segment.len) - skip)?,
    };
    let (slba, left) = ((work.io.offset + u64::from(work.sent)) / block, left / block);
    if left == 0 {
        return None;
    }
    let (read_flags, write_flags) = namespace.io_flags();
    let at = |nlb: BlockCount| LbaRange { nsid: namespace.nsid, slba, nlb };
    let bytes = |nlb: BlockCount| u32::try_from(u64::from(nlb.get()) * block).ok();
    if work.io.kind == IoKind::Read {
        let nlb = limits.next(slba, left)?;
        let bytes = bytes(nlb)?;
        return Some((Command::read(at(nlb), DataPointer::None, read_flags), Transfer::In(bytes), bytes));
    }
    let nlb = limits.next_write(slba, left)?;
    let bytes = bytes(nlb)?;
    Some((Command::write(at(nlb), DataPointer::None, write_flags), Transfer::Out(bytes), bytes))
}
