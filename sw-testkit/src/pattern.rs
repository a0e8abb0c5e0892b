//! Bytes that name their origin: a function of a tag and an offset, so that foreign bytes are seen and told.

/// The byte at `offset` of the content called `tag`.
#[inline]
pub fn byte(tag: u64, offset: u64) -> u8 {
    word(tag, offset >> 3).to_le_bytes()[(offset & 7) as usize]
}

/// Eight bytes at word index `at`: the finaliser of SplitMix64 over both inputs.
#[inline]
fn word(tag: u64, at: u64) -> u64 {
    let mut z = tag.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ at.wrapping_add(0x2545_F491_4F6C_DD1D);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Fills `out` with the content called `tag` from `offset` on.
pub fn fill(tag: u64, offset: u64, out: &mut [u8]) {
    for (at, byte) in (offset..).zip(out) {
        *byte = self::byte(tag, at);
    }
}

/// `len` bytes of the content called `tag` from `offset` on.
pub fn bytes(tag: u64, offset: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    fill(tag, offset, &mut out);
    out
}

/// The first offset in `got` at which it differs from `want`, with both bytes.
pub fn first_difference(got: &[u8], want: &[u8]) -> Option<(usize, u8, u8)> {
    let found = got.iter().zip(want).enumerate().find(|(_, (got, want))| got != want);
    found.map(|(at, (got, want))| (at, *got, *want))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_agree_with_the_whole_and_tags_differ() {
        let whole = bytes(7, 0, 4096);
        assert_eq!(bytes(7, 1001, 77), whole[1001..1078]);
        let other = bytes(8, 0, 4096);
        let equal = whole.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(equal < 64, "{equal} of 4096 bytes agree by chance");
    }

    #[test]
    fn a_difference_is_told_with_its_place() {
        assert_eq!(first_difference(&[1, 2, 3], &[1, 9, 3]), Some((1, 2, 9)));
        assert_eq!(first_difference(&[1], &[1]), None);
    }
}
