//! I/Os in the transport: what each still has to send, what its commands came to, and where their data lies.

use std::time::Instant;

use sw_engine::{
    ErrorKind, Fault, Retry, Verb,
    seam::{Io, IoDone, IoKind},
};
use sw_nvme::{
    limits::TransferLimits,
    namespace::Namespace,
    tcp::host::{Range, Transfer},
    wire::{BlockCount, Command, DataPointer, LbaRange},
};

use crate::{connection::Places, socket::Piece};

/// An I/O with its commands.
pub(crate) struct Work {
    pub(crate) io: Io,
    pub(crate) place: usize,
    pub(crate) live: bool,
    /// An early end was asked for: no further command is sent.
    pub(crate) cancelled: bool,
    /// Bytes that were sent, or 1 for a flush.
    pub(crate) sent: u32,
    /// Commands without their end.
    pub(crate) open: u32,
    /// The lowest byte at which a command failed, with its fault.
    pub(crate) failed: Option<(u32, Fault)>,
    /// Connections that were lost before all of it was sent.
    pub(crate) lost: u8,
}

/// A command of a work.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) work: u32,
    /// First byte, counted from the start of the I/O.
    pub(crate) at: u32,
    pub(crate) cid: u16,
    pub(crate) since: Instant,
    pub(crate) live: bool,
}

/// Works, with room for as many as there were at a time.
#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) works: Vec<Work>,
    pub(crate) free: Vec<u32>,
}

/// The data of commands: the memory of their I/Os.
pub(crate) struct Memory<'a> {
    pub(crate) parts: &'a [Part],
    pub(crate) works: &'a [Work],
}

impl Places for Memory<'_> {
    fn pieces(&self, of: Range, into: &mut Vec<Piece>) {
        let Some(part) = self.parts.get(sw_mem::index(u64::from(of.user))) else { return };
        let Some(work) = self.works.get(sw_mem::index(u64::from(part.work))) else { return };
        let (mut skip, mut left) = (u64::from(part.at) + u64::from(of.at), u64::from(of.bytes));
        for segment in work.io.segments() {
            let have = u64::from(segment.len);
            if skip >= have {
                skip -= have;
                continue;
            }
            let take = (have - skip).min(left);
            if take == 0 {
                return;
            }
            if let Some(base) = segment.place.host() {
                into.push(Piece::at(base.raw().wrapping_add(skip), take));
            }
            (skip, left) = (0, left - take);
        }
    }
}

impl Tables {
    pub(crate) fn take(&mut self, io: &Io, place: usize) -> Option<u32> {
        let index = self.free.pop()?;
        let work = self.works.get_mut(sw_mem::index(u64::from(index)))?;
        *work = Work { io: *io, place, live: true, cancelled: false, sent: 0, open: 0, failed: None, lost: 0 };
        Some(index)
    }

    pub(crate) fn get(&mut self, index: u32) -> Option<&mut Work> {
        self.works.get_mut(sw_mem::index(u64::from(index))).filter(|work| work.live)
    }

    /// Frees a work that is over, and gives its end.
    pub(crate) fn finish(&mut self, index: u32) -> Option<IoDone> {
        let work = self.get(index)?;
        work.live = false;
        let done = IoDone { token: work.io.token, result: work.result() };
        self.free.push(index);
        Some(done)
    }
}

impl Work {
    pub(crate) fn units(&self) -> u32 {
        if self.moves() { self.io.len } else { 1 }
    }

    pub(crate) fn moves(&self) -> bool {
        matches!(self.io.kind, IoKind::Read | IoKind::Write)
    }

    pub(crate) fn is_write(&self) -> bool {
        self.io.kind == IoKind::Write
    }

    pub(crate) fn verb(&self) -> Verb {
        match self.io.kind {
            IoKind::Read => Verb::Read,
            IoKind::Write => Verb::Write,
            IoKind::FlushData | IoKind::FlushAll => Verb::Flush,
        }
    }

    /// Sends no further commands.
    pub(crate) fn stops(&self) -> bool {
        self.cancelled || self.failed.is_some()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.open == 0 && (self.stops() || self.sent >= self.units())
    }

    pub(crate) fn fail(&mut self, at: u32, fault: Fault) {
        let counts = self.failed.is_none_or(|(before, kept)| match (kept.retry, fault.retry) {
            // A write of which one command may still be carried out is not sent again, whatever the others came to.
            (Retry::Now, again) if self.io.kind != IoKind::Read && again != Retry::Now => true,
            (never, Retry::Now) if self.io.kind != IoKind::Read && never != Retry::Now => false,
            _ => at < before,
        });
        if counts {
            self.failed = Some((at, fault));
        }
    }

    pub(crate) fn result(&self) -> Result<u32, Fault> {
        match self.failed {
            None if self.sent >= self.units() => Ok(if self.moves() { self.io.len } else { 0 }),
            None => Err(Fault::new(ErrorKind::Cancelled, 0)),
            Some((at, fault)) if at == 0 || self.cancelled || self.io.kind != IoKind::Read => Err(fault),
            Some((at, _)) => Ok(at),
        }
    }
}

/// The next command of a work, what it moves, and how many units of the work it is.
pub(crate) fn command_of(
    work: &Work,
    namespace: &Namespace,
    limits: TransferLimits,
) -> Option<(Command, Transfer, u32)> {
    if !work.moves() {
        return Some((Command::flush(namespace.nsid), Transfer::None, 1));
    }
    let block = u64::from(limits.block_bytes);
    let (slba, left) = ((work.io.offset + u64::from(work.sent)) / block, u64::from(work.io.len - work.sent) / block);
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
