//! NVMe controllers that this process drives itself: who has which, and what lanes need of them.
//!
//! ```text
//!   nvme://ADDRESS/NSID ─► controller (opened once) ─► Directory ◄── NvmeTransport of every lane
//!                                │                                         │ attached regions
//!   bar:ADDRESS/N ─► peer BAR ───┴──────────── one DmaSpace ◄──────────────┘
//! ```
//!
//! Controllers and peers of an engine share one DMA address space, so that memory is mapped once, whoever moves it.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sw_engine::{
    Error, ErrorKind, Face, Object, PciAddress, Reason, Residency, Verb,
    seam::{Entry, EntryKind, OpenMode, Transport, TransportCaps},
};
use sw_mem::{Buffer, ByteLen, DeviceId, DmaRegion, HugePages, Populate};
use sw_nvme::{
    controller::{Controller, ControllerConfig, Life},
    directory::{self, Directory},
    namespace::Namespace,
    transport::{Completion, IO_BYTES_MAX, NvmeConfig, NvmeTransport},
};
use sw_vfio::{
    Backend, ControllerClaim, DmaSpace, Found, NamespaceClaim, PeerBar, StaysOpen, Sysfs, VfioFunction, VfioWaiter,
};

use crate::{
    builder::{Config, NvmeBackend, NvmeCompletion, NvmeUse},
    clock::Clock,
    doctor::{Fact, Health},
    nvme_control::Attendant,
    policy::{Destination, PciBar},
    uri::NvmeUri,
};

/// I/O queue pairs that a controller is asked for: one a lane. Reactors, lanes of callers and lanes that were given away.
const QUEUE_PAIRS: u16 = 64;

/// Memory from this size on is pinned by the thread that brings it. Below, a lane does it at the first I/O, and takes less
/// than some milliseconds: the kernel pins 4 KiB pages at 10 GB/s or so.
const PIN_EARLY_BYTES: u64 = 16 << 20;

/// Bytes of a reserved huge page on x86-64 and on aarch64 with 4 KiB pages.
pub(crate) const RESERVED_PAGE_BYTES: u32 = 2 << 20;

/// See the module documentation.
pub(crate) struct Nvme {
    sysfs: Sysfs,
    /// Whether lanes get a transport for controllers: a machine without VFIO pays nothing for it. Looked up once, so that all
    /// lanes and plans of an engine number their transports alike.
    is_possible: bool,
    config: Config,
    clock: Clock,
    directory: Arc<Directory<VfioFunction>>,
    /// Held while a function is opened: control plane.
    opened: Mutex<Opened>,
}

/// What was opened so far.
#[derive(Default)]
struct Opened {
    /// The engine was closed: nothing is opened any more.
    is_closed: bool,
    space: Option<DmaSpace>,
    controllers: BTreeMap<PciAddress, Driven>,
    peers: BTreeMap<u16, PeerBar>,
}

/// A controller that this process drives.
#[derive(Clone)]
struct Driven {
    index: u32,
    controller: Arc<Controller<VfioFunction>>,
    claim: Arc<ControllerClaim>,
    /// Does its slow work, until nobody drives it any more.
    _attendant: Arc<Attendant>,
}

impl Driven {
    /// Whether it takes commands, or will again after its reset.
    fn lives(&self) -> bool {
        let up = matches!(self.controller.life(), Life::Up(_) | Life::Resetting(_));
        up && self.controller.bus().gone().is_none()
    }

    /// Shuts it down and closes its function, whatever objects and lanes still hold: their I/Os end typed. An error: it
    /// stays open and claimed.
    fn let_go(&self) -> Result<(), StaysOpen> {
        // One that is gone or was given up has nothing left to shut down.
        let _ = self.controller.shut_down();
        self.controller.bus().close()
    }

    fn serial(&self) -> String {
        self.controller.facts().info.serial.to_string()
    }
}

/// Keeps a namespace's controller, and tells whether the namespace is still what it was.
struct Keep {
    controller: Arc<Controller<VfioFunction>>,
    nsid: u32,
    /// What lets us write to it; nothing was claimed to read.
    _claim: Option<NamespaceClaim>,
}

