//! The modelled target: a controller for each association, queues over streams, and a medium.
//!
//! What it may do late: a command that is under way is carried out when it likes, as long as its association lives, and up to CQT behind
//! the end of that. An association ends when its admin connection does, when its host is silent past KATO (rounded up to KAS; with TBKAS
//! any command is a sign, and it looks once in KATO), or, as Linux has it, when any connection of it is lost.
//!
//! It speaks through the codec of `sw_nvme::tcp::pdu`; what it does with the units is its own.

use std::collections::{BTreeMap, VecDeque};

use sw_nvme::{
    fabrics::{ConnectData, FabricsCommand, QueueRequest},
    status::Status,
    tcp::pdu::{
        self, COMMON_BYTES, DIGEST_BYTES, Data, Header, INITIALIZE_BYTES, IcReq, IcResp, Kind, Layout, R2t, flags,
    },
    wire::{
        Command, Completion, admin,
        ccr::{self, Instance},
        command::opcode,
        completion::CompletionFields,
    },
};

use super::{
    Event, Shared,
    history::BLOCK,
    resets::{ResetParams, Resets},
    wire::{Read, Way},
};
use crate::{log::Mark, rng::Rng};

/// What a write that lingers takes: above every limit of a host.
const LINGER_NS: u64 = 10_000_000_000;
/// SGL identifier: the data lies in the capsule.
const IN_CAPSULE: u8 = 0x01;

/// What a target is like, and its faults.
#[derive(Clone, Copy, Debug)]
pub struct TargetParams {
    /// Blocks of its namespace.
    pub blocks: u64,
    /// CQT.
    pub quiesce_ns: u64,
    /// KAS in nanoseconds; 0 for none.
    pub keep_alive_unit_ns: u64,
    /// Whether any command keeps an association alive (TBKAS).
    pub traffic: bool,
    /// Whether one lost connection ends the association.
    pub ends_with_any: bool,
    /// Digests that it takes.
    pub digests: pdu::Digests,
    /// CPDA.
    pub alignment: u8,
    /// Bytes of one R2T, and of one C2HData, at most.
    pub r2t_bytes_max: u32,
    /// See above.
    pub c2h_bytes_max: u32,
    /// Nanoseconds that a command takes.
    pub latency_ns: (u64, u64),
    /// Of a thousand commands: those that take longer, by up to so many nanoseconds.
    pub slow: (u64, u64),
    /// Of a thousand: never answered.
    pub deaf: u64,
    /// Of a thousand: refused.
    pub refused: u64,
    /// Of a thousand reads: success with less data than asked for.
    pub short: u64,
    /// Of a thousand writes whose association ended: carried out all the same, before CQT is over.
    pub late: u64,
    /// The path by which the namespace is not reached, or another one is: commands that come by it are a mistake of the host's.
    pub wrong_path: Option<u8>,
    /// Cross-Controller Reset; `None`: there is none.
    pub resets: Option<ResetParams>,
}

struct Transfer {
    command: Command,
    data: Vec<u8>,
    asked: usize,
    total: usize,
    is_intact: bool,
}

/// A stream, as the target has it.
#[derive(Default)]
struct Peer {
    is_ready: bool,
    layout: Layout,
    association: Option<u16>,
    /// The path that it came by.
    path: u8,
    is_admin: bool,
    buffer: Vec<u8>,
    out: VecDeque<u8>,
    transfers: BTreeMap<u16, Transfer>,
    is_closed: bool,
}

#[derive(Default)]
struct Association {
    keep_alive: u64,
    /// The last sign that counts, or the start of the time in which it is looked for.
    sign: u64,
    had_traffic: bool,
    is_over: bool,
}

/// A command that is under way.
struct Job {
    stream: usize,
    association: u16,
    command: Command,
    data: Vec<u8>,
    due: u64,
    is_deaf: bool,
}

