//! What `O_DIRECT` needs on a file, found out without guessing.
//!
//! Order: statx (Linux 6.1, per file); else the logical block size of the block device below; else reads that are tried
//! at 512 and 4096 bytes. A file system that takes `O_DIRECT` but then copies (tmpfs, FUSE, network file systems) is
//! refused here: a route that is called direct must be one.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use sw_engine::{Granularity, Reason};

use crate::sys::{self, DirectFacts, Stat};

/// Largest alignment that is believed: a page of 64 KiB. More is a report that makes no sense.
const ALIGN_MAX: u32 = 64 << 10;

/// Alignments that are tried when nobody tells.
const TRIED: [u32; 2] = [512, 4096];

/// Magic numbers of linux `include/uapi/linux/magic.h`: file systems whose `O_DIRECT` goes to a block
/// device (ext, xfs, btrfs, f2fs).
const ON_BLOCK_DEVICES: [i64; 4] = [0xEF53, 0x5846_5342, BTRFS, 0xF2F5_2010];

/// `BTRFS_SUPER_MAGIC`.
const BTRFS: i64 = 0x9123_683E;

/// `FS_COMPR_FL` and `FS_NOCOW_FL` of linux `include/uapi/linux/fs.h`.
const COMPRESSED: u32 = 0x4;
const NO_COW: u32 = 0x0080_0000;

/// `FIEMAP_EXTENT_ENCODED`, `_DATA_INLINE`, and `_UNKNOWN` with `_DELALLOC`, of linux `include/uapi/linux/fiemap.h`.
const ENCODED: u32 = 0x8;
const INLINE: u32 = 0x200;
const NOT_YET: u32 = 0x2 | 0x4;

/// What the file is opened for, as far as direct I/O cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// The granularity of direct I/O on `fd` (opened with `O_DIRECT`) of which statx told `facts`, or why there is none.
fn granularity(fd: BorrowedFd<'_>, stat: &Stat, access: Access, facts: DirectFacts) -> Result<Granularity, Reason> {
    if copies_in_secret(fd, stat, access) {
        return Err(Reason::DirectRefused);
    }
    match facts {
        DirectFacts::Refused => Err(Reason::DirectRefused),
        DirectFacts::Align { memory, offset } => checked(memory, offset).ok_or(Reason::DirectUnaligned),
        DirectFacts::Silent => without_statx(fd, stat),
    }
}

/// The unit in which writes through the page cache and past it may share a file (see `Face::write_unit`).
///
/// The cache fills and writes back pages, and where the file system's blocks are larger (xfs since Linux 6.12, up to 64
/// KiB) whole blocks. A block device has no file system: its cache works in pages.
pub(super) fn write_unit(fd: BorrowedFd<'_>, stat: &Stat, granularity: Granularity) -> u32 {
    let below = if stat.kind() == libc::S_IFBLK { 0 } else { sys::file_system(fd).map_or(ALIGN_MAX, |fs| fs.block) };
    widest_unit([sys::page_bytes(), below, stat.block, granularity.block])
}

/// The widest of these as a power of two. Reports of more than a block can have (a stripe width, a transfer size) are cut
/// down to the largest block.
fn widest_unit(units: [u32; 4]) -> u32 {
    units.into_iter().map(|unit| unit.clamp(1, ALIGN_MAX).next_power_of_two()).max().unwrap_or(ALIGN_MAX)
}

/// The same where statx is silent.
fn without_statx(fd: BorrowedFd<'_>, stat: &Stat) -> Result<Granularity, Reason> {
    let block_device = stat.kind() == libc::S_IFBLK;
    let below = sys::file_system(fd).ok().filter(|below| ON_BLOCK_DEVICES.contains(&below.magic));
    match below {
        _ if block_device => {}
        None => return Err(Reason::DirectRefused),
        // Its unit is its own sector, and what is not a multiple of it is copied rather than refused: trying tells
        // nothing (linux fs/btrfs/direct-io.c, check_direct_IO).
        Some(below) if below.magic == BTRFS => {
            return checked(below.block, below.block).ok_or(Reason::DirectUnaligned);
        }
        Some(_) => {}
    }
    let told = if block_device { sys::logical_block(fd).ok() } else { logical_block_below(stat.device) };
    // The logical block is also what memory must be aligned to before Linux 6.1 told otherwise (open(2), NOTES).
    told.and_then(|block| checked(block, block)).or_else(|| tried(fd)).ok_or(Reason::DirectUnaligned)
}

fn checked(memory: u32, offset: u32) -> Option<Granularity> {
    let sane = |align: u32| align.is_power_of_two() && align <= ALIGN_MAX;
    (sane(memory) && sane(offset)).then_some(Granularity { block: offset, memory })
}

/// Logical block size of the disk that holds file system `device`; a partition asks its disk.
fn logical_block_below(device: u64) -> Option<u32> {
    let node = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    ["queue", "../queue"]
        .iter()
        .find_map(|queue| std::fs::read_to_string(Path::new(&node).join(queue).join("logical_block_size")).ok())
        .and_then(|text| text.trim().parse().ok())
}

