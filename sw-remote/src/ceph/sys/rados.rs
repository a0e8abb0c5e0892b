//! librados: a cluster, its pools, and their objects.
// UNSAFETY: calling the library's functions.
#![expect(unsafe_code, reason = "calls librados")]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ops::ControlFlow,
    ptr,
    sync::Arc,
};

use tokio::sync::oneshot;

use super::{
    super::held::{Held, Keep},
    CEPH, Failed, Identity, Needed, check,
    pending::{Done, Parts, Pending},
};
use crate::foreign::library::table;

/// `rados_t`, `rados_ioctx_t`, `rados_completion_t` and their like: named by their pointers only.
type Handle = *mut c_void;
type Callback = unsafe extern "C" fn(Handle, *mut c_void);

table! {
    /// librados.
    Rados, CEPH, "librados.so.2", "librados2":
    rados_version(*mut c_int, *mut c_int, *mut c_int);
    rados_create2(*mut Handle, *const c_char, *const c_char, u64) -> c_int;
    rados_conf_read_file(Handle, *const c_char) -> c_int;
    rados_conf_parse_env(Handle, *const c_char) -> c_int;
    rados_conf_set(Handle, *const c_char, *const c_char) -> c_int;
    rados_connect(Handle) -> c_int;
    rados_shutdown(Handle);
    rados_ioctx_create(Handle, *const c_char, *mut Handle) -> c_int;
    rados_ioctx_destroy(Handle);
    rados_ioctx_set_namespace(Handle, *const c_char);
    rados_ioctx_get_id(Handle) -> i64;
    rados_stat(Handle, *const c_char, *mut u64, *mut i64) -> c_int;
    rados_get_last_version(Handle) -> u64;
    rados_remove(Handle, *const c_char) -> c_int;
    rados_nobjects_list_open(Handle, *mut Handle) -> c_int;
    rados_nobjects_list_next(Handle, *mut *const c_char, *mut *const c_char, *mut *const c_char) -> c_int;
    rados_nobjects_list_close(Handle);
    rados_aio_create_completion2(*mut c_void, Callback, *mut Handle) -> c_int;
    rados_aio_get_return_value(Handle) -> c_int;
    rados_aio_release(Handle);
    rados_create_read_op() -> Handle;
    rados_release_read_op(Handle);
    rados_read_op_assert_version(Handle, u64);
    rados_read_op_stat(Handle, *mut u64, *mut i64, *mut c_int);
    rados_read_op_read(Handle, u64, usize, *mut c_char, *mut usize, *mut c_int);
    rados_aio_read_op_operate(Handle, Handle, Handle, *const c_char, c_int) -> c_int;
    rados_aio_write_full(Handle, *const c_char, Handle, *const c_char, usize) -> c_int;
}

impl Rados {
    /// The version of the library's interface.
    pub(in crate::ceph) fn version(&self) -> (c_int, c_int, c_int) {
        let (mut major, mut minor, mut extra) = (0, 0, 0);
        // SAFETY: three places to write to.
        unsafe { (self.rados_version)(&raw mut major, &raw mut minor, &raw mut extra) };
        (major, minor, extra)
    }
}

/// A connection to a cluster. Closing it waits for the library's threads.
pub(in crate::ceph) struct Cluster {
    table: Rados,
    raw: Handle,
}

// SAFETY: "librados is thread-safe" for what is not a change of a handle's settings (`rados/librados.h`, of contexts), and those are made
// before a handle is shared.
unsafe impl Send for Cluster {}
// SAFETY: as above.
unsafe impl Sync for Cluster {}

