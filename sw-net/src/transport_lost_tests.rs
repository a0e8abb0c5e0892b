//! What is lost with a connection, and what must not be: ends, answers, places in a queue, the truth about a write.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
};

use sw_nvme::{
    paths::Holder,
    tcp::ledger::Gate as _,
    tcp::pdu::{self, Breach, FatalStatus, IcResp, Kind, Layout},
    wire::Completion,
};

use super::*;
use crate::target::{Faults, InitializeFault};

#[expect(clippy::disallowed_methods, reason = "that something arrived in a socket gives no sign before it is read")]
pub(super) fn nap(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

/// Commands of I/O queues that begin at a block end as `wrong`.
fn at_block(slba: u64, wrong: Wrong) -> Option<Arc<dyn Faults>> {
    let of_io = |seen: &Seen| seen.qid > 0 && seen.opcode != sw_nvme::fabrics::OPCODE;
    Some(Arc::new(move |seen: &Seen| (of_io(seen) && seen.slba == slba).then_some(wrong)))
}

fn shallow() -> ControllerConfig {
    ControllerConfig { depth: 1, ..ControllerConfig::default() }
}

#[test]
fn an_operation_that_was_cancelled_before_it_was_sent_ends_though_the_connection_is_lost() {
    let rig = Rig::new(TargetConfig { faults: at_block(0, Wrong::NeverAnswer), ..own() }, shallow());
    let (object, mut transport) = (rig.object(), rig.transport(TcpConfig::default()));
    let memory = [span(BLOCK, 0), span(BLOCK, 0)];
    transport.submit(&io(&object, IoKind::Read, 0, &memory[0], 1));
    transport.submit(&io(&object, IoKind::Read, BLOCK, &memory[1], 2));
    let mut none = Vec::with_capacity(4);
    for _ in 0..20 {
        transport.poll(Wait::For { timeout: Duration::from_millis(10), min: 1 }, &mut none).unwrap();
    }
    assert!(none.is_empty());
    rig.target.as_ref().unwrap().drop_connections();
    nap(200);
    transport.cancel(Token::from_raw(2));
    let ended = ends(&mut transport, 2, SOON);
    let result = |token| ended.iter().find(|done| done.token == Token::from_raw(token)).unwrap().result;
    assert_eq!(result(1), Err(Fault::new(ErrorKind::Io, 0).with_retry(Retry::Now)));
    assert_eq!(result(2), Err(Fault::new(ErrorKind::Cancelled, 0)));
    assert_eq!(transport.in_flight, 0);
}

#[test]
fn a_write_that_goes_on_though_its_end_was_asked_for_keeps_others_back() {
    const LATE: Duration = Duration::from_millis(600);
    let faults = |seen: &Seen| {
        let is_it = seen.qid > 0 && seen.opcode == opcode::WRITE && seen.slba == 0;
        is_it.then_some(Wrong::Delay(LATE))
    };
    let rig = Rig::new(TargetConfig { faults: Some(Arc::new(faults)), ..own() }, ControllerConfig::default());
    let object = rig.object();
    let (mut one, mut other) = (rig.transport(TcpConfig::default()), rig.transport(TcpConfig::default()));
    let memory = span(BLOCK, 7);
    for lane in [&mut one, &mut other] {
        lane.submit(&io(&object, IoKind::Write, 5 * BLOCK, &memory, 1));
        assert_eq!(ends(lane, 1, SOON)[0].result, Ok(4096), "it has a connection, and takes writes for safe");
    }
    let begun = now();
    one.submit(&io(&object, IoKind::Write, 0, &memory, 2));
    one.ring().unwrap();
    nap(100);
    // Whoever asked is told now that its outcome is unknown, and writes again, by another lane.
    one.cancel(Token::from_raw(2));
    one.cancel(Token::from_raw(2));
    other.submit(&io(&object, IoKind::Write, BLOCK, &memory, 3));
    other.submit(&io(&object, IoKind::Read, BLOCK, &memory, 4));
    let first = ends(&mut other, 1, SOON).remove(0);
    assert_eq!((first.token, first.result), (Token::from_raw(4), Ok(4096)), "a read waits for nothing");
    assert!(now().since(begun) < LATE);
    assert_eq!(ends(&mut one, 1, SOON)[0].result, Ok(4096));
    let then = ends(&mut other, 1, SOON).remove(0);
    assert_eq!((then.token, then.result), (Token::from_raw(3), Ok(4096)));
    assert!(now().since(begun) >= LATE);
}

#[test]
fn a_write_that_was_answered_is_answered_though_the_connection_is_lost_behind_it() {
    let faults = at_block(0, Wrong::DropAfter);
    let rig = Rig::new(TargetConfig { faults, ..own() }, ControllerConfig::default());
    let (object, mut transport) = (rig.object(), rig.transport(TcpConfig::default()));
    let memory = span(BLOCK, 7);
    // So that there is a connection.
    transport.submit(&io(&object, IoKind::Read, BLOCK, &memory, 1));
    assert_eq!(ends(&mut transport, 1, SOON)[0].result, Ok(4096));
    transport.submit(&io(&object, IoKind::Write, 0, &memory, 2));
    transport.ring().unwrap();
    // Answer and end are both there when they are looked at.
    nap(300);
    assert_eq!(ends(&mut transport, 1, SOON)[0].result, Ok(4096));
}

#[test]
fn a_command_that_nobody_waits_for_does_not_keep_its_place_for_ever() {
    let rig = Rig::new(TargetConfig { faults: at_block(0, Wrong::NeverAnswer), ..own() }, shallow());
    let object = rig.object();
    let mut transport =
        rig.transport(TcpConfig { command_timeout: Duration::from_millis(500), ..TcpConfig::default() });
    let memory = [span(BLOCK, 0), span(BLOCK, 0)];
    transport.submit(&io(&object, IoKind::Read, 0, &memory[0], 1));
    let mut none = Vec::with_capacity(4);
    for _ in 0..20 {
        transport.poll(Wait::For { timeout: Duration::from_millis(10), min: 1 }, &mut none).unwrap();
    }
    transport.cancel(Token::from_raw(1));
    assert_eq!(ends(&mut transport, 1, SOON)[0].result, Err(Fault::new(ErrorKind::Cancelled, 0)));
    // The queue has one place, and the target never gives it back.
    transport.submit(&io(&object, IoKind::Read, BLOCK, &memory[1], 2));
    assert_eq!(ends(&mut transport, 1, SOON)[0].result, Ok(4096));
}

#[test]
fn a_write_of_which_a_command_may_still_be_carried_out_is_not_sent_again() {
    // Two commands: one says that it may be tried again, of the other nothing is known.
    let faults = |seen: &Seen| match (seen.qid, seen.opcode, seen.slba) {
        (1.., opcode::WRITE, 0) => Some(Wrong::Status(status::Status::NAMESPACE_NOT_READY)),
        (1.., opcode::WRITE, _) => Some(Wrong::NeverAnswer),
        _ => None,
    };
    let target = TargetConfig { mdts: 1, faults: Some(Arc::new(faults)), ..own() };
    let rig = Rig::new(target, ControllerConfig::default());
    let object = rig.object();
    let mut transport =
        rig.transport(TcpConfig { command_timeout: Duration::from_millis(500), ..TcpConfig::default() });
    let memory = span(4 * BLOCK, 7);
    transport.submit(&io(&object, IoKind::Write, 0, &memory, 1));
    let lost = Fault::new(ErrorKind::Io, 0);
    assert_eq!(ends(&mut transport, 1, SOON)[0].result, Err(lost));
}

#[test]
fn a_status_is_told_by_its_name_and_not_by_a_connection_that_was_lost_before() {
    let faults = at_block(0, Wrong::Status(status::Status::INTERNAL.with_dnr()));
    let rig = Rig::new(TargetConfig { faults, ..own() }, ControllerConfig::default());
    let (object, mut transport) = (rig.object(), rig.transport(TcpConfig::default()));
    let memory = span(BLOCK, 0);
    let read = |transport: &mut TcpTransport, at| {
        transport.submit(&io(&object, IoKind::Read, at, &memory, 1));
        ends(transport, 1, SOON).remove(0).result
    };
    assert_eq!(read(&mut transport, BLOCK), Ok(4096));
    rig.target.as_ref().unwrap().drop_connections();
    let lost = read(&mut transport, BLOCK).unwrap_err();
    assert!(transport.explain(object.faces[0].handle, lost).is_some());
    let told = (0..4).map(|_| read(&mut transport, 0).unwrap_err()).find(|fault| fault.code != 0).unwrap();
    assert_eq!(told.kind, ErrorKind::Io);
    let why = transport.explain(object.faces[0].handle, told).unwrap().to_string();
    assert!(why.contains("the target answered: internal error (sct 0h, sc 06h, dnr)"), "{why}");
    assert!(transport.explain(object.faces[0].handle, lost).is_none());
}

#[test]
fn a_connection_that_a_forked_child_keeps_open_does_not_keep_its_lane_awake() {
    let rig = Rig::new(own(), ControllerConfig::default());
    let (object, mut transport) = (rig.object(), rig.transport(TcpConfig::default()));
    let memory = span(BLOCK, 0);
    let read = |transport: &mut TcpTransport| {
        transport.submit(&io(&object, IoKind::Read, BLOCK, &memory, 1));
        ends(transport, 1, SOON).remove(0).result
    };
    assert_eq!(read(&mut transport), Ok(4096));
    let Some(Leg { place: Place::Linked(link), .. }) = transport.legs.first() else { panic!() };
    // As the child has it: another descriptor of the same connection.
    let kept = link.queue.connection.handle().unwrap();
    rig.target.as_ref().unwrap().drop_connections();
    assert!(read(&mut transport).is_err());
    assert!((0..3).any(|_| read(&mut transport).is_ok()));
    let (start, mut turns) = (now(), 0);
    while now().since(start) < Duration::from_millis(300) {
        transport.waiter.wait(Duration::from_millis(100));
        turns += 1;
    }
    assert!(turns < 20, "{turns} wake-ups for nothing");
    drop(kept);
}

/// Keep-alive is not answered, and no second connection is begun.
struct Deaf;

impl Faults for Deaf {
    fn command(&self, seen: &Seen) -> Option<Wrong> {
        (seen.qid == 0 && seen.opcode == 0x18).then_some(Wrong::NeverAnswer)
    }

    fn initialize(&self, connection: u64) -> Option<InitializeFault> {
        (connection > 0).then_some(InitializeFault::Drop)
    }
}

#[test]
fn the_connection_of_an_association_that_was_given_up_is_closed() {
    let host = ControllerConfig {
        timeout: Duration::from_millis(300),
        patience: Duration::ZERO,
        keep_alive: Duration::from_secs(60),
        ..ControllerConfig::default()
    };
    let rig = Rig::new(TargetConfig { faults: Some(Arc::new(Deaf)), ..own() }, host);
    let target = rig.target.as_ref().unwrap();
    assert_eq!(target.counters().controllers, 1);
    rig.controller.suspect();
    let wait = |is: &dyn Fn() -> bool| (0..100).any(|_| is() || (nap(30), false).1);
    assert!(wait(&|| rig.controller.is_gone()));
    assert!(wait(&|| target.counters().controllers == 0), "{:?}", target.counters());
}

/// A target that reads `asked` bytes and answers, for each of the pairs, and then hangs up.
fn opens(script: Vec<(usize, Vec<u8>)>) -> Error {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap();
    let thread = std::thread::Builder::new().spawn(move || {
        let (mut one, _) = server.accept().unwrap();
        for (asked, answer) in script {
            one.read_exact(&mut vec![0; asked]).unwrap();
            one.write_all(&answer).unwrap();
        }
        drop(one);
        // Whoever asks again is told that nobody is there.
        drop(server);
    });
    let address = Address {
        host: at.ip().to_string(),
        port: at.port(),
        subsystem: Nqn::new("nqn.2026-11.io.example:x").unwrap(),
    };
    let error = Controller::open(address, identity(), ControllerConfig::default()).map(drop).unwrap_err();
    thread.unwrap().join().unwrap();
    error
}

#[test]
fn a_target_that_refuses_and_hangs_up_is_heard() {
    let initialize = IcResp { format: 0, alignment: 0, digests: Digests::default(), h2c_bytes_max: 4096 }.encode();
    // Invalid Host, for the first command.
    let mut raw = [0; 16];
    raw[12..14].copy_from_slice(&(1u16 << 10).to_le_bytes());
    raw[14..16].copy_from_slice(&(0x184u16 << 1).to_le_bytes());
    let refused = Layout::default().response(&Completion::new(raw));
    let script = vec![(128, initialize.as_bytes().to_vec()), (72 + 1024, refused.as_bytes().to_vec())];
    let error = opens(script);
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
}

#[test]
fn a_target_that_refuses_the_first_unit_with_its_header_is_heard() {
    let breach = Breach { status: FatalStatus::Unsupported, information: 8, rule: "" };
    let mut term = pdu::termination(Kind::C2hTerm, &breach).as_bytes().to_vec();
    term[4..8].copy_from_slice(&152u32.to_le_bytes());
    term.extend([0; 128]);
    let error = opens(vec![(128, term)]);
    assert!(error.to_string().contains("unsupported parameter (FES 6, FEI 0x8)"), "{error}");
}

#[test]
fn a_target_that_answers_slowly_is_waited_for_so_long_only() {
    let faults = |seen: &Seen| (seen.number > 0).then_some(Wrong::Delay(Duration::from_millis(100)));
    let target = TargetConfig { faults: Some(Arc::new(faults)), ..own() };
    let subsystem = target.subsystem.clone();
    let target = Target::start(target).unwrap();
    let at = target.address();
    let address = Address { host: at.ip().to_string(), port: at.port(), subsystem };
    let host = ControllerConfig { association_timeout: Duration::from_millis(350), ..ControllerConfig::default() };
    let start = now();
    let error = Controller::open(address, identity(), host).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(now().since(start) < Duration::from_millis(800), "{:?}", now().since(start));
}

#[test]
fn a_write_that_finds_its_connection_lost_before_it_was_sent_goes_to_the_next_one() {
    let target = TargetConfig { mdts: 1, ..own() };
    let rig = Rig::new(target, ControllerConfig { depth: 2, ..ControllerConfig::default() });
    let (object, mut transport) = (rig.object(), rig.transport(TcpConfig::default()));
    let memory = span(16 * BLOCK, 7);
    let mut results = Vec::new();
    for round in 1..4 {
        transport.submit(&io(&object, IoKind::Write, 0, &memory, round));
        results.push(ends(&mut transport, 1, SOON)[0].result);
        // The lane sleeps while the association goes and comes back.
        rig.target.as_ref().unwrap().drop_connections();
        rig.controller.suspect();
        assert!((0..200).any(|_| rig.controller.facts().association == round + 1 || (nap(20), false).1));
    }
    assert_eq!(results, [Ok(65536); 3]);
}

#[test]
fn what_was_opened_in_the_next_association_is_not_looked_for_in_the_one_before() {
    let one = own();
    let config = |serial: &str, listen| TargetConfig { serial: serial.to_owned(), listen, ..one.clone() };
    let mut rig = Rig::new(config("ONE", one.listen), ControllerConfig::default());
    let (old, mut transport, memory) = (rig.object(), rig.transport(TcpConfig::default()), span(BLOCK, 0));
    transport.submit(&io(&old, IoKind::Read, 0, &memory, 1));
    assert_eq!(ends(&mut transport, 1, SOON)[0].result, Ok(4096));
    let at = rig.target.take().unwrap().address();
    rig.target = Some(Target::start(config("TWO", at)).unwrap());
    rig.controller.suspect();
    assert!((0..200).any(|_| rig.controller.facts().association == 2 || (nap(20), false).1));
    // The lane slept, and still has its connection to the target before.
    Paths::of(rig.controller.clone()).expect_up().unwrap();
    let new = rig.object();
    transport.submit(&io(&new, IoKind::Read, 0, &memory, 2));
    assert_eq!(ends(&mut transport, 1, SOON)[0].result, Ok(4096));
    transport.submit(&io(&old, IoKind::Read, 0, &memory, 3));
    assert_eq!(ends(&mut transport, 1, SOON)[0].result, Err(Fault::new(ErrorKind::Changed, 0)));
}

#[test]
fn a_write_into_a_connection_that_was_lost_while_it_rested_is_not_of_unknown_outcome() {
    let rig = Rig::new(own(), ControllerConfig::default());
    let (object, mut transport, memory) = (rig.object(), rig.transport(TcpConfig::default()), span(BLOCK, 7));
    let mut write = |number| {
        transport.submit(&io(&object, IoKind::Write, 0, &memory, number));
        ends(&mut transport, 1, Duration::from_secs(5)).remove(0).result
    };
    assert_eq!(write(1), Ok(4096));
    // Nobody has noticed yet: neither the lane, which rests, nor the attendant, whose next sign of life is not due.
    rig.target.as_ref().unwrap().drop_connections();
    nap(300);
    assert_eq!(write(2), Ok(4096));
    assert_eq!(rig.controller.facts().association, 2);
}

/// Another controller of the subsystem that the rig has, by that port.
fn opened_again(rig: &Rig, at: std::net::SocketAddr) -> Arc<Controller> {
    let subsystem = rig.controller.address().subsystem.clone();
    let address = Address { host: at.ip().to_string(), port: at.port(), subsystem };
    Controller::open(address, identity(), ControllerConfig::default()).unwrap()
}

/// A target with two ports.
fn two_ports() -> TargetConfig {
    TargetConfig { more: vec![own().listen], ..own() }
}

#[test]
fn a_subsystem_that_is_opened_again_is_fenced_as_long_as_it_was_before_by_whichever_port() {
    let rig = Rig::new(two_ports(), ControllerConfig::default());
    rig.controller.doubt(&rig.controller.facts());
    let doubted = now();
    rig.controller.shut_down();
    for at in rig.target.as_ref().unwrap().addresses() {
        let next = opened_again(&rig, *at);
        assert!(!next.family().is_safe(now()), "{at}");
        next.shut_down();
    }
    // Asked last: fences that are over are forgotten.
    assert!(rig.controller.family().is_safe(doubted.after(Duration::from_secs(25))));
    // What nobody was in doubt of is not waited for.
    let quiet = Rig::new(own(), ControllerConfig::default());
    quiet.controller.shut_down();
    let next = opened_again(&quiet, quiet.target.as_ref().unwrap().address());
    assert!(next.family().is_safe(now()));
    next.shut_down();
}

#[test]
fn two_engines_that_reach_a_subsystem_by_different_ports_have_one_fence() {
    let rig = Rig::new(two_ports(), ControllerConfig::default());
    let other = opened_again(&rig, rig.target.as_ref().unwrap().addresses()[1]);
    assert!(other.family().is_safe(now()));
    rig.controller.doubt(&rig.controller.facts());
    assert!(!other.family().is_safe(now()));
    other.shut_down();
}

#[test]
fn a_subsystem_that_was_given_up_before_lanes_told_of_their_writes_is_fenced_when_it_is_opened_again() {
    let host = ControllerConfig { patience: Duration::ZERO, ..ControllerConfig::default() };
    let mut rig = Rig::new(own(), host);
    rig.target = None;
    rig.controller.suspect();
    assert!((0..200).any(|_| rig.controller.is_gone() || (nap(20), false).1));
    // At another port.
    let subsystem = rig.controller.address().subsystem.clone();
    let target = Target::start(TargetConfig { subsystem, ..own() }).unwrap();
    let next = opened_again(&rig, target.address());
    assert!(!next.family().is_safe(now()));
    next.shut_down();
}

#[test]
fn a_write_that_waited_for_the_fence_goes_by_what_the_controller_says_then() {
    let rig = Rig::new(own(), ControllerConfig::default());
    let (object, mut transport, memory) = (rig.object(), rig.transport(TcpConfig::default()), span(BLOCK, 7));
    transport.submit(&io(&object, IoKind::Read, 0, &memory, 1));
    assert_eq!(ends(&mut transport, 1, SOON)[0].result, Ok(4096));
    let nobody = Holder { controller: u64::MAX, association: 1 };
    rig.controller.family().raise(nobody, now().after(Duration::from_millis(400)), None);
    transport.submit(&io(&object, IoKind::Write, 0, &memory, 2));
    transport.ring().unwrap();
    // Another namespace has the number meanwhile.
    let mut facts = facts_of(&rig);
    facts.namespaces[0].generation += 1;
    facts.revision += 1;
    rig.controller.publish(facts);
    assert_eq!(ends(&mut transport, 1, SOON)[0].result, Err(Fault::new(ErrorKind::Changed, 0).not_applied()));
    assert_eq!(rig.target.as_ref().unwrap().counters().writes, 0);
}

fn facts_of(rig: &Rig) -> crate::Facts {
    crate::Facts::clone(&rig.controller.facts())
}

/// I/O queues of these numbers are never there.
fn without(qids: std::ops::RangeInclusive<u16>) -> TargetConfig {
    let faults = move |seen: &Seen| {
        let is_connect = seen.opcode == sw_nvme::fabrics::OPCODE && seen.fabrics_kind == 1;
        (is_connect && qids.contains(&seen.qid)).then_some(Wrong::Status(status::Status::INVALID_QUEUE_ID))
    };
    TargetConfig { queues_max: 4, faults: Some(Arc::new(faults)), ..own() }
}

#[test]
fn a_queue_that_is_still_there_is_passed_over_for_one_that_is_free() {
    let rig = Rig::new(without(1..=3), ControllerConfig::default());
    let (object, mut transport, memory) = (rig.object(), rig.transport(TcpConfig::default()), span(BLOCK, 7));
    let start = now();
    transport.submit(&io(&object, IoKind::Read, 0, &memory, 1));
    assert_eq!(ends(&mut transport, 1, SOON)[0].result, Ok(4096));
    assert!(now().since(start) < Duration::from_millis(900), "{:?}", now().since(start));
}

#[test]
fn who_closes_a_controller_does_not_wait_for_queues_that_are_still_there() {
    let rig = Rig::new(without(1..=4), ControllerConfig::default());
    let (object, mut transport, memory) = (rig.object(), rig.transport(TcpConfig::default()), span(BLOCK, 7));
    transport.submit(&io(&object, IoKind::Read, 0, &memory, 1));
    transport.ring().unwrap();
    nap(100);
    let start = now();
    drop(rig);
    assert!(now().since(start) < Duration::from_millis(600), "{:?}", now().since(start));
    assert!(ends(&mut transport, 1, SOON)[0].result.is_err());
}

#[test]
fn a_controller_is_as_patient_as_the_most_patient_who_has_it() {
    let host = ControllerConfig { patience: Duration::from_millis(300), ..ControllerConfig::default() };
    let config = own();
    let mut rig = Rig::new(config.clone(), host);
    assert_eq!(rig.controller.be_patient(Duration::MAX), crate::Patient::Yes);
    let listen = rig.target.take().unwrap().address();
    rig.controller.suspect();
    nap(1500);
    assert!(!rig.controller.is_gone());
    rig.target = Some(Target::start(TargetConfig { listen, ..config }).unwrap());
    assert!((0..400).any(|_| rig.controller.facts_if_up().is_some() || (nap(20), false).1));
    // One that is gone is not called back.
    rig.controller.shut_down();
    assert_eq!(rig.controller.be_patient(Duration::MAX), crate::Patient::TooLate);
}
