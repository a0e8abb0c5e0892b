//! librbd: images at their snapshots.
// UNSAFETY: calling the library's functions.
#![expect(unsafe_code, reason = "calls librbd")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr,
    sync::Arc,
};

use tokio::sync::oneshot;

use super::{
    super::held::{Held, Keep},
    CEPH, Failed, check,
    pending::{Done, Pending},
    rados::Pool,
};
use crate::foreign::library::table;

/// `rbd_image_t`, `rbd_completion_t`: named by their pointers only.
type Handle = *mut c_void;
type Callback = unsafe extern "C" fn(Handle, *mut c_void);

/// Bytes of the names of a pool's images, at most, and snapshots of one.
const NAMES_BYTES_MAX: usize = 64 << 20;
const SNAPSHOTS_MAX: usize = 1 << 20;
/// Bytes of an image's identifier, with room.
const ID_BYTES: usize = 256;
/// How often a list that grew meanwhile is asked for again.
const TRIES_MAX: usize = 8;

/// `rbd_snap_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SnapInfo {
    id: u64,
    size: u64,
    name: *const c_char,
}

table! {
    /// librbd.
    Rbd, CEPH, "librbd.so.1", "librbd1":
    rbd_list(Handle, *mut c_char, *mut usize) -> c_int;
    rbd_open_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd_close(Handle) -> c_int;
    rbd_get_size(Handle, *mut u64) -> c_int;
    rbd_get_id(Handle, *mut c_char, usize) -> c_int;
    rbd_snap_get_id(Handle, *const c_char, *mut u64) -> c_int;
    rbd_snap_list(Handle, *mut SnapInfo, *mut c_int) -> c_int;
    rbd_snap_list_end(*mut SnapInfo);
    rbd_aio_create_completion(*mut c_void, Callback, *mut Handle) -> c_int;
    rbd_aio_get_return_value(Handle) -> isize;
    rbd_aio_release(Handle);
    rbd_aio_read(Handle, u64, usize, *mut c_char, Handle) -> c_int;
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ceph) struct Snapshot {
    pub(in crate::ceph) name: CString,
    pub(in crate::ceph) id: u64,
    pub(in crate::ceph) len: u64,
}

impl Rbd {
    /// The names of a pool's images.
    pub(in crate::ceph) fn images(&self, pool: &Pool) -> Result<Vec<CString>, Failed> {
        let mut names: Vec<u8> = vec![0; 4096];
        for _ in 0..TRIES_MAX {
            let mut len = names.len();
            // SAFETY: a pool that is open, and memory as long as is said.
            let gave = unsafe { (self.rbd_list)(pool.raw, names.as_mut_ptr().cast(), &raw mut len) };
            match check("rbd_list", gave) {
                Err(Failed { errno: libc::ERANGE, .. }) if len <= NAMES_BYTES_MAX => {
                    names = vec![0; len.max(names.len()) + 4096];
                }
                Err(failed) => return Err(failed),
                Ok(used) => {
                    names.truncate(sw_mem::index(u64::from(used.unsigned_abs())));
                    let texts = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
                    return Ok(texts.filter_map(|name| CString::new(name).ok()).collect());
                }
            }
        }
        Err(Failed { call: "rbd_list", errno: libc::ERANGE })
    }
}

/// An image that is open to be read. Closing it may wait.
pub(in crate::ceph) struct Image {
    table: Rbd,
    raw: Handle,
    // Behind the image, which is closed before.
    _pool: Arc<Held<Pool>>,
}

