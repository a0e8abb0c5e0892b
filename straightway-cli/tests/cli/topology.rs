//! `topology` on the shapes of real machines: trees of sysfs are made from what others published of them, as NCCL's topology files
//! tell it. Ports of switches, root ports, states of ports and GIDs are made up here; what a file has made up says its first line.

use std::{fs, os::unix::fs::symlink, path::Path};

use roxmltree::{Document, Node};

use crate::support::Scratch;

/// What a machine shows of its bridges.
#[derive(Clone, Copy, PartialEq)]
enum Shows {
    All,
    /// Every function on a root bus of its own, as virtual machines do it, and no NUMA node.
    Nothing,
}

/// A made tree below a directory.
struct Tree<'a> {
    root: &'a Path,
    shows: Shows,
}

impl Tree<'_> {
    fn put(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn function(&self, directory: &str, class: &str) {
        self.put(&format!("{directory}/class"), class);
        self.put(&format!("{directory}/config"), &"\0".repeat(256));
        let links = self.root.join("sys/bus/pci/devices");
        fs::create_dir_all(&links).unwrap();
        symlink(self.root.join(directory), links.join(directory.rsplit('/').next().unwrap())).unwrap();
    }

    /// A `pci` element at a directory, with what is inside it.
    fn element(&self, node: Node<'_, '_>, above: &str, numa: &str) {
        let (address, class) = (node.attribute("busid").unwrap(), node.attribute("class").unwrap());
        let inner = node.children().filter(|child| child.has_tag_name("pci"));
        if class == "0x060400" {
            let bus = u32::from_str_radix(&address[5..7], 16).unwrap();
            let directory = format!("{above}/{address}");
            if self.shows == Shows::All {
                self.function(&directory, class);
            }
            for (at, child) in inner.enumerate() {
                let port = format!("{directory}/0000:{:02x}:{at:02x}.0", bus + 1);
                if self.shows == Shows::All {
                    self.function(&port, class);
                }
                self.element(child, &port, numa);
            }
            return;
        }
        let (above, numa) = match self.shows {
            Shows::All => (above.to_owned(), numa),
            Shows::Nothing => (format!("sys/devices/pci{}", &address[..7]), "-1"),
        };
        let directory = format!("{above}/{address}");
        self.function(&directory, class);
        let is_nic = class.starts_with("0x02");
        for (name, text) in [
            ("vendor", if is_nic { "0x15b3" } else { "0x10de" }),
            ("device", if is_nic { "0x1021" } else { "0x2330" }),
            ("numa_node", numa),
            ("current_link_speed", node.attribute("link_speed").unwrap()),
            ("current_link_width", node.attribute("link_width").unwrap()),
        ] {
            self.put(&format!("{directory}/{name}"), text);
        }
        for net in node.descendants().filter(|child| child.has_tag_name("net")) {
            self.port(&directory, class, net);
        }
    }

    fn port(&self, directory: &str, class: &str, net: Node<'_, '_>) {
        let of = |name| net.attribute(name).unwrap();
        let port = format!("{directory}/infiniband/{}/ports/{}", of("name"), of("port"));
        let gbps = of("speed").parse::<u32>().unwrap() / 1000;
        let (layer, kind) = if class == "0x020700" { ("InfiniBand", "IB/RoCE v1") } else { ("Ethernet", "RoCE v2") };
        for (name, text) in [
            ("state", "4: ACTIVE"),
            ("rate", &format!("{gbps} Gb/sec (4X)")),
            ("link_layer", layer),
            ("gids/0", "fe80:0000:0000:0000:0000:0000:0000:0001"),
            ("gid_attrs/types/0", kind),
        ] {
            self.put(&format!("{port}/{name}"), text);
        }
    }
}

/// Makes the machine that `text` tells of, below `sys` in `root`.
fn make(root: &Path, text: &str, shows: Shows, numa_nodes: u32) {
    let tree = Tree { root, shows };
    (0..numa_nodes).for_each(|node| tree.put(&format!("sys/devices/system/node/node{node}/cpulist"), ""));
    let document = Document::parse(text).unwrap();
    for cpu in document.root_element().children().filter(|node| node.has_tag_name("cpu")) {
        let numa = cpu.attribute("numaid").unwrap();
        for (at, node) in cpu.children().filter(|node| node.has_tag_name("pci")).enumerate() {
            let port = format!("sys/devices/pci0000:{numa}0/0000:{numa}0:{at:02x}.0");
            if shows == Shows::All {
                tree.function(&port, "0x060400");
            }
            tree.element(node, &port, numa);
        }
    }
}

