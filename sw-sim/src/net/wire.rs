//! The modelled network: byte streams between a host and a target.
//!
//! ```text
//!   write ─► [cut at a byte?] ─► pieces, each with its time ─► (held by a partition) ─► inbox ─► read
//! ```
//!
//! Bytes of one direction of one stream come in order, in any pieces, as late as the draw says. What a stream does at its end: it is
//! closed (what was written before still arrives), half-closed or reset by somebody in between, or nothing passes for a while, and what
//! was written meanwhile arrives afterwards. A host that closed a stream does not know what of it still arrives.

use std::collections::VecDeque;

use sw_nvme::tcp::pdu::INITIALIZE_BYTES;

use super::Event;
use crate::{agenda::Agenda, rng::Rng};

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the host to the target.
    ToTarget,
    /// From the target to the host.
    ToHost,
}

impl Way {
    /// Both.
    pub const ALL: [Way; 2] = [Way::ToTarget, Way::ToHost];

    fn back(self) -> Self {
        match self {
            Way::ToTarget => Way::ToHost,
            Way::ToHost => Way::ToTarget,
        }
    }
}

/// What happens to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutKind {
    /// Both ends see it reset, behind what was on its way to them.
    Reset,
    /// The receiver sees the end, and what the sender writes from now on is lost; the other direction goes on.
    HalfClose,
    /// Nothing passes for so many nanoseconds.
    Partition(u64),
}

/// Where a stream is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Which stream, counted from 0 in the order in which they were opened.
    pub stream: usize,
    /// Which direction.
    pub way: Way,
    /// Behind so many bytes of it.
    pub at: u64,
    /// What happens.
    pub kind: CutKind,
}

/// What the network is like.
#[derive(Clone, Copy, Debug)]
pub struct WireParams {
    /// Nanoseconds on the way, least and most.
    pub delay_ns: (u64, u64),
    /// Bytes of one piece at most.
    pub piece_max: u64,
    /// Bytes that are on their way or unread at most; a writer waits then.
    pub window: usize,
    /// Bytes that are still on their way after so long arrive no more: the stream is reset.
    pub age_max_ns: u64,
    /// Of a thousand streams that anybody opens, how many are cut somewhere.
    pub cuts: u64,
    /// Of a thousand pieces, in how many one bit is flipped.
    pub flips: u64,
}

/// What a read gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(Vec<u8>),
    Nothing,
    End,
    Reset,
}

enum Load {
    Bytes(Vec<u8>),
    End,
    Reset,
}

struct Piece {
    due: u64,
    written: u64,
    load: Load,
}

/// One direction of a stream.
#[derive(Default)]
struct Pipe {
    flight: VecDeque<Piece>,
    last_due: u64,
    inbox: VecDeque<u8>,
    /// The end, or a reset, is behind what is in the inbox.
    is_ended: bool,
    is_reset: bool,
    /// Nobody reads it any more.
    is_unread: bool,
    /// What is written goes nowhere.
    is_dead: bool,
    held_until: u64,
    bytes: u64,
    cut: Option<(u64, CutKind)>,
}

/// Streams that are cut at will: those of the association, and of the one before.
const RECENT: usize = 6;
/// Bytes of a stream behind which it may be cut: connecting, and a few commands.
const CUT_BYTES_MAX: u64 = 4000;

/// See the module documentation.
pub(crate) struct Wire {
    params: WireParams,
    rng: Rng,
    streams: Vec<[Pipe; 2]>,
    planned: Vec<Cut>,
    is_calm: bool,
    /// Nothing passes before, in each direction; new streams are held too.
    held_until: [u64; 2],
    /// Cuts that happened.
    pub(crate) happened: Vec<CutKind>,
    pub(crate) flipped: u64,
}

impl Wire {
    pub(crate) fn new(params: WireParams, seed: u64, planned: Vec<Cut>) -> Self {
        let rng = Rng::split(seed, "wire");
        let (streams, happened) = (Vec::new(), Vec::new());
        Self { params, rng, streams, planned, is_calm: false, held_until: [0; 2], happened, flipped: 0 }
    }

    /// Opens a stream.
    pub(crate) fn open(&mut self, agenda: &mut Agenda<Event>) -> usize {
        let (number, mut pipes) = (self.streams.len(), [Pipe::default(), Pipe::default()]);
        for (way, until) in Way::ALL.into_iter().zip(self.held_until) {
            pipes[way as usize].held_until = until;
            agenda.plan(until.saturating_sub(agenda.now()), Event::Deliver(number, way));
        }
        for cut in self.planned.iter().filter(|cut| cut.stream == number) {
            pipes[cut.way as usize].cut = Some((cut.at, cut.kind));
        }
        if !self.is_calm && self.rng.per_mille(self.params.cuts) {
            let way = self.rng.pick_or(&Way::ALL, Way::ToHost);
            let kind = self.draw_cut();
            pipes[way as usize].cut = Some((self.rng.below(CUT_BYTES_MAX), kind));
        }
        self.streams.push(pipes);
        number
    }

