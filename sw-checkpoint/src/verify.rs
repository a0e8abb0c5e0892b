//! Reads every byte of a checkpoint and compares it with the checksums that are stored with it.

use std::collections::VecDeque;

use crc_fast::{CrcAlgorithm, Digest};
use straightway::{Destination, Engine, Error, ErrorKind, Object, Pending, Verb};

use crate::Checkpoint;
use crate::dcp::BLOB_END_BYTES;
use crate::open::{ObjectRanges, fetch};
use crate::ranges::Failed;
use crate::torch::checksums;
use crate::zip::TAIL_LEN_BYTES;

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
    /// CRC-32 of ISO 3309, as zip has it.
    pub crc32: u32,
}

/// A range that is not what its checksum says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The file.
    pub file: String,
    /// What the range is: an entry of the file.
    pub what: String,
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
    /// Bytes of those for which a checksum is stored, which was compared.
    pub checked_bytes: u64,
    /// Checksums compared.
    pub checksums: u64,
    /// Those that do not agree.
    pub mismatches: Vec<Mismatch>,
}

impl Checkpoint {
    /// Reads every byte of every file, which proves that they can be read, and compares the checksums that the format
    /// stores: CRC-32 of each entry of `torch.save`, in single files and in DCP blobs. Safetensors has none. What the heads
    /// prove was proven when the checkpoint was opened. `each` is told of each file when it is done.
    ///
    /// # Errors
    /// What reading returns; what `each` returns. A checksum that does not agree is no error here.
    pub fn verify<E: From<Error>>(
        &self,
        engine: &Engine,
        mut each: impl FnMut(Verified) -> Result<(), E>,
    ) -> Result<(), E> {
        for (file, object) in self.objects().iter().enumerate() {
            let stored = self.stored(engine, file)?;
            let name = self.catalog().files().get(file).map_or_else(String::new, |file| file.name.clone());
            each(verify_file(engine, object, name, &stored)?)?;
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
                stored.extend(entries.into_iter().map(|(what, at, len_bytes, crc32)| Stored {
                    what,
                    file_offset: base + at,
                    len_bytes,
                    crc32,
                }));
            }
        }
        stored.sort_by_key(|stored| stored.file_offset);
        Ok(stored)
    }
}

fn verify_file(engine: &Engine, object: &Object, name: String, stored: &[Stored]) -> Result<Verified, Error> {
    let mut check = Check {
        stored,
        next: 0,
        digest: None,
        done: Verified { name, read_bytes: 0, checked_bytes: 0, checksums: 0, mismatches: Vec::new() },
    };
    let mut running: VecDeque<Pending> = VecDeque::with_capacity(PIECES_IN_FLIGHT);
    let mut asked = 0;
    loop {
        while asked < object.len() && running.len() < PIECES_IN_FLIGHT {
            let len = PIECE_BYTES.min(object.len() - asked);
            let memory = engine.allocate(Destination::Host, len, asked)?;
            running.push_back(engine.read(object, asked, memory).start());
            asked += len;
        }
        let Some(pending) = running.pop_front() else { return Ok(check.finish()) };
        let memory = pending.wait().ok()?.into_memory();
        let memory = memory.ok_or_else(|| Error::new(ErrorKind::Protocol, Verb::Read).at(object.name()))?;
        memory.visit(0, memory.len(), |bytes| check.feed(bytes))?;
    }
}

/// Runs checksums over the bytes of a file as they come.
struct Check<'s> {
    stored: &'s [Stored],
    /// The one that is under way, or comes next.
    next: usize,
    digest: Option<Digest>,
    done: Verified,
}

impl Check<'_> {
    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let at = self.done.read_bytes;
            let Some(stored) = self.stored.get(self.next) else {
                self.done.read_bytes += bytes.len() as u64;
                return;
            };
            let end = stored.file_offset + stored.len_bytes;
            // Up to the next range, or to its end.
            let stop = if at < stored.file_offset { stored.file_offset } else { end };
            let now = usize::try_from(stop.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
            let (here, rest) = bytes.split_at(now);
            if at >= stored.file_offset {
                self.digest.get_or_insert_with(|| Digest::new(CrcAlgorithm::Crc32IsoHdlc)).update(here);
            }
            self.done.read_bytes += here.len() as u64;
            bytes = rest;
            self.close_ended();
        }
    }

    /// Compares what has ended: entries without bytes end where they begin.
    fn close_ended(&mut self) {
        while let Some(stored) = self.stored.get(self.next) {
            if self.done.read_bytes < stored.file_offset + stored.len_bytes {
                return;
            }
            let digest = self.digest.take().unwrap_or_else(|| Digest::new(CrcAlgorithm::Crc32IsoHdlc));
            let found = u32::try_from(digest.finalize()).unwrap_or(0);
            self.done.checked_bytes += stored.len_bytes;
            self.done.checksums += 1;
            if found != stored.crc32 {
                self.done.mismatches.push(Mismatch {
                    file: self.done.name.clone(),
                    what: stored.what.clone(),
                    file_offset: stored.file_offset,
                    len_bytes: stored.len_bytes,
                    stored: stored.crc32,
                    found,
                });
            }
            self.next += 1;
        }
    }

    fn finish(mut self) -> Verified {
        self.close_ended();
        self.done
    }
}
