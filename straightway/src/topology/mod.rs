//! Which NIC and which drives are near which GPU, and why.
//!
//! ```text
//!   sysfs ──► functions (sw-uring) ─┐
//!   NCCL topology file, if given ───┴─► Topology ─► plan: for each GPU a port, its GID, what is as near, what was refused
//! ```
//!
//! In a virtual machine sysfs often shows a flat bus: the switches that are really there are hidden, and providers tell them in a
//! topology file for NCCL. [`Topology::with_nccl_file`] takes such a file's word for where functions are.
//!
//! *Not guaranteed*: that bytes can go that way. A choice is what the tree promises; [`Standing::SelfTest`] says where even that is
//! missing.

mod choice;
mod distance;
mod file;

use std::path::Path;

use sw_engine::Error;
use sw_uring::{Machine, pci};

pub use choice::{Chosen, GpuPlan, NearDrive, Refused, Why};
pub use distance::{Acs, Distance, Standing, Way};
pub use sw_engine::seam::verbs::{Gid, GidChoice, GidKind};
pub use sw_uring::pci::{Bridge, Function, IommuGroup, Link, Port, PortState, RdmaDevice, Redirect};

/// The GPUs, NICs and NVMe drives of a machine, and where they are.
#[derive(Clone, Debug)]
pub struct Topology {
    functions: Vec<Function>,
    numa_nodes: usize,
}

/// What a function is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gpu,
    Nic,
    Drive,
}

/// By class code (PCI Code and ID Assignment Specification 1.11 §1) and, for what also drives a screen, by vendor: boards have
/// VGA controllers that compute nothing.
fn kind(class: u32, vendor: u32) -> Option<Kind> {
    const MAKERS: [u32; 3] = [0x10de, 0x1002, 0x1d94];
    match class >> 8 {
        0x0302 | 0x0380 | 0x1200 => Some(Kind::Gpu),
        0x0300 => MAKERS.contains(&vendor).then_some(Kind::Gpu),
        0x0200 | 0x0207 => Some(Kind::Nic),
        0x0108 => Some(Kind::Drive),
        _ => None,
    }
}

impl Topology {
    /// Of this machine.
    pub fn of_this_machine() -> Self {
        Self::of(&Machine::this())
    }

    /// Of the machine whose `sys` is below `root`: a copy of one will do.
    pub fn at(root: &Path) -> Self {
        Self::of(&Machine::at(root))
    }

    fn of(machine: &Machine) -> Self {
        // The vendor is not known yet: what turns out to be none of ours goes.
        let mut functions = pci::all(machine, |class| kind(class, 0x10de).is_some());
        functions.retain(|function| kind(function.class, function.vendor).is_some());
        Self { functions, numa_nodes: machine.numa_nodes().max(1) }
    }

    /// The same with the word of a topology file of NCCL's for where its functions are: bridges and NUMA nodes.
    ///
    /// # Errors
    /// `BadFormat` for text that is no such file; `NotFound` if it names no function of this machine.
    pub fn with_nccl_file(mut self, text: &str) -> Result<Self, Error> {
        let told = file::read(text)?;
        file::apply(&mut self.functions, told)?;
        Ok(self)
    }

    /// NUMA nodes of the machine.
    pub fn numa_nodes(&self) -> usize {
        self.numa_nodes
    }

    /// The GPUs, in order of their addresses.
    pub fn gpus(&self) -> impl Iterator<Item = &Function> {
        self.of_kind(Kind::Gpu)
    }

    /// The NICs.
    pub fn nics(&self) -> impl Iterator<Item = &Function> {
        self.of_kind(Kind::Nic)
    }

    /// The NVMe drives.
    pub fn drives(&self) -> impl Iterator<Item = &Function> {
        self.of_kind(Kind::Drive)
    }

    fn of_kind(&self, wanted: Kind) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(move |function| kind(function.class, function.vendor) == Some(wanted))
    }

    /// The way between two functions.
    pub fn way(&self, one: &Function, other: &Function) -> Way {
        distance::between(one, other, self.numa_nodes)
    }

    /// For each GPU the port to use. `gid` says which address of a port.
    pub fn plan(&self, gid: GidChoice) -> Vec<GpuPlan<'_>> {
        choice::plan(self, gid)
    }
}

#[cfg(test)]
mod tests;
