//! Records of TFRecord files.
//!
//! Source: tensorflow `core/lib/io/record_writer.h` and `core/lib/hash/crc32c.h`: each record is a length of 8 bytes, its masked
//! CRC-32C, the payload, and the payload's. There is no file header and no index: the file can only be walked.

use super::{Collector, Damaged, Extent, FormatError, Scan, Wrong};

/// Length and its checksum.
pub(super) const HEAD: u64 = 12;
/// The payload's checksum.
pub(super) const FOOT: u64 = 4;

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its payload in the file.
    pub payload: Extent,
}

impl Record {
    /// The record with its framing, as index side-cars count it.
    pub fn framed(&self) -> Extent {
        // Both stand in the file, so that neither leaves 64 bits.
        Extent { offset: self.payload.offset - HEAD, len: self.payload.len + HEAD + FOOT }
    }

    /// Where its head lies: its length, and the checksum of that.
    pub(crate) fn head(&self) -> Extent {
        Extent { offset: self.payload.offset - HEAD, len: HEAD }
    }

    /// Where the payload lies with the checksum behind it.
    pub(crate) fn body(&self) -> Extent {
        Extent { len: self.payload.len + FOOT, ..self.payload }
    }

    /// Holds the bytes of [`Record::head`] against what an index says.
    ///
    /// # Errors
    /// `Checksum` if they are no head, `Differs` if they are that of a record of another length.
    pub(crate) fn check_head(&self, head: &[u8]) -> Result<(), FormatError> {
        let fail = |wrong| FormatError { offset: self.head().offset, wrong };
        let Some((len, sum)) = head.split_first_chunk::<8>() else {
            return Err(fail(Wrong::Field { field: "a record's head" }));
        };
        let mut crc = Crc::new();
        crc.add(len);
        compare(self.head().offset, "a record's length", sum, crc)?;
        let here = u64::from_le_bytes(*len);
        if here == self.payload.len {
            return Ok(());
        }
        Err(fail(Wrong::Differs { what: "the length of a record", here, index: self.payload.len }))
    }

    /// Holds the bytes of [`Record::body`] against their checksum; returns those of the payload.
    ///
    /// # Errors
    /// `Checksum`.
    pub(crate) fn check_body<'a>(&self, body: &'a [u8]) -> Result<&'a [u8], FormatError> {
        let (payload, foot) = body
            .split_last_chunk::<4>()
            .ok_or(FormatError { offset: self.payload.offset, wrong: Wrong::Field { field: "a checksum" } })?;
        let mut crc = Crc::new();
        crc.add(payload);
        compare(self.payload.offset, "a record's payload", foot, crc)?;
        Ok(payload)
    }
}

/// Whether payloads are read and their checksums compared, or gone over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payloads {
    /// Only heads are read: 12 bytes a record.
    GoOver,
    /// Everything is read. A wrong checksum ends the walk.
    Check,
    /// Everything is read. A payload with a wrong checksum is told by [`Scan::damaged`], and the walk goes on behind it; a wrong
    /// checksum of a length ends it, since nothing else says where the next record begins.
    CheckAndGoOn,
}

/// Walks a TFRecord file.
#[derive(Debug)]
pub struct TfRecordScan {
    bytes: Collector,
    payloads: Payloads,
    /// The record whose payload is being read; `None` while a head is.
    record: Option<Checking>,
    found: Option<Record>,
    damaged: Option<Damaged>,
}

/// A payload that is read piece by piece, however long it is.
#[derive(Debug)]
struct Checking {
    record: Record,
    /// Of the payload, summed so far.
    done: u64,
    sum: Crc,
}

/// Bytes of a payload that are read at once.
const PIECE: u64 = 1 << 20;

/// A running CRC-32C.
#[derive(Debug)]
struct Crc(crc_fast::Digest);

impl Crc {
    fn new() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Rotated and shifted, so that a checksum over bytes that hold checksums is a good one.
    fn masked(&self) -> u32 {
        let sum = u32::try_from(self.0.finalize()).unwrap_or(u32::MAX);
        sum.rotate_right(15).wrapping_add(0xa282_ead8)
    }
}

impl TfRecordScan {
    /// Begins at the start of a file of so many bytes.
    ///
    /// # Errors
    /// `Cut` if it is shorter than one head. An empty file has no records.
    pub fn new(file_len: u64, payloads: Payloads) -> Result<Self, FormatError> {
        let mut scan = Self { bytes: Collector::new(file_len), payloads, record: None, found: None, damaged: None };
        scan.go_on(0)?;
        Ok(scan)
    }

