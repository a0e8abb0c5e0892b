//! Opening `/dev/ngXnY`: what the namespace is, what one command may move, and who else uses it.
//!
//! Where the kernel copies in secret (linux 7.3 `block/blk-map.c`, `blk_rq_map_user_iov`): memory that is not aligned to
//! `queue/dma_alignment`, and a transfer in more pieces than `queue/max_segments`. So the face demands the one as its memory
//! granularity, and the longest command keeps to the other even if every page of the memory lies by itself.
// UNSAFETY: a command names memory by address.
#![expect(unsafe_code, reason = "a command names memory by address")]

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use sw_engine::{
    Error, ErrorKind, Face, Granularity, Landing, Object, Residency, Verb, Version,
    seam::{Entry, EntryKind, OpenMode},
};
use sw_nvme::{
    limits::TransferLimits,
    wire::{
        BlockCount, Command, DataPointer, IoFlags, LbaRange,
        admin::Identify,
        identify::{IdentifyController, IdentifyNamespace, MetadataVerdict},
    },
};

use super::{
    NVME_PASSTHROUGH,
    ioctl::{self, Refused},
    word::{BLOCK_SHIFTS, COMMAND_SHIFTS, Link, PollQueues, Word},
};
use crate::{
    fault,
    sys::{self, Stat},
    sysfs::{self, Machine},
};

/// Smallest page that a controller may count MDTS in. The driver does not tell the controller's; a smaller one only makes
/// commands shorter.
const PAGE_BYTES_MIN: u32 = 4096;

/// Alignment of memory where the kernel does not tell: what block devices take before Linux 6.0.
const MEMORY_UNTOLD: u64 = 512;

/// Keeps an object's descriptors open.
pub(crate) struct OpenNamespace {
    node: OwnedFd,
    word: Word,
    /// The number of its block device.
    device: Option<u64>,
    /// The block device; with an object that is written, opened so that nobody mounts it meanwhile.
    _disk: Option<Disk>,
}

/// The block device of a namespace, open.
struct Disk {
    fd: OwnedFd,
    mode: OpenMode,
}

impl OpenNamespace {
    /// The number of its block device, by which sysfs leads to the PCI functions below it.
    pub(crate) fn device(&self) -> Option<u64> {
        self.device
    }

    /// Reads the namespace's first `bytes` bytes (whole blocks, one command) to `address`, and waits. Control plane.
    ///
    /// # Errors
    /// The errno, `EIO` for a status of the controller.
    ///
    /// # Safety
    /// `address..address + bytes` is mapped, and nobody has a reference into it until the call returns.
    pub(crate) unsafe fn read_first(&self, address: u64, bytes: u32) -> Result<usize, i32> {
        let nlb = BlockCount::new(bytes >> self.word.block_shift).ok_or(libc::EINVAL)?;
        let at = LbaRange { nsid: self.word.nsid, slba: 0, nlb };
        let command = Command::read(at, DataPointer::None, IoFlags::NONE);
        // SAFETY: the caller's contract is passed on.
        match unsafe { ioctl::wait_io(self.node.as_fd(), &command, address, bytes) } {
            Ok(()) => Ok(sw_mem::index(bytes.into())),
            Err(Refused::Errno(errno)) => Err(errno),
            Err(Refused::Status(_)) => Err(libc::EIO),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mode == OpenMode::Update {
            ioctl::forget_cached(self.fd.as_fd());
        }
    }
}

/// What sysfs tells of a generic node.
#[derive(Debug)]
struct Facts {
    /// The name of the block device, such as `nvme0n1`.
    disk: String,
    /// Its directory.
    directory: PathBuf,
}

impl Facts {
    /// None: the number is not that of an NVMe namespace, or the kernel makes no block device for it.
    fn of(machine: &Machine, number: u64) -> Option<Self> {
        if !is_generic(machine, number) {
            return None;
        }
        let directory = fs::canonicalize(node(machine, number)).ok()?;
        let (_, number) = numbers("ng", directory.file_name()?.to_str()?)?;
        // Both hang from the controller, or from the subsystem where paths are shared. `ng1n2` may be beside `nvme0n2`: the
        // first number is the controller's in one and the subsystem's in the other (linux 7.3 drivers/nvme/host/core.c,
        // nvme_add_ns_cdev, and multipath.c, nvme_mpath_set_disk_name).
        let beside = directory.parent()?;
        let names = sysfs::names(beside);
        let disk = names.into_iter().find(|name| numbers("nvme", name).is_some_and(|(_, other)| other == number))?;
        Some(Self { directory: beside.join(&disk), disk })
    }

