//! What passes the edge: structures and numbers of cuFile.
//!
//! Sizes and offsets were measured from the libraries of CUDA 12.6 to 13.5 (field note "toolchain study", 2.2 and 2.3); the names
//! are those of the documentation ("cuFile API Reference Guide"). A structure with a hole has a field for it here, so that every
//! byte that is written has a value.
// UNSAFETY: says of its structures that any bits are a value.
#![expect(unsafe_code, reason = "says of its structures that any bits are a value")]

use std::mem::offset_of;

use crate::pointer::{Addr, Plain, Str};

/// `CUfileError_t`: what most functions return, in one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CuFileError {
    /// One of [`crate::code`]'s.
    pub err: i32,
    /// `CUresult` of the driver when `err` is `CU_FILE_CUDA_DRIVER_ERROR`, else 0.
    pub cu_err: i32,
}

/// A number that stands for something that the library has (`CUfileHandle_t`, `CUfileBatchHandle_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Handle(pub(crate) Addr);

impl Handle {
    /// Its number.
    pub fn raw(self) -> u64 {
        self.0.raw()
    }

    /// From its number.
    pub fn from_raw(raw: u64) -> Self {
        Self(Addr::from_raw(raw))
    }
}

/// `CUfileFileHandleType`: a descriptor.
pub const HANDLE_OPAQUE_FD: i32 = 1;
/// A handle of another system.
pub const HANDLE_OPAQUE_WIN32: i32 = 2;
/// A file system in user space, by its functions.
pub const HANDLE_USERSPACE_FS: i32 = 3;

/// `CUfileDescr_t`: what a handle is registered for.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Descr {
    /// Which kind of file.
    pub kind: i32,
    /// Nothing.
    pub hole: u32,
    /// The descriptor in the low half, or a pointer of the file system in user space.
    pub handle: u64,
    /// Functions of a file system in user space, or NULL.
    pub fs_ops: u64,
}

/// `CUfileDrvProps_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DrvProps {
    /// Version of the nvidia-fs module: none here.
    pub major: u32,
    /// Its second number.
    pub minor: u32,
    /// Size in KiB up to which completions are polled for.
    pub poll_thresh_kb: u64,
    /// Largest request in one piece, in KiB.
    pub max_direct_io_kb: u64,
    /// Bits by number: file systems with a direct way.
    pub status_flags: u32,
    /// Bits by number: 0 polling, 1 a way without the module is allowed.
    pub control_flags: u32,
    /// Bits by number: 0 dynamic routing, 1 batches, 2 streams, 3 parallel I/O, 4 P2P.
    pub feature_flags: u32,
    /// KiB of bounce memory of a device.
    pub max_device_cache_kb: u32,
    /// KiB of bounce memory of a buffer.
    pub per_buffer_cache_kb: u32,
    /// KiB of device memory that may be pinned.
    pub max_pinned_kb: u32,
    /// Entries of a batch.
    pub max_batch: u32,
    /// Milliseconds that a batch may wait.
    pub batch_timeout_ms: u32,
}

/// `CUfileIOVec_t`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IoVec {
    /// First byte, of host or device memory.
    pub base: Addr,
    /// Bytes.
    pub len: usize,
}

/// `CUfileIOParams_t`: one entry of a batch.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IoParams {
    /// 1: a batch entry.
    pub mode: i32,
    /// Nothing.
    pub hole: u32,
    /// Memory.
    pub base: Addr,
    /// Byte of the file.
    pub file_offset: i64,
    /// Byte from `base`.
    pub dev_offset: i64,
    /// Bytes.
    pub size: usize,
    /// The file.
    pub fh: Handle,
    /// 0 read, 1 write.
    pub opcode: i32,
    /// Nothing.
    pub hole_after: u32,
    /// Comes back with the event.
    pub cookie: Addr,
}

/// `CUfileIOParams_t::mode`.
pub const MODE_BATCH: i32 = 1;
/// `CUfileOpcode_t`.
pub const OPCODE_READ: i32 = 0;
/// As above.
pub const OPCODE_WRITE: i32 = 1;

/// `CUfileIOEvents_t`: the end of one entry of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct IoEvent {
    /// Of the entry.
    pub cookie: Addr,
    /// A bit of `STATUS_`.
    pub status: i32,
    /// Nothing.
    pub hole: u32,
    /// Bytes, or a negative error as this type has it.
    pub ret: u64,
}

