//! RDMA: implementations of [`sw_engine::seam::verbs`].
//!
//! ```text
//!   seam::verbs ◄── emulated   a fabric over TCP in this process, for machines without a NIC; it enforces what a NIC would
//!               ◄── library    libibverbs and librdmacm, loaded at run time
//! ```
//!
//! [`budget`] and [`dma_buf`] are for devices of any of them: a limit on registered memory, and the self-test of memory that is an accelerator's. What is unproven: `docs/rdma.md`.

mod bound;
pub mod budget;
pub mod dma_buf;
pub mod emulated;
pub mod library;
