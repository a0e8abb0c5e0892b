//! The third stage: checks, decodes, maps and puts batches together, one batch a thread.

use std::sync::Arc;

use straightway::{Buffer, Memory};

use super::{
    batch::Parts,
    clock,
    decode::guarded,
    error::{BadSample, LoadError, Why},
    options::SampleRef,
    plan::{BlockRead, From, Item, Job},
    planner::{fits, stride_of},
    pool::Patience,
    shared::{Shared, Step, bytes_at},
    window::Window,
};
use crate::decode::{self, Limits, Rows};

/// The thread of the stage.
pub(super) fn run(shared: &Shared) {
    // Where mapped samples are put before their length is known; it keeps its size from batch to batch.
    let mut mapped = Vec::new();
    while let Some(job) = shared.work.pop() {
        let start = clock::now();
        work(shared, job, &mut mapped);
        shared.counts.working.since(start);
    }
}

fn work(shared: &Shared, mut job: Box<Job>, mapped: &mut Vec<u8>) {
    let read = match job.memory.take().map(Memory::into_buffer) {
        None => None,
        Some(Ok(buffer)) => Some(buffer),
        Some(Err(memory)) => {
            shared.pool.put(memory);
            return shared.out.put(job.seq, Step::Failed(LoadError::Broken { stage: "worker" }));
        }
    };
    let bytes = read.as_ref().map_or(&[][..], Buffer::as_slice);
    for item in job.items.iter_mut().filter(|item| !item.lost) {
        let found = match &item.from {
            From::Memory(at) => bytes_at(bytes, *at, item.place.extent).ok_or(OUTSIDE),
            From::Window(window, index) => window.sample(*index),
            From::Block(_) => continue,
        };
        if let Err(why) = found.and_then(|bytes| shared.check(item.place.crc32c, bytes)) {
            lose(shared, item, &mut job.bad, why);
        }
    }
    if !shared.options.assembles() && !job.shares() {
        job.memory = read.map(Memory::from);
        return shared.hand_over(job);
    }
    for block in &job.blocks {
        decode_block(shared, block, bytes);
    }
    // The duties to fill slots are done.
    job.blocks.clear();
    let seq = job.seq;
    // Nothing was read into it: it is for what is put together.
    let (spare, read) = if job.runs.is_empty() { (read, None) } else { (None, read) };
    let bytes = read.as_ref().map_or(&[][..], Buffer::as_slice);
    let assembled = assemble(shared, job, (bytes, mapped), spare);
    read.into_iter().for_each(|buffer| shared.pool.put(Memory::from(buffer)));
    match assembled {
        Ok(Some((parts, memory, bad))) => shared.finish(parts, memory, bad),
        Ok(None) => {}
        Err(error) => shared.out.put(seq, Step::Failed(error)),
    }
}

/// A plan of ours that leaves its memory would be a bug; it is an error of one sample, not of the process.
const OUTSIDE: Why = Why::Panicked { who: "loader", message: String::new() };

fn lose(shared: &Shared, item: &mut Item, bad: &mut Vec<BadSample>, why: Why) {
    item.lost = true;
    bad.push(shared.bad_sample(item.id, &item.place, why));
}

fn decode_block(shared: &Shared, block: &BlockRead, bytes: &[u8]) {
    if block.lost {
        return;
    }
    let decoded = bytes_at(bytes, block.at, block.place.extent).ok_or(OUTSIDE).and_then(|bytes| {
        shared.check(block.place.crc32c, bytes)?;
        let entry = shared.entry(block.key)?;
        let limits = Limits { bytes: shared.options.memory_bytes };
        guarded("decoder", || decode::rows(entry.format, &entry.coding, bytes, limits))?.map_err(Why::Decode)
    });
    shared.counts.blocks.add(1);
    block.promise.settle(decoded.map(Arc::new));
}

/// A batch that was put together.
type Assembled = (Parts, Option<Memory>, Vec<BadSample>);

/// Puts a batch together; `None` if everything ends.
fn assemble(
    shared: &Shared,
    mut job: Box<Job>,
    (read, mapped): (&[u8], &mut Vec<u8>),
    spare: Option<Buffer>,
) -> Result<Option<Assembled>, LoadError> {
    mapped.clear();
    let mut pieces = Vec::with_capacity(job.items.len());
    let (epoch, mut bad) = (job.epoch, std::mem::take(&mut job.bad));
    for item in job.items.iter_mut().filter(|item| !item.lost) {
        match piece_of(shared, item, epoch, read, mapped) {
            Ok(piece) => pieces.push(piece),
            Err(why) => {
                lose(shared, item, &mut bad, why);
            }
        }
    }
    let layout = &shared.options.layout;
    let kept: Vec<&Item> = job.items.iter().filter(|item| !item.lost).collect();
    let lens: Vec<u64> = pieces.iter().map(Piece::len).collect();
    let stride = stride_of(layout, &lens);
    let count = pieces.len();
    let mut parts = Parts {
        seq: job.seq,
        epoch,
        after: job.after.clone(),
        ids: Vec::with_capacity(count),
        offsets: Vec::with_capacity(count),
        lengths: Vec::with_capacity(count),
        stride,
        used: 0,
    };
    let mut chosen = Vec::with_capacity(count);
    for (item, piece) in kept.into_iter().zip(pieces) {
        let len = piece.len();
        match stride.map_or(Ok(()), |stride| fits(layout, len, stride)) {
            Ok(()) => {
                parts.push(item.id, parts.used, len);
                parts.used = parts.used.checked_add(stride.unwrap_or(len)).ok_or_else(|| over(shared))?;
                chosen.push(piece);
            }
            Err(why) => bad.push(shared.bad_sample(item.id, &item.place, why)),
        }
    }
    let Some(mut buffer) = room_for(shared, parts.used, spare)? else {
        return Ok((parts.used == 0).then_some((parts, None, bad)));
    };
    fill(&parts, &chosen, (read, mapped), buffer.as_mut_slice());
    shared.counts.assembled_bytes.add(lens.iter().sum());
    Ok(Some((parts, Some(Memory::from(buffer)), bad)))
}

