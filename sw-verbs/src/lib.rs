//! RDMA: implementations of [`sw_engine::seam::verbs`].
//!
//! ```text
//!   seam::verbs ◄── emulated   a fabric over TCP in this process, for machines without a NIC; it enforces what a NIC would
//!               ◄── library    libibverbs and librdmacm, loaded at run time
//! ```
//!
//! [`budget`] is for devices of any of them: a limit on registered memory. What is unproven: `docs/rdma.md`.

mod bound;
pub mod budget;
pub mod emulated;
pub mod library;
