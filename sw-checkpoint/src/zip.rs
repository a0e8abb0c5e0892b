//! The zip container of `torch.save`: which entries it has, and where the bytes of each are.
//!
//! ```text
//!   0                                                               length
//!   ├─ header, name, padding ─┼─ data ─┼─ descriptor ─┼─ … ─┼─ directory ─┼─ end ─┤
//!                             └ on a multiple of 64              (zip64: 2 more)
//! ```
//!
//! A strict reader of what `torch.save` writes: entries are stored, not compressed; nothing stands before the first one;
//! the directory ends where the end record begins; no two entries share a byte. Zip64 is read. What a general reader
//! tolerates (bytes before and after, several directories) is refused: a file with two readings has no right one.
//!
//! Source: PKWARE APPNOTE 6.3.10 §4.3 "General Format of a .ZIP file", §4.5.3 "Zip64 Extended Information Extra Field".

use sw_zip::records;
use thiserror::Error;

use crate::quote::Quoted;
use crate::ranges::{Failed, Ranges, read_in_pieces};

/// Longest directory in bytes: a million storages take about 100 MB.
const DIRECTORY_LEN_MAX_BYTES: u64 = 1 << 30;

/// Bytes of the records at the end, and of a local header without name.
const ENDS_LEN_BYTES: u64 = (records::END + records::LOCATOR + records::END64) as u64;
const LOCAL_LEN_BYTES: u64 = records::LOCAL as u64;

/// What to read from the end of a file at first: the end records, and the directory of a checkpoint of a few hundred storages.
pub(crate) const TAIL_LEN_BYTES: u64 = 64 << 10;

/// Why a container is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ZipError {
    /// There is no end record where the file ends.
    #[error(
        "there is no zip directory at the end of these {len_bytes} bytes; the copy is incomplete, or this is another format"
    )]
    NoEnd {
        /// Length of the file.
        len_bytes: u64,
    },
    /// A record of the directory contradicts another one, or reaches past the file.
    #[error("the zip directory is wrong: {what}; the file is damaged")]
    Directory {
        /// What is wrong.
        what: &'static str,
    },
    /// The directory is longer than the limit.
    #[error(
        "the zip directory has {len_bytes} bytes, over the limit of {DIRECTORY_LEN_MAX_BYTES}; this is not a checkpoint"
    )]
    TooLong {
        /// Its length.
        len_bytes: u64,
    },
    /// An entry is compressed or encrypted.
    #[error("entry {} is {how}; its bytes cannot be read in place, so write the file again with torch.save", Quoted(.entry))]
    NotStored {
        /// Its name.
        entry: String,
        /// What was done to it.
        how: &'static str,
    },
    /// An entry is wrong.
    #[error("entry {} is wrong: {what}; the file is damaged", Quoted(.entry))]
    Entry {
        /// Its name.
        entry: String,
        /// What is wrong.
        what: &'static str,
    },
}

impl ZipError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoEnd { .. } => "zip-no-end",
            Self::Directory { .. } => "zip-directory",
            Self::TooLong { .. } => "zip-too-long",
            Self::NotStored { .. } => "zip-not-stored",
            Self::Entry { .. } => "zip-entry",
        }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub name: String,
    pub crc32: u32,
    pub len_bytes: u64,
    /// Where its local header begins.
    header_offset: u64,
    /// Where the next thing begins: another entry, or the directory.
    next_offset: u64,
    /// Whether a descriptor follows the data, and of which length.
    descriptor_len: u64,
}

/// A container, its entries in the order of the file.
#[derive(Debug)]
pub(crate) struct Archive {
    entries: Vec<Entry>,
    /// Indices sorted by name.
    by_name: Vec<usize>,
}

type Fault<R> = Failed<<R as Ranges>::Error, ZipError>;

