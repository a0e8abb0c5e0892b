//! The host's end of a queue over TCP: commands in, units out; bytes in, ends out. It does no I/O.
//!
//! ```text
//!   submit ─► slot ─► outbox ─► next_unit … unit_sent                        (to the socket)
//!   (from the socket)  head_space/head_came ─► data_came ─► digest_came ─► pop_end
//! ```
//!
//! Invariants:
//! - Nothing that a peer says is an index or a length before it was compared with the slot it names: identifier and generation,
//!   direction, order, range.
//! - A command ends when the controller's answer was seen **and** none of its units is with the socket: until then its memory is read.
//! - Success is taken for success only if every byte moved: see [`Outcome::Short`]. (SPDK takes less for success, Linux does not.)
//! - Data of a read that nobody waits for any more lands nowhere: see [`HostQueue::let_go`].
//! - What is [foreseen](HostQueue::foreseen) decides nothing: it says where bytes may be received to before their unit's head was seen. Where
//!   they belong is what [`HostQueue::want`] says then.

use std::collections::VecDeque;

use super::pdu::{
    self, Breach, COMMON_BYTES, DIGEST_BYTES, Data, FatalStatus, HEAD_BYTES_MAX, Head, Header, Kind, Layout, R2t, flags,
};
use crate::{
    status::Status,
    wire::{Command, Completion},
};

/// Commands of one queue at a time at most: the rest of an identifier's bits is a generation.
pub const DEPTH_MAX: u16 = 1000;
const INDEX_BITS: u32 = 10;
const INDEX_MASK: u16 = (1 << INDEX_BITS) - 1;
const GENERATIONS: u16 = 1 << (16 - INDEX_BITS);
const _: () = assert!(DEPTH_MAX <= INDEX_MASK, "an index has its bits in an identifier");

/// The shortest unit that a controller sends, without digest: a first look may ask for so much.
const LEAST_UNIT_BYTES: usize = 24;
/// So many units have come as they were foreseen for each one that is foreseen next: what comes otherwise is copied, and that stays rare.
const UNITS_BEFORE_ONE: u32 = 8;

/// What a queue is made with.
#[derive(Clone, Copy, Debug)]
pub struct HostConfig {
    /// Commands at a time, 1 to [`DEPTH_MAX`].
    pub depth: u16,
    /// How data of the host's is laid out: digests, CPDA.
    pub layout: Layout,
    /// MAXH2CDATA in bytes.
    pub h2c_bytes_max: u32,
    /// Bytes of a write that go in its capsule at most.
    pub capsule_data_bytes: u32,
}

/// What a command moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Nothing.
    None,
    /// So many bytes to the host.
    In(u32),
    /// So many bytes to the controller.
    Out(u32),
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The controller's word. With success, every byte moved.
    Told(Status),
    /// The controller says success, and moved so many bytes only.
    Short {
        /// Bytes that moved.
        moved: u32,
    },
    /// The controller says success, and a data digest did not fit the data.
    WrongDigest,
    /// Nobody waits for it any more.
    LetGo,
}

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Given with the command.
    pub user: u32,
    /// What became of it.
    pub outcome: Outcome,
    /// The completion's first eight bytes.
    pub value: u64,
    /// Bytes of its data that [went aside](HostQueue::went_aside).
    pub aside: u32,
}

/// Bytes of a command's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Given with the command.
    pub user: u32,
    /// First byte, counted from the start of the command's data.
    pub at: u32,
    /// How many.
    pub bytes: u32,
}

/// A unit to send: the head, the data, and a digest of the data if `digest`.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    /// Header, digest, padding.
    pub head: Head,
    /// Data that follows.
    pub data: Option<Range>,
    /// Whether four bytes of CRC-32C of the data follow that.
    pub digest: bool,
    /// The command that the unit is the capsule of: before a byte of it is sent, the controller knows nothing of the command.
    pub begins: Option<u16>,
    slot: u16,
}

/// What comes next from the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// A head: see [`HostQueue::head_space`].
    Head,
    /// Data.
    Data {
        /// Whose; `None`: nobody's, drop it.
        to: Option<Range>,
        /// How many bytes are still to come.
        bytes: u32,
        /// Whether a digest follows.
        digest: bool,
    },
    /// Four bytes of digest of the data that just came.
    Digest,
}

