//! The suites of the seams: `Transport` on both transports in every shape, and `Store`.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure to prepare is a failed test")]
#![expect(clippy::disallowed_methods, reason = "the bed of a real backend has a real clock")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sw_engine::{
    Error, ErrorKind, Object,
    seam::{IoKind, OpenMode, Store, Transport},
};
use sw_testkit::conformance::{
    CaseResult, End,
    block_file::{self, Bed, Clock, Target},
    fail, skip, store,
};
use sw_testkit::scratch::Scratch;
use sw_uring::{FileStore, IO_URING, PREADV2, ThreadsConfig, ThreadsTransport, UringConfig, UringTransport};

use crate::mounts::{Loop, is_root};
use crate::support::{self, io, memory, run, scratch, segment};

/// Which of a file's faces the suite drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Buffered,
}

type Make = fn() -> Result<Box<dyn Transport>, Error>;

struct Files {
    label: &'static str,
    make: Make,
    store: FileStore,
    way: Way,
    made: u32,
    /// A device whose blocks are gone. Before the directory that its file is in: dropped in this order.
    failing: Option<Loop>,
    scratch: Scratch,
    start: Instant,
}

impl Files {
    fn new(label: &'static str, transport: &'static str, way: Way, make: Make) -> Self {
        let (store, scratch) = (FileStore::new(transport), scratch("conformance"));
        Self { label, make, store, way, scratch, made: 0, failing: None, start: Instant::now() }
    }

    fn open(&self, path: &Path) -> Result<Target, End> {
        let object = self.store.open(path.to_str().unwrap(), OpenMode::Update).unwrap();
        let face = match (self.way, object.faces.len()) {
            (Way::Buffered, faces) => faces - 1,
            (Way::Direct, 2) => 0,
            (Way::Direct, _) => return skip("no O_DIRECT on this file"),
        };
        Ok(Target { object, face })
    }
}

impl Bed for Files {
    fn name(&self) -> String {
        format!("{}, {:?}", self.label, self.way)
    }

    fn transport(&mut self) -> Result<Box<dyn Transport>, End> {
        (self.make)().or_else(|error| skip(error.to_string()))
    }

    fn object(&mut self, content: &[u8]) -> Result<Target, End> {
        self.made += 1;
        let path = self.scratch.path(&format!("file-{}", self.made));
        std::fs::write(&path, content).unwrap();
        self.open(&path)
    }

    fn content(&mut self, target: &Target) -> Result<Vec<u8>, End> {
        Ok(std::fs::read(&*target.object.name).unwrap())
    }

