//! Files of `torch.save`: which tensors a pickle describes, and where their bytes are in the zip container.
//!
//! ```text
//!   zip ──► data.pkl ──► restricted unpickler ──► tree ──► names, joined by dots: tensors and other leaves
//!       └─► data/KEY ──► offset of the storage ───────────► tensor = storage + offset, if its strides are dense
//! ```
//!
//! Two tensors may be views of one storage: their chunks overlap in the file, and a load reads the bytes once. A view that
//! is not dense and row-major (a transposed one, say) is listed and refused: its bytes are not ranges.
//!
//! Source: `torch/serialization.py` (`_save`), `torch/_utils.py` (`_rebuild_*`), of `PyTorch` 2.0 to 2.15.

mod globals;
mod tree;

use thiserror::Error;

use crate::catalog::{Catalog, CatalogBuilder, CatalogFile, Format, LayoutFault};
use crate::pickle::{PICKLE_LEN_MAX_BYTES, Pickle, PickleError};
use crate::quote::Quoted;
use crate::ranges::{Failed, Ranges, read_in_pieces};
use crate::zip::{Archive, TAIL_LEN_BYTES, ZipError};

pub(crate) use globals::dtype_of;
pub(crate) use tree::{RawTensor, State};

/// First bytes of a zip file.
pub(crate) const ZIP_MAGIC: [u8; 4] = *b"PK\x03\x04";

/// First bytes of the format before `PyTorch` 1.6: a pickle of a magic number.
pub(crate) const LEGACY_MAGIC: [u8; 8] = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46];

/// Why a file is not one of `torch.save` that can be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TorchError {
    /// The container.
    #[error(transparent)]
    Zip(#[from] ZipError),
    /// The pickle.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// Names or tensors.
    #[error(transparent)]
    Layout(#[from] LayoutFault),
    /// The container has no `data.pkl`.
    #[error("the zip file has no data.pkl below one directory; it was not written by torch.save")]
    NoPickle,
    /// The file of `torch.save` before version 1.6.
    #[error("this is the format of torch.save before version 1.6; load it with torch and save it again")]
    Legacy,
    /// Numbers of the other byte order.
    #[error("the tensors were written in {} byte order; write the file again on a little-endian machine", Quoted(.order))]
    ByteOrder {
        /// What the file says.
        order: String,
    },
    /// The storage of a tensor is not in the container.
    #[error("tensor {} needs the storage data/{}, which is not in the file; the file is damaged", Quoted(.tensor), .key.escape_debug())]
    NoStorage {
        /// The tensor.
        tensor: String,
        /// Key of the storage.
        key: String,
    },
    /// A storage has another length than the pickle says, or a tensor reaches past its storage.
    #[error("tensor {} does not fit its storage of {have_len_bytes} bytes, it needs {need_len_bytes}; the file is damaged", Quoted(.tensor))]
    StorageLength {
        /// The tensor.
        tensor: String,
        /// Bytes of the storage in the container.
        have_len_bytes: u64,
        /// Bytes that the pickle says or the tensor needs; saturated.
        need_len_bytes: u64,
    },
}

impl TorchError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Zip(cause) => cause.code(),
            Self::Pickle(cause) => cause.code(),
            Self::Layout(cause) => cause.code(),
            Self::NoPickle => "torch-no-pickle",
            Self::Legacy => "torch-legacy",
            Self::ByteOrder { .. } => "torch-byte-order",
            Self::NoStorage { .. } => "torch-no-storage",
            Self::StorageLength { .. } => "torch-storage-length",
        }
    }
}

type Fault<R> = Failed<<R as Ranges>::Error, TorchError>;

/// A file of `torch.save`, its tensors described but not placed.
#[derive(Debug)]
pub(crate) struct Saved {
    archive: Archive,
    /// The one directory of the container, with its slash.
    root: String,
    pub state: State,
}

impl Saved {
    /// Reads container and pickle; `tail_len_bytes` as for [`Archive::read`].
    pub(crate) fn read<R: Ranges>(from: &mut R, tail_len_bytes: u64) -> Result<Self, Fault<R>> {
        let archive = Archive::read(from, tail_len_bytes).map_err(widen)?;
        let (root, entry) = archive.rooted("data.pkl").ok_or(TorchError::NoPickle)?;
        let (root, entry) = (root.to_owned(), entry.clone());
        if entry.len_bytes > PICKLE_LEN_MAX_BYTES {
            return Err(TorchError::from(PickleError::TooLong { len_bytes: entry.len_bytes }).into());
        }
        if let Some(order) = archive.get(&format!("{root}byteorder")) {
            let offset = order.data_offset(from).map_err(widen)?;
            let text = from.read(offset, order.len_bytes.min(16)).map_err(Failed::Read)?;
            if text != b"little" {
                return Err(TorchError::ByteOrder { order: String::from_utf8_lossy(&text).into_owned() }.into());
            }
        }
        let offset = entry.data_offset(from).map_err(widen)?;
        let bytes = read_in_pieces(from, offset, entry.len_bytes).map_err(Failed::Read)?;
        let pickle = Pickle::read(&bytes, globals::allowed).map_err(TorchError::from)?;
        let state = State::of(&pickle).map_err(TorchError::from)?;
        Ok(Self { archive, root, state })
    }

