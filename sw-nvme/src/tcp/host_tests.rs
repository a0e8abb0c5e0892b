#![expect(clippy::cast_possible_truncation, reason = "lengths of tests are small")]

use super::*;
use crate::{
    tcp::pdu::{Digests, crc32c},
    wire::{IoFlags, LbaRange, completion::CompletionFields},
};

const DIGESTS: Digests = Digests { header: true, data: true };

fn queue(digests: Digests) -> HostQueue {
    let layout = Layout { digests, alignment: 0 };
    HostQueue::new(HostConfig { depth: 4, layout, h2c_bytes_max: 8192, capsule_data_bytes: 4096 })
}

fn command() -> Command {
    let at = LbaRange { nsid: 1, slba: 0, nlb: crate::wire::BlockCount::new(8).unwrap() };
    Command::read(at, crate::wire::DataPointer::None, IoFlags::NONE)
}

/// Submits and sends; gives the identifier as it is on the wire.
fn begun(queue: &mut HostQueue, transfer: Transfer, user: u32) -> u16 {
    let cid = queue.submit(&command(), transfer, user).unwrap();
    let unit = queue.next_unit().unwrap();
    assert_eq!(pdu::command(unit.head.as_bytes()).cid(), cid);
    queue.unit_sent(&unit);
    cid
}

/// Data with its user, in the order that it came in.
type Landed = Vec<(Option<u32>, Vec<u8>)>;

/// Feeds bytes as they come, `step` at a time; gives the data that landed by user.
fn feed(queue: &mut HostQueue, mut wire: &[u8], step: usize) -> Result<Landed, Breach> {
    let mut landed = Landed::new();
    let (mut unit, mut digest) = (Vec::new(), Vec::new());
    while !wire.is_empty() {
        match queue.want() {
            Want::Head => {
                unit.clear();
                let space = queue.head_space();
                let take = space.len().min(wire.len()).min(step);
                space[..take].copy_from_slice(&wire[..take]);
                wire = &wire[take..];
                queue.head_came(take)?;
            }
            Want::Data { to, bytes, .. } => {
                let take = wire.len().min(step).min(bytes as usize);
                unit.extend_from_slice(&wire[..take]);
                landed.push((to.map(|to| to.user), wire[..take].to_vec()));
                wire = &wire[take..];
                queue.data_came(take as u32)?;
            }
            Want::Digest => {
                digest.push(wire[0]);
                wire = &wire[1..];
                if let Ok(told) = <[u8; 4]>::try_from(&digest[..]) {
                    digest.clear();
                    queue.digest_came(told, crc32c(&unit))?;
                }
            }
        }
    }
    Ok(landed)
}

fn layout(queue: &HostQueue) -> Layout {
    queue.config.layout
}

fn response(queue: &HostQueue, cid: u16, status: Status) -> Vec<u8> {
    let fields = CompletionFields { dw0: 0, sq_head: 0, sq_id: 1, cid, phase: false, status };
    layout(queue).response(&Completion::build(fields)).as_bytes().to_vec()
}

fn data(queue: &HostQueue, cid: u16, at: u32, bytes: &[u8], flags: u8) -> Vec<u8> {
    let of = Data { cid, at, bytes: bytes.len() as u32 };
    let mut wire = layout(queue).controller_data(of, flags).as_bytes().to_vec();
    wire.extend_from_slice(bytes);
    if layout(queue).digests.data {
        wire.extend_from_slice(&crc32c(bytes).to_le_bytes());
    }
    wire
}

fn ready(queue: &HostQueue, cid: u16, tag: u16, at: u32, bytes: u32) -> Vec<u8> {
    layout(queue).ready(R2t { cid, tag, at, bytes }).as_bytes().to_vec()
}

#[test]
fn a_read_ends_with_its_last_data_or_with_a_response_however_the_bytes_come() {
    let bytes: Vec<u8> = (0..8192u32).map(|at| (at * 7) as u8).collect();
    for digests in [Digests::default(), DIGESTS] {
        for step in [1, 3, 24, 28, 100, 1 << 20] {
            let mut queue = queue(digests);
            let (one, two) = (begun(&mut queue, Transfer::In(8192), 1), begun(&mut queue, Transfer::In(4096), 2));
            let mut wire = data(&queue, one, 0, &bytes[..4096], 0);
            // Not every target marks it.
            wire.extend(data(&queue, two, 0, &bytes[..4096], 0));
            wire.extend(data(&queue, one, 4096, &bytes[4096..], flags::LAST | flags::SUCCESS));
            wire.extend(response(&queue, two, Status::SUCCESS));
            let landed = feed(&mut queue, &wire, step).unwrap();
            let of = |user| {
                landed.iter().filter(|(to, _)| *to == Some(user)).flat_map(|(_, b)| b.clone()).collect::<Vec<_>>()
            };
            assert_eq!((of(1), of(2)), (bytes.clone(), bytes[..4096].to_vec()), "step {step}");
            let ends: Vec<_> = std::iter::from_fn(|| queue.pop_end()).map(|end| (end.user, end.outcome)).collect();
            assert_eq!(ends, [(1, Outcome::Told(Status::SUCCESS)), (2, Outcome::Told(Status::SUCCESS))]);
            assert_eq!(queue.room(), 4);
        }
    }
}

