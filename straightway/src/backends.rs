//! Composition: which backends this engine has. The only module that knows all of them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use sw_cuda::{
    Context, CopyEngineConfig, CudaCopyEngine, DeviceBuffer, DeviceReport, Driver, PointerKind, Refusal, SelfTest,
    StreamOrder,
};
use sw_engine::{
    Error, ErrorKind, LaneConfig, LaneParts, Reason, Token, TransportName, Verb,
    seam::{CopyDirection, CopyEngine, CopyJob, Fence, Transport, TransportCaps},
};
use sw_mem::{ByteLen, DmaRegion, HugePages, SlabPool};
use sw_uring::{FileStore, Probe, ThreadsConfig, ThreadsTransport, UringConfig, UringTransport};

use crate::{
    builder::Config,
    doctor::{Fact, Health},
};

/// Every transport of this build, by the name that routes print.
pub(crate) const TRANSPORTS: [TransportName; 2] = [sw_uring::IO_URING, sw_uring::PREADV2];

/// Slabs of a lane that has no GPU to feed: enough to keep a disk busy while misaligned bytes are copied out.
const HOST_SLABS: u32 = 4;

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
    config: Config,
    gpus: Mutex<BTreeMap<u16, Context>>,
    driver: OnceLock<Result<Driver, Refusal>>,
}

impl Backends {
    pub(crate) fn find(config: Config) -> Self {
        let probe = match config.io_uring {
            crate::builder::UringUse::Auto => sw_uring::probe(),
            crate::builder::UringUse::Off => {
                Probe { transport: sw_uring::PREADV2, because: Some((Reason::PolicyExcludes, 0)), sysctl: None }
            }
        };
        let files = FileStore::new(probe.transport);
        Self { probe, files, config, gpus: Mutex::new(BTreeMap::new()), driver: OnceLock::new() }
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
        let driver = self.driver().map_err(|refusal| match refusal {
            Refusal::NotAsked => Error::new(ErrorKind::NoDevice, Verb::Setup)
                .at(format!("gpu{ordinal}"))
                .detail("the engine was built without GPUs")
                .remedy("build it with GpuUse::Auto"),
            other => other.into_error(),
        })?;
        let mut gpus = self.gpus.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = gpus.get(&ordinal) {
            return Ok(context.clone());
        }
        let device = driver.device(ordinal).map_err(|error| error.into_error(Verb::Setup))?;
        let context = Context::primary(&device).map_err(|error| error.into_error(Verb::Setup))?;
        gpus.insert(ordinal, context.clone());
        Ok(context)
    }

    /// Whether device memory can be staged, for the planner.
    pub(crate) fn copy_engine_verdict(&self, ordinal: u16) -> Result<(), Reason> {
        self.driver().map_err(|_| Reason::NoDriver)?;
        self.gpu(ordinal).map(|_| ()).map_err(|_| Reason::NoCopyEngine)
    }

    /// Device memory.
    pub(crate) fn allocate_gpu(&self, ordinal: u16, len: ByteLen) -> Result<DmaRegion, Error> {
        let buffer = DeviceBuffer::allocate(&self.gpu(ordinal)?, len).map_err(|error| error.into_error(Verb::Setup))?;
        buffer.into_region().map_err(|error| error.into_error(Verb::Setup))
    }

    /// Which GPU owns an address; `None` for host memory and for addresses that no driver knows.
    pub(crate) fn owner_of(&self, address: u64) -> Option<u16> {
        let facts = self.driver().ok()?.pointer_facts(address).ok()?;
        (facts.kind == PointerKind::Device).then_some(facts.device).flatten()
    }

    /// What the transports of every lane can do, for planning before any lane exists.
    pub(crate) fn transport_caps(&self) -> [TransportCaps; 1] {
        let Config { queue_depth, io_bytes, .. } = self.config;
        [match self.probe.transport {
            sw_uring::PREADV2 => {
                ThreadsConfig { queue_depth, io_bytes_max: io_bytes, ..ThreadsConfig::default() }.caps()
            }
            _ => UringConfig { queue_depth, io_bytes_max: io_bytes, ..UringConfig::default() }.caps(),
        }]
    }

    fn transport(&self, owner: Owner) -> Result<Box<dyn Transport>, Error> {
        let Config { queue_depth, io_bytes, sqpoll_ms, .. } = self.config;
        if self.probe.transport == sw_uring::PREADV2 {
            let config = ThreadsConfig { queue_depth, io_bytes_max: io_bytes, ..ThreadsConfig::default() };
            return Ok(Box::new(ThreadsTransport::new(config)?));
        }
        let config = UringConfig {
            queue_depth,
            io_bytes_max: io_bytes,
            sqpoll: sqpoll_ms,
            single_issuer: owner == Owner::OneThread,
            ..UringConfig::default()
        };
        Ok(Box::new(UringTransport::new(config)?))
    }

