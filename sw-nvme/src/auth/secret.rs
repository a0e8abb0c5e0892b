//! What host and controller both know, and how it is written down.
//!
//! `DHHC-1:HH:BASE64:`, where HH is 00 for a secret that is used as it is and 01, 02, 03 for one that is transformed by HMAC with
//! SHA-256, 384, 512 first, and BASE64 is the secret of 32, 48 or 64 bytes with its CRC-32 behind it, low byte first
//! (section 8.3.5.5.7 "DH-HMAC-CHAP Security Requirements": secret representation; what `nvme gen-dhchap-key` writes).

use core::fmt;

use zeroize::Zeroizing;

use super::{Hash, RANDOM_BYTES, response};
use crate::{
    fabrics::Nqn,
    keytext::{self, TextError},
};

/// Characters of a secret's text at most.
pub const TEXT_BYTES_MAX: usize = keytext::TEXT_BYTES_MAX;
const PREFIX: &str = "DHHC-1:";

/// A secret. `Debug` tells its length and its transformation, and nothing of it; it is wiped when it is dropped.
#[derive(Clone)]
pub struct Secret {
    bytes: Zeroizing<Vec<u8>>,
    transform: Option<Hash>,
}

/// Why a text is no secret. It has nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Another form.
    #[error("it is no text of the form DHHC-1:00:BASE64:")]
    Form,
    /// A transformation that is not known.
    #[error("the number behind DHHC-1 is not one of 00, 01, 02, 03")]
    Transform,
    /// Another length.
    #[error("it has {0} bytes; it has 32, 48 or 64")]
    Length(usize),
    /// The checksum does not fit: it was mistyped, or is cut short.
    #[error("its checksum does not fit")]
    Checksum,
}

impl Secret {
    /// Of random bytes: the first 32, 48 or 64 of them, as many as `like` has.
    pub fn from_random(random: &[u8; RANDOM_BYTES], like: Hash, transform: Option<Hash>) -> Self {
        let bytes = random.iter().copied().take(like.len_bytes()).collect();
        Self { bytes: Zeroizing::new(bytes), transform }
    }

    /// From its text; white space around it does not count.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let (number, encoded) = keytext::split(text, PREFIX).ok_or(SecretError::Form)?;
        let transform = match number {
            "00" => None,
            "01" => Some(Hash::Sha256),
            "02" => Some(Hash::Sha384),
            "03" => Some(Hash::Sha512),
            _ => return Err(SecretError::Transform),
        };
        let bytes = keytext::decode(encoded).map_err(|error| match error {
            TextError::Form => SecretError::Form,
            TextError::Length(len) => SecretError::Length(len),
            TextError::Checksum => SecretError::Checksum,
        })?;
        Ok(Self { bytes, transform })
    }

    /// Its text, which is as secret as itself.
    pub fn to_text(&self) -> Zeroizing<String> {
        keytext::encode(PREFIX, self.transform.map_or(0, Hash::id), &self.bytes)
    }

    /// The key of responses of whoever has this name: that of the host for its secret, that of the subsystem for its own.
    pub(super) fn key_of(&self, name: &Nqn) -> Zeroizing<Vec<u8>> {
        match self.transform {
            None => self.bytes.clone(),
            Some(hash) => response::mac(hash, &self.bytes, &[name.as_str().as_bytes(), b"NVMe-over-Fabrics"]),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transform = self.transform.map_or("as it is", Hash::name);
        write!(f, "Secret({} bytes, {transform})", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with Python 3.11:
    //   import base64, zlib, hmac
    //   key = bytes(range(32)); "DHHC-1:01:" + base64.b64encode(key + zlib.crc32(key).to_bytes(4, "little")).decode() + ":"
    //   hmac.new(key, b"nqn.2026-11.io.example:host" + b"NVMe-over-Fabrics", "sha256").hexdigest()
    // and the same with range(48), sha384 and range(64), sha512.
    const TEXTS: [(&str, &str); 4] = [
        (
            "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        ),
        (
            "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:",
            "c2742284a9d86b8d18b851392be3fadfb1da94e486b422b80e40714de169e7a4",
        ),
        (
            "DHHC-1:02:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vcSEgBQ==:",
            "1b4ee532965d1e1f1add28f27a986e343c0196cd08c29c6ba8fe0d14eed7ce632348c1659f2b338ba39947e958a8dc6c",
        ),
        (
            "DHHC-1:03:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P4zODhA=:",
            "ec33bae87a5987aa49c45621c539e10dcd5f4791eb32262358ef7c5201f22e9ae5449d911b3c603b9dad6bba76b09f6cc0fa90cca96b6dfacb013faf755483a9",
        ),
    ];

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn texts_are_read_transformed_and_written_as_another_program_does() {
        let name = Nqn::new("nqn.2026-11.io.example:host").unwrap();
        for (text, key) in TEXTS {
            let secret = Secret::parse(&format!(" {text}\n")).unwrap();
            assert_eq!((hex(&secret.key_of(&name)).as_str(), secret.to_text().as_str()), (key, text));
        }
    }

    #[test]
    fn a_secret_is_made_of_random_bytes_and_told_of_without_them() {
        let secret = Secret::from_random(&[0xAB; RANDOM_BYTES], Hash::Sha384, Some(Hash::Sha512));
        assert_eq!(format!("{secret:?}"), "Secret(48 bytes, sha512)");
        assert_eq!(format!("{:?}", Secret::parse(&secret.to_text()).unwrap()), "Secret(48 bytes, sha512)");
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_repeated() {
        let (good, _) = TEXTS[1];
        let cases = [
            ("", SecretError::Form),
            ("DHHC-1:", SecretError::Form),
            (&good[..good.len() - 1], SecretError::Form),
            (&good.replace("DHHC-1", "DHHC-2"), SecretError::Form),
            (&good.replace(":01:", ":04:"), SecretError::Transform),
            (&good.replace(":01:", ":1:"), SecretError::Transform),
            (&good.replace(":01:", ":é:"), SecretError::Transform),
            (&good.replacen('A', "B", 1), SecretError::Checksum),
            ("DHHC-1:00:AAAA:", SecretError::Length(0)),
            ("DHHC-1:00::", SecretError::Length(0)),
            ("DHHC-1:00:AA_A:", SecretError::Form),
            (&format!("DHHC-1:00:{}:", "A".repeat(200)), SecretError::Form),
        ];
        for (text, why) in cases {
            assert_eq!(Secret::parse(text).err(), Some(why), "{text}");
        }
    }
}
