//! How far two functions are from each other, in the words of NCCL and nvidia-smi.

use std::fmt;

use sw_engine::PciAddress;
use sw_uring::pci::{Bridge, Function, Redirect};

/// What is between two functions. The nearer, the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// One switch, or the same bus.
    Pix,
    /// Several switches, but no host bridge.
    Pxb,
    /// A host bridge of one NUMA node.
    Phb,
    /// The link between NUMA nodes.
    Sys,
    /// Nobody tells: no common bridge, and the firmware does not say which NUMA node they are near.
    Untold,
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pix => "PIX",
            Self::Pxb => "PXB",
            Self::Phb => "PHB",
            Self::Sys => "SYS",
            Self::Untold => "untold",
        })
    }
}

/// Access control (ACS) of the ports between two functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acs {
    /// No port sends peer-to-peer requests up.
    Clear,
    /// This one does: the bytes go to the root complex and back.
    Redirects(PciAddress),
    /// Of this one it can be read by root only.
    Unreadable(PciAddress),
}

/// The way between two functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// How far.
    pub distance: Distance,
    /// What ports on the way do, where a switch is common to both.
    pub acs: Acs,
    /// Which of both has its addresses translated by the IOMMU, if one has.
    pub translated: Option<PciAddress>,
}

/// What a way promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Bytes turn round in a switch.
    Direct,
    /// Only a self-test tells whether they arrive, and how fast.
    SelfTest,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::SelfTest => "after a self-test",
        })
    }
}

impl Way {
    /// What it promises.
    pub fn standing(&self) -> Standing {
        match (self.distance, self.acs, self.translated) {
            (Distance::Pix | Distance::Pxb, Acs::Clear, None) => Standing::Direct,
            _ => Standing::SelfTest,
        }
    }
}

impl fmt::Display for Way {
    /// The distance, and why it is not direct although a switch is common to both.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.distance.fmt(f)?;
        match (self.distance, self.acs, self.translated) {
            (Distance::Pix | Distance::Pxb, Acs::Redirects(port), _) => {
                write!(f, ", but {port} sends peer traffic up to the root complex (ACS)")
            }
            (Distance::Pix | Distance::Pxb, _, Some(function)) => {
                write!(f, ", but the IOMMU translates the addresses of {function}")
            }
            (Distance::Pix | Distance::Pxb, Acs::Unreadable(port), None) => {
                write!(f, ", access control of {port} can be read by root only")
            }
            _ => Ok(()),
        }
    }
}

/// From one function to another, on a machine with so many NUMA nodes.
pub(super) fn between(one: &Function, other: &Function, numa_nodes: usize) -> Way {
    let common = one.above.iter().enumerate().find_map(|(at, bridge)| {
        let there = other.above.iter().position(|its| its.address == bridge.address)?;
        Some((at, there))
    });
    // The one that begins the transfers, a NIC or a drive, is named before the GPU.
    let translated = [other, one].into_iter().find(|function| is_translated(function)).map(|function| function.address);
    let Some((here, there)) = common else {
        return Way { distance: across_host(one, other, numa_nodes), acs: Acs::Clear, translated };
    };
    // A switch has two ports on the way from a function below it: its own downstream port, and the common upstream one.
    let distance = if here.max(there) <= 1 { Distance::Pix } else { Distance::Pxb };
    // The kernel asks the common bridge itself, and everything below it on both sides (drivers/pci/p2pdma.c).
    let ports = one.above.iter().take(here + 1).chain(other.above.iter().take(there));
    Way { distance, acs: ports.fold(Acs::Clear, worse), translated }
}

/// Whether the IOMMU translates its addresses. Then a peer that was mapped for it (a dma-buf, or by VFIO) has an address which is none of the bus: a
/// switch finds no port for it and sends it up. What the kernel maps as P2PDMA has a bus address all the same (drivers/pci/p2pdma.c,
/// `PCI_P2PDMA_MAP_BUS_ADDR`), and a function that asks for translations itself (ATS) sends bus addresses, but of neither does the tree tell.
fn is_translated(function: &Function) -> bool {
    function.iommu.as_ref().is_some_and(|group| group.kind.as_deref() != Some("identity"))
}

fn worse(so_far: Acs, port: &Bridge) -> Acs {
    match (so_far, port.redirect) {
        (Acs::Redirects(_), _) | (_, Redirect::No) => so_far,
        (_, Redirect::Yes) => Acs::Redirects(port.address),
        (Acs::Unreadable(_), Redirect::Unknown) => so_far,
        (Acs::Clear, Redirect::Unknown) => Acs::Unreadable(port.address),
    }
}

fn across_host(one: &Function, other: &Function, numa_nodes: usize) -> Distance {
    match (one.numa_node, other.numa_node) {
        (Some(here), Some(there)) if here == there => Distance::Phb,
        (Some(_), Some(_)) => Distance::Sys,
        _ if numa_nodes == 1 || one.root_bus == other.root_bus => Distance::Phb,
        _ => Distance::Untold,
    }
}
