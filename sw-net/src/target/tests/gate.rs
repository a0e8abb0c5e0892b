//! What stands before a queue, against hosts that try to get round it.

use std::num::NonZeroU32;

use sw_nvme::{
    auth::{
        Hash, Offer, RANDOM_BYTES,
        group::Group,
        host::{Exchange, HostConfig, HostRandom},
        message::{Envelope, Explanation, Message},
        secret::Secret,
    },
    fabrics::{ANY_CONTROLLER, Demand},
};
use zeroize::Zeroizing;

use super::{super::subsystem::Subsystem, *};

const REQUIRED: Status = Status::new(1, 0x91).with_dnr();
const SEQUENCE: Status = Status::new(0, 0x0C).with_dnr();
const FIELD: Status = Status::new(0, 0x02).with_dnr();

fn secret(byte: u8) -> Secret {
    Secret::from_random(&[byte; RANDOM_BYTES], Hash::Sha256, None)
}

fn guarded() -> (Target, Host) {
    let (target, config) = started(|config| {
        let offer = Offer { hashes: vec![Hash::Sha256], groups: vec![Group::Null] };
        config.authentication = Some(Authentication { secret: secret(1).into(), controller_secret: None, offer });
    });
    let host = Host::new(&config.subsystem, BOTH);
    (target, host)
}

/// A queue that Connect made, its CNTLID, and the bits of AUTHREQ.
fn connected(target: &Target, host: &Host, controller: u16, qid: u16) -> (Client, u16, u64) {
    let mut client = Client::open(target.address(), host).unwrap();
    let done = client.run(&Command::connect(host.request(qid)), Move::Out(host.data(controller))).unwrap();
    assert_eq!(done.outcome, SUCCESS);
    (client, (done.value & 0xFFFF) as u16, done.value >> 16)
}

fn exchange(host: &Host, secret: &Secret) -> Exchange {
    let config = HostConfig {
        host: &host.nqn,
        subsystem: &host.subsystem,
        secret,
        controller_secret: None,
        offer: &Offer::default(),
    };
    let random = HostRandom {
        transaction: 77,
        sequence: NonZeroU32::MIN,
        challenge: Zeroizing::new([3; RANDOM_BYTES]),
        exponent: Zeroizing::new([4; RANDOM_BYTES]),
    };
    Exchange::new(config, random)
}

fn send(client: &mut Client, message: Vec<u8>) -> Result<Done, Fail> {
    client.run(&Command::authentication_send(message.len() as u32), Move::Out(message))
}

fn receive(client: &mut Client, bytes: usize) -> Result<Done, Fail> {
    client.run(&Command::authentication_receive(bytes as u32), Move::In(bytes))
}

/// The whole exchange with the right secret.
fn authenticate(client: &mut Client, host: &Host) {
    let mut exchange = exchange(host, &secret(1));
    while exchange.outcome().is_none() {
        match exchange.poll_transmit() {
            Some(message) => assert_eq!(send(client, message).unwrap().outcome, SUCCESS),
            None => exchange.handle_message(&receive(client, 4096).unwrap().data),
        }
    }
    assert!(exchange.outcome().unwrap().is_ok());
}

fn identify() -> Command {
    Command::identify(Identify::Controller, DataPointer::None)
}

#[test]
fn nothing_but_authentication_is_taken_before_it_is_done_on_either_kind_of_queue() {
    let (target, host) = guarded();
    let (mut admin, controller, demand) = connected(&target, &host, ANY_CONTROLLER, 0);
    assert_eq!(demand, 2);
    for command in [Command::property_get(0, PropertySize::Eight), Command::property_set(regs::CC, 0x46_0001)] {
        assert_eq!(told(&admin.run(&command, Move::None).unwrap()), REQUIRED);
    }
    assert_eq!(told(&admin.run(&Command::keep_alive(), Move::None).unwrap()), REQUIRED);
    assert_eq!(told(&admin.run(&identify(), Move::In(4096)).unwrap()), REQUIRED);
    authenticate(&mut admin, &host);
    admin.enable();
    let (mut io, _, demand) = connected(&target, &host, controller, 1);
    assert_eq!(demand, 2);
    assert_eq!(told(&io.read(0, 1, 4096).unwrap()), REQUIRED);
    assert_eq!(told(&io.write(0, 1, &[1; 4096]).unwrap()), REQUIRED);
    assert_eq!(told(&io.write(0, 16, &[1; 65536]).unwrap()), REQUIRED);
    authenticate(&mut io, &host);
    assert_eq!(io.write(0, 1, &[1; 4096]).unwrap().outcome, SUCCESS);
    assert_eq!((target.counters().authenticated, target.counters().writes), (2, 1));
    // A queue may be left without it.
    let (mut io, _, _) = connected(&target, &host, controller, 2);
    assert_eq!(io.run(&Command::disconnect(), Move::None).unwrap().outcome, SUCCESS);
}

