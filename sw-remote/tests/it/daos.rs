//! DAOS's functions, by a stand-in for its libraries (`standin_libdaos`): what is called and what is made of the answers, not DAOS.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use standin_libdaos::{
    Count, Setting,
    harness::{Control, install},
};
use sw_engine::{
    Error, ErrorKind, Object, WriteOutcome,
    seam::{Entry, EntryKind, IoKind, Names, OpenMode, Store},
};
use sw_mem::{Buffer, ByteLen};
use sw_remote::{
    Context, DAOS, Runtime, System,
    daos::{Daos, DaosConfig},
    unchanged,
};
use sw_testkit::{pattern, scratch::Scratch};

use crate::{
    client::{put, read, transfer, write},
    cluster::wait_until,
    conformance::{Bed, store_conforms, transport_conforms},
};

/// A pool `pool` with a container `box`, by a copy of the stand-in.
struct Rig {
    control: Control,
    scratch: Scratch,
}

impl Rig {
    fn new(tag: &str) -> Self {
        let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag);
        fs::create_dir_all(scratch.path("pool/box")).unwrap();
        let control = install(&scratch.path("library")).unwrap();
        control.root(scratch.root()).unwrap();
        Self { control, scratch }
    }

    fn config(&self) -> DaosConfig {
        DaosConfig { libraries: Some(self.scratch.path("library")), requests: 4, ..DaosConfig::default() }
    }

    fn client(&self) -> Arc<Daos> {
        client(self.config())
    }

    /// One that waits for little.
    fn hasty(&self) -> Arc<Daos> {
        client(DaosConfig { patience: Duration::from_millis(300), ..self.config() })
    }

    fn file(&self, name: &str, len: usize) -> Vec<u8> {
        let bytes = pattern::bytes(7, 0, len);
        fs::write(self.scratch.path(&format!("pool/box/{name}")), &bytes).unwrap();
        bytes
    }

    fn open_things(&self) -> [i64; 4] {
        [Count::Inits, Count::Queues, Count::Mounts, Count::Nodes].map(|count| self.control.count(count))
    }
}

fn client(config: DaosConfig) -> Arc<Daos> {
    Arc::new(Daos::new(Context::new(Runtime::new(2)), config))
}

fn open(client: &Daos, name: &str) -> Arc<Object> {
    client.open(name, OpenMode::Read).unwrap_or_else(|error| panic!("{error}"))
}

fn kind_of<T>(result: Result<T, Error>) -> Result<(), ErrorKind> {
    result.map(drop).map_err(|error| error.kind())
}

fn names(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| &*entry.name).collect()
}

#[test]
fn the_suites_hold_with_the_stand_in() {
    let rig = Rig::new("daos-suites");
    let bed = || {
        let daos = Daos::new(Context::new(Runtime::new(2)), rig.config());
        Bed::below("stand-in of DAOS", daos, ("daos://pool/box/suite/".to_owned(), DAOS))
    };
    store_conforms(&mut bed());
    transport_conforms(&mut bed());
    assert!(wait_until(|| rig.open_things() == [0; 4]), "{:?}", rig.open_things());
}

#[test]
fn files_are_read_by_events_and_all_is_given_back() {
    let rig = Rig::new("daos-read");
    let bytes = rig.file("large", (5 << 20) + 3);
    let client = rig.client();
    let object = open(&client, "daos://pool/box/large");
    assert_eq!((object.len, object.faces[0].transport), (bytes.len() as u64, DAOS));
    assert!(read(&*client, &object).unwrap() == bytes);
    assert_eq!(rig.control.count(Count::Reads), 6);
    // A read at a time has a look each.
    assert_eq!(rig.control.count(Count::Stats), 6);
    // Pieces that are shorter than was asked for are asked for again.
    rig.control.set(Setting::BytesMax, 300_001);
    let mut buffer = Buffer::allocate(ByteLen(1 << 20)).unwrap();
    assert_eq!(transfer(&*client, &object, IoKind::Read, 77, &buffer).unwrap(), 1 << 20);
    assert!(buffer.as_mut_slice()[..1 << 20] == bytes[77..77 + (1 << 20)]);
    rig.control.set(Setting::BytesMax, 0);
    assert_eq!(rig.control.count(Count::Writers), 0, "reading takes no rights to write");
    assert!(unchanged(&object).unwrap().is_ok());
    drop((object, client));
    assert!(wait_until(|| rig.open_things() == [0; 4]), "{:?}", rig.open_things());
}

