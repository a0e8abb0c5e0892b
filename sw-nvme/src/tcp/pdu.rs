//! Protocol data units of NVMe/TCP.
//!
//! ```text
//!    0      1      2      3     4            8            HLEN       +4          PDO           PLEN-4    PLEN
//!   ┌──────┬──────┬──────┬─────┬────────────┬─────────────┬─────────┬───────────┬─────────────┬─────────┐
//!   │ type │ FLAGS│ HLEN │ PDO │ PLEN       │ the rest of │ HDGST   │ padding   │ data        │ DDGST   │
//!   │      │      │      │     │            │ the header  │ (maybe) │ (maybe)   │ (maybe)     │ (maybe) │
//!   └──────┴──────┴──────┴─────┴────────────┴─────────────┴─────────┴───────────┴─────────────┴─────────┘
//! ```
//!
//! NVM Express TCP Transport Specification 1.x, "PDU Structure" and "PDU Definitions". Everything that a later step relies on is
//! checked here: types, fixed header lengths, where data begins and how much there is, digests.

use core::fmt;

use sw_engine::checksum::{Algorithm, Running};

use crate::wire::{CQE_BYTES, Command, Completion, SQE_BYTES, byte, bytes, le16, le32};

/// Bytes of the common header.
pub const COMMON_BYTES: usize = 8;
/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 4;
/// Bytes of ICReq and ICResp.
pub const INITIALIZE_BYTES: usize = 128;
/// Bytes of header and padding at most. Alignments are multiples of four up to 128, not powers of two: a command with a digest has 76
/// bytes, which an alignment of 72 makes 144.
pub const HEAD_BYTES_MAX: usize = 144;
/// Bytes of data in a PDU of termination at most.
pub const TERM_DATA_BYTES_MAX: u32 = 128;
/// In-capsule data of admin and fabrics commands, in bytes, whatever the controller says.
pub const ADMIN_CAPSULE_DATA_BYTES: u32 = 8192;
/// MAXH2CDATA at least.
pub const MAXH2C_MIN: u32 = 4096;

/// PDU types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Initialize Connection Request.
    IcReq = 0x00,
    /// Initialize Connection Response.
    IcResp = 0x01,
    /// Host to Controller Terminate Connection Request.
    H2cTerm = 0x02,
    /// Controller to Host Terminate Connection Request.
    C2hTerm = 0x03,
    /// Command Capsule.
    CapsuleCmd = 0x04,
    /// Response Capsule.
    CapsuleResp = 0x05,
    /// Host to Controller Data Transfer.
    H2cData = 0x06,
    /// Controller to Host Data Transfer.
    C2hData = 0x07,
    /// Ready to Transfer.
    R2t = 0x09,
}

impl Kind {
    /// The type of a byte; `None` for one that is not defined.
    pub const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0x00 => Self::IcReq,
            0x01 => Self::IcResp,
            0x02 => Self::H2cTerm,
            0x03 => Self::C2hTerm,
            0x04 => Self::CapsuleCmd,
            0x05 => Self::CapsuleResp,
            0x06 => Self::H2cData,
            0x07 => Self::C2hData,
            0x09 => Self::R2t,
            _ => return None,
        })
    }

    /// HLEN: bytes of the header, digest not counted.
    pub const fn header_bytes(self) -> usize {
        match self {
            Self::IcReq | Self::IcResp => INITIALIZE_BYTES,
            Self::CapsuleCmd => COMMON_BYTES + SQE_BYTES,
            Self::H2cTerm | Self::C2hTerm | Self::CapsuleResp | Self::H2cData | Self::C2hData | Self::R2t => 24,
        }
    }

    /// Whether its header has a digest where digests were agreed on.
    pub const fn has_header_digest(self) -> bool {
        !matches!(self, Self::IcReq | Self::IcResp | Self::H2cTerm | Self::C2hTerm)
    }

    /// Whether data may follow its header, beginning at PDO.
    const fn has_data(self) -> bool {
        matches!(self, Self::CapsuleCmd | Self::H2cData | Self::C2hData)
    }
}

