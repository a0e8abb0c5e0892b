//! `gpu-cufile`: programs that were written for cuFile, a file into GPU memory: on our library, on NVIDIA's, and KvikIO's own path.

use std::path::{Path, PathBuf};

use crate::{
    bench::{Bench, Size, words},
    data::{self, CacheState},
    fault::Fault,
    ours::gpu::Gpu,
    peers::{
        kvikio::{Compat, KvikIo, Reads},
        pread::Way,
    },
    report::{Best, Bound, Case, Metric, Role, Side},
    rounds::{Before, Subject},
};

/// Bytes of one read.
const PART_BYTES: u64 = 16 << 20;
const US: &str = "straightway-cufile";
const NVIDIA: &str = "nvidia-cufile";
/// Name and threads. Its own path: reads into pinned memory, copies.
const KVIKIO: [(&str, u32); 2] = [("kvikio-posix-1", 1), ("kvikio-posix-4", 4)];

/// Where the bytes are.
struct Origin {
    name: &'static str,
    words: &'static str,
    cache: CacheState,
    way: Way,
}

const FROM: [Origin; 2] = [
    Origin { name: "gpu-cufile/page-cache", words: "in the page cache", cache: CacheState::Warm, way: Way::Cached },
    Origin { name: "gpu-cufile/file", words: "that is not cached", cache: CacheState::Cold, way: Way::Direct },
];

/// Times that a side reads the file: what is not cached is so once.
fn passes(from: &Origin, size: Size) -> u32 {
    match (from.cache, size) {
        (CacheState::Warm, Size::Real) => 4,
        _ => 1,
    }
}

/// Both cases; without a GPU every side is absent with the reason.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let gpu = match Gpu::first() {
        Ok(gpu) => gpu,
        Err(why) => {
            (bench.tell)(&format!("gpu-cufile: skipped: {why}"));
            return Ok(FROM.iter().map(|from| absent(from, &why)).collect());
        }
    };
    let file = data::plain(&bench.dir, bench.size.file_bytes(), bench.seed)?;
    let digest = data::digest_of_file(&file, PART_BYTES, bench.seed)?;
    FROM.iter().map(|from| one(bench, &gpu, from, (&file, &digest))).collect()
}

fn one(bench: &mut Bench<'_>, gpu: &Gpu, from: &Origin, (file, digest): (&Path, &str)) -> Result<Case, Fault> {
    let passes = passes(from, bench.size);
    let ours = bench.libraries.join("libstraightway_cufile.so");
    let mut subjects: Vec<Box<dyn Subject>> = vec![by_library(bench, US, &ours, (from, file, passes))];
    let reads = if from.cache == CacheState::Cold { Reads::ColdParts } else { Reads::Parts };
    for (name, threads) in KVIKIO {
        let (file, seed, python) = (file.to_owned(), bench.seed, bench.python.clone());
        let (part_bytes, compat) = (PART_BYTES, Compat::On);
        subjects.push(Box::new(KvikIo { name, compat, reads, threads, part_bytes, passes, seed, file, python }));
    }
    let nvidia = nvidia(bench);
    if let Ok(library) = &nvidia {
        subjects.push(by_library(bench, NVIDIA, library, (from, file, passes)));
    }
    let before = Before { cache: Some(from.cache), back_bytes: 0, digest: Some(digest.to_owned()) };
    let mut case = bench.case(from.name, &what(from, Some(gpu)), subjects, &before);
    case.sides.extend(nvidia.err().map(|why| Side::absent(NVIDIA, Role::Peer, &why)));
    let mut case = with_goals(case);
    if gpu.is_standin() {
        case.void("stand-in driver, means nothing");
    }
    Ok(case)
}

fn by_library(
    bench: &Bench<'_>,
    name: &str,
    library: &Path,
    (from, file, passes): (&Origin, &Path, u32),
) -> Box<dyn Subject> {
    let role = if name == US { Role::Ours } else { Role::Peer };
    let way = match from.way {
        Way::Direct => "direct",
        Way::Cached => "cached",
    };
    let args = words(&[
        "cufile-gpu",
        &format!("--library={}", library.display()),
        &format!("--file={}", file.display()),
        &format!("--way={way}"),
        &format!("--part-bytes={PART_BYTES}"),
        &format!("--passes={passes}"),
        &format!("--seed={}", bench.seed),
    ]);
    bench.worker(name, role, &args, &[file.to_owned()])
}

/// NVIDIA's library, or why it is not run.
fn nvidia(bench: &Bench<'_>) -> Result<PathBuf, String> {
    // A stream that did not open is read for ever there: `ffi/cufile/conformance/oracle.c`.
    if !Path::new("/proc/modules").exists() {
        return Err("the kernel has no /proc/modules, without which versions from 1.16 on read for ever".to_owned());
    }
    bench.python.nvidia_cufile().ok_or_else(|| "not installed; run cargo xtask bench peers".to_owned())
}

fn what(from: &Origin, gpu: Option<&Gpu>) -> String {
    let job = format!("{} into registered memory of the first GPU, reads of 16 MiB one after the other", from.words);
    match gpu {
        None => format!("A file {job}. Not run."),
        Some(gpu) => format!("A file {job}. {}", gpu.told()),
    }
}

/// The case of a machine that cannot run it.
fn absent(from: &Origin, why: &str) -> Case {
    let peers = KVIKIO.iter().map(|(name, _)| *name).chain([NVIDIA]);
    let sides = std::iter::once(Side::absent(US, Role::Ours, why))
        .chain(peers.map(|name| Side::absent(name, Role::Peer, why)))
        .collect();
    with_goals(Case { name: from.name.to_owned(), what: what(from, None), sides, goals: Vec::new() })
}

fn with_goals(mut case: Case) -> Case {
    let own_path = |side: &Side| side.name.starts_with("kvikio");
    let fastest = case.best_peer(Metric::BytesPerSecond, Best::Highest, own_path).map(|side| side.name.clone());
    // Without a peer the goal stays in the report, as not measured.
    let fastest = fastest.unwrap_or_else(|| "kvikio-posix-4".to_owned());
    let (rate, one) = (Metric::BytesPerSecond, Bound::AtLeast(1.0));
    case.hold("not slower than KvikIO's own path", rate, US, Some(&fastest), one);
    case.hold("not slower than NVIDIA's library", rate, US, Some(NVIDIA), one);
    case
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_every_side_is_absent_with_the_reason_and_no_goal_is_held() {
        for from in &FROM {
            let case = absent(from, "no GPU: reason; remedy");
            assert!(case.sides.iter().all(|side| side.absent.as_deref() == Some("no GPU: reason; remedy")));
            assert_eq!((case.sides.len(), case.goals.len()), (4, 2));
            assert!(case.goals.iter().all(|goal| goal.held.is_none()));
        }
    }
}
