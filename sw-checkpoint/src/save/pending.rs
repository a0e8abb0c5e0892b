//! A checkpoint in the making: a hidden directory beside its final name, and the lock that tells whether anybody is at it.
//!
//! ```text
//!   PARENT/.NAME.PID-N.straightway-lock      made first, removed last; every writer holds a shared lock on it
//!   PARENT/.NAME.PID-N.straightway-pending/  where the files are made; renamed to NAME as the last step
//! ```
//!
//! A lock ends with its process, however that ends. So a pending directory whose lock can be had exclusively has no writer
//! any more, and whoever gets it removes the rest. Where locks cannot be asked for (some network mounts), nothing is proven
//! and nothing is removed.
//!
//! Correctness of a commit does not hang on the lock: names of pending directories are unique and a rename never replaces a
//! directory with content, so two writers never mix. The lock tells the second writer early, and lets leftovers go.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, TryLockError},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use straightway::{Error, ErrorKind, Verb};

use super::Progress;

const LOCK: &str = ".straightway-lock";
const PENDING: &str = ".straightway-pending";
/// Numbers that are tried for a name that nobody has.
const NAMES_MAX: u32 = 64;

/// What to do if there is a checkpoint of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IfExists {
    /// An error, before anything is written. An empty directory is no checkpoint.
    #[default]
    Refuse,
    /// The new one takes its place as the last step; a reader finds the old one or the new one.
    Replace,
}

/// A checkpoint in the making. Dropped without [`commit`](crate::commit), the one that began it removes everything.
#[derive(Debug)]
pub struct PendingCheckpoint {
    target: PathBuf,
    directory: PathBuf,
    lock_path: PathBuf,
    /// The lock is its life.
    _lock: File,
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Began it, and commits or removes it.
    Coordinator,
    /// Writes into it.
    Member,
    /// Is through with it.
    Done,
}

impl PendingCheckpoint {
    /// Begins the checkpoint `target`, whose parent directory exists. Leftovers of dead writers of that name are removed.
    ///
    /// # Errors
    /// `InUse` if somebody else is writing it; `AlreadyExists` by [`IfExists::Refuse`]; `WrongKind` if there is something
    /// else of that name; what the system reports.
    pub fn begin(target: &Path, if_exists: IfExists) -> Result<Self, Error> {
        check_target(target, if_exists)?;
        Self::make(target)
    }

    /// As [`PendingCheckpoint::begin`], for a checkpoint that is one file, which takes the place of any file there.
    pub(super) fn begin_file(target: &Path) -> Result<Self, Error> {
        match fs::metadata(target) {
            Ok(facts) if facts.is_file() => Self::make(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(target),
            Err(error) => Err(failed(Verb::Create, target, &error)),
            Ok(_) => Err(Error::new(ErrorKind::WrongKind, Verb::Create)
                .at(target.to_string_lossy().as_ref())
                .detail("there is something that is no file")
                .remedy("name a file")),
        }
    }

    fn make(target: &Path) -> Result<Self, Error> {
        let name = target.file_name().ok_or_else(|| bad_name(target))?;
        let parent = parent(target);
        for left in leftovers(parent, Some(name)).map_err(|error| failed(Verb::List, parent, &error))? {
            if let Left::Alive = left.remove().map_err(|error| failed(Verb::Replace, parent, &error))? {
                return Err(Error::new(ErrorKind::InUse, Verb::Create)
                    .at(target.to_string_lossy().as_ref())
                    .detail("another writer is at this checkpoint")
                    .remedy("wait for it, or save under another name"));
            }
        }
        let (lock, lock_path, directory) = hidden_place(target)?;
        if let Err(error) = fs::create_dir(&directory) {
            drop(fs::remove_file(&lock_path));
            return Err(failed(Verb::Create, target, &error));
        }
        let target = target.to_owned();
        Ok(Self { target, directory, lock_path, _lock: lock, role: Role::Coordinator })
    }

    /// Takes part in a checkpoint that another process began, by the directory that it told.
    ///
    /// # Errors
    /// `NotFound` if there is none (any more); `InUse` if it is being removed; what the system reports.
    pub fn join(directory: &Path) -> Result<Self, Error> {
        let wrong = || {
            Error::new(ErrorKind::ApiMisuse, Verb::Open)
                .at(directory.to_string_lossy().as_ref())
                .detail("this is not the directory of a checkpoint in the making")
                .remedy("pass what PendingCheckpoint::directory gave to the rank that began it")
        };
        let name = directory.file_name().ok_or_else(wrong)?;
        let (middle, kept) = split(name, PENDING).ok_or_else(wrong)?;
        let parent = parent(directory);
        let lock_path = parent.join(hidden(kept, middle, LOCK));
        let lock = File::options().read(true).write(true).open(&lock_path);
        let lock = lock.map_err(|error| failed(Verb::Open, directory, &error))?;
        lock.try_lock_shared().map_err(|error| match error {
            TryLockError::WouldBlock => Error::new(ErrorKind::InUse, Verb::Open)
                .at(directory.to_string_lossy().as_ref())
                .detail("the checkpoint in the making is being removed"),
            TryLockError::Error(error) => failed(Verb::Open, directory, &error),
        })?;
        fs::metadata(directory).map_err(|error| failed(Verb::Open, directory, &error))?;
        let target = parent.join(kept);
        Ok(Self { target, directory: directory.to_owned(), lock_path, _lock: lock, role: Role::Member })
    }

    /// Where the files are made: what the other ranks [`join`](PendingCheckpoint::join).
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The name that the checkpoint will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Puts it in place. Everything in it is durable.
    pub(super) fn put_in_place(mut self, if_exists: IfExists, tell: &dyn Fn(Progress<'_>)) -> Result<(), Error> {
        if self.role != Role::Coordinator {
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Replace)
                .at(self.target.to_string_lossy().as_ref())
                .detail("only the one that began a checkpoint commits it"));
        }
        let parent = parent(&self.target).to_owned();
        let at = |error: &io::Error| failed(Verb::Replace, &self.target, error);
        sync_directory(&self.directory).map_err(|error| at(&error))?;
        check_target(&self.target, if_exists)?;
        tell(Progress::Committing);
        match fs::rename(&self.directory, &self.target) {
            Ok(()) => {}
            Err(error) if is_occupied(&error) && if_exists == IfExists::Replace => {
                exchange(&self.directory, &self.target).map_err(|error| at(&error))?;
            }
            Err(error) if is_occupied(&error) => return Err(exists(&self.target)),
            Err(error) => return Err(at(&error)),
        }
        self.role = Role::Done;
        tell(Progress::Committed);
        sync_directory(&parent).map_err(|error| at(&error))?;
        // What it took the place of, if anything; then the lock. A crash before leaves a leftover without a writer.
        self.remove();
        Ok(())
    }

