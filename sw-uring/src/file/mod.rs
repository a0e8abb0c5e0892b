//! Files and block devices by path.
//!
//! ```text
//!   open ─► stat (kind) ─► descriptor ─► + O_DIRECT descriptor? ─► Object { faces: [direct], buffered }
//!   descriptor of a caller ─► dup (its flags) + opened once more by /proc/self/fd with the other ones ─► the same
//!   create ─► .name.…straightway-partial ─► write ─► fsync ─► rename ─► fsync directory
//! ```
//!
//! Invariants: a face that lands as `Dma` goes past the page cache on this very file, as far as the kernel tells (see
//! [`direct`]); the buffered face says why there is no direct one; both say what the transport stands in for. An object's two descriptors are of one inode.
//! A name never shows half a file.

mod create;
mod descriptor;
mod direct;
mod resume;

use std::{
    any::Any,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use sw_engine::{
    Error, ErrorKind, Face, Granularity, Landing, Object, Reason, Residency, ResidencyNow, TransportName, Verb,
    Version,
    seam::{Entry, EntryKind, OpenMode, Store, WriteIntent},
};

use crate::{
    fault::path_error,
    handle::{self, Cache},
    passthrough::node::{self, OpenNamespace},
    probe::Probe,
    sys::{self, Stat},
    sysfs::Machine,
};

use direct::Access;
pub use resume::Resumable;

/// Times that opening is tried again when the name is replaced meanwhile.
const REPLACED_MAX: u32 = 4;

/// Entries of one directory that a listing holds at most (about 200 bytes each).
const ENTRIES_MAX: usize = 10_000_000;

/// Length of an object that may grow: the largest offset of a file (`off_t`), down to a whole block.
const OPEN_LEN: u64 = (1 << 63) - (1 << 12);

/// Names of the local file system to objects whose faces one transport understands.
#[derive(Clone, Copy, Debug)]
pub struct FileStore {
    transport: TransportName,
    /// Why not a better one.
    because: Option<Reason>,
}

/// Keeps an object's descriptors open.
pub(crate) struct OpenFile {
    path: PathBuf,
    buffered: OwnedFd,
    /// Its number is in the direct face.
    direct: Option<OwnedFd>,
    /// Held while anybody may write the file through this.
    lock: Option<resume::WriterLock>,
}

impl OpenFile {
    /// Through the page cache.
    pub(crate) fn buffered(&self) -> BorrowedFd<'_> {
        self.buffered.as_fd()
    }

    /// Past it.
    pub(crate) fn direct(&self) -> Option<BorrowedFd<'_>> {
        self.direct.as_ref().map(OwnedFd::as_fd)
    }

    /// The device that holds the bytes: the block device itself, or the one below the file system.
    ///
    /// # Errors
    /// The errno of `fstat`.
    pub(crate) fn device(&self) -> Result<u64, i32> {
        let stat = sys::fstat(self.buffered())?;
        Ok(if stat.kind() == libc::S_IFBLK { stat.special } else { stat.device })
    }

    /// Its own number, if it is a block device itself.
    ///
    /// # Errors
    /// The errno of `fstat`.
    pub(crate) fn block_device(&self) -> Result<Option<u64>, i32> {
        let stat = sys::fstat(self.buffered())?;
        Ok((stat.kind() == libc::S_IFBLK).then_some(stat.special))
    }
}

impl FileStore {
    /// A store for the transport in use: [`crate::IO_URING`] or [`crate::PREADV2`].
    pub fn new(transport: TransportName) -> Self {
        Self { transport, because: None }
    }

    /// The same for what was found to work here: where that stands in for something better, its objects say why.
    pub fn probed(probe: &Probe) -> Self {
        Self { transport: probe.transport, because: probe.because.map(|(reason, _)| reason) }
    }

