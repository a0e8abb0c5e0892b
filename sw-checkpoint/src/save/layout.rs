//! Files to write, as pieces: what a save knows of a format.
//!
//! ```text
//!   file:    | head .... | tensor 3 ......... | tensor 0 .. |..0..| tensor 7 | tail |
//!   chunks:  |<-- 4 MiB -->|<-- 4 MiB -->|<-- 4 MiB -->|<- rest ->|
//! ```
//!
//! A format turns tensors into `FileLayout`-like lists of pieces; from then on a file is a row of chunks, each filled in a
//! slab and written with one aligned write, whatever its pieces are. So ten thousand small tensors cost no more writes than
//! one large one, and the chunk's checksum is that of its slab.

use std::ops::Range;

use crate::{LayoutOptions, TensorSpec, WritePlan, checksums::CHUNK_LEN_BYTES, write_plan::LayoutError};

use super::{Slice, dcp};

/// Which format is written, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// Safetensors, single or sharded.
    Safetensors(LayoutOptions),
    /// The directory of `torch.distributed.checkpoint`.
    Dcp(dcp::DcpOptions),
}

impl Default for Layout {
    fn default() -> Self {
        Self::Safetensors(LayoutOptions::default())
    }
}

impl From<LayoutOptions> for Layout {
    fn from(options: LayoutOptions) -> Self {
        Self::Safetensors(options)
    }
}

/// What a piece of a file consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// All bytes of a tensor, by its position in the list that the layout was made from.
    Tensor(usize),
    /// CRC-32 (IEEE 802.3, as ZIP has it) of the nearest tensor before it in the file: four bytes, little-endian.
    Crc32,
}

/// A run of bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub offset: u64,
    pub len: u64,
    pub content: Content,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// A file to write. Bytes that no piece covers are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilePieces {
    pub name: String,
    pub len_bytes: u64,
    /// By offset, without overlap, none of them empty.
    pub pieces: Vec<Piece>,
}

/// One chunk of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub offset: u64,
    pub len: u64,
    /// The pieces that have bytes in it.
    pub pieces: Range<usize>,
}

/// What a chunk takes of a piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub content: &'a Content,
    /// Where in the chunk.
    pub at: u64,
    /// From where in the piece.
    pub from: u64,
    pub len: u64,
}

impl FilePieces {
    pub(crate) fn chunk_count(&self) -> u64 {
        self.len_bytes.div_ceil(CHUNK_LEN_BYTES)
    }

    /// All chunks in order.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = Chunk> {
        let mut first = 0;
        (0..self.chunk_count()).map(move |number| {
            let offset = number * CHUNK_LEN_BYTES;
            let len = CHUNK_LEN_BYTES.min(self.len_bytes - offset);
            let end = offset + len;
            while self.pieces.get(first).is_some_and(|piece| piece.end() <= offset) {
                first += 1;
            }
            let rest = self.pieces.get(first..).unwrap_or_default();
            let count = rest.iter().take_while(|piece| piece.offset < end).count();
            Chunk { offset, len, pieces: first..first + count }
        })
    }

    /// What `chunk` takes of each of its pieces.
    pub(crate) fn parts(&self, chunk: &Chunk) -> impl Iterator<Item = Part<'_>> {
        let (offset, end) = (chunk.offset, chunk.offset + chunk.len);
        self.pieces.get(chunk.pieces.clone()).unwrap_or_default().iter().map(move |piece| {
            let from = piece.offset.max(offset);
            let to = piece.end().min(end);
            Part { content: &piece.content, at: from - offset, from: from - piece.offset, len: to - from }
        })
    }
}

/// A tensor's place in the files of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Position in the list that the layout was made from.
    pub tensor: usize,
    /// Position of its file.
    pub file: usize,
    /// First byte of what stands for it there: of its data, or of its blob.
    pub offset: u64,
    /// Length of that in bytes.
    pub len: u64,
}

/// Everything that one rank writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RankLayout {
    pub files: Vec<FilePieces>,
    pub placed: Vec<Placed>,
}

/// A rank and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Counted from 0.
    pub number: u32,
    /// Ranks in all, at least 1.
    pub of: u32,
}

impl Rank {
    /// The only one.
    pub const ALONE: Self = Self { number: 0, of: 1 };
}

