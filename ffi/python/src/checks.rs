//! Reads for loads that a framework plans, compared with the checksums beside the checkpoint as `sw_checkpoint` does it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use straightway::{
    Completed, Destination, Error, ErrorKind, Memory, Object as Opened, Policy, Request, Uri, Verb, checksum::Algorithm,
};
use sw_checkpoint::{Checksums, LoadLimits, ReadRange, Rest, Verify};

use crate::{
    engine::{Engine, Handle, Ways, address},
    error::Fail,
    foreign::{self, Access},
    object::{Object, terms, under},
    wait,
};

/// Memory for what is read beside a load, in bytes.
const REST_BATCH_BYTES: u64 = 64 << 20;

/// The comparison of one load: what it reads goes through here.
#[pyclass(frozen, module = "straightway._native")]
#[derive(Debug)]
pub struct Checks {
    engine: Handle,
    inner: Mutex<sw_checkpoint::Checks>,
}

/// An object, the name of the file that it is, first byte in it, target.
type Part<'py> = (Bound<'py, Object>, String, u64, Bound<'py, PyAny>);

/// File, first byte, length and CRC-32C of what was seen of a chunk.
type Partial = (String, u64, u64, u32);

impl Checks {
    /// Never held while the interpreter is left or entered.
    fn lock(&self) -> MutexGuard<'_, sw_checkpoint::Checks> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads of one part, cut where chunks end.
    fn requests(
        &self,
        (object, name): (&Opened, &str),
        (offset, memory): (u64, Memory),
        policy: Policy,
    ) -> Result<Vec<(ReadRange, Request)>, Fail> {
        let mut inner = self.lock();
        let file = inner.file(name, object.len())?;
        let chunk_bytes = inner.chunk_bytes();
        let len = memory.len();
        let (region, base) = memory.share();
        let mut requests = Vec::new();
        let mut done = 0;
        while done < len {
            let file_offset = offset.saturating_add(done);
            let room = chunk_bytes.map_or(u64::MAX, |chunk| chunk - file_offset % chunk);
            let len_bytes = room.min(len - done);
            let read = self.engine.read(object, file_offset, region.part(base + done, len_bytes)?);
            let read = under(read, (policy, None));
            let read = if chunk_bytes.is_some() { read.checksum(Algorithm::Crc32c) } else { read };
            requests.push((ReadRange { file, file_offset, len_bytes, place: None }, read));
            done += len_bytes;
        }
        Ok(requests)
    }

    /// Tells of what was read. What the CPU did not see is read back where it must be compared.
    fn took(&self, ranges: &[ReadRange], done: Vec<Completed>) -> Result<(), Error> {
        let mut inner = self.lock();
        let must = inner.requires() && inner.chunk_bytes().is_some();
        for (range, done) in ranges.iter().zip(done) {
            let done = done.ok()?;
            let sum = match (done.checksum, must) {
                (None, true) => Some(self.read_back(range, done.into_memory())?),
                (sum, _) => sum,
            };
            inner.took(*range, sum)?;
        }
        Ok(())
    }

    fn read_back(&self, range: &ReadRange, memory: Option<Memory>) -> Result<u64, Error> {
        let memory = memory.ok_or_else(without_memory)?;
        let mut sum = Algorithm::Crc32c.of(&[]);
        let mut out = self.engine.copy_out(memory.destination())?;
        out.visit(&memory, 0, range.len_bytes, |bytes| {
            sum = Algorithm::Crc32c.combine(sum, Algorithm::Crc32c.of(bytes), bytes.len() as u64);
        })?;
        Ok(sum)
    }

    fn took_rests(&self, rests: &[Rest], done: Vec<Completed>) -> Result<(), Error> {
        let mut inner = self.lock();
        for (rest, done) in rests.iter().zip(done) {
            let buffer = done.ok()?.into_memory().and_then(|memory| memory.into_buffer().ok());
            inner.took_rest(rest, buffer.ok_or_else(without_memory)?.as_slice())?;
        }
        Ok(())
    }
}

fn without_memory() -> Error {
    Error::new(ErrorKind::Protocol, Verb::Read).detail("a read came back without its memory")
}

#[pymethods]
impl Checks {
    /// For the files of `directory`. `verify`: auto, off or require.
    #[new]
    fn new(engine: &Bound<'_, Engine>, directory: &Bound<'_, PyAny>, verify: &str) -> Result<Self, Fail> {
        let (handle, at, verify) = (engine.get().handle().clone(), address(directory)?, verify.parse::<Verify>()?);
        let inner = wait::detached(engine.py(), || open(&handle, &at, verify))?;
        Ok(Self { engine: handle, inner: Mutex::new(inner) })
    }

