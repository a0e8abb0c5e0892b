//! PCIe functions through VFIO and iommufd: registers, DMA mappings, interrupts, peer BARs; binding and claiming.

mod bar;
mod bind;
mod bus;
mod bus_error;
mod caps;
mod claim;
mod config;
mod facts;
#[cfg(test)]
mod fake;
mod fault;
mod function;
mod inventory;
mod iova;
mod pci;
mod peer;
mod presence;
mod space;
mod sys;
mod sysfs;

pub use bind::{BindPlan, Step, VFIO_PCI, plan_bind, plan_unbind};
pub use bus::{VfioFunction, VfioInterrupt, VfioMemory, VfioRegisters, VfioWaiter};
pub use bus_error::replaced_pages;
pub use claim::{ControllerClaim, Found, NamespaceClaim};
pub use facts::{Fact, Health, facts};
pub use inventory::{FunctionFacts, NamespaceFacts, Use, Which, list, look};
pub use pci::PciAddress;
pub use peer::{PeerBar, PeerCopyEngine, QUEUE_DEPTH_MAX};
pub use presence::Gone;
pub use space::{Backend, DmaSpace, SpaceReport};
pub use sysfs::Sysfs;
