//! Page-aligned anonymous mappings, with huge pages where the kernel has some, and a note where it has not.
// UNSAFETY: mmap, munmap and madvise are foreign calls; this file is the only place that makes host memory.
#![expect(unsafe_code, reason = "memory mapping system calls")]

use core::fmt;

use crate::addr::{ByteLen, HostVa, PAGE_BYTES, align_up};

/// Size of a huge page on x86-64 and on aarch64 with 4 KiB pages, in bytes.
const HUGE_BYTES: u64 = 2 << 20;

/// What the caller wants of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Base pages. Peak memory is exactly what is touched.
    Never,
    /// Transparent huge pages by `madvise`; refused or absent ones are told in [`PageBacking`], not an error.
    #[default]
    Advise,
    /// Pages from the reserved pool (`vm.nr_hugepages`), or an error.
    Reserved,
}

/// When pages get their frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Populate {
    /// At the first touch.
    #[default]
    Lazy,
    /// Before [`HostMapping::map`] returns, so that the data path takes no page faults.
    Now,
}

/// What a mapping is made of, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageBacking {
    /// 4 KiB pages, as asked.
    Base,
    /// 4 KiB pages although huge pages were wanted; the number is the errno of the refusal, 0 if the mapping is
    /// smaller than one huge page.
    BaseInstead(i32),
    /// The kernel accepted the advice; how many huge pages it found is its business at each fault.
    HugeAdvised,
    /// Pages of the reserved pool.
    HugeReserved,
}

impl fmt::Display for PageBacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("4 KiB pages"),
            Self::BaseInstead(0) => f.write_str("4 KiB pages (smaller than a huge page)"),
            Self::BaseInstead(errno) => write!(f, "4 KiB pages (huge pages refused, errno {errno})"),
            Self::HugeAdvised => f.write_str("transparent huge pages (advised)"),
            Self::HugeReserved => f.write_str("reserved huge pages"),
        }
    }
}

/// Why memory could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// A length of zero, or one that does not fit the address space with its alignment.
    #[error("cannot map {0:?}: length is zero or too large for the address space")]
    BadLength(ByteLen),
    /// An alignment that is not a power of two.
    #[error("cannot map memory aligned to {0} bytes: not a power of two")]
    BadAlignment(u64),
    /// The kernel refused.
    #[error("cannot map {len:?} (errno {errno}); free memory, lower the budget or raise the address-space limit")]
    Refused {
        /// Bytes asked for, with the slack that alignment needs.
        len: ByteLen,
        /// As the kernel returned it.
        errno: i32,
    },
    /// The pool of reserved huge pages has too few.
    #[error("no {len:?} of reserved huge pages (errno {errno}); raise vm.nr_hugepages or do not ask for them")]
    NoReservedPages {
        /// Bytes asked for.
        len: ByteLen,
        /// As the kernel returned it.
        errno: i32,
    },
}

/// An anonymous private mapping, unmapped on drop.
///
/// The memory is zero at first. It is not given a name, a file or a lock; registering it with a transport pins it.
pub struct HostMapping {
    base: HostVa,
    len: ByteLen,
    /// What `munmap` gets: the mapping with the slack that alignment cost.
    raw: (HostVa, ByteLen),
    backing: PageBacking,
}

