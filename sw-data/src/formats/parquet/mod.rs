//! Samples in Parquet files: the rows of one column.
//!
//! Source: apache/parquet-format `src/main/thrift/parquet.thrift`, `README.md`, `Encodings.md`.
//!
//! ```text
//!   PAR1 │ row group: column chunk: [dictionary page] page page … │ … │ footer (Thrift) │ its length │ PAR1
//!                                                └─ head (Thrift), [levels], values
//! ```
//!
//! [`ParquetScan`] reads the footer and the heads of pages. Where values lie in the file as they are (PLAIN, not compressed, not
//! repeated), each is an extent of its own; where they do not, the smallest run of pages that can be decoded by itself is one, with
//! the rows in it, for [`crate::decode`]. What a decoder must know besides those bytes is the [`ColumnCoding`], one for a file.

mod footer;
mod hybrid;
mod page;
mod scan;

use std::{fmt, str::FromStr};

pub(crate) use hybrid::{Hybrid, bits};
pub(crate) use page::VALUES_MAX;
pub use page::{PageHeader, PageKind};
pub use scan::{ParquetRows, ParquetScan};

/// How values are stored physically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Physical {
    /// A bit each; a byte each once decoded.
    Boolean,
    /// 4 bytes.
    Int32,
    /// 8 bytes.
    Int64,
    /// 12 bytes, of old time stamps.
    Int96,
    /// 4 bytes.
    Float,
    /// 8 bytes.
    Double,
    /// Bytes with their number before them.
    Bytes,
    /// So many bytes each.
    Fixed(u32),
}

impl Physical {
    fn of(code: i64, len: Option<i64>) -> Option<Self> {
        Some(match code {
            0 => Self::Boolean,
            1 => Self::Int32,
            2 => Self::Int64,
            3 => Self::Int96,
            4 => Self::Float,
            5 => Self::Double,
            6 => Self::Bytes,
            // A width of nothing has no values to tell apart.
            7 => Self::Fixed(u32::try_from(len?).ok().filter(|len| *len > 0)?),
            _ => return None,
        })
    }

    /// Bytes of a value as PLAIN stores it; `None` for those that have no such number.
    pub fn plain_len(self) -> Option<u64> {
        match self {
            Self::Boolean | Self::Bytes => None,
            Self::Int32 | Self::Float => Some(4),
            Self::Int64 | Self::Double => Some(8),
            Self::Int96 => Some(12),
            Self::Fixed(len) => Some(len.into()),
        }
    }
}

/// How pages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// They are not.
    Plain,
    /// Brotli, RFC 7932.
    Brotli,
    /// Snappy, without framing.
    Snappy,
    /// gzip, RFC 1952.
    Gzip,
    /// LZ4 blocks, without framing.
    Lz4,
    /// Zstandard frames.
    Zstd,
}

impl Codec {
    /// By its number in the format; the name of those that are not read.
    fn of(code: i64) -> Result<Self, String> {
        Err(match code {
            0 => return Ok(Self::Plain),
            1 => return Ok(Self::Snappy),
            2 => return Ok(Self::Gzip),
            4 => return Ok(Self::Brotli),
            6 => return Ok(Self::Zstd),
            7 => return Ok(Self::Lz4),
            3 => "LZO".into(),
            // Framed as Hadoop does it, or not, or as LZ4's own frames, by writer.
            5 => "LZ4 with the framing of Hadoop".into(),
            other => format!("codec {other}"),
        })
    }
}

/// What must be known of a column to decode its pages. As text it is what an index keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnCoding {
    /// How values are stored.
    pub physical: Physical,
    /// How pages are compressed.
    pub codec: Codec,
    /// The level at which a value is there: how many fields around it may be missing or repeated.
    pub definition: u8,
    /// How many fields around it are repeated. A row has all values of one repetition.
    pub repetition: u8,
}

const PHYSICALS: [(Physical, &str); 7] = [
    (Physical::Boolean, "boolean"),
    (Physical::Int32, "int32"),
    (Physical::Int64, "int64"),
    (Physical::Int96, "int96"),
    (Physical::Float, "float"),
    (Physical::Double, "double"),
    (Physical::Bytes, "bytes"),
];
const CODECS: [(Codec, &str); 6] = [
    (Codec::Plain, "plain"),
    (Codec::Brotli, "brotli"),
    (Codec::Snappy, "snappy"),
    (Codec::Gzip, "gzip"),
    (Codec::Lz4, "lz4"),
    (Codec::Zstd, "zstd"),
];

impl fmt::Display for ColumnCoding {
    /// `bytes zstd 1 0`, `fixed16 plain 0 0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PHYSICALS.iter().find(|(physical, _)| *physical == self.physical) {
            Some((_, name)) => f.write_str(name)?,
            None => write!(f, "fixed{}", self.physical.plain_len().unwrap_or_default())?,
        }
        let codec = CODECS.iter().find(|(codec, _)| *codec == self.codec).map_or("", |(_, name)| name);
        write!(f, " {codec} {} {}", self.definition, self.repetition)
    }
}

/// A text is no coding of a column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not say how a Parquet column is coded; index the file again")]
pub struct NoCoding(String);

impl FromStr for ColumnCoding {
    type Err = NoCoding;

    fn from_str(text: &str) -> Result<Self, NoCoding> {
        let read = || {
            let mut words = text.split(' ');
            let physical = words.next()?;
            let physical = match physical.strip_prefix("fixed") {
                Some(len) => Physical::of(7, len.parse().ok())?,
                None => PHYSICALS.iter().find(|(_, name)| *name == physical)?.0,
            };
            let codec = words.next()?;
            let codec = CODECS.iter().find(|(_, name)| *name == codec)?.0;
            let (definition, repetition) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            words.next().is_none().then_some(Self { physical, codec, definition, repetition })
        };
        read().ok_or_else(|| NoCoding(text.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codings_are_text_and_back() {
        let physicals = PHYSICALS.iter().map(|(physical, _)| *physical).chain([Physical::Fixed(16)]);
        for physical in physicals {
            for (codec, _) in CODECS {
                let coding = ColumnCoding { physical, codec, definition: 3, repetition: 1 };
                assert_eq!(coding.to_string().parse(), Ok(coding));
            }
        }
        for text in
            ["", "bytes", "bytes zstd 1", "bytes zstd 1 0 0", "bytes zstd 256 0", "fixed0 plain 0 0", "x plain 0 0"]
        {
            assert!(text.parse::<ColumnCoding>().is_err(), "{text}");
        }
    }
}
