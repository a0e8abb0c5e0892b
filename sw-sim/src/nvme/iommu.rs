//! The translation between a controller and memory.
//!
//! As VFIO type 1 behaves: a limited number of entries; an entry is unmapped as it was mapped or not at all (`EINVAL`); an
//! access outside every entry is recorded and moves nothing (`field/dpu-rdma-nvmeof.md` 4.4). Addresses are given out in
//! one of two ways ([`Addresses`]): never twice, so that whoever uses an old one hits nothing, or the lowest free one, as
//! the allocator of `sw-vfio` does, so that whoever uses an old one hits what is there now.

use std::collections::BTreeMap;

use sw_mem::RegionId;

use super::params::Addresses;

/// Bytes of a page of the IOMMU.
pub(crate) const PAGE: u64 = 4096;
/// The window of message-signalled interrupts on x86: no mapping may lie there.
const RESERVED: (u64, u64) = (0xFEE0_0000, 0x10_0000);

/// What is behind an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// Memory of rings, by its name.
    Queue(u64),
    /// A region; the entry's first byte is this many bytes before the region's first one (it begins inside a page).
    Region {
        /// Whose.
        region: RegionId,
        /// Bytes of the first page that are not the region's.
        before: u64,
        /// Bytes of the region.
        len: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    len: u64,
    behind: Behind,
}

/// A piece of memory that an access reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Memory of rings: name, offset, length.
    Queue(u64, u64, u64),
    /// A region: offset and length in it.
    Region(RegionId, u64, u64),
}

/// Why an address is not translated, or a mapping not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No more entries.
    Full,
    /// Not as it was mapped.
    Partial,
    /// The first address that is not mapped.
    Unmapped(u64),
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Iommu {
    entries: BTreeMap<u64, Entry>,
    /// Entries that are gone and still translate until a time, where no entry is now.
    stale: Vec<(u64, Entry, u64)>,
    addresses: Addresses,
    /// The lowest address to give out.
    first: u64,
    /// The end of the highest entry so far, and a page.
    next: u64,
    entries_max: usize,
    /// How long a removed entry goes on to translate.
    stale_ns: u64,
    /// Accesses to nothing so far.
    pub(crate) faults: u64,
    /// Addresses that were given out again so far.
    pub(crate) reused: u64,
    /// Accesses through entries that were gone so far.
    pub(crate) stale_hits: u64,
}

impl Iommu {
    pub(crate) fn new(first: u64, entries_max: usize, stale_ns: u64, addresses: Addresses) -> Self {
        let first = first.next_multiple_of(PAGE).max(PAGE);
        let (entries, stale) = (BTreeMap::new(), Vec::new());
        let (faults, reused, stale_hits) = (0, 0, 0);
        Self { entries, stale, addresses, first, next: first, entries_max, stale_ns, faults, reused, stale_hits }
    }

    /// Maps `len` bytes, a multiple of the page, and gives the address.
    pub(crate) fn map(&mut self, behind: Behind, len: u64) -> Result<u64, Refused> {
        if self.entries.len() >= self.entries_max {
            return Err(Refused::Full);
        }
        let len = len.next_multiple_of(PAGE);
        let at = match self.addresses {
            Addresses::Fresh => past_reserved(self.next, len),
            Addresses::LowestFree => self.lowest_free(len),
        };
        self.reused += u64::from(at < self.next);
        // A page between two entries is never mapped: an access that runs on hits nothing.
        self.next = self.next.max(at + len + PAGE);
        self.entries.insert(at, Entry { len, behind });
        Ok(at)
    }

    /// The lowest address with `len` bytes and a page behind it that no entry has.
    fn lowest_free(&self, len: u64) -> u64 {
        self.entries.iter().fold(past_reserved(self.first, len), |at, (start, entry)| {
            if at + len + PAGE <= *start { at } else { at.max(past_reserved(start + entry.len + PAGE, len)) }
        })
    }

    /// Removes the entry at `at` of exactly `len` bytes (rounded up to pages).
    pub(crate) fn unmap(&mut self, now: u64, at: u64, len: u64) -> Result<(), Refused> {
        match self.entries.get(&at) {
            Some(entry) if entry.len == len.next_multiple_of(PAGE) => {}
            _ => return Err(Refused::Partial),
        }
        let entry = self.entries.remove(&at);
        self.stale.retain(|(_, _, until)| *until > now);
        if let Some(entry) = entry.filter(|_| self.stale_ns > 0) {
            self.stale.push((at, entry, now + self.stale_ns));
        }
        Ok(())
    }

    /// Removes whatever is at `at`.
    pub(crate) fn forget(&mut self, now: u64, at: u64) {
        if let Some(len) = self.entries.get(&at).map(|entry| entry.len) {
            // As it was mapped, so it is not refused.
            let _ = self.unmap(now, at, len);
        }
    }

