//! Samples as columns, the form in which they are found, passed between threads, written and read.

use straightway::{Error, ErrorKind, Verb};

use crate::{formats::Extent, samples::Part};

/// Most bytes of a key or of the name of a part: a path of the operating system.
pub(super) const NAME_MAX: usize = 4096;
/// Most parts of a sample. WebDataset has a handful, MDS some tens.
pub(super) const PARTS_MAX: usize = 4096;
/// Most bytes of the texts of a batch, and most parts: offsets have 31 bits.
const BATCH_MAX: usize = 1 << 30;

/// What is found of one sample. Which object and group it belongs to, whoever collects it knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a> {
    pub extent: Extent,
    pub row: Option<u32>,
    pub crc32c: Option<u32>,
    pub key: &'a str,
    pub parts: &'a [Part],
}

/// Values that may be missing: zero where they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Maybes {
    pub values: Vec<u32>,
    pub there: Vec<bool>,
}

impl Maybes {
    fn push(&mut self, value: Option<u32>) {
        self.values.push(value.unwrap_or(0));
        self.there.push(value.is_some());
    }

    pub fn get(&self, at: usize) -> Option<u32> {
        self.there.get(at).filter(|there| **there).and_then(|_| self.values.get(at)).copied()
    }

    pub fn missing(&self) -> usize {
        self.there.iter().filter(|there| !**there).count()
    }

    fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.there.truncate(len);
    }
}

/// Texts behind each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts {
    pub bytes: Vec<u8>,
    /// Where each ends.
    pub ends: Vec<u32>,
}

impl Texts {
    fn push(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        // `Rows::check` keeps it below `BATCH_MAX`.
        self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
    }

    fn range(&self, at: usize) -> std::ops::Range<usize> {
        range(&self.ends, at)
    }

    pub fn get(&self, at: usize) -> &[u8] {
        self.bytes.get(self.range(at)).unwrap_or_default()
    }

    fn truncate(&mut self, len: usize) {
        self.ends.truncate(len);
        self.bytes.truncate(self.ends.last().map_or(0, |end| index(*end)));
    }
}

/// From the end of the one before to its own.
fn range(ends: &[u32], at: usize) -> std::ops::Range<usize> {
    let start = at.checked_sub(1).and_then(|before| ends.get(before)).map_or(0, |end| index(*end));
    start..ends.get(at).map_or(start, |end| index(*end))
}

/// 32 bits always fit: the workspace is for 64-bit machines.
fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Samples by column.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    pub objects: Vec<u32>,
    pub offsets: Vec<u64>,
    pub lens: Vec<u64>,
    pub rows: Maybes,
    pub crcs: Maybes,
    pub keys: Texts,
    pub groups: Vec<u32>,
    /// Where the parts of each sample end.
    pub part_ends: Vec<u32>,
    pub part_names: Texts,
    pub part_offsets: Vec<u64>,
    pub part_lens: Vec<u64>,
}

impl Rows {
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Adds a sample. Its object and group are those of whoever takes the rows over.
    ///
    /// # Errors
    /// `TooLarge` for a name, a number of parts or a batch beyond its limit.
    pub fn add(&mut self, found: &Found<'_>) -> Result<(), Error> {
        let longest = found.parts.iter().map(|part| part.name.len()).chain([found.key.len()]).max().unwrap_or(0);
        let names = found.parts.iter().map(|part| part.name.len()).sum();
        self.check(found.extent, (longest, found.parts.len()), (found.key.len(), names))?;
        self.keys.push(found.key.as_bytes());
        for part in found.parts {
            self.part_names.push(part.name.as_bytes());
            self.part_offsets.push(part.extent.offset);
            self.part_lens.push(part.extent.len);
        }
        self.place((0, 0), found.extent, (found.row, found.crc32c));
        Ok(())
    }

    /// Adds sample `at` of others as one of an object and a group.
    ///
    /// # Errors
    /// `TooLarge` for a batch beyond its limit.
    pub fn take(&mut self, others: &Rows, at: usize, object: u32, group: u32) -> Result<(), Error> {
        let (key, parts) = (others.keys.get(at), range(&others.part_ends, at));
        let names = parts.clone().map(|part| others.part_names.get(part).len()).sum();
        self.check(others.extent(at), (0, parts.len()), (key.len(), names))?;
        self.keys.push(key);
        for part in parts.clone() {
            self.part_names.push(others.part_names.get(part));
        }
        self.part_offsets.extend_from_slice(others.part_offsets.get(parts.clone()).unwrap_or_default());
        self.part_lens.extend_from_slice(others.part_lens.get(parts).unwrap_or_default());
        self.place((object, group), others.extent(at), (others.rows.get(at), others.crcs.get(at)));
        Ok(())
    }

