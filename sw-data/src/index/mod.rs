//! One index over the samples of existing objects: where each is, what it is called, and whether it is still what it was.
//!
//! ```text
//!   URIs ─► objects ─► [scan][scan]… ─► in the order of the objects ─► batches ─► temporary file ─► rename
//!                       (threads)                                                                     │
//!   loader ─► Samples::locate ─► batch by arithmetic ─► words of the sample, by positioned reads ◄─────┘
//! ```
//!
//! The file is one of Arrow's IPC format, uncompressed, so that any Arrow library reads it: a row for each sample, and the table of
//! objects as the dictionary of column `object`. Every batch but the last has the same number of rows, so that no table of samples
//! is needed to find one. Nothing is mapped into memory and nothing is listed to use an index.

mod blocks;
mod build;
mod feed;
mod message;
mod milvus;
mod objects;
mod read;
mod rows;
mod scan;
mod schema;
mod sidecar;
mod sniff;
mod sources;
mod verify;
mod write;

pub use build::{BuildOptions, Built, Event, OnError, build, build_in_memory};
pub use feed::{Bytes, Fed, Feed, Want};
pub use objects::Held;
pub use read::{CACHE_BYTES, Index};
pub use scan::Checksums;
pub use sidecar::SideCars;
pub use sources::expand_braces;
pub use verify::{Finding, Verified, verify};

pub(crate) use write::{Growing, Sink};

use straightway::Uri;

/// Rows of each batch but the last: about 2 MiB without names. A batch is what is in memory while an index is written.
pub const BATCH_ROWS: usize = 64 << 10;
/// Most rows of a batch that are read.
const BATCH_ROWS_MAX: u64 = 1 << 24;

/// The folder of a file, without the slash at its end; nothing for what is no file.
fn folder_of(uri: &Uri) -> String {
    match uri {
        Uri::File(_) | Uri::Remote(_) => {
            let text = uri.to_string();
            text.rfind('/').map_or(String::new(), |slash| text[..slash].to_owned())
        }
        Uri::Nvme(_) | Uri::NvmeTcp(_) | Uri::Stripe { .. } | Uri::Part { .. } => String::new(),
    }
}

/// An address as an index of a folder keeps it: without the folder, so that both can be moved together.
fn kept_as<'a>(uri: &'a str, folder: &str) -> &'a str {
    let inside = uri.strip_prefix(folder).filter(|_| !folder.is_empty()).and_then(|rest| rest.strip_prefix('/'));
    inside.filter(|rest| !rest.is_empty()).unwrap_or(uri)
}