impl Archive {
    /// Reads the directory; `tail_len_bytes` are read at first, and are enough if it is shorter than that.
    pub(crate) fn read<R: Ranges>(from: &mut R, tail_len_bytes: u64) -> Result<Self, Fault<R>> {
        let len_bytes = from.len_bytes();
        let tail_len = len_bytes.min(tail_len_bytes.max(ENDS_LEN_BYTES));
        let tail_offset = len_bytes - tail_len;
        let tail = if tail_len == 0 { Vec::new() } else { from.read(tail_offset, tail_len).map_err(Failed::Read)? };
        let end = End::find(&tail, tail_offset, len_bytes)?;
        if end.len_bytes > DIRECTORY_LEN_MAX_BYTES {
            return Err(ZipError::TooLong { len_bytes: end.len_bytes }.into());
        }
        let bytes = match end.offset.checked_sub(tail_offset) {
            Some(at) => slice(&tail, at, end.len_bytes).map(<[u8]>::to_vec),
            None => Some(read_in_pieces(from, end.offset, end.len_bytes).map_err(Failed::Read)?),
        };
        let bytes = bytes.ok_or(ZipError::Directory { what: "it reaches past the file" })?;
        Ok(Self::parse(&bytes, &end)?)
    }

    fn parse(mut bytes: &[u8], end: &End) -> Result<Self, ZipError> {
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            let (entry, rest) = central(bytes)?;
            entries.push(entry);
            bytes = rest;
        }
        if entries.len() as u64 != end.count {
            return Err(ZipError::Directory { what: "it has another number of entries than its end says" });
        }
        entries.sort_by_key(|entry| entry.header_offset);
        let mut next_offset = end.offset;
        for at in (0..entries.len()).rev() {
            entries[at].next_offset = next_offset;
            next_offset = entries[at].header_offset;
            let shortest = LOCAL_LEN_BYTES + entries[at].name.len() as u64;
            let room = entries[at].next_offset.checked_sub(entries[at].header_offset);
            let need = entries[at].len_bytes.checked_add(shortest);
            if room.is_none_or(|room| need.is_none_or(|need| need > room)) {
                return Err(entries[at].wrong("it reaches into the next one or past the file"));
            }
        }
        if next_offset != 0 {
            return Err(ZipError::Directory { what: "something stands before the first entry" });
        }
        let mut by_name: Vec<usize> = (0..entries.len()).collect();
        by_name.sort_by(|&a, &b| entries[a].name.cmp(&entries[b].name));
        if let Some(pair) = by_name.windows(2).find(|pair| entries[pair[0]].name == entries[pair[1]].name) {
            return Err(entries[pair[0]].wrong("another entry has the same name"));
        }
        Ok(Self { entries, by_name })
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        let at = self.by_name.binary_search_by(|&at| self.entries[at].name.as_str().cmp(name)).ok()?;
        self.entries.get(self.by_name[at])
    }

    /// The entry whose name is `file` below the one directory that `torch.save` puts everything into, and that directory.
    pub(crate) fn rooted(&self, file: &str) -> Option<(&str, &Entry)> {
        self.entries.iter().find_map(|entry| {
            let root = entry.name.strip_suffix(file)?;
            (root.ends_with('/') && root.matches('/').count() == 1).then_some((root, entry))
        })
    }
}

impl Entry {
    fn wrong(&self, what: &'static str) -> ZipError {
        ZipError::Entry { entry: self.name.clone(), what }
    }

    /// Where its data begins, if the directory alone proves it: by the alignment that `torch.save` gives data, and by
    /// where the next entry begins. A file that someone else wrote, or padded otherwise, gives `None`: its local header
    /// has to be read.
    pub(crate) fn data_offset_by_rule(&self) -> Option<u64> {
        // `caffe2/serialize/inline_container.cc` `getOffset`: the padding is an extra field of at least 4 bytes, before
        // it one for zip64 with two lengths or two lengths and an offset, where one of them needs 64 bits.
        const ALIGN_BYTES: u64 = 64;
        let fixed = self.header_offset + LOCAL_LEN_BYTES + self.name.len() as u64;
        let zip64 = match (self.len_bytes >= u32::MAX.into(), self.header_offset >= u32::MAX.into()) {
            (false, false) => 0,
            (true, false) => 4 + 16,
            (false, true) => 4 + 8,
            (true, true) => 4 + 24,
        };
        let by_alignment = (fixed + zip64 + 4).next_multiple_of(ALIGN_BYTES);
        let by_next = self.next_offset.checked_sub(self.descriptor_len)?.checked_sub(self.len_bytes)?;
        (by_alignment == by_next).then_some(by_next)
    }