    /// Starts a new object whose length is known when it is whole: its [`WriteIntent::cut`] sets it. Nothing is reserved.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn create_open(&self, name: &str) -> Result<Box<dyn WriteIntent>, Error> {
        create::start(self, Path::new(name), None)
    }

    fn open_object(&self, name: &str, mode: OpenMode) -> Result<Object, Error> {
        let access = match mode {
            OpenMode::Read => Access::Read,
            OpenMode::Update => Access::Write,
        };
        let path = Path::new(name);
        for _ in 0..REPLACED_MAX {
            // Before opening: opening a pipe waits for its other end, and opening a device may do something.
            let stat = sys::stat(path).map_err(|errno| path_error(errno, Verb::Open, path))?;
            if is_namespace(&stat) {
                return node::open(&Machine::this(), path, mode);
            }
            check_kind(&stat, path)?;
            if let Some(object) = self.open_once(path, access)? {
                return Ok(object);
            }
        }
        Err(Error::new(ErrorKind::Changed, Verb::Open)
            .at(name)
            .detail(format!("the file was replaced {REPLACED_MAX} times while it was opened"))
            .remedy("try again when its writer is done"))
    }

    /// Opens what was a file or a block device a moment ago.
    fn open_once(&self, path: &Path, access: Access) -> Result<Option<Object>, Error> {
        let failed = |errno| path_error(errno, Verb::Open, path);
        let flags = if access == Access::Write { libc::O_RDWR } else { libc::O_RDONLY };
        // O_NONBLOCK: should a pipe take the name's place at this moment, opening it must not hang.
        let buffered = sys::open(path, flags | libc::O_NONBLOCK, 0).map_err(failed)?;
        let stat = sys::fstat(buffered.as_fd()).map_err(failed)?;
        check_kind(&stat, path)?;
        if access == Access::Write && stat.kind() == libc::S_IFBLK {
            check_unused(path)?;
        }
        sys::set_blocking(buffered.as_fd()).map_err(failed)?;
        let (direct, because) = match direct::open(path, &stat, access) {
            Ok(Some(found)) => (Some(found), None),
            Ok(None) => return Ok(None),
            Err(reason) => (None, Some(reason)),
        };
        let object = self.object(path, buffered, (direct, because), &stat, access)?;
        object.residency.set(residency(&object));
        Ok(Some(object))
    }

    /// The object of open descriptors. Nobody has asked for its residency.
    fn object(
        &self,
        path: &Path,
        buffered: OwnedFd,
        (direct, because): (Option<(OwnedFd, Granularity)>, Option<Reason>),
        stat: &Stat,
        access: Access,
    ) -> Result<Object, Error> {
        let len = match stat.kind() {
            libc::S_IFBLK => {
                sys::block_device_len(buffered.as_fd()).map_err(|errno| path_error(errno, Verb::Open, path))?
            }
            _ => stat.len,
        };
        let transport = self.transport;
        let direct_face = direct.as_ref().map(|(fd, granularity)| Face {
            transport,
            handle: handle::pack(fd.as_raw_fd(), Cache::Bypassed),
            granularity: *granularity,
            write_unit: match access {
                Access::Read => 1,
                Access::Write => direct::write_unit(buffered.as_fd(), stat, *granularity),
            },
            landing: Landing::Dma,
            because: self.because,
        });
        let buffered_face = Face {
            transport,
            handle: handle::pack(buffered.as_raw_fd(), Cache::Used),
            granularity: Granularity::ANY,
            write_unit: 1,
            landing: Landing::KernelCopy,
            because: because.or(self.because),
        };
        Ok(Object {
            id: Object::next_id(),
            name: path.to_string_lossy().into(),
            len,
            version: version(stat),
            faces: direct_face.into_iter().chain([buffered_face]).collect(),
            residency: ResidencyNow::unasked(),
            composed: None,
            keep: Box::new(OpenFile { path: path.to_owned(), buffered, direct: direct.map(|(fd, _)| fd), lock: None }),
        })
    }
}

impl Store for FileStore {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<Object>, Error> {
        self.open_object(name, mode).map(Arc::new)
    }

    fn create(&self, name: &str, len: u64) -> Result<Box<dyn WriteIntent>, Error> {
        create::start(self, Path::new(name), Some(len))
    }

    fn stat(&self, name: &str) -> Result<Entry, Error> {
        let path = Path::new(name);
        let stat = sys::stat(path).map_err(|errno| path_error(errno, Verb::Open, path))?;
        entry(path, &stat)
    }

    fn list(&self, name: &str) -> Result<Vec<Entry>, Error> {
        let path = Path::new(name);
        let failed = |error: &std::io::Error| path_error(sys::code(error), Verb::List, path);
        let own = sys::stat(path).map_err(|errno| path_error(errno, Verb::List, path))?;
        if own.kind() != libc::S_IFDIR {
            return Ok(vec![entry(path, &own)?]);
        }
        let mut entries = Vec::new();
        for item in std::fs::read_dir(path).map_err(|error| failed(&error))? {
            let child = item.map_err(|error| failed(&error))?.path();
            if entries.len() == ENTRIES_MAX {
                return Err(Error::new(ErrorKind::TooLarge, Verb::List)
                    .at(name)
                    .detail(format!("more than {ENTRIES_MAX} entries in one directory"))
                    .remedy("list its parts, or split the directory"));
            }
            match sys::stat(&child) {
                Ok(stat) => entries.push(entry(&child, &stat)?),
                // Gone since, or a symbolic link to nowhere: not a thing that can be opened.
                Err(libc::ENOENT | libc::ELOOP) => {}
                Err(errno) => return Err(path_error(errno, Verb::List, &child)),
            }
        }
        entries.sort_unstable_by(|one, other| one.name.as_bytes().cmp(other.name.as_bytes()));
        Ok(entries)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = Path::new(name);
        std::fs::remove_file(path).map_err(|error| path_error(sys::code(&error), Verb::Replace, path))
    }
}

