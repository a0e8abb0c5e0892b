//! Memory behind a BAR of a PCI function: where another function's DMA lands, and where it comes from.
//!
//! ```text
//!   PeerBar ──allocate──► DmaRegion (device memory; addresses are bytes from the BAR's start)
//!      │                     └── DmaSpace::map: other functions reach it by an IOVA (type 1: through the process's mapping,
//!      │                                        iommufd: through a dma-buf of the BAR, no IOMMU: by its bus address)
//!      └──copy_engine──► copies by the CPU, for routes with staging and for looking at what arrived
//! ```
//!
//! The function must not use that memory itself meanwhile: nothing here talks to it.
// UNSAFETY: regions of device memory, and copies between the BAR and pinned host memory.
#![expect(unsafe_code, reason = "the contracts of DmaRegion::from_foreign and of Mmio's copies")]

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Fault, Landing, PciAddress, Verb,
    seam::{CopyDirection, CopyDone, CopyEngine, CopyEngineCaps, CopyJob, Fence, SlabPin},
};
use sw_mem::{ByteLen, DeviceId, DmaRegion, GpuVa, Guest, Mmio, Place, align_up, barrier};

use crate::{
    bar::BarMap,
    bind::VFIO_PCI,
    bus::VfioFunction,
    config::Dma,
    fault,
    function::Function,
    inventory,
    iova::{IovaAllocator, IovaError, Window},
    presence::{Gone, Presence},
    space::{Backend, DmaSpace, PeerBacking, not_bound, peer_key},
    sys,
    sysfs::{BarKind, Sysfs},
    visibility::Visibility,
};

/// Copies of one engine that wait at most, whatever is asked for.
pub const QUEUE_DEPTH_MAX: u32 = 4096;
/// Regions of one BAR at a time.
const PARTS_MAX: usize = 1 << 16;
/// Bytes that the self-test writes between its two guards.
const TEST_BYTES: usize = 4096;

/// A BAR as memory. Clones share it; it stays mapped while one of them, or a region of it, lives.
#[derive(Clone)]
pub struct PeerBar(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    device: DeviceId,
    mmio: Mmio,
    bar: Arc<BarMap>,
    presence: Arc<Presence>,
    dma_buf: Option<Arc<OwnedFd>>,
    bus: Option<u64>,
    /// Free bytes, counted from one page on: address 0 of the allocator means nothing.
    room: Mutex<IovaAllocator>,
}

/// A part of a BAR, given back on drop.
struct Part {
    bar: PeerBar,
    at: u64,
}

impl Drop for Part {
    fn drop(&mut self) {
        // In a forked child the lock may be held for ever, and the room is the parent's.
        if !self.bar.0.presence.is_child() {
            self.bar.room().free(self.at);
        }
    }
}

impl PeerBar {
    /// Opens the function at `address` and takes its BAR number `bar` (0 to 5) as memory, under the name `device`, which
    /// lies from [`DeviceId::PEER_FIRST`] to [`DeviceId::MODEL_FIRST`] and is nobody else's in this process.
    ///
    /// # Errors
    /// As [`VfioFunction::open`]; `WrongKind` for a BAR that is no memory, but registers; `Unsupported` for one that is not
    /// there or cannot be mapped as a whole; `ApiMisuse` for a device
    /// outside its range.
    pub fn open(space: &DmaSpace, address: PciAddress, bar: u8, device: DeviceId) -> Result<Self, Error> {
        // Before it is opened: what is refused here is not even reset.
        expect_memory(space.sysfs(), address, bar)?;
        Self::of(&Function::open(space, address, Dma::Off)?, bar, device)
    }

    /// Whether [`PeerBar::open`] has a chance, by what the machine tells. Nothing is opened, reset or written.
    ///
    /// # Errors
    /// `WrongKind` and `Unsupported` as [`PeerBar::open`]; `NoDevice` for a function that is not there, or that vfio-pci does
    /// not have.
    pub fn expect(sysfs: &Sysfs, address: PciAddress, bar: u8) -> Result<(), Error> {
        expect_memory(sysfs, address, bar)?;
        match sysfs.driver(address).as_deref() {
            Some(VFIO_PCI) => Ok(()),
            _ => Err(not_bound(sysfs, address, Backend::NoIommu)),
        }
    }

