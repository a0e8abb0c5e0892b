//! What a checkpoint holds, whatever its format: files, tensors, and where the bytes of each tensor are.
//!
//! ```text
//!   Header(s), ShardIndex ─┐
//!   torch.save pickle ─────┼─► CatalogBuilder ──► Catalog { files, tensors, leaves }
//!   DCP .metadata ─────────┘     (checks)            tensor = dtype, shape, chunks
//!                                                    chunk  = file, offset, length; box of the tensor
//! ```
//!
//! Invariants, proven by [`CatalogBuilder`]:
//! - each name occurs once;
//! - a chunk is a box of its tensor, lies inside its file, and has the length of its box, dense and row-major;
//! - the chunks of a tensor cover it exactly, without overlap; a tensor for which that cannot be had is there all the
//!   same, [`Held::Refused`] with the reason, so that it can be shown, and cannot be planned.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::boxes::{self, Span};
use crate::dtype::Dtype;
use crate::header::RANK_MAX;
use crate::quote::Quoted;

/// Who laid the files out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// Safetensors, single or sharded with an index.
    Safetensors,
    /// Safetensors shards of a distributed checkpoint, with `DCP_SHARDING_INFO` in their metadata.
    SafetensorsDcp,
    /// A zip file of `torch.save`.
    Torch,
    /// A directory of `torch.distributed.checkpoint`.
    Dcp,
    /// A directory of Megatron's `torch_dist` back end: DCP with `metadata.json` and `common.pt`.
    Megatron,
}

impl Format {
    /// Its name for people and machines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::SafetensorsDcp => "safetensors-dcp",
            Self::Torch => "torch",
            Self::Dcp => "dcp",
            Self::Megatron => "megatron-torch_dist",
        }
    }
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogFile {
    /// Its path below the checkpoint's directory; the file's own name for a checkpoint that is one file.
    pub name: String,
    /// Its length in bytes when its head was read.
    pub len_bytes: u64,
    /// What its format keeps for people, such as the `__metadata__` of safetensors.
    pub metadata: BTreeMap<String, String>,
}

impl CatalogFile {
    /// A file without metadata.
    #[must_use]
    pub fn new(name: impl Into<String>, len_bytes: u64) -> Self {
        Self { name: name.into(), len_bytes, metadata: BTreeMap::new() }
    }
}

/// A contiguous range of a file that holds a box of a tensor, dense and row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Position of the file in [`Catalog::files`].
    pub file: usize,
    /// First byte, from the start of the file.
    pub file_offset: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// First element of the box in each dimension of the tensor.
    pub offsets: Box<[u64]>,
    /// Elements of the box in each dimension.
    pub sizes: Box<[u64]>,
}

/// Whether a tensor's bytes can be had as ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// In these chunks, which cover it; none for a tensor without elements.
    Chunks(Box<[Chunk]>),
    /// Not: the reason, as a phrase.
    Refused(Box<str>),
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name, as it is in the file: any string, escape it before printing.
    pub name: Box<str>,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar; at most [`RANK_MAX`].
    pub shape: Box<[u64]>,
    /// Length in bytes; 0 if a dimension is 0.
    pub len_bytes: u64,
    /// Where its bytes are.
    pub held: Held,
}

impl Tensor {
    /// Its chunks; none if it has no elements or was refused.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        match &self.held {
            Held::Chunks(chunks) => chunks,
            Held::Refused(_) => &[],
        }
    }

    /// Position of the file that has its first chunk.
    #[must_use]
    pub fn file(&self) -> Option<usize> {
        self.chunks().first().map(|chunk| chunk.file)
    }
}

/// A value that is not a tensor.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum LeafValue {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number that fits 64 bits.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Text(String),
    /// Anything else: what it is, in a few words.
    Other(String),
    /// An object that `torch.save` wrote into a range of a file.
    Stored {
        /// Position of the file in [`Catalog::files`].
        file: usize,
        /// First byte.
        file_offset: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
}

/// A named value that is not a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    /// Its name.
    pub name: String,
    /// What it is.
    pub value: LeafValue,
}

