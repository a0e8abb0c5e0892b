//! The header of one safetensors file: found, parsed, and proven to describe the whole file.
//!
//! ```text
//!   0        8            8+N                                   file length
//!   ├─ u64 N ┼─ N B JSON ─┼─ data: tensors without hole or overlap ─┤
//! ```
//!
//! Source: safetensors README "Format"; `safetensors/src/tensor.rs` (`read_metadata`, `Metadata::validate`). Where we are
//! stricter than upstream 0.8.0, the format text asks for it: duplicate names are refused (upstream keeps the last),
//! `"__metadata__": null` is refused, and an entry must be an object (upstream also takes an array).
//! Where the format is silent we do as upstream does: unknown keys inside an entry are skipped, any string is a name.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::dtype::{Dtype, SizeFault};
use crate::header_json::{self, RawTensor};
use crate::quote::Quoted;

/// Bytes of the length field at the start of a file.
pub const LENGTH_LEN_BYTES: u64 = 8;

/// Longest header that the format allows, in bytes (`MAX_HEADER_SIZE` in `safetensors/src/tensor.rs`).
pub const HEADER_LEN_MAX_BYTES: u64 = 100_000_000;

/// Most dimensions of a tensor. The format has no limit; `NumPy` 2 stops at 64 (`NPY_MAXDIMS`) and torch at 64.
pub const RANK_MAX: usize = 64;

