//! System calls as safe functions with errno results. Nothing here has state or policy.
// UNSAFETY: libc. Each function checks or builds every pointer it passes.
#![expect(unsafe_code, reason = "system calls")]

pub(crate) mod event;
pub(crate) mod iommufd;
pub(crate) mod map;
pub(crate) mod vfio;

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt},
        },
    },
    path::Path,
    time::Duration,
};

/// Times that a call is made again after a signal.
const INTERRUPTS_MAX: u32 = 16;

/// The errno of this thread's last failed call.
pub(crate) fn errno() -> i32 {
    code(&io::Error::last_os_error())
}

/// The errno inside an I/O error; `EIO` for one that the library made up.
pub(crate) fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Runs `call` until it is not interrupted, at most [`INTERRUPTS_MAX`] times.
fn uninterrupted<T: PartialOrd + Default>(mut call: impl FnMut() -> T) -> Result<T, i32> {
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

/// Tries of a call that is refused while somebody else has the function's lock, and the time between two: 2 s in all.
const LOCK_TRIES: u32 = 200;
const LOCK_TRY_EVERY: Duration = Duration::from_millis(10);

/// Repeats a call while it is refused with `EAGAIN`: opening and resetting a function need its lock, and the kernel does not
/// wait for it (`pci_try_reset_function` in Linux `drivers/pci/pci.c`). A driver that is just probing another function of the
/// same slot, or has just given this one up, holds it for some milliseconds.
#[expect(clippy::disallowed_methods, reason = "control plane; the kernel offers nothing to wait on")]
pub(crate) fn with_lock<T>(mut call: impl FnMut() -> Result<T, i32>) -> Result<T, i32> {
    for _ in 1..LOCK_TRIES {
        match call() {
            Err(libc::EAGAIN) => std::thread::sleep(LOCK_TRY_EVERY),
            other => return other,
        }
    }
    call()
}

/// Opens a device file or a lock file for reading and writing, with `O_CLOEXEC`; `create` for a lock file.
pub(crate) fn open(path: &Path, flags: i32) -> Result<OwnedFd, i32> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| libc::EINVAL)?;
    // SAFETY: the path is a live string with a final zero; the mode counts for new files only.
    let fd = uninterrupted(|| unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o644) })?;
    // SAFETY: the kernel just returned it and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One positional read: all of `into`, or an errno (`EIO` for a short one).
pub(crate) fn pread_exact(fd: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> Result<(), i32> {
    let offset = i64::try_from(offset).map_err(|_| libc::EINVAL)?;
    // SAFETY: pointer and length name a live slice that is ours alone.
    let done = uninterrupted(|| unsafe { libc::pread(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), offset) })?;
    if usize::try_from(done) == Ok(into.len()) { Ok(()) } else { Err(libc::EIO) }
}

/// One positional write of all of `from`, or an errno (`EIO` for a short one).
pub(crate) fn pwrite_exact(fd: BorrowedFd<'_>, from: &[u8], offset: u64) -> Result<(), i32> {
    let offset = i64::try_from(offset).map_err(|_| libc::EINVAL)?;
    // SAFETY: pointer and length name a live slice.
    let done = uninterrupted(|| unsafe { libc::pwrite(fd.as_raw_fd(), from.as_ptr().cast(), from.len(), offset) })?;
    if usize::try_from(done) == Ok(from.len()) { Ok(()) } else { Err(libc::EIO) }
}

/// Closes what `fd` names and lets the number name the same as `by` from then on, in one step: a call of another thread that
/// is under way ends as it would have, a later one gets the new file.
pub(crate) fn replace(fd: BorrowedFd<'_>, by: BorrowedFd<'_>) -> Result<(), i32> {
    // SAFETY: no pointers; both numbers are open, and the owner of `fd` goes on owning it.
    uninterrupted(|| unsafe { libc::dup3(by.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) }).map(drop)
}

