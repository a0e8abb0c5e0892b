//! Registered files, and the bytes that go by them.
// UNSAFETY: the library reads and writes memory by raw address.
#![expect(unsafe_code, reason = "calls the vendor's library")]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sw_engine::{
    Error, ErrorKind, Fault, Verb,
    seam::{BlockingIo, CallFault, Io, IoKind, MemorySegment, Regions, TransportCaps},
};
use sw_mem::{DeviceId, ForkMark, Place};

use super::library::{CUFILE, CuFile};
use super::table::{self, Descr, DescrHandle, OPAQUE_FD, Table};
use super::within::within;
use crate::context::Context;
use crate::driver::Driver;
use crate::error::CudaError;
use crate::self_test::Bench;

/// I/Os that are taken at a time: each has a thread while it runs.
const QUEUE_DEPTH: u32 = 64;
/// Bytes of one I/O: the library's own largest piece (`max_direct_io_size_kb`, 16 MiB).
const IO_BYTES_MAX: u32 = 16 << 20;
/// Longest that registering a file, and the test of it, may take.
const REGISTER_WAIT: Duration = Duration::from_secs(10);
/// Longest that an object which goes waits for its file to be deregistered.
const DEREGISTER_WAIT: Duration = Duration::from_secs(1);
/// Bytes that a self-test moves: a block of any file system or device that has `O_DIRECT`.
const TEST_BYTES: usize = 4096;
/// Times that a block is compared before it is wrong: somebody may write the file meanwhile.
const COMPARES_MAX: u32 = 3;
/// What is around and under the bytes of a self-test before it.
const GUARD: u8 = 0xa5;
/// Lowest address that is no small number: what [`Io`] names is never below it.
const NULL_PAGE: u64 = 4096;

/// The last word that a face was given; never used twice in a process, so that a word of one library is none of another.
static LAST_WORD: AtomicU64 = AtomicU64::new(0);

/// The registered files, by the word in their faces.
#[derive(Default)]
pub(super) struct Files(Mutex<BTreeMap<u64, Arc<OpenFile>>>);

impl Files {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<OpenFile>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    fn add(&self, file: OpenFile) -> u64 {
        let word = LAST_WORD.fetch_add(1, Ordering::Relaxed) + 1;
        self.lock().insert(word, Arc::new(file));
        word
    }

    fn get(&self, word: u64) -> Option<Arc<OpenFile>> {
        self.lock().get(&word).cloned()
    }

    fn remove(&self, word: u64) {
        let gone = self.lock().remove(&word);
        // After the lock: it may wait for the library.
        drop(gone);
    }
}

/// What the library calls a file. An address that is only given back to it.
#[derive(Clone, Copy)]
struct Name(table::Handle);

// SAFETY: a name of the library's, which may be used from any thread ("cuFile API Reference Guide", "Thread safety"); never followed.
unsafe impl Send for Name {}
// SAFETY: as above.
unsafe impl Sync for Name {}

impl Name {
    /// Takes the whole of it into a closure, and not the pointer alone.
    fn raw(self) -> table::Handle {
        self.0
    }
}

/// A file with its name there. The last user deregisters it, then closes the descriptor.
struct OpenFile {
    table: Table,
    name: Name,
    /// `None` once it goes.
    file: Option<File>,
    fork: ForkMark,
    /// As [`Opened`](super::library::Opened) has it.
    silent: Arc<AtomicBool>,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if self.fork.is_child() {
            return;
        }
        let (table, name, file) = (self.table, self.name, self.file.take());
        // Whoever drops the last object may be a thread that others wait for: it waits once, not for each file.
        let limit = if self.silent.load(Ordering::Relaxed) { Duration::ZERO } else { DEREGISTER_WAIT };
        // Left to the thread if the library keeps it: it may still use the descriptor.
        let logged = within("cuFileHandleDeregister", limit, move || {
            // SAFETY: a checked symbol; the name is registered, and nobody uses it: every user holds this value.
            unsafe { (table.deregister)(name.raw()) };
            drop(file);
        });
        if logged.is_err_and(|unanswered| !unanswered.waited.is_zero()) {
            self.silent.store(true, Ordering::Relaxed);
        }
    }
}

/// A file that is registered. It stays so, and its descriptor open, until this is dropped and the last I/O on it is over.
///
/// Kept by what operations keep alive: the object.
pub struct CuFileHandle {
    library: CuFile,
    word: u64,
}

impl CuFileHandle {
    /// What a face of it holds: means something to [`CuFile`] only.
    pub fn word(&self) -> u64 {
        self.word
    }

