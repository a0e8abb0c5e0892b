//! Physical Region Page entries: where the data of a command lies, as pages.
//!
//! ```text
//!   one page     PRP1 = start (may lie inside the page)         PRP2 = poison
//!   two pages    PRP1 = start                                   PRP2 = second page
//!   more         PRP1 = start    PRP2 = list ──► page, page, … , next list chunk ──► page, …, poison
//! ```
//!
//! Only PRP1 may point inside a page, at a multiple of 4 bytes; all others are page aligned, and the last entry of a list
//! page is the next list if there is more (Base, "Physical Region Page Entry and List").
//!
//! Nothing here owns memory: lists lie in chunks that the caller brings, see [`ListMemory`].
//!
//! An entry that the command does not use is [`POISON_PRP`], so that a controller that walks too far faults instead of
//! writing to somebody's memory. The specification calls those entries reserved. Behind a list stands one poison entry
//! where the chunk has room: a walk that goes too far meets it before any entry of an earlier command.

use sw_mem::{ByteLen, Iova};

use crate::wire::DataPointer;

/// What stands in unused entries: no canonical address on x86-64 or aarch64, above every IOMMU's width, aligned to any
/// page size. Recognisable in a DMA fault of the kernel log.
pub const POISON_PRP: u64 = 0x0BAD_BAD0_0000_0000;

/// Bytes of one entry.
pub const ENTRY_BYTES: usize = 8;

/// The memory page size that CC.MPS selected: a power of two, 4 KiB to 128 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize(u32);

impl PageSize {
    /// 4 KiB, the smallest.
    pub const KIB4: PageSize = PageSize(4096);

    /// `bytes`, or `None` if it is no power of two from 4 KiB to 128 MiB (the range of CC.MPS).
    pub fn new(bytes: u32) -> Option<Self> {
        (bytes.is_power_of_two() && (1 << 12..=1 << 27).contains(&bytes)).then_some(Self(bytes))
    }

    /// In bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    #[inline]
    const fn offset_in(self, at: u64) -> u64 {
        at & (self.0 as u64 - 1)
    }
}

/// Memory that is contiguous for the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte, a multiple of 4.
    pub iova: Iova,
    /// Bytes, not 0.
    pub len: ByteLen,
}

/// Why PRP entries cannot describe some memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotPrp {
    /// No bytes.
    #[error("no bytes to describe")]
    Empty,
    /// The first byte is no multiple of 4.
    #[error("data starts at {iova:?}, which is no multiple of 4 bytes")]
    Start {
        /// Where it starts.
        iova: Iova,
    },
    /// Two segments meet inside a page. The data can be split there.
    #[error("segments meet inside a page, {after_bytes} bytes from the start")]
    Ragged {
        /// Bytes in front of the place where they meet: a command of so many bytes can be described.
        after_bytes: u64,
    },
    /// The list chunks have no room.
    #[error("the list has no room past {fits_bytes} bytes")]
    ListFull {
        /// Bytes from the start that fit.
        fits_bytes: u64,
    },
    /// A segment ends past 64 bits.
    #[error("a segment ends past the address space")]
    Wraps,
    /// The caller's list chunk is not aligned, crosses a page, or has no place for a link: a bug of its owner.
    #[error("list chunk {index} at {iova:?} does not lie as the specification asks")]
    Chunk {
        /// Which chunk.
        index: u32,
        /// Where it lies.
        iova: Iova,
    },
}

/// Memory for the list of one command, in chunks inside a page each.
pub trait ListMemory {
    /// Chunk `index` as the controller sees it: its address, a multiple of 8, and its entries. It lies inside one page;
    /// one that has a successor ends at the end of its page, since only the last entry of a page links. `None`: no more.
    fn chunk(&self, index: u32) -> Option<(Iova, u32)>;

