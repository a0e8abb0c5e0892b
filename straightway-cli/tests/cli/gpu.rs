//! Device memory, with the stand-in driver of the test kit: the product's own code, no hardware. It proves the logic.

use std::path::PathBuf;

use standin_libcuda::harness;

use crate::support::{Ran, Scratch};

/// The driver's code for a context that a copy broke, `CUDA_ERROR_ILLEGAL_ADDRESS`.
const ILLEGAL_ADDRESS: u32 = 700;

/// The stand-in where the loader of a child process finds it.
fn driver(scratch: &Scratch) -> PathBuf {
    let dir = scratch.path("driver");
    harness::install(&dir, &[]).unwrap();
    dir
}

/// Runs the command with the stand-in as its driver; faults as `STANDIN_FAULTS` has them.
fn run(scratch: &Scratch, faults: &str, arguments: &[&str]) -> Ran {
    let mut command = scratch.command(arguments);
    command.env("LD_LIBRARY_PATH", driver(scratch)).env("STANDIN_FAULTS", faults);
    Ran::of(arguments, command.output().unwrap())
}

/// A copy that reports success and flips a bit, the `nth` that runs.
fn damaged_copy(nth: u64) -> String {
    format!("{}:{nth}:{}", harness::COPY, harness::SILENT_DAMAGE)
}

#[test]
fn the_demo_takes_a_gpu_that_is_there() {
    let scratch = Scratch::new();
    let ran = run(&scratch, "", &["demo", "--size", "16MiB", "--json"]).ok();
    let all = ran.json();
    let summary = all.last().unwrap();
    assert_eq!((summary["into"].as_str(), summary["why_not_gpu"].is_null()), (Some("gpu0"), true), "{summary}");
    assert_eq!(summary["verified_bytes"], summary["read_bytes"]);
    for read in all.iter().filter(|line| line["schema"] == "straightway.demo.read/1") {
        let bytes = &read["bytes"];
        assert!(bytes["staged"].as_u64() > Some(0) && bytes["dma"] == 0 && bytes["kernel_copy"] == 0, "{read}");
        assert!(read["route"].as_str().unwrap().ends_with("/staged") && read["reason"] != "BEST", "{read}");
    }
}

#[test]
fn a_checkpoint_has_the_same_digests_in_device_and_host_memory() {
    let scratch = Scratch::new();
    scratch.run(&["demo", "--size", "16MiB", "--into", "host", "--keep"]).ok();
    let demo = scratch.names().into_iter().find(|name| name.starts_with("straightway-demo-")).unwrap();
    let checkpoint = format!("{demo}/checkpoint");
    let digests = |ran: Ran| -> Vec<_> {
        let tensors = ran.json().into_iter().filter(|line| line["schema"] == "straightway.load.tensor/1");
        tensors.map(|line| (line["name"].clone(), line["sha256"].clone())).collect()
    };
    let host = digests(scratch.run(&["load", &checkpoint, "--digest", "--json"]).ok());
    let device = digests(run(&scratch, "", &["load", &checkpoint, "--digest", "--into", "gpu0", "--json"]).ok());
    assert!(host.len() > 20 && host == device);
    let some = run(&scratch, "", &["load", &checkpoint, "--into", "gpu0", "--tensors", "layers.0.*", "--json"]).ok();
    assert_eq!(digests(some).len(), 4);
}

#[test]
fn a_bench_verifies_device_memory_and_finds_a_damaged_copy() {
    let scratch = Scratch::new();
    let write =
        ["bench", "write", "w", "--file-size", "2MiB", "--size", "64k", "--bytes", "2MiB", "--verify", "--keep"];
    scratch.run(&[&write[..], &["--no-ceiling"]].concat()).ok();
    let read =
        ["bench", "read", "w", "--size", "10001", "--offset-shift", "3", "--bytes", "1MiB", "--verify", "--no-ceiling"];
    let arguments = [&read[..], &["--into", "gpu0", "--json"]].concat();
    let report = run(&scratch, "", &arguments).ok().document("straightway.bench/1");
    let cell = &report["cells"][0];
    assert_eq!((&cell["verified_bytes"], &report["into"]), (&cell["bytes"], &"gpu0".into()));
    // Slabs of a fixed size: measuring them is copies too, and the damage must hit one of the read.
    let fixed = [&read[..], &["--into", "gpu0", "--engine", "staging=1MiBx32"]].concat();
    run(&scratch, &damaged_copy(60), &fixed).fails(6, &["pattern", "; "]);
}

#[test]
fn a_bench_of_device_memory_has_the_rate_of_pinned_copies_beside_it() {
    let scratch = Scratch::new();
    scratch.file("a", 4 << 20);
    let rate = |into: &str, more: &[&str]| {
        let arguments = [&["bench"], more, &["--size", "64k", "--bytes", "1MiB", "--json", "--into", into]].concat();
        let report = run(&scratch, "", &arguments).ok().document("straightway.bench/1");
        report["ceilings"]["pinned_copy_bytes_per_s"].as_f64()
    };
    assert!(rate("gpu0", &["read", "a"]) > Some(1e6));
    assert!(rate("gpu0", &["write", "w", "--file-size", "4MiB"]) > Some(1e6));
    assert_eq!(rate("host", &["read", "a"]), None);
    // The device copies nothing: an error, and no number.
    let lost = format!("{}:1:{ILLEGAL_ADDRESS}", harness::COPY);
    let fixed =
        ["bench", "read", "a", "--size", "64k", "--bytes", "1MiB", "--into", "gpu0", "--engine", "staging=1MiBx32"];
    let ran = run(&scratch, &lost, &fixed);
    assert!(ran.code != Some(0) && ran.stderr.contains("the device was lost"), "{:?} {}", ran.code, ran.stderr);
    assert!(!String::from_utf8_lossy(&ran.stdout).contains("pinned"));
    let text = run(&scratch, "", &["bench", "read", "a", "--size", "64k", "--bytes", "1MiB", "--into", "gpu0"]).ok();
    assert!(text.text().contains("; pinned copy "), "{}", text.text());
}

#[test]
fn a_gpu_beyond_the_last_is_not_there() {
    let scratch = Scratch::new();
    scratch.file("a", 5000);
    run(&scratch, "", &["bench", "read", "a", "--size", "4k", "--into", "gpu7", "--no-ceiling"]).fails(8, &["; "]);
}

#[test]
fn doctor_tells_what_a_device_can_do() {
    let scratch = Scratch::new();
    let doctor = run(&scratch, "", &["doctor", "--json"]).ok().document("straightway.doctor/1");
    let facts = doctor["facts"].as_array().unwrap();
    assert!(facts.iter().any(|fact| fact["name"].as_str().unwrap().starts_with("gpu0.")), "{facts:?}");
}

#[test]
fn a_route_that_no_device_has_proven_is_refused_by_name() {
    let scratch = Scratch::new();
    scratch.file("a", 1 << 20);
    run(&scratch, "", &["plan", "a", "--into", "gpu0", "--policy", "require=dma"]).fails(5, &["NO_P2PDMA"]);
    let plan = run(&scratch, "", &["plan", "a", "--into", "gpu0", "--json"]).ok().document("straightway.plan/1");
    assert!(plan["choice"]["route"].as_str().unwrap().ends_with("/staged"), "{plan}");
}
