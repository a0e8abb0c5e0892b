//! Reads a file's head in bounded steps.
//!
//! The reader says which bytes it needs next; the caller fetches and pushes them. A claimed header length allocates
//! nothing: the buffer grows with the bytes that arrive, by at most [`STEP_LEN_MAX_BYTES`] a step.
//!
//! ```text
//!   HeadReader::new(file_len) ─► need() ─► caller reads ─► push(bytes) ─► need() … None ─► finish() ─► Header
//! ```

use crate::header::{Header, HeaderError, HeaderSpan, LENGTH_LEN_BYTES};

/// Length of the first read in bytes. Most headers are shorter (a model of 300 tensors has about 30 KB), so that one
/// read gets length and text; it is a multiple of every block size, so that it can be direct.
pub const FIRST_STEP_LEN_BYTES: u64 = 64 << 10;

/// Most bytes that one step asks for. A header at the limit takes 96 steps.
pub const STEP_LEN_MAX_BYTES: u64 = 1 << 20;

/// The next bytes that a [`HeadReader`] needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadStep {
    /// First byte, from the start of the file.
    pub file_offset: u64,
    /// How many, at least 1 and at most [`STEP_LEN_MAX_BYTES`]; never past the file's end.
    pub len_bytes: u64,
}

/// Collects the head of a file. Calling order: `need`, `push`, until `need` is `None`; then `finish`.
#[derive(Debug)]
pub struct HeadReader {
    file_len_bytes: u64,
    span: Option<HeaderSpan>,
    head: Vec<u8>,
}

impl HeadReader {
    /// Starts on a file of `file_len_bytes`.
    ///
    /// # Errors
    /// `TooShort` if the file cannot hold a length field.
    pub const fn new(file_len_bytes: u64) -> Result<Self, HeaderError> {
        if file_len_bytes < LENGTH_LEN_BYTES {
            return Err(HeaderError::TooShort { file_len_bytes });
        }
        Ok(Self { file_len_bytes, span: None, head: Vec::new() })
    }

    /// Hands over the bytes that the last [`need`](Self::need) asked for, or the first part of them (a short read).
    /// Bytes past the header are dropped.
    ///
    /// # Errors
    /// `Shrank` if `bytes` is empty while some are needed; as [`HeaderSpan::new`] once the length field is complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), HeaderError> {
        let Some(step) = self.need() else { return Ok(()) };
        if bytes.is_empty() {
            return Err(HeaderError::Shrank { file_offset: step.file_offset, file_len_bytes: self.file_len_bytes });
        }
        self.head.extend_from_slice(bytes);
        if self.span.is_none() {
            let Some((first, _)) = self.head.split_first_chunk::<8>() else { return Ok(()) };
            self.span = Some(HeaderSpan::new(*first, self.file_len_bytes)?);
        }
        // Bytes of tensors that came with the first step are the load's business.
        self.head.truncate(usize::try_from(self.wanted_end()).unwrap_or(usize::MAX));
        Ok(())
    }

    /// Parses the collected header.
    ///
    /// # Errors
    /// As [`Header::parse`]; `WrongSlice` or `Shrank` if it is not complete.
    pub fn finish(self) -> Result<Header, HeaderError> {
        match (self.span, self.head.get(8..)) {
            (Some(span), Some(json)) => Header::parse(span, json),
            _ => Err(HeaderError::Shrank { file_offset: self.head.len() as u64, file_len_bytes: self.file_len_bytes }),
        }
    }

    /// The next bytes to fetch; `None` when the header is complete.
    #[must_use]
    pub fn need(&self) -> Option<ReadStep> {
        let file_offset = self.head.len() as u64;
        let missing = self.wanted_end().saturating_sub(file_offset);
        let limit = if self.span.is_none() { FIRST_STEP_LEN_BYTES } else { STEP_LEN_MAX_BYTES };
        (missing > 0).then(|| ReadStep { file_offset, len_bytes: missing.min(limit) })
    }

    /// End of what is known to be needed, in file bytes.
    fn wanted_end(&self) -> u64 {
        match &self.span {
            Some(span) => span.data_offset(),
            None => FIRST_STEP_LEN_BYTES.min(self.file_len_bytes),
        }
    }
}
