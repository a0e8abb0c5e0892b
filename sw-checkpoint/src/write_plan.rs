//! Heads and offsets of the files to write.
//!
//! Pure layout: which file a tensor goes to, at which byte, and the bytes of each head. Whoever writes puts `head` at
//! offset 0 and each tensor at its `file_offset`, then syncs and renames; the index is written last.
//!
//! The JSON text is padded with spaces until the data section starts on a multiple of `data_align_bytes`. Upstream pads to 8;
//! any amount is legal, since whitespace after JSON is. Tensors lie in upstream's order, descending [`Dtype`] and then name,
//! so that each starts at a multiple of its element size.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use thiserror::Error;

use crate::dtype::{Dtype, SizeFault};
use crate::header::{HEADER_LEN_MAX_BYTES, LENGTH_LEN_BYTES, RANK_MAX};
use crate::header_json::METADATA_KEY;
use crate::quote::Quoted;
use crate::shard_index::check_shard_name;
use crate::shards::SHARD_COUNT_MAX;

/// Largest alignment of the data section in bytes.
const DATA_ALIGN_MAX_BYTES: u64 = 1 << 20;

/// Why there is no layout.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    /// Two tensors have one name.
    #[error("tensor {} is given twice; names in a checkpoint are unique", Quoted(.tensor))]
    Duplicate {
        /// The name.
        tensor: String,
    },
    /// A tensor has the reserved name.
    #[error("a tensor cannot be called `__metadata__`, the format reserves that key; rename it")]
    ReservedName,
    /// More dimensions than a reader accepts.
    #[error("tensor {} has {rank} dimensions, over the limit of {RANK_MAX}; reshape it", Quoted(.tensor))]
    RankOverLimit {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        rank: usize,
    },
    /// The size of a tensor, or of all, overflows 64 bits.
    #[error("size of tensor {} overflows 64 bits, alone or added to those before it; check its shape", Quoted(.tensor))]
    SizeOverflow {
        /// The tensor.
        tensor: String,
    },
    /// A sub-byte tensor that does not end on a byte.
    #[error("tensor {} of {dtype} has {bits} bits, not a whole number of bytes; pad its last dimension", Quoted(.tensor))]
    PartialByte {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its size in bits.
        bits: u64,
    },
    /// An element type that safetensors does not have.
    #[error("tensor {} has dtype {dtype}, which safetensors does not have; leave it out, or cast it", Quoted(.tensor))]
    NotInFormat {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
    },
    /// The head of a file is longer than the format allows.
    #[error("header of {} would have {header_len_bytes} bytes, over the format's limit of {HEADER_LEN_MAX_BYTES}; use smaller shards or less metadata", Quoted(.file))]
    HeaderOverLimit {
        /// The file.
        file: String,
        /// The length it would have.
        header_len_bytes: u64,
    },
    /// More shards than five digits number.
    #[error("{shard_count} shards are needed, over the limit of {SHARD_COUNT_MAX}; raise the shard size")]
    TooManyShards {
        /// Shards needed.
        shard_count: usize,
    },
    /// The alignment is not a power of two in range.
    #[error(
        "data alignment of {align_bytes} bytes is not a power of two from 8 to {DATA_ALIGN_MAX_BYTES}; the default is 4096"
    )]
    BadAlign {
        /// The value given.
        align_bytes: u64,
    },
    /// The shard size is zero.
    #[error("shard size is 0 bytes; leave it out for a single file")]
    ZeroShard,
    /// Something that is no tensor, in a format that has only those.
    #[error("{} is no tensor, which safetensors cannot hold; put it in the metadata or save as dcp", Quoted(.name))]
    NotATensor {
        /// Its name.
        name: String,
    },
    /// A part of a larger tensor, in a format that has only whole ones.
    #[error("tensor {} is a part of a larger one, which safetensors cannot say; save it whole or as dcp", Quoted(.tensor))]
    Slice {
        /// The tensor.
        tensor: String,
    },
    /// An element type that the format does not have.
    #[error("tensor {} has elements of {dtype}, which {format} does not have; save as safetensors", Quoted(.tensor))]
    NoSuchDtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// The format.
        format: &'static str,
    },
    /// The stem does not make a plain file name.
    #[error("stem {} makes no plain file name: {reason}; use a name such as `model`", Quoted(.stem))]
    BadStem {
        /// The stem given.
        stem: String,
        /// What is wrong with the file name made from it.
        reason: &'static str,
    },
}