    fn draw_cut(&mut self) -> CutKind {
        let held = self.rng.range(1_000_000, 3_000_000_000);
        self.rng.pick_or(&[CutKind::Reset, CutKind::HalfClose, CutKind::Partition(held)], CutKind::Reset)
    }

    fn pipe(&mut self, stream: usize, way: Way) -> Option<&mut Pipe> {
        self.streams.get_mut(stream).map(|pipes| &mut pipes[way as usize])
    }

    /// Bytes that were written into a direction so far.
    pub(crate) fn written(&self, stream: usize, way: Way) -> u64 {
        self.streams.get(stream).map_or(0, |pipes| pipes[way as usize].bytes)
    }

    /// Streams so far.
    pub(crate) fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Takes as many bytes as there is room for.
    pub(crate) fn write(&mut self, stream: usize, way: Way, bytes: &[u8], agenda: &mut Agenda<Event>) -> usize {
        let window = self.params.window;
        let Some(pipe) = self.pipe(stream, way) else { return 0 };
        let on_way: usize = pipe
            .flight
            .iter()
            .map(|piece| match &piece.load {
                Load::Bytes(bytes) => bytes.len(),
                Load::End | Load::Reset => 0,
            })
            .sum();
        let room = window.saturating_sub(on_way + pipe.inbox.len()).min(bytes.len());
        let before = pipe.bytes;
        pipe.bytes += room as u64;
        let cut = pipe.cut.filter(|(at, _)| *at < before + room as u64 || (*at == 0 && room > 0));
        let taken = bytes.get(..room).unwrap_or_default();
        let Some((at, kind)) = cut else {
            self.send(stream, way, taken, agenda);
            return room;
        };
        pipe.cut = None;
        let (first, rest) = taken.split_at(sw_mem::index(at.saturating_sub(before)).min(room));
        self.send(stream, way, first, agenda);
        self.cut(stream, way, kind, agenda);
        self.send(stream, way, rest, agenda);
        room
    }

