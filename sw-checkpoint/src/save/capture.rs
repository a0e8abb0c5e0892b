//! The caller's side of a save: what is lent is copied into slabs, by several threads.
//!
//! ```text
//!   each thread:   lock ─ the next chunk and a slab ─ unlock ─► copy ─► (number, slab) ─► the pump puts them in order
//! ```
//!
//! Chunk and slab are taken under one lock. So every chunk before one that has a slab has a slab too, and the pump, which
//! gives slabs back in the order of the chunks, never waits for a chunk that waits for a slab that only the pump could free.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread,
};

use straightway::{CopyOut, Destination, Engine, Error, MemoryView};

use super::{
    Source,
    layout::{Chunk, Content, FilePieces, RankLayout},
    pump::{copy_memory, is_lent, place},
    slabs::{Slab, Slabs},
};

/// Memory that is lent for the capture.
pub(super) enum Lender<'a> {
    Source(&'a dyn Source),
    Memory(MemoryView<'a>),
}

/// How a capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Captured {
    All,
    /// The background does not go on.
    Stopped,
}

/// What is captured, and into which slabs.
pub(super) struct Capture<'a> {
    pub engine: &'a Engine,
    pub pool: &'a Arc<Slabs>,
    pub layout: &'a RankLayout,
    /// Which tensors are lent, by position.
    pub lent: &'a [bool],
    /// By the same position.
    pub lenders: &'a [Option<Lender<'a>>],
    /// Set by whoever gives up.
    pub abort: &'a AtomicBool,
}

/// Every chunk that has lent bytes, with its file, in order.
fn chunks<'a>(layout: &'a RankLayout, lent: &'a [bool]) -> impl Iterator<Item = (&'a FilePieces, Chunk)> {
    let chunks = layout.files.iter().flat_map(|file| file.chunks().map(move |chunk| (file, chunk)));
    chunks.filter(|(file, chunk)| file.parts(chunk).any(|part| is_lent(part.content, lent)))
}

/// How many chunks have lent bytes.
pub(super) fn lent_chunks(layout: &RankLayout, lent: &[bool]) -> usize {
    chunks(layout, lent).count()
}

/// A thread that unwinds here leaves a chunk without its bytes: nobody may wait for that chunk.
struct Unwinding<'a>(&'a Capture<'a>);

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.give_up();
        }
    }
}

impl Capture<'_> {
    /// Copies everything with at most `threads` threads, the caller's among them; each slab goes to `slabs` with the number of
    /// its chunk, counted among those that have lent bytes. Fewer threads do where the system has no more.
    ///
    /// # Errors
    /// What reading the lent memory reports; `ResourceLimit` without memory for a slab.
    pub(super) fn run(&self, threads: usize, slabs: Sender<(u64, Slab)>) -> Result<Captured, Error> {
        let helpers = threads.min(lent_chunks(self.layout, self.lent)).saturating_sub(1);
        let queue = Mutex::new((0_u64..).zip(chunks(self.layout, self.lent)));
        thread::scope(|scope| {
            let helper = |_| {
                let (slabs, queue) = (slabs.clone(), &queue);
                let builder = thread::Builder::new().name("straightway-capture".to_owned());
                builder.spawn_scoped(scope, move || self.work(queue, &slabs)).ok()
            };
            let helpers: Vec<_> = (0..helpers).map_while(helper).collect();
            let mut outcome = self.work(&queue, &slabs);
            drop(slabs);
            for helper in helpers {
                let theirs = helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                outcome = match (outcome, theirs) {
                    (Ok(Captured::All), theirs) => theirs,
                    (Ok(Captured::Stopped), Err(error)) => Err(error),
                    (outcome, _) => outcome,
                };
            }
            outcome
        })
    }

    /// One thread's part: chunk after chunk until there are none.
    fn work<'f>(
        &self,
        queue: &Mutex<impl Iterator<Item = (u64, (&'f FilePieces, Chunk))>>,
        slabs: &Sender<(u64, Slab)>,
    ) -> Result<Captured, Error> {
        let _unwinding = Unwinding(self);
        let mut copy_out: Vec<(Destination, CopyOut)> = Vec::new();
        loop {
            let mut left = queue.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((number, (file, chunk))) = left.next() else { return Ok(Captured::All) };
            let over = || self.abort.load(Ordering::Acquire);
            let slab = self.pool.take(self.engine, over).inspect_err(|_| self.give_up())?;
            drop(left);
            let Some(mut slab) = slab else { return Ok(Captured::Stopped) };
            self.copy(file, &chunk, slab.bytes_mut(), &mut copy_out).inspect_err(|_| self.give_up())?;
            if slabs.send((number, slab)).is_err() {
                return Ok(Captured::Stopped);
            }
        }
    }

    fn copy(
        &self,
        file: &FilePieces,
        chunk: &Chunk,
        bytes: &mut [u8],
        copy_out: &mut Vec<(Destination, CopyOut)>,
    ) -> Result<(), Error> {
        file.parts(chunk).try_for_each(|part| {
            let Content::Tensor(tensor) = *part.content else { return Ok(()) };
            let into = &mut bytes[place(part.at)..place(part.at + part.len)];
            match self.lenders.get(tensor) {
                Some(Some(Lender::Source(source))) => source.copy_to(part.from, into),
                Some(Some(Lender::Memory(memory))) => copy_memory(self.engine, copy_out, memory, part.from, into),
                Some(None) | None => Ok(()),
            }
        })
    }

    /// Nobody waits for a slab or a chunk any more.
    fn give_up(&self) {
        self.abort.store(true, Ordering::Release);
        self.pool.wake();
    }
}
