//! PCI trees as the kernel lays them out in sysfs, made by hand.

use std::ops::Deref;

use super::*;
use crate::{made::Made, pci::acs::tests::space};

/// Port types of the PCI Express capability.
const ENDPOINT: u16 = 0;
const ROOT_PORT: u16 = 4;
const UPSTREAM: u16 = 5;
const DOWNSTREAM: u16 = 6;

/// A machine with PCI functions and block devices.
struct Tree(Made);

impl Deref for Tree {
    type Target = Made;

    fn deref(&self) -> &Made {
        &self.0
    }
}

impl Tree {
    /// An Intel machine that no rule allows anything, with a kernel whose table is known.
    fn new() -> Self {
        let tree = Self(Made::new("pci"));
        tree.put("proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n");
        tree.put("proc/sys/kernel/osrelease", "7.3.4-amd64\n");
        // The host bridge device of a q35 machine: not in the kernel's table.
        tree.function("pci0000:00/0000:00:00.0", ENDPOINT, None);
        tree.ids("pci0000:00/0000:00:00.0", 0x8086, 0x29c0);
        tree
    }

    /// A function at `path` below `sys/devices`, with its link in `sys/bus/pci/devices`.
    fn function(&self, path: &str, kind: u16, control: Option<u16>) {
        self.put(&format!("sys/devices/{path}/config"), space(kind, control));
        let name = path.rsplit('/').next().unwrap();
        self.link(&format!("sys/bus/pci/devices/{name}"), &format!("sys/devices/{path}"));
    }

    fn ids(&self, path: &str, vendor: u32, device: u32) {
        self.put(&format!("sys/devices/{path}/vendor"), format!("{vendor:#06x}\n"));
        self.put(&format!("sys/devices/{path}/device"), format!("{device:#06x}\n"));
    }

    /// Makes a block device `major:minor` at `path` below `sys/devices`.
    fn disk(&self, path: &str, number: &str) {
        self.put(&format!("sys/devices/{path}/dev"), format!("{number}\n"));
        self.link(&format!("sys/dev/block/{number}"), &format!("sys/devices/{path}"));
    }

    /// A switch below root port 02.0 with one drive and one memory, and a drive below root port 03.0. `control` is the ACS
    /// word of the downstream ports.
    fn with_switch(control: Option<u16>) -> Self {
        let tree = Self::new();
        let port = "pci0000:00/0000:00:02.0";
        tree.function(port, ROOT_PORT, Some(0x1d));
        tree.function(&format!("{port}/0000:01:00.0"), UPSTREAM, None);
        for (down, end) in [("0000:02:00.0", "0000:03:00.0"), ("0000:02:01.0", "0000:04:00.0")] {
            let down = format!("{port}/0000:01:00.0/{down}");
            tree.function(&down, DOWNSTREAM, control);
            tree.function(&format!("{down}/{end}"), ENDPOINT, None);
        }
        tree.function("pci0000:00/0000:00:03.0", ROOT_PORT, Some(0x1d));
        tree.function("pci0000:00/0000:00:03.0/0000:05:00.0", ENDPOINT, None);
        tree
    }

    fn between(&self, provider: &str, client: &str) -> Verdict {
        between(&self.machine(), PciAddress::of_name(provider).unwrap(), PciAddress::of_name(client).unwrap())
    }
}

const MEMORY: &str = "0000:03:00.0";
const SAME_SWITCH: &str = "0000:04:00.0";
const OTHER_PORT: &str = "0000:05:00.0";

#[test]
fn one_function_and_one_switch_are_reached_across() {
    let tree = Tree::with_switch(Some(0));
    assert_eq!(tree.between(MEMORY, MEMORY), Verdict::Across { hops: 0 });
    // The example with the distance of 4 in the comment of the kernel's function.
    assert_eq!(tree.between(MEMORY, SAME_SWITCH), Verdict::Across { hops: 4 });
    // A root port's own redirect is asked only where it is on the way.
    assert_eq!(Tree::with_switch(None).between(SAME_SWITCH, MEMORY), Verdict::Across { hops: 4 });
}

