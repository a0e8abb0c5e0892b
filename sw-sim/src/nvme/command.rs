//! A command from the moment it was fetched to its entry.
//!
//! The memory of a command belongs to the controller from the fetch until the entry is written, or until CSTS.RDY is 0.
//! Whatever the driver does with it in between is found by the shadow.

use super::{
    NvmeAct, NvmeEvent, QueueKind, Step,
    iommu::Reached,
    prp::{Bad, walk},
    rings::Noisy,
    sgl,
};
use crate::{
    log::Mark,
    shadow::{Access, Spot, Way},
};

/// What goes into a completion queue entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// The submission queue.
    pub(super) queue: u16,
    pub(super) cid: u16,
    /// SC, SCT above bit 8, CRD above bit 11, DNR at bit 14: the status field without its phase.
    pub(super) status: u16,
    pub(super) dw0: u32,
    /// What is wrong with the entry.
    pub(super) act: Option<NvmeAct>,
}

/// A submission queue entry, by its double words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sqe([u32; 16]);

impl Sqe {
    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut words = [0; 16];
        words.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, from)| *to = u32::from_le_bytes(*from));
        Self(words)
    }

    /// CDW n.
    pub(super) fn word(&self, n: usize) -> u32 {
        self.0.get(n).copied().unwrap_or(0)
    }

    pub(super) fn low(&self, n: usize) -> u16 {
        u16::try_from(self.word(n) & 0xFFFF).unwrap_or(0)
    }

    pub(super) fn high(&self, n: usize) -> u16 {
        u16::try_from(self.word(n) >> 16).unwrap_or(0)
    }

    pub(super) fn wide(&self, n: usize) -> u64 {
        u64::from(self.word(n)) | u64::from(self.word(n + 1)) << 32
    }

    pub(super) fn opcode(&self) -> u8 {
        u8::try_from(self.word(0) & 0xFF).unwrap_or(0)
    }

    /// PSDT: 0 for PRP entries, 1 for a scatter gather list.
    pub(super) fn pointer(&self) -> u32 {
        self.word(0) >> 14 & 3
    }

    pub(super) fn cid(&self) -> u16 {
        self.high(0)
    }

    pub(super) fn nsid(&self) -> u32 {
        self.word(1)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) queue: u16,
    pub(super) sqe: Sqe,
    /// The stretch of stores in which it was rung: what it reads was stored before.
    rung: u64,
    /// Addresses and lengths of its memory, in order.
    pub(super) runs: Vec<(u64, u64)>,
    /// What was there when it was fetched.
    pub(super) pieces: Vec<Reached>,
    /// Names of its accesses in the shadow.
    pub(super) owned: Vec<u64>,
    pub(super) act: Option<NvmeAct>,
    /// It ends without an Execute event of its own, when an abort wins.
    pub(super) aborted: bool,
    /// Its entry is out; only its data is late.
    pub(super) late: bool,
}

/// SCT and SC of a write that finds no space.
const CAPACITY_EXCEEDED: (u8, u8) = (0, 0x81);

/// A status: SCT and SC, the others zero.
pub(super) const fn status(kind: u16, code: u16) -> u16 {
    kind << 8 | code
}

pub(super) const SUCCESS: u16 = 0;
/// DNR: it fails again.
pub(super) const NEVER: u16 = 1 << 14;
pub(super) const INVALID_OPCODE: u16 = NEVER | status(0, 0x01);
pub(super) const INVALID_FIELD: u16 = NEVER | status(0, 0x02);
pub(super) const TRANSFER_ERROR: u16 = status(0, 0x04);
pub(super) const ABORT_REQUESTED: u16 = status(0, 0x07);
pub(super) const SQ_DELETED: u16 = status(0, 0x08);
pub(super) const INVALID_NAMESPACE: u16 = NEVER | status(0, 0x0B);
pub(super) const SEQUENCE_ERROR: u16 = NEVER | status(0, 0x0C);
pub(super) const PRP_OFFSET: u16 = NEVER | status(0, 0x13);
pub(super) const LBA_RANGE: u16 = NEVER | status(0, 0x80);

