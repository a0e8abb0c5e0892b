//! What PCI functions there are, who drives them, and who uses their namespaces: read from sysfs and procfs.

use core::fmt;
use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use sw_engine::PciAddress;

use crate::{
    sys::{self, NodeKind},
    sysfs::Sysfs,
};

/// Class code of an NVMe I/O controller without its programming interface (PCI Code and ID Assignment §1.2, base class 01h,
/// sub-class 08h).
const CLASS_NVME: u32 = 0x0108;
/// Base class of bridges.
const BASE_BRIDGE: u32 = 0x06;
/// Namespaces and partitions of one controller that are looked at.
const BLOCKS_MAX: usize = 4096;

/// Which functions [`list`] shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// NVMe controllers, and whatever vfio-pci has.
    Nvme,
    /// Every function that is no bridge.
    All,
}

/// One use of a namespace by the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// Mounted: device and mount point.
    Mounted {
        /// The block device, such as `nvme0n1p2`.
        device: String,
        /// Where it is mounted.
        at: String,
    },
    /// Below another block device (device mapper, software RAID).
    Held {
        /// The block device.
        device: String,
        /// Who is on top of it.
        by: String,
    },
    /// Swap space.
    Swap {
        /// The block device.
        device: String,
    },
    /// Opened exclusively by somebody who shows no other trace (a file system with its own volume manager).
    Exclusive {
        /// The block device.
        device: String,
    },
    /// Open in a process that need not have it for itself: a virtual machine, a database, a tool.
    Open {
        /// The block device, the generic node (`ng0n1`) or the controller (`nvme0`).
        device: String,
        /// The process.
        pid: u32,
    },
    /// Given on by the kernel: an NVMe target or a loop device.
    Exported {
        /// The block device.
        device: String,
        /// Who gives it on.
        by: String,
    },
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { device, at } => write!(f, "{device} is mounted at {at}"),
            Self::Held { device, by } => write!(f, "{device} is part of {by}"),
            Self::Swap { device } => write!(f, "{device} is swap space"),
            Self::Exclusive { device } => write!(f, "{device} is in use"),
            Self::Open { device, pid } if *pid == std::process::id() => write!(f, "this process has {device} open"),
            Self::Open { device, pid } => write!(f, "process {pid} has {device} open"),
            Self::Exported { device, by } => write!(f, "{device} is given on by {by}"),
        }
    }
}

/// A namespace that the kernel's driver shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// The block device, such as `nvme0n1`.
    pub name: String,
    /// Its number; 0 if the kernel does not tell.
    pub nsid: u32,
    /// Its bytes.
    pub bytes: u64,
    /// Who uses it; nobody if empty.
    pub uses: Vec<Use>,
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionFacts {
    /// Where it is.
    pub address: PciAddress,
    /// Class code, 24 bits.
    pub class: u32,
    /// Vendor number.
    pub vendor: u16,
    /// Device number.
    pub device: u16,
    /// Who drives it.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub group: Option<String>,
    /// The other functions of its group.
    pub neighbours: Vec<PciAddress>,
    /// Serial number, as long as the kernel's driver has it.
    pub serial: Option<String>,
    /// Model, likewise.
    pub model: Option<String>,
    /// Namespaces, likewise.
    pub namespaces: Vec<NamespaceFacts>,
}

impl FunctionFacts {
    /// Whether it is an NVMe controller.
    pub fn is_nvme(&self) -> bool {
        self.class >> 8 == CLASS_NVME
    }

    /// Whether it is a bridge or a port of one.
    pub fn is_bridge(&self) -> bool {
        self.class >> 16 == BASE_BRIDGE
    }

    /// Who uses its namespaces.
    pub fn uses(&self) -> impl Iterator<Item = &Use> {
        self.namespaces.iter().flat_map(|namespace| &namespace.uses)
    }
}

/// The functions of the machine, by address.
pub fn list(sysfs: &Sysfs, which: Which) -> Vec<FunctionFacts> {
    let addresses = sysfs.names("sys/bus/pci/devices");
    let functions = addresses.iter().filter_map(|name| name.parse().ok()).map(|address| look(sysfs, address));
    let wanted = |function: &FunctionFacts| match which {
        Which::Nvme => function.is_nvme() || function.driver.as_deref() == Some("vfio-pci"),
        Which::All => !function.is_bridge(),
    };
    functions.filter(wanted).collect()
}

