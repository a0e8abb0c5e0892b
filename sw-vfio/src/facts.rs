//! What stands between this machine and driving an NVMe controller from user space: one line a fact, with what to do next.

use std::os::fd::OwnedFd;

use sw_engine::Landing;
use sw_mem::ByteLen;

use crate::{
    bind::{self, VFIO_PCI},
    inventory::{self, FunctionFacts, Use, Which},
    sys,
    sysfs::Sysfs,
    visibility::Visibility,
};

/// Locked memory that rings, lists and the slabs of a few lanes take.
const MEMLOCK_WANTED: u64 = 256 << 20;

/// How a fact stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Good,
    /// It works with less than it could, or needs a step first.
    Limited,
    /// Not there.
    Missing,
    /// Neither good nor bad.
    Neutral,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// A stable name, such as `iommu` or `nvme.0000:01:00.0`.
    pub name: String,
    /// How it stands.
    pub health: Health,
    /// Its value.
    pub value: String,
    /// What to do about it; empty if nothing.
    pub remedy: String,
}

fn fact(name: impl Into<String>, health: Health, value: impl Into<String>, remedy: impl Into<String>) -> Fact {
    Fact { name: name.into(), health, value: value.into(), remedy: remedy.into() }
}

/// All facts, in a stable order: the machine first, then its controllers. Reads files only; a few milliseconds.
pub fn facts(sysfs: &Sysfs) -> Vec<Fact> {
    let functions = inventory::list(sysfs, Which::Nvme);
    let mut found = vec![iommu(sysfs), vfio(sysfs), iommufd(sysfs), memlock(limit(sysfs))];
    found.extend(noiommu(sysfs));
    if !functions.iter().any(FunctionFacts::is_nvme) {
        // A machine without a controller lacks nothing.
        found.iter_mut().for_each(|fact| fact.health = Health::Neutral);
        found.push(fact("nvme", Health::Neutral, "no NVMe controller on this machine's PCI bus", ""));
    }
    found.extend(functions.iter().map(|function| describe(sysfs, function)));
    let all = inventory::list(sysfs, Which::All);
    found.extend(all.iter().filter(|other| !other.is_nvme()).flat_map(|other| peers(sysfs, other)));
    found
}

/// The BARs of a function of ours that drives no storage: memory for `--into bar:`.
fn peers(sysfs: &Sysfs, function: &FunctionFacts) -> Vec<Fact> {
    if function.driver.as_deref() != Some(VFIO_PCI) {
        return Vec::new();
    }
    let told = |(number, bytes): (u8, u64)| {
        let (dma, copies) = (Visibility::of(Landing::Dma), Visibility::of(Landing::Staged));
        fact(
            format!("bar.{}/{number}", function.address),
            Health::Limited,
            format!("{} of memory; visibility of a drive's DMA: {dma}, of copies by the CPU: {copies}", ByteLen(bytes)),
            "where work on the device follows a read at once: --policy require=staged, until a record shows that DMA is seen",
        )
    };
    sysfs.memory_bars(function.address).into_iter().map(told).collect()
}

fn iommu(sysfs: &Sysfs) -> Fact {
    match sysfs.iommu_groups() {
        0 => fact(
            "iommu",
            Health::Missing,
            "off: no IOMMU groups",
            "switch it on in the firmware (VT-d, AMD-Vi, SMMU) and boot with intel_iommu=on or amd_iommu=on",
        ),
        groups => fact("iommu", Health::Good, format!("on, {groups} groups"), ""),
    }
}

fn vfio(sysfs: &Sysfs) -> Fact {
    let has = |path: &str| sysfs.exists(path);
    if !has(&format!("sys/bus/pci/drivers/{VFIO_PCI}")) {
        return fact("vfio", Health::Missing, "vfio-pci is not loaded", "modprobe vfio-pci");
    }
    match open("dev/vfio/vfio", sysfs) {
        Ok(_) => fact("vfio", Health::Good, "loaded, /dev/vfio/vfio can be opened", ""),
        Err(libc::ENOENT) if has("dev/iommu") => {
            fact("vfio", Health::Good, "loaded, without containers: by iommufd", "")
        }
        Err(libc::ENOENT) => fact("vfio", Health::Missing, "there is no /dev/vfio/vfio", "modprobe vfio_iommu_type1"),
        Err(errno) => fact(
            "vfio",
            Health::Limited,
            format!("/dev/vfio/vfio cannot be opened (errno {errno})"),
            "run as root, or give your group access to /dev/vfio/*",
        ),
    }
}