impl Step<'_> {
    /// The command's name in the shadow.
    fn who(&self, command: u64) -> u64 {
        (1 << 60) | (self.number as u64) << 40 | command
    }

    /// An entry was fetched.
    pub(super) fn accept(&mut self, queue: u16, bytes: &[u8], rung: u64) {
        let sqe = Sqe::new(bytes);
        let name = self.ctrl.next_command;
        self.ctrl.next_command += 1;
        let words = [
            self.number as u64,
            name,
            queue.into(),
            sqe.cid().into(),
            sqe.opcode().into(),
            sqe.wide(10),
            sqe.word(12).into(),
        ];
        self.note("command", &words);
        let twice =
            self.ctrl.commands.values().any(|open| !open.late && open.queue == queue && open.sqe.cid() == sqe.cid());
        if twice {
            self.violate("slots", format!("CID {:#x} of queue {queue} is used while a command has it", sqe.cid()));
        }
        let kind = if queue == 0 { QueueKind::Admin } else { QueueKind::Io };
        let act = self.ctrl.rules.decide(kind, sqe.opcode());
        let (runs, pieces, owned) = (Vec::new(), Vec::new(), Vec::new());
        let command = Command { queue, sqe, rung, runs, pieces, owned, act, aborted: false, late: false };
        self.ctrl.commands.insert(name, command);
        let lists = queue > 0 && self.ctrl.params.lists > 0;
        if sqe.word(0) >> 8 & 0x3F != 0 || sqe.pointer() > u32::from(lists) {
            self.violate("wire", format!("opcode {:#x} with FUSE or PSDT set: {:#x}", sqe.opcode(), sqe.word(0)));
            return self.finish(name, INVALID_FIELD, 0);
        }
        if kind == QueueKind::Admin && sqe.opcode() == super::admin::EVENT_REQUEST {
            return self.take_event_request(name);
        }
        let len = match self.data_len(kind, &sqe) {
            Ok(len) => len,
            Err(status) => return self.finish(name, status, 0),
        };
        match self.reach(name, &sqe, len, rung) {
            Ok(()) => self.schedule(name),
            Err(status) => self.finish(name, status, 0),
        }
    }

    fn data_len(&mut self, kind: QueueKind, sqe: &Sqe) -> Result<u64, u16> {
        match kind {
            QueueKind::Admin => self.admin_data_len(sqe),
            QueueKind::Io => self.io_data_len(sqe),
        }
    }

    /// Walks the command's pages and begins to own them.
    fn reach(&mut self, name: u64, sqe: &Sqe, len: u64, rung: u64) -> Result<(), u16> {
        let page = self.ctrl.registers.page();
        let unit = u64::from(self.ctrl.params.lists).max(1);
        let read = |at, len| {
            self.ctrl.counts.list_bytes += len;
            self.dma_read(at, len, rung)
        };
        let runs = if sqe.pointer() == 1 {
            let mut first = [0; 16];
            first
                .as_chunks_mut()
                .0
                .iter_mut()
                .zip([sqe.wide(6), sqe.wide(8)])
                .for_each(|(to, from)| *to = from.to_le_bytes());
            sgl::walk(first, len, unit, read)
        } else {
            walk(sqe.wide(6), sqe.wide(8), len, page, read)
        };
        let runs = match runs {
            Ok(runs) => runs,
            Err(Bad::Entry(text)) => {
                self.violate("wire", format!("opcode {:#x} over {len} bytes: {text}", sqe.opcode()));
                return Err(PRP_OFFSET);
            }
            Err(Bad::Unreadable(at)) => {
                self.sent_astray("a PRP list", at);
                return Err(TRANSFER_ERROR);
            }
        };
        let pieces = self.translate_all(&runs).map_err(|(at, len)| {
            self.sent_astray(&format!("{len} bytes of opcode {:#x}", sqe.opcode()), at);
            TRANSFER_ERROR
        })?;
        let (now, who) = (self.now(), self.who(name));
        // Bits 1:0 of the opcode: 01b host to controller, 10b controller to host.
        let access = if sqe.opcode() & 3 == 2 { Access::Writes } else { Access::Reads };
        let spots = pieces.iter().filter_map(spot).collect::<Vec<_>>();
        let owned = spots.into_iter().map(|spot| self.shadow.begin(now, spot, access, who)).collect();
        if let Some(command) = self.ctrl.commands.get_mut(&name) {
            (command.runs, command.pieces, command.owned) = (runs, pieces, owned);
        }
        Ok(())
    }

    /// What is at the addresses of a command, in order, or the first of them where nothing is.
    pub(super) fn translate_all(&mut self, runs: &[(u64, u64)]) -> Result<Vec<Reached>, (u64, u64)> {
        let mut pieces = Vec::new();
        for (at, len) in runs.iter().copied() {
            let found = self.translate(at, len).ok_or((at, len))?;
            found.into_iter().for_each(|piece| join(&mut pieces, piece));
        }
        Ok(pieces)
    }

    /// What is at a command's addresses as its data moves: what was there when it was fetched, if the driver holds it so
    /// long. Whatever it is, it is touched; nothing, if nothing is there.
    fn reached_now(&mut self, name: u64) -> Vec<Reached> {
        let Some(command) = self.ctrl.commands.get(&name) else { return Vec::new() };
        let (runs, then, opcode) = (command.runs.clone(), command.pieces.clone(), command.sqe.opcode());
        match self.translate_all(&runs) {
            Ok(now) => {
                if now != then {
                    self.violate("aliasing", format!("data of opcode {opcode:#x} meets {now:?}, sent to {then:?}"));
                }
                now
            }
            Err((at, _)) => {
                self.sent_astray(&format!("data of opcode {opcode:#x}, once mapped"), at);
                Vec::new()
            }
        }
    }

    fn schedule(&mut self, name: u64) {
        let Some(command) = self.ctrl.commands.get(&name) else { return };
        let (act, reads) = (command.act, command.sqe.opcode() & 3 == 2 && command.queue > 0);
        let params = &self.ctrl.params;
        let ((low, high), tail, scribble) = (params.latency_ns, params.tail, params.scribble);
        let mut delay = self.ctrl.latency.range(low, high);
        if self.ctrl.latency.per_mille(tail.0) {
            delay += tail.1;
        }
        if let Some(NvmeAct::Slow(more)) = act {
            delay += more;
        }
        if reads && self.ctrl.moods.per_mille(scribble) {
            self.plan(delay / 2, NvmeEvent::Scribble { command: name });
        }
        if act == Some(NvmeAct::Lost) {
            self.mark(Mark::NvmeLost);
            return self.note("lost", &[self.number as u64, name]);
        }
        self.plan(delay, NvmeEvent::Execute { command: name });
    }

    pub(super) fn scribble(&mut self, name: u64) {
        let Some(pieces) = self.ctrl.commands.get(&name).map(|command| command.pieces.clone()) else { return };
        self.mark(Mark::ScribbledBeforeLanding);
        let (now, who) = (self.now(), self.who(name));
        for spot in pieces.iter().filter_map(spot) {
            let noise: Vec<u8> = (0..spot.len).map(|at| at.to_le_bytes()[0] ^ 0x3A).collect();
            self.shadow.land(now, spot, who, &noise, Way::Untouched);
        }
    }

    /// The command does what it is for and ends.
    pub(super) fn execute(&mut self, name: u64) {
        if self.ctrl.stuck {
            return;
        }
        let Some(command) = self.ctrl.commands.get(&name).filter(|command| !command.late) else { return };
        let (queue, sqe, act, aborted) = (command.queue, command.sqe, command.act, command.aborted);
        if aborted {
            self.mark(Mark::NvmeAbortWon);
            return self.finish(name, ABORT_REQUESTED, 0);
        }
        if let Some(NvmeAct::Fail(fail)) = act {
            self.mark(if fail.do_not_retry { Mark::NvmeFailed } else { Mark::NvmeFailedForNow });
            // A delay is named to hosts that know of it (Host Behavior Support, ACRE).
            let delay = if self.ctrl.features.contains_key(&super::admin::HOST_BEHAVIOR) { fail.delay & 3 } else { 0 };
            let retry = u16::from(delay) << 11 | u16::from(fail.do_not_retry) << 14;
            // No space and "later" are refusals: nothing moved.
            if fail.do_not_retry && queue > 0 && (fail.kind, fail.code) != CAPACITY_EXCEEDED {
                self.move_some(name);
            }
            return self.finish(name, status(fail.kind.into(), fail.code.into()) | retry, 0);
        }
        let (status, dw0) = if queue == 0 { self.execute_admin(name, &sqe) } else { (self.execute_io(name, &sqe), 0) };
        if self.ctrl.commands.contains_key(&name) {
            self.finish(name, status, dw0);
        }
    }

    /// Gives the entry, and lets go of the memory before it can be seen.
    pub(super) fn finish(&mut self, name: u64, status: u16, dw0: u32) {
        let late = self.ctrl.commands.get(&name).and_then(|command| match command.act {
            Some(NvmeAct::LateData(delay)) if command.queue > 0 && !command.pieces.is_empty() && status == 0 => {
                Some(delay)
            }
            _ => None,
        });
        let command = match late {
            Some(_) => self.ctrl.commands.get_mut(&name),
            None => None,
        };
        let (queue, cid, act) = if let Some(command) = command {
            command.late = true;
            let (queue, cid, owned) = (command.queue, command.sqe.cid(), core::mem::take(&mut command.owned));
            owned.iter().for_each(|name| self.shadow.end(*name));
            (queue, cid, None)
        } else {
            let Some(command) = self.ctrl.commands.remove(&name) else { return };
            command.owned.iter().for_each(|name| self.shadow.end(*name));
            (command.queue, command.sqe.cid(), command.act)
        };
        if let Some(delay) = late {
            self.plan(delay, NvmeEvent::LateData { command: name });
        }
        self.give(Entry { queue, cid, status, dw0, act });
        self.lie_about(queue, cid, act);
    }

    fn lie_about(&mut self, queue: u16, cid: u16, act: Option<NvmeAct>) {
        let taken = self.ctrl.next_command;
        match act {
            Some(NvmeAct::Twice(delay)) => {
                self.mark(Mark::NvmeTwice);
                self.plan(delay, NvmeEvent::Extra { queue, cid, taken });
            }
            Some(NvmeAct::UnknownCid) => {
                self.mark(Mark::NvmeUnknownCid);
                let cid = self.ctrl.moods.range32(0, 0xFFFF);
                let cid = u16::try_from(cid).unwrap_or(0);
                let known = self.ctrl.commands.values().any(|open| open.queue == queue && open.sqe.cid() == cid);
                if !known {
                    self.plan(1, NvmeEvent::Extra { queue, cid, taken });
                }
            }
            Some(NvmeAct::Misplaced) => {
                let open = self.ctrl.commands.values().find(|open| open.queue == queue && !open.late);
                if let Some(cid) = open.map(|open| open.sqe.cid()) {
                    self.mark(Mark::NvmeMisplaced);
                    *self.lies += 1;
                    self.give(Entry { queue, cid, status: SUCCESS, dw0: 0, act: Some(NvmeAct::WrongSq) });
                }
            }
            Some(NvmeAct::WrongSq) => self.mark(Mark::NvmeWrongSq),
            Some(NvmeAct::WrongHead) => self.mark(Mark::NvmeWrongHead),
            Some(NvmeAct::WrongPhase) => self.mark(Mark::NvmeWrongPhase),
            _ => {}
        }
        let extra = self.ctrl.noise.map_or(0, |noise| noise.extra);
        if self.ctrl.moods.per_mille(extra) {
            let stale = self.ctrl.ended.front().copied();
            let (queue, cid) = stale.unwrap_or((queue, cid));
            self.plan(1, NvmeEvent::Extra { queue, cid, taken });
        }
    }

    /// Puts bytes where the command's pages are, as far as they go.
    pub(super) fn put_data(&mut self, name: u64, bytes: &mut [u8]) {
        self.garble(bytes, Noisy::Data);
        let pieces = self.reached_now(name);
        let (now, who) = (self.now(), self.who(name));
        let mut left = &*bytes;
        for piece in pieces {
            let (Reached::Queue(_, _, len) | Reached::Region(_, _, len)) = piece;
            let (here, rest) = left.split_at(left.len().min(sw_mem::index(len)));
            match piece {
                _ if here.is_empty() => {}
                Reached::Queue(memory, at, _) => self.memories.device_write(memory, at, here),
                Reached::Region(region, at, _) => {
                    let spot = Spot { region, at, len: here.len() as u64 };
                    self.shadow.land(now, spot, who, here, Way::Dma);
                }
            }
            left = rest;
        }
    }

    /// The bytes that the command's pages hold.
    pub(super) fn take_data(&mut self, name: u64) -> Vec<u8> {
        let Some(rung) = self.ctrl.commands.get(&name).map(|command| command.rung) else { return Vec::new() };
        let pieces = self.reached_now(name);
        let (now, who) = (self.now(), self.who(name));
        let mut bytes = Vec::new();
        for piece in pieces {
            match piece {
                Reached::Queue(memory, at, len) => {
                    let (read, complaint) = self.memories.device_read(memory, at, len, rung);
                    self.complain(complaint);
                    bytes.extend(read);
                }
                Reached::Region(region, at, len) => {
                    bytes.extend(self.shadow.fetch(now, Spot { region, at, len }, who, Way::Dma));
                }
            }
        }
        bytes
    }
}

/// The shadow's name for a piece, if it is memory that has owners.
pub(super) fn spot(piece: &Reached) -> Option<Spot> {
    match *piece {
        Reached::Region(region, at, len) => Some(Spot { region, at, len }),
        Reached::Queue(..) => None,
    }
}

/// Appends a piece; one that goes on where the last one ended makes it longer.
fn join(pieces: &mut Vec<Reached>, piece: Reached) {
    match (pieces.last_mut(), piece) {
        (Some(Reached::Region(region, at, len)), Reached::Region(next, from, more))
            if *region == next && *at + *len == from =>
        {
            *len += more;
        }
        (Some(Reached::Queue(name, at, len)), Reached::Queue(next, from, more))
            if *name == next && *at + *len == from =>
        {
            *len += more;
        }
        _ => pieces.push(piece),
    }
}