/// One function, whether it is there or not: one that is not has zeros and no driver.
pub fn look(sysfs: &Sysfs, address: PciAddress) -> FunctionFacts {
    let dir = Sysfs::function(address);
    let number = |name: &str| {
        let text = sysfs.read(&format!("{dir}/{name}")).unwrap_or_default();
        u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
    };
    let neighbours = sysfs.names(&format!("{dir}/iommu_group/devices"));
    let controller = sysfs.names(&format!("{dir}/nvme")).into_iter().next().map(|name| format!("{dir}/nvme/{name}"));
    let of_controller = |name: &str| controller.as_ref().and_then(|dir| sysfs.read(&format!("{dir}/{name}")));
    FunctionFacts {
        address,
        class: number("class"),
        vendor: u16::try_from(number("vendor")).unwrap_or(0),
        device: u16::try_from(number("device")).unwrap_or(0),
        driver: sysfs.driver(address),
        group: sysfs.group(address).map(|group| group.number),
        neighbours: neighbours.iter().filter_map(|name| name.parse().ok()).filter(|other| *other != address).collect(),
        serial: of_controller("serial"),
        model: of_controller("model"),
        namespaces: controller.as_deref().map(|dir| namespaces(sysfs, dir)).unwrap_or_default(),
    }
}

/// `nvme0n1` stands for itself; `nvme0c1n1`, a path of a namespace with several, for `nvme0n1`.
fn block_name(entry: &str) -> Option<String> {
    let rest = entry.strip_prefix("nvme")?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (controller, namespace) = rest.rsplit_once('n')?;
    let subsystem = controller.split_once('c').map_or(controller, |(subsystem, _)| subsystem);
    (digits(subsystem) && digits(namespace)).then(|| format!("nvme{subsystem}n{namespace}"))
}

fn namespaces(sysfs: &Sysfs, controller: &str) -> Vec<NamespaceFacts> {
    let names = sysfs.names(controller);
    let blocks = names.iter().filter_map(|entry| Some((entry, block_name(entry)?))).take(BLOCKS_MAX);
    let fact = |(entry, name): (&String, String)| {
        let number = |file: &str| {
            let told = sysfs.read(&format!("{controller}/{entry}/{file}"));
            told.or_else(|| sysfs.read(&format!("sys/class/block/{name}/{file}")))
                .and_then(|text| text.parse::<u64>().ok())
        };
        NamespaceFacts {
            nsid: number("nsid").and_then(|nsid| u32::try_from(nsid).ok()).unwrap_or(0),
            // The kernel counts sectors of 512 bytes, whatever the block size.
            bytes: number("size").unwrap_or(0).saturating_mul(512),
            uses: uses(sysfs, &name),
            name,
        }
    };
    blocks.map(fact).collect()
}

/// A block device and its partitions: names, and directories in sysfs.
fn with_partitions(sysfs: &Sysfs, name: &str) -> Vec<(String, String)> {
    let dir = format!("sys/class/block/{name}");
    let parts = sysfs.names(&dir).into_iter().filter(|entry| sysfs.exists(&format!("{dir}/{entry}/partition")));
    let parts = parts.map(|part| (part.clone(), format!("{dir}/{part}")));
    core::iter::once((name.to_owned(), dir.clone())).chain(parts).take(BLOCKS_MAX).collect()
}

/// Who uses a block device or a partition of it.
pub(crate) fn uses(sysfs: &Sysfs, name: &str) -> Vec<Use> {
    let devices = with_partitions(sysfs, name);
    let (mounts, swaps) = (sysfs.read("proc/self/mountinfo"), sysfs.read("proc/swaps"));
    let mut found = Vec::new();
    for (device, dir) in devices {
        let number = sysfs.read(&format!("{dir}/dev")).unwrap_or_default();
        let path = format!("/dev/{device}");
        for at in mounts.iter().flat_map(|text| mounted_at(text, &number, &path)) {
            found.push(Use::Mounted { device: device.clone(), at });
        }
        for by in sysfs.names(&format!("{dir}/holders")) {
            found.push(Use::Held { device: device.clone(), by });
        }
        let swap = |line: &str| line.split_whitespace().next() == Some(path.as_str());
        if swaps.as_ref().is_some_and(|text| text.lines().any(swap)) {
            found.push(Use::Swap { device: device.clone() });
        }
    }
    // Asked last: whoever is known by name is a better answer.
    if found.is_empty() && is_held(sysfs, name) {
        found.push(Use::Exclusive { device: name.to_owned() });
    }
    found
}

