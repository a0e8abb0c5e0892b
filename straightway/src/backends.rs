//! Composition: which backends this engine has. The only module that knows all of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use sw_cache::CacheConfig;
/// A stream of the caller's, by its handle.
pub use sw_cuda::ForeignStream as CallerStream;
pub(crate) use sw_cuda::{
    CUFILE, CuFile, CuFileHandle, CuFileRefusal, CuFileReport, CuFileSource, DeviceMoves, DeviceSums, SumRange,
};
use sw_cuda::{
    Context, CopyEngineConfig, CudaCopyEngine, CudaError, DeviceBuffer, DeviceReport, Driver, Gate, Gates, Kernels,
    PointerKind, Refusal, SelfTest, StreamOrder,
};
use sw_engine::{
    Error, ErrorKind, LaneConfig, LaneParts, Reason, SLAB_BYTES_MAX, StagingShape, TransportName, Verb,
    seam::{CopyDirection, CopyEngine, Transport, TransportCaps},
};
use sw_mem::{ByteLen, DmaRegion, HostVa, HugePages, SlabPool};
use sw_uring::{
    FileStore, Machine, PassthroughTransport, Probe, ThreadsConfig, ThreadsTransport, UringConfig, UringTransport,
    peer::PeerMemory,
};

use crate::{
    builder::{Config, UringCompletion},
    caches::Caches,
    clock::Clock,
    doctor::{Fact, Health},
    fabrics::Fabrics,
    keys::NvmeTcpKeys,
    nvme::{Nvme, RESERVED_PAGE_BYTES},
    policy::Destination,
    reach::Scratches,
    remotes::{Remote, Remotes},
    staging::{self, Source, Staging},
    uri::{FabricWire, NvmeTcpUri, RdmaPort},
    vendor::{self, Vendor},
};

/// Every transport of this build, by the name that routes print.
pub(crate) const TRANSPORTS: [TransportName; 15] = [
    sw_uring::IO_URING,
    sw_uring::PREADV2,
    sw_uring::NVME_PASSTHROUGH,
    sw_nvme::transport::NVME,
    sw_net::NVME_TCP,
    sw_net::NVME_RDMA,
    sw_net::NVME_RDMA_EMULATED,
    sw_remote::HTTP,
    sw_remote::hdfs::HDFS,
    sw_remote::nfs::NFS,
    sw_remote::CEPH,
    sw_remote::DAOS,
    sw_remote::juicefs::JUICEFS,
    sw_remote::agent::AGP,
    vendor::NAME,
];

/// Devices that may each have their whole depth in one ring: a ring is for files of all devices, and one that hangs keeps its
/// places.
const DEVICES_PER_RING: u32 = 4;

/// Slabs of a lane that has no GPU to feed, of [`HOST_SLAB_BYTES`] each: enough to keep a disk busy with small reads as with
/// large ones while misaligned bytes are copied out.
const HOST_SLABS: u32 = 40;
/// Large enough for a disk's rate, small enough to be in the processor's cache when it is copied out.
const HOST_SLAB_BYTES: u32 = 128 << 10;

/// Copies in flight while slab sizes are measured: enough for a round of the smallest size.
const COPIES_MEASURED: u32 = 32;

/// Who owns the lane that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// One thread, the first that polls.
    OneThread,
    /// Whoever holds it.
    Anybody,
}

/// What was found on this machine, and the GPUs that were opened.
pub(crate) struct Backends {
    pub(crate) probe: Probe,
    pub(crate) files: FileStore,
    pub(crate) nvme: Nvme,
    pub(crate) fabrics: Fabrics,
    /// Behind RDMA devices of the system's.
    pub(crate) rdma: Fabrics,
    /// Behind the emulated RDMA fabric.
    pub(crate) rdma_emulated: Fabrics,
    pub(crate) remotes: Remotes,
    pub(crate) caches: Caches,
    pub(crate) vendor: Arc<Vendor>,
    pub(crate) scratches: Scratches,
    machine: Machine,
    /// The rings of NVMe commands through the kernel's driver, where there is a namespace for them. Looked up once, so that all
    /// lanes and plans of an engine number their transports alike.
    commands: Option<UringConfig>,
    config: Config,
    clock: Clock,
    gpus: Mutex<BTreeMap<u16, Arc<Gpu>>>,
    driver: OnceLock<Result<Driver, Refusal>>,
}

