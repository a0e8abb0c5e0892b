//! The bytes of a namespace: memory, or a file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use sw_engine::{Error, ErrorKind, Verb};

use super::{Access, Backing, MEMORY_BYTES_MAX};

/// Memory is taken in pieces of so many bytes, when they are first written.
const PIECE_BYTES: usize = 256 << 10;
/// Zeroes are written to files in pieces of so many bytes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Extent with answers that are on their way: who writes one of those bytes takes a copy of the piece first, and nobody waits for a host.
type Piece = RwLock<Option<Arc<[u8]>>>;

enum Kind {
    Memory {
        pieces: Box<[Piece]>,
        /// What a piece that was never written reads as.
        zeroes: Arc<[u8]>,
    },
    File(File),
}

/// Bytes of a memory namespace as they were when they were asked for.
pub(super) struct Extent {
    piece: Arc<[u8]>,
    from: usize,
    bytes: usize,
}

impl Extent {
    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.piece.get(self.from..self.from + self.bytes).unwrap_or_default()
    }
}

/// A namespace's blocks. Ranges are checked by the caller; one outside is an error of the operating system's kind, never a panic.
pub(super) struct Disk {
    kind: Kind,
    access: Access,
    blocks: u64,
    block_bytes: u32,
}

impl Disk {
    /// Opens or makes it.
    pub(super) fn open(backing: &Backing, block_bytes: u32) -> Result<Self, Error> {
        let (kind, access, bytes) = match backing {
            Backing::Memory(bytes) if *bytes > MEMORY_BYTES_MAX => {
                let error = Error::new(ErrorKind::TooLarge, Verb::Setup).at("memory namespace");
                return Err(error.detail(format!("{bytes} bytes, at most {MEMORY_BYTES_MAX} are taken")));
            }
            Backing::Memory(bytes) => {
                let pieces = (0..bytes.div_ceil(PIECE_BYTES as u64)).map(|_| RwLock::new(None));
                let (pieces, zeroes) = (pieces.collect(), no_bytes());
                (Kind::Memory { pieces, zeroes }, Access::ReadWrite, *bytes)
            }
            Backing::File(path, access) => {
                let (file, bytes) = open_file(path, *access).map_err(|error| file_error(path, error))?;
                (Kind::File(file), *access, bytes)
            }
        };
        let blocks = bytes / u64::from(block_bytes);
        if blocks == 0 {
            let error = Error::new(ErrorKind::ApiMisuse, Verb::Setup).at("namespace");
            return Err(error.detail(format!("{bytes} bytes are less than a block of {block_bytes}")));
        }
        Ok(Self { kind, access, blocks, block_bytes })
    }

    /// NSZE.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes of a block.
    pub(super) fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Whether it may be written.
    pub(super) fn access(&self) -> Access {
        self.access
    }

