//! The files of a safetensors checkpoint, and proof that they belong together.

use std::collections::{BTreeMap, HashMap, btree_map::Entry};

use serde::Deserialize;
use thiserror::Error;

use crate::catalog::{Catalog, CatalogBuilder, CatalogFile, Chunk, Format, Held, LayoutFault, Tensor};
use crate::dtype::Dtype;
use crate::header::{Header, TensorInfo};
use crate::quote::Quoted;
use crate::shard_index::ShardIndex;

/// Most shards of a checkpoint: what `model-00001-of-00002.safetensors` can number.
pub const SHARD_COUNT_MAX: usize = 99_999;

/// Key of a shard's metadata that tells where in the whole its tensors begin.
pub(crate) const SHARDING_KEY: &str = "DCP_SHARDING_INFO";

/// Its text, parsed: by tensor.
type ShardingInfo = HashMap<String, ShardingEntry>;

#[derive(Deserialize)]
struct ShardingEntry {
    saved_offsets: Vec<u64>,
}

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
    /// `DCP_SHARDING_INFO` of a shard is not readable, or does not name one of its tensors.
    #[error("{SHARDING_KEY} of {}: {reason}; write the checkpoint again", Quoted(.file))]
    ShardingInfo {
        /// The shard.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// Chunks of a tensor do not fit each other.
    #[error(transparent)]
    Layout(#[from] LayoutFault),
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
            Self::ShardingInfo { .. } => "sharding-info",
            Self::Layout(fault) => fault.code(),
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

impl Catalog {
    /// A checkpoint that is one safetensors file.
    #[must_use]
    pub fn single(name: String, header: Header) -> Self {
        // A header has proven more than a catalog asks for: its names are unique and its tensors lie in its file.
        Self::safetensors(vec![Shard { name, header }], None)
    }

    /// A sharded safetensors checkpoint: `shards` are the files that `index` names, in any order.
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
                let (file, tensor) = (shard.name.clone(), tensor.name.to_string());
                match index.file_of(&tensor) {
                    Some(index_file) if index_file == file => {}
                    Some(index_file) => {
                        let index_file = index_file.to_owned();
                        return Err(CatalogError::WrongShard { tensor, file, index_file });
                    }
                    None => return Err(CatalogError::UnlistedTensor { tensor, file }),
                }
            }
        }
        for (tensor, file) in index.tensors() {
            let at = shards.binary_search_by(|shard| shard.name.as_str().cmp(file));
            let shard = at.ok().and_then(|at| shards.get(at));
            if shard.is_none_or(|shard| shard.header.get(tensor).is_none()) {
                return Err(CatalogError::MissingTensor { tensor: tensor.to_owned(), file: file.to_owned() });
            }
        }
        Ok(Self::safetensors(shards, index.total_len_bytes()))
    }

    /// The shards of a distributed checkpoint that was exported without consolidation: each tells, in `DCP_SHARDING_INFO`
    /// of its metadata, where in the whole its tensors begin (`torch/distributed/checkpoint/_hf_utils.py`). The shape of
    /// the whole is what the shards reach, as its own reader does.
    ///
    /// # Errors
    /// `ShardingInfo`, `Layout`.
    pub fn distributed(shards: Vec<Shard>) -> Result<Self, CatalogError> {
        let mut files = Vec::with_capacity(shards.len());
        let mut tensors: BTreeMap<Box<str>, (Dtype, Vec<u64>, Vec<Chunk>)> = BTreeMap::new();
        for (file, Shard { name, header }) in shards.into_iter().enumerate() {
            let wrong = |reason: String| CatalogError::ShardingInfo { file: name.clone(), reason };
            let info = header.metadata().get(SHARDING_KEY).map(|text| serde_json::from_str::<ShardingInfo>(text));
            let info = info.transpose().map_err(|cause| wrong(cause.to_string()))?;
            let (len_bytes, metadata) = (header.span().file_len_bytes(), header.metadata().clone());
            for tensor in header.into_tensors() {
                let offsets = match &info {
                    None => vec![0; tensor.shape.len()],
                    Some(info) => match info.get(&*tensor.name) {
                        Some(entry) if entry.saved_offsets.len() == tensor.shape.len() => entry.saved_offsets.clone(),
                        _ => return Err(wrong(format!("it has no offsets for tensor {}", Quoted(&tensor.name)))),
                    },
                };
                let ends = offsets.iter().zip(&tensor.shape).map(|(at, len)| at.saturating_add(*len)).collect();
                let TensorInfo { name, dtype, shape, file_offset, len_bytes } = tensor;
                let chunk = Chunk { file, file_offset, len_bytes, offsets: offsets.into(), sizes: shape };
                match tensors.entry(name) {
                    Entry::Vacant(vacant) => drop(vacant.insert((dtype, ends, vec![chunk]))),
                    Entry::Occupied(mut known) => {
                        let (same, whole, chunks) = known.get_mut();
                        if *same != dtype || whole.len() != ends.len() {
                            return Err(wrong(format!(
                                "tensor {} has another type or rank in another shard",
                                Quoted(known.key())
                            )));
                        }
                        whole.iter_mut().zip(ends).for_each(|(whole, end)| *whole = end.max(*whole));
                        chunks.push(chunk);
                    }
                }
            }
            files.push(CatalogFile { name, len_bytes, metadata });
        }
        let mut builder = CatalogBuilder::new(Format::SafetensorsDcp, files);
        builder.writer("torch.distributed.checkpoint HuggingFaceStorageWriter");
        for (name, (dtype, shape, chunks)) in tensors {
            builder.chunked(name, dtype, shape.into(), chunks)?;
        }
        Ok(builder.finish()?)
    }

    /// `shards` name each tensor once: the callers have proven it.
    fn safetensors(shards: Vec<Shard>, claim: Option<u64>) -> Self {
        let mut tensors = Vec::new();
        let mut files = Vec::with_capacity(shards.len());
        for (file, Shard { name, header }) in shards.into_iter().enumerate() {
            let len_bytes = header.span().file_len_bytes();
            files.push(CatalogFile { name, len_bytes, metadata: header.metadata().clone() });
            tensors.extend(header.into_tensors().into_iter().map(|info| {
                let TensorInfo { name, dtype, shape, file_offset, len_bytes } = info;
                let offsets = vec![0; shape.len()].into();
                let chunk = Chunk { file, file_offset, len_bytes, offsets, sizes: shape.clone() };
                Tensor { name, dtype, shape, len_bytes, held: Held::Chunks([chunk].into()) }
            }));
        }
        Self::proven(Format::Safetensors, files, tensors, claim)
    }
}
