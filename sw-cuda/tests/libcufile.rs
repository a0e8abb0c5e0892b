//! The vendor's library against a stand-in: found, checked, opened; files registered; bytes moved; what goes wrong.
//!
//! Each test loads a copy of the stand-in of its own, so none meets another's settings. NVIDIA's own library: `cargo xtask cufile`.
// UNSAFETY: fork, waitpid and _exit.
#![expect(unsafe_code, reason = "forks")]
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use standin_libcufile::{
    Count, Setting,
    harness::{Control, install},
};
use sw_cuda::{CuFile, CuFileHandle, CuFileRefusal, CuFileSource, CuFileVersion};
use sw_engine::{
    ErrorKind, Fault, ObjectId, Token,
    seam::{BlockingIo, CallFault, Io, IoKind, MAX_SEGMENTS, MemorySegment},
};
use sw_mem::{Buffer, ByteLen, DmaSpan};
use sw_testkit::scratch::Scratch;

struct Bed {
    scratch: Scratch,
    library: PathBuf,
    control: Control,
}

fn bed(tag: &str) -> Bed {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag);
    let library = install(&scratch.path("library"), &[]).unwrap();
    let control = Control::open(&library).unwrap();
    Bed { scratch, library, control }
}

impl Bed {
    fn load(&self) -> CuFile {
        let (loaded, report) = CuFile::load(&CuFileSource::File(self.library.clone()));
        loaded.unwrap_or_else(|| panic!("{report:?}"))
    }

    fn refusal(&self) -> CuFileRefusal {
        let (loaded, report) = CuFile::load(&CuFileSource::File(self.library.clone()));
        assert!(loaded.is_none(), "{report:?}");
        report.refusal()
    }

    /// A registered file of `len` bytes, open to read and to write.
    fn file(&self, library: &CuFile, len: usize) -> (CuFileHandle, Vec<u8>) {
        let bytes = self.scratch.file("data", len);
        let file = OpenOptions::new().read(true).write(true).open(self.scratch.path("data")).unwrap();
        (library.register(file.into()).unwrap(), bytes)
    }
}

/// One piece of host memory.
fn io(kind: IoKind, handle: &CuFileHandle, offset: u64, memory: &DmaSpan) -> Io {
    let len = u32::try_from(memory.len().0).unwrap();
    let segment = MemorySegment { place: memory.place(), len, region: memory.region().id() };
    let (token, object) = (Token::from_raw(0), ObjectId(1));
    Io { token, kind, object, handle: handle.word(), offset, len, segment_count: 1, segments: [segment; MAX_SEGMENTS] }
}

fn buffer(len: u64) -> DmaSpan {
    Buffer::allocate(ByteLen(len)).unwrap().into_span()
}

fn bytes_of(memory: &DmaSpan) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(memory.len().0).unwrap()];
    memory.read(0, &mut bytes).unwrap();
    bytes
}

fn known(kind: ErrorKind, code: i32) -> Result<u32, CallFault> {
    Err(CallFault::Known(Fault::new(kind, code)))
}

#[test]
fn facts_are_told_one_by_one_and_the_last_user_closes() {
    let bed = bed("facts");
    bed.control.set(Setting::Nvfs, 2017);
    let (loaded, report) = CuFile::load(&CuFileSource::File(bed.library.clone()));
    assert_eq!(report.library, Ok(bed.library.display().to_string()));
    assert_eq!((report.symbols.clone(), report.driver.clone()), (Ok(7), Ok((2, 17))));
    assert_eq!(report.version, Ok(Some(CuFileVersion { major: 1, minor: 11 })));
    assert_eq!(report.refusal(), CuFileRefusal::NotAsked);
    let library = loaded.unwrap();
    let (handle, _) = bed.file(&library, 100);
    drop(library);
    assert_eq!((bed.control.count(Count::Open), bed.control.count(Count::Registered)), (1, 1));
    drop(handle);
    assert_eq!((bed.control.count(Count::Open), bed.control.count(Count::Registered)), (0, 0));
    assert_eq!(bed.control.count(Count::ClosedEarly), 0, "a descriptor is closed after its file is deregistered");
}

