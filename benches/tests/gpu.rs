//! The case `gpu` with the stand-in driver: both of our sides run and deliver the right bytes, and nothing that they
//! measure passes for a result. And without any driver: skipped, with the reason in the report.

use std::path::{Path, PathBuf};
use std::process::Command;

use standin_libcuda::harness;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("straightway-bench-gpu-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary folder can be written");
        Self(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _best_effort = std::fs::remove_dir_all(&self.0);
    }
}

/// Where Cargo puts the shared libraries of the workspace when it builds the tests of all of it.
fn libraries() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_straightway-benches")).with_file_name("deps")
}

/// The report of the case, run with `library` as the loader's search path.
fn report(folder: &Path, library: &Path) -> (serde_json::Value, String) {
    let out = folder.join("report");
    let output = Command::new(env!("CARGO_BIN_EXE_straightway-benches"))
        .args(["gpu", "--size", "smoke", "--rounds", "1", "--dir"])
        .arg(folder.join("data"))
        .arg("--out")
        .arg(&out)
        .arg("--venv")
        .arg(folder.join("no-venv"))
        .arg("--libraries")
        .arg(libraries())
        .env("LD_LIBRARY_PATH", library)
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let text = std::fs::read_to_string(out.with_extension("json")).expect("a report was written");
    (serde_json::from_str(&text).expect("the report is JSON"), said)
}

#[test]
fn on_the_stand_in_our_sides_deliver_the_bytes_and_no_goal_is_judged() {
    let folder = Folder::new("standin");
    let library = folder.0.join("library");
    harness::install(&library, &[]).unwrap();
    let (report, said) = report(&folder.0, &library);
    let case = &report["cases"][0];
    assert!(case["what"].as_str().unwrap().contains("STAND-IN"), "{case}");
    let sides = case["sides"].as_array().unwrap();
    for side in sides.iter().take(4) {
        assert_eq!(side["samples"].as_array().unwrap().len(), 1, "{side}\n{said}");
        assert_eq!(side["samples"][0]["bytes"], 64 << 20, "{side}");
    }
    let ours = &sides[0]["samples"][0];
    // The harness compared it with the file's before it took the sample.
    assert_eq!(ours["checksum"].as_str().unwrap().len(), 64);
    assert_eq!(ours["path"]["bytes"]["staged"], 64 << 20, "{ours}");
    // The copies that they are held against are of the same slabs; the ring is the engine's budget.
    let shape = |side: &serde_json::Value| {
        let number = |name: &str| side["samples"][0]["more"][name].as_f64().unwrap();
        (number("slab_bytes"), number("slabs"))
    };
    let (slab_bytes, slabs) = shape(&sides[0]);
    assert_eq!(slab_bytes * slabs, f64::from(32 << 20), "{ours}");
    assert!([&sides[1], &sides[2]].map(shape).iter().all(|other| *other == (slab_bytes, slabs)), "{sides:?}");
    assert!(ours["path"]["staging"].as_str().unwrap().contains(" slabs of "), "{ours}");
    let goals = case["goals"].as_array().unwrap();
    assert_eq!(goals.len(), 3);
    for goal in goals {
        assert!(goal["held"].is_null(), "{goal}");
        assert!(goal["text"].as_str().unwrap().contains("stand-in driver, means nothing"), "{goal}");
    }
    let ratio = goals[0]["median"].as_f64().unwrap();
    assert!(ratio > 0.0, "{ratio}");
    let peer = sides[4]["absent"].as_str().unwrap();
    assert!(peer.contains("cargo xtask bench peers"), "{peer}");
    if !libraries().join("libstraightway_cufile.so").exists() {
        eprintln!(
            "skipped: the cases gpu-cufile: libstraightway_cufile.so is not built; cargo test --workspace builds it"
        );
        return;
    }
    for (case, reads) in report["cases"].as_array().unwrap()[1..].iter().zip(["page-cache", "file"]) {
        assert_eq!(case["name"], format!("gpu-cufile/{reads}"));
        let ours = &case["sides"][0]["samples"][0];
        assert_eq!((&ours["bytes"], &ours["ops"]), (&(64 << 20).into(), &4.into()), "{case}\n{said}");
        assert_eq!(ours["checksum"].as_str().unwrap().len(), 64);
        assert!(case["what"].as_str().unwrap().contains("STAND-IN"), "{case}");
        assert!(case["goals"].as_array().unwrap().iter().all(|goal| goal["held"].is_null()), "{case}");
    }
}

#[test]
fn a_device_that_loses_bytes_makes_our_side_absent() {
    let folder = Folder::new("short");
    let library = folder.0.join("library");
    harness::install(&library, &[]).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_straightway-benches"))
        .args(["gpu", "--size", "smoke", "--rounds", "1", "--dir"])
        .arg(folder.0.join("data"))
        .env("LD_LIBRARY_PATH", &library)
        .env("STANDIN_FAULTS", every_copy_short())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("straightway: absent: straightway delivered wrong bytes"), "{said}");
    assert!(said.contains("bench: gpu: straightway failed: straightway delivered wrong bytes"), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
}

/// The last byte of each copy does not arrive. Samples are a few bytes of each part, but its ends are always among them.
fn every_copy_short() -> String {
    let fault = |n: u32| format!("{}:{n}:{}", harness::COPY, harness::SILENT_SHORT);
    (1..4000).map(fault).collect::<Vec<_>>().join(",")
}

#[test]
fn without_a_driver_the_case_is_skipped_with_the_reason() {
    let folder = Folder::new("none");
    let (report, said) = report(&folder.0, &folder.0);
    if report["cases"][0]["sides"][0]["absent"].is_null() {
        eprintln!("skipped: this machine has a real driver");
        return;
    }
    assert!(said.contains("gpu: skipped: no GPU: no libcuda.so.1"), "{said}");
    for side in report["cases"][0]["sides"].as_array().unwrap() {
        assert!(side["absent"].as_str().unwrap().starts_with("no GPU: no libcuda.so.1"), "{side}");
    }
}
