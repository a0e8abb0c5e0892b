//! Ways and choices between functions that are written down here. Trees of real machines: `straightway-cli/tests/cli/topology.rs`.

use sw_engine::{ErrorKind, PciAddress};

use super::*;

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// A function of a class below bridges, nearest first.
fn function(at: &str, class: u32, above: &[(&str, Redirect)]) -> Function {
    let bridge = |(at, redirect): &(&str, Redirect)| Bridge { address: address(at), redirect: *redirect };
    Function {
        address: address(at),
        class,
        vendor: 0x10de,
        device: 0,
        driver: None,
        numa_node: None,
        link: None,
        link_max: None,
        iommu: None,
        bar_bytes: 0,
        above: above.iter().map(bridge).collect(),
        root_bus: format!("pci{}:00", &at[..4]),
        rdma: Vec::new(),
        net: Vec::new(),
    }
}

fn gpu(at: &str, above: &[(&str, Redirect)]) -> Function {
    function(at, 0x03_0200, above)
}

/// A NIC with one port that is up, of this rate.
fn nic(at: &str, above: &[(&str, Redirect)], name: &str, rate_mbps: u32) -> Function {
    let gid = Gid { index: 3, kind: GidKind::RoceV2, raw: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7] };
    let port = Port { number: 1, state: PortState::Active, rate_mbps, layer: "Ethernet".into(), gids: vec![gid] };
    let rdma = vec![RdmaDevice { name: name.to_owned(), ports: vec![port] }];
    Function { rdma, ..function(at, 0x02_0000, above) }
}

fn way(one: &Function, other: &Function) -> String {
    let there = distance::between(one, other, 2);
    let back = distance::between(other, one, 2);
    assert_eq!((there.distance, there.standing()), (back.distance, back.standing()));
    there.to_string()
}

const CLEAR: Redirect = Redirect::No;

#[test]
fn a_switch_is_nearer_than_two_and_both_than_the_host() {
    let root = ("0000:00:01.0", CLEAR);
    let (up, down, down2, down3) =
        (("0000:01:00.0", CLEAR), ("0000:02:00.0", CLEAR), ("0000:02:01.0", CLEAR), ("0000:02:02.0", CLEAR));
    let (inner_up, inner_down) = (("0000:05:00.0", CLEAR), ("0000:06:00.0", CLEAR));
    let near = gpu("0000:03:00.0", &[down, up, root]);
    assert_eq!(way(&near, &nic("0000:04:00.0", &[down2, up, root], "a", 1)), "PIX");
    assert_eq!(way(&near, &nic("0000:03:00.1", &[down, up, root], "a", 1)), "PIX", "one device");
    assert_eq!(way(&near, &nic("0000:07:00.0", &[inner_down, inner_up, down3, up, root], "a", 1)), "PXB");
    let mut other = nic("0000:09:00.0", &[("0000:00:02.0", CLEAR)], "a", 1);
    assert_eq!(way(&near, &other), "PHB", "one root bus");
    other.root_bus = "pci0000:80".into();
    assert_eq!(way(&near, &other), "untold");
    assert_eq!(distance::between(&near, &other, 1).distance, Distance::Phb, "one node has everything");
    other.numa_node = Some(1);
    assert_eq!(way(&near, &other), "untold");
    assert_eq!(way(&Function { numa_node: Some(0), ..near.clone() }, &other), "SYS");
    assert_eq!(way(&Function { numa_node: Some(1), ..near }, &other), "PHB");
}

#[test]
fn a_port_that_redirects_or_hides_is_named_and_what_is_above_the_switch_does_not_matter() {
    let end = |at, redirect| [(at, redirect), ("0000:01:00.0", CLEAR), ("0000:00:01.0", Redirect::Yes)];
    let gpu = gpu("0000:03:00.0", &end("0000:02:00.0", CLEAR));
    let nic = |redirect| nic("0000:04:00.0", &end("0000:02:01.0", redirect), "a", 1);
    assert_eq!(way(&gpu, &nic(Redirect::No)), "PIX");
    let redirected = distance::between(&gpu, &nic(Redirect::Yes), 1);
    assert_eq!(redirected.acs, Acs::Redirects(address("0000:02:01.0")));
    assert_eq!((redirected.standing(), redirected.distance), (Standing::SelfTest, Distance::Pix));
    assert_eq!(distance::between(&gpu, &nic(Redirect::Unknown), 1).acs, Acs::Unreadable(address("0000:02:01.0")));
}

