//! Own memory of which parts are given out one by one.

use std::sync::{Arc, Mutex, PoisonError, atomic::fence};

use core::{fmt, sync::atomic::Ordering};

use crate::{
    addr::ByteLen,
    region::{Buffer, DmaRegion, DmaSpan, MemError, check},
};

/// A range of memory whose parts go to operations one by one. Cloning shares it. Parts of an own mapping are given out under a
/// lock.
///
/// Invariant: parts of an own mapping never overlap while they live, so that safe code cannot make two writers of the same
/// bytes. A part that is gone leaves no trace in its range, so a range is free again only when *all* parts are gone and
/// nobody else holds the region. Parts of foreign and device memory may overlap, as spans of a [`DmaRegion`] may.
#[derive(Clone)]
pub struct SharedSpan(Arc<Shared>);

struct Shared {
    region: DmaRegion,
    /// Where it starts in the region, in bytes.
    at: u64,
    len: ByteLen,
    /// Of an own mapping: what was given out since all parts were gone last.
    given: Mutex<Ranges>,
}

/// Ranges in order of their start, none empty, none touching another.
#[derive(Default)]
struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds `start..end`, which is not empty; tells whether it was free.
    fn add(&mut self, start: u64, end: u64) -> bool {
        let at = self.0.partition_point(|range| range.1 < start);
        let next = self.0.get(at).copied();
        // Of the neighbours only these two can meet it: `next` ends at its start or later, the one after lies behind.
        let after = match next {
            Some(range) if range.1 == start => at + 1,
            _ => at,
        };
        if self.0.get(after).is_some_and(|range| range.0 < end) {
            return false;
        }
        let first = if after > at { next.map_or(start, |range| range.0) } else { start };
        let (last, behind) = match self.0.get(after) {
            Some(range) if range.0 == end => (range.1, after + 1),
            _ => (end, after),
        };
        self.0.splice(at..behind, [(first, last)]);
        true
    }
}

impl SharedSpan {
    pub(crate) fn new(whole: DmaSpan) -> Self {
        let (region, at, len) = (whole.region().clone(), whole.offset(), whole.len());
        Self(Arc::new(Shared { region, at, len, given: Mutex::default() }))
    }

    /// Its region.
    pub fn region(&self) -> DmaRegion {
        self.0.region.clone()
    }

    /// Length in bytes.
    pub fn len(&self) -> ByteLen {
        self.0.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len().0 == 0
    }

    /// A part, as a range in bytes from the start of what was shared.
    ///
    /// # Errors
    /// [`MemError::OutOfRange`]; [`MemError::InUse`] if it overlaps a part of an own mapping that was given out before.
    pub fn part(&self, at: u64, len: ByteLen) -> Result<DmaSpan, MemError> {
        let Shared { region, at: start, len: have, given } = &*self.0;
        check(at, len.0, *have)?;
        if len.0 == 0 || !region.is_owned() {
            return Ok(region.part(start + at, len.0));
        }
        // The list is whole between any two statements below.
        let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
        if region.holders() == 1 {
            // With one handle, ours, all parts are gone, and no other thread can make one: it would have to ask here.
            // The fence pairs with the release of the last part, so that its owner's writes come before ours.
            fence(Ordering::Acquire);
            given.0.clear();
        }
        if !given.add(at, at + len.0) {
            return Err(MemError::InUse { at, len: len.0 });
        }
        Ok(region.part(start + at, len.0))
    }

    /// Back to one span over a range of it, once nobody else holds a part, a clone, or another range of the memory. It has
    /// slices again if it is an own mapping.
    ///
    /// # Errors
    /// Itself, if somebody does, or if the range is outside.
    pub fn reclaim(self, at: u64, len: ByteLen) -> Result<DmaSpan, SharedSpan> {
        let shared = Arc::try_unwrap(self.0).map_err(Self)?;
        if check(at, len.0, shared.len).is_err() || shared.region.holders() > 1 {
            return Err(Self(Arc::new(shared)));
        }
        let start = shared.at + at;
        // Nobody else has a handle, so an own mapping cannot refuse; other memory is a shared part for good.
        Ok(shared.region.reclaim(start, len).map_or_else(|region| region.part(start, len.0), Buffer::into_span))
    }
}

