//! Keys as text: `NAME:NN:BASE64:`, where BASE64 is the key of 32, 48 or 64 bytes with its CRC-32 behind it, low byte first. Of
//! authentication and of TLS.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

/// Characters of a key's text at most: 68 bytes in base 64 are 92.
pub(crate) const TEXT_BYTES_MAX: usize = 128;
/// Bytes of a CRC-32.
const CRC_BYTES: usize = 4;

/// Why a text is no key. It has nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextError {
    /// Another form.
    Form,
    /// Another length of the key.
    Length(usize),
    /// The checksum does not fit.
    Checksum,
}

/// The number and the part in base 64 of a text that begins with `prefix`; white space around it does not count.
pub(crate) fn split<'a>(text: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    let text = text.trim();
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let (number, rest) = text.strip_prefix(prefix)?.split_once(':')?;
    Some((number, rest.strip_suffix(':')?))
}

/// The key of a part in base 64.
pub(crate) fn decode(encoded: &str) -> Result<Zeroizing<Vec<u8>>, TextError> {
    // Room for what the longest text gives, so that nothing is left behind where no one wipes it.
    let mut room = Zeroizing::new([0; TEXT_BYTES_MAX]);
    let got = STANDARD.decode_slice(encoded, room.as_mut_slice()).map_err(|_| TextError::Form)?;
    let len = got.saturating_sub(CRC_BYTES);
    if !matches!(len, 32 | 48 | 64) {
        return Err(TextError::Length(len));
    }
    let (bytes, told) = room.split_at(len);
    if told.get(..CRC_BYTES) != Some(&crc32(bytes).to_le_bytes()) {
        return Err(TextError::Checksum);
    }
    Ok(Zeroizing::new(bytes.to_vec()))
}

/// The text of a key, which is as secret as itself.
pub(crate) fn encode(prefix: &str, number: u8, bytes: &[u8]) -> Zeroizing<String> {
    let mut with_sum = Zeroizing::new(Vec::with_capacity(bytes.len() + CRC_BYTES));
    with_sum.extend_from_slice(bytes);
    with_sum.extend_from_slice(&crc32(bytes).to_le_bytes());
    let encoded = Zeroizing::new(STANDARD.encode(&with_sum));
    // As long as it becomes: what grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES_MAX));
    // A string takes everything.
    let _ = write!(text, "{prefix}{number:02}:{}:", *encoded);
    text
}

/// CRC-32 as Ethernet has it (IEEE 802.3): reflected, polynomial 04C11DB7h, all ones before and behind. Without a table: no address
/// depends on a secret.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| sum >> 1 ^ (0xEDB8_8320 & (sum & 1).wrapping_neg());
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::crc32;

    #[test]
    fn the_checksum_is_that_of_ethernet() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }
}
