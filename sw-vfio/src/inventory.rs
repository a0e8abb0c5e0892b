//! What PCI functions there are, who drives them, and who uses their namespaces: read from sysfs and procfs.

use core::fmt;

use crate::{pci::PciAddress, sys, sysfs::Sysfs};

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
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { device, at } => write!(f, "{device} is mounted at {at}"),
            Self::Held { device, by } => write!(f, "{device} is part of {by}"),
            Self::Swap { device } => write!(f, "{device} is swap space"),
            Self::Exclusive { device } => write!(f, "{device} is in use"),
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

/// Who uses a block device or a partition of it.
pub(crate) fn uses(sysfs: &Sysfs, name: &str) -> Vec<Use> {
    let dir = format!("sys/class/block/{name}");
    let parts = sysfs.names(&dir).into_iter().filter(|entry| sysfs.exists(&format!("{dir}/{entry}/partition")));
    let devices: Vec<(String, String)> = core::iter::once((name.to_owned(), dir.clone()))
        .chain(parts.map(|part| (part.clone(), format!("{dir}/{part}"))))
        .take(BLOCKS_MAX)
        .collect();
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
    fn the_processes_that_have_a_file_open_are_found() {
        let path = std::env::temp_dir().join(format!("sw-vfio-held-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let _open = std::fs::File::open(&path).unwrap();
        let relative = path.to_string_lossy().trim_start_matches('/').to_owned();
        assert!(holders_of(&Sysfs::default(), &relative).contains(&std::process::id()));
        std::fs::remove_file(&path).unwrap();
    }
}