    /// Puts the file `name` of it in place, alone.
    pub(super) fn put_file_in_place(mut self, name: &str, tell: &dyn Fn(Progress<'_>)) -> Result<(), Error> {
        let at = |error: &io::Error| failed(Verb::Replace, &self.target, error);
        tell(Progress::Committing);
        fs::rename(self.directory.join(name), &self.target).map_err(|error| at(&error))?;
        tell(Progress::Committed);
        sync_directory(parent(&self.target)).map_err(|error| at(&error))?;
        self.role = Role::Done;
        self.remove();
        Ok(())
    }

    /// Removes what is left, the lock last: without it nobody would look for the rest.
    fn remove(&self) {
        let removed = fs::remove_dir_all(&self.directory);
        if removed.is_ok() || removed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            let _ = fs::remove_file(&self.lock_path);
        }
    }
}

impl Drop for PendingCheckpoint {
    fn drop(&mut self) {
        if self.role == Role::Coordinator {
            // Nobody waits for this answer; what stays is hidden, says what it is, and goes with the next save.
            self.remove();
        }
    }
}

/// Removes a checkpoint: it loses its name first, so that nobody finds half of it.
pub(super) fn remove(target: &Path) -> Result<(), Error> {
    let (lock, lock_path, directory) = hidden_place(target)?;
    let renamed = fs::rename(target, &directory).map_err(|error| failed(Verb::Replace, target, &error));
    let gone = PendingCheckpoint { target: target.to_owned(), directory, lock_path, _lock: lock, role: Role::Done };
    gone.remove();
    renamed
}

/// A hidden directory's name that nobody has, with the lock that goes with it.
fn hidden_place(target: &Path) -> Result<(File, PathBuf, PathBuf), Error> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = target.file_name().ok_or_else(|| bad_name(target))?;
    let parent = parent(target);
    for _ in 0..NAMES_MAX {
        let middle = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lock_path = parent.join(hidden(name, &middle, LOCK));
        let lock = make_lock(&lock_path).map_err(|error| failed(Verb::Create, target, &error))?;
        if let Some(lock) = lock {
            return Ok((lock, lock_path, parent.join(hidden(name, &middle, PENDING))));
        }
    }
    Err(Error::new(ErrorKind::AlreadyExists, Verb::Create)
        .at(target.to_string_lossy().as_ref())
        .remedy(format!("remove old .*{LOCK} files beside it")))
}

/// What [`clean`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Leftovers of writers that are gone, which were removed.
    pub removed: Vec<PathBuf>,
    /// Checkpoints that are being written now, or whose writer nobody can prove gone.
    pub kept: Vec<PathBuf>,
}

/// Removes what dead writers left in `parent`, and only that.
///
/// # Errors
/// What the system reports.
pub fn clean(parent: &Path) -> Result<Cleaned, Error> {
    let mut cleaned = Cleaned::default();
    for left in leftovers(parent, None).map_err(|error| failed(Verb::List, parent, &error))? {
        let directory = left.directory.clone();
        match left.remove().map_err(|error| failed(Verb::Replace, &directory, &error))? {
            Left::Gone => cleaned.removed.push(directory),
            Left::Alive => cleaned.kept.push(directory),
        }
    }
    Ok(cleaned)
}

