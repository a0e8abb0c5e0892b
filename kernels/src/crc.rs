//! Checksums of device memory: the plan of a launch over many buffers, and the kernel's twin.
//!
//! The twin goes the kernel's way: rows of 128 bytes, reduced modulo `P(x^1024)` by XORs of whole rows, as `cuda/crc.cu` explains.
//! What it is not: the engine's checksum of host memory, which is `sw_engine::checksum` with the processor's carry-less multiplication.

use sw_mem::{ByteLen, GpuVa};

use crate::launch::{Entry, Launch, PlanError, get, put};

/// Bytes of a row: a word for each lane of a warp.
const ROW_BYTES: u64 = 128;
const ROW: usize = 128;
/// Segments have a multiple of as many rows: the degree of the larger polynomial.
const ROWS_UNIT: u64 = 64;
/// Rows of a segment at least, 16 KiB: the remainder of a segment costs as much as some 150 rows. Not measured on hardware.
const ROWS_MIN: u64 = 128;
/// Rows of a segment at most, 128 MiB.
const ROWS_MAX: u64 = 1 << 20;
/// Bytes of a buffer at most; the kernel counts rows in 32 bits.
const LEN_MAX: u64 = 1 << 38;
/// Bytes of a job as the device has it.
const JOB_BYTES: usize = 32;

/// Which checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// CRC-32C (Castagnoli, RFC 3720 §12.1 "CRC32C"); the value is in the low 32 bits.
    Crc32c,
    /// CRC-64/NVME (NVMe NVM Command Set 1.0 §5.2.1.3.4 "64b CRC").
    Crc64Nvme,
}

/// A launch over many buffers: jobs to be copied to the device, two kernels to run, jobs to be copied back.
#[derive(Clone, Debug)]
pub struct SumPlan {
    algorithm: Algorithm,
    jobs: Vec<u8>,
    count: u64,
    segments: u64,
    seg_rows: u64,
}

impl SumPlan {
    /// Buffers by address and length in bytes, any of both; `warps` is how many the device has at work at a time, and segments are cut
    /// so that all of them have some.
    ///
    /// # Errors
    /// `Nothing` without buffers; `TooMuch` for one above 2^38 bytes, or that leaves the address space.
    pub fn new(algorithm: Algorithm, buffers: &[(GpuVa, ByteLen)], warps: u64) -> Result<Self, PlanError> {
        if buffers.is_empty() {
            return Err(PlanError::Nothing);
        }
        let rows = buffers.iter().map(|(at, len)| rows_of(at.raw(), len.0)).collect::<Result<Vec<u64>, _>>()?;
        let all = rows.iter().try_fold(0u64, |sum, rows| sum.checked_add(*rows)).ok_or(PlanError::TooMuch)?;
        let seg_rows = all.div_ceil(warps.max(1)).next_multiple_of(ROWS_UNIT).clamp(ROWS_MIN, ROWS_MAX);
        Self::cut(algorithm, buffers, &rows, seg_rows)
    }

    /// As [`SumPlan::new`] with segments of `seg_rows` rows of 128 bytes, rounded up to a multiple of 64: for tests of short ones.
    ///
    /// # Errors
    /// As [`SumPlan::new`].
    pub fn with_segments(algorithm: Algorithm, buffers: &[(GpuVa, ByteLen)], seg_rows: u64) -> Result<Self, PlanError> {
        if buffers.is_empty() {
            return Err(PlanError::Nothing);
        }
        let rows = buffers.iter().map(|(at, len)| rows_of(at.raw(), len.0)).collect::<Result<Vec<u64>, _>>()?;
        Self::cut(algorithm, buffers, &rows, seg_rows.clamp(1, ROWS_MAX).next_multiple_of(ROWS_UNIT))
    }

    fn cut(algorithm: Algorithm, buffers: &[(GpuVa, ByteLen)], rows: &[u64], seg_rows: u64) -> Result<Self, PlanError> {
        let mut jobs = Vec::with_capacity(buffers.len() * JOB_BYTES);
        let mut segments = 0u64;
        for ((address, len), rows) in buffers.iter().zip(rows) {
            put(&mut jobs, &[address.raw(), len.0, 0, segments]);
            segments = segments.checked_add(rows.div_ceil(seg_rows)).ok_or(PlanError::TooMuch)?;
        }
        Ok(Self { algorithm, jobs, count: buffers.len() as u64, segments, seg_rows })
    }

    /// What the device needs at an address that is a multiple of 8, before the launches.
    pub fn jobs(&self) -> &[u8] {
        &self.jobs
    }

