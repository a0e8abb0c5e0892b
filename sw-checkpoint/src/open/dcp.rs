//! Opens a DCP directory: reads `.metadata`, then both ends of every blob, many at a time.

use serde::Deserialize;
use straightway::{Engine, Error, Object, Uri};

use super::heads::{ObjectRanges, fetch};
use super::{Opened, malformed, odd, read_small};
use crate::catalog::{CatalogBuilder, CatalogFile, Chunk, Format, LeafValue};
use crate::dcp::{self, BLOB_END_BYTES, Blob, DcpError, DcpTensor, METADATA_NAME, Metadata, Placed};
use crate::ranges::Failed;
use crate::torch::{RawTensor, Saved};
use crate::zip::TAIL_LEN_BYTES;

/// File that names Megatron's last iteration.
pub(super) const TRACKER_NAME: &str = "latest_checkpointed_iteration.txt";

/// Megatron's files beside `.metadata`.
const MEGATRON_CONFIG: &str = "metadata.json";
const MEGATRON_COMMON: &str = "common.pt";

/// Longest `.metadata`, as the unpickler; longest `metadata.json`.
const METADATA_LEN_MAX_BYTES: u64 = crate::pickle::PICKLE_LEN_MAX_BYTES;
const CONFIG_LEN_MAX_BYTES: u64 = 1 << 20;

/// Blobs whose ends are held at a time: a few megabytes.
const BLOBS_AT_A_TIME: usize = 1024;

/// The directory of the iteration that the tracker names.
pub(super) fn iteration_directory(text: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(text);
    match text.trim() {
        "release" => Ok("release".to_owned()),
        number => match number.parse::<u64>() {
            Ok(number) => Ok(format!("iter_{number:07}")),
            Err(_) => Err(format!("{TRACKER_NAME} holds no iteration: {:?}", text.trim())),
        },
    }
}

/// Megatron's `metadata.json`.
#[derive(Deserialize)]
struct Config {
    sharded_backend: String,
    #[serde(default)]
    sharded_backend_version: u64,
}

/// Opens `directory`, which has the entries `names`.
pub(super) fn open(engine: &Engine, directory: &Uri, names: &[String]) -> Result<Opened, Error> {
    let has = |name: &str| names.iter().any(|known| known == name);
    let at = directory.join(METADATA_NAME)?;
    let metadata =
        Metadata::read(&read_small(engine, &at, METADATA_LEN_MAX_BYTES)?).map_err(|cause| malformed(&at, cause))?;
    let mut objects = Vec::with_capacity(metadata.files.len() + 1);
    let mut files = Vec::with_capacity(metadata.files.len() + 1);
    for name in &metadata.files {
        let object = engine.open(&directory.join(name)?)?;
        files.push(CatalogFile::new(name.as_str(), object.len()));
        objects.push(object);
    }
    let megatron = has(MEGATRON_CONFIG) && has(MEGATRON_COMMON);
    let mut writer = match &metadata.version {
        Some(version) => format!("torch.distributed.checkpoint, layout {version}"),
        None => "torch.distributed.checkpoint".to_owned(),
    };
    let mut common = None;
    if megatron {
        let at = directory.join(MEGATRON_CONFIG)?;
        let config: Config = serde_json::from_slice(&read_small(engine, &at, CONFIG_LEN_MAX_BYTES)?)
            .map_err(|cause| malformed(&at, cause))?;
        if config.sharded_backend != "torch_dist" {
            let detail = format!("its back end is {:?}, only torch_dist is read", config.sharded_backend);
            return Err(odd(directory, detail));
        }
        writer = format!("Megatron torch_dist {}, {writer}", config.sharded_backend_version);
        let object = engine.open(&directory.join(MEGATRON_COMMON)?)?;
        files.push(CatalogFile::new(MEGATRON_COMMON, object.len()));
        common = Some(objects.len());
        objects.push(object);
    }
    let placed = place_all(engine, &at, &metadata, &objects)?;
    let format = if megatron { Format::Megatron } else { Format::Dcp };
    let mut builder = CatalogBuilder::new(format, files);
    builder.writer(writer);
    add_all(&mut builder, &metadata, &placed).map_err(|cause| malformed(&at, cause))?;
    if let Some(file) = common {
        add_common(engine, &mut builder, file, &objects[file])?;
    }
    let catalog = builder.finish().map_err(|cause| malformed(&at, DcpError::from(cause)))?;
    let blobs = metadata.blobs.iter().filter(|blob| !blob.transforms);
    let blobs = blobs.filter(|blob| {
        let end = blob.file_offset.checked_add(blob.len_bytes);
        end.is_some_and(|end| objects.get(blob.file).is_some_and(|object| end <= object.len()))
    });
    let mut containers: Vec<(usize, u64, u64)> =
        blobs.map(|blob| (blob.file, blob.file_offset, blob.len_bytes)).collect();
    containers.extend(common.and_then(|file| Some((file, 0, objects.get(file)?.len()))));
    Ok(Opened { catalog, objects, containers })
}

