//! Handles of files.
// UNSAFETY: exported names.
#![expect(unsafe_code, reason = "exported names")]

use std::{
    collections::HashMap,
    fs::{self, Metadata},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    sync::{Arc, PoisonError},
};

use straightway::{Engine, Object, Verb};

use crate::{
    abi::{CuFileError, Descr, HANDLE_OPAQUE_FD, HANDLE_OPAQUE_WIN32, HANDLE_USERSPACE_FS, Handle},
    code::{self, Failure},
    count::{Routes, What},
    edge::{call, quiet},
    library::{Running, library},
    pointer::{In, Out, own_descriptor, status_flags},
    userfs::UserFs,
};

/// What a handle stands for.
pub struct File {
    pub(crate) id: u64,
    pub(crate) running: Arc<Running>,
    pub(crate) source: Source,
    pub(crate) routes: Routes,
}

/// Who has the bytes.
pub(crate) enum Source {
    Kernel(KernelFile),
    User(UserFs),
}

/// A file or a block device of the kernel's.
pub(crate) struct KernelFile {
    /// The number that the caller registered.
    descriptor: i32,
    pub(crate) object: Object,
    /// A duplicate of the caller's descriptor.
    own: fs::File,
    access: i32,
    /// Of a block device; a file is asked each time.
    fixed_len: Option<u64>,
    /// Device and inode when it was registered.
    identity: (u64, u64),
}

/// The files of a library.
#[derive(Default)]
pub(crate) struct Files {
    by_id: HashMap<u64, Arc<File>>,
    /// The file that was registered last with a number.
    by_descriptor: HashMap<i32, u64>,
}

impl Files {
    /// The kernel's file that a number was registered for.
    fn with_descriptor(&self, descriptor: i32) -> Option<&KernelFile> {
        let file = self.by_id.get(self.by_descriptor.get(&descriptor)?)?;
        match &file.source {
            Source::Kernel(kernel) => Some(kernel),
            Source::User(_) => None,
        }
    }

    fn insert(&mut self, file: File) {
        if let Source::Kernel(kernel) = &file.source {
            self.by_descriptor.insert(kernel.descriptor, file.id);
        }
        self.by_id.insert(file.id, Arc::new(file));
    }

