//! The background of a save: chunks in the order of the files, filled up, written, summed.
//!
//! ```text
//!   caller: tensors it lends ──► slab ──channel──┐
//!                                                ├─► fill the rest ─► engine, 8 in flight ─► CRC-32C ─► slab back
//!   here: literals, zeros, tensors given away ───┘        └► CRC-32C first: same as before? the file is linked
//! ```
//!
//! Both sides walk the same chunks in the same order, and a chunk is the caller's exactly if it has bytes of a tensor that
//! is lent; so the channel needs a number and no addresses. No step waits for a slab that only a later step could return: the
//! caller's slabs come back when writes end, which are waited for before the channel is, and the pump has slabs of its own.
//!
//! A chunk is summed after its write, while its successors are with the device: the device starts at once, and the sums take
//! the CPU when the caller has gone on, or when it waits for the memory. Only where a chunk may turn out to be that of an
//! earlier checkpoint is it summed before.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, TryRecvError},
    },
};

use crc_fast::{CrcAlgorithm, Digest};
use straightway::{
    ByPath, CopyOut, Destination, Engine, Error, ErrorKind, Memory, MemoryView, NewObject, Object, Pending, Policy,
    Region, Uri, Verb, checksum::Algorithm,
};

use crate::{
    Cancel,
    checksums::{CHUNK_LEN_BYTES, FileChecksums, low},
};

use super::{
    Progress,
    layout::{Chunk, Content, FilePieces, RankLayout},
    slabs::{Loan, Slab, Slabs},
};

/// Writes in flight: with chunks of 4 MiB and I/Os of 2 MiB enough to keep the queues of a few reactors full.
const WRITES_IN_FLIGHT: usize = 8;
/// Slabs of the pump itself, where tensors are given away.
pub(super) const OWN_SLABS: usize = WRITES_IN_FLIGHT;
/// Chunks that are summed after each write once the caller has gone on: more than one, so that the row gets shorter, and few,
/// so that the device has its next chunk in time.
const SUMS_PER_WRITE: usize = 2;
/// Bytes that both checksums see while they are in the second-level cache.
const SUM_BYTES: usize = 128 << 10;
/// Memory in place is written from where it is if it is congruent to the file modulo this.
const IN_PLACE_ALIGN_BYTES: u64 = 4096;

/// What a save is about, once the caller's part is taken out.
pub(super) struct Job {
    pub layout: Arc<RankLayout>,
    /// Which tensors the caller lends, by position.
    pub lent: Arc<[bool]>,
    /// The tensors that were given away, by position.
    pub owned: Vec<Option<Memory>>,
    /// The caller's slabs, with the numbers of their chunks among those that it fills.
    pub filled: Receiver<(u64, Slab)>,
    /// Whether the caller is copying.
    pub capturing: Arc<AtomicBool>,
    /// Set by whoever gives up.
    pub abort: Arc<AtomicBool>,
    /// Ends the save early.
    pub cancel: Cancel,
    /// Where the files are made.
    pub directory: PathBuf,
    pub policy: Policy,
    /// Files of an earlier checkpoint by name, with their checksums; `None` if the save is not incremental.
    pub earlier: Option<Earlier>,
}

/// An earlier checkpoint whose files may be the same.
pub(super) struct Earlier {
    pub directory: PathBuf,
    pub files: BTreeMap<String, FileChecksums>,
}

/// A file that lies durable in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// Its position in the layout.
    pub number: usize,
    pub name: String,
    pub sums: FileChecksums,
}

/// Where the bytes of a save went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes written, by who moved them finally.
    pub bytes: ByPath,
    /// Bytes of files that are links to those of the earlier checkpoint.
    pub linked_bytes: u64,
    /// Bytes that were copied into staging memory before.
    pub staged_bytes: u64,
    /// Bytes written from memory of the caller's without a copy.
    pub in_place_bytes: u64,
}

