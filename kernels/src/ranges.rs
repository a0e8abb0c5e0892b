//! Many ranges in one launch: gather and scatter, widening, byte order; and gather's twin.

use sw_mem::{ByteLen, GpuVa};

use crate::launch::{Entry, Launch, PlanError, put};
use crate::{swap::Element, widen::Narrow};

/// Bytes of the target that one warp writes.
const TILE_BYTES: u64 = 16_384;
/// The widest store.
const LINE_BYTES: u64 = 16;
/// Bytes of a range of the target at most.
const LEN_MAX: u64 = 1 << 44;

/// What is done to each range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Bytes go as they are: gather out of a landing buffer, scatter into one. Any addresses, any length.
    Move,
    /// The bytes of each element are turned. Targets and lengths are multiples of the element; sources have any address. In place, too.
    Swap(Element),
    /// Elements become f32. Targets are multiples of 4, and lengths, which are those of the target; sources have any address.
    Widen(Narrow),
}

impl Work {
    fn entry(self) -> Entry {
        match self {
            Self::Move => Entry::Move,
            Self::Swap(Element::Two) => Entry::Swap2,
            Self::Swap(Element::Four) => Entry::Swap4,
            Self::Swap(Element::Eight) => Entry::Swap8,
            Self::Widen(Narrow::Bf16) => Entry::WidenBf16,
            Self::Widen(Narrow::F16) => Entry::WidenF16,
            Self::Widen(Narrow::E4m3Fn) => Entry::WidenE4m3,
            Self::Widen(Narrow::E5m2) => Entry::WidenE5m2,
        }
    }

    /// What targets and lengths are multiples of, in bytes.
    pub fn unit(self) -> u64 {
        match self {
            Self::Move => 1,
            Self::Swap(element) => element.bytes(),
            Self::Widen(_) => 4,
        }
    }

    /// Bytes of the source for `len` bytes of the target.
    pub fn source_len(self, len: u64) -> u64 {
        match self {
            Self::Move | Self::Swap(_) => len,
            Self::Widen(narrow) => len / 4 * narrow.bytes(),
        }
    }
}

/// One range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte of the source.
    pub source: GpuVa,
    /// First byte of the target.
    pub target: GpuVa,
    /// Bytes of the target.
    pub len: ByteLen,
}

/// A launch over many ranges: jobs to be copied to the device, and one kernel to run.
///
/// Ranges run in no order: none may overlap another's target, nor its own source other than for [`Work::Swap`] in place.
#[derive(Clone, Debug)]
pub struct RangePlan {
    work: Work,
    jobs: Vec<u8>,
    count: u64,
    tiles: u64,
}

impl RangePlan {
    /// Ranges without a byte are left out.
    ///
    /// # Errors
    /// `Nothing` if no range has a byte; `Misaligned` as [`Work`] says; `TooMuch` above 2^44 bytes, or outside the address space.
    pub fn new(work: Work, ranges: &[Range]) -> Result<Self, PlanError> {
        let (mut jobs, mut count, mut tiles) = (Vec::with_capacity(ranges.len() * 32), 0, 0u64);
        for range in ranges.iter().filter(|range| range.len.0 > 0) {
            let (target, len) = (range.target.raw(), range.len.0);
            let inside = |at: u64, len: u64| at.checked_add(len).and_then(|end| end.checked_add(TILE_BYTES)).is_some();
            if len > LEN_MAX || !inside(target, len) || !inside(range.source.raw(), work.source_len(len)) {
                return Err(PlanError::TooMuch);
            }
            if !target.is_multiple_of(work.unit()) || !len.is_multiple_of(work.unit()) {
                return Err(PlanError::Misaligned);
            }
            put(&mut jobs, &[range.source.raw(), target, len, tiles]);
            let more = (target % LINE_BYTES + len).div_ceil(TILE_BYTES);
            tiles = tiles.checked_add(more).ok_or(PlanError::TooMuch)?;
            count += 1;
        }
        if count == 0 { Err(PlanError::Nothing) } else { Ok(Self { work, jobs, count, tiles }) }
    }

