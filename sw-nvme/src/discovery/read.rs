//! Reads a discovery log page that may change meanwhile.
//!
//! ```text
//!   header ─► entries, piece by piece ─► header again ─┬─ same GENCTR: done
//!      ▲                                                └─ another: once more, RESTARTS_MAX times
//!      └──────────────────────────────────────────────────┘
//! ```
//!
//! Base 2.x, "Discovery Log Page": a host that reads the page in several commands reads GENCTR again at the end, and starts again if
//! it changed.

use core::fmt;

use super::{ENTRY_BYTES, Entry, HEADER_BYTES, Header};
use crate::wire::WireError;

/// How often a page is read again because it changed.
pub const RESTARTS_MAX: u32 = 8;

/// A part of the page that is to be read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First byte.
    pub offset_bytes: u64,
    /// Bytes: [`HEADER_BYTES`], or a multiple of [`ENTRY_BYTES`].
    pub len_bytes: usize,
}

/// Why a page was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotRead {
    /// The header is none.
    Header(WireError),
    /// An entry is none; which one, from 0.
    Entry(u64, WireError),
    /// It changed each time that it was read.
    Restless,
}

impl fmt::Display for NotRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(cause) => write!(f, "the discovery log page is not what it should be: {cause}"),
            Self::Entry(index, cause) => {
                write!(f, "entry {index} of the discovery log page is not what it should be: {cause}")
            }
            Self::Restless => {
                write!(f, "the discovery log page changed while it was read, {RESTARTS_MAX} times in a row")
            }
        }
    }
}

impl core::error::Error for NotRead {}

/// Where the reading stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    First,
    Entries(Header),
    Again(Header),
    Done,
}

/// The reading of one page. Ask [`Reader::next_piece`], read it, tell [`Reader::came`]; until there is no next piece.
#[derive(Debug)]
pub struct Reader {
    state: State,
    entries: Vec<Entry>,
    /// Entries that were read, good or not.
    have: u64,
    /// The first entry that is none: it counts only if the page did not change meanwhile.
    wrong: Option<(u64, WireError)>,
    /// Entries of one piece.
    piece_entries: u64,
    restarts: u32,
}

impl Reader {
    /// For commands that move at most `piece_bytes`, which is at least one entry.
    pub fn new(piece_bytes: usize) -> Self {
        let piece_entries = (piece_bytes / ENTRY_BYTES).max(1) as u64;
        Self { state: State::First, entries: Vec::new(), have: 0, wrong: None, piece_entries, restarts: 0 }
    }

    /// What to read now; `None`: all was read.
    pub fn next_piece(&self) -> Option<Piece> {
        let header = Piece { offset_bytes: 0, len_bytes: HEADER_BYTES };
        match self.state {
            State::First | State::Again(_) => Some(header),
            State::Entries(of) => {
                let count = self.piece_of(of);
                let offset_bytes = HEADER_BYTES as u64 + self.have * ENTRY_BYTES as u64;
                Some(Piece { offset_bytes, len_bytes: sw_mem::index(count) * ENTRY_BYTES })
            }
            State::Done => None,
        }
    }

    /// The bytes of the piece that was asked for.
    ///
    /// # Errors
    /// [`NotRead`]; the reading is over then. Fewer bytes than the piece has are an error too.
    pub fn came(&mut self, raw: &[u8]) -> Result<(), NotRead> {
        self.state = match self.state {
            State::First => self.with_header(Header::decode(raw).map_err(NotRead::Header)?),
            State::Entries(of) => self.with_entries(of, raw),
            State::Again(before) => {
                let header = Header::decode(raw).map_err(NotRead::Header)?;
                if header == before {
                    self.wrong.take().map_or(Ok(State::Done), |(index, cause)| Err(NotRead::Entry(index, cause)))?
                } else if self.restarts == RESTARTS_MAX {
                    return Err(NotRead::Restless);
                } else {
                    self.restarts += 1;
                    self.with_header(header)
                }
            }
            State::Done => State::Done,
        };
        Ok(())
    }

    fn with_header(&mut self, header: Header) -> State {
        self.entries.clear();
        (self.have, self.wrong) = (0, None);
        // A page without entries was read in one command: nothing can change in its midst.
        if header.entries == 0 { State::Done } else { State::Entries(header) }
    }

    /// Entries of the next piece.
    fn piece_of(&self, of: Header) -> u64 {
        of.entries.saturating_sub(self.have).min(self.piece_entries)
    }

