//! A source that does not answer: a FUSE file of which a range is never read.

use std::{
    ffi::OsStr,
    ops::Range,
    path::PathBuf,
    process::Command,
    sync::Mutex,
    time::{Duration, Instant, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
};
use sw_data::{
    loader::{LoadError, OnBad, Why},
    order::Method,
    samples::Format,
};

use crate::set::{Set, entry, options};

const TTL: Duration = Duration::from_secs(60);
const FILE: INodeNo = INodeNo(2);
const NAME: &str = "shard";

/// A file in memory. Reads that touch `silent` get no answer.
struct OneFile {
    flags: FopenFlags,
    content: Vec<u8>,
    silent: Range<u64>,
    unanswered: Mutex<Vec<ReplyData>>,
}

struct Fuse {
    at: PathBuf,
    _session: BackgroundSession,
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // By force: what was never answered ends with an error.
        let _ = Command::new("umount").arg("-f").arg(&self.at).output();
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

fn mount(at: PathBuf, flags: FopenFlags, content: Vec<u8>, silent: Range<u64>) -> Result<Fuse, String> {
    std::fs::create_dir_all(&at).unwrap();
    let server = OneFile { flags, content, silent, unanswered: Mutex::default() };
    let session = fuser::spawn_mount(server, &at, &Config::default());
    let session = session.map_err(|error| format!("mounting FUSE: {error}"))?;
    Ok(Fuse { at, _session: session })
}

impl OneFile {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let file = inode == FILE;
        FileAttr {
            ino: inode,
            size: if file { self.content.len() as u64 } else { 0 },
            blocks: 1,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            perm: if file { 0o444 } else { 0o755 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
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

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), self.flags);
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
        if offset < self.silent.end && self.silent.start < offset + u64::from(size) {
            return self.unanswered.lock().unwrap().push(reply);
        }
        let start = usize::try_from(offset).unwrap().min(self.content.len());
        let end = (start + usize::try_from(size).unwrap()).min(self.content.len());
        reply.data(&self.content[start..end]);
    }
}

/// A shard of 12 samples of which the sixth is never read, and the mount that it is on.
///
/// Samples are longer than twice what the kernel reads ahead, so that reading the one before does not touch the silent byte.
fn silent(flags: FopenFlags) -> Option<(Set, Fuse)> {
    let mut set = Set::new(1, 12, |_| 400_000);
    let content = std::fs::read(&set.objects[0].uri).unwrap();
    let bad = set.places[5].extent;
    match mount(set.scratch.path("mnt"), flags, content, bad.offset + 200_000..bad.offset + 200_001) {
        Ok(fuse) => {
            set.objects[0] = entry(&set.engine, &set.scratch.text(&format!("mnt/{NAME}")), Format::Tar);
            Some((set, fuse))
        }
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

#[test]
fn a_source_that_hangs_is_named_with_its_range_after_the_deadline_and_the_end_is_in_time() {
    // Without that, opening the file again would wait for the page that is never read.
    let Some((set, fuse)) = silent(FopenFlags::FOPEN_KEEP_CACHE) else { return };
    let mut options = options(2);
    (options.method, options.deadline, options.join_bytes) = (Method::Sequence, Duration::from_millis(300), 1);
    let loader = set.loader(options.clone());
    for batch in 0..6 {
        match loader.next_batch() {
            Ok(got) => set.check(&got.unwrap()),
            Err(LoadError::Sample(bad)) => {
                assert_eq!((batch, bad.id.number, bad.extent), (2, 5, set.places[5].extent));
                assert!(bad.object.ends_with("mnt/shard"), "{bad}");
                let Why::Storage(error) = &bad.why else { panic!("{bad}") };
                assert_eq!(error.kind(), straightway::ErrorKind::DeadlineExceeded);
            }
            Err(other) => panic!("{other}"),
        }
    }
    let start = Instant::now();
    drop(loader);
    assert!(start.elapsed() < TTL / 2, "{:?}", start.elapsed());
    // Left out, the rest of its batch is read into other memory: the device still has the first.
    options.on_bad = OnBad::Skip { max: 1 };
    let loader = set.loader(options.clone());
    let mut numbers = set.epoch(&loader);
    numbers.sort_unstable();
    assert_eq!(numbers, (0..12).filter(|number| *number != 5).collect::<Vec<_>>());
    assert_eq!(loader.stats().left_out, 1);
    drop(loader);
    // So is the rest of its window, and what was read in one piece with it is lost with it.
    (options.method, options.join_bytes) = (Method::Blocks { samples: 2, blocks: 6 }, 1 << 20);
    options.on_bad = OnBad::Skip { max: 2 };
    let loader = set.loader(options);
    let mut numbers = set.epoch(&loader);
    numbers.sort_unstable();
    assert_eq!(numbers, (0..12).filter(|number| ![4, 5].contains(number)).collect::<Vec<_>>());
    let stats = loader.stats();
    assert_eq!((stats.left_out, stats.read_again, stats.window_samples), (2, 1, 12));
    drop(loader);
    drop(fuse);
}

#[test]
fn a_source_that_holds_the_reader_in_the_kernel_is_told_all_the_same() {
    // Direct I/O of FUSE waits in the system call that starts the read: no deadline of the lane can end that.
    let Some((set, fuse)) = silent(FopenFlags::FOPEN_DIRECT_IO) else { return };
    let mut options = options(2);
    (options.method, options.deadline, options.join_bytes) = (Method::Sequence, Duration::from_millis(300), 1);
    let loader = set.loader(options);
    let error = (0..6).find_map(|_| loader.next_batch().err());
    match error {
        Some(LoadError::Stuck { object, reads, .. }) => assert!(object.ends_with("mnt/shard") && reads > 0),
        // A kernel that starts such a read elsewhere ends it by its deadline.
        Some(LoadError::Sample(bad)) => assert_eq!(bad.id.number, 5, "{bad}"),
        other => panic!("{other:?}"),
    }
    let start = Instant::now();
    drop(loader);
    assert!(start.elapsed() < TTL / 2, "{:?}", start.elapsed());
    drop(fuse);
}
