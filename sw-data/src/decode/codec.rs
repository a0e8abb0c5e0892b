//! Compressed bytes to bytes. All decoders are Rust; none needs a C compiler.

use std::io::Read;

use super::{DecodeError, Limits};

/// Most bytes of a window that a zstd frame may claim: it is allocated at once. The format's own advice is 8 MiB; `--long` writes 128.
const ZSTD_WINDOW_MAX: u64 = 128 << 20;
/// Compressed bytes that the Brotli decoder is given at a time.
const BROTLI_STEP_BYTES: usize = 4096;

/// A way of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// Brotli, RFC 7932.
    Brotli,
    /// Deflate, RFC 1951.
    Deflate,
    /// gzip, RFC 1952; several members are one after the other.
    Gzip,
    /// Snappy, one block without framing.
    Snappy,
    /// LZ4, one block without framing.
    Lz4,
    /// Zstandard, frames one after the other.
    Zstd,
}

/// Decompresses `bytes` to exactly `len` bytes, or, if that is not known, to as many as there are.
pub(super) fn expand(how: Compression, bytes: &[u8], len: Option<u64>, limits: Limits) -> Result<Vec<u8>, DecodeError> {
    if len.is_some_and(|len| len > limits.bytes) {
        return Err(DecodeError::TooLong { max: limits.bytes });
    }
    let most = len.unwrap_or(limits.bytes);
    let expanded = match how {
        Compression::Brotli => all(brotli_decompressor::Decompressor::new(bytes, BROTLI_STEP_BYTES), most),
        Compression::Deflate => all(flate2::read::DeflateDecoder::new(bytes), most),
        Compression::Gzip => all(flate2::read::MultiGzDecoder::new(bytes), most),
        Compression::Zstd => zstd(bytes, most),
        Compression::Snappy => block(bytes, most, SNAPPY_RATIO, |bytes, len| {
            let claimed = snap::raw::decompress_len(bytes).ok()?;
            if claimed != len { None } else { snap::raw::Decoder::new().decompress_vec(bytes).ok() }
        }),
        Compression::Lz4 => block(bytes, most, LZ4_RATIO, |bytes, len| lz4_flex::block::decompress(bytes, len).ok()),
    };
    match expanded {
        Some(expanded) if len.is_none_or(|len| expanded.len() as u64 == len) => {
            // One byte more than the limit was allowed, to notice it.
            if expanded.len() as u64 > limits.bytes {
                Err(DecodeError::TooLong { max: limits.bytes })
            } else {
                Ok(expanded)
            }
        }
        _ => Err(DecodeError::Damaged { what: "a compressed block" }),
    }
}

/// Most bytes that a byte of each format can stand for: a Snappy copy of three bytes makes 64; a byte of an LZ4 length adds 255.
const SNAPPY_RATIO: u64 = 22;
const LZ4_RATIO: u64 = 255;

/// Reads all, and a byte more than `most` if there is one.
fn all(reader: impl Read, most: u64) -> Option<Vec<u8>> {
    let mut expanded = Vec::new();
    reader.take(most.saturating_add(1)).read_to_end(&mut expanded).ok()?;
    Some(expanded)
}

fn zstd(mut bytes: &[u8], most: u64) -> Option<Vec<u8>> {
    let mut expanded = Vec::new();
    while !bytes.is_empty() {
        let left = most.saturating_add(1) - expanded.len() as u64;
        if left == 0 {
            break;
        }
        let frame = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(&mut bytes, ZSTD_WINDOW_MAX).ok()?;
        frame.take(left).read_to_end(&mut expanded).ok()?;
    }
    Some(expanded)
}

/// A decoder that allocates what is claimed: held against what the bytes can stand for before.
fn block(bytes: &[u8], len: u64, ratio: u64, decode: impl Fn(&[u8], usize) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let can_be = (bytes.len() as u64).saturating_mul(ratio).saturating_add(64);
    if len > can_be {
        return None;
    }
    decode(bytes, usize::try_from(len).ok()?)
}
