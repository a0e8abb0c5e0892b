//! Units in any order and in any pieces: each byte lies in its place when its command ends, and nowhere else.
// UNSAFETY: what a socket would receive is copied to where it is offered.
#![expect(unsafe_code, reason = "memory without a reference to it")]

use proptest::prelude::*;
use sw_mem::DmaRegion;
use sw_nvme::{
    rdma::session::Windows,
    status::Status,
    tcp::{
        host::{HostConfig, Outcome, Transfer},
        pdu::{Data, Digests, Layout, crc32c, flags},
    },
    wire::{BlockCount, Command, Completion, DataPointer, IoFlags, LbaRange, completion::CompletionFields},
};

use super::*;

const BLOCK: usize = 512;
/// Between the memory of two commands.
const GUARD: u8 = 0xEE;

/// Memory of commands, each with a guard behind it. Commands from that number on have the same.
struct Memory(Vec<Vec<u8>>, usize);

impl Places for Memory {
    fn pieces(&self, of: Range, into: &mut Vec<Piece>) {
        // In two pieces, as an I/O may be.
        let base = self.0[(of.user as usize).min(self.1)].as_ptr().cast_mut().wrapping_add(of.at as usize);
        let (half, len) = (of.bytes as usize / 2, of.bytes as usize);
        into.extend([Piece { base, len: half }, Piece { base: base.wrapping_add(half), len: len - half }]);
    }
}

impl Windows for Memory {
    fn window(&self, _: Range) -> Option<(DmaRegion, u64)> {
        None
    }
}

/// What a controller does with a command.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// All data in a unit that says success.
    Whole,
    /// All data in a unit, and a response.
    Response,
    /// The data in two units.
    Halves,
    /// A response that says that it failed.
    Fails,
    /// The host lets go of it before its answer comes, which is as that of `Whole`.
    LetGo,
}

/// Bytes of a command's data: no two are alike at the same place.
fn byte(user: usize, at: usize) -> u8 {
    u8::try_from((user * 89 + at * 7) % 239).unwrap()
}

struct Rig {
    queue: HostQueue,
    landing: Landing,
    memory: Memory,
    layout: Layout,
    cids: Vec<u16>,
}

impl Rig {
    /// Commands that read so many blocks each, all of them sent.
    fn new(digests: Digests, blocks: &[usize]) -> Self {
        let layout = Layout { digests, alignment: 0 };
        let depth = u16::try_from(blocks.len()).unwrap();
        let config = HostConfig { depth, layout, h2c_bytes_max: 8192, capsule_data_bytes: 0 };
        let memory = blocks.iter().map(|blocks| vec![GUARD; (blocks + 1) * BLOCK]).collect();
        let queue = HostQueue::new(config);
        let mut rig =
            Self { queue, landing: Landing::new(), memory: Memory(memory, usize::MAX), layout, cids: Vec::new() };
        for (user, blocks) in blocks.iter().enumerate() {
            let at = LbaRange { nsid: 1, slba: 0, nlb: BlockCount::new(1).unwrap() };
            let command = Command::read(at, DataPointer::None, IoFlags::NONE);
            let transfer = Transfer::In(u32::try_from(blocks * BLOCK).unwrap());
            let cid = rig.queue.submit(&command, transfer, u32::try_from(user).unwrap()).unwrap();
            rig.cids.push(cid);
            let unit = rig.queue.next_unit().unwrap();
            rig.queue.unit_sent(&unit);
        }
        rig
    }

    fn data(&self, user: usize, (from, to): (usize, usize), flags: u8) -> Vec<u8> {
        let of =
            Data { cid: self.cids[user], at: u32::try_from(from).unwrap(), bytes: u32::try_from(to - from).unwrap() };
        let bytes: Vec<u8> = (from..to).map(|at| byte(user, at)).collect();
        let mut wire = self.layout.controller_data(of, flags).as_bytes().to_vec();
        wire.extend_from_slice(&bytes);
        if self.layout.digests.data {
            wire.extend_from_slice(&crc32c(&bytes).to_le_bytes());
        }
        wire
    }

    fn response(&self, user: usize, status: Status) -> Vec<u8> {
        let fields = CompletionFields { dw0: 0, sq_head: 0, sq_id: 1, cid: self.cids[user], phase: false, status };
        self.layout.response(&Completion::build(fields)).as_bytes().to_vec()
    }

