//! A small controller: registers, admin commands, reads, writes and flushes, in order or reversed, and the lies and
//! failures that tests ask for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sw_mem::{ByteLen, DmaRegion, model_span};

use crate::{
    status::Status,
    wire::{
        Command, Completion, DataPointer,
        admin::opcode as admin,
        command::opcode as io,
        completion::CompletionFields,
        regs::{self, Cc},
    },
};

/// Where queue memory lies, and where regions do.
const QUEUE_BASE: u64 = 0x10_0000;
const REGION_BASE: u64 = 0x1_0000_0000;

/// Memory that the controller reaches.
#[derive(Default)]
pub(crate) struct Memory {
    queue: Vec<u8>,
    regions: Vec<(u64, DmaRegion)>,
    next_region: u64,
    /// Whether `allocate` and `map` refuse.
    pub(crate) full: bool,
    /// Addresses that no mapping covers.
    pub(crate) faults: Vec<u64>,
}

impl Memory {
    pub(crate) fn allocate(&mut self, len: usize) -> Option<u64> {
        let at = self.queue.len();
        self.queue.resize(at + len, 0);
        (!self.full).then_some(QUEUE_BASE + at as u64)
    }

    pub(crate) fn map(&mut self, region: &DmaRegion) -> Option<u64> {
        if let Some((iova, _)) = self.regions.iter().find(|(_, mapped)| mapped.id() == region.id()) {
            return Some(*iova);
        }
        if self.full {
            return None;
        }
        // The offset in the page is that of the memory, and a hole follows.
        let iova = REGION_BASE + self.next_region + region.base().raw() % 4096;
        self.next_region += region.len().0.next_multiple_of(4096) + 0x10_0000;
        self.regions.push((iova, region.clone()));
        Some(iova)
    }

    pub(crate) fn forget(&mut self, region: sw_mem::RegionId) {
        self.regions.retain(|(_, mapped)| mapped.id() != region);
    }

    /// What the end of a region does to its mapping.
    pub(crate) fn unmap(&mut self, id: sw_mem::RegionId) {
        self.regions.retain(|(_, region)| region.id() != id);
    }

    fn queue_range(&self, at: u64, len: usize) -> Option<core::ops::Range<usize>> {
        let start = usize::try_from(at.checked_sub(QUEUE_BASE)?).ok()?;
        (start + len <= self.queue.len()).then_some(start..start + len)
    }

    fn region_at(&mut self, at: u64, len: usize) -> Option<sw_mem::DmaSpan> {
        let hit = |(iova, region): &&(u64, DmaRegion)| at >= *iova && at + len as u64 <= *iova + region.len().0;
        match self.regions.iter().find(hit) {
            Some((iova, region)) => Some(model_span(region, at - iova, ByteLen(len as u64)).unwrap()),
            None => {
                self.faults.push(at);
                None
            }
        }
    }

    pub(crate) fn read(&mut self, at: u64, to: &mut [u8]) -> bool {
        if let Some(range) = self.queue_range(at, to.len()) {
            to.copy_from_slice(&self.queue[range]);
            return true;
        }
        self.region_at(at, to.len()).is_some_and(|span| span.read(0, to).is_ok())
    }

    pub(crate) fn write(&mut self, at: u64, from: &[u8]) -> bool {
        if let Some(range) = self.queue_range(at, from.len()) {
            self.queue[range].copy_from_slice(from);
            return true;
        }
        self.region_at(at, from.len()).is_some_and(|span| span.write(0, from).is_ok())
    }
}

pub(crate) struct ModelNamespace {
    pub(crate) nsid: u32,
    pub(crate) block_log2: u8,
    pub(crate) metadata_bytes: u16,
    pub(crate) boundary_blocks: u16,
    /// NPWG and NPWA; 0 for not reported.
    pub(crate) write_blocks: u16,
    pub(crate) uuid: Option<[u8; 16]>,
    /// Every read and write fails with an error of the medium.
    pub(crate) bad: bool,
    pub(crate) data: Vec<u8>,
}

