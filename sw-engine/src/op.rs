//! Operations as callers give them, and completions as they come back.

use core::ops::Deref;
use std::{fmt, sync::Arc, time::Duration};

use sw_mem::DmaSpan;

use crate::{
    checksum::Algorithm,
    error::{Error, ErrorKind, Retry, Verb},
    layout::{self, Later, Layout, Placed, Resolve, Resolved, Unresolved},
    object::{Device, Object},
    path::{ByPath, DataPath, Landing, Reason, Route},
    plan::{Choice, Via},
    rate::RateClass,
    slot::Token,
    time::Time,
};

/// Names an operation in its lane, until its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId(pub(crate) Token);

/// What an operation is about: an object and how to reach it. Made once, shared by any number of operations.
#[derive(Clone, Debug)]
pub struct Target(Arc<Reached>);

/// An object with the planner's choice for it.
#[derive(Debug)]
pub struct Reached {
    /// The object. It lives until the operation's last slot is free.
    pub object: Arc<Object>,
    /// The planner's choice for it; for a stripe set, that of its first member.
    pub choice: Choice,
    /// The choices of an object's members, in their order; empty for a plain object.
    members: Vec<Choice>,
    /// Transports that a lane must have for these choices: one more than the highest index.
    transports: u8,
    /// A bit for each transport (a lane has 64 at most) that moves bytes of the operation's own memory in these choices.
    direct: u64,
    /// Where the object lies.
    pub(crate) device: Device,
    whole: WholeRules,
    /// Where the bytes of the one operation are that has this target, and the target that it came with.
    resolved: Option<(Resolved, Target)>,
}

/// When every byte of an operation takes the main leg in place: looked up once for a target, so that the common operation is
/// checked in one pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WholeRules {
    /// Bits that are zero in the distance of memory and object offset.
    memory: u64,
    /// Bits that are zero in offset and length of a read; all of them for a target whose operations are never whole.
    read: u64,
    /// The same for a write.
    write: u64,
}

impl WholeRules {
    /// No operation with bytes is whole.
    const NEVER: Self = Self { memory: u64::MAX, read: u64::MAX, write: u64::MAX };

    fn of(object: &Object, choice: &Choice) -> Self {
        let main = &choice.main;
        if object.composed.is_some() || main.via != Via::Direct {
            return Self::NEVER;
        }
        let low_bits = |unit: u32| u64::from(unit) - 1;
        Self {
            memory: low_bits(main.granularity.memory),
            read: low_bits(choice.unit_of(Verb::Read)),
            write: low_bits(choice.unit_of(Verb::Write)),
        }
    }

    /// Whether `len` bytes (above zero) between object offset `at` and memory at `place` are whole.
    #[inline(always)]
    pub(crate) fn hold(&self, verb: Verb, at: u64, len: u64, place: u64) -> bool {
        let ends = if verb == Verb::Write { self.write } else { self.read };
        (at | len) & ends == 0 && place.wrapping_sub(at) & self.memory == 0
    }
}

impl Deref for Target {
    type Target = Reached;

    fn deref(&self) -> &Reached {
        &self.0
    }
}

impl Target {
    /// A plain object with its choice.
    ///
    /// # Errors
    /// `ApiMisuse` for one that is made of others.
    pub fn new(object: Arc<Object>, choice: Choice) -> Result<Self, Error> {
        match object.composed {
            None => Ok(Self::make(object, choice, Vec::new())),
            Some(_) => Err(Self::misfit(&object)),
        }
    }

    /// An object that is made of others, with the choices of its members, in their order.
    ///
    /// # Errors
    /// `ApiMisuse` if their number is not that of the members; `Unsupported` if the stripe unit divides a block of a member.
    pub fn composed(object: Arc<Object>, members: Vec<Choice>) -> Result<Self, Error> {
        match (&object.composed, members.first().copied()) {
            (Some((layout, objects)), Some(first)) if objects.len() == members.len() => {
                layout.check_members(objects)?;
                Ok(Self::make(object, first, members))
            }
            _ => Err(Self::misfit(&object)),
        }
    }

    fn misfit(object: &Object) -> Error {
        let detail = "the target does not have one choice for each member of its object";
        Error::new(ErrorKind::ApiMisuse, Verb::Plan).at(object.name.clone()).detail(detail)
    }