/// Whether an object of a [`FileStore`] is still what was opened: not written to, not shrunk, not replaced by name.
///
/// The modification time has the resolution of the file system's clock (often 1 to 10 ms): a change within the same
/// tick that keeps the length is not seen. A block device, and a namespace opened for commands, has no such mark.
///
/// # Errors
/// `Changed`, or what the system reports. `ApiMisuse` for an object of another store.
pub fn unchanged(object: &Object) -> Result<(), Error> {
    if open_namespace(object).is_some() {
        // A device keeps no mark of its writers.
        return Ok(());
    }
    let open = open_file(object)?;
    let changed = |what: &'static str| {
        Error::new(ErrorKind::Changed, Verb::Read)
            .at(object.name.clone())
            .detail(what)
            .remedy("read it again when its writer is done")
    };
    let held = sys::fstat(open.buffered.as_fd()).map_err(|errno| path_error(errno, Verb::Read, &open.path))?;
    if held.kind() == libc::S_IFREG && held.len != object.len {
        return Err(changed("the file's length changed while it was read"));
    }
    if version(&held) != object.version {
        return Err(changed("the file was written to while it was read"));
    }
    match sys::stat(&open.path) {
        Ok(named) if (named.device, named.inode) == (held.device, held.inode) => Ok(()),
        Ok(_) => Err(changed("the file was replaced while it was read")),
        Err(libc::ENOENT) => Err(changed("the file was removed while it was read")),
        Err(errno) => Err(path_error(errno, Verb::Read, &open.path)),
    }
}

/// A block device that is mounted, swap, or part of a volume is not written behind the back of whoever uses it. The kernel says
/// so to an exclusive opener (open(2), O_EXCL without O_CREAT).
fn check_unused(path: &Path) -> Result<(), Error> {
    match sys::open(path, libc::O_RDONLY | libc::O_EXCL | libc::O_NONBLOCK, 0) {
        Err(libc::EBUSY) => Err(Error::new(ErrorKind::InUse, Verb::Open)
            .at(path.to_string_lossy().into_owned())
            .detail("the block device is mounted, or the kernel uses it otherwise")
            .remedy("unmount it, or take it out of use, first; write files through their file system")),
        _ => Ok(()),
    }
}

/// What the page cache holds of an object now. *Blocking*: one system call, of about 27 ns for each piece that the cache has the object in (1.8
/// ms for 256 MiB in pages of 4 KiB).
pub fn residency(object: &Object) -> Residency {
    let Ok(open) = open_file(object) else { return Residency::Unknown };
    measured_len(object, open);
    cached(open, &[(0, 0)]).map_or(Residency::Unknown, Residency::Cached)
}

/// About what the page cache holds of an object now, from a few places of it if it is large. *Blocking*: some tens of microseconds.
pub fn residency_by_samples(object: &Object) -> Residency {
    let Ok(open) = open_file(object) else { return Residency::Unknown };
    let len = measured_len(object, open).unwrap_or(object.len);
    let places = samples(len);
    let sampled: u64 = places.iter().map(|(_, len)| len).sum();
    let all = |cached: u64| u128::from(cached.min(sampled)) * u128::from(len) / u128::from(sampled);
    match cached(open, &places) {
        Some(cached) if sampled > 0 => Residency::Cached(u64::try_from(all(cached)).unwrap_or(len)),
        found => found.map_or(Residency::Unknown, Residency::Cached),
    }
}

/// Places of `len` bytes that are looked at for all of them; one place from 0 up to the end, if they are few.
fn samples(len: u64) -> Vec<(u64, u64)> {
    const PLACES: u64 = 16;
    const PLACE_BYTES: u64 = 256 << 10;
    /// The largest page.
    const START: u64 = 64 << 10;
    if len <= PLACES * PLACE_BYTES {
        return vec![(0, 0)];
    }
    // The first and the last place are the ends.
    let last = len - PLACE_BYTES;
    let place =
        |index: u64| u64::try_from(u128::from(last) * u128::from(index) / u128::from(PLACES - 1)).unwrap_or(last);
    (0..PLACES).map(|index| (sw_mem::align_down(place(index), START), PLACE_BYTES)).collect()
}

fn cached(open: &OpenFile, places: &[(u64, u64)]) -> Option<u64> {
    if !sys::has_own_pages(open.buffered.as_fd()) {
        return None;
    }
    places.iter().map(|place| sys::cached_bytes(open.buffered.as_fd(), *place)).sum()
}

