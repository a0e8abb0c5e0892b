//! The saver on real files: waves, places, faults, ranks, links, steps.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use straightway::{Destination, Engine, Error, ErrorKind, GpuUse, Memory, Uri, Verb};
use sw_checkpoint::{
    Bytes, CHECKSUMS_FILE, Cancel, Checksums, Commit, Contents, DcpOptions, Dtype, IfExists, Incremental, Keep, Layout,
    LayoutOptions, LoadOptions, NewTensor, Part, PendingCheckpoint, Progress, Rank, SaveOptions, Saver, SaverOptions,
    Slice, Source, Staging, Steps, TensorSpec, WhenBusy, clean, commit, crc32c, load,
};
use sw_testkit::scratch::Scratch;

const MIB: u64 = 1 << 20;

fn scratch(tag: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag)
}

fn engine() -> Engine {
    Engine::builder().gpu(GpuUse::Off).build().unwrap()
}

fn at(path: &Path) -> Uri {
    Uri::from_path(path).unwrap()
}

/// A tensor's bytes: a function of its name, so that a mix-up shows.
fn bytes_of(name: &str, len: u64) -> Vec<u8> {
    let seed: u64 = name.bytes().map(u64::from).sum();
    (0..len).map(|at| (at * 13 + seed + at / 511).to_le_bytes()[0]).collect()
}

fn spec(name: &str, len: u64) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype: Dtype::U8, shape: vec![len] }
}

/// Tensors by name and length, with their bytes.
struct Model(Vec<(TensorSpec, Vec<u8>)>);

impl Model {
    fn new(tensors: &[(&str, u64)]) -> Self {
        Self(tensors.iter().map(|(name, len)| (spec(name, *len), bytes_of(name, *len))).collect())
    }

    /// Odd lengths, none, and more than a chunk.
    fn odd() -> Self {
        Self::new(&[("a", 9 * MIB + 13), ("b", 1), ("none", 0), ("c \"ü\"\n", 4 * MIB), ("d/../e", 5_000_003)])
    }

    fn lent(&self) -> Contents<'_> {
        let mut tensors = Vec::new();
        for (spec, bytes) in &self.0 {
            tensors.push(NewTensor::new(spec.clone(), Bytes::Source(bytes)));
        }
        tensors.into()
    }

    fn owned(&self, engine: &Engine) -> Contents<'static> {
        let own =
            |(spec, bytes): &(TensorSpec, Vec<u8>)| NewTensor::new(spec.clone(), Bytes::Owned(memory(engine, bytes)));
        self.0.iter().map(own).collect::<Vec<_>>().into()
    }

    #[track_caller]
    fn check(&self, engine: &Engine, directory: &Path) {
        let loaded = load(engine, &at(directory), &LoadOptions::default()).unwrap();
        assert_eq!(loaded.tensors.len(), self.0.len());
        for (spec, bytes) in &self.0 {
            let tensor = loaded.tensors.iter().find(|tensor| tensor.name == spec.name).unwrap();
            assert!(loaded.bytes_of(engine, tensor).unwrap() == *bytes, "{}", spec.name);
        }
        check_sums(directory);
    }
}

fn memory(engine: &Engine, bytes: &[u8]) -> Memory {
    let mut buffer = engine.allocate(Destination::Host, bytes.len().max(1) as u64, 0).unwrap().into_buffer().unwrap();
    buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    let (exact, _) = buffer.split_at(bytes.len() as u64).unwrap();
    exact.into()
}

/// Every file of the checkpoint that has tensors agrees with its checksums; gives their number.
#[track_caller]
fn check_sums(directory: &Path) -> usize {
    let sums = Checksums::parse(&fs::read(directory.join(CHECKSUMS_FILE)).unwrap()).unwrap();
    for name in sums.files.keys() {
        let bytes = fs::read(directory.join(name)).unwrap();
        let mut verifier = sums.verifier(name, bytes.len() as u64).unwrap().unwrap();
        let chunk = usize::try_from(verifier.chunk_bytes()).unwrap();
        for (number, part) in (0_u64..).zip(bytes.chunks(chunk)) {
            verifier.add(number * verifier.chunk_bytes(), part.len() as u64, crc32c(part)).unwrap();
        }
        assert_eq!(verifier.verified_bytes(), bytes.len() as u64);
    }
    sums.files.len()
}

