//! The bytes of a controller into the host's end of a queue over TCP, with commands under way. Used as `bodies.rs` is.
//!
//! ```text
//!   raw: [shape][seed] then steps of 16 bytes ─► units that are almost right, or bytes as they are ─► HostQueue, in small pieces
//!                                                 between the pieces: units are sent, commands come and are let go of
//! ```
//!
//! Whatever the controller says:
//! - nothing panics, and the queue always wants something while it is alive;
//! - data goes only into a read that is under way, behind the data before it, not past its end;
//! - each command ends once, and after its end none of its memory is named;
//! - success means that all bytes moved, each once, with a digest that fits;
//! - what a write sends is its own range, from its start on, without a gap.

use std::collections::{BTreeMap, VecDeque};

use sw_nvme::{
    status::Status,
    tcp::{
        host::{HostConfig, HostQueue, Outcome, Range, Transfer, Unit, Want},
        pdu::{self, Breach, COMMON_BYTES, Data, Digests, Kind, Layout, R2t, flags},
    },
    wire::{Command, Completion, completion::CompletionFields},
};

/// Bytes of one step of the controller's.
const STEP_BYTES: usize = 16;
/// Bytes that one input makes at most, so that each takes a bounded time.
const STREAM_BYTES_MAX: usize = 256 << 10;
/// Commands of one input at most.
const COMMANDS_MAX: u32 = 64;

/// What is known of a command apart from the queue.
struct Known {
    cid: u16,
    transfer: Transfer,
    /// Bytes of a read that came; bytes of a write that were given to the socket.
    moved: u32,
    /// Of those, the bytes that the socket took.
    sent: u32,
    /// The capsule was given to the socket.
    is_out: bool,
    wrong_digest: bool,
    over: bool,
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

struct Rig {
    queue: HostQueue,
    layout: Layout,
    depth: u16,
    known: BTreeMap<u32, Known>,
    /// Units that the socket has.
    sending: VecDeque<Unit>,
    /// Data of the unit that is coming.
    data: Vec<u8>,
    told: Vec<u8>,
    /// Whose data came last.
    reading: Option<u32>,
    dice: Dice,
    /// Ends with success, and with anything else.
    successes: u32,
    others: u32,
}

fn le16(step: &[u8; STEP_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([step[at], step[at + 1]])
}

fn le32(step: &[u8; STEP_BYTES], at: usize) -> u32 {
    u32::from(le16(step, at)) | u32::from(le16(step, at + 2)) << 16
}

/// Takes the bytes for what a controller sends. A word for what came out.
pub fn host_queue(raw: &[u8]) -> &'static str {
    let [shape, seed, steps @ ..] = raw else { return "short" };
    let mut rig = Rig::new(*shape, *seed);
    let mut made = 0;
    for step in steps.chunks(STEP_BYTES) {
        let mut whole = [0; STEP_BYTES];
        whole[..step.len()].copy_from_slice(step);
        let bytes = rig.unit(&whole);
        made += bytes.len();
        if made > STREAM_BYTES_MAX {
            break;
        }
        if rig.feed(&bytes).is_err() {
            return "breach";
        }
        if rig.queue.terminated().is_some() {
            return "terminated";
        }
    }
    match (rig.successes, rig.others) {
        (0, 0) => "nothing ended",
        (0, _) => "no success",
        (_, 0) => "only success",
        _ => "both",
    }
}

/// A kind of unit that may come for such a command now.
fn suited(kind: u8, transfer: Transfer, left: u32) -> u8 {
    match (kind % 8, transfer, left) {
        (7, ..) => 7,
        (0, ..) | (_, Transfer::None, _) | (_, _, 0) => 0,
        (_, Transfer::In(_), _) => 2,
        (_, Transfer::Out(_), _) => 5,
    }
}

impl Rig {
    fn new(shape: u8, seed: u8) -> Self {
        let digests = Digests { header: shape & 1 != 0, data: shape & 2 != 0 };
        let layout = Layout { digests, alignment: shape >> 2 & 3 };
        let depth = 1 + u16::from(shape >> 4 & 7);
        let h2c_bytes_max = if shape & 128 == 0 { 128 << 10 } else { 4096 };
        let queue = HostQueue::new(HostConfig { depth, layout, h2c_bytes_max, capsule_data_bytes: 1024 });
        let dice = Dice(seed.into());
        let (known, sending, data, told) = (BTreeMap::new(), VecDeque::new(), Vec::new(), Vec::new());
        let (reading, successes, others) = (None, 0, 0);
        let mut rig = Self { queue, layout, depth, known, sending, data, told, reading, dice, successes, others };
        (0..depth).for_each(|_| rig.submit());
        (0..4 * depth).for_each(|_| rig.host_works());
        rig
    }

