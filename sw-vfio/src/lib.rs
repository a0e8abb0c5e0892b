//! PCIe functions through VFIO and iommufd: registers, DMA mappings, interrupts, peer BARs; binding and claiming.
//!
//! ```text
//!   inventory, bind, claim, facts     who has what, as values over a root that tests replace      (no device is touched)
//!        │
//!   DmaSpace ◄─ type 1 | iommufd | no IOMMU        one for all functions; IOVA allocator; regions mapped once
//!        │ open
//!   Function ─► BarMap ─► VfioFunction: sw_nvme's Bus (registers, queue memory, interrupts)
//!        │         └────► PeerBar: device memory for other functions' DMA, and a copy engine
//!        └─ watcher thread: removal and errors
//! ```
//!
//! Invariants:
//! - A function has one owner, and who is refused learns who that is.
//! - Everything that can be touched by a device keeps its mapping, and a mapping keeps its space. A mapping ends with its
//!   memory, in exactly the unit it was made in; an address whose mapping did not end is not used again.
//! - A function that is taken away is stopped first, then reads as all ones, then wakes who waits for it. An access to
//!   registers that are gone never ends the process.
//! - Nothing is bound, unbound or opened that the kernel uses, and every step of a binding is said before it is done.

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
mod peer;
mod presence;
mod rings;
mod space;
mod sys;
mod sysfs;
mod visibility;

pub use bind::{BindPlan, Step, VFIO_PCI, plan_bind, plan_unbind};
pub use bus::{VfioFunction, VfioInterrupt, VfioMemory, VfioRegisters, VfioWaiter};
pub use bus_error::replaced_pages;
pub use claim::{ControllerClaim, Found, NamespaceClaim};
pub use facts::{Fact, Health, facts};
pub use inventory::{FunctionFacts, NamespaceFacts, Use, Which, list, look};
pub use peer::{PeerBar, PeerCopyEngine, QUEUE_DEPTH_MAX};
pub use presence::{Gone, StaysOpen};
pub use space::{Backend, DmaSpace, SpaceReport};
pub use sysfs::Sysfs;
pub use visibility::Visibility;
