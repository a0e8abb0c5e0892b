//! Samples of MDS shards, as mosaicml-streaming writes them: `index.json` names the shards, each shard begins with the places of
//! its samples.
//!
//! Source: mosaicml/streaming `streaming/base/format/mds/writer.py`, `reader.py`, `base/format/reader.py` (index version 2).

use std::collections::VecDeque;

use serde::Deserialize;

use super::{Collector, Extent, FormatError, Scan, Wrong, shown};

/// Bytes of a place, and of the number of samples.
const WORD: u64 = 4;
/// Places that are read at once.
const BATCH: u64 = 64 << 10;

/// A column of the samples of a shard. Columns of a sample stand in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// How values are encoded: `bytes`, `int`, `ndarray:float32:2`. Not read here.
    pub encoding: String,
    /// Bytes of a value; `None` where each sample says it.
    pub len: Option<u64>,
}

/// A shard, as the index describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MdsShard {
    /// Its file, in the folder of the index.
    pub name: String,
    /// Bytes of the file.
    pub len: u64,
    /// How the file is compressed as a whole; then it is a block that must be decoded ([`crate::decode::mds_shard`]).
    pub compression: Option<MdsCompression>,
    /// Samples in it.
    pub samples: u64,
    /// Columns of each sample.
    pub columns: Vec<Column>,
}

/// How a shard is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MdsCompression {
    /// `gz`.
    Gzip,
    /// `zstd`.
    Zstd,
}

