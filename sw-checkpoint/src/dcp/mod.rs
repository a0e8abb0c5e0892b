//! Directories of `torch.distributed.checkpoint` (DCP): which tensors `.metadata` describes, and where their chunks are.
//!
//! ```text
//!   .metadata ──► restricted unpickler ──► tensors with chunks ─┐
//!                                     └──► (name, offset) ──────┴─► blob = file, offset, length
//!   __0_0.distcp   │ torch.save │ torch.save │ …                    blob ──► where the data begins in it
//! ```
//!
//! A blob is a whole file of `torch.save`, with one tensor or one other object in it. What it says of itself must agree with
//! `.metadata`. How many ranks wrote the checkpoint does not matter.
//!
//! Source: `torch/distributed/checkpoint/{metadata,filesystem}.py`, `PyTorch` 2.0 to 2.15.

mod metadata;

use thiserror::Error;

use crate::catalog::LayoutFault;
use crate::dtype::Dtype;
use crate::pickle::PickleError;
use crate::quote::Quoted;
use crate::ranges::{Failed, Ranges};
use crate::torch::{Saved, TorchError};

pub(crate) use metadata::Metadata;

/// Name of the file that makes a directory a checkpoint.
pub(crate) const METADATA_NAME: &str = ".metadata";

/// What is read at both ends of a blob: its pickle, and the directory of its container. Both take about 1 KiB.
pub(crate) const BLOB_END_BYTES: u64 = 4096;

/// Why a directory is not a DCP checkpoint that can be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DcpError {
    /// `.metadata` is not readable.
    #[error("{METADATA_NAME}: {0}")]
    Metadata(#[from] PickleError),
    /// Names or tensors.
    #[error(transparent)]
    Layout(#[from] LayoutFault),
    /// A file name that leaves the directory.
    #[error("{METADATA_NAME} names the file {}, which is no plain path below its directory; it was not opened", Quoted(.file))]
    FileName {
        /// The name.
        file: String,
    },
    /// A blob reaches past its file.
    #[error("{} needs bytes {file_offset} to {end} of {}, which has {file_len_bytes}; the copy is incomplete, so fetch it again", Quoted(.item), Quoted(.file))]
    PastEnd {
        /// Whose blob.
        item: String,
        /// The file.
        file: String,
        /// First byte.
        file_offset: u64,
        /// One past the last byte; saturated.
        end: u64,
        /// Length of the file.
        file_len_bytes: u64,
    },
    /// A blob is not a file of `torch.save`.
    #[error("the chunk of {} at byte {file_offset} of {}: {source}", Quoted(.item), Quoted(.file))]
    Blob {
        /// Whose blob.
        item: String,
        /// The file.
        file: String,
        /// First byte.
        file_offset: u64,
        /// What is wrong with it.
        source: Box<TorchError>,
    },
    /// A blob holds something else than `.metadata` says.
    #[error("the chunk of {} at byte {file_offset} of {} holds {found}, {METADATA_NAME} says {expected}; files of two checkpoints are mixed, or one is damaged", Quoted(.item), Quoted(.file))]
    Disagrees {
        /// Whose blob.
        item: String,
        /// The file.
        file: String,
        /// First byte.
        file_offset: u64,
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
}

impl DcpError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Metadata(cause) => cause.code(),
            Self::Layout(cause) => cause.code(),
            Self::FileName { .. } => "dcp-file-name",
            Self::PastEnd { .. } => "dcp-past-end",
            Self::Blob { source, .. } => source.code(),
            Self::Disagrees { .. } => "dcp-disagrees",
        }
    }
}

/// Names of the tensors and of the other items that the bytes of a `.metadata` file describe.
///
/// # Errors
/// `Metadata`, `FileName`.
pub fn dcp_names(metadata: &[u8]) -> Result<(Vec<String>, Vec<String>), DcpError> {
    let Metadata { tensors, objects, .. } = Metadata::read(metadata)?;
    let tensors = tensors.into_iter().map(|tensor| tensor.name).collect();
    Ok((tensors, objects.into_iter().map(|(name, _)| name).collect()))
}

/// A tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DcpTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    /// Offsets, sizes, and the position of the blob in [`Metadata::blobs`] if one is stored.
    pub chunks: Vec<(Vec<u64>, Vec<u64>, Option<usize>)>,
}

/// A range of a file that holds one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    /// Position in [`Metadata::files`].
    pub file: usize,
    pub file_offset: u64,
    pub len_bytes: u64,
    /// Transforms that the item went through, such as `zstd`.
    pub transforms: bool,
}

/// Where the data of a blob begins, counted from the blob, and what is wrong if that is nowhere.
pub(crate) type Placed = Result<u64, &'static str>;

/// Reads a blob, which must hold one tensor of that type and shape.
pub(crate) fn place<R: Ranges>(
    blob: &mut R,
    dtype: Dtype,
    shape: &[u64],
) -> Result<Result<Placed, String>, Failed<R::Error, TorchError>> {
    let saved = Saved::read(blob, BLOB_END_BYTES)?;
    let [tensor] = saved.state.tensors.as_slice() else {
        return Ok(Err(format!("{} tensors", saved.state.tensors.len())));
    };
    if tensor.dtype != dtype || tensor.shape != shape || !tensor.name.is_empty() {
        return Ok(Err(format!("{} {:?}", tensor.dtype, tensor.shape)));
    }
    saved.place(blob, tensor).map(Ok)
}
