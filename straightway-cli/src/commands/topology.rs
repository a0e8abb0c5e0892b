//! `topology`: which NIC and which drives are near which GPU, and why.

use std::{fmt, fs};

use serde::Serialize;
use straightway::topology::{Chosen, Distance, Function, GidChoice, GidKind, GpuPlan, Link, NearDrive, Topology};

use crate::{fail::Fail, machine_args, out::Out, size::Bytes};

/// What `topology` says.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    numa_nodes: usize,
    /// Who says where functions are: `sysfs`, or `file`.
    places: &'static str,
    nics: usize,
    drives: usize,
    /// Whether nobody tells where some of them are.
    is_hidden: bool,
    gpus: Vec<Gpu>,
}

#[derive(Serialize)]
struct Gpu {
    address: String,
    id: String,
    numa_node: Option<u32>,
    link: Option<String>,
    bar_bytes: u64,
    iommu_group: Option<u32>,
    iommu_kind: Option<String>,
    nic: Option<Nic>,
    as_near: Vec<String>,
    refused: Vec<Refusal>,
    near_drives: Vec<Drive>,
}

#[derive(Serialize)]
struct Nic {
    name: String,
    address: String,
    way: String,
    standing: String,
    gbps: f64,
    gid_index: u32,
    gid_kind: &'static str,
    gid: String,
}

/// NICs with the same reason.
#[derive(Serialize)]
struct Refusal {
    names: Vec<String>,
    why: String,
}

/// Drives at the same distance.
#[derive(Serialize)]
struct Drive {
    addresses: Vec<String>,
    way: String,
    standing: String,
}

impl From<&Chosen<'_>> for Nic {
    fn from(chosen: &Chosen<'_>) -> Self {
        Self {
            name: name(chosen),
            address: chosen.nic.address.to_string(),
            way: chosen.way.to_string(),
            standing: chosen.way.standing().to_string(),
            gbps: f64::from(chosen.usable_mbps) / 1000.0,
            gid_index: chosen.gid.index,
            gid_kind: match chosen.gid.kind {
                GidKind::InfiniBand => "InfiniBand",
                GidKind::RoceV1 => "RoCE v1",
                GidKind::RoceV2 => "RoCE v2",
            },
            gid: address(chosen.gid.raw),
        }
    }
}

fn name(chosen: &Chosen<'_>) -> String {
    format!("{}/{}", chosen.device, chosen.port)
}

/// An IPv4 address as such, where the port has one.
fn address(raw: [u8; 16]) -> String {
    let address = std::net::Ipv6Addr::from(raw);
    address.to_ipv4_mapped().map_or_else(|| address.to_string(), |address| address.to_string())
}

/// The link as it is, and the most that it can be if that is more.
fn link(function: &Function) -> Option<String> {
    let text = |link: Link| format!("{}.{} GT/s x{}", link.speed_mts / 1000, link.speed_mts % 1000 / 100, link.width);
    let now = function.link.map(text)?;
    let most = function.link_max.map(text).filter(|most| *most != now);
    Some(most.map_or_else(|| now.clone(), |most| format!("{now} of {most}")))
}

/// The names of those that have the same key, in order of the first of each.
fn grouped<T, K: PartialEq>(all: &[T], key: impl Fn(&T) -> K, name: impl Fn(&T) -> String) -> Vec<(K, Vec<String>)> {
    let mut groups: Vec<(K, Vec<String>)> = Vec::new();
    for each in all {
        let own = key(each);
        match groups.iter_mut().find(|(key, _)| *key == own) {
            Some((_, names)) => names.push(name(each)),
            None => groups.push((own, vec![name(each)])),
        }
    }
    groups
}

