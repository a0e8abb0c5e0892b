//! Compares what a load reads with the checksums that lie beside the checkpoint, as it is read.
//!
//! ```text
//!   reads cut at chunks ─► CRC-32C by the engine, in the pass that lands the bytes ─┐
//!   short runs ──────────► CRC-32C of the window they came in ──────────────────────┼─► Verifier of the file ─► chunk compared
//!   rests of chunks: heads, padding, what was not wanted ─► read beside ────────────┘
//! ```
//!
//! No byte is copied for it. Bytes that a device puts straight into another device's memory are not seen; they are not
//! compared, unless that is required, and then they are summed where they lie, by the device's kernels or over copies. Where
//! comparing is required, a GPU that can sums what the processor saw on its way once more (`load.rs`).

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use straightway::{Error, ErrorKind, Verb};

use crate::CHECKSUMS_FILE;
use crate::checksums::{Checksums, ChecksumsError, Seen, Verifier, crc32c, low};
use crate::load_plan::Place;

/// What a chunk may lack at most to be completed by reads beside the load, where comparing is not required. With 4 MiB
/// chunks a quarter: heads of large models fit, and a slice does not turn into its whole chunk.
const REST_MAX_BYTES: u64 = 1 << 20;
/// What it may lack in any case: about the time of one random read.
const REST_FREE_BYTES: u64 = 64 << 10;
/// Ranges that a chunk may lack to be read one by one. What lies between more of them (heads of many small tensors) is read
/// with them: that costs few reads of at most a chunk together.
const RESTS_APART_MAX: usize = 8;
/// Longest range that is read with them: about what is moved in the time of one more read.
const REST_GAP_MAX_BYTES: u64 = 64 << 10;

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

impl FromStr for Verify {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let known = [Self::Auto, Self::Off, Self::Require].into_iter().find(|verify| verify.name() == text);
        known.ok_or_else(|| {
            Error::new(ErrorKind::ApiMisuse, Verb::Setup)
                .at("verify")
                .detail(format!("{text:?} is no way to compare checksums"))
                .remedy("give auto, off or require")
        })
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
pub struct ReadRange {
    /// Position of the file, as [`Checks::file`] gave it.
    pub file: usize,
    /// First byte in the file.
    pub file_offset: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Where it landed, if that is in a region of the load.
    pub place: Option<Place>,
}

/// A read beside a load: a range, and the parts of it that chunks lack.
#[derive(Clone, Debug)]
pub struct Rest {
    /// What to read: inside one chunk, never longer.
    pub range: ReadRange,
    /// First byte in the file and length of each part, in order.
    pub parts: Vec<(u64, u64)>,
}

/// What a reader saw of a chunk that it did not see whole, for a reader of another process that saw the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Name of the file.
    pub file: String,
    /// First byte, length and CRC-32C.
    pub seen: Seen,
}

/// One file of a load.
#[derive(Debug)]
struct FileCheck {
    name: String,
    verifier: Option<Verifier>,
    /// Bytes for which there is no checksum.
    blind_bytes: u64,
    /// What the CPU did not see.
    unseen: Vec<ReadRange>,
}

/// The comparison of one load: told of every range that is read, it compares each chunk as soon as all of it was seen.
#[derive(Debug)]
pub struct Checks {
    verify: Verify,
    checksums: Option<Arc<Checksums>>,
    files: Vec<FileCheck>,
    by_name: BTreeMap<String, usize>,
    outcome: Verification,
}

