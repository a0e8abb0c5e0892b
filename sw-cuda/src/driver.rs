//! The driver of this process: loaded once, checked, never unloaded.
// UNSAFETY: loading a library and calling through the checked table.
#![expect(unsafe_code, reason = "loads the driver and calls it")]

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use cudarc::driver::sys;
use sw_engine::ErrorKind;

use crate::device::Device;
use crate::error::{CudaError, SUCCESS};
use crate::probe::{self, ProbeReport, Refusal};
use crate::table::{Code, Table};

/// The oldest driver interface that every required function is in: 11.4 (`cuDeviceGetUuid_v2`).
pub const OLDEST: DriverVersion = DriverVersion { major: 11, minor: 4 };

/// Devices that a [`sw_mem::DeviceId`] can name and that are asked for at most.
const DEVICES_MAX: i32 = 1024;

/// Version of the driver's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriverVersion {
    /// As in CUDA *12*.8.
    pub major: u32,
    /// As in CUDA 12.*8*.
    pub minor: u32,
}

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The loaded driver. Copies are cheap: there is one in the process.
#[derive(Clone, Copy)]
pub struct Driver(&'static Loaded);

struct Loaded {
    table: Table,
    path: String,
    version: DriverVersion,
    device_count: u16,
}

static DRIVER: OnceLock<Result<Loaded, Box<ProbeReport>>> = OnceLock::new();
static LOADED_BY: AtomicU32 = AtomicU32::new(0);

/// The process that loaded the driver; a child of it cannot use it.
pub(crate) fn loaded_by() -> u32 {
    LOADED_BY.load(Ordering::Relaxed)
}

/// How file names of the driver begin: `libcuda.so.1`, `libcuda.so`.
const FILE_NAME: &[u8] = b"libcuda.so";

/// What is asked of the loader.
struct Asked {
    /// Libraries that were ever loaded, when it was asked last.
    adds_before: u64,
    adds: u64,
    found: bool,
}

/// Whether something in this process has loaded the driver. Nothing is loaded or started by asking, and no file is looked for:
/// a tenth of a microsecond as long as nothing was loaded since the last time.
pub fn is_in_process() -> bool {
    static FOUND: AtomicBool = AtomicBool::new(false);
    static ADDS: AtomicU64 = AtomicU64::new(0);
    // It is never unloaded.
    if FOUND.load(Ordering::Relaxed) {
        return true;
    }
    let mut asked = Asked { adds_before: ADDS.load(Ordering::Relaxed), adds: 0, found: false };
    // SAFETY: the callback takes what it is given here, during this call.
    unsafe { libc::dl_iterate_phdr(Some(look_at), (&raw mut asked).cast()) };
    if asked.found {
        FOUND.store(true, Ordering::Relaxed);
    }
    ADDS.store(asked.adds, Ordering::Relaxed);
    asked.found
}

/// Looks at one library; not 0: at no other.
extern "C" fn look_at(info: *mut libc::dl_phdr_info, _size: usize, asked: *mut c_void) -> libc::c_int {
    let asked = asked.cast::<Asked>();
    // SAFETY: the loader's own structure, alive during the callback (dl_iterate_phdr(3)).
    let info = unsafe { info.read() };
    // SAFETY: the structure of `is_in_process`, which nobody else looks at meanwhile.
    let asked = unsafe { &mut *asked };
    asked.adds = info.dlpi_adds;
    if asked.adds_before == info.dlpi_adds {
        return 1;
    }
    if info.dlpi_name.is_null() {
        return 0;
    }
    // SAFETY: not null; the loader's zero-terminated text.
    let path = unsafe { CStr::from_ptr(info.dlpi_name) }.to_bytes();
    let file = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    asked.found = file.starts_with(FILE_NAME);
    libc::c_int::from(asked.found)
}

impl Driver {
    /// Loads and initialises the driver, the first time; later calls give the same answer.
    ///
    /// *Blocking*: the first call, for as long as the driver takes to start (up to seconds on machines with many GPUs;
    /// about a millisecond where there is no driver).
    ///
    /// # Errors
    /// The first fact that is missing.
    pub fn load() -> Result<Self, Refusal> {
        match DRIVER.get_or_init(open) {
            Ok(loaded) => Ok(Self(loaded)),
            Err(report) => Err(report.refusal()),
        }
    }

    /// What was found, fact by fact; never fails and never panics.
    pub fn probe() -> ProbeReport {
        match DRIVER.get_or_init(open) {
            Ok(loaded) => ProbeReport {
                library: Ok(loaded.path.clone()),
                symbols: Ok(Table::REQUIRED.len()),
                version: Ok(loaded.version),
                devices: Ok(loaded.device_count),
            },
            Err(report) => (**report).clone(),
        }
    }

    /// Version of its interface.
    pub fn version(self) -> DriverVersion {
        self.0.version
    }

    /// The file it was loaded from.
    pub fn path(self) -> &'static str {
        &self.0.path
    }

    /// Number of devices that this process may use.
    pub fn device_count(self) -> u16 {
        self.0.device_count
    }

    /// Device `ordinal`, counted from 0 as the driver counts (`CUDA_VISIBLE_DEVICES` applies).
    ///
    /// # Errors
    /// `NoDevice` if there are fewer.
    pub fn device(self, ordinal: u16) -> Result<Device, CudaError> {
        if ordinal >= self.device_count() {
            let remedy = "use a device ordinal that `straightway doctor` lists";
            return Err(CudaError::ours(ErrorKind::NoDevice, "cuDeviceGet", Some(ordinal), remedy));
        }
        Device::get(self, ordinal)
    }

    /// All devices.
    ///
    /// # Errors
    /// As [`Driver::device`].
    pub fn devices(self) -> Result<Vec<Device>, CudaError> {
        (0..self.device_count()).map(|ordinal| self.device(ordinal)).collect()
    }

    pub(crate) fn table(self) -> &'static Table {
        &self.0.table
    }

    /// `Err` for anything but success, with the driver's own name of the code.
    pub(crate) fn check(self, code: Code, call: &'static str, device: Option<u16>) -> Result<(), CudaError> {
        if code == SUCCESS { Ok(()) } else { Err(CudaError::new(code, self.error_name(code), call, device)) }
    }

    fn error_name(self, code: Code) -> String {
        name_in(&self.0.table, code)
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Driver({} {})", self.0.path, self.0.version)
    }
}