/// Everything in a directory, hidden things too.
fn names(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().into_owned();
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(name).collect();
    names.sort();
    names
}

fn saver(engine: &Engine) -> Saver {
    Saver::new(engine, SaverOptions::default()).unwrap()
}

#[test]
fn lent_and_given_tensors_are_saved_and_loaded() {
    let (engine, scratch, model) = (engine(), scratch("both"), Model::odd());
    let saver = saver(&engine);
    for (name, shard) in [("single", None), ("sharded", Some(5 * MIB))] {
        let layout = LayoutOptions { shard_len_max_bytes: shard, ..LayoutOptions::default() };
        let options = SaveOptions { layout: layout.into(), ..SaveOptions::default() };
        let (lent, owned) = (scratch.path(&format!("{name}-lent")), scratch.path(&format!("{name}-owned")));
        let saving = saver.save(&lent, model.lent(), &options).unwrap();
        let saved = saving.wait().unwrap();
        assert!(saved.memory.iter().all(Option::is_none));
        assert_eq!(saved.moved.in_place_bytes, 0);
        assert_eq!(names(&saved.at).len(), saved.files.len());
        model.check(&engine, &lent);
        let saved = saver.save(&owned, model.owned(&engine), &options).unwrap().wait().unwrap();
        for (memory, (_, bytes)) in saved.memory.into_iter().zip(&model.0) {
            assert!(memory.unwrap().into_buffer().unwrap().as_slice() == bytes, "it comes back as it was, with slices");
        }
        model.check(&engine, &owned);
        for file in names(&lent) {
            assert!(fs::read(lent.join(&file)).unwrap() == fs::read(owned.join(&file)).unwrap(), "{file}");
        }
    }
    assert_eq!(names(scratch.root()).len(), 4, "nothing else is left");
}

#[test]
fn our_own_loader_reads_the_dcp_directories_that_we_write() {
    let (engine, scratch, model) = (engine(), scratch("dcp"), Model::odd());
    for (name, max) in [("one", None), ("many", Some(5 * MIB))] {
        let layout = Layout::Dcp(DcpOptions { file_len_max_bytes: max });
        let options = SaveOptions { layout, ..SaveOptions::default() };
        saver(&engine).save(&scratch.path(name), model.lent(), &options).unwrap().wait().unwrap();
        model.check(&engine, &scratch.path(name));
    }
    assert_eq!(check_sums(&scratch.path("many")), 3);
}

#[test]
fn memory_that_lies_as_the_file_does_is_written_without_a_copy() {
    let (engine, scratch) = (engine(), scratch("in-place"));
    // The data section starts at 4096, where the memory starts in its page: all chunks but the first, which has the head.
    let model = Model::new(&[("w", 20 * MIB)]);
    let saved = saver(&engine).save(&scratch.path("model"), model.owned(&engine), &SaveOptions::default());
    let saved = saved.unwrap().wait().unwrap();
    assert_eq!(saved.moved.in_place_bytes, 16 * MIB + 4096);
    model.check(&engine, &scratch.path("model"));
    assert!(saved.memory[0].as_ref().unwrap().is_sole());
}

#[test]
fn more_than_the_budget_goes_in_waves() {
    let (engine, scratch) = (engine(), scratch("waves"));
    let model = Model::new(&[("a", 30 * MIB + 1), ("b", 33 * MIB)]);
    let saver = Saver::new(&engine, SaverOptions { staging_bytes: 16 * MIB, ..SaverOptions::default() }).unwrap();
    for round in ["one", "two"] {
        let saving = saver.save(&scratch.path(round), model.lent(), &SaveOptions::default()).unwrap();
        assert!(saving.stall().as_nanos() > 0);
        saving.wait().unwrap();
        assert!(saver.staging_bytes() <= 16 * MIB);
        model.check(&engine, &scratch.path(round));
    }
    let too_little = SaverOptions { staging_bytes: 16 * MIB - 1, ..SaverOptions::default() };
    assert_eq!(Saver::new(&engine, too_little).unwrap_err().kind(), ErrorKind::ApiMisuse);
}

/// Bytes that come late every third time, so that chunks end in another order than they begin.
struct Uneven(Vec<u8>);

