//! A modelled disk queue behind the `Transport` seam.
//!
//! ```text
//!   submit ─► staged ─ ring ─► flying ─ Land event ─► bytes move, shadow checked ─► done ─ poll ─► the engine
//!                                 │ Lost: no event; a fence kills it, or says Busy and it lands much later
//! ```
//!
//! Bytes move at the end of an I/O, so that memory which was let go before is hit late. Until then the model may scribble
//! over the memory of a read, as a device may.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sw_engine::{
    ErrorKind, Fault, Landing, Retry, Token, TransportName,
    seam::{Fence, Io, IoDone, IoKind, MAX_SEGMENTS, MemorySegment, Regions, Submit, TransportCaps},
};
use sw_mem::{RegionId, index};

use crate::{
    fault::{Act, FaultRule, FaultTable},
    log::Mark,
    machine::{Event, FaceParams, Machine},
    rng::Rng,
    shadow::{Access, Spot, Way},
};

/// What a broken queue's errors carry, as an errno.
const ENODEV: i32 = 19;
/// What a cancelled I/O's fault carries, as an errno.
const ECANCELED: i32 = 125;
/// How long after a fence that said `Busy` its I/Os land.
const BUSY_LANDING_NS: u64 = 400_000_000;

/// What a queue is like. Times in nanoseconds; chances in thousandths.
#[derive(Clone, Debug)]
pub struct QueueParams {
    /// Its name in routes.
    pub name: TransportName,
    /// I/Os in flight at most.
    pub queue_depth: u32,
    /// Bytes in one I/O at most.
    pub io_bytes_max: u32,
    /// Pieces of memory in one I/O at most.
    pub segments_max: u8,
    /// Whether it must be told of memory before.
    pub regions: Regions,
    /// Shortest and longest time of an I/O.
    pub latency_ns: (u64, u64),
    /// Chance of the long tail, and how much longer it is.
    pub tail: (u64, u64),
    /// Chance that a submit is refused although there is room.
    pub full: u64,
    /// Chance that a read's memory is scribbled over before its bytes land.
    pub scribble: u64,
    /// Chance that a poll gives fewer ends than there are.
    pub partial_poll: u64,
    /// Chance that a cancel ends an I/O early.
    pub cancel_wins: u64,
    /// Whether a fence provably stops what does not end by itself.
    pub fence_kills: bool,
    /// When it breaks.
    pub breaks_at: Option<u64>,
    /// Its faults.
    pub rules: Vec<FaultRule>,
}

impl QueueParams {
    /// A queue without faults: depth 32, 128 KiB, three pieces, 10 to 100 microseconds.
    pub fn calm(name: TransportName) -> Self {
        Self {
            name,
            queue_depth: 32,
            io_bytes_max: 128 << 10,
            segments_max: 3,
            regions: Regions::Any,
            latency_ns: (10_000, 100_000),
            tail: (0, 0),
            full: 0,
            scribble: 0,
            partial_poll: 0,
            cancel_wins: 500,
            fence_kills: true,
            breaks_at: None,
            rules: Vec::new(),
        }
    }

    pub(crate) fn caps(&self) -> TransportCaps {
        TransportCaps {
            name: self.name,
            queue_depth: self.queue_depth,
            io_bytes_max: self.io_bytes_max,
            segments_max: self.segments_max,
            host: Ok(()),
            device: Err(sw_engine::Reason::NoPeerPages),
            regions: self.regions,
        }
    }
}

#[derive(Debug)]
struct ModelIo {
    io: Io,
    spots: Vec<Spot>,
    owned: Vec<u64>,
    act: Option<Act>,
    cancelled: bool,
    /// A fence said that it may still come.
    busy: bool,
}