#[derive(Clone, Copy)]
struct Wish {
    tag: u16,
    at: u32,
    left: u32,
}

struct Slot {
    generation: u16,
    live: bool,
    user: u32,
    command: Command,
    transfer: Transfer,
    /// The capsule has not been made a unit.
    unsent: bool,
    /// Bytes that came, or that the controller took or asked for.
    moved: u32,
    /// Of these, what did not come to its place at once.
    aside: u32,
    wish: Option<Wish>,
    /// Units that are with the socket.
    sending: u8,
    /// The end, while units of it are with the socket.
    ended: Option<(Outcome, u64)>,
    wrong_digest: bool,
    let_go: bool,
    /// It is among the reads whose data is awaited.
    awaited: bool,
    /// A unit of its data has come, or is coming, and there are more.
    begun: bool,
}

/// Data that is coming.
#[derive(Clone, Copy)]
struct Coming {
    slot: u16,
    at: u32,
    left: u32,
    flags: u8,
    digest: bool,
}

/// See the module documentation.
pub struct HostQueue {
    config: HostConfig,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// Slots with something to send.
    outbox: VecDeque<u16>,
    /// Reads that were sent and of whose data nothing came, in the order of their capsules.
    awaited: VecDeque<u16>,
    /// Reads of whose data some came, and more will.
    begun: u16,
    /// Units that came one after the other as they were foreseen.
    in_order: u32,
    head: [u8; HEAD_BYTES_MAX + DIGEST_BYTES + pdu::TERM_DATA_BYTES_MAX as usize],
    have: usize,
    need: usize,
    header: Option<Header>,
    coming: Option<Coming>,
    ends: VecDeque<End>,
    /// FES and FEI of the controller's termination.
    terminated: Option<(u16, u32)>,
}

/// The controller's termination; the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminated {
    /// FES.
    pub status: u16,
    /// FEI.
    pub information: u32,
}

impl HostQueue {
    /// A queue on a connection that was initialised.
    pub fn new(config: HostConfig) -> Self {
        let depth = config.depth.clamp(1, DEPTH_MAX);
        let slot = || Slot {
            generation: 0,
            live: false,
            user: 0,
            command: Command::ZERO,
            transfer: Transfer::None,
            unsent: false,
            moved: 0,
            aside: 0,
            wish: None,
            sending: 0,
            ended: None,
            wrong_digest: false,
            let_go: false,
            awaited: false,
            begun: false,
        };
        let mut queue = Self {
            config: HostConfig { depth, ..config },
            slots: (0..depth).map(|_| slot()).collect(),
            free: (0..depth).rev().collect(),
            outbox: VecDeque::with_capacity(2 * usize::from(depth)),
            awaited: VecDeque::with_capacity(usize::from(depth)),
            begun: 0,
            in_order: 0,
            head: [0; HEAD_BYTES_MAX + DIGEST_BYTES + pdu::TERM_DATA_BYTES_MAX as usize],
            have: 0,
            need: 0,
            header: None,
            coming: None,
            ends: VecDeque::with_capacity(usize::from(depth)),
            terminated: None,
        };
        queue.next_head();
        queue
    }

    /// Sets how many bytes of a write go in its capsule at most, for commands that are submitted from now on. Nothing is under way.
    pub fn set_capsule_data_bytes(&mut self, bytes: u32) {
        self.config.capsule_data_bytes = bytes;
    }

