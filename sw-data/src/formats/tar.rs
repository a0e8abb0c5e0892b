//! Members of tar archives: ustar, pax, and what GNU tar writes.
//!
//! Sources: POSIX.1-2017, utility `pax`, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format".

use std::collections::VecDeque;

use super::{Collector, Extent, FormatError, Scan, Wrong, line, shown};

/// A header, and the unit in which everything is padded.
const BLOCK: u64 = 512;
/// Most bytes of an extended header or a long name. Real ones have some hundred.
const EXTENSION_MAX: u64 = 1 << 20;
/// Most bytes of a name: four times what Linux takes for a path. A global header may give its name to every member.
const NAME_MAX: usize = 16 << 10;

/// A regular file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path in the archive, as bytes: tar does not say of which encoding.
    pub name: Vec<u8>,
    /// Its content in the archive.
    pub content: Extent,
}

/// Walks an archive: one header of 512 bytes a member, and what extends it. Directories, links and devices are gone over.
///
/// Sparse files and volumes of a set are refused: their content is not one run of bytes.
#[derive(Debug)]
pub struct TarScan {
    bytes: Collector,
    at: At,
    /// What extended headers say about the next member.
    next: Extended,
    /// What a global header says about all that follow.
    global: Extended,
    found: VecDeque<Member>,
    passed: u64,
}

/// What is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Header,
    /// An extended header of so many bytes before padding.
    Extension(Extension, u64),
    /// The block after one of zeros.
    End,
}

/// Members that say something about others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// `x`: a pax header for the next member.
    Pax,
    /// `g`: a pax header for all that follow.
    Global,
    /// `L`: the next member's name.
    LongName,
    /// `K`: the next member's link name.
    LongLink,
}