impl LayoutError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Duplicate { .. } => "layout-duplicate",
            Self::ReservedName => "layout-reserved-name",
            Self::RankOverLimit { .. } => "layout-rank-over-limit",
            Self::SizeOverflow { .. } => "layout-size-overflow",
            Self::PartialByte { .. } => "layout-partial-byte",
            Self::NotInFormat { .. } => "layout-not-in-format",
            Self::HeaderOverLimit { .. } => "layout-header-over-limit",
            Self::TooManyShards { .. } => "layout-too-many-shards",
            Self::BadAlign { .. } => "layout-bad-align",
            Self::ZeroShard => "layout-zero-shard",
            Self::BadStem { .. } => "layout-bad-stem",
            Self::NotATensor { .. } => "layout-not-a-tensor",
            Self::Slice { .. } => "layout-slice",
            Self::NoSuchDtype { .. } => "layout-no-such-dtype",
        }
    }
}

/// A tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name: any string but `__metadata__`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; at most [`RANK_MAX`].
    pub shape: Vec<u64>,
}

/// How to lay out a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutOptions {
    /// The data section of each file starts on a multiple of this many bytes: a power of two from 8 to 1 MiB. Default 4096.
    pub data_align_bytes: u64,
    /// Most tensor bytes in one file; `None`, the default, for a single file. A tensor is never torn: a longer one gets a file for itself.
    pub shard_len_max_bytes: Option<u64>,
    /// File names start with it. Default `model`.
    pub stem: String,
    /// Free-form strings that every file carries.
    pub metadata: BTreeMap<String, String>,
}

impl Default for LayoutOptions {
    fn default() -> Self {
        Self { data_align_bytes: 4096, shard_len_max_bytes: None, stem: "model".to_owned(), metadata: BTreeMap::new() }
    }
}

/// Where a tensor goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedTensor {
    /// Position in the list that the plan was made from.
    pub spec: usize,
    /// First byte, from the start of the file.
    pub file_offset: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// One file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLayout {
    /// Its name, without directory.
    pub name: String,
    /// Its first bytes: length field and padded JSON. The data section follows.
    pub head: Vec<u8>,
    /// Its tensors, by offset, without hole.
    pub tensors: Vec<PlacedTensor>,
    /// Length of the whole file in bytes.
    pub len_bytes: u64,
}

/// All files of a checkpoint to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritePlan {
    /// The files, in the order of their numbers; at least one.
    pub files: Vec<FileLayout>,
    /// Name and bytes of the index; `None` for a single file.
    pub index: Option<(String, Vec<u8>)>,
}

impl WritePlan {
    /// Lays out `specs`. With a shard size, tensors fill the shards in the order of the list, so that a model's layers stay
    /// together; within a file they lie in the format's order. One shard is a single file without index.
    ///
    /// # Errors
    /// Every [`LayoutError`].
    pub fn new(specs: &[TensorSpec], options: &LayoutOptions) -> Result<Self, LayoutError> {
        validate(options)?;
        let lens = checked_lens(specs)?;
        let groups = groups(&lens, options.shard_len_max_bytes);
        let shard_count = groups.len();
        if shard_count > SHARD_COUNT_MAX {
            return Err(LayoutError::TooManyShards { shard_count });
        }
        let stem = &options.stem;
        let mut files = Vec::with_capacity(shard_count);
        for (at, group) in groups.into_iter().enumerate() {
            let name = match shard_count {
                1 => format!("{stem}.safetensors"),
                _ => format!("{stem}-{:05}-of-{shard_count:05}.safetensors", at + 1),
            };
            files.push(lay_out(name, group, specs, &lens, options)?);
        }
        let index = (shard_count > 1).then(|| {
            let mut entries = Vec::with_capacity(specs.len());
            for file in &files {
                entries
                    .extend(file.tensors.iter().map(|tensor| (specs[tensor.spec].name.as_str(), file.name.as_str())));
            }
            (format!("{stem}.safetensors.index.json"), index_text(entries, lens.iter().sum()))
        });
        Ok(Self { files, index })
    }
}

fn validate(options: &LayoutOptions) -> Result<(), LayoutError> {
    let align_bytes = options.data_align_bytes;
    if !align_bytes.is_power_of_two() || !(8..=DATA_ALIGN_MAX_BYTES).contains(&align_bytes) {
        return Err(LayoutError::BadAlign { align_bytes });
    }
    if options.shard_len_max_bytes == Some(0) {
        return Err(LayoutError::ZeroShard);
    }
    if options.stem.is_empty() {
        return Err(LayoutError::BadStem { stem: String::new(), reason: "the stem is empty" });
    }
    // The longest name made from the stem decides.
    check_shard_name(&format!("{}-00001-of-00002.safetensors.index.json.safetensors", options.stem))
        .map_err(|reason| LayoutError::BadStem { stem: options.stem.clone(), reason })
}

