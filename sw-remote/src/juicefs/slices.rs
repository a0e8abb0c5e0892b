//! What a chunk of a file is made of.
//!
//! ```text
//!   slices, as they were written     ────1111────     a chunk is 64 MiB; later ones lie over earlier ones
//!                                    ──────22222222
//!   spans, as they are read          0000112222222200  what nobody wrote is zeros
//!                                        │└ bytes 2.. of slice 2: objects of the block's size each, numbered from 0
//! ```

use std::collections::BTreeMap;

/// Bytes of a chunk (JuiceFS 1.4.1 `pkg/meta/interface.go`, `ChunkSize`).
pub(super) const CHUNK_BYTES: u64 = 64 << 20;
/// Bytes of a slice's record (`pkg/meta/slice.go`, `sliceBytes`): where it lies in the chunk, its number, how long it was written, and which part
/// of that counts, from where on.
const RECORD_BYTES: usize = 24;
/// Records of one chunk at most; JuiceFS makes one slice of them long before.
const RECORDS_MAX: usize = 1 << 16;

/// A part of a slice, at a place in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    len: u64,
    slice: Slice,
    /// First byte in the slice.
    from: u64,
}

/// Bytes that were written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    /// Its number, which no other one has; 0: zeros.
    id: u64,
    /// Bytes of all of it.
    size: u64,
}

/// What a chunk is made of: parts that do not overlap, by their first byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chunk(BTreeMap<u64, Part>);

/// Where bytes of a chunk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) len: u64,
    /// The slice and the first byte in it; `None`: they are zeros.
    pub(super) of: Option<(Slice, u64)>,
}

/// An object of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    slice: u64,
    number: u64,
    /// Bytes of it.
    pub(super) size: u64,
}

/// How the objects of a volume are cut and called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Naming {
    /// Bytes of a block.
    pub(super) block_bytes: u64,
    pub(super) form: Form,
}

/// What the names of blocks begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The slice's number by the million and by the thousand.
    Counted,
    /// Its last byte, then the number by the million (`--hash-prefix`).
    Hashed,
}

impl Slice {
    /// The block that byte `at` of it is in, the byte's place there, and the bytes of the block from there on.
    pub(super) fn block(self, at: u64, naming: Naming) -> (Block, u64, u64) {
        let (number, within) = (at / naming.block_bytes, at % naming.block_bytes);
        let size = naming.block_bytes.min(self.size - number * naming.block_bytes);
        (Block { slice: self.id, number, size }, within, size - within)
    }
}

impl Block {
    /// Its name below that of the volume (JuiceFS 1.4.1 `pkg/chunk/cached_store.go`, `rSlice.key`).
    pub(super) fn key(self, naming: Naming) -> String {
        let Self { slice, number, size } = self;
        match naming.form {
            Form::Counted => format!("chunks/{}/{}/{slice}_{number}_{size}", slice / 1_000_000, slice / 1000),
            Form::Hashed => format!("chunks/{:02X}/{}/{slice}_{number}_{size}", slice % 256, slice / 1_000_000),
        }
    }
}

/// The numbers of a record; `None` if it is none.
fn record(bytes: &[u8]) -> Option<(u64, Part)> {
    let bytes: &[u8; RECORD_BYTES] = bytes.try_into().ok()?;
    let word = |at: usize, len: usize| bytes[at..at + len].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let (pos, id, size, from, len) = (word(0, 4), word(4, 8), word(12, 4), word(16, 4), word(20, 4));
    // Zeros have no size.
    let is_inside = pos + len <= CHUNK_BYTES && (id == 0 || from + len <= size);
    is_inside.then_some((pos, Part { len, slice: Slice { id, size }, from }))
}

