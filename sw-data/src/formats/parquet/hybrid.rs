//! Numbers of a few bits each, as Parquet packs them: the lowest bits of a byte first.
//!
//! Source: parquet-format `Encodings.md`, "Run Length Encoding / Bit-Packing Hybrid".

use crate::formats::varint;

/// `width` bits, at most 64, from bit `at` on; nothing if they are not all there.
pub(crate) fn bits(bytes: &[u8], at: u64, width: u32) -> Option<u64> {
    let end = at.checked_add(width.into())?;
    if end.div_ceil(8) > bytes.len() as u64 {
        return None;
    }
    let from = usize::try_from(at / 8).ok()?;
    // At most 7 bits before the first one, so that nine bytes hold all.
    let window = bytes.get(from..)?.iter().take(9).rev().fold(0u128, |sum, byte| sum << 8 | u128::from(*byte));
    let mask = (1u128 << width) - 1;
    u64::try_from(window >> (at % 8) & mask).ok()
}

/// Numbers as runs of one number and as groups of eight packed ones. Has no end of its own.
pub(crate) struct Hybrid<'a> {
    rest: &'a [u8],
    width: u32,
    run: Run<'a>,
}

enum Run<'a> {
    Same { number: u64, left: u64 },
    Packed { bytes: &'a [u8], at: u64, left: u64 },
}

impl<'a> Hybrid<'a> {
    /// Numbers of `width` bits, at most 32.
    pub(crate) fn new(bytes: &'a [u8], width: u32) -> Option<Self> {
        let run = Run::Same { number: 0, left: 0 };
        (width <= 32).then_some(Self { rest: bytes, width, run })
    }

    /// Bits without a head, as PLAIN stores booleans.
    pub(crate) fn packed(bytes: &'a [u8]) -> Self {
        let left = bytes.len() as u64 * 8;
        Self { rest: &[], width: 1, run: Run::Packed { bytes, at: 0, left } }
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> Option<u64> {
        self.next_of(1).map(|(number, _)| number)
    }

    /// The next number, and how often it comes at least: at most `most` times, and once where numbers are packed.
    pub(crate) fn next_of(&mut self, most: u64) -> Option<(u64, u64)> {
        loop {
            match &mut self.run {
                Run::Same { number, left } if *left > 0 => {
                    let count = most.min(*left);
                    *left -= count;
                    return Some((*number, count));
                }
                Run::Packed { bytes, at, left } if *left > 0 => {
                    let number = bits(bytes, *at, self.width)?;
                    *at += u64::from(self.width);
                    *left -= 1;
                    return Some((number, 1));
                }
                _ => self.run = self.next_run()?,
            }
        }
    }

    fn next_run(&mut self) -> Option<Run<'a>> {
        let head = varint::unsigned(&mut self.rest).ok()?;
        let count = head >> 1;
        if head & 1 == 0 {
            let (number, rest) = self.rest.split_at_checked(usize::try_from(self.width.div_ceil(8)).ok()?)?;
            self.rest = rest;
            let number = number.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
            // A run of nothing says nothing, and there is no end to them.
            return (count > 0).then_some(Run::Same { number, left: count });
        }
        // The last group may lack bytes that hold no value.
        let len = count.checked_mul(self.width.into())?;
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(self.rest.len());
        let (bytes, rest) = self.rest.split_at(len);
        self.rest = rest;
        (count > 0).then_some(Run::Packed { bytes, at: 0, left: count.checked_mul(8)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_width_come_from_any_bit() {
        let bytes: Vec<u8> = (0..20).map(|at: u8| at.wrapping_mul(0x5b).wrapping_add(7)).collect();
        let bit = |at: u64| u64::from(bytes[usize::try_from(at / 8).unwrap()] >> (at % 8) & 1);
        for at in 0..160 {
            for width in 0..=64u32 {
                let wanted = (at + u64::from(width) <= 160)
                    .then(|| (0..u64::from(width)).fold(0, |sum, place| sum | bit(at + place) << place));
                assert_eq!(bits(&bytes, at, width), wanted, "{width} bits at {at}");
            }
        }
    }

    #[test]
    fn runs_and_groups_follow_each_other() {
        // Three times 5, then a group of eight numbers of three bits, then nothing.
        let mut hybrid = Hybrid::new(&[6, 5, 3, 0b1000_1000, 0b1100_0110, 0b1111_1010], 3).unwrap();
        let numbers: Vec<u64> = std::iter::from_fn(|| hybrid.next()).collect();
        assert_eq!(numbers, [5, 5, 5, 0, 1, 2, 3, 4, 5, 6, 7]);
        // A width of nothing: zeros without bytes. A run of nothing: refused.
        let mut zeros = Hybrid::new(&[200, 1], 0).unwrap();
        assert_eq!(std::iter::from_fn(|| zeros.next()).collect::<Vec<_>>(), [0; 100]);
        assert_eq!(Hybrid::new(&[0, 1, 0, 1], 1).unwrap().next(), None);
        assert!(Hybrid::new(&[], 33).is_none());
    }
}
