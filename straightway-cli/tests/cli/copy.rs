//! `cp`: whole, verified, or not there.

use std::process::Command;

use crate::support::{Scratch, content};

#[test]
fn copies_of_every_length_are_equal_and_verified() {
    let scratch = Scratch::new();
    for len in [0, 1, 511, 4096, 4097, 1 << 20, (3 << 20) + 17] {
        scratch.file("a", len);
        let report = scratch.run(&["cp", "a", "b", "--piece", "256k", "--json"]).ok().document("straightway.cp/1");
        assert_eq!((report["bytes"].as_u64(), report["verified"].as_bool()), (Some(len as u64), Some(true)));
        assert_eq!(std::fs::read(scratch.path("b")).unwrap(), content(len), "{len} bytes");
        assert_eq!(scratch.names(), ["a", "b"]);
    }
}

#[test]
fn the_checksum_is_that_of_the_whole_object() {
    let scratch = Scratch::new();
    scratch.file("a", 1_000_003);
    let of = |piece: &str| {
        let report = scratch.run(&["cp", "a", "b", "--piece", piece, "--json"]).ok().document("straightway.cp/1");
        report["crc64_nvme"].as_str().unwrap().to_owned()
    };
    let sum = of("4k");
    assert_eq!(of("300000"), sum);
    let cat = scratch.run(&["cat", "b", "--json"]).ok();
    assert!(cat.stderr.contains(&sum), "{} has no {sum}", cat.stderr);
}

#[test]
fn a_directory_takes_the_name_of_the_source() {
    let scratch = Scratch::new();
    scratch.file("a", 5000);
    std::fs::create_dir(scratch.path("dir")).unwrap();
    scratch.run(&["cp", "a", "dir"]).ok();
    assert_eq!(std::fs::read(scratch.path("dir/a")).unwrap(), content(5000));
}

#[test]
fn the_same_object_is_refused() {
    let scratch = Scratch::new();
    scratch.file("a", 100);
    std::os::unix::fs::symlink("a", scratch.path("link")).unwrap();
    scratch.run(&["cp", "a", "a"]).fails(2, &["same object", "; "]);
    scratch.run(&["cp", "a", "link"]).fails(2, &["same object", "; "]);
    assert_eq!(std::fs::read(scratch.path("a")).unwrap(), content(100));
}

#[test]
fn a_failed_copy_leaves_the_old_destination_and_nothing_else() {
    let scratch = Scratch::new();
    scratch.file("a", 100_001);
    std::fs::write(scratch.path("b"), "old").unwrap();
    // The last block is ragged, so a policy that demands one landing for every byte cannot hold.
    scratch.run(&["cp", "a", "b", "--policy", "require=io_uring/dma", "--engine", "io_uring=off"]).fails(5, &["; "]);
    assert_eq!(std::fs::read(scratch.path("b")).unwrap(), b"old");
    assert_eq!(scratch.names(), ["a", "b"]);
}

#[test]
fn without_verification_the_report_says_so() {
    let scratch = Scratch::new();
    scratch.file("a", 10_000);
    let report = scratch.run(&["cp", "a", "b", "--no-verify", "--json"]).ok().document("straightway.cp/1");
    assert_eq!((report["verified"].as_bool(), report["crc64_nvme"].is_null()), (Some(false), true));
    assert!(report["verify_routes"].as_array().unwrap().is_empty());
    assert_eq!(std::fs::read(scratch.path("b")).unwrap(), content(10_000));
}

#[test]
fn a_stripe_set_is_copied_into_one_file() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("x"), &content(131_072)[..65_536]).unwrap();
    std::fs::write(scratch.path("y"), &content(131_072)[65_536..]).unwrap();
    scratch.run(&["cp", "stripe:64k:x,y", "b"]).ok();
    assert_eq!(std::fs::read(scratch.path("b")).unwrap(), content(131_072));
}

#[test]
fn a_part_is_written_in_place_and_the_rest_stays() {
    let scratch = Scratch::new();
    scratch.file("a", 10_001);
    std::fs::write(scratch.path("b"), vec![7; 50_000]).unwrap();
    let part = format!("file://{}?offset=3000&len=20000", scratch.path("b").display());
    scratch.run(&["cp", "a", &part]).ok();
    let after = std::fs::read(scratch.path("b")).unwrap();
    assert!(after[3000..13_001] == content(10_001) && after.len() == 50_000);
    assert!(after[..3000].iter().chain(&after[13_001..]).all(|byte| *byte == 7));
    assert!(scratch.run(&["cat", &part, "--len", "10001"]).ok().stdout == content(10_001));
    scratch.file("large", 20_001);
    scratch.run(&["cp", "large", &part]).fails(7, &["20000 bytes", "nothing was written", "; "]);
    scratch.run(&["cp", "a", &part, "--resume"]).fails(2, &["in place", "; "]);
    scratch.run(&["cp", &part, &part]).fails(2, &["same object", "; "]);
    std::os::unix::fs::symlink(scratch.path("b"), scratch.path("link")).unwrap();
    scratch.run(&["cp", "link", &part]).fails(2, &["same object", "; "]);
    scratch.run(&["cat", &part, "--len", "20001"]).fails(1, &["20000 bytes", "; "]);
}

#[test]
fn a_full_disk_is_told_before_a_byte_is_written() {
    let scratch = Scratch::new();
    scratch.file("a", 4 << 20);
    let small = scratch.path("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&small).output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        println!("skip full disk: no file system can be mounted here ({mounted:?})");
        return;
    }
    let ran = scratch.run(&["cp", "a", "small/b"]);
    let left = std::fs::read_dir(&small).unwrap().count();
    let unmounted = Command::new("umount").arg(&small).status().unwrap();
    ran.fails(7, &["space", "; "]);
    assert!(left == 0 && unmounted.success());
}
