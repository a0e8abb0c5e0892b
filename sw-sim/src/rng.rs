//! Random numbers that replay: xoshiro256** seeded by SplitMix64, and split by name.
//!
//! Blackman and Vigna, "Scrambled linear pseudorandom number generators", ACM TOMS 47(4), 2021. Each component and each
//! purpose has a generator of its own, so that a draw added in one place shifts no other.

/// A generator.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
    /// Words that come first, last one first: a fuzzer's choices.
    tape: Vec<u64>,
}

/// SplitMix64: one step of the stream, and its output.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Rng {
    /// From a seed; any value is fine.
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self { state: [(); 4].map(|()| split_mix(&mut state)), tape: Vec::new() }
    }

    /// The same with `bytes`, eight by eight, as its first words.
    #[must_use]
    pub fn with_tape(mut self, bytes: &[u8]) -> Self {
        self.tape = bytes.as_chunks().0.iter().rev().map(|word| u64::from_le_bytes(*word)).collect();
        self
    }

    /// A generator for `name` below `seed`: the same every time, and unrelated to those of other names.
    pub fn split(seed: u64, name: &str) -> Self {
        // FNV-1a over the name.
        let hash = name
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
        let mut state = seed ^ hash;
        Self::new(split_mix(&mut state) ^ seed.rotate_left(32))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        if let Some(word) = self.tape.pop() {
            return word;
        }
        let [a, b, c, d] = self.state;
        let out = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        out
    }

    /// Below `bound`, which is above zero (0 gives 0). Bias below 2^-32 for the bounds used here.
    pub fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next_u64()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// From `low` to `high`, both included.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// As `range`, for 32 bits.
    pub fn range32(&mut self, low: u32, high: u32) -> u32 {
        u32::try_from(self.range(low.into(), high.into())).unwrap_or(high)
    }

    /// True in `of` of 1000 cases.
    pub fn per_mille(&mut self, of: u64) -> bool {
        self.below(1000) < of
    }

    /// One of `items`; `None` if there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(usize::try_from(self.below(items.len() as u64)).ok()?)
    }

    /// One of `items`, or `or` if there are none.
    pub fn pick_or<T: Copy>(&mut self, items: &[T], or: T) -> T {
        self.pick(items).copied().unwrap_or(or)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_replay_and_differ() {
        let draw = |name| {
            let mut rng = Rng::split(7, name);
            [rng.next_u64(), rng.next_u64()]
        };
        assert_eq!(draw("latency"), draw("latency"));
        assert_ne!(draw("latency"), draw("faults"));
        assert_ne!(Rng::split(8, "latency").next_u64(), draw("latency")[0]);
    }

    #[test]
    fn a_tape_comes_first() {
        let mut rng = Rng::new(3).with_tape(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!([rng.next_u64(), rng.next_u64(), rng.next_u64()], [1, 2, Rng::new(3).next_u64()]);
    }

    #[test]
    fn numbers_stay_in_range_and_spread() {
        let mut rng = Rng::new(1);
        let mut seen = [0u32; 10];
        for _ in 0..10_000 {
            seen[usize::try_from(rng.range(0, 9)).unwrap()] += 1;
        }
        assert!(seen.iter().all(|count| (800..1200).contains(count)), "{seen:?}");
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.range(5, 5), 5);
    }

    #[test]
    fn the_stream_is_that_of_the_paper() {
        // First outputs of xoshiro256** from the state 1, 2, 3, 4 (the reference code prints these).
        let mut rng = Rng { state: [1, 2, 3, 4], tape: Vec::new() };
        assert_eq!([rng.next_u64(), rng.next_u64(), rng.next_u64()], [11520, 0, 1_509_978_240]);
    }
}
