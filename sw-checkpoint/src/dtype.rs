//! Element types.

use std::fmt;

/// Element type of a tensor: those of safetensors 0.8 (`safetensors/src/tensor.rs`, `enum Dtype`), by its names, and two
/// that only `PyTorch` has.
///
/// The order of the first 22 variants is the order of upstream's enum: by growing alignment. A writer lays out tensors by
/// *descending* order, then by name, so that each starts at a multiple of its element size when the data section does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// One byte, 0 or 1.
    Bool,
    /// 4-bit float, E2M1, two to a byte.
    F4,
    /// 6-bit float, E2M3, four in three bytes.
    F6E2m3,
    /// 6-bit float, E3M2, four in three bytes.
    F6E3m2,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// 8-bit float, E5M2.
    F8E5m2,
    /// 8-bit float, E4M3 (finite).
    F8E4m3,
    /// 8-bit exponent-only scale, E8M0.
    F8E8m0,
    /// 8-bit float, E4M3, finite, no negative zero.
    F8E4m3Fnuz,
    /// 8-bit float, E5M2, finite, no negative zero.
    F8E5m2Fnuz,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 16 bits.
    U16,
    /// IEEE half.
    F16,
    /// Brain float, 16 bits.
    Bf16,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 32 bits.
    U32,
    /// IEEE single.
    F32,
    /// Complex of two singles.
    C64,
    /// IEEE double.
    F64,
    /// Signed, 64 bits.
    I64,
    /// Unsigned, 64 bits.
    U64,
    /// Complex of two halves. Not in safetensors.
    C32,
    /// Complex of two doubles. Not in safetensors.
    C128,
}

impl Dtype {
    /// All element types of safetensors, in the order of the enum.
    pub const ALL: [Self; 22] = [
        Self::Bool,
        Self::F4,
        Self::F6E2m3,
        Self::F6E3m2,
        Self::U8,
        Self::I8,
        Self::F8E5m2,
        Self::F8E4m3,
        Self::F8E8m0,
        Self::F8E4m3Fnuz,
        Self::F8E5m2Fnuz,
        Self::I16,
        Self::U16,
        Self::F16,
        Self::Bf16,
        Self::I32,
        Self::U32,
        Self::F32,
        Self::C64,
        Self::F64,
        Self::I64,
        Self::U64,
    ];

    /// The name: in a safetensors header, and here.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::F4 => "F4",
            Self::F6E2m3 => "F6_E2M3",
            Self::F6E3m2 => "F6_E3M2",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E5m2 => "F8_E5M2",
            Self::F8E4m3 => "F8_E4M3",
            Self::F8E8m0 => "F8_E8M0",
            Self::F8E4m3Fnuz => "F8_E4M3FNUZ",
            Self::F8E5m2Fnuz => "F8_E5M2FNUZ",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::F32 => "F32",
            Self::C64 => "C64",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::U64 => "U64",
            Self::C32 => "C32",
            Self::C128 => "C128",
        }
    }

    /// Size of one element in bits: 4, 6, 8, 16, 32, 64 or 128.
    #[must_use]
    pub const fn bits(self) -> u64 {
        match self {
            Self::F4 => 4,
            Self::F6E2m3 | Self::F6E3m2 => 6,
            Self::Bool
            | Self::U8
            | Self::I8
            | Self::F8E5m2
            | Self::F8E4m3
            | Self::F8E8m0
            | Self::F8E4m3Fnuz
            | Self::F8E5m2Fnuz => 8,
            Self::I16 | Self::U16 | Self::F16 | Self::Bf16 => 16,
            Self::I32 | Self::U32 | Self::F32 | Self::C32 => 32,
            Self::C64 | Self::F64 | Self::I64 | Self::U64 => 64,
            Self::C128 => 128,
        }
    }

    /// Whether a safetensors file can hold it.
    #[must_use]
    pub const fn is_safetensors(self) -> bool {
        !matches!(self, Self::C32 | Self::C128)
    }

    /// The type that `PyTorch` calls `torch.name`.
    #[must_use]
    pub fn from_torch(name: &str) -> Option<Self> {
        Some(match name {
            "bool" => Self::Bool,
            "uint8" => Self::U8,
            "int8" => Self::I8,
            "float8_e5m2" => Self::F8E5m2,
            "float8_e4m3fn" => Self::F8E4m3,
            "float8_e8m0fnu" => Self::F8E8m0,
            "float8_e4m3fnuz" => Self::F8E4m3Fnuz,
            "float8_e5m2fnuz" => Self::F8E5m2Fnuz,
            "int16" => Self::I16,
            "uint16" => Self::U16,
            "float16" => Self::F16,
            "bfloat16" => Self::Bf16,
            "int32" => Self::I32,
            "uint32" => Self::U32,
            "float32" => Self::F32,
            "complex32" => Self::C32,
            "complex64" => Self::C64,
            "float64" => Self::F64,
            "int64" => Self::I64,
            "uint64" => Self::U64,
            "complex128" => Self::C128,
            _ => return None,
        })
    }

    /// The type that a header calls `name`; `None` for an unknown one. Case matters, as upstream.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of a dense tensor of this type and `shape`.
    ///
    /// # Errors
    /// [`SizeFault`] if a product overflows 64 bits or a sub-byte tensor does not end on a byte.
    pub(crate) fn len_bytes(self, shape: &[u64]) -> Result<u64, SizeFault> {
        // Not folded with an early exit at zero: upstream multiplies from the left too, and [2^63, 2, 0] overflows there.
        let elements = shape.iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim)).ok_or(SizeFault::Overflow)?;
        let bits = elements.checked_mul(self.bits()).ok_or(SizeFault::Overflow)?;
        if bits % 8 != 0 {
            return Err(SizeFault::PartialByte { bits });
        }
        Ok(bits / 8)
    }
}

/// Why a dtype and a shape have no length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SizeFault {
    /// The number of elements or bits does not fit 64 bits.
    Overflow,
    /// A sub-byte type whose total is not a whole number of bytes.
    PartialByte {
        /// Total bits.
        bits: u64,
    },
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_come_back() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("f32"), None);
        assert_eq!(Dtype::from_name(""), None);
    }

    #[test]
    fn all_is_sorted_and_complete() {
        assert!(Dtype::ALL.is_sorted());
        assert_eq!(Dtype::ALL.len(), Dtype::U64 as usize + 1);
    }

    #[test]
    fn bits_grow_with_the_order_from_bytes_on() {
        let whole: Vec<u64> = Dtype::ALL.iter().map(|d| d.bits()).filter(|bits| *bits >= 8).collect();
        assert!(whole.is_sorted(), "{whole:?}");
    }

    #[test]
    fn length_checks_overflow_and_partial_bytes() {
        assert_eq!(Dtype::F32.len_bytes(&[]), Ok(4));
        assert_eq!(Dtype::F32.len_bytes(&[3, 0, 7]), Ok(0));
        assert_eq!(Dtype::F6E2m3.len_bytes(&[4]), Ok(3));
        assert_eq!(Dtype::F4.len_bytes(&[3]), Err(SizeFault::PartialByte { bits: 12 }));
        assert_eq!(Dtype::U8.len_bytes(&[1 << 32, 1 << 32]), Err(SizeFault::Overflow));
        // The element count fits, the bit count does not.
        assert_eq!(Dtype::F64.len_bytes(&[1 << 60]), Err(SizeFault::Overflow));
        assert_eq!(Dtype::U8.len_bytes(&[1 << 63, 2, 0]), Err(SizeFault::Overflow));
    }
}