impl Checks {
    /// For files beside which `checksums` lie; `at` is the checkpoint, for errors. Direct reads are aligned to `align_bytes`.
    ///
    /// # Errors
    /// `NotFound` without checksums where they are required.
    pub fn new(at: &str, checksums: Option<Arc<Checksums>>, verify: Verify, align_bytes: u64) -> Result<Self, Error> {
        // Chunks below the alignment of direct reads cannot be read apart; nobody writes those.
        let checksums = checksums.filter(|checksums| checksums.chunk_bytes >= align_bytes && verify != Verify::Off);
        if checksums.is_none() && verify == Verify::Require {
            return Err(Error::new(ErrorKind::NotFound, Verb::Open)
                .at(at.to_owned())
                .detail(format!("there is no {CHECKSUMS_FILE} to compare with"))
                .remedy("load without requiring checksums"));
        }
        let outcome = match (verify, &checksums) {
            (Verify::Off, _) => Verification::Off,
            (_, None) => Verification::NoChecksums,
            (_, Some(_)) => Verification::Compared,
        };
        Ok(Self { verify, checksums, files: Vec::new(), by_name: BTreeMap::new(), outcome })
    }

    /// Position of the file `name` of `len_bytes`, which is added if it is new.
    ///
    /// # Errors
    /// `ChecksumMismatch` for a file of another length than its checksums are for.
    pub fn file(&mut self, name: &str, len_bytes: u64) -> Result<usize, Error> {
        if let Some(&at) = self.by_name.get(name) {
            return Ok(at);
        }
        let verifier = match &self.checksums {
            Some(checksums) => checksums.verifier(name, len_bytes).map_err(damaged)?,
            None => None,
        };
        self.files.push(FileCheck { name: name.to_owned(), verifier, blind_bytes: 0, unseen: Vec::new() });
        self.by_name.insert(name.to_owned(), self.files.len() - 1);
        Ok(self.files.len() - 1)
    }

    /// Whether every byte that is loaded must be compared.
    #[must_use]
    pub fn requires(&self) -> bool {
        self.verify == Verify::Require
    }

    /// Bytes of a chunk, if reads are to be cut at chunks and summed.
    #[must_use]
    pub fn chunk_bytes(&self) -> Option<u64> {
        self.checksums.as_ref().map(|checksums| checksums.chunk_bytes)
    }

    /// What came of it, or will.
    #[must_use]
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
                    .at(file.name.clone())
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
        let chunk_bytes = self.chunk_bytes().unwrap_or(u64::MAX);
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

    /// What is to be read beside the load, of all files or of one, so that chunks are compared: [`Checks::took_rest`] is told
    /// of the bytes.
    pub fn rests(&mut self, of: Option<usize>) -> Vec<Rest> {
        let all = self.verify == Verify::Require;
        let worth = |seen: u64, lacks: u64| all || lacks <= seen.clamp(REST_FREE_BYTES, REST_MAX_BYTES);
        let files = self.files.iter_mut().enumerate().filter(|(at, _)| of.is_none_or(|file| file == *at));
        let mut rests = Vec::new();
        for (file, check) in files {
            let Some(verifier) = check.verifier.as_mut() else { continue };
            let chunk_bytes = verifier.chunk_bytes();
            let lacks = verifier.rests(worth);
            for parts in lacks.chunk_by(|a, b| a.0 / chunk_bytes == b.0 / chunk_bytes) {
                let gap_max = if parts.len() > RESTS_APART_MAX { REST_GAP_MAX_BYTES } else { 0 };
                let together = |a: &(u64, u64), b: &(u64, u64)| b.0 - (a.0 + a.1) <= gap_max;
                rests.extend(parts.chunk_by(together).filter_map(|parts| rest(file, parts)));
            }
        }
        rests
    }

    /// Takes the bytes of what [`Checks::rests`] asked for.
    ///
    /// # Errors
    /// As [`Checks::took`].
    pub fn took_rest(&mut self, rest: &Rest, bytes: &[u8]) -> Result<(), Error> {
        for &(at, len) in &rest.parts {
            let part = at.checked_sub(rest.range.file_offset).and_then(|from| {
                let from = usize::try_from(from).ok()?;
                bytes.get(from..from.checked_add(usize::try_from(len).ok()?)?)
            });
            let Some(part) = part else {
                return Err(Error::new(ErrorKind::Protocol, Verb::Read).detail("a read came back shorter than asked"));
            };
            self.took_bytes(rest.range.file, at, part)?;
        }
        Ok(())
    }

