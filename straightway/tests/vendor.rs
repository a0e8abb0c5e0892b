//! The vendor's library as a route, against a stand-in: taken only where it is named, told as what it is, and never waited for.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
#![expect(clippy::disallowed_methods, reason = "the bed of a real backend has a real clock")]

use std::{
    fs::{self, OpenOptions},
    sync::Arc,
    time::{Duration, Instant},
};

use standin_libcufile::{
    Count, Setting,
    harness::{Control, install},
};
use straightway::{
    Completed, CuFileUse, Destination, Engine, EngineBuilder, ErrorKind, GpuUse, Landing, Memory, Object, Policy,
    Reason, Uri, Verb, parse_policy,
};
use sw_engine::seam::Transport;
use sw_testkit::{
    conformance::{
        End,
        block_file::{self, Bed, Clock, Target},
        skip,
    },
    scratch::Scratch,
};

/// Long enough for anything that does not hang, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    scratch: Scratch,
    library: std::path::PathBuf,
    control: Control,
}

fn rig(tag: &str) -> Rig {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag);
    let library = install(&scratch.path("library"), &[]).unwrap();
    let control = Control::open(&library).unwrap();
    Rig { scratch, library, control }
}

impl Rig {
    fn builder(&self) -> EngineBuilder {
        Engine::builder().gpu(GpuUse::Off).reactors(1).cufile_library(&self.library)
    }

    fn engine(&self) -> Engine {
        self.builder().build().unwrap()
    }

    fn file(&self, len: usize) -> (Uri, Vec<u8>) {
        let bytes = self.scratch.file("data", len);
        (Uri::from_path(&self.scratch.path("data")).unwrap(), bytes)
    }

    fn content(&self) -> Vec<u8> {
        fs::read(self.scratch.path("data")).unwrap()
    }

    fn used(&self) -> bool {
        self.control.count(Count::Open) + self.control.count(Count::Reads) + self.control.count(Count::Writes) > 0
    }
}

fn policy(text: &str) -> Policy {
    parse_policy(text).unwrap()
}

fn memory(engine: &Engine, len: u64) -> Memory {
    engine.allocate(Destination::Host, len, 0).unwrap()
}

fn filled(engine: &Engine, bytes: &[u8]) -> Memory {
    let memory = memory(engine, bytes.len() as u64);
    engine.copy_in(Destination::Host).unwrap().put(&memory, 0, bytes).unwrap();
    memory
}

fn read(engine: &Engine, object: &Object, offset: u64, len: u64, policy: &str) -> Completed {
    engine.read(object, offset, memory(engine, len)).policy(self::policy(policy)).wait()
}

fn bytes(engine: &Engine, done: Completed) -> Vec<u8> {
    engine.copy_to_host(&done.ok().unwrap().into_memory().unwrap()).unwrap()
}

#[test]
fn nothing_is_loaded_until_a_policy_names_it_and_a_plan_says_so() {
    let rig = rig("unasked");
    let (uri, expected) = rig.file(1 << 20);
    let engine = rig.engine();
    let object = engine.open(&uri).unwrap();
    let plan = engine.plan(&object, Destination::Host, Policy::Any, Verb::Read);
    let of_it: Vec<_> = plan.candidates.iter().filter(|candidate| candidate.route.transport == "cufile").collect();
    assert_eq!(of_it.len(), 2);
    assert!(of_it.iter().all(|candidate| candidate.verdict == Err(Reason::VendorNotAsked)), "{of_it:?}");
    assert_eq!(
        (plan.faces.len(), plan.faces.last().unwrap().transport),
        (object.as_engine_object().faces.len() + 1, "cufile")
    );
    assert_ne!(plan.choice.unwrap().route.transport, "cufile");
    for asked in ["any", "prefer=kernel-copy", "require=kernel-copy", "prefer=staged"] {
        let done = read(&engine, &object, 0, 1 << 20, asked).ok().unwrap();
        assert_ne!(done.path.route.transport, "cufile", "{asked}");
        assert!(bytes(&engine, done) == expected, "{asked}");
    }
    assert!(!rig.used());
}

