//! aarch64: the device is in the outer shareable domain, so ordering towards it takes `dmb osh*`; write-combining
//! (Normal non-cacheable) stores are completed by `dsb st` (Arm ARM B2.3 "Definition of the Armv8 memory model").
// UNSAFETY: barrier instructions have no safe intrinsic on stable.
#![expect(unsafe_code, reason = "barrier instructions are inline assembly")]

use core::arch::asm;

#[inline]
pub(super) fn to_device_before_doorbell() {
    // SAFETY: a barrier reads and writes no memory of its own; leaving out `nomem` holds the compiler back too.
    unsafe { asm!("dmb oshst", options(nostack, preserves_flags)) }
}

#[inline]
pub(super) fn from_device_after_valid() {
    // SAFETY: as above.
    unsafe { asm!("dmb oshld", options(nostack, preserves_flags)) }
}

#[inline]
pub(super) fn order_to_device() {
    // SAFETY: as above.
    unsafe { asm!("dmb oshst", options(nostack, preserves_flags)) }
}

#[inline]
pub(super) fn flush_write_combining() {
    // SAFETY: as above.
    unsafe { asm!("dsb st", options(nostack, preserves_flags)) }
}

#[inline]
pub(super) fn store_to_device_then_load() {
    // SAFETY: as above.
    unsafe { asm!("dmb osh", options(nostack, preserves_flags)) }
}
