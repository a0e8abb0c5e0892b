//! Binlogs of Milvus: the values of one field of a segment, or its deletes.
//!
//! Source: milvus-io/milvus `internal/storage/event_header.go`, `event_data.go`, `docs/developer_guides/chap08_binlog.md`; storage version 1.
//!
//! ```text
//!   0x00fffabc │ descriptor event │ event: head, first and last time, payload │ event …
//!                head: time u64, type i8, length of the event i32, where the next one begins i32; a payload is a Parquet file of one column
//! ```

use std::collections::VecDeque;

use super::{Collector, Extent, FormatError, Scan, Wrong};

/// The column of a payload.
pub const BINLOG_COLUMN: &str = "val";

const MAGIC: u64 = 4;
const HEAD: u64 = 17;
/// The first and the last time of an event's rows.
const TIMES: u64 = 16;
/// Bytes of a descriptor, at most: numbers, and a few properties.
const DESCRIPTOR_MAX: u64 = 1 << 20;

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinlogEvent {
    /// Values of rows.
    Insert,
    /// Keys of rows that were deleted, and when.
    Delete,
}

/// A Parquet file inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// What it has.
    pub event: BinlogEvent,
    /// Where it is.
    pub extent: Extent,
}

/// Walks a binlog from event to event.
#[derive(Debug)]
pub struct BinlogScan {
    bytes: Collector,
    is_begun: bool,
    found: VecDeque<Payload>,
}

/// The head of an event.
struct Head {
    kind: u8,
    len: u64,
    next: u64,
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.get(8..)?.split_first()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let next = rest.first_chunk::<4>()?;
        let number = |bytes: &[u8; 4]| u64::try_from(i32::from_le_bytes(*bytes)).ok();
        Some(Self { kind: *kind, len: number(len)?, next: number(next)? })
    }
}

impl BinlogScan {
    /// Begins with a file of so many bytes.
    ///
    /// # Errors
    /// `Cut` if the file is too short.
    pub fn new(file_len: u64) -> Result<Self, FormatError> {
        let mut bytes = Collector::new(file_len);
        bytes.want(0, MAGIC + HEAD, "the start of a binlog")?;
        Ok(Self { bytes, is_begun: false, found: VecDeque::new() })
    }

    fn begin(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let fail = |wrong| FormatError { offset: 0, wrong };
        let (magic, head) = bytes.split_at_checked(4).unwrap_or_default();
        if magic == b"PAR1" {
            let name = "storage version 2".to_owned();
            return Err(fail(Wrong::Unsupported { what: "a segment of Milvus without binlogs", name }));
        }
        if magic != 0x00ff_fabc_u32.to_le_bytes() {
            return Err(fail(Wrong::Field { field: "the magic number of a binlog" }));
        }
        let head = Head::read(head).filter(|head| head.kind == 0 && head.len >= HEAD && head.next == MAGIC + head.len);
        let head = head.ok_or_else(|| fail(Wrong::Field { field: "the descriptor of a binlog" }))?;
        if head.len > DESCRIPTOR_MAX {
            let (len, max) = (head.len, DESCRIPTOR_MAX);
            return Err(fail(Wrong::TooLong { what: "the descriptor of a binlog", len, max }));
        }
        self.is_begun = true;
        self.event_at(head.next)
    }

    fn event_at(&mut self, at: u64) -> Result<(), FormatError> {
        if at == self.bytes.file_len {
            self.bytes.stop();
            return Ok(());
        }
        self.bytes.want(at, HEAD + TIMES, "an event of a binlog")
    }

