//! Kernel files and block devices: by io_uring, and by a thread pool where io_uring is blocked. NVMe namespaces by commands
//! through the kernel's driver, and memory of devices that drives reach.
//!
//! ```text
//!   FileStore ── names ──► Object { faces: direct (O_DIRECT), buffered }    /dev/ngXnY: Object { one face: commands }
//!                                     │ handle = descriptor                                   │
//!        UringTransport  ◄────────────┴────────────►  ThreadsTransport                        ▼
//!        "io_uring": one ring, one system call        "preadv2": a bounded queue and   PassthroughTransport
//!        for a batch and the wait for it              named threads, where probe()     "nvme-passthrough": the same ring
//!                                                     says so                          with commands in its entries
//!
//!   peer::PeerMemory: memory of a PCI device that drives may reach, or not: a fact of both (peer::reach, peer::prove)
//! ```
//!
//! Invariants, as absences: nothing here chooses a route, splits an operation or retries one; that is the engine's.
//! Nothing here frees memory that the kernel may still write. No I/O between `submit` and completion allocates.
//! Read on: [`sw_engine::seam`] for the contracts, `docs/paths.md` for routes and reason codes.

mod dmabuf;
mod facts;
mod fault;
mod file;
mod handle;
#[cfg(test)]
mod made;
pub mod passthrough;
pub mod pci;
pub mod peer;
mod probe;
mod sys;
mod sysfs;
mod threads;
mod uring;

pub use dmabuf::{DmabufRegistration, dmabuf_registration};
pub use facts::{DirectFact, Standing, direct_facts};
pub use file::{
    FileStore, Resumable, descriptor_of, preallocate, residency, residency_by_samples, truncate, unchanged,
};
pub use passthrough::{NVME_PASSTHROUGH, PassthroughTransport};
pub use probe::{Probe, probe};
pub use sysfs::Machine;
pub use threads::{PREADV2, ThreadsConfig, ThreadsTransport, leaked_threads};
pub use uring::{IO_URING, QUEUE_DEPTH_MAX, RingTransport, TaskRun, UringConfig, UringTransport, leaked_rings};

/// The number that `statfs(2)` has for the file system of a path (linux `include/uapi/linux/magic.h`).
///
/// # Errors
/// What the system says of the path.
pub fn file_system_magic(path: &std::path::Path) -> std::io::Result<i64> {
    use std::os::{fd::AsFd, unix::fs::OpenOptionsExt};
    let place = std::fs::File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
    sys::file_system(place.as_fd()).map(|found| found.magic).map_err(std::io::Error::from_raw_os_error)
}