impl Layout {
    /// The tensors (positions in `specs`) in the order in which their bytes are asked for.
    pub(crate) fn order(&self, specs: &[TensorSpec]) -> Result<Vec<usize>, LayoutError> {
        let tensors: Vec<_> = specs.iter().map(|spec| (spec.clone(), None)).collect();
        let layout = self.lay_out(Rank::ALONE, &tensors, &[])?;
        let pieces = layout.files.iter().flat_map(|file| &file.pieces);
        let tensor = |piece: &Piece| match piece.content {
            Content::Tensor(tensor) => Some(tensor),
            Content::Bytes(_) | Content::Crc32 => None,
        };
        Ok(pieces.filter_map(tensor).collect())
    }

    /// Lays out what `rank` writes.
    pub(super) fn lay_out(
        &self,
        rank: Rank,
        tensors: &[(TensorSpec, Option<Slice>)],
        objects: &[(String, Vec<u8>)],
    ) -> Result<RankLayout, LayoutError> {
        match self {
            Self::Safetensors(options) => safetensors(rank, tensors, objects, options),
            Self::Dcp(options) => dcp::lay_out(rank, tensors, objects, options),
        }
    }
}

fn safetensors(
    rank: Rank,
    tensors: &[(TensorSpec, Option<Slice>)],
    objects: &[(String, Vec<u8>)],
    options: &LayoutOptions,
) -> Result<RankLayout, LayoutError> {
    if let Some((name, _)) = objects.first() {
        return Err(LayoutError::NotATensor { name: name.clone() });
    }
    if let Some((spec, _)) = tensors.iter().find(|(_, slice)| slice.is_some()) {
        return Err(LayoutError::Slice { tensor: spec.name.clone() });
    }
    let mut options = options.clone();
    if rank.of > 1 {
        // Each rank numbers its own files; the index knows them all.
        options.stem = format!("{}-rank{:05}", options.stem, rank.number);
    }
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let plan = WritePlan::new(&specs, &options)?;
    let mut layout = RankLayout::default();
    for (number, file) in plan.files.into_iter().enumerate() {
        let head = Piece { offset: 0, len: file.head.len() as u64, content: Content::Bytes(file.head) };
        let mut pieces = vec![head];
        for tensor in &file.tensors {
            let (offset, len) = (tensor.file_offset, tensor.len_bytes);
            layout.placed.push(Placed { tensor: tensor.spec, file: number, offset, len });
            if len > 0 {
                pieces.push(Piece { offset, len, content: Content::Tensor(tensor.spec) });
            }
        }
        layout.files.push(FilePieces { name: file.name, len_bytes: file.len_bytes, pieces });
    }
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_file_and_parts_cover_the_pieces() {
        let chunk = CHUNK_LEN_BYTES;
        let piece = |offset, len, tensor| Piece { offset, len, content: Content::Tensor(tensor) };
        let file = FilePieces {
            name: String::new(),
            len_bytes: 3 * chunk + 5,
            pieces: vec![
                piece(0, 10, 0),
                piece(10, chunk, 1),
                piece(chunk + 4096, 2 * chunk - 4096, 2),
                piece(3 * chunk, 5, 3),
            ],
        };
        let chunks: Vec<_> = file.chunks().collect();
        let ranges: Vec<_> = chunks.iter().map(|chunk| chunk.pieces.clone()).collect();
        assert_eq!(ranges, [0..2, 1..3, 2..3, 3..4]);
        assert_eq!(chunks.last().map(|chunk| (chunk.offset, chunk.len)), Some((3 * chunk, 5)));
        let mut seen = [0; 4];
        for at in &chunks {
            for part in file.parts(at) {
                let Content::Tensor(tensor) = *part.content else { panic!() };
                assert_eq!(part.from, seen[tensor], "in order and without hole");
                assert!(part.at + part.len <= at.len);
                seen[tensor] += part.len;
            }
        }
        assert_eq!(seen, [10, chunk, 2 * chunk - 4096, 5]);
    }

    #[test]
    fn an_empty_file_has_no_chunk() {
        let file = FilePieces { name: String::new(), len_bytes: 0, pieces: Vec::new() };
        assert_eq!(file.chunks().count(), 0);
    }
}
