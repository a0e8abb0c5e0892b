//! `checkpoint show`: format, files, tensors and other values, without reading a tensor.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use sw_checkpoint::{CHECKSUMS_FILE, Catalog, Checkpoint, Checksums, Held, LeafValue};

use crate::{args::CheckpointShow, fail::Fail, out::Out, session, size::Bytes};

/// A file.
#[derive(Serialize)]
struct FileLine<'a> {
    schema: &'static str,
    name: &'a str,
    len: u64,
    metadata: Vec<Note<'a>>,
}

/// A string that the format keeps for people.
#[derive(Serialize)]
struct Note<'a> {
    key: &'a str,
    value: &'a str,
}

impl fmt::Display for FileLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file     {:>14}  {}", self.len, self.name.escape_debug())
    }
}

/// A tensor.
#[derive(Serialize)]
struct TensorLine<'a> {
    schema: &'static str,
    name: &'a str,
    dtype: &'static str,
    shape: &'a [u64],
    len: u64,
    chunks: Vec<ChunkLine<'a>>,
    /// Why it cannot be loaded.
    refused: Option<&'a str>,
}

/// Where a part of it is.
#[derive(Serialize)]
struct ChunkLine<'a> {
    file: &'a str,
    file_offset: u64,
    len: u64,
    offsets: &'a [u64],
    sizes: &'a [u64],
}

impl fmt::Display for TensorLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = format!("{:?}", self.shape);
        write!(f, "{:<8} {:<20} {:>12}  {}", self.dtype, shape, self.len, self.name.escape_debug())?;
        match (self.refused, self.chunks.len()) {
            (Some(reason), _) => write!(f, "  cannot be loaded: {reason}"),
            (None, 0 | 1) => Ok(()),
            (None, count) => write!(f, "  in {count} chunks"),
        }
    }
}

/// A value that is no tensor.
#[derive(Serialize)]
struct LeafLine<'a> {
    schema: &'static str,
    name: &'a str,
    kind: &'static str,
    value: String,
}

impl fmt::Display for LeafLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {}  {}", self.kind, self.name.escape_debug(), self.value.escape_debug())
    }
}

/// The whole.
#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    checkpoint: String,
    format: &'static str,
    writer: Option<&'a str>,
    files: usize,
    file_bytes: u64,
    tensors: usize,
    refused: usize,
    tensor_bytes: u64,
    other_values: usize,
    /// What lies beside it to compare with.
    checksums: Option<Beside>,
    dtypes: Vec<DtypeCount>,
}

/// The checksums beside a checkpoint.
#[derive(Serialize)]
struct Beside {
    /// Of the files of the checkpoint, those that it has.
    files: usize,
    chunk_bytes: u64,
}

/// How many tensors have a type.
#[derive(Serialize)]
struct DtypeCount {
    dtype: &'static str,
    tensors: u64,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.format)?;
        if let Some(writer) = self.writer {
            write!(f, " (written by {writer})")?;
        }
        let Self { tensors, files, other_values, .. } = self;
        write!(f, ": {tensors} tensors, {} in {files} file(s)", Bytes(self.tensor_bytes))?;
        write!(f, " of {}, {other_values} other values", Bytes(self.file_bytes))?;
        if self.refused > 0 {
            write!(f, "; {} tensors cannot be loaded", self.refused)?;
        }
        if let Some(Beside { files, chunk_bytes }) = &self.checksums {
            write!(f, "\n{CHECKSUMS_FILE}: {files} file(s) in chunks of {}", Bytes(*chunk_bytes))?;
        }
        let dtypes: Vec<String> =
            self.dtypes.iter().map(|count| format!("{} x{}", count.dtype, count.tensors)).collect();
        if dtypes.is_empty() { Ok(()) } else { write!(f, "\n{}", dtypes.join(", ")) }
    }
}