#[test]
fn a_policy_that_names_it_reads_any_bytes_by_it_and_tells_what_it_cannot_know() {
    let rig = rig("reads");
    let (uri, expected) = rig.file(1_000_003);
    let engine = rig.engine();
    let object = engine.open(&uri).unwrap();
    for (offset, len) in [(0, 1_000_003), (77, 5000), (999_999, 4), (4096, 65_536)] {
        let done = read(&engine, &object, offset, len, "require=cufile").ok().unwrap();
        assert_eq!(
            (done.path.route.to_string().as_str(), done.path.reason),
            ("cufile/kernel-copy", Reason::VendorDecides)
        );
        assert_eq!((done.path.bytes.dma, done.path.bytes.kernel_copy), (0, len));
        let at = usize::try_from(offset).unwrap();
        assert!(bytes(&engine, done) == expected[at..at + usize::try_from(len).unwrap()], "{offset} {len}");
    }
    let started = engine.read(&object, 5, memory(&engine, 100)).policy(policy("prefer=cufile")).start().wait();
    assert_eq!(started.path.reason, Reason::VendorDecides);
    assert_eq!(bytes(&engine, started), expected[5..105]);
    let parts = vec![(10, memory(&engine, 10)), (500_000, memory(&engine, 100_000))];
    let many = engine.read_vectored(&object, parts).policy(policy("require=cufile/kernel-copy")).wait().ok().unwrap();
    let many: Vec<Vec<u8>> = many.into_memories().iter().map(|part| engine.copy_to_host(part).unwrap()).collect();
    assert!(many[0] == expected[10..20] && many[1] == expected[500_000..600_000]);
    // What would be direct is never claimed.
    let refused = read(&engine, &object, 0, 4096, "require=cufile/dma").ok().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PolicyUnmet);
    let plan = engine.plan(&object, Destination::Host, policy("prefer=cufile"), Verb::Read);
    assert_eq!(plan.choice.unwrap().main.reason, Reason::VendorDecides);
    drop(object);
    engine.close().unwrap();
    let left =
        (rig.control.count(Count::Registered), rig.control.count(Count::Open), rig.control.count(Count::ClosedEarly));
    assert_eq!(left, (0, 0, 0));
}

#[test]
fn whole_blocks_are_written_by_it_and_ragged_ends_through_the_page_cache() {
    let rig = rig("writes");
    let (uri, mut expected) = rig.file(200_000);
    let engine = rig.engine();
    let object = engine.open_for_update(&uri).unwrap();
    let mut put = |offset: usize, len: usize, asked: &str| {
        let new: Vec<u8> = (0..len).map(|at| (at * 7 + offset).to_le_bytes()[0]).collect();
        let done = engine.write(&object, offset as u64, filled(&engine, &new)).policy(policy(asked)).wait().ok();
        if done.is_ok() {
            expected[offset..offset + len].copy_from_slice(&new);
        }
        assert!(rig.content() == expected, "{offset} {len} {asked}");
        done
    };
    let whole = put(65_536, 65_536, "require=cufile").unwrap();
    assert_eq!((whole.path.reason, whole.path.bounced), (Reason::VendorDecides, 0));
    let writes = rig.control.count(Count::Writes);
    assert!(writes > 0);
    // The ends land alike and are fewer.
    let mixed = put(999, 100_000, "prefer=cufile").unwrap();
    assert_eq!(
        (mixed.path.route.to_string().as_str(), mixed.path.reason),
        ("cufile/kernel-copy", Reason::VendorDecides)
    );
    let ends = put(5, 100, "prefer=cufile").unwrap();
    assert!(ends.path.route.transport != "cufile" && ends.path.reason == Reason::RaggedEnds, "{}", ends.path);
    put(1001, 90_000, "require-core=cufile").unwrap();
    assert!(rig.control.count(Count::Writes) > writes);
    let ragged = put(5, 100, "require=cufile").unwrap_err();
    assert_eq!((ragged.kind(), ragged.reasons()), (ErrorKind::PolicyUnmet, &[Reason::RaggedEnds][..]));
    // What was read by it and what was written by others are the same file.
    assert!(bytes(&engine, read(&engine, &object, 0, 200_000, "require=cufile")) == expected);
    engine.flush(&object).policy(policy("require=cufile")).wait().ok().unwrap();
}