    /// The self-test of a file and of a kind of memory, of the host (`None`) or of a GPU by its ordinal: its first 4096 bytes
    /// (all, of a shorter one) read by the library and by the kernel, and compared; guard bytes around them intact. Nothing is
    /// written to the file.
    ///
    /// *Blocking*: some milliseconds, at most 10 seconds.
    ///
    /// # Errors
    /// What the library, the kernel or the GPU's driver said; `ChecksumMismatch` if bytes differ or guard bytes changed.
    pub fn prove(&self, gpu: Option<u16>) -> Result<(), Error> {
        let library = self.library.clone();
        let word = self.word;
        let compare = move || {
            let mut compared = library.compare(word, gpu);
            for _ in 1..COMPARES_MAX {
                match &compared {
                    Err(error) if error.kind() == ErrorKind::ChecksumMismatch => compared = library.compare(word, gpu),
                    _ => break,
                }
            }
            compared
        };
        self.library.ask("cuFileRead", REGISTER_WAIT, compare)?
    }
}

impl Drop for CuFileHandle {
    fn drop(&mut self) {
        self.library.0.files.remove(self.word);
    }
}

impl std::fmt::Debug for CuFileHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CuFileHandle({})", self.word)
    }
}

/// A block with guard bytes around it, aligned for `O_DIRECT`.
#[repr(C, align(4096))]
struct TestBlock {
    before: [u8; TEST_BYTES],
    bytes: [u8; TEST_BYTES],
    after: [u8; TEST_BYTES],
}

impl TestBlock {
    fn new() -> Box<Self> {
        Box::new(Self { before: [GUARD; TEST_BYTES], bytes: [GUARD; TEST_BYTES], after: [GUARD; TEST_BYTES] })
    }

    fn guards_are_intact(&self) -> bool {
        self.before.iter().chain(&self.after).all(|byte| *byte == GUARD)
    }
}

fn failed(call: &'static str, fault: CallFault, verb: Verb) -> Error {
    let (kind, code) = match fault {
        CallFault::Errno(errno) => (ErrorKind::Io, errno),
        CallFault::Known(fault) => (fault.kind, fault.code),
    };
    let error = Error::new(kind, verb).at(CUFILE).with_code(code);
    if table::is_code(code) {
        error.detail(format!("{call} answered {}", table::name_of(code))).remedy(table::remedy_of(code))
    } else {
        error.detail(format!("{call} failed: {}", std::io::Error::from_raw_os_error(code)))
    }
}

fn wrong(what: &'static str) -> Error {
    Error::new(ErrorKind::ChecksumMismatch, Verb::Read)
        .at(CUFILE)
        .detail(what)
        .remedy("take another route; the library is not to be trusted with this file")
}

impl CuFile {
    /// Registers a file or a block device. The descriptor is kept, and deregistered before it is closed.
    ///
    /// *Blocking*: tens of microseconds in its compatibility mode, at most 10 seconds.
    ///
    /// # Errors
    /// `Forked` in a child; `DeadlineExceeded`, also of an earlier call; what the library answered, with its code and the remedy.
    pub fn register(&self, descriptor: OwnedFd) -> Result<CuFileHandle, Error> {
        if self.0.fork.is_child() {
            return Err(Error::new(ErrorKind::Forked, Verb::Open)
                .at(CUFILE)
                .detail("the process was forked after the vendor's library was opened; it belongs to the parent")
                .remedy("make an engine in the child"));
        }
        self.register_within(descriptor, REGISTER_WAIT)
    }

    fn register_within(&self, descriptor: OwnedFd, limit: Duration) -> Result<CuFileHandle, Error> {
        let (table, fork, silent) = (self.0.table, self.0.fork, self.0.silent.clone());
        let answer = self.ask("cuFileHandleRegister", limit, move || {
            let handle = DescrHandle { fd: descriptor.as_raw_fd() };
            let mut descr = Descr { kind: OPAQUE_FD, handle, file_system: std::ptr::null() };
            let mut name: table::Handle = std::ptr::null_mut();
            // SAFETY: a checked symbol; a writable result and a structure of the library's own layout, with an open descriptor.
            let status = unsafe { (table.register)(&raw mut name, &raw mut descr) };
            // Where nobody waits any more, this is dropped: deregistered, then closed.
            let file = || OpenFile { table, name: Name(name), file: Some(File::from(descriptor)), fork, silent };
            if status.code == 0 { Ok(file()) } else { Err(status.code) }
        });
        let file = answer?.map_err(|code| {
            let code = i32::try_from(code).unwrap_or(i32::MAX);
            let fault = CallFault::Known(Fault::new(table::kind_of(code), code));
            failed("cuFileHandleRegister", fault, Verb::Open)
        })?;
        Ok(CuFileHandle { library: self.clone(), word: self.0.files.add(file) })
    }

