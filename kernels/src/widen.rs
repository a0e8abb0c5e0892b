//! Elements of narrow floating-point types as f32. Every value of theirs is one of f32, so nothing is rounded.

use crate::launch::PlanError;

/// A narrow type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Narrow {
    /// The upper half of an f32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
    /// 4 bits of exponent, bias 7; no infinities, one NaN (OCP 8-bit floating point, revision 1.0, section 5).
    E4m3Fn,
    /// The upper half of an f16.
    E5m2,
}

/// 2^-24: what the fraction of a subnormal f16 counts.
const F16_STEP: f32 = 1.0 / 16_777_216.0;
/// 2^-9: the same of e4m3fn.
const E4M3_STEP: f32 = 1.0 / 512.0;

impl Narrow {
    /// Every one.
    pub const ALL: &[Self] = &[Self::Bf16, Self::F16, Self::E4m3Fn, Self::E5m2];

    /// Size of an element in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::E4m3Fn | Self::E5m2 => 1,
        }
    }

    /// The f32 with the value of an element, both as their bits. Of an 8-bit type the lower 8 bits count.
    ///
    /// A NaN keeps sign and payload, the payload at its upper end; of F16 and E5m2 it comes out quiet.
    pub fn widen(self, element: u16) -> u32 {
        match self {
            Self::Bf16 => u32::from(element) << 16,
            Self::F16 => f16(element),
            Self::E4m3Fn => e4m3fn(element.to_le_bytes()[0]),
            Self::E5m2 => f16(element << 8),
        }
    }
}

fn f16(element: u16) -> u32 {
    let (sign, rest) = (u32::from(element & 0x8000) << 16, element & 0x7fff);
    let magnitude = match rest {
        0..0x400 => (f32::from(rest) * F16_STEP).to_bits(),
        0x400..0x7c00 => (u32::from(rest) << 13) + ((127 - 15) << 23),
        0x7c00 => f32::INFINITY.to_bits(),
        _ => 0x7fc0_0000 | u32::from(rest & 0x3ff) << 13,
    };
    sign | magnitude
}

fn e4m3fn(element: u8) -> u32 {
    let (sign, rest) = (u32::from(element & 0x80) << 24, element & 0x7f);
    let magnitude = match rest {
        0..8 => (f32::from(rest) * E4M3_STEP).to_bits(),
        0x7f => 0x7fc0_0000,
        _ => (u32::from(rest) << 20) + ((127 - 7) << 23),
    };
    sign | magnitude
}

/// The twin of the kernel: little-endian elements of `source` as little-endian f32 in `target`.
///
/// # Errors
/// `Length` if `target` has not four bytes for each element of `source`.
pub fn widen(narrow: Narrow, source: &[u8], target: &mut [u8]) -> Result<(), PlanError> {
    let (out, rest) = target.as_chunks_mut::<4>();
    let size = if narrow.bytes() == 1 { 1 } else { 2 };
    if !rest.is_empty() || out.len().checked_mul(size) != Some(source.len()) {
        return Err(PlanError::Length);
    }
    if size == 1 {
        out.iter_mut().zip(source).for_each(|(to, from)| *to = narrow.widen(u16::from(*from)).to_le_bytes());
    } else {
        let elements = source.as_chunks::<2>().0;
        out.iter_mut().zip(elements).for_each(|(to, from)| *to = narrow.widen(u16::from_le_bytes(*from)).to_le_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value that sign, exponent and fraction stand for, by the formula of IEEE 754 §3.4, in f64, which holds all of them.
    fn by_formula(element: u32, exponent_bits: u32, fraction_bits: u32, bias: i32) -> f64 {
        let sign = if element >> (exponent_bits + fraction_bits) & 1 == 1 { -1.0 } else { 1.0 };
        let exponent = (element >> fraction_bits & ((1 << exponent_bits) - 1)).cast_signed();
        let fraction = f64::from(element & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
        let (whole, power) = if exponent == 0 { (0.0, 1 - bias) } else { (1.0, exponent - bias) };
        sign * (whole + fraction) * 2f64.powi(power)
    }

    #[test]
    fn every_value_of_the_16_bit_types_is_that_of_the_half_crate() {
        for element in 0..=u16::MAX {
            let ours = Narrow::Bf16.widen(element);
            let theirs = half::bf16::from_bits(element);
            assert!(ours >> 16 == u32::from(element) && (theirs.is_nan() || theirs.to_f32().to_bits() == ours));
            let (ours, theirs) = (Narrow::F16.widen(element), half::f16::from_bits(element).to_f32());
            if theirs.is_nan() {
                // The payload, at its upper end, and quiet.
                let payload = u32::from(element & 0x3ff) << 13;
                let sign = u32::from(element & 0x8000) << 16;
                assert_eq!(ours, sign | 0x7f80_0000 | payload | 0x0040_0000, "{element:#x}");
            } else {
                assert_eq!(ours, theirs.to_bits(), "{element:#x}");
            }
        }
    }

    #[test]
    fn every_value_of_the_8_bit_types_is_that_of_the_formula() {
        for element in 0..=255u16 {
            let ours = f32::from_bits(Narrow::E4m3Fn.widen(element));
            if element & 0x7f == 0x7f {
                assert!(ours.is_nan() && ours.is_sign_negative() == (element > 127));
            } else {
                let value = by_formula(element.into(), 4, 3, 7);
                assert!(f64::from(ours) == value && ours.is_sign_negative() == (element > 127), "{element:#x}");
            }
            let ours = f32::from_bits(Narrow::E5m2.widen(element));
            match element & 0x7f {
                0x7c => assert!(ours.is_infinite() && ours.is_sign_negative() == (element > 127)),
                0x7d.. => assert!(ours.is_nan() && ours.is_sign_negative() == (element > 127)),
                _ => assert_eq!(f64::from(ours), by_formula(element.into(), 5, 2, 15), "{element:#x}"),
            }
        }
        // The largest: OCP 8-bit floating point, table 1.
        assert_eq!(f32::from_bits(Narrow::E4m3Fn.widen(0x7e)), 448.0);
        assert_eq!(f32::from_bits(Narrow::E5m2.widen(0x7b)), 57_344.0);
    }

    #[test]
    fn lengths_must_fit() {
        let mut out = [0; 8];
        assert_eq!(widen(Narrow::F16, &[0, 0x3c, 0, 0xc0], &mut out), Ok(()));
        assert_eq!(out, [1f32.to_le_bytes(), (-2f32).to_le_bytes()].as_flattened());
        assert_eq!(widen(Narrow::F16, &[0; 3], &mut out), Err(PlanError::Length));
        assert_eq!(widen(Narrow::E5m2, &[0; 2], &mut out[..7]), Err(PlanError::Length));
    }
}
