//! Deflated members of npz archives.

use super::codec::{Compression, expand};
use super::{DecodeError, Limits, Rows, check_crc};
use crate::formats::{Array, NpyScan, scan_slice};

/// An npy file that was deflated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Npz {
    /// The whole npy file.
    pub file: Vec<u8>,
    /// The array in it.
    pub array: Array,
}

/// Inflates a member of `len` bytes, whose CRC-32 is `crc32` where it is known, and finds the array in it.
///
/// # Errors
/// What is wrong with it; `Format` for an array that is a pickle or a structure.
pub fn npz_array(block: &[u8], len: Option<u64>, crc32: Option<u32>, limits: Limits) -> Result<Npz, DecodeError> {
    let file = expand(Compression::Deflate, block, len, limits)?;
    if let Some(crc32) = crc32 {
        check_crc("a member of an npz archive", &file, crc32)?;
    }
    let found = scan_slice(&mut NpyScan::new(file.len() as u64)?, &file)?;
    let array = found.into_iter().next().ok_or(DecodeError::Damaged { what: "a member of an npz archive" })?;
    Ok(Npz { file, array })
}

/// Decodes a member with its own header before it: one row, the elements of the array. The header's CRC-32 is compared where the
/// writer put one there; one that wrote to a stream did not.
///
/// # Errors
/// As [`npz_array`].
pub(super) fn npz_rows(block: &[u8], limits: Limits) -> Result<Rows, DecodeError> {
    let damaged = DecodeError::Damaged { what: "the header of a member of an npz archive" };
    let header = sw_zip::records::local(block).map_err(|_| damaged.clone())?;
    if header.method != DEFLATED {
        return Err(damaged);
    }
    let array = npz_array(block.get(header.len..).unwrap_or_default(), None, header.crc32, limits)?;
    let mut rows = Rows::default();
    rows.extend(array.elements(), limits)?;
    rows.end_row(limits)?;
    Ok(rows)
}

/// The format's number of the method, APPNOTE §4.4.5.
const DEFLATED: u16 = 8;

impl Npz {
    /// The elements of the array.
    pub fn elements(&self) -> &[u8] {
        // The scan held both against the file's length.
        let part = usize::try_from(self.array.content.offset).ok().zip(usize::try_from(self.array.content.len).ok());
        part.and_then(|(from, len)| self.file.get(from..)?.get(..len)).unwrap_or_default()
    }
}
