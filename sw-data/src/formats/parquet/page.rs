//! The head of a page, and the levels of its values.

use super::hybrid::Hybrid;
use crate::formats::thrift::{Kind, Read, Thrift};
use crate::formats::varint::Bad;

/// What stands before a page's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// Bytes of the head itself.
    pub head_len: usize,
    /// Bytes of the page, as they are in the file.
    pub stored_len: u32,
    /// Bytes of the page once it is no longer compressed.
    pub len: u32,
    /// CRC-32 (that of zlib) of the page as it is in the file, where the writer gave one.
    pub crc: Option<u32>,
    /// What it holds.
    pub kind: PageKind,
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Values of a dictionary.
    Dictionary {
        /// How many.
        values: u32,
        /// How they are encoded, by its number in the format.
        encoding: u8,
    },
    /// Values, version 1: levels with their length before them, compressed with the values.
    V1 {
        /// Values and missing ones.
        values: u32,
        /// How they are encoded.
        encoding: u8,
        /// How levels are encoded, of definition and of repetition.
        levels: [u8; 2],
    },
    /// Values, version 2: levels are never compressed.
    V2 {
        /// Values and missing ones.
        values: u32,
        /// Missing ones.
        nulls: u32,
        /// Rows.
        rows: u32,
        /// How they are encoded.
        encoding: u8,
        /// Bytes of the levels of definition.
        definition_len: u32,
        /// Bytes of the levels of repetition, which come first.
        repetition_len: u32,
        /// Whether the values are compressed.
        is_compressed: bool,
    },
    /// Something that is gone over.
    Other,
}

/// Encodings that matter here, by their numbers in the format.
pub(crate) const PLAIN: u8 = 0;
pub(crate) const PLAIN_DICTIONARY: u8 = 2;
pub(crate) const RLE: u8 = 3;
pub(crate) const RLE_DICTIONARY: u8 = 8;

/// Most values of a page. Writers end a page at 1 MiB or 20,000 rows unless they are told otherwise.
pub(crate) const VALUES_MAX: u32 = 1 << 24;

impl PageHeader {
    /// Reads the head at the start of `bytes`; `None` if it goes on behind them.
    ///
    /// # Errors
    /// It is no head of a page.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, NoPage> {
        let mut thrift = Thrift::new(bytes);
        let mut fields = Fields::default();
        match fields.read(&mut thrift) {
            Err(Bad::Short) => return Ok(None),
            Err(Bad::Wrong) => return Err(NoPage),
            Ok(()) => {}
        }
        let kind = fields.kind.ok_or(NoPage)?;
        let (Some(len), Some(stored_len)) = (fields.len, fields.stored_len) else { return Err(NoPage) };
        let head_len = bytes.len() - thrift.left();
        Ok(Some(Self { head_len, stored_len, len, crc: fields.crc, kind }))
    }

    /// Values and missing ones; none in a page that holds others.
    pub fn values(&self) -> u32 {
        match self.kind {
            PageKind::V1 { values, .. } | PageKind::V2 { values, .. } => values,
            PageKind::Dictionary { .. } | PageKind::Other => 0,
        }
    }

    /// Whether its values are numbers of values in a dictionary.
    pub fn needs_dictionary(&self) -> bool {
        match self.kind {
            PageKind::V1 { encoding, .. } | PageKind::V2 { encoding, .. } => {
                matches!(encoding, PLAIN_DICTIONARY | RLE_DICTIONARY)
            }
            PageKind::Dictionary { .. } | PageKind::Other => false,
        }
    }
}

/// Bytes are no head of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPage;

#[derive(Default)]
struct Fields {
    code: Option<i64>,
    len: Option<u32>,
    stored_len: Option<u32>,
    crc: Option<u32>,
    kind: Option<PageKind>,
}

/// A number that is never negative; more than 31 bits it never has.
fn count(thrift: &mut Thrift<'_>) -> Result<u32, Bad> {
    thrift
        .int()
        .and_then(|number| i32::try_from(number).ok().and_then(|number| u32::try_from(number).ok()).ok_or(Bad::Wrong))
}

fn code(thrift: &mut Thrift<'_>) -> Result<u8, Bad> {
    thrift.int().and_then(|number| u8::try_from(number).map_err(|_| Bad::Wrong))
}

impl Fields {
    fn read(&mut self, thrift: &mut Thrift<'_>) -> Result<(), Bad> {
        let mut parts = None;
        thrift.fields(|thrift, number, kind| {
            match (number, kind) {
                (1, Kind::Int) => self.code = Some(thrift.int()?),
                (2, Kind::Int) => self.len = Some(count(thrift)?),
                (3, Kind::Int) => self.stored_len = Some(count(thrift)?),
                (4, Kind::Int) => {
                    let crc = i32::try_from(thrift.int()?).map_err(|_| Bad::Wrong)?;
                    self.crc = Some(crc.cast_unsigned());
                }
                (5, Kind::Struct) => parts = Some((0, v1(thrift)?)),
                (7, Kind::Struct) => parts = Some((2, dictionary(thrift)?)),
                (8, Kind::Struct) => parts = Some((3, v2(thrift)?)),
                _ => return Ok(Read::No),
            }
            Ok(Read::Yes)
        })?;
        self.kind = match (self.code, parts) {
            (Some(code), Some((own, kind))) if code == own => Some(kind),
            // An index page, of which nobody has written one.
            (Some(1), _) => Some(PageKind::Other),
            _ => None,
        };
        Ok(())
    }
}