/// A GPU that was opened.
struct Gpu {
    context: Context,
    /// Its staging ring, once it was measured. Control plane: locked while it is.
    staging: Mutex<Option<Staging>>,
    /// Where its gates come from, once one was asked for.
    gates: Mutex<Option<Gates>>,
    /// Its kernels, once some were asked for.
    kernels: Mutex<Option<Kernels>>,
}

impl Gpu {
    fn gates(&self) -> Result<Gates, CudaError> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*gates {
            return Ok(known.clone());
        }
        Gates::new(&self.context).map(|made| gates.insert(made).clone())
    }

    fn kernels(&self) -> Result<Kernels, CudaError> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*kernels {
            return Ok(known.clone());
        }
        Kernels::new(&self.context).map(|made| kernels.insert(made).clone())
    }
}

/// A place in a stream of the caller's that the stream passes when this is dropped: see
/// [`Engine::stream_gate`](crate::Engine::stream_gate).
#[derive(Debug)]
pub struct StreamGate(Gate);

impl StreamGate {
    /// Whether everything that the stream held before the gate is done. Never blocks.
    ///
    /// # Errors
    /// The driver's; also those of earlier work of the device.
    pub fn is_reached(&self) -> Result<bool, Error> {
        self.0.is_reached().map_err(|error| error.into_error(Verb::Copy))
    }
}

/// Memory of a GPU, as its driver knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAllocation {
    /// The GPU, counted as the driver counts.
    pub gpu: u16,
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

/// No device memory, if it is memory at all: what would be copied there would end the process, which `why` tells instead.
fn host_memory(address: u64, why: impl FnOnce() -> Error) -> Result<Option<DeviceAllocation>, Error> {
    if sw_mem::is_readable(HostVa::new(address)) {
        return Ok(None);
    }
    Err(why().at(format!("memory at {address:#x}, which the processor cannot read")))
}

/// I/Os in flight in one ring.
fn ring_depth(config: &Config) -> u32 {
    config.queue_depth.saturating_mul(DEVICES_PER_RING).min(sw_uring::QUEUE_DEPTH_MAX)
}

impl Backends {
    pub(crate) fn find(
        config: Config,
        clock: Clock,
        cufile: CuFileSource,
        keys: NvmeTcpKeys,
        (remote, cache): (Remote, Option<CacheConfig>),
    ) -> Self {
        let probe = match config.io_uring {
            crate::builder::UringUse::Auto => sw_uring::probe(),
            crate::builder::UringUse::Off => {
                Probe { transport: sw_uring::PREADV2, because: Some((Reason::PolicyExcludes, 0)), sysctl: None }
            }
        };
        let files = FileStore::probed(&probe);
        let nvme = Nvme::find(config, clock);
        let machine = Machine::this();
        let possible = probe.transport == sw_uring::IO_URING && sw_uring::passthrough::is_possible(&machine);
        // No buffers of their own: memory that is registered with the file rings is not pinned twice.
        let rings = || UringConfig { queue_depth: ring_depth(&config), buffers_max: 0, ..UringConfig::passthrough() };
        let commands = possible.then(rings);
        Self {
            probe,
            files,
            nvme,
            fabrics: Fabrics::new(config, keys.clone(), &FabricWire::Tcp),
            rdma: Fabrics::new(config, keys.clone(), &FabricWire::Rdma(RdmaPort::default())),
            rdma_emulated: Fabrics::new(config, keys, &FabricWire::EmulatedRdma),
            remotes: Remotes::new(remote),
            caches: Caches::new(cache),
            vendor: Vendor::new(&config, cufile),
            scratches: Scratches::default(),
            machine,
            commands,
            config,
            clock,
            gpus: Mutex::default(),
            driver: OnceLock::new(),
        }
    }

