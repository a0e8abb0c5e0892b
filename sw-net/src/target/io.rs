//! Commands of the NVM command set, on checked ranges.

use std::{io, ops::RangeInclusive};

use sw_nvme::{
    status::Status,
    wire::{
        Command, IoFlags, NSID_ALL,
        command::opcode,
        command::{DSM_RANGE_BYTES, DSM_RANGES_MAX},
    },
};

use super::{
    Access,
    backing::{Disk, Extent},
    subsystem::{Answer, Subsystem, add, says},
    wire::length,
};

/// Bytes of a namespace that a command names.
struct Range<'a> {
    disk: &'a Disk,
    at: u64,
    bytes: u64,
}

/// The namespace of a command.
fn disk<'a>(subsystem: &'a Subsystem, command: &Command) -> Result<&'a Disk, Status> {
    let index = usize::try_from(command.nsid()).ok().and_then(|nsid| nsid.checked_sub(1));
    index.and_then(|index| subsystem.disks.get(index)).ok_or(Status::INVALID_NAMESPACE.with_dnr())
}

fn range<'a>(subsystem: &'a Subsystem, command: &Command) -> Result<Range<'a>, Status> {
    let (disk, of) = (disk(subsystem, command)?, command.range());
    bytes_of(disk, of.slba, of.nlb.get()).ok_or(Status::LBA_OUT_OF_RANGE.with_dnr())
}

/// `None`: past the end.
fn bytes_of(disk: &Disk, slba: u64, blocks: u32) -> Option<Range<'_>> {
    slba.checked_add(blocks.into()).filter(|end| *end <= disk.blocks())?;
    let block = u64::from(disk.block_bytes());
    Some(Range { disk, at: slba * block, bytes: u64::from(blocks) * block })
}

fn writable(disk: &Disk) -> Result<(), Status> {
    if disk.access() == Access::ReadOnly { Err(says::WRITE_PROTECTED) } else { Ok(()) }
}

/// Bytes of a range that moves: not above MDTS.
fn moved(subsystem: &Subsystem, range: &Range<'_>) -> Result<u32, Status> {
    let fits = u32::try_from(range.bytes).ok().filter(|bytes| *bytes <= subsystem.config.transfer_bytes());
    fits.ok_or(says::INVALID_FIELD)
}

/// How many bytes a command may take from the host, after everything about it was checked that can be before they are there.
pub(super) fn wants(subsystem: &Subsystem, command: &Command) -> Result<RangeInclusive<u32>, Status> {
    match command.opcode() {
        opcode::WRITE => {
            let range = range(subsystem, command)?;
            writable(range.disk)?;
            moved(subsystem, &range).map(|bytes| bytes..=bytes)
        }
        opcode::DATASET_MANAGEMENT => {
            writable(disk(subsystem, command)?)?;
            // Linux hosts always send room for all ranges that there can be.
            Ok(length(ranges_bytes(command))..=length(DSM_RANGES_MAX * DSM_RANGE_BYTES))
        }
        _ => Err(Status::INVALID_OPCODE.with_dnr()),
    }
}

/// What goes to the host for a command.
#[derive(Default)]
pub(super) struct Out {
    /// Bytes of its own.
    pub(super) bytes: Vec<u8>,
    /// Bytes of a namespace; there are none then of its own.
    shared: Vec<Extent>,
}

impl Out {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.shared.clear();
    }

    /// The parts of bytes `at` to `at + bytes`, as far as there are any, in order.
    pub(super) fn parts(&self, at: usize, bytes: usize) -> impl Iterator<Item = &[u8]> + Clone {
        let mut begin = 0;
        let all = core::iter::once(self.bytes.as_slice()).chain(self.shared.iter().map(Extent::bytes));
        all.filter_map(move |part| {
            let (from, to) = (at.max(begin), (at + bytes).min(begin + part.len()));
            let inside = part.get(from.saturating_sub(begin)..to.saturating_sub(begin));
            begin += part.len();
            inside.filter(|inside| !inside.is_empty())
        })
    }

    /// Bytes of all.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.shared.iter().map(|shared| shared.bytes().len()).sum::<usize>()
    }
}

/// Whether carrying a command out may take long: what waits to be sent goes first.
pub(super) fn may_block(subsystem: &Subsystem, command: &Command) -> bool {
    command.nsid() == NSID_ALL || disk(subsystem, command).is_ok_and(Disk::is_file)
}