    fn queue(&self, name: &str) -> PathBuf {
        self.directory.join("queue").join(name)
    }

    /// Bytes of the block device.
    fn len(&self) -> u64 {
        sysfs::number(&self.directory.join("size")).unwrap_or(0).saturating_mul(512)
    }

    /// The number of the block device.
    fn number(&self) -> Option<u64> {
        sysfs::device_number(&self.directory.join("dev"))
    }

    fn zoned(&self) -> bool {
        sysfs::text(&self.queue("zoned")).is_some_and(|kind| kind != "none")
    }

    fn poll_queues(&self) -> PollQueues {
        match sysfs::number(&self.queue("io_poll")) {
            Some(1) => PollQueues::Some,
            _ => PollQueues::None,
        }
    }

    /// How the kernel reaches the controllers of the namespace: over PCI only if every one of them says so.
    fn link(&self) -> Link {
        let Some(above) = self.directory.parent() else { return Link::Network };
        let transport = |controller: &Path| sysfs::text(&controller.join("transport"));
        // Below its controller, or below the subsystem, which has links to its controllers (linux 7.3
        // drivers/nvme/host/core.c, nvme_init_subsystem; sysfs.c, the attribute `transport`).
        let names = sysfs::names(above).into_iter();
        let below = names.filter(|name| name.strip_prefix("nvme").is_some_and(|rest| rest.parse::<u32>().is_ok()));
        let told: Vec<_> = match transport(above) {
            Some(own) => vec![Some(own)],
            None => below.map(|name| transport(&above.join(name))).collect(),
        };
        let pcie = !told.is_empty() && told.iter().all(|transport| transport.as_deref() == Some("pcie"));
        if pcie { Link::Pcie } else { Link::Network }
    }

    /// Alignment of memory in bytes.
    fn memory(&self) -> u32 {
        // The file has the mask. A command's data begins at a dword in any case (NVMe, PRP entries).
        let align = sysfs::number(&self.queue("dma_alignment")).map_or(MEMORY_UNTOLD, |mask| mask.saturating_add(1));
        u32::try_from(align.max(4)).ok().and_then(u32::checked_next_power_of_two).unwrap_or(PAGE_BYTES_MIN)
    }

