//! Checksums that lie beside the data: one for each chunk of each file of a checkpoint.
//!
//! ```text
//!   straightway.checksums.json
//!   { "format": "straightway-checksums", "version": 1, "chunk_bytes": 4194304,
//!     "files": { "model.safetensors": { "bytes": 9000000, "crc32c": "1a2b3c4d…", "crc64nvme": "…" } } }
//! ```
//!
//! A chunk is `chunk_bytes` of the file, counted from its first byte; the last one is shorter. The values stand one after
//! the other in hex, eight digits for CRC-32C and sixteen for CRC-64/NVME, whose list is there only if the writer made it
//! (incremental saves compare both). Why a file of its own: decision 0011.
//!
//! Reading verifies with a [`Verifier`] for each file: it is given the checksums of the ranges that were read, in any order,
//! and compares each chunk as soon as all of it was seen.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use straightway::checksum::Algorithm;
use thiserror::Error;

use crate::quote::Quoted;

/// Name of the file in the directory of a checkpoint.
pub const CHECKSUMS_FILE: &str = "straightway.checksums.json";

/// Largest file of checksums that is read: enough for 8 TiB in chunks of 4 MiB with both checksums.
pub const CHECKSUMS_LEN_MAX_BYTES: u64 = 64 << 20;

/// Chunk of the files that we write, in bytes.
pub const CHUNK_LEN_BYTES: u64 = 4 << 20;

/// Chunks that a reader accepts, in bytes.
const CHUNK_MIN_BYTES: u64 = 4096;
const CHUNK_MAX_BYTES: u64 = 1 << 30;

const FORMAT: &str = "straightway-checksums";
const VERSION: u32 = 1;

/// Why a file of checksums is of no use, or why data does not agree with it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChecksumsError {
    /// Not JSON of the right shape.
    #[error("not a file of checksums: {0}; save the checkpoint again or remove the file")]
    Text(serde_json::Error),
    /// Another format, or a version that this reader does not know.
    #[error("format {} version {version} is not known; it reads {FORMAT} version {VERSION}", Quoted(.format))]
    Format {
        /// As the file says.
        format: String,
        /// As the file says.
        version: u32,
    },
    /// A chunk size that is no power of two in range.
    #[error("chunks of {chunk_bytes} bytes are not a power of two from {CHUNK_MIN_BYTES} to {CHUNK_MAX_BYTES}")]
    Chunk {
        /// As the file says.
        chunk_bytes: u64,
    },
    /// The list of a file is no hex, or has not one value for each chunk.
    #[error("the {what} list of {} does not have one value for each of its {chunks} chunks", Quoted(.file))]
    List {
        /// The file.
        file: String,
        /// Which checksum.
        what: &'static str,
        /// Chunks of the file.
        chunks: u64,
    },
    /// The file has another length than its checksums say.
    #[error("{} has {have} bytes, its checksums are for {want}; the file was cut or changed after it was saved", Quoted(.file))]
    Length {
        /// The file.
        file: String,
        /// Bytes that it has.
        have: u64,
        /// Bytes that it had.
        want: u64,
    },
    /// Bytes that are not those that were saved.
    #[error("bytes {offset}+{len} of {} have checksum {have:08x}, saved was {want:08x}; restore the file from another copy", Quoted(.file))]
    Mismatch {
        /// The file.
        file: String,
        /// First byte of the chunk.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// As read.
        have: u32,
        /// As saved.
        want: u32,
    },
}

impl ChecksumsError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Text(_) => "checksums-text",
            Self::Format { .. } => "checksums-format",
            Self::Chunk { .. } => "checksums-chunk",
            Self::List { .. } => "checksums-list",
            Self::Length { .. } => "checksums-length",
            Self::Mismatch { .. } => "checksums-mismatch",
        }
    }

    /// Whether the data is wrong, and not the file of checksums.
    #[must_use]
    pub const fn is_about_data(&self) -> bool {
        matches!(self, Self::Length { .. } | Self::Mismatch { .. })
    }
}