    fn with_entries(&mut self, of: Header, raw: &[u8]) -> State {
        for index in 0..self.piece_of(of) {
            let at = sw_mem::index(index) * ENTRY_BYTES;
            match Entry::decode(raw.get(at..).unwrap_or_default()) {
                Ok(entry) => self.entries.push(entry),
                Err(cause) => self.wrong = self.wrong.take().or(Some((self.have, cause))),
            }
            self.have += 1;
        }
        if self.have == of.entries { State::Again(of) } else { State::Entries(of) }
    }

    /// How often the page changed while it was read.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// The entries, once there is no next piece; none before.
    pub fn into_entries(self) -> Vec<Entry> {
        if self.state == State::Done { self.entries } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{SubsystemType, tests::entry};

    /// A page with as many entries, told apart by their ports.
    fn page(generation: u64, entries: u16) -> Vec<u8> {
        let mut bytes = Header { generation, entries: entries.into() }.encode().to_vec();
        (1..=entries).for_each(|port| bytes.extend(entry(SubsystemType::Nvme, "192.0.2.1", port).encode()));
        bytes
    }

    /// Reads with commands of `piece_bytes`; `page_at` is the page at the time of each.
    fn read(
        piece_bytes: usize,
        mut page_at: impl FnMut(usize) -> Vec<u8>,
    ) -> Result<(Vec<Entry>, u32, usize), NotRead> {
        let mut reader = Reader::new(piece_bytes);
        let mut commands = 0;
        while let Some(piece) = reader.next_piece() {
            assert!(piece.len_bytes > 0 && piece.len_bytes <= piece_bytes.max(ENTRY_BYTES));
            let page = page_at(commands);
            commands += 1;
            let mut bytes = page.get(sw_mem::index(piece.offset_bytes)..).unwrap_or_default().to_vec();
            bytes.resize(piece.len_bytes, 0);
            reader.came(&bytes)?;
        }
        let restarts = reader.restarts();
        Ok((reader.into_entries(), restarts, commands))
    }

    #[test]
    fn a_page_is_read_piece_by_piece_and_its_header_twice() {
        for (entries, piece, commands) in [(0, 4096, 1), (1, 4096, 3), (4, 4096, 3), (5, 4096, 4), (3, 1, 5)] {
            let (got, restarts, used) = read(piece, |_| page(9, entries)).unwrap();
            let ports: Vec<String> = got.iter().map(|entry| entry.service.clone()).collect();
            assert_eq!(ports, (1..=entries).map(|port| port.to_string()).collect::<Vec<_>>());
            assert_eq!((restarts, used), (0, commands), "{entries} entries in pieces of {piece}");
        }
    }

    #[test]
    fn a_page_that_changed_is_read_again() {
        // It grows between the entries and the header; then it loses all.
        let (got, restarts, _) = read(4096, |command| if command < 2 { page(1, 3) } else { page(2, 6) }).unwrap();
        assert_eq!((got.len(), restarts), (6, 1));
        let (got, restarts, _) = read(4096, |command| if command < 2 { page(1, 3) } else { page(2, 0) }).unwrap();
        assert_eq!((got.len(), restarts), (0, 1));
    }

    #[test]
    fn a_page_that_never_rests_is_given_up() {
        let mut commands = 0;
        let told = read(4096, |command| {
            commands = command + 1;
            page(command as u64, 1)
        });
        assert_eq!((told, commands), (Err(NotRead::Restless), 2 * (RESTARTS_MAX as usize + 1) + 1));
    }

    #[test]
    fn an_entry_that_is_none_counts_if_the_page_stayed() {
        let broken = |generation| {
            let mut page = page(generation, 6);
            page[HEADER_BYTES + 4 * ENTRY_BYTES + 256] = b'x';
            page
        };
        assert!(matches!(read(4096, |_| broken(1)), Err(NotRead::Entry(4, _))));
        let (got, restarts, _) = read(4096, |command| if command < 3 { broken(1) } else { page(2, 2) }).unwrap();
        assert_eq!((got.len(), restarts), (2, 1));
    }

    #[test]
    fn too_little_is_no_page() {
        let mut reader = Reader::new(4096);
        assert!(matches!(reader.came(&[0; 1023]), Err(NotRead::Header(_))));
        let mut reader = Reader::new(4096);
        reader.came(&page(1, 2)[..HEADER_BYTES]).unwrap();
        reader.came(&[]).unwrap();
        assert!(matches!(reader.came(&page(1, 2)[..HEADER_BYTES]), Err(NotRead::Entry(0, _))));
        assert_eq!(reader.into_entries(), []);
    }
}