#[test]
fn what_it_refuses_is_a_reason_and_an_error_with_its_code_and_remedy() {
    let rig = rig("refused");
    let (uri, expected) = rig.file(100_000);
    rig.control.set(Setting::RegisterCode, 5027);
    let engine = rig.engine();
    let object = engine.open(&uri).unwrap();
    let error = read(&engine, &object, 0, 4096, "require=cufile").ok().unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::PolicyUnmet, 5027));
    assert!(error.reasons().contains(&Reason::VendorRefused), "{error}");
    assert!(error.to_string().contains("HANDLE_NOT_REGISTERED") && error.to_string().contains("udev"), "{error}");
    let other = read(&engine, &object, 0, 100_000, "prefer=cufile").ok().unwrap();
    assert_eq!((other.path.route.transport != "cufile", other.path.reason), (true, Reason::VendorRefused));
    assert!(bytes(&engine, other) == expected);

    // A file that it reads wrongly is not read by it.
    rig.control.set(Setting::RegisterCode, 0);
    rig.control.set(Setting::Damage, 1);
    let error = read(&engine, &engine.open(&uri).unwrap(), 0, 4096, "require=cufile").ok().unwrap_err();
    assert!(error.reasons().contains(&Reason::SelfTestFailed), "{error}");
    rig.control.set(Setting::Damage, 0);

    let object = engine.open(&uri).unwrap();
    read(&engine, &object, 0, 4096, "require=cufile").ok().unwrap();
    rig.control.set(Setting::ReadResult, -1);
    rig.control.set(Setting::Errno, 5044);
    let error = read(&engine, &object, 0, 4096, "require=cufile").ok().unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Io, 5044));
    assert!(error.to_string().contains("IO_ERROR"), "{error}");
    rig.control.set(Setting::Errno, i64::from(libc::EIO));
    let error = read(&engine, &object, 0, 4096, "require=cufile").ok().unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Io, libc::EIO));
}

#[test]
fn without_a_library_the_error_says_what_is_missing() {
    let rig = rig("absent");
    let (uri, _) = rig.file(4096);
    let absent = Engine::builder().gpu(GpuUse::Off).cufile_library("/no/such/libcufile.so.0").build().unwrap();
    let off = rig.builder().cufile(CuFileUse::Off).build().unwrap();
    let asked = |engine: &Engine| {
        let object = engine.open(&uri).unwrap();
        assert!(engine.plan(&object, Destination::Host, policy("prefer=cufile"), Verb::Read).choice.is_ok());
        read(engine, &object, 0, 4096, "require=cufile").ok().unwrap_err()
    };
    let error = asked(&absent);
    assert!(error.reasons().contains(&Reason::NoVendorLibrary), "{error}");
    assert!(error.to_string().contains("/no/such/libcufile.so.0"), "{error}");
    let fact = absent.doctor().facts.into_iter().find(|fact| fact.name == "cufile.library").unwrap();
    assert!(fact.value.contains("/no/such") && fact.remedy.contains("cufile_library"), "{fact:?}");
    assert_eq!(asked(&off).kind(), ErrorKind::PolicyUnmet);
    assert!(!rig.used());
}

#[test]
fn the_doctor_tells_each_fact() {
    let rig = rig("doctor");
    rig.control.set(Setting::Nvfs, 2017);
    let facts = rig.engine().doctor().facts;
    let value = |name: &str| facts.iter().find(|fact| fact.name == name).map_or("", |fact| fact.value.as_str());
    assert_eq!(value("cufile.library"), rig.library.display().to_string());
    assert_eq!((value("cufile.version"), value("cufile.symbols")), ("1.11", "7 present"));
    assert!(value("cufile.driver").contains("nvidia-fs 2.17"), "{facts:?}");
    assert!(value("cufile.self_test").starts_with("wrote, read back"), "{facts:?}");
}

