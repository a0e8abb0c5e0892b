//! The seam between whoever knows where samples lie and whoever reads them.
//!
//! ```text
//!   index file, or a scan in memory ──► Samples::locate(numbers) ──► Place { object, extent, row } ──► loader reads and decodes
//!                                       Samples::object(number)  ──► ObjectEntry: open it, hold it against what was indexed
//! ```

use std::{fmt, str::FromStr};

use straightway::{Error, ErrorKind, Object, Verb, Version};

use crate::formats::Extent;

/// What an object holds, and so how a sample is got out of the bytes of its extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Format {
    /// A file that is one sample.
    Raw,
    /// Members of a tar archive that have one key.
    Tar,
    /// A record of a TFRecord file: the payload alone.
    TfRecord,
    /// A sample of an MDS shard.
    Mds,
    /// An item along the first axis of an npy file.
    Npy,
    /// A member of an npz archive.
    Npz,
    /// A row of a Parquet file.
    Parquet,
    /// A document of a Megatron token file.
    Tokens,
    /// A row of a field of a Milvus collection.
    Milvus,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Raw,
        Self::Tar,
        Self::TfRecord,
        Self::Mds,
        Self::Npy,
        Self::Npz,
        Self::Parquet,
        Self::Tokens,
        Self::Milvus,
    ];

    /// Its name in indexes and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Tar => "tar",
            Self::TfRecord => "tfrecord",
            Self::Mds => "mds",
            Self::Npy => "npy",
            Self::Npz => "npz",
            Self::Parquet => "parquet",
            Self::Tokens => "tokens",
            Self::Milvus => "milvus",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    /// # Errors
    /// `ApiMisuse`, with the names that there are.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
            Error::new(ErrorKind::ApiMisuse, Verb::Parse)
                .at(text)
                .detail("no format has this name")
                .remedy(format!("use one of {}", Self::ALL.map(Self::name).join(", ")))
        })
    }
}

/// An object that samples lie in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its address, in the form that every command takes.
    pub uri: String,
    /// Bytes it had when it was indexed.
    pub len: u64,
    /// Its version when it was indexed, as [`version_text`] makes it: changed means an error, never a mix. Empty: not known,
    /// and not compared.
    pub version: String,
    /// What it holds.
    pub format: Format,
    /// What must be known of it to decode its blocks, as the format's text: of Parquet, and of Milvus, a
    /// [`ColumnCoding`](crate::formats::ColumnCoding). Empty where there is nothing to know.
    pub coding: String,
}

impl ObjectEntry {
    /// Whether an object that was opened under [`ObjectEntry::uri`] is still what was indexed.
    ///
    /// # Errors
    /// `Changed` with both lengths or both versions.
    pub fn check(&self, object: &Object) -> Result<(), Error> {
        self.check_facts(object.len(), object.version())
    }

    /// The same for a length and a version that a stat told.
    ///
    /// # Errors
    /// As [`ObjectEntry::check`].
    pub fn check_facts(&self, len: u64, version: Version) -> Result<(), Error> {
        let detail = match self.difference(len, version) {
            None => return Ok(()),
            Some(Difference::Len) => format!("it had {} bytes when it was indexed, and has {len} now", self.len),
            Some(Difference::Version(now)) => {
                format!("it was version {} when it was indexed, and is version {now} now", self.version)
            }
        };
        Err(Error::new(ErrorKind::Changed, Verb::Open)
            .at(self.uri.as_str())
            .detail(detail)
            .remedy("index it again: straightway dataset index --update"))
    }

    /// What is no longer as it was indexed, of an object that has this length and version now.
    pub(crate) fn difference(&self, len: u64, version: Version) -> Option<Difference> {
        let version = version_text(version);
        if len != self.len {
            Some(Difference::Len)
        } else if version != self.version && !self.version.is_empty() {
            Some(Difference::Version(version))
        } else {
            None
        }
    }
}

/// See [`ObjectEntry::difference`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// It has another length.
    Len,
    /// It has another version: this one.
    Version(String),
}

/// A version as text: the modification time, and which file it is on its file system (a generation and an identity for other
/// stores). The number of the device is not in it, because the same file has another one on each machine that mounts it.
pub fn version_text(version: Version) -> String {
    format!("{:x}-{:x}", version.stamp, version.identity.1)
}

/// The version that a text of [`version_text`]'s tells, without what is not in it.
pub(crate) fn version_of_text(text: &str) -> Option<Version> {
    let (stamp, identity) = text.rsplit_once('-')?;
    let stamp = u128::from_str_radix(stamp, 16).ok()?.cast_signed();
    Some(Version { identity: (0, u64::from_str_radix(identity, 16).ok()?), stamp })
}

/// Where one sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its object, a number for [`Samples::object`].
    pub object: u32,
    /// The bytes to read: the sample itself, or, with a `row`, the block that it must be decoded from.
    pub extent: Extent,
    /// Which item of the decoded block; `None` where the bytes are the sample.
    pub row: Option<u32>,
    /// CRC-32C of the extent's bytes, where one is known.
    pub crc32c: Option<u32>,
}

/// What a sample is called and consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// Its name in its object: a path without extension, or its number there.
    pub key: String,
    /// Which of the sources of the table it came from.
    pub group: u32,
    /// Its named parts, in the order of their bytes; none where it is one thing.
    pub parts: Vec<Part>,
}

/// A named part of a sample: a field of WebDataset, a column of MDS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name: `jpg`, `seg.png`.
    pub name: String,
    /// Its bytes, from the start of the sample's extent.
    pub extent: Extent,
}

/// A table of samples. Asked by many threads at once.
pub trait Samples: Send + Sync {
    /// Why a place could not be told.
    type Error: std::error::Error + Send + Sync + 'static;

    /// How many samples there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many objects they lie in. Loose files are an object each: there may be as many as there are samples.
    fn object_count(&self) -> u32;

    /// One of the objects. *Blocking* where the table is not in memory.
    ///
    /// # Errors
    /// A number that does not exist; what reading the table returns.
    fn object(&self, number: u32) -> Result<ObjectEntry, Self::Error>;

    /// Where each of `samples` is, appended to `places` in that order. *Blocking* where the table is not in memory.
    ///
    /// # Errors
    /// A number that does not exist; what reading the table returns. `places` is as before then.
    fn locate(&self, samples: &[u64], places: &mut Vec<Place>) -> Result<(), Self::Error>;

    /// What each of `samples` is called and consists of, appended to `labels` in that order. *Blocking* where the table is not in
    /// memory.
    ///
    /// # Errors
    /// As [`Samples::locate`].
    fn labels(&self, samples: &[u64], labels: &mut Vec<Label>) -> Result<(), Self::Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_its_text_as_far_as_it_is_in_it() {
        for (stamp, identity) in [(0, 0), (1_796_120_000_000_000_000, u64::MAX), (-5, 7)] {
            let text = version_text(Version { identity: (9, identity), stamp });
            assert_eq!(version_of_text(&text), Some(Version { identity: (0, identity), stamp }), "{text}");
        }
        assert_eq!([version_of_text(""), version_of_text("1"), version_of_text("x-1")], [None; 3]);
    }
}