/// Mount points of a device, by its number or by its path: some file systems have a number of their own.
fn mounted_at(mountinfo: &str, number: &str, path: &str) -> Vec<String> {
    let at = |line: &str| {
        // proc(5): ID, parent, major:minor, root, mount point, options, optional fields, "-", type, source, options.
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let (device, _, point) = (left.next()?, left.next()?, left.next()?);
        let source = right.split(' ').nth(1)?;
        ((!number.is_empty() && device == number) || source == path).then(|| point.replace("\\040", " "))
    };
    mountinfo.lines().filter_map(at).collect()
}

/// Whether somebody has the block device for himself: an exclusive open is refused then.
fn is_held(sysfs: &Sysfs, name: &str) -> bool {
    sys::open(&sysfs.path(&format!("dev/{name}")), libc::O_RDONLY | libc::O_EXCL).err() == Some(libc::EBUSY)
}

/// A device node of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    name: String,
    kind: NodeKind,
    /// `major:minor`; empty if the kernel does not tell.
    number: String,
}

/// Every node by which a process can reach a controller or its namespaces: block devices, partitions, generic nodes, itself.
fn nodes(sysfs: &Sysfs, function: &FunctionFacts) -> Vec<Node> {
    let number = |dir: &str| sysfs.read(&format!("{dir}/dev")).unwrap_or_default();
    let mut nodes = Vec::new();
    let mut add = |name: String, kind, dir: &str| nodes.push(Node { number: number(dir), name, kind });
    for namespace in function.namespaces.iter().map(|namespace| &namespace.name) {
        for (device, dir) in with_partitions(sysfs, namespace) {
            add(device, NodeKind::Block, &dir);
        }
        // `nvme0n1` and `ng0n1` are two nodes of one namespace (Linux `drivers/nvme/host/core.c`, `nvme_add_ns_cdev`).
        let generic = namespace.replacen("nvme", "ng", 1);
        let dir = format!("sys/class/nvme-generic/{generic}");
        add(generic, NodeKind::Character, &dir);
    }
    for controller in sysfs.names(&format!("{}/nvme", Sysfs::function(function.address))) {
        let dir = format!("sys/class/nvme/{controller}");
        add(controller, NodeKind::Character, &dir);
    }
    nodes
}

/// Who has a node of a controller open, or gives a namespace of it on: what shows neither as mounted nor as exclusive. As far
/// as this user may see other processes; `except` are descriptors of this one that do not count.
pub(crate) fn openers(sysfs: &Sysfs, function: &FunctionFacts, except: &[OwnedFd]) -> Vec<Use> {
    let nodes = nodes(sysfs, function);
    let mut found = exports(sysfs, &nodes);
    if nodes.is_empty() {
        return found;
    }
    let ours = std::process::id();
    let is_except = |pid: u32, fd: &str| pid == ours && except.iter().any(|held| held.as_raw_fd().to_string() == fd);
    for pid in sysfs.names("proc").into_iter().filter_map(|name| name.parse::<u32>().ok()) {
        let dir = format!("proc/{pid}/fd");
        for fd in sysfs.names(&dir).iter().filter(|fd| !is_except(pid, fd)) {
            let path = sysfs.path(&format!("{dir}/{fd}"));
            if let Some(node) = node_of(&nodes, &path) {
                found.push(Use::Open { device: node.name.clone(), pid });
            }
        }
    }
    found.dedup();
    found
}

/// The node that a process's descriptor is open on: by name, or by number, since a container may have given it another name.
fn node_of<'a>(nodes: &'a [Node], descriptor: &Path) -> Option<&'a Node> {
    let target = std::fs::read_link(descriptor).ok()?;
    // Sockets, pipes and the like have no path.
    let target = target.to_str().filter(|target| target.starts_with('/'))?;
    let by_name = |node: &&Node| target.strip_prefix("/dev/") == Some(node.name.as_str());
    nodes.iter().find(by_name).or_else(|| {
        let (kind, number) = sys::device_number(descriptor)?;
        nodes.iter().find(|node| node.kind == kind && node.number == number)
    })
}

