//! `cufile`: programs that were written for cuFile on our library, host memory.

use std::path::{Path, PathBuf};

use crate::{
    bench::{Bench, Size, words},
    data::{self, CacheState},
    fault::Fault,
    ours::reads::Reads,
    peers::kvikio_host::KvikIoHost,
    report::{Best, Bound, Case, Metric, Role},
    rounds::{Before, Subject},
};

const US: &str = "straightway-cufile";
const DIRECT: &str = "pread-direct";
const ENGINE: &str = "straightway-batch";
const KVIKIO: &str = "kvikio-posix";
/// Bytes of the reads and places in memory.
const SMALL: (usize, u32) = (4096, 128);
const LARGE: (usize, u32) = (1 << 20, 16);
const BATCH_PASSES: u32 = 4;

/// Passes over the places in memory.
fn passes(size: Size) -> u32 {
    match size {
        Size::Smoke => 4,
        Size::Real => 128,
    }
}

/// Single reads, batches, and what is set up before them.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let file = data::plain(&bench.dir, bench.size.file_bytes(), bench.seed)?;
    let library = bench.libraries.join("libstraightway_cufile.so");
    let small = single(bench, "cufile/4KiB", SMALL, &file, &library)?;
    let large = single(bench, "cufile/1MiB", LARGE, &file, &library)?;
    let batch = batch(bench, &file, &library)?;
    Ok(vec![small, large, batch, set_up(bench, &file, &library)])
}

fn reads(bench: &Bench<'_>, (block, slots): (usize, u32), more: u32, file: &Path) -> Reads {
    let ops = slots * passes(bench.size) * more;
    Reads { file: file.to_owned(), block, ops, slots, seed: bench.seed }
}

fn worker(bench: &Bench<'_>, name: &str, role: Role, job: &[String], reads: &Reads) -> Box<dyn Subject> {
    let mut args = job.to_vec();
    args.extend(reads.args());
    bench.worker(name, role, &args, std::slice::from_ref(&reads.file))
}

fn on_library(job: &str, library: &Path) -> Vec<String> {
    words(&[job, &format!("--library={}", library.display())])
}

fn single(bench: &mut Bench<'_>, name: &str, shape: (usize, u32), file: &Path, library: &Path) -> Result<Case, Fault> {
    let reads = reads(bench, shape, 1, file);
    let mut subjects = vec![
        worker(bench, US, Role::Ours, &on_library("cufile-read", library), &reads),
        worker(bench, DIRECT, Role::Peer, &words(&["pread", "--way=direct"]), &reads),
        // What KvikIO's own path does beneath, without KvikIO.
        worker(bench, "pread-cached", Role::Peer, &words(&["pread", "--way=cached"]), &reads),
    ];
    for (name, direct) in [(KVIKIO, "off"), ("kvikio-posix-direct", "on")] {
        let (reads, python, driver) = (reads.clone(), bench.python.clone(), standin(bench));
        subjects.push(Box::new(KvikIoHost { name, direct, reads, python, driver }));
    }
    let before = before(&reads)?;
    let what = format!(
        "{} KiB random reads of a file into host memory, uncached, one after the other: cuFileRead of a descriptor with O_DIRECT, pread, \
         KvikIO from Python, a call each",
        reads.block >> 10
    );
    let mut case = bench.case(name, &what, subjects, &before);
    let text = "rate at least that of pread with O_DIRECT";
    case.hold(text, Metric::OpsPerSecond, US, Some(DIRECT), Bound::AtLeast(1.0));
    let cheapest = case.best_peer(Metric::CpuMicrosPerOp, Best::Lowest, |side| side.name.starts_with("kvikio"));
    // Without KvikIO the goal stays in the report, as not measured.
    let cheapest = cheapest.map_or(KVIKIO.to_owned(), |side| side.name.clone());
    let text = "less CPU time a read than KvikIO's POSIX path";
    case.hold(text, Metric::CpuMicrosPerOp, US, Some(&cheapest), Bound::AtMost(1.0));
    Ok(case)
}

fn batch(bench: &mut Bench<'_>, file: &Path, library: &Path) -> Result<Case, Fault> {
    let reads = reads(bench, SMALL, BATCH_PASSES, file);
    let subjects = vec![
        worker(bench, US, Role::Ours, &on_library("cufile-batch", library), &reads),
        worker(bench, ENGINE, Role::Ours, &words(&["engine-batch"]), &reads),
    ];
    let before = before(&reads)?;
    let what = "batches of 128 random reads of 4 KiB into host memory, uncached: cuFileBatchIOSubmit and GetStatus, and Engine::batch";
    let mut case = bench.case("cufile/batch128", what, subjects, &before);
    let text = "rate at least 0.95 of the engine's own batch";
    case.hold(text, Metric::OpsPerSecond, US, Some(ENGINE), Bound::AtLeast(0.95));
    Ok(case)
}

fn set_up(bench: &mut Bench<'_>, file: &Path, library: &Path) -> Case {
    let (times, bytes) = match bench.size {
        Size::Smoke => (5, 16 << 20),
        Size::Real => (200, 1 << 30),
    };
    let mut args = on_library("cufile-set-up", library);
    args.extend([format!("--file={}", file.display()), format!("--times={times}"), format!("--bytes={bytes}")]);
    let subjects = vec![bench.worker(US, Role::Ours, &args, &[])];
    let what = format!(
        "the sample is the first cuFileDriverOpen and Close of a process; driver_ms the median of later ones, handle_register_us that of \
         cuFileHandleRegister, memory_register_us cuFileBufRegister of {} MiB of host memory that was touched",
        bytes >> 20
    );
    let mut case = bench.case("cufile/set-up", &what, subjects, &Before::default());
    let text = "driver opened and closed in under 10 ms, the first time";
    case.hold(text, Metric::DriverMillis, US, None, Bound::AtMost(10.0));
    let text = "handle registered in under 50 µs";
    case.hold(text, Metric::HandleRegisterMicros, US, None, Bound::AtMost(50.0));
    case
}

fn before(reads: &Reads) -> Result<Before, Fault> {
    Ok(Before { cache: Some(CacheState::Cold), back_bytes: 0, digest: Some(reads.expected()?) })
}

/// The stand-in for NVIDIA's driver, for a peer that does nothing without one.
fn standin(bench: &Bench<'_>) -> PathBuf {
    bench.libraries.join("libstandin_libcuda.so")
}
