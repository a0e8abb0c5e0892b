//! Each end against a peer that lies, message by message and field by field.

use super::{
    HASH_BYTES_MAX, Hash,
    controller::{self, Given, Progress},
    exchange_tests::{Rig, only, random, secret},
    group::Group,
    host::{self, HostError},
    message::{BadMessage, Challenge, Envelope, Explanation, MESSAGE_BYTES_MAX, Message, Negotiate, Reply, Success1},
};

const HASHES: &[u8] = &[1, 2, 3];
const GROUPS: &[u8] = &[0, 1, 2, 3, 4, 5];

fn rig(group: Group) -> Rig {
    Rig::new(Hash::Sha256, group)
}

fn message_of(controller: &mut controller::Exchange) -> Vec<u8> {
    match controller.poll_message(MESSAGE_BYTES_MAX) {
        Given::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

/// A host and a controller that were told to begin, and the challenge.
fn challenged(rig: &Rig) -> (host::Exchange, controller::Exchange, Vec<u8>) {
    let (mut host, mut controller) = (rig.host(), rig.controller());
    controller.handle_message(&host.poll_transmit().unwrap(), random());
    let challenge = message_of(&mut controller);
    (host, controller, challenge)
}

/// The same with the reply.
fn replied(rig: &Rig) -> (host::Exchange, controller::Exchange, Vec<u8>) {
    let (mut host, controller, challenge) = challenged(rig);
    host.handle_message(&challenge);
    let reply = host.poll_transmit().unwrap();
    (host, controller, reply)
}

/// The same with the success.
fn accepted(rig: &Rig) -> (host::Exchange, controller::Exchange, Vec<u8>) {
    let (host, mut controller, reply) = replied(rig);
    controller.handle_message(&reply, random());
    let success = message_of(&mut controller);
    (host, controller, success)
}

fn changed(raw: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut raw = raw.to_vec();
    raw[at..at + bytes.len()].copy_from_slice(bytes);
    raw
}

/// How a host takes what is said to it: the error, and what it tells the controller.
fn host_says(mut host: host::Exchange, said: &[u8]) -> (HostError, Option<Explanation>) {
    host.handle_message(said);
    let told = host.poll_transmit().map(|raw| match Envelope::decode(&raw).unwrap().message {
        Message::Failure2(explanation) => explanation,
        other => panic!("it says {other:?}"),
    });
    let error = host.outcome().unwrap().unwrap_err();
    assert!(host.poll_transmit().is_none() && !error.to_string().is_empty());
    // It is over: nothing changes that.
    host.handle_message(said);
    assert!(host.outcome().is_none_or(|outcome| outcome.is_err()));
    (error, told)
}

/// How a controller takes what is said to it.
fn controller_says(mut controller: controller::Exchange, said: &[u8]) -> Explanation {
    controller.handle_message(said, random());
    assert_eq!(controller.progress(), Progress::Failing);
    assert_eq!(controller.poll_message(7), Given::NoRoom);
    let raw = message_of(&mut controller);
    let Message::Failure1(explanation) = Envelope::decode(&raw).unwrap().message else { panic!("{raw:?}") };
    assert_eq!((controller.progress(), raw.len()), (Progress::Failed(explanation), 8));
    // A failure is the end: a new negotiation does not begin on it.
    controller.handle_message(&Rig::new(Hash::Sha256, Group::Null).host().poll_transmit().unwrap(), random());
    assert_eq!((controller.progress(), controller.poll_message(4096)), (Progress::Failed(explanation), Given::Nothing));
    explanation
}

fn broken(error: HostError) -> Explanation {
    match error {
        HostError::Message(BadMessage { explanation, .. }) => explanation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_finds_out_a_challenge_that_is_none() {
    let rig = rig(Group::Ffdhe2048);
    let good = challenged(&rig).2;
    let says = |said: &[u8]| host_says(challenged(&rig).0, said);
    let is_broken = |said: &[u8]| {
        let (error, told) = says(said);
        assert_eq!(told, Some(broken(error)));
        told.unwrap()
    };
    assert_eq!(is_broken(&changed(&good, 4, &[0x35])), Explanation::PAYLOAD);
    assert_eq!(is_broken(&changed(&good, 12, &[0; 4])), Explanation::PAYLOAD);
    // HL of another function, than the hash that was chosen, and of none.
    assert_eq!(is_broken(&changed(&good, 6, &[48])), Explanation::PAYLOAD);
    assert_eq!(is_broken(&changed(&good, 6, &[33])), Explanation::PAYLOAD);
    for len in [0, 1, 15, 16, 47, 48, good.len() - 1] {
        assert_eq!(is_broken(&good[..len]), Explanation::PAYLOAD);
    }
    // What is not due: a success without a challenge above all.
    let success = Message::Success1(Success1 { hash_bytes: 32, response: Some(&[0; 32]) });
    for message in [success, Message::Success2, Message::Failure2(Explanation::FAILED)] {
        assert_eq!(is_broken(&Envelope { transaction: 0x1234, message }.encode()), Explanation::MESSAGE);
    }
    let (error, told) = says(&changed(&good, 8, &[4]));
    assert_eq!((error, told), (HostError::Hash(4), Some(Explanation::HASH)));
    let (error, told) = says(&changed(&good, 9, &[6]));
    assert_eq!((error, told), (HostError::Group(6), Some(Explanation::GROUP)));
    // The group that was chosen needs a value of its own length.
    for wrong in [2, 0] {
        let (error, told) = says(&changed(&good, 9, &[wrong]));
        assert!(matches!(error, HostError::Value | HostError::Message(_)) && told.is_some(), "{error:?}");
    }
    let failure = Envelope { transaction: 9, message: Message::Failure1(Explanation::HASH) }.encode();
    assert_eq!(says(&failure), (HostError::Refused(Explanation::HASH), None));
}

#[test]
fn a_host_takes_nothing_that_it_did_not_offer() {
    let mut rig = rig(Group::Null);
    let good = challenged(&rig).2;
    rig.host_offers = only(Hash::Sha384, Group::Ffdhe2048);
    let host = || {
        let mut host = rig.host();
        host.poll_transmit().unwrap();
        host
    };
    assert_eq!(host_says(host(), &good).0, HostError::Hash(1));
    let longer = Challenge { hash: 2, group: 0, sequence: 1, challenge: &[5; 48], value: &[] };
    let raw = Envelope { transaction: 0x1234, message: Message::Challenge(longer) }.encode();
    // Without Diffie-Hellman, though it was not offered: a downgrade.
    assert_eq!(host_says(host(), &raw).0, HostError::Group(0));
}

#[test]
fn values_that_give_the_secret_away_end_the_exchange_at_both_ends() {
    let rig = rig(Group::Ffdhe2048);
    let number = |low: u8| {
        let mut value = [0; 256];
        value[255] = low;
        value
    };
    // p - 1 ends with FEh, as p ends with 64 ones; 2^2048 - 1 is beyond it.
    let (_, _, challenge) = challenged(&rig);
    let prime_less_one = {
        let text = include_str!("group.rs").split("const FFDHE2048: &str = concat!(").nth(1).unwrap();
        let hex: String = text.split(");").next().unwrap().chars().filter(char::is_ascii_hexdigit).collect();
        let mut value: [u8; 256] = core::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap());
        value[255] -= 1;
        value
    };
    for value in [number(0), number(1), prime_less_one, [0xFF; 256]] {
        let (error, told) = host_says(challenged(&rig).0, &changed(&challenge, 48, &value));
        assert_eq!((error, told), (HostError::Value, Some(Explanation::GROUP)));
        let (_, controller, reply) = replied(&rig);
        assert_eq!(controller_says(controller, &changed(&reply, 80, &value)), Explanation::GROUP);
    }
}

#[test]
fn a_controller_finds_out_a_negotiation_that_is_none() {
    let rig = rig(Group::Null);
    let says = |negotiate: Negotiate<'_>| {
        let raw = Envelope { transaction: 7, message: Message::Negotiate(negotiate) }.encode();
        controller_says(rig.controller(), &raw)
    };
    let good = Negotiate { concatenation: 0, hashes: HASHES, groups: GROUPS };
    assert_eq!(says(Negotiate { concatenation: 1, ..good }), Explanation::CONCATENATION);
    assert_eq!(says(Negotiate { hashes: &[], ..good }), Explanation::HASH);
    assert_eq!(says(Negotiate { hashes: &[0, 4, 255, 2], ..good }), Explanation::HASH);
    assert_eq!(says(Negotiate { groups: &[], ..good }), Explanation::GROUP);
    assert_eq!(says(Negotiate { groups: &[6, 1], ..good }), Explanation::GROUP);
    let raw = Envelope { transaction: 7, message: Message::Negotiate(good) }.encode();
    for len in 0..raw.len() {
        assert_eq!(controller_says(rig.controller(), &raw[..len]), Explanation::PAYLOAD);
    }
    assert_eq!(controller_says(rig.controller(), &changed(&raw, 8, &[9])), Explanation::PROTOCOL);
    assert_eq!(controller_says(rig.controller(), &[0xEE; 100]), Explanation::MESSAGE);
    // DH-HMAC-CHAP behind a protocol that is not known is found.
    let mut two = changed(&raw, 7, &[2]);
    two.splice(8..8, [0x77; 64]);
    let mut controller = rig.controller();
    controller.handle_message(&two, random());
    assert!(matches!(controller.poll_message(4096), Given::Message(_)));
}

#[test]
fn a_controller_finds_out_a_reply_that_is_none() {
    let rig = rig(Group::Ffdhe2048);
    let good = replied(&rig).2;
    let says = |said: &[u8]| controller_says(replied(&rig).1, said);
    assert_eq!(says(&changed(&good, 4, &[0x35])), Explanation::PAYLOAD);
    assert_eq!(says(&changed(&good, 6, &[48])), Explanation::PAYLOAD);
    assert_eq!(says(&changed(&good, 6, &[0])), Explanation::PAYLOAD);
    // S2 of 0 with a challenge.
    assert_eq!(says(&changed(&good, 12, &[0; 4])), Explanation::PAYLOAD);
    for len in [0, 7, 16, 79, good.len() - 1] {
        assert_eq!(says(&good[..len]), Explanation::PAYLOAD);
    }
    // A value of another length, or none.
    assert_eq!(says(&changed(&good, 10, &[0, 0])), Explanation::GROUP);
    assert_eq!(says(&changed(&good, 10, &[0xFF, 0])), Explanation::GROUP);
    for at in [16, 47, 80, good.len() - 1] {
        assert_eq!(says(&changed(&good, at, &[good[at] ^ 1])), Explanation::FAILED, "byte {at}");
    }
    // C2 is not part of R1; the challenge that is sent back is our own.
    assert_eq!(says(&changed(&good, 48, &[0xC1; 32])), Explanation::FAILED);
    for message in [Message::Success2, Message::Failure1(Explanation::FAILED)] {
        assert_eq!(says(&Envelope { transaction: 0x1234, message }.encode()), Explanation::MESSAGE);
    }
    let failure = Envelope { transaction: 0x1234, message: Message::Failure2(Explanation::GROUP) }.encode();
    let mut controller = replied(&rig).1;
    controller.handle_message(&failure, random());
    assert_eq!(controller.progress(), Progress::Failed(Explanation::GROUP));
    assert_eq!(controller.poll_message(4096), Given::Nothing);
}

#[test]
fn a_reply_before_its_challenge_and_a_value_without_a_group_are_refused() {
    let rig = rig(Group::Null);
    let good = replied(&rig).2;
    assert_eq!(controller_says(rig.controller(), &changed(&good, 4, &[0, 0])), Explanation::MESSAGE);
    // The challenge was made, and the host did not ask for it yet.
    let mut early = rig.controller();
    early.handle_message(&rig.host().poll_transmit().unwrap(), random());
    assert_eq!(controller_says(early, &good), Explanation::MESSAGE);
    let reply = Reply { response: &[1; 32], challenge: None, sequence: 0, value: &[2; 256] };
    let raw = Envelope { transaction: 0x1234, message: Message::Reply(reply) }.encode();
    assert_eq!(controller_says(replied(&rig).1, &raw), Explanation::PAYLOAD);
    let challenge = Challenge { hash: 1, group: 0, sequence: 1, challenge: &[5; 32], value: &[2; 256] };
    let raw = Envelope { transaction: 0x1234, message: Message::Challenge(challenge) }.encode();
    assert_eq!(broken(host_says(challenged(&rig).0, &raw).0), Explanation::PAYLOAD);
}

#[test]
fn a_host_finds_out_a_success_that_is_none() {
    for group in [Group::Null, Group::Ffdhe2048] {
        let rig = rig(group);
        let good = accepted(&rig).2;
        let says = |said: &[u8]| host_says(replied(&rig).0, said);
        for at in [16, 47] {
            let (error, told) = says(&changed(&good, at, &[good[at] ^ 0x80]));
            assert_eq!((error, told), (HostError::WrongController, Some(Explanation::FAILED)));
        }
        // RVALID 0, though C2 was sent: a controller that does not know the secret would say so.
        assert_eq!(says(&changed(&good, 8, &[0])), (HostError::NoResponse, Some(Explanation::FAILED)));
        assert_eq!(broken(says(&changed(&good, 5, &[0])).0), Explanation::PAYLOAD);
        assert_eq!(broken(says(&changed(&good, 6, &[64])).0), Explanation::PAYLOAD);
        let short =
            Envelope { transaction: 0x1234, message: Message::Success1(Success1 { hash_bytes: 48, response: None }) };
        assert_eq!(broken(says(&short.encode()).0), Explanation::PAYLOAD);
        for len in [0, 15, 16, good.len() - 1] {
            assert_eq!(broken(says(&good[..len]).0), Explanation::PAYLOAD);
        }
        // A second challenge, instead of a success.
        assert_eq!(broken(says(&challenged(&rig).2).0), Explanation::MESSAGE);
        let one_way = Rig { host_knows: (secret(0x11), None), ..rig };
        let host = replied(&one_way).0;
        assert_eq!(broken(host_says(host, &good).0), Explanation::PAYLOAD);
    }
}

/// A controller that knows no secret asks the host to answer its own challenge, to give that as its response.
#[test]
fn what_a_host_answers_is_no_answer_to_its_own_challenge() {
    for group in [Group::Null, Group::Ffdhe2048] {
        let mut rig = rig(group);
        // The worst case: both ends have the same secret, and one name.
        rig.host_knows = (secret(0x33), Some(secret(0x33)));
        rig.subsystem = rig.host.clone();
        let (mut host, _, challenge) = challenged(&rig);
        // C2 and S2 of the host are known to whoever saw an earlier reply with the same bytes.
        let own = changed(&changed(&challenge, 16, &[0xC2; 32]), 12, &0x0A0B_0C0Du32.to_le_bytes());
        host.handle_message(&own);
        let reply = host.poll_transmit().unwrap();
        let success = Success1 { hash_bytes: 32, response: Some(&reply[16..48]) };
        let raw = Envelope { transaction: 0x1234, message: Message::Success1(success) }.encode();
        assert_eq!(host_says(host, &raw), (HostError::WrongController, Some(Explanation::FAILED)));
    }
}

#[test]
fn a_controller_is_done_when_the_host_is_and_begins_anew_when_it_is_asked_to() {
    let rig = rig(Group::Null);
    let (mut host, mut controller, success) = accepted(&rig);
    assert_eq!(controller.progress(), Progress::Under);
    host.handle_message(&success);
    let last = host.poll_transmit().unwrap();
    // The wrong transaction first: the failure is the end, though the host was who it says.
    assert_eq!(controller_says(accepted(&rig).1, &changed(&last, 4, &[0])), Explanation::PAYLOAD);
    controller.handle_message(&last, random());
    assert!(matches!(controller.progress(), Progress::Done(_)) && host.outcome().unwrap().is_ok());
    assert_eq!(controller.poll_message(4096), Given::Nothing);
    controller.handle_message(&rig.host().poll_transmit().unwrap(), random());
    assert_eq!((controller.progress(), controller.poll_message(47)), (Progress::Under, Given::NoRoom));
    let message = controller.poll_message(48);
    assert!(matches!(message, Given::Message(raw) if raw.len() == 48));
    // The reply of the exchange before is none to this challenge, were it another one.
    let mut fresh = random();
    fresh.challenge = zeroize::Zeroizing::new([9; HASH_BYTES_MAX]);
    let (_, mut controller, reply) = replied(&rig);
    controller.handle_message(&rig.host().poll_transmit().unwrap(), fresh);
    message_of(&mut controller);
    assert_eq!(controller_says(controller, &reply), Explanation::FAILED);
}