    /// As [`PeerBar::open`], of a function that is open already: the controller memory of an NVMe controller.
    ///
    /// # Errors
    /// As [`PeerBar::open`].
    pub fn of_function(function: &VfioFunction, bar: u8, device: DeviceId) -> Result<Self, Error> {
        expect_memory(function.space().sysfs(), function.address(), bar)?;
        Self::of(function.function(), bar, device)
    }

    fn of(function: &Arc<Function>, number: u8, device: DeviceId) -> Result<Self, Error> {
        // Before it is mapped: from here on the function is closed after the last region that others reach.
        let loan = function.presence().lend();
        let bar = function.map_bar(number.into())?;
        let dma_buf = match function.space().backend() {
            Backend::Iommufd => export(function, number, bar.len()),
            Backend::Type1 | Backend::NoIommu => None,
        };
        let bus = function.space().sysfs().bar_address(function.address(), number.into());
        let name = format!("{}/{number}", function.name());
        let opened = Self::new(&name, device, bar, Arc::clone(function.presence()), dma_buf, bus)?;
        loan.settle();
        Ok(opened)
    }

    fn new(
        name: &str,
        device: DeviceId,
        bar: Arc<BarMap>,
        presence: Arc<Presence>,
        dma_buf: Option<OwnedFd>,
        bus: Option<u64>,
    ) -> Result<Self, Error> {
        if !(DeviceId::PEER_FIRST..DeviceId::MODEL_FIRST).contains(&device.0) {
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Open).at(name).detail("its ordinal is no peer's"));
        }
        if let Some((from, to)) = bar.hole() {
            return Err(Error::new(ErrorKind::Unsupported, Verb::Open)
                .at(name)
                .detail(format!(
                    "its bytes {from:#x} to {to:#x} cannot be mapped, so not all of it is the device's memory"
                ))
                .remedy("use a BAR without an MSI-X table, or a newer kernel"));
        }
        let page = sys::page_bytes();
        let window = Window { first: page, last: page + (bar.len() - 1) };
        let room = Mutex::new(IovaAllocator::new(&[window], &[], page, PARTS_MAX));
        let (mmio, dma_buf) = (bar.mmio(), dma_buf.map(Arc::new));
        Ok(Self(Arc::new(Inner { name: name.into(), device, mmio, bar, presence, dma_buf, bus, room })))
    }

    fn room(&self) -> std::sync::MutexGuard<'_, IovaAllocator> {
        self.0.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The function's address and the BAR's number, as in `0000:02:00.0/2`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its ordinal among the devices of the process.
    pub fn device(&self) -> DeviceId {
        self.0.device
    }

    /// Why its function is no longer ours, if it is not.
    pub fn gone(&self) -> Option<Gone> {
        self.0.presence.gone()
    }

    /// When bytes that come to it so are there for work on its device, once they were told as complete.
    pub fn visibility(&self, landing: Landing) -> Visibility {
        Visibility::of(landing)
    }

    /// Bytes of the BAR.
    pub fn len(&self) -> ByteLen {
        ByteLen(self.0.bar.len())
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.len().0 == 0
    }

    /// `len` bytes of it, from a page of their own; not zeroed. The address of the region counts bytes from the BAR's start.
    ///
    /// # Errors
    /// `ResourceLimit` if no gap of that length is left; `ApiMisuse` for no bytes; `Forked` in a forked child.
    pub fn allocate(&self, len: ByteLen) -> Result<DmaRegion, Error> {
        if self.0.presence.is_child() {
            return Err(fault::forked(Verb::Register, &*self.0.name));
        }
        let refused = |kind, detail: String| Error::new(kind, Verb::Register).at(&*self.0.name).detail(detail);
        let mut room = self.room();
        let page = room.unit();
        let whole = align_up(len.0, page).ok_or_else(|| refused(ErrorKind::TooLarge, format!("{len} of a BAR")))?;
        let at = room.take(whole, 0).map_err(|why| match why {
            IovaError::BadLength => refused(ErrorKind::ApiMisuse, "no bytes".into()),
            IovaError::NoSpace | IovaError::NoEntries => {
                let taken = ByteLen(room.taken_bytes());
                refused(ErrorKind::ResourceLimit, format!("no {len} in one piece: {taken} of {} are taken", self.len()))
            }
        })?;
        drop(room);
        self.part(at, len)
    }

    /// `at` is a taken address of the allocator.
    fn part(&self, at: u64, len: ByteLen) -> Result<DmaRegion, Error> {
        let (part, offset) = (Part { bar: self.clone(), at }, at - sys::page_bytes());
        let place = Place::Device(self.0.device, GpuVa::new(offset));
        // SAFETY: the BAR stays mapped while the part, which holds it, lives; it is device memory, so no reference is made.
        let region = unsafe { DmaRegion::from_foreign(place, len, Box::new(part)) };
        let region = region.map_err(|error| Error::new(ErrorKind::ApiMisuse, Verb::Register).caused_by(error))?;
        let backing = PeerBacking {
            va: (self.0.bar.base().expose_provenance() as u64) + offset,
            dma_buf: self.0.dma_buf.clone(),
            offset,
            bus: self.0.bus.map(|bus| bus + offset),
        };
        region.bind(peer_key(), || Ok::<_, Error>(Box::new(backing) as Guest))?;
        Ok(region)
    }

    /// Copies between host memory and this BAR by the CPU, at most `depth` (1 to [`QUEUE_DEPTH_MAX`]) waiting at a time.
    ///
    /// # Errors
    /// `ApiMisuse` for a depth outside its range.
    pub fn copy_engine(&self, depth: u32) -> Result<PeerCopyEngine, Error> {
        if !(1..=QUEUE_DEPTH_MAX).contains(&depth) {
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup)
                .at(&*self.0.name)
                .detail(format!("a depth of {depth} copies"))
                .remedy(format!("use 1 to {QUEUE_DEPTH_MAX}")));
        }
        let waiting = VecDeque::with_capacity(sw_mem::index(depth.into()));
        Ok(PeerCopyEngine { bar: self.clone(), depth, pins: Vec::new(), waiting })
    }

    /// Writes a pattern at odd offsets, reads it back, and looks whether bytes beside it were left alone. What was there is
    /// restored, also if it fails. The part it uses is one that nobody has.
    ///
    /// # Errors
    /// `ChecksumMismatch` with the first byte that was wrong: this BAR is no plain memory. `ResourceLimit` if all of it is
    /// given out.
    pub fn self_test(&self) -> Result<(), Error> {
        let region = self.allocate(ByteLen(3 * TEST_BYTES as u64))?;
        let at = region.base().raw();
        let mut before = vec![0; 3 * TEST_BYTES];
        self.access(self.0.mmio.read_bytes(at, &mut before))?;
        let tested = self.try_pattern(at);
        let restored = self.access(self.0.mmio.write_bytes(at, &before));
        // The first error is the one that says more.
        tested?;
        restored
    }

    fn try_pattern(&self, at: u64) -> Result<(), Error> {
        let guard = |byte: usize| if byte.is_multiple_of(2) { 0xA5 } else { 0x5A };
        let mut image: Vec<u8> = (0..3 * TEST_BYTES).map(guard).collect();
        self.access(self.0.mmio.write_bytes(at, &image))?;
        // Multiples of an odd number visit every value; the offset and the length are no multiples of any access size.
        let (from, len) = (TEST_BYTES + 3, TEST_BYTES - 7);
        let pattern: Vec<u8> = (0..=u8::MAX).map(|n| n.wrapping_mul(167)).cycle().take(len).collect();
        self.access(self.0.mmio.write_bytes(at + from as u64, &pattern))?;
        image[from..from + len].copy_from_slice(&pattern);
        let mut got = vec![0; image.len()];
        self.access(self.0.mmio.read_bytes(at, &mut got))?;
        match got.iter().zip(&image).position(|(got, want)| got != want) {
            None => Ok(()),
            Some(byte) => Err(Error::new(ErrorKind::ChecksumMismatch, Verb::Copy)
                .at(&*self.0.name)
                .detail(format!("byte {byte} of a test pattern is {:#04x} instead of {:#04x}", got[byte], image[byte]))
                .remedy("this BAR does not behave as memory: choose another one")),
        }
    }

    fn access(&self, done: Result<(), sw_mem::MemError>) -> Result<(), Error> {
        if let Some(why) = self.0.presence.gone() {
            return Err(Error::new(ErrorKind::NoDevice, Verb::Copy)
                .at(&*self.0.name)
                .detail(format!("it is gone: {why:?}")));
        }
        done.map_err(|error| Error::new(ErrorKind::OutOfRange, Verb::Copy).at(&*self.0.name).caused_by(error))
    }
}

