//! Pointers of C callers. Every raw access of this crate is in this file, or behind the types of `straightway-edge`.
//!
//! A parameter that is a pointer in C is one of these types. Only an unsafe constructor makes one in Rust, so functions that take
//! them are safe. NULL is found out; alignment does not matter, because everything is copied byte by byte.
// UNSAFETY: pointers of C callers are read and written here.
#![expect(unsafe_code, reason = "pointers of C callers are read and written here and nowhere else")]

use std::{
    any::Any,
    ffi::{CStr, c_char, c_void},
    os::fd::AsFd,
};

pub use straightway_edge::{Addr, Plain};
pub(crate) use straightway_edge::{Ready, address, own_descriptor};

use crate::{
    abi::{FsOps, RdmaInfo},
    code::Failure,
};

/// `const T *`: NULL, or what the caller leaves as it is during the call.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct In<T>(*const T);

/// `T *`: NULL, or room for values.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Out<T>(*mut T);

/// `const char *`: NULL, or text that ends with a zero byte.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Str(*const c_char);

impl<T: Plain> In<T> {
    /// NULL.
    pub const NULL: Self = Self(std::ptr::null());

    /// # Safety
    /// `pointer` is NULL, or readable for what it is passed for (one `T`, or as many as the count beside it says) while this
    /// value is used.
    pub const unsafe fn new(pointer: *const T) -> Self {
        Self(pointer)
    }

    /// Whether it is NULL.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The `index`th of an array; `None` for NULL.
    pub(crate) fn at(self, index: usize) -> Option<T> {
        if self.0.is_null() {
            return None;
        }
        let element = self.0.wrapping_add(index);
        // SAFETY: not null; readable so far by the contract of `new`, which C callers take on with the count that they pass; any
        // bits are a value.
        Some(unsafe { element.read_unaligned() })
    }

    /// What it points to.
    ///
    /// # Errors
    /// `INVALID_VALUE` for NULL.
    pub(crate) fn get(self, name: &str) -> Result<T, Failure> {
        self.at(0).ok_or_else(|| Failure::invalid(format!("{name} is NULL")))
    }
}

impl<T: Copy> Out<T> {
    /// NULL.
    pub const NULL: Self = Self(std::ptr::null_mut());

    /// # Safety
    /// `pointer` is NULL, or writable for what it is passed for while this value is used.
    pub const unsafe fn new(pointer: *mut T) -> Self {
        Self(pointer)
    }

    /// Whether it is NULL.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Checks before anything is done that there will be room.
    ///
    /// # Errors
    /// `INVALID_VALUE` for NULL.
    pub(crate) fn ready(self, name: &str) -> Result<Ready<T>, Failure> {
        if self.0.is_null() {
            return Err(Failure::invalid(format!("{name} is NULL")));
        }
        // SAFETY: not null; writable by the contract of `new`, which C callers take on.
        Ok(unsafe { Ready::new(self.0) })
    }
}

impl Out<c_char> {
    /// Writes text with its zero byte into `room` bytes, if they are enough; the length without that byte.
    pub(crate) fn text(self, text: &[u8], room: usize) -> Option<usize> {
        if self.0.is_null() || text.len() >= room {
            return None;
        }
        // SAFETY: not null; the caller has `room` bytes there, which are more than the text.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), self.0.cast(), text.len()) };
        // SAFETY: as above.
        unsafe { self.0.wrapping_add(text.len()).write(0) };
        Some(text.len())
    }
}

impl Str {
    /// NULL.
    pub const NULL: Self = Self(std::ptr::null());

    /// # Safety
    /// `pointer` is NULL, or a text that ends with a zero byte and stays as it is while this value is used.
    pub const unsafe fn new(pointer: *const c_char) -> Self {
        Self(pointer)
    }

    /// The text.
    ///
    /// # Errors
    /// `INVALID_VALUE` for NULL or if it is not UTF-8.
    pub(crate) fn text<'a>(self, name: &str) -> Result<&'a str, Failure> {
        if self.0.is_null() {
            return Err(Failure::invalid(format!("{name} is NULL")));
        }
        // SAFETY: a text that ends with a zero byte, by the contract of `new`; it is used during the call only.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map_err(|_| Failure::invalid(format!("{name} is not UTF-8")))
    }
}

/// Variables of a caller's that outlive the call, as those of a stream-ordered transfer do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept<T>(Ready<T>);

impl<T: Copy> Kept<T> {
    /// The documentation of the functions that take such variables says that they stay until the transfer is over.
    pub(crate) fn new(room: Ready<T>) -> Self {
        Self(room)
    }

    pub(crate) fn put(self, value: T) {
        self.0.put(value);
    }
}

impl<T: Plain> Kept<T> {
    pub(crate) fn get(self) -> T {
        self.0.get()
    }
}

