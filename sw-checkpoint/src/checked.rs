//! Compares what a load reads with the checksums that lie beside the checkpoint, as it is read.
//!
//! ```text
//!   reads cut at chunks ─► CRC-32C by the engine, in the pass that lands the bytes ─┐
//!   short runs ──────────► CRC-32C of the window they came in ──────────────────────┼─► Verifier of the file ─► chunk compared
//!   rests of chunks: heads, padding, what was not wanted ─► read beside ────────────┘
//! ```
//!
//! No byte is copied for it. Bytes that a device puts straight into another device's memory are not seen; they are not
//! compared, unless that is required, and then they are read back.

use straightway::{Error, ErrorKind, Verb};

use crate::checksums::{Checksums, ChecksumsError, Verifier, crc32c, low};
use crate::load_plan::Place;
use crate::{CHECKSUMS_FILE, Checkpoint};

/// What a chunk may lack at most to be completed by reads beside the load, where comparing is not required. With 4 MiB
/// chunks a quarter: heads of large models fit, and a slice does not turn into its whole chunk.
const REST_MAX_BYTES: u64 = 1 << 20;
/// What it may lack in any case: about the time of one random read.
const REST_FREE_BYTES: u64 = 64 << 10;

/// Whether a load compares checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Verify {
    /// Where they are, as far as the bytes pass the CPU, and what chunks lack is little (at most as much as was read of them,
    /// or 64 KiB, and at most 1 MiB).
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// Every byte that is loaded, whatever must be read for that; without checksums the load fails.
    Require,
}

impl Verify {
    /// Its name for people and machines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Require => "require",
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// There are checksums, and each file tells how much was compared.
    Compared,
    /// There are none.
    NoChecksums,
    /// It was not asked for.
    Off,
}

impl Verification {
    /// Its name for people and machines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compared => "compared",
            Self::NoChecksums => "none",
            Self::Off => "off",
        }
    }
}

/// A range that was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadRange {
    pub file: usize,
    pub file_offset: u64,
    pub len_bytes: u64,
    /// Where it landed, if that is in a region of the load.
    pub place: Option<Place>,
}

/// One file of a load.
struct FileCheck<'l> {
    name: &'l str,
    verifier: Option<Verifier<'l>>,
    /// Bytes for which there is no checksum.
    blind_bytes: u64,
    /// What the CPU did not see.
    unseen: Vec<ReadRange>,
}

/// The comparison of one load.
pub(crate) struct Checks<'l> {
    verify: Verify,
    /// Of a chunk, if anything is compared: reads end at its multiples.
    chunk_bytes: Option<u64>,
    files: Vec<FileCheck<'l>>,
    outcome: Verification,
}

impl<'l> Checks<'l> {
    /// # Errors
    /// `NotFound` without checksums where they are required; `ChecksumMismatch` for a file of another length.
    pub fn new(
        checkpoint: &'l Checkpoint,
        checksums: Option<&'l Checksums>,
        (verify, align_bytes): (Verify, u64),
    ) -> Result<Self, Error> {
        // Chunks below the alignment of direct reads cannot be read apart; nobody writes those.
        let checksums = checksums.filter(|checksums| checksums.chunk_bytes >= align_bytes);
        if checksums.is_none() && verify == Verify::Require {
            return Err(Error::new(ErrorKind::NotFound, Verb::Open)
                .at(checkpoint.at().to_string())
                .detail(format!("there is no {CHECKSUMS_FILE} to compare with"))
                .remedy("load without requiring checksums"));
        }
        let files = checkpoint.catalog().files().iter().map(|file| {
            let verifier = match checksums {
                Some(checksums) => checksums.verifier(&file.name, file.len_bytes).map_err(damaged)?,
                None => None,
            };
            Ok(FileCheck { name: &file.name, verifier, blind_bytes: 0, unseen: Vec::new() })
        });
        let outcome = match (verify, checksums) {
            (Verify::Off, _) => Verification::Off,
            (_, None) => Verification::NoChecksums,
            (_, Some(_)) => Verification::Compared,
        };
        let files = files.collect::<Result<_, Error>>()?;
        Ok(Self { verify, chunk_bytes: checksums.map(|checksums| checksums.chunk_bytes), files, outcome })
    }

    /// Bytes of a chunk, if reads are to be cut at chunks and summed.
    pub const fn chunk_bytes(&self) -> Option<u64> {
        self.chunk_bytes
    }

