//! The records of a zip archive, from bytes. All numbers are little-endian.

use crate::{Method, Wrong};

/// Bytes of an end record without its comment.
pub const END: usize = 22;
/// Bytes of the record that says where the zip64 end record is; it stands right before the end record.
pub const LOCATOR: usize = 20;
/// Bytes of a zip64 end record without what later versions add.
pub const END64: usize = 56;
/// Bytes of a directory entry without name, extra fields and comment.
pub const ENTRY: usize = 46;
/// Bytes of a member's own header without name and extra fields.
pub const LOCAL: usize = 30;

/// Numbers of a record, by their place in it.
#[derive(Clone, Copy)]
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn u16(self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(*self.0.get(at..)?.first_chunk()?))
    }

    fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*self.0.get(at..)?.first_chunk()?))
    }

    fn u64(self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(*self.0.get(at..)?.first_chunk()?))
    }
}

/// Where the directory is, and how many members it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Its first byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Members.
    pub members: u64,
    /// Whether `members` is only the low half of the number.
    pub is_short: bool,
}

/// The end record in the last bytes of an archive, and where it begins in them: the last one whose comment ends with the archive.
pub fn find_end(tail: &[u8]) -> Option<usize> {
    let last = tail.len().checked_sub(END)?;
    (0..=last).rev().find(|at| {
        let comment = Numbers(tail).u16(at + 20).map(usize::from);
        tail[*at..].starts_with(b"PK\x05\x06") && comment.is_some_and(|len| at + END + len == tail.len())
    })
}

/// Reads an end record.
///
/// # Errors
/// `Record`; `Unsupported` for one of several volumes.
pub fn end(record: &[u8]) -> Result<Directory, Wrong> {
    let numbers = Numbers(record);
    let read = || {
        let directory = Directory {
            members: numbers.u16(10)?.into(),
            len: numbers.u32(12)?.into(),
            offset: numbers.u32(16)?.into(),
            is_short: true,
        };
        Some((numbers.u16(4)?, directory))
    };
    match read().ok_or(Wrong::Record { what: "the end record" })? {
        // With zip64 the number stands elsewhere.
        (0 | u16::MAX, directory) => Ok(directory),
        _ => Err(Wrong::Unsupported { what: "an archive of several volumes" }),
    }
}

/// Where the zip64 end record is, if the bytes before the end record say so.
pub fn locator(record: &[u8]) -> Option<u64> {
    record.starts_with(b"PK\x06\x07").then(|| Numbers(record).u64(8)).flatten()
}

/// Reads a zip64 end record.
///
/// # Errors
/// As [`end`].
pub fn end64(record: &[u8]) -> Result<Directory, Wrong> {
    let numbers = Numbers(record);
    let read = || {
        let directory =
            Directory { members: numbers.u64(32)?, len: numbers.u64(40)?, offset: numbers.u64(48)?, is_short: false };
        record.starts_with(b"PK\x06\x06").then_some((numbers.u32(16)?, directory))
    };
    match read().ok_or(Wrong::Record { what: "the zip64 end record" })? {
        (0, directory) => Ok(directory),
        _ => Err(Wrong::Unsupported { what: "an archive of several volumes" }),
    }
}

/// A member, as its own header describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Bytes of the header, name and extra fields included: the content is behind them.
    pub len: usize,
    /// Its number of the method of compression, APPNOTE §4.4.5.
    pub method: u16,
    /// CRC-32 of the content when it is no longer compressed; nothing if the writer did not know it yet (§4.4.4, bit 3).
    pub crc32: Option<u32>,
}

/// Reads a member's own header at the start of `bytes`.
///
/// # Errors
/// `Record` for what is none, or is not whole; `Unsupported` for a member that is encrypted.
pub fn local(bytes: &[u8]) -> Result<Local, Wrong> {
    let numbers = Numbers(bytes);
    let read = || {
        let (flags, method, crc32) = (numbers.u16(6)?, numbers.u16(8)?, numbers.u32(14)?);
        let len = LOCAL + usize::from(numbers.u16(26)?) + usize::from(numbers.u16(28)?);
        let is_whole = bytes.starts_with(b"PK\x03\x04") && len <= bytes.len();
        is_whole.then_some((flags, Local { len, method, crc32: (flags & 8 == 0).then_some(crc32) }))
    };
    match read().ok_or(Wrong::Record { what: "the header of a member" })? {
        (flags, _) if flags & 1 == 1 => Err(Wrong::Unsupported { what: "an encrypted member" }),
        (_, local) => Ok(local),
    }
}