    /// The kernels, in their order; `jobs` is where the jobs lie.
    ///
    /// # Errors
    /// `TooMuch` if there are more segments than a launch has.
    pub fn launches(&self, jobs: GpuVa) -> Result<Vec<Launch>, PlanError> {
        let (sum, finish) = match self.algorithm {
            Algorithm::Crc32c => (Entry::Crc32cSum, Entry::Crc32cFinish),
            Algorithm::Crc64Nvme => (Entry::Crc64Sum, Entry::Crc64Finish),
        };
        let mut launches = Vec::with_capacity(2);
        if self.segments > 0 {
            let arguments = [jobs.raw(), self.count, self.seg_rows, self.segments];
            launches.push(Launch::of_warps(sum, self.segments, &arguments)?);
        }
        let warps = self.count.div_ceil(crate::launch::LANES);
        launches.push(Launch::of_warps(finish, warps, &[jobs.raw(), self.count])?);
        Ok(launches)
    }

    /// The checksums, in the order of the buffers, from the jobs as they came back.
    ///
    /// # Errors
    /// `Length` if that is not as long as what went.
    pub fn sums(&self, jobs: &[u8]) -> Result<Vec<u64>, PlanError> {
        if jobs.len() != self.jobs.len() {
            return Err(PlanError::Length);
        }
        let sums = jobs.chunks_exact(JOB_BYTES).map(|job| get(job, 2).ok_or(PlanError::Length));
        sums.collect()
    }
}

/// Rows that a buffer touches.
fn rows_of(address: u64, len: u64) -> Result<u64, PlanError> {
    let end = address.checked_add(len).and_then(|end| end.checked_add(ROW_BYTES)).ok_or(PlanError::TooMuch)?;
    if len > LEN_MAX {
        return Err(PlanError::TooMuch);
    }
    Ok(if len == 0 { 0 } else { (end - ROW_BYTES).div_ceil(ROW_BYTES) - address / ROW_BYTES })
}

impl Algorithm {
    /// The checksum of `bytes`.
    pub fn sum(self, bytes: &[u8]) -> u64 {
        let mut field = Field::of(self);
        let raw = field.raw(bytes);
        let start = field.times(field.mask, field.bytes_power(bytes.len() as u64));
        raw ^ start ^ field.mask
    }
}

/// Polynomials over GF(2), modulo one of them. Values have the coefficient of x^0 as the highest of `bits` bits.
struct Field {
    bits: usize,
    poly: u64,
    mask: u64,
    /// Distances, in rows, of the terms below the highest.
    terms: Vec<usize>,
    /// What a byte in front leaves behind one that follows it.
    table: Box<[u64; 256]>,
    quotient: Vec<[u64; ROW / 8]>,
}

impl Field {
    fn of(algorithm: Algorithm) -> Self {
        let (bits, poly) = match algorithm {
            Algorithm::Crc32c => (32, 0x82f6_3b78),
            Algorithm::Crc64Nvme => (64, 0x9a6c_9329_ac4b_c9b5),
        };
        let mut field = Self {
            bits,
            poly,
            mask: u64::MAX >> (64 - bits),
            terms: (1..=bits).filter(|distance| poly >> (distance - 1) & 1 == 1).collect(),
            table: Box::new([0; 256]),
            quotient: vec![[0; ROW / 8]; bits],
        };
        for at in 0..256usize {
            let value = (0..8).fold(at as u64, |value, _| field.times_x(value));
            field.table[at] = value;
        }
        field
    }

    fn times_x(&self, value: u64) -> u64 {
        (value >> 1) ^ if value & 1 == 1 { self.poly } else { 0 }
    }

    fn times(&self, a: u64, mut b: u64) -> u64 {
        let mut product = 0;
        for bit in (0..self.bits).rev() {
            if a >> bit & 1 == 1 {
                product ^= b;
            }
            b = self.times_x(b);
        }
        product
    }

    /// x^(8 * count).
    fn bytes_power(&self, mut count: u64) -> u64 {
        let one = 1u64 << (self.bits - 1);
        let mut factor = (0..8).fold(one, |value, _| self.times_x(value));
        let mut power = one;
        while count > 0 {
            if count & 1 == 1 {
                power = self.times(power, factor);
            }
            factor = self.times(factor, factor);
            count >>= 1;
        }
        power
    }

    fn bytewise(&self, sum: u64, bytes: &[u8]) -> u64 {
        bytes.iter().fold(sum, |sum, byte| (sum >> 8) ^ self.table[usize::from(sum.to_le_bytes()[0] ^ byte)])
    }

