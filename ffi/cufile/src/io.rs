//! Reads and writes that return when they are done.
// UNSAFETY: exported names.
#![expect(unsafe_code, reason = "exported names")]

use std::sync::Arc;

use straightway::{Completed, Verb};

use crate::{
    abi::{Handle, IoVec},
    code::Failure,
    count::{By, What},
    edge,
    file::{File, KernelFile, Source, file_of},
    library::library,
    memory::Range,
    pointer::{Addr, In},
    transfer::{Numbers, SHRINKS_MAX, Transfer, count, ended, is_short, offset_of, with_policy},
};

/// Ranges of one vectored call at most: `IOV_MAX` of Linux.
const VECTORS_MAX: usize = 1024;

/// `cuFileRead`: reads `size` bytes from byte `file_offset` of a file to `base` + `buffer_offset`, of host or device memory. Bytes, less
/// than asked for at the end of the file, and 0 past it. The rest of the memory is left alone.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileRead(fh: Handle, base: Addr, size: usize, file_offset: i64, buffer_offset: i64) -> isize {
    one("cuFileRead", fh, What::Read, Numbers { base: base.raw(), size, file_offset, buffer_offset })
}

/// `cuFileWrite`: writes `size` bytes from `base` + `buffer_offset` at byte `file_offset` of a file, which grows if need be. They are
/// durable after `fsync`.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileWrite(fh: Handle, base: Addr, size: usize, file_offset: i64, buffer_offset: i64) -> isize {
    one("cuFileWrite", fh, What::Write, Numbers { base: base.raw(), size, file_offset, buffer_offset })
}

fn one(name: &'static str, fh: Handle, what: What, numbers: Numbers) -> isize {
    let verb = if what == What::Write { Verb::Write } else { Verb::Read };
    edge::bytes(name, || {
        let moved = file_of(fh).and_then(|file| Transfer::new(file, verb, numbers));
        match moved {
            Ok(transfer) => transfer.run(),
            Err(failure) => {
                library().counts.call(what, &Err::<(), _>(&failure));
                Err(failure)
            }
        }
    })
}

/// `cuFileReadv`: reads from byte `file_offset` on into ranges one after the other, each of host or device memory. `flags` is 0.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileReadv(fh: Handle, vectors: In<IoVec>, count: usize, file_offset: i64, flags: u32) -> isize {
    many("cuFileReadv", fh, What::Readv, (vectors, count), (file_offset, flags))
}

/// `cuFileWritev`: writes ranges one after the other from byte `file_offset` on.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileWritev(fh: Handle, vectors: In<IoVec>, count: usize, file_offset: i64, flags: u32) -> isize {
    many("cuFileWritev", fh, What::Writev, (vectors, count), (file_offset, flags))
}

fn many(name: &'static str, fh: Handle, what: What, of: (In<IoVec>, usize), (offset, flags): (i64, u32)) -> isize {
    edge::bytes(name, || {
        let prepared = vectors(fh, what, of, offset, flags);
        match prepared {
            Ok((file, ranges, offset)) => run_many(&file, what, &ranges, offset),
            Err(failure) => {
                library().counts.call(what, &Err::<(), _>(&failure));
                Err(failure)
            }
        }
    })
}

/// Ranges with their lengths.
type Ranges = Vec<(Range, u64)>;

fn vectors(
    fh: Handle,
    what: What,
    (vectors, count): (In<IoVec>, usize),
    offset: i64,
    flags: u32,
) -> Result<(Arc<File>, Ranges, u64), Failure> {
    let wrong = |text: String| Failure { errno: libc::EINVAL, ..Failure::invalid(text) };
    let file = file_of(fh)?;
    if vectors.is_null() || !(1..=VECTORS_MAX).contains(&count) {
        return Err(wrong(format!("{count} ranges; give 1 to {VECTORS_MAX}")));
    }
    if flags != 0 {
        return Err(wrong(format!("unknown flags {flags:#x}")));
    }
    let mut ranges = Ranges::with_capacity(count);
    let mut whole = 0u64;
    for index in 0..count {
        let vector = vectors.at(index).ok_or_else(|| wrong("the ranges are NULL".to_owned()))?;
        let len = vector.len as u64;
        whole = whole.checked_add(len).ok_or_else(|| wrong("more bytes than a file has".to_owned()))?;
        if len > 0 {
            ranges.push((Range::new(file.engine(), vector.base.raw(), 0, len)?, len));
        }
    }
    let start = offset_of(offset, whole)?;
    file.may(if what == What::Writev { Verb::Write } else { Verb::Read })?;
    Ok((file, ranges, start))
}

/// One operation for each row of ranges in the same memory: a device's copies and the host's are different operations.
fn run_many(file: &Arc<File>, what: What, ranges: &[(Range, u64)], offset: u64) -> Result<u64, Failure> {
    let mut moved = 0;
    for row in ranges.chunk_by(|one, other| one.0.gpu() == other.0.gpu()) {
        let want: u64 = row.iter().map(|(_, len)| len).sum();
        let done = match &file.source {
            Source::Kernel(kernel) => run_row((file, kernel), what, row, offset + moved),
            Source::User(user) => user.run_row((file, what), row, offset + moved),
        };
        match done {
            Ok(bytes) if bytes == want => moved += bytes,
            Ok(bytes) => {
                moved += bytes;
                break;
            }
            // What was moved was moved: the caller is told so much, as by preadv(2).
            Err(_) if moved > 0 => break,
            Err(failure) => return Err(failure),
        }
    }
    Ok(moved)
}

fn run_row(of: (&File, &KernelFile), what: What, row: &[(Range, u64)], offset: u64) -> Result<u64, Failure> {
    let (file, _) = of;
    let mut shrinks = 0;
    loop {
        let Some(done) = start_row(of, what, row, offset)? else { return Ok(0) };
        // A file that got shorter meanwhile is read as far as it goes.
        if what == What::Readv && is_short(&done) && shrinks < SHRINKS_MAX {
            shrinks += 1;
            continue;
        }
        let gpu = row.first().and_then(|(range, _)| range.gpu());
        count(file, &ended(what, file, gpu, &done, By::Call));
        return done.result.map_err(Failure::from);
    }
}

/// Runs a row as far as the file has bytes for it; none if it has no bytes for it.
fn start_row(
    (file, kernel): (&File, &KernelFile),
    what: What,
    row: &[(Range, u64)],
    offset: u64,
) -> Result<Option<Completed>, Failure> {
    let engine = file.engine();
    let whole: u64 = row.iter().map(|(_, len)| len).sum();
    let mut left = if what == What::Readv { kernel.left(offset, whole)? } else { whole };
    let mut parts = Vec::with_capacity(row.len());
    let mut at = offset;
    for (range, len) in row {
        let len = left.min(*len);
        if len == 0 {
            break;
        }
        parts.push((at, range.part(engine, 0, len)?));
        (at, left) = (at + len, left - len);
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let request = if what == What::Writev {
        engine.write_vectored(&kernel.object, parts)
    } else {
        engine.read_vectored(&kernel.object, parts)
    };
    Ok(Some(with_policy(file, request).wait()))
}