/// The checksums of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChecksums {
    /// Length of the file in bytes.
    pub len_bytes: u64,
    /// CRC-32C of each chunk.
    pub crc32c: Vec<u32>,
    /// CRC-64/NVME of each chunk, where the writer made them.
    pub crc64nvme: Option<Vec<u64>>,
}

impl FileChecksums {
    /// Whether both checksums of chunk `index` are those of `other`, as they are if nothing has changed.
    pub(crate) fn agrees(&self, other: &Self, index: usize) -> bool {
        let crc64 = |sums: &Self| sums.crc64nvme.as_ref().and_then(|list| list.get(index).copied());
        let both = |sums: &Self| sums.crc32c.get(index).copied().zip(crc64(sums));
        both(self).is_some() && both(self) == both(other)
    }
}

/// The checksums of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksums {
    /// Bytes of a chunk: a power of two.
    pub chunk_bytes: u64,
    /// By name of the file in the checkpoint's directory.
    pub files: BTreeMap<String, FileChecksums>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: String,
    version: u32,
    chunk_bytes: u64,
    files: BTreeMap<String, FileText>,
}

/// One file as it stands in the text, and in what ranks send each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileText {
    bytes: u64,
    crc32c: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc64nvme: Option<String>,
}

impl FileText {
    pub(crate) fn of(file: &FileChecksums) -> Self {
        Self {
            bytes: file.len_bytes,
            crc32c: file.crc32c.iter().map(|value| format!("{value:08x}")).collect(),
            crc64nvme: file.crc64nvme.as_ref().map(|list| list.iter().map(|value| format!("{value:016x}")).collect()),
        }
    }

    /// # Errors
    /// `List`.
    pub(crate) fn read(&self, name: &str, chunk_bytes: u64) -> Result<FileChecksums, ChecksumsError> {
        let chunks = self.bytes.div_ceil(chunk_bytes);
        let list = |what: &'static str, text: &str, digits: usize| {
            let values = parse_hex(text, digits).filter(|values| values.len() as u64 == chunks);
            values.ok_or_else(|| ChecksumsError::List { file: name.to_owned(), what, chunks })
        };
        let crc32c = list("crc32c", &self.crc32c, 8)?.into_iter().filter_map(|value| u32::try_from(value).ok());
        let crc64nvme = self.crc64nvme.as_ref().map(|text| list("crc64nvme", text, 16)).transpose()?;
        Ok(FileChecksums { len_bytes: self.bytes, crc32c: crc32c.collect(), crc64nvme })
    }
}

/// Values of `digits` hex digits each.
fn parse_hex(text: &str, digits: usize) -> Option<Vec<u64>> {
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(digits) || !bytes.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let value = |word: &[u8]| u64::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok();
    bytes.chunks(digits).map(value).collect()
}

impl Default for Checksums {
    fn default() -> Self {
        Self { chunk_bytes: CHUNK_LEN_BYTES, files: BTreeMap::new() }
    }
}

impl Checksums {
    /// Reads the text of a file of checksums. Memory follows the text, nothing is believed beyond it.
    ///
    /// # Errors
    /// Every [`ChecksumsError`] that is not about data.
    pub fn parse(text: &[u8]) -> Result<Self, ChecksumsError> {
        let Text { format, version, chunk_bytes, files } =
            serde_json::from_slice(text).map_err(ChecksumsError::Text)?;
        if format != FORMAT || version != VERSION {
            return Err(ChecksumsError::Format { format, version });
        }
        if !chunk_bytes.is_power_of_two() || !(CHUNK_MIN_BYTES..=CHUNK_MAX_BYTES).contains(&chunk_bytes) {
            return Err(ChecksumsError::Chunk { chunk_bytes });
        }
        let files = files.into_iter().map(|(name, file)| {
            let read = file.read(&name, chunk_bytes)?;
            Ok((name, read))
        });
        Ok(Self { chunk_bytes, files: files.collect::<Result<_, ChecksumsError>>()? })
    }