/// FLAGS.
pub mod flags {
    /// HDGSTF: a header digest follows the header.
    pub const HEADER_DIGEST: u8 = 1 << 0;
    /// DDGSTF: a data digest follows the data.
    pub const DATA_DIGEST: u8 = 1 << 1;
    /// LAST_PDU: the last data of its transfer.
    pub const LAST: u8 = 1 << 2;
    /// SUCCESS: the command succeeded, and no CapsuleResp follows.
    pub const SUCCESS: u8 = 1 << 3;
}

/// Which digests both ends agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// Of headers.
    pub header: bool,
    /// Of data.
    pub data: bool,
}

impl Digests {
    /// The bits of DGST.
    pub const fn bits(self) -> u8 {
        self.header as u8 | (self.data as u8) << 1
    }

    /// From DGST.
    pub const fn from_bits(bits: u8) -> Self {
        Self { header: bits & 1 != 0, data: bits & 2 != 0 }
    }
}

/// FES: why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FatalStatus {
    /// A field of a header; the offset of the field says which.
    InvalidField = 1,
    /// A PDU that may not come now.
    Sequence = 2,
    /// The header digest is wrong.
    HeaderDigest = 3,
    /// Data outside the transfer.
    OutOfRange = 4,
    /// More R2T than were allowed.
    R2tLimit = 5,
    /// A parameter that is not supported.
    Unsupported = 6,
}

impl FatalStatus {
    /// What an FES of the other end means.
    pub const fn name(code: u16) -> &'static str {
        match code {
            1 => "invalid field in a header",
            2 => "a unit out of sequence",
            3 => "wrong header digest",
            4 => "data out of range",
            5 => "too many R2T, or data beyond a limit",
            6 => "unsupported parameter",
            _ => "a reason that is not defined",
        }
    }
}

/// The other end broke the protocol: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breach {
    /// FES.
    pub status: FatalStatus,
    /// FEI: what the status is about, an offset in the header for [`FatalStatus::InvalidField`].
    pub information: u32,
    /// The rule that was broken.
    pub rule: &'static str,
}

impl Breach {
    /// A field of a header, at its offset.
    pub(crate) const fn field(at: u32, rule: &'static str) -> Self {
        Self { status: FatalStatus::InvalidField, information: at, rule }
    }

    /// Something that may not come now, or not there.
    pub(crate) const fn of(status: FatalStatus, rule: &'static str) -> Self {
        Self { status, information: 0, rule }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rule)
    }
}

/// The common header, checked: see [`Header::decode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type.
    pub kind: Kind,
    /// FLAGS.
    pub flags: u8,
    /// Where data begins, counted from the start; bytes of the whole if there is none.
    pub data_at: u32,
    /// Bytes of data, digest not counted.
    pub data_bytes: u32,
    /// Whether a data digest follows.
    pub data_digest: bool,
}

