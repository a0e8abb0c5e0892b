//! System calls on descriptors, as safe functions with errno results.
// UNSAFETY: libc. Each function checks or builds every pointer it passes.
#![expect(unsafe_code, reason = "system calls")]

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Times that a call is made again after a signal.
pub(crate) const INTERRUPTS_MAX: u32 = 16;

/// The errno of this thread's last failed call.
pub(crate) fn errno() -> i32 {
    code(&io::Error::last_os_error())
}

/// The errno inside an I/O error; `EIO` for one that the library made up.
pub(crate) fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Runs `call` until it is not interrupted, at most [`INTERRUPTS_MAX`] times.
pub(crate) fn uninterrupted<T: PartialOrd + Default>(mut call: impl FnMut() -> T) -> Result<T, i32> {
    for _ in 0..INTERRUPTS_MAX {
        let result = call();
        if result >= T::default() {
            return Ok(result);
        }
        match errno() {
            libc::EINTR => {}
            errno => return Err(errno),
        }
    }
    Err(libc::EINTR)
}

fn c_path(path: &Path) -> Result<CString, i32> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| libc::EINVAL)
}

/// `open` with `O_CLOEXEC`; `mode` counts for new files only.
pub(crate) fn open(path: &Path, flags: i32, mode: u32) -> Result<OwnedFd, i32> {
    let path = c_path(path)?;
    // SAFETY: the path is a live string with a final zero.
    let fd = uninterrupted(|| unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) })?;
    // SAFETY: the kernel just returned it and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Clears `O_NONBLOCK`, the only status flag that this crate opens files with and clears: the ring would answer `EAGAIN`
/// instead of waiting for the device. `fcntl(2)`: `F_SETFL` leaves the access mode alone.
pub(crate) fn set_blocking(fd: BorrowedFd<'_>) -> Result<(), i32> {
    // SAFETY: no pointers.
    uninterrupted(|| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, 0) }).map(drop)
}

/// Access mode and status flags of an open descriptor (`fcntl(2)`, `F_GETFL`).
pub(crate) fn status_flags(fd: BorrowedFd<'_>) -> Result<i32, i32> {
    // SAFETY: no pointers.
    uninterrupted(|| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })
}

/// Whether this process may read and write a path, as the kernel sees its effective user.
pub(crate) fn accessible(path: &Path) -> bool {
    let Ok(path) = c_path(path) else { return false };
    let mode = libc::R_OK | libc::W_OK;
    // SAFETY: the path is a live string with a final zero.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) == 0 }
}

/// The facts of a file that this crate needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) mode: u32,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Of a device file: which device.
    pub(crate) special: u64,
    pub(crate) len: u64,
    /// What the file system prefers to move at once, in bytes; 0 for a device file, where it says nothing of the device.
    pub(crate) block: u32,
    pub(crate) modified_ns: i128,
}

impl Stat {
    pub(crate) fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    fn from_raw(raw: &libc::stat) -> Self {
        Self {
            mode: raw.st_mode,
            device: raw.st_dev,
            inode: raw.st_ino,
            special: raw.st_rdev,
            len: u64::try_from(raw.st_size).unwrap_or(0),
            block: if raw.st_mode & libc::S_IFMT == libc::S_IFREG {
                u32::try_from(raw.st_blksize).unwrap_or(u32::MAX)
            } else {
                0
            },
            modified_ns: i128::from(raw.st_mtime) * 1_000_000_000 + i128::from(raw.st_mtime_nsec),
        }
    }
}

pub(crate) fn fstat(fd: BorrowedFd<'_>) -> Result<Stat, i32> {
    let mut raw = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the pointer names a live structure of the right type.
    uninterrupted(|| unsafe { libc::fstat(fd.as_raw_fd(), raw.as_mut_ptr()) })?;
    // SAFETY: zeroed at first, filled by the call; integers in every bit pattern.
    Ok(Stat::from_raw(&unsafe { raw.assume_init() }))
}

