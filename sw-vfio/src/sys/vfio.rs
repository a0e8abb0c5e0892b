//! `linux/vfio.h`: containers, groups, devices.
//!
//! Structures as in Linux `include/uapi/linux/vfio.h`; sizes and offsets are asserted against that header. Where a later
//! kernel appended fields, the older, shorter form is used: the size field tells the kernel which one it got.
// UNSAFETY: ioctl calls with the structures of this file.
#![expect(unsafe_code, reason = "system calls")]

use std::{
    ffi::CString,
    mem::offset_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use super::{ioctl_struct, ioctl_value, ioctl_words, owned, size_field, uninterrupted};

/// `_IO(VFIO_TYPE, VFIO_BASE + n)`: type `;`, base 100, no size and no direction in the number.
const fn request(n: libc::Ioctl) -> libc::Ioctl {
    ((b';' as libc::Ioctl) << 8) | (100 + n)
}

const GET_API_VERSION: libc::Ioctl = request(0);
const CHECK_EXTENSION: libc::Ioctl = request(1);
const SET_IOMMU: libc::Ioctl = request(2);
const GROUP_GET_STATUS: libc::Ioctl = request(3);
const GROUP_SET_CONTAINER: libc::Ioctl = request(4);
const GROUP_GET_DEVICE_FD: libc::Ioctl = request(6);
const DEVICE_GET_INFO: libc::Ioctl = request(7);
const DEVICE_GET_REGION_INFO: libc::Ioctl = request(8);
const DEVICE_GET_IRQ_INFO: libc::Ioctl = request(9);
const DEVICE_SET_IRQS: libc::Ioctl = request(10);
const DEVICE_RESET: libc::Ioctl = request(11);
const IOMMU_GET_INFO: libc::Ioctl = request(12);
const IOMMU_MAP_DMA: libc::Ioctl = request(13);
const IOMMU_UNMAP_DMA: libc::Ioctl = request(14);
const DEVICE_FEATURE: libc::Ioctl = request(17);
const DEVICE_BIND_IOMMUFD: libc::Ioctl = request(18);
const DEVICE_ATTACH_IOMMUFD_PT: libc::Ioctl = request(19);

/// The version of the interface that this file speaks.
pub(crate) const API_VERSION: i32 = 0;
/// `VFIO_TYPE1v2_IOMMU`: partial unmaps are refused instead of lied about.
pub(crate) const TYPE1V2: u32 = 3;
/// `VFIO_NOIOMMU_IOMMU`.
pub(crate) const NOIOMMU: u32 = 8;

/// `VFIO_PCI_BAR0_REGION_INDEX`; the other BARs follow.
pub(crate) const BAR0: u32 = 0;
/// `VFIO_PCI_BAR5_REGION_INDEX`.
pub(crate) const BAR5: u32 = 5;
/// `VFIO_PCI_CONFIG_REGION_INDEX`.
pub(crate) const CONFIG: u32 = 7;

/// `VFIO_PCI_MSI_IRQ_INDEX`.
pub(crate) const MSI: u32 = 1;
/// `VFIO_PCI_MSIX_IRQ_INDEX`.
pub(crate) const MSIX: u32 = 2;
/// `VFIO_PCI_ERR_IRQ_INDEX`: an uncorrectable error was reported.
pub(crate) const ERR: u32 = 3;
/// `VFIO_PCI_REQ_IRQ_INDEX`: the kernel asks for the device back.
pub(crate) const REQ: u32 = 4;

/// `VFIO_REGION_INFO_FLAG_MMAP`.
pub(crate) const REGION_MMAP: u32 = 4;
/// `VFIO_IRQ_INFO_NORESIZE`: vectors cannot be added to a set that is enabled.
pub(crate) const IRQ_NORESIZE: u32 = 8;
/// `VFIO_DEVICE_FLAGS_RESET`.
pub(crate) const DEVICE_CAN_RESET: u32 = 1;
/// `VFIO_DEVICE_FLAGS_PCI`.
pub(crate) const DEVICE_IS_PCI: u32 = 2;

/// Bytes of an answer with capabilities that are believed: far more than a kernel ever gave.
const INFO_BYTES_MAX: usize = 64 << 10;

#[repr(C)]
#[derive(Default)]
struct GroupStatus {
    argsz: u32,
    flags: u32,
}

/// `vfio_device_info`, up to `num_irqs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DeviceInfo {
    argsz: u32,
    pub(crate) flags: u32,
    pub(crate) regions: u32,
    pub(crate) irqs: u32,
}

