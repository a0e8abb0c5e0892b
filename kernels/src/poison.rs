//! Poison: a pattern written before a read and looked for after it, so that bytes that never arrived are seen.
//!
//! A word of 8 bytes is a function of its place and of a seed: data equals it once in 2^64, where a repeated byte is met all the time.
//! Less than a word cannot be told apart; bytes behind the last whole word count with the word before them.

use sw_mem::{ByteLen, GpuVa};

use crate::launch::{Entry, Launch, PlanError, get, put};

/// Bytes of a word of poison; addresses are multiples of it.
pub const WORD_BYTES: u64 = 8;
/// Words that a thread works on, when there are many: 16 KiB a warp.
const WORDS_PER_THREAD: u64 = 64;
/// What a device fills in, as it is before: no bytes, and no first one.
const BEFORE: [u64; 2] = [0, u64::MAX];

/// Poison that is still there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Bytes of it.
    pub bytes: u64,
    /// Offset of the first; `None` if there is none.
    pub first: Option<u64>,
}

impl Found {
    /// What the device needs at an address that is a multiple of 8, before [`find_launch`].
    pub fn before() -> Vec<u8> {
        let mut words = Vec::with_capacity(16);
        put(&mut words, &BEFORE);
        words
    }

    /// What the device found, from the same place.
    ///
    /// # Errors
    /// `Length` if it has not 16 bytes.
    pub fn after(words: &[u8]) -> Result<Self, PlanError> {
        match (words.len(), get(words, 0), get(words, 1)) {
            (16, Some(bytes), Some(first)) => Ok(Self { bytes, first: (bytes > 0).then_some(first) }),
            _ => Err(PlanError::Length),
        }
    }
}

/// Fills `len` bytes at `address`.
///
/// # Errors
/// `Misaligned` if `address` is no multiple of 8; `TooMuch` if the range leaves the address space.
pub fn fill_launch(address: GpuVa, len: ByteLen, seed: u64) -> Result<Launch, PlanError> {
    Launch::of_warps(Entry::PoisonFill, warps_for(address, len)?, &[address.raw(), len.0, seed])
}

/// Looks for poison in `len` bytes at `address`; `found` has what [`Found::before`] gives.
///
/// # Errors
/// As [`fill_launch`].
pub fn find_launch(address: GpuVa, len: ByteLen, seed: u64, found: GpuVa) -> Result<Launch, PlanError> {
    Launch::of_warps(Entry::PoisonFind, warps_for(address, len)?, &[address.raw(), len.0, seed, found.raw()])
}

fn warps_for(address: GpuVa, len: ByteLen) -> Result<u64, PlanError> {
    if !address.is_aligned_to(WORD_BYTES) {
        return Err(PlanError::Misaligned);
    }
    address.checked_add(len).and_then(|end| end.checked_add(ByteLen(WORD_BYTES))).ok_or(PlanError::TooMuch)?;
    Ok((len.0 / WORD_BYTES + 1).div_ceil(crate::launch::LANES * WORDS_PER_THREAD))
}

fn word(number: u64, seed: u64) -> [u8; 8] {
    let mut word = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (word ^ word >> 27).to_le_bytes()
}

/// The twin of the kernel that fills.
pub fn fill(bytes: &mut [u8], seed: u64) {
    for (chunk, number) in bytes.chunks_mut(8).zip(0..) {
        chunk.iter_mut().zip(word(number, seed)).for_each(|(to, from)| *to = from);
    }
}

/// The twin of the kernel that finds.
pub fn find(bytes: &[u8], seed: u64) -> Found {
    let (words, tail) = bytes.as_chunks::<8>();
    let mut found = Found::default();
    let mut last = true;
    for (at, number) in words.iter().zip(0u64..) {
        last = *at == word(number, seed);
        if last {
            found.bytes += WORD_BYTES;
            found.first = found.first.or(Some(number * WORD_BYTES));
        }
    }
    let count = words.len() as u64;
    if last && !tail.is_empty() && word(count, seed).starts_with(tail) {
        found.bytes += tail.len() as u64;
        found.first = found.first.or(Some(count * WORD_BYTES));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_is_found_and_what_was_written_is_not() {
        for len in [0usize, 1, 7, 8, 9, 15, 16, 4096, 4099] {
            let mut bytes = vec![0; len];
            assert_eq!(find(&bytes, 5), Found::default());
            fill(&mut bytes, 5);
            let all = Found { bytes: len as u64, first: (len > 0).then_some(0) };
            assert_eq!(find(&bytes, 5), all, "{len}");
            if len > 8 {
                // Another seed is no poison of ours; alone, a tail of a byte or two would be one by chance.
                assert_eq!(find(&bytes, 6), Found::default(), "{len}");
            }
        }
    }

    #[test]
    fn holes_are_told_by_their_first_byte_and_their_number() {
        let mut bytes = vec![0xa5; 1003];
        let mut poison = bytes.clone();
        fill(&mut poison, 1);
        bytes[96..160].copy_from_slice(&poison[96..160]);
        bytes[992..].copy_from_slice(&poison[992..]);
        assert_eq!(find(&bytes, 1), Found { bytes: 64 + 11, first: Some(96) });
        // One byte of a word was written: the word was.
        bytes[100] ^= 1;
        assert_eq!(find(&bytes, 1), Found { bytes: 56 + 11, first: Some(104) });
        // The tail counts with the word before it.
        bytes[995] ^= 1;
        assert_eq!(find(&bytes, 1), Found { bytes: 56, first: Some(104) });
    }

    #[test]
    fn addresses_and_results_are_checked() {
        let (odd, end) = (GpuVa::new(4), GpuVa::new(u64::MAX - 7));
        assert_eq!(fill_launch(odd, ByteLen(8), 0), Err(PlanError::Misaligned));
        assert_eq!(fill_launch(end, ByteLen(8), 0), Err(PlanError::TooMuch));
        assert_eq!(Found::after(&Found::before()), Ok(Found::default()));
        assert_eq!(Found::after(&[0; 15]), Err(PlanError::Length));
    }
}
