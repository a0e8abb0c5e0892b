//! Objects of files that the caller opened.
//!
//! The caller's descriptor is duplicated and serves as it is: whether it has `O_DIRECT` decides for which face. The other face is
//! the same file opened once more through `/proc/self/fd`, with the same access mode. Where that is not possible the
//! object has one face, and the reason says why.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use sw_engine::{Error, ErrorKind, Granularity, Landing, Object, Reason, Verb};

use crate::{
    fault::path_error,
    sys::{self, Stat},
};

use super::{Access, FileStore, OPEN_LEN, check_kind, direct};

/// Flags of the caller's that a descriptor for the other face has too: what its writes promise.
const KEPT: i32 = libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC;

/// A descriptor of the caller's, and what is known of it.
struct Given<'a> {
    own: OwnedFd,
    flags: i32,
    stat: &'a Stat,
    access: Access,
}

/// The two descriptors of an object. Without a buffered one of its own, the direct one is asked for facts in its place.
struct Faces {
    buffered: OwnedFd,
    direct: Result<(OwnedFd, Granularity), Reason>,
    only_direct: bool,
}

impl FileStore {
    /// An object of a descriptor that the caller opened and keeps. It may grow: its length is the largest that there is, but
    /// for a block device.
    ///
    /// A block device is not looked at for other users, as one that is opened by name is: who opened it for writing has.
    ///
    /// # Errors
    /// `WrongKind` for what is no file and no block device, for a descriptor for writing that appends, and for one with
    /// `O_PATH`; `ApiMisuse` for one that is not open; what the system reports.
    pub fn open_descriptor(&self, descriptor: BorrowedFd<'_>) -> Result<Object, Error> {
        let path = path_of(descriptor);
        let failed = |errno| path_error(errno, Verb::Open, &path);
        let own = descriptor.try_clone_to_owned().map_err(|error| failed(sys::code(&error)))?;
        let stat = sys::fstat(own.as_fd()).map_err(failed)?;
        check_kind(&stat, &path)?;
        let flags = sys::status_flags(own.as_fd()).map_err(failed)?;
        let access = access(flags, &path)?;
        let faces = faces(Given { own, flags, stat: &stat, access }).map_err(failed)?;
        let (direct, because) = match faces.direct {
            Ok(found) => (Some(found), None),
            Err(reason) => (None, Some(reason)),
        };
        let mut object = self.object(&path, faces.buffered, (direct, because), &stat, access)?;
        if faces.only_direct {
            object.faces.retain(|face| face.landing == Landing::Dma);
        }
        if stat.kind() == libc::S_IFREG {
            object.residency.set_len(stat.len);
            object.len = OPEN_LEN;
        }
        Ok(object)
    }
}

/// What people call it.
fn path_of(descriptor: BorrowedFd<'_>) -> PathBuf {
    let number = descriptor.as_raw_fd();
    std::fs::read_link(link(number)).unwrap_or_else(|_| PathBuf::from(format!("descriptor {number}")))
}

fn link(number: i32) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{number}"))
}

fn access(flags: i32, path: &Path) -> Result<Access, Error> {
    let wrong = |what: &'static str, remedy: &'static str| {
        Err(Error::new(ErrorKind::WrongKind, Verb::Open)
            .at(path.to_string_lossy().into_owned())
            .detail(what)
            .remedy(remedy))
    };
    if flags & libc::O_PATH != 0 {
        return wrong("the descriptor was opened with O_PATH, which moves no bytes", "open it for reading or writing");
    }
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        return Ok(Access::Read);
    }
    if flags & libc::O_APPEND != 0 {
        // pwrite(2), BUGS: with O_APPEND the offset does not count.
        return wrong("the descriptor appends, whatever the offset of a write", "open it without O_APPEND");
    }
    Ok(Access::Write)
}

/// # Errors
/// The errno of opening it once more where its own flags are of no use.
fn faces(given: Given<'_>) -> Result<Faces, i32> {
    let again = |more: i32| sys::open(&link(given.own.as_raw_fd()), given.flags & KEPT | more, 0);
    if given.flags & libc::O_DIRECT == 0 {
        // A descriptor that does not wait gives errors instead of late bytes, and its flags are the caller's.
        let direct = match again(libc::O_DIRECT) {
            Ok(fd) => checked(fd, &given),
            Err(libc::EINVAL | libc::EOPNOTSUPP) => Err(Reason::DirectRefused),
            Err(_) => Err(Reason::NotReopened),
        };
        let buffered = if given.flags & libc::O_NONBLOCK == 0 { given.own } else { again(0)? };
        return Ok(Faces { buffered, direct, only_direct: false });
    }
    let other = again(0);
    let direct = if given.flags & libc::O_NONBLOCK == 0 {
        given.own.try_clone().map_err(|error| sys::code(&error))?
    } else {
        again(libc::O_DIRECT)?
    };
    match (checked(direct, &given), other) {
        (direct, Ok(buffered)) => Ok(Faces { buffered, direct, only_direct: false }),
        (Ok(direct), Err(_)) => Ok(Faces { buffered: given.own, direct: Ok(direct), only_direct: true }),
        // It takes O_DIRECT and then copies, so it serves as what it is.
        (Err(reason), Err(_)) => Ok(Faces { buffered: given.own, direct: Err(reason), only_direct: false }),
    }
}

