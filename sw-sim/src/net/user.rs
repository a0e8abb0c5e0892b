//! Callers: what they ask for, the memory that they lend for it, and what they are told.

use std::collections::BTreeMap;

use sw_engine::{
    ErrorKind, ObjectId, Retry, Token,
    seam::{Io, IoDone, IoKind, MemorySegment},
};
use sw_mem::{HostVa, Place, RegionId};
use sw_nvme::directory;

use super::{
    Shared,
    history::{Answer, BLOCK},
    target::tag_of,
};
use crate::log::Mark;

/// What memory of a read holds before.
const POISON: u8 = 0xA7;
/// Bits of an address that are an offset in an operation's memory.
const OFFSET_BITS: u32 = 20;
/// Times that an operation is given to the transport; the engine's number is its own.
const TRIES_MAX: u32 = 4;

/// The memory of operations, and whether it is lent.
#[derive(Default)]
pub(crate) struct Arena {
    memory: BTreeMap<u64, (Vec<u8>, Lent)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lent {
    /// To a read, which writes it.
    ToRead,
    /// To a write, which reads it.
    ToWrite,
    /// It is the caller's.
    No,
}

fn split(address: u64) -> (u64, usize) {
    (address >> OFFSET_BITS, sw_mem::index(address & ((1 << OFFSET_BITS) - 1)))
}

impl Arena {
    /// Bytes that the transport reads.
    pub(crate) fn take(&mut self, address: u64, len: u64, shared: &mut Shared) -> Vec<u8> {
        let (op, at) = split(address);
        match self.memory.get(&op) {
            Some((bytes, Lent::ToWrite)) => bytes.get(at..at + sw_mem::index(len)).unwrap_or_default().to_vec(),
            _ => {
                shared.violate("memory", format!("memory of op {op} is sent, and is not lent to a write"));
                Vec::new()
            }
        }
    }

    /// Bytes that the transport writes.
    pub(crate) fn land(&mut self, address: u64, bytes: &[u8], shared: &mut Shared) {
        let (op, at) = split(address);
        match self.memory.get_mut(&op) {
            Some((memory, Lent::ToRead)) => {
                memory.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
            }
            _ => shared.violate("memory", format!("bytes land in memory of op {op}, which is not lent to a read")),
        }
    }
}

/// An operation.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) lane: usize,
    pub(crate) kind: IoKind,
    pub(crate) slba: u64,
    pub(crate) blocks: u64,
    /// It is called off then.
    pub(crate) deadline: Option<u64>,
    begun: u64,
    tries: u32,
    /// Its user was told that its outcome is unknown.
    is_told: bool,
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct User {
    pub(crate) arena: Arena,
    pub(crate) live: BTreeMap<u64, Op>,
    next: u64,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) bytes: u64,
}

/// The tag that an operation writes into its block of this number.
fn tag(op: u64, block: u64) -> u64 {
    op << 8 | block
}

impl User {
    /// Operations so far.
    pub(crate) fn count(&self) -> u64 {
        self.next
    }

    /// Lends memory for an operation, and gives the I/O of it.
    pub(crate) fn begin(&mut self, mut op: Op, shared: &mut Shared) -> Io {
        self.next += 1;
        let number = self.next;
        let len = sw_mem::index(op.blocks) * BLOCK;
        let (memory, lent) = match op.kind {
            IoKind::Write => {
                let words = (0..op.blocks).flat_map(|block| [tag(number, block).to_le_bytes(); BLOCK / 8]);
                (words.flatten().collect(), Lent::ToWrite)
            }
            _ => (vec![POISON; len], Lent::ToRead),
        };
        self.arena.memory.insert(number, (memory, lent));
        op.begun = shared.now();
        shared.note("op", &[number, op.kind as u64, op.slba, op.blocks, op.lane as u64]);
        self.again(number, op, shared)
    }

    /// Gives an operation to its lane, for the first time or once more.
    fn again(&mut self, number: u64, mut op: Op, shared: &mut Shared) -> Io {
        op.tries += 1;
        if op.kind == IoKind::Write {
            for block in 0..op.blocks {
                shared.history.writes(shared.agenda.now(), op.slba + block, tag(number, block));
            }
        }
        let len = u32::try_from(sw_mem::index(op.blocks) * BLOCK).unwrap_or(0);
        let place = Place::Host(HostVa::new(number << OFFSET_BITS));
        let segment = MemorySegment { place, len, region: RegionId(1) };
        let io = Io {
            token: Token::from_raw(number),
            kind: op.kind,
            object: ObjectId(1),
            handle: directory::handle(0, 1),
            offset: op.slba * BLOCK as u64,
            len,
            segment_count: 1,
            segments: [segment; 3],
        };
        self.live.insert(number, op);
        io
    }