    /// The parts of one lane, for host memory or for one GPU.
    pub(crate) fn parts(&self, owner: Owner, device: Option<u16>) -> Result<LaneParts, Error> {
        let slab = u64::from(self.config.io_bytes);
        let count = match device {
            None => HOST_SLABS,
            Some(_) => u32::try_from(self.config.staging_bytes / slab).unwrap_or(u32::MAX).clamp(2, 1024),
        };
        let staging = SlabPool::new(count, ByteLen(slab), HugePages::Advise).map_err(|cause| {
            Error::new(ErrorKind::ResourceLimit, Verb::Setup)
                .detail("no memory for the staging slabs")
                .remedy("lower the staging budget")
                .caused_by(cause)
        })?;
        let copiers = device.map(|ordinal| copier(&self.gpu(ordinal)?, count)).transpose()?;
        let copiers = copiers.into_iter().collect();
        Ok(LaneParts { transports: vec![self.transport(owner)?], copiers, staging: Some(staging) })
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
        facts.push(match SelfTest::run(&context) {
            Ok(_) => fact(&name("self_test"), Health::Good, "wrote, read back, compared, guard bytes intact", ""),
            Err(error) => fact(&name("self_test"), Health::Missing, &error.to_string(), error.remedy),
        });
    }

    pub(crate) fn lane_config(&self) -> LaneConfig {
        LaneConfig { ops_max: self.config.ops_per_lane, ..LaneConfig::default() }
    }

    /// Copies device memory from `at` out, through a copy engine of its own. For verification, not for speed.
    pub(crate) fn copy_out(&self, span: &sw_mem::DmaSpan, at: u64, to: &mut [u8], ordinal: u16) -> Result<(), Error> {
        if at.checked_add(to.len() as u64).is_none_or(|end| end > span.len().0) {
            return Err(Error::new(ErrorKind::OutOfRange, Verb::Copy)
                .at(format!("gpu{ordinal} memory"))
                .in_range(at, to.len() as u64));
        }
        let mut engine = copier(&self.gpu(ordinal)?, 4)?;
        copy_through(engine.as_mut(), span, at, to)
    }
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

/// Bytes of one verification copy.
const COPY_BYTES: usize = 1 << 20;
/// Longest that one piece may take.
const COPY_WAIT: Duration = Duration::from_secs(10);

/// Device memory into `to`, a piece at a time through one pinned slab.
fn copy_through(engine: &mut dyn CopyEngine, from: &sw_mem::DmaSpan, at: u64, to: &mut [u8]) -> Result<(), Error> {
    let fault = |fault| Error::from_fault(fault, Verb::Copy).detail("a copy from device memory failed");
    let misuse = || Error::new(ErrorKind::ApiMisuse, Verb::Copy).detail("not device memory");
    let mut pool = SlabPool::new(1, ByteLen(COPY_BYTES as u64), HugePages::Never).map_err(|cause| {
        Error::new(ErrorKind::ResourceLimit, Verb::Copy).detail("no memory for a slab").caused_by(cause)
    })?;
    let slab = pool.take().ok_or_else(misuse)?;
    let pin = engine.pin(pool.region()).map_err(fault)?;
    let host = pool.memory().place().host().ok_or_else(misuse)?;
    let sw_mem::Place::Device(_, base) = from.place() else { return Err(misuse()) };
    let mut done = Vec::with_capacity(4);
    let mut device = base.checked_add(ByteLen(at));
    for piece in to.chunks_mut(COPY_BYTES) {
        let here = device.ok_or_else(misuse)?;
        let len = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        let job = CopyJob { token: Token::from_raw(1), direction: CopyDirection::FromDevice, host, device: here, len };
        engine.submit(&job).and_then(|()| engine.ring()).map_err(fault)?;
        done.clear();
        if engine.fence(COPY_WAIT, &mut done) != Fence::Quiet {
            // The slab may still be written: it is kept for ever rather than freed under the device.
            keep_for_ever((pool, pin));
            return Err(
                Error::new(ErrorKind::DeadlineExceeded, Verb::Copy).detail("a copy from device memory took over 10 s")
            );
        }
        done.iter().try_for_each(|end| end.result).map_err(fault)?;
        pool.memory().read(0, piece).map_err(|cause| misuse().caused_by(cause))?;
        device = here.checked_add(ByteLen(u64::from(len)));
    }
    pool.put(slab);
    Ok(())
}

#[expect(
    clippy::mem_forget,
    reason = "a device may still write these slabs; freeing them would corrupt whoever gets them next"
)]
fn keep_for_ever<T>(what: T) {
    std::mem::forget(what);
}