    /// A command of some kind and length, if there is room for one.
    fn submit(&mut self) {
        let user = self.known.len() as u32;
        if user >= COMMANDS_MAX {
            return;
        }
        let bytes = 4 * (1 + self.dice.roll(if self.dice.0 & 1 == 0 { 512 } else { 8192 }) as u32);
        let transfer = match self.dice.roll(5) {
            0 => Transfer::None,
            1 | 2 => Transfer::In(bytes),
            _ => Transfer::Out(bytes),
        };
        let room = self.queue.room();
        assert!(room <= usize::from(self.depth));
        let Some(cid) = self.queue.submit(&Command::keep_alive(), transfer, user) else {
            assert_eq!(room, 0, "a queue with room takes a command");
            return;
        };
        assert!(!self.known.values().any(|known| !known.over && known.cid == cid), "an identifier is one command's");
        let known = Known { cid, transfer, moved: 0, sent: 0, is_out: false, wrong_digest: false, over: false };
        self.known.insert(user, known);
    }

    /// One command that is known, over or not.
    fn pick(&self, by: u8) -> Option<&Known> {
        let live: Vec<_> = self.known.values().filter(|known| !known.over && known.is_out).collect();
        let all: Vec<_> = self.known.values().collect();
        let from = if by < 224 && !live.is_empty() { live } else { all };
        from.get(usize::from(by) % from.len().max(1)).copied()
    }

    /// A unit that is almost right: `step` says which, and what is wrong with it.
    fn unit(&self, step: &[u8; STEP_BYTES]) -> Vec<u8> {
        let [kind, by, twist, flip, ..] = *step;
        let (cid, transfer, moved) =
            self.pick(by).map_or((le16(step, 4), Transfer::None, 0), |known| (known.cid, known.transfer, known.moved));
        let total = match transfer {
            Transfer::None => 0,
            Transfer::In(bytes) | Transfer::Out(bytes) => bytes,
        };
        let left = total.saturating_sub(moved);
        let cid = if twist & 1 == 0 { cid } else { cid ^ le16(step, 4) };
        let at = if twist & 2 == 0 { moved } else { le32(step, 6) % (2 * total + 8) };
        let bytes = if twist & 4 == 0 { left } else { le32(step, 10) % (2 * total.min(16 << 10) + 8) };
        let status = if twist & 8 == 0 { Status::SUCCESS } else { Status::new(step[6] & 7, step[7]) };
        let kind = if twist & 128 == 0 { suited(kind, transfer, left) } else { kind % 8 };
        let mut out = match kind {
            0 | 1 => {
                let fields = CompletionFields { dw0: le32(step, 8), sq_head: 0, sq_id: 1, cid, phase: false, status };
                self.layout.response(&Completion::build(fields)).as_bytes().to_vec()
            }
            2..=4 => {
                let last = if (at + bytes >= total) != (twist & 16 != 0) { flags::LAST } else { 0 };
                let success = if twist & 32 == 0 { 0 } else { flags::SUCCESS };
                let mut out = self.layout.controller_data(Data { cid, at, bytes }, last | success).as_bytes().to_vec();
                let data: Vec<u8> = (0..bytes).map(|n| n.to_le_bytes()[0] ^ kind).collect();
                let mut digest = pdu::crc32c(&data).to_le_bytes();
                digest[0] ^= u8::from(twist & 64 != 0);
                out.extend(&data);
                if self.layout.digests.data && bytes > 0 {
                    out.extend(digest);
                }
                out
            }
            5 | 6 => self.layout.ready(R2t { cid, tag: le16(step, 14), at, bytes }).as_bytes().to_vec(),
            _ if twist & 1 == 0 => step.to_vec(),
            _ => {
                let breach = Breach { status: pdu::FatalStatus::Sequence, information: 7, rule: "" };
                pdu::termination(if twist & 2 == 0 { Kind::C2hTerm } else { Kind::H2cTerm }, &breach)
                    .as_bytes()
                    .to_vec()
            }
        };
        // A byte of the head is another one, seldom: with header digests that is the end.
        if flip & 0xE0 == 0xE0
            && let Some(byte) = out.get_mut(usize::from(step[15]) % 24)
        {
            *byte ^= 1 << (flip & 7);
        }
        out
    }

    /// Gives bytes to the queue as a socket would, in pieces; the host goes on with its work in between.
    fn feed(&mut self, bytes: &[u8]) -> Result<(), Breach> {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.host_works();
            let most = match self.dice.roll(4) {
                0 => 1,
                1 => 1 + self.dice.roll(40) as usize,
                _ => rest.len(),
            };
            let piece = &rest[..most.min(rest.len())];
            let took = self.give(piece)?;
            assert!(took > 0, "a queue that is alive wants something");
            rest = &rest[took..];
            self.ends();
            if self.queue.terminated().is_some() {
                return Ok(());
            }
        }
        (0..6).for_each(|_| self.host_works());
        self.ends();
        Ok(())
    }

