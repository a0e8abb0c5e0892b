//! The controller model, spoken to by hand: what is right is done, and what is wrong is found.

use std::time::Duration;

use sw_engine::Time;
use sw_mem::{Buffer, ByteLen, DmaRegion};
use sw_nvme::bus::{Bus, QueueMemory, Registers, Waiter};

use super::{
    Mishap, NamespaceParams, NvmeAct, NvmeParams, NvmeRule, OnCommand, SimBus, SimMemory, SimRegisters, StatusParams,
};
use crate::{
    hub::Hub,
    log::Mark,
    shadow::{Belongs, Violation},
};

const BLOCK: u32 = 512;
/// DNR in a status without its phase.
const DNR: u16 = 1 << 14;
const DISK: u64 = 256 << 10;

fn namespace() -> NamespaceParams {
    NamespaceParams { nsid: 1, disk: 0, block: BLOCK, metadata: 0, boundary_blocks: 0 }
}

fn calm() -> NvmeParams {
    NvmeParams::calm(vec![namespace()])
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cqe {
    dw0: u32,
    sq_head: u16,
    sq: u16,
    cid: u16,
    status: u16,
}

/// One ring pair, driven without any cleverness: one command at a time unless a test says otherwise.
struct Pair {
    qid: u32,
    entries: u32,
    sq: SimMemory,
    cq: SimMemory,
    tail: u32,
    head: u32,
    phase: u32,
}

struct Hand {
    hub: Hub,
    bus: SimBus,
    registers: SimRegisters,
    admin: Pair,
    io: Option<Pair>,
    cid: u16,
}

type Command = [u32; 16];

fn command(opcode: u32, nsid: u32) -> Command {
    let mut words = [0; 16];
    (words[0], words[1]) = (opcode, nsid);
    words
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xFFFF_FFFF).unwrap()
}

/// PRP1 and PRP2.
fn with_pages(mut words: Command, prp1: u64, prp2: u64) -> Command {
    words[6..10].copy_from_slice(&[low(prp1), low(prp1 >> 32), low(prp2), low(prp2 >> 32)]);
    words
}

fn transfer(opcode: u32, lba: u64, blocks: u32, prp1: u64, prp2: u64) -> Command {
    let mut words = with_pages(command(opcode, 1), prp1, prp2);
    (words[10], words[11], words[12]) = (low(lba), low(lba >> 32), blocks - 1);
    words
}

impl Pair {
    fn new(bus: &SimBus, qid: u32, entries: u32) -> Self {
        let memory = |bytes: u32| bus.allocate(bytes as usize * entries as usize).unwrap();
        Self { qid, entries, sq: memory(64), cq: memory(16), tail: 0, head: 0, phase: 1 }
    }

    fn stage(&mut self, words: &Command) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.sq.write(self.tail as usize * 64, &bytes);
        self.tail = (self.tail + 1) % self.entries;
    }

    fn take(&mut self) -> Option<Cqe> {
        let at = self.head as usize * 16;
        if self.cq.load32(at + 12) >> 16 & 1 != self.phase {
            return None;
        }
        self.cq.after_valid();
        let mut bytes = [0; 16];
        self.cq.read(at, &mut bytes);
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        self.head = (self.head + 1) % self.entries;
        if self.head == 0 {
            self.phase ^= 1;
        }
        let dw0 = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Some(Cqe { dw0, sq_head: half(8), sq: half(10), cid: half(12), status: half(14) >> 1 })
    }
}

impl Hand {
    /// A disk with its own bytes, and an enabled controller.
    fn new(params: NvmeParams) -> Self {
        let mut hand = Self::disabled(params);
        hand.enable();
        hand
    }

    fn disabled(params: NvmeParams) -> Self {
        let hub = Hub::new();
        hub.add_original_disk(DISK);
        let bus = hub.add_controller(params, 7);
        let admin = Pair::new(&bus, 0, 8);
        let registers = bus.registers();
        Self { hub, registers, admin, io: None, cid: 0, bus }
    }

