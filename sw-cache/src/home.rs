//! The directory of a cache: opened once, and all that is in it is opened below that, so that nobody exchanges it meanwhile.
//!
//! ```text
//!   sizes        what this directory is (a header), bytes of the cache and of a block. The first file of a new one
//!   lock         locked by the process that has the cache; its number, and how many had it before
//!   socket       where it listens for the others
//!   index.redb   which block is where
//!   data         the blocks
//! ```

use std::{
    fs::{DirBuilder, File, Permissions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Mode, OFlags};
use sw_engine::{Error, ErrorKind, Verb};

/// How `sizes` begins, and nobody else's file.
const HEADER: &str = "straightway cache, form 1\n";
const SIZES_FILE: &str = "sizes";
const SIZES_NEW: &str = "sizes.new";
const LOCK: &str = "lock";
pub(crate) const INDEX: &str = "index.redb";
const DATA: &str = "data";
pub(crate) const SOCKET: &str = "socket";
/// Bytes of `sizes` and `lock` that are read at most.
const SHORT_MAX: u64 = 256;

/// How large a cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) bytes: u64,
    pub(crate) block_bytes: u32,
}

/// Those of a new one.
pub(crate) const SIZES: Sizes = Sizes { bytes: 16 << 30, block_bytes: 1 << 20 };

impl Sizes {
    fn read(text: &str) -> Option<Self> {
        let (bytes, block_bytes) = text.trim().split_once(' ')?;
        Some(Self { bytes: bytes.parse().ok()?, block_bytes: block_bytes.parse().ok()? })
    }
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Home {
    dir: File,
    path: PathBuf,
}

/// What the system said of a directory.
pub(crate) fn wrong(dir: &Path, cause: io::Error) -> Error {
    let kind = match cause.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => ErrorKind::WrongKind,
        _ if cause.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => ErrorKind::WrongKind,
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Io,
    };
    Error::new(kind, Verb::Setup)
        .at(dir.display().to_string())
        .detail(format!("the directory of the cache cannot be used: {cause}"))
        .with_code(cause.raw_os_error().unwrap_or(0))
        .remedy("name a directory on a local disk that this user may write in")
        .caused_by(cause)
}

fn is_own(uid: u32) -> bool {
    uid == rustix::process::geteuid().as_raw()
}