#[test]
fn another_root_port_is_refused_unless_the_host_bridge_is_known_good() {
    let tree = Tree::with_switch(Some(0));
    let refused = Verdict::Refused(Reason::P2pNoCommonSwitch);
    assert_eq!(tree.between(MEMORY, OTHER_PORT), refused);
    assert_eq!(tree.between(OTHER_PORT, MEMORY), refused);

    tree.ids("pci0000:00/0000:00:00.0", 0x8086, 0x09a2);
    assert_eq!(tree.between(MEMORY, OTHER_PORT), Verdict::HostBridge { hops: 6 });
}

#[test]
fn an_entry_for_one_host_bridge_does_not_hold_between_two() {
    let tree = Tree::with_switch(Some(0));
    tree.ids("pci0000:00/0000:00:00.0", 0x8086, 0x2f00);
    assert_eq!(tree.between(MEMORY, OTHER_PORT), Verdict::HostBridge { hops: 6 });
    tree.function("pci0000:80/0000:80:00.0", ENDPOINT, None);
    tree.ids("pci0000:80/0000:80:00.0", 0x8086, 0x2f00);
    tree.function("pci0000:80/0000:80:01.0", ROOT_PORT, None);
    tree.function("pci0000:80/0000:80:01.0/0000:81:00.0", ENDPOINT, None);
    assert_eq!(tree.between(MEMORY, "0000:81:00.0"), Verdict::Refused(Reason::P2pNoCommonSwitch));
}

#[test]
fn a_root_port_leads_a_bus_without_a_device_zero() {
    let tree = Tree::new();
    for (port, end) in [("0000:40:02.0", "0000:41:00.0"), ("0000:40:03.0", "0000:42:00.0")] {
        tree.function(&format!("pci0000:40/{port}"), ROOT_PORT, None);
        tree.ids(&format!("pci0000:40/{port}"), 0x8086, 0x2030);
        tree.function(&format!("pci0000:40/{port}/{end}"), ENDPOINT, None);
    }
    assert_eq!(tree.between("0000:41:00.0", "0000:42:00.0"), Verdict::HostBridge { hops: 4 });
    // As a user without privilege sees it.
    tree.put("sys/devices/pci0000:40/0000:40:02.0/config", &space(ROOT_PORT, None)[..64]);
    assert_eq!(tree.between("0000:41:00.0", "0000:42:00.0"), Verdict::Unproven(Doubt::HostBridgeUnreadable));
}

#[test]
fn processors_that_route_everywhere_need_no_table() {
    let tree = Tree::with_switch(Some(0));
    tree.put("proc/cpuinfo", "vendor_id\t: AuthenticAMD\ncpu family\t: 25\n");
    assert_eq!(tree.between(MEMORY, OTHER_PORT), Verdict::HostBridge { hops: 6 });
    tree.put("proc/cpuinfo", "vendor_id\t: AuthenticAMD\ncpu family\t: 15\n");
    assert_eq!(tree.between(MEMORY, OTHER_PORT), Verdict::Refused(Reason::P2pNoCommonSwitch));
}

#[test]
fn a_newer_kernel_may_know_more_host_bridges() {
    let tree = Tree::with_switch(Some(0));
    for (release, known) in [("7.3.99-1", true), ("6.18.1", true), ("7.4.0-rc1", false), ("8.0", false)] {
        tree.put("proc/sys/kernel/osrelease", release);
        let want = match known {
            true => Verdict::Refused(Reason::P2pNoCommonSwitch),
            false => Verdict::Unproven(Doubt::NewerKernel),
        };
        assert_eq!(tree.between(MEMORY, OTHER_PORT), want, "{release}");
    }
}