    /// The driver, loaded when a GPU is first asked for: a program that uses none does not wait for it.
    pub(crate) fn driver(&self) -> Result<Driver, Refusal> {
        self.driver
            .get_or_init(|| match self.config.gpu {
                crate::builder::GpuUse::Auto => Driver::load(),
                crate::builder::GpuUse::Off => Err(Refusal::NotAsked),
            })
            .clone()
    }

    /// The context of a GPU; opened once.
    pub(crate) fn gpu(&self, ordinal: u16) -> Result<Context, Error> {
        self.opened(ordinal).map(|gpu| gpu.context.clone())
    }

    fn opened(&self, ordinal: u16) -> Result<Arc<Gpu>, Error> {
        let driver = self.driver().map_err(|refusal| match refusal {
            Refusal::NotAsked => Error::new(ErrorKind::NoDevice, Verb::Setup)
                .at(format!("gpu{ordinal}"))
                .detail("the engine was built without GPUs")
                .remedy("build it with GpuUse::Auto"),
            other => other.into_error(),
        })?;
        let mut gpus = self.gpus.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = gpus.get(&ordinal) {
            return Ok(gpu.clone());
        }
        let device = driver.device(ordinal).map_err(|error| error.into_error(Verb::Setup))?;
        let context = Context::primary(&device).map_err(|error| error.into_error(Verb::Setup))?;
        let gpu =
            Arc::new(Gpu { context, staging: Mutex::default(), gates: Mutex::default(), kernels: Mutex::default() });
        gpus.insert(ordinal, gpu.clone());
        Ok(gpu)
    }

    /// The staging ring of a GPU's lanes; measured the first time unless the builder fixed it. A failed measurement is not
    /// remembered: the next call tries again.
    fn staging(&self, ordinal: u16) -> Result<Staging, Error> {
        let gpu = self.opened(ordinal)?;
        let mut known = gpu.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(staging) = &*known {
            return Ok(staging.clone());
        }
        let Config { staging_bytes, io_bytes, .. } = self.config;
        let staging = match self.config.staging {
            Some((slab_bytes, count)) => Staging { shape: StagingShape { slab_bytes, count }, source: Source::Builder },
            None => {
                let window = staging::ROUND_BYTES.max(u64::from(io_bytes));
                let device = DeviceBuffer::allocate(&gpu.context, ByteLen(window)).and_then(DeviceBuffer::into_region);
                let device = device.map_err(|error| error.into_error(Verb::Setup))?;
                let engine = copier(&gpu.context, COPIES_MEASURED)?;
                staging::measure(engine, device, staging_bytes, io_bytes, self.clock)?
            }
        };
        *known = Some(staging.clone());
        Ok(staging)
    }

    /// Closes a gate in a stream of a GPU's primary context.
    pub(crate) fn stream_gate(&self, ordinal: u16, stream: CallerStream) -> Result<StreamGate, Error> {
        let gpu = self.opened(ordinal)?;
        // Without the lock: the driver may take as long as it likes over a stream that is full.
        let closed = gpu.gates().and_then(|gates| gates.close(stream));
        closed.map(StreamGate).map_err(|error| error.into_error(Verb::Setup))
    }

    /// Checksums of a GPU's memory by its own kernels.
    pub(crate) fn device_sums(&self, ordinal: u16) -> Result<DeviceSums, Error> {
        let gpu = self.opened(ordinal)?;
        let made = gpu.kernels().and_then(|kernels| DeviceSums::new(&kernels));
        made.map_err(|error| error.into_error(Verb::Setup))
    }

    /// Many ranges moved inside a GPU's memory by its own kernels.
    pub(crate) fn device_moves(&self, ordinal: u16) -> Result<DeviceMoves, Error> {
        let gpu = self.opened(ordinal)?;
        let made = gpu.kernels().and_then(|kernels| DeviceMoves::new(&kernels));
        made.map_err(|error| error.into_error(Verb::Setup))
    }

