//! The functions of a libcufile that we call, looked up once and checked, with the layouts and numbers that they use.
//!
//! Source of all of it: NVIDIA GPUDirect Storage, "cuFile API Reference Guide", and the interface file of `cuda-python`
//! (`cycufile.pxd`, Apache-2.0). Written from those; nothing is copied from NVIDIA's header.
// UNSAFETY: function pointers of a library loaded at run time get their types here and nowhere else.
#![expect(unsafe_code, reason = "symbols of a library loaded at run time")]

use std::ffi::{c_int, c_void};
use std::mem::{offset_of, size_of};

use sw_engine::ErrorKind;

/// What most functions give back, by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Status {
    /// `CUfileOpError`: 0, or 5001 and above.
    pub(crate) code: u32,
    /// The GPU driver's number, where `code` says that it failed (5011).
    pub(crate) driver: u32,
}

/// `CUfileHandle_t`: a name that the library gives a registered file.
pub(crate) type Handle = *mut c_void;

/// `CUfileDescr_t` with a descriptor in its union.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Descr {
    pub(crate) kind: u32,
    pub(crate) handle: DescrHandle,
    pub(crate) file_system: *const c_void,
}

/// The union of a descriptor and a pointer, as far as we use it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(crate) struct DescrHandle {
    pub(crate) fd: c_int,
}

/// `CU_FILE_HANDLE_TYPE_OPAQUE_FD`.
pub(crate) const OPAQUE_FD: u32 = 1;

/// `CUfileDrvProps_t`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Properties {
    /// Version of the kernel module `nvidia-fs`; 0.0 without one.
    pub(crate) nvfs_major: u32,
    pub(crate) nvfs_minor: u32,
    pub(crate) poll_threshold: u64,
    pub(crate) max_direct_io: u64,
    pub(crate) status_flags: u32,
    pub(crate) control_flags: u32,
    pub(crate) feature_flags: u32,
    pub(crate) max_device_cache: u32,
    pub(crate) per_buffer_cache: u32,
    pub(crate) max_pinned: u32,
    pub(crate) max_batch: u32,
    pub(crate) max_batch_timeout_ms: u32,
}

// The sizes of x86-64 and aarch64, 1.11 to 1.20, as `pahole` prints them.
const _: () = assert!(size_of::<Status>() == 8 && size_of::<Descr>() == 24 && size_of::<Properties>() == 56);
const _: () = assert!(offset_of!(Descr, handle) == 8 && offset_of!(Descr, file_system) == 16);
const _: () = assert!(offset_of!(Properties, status_flags) == 24 && offset_of!(Properties, max_batch_timeout_ms) == 52);

type Plain = unsafe extern "C" fn() -> Status;
type Register = unsafe extern "C" fn(*mut Handle, *mut Descr) -> Status;
type Deregister = unsafe extern "C" fn(Handle);
type Read = unsafe extern "C" fn(Handle, *mut c_void, usize, i64, i64) -> isize;
type Write = unsafe extern "C" fn(Handle, *const c_void, usize, i64, i64) -> isize;
type GetProperties = unsafe extern "C" fn(*mut Properties) -> Status;
type GetVersion = unsafe extern "C" fn(*mut c_int) -> Status;

/// Pointers to the functions.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    pub(crate) driver_open: Plain,
    pub(crate) driver_close: Plain,
    pub(crate) properties: GetProperties,
    pub(crate) register: Register,
    pub(crate) deregister: Deregister,
    pub(crate) read: Read,
    pub(crate) write: Write,
    /// Since 1.8.
    pub(crate) version: Option<GetVersion>,
}

/// A name that our own library has and no other: programs ask it which way their bytes went.
pub(crate) const OUR_MARK: &str = "sw_cufile_last_path";

/// Looks a name up in the library.
pub(crate) type Find<'a> = &'a dyn Fn(&str) -> Option<*mut c_void>;

macro_rules! typed {
    ($find:ident, $missing:ident, $name:literal, $kind:ty) => {
        $find($name)
            // SAFETY: the library exports this name with this signature (see the module's sources), and is never unloaded.
            .map(|at| unsafe { std::mem::transmute::<*mut c_void, $kind>(at) })
            .or_else(|| {
                $missing.push($name);
                None
            })
    };
}

impl Table {
    /// Functions that must be there.
    pub(crate) const REQUIRED: usize = 7;

