//! A lane of a host: operations, the memory that callers lend for them, and the product's session under them.

use std::{collections::BTreeMap, sync::Arc};

use sw_engine::seam::verbs::{Device, Presence};
use sw_mem::{Buffer, ByteLen, DmaRegion, DmaSpan};
use sw_nvme::{
    rdma::{
        Memory as Left, Shelf,
        session::{Over, Session, SessionConfig, Windows},
    },
    tcp::host::{End, Outcome, Range, Transfer},
    wire::{BlockCount, Command, DataPointer, IoFlags, LbaRange},
};

use super::{
    Shared,
    params::{BLOCK, RdmaParams},
    target::{Nobody, Peer},
};
use crate::log::Mark;

/// After so long without an answer a lane ends its connection, as the product does by its ledger.
pub(super) const COMMAND_NS: u64 = 20_000_000;
/// How long the last completions of a queue pair are waited for.
pub(super) const DRAIN_NS: u64 = 1_000_000;
/// What a caller does to memory that is his again.
const SCRIBBLE: u8 = 0x5C;
/// What memory of a read holds before.
const POISON: u8 = 0xA7;

/// Whom memory is lent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lent {
    /// A read, which writes it.
    ToRead,
    /// A write, which reads it.
    ToWrite,
    /// Nobody.
    No,
}

/// An operation.
struct Op {
    is_write: bool,
    slba: u64,
    blocks: u64,
    /// Which buffer, and the first byte in it.
    buffer: usize,
    at: u64,
    cid: u16,
    since: u64,
}

impl Op {
    fn bytes(&self) -> u64 {
        self.blocks * BLOCK as u64
    }

    fn covers(&self, slba: u64, blocks: u64) -> bool {
        slba < self.slba + self.blocks && self.slba < slba + blocks
    }
}

struct Memory<'a> {
    ops: &'a BTreeMap<u32, Op>,
    buffers: &'a [(DmaSpan, Lent)],
}

impl Windows for Memory<'_> {
    fn window(&self, of: Range) -> Option<(DmaRegion, u64)> {
        let op = self.ops.get(&of.user)?;
        let (span, _) = self.buffers.get(op.buffer)?;
        Some((span.region().clone(), span.offset() + op.at + u64::from(of.at)))
    }
}

enum State {
    /// To be connected, with the next look.
    Down,
    Up(Box<(Session, Peer)>),
    /// Over; until then it is waited for what is flushed.
    Draining(Box<(Session, Peer)>, u64),
    /// Its NIC is gone.
    Gone,
}

/// See the module documentation.
pub(super) struct Lane {
    number: usize,
    device: Arc<dyn Device>,
    shelf: Arc<Shelf>,
    state: State,
    ops: BTreeMap<u32, Op>,
    buffers: Vec<(DmaSpan, Lent)>,
    pub(super) medium: Vec<[u8; BLOCK]>,
    next: u32,
    pub(super) stalled_until: u64,
    pub(super) ok: u64,
    pub(super) failed: u64,
    pub(super) bytes: u64,
}

/// The bytes that a write puts into a block.
fn content(lane: usize, op: u32, block: u64) -> [u8; BLOCK] {
    let tag = (lane as u64) << 56 | u64::from(op) << 16 | block;
    let mut bytes = [0; BLOCK];
    bytes
        .as_chunks_mut::<8>()
        .0
        .iter_mut()
        .zip(1u64..)
        .for_each(|(word, at)| *word = tag.wrapping_mul(2 * at + 1).to_le_bytes());
    bytes
}

impl Lane {
    pub(super) fn new(number: usize, device: Arc<dyn Device>, params: &RdmaParams) -> Option<Self> {
        let len = params.blocks_max * BLOCK as u64 + 64;
        let buffer = |_| Some((Buffer::allocate(ByteLen(len)).ok()?.into_span(), Lent::No));
        let buffers = (0..params.buffers).map(buffer).collect::<Option<Vec<_>>>()?;
        let medium = (0..params.blocks).map(|block| content(number, 0, block)).collect();
        Some(Self {
            number,
            device,
            shelf: Arc::default(),
            state: State::Down,
            ops: BTreeMap::new(),
            buffers,
            medium,
            next: 0,
            stalled_until: 0,
            ok: 0,
            failed: 0,
            bytes: 0,
        })
    }

    pub(super) fn live(&self) -> usize {
        self.ops.len()
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }

    pub(super) fn peer(&mut self) -> Option<&mut Peer> {
        match &mut self.state {
            State::Up(up) | State::Draining(up, _) => Some(&mut up.1),
            State::Down | State::Gone => None,
        }
    }

    /// The peer with the medium behind it.
    pub(super) fn peer_and_medium(&mut self) -> Option<(&mut Peer, &mut [[u8; BLOCK]])> {
        match &mut self.state {
            State::Up(up) | State::Draining(up, _) => Some((&mut up.1, &mut self.medium)),
            State::Down | State::Gone => None,
        }
    }

    /// Whom a region is lent to; `None`: it is no caller's.
    pub(super) fn lent(&self, region: sw_mem::RegionId) -> Option<Lent> {
        self.buffers.iter().find(|(span, _)| span.region().id() == region).map(|(_, lent)| *lent)
    }

    /// Asks for something, if there is memory for it and nobody else is about the same blocks.
    pub(super) fn ask(&mut self, shared: &mut Shared, params: &RdmaParams) {
        let blocks = shared.rng.range(1, params.blocks_max);
        let slba = shared.rng.below(params.blocks - blocks + 1);
        let free = self.buffers.iter().position(|(_, lent)| *lent == Lent::No);
        let is_busy = self.ops.values().any(|op| op.covers(slba, blocks));
        let State::Up(up) = &mut self.state else { return };
        let Some(buffer) = free.filter(|_| !is_busy && up.0.commands().room() > 0) else { return };
        let is_write = shared.rng.per_mille(params.writes);
        let (number, at) = (self.next + 1, shared.rng.below(8) * 8);
        let Some(nlb) = u32::try_from(blocks).ok().and_then(BlockCount::new) else { return };
        let (range, len) = (LbaRange { nsid: 1, slba, nlb }, u32::try_from(blocks * BLOCK as u64).unwrap_or(0));
        let (command, transfer) = if is_write {
            (Command::write(range, DataPointer::None, IoFlags::default()), Transfer::Out(len))
        } else {
            (Command::read(range, DataPointer::None, IoFlags::default()), Transfer::In(len))
        };
        let Some(cid) = up.0.queue().submit(&command, transfer, number) else { return };
        self.next = number;
        shared.asked += 1;
        shared.note("op", &[self.number as u64, number.into(), u64::from(is_write), slba, blocks]);
        if let Some((span, lent)) = self.buffers.get_mut(buffer) {
            *lent = if is_write { Lent::ToWrite } else { Lent::ToRead };
            let _ = span.fill(0, span.len().0, POISON);
            for block in (0..blocks).filter(|_| is_write) {
                let _ = span.write(at + block * BLOCK as u64, &content(self.number, number, block));
            }
        }
        self.ops.insert(number, Op { is_write, slba, blocks, buffer, at, cid, since: shared.now() });
    }

    /// Does what can be done now.
    pub(super) fn visit(&mut self, shared: &mut Shared, params: &RdmaParams) {
        if let State::Down = self.state {
            self.connect(shared, params);
        }
        if let State::Up(up) = &mut self.state {
            let memory = Memory { ops: &self.ops, buffers: &self.buffers };
            let moved = up.0.receive().and_then(|_| up.0.send(&memory));
            if up.0.commands().has_capsules() {
                shared.mark(Mark::RdmaNoRoom);
            }
            if up.0.tally().windows_refused > 0 {
                shared.mark(Mark::RdmaWindowRefused);
            }
            self.take_ends(shared);
            let is_late = self.ops.values().any(|op| shared.now() > op.since + COMMAND_NS);
            let silent = || Over::Verbs("a command is late".to_owned());
            match moved {
                Err(over) => self.lose(&over, shared),
                Ok(()) if is_late => self.lose(&silent(), shared),
                Ok(()) => {}
            }
        }
        self.drain(shared);
    }

    fn connect(&mut self, shared: &mut Shared, params: &RdmaParams) {
        let config = SessionConfig {
            depth: params.depth,
            registering: params.registering,
            shelf: Arc::clone(&self.shelf),
            rnr_wait: core::time::Duration::from_secs(1),
        };
        let staging = u32::try_from(params.blocks_max * BLOCK as u64).unwrap_or(0);
        let peer = Peer::new(&shared.target, params.depth, (params.capsule_data_bytes, staging));
        match (Session::new(&self.device, Arc::new(Nobody), config), peer) {
            (Ok(mut session), Some(peer)) => {
                shared.fabric.join(session.qp().number(), peer.qp.number());
                session.set_capsule_data_bytes(params.capsule_data_bytes);
                shared.note("connected", &[self.number as u64]);
                self.state = State::Up(Box::new((session, peer)));
            }
            _ if self.device.presence() == Presence::Gone => self.state = State::Gone,
            (Err(error), _) => shared.violate("liveness", format!("no queue is made: {error}")),
            // Another target's NIC takes over.
            (Ok(_), None) => shared.replace_target(),
        }
    }

