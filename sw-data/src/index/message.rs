//! Batches of samples and the table of objects as messages of Arrow's IPC format, both ways.
//!
//! ```text
//!   ARROW1 │ schema │ batch of samples … │ objects (dictionary) │ end mark │ footer: where each is │ its length │ ARROW1
//! ```
//!
//! A message is a flatbuffer and, behind it, the buffers of its columns one by one. What is read of a message is where its buffers
//! lie: the buffers themselves are read as they are needed.
//! Source: Apache Arrow `docs/source/format/Columnar.rst`, "Serialization and Interprocess Communication (IPC)", and
//! `format/Message.fbs`, `format/File.fbs`.

use std::borrow::Cow;

use arrow_ipc as ipc;
use flatbuffers::{FlatBufferBuilder, WIPOffset};

use crate::formats::Extent;

use super::{
    objects::ObjectRows,
    rows::{Maybes, Rows, Texts},
    schema,
};

/// First and last bytes of a file.
pub(super) const MAGIC: &[u8; 6] = b"ARROW1";
/// The magic at the start is padded to this.
pub(super) const MAGIC_PADDED: u64 = 8;
/// Begins a message; without anything behind it, it ends the messages.
const CONTINUATION: [u8; 4] = [0xff; 4];
/// Buffers begin on multiples of this, as Arrow recommends.
const ALIGNMENT: usize = 64;
/// Most bytes of a message without its buffers. Ours have some hundred.
pub(super) const MESSAGE_MAX: u64 = 64 << 10;
/// Keys of the footer's metadata.
const VERSION_KEY: &str = "straightway.index";
const SAMPLES_KEY: &str = "straightway.samples";
const BATCH_KEY: &str = "straightway.batch";
/// Version of this layout.
const VERSION: &str = "1";

/// Where a message lies: from its first byte, its flatbuffer with frame and padding, then its buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub offset: u64,
    pub head: u64,
    pub body: u64,
}

/// A message ready to be written: the head, then the buffers.
pub(super) struct Message<'a> {
    pub head: Vec<u8>,
    pub body: Body<'a>,
}

/// Buffers of a batch, and what Arrow says about them.
#[derive(Default)]
pub(super) struct Body<'a> {
    nodes: Vec<ipc::FieldNode>,
    places: Vec<ipc::Buffer>,
    buffers: Vec<Cow<'a, [u8]>>,
    len: usize,
}

impl<'a> Body<'a> {
    fn node(&mut self, len: usize, nulls: usize) {
        self.nodes.push(ipc::FieldNode::new(signed(len), signed(nulls)));
    }

    fn buffer(&mut self, bytes: impl Into<Cow<'a, [u8]>>) {
        let bytes = bytes.into();
        self.places.push(ipc::Buffer::new(signed(self.len), signed(bytes.len())));
        self.len += bytes.len().next_multiple_of(ALIGNMENT);
        self.buffers.push(bytes);
    }

    /// A column without missing values: no bitmap.
    fn whole(&mut self, len: usize) {
        self.node(len, 0);
        self.buffer(Vec::new());
    }

    fn u32s(&mut self, values: &[u32]) {
        self.whole(values.len());
        self.buffer(le(values.iter().map(|value| value.to_le_bytes())));
    }

    fn u64s(&mut self, values: &[u64]) {
        self.whole(values.len());
        self.buffer(le(values.iter().map(|value| value.to_le_bytes())));
    }

    fn maybes(&mut self, maybes: &Maybes) {
        let missing = maybes.missing();
        self.node(maybes.values.len(), missing);
        let bits = |eight: &[bool]| eight.iter().rev().fold(0u8, |bits, there| bits << 1 | u8::from(*there));
        self.buffer(if missing == 0 { Vec::new() } else { maybes.there.chunks(8).map(bits).collect() });
        self.buffer(le(maybes.values.iter().map(|value| value.to_le_bytes())));
    }

