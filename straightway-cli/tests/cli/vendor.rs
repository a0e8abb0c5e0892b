//! NVIDIA's libcufile as a route of the command: against the stand-in always, against the real one where `cargo xtask cufile` brings it.
#![expect(
    clippy::disallowed_methods,
    reason = "the step that brings the real library says by the environment where it is"
)]

use std::path::Path;

use serde_json::Value;
use standin_libcufile::harness::install;

use crate::support::{Ran, Scratch};

/// The command with a libcufile, and with what that needs around it.
struct Rig {
    scratch: Scratch,
    library: String,
    env: Vec<(&'static str, String)>,
}

impl Rig {
    fn run(&self, arguments: &[&str]) -> Ran {
        let engine = format!("cufile_library={}", self.library);
        let arguments = [arguments, &["--engine", &engine]].concat();
        let mut command = self.scratch.command(&arguments);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        Ran::of(&arguments, command.output().unwrap())
    }

    /// Reads, writes, copies and plans by the library; every byte is compared.
    fn moves_bytes(&self) {
        for len in [1 << 20, 1_000_003] {
            let bytes = std::fs::read(self.scratch.file("a", len)).unwrap();
            assert!(self.run(&["cat", "a", "--policy", "require=cufile"]).ok().stdout == bytes, "{len}");
            let part = ["cat", "a", "--policy", "require=cufile", "--offset", "777", "--len", "70001"];
            assert!(self.run(&part).ok().stdout == bytes[777..70_778], "{len}");
            let copied = self.run(&["cp", "a", "b", "--policy", "prefer=cufile", "--json"]).ok();
            let report = copied.document("straightway.cp/1");
            for routes in ["read_routes", "write_routes"] {
                let ways = report[routes].as_array().unwrap();
                let by_it = |way: &Value| way["route"] == "cufile/kernel-copy" && way["reason"] == "VENDOR_DECIDES";
                assert!(ways.iter().any(by_it), "{routes}: {report}");
                assert!(ways.iter().all(|way| way["bytes"]["dma"] == 0), "{routes}: {report}");
            }
            assert!(std::fs::read(self.scratch.path("b")).unwrap() == bytes, "{len}");
        }
        for verb in ["read", "write"] {
            let plan = self.run(&["plan", "a", "--verb", verb, "--policy", "require=cufile", "--json"]).ok();
            let plan = plan.document("straightway.plan/1");
            assert_eq!(
                (&plan["choice"]["route"], &plan["choice"]["reason"]),
                (&"cufile/kernel-copy".into(), &"VENDOR_DECIDES".into())
            );
            let faces = plan["faces"].as_array().unwrap();
            let candidates = plan["candidates"].as_array().unwrap();
            let chosen = candidates.iter().find(|candidate| candidate["verdict"] == "chosen").unwrap();
            let face = usize::try_from(chosen["face"].as_u64().unwrap()).unwrap();
            assert_eq!(faces[face]["transport"], "cufile", "{plan}");
        }
        let bench =
            ["bench", "read", "a", "--size", "64k", "--bytes", "1MiB", "--no-ceiling", "--policy", "require=cufile"];
        assert!(self.run(&bench).ok().text().contains("cufile/kernel-copy"));
    }

    /// The facts of the doctor about it, by name: health and value.
    fn facts(&self) -> Vec<(String, String, String)> {
        let doctor = self.run(&["doctor", "--json"]).ok().document("straightway.doctor/1");
        let text = |fact: &Value, field: &str| fact[field].as_str().unwrap().to_owned();
        let facts = doctor["facts"].as_array().unwrap().iter();
        let facts = facts.map(|fact| (text(fact, "name"), text(fact, "health"), text(fact, "value")));
        facts.filter(|(name, ..)| name.starts_with("cufile.")).collect()
    }
}

fn standin() -> Rig {
    let scratch = Scratch::new();
    let library = install(&scratch.path("library"), &[]).unwrap().display().to_string();
    Rig { scratch, library, env: Vec::new() }
}

#[test]
fn bytes_go_by_the_library_where_a_policy_names_it() {
    let rig = standin();
    rig.moves_bytes();
    let names: Vec<String> = rig.facts().into_iter().map(|(name, health, _)| format!("{name} {health}")).collect();
    let expected = ["library", "symbols", "version", "driver", "self_test"].map(|name| format!("cufile.{name} good"));
    assert_eq!(names, expected);
}

#[test]
fn without_a_policy_that_names_it_a_plan_shows_it_and_nothing_takes_it() {
    let rig = standin();
    rig.scratch.file("a", 1 << 20);
    let plan = rig.run(&["plan", "a", "--json"]).ok().document("straightway.plan/1");
    let candidates = plan["candidates"].as_array().unwrap();
    let of_it: Vec<&Value> =
        candidates.iter().filter(|candidate| candidate["route"].as_str().unwrap().starts_with("cufile/")).collect();
    assert!(!of_it.is_empty() && of_it.iter().all(|candidate| candidate["reason"] == "VENDOR_NOT_ASKED"), "{plan}");
    assert!(!plan["choice"]["route"].as_str().unwrap().starts_with("cufile"), "{plan}");
    let off = rig.scratch.run(&["plan", "a", "--engine", "cufile=off", "--json"]).ok();
    assert!(!off.text().contains("cufile"), "{}", off.text());
}

#[test]
fn what_is_missing_is_one_line_with_a_remedy() {
    let scratch = Scratch::new();
    scratch.file("a", 4096);
    let rig = Rig { library: "/no/such/file".to_owned(), scratch, env: Vec::new() };
    let words = ["NO_VENDOR_LIBRARY", "no /no/such/file", "cufile_library=FILE"];
    rig.run(&["cat", "a", "--policy", "require=cufile"]).fails(5, &words);
    assert_eq!(rig.run(&["cat", "a", "--policy", "prefer=cufile"]).ok().stdout.len(), 4096);
    assert_eq!(rig.facts().len(), 1);
    rig.scratch.run(&["cat", "a", "--engine", "cufile=fast"]).fails(2, &["cufile=on-request|prefer|off"]);
}

/// What a variable of the step names, as text.
fn told(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| Path::new(value).is_file())
}