    /// Bytes that the driver moves in one command without copying.
    fn command_bytes(&self) -> u64 {
        let whole = sysfs::number(&self.queue("max_hw_sectors_kb")).unwrap_or(128).saturating_mul(1024);
        // One piece more than pages, because the memory may begin inside one.
        let pieces = sysfs::number(&self.queue("max_segments")).unwrap_or(1).saturating_sub(1);
        whole.min(pieces.saturating_mul(u64::from(PAGE_BYTES_MIN)))
    }
}

/// The two numbers of a name such as `nvme0n1`.
fn numbers(prefix: &str, name: &str) -> Option<(u32, u32)> {
    let (first, second) = name.strip_prefix(prefix)?.split_once('n')?;
    Some((first.parse().ok()?, second.parse().ok()?))
}

/// Generic nodes of this machine, such as `ng0n1`, sorted.
pub(crate) fn names(machine: &Machine) -> Vec<String> {
    sysfs::names(&machine.path("sys/class/nvme-generic"))
}

/// Whether a device number is that of an NVMe namespace's generic node.
pub(crate) fn is_generic(machine: &Machine, number: u64) -> bool {
    let subsystem = fs::canonicalize(node(machine, number).join("subsystem")).ok();
    subsystem.as_deref().and_then(Path::file_name).is_some_and(|class| class == "nvme-generic")
}

fn node(machine: &Machine, number: u64) -> PathBuf {
    machine.path(&format!("sys/dev/char/{}:{}", libc::major(number), libc::minor(number)))
}

/// The answer of a stat.
pub(crate) fn entry(machine: &Machine, path: &Path, stat: &Stat) -> Option<Entry> {
    let facts = Facts::of(machine, stat.special)?;
    let name = path.to_string_lossy().into_owned();
    Some(Entry { name, kind: EntryKind::BlockDevice, len: facts.len(), version: version(stat) })
}

fn version(stat: &Stat) -> Version {
    Version { identity: (stat.device, stat.inode), stamp: 0 }
}

/// Opens a generic node, with commands to the controller. For [`OpenMode::Update`] the block device is claimed: nobody may
/// have it mounted or in a volume, and nobody can from now on.
///
/// # Errors
/// `Unsupported` for a namespace with metadata, zones, or blocks over 64 KiB, and
/// for one that the kernel makes no block device for; `InUse` if somebody holds the block device; `NoDevice` for a
/// namespace that is not active; `PermissionDenied`; `Protocol` if the controller's answer makes no sense.
pub(crate) fn open(machine: &Machine, path: &Path, mode: OpenMode) -> Result<Object, Error> {
    let failed = |errno| fault::path_error(errno, Verb::Open, path);
    let flags = if mode == OpenMode::Update { libc::O_RDWR } else { libc::O_RDONLY };
    let node = sys::open(path, flags, 0).map_err(failed)?;
    let stat = sys::fstat(node.as_fd()).map_err(failed)?;
    let facts = Facts::of(machine, stat.special).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, Verb::Open)
            .at(name(path))
            .detail("the kernel makes no block device for the namespace: its command set is not one of plain blocks")
            .remedy("format it with the NVM command set")
    })?;
    refuse_strange(&facts, path)?;
    let nsid = ioctl::namespace_id(node.as_fd()).map_err(failed)?;
    let (namespace, limits) = identify(node.as_fd(), nsid, path)?;
    let bytes_max = limits.bytes_max().min(facts.command_bytes());
    let word = word(node.as_fd(), nsid, &namespace, bytes_max, &facts);
    let (word, handle) = word.and_then(|word| Some((word, word.pack()?))).ok_or_else(|| {
        let (block, fd) = (namespace.format.block_bytes, node.as_raw_fd());
        Error::new(ErrorKind::Unsupported, Verb::Open)
            .at(name(path))
            .detail(format!("blocks of {block} bytes, commands of {bytes_max} bytes, descriptor {fd}: out of range"))
            .remedy("use the block device of the namespace")
    })?;
    let disk = disk(&facts, path, mode)?;
    Ok(Object {
        id: Object::next_id(),
        name: path.to_string_lossy().into(),
        len: namespace.size_bytes(),
        version: version(&stat),
        faces: vec![Face {
            transport: NVME_PASSTHROUGH,
            handle,
            granularity: Granularity { block: namespace.format.block_bytes, memory: facts.memory() },
            // The only face: nothing shares a unit with it.
            write_unit: 1,
            landing: Landing::Dma,
            because: None,
        }],
        residency: Residency::Unknown.into(),
        composed: None,
        keep: Box::new(OpenNamespace { node, word, device: facts.number(), _disk: disk }),
    })
}

