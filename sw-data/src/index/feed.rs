//! Samples of an index one after the other, in any order, several on their way.
//!
//! For tools that go over a dataset once. It reads each sample by itself; the loader is what coalesces. Blocks are decoded and kept as
//! the loader does it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use straightway::{DataPath, Destination, Engine, Error, ErrorKind, Memory, Object, Pending, Verb};

use crate::{
    decode::{self, DecodeError, Limits, Rows},
    formats::Extent,
    loader::{BlockCache, BlockSlot, Key, Promise},
    samples::{Label, ObjectEntry, Place, Samples as _},
};

use super::{Index, scan::undecodable};

/// Samples that are looked up at once.
const TURN: usize = 1024;
/// Samples on their way at most, and their bytes; one larger than that goes alone.
const READS_MAX: usize = 64;
const BYTES_MAX: u64 = 64 << 20;
/// Objects that are kept open.
const OPEN_MAX: usize = 256;
/// Most bytes of a sample that is read.
const SAMPLE_MAX: u64 = 4 << 30;

/// Whether bytes are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Where samples are, and what they are called.
    Places,
    /// Their bytes too.
    Bytes,
}

/// The bytes of a sample.
#[derive(Debug)]
pub enum Bytes {
    /// As they lie in the object.
    Read(Memory),
    /// Of a block that was decoded.
    Decoded(Vec<u8>),
}

impl Bytes {
    /// How many.
    pub fn len(&self) -> u64 {
        match self {
            Self::Read(memory) => memory.len(),
            Self::Decoded(bytes) => bytes.len() as u64,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shows those of an extent to `each`, in order.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub fn visit(&self, extent: Extent, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        match self {
            Self::Read(memory) => memory.visit(extent.offset, extent.len, each),
            Self::Decoded(bytes) => {
                let range = usize::try_from(extent.offset).ok().zip(usize::try_from(extent.len).ok());
                let part = range.and_then(|(from, len)| bytes.get(from..)?.get(..len));
                each(part.ok_or_else(|| Error::new(ErrorKind::OutOfRange, Verb::Copy).at("a decoded sample"))?);
                Ok(())
            }
        }
    }
}

/// A sample.
#[derive(Debug)]
pub struct Fed {
    /// Its number.
    pub number: u64,
    /// Where it is.
    pub place: Place,
    /// What it is called and consists of.
    pub label: Label,
    /// Its object.
    pub entry: Arc<ObjectEntry>,
    /// Its bytes, if they were wanted and there are any.
    pub bytes: Option<Bytes>,
    /// The way that they took.
    pub path: Option<DataPath>,
}

/// See the module documentation.
pub struct Feed<'a, N> {
    engine: &'a Engine,
    index: &'a Index,
    numbers: N,
    want: Want,
    opened: HashMap<u32, (Arc<ObjectEntry>, Option<Object>)>,
    found: VecDeque<(u64, Place, Label)>,
    running: VecDeque<(Fed, Reading)>,
    running_bytes: u64,
    blocks: Arc<BlockCache>,
}

/// How a sample's bytes come.
#[derive(Default)]
struct Reading {
    pending: Option<Pending>,
    /// Where the block that it is a row of will be, and, if that was read with it, the promise to decode it.
    slot: Option<Arc<BlockSlot>>,
    promise: Option<Promise>,
}

impl<'a, N: Iterator<Item = u64>> Feed<'a, N> {
    /// Of the samples with these numbers, in their order.
    pub fn new(engine: &'a Engine, index: &'a Index, numbers: N, want: Want) -> Self {
        Self {
            engine,
            index,
            numbers,
            want,
            opened: HashMap::new(),
            found: VecDeque::new(),
            running: VecDeque::new(),
            running_bytes: 0,
            blocks: BlockCache::new(BYTES_MAX),
        }
    }

    /// The next sample; nothing when there are no more. *Blocking*.
    ///
    /// # Errors
    /// Those of the index and of reading; `Changed` for an object that is not what was indexed; `ChecksumMismatch` for a sample that
    /// is not; `BadFormat` and others for a block that cannot be decoded. Nothing more is to be had then.
    pub fn next_sample(&mut self) -> Result<Option<Fed>, Error> {
        while self.has_room() {
            let Some((number, place, label)) = self.found.pop_front() else {
                if self.look_up()? {
                    continue;
                }
                break;
            };
            self.start(number, place, label)?;
        }
        let Some((mut fed, Reading { pending, slot, promise })) = self.running.pop_front() else { return Ok(None) };
        if let Some(pending) = pending {
            let done = pending.wait().ok()?;
            self.running_bytes -= fed.place.extent.len;
            fed.path = Some(done.path);
            fed.bytes = done.into_memory().map(Bytes::Read);
            check_sum(&fed)?;
        }
        if let Some(promise) = promise {
            promise.settle(Ok(Arc::new(decode(&mut fed)?)));
        }
        if let Some(slot) = slot {
            // It was promised with this sample or one before, so that nobody waits here.
            let rows = slot.wait().ok();
            let row = fed.place.row.and_then(|row| usize::try_from(row).ok());
            let item = rows.as_ref().zip(row).and_then(|(rows, row)| rows.get(row)).map(<[u8]>::to_vec);
            let missing = DecodeError::Damaged { what: "a block with fewer items than were indexed" };
            fed.bytes =
                Some(Bytes::Decoded(item.ok_or_else(|| undecodable(&fed.entry.uri, fed.place.extent, &missing))?));
        }
        Ok(Some(fed))
    }

