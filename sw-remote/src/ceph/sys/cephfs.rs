//! libcephfs: file systems and their files. Every call blocks.
// UNSAFETY: calling the library's functions.
#![expect(unsafe_code, reason = "calls libcephfs")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    mem::{self, MaybeUninit},
    ptr,
    sync::Arc,
};

use super::{super::held::Held, CEPH, Failed, Identity, Needed, check};
use crate::foreign::library::table;

/// `struct ceph_mount_info *`, `struct ceph_dir_result *`: named by their pointers only.
type Handle = *mut c_void;

/// `struct ceph_statx`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Statx {
    mask: u32,
    block_size: u32,
    links: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    inode: u64,
    size: u64,
    blocks: u64,
    dev: u64,
    rdev: u64,
    atime: libc::timespec,
    ctime: libc::timespec,
    mtime: libc::timespec,
    btime: libc::timespec,
    version: u64,
}

// As on every system of 64 bits.
const _: () = assert!(size_of::<Statx>() == 136);
const _: () = assert!(mem::offset_of!(Statx, inode) == 24 && mem::offset_of!(Statx, mtime) == 96);

/// `CEPH_STATX_MODE`, `_MTIME`, `_INO` and `_SIZE`.
const WANTED: c_uint = 0x001 | 0x040 | 0x100 | 0x200;

table! {
    /// libcephfs.
    CephFs, CEPH, "libcephfs.so.2", "libcephfs2":
    ceph_create(*mut Handle, *const c_char) -> c_int;
    ceph_conf_read_file(Handle, *const c_char) -> c_int;
    ceph_conf_parse_env(Handle, *const c_char) -> c_int;
    ceph_conf_set(Handle, *const c_char, *const c_char) -> c_int;
    ceph_init(Handle) -> c_int;
    ceph_select_filesystem(Handle, *const c_char) -> c_int;
    ceph_mount(Handle, *const c_char) -> c_int;
    ceph_shutdown(Handle);
    ceph_statx(Handle, *const c_char, *mut Statx, c_uint, c_uint) -> c_int;
    ceph_fstatx(Handle, c_int, *mut Statx, c_uint, c_uint) -> c_int;
    ceph_open(Handle, *const c_char, c_int, libc::mode_t) -> c_int;
    ceph_close(Handle, c_int) -> c_int;
    ceph_lazyio(Handle, c_int, c_int) -> c_int;
    ceph_read(Handle, c_int, *mut c_char, i64, i64) -> c_int;
    ceph_write(Handle, c_int, *const c_char, i64, i64) -> c_int;
    ceph_ftruncate(Handle, c_int, i64) -> c_int;
    ceph_fsync(Handle, c_int, c_int) -> c_int;
    ceph_sync_fs(Handle) -> c_int;
    ceph_rename(Handle, *const c_char, *const c_char) -> c_int;
    ceph_unlink(Handle, *const c_char) -> c_int;
    ceph_mkdirs(Handle, *const c_char, libc::mode_t) -> c_int;
    ceph_opendir(Handle, *const c_char, *mut Handle) -> c_int;
    ceph_readdir_r(Handle, Handle, *mut libc::dirent) -> c_int;
    ceph_closedir(Handle, Handle) -> c_int;
}

/// What a name in a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ceph) struct Facts {
    pub(in crate::ceph) inode: u64,
    pub(in crate::ceph) len: u64,
    /// Nanoseconds.
    pub(in crate::ceph) mtime: i128,
    /// `S_IFMT` of its mode.
    pub(in crate::ceph) format: libc::mode_t,
}

impl Facts {
    fn of(stat: &Statx) -> Self {
        let mtime = i128::from(stat.mtime.tv_sec) * 1_000_000_000 + i128::from(stat.mtime.tv_nsec);
        let format = libc::mode_t::from(stat.mode) & libc::S_IFMT;
        Self { inode: stat.inode, len: stat.size, mtime, format }
    }
}

/// A file system that is mounted in this process. Unmounting waits.
pub(in crate::ceph) struct Mount {
    table: CephFs,
    raw: Handle,
}

// SAFETY: libcephfs locks its client itself; several threads may call it with one mount (`cephfs/libcephfs.h`).
unsafe impl Send for Mount {}
// SAFETY: as above.
unsafe impl Sync for Mount {}

