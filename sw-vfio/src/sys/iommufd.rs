//! `linux/iommufd.h`: I/O address spaces. Structures as in Linux `include/uapi/linux/iommufd.h`.
// UNSAFETY: ioctl calls with the structures of this file.
#![expect(unsafe_code, reason = "system calls")]

use std::{
    mem::offset_of,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::{ioctl_struct, size_field};

/// `_IO(IOMMUFD_TYPE, n)`.
const fn request(n: libc::Ioctl) -> libc::Ioctl {
    ((b';' as libc::Ioctl) << 8) | n
}

const DESTROY: libc::Ioctl = request(0x80);
const IOAS_ALLOC: libc::Ioctl = request(0x81);
const IOAS_IOVA_RANGES: libc::Ioctl = request(0x84);
const IOAS_MAP: libc::Ioctl = request(0x85);
const IOAS_UNMAP: libc::Ioctl = request(0x86);
const IOAS_MAP_FILE: libc::Ioctl = request(0x8F);

/// `IOMMU_IOAS_MAP_FIXED_IOVA | _WRITEABLE | _READABLE`.
const FIXED_BOTH: u32 = 1 | 2 | 4;
/// Ranges of one address space that are asked for at most: one more than the reserved windows of its devices.
const RANGES_MAX: usize = 4096;

#[repr(C)]
#[derive(Default)]
struct Destroy {
    size: u32,
    id: u32,
}

#[repr(C)]
#[derive(Default)]
struct IoasAlloc {
    size: u32,
    flags: u32,
    out_ioas_id: u32,
}

/// `iommu_iova_range`: both ends inclusive.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IovaRange {
    pub(crate) start: u64,
    pub(crate) last: u64,
}

#[repr(C)]
#[derive(Default)]
struct IovaRanges {
    size: u32,
    ioas_id: u32,
    num_iovas: u32,
    reserved: u32,
    allowed_iovas: u64,
    out_iova_alignment: u64,
}

#[repr(C)]
#[derive(Default)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}

#[repr(C)]
#[derive(Default)]
struct IoasMapFile {
    size: u32,
    flags: u32,
    ioas_id: u32,
    fd: i32,
    start: u64,
    length: u64,
    iova: u64,
}

#[repr(C)]
#[derive(Default)]
struct IoasUnmap {
    size: u32,
    ioas_id: u32,
    iova: u64,
    length: u64,
}

const _: () = {
    assert!(request(0x80) == 0x3B80);
    assert!(size_of::<Destroy>() == 8);
    assert!(size_of::<IoasAlloc>() == 12 && offset_of!(IoasAlloc, out_ioas_id) == 8);
    assert!(size_of::<IovaRange>() == 16);
    assert!(size_of::<IovaRanges>() == 32 && offset_of!(IovaRanges, allowed_iovas) == 16);
    assert!(size_of::<IoasMap>() == 40 && offset_of!(IoasMap, iova) == 32);
    assert!(size_of::<IoasMapFile>() == 40 && offset_of!(IoasMapFile, fd) == 12);
    assert!(size_of::<IoasUnmap>() == 24 && offset_of!(IoasUnmap, iova) == 8);
};

/// `IOMMU_IOAS_ALLOC`: a new, empty address space.
pub(crate) fn ioas_alloc(iommufd: BorrowedFd<'_>) -> Result<u32, i32> {
    let mut alloc = IoasAlloc { size: size_field::<IoasAlloc>(), ..IoasAlloc::default() };
    // SAFETY: the structure of this request.
    unsafe { ioctl_struct(iommufd, IOAS_ALLOC, &mut alloc) }?;
    Ok(alloc.out_ioas_id)
}

/// `IOMMU_DESTROY`.
pub(crate) fn destroy(iommufd: BorrowedFd<'_>, id: u32) -> Result<(), i32> {
    let mut destroy = Destroy { size: size_field::<Destroy>(), id };
    // SAFETY: the structure of this request.
    unsafe { ioctl_struct(iommufd, DESTROY, &mut destroy) }.map(drop)
}

/// `IOMMU_IOAS_IOVA_RANGES`: what may be mapped now, and the alignment of both ends of a mapping in bytes.
pub(crate) fn iova_ranges(iommufd: BorrowedFd<'_>, ioas_id: u32) -> Result<(Vec<IovaRange>, u64), i32> {
    let mut ranges = vec![IovaRange::default(); 64];
    for _ in 0..2 {
        let mut query = IovaRanges {
            size: size_field::<IovaRanges>(),
            ioas_id,
            num_iovas: u32::try_from(ranges.len()).map_err(|_| libc::EINVAL)?,
            allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
            ..IovaRanges::default()
        };
        // SAFETY: the structure of this request; its pointer names `num_iovas` live entries.
        let done = unsafe { ioctl_struct(iommufd, IOAS_IOVA_RANGES, &mut query) };
        let count = sw_mem::index(u64::from(query.num_iovas)).min(RANGES_MAX);
        match done {
            Ok(_) => {
                ranges.truncate(count);
                return Ok((ranges, query.out_iova_alignment));
            }
            Err(libc::EMSGSIZE) => ranges.resize(count, IovaRange::default()),
            Err(errno) => return Err(errno),
        }
    }
    Err(libc::EMSGSIZE)
}

/// `IOMMU_IOAS_MAP` at a fixed IOVA, readable and writable for the device.
pub(crate) fn map(iommufd: BorrowedFd<'_>, ioas_id: u32, user_va: u64, iova: u64, length: u64) -> Result<(), i32> {
    let size = size_field::<IoasMap>();
    let mut map = IoasMap { size, flags: FIXED_BOTH, ioas_id, reserved: 0, user_va, length, iova };
    // SAFETY: the structure of this request. The address is not followed by the call: the kernel pins what is mapped there.
    unsafe { ioctl_struct(iommufd, IOAS_MAP, &mut map) }.map(drop)
}

/// `IOMMU_IOAS_MAP_FILE` at a fixed IOVA: `length` bytes of a memfd or of a dma-buf that the kernel supports, from `start`.
pub(crate) fn map_file(
    iommufd: BorrowedFd<'_>,
    ioas_id: u32,
    file: BorrowedFd<'_>,
    (start, length): (u64, u64),
    iova: u64,
) -> Result<(), i32> {
    let (size, fd) = (size_field::<IoasMapFile>(), file.as_raw_fd());
    let mut map = IoasMapFile { size, flags: FIXED_BOTH, ioas_id, fd, start, length, iova };
    // SAFETY: the structure of this request.
    unsafe { ioctl_struct(iommufd, IOAS_MAP_FILE, &mut map) }.map(drop)
}

/// `IOMMU_IOAS_UNMAP`: how many bytes it unmapped.
pub(crate) fn unmap(iommufd: BorrowedFd<'_>, ioas_id: u32, iova: u64, length: u64) -> Result<u64, i32> {
    let mut unmap = IoasUnmap { size: size_field::<IoasUnmap>(), ioas_id, iova, length };
    // SAFETY: the structure of this request.
    unsafe { ioctl_struct(iommufd, IOAS_UNMAP, &mut unmap) }?;
    Ok(unmap.length)
}