    fn enable(&mut self) {
        self.admin.sq.before_doorbell();
        self.registers.write32(0x24, 7 | 7 << 16);
        self.registers.write64(0x28, self.admin.sq.iova().raw());
        self.registers.write64(0x30, self.admin.cq.iova().raw());
        self.registers.write32(0x14, 0x0046_0001);
        self.until(|registers| registers.read32(0x1C) & 1 == 1);
    }

    fn until(&self, done: impl Fn(&SimRegisters) -> bool) {
        for _ in 0..20_000 {
            if done(&self.registers) {
                return;
            }
            self.bus.pause(Duration::from_micros(500));
        }
        panic!("it never came: {:?}", self.hub.violations());
    }

    fn ring(&self, pair: &Pair) {
        pair.sq.before_doorbell();
        self.registers.write32(0x1000 + 8 * pair.qid, pair.tail);
    }

    fn answer(&self, pair: &mut Pair) -> Cqe {
        for _ in 0..10_000 {
            if let Some(cqe) = pair.take() {
                self.registers.write32(0x1000 + 8 * pair.qid + 4, pair.head);
                return cqe;
            }
            self.bus.pause(Duration::from_micros(10));
        }
        panic!("no entry in queue {}: {:?}", pair.qid, self.hub.violations());
    }

    fn run(&mut self, which: Which, words: Command) -> Cqe {
        let words = self.numbered(words);
        let mut pair = self.take_pair(which);
        pair.stage(&words);
        self.ring(&pair);
        let cqe = self.answer(&mut pair);
        self.put_pair(pair);
        assert_eq!(u32::from(cqe.cid), words[0] >> 16);
        cqe
    }

    fn numbered(&mut self, mut words: Command) -> Command {
        self.cid += 1;
        words[0] |= u32::from(self.cid) << 16;
        words
    }

    fn take_pair(&mut self, which: Which) -> Pair {
        match which {
            Which::Admin => core::mem::replace(&mut self.admin, Pair::new(&self.bus, 0, 2)),
            Which::Io => self.io.take().unwrap(),
        }
    }

    fn put_pair(&mut self, pair: Pair) {
        if pair.qid == 0 { self.admin = pair } else { self.io = Some(pair) }
    }

    fn admin(&mut self, words: Command) -> Cqe {
        self.run(Which::Admin, words)
    }

    /// I/O queue 1 of `entries`, with interrupts on vector 1.
    fn with_queue(mut self, entries: u32) -> Self {
        let mut features = command(0x09, 0);
        (features[10], features[11]) = (0x07, 0);
        assert_eq!(self.admin(features).status, 0);
        let pair = Pair::new(&self.bus, 1, entries);
        pair.cq.before_doorbell();
        let mut cq = with_pages(command(0x05, 0), pair.cq.iova().raw(), 0);
        (cq[10], cq[11]) = (1 | (entries - 1) << 16, 3 | 1 << 16);
        assert_eq!(self.admin(cq).status, 0);
        let mut sq = with_pages(command(0x01, 0), pair.sq.iova().raw(), 0);
        (sq[10], sq[11]) = (1 | (entries - 1) << 16, 1 | 1 << 16);
        assert_eq!(self.admin(sq).status, 0);
        self.io = Some(pair);
        self
    }

    fn io(&mut self, words: Command) -> Cqe {
        self.run(Which::Io, words)
    }

    /// Memory that is mapped, and its address. `user`: the operation that it is lent to.
    fn memory(&self, len: u64, user: u64) -> (DmaRegion, u64) {
        let region = Buffer::allocate(ByteLen(len)).unwrap().region().clone();
        self.hub.memory(&region, Belongs::Caller);
        self.hub.lock().shadow.lend(0, region.id(), 0, len, user);
        let iova = self.bus.map(&region).unwrap().raw();
        (region, iova)
    }

    fn rules(&self) -> Vec<&'static str> {
        self.hub.violations().iter().map(|violation| violation.rule).collect()
    }

    fn marks(&self, mark: Mark) -> u64 {
        self.hub.marks().count(mark)
    }
}

