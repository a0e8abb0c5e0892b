//! Deaths and full disks: a save that is killed at each of its steps, and one that finds no room.
//!
//! The test runs itself as the writer that dies: the observer of the saver counts what it is told and ends the process with
//! SIGKILL at the n-th time, for every n until a save goes through.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use straightway::{Destination, Engine, ErrorKind, GpuUse, Uri};
use sw_checkpoint::{
    Bytes, DcpOptions, Dtype, IfExists, Incremental, Layout, LayoutOptions, LoadOptions, NewTensor, Progress,
    SaveOptions, Saver, SaverOptions, Steps, TensorSpec, clean, load,
};
use sw_testkit::scratch::Scratch;

const MIB: u64 = 1 << 20;
/// More than any save here tells.
const STEPS_MAX: u64 = 200;

/// A test with its name.
type Test = (&'static str, fn());

const TESTS: [Test; 4] = [
    ("a_save_killed_at_any_step_leaves_the_old_checkpoint_whole", killed_beside),
    ("a_replacing_save_killed_at_any_step_leaves_one_of_both", killed_replacing),
    ("a_full_disk_is_told_and_leaves_nothing", full_disk),
    ("a_write_that_fails_is_told_and_leaves_nothing", writes_that_fail),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, verb, directory, step, kill_at] = arguments.as_slice()
        && verb == "writer-that-dies"
    {
        writer(Path::new(directory), step, kill_at.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let wanted = |name: &str| {
        let mut filters = arguments.iter().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
        filters.peek().is_none() || filters.any(|filter| name.contains(filter.as_str()))
    };
    for (name, test) in TESTS.into_iter().filter(|(name, _)| wanted(name)) {
        test();
        println!("ok   {name}");
    }
    ExitCode::SUCCESS
}

/// What a step's tensors hold. The first is the same in all.
fn model(step: u64) -> Vec<(TensorSpec, Vec<u8>)> {
    let tensor = |name: &str, seed: u64, len: u64| {
        let bytes = (0..len).map(|at| (at * 13 + seed + at / 511).to_le_bytes()[0]).collect();
        (TensorSpec { name: name.to_owned(), dtype: Dtype::U8, shape: vec![len] }, bytes)
    };
    vec![tensor("frozen", 0, 5 * MIB), tensor("w", step, 9 * MIB + 7), tensor("none", step, 0)]
}

fn engine() -> Engine {
    Engine::builder().gpu(GpuUse::Off).build().unwrap()
}

fn options(steps: &Steps, step: u64) -> SaveOptions {
    let layout = LayoutOptions { shard_len_max_bytes: Some(6 * MIB), ..LayoutOptions::default() };
    let earlier = steps.latest().unwrap().map(|latest| steps.path(latest));
    let if_exists = if step == REPLACED { IfExists::Replace } else { IfExists::Refuse };
    SaveOptions { layout: layout.into(), incremental: Incremental::Since(earlier), if_exists, ..SaveOptions::default() }
}

/// The step that replaces itself; its bytes are those of the step after.
const REPLACED: u64 = 7;

fn save(saver: &Saver, steps: &Steps, step: u64, content: u64) -> Result<(), straightway::Error> {
    let model = model(content);
    let mut tensors = Vec::new();
    for (spec, bytes) in &model {
        tensors.push(NewTensor::new(spec.clone(), Bytes::Source(bytes)));
    }
    saver.save(&steps.path(step), tensors.into(), &options(steps, step))?.wait()?;
    Ok(())
}

/// Saves `step`, and is killed when it is told something for the `kill_at`-th time.
fn writer(root: &Path, step: &str, kill_at: u64) {
    let told = AtomicU64::new(0);
    let observer = Arc::new(move |_: Progress<'_>| {
        if told.fetch_add(1, Ordering::SeqCst) == kill_at {
            kill(Pid::this(), Signal::SIGKILL).unwrap();
        }
    });
    let saver = Saver::new(&engine(), SaverOptions { observer: Some(observer), ..SaverOptions::default() }).unwrap();
    let step: u64 = step.parse().unwrap();
    save(&saver, &Steps::new(root), step, if step == REPLACED { step + 1 } else { step }).unwrap();
}

fn run_writer(root: &Path, step: u64, kill_at: u64) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("writer-that-dies").arg(root).arg(step.to_string()).arg(kill_at.to_string());
    let status = command.stdin(Stdio::null()).status().unwrap();
    assert!(status.success() || status.code().is_none(), "killed or done, not failed: {status}");
    status.success()
}