impl MdsCompression {
    /// By its name in an index, behind which a level may stand: `zstd:7`.
    fn of(name: &str) -> Option<Self> {
        match name.split(':').next() {
            Some("gz") => Some(Self::Gzip),
            Some("zstd") => Some(Self::Zstd),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Index {
    version: u64,
    shards: Vec<Shard>,
}

#[derive(Deserialize)]
struct Shard {
    format: String,
    version: u64,
    compression: Option<String>,
    raw_data: File,
    zip_data: Option<File>,
    samples: u64,
    column_names: Vec<String>,
    column_encodings: Vec<String>,
    column_sizes: Vec<Option<u64>>,
}

#[derive(Deserialize)]
struct File {
    basename: String,
    bytes: u64,
}

/// Reads an `index.json`.
///
/// # Errors
/// `Field` for what is no index; `Unsupported` for versions other than 2, shards that are not MDS, and those compressed by
/// `br`, `snappy` or `bz2`.
pub fn mds_index(json: &[u8]) -> Result<Vec<MdsShard>, FormatError> {
    let fail = |wrong| FormatError { offset: 0, wrong };
    let unsupported = |what, name| fail(Wrong::Unsupported { what, name });
    let index: Index =
        serde_json::from_slice(json).map_err(|_| fail(Wrong::Field { field: "the index of MDS shards" }))?;
    if index.version != 2 {
        return Err(unsupported("a version of the MDS index", index.version.to_string()));
    }
    let read = |shard: Shard| {
        if shard.format != "mds" || shard.version != 2 {
            return Err(unsupported(
                "a format of shards",
                shown(format!("{} {}", shard.format, shard.version).as_bytes()),
            ));
        }
        let (compression, file) = match (shard.compression, shard.zip_data) {
            (None, _) => (None, shard.raw_data),
            (Some(name), Some(file)) => match MdsCompression::of(&name) {
                Some(compression) => (Some(compression), file),
                None => {
                    return Err(unsupported(
                        "a compression of MDS shards",
                        shown(format!("{}, {name}", file.basename).as_bytes()),
                    ));
                }
            },
            (Some(_), None) => return Err(fail(Wrong::Field { field: "the compressed file of an MDS shard" })),
        };
        let name = file.basename;
        // A name is that of a file beside the index, and of no other.
        if name.is_empty() || name.starts_with('/') || name.split('/').any(|part| part == "..") {
            return Err(fail(Wrong::Field { field: "the name of an MDS shard" }));
        }
        let count = shard.column_names.len();
        if shard.column_encodings.len() != count || shard.column_sizes.len() != count {
            return Err(fail(Wrong::Field { field: "the columns of an MDS shard" }));
        }
        let parts = shard.column_names.into_iter().zip(shard.column_encodings).zip(shard.column_sizes);
        let columns = parts.map(|((name, encoding), len)| Column { name, encoding, len }).collect();
        Ok(MdsShard { name, len: file.bytes, compression, samples: shard.samples, columns })
    };
    index.shards.into_iter().map(read).collect()
}

impl MdsShard {
    /// Bytes at the head of each sample that say how long its columns are.
    pub fn head_len(&self) -> u64 {
        WORD * self.columns.iter().filter(|column| column.len.is_none()).count() as u64
    }

    /// Where the columns of a sample are, from the first [`head_len`](Self::head_len) of its bytes.
    ///
    /// # Errors
    /// `Field` if they do not fill the sample exactly.
    pub fn columns_of(&self, sample: Extent, head: &[u8]) -> Result<Vec<Extent>, FormatError> {
        let fail =
            || FormatError { offset: sample.offset, wrong: Wrong::Field { field: "the columns of an MDS sample" } };
        let mut lens = head.chunks_exact(4).filter_map(|word| word.first_chunk::<4>());
        let mut at = self.head_len();
        let mut columns = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let given = || lens.next().map(|len| u64::from(u32::from_le_bytes(*len)));
            let len = column.len.or_else(given).ok_or_else(fail)?;
            let end = at.checked_add(len).filter(|end| *end <= sample.len).ok_or_else(fail)?;
            columns.push(Extent { offset: sample.offset + at, len });
            at = end;
        }
        if at == sample.len { Ok(columns) } else { Err(fail()) }
    }
}

/// Walks the places at the head of a shard.
#[derive(Debug)]
pub struct MdsScan {
    bytes: Collector,
    /// What the index says.
    samples: u64,
    /// Places before the batch that is read; `None` until the number of samples is.
    done: Option<u64>,
    /// The last place of the batch before.
    last: Option<u64>,
    found: VecDeque<Extent>,
}

impl MdsScan {
    /// Begins at the start of a shard of so many bytes, which has so many samples by the index.
    ///
    /// # Errors
    /// `Cut` if it cannot hold their number.
    pub fn new(file_len: u64, samples: u64) -> Result<Self, FormatError> {
        let mut bytes = Collector::new(file_len);
        bytes.want(0, WORD, "the number of samples")?;
        Ok(Self { bytes, samples, done: None, last: None, found: VecDeque::new() })
    }

    /// Asks for the next batch of places. There is one more than there are samples.
    fn go_on(&mut self, done: u64) -> Result<(), FormatError> {
        self.done = Some(done);
        let left = self.samples + 1 - done;
        self.bytes.want(WORD + WORD * done, WORD * left.min(BATCH), "the places of samples")
    }

    fn number(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let here = bytes.first_chunk::<4>().map_or(0, |number| u64::from(u32::from_le_bytes(*number)));
        if here != self.samples {
            let wrong = Wrong::Differs { what: "the number of samples", here, index: self.samples };
            return Err(FormatError { offset: 0, wrong });
        }
        self.go_on(0)
    }

    fn places(&mut self, done: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let behind_head = WORD * (self.samples + 2);
        let mut number = done;
        for place in bytes.chunks_exact(4).filter_map(|place| place.first_chunk::<4>()) {
            let place = u64::from(u32::from_le_bytes(*place));
            let from = self.last.unwrap_or(behind_head);
            if place < from || place > self.bytes.file_len {
                let offset = WORD + WORD * number;
                return Err(FormatError { offset, wrong: Wrong::OutOfFile { what: "the place of sample", number } });
            }
            if let Some(offset) = self.last.replace(place) {
                self.found.push_back(Extent { offset, len: place - offset });
            }
            number += 1;
        }
        self.go_on(number)
    }
}

impl Scan for MdsScan {
    type Found = Extent;

    fn need(&self) -> Option<Extent> {
        self.bytes.need()
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let Some((_, bytes)) = self.bytes.push(bytes)? else { return Ok(()) };
        match self.done {
            None => self.number(&bytes),
            Some(done) => self.places(done, &bytes),
        }
    }

    fn next(&mut self) -> Option<Extent> {
        self.found.pop_front()
    }
}