impl HostMapping {
    /// Maps `len` bytes (rounded up to whole pages, huge ones where they are advised) at a multiple of `align` bytes.
    ///
    /// `align` is a power of two; values below the page size mean the page size. *Blocking*: as long as the kernel
    /// takes, with [`Populate::Now`] about 0.1 to 0.3 s a GiB.
    ///
    /// # Errors
    /// [`MapError`]; nothing is mapped then.
    pub fn map(len: ByteLen, align: u64, huge: HugePages, populate: Populate) -> Result<Self, MapError> {
        if !align.is_power_of_two() {
            return Err(MapError::BadAlignment(align));
        }
        let reserved = huge == HugePages::Reserved;
        let wants_huge = huge != HugePages::Never && (reserved || len.0 >= HUGE_BYTES);
        // A last part smaller than a huge page would fall to base pages: about 500 faults for 2 MiB of address space.
        let page = if wants_huge { HUGE_BYTES } else { PAGE_BYTES };
        let align = align.max(page);
        let whole = align_up(len.0, page).filter(|whole| *whole > 0).ok_or(MapError::BadLength(len))?;
        // The kernel aligns to its page; more is had by mapping more and starting inside.
        let slack = align - if reserved { HUGE_BYTES } else { PAGE_BYTES };
        let total = whole.checked_add(slack).map(ByteLen).ok_or(MapError::BadLength(len))?;
        let raw_base = sys::map(total, huge).map_err(|errno| match reserved {
            true => MapError::NoReservedPages { len: total, errno },
            false => MapError::Refused { len: total, errno },
        })?;
        let base = align_up(raw_base.raw(), align).map(HostVa::new).ok_or(MapError::BadLength(len))?;
        let mut mapping = Self { base, len: ByteLen(whole), raw: (raw_base, total), backing: PageBacking::Base };
        mapping.backing = match huge {
            HugePages::Never => PageBacking::Base,
            HugePages::Reserved => PageBacking::HugeReserved,
            HugePages::Advise if !wants_huge => PageBacking::BaseInstead(0),
            HugePages::Advise => match sys::advise(base, mapping.len, sys::Advice::Huge) {
                Ok(()) => PageBacking::HugeAdvised,
                Err(errno) => PageBacking::BaseInstead(errno),
            },
        };
        if populate == Populate::Now {
            // A kernel before 5.14 has no such advice: pages then come at the first touch, which is slower, not wrong.
            let _ = sys::advise(base, mapping.len, sys::Advice::PopulateWrite);
        }
        Ok(mapping)
    }

    /// Gives frames to `len` bytes from `at` now, so that a later read into them takes no page fault.
    ///
    /// # Errors
    /// The errno: `EINVAL` on a kernel before 5.14 or past the mapping, `ENOMEM` when there is none left.
    pub fn populate(&self, at: u64, len: ByteLen) -> Result<(), i32> {
        let end = at.checked_add(len.0).filter(|end| *end <= self.len.0).ok_or(libc::EINVAL)?;
        let start = crate::align_down(at, PAGE_BYTES);
        let base = self.base.checked_add(ByteLen(start)).ok_or(libc::EINVAL)?;
        sys::advise(base, ByteLen(end - start), sys::Advice::PopulateWrite)
    }

    /// First byte.
    pub fn base(&self) -> HostVa {
        self.base
    }

    /// Usable bytes: the length asked for, rounded up to whole pages.
    pub fn len(&self) -> ByteLen {
        self.len
    }

    /// Never true: an empty mapping cannot be made.
    pub fn is_empty(&self) -> bool {
        self.len.0 == 0
    }

    /// What it is made of.
    pub fn backing(&self) -> PageBacking {
        self.backing
    }
}

impl Drop for HostMapping {
    fn drop(&mut self) {
        sys::unmap(self.raw.0, self.raw.1);
    }
}

impl fmt::Debug for HostMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMapping({:?}, {:?}, {})", self.base, self.len, self.backing)
    }
}

#[cfg(not(miri))]
mod sys {
    use super::{ByteLen, HostVa, HugePages};
    use crate::index;

    pub(super) enum Advice {
        Huge,
        PopulateWrite,
    }

    fn errno() -> i32 {
        std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
    }