impl ModelNamespace {
    pub(crate) fn new(nsid: u32, block_log2: u8, blocks: usize) -> Self {
        let data = (0..blocks << block_log2).map(|at| u8::try_from((at * 31 + at / 4096) % 251).unwrap()).collect();
        Self { nsid, block_log2, metadata_bytes: 0, boundary_blocks: 0, write_blocks: 0, uuid: None, bad: false, data }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Forward,
    Reverse,
}

/// What the controller does wrong, once, with its next I/O completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    Twice,
    StaleCid,
    UnknownCid,
    OtherQueue,
    HeadPastTail,
    HeadOutside,
}

#[derive(Clone)]
pub(crate) struct Ring {
    base: u64,
    entries: u32,
    at: u32,
    phase: bool,
    doorbell: u32,
    /// Vector of a completion ring, if it has one.
    vector: Option<u16>,
    cq_id: u16,
}

pub(crate) struct Model {
    pub(crate) memory: Memory,
    pub(crate) now_ns: u64,
    pub(crate) vectors: u16,
    pub(crate) barriers: u64,
    pub(crate) full_barriers: u64,
    pub(crate) waits: u64,
    pub(crate) stops: u64,
    pub(crate) can_stop: bool,
    pub(crate) namespaces: Vec<ModelNamespace>,
    pub(crate) order: Order,
    /// I/O commands are taken and not completed.
    pub(crate) hold: bool,
    /// When they are completed.
    pub(crate) release_at: Option<u64>,
    /// So many I/O commands are lost for ever.
    pub(crate) lose: u32,
    pub(crate) lie: Option<Lie>,
    /// Statuses of the next I/O commands that move data; they move none then.
    pub(crate) statuses: VecDeque<Status>,
    pub(crate) gone: bool,
    /// The system says so.
    pub(crate) told_gone: bool,
    pub(crate) fatal: bool,
    /// RDY follows EN so much later.
    pub(crate) ready_after_ns: u64,
    /// CRTO.
    pub(crate) crto: u32,
    /// RDY never falls.
    pub(crate) stays_ready: bool,
    /// Admin commands with this opcode are not answered.
    pub(crate) mute: Option<u8>,
    /// Admin commands with this opcode fail.
    pub(crate) refuse: Option<(u8, Status)>,
    /// So often; none is without an end.
    pub(crate) refusals: Option<u32>,
    /// No admin command is answered.
    pub(crate) deaf: bool,
    /// Data of Identify never reaches memory, and its status is success.
    pub(crate) nothing_lands: bool,
    pub(crate) queues_given: u16,
    pub(crate) mqes: u16,
    pub(crate) mdts: u8,
    pub(crate) write_cache: bool,
    pub(crate) crdt1: u16,
    pub(crate) shadow_offered: bool,
    pub(crate) sgl_offered: bool,
    pub(crate) version: u32,
    pub(crate) cap_high: u32,
    pub(crate) interrupts_lost: bool,
    /// What the model saw.
    pub(crate) admin_log: Vec<u8>,
    pub(crate) io_log: Vec<Command>,
    pub(crate) doorbell_writes: Vec<(u32, u32)>,
    pub(crate) bad_doorbells: u32,
    pub(crate) cc: u32,
    pub(crate) shst: u32,
    pub(crate) ready: bool,
    pub(crate) ready_at: Option<(u64, bool)>,
    pub(crate) aqa: u32,
    pub(crate) asq: u64,
    pub(crate) acq: u64,
    pub(crate) cmbmsc: u32,
    pub(crate) sqs: BTreeMap<u16, Ring>,
    pub(crate) cqs: BTreeMap<u16, Ring>,
    pub(crate) pending: Vec<(u16, Command)>,
    pub(crate) events: VecDeque<u32>,
    pub(crate) requests: VecDeque<u16>,
    pub(crate) raised: BTreeSet<u16>,
    pub(crate) shadow: Option<(u64, u64)>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            memory: Memory::default(),
            now_ns: 0,
            vectors: 4,
            barriers: 0,
            full_barriers: 0,
            waits: 0,
            stops: 0,
            can_stop: true,
            namespaces: vec![ModelNamespace::new(1, 9, 4096)],
            order: Order::Forward,
            hold: false,
            release_at: None,
            lose: 0,
            lie: None,
            statuses: VecDeque::new(),
            gone: false,
            told_gone: false,
            fatal: false,
            ready_after_ns: 1_000_000,
            crto: 0,
            stays_ready: false,
            mute: None,
            refuse: None,
            refusals: None,
            deaf: false,
            nothing_lands: false,
            queues_given: 8,
            mqes: 127,
            mdts: 5,
            write_cache: true,
            crdt1: 0,
            shadow_offered: false,
            sgl_offered: false,
            version: 0x0001_0400,
            cap_high: 0,
            interrupts_lost: false,
            admin_log: Vec::new(),
            io_log: Vec::new(),
            doorbell_writes: Vec::new(),
            bad_doorbells: 0,
            cc: 0,
            shst: 0,
            ready: false,
            ready_at: None,
            aqa: 0,
            asq: 0,
            acq: 0,
            cmbmsc: 0,
            sqs: BTreeMap::new(),
            cqs: BTreeMap::new(),
            pending: Vec::new(),
            events: VecDeque::new(),
            requests: VecDeque::new(),
            raised: BTreeSet::new(),
            shadow: None,
        }
    }
}