/// Which step's tensors the checkpoint has; panics if they are of none or of two.
fn content(engine: &Engine, directory: &Path, candidates: &[u64]) -> u64 {
    let loaded = load(engine, &Uri::from_path(directory).unwrap(), &LoadOptions::default()).unwrap();
    let same = |step: &&u64| {
        model(**step).iter().all(|(spec, bytes)| {
            let tensor = loaded.tensors.iter().find(|tensor| tensor.name == spec.name).unwrap();
            loaded.bytes_of(engine, tensor).unwrap() == *bytes
        })
    };
    *candidates.iter().find(same).unwrap()
}

/// Names that a listing shows, and all.
fn names(root: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(root).unwrap().map(name).collect();
    names.sort();
    names
}

fn scratch(tag: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag)
}

fn killed_beside() {
    let (engine, scratch) = (engine(), scratch("killed"));
    let (steps, saver) = (Steps::new(scratch.root()), Saver::new(&engine, SaverOptions::default()).unwrap());
    save(&saver, &steps, 1, 1).unwrap();
    let mut leftovers = 0;
    for kill_at in 0..STEPS_MAX {
        let done = run_writer(scratch.root(), 2, kill_at);
        assert_eq!(content(&engine, &steps.path(1), &[1]), 1);
        let visible: Vec<_> = names(scratch.root()).into_iter().filter(|name| !name.starts_with('.')).collect();
        match steps.latest().unwrap() {
            // Killed after the rename counts as saved: all of it is there.
            Some(2) => assert_eq!(content(&engine, &steps.path(2), &[2]), 2),
            latest => {
                assert_eq!((latest, done, visible), (Some(1), false, vec!["step-000001".to_owned()]));
                leftovers += usize::from(names(scratch.root()).len() > 1);
            }
        }
        // Every other time the next save meets the leftover, else `clean` does.
        if kill_at % 2 == 0 {
            assert!(clean(scratch.root()).unwrap().kept.is_empty());
        } else if steps.latest().unwrap() == Some(1) {
            save(&saver, &steps, 2, 2).unwrap();
        } else {
            clean(scratch.root()).unwrap();
        }
        assert!(names(scratch.root()).iter().all(|name| !name.starts_with('.')), "{:?}", names(scratch.root()));
        if done {
            println!("killed at {kill_at} steps, {leftovers} times something was left and removed");
            assert!(kill_at > 8 && leftovers > 4);
            return;
        }
        let _ = fs::remove_dir_all(steps.path(2));
    }
    panic!("the writer never came through");
}

fn killed_replacing() {
    let (engine, scratch) = (engine(), scratch("killed-replacing"));
    let (steps, saver) = (Steps::new(scratch.root()), Saver::new(&engine, SaverOptions::default()).unwrap());
    let mut seen = [0, 0];
    for kill_at in 0..STEPS_MAX {
        save(&saver, &steps, REPLACED, REPLACED).unwrap();
        let done = run_writer(scratch.root(), REPLACED, kill_at);
        let now = content(&engine, &steps.path(REPLACED), &[REPLACED, REPLACED + 1]);
        seen[usize::from(now != REPLACED)] += 1;
        if done {
            assert_eq!(now, REPLACED + 1);
            println!("old {} times, new {} times", seen[0], seen[1]);
            assert!(seen[0] > 8 && seen[1] > 1, "killed before and after the exchange");
            return;
        }
    }
    panic!("the writer never came through");
}