    /// Fills each target of `(object, file name, offset, target)`, all at once, and compares what can be; returns the ways that
    /// the bytes took.
    #[pyo3(signature = (parts, *, policy="any"))]
    fn read_many<'py>(
        &self,
        py: Python<'py>,
        parts: Vec<Part<'py>>,
        policy: &str,
    ) -> Result<Vec<Bound<'py, PyAny>>, Fail> {
        let (policy, _) = terms(policy, None)?;
        let (mut ranges, mut requests) = (Vec::new(), Vec::new());
        for (object, name, offset, target) in &parts {
            let Some(memory) = foreign::memory_of(&self.engine, target, Access::Target)? else { continue };
            let object = object.get().inner()?;
            for (range, request) in self.requests((&object, name), (*offset, memory), policy)? {
                ranges.push(range);
                requests.push(request);
            }
        }
        let mut ways = Ways::default();
        let done = wait::finish(py, self.engine.batch(requests))?;
        ways.add_all(&done);
        wait::detached(py, || self.took(&ranges, done))?;
        Ok(ways.report(py)?)
    }

    /// Counts bytes that somebody else reads, which are not compared.
    fn not_seen(&self, object: &Bound<'_, Object>, name: &str, offset: u64, length: u64) -> Result<(), Fail> {
        let size = object.get().inner()?.len();
        let mut inner = self.lock();
        let file = inner.file(name, size)?;
        Ok(inner.took(ReadRange { file, file_offset: offset, len_bytes: length, place: None }, None)?)
    }

    /// Names of the files of which chunks were seen in part.
    fn waiting(&self) -> Vec<String> {
        self.lock().waiting().map(str::to_owned).collect()
    }

    /// Reads what chunks of a file lack to be compared, where that is little or required; returns the ways of the bytes.
    fn complete<'py>(
        &self,
        py: Python<'py>,
        object: &Bound<'py, Object>,
        name: &str,
    ) -> Result<Vec<Bound<'py, PyAny>>, Fail> {
        let object = object.get().inner()?;
        let rests = {
            let mut inner = self.lock();
            let file = inner.file(name, object.len())?;
            inner.rests(Some(file))
        };
        let mut ways = Ways::default();
        let mut left = rests.as_slice();
        while !left.is_empty() {
            let mut room = REST_BATCH_BYTES;
            let fits = |rest: &&Rest| {
                let fits = room > 0;
                room = room.saturating_sub(rest.range.len_bytes);
                fits
            };
            let (some, later) = left.split_at(left.iter().take_while(fits).count());
            left = later;
            let request = |rest: &Rest| -> Result<Request, Error> {
                let ReadRange { file_offset, len_bytes, .. } = rest.range;
                // Congruent with the file, so that a direct read needs no bounce.
                let memory = self.engine.allocate(Destination::Host, len_bytes, file_offset)?;
                Ok(self.engine.read(&object, file_offset, memory).policy(Policy::Any))
            };
            let requests = wait::detached(py, || some.iter().map(request).collect::<Result<Vec<_>, Error>>())?;
            let done = wait::finish(py, self.engine.batch(requests))?;
            ways.add_all(&done);
            wait::detached(py, || self.took_rests(some, done))?;
        }
        Ok(ways.report(py)?)
    }

    /// Gives away what was seen of chunks that were not seen whole.
    fn take_partials(&self) -> Vec<Partial> {
        let partials = self.lock().take_partials();
        let plain = |sw_checkpoint::Partial { file, seen }| (file, seen.offset, seen.len_bytes, seen.crc32c);
        partials.into_iter().map(plain).collect()
    }

    /// Takes what all ranks gave away; this one is number `me`. Each chunk goes on at one of them.
    fn join_partials(&self, py: Python<'_>, me: usize, of_all: Vec<Vec<Partial>>) -> Result<(), Fail> {
        let typed = |(file, offset, len_bytes, crc32c): Partial| sw_checkpoint::Partial {
            file,
            seen: sw_checkpoint::Seen { offset, len_bytes, crc32c },
        };
        let of_all: Vec<Vec<_>> = of_all.into_iter().map(|some| some.into_iter().map(typed).collect()).collect();
        wait::detached(py, || self.lock().join_partials(me, &of_all))
    }

    /// `compared`, `none` without checksums, or `off`.
    #[getter]
    fn verification(&self) -> &'static str {
        self.lock().outcome().name()
    }

    /// Bytes in chunks that were compared, and bytes that were read and not compared.
    #[getter]
    fn totals(&self) -> (u64, u64) {
        self.lock().totals_of_all()
    }
}

fn open(engine: &Handle, at: &Uri, verify: Verify) -> Result<sw_checkpoint::Checks, Error> {
    let checksums = if verify == Verify::Off { None } else { Checksums::beside(engine, at)? };
    sw_checkpoint::Checks::new(
        &at.to_string(),
        checksums.map(std::sync::Arc::new),
        verify,
        LoadLimits::default().align_bytes,
    )
}
