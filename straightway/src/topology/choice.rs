//! The choice of a port for each GPU.

use std::{cmp::Reverse, fmt};

use sw_engine::seam::verbs::{Gid, GidChoice, choose_gid};
use sw_uring::pci::{Function, Link, PortState};

use super::{Topology, Way};

/// What was found for a GPU.
#[derive(Clone, Debug)]
pub struct GpuPlan<'a> {
    /// The GPU.
    pub gpu: &'a Function,
    /// The port to use; `None` if no RDMA port is up.
    pub nic: Option<Chosen<'a>>,
    /// Ports that are as near: what is striped goes over these too.
    pub as_near: Vec<Chosen<'a>>,
    /// Other NICs and ports, and why not.
    pub refused: Vec<Refused<'a>>,
    /// The drives, nearest first.
    pub drives: Vec<NearDrive<'a>>,
}

/// A port.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    /// The function that it belongs to.
    pub nic: &'a Function,
    /// The RDMA device.
    pub device: &'a str,
    /// The port's number.
    pub port: u32,
    /// The way from the GPU.
    pub way: Way,
    /// Million bits a second: the port's rate, or less where the PCI link is slower.
    pub usable_mbps: u32,
    /// The address to connect from.
    pub gid: Gid,
}

/// A NIC or a port that was not chosen.
#[derive(Clone, Debug)]
pub struct Refused<'a> {
    /// The function.
    pub nic: &'a Function,
    /// `mlx5_0/1`, the name of a network device, or the address.
    pub name: String,
    /// Why not.
    pub why: Why,
}

/// Why a NIC was not chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has no RDMA device: bytes go through sockets.
    NoRdma,
    /// Its port carries nothing; the kernel's word for it.
    Port(String),
    /// It has no address, or not the one that was asked for.
    Gid(String),
    /// Another one is nearer.
    Farther(Way),
    /// Another one that is as near is faster.
    Slower(u32),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRdma => f.write_str("no RDMA device"),
            Self::Port(state) => write!(f, "its port is {state}"),
            Self::Gid(why) => f.write_str(why),
            Self::Farther(way) => write!(f, "farther: {way}"),
            Self::Slower(mbps) => write!(f, "slower: {} Gb/s", mbps / 1000),
        }
    }
}

/// A drive, as seen from a GPU.
#[derive(Clone, Copy, Debug)]
pub struct NearDrive<'a> {
    /// The drive.
    pub drive: &'a Function,
    /// The way from the GPU.
    pub way: Way,
}

/// A port that could be used.
struct Candidate<'a> {
    nic: &'a Function,
    device: &'a str,
    port: u32,
    usable_mbps: u32,
    gid: Gid,
    /// GPUs that have it already.
    taken: u32,
}

/// GPUs choose one after the other: of what is as near and as fast the port that fewest have.
pub(super) fn plan(topology: &Topology, gid: GidChoice) -> Vec<GpuPlan<'_>> {
    let (mut candidates, unusable) = ports(topology, gid);
    topology
        .gpus()
        .map(|gpu| {
            let mut drives: Vec<_> =
                topology.drives().map(|drive| NearDrive { drive, way: topology.way(gpu, drive) }).collect();
            drives.sort_by_key(|near| (near.way.standing(), near.way.distance, near.drive.address));
            let mut plan = GpuPlan { gpu, nic: None, as_near: Vec::new(), refused: unusable.clone(), drives };
            choose(topology, &mut candidates, &mut plan);
            plan
        })
        .collect()
}

fn choose<'a>(topology: &'a Topology, candidates: &mut [Candidate<'a>], plan: &mut GpuPlan<'a>) {
    let ways: Vec<Way> = candidates.iter().map(|candidate| topology.way(plan.gpu, candidate.nic)).collect();
    let near = |way: &Way| (way.standing(), way.distance);
    let best = candidates.iter().zip(&ways).enumerate().min_by_key(|(_, (candidate, way))| {
        (near(way), Reverse(candidate.usable_mbps / (candidate.taken + 1)), candidate.nic.address, candidate.port)
    });
    let Some((best, nearest, fastest)) = best.map(|(at, (candidate, way))| (at, near(way), candidate.usable_mbps))
    else {
        return;
    };
    for (at, (candidate, way)) in candidates.iter_mut().zip(ways).enumerate() {
        let Candidate { nic, device, port, usable_mbps, gid, .. } = *candidate;
        let chosen = Chosen { nic, device, port, way, usable_mbps, gid };
        let refused = |why| Refused { nic, name: format!("{device}/{port}"), why };
        if at == best {
            candidate.taken += 1;
            plan.nic = Some(chosen);
        } else if near(&way) != nearest {
            plan.refused.push(refused(Why::Farther(way)));
        } else if usable_mbps < fastest {
            plan.refused.push(refused(Why::Slower(usable_mbps)));
        } else {
            plan.as_near.push(chosen);
        }
    }
}

/// Ports that could be used, and NICs and ports that could not.
fn ports(topology: &Topology, choice: GidChoice) -> (Vec<Candidate<'_>>, Vec<Refused<'_>>) {
    let (mut candidates, mut refused) = (Vec::new(), Vec::new());
    for nic in topology.nics() {
        if nic.rdma.is_empty() {
            let name = nic.net.first().cloned().unwrap_or_else(|| nic.address.to_string());
            refused.push(Refused { nic, name, why: Why::NoRdma });
        }
        let all = nic.rdma.iter().flat_map(|device| device.ports.iter().map(move |port| (device, port)));
        for (device, port) in all {
            let why = match (&port.state, choose_gid(&port.gids, choice)) {
                (PortState::Other(state), _) => Why::Port(state.clone()),
                (PortState::Active, Err(error)) => Why::Gid(error.to_string()),
                (PortState::Active, Ok(gid)) => {
                    let usable_mbps = nic.link.map_or(u32::MAX, link_mbps).min(port.rate_mbps);
                    let (device, port) = (&*device.name, port.number);
                    candidates.push(Candidate { nic, device, port, usable_mbps, gid, taken: 0 });
                    continue;
                }
            };
            refused.push(Refused { nic, name: format!("{}/{}", device.name, port.number), why });
        }
    }
    (candidates, refused)
}

/// What a link carries of data and headers: 8 of 10 bits up to 5 GT/s, 128 of 130 above (PCI Express Base Specification 5.0 §4.2).
fn link_mbps(link: Link) -> u32 {
    let raw = u64::from(link.speed_mts) * u64::from(link.width);
    let coded = if link.speed_mts <= 5000 { raw * 8 / 10 } else { raw * 128 / 130 };
    u32::try_from(coded).unwrap_or(u32::MAX)
}