#[test]
fn an_engine_that_prefers_it_takes_it_for_every_file_but_not_for_stripe_sets() {
    let rig = rig("prefers");
    let (uri, expected) = rig.file(100_000);
    let engine = rig.builder().set("cufile", "prefer").unwrap().build().unwrap();
    let object = engine.open(&uri).unwrap();
    let done = read(&engine, &object, 0, 100_000, "any").ok().unwrap();
    assert_eq!((done.path.route.transport, done.path.route.landing), ("cufile", Landing::KernelCopy));
    assert!(bytes(&engine, done) == expected);
    assert_ne!(read(&engine, &object, 0, 4096, "prefer=staged").ok().unwrap().path.route.transport, "cufile");
    let other = rig.scratch.text("other");
    fs::copy(rig.scratch.path("data"), &other).unwrap();
    let set: Uri = format!("stripe:64KiB:{},{other}", rig.scratch.text("data")).parse().unwrap();
    let set = engine.open(&set).unwrap();
    let preferred = read(&engine, &set, 0, 100_000, "any").ok().unwrap();
    assert_ne!(preferred.path.route.transport, "cufile");
    assert_eq!(preferred.path.reason, Reason::VendorRefused, "told, as for a file that it does not take");
    assert!(bytes(&engine, preferred) == [&expected[..65_536], &expected[..34_464]].concat());
    let refused = read(&engine, &set, 0, 65_536, "require=cufile").ok().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PolicyUnmet);
    assert!(
        refused.reasons().contains(&Reason::VendorRefused) && refused.to_string().contains("one file at a time"),
        "{refused}"
    );
}

#[test]
fn short_data_is_an_error_and_what_comes_in_pieces_is_not() {
    let rig = rig("short");
    let (uri, expected) = rig.file(300_000);
    let engine = rig.engine();
    let object = engine.open(&uri).unwrap();
    read(&engine, &object, 0, 4096, "require=cufile").ok().unwrap();
    rig.control.set(Setting::BytesMax, 70_001);
    assert!(bytes(&engine, read(&engine, &object, 0, 300_000, "require=cufile")) == expected);
    rig.control.set(Setting::BytesMax, 0);
    OpenOptions::new().write(true).open(rig.scratch.path("data")).unwrap().set_len(5000).unwrap();
    let error = read(&engine, &object, 0, 300_000, "require=cufile").ok().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShortData);
    OpenOptions::new().write(true).open(rig.scratch.path("data")).unwrap().set_len(300_000).unwrap();
    rig.control.set(Setting::Claimed, 10_000);
    let error = read(&engine, &object, 0, 4096, "require=cufile").ok().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
}

#[test]
fn a_library_that_does_not_come_back_holds_up_nobody() {
    let rig = rig("stall");
    let (uri, _) = rig.file(100_000);
    let engine = rig.engine();
    let object = engine.open(&uri).unwrap();
    read(&engine, &object, 0, 4096, "require=cufile").ok().unwrap();
    rig.control.set(Setting::Stall, 1);
    let start = Instant::now();
    let late = engine.read(&object, 0, memory(&engine, 4096)).policy(policy("require=cufile"));
    let late = late.deadline(Duration::from_millis(50)).start().wait();
    assert_eq!(late.result.as_ref().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert!(late.into_memory().is_none(), "the library may still write it");
    // The object goes while its I/O runs; other routes go on; closing has an end.
    let other = engine.open(&uri).unwrap();
    read(&engine, &other, 0, 100_000, "any").ok().unwrap();
    drop((object, other));
    let _stuck = engine.close();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert_eq!(rig.control.count(Count::Registered), 1, "what runs keeps its file");
    rig.control.set(Setting::Stall, 0);
}

#[test]
fn an_object_that_is_given_to_another_engine_goes_by_that_ones_library_and_setting() {
    let (one, other) = (rig("one"), rig("other"));
    let (uri, expected) = one.file(100_000);
    let (first, second) = (one.engine(), other.engine());
    let object = first.open(&uri).unwrap();
    let registered = || (one.control.count(Count::Registered), other.control.count(Count::Registered));
    for _ in 0..2 {
        // In turns, by the same policy: what was planned for one engine is none of the other.
        for engine in [&first, &second] {
            let done = read(engine, &object, 0, 100_000, "require=cufile").ok().unwrap();
            assert_eq!(done.path.reason, Reason::VendorDecides);
            assert!(bytes(engine, done) == expected);
        }
    }
    assert_eq!((one.control.count(Count::Reads), other.control.count(Count::Reads)), (3, 3));

    // One that prefers it and two that do not: each as it was set up, whoever comes first.
    let prefers = one.builder().cufile(CuFileUse::Prefer).build().unwrap();
    let off = one.builder().cufile(CuFileUse::Off).build().unwrap();
    for order in [[&prefers, &second, &off], [&second, &off, &prefers]] {
        let object = first.open(&uri).unwrap();
        for engine in order {
            let done = read(engine, &object, 0, 100_000, "any").ok().unwrap();
            assert_eq!(
                done.path.route.transport == "cufile",
                std::ptr::eq(engine, &raw const prefers),
                "{}",
                done.path
            );
            assert!(bytes(engine, done) == expected);
        }
        read(&prefers, &object, 0, 4096, "require=cufile").ok().unwrap();
        let refused = read(&off, &object, 0, 4096, "require=cufile").ok().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PolicyUnmet, "{refused}");
    }
    drop((prefers, object));
    assert_eq!(registered(), (0, 0));
}

