//! `.metadata`: the pickle that describes a DCP checkpoint.

use std::collections::HashMap;
use std::path::{Component, Path};

use crate::dtype::Dtype;
use crate::pickle::{Call, Id, Node, Pickle, PickleError, Walk};
use crate::torch::dtype_of;

use super::{Blob, DcpError, DcpTensor};

/// Fields of an object that are looked at: one long state may be shared by many objects.
const FIELDS_MAX: usize = 64;

/// Whether `.metadata` may name a global.
fn allowed(module: &str, name: &str) -> bool {
    match module {
        // Where the classes were, and are, from version to version.
        "torch.distributed.checkpoint.metadata" => matches!(
            name,
            "Metadata"
                | "MetadataIndex"
                | "TensorStorageMetadata"
                | "BytesStorageMetadata"
                | "ChunkStorageMetadata"
                | "TensorProperties"
                | "StorageMeta"
                | "_MEM_FORMAT_ENCODING"
        ),
        "torch.distributed._shard.sharded_tensor.metadata" => {
            matches!(name, "TensorProperties" | "MEM_FORMAT_ENCODING")
        }
        "torch.distributed._shard.metadata" => name == "ShardMetadata",
        "torch.distributed.checkpoint.filesystem" => matches!(name, "_StorageInfo" | "_StoragePrefix"),
        // Megatron keeps the plans of the save in it.
        "torch.distributed.checkpoint.planner" => {
            matches!(name, "SavePlan" | "WriteItem" | "WriteItemType" | "TensorWriteData" | "BytesIOWriteData")
        }
        "torch.serialization" => name == "_get_layout",
        "torch" => matches!(name, "Size" | "device") || dtype_of(name).is_some() || is_other_dtype(name),
        "collections" => matches!(name, "OrderedDict" | "defaultdict"),
        "builtins" => matches!(name, "set" | "frozenset"),
        "pathlib" | "pathlib._local" => matches!(name, "PosixPath" | "PurePosixPath" | "Path"),
        _ => false,
    }
}

/// Element types that may be named, since a checkpoint may have a tensor of one, which is then an error of its own.
fn is_other_dtype(name: &str) -> bool {
    ["qint", "quint", "bits", "float4", "int1", "int2", "uint1", "uint2"].iter().any(|start| name.starts_with(start))
}

/// What `.metadata` says.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    /// Paths below the directory, sorted, each plain and once.
    pub files: Vec<String>,
    pub tensors: Vec<DcpTensor>,
    /// Items that are not tensors, with the position of their blob if one is stored.
    pub objects: Vec<(String, Option<usize>)>,
    pub blobs: Vec<Blob>,
    /// The version of the layout, if the file tells.
    pub version: Option<String>,
}

impl Metadata {
    /// Reads the whole of a `.metadata` file.
    ///
    /// # Errors
    /// `Metadata`, `FileName`.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, DcpError> {
        let pickle = Pickle::read(bytes, allowed)?;
        let mut read = Read { pickle: &pickle, walk: Walk::default(), made: Self::default(), at: HashMap::new() };
        let root = read.object(pickle.root(), "Metadata", "the root")?;
        let storage = read.field(root, "storage_data", "the root")?;
        read.storage(storage)?;
        let items = read.field(root, "state_dict_metadata", "the root")?;
        read.items(items)?;
        // Missing from checkpoints before version 2.6.
        let version = read.field(root, "version", "the root").ok();
        read.made.version = version.and_then(|id| pickle.as_text(id)).map(str::to_owned);
        Ok(read.made)
    }
}

/// Name and offset of a stored item.
type Key = (String, Option<Vec<u64>>);

struct Read<'p, 'b> {
    pickle: &'p Pickle<'b>,
    walk: Walk,
    made: Metadata,
    at: HashMap<Key, usize>,
}