#[test]
fn success_with_less_data_than_asked_for_is_none() {
    let mut queue = queue(Digests::default());
    let cid = begun(&mut queue, Transfer::In(8192), 1);
    let mut wire = data(&queue, cid, 0, &[1; 4096], flags::LAST);
    wire.extend(response(&queue, cid, Status::SUCCESS));
    feed(&mut queue, &wire, 4096).unwrap();
    assert_eq!(queue.pop_end().unwrap().outcome, Outcome::Short { moved: 4096 });
    // Without any data, and by SUCCESS in the data.
    let cid = begun(&mut queue, Transfer::In(8192), 2);
    let wire = response(&queue, cid, Status::SUCCESS);
    feed(&mut queue, &wire, 4096).unwrap();
    assert_eq!(queue.pop_end().unwrap().outcome, Outcome::Short { moved: 0 });
    let cid = begun(&mut queue, Transfer::In(8192), 3);
    let wire = data(&queue, cid, 0, &[1; 4096], flags::LAST | flags::SUCCESS);
    feed(&mut queue, &wire, 4096).unwrap();
    assert_eq!(queue.pop_end().unwrap().outcome, Outcome::Short { moved: 4096 });
    // A write that the controller never asked for.
    let cid = begun(&mut queue, Transfer::Out(65536), 4);
    let wire = response(&queue, cid, Status::SUCCESS);
    feed(&mut queue, &wire, 4096).unwrap();
    assert_eq!(queue.pop_end().unwrap().outcome, Outcome::Short { moved: 0 });
    // An error needs no data.
    let cid = begun(&mut queue, Transfer::In(8192), 5);
    let wire = response(&queue, cid, Status::UNRECOVERED_READ);
    feed(&mut queue, &wire, 4096).unwrap();
    assert_eq!(queue.pop_end().unwrap().outcome, Outcome::Told(Status::UNRECOVERED_READ));
}

#[test]
fn a_small_write_goes_in_its_capsule_and_a_large_one_by_wishes() {
    let mut queue = queue(DIGESTS);
    queue.submit(&command(), Transfer::Out(4096), 1).unwrap();
    let unit = queue.next_unit().unwrap();
    assert_eq!((unit.data, unit.digest), (Some(Range { user: 1, at: 0, bytes: 4096 }), true));
    // SGL: address 0, length, in the capsule; PSDT.
    let sent = pdu::command(unit.head.as_bytes());
    assert_eq!((sent.bytes()[1] & 0xC0, sent.bytes()[39], le32(sent.bytes(), 32)), (0x40, 0x01, 4096));
    queue.unit_sent(&unit);
    let large = begun(&mut queue, Transfer::Out(20480), 2);
    let wire = ready(&queue, large, 77, 0, 12288);
    feed(&mut queue, &wire, 5).unwrap();
    let mut sent = Vec::new();
    while let Some(unit) = queue.next_unit() {
        let (of, tag) = Data::decode(unit.head.as_bytes());
        sent.push((of.at, of.bytes, tag, unit.head.as_bytes()[1] & flags::LAST != 0));
        queue.unit_sent(&unit);
    }
    assert_eq!(sent, [(0, 8192, 77, false), (8192, 4096, 77, true)]);
    let wire = ready(&queue, large, 78, 12288, 8192);
    feed(&mut queue, &wire, 99).unwrap();
    let unit = queue.next_unit().unwrap();
    assert_eq!(Data::decode(unit.head.as_bytes()).0, Data { cid: large, at: 12288, bytes: 8192 });
    // The answer comes while the unit is with the socket: the memory is still read.
    let wire = response(&queue, large, Status::SUCCESS);
    feed(&mut queue, &wire, 99).unwrap();
    assert_eq!(queue.pop_end(), None);
    queue.unit_sent(&unit);
    assert_eq!(queue.pop_end().unwrap().outcome, Outcome::Told(Status::SUCCESS));
}

fn le32(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(raw[at..at + 4].try_into().unwrap())
}