    fn answer(&self, user: usize, act: Act) -> Vec<u8> {
        let len = self.memory.0[user].len() - BLOCK;
        let done = flags::LAST | flags::SUCCESS;
        match act {
            Act::Whole | Act::LetGo => self.data(user, (0, len), done),
            Act::Response => [self.data(user, (0, len), flags::LAST), self.response(user, Status::SUCCESS)].concat(),
            Act::Halves => [self.data(user, (0, len / 2), 0), self.data(user, (len / 2, len), done)].concat(),
            Act::Fails => self.response(user, Status::UNRECOVERED_READ),
        }
    }

    /// As a socket does: fills what is offered, `most` bytes at a time at most. How many calls it took.
    fn receive(&mut self, mut wire: &[u8], most: usize) -> usize {
        let mut calls = 0;
        while !wire.is_empty() {
            calls += 1;
            let offered = self.landing.offer(&mut self.queue, &self.memory);
            let got = offered.min(wire.len()).min(most);
            let mut left = got;
            for piece in self.landing.pieces() {
                let len = piece.len.min(left);
                // SAFETY: memory of the rig's, or of the landing's and the queue's, for as many bytes.
                unsafe { std::ptr::copy_nonoverlapping(wire.as_ptr(), piece.base, len) };
                (wire, left) = (&wire[len..], left - len);
            }
            self.landing.came(got, &mut self.queue, &self.memory).unwrap();
        }
        calls
    }

    /// Checks the memory of each command that ended, and how it ended. Bytes that they say went aside.
    fn check(&mut self, acts: &[Act]) -> u64 {
        let (mut ended, mut aside) = (0, 0);
        while let Some(end) = self.queue.pop_end() {
            ended += 1;
            aside += u64::from(end.aside);
            let user = end.user as usize;
            let (data, guard) = self.memory.0[user].split_at(self.memory.0[user].len() - BLOCK);
            let is_there = data.iter().enumerate().all(|(at, found)| *found == byte(user, at));
            match acts[user] {
                Act::Fails => assert_eq!(end.outcome, Outcome::Told(Status::UNRECOVERED_READ)),
                Act::LetGo => assert_eq!(end.outcome, Outcome::LetGo),
                _ => assert!(end.outcome == Outcome::Told(Status::SUCCESS) && is_there, "command {user}: {end:?}"),
            }
            assert!(guard.iter().all(|byte| *byte == GUARD), "command {user} ran over");
        }
        assert_eq!(ended, acts.len());
        aside
    }
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        60 => Just(Act::Whole),
        1 => Just(Act::Response),
        1 => Just(Act::Halves),
        1 => Just(Act::Fails),
        1 => Just(Act::LetGo),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_in_whatever_pieces_lies_where_it_belongs(
        commands in prop::collection::vec((1usize..12, act()), 1..100),
        // Neighbours that change places: controllers keep the order as a rule.
        swaps in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        most in prop_oneof![1usize..200, 1000usize..40_000],
        (header, data) in any::<(bool, bool)>(),
    ) {
        let (blocks, acts): (Vec<usize>, Vec<Act>) = commands.into_iter().unzip();
        let mut rig = Rig::new(Digests { header, data }, &blocks);
        let mut order: Vec<usize> = (0..acts.len()).collect();
        for swap in swaps {
            let at = swap.index(order.len());
            order.swap(at, (at + 1) % acts.len());
        }
        for user in (0..acts.len()).filter(|user| matches!(acts[*user], Act::LetGo)) {
            prop_assert!(rig.queue.let_go(rig.cids[user]));
        }
        let wire: Vec<u8> = order.iter().flat_map(|user| rig.answer(*user, acts[*user])).collect();
        rig.receive(&wire, most);
        rig.check(&acts);
        for user in (0..acts.len()).filter(|user| matches!(acts[*user], Act::LetGo)) {
            let landed = &rig.memory.0[user];
            prop_assert!(landed.iter().all(|byte| *byte == GUARD), "command {user} was let go of, and data landed");
        }
    }
}

#[test]
fn a_controller_that_keeps_the_order_takes_few_calls_and_no_copies() {
    for digests in [Digests::default(), Digests { header: true, data: true }] {
        let acts = [Act::Whole; 200];
        let mut rig = Rig::new(digests, &[8; 200]);
        let wire: Vec<u8> = (0..200).flat_map(|user| rig.answer(user, acts[user])).collect();
        let calls = rig.receive(&wire, usize::MAX);
        assert_eq!(rig.check(&acts), 0);
        // A head, then the data of one unit with the next head, and so on while there is nothing to foresee by.
        assert!(calls <= 50, "{calls} calls for 200 reads");
        assert_eq!(rig.landing.take_moved_bytes(), 0);
        assert_eq!(rig.landing.take_data_bytes(), 200 * 4096);
    }
}

