//! Bytes that name their origin: a function of a seed and an offset, so that foreign or misplaced bytes show.

use crate::fail::Fail;

/// Eight bytes at word `index` of the content called `seed`: the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast
/// splittable pseudorandom number generators", OOPSLA 2014) over both.
#[inline]
pub fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index.wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Walks the words that `bytes` at `offset` are made of: the first and last may be parts.
fn parts(seed: u64, offset: u64, len: usize) -> impl Iterator<Item = (std::ops::Range<usize>, [u8; 8], usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= len {
            return None;
        }
        let place = offset.wrapping_add(at as u64);
        let skip = usize::try_from(place % 8).unwrap_or(0);
        let take = (8 - skip).min(len - at);
        let range = at..at + take;
        at += take;
        Some((range, word(seed, place / 8).to_le_bytes(), skip))
    })
}

/// Fills `bytes` with the content called `seed` from `offset` on.
pub fn fill(seed: u64, offset: u64, bytes: &mut [u8]) {
    for (range, word, skip) in parts(seed, offset, bytes.len()) {
        let take = range.len();
        bytes[range].copy_from_slice(&word[skip..skip + take]);
    }
}

/// The first offset, counted as `offset` is, at which `bytes` differ from the content called `seed`.
pub fn first_difference(seed: u64, offset: u64, bytes: &[u8]) -> Option<u64> {
    for (range, word, skip) in parts(seed, offset, bytes.len()) {
        let (start, want) = (range.start, &word[skip..skip + range.len()]);
        let got = &bytes[range];
        if got != want {
            let inside = got.iter().zip(want).take_while(|(got, want)| got == want).count();
            return Some(offset + (start + inside) as u64);
        }
    }
    None
}

/// The failure for a byte that is not the pattern's.
pub fn mismatch(name: &str, at: u64, seed: u64) -> Fail {
    Fail::verification(
        format!("byte {at} of {name} is not that of the pattern with seed {seed}"),
        "use a file that `straightway bench write --verify --keep` made with the same seed",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_agree_with_the_whole() {
        let mut whole = [0; 256];
        fill(3, 1000, &mut whole);
        for (from, to) in [(0, 256), (1, 9), (7, 8), (13, 200), (255, 256)] {
            let mut part = vec![0; to - from];
            fill(3, 1000 + from as u64, &mut part);
            assert_eq!(part, whole[from..to]);
            assert_eq!(first_difference(3, 1000 + from as u64, &part), None);
        }
    }

    #[test]
    fn a_wrong_byte_seed_or_place_is_found() {
        let mut bytes = vec![0; 100];
        fill(3, 5, &mut bytes);
        assert!(first_difference(4, 5, &bytes).is_some());
        assert!(first_difference(3, 13, &bytes).is_some());
        bytes[42] ^= 1;
        assert_eq!(first_difference(3, 5, &bytes), Some(47));
    }
}