    /// The remainder of the bytes alone, without what a CRC starts and ends with.
    fn raw(&mut self, bytes: &[u8]) -> u64 {
        let block = self.bits * ROW;
        // The first rows of all are short of a block: zeros stand before them, which change nothing.
        let (head, blocks) = bytes.split_at(bytes.len() % block);
        if blocks.len() <= block {
            return self.bytewise(0, bytes);
        }
        self.quotient.fill([0; ROW / 8]);
        let (blocks, last) = blocks.split_at(blocks.len() - block);
        let mut first = vec![0; block - head.len()];
        first.extend_from_slice(head);
        self.stream(&first);
        self.stream(blocks);
        let last = self.remainder(last);
        self.bytewise(0, &last)
    }

    /// The quotient of whole blocks, row by row.
    fn stream(&mut self, blocks: &[u8]) {
        let wrap = self.bits - 1;
        for (at, row) in blocks.chunks_exact(ROW).enumerate() {
            let mut sum = words(row);
            for distance in &self.terms {
                let earlier = &self.quotient[at.wrapping_sub(*distance) & wrap];
                sum.iter_mut().zip(earlier).for_each(|(word, earlier)| *word ^= earlier);
            }
            self.quotient[at & wrap] = sum;
        }
    }

    /// The last block without what reaches back before it.
    fn remainder(&self, block: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(block.len());
        for (at, row) in block.chunks_exact(ROW).enumerate() {
            let mut sum = words(row);
            for distance in self.terms.iter().filter(|distance| **distance > at) {
                let earlier = &self.quotient[self.bits + at - distance];
                sum.iter_mut().zip(earlier).for_each(|(word, earlier)| *word ^= earlier);
            }
            put(&mut out, &sum);
        }
        out
    }
}

fn words(row: &[u8]) -> [u64; ROW / 8] {
    let mut words = [0; ROW / 8];
    for (word, bytes) in words.iter_mut().zip(row.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crc_fast::CrcAlgorithm;

    const BOTH: [(Algorithm, CrcAlgorithm); 2] =
        [(Algorithm::Crc32c, CrcAlgorithm::Crc32Iscsi), (Algorithm::Crc64Nvme, CrcAlgorithm::Crc64Nvme)];

    #[test]
    fn check_values_of_the_catalogue() {
        // The "check" column of the CRC catalogue: the checksum of the ASCII digits 1 to 9.
        assert_eq!(Algorithm::Crc32c.sum(b"123456789"), 0xe306_9283);
        assert_eq!(Algorithm::Crc64Nvme.sum(b"123456789"), 0xae8b_1486_0a79_9888);
        // RFC 3720 appendix B.4 "CRC Examples", as numbers: 32 bytes of zeros, and of ones.
        assert_eq!(Algorithm::Crc32c.sum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(Algorithm::Crc32c.sum(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn the_twin_gives_what_another_implementation_gives_at_every_edge() {
        let bytes: Vec<u8> = (0..70_000u32).map(|x| (x.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
        let edges = [4096, 8192, 16_384, 32_768, 65_536].into_iter().flat_map(|edge| edge - 3..edge + 4);
        for len in (0..300).chain(edges).chain([8319, 8320, 8321, 69_999]) {
            for (ours, theirs) in BOTH {
                let part = &bytes[bytes.len() - len..];
                assert_eq!(ours.sum(part), crc_fast::checksum(theirs, part), "{ours:?} of {len} bytes");
            }
        }
    }

    #[test]
    fn segments_cover_all_rows_and_counts_are_bounded() {
        let at = GpuVa::new((1 << 40) + 100);
        let plan = SumPlan::new(Algorithm::Crc32c, &[(at, ByteLen(1 << 30)), (at, ByteLen(0))], 2000).unwrap();
        assert_eq!(plan.seg_rows % ROWS_UNIT, 0);
        assert!((1000..=2001).contains(&plan.segments), "{}", plan.segments);
        assert_eq!(plan.launches(at).unwrap()[0].blocks(), u32::try_from(plan.segments.div_ceil(4)).unwrap());
        for (bad, error) in [
            (vec![], PlanError::Nothing),
            (vec![(at, ByteLen(LEN_MAX + 1))], PlanError::TooMuch),
            (vec![(GpuVa::new(u64::MAX - 5), ByteLen(6))], PlanError::TooMuch),
        ] {
            assert_eq!(SumPlan::new(Algorithm::Crc32c, &bad, 1).err(), Some(error));
        }
        assert_eq!(plan.sums(&plan.jobs()[8..]), Err(PlanError::Length));
    }
}