impl From<&GpuPlan<'_>> for Gpu {
    fn from(plan: &GpuPlan<'_>) -> Self {
        let gpu = plan.gpu;
        let refused = grouped(&plan.refused, |refused| refused.why.to_string(), |refused| refused.name.clone());
        let way = |near: &NearDrive<'_>| (near.way.to_string(), near.way.standing().to_string());
        let drives = grouped(&plan.drives, way, |near| near.drive.address.to_string());
        Self {
            address: gpu.address.to_string(),
            id: format!("{:04x}:{:04x}", gpu.vendor, gpu.device),
            numa_node: gpu.numa_node,
            link: link(gpu),
            bar_bytes: gpu.bar_bytes,
            iommu_group: gpu.iommu.as_ref().map(|group| group.number),
            iommu_kind: gpu.iommu.as_ref().and_then(|group| group.kind.clone()),
            nic: plan.nic.as_ref().map(Nic::from),
            as_near: plan.as_near.iter().map(name).collect(),
            refused: refused.into_iter().map(|(why, names)| Refusal { names, why }).collect(),
            near_drives: drives
                .into_iter()
                .map(|((way, standing), addresses)| Drive { addresses, way, standing })
                .collect(),
        }
    }
}

/// So many names; the rest is counted.
const NAMES_SHOWN: usize = 8;

fn names(all: &[String]) -> String {
    let shown = all.iter().take(NAMES_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gpu {}  {}", self.address, self.id)?;
        match self.numa_node {
            Some(node) => write!(f, "  NUMA node {node}")?,
            None => f.write_str("  NUMA node not told")?,
        }
        if let Some(link) = &self.link {
            write!(f, "  link {link}")?;
        }
        if self.bar_bytes > 0 {
            write!(f, "  BAR {}", Bytes(self.bar_bytes))?;
        }
        match (self.iommu_group, &self.iommu_kind) {
            (Some(group), Some(kind)) => write!(f, "  IOMMU group {group} ({kind})")?,
            (Some(group), None) => write!(f, "  IOMMU group {group}")?,
            (None, _) => f.write_str("  no IOMMU")?,
        }
        match &self.nic {
            Some(Nic { name, address, way, standing, gbps, gid_index, gid_kind, gid }) => {
                write!(
                    f,
                    "\n  nic      {name}  {address}  {way}; {standing}  {gbps} Gb/s  {gid_kind} GID {gid_index} ({gid})"
                )?;
            }
            None => f.write_str("\n  nic      none: no RDMA port is up")?,
        }
        if !self.as_near.is_empty() {
            write!(f, "\n  as near  {}", names(&self.as_near))?;
        }
        for Refusal { names: refused, why } in &self.refused {
            write!(f, "\n  not      {}: {why}", names(refused))?;
        }
        for Drive { addresses, way, standing } in &self.near_drives {
            write!(f, "\n  drives   {}  {way}; {standing}", names(addresses))?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { numa_nodes, nics, drives, .. } = self;
        let from = if self.places == "file" { "; places by the topology file" } else { "" };
        write!(f, "GPUs: {}  NICs: {nics}  drives: {drives}  NUMA nodes: {numa_nodes}{from}", self.gpus.len())?;
        if self.gpus.is_empty() {
            f.write_str("\nno GPU is on the PCI bus")?;
        }
        if self.is_hidden {
            f.write_str(
                "\nthe machine hides its switches: give the topology file that its provider has for NCCL, with --file",
            )?;
        }
        self.gpus.iter().try_for_each(|gpu| write!(f, "\n{gpu}"))
    }
}

/// Runs it.
///
/// # Errors
/// A file that cannot be read or is none of NCCL's; those of writing to stdout.
pub fn run(args: &machine_args::Topology, out: &mut Out) -> Result<(), Fail> {
    let mut topology = args.root.as_deref().map_or_else(Topology::of_this_machine, Topology::at);
    if let Some(file) = &args.file {
        let text =
            fs::read_to_string(file).map_err(|error| Fail::system(&format!("read of {}", file.display()), &error))?;
        topology = topology.with_nccl_file(&text)?;
    }
    let gid = args.gid_index.map_or(GidChoice::Rule, GidChoice::Index);
    let plans = topology.plan(gid);
    let is_untold = |plan: &GpuPlan<'_>| {
        let nic = plan.nic.is_some_and(|nic| nic.way.distance == Distance::Untold);
        nic || plan.drives.first().is_some_and(|near| near.way.distance == Distance::Untold)
    };
    out.report(&Report {
        schema: "straightway.topology/1",
        numa_nodes: topology.numa_nodes(),
        places: if args.file.is_some() { "file" } else { "sysfs" },
        nics: topology.nics().count(),
        drives: topology.drives().count(),
        is_hidden: plans.iter().any(is_untold),
        gpus: plans.iter().map(Gpu::from).collect(),
    })
}