#[test]
fn commands_of_authentication_are_checked_and_a_target_without_keys_has_none() {
    let (target, host) = guarded();
    let (mut admin, _, _) = connected(&target, &host, ANY_CONTROLLER, 0);
    let negotiate = || exchange(&host, &secret(1)).poll_transmit().unwrap();
    // Nothing was said yet, so there is nothing to be told.
    assert_eq!(told(&receive(&mut admin, 4096).unwrap()), SEQUENCE);
    let right = Command::authentication_send(72);
    // SECP, SPSP, and TL that is not what is sent.
    for (at, byte) in [(43, 0xEA), (41, 2), (42, 0), (44, 71), (45, 1)] {
        let done = admin.run(&changed(&right, at, &[byte]), Move::Out(negotiate())).unwrap();
        assert_eq!(told(&done), FIELD, "byte {at}");
    }
    let long = admin.run(&Command::authentication_send(4097), Move::Out(vec![0; 4097])).unwrap();
    assert_eq!(told(&long), Status::new(0, 0x0F).with_dnr());
    assert_eq!(told(&receive(&mut admin, 4096).unwrap()), SEQUENCE);
    assert_eq!(send(&mut admin, negotiate()).unwrap().outcome, SUCCESS);
    // Room for less than the challenge, for more than there may be, and another AL than there is room.
    for bytes in [4, 47, 4100, 65536] {
        assert_eq!(told(&receive(&mut admin, bytes).unwrap()), FIELD, "{bytes} bytes");
    }
    let other = changed(&Command::authentication_receive(4096), 44, &[0, 8]);
    assert_eq!(told(&admin.run(&other, Move::In(4096)).unwrap()), FIELD);
    // The challenge is still there.
    assert_eq!(receive(&mut admin, 48).unwrap().data[..2], [1, 1]);
    assert_eq!(target.counters().terminations, 0);

    let (open, config) = started(|_| {});
    let host = Host::new(&config.subsystem, BOTH);
    let (mut admin, controller) = host.admin(open.address());
    assert_eq!(told(&send(&mut admin, negotiate()).unwrap()), Status::INVALID_OPCODE.with_dnr());
    let mut io = host.io(open.address(), controller, 1);
    assert_eq!(told(&receive(&mut io, 4096).unwrap()), Status::INVALID_OPCODE.with_dnr());
}

#[test]
fn a_host_that_fails_is_told_so_and_the_connection_ends() {
    let (target, host) = guarded();
    let (mut admin, _, _) = connected(&target, &host, ANY_CONTROLLER, 0);
    let mut wrong = exchange(&host, &secret(2));
    send(&mut admin, wrong.poll_transmit().unwrap()).unwrap();
    wrong.handle_message(&receive(&mut admin, 4096).unwrap().data);
    send(&mut admin, wrong.poll_transmit().unwrap()).unwrap();
    let failure = receive(&mut admin, 4096).unwrap().data;
    let failed = Message::Failure1(Explanation::FAILED);
    assert_eq!(Envelope::decode(&failure), Ok(Envelope { transaction: 77, message: failed }));
    assert_eq!(admin.run(&identify(), Move::In(4096)).err(), Some(Fail::Closed));
    until("the end of the controller", || target.counters().controllers == 0);
    // A host that gives up is left, too.
    let (mut admin, _, _) = connected(&target, &host, ANY_CONTROLLER, 0);
    send(&mut admin, exchange(&host, &secret(1)).poll_transmit().unwrap()).unwrap();
    let gives_up = Envelope { transaction: 77, message: Message::Failure2(Explanation::GROUP) }.encode();
    send(&mut admin, gives_up).unwrap();
    assert_eq!(receive(&mut admin, 4096).err(), Some(Fail::Closed));
    // Nonsense is a failure as well, and no end of the process.
    let (mut admin, _, _) = connected(&target, &host, ANY_CONTROLLER, 0);
    send(&mut admin, vec![0xEE; 4096]).unwrap();
    assert_eq!(receive(&mut admin, 4096).unwrap().data[..2], [0, 0xF1]);
    until("three failures", || target.counters().authentication_failed == 3);
    assert_eq!((target.counters().panics, target.counters().authenticated), (0, 0));
}

