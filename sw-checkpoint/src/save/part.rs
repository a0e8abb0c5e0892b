//! What a rank has written, and the commit of all ranks' parts.
//!
//! ```text
//!   rank 0: begin ──► directory ─(framework)─► rank n: join
//!   each rank: prepare ──► Part ─(framework)─► rank 0: commit(parts): index or .metadata, checksums, rename
//! ```
//!
//! A part goes through the process group of the framework as bytes. It is small: names, places and checksums, no data.

use std::{collections::BTreeSet, fs, path::Path};

use serde::{Deserialize, Serialize};
use straightway::{Buffer, Destination, Engine, Error, ErrorKind, Memory, Uri, Verb};

use crate::{
    CHECKSUMS_FILE, Checksums, Dtype,
    checksums::{CHUNK_LEN_BYTES, FileText},
    write_plan::index_text,
};

use super::{
    IfExists, Layout, PendingCheckpoint, Progress, Rank, Slice, dcp,
    layout::{Placed, RankLayout},
    pending::failed,
    pump::Outcome,
};

/// Largest part that is read, in bytes.
const PART_LEN_MAX_BYTES: usize = 1 << 30;

/// What one rank has written, durable in the directory of the checkpoint in the making.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub(super) rank: u32,
    pub(super) of: u32,
    pub(super) files: Vec<PartFile>,
    pub(super) tensors: Vec<PartTensor>,
    pub(super) objects: Vec<PartObject>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartFile {
    pub(super) name: String,
    sums: FileText,
}

/// A tensor of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartTensor {
    pub(super) name: String,
    dtype: String,
    /// Dimensions of what is there.
    pub(super) shape: Vec<u64>,
    /// Dimensions of the whole tensor, if that is more.
    whole: Option<Vec<u64>>,
    offsets: Option<Vec<u64>>,
    pub(super) place: PartPlace,
}

/// An object of a part: bytes that stand for something that is no tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartObject {
    pub(super) name: String,
    pub(super) place: PartPlace,
}

/// Where something lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartPlace {
    file: usize,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Where a tensor or an object lies in the files of the checkpoint, for a framework that writes its own metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// First element in each dimension of the whole tensor; `None` for a whole tensor and for an object.
    pub offsets: Option<&'a [u64]>,
    /// Name of its file.
    pub file: &'a str,
    /// First byte of its data (safetensors) or of its blob (DCP).
    pub offset: u64,
    /// Bytes of that.
    pub len: u64,
}

impl PartTensor {
    pub(super) fn dtype(&self) -> Result<Dtype, Error> {
        // Two types have a name that safetensors does not have.
        let other = || [Dtype::C32, Dtype::C128].into_iter().find(|dtype| dtype.name() == self.dtype);
        Dtype::from_name(&self.dtype)
            .or_else(other)
            .ok_or_else(|| malformed(format!("{} is no element type", self.dtype)))
    }

    pub(super) fn whole(&self) -> &[u64] {
        self.whole.as_deref().unwrap_or(&self.shape)
    }

    pub(super) fn offsets(&self) -> Vec<u64> {
        self.offsets.clone().unwrap_or_else(|| vec![0; self.shape.len()])
    }
}

impl Part {
    pub(super) fn new(
        rank: Rank,
        layout: &RankLayout,
        tensors: &[(crate::TensorSpec, Option<Slice>)],
        objects: &[String],
        outcome: &Outcome,
    ) -> Self {
        let place = |placed: &Placed| PartPlace { file: placed.file, offset: placed.offset, len: placed.len };
        let mut part =
            Self { rank: rank.number, of: rank.of, files: Vec::new(), tensors: Vec::new(), objects: Vec::new() };
        part.files = outcome
            .files
            .iter()
            .map(|file| PartFile { name: file.name.clone(), sums: FileText::of(&file.sums) })
            .collect();
        for placed in &layout.placed {
            let Some((spec, slice)) = tensors.get(placed.tensor) else {
                // Objects are numbered after the tensors.
                let name = objects.get(placed.tensor - tensors.len()).cloned().unwrap_or_default();
                part.objects.push(PartObject { name, place: place(placed) });
                continue;
            };
            part.tensors.push(PartTensor {
                name: spec.name.clone(),
                dtype: spec.dtype.name().to_owned(),
                shape: spec.shape.clone(),
                whole: slice.as_ref().map(|slice| slice.whole.clone()),
                offsets: slice.as_ref().map(|slice| slice.offsets.clone()),
                place: place(placed),
            });
        }
        part
    }

