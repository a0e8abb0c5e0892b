//! Where samples lie in files that other software wrote.
//!
//! A [`Scan`] walks one file: it says which bytes it needs, is given them, and tells what it found. It does no I/O, so that
//! the same code reads local files, objects and archives inside archives, and a test can cut the bytes anywhere.
//!
//! ```text
//!   Scan::need() ─► caller reads ─► push(bytes) ─► next() … None ─► need() … None: the file is accounted for
//! ```
//!
//! Nothing is allocated because a file claims a length; what is kept at once is bounded by the limits named in each format.

mod binlog;
mod example;
mod line;
mod mds;
mod megatron;
mod npy;
mod npz;
mod parquet;
mod sidecar;
mod tar;
mod tfrecord;
mod thrift;
pub(crate) mod varint;
mod webdataset;

pub use binlog::{BINLOG_COLUMN, BinlogEvent, BinlogScan, Payload};
pub use example::{Feature, Values, example, feature_bytes};
pub use mds::{Column, MdsCompression, MdsScan, MdsShard, mds_index};
pub use megatron::{Shape, Token, TokenIndexScan};
pub use npy::{Array, Layout, NpyScan};
pub use npz::{NpzArray, NpzContent, NpzScan};
pub use parquet::{Codec, ColumnCoding, PageHeader, PageKind, ParquetRows, ParquetScan, Physical};
pub(crate) use parquet::{Hybrid, VALUES_MAX, bits};
pub use sidecar::{TfRecordIndexScan, WdsIndexScan};
pub use tar::{Member, TarScan};
pub use tfrecord::{Payloads, Record, TfRecordScan};
pub use webdataset::{Field, Grouping, Sample};

use std::collections::VecDeque;

/// Bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte, from the start of the file.
    pub offset: u64,
    /// How many.
    pub len: u64,
}

/// Walks one file. Calling order: all that [`next`](Self::next) has, then [`need`](Self::need), read, [`push`](Self::push).
pub trait Scan {
    /// What it finds.
    type Found;

    /// The next bytes to read, at least one and never past the end of the file; `None` when the walk is over.
    fn need(&self) -> Option<Extent>;

    /// Takes the bytes that the last `need` asked for, or a first part of them.
    ///
    /// # Errors
    /// What is wrong with the file, and where. The walk is over then.
    fn push(&mut self, bytes: &[u8]) -> Result<(), FormatError>;

    /// The next thing found.
    fn next(&mut self) -> Option<Self::Found>;

    /// The next part that is damaged but does not end the walk; the formats that know such parts say so. Damage elsewhere is
    /// an error of [`push`](Self::push). Whether a damaged part may be left out is the caller's to decide.
    fn damaged(&mut self) -> Option<Damaged> {
        None
    }
}

/// A part of a file that is damaged, while what follows it can be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// The part.
    pub extent: Extent,
    /// What is wrong with it.
    pub error: FormatError,
}

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wrong} at byte {offset}")]
pub struct FormatError {
    /// Where in the file it was noticed.
    pub offset: u64,
    /// What.
    pub wrong: Wrong,
}

