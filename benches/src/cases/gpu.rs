//! `gpu`: a file from the page cache into GPU memory, beside copies of pinned memory alone and beside KvikIO.

use std::path::Path;

use crate::{
    bench::{Bench, Size, words},
    data::{self, CacheState},
    fault::Fault,
    ours::gpu::Gpu,
    peers::kvikio::{Compat, KvikIo, Reads},
    report::{Best, Bound, Case, Metric, Role, Sample, Side},
    rounds::{Before, Subject},
    worker::Worker,
};

/// Bytes of one read of ours: a tensor of a large model.
const PART_BYTES: u64 = 16 << 20;
/// Slab sizes of the copies that are the ceiling, bytes: a copy engine is at its best at the larger of them.
const SLAB_SIZES: &str = "262144,524288,1048576,2097152,4194304,16777216";
/// Bytes of pinned memory that the ceiling copies from; the engine's ring for the side of its own slab size.
const BEST_RING_BYTES: u64 = 256 << 20;

const US: &str = "straightway";
const US_8: &str = "straightway, 8 reactors";
const SAME_SLABS: &str = "pinned copies, our slabs";
const BEST_SLABS: &str = "pinned copies, best slabs";
/// Name, whether cuFile is used, threads. KvikIO's own default is one thread; nobody who cares uses it.
const KVIKIO: &[(&str, Compat, u32)] = &[
    ("kvikio-posix-1", Compat::On, 1),
    ("kvikio-posix-4", Compat::On, 4),
    ("kvikio-posix-16", Compat::On, 16),
    ("kvikio-cufile-4", Compat::Off, 4),
];

/// How often a worker reads the file.
fn passes(size: Size) -> u32 {
    match size {
        Size::Smoke => 1,
        Size::Real => 4,
    }
}

/// One case; without a GPU every side is absent with the reason.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let gpu = match Gpu::first() {
        Ok(gpu) => gpu,
        Err(why) => {
            (bench.tell)(&format!("gpu: skipped: {why}"));
            return Ok(vec![with_goals(absent(&why))]);
        }
    };
    (bench.tell)(&format!("gpu: {}, driver {}", gpu.name, gpu.driver));
    let file = data::plain(&bench.dir, bench.size.file_bytes(), bench.seed)?;
    let digest = data::digest_of_file(&file, PART_BYTES, bench.seed)?;
    data::set_cache(std::slice::from_ref(&file), CacheState::Warm)?;
    // Not counted: it tells the shape of the ring, which the ceiling of the same slabs needs.
    let mut first = ours(bench, US, &file, &[]);
    let shape = match first.run().and_then(|sample| Shape::of(&sample)) {
        Ok(shape) => shape,
        Err(fault) => {
            (bench.tell)(&format!("gpu: no staged read: {}", fault.line()));
            let mut case = absent(&fault.line());
            case.sides.iter_mut().for_each(|side| side.leave_out(&fault));
            return Ok(vec![with_goals(case)]);
        }
    };
    // The counted runs keep to that shape: measured anew it may be another, and the ceiling's would be of other slabs.
    let staging = shape.staging();
    let mut subjects: Vec<Box<dyn Subject>> = vec![
        Box::new(ours(bench, US, &file, &[&staging])),
        Box::new(ours(bench, US_8, &file, &[&staging, "--reactors=8"])),
        copies(bench, SAME_SLABS, &shape.slab_bytes.to_string(), shape.ring_bytes),
        copies(bench, BEST_SLABS, SLAB_SIZES, BEST_RING_BYTES),
    ];
    for &(name, compat, threads) in KVIKIO {
        let (file, seed, passes) = (file.clone(), bench.seed, passes(bench.size));
        let python = bench.python.clone();
        let (part_bytes, reads) = (PART_BYTES, Reads::Whole);
        subjects.push(Box::new(KvikIo { name, compat, reads, threads, part_bytes, passes, seed, file, python }));
    }
    let before = Before { cache: Some(CacheState::Warm), back_bytes: 0, digest: Some(digest) };
    let case = bench.case("gpu", &what(Some(&gpu), bench.size.file_bytes()), subjects, &before);
    let mut case = with_goals(case);
    if gpu.is_standin() {
        case.void("stand-in driver, means nothing");
    }
    Ok(vec![case])
}

/// The ring of slabs that the engine chose.
struct Shape {
    slab_bytes: u64,
    ring_bytes: u64,
}