impl Header {
    /// From the first eight bytes. `digests`: what was agreed on. `plen_max`: bytes of the whole at most.
    ///
    /// # Errors
    /// [`Breach`]: a type that is not defined, a header length other than that of the type, data that begins inside the header or
    /// behind the end, a whole that is shorter than its parts or longer than `plen_max`, digests that were not agreed on or lack.
    #[expect(clippy::cast_possible_truncation, reason = "bytes of digests and heads are constants far below 32 bits")]
    pub fn decode(raw: &[u8; COMMON_BYTES], digests: Digests, plen_max: u32) -> Result<Self, Breach> {
        let [kind, flags, hlen, pdo, ..] = *raw;
        let plen = le32(raw, 4);
        let kind = Kind::of(kind).ok_or(Breach::field(0, "the type of the unit is not defined"))?;
        if usize::from(hlen) != kind.header_bytes() {
            return Err(Breach::field(2, "the header has another length than its type says"));
        }
        if plen > plen_max {
            return Err(Breach::field(4, "the unit is longer than was agreed on"));
        }
        let header_digest = digests.header && kind.has_header_digest();
        if (flags & flags::HEADER_DIGEST != 0) != header_digest {
            return Err(Breach::field(1, "the flag of the header digest is not as was agreed on"));
        }
        let head = u32::from(hlen) + if header_digest { DIGEST_BYTES as u32 } else { 0 };
        if plen < head {
            return Err(Breach::field(4, "the unit is shorter than its header"));
        }
        if matches!(kind, Kind::H2cTerm | Kind::C2hTerm) {
            let data_bytes = plen - head;
            if data_bytes > TERM_DATA_BYTES_MAX {
                return Err(Breach::field(4, "a termination has more than 128 bytes of data"));
            }
            return Ok(Self { kind, flags, data_at: head, data_bytes, data_digest: false });
        }
        if plen == head {
            // Of a unit without data PDO means nothing, and there is nothing to make a digest of.
            if flags & flags::DATA_DIGEST != 0 {
                return Err(Breach::field(1, "a data digest without data"));
            }
            return Ok(Self { kind, flags, data_at: plen, data_bytes: 0, data_digest: false });
        }
        if !kind.has_data() {
            return Err(Breach::field(4, "the unit is longer than its header"));
        }
        if (flags & flags::DATA_DIGEST != 0) != digests.data {
            return Err(Breach::field(1, "the flag of the data digest is not as was agreed on"));
        }
        let tail = if digests.data { DIGEST_BYTES as u32 } else { 0 };
        let data_at = u32::from(pdo);
        if data_at < head || data_at > HEAD_BYTES_MAX as u32 {
            return Err(Breach::field(3, "data begins inside the header, or beyond every alignment"));
        }
        let data_bytes = plen.checked_sub(data_at + tail).filter(|bytes| *bytes > 0);
        let data_bytes = data_bytes.ok_or(Breach::field(3, "data begins behind the end of the unit"))?;
        Ok(Self { kind, flags, data_at, data_bytes, data_digest: digests.data })
    }

    /// Bytes of header, digest and padding: what comes before the data.
    pub fn head_bytes(&self) -> usize {
        self.data_at as usize
    }
}

/// Whether the digest behind a header of `header_bytes` is that of the header.
pub fn header_digest_fits(head: &[u8], header_bytes: usize) -> bool {
    let header = head.get(..header_bytes).unwrap_or_default();
    head.len() >= header_bytes + DIGEST_BYTES && le32(head, header_bytes) == crc32c(header)
}

/// CRC-32C as NVMe/TCP uses it (reflected, all ones in and out).
pub fn crc32c(bytes: &[u8]) -> u32 {
    (Algorithm::Crc32c.of(bytes) & 0xFFFF_FFFF) as u32
}

/// A digest as it is on the wire, of the bytes that a CRC-32C was made of.
pub fn digest(of: &Running) -> [u8; DIGEST_BYTES] {
    ((of.value() & 0xFFFF_FFFF) as u32).to_le_bytes()
}

/// A header with digest and padding, ready to send.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    len: u8,
}

impl Head {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", self.as_bytes())
    }
}

/// How the sender of data lays it out: what the receiver asked for in ICReq (HPDA) or ICResp (CPDA), and the digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Which digests there are.
    pub digests: Digests,
    /// Data begins at multiples of four times one more than this, 0 to 31.
    pub alignment: u8,
}

impl Layout {
    /// The head of a unit: common header, `rest` of the header, digest, padding. `data_bytes` follow, and a digest of them.
    #[expect(clippy::cast_possible_truncation, reason = "headers, digests and padding are 144 bytes at most")]
    #[inline]
    fn head(self, kind: Kind, flags: u8, rest: &[u8], data_bytes: u32) -> Head {
        let hlen = kind.header_bytes();
        let digest = self.digests.header && kind.has_header_digest();
        let (data_digest, mut flags) = (self.digests.data && data_bytes > 0, flags);
        flags |= if digest { flags::HEADER_DIGEST } else { 0 } | if data_digest { flags::DATA_DIGEST } else { 0 };
        let before_data = hlen + if digest { DIGEST_BYTES } else { 0 };
        let align = (usize::from(self.alignment.min(31)) + 1) * 4;
        let data_at = if data_bytes > 0 { before_data.next_multiple_of(align) } else { before_data };
        let tail = if data_digest { DIGEST_BYTES as u32 } else { 0 };
        let plen = data_at as u32 + data_bytes + tail;
        // At most 144.
        let pdo = if data_bytes > 0 { data_at as u8 } else { 0 };
        let mut head = Head { bytes: [0; HEAD_BYTES_MAX], len: data_at as u8 };
        head.bytes[..4].copy_from_slice(&[kind as u8, flags, hlen as u8, pdo]);
        head.bytes[4..8].copy_from_slice(&plen.to_le_bytes());
        if let Some(to) = head.bytes.get_mut(COMMON_BYTES..COMMON_BYTES + rest.len()) {
            to.copy_from_slice(rest);
        }
        if digest {
            let value = crc32c(&head.bytes[..hlen]);
            head.bytes[hlen..hlen + DIGEST_BYTES].copy_from_slice(&value.to_le_bytes());
        }
        head
    }

