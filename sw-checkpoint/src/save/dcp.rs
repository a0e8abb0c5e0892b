//! The directory of `torch.distributed.checkpoint`: blobs in `__RANK_N.distcp`, and `.metadata` that says where they are.
//!
//! Classes and fields: torch 2.15 `torch/distributed/checkpoint/{metadata,filesystem}.py`. Field notes of the properties:
//! five of them, as every version reads; `strides` came later and is optional.

use std::collections::{BTreeMap, BTreeSet};

use straightway::{Error, ErrorKind, Verb};

use crate::{
    LayoutError, TensorSpec,
    write_plan::{groups, tensor_len},
};

use super::{
    Part, Slice, blob,
    layout::{Content, FilePieces, Piece, Placed, Rank, RankLayout},
    part::{PartPlace, PartTensor},
    pickle::Pickle,
};

/// Name of the file that makes a directory a checkpoint.
pub(super) const METADATA_FILE: &str = ".metadata";
/// As torch 2.15 writes it.
const VERSION: &str = "1.0.0";
/// Blobs start at multiples of this in their file.
const BLOB_ALIGN_BYTES: u64 = 64;
const METADATA_MODULE: &str = "torch.distributed.checkpoint.metadata";

/// How to lay out a DCP directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DcpOptions {
    /// Most tensor bytes in one file; `None`, the default, for one file per rank. A tensor is never torn. Incremental saves
    /// link whole files, so files of unchanged tensors are worth more of them.
    pub file_len_max_bytes: Option<u64>,
}

/// Lays out the files of one rank: tensors in the order of the list, then objects.
pub(super) fn lay_out(
    rank: Rank,
    tensors: &[(TensorSpec, Option<Slice>)],
    objects: &[(String, Vec<u8>)],
    options: &DcpOptions,
) -> Result<RankLayout, LayoutError> {
    if options.file_len_max_bytes == Some(0) {
        return Err(LayoutError::ZeroShard);
    }
    check_names(tensors, objects)?;
    let mut lens = Vec::with_capacity(tensors.len() + objects.len());
    for (spec, _) in tensors {
        lens.push(tensor_len(spec)?);
    }
    lens.extend(objects.iter().map(|(_, bytes)| bytes.len() as u64));
    // Room for heads and tails, so that no offset overflows later.
    let total = lens.iter().try_fold(1 << 62_u32, |sum: u64, len| sum.checked_add(*len));
    if total.is_none() {
        let tensor = tensors.last().map_or_else(String::new, |(spec, _)| spec.name.clone());
        return Err(LayoutError::SizeOverflow { tensor });
    }
    let mut layout = RankLayout::default();
    for group in groups(&lens, options.file_len_max_bytes).into_iter().filter(|group| !group.is_empty()) {
        let number = layout.files.len();
        let mut file =
            FilePieces { name: format!("__{}_{number}.distcp", rank.number), len_bytes: 0, pieces: Vec::new() };
        for at in group {
            let start = file.len_bytes.next_multiple_of(BLOB_ALIGN_BYTES);
            file.len_bytes = match (tensors.get(at), at.checked_sub(tensors.len()).and_then(|at| objects.get(at))) {
                (Some((spec, _)), _) => {
                    let end = blob::append(&mut file.pieces, start, at, spec, lens[at]);
                    end.ok_or_else(|| LayoutError::NoSuchDtype {
                        tensor: spec.name.clone(),
                        dtype: spec.dtype,
                        format: "dcp",
                    })?
                }
                (None, Some((_, bytes))) if !bytes.is_empty() => {
                    let len = bytes.len() as u64;
                    file.pieces.push(Piece { offset: start, len, content: Content::Bytes(bytes.clone()) });
                    start + len
                }
                (None, _) => start,
            };
            layout.placed.push(Placed { tensor: at, file: number, offset: start, len: file.len_bytes - start });
        }
        layout.files.push(file);
    }
    Ok(layout)
}

fn check_names(tensors: &[(TensorSpec, Option<Slice>)], objects: &[(String, Vec<u8>)]) -> Result<(), LayoutError> {
    let mut seen = BTreeSet::new();
    for (spec, slice) in tensors {
        if !seen.insert((spec.name.as_str(), slice.as_ref().map(|slice| slice.offsets.as_slice()))) {
            return Err(LayoutError::Duplicate { tensor: spec.name.clone() });
        }
    }
    let tensors: BTreeSet<&str> = tensors.iter().map(|(spec, _)| spec.name.as_str()).collect();
    let mut seen = BTreeSet::new();
    match objects.iter().find(|(name, _)| tensors.contains(name.as_str()) || !seen.insert(name.as_str())) {
        Some((name, _)) => Err(LayoutError::Duplicate { tensor: name.clone() }),
        None => Ok(()),
    }
}

/// A tensor of the whole checkpoint, with its parts in order of the ranks.
struct Whole<'a> {
    first: &'a PartTensor,
    /// By offset. The first rank that has a part counts, others have a copy of it.
    chunks: BTreeMap<Vec<u64>, (&'a [u64], Blob<'a>)>,
}

/// Where a blob is.
#[derive(Clone, Copy)]
struct Blob<'a> {
    file: &'a str,
    place: PartPlace,
}

