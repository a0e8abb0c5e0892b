//! Keys of TLS over NVMe/TCP: their text, and what is made of them for one host and one subsystem.
//!
//! ```text
//!   NVMeTLSkey-1:01:BASE64:      configured PSK, 32 or 48 bytes
//!      │ HKDF-Expand-Label "HostNQN", NQN of the host                  (00: as it is)
//!      ▼
//!   retained PSK ──► digest = HMAC(it, host ‖ " " ‖ subsystem ‖ " NVMe-over-Fabrics") in base 64
//!      │              identity: NVMe0R01 host subsystem        or     NVMe1R01 host subsystem digest
//!      │ HKDF-Expand-Label "nvme-tls-psk", the identity (0)    or     "01 digest" (1)
//!      ▼
//!   TLS PSK, of the suite whose hash it was made with: 01 TLS_AES_128_GCM_SHA256, 02 TLS_AES_256_GCM_SHA384
//! ```
//!
//! No I/O. Invariants: secrets are wiped when they are dropped, and are in no text that is made here but [`ConfiguredPsk::to_text`]. What
//! a peer says is no name before it was checked.
//!
//! Source: NVM Express TCP Transport Specification 1.1, section 3.6.1 "Transport Layer Security (TLS)"; RFC 8446 §7.1 and RFC 5869. What old
//! versions of libnvme make instead ([`Derivation::Compat`]) was read in its `derive_tls_key_compat`.

use core::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use crate::{
    auth::{Hash, RANDOM_BYTES, response::mac},
    fabrics::{NQN_BYTES_MAX, Nqn},
    keytext::{self, TextError},
};

/// Characters of a key's text at most.
pub const TEXT_BYTES_MAX: usize = keytext::TEXT_BYTES_MAX;
/// Bytes of an identity at most: two names, a digest of 48 bytes in base 64, and what stands between.
pub const IDENTITY_BYTES_MAX: usize = 8 + 3 + 2 * NQN_BYTES_MAX + 64;
/// Bytes of a label or a context of HKDF-Expand-Label at most: their lengths have one byte (RFC 8446 §7.1).
const LABEL_BYTES_MAX: usize = 255;
const PREFIX: &str = "NVMeTLSkey-1:";

/// A cipher suite of TLS 1.3, with the hash that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    /// `TLS_AES_128_GCM_SHA256`.
    Aes128GcmSha256,
    /// `TLS_AES_256_GCM_SHA384`.
    Aes256GcmSha384,
}

impl Suite {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Aes128GcmSha256, Self::Aes256GcmSha384];

    /// Its name in RFC 8446, B.4.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128GcmSha256 => "TLS_AES_128_GCM_SHA256",
            Self::Aes256GcmSha384 => "TLS_AES_256_GCM_SHA384",
        }
    }

    /// Its number there.
    pub const fn id(self) -> u16 {
        match self {
            Self::Aes128GcmSha256 => 0x1301,
            Self::Aes256GcmSha384 => 0x1302,
        }
    }

    /// Bytes of a key of its cipher.
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::Aes128GcmSha256 => 16,
            Self::Aes256GcmSha384 => 32,
        }
    }

    /// Its hash.
    pub const fn hash(self) -> Hash {
        match self {
            Self::Aes128GcmSha256 => Hash::Sha256,
            Self::Aes256GcmSha384 => Hash::Sha384,
        }
    }

    fn of_key(len_bytes: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.hash().len_bytes() == len_bytes)
    }

    fn of_specifier(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| text == specifier(*suite))
    }
}

/// The hash specifier of an identity.
fn specifier(suite: Suite) -> &'static str {
    match suite {
        Suite::Aes128GcmSha256 => "01",
        Suite::Aes256GcmSha384 => "02",
    }
}

/// The form of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// `NVMe0R…`: the names.
    V0,
    /// `NVMe1R…`: the names and a digest of the key. What version 1.0 of the transport added.
    V1,
}

/// How keys are made of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Derivation {
    /// As the specification says.
    Standard,
    /// As old versions of libnvme do: labels and contexts without their lengths, and the length of the key with its low byte first.
    Compat,
}

/// What both ends must do alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    /// The form of the identity.
    pub version: Version,
    /// How keys are made.
    pub derivation: Derivation,
}

impl Form {
    /// All, by the names that settings have for them.
    pub const NAMED: [(&'static str, Self); 4] = [
        ("v1", Self { version: Version::V1, derivation: Derivation::Standard }),
        ("v0", Self { version: Version::V0, derivation: Derivation::Standard }),
        ("v1-compat", Self { version: Version::V1, derivation: Derivation::Compat }),
        ("v0-compat", Self { version: Version::V0, derivation: Derivation::Compat }),
    ];

    /// Of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::NAMED.into_iter().find(|(known, _)| *known == name).map(|(_, form)| form)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMED.into_iter().find(|(_, form)| *form == self).map_or("", |(name, _)| name)
    }
}