/// Why a file head is not a safetensors header of that file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The file cannot even hold the length field.
    #[error(
        "file has {file_len_bytes} bytes, a safetensors file has at least 10; the copy is incomplete or this is another format"
    )]
    TooShort {
        /// Length of the file.
        file_len_bytes: u64,
    },
    /// The claimed header length is over the format's limit.
    #[error(
        "header length at byte 0 is {header_len_bytes}, over the format's limit of {HEADER_LEN_MAX_BYTES}; this is not a safetensors file, or its first bytes are damaged"
    )]
    LengthOverLimit {
        /// Claimed length.
        header_len_bytes: u64,
    },
    /// The claimed header is longer than the file.
    #[error(
        "header length at byte 0 is {header_len_bytes}, but only {room_len_bytes} bytes follow it; the copy is incomplete or this is not a safetensors file"
    )]
    LengthPastEnd {
        /// Claimed length.
        header_len_bytes: u64,
        /// Bytes of the file after the length field.
        room_len_bytes: u64,
    },
    /// The caller handed over another number of header bytes than the length field says.
    #[error(
        "{given_len_bytes} header bytes were given, the file's header has {header_len_bytes}; hand over exactly those"
    )]
    WrongSlice {
        /// Bytes given.
        given_len_bytes: u64,
        /// Bytes needed.
        header_len_bytes: u64,
    },
    /// The file delivered no more bytes although its length promised them.
    #[error(
        "file ended at byte {file_offset} while its header was read, after its length was taken as {file_len_bytes}; it shrank while it was read, so read it again when its writer is done"
    )]
    Shrank {
        /// Where the file ended.
        file_offset: u64,
        /// Length that was promised.
        file_len_bytes: u64,
    },
    /// The header is not text.
    #[error("header is not UTF-8 at byte {file_offset}; the file is damaged or is another format")]
    NotUtf8 {
        /// First byte that is not UTF-8.
        file_offset: u64,
    },
    /// The header does not start with `{`.
    #[error("header {} at byte 8, the format demands `{{`; this is another format, or the file is damaged", starts_with(*.found))]
    NoBrace {
        /// The byte found; `None` for an empty header.
        found: Option<u8>,
    },
    /// The header is not JSON, or a value has the wrong type.
    #[error("header json is wrong at byte {file_offset}{}; write the file again with a conforming writer", in_value_of(.within.as_deref()))]
    Json {
        /// Where the parser stopped.
        file_offset: u64,
        /// The tensor or metadata key in whose value it stopped.
        within: Option<String>,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A name or key occurs twice.
    #[error("{} occurs twice in the header, so which one is meant is a guess; write the file again with unique names", Quoted(.name))]
    Duplicate {
        /// The name: of a tensor, a metadata key, or `__metadata__` itself.
        name: String,
    },
    /// A key of a tensor's entry occurs twice.
    #[error("tensor {} has `{field}` twice in the header; write the file again", Quoted(.tensor))]
    DuplicateField {
        /// The tensor.
        tensor: String,
        /// `dtype`, `shape` or `data_offsets`.
        field: &'static str,
    },
    /// A key of a tensor's entry is missing.
    #[error("tensor {} has no `{field}` in the header; write the file again", Quoted(.tensor))]
    MissingField {
        /// The tensor.
        tensor: String,
        /// `dtype`, `shape` or `data_offsets`.
        field: &'static str,
    },
    /// An element type that this version does not know.
    #[error("tensor {} has dtype {}, which is not one that safetensors 0.8 defines; a newer straightway may know it, or convert the file", Quoted(.tensor), Quoted(.dtype))]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// The name found.
        dtype: String,
    },
    /// More dimensions than we accept.
    #[error("tensor {} has more than {RANK_MAX} dimensions; no framework can hold it, so the file is damaged", Quoted(.tensor))]
    RankOverLimit {
        /// The tensor.
        tensor: String,
    },
    /// A value of `__metadata__` is not a string.
    #[error("metadata {} is not a string; the format allows strings only, so encode the value as one", Quoted(.key))]
    MetadataNotString {
        /// The key.
        key: String,
    },
    /// The element count of a tensor overflows 64 bits.
    #[error("tensor {} of {dtype} has a shape {shape:?} whose size overflows 64 bits; the file is damaged or hostile", Quoted(.tensor))]
    SizeOverflow {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
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
    /// `data_offsets` runs backwards.
    #[error("tensor {} ends at data offset {end} before it begins at {begin}; the file is damaged", Quoted(.tensor))]
    Reversed {
        /// The tensor.
        tensor: String,
        /// Begin, relative to the data section.
        begin: u64,
        /// End, relative to the data section.
        end: u64,
    },
    /// `data_offsets` disagrees with dtype and shape.
    #[error(
        "tensor {} at byte {file_offset} takes {have_len_bytes} bytes by its data_offsets, but {want_len_bytes} by its dtype and shape; the file is damaged",
        Quoted(.tensor)
    )]
    WrongLength {
        /// The tensor.
        tensor: String,
        /// Where it starts in the file.
        file_offset: u64,
        /// Length by `data_offsets`.
        have_len_bytes: u64,
        /// Length by dtype and shape.
        want_len_bytes: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {} and {} overlap at byte {file_offset}; the format forbids it, so write shared tensors once", Quoted(.first), Quoted(.second))]
    Overlap {
        /// The tensor that starts first.
        first: String,
        /// The tensor that starts inside it.
        second: String,
        /// Where the second starts in the file.
        file_offset: u64,
    },
    /// Bytes between two tensors belong to none.
    #[error("{hole_len_bytes} bytes before tensor {} at byte {file_offset} belong to no tensor; the format forbids holes, so write the file again", Quoted(.tensor))]
    Hole {
        /// The tensor after the hole.
        tensor: String,
        /// Where the hole starts in the file.
        file_offset: u64,
        /// Its length.
        hole_len_bytes: u64,
    },
    /// The file ends before its last tensor.
    #[error(
        "file has {file_len_bytes} bytes, its tensors need {need_len_bytes}; the copy is incomplete, so fetch it again"
    )]
    Truncated {
        /// Length of the file.
        file_len_bytes: u64,
        /// Length that the tensors need; `u64::MAX` if it does not fit 64 bits.
        need_len_bytes: u64,
    },
    /// The file goes on after its last tensor.
    #[error(
        "{extra_len_bytes} bytes from byte {file_offset} on follow the last tensor; the format forbids it, so the file is damaged or two were joined"
    )]
    TrailingBytes {
        /// Where they start.
        file_offset: u64,
        /// How many.
        extra_len_bytes: u64,
    },
}

fn starts_with(found: Option<u8>) -> String {
    found.map_or_else(|| "is empty".to_owned(), |byte| format!("starts with byte 0x{byte:02x}"))
}

fn in_value_of(name: Option<&str>) -> String {
    name.map(|name| format!(" (in the value of {})", Quoted(name))).unwrap_or_default()
}

impl HeaderError {
    /// Stable code for machines: lower case, words joined by `-`. A code never changes its meaning.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooShort { .. } => "too-short",
            Self::LengthOverLimit { .. } => "header-length-over-limit",
            Self::LengthPastEnd { .. } => "header-length-past-end",
            Self::WrongSlice { .. } => "wrong-slice",
            Self::Shrank { .. } => "file-shrank",
            Self::NotUtf8 { .. } => "not-utf8",
            Self::NoBrace { .. } => "no-brace",
            Self::Json { .. } => "json",
            Self::Duplicate { .. } => "duplicate-name",
            Self::DuplicateField { .. } => "duplicate-field",
            Self::MissingField { .. } => "missing-field",
            Self::UnknownDtype { .. } => "unknown-dtype",
            Self::RankOverLimit { .. } => "rank-over-limit",
            Self::MetadataNotString { .. } => "metadata-not-string",
            Self::SizeOverflow { .. } => "size-overflow",
            Self::PartialByte { .. } => "partial-byte",
            Self::Reversed { .. } => "reversed-offsets",
            Self::WrongLength { .. } => "wrong-length",
            Self::Overlap { .. } => "overlap",
            Self::Hole { .. } => "hole",
            Self::Truncated { .. } => "truncated",
            Self::TrailingBytes { .. } => "trailing-bytes",
        }
    }
}