/// Where the data of each blob begins in its file; `None` for blobs of objects.
fn place_all(engine: &Engine, at: &Uri, metadata: &Metadata, objects: &[Object]) -> Result<Vec<Option<Placed>>, Error> {
    let mut expected: Vec<Option<(usize, usize)>> = vec![None; metadata.blobs.len()];
    for (tensor, DcpTensor { chunks, .. }) in metadata.tensors.iter().enumerate() {
        for (chunk, (.., blob)) in chunks.iter().enumerate() {
            if let Some(slot) = blob.and_then(|blob| expected.get_mut(blob)) {
                *slot = Some((tensor, chunk));
            }
        }
    }
    let mut placed = vec![None; metadata.blobs.len()];
    let mut order: Vec<usize> = (0..metadata.blobs.len()).filter(|&blob| expected[blob].is_some()).collect();
    order.sort_by_key(|&blob| (metadata.blobs[blob].file, metadata.blobs[blob].file_offset));
    for of_file in order.chunk_by(|&a, &b| metadata.blobs[a].file == metadata.blobs[b].file) {
        for some in of_file.chunks(BLOBS_AT_A_TIME) {
            let object = &objects[metadata.blobs[some[0]].file];
            place_some(engine, (metadata, &expected), (object, some), &mut placed).map_err(|failed| match failed {
                Failed::Read(error) => error,
                Failed::Format(cause) => malformed(at, cause),
            })?;
        }
    }
    Ok(placed)
}

/// Places blobs of one file, sorted by offset.
fn place_some(
    engine: &Engine,
    (metadata, expected): (&Metadata, &[Option<(usize, usize)>]),
    (object, blobs): (&Object, &[usize]),
    placed: &mut [Option<Placed>],
) -> Result<(), Failed<Error, DcpError>> {
    let whole = |blob: usize| blob_of(metadata, expected, blob);
    let mut ends = Vec::with_capacity(blobs.len() * 2);
    for &at in blobs {
        let Some((tensor, _, Blob { file_offset, len_bytes, transforms, .. })) = whole(at) else { continue };
        let end = file_offset.saturating_add(*len_bytes);
        if end > object.len() {
            return Err(Failed::Format(DcpError::PastEnd {
                item: tensor.name.clone(),
                file: object.name().to_owned(),
                file_offset: *file_offset,
                end,
                file_len_bytes: object.len(),
            }));
        }
        if !transforms {
            let head = (*len_bytes).min(BLOB_END_BYTES);
            ends.push((*file_offset, head));
            ends.push((end - head, head));
        }
    }
    let fetched = fetch(engine, object, &ends).map_err(Failed::Read)?;
    for &at in blobs {
        let Some((tensor, sizes, blob)) = whole(at) else { continue };
        placed[at] = Some(if blob.transforms {
            Err("its chunks went through a transform such as zstd; save without one")
        } else {
            let range = (blob.file_offset, blob.len_bytes);
            let mut ranges = ObjectRanges::part(engine, object, range, &fetched);
            place_one(&mut ranges, object, (tensor, sizes), blob)?
        });
    }
    Ok(())
}

fn blob_of<'m>(
    metadata: &'m Metadata,
    expected: &[Option<(usize, usize)>],
    blob: usize,
) -> Option<(&'m DcpTensor, &'m [u64], &'m Blob)> {
    let (tensor, chunk) = (*expected.get(blob)?)?;
    let tensor = metadata.tensors.get(tensor)?;
    Some((tensor, &tensor.chunks.get(chunk)?.1, metadata.blobs.get(blob)?))
}