    /// The columns that every sample has a word in.
    fn place(&mut self, (object, group): (u32, u32), extent: Extent, (row, crc32c): (Option<u32>, Option<u32>)) {
        self.objects.push(object);
        self.groups.push(group);
        self.offsets.push(extent.offset);
        self.lens.push(extent.len);
        self.rows.push(row);
        self.crcs.push(crc32c);
        // `check` keeps it below `BATCH_MAX`.
        self.part_ends.push(u32::try_from(self.part_offsets.len()).unwrap_or(u32::MAX));
    }

    /// Whether a sample with so long a name, so many parts, and so many bytes of key and names is within the limits.
    fn check(&self, at: Extent, (longest, parts): (usize, usize), (key, names): (usize, usize)) -> Result<(), Error> {
        let texts = (self.keys.bytes.len() + key).max(self.part_names.bytes.len() + names);
        let limits = [
            ("a name of bytes", longest, NAME_MAX),
            ("parts", parts, PARTS_MAX),
            ("names in one batch", texts, BATCH_MAX),
            ("parts in one batch", self.part_offsets.len() + parts, BATCH_MAX),
        ];
        let Some((what, have, most)) = limits.into_iter().find(|(_, have, most)| have > most) else { return Ok(()) };
        Err(Error::new(ErrorKind::TooLarge, Verb::Parse)
            .in_range(at.offset, at.len)
            .detail(format!("a sample with {what}: {have}, and {most} is the most"))
            .remedy("leave the object out, or write it anew with less"))
    }

    pub fn extent(&self, at: usize) -> Extent {
        let value = |of: &[u64]| of.get(at).copied().unwrap_or(0);
        Extent { offset: value(&self.offsets), len: value(&self.lens) }
    }

    /// Keeps the first `len`.
    pub fn truncate(&mut self, len: usize) {
        let Self { objects, offsets, lens, rows, crcs, keys, groups, part_ends, .. } = self;
        objects.truncate(len);
        offsets.truncate(len);
        lens.truncate(len);
        rows.truncate(len);
        crcs.truncate(len);
        keys.truncate(len);
        groups.truncate(len);
        part_ends.truncate(len);
        let parts = self.part_ends.last().map_or(0, |end| index(*end));
        self.part_names.truncate(parts);
        self.part_offsets.truncate(parts);
        self.part_lens.truncate(parts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::Label;

    impl Rows {
        /// Key, group and parts of sample `at`.
        pub fn label(&self, at: usize) -> Label {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let part = |at: usize| {
                let value = |of: &[u64]| of.get(at).copied().unwrap_or(0);
                let extent = Extent { offset: value(&self.part_offsets), len: value(&self.part_lens) };
                Part { name: text(self.part_names.get(at)), extent }
            };
            Label {
                key: text(self.keys.get(at)),
                group: self.groups.get(at).copied().unwrap_or(0),
                parts: range(&self.part_ends, at).map(part).collect(),
            }
        }
    }

    fn part(name: &str, offset: u64) -> Part {
        Part { name: name.to_owned(), extent: Extent { offset, len: 7 } }
    }

    #[test]
    fn what_goes_in_comes_out_and_can_be_taken_back() {
        let mut rows = Rows::default();
        let extent = Extent { offset: 5, len: 6 };
        let parts = [part("jpg", 0), part("cls", 512)];
        rows.add(&Found { extent, row: None, crc32c: Some(9), key: "a/b", parts: &parts }).unwrap();
        rows.add(&Found { extent, row: Some(3), crc32c: None, key: "", parts: &[] }).unwrap();
        let mut taken = Rows::default();
        taken.take(&rows, 1, 4, 2).unwrap();
        taken.take(&rows, 0, 5, 3).unwrap();
        assert_eq!((taken.objects.as_slice(), taken.groups.as_slice()), ([4, 5].as_slice(), [2, 3].as_slice()));
        assert_eq!(taken.label(1), Label { key: "a/b".into(), group: 3, parts: parts.to_vec() });
        assert_eq!((taken.rows.get(0), taken.crcs.get(0), taken.crcs.get(1)), (Some(3), None, Some(9)));
        taken.truncate(1);
        assert_eq!((taken.len(), taken.part_offsets.len(), taken.part_names.bytes.len()), (1, 0, 0));
        assert_eq!(taken.label(0), Label { key: String::new(), group: 2, parts: Vec::new() });
    }

    #[test]
    fn names_and_parts_have_limits() {
        let mut rows = Rows::default();
        let extent = Extent { offset: 0, len: 0 };
        let long = "x".repeat(NAME_MAX + 1);
        let many = vec![part("a", 0); PARTS_MAX + 1];
        for found in [
            Found { extent, row: None, crc32c: None, key: &long, parts: &[] },
            Found { extent, row: None, crc32c: None, key: "", parts: &many },
            Found { extent, row: None, crc32c: None, key: "", parts: &[part(&long, 0)] },
        ] {
            assert_eq!(rows.add(&found).unwrap_err().kind(), ErrorKind::TooLarge);
        }
        assert!(rows.is_empty());
    }
}