fn name(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// What commands of ours must not be sent to.
fn refuse_strange(facts: &Facts, path: &Path) -> Result<(), Error> {
    if facts.zoned() {
        return Err(Error::new(ErrorKind::Unsupported, Verb::Open)
            .at(name(path))
            .detail("the namespace has zones, which are written in order only")
            .remedy("use its block device"));
    }
    Ok(())
}

/// What namespace and controller say.
fn identify(node: BorrowedFd<'_>, nsid: u32, path: &Path) -> Result<(IdentifyNamespace, TransferLimits), Error> {
    let ask = |what: Identify| {
        ioctl::identify(node, &Command::identify(what, DataPointer::None)).map_err(|refused| refusal(refused, path))
    };
    let nonsense = |cause: sw_nvme::wire::WireError| {
        let error = Error::new(ErrorKind::Protocol, Verb::Open).at(name(path));
        error.detail(format!("the controller's answer makes no sense: {cause}")).caused_by(cause)
    };
    let namespace = IdentifyNamespace::decode(&ask(Identify::Namespace { nsid })?).map_err(nonsense)?;
    let namespace = namespace.ok_or_else(|| {
        let error = Error::new(ErrorKind::NoDevice, Verb::Open).at(name(path));
        error.detail(format!("namespace {nsid} is not active")).remedy("attach it to the controller")
    })?;
    if MetadataVerdict::of(&namespace, None) != MetadataVerdict::None {
        return Err(Error::new(ErrorKind::Unsupported, Verb::Open)
            .at(name(path))
            .detail(format!("each block has {} bytes of metadata", namespace.format.metadata_bytes))
            .remedy("use the block device of the namespace, or format it without metadata"));
    }
    let controller = IdentifyController::decode(&ask(Identify::Controller)?).map_err(nonsense)?;
    let limits = TransferLimits::new(&controller, PAGE_BYTES_MIN, &namespace).ok_or_else(|| {
        let error = Error::new(ErrorKind::Unsupported, Verb::Open).at(name(path));
        error.detail(format!("MDTS {} is below one block of {} bytes", controller.mdts, namespace.format.block_bytes))
    })?;
    Ok((namespace, limits))
}

fn refusal(refused: Refused, path: &Path) -> Error {
    match refused {
        Refused::Errno(errno @ (libc::EACCES | libc::EPERM)) => Error::new(ErrorKind::PermissionDenied, Verb::Open)
            .at(name(path))
            .with_code(errno)
            .detail("the kernel does not let this process identify the namespace")
            .remedy("use Linux 6.2 or newer, or run as root"),
        Refused::Errno(errno) => fault::path_error(errno, Verb::Open, path),
        Refused::Status(status) => {
            let fault = status.fault(&sw_nvme::status::RetryDelays::default());
            let fault = fault.unwrap_or(sw_engine::Fault::new(ErrorKind::Protocol, 0));
            Error::from_fault(fault, Verb::Open).at(name(path)).detail(format!("identify failed: {status}"))
        }
    }
}

/// The face's word; none if block or command are out of its range.
fn word(node: BorrowedFd<'_>, nsid: u32, namespace: &IdentifyNamespace, bytes_max: u64, facts: &Facts) -> Option<Word> {
    let block_shift = u8::try_from(namespace.format.block_bytes.trailing_zeros()).ok()?;
    let command_shift = u8::try_from(bytes_max.checked_ilog2()?).ok()?.min(*COMMAND_SHIFTS.end());
    let fits = BLOCK_SHIFTS.contains(&block_shift) && COMMAND_SHIFTS.contains(&command_shift);
    let (poll_queues, link) = (facts.poll_queues(), facts.link());
    let word = Word { fd: node.as_raw_fd(), nsid, block_shift, command_shift, poll_queues, link };
    (fits && command_shift >= block_shift).then_some(word)
}

/// Opens the block device beside the node: to write back what its page cache holds, and for a writer to claim it.
///
/// A reader without the right to open it does without.
fn disk(facts: &Facts, path: &Path, mode: OpenMode) -> Result<Option<Disk>, Error> {
    // Through symbolic links: the block device is beside the node itself.
    let node = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let device = node.with_file_name(&facts.disk);
    let claim = if mode == OpenMode::Update { libc::O_EXCL } else { 0 };
    let opened = sys::open(&device, libc::O_RDONLY | claim, 0).and_then(|fd| {
        let stat = sys::fstat(fd.as_fd())?;
        // Some other thing by that name in the directory of the node.
        if stat.kind() != libc::S_IFBLK || facts.number() != Some(stat.special) {
            return Err(libc::ENOENT);
        }
        Ok(Disk { fd, mode })
    });
    match (opened, mode) {
        (Ok(disk), _) => {
            sys::fsync(disk.fd.as_fd()).map_err(|errno| fault::path_error(errno, Verb::Open, &device))?;
            Ok(Some(disk))
        }
        (Err(_), OpenMode::Read) => Ok(None),
        (Err(libc::EBUSY), OpenMode::Update) => Err(Error::new(ErrorKind::InUse, Verb::Open)
            .at(name(path))
            .with_code(libc::EBUSY)
            .detail(format!("{} is mounted, or part of a volume, or claimed by another program", device.display()))
            .remedy("unmount it, or write through its block device")),
        (Err(errno), OpenMode::Update) => {
            let error = Error::new(fault::classify(errno).0, Verb::Open).at(name(path)).with_code(errno);
            let why = io::Error::from_raw_os_error(errno);
            Err(error
                .detail(format!("{} cannot be opened to claim it: {why}", device.display()))
                .remedy("a writer needs the block device beside the generic node, and the right to open it"))
        }
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
