//! A new file: written under a temporary name, then put in place as a whole.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use sw_engine::{
    Error, ErrorKind, Object, Verb,
    seam::{Names, WriteIntent},
};

use crate::{fault::path_error, sys};

use super::{Access, FileStore, OPEN_LEN, OpenFile, direct, open_file};

/// Ends every temporary name; the first character is a dot, so that listings hide it.
pub(super) const PARTIAL: &str = ".straightway-partial";

/// Temporary names that are tried.
const NAMES_MAX: u32 = 64;

/// Mode of a new file before the umask.
const NEW_MODE: u32 = 0o666;

struct NewFile {
    object: Arc<Object>,
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

/// Starts a file beside its final name: of `len` bytes, or of as many as its writer will say in the end.
pub(super) fn start(store: &FileStore, name: &Path, len: Option<u64>) -> Result<Box<dyn WriteIntent>, Error> {
    let target = resolve(name)?;
    let (fd, temporary) = temporary(&target)?;
    let opened = finish_opening(store, &temporary, &target, fd, len.unwrap_or(0));
    let mut object = opened.inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    if len.is_none() {
        object.len = OPEN_LEN;
    }
    Ok(Box::new(NewFile { object: Arc::new(object), temporary, target, committed: false }))
}

/// The file that the name leads to, through symbolic links; what is there already must be a file.
pub(super) fn resolve(name: &Path) -> Result<PathBuf, Error> {
    let failed = |errno| path_error(errno, Verb::Create, name);
    let wrong = |what: &'static str, remedy: &'static str| {
        Err(Error::new(ErrorKind::WrongKind, Verb::Create)
            .at(name.to_string_lossy().as_ref())
            .detail(what)
            .remedy(remedy))
    };
    if name.file_name().is_none() {
        return wrong("it does not name a file", "name a file");
    }
    match sys::stat(name) {
        Ok(stat) => match stat.kind() {
            libc::S_IFREG => fs::canonicalize(name).map_err(|error| failed(sys::code(&error))),
            libc::S_IFBLK => wrong("it is a block device", "open it for update: it cannot be replaced"),
            libc::S_IFDIR => wrong("it is a directory", "name a file in it"),
            _ => wrong("it is no file", "name a file"),
        },
        Err(libc::ENOENT) => Ok(name.to_owned()),
        Err(errno) => Err(failed(errno)),
    }
}

/// The directory of a path, `.` for a bare name.
pub(super) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A hidden name beside `target`: `.NAME.MIDDLE.straightway-partial`.
pub(super) fn hidden(target: &Path, middle: &str, end: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or(OsStr::new("file")));
    name.push(".");
    name.push(middle);
    name.push(end);
    directory(target).join(name)
}

/// A new file under a name that nobody has.
fn temporary(target: &Path) -> Result<(OwnedFd, PathBuf), Error> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..NAMES_MAX {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = hidden(target, &format!("{}-{number}", std::process::id()), PARTIAL);
        match sys::open(&path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, NEW_MODE) {
            Ok(fd) => return Ok((fd, path)),
            // Left over from a process of the same number.
            Err(libc::EEXIST) => {}
            Err(errno) => return Err(path_error(errno, Verb::Create, target)),
        }
    }
    Err(path_error(libc::EEXIST, Verb::Create, target).remedy(format!("remove old *{PARTIAL} files beside it")))
}

/// Reserves the space and makes the object.
pub(super) fn finish_opening(
    store: &FileStore,
    temporary: &Path,
    target: &Path,
    fd: OwnedFd,
    len: u64,
) -> Result<Object, Error> {
    let failed = |errno| path_error(errno, Verb::Create, target);
    reserve(&fd, len).map_err(failed)?;
    if let Ok(old) = sys::stat(target) {
        // As with an editor that saves: the new content keeps the old one's permissions.
        sys::set_mode(fd.as_fd(), old.mode & 0o7777).map_err(failed)?;
    }
    let stat = sys::fstat(fd.as_fd()).map_err(failed)?;
    let (direct, because) = match direct::open(temporary, &stat, Access::Write) {
        Ok(Some(found)) => (Some(found), None),
        Ok(None) => return Err(failed(libc::ESTALE)),
        Err(reason) => (None, Some(reason)),
    };
    let mut object = store.object(temporary, fd, (direct, because), &stat, Access::Write)?;
    object.name = target.to_string_lossy().into();
    object.residency.set(super::residency(&object));
    Ok(object)
}

/// Space for the whole file now, so that a full disk is known before the first byte; at least the length.
fn reserve(fd: &OwnedFd, len: u64) -> Result<(), i32> {
    if len == 0 {
        return Ok(());
    }
    match sys::fallocate(fd.as_fd(), len) {
        Err(libc::EOPNOTSUPP | libc::ENOSYS) => sys::truncate(fd.as_fd(), len),
        done => done,
    }
}

/// Makes a written file durable and gives it its name; the old one is there until the rename.
pub(super) fn put_in_place(open: &OpenFile, temporary: &Path, target: &Path, names: Names) -> Result<(), Error> {
    let failed = |errno| path_error(errno, Verb::Replace, target);
    sys::fsync(open.buffered.as_fd()).map_err(failed)?;
    fs::rename(temporary, target).map_err(|error| failed(sys::code(&error)))?;
    match names {
        Names::Durable => sync_directory(target).map_err(failed),
        Names::Left => Ok(()),
    }
}

/// Makes the names in the directory of `path` durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), i32> {
    let directory = sys::open(directory(path), libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    match sys::fsync(directory.as_fd()) {
        // Some file systems (FUSE servers) do not know the call; the rename is all that they offer.
        Err(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => Ok(()),
        done => done,
    }
}

impl WriteIntent for NewFile {
    fn object(&self) -> &Arc<Object> {
        &self.object
    }

    fn cut(&self, len: u64) -> Result<(), Error> {
        let open = open_file(&self.object)?;
        sys::truncate(open.buffered.as_fd(), len).map_err(|errno| path_error(errno, Verb::Write, &self.target))
    }

    fn commit(mut self: Box<Self>, names: Names) -> Result<(), Error> {
        put_in_place(open_file(&self.object)?, &self.temporary, &self.target, names)?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nobody waits for this answer; a name that stays behind is hidden and says what it is.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
