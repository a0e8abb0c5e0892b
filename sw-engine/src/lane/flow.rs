//! Flows: cursors over the bytes of an operation, one per stripe member.

use sw_mem::{ByteLen, DmaSpan, Place, RegionId};

use crate::{
    error::Verb,
    object::{Granularity, Object},
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
    kernel_copies: false,
    reason: Reason::Best,
    granularity: Granularity::ANY,
    handle: 0,
};

/// A cursor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) op: Token,
    /// Which member of a stripe set; `None` for a plain object.
    pub(super) member: Option<u32>,
    /// The next span to open.
    pub(super) next_span: u32,
    /// The open span.
    pub(super) span: u32,
    /// Next byte in the (member) object.
    pub(super) at: u64,
    /// Bytes left of the open span on this object.
    pub(super) left: u64,
    /// Next byte in the span.
    pub(super) memory: u64,
    /// Next byte in the operation.
    pub(super) logical: u64,
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
}

impl Flow {
    /// A cursor over the bytes of `op` (on one member of a stripe set), with its first span open.
    #[inline(always)]
    pub(super) fn new(token: Token, op: &Op, member: Option<u32>) -> Self {
        let mut flow = Self {
            op: token,
            member,
            next_span: 0,
            span: 0,
            at: op.offset,
            left: 0,
            memory: 0,
            logical: 0,
            next_logical: 0,
            more: true,
        };
        if let (Spans::One(span), None) = (&op.spans, member) {
            (flow.left, flow.more) = (span.len().0, false);
        }
        flow
    }

    /// Whether there are bytes left; opens the next span that has some for this flow.
    #[inline(always)]
    pub(super) fn has_bytes(&mut self, op: &Op) -> bool {
        if self.left == 0 && self.more {
            *self = self.with_next_open(op);
        }
        self.left > 0
    }

    // By value, here and in `advanced`: a cursor whose address is never taken stays in registers on the common way.
    #[inline(never)]
    fn with_next_open(mut self, op: &Op) -> Self {
        while self.left == 0 {
            let (offset, len) = match &op.spans {
                Spans::One(span) if self.next_span == 0 => (op.offset, span.len().0),
                Spans::Many(segments) if (self.next_span as usize) < segments.len() => {
                    let segment = &segments[self.next_span as usize];
                    (op.offset + segment.offset, segment.span.len().0)
                }
                _ => {
                    self.more = false;
                    return self;
                }
            };
            self.span = self.next_span;
            self.next_span += 1;
            let base = self.next_logical;
            self.next_logical += len;
            match (self.member, &op.target.object.stripe) {
                (Some(member), Some((geometry, _))) => {
                    let Some(range) = geometry.on_member(member, offset, len) else { continue };
                    (self.at, self.left) = (range.member_offset, range.len);
                    (self.memory, self.logical) = (range.logical_start, base + range.logical_start);
                }
                _ => (self.at, self.left, self.memory, self.logical) = (offset, len, 0, base),
            }
        }
        self
    }

    /// The object that this flow moves bytes of.
    pub(super) fn object<'a>(&self, op: &'a Op) -> &'a Object {
        let member = self.member.zip(op.target.object.stripe.as_ref());
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
    #[inline(always)]
    pub(super) fn piece<'a>(&self, op: &'a Op) -> Piece<'a> {
        let choice = self.choice(op);
        // In range: the flow keeps `memory` inside the span.
        let here = |span: &DmaSpan| (span.place().advanced(ByteLen(self.memory)), span.region().id());
        let memory = op.spans.get(self.span).map(here);
        let place = memory.map_or(0, |(place, _)| place.raw());
        let len = self.until_stride(op);
        let (leg, len) = route_piece(choice, op.verb, self.at, len, place);
        Piece { leg, memory, at: self.at, len }
    }

    /// Bytes until memory jumps: the end of the span, or of the stripe unit.
    fn until_stride(&self, op: &Op) -> u64 {
        match (self.member, &op.target.object.stripe) {
            (Some(_), Some((geometry, _))) => self.left.min(geometry.unit() - (self.at & (geometry.unit() - 1))),
            _ => self.left,
        }
    }

    /// Moves past `bytes`, which did not cross a stride; says whether there are more. Once there are none, nobody looks at
    /// the cursor again.
    #[inline(always)]
    pub(super) fn goes_on(&mut self, op: &Op, bytes: u64) -> bool {
        if self.left == bytes && !self.more {
            return false;
        }
        *self = self.advanced(op, bytes);
        self.has_bytes(op)
    }

    #[inline(never)]
    fn advanced(mut self, op: &Op, bytes: u64) -> Self {
        self.at += bytes;
        self.left -= bytes;
        self.memory += bytes;
        self.logical += bytes;
        if let (Some(_), Some((geometry, _))) = (self.member, &op.target.object.stripe)
            && self.at & (geometry.unit() - 1) == 0
        {
            let others = geometry.unit() * u64::from(geometry.width() - 1);
            self.memory += others;
            self.logical += others;
        }
        self
    }
}

/// Which leg the bytes at `at` take, and how many of `len` take it.
#[inline(always)]
pub(super) fn route_piece(choice: &Choice, verb: Verb, at: u64, len: u64, place: u64) -> (&Leg, u64) {
    let mut main = &choice.main;
    if main.via == Via::Direct
        && !congruent(place, at, main.granularity)
        && let Some(unaligned) = &choice.unaligned
    {
        main = unaligned;
    }
    let whole_blocks_only = verb == Verb::Write && choice.ends_may_bounce && main.granularity.block > 1;
    let (true, Some(ends)) = (whole_blocks_only, &choice.ends) else { return (main, len) };
    // Two writes that meet inside a unit, one through the page cache and one past it, can undo each other (the cache reads the
    // unit before and writes it after).
    let unit = u64::from(choice.write_unit.max(main.granularity.block));
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
            member: None,
            next_span: 0,
            span: 0,
            at: 0,
            left: 0,
            memory: 0,
            logical: 0,
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