/// A machine that has something of everything, below `root`.
pub fn make_any(root: &Path) {
    make(root, include_str!("topology/hygon-8-gpu.xml"), Shows::All, 8);
    let tree = Tree { root, shows: Shows::All };
    let drive = "sys/devices/pci0000:50/0000:50:00.0/0000:51:00.0";
    tree.function(drive, "0x010802");
    tree.put(&format!("{drive}/vendor"), "0x144d");
    tree.put(&format!("{drive}/device"), "0xa80a");
    tree.put(&format!("{drive}/numa_node"), "5");
}

/// Puts each function of the machine into an IOMMU group of its own, of this kind.
fn into_groups(root: &Path, kind: &str) {
    let tree = Tree { root, shows: Shows::All };
    let mut functions: Vec<_> =
        fs::read_dir(root.join("sys/bus/pci/devices")).unwrap().map(|entry| entry.unwrap().path()).collect();
    functions.sort();
    for (number, function) in functions.iter().enumerate() {
        let group = format!("sys/kernel/iommu_groups/{number}");
        tree.put(&format!("{group}/type"), kind);
        symlink(root.join(group), function.join("iommu_group")).unwrap();
    }
}

/// What the command says of a machine, and what is committed.
fn says(name: &str, shows: Shows, numa_nodes: u32, arguments: &[&str], want: &str) {
    says_of(name, (shows, None), numa_nodes, arguments, want);
}

/// The same of one whose functions are in IOMMU groups of a kind.
fn says_of(name: &str, (shows, kind): (Shows, Option<&str>), numa_nodes: u32, arguments: &[&str], want: &str) {
    let scratch = Scratch::new();
    let shape = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cli/topology/{name}.xml"));
    make(&scratch.path("machine"), &fs::read_to_string(&shape).unwrap(), shows, numa_nodes);
    kind.into_iter().for_each(|kind| into_groups(&scratch.path("machine"), kind));
    let shape = shape.to_str().unwrap();
    let arguments = arguments.iter().map(|word| if *word == "FILE" { shape } else { word });
    let all: Vec<&str> = ["topology", "--root", "machine"].into_iter().chain(arguments).collect();
    let ran = scratch.run(&all).ok();
    let said = ran.text();
    let fresh = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("topology-{name}-{}.txt", kind.unwrap_or("none")));
    if said != want {
        fs::write(&fresh, said).unwrap();
    }
    assert_eq!(said, want, "{name}: a fresh copy is in {}", fresh.display());
}

#[test]
fn two_trees_of_switches_give_each_gpu_the_port_of_its_own_tree() {
    says("hygon-8-gpu", Shows::All, 8, &[], include_str!("topology/hygon-8-gpu.txt"));
}

/// What is direct without an IOMMU, and with one that passes addresses through, is so no more where it translates.
#[test]
fn a_tree_whose_iommu_translates_promises_nothing_without_a_test() {
    let (translated, free) =
        (include_str!("topology/hygon-8-gpu-dma-fq.txt"), include_str!("topology/hygon-8-gpu-identity.txt"));
    says_of("hygon-8-gpu", (Shows::All, Some("DMA-FQ")), 8, &[], translated);
    says_of("hygon-8-gpu", (Shows::All, Some("identity")), 8, &[], free);
    assert!(!translated.contains("; direct") && free.matches("PXB; direct").count() == 8);
}

#[test]
fn a_virtual_machine_that_hides_its_switches_promises_nothing_until_a_file_tells() {
    says("azure-ndv5", Shows::Nothing, 2, &[], include_str!("topology/azure-ndv5-flat.txt"));
    says("azure-ndv5", Shows::Nothing, 2, &["--file", "FILE"], include_str!("topology/azure-ndv5.txt"));
}

#[test]
fn four_nics_beside_each_gpu_are_as_near_and_are_told() {
    says("aws-p5", Shows::Nothing, 2, &["--file", "FILE"], include_str!("topology/aws-p5.txt"));
}

#[test]
fn two_gpus_share_a_nic() {
    says("aws-p4d", Shows::Nothing, 2, &["--file", "FILE"], include_str!("topology/aws-p4d.txt"));
}

#[test]
fn what_is_no_topology_file_and_one_of_another_machine_are_refused() {
    let scratch = Scratch::new();
    fs::write(scratch.path("other.xml"), "<system><cpu><pci busid='0000:05:00.0'/></cpu></system>").unwrap();
    fs::write(scratch.path("bad.xml"), "<graphs/>").unwrap();
    for (file, code, said) in [
        ("other.xml", 3, "names none of this machine's"),
        ("bad.xml", 11, "NCCL_TOPO_DUMP_FILE"),
        ("none.xml", 3, "none.xml"),
    ] {
        scratch.run(&["topology", "--root", ".", "--file", file]).fails(code, &[said]);
    }
    assert!(scratch.run(&["topology", "--root", "."]).ok().text().contains("no GPU is on the PCI bus"));
}