/// Runs it.
///
/// # Errors
/// Those of the checkpoint.
pub fn run(args: &CheckpointShow, out: &mut Out) -> Result<(), Fail> {
    session::with_engine(&args.engine, |engine| {
        let checkpoint = Checkpoint::open(engine, &args.checkpoint)?;
        let catalog = checkpoint.catalog();
        for file in catalog.files() {
            let name = file.name.as_str();
            let metadata = file.metadata.iter().map(|(key, value)| Note { key, value }).collect();
            out.report(&FileLine { schema: "straightway.checkpoint.file/1", name, len: file.len_bytes, metadata })?;
        }
        for tensor in catalog.tensors() {
            out.report(&tensor_line(catalog, tensor))?;
        }
        for leaf in catalog.leaves() {
            let (kind, value) = value_of(catalog, &leaf.value);
            out.report(&LeafLine { schema: "straightway.checkpoint.value/1", name: &leaf.name, kind, value })?;
        }
        out.report(&report(&checkpoint, checkpoint.checksums(engine)?))
    })
}

fn tensor_line<'a>(catalog: &'a Catalog, tensor: &'a sw_checkpoint::Tensor) -> TensorLine<'a> {
    let chunk = |chunk: &'a sw_checkpoint::Chunk| ChunkLine {
        file: catalog.files().get(chunk.file).map_or("", |file| file.name.as_str()),
        file_offset: chunk.file_offset,
        len: chunk.len_bytes,
        offsets: &chunk.offsets,
        sizes: &chunk.sizes,
    };
    TensorLine {
        schema: "straightway.checkpoint.tensor/1",
        name: &tensor.name,
        dtype: tensor.dtype.name(),
        shape: &tensor.shape,
        len: tensor.len_bytes,
        chunks: tensor.chunks().iter().map(chunk).collect(),
        refused: match &tensor.held {
            Held::Refused(reason) => Some(reason),
            Held::Chunks(_) => None,
        },
    }
}

fn value_of(catalog: &Catalog, value: &LeafValue) -> (&'static str, String) {
    match value {
        LeafValue::None => ("none", String::new()),
        LeafValue::Bool(value) => ("bool", value.to_string()),
        LeafValue::Int(value) => ("int", value.to_string()),
        LeafValue::Float(value) => ("float", value.to_string()),
        LeafValue::Text(value) => ("text", value.clone()),
        LeafValue::Other(value) => ("other", value.clone()),
        LeafValue::Stored { file, file_offset, len_bytes } => {
            let name = catalog.files().get(*file).map_or("", |file| file.name.as_str());
            ("stored", format!("{len_bytes} bytes at byte {file_offset} of {name}"))
        }
        // The list of kinds may grow.
        _ => ("other", String::new()),
    }
}

fn report<'a>(checkpoint: &'a Checkpoint, beside: Option<&Checksums>) -> Report<'a> {
    let catalog = checkpoint.catalog();
    let mut dtypes: BTreeMap<&'static str, u64> = BTreeMap::new();
    catalog.tensors().iter().for_each(|tensor| *dtypes.entry(tensor.dtype.name()).or_default() += 1);
    Report {
        schema: "straightway.checkpoint.show/1",
        checkpoint: checkpoint.at().to_string(),
        format: catalog.format().name(),
        writer: catalog.writer(),
        files: catalog.files().len(),
        file_bytes: catalog.files().iter().fold(0, |sum, file| sum.saturating_add(file.len_bytes)),
        tensors: catalog.tensors().len(),
        refused: catalog.tensors().iter().filter(|tensor| matches!(tensor.held, Held::Refused(_))).count(),
        tensor_bytes: catalog.tensor_len_bytes(),
        other_values: catalog.leaves().len(),
        checksums: beside.map(|beside| Beside {
            files: catalog.files().iter().filter(|file| beside.files.contains_key(&file.name)).count(),
            chunk_bytes: beside.chunk_bytes,
        }),
        dtypes: dtypes.into_iter().map(|(dtype, tensors)| DtypeCount { dtype, tensors }).collect(),
    }
}