#[test]
fn an_exchange_begins_anew_on_a_queue_in_use_and_its_failure_ends_the_queue() {
    let (target, host) = guarded();
    let (mut admin, controller, _) = connected(&target, &host, ANY_CONTROLLER, 0);
    authenticate(&mut admin, &host);
    admin.enable();
    let (mut io, _, _) = connected(&target, &host, controller, 1);
    authenticate(&mut io, &host);
    authenticate(&mut io, &host);
    let mut wrong = exchange(&host, &secret(2));
    send(&mut io, wrong.poll_transmit().unwrap()).unwrap();
    // Under way the queue goes on, as the host was known before.
    assert_eq!(io.read(0, 1, 4096).unwrap().outcome, SUCCESS);
    wrong.handle_message(&receive(&mut io, 4096).unwrap().data);
    send(&mut io, wrong.poll_transmit().unwrap()).unwrap();
    receive(&mut io, 4096).unwrap();
    assert_eq!(io.read(0, 1, 4096).err(), Some(Fail::Closed));
    assert_eq!(admin.run(&Command::keep_alive(), Move::None).unwrap().outcome, SUCCESS);
}

#[test]
fn a_host_that_stops_half_way_is_left_after_the_time_for_connect() {
    let (target, config) = started(|config| {
        config.connect_timeout = Duration::from_millis(1500);
        let offer = Offer::default();
        config.authentication = Some(Authentication { secret: secret(1).into(), controller_secret: None, offer });
    });
    let host = Host { keep_alive_ms: 60_000, ..Host::new(&config.subsystem, BOTH) };
    let (mut admin, _, _) = connected(&target, &host, ANY_CONTROLLER, 0);
    send(&mut admin, exchange(&host, &secret(1)).poll_transmit().unwrap()).unwrap();
    until("the end of the connection", || target.counters().connections_open == 0);
    assert_eq!((target.counters().authentication_failed, target.counters().keep_alive_expired), (1, 0));
}

#[test]
fn a_queue_whose_controller_ends_while_it_connects_is_not_open() {
    let offer = Offer { hashes: vec![Hash::Sha256], groups: vec![Group::Null] };
    let authentication = Some(Authentication { secret: secret(1).into(), controller_secret: None, offer });
    let subsystem = Subsystem::new(TargetConfig { authentication, ..TargetConfig::default() }).unwrap();
    let host = Host::new(&subsystem.config.subsystem, BOTH);
    let (admin, _) = subsystem.connect(host.request(0), &host.data(ANY_CONTROLLER), (0, 1)).unwrap();
    subsystem.set_cc(admin.controller, 0x46_0001).unwrap();
    let (_, gate) = subsystem.connect(host.request(1), &host.data(admin.controller), (0, 2)).unwrap();
    // The host that the controller is of hangs up in between.
    assert_eq!(subsystem.leave(&admin, 1), [2]);
    assert_eq!(gate.demand(), Demand::Authentication);
}

#[test]
fn a_host_that_fails_anew_and_does_not_want_to_hear_it_is_let_in_no_more() {
    let (target, host) = guarded();
    let (mut admin, controller, _) = connected(&target, &host, ANY_CONTROLLER, 0);
    authenticate(&mut admin, &host);
    admin.enable();
    let (mut io, _, _) = connected(&target, &host, controller, 1);
    authenticate(&mut io, &host);
    let mut wrong = exchange(&host, &secret(2));
    send(&mut io, wrong.poll_transmit().unwrap()).unwrap();
    wrong.handle_message(&receive(&mut io, 4096).unwrap().data);
    send(&mut io, wrong.poll_transmit().unwrap()).unwrap();
    // It does not ask for the failure.
    assert_eq!(told(&io.write(0, 1, &[1; 4096]).unwrap()), REQUIRED);
    assert_eq!(target.counters().writes, 0);
}

#[test]
fn who_did_not_show_who_it_is_does_not_keep_others_of_its_name_out() {
    let (target, host) = guarded();
    let stranger = Host { id: [9; 16], ..host.clone() };
    let (_admin, ..) = connected(&target, &stranger, ANY_CONTROLLER, 0);
    let (mut admin, ..) = connected(&target, &host, ANY_CONTROLLER, 0);
    authenticate(&mut admin, &host);
    // One that did is the host of that name.
    let mut twin = Client::open(target.address(), &stranger).unwrap();
    let done = twin.run(&Command::connect(stranger.request(0)), Move::Out(stranger.data(ANY_CONTROLLER))).unwrap();
    assert_eq!(told(&done), Status::new(1, 0x84).with_dnr());
}