    /// Commands that it takes now.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Takes a command; its data pointer and its identifier are set here. Gives the identifier; `None`: it is full.
    ///
    /// `user` comes back in the end and names the command's memory.
    pub fn submit(&mut self, command: &Command, transfer: Transfer, user: u32) -> Option<u16> {
        let index = self.free.pop()?;
        let capsule = self.config.capsule_data_bytes;
        let slot = self.slots.get_mut(usize::from(index))?;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        let cid = slot.generation << INDEX_BITS | index;
        let (bytes, descriptor) = match transfer {
            Transfer::None => (0, TRANSPORT_BLOCK),
            Transfer::Out(bytes) if bytes <= capsule => (bytes, IN_CAPSULE),
            Transfer::In(bytes) | Transfer::Out(bytes) => (bytes, TRANSPORT_BLOCK),
        };
        let mut raw = *command.bytes();
        raw[1] = raw[1] & 0x3F | PSDT_SGL;
        raw[2..4].copy_from_slice(&cid.to_le_bytes());
        raw[24..32].fill(0);
        raw[32..36].copy_from_slice(&bytes.to_le_bytes());
        raw[36..40].copy_from_slice(&[0, 0, 0, descriptor]);
        (slot.command, slot.transfer, slot.user) = (Command::new(raw), transfer, user);
        (slot.live, slot.unsent, slot.moved, slot.aside, slot.wish) = (true, true, 0, 0, None);
        (slot.sending, slot.ended, slot.wrong_digest, slot.let_go) = (0, None, false, false);
        self.outbox.push_back(index);
        Some(cid)
    }

    /// The next unit to send, if there is one. [`HostQueue::unit_sent`] says when the socket has it.
    pub fn next_unit(&mut self) -> Option<Unit> {
        while let Some(index) = self.outbox.pop_front() {
            let layout = self.config.layout;
            let Some(slot) = self.slots.get_mut(usize::from(index)).filter(|slot| slot.live) else { continue };
            if slot.unsent {
                slot.unsent = false;
                slot.sending += 1;
                let in_capsule = match slot.transfer {
                    Transfer::Out(bytes) if bytes <= self.config.capsule_data_bytes => bytes,
                    _ => 0,
                };
                slot.moved = in_capsule;
                if matches!(slot.transfer, Transfer::In(_)) {
                    slot.awaited = true;
                    self.awaited.push_back(index);
                }
                let head = layout.command(&slot.command, in_capsule);
                let data = (in_capsule > 0).then_some(Range { user: slot.user, at: 0, bytes: in_capsule });
                let digest = layout.digests.data && data.is_some();
                return Some(Unit { head, data, digest, begins: Some(slot.command.cid()), slot: index });
            }
            let Some(Wish { tag, at, left }) = slot.wish else { continue };
            let bytes = left.min(self.config.h2c_bytes_max);
            let last = if bytes == left { flags::LAST } else { 0 };
            slot.wish = (bytes < left).then_some(Wish { tag, at: at + bytes, left: left - bytes });
            if slot.wish.is_some() {
                // Others have their turn in between.
                self.outbox.push_back(index);
            }
            slot.sending += 1;
            let head = layout.host_data(Data { cid: slot.command.cid(), at, bytes }, tag, last);
            let data = Some(Range { user: slot.user, at, bytes });
            return Some(Unit { head, data, digest: layout.digests.data, begins: None, slot: index });
        }
        None
    }