#[test]
fn a_controller_that_breaks_the_rules_is_found_out() {
    type Lie = fn(&HostQueue, u16, u16) -> Vec<u8>;
    // `read` and `write` are under way, of 8,192 and 16,384 bytes.
    let lies: [(&str, Lie); 16] = [
        ("unknown identifier", |q, _, _| response(q, 3, Status::SUCCESS)),
        ("index past the table", |q, _, _| response(q, 0xFFFF, Status::SUCCESS)),
        ("generation of before", |q, read, _| response(q, read ^ 1 << INDEX_BITS, Status::SUCCESS)),
        ("data for a write", |q, _, write| data(q, write, 0, &[0; 16], 0)),
        ("data with a gap", |q, read, _| data(q, read, 16, &[0; 16], 0)),
        ("data twice", |q, read, _| [data(q, read, 0, &[0; 16], 0), data(q, read, 0, &[0; 16], 0)].concat()),
        ("data past the end", |q, read, _| data(q, read, 0, &[0; 8193], flags::LAST)),
        ("success before the last", |q, read, _| data(q, read, 0, &[0; 16], flags::SUCCESS)),
        ("a wish of a read", |q, read, _| ready(q, read, 0, 0, 4096)),
        ("an empty wish", |q, _, write| ready(q, write, 0, 0, 0)),
        ("a wish with a gap", |q, _, write| ready(q, write, 0, 4096, 4096)),
        ("a wish past the end", |q, _, write| ready(q, write, 0, 0, 16385)),
        ("a wish past 32 bits", |q, _, write| ready(q, write, 0, 0, u32::MAX)),
        ("two wishes", |q, _, write| [ready(q, write, 0, 0, 8192), ready(q, write, 1, 8192, 8192)].concat()),
        ("a host's unit", |q, _, _| layout(q).command(&Command::keep_alive(), 0).as_bytes().to_vec()),
        ("two answers", |q, read, _| {
            [response(q, read, Status::INTERNAL), response(q, read, Status::INTERNAL)].concat()
        }),
    ];
    for digests in [Digests::default(), DIGESTS] {
        for (what, lie) in lies {
            let mut queue = queue(digests);
            let read = begun(&mut queue, Transfer::In(8192), 1);
            let write = begun(&mut queue, Transfer::Out(16384), 2);
            let wire = lie(&queue, read, write);
            assert!(feed(&mut queue, &wire, 1 << 20).is_err(), "{what} was taken");
        }
    }
}

#[test]
fn a_wrong_digest_of_a_header_ends_the_connection_and_one_of_data_the_command() {
    let mut queue = queue(DIGESTS);
    let cid = begun(&mut queue, Transfer::In(4096), 1);
    let mut wire = data(&queue, cid, 0, &[5; 4096], flags::LAST | flags::SUCCESS);
    *wire.last_mut().unwrap() ^= 1;
    feed(&mut queue, &wire, 1 << 20).unwrap();
    assert_eq!(queue.pop_end().unwrap().outcome, Outcome::WrongDigest);
    let cid = begun(&mut queue, Transfer::In(4096), 2);
    let mut wire = response(&queue, cid, Status::SUCCESS);
    wire[10] ^= 1;
    assert_eq!(feed(&mut queue, &wire, 1 << 20).unwrap_err().status, FatalStatus::HeaderDigest);
}

#[test]
fn what_is_let_go_of_lands_nowhere_and_keeps_its_place_until_the_answer() {
    let mut queue = queue(Digests::default());
    let cid = begun(&mut queue, Transfer::In(8192), 1);
    let wire = data(&queue, cid, 0, &[1; 4096], 0);
    assert_eq!(feed(&mut queue, &wire[..2000], 1 << 20).unwrap()[0].0, Some(1));
    assert!(queue.let_go(cid) && !queue.let_go(cid));
    assert_eq!(queue.pop_end().unwrap().outcome, Outcome::LetGo);
    assert_eq!(queue.room(), 3);
    let landed = feed(&mut queue, &wire[2000..], 1 << 20).unwrap();
    assert!(landed.iter().all(|(to, _)| to.is_none()));
    let wire = data(&queue, cid, 4096, &[1; 4096], flags::LAST | flags::SUCCESS);
    assert!(feed(&mut queue, &wire, 1 << 20).unwrap().iter().all(|(to, _)| to.is_none()));
    assert_eq!((queue.pop_end(), queue.room()), (None, 4));
    // A write that was sent is waited for; one that was not goes at once.
    let sent = begun(&mut queue, Transfer::Out(16384), 2);
    assert!(!queue.let_go(sent));
    let unsent = queue.submit(&command(), Transfer::Out(16384), 3).unwrap();
    assert!(queue.let_go(unsent));
    assert!(queue.next_unit().is_none());
    assert_eq!(queue.pop_end().map(|end| (end.user, end.outcome)), Some((3, Outcome::LetGo)));
}

