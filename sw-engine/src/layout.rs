//! Objects that are made of others: how their bytes lie on those.
//!
//! ```text
//!   Stripe   byte x lies on the member that arithmetic says, always
//!   Pieces   asked for each operation when a lane takes it: a cache says which bytes are in its file, and which are not
//!
//!   submit ─► Resolve::resolve(range) ─► extents of members, and a hold on them ─► flows, one for each member ─► the hold goes with
//!                                                                                    the last slot that may touch its bytes
//! ```

use std::{any::Any, fmt, sync::Arc, time::Duration};

use crate::{
    error::{Error, ErrorKind, Verb},
    object::Object,
    op::Spans,
    stripe::{MEMBERS_MAX, StripeGeometry},
};

/// How the bytes of an object lie on its members.
#[derive(Clone, Debug)]
pub enum Layout {
    /// In units, as RAID 0 does. Every member holds bytes that no other has.
    Stripe(StripeGeometry),
    /// As is found out for each read. The first member is the object itself, as long as it and of its version; others hold copies of
    /// some of its bytes. Such an object is only read.
    Pieces(Arc<dyn Resolve>),
}

/// A range of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Which one, counted from 0.
    pub member: u32,
    /// First byte on it. Modulo 4096 it is what the byte's offset in the object is, so that memory which suits the one suits the other.
    pub at: u64,
    /// Bytes, above zero.
    pub len: u64,
}

/// What keeps the bytes of extents what they are until it is dropped.
pub type Hold = Box<dyn Any + Send + Sync>;

/// Says where bytes are, when an operation on them is taken.
///
/// *Thread*: that of the lane, so it should not take longer than it must. The lane drops the hold when no slot of the operation is left.
pub trait Resolve: fmt::Debug + Send + Sync {
    /// For each of `ranges` (offset and length, in bytes; inside of the object) in their order: extents that are its bytes, in theirs.
    ///
    /// # Errors
    /// [`Later`]: some of the bytes are about to be where they are not yet. Whoever says so says it a bounded time.
    fn resolve(&self, ranges: &mut dyn Iterator<Item = (u64, u64)>, out: &mut Vec<Extent>) -> Result<Hold, Later>;

    /// A read of this range of a member other than the first one failed: what it has there is not to be given again. The operation begins
    /// anew, with the first member alone.
    fn failed(&self, extent: Extent);
}

/// Where bytes are is to be asked again after this long: the operation waits, and others go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Later(pub Duration);

/// Why it is not known where the bytes of an operation are.
#[derive(Debug)]
pub(crate) enum Unresolved {
    Later(Later),
    /// The answer is none.
    Wrong(&'static str),
}

/// Everything is on the first member.
#[derive(Debug)]
pub(crate) struct First;

impl Resolve for First {
    fn resolve(&self, ranges: &mut dyn Iterator<Item = (u64, u64)>, out: &mut Vec<Extent>) -> Result<Hold, Later> {
        out.extend(ranges.filter(|(_, len)| *len > 0).map(|(at, len)| Extent { member: 0, at, len }));
        Ok(Box::new(()))
    }

    fn failed(&self, _extent: Extent) {}
}

/// An extent, with the memory that it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) extent: Extent,
    /// The span, and the first byte in it.
    pub(crate) span: u32,
    pub(crate) memory: u64,
    /// First byte in the operation.
    pub(crate) logical: u64,
}

/// Where the bytes of one operation are.
pub(crate) struct Resolved {
    pub(crate) placed: Box<[Placed]>,
    _hold: Hold,
}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolved").field("placed", &self.placed).finish_non_exhaustive()
    }
}

impl Layout {
    /// Its geometry, if it is one of stripes.
    pub fn stripe(&self) -> Option<&StripeGeometry> {
        match self {
            Self::Stripe(geometry) => Some(geometry),
            Self::Pieces(_) => None,
        }
    }

    /// Checks that `members` can be those of an object that lies so.
    ///
    /// # Errors
    /// `ApiMisuse` for a number of members that cannot be; `Unsupported` for a stripe unit that divides a block of a member.
    pub fn check_members(&self, members: &[Arc<Object>]) -> Result<(), Error> {
        let fits = match self {
            Self::Stripe(geometry) => members.len() == geometry.width() as usize,
            Self::Pieces(_) => (1..=MEMBERS_MAX as usize).contains(&members.len()),
        };
        if !fits {
            let detail = format!("{} members do not make an object that lies so", members.len());
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Plan).detail(detail));
        }
        self.stripe().map_or(Ok(()), |geometry| geometry.check_members(members))
    }
}

/// Asks where the bytes of an operation are, and checks the answer: it decides which bytes land in whose memory.
pub(crate) fn resolve(
    resolver: &dyn Resolve,
    members: &[Arc<Object>],
    offset: u64,
    spans: &Spans,
) -> Result<Resolved, Unresolved> {
    let ranges: Vec<(u64, u64)> = match spans {
        Spans::None => Vec::new(),
        Spans::One(span) => vec![(offset, span.len().0)],
        Spans::Many(parts) => parts.iter().map(|part| (offset + part.offset, part.span.len().0)).collect(),
    };
    let mut extents = Vec::new();
    let hold = resolver.resolve(&mut ranges.iter().copied(), &mut extents).map_err(Unresolved::Later)?;
    let mut placed = Vec::with_capacity(extents.len());
    let (mut next, mut logical) = (extents.into_iter(), 0);
    for (span, (start, len)) in (0..).zip(&ranges) {
        let mut memory = 0;
        while memory < *len {
            let extent = next.next().ok_or(Unresolved::Wrong("bytes of the range have no place"))?;
            let member = members.get(extent.member as usize).ok_or(Unresolved::Wrong("a place is on no member"))?;
            let is_inside = extent.at.checked_add(extent.len).is_some_and(|end| end <= member.len);
            let is_aligned = extent.at.wrapping_sub(start + memory) & 4095 == 0;
            if extent.len == 0 || extent.len > len - memory || !is_inside || !is_aligned {
                return Err(Unresolved::Wrong("a place is not one of the range's bytes"));
            }
            placed.push(Placed { extent, span, memory, logical });
            (memory, logical) = (memory + extent.len, logical + extent.len);
        }
    }
    match next.next() {
        None => Ok(Resolved { placed: placed.into(), _hold: hold }),
        Some(_) => Err(Unresolved::Wrong("there are places for more bytes than the range has")),
    }
}