/// What became of a job.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub files: Vec<Written>,
    pub moved: Moved,
}

/// A tensor that was given away, while it is here.
enum Held {
    /// Host memory of one owner.
    Shared { region: Region, start: u64, len: u64, address: u64 },
    /// Any other memory.
    Whole(Memory),
}

/// A chunk with its bytes.
enum Filled {
    Slab(Slab),
    /// A part of a tensor's own memory.
    InPlace(Memory),
}

/// When a chunk is summed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Summed {
    Before,
    After,
}

/// A write on its way, and the slab that it has, if it is not in place.
struct InFlight {
    file: usize,
    len: u64,
    summed: Summed,
    pending: Pending,
    loan: Option<Loan>,
}

/// A chunk that was written.
struct Unsummed {
    file: usize,
    len: u64,
    filled: Filled,
}

/// A file whose chunks are on their way.
struct Making {
    number: usize,
    name: String,
    new: NewObject,
    sums: FileChecksums,
    /// Whether all of its chunks are on their way.
    whole: bool,
}

pub(super) struct Pump<'a> {
    engine: &'a Engine,
    job: Job,
    slabs: &'a Slabs,
    own: &'a Arc<Slabs>,
    held: Vec<Option<Held>>,
    /// Slabs that came before their turn.
    early: BTreeMap<u64, Slab>,
    /// Slabs that had their turn.
    received: u64,
    in_flight: VecDeque<InFlight>,
    /// Oldest first, all older than what is in flight.
    unsummed: VecDeque<Unsummed>,
    /// Oldest first; the last one is the file that is at work.
    making: VecDeque<Making>,
    copy_out: Vec<(Destination, CopyOut)>,
    outcome: Outcome,
    /// Hears of each durable file and of bytes written.
    tell: &'a dyn Fn(Progress<'_>),
}