/// The smallest alignment at which a read works. A wrong one says EINVAL and does nothing.
fn tried(fd: BorrowedFd<'_>) -> Option<Granularity> {
    // Room for a start at an odd multiple of 512, so that 512 is not accepted only because memory was better aligned.
    let mut memory = vec![0u8; 4 * 4096];
    let start = memory.as_ptr().addr().next_multiple_of(4096) - memory.as_ptr().addr();
    TRIED.into_iter().find_map(|align| {
        let size = sw_mem::index(u64::from(align));
        let at = start + size;
        sys::pread(fd, memory.get_mut(at..at + size)?, i64::from(align)).ok()?;
        checked(align, align)
    })
}

/// Whether the file system takes direct I/O on this file and then goes through the page cache without a word.
///
/// btrfs reads compressed and inline extents so, and (Linux 6.15, `btrfs_direct_write`) writes files that have checksums
/// so. Extents that are not yet on disk may become either. A btrfs that does not tell is given no credit.
fn copies_in_secret(fd: BorrowedFd<'_>, stat: &Stat, access: Access) -> bool {
    if stat.kind() != libc::S_IFREG || !sys::file_system(fd).is_ok_and(|below| below.magic == BTRFS) {
        return false;
    }
    match access {
        Access::Write => !sys::inode_flags(fd).is_ok_and(|flags| flags & NO_COW != 0 && flags & COMPRESSED == 0),
        Access::Read => sys::has_extent(fd, ENCODED | INLINE | NOT_YET).unwrap_or(true),
    }
}

/// Opens a second descriptor of the same file with `O_DIRECT`.
///
/// # Errors
/// Why there is no direct way to this file. `Ok(None)`: the name leads to another file now.
pub(super) fn open(path: &Path, stat: &Stat, access: Access) -> Result<Option<(OwnedFd, Granularity)>, Reason> {
    let flags = if access == Access::Write { libc::O_RDWR } else { libc::O_RDONLY };
    of(sys::open(path, flags | libc::O_DIRECT, 0).map_err(|_| Reason::DirectRefused)?, stat, access)
}

/// What a descriptor with `O_DIRECT` demands.
///
/// # Errors
/// Why there is no direct way to its file. `Ok(None)`: it is of another file than `stat`.
pub(super) fn of(fd: OwnedFd, stat: &Stat, access: Access) -> Result<Option<(OwnedFd, Granularity)>, Reason> {
    match sys::direct_facts(fd.as_fd()) {
        Ok((facts, now)) if now == (stat.device, stat.inode) => {
            granularity(fd.as_fd(), stat, access, facts).map(|found| Some((fd, found)))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This program's own file, opened with `O_DIRECT`; none where its file system refuses.
    fn own_file() -> Option<(std::os::fd::OwnedFd, Stat)> {
        let fd = sys::open(&std::env::current_exe().unwrap(), libc::O_RDONLY | libc::O_DIRECT, 0).ok()?;
        let stat = sys::fstat(fd.as_fd()).unwrap();
        Some((fd, stat))
    }

    #[test]
    fn what_is_found_without_statx_satisfies_what_statx_tells() {
        let Some((fd, stat)) = own_file() else { return println!("skip: no O_DIRECT where the tests are built") };
        let Ok((DirectFacts::Align { memory, offset }, _)) = sys::direct_facts(fd.as_fd()) else {
            return println!("skip: statx does not tell here");
        };
        let found = without_statx(fd.as_fd(), &stat).unwrap();
        assert!(found.block.is_multiple_of(offset) && found.memory.is_multiple_of(memory), "{found:?}");
        let found = tried(fd.as_fd()).unwrap();
        assert!(found.block.is_multiple_of(offset) && found.memory.is_multiple_of(memory), "{found:?}");
    }

    #[test]
    fn a_file_system_that_is_not_on_a_block_device_has_no_direct_way() {
        let fd = sys::open(Path::new("/proc/self/status"), libc::O_RDONLY, 0).unwrap();
        let stat = sys::fstat(fd.as_fd()).unwrap();
        assert_eq!(without_statx(fd.as_fd(), &stat), Err(Reason::DirectRefused));
    }

    #[test]
    fn a_write_unit_is_a_power_of_two_that_holds_page_and_block() {
        assert_eq!(widest_unit([4096, 1024, 4096, 512]), 4096);
        assert_eq!(widest_unit([4096, 16_384, 4096, 512]), 16_384);
        assert_eq!(widest_unit([65_536, 4096, 4096, 512]), 65_536);
        assert_eq!(widest_unit([4096, 4096, 1_536_000, 512]), ALIGN_MAX);
        assert_eq!(widest_unit([4096, 0, 5000, 512]), 8192);
    }

    #[test]
    fn alignments_that_make_no_sense_are_not_believed() {
        assert_eq!(checked(512, 3), None);
        assert_eq!(checked(0, 512), None);
        assert_eq!(checked(4, 1 << 20), None);
        assert_eq!(checked(4, 512), Some(Granularity { block: 512, memory: 4 }));
    }
}
