//! The walk over an archive.

use std::collections::VecDeque;

use crate::records::{self, Directory, END, END64, ENTRY, Entry, LOCATOR};
use crate::{Extent, Member, Wrong, ZipError};

/// The longest comment, and what stands before it.
const TAIL: u64 = (u16::MAX as usize + END + LOCATOR) as u64;
/// Bytes of the directory that are read at once: more than the longest entry has.
const PIECE: u64 = 256 << 10;
// An entry has three parts whose length is a number of 16 bits; each piece must hold a whole one.
const _: () = assert!(PIECE >= (ENTRY + 3 * u16::MAX as usize) as u64);

/// Walks an archive. Calling order: all that [`next`](Self::next) has, then [`need`](Self::need), read, [`push`](Self::push).
#[derive(Debug)]
pub struct ZipScan {
    at: At,
    have: Vec<u8>,
    found: VecDeque<Result<Member, ZipError>>,
}

/// What is being read.
#[derive(Debug)]
enum At {
    /// The last bytes.
    Tail(Extent),
    /// The zip64 end record.
    End64(Extent),
    /// The directory, from the first entry that was not read.
    Entries(Extent, Walk),
    /// A member's own header.
    Header(Extent, Entry, Walk),
    Over,
}

/// How far the walk is.
#[derive(Debug)]
struct Walk {
    directory: Directory,
    /// Bytes of the directory before the piece that comes next.
    passed: u64,
    /// Members so far.
    members: u64,
    /// Entries whose members' headers are still to be read.
    entries: VecDeque<Entry>,
}

impl ZipScan {
    /// Begins with an archive of so many bytes.
    ///
    /// # Errors
    /// `NoEnd` if it is too short for an archive without members.
    pub fn new(file_len: u64) -> Result<Self, ZipError> {
        if file_len < END as u64 {
            return Err(ZipError { offset: 0, wrong: Wrong::NoEnd });
        }
        let len = file_len.min(TAIL);
        let at = At::Tail(Extent { offset: file_len - len, len });
        Ok(Self { at, have: Vec::new(), found: VecDeque::new() })
    }

    fn wanted(&self) -> Option<Extent> {
        match &self.at {
            At::Tail(extent) | At::End64(extent) | At::Entries(extent, _) | At::Header(extent, _, _) => Some(*extent),
            At::Over => None,
        }
    }

    /// The next bytes to read, at least one and never past the end of the archive; `None` when the walk is over.
    pub fn need(&self) -> Option<Extent> {
        let wanted = self.wanted()?;
        let have = self.have.len() as u64;
        Some(Extent { offset: wanted.offset + have, len: wanted.len - have })
    }

