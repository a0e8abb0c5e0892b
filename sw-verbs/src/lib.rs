//! RDMA: implementations of [`sw_engine::seam::verbs`].
//!
//! ```text
//!   seam::verbs ◄── emulated   a fabric over TCP in this process, for machines without a NIC; it enforces what a NIC would
//! ```
//!
//! [`pool`] holds what users of any fabric need above the seam: a budget of registered memory. What is unproven: `docs/rdma.md`.

pub mod emulated;
pub mod pool;