#[test]
fn redirecting_ports_are_seen_and_unreadable_ones_are_not_guessed() {
    // Request redirect on the downstream ports, as firmware often sets it.
    let tree = Tree::with_switch(Some(0x1d));
    assert_eq!(tree.between(MEMORY, SAME_SWITCH), Verdict::Refused(Reason::P2pAcsRedirect));
    let tree = Tree::with_switch(Some(0));
    let port = "sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0/0000:02:01.0";
    // A privileged file with the size of the whole space, of which only the head can be read.
    fs::remove_file(tree.path(port).join("config")).unwrap();
    tree.put(&format!("{port}/config"), &space(DOWNSTREAM, Some(0))[..64]);
    assert_eq!(tree.between(MEMORY, SAME_SWITCH), Verdict::Across { hops: 4 }, "64 bytes in all: a conventional port");
}

#[test]
fn a_function_that_is_not_there_is_not_reached() {
    let tree = Tree::new();
    assert_eq!(tree.between("0000:00:00.0", "0000:77:00.0"), Verdict::Refused(Reason::P2pNotPci));
    // The memory is missing, and may come: nothing is said of the object.
    assert_eq!(tree.between("0000:77:00.0", "0000:00:00.0"), Verdict::Refused(Reason::NoPeerPages));
}

#[test]
fn one_block_shows_nothing_for_drives_that_it_is_not_on() {
    let [one, other] = [SAME_SWITCH, OTHER_PORT].map(|text| PciAddress::of_name(text).unwrap());
    let (across, bridge) = (Verdict::Across { hops: 4 }, Verdict::HostBridge { hops: 6 });
    let (alone, both) = (Below::Functions(vec![one]), Below::Functions(vec![one, other]));
    assert!(one_block_shows(&alone, bridge) && one_block_shows(&both, across));
    let untold = Verdict::Unproven(Doubt::AcsUnreadable);
    assert!(!one_block_shows(&both, bridge) && !one_block_shows(&both, untold));
    let nobody = |doubt| one_block_shows(&Below::Unknown(doubt), Verdict::Unproven(doubt));
    assert!(!nobody(Doubt::NoDevice), "btrfs over any number of drives");
    assert!(nobody(Doubt::Fabrics));
}

#[test]
fn drives_and_their_partitions_are_told_from_volumes() {
    let tree = Tree::with_switch(Some(0));
    let drive = "pci0000:00/0000:00:03.0/0000:05:00.0/nvme/nvme0/nvme0n1";
    tree.disk(drive, "259:0");
    tree.disk(&format!("{drive}/nvme0n1p2"), "259:2");
    tree.disk("virtual/block/dm-0", "253:0");
    tree.link("sys/devices/virtual/block/dm-0/slaves/nvme0n1", &format!("sys/devices/{drive}"));
    let told = [(259, 0), (259, 2), (253, 0), (8, 0)]
        .map(|(major, minor)| is_drive(&tree.machine(), libc::makedev(major, minor)));
    assert_eq!(told, [true, true, false, false]);
}

#[test]
fn a_domain_behind_a_controller_ends_at_its_own_root() {
    let path = Path::new("/sys/devices/pci0000:00/0000:00:0e.0/pci10000:00/10000:00:02.0/10000:01:00.0/nvme/nvme0");
    let want = ["10000:00:02.0", "10000:01:00.0"].map(|text| PciAddress::of_name(text).unwrap());
    assert_eq!(functions(path), want);
}

