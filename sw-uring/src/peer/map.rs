//! Peer memory of a provider, mapped.
// UNSAFETY: mmap and munmap, and a region of foreign memory that keeps the mapping.
#![expect(unsafe_code, reason = "memory mapping system calls")]

use std::{
    ffi::c_void,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::PathBuf,
    ptr,
};

use sw_engine::{Error, ErrorKind, PciAddress, Reason, Verb};
use sw_mem::{ByteLen, DmaRegion, DmaSpan, HostVa, Place, align_up};

use super::live;
use crate::{
    fault, sys,
    sysfs::{self, Machine},
};

/// A PCI device that gives memory out for peer-to-peer DMA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// The device.
    pub address: PciAddress,
    /// Bytes in all.
    pub size: u64,
    /// Bytes that nobody has.
    pub available: u64,
    /// Whether kernel drivers may find it too. User space may map it either way.
    pub published: bool,
    /// Whether this process may map it.
    pub accessible: bool,
}

/// The providers of a machine, in the order of their addresses. *Blocking*: reads sysfs.
pub fn providers(machine: &Machine) -> Vec<Provider> {
    let names = sysfs::names(&machine.path("sys/bus/pci/devices"));
    let addresses = names.iter().filter_map(|name| PciAddress::of_name(name));
    addresses.filter_map(|address| find(machine, address)).collect()
}

fn find(machine: &Machine, address: PciAddress) -> Option<Provider> {
    let directory = directory(machine, address);
    Some(Provider {
        address,
        size: sysfs::number(&directory.join("size"))?,
        available: sysfs::number(&directory.join("available")).unwrap_or(0),
        published: sysfs::number(&directory.join("published")) == Some(1),
        accessible: sys::accessible(&directory.join("allocate")),
    })
}

/// An error unless the device at `address` gives memory out that this process may map. Nothing is mapped. *Blocking*: reads
/// sysfs.
///
/// # Errors
/// `Unsupported` with `NO_P2PDMA` if it gives none out; `PermissionDenied`.
pub fn expect(machine: &Machine, address: PciAddress) -> Result<(), Error> {
    match find(machine, address) {
        None => Err(refusal(address, 0, libc::ENOENT)),
        Some(Provider { accessible: false, .. }) => Err(refusal(address, 0, libc::EACCES)),
        Some(_) => Ok(()),
    }
}

fn directory(machine: &Machine, address: PciAddress) -> PathBuf {
    machine.path(&format!("sys/bus/pci/devices/{address}/p2pmem"))
}

/// Memory of a PCI device that this process may use and that other devices may reach.
#[derive(Debug)]
pub struct PeerMemory {
    region: DmaRegion,
    provider: PciAddress,
}

/// What keeps the memory: unmapped when the last span of the region is gone.
#[derive(Debug)]
struct Mapping {
    base: u64,
    len: u64,
    /// Given back after the memory: fields are dropped after [`Drop::drop`].
    _place: live::Place,
}

impl PeerMemory {
    /// Maps `len` bytes (rounded up to whole pages) of the device at `provider`. Not zeroed.
    ///
    /// *Blocking*: a few system calls.
    ///
    /// # Errors
    /// `Unsupported` with `NO_P2PDMA` if the device gives none out or the kernel has no such memory; `PermissionDenied`;
    /// `NoSpace` if so many bytes in one piece are not free; `ResourceLimit` over 64 such regions in one process.
    pub fn map(provider: PciAddress, len: ByteLen) -> Result<Self, Error> {
        let failed = |kind| Error::new(kind, Verb::Register).at(format!("peer memory of {provider}"));
        let len = align_up(len.0, u64::from(sys::page_bytes())).filter(|len| *len > 0);
        let len =
            len.ok_or_else(|| failed(ErrorKind::ApiMisuse).detail("a length of zero, or past the address space"))?;
        let file = directory(&Machine::this(), provider).join("allocate");
        let fd = sys::open(&file, libc::O_RDWR, 0).map_err(|errno| refusal(provider, len, errno))?;
        let place = live::Place::take().ok_or_else(|| {
            failed(ErrorKind::ResourceLimit)
                .detail(format!("more than {} regions of peer memory", live::REGIONS_MAX))
                .remedy("map fewer and larger ones")
        })?;
        let base = map(fd.as_fd(), len).map_err(|errno| refusal(provider, len, errno))?;
        let index = place.index();
        let owner = Box::new(Mapping { base, len, _place: place });
        let host = Place::Host(HostVa::new(base));
        // SAFETY: the mapping was just made, is `len` long, is not handed to anybody else, and goes with `owner`, which
        // the region drops last. There is no reference into it: only this address leaves here.
        let region = unsafe { DmaRegion::from_foreign(host, ByteLen(len), owner) };
        let region = region.map_err(|cause| failed(ErrorKind::ApiMisuse).caused_by(cause))?;
        live::name(index, region.id(), provider);
        Ok(Self { region, provider })
    }