    /// The text of the file.
    #[must_use]
    pub fn to_text(&self) -> Vec<u8> {
        let files = self.files.iter().map(|(name, file)| (name.clone(), FileText::of(file))).collect();
        let text = Text { format: FORMAT.to_owned(), version: VERSION, chunk_bytes: self.chunk_bytes, files };
        // A map with string keys and no foreign types always becomes JSON.
        let mut text = serde_json::to_vec_pretty(&text).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// What compares the file `name` of `len_bytes` with its checksums; `None` if there are none for it.
    ///
    /// # Errors
    /// `Length`.
    pub fn verifier(&self, name: &str, len_bytes: u64) -> Result<Option<Verifier>, ChecksumsError> {
        let Some(file) = self.files.get(name) else { return Ok(None) };
        if file.len_bytes != len_bytes {
            return Err(ChecksumsError::Length { file: name.to_owned(), have: len_bytes, want: file.len_bytes });
        }
        Ok(Some(Verifier {
            name: name.to_owned(),
            len_bytes,
            crc32c: file.crc32c.clone(),
            chunk_bytes: self.chunk_bytes,
            partial: BTreeMap::new(),
            compared: BTreeSet::new(),
        }))
    }
}

/// Compares one file, range by range, with its checksums.
///
/// Ranges come in any order; none may reach over the boundary of a chunk. Bytes that are given twice are compared once. A
/// chunk of which a part was never given is not compared: [`Verifier::rests`] tells what it lacks.
#[derive(Debug)]
pub struct Verifier {
    name: String,
    len_bytes: u64,
    /// Of each chunk: a copy, 4 bytes for each chunk.
    crc32c: Vec<u32>,
    chunk_bytes: u64,
    /// By start: length and CRC-32C of what was seen of chunks that are not complete. Neighbours are joined.
    partial: BTreeMap<u64, (u64, u32)>,
    /// Numbers of the chunks that were compared.
    compared: BTreeSet<u64>,
}

/// A range that was seen, inside one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// CRC-32C of its bytes.
    pub crc32c: u32,
}

impl Verifier {
    /// Bytes of a chunk: readers cut their ranges at its multiples.
    #[must_use]
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// Bytes in the chunks that were compared.
    #[must_use]
    pub fn verified_bytes(&self) -> u64 {
        self.compared.iter().map(|&chunk| self.chunk(chunk).1).sum()
    }