    fn send(&mut self, stream: usize, way: Way, bytes: &[u8], agenda: &mut Agenda<Event>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let most = self.params.piece_max.min(rest.len() as u64);
            let (piece, behind) = rest.split_at(sw_mem::index(self.rng.range(1, most)));
            let mut piece = piece.to_vec();
            // What has no digest is spared: the units that agree on digests.
            let is_covered = self.written(stream, way) > 2 * INITIALIZE_BYTES as u64;
            if is_covered && !self.is_calm && self.rng.per_mille(self.params.flips) {
                let at = sw_mem::index(self.rng.below(piece.len() as u64));
                piece.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << self.rng.below(8));
                self.flipped += 1;
            }
            self.push(stream, way, Load::Bytes(piece), agenda);
            rest = behind;
        }
    }

    fn push(&mut self, stream: usize, way: Way, load: Load, agenda: &mut Agenda<Event>) {
        let (low, high) = self.params.delay_ns;
        let (now, delay) = (agenda.now(), self.rng.range(low, high));
        let Some(pipe) = self.pipe(stream, way).filter(|pipe| !pipe.is_dead) else { return };
        let due = pipe.last_due.max(now + delay);
        pipe.last_due = due;
        pipe.flight.push_back(Piece { due, written: now, load });
        agenda.plan(due - now, Event::Deliver(stream, way));
    }

    /// Somebody in between does something to a stream.
    pub(crate) fn cut(&mut self, stream: usize, way: Way, kind: CutKind, agenda: &mut Agenda<Event>) {
        self.happened.push(kind);
        match kind {
            CutKind::Reset => {
                for way in Way::ALL {
                    self.push(stream, way, Load::Reset, agenda);
                    self.pipe(stream, way).into_iter().for_each(|pipe| pipe.is_dead = true);
                }
            }
            CutKind::HalfClose => {
                self.push(stream, way, Load::End, agenda);
                self.pipe(stream, way).into_iter().for_each(|pipe| pipe.is_dead = true);
            }
            CutKind::Partition(held) => {
                let until = agenda.now().saturating_add(held);
                self.pipe(stream, way).into_iter().for_each(|pipe| pipe.held_until = pipe.held_until.max(until));
                agenda.plan(held, Event::Deliver(stream, way));
            }
        }
    }

    /// A cut of a stream that is drawn, now, if there is one to cut.
    pub(crate) fn meddle(&mut self, agenda: &mut Agenda<Event>) {
        if self.streams.is_empty() || self.is_calm {
            return;
        }
        let kind = self.draw_cut();
        let back = self.rng.below(self.streams.len().min(RECENT) as u64);
        let stream = self.streams.len() - 1 - sw_mem::index(back);
        let way = self.rng.pick_or(&Way::ALL, Way::ToHost);
        self.cut(stream, way, kind, agenda);
    }

    /// Nothing passes between the two for a while, in one direction or both.
    pub(crate) fn partition(&mut self, agenda: &mut Agenda<Event>) {
        let (held, ways) = (self.rng.range(1_000_000, 4_000_000_000), self.rng.range(1, 3));
        for (way, until) in Way::ALL.into_iter().zip(&mut self.held_until) {
            if ways >> (way as u64) & 1 != 0 {
                *until = agenda.now() + held;
            }
        }
        for stream in self.streams.len().saturating_sub(RECENT)..self.streams.len() {
            for way in Way::ALL.into_iter().filter(|way| ways >> (*way as u64) & 1 != 0) {
                self.cut(stream, way, CutKind::Partition(held), agenda);
            }
        }
    }

    /// The end whose bytes go `way` closes: what it wrote still arrives, and it reads nothing any more.
    pub(crate) fn close(&mut self, stream: usize, way: Way, agenda: &mut Agenda<Event>) {
        self.push(stream, way, Load::End, agenda);
        self.pipe(stream, way).into_iter().for_each(|pipe| pipe.is_dead = true);
        if let Some(pipe) = self.pipe(stream, way.back()) {
            pipe.is_unread = true;
            pipe.inbox.clear();
        }
    }

    /// Faults stop: partitions heal, nothing else happens to a stream.
    pub(crate) fn calm_down(&mut self, agenda: &mut Agenda<Event>) {
        (self.is_calm, self.held_until) = (true, [0; 2]);
        for (stream, pipes) in self.streams.iter_mut().enumerate() {
            for (way, pipe) in Way::ALL.into_iter().zip(pipes) {
                (pipe.held_until, pipe.cut) = (0, None);
                agenda.plan(0, Event::Deliver(stream, way));
            }
        }
    }

    /// What is due arrives.
    pub(crate) fn deliver(&mut self, stream: usize, way: Way, agenda: &mut Agenda<Event>) {
        let (now, age_max) = (agenda.now(), self.params.age_max_ns);
        let mut is_refused = false;
        let Some(pipe) = self.pipe(stream, way) else { return };
        while now >= pipe.held_until
            && pipe.flight.front().is_some_and(|piece| piece.due <= now)
            && let Some(piece) = pipe.flight.pop_front()
        {
            match piece.load {
                Load::Bytes(_) if pipe.is_unread => is_refused = true,
                Load::Bytes(_) if now - piece.written > age_max => {
                    (pipe.is_reset, is_refused) = (true, true);
                    pipe.flight.clear();
                    pipe.is_dead = true;
                }
                Load::Bytes(bytes) => pipe.inbox.extend(bytes),
                Load::End => pipe.is_ended = true,
                Load::Reset => {
                    pipe.is_reset = true;
                    pipe.inbox.clear();
                }
            }
        }
        if is_refused {
            self.push(stream, way.back(), Load::Reset, agenda);
            self.pipe(stream, way.back()).into_iter().for_each(|pipe| pipe.is_dead = true);
        }
    }

    /// Takes up to `most` bytes that arrived.
    pub(crate) fn read(&mut self, stream: usize, way: Way, most: usize) -> Read {
        let Some(pipe) = self.pipe(stream, way) else { return Read::Reset };
        match () {
            () if pipe.is_reset => Read::Reset,
            () if !pipe.inbox.is_empty() => {
                let most = most.min(pipe.inbox.len());
                Read::Bytes(pipe.inbox.drain(..most).collect())
            }
            () if pipe.is_ended => Read::End,
            () => Read::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAY: Way = Way::ToTarget;

    /// What arrives within `span` of 100 bytes over a stream that is `cut`, and how it ends.
    fn arrives(cut: Option<Cut>, span: u64) -> (Vec<u8>, Read) {
        let params =
            WireParams { delay_ns: (1, 500), piece_max: 9, window: 200, age_max_ns: u64::MAX, cuts: 0, flips: 0 };
        let (mut wire, mut agenda) = (Wire::new(params, 3, cut.into_iter().collect()), Agenda::new());
        let stream = wire.open(&mut agenda);
        let bytes: Vec<u8> = (0..100).collect();
        assert_eq!(wire.write(stream, WAY, &bytes, &mut agenda), 100);
        wire.close(stream, WAY, &mut agenda);
        while let Some(Event::Deliver(stream, way)) = agenda.take_until(span) {
            wire.deliver(stream, way, &mut agenda);
        }
        let mut got = Vec::new();
        loop {
            match wire.read(stream, WAY, 7) {
                Read::Bytes(bytes) => got.extend(bytes),
                end => return (got, end),
            }
        }
    }

    #[test]
    fn what_was_written_arrives_in_order_though_its_writer_has_closed() {
        assert_eq!(arrives(None, 1_000), ((0..100).collect(), Read::End));
    }

    #[test]
    fn a_cut_stream_ends_behind_the_byte_and_a_held_one_goes_on_when_it_heals() {
        let cut = |kind| Some(Cut { stream: 0, way: WAY, at: 40, kind });
        assert_eq!(arrives(cut(CutKind::HalfClose), 1_000), ((0..40).collect(), Read::End));
        assert_eq!(arrives(cut(CutKind::Reset), 1_000), (Vec::new(), Read::Reset));
        let held = arrives(cut(CutKind::Partition(5_000)), 4_000);
        assert!(held.1 == Read::Nothing && held.0.len() <= 40, "{held:?}");
        assert_eq!(arrives(cut(CutKind::Partition(5_000)), 6_000), ((0..100).collect(), Read::End));
    }
}
