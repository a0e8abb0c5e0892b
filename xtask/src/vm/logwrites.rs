//! What a power cut may leave on a disk: QEMU's `blklogwrites` keeps every write in order, with the flushes between.
//!
//! Killing QEMU loses nothing, since the machine's page cache outlives it. So the disk of the second phase is made
//! anew: all writes up to the last flush, and later ones only if they were forced (FUA). That is the worst that a
//! volatile write cache may do. A driver that reports a flush before the device did loses data here.
//!
//! The log's format is dm-log-writes' (Linux, `Documentation/admin-guide/device-mapper/log-writes.rst` and
//! `drivers/md/dm-log-writes.c`): a superblock in sector 0, then entries of one sector, each followed by its data.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::packages::{self, at};
use crate::Stop;

const MAGIC: u64 = 0x006a_7366_7773_6872;
/// Sector of the log, QEMU's default.
const SECTOR: usize = 512;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// One logged operation.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    /// Sectors of 512 bytes.
    sector: u64,
    flags: u64,
    data: &'a [u8],
    /// Sectors that a discard names; it has no data.
    sectors: u64,
}

/// What was done to a disk.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Replay {
    pub applied: usize,
    pub dropped: usize,
    pub flushes: usize,
}

/// Writes to `disk` (empty, of its full size) what is sure to be there after a power cut.
///
/// # Errors
/// The log is not one, or a file cannot be read or written.
pub fn replay(log: &Path, disk: &Path) -> Result<Replay, Stop> {
    let bytes = packages::read(log)?;
    let entries = entries(&bytes)
        .ok_or_else(|| Stop::new(format!("{} is no write log", log.display()), "see the QEMU log beside it"))?;
    let last_flush = entries.iter().rposition(|entry| entry.flags & FLUSH != 0);
    let file = std::fs::OpenOptions::new().write(true).open(disk).map_err(|error| at(disk, "cannot open", &error))?;
    let mut done =
        Replay { flushes: entries.iter().filter(|entry| entry.flags & FLUSH != 0).count(), ..Replay::default() };
    for (index, entry) in entries.iter().enumerate() {
        let sure = last_flush.is_some_and(|last| index <= last) || entry.flags & FUA != 0;
        let zeroes;
        let data = if entry.flags & DISCARD != 0 {
            zeroes = vec![0; usize::try_from(entry.sectors).unwrap_or(0) * SECTOR];
            &zeroes
        } else {
            entry.data
        };
        if data.is_empty() {
            continue;
        }
        if sure {
            let offset = entry.sector * SECTOR as u64;
            file.write_all_at(data, offset).map_err(|error| at(disk, "cannot write", &error))?;
            done.applied += 1;
        } else {
            done.dropped += 1;
        }
    }
    Ok(done)
}

/// Entries up to the first that is cut short: QEMU may have been killed while it wrote one. None without a superblock.
fn entries(bytes: &[u8]) -> Option<Vec<Entry<'_>>> {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    if number(0)? != MAGIC {
        return None;
    }
    let mut found = Vec::new();
    let mut at = SECTOR;
    while let (Some(sector), Some(sectors), Some(flags)) = (number(at), number(at + 8), number(at + 16)) {
        let data_sectors = if flags & DISCARD != 0 { 0 } else { usize::try_from(sectors).ok()? };
        let start = at + SECTOR;
        let Some(end) = data_sectors.checked_mul(SECTOR).and_then(|bytes| start.checked_add(bytes)) else { break };
        let Some(data) = bytes.get(start..end) else { break };
        if sectors == 0 && flags == 0 {
            break;
        }
        found.push(Entry { sector, flags, data, sectors });
        at = end;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(operations: &[(u64, u64, &[u8])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.resize(SECTOR, 0);
        for (sector, flags, data) in operations {
            let sectors = (data.len() / SECTOR) as u64;
            let start = bytes.len();
            for number in [*sector, sectors, *flags, 0] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.resize(start + SECTOR, 0);
            bytes.extend_from_slice(data);
        }
        bytes
    }

    #[test]
    fn writes_after_the_last_flush_are_dropped_unless_forced() {
        let dir = std::env::temp_dir().join(format!("sw-logwrites-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (log_path, disk_path) = (dir.join("log"), dir.join("disk"));
        let sector = |byte| [byte; SECTOR];
        let (one, two, three, four) = (sector(1), sector(2), sector(3), sector(4));
        let mut bytes = log(&[(0, 0, &one), (1, 0, &two), (0, FLUSH, &[]), (1, 0, &three), (2, FUA, &four)]);
        // A last entry that is cut short.
        let cut = log(&[(3, FUA, &one)]);
        bytes.extend_from_slice(&cut[SECTOR..cut.len() - 1]);
        std::fs::write(&log_path, bytes).unwrap();
        std::fs::write(&disk_path, vec![0; 4 * SECTOR]).unwrap();
        let done = replay(&log_path, &disk_path).unwrap();
        assert_eq!(done, Replay { applied: 3, dropped: 1, flushes: 1 });
        let disk = std::fs::read(&disk_path).unwrap();
        let firsts: Vec<u8> = disk.chunks(SECTOR).map(|sector| sector[0]).collect();
        assert_eq!(firsts, [1, 2, 4, 0]);
        std::fs::write(&log_path, b"no log").unwrap();
        assert!(replay(&log_path, &disk_path).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
