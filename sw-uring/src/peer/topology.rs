//! Whether a drive can reach a device's memory across PCI, told before anything is tried.
//!
//! ```text
//!   host bridge ─ root port ─ switch up ─┬─ down ─ drive          same switch: the bytes turn round there
//!                                        └─ down ─ memory
//!               ─ root port ─ other drive                         another root port: only if the host bridge is known good
//! ```
//!
//! The rules are those of linux 7.3 `drivers/pci/p2pdma.c` (`calc_map_type_and_dist`, `cpu_supports_p2pdma`,
//! `pci_p2pdma_whitelist`), because it is the kernel that will refuse. What the kernel decides from facts that user space
//! cannot see is [`Verdict::Unproven`]: only a self-test tells.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use sw_engine::{PciAddress, Reason};

use crate::{
    pci::{self, Chain, Redirect, functions},
    sysfs::{self, Machine},
};

/// Levels of stacked block devices that are looked through, and devices in all.
const STACK_MAX: u32 = 8;
const FUNCTIONS_MAX: usize = 64;

/// Newest kernel whose table of host bridges is in [`LISTED`].
const LISTED_UNTIL: (u32, u32) = (7, 3);

/// `pci_p2pdma_whitelist`: vendor, device (none: any), whether both sides must be below the same host bridge.
const LISTED: &[(u32, Option<u32>, Span)] = &[
    (INTEL, Some(0x3c00), Span::One),
    (INTEL, Some(0x3c01), Span::One),
    (INTEL, Some(0x2f00), Span::One),
    (INTEL, Some(0x2f01), Span::One),
    (INTEL, Some(0x2030), Span::Any),
    (INTEL, Some(0x2031), Span::Any),
    (INTEL, Some(0x2032), Span::Any),
    (INTEL, Some(0x2033), Span::Any),
    (INTEL, Some(0x2020), Span::Any),
    (INTEL, Some(0x09a2), Span::Any),
    (INTEL, Some(0x0b25), Span::Any),
    (INTEL, Some(0x0cfe), Span::Any),
    (INTEL, Some(0x11fb), Span::Any),
    (INTEL, Some(0x1212), Span::Any),
    (INTEL, Some(0x1216), Span::Any),
    (INTEL, Some(0x4940), Span::Any),
    (INTEL, Some(0x4942), Span::Any),
    (INTEL, Some(0x4944), Span::Any),
    (INTEL, Some(0x4946), Span::Any),
    (INTEL, Some(0x4948), Span::Any),
    (0x1ae0, None, Span::Any),
    (0x10de, Some(0x2f95), Span::Any),
    (0x10de, Some(0x2f96), Span::Any),
    (0x10de, Some(0x2f97), Span::Any),
    (0x10de, Some(0x2f98), Span::Any),
];
const INTEL: u32 = 0x8086;

/// Whether an entry of the table holds between two host bridges.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Span {
    /// Below one host bridge only.
    One,
    /// Between any two that are listed.
    Any,
}

/// What the PCI tree says of one drive and one device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One function, or a common bridge that no port redirects past: the bytes turn round there. `hops` links in all.
    Across {
        /// Links between the two: 0 for one function, 4 across one switch.
        hops: u32,
    },
    /// Through the host bridge, which the kernel's rules allow.
    HostBridge {
        /// Links up from both sides.
        hops: u32,
    },
    /// The tree does not decide it; a self-test does.
    Unproven(Doubt),
    /// The kernel will refuse.
    Refused(Reason),
}

impl fmt::Display for Verdict {
    /// For people: the way, or why there is none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Across { hops: 0 } => f.write_str("reaches it: the same device"),
            Self::Across { hops } => write!(f, "reaches it across {hops} links, without the host bridge"),
            Self::HostBridge { hops } => write!(f, "may reach it through the host bridge, {hops} links"),
            Self::Unproven(doubt) => f.write_str(doubt.text()),
            Self::Refused(reason) => write!(f, "does not reach it: {}", reason.code()),
        }
    }
}

/// Why the tree does not decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Configuration space of a port can be read by root only, so its ACS control is not known.
    AcsUnreadable,
    /// The host bridge is not in the table of the kernels known here, and this kernel is newer than those.
    NewerKernel,
    /// Which kind of device leads the root bus can be read by root only.
    HostBridgeUnreadable,
    /// The drive is on the network, reached through a NIC that sysfs does not name.
    Fabrics,
    /// The file system does not name a device of its own (btrfs, network file systems).
    NoDevice,
}

