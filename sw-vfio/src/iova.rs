//! Addresses that a device may use: which are free, which are taken. Pure.
//!
//! First fit from below, so that the tables of the IOMMU stay few. Large mappings get an address that is congruent to the
//! memory's own, so that the IOMMU can use its large pages. Address 0 is never given out: too many devices and drivers
//! take it for "none".

use std::collections::BTreeMap;

/// Mappings of this size and more are placed congruent to their memory modulo this size, if there is room: the second page
/// size of every IOMMU that has one (x86-64, aarch64 with 4 KiB pages).
const LARGE_BYTES: u64 = 2 << 20;
/// As [`LARGE_BYTES`], for the third page size.
const HUGE_BYTES: u64 = 1 << 30;

/// A range of addresses, both ends inclusive, so that the last address there is can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Window {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// Why no address was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IovaError {
    /// Not a whole, positive number of pages.
    BadLength,
    /// As many mappings as the IOMMU allows exist.
    NoEntries,
    /// No gap is large enough.
    NoSpace,
}

/// The free and the taken addresses of one space.
#[derive(Debug)]
pub(crate) struct IovaAllocator {
    /// Bytes of a page: both ends of every mapping are multiples.
    unit: u64,
    entries_max: usize,
    /// First to last, disjoint, never touching each other.
    free: BTreeMap<u64, u64>,
    /// First to last.
    taken: BTreeMap<u64, u64>,
}

impl IovaAllocator {
    /// Everything in `usable` but address 0 and what is in `reserved`; pages of `unit` bytes (a power of two), and at most
    /// `entries_max` mappings.
    pub(crate) fn new(usable: &[Window], reserved: &[Window], unit: u64, entries_max: usize) -> Self {
        debug_assert!(unit.is_power_of_two(), "a page of {unit} bytes");
        let mut made = Self { unit, entries_max, free: BTreeMap::new(), taken: BTreeMap::new() };
        made.restrict(usable, reserved);
        made
    }

    /// Bytes of a page.
    pub(crate) fn unit(&self) -> u64 {
        self.unit
    }

    /// Mappings that exist.
    pub(crate) fn entries(&self) -> usize {
        self.taken.len()
    }

    /// Mappings that may exist.
    pub(crate) fn entries_max(&self) -> usize {
        self.entries_max
    }

    /// Bytes that are mapped.
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.taken.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Takes over what may be used from now on; what is taken stays taken until it is freed.
    pub(crate) fn restrict(&mut self, usable: &[Window], reserved: &[Window]) {
        self.free.clear();
        for window in usable {
            // Inwards to whole pages, and past page 0.
            let first = window.first.max(1).checked_next_multiple_of(self.unit);
            let last = match window.last.checked_add(1) {
                Some(end) => (end & !(self.unit - 1)).checked_sub(1),
                None => Some(u64::MAX),
            };
            if let (Some(first), Some(last)) = (first, last)
                && first < last
            {
                self.give(first, last);
            }
        }
        for window in reserved {
            self.carve(window.first & !(self.unit - 1), window.last | (self.unit - 1));
        }
        let taken: Vec<_> = self.taken.iter().map(|(first, last)| (*first, *last)).collect();
        taken.into_iter().for_each(|(first, last)| self.carve(first, last));
    }

    /// An address for `len` bytes of memory at `memory` (both whole pages).
    pub(crate) fn take(&mut self, len: u64, memory: u64) -> Result<u64, IovaError> {
        if len == 0 || !len.is_multiple_of(self.unit) {
            return Err(IovaError::BadLength);
        }
        if self.taken.len() >= self.entries_max {
            return Err(IovaError::NoEntries);
        }
        let steps = [HUGE_BYTES, LARGE_BYTES].into_iter().filter(|step| len >= *step && *step > self.unit);
        let first = steps
            .map(|step| (step, memory & (step - 1) & !(self.unit - 1)))
            .chain([(self.unit, 0)])
            .find_map(|(step, phase)| self.first_fit(len, step, phase))
            .ok_or(IovaError::NoSpace)?;
        self.carve(first, first + (len - 1));
        self.taken.insert(first, first + (len - 1));
        Ok(first)
    }