    /// Where its data begins.
    pub(crate) fn data_offset<R: Ranges>(&self, from: &mut R) -> Result<u64, Fault<R>> {
        if let Some(offset) = self.data_offset_by_rule() {
            return Ok(offset);
        }
        let header = from.read(self.header_offset, LOCAL_LEN_BYTES).map_err(Failed::Read)?;
        let fields = Fields(&header);
        let (Some(0x0403_4b50), Some(name_len), Some(extra_len)) = (fields.u32(0), fields.u16(26), fields.u16(28))
        else {
            return Err(self.wrong("there is no local header where the directory says").into());
        };
        let name = from.read(self.header_offset + LOCAL_LEN_BYTES, u64::from(name_len)).map_err(Failed::Read)?;
        if name != self.name.as_bytes() {
            return Err(self.wrong("its local header has another name").into());
        }
        let offset = self.header_offset + LOCAL_LEN_BYTES + u64::from(name_len) + u64::from(extra_len);
        if offset.checked_add(self.len_bytes).is_none_or(|end| end > self.next_offset) {
            return Err(self.wrong("it reaches into the next one").into());
        }
        Ok(offset)
    }
}

/// The records at the end of a file.
struct End {
    offset: u64,
    len_bytes: u64,
    count: u64,
}

impl End {
    fn find(tail: &[u8], tail_offset: u64, len_bytes: u64) -> Result<Self, ZipError> {
        let no_end = || ZipError::NoEnd { len_bytes };
        // A comment would follow the record; `torch.save` writes none.
        let at = records::find_end(tail).filter(|at| at + records::END == tail.len()).ok_or_else(no_end)?;
        let record = tail_offset + at as u64;
        let mut end = Self::of(&records::end(&tail[at..]).map_err(|_| no_end())?);
        let mut directory_end = record;
        let locator = at.checked_sub(records::LOCATOR).and_then(|locator| records::locator(&tail[locator..at]));
        if let Some(offset) = locator {
            (end, directory_end) = (Self::zip64(&tail[..at], tail_offset, offset)?, offset);
        }
        if end.offset.checked_add(end.len_bytes) != Some(directory_end) {
            return Err(ZipError::Directory { what: "it does not end where its end record begins" });
        }
        Ok(end)
    }

    fn of(directory: &records::Directory) -> Self {
        Self { offset: directory.offset, len_bytes: directory.len, count: directory.members }
    }

    /// The zip64 end record at `offset`: right before its locator, which ends `tail`.
    fn zip64(tail: &[u8], tail_offset: u64, offset: u64) -> Result<Self, ZipError> {
        let at = tail.len().checked_sub(records::LOCATOR + records::END64);
        let at = at.filter(|at| tail_offset + *at as u64 == offset);
        let record = at.and_then(|at| tail.get(at..at + records::END64)).and_then(|record| records::end64(record).ok());
        let wrong = ZipError::Directory { what: "its zip64 end record is not where the locator says" };
        record.map(|directory| Self::of(&directory)).ok_or(wrong)
    }
}

/// One record of the directory, and what follows it.
fn central(bytes: &[u8]) -> Result<(Entry, &[u8]), ZipError> {
    let cut = || ZipError::Directory { what: "a record is cut, has no signature, or lacks its zip64 field" };
    let (entry, len) = records::entry(bytes).ok().flatten().ok_or_else(cut)?;
    let name = String::from_utf8(entry.name.clone());
    let name = name.map_err(|_| ZipError::Directory { what: "a name is not UTF-8" })?;
    let how = match (entry.method, entry.flags & 1) {
        (0, 0) => None,
        (_, 1) => Some("encrypted"),
        _ => Some("compressed"),
    };
    if let Some(how) = how {
        return Err(ZipError::NotStored { entry: name, how });
    }
    let (len_bytes, header_offset) = (entry.len, entry.header);
    if entry.stored_len != len_bytes {
        return Err(ZipError::Entry { entry: name, what: "it is stored, but has two lengths" });
    }
    // A descriptor repeats checksum and lengths after the data; the lengths are wide where the entry needs zip64. What
    // writers do beyond that differs (none after no data), so this is a hint that is proven before it is used.
    let needs_64 = len_bytes.max(header_offset) >= u32::MAX.into();
    let descriptor_len = match (entry.flags & 8 != 0 && len_bytes > 0, needs_64) {
        (false, _) => 0,
        (true, false) => 16,
        (true, true) => 24,
    };
    let crc32 = entry.crc32;
    Ok((Entry { name, crc32, len_bytes, header_offset, next_offset: 0, descriptor_len }, &bytes[len..]))
}

/// Little-endian numbers in a record.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }
}

fn slice(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..at.checked_add(usize::try_from(len).ok()?)?)
}
