//! A FUSE server with one file in memory, and a range of it that answers an errno.
#![expect(clippy::unwrap_used, reason = "test code: a failure to prepare is a failed test")]

use std::{
    ffi::OsStr,
    ops::Range,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};

const TTL: Duration = Duration::from_secs(60);
const FILE: INodeNo = INodeNo(2);

/// The name of its file.
pub(crate) const NAME: &str = "file";

struct OneFile {
    content: Mutex<Vec<u8>>,
    bad: Range<u64>,
    errno: Errno,
}

/// The mounted server; unmounted when dropped.
pub(crate) struct Fuse {
    at: PathBuf,
    _session: BackgroundSession,
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Lazily: the kernel closes the last descriptor of a dropped ring a moment later, and until then it is busy. The
        // server goes on until that has happened.
        let _ = crate::mounts::tool("umount", &["-l", self.at.to_str().unwrap()]);
    }
}

/// Mounts a file with `content`; reads and writes that touch `bad` get `errno`.
pub(crate) fn mount(at: &Path, content: Vec<u8>, bad: Range<u64>, errno: i32) -> Result<Fuse, String> {
    if !crate::mounts::is_root() {
        return Err("mounting needs root".to_owned());
    }
    std::fs::create_dir_all(at).unwrap();
    let server = OneFile { content: Mutex::new(content), bad, errno: Errno::from_i32(errno) };
    let session = fuser::spawn_mount(server, at, &Config::default());
    let session = session.map_err(|error| format!("mounting FUSE: {error}"))?;
    Ok(Fuse { at: at.to_owned(), _session: session })
}

impl OneFile {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let file = inode == FILE;
        let size = if file { self.content.lock().unwrap().len() as u64 } else { 0 };
        FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            perm: if file { 0o666 } else { 0o777 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn is_bad(&self, offset: u64, len: u64) -> bool {
        offset < self.bad.end && self.bad.start < offset + len
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&TTL, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(size) = size {
            self.content.lock().unwrap().resize(usize::try_from(size).unwrap(), 0);
        }
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.is_bad(offset, u64::from(size)) {
            return reply.error(self.errno);
        }
        let content = self.content.lock().unwrap();
        let start = usize::try_from(offset).unwrap().min(content.len());
        let end = (start + size as usize).min(content.len());
        reply.data(&content[start..end]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if self.is_bad(offset, data.len() as u64) {
            return reply.error(self.errno);
        }
        let mut content = self.content.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let end = start + data.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(data);
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }
}