    /// Whether [`HostQueue::next_unit`] may have one.
    pub fn has_units(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The socket has all of a unit: its memory is not read for it any more.
    pub fn unit_sent(&mut self, unit: &Unit) {
        let Some(slot) = self.slots.get_mut(usize::from(unit.slot)) else { return };
        slot.sending = slot.sending.saturating_sub(1);
        if slot.sending == 0
            && let Some((outcome, value)) = slot.ended.take()
        {
            self.free(unit.slot, outcome, value);
        }
    }

    /// What comes next from the socket.
    pub fn want(&self) -> Want {
        match self.coming {
            None => Want::Head,
            Some(Coming { left: 0, .. }) => Want::Digest,
            Some(Coming { slot, at, left, digest, .. }) => {
                let slot = self.slots.get(usize::from(slot)).filter(|slot| slot.live && !slot.let_go);
                let to = slot.map(|slot| Range { user: slot.user, at, bytes: left });
                Want::Data { to, bytes: left, digest }
            }
        }
    }

    /// Bytes of a head as a controller sends it as a rule: what lies between the data of two units.
    pub fn head_bytes(&self) -> usize {
        LEAST_UNIT_BYTES + if self.config.layout.digests.header { DIGEST_BYTES } else { 0 }
    }

    /// The data of the units that most likely come behind the one that is coming or whose head is next, each with a
    /// [head](HostQueue::head_bytes) before it but the first, and its digest. They are of reads that are under way, of which nothing came.
    ///
    /// Controllers that answer in the order of the commands, with all data of a read in one unit that says success, have many; of any
    /// others it soon has none.
    pub fn foreseen(&self) -> impl Iterator<Item = Range> {
        let most = sw_mem::index(u64::from(self.in_order / UNITS_BEFORE_ONE));
        let slots = self.awaited.iter().map_while(|index| self.slots.get(usize::from(*index)));
        slots.take(most).map_while(|slot| match slot.transfer {
            Transfer::In(bytes) if !slot.let_go => Some(Range { user: slot.user, at: 0, bytes }),
            _ => None,
        })
    }

    /// Whether a digest follows the data of each unit.
    pub fn has_data_digests(&self) -> bool {
        self.config.layout.digests.data
    }

    /// Whether data of a read may come behind the unit that is coming.
    pub fn awaits_data(&self) -> bool {
        !self.awaited.is_empty() || self.begun > 0
    }

    /// Where the next bytes of a head belong. While data comes, the head is that of the unit behind it.
    pub fn head_space(&mut self) -> &mut [u8] {
        self.head.get_mut(self.have..self.need).unwrap_or_default()
    }

    /// So many bytes of a head came.
    ///
    /// # Errors
    /// [`Breach`]: the connection ends.
    pub fn head_came(&mut self, bytes: usize) -> Result<(), Breach> {
        self.have = (self.have + bytes).min(self.need);
        if self.header.is_none() && self.have >= COMMON_BYTES {
            let mut common = [0; COMMON_BYTES];
            common.copy_from_slice(&self.head[..COMMON_BYTES]);
            let header = Header::decode(&common, self.config.layout.digests, u32::MAX)?;
            let fits = matches!(header.kind, Kind::CapsuleResp | Kind::C2hData | Kind::R2t | Kind::C2hTerm);
            if !fits {
                return Err(Breach::of(FatalStatus::Sequence, "a unit that a controller does not send now"));
            }
            self.need = match header.kind {
                // Its data is the header that was wrong: it is read, so that the end of the connection is seen behind it.
                Kind::C2hTerm => header.head_bytes() + header.data_bytes as usize,
                _ => header.head_bytes(),
            };
            self.header = Some(header);
        }
        match self.header {
            Some(header) if self.have >= self.need => self.head_done(header),
            _ => Ok(()),
        }
    }

    /// So many bytes of the data came.
    ///
    /// # Errors
    /// [`Breach`]: the connection ends.
    pub fn data_came(&mut self, bytes: u32) -> Result<(), Breach> {
        let Some(coming) = &mut self.coming else { return Ok(()) };
        let bytes = bytes.min(coming.left);
        (coming.at, coming.left) = (coming.at + bytes, coming.left - bytes);
        let (index, over) = (coming.slot, coming.left == 0 && !coming.digest);
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            slot.moved += bytes;
        }
        if over { self.data_done() } else { Ok(()) }
    }

    /// So many bytes of the data that is coming are received to another place than theirs, and copied from there.
    pub fn went_aside(&mut self, bytes: u32) {
        if let Some(Coming { slot, .. }) = self.coming
            && let Some(slot) = self.slots.get_mut(usize::from(slot))
        {
            slot.aside = slot.aside.saturating_add(bytes);
        }
    }

    /// The digest of the data came, and `computed` is that of the bytes that did.
    ///
    /// # Errors
    /// [`Breach`]: the connection ends. A digest that does not fit ends the command only.
    pub fn digest_came(&mut self, told: [u8; DIGEST_BYTES], computed: u32) -> Result<(), Breach> {
        if let Some(coming) = self.coming
            && u32::from_le_bytes(told) != computed
            && let Some(slot) = self.slots.get_mut(usize::from(coming.slot))
        {
            slot.wrong_digest = true;
        }
        self.data_done()
    }

    /// The controller ended the connection, and says why.
    pub fn terminated(&self) -> Option<Terminated> {
        self.terminated.map(|(status, information)| Terminated { status, information })
    }

    /// The next command that ended.
    pub fn pop_end(&mut self) -> Option<End> {
        self.ends.pop_front()
    }

