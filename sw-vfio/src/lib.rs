//! PCIe functions through VFIO and iommufd: registers, DMA mappings, interrupts, peer BARs; binding and claiming.

mod bar;
mod bus;
mod bus_error;
mod caps;
mod config;
mod fault;
mod function;
mod iova;
mod pci;
mod peer;
mod presence;
mod space;
mod sys;
mod sysfs;

pub use bus::{VfioFunction, VfioInterrupt, VfioMemory, VfioRegisters, VfioWaiter};
pub use pci::PciAddress;
pub use peer::{PeerBar, PeerCopyEngine, QUEUE_DEPTH_MAX};
pub use presence::Gone;
pub use space::{Backend, DmaSpace, SpaceReport};
pub use sysfs::Sysfs;