impl Model {
    pub(crate) fn take_interrupts(&mut self, watched: &[u16]) -> bool {
        watched.iter().filter(|vector| self.raised.remove(vector)).count() > 0
    }

    pub(crate) fn let_time_pass(&mut self) {
        if let Some((at, ready)) = self.ready_at.filter(|(at, _)| *at <= self.now_ns) {
            let _ = at;
            self.ready = ready;
            self.ready_at = None;
        }
        if self.release_at.is_some_and(|at| at <= self.now_ns) {
            self.release_at = None;
            self.release();
        }
        self.look_at_shadows();
    }

    /// All DMA ends.
    pub(crate) fn kill(&mut self) {
        self.sqs.clear();
        self.cqs.clear();
        self.pending.clear();
        self.gone = true;
    }

    pub(crate) fn raise(&mut self, event: u32) {
        self.events.push_back(event);
        self.deliver_events();
    }

    /// A completion for a command that the controller was never told of.
    pub(crate) fn forge(&mut self, qid: u16, cid: u16) {
        self.post(qid, cid, Status::SUCCESS, 0, None);
    }

    /// Completes what is held.
    pub(crate) fn release(&mut self) {
        self.hold = false;
        self.execute_pending();
    }

    pub(crate) fn read32(&mut self, at: u32) -> u32 {
        self.let_time_pass();
        if self.gone {
            return u32::MAX;
        }
        match at {
            // Half a second of TO, contiguous queues, stride 4, NVM command set, 4 KiB pages.
            regs::CAP => u32::from(self.mqes) | 1 << 16 | 1 << 24,
            0x04 => 1 << 5 | self.cap_high,
            regs::VS => self.version,
            regs::CC => self.cc,
            regs::CSTS => u32::from(self.ready) | u32::from(self.fatal) << 1 | self.shst << 2,
            // 4 MiB of controller memory in BAR 2, once it was switched on.
            regs::CMBLOC if self.cmbmsc & 1 == 1 => 2,
            regs::CMBSZ if self.cmbmsc & 1 == 1 => 4 << 12 | 2 << 8 | 0x1F,
            regs::CMBMSC => self.cmbmsc,
            regs::CRTO => self.crto,
            _ => 0,
        }
    }

    pub(crate) fn write32(&mut self, at: u32, value: u32) {
        self.let_time_pass();
        if self.gone {
            return;
        }
        let half = |whole: u64, value: u32, high: bool| {
            if high { whole & 0xFFFF_FFFF | u64::from(value) << 32 } else { whole >> 32 << 32 | u64::from(value) }
        };
        match at {
            regs::CC => self.set_cc(value),
            regs::AQA => self.aqa = value,
            regs::ASQ => self.asq = half(self.asq, value, false),
            0x2C => self.asq = half(self.asq, value, true),
            regs::ACQ => self.acq = half(self.acq, value, false),
            0x34 => self.acq = half(self.acq, value, true),
            regs::CMBMSC => self.cmbmsc = value,
            regs::DOORBELLS.. => self.doorbell((at - regs::DOORBELLS) / 4, value),
            _ => {}
        }
    }