    /// Ends a command for its caller, if its memory can be left alone from now on: a read, or one that was not sent. What comes for
    /// it lands nowhere; its place is free when the controller answers. `false`: the controller's answer must be waited for.
    pub fn let_go(&mut self, cid: u16) -> bool {
        let Some(index) = self.live(cid) else { return false };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return false };
        if slot.unsent {
            self.outbox.retain(|queued| *queued != index);
            self.free(index, Outcome::LetGo, 0);
            return true;
        }
        if matches!(slot.transfer, Transfer::Out(_)) || slot.let_go || slot.ended.is_some() {
            return false;
        }
        slot.let_go = true;
        self.ends.push_back(End { user: slot.user, outcome: Outcome::LetGo, value: 0, aside: slot.aside });
        true
    }

    /// Whether a command is under way of which no unit was made yet.
    pub fn is_unsent(&self, cid: u16) -> bool {
        let slot = self.live(cid).and_then(|index| self.slots.get(usize::from(index)));
        slot.is_some_and(|slot| slot.unsent)
    }

    /// Whether a command was let go of and is not answered yet: its place is taken.
    pub fn is_let_go(&self, cid: u16) -> bool {
        let slot = self.live(cid).and_then(|index| self.slots.get(usize::from(index)));
        slot.is_some_and(|slot| slot.let_go)
    }

    /// The place of a live command.
    fn live(&self, cid: u16) -> Option<u16> {
        let index = cid & INDEX_MASK;
        let slot = self.slots.get(usize::from(index))?;
        (slot.live && slot.generation == cid >> INDEX_BITS).then_some(index)
    }

    /// Data of a read comes, or never will.
    fn await_no_more(&mut self, index: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        if !core::mem::take(&mut slot.awaited) {
            return;
        }
        // The first one, where the controller keeps the order.
        if let Some(at) = self.awaited.iter().position(|awaited| *awaited == index) {
            self.awaited.remove(at);
        }
    }

    /// Frees a place and gives the end out, unless somebody was told before.
    fn free(&mut self, index: u16, outcome: Outcome, value: u64) {
        self.await_no_more(index);
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        slot.live = false;
        self.begun -= u16::from(core::mem::take(&mut slot.begun));
        if !slot.let_go {
            self.ends.push_back(End { user: slot.user, outcome, value, aside: slot.aside });
        }
        self.free.push(index);
    }

    fn next_head(&mut self) {
        let digest = if self.config.layout.digests.header { DIGEST_BYTES } else { 0 };
        (self.have, self.need, self.header) = (0, LEAST_UNIT_BYTES + digest, None);
    }

    fn head_done(&mut self, header: Header) -> Result<(), Breach> {
        let header_bytes = header.kind.header_bytes();
        let digest = self.config.layout.digests.header && header.kind.has_header_digest();
        if digest && !pdu::header_digest_fits(&self.head[..self.need], header_bytes) {
            return Err(Breach::of(FatalStatus::HeaderDigest, "a header does not fit its digest"));
        }
        let raw = self.head;
        self.next_head();
        match header.kind {
            Kind::CapsuleResp => self.response(&pdu::completion(&raw)),
            Kind::C2hData => self.controller_data(&header, Data::decode(&raw).0),
            Kind::R2t => self.ready(R2t::decode(&raw)),
            _ => {
                self.terminated = Some(pdu::terminated(&raw));
                Ok(())
            }
        }
    }

    fn response(&mut self, completion: &Completion) -> Result<(), Breach> {
        self.in_order = 0;
        let index = self.awaited(completion.cid())?;
        let value = u64::from(completion.dw0()) | u64::from(completion.dw1()) << 32;
        self.over(index, completion.status(), value)
    }

    /// A sent command without its answer.
    fn awaited(&self, cid: u16) -> Result<u16, Breach> {
        let index = self.live(cid).ok_or(Breach::field(8, "a unit for a command that is not under way"))?;
        match self.slots.get(usize::from(index)) {
            Some(slot) if !slot.unsent && slot.ended.is_none() => Ok(index),
            _ => Err(Breach::field(8, "a unit for a command that is not under way")),
        }
    }

    fn over(&mut self, index: u16, status: Status, value: u64) -> Result<(), Breach> {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return Ok(()) };
        let whole = match slot.transfer {
            Transfer::None => true,
            // What was asked for and not sent yet did not move.
            Transfer::Out(bytes) => slot.moved - slot.wish.map_or(0, |wish| wish.left) == bytes,
            Transfer::In(bytes) => slot.moved == bytes,
        };
        let outcome = match status.is_success() {
            true if !whole => Outcome::Short { moved: slot.moved },
            true if slot.wrong_digest => Outcome::WrongDigest,
            _ => Outcome::Told(status),
        };
        // It wants no more of it.
        slot.wish = None;
        if slot.sending > 0 {
            slot.ended = Some((outcome, value));
        } else {
            self.free(index, outcome, value);
        }
        Ok(())
    }

    fn controller_data(&mut self, header: &Header, data: Data) -> Result<(), Breach> {
        let index = self.awaited(data.cid)?;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return Ok(()) };
        let Transfer::In(bytes) = slot.transfer else {
            return Err(Breach::field(8, "data for a command that reads none"));
        };
        let end = u64::from(data.at) + u64::from(data.bytes);
        if data.bytes != header.data_bytes || data.bytes == 0 {
            return Err(Breach::field(16, "a unit with another length of data than its header says"));
        }
        if data.at != slot.moved {
            return Err(Breach::of(FatalStatus::OutOfRange, "data that does not follow what came before"));
        }
        if end > u64::from(bytes) {
            return Err(Breach::of(FatalStatus::OutOfRange, "data past the end of what was asked for"));
        }
        let last = header.flags & flags::LAST != 0;
        if header.flags & flags::SUCCESS != 0 && !last {
            return Err(Breach::field(1, "success before the last data"));
        }
        // Whether the last data is marked is not asked for: its end is known by its length, and go-nvme marks none.
        let is_foreseen = last
            && header.flags & flags::SUCCESS != 0
            && data.at == 0
            && header.head_bytes() == self.head_bytes()
            && self.awaited.front() == Some(&index);
        self.in_order = if is_foreseen { self.in_order.saturating_add(1) } else { 0 };
        self.await_no_more(index);
        let more = end < u64::from(bytes);
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            self.begun = self.begun - u16::from(core::mem::replace(&mut slot.begun, more)) + u16::from(more);
        }
        self.coming = Some(Coming {
            slot: index,
            at: data.at,
            left: data.bytes,
            flags: header.flags,
            digest: header.data_digest,
        });
        Ok(())
    }

    fn data_done(&mut self) -> Result<(), Breach> {
        match self.coming.take() {
            Some(Coming { slot, flags, .. }) if flags & flags::SUCCESS != 0 => self.over(slot, Status::SUCCESS, 0),
            _ => Ok(()),
        }
    }

    fn ready(&mut self, wish: R2t) -> Result<(), Breach> {
        self.in_order = 0;
        let index = self.awaited(wish.cid)?;
        let capsule = self.config.capsule_data_bytes;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return Ok(()) };
        let bytes = match slot.transfer {
            Transfer::Out(bytes) if bytes > capsule => bytes,
            _ => return Err(Breach::field(8, "a wish for data of a command that has none to give")),
        };
        if slot.wish.is_some() {
            return Err(Breach::of(FatalStatus::R2tLimit, "more than one R2T of a command at a time"));
        }
        if wish.bytes == 0 || wish.at != slot.moved {
            return Err(Breach::of(FatalStatus::OutOfRange, "an R2T that does not follow the one before, or is empty"));
        }
        if u64::from(wish.at) + u64::from(wish.bytes) > u64::from(bytes) {
            return Err(Breach::of(FatalStatus::OutOfRange, "an R2T past the end of the command's data"));
        }
        slot.moved += wish.bytes;
        slot.wish = Some(Wish { tag: wish.tag, at: wish.at, left: wish.bytes });
        self.outbox.push_back(index);
        Ok(())
    }
}

/// PSDT 01b in the flags of a command: an SGL, as fabrics have nothing else.
const PSDT_SGL: u8 = 0x40;
/// SGL identifier: Transport Data Block, subtype Transport.
const TRANSPORT_BLOCK: u8 = 0x5A;
/// SGL identifier: Data Block, subtype Offset: the data lies in the capsule, address 0.
const IN_CAPSULE: u8 = 0x01;

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
