//! Copies into host memory of this process, by several threads: one thread does not take the whole bandwidth of memory, or of the
//! bus to a device.

use std::{
    sync::{Mutex, PoisonError},
    thread,
};

use pyo3::prelude::*;
use straightway::{CopyOut, Destination, Error, Memory};

use crate::{
    error::{Fail, misuse},
    foreign::{self, Access},
    wait,
};

/// Copied by a thread at a time.
const PIECE_BYTES: u64 = 4 << 20;
/// A few take the whole bandwidth of memory.
const THREADS_MAX: usize = 4;

/// A source and its target, in Python.
pub type Pair<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// Copies each source of `(source, target)`, memory of the host or of a device, into its target in host memory, of the same length;
/// returns the bytes copied. Bytes of a device pass through a pinned slab of 1 MiB for each thread.
///
/// # Errors
/// `ApiMisuse` for lengths that differ, ranges that overlap, and a target in a device; nothing is copied then. What the copy engine
/// of a device reports; some bytes may be there then.
pub fn many(py: Python<'_>, engine: &straightway::Engine, parts: &[Pair<'_>]) -> Result<u64, Fail> {
    let (mut pieces, mut total) = (Vec::new(), 0);
    for (source, target) in parts {
        let from = foreign::memory_of(engine, source, Access::Source)?;
        let to = foreign::memory_of(engine, target, Access::Target)?;
        let len = |memory: &Option<Memory>| memory.as_ref().map_or(0, Memory::len);
        if len(&from) != len(&to) {
            let text = format!("the source has {} bytes, the target {}", len(&from), len(&to));
            return Err(misuse(text, "give memories of one length"));
        }
        let (Some(from), Some(to)) = (from, to) else { continue };
        if to.destination() != Destination::Host {
            return Err(misuse("the target is memory of a device", "give memory of the host"));
        }
        let near = from.destination() == Destination::Host;
        if near && from.address().abs_diff(to.address()) < from.len() {
            return Err(misuse("source and target overlap", "copy into other memory"));
        }
        total += from.len();
        cut(from, to, &mut pieces)?;
    }
    wait::detached(py, || copy(engine, pieces))?;
    Ok(total)
}

fn cut(from: Memory, to: Memory, pieces: &mut Vec<(Memory, Memory)>) -> Result<(), Error> {
    let len = from.len();
    let ((from, from_at), (to, to_at)) = (from.share(), to.share());
    let mut at = 0;
    while at < len {
        let piece = PIECE_BYTES.min(len - at);
        pieces.push((from.part(from_at + at, piece)?, to.part(to_at + at, piece)?));
        at += piece;
    }
    Ok(())
}

fn copy(engine: &straightway::Engine, pieces: Vec<(Memory, Memory)>) -> Result<(), Error> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(pieces.len());
    let left = Mutex::new(pieces.into_iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut ways: Vec<(Destination, CopyOut)> = Vec::new();
        while let Some((from, to)) = next() {
            match from.destination() {
                Destination::Host => to.copy_from(0, &from, 0, from.len())?,
                device => out_of(engine, &mut ways, device, (&from, &to))?,
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        // Fewer threads do where the system has no more.
        let helper = |_| thread::Builder::new().name("straightway-copy".to_owned()).spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (1..threads).map_while(helper).collect();
        let mut outcome = work();
        for helper in helpers {
            let theirs = helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome = outcome.and(theirs);
        }
        outcome
    })
}

/// Copies memory of a device by this thread's way out of it, which is made when it is first needed.
fn out_of(
    engine: &straightway::Engine,
    ways: &mut Vec<(Destination, CopyOut)>,
    device: Destination,
    (from, to): (&Memory, &Memory),
) -> Result<(), Error> {
    let at = match ways.iter().position(|(of, _)| *of == device) {
        Some(at) => at,
        None => {
            ways.push((device, engine.copy_out(device)?));
            ways.len() - 1
        }
    };
    let Some((_, way)) = ways.get_mut(at) else { return Ok(()) };
    let mut into = engine.copy_in(Destination::Host)?;
    let (mut done, mut outcome) = (0, Ok(()));
    way.visit(from, 0, from.len(), |bytes| {
        if outcome.is_ok() {
            outcome = into.put(to, done, bytes);
        }
        done += bytes.len() as u64;
    })?;
    outcome
}