#[derive(Clone, Copy)]
enum Which {
    Admin,
    Io,
}

fn calm_so_far(hand: &Hand) {
    assert_eq!(hand.hub.violations(), Vec::<Violation>::new());
}

#[test]
fn it_becomes_ready_identifies_and_moves_bytes() {
    let mut hand = Hand::new(calm()).with_queue(16);
    let page = hand.bus.allocate(4096).unwrap();
    let mut identify = with_pages(command(0x06, 1), page.iova().raw(), 0);
    assert_eq!(hand.admin(identify).status, 0);
    let mut bytes = [0; 4096];
    page.read(0, &mut bytes);
    assert_eq!((u64::from_le_bytes(bytes[..8].try_into().unwrap()), bytes[130]), (DISK / 512, 9));
    identify[10] = 1;
    assert_eq!(hand.admin(identify).status, 0);
    page.read(0, &mut bytes);
    assert_eq!((&bytes[4..8], bytes[77]), (&b"sim0"[..], 5));
    let (region, iova) = hand.memory(16_384, 1);
    // Two pages from an odd place: PRP2 is the second page.
    let cqe = hand.io(transfer(0x02, 4, 8, iova + 512, iova + 4096));
    assert_eq!((cqe.status, cqe.sq, cqe.sq_head), (0, 1, 1));
    assert_eq!(hand.hub.peek(&region, 512, 4096), hand.hub.disk_bytes(0)[2048..6144]);
    assert_eq!(hand.hub.peek(&region, 0, 512), vec![0; 512]);
    hand.hub.poke(&region, 0, &[0xEE; 8192]);
    assert_eq!(hand.io(transfer(0x01, 0, 16, iova, iova + 4096)).status, 0);
    assert_eq!(hand.hub.disk_bytes(0)[..8192], [0xEE; 8192]);
    calm_so_far(&hand);
    let counts = hand.hub.nvme_counts(0);
    assert_eq!((counts.sq_doorbells, counts.fetched, counts.posted, counts.enables), (7, 7, 7, 1));
}

#[test]
fn a_list_is_walked_through_the_iommu() {
    let mut hand = Hand::new(calm()).with_queue(4);
    let (region, iova) = hand.memory(32 << 10, 1);
    let list = hand.bus.allocate(4096).unwrap();
    let entries: Vec<u8> = (1..8).flat_map(|n| (iova + n * 4096).to_le_bytes()).collect();
    list.write(0, &entries);
    assert_eq!(hand.io(transfer(0x02, 0, 64, iova, list.iova().raw())).status, 0);
    assert_eq!(hand.hub.peek(&region, 0, 32 << 10), hand.hub.disk_bytes(0)[..32 << 10]);
    calm_so_far(&hand);
    // An entry beside the mapping, and one with an offset.
    list.write(6 * 8, &(iova + (1 << 20)).to_le_bytes());
    assert_eq!(hand.io(transfer(0x02, 0, 64, iova, list.iova().raw())).status, 0x04);
    list.write(6 * 8, &(iova + 28 * 1024 + 4).to_le_bytes());
    assert_eq!(hand.io(transfer(0x02, 0, 64, iova, list.iova().raw())).status, DNR | 0x13);
    assert_eq!(hand.rules(), ["aliasing", "wire"]);
}

#[test]
fn what_is_asked_beyond_the_limits_is_found() {
    let params =
        NvmeParams { mdts: 1, namespaces: vec![NamespaceParams { boundary_blocks: 8, ..namespace() }], ..calm() };
    let mut hand = Hand::new(params).with_queue(4);
    let (_region, iova) = hand.memory(32 << 10, 1);
    let list = hand.bus.allocate(4096).unwrap();
    assert_eq!(hand.io(transfer(0x02, 0, 8, iova, 0)).status, 0);
    calm_so_far(&hand);
    assert_eq!(hand.io(transfer(0x02, 0, 24, iova, list.iova().raw())).status, DNR | 0x02);
    assert_eq!(hand.io(transfer(0x02, 4, 8, iova, 0)).status, 0);
    assert_eq!(hand.rules(), ["limits", "limits"]);
    assert_eq!(hand.io(transfer(0x02, DISK / 512 - 1, 2, iova, 0)).status, DNR | 0x80);
    assert_eq!(hand.io(command(0x7F, 1)).status, DNR | 0x01);
}