impl Source for Uneven {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    #[expect(clippy::disallowed_methods, reason = "it is slow on purpose")]
    fn copy_to(&self, at: u64, into: &mut [u8]) -> Result<(), Error> {
        if (at / MIB).is_multiple_of(3) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.0.copy_to(at, into)
    }
}

#[test]
fn any_number_of_threads_captures_the_same_bytes() {
    let (engine, scratch) = (engine(), scratch("threads"));
    let model = Model::new(&[("uneven", 45 * MIB + 3), ("view", 13 * MIB + 1), ("given", 5 * MIB), ("last", 9 * MIB)]);
    for threads in [1, 2, 3, 64] {
        let uneven: Vec<_> = model.0.iter().map(|(_, bytes)| Uneven(bytes.clone())).collect();
        let mut view = memory(&engine, &model.0[1].1);
        let mut view = Some(&mut view);
        let options = SaverOptions { staging_bytes: 24 * MIB, capture_threads: threads, ..SaverOptions::default() };
        let saver = Saver::new(&engine, options).unwrap();
        let mut tensors = Vec::new();
        for ((spec, bytes), uneven) in model.0.iter().zip(&uneven) {
            let bytes = match spec.name.as_str() {
                "view" => Bytes::Memory(view.take().unwrap()),
                "given" => Bytes::Owned(memory(&engine, bytes)),
                _ => Bytes::Source(uneven),
            };
            tensors.push(NewTensor::new(spec.clone(), bytes));
        }
        let target = scratch.path(&format!("{threads}"));
        saver.save(&target, tensors.into(), &SaveOptions::default()).unwrap().wait().unwrap();
        model.check(&engine, &target);
    }
    for threads in [0, 65] {
        let options = SaverOptions { capture_threads: threads, ..SaverOptions::default() };
        assert_eq!(Saver::new(&engine, options).unwrap_err().kind(), ErrorKind::ApiMisuse);
    }
}

/// Panics at its second MiB.
struct Panics;

impl Source for Panics {
    fn len(&self) -> u64 {
        60 * MIB
    }

    fn copy_to(&self, at: u64, _into: &mut [u8]) -> Result<(), Error> {
        assert!(at < MIB, "a source that panics");
        Ok(())
    }
}

#[test]
fn a_source_that_panics_holds_nobody_and_leaves_nothing() {
    let (engine, scratch, model) = (engine(), scratch("panics"), Model::odd());
    let options = SaverOptions { staging_bytes: 16 * MIB, capture_threads: 3, ..SaverOptions::default() };
    let saver = Saver::new(&engine, options).unwrap();
    let save = || {
        let tensors = vec![NewTensor::new(spec("w", 60 * MIB), Bytes::Source(&Panics))];
        saver.save(&scratch.path("model"), tensors.into(), &SaveOptions::default())
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(save)).is_err());
    // It waits until what was begun is taken away.
    saver.save(&scratch.path("other"), model.lent(), &SaveOptions::default()).unwrap().wait().unwrap();
    assert_eq!(names(scratch.root()), ["other"]);
    model.check(&engine, &scratch.path("other"));
}

#[test]
fn staging_memory_is_there_ahead_of_the_first_save() {
    let (engine, scratch, model) = (engine(), scratch("ahead"), Model::odd());
    let options = || SaverOptions { staging_bytes: 64 * MIB, staging: Staging::Ahead, ..SaverOptions::default() };
    let saver = Saver::new(&engine, options()).unwrap();
    saver.wait_staging();
    // All but the slabs of the background, which tensors that are given away may need.
    assert_eq!(saver.staging_bytes(), 32 * MIB);
    saver.save(&scratch.path("one"), model.lent(), &SaveOptions::default()).unwrap().wait().unwrap();
    assert_eq!(saver.staging_bytes(), 32 * MIB);
    model.check(&engine, &scratch.path("one"));
    // One that is dropped while it is made, and one that saves meanwhile.
    let huge = SaverOptions { staging_bytes: 1 << 40, ..options() };
    drop(Saver::new(&engine, huge).unwrap());
    let saver = Saver::new(&engine, options()).unwrap();
    saver.save(&scratch.path("two"), model.lent(), &SaveOptions::default()).unwrap().wait().unwrap();
    model.check(&engine, &scratch.path("two"));
}

