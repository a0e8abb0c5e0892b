//! Kernel files and block devices: by io_uring, and by a thread pool where io_uring is blocked.
//!
//! ```text
//!   FileStore ── names ──► Object { faces: direct (O_DIRECT), buffered }
//!                                     │ handle = descriptor
//!        UringTransport  ◄────────────┴────────────►  ThreadsTransport
//!        "io_uring": one ring, one system call        "preadv2": a bounded queue and
//!        for a batch and the wait for it              named threads, where probe() says so
//! ```
//!
//! Invariants, as absences: nothing here chooses a route, splits an operation or retries one; that is the engine's.
//! Nothing here frees memory that the kernel may still write. No I/O between `submit` and completion allocates.
//! Read on: [`sw_engine::seam`] for the contracts, `docs/paths.md` for routes and reason codes.

mod fault;
mod file;
mod handle;
mod probe;
mod sys;
mod threads;
mod uring;

pub use file::{FileStore, Resumable, preallocate, residency, truncate, unchanged};
pub use probe::{Probe, probe};
pub use threads::{PREADV2, ThreadsConfig, ThreadsTransport, leaked_threads};
pub use uring::{IO_URING, QUEUE_DEPTH_MAX, TaskRun, UringConfig, UringTransport, leaked_rings};