#[test]
fn a_doorbell_before_the_barrier_and_a_field_before_the_phase_are_found() {
    let mut hand = Hand::new(calm());
    let words = hand.numbered(with_pages(command(0x18, 0), 0, 0));
    let mut pair = hand.take_pair(Which::Admin);
    pair.stage(&words);
    hand.registers.write32(0x1000, pair.tail);
    hand.bus.pause(Duration::from_millis(1));
    assert_eq!(hand.rules(), ["order"]);
    let mut field = [0; 4];
    pair.cq.read(0, &mut field);
    assert_eq!(hand.rules(), ["order", "order"]);
}

#[test]
fn a_tail_over_the_head_and_a_head_over_the_tail_are_found() {
    let mut hand = Hand::new(calm()).with_queue(4);
    let mut pair = hand.take_pair(Which::Io);
    for _ in 0..3 {
        let words = hand.numbered(command(0x00, 1));
        pair.stage(&words);
    }
    hand.ring(&pair);
    calm_so_far(&hand);
    hand.registers.write32(0x1008, (pair.tail + 1) % 4);
    hand.registers.write32(0x1008, 9);
    hand.registers.write32(0x100C, 1);
    hand.registers.write32(0x1018, 0);
    assert_eq!(hand.rules(), ["limits"; 4]);
    assert_eq!(hand.marks(Mark::NvmeSqFull), 1);
}

#[test]
fn a_completion_queue_waits_for_its_head_and_flips_its_phase() {
    let mut hand = Hand::new(calm()).with_queue(2);
    for _ in 0..5 {
        assert_eq!(hand.io(command(0x00, 1)).status, 0);
    }
    assert_eq!(hand.marks(Mark::NvmeCqWrapped), 2);
    // Without the head's doorbell the second entry does not come.
    let mut pair = hand.take_pair(Which::Io);
    let mut taken = 0;
    for _ in 0..2 {
        let words = hand.numbered(command(0x00, 1));
        pair.stage(&words);
        hand.ring(&pair);
        hand.bus.pause(Duration::from_millis(1));
        taken += u32::from(pair.take().is_some());
    }
    assert_eq!((taken, hand.marks(Mark::NvmeCqFull)), (1, 1));
    hand.registers.write32(0x100C, pair.head);
    assert!(pair.take().is_some());
    calm_so_far(&hand);
}

#[test]
fn memory_that_is_freed_in_flight_is_found_and_a_reset_ends_what_was_in_flight() {
    let lost = NvmeRule { on: OnCommand { every: 1, ..OnCommand::default() }, act: NvmeAct::Lost };
    let mut hand = Hand::new(NvmeParams { rules: vec![lost], ..calm() }).with_queue(4);
    let (region, iova) = hand.memory(8192, 1);
    let words = hand.numbered(transfer(0x02, 0, 16, iova, iova + 4096));
    let mut pair = hand.take_pair(Which::Io);
    pair.stage(&words);
    hand.ring(&pair);
    hand.bus.pause(Duration::from_millis(5));
    hand.registers.write32(0x14, 0x0046_0000);
    assert_eq!(hand.registers.read32(0x1C) & 1, 1, "it takes a while");
    assert_eq!(hand.hub.lock().shadow.live_count(), 1);
    hand.until(|registers| registers.read32(0x1C) & 1 == 0);
    assert_eq!(hand.hub.lock().shadow.live_count(), 0);
    hand.hub.lock().shadow.give_back(0, region.id(), 0, 8192, 1);
    calm_so_far(&hand);
    hand.enable();
    assert_eq!((hand.hub.nvme_counts(0).enables, hand.marks(Mark::NvmeDroppedByReset)), (2, 1));
}