    /// Looks everything up.
    ///
    /// # Errors
    /// The names that are not there.
    pub(crate) fn look_up(find: Find<'_>) -> Result<Self, Vec<&'static str>> {
        let mut missing = Vec::new();
        let driver_open = typed!(find, missing, "cuFileDriverOpen", Plain);
        let driver_close = typed!(find, missing, "cuFileDriverClose_v2", Plain);
        let properties = typed!(find, missing, "cuFileDriverGetProperties", GetProperties);
        let register = typed!(find, missing, "cuFileHandleRegister", Register);
        let deregister = typed!(find, missing, "cuFileHandleDeregister", Deregister);
        let read = typed!(find, missing, "cuFileRead", Read);
        let write = typed!(find, missing, "cuFileWrite", Write);
        let mut not_needed = Vec::new();
        let version = typed!(find, not_needed, "cuFileGetVersion", GetVersion);
        let all = (driver_open, driver_close, properties, register, deregister, read, write);
        let (
            Some(driver_open),
            Some(driver_close),
            Some(properties),
            Some(register),
            Some(deregister),
            Some(read),
            Some(write),
        ) = all
        else {
            return Err(missing);
        };
        Ok(Self { driver_open, driver_close, properties, register, deregister, read, write, version })
    }
}

/// What is known of one `CUfileOpError`.
pub(crate) struct Known {
    pub(crate) code: i32,
    /// Its name without `CU_FILE_`.
    pub(crate) name: &'static str,
    pub(crate) kind: ErrorKind,
    /// Empty if nothing is known.
    pub(crate) remedy: &'static str,
}

const fn known(code: i32, name: &'static str, kind: ErrorKind, remedy: &'static str) -> Known {
    Known { code, name, kind, remedy }
}

const SETUP: &str = "see the library's log (CUFILE_LOGFILE_PATH) and its own gdscheck";
const RECORD: &str = "the library takes a file system that udev has a record of (/run/udev/data): run udev, or mount /run/udev into the container";
const GPU: &str = "check the GPU driver with `straightway doctor`";

/// Codes that opening, registering and moving bytes can give. Others keep their number.
pub(crate) const KNOWN: &[Known] = &[
    known(5001, "DRIVER_NOT_INITIALIZED", ErrorKind::Closed, SETUP),
    known(
        5002,
        "DRIVER_INVALID_PROPS",
        ErrorKind::ApiMisuse,
        "check the library's settings (CUFILE_ENV_PATH_JSON, /etc/cufile.json)",
    ),
    known(5003, "DRIVER_UNSUPPORTED_LIMIT", ErrorKind::Unsupported, SETUP),
    known(5004, "DRIVER_VERSION_MISMATCH", ErrorKind::Unsupported, "install the nvidia-fs that belongs to the library"),
    known(5005, "DRIVER_VERSION_READ_ERROR", ErrorKind::Unsupported, SETUP),
    known(5006, "DRIVER_CLOSING", ErrorKind::Closed, ""),
    known(5007, "PLATFORM_NOT_SUPPORTED", ErrorKind::Unsupported, SETUP),
    known(
        5008,
        "IO_NOT_SUPPORTED",
        ErrorKind::Unsupported,
        "let the library use its compatibility mode, or take another route",
    ),
    known(
        5009,
        "DEVICE_NOT_SUPPORTED",
        ErrorKind::Unsupported,
        "take another route: the library does not know the device",
    ),
    known(5010, "NVFS_DRIVER_ERROR", ErrorKind::Io, "see the kernel log for nvidia-fs"),
    known(5011, "CUDA_DRIVER_ERROR", ErrorKind::NoDevice, GPU),
    known(5012, "CUDA_POINTER_INVALID", ErrorKind::NotRegistered, "pass memory that was allocated and not freed"),
    known(5013, "CUDA_MEMORY_TYPE_INVALID", ErrorKind::Unsupported, "pass memory of the host or of a GPU"),
    known(5014, "CUDA_POINTER_RANGE_ERROR", ErrorKind::OutOfRange, ""),
    known(5015, "CUDA_CONTEXT_MISMATCH", ErrorKind::ApiMisuse, ""),
    known(5016, "INVALID_MAPPING_SIZE", ErrorKind::OutOfRange, ""),
    known(5017, "INVALID_MAPPING_RANGE", ErrorKind::OutOfRange, ""),
    known(5018, "INVALID_FILE_TYPE", ErrorKind::WrongKind, "the library takes files and block devices"),
    known(
        5019,
        "INVALID_FILE_OPEN_FLAG",
        ErrorKind::WrongKind,
        "open the file without O_APPEND, for what is done with it",
    ),
    known(5020, "DIO_NOT_SET", ErrorKind::Unsupported, "use a file system that has O_DIRECT"),
    known(5022, "INVALID_VALUE", ErrorKind::ApiMisuse, ""),
    known(5025, "PERMISSION_DENIED", ErrorKind::PermissionDenied, ""),
    known(5027, "HANDLE_NOT_REGISTERED", ErrorKind::Unsupported, RECORD),
    known(5028, "HANDLE_ALREADY_REGISTERED", ErrorKind::InUse, ""),
    known(5029, "DEVICE_NOT_FOUND", ErrorKind::NoDevice, RECORD),
    known(5030, "INTERNAL_ERROR", ErrorKind::Io, SETUP),
    known(5031, "GETNEWFD_FAILED", ErrorKind::ResourceLimit, "raise the limit of open files (ulimit -n)"),
    known(
        5033,
        "NVFS_SETUP_ERROR",
        ErrorKind::Unsupported,
        "install a GPU driver, or version 1.16 or later of the library, which starts without one",
    ),
    known(5034, "IO_DISABLED", ErrorKind::Unsupported, "the file was opened for something else"),
    known(5036, "GPU_MEMORY_PINNING_FAILED", ErrorKind::ResourceLimit, "register less memory: BAR1 is full"),
    known(5043, "NOMEM_ERROR", ErrorKind::ResourceLimit, "free memory"),
    known(5044, "IO_ERROR", ErrorKind::Io, "see the kernel log for the device"),
];

/// Whether a number is one of the library's, and not of `errno(3)`.
pub(crate) fn is_code(number: i32) -> bool {
    (5000..7000).contains(&number)
}

pub(crate) fn kind_of(code: i32) -> ErrorKind {
    KNOWN.iter().find(|known| known.code == code).map_or(ErrorKind::Io, |known| known.kind)
}

/// The name, or "an unknown code".
pub(crate) fn name_of(code: i32) -> &'static str {
    KNOWN.iter().find(|known| known.code == code).map_or("an unknown code", |known| known.name)
}

pub(crate) fn remedy_of(code: i32) -> &'static str {
    KNOWN.iter().find(|known| known.code == code).map_or(SETUP, |known| known.remedy)
}