/// The state of one queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) params: QueueParams,
    latency: Rng,
    moods: Rng,
    faults: FaultTable,
    ios: BTreeMap<u64, ModelIo>,
    next_io: u64,
    staged: VecDeque<u64>,
    /// Ends that nobody took yet, and whether an I/O has them (or they are lies).
    done: VecDeque<(IoDone, bool)>,
    tokens: BTreeSet<u64>,
    attached: BTreeSet<RegionId>,
    pub(crate) broken: bool,
    fenced: bool,
}

impl Queue {
    pub(crate) fn new(params: QueueParams, seed: u64, number: usize) -> Self {
        let split = |purpose: &str| Rng::split(seed, &format!("queue {number} {purpose}"));
        Self {
            faults: FaultTable::new(&params.rules),
            params,
            latency: split("latency"),
            moods: split("moods"),
            ios: BTreeMap::new(),
            next_io: 0,
            staged: VecDeque::new(),
            done: VecDeque::new(),
            tokens: BTreeSet::new(),
            attached: BTreeSet::new(),
            broken: false,
            fenced: false,
        }
    }

    /// Faults stop: the liveness phase.
    pub(crate) fn calm_down(&mut self) {
        self.faults.quiet = true;
        self.params.full = 0;
    }

    pub(crate) fn has_done(&self) -> usize {
        self.done.len()
    }

    /// I/Os that have no end yet, or one that nobody took.
    fn open(&self) -> usize {
        self.ios.len() + self.done.iter().filter(|(_, real)| *real).count()
    }
}

impl Machine {
    pub(crate) fn attach_region(&mut self, queue: usize, region: RegionId) {
        if let Some(model) = self.queues.get_mut(queue) {
            model.attached.insert(region);
        }
    }

    /// A device must not lose sight of memory that it has I/Os on.
    pub(crate) fn detach_region(&mut self, queue: usize, region: RegionId) {
        let Some(model) = self.queues.get_mut(queue) else { return };
        model.attached.remove(&region);
        let held = model.ios.values().any(|open| open.io.segments().iter().any(|piece| piece.region == region));
        self.mark(Mark::RegionDetached);
        if held {
            self.violate("limits", format!("queue {queue} lost a region that it has I/Os on"));
        }
    }

    pub(crate) fn submit_io(&mut self, queue: usize, io: &Io) -> Submit {
        let number = queue as u64;
        let Some(model) = self.queues.get_mut(queue) else { return Submit::Full };
        if model.fenced {
            return Submit::Full;
        }
        let (open, depth) = (model.open(), model.params.queue_depth as usize);
        if open >= depth {
            self.violate("limits", format!("queue {queue} of depth {depth} got I/O number {} in flight", open + 1));
            return Submit::Full;
        }
        let disk = self.faces.get(index(io.handle)).map(|face| face.disk);
        let of_disk = |open: &&ModelIo| self.faces.get(index(open.io.handle)).map(|face| face.disk) == disk;
        let (of_disk, most) = (model.ios.values().filter(of_disk).count(), self.device_depth);
        if of_disk >= most {
            self.violate(
                "limits",
                format!("a disk got I/O number {} of queue {queue}, of at most {most}", of_disk + 1),
            );
        }
        let Some(model) = self.queues.get_mut(queue) else { return Submit::Full };
        if open > 0 && model.moods.per_mille(model.params.full) {
            self.mark(Mark::FullBelowDepth);
            self.note("full", &[number]);
            return Submit::Full;
        }
        if !model.tokens.insert(io.token.raw()) {
            self.violate(
                "slots",
                format!("token {:#x} was used before: an end of that use may still come", io.token.raw()),
            );
        }
        self.check_shape(queue, io);
        if !self.reaches(queue, io) {
            let fault = Fault::new(ErrorKind::NotRegistered, 0);
            let end = IoDone { token: io.token, result: Err(fault), aside: 0 };
            self.queues.get_mut(queue).into_iter().for_each(|model| model.done.push_back((end, true)));
            return Submit::Accepted;
        }
        let Some(model) = self.queues.get_mut(queue) else { return Submit::Full };
        let name = model.next_io;
        model.next_io += 1;
        model.staged.push_back(name);
        let (spots, owned) = self.own_segments(queue, name, io);
        let words = [number, name, io.token.raw(), io.kind as u64, io.handle, io.offset, u64::from(io.len)];
        self.note("submit", &words);
        if let Some(model) = self.queues.get_mut(queue) {
            model.ios.insert(name, ModelIo { io: *io, spots, owned, act: None, cancelled: false, busy: false });
        }
        Submit::Accepted
    }

