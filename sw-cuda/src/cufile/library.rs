//! The library: found, checked, opened; closed by whoever uses it last.
// UNSAFETY: loads a library and calls it through the checked table.
#![expect(unsafe_code, reason = "loads the vendor's library and calls it")]

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};
use std::time::Duration;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use sw_engine::{Error, ErrorKind, TransportName, Verb};
use sw_mem::ForkMark;

use super::files::Files;
use super::table::{self, Find, OUR_MARK, Properties, Table};
use super::within::{Unanswered, within};
use crate::context::Context;

/// Its name in routes and reports.
pub const CUFILE: TransportName = "cufile";

/// Names that are tried where no file is given. The last is where NVIDIA's packages put it when they tell the loader nothing.
const NAMES: [&str; 3] = ["libcufile.so.0", "libcufile.so", "/usr/local/cuda/lib64/libcufile.so.0"];
/// Longest that opening may take: versions with a topology to look at took up to seconds, on machines with many devices.
const OPEN_WAIT: Duration = Duration::from_secs(15);
/// Longest that closing is waited for, when the last user goes: the original took up to two seconds with `nvidia-fs`.
const CLOSE_WAIT: Duration = Duration::from_secs(3);
/// What versions from [`READS_MODULES`] on (seen up to 1.20) read until its end, and for ever where it does not open.
const MODULES: &str = "/proc/modules";
const READS_MODULES: CuFileVersion = CuFileVersion { major: 1, minor: 16 };

/// Which file is taken.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum CuFileSource {
    /// What the loader finds by the library's usual names, the first that is not ours.
    #[default]
    Search,
    /// This one and no other.
    File(PathBuf),
}

/// Version of the library, as in cuFile *1*.*20*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CuFileVersion {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
}

impl fmt::Display for CuFileVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why there is no such library to use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CuFileRefusal {
    /// No file of that name.
    NotFound {
        /// What was asked for.
        asked: String,
    },
    /// There is a file, and the loader cannot load it.
    Broken {
        /// The loader's sentence.
        text: String,
    },
    /// It is Straightway's own.
    Ours {
        /// Which file, or where it stands.
        at: String,
    },
    /// Functions that we need are not in it.
    SymbolsMissing {
        /// The names.
        names: Vec<&'static str>,
    },
    /// It would not end: it reads a file of the kernel's that is not there.
    NoModules,
    /// It would not open.
    NotOpened {
        /// `CUfileOpError`.
        code: i32,
        /// The GPU driver's number, if that is what failed; else 0.
        driver: u32,
    },
    /// It did not come back.
    Unanswered {
        /// From which function.
        call: &'static str,
        /// In how many milliseconds; 0 if the system gave no thread to call it on.
        waited_ms: u64,
    },
    /// An earlier fact is missing, so this one was not asked for.
    NotAsked,
}

impl From<Unanswered> for CuFileRefusal {
    fn from(unanswered: Unanswered) -> Self {
        let waited_ms = u64::try_from(unanswered.waited.as_millis()).unwrap_or(u64::MAX);
        Self::Unanswered { call: unanswered.call, waited_ms }
    }
}

impl CuFileRefusal {
    /// What to do about it; empty if nothing is known.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => {
                "install NVIDIA's libcufile (package libcufile, or nvidia-cufile from PyPI), or name the file with the engine option cufile_library=FILE"
            }
            Self::Broken { .. } => {
                "reinstall the library, or name another file with the engine option cufile_library=FILE"
            }
            Self::Ours { .. } => {
                "name NVIDIA's own file with the engine option cufile_library=FILE, and take Straightway's libcufile out of LD_PRELOAD"
            }
            Self::SymbolsMissing { .. } => "install a newer libcufile",
            Self::NoModules => {
                "run a kernel with loadable modules: the library reads /proc/modules and never ends without it"
            }
            Self::NotOpened { code, .. } => table::remedy_of(*code),
            Self::Unanswered { .. } => "take another route, and see the library's log (CUFILE_LOGFILE_PATH)",
            Self::NotAsked => "",
        }
    }

    /// As an error of the engine, at `cufile`.
    pub fn into_error(self) -> Error {
        let (kind, code) = match &self {
            Self::NotOpened { code, .. } => (table::kind_of(*code), *code),
            Self::NotFound { .. } => (ErrorKind::NotFound, 0),
            Self::Unanswered { .. } => (ErrorKind::DeadlineExceeded, 0),
            _ => (ErrorKind::Unsupported, 0),
        };
        let remedy = self.remedy();
        Error::new(kind, Verb::Setup).at(CUFILE).with_code(code).detail(self.to_string()).remedy(remedy)
    }
}

