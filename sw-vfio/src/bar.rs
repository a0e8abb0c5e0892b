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
    range: sys::map::Reserved,
    len: u64,
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
        let range = sys::map::Reserved::new(whole)?;
        let all = [(0, whole)];
        for (at, len) in region.areas.as_deref().unwrap_or(&all) {
            let (at, len) = (*at, align_down(*len, page));
            if at.is_multiple_of(page) && len > 0 {
                let offset = region.offset.checked_add(at).ok_or(libc::EINVAL)?;
                range.put(at, device.as_fd(), offset, len)?;
            }
        }
        let guard = Guarded::new(range.base(), whole, Arc::clone(presence))?;
        Ok(Arc::new(Self { _guard: guard, range, len: region.len, _keep: keep }))
    }

    /// First byte in the process.
    pub(crate) fn base(&self) -> *mut u8 {
        self.range.base()
    }

    /// Bytes of the BAR.
    pub(crate) fn len(&self) -> u64 {
        self.len
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
