//! Memory that another process maps too: a memfd that can be neither shrunk nor grown.
// UNSAFETY: memfd_create, fcntl, mmap and munmap are foreign calls.
#![expect(unsafe_code, reason = "memory mapping system calls")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use crate::{
    addr::{ByteLen, HostVa},
    index,
    region::{DmaRegion, Place},
};

/// Bytes of a segment, at most: 1 TiB.
const BYTES_MAX: u64 = 1 << 40;

/// Memory that several processes map. What another one writes to it may change at any time: it is read by copies, like memory that a device
/// writes.
///
/// Its seals keep every process from cutting it, so that no access to it can fail later.
#[derive(Debug)]
pub struct SharedSegment {
    descriptor: OwnedFd,
    region: DmaRegion,
}

/// A mapping that ends with its region.
struct Mapped(HostVa, u64);

impl Drop for Mapped {
    fn drop(&mut self) {
        let at = core::ptr::with_exposed_provenance_mut(index(self.0.raw()));
        // SAFETY: the range is what `mmap` returned, and the region whose last span is gone was all that led to it.
        let rc = unsafe { libc::munmap(at, index(self.1)) };
        debug_assert_eq!(rc, 0, "munmap of our own mapping failed");
    }
}

impl SharedSegment {
    /// A new one of `len` zero bytes, whole pages.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for no bytes or too many.
    pub fn create(len: ByteLen) -> io::Result<Self> {
        if len.0 == 0 || len.0 > BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the name is a string that ends in NUL; nothing else is touched.
        let raw = unsafe { libc::memfd_create(c"straightway".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
        let size = libc::off_t::try_from(len.0).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the descriptor is open.
        if unsafe { libc::ftruncate(descriptor.as_raw_fd(), size) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: the descriptor is open; the call takes a number.
        if unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Self::map(descriptor, len)
    }

    /// One that another process made, by its descriptor.
    ///
    /// # Errors
    /// What the system says; `InvalidData` for a descriptor of something that can be cut, or is shorter than `len`.
    pub fn open(descriptor: OwnedFd, len: ByteLen) -> io::Result<Self> {
        // SAFETY: the descriptor is open; the call takes nothing.
        let seals = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 || len.0 == 0 || len.0 > BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let file = std::fs::File::from(descriptor);
        if file.metadata()?.len() < len.0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Self::map(file.into(), len)
    }

    fn map(descriptor: OwnedFd, len: ByteLen) -> io::Result<Self> {
        let (rights, fd) = (libc::PROT_READ | libc::PROT_WRITE, descriptor.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe { libc::mmap(core::ptr::null_mut(), index(len.0), rights, libc::MAP_SHARED, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = HostVa::new(at.expose_provenance() as u64);
        let owner = Box::new(Mapped(base, len.0));
        // SAFETY: the range is mapped until `owner` is dropped, and cannot be cut by anybody, as its seals say; nothing but spans of the
        // region leads to it, and those make no references. What other processes write there is as a device's.
        let region = unsafe { DmaRegion::from_foreign(Place::Host(base), len, owner) };
        let region = region.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Self { descriptor, region })
    }

    /// Its memory.
    pub fn region(&self) -> &DmaRegion {
        &self.region
    }
}

impl AsFd for SharedSegment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;

    #[test]
    fn what_one_mapping_writes_the_other_reads() {
        let ours = SharedSegment::create(ByteLen(8192)).unwrap();
        let theirs = SharedSegment::open(ours.as_fd().try_clone_to_owned().unwrap(), ByteLen(8192)).unwrap();
        let span = |of: &SharedSegment| of.region().span(4096, ByteLen(4)).unwrap();
        span(&theirs).write(0, &[1, 2, 3, 4]).unwrap();
        let mut read = [0; 4];
        span(&ours).read(0, &mut read).unwrap();
        assert_eq!(read, [1, 2, 3, 4]);
    }

    #[test]
    fn what_can_be_cut_is_not_mapped() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert_eq!(SharedSegment::open(file.into(), ByteLen(1)).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let ours = SharedSegment::create(ByteLen(4096)).unwrap();
        let longer = SharedSegment::open(ours.as_fd().try_clone_to_owned().unwrap(), ByteLen(8192));
        assert_eq!(longer.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let file = std::fs::File::from(ours.as_fd().try_clone_to_owned().unwrap());
        assert!(file.set_len(1).is_err(), "it is sealed");
        assert!(SharedSegment::create(ByteLen(0)).is_err());
    }
}