impl Nvme {
    pub(crate) fn find(config: Config, clock: Clock) -> Self {
        let there = Path::new("/dev/vfio").exists() || Path::new("/dev/iommu").exists();
        Self {
            sysfs: Sysfs::default(),
            is_possible: config.nvme == NvmeUse::Auto && there,
            config,
            clock,
            directory: Arc::default(),
            opened: Mutex::default(),
        }
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error unless functions can be opened at all: by this engine, and on this machine.
    fn expect_vfio(&self, address: PciAddress) -> Result<(), Error> {
        if self.config.nvme == NvmeUse::Off {
            return Err(Error::new(ErrorKind::NoDevice, Verb::Open)
                .at(address.to_string())
                .detail("the engine was built without NVMe controllers of its own")
                .remedy("build it with NvmeUse::Auto (--engine nvme=auto)"));
        }
        if !self.is_possible {
            return Err(Error::new(ErrorKind::NoDevice, Verb::Open)
                .at(address.to_string())
                .detail("the machine had no VFIO when the engine was made")
                .remedy(format!("straightway nvme bind {address}, then make a new engine")));
        }
        Ok(())
    }

    /// The shared address space, made for the first function that is opened.
    fn space(&self, opened: &mut Opened, address: PciAddress) -> Result<DmaSpace, Error> {
        self.expect_vfio(address)?;
        if opened.is_closed {
            return Err(Error::new(ErrorKind::Closed, Verb::Open)
                .at(address.to_string())
                .detail("the engine is closed"));
        }
        if let Some(space) = &opened.space {
            return Ok(space.clone());
        }
        let backend = match self.config.nvme_backend {
            NvmeBackend::Auto => Backend::detect(&self.sysfs, address)?,
            NvmeBackend::Type1 => Backend::Type1,
            NvmeBackend::Iommufd => Backend::Iommufd,
            NvmeBackend::NoIommu => Backend::NoIommu,
        };
        let space = DmaSpace::new(&self.sysfs, backend)?;
        opened.space = Some(space.clone());
        Ok(space)
    }

    /// The controller at an address; claimed and brought up once.
    fn controller(&self, address: PciAddress) -> Result<Driven, Error> {
        let mut opened = self.opened();
        if let Some(driven) = opened.controllers.get(&address) {
            if driven.lives() {
                return Ok(driven.clone());
            }
            self.directory.take_out(driven.index);
            driven.let_go().map_err(|why| {
                Error::new(ErrorKind::NoDevice, Verb::Open)
                    .at(address.to_string())
                    .detail(format!("it is dead and could not be closed: {why}"))
                    .remedy(why.remedy())
            })?;
            opened.controllers.remove(&address);
        }
        let claim = ControllerClaim::take(&self.sysfs, address)?;
        let space = self.space(&mut opened, address)?;
        let function = VfioFunction::open(&space, address, self.clock.start_instant())?;
        function.tie(Arc::clone(&claim));
        let config = ControllerConfig { queue_pairs: QUEUE_PAIRS, ..ControllerConfig::default() };
        let controller = Controller::open(Arc::new(function), config)?;
        let attendant = Arc::new(Attendant::start(&controller)?);
        let index = self.directory.add(controller.clone())?;
        let driven = Driven { index, controller, claim, _attendant: attendant };
        opened.controllers.insert(address, driven.clone());
        Ok(driven)
    }

    /// Whether the memory behind a BAR is open. It was tested then.
    pub(crate) fn has_peer(&self, bar: PciBar) -> bool {
        let device = Destination::Bar(bar).device();
        device.is_some_and(|device| self.opened().peers.get(&device.0).is_some_and(|peer| peer.gone().is_none()))
    }

    /// An error unless a BAR could be opened as memory, by what the machine tells. Nothing is opened, reset or written.
    pub(crate) fn expect_peer(&self, bar: PciBar) -> Result<(), Error> {
        if self.has_peer(bar) {
            return Ok(());
        }
        self.expect_vfio(bar.address)?;
        PeerBar::expect(&self.sysfs, bar.address, bar.bar)
    }

    /// The memory behind a BAR; opened and tested once.
    pub(crate) fn peer(&self, bar: PciBar) -> Result<PeerBar, Error> {
        let fail = |kind| Error::new(kind, Verb::Open).at(format!("bar:{}/{}", bar.address, bar.bar));
        let device = bar
            .index()
            .map(|index| DeviceId(DeviceId::PEER_FIRST + index))
            .ok_or_else(|| fail(ErrorKind::ResourceLimit).detail("too many different BARs in one process"))?;
        let mut opened = self.opened();
        if let Some(peer) = opened.peers.get(&device.0).filter(|peer| peer.gone().is_none()) {
            return Ok(peer.clone());
        }
        opened.peers.remove(&device.0);
        let space = self.space(&mut opened, bar.address)?;
        let peer = PeerBar::open(&space, bar.address, bar.bar, device)?;
        peer.self_test()?;
        opened.peers.insert(device.0, peer.clone());
        Ok(peer)
    }

    /// Whether controllers reach nothing but reserved pages, and regions in one piece.
    fn is_bare(&self) -> bool {
        self.is_possible && self.config.nvme_backend == NvmeBackend::NoIommu
    }

    /// What the slabs of a lane are made of.
    pub(crate) fn slab_pages(&self) -> HugePages {
        if self.is_bare() { HugePages::Reserved } else { HugePages::Advise }
    }

    /// Host memory that controllers reach, where that needs other memory than usual and `len` bytes of it can be had. Without
    /// an IOMMU that is one page of the machine's reserved pool. `None`: take the usual memory; what it is no good for is told
    /// by the I/O that needs it.
    pub(crate) fn allocate(&self, len: u64, phase: u64) -> Option<Buffer> {
        let whole = len.checked_add(phase % sw_mem::PAGE_BYTES)?;
        if !self.is_bare() || whole > RESERVED_PAGE_BYTES.into() {
            return None;
        }
        Buffer::allocate_with(ByteLen(len), phase, HugePages::Reserved, Populate::Lazy)
            .inspect_err(|error| tracing::debug!(%error, "memory that no controller reaches is taken"))
            .ok()
    }

    /// Maps large memory for the controllers now, so that no lane stands still for it later. A refusal is told to the first
    /// I/O that needs it, which asks again.
    pub(crate) fn pin(&self, region: &DmaRegion) {
        // Without an IOMMU nothing is pinned.
        if region.len().0 < PIN_EARLY_BYTES || self.is_bare() {
            return;
        }
        // Somebody opens a controller, which may take long: lanes do what is left.
        let Ok(opened) = self.opened.try_lock() else { return };
        let space = opened.space.clone().filter(|_| !opened.controllers.is_empty());
        drop(opened);
        if let Some(Err(error)) = space.map(|space| space.map(region)) {
            tracing::debug!(%error, "memory was not pinned early");
        }
    }

    /// Opens a namespace. Its controller is brought up by the first one, and belongs to this process until the engine ends.
    pub(crate) fn open(&self, uri: &NvmeUri, mode: OpenMode) -> Result<Arc<Object>, Error> {
        let (driven, namespace) = self.namespace(uri)?;
        let claim = (mode == OpenMode::Update).then(|| claim(&driven, &namespace, uri)).transpose()?;
        let Driven { index, controller, .. } = driven;
        let face = directory::face(index, &namespace)
            .and_then(|face| with_blocks_that_fit(face, self.transport_config().io_bytes_max))
            .map_err(|error| error.at(uri.to_string()))?;
        Ok(Arc::new(Object {
            id: Object::next_id(),
            name: uri.to_string().into(),
            len: namespace.len_bytes(),
            version: namespace.version(),
            faces: vec![face],
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(Keep { controller, nsid: uri.nsid, _claim: claim }),
        }))
    }

    /// Facts of a namespace.
    pub(crate) fn stat(&self, uri: &NvmeUri) -> Result<Entry, Error> {
        let (_, namespace) = self.namespace(uri)?;
        Ok(Entry {
            name: uri.to_string(),
            kind: EntryKind::BlockDevice,
            len: namespace.len_bytes(),
            version: namespace.version(),
        })
    }

    fn namespace(&self, uri: &NvmeUri) -> Result<(Driven, Namespace), Error> {
        let driven = self.controller(uri.controller)?;
        let serial = driven.serial();
        if uri.serial.as_ref().is_some_and(|wanted| *wanted != serial) {
            return Err(Error::new(ErrorKind::Changed, Verb::Open)
                .at(uri.to_string())
                .detail(format!("the controller has the serial number {serial}; it is not the one that was named"))
                .remedy("look at `straightway nvme list`: addresses change when hardware does"));
        }
        let all = driven.controller.namespaces();
        match all.iter().find(|namespace| namespace.nsid == uri.nsid) {
            Some(namespace) => Ok((driven, namespace.clone())),
            None => {
                let there: Vec<String> = all.iter().map(|namespace| namespace.nsid.to_string()).collect();
                Err(Error::new(ErrorKind::NotFound, Verb::Open)
                    .at(uri.to_string())
                    .detail(format!("the controller has no active namespace {}", uri.nsid))
                    .remedy(format!("its namespaces are: {}", there.join(", "))))
            }
        }
    }

    fn transport_config(&self) -> NvmeConfig {
        let Config { queue_depth, io_bytes, .. } = self.config;
        NvmeConfig {
            queue_depth,
            commands_per_controller: queue_depth.min(4095),
            io_bytes_max: io_bytes.min(IO_BYTES_MAX),
            completion: match self.config.nvme_completion {
                NvmeCompletion::Polled => Completion::Polled,
                NvmeCompletion::Interrupt => Completion::Interrupt,
                NvmeCompletion::Hybrid(spin) => Completion::Hybrid { spin },
            },
            device: Ok(()),
            ..NvmeConfig::default()
        }
    }

    /// What the transport of a lane for `destination` can do; `None` where lanes have none.
    pub(crate) fn caps(&self, destination: Destination) -> Option<TransportCaps> {
        let caps = self.transport_config().caps();
        // Memory of a GPU is out of reach until a probe proves otherwise.
        let device = match destination {
            Destination::Host | Destination::Bar(_) | Destination::PeerMemory(_) => Ok(()),
            Destination::Gpu(_) => Err(Reason::NoPeerPages),
        };
        self.is_possible.then_some(TransportCaps { device, ..caps })
    }

    /// The transport of one lane; `None` where there can be no controller.
    pub(crate) fn transport(&self) -> Result<Option<Box<dyn Transport>>, Error> {
        if !self.is_possible {
            return Ok(None);
        }
        let waiter = VfioWaiter::new(self.clock.start_instant())?;
        Ok(Some(Box::new(NvmeTransport::new(self.directory.clone(), waiter, self.transport_config())?)))
    }

    /// What the machine has of PCI, VFIO and IOMMU.
    pub(crate) fn facts(&self) -> Vec<Fact> {
        let health = |health| match health {
            sw_vfio::Health::Good => Health::Good,
            sw_vfio::Health::Limited => Health::Limited,
            sw_vfio::Health::Missing => Health::Missing,
            sw_vfio::Health::Neutral => Health::Neutral,
        };
        let facts = sw_vfio::facts(&self.sysfs).into_iter();
        facts
            .map(|fact| Fact { name: fact.name, health: health(fact.health), value: fact.value, remedy: fact.remedy })
            .collect()
    }

    /// Shuts the controllers down in good order and gives functions and claims back, whatever objects still hold of them.
    /// After the lanes: nothing is in flight.
    pub(crate) fn shut_down(&self) {
        let mut opened = self.opened();
        opened.is_closed = true;
        for (_, driven) in core::mem::take(&mut opened.controllers) {
            if let Err(why) = driven.let_go() {
                tracing::warn!(controller = driven.controller.name(), %why, "it stays open until the process ends");
            }
        }
        opened.peers.clear();
        opened.space = None;
    }
}

/// Claims a namespace for writing: only by an address that names the controller's serial number.
fn claim(driven: &Driven, namespace: &Namespace, uri: &NvmeUri) -> Result<NamespaceClaim, Error> {
    let serial = driven.serial();
    if uri.serial.is_none() {
        return Err(Error::new(ErrorKind::ApiMisuse, Verb::Open)
            .at(uri.to_string())
            .detail("a namespace is written only by an address that names the controller's serial number")
            .remedy(format!(
                "if it is the right one, write 'nvme://{}/{}?serial={serial}' in quotes",
                uri.controller, uri.nsid
            )));
    }
    let found = Found { serial: &serial, nsid: namespace.nsid, identity: &namespace.identity };
    driven.claim.namespace(found, uri.serial.as_deref())
}

/// Whether a namespace is what it was when it was opened; `None` for an object that is no namespace.
pub(crate) fn unchanged(object: &Object) -> Option<Result<(), Error>> {
    let keep = object.keep.downcast_ref::<Keep>()?;
    if keep.controller.bus().gone().is_some() {
        return Some(Err(Error::new(ErrorKind::NoDevice, Verb::Read)
            .at(object.name.clone())
            .detail("the controller was removed, or given back when its engine was closed")
            .remedy("open it again when it is back")));
    }
    let now = keep.controller.namespaces().into_iter().find(|namespace| namespace.nsid == keep.nsid);
    let same = now.is_some_and(|now| now.version() == object.version && now.len_bytes() == object.len);
    Some(if same {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Changed, Verb::Read)
            .at(object.name.clone())
            .detail("the namespace was deleted, formatted or resized while it was read")
            .remedy("open it again"))
    })
}

/// A face of which one I/O holds a block: a namespace says what its blocks are, and nothing moves a part of one.
///
/// # Errors
/// `Unsupported`, with the setting that helps.
pub(crate) fn with_blocks_that_fit(face: Face, io_bytes_max: u32) -> Result<Face, Error> {
    let block = face.granularity.block;
    if block <= io_bytes_max {
        return Ok(face);
    }
    Err(Error::new(ErrorKind::Unsupported, Verb::Open)
        .detail(format!("its blocks of {block} bytes are larger than one I/O, which has {io_bytes_max}"))
        .remedy("use larger I/Os (io_bytes, up to 64 MiB; 16 MiB for nvme://), or another format of the namespace"))
}

#[cfg(test)]
mod tests {
    use sw_engine::{Granularity, Landing};

    use super::*;

    #[test]
    fn a_block_that_no_io_holds_is_refused() {
        let face = |block| Face {
            transport: "nvme",
            handle: 0,
            granularity: Granularity { block, memory: 1 },
            write_unit: 1,
            landing: Landing::Dma,
            because: None,
        };
        assert!(with_blocks_that_fit(face(65536), 65536).is_ok());
        let error = with_blocks_that_fit(face(131_072), 65536).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("io_bytes"), "{error}");
    }
}
