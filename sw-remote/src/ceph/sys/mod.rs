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
// UNSAFETY: loading a library and calling its functions.
#![expect(unsafe_code, reason = "loads Ceph's client libraries")]

pub(super) mod cephfs;
mod pending;
pub(super) mod rados;
pub(super) mod rbd;

use std::{
    ffi::{CString, c_int},
    fmt, io,
    path::Path,
};

use libloading::Library;
use sw_engine::{Error, ErrorKind, Verb};

pub(super) use pending::{Done, Keep};

/// Why there is no library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is not there, or the loader refuses it; what it says.
    NoLibrary { name: &'static str, package: &'static str, why: String },
    /// It is older than what is needed, or something else by that name.
    NoSymbol { name: &'static str, symbol: &'static str },
}

impl Refusal {
    /// The error of whoever wants it.
    pub(super) fn error(&self, verb: Verb, at: &str) -> Error {
        let (kind, remedy) = match self {
            Self::NoLibrary { package, .. } => (
                ErrorKind::NoDevice,
                format!("install Ceph's client library (package {package}), or name its folder by ceph_libraries"),
            ),
            Self::NoSymbol { .. } => {
                (ErrorKind::Unsupported, "install Ceph's client libraries of version 16 or later".to_owned())
            }
        };
        Error::new(kind, verb).at(at).detail(self.to_string()).remedy(remedy)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLibrary { name, why, .. } => write!(f, "{name} cannot be loaded: {why}"),
            Self::NoSymbol { name, symbol } => write!(f, "{name} has no {symbol}"),
        }
    }
}

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

/// A loaded library, for good.
struct Loaded {
    name: &'static str,
    library: &'static Library,
}

impl Loaded {
    fn open(name: &'static str, package: &'static str, folder: Option<&Path>) -> Result<Self, Refusal> {
        let file = folder.map_or_else(|| name.into(), |folder| folder.join(name));
        // SAFETY: the initialisers of the library of that name, which set up its tables; what its file is, is the word of whoever manages
        // the machine.
        let loaded = unsafe { Library::new(file) };
        let loaded = loaded.map_err(|error| {
            // libloading keeps the loader's sentence in the source of its error.
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Refusal::NoLibrary { name, package, why }
        })?;
        Ok(Self { name, library: Box::leak(Box::new(loaded)) })
    }

    /// A function by name.
    ///
    /// # Safety
    /// - `T` is the type of a pointer to the function of that name.
    unsafe fn symbol<T: Copy + 'static>(&self, symbol: &'static str) -> Result<T, Refusal> {
        // SAFETY: the caller's contract.
        let found = unsafe { self.library.get::<T>(symbol.as_bytes()) };
        found.map(|found| *found).map_err(|_| Refusal::NoSymbol { name: self.name, symbol })
    }
}

/// The functions of a library that are used, with the types of its header.
macro_rules! table {
    ($(#[$doc:meta])* $table:ident, $library:literal, $package:literal: $($function:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(in crate::ceph) struct $table {
            $($function: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl $table {
            /// Loads the library, from a folder or from where the system has it.
            pub(in crate::ceph) fn load(folder: Option<&std::path::Path>) -> Result<Self, super::Refusal> {
                let loaded = super::Loaded::open($library, $package, folder)?;
                Ok(Self {
                    $(
                        // SAFETY: the type is that of the header's declaration.
                        $function: unsafe { loaded.symbol(stringify!($function)) }?,
                    )*
                })
            }
        }
    };
}
use table;

#[cfg(test)]
mod tests {
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
