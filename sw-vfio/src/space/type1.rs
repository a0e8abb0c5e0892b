//! The type-1 back end: one VFIO container with the groups of all functions.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sw_engine::{Error, ErrorKind, PciAddress, Verb};

use super::{Backend, Limits, OWN_ENTRIES, Source, TYPE1_ENTRIES, Window};
use crate::{bind::VFIO_PCI, caps, fault, sys, sysfs::Sysfs};

/// What the container does with addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Type1,
    NoIommu,
}

impl Kind {
    fn backend(self) -> Backend {
        match self {
            Self::Type1 => Backend::Type1,
            Self::NoIommu => Backend::NoIommu,
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Type1 => sys::vfio::TYPE1V2,
            Self::NoIommu => sys::vfio::NOIOMMU,
        }
    }
}

/// Whether a group that is opened is the only one: the container gets its type then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Yes,
    No,
}

/// Whether a group that left was the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Last,
    Others,
}

#[derive(Debug)]
struct Member {
    fd: OwnedFd,
    functions: usize,
}

#[derive(Debug)]
pub(super) struct Container {
    /// Another file after the last group has left.
    fd: OwnedFd,
    path: PathBuf,
    kind: Kind,
    /// By number. A group can be opened once, so its functions share the descriptor.
    groups: Mutex<BTreeMap<String, Member>>,
}

impl Container {
    pub(super) fn open(sysfs: &Sysfs, kind: Kind) -> Result<Self, Error> {
        const FILE: &str = "/dev/vfio/vfio";
        let path = sysfs.path(&FILE[1..]);
        let fd = sys::open(&path, libc::O_RDWR).map_err(|errno| fault::open_error(errno, FILE))?;
        let failed = |errno, what| fault::error(errno, Verb::Open, FILE, what);
        let version = sys::vfio::api_version(fd.as_fd()).map_err(|errno| failed(errno, "asking for the version"))?;
        let has =
            sys::vfio::has_extension(fd.as_fd(), kind.number()).map_err(|errno| failed(errno, "asking for type 1"))?;
        let unsupported = |detail: String| Error::new(ErrorKind::Unsupported, Verb::Open).at(FILE).detail(detail);
        match (version, kind) {
            (sys::vfio::API_VERSION, _) if has => Ok(Self { fd, path, kind, groups: Mutex::default() }),
            (sys::vfio::API_VERSION, Kind::Type1) => {
                Err(unsupported("the kernel has no type-1 IOMMU, version 2".into())
                    .remedy("load the module: modprobe vfio_iommu_type1"))
            }
            (sys::vfio::API_VERSION, Kind::NoIommu) => Err(unsupported(
                "the kernel has no no-IOMMU mode switched on".into(),
            )
            .remedy("echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode, if the kernel is built with it")),
            _ => Err(unsupported(format!("it speaks version {version} of the VFIO interface"))),
        }
    }

