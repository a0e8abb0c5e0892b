//! The case `nvme-tcp` on a machine without any of its tools: our sides and the bare stream run, the others are absent with the reason.

use std::{path::PathBuf, process::Command};

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _best_effort = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn our_sides_run_and_what_is_not_there_is_absent() {
    let folder = Folder(std::env::temp_dir().join(format!("straightway-bench-nvme-tcp-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).expect("the temporary folder can be written");
    let out = folder.0.join("report");
    let output = Command::new(env!("CARGO_BIN_EXE_straightway-benches"))
        .args(["nvme-tcp", "--size", "smoke", "--rounds", "1", "--dir"])
        .arg(folder.0.join("data"))
        .arg("--out")
        .arg(&out)
        // No fio, iperf3, nbdkit, strace.
        .env("PATH", &folder.0)
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = std::fs::read_to_string(out.with_extension("json")).expect("a report was written");
    let report: serde_json::Value = serde_json::from_str(&text).expect("the report is JSON");
    let cases = report["cases"].as_array().unwrap();
    let names: Vec<&str> = cases.iter().map(|case| case["name"].as_str().unwrap()).collect();
    let large = ["nvme-tcp/read-128KiB", "nvme-tcp/write-128KiB"];
    assert_eq!(names, [&large[..], &["nvme-tcp/read-4KiB", "nvme-tcp/write-4KiB", "nvme-tcp/counts"]].concat());
    for case in cases {
        for side in case["sides"].as_array().unwrap() {
            let (name, why) = (side["name"].as_str().unwrap(), side["absent"].as_str().unwrap_or_default());
            if why.contains("no hostid and no machine-id") {
                eprintln!("skipped: {name}: {why}");
                continue;
            }
            let is_here = name == "tcp-stream" || ["straightway", "straightway-digests"].contains(&name);
            assert_eq!(side["absent"].is_null(), is_here, "{name}: {why}\n{said}");
            if name.starts_with("straightway") && is_here {
                let path = &side["samples"][0]["path"];
                assert_eq!(path["route"], "nvme+tcp/kernel-copy", "{side}");
                assert!(side["samples"][0]["ops"].as_u64().unwrap() > 0, "{side}");
            }
        }
    }
}
