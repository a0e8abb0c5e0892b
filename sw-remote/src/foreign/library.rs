//! Libraries that are loaded at run time, and their functions by name.
//!
//! Nothing is linked and no header is needed. A library that was loaded stays, as it may have threads.
// UNSAFETY: loading a library and looking up its functions.
#![expect(unsafe_code, reason = "loads client libraries")]

use std::{fmt, path::Path};

use libloading::Library;
use sw_engine::{Error, ErrorKind, Verb};

/// What the libraries of one system are, in words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Family {
    /// As in "install OF (package NAME)".
    pub(crate) of: &'static str,
    /// The setting that names their folder.
    pub(crate) setting: &'static str,
    /// As in "install LEAST".
    pub(crate) least: &'static str,
}

/// Why there is no library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is not there, or the loader refuses it; what it says.
    NoLibrary { family: &'static Family, name: &'static str, package: &'static str, why: String },
    /// It is older than what is needed, or something else by that name.
    NoSymbol { family: &'static Family, name: &'static str, symbol: &'static str },
}

impl Refusal {
    /// The error of whoever wants it.
    pub(crate) fn error(&self, verb: Verb, at: &str) -> Error {
        let (kind, remedy) = match self {
            Self::NoLibrary { family: Family { of, setting, .. }, package, .. } => {
                (ErrorKind::NoDevice, format!("install {of} (package {package}), or name its folder by {setting}"))
            }
            Self::NoSymbol { family, .. } => (ErrorKind::Unsupported, format!("install {}", family.least)),
        };
        Error::new(kind, verb).at(at).detail(self.to_string()).remedy(remedy)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLibrary { name, why, .. } => write!(f, "{name} cannot be loaded: {why}"),
            Self::NoSymbol { name, symbol, .. } => write!(f, "{name} has no {symbol}"),
        }
    }
}

/// A loaded library, for good.
pub(crate) struct Loaded {
    family: &'static Family,
    name: &'static str,
    library: &'static Library,
}

impl Loaded {
    pub(crate) fn open(
        family: &'static Family,
        (name, package): (&'static str, &'static str),
        folder: Option<&Path>,
    ) -> Result<Self, Refusal> {
        let file = folder.map_or_else(|| name.into(), |folder| folder.join(name));
        // SAFETY: the initialisers of the library of that name, which set up its tables; what its file is, is the word of whoever manages
        // the machine.
        let loaded = unsafe { Library::new(file) };
        let loaded = loaded.map_err(|error| {
            // libloading keeps the loader's sentence in the source of its error.
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Refusal::NoLibrary { family, name, package, why }
        })?;
        Ok(Self { family, name, library: Box::leak(Box::new(loaded)) })
    }

    /// A function by name.
    ///
    /// # Safety
    /// - `T` is the type of a pointer to the function of that name.
    pub(crate) unsafe fn symbol<T: Copy + 'static>(&self, symbol: &'static str) -> Result<T, Refusal> {
        // SAFETY: the caller's contract.
        let found = unsafe { self.library.get::<T>(symbol.as_bytes()) };
        found.map(|found| *found).map_err(|_| Refusal::NoSymbol { family: self.family, name: self.name, symbol })
    }
}

/// The functions of a library that are used, with the types of its header.
macro_rules! table {
    ($(#[$doc:meta])* $table:ident, $family:expr, $library:literal, $package:literal: $($function:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $table {
            $($function: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl $table {
            /// Loads the library, from a folder or from where the system has it.
            pub(crate) fn load(folder: Option<&std::path::Path>) -> Result<Self, $crate::foreign::library::Refusal> {
                let loaded = $crate::foreign::library::Loaded::open(&$family, ($library, $package), folder)?;
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
pub(crate) use table;
