//! One transfer: from its numbers to its answer.

use std::sync::Arc;

use straightway::{Completed, ErrorKind, Memory, Policy, Request, Verb};

use crate::{
    code::Failure,
    count::{By, Ended, What},
    file::File,
    library::library,
    memory::Range,
};

/// Times that a read is tried again because its file got shorter under it.
const SHRINKS_MAX: u32 = 8;

/// A read or a write of one range.
#[derive(Clone)]
pub(crate) struct Transfer {
    pub(crate) file: Arc<File>,
    pub(crate) verb: Verb,
    pub(crate) offset: u64,
    pub(crate) range: Range,
    pub(crate) len: u64,
}

/// Where a transfer begins, as a caller says it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) base: u64,
    pub(crate) size: usize,
    pub(crate) file_offset: i64,
    pub(crate) buffer_offset: i64,
}

/// An offset in a file with the bytes from there on.
///
/// # Errors
/// `INVALID_VALUE` for a negative one, and for an end that no file has.
pub(crate) fn offset_of(offset: i64, len: u64) -> Result<u64, Failure> {
    let start = u64::try_from(offset).map_err(|_| Failure::invalid(format!("the file offset {offset} is negative")))?;
    match start.checked_add(len) {
        Some(end) if i64::try_from(end).is_ok() && isize::try_from(len).is_ok() => Ok(start),
        _ => Err(Failure::invalid(format!("{len} bytes from {start} on end past the largest file"))),
    }
}

impl Transfer {
    /// # Errors
    /// Of the arguments; nothing has begun.
    pub(crate) fn new(file: Arc<File>, verb: Verb, numbers: Numbers) -> Result<Self, Failure> {
        let len = numbers.size as u64;
        let range = Range::new(file.engine(), numbers.base, numbers.buffer_offset, len)?;
        let offset = offset_of(numbers.file_offset, len)?;
        file.may(verb)?;
        Ok(Self { file, verb, offset, range, len })
    }

    /// The request, as far as the file has bytes for it; none if there is nothing to move.
    ///
    /// # Errors
    /// Of the system and the memory.
    pub(crate) fn request(&self) -> Result<Option<Request>, Failure> {
        let len = if self.verb == Verb::Read { self.file.left(self.offset, self.len)? } else { self.len };
        if len == 0 {
            return Ok(None);
        }
        let memory = self.range.part(self.file.engine(), 0, len)?;
        Ok(Some(request(&self.file, self.verb, self.offset, memory)))
    }

    /// Runs it on this thread.
    ///
    /// # Errors
    /// The transfer's.
    pub(crate) fn run(&self) -> Result<u64, Failure> {
        let mut shrinks = 0;
        loop {
            let Some(request) = self.request()? else {
                library().counts.call(self.what(), &Ok::<_, Failure>(()));
                return Ok(0);
            };
            let done = request.wait();
            // A file that got shorter meanwhile is read as far as it goes.
            if self.has_shrunk(&done) && shrinks < SHRINKS_MAX {
                shrinks += 1;
                continue;
            }
            self.count(&done, By::Call);
            return done.result.map_err(Failure::from);
        }
    }

    /// As the statistics call it.
    pub(crate) fn what(&self) -> What {
        if self.verb == Verb::Write { What::Write } else { What::Read }
    }

    /// Counts its end.
    pub(crate) fn count(&self, done: &Completed, by: By) {
        count(&self.file, &Ended { what: self.what(), handle: self.file.id, gpu: self.range.gpu(), done, by });
    }

    pub(crate) fn has_shrunk(&self, done: &Completed) -> bool {
        self.verb == Verb::Read && done.result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ShortData)
    }
}

fn request(file: &File, verb: Verb, offset: u64, memory: Memory) -> Request {
    let engine = file.engine();
    let request = match verb {
        Verb::Write => engine.write(&file.object, offset, memory),
        _ => engine.read(&file.object, offset, memory),
    };
    with_policy(file, request)
}

/// What the environment demands of routes.
pub(crate) fn with_policy(file: &File, request: Request) -> Request {
    match file.running.policy {
        Policy::Any => request,
        policy => request.policy(policy),
    }
}

/// Counts a transfer that ended.
pub(crate) fn count(file: &File, ended: &Ended<'_>) {
    library().counts.transfer(ended, &file.routes);
}
