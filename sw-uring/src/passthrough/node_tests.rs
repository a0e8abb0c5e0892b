//! sysfs as the driver lays it out.

use std::ops::Deref;

use super::*;
use crate::made::Made;

/// A machine with the namespace `ng0n1` of controller `nvme0` as character device 240:0.
struct Tree(Made);

impl Deref for Tree {
    type Target = Made;

    fn deref(&self) -> &Made {
        &self.0
    }
}

impl Tree {
    fn new(parent: &str) -> Self {
        let tree = Self(Made::new("generic"));
        tree.put("sys/class/nvme-generic/uevent", "");
        tree.put("sys/class/mem/uevent", "");
        tree.put(&format!("{parent}/ng0n1/dev"), "240:0\n");
        tree.link(&format!("{parent}/ng0n1/subsystem"), "sys/class/nvme-generic");
        tree.link("sys/dev/char/240:0", &format!("{parent}/ng0n1"));
        for (file, text) in [
            ("size", "131072"),
            ("dev", "259:0"),
            ("queue/zoned", "none"),
            ("queue/io_poll", "0"),
            ("queue/dma_alignment", "3"),
            ("queue/max_hw_sectors_kb", "512"),
            ("queue/max_segments", "127"),
        ] {
            tree.put(&format!("{parent}/nvme0n1/{file}"), format!("{text}\n"));
        }
        tree
    }

    fn facts(&self) -> Option<Facts> {
        Facts::of(&self.machine(), libc::makedev(240, 0))
    }
}

const CONTROLLER: &str = "sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0/nvme/nvme0";

fn tree() -> Tree {
    Tree::new(CONTROLLER)
}

#[test]
fn a_node_is_known_by_its_class_and_leads_to_its_block_device() {
    for parent in [CONTROLLER, "sys/devices/virtual/nvme-subsystem/nvme-subsys0"] {
        let tree = Tree::new(parent);
        let facts = tree.facts().unwrap();
        assert_eq!(facts.disk, "nvme0n1");
        assert_eq!(facts.directory, tree.path(parent).join("nvme0n1"));
        assert_eq!(facts.len(), 64 << 20);
        assert!(!facts.zoned());
    }
    let tree = tree();
    let machine = tree.machine();
    assert!(is_generic(&machine, libc::makedev(240, 0)));
    assert!(!is_generic(&machine, libc::makedev(240, 1)), "no such device");
    tree.put("sys/devices/virtual/mem/null/dev", "1:3\n");
    tree.link("sys/devices/virtual/mem/null/subsystem", "sys/class/mem");
    tree.link("sys/dev/char/1:3", "sys/devices/virtual/mem/null");
    assert!(!is_generic(&machine, libc::makedev(1, 3)), "another kind of device");
}

#[test]
fn commands_keep_to_the_pieces_that_the_driver_moves_in_place() {
    let tree = tree();
    let facts = tree.facts().unwrap();
    assert_eq!(facts.command_bytes(), 126 * 4096, "the pieces are the narrower limit");
    tree.put(&format!("{CONTROLLER}/nvme0n1/queue/max_hw_sectors_kb"), "128\n");
    assert_eq!(facts.command_bytes(), 128 << 10);
    assert_eq!(facts.memory(), 4);
    for (mask, want) in [("511", 512), ("0", 4), ("4095", 4096), ("x", 512)] {
        tree.put(&format!("{CONTROLLER}/nvme0n1/queue/dma_alignment"), mask);
        assert_eq!(facts.memory(), want, "{mask}");
    }
}

#[test]
fn a_namespace_is_on_pci_only_if_all_its_controllers_say_so() {
    let tree = tree();
    let facts = tree.facts().unwrap();
    assert_eq!(facts.link(), Link::Network, "nobody tells");
    for (transport, want) in
        [("pcie", Link::Pcie), ("tcp", Link::Network), ("rdma", Link::Network), ("fc", Link::Network)]
    {
        tree.put(&format!("{CONTROLLER}/transport"), format!("{transport}\n"));
        assert_eq!(facts.link(), want, "{transport}");
    }
    // Shared paths: the node hangs from the subsystem, which has links to its controllers.
    let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";
    let tree = Tree::new(subsystem);
    let facts = tree.facts().unwrap();
    assert_eq!(facts.link(), Link::Network, "no controller");
    for (name, transport) in [("nvme0", "pcie"), ("nvme1", "tcp")] {
        let controller = format!("sys/devices/{name}");
        tree.put(&format!("{controller}/transport"), format!("{transport}\n"));
        tree.link(&format!("{subsystem}/{name}"), &controller);
        let want = if transport == "pcie" { Link::Pcie } else { Link::Network };
        assert_eq!(facts.link(), want, "with {name} over {transport}");
    }
}

#[test]
fn namespaces_that_take_no_plain_commands_are_refused_with_a_remedy() {
    let tree = tree();
    let facts = tree.facts().unwrap();
    assert!(refuse_strange(&facts, Path::new("/dev/ng0n1")).is_ok());
    tree.put(&format!("{CONTROLLER}/nvme0n1/queue/zoned"), "host-managed\n");
    let zoned = refuse_strange(&facts, Path::new("/dev/ng0n1")).unwrap_err();
    assert_eq!(zoned.kind(), ErrorKind::Unsupported);
    assert!(zoned.to_string().contains("/dev/ng0n1") && !zoned.remedy_text().is_empty());
}

#[test]
fn numbers_of_node_and_block_device_may_differ_in_the_controller() {
    let tree = tree();
    fs::rename(tree.path(CONTROLLER).join("nvme0n1"), tree.path(CONTROLLER).join("nvme3n1")).unwrap();
    // A path of another namespace and the controller's own attributes are no block devices of this one.
    tree.put(&format!("{CONTROLLER}/nvme3n12/size"), "8\n");
    tree.put(&format!("{CONTROLLER}/nvme3c0n1/size"), "8\n");
    assert_eq!(tree.facts().unwrap().disk, "nvme3n1");
    fs::remove_dir_all(tree.path(CONTROLLER).join("nvme3n1")).unwrap();
    assert!(tree.facts().is_none(), "a command set without blocks");
    assert!(is_generic(&tree.machine(), libc::makedev(240, 0)), "and still a namespace");
}

#[test]
fn refusals_name_the_node() {
    let path = Path::new("/dev/ng0n1");
    assert_eq!(refusal(Refused::Errno(libc::EACCES), path).kind(), ErrorKind::PermissionDenied);
    let status = refusal(Refused::Status(ioctl::status_of(0x400B)), path);
    assert_eq!(status.kind(), ErrorKind::NoDevice);
    assert!(status.to_string().contains("/dev/ng0n1") && status.to_string().contains("dnr"), "{status}");
}
