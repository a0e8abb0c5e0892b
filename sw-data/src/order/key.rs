//! Keys: what makes one shuffle differ from another.

/// Odd, near 2⁶⁴ divided by the golden ratio: the step of `SplitMix64`.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A key, made from a seed by naming what it is for.
///
/// Not for secrets: it spreads, it does not hide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u64);

impl Key {
    /// Of a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(STEP)))
    }

    /// The key of a part, told apart by a number: an epoch, a window, a round.
    pub(super) fn part(self, number: u64) -> Self {
        // The key and the number go different ways, so that part b of key a is not part a of key b.
        Self(mix(self.0.wrapping_mul(STEP) ^ mix(number.wrapping_add(STEP))))
    }

    /// A number below `bound`, evenly spread, that belongs to `value`.
    pub(super) fn below(self, value: u64, bound: u64) -> u64 {
        scale(mix(self.0 ^ value.wrapping_mul(STEP)), bound)
    }
}

/// The finaliser of `SplitMix64` (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Scales 64 bits to `0..bound` by multiplication (Lemire, "Fast random integer generation in an interval", 2019, without its
/// rejection: the bias is `bound` / 2⁶⁴).
fn scale(bits: u64, bound: u64) -> u64 {
    let wide = u128::from(bits) * u128::from(bound);
    u64::try_from(wide >> 64).unwrap_or(u64::MAX)
}
