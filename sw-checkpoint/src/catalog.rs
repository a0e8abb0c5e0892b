//! All files of one checkpoint, and proof that they belong together.

use thiserror::Error;

use crate::header::{Header, TensorInfo};
use crate::quote::Quoted;
use crate::shard_index::ShardIndex;

/// Most shards of a checkpoint: what `model-00001-of-00002.safetensors` can number.
pub const SHARD_COUNT_MAX: usize = 99_999;

/// Why the shards and their index do not belong together.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CatalogError {
    /// The index names a shard whose header was not given.
    #[error("shard {} of the index is missing; fetch it, or the index belongs to another checkpoint", Quoted(.file))]
    MissingShard {
        /// Its file name.
        file: String,
    },
    /// A header was given for a file that the index does not name, or twice.
    #[error("shard {} is not one that the index names, or was given twice", Quoted(.file))]
    UnexpectedShard {
        /// Its file name.
        file: String,
    },
    /// The index names a tensor that its shard does not hold.
    #[error("index places tensor {} in {}, which does not hold it; shard and index are of different versions, fetch both again", Quoted(.tensor), Quoted(.file))]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// The shard.
        file: String,
    },
    /// A shard holds a tensor that the index does not name.
    #[error("tensor {} in {} is not in the index; shard and index are of different versions, fetch both again", Quoted(.tensor), Quoted(.file))]
    UnlistedTensor {
        /// The tensor.
        tensor: String,
        /// The shard.
        file: String,
    },
    /// A shard holds a tensor that the index places in another shard.
    #[error("tensor {} is in {}, but the index places it in {}; which copy is meant is a guess, fetch the checkpoint again", Quoted(.tensor), Quoted(.file), Quoted(.index_file))]
    WrongShard {
        /// The tensor.
        tensor: String,
        /// The shard that holds it.
        file: String,
        /// The shard that the index names.
        index_file: String,
    },
}

impl CatalogError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::MissingShard { .. } => "missing-shard",
            Self::UnexpectedShard { .. } => "unexpected-shard",
            Self::MissingTensor { .. } => "missing-tensor",
            Self::UnlistedTensor { .. } => "unlisted-tensor",
            Self::WrongShard { .. } => "wrong-shard",
        }
    }
}

/// One file of a checkpoint.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Its file name, without directory.
    pub name: String,
    /// Its checked header.
    pub header: Header,
}

/// The files of a checkpoint. Each tensor name occurs once in all of them.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// Sorted by name.
    shards: Vec<Shard>,
    /// `metadata.total_size` of the index.
    claimed_len_bytes: Option<u64>,
}

impl Catalog {
    /// A checkpoint that is one file.
    #[must_use]
    pub fn single(name: String, header: Header) -> Self {
        Self { shards: vec![Shard { name, header }], claimed_len_bytes: None }
    }

    /// A sharded checkpoint: `shards` are the files that `index` names, in any order.
    ///
    /// # Errors
    /// Every [`CatalogError`]: index and shards must name the same tensors in the same files.
    pub fn sharded(index: &ShardIndex, mut shards: Vec<Shard>) -> Result<Self, CatalogError> {
        shards.sort_by(|a, b| a.name.cmp(&b.name));
        let mut named = index.files().iter();
        for shard in &shards {
            match named.next() {
                Some(file) if *file == shard.name => {}
                Some(file) if *file < shard.name => return Err(CatalogError::MissingShard { file: file.clone() }),
                _ => return Err(CatalogError::UnexpectedShard { file: shard.name.clone() }),
            }
        }
        if let Some(file) = named.next() {
            return Err(CatalogError::MissingShard { file: file.clone() });
        }
        for shard in &shards {
            for tensor in shard.header.tensors() {
                let file = || shard.name.clone();
                match index.file_of(&tensor.name) {
                    Some(index_file) if index_file == shard.name => {}
                    Some(index_file) => {
                        let index_file = index_file.to_owned();
                        return Err(CatalogError::WrongShard {
                            tensor: tensor.name.to_string(),
                            file: file(),
                            index_file,
                        });
                    }
                    None => {
                        return Err(CatalogError::UnlistedTensor { tensor: tensor.name.to_string(), file: file() });
                    }
                }
            }
        }
        let catalog = Self { shards, claimed_len_bytes: index.total_len_bytes() };
        for (tensor, file) in index.tensors() {
            if catalog.shard(file).is_none_or(|shard| shard.header.get(tensor).is_none()) {
                return Err(CatalogError::MissingTensor { tensor: tensor.to_owned(), file: file.to_owned() });
            }
        }
        Ok(catalog)
    }

    /// The files, sorted by name. Their positions are the `file` numbers of a load plan.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The file called `name`.
    #[must_use]
    pub fn shard(&self, name: &str) -> Option<&Shard> {
        let at = self.shards.binary_search_by(|shard| shard.name.as_str().cmp(name)).ok()?;
        self.shards.get(at)
    }

    /// Every tensor with the position of its file, by file and then by offset.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, &TensorInfo)> {
        let files = self.shards.iter().enumerate();
        files.flat_map(|(file, shard)| shard.header.tensors().iter().map(move |tensor| (file, tensor)))
    }

    /// The tensor called `name`, with the position of its file. One binary search per file.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<(usize, &TensorInfo)> {
        self.shards.iter().enumerate().find_map(|(file, shard)| Some((file, shard.header.get(name)?)))
    }

    /// Bytes of all tensors. Saturates at `u64::MAX`, which no real set of files reaches.
    #[must_use]
    pub fn tensor_len_bytes(&self) -> u64 {
        self.tensors().fold(0, |sum, (_, tensor)| sum.saturating_add(tensor.len_bytes))
    }

    /// What the index claims as `total_size`, in bytes. Not checked: writers disagree on shared tensors.
    #[must_use]
    pub const fn claimed_len_bytes(&self) -> Option<u64> {
        self.claimed_len_bytes
    }
}