#[test]
#[ignore = "needs NVIDIA's library: cargo xtask cufile brings it and runs this"]
fn nvidias_own_library_moves_bytes_and_ours_is_refused() {
    let library = told("STRAIGHTWAY_LIBCUFILE").expect("STRAIGHTWAY_LIBCUFILE names NVIDIA's library");
    let ours = told("STRAIGHTWAY_LIBCUFILE_OURS").expect("STRAIGHTWAY_LIBCUFILE_OURS names ours");
    let beside =
        told("STRAIGHTWAY_LIBCUFILE_BESIDE").expect("STRAIGHTWAY_LIBCUFILE_BESIDE names what is loaded before it");
    let scratch = Scratch::new();
    let log = scratch.path("cufile.log").display().to_string();
    let around = |preload: &str| vec![("LD_PRELOAD", preload.to_owned()), ("CUFILE_LOGFILE_PATH", log.clone())];
    let mut rig = Rig { library, env: around(&beside), scratch };
    rig.scratch.file("a", 1 << 20);
    let first = rig.run(&["cat", "a", "--policy", "require=cufile"]);
    if first.stderr.contains("VENDOR_REFUSED") {
        println!("skip: NVIDIA's library takes no file here: {}", first.stderr);
        return;
    }
    first.ok();
    rig.moves_bytes();
    let facts = rig.facts();
    assert_eq!(facts.iter().filter(|(_, health, _)| health == "good").count(), 5, "{facts:?}");
    assert!(facts.iter().any(|(name, _, value)| name == "cufile.version" && value.starts_with("1.")), "{facts:?}");

    // Memory of the stand-in GPU, every byte compared.
    let driver = rig.scratch.path("driver");
    standin_libcuda::harness::install(&driver, &[]).unwrap();
    rig.env.push(("LD_LIBRARY_PATH", driver.display().to_string()));
    let by_it = ["--size", "64k", "--bytes", "4MiB", "--verify", "--no-ceiling", "--policy", "require=cufile"];
    rig.run(&[&["bench", "write", "w", "--file-size", "4MiB", "--keep"], &by_it[..]].concat()).ok();
    let read = rig.run(&[&["bench", "read", "w", "--into", "gpu0"], &by_it[..]].concat()).ok();
    assert!(read.text().contains("cufile/kernel-copy"), "{}", read.text());
    rig.env.pop();

    // Where it would read a file of the kernel's for ever, it is not opened.
    let plain = Rig { env: vec![rig.env[1].clone()], library: rig.library.clone(), scratch: rig.scratch };
    if !Path::new("/proc/modules").exists() {
        plain.run(&["cat", "a", "--policy", "require=cufile"]).fails(5, &["NO_VENDOR_LIBRARY", "/proc/modules"]);
    }
    // Our own is refused by its file, and where it stands in front of everything.
    let before = Rig { env: around(&ours), ..plain };
    before.run(&["cat", "a", "--policy", "require=cufile"]).fails(5, &["NO_VENDOR_LIBRARY", "LD_PRELOAD"]);
    let named = Rig { env: Vec::new(), library: ours, scratch: before.scratch };
    named.run(&["cat", "a", "--policy", "require=cufile"]).fails(5, &["NO_VENDOR_LIBRARY", "Straightway's own"]);
}
