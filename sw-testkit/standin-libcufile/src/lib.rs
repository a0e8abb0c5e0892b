//! A stand-in for NVIDIA's `libcufile.so.0`: the part of cuFile's C interface that the product calls, on plain system calls.
//!
//! It is loaded by the dynamic loader and called through C, as the real one is. What it does like the real one, on purpose: any offset and
//! address is taken, whatever the descriptor's flags; errors come as -1 with the code in `errno`; a handle that was given back is
//! 5027. Each test installs a copy of the file ([`harness::install`]), and a copy has settings and counts of its own, so that tests of
//! one process do not meet.
//!
//! What it does not do: memory of GPUs, batches, streams. Those names are not exported. The real library is tried by
//! `cargo xtask cufile`.
// UNSAFETY: exported names, and reads and writes of the caller's memory by its address.
#![expect(unsafe_code, reason = "exported names: `no_mangle` is what makes them the library's")]

pub mod harness;

use std::ffi::{c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

/// `CUfileError_t`.
#[repr(C)]
pub struct Status {
    code: u32,
    driver: u32,
}

/// `CUfileDescr_t`.
#[repr(C)]
pub struct Descr {
    kind: u32,
    fill: u32,
    fd: c_int,
    fill_too: u32,
    file_system: *const c_void,
}

/// What a test can set; the number of each is its place among the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Setting {
    /// What `cuFileDriverOpen` answers.
    OpenCode,
    /// What `cuFileHandleRegister` answers.
    RegisterCode,
    /// What `cuFileRead` gives back instead of reading, if it is below zero.
    ReadResult,
    /// What `cuFileWrite` gives back instead of writing, if it is below zero.
    WriteResult,
    /// `errno` beside such a result.
    Errno,
    /// Bytes that one call moves at most, if above zero.
    BytesMax,
    /// Bytes that are claimed beside those that were moved.
    Claimed,
    /// Not 0: the first byte of each read is another one.
    Damage,
    /// Bytes that a read writes past its memory.
    Overrun,
    /// Not 0: reads wait until it is 0 again.
    Stall,
    /// Not 0: `cuFileDriverOpen` waits until it is 0 again.
    StallOpen,
    /// What `cuFileGetVersion` tells; 0: 1.11, which opens on any kernel.
    Version,
    /// Version of `nvidia-fs`, as major * 1000 + minor.
    Nvfs,
    /// Not 0: `cuFileHandleRegister` waits until it is 0 again.
    StallRegister,
}

/// What a test can look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Count {
    /// Opens without their close.
    Open,
    /// Files that are registered.
    Registered,
    /// Calls of `cuFileRead`.
    Reads,
    /// Calls of `cuFileWrite`.
    Writes,
    /// Files whose descriptor was closed or another one when they were deregistered.
    ClosedEarly,
    /// Calls of `cuFileHandleRegister`.
    Registers,
    /// Files that were deregistered.
    Deregisters,
}

static SETTINGS: [AtomicI64; 14] = [const { AtomicI64::new(0) }; 14];
static COUNTS: [AtomicI64; 7] = [const { AtomicI64::new(0) }; 7];
/// Registered files by their handle, which is place + 1.
static FILES: Mutex<Vec<Option<Registered>>> = Mutex::new(Vec::new());

#[derive(Clone, Copy)]
struct Registered {
    /// The caller's descriptor, and its inode then.
    fd: c_int,
    inode: u64,
    /// The same file through the page cache, so that no offset and no address is refused.
    own: c_int,
}

const SUCCESS: Status = Status { code: 0, driver: 0 };
const NOT_REGISTERED: i32 = 5027;

fn setting(which: Setting) -> i64 {
    SETTINGS.get(which as usize).map_or(0, |value| value.load(Ordering::SeqCst))
}

fn count(which: Count, by: i64) {
    if let Some(count) = COUNTS.get(which as usize) {
        count.fetch_add(by, Ordering::SeqCst);
    }
}

fn answer(code: i64) -> Status {
    Status { code: u32::try_from(code).unwrap_or(5030), ..SUCCESS }
}

fn set_errno(errno: i64) {
    // SAFETY: the C library's own, of this thread.
    let at = unsafe { libc::__errno_location() };
    // SAFETY: as above; a writable number.
    unsafe { at.write(i32::try_from(errno).unwrap_or(0)) };
}

fn wait_while(stalled: Setting) {
    while setting(stalled) != 0 {
        // SAFETY: no pointers.
        unsafe { libc::usleep(1000) };
    }
}

fn inode(fd: c_int) -> Option<u64> {
    // SAFETY: all zero is a value of this structure of numbers.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a writable structure.
    let answered = unsafe { libc::fstat(fd, &raw mut stat) };
    (answered == 0).then_some(stat.st_ino)
}

/// Sets a [`Setting`].
#[unsafe(no_mangle)]
pub extern "C" fn standin_cufile_set(which: c_int, value: i64) {
    if let Some(setting) = usize::try_from(which).ok().and_then(|which| SETTINGS.get(which)) {
        setting.store(value, Ordering::SeqCst);
    }
}

/// Tells a [`Count`].
#[unsafe(no_mangle)]
pub extern "C" fn standin_cufile_count(which: c_int) -> i64 {
    usize::try_from(which).ok().and_then(|which| COUNTS.get(which)).map_or(-1, |count| count.load(Ordering::SeqCst))
}