    /// [`within`], for what nobody has to ask. A library that once did not come back is not asked again: each file would wait
    /// anew, and leave one more thread behind.
    fn ask<T: Send + 'static>(
        &self,
        call: &'static str,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        if self.0.silent.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::DeadlineExceeded, Verb::Open)
                .at(CUFILE)
                .detail("the vendor's library did not come back from an earlier call, so it is not asked again")
                .remedy(
                    "take another route, and see the library's log (CUFILE_LOGFILE_PATH); a new engine asks once more",
                ));
        }
        within(call, limit, work).map_err(|unanswered| {
            self.0.silent.fetch_or(!unanswered.waited.is_zero(), Ordering::Relaxed);
            super::CuFileRefusal::from(unanswered).into_error()
        })
    }

    /// The self-test of the library where no file is given: a file in `folder`, whose name goes at once, is written by it and read
    /// back, compared with what the kernel reads, guard bytes intact.
    ///
    /// *Blocking*: some milliseconds, at most half a minute.
    ///
    /// # Errors
    /// As [`CuFile::register`] and [`CuFileHandle::prove`]; `Io` if the folder takes no such file.
    pub fn self_test(&self, folder: &Path) -> Result<(), Error> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // Not O_TMPFILE: the library takes that flag of a descriptor for one that it does not know (1.20: 5019).
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".straightway-cufile-{}-{number}", std::process::id()));
        let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = made.map_err(|error| {
            let name = path.to_string_lossy().into_owned();
            Error::new(ErrorKind::Io, Verb::Create).at(name).detail(format!("no test file can be made: {error}"))
        })?;
        let removed = std::fs::remove_file(&path);
        debug_assert!(removed.is_ok(), "a file that was just made: {removed:?}");
        let handle = self.register(file.into())?;
        let (library, word) = (self.clone(), handle.word);
        self.ask("cuFileWrite", REGISTER_WAIT, move || library.write_pattern(word))??;
        handle.prove(None)
    }

    fn write_pattern(&self, word: u64) -> Result<(), Error> {
        let mut block = TestBlock::new();
        for (byte, number) in block.bytes.iter_mut().zip(0_u32..) {
            *byte = number.wrapping_mul(2_654_435_761).to_le_bytes()[3];
        }
        let file = self.0.files.get(word).ok_or_else(|| wrong("the test file went away"))?;
        let at = block.bytes.as_mut_ptr().expose_provenance() as u64;
        let written = file
            .transfer(IoKind::Write, (at, TEST_BYTES), 0)
            .map_err(|fault| failed("cuFileWrite", fault, Verb::Write));
        if sw_mem::index(u64::from(written?)) == TEST_BYTES {
            Ok(())
        } else {
            Err(wrong("a block was not written whole"))
        }
    }

    fn compare(&self, word: u64, gpu: Option<u16>) -> Result<(), Error> {
        let file = self.0.files.get(word).ok_or_else(|| wrong("the file went away"))?;
        let (mut read, mut expected) = (TestBlock::new(), TestBlock::new());
        let count = match gpu {
            None => {
                let at = read.bytes.as_mut_ptr().expose_provenance() as u64;
                file.transfer(IoKind::Read, (at, TEST_BYTES), 0)
            }
            Some(ordinal) => self.read_through(&file, ordinal, &mut read)?,
        };
        let count = sw_mem::index(u64::from(count.map_err(|fault| failed("cuFileRead", fault, Verb::Read))?));
        let Some(plain) = &file.file else { return Err(wrong("the file went away")) };
        let known = plain.read_at(&mut expected.bytes, 0).map_err(|error| {
            failed("pread", CallFault::Errno(error.raw_os_error().unwrap_or(libc::EIO)), Verb::Read)
        })?;
        if count != known || read.bytes.get(..count) != expected.bytes.get(..known) {
            return Err(wrong("the self-test read other bytes than the kernel has"));
        }
        if read.guards_are_intact() {
            Ok(())
        } else {
            Err(wrong("the self-test wrote past the memory that it was given"))
        }
    }

    /// Reads the first bytes of the file into memory of a GPU, and that into `block`.
    fn read_through(
        &self,
        file: &OpenFile,
        ordinal: u16,
        block: &mut TestBlock,
    ) -> Result<Result<u32, CallFault>, Error> {
        let on_gpu = |error: CudaError| error.into_error(Verb::Register);
        let context = self.context(ordinal).map_err(|fault| failed("the GPU's driver", fault, Verb::Register))?;
        let mut bench = Bench::new(&context, size_of::<TestBlock>() as u64).map_err(on_gpu)?;
        let mut whole = [block.before, block.bytes, block.after].concat();
        bench.put(&whole).map_err(on_gpu)?;
        let at = bench.device.base().raw() + TEST_BYTES as u64;
        let count = {
            let _current = context.enter().map_err(on_gpu)?;
            file.transfer(IoKind::Read, (at, TEST_BYTES), 0)
        };
        bench.get(&mut whole).map_err(on_gpu)?;
        for (part, back) in
            [&mut block.before, &mut block.bytes, &mut block.after].into_iter().zip(whole.chunks(TEST_BYTES))
        {
            part.copy_from_slice(back);
        }
        Ok(count)
    }

    /// The context of a GPU, made once.
    fn context(&self, ordinal: u16) -> Result<Context, CallFault> {
        let mut contexts = self.0.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = contexts.get(&ordinal) {
            return Ok(known.clone());
        }
        let none = |kind| CallFault::Known(Fault::new(kind, 0));
        let driver = Driver::load().map_err(|_| none(ErrorKind::NoDevice))?;
        let made = driver.device(ordinal).and_then(|device| Context::primary(&device));
        let context = made.map_err(|error| CallFault::Known(error.fault()))?;
        contexts.insert(ordinal, context.clone());
        Ok(context)
    }

    /// Moves one piece. The library looks for a context in the thread that calls it.
    fn piece(&self, file: &OpenFile, kind: IoKind, segment: &MemorySegment, offset: u64) -> Result<u32, CallFault> {
        let len = sw_mem::index(u64::from(segment.len));
        match segment.place {
            Place::Host(va) => file.transfer(kind, (va.raw(), len), offset),
            Place::Device(DeviceId(ordinal), va) if ordinal < DeviceId::PEER_FIRST => {
                let context = self.context(ordinal)?;
                let _current = context.enter_fast().map_err(|code| CallFault::Known(crate::error::fault_of(code)))?;
                file.transfer(kind, (va.raw(), len), offset)
            }
            Place::Device(..) => Err(CallFault::Known(Fault::new(ErrorKind::Unsupported, 0))),
        }
    }
}