    pub(super) fn map(len: ByteLen, huge: HugePages) -> Result<HostVa, i32> {
        let kind = if huge == HugePages::Reserved { libc::MAP_HUGETLB } else { libc::MAP_NORESERVE };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | kind;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe {
            libc::mmap(core::ptr::null_mut(), index(len.0), libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if at == libc::MAP_FAILED { Err(errno()) } else { Ok(HostVa::new(at.expose_provenance() as u64)) }
    }

    pub(super) fn advise(base: HostVa, len: ByteLen, advice: Advice) -> Result<(), i32> {
        let advice = match advice {
            Advice::Huge => libc::MADV_HUGEPAGE,
            Advice::PopulateWrite => libc::MADV_POPULATE_WRITE,
        };
        let at = core::ptr::with_exposed_provenance_mut(index(base.raw()));
        // SAFETY: neither advice changes contents; the range is inside a mapping that the caller owns.
        let rc = unsafe { libc::madvise(at, index(len.0), advice) };
        if rc == 0 { Ok(()) } else { Err(errno()) }
    }

    pub(super) fn unmap(base: HostVa, len: ByteLen) {
        let at = core::ptr::with_exposed_provenance_mut(index(base.raw()));
        // SAFETY: the range is exactly what `map` returned, and its owner is being dropped, so nobody uses it any more.
        let rc = unsafe { libc::munmap(at, index(len.0)) };
        debug_assert_eq!(rc, 0, "munmap of our own mapping failed");
    }
}

/// Under Miri there is no `madvise`; the allocator stands in for the kernel so that everything above it is checked.
#[cfg(miri)]
mod sys {
    use super::{ByteLen, HostVa, HugePages, PAGE_BYTES};
    use crate::index;
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    pub(super) enum Advice {
        Huge,
        PopulateWrite,
    }

    fn layout(len: ByteLen) -> Option<Layout> {
        Layout::from_size_align(index(len.0), index(PAGE_BYTES)).ok()
    }

    pub(super) fn map(len: ByteLen, huge: HugePages) -> Result<HostVa, i32> {
        let layout = layout(len).filter(|_| huge != HugePages::Reserved).ok_or(libc::ENOMEM)?;
        // SAFETY: the layout has a size above zero, as `HostMapping::map` checked.
        let at = unsafe { alloc_zeroed(layout) };
        Ok(HostVa::new(at.expose_provenance() as u64))
    }

    pub(super) fn advise(_base: HostVa, _len: ByteLen, _advice: Advice) -> Result<(), i32> {
        Err(libc::EINVAL)
    }

    pub(super) fn unmap(base: HostVa, len: ByteLen) {
        let Some(layout) = layout(len) else { return };
        let at = core::ptr::with_exposed_provenance_mut(index(base.raw()));
        // SAFETY: base and layout are those of `map`.
        unsafe { dealloc(at, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_aligned_and_rounded_to_pages() {
        let mapping = HostMapping::map(ByteLen(5000), 1 << 16, HugePages::Never, Populate::Lazy).unwrap();
        assert!(mapping.base().is_aligned_to(1 << 16));
        assert_eq!(mapping.len(), ByteLen(8192));
        assert_eq!(mapping.backing(), PageBacking::Base);
    }

    #[test]
    fn a_small_mapping_says_that_it_has_no_huge_pages() {
        let mapping = HostMapping::map(ByteLen(4096), 1, HugePages::Advise, Populate::Now).unwrap();
        assert_eq!(mapping.backing(), PageBacking::BaseInstead(0));
    }

    #[test]
    fn impossible_requests_are_refused() {
        let map = |len, align| HostMapping::map(ByteLen(len), align, HugePages::Never, Populate::Lazy).unwrap_err();
        assert_eq!(map(0, 1), MapError::BadLength(ByteLen(0)));
        assert_eq!(map(u64::MAX, 1), MapError::BadLength(ByteLen(u64::MAX)));
        assert_eq!(map(1, 3), MapError::BadAlignment(3));
    }

    #[test]
    #[cfg_attr(miri, ignore = "asks the kernel for more than there is")]
    fn more_than_the_address_space_is_an_error_with_errno() {
        let refused = HostMapping::map(ByteLen(1 << 52), 1, HugePages::Never, Populate::Lazy).unwrap_err();
        assert!(matches!(refused, MapError::Refused { errno: libc::ENOMEM, .. }), "{refused}");
    }

    #[test]
    fn populate_past_the_end_is_refused() {
        let mapping = HostMapping::map(ByteLen(4096), 1, HugePages::Never, Populate::Lazy).unwrap();
        assert_eq!(mapping.populate(1, ByteLen(4096)), Err(libc::EINVAL));
    }
}