impl Cluster {
    pub(in crate::ceph) fn connect(table: Rados, identity: &Identity) -> Result<Self, Failed> {
        let name = [b"client.", identity.user.as_bytes(), b"\0"].concat();
        let mut raw = ptr::null_mut();
        // SAFETY: a place for the handle, and texts that end by NUL.
        let made = unsafe { (table.rados_create2)(&raw mut raw, c"ceph".as_ptr(), name.as_ptr().cast(), 0) };
        check("rados_create", made)?;
        // From here on it is closed when it goes, connected or not.
        let cluster = Self { table, raw };
        let conf = identity.conf.as_ref().map_or(ptr::null(), |conf| conf.as_ptr());
        // SAFETY: a handle that is open, and a path or none.
        check("rados_conf_read_file", unsafe { (table.rados_conf_read_file)(raw, conf) })?;
        if identity.environment {
            // SAFETY: as above; without a name the variable is `CEPH_ARGS`.
            check("rados_conf_parse_env", unsafe { (table.rados_conf_parse_env)(raw, ptr::null()) })?;
        }
        for (option, value, needed) in &identity.options {
            // SAFETY: as above, with texts.
            let set = check("rados_conf_set", unsafe { (table.rados_conf_set)(raw, option.as_ptr(), value.as_ptr()) });
            if *needed == Needed::Yes {
                set?;
            }
        }
        // SAFETY: as above.
        check("rados_connect", unsafe { (table.rados_connect)(raw) })?;
        Ok(cluster)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: the handle is open, nothing that was made of it is, and it is closed here only.
        unsafe { (self.table.rados_shutdown)(self.raw) };
    }
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ceph) struct Stat {
    pub(in crate::ceph) len: u64,
    /// Seconds.
    pub(in crate::ceph) mtime: i64,
    /// Grows with each change of the object, and beyond its removal.
    pub(in crate::ceph) version: u64,
}

/// A namespace of a pool.
pub(in crate::ceph) struct Pool {
    pub(super) raw: Handle,
    cluster: Arc<Held<Cluster>>,
}