    /// What the engine promises of an I/O.
    fn check_shape(&mut self, queue: usize, io: &Io) {
        let Some(model) = self.queues.get(queue) else { return };
        let params = &model.params;
        let pieces = io.segments();
        let sum: u64 = pieces.iter().map(|piece| u64::from(piece.len)).sum();
        let flush = matches!(io.kind, IoKind::FlushData | IoKind::FlushAll);
        let mut wrong = Vec::new();
        let mut rule = |broken: bool, text: &str| {
            if broken {
                wrong.push(text.to_string());
            }
        };
        rule(pieces.len() > usize::from(params.segments_max).min(MAX_SEGMENTS), "more pieces than segments_max");
        rule(sum != u64::from(io.len), "pieces that do not add up");
        rule(io.len > params.io_bytes_max, "longer than io_bytes_max");
        rule(flush != (io.len == 0), "a flush with bytes or a transfer without");
        match self.face(io) {
            None => rule(true, "an unknown handle"),
            Some(face) => {
                let (block, memory) = (u64::from(face.block), u64::from(face.memory));
                let whole = |bytes: u64| bytes.is_multiple_of(block);
                rule(!whole(io.offset) || !whole(io.len.into()), "not in whole blocks");
                rule(!pieces.iter().all(|piece| whole(piece.len.into())), "a piece that is no whole blocks");
                rule(!pieces.iter().all(|piece| piece.place.raw().is_multiple_of(memory)), "memory not aligned");
            }
        }
        rule(pieces.iter().any(|piece| piece.device().is_some()), "device memory, which the queue cannot reach");
        rule(!self.reaches(queue, io), "memory that was not attached");
        if !wrong.is_empty() {
            let text = format!("queue {queue} got {}: {:?} {}+{}", wrong.join(", "), io.kind, io.offset, io.len);
            self.violate("limits", text);
        }
    }

    /// Whether the queue was told of the memory, where it must be.
    fn reaches(&self, queue: usize, io: &Io) -> bool {
        let Some(model) = self.queues.get(queue) else { return false };
        let known = |piece: &MemorySegment| model.attached.contains(&piece.region);
        model.params.regions == Regions::Any || io.segments().iter().all(known)
    }

    fn face(&self, io: &Io) -> Option<FaceParams> {
        self.faces.get(index(io.handle)).copied()
    }

    fn own_segments(&mut self, queue: usize, name: u64, io: &Io) -> (Vec<Spot>, Vec<u64>) {
        let now = self.now();
        let access = if io.kind == IoKind::Read { Access::Writes } else { Access::Reads };
        let who = who(queue, name);
        let (mut spots, mut owned) = (Vec::new(), Vec::new());
        for piece in io.segments() {
            match self.shadow.find(piece.place, piece.len.into()) {
                Some(spot) if spot.region == piece.region => {
                    owned.push(self.shadow.begin(now, spot, access, who));
                    spots.push(spot);
                }
                Some(_) => self.violate("aliasing", format!("I/O {who} names another region than its memory lies in")),
                None => self.violate("aliasing", format!("I/O {who} names memory of nobody: {} bytes", piece.len)),
            }
        }
        (spots, owned)
    }

