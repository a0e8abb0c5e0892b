//! Pages of a Parquet column chunk to rows.
//!
//! ```text
//!   block: head │ page │ head │ page … ──► checksum, decompress ──► levels of repetition, of definition, values ──► Rows
//! ```

use std::borrow::Cow;

use super::codec::{Compression, expand};
use super::deltas::VALUES;
use super::values::Values;
use super::{DecodeError, Limits, Rows, check_crc};
use crate::formats::{Codec, ColumnCoding, Hybrid, PageHeader, PageKind, VALUES_MAX};

/// How levels must be encoded: what came before was given up with version 1 of the format.
const RLE: u8 = 3;
/// How the values of a dictionary are.
const PLAIN: u8 = 0;

/// Decodes pages that follow each other: a page, or a dictionary and what follows it. Rows are those of the pages in order. A row of
/// a repeated column has its values end to end, numbers in little-endian order; a missing value has no bytes.
///
/// # Errors
/// What is wrong with the block.
pub fn parquet_rows(coding: &ColumnCoding, mut block: &[u8], limits: Limits) -> Result<Rows, DecodeError> {
    let mut making = Making { rows: Rows::default(), is_open: false, values: 0, limits };
    let mut dictionary = None;
    while !block.is_empty() {
        let header = PageHeader::read(block).ok().flatten().ok_or_else(|| damaged("the head of a page"))?;
        let stored = usize::try_from(header.stored_len).map_err(|_| damaged("the head of a page"))?;
        let rest = block.get(header.head_len..).and_then(|rest| rest.split_at_checked(stored));
        let (stored, rest) = rest.ok_or_else(|| damaged("a page that is cut"))?;
        block = rest;
        if let Some(crc) = header.crc {
            check_crc("a page", stored, crc)?;
        }
        if header.values() > VALUES_MAX {
            return Err(DecodeError::Unsupported { what: "a page of more than 16,777,216 values" });
        }
        match header.kind {
            PageKind::Dictionary { values, .. } => {
                let bytes = expanded(coding, stored, header.len.into(), limits)?;
                dictionary = Some(self::dictionary(coding, &bytes, values.into(), limits)?);
            }
            PageKind::V1 { .. } | PageKind::V2 { .. } => {
                let page = Page::read(coding, &header, stored, limits)?;
                making.page(coding, &page, dictionary.as_ref())?;
            }
            PageKind::Other => {}
        }
    }
    making.finish()
}

fn damaged(what: &'static str) -> DecodeError {
    DecodeError::Damaged { what }
}

fn expanded<'a>(
    coding: &ColumnCoding,
    stored: &'a [u8],
    len: u64,
    limits: Limits,
) -> Result<Cow<'a, [u8]>, DecodeError> {
    let how = match coding.codec {
        Codec::Plain => {
            let is_whole = stored.len() as u64 == len;
            return if is_whole { Ok(Cow::Borrowed(stored)) } else { Err(damaged("a page whose two lengths differ")) };
        }
        Codec::Brotli => Compression::Brotli,
        Codec::Snappy => Compression::Snappy,
        Codec::Gzip => Compression::Gzip,
        Codec::Lz4 => Compression::Lz4,
        Codec::Zstd => Compression::Zstd,
    };
    expand(how, stored, Some(len), limits).map(Cow::Owned)
}

fn dictionary(coding: &ColumnCoding, bytes: &[u8], count: u64, limits: Limits) -> Result<Rows, DecodeError> {
    let mut values = Values::new(PLAIN, coding.physical, bytes, None, (count, limits))?;
    let mut rows = Rows::default();
    for _ in 0..count {
        values.add_to(&mut rows, limits).map_err(|_| damaged("a dictionary"))?;
        rows.end_row(limits)?;
    }
    Ok(rows)
}

/// A page of values, no longer compressed.
struct Page<'a> {
    values: u32,
    encoding: u8,
    /// Levels of repetition and of definition; none where the column has none.
    levels: [Cow<'a, [u8]>; 2],
    bytes: Cow<'a, [u8]>,
}

