//! The PCI functions of a machine, and what lies between them, as the kernel shows it.
//!
//! ```text
//!   sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0/0000:02:01.0/0000:04:00.0
//!               root bus   root port    switch, up   switch, down endpoint
//! ```
//!
//! Everything here is read, nothing is tried. Whether bytes can go from one to another is for [`peer`](crate::peer) and
//! whoever compares [`Function`]s.

pub(crate) mod acs;
mod rdma;

use std::{
    fs,
    io::Read as _,
    path::{Component, Path, PathBuf},
};

use sw_engine::PciAddress;

pub use acs::Redirect;
pub use rdma::{Port, PortState, RdmaDevice};

use crate::sysfs::{self, Machine};

/// A link of PCI Express.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Million transfers a second of each lane.
    pub speed_mts: u32,
    /// Lanes.
    pub width: u32,
}

/// The IOMMU group of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuGroup {
    /// Its number.
    pub number: u32,
    /// How its addresses are translated: `DMA`, `DMA-FQ`, `identity`; `None` if it is not told.
    pub kind: Option<String>,
}

/// A bridge above a function: a port of a switch, or a root port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Where it is.
    pub address: PciAddress,
    /// Whether it sends peer-to-peer requests up (ACS).
    pub redirect: Redirect,
}

/// A PCI function, with what sysfs tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// Class code: base class, subclass, programming interface, in 24 bits.
    pub class: u32,
    /// Vendor's number.
    pub vendor: u32,
    /// The vendor's number for the device.
    pub device: u32,
    /// Who drives it.
    pub driver: Option<String>,
    /// The NUMA node that it is near; `None` if the firmware does not tell.
    pub numa_node: Option<u32>,
    /// Its link as it is now. An idle device may have slowed it down.
    pub link: Option<Link>,
    /// The most that the device can do.
    pub link_max: Option<Link>,
    /// `None` without an IOMMU.
    pub iommu: Option<IommuGroup>,
    /// Bytes of its largest memory BAR.
    pub bar_bytes: u64,
    /// Bridges above it, nearest first.
    pub above: Vec<Bridge>,
    /// Its root bus, such as `pci0000:00`.
    pub root_bus: String,
    /// RDMA devices of it.
    pub rdma: Vec<RdmaDevice>,
    /// Its network devices.
    pub net: Vec<String>,
}

/// All functions that `wanted` says yes to, by class code, in order of their addresses. Functions that cannot be read are left out.
pub fn all(machine: &Machine, wanted: impl Fn(u32) -> bool) -> Vec<Function> {
    let names = sysfs::names(&machine.path("sys/bus/pci/devices"));
    let mut addresses: Vec<PciAddress> = names.iter().filter_map(|name| PciAddress::of_name(name)).collect();
    addresses.sort_unstable();
    addresses.into_iter().filter_map(|address| function(machine, address, &wanted)).collect()
}

fn function(machine: &Machine, address: PciAddress, wanted: impl Fn(u32) -> bool) -> Option<Function> {
    let directory = machine.function(address).ok()?;
    let hex = |name: &str| sysfs::hex(&directory.join(name));
    let class = hex("class").filter(|class| wanted(*class))?;
    let chain = Chain::of(machine, address)?;
    let bridges = chain.nodes.iter().skip(1);
    Some(Function {
        address,
        class,
        vendor: hex("vendor")?,
        device: hex("device")?,
        driver: linked(&directory.join("driver")),
        numa_node: sysfs::number(&directory.join("numa_node")).and_then(|node| u32::try_from(node).ok()),
        link: link(&directory, "current"),
        link_max: link(&directory, "max"),
        iommu: iommu(&directory),
        bar_bytes: sysfs::text(&directory.join("resource")).map_or(0, |text| largest_bar(&text)),
        above: bridges.map(|(address, node)| Bridge { address: *address, redirect: redirect(node) }).collect(),
        root_bus: chain.root_bus.file_name()?.to_str()?.to_owned(),
        rdma: rdma::devices(&directory),
        net: sysfs::names(&directory.join("net")),
    })
}