/// What the kernel itself gives on without having it exclusively. It has no descriptor in any process then.
fn exports(sysfs: &Sysfs, nodes: &[Node]) -> Vec<Use> {
    const SUBSYSTEMS: &str = "sys/kernel/config/nvmet/subsystems";
    let is_number = |entry: &String| entry.bytes().all(|byte| byte.is_ascii_digit());
    let targets = sysfs.names(SUBSYSTEMS).into_iter().flat_map(|subsystem| {
        let dir = format!("{SUBSYSTEMS}/{subsystem}/namespaces");
        let numbers = sysfs.names(&dir).into_iter().filter(is_number);
        numbers.map(move |n| (format!("{dir}/{n}/device_path"), format!("the NVMe target {subsystem}")))
    });
    let loops = sysfs.names("sys/class/block").into_iter().filter(|name| name.starts_with("loop"));
    let loops = loops.map(|name| (format!("sys/class/block/{name}/loop/backing_file"), format!("/dev/{name}")));
    let used = |(file, by): (String, String)| {
        let path = sysfs.read(&file).filter(|path| path.starts_with('/'))?;
        // By way of links such as `/dev/disk/by-id`.
        let real = std::fs::canonicalize(sysfs.path(&path[1..])).unwrap_or_else(|_| path.clone().into());
        let name = real.file_name()?.to_str()?;
        let node = nodes.iter().find(|node| node.kind == NodeKind::Block && node.name == name)?;
        Some(Use::Exported { device: node.name.clone(), by })
    };
    targets.chain(loops).filter_map(used).collect()
}

/// Takes a controller's block devices for this process alone, as far as they can be opened: nobody can mount them then.
///
/// # Errors
/// One that somebody has already.
pub(crate) fn hold(sysfs: &Sysfs, function: &FunctionFacts) -> Result<Vec<OwnedFd>, Use> {
    let mut held = Vec::new();
    for NamespaceFacts { name, .. } in &function.namespaces {
        match sys::open(&sysfs.path(&format!("dev/{name}")), libc::O_RDONLY | libc::O_EXCL) {
            Ok(fd) => held.push(fd),
            Err(libc::EBUSY) => return Err(Use::Exclusive { device: name.clone() }),
            // No node, no right, no medium: the look at the processes has to do.
            Err(_) => {}
        }
    }
    Ok(held)
}