/// Why files and tensors do not make a checkpoint.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutFault {
    /// A name occurs twice.
    #[error("{} occurs twice in the checkpoint, so which one is meant is a guess; write it again with unique names", Quoted(.name))]
    Duplicate {
        /// The name.
        name: String,
    },
    /// More dimensions than we accept.
    #[error("tensor {} has {rank} dimensions, the limit is {RANK_MAX}; no framework can hold it, so the file is damaged", Quoted(.tensor))]
    RankOverLimit {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        rank: usize,
    },
    /// Dtype and shape have no length in bytes.
    #[error("tensor {} of {dtype} {shape:?} has no length in whole bytes that fits 64 bits; the file is damaged", Quoted(.tensor))]
    Size {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A chunk reaches past its file.
    #[error(
        "tensor {} needs bytes {file_offset} to {end} of {}, which has {file_len_bytes}; the copy is incomplete, so fetch it again",
        Quoted(.tensor), Quoted(.file)
    )]
    PastEnd {
        /// The tensor.
        tensor: String,
        /// The file.
        file: String,
        /// First byte.
        file_offset: u64,
        /// One past the last byte; saturated.
        end: u64,
        /// Length of the file.
        file_len_bytes: u64,
    },
    /// A chunk has another rank than its tensor, leaves it, or has another length than its box.
    #[error("a chunk of tensor {} at {offsets:?} of {sizes:?} in {len_bytes} bytes does not fit {dtype} {shape:?}; the checkpoint is damaged", Quoted(.tensor))]
    BadChunk {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
        /// First element of the chunk.
        offsets: Vec<u64>,
        /// Elements of the chunk.
        sizes: Vec<u64>,
        /// Bytes of the chunk.
        len_bytes: u64,
    },
    /// Two chunks of a tensor share elements.
    #[error("two chunks of tensor {} overlap at {offsets:?}; which one is meant is a guess, so write the checkpoint again", Quoted(.tensor))]
    Overlap {
        /// The tensor.
        tensor: String,
        /// First element of the second chunk.
        offsets: Vec<u64>,
    },
}

impl LayoutFault {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Duplicate { .. } => "duplicate-name",
            Self::RankOverLimit { .. } => "rank-over-limit",
            Self::Size { .. } => "size-overflow",
            Self::PastEnd { .. } => "truncated",
            Self::BadChunk { .. } => "bad-chunk",
            Self::Overlap { .. } => "overlap",
        }
    }
}

/// The files and tensors of a checkpoint. Each tensor name occurs once.
#[derive(Clone, Debug)]
pub struct Catalog {
    format: Format,
    files: Vec<CatalogFile>,
    tensors: Vec<Tensor>,
    /// Indices into `tensors`, sorted by name.
    by_name: Vec<u32>,
    leaves: Vec<Leaf>,
    writer: Option<String>,
    claimed_len_bytes: Option<u64>,
}

impl Catalog {
    /// From tensors that satisfy the invariants of the module already; names are not compared again.
    pub(crate) fn proven(
        format: Format,
        files: Vec<CatalogFile>,
        tensors: Vec<Tensor>,
        claimed_len_bytes: Option<u64>,
    ) -> Self {
        let by_name = sorted_by_name(&tensors);
        Self { format, files, tensors, by_name, leaves: Vec::new(), writer: None, claimed_len_bytes }
    }

    /// Who laid the files out.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The files. Their positions are the `file` numbers of chunks and of a load plan.
    #[must_use]
    pub fn files(&self) -> &[CatalogFile] {
        &self.files
    }

    /// The tensors: by file and then by offset for safetensors, in the order of the checkpoint's own list otherwise.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The values that are no tensors.
    #[must_use]
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// Position of the tensor called `name`.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        let at = self.by_name.binary_search_by(|&i| self.tensors[i as usize].name.as_ref().cmp(name)).ok()?;
        Some(self.by_name[at] as usize)
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(self.position(name)?)
    }

    /// Bytes of all tensors; shared bytes count for each. Saturates at `u64::MAX`.
    #[must_use]
    pub fn tensor_len_bytes(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.len_bytes))
    }

    /// Which software wrote it, if the files tell.
    #[must_use]
    pub fn writer(&self) -> Option<&str> {
        self.writer.as_deref()
    }

    /// What an index claims as `total_size`, in bytes. Not checked: writers disagree on shared tensors.
    #[must_use]
    pub const fn claimed_len_bytes(&self) -> Option<u64> {
        self.claimed_len_bytes
    }
}

/// A catalog in the making. Each format's reader fills one.
#[derive(Clone, Debug)]
pub struct CatalogBuilder {
    catalog: Catalog,
}

impl CatalogBuilder {
    /// An empty one, with the files that chunks may name.
    #[must_use]
    pub const fn new(format: Format, files: Vec<CatalogFile>) -> Self {
        let catalog = Catalog {
            format,
            files,
            tensors: Vec::new(),
            by_name: Vec::new(),
            leaves: Vec::new(),
            writer: None,
            claimed_len_bytes: None,
        };
        Self { catalog }
    }

    /// Notes which software wrote the checkpoint.
    pub fn writer(&mut self, writer: impl Into<String>) {
        self.catalog.writer = Some(writer.into());
    }

    /// Notes what an index claims as the sum of all tensors' bytes.
    pub const fn claim(&mut self, len_bytes: Option<u64>) {
        self.catalog.claimed_len_bytes = len_bytes;
    }

    /// Adds a value that is no tensor.
    pub fn leaf(&mut self, name: impl Into<String>, value: LeafValue) {
        self.catalog.leaves.push(Leaf { name: name.into(), value });
    }

    /// Adds a tensor in one chunk, which is all of it: `file_offset` counts from the start of the file.
    ///
    /// # Errors
    /// [`LayoutFault`].
    pub fn whole(
        &mut self,
        name: Box<str>,
        dtype: Dtype,
        shape: Box<[u64]>,
        (file, file_offset): (usize, u64),
    ) -> Result<(), LayoutFault> {
        let len_bytes = self.checked_len(&name, dtype, &shape)?;
        let chunk = Chunk { file, file_offset, len_bytes, offsets: vec![0; shape.len()].into(), sizes: shape.clone() };
        self.check_place(&name, &chunk)?;
        // A tensor without elements has no bytes to place, but keeps the file that named it.
        self.push(name, dtype, shape, len_bytes, Held::Chunks([chunk].into()));
        Ok(())
    }

