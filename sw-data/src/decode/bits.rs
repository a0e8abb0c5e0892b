//! Numbers of a few bits each, as Parquet packs them: the lowest bits of a byte first.
//!
//! Source: parquet-format `Encodings.md`, "Run Length Encoding / Bit-Packing Hybrid" and "Delta Encoding".

use super::{DecodeError, Limits};

/// What stands for a page whose values or levels cannot be read.
pub(super) const VALUES: DecodeError = DecodeError::Damaged { what: "the values of a page" };

/// `width` bits, at most 64, from bit `at` on; nothing if they are not all there.
fn bits(bytes: &[u8], at: u64, width: u32) -> Option<u64> {
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

/// A number of seven bits a byte.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return None;
        }
        number |= part << shift;
        if *byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn zigzag(bytes: &mut &[u8]) -> Option<i64> {
    let number = varint(bytes)?;
    Some((number >> 1).cast_signed() ^ -((number & 1).cast_signed()))
}

/// Numbers as runs of one number and as groups of eight packed ones. Has no end of its own.
pub(super) struct Hybrid<'a> {
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
    pub(super) fn new(bytes: &'a [u8], width: u32) -> Option<Self> {
        let run = Run::Same { number: 0, left: 0 };
        (width <= 32).then_some(Self { rest: bytes, width, run })
    }

    /// Bits without a head, as PLAIN stores booleans.
    pub(super) fn packed(bytes: &'a [u8]) -> Self {
        let left = bytes.len() as u64 * 8;
        Self { rest: &[], width: 1, run: Run::Packed { bytes, at: 0, left } }
    }

    pub(super) fn next(&mut self) -> Option<u64> {
        loop {
            match &mut self.run {
                Run::Same { number, left } if *left > 0 => {
                    *left -= 1;
                    return Some(*number);
                }
                Run::Packed { bytes, at, left } if *left > 0 => {
                    let number = bits(bytes, *at, self.width)?;
                    *at += u64::from(self.width);
                    *left -= 1;
                    return Some(number);
                }
                _ => self.run = self.next_run()?,
            }
        }
    }

    fn next_run(&mut self) -> Option<Run<'a>> {
        let head = varint(&mut self.rest)?;
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

/// Reads a run of deltas (DELTA_BINARY_PACKED) of at most `most` numbers, and gives what stands behind it.
pub(super) fn deltas(mut bytes: &[u8], most: u64, limits: Limits) -> Result<(Vec<i64>, &[u8]), DecodeError> {
    let head = |bytes: &mut &[u8]| Some((varint(bytes)?, varint(bytes)?, varint(bytes)?, zigzag(bytes)?));
    let (block, miniblocks, total, first) = head(&mut bytes).ok_or(VALUES)?;
    let each = block.checked_div(miniblocks).filter(|each| *each > 0 && each % 8 == 0).ok_or(VALUES)?;
    if total > most {
        return Err(VALUES);
    }
    if total.saturating_mul(8) > limits.bytes {
        return Err(DecodeError::TooLong { max: limits.bytes });
    }
    let mut numbers = Vec::new();
    let mut last = first;
    if total > 0 {
        numbers.push(first);
    }
    while (numbers.len() as u64) < total {
        let least = zigzag(&mut bytes).ok_or(VALUES)?;
        let widths = usize::try_from(miniblocks).ok().and_then(|count| bytes.split_at_checked(count));
        let (widths, rest) = widths.ok_or(VALUES)?;
        bytes = rest;
        for width in widths {
            let left = total - numbers.len() as u64;
            if left == 0 {
                break;
            }
            let len = each.checked_mul(u64::from(*width)).map(|bits| bits / 8).ok_or(VALUES)?;
            let own = usize::try_from(len).ok().and_then(|len| bytes.split_at_checked(len)).filter(|_| *width <= 64);
            let (own, rest) = own.ok_or(VALUES)?;
            bytes = rest;
            for at in 0..each.min(left) {
                let delta = bits(own, at * u64::from(*width), (*width).into()).ok_or(VALUES)?;
                // Wraps by definition: the format's numbers do.
                last = last.wrapping_add(least).wrapping_add(delta.cast_signed());
                numbers.push(last);
            }
        }
    }
    Ok((numbers, bytes))
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

    #[test]
    fn deltas_are_bounded_and_wrap() {
        let limits = Limits { bytes: 1000 };
        // Blocks of 8 in one miniblock; two numbers: i64::MAX, and one more.
        let most = [8, 1, 2, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 0, 9];
        assert_eq!(deltas(&most, 2, limits), Ok((vec![i64::MAX, i64::MIN], &[9u8][..])));
        assert_eq!(deltas(&most, 1, limits), Err(VALUES));
        // 200 numbers in no bytes are 1,600 bytes.
        assert_eq!(deltas(&[128, 1, 1, 200, 1, 0], 200, limits), Err(DecodeError::TooLong { max: 1000 }));
        // No miniblocks, miniblocks of nothing, a width of 65 bits.
        for bytes in [&[8, 0, 2, 0][..], &[0, 1, 2, 0], &[8, 1, 2, 0, 0, 65]] {
            assert_eq!(deltas(bytes, 9, limits), Err(VALUES));
        }
    }
}