    /// The rate of copies one way between pinned memory and a GPU, for about `time`.
    pub(crate) fn copy_rate(&self, ordinal: u16, direction: CopyDirection, time: Duration) -> Result<u64, Error> {
        let gpu = self.opened(ordinal)?;
        let device = DeviceBuffer::allocate(&gpu.context, ByteLen(staging::ROUND_BYTES));
        let device = device.and_then(DeviceBuffer::into_region).map_err(|error| error.into_error(Verb::Setup))?;
        let slab_bytes = self.config.io_bytes.min(SLAB_BYTES_MAX);
        staging::copy_rate(copier(&gpu.context, COPIES_MEASURED)?, device, (direction, slab_bytes), time, self.clock)
    }

    /// The staging rings that were chosen so far, by GPU.
    pub(crate) fn stagings(&self) -> Vec<(u16, Staging)> {
        let gpus = self.gpus.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |gpu: &Gpu| gpu.staging.lock().unwrap_or_else(PoisonError::into_inner).clone();
        gpus.iter().filter_map(|(ordinal, gpu)| Some((*ordinal, known(gpu)?))).collect()
    }

    /// Opens the device of a destination, once.
    pub(crate) fn check_device(&self, destination: Destination) -> Result<(), Error> {
        match destination {
            Destination::Host => Ok(()),
            Destination::Gpu(ordinal) => self.gpu(ordinal).map(|_| ()),
            Destination::Bar(bar) => self.nvme.peer(bar).map(|_| ()),
            Destination::PeerMemory(_) => self.expect_memory(destination),
        }
    }

    /// Whether there is such memory, from facts: nothing is opened. A GPU's is asked about with its copy engine.
    pub(crate) fn expect_memory(&self, destination: Destination) -> Result<(), Error> {
        match destination {
            Destination::Host | Destination::Gpu(_) => Ok(()),
            Destination::Bar(bar) => self.nvme.expect_peer(bar),
            Destination::PeerMemory(provider) => sw_uring::peer::expect(&self.machine, provider),
        }
    }

    /// Whether device memory can be staged, for the planner.
    pub(crate) fn copy_engine_verdict(&self, destination: Destination) -> Result<(), Reason> {
        match destination {
            Destination::Gpu(ordinal) => {
                self.driver().map_err(|_| Reason::NoDriver)?;
                self.gpu(ordinal).map(|_| ()).map_err(|_| Reason::NoCopyEngine)
            }
            // The CPU copies.
            Destination::Host | Destination::Bar(_) | Destination::PeerMemory(_) => Ok(()),
        }
    }