    /// Opens a function: its group (unless it is open already), the container, the device. With the limits that hold then.
    pub(super) fn join(&self, sysfs: &Sysfs, address: PciAddress) -> Result<(OwnedFd, String, Option<Limits>), Error> {
        let name = address.to_string();
        sysfs.await_file(address, || sysfs.group(address).map(|group| group.file()));
        let group = sysfs
            .group(address)
            .filter(|group| group.is_noiommu == (self.kind == Kind::NoIommu))
            .ok_or_else(|| super::not_bound(sysfs, address, self.kind.backend()))?;
        let number = group.number.clone();
        let mut groups = self.groups();
        let mut member = match groups.remove(&number) {
            Some(member) => member,
            None => {
                let first = if groups.is_empty() { First::Yes } else { First::No };
                Member { fd: self.open_group(sysfs, &group.file(), &name, first)?, functions: 0 }
            }
        };
        let opened = self.open_device(sysfs, &member, address);
        member.functions += usize::from(opened.is_ok());
        if member.functions > 0 {
            groups.insert(number.clone(), member);
        }
        opened.map(|(device, limits)| (device, number, limits))
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<String, Member>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_group(&self, sysfs: &Sysfs, file: &str, name: &str, first: First) -> Result<OwnedFd, Error> {
        let fd = sys::open(&sysfs.path(file), libc::O_RDWR)
            .map_err(|errno| fault::open_error(errno, &format!("/{file}")))?;
        let failed = |errno, what| fault::error(errno, Verb::Open, name, what);
        if !sys::vfio::group_is_viable(fd.as_fd())
            .map_err(|errno| failed(errno, "asking for the state of its group"))?
        {
            return Err(Error::new(ErrorKind::InUse, Verb::Open)
                .at(name)
                .detail("another device of its IOMMU group is driven by the kernel")
                .remedy("bind every device of the group to vfio-pci (straightway nvme list shows them)"));
        }
        sys::vfio::group_join(fd.as_fd(), self.fd.as_fd())
            .map_err(|errno| failed(errno, "adding its group to a container"))?;
        if first == First::Yes {
            let set = sys::vfio::set_iommu(self.fd.as_fd(), self.kind.number());
            set.map_err(|errno| failed(errno, "setting the container's type"))?;
        }
        Ok(fd)
    }

    fn open_device(
        &self,
        sysfs: &Sysfs,
        member: &Member,
        address: PciAddress,
    ) -> Result<(OwnedFd, Option<Limits>), Error> {
        let name = &*address.to_string();
        let failed = |errno, what| fault::error(errno, Verb::Open, name, what);
        // A function that has just come back is in its group a moment before VFIO knows it.
        let open = || match sys::vfio::group_device(member.fd.as_fd(), name) {
            Err(libc::ENODEV) if sysfs.driver(address).as_deref() == Some(VFIO_PCI) => Err(libc::EAGAIN),
            other => other,
        };
        let device = sys::with_lock(open).map_err(|errno| failed(errno, "opening it in its group"))?;
        if self.kind == Kind::NoIommu {
            return Ok((device, None));
        }
        let told =
            sys::vfio::iommu_info(self.fd.as_fd()).map_err(|errno| failed(errno, "asking what the IOMMU can map"))?;
        let told = caps::iommu(&told).ok_or_else(|| failed(libc::EPROTO, "reading what the IOMMU can map"))?;
        Ok((device, Some(limits(&told))))
    }

    /// Called while nobody maps or unmaps.
    pub(super) fn leave(&self, group: &str) -> Left {
        let mut groups = self.groups();
        let Some(member) = groups.get_mut(group) else { return Left::Others };
        member.functions = member.functions.saturating_sub(1);
        if member.functions > 0 {
            return Left::Others;
        }
        groups.remove(group);
        if !groups.is_empty() {
            return Left::Others;
        }
        // A forked child may keep the group, and with it the container, which then has its type already: the next group
        // that joins gets a new one.
        let renewed = sys::open(&self.path, libc::O_RDWR).and_then(|new| sys::replace(self.fd.as_fd(), new.as_fd()));
        if let Err(errno) = renewed {
            tracing::debug!(errno, "the old container is used again");
        }
        Left::Last
    }

    pub(super) fn map(&self, source: &Source, iova: u64, len: u64) -> Result<(), i32> {
        match source {
            Source::Va(va) => sys::vfio::map_dma(self.fd.as_fd(), *va, iova, len),
            Source::DmaBuf(..) | Source::Bus(_) => Err(libc::EOPNOTSUPP),
        }
    }

    pub(super) fn unmap(&self, iova: u64, len: u64) -> Result<u64, i32> {
        sys::vfio::unmap_dma(self.fd.as_fd(), iova, len)
    }
}

fn limits(told: &caps::Iommu) -> Limits {
    // A kernel before 5.4 tells no ranges: 39 bits are what every IOMMU has, and x86 keeps its interrupt window at the
    // top of the first 4 GiB (Intel SDM vol. 3 §12.11.1 "Message Address Register Format").
    let fallback = vec![(0, 0xFEDF_FFFF), (0x1_0000_0000, (1 << 39) - 1)];
    let ranges = told.ranges.clone().unwrap_or(fallback);
    let usable = ranges.into_iter().map(|(first, last)| Window { first, last }).collect();
    let smallest = told.page_sizes & told.page_sizes.wrapping_neg();
    let entries_max = told.entries_left.map_or(TYPE1_ENTRIES, |left| sw_mem::index(left.into()).min(OWN_ENTRIES));
    Limits { usable, unit: smallest.max(sw_mem::PAGE_BYTES), entries_max }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_come_from_the_kernel_or_are_cautious() {
        let told = caps::Iommu { page_sizes: 0x4020_1000, ranges: Some(vec![(0, 0xFFFF)]), entries_left: Some(10) };
        let got = limits(&told);
        assert_eq!((got.unit, got.entries_max), (4096, 10));
        assert_eq!(got.usable, [Window { first: 0, last: 0xFFFF }]);
        let old = limits(&caps::Iommu { page_sizes: 0x20_0000, ranges: None, entries_left: None });
        assert_eq!((old.unit, old.entries_max), (2 << 20, TYPE1_ENTRIES));
        assert!(old.usable.iter().all(|window| window.last < 0xFEE0_0000 || window.first > 0xFEEF_FFFF));
    }

    #[test]
    fn after_the_last_group_the_container_is_a_new_one() {
        let tree = crate::fake::Tree::new();
        let file = |text: &str| {
            tree.write("dev/vfio/vfio.new", text);
            let path = tree.sysfs().path("dev/vfio/vfio");
            std::fs::rename(tree.sysfs().path("dev/vfio/vfio.new"), &path).unwrap();
            path
        };
        let path = file("old");
        let member = || Member { fd: sys::open(&path, libc::O_RDWR).unwrap(), functions: 1 };
        let groups = Mutex::new([("1".to_owned(), member()), ("2".to_owned(), member())].into());
        let fd = sys::open(&path, libc::O_RDWR).unwrap();
        let container = Container { fd, path: path.clone(), kind: Kind::Type1, groups };
        file("new");
        let text = || {
            let mut bytes = [0; 3];
            sys::pread_exact(container.fd.as_fd(), &mut bytes, 0).unwrap();
            String::from_utf8(bytes.into()).unwrap()
        };
        assert_eq!(container.leave("1"), Left::Others);
        assert_eq!(text(), "old");
        assert_eq!(container.leave("2"), Left::Last);
        assert_eq!(text(), "new");
    }

    #[test]
    fn a_machine_without_vfio_says_which_module_to_load() {
        let none = Sysfs::at("/proc/self/nothing");
        let error = Container::open(&none, Kind::Type1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.remedy_text().contains("modprobe vfio-pci"), "{error}");
    }
}