/// See the module documentation.
pub(crate) struct Target {
    params: TargetParams,
    rng: Rng,
    peers: BTreeMap<usize, Peer>,
    associations: BTreeMap<u16, Association>,
    jobs: BTreeMap<u64, Job>,
    next_job: u64,
    medium: Vec<[u8; BLOCK]>,
    is_calm: bool,
    /// Streams before are closed.
    first_open: usize,
    /// The next write takes very long.
    lingers: bool,
    resets: Resets,
}

/// The tag that a block holds: the same in all of its words.
pub(crate) fn tag_of(block: &[u8]) -> Option<u64> {
    let (words, rest) = block.as_chunks::<8>();
    let first = u64::from_le_bytes(*words.first()?);
    (rest.is_empty() && words.iter().all(|word| u64::from_le_bytes(*word) == first)).then_some(first)
}

fn short(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Target {
    pub(crate) fn new(params: TargetParams, seed: u64) -> Self {
        let medium = vec![[0; BLOCK]; sw_mem::index(params.blocks)];
        Self {
            params,
            rng: Rng::split(seed, "target"),
            peers: BTreeMap::new(),
            associations: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
            medium,
            is_calm: false,
            first_open: 0,
            lingers: false,
            resets: Resets::new(params.resets, seed),
        }
    }

    /// Faults stop.
    pub(crate) fn calm_down(&mut self) {
        self.is_calm = true;
    }

    /// The next write takes longer than any association lives.
    pub(crate) fn linger(&mut self) {
        self.lingers = true;
    }

    /// Something of a stream arrived.
    pub(crate) fn arrived(&mut self, stream: usize, shared: &mut Shared) {
        loop {
            let peer = self.peers.entry(stream).or_default();
            if peer.is_closed {
                return;
            }
            match shared.wire.read(stream, Way::ToTarget, usize::MAX) {
                Read::Bytes(bytes) => peer.buffer.extend(bytes),
                Read::Nothing => return,
                Read::End | Read::Reset => return self.lost(stream, shared),
            }
            while let Some(taken) = self.unit(stream, shared) {
                if taken == 0 {
                    return self.lost(stream, shared);
                }
                self.peers.entry(stream).or_default().buffer.drain(..taken);
            }
        }
    }

    /// A stream is over.
    fn lost(&mut self, stream: usize, shared: &mut Shared) {
        self.close(stream, shared);
        let Some(peer) = self.peers.get(&stream) else { return };
        if let Some(association) = peer.association
            && (peer.is_admin || self.params.ends_with_any)
        {
            self.end(association, shared);
        }
    }

    fn close(&mut self, stream: usize, shared: &mut Shared) {
        let Some(peer) = self.peers.get_mut(&stream).filter(|peer| !peer.is_closed) else { return };
        peer.is_closed = true;
        peer.transfers.clear();
        shared.wire.close(stream, Way::ToHost, &mut shared.agenda);
    }

    /// An association ends: its streams, and what is under way is carried out soon or never.
    fn end(&mut self, number: u16, shared: &mut Shared) {
        let Some(association) = self.associations.get_mut(&number).filter(|one| !one.is_over) else { return };
        association.is_over = true;
        shared.note("target ends association", &[number.into()]);
        let of = self.peers.iter().filter(|(_, peer)| peer.association == Some(number)).map(|(stream, _)| *stream);
        for stream in of.collect::<Vec<_>>() {
            self.close(stream, shared);
        }
        let now = shared.now();
        let ids: Vec<u64> = self.jobs.iter().filter(|(_, job)| job.association == number).map(|(id, _)| *id).collect();
        for id in ids {
            let late = self.rng.below(self.params.quiesce_ns + 1);
            // The last moment is the one that tells most.
            let late = if self.rng.per_mille(300) { self.params.quiesce_ns } else { late };
            if !self.rng.per_mille(self.params.late) {
                self.jobs.remove(&id);
            } else if let Some(job) = self.jobs.get_mut(&id) {
                job.due = now + late;
                shared.agenda.plan(late, Event::Job(id));
            }
        }
    }

    /// The timer of an association.
    pub(crate) fn timer(&mut self, number: u16, shared: &mut Shared) {
        let now = shared.now();
        let Some(one) = self.associations.get_mut(&number).filter(|one| !one.is_over) else { return };
        if self.params.traffic && one.had_traffic && now >= one.sign + one.keep_alive {
            (one.sign, one.had_traffic) = (now, false);
        }
        let due = one.sign + one.keep_alive;
        if now < due {
            return shared.agenda.plan(due - now, Event::KeepAlive(number));
        }
        shared.mark(Mark::NetKeepAliveExpired);
        self.end(number, shared);
    }

    /// The first unit of a stream's buffer: how many bytes it has. `None` if it is not whole, 0 if it makes no sense.
    fn unit(&mut self, stream: usize, shared: &mut Shared) -> Option<usize> {
        let peer = self.peers.get_mut(&stream).filter(|peer| !peer.is_closed)?;
        let common: [u8; COMMON_BYTES] = *peer.buffer.first_chunk()?;
        if !peer.is_ready {
            let raw = peer.buffer.get(..INITIALIZE_BYTES)?;
            if Kind::of(common[0]) != Some(Kind::IcReq) {
                return Some(0);
            }
            let asked = IcReq::decode(raw);
            let digests = pdu::Digests {
                header: asked.digests.header && self.params.digests.header,
                data: asked.digests.data && self.params.digests.data,
            };
            let answer =
                IcResp { format: 0, alignment: self.params.alignment, digests, h2c_bytes_max: pdu::MAXH2C_MIN };
            peer.is_ready = true;
            peer.layout = Layout { digests, alignment: asked.alignment.min(31) };
            peer.out.extend(answer.encode().as_bytes());
            flush(peer, stream, shared);
            return Some(INITIALIZE_BYTES);
        }
        let digests = peer.layout.digests;
        let Ok(header) = Header::decode(&common, digests, u32::MAX) else { return Some(0) };
        let tail = if header.data_digest { DIGEST_BYTES } else { 0 };
        let (at, bytes) = (header.head_bytes(), sw_mem::index(header.data_bytes.into()));
        let raw = peer.buffer.get(..at + bytes + tail)?.to_vec();
        if digests.header && !pdu::header_digest_fits(&raw, header.kind.header_bytes()) {
            return Some(0);
        }
        let data = raw.get(at..at + bytes).unwrap_or_default();
        let told = raw.get(at + bytes..).and_then(|tail| tail.first_chunk::<DIGEST_BYTES>());
        let is_intact = told.is_none_or(|told| u32::from_le_bytes(*told) == pdu::crc32c(data));
        match header.kind {
            Kind::CapsuleCmd => self.command(stream, pdu::command(&raw), (data, is_intact), shared),
            Kind::H2cData => self.host_data(stream, Data::decode(&raw).0, (data, is_intact), shared),
            _ => return Some(0),
        }
        Some(raw.len())
    }

    fn command(&mut self, stream: usize, command: Command, (data, is_intact): (&[u8], bool), shared: &mut Shared) {
        let now = shared.now();
        let Some(peer) = self.peers.get_mut(&stream) else { return };
        if let Some(FabricsCommand::Connect { queue, .. }) = FabricsCommand::decode(&command) {
            return if is_intact {
                self.connect(stream, command.cid(), queue, data, shared)
            } else {
                self.lost(stream, shared)
            };
        }
        let Some(number) = peer.association else { return self.lost(stream, shared) };
        if !peer.is_admin && self.params.wrong_path == Some(peer.path) {
            shared.violate(
                "path",
                format!("a command comes by path {}, which does not lead to the namespace", peer.path),
            );
        }
        if let Some(one) = self.associations.get_mut(&number) {
            one.had_traffic = true;
            if !self.params.traffic && command.opcode() == admin::opcode::KEEP_ALIVE {
                one.sign = now;
            }
        }
        if command.opcode() != opcode::WRITE || peer.is_admin {
            return self.begin(stream, number, command, Vec::new(), shared);
        }
        let total = sw_mem::index(command.dword(8).into());
        if command.bytes()[39] == IN_CAPSULE {
            return self.write(stream, number, command, (data.to_vec(), is_intact), shared);
        }
        let transfer = Transfer { command, data: Vec::new(), asked: 0, total, is_intact: true };
        peer.transfers.insert(command.cid(), transfer);
        self.ask(stream, command.cid(), shared);
    }

    /// All data of a write is here.
    fn write(
        &mut self,
        stream: usize,
        number: u16,
        command: Command,
        (data, is_intact): (Vec<u8>, bool),
        shared: &mut Shared,
    ) {
        if is_intact {
            return self.begin(stream, number, command, data, shared);
        }
        // Transient Transport Error: the data did not fit its digest.
        self.respond(stream, command.cid(), Status::new(0, 0x22), 0, shared);
    }

    fn connect(&mut self, stream: usize, cid: u16, queue: QueueRequest, data: &[u8], shared: &mut Shared) {
        let Some(peer) = self.peers.get_mut(&stream) else { return };
        let number = if queue.qid == 0 {
            let number = u16::try_from(self.associations.len() + 1).unwrap_or(u16::MAX);
            let unit = self.params.keep_alive_unit_ns.max(1);
            let keep_alive = (u64::from(queue.keep_alive_ms) * 1_000_000).div_ceil(unit) * unit;
            let one = Association { keep_alive, sign: shared.now(), ..Association::default() };
            self.associations.insert(number, one);
            shared.agenda.plan(keep_alive, Event::KeepAlive(number));
            shared.note("target has association", &[number.into()]);
            number
        } else {
            ConnectData::decode(data).map_or(0, |data| data.controller)
        };
        let lives = self.associations.get(&number).is_some_and(|one| !one.is_over);
        if !lives || peer.association.is_some() {
            // Connect Invalid Parameters.
            return self.respond(stream, cid, Status::new(1, 0x82), 0, shared);
        }
        peer.path = ConnectData::decode(data).map_or(0, |data| data.host_id[0].saturating_sub(1));
        (peer.association, peer.is_admin) = (Some(number), queue.qid == 0);
        self.respond(stream, cid, Status::SUCCESS, number.into(), shared);
    }

    fn ask(&mut self, stream: usize, cid: u16, shared: &mut Shared) {
        let most = sw_mem::index(self.params.r2t_bytes_max.into());
        let Some(peer) = self.peers.get_mut(&stream) else { return };
        let Some(transfer) = peer.transfers.get_mut(&cid) else { return };
        let bytes = (transfer.total - transfer.asked).min(most);
        let wish = R2t { cid, tag: 7, at: short(transfer.asked), bytes: short(bytes) };
        transfer.asked += bytes;
        peer.out.extend(peer.layout.ready(wish).as_bytes());
        flush(peer, stream, shared);
    }

    fn host_data(&mut self, stream: usize, of: Data, (data, is_intact): (&[u8], bool), shared: &mut Shared) {
        let Some(peer) = self.peers.get_mut(&stream) else { return };
        let Some(transfer) = peer.transfers.get_mut(&of.cid) else { return self.lost(stream, shared) };
        if sw_mem::index(of.at.into()) != transfer.data.len() || transfer.data.len() + data.len() > transfer.asked {
            let text = format!("data at {} of command {:#06x} does not follow what was asked for", of.at, of.cid);
            return shared.violate("protocol", text);
        }
        transfer.data.extend(data);
        transfer.is_intact &= is_intact;
        if transfer.data.len() < transfer.asked {
            return;
        }
        if transfer.asked < transfer.total {
            return self.ask(stream, of.cid, shared);
        }
        let number = peer.association.unwrap_or(0);
        if let Some(Transfer { command, data, is_intact, .. }) = peer.transfers.remove(&of.cid) {
            self.write(stream, number, command, (data, is_intact), shared);
        }
    }

    fn begin(&mut self, stream: usize, association: u16, command: Command, data: Vec<u8>, shared: &mut Shared) {
        let (low, high) = self.params.latency_ns;
        let is_sign = command.opcode() == admin::opcode::KEEP_ALIVE;
        let mut latency = self.rng.range(low, high);
        if !self.is_calm && !is_sign && self.rng.per_mille(self.params.slow.0) {
            latency += self.rng.below(self.params.slow.1);
        }
        if !self.is_calm && command.opcode() == opcode::WRITE && core::mem::take(&mut self.lingers) {
            latency += LINGER_NS;
        }
        let is_deaf = !self.is_calm && self.rng.per_mille(self.params.deaf);
        let id = self.next_job;
        self.next_job += 1;
        let due = shared.now() + latency;
        self.jobs.insert(id, Job { stream, association, command, data, due, is_deaf });
        shared.agenda.plan(latency, Event::Job(id));
    }

    /// A command is carried out, if its time is now.
    pub(crate) fn job(&mut self, id: u64, shared: &mut Shared) {
        if self.jobs.get(&id).is_none_or(|job| job.due != shared.now()) {
            return;
        }
        let Some(job) = self.jobs.remove(&id) else { return };
        let Job { stream, command, .. } = &job;
        let is_refused = !self.is_calm && self.rng.per_mille(self.params.refused);
        if self.peers.get(stream).is_some_and(|peer| peer.is_admin) {
            return self.administer(&job, shared);
        }
        match command.opcode() {
            opcode::READ | opcode::WRITE | opcode::FLUSH if is_refused => {
                self.respond(*stream, command.cid(), Status::INTERNAL.with_dnr(), 0, shared);
            }
            opcode::READ => self.read(&job, shared),
            opcode::WRITE => {
                self.apply(&job, shared);
                self.answer(&job, shared);
            }
            // Flush.
            _ => self.answer(&job, shared),
        }
    }

    /// A command of an admin queue.
    fn administer(&mut self, job: &Job, shared: &mut Shared) {
        let Job { stream, association, command, .. } = job;
        match command.opcode() {
            admin::opcode::CROSS_CONTROLLER_RESET => {
                let (status, dw0) = self.reset(*association, Instance::of(command), shared);
                if !job.is_deaf {
                    self.respond(*stream, command.cid(), status, dw0, shared);
                }
            }
            admin::opcode::GET_LOG_PAGE => {
                let mut page = self.resets.page(*association, shared.now()).encode();
                page.truncate(sw_mem::index(command.dword(8).into()));
                if !job.is_deaf {
                    self.give(*stream, command.cid(), (&page, page.len()), shared);
                }
            }
            // The signs of life.
            _ => self.answer(job, shared),
        }
    }

    /// A controller is asked to reset another one; status, and dword 0.
    fn reset(&mut self, by: u16, of: Instance, shared: &mut Shared) -> (Status, u32) {
        let number = of.controller;
        let is_it = self.associations.contains_key(&number) && self.resets.instance(number) == of;
        let is_over = !is_it
            || self.associations.get(&number).is_none_or(|one| one.is_over)
                && self.jobs.values().all(|job| job.association != number);
        shared.note("target is asked for a reset", &[by.into(), number.into(), u64::from(is_over)]);
        if is_over {
            return (Status::SUCCESS, ccr::Told::Done.bits());
        }
        match self.resets.ask(by, of, shared) {
            Err(status) => (status, 0),
            Ok(course) => {
                if course.is_begun {
                    self.end(number, shared);
                }
                if course.told == ccr::Told::Done {
                    self.forget(number);
                }
                (Status::SUCCESS, course.told.bits())
            }
        }
    }

    /// Nothing of an association is carried out any more.
    fn forget(&mut self, number: u16) {
        self.jobs.retain(|_, job| job.association != number);
    }

    /// A reset that was begun is over.
    pub(crate) fn reset_over(&mut self, id: usize, shared: &mut Shared) {
        if let Some(number) = self.resets.over(id) {
            shared.note("target has reset", &[number.into()]);
            self.forget(number);
        }
    }

    /// CCRL.
    pub(crate) fn resets_max(&self) -> u8 {
        self.params.resets.map_or(0, |resets| resets.most)
    }

    /// This life of a controller, as Identify tells it.
    pub(crate) fn instance(&self, controller: u16) -> Instance {
        self.resets.instance(controller)
    }

    fn answer(&mut self, job: &Job, shared: &mut Shared) {
        if !job.is_deaf {
            self.respond(job.stream, job.command.cid(), Status::SUCCESS, 0, shared);
        }
    }

    fn apply(&mut self, job: &Job, shared: &mut Shared) {
        let first = job.command.range().slba;
        if self.associations.get(&job.association).is_none_or(|one| one.is_over) {
            shared.mark(Mark::NetCarriedOutLate);
        }
        for (block, bytes) in (first..).zip(job.data.as_chunks::<BLOCK>().0) {
            let Some(place) = self.medium.get_mut(sw_mem::index(block)) else { continue };
            *place = *bytes;
            match tag_of(bytes) {
                Some(tag) => shared.carried_out(block, tag),
                None => shared.violate("writes", format!("block {block} gets bytes of more than one write")),
            }
        }
    }

    fn read(&mut self, job: &Job, shared: &mut Shared) {
        let range = job.command.range();
        let first = sw_mem::index(range.slba);
        let count = sw_mem::index(u64::from(range.nlb.get()));
        let bytes = self.medium.get(first..first + count).unwrap_or_default().as_flattened().to_vec();
        if job.is_deaf {
            return;
        }
        let lies = !self.is_calm && self.rng.per_mille(self.params.short);
        let whole = if lies { bytes.len() / 2 } else { bytes.len() };
        if lies {
            shared.mark(Mark::NetShortData);
        }
        self.give(job.stream, job.command.cid(), (&bytes, whole), shared);
    }

    /// Sends the first `whole` of `bytes` that a command asked for, and success.
    fn give(&mut self, stream: usize, cid: u16, (bytes, whole): (&[u8], usize), shared: &mut Shared) {
        let has_response = whole < bytes.len() || self.rng.per_mille(500);
        let Some(peer) = self.peers.get_mut(&stream).filter(|peer| !peer.is_closed) else { return };
        let most = sw_mem::index(self.params.c2h_bytes_max.into());
        let mut at = 0;
        for part in bytes.get(..whole).unwrap_or_default().chunks(most) {
            let is_last = at + part.len() == bytes.len();
            let last = if is_last { flags::LAST } else { 0 };
            let success = if is_last && !has_response { flags::SUCCESS } else { 0 };
            let head =
                peer.layout.controller_data(Data { cid, at: short(at), bytes: short(part.len()) }, last | success);
            peer.out.extend(head.as_bytes());
            peer.out.extend(part);
            if peer.layout.digests.data {
                peer.out.extend(pdu::crc32c(part).to_le_bytes());
            }
            at += part.len();
        }
        flush(peer, stream, shared);
        if has_response {
            self.respond(stream, cid, Status::SUCCESS, 0, shared);
        }
    }

    fn respond(&mut self, stream: usize, cid: u16, status: Status, dw0: u32, shared: &mut Shared) {
        let Some(peer) = self.peers.get_mut(&stream).filter(|peer| !peer.is_closed) else { return };
        let fields = CompletionFields { dw0, sq_head: 0, sq_id: 0, cid, phase: false, status };
        peer.out.extend(peer.layout.response(&Completion::build(fields)).as_bytes());
        flush(peer, stream, shared);
    }

    /// Streams may have room that had none.
    pub(crate) fn flush_all(&mut self, shared: &mut Shared) {
        for (stream, peer) in self.peers.range_mut(self.first_open..) {
            flush(peer, *stream, shared);
        }
        while self.peers.get(&self.first_open).is_some_and(|peer| peer.is_closed) {
            self.first_open += 1;
        }
    }
}

fn flush(peer: &mut Peer, stream: usize, shared: &mut Shared) {
    if peer.is_closed || peer.out.is_empty() {
        return;
    }
    let bytes: Vec<u8> = peer.out.iter().copied().collect();
    let taken = shared.wire.write(stream, Way::ToHost, &bytes, &mut shared.agenda);
    peer.out.drain(..taken);
}