impl Mount {
    /// Mounts a file system by its name.
    pub(in crate::ceph) fn open(table: CephFs, identity: &Identity, name: &CStr) -> Result<Self, Failed> {
        let mut raw = ptr::null_mut();
        // SAFETY: a place for the handle, and a text.
        check("ceph_create", unsafe { (table.ceph_create)(&raw mut raw, identity.user.as_ptr()) })?;
        // From here on it is given back when it goes, mounted or not.
        let mount = Self { table, raw };
        let conf = identity.conf.as_ref().map_or(ptr::null(), |conf| conf.as_ptr());
        // SAFETY: a handle that is open, and a path or none.
        check("ceph_conf_read_file", unsafe { (table.ceph_conf_read_file)(raw, conf) })?;
        if identity.environment {
            // SAFETY: as above; without a name the variable is `CEPH_ARGS`.
            check("ceph_conf_parse_env", unsafe { (table.ceph_conf_parse_env)(raw, ptr::null()) })?;
        }
        for (option, value, needed) in &identity.options {
            // SAFETY: as above, with texts.
            let gave = unsafe { (table.ceph_conf_set)(raw, option.as_ptr(), value.as_ptr()) };
            if *needed == Needed::Yes {
                check("ceph_conf_set", gave)?;
            }
        }
        // SAFETY: as above. It asks the monitors who we are; what is wrong from here on is wrong with the file system.
        check("ceph_init", unsafe { (table.ceph_init)(raw) })?;
        // SAFETY: as above.
        check("ceph_select_filesystem", unsafe { (table.ceph_select_filesystem)(raw, name.as_ptr()) })?;
        // SAFETY: as above.
        check("ceph_mount", unsafe { (table.ceph_mount)(raw, c"/".as_ptr()) })?;
        Ok(mount)
    }

    /// Facts of a name; of what it points to, if it is a symbolic link.
    pub(in crate::ceph) fn stat(&self, path: &CStr) -> Result<Facts, Failed> {
        let mut stat = MaybeUninit::zeroed();
        // SAFETY: a mount, a text, and a place.
        let gave = unsafe { (self.table.ceph_statx)(self.raw, path.as_ptr(), stat.as_mut_ptr(), WANTED, 0) };
        check("ceph_statx", gave)?;
        // SAFETY: of numbers only, which were zeros before the library wrote to it.
        Ok(Facts::of(&unsafe { stat.assume_init() }))
    }

