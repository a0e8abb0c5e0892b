//! Conformance suites, wrappers and generators for whoever implements or uses the engine's seams.
//!
//! ```text
//!  conformance::{block_file, copy_engine, kernels, store}   one suite per seam; a backend brings a bed
//!  wrap::{Checked, Faulty, Recording}              a transport around a transport
//!  null::NullTransport                             completes at once, moves nothing: measures the engine
//!  pattern                                         bytes that name their origin
//!  scratch, wait                                   a directory of a test's own; the smallest executor
//!  alone                                           a process of a test's own
//!  native                                          a shared library of ours, and programs in C and C++ that use it
//!  s3                                              a server of S3 in this process, over a directory (feature `s3`)
//!  scripted                                        servers of HTTP that answer as they are told to
//!  wire                                            recorded conversations of NVMe/TCP
//!  zram                                            a block device in memory, where the kernel has one
//! ```
//!
//! Nothing here is part of the product; `[dev-dependencies]` of any crate may name it. Read on: `docs/ARCHITECTURE.md`.

#![forbid(unsafe_code)]

pub mod alone;
pub mod clock;
pub mod conformance;
pub mod fuse;
pub mod native;
pub mod null;
pub mod pattern;
#[cfg(feature = "s3")]
pub mod s3;
pub mod scratch;
pub mod scripted;
pub mod wait;
pub mod wire;
pub mod wrap;
pub mod zram;
