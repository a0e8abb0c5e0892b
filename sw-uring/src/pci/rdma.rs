//! RDMA devices of a PCI function, their ports and addresses (linux `Documentation/ABI/stable/sysfs-class-infiniband`).

use std::{net::Ipv6Addr, path::Path};

use sw_engine::seam::verbs::{Gid, GidKind};

use crate::sysfs;

/// Ports of a device, and entries of a port's table, that are looked at.
const PORTS_MAX: usize = 16;
const GIDS_MAX: u32 = 1024;

/// An RDMA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaDevice {
    /// Its name, such as `mlx5_0`.
    pub name: String,
    /// Its ports, in order of their numbers.
    pub ports: Vec<Port>,
}

/// A port of an RDMA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// From 1.
    pub number: u32,
    /// Whether it can carry anything.
    pub state: PortState,
    /// Million bits a second.
    pub rate_mbps: u32,
    /// `InfiniBand`, `Ethernet`, or what else the kernel says.
    pub layer: String,
    /// Its addresses: those that are set.
    pub gids: Vec<Gid>,
}

/// What a port can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Traffic.
    Active,
    /// Something else, in the kernel's word, such as `DOWN`.
    Other(String),
}

/// The devices of the function at `directory`.
pub(super) fn devices(directory: &Path) -> Vec<RdmaDevice> {
    let all = directory.join("infiniband");
    let device = |name: String| RdmaDevice { ports: ports(&all.join(&name).join("ports")), name };
    sysfs::names(&all).into_iter().map(device).collect()
}

fn ports(directory: &Path) -> Vec<Port> {
    let mut numbers: Vec<u32> = sysfs::names(directory).iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    numbers.into_iter().take(PORTS_MAX).map(|number| port(&directory.join(number.to_string()), number)).collect()
}

fn port(directory: &Path, number: u32) -> Port {
    let text = |name: &str| sysfs::text(&directory.join(name)).unwrap_or_default();
    let state = text("state");
    let state = state.split_once(": ").map_or(&*state, |(_, word)| word);
    let layer = text("link_layer");
    Port {
        number,
        state: if state == "ACTIVE" { PortState::Active } else { PortState::Other(state.to_owned()) },
        // `400 Gb/sec (4X NDR)`, `2.5 Gb/sec (1X SDR)`.
        rate_mbps: super::thousandths(&text("rate"), " Gb/sec").unwrap_or(0),
        gids: gids(directory, &layer),
        layer,
    }
}

/// The entries of a table that are set. Reading the type of one that is not is an error, with every kernel.
fn gids(directory: &Path, layer: &str) -> Vec<Gid> {
    let mut indexes: Vec<u32> = sysfs::names(&directory.join("gids"))
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter(|index| *index < GIDS_MAX)
        .collect();
    indexes.sort_unstable();
    let gid = |index: u32| {
        let address: Ipv6Addr = sysfs::text(&directory.join(format!("gids/{index}")))?.parse().ok()?;
        let kind = match &*sysfs::text(&directory.join(format!("gid_attrs/types/{index}")))? {
            "RoCE v2" => GidKind::RoceV2,
            _ if layer == "Ethernet" => GidKind::RoceV1,
            _ => GidKind::InfiniBand,
        };
        (!address.is_unspecified()).then_some(Gid { index, kind, raw: address.octets() })
    };
    indexes.into_iter().filter_map(gid).collect()
}