#[test]
fn ten_thousand_tensors_with_odd_names_and_without_elements() {
    let (engine, scratch) = (engine(), scratch("many"));
    let tensors = (0..10_000_u64).map(|at| (format!("layer.{at}.\u{1F980}/\"{}\"", at % 7), at % 513));
    let model = Model(tensors.map(|(name, len)| (spec(&name, len), bytes_of(&name, len))).collect());
    saver(&engine).save(&scratch.path("model"), model.lent(), &SaveOptions::default()).unwrap().wait().unwrap();
    model.check(&engine, &scratch.path("model"));
    let none = Model(Vec::new());
    saver(&engine).save(&scratch.path("none"), none.lent(), &SaveOptions::default()).unwrap().wait().unwrap();
    none.check(&engine, &scratch.path("none"));
}

/// Fails at byte `fails_at`, and counts what it was asked.
struct Broken {
    len: u64,
    fails_at: u64,
    asked: AtomicU64,
}

impl Source for Broken {
    fn len(&self) -> u64 {
        self.len
    }

    fn copy_to(&self, at: u64, into: &mut [u8]) -> Result<(), Error> {
        self.asked.fetch_add(into.len() as u64, Ordering::Relaxed);
        if at + into.len() as u64 > self.fails_at {
            return Err(Error::new(ErrorKind::Io, Verb::Copy).at("broken"));
        }
        into.fill(7);
        Ok(())
    }
}

#[test]
fn a_source_that_fails_ends_the_save_and_the_old_checkpoint_stays() {
    let (engine, scratch, model) = (engine(), scratch("broken"), Model::odd());
    let (saver, target) = (saver(&engine), scratch.path("model"));
    saver.save(&target, model.lent(), &SaveOptions::default()).unwrap().wait().unwrap();
    let options = SaveOptions { if_exists: IfExists::Replace, ..SaveOptions::default() };
    for fails_at in [0, 9 * MIB, 20 * MIB - 1] {
        let broken = Broken { len: 20 * MIB, fails_at, asked: AtomicU64::new(0) };
        let tensors = vec![
            NewTensor::new(spec("given", 5 * MIB), Bytes::Owned(memory(&engine, &bytes_of("given", 5 * MIB)))),
            NewTensor::new(spec("w", 20 * MIB), Bytes::Source(&broken)),
        ];
        let failed = saver.save(&target, tensors.into(), &options).unwrap_err();
        assert_eq!((failed.error.kind(), failed.memory.len()), (ErrorKind::Io, 2));
        assert!(failed.memory[0].is_some() && failed.memory[1].is_none());
        model.check(&engine, &target);
        assert_eq!(names(scratch.root()), ["model"], "nothing is left");
    }
    // The saver goes on.
    saver.save(&target, model.lent(), &options).unwrap().wait().unwrap();
    model.check(&engine, &target);
    let saved = Model::new(&[("only", 10)]);
    saver.save(&target, saved.lent(), &options).unwrap().wait().unwrap();
    saved.check(&engine, &target);
    assert_eq!(names(scratch.root()), ["model"], "what it took the place of is gone");
}

#[test]
fn one_file_takes_the_place_of_another_and_of_nothing_else() {
    let (engine, scratch, model) = (engine(), scratch("file"), Model::odd());
    let (saver, target) = (saver(&engine), scratch.path("w.safetensors"));
    fs::write(scratch.path("config.json"), "{}").unwrap();
    for (round, model) in [model, Model::new(&[("a", 3)])].iter().enumerate() {
        let metadata = [("round".to_owned(), round.to_string())].into();
        let saving = saver.save_file(&target, model.lent(), metadata, straightway::Policy::Any).unwrap();
        assert_eq!(saving.wait().unwrap().at, target);
        let loaded = load(&engine, &at(&target), &LoadOptions::default()).unwrap();
        for (spec, bytes) in &model.0 {
            let tensor = loaded.tensors.iter().find(|tensor| tensor.name == spec.name).unwrap();
            assert!(loaded.bytes_of(&engine, tensor).unwrap() == *bytes);
        }
        assert_eq!(names(scratch.root()), ["config.json", "w.safetensors"]);
    }
    let none = Model::new(&[]);
    let save = |target: &Path| saver.save_file(target, none.lent(), Default::default(), straightway::Policy::Any);
    assert_eq!(save(scratch.root()).unwrap_err().error.kind(), ErrorKind::WrongKind);
    assert_eq!(save(&scratch.path("none/w.safetensors")).unwrap_err().error.kind(), ErrorKind::NotFound);
    assert_eq!(names(scratch.root()), ["config.json", "w.safetensors"]);
}

