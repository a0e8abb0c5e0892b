//! One address space for DMA, shared by all functions that a process opened together.
//!
//! ```text
//!   DmaRegion ──map──► pages outwards ─► IOVA from the allocator ─► back end: type 1 (VFIO container)
//!       ▲                                                                      iommufd (IOAS)
//!       └── guest: Mapping (unmaps when the last handle of the region goes)    no IOMMU (physical addresses)
//! ```
//!
//! A region is mapped once, whatever number of functions uses it, and unmapped in exactly the unit it was mapped in.
//!
//! A type-1 container forgets its mappings when its last group leaves it (Linux `vfio_iommu_type1_detach_group`). Each such
//! moment begins a new *epoch*: mappings of an older one are gone, and a region that carries one is mapped anew.
//!
//! Pinning takes the kernel about a second for tens of gigabytes. Meanwhile nobody waits but those who want the same region,
//! and an end of the epoch:
//!
//! ```text
//!   epoch (shared) ─┬─ state: take an address ─┬─ the kernel maps ─┬─ bound to the region: seen from here on
//!                   │                          │                   └─ refused: the address is given back
//!                   └─ the kernel unmaps ── state: the address is free, not before
//! ```

mod iommufd;
mod noiommu;
mod type1;

use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use sw_engine::{Error, ErrorKind, PciAddress, Verb};
use sw_mem::{ByteLen, DmaRegion, ForkMark, Guest, GuestKey, HugePages, Iova, Place, align_down, align_up};

use crate::{
    fault,
    iova::{IovaAllocator, IovaError, Window},
    rings::Rings,
    sys,
    sysfs::Sysfs,
};

/// Mappings of one type-1 container unless the kernel says another number: `dma_entry_limit` of `vfio_iommu_type1`, the
/// default of Linux `drivers/vfio/vfio_iommu_type1.c`.
const TYPE1_ENTRIES: usize = 65_535;
/// Mappings that are made without a limit of the kernel's: 1 TiB of 2 MiB slabs.
const OWN_ENTRIES: usize = 1 << 19;

/// How functions are opened and memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// A VFIO container of type 1 version 2: every kernel with VFIO has it.
    Type1,
    /// `/dev/iommu` with the functions' own files: Linux 6.6 and later, where it is configured.
    Iommufd,
    /// No IOMMU: the device gets physical addresses and can reach all memory of the machine. Never chosen by itself.
    NoIommu,
}

impl Backend {
    /// Its name in settings and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Type1 => "type1",
            Self::Iommufd => "iommufd",
            Self::NoIommu => "noiommu",
        }
    }

    /// The one for a function: type 1 where its group has a file, because it maps a peer's BAR on every kernel; else iommufd.
    ///
    /// # Errors
    /// `NoDevice` if the function cannot be opened through VFIO at all, with what to do about it.
    pub fn detect(sysfs: &Sysfs, address: PciAddress) -> Result<Self, Error> {
        sysfs.expect_function(address)?;
        sysfs.await_file(address, || sysfs.group(address).map(|group| group.file()).or_else(|| sysfs.cdev(address)));
        let group = sysfs.group(address);
        if let Some(group) = &group
            && !group.is_noiommu
            && sysfs.exists("dev/vfio/vfio")
            && sysfs.exists(&group.file())
        {
            return Ok(Self::Type1);
        }
        if sysfs.exists("dev/iommu") && sysfs.cdev(address).is_some() {
            return Ok(Self::Iommufd);
        }
        Err(not_bound(sysfs, address, Self::Type1))
    }
}

