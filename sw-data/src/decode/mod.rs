//! Blocks to samples: what lies in a file compressed or encoded is read as a whole and decoded here.
//!
//! ```text
//!   Place { extent, row } ──► bytes of the extent ──► decode ──► Rows ──► the sample is one of them
//! ```
//!
//! Pure: no I/O, no threads. What a block decodes to is bounded by [`Limits`], and nothing is allocated because a block claims a
//! length: memory grows with what was really decoded.

mod codec;
mod deltas;
mod mds;
mod npz;
mod parquet;
mod values;

pub use mds::mds_shard;
pub use npz::{Npz, npz_array};
pub use parquet::parquet_rows;

use crate::{formats::ColumnCoding, samples::Format};

/// Decodes a block of an object: `coding` is what its index keeps of it, a [`ColumnCoding`] for Parquet, of which Milvus's binlogs are, and nothing for the others.
/// A block of an npz archive is a member with its own header before it ([`NpzArray::block`](crate::formats::NpzArray)); its array is
/// one row, its elements.
///
/// # Errors
/// What is wrong with the block; `Unsupported` for formats whose samples lie in the file as they are.
pub fn rows(format: Format, coding: &str, block: &[u8], limits: Limits) -> Result<Rows, DecodeError> {
    match format {
        Format::Parquet | Format::Milvus => {
            let coding: ColumnCoding =
                coding.parse().map_err(|_| DecodeError::Damaged { what: "the coding of a column" })?;
            parquet_rows(&coding, block, limits)
        }
        Format::Mds => mds_shard(block, limits),
        Format::Npz => npz::npz_rows(block, limits),
        Format::Raw | Format::Tar | Format::TfRecord | Format::Npy | Format::Tokens => {
            Err(DecodeError::Unsupported { what: "a block of a format that has none" })
        }
    }
}

/// Bounds of decoding one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes that a block may decode to. Missing values count as one. Memory is a few times that at most: a page that is
    /// no longer compressed, a dictionary, the rows.
    pub bytes: u64,
}

impl Default for Limits {
    /// 1 GiB: the size that writers of Parquet aim a whole row group at.
    fn default() -> Self {
        Self { bytes: 1 << 30 }
    }
}

/// What a block decodes to: items end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Rows {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of one; `None` if there is no such row.
    pub fn get(&self, row: usize) -> Option<&[u8]> {
        let end = *self.ends.get(row)?;
        let start = row.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.bytes.get(start..end)
    }

    /// Bytes of memory that they take.
    pub fn memory_len(&self) -> u64 {
        (self.bytes.capacity() + self.ends.capacity() * size_of::<usize>()) as u64
    }

    /// Of these rows.
    #[cfg(test)]
    pub(crate) fn of(rows: &[&[u8]]) -> Self {
        let mut made = Self::default();
        for row in rows {
            made.bytes.extend_from_slice(row);
            made.ends.push(made.bytes.len());
        }
        made.bytes.shrink_to_fit();
        made.ends.shrink_to_fit();
        made
    }

    /// Adds to the row that is being made.
    fn extend(&mut self, bytes: &[u8], limits: Limits) -> Result<(), DecodeError> {
        if (self.bytes.len() + bytes.len()) as u64 > limits.bytes {
            return Err(DecodeError::TooLong { max: limits.bytes });
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Ends the row that was made.
    fn end_row(&mut self, limits: Limits) -> Result<(), DecodeError> {
        // A row takes its place among the ends too, so that empty ones are bounded as well.
        if ((self.ends.len() + 1) * size_of::<usize>()) as u64 > limits.bytes {
            return Err(DecodeError::TooLong { max: limits.bytes });
        }
        self.ends.push(self.bytes.len());
        Ok(())
    }
}

/// Why a block cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// It is not what it should be.
    #[error("{what} cannot be decoded; the file is damaged, or changed since it was indexed")]
    Damaged {
        /// What.
        what: &'static str,
    },
    /// A checksum in the file is not that of the bytes.
    #[error(
        "the checksum of {what} is {stored:#010x} in the file and {computed:#010x} of its bytes; the file is damaged"
    )]
    Checksum {
        /// What it is of.
        what: &'static str,
        /// In the file.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// It decodes to more than the limit.
    #[error("a block decodes to more than {max} bytes; write smaller row groups or shards, or raise the limit")]
    TooLong {
        /// The limit.
        max: u64,
    },
    /// A part of the format that is not read.
    #[error("{what} is not supported; write the file without")]
    Unsupported {
        /// The part.
        what: &'static str,
    },
    /// The array inside is not one that can be used.
    #[error(transparent)]
    Format(#[from] crate::formats::FormatError),
}

/// Compares a CRC-32 (that of zlib).
fn check_crc(what: &'static str, bytes: &[u8], stored: u32) -> Result<(), DecodeError> {
    let computed = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, bytes);
    let computed = u32::try_from(computed).unwrap_or_default();
    if computed == stored { Ok(()) } else { Err(DecodeError::Checksum { what, stored, computed }) }
}