    /// The region, as every operation takes it.
    pub fn region(&self) -> &DmaRegion {
        &self.region
    }

    /// Bytes `at..at + len`. Parts may overlap: who writes when is the caller's business, as for all memory of a device.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub fn span(&self, at: u64, len: ByteLen) -> Result<DmaSpan, Error> {
        self.region.span(at, len).map_err(|cause| {
            Error::new(ErrorKind::OutOfRange, Verb::Register)
                .at(format!("peer memory of {}", self.provider))
                .in_range(at, len.0)
                .caused_by(cause)
        })
    }

    /// The device whose memory it is.
    pub fn provider(&self) -> PciAddress {
        self.provider
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let base: *mut c_void = ptr::with_exposed_provenance_mut(sw_mem::index(self.base));
        // SAFETY: this value owns the mapping, and its region has no span any more.
        unsafe { libc::munmap(base, sw_mem::index(self.len)) };
    }
}

/// A shared mapping of the whole allocation: the kernel takes neither a private one nor an offset (linux 7.3
/// `drivers/pci/p2pdma.c`, `p2pmem_alloc_mmap`).
fn map(fd: BorrowedFd<'_>, len: u64) -> Result<u64, i32> {
    let (access, len) = (libc::PROT_READ | libc::PROT_WRITE, sw_mem::index(len));
    // SAFETY: no address is asked for, so nothing that is mapped is replaced.
    let base = unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    if base == libc::MAP_FAILED { Err(sys::errno()) } else { Ok(base.expose_provenance() as u64) }
}

fn refusal(provider: PciAddress, len: u64, errno: i32) -> Error {
    let error = |kind| Error::new(kind, Verb::Register).at(format!("peer memory of {provider}")).with_code(errno);
    match errno {
        libc::ENOENT | libc::ENODEV => error(ErrorKind::Unsupported)
            .detail("the device gives no memory out for peer-to-peer DMA")
            .with_reasons(vec![Reason::NoPeerPages])
            .remedy("use a kernel with CONFIG_PCI_P2PDMA and a device whose driver offers it; `straightway doctor` lists them"),
        libc::EACCES | libc::EPERM => error(ErrorKind::PermissionDenied)
            .remedy("p2pmem/allocate of the device in sysfs is root's by default; change its owner, or run as root"),
        libc::ENOMEM => error(ErrorKind::NoSpace)
            .detail(format!("{} in one piece are not free", ByteLen(len)))
            .remedy("ask for less, or end who holds it; p2pmem/available of the device in sysfs tells what is left"),
        _ => error(fault::classify(errno).0).detail("the kernel refuses to map it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_gives_nothing_out_is_refused_with_the_reason() {
        let nobody = PciAddress { domain: 0xfffe, bus: 0, device: 0, function: 0 };
        let error = PeerMemory::map(nobody, ByteLen(4096)).unwrap_err();
        assert_eq!((error.kind(), error.reasons()), (ErrorKind::Unsupported, [Reason::NoPeerPages].as_slice()));
        assert!(error.to_string().contains("fffe:00:00.0"), "{error}");
        assert_eq!(PeerMemory::map(nobody, ByteLen(0)).unwrap_err().kind(), ErrorKind::ApiMisuse);
        assert_eq!(PeerMemory::map(nobody, ByteLen(u64::MAX)).unwrap_err().kind(), ErrorKind::ApiMisuse);
    }

    #[test]
    fn what_the_kernel_says_is_told_apart() {
        let provider = PciAddress { domain: 0, bus: 3, device: 0, function: 0 };
        assert_eq!(refusal(provider, 4096, libc::EACCES).kind(), ErrorKind::PermissionDenied);
        let full = refusal(provider, 8192, libc::ENOMEM);
        assert_eq!(full.kind(), ErrorKind::NoSpace);
        assert!(full.to_string().contains("8 KiB"), "{full}");
    }
}