#[test]
fn names_are_listed_by_pages_and_are_what_they_are() {
    let rig = Rig::new("daos-list");
    for number in 0..600 {
        rig.file(&format!("n{number:03}"), number);
    }
    fs::create_dir(rig.scratch.path("pool/box/under")).unwrap();
    rig.file("under/one", 1);
    let client = rig.client();
    let all = client.list("daos://pool/box").unwrap();
    assert_eq!(all.len(), 601);
    assert!(all.is_sorted_by(|a, b| a.name < b.name));
    assert_eq!(rig.control.count(Count::Pages), 3);
    let last = client.stat("daos://pool/box/n599").unwrap();
    assert_eq!((last.kind, last.len), (EntryKind::Object, 599));
    assert_eq!(open(&client, "daos://pool/box/n599").version, last.version);
    assert_eq!(client.stat("daos://pool/box/under/").unwrap().kind, EntryKind::Directory);
    assert_eq!(names(&client.list("daos://pool/box/under/").unwrap()), ["daos://pool/box/under/one"]);
    assert_eq!(names(&client.list("daos://pool/box/under/one").unwrap()), ["daos://pool/box/under/one"]);
    let one = client.list("daos://pool/box").unwrap();
    assert_eq!((one[599].version, one[599].len), (last.version, 599));
    rig.control.set(Setting::ReaddirCode, i64::from(libc::EIO));
    assert_eq!(kind_of(client.list("daos://pool/box")), Err(ErrorKind::Io));
}

#[test]
fn a_listing_takes_as_long_as_it_gets_on_and_one_name_fails_none() {
    let rig = Rig::new("daos-long-list");
    for number in 0..100 {
        rig.file(&format!("n{number:03}"), 1);
    }
    rig.file("closed", 1);
    let client = rig.hasty();
    rig.control.set(Setting::RefuseClosed, 1);
    // A second or more, where nothing may take longer than 600 ms.
    rig.control.set(Setting::LookupUs, 10_000);
    let all = client.list("daos://pool/box").unwrap();
    assert_eq!((all.len(), &*all[0].name, all[0].kind), (101, "daos://pool/box/closed", EntryKind::Other));
    assert!(all[1..].iter().all(|entry| (entry.kind, entry.len) == (EntryKind::Object, 1)));
    assert_eq!(kind_of(client.stat("daos://pool/box/closed")), Err(ErrorKind::PermissionDenied));
    rig.control.set(Setting::LookupUs, 0);
    rig.control.set(Setting::StallLookup, 1);
    assert_eq!(kind_of(client.list("daos://pool/box")), Err(ErrorKind::DeadlineExceeded));
    rig.control.set(Setting::StallLookup, 0);
}

#[test]
fn a_file_is_whole_under_its_name_or_not_there() {
    let rig = Rig::new("daos-write");
    let client = rig.client();
    let name = "daos://pool/box/a/b/new";
    let there = || fs::read(rig.scratch.path("pool/box/a/b/new"));
    let left = || fs::read_dir(rig.scratch.path("pool/box/a/b")).unwrap().count();
    let bytes = pattern::bytes(1, 0, 3 << 20);
    put(&*client, name, &bytes).unwrap();
    assert!(there().unwrap() == bytes);
    // The length is known at the end only.
    let intent = client.create_open(name).unwrap();
    write(&*client, intent.object(), 0, b"shorter, later cut").unwrap();
    assert!(there().unwrap() == bytes, "until the commit the one before is there");
    intent.cut(7).unwrap();
    intent.commit(Names::Durable).unwrap();
    assert_eq!(there().unwrap(), b"shorter");
    // Given up.
    let intent = client.create(name, 5).unwrap();
    write(&*client, intent.object(), 0, b"other").unwrap();
    drop(intent);
    assert_eq!((there().unwrap(), left()), (b"shorter".to_vec(), 1));
    // A write that fails, and a rename that nobody knows the end of.
    let intent = client.create(name, 5).unwrap();
    rig.control.set(Setting::WriteCode, i64::from(libc::ENOSPC));
    assert_eq!(kind_of(write(&*client, intent.object(), 0, b"other")), Err(ErrorKind::NoSpace));
    rig.control.set(Setting::WriteCode, 0);
    rig.control.set(Setting::MoveCode, i64::from(libc::EIO));
    let error = intent.commit(Names::Durable).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Io, Some(WriteOutcome::Unknown)));
    // Its temporary name is left: it may be the same object.
    assert!(error.to_string().contains(".new.straightway-"), "{error}");
    rig.control.set(Setting::MoveCode, 0);
    assert_eq!((there().unwrap(), left()), (b"shorter".to_vec(), 2));
    client.remove(name).unwrap();
    assert_eq!(kind_of(client.remove(name)), Err(ErrorKind::NotFound));
    assert_eq!(kind_of(client.remove("daos://pool/box/a")), Err(ErrorKind::WrongKind));
    assert_eq!(kind_of(client.create("daos://pool/box/a", 1).map(drop)), Err(ErrorKind::WrongKind));
}

