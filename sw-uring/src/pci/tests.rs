//! Functions as the kernel lays them out in sysfs, made by hand.

use sw_engine::seam::verbs::GidKind;

use super::{acs::tests::space, *};
use crate::made::Made;

const SWITCH: &str = "sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0";

/// A NIC behind a switch.
fn made() -> Made {
    let made = Made::new("functions");
    let nic = format!("{SWITCH}/0000:02:01.0/0000:04:00.0");
    for (name, kind, control) in
        [("", 5, None), ("/0000:02:01.0", 6, Some(0x1d)), ("/0000:02:01.0/0000:04:00.0", 0, None)]
    {
        made.put(&format!("{SWITCH}{name}/config"), space(kind, control));
    }
    made.put("sys/devices/pci0000:00/0000:00:02.0/config", &space(4, None)[..64]);
    made.put("sys/devices/pci0000:00/0000:00:02.0/class", "0x060400\n");
    made.link("sys/bus/pci/devices/0000:00:02.0", "sys/devices/pci0000:00/0000:00:02.0");
    made.link("sys/bus/pci/devices/0000:04:00.0", &nic);
    for (file, text) in [
        ("class", "0x020000\n"),
        ("vendor", "0x15b3\n"),
        ("device", "0x1021\n"),
        ("numa_node", "-1\n"),
        ("current_link_speed", "16.0 GT/s PCIe\n"),
        ("current_link_width", "8\n"),
        ("max_link_speed", "32.0 GT/s PCIe\n"),
        ("max_link_width", "16\n"),
        (
            "resource",
            "0x0 0x0 0x0\n0xe0000000 0xe1ffffff 0x140204\n0xf000 0xf0ff 0x40101\n0xd0000000 0xd00fffff 0x40200\n",
        ),
        ("net/eth0/mtu", "9000\n"),
        ("infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n"),
        ("infiniband/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)\n"),
        ("infiniband/mlx5_0/ports/1/link_layer", "Ethernet\n"),
        ("infiniband/mlx5_0/ports/1/gids/0", "fe80:0000:0000:0000:0000:0000:0000:0001\n"),
        ("infiniband/mlx5_0/ports/1/gid_attrs/types/0", "IB/RoCE v1\n"),
        ("infiniband/mlx5_0/ports/1/gids/10", "0000:0000:0000:0000:0000:ffff:c000:0207\n"),
        ("infiniband/mlx5_0/ports/1/gid_attrs/types/10", "RoCE v2\n"),
        ("infiniband/mlx5_0/ports/1/gids/2", "0000:0000:0000:0000:0000:0000:0000:0000\n"),
        ("infiniband/mlx5_0/ports/1/gid_attrs/types/2", "RoCE v2\n"),
        ("infiniband/mlx5_0/ports/2/state", "1: DOWN\n"),
    ] {
        made.put(&format!("{nic}/{file}"), text);
    }
    made.put("sys/kernel/iommu_groups/17/type", "DMA-FQ\n");
    made.link(&format!("{nic}/iommu_group"), "sys/kernel/iommu_groups/17");
    made.link(&format!("{nic}/driver"), "sys/bus/pci/drivers/mlx5_core");
    made
}

#[test]
fn a_function_is_read_whole() {
    let made = made();
    let all = all(&made.machine(), |class| class >> 16 == 2);
    let [nic] = &all[..] else { panic!("{all:?}") };
    let address = |name| PciAddress::of_name(name).unwrap();
    assert_eq!((nic.address, nic.class, nic.vendor, nic.device), (address("0000:04:00.0"), 0x02_0000, 0x15b3, 0x1021));
    assert_eq!((nic.numa_node, nic.driver.as_deref()), (None, Some("mlx5_core")));
    assert_eq!(nic.link, Some(Link { speed_mts: 16_000, width: 8 }));
    assert_eq!(nic.link_max, Some(Link { speed_mts: 32_000, width: 16 }));
    assert_eq!(nic.iommu, Some(IommuGroup { number: 17, kind: Some("DMA-FQ".into()) }));
    assert_eq!((nic.bar_bytes, &*nic.root_bus, &nic.net[..]), (32 << 20, "pci0000:00", &["eth0".to_owned()][..]));
    let above: Vec<_> = nic.above.iter().map(|bridge| (bridge.address.to_string(), bridge.redirect)).collect();
    let want = [("0000:02:01.0", Redirect::Yes), ("0000:01:00.0", Redirect::No), ("0000:00:02.0", Redirect::No)];
    assert_eq!(above, want.map(|(name, redirect)| (name.to_owned(), redirect)));
}

#[test]
fn ports_tell_rate_state_and_the_addresses_that_are_set() {
    let made = made();
    let all = all(&made.machine(), |_| true);
    let device = &all.iter().find(|function| !function.rdma.is_empty()).unwrap().rdma[0];
    let [first, second] = &device.ports[..] else { panic!("{device:?}") };
    assert_eq!(
        (&*device.name, first.number, first.rate_mbps, &first.state),
        ("mlx5_0", 1, 400_000, &PortState::Active)
    );
    let gids: Vec<_> = first.gids.iter().map(|gid| (gid.index, gid.kind)).collect();
    assert_eq!(gids, [(0, GidKind::RoceV1), (10, GidKind::RoceV2)]);
    assert_eq!((second.number, &second.state, second.gids.len()), (2, &PortState::Other("DOWN".into()), 0));
}

#[test]
fn texts_of_links_are_read_as_kernels_of_all_ages_write_them() {
    for (text, want) in
        [("2.5 GT/s PCIe", 2500), ("8 GT/s", 8000), ("16.0 GT/s PCIe", 16_000), ("64.0 GT/s PCIe", 64_000)]
    {
        assert_eq!(transfers(text), Some(want), "{text}");
    }
    for text in ["Unknown", "", " GT/s", "x GT/s", "99999999999 GT/s", "8. GT/s"] {
        assert_eq!(transfers(text), None, "{text}");
    }
}
