//! Checkpoint formats to tensor ranges, load and save.
//!
//! The pure part turns the bytes of a checkpoint's *heads* (file headers and index files) into exact byte ranges, and a
//! list of tensors into the heads of files to write. It does no I/O and knows no clock, thread or engine. [`load()`] and
//! [`Saver`] move the bytes, by the engine that they are given and by no other way.
//!
//! ```text
//!   file head ──► HeadReader ──► Header ─┐
//!                                        ├─► Catalog { files, tensors in chunks } ──┐
//!   *.index.json ──► ShardIndex ─────────┘                                          │
//!                                                  Want: a tensor or a slice of it ─┴─► LoadPlan ──► regions, reads, views
//!
//!   TensorSpec list ──► WritePlan ──► per file: head bytes, offset of each tensor; index.json bytes
//!
//!   Checkpoint::open(engine, path) = heads by the engine ─► Catalog
//!   Checkpoint::load(engine, wants) = LoadPlan ─► regions ─► parts by the engine ─► Loaded
//!   Saver::save(path, tensors)  = Layout ─► files of a hidden directory, chunk by chunk ─► flush ─► rename
//! ```
//!
//! Invariants:
//! - A [`Header`] exists only if the whole file is accounted for: tensors cover the data section without hole or overlap,
//!   and the section ends where the file ends. No later stage checks again.
//! - Nothing is allocated because a file *claims* a length; memory follows bytes that really arrived ([`HeadReader`]).
//! - Every error is typed, names the tensor, shard or byte offset, and has a stable `code()`.
//!
//! Sources: safetensors README "Format" and `safetensors/src/tensor.rs` (version 0.8.0 of the PyPI package is what the
//! tests compare with); the layout of sharded checkpoints is that of `huggingface_hub` `serialization`.

#![forbid(unsafe_code)]

mod batches;
mod boxes;
mod cancel;
mod catalog;
mod checked;
mod checksums;
mod convert;
mod dcp;
mod diff;
mod dtype;
mod header;
mod header_json;
mod load;
mod load_plan;
mod meter;
mod open;
mod pattern;
mod pickle;
mod quote;
mod ranges;
mod read_head;
mod save;
mod scatter;
mod shard_index;
mod shards;
mod torch;
mod verify;
mod want;
mod write_plan;
mod zip;

pub use cancel::Cancel;
pub use catalog::{Catalog, CatalogBuilder, CatalogFile, Chunk, Format, Held, LayoutFault, Leaf, LeafValue, Tensor};
pub use checked::{Checks, Partial, ReadRange, Rest, Verification, Verify};
pub use checksums::{
    CHECKSUMS_FILE, CHECKSUMS_LEN_MAX_BYTES, CHUNK_LEN_BYTES, Checksums, ChecksumsError, FileChecksums, Seen, Verifier,
    crc32c,
};
pub use convert::Converted;
pub use dcp::{DcpError, dcp_names};
pub use diff::Difference;
pub use dtype::Dtype;
pub use header::{HEADER_LEN_MAX_BYTES, Header, HeaderError, HeaderSpan, LENGTH_LEN_BYTES, RANK_MAX, TensorInfo};
pub use load::{FileReport, Landed, LoadOptions, Loaded, LoadedTensor, RunsMoved, Way, load};
pub use load_plan::{
    Extent, Gather, LoadLimits, LoadPlan, LoadTotals, Place, PlanError, ReadPart, Region, Room, TensorView, Window,
};
pub use meter::Meter;
pub use open::Checkpoint;
pub use pattern::{PATTERN_LEN_MAX_BYTES, Pattern, PatternError};
pub use pickle::PickleError;
pub use read_head::{FIRST_STEP_LEN_BYTES, HeadReader, ReadStep, STEP_LEN_MAX_BYTES};
pub use save::{
    Bytes, Cleaned, Commit, Contents, DcpOptions, Entry, IfExists, Incremental, Keep, Layout, Moved, NewTensor,
    Observer, Part, PendingCheckpoint, Prepared, Progress, Rank, SaveError, SaveOptions, Saved, Saver, SaverOptions,
    Saving, Slice, Source, Staging, Steps, WhenBusy, clean, commit, save,
};
pub use shard_index::{INDEX_LEN_MAX_BYTES, IndexError, ShardIndex, check_shard_name};
pub use shards::{CatalogError, SHARD_COUNT_MAX, Shard};
pub use torch::TorchError;
pub use verify::{Mismatch, Verified};
pub use want::Want;
pub use write_plan::{FileLayout, LayoutError, LayoutOptions, PlacedTensor, TensorSpec, WritePlan};
pub use zip::ZipError;