/// Processes that have a file open, as far as this user may see: for the question who owns a controller.
pub(crate) fn holders_of(sysfs: &Sysfs, file: &str) -> Vec<u32> {
    let wanted = format!("/{file}");
    let processes = sysfs.names("proc").into_iter().filter_map(|name| name.parse::<u32>().ok());
    let has = |pid: &u32| {
        let dir = format!("proc/{pid}/fd");
        let link = |fd: &String| std::fs::read_link(sysfs.path(&format!("{dir}/{fd}"))).ok();
        sysfs.names(&dir).iter().filter_map(link).any(|target| target.as_os_str() == wanted.as_str())
    };
    processes.filter(has).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Tree;

    #[test]
    fn namespaces_are_found_with_and_without_multipath() {
        assert_eq!(block_name("nvme0n1").as_deref(), Some("nvme0n1"));
        assert_eq!(block_name("nvme3c12n45").as_deref(), Some("nvme3n45"));
        for other in ["nvme0", "nvme0n1p1", "ng0n1", "nvmen1", "nvme0n", "power"] {
            assert_eq!(block_name(other), None, "{other}");
        }
    }

    #[test]
    fn a_function_is_described() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        let found = list(tree.sysfs(), Which::Nvme);
        assert_eq!(found.len(), 1);
        let function = &found[0];
        assert_eq!(
            (function.address, function.class, function.vendor, function.device),
            (address, 0x01_0802, 0x1b36, 0x10)
        );
        assert_eq!((function.driver.as_deref(), function.group.as_deref()), (Some("nvme"), Some("4")));
        assert_eq!((function.serial.as_deref(), function.model.as_deref()), (Some("S123"), Some("QEMU NVMe Ctrl")));
        let namespace = &function.namespaces[0];
        assert_eq!((namespace.name.as_str(), namespace.nsid, namespace.bytes), ("nvme0n1", 1, 64 << 20));
        assert_eq!(namespace.uses, []);
        assert!(function.is_nvme() && !function.is_bridge());
    }

    #[test]
    fn every_kind_of_use_is_seen() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        tree.partition("nvme0n1", "nvme0n1p1", "259:1");
        let uses = || look(tree.sysfs(), address).uses().map(Use::to_string).collect::<Vec<_>>();
        tree.write(
            "proc/self/mountinfo",
            "22 1 259:1 / /data\\040set rw - ext4 /dev/root rw\n9 1 0:5 / /x rw - tmpfs tmpfs rw\n",
        );
        assert_eq!(uses(), ["nvme0n1p1 is mounted at /data set"]);
        tree.write("proc/self/mountinfo", "22 1 0:40 / /pool rw shared:1 - btrfs /dev/nvme0n1p1 rw\n");
        assert_eq!(uses(), ["nvme0n1p1 is mounted at /pool"]);
        tree.write("proc/self/mountinfo", "");
        tree.write("proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 1 0 -2\n");
        assert_eq!(uses(), ["nvme0n1p1 is swap space"]);
        tree.write("proc/swaps", "");
        tree.write("sys/class/block/nvme0n1/holders/dm-0/x", "");
        assert_eq!(uses(), ["nvme0n1 is part of dm-0"]);
    }

    #[test]
    fn who_has_a_node_open_is_found_by_name_and_by_number() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        tree.partition("nvme0n1", "nvme0n1p1", "259:1");
        let found = |except: &[OwnedFd]| {
            let function = look(tree.sysfs(), address);
            openers(tree.sysfs(), &function, except).iter().map(Use::to_string).collect::<Vec<_>>()
        };
        tree.open_file(700, "0", "/dev/null");
        tree.open_file(700, "3", "socket:[12]");
        assert_eq!(found(&[]), [""; 0]);
        for (pid, target) in [
            (701, "/dev/nvme0n1"),
            (702, "/dev/nvme0n1p1"),
            (703, "/dev/ng0n1"),
            (704, "/dev/nvme0"),
            (705, "/dev/nvme0n2"),
        ] {
            tree.open_file(pid, "5", target);
        }
        assert_eq!(
            found(&[]),
            ["nvme0n1", "nvme0n1p1", "ng0n1", "nvme0"]
                .iter()
                .zip(701..)
                .map(|(name, pid)| format!("process {pid} has {name} open"))
                .collect::<Vec<_>>()
        );
        // `/dev/null` is 1:3 everywhere (Linux `Documentation/admin-guide/devices.txt`): another name of the same node.
        tree.write("sys/class/nvme-generic/ng0n1/dev", "1:3\n");
        assert_eq!(found(&[])[0], "process 700 has ng0n1 open");
    }

    #[test]
    fn own_descriptors_that_hold_it_do_not_count() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        tree.write("dev/nvme0n1", "");
        let function = look(tree.sysfs(), address);
        let held = hold(tree.sysfs(), &function).unwrap();
        assert_eq!(held.len(), 1);
        tree.open_file(std::process::id(), &held[0].as_raw_fd().to_string(), "/dev/nvme0n1");
        assert_eq!(openers(tree.sysfs(), &function, &held), []);
        let told: Vec<_> = openers(tree.sysfs(), &function, &[]).iter().map(Use::to_string).collect();
        assert_eq!(told, ["this process has nvme0n1 open"]);
    }

    #[test]
    fn what_the_kernel_gives_on_is_found() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        let found = || {
            let function = look(tree.sysfs(), address);
            openers(tree.sysfs(), &function, &[]).iter().map(Use::to_string).collect::<Vec<_>>()
        };
        tree.write("dev/nvme0n1", "");
        tree.write("dev/disk/x", "");
        std::os::unix::fs::symlink("../nvme0n1", tree.sysfs().path("dev/disk/by-name")).unwrap();
        tree.write("sys/kernel/config/nvmet/subsystems/here/namespaces/1/device_path", "/dev/disk/by-name\n");
        tree.write("sys/kernel/config/nvmet/subsystems/here/namespaces/2/device_path", "(null)\n");
        assert_eq!(found(), ["nvme0n1 is given on by the NVMe target here"]);
        std::fs::remove_dir_all(tree.sysfs().path("sys/kernel")).unwrap();
        tree.write("sys/class/block/loop3/loop/backing_file", "/dev/nvme0n1\n");
        assert_eq!(found(), ["nvme0n1 is given on by /dev/loop3"]);
    }

    #[test]
    fn the_processes_that_have_a_file_open_are_found() {
        let path = std::env::temp_dir().join(format!("sw-vfio-held-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let _open = std::fs::File::open(&path).unwrap();
        let relative = path.to_string_lossy().trim_start_matches('/').to_owned();
        assert!(holders_of(&Sysfs::default(), &relative).contains(&std::process::id()));
        std::fs::remove_file(&path).unwrap();
    }
}