impl OpenFile {
    /// Reads or writes `len` bytes between byte `offset` of the file and the memory at `address`, of the host or a GPU.
    ///
    /// The memory is that of an [`Io`], or of a self-test, and stays valid and unreferenced until this returns.
    fn transfer(&self, kind: IoKind, (address, len): (u64, usize), offset: u64) -> Result<u32, CallFault> {
        let at = i64::try_from(offset).map_err(|_| CallFault::Errno(libc::EINVAL))?;
        if address < NULL_PAGE {
            return Err(CallFault::Errno(libc::EFAULT));
        }
        let memory = std::ptr::with_exposed_provenance_mut(sw_mem::index(address));
        let name = self.name.raw();
        let moved = match kind {
            // SAFETY: a checked symbol; the name is registered as long as `self` lives. The memory stays valid and unreferenced until
            // the completion: the contract of `BlockingIo` and `Transport` puts that on the caller.
            IoKind::Read => unsafe { (self.table.read)(name, memory, len, at, 0) },
            // SAFETY: as for the read.
            _ => unsafe { (self.table.write)(name, memory, len, at, 0) },
        };
        // Before anything else can change it.
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        outcome(moved, errno, len)
    }

    fn flush(&self, kind: IoKind) -> Result<u32, CallFault> {
        let Some(file) = &self.file else { return Err(not_there()) };
        let flushed = if kind == IoKind::FlushData { file.sync_data() } else { file.sync_all() };
        flushed.map(|()| 0).map_err(|error| CallFault::Errno(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

/// What a transfer gave back: bytes; or minus the library's code; or -1, with a number of the system or the library's code in `errno`
/// (the documentation says the one, versions 1.11 to 1.20 do the other).
fn outcome(moved: isize, errno: i32, len: usize) -> Result<u32, CallFault> {
    let code = match moved {
        0.. => {
            let fits = usize::try_from(moved).is_ok_and(|moved| moved <= len);
            let moved = u32::try_from(moved).ok().filter(|_| fits);
            return moved.ok_or(CallFault::Known(Fault::new(ErrorKind::Protocol, 0)));
        }
        -1 => errno,
        code => i32::try_from(code.unsigned_abs()).unwrap_or(i32::MAX),
    };
    match code {
        ..=0 => Err(CallFault::Known(Fault::new(ErrorKind::Io, 0))),
        code if table::is_code(code) => Err(CallFault::Known(Fault::new(table::kind_of(code), code))),
        errno => Err(CallFault::Errno(errno)),
    }
}

fn not_there() -> CallFault {
    CallFault::Known(Fault::new(ErrorKind::NotRegistered, 0))
}

impl BlockingIo for CuFile {
    fn caps(&self) -> TransportCaps {
        Self::CAPS
    }

    fn perform(&self, io: &Io) -> Result<u32, CallFault> {
        let file = self.0.files.get(io.handle).ok_or(not_there())?;
        match (io.kind, io.segments()) {
            (IoKind::FlushData | IoKind::FlushAll, _) => file.flush(io.kind),
            (kind, [segment]) => self.piece(&file, kind, segment, io.offset),
            _ => Err(CallFault::Known(Fault::new(ErrorKind::Unsupported, 0))),
        }
    }

    fn explain(&self, fault: Fault) -> Option<&Error> {
        self.0.errors.iter().find(|error| error.code() == fault.code)
    }
}

impl CuFile {
    /// What any such library can do: nobody need load one to plan.
    pub const CAPS: TransportCaps = TransportCaps {
        name: CUFILE,
        queue_depth: QUEUE_DEPTH,
        io_bytes_max: IO_BYTES_MAX,
        segments_max: 1,
        host: Ok(()),
        device: Ok(()),
        regions: Regions::Any,
    };
}

#[cfg(test)]
mod tests {
    use standin_libcufile::{
        Count, Setting,
        harness::{Control, install},
    };

    use super::super::CuFileSource;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[expect(clippy::disallowed_methods, reason = "a test of a real library has a real clock")]
    fn wait_until(what: impl Fn() -> bool) {
        let start = std::time::Instant::now();
        while !what() {
            assert!(start.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_file_that_is_registered_too_late_is_given_back_and_the_library_is_not_asked_again() {
        let folder = std::env::temp_dir().join(format!("sw-cufile-late-{}", std::process::id()));
        let path = install(&folder, &[]).unwrap();
        let control = Control::open(&path).unwrap();
        let library = CuFile::load(&CuFileSource::File(path.clone())).0.unwrap();
        let file = || OwnedFd::from(File::open(&path).unwrap());
        let before = library.register(file()).unwrap();
        control.set(Setting::StallRegister, 1);
        let error = library.register_within(file(), Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        // No second wait, and no second thread: at once.
        for late in [library.register(file()).map(drop), before.prove(None)] {
            let error = late.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
            assert!(error.to_string().contains("earlier call"), "{error}");
        }
        assert_eq!((control.count(Count::Registers), control.count(Count::Registered)), (2, 1));
        control.set(Setting::StallRegister, 0);
        wait_until(|| control.count(Count::Deregisters) == 1);
        assert_eq!((control.count(Count::Registered), control.count(Count::ClosedEarly)), (1, 0));
        drop((before, library));
        wait_until(|| control.count(Count::Registered) == 0);
        assert_eq!(control.count(Count::Open), 1, "not closed under a call that may still run");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn both_forms_of_an_error_are_read_and_more_bytes_than_asked_are_none() {
        let known = |code| Err(CallFault::Known(Fault::new(table::kind_of(code), code)));
        assert_eq!(outcome(0, 5027, 10), Ok(0));
        assert_eq!(outcome(10, 0, 10), Ok(10));
        assert_eq!(outcome(11, 0, 10), Err(CallFault::Known(Fault::new(ErrorKind::Protocol, 0))));
        assert_eq!(outcome(-5027, 0, 10), known(5027));
        assert_eq!(outcome(-1, 5022, 10), known(5022));
        assert_eq!(outcome(-1, libc::ENOSPC, 10), Err(CallFault::Errno(libc::ENOSPC)));
        assert_eq!(outcome(-5, 0, 10), Err(CallFault::Errno(libc::EIO)));
        assert_eq!(outcome(-1, 0, 10), Err(CallFault::Known(Fault::new(ErrorKind::Io, 0))));
        assert_eq!(outcome(isize::MIN, 0, 10), Err(CallFault::Errno(i32::MAX)));
    }
}
