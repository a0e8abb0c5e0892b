//! Reads every byte of a checkpoint and compares it with the checksums that are stored with it: those of its format, and
//! those that lie beside it.

use std::collections::VecDeque;

use crc_fast::{CrcAlgorithm, Digest};
use straightway::{Destination, Engine, Error, ErrorKind, Object, Pending, Verb};

use crate::checked::damaged;
use crate::checksums::low;
use crate::dcp::BLOB_END_BYTES;
use crate::open::{ObjectRanges, fetch};
use crate::ranges::Failed;
use crate::torch::checksums;
use crate::zip::TAIL_LEN_BYTES;
use crate::{CHECKSUMS_FILE, Checkpoint, Checksums};

/// Bytes of one read, and reads in flight: 64 MiB in all.
const PIECE_BYTES: u64 = 8 << 20;
const PIECES_IN_FLIGHT: usize = 8;

/// Blobs whose directories are read at a time.
const BLOBS_AT_A_TIME: usize = 1024;

/// A checksum that is stored for a range of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// What the range is.
    pub what: String,
    pub file_offset: u64,
    pub len_bytes: u64,
    pub crc: u32,
}

/// A range that is not what its checksum says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The file.
    pub file: String,
    /// What the range is: an entry of the file, or a chunk of the checksums beside the checkpoint.
    pub what: String,
    /// Which checksum: `crc32` (ISO 3309, as zip has it) or `crc32c`.
    pub algorithm: &'static str,
    /// First byte.
    pub file_offset: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// The checksum that is stored.
    pub stored: u32,
    /// The checksum of the bytes.
    pub found: u32,
}

/// What was verified of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The file.
    pub name: String,
    /// Bytes read: all.
    pub read_bytes: u64,
    /// Bytes of those for which a checksum is stored, which was compared: by the format or beside it, whichever has more.
    pub checked_bytes: u64,
    /// Checksums compared.
    pub checksums: u64,
    /// Those that do not agree.
    pub mismatches: Vec<Mismatch>,
}

impl Checkpoint {
    /// Reads every byte of every file, which proves that they can be read, and compares the checksums that the format
    /// stores (CRC-32 of each entry of `torch.save`, in single files and in DCP blobs; safetensors has none) and those that lie
    /// beside it ([`CHECKSUMS_FILE`]). What the heads prove was proven when the checkpoint was opened. `each` is told of each
    /// file when it is done.
    ///
    /// # Errors
    /// What reading returns; what `each` returns; `ChecksumMismatch` for a file of another length than its checksums are for.
    /// A checksum that does not agree is no error here.
    pub fn verify<E: From<Error>>(
        &self,
        engine: &Engine,
        mut each: impl FnMut(Verified) -> Result<(), E>,
    ) -> Result<(), E> {
        let beside = self.checksums(engine)?;
        for (file, object) in self.objects().iter().enumerate() {
            let stored = self.stored(engine, file)?;
            let name = self.catalog().files().get(file).map_or_else(String::new, |file| file.name.clone());
            let chunks = beside.map(|beside| chunks(beside, &name, object.len())).transpose()?.unwrap_or_default();
            let checks = [Check::new("crc32", &stored), Check::new("crc32c", &chunks)];
            each(verify_file(engine, object, name, checks)?)?;
        }
        Ok(self.objects().iter().try_for_each(Object::check_unchanged)?)
    }

    /// The checksums of one file, by offset.
    fn stored(&self, engine: &Engine, file: usize) -> Result<Vec<Stored>, Error> {
        let Some(object) = self.objects().get(file) else { return Ok(Vec::new()) };
        let mut stored = Vec::new();
        let mut blobs = self.containers(file);
        blobs.sort_unstable();
        blobs.dedup();
        for some in blobs.chunks(BLOBS_AT_A_TIME) {
            let ends: Vec<(u64, u64)> = match some {
                [(0, len)] if *len == object.len() => Vec::new(),
                some => some
                    .iter()
                    .map(|(at, len)| (at + len - BLOB_END_BYTES.min(*len), BLOB_END_BYTES.min(*len)))
                    .collect(),
            };
            let fetched = fetch(engine, object, &ends)?;
            for &(base, len) in some {
                let mut ranges = ObjectRanges::part(engine, object, (base, len), &fetched);
                let tail = if len == object.len() { TAIL_LEN_BYTES } else { BLOB_END_BYTES };
                let entries = checksums(&mut ranges, tail).map_err(|failed| match failed {
                    Failed::Read(error) => error,
                    Failed::Format(cause) => crate::open::malformed(self.at(), cause),
                })?;
                stored.extend(entries.into_iter().map(|(what, at, len_bytes, crc)| Stored {
                    what,
                    file_offset: base + at,
                    len_bytes,
                    crc,
                }));
            }
        }
        stored.sort_by_key(|stored| stored.file_offset);
        Ok(stored)
    }
}