impl fmt::Display for CuFileRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { asked } => write!(f, "no {asked}"),
            Self::Broken { text } => write!(f, "the library cannot be loaded: {text}"),
            Self::Ours { at } => write!(f, "{at} is Straightway's own libcufile, which this engine is behind"),
            Self::SymbolsMissing { names } => write!(f, "functions are missing: {}", names.join(", ")),
            Self::NoModules => write!(f, "there is no {MODULES}"),
            Self::NotOpened { code, driver: 0 } => write!(f, "it does not open: {}", table::name_of(*code)),
            Self::NotOpened { code, driver } => {
                write!(f, "it does not open: {} (the GPU driver said {driver})", table::name_of(*code))
            }
            Self::Unanswered { call, waited_ms: 0 } => write!(f, "{call} could not be called on a thread of its own"),
            Self::Unanswered { call, waited_ms } => write!(f, "{call} did not come back within {waited_ms} ms"),
            Self::NotAsked => f.write_str("not asked, because an earlier step failed"),
        }
    }
}

impl std::error::Error for CuFileRefusal {}

/// The facts, in the order in which they are found. "Self-test passed" is another one, told by [`CuFile::self_test`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CuFileReport {
    /// Found: the file, as it was asked for.
    pub library: Result<String, CuFileRefusal>,
    /// Symbols present: how many are needed and there.
    pub symbols: Result<usize, CuFileRefusal>,
    /// Its version; `None` where it cannot tell (before 1.8).
    pub version: Result<Option<CuFileVersion>, CuFileRefusal>,
    /// Opened: version of the kernel module `nvidia-fs` that it found, major and minor; (0, 0) without one.
    pub driver: Result<(u32, u32), CuFileRefusal>,
}

impl CuFileReport {
    /// The first fact that is missing; [`CuFileRefusal::NotAsked`] if none is.
    pub fn refusal(&self) -> CuFileRefusal {
        let facts = [
            self.library.as_ref().err(),
            self.symbols.as_ref().err(),
            self.version.as_ref().err(),
            self.driver.as_ref().err(),
        ];
        facts.into_iter().flatten().next().cloned().unwrap_or(CuFileRefusal::NotAsked)
    }
}

/// The library, opened. Copies share it; the last one, and the last file registered with it, closes it.
///
/// *Thread*: any. In a child of a fork everything is refused, and nothing is called.
#[derive(Clone)]
pub struct CuFile(pub(super) Arc<Opened>);

/// See [`CuFile`].
pub(super) struct Opened {
    pub(super) table: Table,
    pub(super) files: Files,
    /// Of the GPUs whose memory was named, so that the library finds one in the calling thread.
    pub(super) contexts: Mutex<BTreeMap<u16, Context>>,
    /// What each code means, made once: a failed I/O lends it.
    pub(super) errors: Vec<Error>,
    pub(super) fork: ForkMark,
    /// It did not come back from a call that it was waited for.
    pub(super) silent: Arc<AtomicBool>,
}

impl CuFile {
    /// Loads and opens it, and tells what was found up to the first fact that is missing. Not remembered: a second call opens once
    /// more, which the library counts.
    ///
    /// *Blocking*: 60 to 400 ms on a small machine (versions 1.16 to 1.20 without a GPU), at most 30 seconds.
    pub fn load(source: &CuFileSource) -> (Option<Self>, CuFileReport) {
        let mut report = CuFileReport {
            library: Err(CuFileRefusal::NotAsked),
            symbols: Err(CuFileRefusal::NotAsked),
            version: Err(CuFileRefusal::NotAsked),
            driver: Err(CuFileRefusal::NotAsked),
        };
        let opened = Self::load_into(source, &mut report);
        (opened, report)
    }

    fn load_into(source: &CuFileSource, report: &mut CuFileReport) -> Option<Self> {
        let (library, path) = keep(found(source), &mut report.library)?;
        report.library = Ok(path);
        let find = |name: &str| symbol(&library, name);
        let table =
            keep(Table::look_up(&find).map_err(|names| CuFileRefusal::SymbolsMissing { names }), &mut report.symbols)?;
        report.symbols = Ok(Table::REQUIRED);
        // It has threads and exit handlers of its own: unloading it would take their code away.
        let _never_unloaded = library.into_raw();
        let version = keep(version(table), &mut report.version)?;
        report.version = Ok(version);
        let properties = keep(check_modules(version).and_then(|()| open(table)), &mut report.driver)?;
        report.driver = Ok((properties.nvfs_major, properties.nvfs_minor));
        Some(Self(Arc::new(Opened {
            table,
            files: Files::default(),
            contexts: Mutex::default(),
            errors: table::KNOWN.iter().map(error_of).collect(),
            fork: ForkMark::new(),
            silent: Arc::default(),
        })))
    }
}

