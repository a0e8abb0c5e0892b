//! What libdfs exports: files of a container, which are files of a directory.
// UNSAFETY: exported names, and memory of the caller by its address.

use std::{
    ffi::{c_char, c_int},
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use crate::{
    Count, Setting, count,
    daos::{self, Event, SgList, named, place, stall},
    setting,
};

/// `dfs_t`.
struct Mounted(PathBuf);

/// `dfs_obj_t`.
pub(crate) struct Open {
    path: PathBuf,
    /// `None` of a directory.
    file: Option<File>,
    inode: u64,
}

/// `daos_anchor_t`.
#[repr(C)]
struct Anchor {
    kind: u16,
    shard: u16,
    flags: u32,
    sub_anchors: u64,
    buffer: [u8; 104],
}

impl Open {
    pub(crate) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Writes the file anew, with as many other bytes, and another time.
    pub(crate) fn change(&self) {
        let Ok(bytes) = fs::read(&self.path) else { return };
        let other: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        let _written = fs::write(&self.path, other);
        if let Ok(file) = OpenOptions::new().write(true).open(&self.path) {
            let now = fs::metadata(&self.path).and_then(|facts| facts.modified());
            let _set = now.and_then(|now| file.set_modified(now + std::time::Duration::from_secs(1)));
        }
    }
}

/// What libdfs gives of a call of the system's.
fn gave(result: io::Result<()>) -> c_int {
    result.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0)
}

/// A mount, and an object, which the caller has open.
fn mounted<'a>(mount: *const Mounted) -> &'a Mounted {
    // SAFETY: the caller has it open.
    unsafe { &*mount }
}

fn opened<'a>(open: *const Open) -> &'a Open {
    // SAFETY: the caller has it open.
    unsafe { &*open }
}

fn fill(facts: &fs::Metadata, stat: *mut libc::stat) {
    // SAFETY: the caller gives a place.
    let stat = unsafe { &mut *stat };
    // As libdfs does: a number of an inode it has not.
    stat.st_mode = facts.permissions().mode();
    stat.st_size = facts.len().cast_signed();
    stat.st_mtime = facts.mtime();
    stat.st_mtime_nsec = facts.mtime_nsec();
}

fn give(open: Open, object: *mut *mut Open) {
    count(Count::Nodes, 1);
    // SAFETY: the caller gives a place.
    unsafe { object.write(Box::into_raw(Box::new(open))) };
}

