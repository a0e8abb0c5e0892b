//! Pools, containers and what is in them. Every call blocks, but for reads.
// UNSAFETY: calling the libraries' functions.
#![expect(unsafe_code, reason = "calls libdaos and libdfs")]

use std::{
    ffi::{CStr, CString, c_int, c_uint},
    mem::MaybeUninit,
    ptr,
    sync::Arc,
};

pub(in crate::daos) use super::layout::ObjectId;
use super::{
    Code, Dfs, Failed, Library, Raw, check, check_dfs,
    layout::{Anchor, Handle, Iov, SgList},
    queue::{Begun, Queue},
};
use crate::foreign::held::{Held, Keep};

/// `DAOS_PC_RO`, `DAOS_PC_RW` (`daos_types.h`); `DAOS_COO_RO`, `DAOS_COO_RW` (`daos_cont.h`) have the same numbers.
const READ: c_uint = 1;
const READ_WRITE: c_uint = 2;
/// `DFS_MAX_FSIZE` (`daos_fs.h`): a hole of it cuts a file, or makes it longer.
const TO_THE_END: u64 = u64::MAX;
/// Names that are asked for at a time.
const PAGE_NAMES: u32 = 256;

/// The library, as it is in use, and its queue of events.
pub(in crate::daos) struct Client {
    library: Library,
    pub(in crate::daos) queue: Queue,
}

impl Client {
    pub(in crate::daos) fn new(library: Library) -> Result<Self, Failed> {
        // SAFETY: it has no precondition; each has its `daos_fini`.
        check("daos_init", unsafe { (library.daos.daos_init)() })?;
        match Queue::new(library) {
            Ok(queue) => Ok(Self { library, queue }),
            Err(failed) => {
                // SAFETY: after a `daos_init`.
                let _gave = unsafe { (library.daos.daos_fini)() };
                Err(failed)
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // One whose queue the library keeps events of stays as it is.
        if self.queue.destroy() {
            // SAFETY: after a `daos_init`; what was made by it is gone.
            let _gave = unsafe { (self.library.daos.daos_fini)() };
        }
    }
}

/// What a container is mounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::daos) enum Access {
    Read,
    ReadWrite,
}

impl Access {
    fn flags(self) -> (c_uint, c_int) {
        match self {
            Self::Read => (READ, libc::O_RDONLY),
            Self::ReadWrite => (READ_WRITE, libc::O_RDWR),
        }
    }
}

/// A container that is mounted in this process. Unmounting waits.
pub(in crate::daos) struct Mount {
    client: Arc<Held<Client>>,
    pool: Handle,
    /// `None` until it is there, each.
    container: Option<Handle>,
    raw: Option<Raw>,
}

// SAFETY: libdfs locks its mounts itself; several threads may call it with one, as dfuse's do.
unsafe impl Send for Mount {}
// SAFETY: as above.
unsafe impl Sync for Mount {}

impl Mount {
    /// Mounts a container, both by their labels or UUIDs.
    pub(in crate::daos) fn open(
        client: &Arc<Held<Client>>,
        system: Option<&CStr>,
        (pool, container): (&CStr, &CStr),
        access: Access,
    ) -> Result<Self, Failed> {
        let (library, system) = (client.library, system.map_or(ptr::null(), CStr::as_ptr));
        let ((flags, of_mount), mut handle, none) = (access.flags(), Handle::NONE, ptr::null_mut());
        let daos = &library.daos;
        // SAFETY: texts, or none for the system's, and a place for the handle; without an event it blocks.
        let gave =
            unsafe { (daos.daos_pool_connect2)(pool.as_ptr(), system, flags, &raw mut handle, none, ptr::null_mut()) };
        check("daos_pool_connect", gave)?;
        // From here on it is given back when it goes, as far as it came.
        let mut mount = Self { client: client.clone(), pool: handle, container: None, raw: None };
        // SAFETY: a pool that is connected, a text, and a place.
        let gave = unsafe {
            (daos.daos_cont_open2)(mount.pool, container.as_ptr(), flags, &raw mut handle, none, ptr::null_mut())
        };
        check("daos_cont_open", gave)?;
        mount.container = Some(handle);
        let mut raw = ptr::null_mut();
        // SAFETY: both are open, and stay so until it is unmounted.
        let gave = unsafe { (library.dfs.dfs_mount)(mount.pool, handle, of_mount, &raw mut raw) };
        check_dfs("dfs_mount", gave)?;
        mount.raw = Some(raw);
        Ok(mount)
    }

    fn raw(&self) -> Raw {
        self.raw.unwrap_or(ptr::null_mut())
    }

