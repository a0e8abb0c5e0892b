//! Kernels: code of the host, in a library that the test names (`STANDIN_KERNELS`).
//!
//! ```text
//!  cuModuleLoadData(PTX) ─► names and parameters of its entries, read from the text; its version compared with the driver's
//!  cuLaunchKernel ─► the stream ─► sw_emulate(entry, …) of the library ─► asks us where device memory is
//! ```
//!
//! The PTX itself is not run: what runs are the same sources, compiled for the host (`kernels/emulate`). So a test shows the logic of
//! kernels and of everything around them, and nothing of what a device's compiler makes of the PTX. Without the library no module loads.
// UNSAFETY: a library named by the test, called with memory of the arena.
#![expect(unsafe_code, reason = "calls a library loaded at run time")]

use std::ffi::CString;

use crate::abi::{
    Answer, ILLEGAL_ADDRESS, INVALID_PTX, INVALID_VALUE, LAUNCH_FAILED, NO_BINARY_FOR_GPU, Out,
    UNSUPPORTED_PTX_VERSION, pointer,
};
use crate::arena::Arena;

/// Parameters of a kernel at most.
pub const PARAMETERS_MAX: usize = 8;

/// One kernel of a loaded module.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its name in the PTX.
    pub name: String,
    /// How many parameters it has, all of 64 bits.
    pub parameters: usize,
    /// Threads of a block at most.
    pub threads_max: u32,
}

/// One launch on its way.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Handle of the function.
    pub function: u64,
    /// Blocks and threads of each, in one dimension.
    pub shape: (u32, u32),
    /// As many as the function has parameters.
    pub values: [u64; PARAMETERS_MAX],
}

/// The entries of a PTX text. A text that is none, or newer than a driver of `driver_version` reads, is refused.
pub fn entries_of(ptx: &str, driver_version: i32) -> Answer<Vec<Function>> {
    let version = ptx.lines().find_map(|line| line.strip_prefix(".version ")).ok_or(INVALID_PTX)?;
    let (major, minor) = version.trim().split_once('.').ok_or(INVALID_PTX)?;
    let (major, minor): (i32, i32) = (major.parse().map_err(|_| INVALID_PTX)?, minor.parse().map_err(|_| INVALID_PTX)?);
    // PTX ISA, "Release History": 8.0 is CUDA 12.0's, 8.x that of 12.x; 7.x that of 11.x.
    if (major + 4) * 1000 + minor * 10 > driver_version {
        return Err(UNSUPPORTED_PTX_VERSION);
    }
    let mut found = Vec::new();
    for head in ptx.split(".visible .entry ").skip(1) {
        let (name, rest) = head.split_once('(').ok_or(INVALID_PTX)?;
        let (parameters, rest) = rest.split_once(')').ok_or(INVALID_PTX)?;
        let count = parameters.matches(".param .u64").count();
        if count != parameters.matches(".param").count() || count > PARAMETERS_MAX {
            return Err(INVALID_PTX);
        }
        let bound = rest.split('{').next().and_then(|bounds| bounds.split_once(".maxntid "));
        let threads_max = bound.and_then(|(_, number)| number.split([',', '\n']).next()?.trim().parse().ok());
        found.push(Function { name: name.to_owned(), parameters: count, threads_max: threads_max.unwrap_or(1024) });
    }
    if found.is_empty() { Err(INVALID_PTX) } else { Ok(found) }
}

/// `sw_emulate` of `kernels/emulate/emulate.cpp`.
type Emulate = unsafe extern "C" fn(*const libc::c_char, u32, u32, *const u64, u32, Find, *const Arena) -> i32;
type Find = extern "C" fn(*const Arena, u64, Out<u64>, Out<u64>, Out<u64>) -> i32;

/// The code of the kernels.
#[derive(Clone, Copy, Debug)]
pub struct Code(Emulate);

impl Code {
    /// Loads the library at `path`; it stays.
    pub fn load(path: &str) -> Answer<Self> {
        // SAFETY: the test names a library of kernels; loading it runs its initialisers.
        let library = unsafe { libloading::Library::new(path) }.map_err(|_| NO_BINARY_FOR_GPU)?;
        // SAFETY: the signature is that of `emulate.cpp`.
        let found = unsafe { library.get::<Emulate>(b"sw_emulate") }.map(|symbol| *symbol);
        let code = found.map(Self).map_err(|_| NO_BINARY_FOR_GPU);
        // Its functions are called for the life of the process.
        Box::leak(Box::new(library));
        code
    }

    /// Runs one launch to its end.
    pub fn run(self, function: &Function, launch: &Launch, arena: &Arena) -> Answer {
        let name = CString::new(function.name.as_str()).map_err(|_| INVALID_VALUE)?;
        let (blocks, threads) = launch.shape;
        let count = u32::try_from(function.parameters).map_err(|_| INVALID_VALUE)?;
        // SAFETY: the signature is that of `emulate.cpp`; name, values and arena outlive the call, which keeps none of them.
        let answer = unsafe {
            (self.0)(name.as_ptr(), blocks, threads, launch.values.as_ptr(), count, find, std::ptr::from_ref(arena))
        };
        match answer {
            0 => Ok(()),
            3 => Err(ILLEGAL_ADDRESS),
            _ => Err(LAUNCH_FAILED),
        }
    }
}

/// Where the bytes of a device address are, for the library.
extern "C" fn find(arena: *const Arena, at: u64, base: Out<u64>, len: Out<u64>, bytes: Out<u64>) -> i32 {
    // SAFETY: the arena that `run` handed over, which it holds during the call.
    let Some(range) = (unsafe { arena.as_ref() }).and_then(|arena| arena.find(at)) else { return 0 };
    let told = base.set(range.base).and(len.set(range.len)).and(bytes.set(range.alias()));
    i32::from(told.is_ok())
}

/// The values of a launch, as `cuLaunchKernel` gets them: a pointer to each.
pub fn values_of(function: &Function, pointers: &crate::abi::In<u64>) -> Answer<[u64; PARAMETERS_MAX]> {
    let mut values = [0; PARAMETERS_MAX];
    for (at, value) in values.iter_mut().enumerate().take(function.parameters) {
        *value = crate::abi::In::from_address(pointers.at(at)?).at(0)?;
    }
    Ok(values)
}

/// The text at an address, up to its zero.
pub fn text_at(image: u64) -> Answer<String> {
    if image == 0 {
        return Err(INVALID_VALUE);
    }
    let start = pointer::<libc::c_char>(image).cast_const();
    // SAFETY: not null (checked); the interface obliges the caller to pass a zero-terminated text where it passes PTX.
    let text = unsafe { std::ffi::CStr::from_ptr(start) };
    text.to_str().map(str::to_owned).map_err(|_| INVALID_PTX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_newer_texts_refused() {
        let ptx = ".version 8.0\n.visible .entry one(\n.param .u64 a,\n.param .u64 b\n)\n.maxntid 128, 1, 1\n{ret;}\n";
        let found = entries_of(ptx, 12_000).unwrap();
        assert_eq!((found[0].name.as_str(), found[0].parameters, found[0].threads_max), ("one", 2, 128));
        assert_eq!(entries_of(ptx, 11_080).err(), Some(UNSUPPORTED_PTX_VERSION));
        assert_eq!(entries_of("hello", 12_000).err(), Some(INVALID_PTX));
        assert_eq!(entries_of(&ptx.replace(".u64 b", ".u32 b"), 12_000).err(), Some(INVALID_PTX));
    }
}