fn place_one(
    ranges: &mut ObjectRanges<'_>,
    object: &Object,
    (tensor, sizes): (&DcpTensor, &[u64]),
    blob: &Blob,
) -> Result<Placed, Failed<Error, DcpError>> {
    let (item, file) = (tensor.name.clone(), object.name().to_owned());
    let file_offset = blob.file_offset;
    match dcp::place(ranges, tensor.dtype, sizes) {
        Ok(Ok(offset)) => Ok(offset.map(|offset| file_offset + offset)),
        Ok(Err(found)) => {
            let expected = format!("{} {sizes:?}", tensor.dtype);
            Err(Failed::Format(DcpError::Disagrees { item, file, file_offset, found, expected }))
        }
        Err(Failed::Read(error)) => Err(Failed::Read(error)),
        Err(Failed::Format(source)) => {
            Err(Failed::Format(DcpError::Blob { item, file, file_offset, source: Box::new(source) }))
        }
    }
}

/// Puts tensors and objects into the catalog.
fn add_all(builder: &mut CatalogBuilder, metadata: &Metadata, placed: &[Option<Placed>]) -> Result<(), DcpError> {
    for DcpTensor { name, dtype, shape, chunks } in &metadata.tensors {
        let (name, shape): (Box<str>, Box<[u64]>) = (name.as_str().into(), shape.as_slice().into());
        let mut held = Vec::with_capacity(chunks.len());
        let mut refused = None;
        for (offsets, sizes, blob) in chunks {
            let Some(blob) = blob.and_then(|blob| Some((metadata.blobs.get(blob)?, placed.get(blob)?.as_ref()?)))
            else {
                refused = Some("a chunk of it is described but was never stored");
                continue;
            };
            match blob {
                (_, Err(reason)) => refused = Some(reason),
                (Blob { file, .. }, Ok(file_offset)) => held.push(Chunk {
                    file: *file,
                    file_offset: *file_offset,
                    // The blob has exactly the tensor's bytes of this size.
                    len_bytes: dtype.len_bytes(sizes).unwrap_or(u64::MAX),
                    offsets: offsets.as_slice().into(),
                    sizes: sizes.as_slice().into(),
                }),
            }
        }
        match refused {
            Some(reason) => builder.refused(name, *dtype, shape, reason)?,
            None => builder.chunked(name, *dtype, shape, held)?,
        }
    }
    for (name, blob) in &metadata.objects {
        let value = match blob.and_then(|blob| metadata.blobs.get(blob)) {
            Some(Blob { file, file_offset, len_bytes, .. }) => {
                LeafValue::Stored { file: *file, file_offset: *file_offset, len_bytes: *len_bytes }
            }
            None => LeafValue::Other("an object that was never stored".to_owned()),
        };
        builder.leaf(name.as_str(), value);
    }
    Ok(())
}

/// What Megatron keeps once for all ranks, under names that begin with `common.`. A file that is not readable by the
/// restricted unpickler (its arguments may hold any class) is one leaf that says so.
fn add_common(engine: &Engine, builder: &mut CatalogBuilder, file: usize, object: &Object) -> Result<(), Error> {
    let at = object.name().parse().unwrap_or_else(|_| Uri::File(object.name().to_owned()));
    let mut ranges = ObjectRanges::whole(engine, object);
    let saved = match Saved::read(&mut ranges, TAIL_LEN_BYTES) {
        Ok(saved) => saved,
        Err(Failed::Read(error)) => return Err(error),
        Err(Failed::Format(cause)) => {
            builder.leaf(MEGATRON_COMMON, LeafValue::Other(format!("not read: {cause}")));
            return Ok(());
        }
    };
    let named = |name: &str| format!("common.{name}");
    for tensor in &saved.state.tensors {
        let RawTensor { name, dtype, shape, .. } = tensor;
        let (name, shape): (Box<str>, Box<[u64]>) = (named(name).into(), shape.as_slice().into());
        let placed = saved.place(&mut ranges, tensor).map_err(|failed| super::unread(&at, failed))?;
        let added = match placed {
            Ok(offset) => builder.whole(name, *dtype, shape, (file, offset)),
            Err(reason) => builder.refused(name, *dtype, shape, reason),
        };
        added.map_err(|cause| malformed(&at, cause))?;
    }
    for (name, value) in saved.state.leaves {
        builder.leaf(named(&name), value);
    }
    Ok(())
}
