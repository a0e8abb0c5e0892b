//! What was found of the driver, fact by fact, and what to do about what is missing.
// UNSAFETY: asks the loader once more, for its sentence.
#![expect(unsafe_code, reason = "asks the loader why the library cannot be loaded")]

use std::fmt;

use sw_engine::{Error, ErrorKind, Verb};

use crate::driver::{DriverVersion, OLDEST};
use crate::error::CudaError;

/// File names that are asked for. `cudarc` tries some thirty spellings; these are the two that drivers install.
const LIBRARY_NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// Symbols named in a message at most.
const NAMES_SHOWN: usize = 5;

/// Why there is no usable driver.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// No file of that name on the loader's path.
    LibraryNotFound,
    /// There is a file, and the loader cannot load it.
    LibraryBroken {
        /// The loader's sentence.
        text: String,
    },
    /// It is loaded and too old, or not a driver: names that we need are not in it.
    SymbolsMissing {
        /// The names.
        names: Vec<&'static str>,
    },
    /// Its interface is older than we can use.
    TooOld {
        /// What it says.
        found: DriverVersion,
    },
    /// It would not start.
    InitFailed(CudaError),
    /// It started and has no device for this process.
    NoDevices,
    /// An earlier fact is missing, so this one could not be asked for.
    NotAsked,
}

impl Refusal {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::LibraryNotFound => {
                "install the NVIDIA driver; in a container start it with the NVIDIA runtime (--gpus all), which mounts the library"
            }
            Self::LibraryBroken { .. } => {
                "reinstall the driver's user-space library, or take the file off the loader's path"
            }
            Self::SymbolsMissing { .. } | Self::TooOld { .. } => "install a newer NVIDIA driver",
            Self::InitFailed(error) => error.remedy,
            Self::NoDevices => "check nvidia-smi, CUDA_VISIBLE_DEVICES and the devices given to the container",
            Self::NotAsked => "",
        }
    }

    /// A stable lower-case code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::LibraryNotFound => "cuda_library_not_found",
            Self::LibraryBroken { .. } => "cuda_library_broken",
            Self::SymbolsMissing { .. } => "cuda_symbols_missing",
            Self::TooOld { .. } => "cuda_driver_too_old",
            Self::InitFailed(_) => "cuda_init_failed",
            Self::NoDevices => "cuda_no_devices",
            Self::NotAsked => "cuda_not_asked",
        }
    }

    /// As an error of the engine.
    pub fn into_error(self) -> Error {
        let kind = match &self {
            Self::InitFailed(error) => error.kind,
            Self::SymbolsMissing { .. } | Self::TooOld { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::NoDevice,
        };
        let remedy = self.remedy();
        Error::new(kind, Verb::Setup).at("cuda driver").detail(self.to_string()).remedy(remedy)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LibraryNotFound => {
                write!(f, "no {} on the loader's path", LIBRARY_NAMES.join(" or "))
            }
            Self::LibraryBroken { text } => write!(f, "the library cannot be loaded: {text}"),
            Self::SymbolsMissing { names } => {
                let shown: Vec<&str> = names.iter().copied().take(NAMES_SHOWN).collect();
                write!(f, "{} of the functions needed are missing: {}", names.len(), shown.join(", "))?;
                if names.len() > NAMES_SHOWN { f.write_str(", …") } else { Ok(()) }
            }
            Self::TooOld { found } => write!(f, "the driver's interface is {found}, at least {OLDEST} is needed"),
            Self::InitFailed(error) => write!(f, "the driver does not start: {} ({})", error.name, error.code),
            Self::NoDevices => f.write_str("the driver has no device for this process"),
            Self::NotAsked => f.write_str("not asked, because an earlier step failed"),
        }
    }
}

impl std::error::Error for Refusal {}

/// The facts, in the order in which they are found. `self-test passed` is another one, told by
/// [`SelfTest`](crate::SelfTest) for each device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// Found: the file.
    pub library: Result<String, Refusal>,
    /// Symbols present: how many are needed and there.
    pub symbols: Result<usize, Refusal>,
    /// Version of the interface.
    pub version: Result<DriverVersion, Refusal>,
    /// Started, and has this many devices.
    pub devices: Result<u16, Refusal>,
}

impl ProbeReport {
    pub(crate) fn stopped_at_library(why: Refusal) -> Box<Self> {
        Box::new(Self {
            library: Err(why),
            symbols: Err(Refusal::NotAsked),
            version: Err(Refusal::NotAsked),
            devices: Err(Refusal::NotAsked),
        })
    }

    pub(crate) fn stopped_at_symbols(path: String, names: Vec<&'static str>) -> Box<Self> {
        let symbols = Err(Refusal::SymbolsMissing { names });
        Box::new(Self { library: Ok(path), symbols, version: Err(Refusal::NotAsked), devices: Err(Refusal::NotAsked) })
    }

    pub(crate) fn stopped_at_version(path: String, found: DriverVersion) -> Box<Self> {
        let symbols = Ok(crate::table::Table::REQUIRED.len());
        Box::new(Self {
            library: Ok(path),
            symbols,
            version: Err(Refusal::TooOld { found }),
            devices: Err(Refusal::NotAsked),
        })
    }

    pub(crate) fn stopped_at_devices(path: &str, version: DriverVersion, why: Refusal) -> Box<Self> {
        let symbols = Ok(crate::table::Table::REQUIRED.len());
        Box::new(Self { library: Ok(path.to_owned()), symbols, version: Ok(version), devices: Err(why) })
    }

    /// Whether there is a started driver with a device.
    pub fn usable(&self) -> bool {
        self.devices.is_ok()
    }

    /// The first fact that is missing; [`Refusal::NotAsked`] if none is.
    pub fn refusal(&self) -> Refusal {
        let first = [self.library.as_ref().err(), self.symbols.as_ref().err(), self.version.as_ref().err()];
        let first = first.into_iter().chain([self.devices.as_ref().err()]).flatten().next();
        first.cloned().unwrap_or(Refusal::NotAsked)
    }
}

/// After cudarc found none of its spellings: absent, or there and broken?
pub(crate) fn why_not_loadable() -> Refusal {
    for name in LIBRARY_NAMES {
        // SAFETY: loading runs initialisers of a library that the loader just refused or did not find.
        let answer = unsafe { libloading::Library::new(name) };
        let text = match answer {
            Ok(_) => continue,
            // libloading keeps the loader's sentence in the source of its error.
            Err(error) => std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string),
        };
        // The loader names the file that is absent (glibc: "No such file", musl: "not found"). Another name in it is a
        // dependency, and then our file is there and cannot be used.
        let absent = text.contains(name) && (text.contains("No such file") || text.contains("not found"));
        if !absent {
            return Refusal::LibraryBroken { text };
        }
    }
    Refusal::LibraryNotFound
}