fn checked(fd: OwnedFd, given: &Given<'_>) -> Result<(OwnedFd, Granularity), Reason> {
    match direct::of(fd, given.stat, given.access) {
        Ok(found) => found.ok_or(Reason::NotReopened),
        Err(reason) => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{File, OpenOptions},
        os::unix::fs::OpenOptionsExt,
    };

    use super::*;

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn file(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("straightway-descriptor-{name}-{}", std::process::id()));
        std::fs::write(&path, vec![7; 8192]).unwrap();
        Scratch(path)
    }

    fn object(file: &File) -> Result<Object, Error> {
        FileStore::new(crate::PREADV2).open_descriptor(file.as_fd())
    }

    fn landings(object: &Object) -> Vec<Landing> {
        object.faces.iter().map(|face| face.landing).collect()
    }

    #[test]
    fn either_kind_of_descriptor_gives_the_faces_that_the_name_gives() {
        let scratch = file("faces");
        let named =
            FileStore::new(crate::PREADV2).open_object(scratch.0.to_str().unwrap(), sw_engine::seam::OpenMode::Update);
        let named = landings(&named.unwrap());
        for flags in [0, libc::O_NONBLOCK, libc::O_DIRECT, libc::O_DIRECT | libc::O_NONBLOCK] {
            let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&scratch.0);
            let Ok(opened) = opened else {
                println!("skip {flags:#o}: refused where temporary files are");
                continue;
            };
            let before = sys::status_flags(opened.as_fd()).unwrap();
            let object = object(&opened).unwrap();
            assert_eq!(landings(&object), named, "{flags:#o}");
            assert_eq!((object.len, &*object.name), (OPEN_LEN, scratch.0.to_str().unwrap()));
            assert_eq!(sys::status_flags(opened.as_fd()), Ok(before), "the caller's flags are the caller's");
        }
    }

    #[test]
    fn what_cannot_be_read_or_written_at_an_offset_is_refused() {
        let scratch = file("refused");
        let append = OpenOptions::new().append(true).open(&scratch.0).unwrap();
        let path = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&scratch.0).unwrap();
        let directory = File::open(std::env::temp_dir()).unwrap();
        for (opened, word) in [(append, "appends"), (path, "O_PATH"), (directory, "directory")] {
            let error = object(&opened).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WrongKind, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
        let reads = OpenOptions::new().read(true).custom_flags(libc::O_APPEND).open(&scratch.0).unwrap();
        assert!(object(&reads).is_ok(), "reads have their offset whatever O_APPEND says");
    }

    #[test]
    fn the_page_cache_is_not_asked_by_opening_and_samples_tell_about_what_it_has() {
        use sw_engine::Residency;
        let scratch = file("residency");
        let len = 8 << 20;
        std::fs::write(&scratch.0, vec![7; len]).unwrap();
        let opened = File::open(&scratch.0).unwrap();
        let object = object(&opened).unwrap();
        assert!(!object.residency.is_asked() && object.residency.get() == Residency::Unknown && !object.is_resident());
        let Residency::Cached(whole) = crate::residency(&object) else {
            return println!("skip: nobody can tell what is cached where temporary files are");
        };
        let Residency::Cached(sampled) = crate::residency_by_samples(&object) else { panic!("samples do not tell") };
        // The file was just written. A page more or less than the length is the end of it.
        let near = |one: u64, other: u64| one.abs_diff(other) <= 64 << 10;
        assert!(near(whole, len as u64) && near(sampled, len as u64), "{whole} {sampled}");
        assert!(object.is_resident_with(Residency::Cached(sampled)));
        // What is a hole now is not in it.
        std::fs::write(&scratch.0, vec![7; len / 2]).unwrap();
        std::fs::File::options().write(true).open(&scratch.0).unwrap().set_len(len as u64).unwrap();
        if crate::residency(&object) != Residency::Cached(len as u64 / 2) {
            return println!("skip: holes are in the cache where temporary files are");
        }
        let Residency::Cached(sampled) = crate::residency_by_samples(&object) else { panic!("samples do not tell") };
        assert!(near(sampled, len as u64 / 2), "{sampled}");
        assert!(!object.is_resident_with(Residency::Cached(sampled)));
    }

    #[test]
    fn a_removed_file_is_still_opened_both_ways() {
        let scratch = file("removed");
        let opened = File::open(&scratch.0).unwrap();
        let before = landings(&object(&opened).unwrap());
        std::fs::remove_file(&scratch.0).unwrap();
        assert_eq!(landings(&object(&opened).unwrap()), before);
    }
}
