//! What the fuzz target does with its bytes. Used by the libFuzzer target here and by the bounded in-tree run
//! (`tests/mutations.rs`), so that both check the same things. It returns a word for what came out.
//!
//! ```text
//!   raw: [shape] then steps of 16 bytes ─► units that are almost right, or bytes as they are ─► socket ─► the target
//!                                                                    what it answers, unit by unit ◄─┘
//! ```
//!
//! Whatever a host says:
//! - no thread of the target panics (libFuzzer ends the process if one does), and the connection ends soon after the host's half;
//! - what the target sends are whole units with digests that fit, and nothing follows a termination;
//! - each names a command that was sent, moves no more than that has room for, and no command ends twice.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::OnceLock,
    time::Duration,
};

use sw_net::target::{Backing, Target, TargetConfig};
use sw_nvme::{
    fabrics::{ANY_CONTROLLER, CONNECT_DATA_BYTES, ConnectData, Nqn, QueueRequest},
    tcp::pdu::{
        self, COMMON_BYTES, DIGEST_BYTES, Data, Digests, HEAD_BYTES_MAX, Header, INITIALIZE_BYTES, IcReq, IcResp, Kind,
        Layout, R2t, flags,
    },
    wire::{Command, regs},
};

/// Bytes of one step.
const STEP_BYTES: usize = 16;
/// Bytes that one input sends at most: a socket holds them, whether the target reads or not.
const STREAM_BYTES_MAX: usize = 64 << 10;
/// How long the target may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// MDTS of the target, as bytes.
const TRANSFER_BYTES: u32 = 8192;

fn served() -> &'static Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let config = TargetConfig {
            namespaces: vec![Backing::Memory(1 << 20)],
            mdts: 1,
            h2c_bytes_max: 4096,
            r2t_bytes_max: 4096,
            c2h_bytes_max: 4096,
            queue_entries: 32,
            block_bytes: 512,
            ..TargetConfig::default()
        };
        Target::start(config).expect("a target on the loopback")
    })
}

/// How far the host came in good order before it sends the input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Nothing,
    Initialized,
    Connected,
    Enabled,
    Io,
}

/// What was sent of an identifier.
#[derive(Default)]
struct Sent {
    commands: u32,
    /// The most that one of them has room for.
    bytes: u32,
    ends: u32,
}

struct Host {
    stream: TcpStream,
    layout: Layout,
    sent: BTreeMap<u16, Sent>,
    /// Something was sent that nobody keeps account of.
    is_wild: bool,
}

/// Takes the bytes for what a host sends.
pub fn target(raw: &[u8]) -> &'static str {
    let [shape, steps @ ..] = raw else { return "short" };
    let stage = match shape >> 2 & 7 {
        0 => Stage::Nothing,
        1 => Stage::Initialized,
        2 => Stage::Connected,
        3 | 4 => Stage::Enabled,
        _ => Stage::Io,
    };
    let digests = Digests { header: shape & 1 != 0, data: shape & 2 != 0 };
    let (mut host, admin) = Host::at(stage, digests);
    let mut out = Vec::new();
    let mut transfers = 0;
    for step in steps.chunks(STEP_BYTES) {
        let mut whole = [0; STEP_BYTES];
        whole[..step.len()].copy_from_slice(step);
        host.unit(&whole, &mut transfers, &mut out);
        if out.len() > STREAM_BYTES_MAX {
            break;
        }
    }
    out.truncate(STREAM_BYTES_MAX);
    // A target that ended the connection already does not take it, which is as good.
    let _ = host.stream.write_all(&out);
    let said = host.answers(stage);
    if let Some(mut admin) = admin {
        admin.end();
    }
    said
}

