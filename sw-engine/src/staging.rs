//! How large staging slabs are, chosen from measured copy rates, and how many a budget of bytes holds.
//!
//! Large slabs cost fewer copies; small ones let a read and a copy overlap earlier and more of them fit a budget. So the
//! smallest size that is practically as fast as the best is the right one. How many reads must be under way depends on the
//! object, so the number of slabs is what the budget holds. Pure: the composing layer measures.

use core::fmt;

/// The smallest slab that is measured, in bytes: below it a copy engine's cost per copy shows on every link.
pub const SLAB_BYTES_MIN: u32 = 256 << 10;
/// The largest slab that is measured, in bytes.
pub const SLAB_BYTES_MAX: u32 = 4 << 20;
/// Slabs of a ring at least: one is read into while another is copied from.
pub const SLABS_MIN: u32 = 2;
/// Slabs of a ring at most: far above what any queue keeps in flight.
pub const SLABS_MAX: u32 = 1024;

/// A rate within this many thousandths of the best counts as the best: noise of a short measurement.
const TOLERANCE_PER_1000: u64 = 50;

/// A slab size with its measured rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabRate {
    /// Bytes of one slab.
    pub slab_bytes: u32,
    /// Bytes per second that copies of that size reached.
    pub bytes_per_s: u64,
}

/// A ring of slabs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagingShape {
    /// Bytes of one slab.
    pub slab_bytes: u32,
    /// How many.
    pub count: u32,
}

impl StagingShape {
    /// As many slabs of `slab_bytes` (above zero) as `budget_bytes` hold, from [`SLABS_MIN`] to [`SLABS_MAX`].
    pub fn within(budget_bytes: u64, slab_bytes: u32) -> Self {
        let fit = budget_bytes / u64::from(slab_bytes.max(1));
        let count = u32::try_from(fit).unwrap_or(u32::MAX).clamp(SLABS_MIN, SLABS_MAX);
        Self { slab_bytes, count }
    }

    /// Bytes of all slabs.
    pub fn bytes(self) -> u64 {
        u64::from(self.slab_bytes) * u64::from(self.count)
    }
}

impl fmt::Display for StagingShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} slabs of {} KiB", self.count, self.slab_bytes >> 10)
    }
}

/// The sizes worth measuring, ascending: powers of two from [`SLAB_BYTES_MIN`] to [`SLAB_BYTES_MAX`] that no larger I/O
/// than `io_bytes_max` would leave partly empty, and of which the budget holds [`SLABS_MIN`]. Never empty: where none is
/// in range it is `io_bytes_max` itself.
pub fn slab_candidates(budget_bytes: u64, io_bytes_max: u32) -> Vec<u32> {
    let fits = |bytes: &u32| *bytes <= io_bytes_max && u64::from(*bytes) * u64::from(SLABS_MIN) <= budget_bytes;
    let sizes = core::iter::successors(Some(SLAB_BYTES_MIN), |bytes| bytes.checked_mul(2));
    let found: Vec<u32> = sizes.take_while(|bytes| *bytes <= SLAB_BYTES_MAX).filter(fits).collect();
    if found.is_empty() { vec![io_bytes_max] } else { found }
}

/// The smallest slab whose rate is within 5 % of the best, and as many of it as the budget holds. Sizes of which the
/// budget does not hold [`SLABS_MIN`] are passed over. `None` if nothing is left.
pub fn choose_staging(rates: &[SlabRate], budget_bytes: u64) -> Option<StagingShape> {
    let fits =
        |rate: &&SlabRate| rate.slab_bytes > 0 && u64::from(rate.slab_bytes) * u64::from(SLABS_MIN) <= budget_bytes;
    let best = rates.iter().filter(fits).map(|rate| rate.bytes_per_s).max()?;
    let enough = |rate: &&SlabRate| {
        u128::from(rate.bytes_per_s) * 1000 >= u128::from(best) * u128::from(1000 - TOLERANCE_PER_1000)
    };
    let slab = rates.iter().filter(fits).filter(enough).map(|rate| rate.slab_bytes).min()?;
    Some(StagingShape::within(budget_bytes, slab))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(of: &[(u32, u64)]) -> Vec<SlabRate> {
        of.iter().map(|&(kib, bytes_per_s)| SlabRate { slab_bytes: kib << 10, bytes_per_s }).collect()
    }

    #[test]
    fn the_smallest_slab_within_five_percent_of_the_best_wins() {
        let measured = rates(&[(256, 18_000), (512, 24_000), (1024, 25_000), (2048, 25_100), (4096, 25_200)]);
        let shape = choose_staging(&measured, 32 << 20).unwrap();
        assert_eq!(shape, StagingShape { slab_bytes: 512 << 10, count: 64 });
        assert_eq!((shape.bytes(), shape.to_string()), (32 << 20, "64 slabs of 512 KiB".to_owned()));
    }

    #[test]
    fn exactly_five_percent_is_enough_and_less_is_not() {
        assert_eq!(choose_staging(&rates(&[(256, 950), (512, 1000)]), 1 << 20).unwrap().slab_bytes, 256 << 10);
        assert_eq!(choose_staging(&rates(&[(256, 949), (512, 1000)]), 1 << 20).unwrap().slab_bytes, 512 << 10);
    }

    #[test]
    fn the_order_of_the_measurements_does_not_matter_and_rates_do_not_overflow() {
        let mut measured = rates(&[(1024, u64::MAX), (256, u64::MAX - 1), (512, u64::MAX / 2)]);
        let first = choose_staging(&measured, 8 << 20);
        measured.reverse();
        assert_eq!(first, choose_staging(&measured, 8 << 20));
        assert_eq!(first.unwrap().slab_bytes, 256 << 10);
    }

    #[test]
    fn a_slab_that_the_budget_holds_once_only_is_passed_over() {
        let measured = rates(&[(256, 1), (1024, 1000)]);
        assert_eq!(choose_staging(&measured, (2 << 20) - 1).unwrap(), StagingShape { slab_bytes: 256 << 10, count: 7 });
        assert_eq!(choose_staging(&measured, 100), None);
        assert_eq!(choose_staging(&[], 1 << 30), None);
        assert_eq!(choose_staging(&[SlabRate { slab_bytes: 0, bytes_per_s: 9 }], 1 << 30), None);
    }

    #[test]
    fn the_number_of_slabs_has_limits() {
        assert_eq!(StagingShape::within(u64::MAX, 4096).count, SLABS_MAX);
        assert_eq!(StagingShape::within(0, 4096).count, SLABS_MIN);
        assert_eq!(StagingShape::within(4096, 0).count, SLABS_MAX);
    }

    #[test]
    fn candidates_stay_inside_io_size_and_budget_and_are_never_none() {
        assert_eq!(slab_candidates(32 << 20, 1 << 20), [256 << 10, 512 << 10, 1 << 20]);
        assert_eq!(slab_candidates(1 << 30, 64 << 20).last(), Some(&SLAB_BYTES_MAX));
        assert_eq!(slab_candidates(1 << 20, 1 << 20), [256 << 10, 512 << 10]);
        assert_eq!(slab_candidates(1 << 20, 64 << 10), [64 << 10]);
        assert_eq!(slab_candidates(0, 1 << 20), [1 << 20]);
    }
}
