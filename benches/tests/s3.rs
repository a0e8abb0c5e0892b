//! The case `s3` on a machine without any of its peers: our sides run, with the right bytes, and the others are absent with the reason.

use std::{path::PathBuf, process::Command};

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _best_effort = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn our_sides_run_and_what_is_not_there_is_absent() {
    let folder = Folder(std::env::temp_dir().join(format!("straightway-bench-s3-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).expect("the temporary folder can be written");
    let out = folder.0.join("report");
    let output = Command::new(env!("CARGO_BIN_EXE_straightway-benches"))
        .args(["s3", "--size", "smoke", "--rounds", "1", "--dir"])
        .arg(folder.0.join("data"))
        .arg("--venv")
        .arg(folder.0.join("none"))
        .arg("--out")
        .arg(&out)
        // No strace.
        .env("PATH", &folder.0)
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = std::fs::read_to_string(out.with_extension("json")).expect("a report was written");
    let report: serde_json::Value = serde_json::from_str(&text).expect("the report is JSON");
    let cases = report["cases"].as_array().unwrap();
    let names: Vec<&str> = cases.iter().map(|case| case["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["s3/ranges-8MiB", "s3/objects-16KiB", "s3/counts"]);
    for case in cases {
        for side in case["sides"].as_array().unwrap() {
            let name = side["name"].as_str().unwrap();
            assert_eq!(side["absent"].is_null(), name == "straightway", "{side}\n{said}");
            if name == "straightway" {
                let sample = &side["samples"][0];
                assert_eq!(sample["path"]["route"], "http/kernel-copy", "{side}");
                assert_eq!(sample["more"]["cpu_copies_per_byte"], 1.0, "{side}");
            }
        }
    }
}
