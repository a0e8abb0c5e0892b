//! Hosts that break the rules.

use proptest::prelude::*;
use sw_nvme::tcp::pdu::{self, Data, FatalStatus, Head, IcReq, Kind, Layout, R2t, flags};

use super::*;

fn raw(target: &Target) -> TcpStream {
    let stream = TcpStream::connect(target.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn request(digests: Digests) -> IcReq {
    IcReq { format: 0, alignment: 0, digests, r2t_max: 0 }
}

/// A connection behind ICReq and ICResp.
pub fn initialized(target: &Target, digests: Digests) -> TcpStream {
    let mut stream = raw(target);
    stream.write_all(request(digests).encode().as_bytes()).unwrap();
    stream.read_exact(&mut [0; 128]).unwrap();
    stream
}

/// FES and FEI of the termination that the connection ends with.
fn ended(mut stream: TcpStream) -> (u16, u32) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.len() >= 24, "no termination");
    let last = &rest[rest.len() - 24..];
    assert_eq!(last[0], Kind::C2hTerm as u8);
    pdu::terminated(last)
}

fn edited(head: &Head, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut raw = head.as_bytes().to_vec();
    raw[at..at + bytes.len()].copy_from_slice(bytes);
    raw
}

#[test]
fn what_breaks_the_transport_ends_with_a_termination_that_says_why() {
    let (target, _) = started(|_| {});
    let good = request(NONE).encode();
    let flush = Layout::default().command(&Command::flush(1), 0);
    let first: [(Vec<u8>, (u16, u32)); 7] = [
        (flush.as_bytes().to_vec(), (2, 0)),
        (edited(&good, 0, &[8]), (1, 0)),
        (edited(&good, 2, &[64]), (1, 2)),
        (edited(&good, 4, &[0xFF; 4]), (1, 4)),
        (edited(&good, 1, &[1]), (1, 1)),
        (edited(&good, 8, &[1]), (FatalStatus::Unsupported as u16, 8)),
        (edited(&good, 10, &[32]), (1, 10)),
    ];
    for (bytes, why) in &first {
        let mut stream = raw(&target);
        stream.write_all(bytes).unwrap();
        assert_eq!(ended(stream), *why, "{bytes:02x?}");
    }
    let data = Layout::default().host_data(Data { cid: 0, at: 0, bytes: 4 }, 9, flags::LAST);
    let then: [(Vec<u8>, (u16, u32)); 6] = [
        (good.as_bytes().to_vec(), (2, 0)),
        (edited(&flush, 3, &[0]).into_iter().chain([0; 8196]).collect(), (1, 4)),
        ([data.as_bytes(), &[0; 4]].concat(), (1, 10)),
        (edited(&flush, 4, &71u32.to_le_bytes()), (1, 4)),
        (edited(&flush, 1, &[2]), (1, 1)),
        (Layout::default().ready(R2t { cid: 0, tag: 0, at: 0, bytes: 4 }).as_bytes().to_vec(), (2, 0)),
    ];
    for (index, (bytes, why)) in then.iter().enumerate() {
        let mut bytes = bytes.clone();
        if index == 1 {
            // A capsule with four bytes more than may be: PDO, PLEN.
            bytes[3] = 72;
            bytes[4..8].copy_from_slice(&(72u32 + 8196).to_le_bytes());
        }
        let mut stream = initialized(&target, NONE);
        stream.write_all(&bytes).unwrap();
        assert_eq!(ended(stream), *why, "{:02x?}", &bytes[..24]);
    }
    let mut stream = initialized(&target, BOTH);
    let layout = Layout { digests: BOTH, alignment: 0 };
    stream.write_all(&edited(&layout.command(&Command::flush(1), 0), 72, &[0; 4])).unwrap();
    assert_eq!(ended(stream), (FatalStatus::HeaderDigest as u16, 0));
    assert_eq!(target.counters().terminations, 14);
    // A host that ends the connection itself is not answered.
    let mut stream = initialized(&target, NONE);
    let breach = pdu::Breach { status: FatalStatus::Sequence, information: 0, rule: "" };
    stream.write_all(pdu::termination(Kind::H2cTerm, &breach).as_bytes()).unwrap();
    assert_eq!(stream.read(&mut [0; 24]).unwrap(), 0);
}

