//! Flows: cursors over the bytes of an operation, one per stripe member.

use sw_mem::{ByteLen, DmaSpan, Place, RegionId};

use crate::{
    error::Verb,
    layout::{Layout, Placed},
    object::{Device, Granularity, Object},
    op::{Op, Spans},
    path::{Landing, Reason},
    plan::{Choice, Leg, Via},
    slot::Token,
    split::congruent,
};

/// A leg of a slot that is not in use.
pub(super) const NO_LEG: Leg = Leg {
    transport: 0,
    via: Via::Direct,
    landing: Landing::Staged,
    copies: 0,
    reason: Reason::Best,
    granularity: Granularity::ANY,
    handle: 0,
};

/// What the bytes of an operation need on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Whole blocks of a plain object in one span, all of them in place over the main leg: nothing is left to decide.
    Whole,
    /// Each piece is looked at: ragged ends, memory that is not congruent, staging, stripes.
    Mixed,
    /// The same for a read whose blocks no slab holds: its ragged ends take the leg that takes any bytes.
    EndsApart,
    /// No bytes: one I/O that flushes.
    Flush,
}

/// Where bytes of an operation are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spot {
    /// The span that they lie in.
    pub(super) span: u32,
    /// First byte in the (member) object.
    pub(super) at: u64,
    /// Bytes of the span on this object from there on.
    pub(super) left: u64,
    /// First byte in the span.
    pub(super) memory: u64,
    /// First byte in the operation.
    pub(super) logical: u64,
}

/// A cursor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) op: Token,
    pub(super) shape: Shape,
    /// Which member of a stripe set; `None` for a plain object.
    pub(super) member: Option<u32>,
    /// That of its object.
    pub(super) device: Device,
    /// The next span to open.
    pub(super) next_span: u32,
    /// Its next byte, and what is left of the open span.
    pub(super) here: Spot,
    /// First byte of the next span in the operation.
    pub(super) next_logical: u64,
    /// There may be further spans; for a flush, its one I/O was not cut yet.
    pub(super) more: bool,
}

/// The next thing to cut off a flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) leg: &'a Leg,
    /// The memory of its first byte, and the region that it lies in; `None` for a flush.
    pub(super) memory: Option<(Place, RegionId)>,
    pub(super) at: u64,
    pub(super) len: u64,
    /// Bytes of the object that it is of.
    pub(super) object_len: u64,
}

impl Spot {
    /// The start of a span at the operation's offset.
    #[inline(always)]
    pub(super) fn start(op: &Op, span: &DmaSpan) -> Self {
        Self { span: 0, at: op.offset, left: span.len().0, memory: 0, logical: 0 }
    }

    /// The place of the first byte and the region that it lies in.
    pub(super) fn memory_of(&self, op: &Op) -> Option<(Place, RegionId)> {
        Some(self.memory_in(op.spans.get(self.span)?))
    }

    #[inline(always)]
    pub(super) fn memory_in(&self, span: &DmaSpan) -> (Place, RegionId) {
        // In range: a flow keeps `memory` inside the span.
        (span.place().advanced(ByteLen(self.memory)), span.region().id())
    }
}

impl Flow {
    /// A cursor over the bytes of `op` (on one member of a stripe set), with its first span open.
    pub(super) fn new(token: Token, op: &Op, shape: Shape, member: Option<u32>) -> Self {
        let mut flow = Self {
            op: token,
            shape,
            member,
            device: Device::default(),
            next_span: 0,
            here: Spot { at: op.offset, ..Spot::default() },
            next_logical: 0,
            more: true,
        };
        if let (Spans::One(span), None) = (&op.spans, member) {
            (flow.here.left, flow.more) = (span.len().0, false);
        }
        flow.device = flow.object(op).device();
        flow
    }

    /// Whether there is something left to cut; opens the next span that has bytes for this flow.
    pub(super) fn has_more(&mut self, op: &Op) -> bool {
        if self.shape == Shape::Flush {
            return self.more;
        }
        if self.here.left == 0 && self.more {
            self.open_next(op);
        }
        self.here.left > 0
    }

    /// Opens the next span that has bytes for this flow.
    fn open_next(&mut self, op: &Op) {
        if let (Some(member), Some(placed)) = (self.member, op.target.placed()) {
            return self.open_placed(member, placed);
        }
        while self.here.left == 0 {
            let (offset, len) = match &op.spans {
                Spans::One(span) if self.next_span == 0 => (op.offset, span.len().0),
                Spans::Many(segments) if (self.next_span as usize) < segments.len() => {
                    let segment = &segments[self.next_span as usize];
                    (op.offset + segment.offset, segment.span.len().0)
                }
                _ => {
                    self.more = false;
                    return;
                }
            };
            self.here.span = self.next_span;
            self.next_span += 1;
            let base = self.next_logical;
            self.next_logical += len;
            match (self.member, &op.target.object.composed) {
                (Some(member), Some((Layout::Stripe(geometry), _))) => {
                    let Some(range) = geometry.on_member(member, offset, len) else { continue };
                    (self.here.at, self.here.left) = (range.member_offset, range.len);
                    (self.here.memory, self.here.logical) = (range.logical_start, base + range.logical_start);
                }
                _ => (self.here.at, self.here.left, self.here.memory, self.here.logical) = (offset, len, 0, base),
            }
        }
    }

