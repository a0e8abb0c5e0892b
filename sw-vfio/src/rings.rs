//! Memory for rings and lists where no IOMMU keeps a device on the right page: parts of reserved huge pages, which the kernel
//! does not move, swap, or share with a forked child.
//!
//! ```text
//!   allocate ─► first huge page with a gap, else one more of the reserved pool ─► a region that gives its part back
//! ```
//!
//! A part never crosses the end of a huge page, so it is in one piece for the device. What is longer than a huge page gets a
//! mapping of its own.
// UNSAFETY: regions over parts of mappings that their owner keeps.
#![expect(unsafe_code, reason = "the contract of DmaRegion::from_foreign")]

use core::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sw_engine::{Error, ErrorKind, Verb};
use sw_mem::{ByteLen, DmaRegion, ForkMark, HostMapping, HugePages, Place, Populate, align_up};

use crate::{
    iova::{IovaAllocator, Window},
    sys,
};

/// Bytes of a huge page on x86-64 and on aarch64 with 4 KiB pages.
const HUGE_BYTES: u64 = 2 << 20;
/// Huge pages of one pool at most: 64 MiB, the rings and lists of some hundred queue pairs.
const PAGES_MAX: usize = 32;

/// The pool. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Rings(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kind: HugePages,
    fork: ForkMark,
    pages: Mutex<Vec<Page>>,
}

/// A huge page and its gaps. Addresses count from one base page on: address 0 of the allocator means nothing.
#[derive(Debug)]
struct Page {
    mapping: Arc<HostMapping>,
    room: IovaAllocator,
}

/// A part, given back on drop.
struct Part {
    rings: Rings,
    at: u64,
    mapping: ManuallyDrop<Arc<HostMapping>>,
}

impl Drop for Part {
    fn drop(&mut self) {
        // In a forked child the lock may be held for ever, and the memory is not there.
        if self.rings.0.fork.is_child() {
            return;
        }
        let mut pages = self.rings.pages();
        // SAFETY: taken once, here; nobody uses the field afterwards.
        let mapping = unsafe { ManuallyDrop::take(&mut self.mapping) };
        if let Some(page) = pages.iter_mut().find(|page| Arc::ptr_eq(&page.mapping, &mapping)) {
            page.room.free(self.at);
        }
        // An empty one goes back to the machine's pool.
        pages.retain(|page| page.room.entries() > 0);
    }
}

impl Rings {
    /// An empty pool; `kind` is what its pages are.
    pub(crate) fn new(kind: HugePages) -> Self {
        Self(Arc::new(Inner { kind, fork: ForkMark::new(), pages: Mutex::default() }))
    }

    fn pages(&self) -> MutexGuard<'_, Vec<Page>> {
        self.0.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Zeroed memory of `len` bytes, rounded up to pages.
    ///
    /// # Errors
    /// `ResourceLimit` if the machine's pool of reserved huge pages has none left, or this one is full.
    pub(crate) fn allocate(&self, len: ByteLen) -> Result<DmaRegion, Error> {
        let unit = sys::page_bytes();
        let len = align_up(len.0.max(1), unit).ok_or_else(|| refused("a length past the address space".into()))?;
        if len > HUGE_BYTES {
            let mapping = self.map(len)?;
            let (base, whole) = (Place::Host(mapping.base()), mapping.len());
            // SAFETY: the mapping is the owner, so the range stays mapped while the region lives, and nobody has a reference.
            let region = unsafe { DmaRegion::from_foreign(base, whole, Box::new(mapping)) };
            return region.map_err(|cause| refused(cause.to_string()));
        }
        let mut pages = self.pages();
        let found = pages.iter_mut().find_map(|page| Some((page.room.take(len, 0).ok()?, Arc::clone(&page.mapping))));
        let (at, mapping) = match found {
            Some(found) => found,
            None if pages.len() == PAGES_MAX => {
                return Err(refused(format!("rings have {PAGES_MAX} huge pages already")).remedy("use fewer queues"));
            }
            None => {
                let mapping = Arc::new(self.map(HUGE_BYTES)?);
                let window = Window { first: unit, last: unit + (HUGE_BYTES - 1) };
                let mut room = IovaAllocator::new(&[window], &[], unit, usize::MAX);
                let at = room.take(len, 0).map_err(|why| refused(format!("{why:?} in an empty page")))?;
                pages.push(Page { mapping: Arc::clone(&mapping), room });
                (at, mapping)
            }
        };
        drop(pages);
        let base = Place::Host(mapping.base()).advanced(ByteLen(at - unit));
        let part = Part { rings: self.clone(), at, mapping: ManuallyDrop::new(mapping) };
        // SAFETY: the part keeps the mapping, and nobody else has this range of it; there is no reference into it.
        let region = unsafe { DmaRegion::from_foreign(base, ByteLen(len), Box::new(part)) };
        let region = region.map_err(|cause| refused(cause.to_string()))?;
        // Somebody may have had it before.
        let zeroed = region.span(0, ByteLen(len)).and_then(|span| span.fill(0, len, 0));
        zeroed.map_err(|cause| refused(cause.to_string()))?;
        Ok(region)
    }

