//! DAOS's client libraries, loaded at run time: the one place that calls them.
//!
//! ```text
//!   libdaos.so.2  Client ◄── Mount ◄── Node ── reads: each has an event ─► queue ─► a future
//!   libdfs.so                           └──── calls that block: everything else
//! ```
//!
//! Functions and structures are written down by the public headers of DAOS 2.6.5 (`daos_types.h`, `daos_event.h`, `daos_pool.h`, `daos_cont.h`,
//! `daos_fs.h`, `daos_errno.h`, `gurt/types.h`). libdfs is linked to libdaos by its name: the one of the same folder is to be there first.

// UNSAFETY: looking up functions by their types.
#![expect(unsafe_code, reason = "loads libdaos and libdfs")]

pub(super) mod dfs;
mod layout;
pub(super) mod queue;

use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    fmt, io,
    path::Path,
};

use self::layout::{Anchor, Event, Handle, ObjectId, SgList};
use crate::foreign::library::{Family, Refusal, table};

/// `dfs_t *`, `dfs_obj_t *`: named by their pointers only.
type Raw = *mut c_void;

/// What its libraries are.
const DAOS: Family = Family {
    of: "DAOS's client libraries",
    setting: "daos_libraries",
    least: "DAOS's client libraries of version 2.6, whose libdaos is that of libdfs",
};

table! {
    /// libdaos. Two of its functions have another name in the library than in the headers, which define one by the other.
    Daos, DAOS, "libdaos.so.2", "daos-client":
    daos_init() -> c_int;
    daos_fini() -> c_int;
    daos_pool_connect2(*const c_char, *const c_char, c_uint, *mut Handle, *mut c_void, *mut Event) -> c_int;
    daos_pool_disconnect(Handle, *mut Event) -> c_int;
    daos_cont_open2(Handle, *const c_char, c_uint, *mut Handle, *mut c_void, *mut Event) -> c_int;
    daos_cont_close(Handle, *mut Event) -> c_int;
    daos_eq_create(*mut Handle) -> c_int;
    daos_eq_destroy(Handle, c_int) -> c_int;
    daos_eq_poll(Handle, c_int, i64, c_uint, *mut *mut Event) -> c_int;
    daos_event_init(*mut Event, Handle, *mut Event) -> c_int;
    daos_event_fini(*mut Event) -> c_int;
    daos_event_abort(*mut Event) -> c_int;
}

table! {
    /// libdfs.
    Dfs, DAOS, "libdfs.so", "daos-client":
    dfs_mount(Handle, Handle, c_int, *mut Raw) -> c_int;
    dfs_umount(Raw) -> c_int;
    dfs_lookup(Raw, *const c_char, c_int, *mut Raw, *mut libc::mode_t, *mut libc::stat) -> c_int;
    dfs_open(Raw, Raw, *const c_char, libc::mode_t, c_int, u32, u64, *const c_char, *mut Raw) -> c_int;
    dfs_release(Raw) -> c_int;
    dfs_obj2id(Raw, *mut ObjectId) -> c_int;
    dfs_ostat(Raw, Raw, *mut libc::stat) -> c_int;
    dfs_read(Raw, Raw, *mut SgList, u64, *mut u64, *mut Event) -> c_int;
    dfs_write(Raw, Raw, *mut SgList, u64, *mut Event) -> c_int;
    dfs_punch(Raw, Raw, u64, u64) -> c_int;
    dfs_readdir(Raw, Raw, *mut Anchor, *mut u32, *mut libc::dirent) -> c_int;
    dfs_mkdir(Raw, Raw, *const c_char, libc::mode_t, u32) -> c_int;
    dfs_move(Raw, Raw, *const c_char, Raw, *const c_char, *mut ObjectId) -> c_int;
    dfs_remove(Raw, Raw, *const c_char, bool, *mut ObjectId) -> c_int;
    dfs_sync(Raw) -> c_int;
}

/// Both libraries.
#[derive(Clone, Copy)]
pub(in crate::daos) struct Library {
    daos: Daos,
    dfs: Dfs,
}

impl Library {
    /// Loads them, from a folder or from where the system has them.
    pub(in crate::daos) fn load(folder: Option<&Path>) -> Result<Self, Refusal> {
        Ok(Self { daos: Daos::load(folder)?, dfs: Dfs::load(folder)? })
    }
}

/// A call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// The library's function.
    pub(super) call: &'static str,
    pub(super) code: Code,
}

/// What a call gave: libdaos gives minus a number of its own, libdfs an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// Of `daos_errno.h`.
    Der(i32),
    Errno(i32),
}

impl Code {
    /// The number, as it is told.
    pub(super) fn number(self) -> i32 {
        match self {
            Self::Der(number) | Self::Errno(number) => number,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Code::Der(number) => write!(f, "{}: DER {number} (daos_errno.h)", self.call),
            Code::Errno(number) => write!(f, "{}: {}", self.call, io::Error::from_raw_os_error(number)),
        }
    }
}

/// What a call of libdaos gave.
fn check(call: &'static str, gave: c_int) -> Result<c_int, Failed> {
    if gave < 0 { Err(Failed { call, code: Code::Der(gave.saturating_neg()) }) } else { Ok(gave) }
}

/// What a call of libdfs gave: an errno. What is below zero is none, but a number of libdaos.
fn check_dfs(call: &'static str, gave: c_int) -> Result<(), Failed> {
    match gave {
        0 => Ok(()),
        errno if errno > 0 => Err(Failed { call, code: Code::Errno(errno) }),
        der => check(call, der).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sw_engine::{ErrorKind, Verb};

    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_told_with_its_package() {
        let refusal = Library::load(Some(Path::new("/no-such-folder"))).err().unwrap();
        let error = refusal.error(Verb::Open, "daos://pool/container/file");
        assert_eq!(error.kind(), ErrorKind::NoDevice);
        assert!(error.to_string().contains("libdaos.so.2"), "{error}");
        assert!(
            error.remedy_text().contains("daos-client") && error.remedy_text().contains("daos_libraries"),
            "{error}"
        );
    }

    #[test]
    fn codes_of_both_libraries_are_told_apart() {
        assert_eq!(check("f", 3), Ok(3));
        assert_eq!(check("f", -1005), Err(Failed { call: "f", code: Code::Der(1005) }));
        assert_eq!(check("f", c_int::MIN), Err(Failed { call: "f", code: Code::Der(c_int::MAX) }));
        assert_eq!(check_dfs("f", 0), Ok(()));
        assert_eq!(check_dfs("f", 2), Err(Failed { call: "f", code: Code::Errno(2) }));
        assert_eq!(check_dfs("f", -1011), Err(Failed { call: "f", code: Code::Der(1011) }));
    }
}
