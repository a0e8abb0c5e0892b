//! What libdaos exports: pools, containers, event queues.
// UNSAFETY: exported names, and memory of the caller by its address.

use std::{
    ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void},
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{Count, Setting, count, dfs::Open, setting};

const DER_INVAL: c_int = -1003;
const DER_NONEXIST: c_int = -1005;
const DER_BUSY: c_int = -1012;
const DER_UNINIT: c_int = -1015;

/// `daos_event_t`.
#[repr(C)]
pub(crate) struct Event {
    error: c_int,
    /// The first: 1 while it runs; the second: its queue.
    private: [u64; 20],
    debug: u64,
}

/// `d_iov_t`.
#[repr(C)]
pub(crate) struct Iov {
    base: *mut c_void,
    room: usize,
    len: usize,
}

/// `d_sg_list_t`.
#[repr(C)]
pub(crate) struct SgList {
    count: u32,
    count_out: u32,
    iovs: *mut Iov,
}

/// A read that runs.
struct Running {
    event: *mut Event,
    list: *mut SgList,
    moved: *mut u64,
    open: *const Open,
    offset: u64,
    is_aborted: bool,
}

// SAFETY: pointers that the caller keeps until the event was polled.
unsafe impl Send for Running {}

static ROOT: Mutex<Option<PathBuf>> = Mutex::new(None);
static RUNNING: Mutex<Vec<Running>> = Mutex::new(Vec::new());
/// What handles of pools and containers stand for, by handle - 1.
static PLACES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name that a caller gives.
pub(crate) fn named(text: *const c_char) -> PathBuf {
    // SAFETY: the caller gives a text that ends by NUL.
    let text = unsafe { CStr::from_ptr(text) };
    PathBuf::from(OsStr::from_bytes(text.to_bytes()))
}

/// Where a handle's directory is.
pub(crate) fn place(handle: u64) -> Option<PathBuf> {
    locked(&PLACES).get(usize::try_from(handle.checked_sub(1)?).ok()?).cloned()
}

fn open_place(path: PathBuf, handle: *mut u64) -> c_int {
    if !path.is_dir() {
        return DER_NONEXIST;
    }
    let mut places = locked(&PLACES);
    places.push(path);
    count(Count::Mounts, 1);
    // SAFETY: the caller gives a place for a handle.
    unsafe { handle.write(places.len() as u64) };
    0
}

/// Waits a little, for as long as a setting is not zero.
pub(crate) fn stall(which: Setting) {
    let (never, woken) = (Mutex::new(()), std::sync::Condvar::new());
    while setting(which) != 0 {
        let _waited = woken.wait_timeout(locked(&never), Duration::from_millis(1));
    }
}

/// Waits for so many microseconds.
pub(crate) fn wait_us(wait_us: i32) {
    let wait = Duration::from_micros(u64::try_from(wait_us).unwrap_or(0));
    if wait > Duration::ZERO {
        let (never, woken) = (Mutex::new(()), std::sync::Condvar::new());
        let _waited = woken.wait_timeout(locked(&never), wait);
    }
}

/// The directory that pools are below.
///
/// # Safety
/// - A text that ends by NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn standin_daos_root(path: *const c_char) {
    *locked(&ROOT) = Some(named(path));
}

#[unsafe(no_mangle)]
extern "C" fn daos_init() -> c_int {
    match setting(Setting::InitCode) {
        0 => {
            count(Count::Inits, 1);
            0
        }
        code => code,
    }
}

#[unsafe(no_mangle)]
extern "C" fn daos_fini() -> c_int {
    if count(Count::Inits, -1) < 0 { DER_UNINIT } else { 0 }
}

#[unsafe(no_mangle)]
extern "C" fn daos_pool_connect2(
    pool: *const c_char,
    _system: *const c_char,
    flags: c_uint,
    handle: *mut u64,
    _info: *mut c_void,
    _event: *mut Event,
) -> c_int {
    if setting(Setting::PoolCode) != 0 {
        return setting(Setting::PoolCode);
    }
    if named(pool).as_os_str() == "silent" {
        stall(Setting::StallPool);
    }
    if flags == 2 {
        count(Count::Writers, 1);
    }
    let root = locked(&ROOT).clone();
    root.map_or(DER_UNINIT, |root| open_place(root.join(named(pool)), handle))
}

#[unsafe(no_mangle)]
extern "C" fn daos_pool_disconnect(_pool: u64, _event: *mut Event) -> c_int {
    count(Count::Mounts, -1);
    0
}

#[unsafe(no_mangle)]
extern "C" fn daos_cont_open2(
    pool: u64,
    container: *const c_char,
    _flags: c_uint,
    handle: *mut u64,
    _info: *mut c_void,
    _event: *mut Event,
) -> c_int {
    match setting(Setting::ContainerCode) {
        0 => place(pool).map_or(DER_INVAL, |pool| open_place(pool.join(named(container)), handle)),
        code => code,
    }
}