#[test]
fn block_devices_lead_to_their_functions() {
    let tree = Tree::with_switch(Some(0));
    let below = |major, minor| below(&tree.machine(), libc::makedev(major, minor));
    let address = |text| PciAddress::of_name(text).unwrap();
    let drive = "pci0000:00/0000:00:03.0/0000:05:00.0/nvme/nvme0/nvme0n1";
    tree.disk(drive, "259:0");
    tree.disk(&format!("{drive}/nvme0n1p2"), "259:2");
    tree.put(&format!("sys/devices/{drive}/nvme0n1p2/partition"), "2\n");
    assert_eq!(below(259, 0), Below::Functions(vec![address(OTHER_PORT)]));
    assert_eq!(below(259, 2), Below::Functions(vec![address(OTHER_PORT)]));

    tree.disk("virtual/block/loop0", "7:0");
    assert_eq!(below(7, 0), Below::NotPci);
    assert_eq!(below(0, 47), Below::Unknown(Doubt::NoDevice), "btrfs");
    assert_eq!(below(8, 0), Below::Unknown(Doubt::NoDevice), "not there");
    tree.disk("virtual/nvme-fabrics/ctl/nvme7/nvme7n1", "259:70");
    assert_eq!(below(259, 70), Below::Unknown(Doubt::Fabrics));
}

#[test]
fn stacks_are_as_good_as_their_worst_member() {
    let tree = Tree::with_switch(Some(0));
    let below = |major, minor| below(&tree.machine(), libc::makedev(major, minor));
    let switch = "pci0000:00/0000:00:02.0/0000:01:00.0/0000:02:01.0/0000:04:00.0/nvme/nvme1/nvme1n1";
    let other = "pci0000:00/0000:00:03.0/0000:05:00.0/nvme/nvme0/nvme0n1";
    tree.disk(switch, "259:1");
    tree.disk(other, "259:0");
    tree.disk("virtual/block/md0", "9:0");
    tree.link("sys/devices/virtual/block/md0/slaves/nvme1n1", &format!("sys/devices/{switch}"));
    let machine = tree.machine();
    let memory = PciAddress::of_name(MEMORY).unwrap();
    assert_eq!(verdict(&machine, memory, &below(9, 0)), Verdict::Across { hops: 4 });
    tree.link("sys/devices/virtual/block/md0/slaves/nvme0n1", &format!("sys/devices/{other}"));
    assert_eq!(verdict(&machine, memory, &below(9, 0)), Verdict::Refused(Reason::P2pNoCommonSwitch));
    // A mirror of which one side is a loop device.
    tree.disk("virtual/block/loop0", "7:0");
    tree.link("sys/devices/virtual/block/md0/slaves/loop0", "sys/devices/virtual/block/loop0");
    assert_eq!(verdict(&machine, memory, &below(9, 0)), Verdict::Refused(Reason::P2pNotPci));
}

#[test]
fn a_namespace_with_several_controllers_is_reached_over_all_of_them() {
    let tree = Tree::with_switch(Some(0));
    let subsystem = "virtual/nvme-subsystem/nvme-subsys0";
    tree.disk(&format!("{subsystem}/nvme0n1"), "259:3");
    tree.link(&format!("sys/devices/{subsystem}/nvme0n1/device"), &format!("sys/devices/{subsystem}"));
    let first = "pci0000:00/0000:00:02.0/0000:01:00.0/0000:02:01.0/0000:04:00.0/nvme/nvme0";
    let second = "pci0000:00/0000:00:03.0/0000:05:00.0/nvme/nvme1";
    for (name, path) in [("nvme0", first), ("nvme1", second)] {
        tree.put(&format!("sys/devices/{path}/cntlid"), "0\n");
        tree.link(&format!("sys/devices/{subsystem}/{name}"), &format!("sys/devices/{path}"));
    }
    let want = [SAME_SWITCH, OTHER_PORT].map(|text| PciAddress::of_name(text).unwrap());
    assert_eq!(below(&tree.machine(), libc::makedev(259, 3)), Below::Functions(want.to_vec()));
}

#[test]
fn stacks_that_lead_into_themselves_end() {
    let tree = Tree::new();
    tree.disk("virtual/block/dm-0", "253:0");
    tree.link("sys/devices/virtual/block/dm-0/slaves/dm-0", "sys/devices/virtual/block/dm-0");
    assert_eq!(below(&tree.machine(), libc::makedev(253, 0)), Below::Unknown(Doubt::NoDevice));
}