struct Leftover {
    lock: PathBuf,
    directory: PathBuf,
}

enum Left {
    Gone,
    Alive,
}

impl Leftover {
    /// Removes it if nobody is at it. A writer locks before it makes its directory, so whoever has the lock alone is alone.
    fn remove(&self) -> io::Result<Left> {
        let lock = match File::options().read(true).write(true).open(&self.lock) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Left::Gone),
            Err(error) => return Err(error),
        };
        // An error of asking proves nothing.
        if lock.try_lock().is_err() {
            return Ok(Left::Alive);
        }
        if !is_at(&lock, &self.lock)? {
            return Ok(Left::Gone);
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        match fs::remove_file(&self.lock) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(Left::Gone),
        }
    }
}

/// Checkpoints in the making in `parent`: of one name, or of all.
fn leftovers(parent: &Path, name: Option<&OsStr>) -> io::Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?.file_name();
        let Some((middle, kept)) = split(&entry, LOCK).filter(|(_, kept)| name.is_none_or(|name| name == *kept)) else {
            continue;
        };
        found.push(Leftover { lock: parent.join(&entry), directory: parent.join(hidden(kept, middle, PENDING)) });
    }
    Ok(found)
}

/// A lock of our own, or `None` if the name is taken or somebody removes it under us.
fn make_lock(path: &Path) -> io::Result<Option<File>> {
    let lock = match File::options().read(true).write(true).create_new(true).open(path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(error),
    };
    match lock.try_lock_shared() {
        // A file system without locks: the save goes on, and nobody can prove its leftovers dead.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(is_at(&lock, path)?.then_some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
    }
}

/// Whether `path` still leads to the open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// `.NAME.MIDDLE` and the end.
fn hidden(name: &OsStr, middle: &str, end: &str) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    hidden.push(middle);
    hidden.push(end);
    hidden
}

/// Middle and name of a hidden name with that end: the middle is two numbers, so that names may have dots.
fn split<'a>(hidden: &'a OsStr, end: &str) -> Option<(&'a str, &'a OsStr)> {
    let bytes = hidden.as_bytes().strip_prefix(b".")?.strip_suffix(end.as_bytes())?;
    let dot = bytes.iter().rposition(|byte| *byte == b'.')?;
    let middle = std::str::from_utf8(&bytes[dot + 1..]).ok()?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (pid, count) = middle.split_once('-')?;
    let name = OsStr::from_bytes(&bytes[..dot]);
    (number(pid) && number(count) && !name.is_empty()).then_some((middle, name))
}

fn check_target(target: &Path, if_exists: IfExists) -> Result<(), Error> {
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(Verb::Create, target, &error)),
        Ok(facts) if !facts.is_dir() => Err(Error::new(ErrorKind::WrongKind, Verb::Create)
            .at(target.to_string_lossy().as_ref())
            .detail("there is something that is no directory")
            .remedy("name a new directory")),
        Ok(_) if if_exists == IfExists::Replace => Ok(()),
        Ok(_) => match fs::read_dir(target).map(|mut entries| entries.next().is_some()) {
            Ok(false) => Ok(()),
            Ok(true) => Err(exists(target)),
            Err(error) => Err(failed(Verb::Create, target, &error)),
        },
    }
}

fn exists(target: &Path) -> Error {
    Error::new(ErrorKind::AlreadyExists, Verb::Create)
        .at(target.to_string_lossy().as_ref())
        .detail("there is a directory with that name and it is not empty")
        .remedy("save under another name, or ask for it to be replaced")
}

fn bad_name(target: &Path) -> Error {
    Error::new(ErrorKind::WrongKind, Verb::Create)
        .at(target.to_string_lossy().as_ref())
        .detail("it does not end in a name")
        .remedy("name the directory to make")
}

fn is_occupied(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

/// Both names change places in one step.
fn exchange(new: &Path, old: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).map_err(io::Error::from)
}

/// The directory of a path, `.` for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        // Some file systems (FUSE servers) do not know the call; the rename is all that they offer.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        done => done,
    }
}

/// An error of the system, with what can be done about it.
pub(super) fn failed(verb: Verb, at: &Path, error: &io::Error) -> Error {
    let (kind, remedy) = match error.kind() {
        io::ErrorKind::NotFound => (ErrorKind::NotFound, "make the directory that it shall be in"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            (ErrorKind::PermissionDenied, "save where this user may write")
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (ErrorKind::NoSpace, "free space"),
        io::ErrorKind::NotADirectory => (ErrorKind::WrongKind, "save in a directory"),
        _ => (ErrorKind::Io, ""),
    };
    let error_code = error.raw_os_error().unwrap_or(0);
    Error::new(kind, verb)
        .at(at.to_string_lossy().as_ref())
        .with_code(error_code)
        .detail(error.to_string())
        .remedy(remedy)
}