#[test]
fn what_the_iommu_translates_is_not_taken_for_direct() {
    let below = |port, redirect| [(port, redirect), ("0000:01:00.0", CLEAR), ("0000:00:01.0", CLEAR)];
    let of = |kind: Option<&str>| Some(IommuGroup { number: 7, kind: kind.map(str::to_owned) });
    let gpu = gpu("0000:03:00.0", &below("0000:02:00.0", CLEAR));
    let nic = |redirect| nic("0000:04:00.0", &below("0000:02:01.0", redirect), "a", 1);
    let standing = |gpu: &Function, nic: &Function| distance::between(gpu, nic, 1).standing();
    for kind in [Some("DMA"), Some("DMA-FQ"), Some("unmanaged"), None] {
        let nic = Function { iommu: of(kind), ..nic(CLEAR) };
        let way = distance::between(&gpu, &nic, 1);
        assert_eq!((way.standing(), way.translated), (Standing::SelfTest, Some(nic.address)), "{kind:?}");
        assert!(way.to_string().starts_with("PIX, but the IOMMU translates the addresses of 0000:04:00.0"), "{way}");
        // Of which of both, does not matter.
        assert_eq!(
            standing(&Function { iommu: of(kind), ..gpu.clone() }, &Function { iommu: None, ..nic }),
            Standing::SelfTest
        );
    }
    let through = Function { iommu: of(Some("identity")), ..nic(CLEAR) };
    assert_eq!(way(&Function { iommu: of(Some("identity")), ..gpu.clone() }, &through), "PIX");
    assert_eq!(standing(&gpu, &through), Standing::Direct);
    // A port that redirects is the reason by itself.
    let both = Function { iommu: of(Some("DMA")), ..nic(Redirect::Yes) };
    assert!(way(&gpu, &both).contains("(ACS)"), "{}", way(&gpu, &both));
}

#[test]
fn near_beats_fast_fast_beats_free_and_equal_ports_are_shared_out() {
    let below = |port| [(port, CLEAR), ("0000:01:00.0", CLEAR), ("0000:00:01.0", CLEAR)];
    let mut far = nic("0000:81:00.0", &[("0000:80:01.0", CLEAR)], "far", 400_000);
    far.numa_node = Some(1);
    let mut down = nic("0000:08:00.0", &below("0000:02:05.0"), "down", 400_000);
    down.rdma[0].ports[0].state = PortState::Other("DOWN".into());
    let mut bare = nic("0000:09:00.0", &below("0000:02:06.0"), "bare", 400_000);
    bare.rdma[0].ports[0].gids.clear();
    let mut narrow = nic("0000:0a:00.0", &below("0000:02:07.0"), "narrow", 200_000);
    narrow.link = Some(Link { speed_mts: 8000, width: 8 });
    let functions = vec![
        Function { numa_node: Some(0), ..gpu("0000:03:00.0", &below("0000:02:00.0")) },
        Function { numa_node: Some(0), ..gpu("0000:04:00.0", &below("0000:02:01.0")) },
        nic("0000:05:00.0", &below("0000:02:02.0"), "one", 200_000),
        nic("0000:06:00.0", &below("0000:02:03.0"), "two", 200_000),
        Function { net: vec!["eth0".into()], ..function("0000:07:00.0", 0x02_0000, &below("0000:02:04.0")) },
        down,
        bare,
        narrow,
        far,
    ];
    let topology = Topology { functions, numa_nodes: 2 };
    let plans = topology.plan(GidChoice::Rule);
    let chosen: Vec<_> = plans.iter().map(|plan| plan.nic.unwrap().device).collect();
    assert_eq!(chosen, ["one", "two"]);
    assert_eq!(plans[0].as_near.iter().map(|port| port.device).collect::<Vec<_>>(), ["two"]);
    let why = |name: &str| plans[0].refused.iter().find(|refused| refused.name == name).unwrap().why.to_string();
    assert_eq!(why("eth0"), "no RDMA device");
    assert_eq!(why("down/1"), "its port is DOWN");
    assert!(why("bare/1").contains("the port has no address"), "{}", why("bare/1"));
    assert_eq!(why("far/1"), "farther: SYS");
    assert_eq!(why("narrow/1"), "slower: 63 Gb/s");
    let asked = topology.plan(GidChoice::Index(9));
    assert!(asked[0].nic.is_none() && asked[0].refused.len() == 7, "{:?}", asked[0].refused);
}

#[test]
fn a_file_of_nccl_moves_functions_that_a_virtual_machine_shows_flat() {
    let functions = vec![gpu("0001:00:00.0", &[]), nic("0101:00:00.0", &[], "mlx5_0", 400_000)];
    let flat = Topology { functions, numa_nodes: 2 };
    assert_eq!(flat.plan(GidChoice::Rule)[0].nic.unwrap().way.distance, Distance::Untold);
    let text = r#"<system version="1"><cpu numaid="1"><pci busid="FFFF:ff:01.0"><pci busid="ffff:ff:02.0">
        <pci busid="0001:00:00.0"/></pci><pci busid="0101:00:00.0"/></pci></cpu></system>"#;
    let told = flat.clone().with_nccl_file(text).unwrap();
    let way = told.plan(GidChoice::Rule)[0].nic.unwrap().way;
    assert_eq!((way.distance, way.standing()), (Distance::Pxb, Standing::Direct));
    assert_eq!(told.gpus().next().unwrap().numa_node, Some(1));
    let deep = "<pci busid=\"0000:01:00.0\">".repeat(40) + &"</pci>".repeat(40);
    for (bad, kind) in [
        ("", ErrorKind::BadFormat),
        ("<system>", ErrorKind::BadFormat),
        ("<graphs/>", ErrorKind::BadFormat),
        ("<system><pci/></system>", ErrorKind::BadFormat),
        ("<system><pci busid='x'/></system>", ErrorKind::BadFormat),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><system>&b;</system>", ErrorKind::BadFormat),
        (&format!("<system>{deep}</system>"), ErrorKind::BadFormat),
        ("<system><cpu><pci busid='0000:05:00.0'/></cpu></system>", ErrorKind::NotFound),
    ] {
        assert_eq!(flat.clone().with_nccl_file(bad).unwrap_err().kind(), kind, "{bad}");
    }
}