    fn set_cc(&mut self, value: u32) {
        let (was, is) = (Cc::from_raw(self.cc).is_enabled(), Cc::from_raw(value).is_enabled());
        self.cc = value;
        if value >> 14 & 3 == 1 && self.ready {
            self.shst = 2;
        }
        if is && !was {
            let ring =
                |base, entries, doorbell| Ring { base, entries, at: 0, phase: true, doorbell, vector: None, cq_id: 0 };
            self.sqs.insert(0, ring(self.asq, (self.aqa & 0xFFF) + 1, 0));
            self.cqs.insert(0, ring(self.acq, (self.aqa >> 16 & 0xFFF) + 1, 0));
            self.ready_at = Some((self.now_ns + self.ready_after_ns, true));
            self.shst = 0;
        }
        if was && !is && !self.stays_ready {
            self.sqs.clear();
            self.cqs.clear();
            self.pending.clear();
            self.requests.clear();
            self.shadow = None;
            self.fatal = false;
            self.ready_at = Some((self.now_ns + self.ready_after_ns, false));
        }
    }

    fn doorbell(&mut self, index: u32, value: u32) {
        self.doorbell_writes.push((index, value));
        let qid = u16::try_from(index / 2).unwrap();
        let rings = if index.is_multiple_of(2) { &mut self.sqs } else { &mut self.cqs };
        match rings.get_mut(&qid) {
            Some(ring) if value < ring.entries => ring.doorbell = value,
            _ => self.bad_doorbells += 1,
        }
        self.fetch(qid);
    }

    /// Takes tails and heads from the shadow buffer, as a device that polls it does. The event index stays one behind: no
    /// register is needed for what comes next.
    fn look_at_shadows(&mut self) {
        let Some((doorbells, events)) = self.shadow else { return };
        let qids: Vec<u16> = self.sqs.keys().copied().filter(|qid| *qid != 0).collect();
        for qid in qids {
            let word = |side: u64| (2 * u64::from(qid) + side) * 4;
            let (mut tail, mut head) = ([0; 4], [0; 4]);
            assert!(
                self.memory.read(doorbells + word(0), &mut tail) && self.memory.read(doorbells + word(1), &mut head)
            );
            let entries = self.sqs[&qid].entries;
            let behind = |word: [u8; 4]| ((u32::from_le_bytes(word) + entries - 1) % entries).to_le_bytes();
            assert!(self.memory.write(events + word(0), &behind(tail)));
            assert!(self.memory.write(events + word(1), &behind(head)));
            if let Some(sq) = self.sqs.get_mut(&qid) {
                sq.doorbell = u32::from_le_bytes(tail);
            }
            if let Some(cq) = self.cqs.get_mut(&qid) {
                cq.doorbell = u32::from_le_bytes(head);
            }
            self.fetch(qid);
        }
    }

    fn fetch(&mut self, qid: u16) {
        while let Some(sq) = self.sqs.get(&qid).cloned() {
            if sq.at == sq.doorbell {
                break;
            }
            let mut entry = [0; 64];
            assert!(self.memory.read(sq.base + u64::from(sq.at) * 64, &mut entry), "the ring is not mapped");
            if let Some(sq) = self.sqs.get_mut(&qid) {
                sq.at = (sq.at + 1) % sq.entries;
            }
            self.pending.push((qid, Command::new(entry)));
        }
        self.execute_pending();
    }

    fn execute_pending(&mut self) {
        let mut batch = core::mem::take(&mut self.pending);
        if self.order == Order::Reverse {
            batch.reverse();
        }
        for (qid, command) in batch {
            if qid == 0 {
                self.admin(command);
            } else if self.hold {
                self.pending.push((qid, command));
            } else {
                self.io(qid, command);
            }
        }
    }

    fn complete(&mut self, qid: u16, command: &Command, status: Status, dw0: u32) {
        self.post(qid, command.cid(), status, dw0, None);
    }