impl<'p> Read<'p, '_> {
    /// The state of an object whose class is called `class`.
    fn object(&mut self, id: Id, class: &'static str, place: &str) -> Result<&'p Call, PickleError> {
        self.walk.step(0)?;
        match self.pickle.as_call(id) {
            Some(((_, name), _, call)) if name == class => Ok(call),
            _ => Err(self.pickle.unexpected(place, id, class)),
        }
    }

    fn field(&self, call: &Call, name: &str, place: &str) -> Result<Id, PickleError> {
        let pairs = call.state.and_then(|state| self.pickle.as_pairs(state)).unwrap_or_default();
        let found = pairs.iter().take(FIELDS_MAX).find(|(key, _)| self.pickle.is_text(*key, name));
        found.map(|(_, value)| *value).ok_or_else(|| PickleError::Unexpected {
            place: place.to_owned(),
            found: format!("an object without {name}"),
            expected: "one with it",
        })
    }

    fn pairs(&self, id: Id, place: &str) -> Result<&'p [(Id, Id)], PickleError> {
        self.pickle.as_pairs(id).ok_or_else(|| self.pickle.unexpected(place, id, "a dict"))
    }

    fn dims(&self, id: Id, place: &str) -> Result<Vec<u64>, PickleError> {
        self.pickle.as_dims(id).ok_or_else(|| self.pickle.unexpected(place, id, "a shape"))
    }

    fn text(&mut self, id: Id, place: &str) -> Result<String, PickleError> {
        if let Node::Text(piece) = self.pickle.node(id) {
            self.walk.makes(piece.len())?;
        }
        let text = self.pickle.as_text(id).ok_or_else(|| self.pickle.unexpected(place, id, "a text"))?;
        Ok(text.to_owned())
    }

    fn number(&self, id: Id, place: &str) -> Result<u64, PickleError> {
        self.pickle.as_u64(id).ok_or_else(|| self.pickle.unexpected(place, id, "a number that is not negative"))
    }

    /// Where each item is stored.
    fn storage(&mut self, id: Id) -> Result<(), DcpError> {
        let mut files: HashMap<String, usize> = HashMap::new();
        for &(key, value) in self.pairs(id, "storage_data")? {
            let index = self.object(key, "MetadataIndex", "storage_data")?;
            let name = self.text(self.field(index, "fqn", "storage_data")?, "fqn")?;
            // An object that is no tensor has none; newer versions leave the field out then.
            let offset = match self.field(index, "offset", &name) {
                Ok(offset) if *self.pickle.node(offset) != Node::None => Some(self.dims(offset, &name)?),
                _ => None,
            };
            let info = self.object(value, "_StorageInfo", &name)?;
            let file = self.text(self.field(info, "relative_path", &name)?, &name)?;
            if !is_plain(&file) {
                return Err(DcpError::FileName { file });
            }
            let count = files.len();
            let blob = Blob {
                file: *files.entry(file).or_insert(count),
                file_offset: self.number(self.field(info, "offset", &name)?, &name)?,
                len_bytes: self.number(self.field(info, "length", &name)?, &name)?,
                transforms: self.field(info, "transform_descriptors", &name).is_ok_and(|id| {
                    self.pickle.as_items(id).is_none_or(|transforms| !transforms.is_empty())
                        && *self.pickle.node(id) != Node::None
                }),
            };
            self.at.insert((name, offset), self.made.blobs.len());
            self.made.blobs.push(blob);
        }
        // Sorted, as people list them.
        let mut sorted: Vec<(String, usize)> = files.into_iter().collect();
        sorted.sort();
        let mut moved = vec![0; sorted.len()];
        sorted.iter().enumerate().for_each(|(new, (_, old))| moved[*old] = new);
        self.made.blobs.iter_mut().for_each(|blob| blob.file = moved[blob.file]);
        self.made.files = sorted.into_iter().map(|(file, _)| file).collect();
        Ok(())
    }

    fn items(&mut self, id: Id) -> Result<(), DcpError> {
        for &(key, value) in self.pairs(id, "state_dict_metadata")? {
            let name = self.text(key, "state_dict_metadata")?;
            match self.pickle.as_call(value) {
                Some(((_, "BytesStorageMetadata"), ..)) => {
                    let blob = self.at.get(&(name.clone(), None)).copied();
                    self.made.objects.push((name, blob));
                }
                _ => {
                    let tensor = self.tensor(name, value)?;
                    self.made.tensors.push(tensor);
                }
            }
        }
        Ok(())
    }

    fn tensor(&mut self, name: String, id: Id) -> Result<DcpTensor, PickleError> {
        let tensor = self.object(id, "TensorStorageMetadata", &name)?;
        let dtype = self.dtype(self.field(tensor, "properties", &name)?, &name)?;
        let shape = self.dims(self.field(tensor, "size", &name)?, &name)?;
        let list = self.field(tensor, "chunks", &name)?;
        let list =
            self.pickle.as_items(list).ok_or_else(|| self.pickle.unexpected(&*name, list, "a list of chunks"))?;
        let mut chunks = Vec::new();
        for &chunk in list {
            let chunk = self.object(chunk, "ChunkStorageMetadata", &name)?;
            let offsets = self.dims(self.field(chunk, "offsets", &name)?, &name)?;
            let sizes = self.dims(self.field(chunk, "sizes", &name)?, &name)?;
            let mut blob = self.at.get(&(name.clone(), Some(offsets.clone()))).copied();
            if blob.is_none() && list.len() == 1 {
                // A tensor that is whole may be stored without an offset.
                blob = self.at.get(&(name.clone(), None)).copied();
            }
            chunks.push((offsets, sizes, blob));
        }
        Ok(DcpTensor { name, dtype, shape, chunks })
    }

    fn dtype(&mut self, id: Id, place: &str) -> Result<Dtype, PickleError> {
        let properties = self.object(id, "TensorProperties", place)?;
        // The state is a tuple that begins with the type; a dict in versions that do not say how to pickle it.
        let state = properties.state;
        let dtype = match state.and_then(|state| self.pickle.as_items(state)) {
            Some([dtype, ..]) => *dtype,
            _ => self.field(properties, "dtype", place)?,
        };
        match self.pickle.as_global(dtype) {
            Some(("torch", name)) => dtype_of(name),
            _ => None,
        }
        .ok_or_else(|| self.pickle.unexpected(place, dtype, "a known element type"))
    }
}

/// Whether a path stays below its directory.
fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', '\0'])
        && !path.chars().any(char::is_control)
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}