/// The name of what a symbolic link leads to.
fn linked(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

/// Text such as `16.0 GT/s PCIe` and a number of lanes; none for a function without a link of its own.
fn link(directory: &Path, which: &str) -> Option<Link> {
    let speed = sysfs::text(&directory.join(format!("{which}_link_speed")))?;
    let width = sysfs::number(&directory.join(format!("{which}_link_width")))?;
    let width = u32::try_from(width).ok().filter(|width| (1..=32).contains(width))?;
    Some(Link { speed_mts: transfers(&speed)?, width })
}

/// `8 GT/s` or `2.5 GT/s PCIe`: million transfers a second.
pub fn transfers(text: &str) -> Option<u32> {
    thousandths(text, " GT/s")
}

/// A number before `unit`, with at most one place behind the point that counts, in thousandths.
fn thousandths(text: &str, unit: &str) -> Option<u32> {
    let number = text.split_once(unit)?.0;
    let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
    let tenth = tenth.get(..1)?.parse::<u32>().ok()?;
    whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(tenth * 100)
}

fn iommu(directory: &Path) -> Option<IommuGroup> {
    let group = directory.join("iommu_group");
    let number = linked(&group)?.parse().ok()?;
    Some(IommuGroup { number, kind: sysfs::text(&group.join("type")) })
}

/// `resource` has a line for each: first address, last address, flags (linux `include/linux/ioport.h`, `IORESOURCE_MEM`).
fn largest_bar(text: &str) -> u64 {
    const BARS: usize = 6;
    const MEMORY: u64 = 0x200;
    let number = |word: Option<&str>| u64::from_str_radix(word?.strip_prefix("0x")?, 16).ok();
    let bytes = |line: &str| {
        let mut words = line.split_whitespace();
        let (first, last, flags) = (number(words.next())?, number(words.next())?, number(words.next())?);
        if flags & MEMORY == 0 || last <= first {
            return None;
        }
        (last - first).checked_add(1)
    };
    text.lines().take(BARS).filter_map(bytes).max().unwrap_or(0)
}

impl Redirect {
    /// Of two ports that the bytes pass.
    pub(crate) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            _ => Self::No,
        }
    }
}

/// The functions in a resolved path of sysfs, from the root bus down, of the innermost PCI domain.
pub(crate) fn functions(path: &Path) -> Vec<PciAddress> {
    let mut chain = Vec::new();
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("pci") && name.contains(':') {
            // A root bus: what is above it belongs to another domain (a controller that makes a domain of its own).
            chain.clear();
        } else if let Some(address) = PciAddress::of_name(name) {
            chain.push(address);
        }
    }
    chain
}

/// A function with the bridges above it, nearest first, and the directory of its root bus.
pub(crate) struct Chain {
    pub(crate) nodes: Vec<(PciAddress, PathBuf)>,
    pub(crate) root_bus: PathBuf,
}

impl Chain {
    pub(crate) fn of(machine: &Machine, address: PciAddress) -> Option<Self> {
        let path = machine.function(address).ok()?;
        let count = functions(&path).len();
        let nodes: Vec<_> = path
            .ancestors()
            .take(count)
            .filter_map(|node| Some((PciAddress::of_name(node.file_name()?.to_str()?)?, node.to_owned())))
            .collect();
        let root_bus = path.ancestors().nth(count)?.to_owned();
        (nodes.len() == count && count > 0).then_some(Self { nodes, root_bus })
    }
}

/// Whether the port at `node` sends peer-to-peer requests up.
pub(crate) fn redirect(node: &Path) -> Redirect {
    let (config, size) = config(node);
    acs::redirect(&config, size)
}

/// Whether the function at `node` is a root port; none if that cannot be read.
pub(crate) fn is_root_port(node: &Path) -> Option<bool> {
    acs::is_root_port(&config(node).0)
}

/// As much of a function's configuration space as can be read, and how much there is.
fn config(node: &Path) -> (Vec<u8>, u64) {
    let path = node.join("config");
    let size = fs::metadata(&path).map_or(0, |facts| facts.len());
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(&path) {
        // What was read before an error counts.
        let _ = file.take(4096).read_to_end(&mut bytes);
    }
    (bytes, size)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