    fn post(&mut self, qid: u16, cid: u16, status: Status, dw0: u32, lie: Option<Lie>) {
        let Some(sq) = self.sqs.get(&qid).cloned() else { return };
        let Some(cq) = self.cqs.get_mut(&sq.cq_id) else { return };
        let head = u16::try_from(sq.at).unwrap();
        let (sq_id, cid, head) = match lie {
            Some(Lie::OtherQueue) => (qid + 1, cid, head),
            Some(Lie::StaleCid) => (qid, cid.wrapping_sub(u16::try_from(sq.entries).unwrap()), head),
            Some(Lie::UnknownCid) => (qid, cid ^ 0x8000, head),
            Some(Lie::HeadPastTail) => (qid, cid, u16::try_from((sq.doorbell + 1) % sq.entries).unwrap()),
            Some(Lie::HeadOutside) => (qid, cid, u16::try_from(sq.entries).unwrap()),
            _ => (qid, cid, head),
        };
        assert_ne!((cq.at + 1) % cq.entries, cq.doorbell, "the completion ring overflows");
        let entry = Completion::build(CompletionFields { dw0, sq_id, sq_head: head, cid, phase: cq.phase, status });
        let at = cq.base + u64::from(cq.at) * 16;
        cq.at = (cq.at + 1) % cq.entries;
        cq.phase ^= cq.at == 0;
        if let Some(vector) = cq.vector.filter(|_| !self.interrupts_lost) {
            self.raised.insert(vector);
        }
        assert!(self.memory.write(at, entry.bytes()), "the ring is not mapped");
    }

    fn io(&mut self, qid: u16, command: Command) {
        self.io_log.push(command);
        if self.lose > 0 {
            self.lose -= 1;
            return;
        }
        let status = match command.opcode() {
            io::FLUSH => Status::SUCCESS,
            io::READ | io::WRITE => match self.statuses.pop_front() {
                Some(status) if !status.is_success() => status,
                _ => self.move_blocks(&command),
            },
            _ => Status::INVALID_OPCODE.with_dnr(),
        };
        let lie = self.lie.take();
        self.post(qid, command.cid(), status, 0, lie);
        if lie == Some(Lie::Twice) {
            self.post(qid, command.cid(), status, 0, None);
        }
    }

    fn move_blocks(&mut self, command: &Command) -> Status {
        let range = command.range();
        let Some(at) = self.namespaces.iter().position(|namespace| namespace.nsid == range.nsid) else {
            return Status::INVALID_NAMESPACE.with_dnr();
        };
        if self.namespaces[at].bad {
            return Status::UNRECOVERED_READ.with_dnr();
        }
        let shift = self.namespaces[at].block_log2;
        let start = usize::try_from(range.slba).unwrap() << shift;
        let len = sw_mem::index(u64::from(range.nlb.get())) << shift;
        if self.mdts > 0 && len > 4096 << self.mdts {
            return Status::INVALID_FIELD.with_dnr();
        }
        if start + len > self.namespaces[at].data.len() {
            return Status::LBA_OUT_OF_RANGE.with_dnr();
        }
        let Some(pieces) = self.walk(command.data_pointer(), len) else { return Status::INVALID_PRP_OFFSET };
        let mut done = start;
        for (iova, piece) in pieces {
            let range = done..done + piece;
            done += piece;
            let there = if command.opcode() == io::READ {
                let bytes = self.namespaces[at].data[range].to_vec();
                self.memory.write(iova, &bytes)
            } else {
                let mut bytes = vec![0; piece];
                let there = self.memory.read(iova, &mut bytes);
                self.namespaces[at].data[range].copy_from_slice(&bytes);
                there
            };
            if !there {
                return Status::DATA_TRANSFER_ERROR;
            }
        }
        Status::SUCCESS
    }

    /// The pieces of memory that PRP entries name; `None` if they break the rules.
    fn walk(&mut self, pointer: DataPointer, len: usize) -> Option<Vec<(u64, usize)>> {
        let (prp1, prp2) = match pointer {
            DataPointer::Prp(prp1, prp2) => (prp1, prp2),
            DataPointer::Sgl(descriptor) => return self.scattered(descriptor, len),
            DataPointer::None => return None,
        };
        let first = len.min(4096 - usize::try_from(prp1 % 4096).unwrap());
        let mut pieces = vec![(prp1, first)];
        let mut left = len - first;
        if left > 0 && left <= 4096 {
            pieces.push((prp2, left));
        } else if left > 0 {
            let mut list = prp2;
            while left > 0 {
                let mut entry = [0; 8];
                assert!(self.memory.read(list, &mut entry), "the list is not mapped");
                let value = u64::from_le_bytes(entry);
                list += 8;
                if list.is_multiple_of(4096) && left > 4096 {
                    list = value;
                    continue;
                }
                pieces.push((value, left.min(4096)));
                left -= left.min(4096);
            }
        }
        pieces.iter().skip(1).all(|(iova, _)| iova.is_multiple_of(4096)).then_some(pieces)
    }