/// `stat`: follows symbolic links.
pub(crate) fn stat(path: &Path) -> Result<Stat, i32> {
    let path = c_path(path)?;
    let mut raw = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: a live string with a final zero, and a live structure of the right type.
    uninterrupted(|| unsafe { libc::stat(path.as_ptr(), raw.as_mut_ptr()) })?;
    // SAFETY: zeroed at first, filled by the call; integers in every bit pattern.
    Ok(Stat::from_raw(&unsafe { raw.assume_init() }))
}

/// What statx tells about `O_DIRECT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DirectFacts {
    /// The kernel or the file system does not tell.
    Silent,
    /// Not possible on this file.
    Refused,
    /// Memory and offset alignment in bytes.
    Align { memory: u32, offset: u32 },
}

/// `statx` with `STATX_DIOALIGN` (Linux 6.1), and which file it is: device and inode. Where the call itself is not to be had
/// (an old kernel, seccomp), `fstat` says which file.
///
/// # Errors
/// The errno of `fstat`.
pub(crate) fn direct_facts(fd: BorrowedFd<'_>) -> Result<(DirectFacts, (u64, u64)), i32> {
    let mut raw = MaybeUninit::<libc::statx>::zeroed();
    let (number, flags, wanted) = (fd.as_raw_fd(), libc::AT_EMPTY_PATH, libc::STATX_INO | libc::STATX_DIOALIGN);
    // SAFETY: an empty string with a final zero, and a live structure of the right type.
    let done = unsafe { libc::statx(number, c"".as_ptr(), flags, wanted, raw.as_mut_ptr()) };
    if done < 0 {
        return fstat(fd).map(|stat| (DirectFacts::Silent, (stat.device, stat.inode)));
    }
    // SAFETY: zeroed at first, filled by the call; integers in every bit pattern.
    let raw = unsafe { raw.assume_init() };
    let file = (libc::makedev(raw.stx_dev_major, raw.stx_dev_minor), raw.stx_ino);
    if raw.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok((DirectFacts::Silent, file));
    }
    let facts = match (raw.stx_dio_mem_align, raw.stx_dio_offset_align) {
        (0, _) | (_, 0) => DirectFacts::Refused,
        (memory, offset) => DirectFacts::Align { memory, offset },
    };
    Ok((facts, file))
}

/// What `statfs(2)` tells about a file system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileSystem {
    pub(crate) magic: i64,
    /// Its block in bytes; 0 if that makes no sense.
    pub(crate) block: u32,
}

pub(crate) fn file_system(fd: BorrowedFd<'_>) -> Result<FileSystem, i32> {
    let mut raw = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the pointer names a live structure of the right type.
    uninterrupted(|| unsafe { libc::fstatfs(fd.as_raw_fd(), raw.as_mut_ptr()) })?;
    // SAFETY: zeroed at first, filled by the call; integers in every bit pattern.
    let raw = unsafe { raw.assume_init() };
    Ok(FileSystem { magic: signed(raw.f_type), block: u32::try_from(raw.f_bsize).unwrap_or(0) })
}

/// The number of an ioctl in the type that the target's C library takes: musl has the same 32 bits as a signed number.
pub(crate) const fn request(number: u32) -> libc::Ioctl {
    number as libc::Ioctl
}

/// A word that some C libraries declare signed and others not; 0 if it does not fit, which no magic number is.
fn signed<T>(word: T) -> i64
where
    i64: TryFrom<T>,
{
    i64::try_from(word).unwrap_or(0)
}

/// Length of a block device in bytes.
pub(crate) fn block_device_len(fd: BorrowedFd<'_>) -> Result<u64, i32> {
    /// `BLKGETSIZE64` of linux `include/uapi/linux/fs.h`: `_IOR(0x12, 114, size_t)`, on every 64-bit target we build for.
    const BLKGETSIZE64: libc::Ioctl = request(0x8008_1272);
    let mut len = 0u64;
    // SAFETY: the call writes eight bytes to a live `u64`.
    uninterrupted(|| unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &raw mut len) })?;
    Ok(len)
}