    fn event(&mut self, offset: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let fail = |wrong| FormatError { offset, wrong };
        let unread = || fail(Wrong::Field { field: "the head of an event" });
        let head = Head::read(bytes).ok_or_else(unread)?;
        let end = offset + head.len;
        if end > self.bytes.file_len {
            let missing = end - self.bytes.file_len;
            return Err(fail(Wrong::Cut { what: "an event of a binlog", missing }));
        }
        if head.len < HEAD + TIMES || head.next != end {
            return Err(unread());
        }
        let event = match head.kind {
            1 => BinlogEvent::Insert,
            2 => BinlogEvent::Delete,
            other => {
                let name = format!("type {other}");
                return Err(fail(Wrong::Unsupported { what: "an event of a binlog", name }));
            }
        };
        let extent = Extent { offset: offset + HEAD + TIMES, len: head.len - HEAD - TIMES };
        self.found.push_back(Payload { event, extent });
        self.event_at(end)
    }
}

impl Scan for BinlogScan {
    type Found = Payload;

    fn need(&self) -> Option<Extent> {
        self.bytes.need()
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        match self.bytes.push(bytes)? {
            None => Ok(()),
            Some((_, bytes)) if !self.is_begun => self.begin(&bytes),
            Some((offset, bytes)) => self.event(offset, &bytes),
        }
    }

    fn next(&mut self) -> Option<Payload> {
        self.found.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::scan_slice;

    fn event(kind: u8, at: u64, payload: &[u8]) -> Vec<u8> {
        let len = i32::try_from(payload.len()).unwrap() + 17;
        let next = i32::try_from(at).unwrap() + len;
        [&7u64.to_le_bytes()[..], &[kind], &len.to_le_bytes(), &next.to_le_bytes(), payload].concat()
    }

    fn binlog(payloads: &[(u8, &[u8])]) -> Vec<u8> {
        let mut file = 0x00ff_fabc_u32.to_le_bytes().to_vec();
        file.extend(event(0, 4, &[0; 60]));
        for (kind, payload) in payloads {
            let at = file.len() as u64;
            file.extend(event(*kind, at, &[&[0; 16][..], payload].concat()));
        }
        file
    }

    fn walk(file: &[u8]) -> Result<Vec<Payload>, FormatError> {
        scan_slice(&mut BinlogScan::new(file.len() as u64)?, file)
    }

    #[test]
    fn payloads_are_found() {
        let found = walk(&binlog(&[(1, b"abc"), (2, b""), (1, b"de")])).unwrap();
        let (first, insert, delete) = (81 + 33, BinlogEvent::Insert, BinlogEvent::Delete);
        assert_eq!(
            found,
            [(insert, first, 3), (delete, first + 36, 0), (insert, first + 69, 2)]
                .map(|(event, offset, len)| Payload { event, extent: Extent { offset, len } })
        );
        assert_eq!(walk(&binlog(&[])).unwrap(), []);
    }

    #[test]
    fn a_binlog_that_lies_is_an_error() {
        let good = binlog(&[(1, b"abc"), (1, b"de")]);
        for len in 0..good.len() {
            let is_whole = len == 81 || len == 81 + 36;
            assert_eq!(walk(&good[..len]).is_ok(), is_whole, "{len}");
        }
        let with = |at: usize, number: i32| {
            let mut file = good.clone();
            file[at..at + 4].copy_from_slice(&number.to_le_bytes());
            walk(&file).unwrap_err().wrong
        };
        // Lengths and next places: of the descriptor, and of the first event.
        for at in [13, 17, 90, 94] {
            for number in [0, -1, 1, i32::MAX, i32::MIN, 32] {
                with(at, number);
            }
        }
        assert!(matches!(with(90, i32::MAX), Wrong::Cut { .. }));
        assert!(matches!(walk(&binlog(&[(7, b"")])).unwrap_err().wrong, Wrong::Unsupported { .. }));
        assert!(matches!(walk(&[b"PAR1".as_slice(), &[0; 40]].concat()).unwrap_err().wrong, Wrong::Unsupported { .. }));
        assert!(matches!(walk(&[0; 40]).unwrap_err().wrong, Wrong::Field { .. }));
    }
}