    /// The lowest free address that is `phase` past a multiple of `step` and has `len` free bytes behind it.
    fn first_fit(&self, len: u64, step: u64, phase: u64) -> Option<u64> {
        self.free.iter().find_map(|(first, last)| {
            let short = phase.wrapping_sub(*first) & (step - 1);
            let at = first.checked_add(short)?;
            at.checked_add(len - 1).filter(|end| end <= last).map(|_| at)
        })
    }

    /// Gives an address back, and says how many bytes were mapped there; `None` if it is not the start of a mapping.
    pub(crate) fn free(&mut self, first: u64) -> Option<u64> {
        let last = self.taken.remove(&first)?;
        self.give(first, last);
        Some(last - first + 1)
    }

    /// Adds a range to the free ones, joined with its neighbours.
    fn give(&mut self, mut first: u64, mut last: u64) {
        while let Some((&other, &end)) = self.free.range(..=last.saturating_add(1)).next_back()
            && (end >= first || end.checked_add(1) == Some(first))
        {
            self.free.remove(&other);
            (first, last) = (first.min(other), last.max(end));
        }
        self.free.insert(first, last);
    }

    /// Takes a range out of the free ones.
    fn carve(&mut self, first: u64, last: u64) {
        while let Some((&other, &end)) = self.free.range(..=last).next_back()
            && end >= first
        {
            self.free.remove(&other);
            if other < first {
                self.free.insert(other, first - 1);
            }
            if end > last {
                self.free.insert(last + 1, end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;

    fn window(first: u64, last: u64) -> Window {
        Window { first, last }
    }

    #[test]
    fn zero_and_reserved_windows_are_never_given_out() {
        let msi = window(0x4000, 0x4FFF);
        let mut space = IovaAllocator::new(&[window(0, 0x7FFF)], &[msi], PAGE, 100);
        assert_eq!(space.take(2 * PAGE, 0), Ok(0x1000));
        assert_eq!(space.take(2 * PAGE, 0), Ok(0x5000));
        assert_eq!(space.take(PAGE, 0), Ok(0x3000));
        assert_eq!(space.take(PAGE, 0), Ok(0x7000));
        assert_eq!(space.take(PAGE, 0), Err(IovaError::NoSpace));
    }

    #[test]
    fn freed_neighbours_become_one() {
        let mut space = IovaAllocator::new(&[window(0, 0x4FFF)], &[], PAGE, 100);
        let taken: Vec<_> = (0..4).map(|_| space.take(PAGE, 0).unwrap()).collect();
        assert_eq!(space.take(PAGE, 0), Err(IovaError::NoSpace));
        for at in [taken[1], taken[3], taken[2]] {
            assert_eq!(space.free(at), Some(PAGE));
        }
        assert_eq!(space.take(3 * PAGE, 0), Ok(0x2000));
        assert_eq!(space.free(0x3000), None, "the middle of a mapping is no mapping");
    }

    #[test]
    fn large_mappings_are_congruent_to_their_memory() {
        let mut space = IovaAllocator::new(&[window(0, u64::MAX)], &[], PAGE, 100);
        space.take(PAGE, 0).unwrap();
        let memory = 0x7F12_3456_7000;
        assert_eq!(space.take(4 << 20, memory), Ok(memory & 0x1F_F000));
        assert_eq!(space.take(1 << 30, 3 << 30), Ok(1 << 30));
    }

    #[test]
    fn the_last_address_there_is_can_be_used() {
        let mut space = IovaAllocator::new(&[window(u64::MAX - 0x1FFF, u64::MAX)], &[], PAGE, 100);
        let at = space.take(2 * PAGE, 0).unwrap();
        assert_eq!(at, u64::MAX - 0x1FFF);
        assert_eq!((space.free(at), space.take(PAGE, 0)), (Some(2 * PAGE), Ok(at)));
    }

    #[test]
    fn limits_are_told_apart() {
        let mut space = IovaAllocator::new(&[window(0, 0xFFFF_FFFF)], &[], PAGE, 1);
        assert_eq!(space.take(1, 0), Err(IovaError::BadLength));
        assert_eq!(space.take(0, 0), Err(IovaError::BadLength));
        assert_eq!(space.take(8 << 30, 0), Err(IovaError::NoSpace));
        space.take(PAGE, 0).unwrap();
        assert_eq!(space.take(PAGE, 0), Err(IovaError::NoEntries));
    }

    #[test]
    fn a_smaller_window_keeps_what_is_taken() {
        let mut space = IovaAllocator::new(&[window(0, 0xFFFF)], &[], PAGE, 100);
        let low = space.take(PAGE, 0).unwrap();
        space.restrict(&[window(0, 0x2FFF)], &[]);
        assert_eq!(space.take(PAGE, 0), Ok(0x2000));
        assert_eq!(space.take(PAGE, 0), Err(IovaError::NoSpace));
        assert_eq!((space.free(low), space.entries(), space.taken_bytes()), (Some(PAGE), 1, PAGE));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Take { pages: u64, memory: u64 },
        Free(usize),
        Restrict,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let take = (1u64..700, any::<u64>()).prop_map(|(pages, memory)| Act::Take { pages, memory: memory & !4095 });
        let act = prop_oneof![4 => take, 3 => any::<usize>().prop_map(Act::Free), 1 => Just(Act::Restrict)];
        proptest::collection::vec(act, 1..80)
    }

    proptest! {
        /// Against a naive twin: a byte map of pages.
        #[test]
        fn addresses_are_disjoint_usable_and_all_come_back(acts in acts(), unit_shift in 12u32..17) {
            let unit = 1u64 << unit_shift;
            let usable = [window(0, (2000 * unit) - 1), window(3000 * unit + 5, 5000 * unit + 77)];
            let reserved = [window(100 * unit + 3, 120 * unit), window(3500 * unit, 3500 * unit)];
            let mut space = IovaAllocator::new(&usable, &reserved, unit, 40);
            let free_pages = |page: u64| {
                (1..100).contains(&page) || (121..2000).contains(&page)
                    || (3001..3500).contains(&page) || (3501..5000).contains(&page)
            };
            let mut owned: Vec<(u64, u64)> = Vec::new();
            for act in acts {
                match act {
                    Act::Take { pages, memory } => match space.take(pages * unit, memory & !(unit - 1)) {
                        Ok(at) => {
                            prop_assert!(at.is_multiple_of(unit));
                            for page in at / unit..at / unit + pages {
                                prop_assert!(free_pages(page), "page {page}");
                                prop_assert!(!owned.iter().any(|(other, len)| (*other..other + len).contains(&page)));
                            }
                            owned.push((at / unit, pages));
                        }
                        Err(IovaError::NoEntries) => prop_assert_eq!(owned.len(), 40),
                        Err(IovaError::NoSpace) => {
                            let busy = |page: &u64| owned.iter().any(|(at, len)| (*at..at + len).contains(page));
                            let mut run = 0;
                            for page in 1..5000u64 {
                                run = if free_pages(page) && !busy(&page) { run + 1 } else { 0 };
                                prop_assert!(run < pages, "there was room at page {page}");
                            }
                        }
                        Err(IovaError::BadLength) => prop_assert!(false, "whole pages were asked for"),
                    },
                    Act::Free(n) if !owned.is_empty() => {
                        let (at, pages) = owned.swap_remove(n % owned.len());
                        prop_assert_eq!(space.free(at * unit), Some(pages * unit));
                    }
                    Act::Free(_) => prop_assert_eq!(space.free(unit), None),
                    Act::Restrict => space.restrict(&usable, &reserved),
                }
                prop_assert_eq!(space.entries(), owned.len());
                prop_assert_eq!(space.taken_bytes(), owned.iter().map(|(_, pages)| pages * unit).sum::<u64>());
            }
            owned.iter().for_each(|(at, _)| { space.free(at * unit); });
            prop_assert_eq!(space.free.len(), 4, "everything joined again: {:?}", space.free);
        }
    }
}
