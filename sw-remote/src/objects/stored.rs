//! Checksums that a store keeps beside an object, of all of its bytes: what is read as a whole by one request is compared with them.

use std::hash::Hasher;

use crc_fast::{CrcAlgorithm, Digest as Crc};
use object_store::Extensions;
use sha2::{Digest as _, Sha256};
use sw_engine::checksum::Algorithm;
use twox_hash::XxHash64;

use crate::http::Told;

/// One.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Crc64Nvme(u64),
    Crc32c(u64),
    Sha256([u8; 32]),
    /// With zero for a seed.
    Xxh64(u64),
}

/// Names of headers, the best first: what is cheap for bytes that are long.
const CRC64NVME: &str = "x-amz-checksum-crc64nvme";
const CRC32C: &str = "x-amz-checksum-crc32c";
const SHA256: &str = "x-amz-checksum-sha256";
/// Of all bytes, or of the checksums of the parts.
const TYPE: &str = "x-amz-checksum-type";

impl Stored {
    /// What the answer to HEAD says of an object. One that is made of parts has sums of sums by some algorithms (Amazon S3 user guide, "Checking
    /// object integrity"), which say so, or are told by the tag of such an object: with those nothing is compared.
    pub(super) fn of(answer: &Extensions, e_tag: Option<&str>) -> Option<Self> {
        if let Some(known) = answer.get() {
            return Some(*known);
        }
        let told = answer.get::<Told>()?;
        let text = |name| told.0.get(name).and_then(|value| value.to_str().ok());
        let is_of_parts = e_tag.is_some_and(|tag| tag.trim_matches('"').contains('-'));
        let is_of_all = |name| match text(TYPE) {
            Some(kind) => kind == "FULL_OBJECT",
            // This one is never of parts.
            None => name == CRC64NVME || !is_of_parts,
        };
        let bytes = |name| text(name).filter(|_| is_of_all(name)).and_then(bytes_of);
        let number = |bytes: Vec<u8>, len: usize| {
            let number = bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            (bytes.len() == len).then_some(number)
        };
        let crc64 = || bytes(CRC64NVME).and_then(|bytes| number(bytes, 8)).map(Self::Crc64Nvme);
        let crc32 = || bytes(CRC32C).and_then(|bytes| number(bytes, 4)).map(Self::Crc32c);
        let sha = || bytes(SHA256).and_then(|bytes| bytes.try_into().ok()).map(Self::Sha256);
        crc64().or_else(crc32).or_else(sha)
    }

    /// It by the engine's name, if it has one.
    pub(super) fn of_engine(self) -> Option<(Algorithm, u64)> {
        match self {
            Self::Crc64Nvme(value) => Some((Algorithm::Crc64Nvme, value)),
            Self::Crc32c(value) => Some((Algorithm::Crc32c, value)),
            Self::Sha256(_) | Self::Xxh64(_) => None,
        }
    }
}

/// The same of bytes that come.
pub(super) struct Running {
    want: Stored,
    now: Now,
}

enum Now {
    Crc(Crc),
    Sha256(Sha256),
    Xxh64(XxHash64),
}

impl Running {
    pub(super) fn new(want: Stored) -> Self {
        let now = match want {
            Stored::Crc64Nvme(_) => Now::Crc(Crc::new(CrcAlgorithm::Crc64Nvme)),
            Stored::Crc32c(_) => Now::Crc(Crc::new(CrcAlgorithm::Crc32Iscsi)),
            Stored::Sha256(_) => Now::Sha256(Sha256::new()),
            Stored::Xxh64(_) => Now::Xxh64(XxHash64::with_seed(0)),
        };
        Self { want, now }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.now {
            Now::Crc(crc) => crc.update(bytes),
            Now::Sha256(sha) => sha.update(bytes),
            Now::Xxh64(xxh) => xxh.write(bytes),
        }
    }