    fn make(object: Arc<Object>, choice: Choice, members: Vec<Choice>) -> Self {
        let legs = |choice: &Choice| [Some(choice.main), choice.unaligned, choice.ends].into_iter().flatten();
        let all = members.iter().chain([&choice]).flat_map(legs);
        let highest = all.clone().map(|leg| leg.transport).max().unwrap_or(0);
        let direct = all.filter(|leg| leg.via == Via::Direct);
        let direct = direct.fold(0, |bits, leg| bits | 1u64.checked_shl(leg.transport.into()).unwrap_or(0));
        let (transports, whole) = (highest.saturating_add(1), WholeRules::of(&object, &choice));
        let device = object.device();
        Self(Arc::new(Reached { object, choice, members, transports, direct, device, whole, resolved: None }))
    }

    /// The choices of a stripe set's members; empty for a plain object.
    pub fn member_choices(&self) -> &[Choice] {
        &self.members
    }

    /// The target of one read: where its bytes are is found out now. `None` where that is the same for every operation.
    pub(crate) fn resolve(&self, op: &Op) -> Option<Result<Self, Error>> {
        self.resolve_by(op, self.resolver()?)
    }

    /// The same with the first member alone.
    pub(crate) fn resolve_first(&self, op: &Op) -> Option<Result<Self, Error>> {
        self.resolver()?;
        self.resolve_by(op, &layout::First)
    }

    /// Who says where bytes are; `None` where that is the same for every operation.
    pub(crate) fn resolver(&self) -> Option<&dyn Resolve> {
        match self.object.composed.as_ref()? {
            (Layout::Pieces(resolver), _) => Some(&**resolver),
            (Layout::Stripe(_), _) => None,
        }
    }

    fn resolve_by(&self, op: &Op, resolver: &dyn Resolve) -> Option<Result<Self, Error>> {
        let (_, members) = self.object.composed.as_ref()?;
        let whole = self.unresolved();
        let resolved = layout::resolve(resolver, members, op.offset, &op.spans)
            .map_err(|unresolved| unresolved_error(unresolved, op.verb).at(self.object.name.clone()));
        let of = &whole.0;
        Some(resolved.map(|resolved| {
            Self(Arc::new(Reached {
                object: of.object.clone(),
                choice: of.choice,
                members: of.members.clone(),
                transports: of.transports,
                direct: of.direct,
                device: of.device,
                whole: of.whole,
                resolved: Some((resolved, whole.clone())),
            }))
        }))
    }

    /// The target that any operation can have.
    pub(crate) fn unresolved(&self) -> Self {
        self.resolved.as_ref().map_or_else(|| self.clone(), |(_, whole)| whole.clone())
    }

    /// Where the bytes of its operation are, if that was found out for it.
    pub(crate) fn placed(&self) -> Option<&[Placed]> {
        self.resolved.as_ref().map(|(resolved, _)| &*resolved.placed)
    }

    pub(crate) fn transports(&self) -> usize {
        usize::from(self.transports)
    }

    pub(crate) fn whole(&self) -> &WholeRules {
        &self.whole
    }

    /// A bit for each transport that moves bytes of the operation's own memory.
    pub(crate) fn direct(&self) -> u64 {
        self.direct
    }
}

#[cold]
fn unresolved_error(unresolved: Unresolved, verb: Verb) -> Error {
    match unresolved {
        Unresolved::Later(Later(after)) => {
            Error::new(ErrorKind::Busy, verb).detail("somebody else brings its bytes").with_retry(Retry::After(after))
        }
        Unresolved::Wrong(why) => Error::new(ErrorKind::Protocol, verb).detail(why),
    }
}

/// A part of a vectored operation.
#[derive(Debug)]
pub struct Segment {
    /// First byte in the object.
    pub offset: u64,
    /// Its memory; its length is the segment's.
    pub span: DmaSpan,
}

/// The memory of an operation.
#[derive(Debug)]
pub enum Spans {
    /// None: a flush.
    None,
    /// One span at the operation's offset.
    One(DmaSpan),
    /// Many, each at its own offset; the operation's offset is added to each.
    Many(Box<[Segment]>),
}