/// Logical block size of a block device in bytes.
pub(crate) fn logical_block(fd: BorrowedFd<'_>) -> Result<u32, i32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the call writes one `int` to a live one.
    uninterrupted(|| unsafe { libc::ioctl(fd.as_raw_fd(), libc::BLKSSZGET, &raw mut size) })?;
    u32::try_from(size).ok().filter(|size| size.is_power_of_two()).ok_or(libc::EINVAL)
}

/// Inode flags (`FS_IOC_GETFLAGS`), as `chattr` shows them.
pub(crate) fn inode_flags(fd: BorrowedFd<'_>) -> Result<u32, i32> {
    let mut flags: libc::c_uint = 0;
    // SAFETY: the call writes one `int`, in spite of the `long` in its number, to a live one.
    uninterrupted(|| unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) })?;
    Ok(flags)
}

/// Whether any extent of the file has one of `flags` (`FS_IOC_FIEMAP`, `FIEMAP_EXTENT_*`), as it is on disk now.
///
/// Looks at [`EXTENTS_MAX`] extents at most: a file with more gets `EOVERFLOW`.
pub(crate) fn has_extent(fd: BorrowedFd<'_>, flags: u32) -> Result<bool, i32> {
    let mut map = ExtentMap { count: EXTENTS, ..ExtentMap::default() };
    for _ in 0..EXTENTS_MAX / EXTENTS {
        (map.len, map.flags, map.mapped) = (u64::MAX - map.start, 0, 0);
        // SAFETY: the call reads the head and writes it and at most `count` extents of the live structure.
        uninterrupted(|| unsafe { libc::ioctl(fd.as_raw_fd(), FIEMAP, &raw mut map) })?;
        let found = map.extents.get(..sw_mem::index(u64::from(map.mapped))).unwrap_or(&map.extents);
        if found.iter().any(|extent| extent.flags & flags != 0) {
            return Ok(true);
        }
        match found.last() {
            Some(last) if last.flags & LAST_EXTENT == 0 => map.start = last.logical.saturating_add(last.len),
            _ => return Ok(false),
        }
    }
    Err(libc::EOVERFLOW)
}

/// Extents in one call: 56 bytes each.
const EXTENTS: u32 = 64;
/// Extents of one file that are looked at.
const EXTENTS_MAX: u32 = 1 << 16;
/// `FS_IOC_FIEMAP` and `FIEMAP_EXTENT_LAST` of linux `include/uapi/linux/fs.h` and `fiemap.h`, as are the structures.
const FIEMAP: libc::Ioctl = request(0xC020_660B);
const LAST_EXTENT: u32 = 1;

#[repr(C)]
struct ExtentMap {
    start: u64,
    len: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS as usize],
}

