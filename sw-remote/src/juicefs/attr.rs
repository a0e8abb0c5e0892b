//! What is known of a file: the record of its attributes.

use sha2::{Digest, Sha256};
use sw_engine::{
    Version,
    seam::{Entry, EntryKind},
};

/// Bytes of the shortest record: those of volumes of old have no parent (JuiceFS 1.4.1 `pkg/meta/interface.go`, `Attr.Unmarshal`).
const RECORD_BYTES: usize = 63;

/// What a name stands for; the numbers are those of its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Link,
    Other,
}

impl Kind {
    pub(super) fn of(number: u8) -> Self {
        match number {
            1 => Self::File,
            2 => Self::Directory,
            3 => Self::Link,
            _ => Self::Other,
        }
    }
}

/// Attributes, as far as they say what the bytes are. The time of the last access is none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attr {
    pub(super) kind: Kind,
    pub(super) len: u64,
    /// Nanoseconds since 1970.
    modified: i128,
    /// The same of the last change of attributes, those above included; nobody sets it.
    changed: i128,
}

impl Attr {
    /// `None` if the bytes are no record.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let record = bytes.get(..RECORD_BYTES)?;
        let word = |at: usize, len: usize| {
            record.iter().skip(at).take(len).fold(0u64, |word, byte| word << 8 | u64::from(*byte))
        };
        let time = |at| i128::from(word(at, 8).cast_signed()) * 1_000_000_000 + i128::from(word(at + 8, 4));
        let kind = Kind::of(record.get(1)? >> 4);
        Some(Self { kind, len: word(51, 8), modified: time(23), changed: time(35) })
    }

    /// What tells two states of a file apart: its number, and its times.
    pub(super) fn version(&self, volume: u64, inode: u64) -> Version {
        let hash = Sha256::new().chain_update(inode.to_le_bytes()).chain_update(self.changed.to_le_bytes()).finalize();
        let word = hash.iter().take(8).fold(0, |word, byte| word << 8 | u64::from(*byte));
        Version { identity: (volume, word), stamp: self.modified }
    }

    /// It as it is listed.
    pub(super) fn entry(&self, name: String, volume: u64, inode: u64) -> Entry {
        let plain = |kind| Entry { name: String::new(), kind, len: 0, version: Version::default() };
        let entry = match self.kind {
            Kind::File => Entry { len: self.len, version: self.version(volume, inode), ..plain(EntryKind::Object) },
            Kind::Directory => plain(EntryKind::Directory),
            Kind::Link | Kind::Other => plain(EntryKind::Other),
        };
        Entry { name, ..entry }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_and_what_is_shorter_is_none() {
        // As `Attr.Marshal` of JuiceFS writes a file of 5 bytes, mode 0644, changed 3 ns after it was modified.
        let mut bytes = vec![0, 0x11, 0xa4, 0, 0, 0, 7, 0, 0, 0, 8];
        for (seconds, nanos) in [(1u64, 1u32), (2, 2), (2, 5)] {
            bytes.extend(seconds.to_be_bytes());
            bytes.extend(nanos.to_be_bytes());
        }
        bytes.extend(1u32.to_be_bytes());
        bytes.extend(5u64.to_be_bytes());
        bytes.extend(0u32.to_be_bytes());
        assert_eq!(Attr::of(&bytes[..62]), None);
        let attr = Attr::of(&bytes).unwrap();
        bytes.extend(1u64.to_be_bytes());
        assert_eq!(Attr::of(&bytes), Some(attr), "with a parent");
        assert_eq!(attr, Attr { kind: Kind::File, len: 5, modified: 2_000_000_002, changed: 2_000_000_005 });
        bytes[18] = 9;
        assert_eq!(Attr::of(&bytes), Some(attr), "the time of access does not count");
        let later = Attr { changed: attr.changed + 1, ..attr };
        assert_ne!(later.version(1, 1), attr.version(1, 1));
        assert_ne!(attr.version(1, 2), attr.version(1, 1));
    }
}
