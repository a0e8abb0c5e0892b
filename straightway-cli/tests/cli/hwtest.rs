//! `hwtest` without devices: what is wrong is told before anything runs, and what the tests' program says is passed on.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Command,
};

use crate::support::{Ran, Scratch};

const PROFILE: &str = r#"{"name": "bench", "suites": ["vfio"], "roles": {
    "nvme-a": {"address": "0000:3b:00.0", "serial": "S64X"}, "peer": {"address": "0000:5e:00.0", "bar": 2}}}"#;

fn profile(scratch: &Scratch, text: &str) {
    fs::write(scratch.path("machine.json"), text).unwrap();
}

/// The command beside which there is no other program, or a script in the place of the tests' program.
fn alone(scratch: &Scratch, script: Option<&str>) -> Command {
    let dir = scratch.path("bin");
    fs::create_dir_all(&dir).unwrap();
    let own: PathBuf = dir.join("straightway");
    // A link that exists must not be copied over: it is the command that every test runs.
    if !own.exists() && fs::hard_link(env!("CARGO_BIN_EXE_straightway"), &own).is_err() {
        fs::copy(env!("CARGO_BIN_EXE_straightway"), &own).unwrap();
    }
    if let Some(script) = script {
        let program = dir.join("straightway-guest");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(own);
    command.current_dir(scratch.path(".")).env("PATH", "/nowhere");
    command
}

fn run(scratch: &Scratch, script: Option<&str>, more: &[&str]) -> Ran {
    let arguments = [&["hwtest", "--profile", "machine.json"], more].concat();
    Ran::of(&arguments, alone(scratch, script).args(&arguments).output().unwrap())
}

#[test]
fn a_program_that_is_not_there_is_told_with_how_to_build_it() {
    let scratch = Scratch::new();
    profile(&scratch, PROFILE);
    run(&scratch, None, &[]).fails(8, &["straightway-guest", "; build it: cargo build --release -p straightway-guest"]);
}

#[test]
fn a_profile_that_cannot_be_used_is_told_before_anything_runs() {
    let scratch = Scratch::new();
    let script = Some("touch ran");
    run(&scratch, script, &[]).fails(3, &["machine.json"]);
    for (text, word) in [
        ("{", "EOF"),
        (&PROFILE.replace("\"bar\"", "\"window\""), "window"),
        (&PROFILE.replace("0000:3b:00.0", "3b"), "nvme-a"),
        (&PROFILE.replace("5e", "3b"), "another role"),
        (&PROFILE.replace("[\"vfio\"]", "[]"), "suite"),
    ] {
        profile(&scratch, text);
        run(&scratch, script, &[]).fails(11, &["machine.json", word, "docs/hardware.md"]);
    }
    assert!(!scratch.path("ran").exists());
}

#[test]
fn destructive_without_any_serial_is_refused() {
    let scratch = Scratch::new();
    profile(&scratch, &PROFILE.replace(", \"serial\": \"S64X\"", ""));
    run(&scratch, Some("touch ran"), &["--destructive"]).fails(2, &["no role", "serial", "; write the serial"]);
    assert!(!scratch.path("ran").exists());
}

#[test]
fn lines_and_ends_of_the_program_are_passed_on() {
    let scratch = Scratch::new();
    profile(&scratch, PROFILE);
    let told = run(&scratch, Some("echo \"$@\""), &["--destructive", "--only", "vfio.reset", "--record", "r"]).ok();
    let wanted = "hwtest --profile machine.json --destructive --only vfio.reset --record r";
    assert_eq!(told.text().lines().last(), Some(wanted), "{}", told.text());
    let json = run(&scratch, Some("echo '{\"schema\": \"straightway.hwtest/1\"}'; exit 6"), &["--json"]);
    let objects = json.json();
    assert_eq!(json.code, Some(6));
    assert_eq!(objects[0]["schema"], "straightway.hwtest/1");
    assert_eq!((objects[1]["kind"].as_str(), objects[1]["exit"].as_u64()), (Some("test_failed"), Some(6)));
    run(&scratch, Some("exit 11"), &[]).fails(11, &["straightway-guest"]);
    run(&scratch, Some("kill -9 $$"), &[]).fails(1, &["straightway-guest", "signal"]);
}

#[test]
fn the_program_is_found_in_the_path_too() {
    let scratch = Scratch::new();
    profile(&scratch, PROFILE);
    drop(alone(&scratch, Some("echo found")));
    let elsewhere = scratch.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::rename(scratch.path("bin/straightway-guest"), elsewhere.join("straightway-guest")).unwrap();
    symlink(&elsewhere, scratch.path("link")).unwrap();
    let arguments = ["hwtest", "--profile", "machine.json"];
    let mut command = alone(&scratch, None);
    let output = command.args(arguments).env("PATH", scratch.path("link")).output().unwrap();
    assert!(Ran::of(&arguments, output).ok().text().ends_with("found\n"));
}