    /// Device memory.
    pub(crate) fn allocate_on_device(&self, destination: Destination, len: ByteLen) -> Result<DmaRegion, Error> {
        match destination {
            Destination::Host => Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup).detail("host memory has no device")),
            Destination::Gpu(ordinal) => {
                let buffer = DeviceBuffer::allocate(&self.gpu(ordinal)?, len);
                buffer.and_then(DeviceBuffer::into_region).map_err(|error| error.into_error(Verb::Setup))
            }
            Destination::Bar(bar) => self.nvme.peer(bar)?.allocate(len),
            Destination::PeerMemory(provider) => {
                self.scratches.keep(provider);
                Ok(PeerMemory::map(provider, len)?.region().clone())
            }
        }
    }

    /// The allocation of a GPU that an address lies in; `None` if it is no device memory.
    pub(crate) fn device_allocation(&self, address: u64) -> Result<Option<DeviceAllocation>, Error> {
        // Loading a driver starts it, which takes up to seconds; whoever has device memory has loaded it.
        if !sw_cuda::is_in_process() {
            return Ok(None);
        }
        let driver = match self.driver() {
            Ok(driver) => driver,
            // Others in this process may use it all the same.
            Err(Refusal::NotAsked) => {
                return host_memory(address, || {
                    Error::new(ErrorKind::NoDevice, Verb::Register)
                        .detail("this engine serves no GPUs (gpu=off)")
                        .remedy("pass host memory, or leave that option out")
                });
            }
            Err(refusal) => return host_memory(address, || refusal.into_error()),
        };
        let facts = driver.pointer_facts(address).map_err(|error| error.into_error(Verb::Register))?;
        match (facts.kind, facts.device) {
            (PointerKind::Device, Some(gpu)) => Ok(Some(DeviceAllocation { gpu, base: facts.base, len: facts.len })),
            (PointerKind::Unknown, _) => host_memory(address, || {
                Error::new(ErrorKind::NotRegistered, Verb::Register)
                    .detail("the driver does not know the address, and the processor cannot read there")
                    .remedy("pass memory that was allocated and not freed")
            }),
            _ => Ok(None),
        }
    }

    /// Checks that `len` bytes from `address` are one allocation of a GPU, as the driver knows it.
    pub(crate) fn check_device_range(&self, ordinal: u16, address: u64, len: ByteLen) -> Result<(), Error> {
        self.gpu(ordinal)?;
        let driver = self.driver().map_err(Refusal::into_error)?;
        let facts = driver.pointer_facts(address).map_err(|error| error.into_error(Verb::Register))?;
        let wrong = |kind| Error::new(kind, Verb::Register).at(format!("gpu{ordinal} memory at {address:#x}"));
        match (facts.kind, facts.device) {
            (PointerKind::Device, Some(owner)) if owner == ordinal => {}
            (PointerKind::Device, Some(owner)) => {
                return Err(wrong(ErrorKind::NotRegistered)
                    .detail(format!("the driver knows the address as memory of gpu{owner}"))
                    .remedy("pass the device that allocated it"));
            }
            _ => {
                return Err(wrong(ErrorKind::NotRegistered)
                    .detail("the driver does not know the address as device memory")
                    .remedy("pass memory that the driver allocated and that was not freed"));
            }
        }
        if len.0 > facts.bytes_left() {
            return Err(wrong(ErrorKind::OutOfRange)
                .in_range(facts.offset, len.0)
                .detail(format!("the allocation has {} bytes", facts.len))
                .remedy("register at most up to the end of the allocation"));
        }
        Ok(())
    }

    /// What the transports of every lane can do, for planning before any lane exists.
    pub(crate) fn transport_caps(&self, destination: Destination) -> Vec<TransportCaps> {
        let (queue_depth, io_bytes) = (ring_depth(&self.config), self.config.io_bytes);
        let files = match self.probe.transport {
            sw_uring::PREADV2 => {
                ThreadsConfig { queue_depth, io_bytes_max: io_bytes, ..ThreadsConfig::default() }.caps()
            }
            _ => UringConfig { queue_depth, io_bytes_max: io_bytes, ..UringConfig::default() }.caps(),
        };
        let commands = self.commands.as_ref().map(UringConfig::passthrough_caps);
        std::iter::once(files)
            .chain(commands)
            .chain(self.nvme.caps(destination))
            .chain(self.all_fabrics().map(|fabrics| fabrics.caps(destination)))
            .chain(self.remotes.caps(destination))
            .chain(self.vendor.caps())
            .collect()
    }

    /// Those subsystems that an address is of.
    pub(crate) fn fabrics_of(&self, uri: &NvmeTcpUri) -> &Fabrics {
        match uri.wire {
            FabricWire::Tcp => &self.fabrics,
            FabricWire::Rdma(_) => &self.rdma,
            FabricWire::EmulatedRdma => &self.rdma_emulated,
        }
    }

    /// All of them, in the order of their transports.
    pub(crate) fn all_fabrics(&self) -> impl Iterator<Item = &Fabrics> {
        [&self.fabrics, &self.rdma, &self.rdma_emulated].into_iter()
    }

    /// Whether the device is asked for what has ended.
    fn iopoll(&self) -> bool {
        self.config.uring_completion == UringCompletion::Polled
    }

    fn transport(&self, owner: Owner) -> Result<Box<dyn Transport>, Error> {
        let Config { io_bytes, sqpoll_ms, .. } = self.config;
        let queue_depth = ring_depth(&self.config);
        if self.probe.transport == sw_uring::PREADV2 {
            let config = ThreadsConfig { queue_depth, io_bytes_max: io_bytes, ..ThreadsConfig::default() };
            return Ok(Box::new(ThreadsTransport::new(config)?));
        }
        let config = UringConfig {
            queue_depth,
            io_bytes_max: io_bytes,
            sqpoll: sqpoll_ms,
            iopoll: self.iopoll(),
            single_issuer: owner == Owner::OneThread,
            ..UringConfig::default()
        };
        Ok(Box::new(UringTransport::new(config)?))
    }

    /// The parts of one lane, for host memory or for one GPU.
    pub(crate) fn parts(&self, owner: Owner, destination: Destination) -> Result<LaneParts, Error> {
        let shape = match destination {
            Destination::Gpu(ordinal) => self.staging(ordinal)?.shape,
            Destination::Host | Destination::Bar(_) | Destination::PeerMemory(_) => {
                StagingShape { slab_bytes: HOST_SLAB_BYTES.min(self.config.io_bytes), count: HOST_SLABS }
            }
        };
        let pages = self.nvme.slab_pages();
        let StagingShape { slab_bytes, count } = if pages == HugePages::Reserved { in_one_page(shape) } else { shape };
        let staging = SlabPool::new(count, ByteLen(u64::from(slab_bytes)), pages).map_err(|cause| {
            Error::new(ErrorKind::ResourceLimit, Verb::Setup)
                .detail(format!("no memory for the staging slabs: {cause}"))
                .remedy("lower the staging budget")
                .caused_by(cause)
        })?;
        let copiers = self.copier_of(destination, count)?.into_iter().collect();
        let mut transports = vec![self.transport(owner)?];
        if let Some(config) = self.commands.clone() {
            let config = UringConfig { single_issuer: owner == Owner::OneThread, iopoll: self.iopoll(), ..config };
            transports.push(Box::new(PassthroughTransport::new(config)?));
        }
        transports.extend(self.nvme.transport()?);
        for fabrics in self.all_fabrics() {
            transports.push(fabrics.transport()?);
        }
        transports.extend(self.remotes.transports());
        transports.extend(self.vendor.transport()?);
        Ok(LaneParts { transports, copiers, staging: Some(staging) })
    }

    /// What the kernel offers beside plain file I/O: commands to drives, memory of other devices.
    pub(crate) fn direct_facts(&self) -> Vec<Fact> {
        let health = |standing| match standing {
            sw_uring::Standing::Good => Health::Good,
            sw_uring::Standing::Limited => Health::Limited,
            sw_uring::Standing::Neutral => Health::Neutral,
        };
        let facts = sw_uring::direct_facts(&self.machine).into_iter();
        facts.map(|found| fact(&found.name, health(found.standing), &found.value, found.remedy)).collect()
    }

    /// Driver and devices, fact by fact.
    pub(crate) fn gpu_facts(&self) -> Vec<Fact> {
        if self.config.gpu == crate::builder::GpuUse::Off {
            return vec![fact("gpu", Health::Neutral, "the engine was built without GPUs", "")];
        }
        let probe = Driver::probe();
        let mut facts = Vec::new();
        let mut told = |name: &str, found: Result<String, &Refusal>| match found {
            Ok(value) => facts.push(fact(name, Health::Good, &value, "")),
            Err(Refusal::NotAsked) => {}
            // A machine without a GPU is no broken machine.
            Err(refusal) => facts.push(fact(name, Health::Neutral, &refusal.to_string(), refusal.remedy())),
        };
        told("gpu.library", probe.library.as_ref().map(ToString::to_string));
        told("gpu.symbols", probe.symbols.as_ref().map(|count| format!("{count} present")));
        told("gpu.version", probe.version.as_ref().map(ToString::to_string));
        told("gpu.devices", probe.devices.as_ref().map(ToString::to_string));
        for ordinal in 0..probe.devices.unwrap_or(0) {
            self.device_facts(ordinal, &mut facts);
        }
        facts
    }

    fn device_facts(&self, ordinal: u16, facts: &mut Vec<Fact>) {
        let name = |what: &str| format!("gpu{ordinal}.{what}");
        let context = match self.gpu(ordinal) {
            Ok(context) => context,
            Err(error) => {
                return facts.push(fact(&name("context"), Health::Missing, &error.to_string(), error.remedy_text()));
            }
        };
        for (what, finding) in DeviceReport::gather(context.device(), Some(&context)).lines() {
            facts.push(match finding {
                Ok(value) => fact(&name(what), Health::Neutral, &value, ""),
                Err(gap) => fact(&name(what), Health::Neutral, &gap.to_string(), gap.remedy()),
            });
        }
        // A device that is known not to copy is not measured: that would tell the same fault again.
        let tested = SelfTest::run(&context);
        if tested.is_ok() {
            facts.push(match self.staging(ordinal) {
                Ok(staging) => fact(&name("staging"), Health::Neutral, &staging.to_string(), ""),
                Err(error) => fact(&name("staging"), Health::Missing, &error.to_string(), error.remedy_text()),
            });
        }
        facts.push(match tested {
            Ok(_) => fact(&name("self_test"), Health::Good, "wrote, read back, compared, guard bytes intact", ""),
            Err(error) => fact(&name("self_test"), Health::Missing, &error.to_string(), error.remedy),
        });
    }

    pub(crate) fn lane_config(&self) -> LaneConfig {
        let Config { ops_per_lane, queue_depth, .. } = self.config;
        let usual = LaneConfig { ops_max: ops_per_lane, device_depth: queue_depth, ..LaneConfig::default() };
        match self.nvme.slab_pages() {
            HugePages::Reserved => LaneConfig { bounce_pages: HugePages::Reserved, ..usual },
            HugePages::Never | HugePages::Advise => usual,
        }
    }

    fn copier_of(&self, destination: Destination, depth: u32) -> Result<Option<Box<dyn CopyEngine>>, Error> {
        match destination {
            Destination::Host | Destination::PeerMemory(_) => Ok(None),
            Destination::Gpu(ordinal) => copier(&self.gpu(ordinal)?, depth).map(Some),
            Destination::Bar(bar) => {
                let engine: Box<dyn CopyEngine> = Box::new(self.nvme.peer(bar)?.copy_engine(depth)?);
                Ok(Some(engine))
            }
        }
    }

    /// A reader of device memory, with a copy engine of its own; `None` for memory with addresses of this process.
    pub(crate) fn reader(&self, destination: Destination) -> Result<Option<staging::Reader>, Error> {
        self.copier_of(destination, 4)?.map(staging::Reader::new).transpose()
    }
}