    /// Adds a tensor whose bytes cannot be had as ranges.
    ///
    /// # Errors
    /// [`LayoutFault`] for a shape that no tensor can have.
    pub fn refused(
        &mut self,
        name: Box<str>,
        dtype: Dtype,
        shape: Box<[u64]>,
        reason: impl Into<Box<str>>,
    ) -> Result<(), LayoutFault> {
        let len_bytes = self.checked_len(&name, dtype, &shape)?;
        self.push(name, dtype, shape, len_bytes, Held::Refused(reason.into()));
        Ok(())
    }

    /// Adds a tensor in chunks, in any order. If they leave elements out, the tensor is refused, not the checkpoint.
    ///
    /// # Errors
    /// [`LayoutFault`].
    pub fn chunked(
        &mut self,
        name: Box<str>,
        dtype: Dtype,
        shape: Box<[u64]>,
        mut chunks: Vec<Chunk>,
    ) -> Result<(), LayoutFault> {
        let len_bytes = self.checked_len(&name, dtype, &shape)?;
        chunks.retain(|chunk| chunk.len_bytes > 0 || len_bytes == 0);
        for chunk in &chunks {
            let fits = boxes::inside(&shape, &chunk.offsets, &chunk.sizes)
                && dtype.len_bytes(&chunk.sizes) == Ok(chunk.len_bytes);
            if !fits {
                return Err(LayoutFault::BadChunk {
                    tensor: name.into(),
                    dtype,
                    shape: shape.into(),
                    offsets: chunk.offsets.to_vec(),
                    sizes: chunk.sizes.to_vec(),
                    len_bytes: chunk.len_bytes,
                });
            }
            self.check_place(&name, chunk)?;
        }
        chunks.sort_by(|a, b| a.offsets.cmp(&b.offsets));
        let spans: Vec<Span<'_>> = chunks.iter().map(|chunk| (&*chunk.offsets, &*chunk.sizes)).collect();
        if let Some(second) = boxes::overlap(&spans) {
            return Err(LayoutFault::Overlap { tensor: name.into(), offsets: chunks[second].offsets.to_vec() });
        }
        let have = chunks.iter().fold(0_u64, |sum, chunk| sum.saturating_add(chunk.len_bytes));
        let held = if have == len_bytes {
            Held::Chunks(chunks.into())
        } else {
            Held::Refused(format!("its chunks hold {have} of {len_bytes} bytes; a part of it was never saved").into())
        };
        self.push(name, dtype, shape, len_bytes, held);
        Ok(())
    }

    /// The catalog, if no name occurs twice.
    ///
    /// # Errors
    /// `Duplicate`.
    pub fn finish(self) -> Result<Catalog, LayoutFault> {
        let Catalog { tensors, .. } = &self.catalog;
        let by_name = sorted_by_name(tensors);
        let twice = by_name.windows(2).find(|pair| tensors[pair[0] as usize].name == tensors[pair[1] as usize].name);
        if let Some(pair) = twice {
            return Err(LayoutFault::Duplicate { name: tensors[pair[0] as usize].name.to_string() });
        }
        Ok(Catalog { by_name, ..self.catalog })
    }

    fn push(&mut self, name: Box<str>, dtype: Dtype, shape: Box<[u64]>, len_bytes: u64, held: Held) {
        self.catalog.tensors.push(Tensor { name, dtype, shape, len_bytes, held });
    }

    fn checked_len(&self, name: &str, dtype: Dtype, shape: &[u64]) -> Result<u64, LayoutFault> {
        if shape.len() > RANK_MAX {
            return Err(LayoutFault::RankOverLimit { tensor: name.to_owned(), rank: shape.len() });
        }
        dtype.len_bytes(shape).map_err(|_| LayoutFault::Size { tensor: name.to_owned(), dtype, shape: shape.to_vec() })
    }

    fn check_place(&self, name: &str, chunk: &Chunk) -> Result<(), LayoutFault> {
        let (file, file_len_bytes) =
            self.catalog.files.get(chunk.file).map_or(("", 0), |file| (file.name.as_str(), file.len_bytes));
        let end = chunk.file_offset.saturating_add(chunk.len_bytes);
        if end > file_len_bytes {
            return Err(LayoutFault::PastEnd {
                tensor: name.to_owned(),
                file: file.to_owned(),
                file_offset: chunk.file_offset,
                end,
                file_len_bytes,
            });
        }
        Ok(())
    }
}

fn sorted_by_name(tensors: &[Tensor]) -> Vec<u32> {
    let mut by_name: Vec<u32> = (0..).take(tensors.len()).collect();
    by_name.sort_unstable_by(|&a, &b| tensors[a as usize].name.cmp(&tensors[b as usize].name));
    by_name
}