    /// The device takes everything that is staged.
    pub(crate) fn ring_queue(&mut self, queue: usize) -> Result<(), Fault> {
        let Some(model) = self.queues.get_mut(queue) else { return Ok(()) };
        if model.broken {
            return Err(Fault::new(ErrorKind::Io, ENODEV));
        }
        let staged: Vec<u64> = model.staged.drain(..).collect();
        for name in staged {
            self.take_off(queue, name);
        }
        Ok(())
    }

    fn take_off(&mut self, queue: usize, name: u64) {
        let Some(model) = self.queues.get_mut(queue) else { return };
        let Some(model_io) = model.ios.get_mut(&name) else { return };
        let (kind, offset, len) = (model_io.io.kind, model_io.io.offset, model_io.io.len);
        let act = model.faults.decide(kind, offset, len.into());
        model_io.act = act;
        let (low, high) = model.params.latency_ns;
        let mut delay = model.latency.range(low, high);
        if model.latency.per_mille(model.params.tail.0) {
            delay += model.params.tail.1;
        }
        if model_io.cancelled {
            delay = low;
        }
        if let Some(Act::Slow(more)) = act {
            delay += more;
        }
        let scribbles = kind == IoKind::Read && model.moods.per_mille(model.params.scribble);
        if scribbles {
            self.agenda.plan(delay / 2, Event::Scribble { queue, io: name });
        }
        if act == Some(Act::Lost) {
            self.mark(Mark::LostIo);
            self.note("lost", &[queue as u64, name]);
        } else {
            self.agenda.plan(delay, Event::Land { queue, io: name });
        }
    }

    pub(crate) fn scribble(&mut self, queue: usize, name: u64) {
        let now = self.now();
        let spots = self.queues.get(queue).and_then(|model| model.ios.get(&name)).map(|io| io.spots.clone());
        let Some(spots) = spots else { return };
        self.mark(Mark::ScribbledBeforeLanding);
        for spot in spots {
            let noise: Vec<u8> = (0..spot.len).map(|at| at.to_le_bytes()[0] ^ 0x5C).collect();
            self.shadow.land(now, spot, who(queue, name), &noise, Way::Untouched);
        }
    }

    /// An I/O moves its bytes and ends.
    pub(crate) fn land_io(&mut self, queue: usize, name: u64) {
        let Some(io) = self.queues.get_mut(queue).and_then(|model| model.ios.remove(&name)) else { return };
        let ended = self.move_bytes(queue, name, &io);
        io.owned.iter().for_each(|owned| self.shadow.end(*owned));
        if io.busy {
            self.mark(Mark::LandedAfterBusyFence);
        }
        let late = io.spots.iter().filter_map(|spot| self.shadow.op_at(*spot)).any(|op| self.answered.contains(&op));
        if late {
            self.mark(Mark::LandedAfterAnswer);
        }
        let token = io.io.token;
        let code = ended.map_or_else(|fault| u64::from(fault.kind.code()) << 32, u64::from);
        self.note("land", &[queue as u64, name, token.raw(), code]);
        let Some(model) = self.queues.get_mut(queue) else { return };
        let done = IoDone { token, result: ended, aside: 0 };
        model.done.push_back((done, true));
        if model.done.len() > 1 && model.moods.per_mille(300) {
            let other = index(model.moods.below(model.done.len() as u64));
            let last = model.done.len() - 1;
            model.done.swap(other, last);
        }
        match io.act {
            Some(Act::Twice(delay)) => {
                self.mark(Mark::EndTwice);
                self.agenda.plan(delay, Event::Extra { queue, done });
            }
            Some(Act::Foreign) => {
                self.mark(Mark::EndOfUnknownToken);
                let raw = self.queues.get_mut(queue).map_or(0, |model| model.moods.next_u64());
                let done = IoDone { token: Token::from_raw(raw), ..done };
                self.agenda.plan(1, Event::Extra { queue, done });
            }
            _ => {}
        }
    }

    pub(crate) fn extra_end(&mut self, queue: usize, done: IoDone) {
        self.note("lie", &[queue as u64, done.token.raw()]);
        let Some(model) = self.queues.get_mut(queue) else { return };
        if !model.fenced {
            model.done.push_back((done, false));
            self.lies += 1;
        }
    }