    /// Whether all of the bytes are those that the store was given.
    pub(super) fn agrees(self) -> bool {
        match (self.now, self.want) {
            (Now::Crc(crc), Stored::Crc64Nvme(want) | Stored::Crc32c(want)) => crc.finalize() == want,
            (Now::Sha256(sha), Stored::Sha256(want)) => <[u8; 32]>::from(sha.finalize()) == want,
            (Now::Xxh64(xxh), Stored::Xxh64(want)) => xxh.finish() == want,
            (Now::Crc(_) | Now::Sha256(_) | Now::Xxh64(_), _) => false,
        }
    }
}

/// The bytes of a text in base 64 (RFC 4648 §4 "Base 64 Encoding").
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let (mut bytes, mut bits, mut held) = (Vec::with_capacity(digits.len() * 3 / 4), 0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, held) = (bits << 6 | u32::from(value), held + 6);
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};

    use super::*;

    fn of(headers: &[(&'static str, &str)], e_tag: &str) -> Option<Stored> {
        let mut extensions = Extensions::new();
        let header =
            |(name, value): &(&'static str, &str)| (http::HeaderName::from_static(name), value.parse().unwrap());
        extensions.insert(Told(headers.iter().map(header).collect()));
        Stored::of(&extensions, Some(e_tag))
    }

    #[test]
    fn base_64_is_read() {
        for len in 0..40u8 {
            let bytes: Vec<u8> = (0..len).map(|n| n.wrapping_mul(97)).collect();
            assert_eq!(bytes_of(&BASE64_STANDARD.encode(&bytes)), Some(bytes));
        }
        assert_eq!(bytes_of("a-b"), None);
    }

    #[test]
    fn sums_of_all_bytes_count_and_sums_of_parts_do_not() {
        let (crc64, crc32) = (BASE64_STANDARD.encode([1; 8]), BASE64_STANDARD.encode([2; 4]));
        let sha = BASE64_STANDARD.encode([3; 32]);
        let (one, parts) = ("\"0123\"", "\"0123-2\"");
        assert_eq!(of(&[(CRC64NVME, &crc64), (CRC32C, &crc32)], parts), Some(Stored::Crc64Nvme(0x0101_0101_0101_0101)));
        assert_eq!(of(&[(CRC32C, &crc32), (SHA256, &sha)], one), Some(Stored::Crc32c(0x0202_0202)));
        assert_eq!(of(&[(SHA256, &sha)], one), Some(Stored::Sha256([3; 32])));
        assert_eq!(of(&[(SHA256, &sha)], parts), None);
        assert_eq!(of(&[(CRC32C, &crc32), (TYPE, "FULL_OBJECT")], parts), Some(Stored::Crc32c(0x0202_0202)));
        assert_eq!(of(&[(CRC32C, &crc32), (TYPE, "COMPOSITE")], one), None);
        assert_eq!(of(&[(SHA256, &format!("{sha}-2"))], one), None);
        // What is none is none.
        assert_eq!(of(&[(CRC64NVME, "AAAA"), (CRC32C, "?")], one), None);
    }

    #[test]
    fn each_algorithm_is_that_of_its_standard() {
        let bytes = b"123456789";
        // Check values of the catalogue: NVM Express NVM Command Set 1.0 §5.2.1.3.4 and RFC 3720; FIPS 180-4; xxHash,
        // `XXH64` with the seed 0.
        for want in [
            Stored::Crc64Nvme(0xae8b_1486_0a79_9888),
            Stored::Crc32c(0xe306_9283),
            Stored::Sha256(Sha256::digest(bytes).into()),
            Stored::Xxh64(0x8cb8_41db_40e6_ae83),
        ] {
            let compared = |bytes: &[u8]| {
                let mut running = Running::new(want);
                bytes.chunks(4).for_each(|piece| running.update(piece));
                running.agrees()
            };
            assert!(compared(bytes) && !compared(b"123456780"), "{want:?}");
        }
    }
}