    /// Where the bytes of a tensor begin; `Err` in the inner result if they are no range.
    pub(crate) fn place<R: Ranges>(
        &self,
        from: &mut R,
        tensor: &RawTensor,
    ) -> Result<Result<u64, &'static str>, Fault<R>> {
        let name = || tensor.name.clone();
        let size = || LayoutFault::Size { tensor: name(), dtype: tensor.dtype, shape: tensor.shape.clone() };
        let len_bytes = tensor.dtype.len_bytes(&tensor.shape).map_err(|_| TorchError::from(size()))?;
        if !tensor.is_dense() {
            return Ok(Err("it is a view that is not contiguous; save tensor.contiguous() instead"));
        }
        let entry = self.archive.get(&format!("{}data/{}", self.root, tensor.storage));
        let Some(entry) = entry else {
            return Err(TorchError::NoStorage { tensor: name(), key: tensor.storage.clone() }.into());
        };
        let skip = tensor.storage_offset.checked_mul(tensor.dtype.bits() / 8);
        let end = skip.and_then(|skip| skip.checked_add(len_bytes));
        let fits = end.is_some_and(|end| end <= entry.len_bytes) && tensor.storage_len_bytes == entry.len_bytes;
        let (Some(skip), true) = (skip, fits || len_bytes == 0) else {
            return Err(TorchError::StorageLength {
                tensor: name(),
                have_len_bytes: entry.len_bytes,
                need_len_bytes: end.unwrap_or(u64::MAX).max(tensor.storage_len_bytes),
            }
            .into());
        };
        let skip = if len_bytes == 0 { 0 } else { skip };
        Ok(Ok(entry.data_offset(from).map_err(widen)? + skip))
    }
}

/// The catalog of a file of `torch.save`.
pub(crate) fn catalog<R: Ranges>(name: String, from: &mut R) -> Result<Catalog, Fault<R>> {
    let saved = Saved::read(from, TAIL_LEN_BYTES)?;
    let mut builder = CatalogBuilder::new(Format::Torch, vec![CatalogFile::new(name, from.len_bytes())]);
    builder.writer("torch.save");
    for tensor in &saved.state.tensors {
        let (name, shape): (Box<str>, Box<[u64]>) = (tensor.name.as_str().into(), tensor.shape.as_slice().into());
        let added = match saved.place(from, tensor)? {
            Ok(offset) => builder.whole(name, tensor.dtype, shape, (0, offset)),
            Err(reason) => builder.refused(name, tensor.dtype, shape, reason),
        };
        added.map_err(TorchError::from)?;
    }
    for (name, value) in saved.state.leaves {
        builder.leaf(name, value);
    }
    Ok(builder.finish().map_err(TorchError::from)?)
}

impl Catalog {
    /// The catalog of a file of `torch.save` whose bytes are in memory.
    ///
    /// # Errors
    /// Every [`TorchError`].
    pub fn of_torch_bytes(name: String, bytes: &[u8]) -> Result<Self, TorchError> {
        let mut bytes = bytes;
        catalog(name, &mut bytes).map_err(|failed| match failed {
            Failed::Read(never) => match never {},
            Failed::Format(fault) => fault,
        })
    }
}

/// A checksum in a container: of which entry, its first byte, its length, its CRC-32.
pub(crate) type Checksum = (String, u64, u64, u32);

/// The checksums of everything in a container; none if its writer made none (`set_crc32_options(False)` stores zeros).
pub(crate) fn checksums<R: Ranges>(from: &mut R, tail_len_bytes: u64) -> Result<Vec<Checksum>, Fault<R>> {
    let archive = Archive::read(from, tail_len_bytes).map_err(widen)?;
    if archive.entries().iter().all(|entry| entry.crc32 == 0) {
        return Ok(Vec::new());
    }
    let one = |entry: &crate::zip::Entry| {
        let offset = entry.data_offset(from).map_err(widen)?;
        Ok((entry.name.clone(), offset, entry.len_bytes, entry.crc32))
    };
    archive.entries().iter().map(one).collect()
}

/// A fault of the container as one of the file.
fn widen<E>(failed: Failed<E, ZipError>) -> Failed<E, TorchError> {
    match failed {
        Failed::Read(error) => Failed::Read(error),
        Failed::Format(fault) => Failed::Format(fault.into()),
    }
}
