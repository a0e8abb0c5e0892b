//! `libcufile.so.0`: programs written for cuFile run on Straightway.
//!
//! ```text
//!   cuFile* ─► edge (panics, status) ─► library (one for a process: driver, handles, buffers, batches, streams)
//!                                          │
//!                       config ─► settings ┤     ┌─► transfer ──► straightway::Engine ─► Completed { path }
//!              (file, environment, calls)  └─────┤                                            │
//!                                                └─► pump (streams)          stats, report ◄──┘
//! ```
//!
//! Invariants:
//! - What is exported is the list in `abi.txt`: the 50 public names of cuFile, and the `sw_cufile_` ones.
//! - Handles are numbers and are looked up; nothing of a caller's is followed but what `pointer` reads and writes.
//! - Nothing unwinds into C. No input ends the process.
//! - A transfer tells its way: in the statistics, for its handle, and for its thread.
//! - A child of a fork starts anew: what its parent had is unknown there.
//!
//! Names, numbers and layouts are those of the documentation of cuFile and of measurements ("toolchain study", section 2, and
//! "peers", section 5, in the project's field notes); where the two differ the switch is told in `docs/cufile.md`.

pub mod abi;
pub mod code;
pub mod pointer;

pub mod batch;
pub mod buffer;
pub mod driver;
pub mod file;
pub mod io;
pub mod param;
pub mod report;
pub mod stats;
pub mod stream;

mod config;
mod count;
mod edge;
mod json;
mod library;
mod log;
mod memory;
mod pump;
mod settings;
mod transfer;
mod userfs;