/// A Data Block of so many bytes.
pub fn descriptor(bytes: u32, kind: u8) -> [u8; 16] {
    let mut block = [0; 16];
    block[8..12].copy_from_slice(&bytes.to_le_bytes());
    block[15] = kind;
    block
}

/// Begins a write of 16 KiB by hand; gives the wish for its data.
fn wished(io: &mut TcpStream, cid: u16) -> R2t {
    let block = descriptor(16384, 0x5A);
    let write = Command::write(at(0, 4), DataPointer::Sgl(block), IoFlags::NONE).with_cid(cid);
    io.write_all(Layout::default().command(&write, 0).as_bytes()).unwrap();
    let mut wish = [0; 24];
    io.read_exact(&mut wish).unwrap();
    assert_eq!(wish[0], Kind::R2t as u8);
    R2t::decode(&wish)
}

#[test]
fn data_that_was_not_asked_for_so_ends_the_connection() {
    let change = |config: &mut TargetConfig| (config.r2t_bytes_max, config.h2c_bytes_max) = (8192, 4096);
    type Lie = fn(R2t) -> (Data, u16, u8);
    let lies: [(&str, Lie, (u16, u32)); 7] = [
        ("other tag", |w| (Data { cid: w.cid, at: 0, bytes: 4096 }, w.tag ^ 4, 0), (1, 10)),
        ("tag past the transfers", |w| (Data { cid: w.cid, at: 0, bytes: 4096 }, w.tag + 1, 0), (1, 10)),
        ("other command", |w| (Data { cid: w.cid + 1, at: 0, bytes: 4096 }, w.tag, 0), (1, 8)),
        ("a gap", |w| (Data { cid: w.cid, at: 4, bytes: 4096 }, w.tag, 0), (4, 0)),
        ("past 32 bits", |w| (Data { cid: w.cid, at: u32::MAX, bytes: 4096 }, w.tag, 0), (4, 0)),
        ("too much in a unit", |w| (Data { cid: w.cid, at: 0, bytes: 8192 }, w.tag, flags::LAST), (5, 0)),
        ("the last too early", |w| (Data { cid: w.cid, at: 0, bytes: 4096 }, w.tag, flags::LAST), (1, 1)),
    ];
    for (what, lie, why) in lies {
        let (_target, _, _admin, mut io) = joined(change, NONE);
        let wish = wished(&mut io.stream, 0x5555);
        assert_eq!((wish.cid, wish.at, wish.bytes), (0x5555, 0, 8192));
        let (data, tag, flags) = lie(wish);
        io.stream.write_all(Layout::default().host_data(data, tag, flags).as_bytes()).unwrap();
        io.stream.write_all(&vec![0; data.bytes as usize]).unwrap();
        assert_eq!(ended(io.stream), why, "{what}");
    }
    // Past what was asked for, not marked as the last, and with a length that is not that of the data.
    for (second, bytes, mark, why) in
        [(4096, 4096, 0, (1, 1)), (4096, 2048, flags::LAST, (1, 1)), (4092, 4096, 0, (4, 0))]
    {
        let (_target, _, _admin, mut io) = joined(change, NONE);
        let wish = wished(&mut io.stream, 7);
        let mut send = |at, bytes: u32, flags| {
            let head = Layout::default().host_data(Data { cid: 7, at, bytes }, wish.tag, flags);
            io.stream.write_all(&[head.as_bytes(), &vec![0; bytes as usize]].concat()).unwrap();
        };
        send(0, 4096, 0);
        send(second, bytes, mark);
        assert_eq!(ended(io.stream), why);
    }
}