/// Why a function cannot be opened, in the order in which a reader would have to mend it.
pub(crate) fn not_bound(sysfs: &Sysfs, address: PciAddress, backend: Backend) -> Error {
    let has_iommu = sysfs.group(address).is_some_and(|group| !group.is_noiommu);
    let error = Error::new(ErrorKind::NoDevice, Verb::Open).at(address.to_string());
    match sysfs.driver(address) {
        _ if !has_iommu && backend != Backend::NoIommu => error
            .detail("it is behind no IOMMU")
            .remedy("switch the IOMMU on in the firmware and boot with intel_iommu=on or amd_iommu=on"),
        Some(driver) if driver != "vfio-pci" => error
            .detail(format!("the kernel's driver {driver} has it"))
            .remedy(format!("straightway nvme bind {address} gives it to vfio-pci")),
        None => {
            error.detail("no driver has it").remedy(format!("straightway nvme bind {address} gives it to vfio-pci"))
        }
        Some(_) => error
            .detail("vfio-pci has it, but there is no file to open it by")
            .remedy("load the modules: modprobe vfio_iommu_type1 or modprobe iommufd"),
    }
}

/// What a region of a peer's BAR brings along for being mapped.
#[derive(Clone, Debug)]
pub(crate) struct PeerBacking {
    /// Where the region's first byte is mapped in the process.
    pub(crate) va: u64,
    /// The BAR as a dma-buf, where the kernel exports it.
    pub(crate) dma_buf: Option<Arc<OwnedFd>>,
    /// The region's first byte in the BAR.
    pub(crate) offset: u64,
    /// The region's first byte on the bus.
    pub(crate) bus: Option<u64>,
}

/// The key under which a region of a peer's BAR carries its [`PeerBacking`].
pub(crate) fn peer_key() -> GuestKey {
    static KEY: OnceLock<GuestKey> = OnceLock::new();
    *KEY.get_or_init(GuestKey::fresh)
}

/// Where the bytes are that get mapped: whole pages.
#[derive(Debug)]
enum Source {
    /// At this address of the process.
    Va(u64),
    /// In this dma-buf, from this byte.
    DmaBuf(Arc<OwnedFd>, u64),
    /// On the bus at this address.
    Bus(u64),
}

/// A region rounded outwards to pages.
#[derive(Debug)]
struct Pages {
    source: Source,
    /// The region's first byte in its first page.
    skew: u64,
    len: u64,
}

/// A function's place in a space, given up on drop. The function's file is closed before.
#[derive(Debug)]
pub(crate) struct Membership {
    space: DmaSpace,
    address: PciAddress,
    group: Option<String>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.space.leave(self.address, self.group.as_deref());
    }
}

/// The numbers of a space, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceReport {
    /// How it maps.
    pub backend: Backend,
    /// Bytes that devices can reach now.
    pub mapped: ByteLen,
    /// Mappings now.
    pub entries: usize,
    /// Mappings at most.
    pub entries_max: usize,
    /// Mappings that the kernel refused to end; their addresses are not used again.
    pub stuck: u64,
}

/// One address space for DMA, shared by the functions that are opened in it and by every region that they reach. Clones
/// share it.
#[derive(Clone, Debug)]
pub struct DmaSpace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sysfs: Sysfs,
    backend: Backend,
    key: GuestKey,
    /// A child shares the kernel's mappings with its parent, and its copy of the lock may be held for ever.
    fork: ForkMark,
    mapper: Mapper,
    /// Shared while the kernel maps or unmaps, so that no mapping is made for one epoch and lands in the next. Taken before
    /// `state`.
    epoch: RwLock<u64>,
    /// Never held while the kernel maps or unmaps.
    state: Mutex<State>,
    stuck: AtomicU64,
    /// For rings where there is no IOMMU.
    rings: Rings,
}

#[derive(Debug)]
struct State {
    iovas: IovaAllocator,
    /// Functions that are open: the kernel would hand out a second descriptor of the same one.
    open: BTreeSet<PciAddress>,
}

#[derive(Debug)]
enum Mapper {
    Type1(type1::Container),
    Iommufd(iommufd::Ioas),
    /// A kernel that does what a test says.
    #[cfg(test)]
    Fake(tests::Kernel),
}

impl Mapper {
    fn map(&self, source: &Source, iova: u64, len: u64) -> Result<(), i32> {
        match self {
            Self::Type1(container) => container.map(source, iova, len),
            Self::Iommufd(ioas) => ioas.map(source, iova, len),
            #[cfg(test)]
            Self::Fake(kernel) => kernel.map(iova, len),
        }
    }

