//! The messages of DH-HMAC-CHAP, as bytes (section 8.3.5.5).
//!
//! All begin with type, identifier, two reserved bytes and the transaction. A message may stand in a longer buffer: what is behind it
//! means nothing.

use super::{HASH_BYTES_MAX, Hash, Offer, group::VALUE_BYTES_MAX};
use crate::wire::{le16, le32};

/// Bytes of the longest message: a reply with two hashes and a value.
pub const MESSAGE_BYTES_MAX: usize = HEAD_BYTES + 2 * HASH_BYTES_MAX + VALUE_BYTES_MAX;
/// Bytes of the head of a challenge, a reply and a success.
const HEAD_BYTES: usize = 16;
/// Bytes of a failure.
const FAILURE_BYTES: usize = 8;
/// Bytes of a negotiation before its protocols, and of one protocol.
const NEGOTIATE_BYTES: usize = 8;
const PROTOCOL_BYTES: usize = 64;
/// Identifiers of hashes, and of groups, that one protocol has room for.
const LIST_MAX: usize = 30;

/// AUTH_TYPE of messages that all protocols have, and of those of DH-HMAC-CHAP.
const COMMON: u8 = 0x00;
const DH_HMAC_CHAP: u8 = 0x01;
/// AuthID of DH-HMAC-CHAP in a negotiation.
const PROTOCOL: u8 = 0x01;

/// AUTH_TYPE and AUTH_ID of each message.
mod id {
    use super::{COMMON, DH_HMAC_CHAP};
    pub(super) const NEGOTIATE: (u8, u8) = (COMMON, 0x00);
    pub(super) const CHALLENGE: (u8, u8) = (DH_HMAC_CHAP, 0x01);
    pub(super) const REPLY: (u8, u8) = (DH_HMAC_CHAP, 0x02);
    pub(super) const SUCCESS1: (u8, u8) = (DH_HMAC_CHAP, 0x03);
    pub(super) const SUCCESS2: (u8, u8) = (DH_HMAC_CHAP, 0x04);
    pub(super) const FAILURE2: (u8, u8) = (COMMON, 0xF0);
    pub(super) const FAILURE1: (u8, u8) = (COMMON, 0xF1);
}

/// Why an exchange failed, as its messages say (Reason Code Explanation). Unknown numbers stay numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Explanation(pub u8);

impl Explanation {
    /// Authentication failed.
    pub const FAILED: Self = Self(1);
    /// Authentication protocol not usable.
    pub const PROTOCOL: Self = Self(2);
    /// Secure channel concatenation mismatch.
    pub const CONCATENATION: Self = Self(3);
    /// Hash function not usable.
    pub const HASH: Self = Self(4);
    /// DH group not usable.
    pub const GROUP: Self = Self(5);
    /// Incorrect payload.
    pub const PAYLOAD: Self = Self(6);
    /// Incorrect protocol message.
    pub const MESSAGE: Self = Self(7);
}

impl core::fmt::Display for Explanation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let text = match *self {
            Self::FAILED => "authentication failed",
            Self::PROTOCOL => "authentication protocol not usable",
            Self::CONCATENATION => "secure channel concatenation mismatch",
            Self::HASH => "hash function not usable",
            Self::GROUP => "dh group not usable",
            Self::PAYLOAD => "incorrect payload",
            Self::MESSAGE => "incorrect protocol message",
            Self(other) => return write!(f, "explanation {other:#04x}"),
        };
        f.write_str(text)
    }
}

/// Bytes that are no message, or not the one that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}")]
pub struct BadMessage {
    /// The rule that is broken.
    pub rule: &'static str,
    /// What the peer is told.
    pub explanation: Explanation,
}

/// The fields do not fit.
pub(super) const fn payload(rule: &'static str) -> BadMessage {
    BadMessage { rule, explanation: Explanation::PAYLOAD }
}

/// Another message is due.
pub(super) const fn unexpected(rule: &'static str) -> BadMessage {
    BadMessage { rule, explanation: Explanation::MESSAGE }
}

