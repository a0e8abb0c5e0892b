//! The iommufd back end: one I/O address space to which functions attach by their own files.

use std::os::fd::{AsFd, OwnedFd};

use sw_engine::{Error, PciAddress, Verb};
use sw_mem::ForkMark;

use super::{Backend, Limits, OWN_ENTRIES, Source, Window};
use crate::{fault, sys, sysfs::Sysfs};

#[derive(Debug)]
pub(super) struct Ioas {
    fd: OwnedFd,
    id: u32,
    fork: ForkMark,
}

impl Ioas {
    pub(super) fn open(sysfs: &Sysfs) -> Result<Self, Error> {
        const FILE: &str = "/dev/iommu";
        let fd = sys::open(&sysfs.path(&FILE[1..]), libc::O_RDWR).map_err(|errno| {
            fault::open_error(errno, FILE).remedy("load the module: modprobe iommufd, or use type1")
        })?;
        let id = sys::iommufd::ioas_alloc(fd.as_fd())
            .map_err(|errno| fault::error(errno, Verb::Open, FILE, "making an address space"))?;
        Ok(Self { fd, id, fork: ForkMark::new() })
    }

    /// A file that refuses every request.
    #[cfg(test)]
    pub(super) fn fake() -> Self {
        Self { fd: sys::map::memory_file(4096).unwrap(), id: 0, fork: ForkMark::new() }
    }

    pub(super) fn join(&self, sysfs: &Sysfs, address: PciAddress) -> Result<(OwnedFd, Option<Limits>), Error> {
        let name = address.to_string();
        sysfs.await_file(address, || sysfs.cdev(address));
        let file = sysfs.cdev(address).ok_or_else(|| super::not_bound(sysfs, address, Backend::Iommufd))?;
        let failed = |errno, what| fault::error(errno, Verb::Open, name.as_str(), what);
        let device = sys::open(&sysfs.path(&file), libc::O_RDWR)
            .map_err(|errno| fault::open_error(errno, &format!("/{file}")))?;
        let bind = || sys::vfio::bind_iommufd(device.as_fd(), self.fd.as_fd());
        sys::with_lock(bind).map_err(|errno| match errno {
            // The file may be opened any number of times; ownership is taken here.
            libc::EBUSY | libc::EPERM | libc::EINVAL => {
                fault::open_error(libc::EBUSY, &format!("/{file}")).with_code(errno)
            }
            other => failed(other, "taking it into an iommufd"),
        })?;
        sys::vfio::attach_ioas(device.as_fd(), self.id)
            .map_err(|errno| failed(errno, "attaching it to the address space"))?;
        let (ranges, alignment) = sys::iommufd::iova_ranges(self.fd.as_fd(), self.id)
            .map_err(|errno| failed(errno, "asking which addresses it can use"))?;
        let usable = ranges.iter().map(|range| Window { first: range.start, last: range.last }).collect();
        let unit = alignment.checked_next_power_of_two().unwrap_or(sw_mem::PAGE_BYTES);
        Ok((device, Some(Limits { usable, unit, entries_max: OWN_ENTRIES })))
    }

    pub(super) fn map(&self, source: &Source, iova: u64, len: u64) -> Result<(), i32> {
        match source {
            Source::Va(va) => sys::iommufd::map(self.fd.as_fd(), self.id, *va, iova, len),
            Source::DmaBuf(fd, at) => sys::iommufd::map_file(self.fd.as_fd(), self.id, fd.as_fd(), (*at, len), iova),
            Source::Bus(_) => Err(libc::EOPNOTSUPP),
        }
    }

    pub(super) fn unmap(&self, iova: u64, len: u64) -> Result<u64, i32> {
        sys::iommufd::unmap(self.fd.as_fd(), self.id, iova, len)
    }
}

impl Drop for Ioas {
    fn drop(&mut self) {
        // The address space is the parent's.
        if self.fork.is_child() {
            return;
        }
        // Mappings hold the space and functions their membership, so nothing uses it any more; closing the file ends it too.
        if let Err(errno) = sys::iommufd::destroy(self.fd.as_fd(), self.id) {
            tracing::debug!(errno, "the address space was still in use when its owner went");
        }
    }
}