impl Shape {
    /// What a worker told of its ring.
    ///
    /// # Errors
    /// `Output` if it told nothing: then there is nothing to compare with.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole numbers that a worker wrote as such, below 2^32"
    )]
    fn of(sample: &Sample) -> Result<Self, Fault> {
        let number = |name: &str| sample.more.get(name).map(|value| *value as u64).filter(|value| *value > 0);
        let (Some(slab_bytes), Some(slabs)) = (number("slab_bytes"), number("slabs")) else {
            let words = format!("no shape of its ring: {:?}", sample.path);
            return Err(Fault::Output { program: US.to_owned(), words });
        };
        Ok(Self { slab_bytes, ring_bytes: slab_bytes * slabs })
    }

    /// As an argument of the worker.
    fn staging(&self) -> String {
        format!("--staging={}x{}", self.slab_bytes, self.ring_bytes / self.slab_bytes)
    }
}

fn ours(bench: &Bench<'_>, name: &str, file: &Path, more: &[&str]) -> Worker {
    let mut args = words(&[
        "gpu-read",
        &file.to_string_lossy(),
        &format!("--part-bytes={PART_BYTES}"),
        &format!("--passes={}", passes(bench.size)),
        &format!("--seed={}", bench.seed),
    ]);
    args.extend(words(more));
    Worker {
        name: name.to_owned(),
        role: Role::Ours,
        own_memory: None,
        args,
        files: vec![file.to_owned()],
        scratch: bench.scratch.clone(),
    }
}

fn copies(bench: &Bench<'_>, name: &str, slab_bytes: &str, ring_bytes: u64) -> Box<dyn Subject> {
    let bytes = bench.size.file_bytes() * u64::from(passes(bench.size));
    let args = words(&[
        "gpu-copy",
        &format!("--bytes={bytes}"),
        &format!("--slab-bytes={slab_bytes}"),
        &format!("--ring-bytes={ring_bytes}"),
    ]);
    bench.worker(name, Role::Ceiling, &args, &[])
}

fn what(gpu: Option<&Gpu>, file_bytes: u64) -> String {
    let job = "from the page cache into the memory of the first GPU, beside copies of pinned memory that read no file";
    match gpu {
        None => format!("A file {job}. Not run."),
        Some(gpu) => format!("{} MiB {job}. {}", file_bytes >> 20, gpu.told()),
    }
}

/// The case of a machine that cannot run it.
fn absent(why: &str) -> Case {
    let side = |name: &str, role| Side::absent(name, role, why);
    let ours = [US, US_8].map(|name| side(name, Role::Ours));
    let ceilings = [SAME_SLABS, BEST_SLABS].map(|name| side(name, Role::Ceiling));
    let peers = KVIKIO.iter().map(|(name, ..)| side(name, Role::Peer));
    let sides = ours.into_iter().chain(ceilings).chain(peers).collect();
    Case { name: "gpu".to_owned(), what: what(None, 0), sides, goals: Vec::new() }
}

fn with_goals(mut case: Case) -> Case {
    for (against, text) in [
        (BEST_SLABS, "rate at least 0.9 of pinned copies at their best slab size"),
        (SAME_SLABS, "rate at least 0.9 of pinned copies of the same slabs"),
    ] {
        case.hold(text, Metric::BytesPerSecond, US, Some(against), Bound::AtLeast(0.9));
    }
    let fastest = case.best_peer(Metric::BytesPerSecond, Best::Highest, |_| true).map(|side| side.name.clone());
    // Without a peer the goal stays in the report, as not measured.
    let fastest = fastest.unwrap_or_else(|| "kvikio-posix-4".to_owned());
    case.hold("faster than KvikIO", Metric::BytesPerSecond, US, Some(&fastest), Bound::AtLeast(1.0));
    case
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_every_side_is_absent_with_the_reason_and_no_goal_is_held() {
        let case = with_goals(absent("no GPU: reason; remedy"));
        assert!(case.sides.iter().all(|side| side.absent.as_deref() == Some("no GPU: reason; remedy")));
        assert_eq!((case.sides.len(), case.goals.len()), (8, 3));
        assert!(case.goals.iter().all(|goal| goal.held.is_none()));
    }

    #[test]
    fn ring_of_the_ceiling_is_the_one_that_the_engine_told() {
        let mut sample = Sample::default();
        sample.more.insert("slab_bytes".to_owned(), 524_288.0);
        sample.more.insert("slabs".to_owned(), 64.0);
        let shape = Shape::of(&sample).unwrap();
        assert_eq!((shape.slab_bytes, shape.ring_bytes), (512 << 10, 32 << 20));
        assert_eq!(shape.staging(), "--staging=524288x64");
        assert!(Shape::of(&Sample::default()).is_err());
    }
}