/// `CUfileStatus_t`: taken, not begun.
pub const STATUS_WAITING: i32 = 1;
/// Begun.
pub const STATUS_PENDING: i32 = 2;
/// Not possible.
pub const STATUS_INVALID: i32 = 4;
/// Ended early by its owner.
pub const STATUS_CANCELED: i32 = 8;
/// Done.
pub const STATUS_COMPLETE: i32 = 0x10;
/// Took too long.
pub const STATUS_TIMEOUT: i32 = 0x20;
/// Failed.
pub const STATUS_FAILED: i32 = 0x40;

/// `struct timespec` of a 64-bit Linux.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TimeSpec {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanoseconds: i64,
}

/// `CUfileFSOps_t`: functions of a file system in user space, each an address or NULL.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FsOps {
    /// `const char *(*fs_type)(const void *handle)`.
    pub fs_type: u64,
    /// `int (*getRDMADeviceList)(const void *handle, sockaddr_t **hostaddrs)`.
    pub get_rdma_device_list: u64,
    /// `int (*getRDMADevicePriority)(const void *handle, char *, size_t, loff_t, sockaddr_t *hostaddr)`.
    pub get_rdma_device_priority: u64,
    /// `ssize_t (*read)(const void *handle, char *, size_t, loff_t, cufileRDMAInfo_t *)`.
    pub read: u64,
    /// `ssize_t (*write)(const void *handle, const char *, size_t, loff_t, cufileRDMAInfo_t *)`.
    pub write: u64,
}

/// `cufileRDMAInfo_t`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RdmaInfo {
    /// Of this structure.
    pub version: i32,
    /// Bytes of the text.
    pub desc_len: i32,
    /// Names memory for a network card.
    pub desc_str: Str,
}

/// `CUfileOpCounter_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OpCounter {
    /// Calls that succeeded.
    pub ok: u64,
    /// Calls that failed.
    pub err: u64,
}

/// What levels 1 to 3 begin with in every version: `CUfileStatsLevel1_t` up to 1.18.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StatsBase {
    /// Read, write, handle register and deregister, buffer register and deregister.
    pub ops: [OpCounter; 6],
    /// Bytes read and written.
    pub bytes: [u64; 2],
    /// Bytes a second of read and write.
    pub bandwidth: [u64; 2],
    /// Mean latency of a read and a write, in microseconds.
    pub latency_avg_us: [u64; 2],
    /// Reads and writes a second.
    pub ops_per_second: [u64; 2],
    /// Sum of the latencies, in microseconds.
    pub latency_sum_us: [u64; 2],
    /// Submit, complete, setup, cancel, destroy, enqueued, posix enqueued, processed, posix processed, nvfs submit, p2p submit,
    /// aio submit, io_uring submit, mixed submit, total submit.
    pub batch_ops: [OpCounter; 15],
    /// Read and write bytes, bandwidth, submit and completion latency, and others.
    pub batch: [u64; 12],
}

/// What 1.19 added to level 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StatsVectored {
    /// Readv and writev.
    pub ops: [OpCounter; 2],
    /// Their bytes, bandwidth, mean latency, operations a second and sum of latencies, in pairs.
    pub numbers: [u64; 10],
}

/// Requests by size: place `n` counts those up to 4 KiB * 2^n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StatsSizes {
    /// Reads.
    pub read: [u64; 32],
    /// Writes.
    pub write: [u64; 32],
}

/// `CUfilePerGpuStats_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PerGpu {
    /// Of the GPU.
    pub uuid: [u8; 16],
    /// Bytes, bandwidth, utilisation, microseconds, count, by P2P, by nvfs, by posix, unaligned, dynamic routing, sparse, inline, errors.
    pub read: [u64; 13],
    /// Bytes, bandwidth, utilisation, microseconds, count, by P2P, by nvfs, by posix, unaligned, dynamic routing, errors.
    pub write: [u64; 11],
    /// Registrations, those that succeeded, that failed, deregistrations, bytes registered now.
    pub buffers: [u64; 5],
}

/// GPUs of level 3.
pub const GPUS_MAX: usize = 16;