    /// As much of a piece as the queue wants now; how much that was.
    fn give(&mut self, piece: &[u8]) -> Result<usize, Breach> {
        match self.queue.want() {
            Want::Head => {
                let space = self.queue.head_space();
                let take = space.len().min(piece.len());
                space[..take].copy_from_slice(&piece[..take]);
                self.queue.head_came(take)?;
                Ok(take)
            }
            Want::Data { to, bytes, digest } => {
                assert!(bytes > 0);
                let take = piece.len().min(bytes as usize);
                if let Some(to) = to {
                    self.lands(to, bytes, take as u32);
                }
                if digest {
                    self.data.extend(&piece[..take]);
                }
                self.queue.data_came(take as u32)?;
                Ok(take)
            }
            Want::Digest => {
                let take = piece.len().min(4 - self.told.len());
                self.told.extend(&piece[..take]);
                if let Ok(told) = <[u8; 4]>::try_from(self.told.as_slice()) {
                    let computed = pdu::crc32c(&self.data);
                    self.digest(u32::from_le_bytes(told) == computed);
                    self.told.clear();
                    self.data.clear();
                    self.queue.digest_came(told, computed)?;
                }
                Ok(take)
            }
        }
    }

    /// Data lands: in a read that is under way, behind what came before.
    fn lands(&mut self, to: Range, bytes: u32, take: u32) {
        let known = self.known.get_mut(&to.user).expect("a command that was submitted");
        let Transfer::In(total) = known.transfer else { panic!("data for a command that reads none") };
        assert!(!known.over && known.is_out, "data for a command that is over, or was never sent");
        assert_eq!((to.at, to.bytes), (known.moved, bytes), "data follows what came before");
        assert!(u64::from(to.at) + u64::from(bytes) <= u64::from(total), "data past the end");
        known.moved += take;
        self.reading = Some(to.user);
    }

    /// The digest of the data that came last fits, or does not.
    fn digest(&mut self, fits: bool) {
        let known = self.reading.take().and_then(|user| self.known.get_mut(&user));
        if let Some(known) = known.filter(|_| !fits) {
            known.wrong_digest = true;
        }
    }

    /// Some work of the host's: a unit goes to the socket, the socket takes one, a command comes, one is let go of.
    fn host_works(&mut self) {
        match self.dice.roll(16) {
            0..=6 => {
                if let Some(unit) = self.queue.next_unit() {
                    self.goes_out(&unit);
                    self.sending.push_back(unit);
                }
            }
            7..=11 => {
                if let Some(unit) = self.sending.pop_front() {
                    self.took(&unit);
                    self.queue.unit_sent(&unit);
                }
            }
            12 | 13 => self.submit(),
            14 => {
                let by = self.dice.roll(256) as u8;
                if let Some(&Known { cid, transfer, is_out, over, .. }) = self.pick(by) {
                    let is_let_go = self.queue.let_go(cid);
                    let may = !matches!(transfer, Transfer::Out(_)) || !is_out;
                    assert!(!is_let_go || (!over && may), "a write that was sent is not let go of");
                }
            }
            _ => {}
        }
        self.ends();
    }

    /// Whose command a unit is of: the one whose identifier its head has, which stands at the same place in both kinds.
    fn goes_out(&mut self, unit: &Unit) {
        let head = unit.head.as_bytes();
        let is_command = head[0] == Kind::CapsuleCmd as u8;
        let at = if is_command { COMMON_BYTES + 2 } else { COMMON_BYTES };
        let cid = u16::from_le_bytes([head[at], head[at + 1]]);
        let known = self.known.values_mut().find(|known| !known.over && known.cid == cid);
        let known = known.expect("a unit of a command that is under way");
        assert_ne!(known.is_out, is_command, "the capsule first, and once");
        known.is_out = true;
        if let Some(data) = unit.data {
            assert!(matches!(known.transfer, Transfer::Out(total) if data.at + data.bytes <= total), "past the end");
            assert_eq!(data.at, known.moved, "without a gap");
            assert!(data.bytes > 0);
            known.moved += data.bytes;
        }
    }

    fn took(&mut self, unit: &Unit) {
        if let Some(data) = unit.data {
            let known = self.known.get_mut(&data.user).expect("a command that was submitted");
            assert!(!known.over, "the memory of a command that is over was with the socket");
            known.sent += data.bytes;
        }
    }

    /// Takes the ends: each command has one.
    fn ends(&mut self) {
        while let Some(end) = self.queue.pop_end() {
            let known = self.known.get_mut(&end.user).expect("a command that was submitted");
            assert!(!known.over, "one end for each command");
            known.over = true;
            let is_success = end.outcome == Outcome::Told(Status::SUCCESS);
            if is_success {
                assert!(known.is_out && !known.wrong_digest);
                match known.transfer {
                    Transfer::None => {}
                    Transfer::In(total) => assert_eq!(known.moved, total, "success with less data"),
                    Transfer::Out(total) => {
                        assert_eq!((known.moved, known.sent), (total, total), "success with less data")
                    }
                }
            }
            let count = if is_success { &mut self.successes } else { &mut self.others };
            *count += 1;
        }
    }
}
