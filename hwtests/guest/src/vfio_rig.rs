//! A controller driven by VFIO in the way that a test asks for, and one-line I/Os on it.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use sw_engine::seam::{Attach, IoKind, Transport};
use sw_engine::{Fault, Object, PciAddress, Residency};
use sw_mem::{Buffer, ByteLen, DmaRegion, DmaSpan};
use sw_nvme::controller::{Controller, ControllerConfig};
use sw_nvme::directory::{Directory, face};
use sw_nvme::namespace::Namespace;
use sw_nvme::transport::{Completion, NvmeConfig, NvmeTransport};
use sw_vfio::{Backend, ControllerClaim, DmaSpace, Sysfs, VfioFunction, VfioWaiter};

use crate::context::Context;
use crate::io::{io, memory, piece, run};
use crate::registry::{Stop, fail, skip};

/// Every back end.
pub const BACKENDS: [Backend; 3] = [Backend::Type1, Backend::Iommufd, Backend::NoIommu];

/// Where the kernel is told how many huge pages of 2 MiB to keep.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const HUGE_PAGES_COUNT: &str = "32";

/// The function of a role, bound to vfio-pci.
///
/// # Errors
/// A skip where this machine has none of the role.
pub fn bound(context: &Context, role: &str) -> Result<PciAddress, Stop> {
    let device = context.device(role)?;
    device.bind("vfio-pci")?;
    Ok(device.address.parse()?)
}

/// Whether a function that is bound can be opened through a back end here.
pub fn offers(address: PciAddress, backend: Backend) -> bool {
    let group = std::fs::read_to_string(format!("/sys/bus/pci/devices/{address}/iommu_group/name"));
    let is_noiommu = group.is_ok_and(|name| name.trim() == "vfio-noiommu");
    let exists = |path: &str| std::path::Path::new(path).exists();
    match backend {
        Backend::Type1 => !is_noiommu && exists("/dev/vfio/vfio"),
        Backend::Iommufd => !is_noiommu && exists("/dev/iommu"),
        Backend::NoIommu => is_noiommu,
    }
}

/// Runs a test on each back end that there is. One that a back end has no use for goes on with the next one.
///
/// # Errors
/// The first failure, with the back end's name; a skip if there is none, or if no back end had a use for it. What one of
/// several had no use for is a fact.
pub fn on_each(context: &Context, test: impl Fn(Backend) -> Result<(), Stop>) -> Result<(), Stop> {
    let address = bound(context, "nvme-a")?;
    let (mut passed, mut skipped) = (0, Vec::new());
    for backend in BACKENDS.into_iter().filter(|backend| offers(address, *backend)) {
        if backend == Backend::NoIommu {
            // Rings of more than a page, and data, need memory in one piece.
            std::fs::write(HUGE_PAGES, HUGE_PAGES_COUNT)?;
        }
        match test(backend) {
            Ok(()) => passed += 1,
            Err(Stop::Skip(reason)) => skipped.push(format!("{}: {reason}", backend.name())),
            Err(Stop::Fail(reason)) => return fail(format!("{}: {reason}", backend.name())),
        }
    }
    match (passed, skipped.is_empty()) {
        (0, true) => skip("this kernel opens no function to user space"),
        (0, false) => skip(skipped.join("; ")),
        (_, true) => Ok(()),
        (_, false) => {
            context.fact(&json!({"skipped": skipped}));
            Ok(())
        }
    }
}

/// The transport of one thread.
pub type Lane = NvmeTransport<VfioFunction>;

/// A controller of ours.
pub struct Rig {
    pub space: DmaSpace,
    pub controller: Arc<Controller<VfioFunction>>,
    pub function: VfioFunction,
    directory: Arc<Directory<VfioFunction>>,
    start: Instant,
    /// Of a real machine: which namespaces it has is nobody's promise.
    is_real: bool,
    _claim: Arc<ControllerClaim>,
}

impl Rig {
    /// Claims, opens and brings up the controller of a role.
    ///
    /// # Errors
    /// A failure.
    pub fn open(context: &Context, role: &str, backend: Backend) -> Result<Rig, Stop> {
        let address = bound(context, role)?;
        let (sysfs, start) = (Sysfs::default(), Instant::now());
        let claim = ControllerClaim::take(&sysfs, address)?;
        let space = DmaSpace::new(&sysfs, backend)?;
        let function = VfioFunction::open(&space, address, start)?;
        let controller = Controller::open(Arc::new(function.clone()), ControllerConfig::default())?;
        let directory = Arc::new(Directory::default());
        directory.add(Arc::clone(&controller))?;
        let is_real = context.is_real();
        Ok(Rig { space, controller, function, directory, start, is_real, _claim: claim })
    }