    /// Bytes of a unit of `kind` with `data_bytes`.
    pub fn unit_bytes(self, kind: Kind, data_bytes: u32) -> u64 {
        let tail = if self.digests.data && data_bytes > 0 { DIGEST_BYTES as u64 } else { 0 };
        u64::from(self.head(kind, 0, &[], data_bytes).len) + u64::from(data_bytes) + tail
    }

    /// A command, with as many bytes of data in its capsule.
    pub fn command(self, command: &Command, data_bytes: u32) -> Head {
        self.head(Kind::CapsuleCmd, 0, command.bytes(), data_bytes)
    }

    /// A completion.
    pub fn response(self, completion: &Completion) -> Head {
        self.head(Kind::CapsuleResp, 0, completion.bytes(), 0)
    }

    /// Data of the host's for an R2T.
    pub fn host_data(self, data: Data, tag: u16, flags: u8) -> Head {
        self.head(Kind::H2cData, flags, &data.encode(tag), data.bytes)
    }

    /// Data of the controller's.
    pub fn controller_data(self, data: Data, flags: u8) -> Head {
        self.head(Kind::C2hData, flags, &data.encode(0), data.bytes)
    }

    /// A wish for data.
    pub fn ready(self, wish: R2t) -> Head {
        let mut rest = Data { cid: wish.cid, at: wish.at, bytes: wish.bytes }.encode(wish.tag);
        rest[12..16].fill(0);
        self.head(Kind::R2t, 0, &rest, 0)
    }
}

/// A termination, without data. `kind` says which end sends it: [`Kind::H2cTerm`] or [`Kind::C2hTerm`].
pub fn termination(kind: Kind, breach: &Breach) -> Head {
    let mut rest = [0; 16];
    rest[..2].copy_from_slice(&(breach.status as u16).to_le_bytes());
    rest[2..6].copy_from_slice(&breach.information.to_le_bytes());
    Layout::default().head(kind, 0, &rest, 0)
}

/// FES and FEI of a termination.
pub fn terminated(header: &[u8]) -> (u16, u32) {
    (le16(header, 8), le32(header, 10))
}

/// What C2HData and H2CData say of their data: whose, where, how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// CCCID: the command.
    pub cid: u16,
    /// DATAO: the first byte, counted from the start of the command's data.
    pub at: u32,
    /// DATAL.
    pub bytes: u32,
}

impl Data {
    /// Bytes 8 to 24 of the header; `tag` is TTAG.
    fn encode(self, tag: u16) -> [u8; 16] {
        let mut rest = [0; 16];
        rest[..2].copy_from_slice(&self.cid.to_le_bytes());
        rest[2..4].copy_from_slice(&tag.to_le_bytes());
        rest[4..8].copy_from_slice(&self.at.to_le_bytes());
        rest[8..12].copy_from_slice(&self.bytes.to_le_bytes());
        rest
    }

    /// From a header of C2HData or H2CData, with TTAG.
    pub fn decode(header: &[u8]) -> (Self, u16) {
        (Self { cid: le16(header, 8), at: le32(header, 12), bytes: le32(header, 16) }, le16(header, 10))
    }
}