    /// Bytes that were given and wait for the rest of their chunk.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.partial.values().map(|(len, _)| len).sum()
    }

    /// First byte and length of a chunk.
    fn chunk(&self, number: u64) -> (u64, u64) {
        let start = number * self.chunk_bytes;
        (start, self.chunk_bytes.min(self.len_bytes.saturating_sub(start)))
    }

    /// What must be given so that chunks of which a part was given are compared: ranges inside chunks, in order. `worth` is
    /// asked for each chunk, with the bytes that were seen of it and those that it lacks.
    pub fn rests(&mut self, worth: impl Fn(u64, u64) -> bool) -> Vec<(u64, u64)> {
        let mut chunks: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        for (&at, &(len, _)) in &self.partial {
            chunks.entry(at / self.chunk_bytes).or_default().push((at, len));
        }
        let mut rests = Vec::new();
        for (number, seen) in chunks {
            let (start, whole) = self.chunk(number);
            let overlap = seen.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0);
            let mut lacks = Vec::new();
            let mut at = start;
            // What overlaps cannot be joined: the chunk is read again as a whole.
            for &(from, len) in if overlap { &[] } else { seen.as_slice() } {
                lacks.extend((from > at).then_some((at, from - at)));
                at = from + len;
            }
            lacks.extend((start + whole > at).then_some((at, start + whole - at)));
            let sum = |ranges: &[(u64, u64)]| ranges.iter().map(|(_, len)| len).sum::<u64>();
            if worth(sum(&seen), sum(&lacks)) {
                if overlap {
                    self.partial.retain(|at, _| at / self.chunk_bytes != number);
                }
                rests.extend(lacks);
            }
        }
        rests
    }

    /// Whether a range lies inside one chunk of the file and has bytes.
    #[must_use]
    pub fn has(&self, seen: &Seen) -> bool {
        let number = seen.offset / self.chunk_bytes;
        let (start, whole) = self.chunk(number);
        let end = (seen.offset - start).checked_add(seen.len_bytes);
        seen.len_bytes > 0 && number < self.crc32c.len() as u64 && end.is_some_and(|end| end <= whole)
    }

    /// Takes out what was given of chunks that were not compared: another verifier of the file goes on with it.
    pub fn take_seen(&mut self) -> Vec<Seen> {
        let seen = |(offset, (len_bytes, crc32c))| Seen { offset, len_bytes, crc32c };
        std::mem::take(&mut self.partial).into_iter().map(seen).collect()
    }

    /// Takes the CRC-32C of `len` bytes at `offset` of the file.
    ///
    /// # Errors
    /// `Mismatch`, if that completes a chunk whose bytes are wrong.
    pub fn add(&mut self, offset: u64, len: u64, crc32c: u32) -> Result<(), ChecksumsError> {
        let chunk = offset / self.chunk_bytes;
        let (start, whole) = self.chunk(chunk);
        debug_assert!(len <= whole && offset - start <= whole - len, "a range stays inside its chunk");
        let (mut at, mut length, mut value) = (offset, len, crc32c);
        if let Some((&before, &(before_len, before_value))) = self.partial.range(start..offset).next_back()
            && before + before_len == offset
        {
            self.partial.remove(&before);
            (at, value) = (before, combine(before_value, value, length));
            length += before_len;
        }
        let after = at + length;
        // What begins where this chunk ends is of the next one.
        if after < start + whole
            && let Some((after_len, after_value)) = self.partial.remove(&after)
        {
            value = combine(value, after_value, after_len);
            length += after_len;
        }
        if length < whole {
            self.partial.insert(at, (length, value));
            return Ok(());
        }
        let want = usize::try_from(chunk).ok().and_then(|chunk| self.crc32c.get(chunk)).copied();
        match want {
            Some(want) if want != value => {
                let file = self.name.clone();
                Err(ChecksumsError::Mismatch { file, offset: start, len: whole, have: value, want })
            }
            _ => {
                self.compared.insert(chunk);
                Ok(())
            }
        }
    }
}

fn combine(a: u32, b: u32, b_len: u64) -> u32 {
    low(Algorithm::Crc32c.combine(u64::from(a), u64::from(b), b_len))
}

/// CRC-32C of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    low(Algorithm::Crc32c.of(bytes))
}