    /// A lane of it that reaches device memory, too.
    ///
    /// # Errors
    /// A failure.
    pub fn lane(&self, completion: Completion) -> Result<Lane, Stop> {
        self.lane_with(NvmeConfig { completion, queue_depth: 32, device: Ok(()), ..NvmeConfig::default() })
    }

    /// A lane as a test wants it.
    ///
    /// # Errors
    /// A failure.
    pub fn lane_with(&self, config: NvmeConfig) -> Result<Lane, Stop> {
        Ok(NvmeTransport::new(Arc::clone(&self.directory), VfioWaiter::new(self.start)?, config)?)
    }

    /// One of its namespaces.
    ///
    /// # Errors
    /// A failure if it has none of that number; on a real machine a skip.
    pub fn namespace(&self, nsid: u32) -> Result<Namespace, Stop> {
        match self.controller.namespaces().into_iter().find(|namespace| namespace.nsid == nsid) {
            Some(found) => Ok(found),
            None if self.is_real => skip(format!("{} has no namespace {nsid}", self.controller.name())),
            None => fail(format!("no namespace {nsid}")),
        }
    }

    /// Two objects to work on in places that differ: namespaces 1 and 2, or 1 twice on a real drive that has no other.
    ///
    /// # Errors
    /// As [`Rig::object`].
    pub fn two_objects(&self) -> Result<[Object; 2], Stop> {
        let second = match self.object(2) {
            Err(Stop::Skip(_)) => self.object(1)?,
            other => other?,
        };
        Ok([self.object(1)?, second])
    }

    /// A namespace as an object.
    ///
    /// # Errors
    /// As [`Rig::namespace`]; a failure if it cannot be used.
    pub fn object(&self, nsid: u32) -> Result<Object, Stop> {
        let namespace = self.namespace(nsid)?;
        Ok(Object {
            id: Object::next_id(),
            name: format!("{}/{nsid}", self.controller.name()).into(),
            len: namespace.len_bytes(),
            version: namespace.version(),
            faces: vec![face(0, &namespace)?],
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(()),
        })
    }
}

/// Memory of one huge page, so that a device without an IOMMU finds it in one piece; of the process otherwise. All `fill`.
///
/// # Errors
/// A skip where no huge pages are reserved.
pub fn data(backend: Backend, len: u64, fill: u8) -> Result<DmaSpan, Stop> {
    if backend != Backend::NoIommu {
        return memory(len, fill);
    }
    let buffer = Buffer::allocate_with(ByteLen(len), 0, sw_mem::HugePages::Reserved, sw_mem::Populate::Now);
    let mut buffer = match buffer {
        Ok(buffer) => buffer,
        Err(error) => return skip(format!("no reserved huge pages: {error}")),
    };
    buffer.as_mut_slice().fill(fill);
    Ok(buffer.into_span())
}

/// One read or write of `len` bytes at `offset` of an object, with memory from `at` of `span`.
///
/// # Errors
/// A failure if there is no end; what the transport says is the value.
pub fn once(
    lane: &mut dyn Transport,
    kind: IoKind,
    object: &Object,
    offset: u64,
    memory: (&sw_mem::DmaSpan, u64, u32),
) -> Result<Result<u32, Fault>, Stop> {
    let (span, at, len) = memory;
    run(lane, &io(kind, object, offset, Some(piece(span, at, len)?))?)
}

/// As [`once`], which must move all bytes.
///
/// # Errors
/// A failure with the fault.
pub fn all(
    lane: &mut dyn Transport,
    kind: IoKind,
    object: &Object,
    offset: u64,
    memory: (&sw_mem::DmaSpan, u64, u32),
) -> Result<(), Stop> {
    match once(lane, kind, object, offset, memory)? {
        Ok(done) if done == memory.2 => Ok(()),
        other => fail(format!("{kind:?} of {} at {offset}: {other:?}", memory.2)),
    }
}

/// Tells a lane about memory.
///
/// # Errors
/// A failure: the IOMMU refuses it.
pub fn attach(lane: &mut dyn Transport, region: &DmaRegion) -> Result<(), Stop> {
    Ok(lane.attach(Attach::Region(region))?)
}