    /// Takes the bytes that the last `need` asked for, or a first part of them.
    ///
    /// # Errors
    /// What is wrong with the archive, and where. The walk is over then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ZipError> {
        let Some(wanted) = self.wanted() else { return Ok(()) };
        if bytes.is_empty() {
            self.at = At::Over;
            return Err(ZipError { offset: wanted.offset, wrong: Wrong::Shrank });
        }
        let missing = usize::try_from(wanted.len).unwrap_or(usize::MAX) - self.have.len();
        self.have.extend_from_slice(&bytes[..bytes.len().min(missing)]);
        if (self.have.len() as u64) < wanted.len {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.have);
        // On an error the walk stays over.
        self.at = match std::mem::replace(&mut self.at, At::Over) {
            At::Tail(tail) => self.tail(tail, &bytes)?,
            At::End64(extent) => {
                let directory = records::end64(&bytes).map_err(|wrong| ZipError { offset: extent.offset, wrong })?;
                self.begin(directory, extent.offset)?
            }
            At::Entries(extent, walk) => self.entries(extent, &bytes, walk)?,
            At::Header(extent, entry, walk) => {
                let member = self.member(extent, &bytes, entry, walk.directory.offset);
                self.found.push_back(member);
                self.go_on(walk)?
            }
            At::Over => At::Over,
        };
        Ok(())
    }

    /// The next member. One that cannot be read is told as an error, and the walk goes on behind it.
    #[expect(
        clippy::should_implement_trait,
        reason = "more comes after `None` once bytes were pushed, unlike an iterator's"
    )]
    pub fn next(&mut self) -> Option<Result<Member, ZipError>> {
        self.found.pop_front()
    }

    fn tail(&self, tail: Extent, bytes: &[u8]) -> Result<At, ZipError> {
        let at = records::find_end(bytes).ok_or(ZipError { offset: tail.offset, wrong: Wrong::NoEnd })?;
        let offset = tail.offset + at as u64;
        let fail = |wrong| ZipError { offset, wrong };
        let directory = records::end(&bytes[at..]).map_err(fail)?;
        let before = at.checked_sub(LOCATOR).and_then(|locator| bytes.get(locator..at));
        let Some(end64) = before.and_then(records::locator) else { return self.begin(directory, offset) };
        let len = END64 as u64;
        let fits = end64.checked_add(len).is_some_and(|end| end <= offset - LOCATOR as u64);
        if !fits {
            return Err(fail(Wrong::Outside { what: "the zip64 end record" }));
        }
        Ok(At::End64(Extent { offset: end64, len }))
    }

    /// Begins with the directory, which lies before its end record.
    fn begin(&self, directory: Directory, end: u64) -> Result<At, ZipError> {
        let fits = directory.offset.checked_add(directory.len).is_some_and(|behind| behind <= end);
        if !fits {
            return Err(ZipError { offset: end, wrong: Wrong::Outside { what: "the directory" } });
        }
        self.go_on(Walk { directory, passed: 0, members: 0, entries: VecDeque::new() })
    }

    /// Asks for the header of the next member, or for the next piece of the directory.
    fn go_on(&self, mut walk: Walk) -> Result<At, ZipError> {
        if let Some(entry) = walk.entries.pop_front() {
            let extent = Extent { offset: entry.header, len: entry.header_len() };
            return Ok(At::Header(extent, entry, walk));
        }
        let Directory { offset, len, members, is_short } = walk.directory;
        let left = len - walk.passed;
        if left > 0 {
            return Ok(At::Entries(Extent { offset: offset + walk.passed, len: left.min(PIECE) }, walk));
        }
        let here = if is_short { walk.members % (1 << 16) } else { walk.members };
        if here != members {
            return Err(ZipError { offset: offset + len, wrong: Wrong::Count { here: walk.members, end: members } });
        }
        Ok(At::Over)
    }

    fn entries(&mut self, extent: Extent, bytes: &[u8], mut walk: Walk) -> Result<At, ZipError> {
        let mut at = 0;
        loop {
            let offset = extent.offset + at as u64;
            let fail = |wrong| ZipError { offset, wrong };
            let Some((entry, len)) = records::entry(&bytes[at..]).map_err(fail)? else { break };
            at += len;
            walk.members += 1;
            let behind = entry.header.checked_add(entry.header_len());
            if behind.is_none_or(|behind| behind > walk.directory.offset) {
                self.found.push_back(Err(fail(Wrong::Outside { what: "the header of a member" })));
                continue;
            }
            walk.entries.push_back(entry);
        }
        if at == 0 {
            let wrong = Wrong::Record { what: "the last entry of the directory" };
            return Err(ZipError { offset: extent.offset, wrong });
        }
        walk.passed += at as u64;
        self.go_on(walk)
    }

    fn member(&self, extent: Extent, header: &[u8], entry: Entry, directory: u64) -> Result<Member, ZipError> {
        let fail = |wrong| ZipError { offset: extent.offset, wrong };
        let method = entry.method().map_err(fail)?;
        let offset = extent.offset + entry.content_at(header).map_err(fail)?;
        let content = Extent { offset, len: entry.stored_len };
        if offset.checked_add(entry.stored_len).is_none_or(|behind| behind > directory) {
            return Err(fail(Wrong::Outside { what: "a member" }));
        }
        Ok(Member { name: entry.name, method, header: entry.header, content, len: entry.len, crc32: entry.crc32 })
    }
}
