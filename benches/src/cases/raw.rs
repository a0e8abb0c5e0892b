//! `randread`, `seq` and `odd`: files, O_DIRECT, beside fio with registered buffers and files; `randread-zram`: a block device
//! in memory.

use std::path::{Path, PathBuf};

use sw_testkit::zram::Zram;

use crate::{
    bench::{Bench, words},
    data::{self, CacheState},
    fault::Fault,
    peers::fio::{Fio, HugeFio},
    report::{Bound, Case, Metric, Role, Side},
    rounds::{Before, Subject},
};

const KIB_4: u32 = 4096;
const MIB: u32 = 1 << 20;
const ZRAM: &str = "randread-zram";
/// Bytes of the zram device; it takes 1/256 of them in memory.
const ZRAM_BYTES: u64 = 256 << 20;
/// Operations in flight of the sequential jobs.
const SEQ_DEPTH: u32 = 16;
/// An offset and a length that share no block boundary with the file's blocks, nor a multiple of 8.
const ODD_SHIFT: u64 = 1237;
const ODD_SHORTER: u64 = 2051;

const COLD: Before = Before { cache: Some(CacheState::Cold), back_bytes: 0, digest: None };

fn fio(bench: &Bench<'_>, mut args: Vec<String>, more: &[String], file: &Path) -> Fio {
    args.extend_from_slice(more);
    let files: Vec<PathBuf> = vec![file.to_owned()];
    Fio { name: "fio".to_owned(), role: Role::Peer, args, files, scratch: bench.scratch.clone() }
}

fn ours(bench: &Bench<'_>, name: &str, args: &[String], file: &Path) -> Box<dyn Subject> {
    let mut all = words(&["disk", "--file", &file.to_string_lossy()]);
    all.extend_from_slice(args);
    bench.worker(name, Role::Ours, &all, &[file.to_owned()])
}

/// 4 KiB random reads of a file at depth 1, 32 and 128.
pub(crate) fn randread(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let file = data::plain(&bench.dir, bench.size.file_bytes(), bench.seed)?;
    let cpu = (Metric::CpuMicrosPerOp, "CPU time per I/O at most 1.1 of fio");
    Ok(random_reads(bench, "randread", "", Ok(&file), cpu))
}

/// The same on a zram device: a disk's rate swings with what else its host does, that of memory does not.
///
/// The driver cannot refuse to block, so the kernel hands each read to a worker thread. fio does not count those.
pub(crate) fn randread_zram(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let zram = Zram::new(ZRAM_BYTES);
    let device = match &zram {
        Ok(zram) => {
            let device = zram.device();
            zram.fill().map_err(Fault::os("fill", &device))?;
            Ok(device)
        }
        Err(why) => {
            (bench.tell)(&format!("{ZRAM}: skipped: {why}"));
            Err(format!("{why}; run as root on a kernel with zram"))
        }
    };
    let of = " of a zram device (by workers of the kernel, which fio's CPU time is without)";
    let cpu = (Metric::ThreadCpuMicrosPerOp, "CPU time per I/O of the thread that submits at most 1.1 of fio");
    Ok(random_reads(bench, ZRAM, of, device.as_deref().map_err(String::as_str), cpu))
}

/// 4 KiB random reads of something, or the cases of a machine that has none.
fn random_reads(
    bench: &mut Bench<'_>,
    name: &str,
    of: &str,
    from: Result<&Path, &str>,
    (cpu, cpu_text): (Metric, &str),
) -> Vec<Case> {
    let (time_ms, seed) = (bench.size.time_ms(), bench.seed);
    let mut cases = Vec::new();
    for depth in [1, 32, 128] {
        let name = format!("{name}/depth{depth}");
        let what = format!("4 KiB random reads{of}, O_DIRECT, {depth} in flight, one thread");
        let mut case = match from {
            Ok(file) => {
                let args = words(&[
                    "--random",
                    "--block=4096",
                    &format!("--depth={depth}"),
                    &format!("--time-ms={time_ms}"),
                    &format!("--seed={seed}"),
                ]);
                let timed = words(&["--time_based", &format!("--runtime={time_ms}ms"), "--readonly"]);
                let subjects = vec![
                    ours(bench, "straightway", &args, file),
                    Box::new(fio(bench, Fio::uring("randread", KIB_4, depth, seed), &timed, file)),
                ];
                bench.case(&name, &what, subjects, &COLD)
            }
            Err(why) => {
                let sides = [("straightway", Role::Ours), ("fio", Role::Peer)];
                let sides = sides.map(|(side, role)| Side::absent(side, role, why)).into();
                Case { name, what, sides, goals: Vec::new() }
            }
        };
        let (us, peer) = ("straightway", Some("fio"));
        case.hold("rate at least 0.97 of fio", Metric::OpsPerSecond, us, peer, Bound::AtLeast(0.97));
        case.hold(cpu_text, cpu, us, peer, Bound::AtMost(1.1));
        cases.push(case);
    }
    cases
}