#[test]
fn misuse_is_told_before_anything_is_written() {
    let (engine, scratch) = (engine(), scratch("misuse"));
    let saver = saver(&engine);
    let bytes = vec![0; 10];
    let save = |tensors: Vec<NewTensor<'_>>, layout: Layout| {
        let options = SaveOptions { layout, ..SaveOptions::default() };
        let kind = saver.save(&scratch.path("model"), tensors.into(), &options).unwrap_err().error.kind();
        assert_eq!(names(scratch.root()).len(), 0);
        kind
    };
    let of = |spec| NewTensor::new(spec, Bytes::Source(&bytes));
    let sliced =
        |whole: Vec<u64>, offsets: Vec<u64>| NewTensor { slice: Some(Slice { whole, offsets }), ..of(spec("a", 10)) };
    let dcp = || Layout::Dcp(DcpOptions::default());
    assert_eq!(save(vec![of(spec("a", 11))], Layout::default()), ErrorKind::ApiMisuse);
    assert_eq!(save(vec![of(spec("a", 10)), of(spec("a", 10))], Layout::default()), ErrorKind::BadFormat);
    assert_eq!(save(vec![of(spec("a", 10)), of(spec("a", 10))], dcp()), ErrorKind::BadFormat);
    assert_eq!(save(vec![sliced(vec![20], vec![0])], Layout::default()), ErrorKind::BadFormat);
    assert_eq!(save(vec![sliced(vec![20], vec![11])], dcp()), ErrorKind::ApiMisuse);
    assert_eq!(save(vec![sliced(vec![20], vec![u64::MAX])], dcp()), ErrorKind::ApiMisuse);
    assert_eq!(save(vec![sliced(vec![20, 1], vec![0, 0])], dcp()), ErrorKind::ApiMisuse);
    let packed = TensorSpec { name: "f4".to_owned(), dtype: Dtype::F4, shape: vec![20] };
    assert_eq!(save(vec![of(packed)], dcp()), ErrorKind::BadFormat);
}

#[test]
fn two_writers_of_one_name_do_not_mix_and_leftovers_of_the_dead_go() {
    let (engine, scratch, model) = (engine(), scratch("writers"), Model::odd());
    let (saver, target) = (saver(&engine), scratch.path("model"));
    let first = PendingCheckpoint::begin(&target, IfExists::Refuse).unwrap();
    let second = saver.save(&target, model.lent(), &SaveOptions::default()).unwrap_err().error;
    assert_eq!(second.kind(), ErrorKind::InUse, "{second}");
    assert_eq!(clean(scratch.root()).unwrap().kept, [first.directory()]);
    // Another name is not concerned, even one that begins the same.
    saver.save(&scratch.path("model.2"), model.lent(), &SaveOptions::default()).unwrap().wait().unwrap();
    drop(first);
    assert_eq!(names(scratch.root()), ["model.2"]);
    // What a killed writer leaves: a directory, and a lock that nobody holds.
    let dead = scratch.path(".model.4000000-3.straightway-pending");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("half"), "x").unwrap();
    fs::write(scratch.path(".model.4000000-3.straightway-lock"), "").unwrap();
    fs::write(scratch.path(".other.4000000-3.straightway-lock"), "").unwrap();
    saver.save(&target, model.lent(), &SaveOptions::default()).unwrap().wait().unwrap();
    assert_eq!(names(scratch.root()), [".other.4000000-3.straightway-lock", "model", "model.2"]);
    assert_eq!(clean(scratch.root()).unwrap().removed.len(), 1);
    assert_eq!(names(scratch.root()), ["model", "model.2"]);
    let again = saver.save(&target, model.lent(), &SaveOptions::default()).unwrap_err().error;
    assert_eq!(again.kind(), ErrorKind::AlreadyExists, "{again}");
    fs::write(scratch.path("file"), "").unwrap();
    let file = saver.save(&scratch.path("file"), model.lent(), &SaveOptions::default()).unwrap_err().error;
    assert_eq!(file.kind(), ErrorKind::WrongKind);
}

