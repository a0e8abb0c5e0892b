//! `dlio-unet3d` and `dlio-resnet50`: DLIO's own benchmark, with our loader and with its own.
//!
//! Scaled so that a small disk is worth something to an emulated accelerator; the threshold and everything else are the
//! workload's. An epoch is read once and cold; it is smaller than memory, which MLPerf does not allow and a small machine
//! cannot avoid.

use std::path::{Path, PathBuf};

use crate::{
    bench::{Bench, Size},
    data,
    fault::Fault,
    peers::dlio::{AU_PERCENT, Emulated, Workload},
    report::{Best, Bound, Case, Metric, Role},
    rounds::{Before, Subject},
};

const US: &str = "straightway";
/// More than all accelerators read ahead: memory that the host took back would cost its first user a host fault a page.
const BACKED_BYTES: u64 = 8 << 30;

/// Medical volumes, one a file of their own: a tenth of the bytes; a step asks for about 200 MiB/s.
fn unet3d(size: Size) -> Workload {
    let (files, record, step_s, steps, max) = match size {
        Size::Smoke => (28, (1_466_006, 683_418), 0.05, 2, 2),
        Size::Real => (336, (14_660_063, 6_834_181), 0.5, 8, 6),
    };
    Workload {
        name: "unet3d",
        files,
        samples: 1,
        record: Some(record),
        record_bytes: record.0,
        batch: 7,
        step_s,
        steps,
        max,
    }
}

/// Images in TFRecord shards, as they are: a step takes twice as long, which asks for about 100 MiB/s.
fn resnet50(size: Size) -> Workload {
    let (files, samples, batch, step_s, steps, max) = match size {
        Size::Smoke => (4, 100, 40, 0.05, 3, 2),
        Size::Real => (16, 1251, 400, 0.448, 6, 8),
    };
    // DLIO makes squares: 338 by 338, and a few bytes of `tf.train.Example`.
    Workload { name: "resnet50", files, samples, record: None, record_bytes: 114_244, batch, step_s, steps, max }
}

/// With NPZ files.
pub(crate) fn run_unet3d(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    one(bench, &unet3d(bench.size), &["torch", "tensorflow"])
}

/// With TFRecord files, which DLIO's torch loader does not read.
pub(crate) fn run_resnet50(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    one(bench, &resnet50(bench.size), &["tensorflow"])
}

fn one(bench: &mut Bench<'_>, workload: &Workload, peers: &[&'static str]) -> Result<Vec<Case>, Fault> {
    let dir = bench.dir.join(format!("dlio-{}-{}", workload.name, bench.size.name()));
    let package = bench.dir.join("dlio-package");
    let mut files = Vec::new();
    // Without DLIO every side says so itself.
    if bench.python.has_dlio() {
        (bench.tell)("dlio: installing our package from the tree");
        bench.python.install_ours(&package)?;
        files = dataset(bench, &dir, &package, workload)?;
    }
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    for (side, loader, role) in
        std::iter::once((US, "ours", Role::Ours)).chain(peers.iter().map(|peer| (*peer, *peer, Role::Peer)))
    {
        let (workload, dir, files) = (workload.clone(), dir.clone(), files.clone());
        let (package, python) = (package.clone(), bench.python.clone());
        subjects.push(Box::new(Emulated { side, loader, role, workload, dir, files, package, python, before: None }));
    }
    let what = format!(
        "DLIO 2.0, {}: {} files of {} samples of {} KiB, batches of {}, steps of {} s, {} of them of which the first is not \
         counted, cold, one MPI process an accelerator; how many are busy for {AU_PERCENT} % of the time (at most {})",
        workload.name,
        workload.files,
        workload.samples,
        workload.record_bytes >> 10,
        workload.batch,
        workload.step_s,
        workload.steps,
        workload.max
    );
    let back_bytes = if bench.size == Size::Real { BACKED_BYTES } else { 0 };
    let before = Before { back_bytes, ..Before::default() };
    let mut case = bench.case(&format!("dlio/{}", workload.name), &what, subjects, &before);
    goals(&mut case, peers);
    Ok(vec![case])
}

/// Made by DLIO's generator if it is not there yet, and indexed.
fn dataset(bench: &mut Bench<'_>, dir: &Path, package: &Path, workload: &Workload) -> Result<Vec<PathBuf>, Fault> {
    let made = dir.join("train.index.arrow");
    if !made.exists() {
        (bench.tell)(&format!("dlio: generating {}", dir.display()));
        let mut args = vec!["generate".to_owned(), workload.name.to_owned(), dir.to_string_lossy().into_owned()];
        args.extend(workload.args());
        args.push(format!("--package={}", package.display()));
        bench.python.dlio("dlio", &args)?;
    }
    data::files_in(&dir.join("train"))
}

fn goals(case: &mut Case, peers: &[&'static str]) {
    for peer in peers {
        let text = format!("at least as many accelerators as {peer}");
        case.hold(&text, Metric::Accelerators, US, Some(peer), Bound::AtLeast(1.0));
    }
    let best = case.best_peer(Metric::AuPercent, Best::Highest, |_| true).map(|side| side.name.clone());
    if let Some(best) = best {
        let text = "AU of one accelerator at least that of the best other loader".to_owned();
        case.hold(&text, Metric::AuPercent, US, Some(&best), Bound::AtLeast(1.0));
    }
    case.hold("keeps an accelerator busy", Metric::Accelerators, US, None, Bound::AtLeast(1.0));
}
