//! What an element type is called by those who take our memory.

use sw_checkpoint::Dtype;

/// Element type by its safetensors name.
pub fn dtype_of(name: &str) -> Option<Dtype> {
    Dtype::from_name(name)
}

/// `struct` format for the buffer protocol (PEP 3118), `None` where it has none. All are one element of the type's size.
pub fn buffer_format(dtype: Dtype) -> Option<&'static std::ffi::CStr> {
    Some(match dtype {
        Dtype::Bool => c"?",
        Dtype::U8 => c"B",
        Dtype::I8 => c"b",
        Dtype::U16 => c"H",
        Dtype::I16 => c"h",
        Dtype::U32 => c"I",
        Dtype::I32 => c"i",
        Dtype::U64 => c"Q",
        Dtype::I64 => c"q",
        Dtype::F16 => c"e",
        Dtype::F32 => c"f",
        Dtype::F64 => c"d",
        Dtype::C64 => c"Zf",
        _ => return None,
    })
}

/// Type string of the array interface; `None` where it has none.
pub fn typestr(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::Bool => "|b1",
        Dtype::U8 => "|u1",
        Dtype::I8 => "|i1",
        Dtype::U16 => "<u2",
        Dtype::I16 => "<i2",
        Dtype::U32 => "<u4",
        Dtype::I32 => "<i4",
        Dtype::U64 => "<u8",
        Dtype::I64 => "<i8",
        Dtype::F16 => "<f2",
        Dtype::F32 => "<f4",
        Dtype::F64 => "<f8",
        Dtype::C64 => "<c8",
        _ => return None,
    })
}

/// Type code and bits of DLPack (`dlpack.h`, version 1.1, `DLDataTypeCode`); `None` for a type whose elements do not begin
/// on bytes.
pub fn dlpack_type(dtype: Dtype) -> Option<(u8, u8)> {
    Some(match dtype {
        Dtype::I8 => (0, 8),
        Dtype::I16 => (0, 16),
        Dtype::I32 => (0, 32),
        Dtype::I64 => (0, 64),
        Dtype::U8 => (1, 8),
        Dtype::U16 => (1, 16),
        Dtype::U32 => (1, 32),
        Dtype::U64 => (1, 64),
        Dtype::F16 => (2, 16),
        Dtype::F32 => (2, 32),
        Dtype::F64 => (2, 64),
        Dtype::Bf16 => (4, 16),
        Dtype::C64 => (5, 64),
        Dtype::Bool => (6, 8),
        Dtype::F8E4m3 => (10, 8),
        Dtype::F8E4m3Fnuz => (11, 8),
        Dtype::F8E5m2 => (12, 8),
        Dtype::F8E5m2Fnuz => (13, 8),
        Dtype::F8E8m0 => (14, 8),
        _ => return None,
    })
}

/// Bytes of a dense array, `None` if that overflows or does not end on a byte.
pub fn dense_len(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    let elements = shape.iter().try_fold(1_u64, |n, dim| n.checked_mul(*dim))?;
    let bits = elements.checked_mul(dtype.bits())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}