/// As much of a ring as lies in one reserved page, at least two slabs: without an IOMMU a region has to be in one piece.
fn in_one_page(shape: StagingShape) -> StagingShape {
    let slab_bytes = shape.slab_bytes.min(RESERVED_PAGE_BYTES / 2);
    StagingShape { slab_bytes, count: shape.count.min(RESERVED_PAGE_BYTES / slab_bytes.max(1)) }
}

fn fact(name: &str, health: Health, value: &str, remedy: &str) -> Fact {
    Fact { name: name.to_owned(), health, value: value.to_owned(), remedy: remedy.to_owned() }
}

fn copier(context: &Context, depth: u32) -> Result<Box<dyn CopyEngine>, Error> {
    let config = CopyEngineConfig {
        queue_depth: depth.clamp(4, 256),
        order: StreamOrder::Unordered,
        ..CopyEngineConfig::default()
    };
    let engine = CudaCopyEngine::new(context, config).map_err(|error| error.into_error(Verb::Setup))?;
    Ok(Box::new(engine))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_for_reserved_pages_fits_one_of_them() {
        let shape = |slab_bytes, count| StagingShape { slab_bytes, count };
        for (asked, got) in [
            (shape(1 << 20, 4), shape(1 << 20, 2)),
            (shape(64 << 20, 2), shape(1 << 20, 2)),
            (shape(256 << 10, 1024), shape(256 << 10, 8)),
            (shape(64 << 10, 2), shape(64 << 10, 2)),
        ] {
            assert_eq!(in_one_page(asked), got);
            assert!(got.slab_bytes * got.count <= RESERVED_PAGE_BYTES);
        }
    }
}