    fn go_on(&mut self, offset: u64) -> Result<(), FormatError> {
        if offset == self.bytes.file_len {
            return Ok(());
        }
        self.bytes.want(offset, HEAD, "a record's head")
    }

    fn head(&mut self, offset: u64, head: &[u8]) -> Result<(), FormatError> {
        let fail = |wrong| FormatError { offset, wrong };
        let (Some((len, sum)), 12) = (head.split_first_chunk::<8>(), head.len()) else {
            return Err(fail(Wrong::Field { field: "a record's head" }));
        };
        let mut crc = Crc::new();
        crc.add(len);
        compare(offset, "a record's length", sum, crc).map_err(|error| match compression(offset, head) {
            Some(name) => fail(Wrong::Unsupported { what: "a TFRecord file that is compressed as a whole", name }),
            None => error,
        })?;
        let len = u64::from_le_bytes(*len);
        let record = Record { payload: Extent { offset: offset + HEAD, len } };
        let end = len.checked_add(HEAD + FOOT).and_then(|framed| offset.checked_add(framed));
        let Some(end) = end.filter(|end| *end <= self.bytes.file_len) else {
            let missing = len.saturating_add(FOOT).saturating_sub(self.bytes.file_len - offset - HEAD);
            return Err(fail(Wrong::Cut { what: "a record", missing }));
        };
        match self.payloads {
            Payloads::GoOver => {
                self.found = Some(record);
                self.go_on(end)
            }
            Payloads::Check | Payloads::CheckAndGoOn => self.check(Checking { record, done: 0, sum: Crc::new() }),
        }
    }

    /// Asks for the next piece of a payload, and for its checksum with the last one.
    fn check(&mut self, checking: Checking) -> Result<(), FormatError> {
        let payload = checking.record.payload;
        let left = payload.len - checking.done;
        let len = if left <= PIECE { left + FOOT } else { PIECE };
        self.bytes.want(payload.offset + checking.done, len, "a record's payload")?;
        self.record = Some(checking);
        Ok(())
    }

    fn payload(&mut self, mut checking: Checking, bytes: &[u8]) -> Result<(), FormatError> {
        let payload = checking.record.payload;
        let left = payload.len - checking.done;
        let split = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let (piece, foot) = bytes.split_at(split);
        checking.sum.add(piece);
        checking.done += piece.len() as u64;
        if foot.is_empty() {
            return self.check(checking);
        }
        match compare(payload.offset, "a record's payload", foot, checking.sum) {
            Ok(()) => self.found = Some(checking.record),
            Err(error) if self.payloads == Payloads::CheckAndGoOn => {
                self.damaged = Some(Damaged { extent: payload, error });
            }
            Err(error) => return Err(error),
        }
        self.go_on(payload.offset + payload.len + FOOT)
    }
}

impl Scan for TfRecordScan {
    type Found = Record;

    fn need(&self) -> Option<Extent> {
        self.bytes.need()
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let Some((offset, bytes)) = self.bytes.push(bytes)? else { return Ok(()) };
        match self.record.take() {
            None => self.head(offset, &bytes),
            Some(checking) => self.payload(checking, &bytes),
        }
    }

    fn next(&mut self) -> Option<Record> {
        self.found.take()
    }

    fn damaged(&mut self) -> Option<Damaged> {
        self.damaged.take()
    }
}

/// How a file is compressed that begins so, as tensorflow's `TFRecordOptions` names it. The file itself does not say.
fn compression(offset: u64, head: &[u8]) -> Option<String> {
    let name = match head {
        _ if offset > 0 => return None,
        [0x1f, 0x8b, 8, ..] => "GZIP",
        // RFC 1950: deflate, and a check that makes the pair a multiple of 31.
        [0x78, flags, ..] if (0x7800 + u16::from(*flags)) % 31 == 0 => "ZLIB",
        _ => return None,
    };
    Some(name.to_owned())
}

/// Compares a stored masked checksum with that of the bytes.
fn compare(offset: u64, what: &'static str, stored: &[u8], sum: Crc) -> Result<(), FormatError> {
    let fail = |wrong| FormatError { offset, wrong };
    let Some((stored, _)) = stored.split_first_chunk::<4>() else {
        return Err(fail(Wrong::Field { field: "a checksum" }));
    };
    let (stored, computed) = (u32::from_le_bytes(*stored), sum.masked());
    if stored == computed { Ok(()) } else { Err(fail(Wrong::Checksum { what, stored, computed })) }
}
