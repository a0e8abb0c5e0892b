//! Names: what opens, what is refused and how, how new files come into being.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure to prepare is a failed test")]

use std::{
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
};

use sw_engine::{
    ErrorKind,
    seam::{EntryKind, OpenMode, Store},
};
use sw_uring::{FileStore, IO_URING, UringConfig, UringTransport};

use crate::{
    mounts::tool,
    support::{pattern, read, scratch, write},
};

fn store() -> FileStore {
    FileStore::new(IO_URING)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Hidden names that are left in a directory.
fn hidden(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn what_is_not_bytes_is_refused_by_kind_with_its_name() {
    let scratch = scratch("kinds");
    tool("mkfifo", &[text(&scratch.path("pipe"))]).unwrap();
    let _socket = UnixListener::bind(scratch.path("socket")).unwrap();
    std::fs::create_dir(scratch.path("dir")).unwrap();
    std::os::unix::fs::symlink("nowhere", scratch.path("dangling")).unwrap();
    std::fs::write(scratch.path("file"), b"x").unwrap();
    let expected = [
        ("missing", ErrorKind::NotFound),
        ("file/below", ErrorKind::NotFound),
        ("dangling", ErrorKind::NotFound),
        ("dir", ErrorKind::WrongKind),
        ("pipe", ErrorKind::WrongKind),
        ("socket", ErrorKind::WrongKind),
    ];
    for (name, kind) in expected {
        for mode in [OpenMode::Read, OpenMode::Update] {
            let path = scratch.path(name);
            let error = store().open(text(&path), mode).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(text(&path)) && !error.remedy_text().is_empty(), "{error}");
        }
    }
    assert_eq!(store().open("/dev/null", OpenMode::Read).unwrap_err().kind(), ErrorKind::WrongKind);
    assert_eq!(store().open("a\0b", OpenMode::Read).unwrap_err().kind(), ErrorKind::ApiMisuse);
}

#[test]
fn a_new_file_appears_at_commit_and_keeps_the_old_ones_permissions() {
    let scratch = scratch("commit");
    let target = scratch.path("file");
    std::fs::write(&target, b"old").unwrap();
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o640)).unwrap();
    let mut transport = UringTransport::new(UringConfig::default()).unwrap();
    let intent = store().create(text(&target), 5000).unwrap();
    assert_eq!(intent.object().len, 5000);
    assert_eq!(&*intent.object().name, text(&target), "reports show the name that was asked for");
    let data = pattern(5000, 40);
    let odd = intent.object().bytewise_face().unwrap();
    assert_eq!(write(&mut transport, intent.object(), odd, 0, &data), Ok(5000));
    assert_eq!(std::fs::read(&target).unwrap(), b"old");
    intent.commit(sw_engine::seam::Names::Durable).unwrap();
    assert!(std::fs::read(&target).unwrap() == data);
    assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(hidden(&scratch.path("")), [""; 0]);
}

#[test]
fn a_dropped_new_file_leaves_nothing_and_a_symbolic_link_keeps_being_one() {
    let scratch = scratch("dropped");
    std::fs::write(scratch.path("real"), b"old").unwrap();
    std::os::unix::fs::symlink("real", scratch.path("link")).unwrap();
    let intent = store().create(text(&scratch.path("link")), 10).unwrap();
    assert_eq!(hidden(&scratch.path("")).len(), 1);
    drop(intent);
    assert_eq!(hidden(&scratch.path("")), [""; 0]);
    assert_eq!(std::fs::read(scratch.path("real")).unwrap(), b"old");
    store().create(text(&scratch.path("link")), 0).unwrap().commit(sw_engine::seam::Names::Durable).unwrap();
    assert!(std::fs::symlink_metadata(scratch.path("link")).unwrap().is_symlink());
    assert_eq!(std::fs::read(scratch.path("real")).unwrap(), b"");
}

#[test]
fn what_cannot_be_replaced_is_refused_at_create() {
    let scratch = scratch("refused");
    std::fs::create_dir(scratch.path("dir")).unwrap();
    let kind = |name: &Path, len| store().create(text(name), len).err().unwrap().kind();
    assert_eq!(kind(&scratch.path("dir"), 1), ErrorKind::WrongKind);
    assert_eq!(kind(Path::new("/"), 1), ErrorKind::WrongKind);
    assert_eq!(kind(&scratch.path("missing/file"), 1), ErrorKind::NotFound);
    assert_eq!(kind(&scratch.path("huge"), u64::MAX), ErrorKind::TooLarge);
    assert_eq!(hidden(&scratch.path("")), [""; 0]);
}