    /// The bytes that were unmapped.
    fn unmap(&self, iova: u64, len: u64) -> Result<u64, i32> {
        match self {
            Self::Type1(container) => container.unmap(iova, len),
            Self::Iommufd(ioas) => ioas.unmap(iova, len),
            #[cfg(test)]
            Self::Fake(kernel) => kernel.unmap(iova, len),
        }
    }
}

/// A mapping, bound to its region.
#[derive(Debug)]
struct Mapping {
    space: DmaSpace,
    epoch: u64,
    /// Of the first page; `None` for a physical address, which needs no unmapping.
    iova: Option<u64>,
    len: u64,
    /// Of the region's first byte.
    first: Iova,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(iova) = self.iova {
            self.space.unmap(self.epoch, iova, self.len);
        }
    }
}

impl DmaSpace {
    /// An empty space. Nothing can be mapped before a function is opened in it.
    ///
    /// # Errors
    /// The kernel has no such back end, or its file may not be opened.
    pub fn new(sysfs: &Sysfs, backend: Backend) -> Result<Self, Error> {
        let mapper = match backend {
            Backend::Type1 => Mapper::Type1(type1::Container::open(sysfs, type1::Kind::Type1)?),
            Backend::NoIommu => Mapper::Type1(type1::Container::open(sysfs, type1::Kind::NoIommu)?),
            Backend::Iommufd => Mapper::Iommufd(iommufd::Ioas::open(sysfs)?),
        };
        let iovas = IovaAllocator::new(&[], &[], sys::page_bytes(), OWN_ENTRIES);
        Ok(Self::with(sysfs.clone(), backend, mapper, State { iovas, open: BTreeSet::new() }))
    }

    fn with(sysfs: Sysfs, backend: Backend, mapper: Mapper, state: State) -> Self {
        let (key, fork, epoch, state) = (GuestKey::fresh(), ForkMark::new(), RwLock::default(), Mutex::new(state));
        let (stuck, rings) = (AtomicU64::new(0), Rings::new(HugePages::Reserved));
        Self(Arc::new(Inner { sysfs, backend, key, fork, mapper, epoch, state, stuck, rings }))
    }

    /// An error in a forked child.
    fn expect_own(&self, verb: Verb, name: impl Into<Arc<str>>) -> Result<(), Error> {
        if self.0.fork.is_child() { Err(fault::forked(verb, name)) } else { Ok(()) }
    }

    /// How it maps.
    pub fn backend(&self) -> Backend {
        self.0.backend
    }

    /// The tree that it was made with.
    pub(crate) fn sysfs(&self) -> &Sysfs {
        &self.0.sysfs
    }