impl Default for Form {
    fn default() -> Self {
        Self { version: Version::V1, derivation: Derivation::Standard }
    }
}

/// A key as it is configured at both ends. `Debug` tells its length and its transformation, and nothing of it.
#[derive(Clone)]
pub struct ConfiguredPsk {
    bytes: Zeroizing<Vec<u8>>,
    suite: Suite,
    transform: Transform,
}

/// How a retained PSK is made of a configured one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// It is the same.
    None,
    /// By the hash that is as long as the key.
    ByHash,
}

/// Why a text is no key, or no key can be made of it. It has nothing of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PskError {
    /// Another form.
    #[error("it is no text of the form NVMeTLSkey-1:01:BASE64:")]
    Form,
    /// A transformation that is not known.
    #[error("the number behind NVMeTLSkey-1 is not one of 00, 01, 02")]
    Transform,
    /// Another length.
    #[error("it has {0} bytes; with 01 it has 32, with 02 it has 48, with 00 one of both")]
    Length(usize),
    /// The checksum does not fit: it was mistyped, or is cut short.
    #[error("its checksum does not fit")]
    Checksum,
    /// The names of host and subsystem have more than the key's derivation takes.
    #[error("the names of host and subsystem are too long together for an identity of version 0 ({0} bytes of 255)")]
    Names(usize),
}

impl ConfiguredPsk {
    /// Of random bytes, as many of them as a key of `suite` has.
    pub fn from_random(random: &[u8; RANDOM_BYTES], suite: Suite, transform: Transform) -> Self {
        let bytes = random.iter().copied().take(suite.hash().len_bytes()).collect();
        Self { bytes: Zeroizing::new(bytes), suite, transform }
    }

    /// From its text (PSK interchange format); white space around it does not count.
    ///
    /// # Errors
    /// [`PskError`].
    pub fn parse(text: &str) -> Result<Self, PskError> {
        let (number, encoded) = keytext::split(text, PREFIX).ok_or(PskError::Form)?;
        let told = match number {
            "00" => None,
            "01" => Some(Suite::Aes128GcmSha256),
            "02" => Some(Suite::Aes256GcmSha384),
            _ => return Err(PskError::Transform),
        };
        let bytes = keytext::decode(encoded).map_err(|error| match error {
            TextError::Form => PskError::Form,
            TextError::Length(len) => PskError::Length(len),
            TextError::Checksum => PskError::Checksum,
        })?;
        let by_length = Suite::of_key(bytes.len()).ok_or(PskError::Length(bytes.len()))?;
        if told.is_some_and(|told| told != by_length) {
            return Err(PskError::Length(bytes.len()));
        }
        let transform = if told.is_none() { Transform::None } else { Transform::ByHash };
        Ok(Self { bytes, suite: by_length, transform })
    }

    /// Its text, which is as secret as itself.
    pub fn to_text(&self) -> Zeroizing<String> {
        let number = match self.transform {
            Transform::None => 0,
            Transform::ByHash => self.suite.hash().id(),
        };
        keytext::encode(PREFIX, number, &self.bytes)
    }

    /// The suite of its connections.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Identity and key of connections between two ends.
    ///
    /// # Errors
    /// [`PskError::Names`].
    pub fn tls_psk(&self, host: &Nqn, subsystem: &Nqn, form: Form) -> Result<TlsPsk, PskError> {
        let Form { version, derivation } = form;
        let (suite, len) = (self.suite, self.bytes.len());
        let label = |label, context: &[u8]| info(derivation, len, label, context);
        let retained = match self.transform {
            Transform::None => self.bytes.clone(),
            Transform::ByHash => derive(suite, &self.bytes, &label("tls13 HostNQN", host.as_str().as_bytes())?),
        };
        let number = specifier(suite);
        let (identity, context) = match version {
            Version::V0 => {
                let identity = format!("NVMe0R{number} {host} {subsystem}");
                (identity.clone(), identity)
            }
            Version::V1 => {
                let parts = [host.as_str(), " ", subsystem.as_str(), " ", "NVMe-over-Fabrics"].map(str::as_bytes);
                // The digest goes over the network in the clear: it is no secret.
                let digest = STANDARD.encode(&*mac(suite.hash(), &retained, &parts));
                (format!("NVMe1R{number} {host} {subsystem} {digest}"), format!("{number} {digest}"))
            }
        };
        let key = derive(suite, &retained, &label("tls13 nvme-tls-psk", context.as_bytes())?);
        Ok(TlsPsk { identity, key, suite })
    }