impl<'a> Pump<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        mut job: Job,
        (slabs, own): (&'a Slabs, &'a Arc<Slabs>),
        tell: &'a dyn Fn(Progress<'_>),
    ) -> Self {
        let held = std::mem::take(&mut job.owned).into_iter().map(|memory| memory.map(Held::new)).collect();
        let (in_flight, making, copy_out) = (VecDeque::new(), VecDeque::new(), Vec::new());
        let (early, received, unsummed) = (BTreeMap::new(), 0, VecDeque::new());
        let outcome = Outcome::default();
        Self { engine, job, slabs, own, held, early, received, in_flight, unsummed, making, copy_out, outcome, tell }
    }

    /// Writes everything. The tensors that were given away come back; `None` where a device may still read.
    pub(super) fn run(mut self) -> (Result<Outcome, Error>, Vec<Option<Memory>>) {
        let layout = self.job.layout.clone();
        let mut result = layout.files.iter().enumerate().try_for_each(|(number, file)| self.file(number, file));
        if result.is_err() {
            self.job.abort.store(true, Ordering::Release);
            self.early.clear();
            self.slabs.wake();
        }
        // After a failure the rest is still waited for: its memory must not be given back under a device.
        while let Some(oldest) = self.in_flight.pop_front() {
            let settled = self.settle(oldest);
            result = result.and(settled);
        }
        result = result.and_then(|()| self.sum_written(usize::MAX)).and_then(|()| self.close_files());
        self.unsummed.clear();
        self.making.clear();
        let memory = self.held.into_iter().map(|held| held.and_then(Held::into_memory)).collect();
        // Links are there at once, other files when their writes have ended.
        self.outcome.files.sort_by_key(|file| file.number);
        (result.map(|()| self.outcome), memory)
    }

    fn file(&mut self, number: usize, file: &FilePieces) -> Result<(), Error> {
        let mut sums = FileChecksums { len_bytes: file.len_bytes, crc32c: Vec::new(), crc64nvme: None };
        sums.crc64nvme = self.job.earlier.is_some().then(Vec::new);
        let mut same = self.earlier(file);
        let mut zip = file.pieces.iter().any(|piece| piece.content == Content::Crc32).then(zip_digest);
        let mut object = None;
        if same.is_none() {
            // Now: the first chunk may be on its way still.
            object = Some(self.begin(number, file, self.create(file)?, sums.clone()));
        }
        for (index, chunk) in file.chunks().enumerate() {
            self.job.cancel.check(Verb::Write)?;
            let filled = self.fill(file, &chunk, zip.as_mut())?;
            let mut summed = Summed::After;
            if let Some((_, same)) = &same {
                sum(&filled, chunk.len, &mut sums)?;
                if same.agrees(&sums, index) {
                    continue;
                }
                summed = Summed::Before;
            }
            let object = match &object {
                Some(object) => object,
                None => {
                    let made = self.create(file)?;
                    if let Some((path, _)) = same.take() {
                        self.copy_start(&path, made.object(), &sums, index)?;
                    }
                    object.insert(self.begin(number, file, made, sums.clone()))
                }
            };
            self.write((number, object), &chunk, filled, summed)?;
        }
        match same {
            Some((path, _)) if file.len_bytes > 0 => return self.link(&path, number, file, sums),
            Some(_) => {
                self.begin(number, file, self.create(file)?, sums);
            }
            None => {}
        }
        if let Some(making) = self.making.back_mut() {
            making.whole = true;
        }
        self.close_files()
    }

    /// Puts a new file at the end of those that are being made.
    fn begin(&mut self, number: usize, file: &FilePieces, new: NewObject, sums: FileChecksums) -> Object {
        let object = new.object().clone();
        self.making.push_back(Making { number, name: file.name.clone(), new, sums, whole: false });
        object
    }

    fn create(&self, file: &FilePieces) -> Result<NewObject, Error> {
        self.engine.create(&Uri::from_path(&self.job.directory.join(&file.name))?, file.len_bytes)
    }

    /// Fills a chunk, by whoever has its bytes.
    fn fill(&mut self, file: &FilePieces, chunk: &Chunk, mut zip: Option<&mut Digest>) -> Result<Filled, Error> {
        let callers = file.parts(chunk).any(|part| is_lent(part.content, &self.job.lent));
        let mut slab = match callers {
            true => self.receive()?,
            false => match self.in_place(file, chunk)? {
                Some((memory, from)) => {
                    if let Some(zip) = zip {
                        let zip = entry_digest(zip, from);
                        memory.visit(0, chunk.len, |bytes| zip.update(bytes))?;
                    }
                    return Ok(Filled::InPlace(memory));
                }
                None => self.own_slab()?,
            },
        };
        let bytes = slab.bytes_mut();
        let mut at = 0;
        for part in file.parts(chunk) {
            let (from, to) = (place(part.at), place(part.at + part.len));
            bytes[at..from].fill(0);
            at = to;
            let into = &mut bytes[from..to];
            match part.content {
                Content::Bytes(all) => into.copy_from_slice(&all[place(part.from)..place(part.from + part.len)]),
                Content::Tensor(tensor) if self.job.lent.get(*tensor) == Some(&true) => {}
                Content::Tensor(tensor) => self.copy_held(*tensor, part.from, into)?,
                Content::Crc32 => {
                    let value = zip.as_deref().map_or(0, Digest::finalize);
                    into.copy_from_slice(&low(value).to_le_bytes()[place(part.from)..place(part.from + part.len)]);
                }
            }
            if let (Content::Tensor(_), Some(zip)) = (part.content, zip.as_deref_mut()) {
                entry_digest(zip, part.from).update(&bytes[from..to]);
            }
        }
        bytes[at..place(chunk.len)].fill(0);
        Ok(Filled::Slab(slab))
    }

    /// Bytes of a tensor that was given away.
    fn copy_held(&mut self, tensor: usize, from: u64, into: &mut [u8]) -> Result<(), Error> {
        match self.held.get_mut(tensor) {
            Some(Some(Held::Shared { region, start, .. })) => {
                region.part(*start + from, into.len() as u64)?.read(0, into)
            }
            Some(Some(Held::Whole(memory))) => copy_memory(self.engine, &mut self.copy_out, &memory.view(), from, into),
            Some(None) | None => Ok(()),
        }
    }

    /// The next slab of the caller. Writes that hold slabs are waited for first.
    fn receive(&mut self) -> Result<Slab, Error> {
        loop {
            if let Some(slab) = self.early.remove(&self.received) {
                self.received += 1;
                return Ok(slab);
            }
            let (number, slab) = match self.job.filled.try_recv() {
                Ok(filled) => filled,
                Err(TryRecvError::Disconnected) => return Err(gone()),
                Err(TryRecvError::Empty) => match self.in_flight.pop_front() {
                    Some(oldest) => {
                        self.settle(oldest)?;
                        continue;
                    }
                    None => {
                        // The chunk may be waiting for the memory of these.
                        self.sum_written(usize::MAX)?;
                        self.job.filled.recv().map_err(|_| gone())?
                    }
                },
            };
            self.early.insert(number, slab);
        }
    }

    fn own_slab(&mut self) -> Result<Slab, Error> {
        loop {
            if let Some(slab) = self.own.try_take(self.engine)? {
                return Ok(slab);
            }
            if !self.unsummed.is_empty() {
                self.sum_written(usize::MAX)?;
                continue;
            }
            match self.in_flight.pop_front() {
                Some(oldest) => self.settle(oldest)?,
                None => {
                    return Err(Error::new(ErrorKind::ResourceLimit, Verb::Write).detail("no staging memory is left"));
                }
            }
        }
    }

    /// The chunk as a part of one tensor's own memory, and where that is in the tensor, if it lies there as in the file.
    fn in_place(&self, file: &FilePieces, chunk: &Chunk) -> Result<Option<(Memory, u64)>, Error> {
        let mut parts = file.parts(chunk);
        let (Some(part), None) = (parts.next(), parts.next()) else { return Ok(None) };
        let Content::Tensor(tensor) = part.content else { return Ok(None) };
        match self.held.get(*tensor) {
            Some(Some(Held::Shared { region, start, address, .. }))
                if part.len == chunk.len && (address + part.from).is_multiple_of(IN_PLACE_ALIGN_BYTES) =>
            {
                region.part(start + part.from, part.len).map(|memory| Some((memory, part.from)))
            }
            _ => Ok(None),
        }
    }

    fn write(
        &mut self,
        (file, object): (usize, &Object),
        chunk: &Chunk,
        filled: Filled,
        summed: Summed,
    ) -> Result<(), Error> {
        let (loan, memory) = match filled {
            Filled::InPlace(memory) => {
                self.outcome.moved.in_place_bytes += chunk.len;
                (None, memory)
            }
            Filled::Slab(slab) => {
                self.outcome.moved.staged_bytes += chunk.len;
                let (loan, memory) = slab.lend(chunk.len)?;
                (Some(loan), memory)
            }
        };
        let pending = self.engine.write(object, chunk.offset, memory).policy(self.job.policy).start();
        self.in_flight.push_back(InFlight { file, len: chunk.len, summed, pending, loan });
        match self.in_flight.len() > WRITES_IN_FLIGHT {
            true => self.in_flight.pop_front().map_or(Ok(()), |oldest| self.settle(oldest)),
            false => Ok(()),
        }
    }

    /// Waits for a write. What it held is free when it is summed.
    fn settle(&mut self, InFlight { file, len, summed, pending, loan }: InFlight) -> Result<(), Error> {
        let mut done = pending.wait();
        self.outcome.moved.bytes += done.path.bytes;
        let written = std::mem::replace(&mut done.result, Ok(0));
        let memory = done.into_memory();
        let filled = match loan {
            None => memory.map(Filled::InPlace),
            Some(loan) => {
                drop(memory);
                loan.back().map(Filled::Slab)
            }
        };
        let written = written?;
        if summed == Summed::After {
            let filled = filled.ok_or_else(|| {
                Error::new(ErrorKind::Protocol, Verb::Write).detail("a write ended without giving its memory back")
            })?;
            self.unsummed.push_back(Unsummed { file, len, filled });
        }
        (self.tell)(Progress::Wrote(written));
        let most = match (self.slabs.are_wanted(), self.job.capturing.load(Ordering::Acquire)) {
            (true, _) => usize::MAX,
            (false, true) => 0,
            (false, false) => SUMS_PER_WRITE,
        };
        self.sum_written(most)?;
        self.close_files()
    }

    /// Sums the oldest `most` chunks that were written, and gives their memory back.
    fn sum_written(&mut self, most: usize) -> Result<(), Error> {
        let count = most.min(self.unsummed.len());
        for Unsummed { file, len, filled } in self.unsummed.drain(..count) {
            if let Some(making) = self.making.iter_mut().find(|making| making.number == file) {
                sum(&filled, len, &mut making.sums)?;
            }
        }
        Ok(())
    }

    /// Makes the files durable of which all writes are over and summed.
    fn close_files(&mut self) -> Result<(), Error> {
        let unsummed = self.unsummed.front().map(|oldest| oldest.file);
        let busy = unsummed.or(self.in_flight.front().map(|oldest| oldest.file)).unwrap_or(usize::MAX);
        while self.making.front().is_some_and(|making| making.whole && making.number < busy) {
            let Some(Making { number, name, new, sums, .. }) = self.making.pop_front() else { break };
            new.commit_leaving_name()?;
            (self.tell)(Progress::FileDone(&name));
            self.outcome.files.push(Written { number, name, sums });
        }
        Ok(())
    }

    /// The file of the earlier checkpoint that this one may be the same as.
    fn earlier(&self, file: &FilePieces) -> Option<(PathBuf, FileChecksums)> {
        let earlier = self.job.earlier.as_ref()?;
        let sums = earlier.files.get(&file.name).filter(|sums| sums.crc64nvme.is_some())?;
        let path = earlier.directory.join(&file.name);
        let len = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?.len();
        (len == file.len_bytes && sums.len_bytes == len).then(|| (path, sums.clone()))
    }

    /// The first `chunks` were not written, because they are those of the earlier file: they come from there.
    fn copy_start(&mut self, from: &Path, to: &Object, sums: &FileChecksums, chunks: usize) -> Result<(), Error> {
        if chunks == 0 {
            return Ok(());
        }
        let old = self.engine.open(&Uri::from_path(from)?)?;
        for (number, want) in (0_u64..).zip(sums.crc32c.iter().take(chunks)) {
            let offset = number * CHUNK_LEN_BYTES;
            let len = CHUNK_LEN_BYTES.min(sums.len_bytes - offset);
            let (loan, memory) = self.own_slab()?.lend(len)?;
            let read = self.engine.read(&old, offset, memory).checksum(Algorithm::Crc32c);
            let read = read.wait().ok()?;
            if read.checksum.map(low) != Some(*want) {
                return Err(Error::new(ErrorKind::ChecksumMismatch, Verb::Read)
                    .at(from.to_string_lossy().as_ref())
                    .in_range(offset, len)
                    .detail("the earlier checkpoint is not what its checksums say")
                    .remedy("save without it"));
            }
            let memory = read.into_memory().ok_or_else(gone)?;
            let wrote = self.engine.write(to, offset, memory).policy(self.job.policy).wait().ok()?;
            self.outcome.moved.bytes += wrote.path.bytes;
            drop(wrote);
            drop(loan);
        }
        Ok(())
    }

    /// Every chunk is that of the earlier file: it gets a second name, or is copied where the file system has none.
    fn link(&mut self, from: &Path, number: usize, file: &FilePieces, sums: FileChecksums) -> Result<(), Error> {
        let linked = fs::hard_link(from, self.job.directory.join(&file.name)).is_ok();
        if linked {
            self.outcome.moved.linked_bytes += file.len_bytes;
        } else {
            let made = self.create(file)?;
            self.copy_start(from, made.object(), &sums, sums.crc32c.len())?;
            made.commit_leaving_name()?;
        }
        (self.tell)(Progress::FileDone(&file.name));
        self.outcome.files.push(Written { number, name: file.name.clone(), sums });
        Ok(())
    }
}

