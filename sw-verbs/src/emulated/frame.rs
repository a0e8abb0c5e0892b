//! What emulated NICs say to each other: a hello of fixed size at the start, then frames of a head and at most [`CHUNK_BYTES`] of payload.
//!
//! A format of ours between two ends of the same build; it is no wire format of RDMA, and no promise for the next version.

/// Bytes of payload in one frame at most: what stands in for the path MTU.
pub(super) const CHUNK_BYTES: u32 = 64 << 10;
/// Bytes of a head.
pub(super) const HEAD_BYTES: usize = 48;
/// Bytes of a hello and of its answer.
pub(super) const HELLO_BYTES: usize = 80;
/// The first bytes of a hello: a name and the version of the format.
const MAGIC: [u8; 8] = *b"SWRDMA\x00\x01";

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Send = 1,
    SendInvalidate = 2,
    Write = 3,
    ReadRequest = 4,
    ReadResponse = 5,
    Ack = 6,
    Nak = 7,
    Disconnect = 8,
}

impl Kind {
    fn of(raw: u8) -> Option<Self> {
        Some(match raw {
            1 => Self::Send,
            2 => Self::SendInvalidate,
            3 => Self::Write,
            4 => Self::ReadRequest,
            5 => Self::ReadResponse,
            6 => Self::Ack,
            7 => Self::Nak,
            8 => Self::Disconnect,
            _ => return None,
        })
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    /// The message that it is of, or that it answers.
    pub(super) psn: u64,
    /// The peer's memory, for writes and reads.
    pub(super) addr: u64,
    /// Its rkey, or the one to invalidate; the status of a NAK.
    pub(super) key: u32,
    /// Bytes of the message.
    pub(super) total: u32,
    /// Where the payload lies in the message.
    pub(super) at: u32,
    /// Bytes of payload behind the head.
    pub(super) len: u32,
}

impl Frame {
    pub(super) fn control(kind: Kind, psn: u64, key: u32) -> Self {
        Self { kind, psn, addr: 0, key, total: 0, at: 0, len: 0 }
    }

    /// Whether the message ends with it.
    pub(super) fn is_last(&self) -> bool {
        self.at + self.len == self.total
    }

    pub(super) fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[0] = self.kind as u8;
        out[8..16].copy_from_slice(&self.psn.to_le_bytes());
        out[16..24].copy_from_slice(&self.addr.to_le_bytes());
        for (at, word) in [(24, self.key), (28, self.total), (32, self.at), (36, self.len)] {
            out[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// `None`: no frame that there is, or one whose payload is not in its message.
    pub(super) fn decode(raw: &[u8; HEAD_BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let frame = Self {
            kind: Kind::of(raw[0])?,
            psn: long(8),
            addr: long(16),
            key: word(24),
            total: word(28),
            at: word(32),
            len: word(36),
        };
        let carries = matches!(frame.kind, Kind::Send | Kind::SendInvalidate | Kind::Write | Kind::ReadResponse);
        let fits = frame.at.checked_add(frame.len).is_some_and(|end| end <= frame.total);
        // An empty payload is that of an empty message only, or a message might never end.
        let moves = frame.len > 0 || frame.total == 0;
        let holds = if carries { fits && moves && frame.len <= CHUNK_BYTES } else { frame.len == 0 };
        holds.then_some(frame)
    }
}

/// What a hello says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Word {
    Request = 1,
    Accept = 2,
    Reject = 3,
}

/// The start of a connection, both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) word: Word,
    /// Milliseconds that the other end may take to post a receive.
    pub(super) rnr_ms: u32,
    pub(super) private: sw_engine::seam::verbs::PrivateData,
}

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        let private = self.private.as_bytes();
        out[..8].copy_from_slice(&MAGIC);
        out[8] = self.word as u8;
        out[9] = u8::try_from(private.len()).unwrap_or(0);
        out[12..16].copy_from_slice(&self.rnr_ms.to_le_bytes());
        out[16..16 + private.len()].copy_from_slice(private);
        out
    }

    /// `None`: no hello of this version.
    pub(super) fn decode(raw: &[u8; HELLO_BYTES]) -> Option<Self> {
        let word = match raw[8] {
            1 => Word::Request,
            2 => Word::Accept,
            3 => Word::Reject,
            _ => return None,
        };
        let private = raw.get(16..16 + usize::from(raw[9]))?;
        let private = sw_engine::seam::verbs::PrivateData::new(private)?;
        let rnr_ms = u32::from_le_bytes([raw[12], raw[13], raw[14], raw[15]]);
        (raw[..8] == MAGIC).then_some(Self { word, rnr_ms, private })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_what_is_none_is_refused() {
        let frame = Frame { kind: Kind::Write, psn: 7, addr: 1 << 40, key: 9, total: 100, at: 60, len: 40 };
        assert_eq!(Frame::decode(&frame.encode()), Some(frame));
        for wrong in [
            Frame { at: 61, ..frame },
            Frame { at: u32::MAX, ..frame },
            Frame { len: 0, ..frame },
            Frame { total: u32::MAX, at: 0, len: CHUNK_BYTES + 1, ..frame },
            Frame { kind: Kind::Ack, ..frame },
        ] {
            assert_eq!(Frame::decode(&wrong.encode()), None, "{wrong:?}");
        }
        let mut raw = frame.encode();
        raw[0] = 99;
        assert_eq!(Frame::decode(&raw), None);
    }

    #[test]
    fn a_hello_of_another_version_is_none() {
        let private = sw_engine::seam::verbs::PrivateData::new(&[3; 32]).unwrap();
        let hello = Hello { word: Word::Request, rnr_ms: 500, private };
        let mut raw = hello.encode();
        assert_eq!(Hello::decode(&raw), Some(hello));
        raw[9] = 57;
        assert_eq!(Hello::decode(&raw), None);
        raw[9] = 32;
        raw[7] = 2;
        assert_eq!(Hello::decode(&raw), None);
    }
}