    /// Memory for rings that is safe without an IOMMU.
    pub(crate) fn rings(&self) -> &Rings {
        &self.0.rings
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoch, which does not end while the guard lives.
    fn epoch(&self) -> RwLockReadGuard<'_, u64> {
        self.0.epoch.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a function into the space, exclusively.
    pub(crate) fn join(&self, address: PciAddress) -> Result<(Membership, OwnedFd), Error> {
        self.expect_own(Verb::Open, address.to_string())?;
        if !self.state().open.insert(address) {
            return Err(Error::new(ErrorKind::InUse, Verb::Open)
                .at(address.to_string())
                .detail("this process has it open already")
                .remedy("a controller has one owner: share the open one, or close it first"));
        }
        // Opening takes the kernel a reset: nobody who maps or unmaps waits for it.
        let joined = match &self.0.mapper {
            Mapper::Type1(container) => {
                container.join(&self.0.sysfs, address).map(|(device, group, limits)| (device, Some(group), limits))
            }
            Mapper::Iommufd(ioas) => ioas.join(&self.0.sysfs, address).map(|(device, limits)| (device, None, limits)),
            #[cfg(test)]
            Mapper::Fake(_) => Err(fault::error(libc::ENODEV, Verb::Open, address.to_string(), "a fake")),
        };
        let mut state = self.state();
        let State { iovas, open } = &mut *state;
        let (device, group, limits) = joined.inspect_err(|_| {
            open.remove(&address);
        })?;
        // From here on the drop of the membership leaves the group again; it takes the lock.
        let member = Membership { space: self.clone(), address, group };
        if let Some(Limits { usable, unit, entries_max }) = limits {
            let reserved = self.0.sysfs.bar_windows();
            if iovas.entries() == 0 {
                *iovas = IovaAllocator::new(&usable, &reserved, unit.max(sys::page_bytes()), entries_max);
            } else {
                iovas.restrict(&usable, &reserved);
            }
        }
        Ok((member, device))
    }

    fn leave(&self, address: PciAddress, group: Option<&str>) {
        if self.0.fork.is_child() {
            return;
        }
        let mut epoch = self.0.epoch.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        state.open.remove(&address);
        let Mapper::Type1(container) = &self.0.mapper else { return };
        if group.is_some_and(|group| container.leave(group) == type1::Left::Last) {
            *epoch += 1;
            state.iovas = IovaAllocator::new(&[], &[], sys::page_bytes(), OWN_ENTRIES);
        }
    }

    /// Makes a region reachable for every function of the space and says where they see its first byte. A region that is
    /// mapped already keeps its address. It is unmapped when its last handle goes.
    ///
    /// # Errors
    /// `ResourceLimit`: locked memory, entries or addresses of the IOMMU. `Unsupported`: memory of a device that is not a
    /// [`PeerBar`](crate::PeerBar), or that this back end cannot map; without an IOMMU, memory that is not of reserved huge
    /// pages or not in one piece.
    /// `Forked` in a forked child.
    pub fn map(&self, region: &DmaRegion) -> Result<Iova, Error> {
        self.expect_own(Verb::Register, format!("{region:?}"))?;
        let key = self.0.key;
        let epoch = *self.epoch();
        // One look under one lock: another thread may have replaced it already, and a device may use the new one.
        region.unbind_if(key, |mapping: &Mapping| mapping.epoch < epoch);
        // Looked at before `bind`, which holds the lock of the region's guests while it makes one.
        let pages = self.pages(region)?;
        region.bind(key, || self.map_pages(region, &pages).map(|mapping| Box::new(mapping) as Guest))?;
        region.bound(key, |mapping: &Mapping| mapping.first).ok_or_else(|| {
            Error::new(ErrorKind::Closed, Verb::Register)
                .at(format!("{region:?}"))
                .detail("the mapping was ended meanwhile")
        })
    }

    fn pages(&self, region: &DmaRegion) -> Result<Pages, Error> {
        let unit = self.state().iovas.unit();
        let unsupported = |detail: &'static str| {
            Error::new(ErrorKind::Unsupported, Verb::Register).at(format!("{region:?}")).detail(detail)
        };
        let rounded = |first: u64, source: &dyn Fn(u64) -> Source| {
            let start = align_down(first, unit);
            let end = first.checked_add(region.len().0).and_then(|end| align_up(end, unit));
            let end = end.ok_or_else(|| unsupported("it ends at the end of the address space"))?;
            Ok(Pages { source: source(start), skew: first - start, len: end - start })
        };
        match region.base() {
            Place::Host(va) => rounded(va.raw(), &Source::Va),
            Place::Device(..) => {
                let peer = region.bound(peer_key(), |peer: &PeerBacking| peer.clone());
                let PeerBacking { va, offset, bus, dma_buf } = peer.ok_or_else(|| {
                    unsupported("memory of a device whose driver lets no other device map it")
                        .remedy("read through host memory: a route with staging")
                })?;
                match self.0.backend {
                    Backend::Type1 => rounded(va, &Source::Va),
                    Backend::NoIommu => {
                        let bus = bus.ok_or_else(|| unsupported("the bus address of this BAR is not known"))?;
                        rounded(bus, &Source::Bus)
                    }
                    Backend::Iommufd => {
                        let fd = dma_buf.ok_or_else(|| {
                            unsupported("the kernel does not export this BAR as a dma-buf, which iommufd needs")
                                .remedy("use Linux 7.0 or later, or the type1 back end")
                        })?;
                        let at = align_down(offset, unit);
                        let end = offset.checked_add(region.len().0).and_then(|end| align_up(end, unit));
                        let end = end.ok_or_else(|| unsupported("it ends past the BAR"))?;
                        Ok(Pages { source: Source::DmaBuf(fd, at), skew: offset - at, len: end - at })
                    }
                }
            }
        }
    }