/// Kinds of [`FormatError`]. Names in them are shown as text; bytes that are none are replaced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// The file ends before something that it announced.
    #[error("the file ends inside {what}: {missing} bytes are missing; it was cut or is still being written")]
    Cut {
        /// What is incomplete.
        what: &'static str,
        /// Bytes that are not there.
        missing: u64,
    },
    /// A read brought nothing although the file is longer: it became shorter meanwhile.
    #[error("a read of {what} brought no bytes; the file became shorter while it was read")]
    Shrank {
        /// What was read.
        what: &'static str,
    },
    /// A stored checksum is not that of the bytes.
    #[error(
        "the checksum of {what} is {stored:#x} in the file and {computed:#x} of its bytes; the file is damaged, or of another format"
    )]
    Checksum {
        /// What it is of.
        what: &'static str,
        /// In the file.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A field that cannot be read.
    #[error("{field} cannot be read")]
    Field {
        /// Its name in the format.
        field: &'static str,
    },
    /// A length beyond what this reader takes.
    #[error("{what} claims {len} bytes, and {max} is the most that is read")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// More of something than this reader takes.
    #[error("{what} are more than {max}, the most that is read")]
    TooMany {
        /// What.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// A part of the format that is not supported.
    #[error("{what} ({name}) is not supported; write the file without")]
    Unsupported {
        /// The part.
        what: &'static str,
        /// Where it was met.
        name: String,
    },
    /// An index points outside of the file that it is about.
    #[error(
        "{what} number {number} lies outside of its file; the index belongs to another file, or one of them was cut"
    )]
    OutOfFile {
        /// What the index is of.
        what: &'static str,
        /// Which of them.
        number: u64,
    },
    /// A file and its index say different things.
    #[error("{what} is {here} in the file and {index} in its index; they do not belong together, or one is damaged")]
    Differs {
        /// What differs.
        what: &'static str,
        /// In the file.
        here: u64,
        /// In the index.
        index: u64,
    },
    /// What is wrong with a zip archive.
    #[error(transparent)]
    Archive(sw_zip::Wrong),
    /// There is no column that samples are, or more than one.
    #[error("{asked}; name one column of: {columns}")]
    Column {
        /// What was asked for.
        asked: String,
        /// What there is.
        columns: String,
    },
    /// Two fields of one sample have one name.
    #[error("sample {key} has two fields {field}; each may come once")]
    TwoFields {
        /// The sample.
        key: String,
        /// The field.
        field: String,
    },
}

/// Bytes of a shape that the format gives: asked for, collected over short reads, then taken.
#[derive(Debug)]
struct Collector {
    file_len: u64,
    /// What is collected now.
    wanted: Option<(Extent, &'static str)>,
    have: Vec<u8>,
}

impl Collector {
    fn new(file_len: u64) -> Self {
        Self { file_len, wanted: None, have: Vec::new() }
    }

    /// Asks for `len` bytes, which are `what`.
    ///
    /// # Errors
    /// `Cut` if the file is too short for them.
    fn want(&mut self, offset: u64, len: u64, what: &'static str) -> Result<(), FormatError> {
        self.have.clear();
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.file_len) {
            self.wanted = None;
            let missing = len.saturating_sub(self.file_len.saturating_sub(offset));
            return Err(FormatError { offset, wrong: Wrong::Cut { what, missing } });
        }
        self.wanted = (len > 0).then_some((Extent { offset, len }, what));
        Ok(())
    }

    fn need(&self) -> Option<Extent> {
        let (wanted, _) = self.wanted?;
        let have = self.have.len() as u64;
        Some(Extent { offset: wanted.offset + have, len: wanted.len - have })
    }

    /// Asks for nothing more.
    fn stop(&mut self) {
        self.wanted = None;
    }

    /// Takes bytes; returns all that were wanted once they are there.
    fn push(&mut self, bytes: &[u8]) -> Result<Option<(u64, Vec<u8>)>, FormatError> {
        let Some((wanted, what)) = self.wanted else { return Ok(None) };
        if bytes.is_empty() {
            self.wanted = None;
            return Err(FormatError { offset: wanted.offset, wrong: Wrong::Shrank { what } });
        }
        let missing = usize::try_from(wanted.len).unwrap_or(usize::MAX) - self.have.len();
        self.have.extend_from_slice(&bytes[..bytes.len().min(missing)]);
        if (self.have.len() as u64) < wanted.len {
            return Ok(None);
        }
        self.wanted = None;
        Ok(Some((wanted.offset, std::mem::take(&mut self.have))))
    }
}

/// A name from a file for an error: as text, cut to what a line can show.
fn shown(name: &[u8]) -> String {
    const MOST: usize = 200;
    let text = String::from_utf8_lossy(&name[..name.len().min(MOST)]);
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Walks bytes in memory to the end.
///
/// # Errors
/// Of the format.
pub fn scan_slice<S: Scan>(scan: &mut S, file: &[u8]) -> Result<Vec<S::Found>, FormatError> {
    let mut found = VecDeque::new();
    loop {
        while let Some(next) = scan.next() {
            found.push_back(next);
        }
        let Some(need) = scan.need() else { return Ok(found.into()) };
        let from = usize::try_from(need.offset).unwrap_or(usize::MAX).min(file.len());
        let len = usize::try_from(need.len).unwrap_or(usize::MAX).min(file.len() - from);
        scan.push(&file[from..from + len])?;
    }
}
