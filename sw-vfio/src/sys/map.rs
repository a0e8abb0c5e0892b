//! Mappings of device memory into the process.
// UNSAFETY: mmap and munmap of ranges that this file made itself.
#![expect(unsafe_code, reason = "memory mapping system calls")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use sw_mem::index;

use super::errno;

/// Bytes of a range that are replaced at a time.
const BLANK_BYTES: u64 = 2 << 20;

/// A range of addresses with mappings of descriptors inside, unmapped as one on drop.
#[derive(Debug)]
pub(crate) struct Reserved {
    base: *mut u8,
    len: u64,
}

// SAFETY: it names a range of addresses of the process; no access is made through it here.
unsafe impl Send for Reserved {}
// SAFETY: as above.
unsafe impl Sync for Reserved {}

impl Reserved {
    /// Takes `len` bytes of address space (whole pages) that read as zero and keep writes to themselves.
    pub(crate) fn new(len: u64) -> Result<Self, i32> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe { libc::mmap(core::ptr::null_mut(), index(len), protection, flags, -1, 0) };
        if at == libc::MAP_FAILED { Err(errno()) } else { Ok(Self { base: at.cast(), len }) }
    }

    /// Maps `len` bytes of `fd` from `offset` over the bytes from `at`, shared.
    pub(crate) fn put(&self, at: u64, fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), i32> {
        if at.checked_add(len).is_none_or(|end| end > self.len) || len == 0 {
            return Err(libc::EINVAL);
        }
        let offset = i64::try_from(offset).map_err(|_| libc::EINVAL)?;
        let (flags, protection) = (libc::MAP_SHARED | libc::MAP_FIXED, libc::PROT_READ | libc::PROT_WRITE);
        let place = self.base.wrapping_add(index(at)).cast();
        // SAFETY: the range lies inside the one that `new` mapped and nobody has a reference into it.
        let got = unsafe { libc::mmap(place, index(len), protection, flags, fd.as_raw_fd(), offset) };
        if got == libc::MAP_FAILED { Err(errno()) } else { Ok(()) }
    }

    /// Replaces everything in it by private bytes that are all ones: each access finds the old or the new page. Nothing keeps
    /// a file open after that. An error may leave a part as it was.
    pub(crate) fn blank(&self) -> Result<(), i32> {
        let piece = self.len.min(BLANK_BYTES);
        let ones = memory_file(piece)?;
        super::pwrite_exact(ones.as_fd(), &vec![0xFF; index(piece)], 0)?;
        let (flags, protection) = (libc::MAP_PRIVATE | libc::MAP_FIXED, libc::PROT_READ | libc::PROT_WRITE);
        let mut at = 0;
        while at < self.len {
            let len = piece.min(self.len - at);
            let place = self.base.wrapping_add(index(at)).cast();
            // SAFETY: the part lies inside the range of `new`, and nobody has a reference into it; an access finds the old
            // or the new page.
            let got = unsafe { libc::mmap(place, index(len), protection, flags, ones.as_raw_fd(), 0) };
            if got == libc::MAP_FAILED {
                return Err(errno());
            }
            at += len;
        }
        Ok(())
    }

    /// First byte.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: exactly the range of `new`; its owner is being dropped, so nobody uses it any more.
        let done = unsafe { libc::munmap(self.base.cast(), index(self.len)) };
        debug_assert_eq!(done, 0, "munmap of our own mapping failed");
    }
}

/// `mlock`: keeps the pages of a range in memory.
pub(crate) fn lock(va: u64, len: u64) -> Result<(), i32> {
    let at = core::ptr::with_exposed_provenance(index(va));
    // SAFETY: the call reads nothing through the pointer; a range that is not mapped is an error.
    let done = unsafe { libc::mlock(at, index(len)) };
    if done == 0 { Ok(()) } else { Err(errno()) }
}

/// `MADV_DONTFORK`: a forked child does not get the range.
pub(crate) fn dont_fork(va: u64, len: u64) -> Result<(), i32> {
    let at = core::ptr::with_exposed_provenance_mut(index(va));
    // SAFETY: the advice changes what a child gets, nothing that this process sees; a range that is not mapped is an error.
    let done = unsafe { libc::madvise(at, index(len), libc::MADV_DONTFORK) };
    if done == 0 { Ok(()) } else { Err(errno()) }
}

/// A file of `len` zero bytes in memory, without a name.
pub(crate) fn memory_file(len: u64) -> Result<OwnedFd, i32> {
    // SAFETY: a literal with a final zero.
    let fd = unsafe { libc::memfd_create(c"sw-vfio".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(errno());
    }
    // SAFETY: the call just made it.
    let fd = unsafe { super::owned(fd) };
    let len = i64::try_from(len).map_err(|_| libc::EINVAL)?;
    // SAFETY: no pointers.
    let done = unsafe { libc::ftruncate(fd.as_raw_fd(), len) };
    if done == 0 { Ok(fd) } else { Err(errno()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_range_becomes_all_ones_to_its_last_byte() {
        let page = super::super::page_bytes();
        let len = 2 * BLANK_BYTES + page;
        let (range, file) = (Reserved::new(len).unwrap(), memory_file(len).unwrap());
        range.put(0, file.as_fd(), 0, len).unwrap();
        range.blank().unwrap();
        let mut seen = vec![0; index(len)];
        // SAFETY: the range is mapped and nobody writes it.
        unsafe { core::ptr::copy_nonoverlapping(range.base(), seen.as_mut_ptr(), seen.len()) };
        assert!(seen.iter().all(|byte| *byte == 0xFF));
    }
}