#[test]
fn a_termination_comes_before_the_end_though_the_host_says_more() {
    let (target, _) = started(|_| {});
    let mut stream = initialized(&target, NONE);
    let bad = edited(&Layout::default().command(&Command::flush(1), 0), 0, &[8]);
    stream.write_all(&[bad, vec![0; 1 << 20]].concat()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(ended(stream), (1, 0));
}

#[test]
fn descriptors_that_fit_no_data_are_refused() {
    let (target, host, mut admin, _io) = joined(|_| {}, NONE);
    let mut stream = initialized(&target, NONE);
    let connect = changed(&changed(&Command::connect(host.request(2)), 24, &descriptor(1024, 1)), 1, &[0x40]);
    let (_, answer) = connecting::by_hand(&mut stream, &connect, &host.data(1));
    assert_eq!(answer.unwrap().status(), Status::SUCCESS);
    let write = |sgl| Command::write(at(0, 1), DataPointer::Sgl(sgl), IoFlags::NONE);
    let read = |sgl| Command::read(at(0, 1), DataPointer::Sgl(sgl), IoFlags::NONE);
    let mut behind = descriptor(4096, 1);
    behind[0] = 8;
    let prp = changed(&write(descriptor(4096, 1)), 1, &[0]);
    let page = [1; 4096];
    let dnr = |sc| Status::new(0, sc).with_dnr();
    let cases: [(&str, Command, &[u8], Status); 8] = [
        ("PRP", prp, &page, dnr(0x02)),
        ("an offset into the capsule", write(behind), &page, dnr(0x16)),
        ("data in the capsule, and the descriptor of other data", write(descriptor(4096, 0x5A)), &page, dnr(0x11)),
        ("no data in the capsule", write(descriptor(4096, 1)), &[], dnr(0x0F)),
        ("less data in the capsule", write(descriptor(4096, 1)), &page[..512], dnr(0x0F)),
        ("a read with data in the capsule", read(descriptor(4096, 0x5A)), &page, dnr(0x11)),
        ("a read into the capsule", read(descriptor(4096, 1)), &[], dnr(0x11)),
        ("a keyed descriptor", read(descriptor(4096, 0x4F)), &[], dnr(0x11)),
    ];
    for (what, command, carried, status) in cases {
        let (flags, answer) = connecting::by_hand(&mut stream, &command, carried);
        assert_eq!((flags, answer.map(|answer| answer.status())), (None, Some(status)), "{what}");
    }
    // None where nothing is moved, as some hosts leave it; but not where something is.
    let none = |command: &Command| changed(&changed(command, 24, &[0; 16]), 1, &[0x40]);
    for (command, status) in [
        (Command::flush(1), Status::SUCCESS),
        (write(descriptor(4096, 1)), dnr(0x0F)),
        (read(descriptor(4096, 0x5A)), dnr(0x0F)),
    ] {
        let (_, answer) = connecting::by_hand(&mut stream, &none(&command), &[]);
        assert_eq!(answer.map(|answer| answer.status()), Some(status));
    }
    assert_eq!(target.counters().writes, 0);
    assert_eq!(admin.run(&Command::keep_alive(), Move::None).unwrap().outcome, SUCCESS);
}

#[test]
fn data_begins_where_the_controller_asked_for() {
    let (target, _) = started(|config| config.alignment = 3);
    for (alignment, why) in [(3, None), (0, Some((1, 3)))] {
        let mut stream = initialized(&target, NONE);
        let head = Layout { digests: NONE, alignment }.command(&Command::flush(1), 64);
        stream.write_all(&[head.as_bytes(), &[0; 64]].concat()).unwrap();
        match why {
            Some(why) => assert_eq!(ended(stream), why),
            None => stream.read_exact(&mut [0; 24]).unwrap(),
        }
    }
}

#[test]
fn an_identifier_in_use_is_refused_and_more_writes_than_entries_end_the_connection() {
    let (_target, _, _admin, mut io) = joined(|_| {}, NONE);
    wished(&mut io.stream, 7);
    let flush = Layout::default().command(&changed(&Command::flush(1), 1, &[0x40]).with_cid(7), 0);
    io.stream.write_all(&edited(&flush, 8 + 39, &[0x5A])).unwrap();
    let mut answer = [0; 24];
    io.stream.read_exact(&mut answer).unwrap();
    assert_eq!(pdu::completion(&answer).status(), Status::new(0, 0x03).with_dnr());
    let block = descriptor(16384, 0x5A);
    for cid in 100..200 {
        let write = Command::write(at(0, 4), DataPointer::Sgl(block), IoFlags::NONE).with_cid(cid);
        // It may be over before the last of them.
        io.stream.write_all(Layout::default().command(&write, 0).as_bytes()).ok();
    }
    assert_eq!(ended(io.stream), (FatalStatus::Unsupported as u16, 0));
}

#[test]
fn wrong_data_digests_end_the_command_and_not_the_connection() {
    let (target, _, _admin, mut io) = joined(|_| {}, BOTH);
    let layout = Layout { digests: BOTH, alignment: 0 };
    let block = descriptor(4096, 0x01);
    let write = Command::write(at(0, 1), DataPointer::Sgl(block), IoFlags::NONE).with_cid(0x4444);
    io.stream.write_all(layout.command(&write, 4096).as_bytes()).unwrap();
    io.stream.write_all(&[1; 4100]).unwrap();
    let mut answer = [0; 28];
    io.stream.read_exact(&mut answer).unwrap();
    assert_eq!(pdu::completion(&answer).status(), Status::new(0, 0x22));
    let block = descriptor(4096, 0x5A);
    let write = Command::write(at(0, 1), DataPointer::Sgl(block), IoFlags::NONE).with_cid(0x4445);
    io.stream.write_all(layout.command(&write, 0).as_bytes()).unwrap();
    let mut wish = [0; 28];
    io.stream.read_exact(&mut wish).unwrap();
    let R2t { cid, tag, .. } = R2t::decode(&wish);
    io.stream.write_all(layout.host_data(Data { cid, at: 0, bytes: 4096 }, tag, flags::LAST).as_bytes()).unwrap();
    io.stream.write_all(&[1; 4100]).unwrap();
    io.stream.read_exact(&mut answer).unwrap();
    assert_eq!(pdu::completion(&answer).status(), Status::new(0, 0x22));
    assert!(io.read(0, 1, 4096).unwrap().data.iter().all(|byte| *byte == 0), "nothing of it was written");
    assert_eq!(target.counters().writes, 0);
}

/// A unit that is nearly right.
fn unit() -> impl Strategy<Value = Vec<u8>> {
    let kinds =
        prop_oneof![Just((4u8, 72u8)), Just((6, 24)), Just((0, 128)), Just((2, 24)), Just((9, 24)), any::<(u8, u8)>()];
    let opcode = prop_oneof![Just(0x7Fu8), Just(1), Just(2), Just(6), Just(9), Just(0), Just(2), any::<u8>()];
    let bytes = proptest::collection::vec(any::<u8>(), 128..400);
    let small = proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 128..400);
    (kinds, opcode, prop_oneof![bytes, small], any::<bool>(), any::<bool>()).prop_map(
        |((kind, hlen), opcode, mut raw, exact, carried)| {
            let whole = if carried { raw.len() } else { usize::from(hlen).min(raw.len()) };
            raw.truncate(whole.max(8));
            let plen = if exact { raw.len() as u32 } else { u32::from_le_bytes(raw[4..8].try_into().unwrap()) % 1024 };
            let flags = raw[1] & 0x0C;
            raw[..4].copy_from_slice(&[kind, flags, hlen, if carried { hlen } else { 0 }]);
            raw[4..8].copy_from_slice(&plen.to_le_bytes());
            if kind == 4 && raw.len() > 50 {
                (raw[8], raw[9]) = (opcode, 0x40);
                raw[8 + 39] = if carried { 1 } else { 0x5A };
                (raw[8 + 34], raw[8 + 35]) = (0, 0);
            }
            raw
        },
    )
}

