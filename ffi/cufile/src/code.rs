//! Error codes of cuFile, and what of ours becomes which.
//!
//! Numbers and names: field note "peers", 5.5, confirmed by the headers of 1.11 to 1.20 ("toolchain study", 2.3).

use straightway::{Error, ErrorKind, Verb};

macro_rules! codes {
    ($($name:ident = $number:literal;)*) => {
        $(
            #[doc = concat!("`CU_FILE_", stringify!($name), "`.")]
            pub const $name: i32 = $number;
        )*

        /// Name of a code, such as `INVALID_VALUE`; a number that is none is `UNKNOWN`.
        pub fn name(code: i32) -> &'static str {
            match code {
                $($number => stringify!($name),)*
                _ => "UNKNOWN",
            }
        }
    };
}

codes! {
    SUCCESS = 0;
    DRIVER_NOT_INITIALIZED = 5001;
    DRIVER_INVALID_PROPS = 5002;
    DRIVER_UNSUPPORTED_LIMIT = 5003;
    DRIVER_CLOSING = 5006;
    PLATFORM_NOT_SUPPORTED = 5007;
    IO_NOT_SUPPORTED = 5008;
    DEVICE_NOT_SUPPORTED = 5009;
    CUDA_DRIVER_ERROR = 5011;
    CUDA_POINTER_INVALID = 5012;
    INVALID_MAPPING_RANGE = 5017;
    INVALID_FILE_TYPE = 5018;
    INVALID_FILE_OPEN_FLAG = 5019;
    INVALID_VALUE = 5022;
    MEMORY_ALREADY_REGISTERED = 5023;
    MEMORY_NOT_REGISTERED = 5024;
    PERMISSION_DENIED = 5025;
    DRIVER_ALREADY_OPEN = 5026;
    HANDLE_NOT_REGISTERED = 5027;
    HANDLE_ALREADY_REGISTERED = 5028;
    DEVICE_NOT_FOUND = 5029;
    INTERNAL_ERROR = 5030;
    GETNEWFD_FAILED = 5031;
    IO_DISABLED = 5034;
    BATCH_FULL = 5037;
    ASYNC_NOT_SUPPORTED = 5038;
    INTERNAL_BATCH_SUBMIT_ERROR = 5040;
    INTERNAL_BATCH_CANCEL_ERROR = 5042;
    NOMEM_ERROR = 5043;
    IO_ERROR = 5044;
    INTERNAL_BUF_REGISTER_ERROR = 5045;
    INVALID_CONTEXT_ERROR = 5047;
}

/// `CUDA_ERROR_INVALID_VALUE`, for a driver's refusal of which no better number is known.
pub const CUDA_INVALID_VALUE: i32 = 1;

/// Largest number that Linux uses for an errno (`include/uapi/asm-generic/errno.h` ends at 133).
const ERRNO_MAX: i32 = 133;

/// What went wrong in a call.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// One of the codes.
    pub(crate) code: i32,
    /// The driver's own number, with `CUDA_DRIVER_ERROR`.
    pub(crate) cuda: i32,
    /// The system's number where it is the system that refused bytes; 0 otherwise.
    pub(crate) errno: i32,
    /// One line.
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(code: i32, text: impl Into<String>) -> Self {
        Self { code, cuda: 0, errno: 0, text: text.into() }
    }

    /// A refusal of the system.
    pub(crate) fn system(errno: i32, text: impl Into<String>) -> Self {
        Self { errno, ..Self::new(IO_ERROR, text) }
    }

    /// A wrong argument.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(INVALID_VALUE, text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = code_of(error.kind());
        // Above the numbers of Linux are those of devices and of the driver, which share the field.
        let system = (1..=ERRNO_MAX).contains(&error.code()) && matches!(error.verb(), Verb::Read | Verb::Write);
        let errno = match error.kind() {
            ErrorKind::PolicyUnmet | ErrorKind::ShortData | ErrorKind::Closed | ErrorKind::Forked => 0,
            ErrorKind::NoSpace if !system => libc::ENOSPC,
            _ if system => error.code(),
            _ => 0,
        };
        let cuda = if code == CUDA_DRIVER_ERROR { error.code().max(CUDA_INVALID_VALUE) } else { 0 };
        Self { code, cuda, errno, text: error.to_string() }
    }
}

fn code_of(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::PermissionDenied => PERMISSION_DENIED,
        ErrorKind::WrongKind => INVALID_FILE_TYPE,
        ErrorKind::NotRegistered => CUDA_POINTER_INVALID,
        ErrorKind::OutOfRange => INVALID_MAPPING_RANGE,
        ErrorKind::NoDevice => DEVICE_NOT_FOUND,
        ErrorKind::PolicyUnmet | ErrorKind::Unsupported => IO_NOT_SUPPORTED,
        ErrorKind::Closed => DRIVER_CLOSING,
        ErrorKind::Forked => DRIVER_NOT_INITIALIZED,
        ErrorKind::ResourceLimit => NOMEM_ERROR,
        ErrorKind::ApiMisuse
        | ErrorKind::BadUri
        | ErrorKind::NotFound
        | ErrorKind::TooLarge
        | ErrorKind::AlreadyExists => INVALID_VALUE,
        ErrorKind::ShortData
        | ErrorKind::Changed
        | ErrorKind::Io
        | ErrorKind::NoSpace
        | ErrorKind::Busy
        | ErrorKind::DeadlineExceeded
        | ErrorKind::Cancelled
        | ErrorKind::ChecksumMismatch
        | ErrorKind::InUse
        | ErrorKind::BadFormat => IO_ERROR,
        ErrorKind::Protocol | ErrorKind::Poisoned => INTERNAL_ERROR,
        _ => INTERNAL_ERROR,
    }
}
