//! Conversations with other people's hosts and targets, recorded on the wire (`testdata/README.md`), are understood and made again to the byte.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{collections::BTreeMap, path::Path};

use sw_nvme::{
    discovery::{self, Entry},
    fabrics::{ANY_CONTROLLER, ConnectData, FabricsCommand, PropertySize, QueueRequest},
    status::Status,
    tcp::{
        host::{HostConfig, HostQueue, Outcome, Transfer, Want},
        pdu::{self, Breach, Data, Digests, Header, IcReq, IcResp, Kind, Layout, R2t, flags},
    },
    wire::{
        BlockCount, Command, DataPointer, IoFlags, LbaRange,
        admin::Identify,
        command::opcode,
        feature::{Feature, QueueCounts},
        regs,
    },
};
use sw_testkit::wire::{From, Unit};

fn recording(name: &str) -> Vec<Unit> {
    sw_testkit::wire::recording(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/wire").join(name))
}

/// What a connection agreed on.
#[derive(Clone, Copy, Default)]
struct Agreed {
    asked: Option<IcReq>,
    answer: Option<IcResp>,
}

impl Agreed {
    fn layout(self) -> Layout {
        let answer = self.answer.map(|answer| (answer.digests, answer.alignment));
        let (digests, alignment) = answer.unwrap_or_default();
        Layout { digests, alignment }
    }
}

/// A unit taken apart: header, data.
fn apart(unit: &[u8], digests: Digests) -> Result<(Header, &[u8]), Breach> {
    let header = Header::decode(unit[..pdu::COMMON_BYTES].try_into().unwrap(), digests, u32::MAX)?;
    let data = &unit[header.head_bytes()..][..header.data_bytes as usize];
    assert_eq!(unit.len(), header.head_bytes() + data.len() + if header.data_digest { 4 } else { 0 });
    Ok((header, data))
}

/// The head of a unit, made anew of what it says.
fn again(unit: &[u8], header: &Header, agreed: &mut Agreed) -> Vec<u8> {
    let (layout, of_data) = (agreed.layout(), header.flags & (flags::LAST | flags::SUCCESS));
    let head = match header.kind {
        Kind::IcReq => agreed.asked.insert(IcReq::decode(unit)).encode(),
        Kind::IcResp => {
            let answer = IcResp::decode(unit, &agreed.asked.expect("a question")).expect("an answer");
            agreed.answer.insert(answer).encode()
        }
        Kind::CapsuleCmd => layout.command(&pdu::command(unit), header.data_bytes),
        Kind::CapsuleResp => layout.response(&pdu::completion(unit)),
        Kind::H2cData => {
            let (data, tag) = Data::decode(unit);
            layout.host_data(data, tag, of_data)
        }
        Kind::C2hData => layout.controller_data(Data::decode(unit).0, of_data),
        Kind::R2t => layout.ready(R2t::decode(unit)),
        Kind::H2cTerm | Kind::C2hTerm => panic!("nobody ended a connection"),
    };
    head.as_bytes().to_vec()
}

/// What its maker puts where a field means nothing, and we put zeroes: clears it; whether it was there.
type Quirk = fn(&mut [u8], &Header) -> bool;

/// PDO of a command without data.
fn offset_of_no_data(head: &mut [u8], header: &Header) -> bool {
    header.data_bytes == 0 && core::mem::take(&mut head[3]) != 0
}

/// The reserved bytes of C2HData.
fn reserved_of_data(head: &mut [u8], header: &Header) -> bool {
    let is_data = header.kind == Kind::C2hData;
    let mut clear =
        |at: core::ops::Range<usize>| head[at].iter_mut().map(core::mem::take).fold(0, |all, byte| all | byte);
    is_data && clear(10..12) | clear(20..24) != 0
}

fn none(_: &mut [u8], _: &Header) -> bool {
    false
}

#[test]
fn each_unit_is_taken_and_made_again_to_the_byte() {
    for (name, theirs, quirk, odd) in [
        ("go-nvme.txt", From::Controller, reserved_of_data as Quirk, 6),
        ("libnvmf.txt", From::Host, none, 0),
        ("libnvmf-digests.txt", From::Host, none, 0),
        ("pynvmeof.txt", From::Host, offset_of_no_data, 13),
    ] {
        let (mut connections, mut odd_ones) = (BTreeMap::<u32, Agreed>::new(), 0);
        let units = recording(name);
        for Unit { connection, from, bytes } in &units {
            let agreed = connections.entry(*connection).or_default();
            let digests = agreed.layout().digests;
            let (header, data) = apart(bytes, digests).unwrap();
            if digests.header && header.kind.has_header_digest() {
                assert!(pdu::header_digest_fits(bytes, header.kind.header_bytes()), "{name}: {header:?}");
            }
            if header.data_digest {
                assert_eq!(bytes[bytes.len() - 4..], pdu::crc32c(data).to_le_bytes(), "{name}: {header:?}");
            }
            let mut head = bytes[..header.head_bytes()].to_vec();
            // What we sent is ours to the last byte.
            if *from == theirs {
                odd_ones += i32::from(quirk(&mut head, &header));
            }
            assert_eq!(again(bytes, &header, agreed), head, "{name}: {header:?}");
        }
        assert!(units.len() >= 36 && odd_ones == odd, "{name}: {}, {odd_ones}", units.len());
    }
}

/// The commands of a recording and their data in the capsule, of I/O queues or of others.
fn commands(units: &[Unit], digests: Digests) -> Vec<(u32, Command, &[u8])> {
    let of_hosts = units.iter().filter(|unit| unit.bytes[0] == Kind::CapsuleCmd as u8);
    let command = |unit: &Unit| (unit.connection, pdu::command(&unit.bytes));
    of_hosts
        .map(|unit| {
            let (connection, command) = command(unit);
            (connection, command, apart(&unit.bytes, digests).unwrap().1)
        })
        .collect()
}

/// All Connects: what they ask for, by which data.
fn connects(units: &[Unit], digests: Digests) -> Vec<(QueueRequest, bool, ConnectData)> {
    let connect = |(_, command, data): &(u32, Command, &[u8])| match FabricsCommand::decode(command) {
        Some(FabricsCommand::Connect { queue, no_flow_control, format: 0 }) => {
            Some((queue, no_flow_control, ConnectData::decode(data).unwrap()))
        }
        _ => None,
    };
    commands(units, digests).iter().filter_map(connect).collect()
}

const BOTH: Digests = Digests { header: true, data: true };
const NONE: Digests = Digests { header: false, data: false };

/// What the programs were started with, and what is in their sources.
#[test]
fn other_hosts_say_what_they_were_told_to_say() {
    let units = recording("pynvmeof.txt");
    let id: [u8; 16] = core::array::from_fn(|at| 15 - u8::try_from(at).unwrap());
    let host = "nqn.2014-08.org.nvmexpress:uuid:0f0e0d0c-0b0a-0908-0706-050403020100";
    let all = connects(&units, NONE);
    let request = |qid, entries, keep_alive_ms| QueueRequest { qid, entries, keep_alive_ms };
    let (subsystem, discovery) = ("nqn.2026-11.io.straightway:target", "nqn.2014-08.org.nvmexpress.discovery");
    let wanted = [
        (request(0, 32, 10_000), ANY_CONTROLLER, subsystem),
        (request(1, 128, 0), 1, subsystem),
        (request(0, 32, 0), ANY_CONTROLLER, discovery),
    ];
    assert_eq!(all.len(), wanted.len());
    for ((queue, no_flow_control, data), wanted) in all.iter().zip(wanted) {
        assert_eq!((*queue, data.controller, data.subsystem.as_str()), wanted);
        assert_eq!((*no_flow_control, data.host_id, data.host.as_str()), (false, id, host));
    }
    let ios = commands(&units, NONE).into_iter().filter(|(connection, ..)| *connection == 1).skip(1);
    let ios: Vec<_> =
        ios.map(|(_, command, data)| (command.opcode(), command.nsid(), command.dword(10), data)).collect();
    let written = [b'q'; 4096];
    let (write, read, flush) = (opcode::WRITE, opcode::READ, opcode::FLUSH);
    let none = &[][..];
    assert_eq!(ios[..2], [(write, 1, 1, &written[..]), (read, 1, 1, none)]);
    assert_eq!(ios[2..], [(write, 1, 100, none), (read, 1, 100, none), (flush, 1, 0, none)]);
    let log = &units.iter().rfind(|unit| unit.bytes[0] == Kind::C2hData as u8).unwrap().bytes[24..];
    let entry = Entry::decode(&log[discovery::ENTRY_BYTES..]).unwrap();
    assert_eq!(
        (entry.subsystem.as_str(), &*entry.address, &*entry.service),
        ("nqn.2026-11.io.straightway:target", "127.0.0.1", "14423")
    );
    for (name, digests) in [("libnvmf.txt", NONE), ("libnvmf-digests.txt", BOTH)] {
        let units = recording(name);
        let all = connects(&units, digests);
        // It adds a second of grace to KATO.
        assert_eq!((all[0].0, all[0].1, all[0].2.controller), (request(0, 32, 11_000), false, ANY_CONTROLLER));
        assert_eq!((all[1].0.qid, all[1].0.entries, all[1].1, all[1].2.controller), (1, 127, false, 1));
    }
}

/// What go-nvme's target says on a connection, for our queue.
struct Replay<'a> {
    queue: HostQueue,
    units: Box<dyn Iterator<Item = &'a Unit> + 'a>,
}