    /// The names in a directory, but for itself and its parent.
    pub(in crate::ceph) fn names(&self, path: &CStr) -> Result<Vec<CString>, Failed> {
        let (table, mut directory) = (&self.table, ptr::null_mut());
        // SAFETY: a mount, a text, and a place for the handle.
        check("ceph_opendir", unsafe { (table.ceph_opendir)(self.raw, path.as_ptr(), &raw mut directory) })?;
        let mut names = Vec::new();
        let ended = loop {
            let mut entry = MaybeUninit::<libc::dirent>::zeroed();
            // SAFETY: a mount, a directory that is open, and a place.
            let gave = unsafe { (table.ceph_readdir_r)(self.raw, directory, entry.as_mut_ptr()) };
            match check("ceph_readdir_r", gave) {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(failed) => break Err(failed),
            }
            // SAFETY: of numbers only, which were zeros before the library wrote to it.
            let entry = unsafe { entry.assume_init() };
            let bytes: Vec<u8> =
                entry.d_name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0).collect();
            if !matches!(&bytes[..], b"" | b"." | b"..") {
                names.extend(CString::new(bytes));
            }
        };
        // SAFETY: it was opened above, and is closed here only.
        let _gave = unsafe { (table.ceph_closedir)(self.raw, directory) };
        ended.map(|()| names)
    }

    /// Makes a directory, and those above it.
    pub(in crate::ceph) fn make_directories(&self, path: &CStr) -> Result<(), Failed> {
        // SAFETY: a mount, and a text.
        match check("ceph_mkdirs", unsafe { (self.table.ceph_mkdirs)(self.raw, path.as_ptr(), 0o777) }) {
            Err(Failed { errno: libc::EEXIST, .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    pub(in crate::ceph) fn rename(&self, from: &CStr, to: &CStr) -> Result<(), Failed> {
        // SAFETY: a mount, and two texts.
        check("ceph_rename", unsafe { (self.table.ceph_rename)(self.raw, from.as_ptr(), to.as_ptr()) }).map(drop)
    }

    pub(in crate::ceph) fn remove(&self, path: &CStr) -> Result<(), Failed> {
        // SAFETY: a mount, and a text.
        check("ceph_unlink", unsafe { (self.table.ceph_unlink)(self.raw, path.as_ptr()) }).map(drop)
    }

    /// Waits until all names that were made are durable.
    pub(in crate::ceph) fn sync(&self) -> Result<(), Failed> {
        // SAFETY: a mount.
        check("ceph_sync_fs", unsafe { (self.table.ceph_sync_fs)(self.raw) }).map(drop)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // SAFETY: the handle is open, its files are closed, and it is given back here only. Unmounts first, if it is mounted.
        unsafe { (self.table.ceph_shutdown)(self.raw) };
    }
}

/// An open file.
pub(in crate::ceph) struct File {
    mount: Arc<Held<Mount>>,
    number: c_int,
}

impl File {
    /// Opens a file to read it by lazy I/O: bytes are read whatever others do with the file meanwhile.
    pub(in crate::ceph) fn open(mount: &Arc<Held<Mount>>, path: &CStr) -> Result<Self, Failed> {
        let file = Self::with(mount, path, libc::O_RDONLY)?;
        // SAFETY: a mount, and a file that is open in it.
        check("ceph_lazyio", unsafe { (mount.table.ceph_lazyio)(mount.raw, file.number, 1) })?;
        Ok(file)
    }

    /// Makes a file that is not there.
    pub(in crate::ceph) fn create(mount: &Arc<Held<Mount>>, path: &CStr) -> Result<Self, Failed> {
        Self::with(mount, path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL)
    }

    fn with(mount: &Arc<Held<Mount>>, path: &CStr, flags: c_int) -> Result<Self, Failed> {
        // SAFETY: a mount, and a text.
        let gave = unsafe { (mount.table.ceph_open)(mount.raw, path.as_ptr(), flags, 0o666) };
        check("ceph_open", gave).map(|number| Self { mount: mount.clone(), number })
    }

    /// Facts, as the file system has them now.
    pub(in crate::ceph) fn stat(&self) -> Result<Facts, Failed> {
        let mut stat = MaybeUninit::zeroed();
        let (table, raw) = (&self.mount.table, self.mount.raw);
        // SAFETY: a mount, a file that is open in it, and a place.
        check("ceph_fstatx", unsafe { (table.ceph_fstatx)(raw, self.number, stat.as_mut_ptr(), WANTED, 0) })?;
        // SAFETY: of numbers only, which were zeros before the library wrote to it.
        Ok(Facts::of(&unsafe { stat.assume_init() }))
    }

    /// Reads at byte `offset`; how much.
    pub(in crate::ceph) fn read(&self, offset: u64, to: &mut [u8]) -> Result<usize, Failed> {
        let (offset, len) = place(offset, to.len())?;
        let (table, raw) = (&self.mount.table, self.mount.raw);
        // SAFETY: a mount, a file that is open in it, and memory as long as is said.
        let gave = unsafe { (table.ceph_read)(raw, self.number, to.as_mut_ptr().cast(), len, offset) };
        check("ceph_read", gave).map(|read| sw_mem::index(u64::from(read.unsigned_abs())))
    }

    /// Writes all of `from` at byte `offset`.
    pub(in crate::ceph) fn write(&self, mut offset: u64, mut from: &[u8]) -> Result<(), Failed> {
        while !from.is_empty() {
            let (at, len) = place(offset, from.len())?;
            let (table, raw) = (&self.mount.table, self.mount.raw);
            // SAFETY: a mount, a file that is open in it, and memory as long as is said.
            let gave = unsafe { (table.ceph_write)(raw, self.number, from.as_ptr().cast(), len, at) };
            let wrote = check("ceph_write", gave)?.unsigned_abs();
            let rest = from.get(sw_mem::index(u64::from(wrote))..).filter(|_| wrote > 0);
            from = rest.ok_or(Failed { call: "ceph_write", errno: libc::EIO })?;
            offset += u64::from(wrote);
        }
        Ok(())
    }

    /// Makes it as long as is said.
    pub(in crate::ceph) fn set_len(&self, len: u64) -> Result<(), Failed> {
        let (len, _) = place(len, 0)?;
        let (table, raw) = (&self.mount.table, self.mount.raw);
        // SAFETY: a mount, and a file that is open in it.
        check("ceph_ftruncate", unsafe { (table.ceph_ftruncate)(raw, self.number, len) }).map(drop)
    }

    /// Waits until what was written is durable.
    pub(in crate::ceph) fn sync(&self) -> Result<(), Failed> {
        let (table, raw) = (&self.mount.table, self.mount.raw);
        // SAFETY: a mount, and a file that is open in it.
        check("ceph_fsync", unsafe { (table.ceph_fsync)(raw, self.number, 0) }).map(drop)
    }
}

/// A place in a file as the library counts.
fn place(offset: u64, len: usize) -> Result<(i64, i64), Failed> {
    let too_far = |_| Failed { call: "a place in a file", errno: libc::EFBIG };
    Ok((i64::try_from(offset).map_err(too_far)?, i64::try_from(len).map_err(too_far)?))
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: a mount, and a file that is open in it and is closed here only.
        let _gave = unsafe { (self.mount.table.ceph_close)(self.mount.raw, self.number) };
    }
}
