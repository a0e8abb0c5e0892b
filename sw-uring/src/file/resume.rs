//! A new file whose writing can go on after an interruption.
//!
//! Beside the target `name` lie `.name.KEY.straightway-partial` with the bytes and `.name.KEY.straightway-resume` with
//! one line of text: the length and how many bytes from the start are done. `KEY` stands for the source's version, so a
//! changed source never continues an old copy. *Guaranteed*: when the sidecar says N, the first N bytes were written
//! and made durable before it was (the file is synchronised, then the sidecar is put in place by rename). *Not
//! guaranteed*: that they are the right bytes; who resumes verifies them or trusts whoever called
//! [`Resumable::record`]. A sidecar that cannot be read means zero.

use std::{
    fs,
    io::Write as _,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use sw_engine::{Error, ErrorKind, Object, Verb, seam::Names};
use sw_mem::ForkMark;

use crate::{fault::path_error, sys};

use super::{FileStore, create, open_file, open_file_mut};

const SIDECAR: &str = ".straightway-resume";
const SIDECAR_NEW: &str = ".straightway-resume-new";
/// First word of a sidecar; the number is its version.
const MAGIC: &str = "straightway-resume/1";
/// A sidecar is one line of three words: longer ones are not ours.
const SIDECAR_BYTES_MAX: u64 = 128;

/// A file in the making that survives its writer. Dropping it keeps what was recorded.
pub struct Resumable {
    object: Arc<Object>,
    len: u64,
    done: u64,
    partial: PathBuf,
    sidecar: PathBuf,
    sidecar_new: PathBuf,
    target: PathBuf,
}

impl FileStore {
    /// Starts a new file of `len` bytes, or goes on with one that was started with the same name, length and key.
    ///
    /// `key` stands for the version of what is copied.
    ///
    /// # Errors
    /// As [`sw_engine::seam::Store::create`]; `InUse` while another writer has it.
    pub fn create_resumable(&self, name: &str, len: u64, key: u64) -> Result<Resumable, Error> {
        let target = create::resolve(Path::new(name))?;
        let hidden = |end| create::hidden(&target, &format!("{key:016x}"), end);
        let (partial, sidecar, sidecar_new) = (hidden(create::PARTIAL), hidden(SIDECAR), hidden(SIDECAR_NEW));
        let failed = |errno| path_error(errno, Verb::Create, &target);
        let (fd, lock, found_len) = open_locked(&partial, name)?;
        let recorded = if found_len == len { read_sidecar(&sidecar, len) } else { None };
        if recorded.is_none() {
            // A record must be gone for good before the file gets the length that would make it count again.
            let _ = fs::remove_file(&sidecar);
            create::sync_directory(&target).map_err(failed)?;
            sys::truncate(fd.as_fd(), 0).map_err(failed)?;
        }
        let mut object = create::finish_opening(self, &partial, &target, fd, len)?;
        open_file_mut(&mut object)?.lock = Some(lock);
        let done = recorded.unwrap_or(0);
        Ok(Resumable { object: Arc::new(object), len, done, partial, sidecar, sidecar_new, target })
    }
}

impl Resumable {
    /// The object to write to.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// Bytes from the start that were recorded as done and durable.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Records that the first `done` bytes are written (their I/Os have completed) and right. Makes them durable first.
    ///
    /// # Errors
    /// `OutOfRange` past the length; what the system reports: the older record then still holds.
    pub fn record(&mut self, done: u64) -> Result<(), Error> {
        if done > self.len {
            return Err(Error::new(ErrorKind::OutOfRange, Verb::Write).at(self.object.name.clone()).in_range(0, done));
        }
        let failed = |errno| path_error(errno, Verb::Write, &self.target);
        let io_failed = |error: std::io::Error| failed(sys::code(&error));
        sys::fdatasync(open_file(&self.object)?.buffered.as_fd()).map_err(failed)?;
        let mut file = fs::File::create(&self.sidecar_new).map_err(io_failed)?;
        writeln!(file, "{MAGIC} {} {done}", self.len).map_err(io_failed)?;
        sys::fdatasync(file.as_fd()).map_err(failed)?;
        fs::rename(&self.sidecar_new, &self.sidecar).map_err(io_failed)?;
        self.done = done;
        Ok(())
    }

    /// Makes the whole file durable under its final name, and forgets the record.
    ///
    /// # Errors
    /// What the system reports; the old file is then still there, and so is the partial one.
    pub fn commit(self) -> Result<(), Error> {
        create::put_in_place(open_file(&self.object)?, &self.partial, &self.target, Names::Durable)?;
        // A record without its partial file is never read as one: the next partial file starts with length zero.
        let _ = fs::remove_file(&self.sidecar);
        Ok(())
    }

    /// Gives up: removes the partial file and its record.
    ///
    /// # Errors
    /// What the system reports.
    pub fn discard(self) -> Result<(), Error> {
        let _ = fs::remove_file(&self.sidecar);
        fs::remove_file(&self.partial).map_err(|error| path_error(sys::code(&error), Verb::Replace, &self.partial))
    }
}

/// The advisory lock of a partial file, given up on drop. Forked children share it, one on its way to another program too:
/// closing the descriptor alone would leave it to them.
pub(super) struct WriterLock {
    fd: OwnedFd,
    fork: ForkMark,
}

impl WriterLock {
    /// `EWOULDBLOCK` if another open file of the same name has it.
    fn take(fd: BorrowedFd<'_>) -> Result<Self, i32> {
        let fd = fd.try_clone_to_owned().map_err(|error| sys::code(&error))?;
        sys::try_lock(fd.as_fd())?;
        Ok(Self { fd, fork: ForkMark::new() })
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        if !self.fork.is_child() {
            let _ = sys::unlock(self.fd.as_fd());
        }
    }
}

/// Opens or makes the partial file and holds its lock; its length.
fn open_locked(partial: &Path, name: &str) -> Result<(OwnedFd, WriterLock, u64), Error> {
    let failed = |errno| path_error(errno, Verb::Create, Path::new(name));
    for _ in 0..LOCK_TRIES {
        let fd = sys::open(partial, libc::O_RDWR | libc::O_CREAT, 0o666).map_err(failed)?;
        let lock = match WriterLock::take(fd.as_fd()) {
            Ok(lock) => lock,
            Err(libc::EWOULDBLOCK) => return Err(in_use(name)),
            Err(errno) => return Err(failed(errno)),
        };
        let held = sys::fstat(fd.as_fd()).map_err(failed)?;
        // Between opening and locking another writer may have finished: then this is the target by now.
        if sys::stat(partial).is_ok_and(|named| (named.device, named.inode) == (held.device, held.inode)) {
            return Ok((fd, lock, held.len));
        }
    }
    Err(in_use(name))
}

/// Times that opening is tried again when another writer finishes meanwhile.
const LOCK_TRIES: u32 = 4;

fn in_use(name: &str) -> Error {
    Error::new(ErrorKind::InUse, Verb::Create)
        .at(name)
        .detail("another process writes the same copy")
        .remedy("wait for it or end it")
}

fn read_sidecar(path: &Path, len: u64) -> Option<u64> {
    if sys::stat(path).ok()?.len > SIDECAR_BYTES_MAX {
        return None;
    }
    parse_sidecar(&fs::read_to_string(path).ok()?, len)
}

fn parse_sidecar(text: &str, len: u64) -> Option<u64> {
    let mut words = text.strip_suffix('\n')?.split(' ');
    let magic = words.next()? == MAGIC;
    let same_len = words.next()?.parse() == Ok(len);
    let done = words.next()?.parse().ok()?;
    (magic && same_len && words.next().is_none() && done <= len).then_some(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_and_fitting_sidecar_counts() {
        assert_eq!(parse_sidecar("straightway-resume/1 100 40\n", 100), Some(40));
        for bad in [
            "",
            "straightway-resume/1 100 40",
            "straightway-resume/1 100 101\n",
            "straightway-resume/1 99 40\n",
            "straightway-resume/2 100 40\n",
            "straightway-resume/1 100 40 1\n",
            "straightway-resume/1 100 -4\n",
        ] {
            assert_eq!(parse_sidecar(bad, 100), None, "{bad:?}");
        }
    }
}
