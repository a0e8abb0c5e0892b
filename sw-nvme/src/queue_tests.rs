use std::sync::Arc;

use sw_mem::{ByteLen, HugePages, SlabPool};

use super::*;
use crate::{
    controller::{Controller, ControllerConfig, Notify, Pair, PairRequest},
    testbus::{Lie, Model, ModelNamespace, Order, TestBus},
    wire::{BlockCount, IoFlags, LbaRange},
};

struct Bed {
    bus: Arc<TestBus>,
    pool: SlabPool,
    iova: Iova,
    pair: Pair<TestBus>,
    _controller: Arc<Controller<TestBus>>,
}

fn bed(model: Model, depth: u32, bytes: u32) -> Bed {
    let bus = TestBus::new(model);
    let controller = Controller::open(bus.clone(), ControllerConfig::default()).unwrap();
    let request = PairRequest { depth, data_bytes_max: bytes, notify: Notify::Polled };
    let pair = controller.create_pair(&request).unwrap();
    let pool = SlabPool::new(1, ByteLen(8 << 20), HugePages::Never).unwrap();
    let iova = bus.map(pool.region()).unwrap();
    Bed { bus, pool, iova, pair, _controller: controller }
}

impl Bed {
    /// Stages a read of `blocks` blocks from `slba` to `at` bytes into the memory.
    fn read(&mut self, user: u64, slba: u64, blocks: u32, at: u64) -> Result<u16, NotStaged> {
        let range = LbaRange { nsid: 1, slba, nlb: BlockCount::new(blocks).unwrap() };
        let iova = self.iova.checked_add(ByteLen(at)).unwrap();
        let data = [Segment { iova, len: ByteLen(u64::from(blocks) * 512) }];
        self.pair.queue.stage(&data, user, |data| Command::read(range, data, IoFlags::NONE))
    }

    fn poll(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        self.pair.queue.poll(usize::MAX, |end| ended.push(end));
        ended
    }
}

#[test]
fn rings_wrap_for_ever_and_identifiers_never_repeat_at_once() {
    for order in [Order::Forward, Order::Reverse] {
        let mut bed = bed(Model { order, ..Model::default() }, 3, 4096);
        assert_eq!(bed.pair.queue.entries(), 4);
        let mut last = [None; 4];
        for round in 0..50_000_u64 {
            let count = round % 3 + 1;
            for user in 0..count {
                let cid = bed.read(round << 8 | user, round % 1000, 1, 0).unwrap();
                let slot = usize::from(cid & 3);
                assert_ne!(last[slot], Some(cid), "the next command of a slot has another generation");
                assert_ne!(cid, u16::MAX);
                last[slot] = Some(cid);
            }
            assert!(bed.pair.queue.ring());
            let mut users: Vec<u64> = bed.poll().iter().map(|end| end.user).collect();
            users.sort_unstable();
            assert_eq!(users, (0..count).map(|user| round << 8 | user).collect::<Vec<_>>());
            assert_eq!((bed.pair.queue.in_flight(), bed.pair.queue.room()), (0, 3));
        }
    }
}

#[test]
fn a_full_queue_takes_nothing_and_one_completion_makes_room_for_one() {
    let mut bed = bed(Model { hold: true, ..Model::default() }, 3, 4096);
    for user in 0..3 {
        bed.read(user, 0, 1, 0).unwrap();
    }
    assert_eq!(bed.read(3, 0, 1, 0), Err(NotStaged::Full));
    assert_eq!(bed.bus.model().pending.len(), 0, "nothing is handed over before the ring");
    assert!(bed.pair.queue.ring() && !bed.pair.queue.ring());
    assert_eq!(bed.read(3, 0, 1, 0), Err(NotStaged::Full), "slots are taken until their completion");
    bed.bus.model().release();
    assert!(bed.pair.queue.has_completion());
    assert_eq!(bed.pair.queue.poll(1, |_| ()), 1);
    bed.read(3, 0, 1, 0).unwrap();
    assert_eq!(bed.read(4, 0, 1, 0), Err(NotStaged::Full));
}

#[test]
fn the_budget_of_a_poll_holds() {
    let mut bed = bed(Model::default(), 15, 4096);
    for user in 0..10 {
        bed.read(user, 0, 1, 0).unwrap();
    }
    bed.pair.queue.ring();
    let counts: Vec<usize> = (0..4).map(|_| bed.pair.queue.poll(4, |_| ())).collect();
    assert_eq!(counts, [4, 4, 2, 0]);
    assert_eq!(bed.pair.queue.counters().cq_doorbells, 3);
}