    fn remove(&mut self, id: u64) -> Option<Arc<File>> {
        let gone = self.by_id.remove(&id)?;
        if let Source::Kernel(kernel) = &gone.source
            && self.by_descriptor.get(&kernel.descriptor) == Some(&id)
        {
            self.by_descriptor.remove(&kernel.descriptor);
        }
        Some(gone)
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl File {
    pub(crate) fn engine(&self) -> &Engine {
        &self.running.engine
    }

    /// In the operator's words.
    pub(crate) fn name(&self) -> &str {
        match &self.source {
            Source::Kernel(kernel) => kernel.object.name(),
            Source::User(user) => user.name(),
        }
    }

    /// Whether it was opened for that.
    ///
    /// # Errors
    /// `INVALID_FILE_OPEN_FLAG`; `IO_NOT_SUPPORTED` for a file system in user space without such a function.
    pub(crate) fn may(&self, verb: Verb) -> Result<(), Failure> {
        match &self.source {
            Source::Kernel(kernel) => kernel.may(verb),
            Source::User(user) => user.may(verb),
        }
    }
}

impl KernelFile {
    fn may(&self, verb: Verb) -> Result<(), Failure> {
        let (refused, word) = match verb {
            Verb::Write => (libc::O_RDONLY, "writing"),
            _ => (libc::O_WRONLY, "reading"),
        };
        if self.access != refused {
            return if verb == Verb::Write { self.has_offsets() } else { Ok(()) };
        }
        Err(Failure::new(code::INVALID_FILE_OPEN_FLAG, format!("{} was not opened for {word}", self.object.name())))
    }

    /// The caller's descriptor and ours are one open file: if the caller made it append, every write would land at the end.
    fn has_offsets(&self) -> Result<(), Failure> {
        let flags = status_flags(&self.own)
            .map_err(|error| Failure::system(error.raw_os_error().unwrap_or(libc::EBADF), self.object.name()))?;
        if flags & libc::O_APPEND == 0 {
            return Ok(());
        }
        let text = format!("{} appends by now: a write would not land at its offset", self.object.name());
        Err(Failure::new(code::INVALID_FILE_OPEN_FLAG, text))
    }

    /// Bytes of `len` from `offset` on that it has now.
    ///
    /// # Errors
    /// The errno of `fstat`.
    pub(crate) fn left(&self, offset: u64, len: u64) -> Result<u64, Failure> {
        let whole = match self.fixed_len {
            Some(len) => len,
            None => metadata(&self.own)?.len(),
        };
        Ok(whole.saturating_sub(offset).min(len))
    }
}

fn metadata(file: &fs::File) -> Result<Metadata, Failure> {
    file.metadata().map_err(|error| Failure::system(error.raw_os_error().unwrap_or(libc::EIO), error.to_string()))
}

/// The file of a handle.
///
/// # Errors
/// `INVALID_VALUE` for NULL, `HANDLE_NOT_REGISTERED` for a number that stands for no file, or not any more.
pub(crate) fn file_of(handle: Handle) -> Result<Arc<File>, Failure> {
    let raw = handle.raw();
    if raw == 0 {
        return Err(Failure { errno: libc::EINVAL, ..Failure::invalid("the file handle is NULL") });
    }
    let files = library().files.read().unwrap_or_else(PoisonError::into_inner);
    files.by_id.get(&raw).cloned().ok_or_else(|| unknown(handle))
}

fn unknown(handle: Handle) -> Failure {
    Failure::new(code::HANDLE_NOT_REGISTERED, format!("{:#x} stands for no registered file", handle.raw()))
}

/// `cuFileHandleRegister`: makes a file known. The driver is opened if it is not. The descriptor is duplicated, so the caller may close
/// its own; its flags decide what the kernel does for it, see `docs/cufile.md`. A file system in user space is given by its functions.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileHandleRegister(fh: Out<Handle>, descr: In<Descr>) -> CuFileError {
    call("cuFileHandleRegister", || {
        let registered = register(fh, descr);
        library().counts.call(What::HandleRegister, &registered);
        registered
    })
}

fn register(fh: Out<Handle>, descr: In<Descr>) -> Result<(), Failure> {
    let out = fh.ready("fh")?;
    let descr = descr.get("descr")?;
    let mut running = None;
    let source = match descr.kind {
        HANDLE_OPAQUE_FD => {
            // The union holds an int: the other half of the word may be anything.
            let [a, b, c, d, ..] = descr.handle.to_ne_bytes();
            Source::Kernel(open(i32::from_ne_bytes([a, b, c, d]), &mut running)?)
        }
        HANDLE_OPAQUE_WIN32 => return Err(unsupported("handles of another system are not supported")),
        HANDLE_USERSPACE_FS => Source::User(UserFs::new(&descr)?),
        other => return Err(unsupported(&format!("{other} is no CUfileFileHandleType"))),
    };
    let running = running.map_or_else(|| library().opened(), Ok)?;
    let file = File { id: library().number(), running, source, routes: Routes::default() };
    let id = file.id;
    let mut files = library().files.write().unwrap_or_else(PoisonError::into_inner);
    if let Source::Kernel(new) = &file.source
        && files.with_descriptor(new.descriptor).is_some_and(|old| old.identity == new.identity)
    {
        return Err(Failure::new(
            code::HANDLE_ALREADY_REGISTERED,
            format!("descriptor {} of {} is registered already", new.descriptor, file.name()),
        ));
    }
    library().still(&file.running)?;
    files.insert(file);
    drop(files);
    out.put(Handle::from_raw(id));
    Ok(())
}

fn unsupported(text: &str) -> Failure {
    Failure::new(code::IO_NOT_SUPPORTED, text)
}

/// Opens the driver too, once the descriptor is one that can be registered.
fn open(descriptor: i32, driver: &mut Option<Arc<Running>>) -> Result<KernelFile, Failure> {
    let bad = |why: std::io::Error| Failure::invalid(format!("descriptor {descriptor}: {why}"));
    let own = own_descriptor(descriptor).map_err(bad)?;
    let flags = status_flags(&own).map_err(bad)?;
    let own = fs::File::from(own);
    let stat = metadata(&own)?;
    if !stat.is_file() && !stat.file_type().is_block_device() {
        let what = if stat.is_dir() { "a directory" } else { "neither a file nor a block device" };
        return Err(Failure::new(code::INVALID_FILE_TYPE, format!("descriptor {descriptor} is {what}")));
    }
    let access = flags & libc::O_ACCMODE;
    let refused = flags & libc::O_PATH != 0 || (flags & libc::O_APPEND != 0 && access != libc::O_RDONLY);
    let running = driver.insert(library().opened()?);
    let opened = running.engine.open_descriptor(own.as_fd()).map_err(Failure::from);
    let object = opened.map_err(|failure| match refused {
        true => Failure { code: code::INVALID_FILE_OPEN_FLAG, ..failure },
        false => failure,
    })?;
    Ok(KernelFile {
        descriptor,
        fixed_len: stat.file_type().is_block_device().then(|| object.len()),
        object,
        own,
        access,
        identity: (stat.dev(), stat.ino()),
    })
}

/// `cuFileHandleDeregister`: forgets a handle. Transfers that run go on.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileHandleDeregister(fh: Handle) {
    quiet("cuFileHandleDeregister", || {
        let gone = library().files.write().unwrap_or_else(PoisonError::into_inner).remove(fh.raw());
        let known = gone.map(drop).ok_or_else(|| unknown(fh));
        library().counts.call(What::HandleDeregister, &known);
        known
    });
}