impl Doubt {
    /// One sentence for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::AcsUnreadable => "access control of a bridge on the way can be read by root only",
            Self::NewerKernel => "the host bridge is not among those known to this program, and the kernel is newer",
            Self::HostBridgeUnreadable => "the device at the head of the root bus can be read by root only",
            Self::Fabrics => "the drive is reached over a network",
            Self::NoDevice => "the file system does not name its device",
        }
    }
}

/// What the tree says of memory of `provider` and the drives below a file or block device.
///
/// The verdict is the worst of all drives, for a stack of several.
pub(super) fn verdict(machine: &Machine, provider: PciAddress, below: &Below) -> Verdict {
    match below {
        Below::Functions(clients) => {
            let each = clients.iter().map(|client| between(machine, provider, *client));
            each.reduce(worse).unwrap_or(Verdict::Refused(Reason::P2pNotPci))
        }
        Below::NotPci => Verdict::Refused(Reason::P2pNotPci),
        Below::Unknown(doubt) => Verdict::Unproven(*doubt),
    }
}

/// Whether a block that arrives right shows it for all drives below: it does for one drive, and across a switch the bytes of
/// each drive turn round in the same way.
pub(super) fn one_block_shows(below: &Below, tree: Verdict) -> bool {
    match (below, tree) {
        (_, Verdict::Across { .. }) => true,
        (Below::Functions(drives), _) => drives.len() == 1,
        // There may be several.
        (Below::Unknown(Doubt::NoDevice), _) => false,
        (Below::Unknown(_) | Below::NotPci, _) => true,
    }
}

/// Whether a block device is a drive itself, or a part of one: what is read of it, zeros as well, the drive has written.
pub(super) fn is_drive(machine: &Machine, device: u64) -> bool {
    let node = machine.path(&format!("sys/dev/block/{}:{}", libc::major(device), libc::minor(device)));
    fs::canonicalize(node).is_ok_and(|node| !functions(&node).is_empty())
}

fn worse(one: Verdict, other: Verdict) -> Verdict {
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Across { hops } => (0, *hops),
        Verdict::HostBridge { hops } => (1, *hops),
        Verdict::Unproven(_) => (2, 0),
        Verdict::Refused(_) => (3, 0),
    };
    if rank(&other) > rank(&one) { other } else { one }
}

/// The PCI functions below a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Below {
    /// These.
    Functions(Vec<PciAddress>),
    /// It is not on PCI (a loop device, memory).
    NotPci,
    /// Nobody tells.
    Unknown(Doubt),
}

/// The functions below a device number, as in `st_rdev` of a block device or `st_dev` of a file.
pub(super) fn below(machine: &Machine, device: u64) -> Below {
    let (major, minor) = (libc::major(device), libc::minor(device));
    // Major 0 is an anonymous device: the file system made it up.
    if major == 0 {
        return Below::Unknown(Doubt::NoDevice);
    }
    let Ok(node) = fs::canonicalize(machine.path(&format!("sys/dev/block/{major}:{minor}"))) else {
        return Below::Unknown(Doubt::NoDevice);
    };
    let mut found = Vec::new();
    match gather(&node, STACK_MAX, &mut found) {
        Ok(()) if found.is_empty() => Below::NotPci,
        Ok(()) => Below::Functions(found),
        Err(below) => below,
    }
}

/// Adds the functions below the disk or partition at `node`.
fn gather(node: &Path, levels: u32, found: &mut Vec<PciAddress>) -> Result<(), Below> {
    if levels == 0 || found.len() >= FUNCTIONS_MAX {
        return Err(Below::Unknown(Doubt::NoDevice));
    }
    if let Some(function) = functions(node).last() {
        if !found.contains(function) {
            found.push(*function);
        }
        return Ok(());
    }
    if node.components().any(|part| part.as_os_str() == "nvme-fabrics") {
        return Err(Below::Unknown(Doubt::Fabrics));
    }
    // A partition has no `slaves`; its disk is the directory above.
    let disk = if node.join("partition").exists() { node.parent().unwrap_or(node) } else { node };
    let parts = members(disk);
    if parts.is_empty() {
        // On no device: it adds nothing, and a stack that has others below it cannot be reached as a whole.
        return Err(Below::NotPci);
    }
    parts.iter().try_for_each(|part| gather(part, levels - 1, found))
}