    /// What the device needs at an address that is a multiple of 8, before the launch.
    pub fn jobs(&self) -> &[u8] {
        &self.jobs
    }

    /// The kernel; `jobs` is where the jobs lie.
    ///
    /// # Errors
    /// `TooMuch` if there are more tiles than a launch has.
    pub fn launch(&self, jobs: GpuVa) -> Result<Launch, PlanError> {
        Launch::of_warps(self.work.entry(), self.tiles, &[jobs.raw(), self.count, self.tiles])
    }
}

/// The twin of the gather kernel: the bytes of `ranges`, each offset and length in `landing` and offset in `into`.
///
/// # Errors
/// `Length` if a range leaves one of the two; nothing was moved then.
pub fn gather(landing: &[u8], ranges: &[(u64, u64, u64)], into: &mut [u8]) -> Result<(), PlanError> {
    let span = |at: u64, len: u64| {
        let (from, len) = (usize::try_from(at).ok()?, usize::try_from(len).ok()?);
        Some(from..from.checked_add(len)?)
    };
    let inside = |(from, to, len): &(u64, u64, u64)| {
        span(*from, *len).is_some_and(|at| landing.get(at).is_some())
            && span(*to, *len).is_some_and(|at| into.get(at).is_some())
    };
    if !ranges.iter().all(inside) {
        return Err(PlanError::Length);
    }
    for (from, to, len) in ranges {
        let source = span(*from, *len).and_then(|at| landing.get(at)).ok_or(PlanError::Length)?;
        let target = span(*to, *len).and_then(|at| into.get_mut(at)).ok_or(PlanError::Length)?;
        target.copy_from_slice(source);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(source: u64, target: u64, len: u64) -> Range {
        Range { source: GpuVa::new(source), target: GpuVa::new(target), len: ByteLen(len) }
    }

    #[test]
    fn tiles_cover_a_range_from_the_line_that_it_starts_in() {
        let tiles = |target, len| RangePlan::new(Work::Move, &[range(0, target, len)]).unwrap().tiles;
        assert_eq!((tiles(4096, 16_384), tiles(4097, 16_384), tiles(4096, 16_385), tiles(15, 1)), (1, 2, 2, 1));
    }

    #[test]
    fn what_a_kernel_cannot_do_is_refused() {
        let error = |work, range| RangePlan::new(work, &[range]).err();
        let four = Work::Swap(Element::Four);
        assert_eq!(error(four, range(1, 8, 8)), None);
        assert_eq!(error(four, range(0, 2, 8)), Some(PlanError::Misaligned));
        assert_eq!(error(four, range(0, 8, 6)), Some(PlanError::Misaligned));
        assert_eq!(error(Work::Widen(Narrow::F16), range(0, 6, 8)), Some(PlanError::Misaligned));
        assert_eq!(error(Work::Move, range(0, 0, 0)), Some(PlanError::Nothing));
        assert_eq!(error(Work::Move, range(u64::MAX - 3, 0, 8)), Some(PlanError::TooMuch));
        assert_eq!(error(Work::Move, range(0, 0, LEN_MAX + 1)), Some(PlanError::TooMuch));
    }

    #[test]
    fn gather_moves_all_or_nothing() {
        let mut into = [0; 6];
        assert_eq!(gather(b"abcdef", &[(4, 0, 2), (0, 3, 3)], &mut into), Ok(()));
        assert_eq!(&into, b"ef\0abc");
        for bad in [(5, 0, 2), (0, 5, 2), (u64::MAX, 0, 2), (0, 0, u64::MAX)] {
            assert_eq!(gather(b"abcdef", &[(0, 0, 1), bad], &mut into), Err(PlanError::Length));
        }
        assert_eq!(&into, b"ef\0abc");
    }
}