/// Where the header and the data of a file are, by its first eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderSpan {
    header_len_bytes: u64,
    file_len_bytes: u64,
}

impl HeaderSpan {
    /// Reads the length field `first` (the file's bytes 0 to 7) of a file of `file_len_bytes`.
    ///
    /// # Errors
    /// `TooShort`, `LengthOverLimit`, `LengthPastEnd`.
    pub const fn new(first: [u8; 8], file_len_bytes: u64) -> Result<Self, HeaderError> {
        if file_len_bytes < LENGTH_LEN_BYTES {
            return Err(HeaderError::TooShort { file_len_bytes });
        }
        let header_len_bytes = u64::from_le_bytes(first);
        if header_len_bytes > HEADER_LEN_MAX_BYTES {
            return Err(HeaderError::LengthOverLimit { header_len_bytes });
        }
        let room_len_bytes = file_len_bytes - LENGTH_LEN_BYTES;
        if header_len_bytes > room_len_bytes {
            return Err(HeaderError::LengthPastEnd { header_len_bytes, room_len_bytes });
        }
        Ok(Self { header_len_bytes, file_len_bytes })
    }

    /// Length of the JSON text in bytes, padding included: 0 to [`HEADER_LEN_MAX_BYTES`].
    #[must_use]
    pub const fn header_len_bytes(&self) -> u64 {
        self.header_len_bytes
    }

    /// File offset of the data section in bytes: just after the header.
    #[must_use]
    pub const fn data_offset(&self) -> u64 {
        LENGTH_LEN_BYTES + self.header_len_bytes
    }

    /// Length of the file in bytes, as the caller gave it.
    #[must_use]
    pub const fn file_len_bytes(&self) -> u64 {
        self.file_len_bytes
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, as it is in the file: any string, escape it before printing.
    pub name: Box<str>,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar; at most [`RANK_MAX`].
    pub shape: Box<[u64]>,
    /// First byte, from the start of the file.
    pub file_offset: u64,
    /// Length in bytes; 0 if a dimension is 0.
    pub len_bytes: u64,
}

impl TensorInfo {
    /// File offset after the last byte. Cannot overflow: the header was checked against the file's length.
    #[must_use]
    pub const fn file_end(&self) -> u64 {
        self.file_offset + self.len_bytes
    }
}

/// A checked header: its tensors cover the file's data section exactly.
#[derive(Clone, Debug)]
pub struct Header {
    span: HeaderSpan,
    /// In file order; zero-length tensors before the one that starts at the same offset.
    tensors: Vec<TensorInfo>,
    /// Indices into `tensors`, sorted by name.
    by_name: Vec<u32>,
    metadata: BTreeMap<String, String>,
}

impl Header {
    /// Parses and checks the JSON text of a header: the file's bytes from 8 to `span.data_offset()`.
    ///
    /// Time grows with the text (times the logarithm of the tensor count); memory is at most a small multiple of it;
    /// nesting in the JSON does not recurse.
    ///
    /// # Errors
    /// Every [`HeaderError`] except those of [`HeaderSpan::new`] and `Shrank`.
    pub fn parse(span: HeaderSpan, json: &[u8]) -> Result<Self, HeaderError> {
        let given_len_bytes = json.len() as u64;
        if given_len_bytes != span.header_len_bytes {
            return Err(HeaderError::WrongSlice { given_len_bytes, header_len_bytes: span.header_len_bytes });
        }
        if json.first() != Some(&b'{') {
            return Err(HeaderError::NoBrace { found: json.first().copied() });
        }
        let text = std::str::from_utf8(json)
            .map_err(|fault| HeaderError::NotUtf8 { file_offset: LENGTH_LEN_BYTES + fault.valid_up_to() as u64 })?;
        let raw = header_json::read(text)?;
        let mut tensors = raw.tensors;
        if let Some(name) = twice(&mut tensors) {
            return Err(HeaderError::Duplicate { name });
        }
        // Stable, so that zero-length tensors at one offset stay in the order of their names.
        tensors.sort_by_key(|tensor| (tensor.begin, tensor.end));
        let tensors = cover(&span, tensors)?;
        let mut by_name: Vec<u32> = (0..).take(tensors.len()).collect();
        by_name.sort_unstable_by(|&a, &b| tensors[a as usize].name.cmp(&tensors[b as usize].name));
        Ok(Self { span, tensors, by_name, metadata: raw.metadata })
    }

