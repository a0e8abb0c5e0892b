//! Every fault, as the product's end of a queue sees it.

use sw_nvme::tcp::host::Outcome;

use super::*;

/// The block whose commands go wrong.
const BAD: u64 = 77;

/// A target whose I/O on block 77 has `fault`, if it is of `opcode`.
fn faulty(opcode: u8, fault: Fault) -> (Target, Host, Client, Client) {
    let faults = move |seen: &Seen| (seen.qid == 1 && seen.opcode == opcode && seen.slba == BAD).then_some(fault);
    let change = |config: &mut TargetConfig| {
        config.faults = Some(Arc::new(faults));
        (config.c2h_bytes_max, config.r2t_bytes_max) = (8192, 16384);
    };
    let joined = joined(change, BOTH);
    // Without DropBefore and the like in the way, block 77 is as any other.
    assert!(joined.0.counters().commands >= 4);
    joined
}

fn read(fault: Fault) -> (Target, Host, Client, Client, Result<Done, Fail>) {
    let (target, host, admin, mut io) = faulty(command::opcode::READ, fault);
    assert_eq!(io.read(BAD - 1, 8, 4096).unwrap().outcome, SUCCESS);
    let got = io.read(BAD, 8, 4096);
    (target, host, admin, io, got)
}

fn write(fault: Fault, blocks: u32) -> (Target, Host, Client, Client, Result<Done, Fail>) {
    let (target, host, admin, mut io) = faulty(command::opcode::WRITE, fault);
    let got = io.write(BAD, blocks, &vec![5; blocks as usize * 4096]);
    (target, host, admin, io, got)
}

#[test]
fn a_delayed_command_is_passed_by_others_and_ends_in_the_end() {
    let by = Duration::from_millis(700);
    let (_target, _, _admin, mut io) = faulty(command::opcode::READ, Fault::Delay(by));
    let begin = clock();
    let slow = io.begin(&Command::read(at(BAD, 1), DataPointer::None, IoFlags::NONE), Move::In(4096)).unwrap();
    let fast = io.begin(&Command::read(at(0, 1), DataPointer::None, IoFlags::NONE), Move::In(4096)).unwrap();
    assert_eq!(io.end().unwrap().user, fast.0);
    let done = io.end().unwrap();
    assert_eq!((done.user, done.outcome), (slow.0, SUCCESS));
    assert!(begin.elapsed() >= by);
}

#[test]
fn a_connection_is_dropped_before_after_and_in_the_middle() {
    for (fault, written) in [(Fault::DropBefore, 0), (Fault::DropAfter, 5)] {
        let (target, host, _admin, mut io, got) = write(fault, 1);
        match fault {
            Fault::DropBefore => assert_eq!(got.unwrap_err(), Fail::Closed),
            _ => {
                assert_eq!(got.unwrap().outcome, SUCCESS);
                assert_eq!(io.end().unwrap_err(), Fail::Closed);
            }
        }
        until("the end of the queue", || target.counters().connections_open == 1);
        let mut again = host.io(target.address(), 1, 1);
        assert!(again.read(BAD, 1, 4096).unwrap().data.iter().all(|byte| *byte == written), "{fault:?}");
    }
    // Of a read a part came; of a write the wish.
    assert_eq!(read(Fault::DropAfterUnit).4.unwrap_err(), Fail::Closed);
    assert_eq!(write(Fault::DropAfterUnit, 16).4.unwrap_err(), Fail::Closed);
}

#[test]
fn a_command_without_an_answer_leaves_the_others_alone() {
    let (_target, _, _admin, mut io) = faulty(command::opcode::READ, Fault::NeverAnswer);
    io.begin(&Command::read(at(BAD, 1), DataPointer::None, IoFlags::NONE), Move::In(4096)).unwrap();
    assert_eq!(io.read(0, 1, 4096).unwrap().outcome, SUCCESS);
    io.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!(io.end().unwrap_err(), Fail::TimedOut);
}

#[test]
fn statuses_come_with_and_without_dnr() {
    for status in [Status::UNRECOVERED_READ, Status::INTERNAL.with_dnr()] {
        let (_target, _, _admin, mut io, got) = read(Fault::Status(status));
        assert_eq!(told(&got.unwrap()), status);
        assert_eq!(io.read(0, 1, 4096).unwrap().outcome, SUCCESS);
    }
    let (target, _, _admin, _io, got) = write(Fault::Status(Status::WRITE_FAULT), 16);
    assert_eq!((told(&got.unwrap()), target.counters().writes), (Status::WRITE_FAULT, 0));
}

