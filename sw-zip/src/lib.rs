//! Where the members of a zip archive lie, so that their bytes can be read from where they are: arrays of `.npz` files, storages of
//! PyTorch checkpoints.
//!
//! Source: PKWARE APPNOTE 6.3.10, §4.3 "General Format of a .ZIP file", §4.4 "Explanation of fields", §4.5.3 "Zip64 Extended
//! Information Extra Field".
//!
//! ```text
//!   last 64 KiB ──► end record ──► [zip64 record] ──► directory, by pieces ──► each member's own header ──► Member
//! ```
//!
//! [`ZipScan`] does no I/O: it says which bytes it needs, is given them, and tells what it found. It keeps a piece of the directory
//! and the members in it, however many there are. [`records`] are for readers with stricter rules of their own. Nothing is
//! decompressed here.

#![forbid(unsafe_code)]

pub mod records;
mod scan;

pub use scan::ZipScan;

/// Bytes of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte, from the start of the archive.
    pub offset: u64,
    /// How many.
    pub len: u64,
}

/// How a member's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As they are.
    Stored,
    /// Deflated, RFC 1951, without a head of zlib or gzip.
    Deflated,
}

/// A member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, as bytes: old archives do not say of which encoding. Not a path to be trusted.
    pub name: Vec<u8>,
    /// How its bytes are stored.
    pub method: Method,
    /// Where its own header begins in the archive; its bytes are behind that.
    pub header: u64,
    /// Its bytes in the archive, as they are stored there.
    pub content: Extent,
    /// Bytes that it has when they are no longer compressed. For a stored member, the length of `content`.
    pub len: u64,
    /// CRC-32 (that of zlib) of those bytes.
    pub crc32: u32,
}

/// What is wrong with an archive, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wrong} at byte {offset}")]
pub struct ZipError {
    /// Where in the archive it was noticed.
    pub offset: u64,
    /// What.
    pub wrong: Wrong,
}

/// Kinds of [`ZipError`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// There is no end record.
    #[error("the file has no end record of a zip archive; it is none, was cut, or is still being written")]
    NoEnd,
    /// A record that cannot be read.
    #[error("{what} cannot be read; the archive is damaged")]
    Record {
        /// Which.
        what: &'static str,
    },
    /// Something lies where it cannot.
    #[error("{what} lies outside of the archive; the archive is damaged, or was cut in front")]
    Outside {
        /// What.
        what: &'static str,
    },
    /// A member's own header is not that of the directory.
    #[error("the header of a member is not the one that the directory describes ({what}); the archive is damaged")]
    OtherMember {
        /// What differs.
        what: &'static str,
    },
    /// The directory has another number of members than the end record says.
    #[error("the directory has {here} members and the end record says {end}; the archive is damaged")]
    Count {
        /// In the directory.
        here: u64,
        /// In the end record.
        end: u64,
    },
    /// A part of the format that is not supported.
    #[error("{what} is not supported; write the archive without")]
    Unsupported {
        /// The part.
        what: &'static str,
    },
    /// A method of compression that is not supported.
    #[error("method {method} of compression is not supported; write the archive stored or deflated")]
    Method {
        /// Its number in the format.
        method: u16,
    },
    /// A read brought nothing although the archive is longer.
    #[error("a read brought no bytes; the archive became shorter while it was read")]
    Shrank,
}