/// Carries out an I/O command. `data`: what [`wants`] asked for. What goes to the host is put into `out`, at most `out_bytes` of it, which
/// is what the command's descriptor says.
pub(super) fn run(subsystem: &Subsystem, command: &Command, data: &[u8], out: &mut Out, out_bytes: u32) -> Answer {
    let done = match command.opcode() {
        opcode::FLUSH => flush(subsystem, command),
        opcode::READ => read(subsystem, command, out, out_bytes),
        opcode::WRITE => write(subsystem, command, data),
        opcode::WRITE_ZEROES => write_zeroes(subsystem, command),
        opcode::DATASET_MANAGEMENT => deallocate(subsystem, command, data),
        _ => Err(Status::INVALID_OPCODE.with_dnr()),
    };
    done.map_or_else(Answer::of, |()| Answer::SUCCESS)
}

fn read(subsystem: &Subsystem, command: &Command, out: &mut Out, out_bytes: u32) -> Result<(), Status> {
    let range = range(subsystem, command)?;
    let bytes = moved(subsystem, &range)?;
    if bytes != out_bytes {
        return Err(says::DATA_LENGTH);
    }
    if !range.disk.share(range.at, bytes as usize, &mut out.shared).map_err(unread)? {
        out.bytes.resize(bytes as usize, 0);
        range.disk.read(range.at, &mut out.bytes).map_err(unread)?;
    }
    add(&subsystem.tally.reads, 1);
    add(&subsystem.tally.read_bytes, bytes.into());
    Ok(())
}

fn unread(_: io::Error) -> Status {
    Status::UNRECOVERED_READ
}

fn write(subsystem: &Subsystem, command: &Command, data: &[u8]) -> Result<(), Status> {
    let range = range(subsystem, command)?;
    writable(range.disk)?;
    // A fault on purpose may have asked for less than all of it.
    let data = data.get(..usize::try_from(range.bytes).unwrap_or(usize::MAX).min(data.len())).unwrap_or(data);
    range.disk.write(range.at, data).map_err(|error| write_status(&error))?;
    force(range.disk, command)?;
    add(&subsystem.tally.writes, 1);
    add(&subsystem.tally.written_bytes, data.len() as u64);
    Ok(())
}

fn write_zeroes(subsystem: &Subsystem, command: &Command) -> Result<(), Status> {
    let range = range(subsystem, command)?;
    writable(range.disk)?;
    range.disk.zero(range.at, range.bytes).map_err(|error| write_status(&error))?;
    force(range.disk, command)
}

/// FUA.
fn force(disk: &Disk, command: &Command) -> Result<(), Status> {
    if !IoFlags::from_dword12(command.dword(12)).contains(IoFlags::FUA) {
        return Ok(());
    }
    disk.flush().map_err(|error| write_status(&error))
}

fn flush(subsystem: &Subsystem, command: &Command) -> Result<(), Status> {
    if command.nsid() != NSID_ALL {
        return disk(subsystem, command)?.flush().map_err(|error| write_status(&error));
    }
    subsystem.disks.iter().try_for_each(|disk| disk.flush().map_err(|error| write_status(&error)))
}

/// Bytes of the ranges of a Dataset Management: NR counts from zero.
fn ranges_bytes(command: &Command) -> usize {
    (usize::from(command.dword(10).to_le_bytes()[0]) + 1) * DSM_RANGE_BYTES
}

/// Dataset Management: deallocated memory is given back and reads as zeroes; of files it is advice that is not taken.
fn deallocate(subsystem: &Subsystem, command: &Command, data: &[u8]) -> Result<(), Status> {
    let disk = disk(subsystem, command)?;
    writable(disk)?;
    let ranges = data.get(..ranges_bytes(command)).ok_or(says::DATA_LENGTH)?;
    let ranges = ranges.chunks_exact(DSM_RANGE_BYTES).map(|raw| {
        let blocks = raw.get(4..8).and_then(|raw| raw.try_into().ok()).map_or(0, u32::from_le_bytes);
        let slba = raw.get(8..16).and_then(|raw| raw.try_into().ok()).map_or(0, u64::from_le_bytes);
        bytes_of(disk, slba, blocks).ok_or(Status::LBA_OUT_OF_RANGE.with_dnr())
    });
    // All are checked before anything is done.
    let ranges = ranges.collect::<Result<Vec<_>, _>>()?;
    if command.dword(11) & 4 == 0 || disk.is_file() {
        return Ok(());
    }
    ranges.iter().try_for_each(|range| disk.zero(range.at, range.bytes)).map_err(|error| write_status(&error))
}

fn write_status(error: &io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => says::NO_SPACE,
        _ => Status::WRITE_FAULT,
    }
}