#[test]
fn success_with_short_data_is_seen_as_such() {
    assert_eq!(read(Fault::ShortData(512)).4.unwrap().outcome, Outcome::Short { moved: 32768 - 512 });
    assert_eq!(read(Fault::ShortData(1 << 20)).4.unwrap().outcome, Outcome::Short { moved: 0 });
    assert_eq!(write(Fault::ShortData(4096), 16).4.unwrap().outcome, Outcome::Short { moved: 15 * 4096 });
}

#[test]
fn wrong_digests_offsets_identifiers_and_wishes_are_found_out() {
    let broken = |got: Result<Done, Fail>, rule: &str| match got {
        Err(Fail::Breach(why)) => assert!(why.contains(rule), "{why}"),
        other => panic!("{other:?} where {rule} was expected"),
    };
    broken(read(Fault::WrongHeaderDigest).4, "a header does not fit its digest");
    broken(write(Fault::WrongHeaderDigest, 16).4, "a header does not fit its digest");
    let (_target, _, _admin, mut io, got) = read(Fault::WrongDataDigest);
    assert_eq!(got.unwrap().outcome, Outcome::WrongDigest);
    assert_eq!(io.read(0, 8, 4096).unwrap().outcome, SUCCESS);
    broken(read(Fault::UnknownCid).4, "a command that is not under way");
    broken(write(Fault::UnknownCid, 16).4, "a command that is not under way");
    broken(write(Fault::UnknownCid, 1).4, "a command that is not under way");
    // The answer itself is good; what comes behind it belongs to nobody.
    let (_target, _, _admin, mut io, got) = read(Fault::AnswerTwice);
    assert_eq!(got.unwrap().outcome, SUCCESS);
    broken(io.read(0, 8, 4096), "a command that is not under way");
    let (_target, _, _admin, mut io, got) = write(Fault::AnswerTwice, 16);
    assert_eq!(got.unwrap().outcome, SUCCESS);
    broken(io.read(0, 8, 4096), "a command that is not under way");
    broken(write(Fault::R2tOutOfRange, 16).4, "an R2T");
    broken(read(Fault::WrongOffset).4, "data that does not follow");
}

#[test]
fn a_half_closed_connection_sends_nothing_and_still_listens() {
    let (target, _, _admin, mut io, got) = read(Fault::HalfClose);
    assert_eq!(got.unwrap_err(), Fail::Closed);
    // It is the host's turn to close.
    assert!(io.stream.write_all(&[]).is_ok());
    assert_eq!(target.counters().connections_open, 2);
    drop(io);
    until("the end of the queue", || target.counters().connections_open == 1);
}

struct Beginning(InitializeFault);

impl Faults for Beginning {
    fn command(&self, _: &Seen) -> Option<Fault> {
        None
    }

    fn initialize(&self, connection: u64) -> Option<InitializeFault> {
        (connection == 1).then_some(self.0)
    }
}

#[test]
fn the_beginning_of_a_connection_goes_wrong() {
    let cases = [
        (InitializeFault::Drop, Fail::Closed),
        (InitializeFault::NeverAnswer, Fail::TimedOut),
        (InitializeFault::WrongFormat, Fail::Breach("the controller answers in a format that is not known (PFV)")),
        (InitializeFault::UnaskedDigests, Fail::Breach("the controller uses digests that nobody asked for")),
        (InitializeFault::SmallData, Fail::Breach("MAXH2CDATA is below 4,096 or no multiple of four")),
    ];
    for (fault, why) in cases {
        let (target, config) = started(|config| config.faults = Some(Arc::new(Beginning(fault))));
        let host = Host::new(&config.subsystem, NONE);
        let (_admin, _) = host.admin(target.address());
        let patience = if fault == InitializeFault::NeverAnswer { Duration::from_millis(200) } else { PATIENCE };
        assert_eq!(Client::open_within(target.address(), &host, patience).err(), Some(why));
        assert!(Client::open(target.address(), &host).is_ok());
    }
}

#[test]
fn faults_are_told_what_comes() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = Arc::clone(&seen);
    let faults = move |of: &Seen| {
        keep.lock().unwrap().push((of.connection, of.number, of.qid, of.opcode, of.fabrics_kind, of.slba));
        None
    };
    let (_target, _, _admin, mut io) = joined(|config| config.faults = Some(Arc::new(faults)), NONE);
    io.read(3, 1, 4096).unwrap();
    let seen = seen.lock().unwrap().clone();
    let of =
        |connection| seen.iter().filter(|of| of.0 == connection).map(|of| (of.1, of.2, of.3, of.4)).collect::<Vec<_>>();
    assert_eq!(of(0), [(0, 0, 0x7F, 1), (1, 0, 0x7F, 0), (2, 0, 0x7F, 4)]);
    assert_eq!(of(1), [(0, 1, 0x7F, 1), (1, 1, 2, 0)]);
    assert_eq!(seen.last().unwrap().5, 3);
}