    /// Copies whole entries to chunk `index`, `at_bytes` from its start; inside the chunk.
    fn put(&mut self, index: u32, at_bytes: usize, entries: &[u8]);
}

/// No list: commands of at most two pages.
#[derive(Clone, Copy, Debug)]
pub struct NoList;

impl ListMemory for NoList {
    fn chunk(&self, _index: u32) -> Option<(Iova, u32)> {
        None
    }

    fn put(&mut self, _index: u32, _at_bytes: usize, _entries: &[u8]) {}
}

/// Both entries of a command, and what the list cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prps {
    /// PRP1.
    pub prp1: u64,
    /// PRP2.
    pub prp2: u64,
    /// Bytes written to the list, poison included; 0 without one.
    pub list_bytes: u32,
}

impl Prps {
    /// As the command's data pointer.
    #[inline]
    pub const fn pointer(self) -> DataPointer {
        DataPointer::Prp(self.prp1, self.prp2)
    }
}

/// The entries of one segment that spans one or two pages; `None` for everything else (also for what is refused), which
/// [`describe`] then takes or names. The way of short commands: no list is looked at.
#[inline]
pub fn short(page: PageSize, data: Segment) -> Option<Prps> {
    let (at, len) = (data.iova.raw(), data.len.0);
    let first = page.bytes() - page.offset_in(at);
    let whole = len.wrapping_sub(1) < first + page.bytes() && at & 3 == 0 && at.checked_add(len).is_some();
    let prp2 = if len > first { at.wrapping_add(first) } else { POISON_PRP };
    whole.then_some(Prps { prp1: at, prp2, list_bytes: 0 })
}

/// The entries of one or more segments, with a list where it needs one.
///
/// # Errors
/// [`NotPrp`]. The list's contents are of no use then; the command was not touched.
pub fn describe<L: ListMemory>(page: PageSize, data: &[Segment], list: &mut L) -> Result<Prps, NotPrp> {
    if let [one] = data
        && let Some(prps) = short(page, *one)
    {
        return Ok(prps);
    }
    let pages = check(page, data)?;
    let mut walk = Pages { page, data, segment: 0, next: None };
    let prp1 = walk.next().ok_or(NotPrp::Empty)?;
    if pages <= 2 {
        return Ok(Prps { prp1, prp2: walk.next().unwrap_or(POISON_PRP), list_bytes: 0 });
    }
    let first_bytes = page.bytes() - page.offset_in(prp1);
    let mut writer = Writer { page, list, list_bytes: 0, first_bytes };
    let prp2 = writer.write(&mut walk, pages - 1)?;
    Ok(Prps { prp1, prp2, list_bytes: writer.list_bytes })
}

/// Checks the rules for each segment and gives the number of pages.
fn check(page: PageSize, data: &[Segment]) -> Result<u64, NotPrp> {
    let (mut pages, mut before) = (0, 0u64);
    let last = data.len().checked_sub(1).ok_or(NotPrp::Empty)?;
    for (index, segment) in data.iter().enumerate() {
        let (at, len) = (segment.iova.raw(), segment.len.0);
        if len == 0 {
            return Err(NotPrp::Empty);
        }
        let end = at.checked_add(len).ok_or(NotPrp::Wraps)?;
        if index == 0 && at & 3 != 0 {
            return Err(NotPrp::Start { iova: segment.iova });
        }
        if index > 0 && page.offset_in(at) != 0 {
            return Err(NotPrp::Ragged { after_bytes: before });
        }
        before = before.checked_add(len).ok_or(NotPrp::Wraps)?;
        if index < last && page.offset_in(end) != 0 {
            return Err(NotPrp::Ragged { after_bytes: before });
        }
        // No sum wraps: the offset is not above `at`, and `at` plus the length did not wrap.
        pages += (page.offset_in(at) + len).div_ceil(page.bytes());
    }
    Ok(pages)
}

/// The page entries of checked segments, in order.
struct Pages<'a> {
    page: PageSize,
    data: &'a [Segment],
    segment: usize,
    next: Option<u64>,
}