    /// Whether written bytes need a flush to last.
    pub(super) fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File(_))
    }

    /// Appends the bytes from `at` on without copying them, if they are memory; whether they are.
    pub(super) fn share(&self, at: u64, bytes: usize, into: &mut Vec<Extent>) -> io::Result<bool> {
        let Kind::Memory { pieces, zeroes } = &self.kind else { return Ok(false) };
        let mut parts = Parts { at, left: bytes };
        while let Some((index, from, bytes)) = parts.next() {
            let piece = pieces.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
            let there = piece.read().unwrap_or_else(PoisonError::into_inner);
            into.push(Extent { piece: Arc::clone(there.as_ref().unwrap_or(zeroes)), from, bytes });
        }
        Ok(true)
    }

    /// Reads from byte `at` on.
    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        match &self.kind {
            Kind::File(file) => file.read_exact_at(into, at),
            Kind::Memory { pieces, .. } => {
                let mut parts = Parts { at, left: into.len() };
                let mut rest = into;
                while let Some((index, from, bytes)) = parts.next() {
                    let (part, behind) = rest.split_at_mut(bytes);
                    rest = behind;
                    let piece = pieces.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
                    match piece.read().unwrap_or_else(PoisonError::into_inner).as_deref() {
                        Some(there) => part.copy_from_slice(there.get(from..from + bytes).unwrap_or_default()),
                        None => part.fill(0),
                    }
                }
                Ok(())
            }
        }
    }

    /// Writes from byte `at` on.
    pub(super) fn write(&self, at: u64, from: &[u8]) -> io::Result<()> {
        match &self.kind {
            Kind::File(file) => file.write_all_at(from, at),
            Kind::Memory { pieces, .. } => {
                let mut parts = Parts { at, left: from.len() };
                let mut rest = from;
                while let Some((index, to, bytes)) = parts.next() {
                    let (part, behind) = rest.split_at(bytes);
                    rest = behind;
                    let piece = pieces.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
                    let mut piece = piece.write().unwrap_or_else(PoisonError::into_inner);
                    let there = piece.get_or_insert_with(no_bytes);
                    if let Some(there) = Arc::make_mut(there).get_mut(to..to + bytes) {
                        there.copy_from_slice(part);
                    }
                }
                Ok(())
            }
        }
    }

    /// Makes `bytes` from byte `at` on read as zeroes; whole pieces of memory are given back.
    pub(super) fn zero(&self, at: u64, bytes: u64) -> io::Result<()> {
        let mut parts = Parts { at, left: usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)? };
        match &self.kind {
            Kind::File(file) => {
                let (mut at, mut left) = (at, parts.left);
                while left > 0 {
                    let part = ZEROES.get(..left.min(ZEROES.len())).unwrap_or(&ZEROES);
                    file.write_all_at(part, at)?;
                    (at, left) = (at + part.len() as u64, left - part.len());
                }
            }
            Kind::Memory { pieces, .. } => {
                while let Some((index, from, bytes)) = parts.next() {
                    let piece = pieces.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
                    let mut piece = piece.write().unwrap_or_else(PoisonError::into_inner);
                    if bytes == PIECE_BYTES {
                        *piece = None;
                    } else if let Some(there) = piece.as_mut()
                        && let Some(there) = Arc::make_mut(there).get_mut(from..from + bytes)
                    {
                        there.fill(0);
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes what was written last.
    pub(super) fn flush(&self) -> io::Result<()> {
        match &self.kind {
            Kind::File(file) if self.access == Access::ReadWrite => file.sync_data(),
            _ => Ok(()),
        }
    }
}

/// A piece that nothing was written to.
fn no_bytes() -> Arc<[u8]> {
    vec![0; PIECE_BYTES].into()
}

/// The parts of a range that lie in one piece each: its index, the first byte in it, how many.
struct Parts {
    at: u64,
    left: usize,
}

impl Parts {
    fn next(&mut self) -> Option<(usize, usize, usize)> {
        if self.left == 0 {
            return None;
        }
        // The remainder is below the bytes of a piece.
        let from = usize::try_from(self.at % PIECE_BYTES as u64).unwrap_or(0);
        let index = usize::try_from(self.at / PIECE_BYTES as u64).unwrap_or(usize::MAX);
        let bytes = self.left.min(PIECE_BYTES - from);
        (self.at, self.left) = (self.at + bytes as u64, self.left - bytes);
        Some((index, from, bytes))
    }
}

/// The file and its length. A block device's length is where its end is; its metadata says 0.
fn open_file(path: &Path, access: Access) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).write(access == Access::ReadWrite).open(path)?;
    let bytes = file.seek(SeekFrom::End(0))?;
    Ok((file, bytes))
}

fn file_error(path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::IsADirectory => ErrorKind::WrongKind,
        _ => ErrorKind::Io,
    };
    let code = error.raw_os_error().unwrap_or(0);
    Error::new(kind, Verb::Open).at(path.display().to_string()).with_code(code).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_at_first_and_keeps_what_is_written_across_pieces() {
        let disk = Disk::open(&Backing::Memory(3 * PIECE_BYTES as u64 + 100), 512).unwrap();
        assert_eq!(disk.blocks(), 3 * 512);
        let bytes: Vec<u8> = (0..2 * PIECE_BYTES).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let at = PIECE_BYTES as u64 / 2;
        disk.write(at, &bytes).unwrap();
        let mut back = vec![1; bytes.len() + 1024];
        disk.read(at - 512, &mut back).unwrap();
        assert!(back[..512].iter().chain(&back[512 + bytes.len()..]).all(|byte| *byte == 0));
        assert!(back[512..512 + bytes.len()] == bytes);
        disk.zero(at + 512, PIECE_BYTES as u64 + 512).unwrap();
        disk.read(at, &mut back[..bytes.len()]).unwrap();
        let gone = 512..512 + PIECE_BYTES + 512;
        assert!(back[gone.clone()].iter().all(|byte| *byte == 0));
        assert!(back[..512] == bytes[..512] && back[gone.end..bytes.len()] == bytes[gone.end..]);
        assert!(disk.read(1 << 40, &mut back).is_err() && disk.write(1 << 40, &back).is_err());
    }

    #[test]
    fn what_is_shared_stays_as_it_was_whatever_is_written_meanwhile() {
        let disk = Disk::open(&Backing::Memory(3 * PIECE_BYTES as u64), 512).unwrap();
        let at = PIECE_BYTES as u64 - 512;
        disk.write(at, &[1; 512]).unwrap();
        let shared = || {
            let mut parts = Vec::new();
            assert!(disk.share(at, 1024, &mut parts).unwrap());
            parts
        };
        let bytes = |parts: &[Extent]| parts.iter().flat_map(|part| part.bytes().to_vec()).collect::<Vec<u8>>();
        // The second piece was never written.
        let before = shared();
        disk.write(at, &[2; 1024]).unwrap();
        let between = shared();
        disk.zero(at, 512).unwrap();
        disk.zero(PIECE_BYTES as u64, PIECE_BYTES as u64).unwrap();
        assert_eq!(bytes(&before), [vec![1; 512], vec![0; 512]].concat());
        assert_eq!(bytes(&between), vec![2; 1024]);
        assert_eq!(bytes(&shared()), vec![0; 1024]);
        assert!(disk.share(1 << 40, 512, &mut Vec::new()).is_err());
    }
}