    fn map_pages(&self, region: &DmaRegion, pages: &Pages) -> Result<Mapping, Error> {
        let name = format!("{region:?}");
        if self.0.backend == Backend::NoIommu {
            let first = match pages.source {
                Source::Bus(at) => at,
                Source::Va(va) => noiommu::physical(&self.0.sysfs, va, pages.len).map_err(|error| error.at(name))?,
                Source::DmaBuf(..) => return Err(Error::new(ErrorKind::Unsupported, Verb::Register).at(name)),
            };
            let first = Iova::new(first + pages.skew);
            return Ok(Mapping { space: self.clone(), epoch: *self.epoch(), iova: None, len: pages.len, first });
        }
        let memory = match pages.source {
            Source::Va(at) | Source::DmaBuf(_, at) | Source::Bus(at) => at,
        };
        let epoch = self.epoch();
        let iova = {
            let iovas = &mut self.state().iovas;
            iovas.take(pages.len, memory).map_err(|why| no_address(why, iovas, &name))?
        };
        if let Err(errno) = self.0.mapper.map(&pages.source, iova, pages.len) {
            self.state().iovas.free(iova);
            return Err(fault::map_error(errno, name, pages.len));
        }
        let first = Iova::new(iova + pages.skew);
        Ok(Mapping { space: self.clone(), epoch: *epoch, iova: Some(iova), len: pages.len, first })
    }

    fn unmap(&self, of: u64, iova: u64, len: u64) {
        if self.0.fork.is_child() {
            return;
        }
        let epoch = self.epoch();
        if of != *epoch {
            return;
        }
        match self.0.mapper.unmap(iova, len) {
            Ok(unmapped) if unmapped == len => {
                self.state().iovas.free(iova);
            }
            // Whatever is still mapped there, the address is not given out again: a device might reach the wrong memory.
            other => {
                self.0.stuck.fetch_add(1, Ordering::Relaxed);
                tracing::error!(iova = format_args!("{iova:#x}"), len, ?other, "the kernel did not end a DMA mapping");
            }
        }
    }

    /// Functions that are open in it.
    #[cfg(test)]
    pub(crate) fn open_functions(&self) -> usize {
        self.state().open.len()
    }

    /// Its numbers now.
    pub fn report(&self) -> SpaceReport {
        let state = self.state();
        SpaceReport {
            backend: self.0.backend,
            mapped: ByteLen(state.iovas.taken_bytes()),
            entries: state.iovas.entries(),
            entries_max: state.iovas.entries_max(),
            stuck: self.0.stuck.load(Ordering::Relaxed),
        }
    }
}

/// What a back end can map once a function has joined.
#[derive(Debug)]
struct Limits {
    usable: Vec<Window>,
    unit: u64,
    entries_max: usize,
}

fn no_address(why: IovaError, iovas: &IovaAllocator, name: &str) -> Error {
    let error = Error::new(ErrorKind::ResourceLimit, Verb::Register).at(name);
    match why {
        IovaError::NoEntries => error
            .detail(format!("the IOMMU container has all of its {} mappings", iovas.entries_max()))
            .remedy("map fewer, larger regions, or raise dma_entry_limit of vfio_iommu_type1"),
        IovaError::NoSpace if iovas.entries_max() > 0 => error
            .detail(format!("no gap in the device's addresses is large enough beside {} mappings", iovas.entries()))
            .remedy("map less at a time; a function must be open before memory is mapped for it"),
        IovaError::NoSpace | IovaError::BadLength => Error::new(ErrorKind::ApiMisuse, Verb::Register).at(name),
    }
}

/// A space without a kernel behind it, in which a function is open.
#[cfg(test)]
pub(crate) fn joined(sysfs: &Sysfs, address: PciAddress) -> (DmaSpace, Membership) {
    tests::joined(Mapper::Iommufd(iommufd::Ioas::fake()), sysfs, address)
}

#[cfg(test)]
mod tests;
