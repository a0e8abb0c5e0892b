//! Pages of a Parquet column chunk.
//!
//! Heads, checksums and compression are ours, so that they are bounded and need no C compiler; levels and values are decoded by the
//! `parquet` crate, which is given one page after the other.

use std::collections::VecDeque;
use std::sync::Arc;

use parquet::basic::{Encoding, Repetition, Type};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{
    AsBytes, BoolType, ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
    Int96Type,
};
use parquet::errors::ParquetError;
use parquet::schema::types::{ColumnDescriptor, ColumnPath, Type as SchemaType};

use super::codec::{Compression, expand};
use super::{DecodeError, Limits, Rows, check_crc};
use crate::formats::{Codec, ColumnCoding, PageHeader, PageKind, Physical};

/// Rows that are decoded at once.
const BATCH: usize = 1024;
/// Most values of a page. Writers end a page at 1 MiB or 20,000 rows unless they are told otherwise.
const PAGE_VALUES_MAX: u32 = 1 << 24;

/// Decodes pages that follow each other: a page, or a dictionary and what follows it. Rows are those of the pages in order. A row of
/// a repeated column has its values end to end, numbers in little-endian order; a missing value has no bytes.
///
/// # Errors
/// What is wrong with the block.
pub fn parquet_rows(coding: &ColumnCoding, block: &[u8], limits: Limits) -> Result<Rows, DecodeError> {
    let pages = pages(coding, block, limits)?;
    match coding.physical {
        Physical::Boolean => rows::<BoolType>(coding, pages, limits),
        Physical::Int32 => rows::<Int32Type>(coding, pages, limits),
        Physical::Int64 => rows::<Int64Type>(coding, pages, limits),
        Physical::Int96 => rows::<Int96Type>(coding, pages, limits),
        Physical::Float => rows::<FloatType>(coding, pages, limits),
        Physical::Double => rows::<DoubleType>(coding, pages, limits),
        Physical::Bytes => rows::<ByteArrayType>(coding, pages, limits),
        Physical::Fixed(_) => rows::<FixedLenByteArrayType>(coding, pages, limits),
    }
}

fn damaged(what: &'static str) -> DecodeError {
    DecodeError::Damaged { what }
}

/// The pages of a block, no longer compressed.
fn pages(coding: &ColumnCoding, mut block: &[u8], limits: Limits) -> Result<Pages, DecodeError> {
    let mut pages = VecDeque::new();
    let mut left = limits.bytes;
    while !block.is_empty() {
        let header = PageHeader::read(block).ok().flatten().ok_or_else(|| damaged("the head of a page"))?;
        let stored = usize::try_from(header.stored_len).map_err(|_| damaged("the head of a page"))?;
        let rest = block.get(header.head_len..).and_then(|rest| rest.split_at_checked(stored));
        let (stored, rest) = rest.ok_or_else(|| damaged("a page that is cut"))?;
        block = rest;
        if let Some(crc) = header.crc {
            check_crc("a page", stored, crc)?;
        }
        // All pages are held at once.
        left = left.checked_sub(header.len.into()).ok_or(DecodeError::TooLong { max: limits.bytes })?;
        pages.extend(page(coding, &header, stored, limits)?);
    }
    Ok(Pages(pages))
}

fn page(
    coding: &ColumnCoding,
    header: &PageHeader,
    stored: &[u8],
    limits: Limits,
) -> Result<Option<Page>, DecodeError> {
    if header.values() > PAGE_VALUES_MAX {
        return Err(DecodeError::Unsupported { what: "a page of more than 16,777,216 values" });
    }
    Ok(Some(match header.kind {
        PageKind::Dictionary { values, encoding } => {
            let buf = expanded(coding, stored, header.len.into(), limits)?;
            // The decoder makes room for as many values as are claimed.
            let least = coding.physical.plain_len().unwrap_or(if coding.physical == Physical::Bytes { 4 } else { 1 });
            if u64::from(values).checked_mul(least).is_none_or(|len| len > buf.len() as u64) {
                return Err(damaged("a dictionary"));
            }
            let encoding = self::encoding(encoding)?;
            Page::DictionaryPage { buf: buf.into(), num_values: values, encoding, is_sorted: false }
        }
        PageKind::V1 { values, encoding, levels: [definition, repetition] } => Page::DataPage {
            buf: expanded(coding, stored, header.len.into(), limits)?.into(),
            num_values: values,
            encoding: self::encoding(encoding)?,
            def_level_encoding: self::encoding(definition)?,
            rep_level_encoding: self::encoding(repetition)?,
            statistics: None,
        },
        PageKind::V2 { values, nulls, rows, encoding, definition_len, repetition_len, is_compressed } => {
            let split = u64::from(definition_len) + u64::from(repetition_len);
            let at = usize::try_from(split).map_err(|_| damaged("the levels of a page"))?;
            let (levels, own) = stored.split_at_checked(at).ok_or_else(|| damaged("the levels of a page"))?;
            let len = u64::from(header.len).checked_sub(split).ok_or_else(|| damaged("the levels of a page"))?;
            let mut buf = levels.to_vec();
            // Nothing is not compressed to something by every writer.
            if is_compressed && !own.is_empty() {
                buf.extend(expanded(coding, own, len, limits)?);
            } else {
                buf.extend_from_slice(own);
            }
            Page::DataPageV2 {
                buf: buf.into(),
                num_values: values,
                encoding: self::encoding(encoding)?,
                num_nulls: nulls,
                num_rows: rows,
                def_levels_byte_len: definition_len,
                rep_levels_byte_len: repetition_len,
                is_compressed: false,
                statistics: None,
            }
        }
        PageKind::Other => return Ok(None),
    }))
}