#[test]
fn a_controller_that_keeps_no_order_takes_a_call_a_unit_and_few_copies() {
    let acts = [Act::Whole; 200];
    let mut moved = 0;
    for ordered in 18..24 {
        let mut rig = Rig::new(Digests::default(), &[8; 200]);
        // Some in their order, and then the one that is next and the last one in turn.
        let others = 200 - ordered;
        let rest = (0..others).map(|at| if at % 2 == 0 { ordered + at / 2 } else { 199 - at / 2 });
        let wire: Vec<u8> = (0..ordered).chain(rest).flat_map(|user| rig.answer(user, acts[user])).collect();
        let calls = rig.receive(&wire, usize::MAX);
        let told = rig.check(&acts);
        assert!((180..=201).contains(&calls), "{calls} calls for 200 reads");
        let once = rig.landing.take_moved_bytes();
        assert!(once <= 3 * 4200, "{once} bytes were copied");
        // The ends tell of it, and of the heads between nobody wants to know.
        assert!(told <= once && once - told <= 3 * 104, "{once} bytes were copied, and the ends tell of {told}");
        assert_eq!(told > 0, once > 0);
        moved += once;
    }
    assert!(moved > 0, "in some of them another unit came than was foreseen");
}

#[test]
fn the_last_read_of_many_lands_in_its_place_whatever_units_it_has() {
    for digests in [Digests::default(), Digests { header: true, data: true }] {
        let acts = [Act::Halves; 3];
        let mut rig = Rig::new(digests, &[64; 3]);
        // One whose data has begun, and no other is awaited: what comes is no mere head.
        let wire: Vec<u8> = (0..3).flat_map(|user| rig.answer(user, acts[user])).collect();
        rig.receive(&wire, usize::MAX);
        assert_eq!((rig.check(&acts), rig.landing.take_moved_bytes()), (0, 0));
    }
}

#[test]
fn a_unit_for_a_longer_read_than_was_foreseen_lands_whole_though_both_begin_alike() {
    // So few that one unit is foreseen, and no place of the long one.
    const SHORT: usize = 10;
    let mut blocks = vec![1; SHORT + 1];
    blocks.push(2);
    let mut rig = Rig::new(Digests::default(), &blocks);
    rig.memory.1 = SHORT;
    rig.memory.0[SHORT] = vec![GUARD; 3 * BLOCK];
    // In order, so that the short one is foreseen; then the long one, which was asked for behind it.
    let mut wire: Vec<u8> = (0..SHORT).flat_map(|user| rig.answer(user, Act::Whole)).collect();
    wire.extend(rig.data(SHORT + 1, (0, 2 * BLOCK), flags::LAST | flags::SUCCESS));
    rig.receive(&wire, usize::MAX);
    assert_eq!(core::iter::from_fn(|| rig.queue.pop_end()).last().unwrap().user as usize, SHORT + 1);
    let (data, guard) = rig.memory.0[SHORT].split_at(2 * BLOCK);
    assert!(data.iter().enumerate().all(|(at, found)| *found == byte(SHORT + 1, at)));
    assert!(guard.iter().all(|byte| *byte == GUARD));
    assert!(rig.landing.take_moved_bytes() > 0, "it was not where it belongs");
}

#[test]
fn answers_without_data_take_few_calls() {
    let layout = Layout::default();
    let config = HostConfig { depth: 100, layout, h2c_bytes_max: 8192, capsule_data_bytes: 0 };
    let mut rig = Rig::new(Digests::default(), &[]);
    rig.queue = HostQueue::new(config);
    for user in 0..100 {
        rig.cids.push(rig.queue.submit(&Command::flush(1), Transfer::None, user).unwrap());
        let unit = rig.queue.next_unit().unwrap();
        rig.queue.unit_sent(&unit);
    }
    let wire: Vec<u8> = (0..100).flat_map(|user| rig.response(user, Status::SUCCESS)).collect();
    assert!(rig.receive(&wire, usize::MAX) <= 3);
    assert_eq!(core::iter::from_fn(|| rig.queue.pop_end()).count(), 100);
}