#[test]
fn a_region_is_unmapped_with_its_last_handle() {
    let mut hand = Hand::new(calm()).with_queue(4);
    let before = hand.hub.iommu_entries(0);
    let (region, iova) = hand.memory(8192, 1);
    assert_eq!(hand.bus.map(&region).unwrap().raw(), iova);
    assert_eq!(hand.hub.iommu_entries(0), before + 1);
    hand.hub.lock().shadow.forget(region.id());
    drop(region);
    assert_eq!(hand.hub.iommu_entries(0), before);
    assert_eq!(hand.io(transfer(0x02, 0, 1, iova, 0)).status, 0x04);
    assert_eq!(hand.rules(), ["aliasing"]);
    assert_eq!(hand.hub.nvme_counts(0).iommu_faults, 1);
}

#[test]
fn an_abort_wins_or_loses_and_counts() {
    let slow = NvmeRule { on: OnCommand::default(), act: NvmeAct::Slow(50_000_000) };
    let abort = |cid: u16| {
        let mut words = command(0x08, 0);
        words[10] = 1 | u32::from(cid) << 16;
        words
    };
    for (wins, status, dw0) in [(1000, 0x07, 0), (0, 0, 1)] {
        let mut hand = Hand::new(NvmeParams { rules: vec![slow], abort_wins: wins, ..calm() }).with_queue(4);
        let words = hand.numbered(command(0x00, 1));
        let mut pair = hand.take_pair(Which::Io);
        pair.stage(&words);
        hand.ring(&pair);
        hand.bus.pause(Duration::from_millis(1));
        let cid = u16::try_from(words[0] >> 16).unwrap();
        assert_eq!(hand.admin(abort(cid)).dw0, dw0);
        assert_eq!(hand.answer(&mut pair).status, status);
        calm_so_far(&hand);
        // Three at once, where one is allowed.
        let mut hand = Hand::new(NvmeParams { aborts_max: 1, ..calm() }).with_queue(4);
        for _ in 0..3 {
            let words = hand.numbered(abort(77));
            hand.admin.stage(&words);
        }
        let pair = hand.take_pair(Which::Admin);
        hand.ring(&pair);
        hand.bus.pause(Duration::from_millis(1));
        assert!(hand.rules().iter().all(|rule| *rule == "limits") && !hand.rules().is_empty());
    }
}

#[test]
fn events_wait_for_requests_and_for_their_log_page() {
    let mut hand = Hand::new(calm());
    hand.hub.befall(0, 10_000_000, Mishap::Events(4));
    let mut features = command(0x09, 0);
    (features[10], features[11]) = (0x0B, 1 << 8);
    assert_eq!(hand.admin(features).status, 0);
    let requests = [hand.numbered(command(0x0C, 0)), hand.numbered(command(0x0C, 0))];
    let mut pair = hand.take_pair(Which::Admin);
    requests.iter().for_each(|words| pair.stage(words));
    hand.ring(&pair);
    hand.hub.run_until(Time(30_000_000));
    // Two notices happened, and one is told until the page is read.
    assert_eq!(hand.answer(&mut pair).dw0, 0x0004_0002);
    assert!(pair.take().is_none());
    let page = hand.bus.allocate(4096).unwrap();
    hand.put_pair(pair);
    let mut log = with_pages(command(0x02, 0), page.iova().raw(), 0);
    log[10] = 4 | 1023 << 16;
    let words = hand.numbered(log);
    let mut pair = hand.take_pair(Which::Admin);
    pair.stage(&words);
    hand.ring(&pair);
    let both = [hand.answer(&mut pair), hand.answer(&mut pair)];
    assert_eq!(both.map(|cqe| cqe.dw0).iter().filter(|dw0| **dw0 == 0x0004_0002).count(), 1);
    calm_so_far(&hand);
}

