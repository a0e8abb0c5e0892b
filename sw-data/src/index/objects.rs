//! The table of objects while an index is made: in memory, in the form in which it is written.

use crate::samples::ObjectEntry;

/// Texts behind each other.
#[derive(Debug, Default)]
struct LongTexts {
    bytes: Vec<u8>,
    ends: Vec<u64>,
}

impl LongTexts {
    fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        self.ends.push(self.bytes.len() as u64);
    }
}

/// Objects by column: about 100 bytes each with their addresses.
#[derive(Debug, Default)]
pub(super) struct ObjectRows {
    uris: LongTexts,
    lens: Vec<u64>,
    versions: LongTexts,
    formats: LongTexts,
    codings: LongTexts,
    first: Vec<u64>,
    samples: Vec<u64>,
    checksums: Vec<u64>,
}

/// Which samples of an index are of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The first of them.
    pub first: u64,
    /// How many.
    pub samples: u64,
    /// Of them, with a checksum.
    pub checksums: u64,
}

impl ObjectRows {
    pub fn push(&mut self, entry: &ObjectEntry, held: Held) {
        self.uris.push(&entry.uri);
        self.lens.push(entry.len);
        self.versions.push(&entry.version);
        self.formats.push(entry.format.name());
        self.codings.push(&entry.coding);
        self.first.push(held.first);
        self.samples.push(held.samples);
        self.checksums.push(held.checksums);
    }

    pub fn len(&self) -> usize {
        self.lens.len()
    }

    pub fn uris(&self) -> (&[u8], &[u64]) {
        (&self.uris.bytes, &self.uris.ends)
    }

    pub fn lens(&self) -> &[u64] {
        &self.lens
    }

    pub fn versions(&self) -> (&[u8], &[u64]) {
        (&self.versions.bytes, &self.versions.ends)
    }

    pub fn formats(&self) -> (&[u8], &[u64]) {
        (&self.formats.bytes, &self.formats.ends)
    }

    pub fn codings(&self) -> (&[u8], &[u64]) {
        (&self.codings.bytes, &self.codings.ends)
    }

    /// First sample, samples, samples with a checksum.
    pub fn counts(&self) -> [&[u64]; 3] {
        [&self.first, &self.samples, &self.checksums]
    }
}