#[unsafe(no_mangle)]
extern "C" fn dfs_mount(_pool: u64, container: u64, _flags: c_int, mount: *mut *mut Mounted) -> c_int {
    if setting(Setting::MountCode) != 0 {
        return setting(Setting::MountCode);
    }
    let Some(path) = place(container) else { return libc::EINVAL };
    count(Count::Mounts, 1);
    // SAFETY: the caller gives a place.
    unsafe { mount.write(Box::into_raw(Box::new(Mounted(path)))) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn dfs_umount(mount: *mut Mounted) -> c_int {
    count(Count::Mounts, -1);
    // SAFETY: of `dfs_mount`, given back once.
    drop(unsafe { Box::from_raw(mount) });
    0
}

#[unsafe(no_mangle)]
extern "C" fn dfs_lookup(
    mount: *const Mounted,
    path: *const c_char,
    flags: c_int,
    object: *mut *mut Open,
    mode: *mut libc::mode_t,
    stat: *mut libc::stat,
) -> c_int {
    stall(Setting::StallLookup);
    daos::wait_us(setting(Setting::LookupUs));
    let given = named(path);
    if setting(Setting::RefuseClosed) != 0 && given.ends_with("closed") {
        return libc::EACCES;
    }
    let Ok(below) = given.strip_prefix("/") else { return libc::EINVAL };
    let path = mounted(mount).0.join(below);
    let found = fs::metadata(&path).and_then(|facts| {
        let file = facts.is_file().then(|| OpenOptions::new().read(true).write(flags == libc::O_RDWR).open(&path));
        Ok((facts, file.transpose()?))
    });
    let (facts, file) = match found {
        Ok(found) => found,
        Err(error) => return gave(Err(error)),
    };
    fill(&facts, stat);
    // SAFETY: the caller gives a place.
    unsafe { mode.write(facts.permissions().mode()) };
    give(Open { path, file, inode: facts.ino() }, object);
    0
}

#[unsafe(no_mangle)]
extern "C" fn dfs_open(
    _mount: *const Mounted,
    above: *const Open,
    name: *const c_char,
    _mode: libc::mode_t,
    flags: c_int,
    _class: u32,
    _piece: u64,
    _value: *const c_char,
    object: *mut *mut Open,
) -> c_int {
    let path = opened(above).path.join(named(name));
    let mut how = OpenOptions::new();
    how.read(true).write(true).custom_flags(flags & !libc::O_ACCMODE).mode(0o644).create_new(true);
    let made = how.open(&path).and_then(|file| Ok((file.metadata()?.ino(), file)));
    match made {
        Ok((inode, file)) => give(Open { path, file: Some(file), inode }, object),
        Err(error) => return gave(Err(error)),
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn dfs_release(object: *mut Open) -> c_int {
    count(Count::Nodes, -1);
    // SAFETY: of a call that opened it, given back once.
    drop(unsafe { Box::from_raw(object) });
    0
}

#[unsafe(no_mangle)]
extern "C" fn dfs_obj2id(object: *const Open, id: *mut [u64; 2]) -> c_int {
    // SAFETY: the caller gives a place.
    unsafe { id.write([opened(object).inode, 7]) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn dfs_ostat(_mount: *const Mounted, object: *const Open, stat: *mut libc::stat) -> c_int {
    count(Count::Stats, 1);
    let open = opened(object);
    match fs::metadata(&open.path) {
        Ok(facts) if facts.ino() == open.inode => {
            fill(&facts, stat);
            0
        }
        Ok(_) => libc::ENOENT,
        Err(error) => gave(Err(error)),
    }
}

#[unsafe(no_mangle)]
extern "C" fn dfs_read(
    _mount: *const Mounted,
    object: *const Open,
    list: *mut SgList,
    offset: u64,
    moved: *mut u64,
    event: *mut Event,
) -> c_int {
    if setting(Setting::ReadCode) != 0 {
        // So that the queue is polled meanwhile.
        daos::wait_us(20_000);
        return setting(Setting::ReadCode);
    }
    daos::begin(object, list, offset, moved, event);
    0
}

#[unsafe(no_mangle)]
extern "C" fn dfs_write(
    _mount: *const Mounted,
    object: *const Open,
    list: *mut SgList,
    offset: u64,
    _event: *mut Event,
) -> c_int {
    if setting(Setting::WriteCode) != 0 {
        return setting(Setting::WriteCode);
    }
    // SAFETY: a list of the caller's, which blocks until this is done.
    let bytes = unsafe { daos::memory(list) };
    gave(opened(object).file().map_or(Ok(()), |file| file.write_all_at(bytes, offset)))
}

#[unsafe(no_mangle)]
extern "C" fn dfs_punch(_mount: *const Mounted, object: *const Open, offset: u64, _len: u64) -> c_int {
    gave(opened(object).file().map_or(Ok(()), |file| file.set_len(offset)))
}

#[unsafe(no_mangle)]
extern "C" fn dfs_readdir(
    _mount: *const Mounted,
    object: *const Open,
    anchor: *mut Anchor,
    number: *mut u32,
    entries: *mut libc::dirent,
) -> c_int {
    count(Count::Pages, 1);
    if setting(Setting::ReaddirCode) != 0 {
        return setting(Setting::ReaddirCode);
    }
    // SAFETY: the caller gives places for all of them.
    let anchor = unsafe { &mut *anchor };
    // SAFETY: likewise.
    let number = unsafe { &mut *number };
    let listed = fs::read_dir(&opened(object).path).map(|list| list.flatten().map(|entry| entry.file_name()));
    let mut names: Vec<_> = match listed {
        Ok(names) => names.collect(),
        Err(error) => return gave(Err(error)),
    };
    // As by their hashes: in no order of theirs, but the same one each time.
    names.sort_by_key(|name| {
        (name.as_bytes().iter().fold(0_u32, |sum, byte| sum * 31 % 65_521 + u32::from(*byte)), name.clone())
    });
    let (from, most) = (usize::try_from(anchor.sub_anchors).unwrap_or(0), usize::try_from(*number).unwrap_or(0));
    let page: Vec<_> = names.iter().skip(from).take(most).collect();
    for (place, name) in page.iter().enumerate() {
        // SAFETY: as many entries as the caller says, whose names have room for the longest.
        let to = unsafe { entries.add(place) };
        // SAFETY: likewise.
        let to = unsafe { &mut (*to).d_name };
        for (to, from) in to.iter_mut().zip(name.as_bytes().iter().chain([&0])) {
            *to = from.cast_signed();
        }
    }
    anchor.sub_anchors += page.len() as u64;
    anchor.kind = if from + page.len() >= names.len() { 3 } else { 1 };
    *number = u32::try_from(page.len()).unwrap_or(0);
    0
}

#[unsafe(no_mangle)]
extern "C" fn dfs_mkdir(
    _mount: *const Mounted,
    above: *const Open,
    name: *const c_char,
    _mode: libc::mode_t,
    _class: u32,
) -> c_int {
    gave(fs::create_dir(opened(above).path.join(named(name))))
}

#[unsafe(no_mangle)]
extern "C" fn dfs_move(
    _mount: *const Mounted,
    above: *const Open,
    name: *const c_char,
    new_above: *const Open,
    new_name: *const c_char,
    _id: *mut [u64; 2],
) -> c_int {
    let (old, new) = (opened(above).path.join(named(name)), opened(new_above).path.join(named(new_name)));
    if setting(Setting::MoveCode) != 0 {
        return setting(Setting::MoveCode);
    }
    // What is there goes first; then both names are of one object for a while.
    let inserted = match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::hard_link(&old, &new),
    };
    if let Err(error) = inserted {
        return gave(Err(error));
    }
    stall(Setting::StallMove);
    match setting(Setting::MoveHalfCode) {
        0 => gave(fs::remove_file(&old)),
        code => code,
    }
}

#[unsafe(no_mangle)]
extern "C" fn dfs_remove(
    _mount: *const Mounted,
    above: *const Open,
    name: *const c_char,
    _force: bool,
    _id: *mut [u64; 2],
) -> c_int {
    let path = opened(above).path.join(named(name));
    if Path::is_dir(&path) {
        return gave(fs::remove_dir(&path));
    }
    // The object is punched, whatever other name it has.
    let punched = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(0));
    match gave(punched.and_then(|()| fs::remove_file(&path))) {
        0 => setting(Setting::RemoveCode),
        code => code,
    }
}

#[unsafe(no_mangle)]
extern "C" fn dfs_sync(_mount: *const Mounted) -> c_int {
    0
}
