//! x86-64: stores are not reordered with stores, loads not with loads (Intel SDM vol. 3 §9.2 "Memory Ordering"), so
//! ordinary memory needs only the compiler held back, but a load may pass an earlier store: that takes a full fence.
//! Write-combining stores need `sfence`.
// UNSAFETY: one intrinsic that the language marks unsafe.
#![expect(unsafe_code, reason = "sfence is an intrinsic")]

use core::sync::atomic::{Ordering, compiler_fence, fence};

#[inline]
pub(super) fn to_device_before_doorbell() {
    compiler_fence(Ordering::SeqCst);
}

#[inline]
pub(super) fn from_device_after_valid() {
    compiler_fence(Ordering::SeqCst);
}

#[inline]
pub(super) fn order_to_device() {
    compiler_fence(Ordering::SeqCst);
}

#[inline]
pub(super) fn flush_write_combining() {
    if cfg!(miri) {
        compiler_fence(Ordering::SeqCst);
        return;
    }
    // SAFETY: sfence needs SSE, which every x86-64 processor has by definition of the target.
    unsafe { core::arch::x86_64::_mm_sfence() }
}

#[inline]
pub(super) fn store_to_device_then_load() {
    fence(Ordering::SeqCst);
}
