//! Device registers that are mapped into the process, and single words of memory that a device writes.
// UNSAFETY: volatile accesses to a mapping whose owner this holds, each inside its checked length.
#![expect(unsafe_code, reason = "volatile loads and stores of mapped registers")]

use core::any::Any;
use std::sync::Arc;

use crate::addr::index;

/// A mapped range of device registers (a part of a BAR). Clones share it; it stays mapped while one lives.
///
/// An access outside the range, or one that is not aligned to its size, reads as all ones and writes nothing: that is what a
/// device that is gone answers too, and every driver checks for it.
#[derive(Clone)]
pub struct Mmio {
    base: *mut u8,
    len: u64,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: registers may be accessed from any thread; the order of accesses is the business of the driver, which has one
// thread per queue, and the mapping lives as long as the shared owner.
unsafe impl Send for Mmio {}
// SAFETY: as above; no Rust reference to the registers is ever made.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// Takes `len` bytes of registers mapped at `base`.
    ///
    /// # Safety
    /// While `owner` lives, `base..base+len` stays mapped readable and writable, and every aligned access to it of 4 or 8
    /// bytes is allowed; `base` is aligned to 8.
    pub unsafe fn new(base: *mut u8, len: u64, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { base, len, _owner: owner }
    }

    /// Bytes of the range.
    #[inline]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn at<T>(&self, at: u64) -> Option<*mut T> {
        let size = size_of::<T>() as u64;
        let inside = at.is_multiple_of(size) && at.checked_add(size).is_some_and(|end| end <= self.len);
        // `wrapping_add` stays inside the mapping because of the check.
        inside.then(|| self.base.wrapping_add(index(at)).cast())
    }

    /// Reads a 32-bit register.
    #[inline]
    pub fn read32(&self, at: u64) -> u32 {
        let Some(register) = self.at::<u32>(at) else { return u32::MAX };
        // SAFETY: inside the mapping and aligned, by `at`; the contract of `new` allows the access.
        u32::from_le(unsafe { register.read_volatile() })
    }

    /// Writes a 32-bit register.
    #[inline]
    pub fn write32(&self, at: u64, value: u32) {
        let Some(register) = self.at::<u32>(at) else { return };
        // SAFETY: as in `read32`.
        unsafe { register.write_volatile(value.to_le()) }
    }

    /// Reads a 64-bit register in one access.
    #[inline]
    pub fn read64(&self, at: u64) -> u64 {
        let Some(register) = self.at::<u64>(at) else { return u64::MAX };
        // SAFETY: as in `read32`.
        u64::from_le(unsafe { register.read_volatile() })
    }

    /// Writes a 64-bit register in one access.
    #[inline]
    pub fn write64(&self, at: u64, value: u64) {
        let Some(register) = self.at::<u64>(at) else { return };
        // SAFETY: as in `read32`.
        unsafe { register.write_volatile(value.to_le()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_stay_inside_and_aligned() {
        let mut words = vec![0u64; 4];
        let base = words.as_mut_ptr().cast();
        // SAFETY: the vector outlives `mmio`, and nobody else touches it meanwhile.
        let mmio = unsafe { Mmio::new(base, 32, Arc::new(())) };
        mmio.write32(4, 0x1122_3344);
        mmio.write64(24, 7);
        assert_eq!((mmio.read32(4), mmio.read64(0), mmio.read64(24)), (0x1122_3344, 0x1122_3344_0000_0000, 7));
        for outside in [32, 30, 33, u64::MAX - 3] {
            mmio.write32(outside, 1);
            assert_eq!(mmio.read32(outside), u32::MAX, "{outside}");
        }
        assert_eq!((mmio.read64(28), mmio.read64(4), mmio.read32(2)), (u64::MAX, u64::MAX, u32::MAX));
        drop(mmio);
        assert_eq!(words, [0x1122_3344_0000_0000, 0, 0, 7]);
    }
}
