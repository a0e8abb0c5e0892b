//! Reading an index.
//!
//! *Opening* reads the footer and the head of the table of objects, whatever the number of samples. *Looking up* reads, of the
//! batch that arithmetic names, the words of the samples that are asked for; blocks of the file that were read are kept within a
//! bound, and so is what was learnt of each batch.

use std::{collections::BTreeSet, sync::OnceLock};

use straightway::{Engine, Error, ErrorKind, Uri, Verb};

use crate::{
    formats::Extent,
    samples::{Format, Label, ObjectEntry, Part, Place, Samples},
};

use super::{
    blocks::{Blocks, FromEngine, FromMemory, Source, View},
    message::{Batch, Block, Footer, MAGIC, object, sample},
    objects::Held,
    rows::{Found, NAME_MAX, PARTS_MAX, Rows},
};

/// Bytes of the file that are kept, for [`Index::open`].
pub const CACHE_BYTES: u64 = 128 << 20;
/// Bytes of a block where the file does not fit into what is kept: one page, the least that any medium reads.
const BLOCK_BYTES: u64 = 4 << 10;
/// Bytes of a block where it does: every block is read once.
const BLOCK_BYTES_KEPT: u64 = 64 << 10;
/// Most bytes of a footer: two million batches.
const FOOTER_MAX: u64 = 64 << 20;
/// Length of the footer, and the magic.
const TAIL: u64 = 10;
/// Samples that are looked up at once; their blocks are in memory together.
const TURN: usize = 1024;
/// Objects of which first sample and length are kept, at most: 2 MiB.
const KNOWN_MAX: u64 = 128 << 10;
/// Most bytes of an address or a version.
const TEXT_MAX: u64 = 64 << 10;

/// An index that is open. Asked by many threads at once.
pub struct Index {
    blocks: Blocks,
    /// The folder that addresses without one are in.
    folder: String,
    footer: Footer,
    /// What was learnt of each batch: some hundred bytes.
    batches: Vec<OnceLock<Box<Batch>>>,
    objects: Batch,
    /// Of few objects, once the first sample was looked up.
    known: OnceLock<Known>,
}

/// What is kept of every object: the samples of each follow each other, so that the object of a sample need not be read.
struct Known {
    /// The first sample of each, ascending.
    first: Vec<u64>,
    /// Bytes of each.
    len: Vec<u64>,
}

impl Known {
    fn object_of(&self, sample: u64) -> u32 {
        // Those without samples begin where the next one does.
        let behind = self.first.partition_point(|first| *first <= sample);
        behind.checked_sub(1).and_then(|at| u32::try_from(at).ok()).unwrap_or(u32::MAX)
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index")
            .field("name", &self.name())
            .field("samples", &self.footer.samples)
            .field("objects", &self.objects.rows)
            .finish_non_exhaustive()
    }
}

impl Index {
    /// Opens an index file. *Blocking*: three reads.
    ///
    /// # Errors
    /// What opening and reading return; `BadFormat` for a file that is none, or only a part of one.
    pub fn open(engine: &Engine, uri: &Uri) -> Result<Self, Error> {
        let object = engine.open(uri)?;
        let folder = super::folder_of(uri);
        Self::of(Box::new(FromEngine { engine: engine.clone(), object }), folder, CACHE_BYTES)
    }

    /// Whether an object begins as an index does. *Blocking*.
    ///
    /// # Errors
    /// What opening and reading return.
    pub fn is_one(engine: &Engine, uri: &Uri) -> Result<bool, Error> {
        let object = engine.open(uri)?;
        let len = MAGIC.len() as u64;
        if object.len() < len {
            return Ok(false);
        }
        let source = FromEngine { engine: engine.clone(), object };
        Ok(source.read(&[Extent { offset: 0, len }])?.iter().any(|bytes| **bytes == *MAGIC))
    }

