//! Kernels for device memory: checksums, poison, gather and scatter, widening, byte order.
//!
//! ```text
//!  cuda/*.cu ──compile.py──► ptx/*.ptx ──► Module ─┐
//!                                                  ├─► a driver: sw-cuda on a GPU, the tests' stand-in
//!  SumPlan, RangePlan, poison ──► Launch ──────────┘
//!  crc, ranges, widen, swap, poison: for each kernel its twin in Rust, what a CPU does in its place
//! ```
//!
//! Invariants:
//! - A kernel and its twin give the same bytes for every length and alignment; the suite `sw_testkit::conformance::kernels` compares
//!   them on whatever runs kernels. The twins are compared with other people's code in this crate's tests.
//! - Kernels read nothing but the ranges they were given, and write nothing else.
//! - The PTX is what the sources give (`cargo xtask kernels` makes it anew and compares), so a build needs no compiler but Rust's.
//!
//! What it does not do: load or launch anything; it knows no driver. Sources are also compiled as host C++ (`emulate/`), which shows
//! their logic where there is no device, and neither their speed nor how a device orders memory.
#![forbid(unsafe_code)]

pub mod crc;
mod launch;
pub mod poison;
pub mod ranges;
pub mod swap;
pub mod widen;

pub use launch::{ARGUMENTS_MAX, Entry, Launch, Module, PlanError};