/// What R2T asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R2t {
    /// CCCID: the command.
    pub cid: u16,
    /// TTAG: comes back with the data.
    pub tag: u16,
    /// R2TO: the first byte.
    pub at: u32,
    /// R2TL: how many.
    pub bytes: u32,
}

impl R2t {
    /// From a header.
    pub fn decode(header: &[u8]) -> Self {
        let (Data { cid, at, bytes }, tag) = Data::decode(header);
        Self { cid, tag, at, bytes }
    }
}

/// The command of a capsule.
pub fn command(header: &[u8]) -> Command {
    Command::new(bytes::<SQE_BYTES>(header, COMMON_BYTES))
}

/// The completion of a response.
pub fn completion(header: &[u8]) -> Completion {
    Completion::new(bytes::<CQE_BYTES>(header, COMMON_BYTES))
}

/// ICReq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcReq {
    /// PFV: 0.
    pub format: u16,
    /// HPDA: how the host wants data of the controller's aligned.
    pub alignment: u8,
    /// Digests that the host wants.
    pub digests: Digests,
    /// MAXR2T: R2T of one command that may be outstanding, less one.
    pub r2t_max: u32,
}

impl IcReq {
    /// As bytes.
    pub fn encode(&self) -> Head {
        let mut rest = [0; INITIALIZE_BYTES - COMMON_BYTES];
        rest[..2].copy_from_slice(&self.format.to_le_bytes());
        rest[2] = self.alignment;
        rest[3] = self.digests.bits();
        rest[4..8].copy_from_slice(&self.r2t_max.to_le_bytes());
        Layout::default().head(Kind::IcReq, 0, &rest, 0)
    }

    /// From a header.
    pub fn decode(header: &[u8]) -> Self {
        Self {
            format: le16(header, 8),
            alignment: byte(header, 10),
            digests: Digests::from_bits(byte(header, 11)),
            r2t_max: le32(header, 12),
        }
    }
}

/// ICResp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcResp {
    /// PFV: 0.
    pub format: u16,
    /// CPDA: how the controller wants data of the host's aligned.
    pub alignment: u8,
    /// Digests that will be used.
    pub digests: Digests,
    /// MAXH2CDATA: bytes of data in one H2CData at most.
    pub h2c_bytes_max: u32,
}

impl IcResp {
    /// As bytes.
    pub fn encode(&self) -> Head {
        let mut rest = [0; INITIALIZE_BYTES - COMMON_BYTES];
        rest[..2].copy_from_slice(&self.format.to_le_bytes());
        rest[2] = self.alignment;
        rest[3] = self.digests.bits();
        rest[4..8].copy_from_slice(&self.h2c_bytes_max.to_le_bytes());
        Layout::default().head(Kind::IcResp, 0, &rest, 0)
    }

    /// From a header, for a host that sent `asked`.
    ///
    /// # Errors
    /// [`Breach`]: another format, an alignment past 31, digests that the host did not ask for, MAXH2CDATA below 4,096 or no
    /// multiple of four.
    pub fn decode(header: &[u8], asked: &IcReq) -> Result<Self, Breach> {
        let answer = Self {
            format: le16(header, 8),
            alignment: byte(header, 10),
            digests: Digests::from_bits(byte(header, 11)),
            h2c_bytes_max: le32(header, 12),
        };
        let Digests { header: of_headers, data: of_data } = answer.digests;
        if answer.format != 0 {
            return Err(Breach::field(8, "the controller answers in a format that is not known (PFV)"));
        }
        if answer.alignment > 31 {
            return Err(Breach::field(10, "the controller's alignment of data is past 31 (CPDA)"));
        }
        if (of_headers && !asked.digests.header) || (of_data && !asked.digests.data) {
            return Err(Breach::field(11, "the controller uses digests that nobody asked for"));
        }
        if answer.h2c_bytes_max < MAXH2C_MIN || !answer.h2c_bytes_max.is_multiple_of(4) {
            return Err(Breach::field(12, "MAXH2CDATA is below 4,096 or no multiple of four"));
        }
        Ok(answer)
    }
}

#[cfg(test)]
#[path = "pdu_tests.rs"]
mod tests;