    /// The same where the places of all bytes were found out: each is a span of its own.
    fn open_placed(&mut self, member: u32, placed: &[Placed]) {
        let rest = placed.get(self.next_span as usize..).unwrap_or_default();
        let Some((passed, next)) = (1..).zip(rest).find(|(_, place)| place.extent.member == member) else {
            self.more = false;
            return;
        };
        self.next_span += passed;
        let Placed { extent, span, memory, logical } = *next;
        self.here = Spot { span, at: extent.at, left: extent.len, memory, logical };
    }

    /// The object that this flow moves bytes of.
    pub(super) fn object<'a>(&self, op: &'a Op) -> &'a Object {
        let member = self.member.zip(op.target.object.composed.as_ref());
        match member.and_then(|(member, (_, members))| members.get(member as usize)) {
            Some(object) => object,
            None => &op.target.object,
        }
    }

    /// The choice for that object.
    pub(super) fn choice<'a>(&self, op: &'a Op) -> &'a Choice {
        self.member.and_then(|member| op.target.member_choices().get(member as usize)).unwrap_or(&op.target.choice)
    }

    /// The next piece that goes over one leg. The open span has bytes.
    pub(super) fn piece<'a>(&self, op: &'a Op) -> Piece<'a> {
        let memory = self.here.memory_of(op);
        let place = memory.map_or(0, |(place, _)| place.raw());
        let choice = self.choice(op);
        let unit = match (op.verb, self.shape) {
            (Verb::Write, _) => choice.write_unit,
            (_, Shape::EndsApart) => 1,
            _ => 0,
        };
        let (leg, len) = route_piece(choice, unit, self.here.at, self.until_stride(op), place);
        Piece { leg, memory, at: self.here.at, len, object_len: self.object(op).len }
    }

    /// Bytes until memory jumps: the end of the span, or of the stripe unit.
    fn until_stride(&self, op: &Op) -> u64 {
        match (self.member, &op.target.object.composed) {
            (Some(_), Some((Layout::Stripe(geometry), _))) => {
                self.here.left.min(geometry.unit() - (self.here.at & (geometry.unit() - 1)))
            }
            _ => self.here.left,
        }
    }

    /// Moves past `bytes`, which did not cross a stride; says whether there are more. Once there are none, nobody looks at
    /// the cursor again.
    pub(super) fn goes_on(&mut self, op: &Op, bytes: u64) -> bool {
        if self.shape == Shape::Flush || (self.here.left == bytes && !self.more) {
            return false;
        }
        self.advance(op, bytes);
        self.has_more(op)
    }

    fn advance(&mut self, op: &Op, bytes: u64) {
        self.here.at += bytes;
        self.here.left -= bytes;
        self.here.memory += bytes;
        self.here.logical += bytes;
        if let (Some(_), Some((Layout::Stripe(geometry), _))) = (self.member, &op.target.object.composed)
            && self.here.at & (geometry.unit() - 1) == 0
        {
            let others = geometry.unit() * u64::from(geometry.width() - 1);
            self.here.memory += others;
            self.here.logical += others;
        }
    }
}

/// Which leg the bytes at `at` take, and how many of `len` take it. `unit` is what a piece of the main leg must be multiples
/// of besides its blocks; 0 if the main leg takes ragged ends too.
fn route_piece(choice: &Choice, unit: u32, at: u64, len: u64, place: u64) -> (&Leg, u64) {
    let mut main = &choice.main;
    if main.via == Via::Direct
        && !congruent(place, at, main.granularity)
        && let Some(unaligned) = &choice.unaligned
    {
        main = unaligned;
    }
    let whole_blocks_only = unit > 0 && choice.ends_may_bounce && main.granularity.block > 1;
    let (true, Some(ends)) = (whole_blocks_only, &choice.ends) else { return (main, len) };
    // Two writes that meet inside a unit, one through the page cache and one past it, can undo each other (the cache reads the
    // unit before and writes it after).
    let unit = u64::from(unit.max(main.granularity.block));
    let (head, whole) = (at & (unit - 1), len & !(unit - 1));
    match head {
        0 if whole > 0 => (main, whole),
        0 => (ends, len),
        head => (ends, len.min(unit - head)),
    }
}

/// Flows with a fixed capacity.
#[derive(Debug)]
pub(super) struct FlowTable {
    flows: Box<[Flow]>,
    free: Vec<u32>,
}

impl FlowTable {
    pub(super) fn new(capacity: u32) -> Self {
        let op = Token::from_raw(0);
        let empty = Flow {
            op,
            shape: Shape::Mixed,
            member: None,
            device: Device::default(),
            next_span: 0,
            here: Spot::default(),
            next_logical: 0,
            more: false,
        };
        Self { flows: (0..capacity).map(|_| empty).collect(), free: (0..capacity).rev().collect() }
    }

    pub(super) fn free_count(&self) -> usize {
        self.free.len()
    }

    pub(super) fn take(&mut self, flow: Flow) -> Option<u32> {
        let index = self.free.pop()?;
        *self.flows.get_mut(index as usize)? = flow;
        Some(index)
    }

    pub(super) fn put(&mut self, index: u32) {
        debug_assert!(!self.free.contains(&index), "flow {index} freed twice");
        self.free.push(index);
    }

    pub(super) fn get(&self, index: u32) -> Flow {
        self.flows[index as usize]
    }

    pub(super) fn set(&mut self, index: u32, flow: Flow) {
        self.flows[index as usize] = flow;
    }
}
