//! A BAR, mapped.
// UNSAFETY: tells the register type of sw-mem that the range is mapped.
#![expect(unsafe_code, reason = "the contract of Mmio::new")]

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use sw_mem::{Mmio, align_down};

use crate::{bus_error::Guarded, caps::Region, presence::Presence, sys};

/// What keeps the function open while its BAR is mapped.
pub(crate) type Keep = Arc<dyn core::any::Any + Send + Sync>;

/// A mapped BAR. Parts that may not be mapped (an MSI-X table on an old kernel) are holes: private zero pages.
pub(crate) struct BarMap {
    // In this order: no bus error is looked for once the range is unmapped, and the function is closed last.
    _guard: Guarded,
    range: Arc<sys::map::Reserved>,
    len: u64,
    hole: Option<(u64, u64)>,
    _keep: Keep,
}

impl BarMap {
    /// Maps `region` of the file `device`. Accesses that the kernel answers with a bus error mark `presence`.
    ///
    /// # Errors
    /// An errno; `EOPNOTSUPP` for a region that cannot be mapped.
    pub(crate) fn new(
        device: BorrowedFd<'_>,
        region: &Region,
        presence: &Arc<Presence>,
        keep: Keep,
    ) -> Result<Arc<Self>, i32> {
        let page = sys::page_bytes();
        if region.flags & sys::vfio::REGION_MMAP == 0 || region.len == 0 {
            return Err(libc::EOPNOTSUPP);
        }
        let whole = region.len.checked_next_multiple_of(page).ok_or(libc::EINVAL)?;
        let range = Arc::new(sys::map::Reserved::new(whole)?);
        let areas = region.areas.clone().unwrap_or_else(|| vec![(0, whole)]);
        let in_pages = areas.into_iter().map(|(at, len)| (at, align_down(len, page)));
        let areas: Vec<_> = in_pages.filter(|(at, len)| at.is_multiple_of(page) && *len > 0).collect();
        for (at, len) in &areas {
            let offset = region.offset.checked_add(*at).ok_or(libc::EINVAL)?;
            range.put(*at, device.as_fd(), offset, *len)?;
        }
        let hole = first_hole(areas, region.len);
        let guard = Guarded::new(range.base(), whole, Arc::clone(presence))?;
        presence.tell_bar(&range);
        Ok(Arc::new(Self { _guard: guard, range, len: region.len, hole, _keep: keep }))
    }

    /// First byte in the process.
    pub(crate) fn base(&self) -> *mut u8 {
        self.range.base()
    }

    /// Bytes of the BAR.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Shows the bytes of `fd` from `offset` at page `at`, too.
    #[cfg(test)]
    pub(crate) fn alias(&self, fd: BorrowedFd<'_>, at: u64, offset: u64) {
        self.range.put(at, fd, offset, sys::page_bytes()).unwrap();
    }

    /// The first part that is not the device's but private memory of this process: its first byte and the one behind it.
    pub(crate) fn hole(&self) -> Option<(u64, u64)> {
        self.hole
    }
}

impl BarMap {
    /// Its registers; they keep it mapped.
    pub(crate) fn mmio(self: &Arc<Self>) -> Mmio {
        // SAFETY: the range stays mapped readable and writable while the owner, this mapping, lives; it begins at a page,
        // and its holes are ordinary memory.
        unsafe { Mmio::new(self.base(), self.len, Arc::clone(self) as _) }
    }
}

/// The first part of `len` bytes that no area (offset and length) covers.
fn first_hole(mut areas: Vec<(u64, u64)>, len: u64) -> Option<(u64, u64)> {
    areas.sort_unstable();
    let mut covered = 0;
    for (at, bytes) in areas {
        if at > covered {
            return Some((covered, at.min(len)));
        }
        covered = covered.max(at.saturating_add(bytes));
    }
    (covered < len).then_some((covered, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_part_that_is_not_the_devices_is_found() {
        for (areas, hole) in [
            (vec![(0, 100)], None),
            (vec![(0, 200)], None),
            (vec![(40, 60), (0, 50)], None),
            (vec![(0, 40), (50, 50)], Some((40, 50))),
            (vec![(10, 90)], Some((0, 10))),
            (vec![(0, 90)], Some((90, 100))),
            (vec![], Some((0, 100))),
        ] {
            assert_eq!(first_hole(areas.clone(), 100), hole, "{areas:?}");
        }
    }
}