    /// Parses a file whose head is in memory: `head` holds at least the length field and the header, from byte 0 on.
    ///
    /// # Errors
    /// As [`HeaderSpan::new`] and [`Header::parse`]; `WrongSlice` if `head` ends before the header does.
    pub fn from_head(head: &[u8], file_len_bytes: u64) -> Result<Self, HeaderError> {
        let Some((first, rest)) = head.split_first_chunk::<8>() else {
            return Err(HeaderError::TooShort { file_len_bytes: file_len_bytes.min(head.len() as u64) });
        };
        let span = HeaderSpan::new(*first, file_len_bytes)?;
        let json = usize::try_from(span.header_len_bytes).ok().and_then(|len| rest.get(..len)).unwrap_or(rest);
        Self::parse(span, json)
    }

    /// Tensors in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensors, without the rest.
    pub(crate) fn into_tensors(self) -> Vec<TensorInfo> {
        self.tensors
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.by_name.binary_search_by(|&i| self.tensors[i as usize].name.as_ref().cmp(name)).ok()?;
        self.tensors.get(self.by_name[at] as usize)
    }

    /// The `__metadata__` of the file; empty if it has none.
    #[must_use]
    pub const fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Where header and data are.
    #[must_use]
    pub const fn span(&self) -> HeaderSpan {
        self.span
    }
}

/// A name that two tensors have. Leaves `tensors` sorted by name.
fn twice(tensors: &mut [RawTensor]) -> Option<String> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors.windows(2).find(|pair| pair[0].name == pair[1].name).map(|pair| pair[0].name.to_string())
}

/// Checks that `tensors`, sorted by offset, cover the data section exactly, and places them in the file.
fn cover(span: &HeaderSpan, tensors: Vec<RawTensor>) -> Result<Vec<TensorInfo>, HeaderError> {
    let data_offset = span.data_offset();
    let mut placed: Vec<TensorInfo> = Vec::with_capacity(tensors.len());
    let mut covered: u64 = 0;
    for raw in tensors {
        let len_bytes = checked_len(&raw, data_offset)?;
        let RawTensor { name, dtype, shape, begin, end } = raw;
        let file_offset = data_offset.saturating_add(begin);
        if begin < covered {
            // Zero-length tensors have no bytes to share; the culprit before is the last one that has some.
            let first = placed.iter().rev().find(|tensor| tensor.len_bytes > 0).map_or("", |tensor| &tensor.name);
            return Err(HeaderError::Overlap { first: first.to_owned(), second: name.into(), file_offset });
        }
        if begin > covered {
            let hole = data_offset.saturating_add(covered);
            return Err(HeaderError::Hole { tensor: name.into(), file_offset: hole, hole_len_bytes: begin - covered });
        }
        covered = end;
        placed.push(TensorInfo { name, dtype, shape, file_offset, len_bytes });
    }
    let need_len_bytes = data_offset.saturating_add(covered);
    let file_len_bytes = span.file_len_bytes;
    if need_len_bytes > file_len_bytes {
        return Err(HeaderError::Truncated { file_len_bytes, need_len_bytes });
    }
    if need_len_bytes < file_len_bytes {
        let extra_len_bytes = file_len_bytes - need_len_bytes;
        return Err(HeaderError::TrailingBytes { file_offset: need_len_bytes, extra_len_bytes });
    }
    Ok(placed)
}

/// Length of a tensor in bytes, if its offsets agree with its dtype and shape.
fn checked_len(raw: &RawTensor, data_offset: u64) -> Result<u64, HeaderError> {
    let tensor = || raw.name.to_string();
    let have_len_bytes = raw.end.checked_sub(raw.begin).ok_or_else(|| HeaderError::Reversed {
        tensor: tensor(),
        begin: raw.begin,
        end: raw.end,
    })?;
    let want_len_bytes = raw.dtype.len_bytes(&raw.shape).map_err(|fault| match fault {
        SizeFault::Overflow => {
            HeaderError::SizeOverflow { tensor: tensor(), dtype: raw.dtype, shape: raw.shape.to_vec() }
        }
        SizeFault::PartialByte { bits } => HeaderError::PartialByte { tensor: tensor(), dtype: raw.dtype, bits },
    })?;
    if have_len_bytes != want_len_bytes {
        let file_offset = data_offset.saturating_add(raw.begin);
        return Err(HeaderError::WrongLength { tensor: tensor(), file_offset, have_len_bytes, want_len_bytes });
    }
    Ok(want_len_bytes)
}