/// `.metadata` of all parts together.
pub(super) fn metadata(parts: &[Part]) -> Result<Vec<u8>, Error> {
    let mut tensors: BTreeMap<&str, Whole<'_>> = BTreeMap::new();
    let mut objects: BTreeMap<&str, Blob<'_>> = BTreeMap::new();
    for part in parts {
        for tensor in &part.tensors {
            let whole = tensors.entry(&tensor.name).or_insert(Whole { first: tensor, chunks: BTreeMap::new() });
            if whole.first.whole() != tensor.whole() || whole.first.dtype()? != tensor.dtype()? {
                return Err(differ(&tensor.name, "its ranks do not agree on shape or element type"));
            }
            let chunk = (tensor.shape.as_slice(), Blob { file: part.file(tensor.place), place: tensor.place });
            whole.chunks.entry(tensor.offsets()).or_insert(chunk);
        }
        for object in &part.objects {
            objects.entry(&object.name).or_insert(Blob { file: part.file(object.place), place: object.place });
        }
    }
    if let Some(name) = objects.keys().find(|name| tensors.contains_key(*name)) {
        return Err(differ(name, "it is a tensor for one rank and an object for another"));
    }
    let mut pickle = Pickle::new();
    pickle.global(METADATA_MODULE, "Metadata").object(|pickle| {
        pickle.dict(|pickle| {
            pickle.text("state_dict_metadata").dict(|pickle| state_dict(pickle, &tensors, &objects));
            // The way to each in nested dicts: all are at the top.
            pickle.text("planner_data").dict(|pickle| {
                for name in tensors.keys().chain(objects.keys()) {
                    pickle.text(name).tuple(|pickle| {
                        pickle.text(name);
                    });
                }
            });
            pickle.text("storage_data").dict(|pickle| storage_data(pickle, &tensors, &objects));
            pickle.text("storage_meta").none();
            pickle.text("version").text(VERSION);
        });
    });
    Ok(pickle.finish())
}

fn state_dict(pickle: &mut Pickle, tensors: &BTreeMap<&str, Whole<'_>>, objects: &BTreeMap<&str, Blob<'_>>) {
    for (name, whole) in tensors {
        pickle.text(name).global(METADATA_MODULE, "TensorStorageMetadata").object(|pickle| {
            pickle.dict(|pickle| {
                pickle.text("properties");
                properties(pickle, whole.first);
                pickle.text("size");
                size(pickle, whole.first.whole());
                pickle.text("chunks").list(|pickle| {
                    for (offsets, (shape, _)) in &whole.chunks {
                        pickle.global(METADATA_MODULE, "ChunkStorageMetadata").object(|pickle| {
                            pickle.dict(|pickle| {
                                pickle.text("offsets");
                                size(pickle, offsets);
                                pickle.text("sizes");
                                size(pickle, shape);
                            });
                        });
                    }
                });
            });
        });
    }
    for name in objects.keys() {
        pickle.text(name).global(METADATA_MODULE, "BytesStorageMetadata").object(|pickle| {
            pickle.dict(|_| {});
        });
    }
}

fn storage_data(pickle: &mut Pickle, tensors: &BTreeMap<&str, Whole<'_>>, objects: &BTreeMap<&str, Blob<'_>>) {
    for (name, whole) in tensors {
        for (index, (offsets, (_, blob))) in (0_u64..).zip(&whole.chunks) {
            pickle.global(METADATA_MODULE, "MetadataIndex").object(|pickle| {
                pickle.dict(|pickle| {
                    pickle.text("fqn").text(name).text("offset");
                    size(pickle, offsets);
                    pickle.text("index").int(index);
                });
            });
            storage_info(pickle, *blob);
        }
    }
    for (name, blob) in objects {
        pickle.global(METADATA_MODULE, "MetadataIndex").object(|pickle| {
            pickle.dict(|pickle| {
                pickle.text("fqn").text(name).text("index").none();
            });
        });
        storage_info(pickle, *blob);
    }
}

fn storage_info(pickle: &mut Pickle, Blob { file, place }: Blob<'_>) {
    pickle.global("torch.distributed.checkpoint.filesystem", "_StorageInfo").object(|pickle| {
        pickle.dict(|pickle| {
            pickle.text("relative_path").text(file).text("offset").int(place.offset).text("length").int(place.len);
        });
    });
}

fn properties(pickle: &mut Pickle, tensor: &PartTensor) {
    let name = tensor.dtype().ok().and_then(blob::torch_name).map_or("uint8", |(name, _)| name);
    pickle.global(METADATA_MODULE, "TensorProperties").object(|pickle| {
        pickle.tuple(|pickle| {
            pickle.global("torch", name);
            pickle.global("torch.serialization", "_get_layout").call(|pickle| {
                pickle.text("torch.strided");
            });
            // requires_grad; contiguous; pin_memory.
            pickle
                .no()
                .global(METADATA_MODULE, "_MEM_FORMAT_ENCODING")
                .call(|pickle| {
                    pickle.int(0);
                })
                .no();
        });
    });
}

fn size(pickle: &mut Pickle, numbers: &[u64]) {
    pickle.global("torch", "Size").call(|pickle| {
        pickle.ints(numbers);
    });
}

fn differ(name: &str, detail: &'static str) -> Error {
    let error = Error::new(ErrorKind::BadFormat, Verb::Parse).at(name).detail(detail);
    error.remedy("save the same tensor on every rank that has it")
}