#[test]
fn interrupts_end_a_wait_unless_they_are_lost() {
    for lost in [0, 1000] {
        let mut hand = Hand::new(NvmeParams { interrupts_lost: lost, ..calm() }).with_queue(4);
        let mut waiter = hand.hub.waiter();
        waiter.watch(&hand.bus.interrupt(1).unwrap()).unwrap();
        let words = hand.numbered(command(0x00, 1));
        let mut pair = hand.take_pair(Which::Io);
        pair.stage(&words);
        hand.ring(&pair);
        let start = hand.hub.now().0;
        assert!(!waiter.wait(Duration::from_millis(100)), "no wake-up");
        let took = hand.hub.now().0 - start;
        assert_eq!(took < 1_000_000, lost == 0, "{took} ns");
        assert!(pair.take().is_some());
        waiter.waker().wake();
        assert!(waiter.wait(Duration::from_secs(9)), "it says that it took the wake-up");
        assert!(hand.hub.now().0 < 1_000_000_000);
        assert!(hand.bus.interrupt(99).is_err());
    }
}

#[test]
fn a_shadow_doorbell_is_seen_by_the_register_or_by_the_second_look() {
    let mut hand = Hand::new(NvmeParams { doorbell_buffer: true, ..calm() }).with_queue(8);
    let buffer = hand.bus.allocate(8192).unwrap();
    let (shadow, events) = (buffer.iova().raw(), buffer.iova().raw() + 4096);
    buffer.before_doorbell();
    assert_eq!(hand.admin(with_pages(command(0x7C, 0), shadow, events)).status, 0);
    let mut pair = hand.take_pair(Which::Io);
    // The first one needs the register: the event index is 0 and the tail passes it.
    let stage = |hand: &mut Hand, pair: &mut Pair| {
        let words = hand.numbered(command(0x00, 1));
        pair.stage(&words);
        pair.sq.before_doorbell();
        buffer.store32(8, pair.tail);
        buffer.store_then_load();
        buffer.load32(4096 + 8)
    };
    assert_eq!(stage(&mut hand, &mut pair), 0);
    hand.registers.write32(0x1008, pair.tail);
    // While it is at work, the shadow alone is enough.
    stage(&mut hand, &mut pair);
    hand.bus.pause(Duration::from_millis(1));
    let mut taken = 0;
    while pair.take().is_some() {
        taken += 1;
        buffer.store32(12, pair.head);
        buffer.store_then_load();
    }
    assert_eq!(taken, 2);
    // Asleep, it says from where on it wants the register, and without it nothing happens.
    assert_eq!(stage(&mut hand, &mut pair), 2);
    hand.bus.pause(Duration::from_millis(1));
    assert!(pair.take().is_none());
    hand.registers.write32(0x1008, pair.tail);
    hand.bus.pause(Duration::from_millis(1));
    assert!(pair.take().is_some());
    calm_so_far(&hand);
    hand.registers.write32(0x1008, pair.tail + 1);
    assert_eq!(hand.rules()[0], "state", "the register says more than the shadow");
}

#[test]
fn a_controller_that_is_gone_reads_all_ones_and_touches_nothing() {
    let mut hand = Hand::new(calm()).with_queue(4);
    hand.hub.befall(0, 10_000_000, Mishap::Gone);
    hand.hub.run_until(Time(60_000_000));
    assert_eq!((hand.registers.read32(0x1C), hand.registers.read64(0)), (u32::MAX, u64::MAX));
    let words = hand.numbered(command(0x00, 1));
    let mut pair = hand.take_pair(Which::Io);
    pair.stage(&words);
    hand.ring(&pair);
    hand.bus.pause(Duration::from_secs(1));
    assert!(pair.take().is_none() && hand.bus.stop());
    calm_so_far(&hand);
}

#[test]
#[should_panic(expected = "a controller that is gone was read")]
fn who_asks_a_controller_that_is_gone_for_ever_is_stopped() {
    let hand = Hand::new(calm());
    hand.hub.befall(0, 10_000_000, Mishap::Gone);
    hand.hub.run_until(Time(60_000_000));
    while hand.registers.read32(0x1C) & 1 == 1 {}
}

