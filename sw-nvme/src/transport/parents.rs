//! I/Os in the transport: what each still has to send, and what its commands came to.

use sw_engine::{
    ErrorKind, Fault, Token, WriteOutcome,
    seam::{IoDone, IoKind, MAX_SEGMENTS},
};
use sw_mem::{ByteLen, Iova};

use crate::prp::Segment;

/// No command of an I/O failed at this offset.
const NOWHERE: u32 = u32::MAX;

/// An I/O with its commands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parent {
    pub(super) token: Token,
    pub(super) kind: IoKind,
    pub(super) live: bool,
    /// An early end was asked for: no further command is sent.
    pub(super) cancelled: bool,
    pub(super) segment_count: u8,
    /// Commands of it that were sent again.
    pub(super) retries: u8,
    /// A command of it succeeded, or failed in a way that leaves open what it did: bytes may have moved.
    pub(super) moved: bool,
    pub(super) link: u32,
    pub(super) nsid: u32,
    /// Of the namespace, as the handle says.
    pub(super) generation: u32,
    /// First byte in the namespace.
    pub(super) offset: u64,
    /// Units of work: bytes, or 1 for a flush.
    pub(super) work: u32,
    /// Units that were sent.
    pub(super) sent: u32,
    /// Commands without their end, those that wait to be sent again included.
    pub(super) open: u32,
    /// The lowest offset at which a command failed, with its fault.
    failed_at: u32,
    fault: Fault,
    pub(super) segments: [Segment; MAX_SEGMENTS],
}

const NO_SEGMENT: Segment = Segment { iova: Iova::new(0), len: ByteLen(0) };

impl Parent {
    fn empty() -> Self {
        Self {
            token: Token::from_raw(u64::MAX),
            kind: IoKind::Read,
            live: false,
            cancelled: false,
            segment_count: 0,
            retries: 0,
            moved: false,
            link: 0,
            nsid: 0,
            generation: 0,
            offset: 0,
            work: 0,
            sent: 0,
            open: 0,
            failed_at: NOWHERE,
            fault: Fault::new(ErrorKind::Io, 0),
            segments: [NO_SEGMENT; MAX_SEGMENTS],
        }
    }

    /// Whether nothing is to be sent and nothing is open.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.open == 0 && (self.sent >= self.work || self.stops())
    }

    /// Whether it sends no further commands.
    #[inline]
    pub(super) fn stops(&self) -> bool {
        self.cancelled || self.failed_at != NOWHERE
    }

    /// Notes that the command at `at` failed. The lowest one counts, since all bytes before it are good.
    pub(super) fn fail(&mut self, at: u32, fault: Fault) {
        self.moved |= !fault.is_not_applied();
        if at < self.failed_at {
            (self.failed_at, self.fault) = (at, fault);
        }
    }

    /// Its end: all bytes; the bytes before the first that failed, so that the error of the next try names the place; or
    /// the fault.
    #[inline]
    pub(super) fn done(&self) -> IoDone {
        let bytes = |units: u32| if self.moves() { units } else { 0 };
        let result = match self.failed_at {
            NOWHERE if self.sent >= self.work => Ok(bytes(self.work)),
            NOWHERE => Err(Fault::new(ErrorKind::Cancelled, 0)),
            0 => Err(self.final_fault()),
            _ if self.cancelled || self.fault.kind == ErrorKind::NoDevice => Err(self.fault),
            at => Ok(bytes(at)),
        };
        IoDone { token: self.token, result, aside: 0 }
    }

    /// The fault, for an I/O of which the first command failed. That nothing was written is said of all commands or not at all.
    fn final_fault(&self) -> Fault {
        if self.moved { Fault { outcome: WriteOutcome::Unknown, ..self.fault } } else { self.fault }
    }

    /// Whether it moves bytes.
    #[inline]
    pub(super) fn moves(&self) -> bool {
        matches!(self.kind, IoKind::Read | IoKind::Write)
    }

    /// The memory of `len` bytes from byte `at` on, and how many pieces that is.
    #[inline]
    pub(super) fn memory(&self, at: u32, len: u32) -> ([Segment; MAX_SEGMENTS], usize) {
        let mut pieces = [NO_SEGMENT; MAX_SEGMENTS];
        let (mut skip, mut left, mut count) = (u64::from(at), u64::from(len), 0);
        for segment in self.segments.iter().take(usize::from(self.segment_count)) {
            let (have, start) = (segment.len.0, segment.iova.raw());
            if skip >= have {
                skip -= have;
                continue;
            }
            let take = (have - skip).min(left);
            if take == 0 {
                break;
            }
            // Inside a mapping, so that it does not wrap.
            pieces[count] = Segment { iova: Iova::new(start + skip), len: ByteLen(take) };
            (skip, left, count) = (0, left - take, count + 1);
        }
        (pieces, count)
    }
}

/// A fixed number of places.
#[derive(Debug)]
pub(super) struct Parents {
    all: Box<[Parent]>,
    free: Vec<u32>,
}

impl Parents {
    pub(super) fn new(count: u32) -> Self {
        let all = (0..count).map(|_| Parent::empty()).collect();
        Self { all, free: (0..count).rev().collect() }
    }

    /// How many are in use.
    #[inline]
    pub(super) fn live_count(&self) -> usize {
        self.all.len() - self.free.len()
    }

    /// Takes a place, with the fields of its last use.
    #[inline]
    pub(super) fn take(&mut self) -> Option<(u32, &mut Parent)> {
        let index = self.free.pop()?;
        let parent = self.all.get_mut(index as usize)?;
        parent.live = true;
        (parent.cancelled, parent.moved, parent.retries) = (false, false, 0);
        (parent.sent, parent.open, parent.failed_at) = (0, 0, NOWHERE);
        Some((index, parent))
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Parent> {
        self.all.get_mut(index as usize).filter(|parent| parent.live)
    }

    /// Frees a place; gives the end of its I/O.
    #[inline]
    pub(super) fn finish(&mut self, index: u32) -> Option<IoDone> {
        let parent = self.all.get_mut(index as usize).filter(|parent| parent.live)?;
        parent.live = false;
        self.free.push(index);
        Some(parent.done())
    }

    /// Places in use that `which` chooses.
    pub(super) fn indexes(&self, which: impl Fn(&Parent) -> bool) -> Vec<u32> {
        (0..).zip(&self.all).filter(|(_, parent)| parent.live && which(parent)).map(|(index, _)| index).collect()
    }
}