    fn map(&self, len: u64) -> Result<HostMapping, Error> {
        HostMapping::map(ByteLen(len), HUGE_BYTES, self.0.kind, Populate::Now).map_err(|cause| {
            refused(cause.to_string()).remedy(
                "without an IOMMU rings lie in reserved huge pages: echo 64 > /proc/sys/vm/nr_hugepages, or switch the IOMMU on",
            )
        })
    }
}

fn refused(detail: String) -> Error {
    Error::new(ErrorKind::ResourceLimit, Verb::Register).at("memory for rings").detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rings() -> Rings {
        Rings::new(HugePages::Never)
    }

    #[test]
    fn parts_share_a_page_are_apart_and_are_used_again() {
        let rings = rings();
        let parts: Vec<DmaRegion> = [1, 4096, 5000, 100_000].map(|len| rings.allocate(ByteLen(len)).unwrap()).into();
        assert_eq!(rings.pages().len(), 1);
        let ends: Vec<(u64, u64)> =
            parts.iter().map(|part| (part.base().raw(), part.base().raw() + part.len().0)).collect();
        for (n, (start, end)) in ends.iter().enumerate() {
            assert!(start.is_multiple_of(4096) && end.is_multiple_of(4096));
            assert!(ends[n + 1..].iter().all(|(from, to)| to <= start || from >= end), "{ends:x?}");
        }
        let second = parts[1].base();
        parts[1].span(0, ByteLen(4096)).unwrap().fill(0, 4096, 7).unwrap();
        let mut parts = parts;
        parts.remove(1);
        let again = rings.allocate(ByteLen(4096)).unwrap();
        assert_eq!(again.base(), second, "the gap is filled");
        let mut bytes = [1; 4096];
        again.span(0, ByteLen(4096)).unwrap().read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4096], "and is zero");
        drop((parts, again));
        assert_eq!(rings.pages().len(), 0, "an empty page goes back");
    }

    #[test]
    fn no_part_crosses_a_huge_page_and_the_pool_has_a_limit() {
        let rings = rings();
        let large: Vec<DmaRegion> = (0..PAGES_MAX).map(|_| rings.allocate(ByteLen(HUGE_BYTES)).unwrap()).collect();
        assert!(large.iter().all(|part| part.base().raw().is_multiple_of(HUGE_BYTES)));
        let full = rings.allocate(ByteLen(1)).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::ResourceLimit);
        // What is longer is no part of the pool.
        assert_eq!(rings.allocate(ByteLen(HUGE_BYTES + 1)).unwrap().len(), ByteLen(HUGE_BYTES + 4096));
        drop(large);
        rings.allocate(ByteLen(1)).unwrap();
    }

    #[test]
    fn a_forked_child_gives_nothing_back() {
        let rings = rings();
        let mut part = Some(rings.allocate(ByteLen(4096)).unwrap());
        let lock = rings.pages();
        assert!(crate::fake::in_child(|| {
            part = None;
            true
        }));
        drop(lock);
        assert_eq!(rings.pages()[0].room.entries(), 1);
    }
}