impl Spans {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        match self {
            Spans::None => 0,
            Spans::One(span) => span.len().0,
            Spans::Many(segments) => segments.iter().map(|segment| segment.span.len().0).sum(),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each span, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &DmaSpan> {
        let (one, many) = match self {
            Spans::None => (None, [].as_slice()),
            Spans::One(span) => (Some(span), [].as_slice()),
            Spans::Many(segments) => (None, &**segments),
        };
        one.into_iter().chain(many.iter().map(|segment| &segment.span))
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&DmaSpan> {
        match self {
            Spans::None => None,
            Spans::One(span) => (index == 0).then_some(span),
            Spans::Many(segments) => segments.get(index as usize).map(|segment| &segment.span),
        }
    }
}

/// What may be asked of an operation besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpOptions {
    /// When the caller stops waiting. `None`: never.
    pub deadline: Option<Time>,
    /// A checksum of the operation's bytes, in its own order.
    pub checksum: Option<Algorithm>,
    /// Fills host memory with this byte before a read, so that bytes that never arrived in place show. Bytes that come by a
    /// slab (bounced ends) are copied over it, whatever the device left in the slab.
    pub poison: Option<u8>,
    /// For a flush: all metadata, not only what is needed to read the data back.
    pub all_metadata: bool,
}

/// An operation.
#[derive(Debug)]
pub struct Op {
    /// The caller's word; comes back with the completion.
    pub user: u64,
    /// [`Verb::Read`], [`Verb::Write`] or [`Verb::Flush`].
    pub verb: Verb,
    /// On what.
    pub target: Target,
    /// First byte in the object.
    pub offset: u64,
    /// The memory.
    pub spans: Spans,
    /// The rest.
    pub options: OpOptions,
}

impl Op {
    /// As its caller gave it: what was found out for it alone, and held, goes.
    pub(crate) fn unresolved(mut self) -> Self {
        if self.target.resolved.is_some() {
            self.target = self.target.unresolved();
        }
        self
    }
}

/// Limits that a lane enforces when it takes an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in one operation.
    pub op_bytes_max: u64,
    /// Segments in one operation.
    pub segments_max: u32,
}

impl Default for Limits {
    /// One TiB and 65,536 segments: more than any tensor or batch, small enough that sums never wrap.
    fn default() -> Self {
        Self { op_bytes_max: 1 << 40, segments_max: 1 << 16 }
    }
}

/// An operation that was not taken, with the reason. Nothing was done.
pub struct Rejected {
    /// The operation, with its memory.
    pub op: Op,
    /// Why. [`ErrorKind::Busy`] means: poll, then try again; with [`Retry::After`], that the lane has room and others may go before it.
    pub error: Error,
}

impl fmt::Debug for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

/// Where an operation's time went, as seen at the polls of its lane. Nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Times {
    /// From `submit` until the first chunk was with the transport.
    pub queued_ns: u64,
    /// From then until the last chunk was back.
    pub moving_ns: u64,
}

impl Times {
    /// From `submit` to the end.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.queued_ns.saturating_add(self.moving_ns))
    }
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// Its name.
    pub id: OpId,
    /// The caller's word.
    pub user: u64,
    /// Bytes moved: all that were asked for, or the error.
    pub result: Result<u64, Error>,
    /// The way of the bytes that moved.
    pub path: DataPath,
    /// Where the time went.
    pub times: Times,
    /// The checksum that was asked for, if the operation succeeded and the CPU saw its bytes.
    pub checksum: Option<u64>,
    /// The operation with its memory. `None` if a device may still touch it (deadline, cancel, close): the lane keeps it
    /// until the device let go, then drops it.
    pub op: Option<Op>,
}

impl Completion {
    /// The path of no bytes.
    pub(crate) const NO_PATH: DataPath = DataPath {
        route: Route { transport: "none", landing: Landing::Staged },
        bytes: ByPath { dma: 0, kernel_copy: 0, staged: 0 },
        bounced: 0,
        cpu_copied: 0,
        reason: Reason::Best,
    };

    /// What its rate says something about, for a source outside of the page cache. `None` without the operation, and for a
    /// stripe set, whose rate is that of several devices together.
    pub fn rate_class(&self) -> Option<RateClass> {
        let Route { transport, landing } = self.path.route;
        let target = self.op.as_ref().map(|op| &op.target).filter(|target| target.object.composed.is_none())?;
        let (face, device) = (target.choice.face_landing(landing), target.device);
        Some(RateClass { transport, landing, face, resident: false, device })
    }

    /// The completion of an operation that no lane took: no bytes, no route, no memory.
    pub fn failed(error: Error) -> Self {
        let path = Self::NO_PATH;
        let id = OpId(Token::from_raw(u64::MAX));
        Self { id, user: 0, result: Err(error), path, times: Times::default(), checksum: None, op: None }
    }
}