    fn ends(&mut self, ends: &[u32]) {
        self.buffer(le([0].iter().chain(ends).map(|end: &u32| end.to_le_bytes())));
    }

    fn texts(&mut self, texts: &'a Texts) {
        self.whole(texts.ends.len());
        self.ends(&texts.ends);
        self.buffer(texts.bytes.as_slice());
    }

    fn long_texts(&mut self, (bytes, ends): (&'a [u8], &[u64])) {
        self.whole(ends.len());
        self.buffer(le([0].iter().chain(ends).map(|end: &u64| end.to_le_bytes())));
        self.buffer(bytes);
    }

    /// Its bytes in order, padding between them.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        const ZEROS: [u8; ALIGNMENT] = [0; ALIGNMENT];
        self.buffers.iter().flat_map(|bytes| {
            let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
            [bytes.as_ref(), &ZEROS[..padding]]
        })
    }

    pub fn len(&self) -> u64 {
        self.len as u64
    }

    fn batch<'b>(&self, to: &mut FlatBufferBuilder<'b>, rows: usize) -> WIPOffset<ipc::RecordBatch<'b>> {
        let nodes = to.create_vector(&self.nodes);
        let places = to.create_vector(&self.places);
        let mut batch = ipc::RecordBatchBuilder::new(to);
        batch.add_length(signed(rows));
        batch.add_nodes(nodes);
        batch.add_buffers(places);
        batch.finish()
    }
}

/// Lengths in memory fit.
fn signed(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

fn le<const N: usize>(words: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(words.size_hint().0 * N);
    words.for_each(|word| bytes.extend_from_slice(&word));
    bytes
}

/// A message in its frame, padded so that what follows is aligned.
fn framed(flat: &FlatBufferBuilder<'_>) -> Vec<u8> {
    let data = flat.finished_data();
    let whole = (8 + data.len()).next_multiple_of(ALIGNMENT);
    let mut head = Vec::with_capacity(whole);
    head.extend_from_slice(&CONTINUATION);
    head.extend_from_slice(&u32::try_from(whole - 8).unwrap_or(u32::MAX).to_le_bytes());
    head.extend_from_slice(data);
    head.resize(whole, 0);
    head
}

fn finish(
    mut to: FlatBufferBuilder<'_>,
    (header_type, header): (ipc::MessageHeader, WIPOffset<flatbuffers::UnionWIPOffset>),
    body: u64,
) -> Vec<u8> {
    let mut message = ipc::MessageBuilder::new(&mut to);
    message.add_version(ipc::MetadataVersion::V5);
    message.add_header_type(header_type);
    message.add_header(header);
    message.add_bodyLength(i64::try_from(body).unwrap_or(i64::MAX));
    let message = message.finish();
    to.finish(message, None);
    framed(&to)
}

/// What a file begins with, the schema behind the magic.
pub(super) fn start() -> Vec<u8> {
    let mut to = FlatBufferBuilder::new();
    let schema = schema::schema(&mut to).as_union_value();
    let message = finish(to, (ipc::MessageHeader::Schema, schema), 0);
    [MAGIC.as_slice(), &[0; 2], &message].concat()
}

/// A batch of samples.
pub(super) fn samples(rows: &Rows) -> Message<'_> {
    let mut body = Body::default();
    body.u32s(&rows.objects);
    body.u64s(&rows.offsets);
    body.u64s(&rows.lens);
    body.maybes(&rows.rows);
    body.maybes(&rows.crcs);
    body.texts(&rows.keys);
    body.u32s(&rows.groups);
    body.whole(rows.len());
    body.ends(&rows.part_ends);
    body.whole(rows.part_offsets.len());
    body.texts(&rows.part_names);
    body.u64s(&rows.part_offsets);
    body.u64s(&rows.part_lens);
    let mut to = FlatBufferBuilder::new();
    let batch = body.batch(&mut to, rows.len()).as_union_value();
    let head = finish(to, (ipc::MessageHeader::RecordBatch, batch), body.len());
    Message { head, body }
}