pub(crate) fn name_in(table: &Table, code: Code) -> String {
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: a checked symbol; the result is a writable pointer.
    let answer = unsafe { (table.cuGetErrorName)(code, &raw mut text) };
    if answer != SUCCESS || text.is_null() {
        return String::new();
    }
    // SAFETY: the driver answered success: a zero-terminated text that lives as long as the library.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The steps in order; the report says how far they went.
fn open() -> Result<Loaded, Box<ProbeReport>> {
    LOADED_BY.store(std::process::id(), Ordering::Relaxed);
    // SAFETY: loads and unloads the library once to see whether it is there; its initialisers are made for that.
    if !unsafe { sys::is_culib_present() } {
        return Err(ProbeReport::stopped_at_library(probe::why_not_loadable()));
    }
    // SAFETY: the library was there a moment ago. If it went away in between, cudarc panics; that is contained here.
    let library = std::panic::catch_unwind(|| unsafe { sys::culib() })
        .map_err(|_| ProbeReport::stopped_at_library(probe::why_not_loadable()))?;
    let find = |name: &str| {
        // SAFETY: only the address is taken here; its type is given in the table.
        let found = unsafe { library.get::<*mut c_void>(name.as_bytes()) };
        found.ok().map(|symbol| *symbol).filter(|address| !address.is_null())
    };
    let path = find("cuInit").map_or_else(|| "libcuda".to_owned(), file_of);
    let table = Table::look_up(&find).map_err(|missing| ProbeReport::stopped_at_symbols(path.clone(), missing))?;
    let version = version_of(&table);
    if version < OLDEST {
        return Err(ProbeReport::stopped_at_version(path, version));
    }
    let device_count =
        initialise(&table).map_err(|refusal| ProbeReport::stopped_at_devices(&path, version, refusal))?;
    tracing::info!(path, %version, devices = device_count, "cuda driver loaded");
    Ok(Loaded { table, path, version, device_count })
}

fn version_of(table: &Table) -> DriverVersion {
    let mut number = 0;
    // SAFETY: a checked symbol and a writable result; allowed before `cuInit`.
    let answer = unsafe { (table.cuDriverGetVersion)(&raw mut number) };
    let number = if answer == SUCCESS { u32::try_from(number).unwrap_or(0) } else { 0 };
    // CUDA Driver API, "cuDriverGetVersion": 1000 * major + 10 * minor.
    DriverVersion { major: number / 1000, minor: number % 1000 / 10 }
}

fn initialise(table: &Table) -> Result<u16, Refusal> {
    // SAFETY: a checked symbol; flags must be 0.
    let answer = unsafe { (table.cuInit)(0) };
    if answer != SUCCESS {
        return Err(Refusal::InitFailed(CudaError::new(answer, name_in(table, answer), "cuInit", None)));
    }
    let mut count = 0;
    // SAFETY: a checked symbol and a writable result.
    let answer = unsafe { (table.cuDeviceGetCount)(&raw mut count) };
    if answer != SUCCESS {
        return Err(Refusal::InitFailed(CudaError::new(answer, name_in(table, answer), "cuDeviceGetCount", None)));
    }
    match u16::try_from(count.clamp(0, DEVICES_MAX)) {
        Ok(0) | Err(_) => Err(Refusal::NoDevices),
        Ok(count) => Ok(count),
    }
}

/// The file that an address of a loaded library came from.
fn file_of(address: *mut c_void) -> String {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: any address may be asked about; the result is writable.
    let known = unsafe { libc::dladdr(address, &raw mut info) };
    if known == 0 || info.dli_fname.is_null() {
        return "libcuda".to_owned();
    }
    // SAFETY: the loader's own zero-terminated text, alive as long as the library.
    unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().into_owned()
}