    fn has_room(&self) -> bool {
        let next = match (self.want, self.found.front()) {
            (Want::Bytes, Some((_, place, _))) => place.extent.len,
            _ => 0,
        };
        let fits = self.running_bytes.saturating_add(next) <= BYTES_MAX;
        self.running.is_empty() || (self.running.len() < READS_MAX && fits)
    }

    /// Whether there are more.
    fn look_up(&mut self) -> Result<bool, Error> {
        let numbers: Vec<u64> = self.numbers.by_ref().take(TURN).collect();
        let (mut places, mut labels) = (Vec::new(), Vec::new());
        self.index.locate(&numbers, &mut places)?;
        self.index.labels(&numbers, &mut labels)?;
        let found = numbers.into_iter().zip(places).zip(labels);
        self.found.extend(found.map(|((number, place), label)| (number, place, label)));
        Ok(!self.found.is_empty())
    }

    fn open(&mut self, number: u32) -> Result<(Arc<ObjectEntry>, Option<Object>), Error> {
        if let Some(opened) = self.opened.get(&number) {
            return Ok(opened.clone());
        }
        let entry = self.index.object(number)?;
        let object = match self.want {
            Want::Places => None,
            Want::Bytes => {
                let object = self.engine.open(&entry.uri.parse()?)?;
                entry.check(&object)?;
                Some(object)
            }
        };
        if self.opened.len() >= OPEN_MAX {
            self.opened.clear();
        }
        let opened = (Arc::new(entry), object);
        self.opened.insert(number, opened.clone());
        Ok(opened)
    }

    fn start(&mut self, number: u64, place: Place, label: Label) -> Result<(), Error> {
        let (entry, object) = self.open(place.object)?;
        let mut reading = Reading::default();
        if let (Some(_), Some(_)) = (place.row, &object) {
            let (slot, promise) = self.blocks.want(Key { dataset: 0, object: place.object }, place.extent);
            (reading.slot, reading.promise) = (Some(slot), promise);
        }
        let is_read = place.extent.len > 0 && (reading.slot.is_none() || reading.promise.is_some());
        if let Some(object) = object.filter(|_| is_read) {
            if place.extent.len > SAMPLE_MAX {
                return Err(Error::new(ErrorKind::TooLarge, Verb::Read)
                    .at(entry.uri.as_str())
                    .in_range(place.extent.offset, place.extent.len)
                    .detail(format!("a sample of more than {SAMPLE_MAX} bytes"))
                    .remedy("split the file, or leave it out"));
            }
            let memory = self.engine.allocate(Destination::Host, place.extent.len, place.extent.offset)?;
            self.running_bytes += place.extent.len;
            reading.pending = Some(self.engine.read(&object, place.extent.offset, memory).start());
        }
        self.running.push_back((Fed { number, place, label, entry, bytes: None, path: None }, reading));
        Ok(())
    }
}

/// Decodes the block that was read with a sample.
fn decode(fed: &mut Fed) -> Result<Rows, Error> {
    let mut block = Vec::new();
    if let Some(bytes) = fed.bytes.take() {
        bytes.visit(Extent { offset: 0, len: bytes.len() }, |piece| block.extend_from_slice(piece))?;
    }
    decode::rows(fed.entry.format, &fed.entry.coding, &block, Limits::default())
        .map_err(|error| undecodable(&fed.entry.uri, fed.place.extent, &error))
}

/// Holds bytes against the checksum that the index has, if it has one.
fn check_sum(fed: &Fed) -> Result<(), Error> {
    let (Some(stored), Some(bytes)) = (fed.place.crc32c, &fed.bytes) else { return Ok(()) };
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    bytes.visit(Extent { offset: 0, len: bytes.len() }, |piece| digest.update(piece))?;
    let sum = u32::try_from(digest.finalize()).unwrap_or(u32::MAX);
    if sum == stored { Ok(()) } else { Err(super::verify::differs(&fed.entry, &fed.place, (stored, sum))) }
}