#[test]
fn a_copy_goes_on_where_it_was_recorded_and_only_for_the_same_source() {
    let scratch = scratch("resume");
    let target = scratch.path("copy");
    let mut transport = UringTransport::new(UringConfig::default()).unwrap();
    let data = pattern(200_000, 41);
    let start = |key| store().create_resumable(text(&target), 200_000, key).unwrap();
    let mut first = start(7);
    assert_eq!(first.done(), 0);
    let odd = first.object().bytewise_face().unwrap();
    write(&mut transport, first.object(), odd, 0, &data[..131_072]).unwrap();
    first.record(131_072).unwrap();
    assert_eq!(first.record(200_001).unwrap_err().kind(), ErrorKind::OutOfRange);
    let busy = store().create_resumable(text(&target), 200_000, 7).err().unwrap();
    assert_eq!(busy.kind(), ErrorKind::InUse, "{busy}");
    drop(first);
    assert!(!target.exists());
    let other = start(8);
    assert_eq!(other.done(), 0, "another version of the source starts anew");
    other.discard().unwrap();
    let second = start(7);
    assert_eq!(second.done(), 131_072);
    assert!(read(&mut transport, second.object(), odd, 0, 131_072).unwrap() == data[..131_072]);
    write(&mut transport, second.object(), odd, 131_072, &data[131_072..]).unwrap();
    second.commit().unwrap();
    assert!(std::fs::read(&target).unwrap() == data);
    assert_eq!(hidden(&scratch.path("")), [""; 0]);
}

#[test]
fn a_record_that_does_not_fit_its_file_counts_as_nothing() {
    let scratch = scratch("record");
    let target = scratch.path("copy");
    let mut first = store().create_resumable(text(&target), 100_000, 1).unwrap();
    first.record(50_000).unwrap();
    drop(first);
    let partial = scratch.path(".copy.0000000000000001.straightway-partial");
    std::fs::OpenOptions::new().write(true).open(&partial).unwrap().set_len(60_000).unwrap();
    assert_eq!(store().create_resumable(text(&target), 100_000, 1).unwrap().done(), 0);
    // The file has its full length again, and nothing was written: the old record must not come back.
    let again = store().create_resumable(text(&target), 100_000, 1).unwrap();
    assert_eq!((again.object().len, again.done()), (100_000, 0));
    drop(again);
    std::fs::write(scratch.path(".copy.0000000000000001.straightway-resume"), [0xFF; 4096]).unwrap();
    assert_eq!(store().create_resumable(text(&target), 100_000, 1).unwrap().done(), 0);
}

#[test]
fn listings_are_in_byte_order_and_name_what_opens() {
    let scratch = scratch("list");
    for name in ["b", "a", "B", "ä", "a.b"] {
        std::fs::write(scratch.path(name), name).unwrap();
    }
    std::fs::create_dir(scratch.path("dir")).unwrap();
    std::os::unix::fs::symlink("nowhere", scratch.path("dangling")).unwrap();
    let entries = store().list(text(&scratch.path("").join("."))).unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["B", "a", "a.b", "b", "dir", "ä"]);
    for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Object) {
        let object = store().open(&entry.name, OpenMode::Read).unwrap();
        assert_eq!((object.len, object.version), (entry.len, entry.version));
    }
    let own = store().list(text(&scratch.path("a"))).unwrap();
    assert_eq!(own, [store().stat(text(&scratch.path("a"))).unwrap()]);
    assert_eq!(store().list(text(&scratch.path("no"))).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn removed_truncated_and_reserved() {
    let scratch = scratch("remove");
    let path = scratch.path("file");
    std::fs::write(&path, b"0123456789").unwrap();
    let object = store().open(text(&path), OpenMode::Update).unwrap();
    sw_uring::truncate(&object, 4).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"0123");
    sw_uring::preallocate(&object, 8192).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
    let reader = store().open(text(&path), OpenMode::Read).unwrap();
    assert!(sw_uring::truncate(&reader, 0).is_err(), "opened for reading only");
    store().remove(text(&path)).unwrap();
    assert_eq!(store().remove(text(&path)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store().remove(text(&scratch.path(""))).unwrap_err().kind(), ErrorKind::WrongKind);
    let gone = sw_uring::unchanged(&object).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Changed, "{gone}");
}
