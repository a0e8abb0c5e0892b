//! Handles of files.
// UNSAFETY: exported names.
#![expect(unsafe_code, reason = "exported names")]

use std::{
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
};

/// What a handle stands for.
pub struct File {
    pub(crate) id: u64,
    /// The number that the caller registered.
    pub(crate) descriptor: i32,
    pub(crate) running: Arc<Running>,
    pub(crate) object: Object,
    /// A duplicate of the caller's descriptor.
    own: fs::File,
    access: i32,
    /// Of a block device; a file is asked each time.
    fixed_len: Option<u64>,
    /// Device and inode when it was registered.
    identity: (u64, u64),
    pub(crate) routes: Routes,
}

impl File {
    pub(crate) fn engine(&self) -> &Engine {
        &self.running.engine
    }

    /// Whether its descriptor was opened for that.
    ///
    /// # Errors
    /// `INVALID_FILE_OPEN_FLAG`.
    pub(crate) fn may(&self, verb: Verb) -> Result<(), Failure> {
        let (refused, word) = match verb {
            Verb::Write => (libc::O_RDONLY, "writing"),
            _ => (libc::O_WRONLY, "reading"),
        };
        if self.access != refused {
            return Ok(());
        }
        Err(Failure::new(code::INVALID_FILE_OPEN_FLAG, format!("{} was not opened for {word}", self.object.name())))
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
    files
        .get(&raw)
        .cloned()
        .ok_or_else(|| Failure::new(code::HANDLE_NOT_REGISTERED, format!("{raw:#x} stands for no registered file")))
}

/// `cuFileHandleRegister`: makes a file known. The driver is opened if it is not. The descriptor is duplicated, so the caller may close
/// its own; its flags decide what the kernel does for it, see `docs/cufile.md`.
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
    match descr.kind {
        HANDLE_OPAQUE_FD => {}
        HANDLE_OPAQUE_WIN32 => return Err(unsupported("handles of another system are not supported")),
        HANDLE_USERSPACE_FS => return Err(unsupported("a file system in user space is reached by its own interface")),
        other => return Err(unsupported(&format!("{other} is no CUfileFileHandleType"))),
    }
    // The union holds an int: the other half of the word may be anything.
    let [a, b, c, d, ..] = descr.handle.to_ne_bytes();
    let file = open(i32::from_ne_bytes([a, b, c, d]))?;
    let id = file.id;
    let mut files = library().files.write().unwrap_or_else(PoisonError::into_inner);
    if files.values().any(|other| (other.descriptor, other.identity) == (file.descriptor, file.identity)) {
        return Err(Failure::new(
            code::HANDLE_ALREADY_REGISTERED,
            format!("descriptor {} of {} is registered already", file.descriptor, file.object.name()),
        ));
    }
    files.insert(id, Arc::new(file));
    drop(files);
    out.put(Handle::from_raw(id));
    Ok(())
}

fn unsupported(text: &str) -> Failure {
    Failure::new(code::IO_NOT_SUPPORTED, text)
}

fn open(descriptor: i32) -> Result<File, Failure> {
    let bad = |errno: i32| {
        let why = std::io::Error::from_raw_os_error(errno);
        Failure::invalid(format!("descriptor {descriptor}: {why}"))
    };
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
    let running = library().opened()?;
    let opened = running.engine.open_descriptor(own.as_fd()).map_err(Failure::from);
    let object = opened.map_err(|failure| match refused {
        true => Failure { code: code::INVALID_FILE_OPEN_FLAG, ..failure },
        false => failure,
    })?;
    Ok(File {
        id: library().number(),
        descriptor,
        running,
        fixed_len: stat.file_type().is_block_device().then(|| object.len()),
        object,
        own,
        access,
        identity: (stat.dev(), stat.ino()),
        routes: Routes::default(),
    })
}

/// `cuFileHandleDeregister`: forgets a handle. Transfers that run go on.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileHandleDeregister(fh: Handle) {
    quiet("cuFileHandleDeregister", || {
        let mut files = library().files.write().unwrap_or_else(PoisonError::into_inner);
        let gone = files.remove(&fh.raw());
        drop(files);
        let known = gone.map(drop).ok_or_else(|| {
            Failure::new(code::HANDLE_NOT_REGISTERED, format!("{:#x} stands for no registered file", fh.raw()))
        });
        library().counts.call(What::HandleDeregister, &known);
        known
    });
}