/// The checksums beside the checkpoint for one file.
fn chunks(beside: &Checksums, name: &str, len_bytes: u64) -> Result<Vec<Stored>, Error> {
    beside.verifier(name, len_bytes).map_err(damaged)?;
    let crcs = beside.files.get(name).map_or(&[][..], |file| file.crc32c.as_slice());
    let stored = (0_u64..).zip(crcs).map(|(number, &crc)| {
        let file_offset = number * beside.chunk_bytes;
        let len_bytes = beside.chunk_bytes.min(len_bytes.saturating_sub(file_offset));
        Stored { what: format!("chunk {number} of {CHECKSUMS_FILE}"), file_offset, len_bytes, crc }
    });
    Ok(stored.collect())
}

fn verify_file(engine: &Engine, object: &Object, name: String, mut checks: [Check<'_>; 2]) -> Result<Verified, Error> {
    let mut running: VecDeque<Pending> = VecDeque::with_capacity(PIECES_IN_FLIGHT);
    let mut asked = 0;
    loop {
        while asked < object.len() && running.len() < PIECES_IN_FLIGHT {
            let len = PIECE_BYTES.min(object.len() - asked);
            let memory = engine.allocate(Destination::Host, len, asked)?;
            running.push_back(engine.read(object, asked, memory).start());
            asked += len;
        }
        let Some(pending) = running.pop_front() else { break };
        let memory = pending.wait().ok()?.into_memory();
        let memory = memory.ok_or_else(|| Error::new(ErrorKind::Protocol, Verb::Read).at(object.name()))?;
        memory.visit(0, memory.len(), |bytes| checks.iter_mut().for_each(|check| check.feed(bytes)))?;
    }
    let mut done = Verified { name, read_bytes: asked, checked_bytes: 0, checksums: 0, mismatches: Vec::new() };
    for mut check in checks {
        check.close_ended();
        done.checked_bytes = done.checked_bytes.max(check.checked_bytes);
        done.checksums += check.checksums;
        let named = check.mismatches.into_iter().map(|mismatch| Mismatch { file: done.name.clone(), ..mismatch });
        done.mismatches.extend(named);
    }
    Ok(done)
}

/// Runs checksums of one kind over the bytes of a file as they come.
struct Check<'s> {
    algorithm: &'static str,
    crc: CrcAlgorithm,
    stored: &'s [Stored],
    /// The one that is under way, or comes next.
    next: usize,
    digest: Option<Digest>,
    /// Bytes that came.
    at: u64,
    checked_bytes: u64,
    checksums: u64,
    mismatches: Vec<Mismatch>,
}

impl<'s> Check<'s> {
    fn new(algorithm: &'static str, stored: &'s [Stored]) -> Self {
        let crc = if algorithm == "crc32c" { CrcAlgorithm::Crc32Iscsi } else { CrcAlgorithm::Crc32IsoHdlc };
        let (next, at, checked_bytes, checksums) = (0, 0, 0, 0);
        Self { algorithm, crc, stored, next, digest: None, at, checked_bytes, checksums, mismatches: Vec::new() }
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(stored) = self.stored.get(self.next) else {
                self.at += bytes.len() as u64;
                return;
            };
            let end = stored.file_offset + stored.len_bytes;
            // Up to the next range, or to its end.
            let stop = if self.at < stored.file_offset { stored.file_offset } else { end };
            let now = usize::try_from(stop.saturating_sub(self.at)).unwrap_or(usize::MAX).min(bytes.len());
            let (here, rest) = bytes.split_at(now);
            if self.at >= stored.file_offset {
                self.digest.get_or_insert_with(|| Digest::new(self.crc)).update(here);
            }
            self.at += here.len() as u64;
            bytes = rest;
            self.close_ended();
        }
    }

    /// Compares what has ended: entries without bytes end where they begin.
    fn close_ended(&mut self) {
        while let Some(stored) = self.stored.get(self.next) {
            if self.at < stored.file_offset + stored.len_bytes {
                return;
            }
            let found = low(self.digest.take().unwrap_or_else(|| Digest::new(self.crc)).finalize());
            self.checked_bytes += stored.len_bytes;
            self.checksums += 1;
            if found != stored.crc {
                self.mismatches.push(Mismatch {
                    file: String::new(),
                    what: stored.what.clone(),
                    algorithm: self.algorithm,
                    file_offset: stored.file_offset,
                    len_bytes: stored.len_bytes,
                    stored: stored.crc,
                    found,
                });
            }
            self.next += 1;
        }
    }
}
