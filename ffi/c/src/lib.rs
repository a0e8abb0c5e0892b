//! The C interface: `libstraightway.so` and `straightway.h`.
//!
//! ```text
//!   straightway.h ◄── header test ── the sources of this crate
//!
//!   C ─► sw_* ─► edge (panics, status) ─► handle tables ─► straightway::Engine, Object, Region, Request
//!                 │                                          │
//!                 └─ last error of the thread                └─ pump (callback, eventfd), wait
//! ```
//!
//! Invariants:
//! - Handles are numbers and are looked up; nothing of a caller's is followed but what `pointer` reads and writes.
//! - Outputs are checked before anything is done, and written last.
//! - Nothing unwinds into C.
//! - No callback runs on a thread that moves bytes.
//!
//! The header is made from the public items of the modules, and their documentation is its text: it is written for a C programmer.
//! `tests/c/header.rs` makes it and holds it against the committed one.

pub mod handle;
pub mod pointer;

pub mod engine;
pub mod io;
pub mod last;
pub mod log;
pub mod object;
pub mod op;
pub mod region;
pub mod status;
pub mod text;
pub mod version;

mod edge;
mod names;
mod pump;
mod report;
mod wait;