// SAFETY: as of a cluster; the namespace is set before it is shared.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    pub(in crate::ceph) fn open(cluster: &Arc<Held<Cluster>>, name: &CStr, namespace: &CStr) -> Result<Self, Failed> {
        let (table, mut raw) = (cluster.table, ptr::null_mut());
        // SAFETY: a cluster that is open, a text, a place for the handle.
        let made = unsafe { (table.rados_ioctx_create)(cluster.raw, name.as_ptr(), &raw mut raw) };
        check("rados_ioctx_create", made)?;
        let pool = Self { raw, cluster: cluster.clone() };
        // SAFETY: a context that is open, which nobody else has yet.
        unsafe { (table.rados_ioctx_set_namespace)(raw, namespace.as_ptr()) };
        Ok(pool)
    }

    fn table(&self) -> &Rados {
        &self.cluster.table
    }

    /// Its number, which no other pool of the cluster ever has.
    pub(in crate::ceph) fn id(&self) -> i64 {
        // SAFETY: a context that is open.
        unsafe { (self.table().rados_ioctx_get_id)(self.raw) }
    }

    /// Facts of an object. By a context of one's own: the version is that of the last thing that was done by it.
    pub(in crate::ceph) fn stat(&mut self, name: &CStr) -> Result<Stat, Failed> {
        let (mut len, mut mtime) = (0, 0);
        // SAFETY: a context that is open, a text, two places.
        let gave = unsafe { (self.table().rados_stat)(self.raw, name.as_ptr(), &raw mut len, &raw mut mtime) };
        check("rados_stat", gave)?;
        // SAFETY: a context that is open.
        let version = unsafe { (self.table().rados_get_last_version)(self.raw) };
        Ok(Stat { len, mtime, version })
    }

    pub(in crate::ceph) fn remove(&self, name: &CStr) -> Result<(), Failed> {
        // SAFETY: a context that is open, and a text.
        check("rados_remove", unsafe { (self.table().rados_remove)(self.raw, name.as_ptr()) }).map(drop)
    }

    /// The names of its objects, in no order; those that are found by a locator of their own are not.
    pub(in crate::ceph) fn names(&self, mut each: impl FnMut(&CStr) -> ControlFlow<()>) -> Result<(), Failed> {
        let (table, mut list) = (self.table(), ptr::null_mut());
        // SAFETY: a context that is open, and a place for the handle.
        check("rados_nobjects_list_open", unsafe { (table.rados_nobjects_list_open)(self.raw, &raw mut list) })?;
        let ended = loop {
            let (mut name, mut locator, mut namespace) = (ptr::null(), ptr::null(), ptr::null());
            // SAFETY: a listing that is open, and places for three texts.
            let gave =
                unsafe { (table.rados_nobjects_list_next)(list, &raw mut name, &raw mut locator, &raw mut namespace) };
            match check("rados_nobjects_list_next", gave) {
                Err(Failed { errno: libc::ENOENT, .. }) => break Ok(()),
                Err(failed) => break Err(failed),
                Ok(_) if name.is_null() || !locator.is_null() => continue,
                Ok(_) => {}
            }
            // SAFETY: a text of the library's, there until the next call.
            if each(unsafe { CStr::from_ptr(name) }).is_break() {
                break Ok(());
            }
        };
        // SAFETY: it was opened above, and is closed here only.
        unsafe { (table.rados_nobjects_list_close)(list) };
        ended
    }

    /// Makes the completion of a call, which tells its end.
    fn completion(table: &Rados, parts: &Parts<Rados>) -> Result<Handle, Failed> {
        let mut completion = ptr::null_mut();
        // SAFETY: the callback is of this argument, and there is a place for the handle.
        let gave = unsafe { (table.rados_aio_create_completion2)(parts.whole.cast(), done, &raw mut completion) };
        check("rados_aio_create_completion2", gave).map(|_| completion)
    }

    /// Reads into `buffer`, as long as it is, from byte `offset` on, if the object has the version still; with an empty buffer that is all
    /// that is looked at. [`Done::moved`] is what was read.
    pub(in crate::ceph) fn read(
        &self,
        name: &CStr,
        (offset, version): (u64, u64),
        buffer: Vec<u8>,
        keep: Keep,
    ) -> Result<oneshot::Receiver<Done>, Failed> {
        let table = *self.table();
        let (parts, end) = Pending::begin(table, buffer, keep);
        let begun = Self::completion(&table, &parts).and_then(|completion| {
            // SAFETY: it makes one.
            let operation = unsafe { (table.rados_create_read_op)() };
            // SAFETY: an operation that was just made.
            unsafe { (table.rados_read_op_assert_version)(operation, version) };
            if parts.len == 0 {
                // SAFETY: as above; it may have no places to write to.
                unsafe { (table.rados_read_op_stat)(operation, ptr::null_mut(), ptr::null_mut(), ptr::null_mut()) };
            } else {
                let (to, len) = (parts.buffer.cast(), parts.len);
                // SAFETY: as above; memory, count and status are there until the callback.
                unsafe { (table.rados_read_op_read)(operation, offset, len, to, parts.moved, parts.status) };
            }
            // SAFETY: all are open; the pool is by the contract of `Keep` until the callback.
            let gave = unsafe { (table.rados_aio_read_op_operate)(operation, self.raw, completion, name.as_ptr(), 0) };
            // SAFETY: the library has taken what is in it.
            unsafe { (table.rados_release_read_op)(operation) };
            Self::begun("rados_aio_read_op_operate", &table, completion, gave)
        });
        Self::or_forget(begun, &parts).map(|()| end)
    }

    /// Makes `buffer` all that the object is, at once, whatever it was before. Its end is that it is durable.
    pub(in crate::ceph) fn write(
        &self,
        name: &CStr,
        buffer: Vec<u8>,
        keep: Keep,
    ) -> Result<oneshot::Receiver<Done>, Failed> {
        let table = *self.table();
        let (parts, end) = Pending::begin(table, buffer, keep);
        let begun = Self::completion(&table, &parts).and_then(|completion| {
            let (from, len) = (parts.buffer.cast_const().cast(), parts.len);
            // SAFETY: all are open, and the memory is there until the callback.
            let gave = unsafe { (table.rados_aio_write_full)(self.raw, name.as_ptr(), completion, from, len) };
            Self::begun("rados_aio_write_full", &table, completion, gave)
        });
        Self::or_forget(begun, &parts).map(|()| end)
    }

    /// Gives a completion back that no call has.
    fn begun(call: &'static str, table: &Rados, completion: Handle, gave: c_int) -> Result<(), Failed> {
        check(call, gave).map(drop).inspect_err(|_| {
            // SAFETY: made before, and the library calls nothing back by it.
            unsafe { (table.rados_aio_release)(completion) }
        })
    }

    fn or_forget(begun: Result<(), Failed>, parts: &Parts<Rados>) -> Result<(), Failed> {
        begun.inspect_err(|_| {
            // SAFETY: of `begin`, and no call of the library's has it.
            unsafe { Pending::forget(parts.whole) }
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and closed here only; calls by it keep this.
        unsafe { (self.table().rados_ioctx_destroy)(self.raw) };
    }
}

/// The end of a call, on a thread of the library's.
unsafe extern "C" fn done(completion: Handle, argument: *mut c_void) {
    let result = |table: &Rados| {
        // SAFETY: a completion that is done, and that this callback is of.
        let gave = unsafe { (table.rados_aio_get_return_value)(completion) };
        // SAFETY: our part of it is given back once; the library has its own until the callback has returned.
        unsafe { (table.rados_aio_release)(completion) };
        i64::from(gave)
    };
    // SAFETY: the argument is what the completion was made with, and each is called back once, when it is done.
    unsafe { Pending::<Rados>::tell(argument, result) };
}