#[test]
fn what_is_missing_is_named() {
    let absent = CuFileSource::File("/no/such/libcufile.so.0".into());
    let (_, report) = CuFile::load(&absent);
    assert_eq!(report.refusal(), CuFileRefusal::NotFound { asked: "/no/such/libcufile.so.0".to_owned() });
    assert_eq!(report.driver, Err(CuFileRefusal::NotAsked));
    assert_eq!(report.refusal().into_error().kind(), ErrorKind::NotFound);

    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "missing");
    std::fs::write(scratch.path("broken.so"), "no library").unwrap();
    let (_, report) = CuFile::load(&CuFileSource::File(scratch.path("broken.so")));
    assert!(matches!(report.refusal(), CuFileRefusal::Broken { .. }), "{report:?}");

    let older = install(&scratch.path("older"), &["cuFileRead", "cuFileDriverClose_v2", "cuFileGetVersion"]).unwrap();
    let (_, report) = CuFile::load(&CuFileSource::File(older.clone()));
    assert_eq!(report.library, Ok(older.display().to_string()));
    let names = vec!["cuFileDriverClose_v2", "cuFileRead"];
    assert_eq!(report.refusal(), CuFileRefusal::SymbolsMissing { names });

    let nameless = install(&scratch.path("nameless"), &["cuFileGetVersion"]).unwrap();
    let (loaded, report) = CuFile::load(&CuFileSource::File(nameless));
    assert!(loaded.is_some() && report.version == Ok(None), "{report:?}");
}

#[test]
fn a_library_that_does_not_open_says_its_code() {
    let bed = bed("open");
    bed.control.set(Setting::OpenCode, 5033);
    assert_eq!(bed.refusal(), CuFileRefusal::NotOpened { code: 5033, driver: 0 });
    assert_eq!(bed.control.count(Count::Open), 0);
    // A version that reads a file of the kernel's for ever where there is none is not opened there.
    bed.control.set(Setting::OpenCode, 0);
    bed.control.set(Setting::Version, 1200);
    if Path::new("/proc/modules").exists() {
        bed.load();
    } else {
        assert_eq!(bed.refusal(), CuFileRefusal::NoModules);
        assert_eq!(bed.control.count(Count::Open), 0);
    }
}

#[test]
fn bytes_go_both_ways_at_odd_places() {
    let bed = bed("bytes");
    let library = bed.load();
    let (handle, bytes) = bed.file(&library, 100_001);
    let memory = buffer(5000);
    assert_eq!(library.perform(&io(IoKind::Read, &handle, 77, &memory)), Ok(5000));
    assert_eq!(bytes_of(&memory), bytes[77..5077]);
    // The file ends: fewer bytes, and none.
    assert_eq!(library.perform(&io(IoKind::Read, &handle, 100_000, &memory)), Ok(1));
    assert_eq!(library.perform(&io(IoKind::Read, &handle, 200_000, &memory)), Ok(0));
    memory.write(0, &[7; 5000]).unwrap();
    assert_eq!(library.perform(&io(IoKind::Write, &handle, 99, &memory)), Ok(5000));
    let flush = Io { segment_count: 0, len: 0, ..io(IoKind::FlushAll, &handle, 0, &memory) };
    assert_eq!(library.perform(&flush), Ok(0));
    let now = std::fs::read(bed.scratch.path("data")).unwrap();
    assert_eq!((now.len(), &now[..99], &now[99..5099]), (100_001, &bytes[..99], &[7; 5000][..]));
    assert_eq!(&now[5099..], &bytes[5099..]);
}

#[test]
fn every_form_of_an_error_is_typed() {
    let bed = bed("errors");
    let library = bed.load();
    let (handle, _) = bed.file(&library, 8192);
    let memory = buffer(4096);
    let read = |result, errno| {
        bed.control.set(Setting::Errno, errno);
        bed.control.set(Setting::ReadResult, result);
        library.perform(&io(IoKind::Read, &handle, 0, &memory))
    };
    assert_eq!(read(-1, i64::from(libc::EIO)), Err(CallFault::Errno(libc::EIO)));
    assert_eq!(read(-1, 5030), known(ErrorKind::Io, 5030));
    assert_eq!(read(-5043, 0), known(ErrorKind::ResourceLimit, 5043));
    assert_eq!(read(-1, 0), known(ErrorKind::Io, 0));
    let explained = library.explain(Fault::new(ErrorKind::Io, 5044)).map(ToString::to_string).unwrap();
    assert!(explained.contains("IO_ERROR"), "{explained}");
    assert!(library.explain(Fault::new(ErrorKind::Io, libc::EIO)).is_none());

    bed.control.set(Setting::ReadResult, 0);
    bed.control.set(Setting::Claimed, 1);
    assert_eq!(library.perform(&io(IoKind::Read, &handle, 0, &memory)), known(ErrorKind::Protocol, 0));
    bed.control.set(Setting::Claimed, 0);
    bed.control.set(Setting::WriteResult, -1);
    bed.control.set(Setting::Errno, i64::from(libc::ENOSPC));
    assert_eq!(library.perform(&io(IoKind::Write, &handle, 0, &memory)), Err(CallFault::Errno(libc::ENOSPC)));
    bed.control.set(Setting::WriteResult, 0);

    let word = io(IoKind::Read, &handle, 0, &memory);
    drop(handle);
    let reads = bed.control.count(Count::Reads);
    assert_eq!(library.perform(&word), known(ErrorKind::NotRegistered, 0));
    assert_eq!(bed.control.count(Count::Reads), reads, "a file that is gone is not asked for");

    bed.control.set(Setting::RegisterCode, 5027);
    let refused = library.register(File::open(bed.scratch.path("data")).unwrap().into()).unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (ErrorKind::Unsupported, 5027));
    assert!(refused.remedy_text().contains("udev"), "{refused}");
}