fn iommufd(sysfs: &Sysfs) -> Fact {
    match open("dev/iommu", sysfs) {
        Ok(_) => fact("iommufd", Health::Good, "/dev/iommu can be opened", ""),
        Err(libc::ENOENT) => fact("iommufd", Health::Neutral, "not there; VFIO containers do the same", ""),
        Err(errno) => {
            fact("iommufd", Health::Limited, format!("/dev/iommu cannot be opened (errno {errno})"), "run as root")
        }
    }
}

fn open(path: &str, sysfs: &Sysfs) -> Result<OwnedFd, i32> {
    sys::open(&sysfs.path(path), libc::O_RDWR)
}

/// `CAP_IPC_LOCK` of linux `include/uapi/linux/capability.h`: lifts the limit.
const IPC_LOCK: u32 = 14;

/// Whether the limit of locked memory holds for this process.
fn limit(sysfs: &Sysfs) -> Option<u64> {
    let status = sysfs.read("proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    if bits >> IPC_LOCK & 1 == 1 { None } else { sys::memlock_limit() }
}

/// VFIO counts what it pins against the limit.
fn memlock(limit: Option<u64>) -> Fact {
    let remedy = "raise it: ulimit -l unlimited, LimitMEMLOCK=infinity in a service, or give CAP_IPC_LOCK";
    match limit {
        None => fact("vfio.memlock", Health::Good, "no limit", ""),
        Some(limit) if limit < MEMLOCK_WANTED => {
            fact("vfio.memlock", Health::Limited, ByteLen(limit).to_string(), remedy)
        }
        Some(limit) => fact("vfio.memlock", Health::Good, ByteLen(limit).to_string(), ""),
    }
}

fn noiommu(sysfs: &Sysfs) -> Option<Fact> {
    let mode = sysfs.read("sys/module/vfio/parameters/enable_unsafe_noiommu_mode")?;
    (mode == "Y").then(|| {
        let remedy = "switch it off where an IOMMU is there: devices can reach all memory in this mode";
        fact("vfio.noiommu", Health::Limited, "on (unsafe)", remedy)
    })
}

fn describe(sysfs: &Sysfs, function: &FunctionFacts) -> Fact {
    let kind = if function.is_nvme() { "nvme" } else { "pci" };
    let name = format!("{kind}.{}", function.address);
    let what = match (&function.model, &function.serial) {
        (Some(model), Some(serial)) => format!("{model}, serial {serial}"),
        _ => format!("{:04x}:{:04x}", function.vendor, function.device),
    };
    let group = function.group.as_ref().map_or("no IOMMU group".to_owned(), |group| format!("IOMMU group {group}"));
    let driver = function.driver.as_deref().unwrap_or("no driver");
    let value = format!("{what}; {driver}; {group}");
    let (address, uses) = (function.address, function.uses().map(Use::to_string).collect::<Vec<_>>());
    match driver {
        VFIO_PCI => match bind::owner(sysfs, address) {
            Some(pid) => fact(name, Health::Good, format!("{value}; driven by process {pid}"), ""),
            None => fact(name, Health::Good, format!("{value}; free"), ""),
        },
        _ if !uses.is_empty() => fact(name, Health::Neutral, format!("{value}; {}", uses.join(", ")), ""),
        _ => match bind::plan_bind(sysfs, address) {
            Ok(_) => {
                fact(name, Health::Limited, value, format!("straightway nvme bind {address} gives it to user space"))
            }
            Err(error) => fact(name, Health::Limited, value, error.remedy_text()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Tree;

    fn shown(tree: &Tree) -> Vec<(String, Health, String, String)> {
        facts(tree.sysfs()).into_iter().map(|fact| (fact.name, fact.health, fact.value, fact.remedy)).collect()
    }

    fn find(tree: &Tree, name: &str) -> (Health, String, String) {
        let all = shown(tree);
        let (_, health, value, remedy) = all.into_iter().find(|fact| fact.0 == name).unwrap();
        (health, value, remedy)
    }

    #[test]
    fn a_machine_that_is_ready_says_what_to_bind() {
        let tree = Tree::new();
        let address = tree.nvme("0000:01:00.0", "nvme0", "4");
        tree.write("dev/vfio/vfio", "");
        assert_eq!(find(&tree, "iommu"), (Health::Good, "on, 1 groups".into(), String::new()));
        assert_eq!(find(&tree, "vfio").0, Health::Good);
        assert_eq!(find(&tree, "iommufd").0, Health::Neutral);
        let (health, value, remedy) = find(&tree, "nvme.0000:01:00.0");
        assert_eq!((health, value.as_str()), (Health::Limited, "QEMU NVMe Ctrl, serial S123; nvme; IOMMU group 4"));
        assert_eq!(remedy, "straightway nvme bind 0000:01:00.0 gives it to user space");
        bind::plan_bind(tree.sysfs(), address).unwrap().run_on(tree.sysfs(), &tree).unwrap();
        assert_eq!(find(&tree, "nvme.0000:01:00.0").0, Health::Good);
    }

    #[test]
    fn a_mounted_controller_is_left_alone() {
        let tree = Tree::new();
        tree.nvme("0000:01:00.0", "nvme0", "4");
        tree.write("proc/self/mountinfo", "22 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n");
        let (health, value, remedy) = find(&tree, "nvme.0000:01:00.0");
        assert_eq!((health, remedy.as_str()), (Health::Neutral, ""));
        assert!(value.ends_with("nvme0n1 is mounted at /"), "{value}");
    }

    #[test]
    fn a_controller_shows_what_is_missing_and_a_machine_without_one_lacks_nothing() {
        let tree = Tree::new();
        tree.nvme("0000:01:00.0", "nvme0", "4");
        let missing = |sysfs: &Sysfs| {
            let all = facts(sysfs);
            assert!(all.iter().all(|fact| fact.health != Health::Missing || !fact.remedy.is_empty()));
            let missing = all.into_iter().filter(|fact| fact.health == Health::Missing);
            missing.map(|fact| fact.name).collect::<Vec<_>>()
        };
        std::fs::remove_dir_all(tree.sysfs().path("sys/kernel/iommu_groups")).unwrap();
        std::fs::remove_dir_all(tree.sysfs().path("sys/bus/pci/drivers/vfio-pci")).unwrap();
        assert_eq!(missing(tree.sysfs())[..2], ["iommu", "vfio"]);
        assert!(missing(&Sysfs::at("/proc/self/nothing")).is_empty());
    }

    #[test]
    fn a_peers_memory_says_when_bytes_are_seen() {
        let tree = Tree::new();
        tree.function("0000:02:00.0", "0x050000", VFIO_PCI, "5");
        let bars = "0x0 0x0 0x0\n0xfe000000 0xfe00ffff 0x40200\n0x800000000 0x803ffffff 0x14220c\n";
        tree.write("sys/bus/pci/devices/0000:02:00.0/resource", bars);
        let (health, value, remedy) = find(&tree, "bar.0000:02:00.0/2");
        assert_eq!(health, Health::Limited);
        assert_eq!(value, "64 MiB of memory; visibility of a drive's DMA: unproven, of copies by the CPU: read-back");
        assert!(remedy.contains("require=staged"), "{remedy}");
        assert_eq!(shown(&tree).iter().filter(|fact| fact.0.starts_with("bar.")).count(), 1, "registers are no memory");
    }

    #[test]
    fn a_small_limit_of_locked_memory_has_a_remedy() {
        assert_eq!(memlock(Some(8 << 20)).health, Health::Limited);
        assert_eq!((memlock(Some(1 << 30)).health, memlock(None).health), (Health::Good, Health::Good));
        let tree = Tree::new();
        tree.write("proc/self/status", "Name:\tx\nCapEff:\t0000000000004000\n");
        assert_eq!(limit(tree.sysfs()), None, "who may lock memory has no limit");
    }
}
