//! The archive that a batch comes in, entry by entry, as its bytes come (POSIX.1-2017, pax, "ustar Interchange Format").

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

/// Bytes of a header, and what contents are padded to.
const BLOCK: usize = 512;
/// Bytes of what stands before a header, such as a long name, at most.
const ASIDE_BYTES_MAX: u64 = 64 << 10;

/// What is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoArchive;

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing before there are more bytes.
    More,
    /// An entry begins, with so many bytes.
    Entry { name: String, len: u64 },
    /// Bytes of it.
    Bytes(Bytes),
    /// It has all of its bytes.
    Whole,
    /// There are no more.
    End,
}

/// Where an archive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    /// In what stands before a header.
    Aside {
        left: u64,
        kind: u8,
    },
    /// In an entry's bytes.
    Entry {
        left: u64,
    },
    /// Behind some, which were filled up to a block.
    Padding {
        left: usize,
    },
    End,
}

/// An archive that comes.
#[derive(Debug)]
pub(super) struct Tar {
    come: VecDeque<Bytes>,
    count: usize,
    state: State,
    aside: Vec<u8>,
    /// A name that is too long for a header.
    name: Option<String>,
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

fn padding(len: u64) -> usize {
    sw_mem::index(len.wrapping_neg() % BLOCK as u64)
}

impl Tar {
    pub(super) fn new() -> Self {
        Self { come: VecDeque::new(), count: 0, state: State::Header, aside: Vec::new(), name: None }
    }

    /// Bytes that came.
    pub(super) fn put(&mut self, bytes: Bytes) {
        self.count += bytes.len();
        self.come.push_back(bytes);
    }

    /// At most so many bytes of those that are here.
    fn take(&mut self, most: usize) -> Bytes {
        let Some(first) = self.come.front_mut() else { return Bytes::new() };
        let taken = first.split_to(first.len().min(most));
        if first.is_empty() {
            self.come.pop_front();
        }
        self.count -= taken.len();
        taken
    }

    fn block(&mut self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut rest = block.as_mut_slice();
        while !rest.is_empty() {
            let mut piece = self.take(rest.len());
            let (now, later) = rest.split_at_mut(piece.len());
            piece.copy_to_slice(now);
            rest = later;
        }
        block
    }

    /// What comes next of those bytes that are here.
    pub(super) fn next(&mut self) -> Result<Next, NoArchive> {
        loop {
            match self.state {
                State::End => return Ok(Next::End),
                State::Header if self.count < BLOCK => return Ok(Next::More),
                State::Header => {
                    let block = self.block();
                    if block == [0; BLOCK] {
                        self.state = State::End;
                    } else if let Some(entry) = self.header(&block)? {
                        return Ok(entry);
                    }
                }
                State::Aside { left: 0, kind } => self.name_aside(kind),
                State::Entry { left: 0 } => {
                    self.state = State::Header;
                    return Ok(Next::Whole);
                }
                State::Padding { left: 0 } => self.state = State::Header,
                _ if self.count == 0 => return Ok(Next::More),
                State::Aside { left, kind } => {
                    let piece = self.take(sw_mem::index(left));
                    self.aside.extend_from_slice(&piece);
                    self.state = State::Aside { left: left - piece.len() as u64, kind };
                }
                State::Entry { left } => {
                    let piece = self.take(sw_mem::index(left));
                    let left = left - piece.len() as u64;
                    self.state = State::Entry { left };
                    return Ok(Next::Bytes(piece));
                }
                State::Padding { left } => {
                    let piece = self.take(left);
                    self.state = State::Padding { left: left - piece.len() };
                }
            }
        }
    }