#[test]
fn a_self_test_sees_wrong_bytes_and_bytes_past_the_end() {
    let bed = bed("self-test");
    let library = bed.load();
    let folder = bed.scratch.path("library");
    let (handle, _) = bed.file(&library, 1000);
    handle.prove(None).unwrap();
    library.self_test(&folder).unwrap();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "the library alone: test files leave no name");
    for (setting, value) in [(Setting::Damage, 1), (Setting::Overrun, 1), (Setting::BytesMax, 100)] {
        bed.control.set(setting, value);
        let proven = handle.prove(None).unwrap_err();
        assert_eq!(proven.kind(), ErrorKind::ChecksumMismatch, "{setting:?}: {proven}");
        assert!(library.self_test(&folder).is_err(), "{setting:?}");
        bed.control.set(setting, 0);
    }
    handle.prove(None).unwrap();
    bed.control.set(Setting::WriteResult, -5044);
    assert_eq!(library.self_test(&folder).unwrap_err().code(), 5044);
    assert_eq!(bed.control.count(Count::Registered), 1, "test files are deregistered");
}

#[test]
fn a_word_of_one_library_is_none_of_another() {
    let (one, other) = (bed("one"), bed("other"));
    let (first, second) = (one.load(), other.load());
    let ((handle, _), (_same_place, _)) = (one.file(&first, 4096), other.file(&second, 4096));
    let memory = buffer(4096);
    assert_eq!(first.perform(&io(IoKind::Read, &handle, 0, &memory)), Ok(4096));
    assert_eq!(second.perform(&io(IoKind::Read, &handle, 0, &memory)), known(ErrorKind::NotRegistered, 0));
}

#[test]
fn a_file_stays_registered_until_the_last_io_on_it_is_over() {
    let bed = bed("in-flight");
    let library = bed.load();
    let (handle, bytes) = bed.file(&library, 8192);
    let memory = buffer(4096);
    let read = io(IoKind::Read, &handle, 0, &memory);
    bed.control.set(Setting::Stall, 1);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| library.perform(&read));
        while bed.control.count(Count::Reads) == 0 {
            std::thread::yield_now();
        }
        drop(handle);
        assert_eq!(bed.control.count(Count::Registered), 1);
        bed.control.set(Setting::Stall, 0);
        assert_eq!(running.join().unwrap(), Ok(4096));
    });
    assert_eq!(bytes_of(&memory), bytes[..4096]);
    assert_eq!((bed.control.count(Count::Registered), bed.control.count(Count::ClosedEarly)), (0, 0));
}

#[test]
fn a_child_of_a_fork_is_refused_and_calls_nothing() {
    let bed = bed("fork");
    let library = bed.load();
    let (handle, _) = bed.file(&library, 100);
    let file = File::open(bed.scratch.path("data")).unwrap();
    // SAFETY: the child calls into code that only reads and allocates, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = library.register(file.into()).is_err_and(|error| error.kind() == ErrorKind::Forked);
        drop(handle);
        drop(library);
        // Of the child's own copy of the counts.
        let untouched = (bed.control.count(Count::Registered), bed.control.count(Count::Open)) == (1, 1);
        // SAFETY: ends the child without the parent's handlers.
        unsafe { libc::_exit(i32::from(!(refused && untouched))) }
    }
    let mut status = -1;
    // SAFETY: a child of ours and a writable status.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    drop((handle, library));
    assert_eq!((bed.control.count(Count::Registered), bed.control.count(Count::Open)), (0, 0));
}