impl Iterator for Pages<'_> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        let segment = self.data.get(self.segment)?;
        let at = self.next.unwrap_or(segment.iova.raw());
        let end = segment.iova.raw() + segment.len.0;
        // The last page of the address space has no following one.
        self.next = (at - self.page.offset_in(at)).checked_add(self.page.bytes()).filter(|&following| following < end);
        if self.next.is_none() {
            self.segment += 1;
        }
        Some(at)
    }
}

/// Entries that are gathered before they are handed to the list's memory.
const GATHER: usize = 64;

struct Writer<'a, L> {
    page: PageSize,
    list: &'a mut L,
    list_bytes: u32,
    /// Bytes that PRP1 covers, for the text of [`NotPrp::ListFull`].
    first_bytes: u64,
}

impl<L: ListMemory> Writer<'_, L> {
    /// Writes `entries` entries and gives the address of the first chunk.
    fn write(&mut self, pages: &mut Pages<'_>, entries: u64) -> Result<u64, NotPrp> {
        let (mut left, mut index) = (entries, 0);
        let (first, mut room) = self.chunk(0, entries, 0)?;
        loop {
            // All that is left fits, or the last place of the chunk links to the next.
            if left <= u64::from(room) {
                self.fill(index, left, pages);
                self.poison(index, left, room);
                return Ok(first.raw());
            }
            let here = u64::from(room) - 1;
            self.fill(index, here, pages);
            left -= here;
            let (next, next_room) = self.chunk(index + 1, left, entries - left)?;
            self.put(index, here, &next.raw().to_le_bytes());
            (index, room) = (index + 1, next_room);
        }
    }

    /// A chunk that was checked for `left` entries, of which `done` stand in chunks before.
    fn chunk(&self, index: u32, left: u64, done: u64) -> Result<(Iova, u32), NotPrp> {
        // The place that would link here, PRP2 or the last of the chunk before, can name a page instead.
        let fits_bytes = self.first_bytes + (done + 1) * self.page.bytes();
        let (iova, room) = self.list.chunk(index).ok_or(NotPrp::ListFull { fits_bytes })?;
        let len = u64::from(room) * 8;
        let end = self.page.offset_in(iova.raw()) + len;
        let links = left > u64::from(room);
        let misplaced = !iova.is_aligned_to(8) || room == 0 || end > self.page.bytes();
        if misplaced || links && room < 2 {
            return Err(NotPrp::Chunk { index, iova });
        }
        if links && end != self.page.bytes() {
            // It cannot link, so that this is all there is.
            let fits_bytes = fits_bytes + (u64::from(room) - 1) * self.page.bytes();
            return Err(NotPrp::ListFull { fits_bytes });
        }
        Ok((iova, room))
    }

    fn fill(&mut self, index: u32, entries: u64, pages: &mut Pages<'_>) {
        let mut done = 0;
        while done < entries {
            let mut gathered = [0; GATHER * ENTRY_BYTES];
            let mut used = 0;
            for (to, entry) in
                gathered.chunks_exact_mut(ENTRY_BYTES).zip(pages.by_ref().take(sw_mem::index(entries - done)))
            {
                to.copy_from_slice(&entry.to_le_bytes());
                used += 1;
            }
            if used == 0 {
                break;
            }
            self.put(index, done, &gathered[..used * ENTRY_BYTES]);
            done += used as u64;
        }
    }

    fn poison(&mut self, index: u32, used: u64, room: u32) {
        if used < u64::from(room) {
            self.put(index, used, &POISON_PRP.to_le_bytes());
        }
    }

    fn put(&mut self, index: u32, at_entry: u64, bytes: &[u8]) {
        self.list.put(index, sw_mem::index(at_entry) * ENTRY_BYTES, bytes);
        self.list_bytes = self.list_bytes.saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests;
