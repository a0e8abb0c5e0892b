//! The runner itself, with the stand-in driver and without any: rows, reasons, records, promises.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use standin_libcuda::harness;

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("hwtests-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the temporary folder can be written");
    dir
}

fn hwtests(library: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hwtests"));
    command.args(arguments).env("LD_LIBRARY_PATH", library).env("STANDIN_DEVICES", "2");
    if let Some(code) = kernels() {
        command.env("STANDIN_KERNELS", code);
    }
    command.output().expect("the program starts")
}

fn kernels() -> Option<PathBuf> {
    harness::kernel_code().unwrap_or_else(|error| panic!("{error}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
}

#[test]
fn on_the_stand_in_every_test_passes_and_the_record_says_stand_in() {
    let dir = folder("standin");
    harness::install(&dir, &[]).unwrap();
    let output = hwtests(&dir, &["run", "--quick", "--record", dir.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    // It captures no graphs, and runs kernels only with a compiler for their code.
    let ends = if kernels().is_some() { "15 passed, 1 skipped, 0 failed" } else { "13 passed, 3 skipped, 0 failed" };
    assert!(text(&output).contains(ends), "{}", text(&output));
    let record = std::fs::read_dir(&dir).unwrap().filter_map(Result::ok).map(|e| e.path());
    let record = record.into_iter().find(|p| p.extension().is_some_and(|e| e == "json")).unwrap();
    assert!(record.file_name().unwrap().to_str().unwrap().starts_with("stand-in-"));
    let value: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&record).unwrap()).unwrap();
    assert_eq!(value["driver_kind"], "stand-in");
    assert_eq!(value["schema"], "straightway-hwtests/1");
    assert_eq!(value["tests"][0]["end"], "pass");
    assert_eq!(value["gpus"][1]["name"]["value"], "Stand-in GPU 1");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn without_a_driver_every_test_is_skipped_with_a_reason_unless_promised() {
    let dir = folder("none");
    let output = hwtests(&dir, &["run"]);
    if text(&output).contains("CUDA driver") {
        eprintln!("skipped: this machine has a real driver");
        return;
    }
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("skip gpu.self_test: needs gpu: no libcuda.so.1"), "{}", text(&output));
    assert!(text(&output).contains("0 passed, 20 skipped, 0 failed"), "{}", text(&output));
    let profile = dir.join("profile.json");
    std::fs::write(&profile, r#"{"promises": ["gpu"]}"#).unwrap();
    let output = hwtests(&dir, &["run", "--profile", profile.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("FAIL gpu.self_test: the profile promises gpu"), "{}", text(&output));
    std::fs::write(&profile, r#"{"promises": ["warp drive"]}"#).unwrap();
    let output = hwtests(&dir, &["run", "--profile", profile.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_device_that_damages_bytes_fails_its_self_test() {
    let dir = folder("damage");
    harness::install(&dir, &[]).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_hwtests"))
        .args(["run", "self_test"])
        .env("LD_LIBRARY_PATH", &dir)
        .env("STANDIN_FAULTS", format!("{}:4:{}", harness::COPY, harness::SILENT_DAMAGE))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("do not use this device"), "{}", text(&output));
    std::fs::remove_dir_all(&dir).unwrap();
}