    /// What a header begins.
    fn header(&mut self, block: &[u8; BLOCK]) -> Result<Option<Next>, NoArchive> {
        let field = |from: usize, to: usize| text(block.get(from..to).unwrap_or_default());
        let number = |text: String| u64::from_str_radix(text.trim_matches([' ', '\0']), 8).map_err(|_| NoArchive);
        let told = number(field(148, 156))?;
        let sum =
            block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) });
        if told != sum.sum::<u64>() {
            return Err(NoArchive);
        }
        let (len, kind) = (number(field(124, 136))?, block[156]);
        if matches!(kind, b'x' | b'g' | b'L') {
            if len > ASIDE_BYTES_MAX {
                return Err(NoArchive);
            }
            self.aside.clear();
            self.state = State::Aside { left: len, kind };
            return Ok(None);
        }
        let prefix = field(345, 500);
        let short = if prefix.is_empty() { field(0, 100) } else { format!("{prefix}/{}", field(0, 100)) };
        self.state = State::Entry { left: len };
        Ok(Some(Next::Entry { name: self.name.take().unwrap_or(short), len }))
    }

    /// Reads a name that stands before its header.
    fn name_aside(&mut self, kind: u8) {
        self.state = State::Padding { left: padding(self.aside.len() as u64) };
        if kind == b'L' {
            self.name = Some(text(&self.aside));
        } else if kind == b'x' {
            // `LENGTH path=NAME`, with a line feed behind it.
            let mut rest = self.aside.as_slice();
            while let Some(space) = rest.iter().position(|byte| *byte == b' ') {
                let (len, _) = rest.split_at(space);
                let Some(len) = std::str::from_utf8(len).ok().and_then(|len| len.parse::<usize>().ok()) else { return };
                let Some(record) = rest.get(space + 1..len.saturating_sub(1)) else { return };
                if let Some(name) = record.strip_prefix(b"path=") {
                    self.name = Some(String::from_utf8_lossy(name).into_owned());
                }
                rest = rest.get(len..).unwrap_or_default();
            }
        }
    }

    /// Leaves out what fills the bytes of an entry up.
    pub(super) fn pad(&mut self, len: u64) {
        self.state = State::Padding { left: padding(len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, len: usize, kind: u8) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{len:011o}").as_bytes());
        block[148..156].fill(b' ');
        block[156] = kind;
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    fn padded(bytes: &[u8]) -> Vec<u8> {
        let mut all = bytes.to_vec();
        all.resize(bytes.len().next_multiple_of(BLOCK), 0);
        all
    }

    /// What an archive has, if its bytes come in pieces of this length.
    fn entries(archive: &[u8], piece: usize) -> Result<Vec<(String, Vec<u8>)>, NoArchive> {
        let (mut tar, mut found, mut pieces) = (Tar::new(), Vec::new(), archive.chunks(piece));
        loop {
            match tar.next()? {
                Next::More => match pieces.next() {
                    Some(piece) => tar.put(Bytes::copy_from_slice(piece)),
                    None => return Err(NoArchive),
                },
                Next::Entry { name, len: _ } => found.push((name, Vec::new())),
                Next::Bytes(bytes) => found.last_mut().unwrap().1.extend_from_slice(&bytes),
                Next::Whole => tar.pad(found.last().unwrap().1.len() as u64),
                Next::End => return Ok(found),
            }
        }
    }

    #[test]
    fn entries_come_however_their_bytes_come() {
        let long = format!("b/{}", "n".repeat(200));
        let record = format!("{} path={long}\n", long.len() + 10);
        let archive = [
            header("b/one", 5, b'0'),
            padded(b"hello"),
            header("x", record.len(), b'x'),
            padded(record.as_bytes()),
            header("b/nnn", 512, b'0'),
            vec![7; 512],
            header("b/none", 0, b'0'),
            header("L", long.len() + 1, b'L'),
            padded(format!("{long}\0").as_bytes()),
            header("b/nnn", 1, b'0'),
            padded(&[1]),
            vec![0; 1024],
        ]
        .concat();
        let want = vec![
            ("b/one".to_owned(), b"hello".to_vec()),
            (long.clone(), vec![7; 512]),
            ("b/none".to_owned(), Vec::new()),
            (long, vec![1]),
        ];
        for piece in [1, 7, 511, 512, 513, 100_000] {
            assert_eq!(entries(&archive, piece).as_ref(), Ok(&want), "{piece}");
        }
        // One that is cut, and what is none.
        assert_eq!(entries(&archive[..archive.len() - 1025], 512), Err(NoArchive));
        let mut other = archive;
        other[3] ^= 1;
        assert_eq!(entries(&other, 512), Err(NoArchive));
        assert_eq!(entries(&[1; 2048], 512), Err(NoArchive));
    }
}
