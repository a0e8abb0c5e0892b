//! Device registers that are mapped into the process, and single words of memory that a device writes.
// UNSAFETY: volatile accesses to a mapping whose owner this holds, each inside its checked length.
#![expect(unsafe_code, reason = "volatile loads and stores of mapped registers")]

use core::any::Any;
use std::sync::Arc;

use crate::{
    HostVa, MemError,
    addr::{ByteLen, index},
};

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

/// Bytes of the widest access that [`Mmio::write_from`] and [`Mmio::read_into`] make.
const WORD: u64 = 8;

/// Memory behind a BAR (a device's RAM, not its registers): copies of any length and alignment. Towards the device they are
/// aligned 64-bit accesses, with single bytes at ragged ends. A store is not sure to have arrived before something was read
/// back from the same range.
impl Mmio {
    /// Copies `from` to byte `at`.
    ///
    /// # Errors
    /// [`MemError::OutOfRange`]; nothing is written then.
    pub fn write_bytes(&self, at: u64, from: &[u8]) -> Result<(), MemError> {
        let va = HostVa::new(from.as_ptr().expose_provenance() as u64);
        // SAFETY: the slice is live and readable.
        unsafe { self.write_from(at, va, from.len() as u64) }
    }

    /// Copies bytes from `at` into `to`.
    ///
    /// # Errors
    /// [`MemError::OutOfRange`]; nothing is read then.
    pub fn read_bytes(&self, at: u64, to: &mut [u8]) -> Result<(), MemError> {
        let va = HostVa::new(to.as_mut_ptr().expose_provenance() as u64);
        // SAFETY: the slice is live, writable and ours alone.
        unsafe { self.read_into(at, va, to.len() as u64) }
    }

    fn check(&self, at: u64, len: u64) -> Result<(), MemError> {
        crate::region::check(at, len, ByteLen(self.len))
    }

    /// The longest piece that one access can copy at `at` with `left` bytes to go.
    fn step(&self, at: u64, left: u64) -> u64 {
        let aligned = (self.base.addr() as u64).wrapping_add(at).is_multiple_of(WORD);
        if aligned && left >= WORD { WORD } else { 1 }
    }

    /// Copies `len` bytes of host memory at `from` to byte `at`.
    ///
    /// # Errors
    /// [`MemError::OutOfRange`]; nothing is written then.
    ///
    /// # Safety
    /// The host range is mapped, readable, and not written by others meanwhile.
    pub unsafe fn write_from(&self, at: u64, from: HostVa, len: u64) -> Result<(), MemError> {
        self.check(at, len)?;
        let source: *const u8 = core::ptr::with_exposed_provenance(index(from.raw()));
        let mut done = 0;
        while done < len {
            let step = self.step(at + done, len - done);
            let (to, from) = (self.base.wrapping_add(index(at + done)), source.wrapping_add(index(done)));
            if step == WORD {
                // SAFETY: `step` bytes of the host range are left, by the loop's condition and the contract.
                let word = unsafe { from.cast::<u64>().read_unaligned() };
                // SAFETY: inside the mapping by `check`, aligned by `step`.
                unsafe { to.cast::<u64>().write_volatile(word) };
            } else {
                // SAFETY: as above, one byte.
                let byte = unsafe { from.read() };
                // SAFETY: as above, one byte.
                unsafe { to.write_volatile(byte) };
            }
            done += step;
        }
        Ok(())
    }

    /// Copies `len` bytes from `at` to host memory at `to`.
    ///
    /// # Errors
    /// [`MemError::OutOfRange`]; nothing is read then.
    ///
    /// # Safety
    /// The host range is mapped, writable, and not touched by others meanwhile.
    pub unsafe fn read_into(&self, at: u64, to: HostVa, len: u64) -> Result<(), MemError> {
        self.check(at, len)?;
        let target: *mut u8 = core::ptr::with_exposed_provenance_mut(index(to.raw()));
        let mut done = 0;
        while done < len {
            let step = self.step(at + done, len - done);
            let (from, to) = (self.base.wrapping_add(index(at + done)), target.wrapping_add(index(done)));
            if step == WORD {
                // SAFETY: inside the mapping by `check`, aligned by `step`.
                let word = unsafe { from.cast::<u64>().read_volatile() };
                // SAFETY: `step` bytes of the host range are left, by the loop's condition and the contract.
                unsafe { to.cast::<u64>().write_unaligned(word) };
            } else {
                // SAFETY: as above, one byte.
                let byte = unsafe { from.read_volatile() };
                // SAFETY: as above, one byte.
                unsafe { to.write(byte) };
            }
            done += step;
        }
        Ok(())
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

    #[test]
    fn memory_copies_of_any_length_and_alignment_keep_to_their_bytes() {
        let mut words = vec![0u64; 16];
        let base = words.as_mut_ptr().cast();
        // SAFETY: the vector outlives `mmio`, and nobody else touches it meanwhile.
        let mmio = unsafe { Mmio::new(base, 128, Arc::new(())) };
        let pattern: Vec<u8> = (1..=128).collect();
        for (at, len) in [(0u64, 128), (1, 7), (7, 2), (8, 8), (3, 40), (127, 1), (5, 0)] {
            mmio.write_bytes(0, &[0xEE; 128]).unwrap();
            let (at_index, from) = (index(at), &pattern[..len]);
            mmio.write_bytes(at, from).unwrap();
            let mut all = [0; 128];
            mmio.read_bytes(0, &mut all).unwrap();
            assert_eq!(&all[at_index..at_index + len], from, "at {at}");
            let beside = all[..at_index].iter().chain(&all[at_index + len..]);
            assert!(beside.copied().all(|byte| byte == 0xEE), "{len} bytes at {at} touched others");
            let mut back = vec![0; len];
            mmio.read_bytes(at, &mut back).unwrap();
            assert_eq!(back, from);
        }
        assert!(mmio.write_bytes(121, &[0; 8]).is_err() && mmio.read_bytes(u64::MAX, &mut [0; 2]).is_err());
    }
}
