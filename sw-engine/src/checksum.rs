//! Checksums over an operation's bytes, computed chunk by chunk in whatever order the chunks end.
//!
//! CRC-32C (Castagnoli, RFC 3720 §12.1 "CRC32C") and CRC-64/NVME (NVMe NVM Command Set 1.0 §5.2.1.3.4
//! "64b CRC"). The polynomials and their carry-less multiplication code are those of the `crc-fast` crate.

use crc_fast::{CrcAlgorithm, Digest};

/// Which checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// CRC-32C; the value is in the low 32 bits.
    Crc32c,
    /// CRC-64/NVME.
    Crc64Nvme,
}

impl Algorithm {
    fn of_crate(self) -> CrcAlgorithm {
        match self {
            Self::Crc32c => CrcAlgorithm::Crc32Iscsi,
            Self::Crc64Nvme => CrcAlgorithm::Crc64Nvme,
        }
    }

    /// The checksum of `bytes`.
    pub fn of(self, bytes: &[u8]) -> u64 {
        crc_fast::checksum(self.of_crate(), bytes)
    }

    /// The checksum of `a` followed by `b`, from theirs and the length of `b` in bytes.
    pub fn combine(self, a: u64, b: u64, b_len: u64) -> u64 {
        crc_fast::checksum_combine(self.of_crate(), a, b, b_len)
    }
}

/// A running checksum of one chunk. Far cheaper than to [combine](Algorithm::combine) those of its parts, which takes some ten
/// microseconds each time.
#[derive(Clone, Copy, Debug)]
pub struct Running(Digest);

impl Running {
    /// Of no bytes.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(Digest::new(algorithm.of_crate()))
    }

    /// Adds the bytes that follow.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far.
    pub fn value(&self) -> u64 {
        self.0.finalize()
    }
}

/// Pieces of one operation, merged as their neighbours arrive.
#[derive(Debug)]
pub(crate) struct Pieces {
    algorithm: Algorithm,
    /// Disjoint `(start, len, checksum)`, sorted by start, never two that touch. While one member of a stripe set lags, those
    /// of the others add up; [`Pieces::must_wait`] is what bounds them.
    pieces: Vec<(u64, u64, u64)>,
}

impl Pieces {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, pieces: Vec::new() }
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Adds the checksum of `len` bytes at `start` of the operation.
    pub(crate) fn add(&mut self, start: u64, len: u64, value: u64) {
        let at = self.pieces.partition_point(|piece| piece.0 < start);
        self.pieces.insert(at, (start, len, value));
        self.merge(at);
        if let Some(before) = at.checked_sub(1) {
            self.merge(before);
        }
    }

    /// Joins the piece at `at` with its right neighbour if they touch.
    fn merge(&mut self, at: usize) {
        if let (Some(&(start, len, value)), Some(&(next, next_len, next_value))) =
            (self.pieces.get(at), self.pieces.get(at + 1))
            && start + len == next
        {
            self.pieces.remove(at + 1);
            self.pieces[at] = (start, len + next_len, self.algorithm.combine(value, next_value, next_len));
        }
    }

    /// Whether bytes from `start` on should wait, because `most` pieces wait for earlier bytes already.
    ///
    /// The bytes right behind the first piece never wait: adding them makes no further piece. So there are at most `most`
    /// pieces and one for each chunk that was on its way when that many were there.
    pub(crate) fn must_wait(&self, start: u64, most: usize) -> bool {
        let contiguous = self.pieces.first().filter(|piece| piece.0 == 0).map_or(0, |piece| piece.1);
        self.pieces.len() >= most && start > contiguous
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.pieces.len()
    }

    /// The checksum of bytes `0..len`, if every one of them was added.
    pub(crate) fn whole(&self, len: u64) -> Option<u64> {
        match self.pieces.as_slice() {
            [] if len == 0 => Some(self.algorithm.of(&[])),
            [(0, have, value)] if *have == len => Some(*value),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values_of_the_catalogue() {
        // The "check" column of the CRC catalogue: the checksum of the ASCII digits 1 to 9.
        assert_eq!(Algorithm::Crc32c.of(b"123456789"), 0xe306_9283);
        assert_eq!(Algorithm::Crc64Nvme.of(b"123456789"), 0xae8b_1486_0a79_9888);
    }

    /// SSE 4.1 with carry-less multiplication at the least; without them it is tables.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn checksums_are_made_by_the_processors_instructions_where_it_has_them() {
        let has = std::arch::is_x86_feature_detected!("sse4.1") && std::arch::is_x86_feature_detected!("pclmulqdq");
        let how = crc_fast::get_calculator_target(CrcAlgorithm::Crc32Iscsi);
        println!("CRC by {how}");
        assert_eq!(how.contains("pclmulqdq"), has, "{how}");
    }

    #[test]
    fn pieces_in_any_order_give_the_checksum_of_the_whole() {
        let data: Vec<u8> = (0..10_000u32).map(|x| (x * 7 + x / 251).to_le_bytes()[0]).collect();
        for algorithm in [Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            for order in [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0], [1, 3, 2, 0]] {
                let cuts = [0usize, 1000, 1001, 7000, 10_000];
                let mut pieces = Pieces::new(algorithm);
                for part in order {
                    let (from, to) = (cuts[part], cuts[part + 1]);
                    assert_eq!(pieces.whole(10_000), None);
                    pieces.add(from as u64, (to - from) as u64, algorithm.of(&data[from..to]));
                }
                assert_eq!(pieces.whole(10_000), Some(algorithm.of(&data)));
            }
        }
    }
}
