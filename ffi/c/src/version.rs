//! # Version and features
// UNSAFETY: exported names, and a structure that C callers fill.
#![expect(unsafe_code, reason = "exported names, and a structure that C callers fill")]

use crate::{
    edge::call,
    pointer::{Out, Str, versioned},
    status::SwStatus,
};

/// Number of this interface. It grows when something is added; nothing is taken away while the shared library has its name.
pub const SW_ABI_VERSION: u32 = 1;

/// What library it is.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SwVersion {
    /// Size of this structure in bytes, set by the caller.
    pub size: usize,
    /// Of the library.
    pub major: u32,
    /// Of the library.
    pub minor: u32,
    /// Of the library.
    pub patch: u32,
    /// Number of the interface that the library has; `SW_ABI_VERSION` is the one that the program was compiled for.
    pub abi: u32,
    /// The version of the library as text.
    pub text: Str,
}

versioned!(SwVersion, "sw_version", 32);

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

/// Names that `sw_feature` knows.
const FEATURES: &[&str] = &[
    "callback",
    "event-fd",
    "vectored",
    "submit",
    "checksum-crc32c",
    "checksum-crc64-nvme",
    "plan-json",
    "doctor-json",
    "log",
    "stream",
];

/// Tells the version of the library that runs, which may be newer than the header.
#[unsafe(no_mangle)]
pub extern "C" fn sw_version_get(version: Out<SwVersion>) -> SwStatus {
    call(|| {
        let mut parts = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse().unwrap_or_default());
        let mut part = || parts.next().unwrap_or_default();
        let text = std::ffi::CStr::from_bytes_until_nul(VERSION.as_bytes()).unwrap_or_default();
        version.sized()?.put(|| SwVersion {
            size: 0,
            major: part(),
            minor: part(),
            patch: part(),
            abi: SW_ABI_VERSION,
            text: Str::of(text),
        });
        Ok(())
    })
}

/// Tells whether the library has a feature, by name: 1 or 0, also for a name that it does not know. Names: `callback`,
/// `event-fd`, `vectored`, `submit`, `checksum-crc32c`, `checksum-crc64-nvme`, `plan-json`, `doctor-json`, `log`, `stream`. What the
/// machine can do is another question: `sw_engine_doctor`.
#[unsafe(no_mangle)]
pub extern "C" fn sw_feature(name: Str, present: Out<i32>) -> SwStatus {
    call(|| {
        let present = present.ready("present")?;
        let name = name.required("name")?;
        present.put(i32::from(FEATURES.contains(&name)));
        Ok(())
    })
}
