//! MDS shards that are compressed as a whole.

use super::codec::{Compression, expand};
use super::{DecodeError, Limits, Rows};
use crate::formats::{MdsScan, scan_slice};

/// How a shard is compressed, by its first bytes.
fn compression(block: &[u8]) -> Option<Compression> {
    match block {
        [0x1f, 0x8b, ..] => Some(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
        _ => None,
    }
}

/// Decodes a whole shard; rows are its samples, as [`MdsScan`] finds them in one that is not compressed.
///
/// # Errors
/// What is wrong with it.
pub fn mds_shard(block: &[u8], limits: Limits) -> Result<Rows, DecodeError> {
    let what = "a compressed MDS shard";
    let how = compression(block).ok_or(DecodeError::Damaged { what })?;
    let shard = expand(how, block, None, limits)?;
    let count =
        shard.first_chunk::<4>().map(|count| u32::from_le_bytes(*count)).ok_or(DecodeError::Damaged { what })?;
    let samples = scan_slice(&mut MdsScan::new(shard.len() as u64, count.into())?, &shard)?;
    let mut rows = Rows::default();
    for sample in samples {
        let part = usize::try_from(sample.offset).ok().zip(usize::try_from(sample.len).ok());
        let bytes = part.and_then(|(from, len)| shard.get(from..)?.get(..len)).ok_or(DecodeError::Damaged { what })?;
        rows.extend(bytes, limits)?;
        rows.end_row(limits)?;
    }
    Ok(rows)
}
