//! Arrays of numpy's `.npz` archives: a zip archive of `.npy` files.
//!
//! Source: numpy `lib/_npyio_impl.py`, `savez` and `savez_compressed`: a member for each array, stored or deflated.

use std::collections::VecDeque;

use sw_zip::{Member, Method, ZipScan};

use super::{Array, Damaged, Extent, FormatError, NpyScan, Scan, Wrong};

/// What the name of an array's member ends in.
const ENDING: &str = ".npy";

/// An array in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpzArray {
    /// Its name, without `.npy`.
    pub name: String,
    /// Its elements.
    pub content: NpzContent,
    /// Its member's bytes in the archive: an npy file, as it is or deflated.
    pub member: Extent,
    /// The same with its own header before it: the block that [`crate::decode::rows`] takes for a deflated array.
    pub block: Extent,
    /// CRC-32 (that of zlib) of that npy file.
    pub crc32: u32,
}

/// Where the elements of an array are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NpzContent {
    /// In the archive as they are, as `savez` writes them.
    Stored(Array),
    /// In a deflated npy file of so many bytes, as `savez_compressed` writes it: see [`crate::decode`].
    Deflated(u64),
}

/// Walks an archive. A member that cannot be read is told by [`Scan::damaged`], and the walk goes on.
#[derive(Debug)]
pub struct NpzScan {
    zip: ZipScan,
    /// The array whose header is read, and its scan, which counts from the start of the member.
    array: Option<(Member, NpyScan)>,
    found: VecDeque<NpzArray>,
    damaged: VecDeque<Damaged>,
    passed: u64,
}

impl NpzScan {
    /// Begins with an archive of so many bytes.
    ///
    /// # Errors
    /// `Archive` if it is too short for one.
    pub fn new(file_len: u64) -> Result<Self, FormatError> {
        let zip = ZipScan::new(file_len)?;
        Ok(Self { zip, array: None, found: VecDeque::new(), damaged: VecDeque::new(), passed: 0 })
    }

    /// Members so far that are no npy files.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Takes what the archive has for us. A piece of its directory may have many bad members; it has one good one at a time.
    fn members(&mut self) {
        while let Some(next) = self.zip.next() {
            match next {
                Ok(member) => self.member(member),
                Err(error) => {
                    let error = FormatError::from(error);
                    self.damaged.push_back(Damaged { extent: Extent { offset: error.offset, len: 0 }, error });
                }
            }
        }
    }

    fn member(&mut self, member: Member) {
        if !member.name.ends_with(ENDING.as_bytes()) {
            self.passed += 1;
            return;
        }
        match member.method {
            Method::Deflated => self.found(&member, NpzContent::Deflated(member.len)),
            Method::Stored => match NpyScan::new(member.len) {
                Ok(scan) => self.array = Some((member, scan)),
                Err(error) => self.bad(&member, error),
            },
        }
    }

    fn found(&mut self, member: &Member, content: NpzContent) {
        let name = String::from_utf8_lossy(&member.name);
        let name = name.strip_suffix(ENDING).unwrap_or(&name).to_owned();
        let content_end = member.content.offset.saturating_add(member.content.len);
        let block = Extent { offset: member.header, len: content_end.saturating_sub(member.header) };
        self.found.push_back(NpzArray { name, content, member: extent(member), block, crc32: member.crc32 });
    }

    fn bad(&mut self, member: &Member, mut error: FormatError) {
        error.offset += member.content.offset;
        self.damaged.push_back(Damaged { extent: extent(member), error });
    }
}

fn extent(member: &Member) -> Extent {
    Extent { offset: member.content.offset, len: member.content.len }
}

impl From<sw_zip::ZipError> for FormatError {
    fn from(error: sw_zip::ZipError) -> Self {
        Self { offset: error.offset, wrong: Wrong::Archive(error.wrong) }
    }
}

impl Scan for NpzScan {
    type Found = NpzArray;

    fn need(&self) -> Option<Extent> {
        match &self.array {
            // Within the member, and so within the archive.
            Some((member, scan)) => {
                scan.need().map(|need| Extent { offset: need.offset + member.content.offset, len: need.len })
            }
            None => self.zip.need().map(|need| Extent { offset: need.offset, len: need.len }),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let Some((member, mut scan)) = self.array.take() else {
            self.zip.push(bytes)?;
            self.members();
            return Ok(());
        };
        match scan.push(bytes) {
            Err(error) => self.bad(&member, error),
            Ok(()) => match scan.next() {
                Some(mut array) => {
                    array.content.offset += member.content.offset;
                    self.found(&member, NpzContent::Stored(array));
                }
                None => self.array = Some((member, scan)),
            },
        }
        Ok(())
    }

    fn next(&mut self) -> Option<NpzArray> {
        self.found.pop_front()
    }

    fn damaged(&mut self) -> Option<Damaged> {
        self.damaged.pop_front()
    }
}
