//! A dataset on disk whose bytes are known.

use std::{fs, sync::Arc};

use straightway::{Engine, Uri};
use sw_data::{
    formats::Extent,
    loader::{Batch, Dataset, LoadError, Loader, LoaderOptions, LoaderState},
    order::{Tail, World},
    samples::{Format, ObjectEntry, Place, version_text},
    table::Table,
};
use sw_testkit::scratch::Scratch;

/// Shards, the bytes of their samples, and the table of both.
pub(crate) struct Set {
    pub(crate) scratch: Scratch,
    pub(crate) engine: Engine,
    pub(crate) objects: Vec<ObjectEntry>,
    pub(crate) places: Vec<Place>,
    /// By number.
    pub(crate) samples: Vec<Vec<u8>>,
}

/// What is indexed of a file.
pub(crate) fn entry(engine: &Engine, path: &str, format: Format) -> ObjectEntry {
    let object = engine.open(&path.parse::<Uri>().unwrap()).unwrap();
    ObjectEntry {
        uri: path.to_owned(),
        len: object.len(),
        version: version_text(object.version()),
        format,
        coding: String::new(),
    }
}

impl Set {
    /// Shards of so many samples each. Samples have `len(n)` bytes, and odd offsets: 7 to 60 bytes lie between them.
    pub(crate) fn new(shards: usize, each: usize, len: impl Fn(usize) -> usize) -> Self {
        let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "loader");
        let engine = Engine::builder().build().unwrap();
        let (mut objects, mut places, mut samples) = (Vec::new(), Vec::new(), Vec::new());
        for shard in 0..shards {
            let mut file = Vec::new();
            for _ in 0..each {
                let number = samples.len();
                file.extend((0..7 + number * 13 % 54).map(|_| 0xee_u8));
                let mut word = number as u64 + 1;
                let sample: Vec<u8> = (0..len(number))
                    .map(|_| {
                        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        (word >> 56).to_le_bytes()[0]
                    })
                    .collect();
                let extent = Extent { offset: file.len() as u64, len: sample.len() as u64 };
                let object = u32::try_from(shard).unwrap();
                places.push(Place { object, extent, row: None, crc32c: Some(crc(&sample)) });
                file.extend_from_slice(&sample);
                samples.push(sample);
            }
            let path = scratch.text(&format!("shard-{shard}"));
            fs::write(&path, &file).unwrap();
            objects.push(entry(&engine, &path, Format::Tar));
        }
        Self { scratch, engine, objects, places, samples }
    }

    /// The usual one: 4 shards of 100 samples of about 16 KiB.
    pub(crate) fn usual() -> Self {
        Self::new(4, 100, |number| 16_000 + number * 7919 % 1000)
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::new(Table::new(self.objects.clone(), self.places.clone()).unwrap())
    }

    pub(crate) fn try_loader(&self, options: LoaderOptions) -> Result<Loader, LoadError> {
        Loader::new(&self.engine, vec![Dataset::new(self.table())], options, None)
    }

    pub(crate) fn loader(&self, options: LoaderOptions) -> Loader {
        self.try_loader(options).unwrap()
    }

    /// Compares every sample of a batch with what is in the file.
    pub(crate) fn check(&self, batch: &Batch) {
        assert_eq!(
            (batch.ids().len(), batch.offsets().len(), batch.lengths().len()),
            (batch.len(), batch.len(), batch.len())
        );
        for (index, id) in batch.ids().iter().enumerate() {
            let want = &self.samples[usize::try_from(id.number).unwrap()];
            assert!(batch.sample(index).unwrap() == &want[..], "{id} at {index} of batch {}", batch.number());
        }
    }

    /// Takes an epoch, and tells the numbers in order.
    pub(crate) fn epoch(&self, loader: &Loader) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Some(batch) = loader.next_batch().unwrap() {
            self.check(&batch);
            numbers.extend(batch.ids().iter().map(|id| id.number));
        }
        numbers
    }

    /// Eight ranks take four batches each of what `options` asks for, and six the rest; nothing is lost or repeated. `end` looks at
    /// the loader of each of the six.
    pub(crate) fn eight_ranks_become_six(&self, options: impl Fn(u32) -> LoaderOptions, end: impl Fn(&Loader)) {
        let rank = |rank, size, state: Option<LoaderState>, batch| {
            let mut options = options(batch);
            (options.world, options.seed) = (World::new(rank, size).unwrap(), 5);
            options.tail = if state.is_some() { Tail::Uneven } else { Tail::Drop };
            Loader::new(&self.engine, vec![Dataset::new(self.table())], options, state).unwrap()
        };
        let mut numbers = Vec::new();
        let mut states = Vec::new();
        for number in 0..8 {
            let loader = rank(number, 8, None, 10);
            // Much more is read ahead than is taken.
            for _ in 0..4 {
                let batch = loader.next_batch().unwrap().unwrap();
                self.check(&batch);
                numbers.extend(batch.ids().iter().map(|id| id.number));
            }
            states.push(serde_json::to_string(&loader.state()).unwrap());
        }
        assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
        let state: LoaderState = serde_json::from_str(&states[0]).unwrap();
        for number in 0..6 {
            let loader = rank(number, 6, Some(state.clone()), 7);
            numbers.extend(self.epoch(&loader));
            end(&loader);
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..1200).collect::<Vec<_>>());
    }
}

/// CRC-32C by its definition (RFC 3720 §12.1 "CRC32C"): bit by bit, reflected.
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, &byte| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
        crc
    })
}

pub(crate) fn options(batch: u32) -> LoaderOptions {
    let mut options = LoaderOptions::default();
    options.batch = batch;
    options
}