// SAFETY: the variable is the transfer's to read and write until it is over; its owner looks at it afterwards only.
unsafe impl<T: Send> Send for Kept<T> {}

/// Memory that a caller lends for a transfer, or until it is deregistered.
///
/// # Errors
/// `INVALID_VALUE` for zero bytes or a range that wraps.
pub(crate) fn lend(
    place: straightway::Place,
    len: u64,
    owner: Box<dyn Any + Send + Sync>,
) -> Result<straightway::DmaRegion, Failure> {
    // SAFETY: who calls cuFileRead and the like keeps the memory until the call or the transfer is over, and who registers it until
    // it is deregistered: that is the documented contract of each. No reference into it is made here.
    let region = unsafe { straightway::DmaRegion::from_foreign(place, straightway::ByteLen(len), owner) };
    region.map_err(|cause| Failure::invalid(cause.to_string()))
}

/// A function of a file system in user space that moves bytes: `read` or `write` of `CUfileFSOps_t`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FsCall(u64);

/// Its type in C, for a read; a write takes `const char *`.
type FsCallback = extern "C" fn(*const c_void, *mut c_char, usize, i64, *mut RdmaInfo) -> isize;

impl FsCall {
    /// From an address; `None` for NULL.
    pub(crate) fn new(address: u64) -> Option<Self> {
        (address != 0).then_some(Self(address))
    }

    /// Asks for `len` bytes at `offset` of the file `handle`, into or out of host memory at `memory`. No network card is involved: the
    /// description of memory for one is empty. What it answers, and `errno` if that is minus one.
    pub(crate) fn call(self, handle: u64, memory: u64, len: u64, offset: u64) -> Result<u64, i64> {
        let function = std::ptr::with_exposed_provenance::<()>(address(self.0));
        // SAFETY: the registration's contract: the address of a function of this type, which stays until the handle is deregistered.
        let function: FsCallback = unsafe { std::mem::transmute::<*const (), FsCallback>(function) };
        let mut info = RdmaInfo { version: 0, desc_len: 0, desc_str: Str(c"".as_ptr()) };
        let handle = std::ptr::with_exposed_provenance::<c_void>(address(handle));
        let memory = std::ptr::with_exposed_provenance_mut::<c_char>(address(memory));
        let offset = i64::try_from(offset).map_err(|_| i64::from(libc::EINVAL))?;
        let told = function(handle, memory, address(len), offset, &raw mut info);
        let failed = |told: isize| match told {
            -1 => i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
            other => i64::try_from(other.saturating_neg()).unwrap_or(i64::MAX),
        };
        u64::try_from(told).map_err(|_| failed(told))
    }
}

/// The address of memory of ours that a callback fills.
pub(crate) fn host_address(buffer: &mut [u8]) -> u64 {
    buffer.as_mut_ptr().expose_provenance() as u64
}

/// What a file system in user space calls itself: `fs_type` of `CUfileFSOps_t`; `None` for NULL of either kind.
pub(crate) fn fs_type(function: u64, handle: u64) -> Option<String> {
    type Callback = extern "C" fn(*const c_void) -> *const c_char;
    let function = std::ptr::with_exposed_provenance::<()>(address(function));
    if function.is_null() {
        return None;
    }
    // SAFETY: as for `FsCall::call`.
    let function: Callback = unsafe { std::mem::transmute::<*const (), Callback>(function) };
    let text = function(std::ptr::with_exposed_provenance(address(handle)));
    if text.is_null() {
        return None;
    }
    // SAFETY: not null; a text that ends with a zero byte is what the function is documented to answer.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// The functions of a file system in user space.
///
/// # Errors
/// `INVALID_VALUE` for NULL.
pub(crate) fn fs_ops(at: u64) -> Result<FsOps, Failure> {
    In(std::ptr::with_exposed_provenance::<FsOps>(address(at))).get("fs_ops")
}

/// A stream of a caller's.
pub(crate) fn stream(handle: Addr) -> straightway::CallerStream {
    // SAFETY: the documented contract: a stream that lives until the transfer is over. A handle that is none is the driver's to
    // refuse.
    unsafe { straightway::CallerStream::from_raw(address(handle.raw())) }
}

/// Access mode and status flags of a descriptor.
///
/// # Errors
/// The errno.
pub(crate) fn status_flags(descriptor: &impl AsFd) -> std::io::Result<i32> {
    use std::os::fd::AsRawFd;
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(descriptor.as_fd().as_raw_fd(), libc::F_GETFL) };
    if flags < 0 { Err(std::io::Error::last_os_error()) } else { Ok(flags) }
}

/// Sets the caller's `errno`.
pub(crate) fn set_errno(number: i32) {
    // SAFETY: the C library's own variable of this thread, which always is.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; nobody else has it.
    unsafe { errno.write(number) };
}