#[unsafe(no_mangle)]
extern "C" fn daos_cont_close(_container: u64, _event: *mut Event) -> c_int {
    count(Count::Mounts, -1);
    0
}

#[unsafe(no_mangle)]
extern "C" fn daos_eq_create(handle: *mut u64) -> c_int {
    // SAFETY: the caller gives a place for a handle.
    unsafe { handle.write(1 + u64::try_from(count(Count::Queues, 1)).unwrap_or(0)) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn daos_eq_destroy(_queue: u64, _flags: c_int) -> c_int {
    if !locked(&RUNNING).is_empty() {
        return DER_BUSY;
    }
    count(Count::Queues, -1);
    0
}

#[unsafe(no_mangle)]
extern "C" fn daos_event_init(event: *mut Event, queue: u64, _parent: *mut Event) -> c_int {
    let mut private = [0; 20];
    private[1] = queue;
    // SAFETY: the caller gives a place for an event.
    unsafe { event.write(Event { error: 0, private, debug: 0 }) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn daos_event_fini(event: *mut Event) -> c_int {
    if locked(&RUNNING).iter().any(|running| running.event == event) { DER_BUSY } else { 0 }
}

#[unsafe(no_mangle)]
extern "C" fn daos_event_abort(event: *mut Event) -> c_int {
    count(Count::Aborts, 1);
    let mut running = locked(&RUNNING);
    let Some(found) = running.iter_mut().find(|running| running.event == event) else { return -1001 };
    found.is_aborted = setting(Setting::Aborts) != 0;
    0
}

/// Begins a read.
pub(crate) fn begin(open: *const Open, list: *mut SgList, offset: u64, moved: *mut u64, event: *mut Event) {
    count(Count::Reads, 1);
    let now = count(Count::Running, 1);
    count(Count::RunningMost, (now - crate::standin_daos_count(Count::RunningMost as i32)).max(0));
    locked(&RUNNING).push(Running { event, list, moved, open, offset, is_aborted: false });
}

/// The memory of a list's first piece.
///
/// # Safety
/// - A list of one piece, whose memory nobody else touches meanwhile.
pub(crate) unsafe fn memory<'a>(list: *const SgList) -> &'a mut [u8] {
    // SAFETY: the caller's contract.
    let iov = unsafe { (*list).iovs };
    // SAFETY: likewise.
    let iov = unsafe { &*iov };
    // SAFETY: likewise.
    unsafe { std::slice::from_raw_parts_mut(iov.base.cast(), iov.len) }
}

/// Does a read; its error.
fn read(running: &Running) -> c_int {
    if running.is_aborted {
        return libc::ECANCELED;
    }
    if setting(Setting::ReadError) != 0 {
        return setting(Setting::ReadError);
    }
    // SAFETY: the caller keeps the object open until the event was polled.
    let open = unsafe { &*running.open };
    if setting(Setting::ChangeBeforeRead) != 0 {
        open.change();
    }
    // SAFETY: the caller keeps it until the event was polled.
    let memory = unsafe { memory(running.list) };
    let most = usize::try_from(setting(Setting::BytesMax)).ok().filter(|most| *most > 0).unwrap_or(memory.len());
    let (mut done, want) = (0, most.min(memory.len()));
    while let Some(rest) = memory.get_mut(done..want).filter(|rest| !rest.is_empty()) {
        match open.file().map_or(Ok(0), |file| file.read_at(rest, running.offset + done as u64)) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) => return error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
    let claimed = u64::try_from(setting(Setting::Claimed)).unwrap_or(0);
    // SAFETY: likewise.
    unsafe { running.moved.write(done as u64 + claimed) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn daos_eq_poll(
    _queue: u64,
    _wait_running: c_int,
    timeout_us: i64,
    most: c_uint,
    events: *mut *mut Event,
) -> c_int {
    if setting(Setting::PollCode) < 0 {
        return setting(Setting::PollCode);
    }
    let ready = {
        let mut running = locked(&RUNNING);
        let stalled = setting(Setting::Stall) != 0;
        let most = usize::try_from(most).unwrap_or(0);
        let mut ready = Vec::new();
        let mut place = 0;
        while place < running.len() && ready.len() < most {
            match running.get(place) {
                Some(one) if !stalled || one.is_aborted => ready.push(running.swap_remove(place)),
                _ => place += 1,
            }
        }
        ready
    };
    count(Count::Polls, 1);
    // As libdaos: with `wait_running` and nothing that runs it returns at once; its own view of a stalled read is that it is not launched.
    if ready.is_empty() && setting(Setting::Stall) == 0 {
        wait_us(i32::try_from(timeout_us).unwrap_or(0));
    }
    for (place, running) in ready.iter().enumerate() {
        let error = read(running);
        count(Count::Running, -1);
        // SAFETY: the caller keeps the event until it was polled.
        unsafe { (*running.event).error = error };
        // SAFETY: the caller gives as many places as it says.
        let to = unsafe { events.add(place) };
        // SAFETY: likewise.
        unsafe { to.write(running.event) };
    }
    c_int::try_from(ready.len()).unwrap_or(0)
}