#[unsafe(no_mangle)]
extern "C" fn cuFileDriverOpen() -> Status {
    wait_while(Setting::StallOpen);
    match setting(Setting::OpenCode) {
        0 => {
            count(Count::Open, 1);
            SUCCESS
        }
        code => answer(code),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuFileDriverClose_v2() -> Status {
    count(Count::Open, -1);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFileGetVersion(version: *mut c_int) -> Status {
    let told = match setting(Setting::Version) {
        0 => 1110,
        told => i32::try_from(told).unwrap_or(0),
    };
    // SAFETY: the caller's result.
    unsafe { version.write(told) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFileDriverGetProperties(properties: *mut [u32; 14]) -> Status {
    let nvfs = u32::try_from(setting(Setting::Nvfs)).unwrap_or(0);
    let mut told = [0; 14];
    (told[0], told[1]) = (nvfs / 1000, nvfs % 1000);
    // SAFETY: the caller's structure of 56 bytes.
    unsafe { properties.write(told) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFileHandleRegister(handle: *mut *mut c_void, descr: *mut Descr) -> Status {
    count(Count::Registers, 1);
    wait_while(Setting::StallRegister);
    // SAFETY: the caller's structure.
    let fd = unsafe { (*descr).fd };
    match (setting(Setting::RegisterCode), inode(fd)) {
        (0, Some(inode)) => {
            let Ok(mut files) = FILES.lock() else { return answer(5030) };
            let Some(own) = opened_again(fd) else { return answer(5031) };
            files.push(Some(Registered { fd, inode, own }));
            let name = std::ptr::without_provenance_mut(files.len());
            // SAFETY: the caller's result.
            unsafe { handle.write(name) };
            count(Count::Registered, 1);
            SUCCESS
        }
        (0, None) => answer(5022),
        (code, _) => answer(code),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuFileHandleDeregister(handle: *mut c_void) {
    let Ok(mut files) = FILES.lock() else { return };
    let Some(file) = handle.addr().checked_sub(1).and_then(|at| files.get_mut(at)) else { return };
    if let Some(file) = file.take() {
        count(Count::Registered, -1);
        count(Count::ClosedEarly, i64::from(inode(file.fd) != Some(file.inode)));
        // SAFETY: ours alone.
        unsafe { libc::close(file.own) };
        count(Count::Deregisters, 1);
    }
}

/// For what it is open for, without `O_DIRECT`.
fn opened_again(fd: c_int) -> Option<c_int> {
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    let path = std::ffi::CString::new(format!("/proc/self/fd/{fd}")).ok()?;
    // SAFETY: a zero-terminated text.
    let own = unsafe { libc::open(path.as_ptr(), flags & libc::O_ACCMODE | libc::O_CLOEXEC) };
    (flags >= 0 && own >= 0).then_some(own)
}

fn file(handle: *mut c_void) -> Option<c_int> {
    let files = FILES.lock().ok()?;
    files.get(handle.addr().checked_sub(1)?)?.map(|file| file.own)
}

fn bounded(len: usize) -> usize {
    match usize::try_from(setting(Setting::BytesMax)) {
        Ok(most) if most > 0 => len.min(most),
        _ => len,
    }
}

fn fail(code: i64, errno: i64) -> isize {
    set_errno(errno);
    isize::try_from(code).unwrap_or(-1)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFileRead(handle: *mut c_void, base: *mut c_void, len: usize, offset: i64, at: i64) -> isize {
    count(Count::Reads, 1);
    wait_while(Setting::Stall);
    if setting(Setting::ReadResult) < 0 {
        return fail(setting(Setting::ReadResult), setting(Setting::Errno));
    }
    let (Some(fd), Ok(at)) = (file(handle), usize::try_from(at)) else { return fail(-1, NOT_REGISTERED.into()) };
    let memory = base.cast::<u8>().wrapping_add(at);
    // SAFETY: the caller's memory, of at least so many bytes.
    let moved = unsafe { libc::pread(fd, memory.cast(), bounded(len), offset) };
    if moved > 0 && setting(Setting::Damage) != 0 {
        // SAFETY: the first byte of the caller's memory, which was just written.
        let first = unsafe { memory.read() };
        // SAFETY: as above.
        unsafe { memory.write(!first) };
    }
    for past in 0..usize::try_from(setting(Setting::Overrun)).unwrap_or(0) {
        // SAFETY: a fault on demand; the test gives memory behind it.
        unsafe { memory.wrapping_add(len + past).write(0) };
    }
    moved + isize::try_from(setting(Setting::Claimed)).unwrap_or(0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFileWrite(handle: *mut c_void, base: *const c_void, len: usize, offset: i64, at: i64) -> isize {
    count(Count::Writes, 1);
    if setting(Setting::WriteResult) < 0 {
        return fail(setting(Setting::WriteResult), setting(Setting::Errno));
    }
    let (Some(fd), Ok(at)) = (file(handle), usize::try_from(at)) else { return fail(-1, NOT_REGISTERED.into()) };
    // SAFETY: the caller's memory, of at least so many bytes.
    unsafe { libc::pwrite(fd, base.cast::<u8>().wrapping_add(at).cast(), bounded(len), offset) }
}