#[test]
fn a_rename_that_ends_half_way_costs_no_bytes() {
    let rig = Rig::new("daos-half");
    let (client, hasty) = (rig.client(), rig.hasty());
    let left = || fs::read_dir(rig.scratch.path("pool/box")).unwrap().count();
    let whole = |name: &str| fs::read(rig.scratch.path(&format!("pool/box/{name}"))).unwrap() == b"whole";
    let commit = |client: &Daos, name: &str| {
        let intent = client.create(&format!("daos://pool/box/{name}"), 5).unwrap();
        write(client, intent.object(), 0, b"whole").unwrap();
        let error = intent.commit(Names::Durable).unwrap_err();
        (error.kind(), error.outcome())
    };
    // Whatever number it has: the new name is there, of the object that the temporary one is of.
    for (name, code, kind) in [
        ("io", libc::EIO, ErrorKind::Io),
        ("rights", libc::EPERM, ErrorKind::PermissionDenied),
        ("space", libc::ENOSPC, ErrorKind::NoSpace),
    ] {
        rig.control.set(Setting::MoveHalfCode, i64::from(code));
        assert_eq!(commit(&client, name), (kind, Some(WriteOutcome::Unknown)), "{name}");
        rig.control.set(Setting::MoveHalfCode, 0);
        assert!(whole(name), "{name}");
    }
    assert_eq!(left(), 6);
    rig.control.set(Setting::StallMove, 1);
    assert_eq!(commit(&hasty, "late"), (ErrorKind::DeadlineExceeded, Some(WriteOutcome::Unknown)));
    assert!(whole("late"));
    rig.control.set(Setting::StallMove, 0);
    assert!(wait_until(|| left() == 7), "it ends in the background");
    assert!(whole("late"));
    // A removal that failed may have removed.
    rig.control.set(Setting::RemoveCode, i64::from(libc::EPERM));
    let error = client.remove("daos://pool/box/late").unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::PermissionDenied, Some(WriteOutcome::Unknown)));
    let error = client.remove("daos://pool/box/late").unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::NotFound, None), "nothing was begun");
}

#[test]
fn bytes_of_two_versions_are_never_mixed() {
    let rig = Rig::new("daos-changed");
    let client = rig.client();
    rig.file("one", 4 << 20);
    let object = open(&client, "daos://pool/box/one");
    // Another file by its name.
    rig.file("other", 4 << 20);
    fs::rename(rig.scratch.path("pool/box/other"), rig.scratch.path("pool/box/one")).unwrap();
    assert_eq!(kind_of(read(&*client, &object)), Err(ErrorKind::Changed));
    assert_eq!(kind_of(unchanged(&object).unwrap()), Err(ErrorKind::Changed));
    // The same file, written anew between two reads.
    let object = open(&client, "daos://pool/box/one");
    rig.control.set(Setting::ChangeBeforeRead, 1);
    assert_eq!(kind_of(read(&*client, &object)), Err(ErrorKind::Changed));
    rig.control.set(Setting::ChangeBeforeRead, 0);
    // Shorter, and gone.
    let object = open(&client, "daos://pool/box/one");
    rig.file("one", 1 << 20);
    assert_eq!(kind_of(read(&*client, &object)), Err(ErrorKind::Changed));
    fs::remove_file(rig.scratch.path("pool/box/one")).unwrap();
    assert_eq!(kind_of(unchanged(&object).unwrap()), Err(ErrorKind::Changed));
    assert_eq!(kind_of(client.open("daos://pool/box/one", OpenMode::Read)), Err(ErrorKind::NotFound));
}