/// The value of a CRC-32C, which has 32 bits.
pub(crate) fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(data: &[u8], chunk_bytes: u64) -> Checksums {
        let crc32c = data.chunks(usize::try_from(chunk_bytes).unwrap()).map(crc32c).collect();
        let file = FileChecksums { len_bytes: data.len() as u64, crc32c, crc64nvme: None };
        Checksums { chunk_bytes, files: BTreeMap::from([("a \"b\"".to_owned(), file)]) }
    }

    fn data() -> Vec<u8> {
        (0..10_000_u32).map(|at| (at * 7 + at / 255).to_le_bytes()[0]).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut sums = of(&data(), 4096);
        assert_eq!(Checksums::parse(&sums.to_text()).unwrap(), sums);
        sums.files.values_mut().for_each(|file| file.crc64nvme = Some(vec![u64::MAX, 0, 7]));
        assert_eq!(Checksums::parse(&sums.to_text()).unwrap(), sums);
        let none = Checksums::default();
        assert_eq!(Checksums::parse(&none.to_text()).unwrap(), none);
    }

    #[test]
    fn ranges_in_any_order_are_compared_chunk_by_chunk() {
        let data = data();
        let sums = of(&data, 4096);
        let cuts = [0, 1, 100, 4096, 5000, 8192, 9999, 10_000];
        let mut ranges: Vec<_> = cuts.windows(2).map(|pair| (pair[0], pair[1])).collect();
        for _ in 0..ranges.len() {
            ranges.rotate_left(3);
            ranges.swap(0, 5);
            let mut verifier = sums.verifier("a \"b\"", 10_000).unwrap().unwrap();
            for &(from, to) in &ranges {
                verifier.add(from as u64, (to - from) as u64, crc32c(&data[from..to])).unwrap();
            }
            assert_eq!(verifier.verified_bytes(), 10_000);
        }
    }

    #[test]
    fn a_changed_byte_is_told_with_its_chunk_and_a_missing_range_is_not_verified() {
        let mut data = data();
        let sums = of(&data, 4096);
        data[5000] ^= 1;
        let mut verifier = sums.verifier("a \"b\"", 10_000).unwrap().unwrap();
        verifier.add(0, 4096, crc32c(&data[..4096])).unwrap();
        verifier.add(4096, 904, crc32c(&data[4096..5000])).unwrap();
        let error = verifier.add(5000, 3192, crc32c(&data[5000..8192])).unwrap_err();
        assert!(matches!(error, ChecksumsError::Mismatch { offset: 4096, len: 4096, .. }), "{error}");
        assert!(error.is_about_data());
        verifier.add(8192, 1, crc32c(&data[8192..8193])).unwrap();
        assert_eq!((verifier.verified_bytes(), verifier.waiting_bytes()), (4096, 1));
        assert!(matches!(sums.verifier("a \"b\"", 9999), Err(ChecksumsError::Length { have: 9999, .. })));
        assert!(sums.verifier("other", 1).unwrap().is_none());
    }

    #[test]
    fn what_chunks_lack_is_told_and_completes_them() {
        let data = data();
        let sums = of(&data, 4096);
        let mut verifier = sums.verifier("a \"b\"", 10_000).unwrap().unwrap();
        let give = |verifier: &mut Verifier, from: u64, len: u64| {
            let (from_at, to) = (usize::try_from(from).unwrap(), usize::try_from(from + len).unwrap());
            verifier.add(from, len, crc32c(&data[from_at..to])).unwrap();
        };
        give(&mut verifier, 100, 50);
        give(&mut verifier, 200, 3896);
        // Two that overlap: the whole chunk is asked for again.
        give(&mut verifier, 4096, 1000);
        give(&mut verifier, 4100, 2000);
        assert_eq!(verifier.rests(|_, lacks| lacks < 150), []);
        assert_eq!(verifier.rests(|seen, lacks| seen == 3946 && lacks == 150), [(0, 100), (150, 50)]);
        let rests = verifier.rests(|_, _| true);
        assert_eq!(rests, [(0, 100), (150, 50), (4096, 4096)]);
        for (from, len) in rests {
            give(&mut verifier, from, len);
        }
        assert_eq!((verifier.verified_bytes(), verifier.waiting_bytes()), (8192, 0));
        // The same bytes once more count once.
        give(&mut verifier, 0, 4096);
        assert_eq!((verifier.verified_bytes(), verifier.rests(|_, _| true)), (8192, Vec::new()));
    }

    #[test]
    fn wrong_texts_are_typed() {
        let text = |from: &str, to: &str| {
            let text = String::from_utf8(of(&data(), 4096).to_text()).unwrap();
            assert!(text.contains(from), "{from}");
            Checksums::parse(text.replacen(from, to, 1).as_bytes()).unwrap_err().code()
        };
        assert_eq!(text("{", "["), "checksums-text");
        assert_eq!(text("\"version\": 1", "\"version\": 2"), "checksums-format");
        assert_eq!(text("\"chunk_bytes\": 4096", "\"chunk_bytes\": 4095"), "checksums-chunk");
        assert_eq!(text("\"chunk_bytes\": 4096", "\"chunk_bytes\": 8192"), "checksums-list");
        assert_eq!(text("\"bytes\": 10000", "\"bytes\": 18446744073709551615"), "checksums-list");
        assert_eq!(text("\"crc32c\": \"", "\"crc32c\": \"x"), "checksums-list");
        assert_eq!(text("\"bytes\"", "\"byte\""), "checksums-text");
    }
}
