//! The driver's functions, looked up once and checked.
//!
//! `cudarc` loads the library and brings types and constants. Its wrapper functions are not called, for two reasons: a
//! missing symbol panics there, and they return a Rust enum, so that a result code of a newer driver (there have been
//! new ones in almost every release) would be a value outside the enum, which is undefined behaviour. Here a result is
//! a number. The compiler checks each signature against cudarc's, so the two cannot drift apart.
// UNSAFETY: symbol look-up in a library loaded at run time; function pointers get their types here and nowhere else.
#![expect(unsafe_code, reason = "symbols of a library loaded at run time")]

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_P2PAttribute, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction,
    CUjit_option, CUmemRangeHandleType, CUmodule, CUpointer_attribute, CUresult, CUstream, CUuuid,
};

/// A driver result as the driver returned it: zero is success.
pub type Code = u32;

macro_rules! driver_table {
    (
        checked { $(fn $name:ident($($arg:ident: $ty:ty),*);)* }
        by_number { $(fn $raw:ident($($raw_arg:ident: $raw_ty:ty),*);)* }
        optional { $(fn $opt:ident($($opt_arg:ident: $opt_ty:ty),*);)* }
    ) => {
        /// Pointers to the driver's functions.
        #[expect(non_snake_case, reason = "the fields are the driver's names")]
        pub struct Table {
            $(pub $name: unsafe extern "C" fn($($ty),*) -> Code,)*
            $(pub $raw: unsafe extern "C" fn($($raw_ty),*) -> Code,)*
            $(pub $opt: Option<unsafe extern "C" fn($($opt_ty),*) -> Code>,)*
        }

        // The signatures above are cudarc's but for the result. A difference does not compile.
        $(const _: unsafe fn($($ty),*) -> CUresult = sys::$name;)*
        $(const _: unsafe fn($($opt_ty),*) -> CUresult = sys::$opt;)*

        impl Table {
            /// Symbols that must be there.
            pub const REQUIRED: &[&str] = &[$(stringify!($name),)* $(stringify!($raw),)*];

            /// Looks everything up with `find`.
            ///
            /// # Errors
            /// The names that are not there.
            pub fn look_up(find: &dyn Fn(&str) -> Option<*mut c_void>) -> Result<Table, Vec<&'static str>> {
                let missing: Vec<&'static str> =
                    Self::REQUIRED.iter().copied().filter(|name| find(name).is_none()).collect();
                if !missing.is_empty() {
                    return Err(missing);
                }
                Ok(Table {
                    $($name: {
                        let found = find(stringify!($name)).ok_or_else(|| vec![stringify!($name)])?;
                        // SAFETY: the driver exports this name with this signature (cuda.h, as transcribed by cudarc
                        // and compared above); the library is never unloaded.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($ty),*) -> Code>(found) }
                    },)*
                    $($raw: {
                        let found = find(stringify!($raw)).ok_or_else(|| vec![stringify!($raw)])?;
                        // SAFETY: as above; the enum parameter of cuda.h has the size and passing of a 32-bit number.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($raw_ty),*) -> Code>(found) }
                    },)*
                    $($opt: find(stringify!($opt)).map(|found| {
                        // SAFETY: as for the required names.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($opt_ty),*) -> Code>(found) }
                    }),)*
                })
            }
        }
    };
}

driver_table! {
    checked {
        fn cuInit(flags: c_uint);
        fn cuDriverGetVersion(version: *mut c_int);
        fn cuDeviceGetCount(count: *mut c_int);
        fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
        fn cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice);
        fn cuDeviceGetUuid_v2(uuid: *mut CUuuid, device: CUdevice);
        fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
        fn cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
        fn cuDeviceGetPCIBusId(name: *mut c_char, len: c_int, device: CUdevice);
        fn cuDeviceCanAccessPeer(can: *mut c_int, device: CUdevice, peer: CUdevice);
        fn cuDeviceGetP2PAttribute(value: *mut c_int, attribute: CUdevice_P2PAttribute, from: CUdevice, to: CUdevice);
        fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
        fn cuDevicePrimaryCtxRelease_v2(device: CUdevice);
        fn cuCtxGetCurrent(context: *mut CUcontext);
        fn cuCtxPushCurrent_v2(context: CUcontext);
        fn cuCtxPopCurrent_v2(context: *mut CUcontext);
        fn cuCtxGetDevice(device: *mut CUdevice);
        fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
        fn cuMemAlloc_v2(pointer: *mut CUdeviceptr, bytes: usize);
        fn cuMemFree_v2(pointer: CUdeviceptr);
        fn cuMemAllocManaged(pointer: *mut CUdeviceptr, bytes: usize, flags: c_uint);
        fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: c_uint);
        fn cuMemFreeHost(pointer: *mut c_void);
        fn cuMemHostRegister_v2(pointer: *mut c_void, bytes: usize, flags: c_uint);
        fn cuMemHostUnregister(pointer: *mut c_void);
        fn cuMemGetAddressRange_v2(base: *mut CUdeviceptr, bytes: *mut usize, pointer: CUdeviceptr);
        fn cuPointerGetAttributes(count: c_uint, what: *mut CUpointer_attribute, into: *mut *mut c_void, at: CUdeviceptr);
        fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
        fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
        fn cuStreamCreate(stream: *mut CUstream, flags: c_uint);
        fn cuStreamDestroy_v2(stream: CUstream);
        fn cuStreamQuery(stream: CUstream);
        fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
        fn cuEventCreate(event: *mut CUevent, flags: c_uint);
        fn cuEventDestroy_v2(event: CUevent);
        fn cuEventRecord(event: CUevent, stream: CUstream);
        fn cuEventQuery(event: CUevent);
    }
    by_number {
        fn cuGetErrorName(code: Code, name: *mut *const c_char);
    }
    optional {
        fn cuStreamWaitValue32_v2(stream: CUstream, address: CUdeviceptr, value: u32, flags: c_uint);
        fn cuModuleLoadDataEx(
            module: *mut CUmodule, image: *const c_void, count: c_uint, options: *mut CUjit_option, values: *mut *mut c_void
        );
        fn cuModuleUnload(module: CUmodule);
        fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
        fn cuLaunchKernel(
            function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
            block_z: c_uint, shared_bytes: c_uint, stream: CUstream, parameters: *mut *mut c_void, extra: *mut *mut c_void
        );
        fn cuMemGetHandleForAddressRange(
            handle: *mut c_void, pointer: CUdeviceptr, bytes: usize, kind: CUmemRangeHandleType, flags: c_ulonglong
        );
    }
}