#[test]
fn what_the_libraries_refuse_or_lie_about_has_its_kind() {
    let rig = Rig::new("daos-errors");
    rig.file("one", 1 << 20);
    let name = "daos://pool/box/one";
    for (setting, code, kind) in [
        (Setting::InitCode, -1015, ErrorKind::NoDevice),
        (Setting::PoolCode, -1001, ErrorKind::PermissionDenied),
        (Setting::PoolCode, -1006, ErrorKind::DeadlineExceeded),
        (Setting::ContainerCode, -1005, ErrorKind::NotFound),
        (Setting::MountCode, i64::from(libc::EINVAL), ErrorKind::Unsupported),
    ] {
        let client = rig.client();
        rig.control.set(setting, code);
        let error = client.open(name, OpenMode::Read).unwrap_err();
        assert_eq!(error.kind(), kind, "{setting:?} {error}");
        assert!(!error.remedy_text().is_empty(), "{error}");
        // It is asked anew, and what was half made was given back.
        rig.control.set(setting, 0);
        drop(open(&client, name));
    }
    let client = rig.client();
    let object = open(&client, name);
    for (setting, code, kind) in [
        // What libdfs makes of DER_CSUM, as of much else; its number is told apart if it comes.
        (Setting::ReadError, i64::from(libc::EIO), ErrorKind::Io),
        (Setting::ReadError, -2021, ErrorKind::ChecksumMismatch),
        (Setting::ReadCode, i64::from(libc::EPERM), ErrorKind::PermissionDenied),
        (Setting::Claimed, 1, ErrorKind::Protocol),
        (Setting::Claimed, i64::from(i32::MAX), ErrorKind::Protocol),
    ] {
        rig.control.set(setting, code);
        assert_eq!(kind_of(read(&*client, &object)), Err(kind), "{setting:?}");
        rig.control.set(setting, 0);
        assert!(read(&*client, &object).is_ok());
    }
    assert_eq!(client.reads_under_way(), 0);
    let pools = [("daos://none/box/one", ErrorKind::NotFound), ("daos://pool/none/one", ErrorKind::NotFound)];
    for (name, kind) in pools.into_iter().chain([("daos://pool/box", ErrorKind::WrongKind)]) {
        assert_eq!(kind_of(client.open(name, OpenMode::Read)), Err(kind), "{name}");
    }
    assert_eq!(kind_of(client.open(name, OpenMode::Update)), Err(ErrorKind::Unsupported));
    let missing = self::client(DaosConfig { libraries: Some("/no-such-folder".into()), ..rig.config() });
    assert_eq!(kind_of(missing.open(name, OpenMode::Read)), Err(ErrorKind::NoDevice));
}