#[test]
fn lists_of_any_length_lead_to_the_right_pages() {
    let namespaces = vec![ModelNamespace::new(1, 9, 16384)];
    let mut bed = bed(Model { namespaces, mdts: 12, ..Model::default() }, 3, 4 << 20);
    for (blocks, at) in [(1, 0), (8, 4), (16, 0), (17, 0), (24, 2048), (4096, 0), (4096, 512), (4104, 4), (8192, 4092)]
    {
        bed.pool.memory().fill(0, 8 << 20, 0xEE).unwrap();
        bed.read(1, 3, blocks, at).unwrap();
        bed.pair.queue.ring();
        let ended = bed.poll();
        assert!(ended.len() == 1 && ended[0].status.is_success(), "{blocks} at {at}: {ended:?}");
        let len = blocks as usize * 512;
        let mut got = vec![0; len + 1];
        bed.pool.memory().read(at, &mut got).unwrap();
        assert_eq!(got[..len], bed.bus.model().namespaces[0].data[1536..1536 + len], "{blocks} at {at}");
        assert_eq!(got[len], 0xEE);
    }
    let range = LbaRange { nsid: 1, slba: 0, nlb: BlockCount::new(1).unwrap() };
    let data = [Segment { iova: bed.iova, len: ByteLen(8 << 20) }];
    let refused = bed.pair.queue.stage(&data, 0, |data| Command::read(range, data, IoFlags::NONE));
    assert!(matches!(refused, Err(NotStaged::Shape(NotPrp::ListFull { .. }))), "{refused:?}");
    assert_eq!(bed.pair.queue.in_flight(), 0, "nothing was taken");
}

#[test]
fn a_breach_is_named_and_ends_the_queue() {
    let told = |lie: Lie| {
        let mut bed = bed(Model::default(), 7, 4096);
        for _ in 0..3 {
            bed.read(0, 0, 1, 0).unwrap();
            bed.pair.queue.ring();
            bed.poll();
        }
        bed.bus.model().lie = Some(lie);
        let cid = bed.read(0, 0, 1, 0).unwrap();
        bed.pair.queue.ring();
        let doorbells = bed.bus.model().doorbell_writes.len();
        let ended = bed.poll().len();
        assert_eq!(bed.read(0, 0, 1, 0), Err(NotStaged::Broken));
        assert!(!bed.pair.queue.ring() && bed.poll().is_empty());
        bed.pair.queue.nudge();
        assert_eq!(bed.bus.model().doorbell_writes.len() - doorbells, ended, "no doorbell after the breach");
        (bed.pair.queue.breach().unwrap(), cid)
    };
    assert!(matches!(told(Lie::Twice), (Breach::Duplicate(got), cid) if got == cid));
    assert!(matches!(told(Lie::StaleCid), (Breach::UnknownCid(got), cid) if got == cid.wrapping_sub(8)));
    assert!(matches!(told(Lie::UnknownCid), (Breach::UnknownCid(got), cid) if got == cid ^ 0x8000));
    assert!(matches!(told(Lie::OtherQueue), (Breach::WrongQueue { got: 2, want: 1 }, _)));
    assert!(matches!(told(Lie::HeadOutside), (Breach::Head { got: 8, entries: 8 }, _)));
}

#[test]
fn a_completion_of_a_command_that_was_not_rung_is_a_breach() {
    let mut bed = bed(Model { hold: true, ..Model::default() }, 7, 4096);
    bed.read(0, 0, 1, 0).unwrap();
    bed.pair.queue.ring();
    let staged = bed.read(1, 0, 1, 0).unwrap();
    bed.bus.model().forge(1, staged);
    assert!(bed.poll().is_empty());
    assert_eq!(bed.pair.queue.breach(), Some(Breach::UnknownCid(staged)));
}

#[test]
fn shapes_out_of_range_are_refused() {
    let bus = TestBus::new(Model::default());
    let stride = DoorbellStride::new(0);
    for entries in [0, 1, 3, 8192] {
        let shape = QueueShape { qid: 1, entries, data_bytes_max: 4096, stride };
        assert_eq!(QueuePair::new(&*bus, shape).map(drop).unwrap_err().kind(), ErrorKind::ApiMisuse);
    }
    let far = QueueShape { qid: 2000, entries: 8, data_bytes_max: 4096, stride };
    assert_eq!(QueuePair::new(&*bus, far).map(drop).unwrap_err().kind(), ErrorKind::Protocol);
}

#[test]
fn generations_come_round_without_the_identifier_that_is_none() {
    for entries in [2_u32, 64, 4096] {
        let mask = entries - 1;
        let start = u16::try_from(mask).unwrap();
        let mut cid = start;
        let mut seen = std::collections::BTreeSet::new();
        while seen.insert(cid) {
            assert!(cid != NO_CID && u32::from(cid) & mask == mask);
            cid = next_cid(cid, mask);
        }
        assert_eq!((cid, seen.len()), (start, 65536 / entries as usize - 1));
    }
}

#[test]
fn a_head_that_goes_back_is_counted_and_the_queue_goes_on_for_laps() {
    let mut bed = bed(Model::default(), 7, 4096);
    for _ in 0..40 {
        bed.bus.model().lie = Some(Lie::HeadPastTail);
        bed.read(7, 0, 1, 0).unwrap();
        bed.pair.queue.ring();
        assert_eq!(bed.poll().len(), 1);
        assert_eq!(bed.pair.queue.room(), 7);
    }
    assert_eq!(bed.pair.queue.breach(), None);
    // One in a lap is where it could be.
    assert_eq!(bed.pair.queue.counters().odd_heads, 35);
    // As many as there are slots, whatever the head was said to be.
    for user in 0..7 {
        bed.read(user, 0, 1, 0).unwrap();
    }
    assert_eq!(bed.read(7, 0, 1, 0), Err(NotStaged::Full));
    bed.pair.queue.ring();
    assert_eq!(bed.poll().len(), 7);
}
