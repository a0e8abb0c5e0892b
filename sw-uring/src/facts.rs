//! What this machine has for the direct routes through the kernel's driver, one line a fact, for whoever prints them.

use sw_mem::ByteLen;

use crate::{
    dmabuf::{DmabufRegistration, dmabuf_registration},
    passthrough::node,
    peer::{self, Provider, Verdict},
    sys,
    sysfs::{self, Machine},
};

/// Disks whose way to each provider is told, at most.
const DISKS_MAX: usize = 64;

/// How a fact stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As good as it gets.
    Good,
    /// There, but this process cannot use it as it is.
    Limited,
    /// Neither good nor bad: a machine without it is not broken.
    Neutral,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectFact {
    /// A stable name, such as `peer.0000:06:00.0` or `nvme.ng0n1`.
    pub name: String,
    /// How it stands.
    pub standing: Standing,
    /// Its value, for people.
    pub value: String,
    /// What to do about it; empty if nothing.
    pub remedy: &'static str,
}

fn fact(name: impl Into<String>, standing: Standing, value: impl Into<String>, remedy: &'static str) -> DirectFact {
    DirectFact { name: name.into(), standing, value: value.into(), remedy }
}

/// Every fact, in a stable order: providers of peer memory with the disks that reach them, generic nodes, poll queues,
/// registration of dma-bufs. *Blocking*: reads sysfs.
pub fn direct_facts(machine: &Machine) -> Vec<DirectFact> {
    let mut facts = peers(machine);
    facts.extend(generic_nodes(machine));
    facts.push(poll_queues(machine));
    facts.push(dmabuf(dmabuf_registration()));
    facts
}

fn peers(machine: &Machine) -> Vec<DirectFact> {
    let providers = peer::providers(machine);
    if providers.is_empty() {
        let value = "no device gives memory out for peer-to-peer DMA";
        return vec![fact("peer.providers", Standing::Neutral, value, NEEDS_P2PDMA)];
    }
    providers.iter().flat_map(|provider| peer_with_disks(machine, provider)).collect()
}

const NEEDS_P2PDMA: &str =
    "needs a kernel with CONFIG_PCI_P2PDMA and, for example, an NVMe controller with a memory buffer";

fn peer_with_disks(machine: &Machine, provider: &Provider) -> Vec<DirectFact> {
    let name = format!("peer.{}", provider.address);
    let published = if provider.published { "published" } else { "not published to other drivers" };
    let value = format!("{}, {} free, {published}", ByteLen(provider.size), ByteLen(provider.available));
    let own = match provider.accessible {
        true => fact(&name, Standing::Good, format!("{value}; --into p2pmem:{}", provider.address), ""),
        false => {
            let remedy =
                "p2pmem/allocate of the device in sysfs is root's by default; change its owner, or run as root";
            fact(&name, Standing::Limited, format!("{value}; this process may not map it"), remedy)
        }
    };
    let disks = disks(machine).into_iter().map(|(disk, number)| {
        let (standing, value, remedy) = told(peer::reach_of(machine, provider.address, number));
        fact(format!("{name}.{disk}"), standing, value, remedy)
    });
    [own].into_iter().chain(disks).collect()
}

/// Names and numbers of the NVMe disks.
fn disks(machine: &Machine) -> Vec<(String, u64)> {
    let directory = machine.path("sys/block");
    let names = sysfs::names(&directory).into_iter().filter(|name| name.starts_with("nvme")).take(DISKS_MAX);
    names.filter_map(|name| Some((name.clone(), sysfs::device_number(&directory.join(&name).join("dev"))?))).collect()
}

fn told(verdict: Verdict) -> (Standing, String, &'static str) {
    let (standing, rest, remedy) = match verdict {
        Verdict::Across { .. } => (Standing::Good, "", ""),
        Verdict::HostBridge { .. } => (Standing::Good, "; a self-test decides", ""),
        Verdict::Unproven(_) => (Standing::Neutral, "; a self-test decides", ""),
        Verdict::Refused(reason) => (Standing::Neutral, "", reason.text()),
    };
    (standing, format!("{verdict}{rest}"), remedy)
}

fn generic_nodes(machine: &Machine) -> Vec<DirectFact> {
    let names = node::names(machine);
    if names.is_empty() {
        let value = "no generic node of an NVMe namespace";
        return vec![fact(
            "nvme.generic",
            Standing::Neutral,
            value,
            "commands need one: an NVMe drive and Linux 5.13 or newer",
        )];
    }
    let told = |name: String| {
        let label = format!("nvme.{name}");
        match sys::accessible(&machine.path("dev").join(&name)) {
            true => fact(label, Standing::Good, format!("/dev/{name} takes commands of this process"), ""),
            false => {
                let remedy = "a generic node is root's by default; change its owner, or run as root";
                fact(label, Standing::Limited, format!("/dev/{name} is not open to this process"), remedy)
            }
        }
    };
    names.into_iter().map(told).collect()
}

