//! Device memory that the kernel lets drives reach: peer-to-peer DMA over PCI.
//!
//! ```text
//!   /sys/bus/pci/devices/ADDRESS/p2pmem/allocate ── mmap ──► PeerMemory (a DmaRegion)
//!   Object, provider ─► reach: what the PCI tree says ─► prove: a self-test ─► may bytes land in place? (for the planner)
//!                       (before anything is tried)       (a read of one block, compared)
//! ```
//!
//! Such memory has addresses of this process ([`sw_mem::Place::Host`]): the CPU can read and write it, over PCI and
//! slowly. So every ordinary way works, and each is reported as what it is: an `O_DIRECT` I/O is `dma`, because the drive
//! reads or writes the device's memory; a buffered one is `kernel-copy`, because the CPU carries every byte over PCI. What
//! is different is that the direct way may be impossible between two devices, and that is a fact of both: neither the object
//! nor the memory knows it. Whoever plans asks [`reach`] or [`prove()`] for the pair, and gives the answer to the planner
//! ([`sw_engine::MemoryFacts::in_place`]).
//!
//! Needs Linux 6.2 with `CONFIG_PCI_P2PDMA`, a device whose driver gives its memory out that way (an NVMe controller
//! memory buffer), and a drive whose driver can (`nvme`). What it does *not* do: register such memory with a ring (the kernel
//! refuses to pin it for long, `EFAULT`), or keep the CPU from reading a device that was taken out of its slot.

mod live;
mod map;
mod prove;
mod relay;
mod topology;

pub use live::provider_of;
pub use map::{PeerMemory, Provider, expect, providers};
pub use prove::{Answer, Lasts, Proof, SELF_TEST_BYTES, explain, prove, reach, self_test};
pub use topology::{Doubt, Verdict};

pub(crate) use live::is_peer;
pub(crate) use prove::{as_refusal, reach_of};