impl Default for ExtentMap {
    fn default() -> Self {
        let extents = [Extent::default(); EXTENTS as usize];
        Self { start: 0, len: 0, flags: 0, mapped: 0, count: 0, reserved: 0, extents }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    len: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

// The size is part of the ioctl's number (32 bytes of head), and the extents follow without a gap.
const _: () = assert!(size_of::<Extent>() == 56 && size_of::<ExtentMap>() == 32 + 56 * EXTENTS as usize);

/// Whether the page cache of a file tells what it holds of the file. Those of `overlayfs` have no pages of their own: those of the file
/// below count and are not seen.
pub(crate) fn has_own_pages(fd: BorrowedFd<'_>) -> bool {
    /// `OVERLAYFS_SUPER_MAGIC`.
    const OVERLAY: i64 = 0x794C_7630;
    !file_system(fd).is_ok_and(|below| below.magic == OVERLAY)
}

/// Bytes of the file in the page cache, of `len` bytes from `offset` (`len` 0: up to the end), in whole pages; none where the kernel
/// cannot tell (`cachestat(2)`, Linux 6.5). See [`has_own_pages`].
pub(crate) fn cached_bytes(fd: BorrowedFd<'_>, (offset, len): (u64, u64)) -> Option<u64> {
    /// Both structures as in linux `include/uapi/linux/mman.h`.
    #[repr(C)]
    struct Range {
        offset: u64,
        len: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Counts {
        cache: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    const CACHESTAT: libc::c_long = 451;
    let range = Range { offset, len };
    let mut counts = Counts::default();
    // SAFETY: both pointers name live structures of the layout that the kernel expects; the length 0 means to the end.
    let done = unsafe { libc::syscall(CACHESTAT, fd.as_raw_fd(), &raw const range, &raw mut counts, 0u32) };
    (done == 0).then(|| counts.cache.saturating_mul(u64::from(page_bytes())))
}

/// Bytes of a page of the page cache: 4 KiB, on some machines 16 or 64.
pub(crate) fn page_bytes() -> u32 {
    // SAFETY: no pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(page).unwrap_or(4096)
}

/// One positional read into a buffer of ours; control plane only.
pub(crate) fn pread(fd: BorrowedFd<'_>, into: &mut [u8], offset: i64) -> Result<usize, i32> {
    // SAFETY: pointer and length name a live slice that is ours alone.
    let done = uninterrupted(|| unsafe { libc::pread(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), offset) })?;
    Ok(usize::try_from(done).unwrap_or(0))
}

/// Where the data of a file goes on, at or after `offset`; `None` if there is only a hole up to its end. Blocks that are
/// reserved and were never written are a hole.
pub(crate) fn next_data(fd: BorrowedFd<'_>, offset: i64) -> Result<Option<u64>, i32> {
    // SAFETY: no pointers.
    match uninterrupted(|| unsafe { libc::lseek(fd.as_raw_fd(), offset, libc::SEEK_DATA) }) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(libc::ENXIO) => Ok(None),
        // Nobody knows of holes here.
        Err(libc::EINVAL) => Ok(u64::try_from(offset).ok()),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn fsync(fd: BorrowedFd<'_>) -> Result<(), i32> {
    // SAFETY: no pointers.
    uninterrupted(|| unsafe { libc::fsync(fd.as_raw_fd()) }).map(drop)
}

pub(crate) fn fdatasync(fd: BorrowedFd<'_>) -> Result<(), i32> {
    // SAFETY: no pointers.
    uninterrupted(|| unsafe { libc::fdatasync(fd.as_raw_fd()) }).map(drop)
}

/// Reserves space and sets the length.
pub(crate) fn fallocate(fd: BorrowedFd<'_>, len: u64) -> Result<(), i32> {
    let len = i64::try_from(len).map_err(|_| libc::EFBIG)?;
    // SAFETY: no pointers.
    uninterrupted(|| unsafe { libc::fallocate(fd.as_raw_fd(), 0, 0, len) }).map(drop)
}

pub(crate) fn truncate(fd: BorrowedFd<'_>, len: u64) -> Result<(), i32> {
    let len = i64::try_from(len).map_err(|_| libc::EFBIG)?;
    // SAFETY: no pointers.
    uninterrupted(|| unsafe { libc::ftruncate(fd.as_raw_fd(), len) }).map(drop)
}

/// Sets the permission bits.
pub(crate) fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> Result<(), i32> {
    // SAFETY: no pointers.
    uninterrupted(|| unsafe { libc::fchmod(fd.as_raw_fd(), mode) }).map(drop)
}

/// Takes the file's advisory lock or says `EWOULDBLOCK`. It goes with the last descriptor that shares it, in whatever process.
pub(crate) fn try_lock(fd: BorrowedFd<'_>) -> Result<(), i32> {
    // SAFETY: no pointers.
    uninterrupted(|| unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// Gives the file's advisory lock up, for every descriptor that shares it.
pub(crate) fn unlock(fd: BorrowedFd<'_>) -> Result<(), i32> {
    // SAFETY: no pointers.
    uninterrupted(|| unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_UN) }).map(drop)
}