impl Held {
    fn new(memory: Memory) -> Self {
        let (len, address) = (memory.len(), memory.address());
        if memory.destination() == Destination::Host && len > 0 && memory.is_sole() {
            let (region, start) = memory.share();
            return Self::Shared { region, start, len, address };
        }
        Self::Whole(memory)
    }

    /// The memory, unless a device may still read it.
    fn into_memory(self) -> Option<Memory> {
        match self {
            Self::Shared { region, start, len, .. } => region.reclaim(start, len).ok(),
            Self::Whole(memory) => Some(memory),
        }
    }
}

/// Appends the checksums of a chunk.
fn sum(filled: &Filled, len: u64, sums: &mut FileChecksums) -> Result<(), Error> {
    let mut crc32c = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut crc64 = sums.crc64nvme.as_ref().map(|_| Digest::new(CrcAlgorithm::Crc64Nvme));
    let mut add = |bytes: &[u8]| {
        crc32c.update(bytes);
        if let Some(crc64) = &mut crc64 {
            crc64.update(bytes);
        }
    };
    match filled {
        Filled::Slab(slab) => slab.bytes()[..place(len)].chunks(SUM_BYTES).for_each(add),
        Filled::InPlace(memory) => memory.visit(0, len, &mut add)?,
    }
    sums.crc32c.push(low(crc32c.finalize()));
    if let (Some(list), Some(crc64)) = (&mut sums.crc64nvme, crc64) {
        list.push(crc64.finalize());
    }
    Ok(())
}

