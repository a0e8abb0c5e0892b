//! Token sequences of Megatron's indexed datasets: `NAME.idx` says where each sequence lies in `NAME.bin`.
//!
//! Source: Megatron-LM `megatron/core/datasets/indexed_dataset.py`, `_IndexWriter`, `_IndexReader`. All little-endian.

use std::collections::VecDeque;

use super::{Collector, Extent, FormatError, Scan, Wrong};

const MAGIC: &[u8; 9] = b"MMIDIDX\x00\x00";
/// Magic, version (8), type (1), sequences (8), documents (8).
const HEAD: u64 = 34;
/// Sequences that are read at once: 12 bytes each, from two places.
const BATCH: u64 = 64 << 10;

/// Type of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// `uint8`, code 1.
    U8,
    /// `int8`, code 2.
    I8,
    /// `int16`, code 3.
    I16,
    /// `int32`, code 4.
    I32,
    /// `int64`, code 5.
    I64,
    /// `float64`, code 6.
    F64,
    /// `float32`, code 7.
    F32,
    /// `uint16`, code 8.
    U16,
}

impl Token {
    fn of_code(code: u8) -> Option<Self> {
        const CODES: [Token; 8] =
            [Token::U8, Token::I8, Token::I16, Token::I32, Token::I64, Token::F64, Token::F32, Token::U16];
        CODES.get(usize::from(code.checked_sub(1)?)).copied()
    }

    /// Bytes of a token.
    pub fn item_len(self) -> u64 {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }
}

/// What the head of an index says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Type of the tokens.
    pub token: Token,
    /// Sequences.
    pub sequences: u64,
    /// Bounds of documents, one more than there are documents.
    pub documents: u64,
}

/// Walks an index: finds where each sequence lies in the file of tokens. Document bounds stand behind
/// [`TokenIndexScan::documents_at`].
#[derive(Debug)]
pub struct TokenIndexScan {
    bytes: Collector,
    /// Bytes of the file of tokens.
    tokens_len: u64,
    shape: Option<Shape>,
    /// Sequences before the batch that is read.
    done: u64,
    /// Lengths of the batch, while its places are read.
    lens: Option<Vec<u8>>,
    found: VecDeque<Extent>,
}

impl TokenIndexScan {
    /// Begins at the start of an index of so many bytes, for a file of tokens of so many.
    ///
    /// # Errors
    /// `Cut` if it cannot hold a head.
    pub fn new(file_len: u64, tokens_len: u64) -> Result<Self, FormatError> {
        let mut bytes = Collector::new(file_len);
        bytes.want(0, HEAD, "the head of a token index")?;
        Ok(Self { bytes, tokens_len, shape: None, done: 0, lens: None, found: VecDeque::new() })
    }

    /// What the head says, once it was read.
    pub fn shape(&self) -> Option<Shape> {
        self.shape
    }

    /// Where the bounds of documents stand in the index: the number of the first sequence of each, 8 bytes each.
    pub fn documents_at(&self) -> Option<Extent> {
        let shape = self.shape?;
        // Both were held against the file's length.
        Some(Extent { offset: HEAD + 12 * shape.sequences, len: 8 * shape.documents })
    }

    fn head(&mut self, head: &[u8]) -> Result<(), FormatError> {
        let fail = |field| FormatError { offset: 0, wrong: Wrong::Field { field } };
        let magic = head.split_first_chunk::<9>().filter(|(magic, _)| *magic == MAGIC);
        let (_, rest) = magic.ok_or_else(|| fail("the magic bytes of a token index"))?;
        let head = || fail("the head of a token index");
        let (version, rest) = rest.split_first_chunk::<8>().ok_or_else(head)?;
        let (code, rest) = rest.split_first().ok_or_else(head)?;
        let (sequences, rest) = rest.split_first_chunk::<8>().ok_or_else(head)?;
        let (documents, _) = rest.split_first_chunk::<8>().ok_or_else(head)?;
        if u64::from_le_bytes(*version) != 1 {
            let name = u64::from_le_bytes(*version).to_string();
            return Err(FormatError {
                offset: 9,
                wrong: Wrong::Unsupported { what: "a version of the token index", name },
            });
        }
        let token = Token::of_code(*code).ok_or_else(|| fail("the token type of a token index"))?;
        let shape =
            Shape { token, sequences: u64::from_le_bytes(*sequences), documents: u64::from_le_bytes(*documents) };
        let needs = u128::from(shape.sequences) * 12 + u128::from(shape.documents) * 8 + u128::from(HEAD);
        let missing = needs.saturating_sub(u128::from(self.bytes.file_len));
        if missing > 0 {
            let missing = u64::try_from(missing).unwrap_or(u64::MAX);
            let wrong = Wrong::Cut { what: "the token index", missing };
            return Err(FormatError { offset: self.bytes.file_len, wrong });
        }
        self.shape = Some(shape);
        self.go_on(shape)
    }

    /// Sequences of the batch that is read now.
    fn batch(&self, shape: Shape) -> u64 {
        (shape.sequences - self.done).min(BATCH)
    }

    /// Asks for the lengths of the next batch.
    fn go_on(&mut self, shape: Shape) -> Result<(), FormatError> {
        self.bytes.want(HEAD + 4 * self.done, 4 * self.batch(shape), "the lengths of sequences")
    }

    fn lengths(&mut self, lens: Vec<u8>, shape: Shape) -> Result<(), FormatError> {
        self.lens = Some(lens);
        let places = HEAD + 4 * shape.sequences;
        self.bytes.want(places + 8 * self.done, 8 * self.batch(shape), "the places of sequences")
    }

    fn places(&mut self, lens: &[u8], places: &[u8], shape: Shape) -> Result<(), FormatError> {
        let lens = lens.chunks_exact(4).filter_map(|len| len.first_chunk::<4>());
        let places = places.chunks_exact(8).filter_map(|place| place.first_chunk::<8>());
        for (len, place) in lens.zip(places) {
            let number = self.done;
            self.done += 1;
            let extent = || {
                let len = u64::try_from(i32::from_le_bytes(*len)).ok()?.checked_mul(shape.token.item_len())?;
                let offset = u64::try_from(i64::from_le_bytes(*place)).ok()?;
                offset.checked_add(len).filter(|end| *end <= self.tokens_len)?;
                Some(Extent { offset, len })
            };
            let fail =
                || FormatError { offset: HEAD + 4 * number, wrong: Wrong::OutOfFile { what: "a sequence", number } };
            self.found.push_back(extent().ok_or_else(fail)?);
        }
        self.go_on(shape)
    }
}

impl Scan for TokenIndexScan {
    type Found = Extent;

    fn need(&self) -> Option<Extent> {
        self.bytes.need()
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let Some((_, bytes)) = self.bytes.push(bytes)? else { return Ok(()) };
        match (self.shape, self.lens.take()) {
            (None, _) => self.head(&bytes),
            (Some(shape), None) => self.lengths(bytes, shape),
            (Some(shape), Some(lens)) => self.places(&lens, &bytes, shape),
        }
    }

    fn next(&mut self) -> Option<Extent> {
        self.found.pop_front()
    }
}