    /// The key that a host names by `identity`, if it is one of this key for a subsystem that `is_ours`; identities of both versions.
    pub fn answer(&self, identity: &[u8], derivation: Derivation, is_ours: impl Fn(&Nqn) -> bool) -> Option<Answer> {
        let asked = Identity::parse(identity)?;
        if asked.suite != self.suite || !is_ours(&asked.subsystem) {
            return None;
        }
        let form = Form { version: asked.version, derivation };
        let psk = self.tls_psk(&asked.host, &asked.subsystem, form).ok()?;
        let Identity { host, subsystem, .. } = asked;
        (psk.identity.as_bytes() == identity).then_some(Answer { psk, host, subsystem })
    }
}

impl fmt::Debug for ConfiguredPsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfiguredPsk({} bytes, {:?})", self.bytes.len(), self.transform)
    }
}

/// The host that names itself in an identity; `None` for bytes that are none.
pub fn host_of(identity: &[u8]) -> Option<Nqn> {
    Identity::parse(identity).map(|asked| asked.host)
}

/// What a host named.
#[derive(Debug)]
pub struct Answer {
    /// The key.
    pub psk: TlsPsk,
    /// The host that has it.
    pub host: Nqn,
    /// The subsystem that it is for.
    pub subsystem: Nqn,
}

/// Identity and key of one connection.
pub struct TlsPsk {
    identity: String,
    key: Zeroizing<Vec<u8>>,
    suite: Suite,
}

impl TlsPsk {
    /// The identity, which is no secret.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The key, as many bytes as the hash of its suite has.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The suite that it is for.
    pub fn suite(&self) -> Suite {
        self.suite
    }
}

impl fmt::Debug for TlsPsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsPsk({}, {})", self.identity, self.suite.name())
    }
}

/// An identity, read.
struct Identity {
    version: Version,
    suite: Suite,
    host: Nqn,
    subsystem: Nqn,
}

impl Identity {
    fn parse(raw: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(raw).ok().filter(|text| text.len() <= IDENTITY_BYTES_MAX)?;
        let mut words = text.split(' ');
        let (version, number) = match words.next()?.split_at_checked(6)? {
            ("NVMe0R", number) => (Version::V0, number),
            ("NVMe1R", number) => (Version::V1, number),
            _ => return None,
        };
        let suite = Suite::of_specifier(number)?;
        let (host, subsystem) = (Nqn::new(words.next()?)?, Nqn::new(words.next()?)?);
        // The digest of version 1 is compared with all of the identity.
        let rest = words.count();
        (rest == usize::from(version == Version::V1)).then_some(Self { version, suite, host, subsystem })
    }
}

/// HkdfLabel (RFC 8446 §7.1 "Key Schedule"), or what old libnvme has instead.
fn info(derivation: Derivation, len: usize, label: &str, context: &[u8]) -> Result<Vec<u8>, PskError> {
    let too_long = |_| PskError::Names(context.len());
    // At most as long as a hash.
    let len = u16::try_from(len).unwrap_or(u16::MAX);
    let told = u8::try_from(context.len()).map_err(too_long)?;
    let mut info = Vec::with_capacity(4 + 2 * LABEL_BYTES_MAX);
    match derivation {
        Derivation::Standard => {
            info.extend_from_slice(&len.to_be_bytes());
            info.push(u8::try_from(label.len()).map_err(too_long)?);
            info.extend_from_slice(label.as_bytes());
            info.push(told);
        }
        Derivation::Compat => {
            info.extend_from_slice(&len.to_le_bytes());
            info.extend_from_slice(label.as_bytes());
        }
    }
    info.extend_from_slice(context);
    Ok(info)
}

/// HKDF-Extract without a salt, and HKDF-Expand to one hash's length (RFC 5869 §2.2, §2.3).
fn derive(suite: Suite, key: &[u8], info: &[u8]) -> Zeroizing<Vec<u8>> {
    // No salt is as many zeroes as the hash has; HMAC pads a key with zeroes.
    let extracted = mac(suite.hash(), &[], &[key]);
    mac(suite.hash(), &extracted, &[info, &[1]])
}

/// Key and IV of records that are made with a traffic secret of TLS 1.3 (RFC 8446 §7.3 "Traffic Key Calculation").
pub fn traffic_key(suite: Suite, secret: &[u8]) -> (Zeroizing<Vec<u8>>, Zeroizing<Vec<u8>>) {
    let expand = |label, len: usize| {
        let info = info(Derivation::Standard, len, label, &[]).unwrap_or_default();
        // Both are shorter than a hash: one round of HKDF-Expand.
        let mut bytes = mac(suite.hash(), secret, &[&info, &[1]]);
        bytes.truncate(len);
        bytes
    };
    (expand("tls13 key", suite.key_bytes()), expand("tls13 iv", 12))
}

#[cfg(test)]
#[path = "psk_tests.rs"]
mod tests;