/// The length of a file that may grow, as it is now.
fn measured_len(object: &Object, open: &OpenFile) -> Option<u64> {
    if object.len != OPEN_LEN {
        return None;
    }
    let stat = sys::fstat(open.buffered.as_fd()).ok()?;
    object.residency.set_len(stat.len);
    Some(stat.len)
}

/// Cuts or extends an object that was opened for update. Its [`Object::len`] stays what it was: open it again.
///
/// # Errors
/// What the system reports. `ApiMisuse` for an object of another store.
pub fn truncate(object: &Object, len: u64) -> Result<(), Error> {
    let open = open_file(object)?;
    sys::truncate(open.buffered.as_fd(), len).map_err(|errno| path_error(errno, Verb::Write, &open.path))
}

/// Reserves space for the first `len` bytes, so that writing them cannot run out of it; extends the file to `len`.
///
/// # Errors
/// `NoSpace`; `Unsupported` where the file system cannot reserve; `ApiMisuse` for an object of another store.
pub fn preallocate(object: &Object, len: u64) -> Result<(), Error> {
    let open = open_file(object)?;
    sys::fallocate(open.buffered.as_fd(), len).map_err(|errno| path_error(errno, Verb::Write, &open.path))
}

/// A descriptor of its own for an object of a [`FileStore`], open for what the object is: past the page cache where there is such a
/// face, else through it. It shares offset and flags with the object's.
///
/// # Errors
/// `ApiMisuse` for an object of another store; `ResourceLimit` if there are no descriptors left.
pub fn descriptor_of(object: &Object) -> Result<OwnedFd, Error> {
    let open = open_file(object)?;
    let held = open.direct().unwrap_or(open.buffered());
    held.try_clone_to_owned().map_err(|error| path_error(sys::code(&error), Verb::Open, &open.path))
}

pub(crate) fn open_file(object: &Object) -> Result<&OpenFile, Error> {
    let keep: &dyn Any = &*object.keep;
    keep.downcast_ref().ok_or_else(|| not_a_file(&object.name))
}

fn open_file_mut(object: &mut Object) -> Result<&mut OpenFile, Error> {
    let keep: &mut dyn Any = &mut *object.keep;
    keep.downcast_mut().ok_or_else(|| not_a_file(&object.name))
}

fn not_a_file(name: &str) -> Error {
    Error::new(ErrorKind::ApiMisuse, Verb::Read).at(name).detail("not an object of the file store")
}

pub(crate) fn open_namespace(object: &Object) -> Option<&OpenNamespace> {
    let keep: &dyn Any = &*object.keep;
    keep.downcast_ref()
}

fn version(stat: &Stat) -> Version {
    Version { identity: (stat.device, stat.inode), stamp: stat.modified_ns }
}

/// Whether it is a generic node of an NVMe namespace, which is opened for commands.
fn is_namespace(stat: &Stat) -> bool {
    stat.kind() == libc::S_IFCHR && node::is_generic(&Machine::this(), stat.special)
}

fn entry(path: &Path, stat: &Stat) -> Result<Entry, Error> {
    if stat.kind() == libc::S_IFCHR
        && let Some(entry) = node::entry(&Machine::this(), path, stat)
    {
        return Ok(entry);
    }
    let (kind, len) = match stat.kind() {
        libc::S_IFREG => (EntryKind::Object, stat.len),
        libc::S_IFDIR => (EntryKind::Directory, 0),
        libc::S_IFBLK => {
            // Without the right to open it its length stays unknown; its name is still listed.
            let fd = sys::open(path, libc::O_RDONLY | libc::O_NONBLOCK, 0).ok();
            (EntryKind::BlockDevice, fd.and_then(|fd| sys::block_device_len(fd.as_fd()).ok()).unwrap_or(0))
        }
        _ => (EntryKind::Other, 0),
    };
    Ok(Entry { name: path.to_string_lossy().into_owned(), kind, len, version: version(stat) })
}

fn check_kind(stat: &Stat, path: &Path) -> Result<(), Error> {
    let what = match stat.kind() {
        libc::S_IFREG | libc::S_IFBLK => return Ok(()),
        libc::S_IFDIR => "it is a directory",
        libc::S_IFIFO => "it is a pipe",
        libc::S_IFSOCK => "it is a socket",
        libc::S_IFCHR => "it is a character device",
        _ => "it is neither a file nor a block device",
    };
    Err(Error::new(ErrorKind::WrongKind, Verb::Open)
        .at(path.to_string_lossy().as_ref())
        .detail(what)
        .remedy("name a file or a block device"))
}