/// Puts a refusal where it is told.
fn keep<T, F>(found: Result<T, CuFileRefusal>, told: &mut Result<F, CuFileRefusal>) -> Option<T> {
    match found {
        Ok(value) => Some(value),
        Err(refusal) => {
            *told = Err(refusal);
            None
        }
    }
}

fn error_of(known: &table::Known) -> Error {
    Error::new(known.kind, Verb::Read)
        .at(CUFILE)
        .with_code(known.code)
        .detail(format!("the vendor's library answered {}", known.name))
        .remedy(known.remedy)
}

/// The first of the names that can be loaded and is not ours.
fn found(source: &CuFileSource) -> Result<(Library, String), CuFileRefusal> {
    if symbol(&this_program()?, OUR_MARK).is_some() {
        // NVIDIA's own calls of itself would come to it.
        return Err(CuFileRefusal::Ours { at: "in front of all libraries of this process (LD_PRELOAD)".to_owned() });
    }
    let names: Vec<String> = match source {
        CuFileSource::Search => NAMES.map(str::to_owned).into(),
        CuFileSource::File(path) => vec![path.to_string_lossy().into_owned()],
    };
    first(names, |name| load(name).and_then(|library| not_ours(&|mark| symbol(&library, mark), name).map(|()| library)))
}

/// The first that `load` takes. One that is not there, or is ours, does not end the search; what is there and cannot be used does.
fn first<T>(names: Vec<String>, load: impl Fn(&str) -> Result<T, CuFileRefusal>) -> Result<(T, String), CuFileRefusal> {
    let mut why = CuFileRefusal::NotAsked;
    for name in names {
        match load(&name) {
            Ok(library) => return Ok((library, name)),
            // Ours says more than nothing.
            Err(refusal @ CuFileRefusal::Ours { .. }) => why = refusal,
            Err(refusal @ CuFileRefusal::NotFound { .. }) => {
                if why == CuFileRefusal::NotAsked {
                    why = refusal;
                }
            }
            Err(refusal) => return Err(refusal),
        }
    }
    Err(why)
}

/// What this process has loaded.
///
/// # Errors
/// `Broken` where nothing can be loaded at all: a program that is linked statically.
fn this_program() -> Result<Library, CuFileRefusal> {
    // SAFETY: loads nothing, so that no initialiser runs. (`Library::this` panics in a program that is linked statically.)
    let this = unsafe { Library::open(None::<&str>, RTLD_NOW | RTLD_LOCAL) };
    this.map_err(|error| {
        let text = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        CuFileRefusal::Broken { text: format!("this program can load no library: {text}") }
    })
}

fn load(name: &str) -> Result<Library, CuFileRefusal> {
    // SAFETY: runs the initialisers of a library that the user or the loader's path names; they are made for that.
    let loaded = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) };
    loaded.map_err(|error| {
        // libloading keeps the loader's sentence in the source of its error.
        let text = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        // As in `probe.rs`: another name in the sentence is a dependency, and then the file itself is there.
        let absent = text.starts_with(name) && (text.contains("No such file") || text.contains("not found"));
        if absent { CuFileRefusal::NotFound { asked: name.to_owned() } } else { CuFileRefusal::Broken { text } }
    })
}

/// # Errors
/// `Ours`.
fn not_ours(find: Find<'_>, at: &str) -> Result<(), CuFileRefusal> {
    if find(OUR_MARK).is_some() { Err(CuFileRefusal::Ours { at: at.to_owned() }) } else { Ok(()) }
}

fn symbol(library: &Library, name: &str) -> Option<*mut c_void> {
    // SAFETY: only the address is taken here; its type is given in the table.
    let found = unsafe { library.get::<*mut c_void>(name.as_bytes()) };
    found.ok().map(|symbol| *symbol).filter(|address| !address.is_null())
}