/// The table of objects: the dictionary of column `object`.
pub(super) fn objects(rows: &ObjectRows) -> Message<'_> {
    let mut body = Body::default();
    body.whole(rows.len());
    body.long_texts(rows.uris());
    body.u64s(rows.lens());
    body.long_texts(rows.versions());
    body.long_texts(rows.formats());
    body.long_texts(rows.codings());
    let [first, samples, checksums] = rows.counts();
    body.u64s(first);
    body.u64s(samples);
    body.u64s(checksums);
    let mut to = FlatBufferBuilder::new();
    let data = body.batch(&mut to, rows.len());
    let args = ipc::DictionaryBatchArgs { id: schema::OBJECTS_ID, data: Some(data), isDelta: false };
    let dictionary = ipc::DictionaryBatch::create(&mut to, &args).as_union_value();
    let head = finish(to, (ipc::MessageHeader::DictionaryBatch, dictionary), body.len());
    Message { head, body }
}

/// What a footer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// Samples in all batches.
    pub samples: u64,
    /// Of each batch but the last.
    pub batch: u64,
    pub objects: Block,
    pub batches: Vec<Block>,
}

impl Footer {
    /// Everything that stands behind the last message.
    pub fn write(&self) -> Vec<u8> {
        let mut to = FlatBufferBuilder::new();
        let block = |block: &Block| {
            let head = i32::try_from(block.head).unwrap_or(i32::MAX);
            let word = |number| i64::try_from(number).unwrap_or(i64::MAX);
            ipc::Block::new(word(block.offset), head, word(block.body))
        };
        let batches: Vec<_> = self.batches.iter().map(block).collect();
        let batches = to.create_vector(&batches);
        let dictionaries = to.create_vector(&[block(&self.objects)]);
        let (samples, batch) = (self.samples.to_string(), self.batch.to_string());
        let said = [(VERSION_KEY, VERSION), (SAMPLES_KEY, &samples), (BATCH_KEY, &batch)].map(|(key, value)| {
            let (key, value) = (to.create_string(key), to.create_string(value));
            ipc::KeyValue::create(&mut to, &ipc::KeyValueArgs { key: Some(key), value: Some(value) })
        });
        let said = to.create_vector(&said);
        let schema = schema::schema(&mut to);
        let mut footer = ipc::FooterBuilder::new(&mut to);
        footer.add_version(ipc::MetadataVersion::V5);
        footer.add_schema(schema);
        footer.add_dictionaries(dictionaries);
        footer.add_recordBatches(batches);
        footer.add_custom_metadata(said);
        let footer = footer.finish();
        to.finish(footer, None);
        let data = to.finished_data();
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes();
        [CONTINUATION.as_slice(), &[0; 4], data, &len, MAGIC].concat()
    }

    /// Reads a footer's flatbuffer; messages end before byte `end` of the file.
    pub fn read(bytes: &[u8], end: u64) -> Option<Self> {
        let footer = ipc::root_as_footer(bytes).ok()?;
        let said = footer.custom_metadata()?;
        let said = |key: &str| said.iter().find(|pair| pair.key() == Some(key)).and_then(|pair| pair.value());
        if said(VERSION_KEY) != Some(VERSION) || !schema::is_ours(footer.schema()?) {
            return None;
        }
        let samples: u64 = said(SAMPLES_KEY)?.parse().ok()?;
        let batch: u64 = said(BATCH_KEY)?.parse().ok().filter(|batch| (1..=super::BATCH_ROWS_MAX).contains(batch))?;
        let block = |block: &ipc::Block| {
            let word = |number| u64::try_from(number).ok();
            let head = u64::try_from(block.metaDataLength()).ok().filter(|head| (8..=MESSAGE_MAX).contains(head))?;
            let block = Block { offset: word(block.offset())?, head, body: word(block.bodyLength())? };
            let until = block.offset.checked_add(head)?.checked_add(block.body)?;
            (block.offset >= MAGIC_PADDED && until <= end).then_some(block)
        };
        let batches: Vec<Block> = footer.recordBatches()?.iter().map(block).collect::<Option<_>>()?;
        let dictionaries = footer.dictionaries()?;
        let one = (dictionaries.len() == 1).then(|| dictionaries.get(0))?;
        let all = batches.len() as u64 == samples.div_ceil(batch);
        all.then_some(Self { samples, batch, objects: block(one)?, batches })
    }
}

