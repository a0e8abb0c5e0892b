//! The seam between whoever knows where samples lie and whoever reads them.
//!
//! ```text
//!   index file, or a scan in memory ──► Samples::locate(numbers) ──► Place { object, extent, row } ──► loader reads and decodes
//! ```

use straightway::Version;

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
}

/// A version as text: the modification time, and which file it is on its file system (a generation and an identity for other
/// stores). The number of the device is not in it, because the same file has another one on each machine that mounts it.
pub fn version_text(version: Version) -> String {
    format!("{:x}-{:x}", version.stamp, version.identity.1)
}

/// Where one sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its object, by position in [`Samples::objects`].
    pub object: u32,
    /// The bytes to read: the sample itself, or, with a `row`, the block that it must be decoded from.
    pub extent: Extent,
    /// Which item of the decoded block; `None` where the bytes are the sample.
    pub row: Option<u32>,
    /// CRC-32C of the extent's bytes, where one is known.
    pub crc32c: Option<u32>,
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

    /// The objects that they lie in.
    fn objects(&self) -> &[ObjectEntry];

    /// Where each of `samples` is, appended to `places` in that order. *Blocking* where the table is not in memory.
    ///
    /// # Errors
    /// A number that does not exist; what reading the table returns. `places` is as before then.
    fn locate(&self, samples: &[u64], places: &mut Vec<Place>) -> Result<(), Self::Error>;
}