impl Extension {
    fn of(kind: u8) -> Option<Self> {
        match kind {
            b'x' => Some(Self::Pax),
            b'g' => Some(Self::Global),
            b'L' => Some(Self::LongName),
            b'K' => Some(Self::LongLink),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Extended {
    name: Option<Vec<u8>>,
    len: Option<u64>,
    sparse: bool,
}

impl TarScan {
    /// Begins at the start of a file of so many bytes.
    ///
    /// # Errors
    /// `Cut` if it is shorter than a block. An empty file is an archive without members, as for GNU tar.
    pub fn new(file_len: u64) -> Result<Self, FormatError> {
        Self::starting_at(0, file_len)
    }

    /// Begins at a header inside of an archive. What a global header before it says is not known.
    ///
    /// # Errors
    /// As [`TarScan::new`].
    pub(crate) fn starting_at(offset: u64, file_len: u64) -> Result<Self, FormatError> {
        let mut scan = Self {
            bytes: Collector::new(file_len),
            at: At::Header,
            next: Extended::default(),
            global: Extended::default(),
            found: VecDeque::new(),
            passed: 0,
        };
        scan.go_on(offset)?;
        Ok(scan)
    }

    /// Members so far that are no regular files: directories, links, devices.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Asks for the next header. An archive may end without blocks of zeros, but only where a header may begin, and not
    /// between an extended header and its member.
    fn go_on(&mut self, offset: u64) -> Result<(), FormatError> {
        self.at = At::Header;
        if offset == self.bytes.file_len && self.next == Extended::default() {
            return Ok(());
        }
        self.bytes.want(offset, BLOCK, "a tar header")
    }

    fn header(&mut self, offset: u64, block: &[u8]) -> Result<(), FormatError> {
        let behind = offset + BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            self.at = At::End;
            // One block of zeros at the very end: GNU tar takes it with a warning.
            return if behind == self.bytes.file_len { Ok(()) } else { self.bytes.want(behind, BLOCK, "the end mark") };
        }
        let header = Header::read(offset, block)?;
        match Extension::of(header.kind) {
            Some(extension) => self.extension(extension, behind, header.len),
            None => self.member(behind, header),
        }
    }

    fn extension(&mut self, extension: Extension, content: u64, len: u64) -> Result<(), FormatError> {
        if len > EXTENSION_MAX {
            let wrong = Wrong::TooLong { what: "an extended header", len, max: EXTENSION_MAX };
            return Err(FormatError { offset: content, wrong });
        }
        if len == 0 {
            return self.go_on(content);
        }
        self.at = At::Extension(extension, len);
        self.bytes.want(content, len.next_multiple_of(BLOCK), "an extended header")
    }

    fn extended(&mut self, extension: Extension, offset: u64, text: &[u8]) -> Result<(), FormatError> {
        match extension {
            Extension::Pax => self.next.read_pax(offset, text)?,
            Extension::Global => self.global.read_pax(offset, text)?,
            Extension::LongName => self.next.name = Some(until_nul(text).to_vec()),
            Extension::LongLink => {}
        }
        self.go_on(offset + (text.len() as u64).next_multiple_of(BLOCK))
    }

    fn member(&mut self, content: u64, header: Header) -> Result<(), FormatError> {
        let next = std::mem::take(&mut self.next);
        let fail = |wrong| FormatError { offset: content - BLOCK, wrong };
        let name = next.name.or_else(|| self.global.name.clone()).unwrap_or(header.name);
        if name.len() > NAME_MAX {
            let (len, max) = (name.len() as u64, NAME_MAX as u64);
            return Err(fail(Wrong::TooLong { what: "the name of a member", len, max }));
        }
        let unsupported = match header.kind {
            b'S' => Some("a sparse file"),
            _ if next.sparse || self.global.sparse => Some("a sparse file"),
            b'M' => Some("the rest of a file of another volume"),
            _ => None,
        };
        if let Some(what) = unsupported {
            return Err(fail(Wrong::Unsupported { what, name: shown(&name) }));
        }
        // Links, devices, directories and FIFOs have no content, whatever their size says (so do GNU tar and Go).
        let has_content = !matches!(header.kind, b'1'..=b'6');
        let len = if has_content { next.len.or(self.global.len).unwrap_or(header.len) } else { 0 };
        let end = content.checked_add(len).filter(|end| *end <= self.bytes.file_len).ok_or_else(|| {
            let missing = len.saturating_sub(self.bytes.file_len.saturating_sub(content));
            fail(Wrong::Cut { what: "a member of the archive", missing })
        })?;
        // POSIX: a kind that is not known is taken for a regular file. A name with a slash at its end is a directory of old.
        let is_file = has_content && !matches!(header.kind, b'V' | b'D') && name.last() != Some(&b'/');
        if is_file {
            self.found.push_back(Member { name, content: Extent { offset: content, len } });
        } else {
            self.passed += 1;
        }
        // The padding of the last member may be missing, as in archives that were cut at the last byte of content.
        let padded = end.checked_next_multiple_of(BLOCK).unwrap_or(end);
        self.go_on(padded.min(self.bytes.file_len))
    }
}

impl Scan for TarScan {
    type Found = Member;

    fn need(&self) -> Option<Extent> {
        self.bytes.need()
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let Some((offset, bytes)) = self.bytes.push(bytes)? else { return Ok(()) };
        match self.at {
            At::Header => self.header(offset, &bytes),
            At::Extension(extension, len) => {
                let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
                self.extended(extension, offset, &bytes[..len])
            }
            // Whatever follows the end mark is no archive any more: tar pads to records with it.
            At::End if bytes.iter().all(|byte| *byte == 0) => Ok(()),
            At::End => Err(FormatError { offset, wrong: Wrong::Field { field: "the second block of the end mark" } }),
        }
    }

    fn next(&mut self) -> Option<Member> {
        self.found.pop_front()
    }
}

/// What a header block says.
struct Header {
    kind: u8,
    name: Vec<u8>,
    len: u64,
}

impl Header {
    fn read(offset: u64, block: &[u8]) -> Result<Self, FormatError> {
        let fail = |wrong| FormatError { offset, wrong };
        let field = |field| fail(Wrong::Field { field });
        let cut = || field("a header block");
        let part = |range: std::ops::Range<usize>| block.get(range).ok_or_else(cut);
        let stored = line::octal(part(148..156)?).and_then(|sum| u32::try_from(sum).ok());
        let stored = stored.ok_or_else(|| field("a header's checksum"))?;
        // Its own field counts as spaces. Some old tars summed signed bytes.
        let own = 148..156;
        let byte = |(at, byte): (usize, &u8)| if own.contains(&at) { b' ' } else { *byte };
        let unsigned: u32 = block.iter().enumerate().map(|pair| u32::from(byte(pair))).sum();
        let signed: i32 = block.iter().enumerate().map(|pair| i32::from(byte(pair).cast_signed())).sum();
        if stored != unsigned && i32::try_from(stored) != Ok(signed) {
            return Err(fail(Wrong::Checksum { what: "a tar header", stored, computed: unsigned }));
        }
        let len = number(part(124..136)?).ok_or_else(|| field("a member's size"))?;
        let mut name = Vec::new();
        // GNU tar's own format has other things where ustar has the prefix.
        if part(257..263)? == b"ustar\0" {
            name.extend_from_slice(until_nul(part(345..500)?));
            if !name.is_empty() {
                name.push(b'/');
            }
        }
        name.extend_from_slice(until_nul(part(0..100)?));
        Ok(Self { kind: part(156..157)?[0], name, len })
    }
}

impl Extended {
    /// Records of the form `LENGTH KEY=VALUE\n`; the length counts the whole record.
    fn read_pax(&mut self, offset: u64, text: &[u8]) -> Result<(), FormatError> {
        let mut rest = text;
        let fail = || FormatError { offset, wrong: Wrong::Field { field: "a record of a pax header" } };
        while !rest.is_empty() {
            let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(fail)?;
            let len = line::decimal(&rest[..space]).and_then(|len| usize::try_from(len).ok()).ok_or_else(fail)?;
            let record = rest.get(space + 1..len).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(fail)?;
            rest = &rest[len..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(fail)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                // An empty value takes back what a global header said.
                b"path" => self.name = (!value.is_empty()).then(|| value.to_vec()),
                b"size" if value.is_empty() => self.len = None,
                b"size" => self.len = Some(line::decimal(value).ok_or_else(fail)?),
                _ => self.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
        Ok(())
    }
}

/// A size: octal digits, or, beyond 8 GiB, 11 bytes of a binary number behind a byte with its top bit set (GNU).
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first() {
        Some((0x80, rest)) => {
            rest.iter().try_fold(0u64, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)))
        }
        Some((first, _)) if first & 0x80 > 0 => None,
        _ => line::octal(field),
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}