/// 1 MiB sequential reads and writes, 16 in flight.
pub(crate) fn seq(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let len = bench.size.file_bytes();
    let file = data::plain(&bench.dir, len, bench.seed)?;
    let target = data::plain(&bench.dir, len, bench.seed ^ 1)?;
    let ops = len / u64::from(MIB);
    let mut cases = Vec::new();
    for (name, rw, path) in [("seq/read", "read", &file), ("seq/write", "write", &target)] {
        let mut args = words(&["--block=1048576", &format!("--depth={SEQ_DEPTH}"), &format!("--ops={ops}")]);
        if rw == "write" {
            args.push("--write".to_owned());
        }
        let sized = words(&[&format!("--size={len}"), "--overwrite=1"]);
        let mut like_fio = args.clone();
        like_fio.push("--small-pages".to_owned());
        let plain = fio(bench, Fio::uring(rw, MIB, SEQ_DEPTH, bench.seed), &sized, path);
        let huge = Fio { name: "fio-huge-pages".to_owned(), ..plain.clone() };
        let subjects = vec![
            ours(bench, "straightway", &args, path),
            // How its pages and fio's are scattered is chance, and decides how many the device takes at once: no goal.
            ours(bench, "straightway-4k-pages", &like_fio, path),
            Box::new(plain),
            Box::new(HugeFio::new(huge, u64::from(SEQ_DEPTH * MIB))),
        ];
        let what = format!("1 MiB sequential {rw}s of a whole file, O_DIRECT, {SEQ_DEPTH} in flight, one thread");
        let mut case = bench.case(name, &what, subjects, &COLD);
        let us = "straightway";
        for peer in ["fio", "fio-huge-pages"] {
            let text = format!("rate at least 0.98 of {peer}");
            case.hold(&text, Metric::BytesPerSecond, us, Some(peer), Bound::AtLeast(0.98));
        }
        cases.push(case);
    }
    Ok(cases)
}

/// Odd offsets and odd lengths beside aligned ones.
pub(crate) fn odd(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let len = bench.size.file_bytes();
    let file = data::plain(&bench.dir, len, bench.seed)?;
    let ops = len / u64::from(MIB) - 1;
    let aligned = words(&["--block=1048576", &format!("--depth={SEQ_DEPTH}"), &format!("--ops={ops}")]);
    let mut ragged = aligned.clone();
    ragged.extend([format!("--shift={ODD_SHIFT}"), format!("--shorter={ODD_SHORTER}")]);
    let subjects = vec![ours(bench, "aligned", &aligned, &file), ours(bench, "odd", &ragged, &file)];
    let what = format!(
        "1 MiB reads, {SEQ_DEPTH} in flight: at whole blocks, and {ODD_SHIFT} bytes further and {ODD_SHORTER} bytes shorter"
    );
    let mut case = bench.case("odd", &what, subjects, &COLD);
    let text = "rate at least 0.95 of the aligned rate";
    case.hold(text, Metric::BytesPerSecond, "odd", Some("aligned"), Bound::AtLeast(0.95));
    // The engine cuts long reads where nearly every device has its sectors, whatever smaller block it takes.
    let block = data::direct_block(&file)?.max(KIB_4);
    let text = format!("at most two blocks of {block} bytes bounced per operation");
    case.hold(&text, Metric::BouncedBytesPerOp, "odd", None, Bound::AtMost(f64::from(2 * block)));
    case.hold("nothing bounced when aligned", Metric::BouncedBytesPerOp, "aligned", None, Bound::AtMost(0.0));
    Ok(vec![case])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_zram_device_every_side_is_absent_with_the_reason_and_no_goal_is_held() {
        let dir = std::env::temp_dir();
        let mut tell = |_: &str| {};
        let mut bench = Bench {
            size: crate::bench::Size::Smoke,
            rounds: 1,
            seed: 1,
            dir: dir.clone(),
            scratch: dir.clone(),
            libraries: dir.clone(),
            python: crate::peers::python::Python::new(dir.clone(), dir.clone(), dir),
            only: None,
            tell: &mut tell,
        };
        let cases = random_reads(&mut bench, ZRAM, "", Err("no zram device"), (Metric::CpuMicrosPerOp, "cost"));
        assert_eq!(cases.len(), 3);
        for case in &cases {
            assert!(case.sides.iter().all(|side| side.absent.as_deref() == Some("no zram device") && !side.failed));
            assert_eq!((case.sides.len(), case.goals.len()), (2, 2));
            assert!(case.goals.iter().all(|goal| goal.held.is_none()));
        }
    }
}
