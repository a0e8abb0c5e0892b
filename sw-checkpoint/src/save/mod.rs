//! Saves checkpoints: each appears whole or not at all, and the caller is held only while its tensors are copied.
//!
//! ```text
//!   Saver::save(target, contents, options)
//!     caller      ├─ begin ─ lay out ─┬ copy what is lent into slabs ┬─► Saving ───────────── wait / poll
//!     background                      └─ fill, CRC-32C, write, flush ┴───────► commit: checksums, rename
//!
//!   several ranks:   PendingCheckpoint::begin ─► join ─► Saver::prepare ─► Part ─► commit(parts)
//! ```
//!
//! - [`Saver`]: staging memory within a budget, and the thread that writes. [`Saving`]: a save that goes on.
//! - [`Layout`]: the format. [`Part`], [`commit()`]: what a rank has written, and the step that makes it a checkpoint.
//! - [`PendingCheckpoint`]: where files are made until then; [`clean`] removes what dead writers left.
//!
//! Invariants: a directory has the name of a checkpoint only if everything in it is durable; it never changes after that
//! (incremental saves share its files). Each file is written in chunks of 4 MiB from offset 0, and the checksum of each
//! chunk was taken of the memory that it was written from. No step holds more staging memory than the budget.
//!
//! User's view: `docs/saving.md`.

mod blob;
mod capture;
mod dcp;
mod layout;
mod part;
mod pending;
mod pickle;
mod pump;
mod saver;
mod slabs;
mod steps;
mod tensor;

pub use dcp::DcpOptions;
pub use layout::{Layout, Rank};
pub use part::{Commit, Entry, Part, commit};
pub use pending::{Cleaned, IfExists, PendingCheckpoint, clean};
pub use pump::Moved;
pub use saver::{
    Contents, Incremental, Observer, Prepared, Progress, SaveError, SaveOptions, Saved, Saver, SaverOptions, Saving,
    Staging, WhenBusy, save,
};
pub use steps::{Keep, Steps};
pub use tensor::{Bytes, NewTensor, Slice, Source};