/// Where the buffers of a message lie in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub rows: u64,
    /// Missing values of each column, in the order of the nodes.
    pub nulls: Vec<u64>,
    /// Rows of each column.
    pub lens: Vec<u64>,
    pub buffers: Vec<Extent>,
}

/// What a buffer holds for a column of so many rows.
#[derive(Clone, Copy)]
enum Holds {
    /// A bit for each row, if any is missing.
    Bits,
    /// So many bytes for each.
    Words(u64),
    /// So many bytes for each, and once more.
    Ends(u64),
    /// Whatever the ends before it say.
    Bytes,
}

/// Number of the node, what the buffer holds: of a batch of samples.
const SAMPLE_BUFFERS: &[(usize, Holds)] = &[
    (0, Holds::Bits),
    (0, Holds::Words(4)),
    (1, Holds::Bits),
    (1, Holds::Words(8)),
    (2, Holds::Bits),
    (2, Holds::Words(8)),
    (3, Holds::Bits),
    (3, Holds::Words(4)),
    (4, Holds::Bits),
    (4, Holds::Words(4)),
    (5, Holds::Bits),
    (5, Holds::Ends(4)),
    (5, Holds::Bytes),
    (6, Holds::Bits),
    (6, Holds::Words(4)),
    (7, Holds::Bits),
    (7, Holds::Ends(4)),
    (8, Holds::Bits),
    (9, Holds::Bits),
    (9, Holds::Ends(4)),
    (9, Holds::Bytes),
    (10, Holds::Bits),
    (10, Holds::Words(8)),
    (11, Holds::Bits),
    (11, Holds::Words(8)),
];

/// Buffers of a batch of samples, by what they hold.
pub(super) mod sample {
    pub const OBJECT: usize = 1;
    pub const OFFSET: usize = 3;
    pub const LEN: usize = 5;
    pub const ROW_BITS: usize = 6;
    pub const ROW: usize = 7;
    pub const CRC_BITS: usize = 8;
    pub const CRC: usize = 9;
    pub const KEY_ENDS: usize = 11;
    pub const KEYS: usize = 12;
    pub const GROUP: usize = 14;
    pub const PART_ENDS: usize = 16;
    pub const NAME_ENDS: usize = 19;
    pub const NAMES: usize = 20;
    pub const PART_OFFSET: usize = 22;
    pub const PART_LEN: usize = 24;
    /// Nodes that may have missing values.
    pub const ROW_NODE: usize = 3;
    pub const CRC_NODE: usize = 4;
    /// The node of the parts.
    pub const PARTS_NODE: usize = 8;
}

const OBJECT_BUFFERS: &[(usize, Holds)] = &[
    (0, Holds::Bits),
    (1, Holds::Bits),
    (1, Holds::Ends(8)),
    (1, Holds::Bytes),
    (2, Holds::Bits),
    (2, Holds::Words(8)),
    (3, Holds::Bits),
    (3, Holds::Ends(8)),
    (3, Holds::Bytes),
    (4, Holds::Bits),
    (4, Holds::Ends(8)),
    (4, Holds::Bytes),
    (5, Holds::Bits),
    (5, Holds::Ends(8)),
    (5, Holds::Bytes),
    (6, Holds::Bits),
    (6, Holds::Words(8)),
    (7, Holds::Bits),
    (7, Holds::Words(8)),
    (8, Holds::Bits),
    (8, Holds::Words(8)),
];

