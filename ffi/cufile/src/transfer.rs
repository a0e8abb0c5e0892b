//! One transfer: from its numbers to its answer.

use std::sync::Arc;

use straightway::{Completed, ErrorKind, Pending, Policy, Request, Verb};

use crate::{
    code::Failure,
    count::{By, Ended, What},
    file::{File, KernelFile, Source},
    library::library,
    memory::Range,
};

/// Times that a read is tried again because its file got shorter under it.
pub(crate) const SHRINKS_MAX: u32 = 8;

/// A read or a write of one range.
#[derive(Clone)]
pub(crate) struct Transfer {
    pub(crate) file: Arc<File>,
    pub(crate) verb: Verb,
    pub(crate) offset: u64,
    pub(crate) range: Range,
    pub(crate) len: u64,
}

/// A transfer that was started.
pub(crate) enum Begun {
    /// It was over at once: bytes.
    Over(u64),
    Running(Pending),
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

    /// Starts it, as far as the file has bytes for it. A file system in user space is asked here and now.
    ///
    /// # Errors
    /// Of the system and the memory.
    pub(crate) fn begin(&self) -> Result<Begun, Failure> {
        match &self.file.source {
            Source::User(user) => user.run(self).map(Begun::Over),
            Source::Kernel(kernel) => {
                Ok(self.request(kernel)?.map_or(Begun::Over(0), |request| Begun::Running(request.start())))
            }
        }
    }

    fn request(&self, kernel: &KernelFile) -> Result<Option<Request>, Failure> {
        let len = if self.verb == Verb::Read { kernel.left(self.offset, self.len)? } else { self.len };
        if len == 0 {
            return Ok(None);
        }
        let engine = self.file.engine();
        let memory = self.range.part(engine, 0, len)?;
        let request = match self.verb {
            Verb::Write => engine.write(&kernel.object, self.offset, memory),
            _ => engine.read(&kernel.object, self.offset, memory),
        };
        Ok(Some(with_policy(&self.file, request)))
    }

    /// Runs it on this thread.
    ///
    /// # Errors
    /// The transfer's.
    pub(crate) fn run(&self) -> Result<u64, Failure> {
        let kernel = match &self.file.source {
            Source::User(user) => return user.run(self),
            Source::Kernel(kernel) => kernel,
        };
        let mut shrinks = 0;
        loop {
            let Some(request) = self.request(kernel)? else {
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
        let gpu = self.range.gpu();
        count(&self.file, &ended(self.what(), &self.file, gpu, done, by));
    }

    pub(crate) fn has_shrunk(&self, done: &Completed) -> bool {
        self.verb == Verb::Read && is_short(done)
    }
}

/// Whether a file had fewer bytes than it had when it was asked.
pub(crate) fn is_short(done: &Completed) -> bool {
    done.result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ShortData)
}

/// What the environment demands of routes.
pub(crate) fn with_policy(file: &File, request: Request) -> Request {
    match file.running.policy {
        Policy::Any => request,
        policy => request.policy(policy),
    }
}

/// What is counted of an operation of the engine's.
pub(crate) fn ended(what: What, file: &File, gpu: Option<u16>, done: &Completed, by: By) -> Ended {
    let moved = done.result.as_ref().ok().copied();
    Ended { what, handle: file.id, gpu, moved, path: done.path, times: done.times, by }
}

/// Counts a transfer that ended.
pub(crate) fn count(file: &File, ended: &Ended) {
    library().counts.transfer(ended, &file.routes);
}
