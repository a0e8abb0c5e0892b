//! `libcufile.so.0` as a program sees it, ours or NVIDIA's: loaded by name, called by its C interface.
//!
//! Layouts: `ffi/cufile/src/abi.rs`, which the tests there compare with the documented ones.
// UNSAFETY: calls functions of a shared library.
#![expect(unsafe_code, reason = "calls functions of a shared library")]

use std::{
    ffi::{c_char, c_int, c_void},
    os::fd::{AsRawFd, BorrowedFd},
    path::Path,
    ptr,
};

use libloading::Library;

use crate::fault::Fault;

/// `CU_FILE_HANDLE_TYPE_OPAQUE_FD`.
const OPAQUE_FD: c_int = 1;
/// `CUFILE_BATCH`.
const BATCH: c_int = 1;
/// `CUFILE_READ`.
const READ: c_int = 0;
/// `CUFILE_COMPLETE`.
const COMPLETE: c_int = 0x10;
/// Most bytes of a report.
const REPORT_MAX: usize = 64 << 10;

#[repr(C)]
struct CuError {
    err: c_int,
    cu_err: c_int,
}

#[repr(C)]
struct Descr {
    kind: c_int,
    fd: u64,
    fs_ops: *const c_void,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    mode: c_int,
    base: *mut c_void,
    file_offset: i64,
    dev_offset: i64,
    size: usize,
    fh: *mut c_void,
    opcode: c_int,
    cookie: *mut c_void,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Event {
    cookie: *mut c_void,
    status: c_int,
    ret: usize,
}

type Plain = extern "C" fn() -> CuError;
type Register = extern "C" fn(*mut *mut c_void, *const Descr) -> CuError;
type Deregister = extern "C" fn(*mut c_void);
type BufRegister = extern "C" fn(*const c_void, usize, c_int) -> CuError;
type BufDeregister = extern "C" fn(*const c_void) -> CuError;
type Read = extern "C" fn(*mut c_void, *mut c_void, usize, i64, i64) -> isize;
type SetUp = extern "C" fn(*mut *mut c_void, u32) -> CuError;
type Submit = extern "C" fn(*mut c_void, u32, *mut Params, u32) -> CuError;
type Status = extern "C" fn(*mut c_void, u32, *mut u32, *mut Event, *mut c_void) -> CuError;
type Report = extern "C" fn(*mut c_void, *mut c_char, usize) -> usize;

/// The library with the functions that the jobs call.
pub(crate) struct CuFile {
    open: Plain,
    close: Plain,
    register: Register,
    deregister: Deregister,
    buf_register: BufRegister,
    buf_deregister: BufDeregister,
    read: Read,
    set_up: SetUp,
    submit: Submit,
    status: Status,
    destroy: Deregister,
    /// Ours alone has it.
    report: Option<Report>,
    /// Keeps the functions where they are.
    _library: Library,
}

/// A registered file.
#[derive(Clone, Copy)]
pub(crate) struct File(*mut c_void);

/// A batch and the room for its entries.
pub(crate) struct Batch {
    id: *mut c_void,
    params: Vec<Params>,
    events: Vec<Event>,
}

/// Memory that the library writes into, its own for the whole job.
pub(crate) struct Memory {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Memory {
    /// `len` zero bytes from an address that is a multiple of 4096. All pages are there if `len` is small; a large one is mapped only.
    pub(crate) fn new(len: usize) -> Self {
        let bytes = vec![0_u8; len + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Self { bytes, start, len }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.len).unwrap_or_default()
    }

    /// The bytes, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }

    fn address(&mut self) -> *mut c_void {
        self.bytes_mut().as_mut_ptr().cast()
    }
}

/// The function of this name.
fn function<T: Copy>(library: &Library, name: &'static str) -> Result<T, Fault> {
    // SAFETY: the caller's type is that of the function of this name in `ffi/cufile/include/cufile.h` or `sw_cufile.h`.
    let found = unsafe { library.get::<T>(name) };
    found.map(|symbol| *symbol).map_err(|_| Fault::Library { call: name, answer: "is not in the library".to_owned() })
}

fn ok(call: &'static str, answer: &CuError) -> Result<(), Fault> {
    match (answer.err, answer.cu_err) {
        (0, 0) => Ok(()),
        (err, cuda) => Err(Fault::Library { call, answer: format!("answered {err} (CUDA {cuda})") }),
    }
}

fn whole(got: isize, len: usize) -> Result<(), Fault> {
    match usize::try_from(got) {
        Ok(got) if got == len => Ok(()),
        _ => Err(Fault::Library { call: "cuFileRead", answer: format!("answered {got}, not {len}") }),
    }
}

/// An address that no processor follows.
fn device(address: u64) -> *mut c_void {
    ptr::without_provenance_mut(sw_mem::index(address))
}

fn signed(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl CuFile {
    /// Loads it.
    ///
    /// # Errors
    /// `Missing` if it is not there; `Library` if it lacks a function.
    pub(crate) fn load(path: &Path) -> Result<Self, Fault> {
        // SAFETY: what the library runs when it is loaded is its own set-up: ours has the standard library's, NVIDIA's is made to be
        // loaded so by any program.
        let library = unsafe { Library::new(path) };
        let library = library.map_err(|error| Fault::Missing {
            what: format!("{} does not load: {error}", path.display()),
            remedy: "run it as `cargo xtask bench`, which builds ours",
        })?;
        Ok(Self {
            open: function(&library, "cuFileDriverOpen")?,
            close: function(&library, "cuFileDriverClose_v2")?,
            register: function(&library, "cuFileHandleRegister")?,
            deregister: function(&library, "cuFileHandleDeregister")?,
            buf_register: function(&library, "cuFileBufRegister")?,
            buf_deregister: function(&library, "cuFileBufDeregister")?,
            read: function(&library, "cuFileRead")?,
            set_up: function(&library, "cuFileBatchIOSetUp")?,
            submit: function(&library, "cuFileBatchIOSubmit")?,
            status: function(&library, "cuFileBatchIOGetStatus")?,
            destroy: function(&library, "cuFileBatchIODestroy")?,
            report: function(&library, "sw_cufile_handle_report").ok(),
            _library: library,
        })
    }

    /// `cuFileDriverOpen`.
    pub(crate) fn open(&self) -> Result<(), Fault> {
        ok("cuFileDriverOpen", &(self.open)())
    }

    /// `cuFileDriverClose`.
    pub(crate) fn close(&self) -> Result<(), Fault> {
        ok("cuFileDriverClose", &(self.close)())
    }

    /// `cuFileHandleRegister` of a descriptor.
    pub(crate) fn register(&self, fd: BorrowedFd<'_>) -> Result<File, Fault> {
        let fd = u64::from(fd.as_raw_fd().unsigned_abs());
        let descr = Descr { kind: OPAQUE_FD, fd, fs_ops: ptr::null() };
        let mut handle = ptr::null_mut();
        ok("cuFileHandleRegister", &(self.register)(&raw mut handle, &raw const descr))?;
        Ok(File(handle))
    }

    /// `cuFileHandleDeregister`.
    pub(crate) fn deregister(&self, file: File) {
        (self.deregister)(file.0);
    }

    /// `cuFileBufRegister` of all of the memory.
    pub(crate) fn register_memory(&self, memory: &mut Memory) -> Result<(), Fault> {
        ok("cuFileBufRegister", &(self.buf_register)(memory.address(), memory.len, 0))
    }

    /// `cuFileBufDeregister`.
    pub(crate) fn deregister_memory(&self, memory: &mut Memory) -> Result<(), Fault> {
        ok("cuFileBufDeregister", &(self.buf_deregister)(memory.address()))
    }

    /// `cuFileBufRegister` of device memory of this process, which outlives its registration.
    pub(crate) fn register_device(&self, address: u64, len: usize) -> Result<(), Fault> {
        ok("cuFileBufRegister", &(self.buf_register)(device(address), len, 0))
    }

    /// `cuFileBufDeregister`.
    pub(crate) fn deregister_device(&self, address: u64) -> Result<(), Fault> {
        ok("cuFileBufDeregister", &(self.buf_deregister)(device(address)))
    }

    /// `cuFileRead` of `len` bytes at `offset` to device memory that has so many.
    pub(crate) fn read_to_device(&self, file: File, address: u64, (offset, len): (u64, usize)) -> Result<(), Fault> {
        whole((self.read)(file.0, device(address), len, offset.cast_signed(), 0), len)
    }

    /// `cuFileRead` of `len` bytes at `offset` to the place `at` of the memory.
    pub(crate) fn read(
        &self,
        file: File,
        memory: &mut Memory,
        at: usize,
        (offset, len): (u64, usize),
    ) -> Result<(), Fault> {
        whole((self.read)(file.0, memory.address(), len, offset.cast_signed(), signed(at)), len)
    }

    /// A batch that reads `slots` blocks of `block` bytes into as many places of the memory, one after the other.
    pub(crate) fn batch(&self, file: File, memory: &mut Memory, slots: u32, block: usize) -> Result<Batch, Fault> {
        let mut id = ptr::null_mut();
        ok("cuFileBatchIOSetUp", &(self.set_up)(&raw mut id, slots))?;
        let base = memory.address();
        let entry = |slot: u32| Params {
            mode: BATCH,
            base,
            file_offset: 0,
            dev_offset: signed(slot as usize * block),
            size: block,
            fh: file.0,
            opcode: READ,
            cookie: ptr::null_mut(),
        };
        let event = Event { cookie: ptr::null_mut(), status: 0, ret: 0 };
        Ok(Batch { id, params: (0..slots).map(entry).collect(), events: vec![event; slots as usize] })
    }

    /// Submits all entries and waits until each was told of.
    pub(crate) fn run(&self, batch: &mut Batch, offset: impl Fn(usize) -> u64) -> Result<(), Fault> {
        for (slot, params) in batch.params.iter_mut().enumerate() {
            params.file_offset = offset(slot).cast_signed();
        }
        let count = u32::try_from(batch.params.len()).unwrap_or(u32::MAX);
        let submitted = (self.submit)(batch.id, count, batch.params.as_mut_ptr(), 0);
        ok("cuFileBatchIOSubmit", &submitted)?;
        let mut left = count;
        while left > 0 {
            let mut told = left;
            let events = batch.events.as_mut_ptr();
            let answer = (self.status)(batch.id, left, &raw mut told, events, ptr::null_mut());
            ok("cuFileBatchIOGetStatus", &answer)?;
            for (event, params) in batch.events.iter().zip(&batch.params).take(told as usize) {
                if event.status != COMPLETE || event.ret != params.size {
                    let answer = format!("an entry ended with {:#x}, {} bytes", event.status, event.ret);
                    return Err(Fault::Library { call: "cuFileBatchIOGetStatus", answer });
                }
            }
            left = left.saturating_sub(told);
        }
        Ok(())
    }

    /// `cuFileBatchIODestroy`.
    pub(crate) fn destroy(&self, batch: &Batch) {
        (self.destroy)(batch.id);
    }

    /// Which ways the bytes of a file went: `sw_cufile_handle_report`.
    pub(crate) fn report(&self, file: File) -> Option<serde_json::Value> {
        let mut text = vec![0_u8; REPORT_MAX];
        let len = self.report?(file.0, text.as_mut_ptr().cast(), text.len());
        serde_json::from_slice(text.get(..len)?).ok()
    }
}