impl Chunk {
    /// By its records, in the order in which they came to be.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn of<R: AsRef<[u8]>>(records: &[R]) -> Result<Self, &'static str> {
        if records.len() > RECORDS_MAX {
            return Err("a chunk has more slices than JuiceFS ever leaves it");
        }
        let mut chunk = Self::default();
        for bytes in records {
            let (pos, part) = record(bytes.as_ref()).ok_or("a slice's record is none, or lies outside of its chunk")?;
            chunk.put(pos, part);
        }
        Ok(chunk)
    }

    /// Lays a part over what is there.
    fn put(&mut self, pos: u64, part: Part) {
        if part.len == 0 {
            return;
        }
        let end = pos + part.len;
        self.cut(pos);
        self.cut(end);
        let under: Vec<u64> = self.0.range(pos..end).map(|(at, _)| *at).collect();
        for at in under {
            self.0.remove(&at);
        }
        self.0.insert(pos, part);
    }

    /// Makes two of the part that `at` is inside of.
    fn cut(&mut self, at: u64) {
        let Some((start, part)) = self.0.range_mut(..at).next_back() else { return };
        let left = at - start;
        if left < part.len {
            let rest = Part { len: part.len - left, from: part.from + left, ..*part };
            part.len = left;
            self.0.insert(at, rest);
        }
    }

    /// Where the first of the `len` bytes (above zero) from `at` are, with as many behind it as are there too.
    pub(super) fn span(&self, at: u64, len: u64) -> Span {
        let before = self.0.range(..=at).next_back().filter(|(start, part)| at < *start + part.len);
        if let Some((start, part)) = before {
            let into = at - start;
            let of = (part.slice.id != 0).then_some((part.slice, part.from + into));
            return Span { len: len.min(part.len - into), of };
        }
        let next = self.0.range(at..).next().map_or(len, |(start, _)| start - at);
        Span { len: len.min(next), of: None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, proptest};

    use super::*;

    fn bytes_of(pos: u32, id: u64, size: u32, from: u32, len: u32) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..4].copy_from_slice(&pos.to_be_bytes());
        bytes[4..12].copy_from_slice(&id.to_be_bytes());
        for (at, word) in [(12, size), (16, from), (20, len)] {
            bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn what_is_no_record_is_none() {
        let fine = bytes_of(0, 1, 10, 2, 8);
        assert!(Chunk::of(&[fine]).is_ok());
        assert!(Chunk::of(&[&fine[..23]]).is_err());
        assert!(Chunk::of(&[bytes_of(0, 1, 10, 3, 8)]).is_err(), "beyond the slice");
        assert!(Chunk::of(&[bytes_of(u32::MAX, 1, 10, 0, 8)]).is_err(), "beyond the chunk");
        assert!(Chunk::of(&[bytes_of(0, 0, 0, 0, 8)]).is_ok(), "zeros");
        assert!(Chunk::of(&[bytes_of(64 << 20, 1, 10, 0, 0)]).is_ok(), "nothing, at its end");
    }

    #[test]
    fn blocks_are_called_as_juicefs_calls_them() {
        let slice = Slice { id: 1_234_567, size: 5 << 20 };
        let naming = Naming { block_bytes: 4 << 20, form: Form::Counted };
        let (block, within, left) = slice.block((4 << 20) + 10, naming);
        assert_eq!((within, left), (10, (1 << 20) - 10));
        assert_eq!(block.key(naming), "chunks/1/1234/1234567_1_1048576");
        let (block, ..) = slice.block(0, naming);
        assert_eq!(block.key(Naming { form: Form::Hashed, ..naming }), "chunks/87/1/1234567_0_4194304");
    }

    proptest! {
        /// Against an array that each slice is written into.
        #[test]
        fn later_slices_lie_over_earlier_ones(
            writes in prop::collection::vec((0u32..100, 0u64..6, 0u32..40, 0u32..40), 0..24),
            reads in prop::collection::vec((0u64..120, 1u64..60), 1..8),
        ) {
            let mut naive = vec![None; 200];
            let records: Vec<_> = writes.iter().map(|(pos, id, from, len)| {
                for n in 0..*len {
                    naive[(pos + n) as usize] = (*id != 0).then_some((*id, u64::from(from + n)));
                }
                bytes_of(*pos, *id, from + len, *from, *len)
            }).collect();
            let chunk = Chunk::of(&records).unwrap();
            for (start, len) in reads {
                let mut at = start;
                while at < start + len {
                    let span = chunk.span(at, start + len - at);
                    prop_assert!(span.len > 0 && span.len <= start + len - at);
                    for n in 0..span.len {
                        let got = span.of.map(|(slice, from)| (slice.id, from + n));
                        prop_assert_eq!(got, naive[usize::try_from(at + n).unwrap()]);
                    }
                    at += span.len;
                }
            }
        }
    }
}