#[test]
fn a_saver_that_is_busy_waits_or_refuses() {
    let (engine, scratch, model) = (engine(), scratch("busy"), Model::odd());
    // The first save is held in the middle until the second was tried.
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    let at_gate = gate.clone();
    let observer = Arc::new(move |progress: Progress<'_>| {
        if matches!(progress, Progress::FileDone(_)) {
            drop(at_gate.lock().unwrap());
        }
    });
    let options = SaverOptions { when_busy: WhenBusy::Refuse, observer: Some(observer), ..SaverOptions::default() };
    let saver = Saver::new(&engine, options).unwrap();
    let mut first = saver.save(&scratch.path("first"), model.lent(), &SaveOptions::default()).unwrap();
    assert!(!first.poll());
    let second = saver.save(&scratch.path("second"), model.lent(), &SaveOptions::default()).unwrap_err();
    assert_eq!(second.error.kind(), ErrorKind::Busy);
    drop(held);
    first.wait().unwrap();
    let third = saver.save(&scratch.path("second"), model.lent(), &SaveOptions::default()).unwrap();
    drop(third);
    drop(saver);
    assert_eq!(names(scratch.root()), ["first", "second"], "dropping the saver waits for its save");
    let saver = Saver::new(&engine, SaverOptions::default()).unwrap();
    let a = saver.save(&scratch.path("a"), model.lent(), &SaveOptions::default()).unwrap();
    let b = saver.save(&scratch.path("b"), model.lent(), &SaveOptions::default()).unwrap();
    b.wait().unwrap();
    a.wait().unwrap();
}

fn rank(number: u32, of: u32) -> Rank {
    Rank { number, of }
}

fn prepare(saver: &Saver, pending: &PendingCheckpoint, rank: Rank, model: &Model, options: &SaveOptions) -> Part {
    let prepared = saver.prepare(pending, rank, model.lent(), options).unwrap().wait().unwrap();
    Part::from_bytes(&prepared.part.to_bytes()).unwrap()
}

#[test]
fn ranks_write_together_and_one_commits() {
    let (engine, scratch) = (engine(), scratch("ranks"));
    let (saver, target, options) = (saver(&engine), scratch.path("model"), SaveOptions::default());
    let models = [Model::new(&[("a", 5 * MIB), ("b", 3)]), Model::new(&[("c", 7)]), Model::new(&[])];
    let pending = PendingCheckpoint::begin(&target, IfExists::Refuse).unwrap();
    let mut parts: Vec<Part> = Vec::new();
    for (number, model) in (0..).zip(&models) {
        let joined = PendingCheckpoint::join(pending.directory()).unwrap();
        parts.push(prepare(&saver, &joined, rank(number, 3), model, &options));
        let twice = saver.prepare(&joined, rank(number, 3), model.lent(), &options).unwrap_err().error;
        assert_eq!(twice.kind(), ErrorKind::InUse, "{twice}");
    }
    assert!(!target.exists(), "nothing is seen before the commit");
    parts.swap(0, 2);
    let files = commit(&engine, pending, parts, &Commit::default()).unwrap();
    assert_eq!(files.len(), 5);
    let all = Model(models.into_iter().flat_map(|model| model.0).collect());
    all.check(&engine, &target);
    assert_eq!(check_sums(&target), 3);
    assert_eq!(names(scratch.root()), ["model"]);
}

