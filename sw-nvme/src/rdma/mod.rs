//! NVMe over RDMA: what both ends say to each other, and the host's end of a queue. It does no I/O and knows no NIC.
//!
//! ```text
//!   cm       32 bytes of private data: who wants which queue, and the answer
//!   capsule  a command of 64 bytes with a keyed descriptor: where its data lies, and the key that opens it
//!   host     commands under way: memory and key are a slot's until the response and the end of the SEND were both seen
//!   session  the same over a queue pair of the seam: capsules sent, completions taken, memory registered and let go of
//! ```
//!
//! Source: NVM Express RDMA Transport Specification 1.x; what Linux and SPDK do beside it (linux `drivers/nvme/host/rdma.c`,
//! `include/linux/nvme-rdma.h`; spdk `lib/nvme/nvme_rdma.c`). The seam below is [`sw_engine::seam::verbs`].
//!
//! Over RDMA nobody counts the bytes: the controller writes them into memory by itself, and its word is all that there is. Success is not
//! evidence (checksums and poison are).

pub mod capsule;
pub mod cm;
pub mod host;
mod registrations;
pub mod session;

use core::fmt;

pub use registrations::{Memory, Registering, Shelf, WINDOW_SHARED};

/// A rule that the peer broke: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breach {
    /// The rule.
    pub rule: &'static str,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rule)
    }
}
