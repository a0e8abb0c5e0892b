//! Values of a Parquet page, one after the other, in each of the format's encodings.
//!
//! Source: parquet-format `Encodings.md`.

use super::deltas::{VALUES, deltas};
use super::{DecodeError, Limits, Rows};
use crate::formats::{Hybrid, Physical};

/// Values that are to come.
pub(super) enum Values<'a> {
    /// Of one width each.
    Fixed { rest: &'a [u8], width: usize },
    /// Byte strings, their lengths before them.
    Strings(&'a [u8]),
    /// Booleans, one bit or a run each.
    Bits(Hybrid<'a>),
    /// Numbers of values in a dictionary.
    Dictionary { numbers: Hybrid<'a>, dictionary: &'a Rows },
    /// Integers of `width` bytes.
    Integers { numbers: std::vec::IntoIter<i64>, width: usize },
    /// Byte strings whose lengths stand together before them.
    Lengths { lens: std::vec::IntoIter<i64>, rest: &'a [u8] },
    /// Byte strings of which each shares so many first bytes with the one before.
    Prefixes { prefixes: std::vec::IntoIter<i64>, lens: std::vec::IntoIter<i64>, rest: &'a [u8], last: Vec<u8> },
    /// Values whose first bytes stand together, then their second ones, and so on.
    Split { bytes: &'a [u8], count: usize, at: usize },
}

/// How a page's values are encoded, by the format's number.
const PLAIN: u8 = 0;
const PLAIN_DICTIONARY: u8 = 2;
const RLE: u8 = 3;
const DELTA_BINARY_PACKED: u8 = 5;
const DELTA_LENGTH_BYTE_ARRAY: u8 = 6;
const DELTA_BYTE_ARRAY: u8 = 7;
const RLE_DICTIONARY: u8 = 8;
const BYTE_STREAM_SPLIT: u8 = 9;

impl<'a> Values<'a> {
    /// Begins with the values of a page, `most` of them at most.
    pub(super) fn new(
        encoding: u8,
        physical: Physical,
        bytes: &'a [u8],
        dictionary: Option<&'a Rows>,
        (most, limits): (u64, Limits),
    ) -> Result<Self, DecodeError> {
        let width = physical.plain_len().and_then(|len| usize::try_from(len).ok());
        let is_bytes = matches!(physical, Physical::Bytes | Physical::Fixed(_));
        Ok(match (encoding, width) {
            (PLAIN, Some(width)) => Self::Fixed { rest: bytes, width },
            (PLAIN, None) if physical == Physical::Bytes => Self::Strings(bytes),
            (PLAIN, None) => Self::Bits(Hybrid::packed(bytes)),
            (RLE, None) if physical == Physical::Boolean => {
                let own = bytes
                    .split_first_chunk::<4>()
                    .and_then(|(len, rest)| rest.get(..usize::try_from(u32::from_le_bytes(*len)).ok()?));
                Self::Bits(own.and_then(|own| Hybrid::new(own, 1)).ok_or(VALUES)?)
            }
            (PLAIN_DICTIONARY | RLE_DICTIONARY, _) => {
                let dictionary = dictionary.ok_or(DecodeError::Damaged { what: "the dictionary of a column chunk" })?;
                let numbers = match bytes.split_first() {
                    Some((width, rest)) => Hybrid::new(rest, (*width).into()),
                    // A page of missing values may have nothing at all.
                    None => Hybrid::new(&[], 0),
                };
                Self::Dictionary { numbers: numbers.ok_or(VALUES)?, dictionary }
            }
            (DELTA_BINARY_PACKED, Some(width)) if matches!(physical, Physical::Int32 | Physical::Int64) => {
                let (numbers, _) = deltas(bytes, most, limits)?;
                Self::Integers { numbers: numbers.into_iter(), width }
            }
            (DELTA_LENGTH_BYTE_ARRAY, None) if is_bytes => {
                let (lens, rest) = deltas(bytes, most, limits)?;
                Self::Lengths { lens: lens.into_iter(), rest }
            }
            (DELTA_BYTE_ARRAY, _) if is_bytes => {
                let (prefixes, rest) = deltas(bytes, most, limits)?;
                let (lens, rest) = deltas(rest, most, limits)?;
                Self::Prefixes { prefixes: prefixes.into_iter(), lens: lens.into_iter(), rest, last: Vec::new() }
            }
            (BYTE_STREAM_SPLIT, Some(width)) if bytes.len().is_multiple_of(width) => {
                Self::Split { bytes, count: bytes.len() / width, at: 0 }
            }
            (BYTE_STREAM_SPLIT, Some(_)) => return Err(VALUES),
            _ => return Err(DecodeError::Unsupported { what: "an encoding of a Parquet page" }),
        })
    }

    /// Adds the next value to the row that is being made.
    pub(super) fn add_to(&mut self, rows: &mut Rows, limits: Limits) -> Result<(), DecodeError> {
        match self {
            Self::Fixed { rest, width } => rows.extend(take(rest, Some(*width))?, limits),
            Self::Strings(rest) => {
                let (len, behind) = rest.split_first_chunk::<4>().ok_or(VALUES)?;
                *rest = behind;
                rows.extend(take(rest, usize::try_from(u32::from_le_bytes(*len)).ok())?, limits)
            }
            Self::Bits(bits) => rows.extend(&[u8::from(bits.next().ok_or(VALUES)? > 0)], limits),
            Self::Dictionary { numbers, dictionary } => {
                let number = numbers.next().and_then(|number| usize::try_from(number).ok());
                rows.extend(number.and_then(|number| dictionary.get(number)).ok_or(VALUES)?, limits)
            }
            Self::Integers { numbers, width } => {
                let number = numbers.next().ok_or(VALUES)?.to_le_bytes();
                rows.extend(number.get(..*width).ok_or(VALUES)?, limits)
            }
            Self::Lengths { lens, rest } => rows.extend(take(rest, len(lens))?, limits),
            Self::Prefixes { prefixes, lens, rest, last } => {
                let shared = len(prefixes).filter(|shared| *shared <= last.len()).ok_or(VALUES)?;
                last.truncate(shared);
                last.extend_from_slice(take(rest, len(lens))?);
                rows.extend(last, limits)
            }
            Self::Split { bytes, count, at } => {
                if *at == *count {
                    return Err(VALUES);
                }
                for byte in bytes.iter().skip(*at).step_by(*count) {
                    rows.extend(std::slice::from_ref(byte), limits)?;
                }
                *at += 1;
                Ok(())
            }
        }
    }
}

fn len(lens: &mut std::vec::IntoIter<i64>) -> Option<usize> {
    usize::try_from(lens.next()?).ok()
}

fn take<'a>(rest: &mut &'a [u8], len: Option<usize>) -> Result<&'a [u8], DecodeError> {
    let (taken, behind) = len.and_then(|len| rest.split_at_checked(len)).ok_or(VALUES)?;
    *rest = behind;
    Ok(taken)
}