#[test]
fn a_full_queue_takes_no_command_and_an_old_identifier_is_known_as_such() {
    let mut queue = queue(Digests::default());
    let first: Vec<u16> = (0..4).map(|user| begun(&mut queue, Transfer::None, user)).collect();
    assert_eq!(queue.submit(&command(), Transfer::None, 9), None);
    for cid in &first {
        let wire = response(&queue, *cid, Status::SUCCESS);
        feed(&mut queue, &wire, 7).unwrap();
    }
    let again = begun(&mut queue, Transfer::None, 5);
    assert!(!first.contains(&again));
    for old in first {
        let wire = response(&queue, old, Status::SUCCESS);
        assert!(feed(&mut queue, &wire, 1 << 20).is_err());
        queue.next_head();
    }
}

#[test]
fn a_termination_is_told_with_its_reason() {
    let mut queue = queue(DIGESTS);
    let breach = Breach::of(FatalStatus::R2tLimit, "x");
    let mut wire = pdu::termination(Kind::C2hTerm, &breach).as_bytes().to_vec();
    // With the header that was wrong behind it.
    wire[4] += 72;
    wire.extend([0; 72]);
    feed(&mut queue, &wire, 11).unwrap();
    assert_eq!(queue.terminated(), Some(Terminated { status: 5, information: 0 }));
}

proptest::proptest! {
    /// No bytes of a controller's panic, and none land outside the range that was asked for.
    #[test]
    fn whatever_comes_stays_inside(wire in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600), kind in 0usize..4, step in 1usize..64) {
        let mut queue = queue(Digests::default());
        let cid = begun(&mut queue, Transfer::In(64), 1);
        let mut wire = wire;
        // Often a unit that is nearly right.
        if wire.len() > 24 {
            let (plen, flags) = (wire.len() as u32, wire[1] & 0x0C);
            wire[..8].copy_from_slice(&[[5, 7, 9, 3][kind], flags, 24, 24, plen as u8, (plen >> 8) as u8, 0, 0]);
            wire[8..10].copy_from_slice(&cid.to_le_bytes());
        }
        if let Ok(landed) = feed(&mut queue, &wire, step) {
            let moved: usize = landed.iter().map(|(_, bytes)| bytes.len()).sum();
            proptest::prop_assert!(moved <= 64);
        }
    }
}

#[test]
fn what_is_foreseen_are_reads_in_their_order_once_the_controller_kept_it_for_a_while() {
    let mut queue = HostQueue::new(HostConfig { depth: 64, ..queue(Digests::default()).config });
    let cids: Vec<u16> = (0..40).map(|user| begun(&mut queue, Transfer::In(512), user)).collect();
    let users = |queue: &HostQueue| queue.foreseen().map(|range| range.user).collect::<Vec<u32>>();
    let answered = |queue: &mut HostQueue, cid| {
        let wire = data(queue, cid, 0, &[1; 512], flags::LAST | flags::SUCCESS);
        feed(queue, &wire, 4096).unwrap();
    };
    for (at, cid) in cids.iter().take(16).enumerate() {
        let most = at as u32 / UNITS_BEFORE_ONE;
        assert_eq!(users(&queue), (at as u32..at as u32 + most).collect::<Vec<u32>>());
        answered(&mut queue, *cid);
    }
    assert_eq!(users(&queue), [16, 17]);
    // One whose data lands nowhere is not, nor what comes behind it.
    assert!(queue.let_go(cids[17]));
    assert_eq!(users(&queue), [16]);
    answered(&mut queue, cids[16]);
    answered(&mut queue, cids[17]);
    assert_eq!(users(&queue), [18, 19]);
    // Another order, an error, and a unit that is not all: nothing is foreseen for a while.
    let response_of = |queue: &HostQueue, cid| response(queue, cid, Status::UNRECOVERED_READ);
    answered(&mut queue, cids[19]);
    assert!(users(&queue).is_empty());
    (20..36).for_each(|at| answered(&mut queue, cids[if at == 20 { 18 } else { at - 1 }]));
    assert_eq!(users(&queue), [35, 36]);
    let wire = response_of(&queue, cids[35]);
    feed(&mut queue, &wire, 4096).unwrap();
    assert!(users(&queue).is_empty());
    assert!(queue.awaits_data());
    (36..40).for_each(|at| answered(&mut queue, cids[at]));
    assert!(!queue.awaits_data());
}