/// Buffers of the table of objects, by what they hold.
pub(super) mod object {
    pub const URI_ENDS: usize = 2;
    pub const URIS: usize = 3;
    pub const LEN: usize = 5;
    pub const VERSION_ENDS: usize = 7;
    pub const VERSIONS: usize = 8;
    pub const FORMAT_ENDS: usize = 10;
    pub const FORMATS: usize = 11;
    pub const CODING_ENDS: usize = 13;
    pub const CODINGS: usize = 14;
    pub const FIRST: usize = 16;
    pub const SAMPLES: usize = 18;
    pub const CHECKSUMS: usize = 20;
}

impl Batch {
    /// Reads the head of a batch of samples.
    pub fn of_samples(head: &[u8], block: Block) -> Option<Self> {
        let message = open(head)?;
        let batch = Self::read(message.header_as_record_batch()?, block, SAMPLE_BUFFERS)?;
        let parts = *batch.lens.get(sample::PARTS_NODE)?;
        let of = |node: usize| if node < sample::PARTS_NODE { batch.rows } else { parts };
        let lens = batch.lens.iter().enumerate().all(|(node, len)| *len == of(node));
        let maybe = [sample::ROW_NODE, sample::CRC_NODE];
        let nulls = batch.nulls.iter().enumerate().all(|(node, nulls)| *nulls == 0 || maybe.contains(&node));
        (lens && nulls).then_some(batch)
    }

    /// Reads the head of the table of objects.
    pub fn of_objects(head: &[u8], block: Block) -> Option<Self> {
        let message = open(head)?;
        let dictionary = message.header_as_dictionary_batch()?;
        if dictionary.id() != schema::OBJECTS_ID || dictionary.isDelta() {
            return None;
        }
        let batch = Self::read(dictionary.data()?, block, OBJECT_BUFFERS)?;
        let whole = batch.lens.iter().all(|len| *len == batch.rows) && batch.nulls.iter().all(|nulls| *nulls == 0);
        whole.then_some(batch)
    }

    fn read(batch: ipc::RecordBatch<'_>, block: Block, expected: &[(usize, Holds)]) -> Option<Self> {
        if batch.compression().is_some() {
            return None;
        }
        let word = |number: i64| u64::try_from(number).ok();
        let nodes = batch.nodes()?;
        let nulls: Vec<u64> = nodes.iter().map(|node| word(node.null_count())).collect::<Option<_>>()?;
        let lens: Vec<u64> = nodes.iter().map(|node| word(node.length())).collect::<Option<_>>()?;
        let nodes_expected = expected.last()?.0 + 1;
        let buffers = batch.buffers()?;
        if lens.len() != nodes_expected || buffers.len() != expected.len() {
            return None;
        }
        let place = |(buffer, (node, holds)): (&ipc::Buffer, &(usize, Holds))| {
            let (rows, nulls) = (*lens.get(*node)?, *nulls.get(*node)?);
            let (offset, len) = (word(buffer.offset())?, word(buffer.length())?);
            let needs = match holds {
                Holds::Bits if nulls == 0 => 0,
                Holds::Bits => rows.div_ceil(8),
                Holds::Words(bytes) => rows.checked_mul(*bytes)?,
                Holds::Ends(bytes) => rows.checked_add(1)?.checked_mul(*bytes)?,
                Holds::Bytes => 0,
            };
            let inside = offset.checked_add(len)? <= block.body && nulls <= rows;
            // The block lies in the file, so that the sum does not overflow.
            (inside && needs <= len).then_some(Extent { offset: block.offset + block.head + offset, len })
        };
        let buffers = buffers.iter().zip(expected).map(place).collect::<Option<_>>()?;
        Some(Self { rows: word(batch.length())?, nulls, lens, buffers })
    }
}

/// A message out of its frame.
fn open(head: &[u8]) -> Option<ipc::Message<'_>> {
    let (mark, rest) = head.split_first_chunk::<4>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let flat = rest.get(..usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
    (*mark == CONTINUATION).then(|| ipc::root_as_message(flat).ok()).flatten()
}