    /// Waits until all names that were made are durable.
    pub(in crate::daos) fn sync(&self) -> Result<(), Failed> {
        // SAFETY: a mount.
        check_dfs("dfs_sync", unsafe { (self.client.library.dfs.dfs_sync)(self.raw()) })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Library { daos, dfs } = self.client.library;
        if let Some(raw) = self.raw {
            // SAFETY: the mount is open, and given back here only; what is open in it keeps this.
            let _gave = unsafe { (dfs.dfs_umount)(raw) };
        }
        if let Some(container) = self.container {
            // SAFETY: likewise.
            let _gave = unsafe { (daos.daos_cont_close)(container, ptr::null_mut()) };
        }
        // SAFETY: likewise.
        let _gave = unsafe { (daos.daos_pool_disconnect)(self.pool, ptr::null_mut()) };
    }
}

/// What a name in a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daos) struct Facts {
    pub(in crate::daos) id: ObjectId,
    pub(in crate::daos) len: u64,
    /// Nanoseconds.
    pub(in crate::daos) mtime: i128,
    /// `S_IFMT` of its mode.
    pub(in crate::daos) format: libc::mode_t,
}

impl Facts {
    fn of(stat: &libc::stat, id: ObjectId) -> Self {
        let mtime = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
        Self { id, len: u64::try_from(stat.st_size).unwrap_or(0), mtime, format: stat.st_mode & libc::S_IFMT }
    }
}

/// An open file or directory.
pub(in crate::daos) struct Node {
    pub(in crate::daos) mount: Arc<Held<Mount>>,
    raw: Raw,
    id: ObjectId,
}

// SAFETY: libdfs's objects are opened once and looked at then; reads and writes of several threads are its own.
unsafe impl Send for Node {}
// SAFETY: as above.
unsafe impl Sync for Node {}

impl Node {
    /// Opens what has this path, which begins with a slash; what a symbolic link points to.
    pub(in crate::daos) fn look_up(
        mount: &Arc<Held<Mount>>,
        path: &CStr,
        access: Access,
    ) -> Result<(Self, Facts), Failed> {
        let (mut raw, mut mode, mut stat) = (ptr::null_mut(), 0, MaybeUninit::zeroed());
        let (dfs, (_, flags)) = (mount.client.library.dfs, access.flags());
        // SAFETY: a mount, a text, and three places.
        let gave = unsafe {
            (dfs.dfs_lookup)(mount.raw(), path.as_ptr(), flags, &raw mut raw, &raw mut mode, stat.as_mut_ptr())
        };
        check_dfs("dfs_lookup", gave)?;
        let node = Self::with(mount, raw)?;
        // SAFETY: of numbers only, which were zeros before the library wrote to it.
        let stat = unsafe { stat.assume_init() };
        let facts = Facts::of(&stat, node.id);
        Ok((node, facts))
    }

    /// One that was just opened, with its number.
    fn with(mount: &Arc<Held<Mount>>, raw: Raw) -> Result<Self, Failed> {
        let mut node = Self { mount: mount.clone(), raw, id: ObjectId::default() };
        // SAFETY: an object that is open, and a place.
        check_dfs("dfs_obj2id", unsafe { (node.dfs().dfs_obj2id)(raw, &raw mut node.id) })?;
        Ok(node)
    }

    fn dfs(&self) -> Dfs {
        self.mount.client.library.dfs
    }

    /// Facts, as the container has them now: of its name in the directory that it was opened in.
    pub(in crate::daos) fn stat(&self) -> Result<Facts, Failed> {
        let mut stat = MaybeUninit::zeroed();
        // SAFETY: a mount, an object that is open in it, and a place.
        let gave = unsafe { (self.dfs().dfs_ostat)(self.mount.raw(), self.raw, stat.as_mut_ptr()) };
        check_dfs("dfs_ostat", gave)?;
        // SAFETY: of numbers only, which were zeros before the library wrote to it.
        Ok(Facts::of(&unsafe { stat.assume_init() }, self.id))
    }

    /// Reads into `buffer`, as long as it is, from byte `offset` on.
    pub(in crate::daos) fn read(&self, offset: u64, buffer: Vec<u8>, keep: Keep) -> Result<Begun, Failed> {
        let (library, mount, raw) = (self.mount.client.library, self.mount.raw(), self.raw);
        Queue::begin(&self.mount.client, buffer, keep, |parts| {
            // SAFETY: a mount, and a file that is open in it, which are by the contract of `Keep` there until the event ends, as all of the
            // others are that have their place in memory of the queue's.
            let gave = unsafe { (library.dfs.dfs_read)(mount, raw, parts.list, offset, parts.moved, parts.event) };
            check_dfs("dfs_read", gave)
        })
    }

    /// Asks the library to end a read that nobody waits for any more.
    pub(in crate::daos) fn give_up(&self, number: u64) {
        self.mount.client.queue.give_up(number);
    }