/// Takes the file's advisory lock or says `EWOULDBLOCK`. It goes with the descriptor.
pub(crate) fn try_lock(fd: BorrowedFd<'_>) -> Result<(), i32> {
    // SAFETY: no pointers.
    uninterrupted(|| unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// Gives the file's advisory lock up, for every descriptor that shares it.
pub(crate) fn unlock(fd: BorrowedFd<'_>) -> Result<(), i32> {
    // SAFETY: no pointers.
    uninterrupted(|| unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_UN) }).map(drop)
}

/// The two kinds of device nodes. Each has numbers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Block,
    Character,
}

/// The kind and number (`major:minor`) of a device node; nothing for another file. Symbolic links are followed.
pub(crate) fn device_number(path: &Path) -> Option<(NodeKind, String)> {
    let told = std::fs::metadata(path).ok()?;
    let kind = match told.file_type() {
        kind if kind.is_block_device() => NodeKind::Block,
        kind if kind.is_char_device() => NodeKind::Character,
        _ => return None,
    };
    Some((kind, format!("{}:{}", libc::major(told.rdev()), libc::minor(told.rdev()))))
}

/// Bytes of a page of the kernel: 4 KiB, on some machines 16 or 64.
pub(crate) fn page_bytes() -> u64 {
    // SAFETY: no pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(page).ok().filter(|page| page.is_power_of_two()).unwrap_or(sw_mem::PAGE_BYTES)
}

/// The limit of locked memory of this process in bytes; `None` if there is none.
pub(crate) fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer names a live structure of the right type.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (done == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// An `ioctl` with a pointer to whole 64-bit words, which the kernel may read and write.
///
/// # Safety
/// `request` reads and writes at most the bytes of `words`, beginning at its start (which the structures of this module
/// promise by their size field), and follows no pointer in it to memory that is not live.
unsafe fn ioctl_words(fd: BorrowedFd<'_>, request: libc::Ioctl, words: &mut [u64]) -> Result<i32, i32> {
    // SAFETY: the caller vouches for the request; the slice is live and ours alone.
    uninterrupted(|| unsafe { libc::ioctl(fd.as_raw_fd(), request, words.as_mut_ptr()) })
}

/// An `ioctl` whose argument is a number or nothing.
///
/// # Safety
/// `request` does not take a pointer.
unsafe fn ioctl_value(fd: BorrowedFd<'_>, request: libc::Ioctl, value: libc::c_ulong) -> Result<i32, i32> {
    // SAFETY: by the contract of this function the kernel follows no pointer.
    uninterrupted(|| unsafe { libc::ioctl(fd.as_raw_fd(), request, value) })
}

/// An `ioctl` on one structure.
///
/// # Safety
/// `request` reads and writes a structure of this layout, no further than its size field says, and follows no pointer in it
/// to memory that is not live.
unsafe fn ioctl_struct<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> Result<i32, i32> {
    // SAFETY: the caller vouches for the request; the structure is live and ours alone.
    uninterrupted(|| unsafe { libc::ioctl(fd.as_raw_fd(), request, core::ptr::from_mut(argument)) })
}

/// Bytes of a structure as its size field has it.
const fn size_field<T>() -> u32 {
    assert!(size_of::<T>() <= u32::MAX as usize, "a structure of the kernel's interface is small");
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    let size = size_of::<T>() as u32;
    size
}

/// The descriptor that a call returned.
///
/// # Safety
/// `number` was just returned by a call that makes a new descriptor, and nobody else has it.
unsafe fn owned(number: i32) -> OwnedFd {
    // SAFETY: by the contract of this function.
    unsafe { OwnedFd::from_raw_fd(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_taken_is_tried_again_and_other_errors_are_not() {
        let mut left = 3;
        let mut busy = || {
            left -= 1;
            if left > 0 { Err(libc::EAGAIN) } else { Ok(7) }
        };
        assert_eq!(with_lock(&mut busy), Ok(7));
        assert_eq!(left, 0);
        let mut calls = 0;
        let refused = with_lock(|| -> Result<(), i32> {
            calls += 1;
            Err(libc::EBUSY)
        });
        assert_eq!((refused, calls), (Err(libc::EBUSY), 1));
    }
}