/// Files, registered, for the suite of the seam.
struct Files {
    rig: Rig,
    library: sw_cuda::CuFile,
    made: u32,
    start: Instant,
}

impl Bed for Files {
    fn name(&self) -> String {
        "cufile, stand-in".to_owned()
    }

    fn transport(&mut self) -> Result<Box<dyn Transport>, End> {
        let config = sw_uring::ThreadsConfig { queue_depth: 16, ..sw_uring::ThreadsConfig::default() };
        Ok(Box::new(sw_uring::ThreadsTransport::over(config, Arc::new(self.library.clone())).unwrap()))
    }

    fn object(&mut self, content: &[u8]) -> Result<Target, End> {
        self.made += 1;
        let path = self.rig.scratch.path(&format!("file-{}", self.made));
        fs::write(&path, content).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let handle = self.library.register(file.into()).unwrap();
        let face = sw_engine::Face {
            transport: sw_cuda::CUFILE,
            handle: handle.word(),
            granularity: sw_engine::Granularity::ANY,
            write_unit: 1,
            landing: Landing::KernelCopy,
            because: Some(Reason::VendorDecides),
        };
        let object = Arc::new(sw_engine::Object {
            id: sw_engine::Object::next_id(),
            name: path.to_str().unwrap().into(),
            len: content.len() as u64,
            version: sw_engine::Version::default(),
            faces: vec![face],
            residency: sw_engine::Residency::Unknown.into(),
            composed: None,
            keep: Box::new(handle),
        });
        Ok(Target { object, face: 0 })
    }

    fn content(&mut self, target: &Target) -> Result<Vec<u8>, End> {
        Ok(fs::read(&*target.object.name).unwrap())
    }

    fn failing_object(&mut self) -> Result<Target, End> {
        skip("what a failing read is told as has a test of its own")
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn clock(&self) -> Clock {
        Clock::Real
    }
}

#[test]
fn its_transport_conforms() {
    let rig = rig("conforms");
    let (library, report) = sw_cuda::CuFile::load(&sw_cuda::CuFileSource::File(rig.library.clone()));
    let library = library.unwrap_or_else(|| panic!("{report:?}"));
    let mut bed = Files { rig, library, made: 0, start: Instant::now() };
    let report = block_file::run(&mut bed);
    // It reaches any memory, and takes one piece of it.
    report.assert_green(&[
        "memory_that_was_not_attached_is_refused",
        "an_error_of_the_medium_is_a_fault_with_a_code",
        "pieces_of_memory_fill_in_object_order",
        "pieces_of_memory_are_written_in_object_order",
    ]);
    assert_eq!(bed.rig.control.count(Count::Registered), 0);
}