impl Host {
    /// A host that came so far; with the admin queue of its controller if this is an I/O queue.
    fn at(stage: Stage, digests: Digests) -> (Self, Option<Self>) {
        let admin = match stage {
            Stage::Io => Some(Self::at(Stage::Enabled, Digests::default()).0),
            _ => None,
        };
        let stream = TcpStream::connect(served().address()).expect("a connection over the loopback");
        for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            set(&stream, Some(PATIENCE)).expect("a timeout");
        }
        stream.set_nodelay(true).expect("no delay");
        let layout = Layout { digests, alignment: 0 };
        let mut host = Self { stream, layout, sent: BTreeMap::new(), is_wild: false };
        if stage != Stage::Nothing {
            host.initialize();
        }
        if !matches!(stage, Stage::Nothing | Stage::Initialized) {
            let (qid, controller) = match &admin {
                // The one controller that the admin queue made: it is told in the answer.
                Some(admin) => (1, admin.controller()),
                None => (0, ANY_CONTROLLER),
            };
            host.connect(qid, controller);
        }
        if stage == Stage::Enabled {
            host.command(&Command::property_set(regs::CC, 0x46_0001), &[]);
        }
        (host, admin)
    }

    /// CNTLID, as the answer to Connect had it, kept as the room of the identifier that it had.
    fn controller(&self) -> u16 {
        self.sent.get(&0xFFFF).map_or(ANY_CONTROLLER, |sent| sent.bytes as u16)
    }

    fn initialize(&mut self) {
        let asked = IcReq { format: 0, alignment: 0, digests: self.layout.digests, r2t_max: 0 };
        self.stream.write_all(asked.encode().as_bytes()).expect("room in the socket");
        let mut raw = [0; INITIALIZE_BYTES];
        self.stream.read_exact(&mut raw).expect("ICResp");
        let answer = IcResp::decode(&raw, &asked).expect("ICResp");
        assert_eq!(answer.digests, self.layout.digests);
    }

    fn connect(&mut self, qid: u16, controller: u16) {
        let name = |text: &str| Nqn::new(text).expect("a name");
        let data = ConnectData {
            host_id: [7; 16],
            controller,
            subsystem: name("nqn.2026-11.io.straightway:target"),
            host: name("nqn.2026-11.io.straightway:fuzz"),
        };
        let request = QueueRequest { qid, entries: 32, keep_alive_ms: 0 };
        let told = self.command(&Command::connect(request), &data.encode());
        self.sent.insert(0xFFFF, Sent { commands: 0, bytes: told, ends: 0 });
    }

    /// Runs a command in good order; dword 0 of its completion.
    fn command(&mut self, command: &Command, data: &[u8]) -> u32 {
        let mut raw = *command.bytes();
        raw[1] |= 0x40;
        raw[2..4].copy_from_slice(&[0xFE, 0xFF]);
        raw[32..36].copy_from_slice(&(data.len() as u32).to_le_bytes());
        raw[39] = if data.is_empty() { 0x5A } else { 0x01 };
        let mut out = Vec::new();
        self.put(&Command::new(raw), data, &mut out);
        self.stream.write_all(&out).expect("room in the socket");
        let head = self.layout.response(&sw_nvme::wire::Completion::new([0; 16])).as_bytes().len();
        let mut answer = vec![0; head];
        self.stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer[0], Kind::CapsuleResp as u8);
        let completion = pdu::completion(&answer);
        assert!(completion.status().is_success(), "{completion:?}");
        completion.dw0()
    }

    /// A capsule with its data and the digest of that.
    fn put(&self, command: &Command, data: &[u8], out: &mut Vec<u8>) {
        out.extend(self.layout.command(command, data.len() as u32).as_bytes());
        self.data(data, out);
    }

    fn data(&self, data: &[u8], out: &mut Vec<u8>) {
        out.extend(data);
        if self.layout.digests.data && !data.is_empty() {
            out.extend(pdu::crc32c(data).to_le_bytes());
        }
    }

    /// The unit that a step says, almost right.
    fn unit(&mut self, step: &[u8; STEP_BYTES], transfers: &mut u16, out: &mut Vec<u8>) {
        let [kind, twist, flip, low, ..] = *step;
        let word = |at: usize| u16::from_le_bytes([step[at], step[at + 1]]);
        let start = out.len();
        match kind % 8 {
            0..=3 => self.capsule(step, transfers, out),
            4..=5 => {
                // Tags count up, the place among four in the low bits: see `sw_net::target`.
                let tag = if twist & 1 == 0 { *transfers << 2 | u16::from(low & 3) } else { word(4) };
                let bytes = if twist & 2 == 0 { 4096 } else { u32::from(word(6)) % 5000 };
                let at = if twist & 4 == 0 { 4096 * u32::from(low >> 2 & 1) } else { u32::from(word(8)) };
                let last = if twist & 8 == 0 { flags::LAST } else { 0 };
                let data = Data { cid: word(10) % 32, at, bytes };
                out.extend(self.layout.host_data(data, tag, last).as_bytes());
                self.data(&vec![low; bytes as usize], out);
            }
            6 => {
                let breach = pdu::Breach { status: pdu::FatalStatus::Sequence, information: 7, rule: "" };
                let kind = if twist & 1 == 0 { Kind::H2cTerm } else { Kind::C2hTerm };
                out.extend(pdu::termination(kind, &breach).as_bytes());
            }
            _ => {
                self.is_wild = true;
                out.extend(&step[1..1 + usize::from(twist) % 15]);
            }
        }
        // A byte of the head is another one, seldom: with header digests that is the end.
        if flip & 0xE0 == 0xE0
            && let Some(byte) = out.get_mut(start + usize::from(step[15]) % 80)
        {
            self.is_wild = true;
            *byte ^= 1 << (flip & 7);
        }
    }

    fn capsule(&mut self, step: &[u8; STEP_BYTES], transfers: &mut u16, out: &mut Vec<u8>) {
        let [kind, twist, _, opcode, ..] = *step;
        let word = |at: usize| u16::from_le_bytes([step[at], step[at + 1]]);
        let mut raw = [0; 64];
        raw[0] = if kind % 8 == 0 { opcode } else { [0x01, 0x02, 0x06, 0x7F][usize::from(opcode % 4)] };
        let cid = word(4) % 32;
        raw[1] = if twist & 1 == 0 { 0x40 } else { step[6] };
        raw[2..4].copy_from_slice(&cid.to_le_bytes());
        raw[4] = if raw[0] == 0x7F { opcode >> 4 } else { 1 };
        let blocks_z = u16::from(opcode >> 2) % 16;
        let bytes = match raw[0] {
            0x06 => 4096,
            0x7F => CONNECT_DATA_BYTES as u32,
            _ => 512 * (u32::from(blocks_z) + 1),
        };
        let bytes = if twist & 2 == 0 { bytes } else { u32::from(word(8)) };
        raw[32..36].copy_from_slice(&bytes.to_le_bytes());
        let in_capsule = twist & 4 != 0;
        raw[39] = if in_capsule { 0x01 } else { 0x5A };
        // Dwords 10 to 12: SLBA and NLB, CNS, a property.
        raw[40..42].copy_from_slice(&word(10).to_le_bytes());
        raw[42] = if twist & 8 == 0 { 0 } else { step[12] };
        raw[44] = if raw[0] == 0x7F { step[13] } else { 0 };
        raw[48..50].copy_from_slice(&blocks_z.to_le_bytes());
        raw[63] = if twist & 16 == 0 { 0 } else { step[14] };
        let data = vec![opcode; if in_capsule { bytes as usize % 9000 } else { 0 }];
        if raw[0] == 0x01 && !in_capsule {
            *transfers = transfers.wrapping_add(1);
        }
        let sent = self.sent.entry(cid).or_default();
        (sent.commands, sent.bytes) = (sent.commands + 1, sent.bytes.max(bytes));
        self.put(&Command::new(raw), &data, out);
    }

    /// Closes the host's half and reads to the end.
    fn end(&mut self) -> Vec<u8> {
        let _ = self.stream.shutdown(Shutdown::Write);
        let mut said = Vec::new();
        match self.stream.read_to_end(&mut said) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.is_wild = true,
            Err(error) => panic!("the connection does not end: {error}"),
        }
        said
    }

    /// Looks at everything that the target said.
    fn answers(&mut self, stage: Stage) -> &'static str {
        let said = self.end();
        let mut rest = said.as_slice();
        let mut word = "nothing";
        // Without the beginning in good order the first unit may be ICResp, and the digests are not known.
        if stage == Stage::Nothing && rest.first() == Some(&(Kind::IcResp as u8)) {
            return "initialised";
        }
        let digests = self.layout.digests;
        while !rest.is_empty() {
            let Some(common) = rest.first_chunk::<COMMON_BYTES>() else {
                assert!(self.is_wild, "a part of a unit");
                return "reset";
            };
            let plen_max = HEAD_BYTES_MAX as u32 + TRANSFER_BYTES + DIGEST_BYTES as u32;
            let header = Header::decode(common, digests, plen_max).expect("a unit that a host takes");
            let tail = if header.data_digest { DIGEST_BYTES } else { 0 };
            let whole = header.head_bytes() + header.data_bytes as usize + tail;
            let Some((unit, behind)) = rest.split_at_checked(whole) else {
                assert!(self.is_wild, "a part of a unit");
                return "reset";
            };
            if digests.header && header.kind.has_header_digest() {
                assert!(pdu::header_digest_fits(unit, header.kind.header_bytes()));
            }
            if header.data_digest {
                let (data, digest) = unit[header.head_bytes()..].split_at(header.data_bytes as usize);
                assert_eq!(digest, pdu::crc32c(data).to_le_bytes());
            }
            word = self.answer(&header, unit, word);
            assert!(header.kind != Kind::C2hTerm || behind.is_empty(), "something behind a termination");
            rest = behind;
        }
        word
    }

    fn answer(&mut self, header: &Header, unit: &[u8], word: &'static str) -> &'static str {
        let wild = self.is_wild;
        let sent = |host: &mut Self, cid: u16, end: u64, over: u32| {
            let Some(sent) = host.sent.get_mut(&cid) else {
                assert!(wild, "a unit for a command that was not sent");
                return;
            };
            sent.ends += over;
            assert!(wild || end <= u64::from(sent.bytes), "more than the command has room for");
            assert!(wild || sent.ends <= sent.commands, "a command that ends twice");
        };
        match header.kind {
            Kind::CapsuleResp => {
                let completion = pdu::completion(unit);
                sent(self, completion.cid(), 0, 1);
                if completion.status().is_success() {
                    "success"
                } else if word == "success" {
                    word
                } else {
                    "refused"
                }
            }
            Kind::C2hData => {
                let (data, _) = Data::decode(unit);
                assert!(data.bytes == header.data_bytes && data.bytes > 0);
                let over = u32::from(header.flags & flags::SUCCESS != 0);
                sent(self, data.cid, u64::from(data.at) + u64::from(data.bytes), over);
                "success"
            }
            Kind::R2t => {
                let wish = R2t::decode(unit);
                assert!(wish.bytes > 0 && wish.bytes <= 4096);
                sent(self, wish.cid, u64::from(wish.at) + u64::from(wish.bytes), 0);
                if word == "nothing" { "asked" } else { word }
            }
            Kind::C2hTerm => "terminated",
            other => panic!("a target does not send {other:?}"),
        }
    }
}