#[test]
fn whatever_comes_the_target_lives_and_serves_the_next() {
    let (target, config) = started(|config| config.namespaces = vec![Backing::Memory(1 << 20)]);
    let host = Host::new(&config.subsystem, NONE);
    let (_admin, controller) = host.admin(target.address());
    let mut runner = proptest::test_runner::TestRunner::new(proptest::test_runner::Config {
        failure_persistence: None,
        ..Default::default()
    });
    let units = proptest::collection::vec(unit(), 1..6);
    let told = runner.run(&(units, 0u8..4), |(units, how)| {
        let mut stream = match how {
            0 => raw(&target),
            1 => initialized(&target, NONE),
            2 => host.admin(target.address()).0.stream,
            _ => host.io(target.address(), controller, 1).stream,
        };
        // The target may close at any of them.
        for unit in units {
            stream.write_all(&unit).ok();
        }
        stream.shutdown(std::net::Shutdown::Write).ok();
        stream.read_to_end(&mut Vec::new()).ok();
        drop(stream);
        until("the end of the connection", || target.counters().connections_open == 1);
        prop_assert_eq!(target.counters().panics, 0);
        Ok(())
    });
    told.unwrap();
    let mut io = host.io(target.address(), controller, 1);
    assert_eq!(io.read(0, 1, 4096).unwrap().outcome, SUCCESS);
}