impl Home {
    /// Makes a directory if there is none, and opens it.
    ///
    /// # Errors
    /// As [`Home::of`].
    pub(crate) fn make(path: &Path) -> Result<Self, Error> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|cause| wrong(path, cause))?;
        Self::of(path)
    }

    /// Opens the directory at `path`.
    ///
    /// # Errors
    /// `PermissionDenied` if it is not this user's alone; what the system reports.
    pub(crate) fn of(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        let dir = File::from(opened.map_err(|cause| wrong(path, cause.into()))?);
        let found = dir.metadata().map_err(|cause| wrong(path, cause))?;
        let home = Self { dir, path: path.to_owned() };
        if !is_own(found.uid()) || found.mode() & 0o022 != 0 {
            return Err(home
                .refused(
                    ErrorKind::PermissionDenied,
                    "others may write in this directory, or it belongs to another user",
                )
                .remedy("name a directory of this user, without rights to write for group and others (chmod go-w)"));
        }
        Ok(home)
    }

    fn refused(&self, kind: ErrorKind, why: &str) -> Error {
        Error::new(kind, Verb::Setup).at(self.path.display().to_string()).detail(why.to_owned())
    }

    fn wrong(&self, cause: io::Error) -> Error {
        wrong(&self.path, cause)
    }

    /// Opens a file in it: one of this user, no link, no device.
    fn file(&self, name: &str, flags: OFlags) -> Result<File, Error> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(opened.map_err(|cause| self.wrong(cause.into()))?);
        let found = file.metadata().map_err(|cause| self.wrong(cause))?;
        if !found.is_file() || found.file_type().is_fifo() || !is_own(found.uid()) {
            let why = format!("`{name}` in it is no file of this user's");
            return Err(self
                .refused(ErrorKind::WrongKind, &why)
                .remedy("name a directory that is empty, or not there yet"));
        }
        Ok(file)
    }

    /// Opens a file of the cache for reading and writing, made if it is not there, for this user alone.
    pub(crate) fn own_file(&self, name: &str) -> Result<File, Error> {
        let file = self.file(name, OFlags::RDWR | OFlags::CREATE)?;
        if file.metadata().map_err(|cause| self.wrong(cause))?.mode() & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(0o600)).map_err(|cause| self.wrong(cause))?;
        }
        Ok(file)
    }

    /// A file of the cache, to read only.
    pub(crate) fn to_look(&self, name: &str) -> Result<File, Error> {
        self.file(name, OFlags::RDONLY)
    }

    /// Keeps others from changing it, without a change of its own.
    pub(crate) fn lock_to_look(&self) -> Result<File, Error> {
        let mut file = self.to_look(LOCK)?;
        self.try_lock(&mut file, File::try_lock_shared)?;
        Ok(file)
    }

    /// The file that blocks are in.
    pub(crate) fn data(&self) -> Result<File, Error> {
        self.own_file(DATA)
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(cause) => Err(self.wrong(cause.into())),
        }
    }

    /// Sizes of the cache that it is; `None` if it is none. Of one whose file is damaged behind the header, those of a new one.
    pub(crate) fn sizes(&self) -> Result<Option<Sizes>, Error> {
        let file = match self.file(SIZES_FILE, OFlags::RDONLY) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut text = Vec::new();
        file.take(SHORT_MAX).read_to_end(&mut text).map_err(|cause| self.wrong(cause))?;
        let text = String::from_utf8_lossy(&text);
        Ok(text.strip_prefix(HEADER).map(|rest| Sizes::read(rest).unwrap_or(SIZES)))
    }

    /// Refuses a directory that is neither a cache nor empty: nothing of somebody else's is ever written.
    pub(crate) fn check_ours(&self) -> Result<(), Error> {
        if self.sizes()?.is_some() {
            return Ok(());
        }
        let listed = rustix::fs::Dir::read_from(&self.dir).map_err(|cause| self.wrong(cause.into()))?;
        for entry in listed {
            let entry = entry.map_err(|cause| self.wrong(cause.into()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // What a process leaves that is killed while it makes one, and what a file system makes.
            if ![".", "..", LOCK, SIZES_NEW, "lost+found"].contains(&&*name) {
                let why = format!("this directory is no cache, and has `{name}` in it; nothing is written there");
                let remedy =
                    "name a directory that is empty, or not there yet; one of a cache can be removed as a whole";
                return Err(self.refused(ErrorKind::WrongKind, &why).remedy(remedy));
            }
        }
        Ok(())
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &File {
        &self.dir
    }

    /// The file that the epoch is in.
    pub(crate) fn epoch_file(&self) -> Result<File, Error> {
        self.to_look(LOCK)
    }

    /// Takes it for this process: the lock, and an epoch that no owner had which a living process may have asked.
    pub(crate) fn lock(&self) -> Result<(File, u64), Error> {
        let mut file = self.own_file(LOCK)?;
        self.try_lock(&mut file, File::try_lock)?;
        // Before it is written over: it is a lock of ours.
        self.owner_in(&mut file)?;
        let mut text = [0; 64];
        let len = file.read_at(&mut text, 0).map_err(|cause| self.wrong(cause))?;
        let epoch = epoch_in(&text[..len]).unwrap_or(0) + 1;
        // In one piece of one length, so that nobody finds a part of it.
        let told = file.write_all_at(format!("{:>10} {epoch:>20}\n", std::process::id()).as_bytes(), 0);
        told.map_err(|cause| self.wrong(cause))?;
        Ok((file, epoch))
    }

    fn try_lock(&self, file: &mut File, lock: fn(&File) -> Result<(), TryLockError>) -> Result<(), Error> {
        match lock(file) {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                // Whoever has it may be about to write this; it is for the operator only.
                let owner = self.owner_in(file)?;
                Err(self
                    .refused(ErrorKind::InUse, &format!("process {owner} has this cache"))
                    .remedy("look at that process: it does not make the cache that others are to share; or name another directory"))
            }
            Err(TryLockError::Error(cause)) => Err(self.wrong(cause)),
        }
    }

    /// The number of a process that a lock has in it.
    fn owner_in(&self, file: &mut File) -> Result<String, Error> {
        let mut owner = Vec::new();
        file.take(SHORT_MAX).read_to_end(&mut owner).map_err(|cause| self.wrong(cause))?;
        if owner.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_whitespace()) {
            let text = String::from_utf8_lossy(&owner);
            return Ok(text.split_ascii_whitespace().next().unwrap_or_default().to_owned());
        }
        Err(self
            .refused(ErrorKind::WrongKind, "this directory is no cache: `lock` in it is somebody else's file")
            .remedy("name a directory that is empty, or not there yet"))
    }

    /// Writes its sizes, as a whole and durably, or leaves those that it has.
    pub(crate) fn set_sizes(&self, sizes: Sizes) -> Result<(), Error> {
        let work = || {
            let mut file = self.own_file(SIZES_NEW)?;
            let text = format!("{HEADER}{} {}\n", sizes.bytes, sizes.block_bytes);
            let written = file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).and_then(|()| file.sync_all());
            written.map_err(|cause| self.wrong(cause))?;
            let renamed = rustix::fs::renameat(&self.dir, SIZES_NEW, &self.dir, SIZES_FILE);
            renamed.map_err(|cause| self.wrong(cause.into()))?;
            self.dir.sync_all().map_err(|cause| self.wrong(cause))
        };
        work()
    }
}

/// The epoch that a lock has in it.
pub(crate) fn epoch_in(text: &[u8]) -> Option<u64> {
    str::from_utf8(text).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

pub(crate) fn data_in(dir: &Path) -> PathBuf {
    dir.join(DATA)
}