    /// Writes all of `from` at byte `offset`.
    pub(in crate::daos) fn write(&self, offset: u64, from: &[u8]) -> Result<(), Failed> {
        if from.is_empty() {
            return Ok(());
        }
        let mut iov = Iov { base: from.as_ptr().cast_mut().cast(), room: from.len(), len: from.len() };
        let mut list = SgList { iovs: &raw mut iov, ..SgList::ONE };
        // SAFETY: a mount, a file that is open in it, and a list of memory as long as is said, which the library reads; without an event it
        // is done with it when it returns.
        let gave =
            unsafe { (self.dfs().dfs_write)(self.mount.raw(), self.raw, &raw mut list, offset, ptr::null_mut()) };
        check_dfs("dfs_write", gave)
    }

    /// Makes it as long as is said.
    pub(in crate::daos) fn set_len(&self, len: u64) -> Result<(), Failed> {
        // SAFETY: a mount, and a file that is open in it.
        let gave = unsafe { (self.dfs().dfs_punch)(self.mount.raw(), self.raw, len, TO_THE_END) };
        check_dfs("dfs_punch", gave)
    }

    /// Makes a file that is not there.
    pub(in crate::daos) fn create(&self, leaf: &CStr) -> Result<Self, Failed> {
        let (mut raw, mode, flags) =
            (ptr::null_mut(), libc::S_IFREG | 0o644, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL);
        let (mount, above, none) = (self.mount.raw(), self.raw, ptr::null());
        // SAFETY: a mount, a directory that is open in it, a text, and a place; zeros are the container's class and size of pieces.
        let gave = unsafe { (self.dfs().dfs_open)(mount, above, leaf.as_ptr(), mode, flags, 0, 0, none, &raw mut raw) };
        check_dfs("dfs_open", gave)?;
        Self::with(&self.mount, raw)
    }

    /// Makes a directory, if none has its name.
    pub(in crate::daos) fn make_directory(&self, leaf: &CStr) -> Result<(), Failed> {
        // SAFETY: a mount, a directory that is open in it, and a text.
        let gave = unsafe { (self.dfs().dfs_mkdir)(self.mount.raw(), self.raw, leaf.as_ptr(), 0o755, 0) };
        match check_dfs("dfs_mkdir", gave) {
            Err(Failed { code: Code::Errno(libc::EEXIST), .. }) => Ok(()),
            other => other,
        }
    }

    /// Gives a name in this directory another one, over what has it.
    pub(in crate::daos) fn rename(&self, from: &CStr, to: &CStr) -> Result<(), Failed> {
        let (mount, above, none) = (self.mount.raw(), self.raw, ptr::null_mut());
        // SAFETY: a mount, a directory that is open in it, and two texts.
        check_dfs("dfs_move", unsafe { (self.dfs().dfs_move)(mount, above, from.as_ptr(), above, to.as_ptr(), none) })
    }

    /// Removes a name in this directory; none of a directory that has any.
    pub(in crate::daos) fn remove(&self, leaf: &CStr) -> Result<(), Failed> {
        let (mount, above) = (self.mount.raw(), self.raw);
        // SAFETY: a mount, a directory that is open in it, and a text.
        check_dfs("dfs_remove", unsafe { (self.dfs().dfs_remove)(mount, above, leaf.as_ptr(), false, ptr::null_mut()) })
    }

    /// Gives the names in this directory, a page at a time.
    pub(in crate::daos) fn names(&self, each: &mut dyn FnMut(CString)) -> Result<(), Failed> {
        let mut anchor = Anchor::START;
        // SAFETY: of numbers only.
        let empty: libc::dirent = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut page = vec![empty; sw_mem::index(u64::from(PAGE_NAMES))];
        while !anchor.is_end() {
            let mut count = PAGE_NAMES;
            let (mount, directory) = (self.mount.raw(), self.raw);
            // SAFETY: a mount, a directory that is open in it, two places, and entries as many as are said.
            let gave = unsafe {
                (self.dfs().dfs_readdir)(mount, directory, &raw mut anchor, &raw mut count, page.as_mut_ptr())
            };
            check_dfs("dfs_readdir", gave)?;
            if count == 0 && !anchor.is_end() {
                // It would go on without an end.
                return Err(Failed { call: "dfs_readdir", code: Code::Errno(libc::EIO) });
            }
            for entry in page.iter().take(sw_mem::index(u64::from(count))) {
                let bytes = entry.d_name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0);
                if let Ok(name) = CString::new(bytes.collect::<Vec<u8>>()) {
                    each(name);
                }
            }
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // SAFETY: the object is open, and given back here only; reads keep this.
        let _gave = unsafe { (self.dfs().dfs_release)(self.raw) };
    }
}
