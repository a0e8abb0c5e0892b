//! The dataset of the demo: many small files of odd lengths and one large one.

use std::collections::VecDeque;

use straightway::{Object, Pending, Uri};

use super::Run;
use crate::{
    fail::Fail,
    pattern, pipeline,
    pipeline::{Cuts, Spare},
    route::Ways,
    session::Stopwatch,
    signals,
    size::Bytes,
};

/// Small files.
const SAMPLES: u64 = 256;
/// Reads of small files under way at a time.
const WINDOW: usize = 32;
/// Bytes of one write of the large file, and writes under way.
const PIECE_BYTES: u64 = 4 << 20;
const WRITES: usize = 8;
/// Seed of the large file; small ones have their number.
pub const LARGE_SEED: u64 = SAMPLES;

impl Run<'_> {
    /// Writes and reads the dataset: an eighth of `size` in small files, half of it in the large one.
    pub fn dataset(&mut self, size: u64) -> Result<(), Fail> {
        let samples = self.write_samples(size / 8)?;
        self.out.text(format_args!("dataset: {} files written", samples.len()))?;
        self.read_samples(&samples)?;
        // Odd on purpose: the last block is ragged.
        let large = self.uri("large.bin")?;
        self.write_file(&large, size / 2 + 123, LARGE_SEED)?;
        self.out.text(format_args!("large file: {} written", Bytes(size / 2 + 123)))?;
        self.read_large(&large)
    }

    pub fn uri(&self, name: &str) -> Result<Uri, Fail> {
        Ok(Uri::from_path(&self.dir.join(name))?)
    }

    fn write_samples(&mut self, bytes: u64) -> Result<Vec<(Uri, u64)>, Fail> {
        let mean = (bytes / SAMPLES).max(1);
        let mut samples = Vec::new();
        for number in 0..SAMPLES {
            signals::requested()?;
            let uri = self.uri(&format!("sample-{number:04}.bin"))?;
            // Between 1 byte and twice the mean, so that hardly one is a whole number of blocks.
            let len = 1 + pattern::word(LARGE_SEED, number) % (2 * mean);
            self.write_file(&uri, len, number)?;
            samples.push((uri, number));
        }
        Ok(samples)
    }

    /// Writes a file of the pattern through the engine and puts it in place.
    fn write_file(&mut self, uri: &Uri, len: u64, seed: u64) -> Result<(), Fail> {
        let new = self.engine.create(uri, len)?;
        let mut spare = Spare::new(self.engine);
        let mut cuts = Cuts::new(0..len, PIECE_BYTES);
        let mut window: VecDeque<((u64, u64), Pending)> = VecDeque::with_capacity(WRITES);
        let mut ways = Ways::default();
        loop {
            signals::requested()?;
            while window.len() < WRITES {
                let Some((offset, len)) = cuts.next() else { break };
                let memory = pipeline::filled(spare.take(offset, len)?, seed, offset)?;
                window.push_back(((offset, len), self.engine.write(new.object(), offset, memory).start()));
            }
            let Some((at, pending)) = window.pop_front() else { break };
            spare.put(pipeline::finish(at, pending, &mut ways)?.memory);
        }
        new.commit()?;
        self.written += len;
        Ok(())
    }

    fn read_samples(&mut self, samples: &[(Uri, u64)]) -> Result<(), Fail> {
        let mut sums = Ways::default();
        for window in samples.chunks(WINDOW) {
            signals::requested()?;
            let objects = window.iter().map(|(uri, _)| self.engine.open(uri)).collect::<Result<Vec<Object>, _>>()?;
            let mut requests = Vec::with_capacity(window.len());
            for object in &objects {
                let memory = self.engine.allocate(self.into, object.len(), 0)?;
                requests.push(self.engine.read(object, 0, memory));
            }
            let clock = Stopwatch::start();
            let done = self.engine.batch(requests).wait();
            self.read_s += clock.seconds();
            for ((done, object), (_, seed)) in done.into_iter().zip(&objects).zip(window) {
                let done = done.ok()?;
                let path = done.path;
                let memory = done.into_memory().ok_or_else(|| pipeline::withheld(object.len(), 0))?;
                self.verify(&memory, object.name(), *seed)?;
                self.note(object.name(), &Ways::of(&path))?;
                sums.add(&path);
            }
        }
        self.tell(&sums)
    }

    fn read_large(&mut self, uri: &Uri) -> Result<(), Fail> {
        let object = self.engine.open(uri)?;
        let memory = self.engine.allocate(self.into, object.len(), 0)?;
        let clock = Stopwatch::start();
        let done = self.engine.read(&object, 0, memory).wait().ok()?;
        self.read_s += clock.seconds();
        let path = done.path;
        let memory = done.into_memory().ok_or_else(|| pipeline::withheld(object.len(), 0))?;
        self.verify(&memory, object.name(), LARGE_SEED)?;
        let ways = Ways::of(&path);
        self.note(object.name(), &ways)?;
        self.tell(&ways)
    }

    /// The ways of a part of the demo, for people.
    pub fn tell(&mut self, ways: &Ways) -> Result<(), Fail> {
        ways.report().iter().try_for_each(|way| self.out.text(format_args!("  read and verified: {way}")))
    }
}