    /// The part as bytes, to send to the rank that commits.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings, numbers and lists always become JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// A part from bytes that a rank sent.
    ///
    /// # Errors
    /// `BadFormat`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > PART_LEN_MAX_BYTES {
            return Err(malformed(format!("{} bytes; at most {PART_LEN_MAX_BYTES} are read", bytes.len())));
        }
        let part: Self = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        let places =
            part.tensors.iter().map(|tensor| tensor.place).chain(part.objects.iter().map(|object| object.place));
        for place in places {
            if place.file >= part.files.len() || place.offset.checked_add(place.len).is_none() {
                return Err(malformed(format!("rank {}: a place outside its {} files", part.rank, part.files.len())));
            }
        }
        if let Some(tensor) = part.tensors.iter().find(|tensor| {
            let rank = tensor.shape.len();
            tensor.whole().len() != rank || tensor.offsets().len() != rank
        }) {
            return Err(malformed(format!("rank {}: dimensions of {} differ", part.rank, tensor.name)));
        }
        Ok(part)
    }

    /// The rank that wrote it.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Where everything lies.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let file = |place: PartPlace| self.file(place);
        let tensors = self.tensors.iter().map(move |tensor| Entry {
            name: &tensor.name,
            offsets: tensor.offsets.as_deref(),
            file: file(tensor.place),
            offset: tensor.place.offset,
            len: tensor.place.len,
        });
        let objects = self.objects.iter().map(move |object| Entry {
            name: &object.name,
            offsets: None,
            file: file(object.place),
            offset: object.place.offset,
            len: object.place.len,
        });
        tensors.chain(objects)
    }

    pub(super) fn file(&self, place: PartPlace) -> &str {
        self.files.get(place.file).map_or("", |file| &file.name)
    }
}

/// How a commit ends.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// What the parts were written as.
    pub layout: Layout,
    /// What to do if there is a checkpoint of that name.
    pub if_exists: IfExists,
    /// Metadata of the framework's own by file name, instead of the index or `.metadata` that we would write.
    pub metadata: Option<Vec<(String, Vec<u8>)>>,
}

/// Puts a checkpoint in place, once the part of every rank is there. Names of its files, those of the ranks first.
///
/// Everything was durable before; the rename is the last step. A reader finds all of it or none.
///
/// # Errors
/// `ApiMisuse` if a rank's part is missing or there twice; `BadFormat` if parts do not go together; `ShortData` if a file is
/// not what its rank reported; `AlreadyExists`; what writing returns. The checkpoint is gone then, an old one is as it was.
pub fn commit(
    engine: &Engine,
    pending: PendingCheckpoint,
    parts: Vec<Part>,
    how: &Commit,
) -> Result<Vec<String>, Error> {
    commit_telling(engine, pending, parts, how, &|_| {})
}

pub(super) fn commit_telling(
    engine: &Engine,
    pending: PendingCheckpoint,
    mut parts: Vec<Part>,
    how: &Commit,
    tell: &dyn Fn(Progress<'_>),
) -> Result<Vec<String>, Error> {
    parts.sort_by_key(|part| part.rank);
    check_ranks(&parts, pending.target())?;
    let mut checksums = Checksums::default();
    let mut names = Vec::new();
    for part in &parts {
        for file in &part.files {
            let sums = file.sums.read(&file.name, CHUNK_LEN_BYTES).map_err(|error| malformed(error.to_string()))?;
            check_file(&pending.directory().join(&file.name), sums.len_bytes)?;
            if checksums.files.insert(file.name.clone(), sums).is_some() {
                return Err(malformed(format!("two ranks have written {}", file.name)));
            }
            names.push(file.name.clone());
        }
    }
    let metadata = match (&how.metadata, &how.layout) {
        (Some(metadata), _) => metadata.clone(),
        (None, Layout::Safetensors(options)) => safetensors_index(&parts, &options.stem)?.into_iter().collect(),
        (None, Layout::Dcp(_)) => vec![(dcp::METADATA_FILE.to_owned(), dcp::metadata(&parts)?)],
    };
    write_small(engine, &pending.directory().join(CHECKSUMS_FILE), &checksums.to_text())?;
    tell(Progress::FileDone(CHECKSUMS_FILE));
    for (name, bytes) in metadata {
        write_small(engine, &pending.directory().join(&name), &bytes)?;
        tell(Progress::FileDone(&name));
        names.push(name);
    }
    names.push(CHECKSUMS_FILE.to_owned());
    for part in &parts {
        let claim = pending.directory().join(claim_name(part.rank));
        fs::remove_file(&claim).map_err(|error| failed(Verb::Replace, &claim, &error))?;
    }
    pending.put_in_place(how.if_exists, tell)?;
    Ok(names)
}

/// Two processes that think they are the same rank do not mix their files.
pub(super) fn claim(pending: &PendingCheckpoint, rank: Rank) -> Result<(), Error> {
    let path = pending.directory().join(claim_name(rank.number));
    let made = fs::File::options().write(true).create_new(true).open(&path);
    made.map(drop).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Error::new(ErrorKind::InUse, Verb::Create)
            .at(pending.target().to_string_lossy().as_ref())
            .detail(format!("rank {} has written its part already", rank.number))
            .remedy("give each process a rank of its own"),
        _ => failed(Verb::Create, &path, &error),
    })
}