/// What a disk without a PCI function of its own is made of: the members of a stack, or the controllers that share an
/// NVMe namespace.
fn members(disk: &Path) -> Vec<PathBuf> {
    let resolved = |directory: &Path, keep: fn(&str) -> bool| -> Vec<PathBuf> {
        let names = sysfs::names(directory).into_iter().filter(|name| keep(name));
        names.filter_map(|name| fs::canonicalize(directory.join(name)).ok()).collect()
    };
    let slaves = resolved(&disk.join("slaves"), |_| true);
    if !slaves.is_empty() {
        return slaves;
    }
    let controller = |name: &str| name.strip_prefix("nvme").is_some_and(|rest| rest.parse::<u32>().is_ok());
    resolved(&disk.join("device"), controller)
}

fn between(machine: &Machine, provider: PciAddress, client: PciAddress) -> Verdict {
    let Some(up) = Chain::of(machine, provider) else { return Verdict::Refused(Reason::NoPeerPages) };
    let Some(down) = Chain::of(machine, client) else { return Verdict::Refused(Reason::P2pNotPci) };
    let common = up.nodes.iter().enumerate().find_map(|(from_provider, (address, _))| {
        let from_client = down.nodes.iter().position(|(other, _)| other == address)?;
        Some((from_provider, from_client))
    });
    let Some((from_provider, from_client)) = common else {
        let hops = hops(up.nodes.len() + down.nodes.len());
        return through_host_bridge(machine, &up, &down, hops, Reason::P2pNoCommonSwitch);
    };
    // The kernel asks the common bridge itself, and everything below it on both sides.
    let ports = up.nodes.iter().take(from_provider + 1).chain(down.nodes.iter().take(from_client));
    let hops = hops(from_provider + from_client);
    match ports.map(|(_, node)| pci::redirect(node)).reduce(Redirect::or).unwrap_or(Redirect::No) {
        Redirect::No => Verdict::Across { hops },
        Redirect::Yes => through_host_bridge(machine, &up, &down, hops, Reason::P2pAcsRedirect),
        Redirect::Unknown => Verdict::Unproven(Doubt::AcsUnreadable),
    }
}

fn hops(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Through the host bridge: the processor or the kernel's table must allow it, else `reason`.
fn through_host_bridge(machine: &Machine, up: &Chain, down: &Chain, hops: u32, reason: Reason) -> Verdict {
    if processor_allows(machine) {
        return Verdict::HostBridge { hops };
    }
    let span = if up.root_bus == down.root_bus { Span::One } else { Span::Any };
    let heads = [head_listed(&up.root_bus, span), head_listed(&down.root_bus, span)];
    match heads {
        [Listed::Yes, Listed::Yes] => Verdict::HostBridge { hops },
        [Listed::Unknown, _] | [_, Listed::Unknown] => Verdict::Unproven(Doubt::HostBridgeUnreadable),
        _ if newer_than_known(machine) => Verdict::Unproven(Doubt::NewerKernel),
        _ => Verdict::Refused(reason),
    }
}

enum Listed {
    Yes,
    No,
    Unknown,
}

/// Whether the first function of a root bus is in the table (`pci_host_bridge_dev`, `__host_bridge_whitelist`).
fn head_listed(root_bus: &Path, span: Span) -> Listed {
    let mut on_bus: Vec<_> = sysfs::names(root_bus).iter().filter_map(|name| PciAddress::of_name(name)).collect();
    on_bus.sort_unstable();
    let Some(head) = on_bus.first() else { return Listed::No };
    let node = root_bus.join(head.to_string());
    if (head.device, head.function) != (0, 0) {
        match pci::is_root_port(&node) {
            Some(true) => {}
            Some(false) => return Listed::No,
            None => return Listed::Unknown,
        }
    }
    let (Some(vendor), Some(device)) = (sysfs::hex(&node.join("vendor")), sysfs::hex(&node.join("device"))) else {
        return Listed::Unknown;
    };
    let entry = LISTED.iter().find(|(v, d, _)| *v == vendor && d.is_none_or(|d| d == device));
    match entry {
        Some((_, _, Span::One)) if span == Span::Any => Listed::No,
        Some(_) => Listed::Yes,
        None => Listed::No,
    }
}

/// AMD processors from family 17h (Zen) on route between any two root ports (`cpu_supports_p2pdma`).
fn processor_allows(machine: &Machine) -> bool {
    let Some(text) = machine.text("proc/cpuinfo") else { return false };
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    field("vendor_id").is_some_and(|vendor| vendor == "AuthenticAMD")
        && field("cpu family").and_then(|family| family.parse::<u32>().ok()).is_some_and(|family| family >= 0x17)
}

fn newer_than_known(machine: &Machine) -> bool {
    let release = machine.text("proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let running = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    running > LISTED_UNTIL
}

#[cfg(test)]
#[path = "topology_tests.rs"]
mod tests;