    /// Names of the files of which chunks wait for their rests.
    pub fn waiting(&self) -> impl Iterator<Item = &str> {
        let waits = |file: &&FileCheck| file.verifier.as_ref().is_some_and(|verifier| verifier.waiting_bytes() > 0);
        self.files.iter().filter(waits).map(|file| file.name.as_str())
    }

    /// Gives away what was seen of chunks that were not seen whole, for readers of other processes; then it is no longer
    /// counted here.
    pub fn take_partials(&mut self) -> Vec<Partial> {
        let files = self.files.iter_mut().filter_map(|file| Some((&file.name, file.verifier.as_mut()?)));
        let partials = files.flat_map(|(name, verifier)| {
            verifier.take_seen().into_iter().map(move |seen| Partial { file: name.clone(), seen })
        });
        partials.collect()
    }

    /// Takes what this reader and others saw: `of_all` has the partials of every reader, this one's at position `me`. The first
    /// reader that saw a part of a chunk takes it on, with the parts of the others, so each is compared and counted once.
    ///
    /// # Errors
    /// `ChecksumMismatch`; `OutOfRange` for a range that is in no chunk.
    pub fn join_partials(&mut self, me: usize, of_all: &[Vec<Partial>]) -> Result<(), Error> {
        let mut first: BTreeMap<(&str, u64), usize> = BTreeMap::new();
        let Some(chunk_bytes) = self.chunk_bytes() else { return Ok(()) };
        for (reader, partials) in of_all.iter().enumerate() {
            for Partial { file, seen } in partials {
                first.entry((file.as_str(), seen.offset / chunk_bytes)).or_insert(reader);
            }
        }
        for Partial { file, seen } in of_all.iter().flatten() {
            if first.get(&(file.as_str(), seen.offset / chunk_bytes)) != Some(&me) {
                continue;
            }
            let known = self.by_name.get(file).and_then(|&at| self.files.get_mut(at)?.verifier.as_mut());
            if let Some(verifier) = known {
                if !verifier.has(seen) {
                    return Err(Error::new(ErrorKind::OutOfRange, Verb::Read)
                        .at(file.clone())
                        .in_range(seen.offset, seen.len_bytes)
                        .detail("another reader told of bytes that lie in no chunk of the file")
                        .remedy("load with one version of the package on all ranks"));
                }
                verifier.add(seen.offset, seen.len_bytes, seen.crc32c).map_err(damaged)?;
            }
        }
        Ok(())
    }

    /// Of all files, as [`Checks::totals`].
    #[must_use]
    pub fn totals_of_all(&self) -> (u64, u64) {
        let sums = (0..self.files.len()).map(|file| self.totals(file));
        sums.fold((0, 0), |(verified, unverified), (more, less)| (verified + more, unverified + less))
    }

    /// Of one file: bytes in chunks that were compared, and bytes that were read and not compared.
    #[must_use]
    pub fn totals(&self, file: usize) -> (u64, u64) {
        let Some(file) = self.files.get(file) else { return (0, 0) };
        let unseen: u64 = file.unseen.iter().map(|range| range.len_bytes).sum();
        let waiting = file.verifier.as_ref().map_or(0, Verifier::waiting_bytes);
        (file.verifier.as_ref().map_or(0, Verifier::verified_bytes), file.blind_bytes + unseen + waiting)
    }
}