    /// The deadline of a write is over, and the lane cannot take it back.
    pub(crate) fn told(&mut self, number: u64, shared: &mut Shared) {
        let Some(op) = self.live.get_mut(&number) else { return };
        op.is_told = true;
        shared.mark(Mark::NetToldUnknown);
        for block in op.slba..op.slba + op.blocks {
            let broken = shared.history.answered(shared.agenda.now(), tag(number, block - op.slba), Answer::Unknown);
            broken.into_iter().for_each(|(rule, text)| shared.violate(rule, text));
        }
    }

    /// A lane says how an I/O ended; gives the I/O that is to be tried again, with its lane.
    pub(crate) fn ended(&mut self, done: &IoDone, shared: &mut Shared) -> Option<(usize, Io)> {
        let number = done.token.raw();
        let Some(op) = self.live.remove(&number) else {
            shared.violate("status", format!("op {number} ends, and is not under way"));
            return None;
        };
        let now = shared.now();
        let len = u32::try_from(sw_mem::index(op.blocks) * BLOCK).unwrap_or(0);
        shared.note("op ended", &[number, u64::from(done.result.is_ok())]);
        let is_late = op.deadline.is_some_and(|deadline| now >= deadline);
        if let Err(fault) = done.result
            && fault.retry == Retry::Now
            && op.tries < TRIES_MAX
            && !is_late
        {
            let mark =
                if fault.kind == ErrorKind::ChecksumMismatch { Mark::NetWrongDigest } else { Mark::NetAskedAgain };
            shared.mark(mark);
            let lane = op.lane;
            return Some((lane, self.again(number, op, shared)));
        }
        let bytes = match self.arena.memory.get_mut(&number) {
            Some((bytes, lent)) => {
                *lent = Lent::No;
                core::mem::take(bytes)
            }
            None => Vec::new(),
        };
        let is_whole = done.result.is_ok_and(|moved| moved == len);
        match op.kind {
            IoKind::Read if is_whole => self.read(number, &op, &bytes, shared),
            IoKind::Write if !op.is_told => self.written(number, &op, done, shared),
            _ => {}
        }
        if let Err(fault) = done.result
            && fault.kind == ErrorKind::Cancelled
        {
            shared.mark(Mark::NetCancelled);
        }
        if is_whole || (op.kind == IoKind::FlushData && done.result.is_ok()) {
            (self.done, self.bytes) = (self.done + 1, self.bytes + u64::from(len));
        } else {
            self.failed += 1;
        }
        None
    }

    fn read(&mut self, number: u64, op: &Op, bytes: &[u8], shared: &mut Shared) {
        for (block, bytes) in (op.slba..).zip(bytes.as_chunks::<BLOCK>().0) {
            let Some(tag) = tag_of(bytes) else {
                return shared.violate("reads", format!("op {number} reads block {block}, and it is not of one write"));
            };
            let span = (op.begun, shared.now());
            let broken = shared.history.read(span, block, tag);
            broken.into_iter().for_each(|(rule, text)| shared.violate(rule, format!("op {number}: {text}")));
        }
    }

    fn written(&mut self, number: u64, op: &Op, done: &IoDone, shared: &mut Shared) {
        let answer = match done.result {
            Ok(_) => Answer::Done,
            // Of none of these was a command sent that is not answered.
            Err(fault) if matches!(fault.kind, ErrorKind::Cancelled | ErrorKind::NoDevice | ErrorKind::Changed) => {
                Answer::Failed
            }
            Err(_) => Answer::Unknown,
        };
        for block in 0..op.blocks {
            let broken = shared.history.answered(shared.agenda.now(), tag(number, block), answer);
            broken.into_iter().for_each(|(rule, text)| shared.violate(rule, text));
        }
    }
}

impl Op {
    pub(crate) fn new(lane: usize, kind: IoKind, (slba, blocks): (u64, u64)) -> Self {
        Self { lane, kind, slba, blocks, deadline: None, begun: 0, tries: 0, is_told: false }
    }
}
