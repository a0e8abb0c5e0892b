use sw_mem::RemoteAddr;

use super::*;
use crate::{rdma::capsule::Keyed, status::Status, wire::completion::CompletionFields};

fn memory(bytes: u32, end: KeyEnd) -> Keyed {
    Keyed { at: RemoteAddr::new(0x1000, 77), bytes, end }
}

fn response(cid: u16, status: Status) -> [u8; 16] {
    *Completion::build(CompletionFields { dw0: 5, sq_head: 0, sq_id: 1, cid, phase: false, status }).bytes()
}

/// Submits a read and makes its capsule.
fn out(queue: &mut HostQueue, user: u32, end: KeyEnd) -> u16 {
    let cid = queue.submit(&Command::keep_alive(), Transfer::In(4096), user).unwrap();
    let raw = queue.capsule(Source::Keyed(memory(4096, end))).unwrap();
    assert_eq!(capsule::decode(&raw).unwrap().0.cid(), cid);
    cid
}

#[test]
fn a_command_ends_when_both_its_send_and_its_response_were_seen() {
    let mut queue = HostQueue::new(4);
    for response_first in [false, true] {
        let cid = out(&mut queue, 9, KeyEnd::Kept);
        let told = response(cid, Status::SUCCESS);
        if response_first {
            queue.response(&told, None).unwrap();
            assert_eq!((queue.pop_end(), queue.under_way()), (None, 1));
            queue.sent(cid).unwrap();
        } else {
            queue.sent(cid).unwrap();
            assert_eq!((queue.pop_end(), queue.under_way()), (None, 1));
            queue.response(&told, None).unwrap();
        }
        let ended = queue.pop_end().unwrap();
        let end = End { user: 9, outcome: Outcome::Told(Status::SUCCESS), value: 5, aside: 0 };
        assert_eq!((ended.end, queue.under_way()), (end, 0));
    }
}

#[test]
fn a_full_queue_takes_no_command_and_an_old_identifier_is_known_as_such() {
    let mut queue = HostQueue::new(2);
    let first = out(&mut queue, 0, KeyEnd::Kept);
    let second = out(&mut queue, 1, KeyEnd::Kept);
    assert_eq!((queue.room(), queue.submit(&Command::keep_alive(), Transfer::None, 2)), (0, None));
    queue.sent(first).unwrap();
    queue.response(&response(first, Status::SUCCESS), None).unwrap();
    let third = out(&mut queue, 2, KeyEnd::Kept);
    assert_eq!(third & INDEX_MASK, first & INDEX_MASK);
    assert_ne!(third, first);
    // An answer to the command before is none to this one.
    assert!(queue.response(&response(first, Status::SUCCESS), None).is_err());
    assert!(queue.sent(first).is_err());
    assert_eq!(queue.under_way(), 2);
    queue.sent(second).unwrap();
}

#[test]
fn a_peer_that_breaks_the_rules_is_found_out() {
    let rule = |queue: &mut HostQueue, raw: &[u8], key| queue.response(raw, key).unwrap_err().rule;
    let mut queue = HostQueue::new(4);
    let kept = out(&mut queue, 0, KeyEnd::Kept);
    let asked = out(&mut queue, 1, KeyEnd::Invalidated);
    let unsent = queue.submit(&Command::keep_alive(), Transfer::None, 2).unwrap();
    let fine = response(kept, Status::SUCCESS);
    assert!(rule(&mut queue, &fine[..15], None).contains("no completion of 16 bytes"));
    assert!(rule(&mut queue, &[&fine[..], &[0]].concat(), None).contains("no completion of 16 bytes"));
    // An index past the end, one of a free place, and one whose capsule was not sent.
    for cid in [INDEX_MASK, 3, 1 << INDEX_BITS | 3, unsent] {
        assert!(rule(&mut queue, &response(cid, Status::SUCCESS), None).contains("not under way"), "{cid:#x}");
    }
    // A key that nobody asked to be invalidated, or another command's.
    for (cid, key) in [(kept, 77), (asked, 78), (asked, 0)] {
        let told = response(cid, Status::SUCCESS);
        assert!(rule(&mut queue, &told, Some(RemoteKey(key))).contains("another key"), "{cid:#x}");
    }
    queue.response(&response(asked, Status::SUCCESS), Some(RemoteKey(77))).unwrap();
    // Answered twice, before its SEND completed.
    assert!(rule(&mut queue, &response(asked, Status::SUCCESS), None).contains("not under way"));
    queue.sent(asked).unwrap();
    assert!(queue.sent(asked).is_err() && queue.sent(unsent).is_err());
    queue.sent(kept).unwrap();
    assert!(queue.sent(kept).is_err());
    assert_eq!(out_of(&mut queue, unsent), unsent);
    // A controller need not do what it was asked for.
    let asked = out(&mut queue, 3, KeyEnd::Invalidated);
    queue.response(&response(asked, Status::SUCCESS), None).unwrap();
}

/// Sends the next command, which moves nothing.
fn out_of(queue: &mut HostQueue, cid: u16) -> u16 {
    assert_eq!(queue.next().unwrap().cid, cid);
    let raw = queue.capsule(Source::Nothing).unwrap();
    capsule::decode(&raw).unwrap().0.cid()
}

#[test]
fn memory_is_the_slots_until_the_answer_whoever_stops_waiting() {
    let mut queue = HostQueue::new(2);
    let cid = out(&mut queue, 0, KeyEnd::Kept);
    assert!(!queue.let_go(cid) && !queue.is_unsent(cid));
    queue.sent(cid).unwrap();
    assert!(!queue.let_go(cid));
    assert_eq!(queue.pop_end(), None);
    let unsent = queue.submit(&Command::keep_alive(), Transfer::None, 1).unwrap();
    assert!(queue.is_unsent(unsent) && queue.let_go(unsent) && !queue.let_go(unsent));
    let ended = queue.pop_end().unwrap();
    assert_eq!((ended.place, ended.end.outcome), (None, Outcome::LetGo));
    assert!(!queue.has_capsules());
    queue.response(&response(cid, Status::SUCCESS), None).unwrap();
    assert_eq!(queue.pop_end().unwrap().place, Some(cid & INDEX_MASK));
}

#[test]
fn memory_fits_what_a_command_moves() {
    let mut queue = HostQueue::new(3);
    assert_eq!(queue.submit(&Command::keep_alive(), Transfer::In(KEYED_BYTES_MAX + 1), 0), None);
    queue.submit(&Command::keep_alive(), Transfer::Out(4096), 0).unwrap();
    assert_eq!(queue.capsule(Source::Nothing), None);
    assert_eq!(queue.capsule(Source::Keyed(memory(4095, KeyEnd::Kept))), None);
    assert!(queue.has_capsules() && queue.capsule(Source::Keyed(memory(4096, KeyEnd::Kept))).is_some());
    queue.submit(&Command::keep_alive(), Transfer::In(0), 0).unwrap();
    assert_eq!(queue.capsule(Source::Keyed(memory(1, KeyEnd::Kept))), None);
    assert!(queue.capsule(Source::Nothing).is_some());
    assert_eq!((queue.capsule(Source::Nothing), queue.next()), (None, None));
}