impl core::fmt::Debug for PeerBar {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "bar {} of {}", self.0.name, self.len())
    }
}

/// An error unless a BAR can be taken for memory: writes to registers are commands.
fn expect_memory(sysfs: &Sysfs, address: PciAddress, number: u8) -> Result<(), Error> {
    sysfs.expect_function(address)?;
    let refused = |kind, detail: &'static str| {
        Error::new(kind, Verb::Open)
            .at(format!("{address}/{number}"))
            .detail(detail)
            .remedy("name a prefetchable memory BAR: lspci -v shows them")
    };
    // NVM Express Base Specification 1.4 §2.1.10 "Offset 10h: MLBAR (BAR0)".
    if number == 0 && inventory::look(sysfs, address).is_nvme() {
        return Err(refused(ErrorKind::WrongKind, "it holds the registers of an NVMe controller"));
    }
    match sysfs.bar_kind(address, number.into()) {
        BarKind::Prefetchable => Ok(()),
        BarKind::Registers => {
            Err(refused(ErrorKind::WrongKind, "it is not prefetchable: it may hold registers, not memory"))
        }
        BarKind::None => Err(refused(ErrorKind::Unsupported, "the function has no memory BAR of this number")),
    }
}

fn export(function: &Function, number: u8, len: u64) -> Option<OwnedFd> {
    let len = align_up(len, sys::page_bytes())?;
    let exported = sys::vfio::export_dma_buf(function.device(), number.into(), 0, len);
    exported.inspect_err(|errno| tracing::debug!(errno, name = function.name(), "no dma-buf of this BAR")).ok()
}