/// CUDA 12.2 and later, "cuFileGetVersion": 1000 * major + 10 * minor.
fn version(table: Table) -> Result<Option<CuFileVersion>, CuFileRefusal> {
    let Some(ask) = table.version else { return Ok(None) };
    let (status, number) = within("cuFileGetVersion", OPEN_WAIT, move || {
        let mut number: c_int = 0;
        // SAFETY: a checked symbol and a writable result.
        let status = unsafe { ask(&raw mut number) };
        (status, number)
    })?;
    let number = if status.code == 0 { u32::try_from(number).ok() } else { None };
    Ok(number.map(|number| CuFileVersion { major: number / 1000, minor: number % 1000 / 10 }))
}

/// # Errors
/// `NoModules`, for a version that would spin. The thread that opens it could be left behind, but it would keep a core busy for ever.
fn check_modules(version: Option<CuFileVersion>) -> Result<(), CuFileRefusal> {
    if version.is_none_or(|version| version < READS_MODULES) {
        return Ok(());
    }
    // Opened and not looked up: what matters is whether the library can read it.
    File::open(MODULES).map(drop).map_err(|_| CuFileRefusal::NoModules)
}

fn open(table: Table) -> Result<Properties, CuFileRefusal> {
    let (status, properties) = within("cuFileDriverOpen", OPEN_WAIT, move || {
        // SAFETY: a checked symbol without arguments.
        let status = unsafe { (table.driver_open)() };
        let mut properties = Properties::default();
        if status.code == 0 {
            // SAFETY: a checked symbol and a writable structure of the library's own layout. Where it fails (1.16 without a GPU) all
            // of it stays zero, which says "no nvidia-fs".
            let _told = unsafe { (table.properties)(&raw mut properties) };
        }
        (status, properties)
    })?;
    match status.code {
        0 => Ok(properties),
        code => Err(CuFileRefusal::NotOpened { code: i32::try_from(code).unwrap_or(i32::MAX), driver: status.driver }),
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // A thread may still be inside a call that did not come back, with a file: it stays open for that.
        if self.fork.is_child() || self.silent.load(Ordering::Relaxed) {
            return;
        }
        let table = self.table;
        // SAFETY: a checked symbol without arguments; balances the open. No file is registered, as each keeps this value alive, and
        // nobody is inside another call: whoever calls waits for its end, or `silent` is set.
        let closed = within("cuFileDriverClose_v2", CLOSE_WAIT, move || unsafe { (table.driver_close)() });
        if let Ok(status) = closed
            && status.code != 0
        {
            tracing::warn!(code = status.code, "the vendor's library did not close");
        }
    }
}

impl fmt::Debug for CuFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CuFile({} files)", self.0.files.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_library_is_told_by_a_name_that_only_it_has() {
        let has = |names: &'static [&'static str]| {
            move |asked: &str| names.contains(&asked).then(std::ptr::dangling_mut::<c_void>)
        };
        let ours = not_ours(&has(&["cuFileRead", "sw_cufile_last_path"]), "libcufile.so.0");
        assert_eq!(ours, Err(CuFileRefusal::Ours { at: "libcufile.so.0".to_owned() }));
        assert_eq!(not_ours(&has(&["cuFileRead"]), "libcufile.so.0"), Ok(()));
    }

    #[test]
    fn a_search_goes_on_behind_our_own_library() {
        let ours = |name: &str| CuFileRefusal::Ours { at: name.to_owned() };
        let absent = |name: &str| CuFileRefusal::NotFound { asked: name.to_owned() };
        let names = || NAMES.map(str::to_owned).to_vec();
        let found = first(names(), |name| if name.starts_with('/') { Ok(7) } else { Err(ours(name)) });
        assert_eq!(found, Ok((7, NAMES[2].to_owned())));
        let none = first(names(), |name| Err::<(), _>(if name == NAMES[0] { ours(name) } else { absent(name) }));
        assert_eq!(none, Err(ours(NAMES[0])));
        assert_eq!(first(names(), |name| Err::<(), _>(absent(name))), Err(absent(NAMES[0])));
        let broken = CuFileRefusal::Broken { text: String::new() };
        assert_eq!(first(names(), |_| Err::<(), _>(broken.clone())), Err(broken));
    }

    #[test]
    fn a_refusal_names_its_code_and_what_to_do() {
        let error = CuFileRefusal::NotOpened { code: 5033, driver: 0 }.into_error();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Unsupported, 5033));
        assert!(error.to_string().contains("NVFS_SETUP_ERROR") && error.remedy_text().contains("1.16"), "{error}");
        let unknown = CuFileRefusal::NotOpened { code: 5999, driver: 3 }.into_error();
        assert_eq!((unknown.kind(), unknown.code()), (ErrorKind::Io, 5999));
    }
}