fn poll_queues(machine: &Machine) -> DirectFact {
    const NAME: &str = "nvme.poll_queues";
    match machine.text("sys/module/nvme/parameters/poll_queues").as_deref() {
        None => fact(NAME, Standing::Neutral, "the kernel's NVMe driver is not loaded", ""),
        Some("0") => {
            let remedy = "load the driver with nvme.poll_queues=N for completions that are polled for";
            fact(NAME, Standing::Neutral, "0: completions come by interrupt only", remedy)
        }
        Some(count) => fact(NAME, Standing::Good, count, ""),
    }
}

fn dmabuf(found: DmabufRegistration) -> DirectFact {
    const NAME: &str = "io_uring.dmabuf";
    match found {
        DmabufRegistration::Absent { registrations } => fact(
            NAME,
            Standing::Neutral,
            format!("the kernel's {registrations} registrations take no dma-buf for storage"),
            "no released kernel has it yet",
        ),
        DmabufRegistration::PerhapsNewer { registrations } => fact(
            NAME,
            Standing::Neutral,
            format!("the kernel has {registrations} registrations, more than this program knows"),
            "a newer version of this program may be able to use one for dma-bufs",
        ),
        DmabufRegistration::Silent => fact(
            NAME,
            Standing::Neutral,
            "the kernel cannot be asked; none of its age has it",
            "no released kernel has it yet",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::Made;

    #[test]
    fn a_machine_without_any_of_it_is_not_broken() {
        let facts = direct_facts(&Made::new("none").machine());
        let names: Vec<&str> = facts.iter().map(|fact| fact.name.as_str()).collect();
        assert_eq!(names, ["peer.providers", "nvme.generic", "nvme.poll_queues", "io_uring.dmabuf"]);
        assert!(facts.iter().all(|fact| fact.standing == Standing::Neutral && !fact.value.is_empty()), "{facts:?}");
    }

    #[test]
    fn providers_disks_and_nodes_are_told_by_name() {
        let tree = Made::new("all");
        let device = "sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0";
        for (file, text) in [("size", "67108864"), ("available", "65536"), ("published", "1"), ("allocate", "")] {
            tree.put(&format!("{device}/p2pmem/{file}"), text);
        }
        tree.put(&format!("{device}/config"), "");
        tree.link("sys/bus/pci/devices/0000:01:00.0", device);
        tree.put(&format!("{device}/nvme/nvme0/nvme0n1/dev"), "259:0\n");
        tree.link("sys/block/nvme0n1", &format!("{device}/nvme/nvme0/nvme0n1"));
        tree.link("sys/dev/block/259:0", &format!("{device}/nvme/nvme0/nvme0n1"));
        tree.put("sys/block/sda/dev", "8:0\n");
        tree.put("sys/class/nvme-generic/ng0n1/dev", "240:0\n");
        tree.put("sys/class/nvme-generic/ng0n2/dev", "240:1\n");
        tree.put("dev/ng0n1", "");
        tree.put("sys/module/nvme/parameters/poll_queues", "2\n");
        let facts = direct_facts(&tree.machine());
        let find = |name: &str| facts.iter().find(|fact| fact.name == name).unwrap();
        assert_eq!(find("peer.0000:01:00.0").value, "64 MiB, 64 KiB free, published; --into p2pmem:0000:01:00.0");
        assert_eq!(find("peer.0000:01:00.0.nvme0n1").value, "reaches it: the same device");
        assert_eq!(find("nvme.ng0n1").standing, Standing::Good);
        assert_eq!(find("nvme.ng0n2").standing, Standing::Limited, "no node in dev");
        assert_eq!((find("nvme.poll_queues").standing, find("nvme.poll_queues").value.as_str()), (Standing::Good, "2"));
        assert!(!facts.iter().any(|fact| fact.name.contains("sda")), "other disks have no such way");
    }

    #[test]
    fn what_does_not_reach_has_the_reason_and_its_remedy() {
        let (standing, value, remedy) = told(Verdict::Refused(sw_engine::Reason::P2pNoCommonSwitch));
        assert_eq!((standing, remedy), (Standing::Neutral, sw_engine::Reason::P2pNoCommonSwitch.text()));
        assert!(value.contains("P2P_NO_COMMON_SWITCH"), "{value}");
    }
}
