//! What a cache is made with.

use std::{path::PathBuf, time::Duration};

use crate::home::{SIZES, Sizes};

/// When bytes of a block are compared with its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Verify {
    /// Before their first use in a process, and never again.
    #[default]
    First,
    /// Before every use: each byte is read twice.
    Always,
}

/// What a cache is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Its directory, made if it is not there. Nobody else writes in it.
    pub dir: PathBuf,
    /// Bytes for blocks, at least one block and at most 16 TiB; 0: as many as it has, 16 GiB for a new one. Fewer than it has let go of
    /// what has no place. The index comes on top, about 100 bytes a block.
    pub bytes: u64,
    /// When checksums are compared.
    pub verify: Verify,
    /// Bytes of a block: a power of two, 4 KiB to 64 MiB; 0: as it has them, 1 MiB for a new one. Another size than before begins anew.
    pub block_bytes: u32,
    /// Bytes of memory for blocks on their way to the disk, at least two blocks. Default 64 MiB.
    pub fill_bytes: u64,
    /// Longest that objects are kept of which nothing is read and nothing comes, at least 1 s; `None`, the default: for as long as there is
    /// place. Pinned ones stay. It is the owner's rule.
    pub max_age: Option<Duration>,
    /// That is of objects with so many bytes, or more, only. Default 0: of all.
    pub max_age_above: u64,
}

impl CacheConfig {
    /// In a directory, with so many bytes.
    pub fn new(dir: impl Into<PathBuf>, bytes: u64) -> Self {
        let (verify, block_bytes, fill_bytes) = (Verify::First, 0, 64 << 20);
        Self { dir: dir.into(), bytes, verify, block_bytes, fill_bytes, max_age: None, max_age_above: 0 }
    }

    /// What is wrong with it.
    ///
    /// # Errors
    /// In a sentence.
    pub fn check(&self) -> Result<(), String> {
        let settled = self.settled(SIZES);
        let Self { bytes, block_bytes, fill_bytes, .. } = &settled;
        if !block_bytes.is_power_of_two() || !(4 << 10..=64 << 20).contains(block_bytes) {
            return Err(format!("blocks of {block_bytes} bytes in a cache; use a power of two from 4 KiB to 64 MiB"));
        }
        if !(u64::from(*block_bytes)..=1 << 44).contains(bytes) || settled.slots().is_none() {
            return Err(format!("{bytes} bytes for a cache; use at least one block of {block_bytes}, at most 16 TiB"));
        }
        if *fill_bytes < 2 * u64::from(*block_bytes) {
            return Err(format!("{fill_bytes} bytes for fills of a cache; use at least two blocks of {block_bytes}"));
        }
        match self.max_age {
            Some(age) if age < Duration::from_secs(1) => {
                Err(format!("{age:?} as the longest age of what a cache keeps; use at least 1 s"))
            }
            None if self.max_age_above > 0 => {
                Err("a size of objects whose age is bounded, and no bound; say the longest age too".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// With what it leaves open.
    pub(crate) fn settled(&self, sizes: Sizes) -> Self {
        let or = |said, other| if said == 0 { other } else { said };
        let bytes = or(self.bytes, sizes.bytes);
        Self {
            bytes,
            block_bytes: if self.block_bytes == 0 { sizes.block_bytes } else { self.block_bytes },
            ..self.clone()
        }
    }

    pub(crate) fn slots(&self) -> Option<u32> {
        u32::try_from(self.bytes / u64::from(self.block_bytes)).ok()
    }
}