    /// Ends a connection on this side.
    pub(super) fn lose(&mut self, over: &Over, shared: &mut Shared) {
        let State::Up(mut up) = core::mem::replace(&mut self.state, State::Down) else { return };
        shared.note("lost", &[self.number as u64]);
        shared.mark(if matches!(over, Over::Gone(_)) { Mark::RdmaNicGone } else { Mark::RdmaLost });
        if shared.is_calm {
            shared.violate("liveness", format!("a connection is over where nothing goes wrong: {over:?}"));
        }
        up.0.disconnect();
        self.state = State::Draining(up, shared.now() + DRAIN_NS);
    }

    fn drain(&mut self, shared: &mut Shared) {
        let State::Draining(up, until) = &mut self.state else { return };
        if !up.0.drain() && shared.now() < *until {
            return;
        }
        if up.0.release() == Left::Stays {
            shared.violate("memory", "it is said to stay, and the NICs of the model let go of it".to_owned());
        }
        // What ended before it was lost keeps its end.
        self.take_ends(shared);
        self.state = if self.device.presence() == Presence::Gone { State::Gone } else { State::Down };
        for op in core::mem::take(&mut self.ops).into_values() {
            self.failed += 1;
            self.give_back(&op);
        }
    }

    fn take_ends(&mut self, shared: &mut Shared) {
        let (State::Up(up) | State::Draining(up, _)) = &mut self.state else { return };
        let ends: Vec<End> = core::iter::from_fn(|| up.0.pop_end()).collect();
        let lied = up.1.lied.clone();
        for end in ends {
            self.ended(&end, &lied, shared);
        }
    }

    fn ended(&mut self, end: &End, lied: &[u16], shared: &mut Shared) {
        let Some(op) = self.ops.remove(&end.user) else {
            return shared.violate("ends", format!("operation {} ends and is not under way", end.user));
        };
        shared.note("end", &[self.number as u64, end.user.into()]);
        if let Outcome::Told(status) = end.outcome
            && status.is_success()
        {
            self.ok += 1;
            self.bytes += op.bytes();
            self.check(end.user, &op, shared);
        } else {
            shared.violate("ends", format!("operation {} ends with {:?}", end.user, end.outcome));
        }
        if lied.contains(&op.cid) {
            let text = format!("operation {} ends well by an answer that invalidated another command's key", end.user);
            shared.violate("keys", text);
        }
        self.give_back(&op);
    }

    /// What an operation that succeeded did.
    fn check(&mut self, number: u32, op: &Op, shared: &mut Shared) {
        for block in 0..op.blocks {
            let lba = op.slba + block;
            let held = self.medium.get(sw_mem::index(lba)).copied().unwrap_or([0; BLOCK]);
            let mut got = [0; BLOCK];
            if let Some((span, _)) = self.buffers.get(op.buffer) {
                let _ = span.read(op.at + block * BLOCK as u64, &mut got);
            }
            if op.is_write {
                got = content(self.number, number, block);
            }
            if got != held {
                let what = if op.is_write { "written and is not there" } else { "read and is not what is there" };
                shared.violate("data", format!("block {lba} of operation {number} was {what}"));
            }
        }
    }

    fn give_back(&mut self, op: &Op) {
        if let Some((span, lent)) = self.buffers.get_mut(op.buffer) {
            *lent = Lent::No;
            let _ = span.fill(0, span.len().0, SCRIBBLE);
        }
    }

    /// What is on the medium at the end is what was told, or may be.
    pub(super) fn judge(&self, shared: &mut Shared) {
        if self.live() > 0 {
            shared.violate("liveness", format!("{} operations of lane {} do not end", self.live(), self.number));
        }
        if let State::Up(up) = &self.state
            && up.0.commands().under_way() > 0
        {
            shared.violate(
                "places",
                format!("{} places are taken, and nothing is under way", up.0.commands().under_way()),
            );
        }
    }

    /// Everything goes.
    pub(super) fn end(&mut self) {
        self.state = State::Gone;
    }
}