impl<'a> Replay<'a> {
    /// The units of a connection behind the first two, by which it is made.
    fn new(units: &'a [Unit], connection: u32) -> Self {
        let config =
            HostConfig { depth: 31, layout: Layout::default(), h2c_bytes_max: 4096, capsule_data_bytes: 16384 };
        let units = units.iter().filter(move |unit| unit.connection == connection).skip(2);
        Self { queue: HostQueue::new(config), units: Box::new(units) }
    }

    /// Sends a command as it was sent, and takes the answer that came; the data, and the completion's first eight bytes.
    fn run(&mut self, command: &Command, transfer: Transfer, out: &[u8]) -> (Vec<u8>, u64) {
        self.queue.submit(command, transfer, 0).unwrap();
        let unit = self.queue.next_unit().unwrap();
        assert!(self.queue.next_unit().is_none());
        assert_eq!([unit.head.as_bytes(), out].concat(), self.units.next().unwrap().bytes);
        self.queue.unit_sent(&unit);
        let mut data = Vec::new();
        loop {
            if let Some(end) = self.queue.pop_end() {
                assert_eq!(end.outcome, Outcome::Told(Status::SUCCESS));
                return (data, end.value);
            }
            self.take(&mut data);
        }
    }

    fn take(&mut self, data: &mut Vec<u8>) {
        let mut left = &self.units.next().unwrap().bytes[..];
        while !left.is_empty() {
            let bytes = match self.queue.want() {
                Want::Head => {
                    let space = self.queue.head_space();
                    let bytes = space.len();
                    space.copy_from_slice(&left[..bytes]);
                    self.queue.head_came(bytes).unwrap();
                    bytes
                }
                Want::Data { to, bytes, .. } => {
                    assert!(to.is_some());
                    data.extend(&left[..bytes as usize]);
                    self.queue.data_came(bytes).unwrap();
                    bytes as usize
                }
                Want::Digest => panic!("no digests were agreed on"),
            };
            left = &left[bytes..];
        }
    }
}