fn v1(thrift: &mut Thrift<'_>) -> Result<PageKind, Bad> {
    let (mut found, mut own, mut definition, mut repetition) = (None, None, RLE, RLE);
    thrift.fields(|thrift, number, kind| {
        match (number, kind) {
            (1, Kind::Int) => found = Some(count(thrift)?),
            (2, Kind::Int) => own = Some(code(thrift)?),
            (3, Kind::Int) => definition = code(thrift)?,
            (4, Kind::Int) => repetition = code(thrift)?,
            _ => return Ok(Read::No),
        }
        Ok(Read::Yes)
    })?;
    let (Some(values), Some(encoding)) = (found, own) else { return Err(Bad::Wrong) };
    Ok(PageKind::V1 { values, encoding, levels: [definition, repetition] })
}

fn dictionary(thrift: &mut Thrift<'_>) -> Result<PageKind, Bad> {
    let (mut found, mut own) = (None, None);
    thrift.fields(|thrift, number, kind| {
        match (number, kind) {
            (1, Kind::Int) => found = Some(count(thrift)?),
            (2, Kind::Int) => own = Some(code(thrift)?),
            _ => return Ok(Read::No),
        }
        Ok(Read::Yes)
    })?;
    let (Some(values), Some(encoding)) = (found, own) else { return Err(Bad::Wrong) };
    Ok(PageKind::Dictionary { values, encoding })
}

fn v2(thrift: &mut Thrift<'_>) -> Result<PageKind, Bad> {
    let (mut counts, mut own, mut is_compressed) = ([None; 5], None, true);
    thrift.fields(|thrift, number, kind| {
        match (number, kind) {
            (1, Kind::Int) => counts[0] = Some(count(thrift)?),
            (2, Kind::Int) => counts[1] = Some(count(thrift)?),
            (3, Kind::Int) => counts[2] = Some(count(thrift)?),
            (4, Kind::Int) => own = Some(code(thrift)?),
            (5, Kind::Int) => counts[3] = Some(count(thrift)?),
            (6, Kind::Int) => counts[4] = Some(count(thrift)?),
            (7, Kind::True) => is_compressed = true,
            (7, Kind::False) => is_compressed = false,
            _ => return Ok(Read::No),
        }
        Ok(Read::Yes)
    })?;
    let [Some(values), Some(nulls), Some(rows), Some(definition_len), Some(repetition_len)] = counts else {
        return Err(Bad::Wrong);
    };
    let Some(encoding) = own else { return Err(Bad::Wrong) };
    Ok(PageKind::V2 { values, nulls, rows, encoding, definition_len, repetition_len, is_compressed })
}

/// Whether each value is there, as runs: from levels of definition, `most` of them at most. `None` if there are more runs, or if
/// the levels are fewer than `values` or none.
pub(super) fn presence(levels: &[u8], definition: u8, values: u64, most: usize) -> Option<Vec<(bool, u64)>> {
    let mut runs: Vec<(bool, u64)> = Vec::new();
    let mut levels = Hybrid::new(levels, u8::BITS - definition.leading_zeros())?;
    let mut left = values;
    while left > 0 {
        let (level, count) = levels.next_of(left)?;
        if level > u64::from(definition) {
            return None;
        }
        left -= count;
        let is_there = level == u64::from(definition);
        let is_full = runs.len() == most;
        match runs.last_mut() {
            Some((last, sum)) if *last == is_there => *sum += count,
            _ if is_full => return None,
            _ => runs.push((is_there, count)),
        }
    }
    Some(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_runs_of_values_that_are_there_and_of_others() {
        // Five present; a group of eight, alternating; three missing.
        let levels = [10, 1, 3, 0b0101_0101, 6, 0];
        let runs = presence(&levels, 1, 16, 100).unwrap();
        assert_eq!(runs, [(true, 6), (false, 1), (true, 1), (false, 1), (true, 1), (false, 1), (true, 1), (false, 4)]);
        // What stands behind the last value is padding.
        assert_eq!(presence(&levels, 1, 7, 100).unwrap(), [(true, 6), (false, 1)]);
        assert_eq!(presence(&levels, 1, 16, 7), None);
        assert_eq!(presence(&levels, 1, 17, 100), None);
        // A level above the highest one; a run of nothing, which would never end.
        assert_eq!(presence(&[2, 2], 1, 1, 9), None);
        assert_eq!(presence(&[0, 0, 0, 0], 1, 1, 9), None);
        // Levels of two bits: only the highest is a value.
        assert_eq!(presence(&[3, 0b1110_0100, 0b1111_1111], 3, 8, 9).unwrap(), [(false, 3), (true, 5)]);
    }
}