    /// Entries that there are.
    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }

    /// What an access of `len` bytes at `at` reaches, in order.
    pub(crate) fn translate(&mut self, now: u64, at: u64, len: u64) -> Result<Vec<Reached>, Refused> {
        let mut found = Vec::new();
        let (mut at, end) = (at, at.checked_add(len).ok_or(Refused::Unmapped(at))?);
        while at < end {
            let entry = self.entry_at(now, at);
            let Some((start, entry)) = entry else {
                self.faults += 1;
                return Err(Refused::Unmapped(at));
            };
            let here = (start + entry.len).min(end) - at;
            let offset = at - start;
            match entry.behind {
                Behind::Queue(name) => found.push(Reached::Queue(name, offset, here)),
                Behind::Region { region, before, len } => {
                    // Bytes of the first and last page that are not the region's are memory of others all the same.
                    if offset < before || offset + here > before + len {
                        self.faults += 1;
                        return Err(Refused::Unmapped(at));
                    }
                    found.push(Reached::Region(region, offset - before, here));
                }
            }
            at += here;
        }
        Ok(found)
    }

    fn entry_at(&mut self, now: u64, at: u64) -> Option<(u64, Entry)> {
        let covers = |start: u64, entry: &Entry| start <= at && at - start < entry.len;
        let live = self.entries.range(..=at).next_back().filter(|(start, entry)| covers(**start, entry));
        if let Some((start, entry)) = live {
            return Some((*start, *entry));
        }
        let old = self.stale.iter().find(|(start, entry, until)| *until > now && covers(*start, entry));
        self.stale_hits += u64::from(old.is_some());
        old.map(|(start, entry, _)| (*start, *entry))
    }
}

/// `at`, or the end of the reserved range if `len` bytes there would reach into it.
fn past_reserved(at: u64, len: u64) -> u64 {
    let end = RESERVED.0 + RESERVED.1;
    if at < end && at + len > RESERVED.0 { end } else { at }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_translates_and_nothing_beside_it() {
        let mut iommu = Iommu::new(0x10_0000, 2, 0, Addresses::Fresh);
        let first = iommu.map(Behind::Queue(3), 8192).unwrap();
        let region = Behind::Region { region: RegionId(9), before: 512, len: 5000 };
        let second = iommu.map(region, 8192).unwrap();
        assert_eq!(iommu.map(Behind::Queue(4), 4096), Err(Refused::Full));
        assert_eq!(iommu.translate(0, first + 4000, 200), Ok(vec![Reached::Queue(3, 4000, 200)]));
        assert_eq!(iommu.translate(0, second + 512, 5000), Ok(vec![Reached::Region(RegionId(9), 0, 5000)]));
        for (at, len) in [(first + 8192, 1), (first - 1, 1), (second + 511, 1), (second + 5512, 1), (u64::MAX, 2)] {
            assert!(matches!(iommu.translate(0, at, len), Err(Refused::Unmapped(_))), "{at:#x}");
        }
        assert_eq!(iommu.translate(0, first + 8000, 400), Err(Refused::Unmapped(first + 8192)));
        assert_eq!(iommu.faults, 5, "an address that wraps never reaches the IOMMU");
    }

    #[test]
    fn a_part_is_not_unmapped_and_an_address_is_not_used_again() {
        let mut iommu = Iommu::new(0, 8, 0, Addresses::Fresh);
        let at = iommu.map(Behind::Queue(0), 8192).unwrap();
        assert_eq!(iommu.unmap(0, at, 4096), Err(Refused::Partial));
        assert_eq!(iommu.unmap(0, at + 4096, 4096), Err(Refused::Partial));
        assert_eq!(iommu.unmap(0, at, 8192), Ok(()));
        assert_eq!(iommu.count(), 0);
        assert!(iommu.map(Behind::Queue(0), 4096).unwrap() > at + 8192);
        assert!(iommu.translate(0, at, 1).is_err());
    }

    #[test]
    fn no_entry_lies_in_the_interrupt_window() {
        for addresses in [Addresses::Fresh, Addresses::LowestFree] {
            let mut iommu = Iommu::new(RESERVED.0 - PAGE, 8, 0, addresses);
            let at = iommu.map(Behind::Queue(0), 2 * PAGE).unwrap();
            assert!(at >= RESERVED.0 + RESERVED.1);
        }
    }

    #[test]
    fn the_lowest_free_address_is_given_again_and_translates_to_what_is_there_now() {
        let mut iommu = Iommu::new(0, 8, 100, Addresses::LowestFree);
        let first = iommu.map(Behind::Queue(1), 2 * PAGE).unwrap();
        let second = iommu.map(Behind::Queue(2), PAGE).unwrap();
        assert_eq!((first, second), (PAGE, 4 * PAGE), "a page between them");
        iommu.forget(1000, first);
        // Too large for the gap and the page behind it, small enough, and no room left.
        assert_eq!(iommu.map(Behind::Queue(3), 3 * PAGE), Ok(6 * PAGE));
        assert_eq!((iommu.map(Behind::Queue(4), PAGE), iommu.reused), (Ok(first), 1));
        assert_eq!(iommu.translate(1001, first, 8), Ok(vec![Reached::Queue(4, 0, 8)]));
        assert_eq!(iommu.stale_hits, 0);
        assert_eq!(
            iommu.translate(1001, first + PAGE, 8),
            Ok(vec![Reached::Queue(1, PAGE, 8)]),
            "the old one's second page"
        );
        assert_eq!(iommu.stale_hits, 1);
        assert!(iommu.translate(1100, first + PAGE, 8).is_err());
    }

    #[test]
    fn a_stale_entry_translates_for_its_window() {
        let mut iommu = Iommu::new(0, 8, 100, Addresses::Fresh);
        let at = iommu.map(Behind::Queue(1), 4096).unwrap();
        iommu.forget(1000, at);
        assert!(iommu.translate(1099, at, 8).is_ok());
        assert!(iommu.translate(1100, at, 8).is_err());
    }
}