/// A small tmpfs, undone when it is dropped.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn full_disk() {
    let scratch = scratch("full");
    let small = scratch.path("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "none"]).arg(&small).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("skip full disk: mounting needs root");
        return;
    }
    let mount = Mount(small);
    let engine = engine();
    let (steps, saver) = (Steps::new(&mount.0), Saver::new(&engine, SaverOptions::default()).unwrap());
    save(&saver, &steps, 1, 1).unwrap();
    // The first file fits no more after the second: one is whole when the other fails.
    for layout in [Layout::default(), Layout::Dcp(DcpOptions { file_len_max_bytes: Some(6 * MIB) })] {
        let model = model(2);
        let mut tensors = Vec::new();
        for (spec, bytes) in &model {
            tensors.push(NewTensor::new(spec.clone(), Bytes::Source(bytes)));
        }
        let options = SaveOptions { layout, ..SaveOptions::default() };
        let failed = saver.save(&steps.path(2), tensors.into(), &options).and_then(|saving| saving.wait()).unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::NoSpace, "{}", failed.error);
        assert!(!failed.error.remedy_text().is_empty());
        assert_eq!(names(&mount.0), ["step-000001"]);
        assert_eq!(content(&engine, &steps.path(1), &[1]), 1);
    }
    // With room again the same saver saves.
    fs::remove_dir_all(steps.path(1)).unwrap();
    save(&saver, &steps, 2, 2).unwrap();
    assert_eq!(content(&engine, &steps.path(2), &[2]), 2);
}

/// An ext4 without extents: it cannot reserve space, so that a full disk shows in the middle of the writing.
struct Loop(Mount);

impl Loop {
    fn new(scratch: &Scratch, mib: u64) -> Option<Self> {
        let (image, at) = (scratch.path("image"), scratch.path("mnt"));
        fs::File::create(&image).unwrap().set_len(mib * MIB).unwrap();
        fs::create_dir(&at).unwrap();
        let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = ran(Command::new("mkfs.ext4").args(["-q", "-O", "^extent,^64bit,^has_journal"]).arg(&image));
        (made && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at))).then(|| Self(Mount(at)))
    }
}

fn writes_that_fail() {
    let scratch = scratch("write-error");
    let Some(disk) = Loop::new(&scratch, 48) else {
        println!("skip writes that fail: mounting needs root and mkfs.ext4");
        return;
    };
    let root = disk.0.0.join("run");
    fs::create_dir(&root).unwrap();
    let engine = engine();
    let (steps, saver) = (Steps::new(&root), Saver::new(&engine, SaverOptions::default()).unwrap());
    save(&saver, &steps, 1, 1).unwrap();
    let bytes: Vec<u8> = vec![5; usize::try_from(60 * MIB).unwrap()];
    let given = || {
        let mut buffer = engine.allocate(Destination::Host, 60 * MIB, 0).unwrap().into_buffer().unwrap();
        buffer.as_mut_slice().fill(5);
        Bytes::Owned(buffer.into())
    };
    for bytes in [Bytes::Source(&bytes), given()] {
        let owned = matches!(bytes, Bytes::Owned(_));
        let spec = TensorSpec { name: "w".to_owned(), dtype: Dtype::U8, shape: vec![60 * MIB] };
        let tensors = vec![NewTensor::new(spec, bytes)];
        let failed = saver.save(&steps.path(2), tensors.into(), &SaveOptions::default());
        let failed = failed.and_then(|saving| saving.wait()).unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::NoSpace, "{}", failed.error);
        assert_eq!(failed.memory[0].is_some(), owned, "what was given away comes back");
        assert_eq!(names(&root), ["step-000001"]);
        assert_eq!(content(&engine, &steps.path(1), &[1]), 1);
    }
    // All slabs came back: the same saver still saves more than its pool of the background holds.
    save(&saver, &steps, 2, 2).unwrap();
    assert_eq!(content(&engine, &steps.path(2), &[2]), 2);
}