#[test]
fn our_host_says_again_what_it_said_and_understands_what_another_target_answered() {
    let units = recording("go-nvme.txt");
    let of = |unit: usize| connects(&units, NONE).swap_remove(unit);
    let (none, page) = (DataPointer::None, Transfer::In(4096));
    let mut admin = Replay::new(&units, 0);
    let (queue, no_flow_control, data) = of(0);
    assert_eq!((queue, no_flow_control), (QueueRequest { qid: 0, entries: 32, keep_alive_ms: 10_000 }, true));
    let (_, answer) = admin.run(&Command::connect(queue), Transfer::Out(1024), &data.encode());
    assert_eq!(answer, u64::from(of(1).2.controller), "CNTLID");
    let property =
        |admin: &mut Replay<'_>, at, size| admin.run(&Command::property_get(at, size), Transfer::None, &[]).1;
    let cap = regs::Cap::decode(property(&mut admin, regs::CAP, PropertySize::Eight)).unwrap();
    assert_eq!((cap.queue_entries_max, cap.nvm_command_set().is_some()), (64, true));
    assert_eq!(property(&mut admin, regs::VS, PropertySize::Four), 0x1_0300);
    let enabled = regs::Cc::enabled(cap.page_code(4096).unwrap(), cap.nvm_command_set().unwrap());
    admin.run(&Command::property_set(regs::CC, enabled.raw()), Transfer::None, &[]);
    assert!(regs::Csts(u32::try_from(property(&mut admin, regs::CSTS, PropertySize::Four)).unwrap()).is_ready());
    let (identified, _) = admin.run(&Command::identify(Identify::Controller, none), page, &[]);
    // SN, MN, SUBNQN, as nvmed was told.
    assert_eq!(identified[4..14], *b"0000000003");
    assert_eq!(String::from_utf8_lossy(&identified[24..64]).trim(), "ThirdMartini NVME");
    assert!(identified[768..].starts_with(b"nqn.2020-20.com.thirdmartini.nvme:file\0"));
    let counts = QueueCounts { submission: 64, completion: 64 }.encode().unwrap();
    let feature = Feature::NumberOfQueues { dword11: counts };
    assert_eq!(admin.run(&Command::set_features(&feature, none), Transfer::None, &[]).1, 0x3F_003F);
    let mut io = Replay::new(&units, 1);
    let (queue, no_flow_control, data) = of(1);
    assert_eq!((queue.qid, queue.keep_alive_ms, no_flow_control, data.controller), (1, 0, true, 7));
    io.run(&Command::connect(queue), Transfer::Out(1024), &data.encode());
    let at = LbaRange { nsid: 1, slba: 8, nlb: BlockCount::new(16).unwrap() };
    let (read, _) = io.run(&Command::read(at, none, IoFlags::NONE), Transfer::In(8192), &[]);
    assert!(read == [[b'B'; 4096], [b'C'; 4096]].concat());
}