    pub const fn outcome(&self) -> Verification {
        self.outcome
    }

    /// Takes a range that was read, inside one chunk, and its checksum, which there is if the CPU saw the bytes.
    ///
    /// # Errors
    /// `ChecksumMismatch`; `NotFound` for a file without checksums where they are required.
    pub fn took(&mut self, range: ReadRange, sum: Option<u64>) -> Result<(), Error> {
        let Some(file) = self.files.get_mut(range.file) else { return Ok(()) };
        match (&mut file.verifier, sum) {
            (Some(verifier), Some(sum)) => {
                verifier.add(range.file_offset, range.len_bytes, low(sum)).map_err(damaged)?;
            }
            (Some(_), None) => file.unseen.push(range),
            (None, _) if self.verify == Verify::Require => {
                return Err(Error::new(ErrorKind::NotFound, Verb::Read)
                    .at(file.name)
                    .detail(format!("{CHECKSUMS_FILE} does not have this file"))
                    .remedy("load without requiring checksums"));
            }
            (None, _) => file.blind_bytes += range.len_bytes,
        }
        Ok(())
    }

    /// Takes bytes that were read, across chunks.
    ///
    /// # Errors
    /// As [`Checks::took`].
    pub fn took_bytes(&mut self, file: usize, file_offset: u64, mut bytes: &[u8]) -> Result<(), Error> {
        let chunk_bytes = self.chunk_bytes.unwrap_or(u64::MAX);
        let summed = self.files.get(file).is_some_and(|file| file.verifier.is_some());
        let mut at = file_offset;
        while !bytes.is_empty() {
            let room = usize::try_from(chunk_bytes - at % chunk_bytes).unwrap_or(usize::MAX);
            let (here, rest) = bytes.split_at(room.min(bytes.len()));
            let range = ReadRange { file, file_offset: at, len_bytes: here.len() as u64, place: None };
            self.took(range, summed.then(|| u64::from(crc32c(here))))?;
            at += here.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// What the CPU did not see and must: ranges that [`Checks::took`] is told of again.
    pub fn unseen(&mut self) -> Vec<ReadRange> {
        if self.verify != Verify::Require {
            return Vec::new();
        }
        self.files.iter_mut().flat_map(|file| std::mem::take(&mut file.unseen)).collect()
    }

    /// What is to be read beside the load so that chunks are compared.
    pub fn rests(&mut self) -> Vec<ReadRange> {
        let all = self.verify == Verify::Require;
        let worth = |seen: u64, lacks: u64| all || lacks <= seen.clamp(REST_FREE_BYTES, REST_MAX_BYTES);
        let files = self.files.iter_mut().enumerate();
        let rests = files.filter_map(|(at, file)| Some((at, file.verifier.as_mut()?.rests(worth))));
        let ranges = rests.flat_map(|(file, rests)| {
            let range = move |(file_offset, len_bytes)| ReadRange { file, file_offset, len_bytes, place: None };
            rests.into_iter().map(range)
        });
        ranges.collect()
    }

    /// Of one file: bytes in chunks that were compared, and bytes that were read and not compared.
    pub fn totals(&self, file: usize) -> (u64, u64) {
        let Some(file) = self.files.get(file) else { return (0, 0) };
        let unseen: u64 = file.unseen.iter().map(|range| range.len_bytes).sum();
        let waiting = file.verifier.as_ref().map_or(0, Verifier::waiting_bytes);
        (file.verifier.as_ref().map_or(0, Verifier::verified_bytes), file.blind_bytes + unseen + waiting)
    }
}

/// Data that is not what was saved.
pub(crate) fn damaged(cause: ChecksumsError) -> Error {
    let (file, range) = match &cause {
        ChecksumsError::Mismatch { file, offset, len, .. } => (file.clone(), (*offset, *len)),
        ChecksumsError::Length { file, have, .. } => (file.clone(), (0, *have)),
        _ => (CHECKSUMS_FILE.to_owned(), (0, 0)),
    };
    let kind = if cause.is_about_data() { ErrorKind::ChecksumMismatch } else { ErrorKind::BadFormat };
    let error = Error::new(kind, Verb::Read).at(file).in_range(range.0, range.1).detail(cause.to_string());
    error.remedy("restore the file from another copy").caused_by(cause)
}
