//! Device barriers, named by purpose.
//!
//! `Ordering::Release` orders CPU threads; it says nothing about a device that reads memory over the bus. These
//! functions do, for coherent PCIe on x86-64 and aarch64, after rdma-core `util/udma_barrier.h`
//! (`udma_to_device_barrier`, `udma_from_device_barrier`, `mmio_flush_writes`). A platform without an entry here does
//! not compile: a silent no-op would be a lie.

#[cfg(target_arch = "aarch64")]
#[path = "sys/barrier_aarch64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "sys/barrier_x86_64.rs"]
mod arch;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("device barriers are spelled out for x86-64 and aarch64 only; add an arch file with its source");

/// Makes earlier CPU writes to descriptors and buffers visible to the device before a later doorbell write.
///
/// Call between filling a submission entry and the store that rings.
#[inline]
pub fn to_device_before_doorbell() {
    arch::to_device_before_doorbell();
}

/// Orders reads of a completion's fields after the read of its valid or phase word.
///
/// Call after the phase word said "yours" and before any other field is read.
#[inline]
pub fn from_device_after_valid() {
    arch::from_device_after_valid();
}

/// Orders two groups of CPU writes as the device sees them (descriptor body before its valid bit).
#[inline]
pub fn order_to_device() {
    arch::order_to_device();
}

/// Pushes write-combined stores out of the CPU's buffers.
///
/// Call after a write to a write-combining mapping that the device must see now.
#[inline]
pub fn flush_write_combining() {
    arch::flush_write_combining();
}

/// Makes an earlier CPU write visible to the device before a later read of memory that the device writes.
///
/// Call between telling the device something in memory and looking at what it said in memory (shadow doorbells): each side
/// stores first and loads second, so that at least one sees the other. The only barrier here that costs more than a few
/// cycles.
#[inline]
pub fn store_to_device_then_load() {
    arch::store_to_device_then_load();
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_barrier_can_be_called() {
        super::to_device_before_doorbell();
        super::from_device_after_valid();
        super::order_to_device();
        super::flush_write_combining();
        super::store_to_device_then_load();
    }
}