impl<'a> Page<'a> {
    fn read(coding: &ColumnCoding, header: &PageHeader, stored: &'a [u8], limits: Limits) -> Result<Self, DecodeError> {
        match header.kind {
            PageKind::V1 { values, encoding, levels: [definition, repetition] } => {
                let has = [coding.repetition > 0, coding.definition > 0];
                if (has[0] && repetition != RLE) || (has[1] && definition != RLE) {
                    return Err(DecodeError::Unsupported { what: "an encoding of the levels of a Parquet page" });
                }
                let whole = expanded(coding, stored, header.len.into(), limits)?;
                let mut rest = &whole[..];
                let mut levels: [Cow<'a, [u8]>; 2] = [Cow::Borrowed(&[]), Cow::Borrowed(&[])];
                for (own, _) in levels.iter_mut().zip(has).filter(|(_, has)| *has) {
                    *own = Cow::Owned(part(&mut rest)?.to_vec());
                }
                let at = whole.len() - rest.len();
                let bytes = match whole {
                    Cow::Borrowed(whole) => Cow::Borrowed(&whole[at..]),
                    Cow::Owned(mut whole) => Cow::Owned(whole.split_off(at)),
                };
                Ok(Self { values, encoding, levels, bytes })
            }
            PageKind::V2 { values, encoding, definition_len, repetition_len, is_compressed, .. } => {
                let levels = || damaged("the levels of a page");
                let [repetition_len, definition_len] =
                    [repetition_len, definition_len].map(|len| usize::try_from(len).unwrap_or(usize::MAX));
                let (repetition, rest) = stored.split_at_checked(repetition_len).ok_or_else(levels)?;
                let (definition, own) = rest.split_at_checked(definition_len).ok_or_else(levels)?;
                let before = (repetition.len() + definition.len()) as u64;
                let len = u64::from(header.len).checked_sub(before).ok_or_else(levels)?;
                // Nothing is not compressed to something by every writer.
                let bytes = match is_compressed && !own.is_empty() {
                    true => expanded(coding, own, len, limits)?,
                    false => Cow::Borrowed(own),
                };
                Ok(Self { values, encoding, levels: [Cow::Borrowed(repetition), Cow::Borrowed(definition)], bytes })
            }
            PageKind::Dictionary { .. } | PageKind::Other => Err(damaged("a page")),
        }
    }
}

/// Levels of version 1, with their length before them.
fn part<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let read = |rest: &mut &'a [u8]| {
        let (len, behind) = rest.split_first_chunk::<4>()?;
        let (own, behind) = behind.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
        *rest = behind;
        Some(own)
    };
    read(rest).ok_or_else(|| damaged("the levels of a page"))
}

/// Rows that are being made.
struct Making {
    rows: Rows,
    /// Whether the last row may go on.
    is_open: bool,
    /// Values and missing ones so far.
    values: u64,
    limits: Limits,
}

impl Making {
    fn page(&mut self, coding: &ColumnCoding, page: &Page<'_>, dictionary: Option<&Rows>) -> Result<(), DecodeError> {
        let count = u64::from(page.values);
        // Missing values of a repeated column add nothing to the rows, and time to the work.
        self.values += count;
        if self.values > self.limits.bytes {
            return Err(DecodeError::TooLong { max: self.limits.bytes });
        }
        let (bytes, limits) = (&page.bytes[..], self.limits);
        let mut values = Values::new(page.encoding, coding.physical, bytes, dictionary, (count, limits))?;
        let levels = |bytes, most: u8| match most {
            0 => Ok(None),
            most => Hybrid::new(bytes, u8::BITS - most.leading_zeros()).map(Some).ok_or(VALUES),
        };
        let mut repetition = levels(&page.levels[0], coding.repetition)?;
        let mut definition = levels(&page.levels[1], coding.definition)?;
        for _ in 0..count {
            let level = |levels: &mut Option<Hybrid<'_>>| match levels {
                None => Ok(None),
                Some(levels) => levels.next().map(Some).ok_or_else(|| damaged("the levels of a page")),
            };
            if level(&mut repetition)?.unwrap_or_default() == 0 {
                self.end_row()?;
                self.is_open = true;
            }
            if !self.is_open {
                return Err(damaged("the levels of a page"));
            }
            if level(&mut definition)?.is_none_or(|level| level == u64::from(coding.definition)) {
                values.add_to(&mut self.rows, limits)?;
            }
        }
        Ok(())
    }

    fn end_row(&mut self) -> Result<(), DecodeError> {
        if std::mem::take(&mut self.is_open) { self.rows.end_row(self.limits) } else { Ok(()) }
    }

    fn finish(mut self) -> Result<Rows, DecodeError> {
        self.end_row()?;
        Ok(self.rows)
    }
}