/// What level 3 has after level 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StatsGpus {
    /// How many.
    pub count: u32,
    /// Nothing.
    pub hole: u32,
    /// Each.
    pub each: [PerGpu; GPUS_MAX],
}

// Field note "toolchain study", 2.2, line by line.
const _: () = {
    assert!(size_of::<CuFileError>() == 8 && offset_of!(CuFileError, cu_err) == 4);
    assert!(size_of::<Handle>() == 8);
    assert!(size_of::<Descr>() == 24 && offset_of!(Descr, handle) == 8 && offset_of!(Descr, fs_ops) == 16);
    assert!(size_of::<FsOps>() == 40 && offset_of!(FsOps, read) == 24 && offset_of!(FsOps, write) == 32);
    assert!(offset_of!(FsOps, get_rdma_device_list) == 8 && offset_of!(FsOps, get_rdma_device_priority) == 16);
    assert!(size_of::<RdmaInfo>() == 16 && offset_of!(RdmaInfo, desc_len) == 4 && offset_of!(RdmaInfo, desc_str) == 8);
    assert!(size_of::<IoParams>() == 64 && offset_of!(IoParams, base) == 8 && offset_of!(IoParams, file_offset) == 16);
    assert!(
        offset_of!(IoParams, dev_offset) == 24 && offset_of!(IoParams, size) == 32 && offset_of!(IoParams, fh) == 40
    );
    assert!(offset_of!(IoParams, opcode) == 48 && offset_of!(IoParams, cookie) == 56);
    assert!(size_of::<IoEvent>() == 24 && offset_of!(IoEvent, status) == 8 && offset_of!(IoEvent, ret) == 16);
    assert!(size_of::<IoVec>() == 16 && offset_of!(IoVec, len) == 8);
    assert!(size_of::<TimeSpec>() == 16);
    assert!(size_of::<OpCounter>() == 16);
};

const _: () = {
    assert!(size_of::<DrvProps>() == 56 && offset_of!(DrvProps, poll_thresh_kb) == 8);
    assert!(offset_of!(DrvProps, max_direct_io_kb) == 16 && offset_of!(DrvProps, status_flags) == 24);
    assert!(offset_of!(DrvProps, control_flags) == 28 && offset_of!(DrvProps, feature_flags) == 32);
    assert!(offset_of!(DrvProps, max_device_cache_kb) == 36 && offset_of!(DrvProps, per_buffer_cache_kb) == 40);
    assert!(offset_of!(DrvProps, max_pinned_kb) == 44 && offset_of!(DrvProps, max_batch) == 48);
    assert!(offset_of!(DrvProps, batch_timeout_ms) == 52);
};

// Level 1: 512 bytes up to 1.18, 624 from 1.19 on; level 2 adds 512; level 3 adds 8 and 16 times 248.
const _: () = {
    assert!(size_of::<StatsBase>() == 512 && offset_of!(StatsBase, bytes) == 96);
    assert!(offset_of!(StatsBase, bandwidth) == 112 && offset_of!(StatsBase, latency_avg_us) == 128);
    assert!(offset_of!(StatsBase, ops_per_second) == 144 && offset_of!(StatsBase, latency_sum_us) == 160);
    assert!(offset_of!(StatsBase, batch_ops) == 176 && offset_of!(StatsBase, batch) == 416);
    assert!(size_of::<StatsBase>() + size_of::<StatsVectored>() == 624);
    assert!(size_of::<StatsSizes>() == 512);
    assert!(size_of::<PerGpu>() == 248 && offset_of!(PerGpu, write) == 120 && offset_of!(PerGpu, buffers) == 208);
    assert!(512 + 512 + size_of::<StatsGpus>() == 5000 && 624 + 512 + size_of::<StatsGpus>() == 5112);
    assert!(offset_of!(StatsGpus, each) == 8);
};

// SAFETY: `repr(C)` structures of integers, and of pointers that are numbers here; every byte has a field.
unsafe impl Plain for Descr {}
// SAFETY: as above.
unsafe impl Plain for IoVec {}
// SAFETY: as above.
unsafe impl Plain for IoParams {}
// SAFETY: as above.
unsafe impl Plain for TimeSpec {}
// SAFETY: as above.
unsafe impl Plain for FsOps {}