/// One read for parts of one chunk.
fn rest(file: usize, parts: &[(u64, u64)]) -> Option<Rest> {
    let (&(file_offset, _), &(last, len)) = (parts.first()?, parts.last()?);
    let range = ReadRange { file, file_offset, len_bytes: last + len - file_offset, place: None };
    Some(Rest { range, parts: parts.to_vec() })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksums::FileChecksums;

    const CHUNK: u64 = 4096;

    fn data() -> Vec<u8> {
        (0..10_000_u32).map(|at| (at * 7 + at / 255).to_le_bytes()[0]).collect()
    }

    fn checks(verify: Verify) -> Checks {
        let data = data();
        let crc32c = data.chunks(usize::try_from(CHUNK).unwrap()).map(crc32c).collect();
        let file = FileChecksums { len_bytes: data.len() as u64, crc32c, crc64nvme: None };
        let sums = Checksums { chunk_bytes: CHUNK, files: BTreeMap::from([("file".to_owned(), file)]) };
        let mut checks = Checks::new("here", Some(Arc::new(sums)), verify, CHUNK).unwrap();
        assert_eq!(checks.file("file", data.len() as u64).unwrap(), 0);
        checks
    }

    fn see(checks: &mut Checks, from: usize, to: usize) {
        checks.took_bytes(0, from as u64, &data()[from..to]).unwrap();
    }

    #[test]
    fn what_readers_saw_together_is_compared_once_by_the_first_of_them() {
        let mut readers = [checks(Verify::Auto), checks(Verify::Auto)];
        see(&mut readers[0], 0, 5000);
        see(&mut readers[1], 5000, 10_000);
        let of_all: Vec<_> = readers.iter_mut().map(Checks::take_partials).collect();
        assert_eq!(of_all.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
        for (me, reader) in readers.iter_mut().enumerate() {
            reader.join_partials(me, &of_all).unwrap();
            assert!(reader.rests(None).is_empty());
        }
        assert_eq!(readers[0].totals_of_all(), (8192, 0));
        assert_eq!(readers[1].totals_of_all(), (1808, 0));
    }

    #[test]
    fn damage_that_no_reader_sees_alone_is_told_by_one_and_ranges_from_outside_are_checked() {
        let mut readers = [checks(Verify::Auto), checks(Verify::Auto)];
        see(&mut readers[0], 4096, 5000);
        let mut wrong = data()[5000..8192].to_vec();
        wrong[9] ^= 1;
        readers[1].took_bytes(0, 5000, &wrong).unwrap();
        let mut of_all: Vec<_> = readers.iter_mut().map(Checks::take_partials).collect();
        let error = readers[0].join_partials(0, &of_all).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChecksumMismatch);
        readers[1].join_partials(1, &of_all).unwrap();
        for (offset, len_bytes) in [(5000, 4096), (12_288, 1), (0, 0), (u64::MAX, 1), (9000, 1001)] {
            of_all[0] = vec![Partial { file: "file".to_owned(), seen: Seen { offset, len_bytes, crc32c: 0 } }];
            let error = checks(Verify::Auto).join_partials(0, &of_all).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfRange, "{offset}+{len_bytes}");
        }
    }

    #[test]
    fn many_rests_of_a_chunk_are_one_read_and_few_are_apart() {
        let mut checks = checks(Verify::Require);
        for at in (0..4000).step_by(200) {
            see(&mut checks, at, at + 100);
        }
        see(&mut checks, 5000, 5100);
        let rests = checks.rests(Some(0));
        let shape = rests.iter().map(|rest| (rest.range.file_offset, rest.range.len_bytes, rest.parts.len()));
        assert_eq!(shape.collect::<Vec<_>>(), [(100, 3996, 20), (4096, 904, 1), (5100, 3092, 1)]);
        let data = data();
        let bytes = |rest: &Rest| {
            let from = usize::try_from(rest.range.file_offset).unwrap();
            data[from..from + usize::try_from(rest.range.len_bytes).unwrap()].to_vec()
        };
        let short = bytes(&rests[0]);
        let error = checks.took_rest(&rests[0], &short[..3000]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        let mut checks = self::checks(Verify::Require);
        for at in (0..4000).step_by(200) {
            see(&mut checks, at, at + 100);
        }
        see(&mut checks, 5000, 5100);
        for rest in checks.rests(None) {
            let bytes = bytes(&rest);
            checks.took_rest(&rest, &bytes).unwrap();
        }
        assert_eq!(checks.totals_of_all(), (8192, 0));
        assert_eq!(checks.waiting().count(), 0);
    }
}