    /// The pieces of a last segment of data blocks.
    fn scattered(&mut self, descriptor: [u8; 16], len: usize) -> Option<Vec<(u64, usize)>> {
        let parts = |raw: &[u8]| {
            let address = u64::from_le_bytes(raw[..8].try_into().unwrap());
            (raw[15] >> 4, address, u32::from_le_bytes(raw[8..12].try_into().unwrap()) as usize)
        };
        let (kind, address, bytes) = parts(&descriptor);
        if !self.sgl_offered || kind != 3 {
            return None;
        }
        let mut list = vec![0; bytes];
        assert!(self.memory.read(address, &mut list), "the list is not mapped");
        let pieces: Vec<_> = list.chunks_exact(16).map(parts).collect();
        let fits =
            pieces.iter().all(|(kind, ..)| *kind == 0) && pieces.iter().map(|(.., len)| len).sum::<usize>() == len;
        fits.then(|| pieces.into_iter().map(|(_, address, len)| (address, len)).collect())
    }

    fn deliver_events(&mut self) {
        while !self.requests.is_empty()
            && let Some(event) = self.events.pop_front()
            && let Some(cid) = self.requests.pop_front()
        {
            self.post(0, cid, Status::SUCCESS, event, None);
        }
    }

    fn admin(&mut self, command: Command) {
        let opcode = command.opcode();
        self.admin_log.push(opcode);
        if self.deaf || self.mute == Some(opcode) {
            return;
        }
        let left = self.refusals != Some(0);
        if let Some((_, status)) = self.refuse.filter(|(refused, _)| left && *refused == opcode) {
            self.refusals = self.refusals.map(|left| left - 1);
            return self.complete(0, &command, status, 0);
        }
        if opcode == admin::ASYNC_EVENT_REQUEST {
            self.requests.push_back(command.cid());
            return self.deliver_events();
        }
        let (status, dw0) = self.answer(&command);
        self.complete(0, &command, status, dw0);
    }

    fn answer(&mut self, command: &Command) -> (Status, u32) {
        let (c10, c11) = (command.dword(10), command.dword(11));
        let (low, high) = (u16::try_from(c10 & 0xFFFF).unwrap(), u16::try_from(c10 >> 16).unwrap());
        let DataPointer::Prp(prp1, prp2) = command.data_pointer() else { return (Status::INVALID_FIELD, 0) };
        let ring = |vector, cq_id| Ring {
            base: prp1,
            entries: u32::from(high) + 1,
            at: 0,
            phase: true,
            doorbell: 0,
            vector,
            cq_id,
        };
        match command.opcode() {
            admin::IDENTIFY if self.nothing_lands => (Status::SUCCESS, 0),
            admin::IDENTIFY => match self.identify(c10 & 0xFF, command.nsid()) {
                Some(page) => {
                    assert!(self.memory.write(prp1, &page));
                    (Status::SUCCESS, 0)
                }
                None => (Status::INVALID_NAMESPACE.with_dnr(), 0),
            },
            admin::CREATE_CQ if low == 0 || high > self.mqes || self.cqs.contains_key(&low) => {
                (Status::INVALID_QUEUE_ID, 0)
            }
            admin::CREATE_CQ => {
                let vector = (c11 & 2 != 0).then(|| u16::try_from(c11 >> 16).unwrap());
                self.cqs.insert(low, ring(vector, 0));
                (Status::SUCCESS, 0)
            }
            admin::CREATE_SQ if high > self.mqes || self.sqs.contains_key(&low) || !self.cqs.contains_key(&low) => {
                (Status::INVALID_QUEUE_ID, 0)
            }
            admin::CREATE_SQ => {
                self.sqs.insert(low, ring(None, u16::try_from(c11 >> 16).unwrap()));
                (Status::SUCCESS, 0)
            }
            admin::DELETE_SQ => {
                let (mine, others) = self.pending.drain(..).partition(|(qid, _)| *qid == low);
                self.pending = others;
                let mine: Vec<(u16, Command)> = mine;
                mine.iter().for_each(|(qid, command)| self.complete(*qid, command, Status::ABORTED_SQ_DELETION, 0));
                let status = if self.sqs.remove(&low).is_some() { Status::SUCCESS } else { Status::INVALID_QUEUE_ID };
                (status, 0)
            }
            admin::DELETE_CQ if self.sqs.contains_key(&low) => (Status::INVALID_QUEUE_DELETION, 0),
            admin::DELETE_CQ if self.cqs.remove(&low).is_some() => (Status::SUCCESS, 0),
            admin::DELETE_CQ => (Status::INVALID_QUEUE_ID, 0),
            admin::SET_FEATURES if c10 & 0xFF == 0x07 => {
                let given = u32::from(self.queues_given - 1);
                (Status::SUCCESS, given << 16 | given)
            }
            admin::SET_FEATURES => (Status::SUCCESS, 0),
            admin::GET_LOG_PAGE => {
                let len = (sw_mem::index(u64::from(high)) + 1) * 4;
                assert!(self.memory.write(prp1, &vec![0; len]));
                (Status::SUCCESS, 0)
            }
            admin::ABORT => self.abort(low, high),
            admin::DOORBELL_BUFFER_CONFIG if self.shadow_offered => {
                self.shadow = Some((prp1, prp2));
                (Status::SUCCESS, 0)
            }
            _ => (Status::INVALID_OPCODE.with_dnr(), 0),
        }
    }