#[test]
fn registers_in_the_wrong_state_are_found() {
    let hand = Hand::disabled(calm());
    hand.registers.write32(0x1000, 1);
    hand.registers.write32(0x14, 0x0046_0001);
    hand.registers.write32(0x24, 3);
    hand.registers.write32(0x14, 0x0046_0000);
    hand.registers.write32(0x14, 0x0046_0001);
    let _ = hand.registers.read32(0x3);
    assert_eq!(hand.rules(), ["state", "limits", "state", "state", "state", "limits", "limits"]);
}

#[test]
fn lies_are_told_as_the_rules_say() {
    let rule = |act| NvmeRule { on: OnCommand { times: 1, ..OnCommand::default() }, act };
    let refused = StatusParams { kind: 2, code: 0x81, do_not_retry: true, delay: 0 };
    let later = StatusParams { kind: 0, code: 0x82, do_not_retry: false, delay: 2 };
    for (act, mark) in [
        (NvmeAct::Twice(1000), Mark::NvmeTwice),
        (NvmeAct::UnknownCid, Mark::NvmeUnknownCid),
        (NvmeAct::WrongSq, Mark::NvmeWrongSq),
        (NvmeAct::WrongHead, Mark::NvmeWrongHead),
        (NvmeAct::ShortData, Mark::NvmeShortData),
        (NvmeAct::LostPage, Mark::NvmeLostPage),
        (NvmeAct::LateData(500_000), Mark::NvmeLateData),
        (NvmeAct::Fail(refused), Mark::NvmeFailed),
        (NvmeAct::Fail(later), Mark::NvmeFailedForNow),
    ] {
        let mut hand = Hand::new(NvmeParams { rules: vec![rule(act)], ..calm() }).with_queue(8);
        let (region, iova) = hand.memory(8192, 5);
        let cqe = hand.io(transfer(0x02, 0, 16, iova, iova + 4096));
        let came = hand.hub.peek(&region, 0, 8192) == hand.hub.disk_bytes(0)[..8192];
        let lie = matches!(act, NvmeAct::ShortData | NvmeAct::LostPage | NvmeAct::LateData(_));
        let fails = matches!(act, NvmeAct::Fail(_));
        assert_eq!(came, !lie && (cqe.status == 0), "{act:?}");
        assert_eq!((cqe.status != 0, hand.hub.lock().taint.ops.contains(&5)), (fails, lie), "{act:?}");
        hand.bus.pause(Duration::from_millis(2));
        let mut pair = hand.take_pair(Which::Io);
        assert_eq!(pair.take().is_some(), matches!(act, NvmeAct::Twice(_) | NvmeAct::UnknownCid), "{act:?}");
        match act {
            NvmeAct::WrongSq => assert_eq!(cqe.sq, 2),
            NvmeAct::WrongHead => assert!(cqe.sq_head > 8),
            NvmeAct::LateData(_) => {
                assert_eq!(hand.hub.peek(&region, 0, 8192), hand.hub.disk_bytes(0)[..8192], "late and there");
            }
            NvmeAct::Fail(fail) if fail.do_not_retry => assert_eq!(cqe.status, 1 << 14 | 2 << 8 | 0x81),
            // The host did not say that it knows of delays.
            NvmeAct::Fail(_) => assert_eq!(cqe.status, 0x82),
            _ => {}
        }
        assert!(hand.marks(mark) == 1, "{act:?}");
        calm_so_far(&hand);
    }
}

#[test]
fn a_lap_with_the_wrong_phase_is_not_seen() {
    let rule = NvmeRule { on: OnCommand { times: 1, ..OnCommand::default() }, act: NvmeAct::WrongPhase };
    let mut hand = Hand::new(NvmeParams { rules: vec![rule], ..calm() }).with_queue(4);
    let words = hand.numbered(command(0x00, 1));
    let mut pair = hand.take_pair(Which::Io);
    pair.stage(&words);
    hand.ring(&pair);
    hand.bus.pause(Duration::from_millis(1));
    assert!(pair.take().is_none() && hand.hub.nvme_counts(0).posted > 0);
}