/// Host memory that jobs may name, while its pin lives.
#[derive(Debug)]
struct Pinned {
    base: u64,
    len: u64,
    /// Keeps the memory.
    _region: DmaRegion,
}

struct Pin(#[expect(dead_code, reason = "held, not read")] Arc<Pinned>);

impl SlabPin for Pin {}

/// Copies by the CPU, made inside `poll`. See [`CopyEngine`].
pub struct PeerCopyEngine {
    bar: PeerBar,
    depth: u32,
    pins: Vec<Weak<Pinned>>,
    /// Each with the host memory it names, so that a pin that is dropped early frees nothing under a copy.
    waiting: VecDeque<(CopyJob, Arc<Pinned>)>,
}

impl PeerCopyEngine {
    fn lost(&self) -> Option<Fault> {
        self.bar.0.presence.gone().map(|_| Fault::new(ErrorKind::NoDevice, 0))
    }

    /// Makes one copy. `Err` also if the device went away while it was made: what it read then is not data.
    fn copy(&self, job: &CopyJob) -> Result<(), Fault> {
        let (mmio, at, len) = (&self.bar.0.mmio, job.device.raw(), u64::from(job.len));
        let done = match job.direction {
            // SAFETY: `submit` found the host range inside pinned memory, which the waiting job keeps; the seam says that
            // nobody else touches it until the copy is told as done.
            CopyDirection::ToDevice => unsafe { mmio.write_from(at, job.host, len) },
            // SAFETY: as above.
            CopyDirection::FromDevice => unsafe { mmio.read_into(at, job.host, len) },
        };
        self.lost().map_or(Ok(()), Err)?;
        done.map_err(|_| Fault::new(ErrorKind::OutOfRange, 0))
    }

    /// Stores to the BAR have arrived after this: a read does not pass them (PCI Express Base Specification §2.4
    /// "Transaction Ordering"), so another function that is told of them now finds them.
    fn settle(&self, at: GpuVa) {
        barrier::flush_write_combining();
        self.bar.0.mmio.read32(at.raw() & !3);
    }

    fn run(&mut self, most: usize, out: &mut Vec<CopyDone>) -> usize {
        let mut last = None;
        let count = most.min(self.waiting.len());
        for _ in 0..count {
            let Some((job, _memory)) = self.waiting.pop_front() else { break };
            let result = self.copy(&job);
            if job.direction == CopyDirection::ToDevice {
                last = Some(job.device);
            }
            out.push(CopyDone { token: job.token, result });
        }
        if let Some(at) = last {
            self.settle(at);
        }
        count
    }
}

impl CopyEngine for PeerCopyEngine {
    fn caps(&self) -> CopyEngineCaps {
        CopyEngineCaps { device: self.bar.device(), queue_depth: self.depth }
    }

    fn pin(&mut self, slabs: &DmaRegion) -> Result<Box<dyn SlabPin>, Fault> {
        let base = slabs.base().host().ok_or(Fault::new(ErrorKind::WrongKind, 0))?.raw();
        let pinned = Arc::new(Pinned { base, len: slabs.len().0, _region: slabs.clone() });
        self.pins.retain(|pin| pin.strong_count() > 0);
        self.pins.push(Arc::downgrade(&pinned));
        Ok(Box::new(Pin(pinned)))
    }

    fn submit(&mut self, job: &CopyJob) -> Result<(), Fault> {
        self.lost().map_or(Ok(()), Err)?;
        if self.waiting.len() >= sw_mem::index(self.depth.into()) {
            return Err(Fault::new(ErrorKind::Busy, 0));
        }
        let (at, len) = (job.host.raw(), u64::from(job.len));
        let holds = |pin: &Arc<Pinned>| {
            at.checked_sub(pin.base).and_then(|offset| offset.checked_add(len)).is_some_and(|end| end <= pin.len)
        };
        let memory = self.pins.iter().filter_map(Weak::upgrade).find(holds);
        let memory = memory.ok_or(Fault::new(ErrorKind::NotRegistered, 0))?;
        if job.device.raw().checked_add(len).is_none_or(|end| end > self.bar.len().0) {
            return Err(Fault::new(ErrorKind::OutOfRange, 0));
        }
        self.waiting.push_back((*job, memory));
        Ok(())
    }

    fn ring(&mut self) -> Result<(), Fault> {
        self.lost().map_or(Ok(()), Err)
    }

    fn poll(&mut self, out: &mut Vec<CopyDone>) -> Result<usize, Fault> {
        let room = out.capacity() - out.len();
        Ok(self.run(room, out))
    }

    fn fence(&mut self, _timeout: Duration, out: &mut Vec<CopyDone>) -> Fence {
        // Copies are made by this thread: those that are not made yet never will be.
        let room = out.capacity() - out.len();
        self.run(room, out);
        self.waiting.clear();
        Fence::Quiet
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use sw_testkit::{
        clock::RealClock,
        conformance::{End, copy_engine},
    };

    use super::*;
    use crate::{caps::Region, fake::Tree};

    const BAR_BYTES: u64 = 4 << 20;
    const DEVICE: DeviceId = DeviceId(DeviceId::PEER_FIRST + 3);

    /// A BAR that is ordinary memory, with the file behind it.
    fn fake() -> (PeerBar, OwnedFd) {
        let (bar, file) = mapped(None);
        (bar.unwrap(), file)
    }

    fn mapped(areas: Option<Vec<(u64, u64)>>) -> (Result<PeerBar, Error>, OwnedFd) {
        let file = sys::map::memory_file(BAR_BYTES).unwrap();
        let region = Region { flags: sys::vfio::REGION_MMAP, len: BAR_BYTES, offset: 0, areas };
        let presence = Arc::default();
        let bar = BarMap::new(file.as_fd(), &region, &presence, Arc::new(())).unwrap();
        (PeerBar::new("test/2", DEVICE, bar, presence, None, None), file)
    }

    #[test]
    fn a_bar_with_a_hole_is_no_memory_for_peers() {
        let half = BAR_BYTES / 2;
        assert!(mapped(Some(vec![(0, half), (half, half)])).0.is_ok());
        for areas in [vec![(0, half)], vec![(0, half), (half + 0x1_0000, half - 0x1_0000)], vec![]] {
            let refused = mapped(Some(areas)).0.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
            assert!(refused.to_string().contains("cannot be mapped"), "{refused}");
        }
    }

    struct Bed(PeerBar, RealClock);

    impl copy_engine::Bed for Bed {
        fn name(&self) -> String {
            "peer BAR in a memory file".into()
        }

        fn engine(&mut self) -> Result<Box<dyn CopyEngine>, End> {
            Ok(Box::new(self.0.copy_engine(16).unwrap()))
        }

        fn device_memory(&mut self, len: ByteLen) -> Result<DmaRegion, End> {
            Ok(self.0.allocate(len).unwrap())
        }

        fn now(&self) -> Duration {
            self.1.now()
        }

        fn idle(&mut self) {}
    }

    #[test]
    fn the_suite_of_copy_engines_is_green() {
        let report = copy_engine::run(&mut Bed(fake().0, RealClock::start()));
        report.assert_green(&[]);
    }

    #[test]
    fn the_self_test_restores_what_was_there() {
        let (bar, file) = fake();
        sys::pwrite_exact(file.as_fd(), &[7; 20_000], 0).unwrap();
        bar.self_test().unwrap();
        let mut after = [0; 20_000];
        sys::pread_exact(file.as_fd(), &mut after, 0).unwrap();
        assert!(after.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn the_self_test_restores_also_where_memory_is_no_memory() {
        // One page of the file is mapped at the place of its neighbour, too: what is written beside changes the pattern.
        let file = sys::map::memory_file(BAR_BYTES).unwrap();
        sys::pwrite_exact(file.as_fd(), &[7; 4 * TEST_BYTES], 0).unwrap();
        let region = Region { flags: sys::vfio::REGION_MMAP, len: BAR_BYTES, offset: 0, areas: None };
        let presence = Arc::default();
        let bar = BarMap::new(file.as_fd(), &region, &presence, Arc::new(())).unwrap();
        bar.alias(file.as_fd(), sys::page_bytes(), 0);
        let bar = PeerBar::new("test/2", DEVICE, bar, presence, None, None).unwrap();
        assert_eq!(bar.self_test().unwrap_err().kind(), ErrorKind::ChecksumMismatch);
        let mut after = [0; 4 * TEST_BYTES];
        sys::pread_exact(file.as_fd(), &mut after, 0).unwrap();
        assert!(after.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn only_prefetchable_memory_is_taken_and_no_registers() {
        let tree = Tree::new();
        let nvme = tree.function("0000:01:00.0", "0x010802", "vfio-pci", "1");
        let other = tree.function("0000:02:00.0", "0x050000", "vfio-pci", "2");
        let lines = "0xfe000000 0xfe003fff 0x14220c\n0xfe100000 0xfe100fff 0x40200\n0xe000 0xe0ff 0x40101\n\
                     0x0 0x0 0x0\n0x380000000000 0x3800003fffff 0x14220c\n";
        for address in [nvme, other] {
            tree.write(&format!("sys/bus/pci/devices/{address}/resource"), lines);
        }
        let kind = |address, bar| expect_memory(tree.sysfs(), address, bar).map_err(|error| error.kind());
        assert_eq!(kind(other, 0), Ok(()));
        assert_eq!(kind(other, 4), Ok(()));
        assert_eq!(kind(nvme, 4), Ok(()), "a controller's memory buffer");
        assert_eq!(kind(nvme, 0), Err(ErrorKind::WrongKind), "its registers");
        assert_eq!(kind(other, 1), Err(ErrorKind::WrongKind), "not prefetchable");
        for (bar, what) in [(2, "I/O ports"), (3, "an empty one"), (5, "one that is not told")] {
            assert_eq!(kind(other, bar), Err(ErrorKind::Unsupported), "{what}");
        }
        assert_eq!(kind("0000:03:00.0".parse().unwrap(), 0), Err(ErrorKind::NoDevice));
    }

    #[test]
    fn what_can_be_opened_is_told_without_opening_it() {
        let tree = Tree::new();
        let bound = tree.function("0000:02:00.0", "0x050000", "vfio-pci", "2");
        let other = tree.function("0000:03:00.0", "0x050000", "somebody", "3");
        for address in [bound, other] {
            tree.write(&format!("sys/bus/pci/devices/{address}/resource"), "0xfe000000 0xfe003fff 0x14220c\n");
        }
        PeerBar::expect(tree.sysfs(), bound, 0).unwrap();
        assert_eq!(PeerBar::expect(tree.sysfs(), bound, 1).unwrap_err().kind(), ErrorKind::Unsupported);
        let refused = PeerBar::expect(tree.sysfs(), other, 0).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoDevice);
        assert!(refused.to_string().contains("somebody") && refused.remedy_text().contains("nvme bind"), "{refused}");
    }

    #[test]
    fn parts_are_disjoint_and_come_back() {
        let (bar, _file) = fake();
        let first = bar.allocate(ByteLen(1)).unwrap();
        let second = bar.allocate(ByteLen(BAR_BYTES - sys::page_bytes())).unwrap();
        assert_eq!((first.base().raw(), second.base().raw()), (0, sys::page_bytes()));
        assert_eq!(bar.allocate(ByteLen(1)).unwrap_err().kind(), ErrorKind::ResourceLimit);
        drop(second);
        assert_eq!(bar.allocate(ByteLen(1)).unwrap().base().raw(), sys::page_bytes());
        assert_eq!(bar.allocate(ByteLen(0)).unwrap_err().kind(), ErrorKind::ApiMisuse);
    }

    #[test]
    fn a_bar_that_vanishes_under_a_copy_is_a_typed_fault() {
        let (bar, file) = fake();
        let mut engine = bar.copy_engine(4).unwrap();
        let host = sw_mem::Buffer::allocate(ByteLen(1 << 16)).unwrap().into_span();
        let _pin = engine.pin(host.region()).unwrap();
        let job = CopyJob {
            token: sw_engine::Token::from_raw(1),
            direction: CopyDirection::FromDevice,
            host: host.place().host().unwrap(),
            device: GpuVa::new(1 << 20),
            len: 1 << 16,
        };
        engine.submit(&job).unwrap();
        // Past the end of its file a mapping answers with SIGBUS, as a BAR whose function is off does.
        std::fs::File::from(file).set_len(0).unwrap();
        let mut out = Vec::with_capacity(4);
        assert_eq!(engine.poll(&mut out), Ok(1));
        assert_eq!(out[0].result, Err(Fault::new(ErrorKind::NoDevice, 0)));
        assert_eq!(engine.submit(&job), Err(Fault::new(ErrorKind::NoDevice, 0)));
        assert_eq!(bar.self_test().unwrap_err().kind(), ErrorKind::NoDevice);
        assert!(crate::bus_error::replaced_pages() > 0);
    }

    #[test]
    fn a_job_outside_pinned_memory_or_the_bar_is_refused() {
        let (bar, _file) = fake();
        let mut engine = bar.copy_engine(1).unwrap();
        let host = sw_mem::Buffer::allocate(ByteLen(4096)).unwrap().into_span();
        let mut job = CopyJob {
            token: sw_engine::Token::from_raw(1),
            direction: CopyDirection::ToDevice,
            host: host.place().host().unwrap(),
            device: GpuVa::new(BAR_BYTES - 1),
            len: 2,
        };
        assert_eq!(engine.submit(&job).unwrap_err().kind, ErrorKind::NotRegistered);
        let _pin = engine.pin(host.region()).unwrap();
        assert_eq!(engine.submit(&job).unwrap_err().kind, ErrorKind::OutOfRange);
        job.device = GpuVa::new(0);
        engine.submit(&job).unwrap();
        assert_eq!(engine.submit(&job).unwrap_err().kind, ErrorKind::Busy);
    }
}