#[test]
fn a_rank_that_is_missing_twice_or_lies_is_an_error_and_nothing_is_left() {
    let (engine, scratch, model) = (engine(), scratch("dead-rank"), Model::odd());
    let (saver, target, options) = (saver(&engine), scratch.path("model"), SaveOptions::default());
    let begin = || PendingCheckpoint::begin(&target, IfExists::Refuse).unwrap();
    let ends = |pending: PendingCheckpoint, parts: Vec<Part>| {
        let error = commit(&engine, pending, parts, &Commit::default()).unwrap_err();
        assert_eq!(names(scratch.root()).len(), 0, "{error}");
        error.kind()
    };
    let pending = begin();
    let only = prepare(&saver, &pending, rank(0, 2), &model, &options);
    assert_eq!(ends(pending, vec![only]), ErrorKind::ApiMisuse);
    let pending = begin();
    let only = prepare(&saver, &pending, rank(0, 2), &model, &options);
    assert_eq!(ends(pending, vec![only.clone(), only]), ErrorKind::ApiMisuse);
    // Two ranks have the same tensor, which safetensors cannot hold twice.
    let pending = begin();
    let parts = (0..2).map(|number| prepare(&saver, &pending, rank(number, 2), &model, &options)).collect();
    assert_eq!(ends(pending, parts), ErrorKind::BadFormat);
    // A file is shorter than its rank said.
    let pending = begin();
    let only = prepare(&saver, &pending, Rank::ALONE, &model, &options);
    let file = pending.directory().join("model.safetensors");
    fs::File::options().write(true).open(file).unwrap().set_len(5).unwrap();
    assert_eq!(ends(pending, vec![only]), ErrorKind::ShortData);
    // A member cannot commit, and one that comes too late finds nothing.
    let pending = begin();
    let directory: PathBuf = pending.directory().to_owned();
    let only = prepare(&saver, &pending, Rank::ALONE, &model, &options);
    let member = PendingCheckpoint::join(&directory).unwrap();
    assert_eq!(commit(&engine, member, vec![only], &Commit::default()).unwrap_err().kind(), ErrorKind::ApiMisuse);
    drop(pending);
    assert_eq!(PendingCheckpoint::join(&directory).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(PendingCheckpoint::join(&target).unwrap_err().kind(), ErrorKind::ApiMisuse);
    assert_eq!(Part::from_bytes(b"{}").unwrap_err().kind(), ErrorKind::BadFormat);
}

#[test]
fn unchanged_files_are_linked_and_a_change_is_written() {
    let (engine, scratch) = (engine(), scratch("links"));
    let saver = saver(&engine);
    let layout = LayoutOptions { shard_len_max_bytes: Some(13 * MIB), ..LayoutOptions::default() };
    let save = |name: &str, model: &Model, since: Option<&str>| {
        let incremental = Incremental::Since(since.map(|since| scratch.path(since)));
        let options = SaveOptions { layout: layout.clone().into(), incremental, ..SaveOptions::default() };
        let saved = saver.save(&scratch.path(name), model.lent(), &options).unwrap().wait().unwrap();
        model.check(&engine, &scratch.path(name));
        saved.moved
    };
    let mut model = Model::new(&[("frozen", 13 * MIB), ("w", 12 * MIB + 5), ("x", 12 * MIB)]);
    assert_eq!(save("one", &model, None).linked_bytes, 0);
    let moved = save("two", &model, Some("one"));
    assert_eq!((moved.staged_bytes, moved.bytes.total()), (0, 0), "nothing was written");
    assert!(moved.linked_bytes > 37 * MIB);
    // One byte of the last chunk of the second file: what comes before it is copied from the earlier one.
    *model.0[1].1.last_mut().unwrap() ^= 1;
    let moved = save("three", &model, Some("two"));
    assert!((25 * MIB..26 * MIB).contains(&moved.linked_bytes));
    assert!(moved.staged_bytes < 4 * MIB && moved.bytes.total() > 12 * MIB, "{moved:?}");
    let inode = |step: &str, file: u32| {
        fs::metadata(scratch.path(step).join(format!("model-{file:05}-of-00003.safetensors"))).unwrap().ino()
    };
    assert_eq!((inode("three", 1), inode("three", 3)), (inode("one", 1), inode("one", 3)));
    assert_ne!(inode("three", 2), inode("two", 2));
    // An earlier checkpoint that rotted is not copied from.
    let rotten = scratch.path("three").join("model-00002-of-00003.safetensors");
    let mut bytes = fs::read(&rotten).unwrap();
    bytes[6 << 20] ^= 1;
    fs::write(&rotten, bytes).unwrap();
    *model.0[1].1.last_mut().unwrap() ^= 2;
    let options = SaveOptions {
        layout: layout.clone().into(),
        incremental: Incremental::Since(Some(scratch.path("three"))),
        ..SaveOptions::default()
    };
    let failed = saver.save(&scratch.path("four"), model.lent(), &options).and_then(|saving| saving.wait());
    assert_eq!(failed.unwrap_err().error.kind(), ErrorKind::ChecksumMismatch);
    // None there, or none with checksums: everything is written.
    assert_eq!(save("five", &model, Some("nowhere")).linked_bytes, 0);
}

#[test]
fn steps_are_listed_and_retained() {
    let (engine, scratch, model) = (engine(), scratch("steps"), Model::new(&[("w", 100)]));
    let (saver, steps) = (saver(&engine), Steps::new(scratch.root()));
    assert_eq!(Steps::new(scratch.path("not there yet")).latest().unwrap(), None);
    assert_eq!(steps.latest().unwrap(), None);
    for step in [9, 10, 20, 25, 1_234_567] {
        saver.save(&steps.path(step), model.lent(), &SaveOptions::default()).unwrap().wait().unwrap();
    }
    // Not from a commit, or not by that name.
    fs::create_dir(steps.path(99)).unwrap();
    fs::create_dir(scratch.path("step-7")).unwrap();
    fs::write(scratch.path("step-7").join(CHECKSUMS_FILE), "").unwrap();
    assert_eq!(steps.list().unwrap(), [9, 10, 20, 25, 1_234_567]);
    assert_eq!(steps.latest().unwrap(), Some(1_234_567));
    assert_eq!(steps.retain(Keep { last: 2, every: Some(10) }).unwrap(), [9]);
    assert_eq!(steps.retain(Keep { last: 1, every: Some(20) }).unwrap(), [10, 25]);
    assert_eq!(steps.retain(Keep { last: 1, every: None }).unwrap(), [20]);
    assert_eq!(names(scratch.root()), ["step-000099", "step-1234567", "step-7"]);
    model.check(&engine, &steps.path(1_234_567));
    assert_eq!(steps.retain(Keep { last: 0, every: None }).unwrap_err().kind(), ErrorKind::ApiMisuse);
}

#[test]
fn progress_is_told_in_order() {
    let (engine, scratch, model) = (engine(), scratch("progress"), Model::odd());
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let wrote = Arc::new(AtomicU64::new(0));
    let observer = {
        let (told, wrote) = (told.clone(), wrote.clone());
        Arc::new(move |progress: Progress<'_>| match progress {
            Progress::Wrote(bytes) => drop(wrote.fetch_add(bytes, Ordering::Relaxed)),
            // The caller's own thread tells it, at any time.
            Progress::Captured => {}
            other => told.lock().unwrap().push(format!("{other:?}")),
        })
    };
    let saver = Saver::new(&engine, SaverOptions { observer: Some(observer), ..SaverOptions::default() }).unwrap();
    saver.save(&scratch.path("model"), model.lent(), &SaveOptions::default()).unwrap().wait().unwrap();
    let done = |file: &str| format!("FileDone({file:?})");
    let want = [
        "Began".to_owned(),
        done("model.safetensors"),
        "Prepared".to_owned(),
        done(CHECKSUMS_FILE),
        "Committing".to_owned(),
        "Committed".to_owned(),
    ];
    assert_eq!(*told.lock().unwrap(), want);
    assert_eq!(wrote.load(Ordering::Relaxed), fs::metadata(scratch.path("model/model.safetensors")).unwrap().len());
}