fn expanded(coding: &ColumnCoding, stored: &[u8], len: u64, limits: Limits) -> Result<Vec<u8>, DecodeError> {
    let how = match coding.codec {
        Codec::Plain => {
            let is_whole = stored.len() as u64 == len;
            return if is_whole { Ok(stored.to_vec()) } else { Err(damaged("a page whose two lengths differ")) };
        }
        Codec::Snappy => Compression::Snappy,
        Codec::Gzip => Compression::Gzip,
        Codec::Lz4 => Compression::Lz4,
        Codec::Zstd => Compression::Zstd,
    };
    expand(how, stored, Some(len), limits)
}

/// An encoding by its number in the format.
fn encoding(code: u8) -> Result<Encoding, DecodeError> {
    Ok(match code {
        0 => Encoding::PLAIN,
        2 => Encoding::PLAIN_DICTIONARY,
        3 => Encoding::RLE,
        5 => Encoding::DELTA_BINARY_PACKED,
        6 => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        7 => Encoding::DELTA_BYTE_ARRAY,
        8 => Encoding::RLE_DICTIONARY,
        9 => Encoding::BYTE_STREAM_SPLIT,
        // BIT_PACKED, given up with format version 1, and whatever comes later.
        _ => return Err(DecodeError::Unsupported { what: "an encoding of a Parquet page" }),
    })
}

/// Pages, as the crate asks for them.
struct Pages(VecDeque<Page>);

impl Iterator for Pages {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.pop_front().map(Ok)
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        Ok(self.0.pop_front())
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        Ok(self.0.front().map(|page| PageMetadata {
            num_rows: None,
            num_levels: usize::try_from(page.num_values()).ok(),
            is_dict: page.is_dictionary_page(),
        }))
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.0.pop_front();
        Ok(())
    }
}

/// The column, as the crate describes one.
fn descriptor(coding: &ColumnCoding) -> Result<ColumnDescriptor, DecodeError> {
    let physical = match coding.physical {
        Physical::Boolean => Type::BOOLEAN,
        Physical::Int32 => Type::INT32,
        Physical::Int64 => Type::INT64,
        Physical::Int96 => Type::INT96,
        Physical::Float => Type::FLOAT,
        Physical::Double => Type::DOUBLE,
        Physical::Bytes => Type::BYTE_ARRAY,
        Physical::Fixed(_) => Type::FIXED_LEN_BYTE_ARRAY,
    };
    let len = match coding.physical {
        Physical::Fixed(len) => i32::try_from(len).map_err(|_| damaged("the width of a column"))?,
        _ => -1,
    };
    let builder = SchemaType::primitive_type_builder("column", physical);
    let built = builder.with_repetition(Repetition::REQUIRED).with_length(len).build();
    let primitive = built.map_err(|_| damaged("the type of a column"))?;
    let levels = (i16::from(coding.definition), i16::from(coding.repetition));
    Ok(ColumnDescriptor::new(Arc::new(primitive), levels.0, levels.1, ColumnPath::new(Vec::new())))
}

fn rows<T: DataType>(coding: &ColumnCoding, pages: Pages, limits: Limits) -> Result<Rows, DecodeError> {
    let mut reader = ColumnReaderImpl::<T>::new(Arc::new(descriptor(coding)?), Box::new(pages));
    let (has_definition, has_repetition) = (coding.definition > 0, coding.repetition > 0);
    let most = i16::from(coding.definition);
    let (mut definition, mut repetition, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let mut rows = Rows::default();
    let mut is_open = false;
    loop {
        definition.clear();
        repetition.clear();
        values.clear();
        let asked = (has_definition.then_some(&mut definition), has_repetition.then_some(&mut repetition));
        let read = reader.read_records(BATCH, asked.0, asked.1, &mut values);
        let (records, _, levels) = read.map_err(|_| damaged("the values of a page"))?;
        if records == 0 && levels == 0 {
            break;
        }
        let mut values = values.iter();
        for at in 0..levels {
            if repetition.get(at).is_none_or(|level| *level == 0) {
                if is_open {
                    rows.end_row(limits)?;
                }
                is_open = true;
            }
            if definition.get(at).is_none_or(|level| *level == most) {
                let value = values.next().ok_or_else(|| damaged("the values of a page"))?;
                rows.extend(value.as_bytes(), limits)?;
            }
        }
    }
    if is_open {
        rows.end_row(limits)?;
    }
    Ok(rows)
}