/// Memory of a batch: what the planner found, if that is enough. `None` if none is needed, and if everything ends.
fn room_for(shared: &Shared, bytes: u64, spare: Option<Buffer>) -> Result<Option<Buffer>, LoadError> {
    match spare {
        Some(buffer) if bytes > 0 && buffer.len().0 >= bytes => return Ok(Some(buffer)),
        other => other.into_iter().for_each(|buffer| shared.pool.put(Memory::from(buffer))),
    }
    if bytes == 0 {
        return Ok(None);
    }
    let Some(memory) = shared.pool.acquire(bytes, Patience::None)? else { return Ok(None) };
    memory.into_buffer().map(Some).map_err(|_| LoadError::Broken { stage: "worker" })
}

fn over(shared: &Shared) -> LoadError {
    LoadError::OverBudget { need_bytes: u64::MAX, budget_bytes: shared.options.memory_bytes }
}

/// Where the bytes of a sample are before they go to their place.
enum Piece {
    /// In what was read.
    Read(usize, usize),
    /// In what was mapped.
    Mapped(usize, usize),
    /// An item of a block.
    Row(Arc<Rows>, usize),
    /// A sample of a window.
    Member(Arc<Window>, usize),
}

impl Piece {
    fn bytes<'a>(&'a self, read: &'a [u8], mapped: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Read(start, end) => read.get(*start..*end).unwrap_or_default(),
            Self::Mapped(start, end) => mapped.get(*start..*end).unwrap_or_default(),
            Self::Row(block, row) => block.get(*row).unwrap_or_default(),
            Self::Member(window, index) => window.sample(*index).unwrap_or_default(),
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Read(start, end) | Self::Mapped(start, end) => (end - start) as u64,
            Self::Row(block, row) => block.get(*row).map_or(0, <[u8]>::len) as u64,
            Self::Member(window, index) => window.sample(*index).map_or(0, <[u8]>::len) as u64,
        }
    }
}

/// The bytes of a sample, decoded and mapped.
fn piece_of(shared: &Shared, item: &Item, epoch: u64, read: &[u8], mapped: &mut Vec<u8>) -> Result<Piece, Why> {
    let piece = match &item.from {
        From::Memory(at) => {
            let bytes = bytes_at(read, *at, item.place.extent).ok_or(OUTSIDE)?;
            let start = usize::try_from(*at).map_err(|_| OUTSIDE)?;
            Piece::Read(start, start + bytes.len())
        }
        From::Window(window, index) => {
            window.sample(*index)?;
            Piece::Member(Arc::clone(window), *index)
        }
        From::Block(slot) => {
            let (block, row) = (slot.wait()?, item.place.row.unwrap_or(0));
            let missing = || Why::NoRow { row, have: u32::try_from(block.len()).unwrap_or(u32::MAX) };
            let found = usize::try_from(row).ok().filter(|row| *row < block.len()).ok_or_else(missing)?;
            Piece::Row(block, found)
        }
    };
    let Some(map) = &shared.options.map else { return Ok(piece) };
    let format = shared.entry(item.key())?.format;
    let start = mapped.len();
    let sample = SampleRef { id: item.id, epoch, format, bytes: piece.bytes(read, &[]) };
    let called = guarded("map function", || map(sample, mapped)).and_then(|result| result.map_err(Why::Map));
    if let Err(why) = called {
        // What it appended before it failed is nobody's.
        mapped.truncate(start);
        return Err(why);
    }
    if mapped.len() < start {
        return Err(Why::Map(Arc::new(Shortened)));
    }
    Ok(Piece::Mapped(start, mapped.len()))
}

/// A map function that took away what was there before it.
#[derive(Debug, thiserror::Error)]
#[error("it made the output shorter; it may only append")]
struct Shortened;

/// Copies samples to their places; what is left of a place becomes zero.
fn fill(parts: &Parts, pieces: &[Piece], (read, mapped): (&[u8], &[u8]), to: &mut [u8]) {
    for (piece, &offset) in pieces.iter().zip(&parts.offsets) {
        let bytes = piece.bytes(read, mapped);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let place = parts.stride.and_then(|stride| usize::try_from(stride).ok()).unwrap_or(bytes.len());
        let Some(to) = start.checked_add(place).and_then(|end| to.get_mut(start..end)) else { continue };
        let (filled, rest) = to.split_at_mut(bytes.len().min(place));
        filled.copy_from_slice(&bytes[..filled.len()]);
        rest.fill(0);
    }
}