#[test]
fn a_cancelled_save_leaves_nothing_and_a_cancelled_load_gives_nothing() {
    let (scratch, engine, model) = (scratch("cancel"), engine(), Model::odd());
    for owned in [false, true] {
        let cancel = Cancel::default();
        let on_first_write = {
            let cancel = cancel.clone();
            Arc::new(move |progress: Progress<'_>| {
                if matches!(progress, Progress::Wrote(_)) {
                    cancel.cancel();
                }
            })
        };
        let options = SaverOptions { observer: Some(on_first_write), cancel, ..SaverOptions::default() };
        let saver = Saver::new(&engine, options).unwrap();
        let contents = if owned { model.owned(&engine) } else { model.lent() };
        let saved =
            saver.save(&scratch.path("new"), contents, &SaveOptions::default()).and_then(|saving| saving.wait());
        assert_eq!(saved.unwrap_err().error.kind(), ErrorKind::Cancelled);
        drop(saver);
        assert_eq!(fs::read_dir(scratch.root()).unwrap().count(), 0, "owned: {owned}");
    }
    let saver = Saver::new(&engine, SaverOptions::default()).unwrap();
    saver.save(&scratch.path("new"), model.lent(), &SaveOptions::default()).unwrap().wait().unwrap();
    let cancel = Cancel::default();
    cancel.cancel();
    let error =
        load(&engine, &at(&scratch.path("new")), &LoadOptions { cancel, ..LoadOptions::default() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    model.check(&engine, &scratch.path("new"));
}
