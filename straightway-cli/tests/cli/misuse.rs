//! What cannot be done is said on one line, with a remedy and an exit code of its own, and changes nothing.

use std::os::unix::{fs::PermissionsExt, process::CommandExt as _};

use crate::support::{Ran, Scratch};

/// User and group `nobody` on every Linux distribution.
const NOBODY: u32 = 65_534;

#[test]
fn addresses_that_are_none() {
    let scratch = Scratch::new();
    scratch.run(&["stat", "gopher://x"]).fails(2, &["unknown scheme", "; "]);
    scratch.run(&["plan", "stripe:1MiB"]).fails(2, &["stripe:UNIT:", "; "]);
    scratch.run(&["ls", ""]).fails(2, &["empty"]);
}

#[test]
fn nothing_there() {
    let scratch = Scratch::new();
    for command in ["plan", "ls", "stat", "cat", "doctor", "load"] {
        scratch.run(&[command, "absent"]).fails(3, &["absent", "; "]);
    }
    scratch.run(&["cp", "absent", "copy"]).fails(3, &["absent"]);
    scratch.run(&["bench", "read", "absent"]).fails(3, &["absent"]);
    scratch.file("a", 10);
    scratch.run(&["cp", "a", "absent/copy"]).fails(3, &["absent"]);
    scratch.run(&["demo", "--dir", "absent"]).fails(3, &["absent"]);
    assert_eq!(scratch.names(), ["a"]);
}

#[test]
fn a_directory_is_no_object() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("dir")).unwrap();
    for command in [&["cat", "dir"][..], &["plan", "dir"], &["bench", "read", "dir"], &["cp", "dir", "copy"]] {
        scratch.run(command).fails(1, &["dir", "directory", "; "]);
    }
}

#[test]
fn access_that_the_system_refuses() {
    let scratch = Scratch::new();
    let path = scratch.file("secret", 10);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    let arguments = ["cat", "secret"];
    let mut command = scratch.command(&arguments);
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    match command.output() {
        Err(error) => println!("skip permission: nobody cannot run the command here ({error})"),
        Ok(output) => {
            Ran::of(&arguments, output).fails(4, &["secret", "; "]);
        }
    }
}

#[test]
fn ranges_outside_the_object() {
    let scratch = Scratch::new();
    scratch.file("a", 1000);
    for range in [&["--offset", "1001"][..], &["--len", "1001"], &["--offset", "18446744073709551615", "--len", "2"]] {
        let ran = scratch.run(&[&["cat", "a"], range].concat()).fails(1, &["1000 bytes", "; "]);
        assert!(ran.stdout.is_empty());
    }
    scratch.run(&["bench", "read", "a", "--size", "4k"]).fails(1, &["1000 bytes", "; "]);
}

#[test]
fn policies_that_cannot_be_met_name_the_reasons() {
    let scratch = Scratch::new();
    scratch.file("a", 10_001);
    let ran = scratch.run(&["cat", "a", "--policy", "require=preadv2/dma", "--engine", "gpu=off"]);
    if ran.code == Some(0) {
        println!("skip require=preadv2: io_uring is blocked here, so that is the route");
    } else {
        ran.fails(5, &["POLICY_EXCLUDES", "straightway plan"]);
    }
    let ran = scratch.run(&["plan", "a", "--into", "gpu7", "--policy", "require=dma", "--engine", "gpu=off", "--json"]);
    assert_eq!(ran.code, Some(5), "{}", ran.stderr);
    let json = ran.json();
    assert_eq!(json[0]["schema"], "straightway.plan/1");
    assert!(json[0]["choice"].is_null());
    assert_eq!(json[1]["schema"], "straightway.error/1");
    assert_eq!((&json[1]["kind"], json[1]["exit"].as_u64()), (&"policy_unmet".into(), Some(5)));
    let reasons = json[1]["reasons"].as_array().unwrap();
    assert!(reasons.contains(&"NO_GPU_DRIVER".into()), "{reasons:?}");
}

#[test]
fn memory_of_another_device_that_is_not_there() {
    let scratch = Scratch::new();
    scratch.file("a", 10_001);
    for (into, word) in [("p2pmem:fffe:00:00.0", "CONFIG_PCI_P2PDMA"), ("bar:fffe:00:00.0/2", "nvme ")] {
        let ran = scratch.run(&["plan", "a", "--into", into, "--json"]);
        assert_eq!(ran.code, Some(8), "{}", ran.stderr);
        let plan = &ran.json()[0];
        let candidates = plan["candidates"].as_array().unwrap();
        assert!(!candidates.is_empty() && plan["choice"].is_null(), "{plan}");
        assert!(candidates.iter().all(|candidate| candidate["reason"] == "NO_SUCH_MEMORY"), "{plan}");
        assert_eq!(plan["into"], into);
        scratch.run(&["plan", "a", "--into", into]).fails(8, &[word, "; "]);
        scratch.run(&["bench", "read", "a", "--size", "4k", "--into", into]).fails(8, &[word, "; "]);
    }
    scratch.run(&["plan", "a", "--into", "p2pmem:3b"]).fails(2, &["p2pmem:PCI-ADDRESS"]);
}

#[test]
fn a_gpu_that_is_not_there() {
    let scratch = Scratch::new();
    scratch.file("a", 5000);
    for command in [&["bench", "read", "a", "--size", "4k", "--into", "gpu7"][..], &["demo", "--into", "gpu7"]] {
        scratch.run(command).fails(8, &["; "]);
    }
    assert_eq!(scratch.names(), ["a"], "the demo left files");
}

#[test]
fn numbers_that_are_none() {
    let scratch = Scratch::new();
    scratch.file("a", 10);
    for (option, value) in [
        ("--len", "4x"),
        ("--offset", "-1"),
        ("--piece", "0"),
        ("--depth", "0"),
        ("--piece", "2g"),
        ("--len", "99999999999t"),
    ] {
        scratch.run(&["cat", "a", &format!("{option}={value}")]).fails(2, &["--", "; "]);
    }
    for option in [["--time", "0s"], ["--size", "4k,,8k"], ["--jobs", "65"], ["--depth", "many"]] {
        scratch.run(&[&["bench", "read", "a"], &option[..]].concat()).fails(2, &["; "]);
    }
    scratch.run(&["cat", "a", "--engine", "queue_depth"]).fails(2, &["NAME=VALUE"]);
    scratch.run(&["cat", "a", "--engine", "warp=9"]).fails(2, &["queue_depth"]);
    scratch.run(&["cat", "a", "--engine", "queue_depth=0"]).fails(2, &["4096"]);
    scratch.run(&["demo", "--size", "1k"]).fails(2, &["16MiB"]);
}

#[test]
fn wrong_command_lines() {
    let scratch = Scratch::new();
    scratch.run(&[]).fails(2, &["subcommand", "straightway --help"]);
    scratch.run(&["frobnicate"]).fails(2, &["frobnicate"]);
    scratch.run(&["bench"]).fails(2, &["straightway bench --help"]);
    scratch.run(&["cp", "one"]).fails(2, &["<DST>", "straightway cp --help"]);
    scratch.run(&["bench", "read", "a", "--random", "--sequential"]).fails(2, &["cannot be used with"]);
    let json = scratch.run(&["stat", "gopher://x", "--json"]).fails(2, &[]).document("straightway.error/1");
    assert_eq!((&json["kind"], json["exit"].as_u64()), (&"bad_uri".into(), Some(2)));
}

#[test]
fn names_with_line_breaks_stay_on_one_line() {
    Scratch::new().run(&["cat", "a\nb"]).fails(3, &["a\\nb"]);
}
