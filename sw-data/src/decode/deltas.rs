//! Integers as differences of a few bits each, as Parquet has them.
//!
//! Source: parquet-format `Encodings.md`, "Delta Encoding".

use super::{DecodeError, Limits};
use crate::formats::{bits, varint};

/// What stands for a page whose values cannot be read.
pub(super) const VALUES: DecodeError = DecodeError::Damaged { what: "the values of a page" };

/// Reads a run of deltas (DELTA_BINARY_PACKED) of at most `most` numbers, and gives what stands behind it.
pub(super) fn deltas(mut bytes: &[u8], most: u64, limits: Limits) -> Result<(Vec<i64>, &[u8]), DecodeError> {
    let head = |bytes: &mut &[u8]| {
        Ok::<_, varint::Bad>((
            varint::unsigned(bytes)?,
            varint::unsigned(bytes)?,
            varint::unsigned(bytes)?,
            varint::signed(bytes)?,
        ))
    };
    let (block, miniblocks, total, first) = head(&mut bytes).map_err(|_| VALUES)?;
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
        let least = varint::signed(&mut bytes).map_err(|_| VALUES)?;
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