    /// Moves what the act lets through, and gives the answer.
    fn move_bytes(&mut self, queue: usize, name: u64, io: &ModelIo) -> Result<u32, Fault> {
        let Some(face) = self.face(&io.io) else { return Err(Fault::new(ErrorKind::NotFound, 2)) };
        let (len, block) = (io.io.len, face.block.max(512));
        let blocks = u64::from(len.div_ceil(block));
        let some = |machine: &mut Machine| {
            let model = machine.queues.get_mut(queue);
            let blocks = model.map_or(0, |model| model.moods.below(blocks + 1));
            u32::try_from(blocks * u64::from(block)).unwrap_or(len).min(len)
        };
        if io.cancelled {
            let part = some(self);
            self.transfer(queue, name, io, part);
            self.mark(Mark::CancelWon);
            return Err(Fault::new(ErrorKind::Cancelled, ECANCELED));
        }
        match io.act {
            Some(Act::Fail(fault)) => {
                // No space and "try again" are refusals: nothing moved. A medium error may come after a part.
                let part = if fault.kind == ErrorKind::Io && fault.retry == Retry::Never { some(self) } else { 0 };
                self.transfer(queue, name, io, part);
                self.mark(if fault.retry == Retry::Now { Mark::RetryNow } else { Mark::MediumError });
                Err(fault)
            }
            Some(Act::Short { blocks }) if len > 0 => {
                let less = len.saturating_sub(blocks.saturating_mul(block)) / face.block * face.block;
                let moved = self.transfer(queue, name, io, less);
                self.mark(if moved == 0 { Mark::ZeroBytesReported } else { Mark::ShortThenRest });
                Ok(moved)
            }
            Some(Act::Zero) if len > 0 => {
                self.mark(Mark::ZeroBytesReported);
                Ok(0)
            }
            Some(Act::Overclaim) if len > 0 => {
                self.mark(Mark::TooManyBytesClaimed);
                self.transfer(queue, name, io, len);
                Ok(len.saturating_add(face.block))
            }
            _ => Ok(self.transfer(queue, name, io, len)),
        }
    }

    /// Moves at most `most` bytes; gives how many there were.
    fn transfer(&mut self, queue: usize, name: u64, io: &ModelIo, most: u32) -> u32 {
        let (now, who) = (self.now(), who(queue, name));
        let Some(face) = self.face(&io.io) else { return 0 };
        let way = if face.landing == Landing::Dma { Way::Dma } else { Way::Kernel };
        match io.io.kind {
            IoKind::FlushData | IoKind::FlushAll => 0,
            IoKind::Read => {
                let bytes = self.disks.get(face.disk).map(|disk| disk.read(io.io.offset, most.into()).to_vec());
                let bytes = bytes.unwrap_or_default();
                let mut left = bytes.as_slice();
                for spot in &io.spots {
                    let (now_bytes, rest) = left.split_at(left.len().min(index(spot.len)));
                    let part = Spot { len: now_bytes.len() as u64, ..*spot };
                    self.shadow.land(now, part, who, now_bytes, way);
                    left = rest;
                }
                u32::try_from(bytes.len()).unwrap_or(u32::MAX)
            }
            IoKind::Write => {
                let mut bytes = Vec::with_capacity(most as usize);
                for spot in &io.spots {
                    let room = u64::from(most) - bytes.len() as u64;
                    let part = Spot { len: spot.len.min(room), ..*spot };
                    bytes.extend(self.shadow.fetch(now, part, who, way));
                }
                if let Some(disk) = self.disks.get_mut(face.disk) {
                    disk.write(now, io.io.offset, &bytes);
                }
                u32::try_from(bytes.len()).unwrap_or(u32::MAX)
            }
        }
    }