/// A member, as the directory describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, as bytes.
    pub name: Vec<u8>,
    /// Bytes in the archive.
    pub stored_len: u64,
    /// Bytes when they are no longer compressed.
    pub len: u64,
    /// CRC-32 of those.
    pub crc32: u32,
    /// Where its own header is.
    pub header: u64,
    /// General purpose bits, APPNOTE §4.4.4.
    pub flags: u16,
    /// Its number of the method of compression, §4.4.5.
    pub method: u16,
}

/// Reads the entry at the start of `bytes`, and says how many of them it has; nothing if it is not whole.
///
/// # Errors
/// `Record` for what is no entry.
pub fn entry(bytes: &[u8]) -> Result<Option<(Entry, usize)>, Wrong> {
    let what = || Wrong::Record { what: "an entry of the directory" };
    let numbers = Numbers(bytes);
    if bytes.len() < ENTRY {
        return Ok(None);
    }
    if !bytes.starts_with(b"PK\x01\x02") {
        return Err(what());
    }
    let part = |at| numbers.u16(at).map(usize::from).ok_or_else(what);
    let (name, extra, comment) = (part(28)?, part(30)?, part(32)?);
    let (extra_at, end) = (ENTRY + name, ENTRY + name + extra + comment);
    if bytes.len() < end {
        return Ok(None);
    }
    let narrow = |at| numbers.u32(at).ok_or_else(what);
    let wide = [narrow(24)?, narrow(20)?, narrow(42)?];
    let [len, stored_len, header] = widen(wide, &bytes[extra_at..extra_at + extra]).ok_or_else(what)?;
    let entry = Entry {
        name: bytes[ENTRY..extra_at].to_vec(),
        stored_len,
        len,
        crc32: narrow(16)?,
        header,
        flags: numbers.u16(8).ok_or_else(what)?,
        method: numbers.u16(10).ok_or_else(what)?,
    };
    Ok(Some((entry, end)))
}

/// Lengths and place of a member; those that are all ones stand in the zip64 extra field, one behind the other, which must be there.
fn widen(narrow: [u32; 3], mut extra: &[u8]) -> Option<[u64; 3]> {
    let mut wide = narrow.map(u64::from);
    if !narrow.contains(&u32::MAX) {
        return Some(wide);
    }
    while extra.len() >= 4 {
        let (id, len) = (Numbers(extra).u16(0)?, usize::from(Numbers(extra).u16(2)?));
        let (field, rest) = extra[4..].split_at_checked(len)?;
        extra = rest;
        if id != 1 {
            continue;
        }
        let mut at = 0;
        for (narrow, wide) in narrow.into_iter().zip(&mut wide) {
            if narrow == u32::MAX {
                *wide = Numbers(field).u64(at)?;
                at += 8;
            }
        }
        return Some(wide);
    }
    None
}

impl Entry {
    /// How its bytes are stored.
    ///
    /// # Errors
    /// `Unsupported`, `Method`, `OtherMember` if it is stored and has two lengths.
    pub fn method(&self) -> Result<Method, Wrong> {
        match (self.flags & 1, self.method) {
            (1, _) => Err(Wrong::Unsupported { what: "an encrypted member" }),
            (_, 0) if self.stored_len != self.len => Err(Wrong::OtherMember { what: "its two lengths" }),
            (_, 0) => Ok(Method::Stored),
            (_, 8) => Ok(Method::Deflated),
            (_, method) => Err(Wrong::Method { method }),
        }
    }

    /// Bytes of the member's own header that are read: up to the end of its name.
    pub fn header_len(&self) -> u64 {
        (LOCAL + self.name.len()) as u64
    }

    /// Bytes between the start of the member's own header and its content, from the first [`header_len`](Self::header_len) of it.
    ///
    /// # Errors
    /// `Record`; `OtherMember` if it is the header of another one.
    pub fn content_at(&self, header: &[u8]) -> Result<u64, Wrong> {
        let what = || Wrong::Record { what: "the header of a member" };
        let numbers = Numbers(header);
        if !header.starts_with(b"PK\x03\x04") {
            return Err(what());
        }
        let name = usize::from(numbers.u16(26).ok_or_else(what)?);
        if header.get(LOCAL..) != Some(&self.name[..]) || name != self.name.len() {
            return Err(Wrong::OtherMember { what: "its name" });
        }
        if numbers.u16(8) != Some(self.method) {
            return Err(Wrong::OtherMember { what: "its method of compression" });
        }
        let extra = numbers.u16(28).ok_or_else(what)?;
        Ok(self.header_len() + u64::from(extra))
    }
}