/// AUTH_Negotiate, of which the first protocol that is DH-HMAC-CHAP. Identifiers are as they came: unknown ones are skipped by whoever
/// chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiate<'a> {
    /// SC_C: 0 is no secure channel.
    pub concatenation: u8,
    /// HashIDs.
    pub hashes: &'a [u8],
    /// DHgIDs.
    pub groups: &'a [u8],
}

/// DH-HMAC-CHAP_Challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge<'a> {
    /// HashID.
    pub hash: u8,
    /// DHgID.
    pub group: u8,
    /// S1.
    pub sequence: u32,
    /// C1, as long as HL says.
    pub challenge: &'a [u8],
    /// The value of the controller.
    pub value: &'a [u8],
}

/// DH-HMAC-CHAP_Reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// R1, as long as HL says.
    pub response: &'a [u8],
    /// C2, if the controller shall show who it is (CVALID).
    pub challenge: Option<&'a [u8]>,
    /// S2.
    pub sequence: u32,
    /// The value of the host.
    pub value: &'a [u8],
}

/// DH-HMAC-CHAP_Success1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Success1<'a> {
    /// HL.
    pub hash_bytes: u8,
    /// R2, if there is one (RVALID).
    pub response: Option<&'a [u8]>,
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// AUTH_Negotiate.
    Negotiate(Negotiate<'a>),
    /// DH-HMAC-CHAP_Challenge.
    Challenge(Challenge<'a>),
    /// DH-HMAC-CHAP_Reply.
    Reply(Reply<'a>),
    /// DH-HMAC-CHAP_Success1.
    Success1(Success1<'a>),
    /// DH-HMAC-CHAP_Success2.
    Success2,
    /// AUTH_Failure1, of the controller.
    Failure1(Explanation),
    /// AUTH_Failure2, of the host.
    Failure2(Explanation),
}

/// A message with its transaction (T_ID).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// T_ID.
    pub transaction: u16,
    /// What it says.
    pub message: Message<'a>,
}

impl<'a> Envelope<'a> {
    /// From bytes.
    ///
    /// # Errors
    /// A message that is not known, or is shorter than its fields say.
    pub fn decode(raw: &'a [u8]) -> Result<Self, BadMessage> {
        let need = |bytes| if raw.len() < bytes { Err(payload("a message is shorter than its head")) } else { Ok(()) };
        need(FAILURE_BYTES)?;
        let byte = |at: usize| raw.get(at).copied().unwrap_or(0);
        let message = match (byte(0), byte(1)) {
            id::NEGOTIATE => Message::Negotiate(Negotiate::decode(raw)?),
            id::FAILURE1 => Message::Failure1(Explanation(byte(7))),
            id::FAILURE2 => Message::Failure2(Explanation(byte(7))),
            of @ (id::CHALLENGE | id::REPLY | id::SUCCESS1 | id::SUCCESS2) => {
                need(HEAD_BYTES)?;
                match of {
                    id::CHALLENGE => Message::Challenge(Challenge::decode(raw)?),
                    id::REPLY => Message::Reply(Reply::decode(raw)?),
                    id::SUCCESS1 => Message::Success1(Success1::decode(raw)?),
                    _ => Message::Success2,
                }
            }
            _ => return Err(unexpected("a message of a type or identifier that is not known")),
        };
        Ok(Self { transaction: le16(raw, 4), message })
    }

    /// As bytes, [`MESSAGE_BYTES_MAX`] at most.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MESSAGE_BYTES_MAX);
        let mut begin = |(kind, id): (u8, u8), bytes: usize| {
            out.extend_from_slice(&[kind, id, 0, 0]);
            out.extend_from_slice(&self.transaction.to_le_bytes());
            out.resize(bytes, 0);
        };
        match self.message {
            Message::Negotiate(negotiate) => {
                begin(id::NEGOTIATE, NEGOTIATE_BYTES + PROTOCOL_BYTES);
                negotiate.encode(&mut out);
            }
            Message::Challenge(challenge) => {
                begin(id::CHALLENGE, HEAD_BYTES);
                challenge.encode(&mut out);
            }
            Message::Reply(reply) => {
                begin(id::REPLY, HEAD_BYTES);
                reply.encode(&mut out);
            }
            Message::Success1(success) => {
                begin(id::SUCCESS1, HEAD_BYTES);
                put(&mut out, 6, &[success.hash_bytes]);
                put(&mut out, 8, &[u8::from(success.response.is_some())]);
                out.extend_from_slice(success.response.unwrap_or_default());
            }
            Message::Success2 => begin(id::SUCCESS2, HEAD_BYTES),
            // The reason code is always that authentication failed; the explanation says more.
            Message::Failure1(Explanation(why)) => {
                begin(id::FAILURE1, FAILURE_BYTES);
                put(&mut out, 6, &[1, why]);
            }
            Message::Failure2(Explanation(why)) => {
                begin(id::FAILURE2, FAILURE_BYTES);
                put(&mut out, 6, &[1, why]);
            }
        }
        out
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
}

/// A length that the limits of this module keep below 65,536.
fn low16(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes()
}

/// The same below 256.
fn low8(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

/// `len` bytes at `at`.
fn part<'a>(raw: &'a [u8], at: usize, len: usize, rule: &'static str) -> Result<&'a [u8], BadMessage> {
    raw.get(at..at + len).ok_or(payload(rule))
}

/// The length of a value: DHVLEN.
fn value_bytes(raw: &[u8]) -> Result<usize, BadMessage> {
    let len = usize::from(le16(raw, 10));
    if len > VALUE_BYTES_MAX {
        return Err(payload("a value is longer than that of any group (DHVLEN)"));
    }
    Ok(len)
}

/// The length of a hash: HL.
fn hash_bytes(raw: &[u8]) -> Result<usize, BadMessage> {
    let len = usize::from(raw.get(6).copied().unwrap_or(0));
    if !Hash::ALL.iter().any(|hash| hash.len_bytes() == len) {
        return Err(payload("a hash has another length than that of any function (HL)"));
    }
    Ok(len)
}

impl<'a> Negotiate<'a> {
    fn decode(raw: &'a [u8]) -> Result<Self, BadMessage> {
        let byte = |at: usize| raw.get(at).copied().unwrap_or(0);
        let protocols = usize::from(byte(7));
        if raw.len() < NEGOTIATE_BYTES + protocols * PROTOCOL_BYTES {
            return Err(payload("a negotiation is shorter than its protocols (NAPD)"));
        }
        let places = (0..protocols).map(|n| NEGOTIATE_BYTES + n * PROTOCOL_BYTES);
        let Some(at) = places.into_iter().find(|at| byte(*at) == PROTOCOL) else {
            return Err(BadMessage { rule: "no protocol is DH-HMAC-CHAP", explanation: Explanation::PROTOCOL });
        };
        let (hashes, groups) = (usize::from(byte(at + 2)), usize::from(byte(at + 3)));
        if hashes > LIST_MAX || groups > LIST_MAX {
            return Err(payload("more hashes or groups than a protocol has room for (HALEN, DHLEN)"));
        }
        let rule = "a negotiation is shorter than its lists";
        Ok(Self {
            concatenation: byte(6),
            hashes: part(raw, at + 4, hashes, rule)?,
            groups: part(raw, at + 4 + LIST_MAX, groups, rule)?,
        })
    }

    fn encode(&self, out: &mut [u8]) {
        let (hashes, groups) = (self.hashes.len().min(LIST_MAX), self.groups.len().min(LIST_MAX));
        put(out, 6, &[self.concatenation, 1]);
        put(out, NEGOTIATE_BYTES, &[PROTOCOL, 0, low8(hashes), low8(groups)]);
        put(out, NEGOTIATE_BYTES + 4, self.hashes.get(..hashes).unwrap_or_default());
        put(out, NEGOTIATE_BYTES + 4 + LIST_MAX, self.groups.get(..groups).unwrap_or_default());
    }
}

impl<'a> Challenge<'a> {
    fn decode(raw: &'a [u8]) -> Result<Self, BadMessage> {
        let byte = |at: usize| raw.get(at).copied().unwrap_or(0);
        let (hash, value) = (hash_bytes(raw)?, value_bytes(raw)?);
        Ok(Self {
            hash: byte(8),
            group: byte(9),
            sequence: le32(raw, 12),
            challenge: part(raw, HEAD_BYTES, hash, "a challenge is shorter than its hash")?,
            value: part(raw, HEAD_BYTES + hash, value, "a challenge is shorter than its value")?,
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, 6, &[low8(self.challenge.len()), 0, self.hash, self.group]);
        put(out, 10, &low16(self.value.len()));
        put(out, 12, &self.sequence.to_le_bytes());
        out.extend_from_slice(self.challenge);
        out.extend_from_slice(self.value);
    }
}

impl<'a> Reply<'a> {
    fn decode(raw: &'a [u8]) -> Result<Self, BadMessage> {
        let (hash, value) = (hash_bytes(raw)?, value_bytes(raw)?);
        // The place of C2 is there without one, too.
        let challenge = part(raw, HEAD_BYTES + hash, hash, "a reply is shorter than its hashes")?;
        Ok(Self {
            response: part(raw, HEAD_BYTES, hash, "a reply is shorter than its hashes")?,
            challenge: (raw.get(8) == Some(&1)).then_some(challenge),
            sequence: le32(raw, 12),
            value: part(raw, HEAD_BYTES + 2 * hash, value, "a reply is shorter than its value")?,
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, 6, &[low8(self.response.len()), 0, u8::from(self.challenge.is_some())]);
        put(out, 10, &low16(self.value.len()));
        put(out, 12, &self.sequence.to_le_bytes());
        out.extend_from_slice(self.response);
        let empty = [0; HASH_BYTES_MAX];
        out.extend_from_slice(self.challenge.unwrap_or(empty.get(..self.response.len()).unwrap_or_default()));
        out.extend_from_slice(self.value);
    }
}

impl<'a> Success1<'a> {
    fn decode(raw: &'a [u8]) -> Result<Self, BadMessage> {
        let hash = hash_bytes(raw)?;
        let response = match raw.get(8) {
            Some(1) => Some(part(raw, HEAD_BYTES, hash, "a success is shorter than its response")?),
            _ => None,
        };
        Ok(Self { hash_bytes: low8(hash), response })
    }
}

impl Offer {
    /// The identifiers, for a negotiation.
    pub(super) fn ids(&self) -> (Vec<u8>, Vec<u8>) {
        (self.hashes.iter().map(|hash| hash.id()).collect(), self.groups.iter().map(|group| group.id()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(message: Message<'_>) -> Envelope<'_> {
        Envelope { transaction: 0x1234, message }
    }

    #[test]
    fn messages_are_as_the_specification_lays_them_out() {
        let raw =
            envelope(Message::Negotiate(Negotiate { concatenation: 0, hashes: &[1, 2], groups: &[0, 1, 5] })).encode();
        assert_eq!((raw.len(), &raw[..14]), (72, &[0, 0, 0, 0, 0x34, 0x12, 0, 1, 1, 0, 2, 3, 1, 2][..]));
        assert_eq!((&raw[14..42], &raw[42..46], raw[46]), (&[0; 28][..], &[0, 1, 5, 0][..], 0));
        let (c1, value) = ([0xC1; 48], [0xDA; 256]);
        let challenge = Challenge { hash: 2, group: 1, sequence: 0x0403_0201, challenge: &c1, value: &value };
        let raw = envelope(Message::Challenge(challenge)).encode();
        assert_eq!(raw[..16], [1, 1, 0, 0, 0x34, 0x12, 48, 0, 2, 1, 0, 1, 1, 2, 3, 4]);
        assert!(raw[16..64] == c1 && raw[64..] == value);
        let reply = Reply { response: &[0xAA; 32], challenge: Some(&[0xC2; 32]), sequence: 9, value: &value };
        let raw = envelope(Message::Reply(reply)).encode();
        assert_eq!(raw[..16], [1, 2, 0, 0, 0x34, 0x12, 32, 0, 1, 0, 0, 1, 9, 0, 0, 0]);
        assert!(raw[16..48] == [0xAA; 32] && raw[48..80] == [0xC2; 32] && raw[80..] == value);
        let quiet = envelope(Message::Reply(Reply { challenge: None, value: &[], sequence: 0, ..reply })).encode();
        assert_eq!((quiet.len(), quiet[8], &quiet[48..]), (80, 0, &[0; 32][..]));
        let raw = envelope(Message::Success1(Success1 { hash_bytes: 32, response: Some(&[7; 32]) })).encode();
        assert_eq!((raw.len(), &raw[..9]), (48, &[1, 3, 0, 0, 0x34, 0x12, 32, 0, 1][..]));
        assert_eq!(envelope(Message::Success2).encode(), [1, 4, 0, 0, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let failures = [Message::Failure1(Explanation::FAILED), Message::Failure2(Explanation::GROUP)];
        let raw = failures.map(|failure| envelope(failure).encode());
        assert_eq!(raw, [[0, 0xF1, 0, 0, 0x34, 0x12, 1, 1], [0, 0xF0, 0, 0, 0x34, 0x12, 1, 5]]);
    }

    #[test]
    fn what_is_encoded_is_decoded_also_in_a_longer_buffer_and_a_shorter_one_is_refused() {
        let (hash, value) = ([3; 64], [4; 1024]);
        let messages = [
            Message::Negotiate(Negotiate { concatenation: 2, hashes: &[3, 9], groups: &[0; 30] }),
            Message::Challenge(Challenge { hash: 3, group: 5, sequence: 1, challenge: &hash, value: &value }),
            Message::Reply(Reply { response: &hash, challenge: Some(&hash), sequence: 2, value: &value }),
            Message::Reply(Reply { response: &hash, challenge: None, sequence: 0, value: &[] }),
            Message::Success1(Success1 { hash_bytes: 64, response: Some(&hash) }),
            Message::Success1(Success1 { hash_bytes: 48, response: None }),
            Message::Success2,
            Message::Failure1(Explanation(0x55)),
            Message::Failure2(Explanation::MESSAGE),
        ];
        for message in messages {
            let mut raw = envelope(message).encode();
            assert!(raw.len() <= MESSAGE_BYTES_MAX);
            for len in 0..raw.len() {
                assert!(Envelope::decode(&raw[..len]).is_err(), "{len} bytes of {message:?}");
            }
            raw.extend_from_slice(&[0xFF; 100]);
            assert_eq!(Envelope::decode(&raw), Ok(envelope(message)));
        }
    }

    #[test]
    fn fields_that_no_message_has_are_refused_with_their_rule() {
        let hash = [3; 32];
        let challenge = Challenge { hash: 1, group: 0, sequence: 1, challenge: &hash, value: &[] };
        let good = envelope(Message::Challenge(challenge)).encode();
        let offer = envelope(Message::Negotiate(Negotiate { concatenation: 0, hashes: &[1], groups: &[0] })).encode();
        let cases: [(&[u8], usize, u8, Explanation); 8] = [
            (&good, 0, 2, Explanation::MESSAGE),
            (&good, 1, 5, Explanation::MESSAGE),
            (&good, 6, 31, Explanation::PAYLOAD),
            (&good, 6, 48, Explanation::PAYLOAD),
            (&good, 11, 0xFF, Explanation::PAYLOAD),
            (&offer, 7, 0, Explanation::PROTOCOL),
            (&offer, 7, 2, Explanation::PAYLOAD),
            (&offer, 10, 31, Explanation::PAYLOAD),
        ];
        for (raw, at, byte, explanation) in cases {
            let mut wrong = raw.to_vec();
            wrong[at] = byte;
            assert_eq!(Envelope::decode(&wrong).map_err(|bad| bad.explanation), Err(explanation), "{byte} at {at}");
        }
        // A value longer than any, with all of its bytes there.
        let mut long = good.clone();
        long.resize(4096, 1);
        long[10..12].copy_from_slice(&1025u16.to_le_bytes());
        assert!(Envelope::decode(&long).is_err());
        long[10..12].copy_from_slice(&1024u16.to_le_bytes());
        assert!(Envelope::decode(&long).is_ok());
    }
}