    pub(crate) fn cancel_io(&mut self, queue: usize, token: Token) {
        let Some(model) = self.queues.get_mut(queue) else { return };
        let found = model.ios.iter_mut().find(|(_, io)| io.io.token == token);
        let wins = model.moods.per_mille(model.params.cancel_wins);
        let Some((name, io)) = found else { return };
        let name = *name;
        if !wins || io.cancelled {
            return self.mark(Mark::CancelLost);
        }
        io.cancelled = true;
        if !model.staged.contains(&name) {
            let delay = model.params.latency_ns.0;
            self.agenda.plan(delay, Event::Land { queue, io: name });
        }
        self.note("cancel", &[queue as u64, name]);
    }

    /// Gives ends to `out` within its capacity.
    pub(crate) fn take_ends(&mut self, queue: usize, out: &mut Vec<IoDone>) -> usize {
        let Some(model) = self.queues.get_mut(queue) else { return 0 };
        let mut room = (out.capacity() - out.len()).min(model.done.len());
        if room > 1 && model.moods.per_mille(model.params.partial_poll) {
            room = index(model.moods.range(1, room as u64));
        }
        out.extend(model.done.drain(..room).map(|(done, _)| done));
        room
    }

    pub(crate) fn break_queue(&mut self, queue: usize) {
        self.note("queue breaks", &[queue as u64]);
        if let Some(model) = self.queues.get_mut(queue).filter(|model| !model.fenced) {
            model.broken = true;
            self.mark(Mark::QueueBroke);
        }
    }

    /// Stops the queue. See the seam's contract.
    pub(crate) fn fence_queue(&mut self, queue: usize, timeout_ns: u64) -> Fence {
        let until = self.now().saturating_add(timeout_ns);
        let Some(model) = self.queues.get_mut(queue) else { return Fence::Quiet };
        model.fenced = true;
        let staged: Vec<u64> = model.staged.drain(..).collect();
        let kills = model.params.fence_kills;
        staged.into_iter().for_each(|name| self.kill_io(queue, name));
        let flying = |machine: &Machine| -> Vec<u64> {
            machine.queues.get(queue).map_or_else(Vec::new, |model| model.ios.keys().copied().collect())
        };
        if !kills {
            while !flying(self).is_empty() && self.step_until(until) {}
        }
        let left = flying(self);
        self.note("fence", &[queue as u64, left.len() as u64]);
        if kills {
            left.into_iter().for_each(|name| self.kill_io(queue, name));
            return Fence::Quiet;
        }
        if left.is_empty() {
            return Fence::Quiet;
        }
        self.agenda.pass(until);
        self.mark(Mark::FenceBusy);
        for name in &left {
            if let Some(io) = self.queues.get_mut(queue).and_then(|model| model.ios.get_mut(name)) {
                io.busy = true;
            }
            self.agenda.plan(BUSY_LANDING_NS, Event::Land { queue, io: *name });
        }
        Fence::Busy(u32::try_from(left.len()).unwrap_or(u32::MAX))
    }

    /// Ends an I/O without an end: the device provably dropped it.
    fn kill_io(&mut self, queue: usize, name: u64) {
        let Some(io) = self.queues.get_mut(queue).and_then(|model| model.ios.remove(&name)) else { return };
        io.owned.iter().for_each(|owned| self.shadow.end(*owned));
        self.mark(Mark::FenceKilled);
    }

    /// The transport was dropped: it waits as a fence does. What then is still to come comes.
    pub(crate) fn drop_queue(&mut self, queue: usize) {
        if self.queues.get(queue).is_some_and(|model| !model.ios.is_empty()) {
            self.fence_queue(queue, BUSY_LANDING_NS / 2);
        }
        if let Some(model) = self.queues.get_mut(queue) {
            model.fenced = true;
        }
    }
}

/// An I/O's name in the shadow: queue above, number below.
fn who(queue: usize, name: u64) -> u64 {
    (queue as u64) << 40 | name
}