impl fmt::Debug for SharedSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { region, at, len, given: _ } = &*self.0;
        write!(f, "shared {region:?}[{at}+{len:?}]")
    }
}

/// A span of any region, own mappings included, for models of devices: they write memory that others hold, as hardware
/// does, and in turn with its owner on one thread. A real program has no such function.
///
/// # Errors
/// [`MemError::OutOfRange`].
#[cfg(any(test, feature = "models"))]
pub fn model_span(region: &DmaRegion, at: u64, len: ByteLen) -> Result<DmaSpan, MemError> {
    check(at, len.0, region.len())?;
    Ok(region.part(at, len.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(len: u64) -> SharedSpan {
        Buffer::allocate(ByteLen(len)).unwrap().into_span().share()
    }

    #[test]
    fn parts_of_own_memory_never_overlap_while_they_live() {
        let shared = shared(100);
        let refused = |at, len| shared.part(at, ByteLen(len)).err();
        let first = shared.part(10, ByteLen(10)).unwrap();
        for (at, len) in [(10, 10), (0, 11), (19, 1), (15, 50), (0, 100)] {
            assert_eq!(refused(at, len), Some(MemError::InUse { at, len }));
        }
        let others = [shared.part(0, ByteLen(10)).unwrap(), shared.part(20, ByteLen(5)).unwrap()];
        assert_eq!(refused(0, 1), Some(MemError::InUse { at: 0, len: 1 }));
        assert_eq!(refused(24, 2), Some(MemError::InUse { at: 24, len: 2 }));
        drop(first);
        assert!(refused(10, 10).is_some(), "other parts still live");
        drop(others);
        shared.part(10, ByteLen(10)).unwrap();
    }

    #[test]
    fn a_part_stays_inside_what_was_shared() {
        let (left, right) = Buffer::allocate(ByteLen(100)).unwrap().into_span().split_at(60).unwrap();
        let shared = right.share();
        assert_eq!(shared.part(0, ByteLen(40)).unwrap().offset(), 60);
        assert!(matches!(shared.part(1, ByteLen(40)), Err(MemError::OutOfRange { .. })));
        let shared = shared.reclaim(0, ByteLen(40)).unwrap_err();
        drop(left);
        assert_eq!(shared.reclaim(0, ByteLen(40)).unwrap().len(), ByteLen(40));
    }

    #[test]
    fn only_the_last_holder_gets_slices_back() {
        let shared = shared(100);
        let part = shared.part(0, ByteLen(1)).unwrap();
        let shared = shared.reclaim(0, ByteLen(100)).unwrap_err();
        drop(part);
        assert!(shared.clone().reclaim(0, ByteLen(100)).is_err(), "the clone's original still holds it");
        let shared = shared.reclaim(50, ByteLen(51)).unwrap_err();
        assert_eq!(shared.reclaim(10, ByteLen(90)).unwrap().len(), ByteLen(90));
    }

    #[test]
    fn ranges_agree_with_a_bitmap() {
        let (mut ranges, mut taken) = (Ranges::default(), [false; 64]);
        let mut word = 1u64;
        for _ in 0..400 {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let start = crate::index(word >> 58);
            let end = (start + 1 + crate::index(word >> 32 & 3)).min(64);
            let free = taken[start..end].iter().all(|byte| !byte);
            assert_eq!(ranges.add(start as u64, end as u64), free, "{start}..{end} in {:?}", ranges.0);
            if free {
                taken[start..end].fill(true);
            }
        }
        for (at, byte) in taken.iter().enumerate() {
            assert_eq!(ranges.add(at as u64, at as u64 + 1), !byte);
        }
        assert_eq!(ranges.0, [(0, 64)], "all was given out and merged");
    }
}