    fn failing_object(&mut self) -> Result<Target, End> {
        let device = match self.failing.take() {
            Some(device) => device,
            None => Loop::new(&self.scratch.path("image"), 1 << 20).or_else(skip)?,
        };
        let target = self.open(Path::new(device.device()));
        std::fs::OpenOptions::new().write(true).open(device.file()).unwrap().set_len(0).unwrap();
        self.failing = Some(device);
        target
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn clock(&self) -> Clock {
        Clock::Real
    }
}

/// The kernel reaches any memory of the process.
const ANY_MEMORY: &str = "memory_that_was_not_attached_is_refused";

fn uring(config: UringConfig) -> Result<Box<dyn Transport>, Error> {
    Ok(Box::new(UringTransport::new(config)?))
}

/// Runs the suite on both faces.
fn conforms(label: &'static str, transport: &'static str, make: Make) {
    for way in [Way::Direct, Way::Buffered] {
        let mut bed = Files::new(label, transport, way, make);
        if let Err(why) = bed.object(&[0; 4096]) {
            println!("skip {}: {why:?}", bed.name());
            continue;
        }
        let mut skips = vec![ANY_MEMORY];
        if way == Way::Direct {
            // That face has a granularity by definition.
            skips.push("any_offset_and_address_on_a_bytewise_face");
        }
        if !is_root() {
            // Only root makes a device that fails.
            skips.push("an_error_of_the_medium_is_a_fault_with_a_code");
        }
        let report = block_file::run(&mut bed);
        report.assert_green(&skips);
    }
}

#[test]
fn io_uring_conforms() {
    conforms("io_uring", IO_URING, || uring(UringConfig::default()));
}

#[test]
fn io_uring_conforms_with_a_depth_that_is_no_power_of_two() {
    conforms("io_uring, depth 3", IO_URING, || uring(UringConfig { queue_depth: 3, ..UringConfig::default() }));
}

#[test]
fn io_uring_conforms_for_one_thread() {
    let make: Make = || uring(UringConfig { single_issuer: true, ..UringConfig::default() });
    conforms("io_uring, one thread", IO_URING, make);
}

#[test]
fn io_uring_conforms_with_a_kernel_thread() {
    conforms("io_uring, sqpoll", IO_URING, || uring(UringConfig { sqpoll: Some(20), ..UringConfig::default() }));
}

#[test]
fn io_uring_with_polled_completions_conforms_where_the_device_has_poll_queues() {
    let make: Make = || uring(UringConfig { iopoll: true, ..UringConfig::default() });
    let mut bed = Files::new("io_uring, iopoll", IO_URING, Way::Direct, make);
    let polls = bed.object(&[0; 4096]).map(|target| {
        let (mut transport, span) = (bed.transport().unwrap(), memory(4096, 0));
        let one = io(IoKind::Read, &target.object, target.face, 0, &[segment(&span, 0, 4096)]);
        run(&mut *transport, &one)
    });
    match polls {
        Ok(Ok(4096)) => conforms("io_uring, iopoll", IO_URING, make),
        Ok(result) => {
            // No silent second best: a device that cannot be polled refuses, and what is not direct works as ever.
            assert_eq!(result.unwrap_err().kind, ErrorKind::Unsupported);
            println!("skip direct face: the device has no poll queues");
            let mut buffered = Files::new("io_uring, iopoll", IO_URING, Way::Buffered, make);
            block_file::run(&mut buffered).assert_green(&[ANY_MEMORY]);
        }
        Err(why) => println!("skip: {why:?}"),
    }
}

#[test]
fn threads_conform() {
    conforms("preadv2", PREADV2, || Ok(Box::new(ThreadsTransport::new(ThreadsConfig::default())?)));
}

/// The file store, with a transport to fill and to check its objects.
struct Names {
    transport: Box<dyn Transport>,
    scratch: Scratch,
    made: u32,
}

impl store::Bed for Names {
    fn name(&self) -> String {
        format!("files by {}", self.transport.caps().name)
    }

    fn store(&mut self) -> Result<Box<dyn Store>, End> {
        Ok(Box::new(FileStore::new(self.transport.caps().name)))
    }

    fn directory(&mut self) -> Result<String, End> {
        self.made += 1;
        let path = self.scratch.path(&format!("directory-{}", self.made));
        std::fs::create_dir(&path).unwrap();
        Ok(path.to_str().unwrap().to_owned())
    }

    fn write(&mut self, object: &Object, offset: u64, bytes: &[u8]) -> CaseResult {
        let face = object.bytewise_face().unwrap();
        match support::write(&mut *self.transport, object, face, offset, bytes) {
            Ok(count) if count as usize == bytes.len() => Ok(()),
            other => fail(format!("write of {} bytes: {other:?}", bytes.len())),
        }
    }

    fn read(&mut self, object: &Object, offset: u64, len: u64) -> Result<Vec<u8>, End> {
        let (face, len) = (object.bytewise_face().unwrap(), u32::try_from(len).unwrap());
        support::read(&mut *self.transport, object, face, offset, len).or_else(|fault| fail(format!("read: {fault:?}")))
    }
}

#[test]
fn the_file_store_conforms() {
    for (_, transport) in support::transports() {
        let mut bed = Names { transport, scratch: scratch("store"), made: 0 };
        store::run(&mut bed).assert_green(&[]);
    }
}
