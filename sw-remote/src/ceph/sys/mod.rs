//! Ceph's client libraries, loaded at run time: the one place that calls them.
//!
//! ```text
//!   librados.so.2   rados    Cluster ◄── Pool ── reads and writes of objects, each ends by a callback ─► pending ─► a future
//!   librbd.so.1     rbd                   ▲ Image at a snapshot ── likewise
//!   libcephfs.so.2  cephfs   Mount ◄── File ── calls that block
//! ```
//!
//! Nothing is linked and no header is needed: functions are written down by the public headers (Ceph 16.2, `rados/librados.h`,
//! `rbd/librbd.h`, `cephfs/libcephfs.h`). A library that was loaded stays, as it has threads. What is made of another thing keeps it.

pub(super) mod cephfs;
mod pending;
pub(super) mod rados;
pub(super) mod rbd;

use std::{
    ffi::{CString, c_int},
    fmt, io,
};

pub(super) use pending::Done;

use crate::foreign::library::Family;

/// What its libraries are.
const CEPH: Family = Family {
    of: "Ceph's client library",
    setting: "ceph_libraries",
    least: "Ceph's client libraries of version 16 or later",
};

/// A call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// The library's function.
    pub(super) call: &'static str,
    /// An errno.
    pub(super) errno: i32,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, io::Error::from_raw_os_error(self.errno))
    }
}

/// What a call gave: these libraries give minus an errno.
fn check(call: &'static str, gave: c_int) -> Result<c_int, Failed> {
    if gave < 0 { Err(Failed { call, errno: gave.saturating_neg() }) } else { Ok(gave) }
}

/// Who a client is, and what it goes by.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// Without `client.`.
    pub(super) user: CString,
    /// The configuration's file; `None`: where the libraries look for it.
    pub(super) conf: Option<CString>,
    /// Whether the environment's words (`CEPH_ARGS`, `CEPH_KEYRING`) count.
    pub(super) environment: bool,
    /// Settings over all of them. Those that a library does not know are left out, but for the ones that are needed.
    pub(super) options: Vec<(CString, CString, Needed)>,
}

/// Whether a setting has to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needed {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sw_engine::{ErrorKind, Verb};

    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_told_with_its_package() {
        let refusal = rados::Rados::load(Some(Path::new("/no-such-folder"))).err().unwrap();
        let error = refusal.error(Verb::Open, "rados://pool/object");
        assert_eq!(error.kind(), ErrorKind::NoDevice);
        assert!(error.to_string().contains("librados.so.2"), "{error}");
        assert!(error.remedy_text().contains("librados2"), "{error}");
    }

    #[test]
    fn minus_an_errno_is_one() {
        assert_eq!(check("f", 3), Ok(3));
        assert_eq!(check("f", -2), Err(Failed { call: "f", errno: 2 }));
        assert_eq!(check("f", c_int::MIN), Err(Failed { call: "f", errno: c_int::MAX }));
    }
}