    fn abort(&mut self, qid: u16, cid: u16) -> (Status, u32) {
        match self.pending.iter().position(|(queue, command)| *queue == qid && command.cid() == cid) {
            Some(at) => {
                let (qid, command) = self.pending.remove(at);
                self.complete(qid, &command, Status::ABORT_REQUESTED, 0);
                (Status::SUCCESS, 0)
            }
            None => (Status::SUCCESS, 1),
        }
    }

    fn identify(&self, cns: u32, nsid: u32) -> Option<[u8; 4096]> {
        let mut page = [0u8; 4096];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        let named = || self.namespaces.iter().find(|namespace| namespace.nsid == nsid);
        match cns {
            0 => {
                let Some(namespace) = named() else { return Some(page) };
                let blocks = (namespace.data.len() >> namespace.block_log2) as u64;
                put(0, &blocks.to_le_bytes());
                put(8, &blocks.to_le_bytes());
                if let Some(blocks_z) = namespace.write_blocks.checked_sub(1) {
                    put(24, &[1 << 4]);
                    put(64, &blocks_z.to_le_bytes());
                    put(66, &blocks_z.to_le_bytes());
                }
                put(46, &namespace.boundary_blocks.to_le_bytes());
                put(128, &namespace.metadata_bytes.to_le_bytes());
                put(130, &[namespace.block_log2]);
            }
            1 => {
                put(4, b"SERIAL              ");
                put(24, b"Model drive                             ");
                put(64, b"1.0     ");
                put(77, &[self.mdts]);
                put(92, &(1u32 << 8).to_le_bytes());
                put(128, &self.crdt1.to_le_bytes());
                put(256, &(u16::from(self.shadow_offered) << 8).to_le_bytes());
                put(258, &[3, 2]);
                put(512, &[0x66, 0x44]);
                put(516, &8u32.to_le_bytes());
                put(525, &[u8::from(self.write_cache)]);
                put(536, &[u8::from(self.sgl_offered)]);
            }
            2 => {
                let mut ids: Vec<u32> =
                    self.namespaces.iter().map(|namespace| namespace.nsid).filter(|id| *id > nsid).collect();
                ids.sort_unstable();
                for (at, id) in ids.iter().take(1024).enumerate() {
                    put(4 * at, &id.to_le_bytes());
                }
            }
            3 => {
                if let Some(uuid) = named()?.uuid {
                    put(0, &[3, 16, 0, 0]);
                    put(4, &uuid);
                }
            }
            _ => return None,
        }
        Some(page)
    }
}