fn claim_name(rank: u32) -> String {
    format!(".rank-{rank:05}")
}

fn check_ranks(parts: &[Part], target: &Path) -> Result<(), Error> {
    let of = parts.first().map_or(1, |part| part.of);
    let right = parts.len() as u64 == u64::from(of)
        && parts.iter().zip(0..).all(|(part, number)| part.rank == number && part.of == of);
    if right {
        return Ok(());
    }
    let have: Vec<_> = parts.iter().map(|part| format!("{} of {}", part.rank, part.of)).collect();
    Err(Error::new(ErrorKind::ApiMisuse, Verb::Replace)
        .at(target.to_string_lossy().as_ref())
        .detail(format!("parts of the ranks {} do not make a checkpoint", have.join(", ")))
        .remedy("commit once with the part of every rank; if a rank died, drop the checkpoint in the making"))
}

fn check_file(path: &Path, len: u64) -> Result<(), Error> {
    let have = fs::metadata(path).map_err(|error| failed(Verb::Open, path, &error))?.len();
    if have == len {
        return Ok(());
    }
    let error = Error::new(ErrorKind::ShortData, Verb::Open).at(path.to_string_lossy().as_ref());
    Err(error.detail(format!("{have} bytes, its rank reported {len}")))
}

fn safetensors_index(parts: &[Part], stem: &str) -> Result<Option<(String, Vec<u8>)>, Error> {
    if parts.iter().map(|part| part.files.len()).sum::<usize>() < 2 {
        return Ok(None);
    }
    let mut entries: Vec<(&str, &str)> = Vec::new();
    let mut total = 0_u64;
    for part in parts {
        for tensor in &part.tensors {
            entries.push((&tensor.name, part.file(tensor.place)));
            total = total.saturating_add(tensor.place.len);
        }
    }
    let names: BTreeSet<&str> = entries.iter().map(|(name, _)| *name).collect();
    if names.len() < entries.len() {
        return Err(malformed("a tensor is in the parts of two ranks; let one of them save it".to_owned()));
    }
    Ok(Some((format!("{stem}.safetensors.index.json"), index_text(entries, total))))
}

/// Writes a small file of a checkpoint in the making as a whole.
pub(super) fn write_small(engine: &Engine, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let new = engine.create(&Uri::from_path(path)?, bytes.len() as u64)?;
    if !bytes.is_empty() {
        engine.write(new.object(), 0, host_bytes(engine, bytes)?).wait().ok()?;
    }
    new.commit_leaving_name()
}

/// Reads a small file as a whole.
pub(super) fn read_small(engine: &Engine, path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    let object = engine.open(&Uri::from_path(path)?)?;
    if object.is_empty() || object.len() > most {
        return Err(malformed(format!("{} has {} bytes; 1 to {most} are read", object.name(), object.len())));
    }
    let memory = engine.allocate(Destination::Host, object.len(), 0)?;
    let memory = engine.read(&object, 0, memory).wait().ok()?.into_memory();
    let memory = memory.ok_or_else(|| Error::new(ErrorKind::Protocol, Verb::Read).at(object.name()))?;
    engine.copy_to_host(&memory)
}

fn host_bytes(engine: &Engine, bytes: &[u8]) -> Result<Memory, Error> {
    let memory = engine.allocate(Destination::Host, bytes.len() as u64, 0)?;
    let misuse =
        |memory: Memory| Error::new(ErrorKind::ApiMisuse, Verb::Write).detail(format!("{memory} has no slices"));
    let mut buffer: Buffer = memory.into_buffer().map_err(misuse)?;
    buffer.as_mut_slice().copy_from_slice(bytes);
    Ok(buffer.into())
}

fn malformed(detail: String) -> Error {
    Error::new(ErrorKind::BadFormat, Verb::Parse).at("a rank's part").detail(detail)
}