/// `vfio_irq_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IrqInfo {
    argsz: u32,
    pub(crate) flags: u32,
    index: u32,
    pub(crate) count: u32,
}

/// `vfio_irq_set` without its data.
#[repr(C)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
}

#[repr(C)]
#[derive(Default)]
struct DmaMap {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

#[repr(C)]
#[derive(Default)]
struct DmaUnmap {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
}

#[repr(C)]
#[derive(Default)]
struct BindIommufd {
    argsz: u32,
    flags: u32,
    iommufd: i32,
    out_devid: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachPt {
    argsz: u32,
    flags: u32,
    pt_id: u32,
}

/// `vfio_device_feature` with a `vfio_device_feature_dma_buf` of one range.
#[repr(C)]
#[derive(Default)]
struct FeatureDmaBuf {
    argsz: u32,
    flags: u32,
    region_index: u32,
    open_flags: u32,
    dma_flags: u32,
    ranges: u32,
    offset: u64,
    len: u64,
}

const _: () = {
    assert!(request(0) == 0x3B64 && DEVICE_ATTACH_IOMMUFD_PT == 0x3B77);
    assert!(size_of::<GroupStatus>() == 8);
    assert!(size_of::<DeviceInfo>() == 16 && offset_of!(DeviceInfo, irqs) == 12);
    assert!(size_of::<IrqInfo>() == 16 && offset_of!(IrqInfo, count) == 12);
    assert!(size_of::<IrqSet>() == 20 && offset_of!(IrqSet, count) == 16);
    assert!(size_of::<DmaMap>() == 32 && offset_of!(DmaMap, iova) == 16);
    assert!(size_of::<DmaUnmap>() == 24 && offset_of!(DmaUnmap, size) == 16);
    assert!(size_of::<BindIommufd>() == 16 && offset_of!(BindIommufd, iommufd) == 8);
    assert!(size_of::<AttachPt>() == 12 && offset_of!(AttachPt, pt_id) == 8);
    assert!(size_of::<FeatureDmaBuf>() == 40 && offset_of!(FeatureDmaBuf, offset) == 24);
};

/// `VFIO_GET_API_VERSION` on a container.
pub(crate) fn api_version(container: BorrowedFd<'_>) -> Result<i32, i32> {
    // SAFETY: no argument.
    unsafe { ioctl_value(container, GET_API_VERSION, 0) }
}

/// `VFIO_CHECK_EXTENSION`: whether the container can be of this type.
pub(crate) fn has_extension(container: BorrowedFd<'_>, extension: u32) -> Result<bool, i32> {
    // SAFETY: the argument is a number.
    unsafe { ioctl_value(container, CHECK_EXTENSION, extension.into()) }.map(|yes| yes > 0)
}

/// `VFIO_SET_IOMMU`: fixes the type, once a group is in the container.
pub(crate) fn set_iommu(container: BorrowedFd<'_>, kind: u32) -> Result<(), i32> {
    // SAFETY: the argument is a number.
    unsafe { ioctl_value(container, SET_IOMMU, kind.into()) }.map(drop)
}

/// `VFIO_GROUP_GET_STATUS`: whether every device of the group is free for user space (`VFIO_GROUP_FLAGS_VIABLE`).
pub(crate) fn group_is_viable(group: BorrowedFd<'_>) -> Result<bool, i32> {
    let mut status = GroupStatus { argsz: size_field::<GroupStatus>(), flags: 0 };
    // SAFETY: the structure of this request.
    unsafe { ioctl_struct(group, GROUP_GET_STATUS, &mut status) }?;
    Ok(status.flags & 1 != 0)
}

/// `VFIO_GROUP_SET_CONTAINER`.
pub(crate) fn group_join(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> Result<(), i32> {
    let mut fd: libc::c_int = container.as_raw_fd();
    // SAFETY: the request reads one `int`.
    unsafe { ioctl_struct(group, GROUP_SET_CONTAINER, &mut fd) }.map(drop)
}

/// `VFIO_GROUP_GET_DEVICE_FD`.
pub(crate) fn group_device(group: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, i32> {
    let name = CString::new(name).map_err(|_| libc::EINVAL)?;
    // SAFETY: the request reads a string with a final zero, which is live.
    let fd = uninterrupted(|| unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) })?;
    // SAFETY: the call just made it.
    Ok(unsafe { owned(fd) })
}

/// `VFIO_DEVICE_GET_INFO`.
pub(crate) fn device_info(device: BorrowedFd<'_>) -> Result<DeviceInfo, i32> {
    let mut info = DeviceInfo { argsz: size_field::<DeviceInfo>(), ..DeviceInfo::default() };
    // SAFETY: the structure of this request.
    unsafe { ioctl_struct(device, DEVICE_GET_INFO, &mut info) }?;
    Ok(info)
}

/// `VFIO_DEVICE_GET_IRQ_INFO`.
pub(crate) fn irq_info(device: BorrowedFd<'_>, index: u32) -> Result<IrqInfo, i32> {
    let mut info = IrqInfo { argsz: size_field::<IrqInfo>(), index, ..IrqInfo::default() };
    // SAFETY: the structure of this request.
    unsafe { ioctl_struct(device, DEVICE_GET_IRQ_INFO, &mut info) }?;
    Ok(info)
}

/// `VFIO_DEVICE_GET_REGION_INFO` with its capabilities, as bytes for [`crate::caps`].
pub(crate) fn region_info(device: BorrowedFd<'_>, index: u32) -> Result<Vec<u8>, i32> {
    // `vfio_region_info` has 32 bytes; its third word is the index.
    info_bytes(device, DEVICE_GET_REGION_INFO, 32, index.into())
}

/// `VFIO_IOMMU_GET_INFO` with its capabilities, as bytes for [`crate::caps`].
pub(crate) fn iommu_info(container: BorrowedFd<'_>) -> Result<Vec<u8>, i32> {
    // `vfio_iommu_type1_info` has 24 bytes, all written by the kernel.
    info_bytes(container, IOMMU_GET_INFO, 24, 0)
}

/// Asks twice: the size field of the first answer says how many bytes the capabilities take.
fn info_bytes(fd: BorrowedFd<'_>, request: libc::Ioctl, head: u32, second: u64) -> Result<Vec<u8>, i32> {
    let mut bytes = head;
    for _ in 0..2 {
        let mut words = vec![0u64; sw_mem::index(u64::from(bytes)).div_ceil(8)];
        // Both structures begin with `argsz, flags`; the third 32-bit word is the only input.
        (words[0], words[1]) = (bytes.into(), second);
        // SAFETY: the kernel writes at most `argsz` bytes, and `words` has as many.
        unsafe { ioctl_words(fd, request, &mut words) }?;
        let wanted = u32::try_from(words[0] & u64::from(u32::MAX)).unwrap_or(0);
        let told: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        if wanted <= bytes {
            return Ok(told);
        }
        if sw_mem::index(u64::from(wanted)) > INFO_BYTES_MAX {
            return Err(libc::EMSGSIZE);
        }
        bytes = wanted;
    }
    Err(libc::EAGAIN)
}

/// `VFIO_DEVICE_SET_IRQS` with `ACTION_TRIGGER` and eventfds: interrupt `start + n` writes to `fds[n]`; `None` leaves one
/// unconnected.
pub(crate) fn set_irq_events(
    device: BorrowedFd<'_>,
    index: u32,
    start: u32,
    fds: &[Option<BorrowedFd<'_>>],
) -> Result<i32, i32> {
    /// `VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER`.
    const EVENT_TRIGGER: u32 = 4 | 32;
    let numbers = fds.iter().map(|fd| fd.as_ref().map_or(-1, |fd| fd.as_raw_fd()));
    irqs(device, EVENT_TRIGGER, (index, start), numbers)
}

/// `VFIO_DEVICE_SET_IRQS` with no data and a count of zero: switches the whole index off.
pub(crate) fn disable_irqs(device: BorrowedFd<'_>, index: u32) -> Result<i32, i32> {
    /// `VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER`.
    const NONE_TRIGGER: u32 = 1 | 32;
    irqs(device, NONE_TRIGGER, (index, 0), core::iter::empty())
}

fn irqs(
    device: BorrowedFd<'_>,
    flags: u32,
    (index, start): (u32, u32),
    fds: impl ExactSizeIterator<Item = i32>,
) -> Result<i32, i32> {
    let count = u32::try_from(fds.len()).map_err(|_| libc::EINVAL)?;
    let argsz = size_field::<IrqSet>() + count.checked_mul(4).ok_or(libc::EINVAL)?;
    let head = [argsz, flags, index, start, count];
    let halves: Vec<u32> = head.into_iter().chain(fds.map(i32::cast_unsigned)).collect();
    let mut words: Vec<u64> = halves
        .chunks(2)
        .map(|pair| u64::from(pair[0]) | (u64::from(pair.get(1).copied().unwrap_or(0)) << 32))
        .collect();
    // SAFETY: the kernel reads `argsz` bytes, and the words have as many.
    unsafe { ioctl_words(device, DEVICE_SET_IRQS, &mut words) }
}

/// `VFIO_DEVICE_RESET`: a function-level reset or what the device has instead.
pub(crate) fn reset(device: BorrowedFd<'_>) -> Result<(), i32> {
    // SAFETY: no argument.
    unsafe { ioctl_value(device, DEVICE_RESET, 0) }.map(drop)
}

/// `VFIO_IOMMU_MAP_DMA`, readable and writable for the device.
pub(crate) fn map_dma(container: BorrowedFd<'_>, vaddr: u64, iova: u64, size: u64) -> Result<(), i32> {
    /// `VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE`.
    const BOTH: u32 = 1 | 2;
    let mut map = DmaMap { argsz: size_field::<DmaMap>(), flags: BOTH, vaddr, iova, size };
    // SAFETY: the structure of this request. `vaddr` is not followed by the call: the kernel pins what is mapped there.
    unsafe { ioctl_struct(container, IOMMU_MAP_DMA, &mut map) }.map(drop)
}

/// `VFIO_IOMMU_UNMAP_DMA`: how many bytes it unmapped.
pub(crate) fn unmap_dma(container: BorrowedFd<'_>, iova: u64, size: u64) -> Result<u64, i32> {
    let mut unmap = DmaUnmap { argsz: size_field::<DmaUnmap>(), flags: 0, iova, size };
    // SAFETY: the structure of this request.
    unsafe { ioctl_struct(container, IOMMU_UNMAP_DMA, &mut unmap) }?;
    Ok(unmap.size)
}

/// `VFIO_DEVICE_BIND_IOMMUFD`, for a device that was opened by its own file (`/dev/vfio/devices/vfioN`).
pub(crate) fn bind_iommufd(device: BorrowedFd<'_>, iommufd: BorrowedFd<'_>) -> Result<(), i32> {
    let iommufd = iommufd.as_raw_fd();
    let mut bind = BindIommufd { argsz: size_field::<BindIommufd>(), iommufd, ..BindIommufd::default() };
    // SAFETY: the structure of this request.
    unsafe { ioctl_struct(device, DEVICE_BIND_IOMMUFD, &mut bind) }.map(drop)
}

/// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`: the device sees this address space from now on.
pub(crate) fn attach_ioas(device: BorrowedFd<'_>, ioas: u32) -> Result<(), i32> {
    let mut attach = AttachPt { argsz: size_field::<AttachPt>(), flags: 0, pt_id: ioas };
    // SAFETY: the structure of this request.
    unsafe { ioctl_struct(device, DEVICE_ATTACH_IOMMUFD_PT, &mut attach) }.map(drop)
}

/// `VFIO_DEVICE_FEATURE_DMA_BUF` (11): a range of a region as a dma-buf. `ENOTTY` on kernels without it.
pub(crate) fn export_dma_buf(device: &OwnedFd, region_index: u32, offset: u64, len: u64) -> Result<OwnedFd, i32> {
    /// The feature with `VFIO_DEVICE_FEATURE_GET`.
    const GET_DMA_BUF: u32 = 11 | (1 << 16);
    let open_flags = (libc::O_RDWR | libc::O_CLOEXEC).cast_unsigned();
    let mut feature = FeatureDmaBuf {
        argsz: size_field::<FeatureDmaBuf>(),
        flags: GET_DMA_BUF,
        region_index,
        open_flags,
        dma_flags: 0,
        ranges: 1,
        offset,
        len,
    };
    // SAFETY: the structure of this request.
    let fd = unsafe { ioctl_struct(device.as_fd(), DEVICE_FEATURE, &mut feature) }?;
    // SAFETY: the call just made it.
    Ok(unsafe { owned(fd) })
}