/// Whether the caller fills what `content` stands for.
pub(super) fn is_lent(content: &Content, lent: &[bool]) -> bool {
    matches!(content, Content::Tensor(tensor) if lent.get(*tensor) == Some(&true))
}

/// Copies bytes of a memory that the engine knows, from byte `at`.
pub(super) fn copy_memory(
    engine: &Engine,
    copy_out: &mut Vec<(Destination, CopyOut)>,
    memory: &MemoryView<'_>,
    at: u64,
    into: &mut [u8],
) -> Result<(), Error> {
    let destination = memory.destination();
    // A copy engine is made once for all tensors of a device.
    let known = copy_out.iter().position(|(known, _)| *known == destination);
    let known = match known {
        Some(known) => known,
        None => {
            copy_out.push((destination, engine.copy_out(destination)?));
            copy_out.len() - 1
        }
    };
    let Some((_, out)) = copy_out.get_mut(known) else { return Ok(()) };
    out.copy(memory, at, into)
}

/// An offset in a chunk as an index: chunks are a few MiB.
pub(super) fn place(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// The digest for bytes of a tensor from `from` on: a tensor is an entry, whose checksum begins with it.
fn entry_digest(zip: &mut Digest, from: u64) -> &mut Digest {
    if from == 0 {
        *zip = zip_digest();
    }
    zip
}

fn zip_digest() -> Digest {
    Digest::new(CrcAlgorithm::Crc32IsoHdlc)
}

/// The caller stopped before its last slab: it has the reason.
fn gone() -> Error {
    Error::new(ErrorKind::Cancelled, Verb::Write).detail("the capture of the tensors ended early")
}
