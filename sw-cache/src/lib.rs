//! A cache of remote objects on local disk that stays on the direct path: what it has are ranges of a local file.
//!
//! ```text
//!   open s3://… ─► Object made of [the remote object, the data file]   Layout::Pieces(Cached)
//!   read ─► lane ─► Cached::resolve ─┬─ kept     ─► extent of the data file ─► io_uring, O_DIRECT, P2P: as any file
//!                                    └─ not kept ─► extent of the remote object ─► its transport ─┬─► the caller's memory
//!                                                                                 Tee::landed ◄───┘ a copy
//!   whole blocks ─► filler (a thread): slot, bytes, sync, index ─► kept
//! ```
//!
//! Invariants. A word of the index leads to the bytes of its block or to none: both have checksums, compared before the first use in a
//! process (`index.rs`). A slot is not written while an operation that reads it is under way: the operation holds it. One process owns a
//! directory; others ask it and read the data file themselves (`shared/`). Whatever fails here costs a reader the cache and nothing else.
//!
//! What is not here: reading for a caller (the lane does it), threads of transports, choosing routes.

#![forbid(unsafe_code)]

mod cache;
mod config;
mod fill;
mod home;
mod index;
mod key;
mod object;
mod policy;
mod rules;
mod shared;
mod slots;
mod status;

pub use cache::Cache;
pub use config::{CacheConfig, Verify};
pub use key::Named;
pub use object::{Cached, Source, Warming};
pub use rules::{Selection, WallClock};
pub use status::{Evicted, KeptObject, Pinning, Status};