/// Length of each tensor; names, ranks and the sum are checked too.
fn checked_lens(specs: &[TensorSpec]) -> Result<Vec<u64>, LayoutError> {
    let mut names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(LayoutError::Duplicate { tensor: pair[0].to_owned() });
    }
    if names.binary_search(&METADATA_KEY).is_ok() {
        return Err(LayoutError::ReservedName);
    }
    // The sum leaves room for any head, so that no file offset can overflow later.
    let mut sum: u64 = LENGTH_LEN_BYTES + HEADER_LEN_MAX_BYTES + DATA_ALIGN_MAX_BYTES;
    let mut lens = Vec::with_capacity(specs.len());
    for spec in specs {
        if !spec.dtype.is_safetensors() {
            return Err(LayoutError::NotInFormat { tensor: spec.name.clone(), dtype: spec.dtype });
        }
        let len = tensor_len(spec)?;
        sum = sum.checked_add(len).ok_or_else(|| LayoutError::SizeOverflow { tensor: spec.name.clone() })?;
        lens.push(len);
    }
    Ok(lens)
}

/// Length of a tensor in bytes; its rank is checked too.
pub(crate) fn tensor_len(spec: &TensorSpec) -> Result<u64, LayoutError> {
    let tensor = || spec.name.clone();
    if spec.shape.len() > RANK_MAX {
        return Err(LayoutError::RankOverLimit { tensor: tensor(), rank: spec.shape.len() });
    }
    spec.dtype.len_bytes(&spec.shape).map_err(|fault| match fault {
        SizeFault::Overflow => LayoutError::SizeOverflow { tensor: tensor() },
        SizeFault::PartialByte { bits } => LayoutError::PartialByte { tensor: tensor(), dtype: spec.dtype, bits },
    })
}

/// Positions of the tensors of each file: filled in order, a file closed when the next tensor does not fit.
pub(crate) fn groups(lens: &[u64], max: Option<u64>) -> Vec<Vec<usize>> {
    let mut groups = vec![Vec::new()];
    let mut filled = 0;
    for (at, &len) in lens.iter().enumerate() {
        if max.is_some_and(|max| filled > 0 && filled + len > max) {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += len;
        if let Some(group) = groups.last_mut() {
            group.push(at);
        }
    }
    groups
}

fn lay_out(
    name: String,
    mut group: Vec<usize>,
    specs: &[TensorSpec],
    lens: &[u64],
    options: &LayoutOptions,
) -> Result<FileLayout, LayoutError> {
    group.sort_by(|&a, &b| {
        let by_dtype = specs[b].dtype.cmp(&specs[a].dtype);
        by_dtype.then_with(|| specs[a].name.cmp(&specs[b].name))
    });
    let mut json = String::from("{");
    if !options.metadata.is_empty() {
        let strings = options.metadata.iter().map(|(key, value)| format!("{}:{}", quoted(key), quoted(value)));
        let _ = write!(json, "\"{METADATA_KEY}\":{{{}}}", strings.collect::<Vec<_>>().join(","));
    }
    let mut begin = 0;
    let mut tensors = Vec::with_capacity(group.len());
    for at in group {
        let TensorSpec { name, dtype, shape } = &specs[at];
        let end = begin + lens[at];
        let comma = if json.len() > 1 { "," } else { "" };
        let dims = shape.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        // Writing to a String does not fail.
        let _ = write!(
            json,
            "{comma}{}:{{\"dtype\":\"{dtype}\",\"shape\":[{dims}],\"data_offsets\":[{begin},{end}]}}",
            quoted(name)
        );
        tensors.push(PlacedTensor { spec: at, file_offset: begin, len_bytes: lens[at] });
        begin = end;
    }
    json.push('}');
    let data_offset = (LENGTH_LEN_BYTES + json.len() as u64).next_multiple_of(options.data_align_bytes);
    let header_len_bytes = data_offset - LENGTH_LEN_BYTES;
    if header_len_bytes > HEADER_LEN_MAX_BYTES {
        return Err(LayoutError::HeaderOverLimit { file: name, header_len_bytes });
    }
    let mut head = header_len_bytes.to_le_bytes().to_vec();
    head.extend_from_slice(json.as_bytes());
    head.extend((head.len() as u64..data_offset).map(|_| b' '));
    for tensor in &mut tensors {
        tensor.file_offset += data_offset;
    }
    Ok(FileLayout { name, head, tensors, len_bytes: data_offset + begin })
}

/// The index, as `huggingface_hub` writes it: two spaces of indent, sorted names. `entries` are tensors with their files.
pub(crate) fn index_text(mut entries: Vec<(&str, &str)>, total: u64) -> Vec<u8> {
    entries.sort_unstable();
    let mut text = format!("{{\n  \"metadata\": {{\n    \"total_size\": {total}\n  }},\n  \"weight_map\": {{");
    for (at, (tensor, file)) in entries.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(text, "{comma}\n    {}: {}", quoted(tensor), quoted(file));
    }
    text.push_str("\n  }\n}\n");
    text.into_bytes()
}

/// `text` as a JSON string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
