//! Copies between host memories of this process, by several threads: one thread does not take the whole bandwidth of memory.
// UNSAFETY: both sides are memory of Python objects, to which no slices may be made.
#![expect(unsafe_code, reason = "copies between addresses of other owners")]

use std::{
    ptr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use pyo3::prelude::*;
use straightway::{Error, ErrorKind, Verb};

use crate::{
    error::{Fail, misuse},
    foreign::{self, Access, HostMemory},
    wait,
};

/// Copied by a thread at a time.
const PIECE_BYTES: u64 = 4 << 20;
/// A few take the whole bandwidth of memory.
const THREADS_MAX: usize = 4;

/// A part of one copy, of at most [`PIECE_BYTES`].
struct Piece {
    from: u64,
    to: u64,
    len: usize,
}

/// Copies each source of `(source, target)` into its target, of the same length; returns the bytes copied. All are host memory.
#[pyfunction]
pub fn copy_many(py: Python<'_>, parts: Vec<(Bound<'_, PyAny>, Bound<'_, PyAny>)>) -> Result<u64, Fail> {
    let (mut pieces, mut owners, mut total) = (Vec::new(), Vec::new(), 0);
    for (source, target) in &parts {
        let from = foreign::host_memory_of(source, Access::Source)?;
        let to = foreign::host_memory_of(target, Access::Target)?;
        let len = |memory: &Option<HostMemory>| memory.as_ref().map_or(0, |memory| memory.len);
        if len(&from) != len(&to) {
            let text = format!("the source has {} bytes, the target {}", len(&from), len(&to));
            return Err(misuse(text, "give memories of one length"));
        }
        let (Some(from), Some(to)) = (from, to) else { continue };
        if from.address.abs_diff(to.address) < from.len {
            return Err(misuse("source and target overlap", "copy into other memory"));
        }
        total += from.len;
        pieces.extend(cut(&from, &to)?);
        owners.push((from, to));
    }
    wait::detached(py, || {
        copy(&pieces);
        Ok::<(), Error>(())
    })?;
    drop(owners);
    Ok(total)
}

fn cut(from: &HostMemory, to: &HostMemory) -> Result<Vec<Piece>, Fail> {
    let starts = (0..from.len).step_by(usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX));
    let piece = |start: u64| {
        let len = usize::try_from(PIECE_BYTES.min(from.len - start)).map_err(|_| too_long())?;
        Ok(Piece { from: from.address + start, to: to.address + start, len })
    };
    starts.map(piece).collect()
}

fn too_long() -> Fail {
    Error::new(ErrorKind::OutOfRange, Verb::Copy).detail("longer than the address space").into()
}

fn copy(pieces: &[Piece]) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(Piece { from, to, len }) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let address = |at: u64| usize::try_from(at).unwrap_or(0);
            // SAFETY: the owners, which the caller keeps, have both ranges mapped, the target's writable; the ranges of a pair
            // do not overlap, and no Rust reference into either exists. That Python threads leave the memory alone meanwhile is
            // what the documentation asks of the caller, as for every operation.
            unsafe {
                ptr::copy_nonoverlapping::<u8>(
                    ptr::with_exposed_provenance(address(*from)),
                    ptr::with_exposed_provenance_mut(address(*to)),
                    *len,
                );
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(pieces.len());
    thread::scope(|scope| {
        for _ in 1..threads {
            // Fewer threads do where the system has no more.
            let _ = thread::Builder::new().name("straightway-copy".to_owned()).spawn_scoped(scope, work);
        }
        work();
    });
}
