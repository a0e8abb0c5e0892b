//! The edge to C: result codes, output pointers, and the frame around every exported function.
// UNSAFETY: writes through pointers that a C caller handed over; everything else in the crate goes through this file.
#![expect(unsafe_code, reason = "the edge to C callers: out pointers are raw")]

use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::state;

/// A driver result, as a number: zero is success.
pub type Code = u32;

/// `Ok` is `CUDA_SUCCESS`; an error carries any other code.
pub type Answer<T = ()> = Result<T, Code>;

// Values from cuda.h, "enum cudaError_enum".
pub const INVALID_VALUE: Code = 1;
pub const OUT_OF_MEMORY: Code = 2;
pub const NOT_INITIALIZED: Code = 3;
pub const NO_DEVICE: Code = 100;
pub const INVALID_DEVICE: Code = 101;
pub const INVALID_CONTEXT: Code = 201;
pub const PEER_ACCESS_UNSUPPORTED: Code = 217;
pub const NO_BINARY_FOR_GPU: Code = 209;
pub const INVALID_PTX: Code = 218;
pub const UNSUPPORTED_PTX_VERSION: Code = 222;
pub const INVALID_HANDLE: Code = 400;
pub const NOT_FOUND: Code = 500;
pub const NOT_READY: Code = 600;
pub const ILLEGAL_ADDRESS: Code = 700;
pub const LAUNCH_TIMEOUT: Code = 702;
pub const PEER_ACCESS_ALREADY_ENABLED: Code = 704;
pub const PEER_ACCESS_NOT_ENABLED: Code = 705;
pub const HOST_MEMORY_ALREADY_REGISTERED: Code = 712;
pub const HOST_MEMORY_NOT_REGISTERED: Code = 713;
pub const LAUNCH_FAILED: Code = 719;
pub const NOT_SUPPORTED: Code = 801;
pub const UNKNOWN: Code = 999;

/// An output pointer of a C caller. It cannot be made inside Rust: it only arrives as an argument.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    /// Writes `value`; a null pointer is `INVALID_VALUE`.
    pub fn set(&self, value: T) -> Answer {
        self.set_at(0, value)
    }

    /// Writes `value` unless the pointer is null: for outputs that are optional in the interface.
    pub fn set_if(&self, value: T) {
        if !self.0.is_null() {
            let _written: Answer = self.set(value);
        }
    }

    /// Writes element `index` of an array that the interface says has at least `index + 1` elements.
    pub fn set_at(&self, index: usize, value: T) -> Answer {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the interface obliges the caller to pass room for the elements that it declared.
        let slot = unsafe { self.0.add(index) };
        // SAFETY: not null (checked), writable and large enough by the interface's contract with the C caller.
        unsafe { slot.write_unaligned(value) };
        Ok(())
    }
}

/// An input array of a C caller.
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// What an address that came as a number points to.
    pub fn from_address(address: u64) -> Self {
        Self(pointer::<T>(address).cast_const())
    }

    /// Reads element `index`; a null pointer is `INVALID_VALUE`.
    pub fn at(&self, index: usize) -> Answer<T> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the interface obliges the caller to pass at least as many elements as it declared.
        let slot = unsafe { self.0.add(index) };
        // SAFETY: not null (checked) and readable by the interface's contract with the C caller.
        Ok(unsafe { slot.read_unaligned() })
    }
}

/// A C string of the caller.
#[repr(transparent)]
pub struct Text(*const libc::c_char);

impl Text {
    /// The text, or `INVALID_VALUE` for null or for bytes that are not UTF-8.
    pub fn get(&self) -> Answer<&str> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null (checked) and zero-terminated by the interface's contract with the C caller.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| INVALID_VALUE)
    }
}

/// A 64-bit length or address as an index of this machine.
#[expect(clippy::cast_possible_truncation, reason = "the library is built for 64-bit targets only")]
pub const fn index(value: u64) -> usize {
    value as usize
}

/// An address that came as a number, as a pointer.
pub fn pointer<T>(address: u64) -> *mut T {
    std::ptr::with_exposed_provenance_mut(index(address))
}

/// Writes `value` of any size through an address that came as a number, as the attribute calls do.
pub fn write_at<T: Copy>(address: u64, value: T) -> Answer {
    Out(pointer::<T>(address)).set(value)
}

/// Calls a host function of the caller, as `cuLaunchHostFunc` promises.
pub fn call_host(function: HostFunction, data: u64) {
    let data = pointer::<libc::c_void>(data);
    // SAFETY: the interface obliges the caller to keep the function and its data alive until it has run.
    unsafe { function(data) };
}

/// The type of `CUhostFn`.
pub type HostFunction = unsafe extern "C" fn(*mut libc::c_void);

/// Runs the body of one exported function: counts the call, plays the fault that is due, refuses a forked child, and
/// keeps a panic of ours from crossing into C.
pub fn entry(name: &'static str, body: impl FnOnce() -> Answer) -> Code {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        state::with(|s| s.enter(name))?;
        body()
    }));
    match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code,
        Err(_) => {
            state::with_quiet(|s| s.stats.panics += 1);
            UNKNOWN
        }
    }
}

/// Declares exported driver functions. Pointers that are only carried, never followed here, are `u64`: the calling
/// conventions of x86-64 and aarch64 pass both in the same registers.
macro_rules! api {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        $($(#[$meta])*
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($arg: $ty),*) -> $crate::abi::Code {
            $crate::abi::entry(stringify!($name), || -> $crate::abi::Answer { $body })
        })*
    };
}
pub(crate) use api;