// SAFETY: librbd locks its images itself; several threads may call it with one.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Image {
    /// Opens an image as it is, or as it was when a snapshot was made.
    pub(in crate::ceph) fn open(
        table: Rbd,
        pool: &Arc<Held<Pool>>,
        name: &CStr,
        snapshot: Option<&CStr>,
    ) -> Result<Self, Failed> {
        let (mut raw, at) = (ptr::null_mut(), snapshot.map_or(ptr::null(), CStr::as_ptr));
        // SAFETY: a pool that is open, texts, and a place for the handle.
        let gave = unsafe { (table.rbd_open_read_only)(pool.raw, name.as_ptr(), &raw mut raw, at) };
        check("rbd_open_read_only", gave)?;
        Ok(Self { table, raw, _pool: pool.clone() })
    }

    /// Bytes that it has.
    pub(in crate::ceph) fn len(&self) -> Result<u64, Failed> {
        let mut len = 0;
        // SAFETY: an image that is open, and a place.
        check("rbd_get_size", unsafe { (self.table.rbd_get_size)(self.raw, &raw mut len) })?;
        Ok(len)
    }

    /// What no other image of the pool is called, nor will be.
    pub(in crate::ceph) fn id(&self) -> Result<CString, Failed> {
        let mut text = [0u8; ID_BYTES];
        // SAFETY: an image that is open, and memory as long as is said.
        let gave = unsafe { (self.table.rbd_get_id)(self.raw, text.as_mut_ptr().cast(), text.len()) };
        check("rbd_get_id", gave)?;
        let id = CStr::from_bytes_until_nul(&text).map(CStr::to_owned);
        id.map_err(|_| Failed { call: "rbd_get_id", errno: libc::ERANGE })
    }

    /// The number of one of its snapshots.
    pub(in crate::ceph) fn snapshot_id(&self, name: &CStr) -> Result<u64, Failed> {
        let mut id = 0;
        // SAFETY: an image that is open, a text, and a place.
        check("rbd_snap_get_id", unsafe { (self.table.rbd_snap_get_id)(self.raw, name.as_ptr(), &raw mut id) })?;
        Ok(id)
    }

    /// Its snapshots.
    pub(in crate::ceph) fn snapshots(&self) -> Result<Vec<Snapshot>, Failed> {
        let mut room = 64;
        for _ in 0..TRIES_MAX {
            let mut infos = vec![SnapInfo { id: 0, size: 0, name: ptr::null() }; room];
            let mut count = c_int::try_from(room).unwrap_or(c_int::MAX);
            // SAFETY: an image that is open, and entries as many as are said.
            let gave = unsafe { (self.table.rbd_snap_list)(self.raw, infos.as_mut_ptr(), &raw mut count) };
            let used = match check("rbd_snap_list", gave) {
                Err(Failed { errno: libc::ERANGE, .. }) if room < SNAPSHOTS_MAX => {
                    room = (room * 4).max(sw_mem::index(u64::from(count.unsigned_abs())));
                    continue;
                }
                Err(failed) => return Err(failed),
                Ok(used) => sw_mem::index(u64::from(used.unsigned_abs())),
            };
            let of = |info: &SnapInfo| {
                // SAFETY: a text of the library's, there until the list is ended.
                let name = unsafe { CStr::from_ptr(info.name) };
                Snapshot { name: name.to_owned(), id: info.id, len: info.size }
            };
            let found = infos.iter().take(used).filter(|info| !info.name.is_null()).map(of).collect();
            if used > 0 {
                // SAFETY: the entries that the library made, which end by one without a name.
                unsafe { (self.table.rbd_snap_list_end)(infos.as_mut_ptr()) };
            }
            return Ok(found);
        }
        Err(Failed { call: "rbd_snap_list", errno: libc::ERANGE })
    }

    /// Reads into `buffer`, as long as it is, from byte `offset` on. [`Done::result`] is what was read.
    pub(in crate::ceph) fn read(
        &self,
        offset: u64,
        buffer: Vec<u8>,
        keep: Keep,
    ) -> Result<oneshot::Receiver<Done>, Failed> {
        let table = self.table;
        let (parts, end) = Pending::begin(table, buffer, keep);
        let mut completion = ptr::null_mut();
        // SAFETY: the callback is of this argument, and there is a place for the handle.
        let made = unsafe { (table.rbd_aio_create_completion)(parts.whole.cast(), done, &raw mut completion) };
        let begun = check("rbd_aio_create_completion", made).and_then(|_| {
            let to = parts.buffer.cast();
            // SAFETY: both are open, the image by the contract of `Keep` until the callback, and so is the memory.
            let gave = unsafe { (table.rbd_aio_read)(self.raw, offset, parts.len, to, completion) };
            check("rbd_aio_read", gave).inspect_err(|_| {
                // SAFETY: made before, and the library calls nothing back by it.
                unsafe { (table.rbd_aio_release)(completion) }
            })
        });
        let begun = begun.inspect_err(|_| {
            // SAFETY: of `begin`, and no call of the library's has it.
            unsafe { Pending::forget(parts.whole) }
        });
        begun.map(|_| end)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and closed here only; calls by it keep this.
        let _gave = unsafe { (self.table.rbd_close)(self.raw) };
    }
}

/// The end of a call, on a thread of the library's.
unsafe extern "C" fn done(completion: Handle, argument: *mut c_void) {
    let result = |table: &Rbd| {
        // SAFETY: a completion that is done, and that this callback is of.
        let gave = unsafe { (table.rbd_aio_get_return_value)(completion) };
        // SAFETY: our part of it is given back once; the library has its own until the callback has returned.
        unsafe { (table.rbd_aio_release)(completion) };
        i64::try_from(gave).unwrap_or(i64::MIN)
    };
    // SAFETY: the argument is what the completion was made with, and each is called back once, when it is done.
    unsafe { Pending::<Rbd>::tell(argument, result) };
}