    /// An index in memory.
    ///
    /// # Errors
    /// As [`Index::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Error> {
        Self::of(Box::new(FromMemory(bytes)), String::new(), CACHE_BYTES)
    }

    fn of(source: Box<dyn Source>, folder: String, cache: u64) -> Result<Self, Error> {
        let block = if source.len() <= cache { BLOCK_BYTES_KEPT } else { BLOCK_BYTES };
        let blocks = Blocks::new(source, block, cache);
        let footer = read_footer(&blocks)?;
        let damaged = || damaged(&blocks, footer.objects);
        let head = blocks.view([footer.objects.head_extent()])?.bytes(footer.objects.head_extent());
        let objects = Batch::of_objects(&head, footer.objects).ok_or_else(damaged)?;
        if u32::try_from(objects.rows).is_err() {
            return Err(damaged());
        }
        let batches = footer.batches.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { blocks, folder, footer, batches, objects, known: OnceLock::new() })
    }

    /// Its name in the operator's words.
    pub fn name(&self) -> &str {
        self.blocks.source().name()
    }

    fn damaged(&self, block: Block) -> Error {
        damaged(&self.blocks, block)
    }

    /// Learns where the columns of batches are.
    fn learn(&self, numbers: &BTreeSet<usize>) -> Result<(), Error> {
        let unknown = |number: &&usize| self.batches.get(**number).is_some_and(|batch| batch.get().is_none());
        let numbers: Vec<usize> = numbers.iter().filter(unknown).copied().collect();
        let heads = || numbers.iter().filter_map(|number| Some((*number, *self.footer.batches.get(*number)?)));
        let view = self.blocks.view(heads().map(|(_, block)| block.head_extent()))?;
        for (number, block) in heads() {
            let batch = Batch::of_samples(&view.bytes(block.head_extent()), block);
            let is_last = number + 1 == self.batches.len();
            let rows =
                if is_last { self.footer.samples - number as u64 * self.footer.batch } else { self.footer.batch };
            let batch = batch.filter(|batch| batch.rows == rows).ok_or_else(|| self.damaged(block))?;
            if let Some(slot) = self.batches.get(number) {
                // Another thread may have learnt the same meanwhile.
                let _ = slot.set(Box::new(batch));
            }
        }
        Ok(())
    }

    /// The batch of a sample, which is learnt, and its row there.
    fn find(&self, number: u64) -> Result<(&Batch, u64), Error> {
        let (batch, row) = (number / self.footer.batch, number % self.footer.batch);
        let batch = usize::try_from(batch).ok().and_then(|batch| self.batches.get(batch)?.get());
        batch.map(|batch| (&**batch, row)).ok_or_else(|| self.no_sample(number))
    }

    fn no_sample(&self, number: u64) -> Error {
        Error::new(ErrorKind::OutOfRange, Verb::Read)
            .at(self.name())
            .detail(format!("there is no sample {number}; the index has {}", self.footer.samples))
            .remedy("ask for numbers below that")
    }

    /// Learns the batches of samples, all of which must exist.
    fn learn_for(&self, samples: &[u64]) -> Result<(), Error> {
        let mut numbers = BTreeSet::new();
        for sample in samples {
            if *sample >= self.footer.samples {
                return Err(self.no_sample(*sample));
            }
            numbers.insert(usize::try_from(sample / self.footer.batch).unwrap_or(usize::MAX));
        }
        self.learn(&numbers)
    }

    /// What is kept of the objects; `None` where there are too many.
    fn known(&self) -> Result<Option<&Known>, Error> {
        if self.objects.rows > KNOWN_MAX || self.known.get().is_some() {
            return Ok(self.known.get());
        }
        let column = |buffer| Extent { len: self.objects.rows * 8, ..word(&self.objects, buffer, 0, 8) };
        let columns = [object::FIRST, object::LEN].map(column);
        let view = self.blocks.view(columns)?;
        let [first, len] = columns.map(|column| -> Vec<u64> {
            let bytes = view.bytes(column);
            bytes.chunks_exact(8).filter_map(|word| word.first_chunk()).map(|word| u64::from_le_bytes(*word)).collect()
        });
        let begins = first.first().is_none_or(|first| *first == 0) && first.is_sorted();
        let known = begins.then_some(Known { first, len }).ok_or_else(|| self.damaged(self.footer.objects))?;
        // Another thread may have read the same meanwhile.
        Ok(Some(self.known.get_or_init(|| known)))
    }

    fn locate_turn(&self, samples: &[u64], places: &mut Vec<Place>) -> Result<(), Error> {
        self.learn_for(samples)?;
        let known = self.known()?;
        let found: Vec<(&Batch, u64)> = samples.iter().map(|sample| self.find(*sample)).collect::<Result<_, _>>()?;
        let objects = found.iter().filter(|_| known.is_none());
        let objects = objects.map(|(batch, row)| word(batch, sample::OBJECT, *row, 4));
        let extents = found.iter().flat_map(|(batch, row)| place_extents(batch, *row));
        let view = self.blocks.view(extents.chain(objects))?;
        let place = |(number, (batch, row)): (&u64, &(&Batch, u64))| {
            let word32 = |buffer| u32::from_le_bytes(view.word(word(batch, buffer, *row, 4).offset));
            let word64 = |buffer| u64::from_le_bytes(view.word(word(batch, buffer, *row, 8).offset));
            let maybe = |node, bits, buffer| is_there(&view, batch, (node, bits), *row).then(|| word32(buffer));
            Place {
                object: known.map_or_else(|| word32(sample::OBJECT), |known| known.object_of(*number)),
                extent: Extent { offset: word64(sample::OFFSET), len: word64(sample::LEN) },
                row: maybe(sample::ROW_NODE, sample::ROW_BITS, sample::ROW),
                crc32c: maybe(sample::CRC_NODE, sample::CRC_BITS, sample::CRC),
            }
        };
        let found: Vec<Place> = samples.iter().zip(&found).map(place).collect();
        self.check(samples, &found)?;
        places.extend(found);
        Ok(())
    }

    /// Whether extents lie inside their objects.
    fn check(&self, samples: &[u64], places: &[Place]) -> Result<(), Error> {
        let inside = |place: &Place, len: Option<u64>| {
            let end = place.extent.offset.checked_add(place.extent.len);
            end.zip(len).is_some_and(|(end, len)| end <= len)
        };
        if let Some(known) = self.known()? {
            let len = |place: &Place| known.len.get(usize::try_from(place.object).ok()?).copied();
            let wrong = samples.iter().zip(places).find(|(_, place)| !inside(place, len(place)));
            return wrong.map_or(Ok(()), |(sample, place)| Err(self.outside(*sample, place)));
        }
        let len_at = |object: u32| word(&self.objects, object::LEN, u64::from(object), 8);
        let known: BTreeSet<u32> =
            places.iter().map(|place| place.object).filter(|object| u64::from(*object) < self.objects.rows).collect();
        let view = self.blocks.view(known.iter().map(|object| len_at(*object)))?;
        for (sample, place) in samples.iter().zip(places) {
            let len = || u64::from_le_bytes(view.word(len_at(place.object).offset));
            if !inside(place, known.contains(&place.object).then(len)) {
                return Err(self.outside(*sample, place));
            }
        }
        Ok(())
    }

    fn outside(&self, number: u64, place: &Place) -> Error {
        Error::new(ErrorKind::BadFormat, Verb::Parse)
            .at(self.name())
            .detail(format!(
                "sample {number} is said to be bytes {}+{} of object {}, which are not there",
                place.extent.offset, place.extent.len, place.object
            ))
            .remedy("the index is damaged; index the dataset again")
    }

    fn labels_turn(&self, samples: &[u64], labels: &mut Vec<Label>) -> Result<(), Error> {
        self.learn_for(samples)?;
        let found: Vec<(&Batch, u64)> = samples.iter().map(|sample| self.find(*sample)).collect::<Result<_, _>>()?;
        let first = self.blocks.view(found.iter().flat_map(|(batch, row)| {
            [
                word(batch, sample::LEN, *row, 8),
                word(batch, sample::GROUP, *row, 4),
                pair(batch, sample::KEY_ENDS, *row),
                pair(batch, sample::PART_ENDS, *row),
            ]
        }))?;
        let mut named = Vec::with_capacity(found.len());
        for (number, (batch, row)) in samples.iter().zip(&found) {
            let bad = || self.bad_label(*number);
            let key = ends(&first, pair(batch, sample::KEY_ENDS, *row)).ok_or_else(bad)?;
            let parts = ends(&first, pair(batch, sample::PART_ENDS, *row)).ok_or_else(bad)?;
            let count = *batch.lens.get(sample::PARTS_NODE).unwrap_or(&0);
            let too_many = parts.len > PARTS_MAX as u64 || parts.offset + parts.len > count;
            let key = inside(batch, sample::KEYS, key).filter(|_| !too_many).ok_or_else(bad)?;
            let group = u32::from_le_bytes(first.word(word(batch, sample::GROUP, *row, 4).offset));
            named.push((group, key, parts));
        }
        let second = self.blocks.view(found.iter().zip(&named).flat_map(|((batch, _), (_, key, parts))| {
            let ends = part_range(batch, sample::NAME_ENDS, *parts, 4);
            let ends = Extent { len: ends.len + 4, ..ends };
            let [offset, len] = [sample::PART_OFFSET, sample::PART_LEN].map(|at| part_range(batch, at, *parts, 8));
            [*key, ends, offset, len]
        }))?;
        let mut names = Vec::new();
        for (number, ((batch, _), (_, _, parts))) in samples.iter().zip(found.iter().zip(&named)) {
            for part in parts.offset..parts.offset + parts.len {
                let name = ends(&second, pair(batch, sample::NAME_ENDS, part));
                let name = name.and_then(|name| inside(batch, sample::NAMES, name));
                names.push(name.ok_or_else(|| self.bad_label(*number))?);
            }
        }
        let third = self.blocks.view(names.iter().copied())?;
        let text = |view: &View, extent| String::from_utf8_lossy(&view.bytes(extent)).into_owned();
        let mut names = names.into_iter();
        for ((number, (batch, row)), (group, key, parts)) in samples.iter().zip(&found).zip(named) {
            let len = u64::from_le_bytes(first.word(word(batch, sample::LEN, *row, 8).offset));
            let mut label = Label { key: text(&second, key), group, parts: Vec::new() };
            for at in parts.offset..parts.offset + parts.len {
                let word64 = |buffer| u64::from_le_bytes(second.word(word(batch, buffer, at, 8).offset));
                let extent = Extent { offset: word64(sample::PART_OFFSET), len: word64(sample::PART_LEN) };
                if extent.offset.checked_add(extent.len).is_none_or(|end| end > len) {
                    return Err(self.bad_label(*number));
                }
                label.parts.extend(names.next().map(|name| Part { name: text(&third, name), extent }));
            }
            labels.push(label);
        }
        Ok(())
    }

    fn bad_label(&self, number: u64) -> Error {
        Error::new(ErrorKind::BadFormat, Verb::Parse)
            .at(self.name())
            .detail(format!("the names of sample {number} cannot be read"))
            .remedy("the index is damaged; index the dataset again")
    }

    /// Successive samples from `first` on, at most `most` and at most to the end of their batch: read as a whole, and nothing of
    /// them is kept.
    pub(super) fn read_rows(&self, first: u64, most: u64) -> Result<Rows, Error> {
        self.learn_for(&[first])?;
        let (batch, from) = self.find(first)?;
        let count = most.min(batch.rows - from);
        let mut places = Vec::new();
        let mut labels = Vec::new();
        let numbers: Vec<u64> = (first..first + count).collect();
        self.locate(&numbers, &mut places)?;
        self.labels(&numbers, &mut labels)?;
        let mut rows = Rows::default();
        for (place, label) in places.iter().zip(&labels) {
            let Place { extent, row, crc32c, .. } = *place;
            rows.add(&Found { extent, row, crc32c, key: &label.key, parts: &label.parts })?;
        }
        Ok(rows)
    }

    /// Lengths of the extents of successive samples from `first` on, to the end of their batch: read at once, and not kept.
    ///
    /// # Errors
    /// `OutOfRange` for a sample that does not exist; those of reading.
    pub fn lens_from(&self, first: u64) -> Result<Vec<u64>, Error> {
        self.learn_for(&[first])?;
        let (batch, row) = self.find(first)?;
        let extent = Extent { len: (batch.rows - row) * 8, ..word(batch, sample::LEN, row, 8) };
        let bytes = self.blocks.source().read(&[extent])?;
        let words = bytes.iter().flat_map(|bytes| bytes.chunks_exact(8));
        Ok(words.filter_map(|word| word.first_chunk::<8>()).map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// Which samples an object has.
    ///
    /// # Errors
    /// `OutOfRange` for an object that does not exist; those of reading; `BadFormat` for samples that do not.
    pub fn held(&self, number: u32) -> Result<Held, Error> {
        let at = self.object_row(number)?;
        let of = |buffer| word(&self.objects, buffer, at, 8);
        let view = self.blocks.view([of(object::FIRST), of(object::SAMPLES), of(object::CHECKSUMS)])?;
        let value = |buffer| u64::from_le_bytes(view.word(of(buffer).offset));
        let held =
            Held { first: value(object::FIRST), samples: value(object::SAMPLES), checksums: value(object::CHECKSUMS) };
        let end = held.first.checked_add(held.samples).filter(|end| *end <= self.footer.samples);
        let is_right = end.is_some() && held.checksums <= held.samples;
        is_right.then_some(held).ok_or_else(|| self.damaged(self.footer.objects))
    }

    fn object_row(&self, number: u32) -> Result<u64, Error> {
        let at = u64::from(number);
        if at < self.objects.rows {
            return Ok(at);
        }
        Err(Error::new(ErrorKind::OutOfRange, Verb::Read)
            .at(self.name())
            .detail(format!("there is no object {number}; the index has {}", self.objects.rows))
            .remedy("ask for numbers below that"))
    }

    /// An address as commands take it: those in the folder of the index are kept without it.
    fn resolve(&self, uri: String) -> String {
        let is_whole =
            self.folder.is_empty() || uri.starts_with('/') || uri.contains("://") || uri.starts_with("stripe:");
        if is_whole { uri } else { format!("{}/{uri}", self.folder) }
    }
}

impl Samples for Index {
    type Error = Error;

    fn len(&self) -> u64 {
        self.footer.samples
    }

    fn object_count(&self) -> u32 {
        // Held against it when it was opened.
        u32::try_from(self.objects.rows).unwrap_or(u32::MAX)
    }

    fn object(&self, number: u32) -> Result<ObjectEntry, Error> {
        let at = self.object_row(number)?;
        let damaged = || self.damaged(self.footer.objects);
        let len = word(&self.objects, object::LEN, at, 8);
        let columns = [
            (object::URI_ENDS, object::URIS),
            (object::VERSION_ENDS, object::VERSIONS),
            (object::FORMAT_ENDS, object::FORMATS),
            (object::CODING_ENDS, object::CODINGS),
        ];
        let pairs = columns.map(|(ends, _)| Extent { len: 16, ..word(&self.objects, ends, at, 8) });
        let view = self.blocks.view(pairs.into_iter().chain([len]))?;
        let text = |((_, bytes), pair): ((usize, usize), Extent)| {
            let [from, to] = [pair.offset, pair.offset + 8].map(|at| u64::from_le_bytes(view.word(at)));
            let len = to.checked_sub(from).filter(|len| *len <= TEXT_MAX)?;
            inside(&self.objects, bytes, Extent { offset: from, len })
        };
        let texts: Option<Vec<Extent>> = columns.into_iter().zip(pairs).map(text).collect();
        let texts = texts.ok_or_else(damaged)?;
        let view_texts = self.blocks.view(texts.iter().copied())?;
        let mut texts = texts.iter().map(|text| String::from_utf8(view_texts.bytes(*text)));
        let mut next = || texts.next().and_then(Result::ok).ok_or_else(damaged);
        let (uri, version, format, coding) = (self.resolve(next()?), next()?, next()?, next()?);
        let format: Format = format.parse().map_err(|_| damaged())?;
        Ok(ObjectEntry { uri, len: u64::from_le_bytes(view.word(len.offset)), version, format, coding })
    }

    fn locate(&self, samples: &[u64], places: &mut Vec<Place>) -> Result<(), Error> {
        let before = places.len();
        let done = samples.chunks(TURN).try_for_each(|turn| self.locate_turn(turn, places));
        done.inspect_err(|_| places.truncate(before))
    }

    fn labels(&self, samples: &[u64], labels: &mut Vec<Label>) -> Result<(), Error> {
        let before = labels.len();
        let done = samples.chunks(TURN).try_for_each(|turn| self.labels_turn(turn, labels));
        done.inspect_err(|_| labels.truncate(before))
    }
}

impl Block {
    fn head_extent(self) -> Extent {
        Extent { offset: self.offset, len: self.head }
    }
}

fn damaged(blocks: &Blocks, block: Block) -> Error {
    Error::new(ErrorKind::BadFormat, Verb::Parse)
        .at(blocks.source().name())
        .in_range(block.offset, block.head + block.body)
        .detail("a part of the index cannot be read")
        .remedy("it is damaged; index the dataset again")
}

fn read_footer(blocks: &Blocks) -> Result<Footer, Error> {
    let source = blocks.source();
    let none = || {
        Error::new(ErrorKind::BadFormat, Verb::Parse)
            .at(source.name())
            .detail(format!("{} bytes that are no index of straightway, or a part of one", source.len()))
            .remedy("make one: straightway dataset index URI --out FILE")
    };
    let tail = source.len().checked_sub(TAIL).ok_or_else(none)?;
    let extent = Extent { offset: tail, len: TAIL };
    let bytes = blocks.view([extent])?.bytes(extent);
    let (len, magic) = bytes.split_first_chunk::<4>().ok_or_else(none)?;
    let len = u64::from(u32::from_le_bytes(*len));
    let start = tail.checked_sub(len).filter(|_| magic == MAGIC && (1..=FOOTER_MAX).contains(&len)).ok_or_else(none)?;
    let extents = [Extent { offset: start, len }, Extent { offset: 0, len: MAGIC.len() as u64 }];
    let view = blocks.view(extents)?;
    let footer = Footer::read(&view.bytes(extents[0]), start);
    footer.filter(|_| view.bytes(extents[1]) == MAGIC).ok_or_else(none)
}

/// The word of a row in a buffer. Rows are those of the batch, whose buffers were held against them.
fn word(batch: &Batch, buffer: usize, row: u64, len: u64) -> Extent {
    let start = batch.buffers.get(buffer).map_or(u64::MAX / 2, |buffer| buffer.offset);
    Extent { offset: start + row * len, len }
}

/// The end of the row before, and its own.
fn pair(batch: &Batch, buffer: usize, row: u64) -> Extent {
    Extent { len: 8, ..word(batch, buffer, row, 4) }
}

/// From one end to the next.
fn ends(view: &View, pair: Extent) -> Option<Extent> {
    let [from, to] = [pair.offset, pair.offset + 4].map(|at| u64::from(u32::from_le_bytes(view.word(at))));
    Some(Extent { offset: from, len: to.checked_sub(from)? })
}

/// A text in the buffer of its bytes.
fn inside(batch: &Batch, buffer: usize, text: Extent) -> Option<Extent> {
    let buffer = batch.buffers.get(buffer)?;
    let end = text.offset.checked_add(text.len)?;
    let fits = end <= buffer.len && text.len <= TEXT_MAX.max(NAME_MAX as u64);
    fits.then(|| Extent { offset: buffer.offset + text.offset, len: text.len })
}

fn part_range(batch: &Batch, buffer: usize, parts: Extent, len: u64) -> Extent {
    Extent { len: parts.len * len, ..word(batch, buffer, parts.offset, len) }
}

/// What must be read to tell a place, but for its object.
fn place_extents(batch: &Batch, row: u64) -> impl Iterator<Item = Extent> {
    let maybe = |node: usize, bits, buffer| {
        let nulls = batch.nulls.get(node).copied().unwrap_or(0);
        let bit = (nulls > 0 && nulls < batch.rows).then(|| Extent { len: 1, ..word(batch, bits, row / 8, 1) });
        let value = (nulls < batch.rows).then(|| word(batch, buffer, row, 4));
        bit.into_iter().chain(value)
    };
    let fixed = [(sample::OFFSET, 8), (sample::LEN, 8)].map(|(at, len)| word(batch, at, row, len));
    let rows = maybe(sample::ROW_NODE, sample::ROW_BITS, sample::ROW);
    fixed.into_iter().chain(rows).chain(maybe(sample::CRC_NODE, sample::CRC_BITS, sample::CRC))
}

fn is_there(view: &View, batch: &Batch, (node, bits): (usize, usize), row: u64) -> bool {
    match batch.nulls.get(node).copied().unwrap_or(0) {
        0 => true,
        nulls if nulls == batch.rows => false,
        _ => {
            let [eight] = view.word::<1>(word(batch, bits, row / 8, 1).offset);
            eight >> (row % 8) & 1 == 1
        }
    }
}