#[test]
fn a_library_that_never_answers_keeps_its_memory_and_nobody_hangs() {
    let rig = Rig::new("daos-silent");
    let bytes = rig.file("one", 1 << 20);
    let client = rig.hasty();
    let object = open(&client, "daos://pool/box/one");
    rig.control.set(Setting::Stall, 1);
    #[expect(clippy::disallowed_methods, reason = "looks how long it waits")]
    let start = Instant::now();
    for _ in 0..4 {
        assert_eq!(kind_of(read(&*client, &object)), Err(ErrorKind::DeadlineExceeded));
    }
    // All places are the library's, and are counted.
    assert_eq!((client.reads_under_way(), rig.control.count(Count::Reads)), (4, 4));
    assert_eq!(kind_of(read(&*client, &object)), Err(ErrorKind::DeadlineExceeded));
    assert_eq!(rig.control.count(Count::Reads), 4);
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(wait_until(|| rig.control.count(Count::Aborts) == 4), "each was asked to end");
    // Polled it is in peace, though the library does not wait.
    let polls = rig.control.count(Count::Polls);
    assert_eq!(kind_of(read(&*client, &object)), Err(ErrorKind::DeadlineExceeded));
    let polls = rig.control.count(Count::Polls) - polls;
    assert!(polls < 10_000, "{polls} polls");
    // It answers again: what was late lands nowhere, and places are free.
    rig.control.set(Setting::Stall, 0);
    assert!(wait_until(|| client.reads_under_way() == 0));
    assert!(read(&*client, &object).unwrap() == bytes);
    // One that ends what it is asked to end.
    rig.control.set(Setting::Aborts, 1);
    rig.control.set(Setting::Stall, 1);
    assert_eq!(kind_of(read(&*client, &object)), Err(ErrorKind::DeadlineExceeded));
    assert!(wait_until(|| client.reads_under_way() == 0));
    rig.control.set(Setting::Aborts, 0);
    // The engine ends while the library has a read.
    assert_eq!(kind_of(read(&*client, &object)), Err(ErrorKind::DeadlineExceeded));
    drop((object, client));
    rig.control.set(Setting::Stall, 0);
    assert!(wait_until(|| rig.control.count(Count::Running) == 0 && rig.open_things() == [0; 4]));
}

#[test]
fn a_pool_that_does_not_answer_keeps_nobody_from_another() {
    let rig = Rig::new("daos-silent-pool");
    let bytes = rig.file("one", 1 << 20);
    fs::create_dir_all(rig.scratch.path("silent/box")).unwrap();
    fs::write(rig.scratch.path("silent/box/two"), b"two").unwrap();
    let client = rig.hasty();
    rig.control.set(Setting::StallPool, 1);
    let silent = "daos://silent/box/two";
    // More of them than there are threads.
    for _ in 0..20 {
        assert_eq!(kind_of(client.open(silent, OpenMode::Read)), Err(ErrorKind::DeadlineExceeded));
    }
    assert!(read(&*client, &open(&client, "daos://pool/box/one")).unwrap() == bytes);
    rig.control.set(Setting::StallPool, 0);
    assert!(wait_until(|| client.open(silent, OpenMode::Read).is_ok_and(|object| object.len == 3)));
}

#[test]
fn a_call_that_does_not_return_and_a_queue_that_fails_are_told() {
    let rig = Rig::new("daos-stuck");
    let bytes = rig.file("one", 1 << 20);
    let client = rig.hasty();
    let object = open(&client, "daos://pool/box/one");
    rig.control.set(Setting::StallLookup, 1);
    assert_eq!(kind_of(client.open("daos://pool/box/one", OpenMode::Read)), Err(ErrorKind::DeadlineExceeded));
    assert!(read(&*client, &object).unwrap() == bytes, "reads go on");
    let late = client.create("daos://pool/box/new", 1).map(drop).unwrap_err();
    assert_eq!((late.kind(), late.outcome()), (ErrorKind::DeadlineExceeded, Some(WriteOutcome::NotApplied)));
    rig.control.set(Setting::StallLookup, 0);
    let is_clean = || fs::read_dir(rig.scratch.path("pool/box")).unwrap().count() == 1;
    assert!(wait_until(is_clean), "what was made too late for its caller is removed");
    rig.control.set(Setting::PollCode, -1020);
    assert_eq!(kind_of(read(&*client, &object)), Err(ErrorKind::DeadlineExceeded));
    assert_eq!(kind_of(read(&*client, &object)), Err(ErrorKind::Io), "told at once from then on");
    rig.control.set(Setting::PollCode, 0);
    assert!(wait_until(|| client.reads_under_way() == 0));
    assert!(wait_until(|| read(&*client, &object).is_ok_and(|read| read == bytes)));
    // What a poll said is forgotten with the last event.
    rig.control.set(Setting::PollCode, -1020);
    rig.control.set(Setting::ReadCode, i64::from(libc::EPERM));
    assert_eq!(kind_of(read(&*client, &object)), Err(ErrorKind::PermissionDenied));
    rig.control.set(Setting::PollCode, 0);
    rig.control.set(Setting::ReadCode, 0);
    assert!(read(&*client, &object).unwrap() == bytes);
}
