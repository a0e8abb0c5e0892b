//! `dataset`: indexes, their use, and what goes wrong.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::Scratch;

/// Files of other people's software, of the crate that reads them.
fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sw-data/testdata").join(name)
}

fn copy(scratch: &Scratch, name: &str) {
    fs::copy(testdata(name), scratch.path(name)).unwrap();
}

fn samples(objects: &[Value]) -> Vec<&Value> {
    objects.iter().filter(|object| object["schema"] == "straightway.dataset.sample/1").collect()
}

#[test]
fn an_index_is_made_summed_up_listed_and_verified() {
    let scratch = Scratch::new();
    copy(&scratch, "webdataset.tar");
    copy(&scratch, "tensorflow.tfrecord");
    let out = ["--out", "x.index.arrow"];
    let built = scratch
        .run(&[&["dataset", "index", "webdataset.tar", "tensorflow.tfrecord", "--json"][..], &out].concat())
        .ok()
        .document("straightway.dataset.index/1");
    let stat = scratch.run(&["dataset", "stat", "x.index.arrow", "--json"]).ok().document("straightway.dataset.stat/1");
    assert_eq!((&built["samples"], &built["objects"]), (&stat["samples"], &2.into()));
    assert_eq!(stat["checksums"].as_u64(), Some(5));
    assert_eq!(stat["formats"][0]["format"], "tar");
    let sizes = &stat["sizes"];
    assert_eq!((sizes["min"].as_u64(), sizes["max"].as_u64()), (Some(0), Some(2065)));
    // Three digits: 1000 and 2065 are the two in the middle.
    assert!((1000..1002).contains(&sizes["p50"].as_u64().unwrap()), "{sizes}");
    assert_eq!(sizes["mean"].as_f64(), Some(stat["sample_bytes"].as_u64().unwrap() as f64 / 10.0));
    let listed = scratch.run(&["dataset", "iterate", "x.index.arrow", "--digest", "--json"]).ok().json();
    let wanted: Vec<Value> = serde_json::from_slice(&fs::read(testdata("webdataset.tar.json")).unwrap()).unwrap();
    let found = samples(&listed);
    assert_eq!(found.len() as u64, stat["samples"].as_u64().unwrap());
    for (wanted, found) in wanted.iter().zip(&found) {
        assert_eq!(wanted["key"], found["key"]);
        let names: Vec<_> = found["fields"].as_array().unwrap().iter().map(|field| field["name"].clone()).collect();
        let mut sorted: Vec<String> = names.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
        sorted.sort();
        assert!(wanted["fields"].as_object().unwrap().keys().eq(sorted.iter()));
        assert_eq!(found["sha256"].as_str().unwrap().len(), 64);
    }
    // The same without an index.
    let direct =
        scratch.run(&["dataset", "iterate", "webdataset.tar", "tensorflow.tfrecord", "--digest", "--json"]).ok();
    assert_eq!(samples(&direct.json()), found);
    assert!(scratch.run(&["dataset", "iterate", "x.index.arrow"]).ok().text().lines().count() > 5);
    scratch.run(&["dataset", "verify", "x.index.arrow"]).ok();
    scratch.run(&["dataset", "stat", "x.index.arrow"]).ok();
}

#[test]
fn ranks_have_every_sample_once_in_an_order_of_the_seed() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("set")).unwrap();
    for number in 0..50 {
        scratch.file(&format!("set/{number:02}.txt"), number);
    }
    scratch.run(&["dataset", "index", "set", "--out", "x.index.arrow"]).ok();
    let keys = |more: &[&str]| -> Vec<String> {
        let ran = scratch.run(&[&["dataset", "iterate", "x.index.arrow", "--json"], more].concat()).ok();
        samples(&ran.json()).iter().map(|sample| sample["key"].as_str().unwrap().to_owned()).collect()
    };
    let sequence = keys(&[]);
    assert!(sequence.is_sorted() && sequence.len() == 50);
    let alone = keys(&["--seed", "7"]);
    assert_ne!(alone, sequence);
    assert_ne!(alone, keys(&["--seed", "7", "--epoch", "1"]));
    let ranks: Vec<Vec<String>> =
        (0..3).map(|rank| keys(&["--seed", "7", "--world", "3", "--rank", &rank.to_string()])).collect();
    let together: Vec<String> = (0..50).map(|at| ranks[at % 3][at / 3].clone()).collect();
    assert_eq!(together, alone);
    assert_eq!(keys(&["--seed", "7", "--limit", "4"]), alone[..4]);
    assert_eq!(keys(&["--seed", "7", "--method", "blocks=5x2"]).len(), 50);
    scratch.run(&["dataset", "iterate", "x.index.arrow", "--rank", "3", "--world", "3"]).fails(2, &["rank 3", "; "]);
    scratch.run(&["dataset", "iterate", "x.index.arrow", "--method", "any"]).fails(2, &["shuffle"]);
}

#[test]
fn what_changed_since_is_named_and_ends_with_its_code() {
    let scratch = Scratch::new();
    copy(&scratch, "tensorflow.tfrecord");
    scratch.file("b.bin", 100);
    scratch.run(&["dataset", "index", "tensorflow.tfrecord", "b.bin", "--out", "x.index.arrow"]).ok();
    scratch.file("b.bin", 90);
    let ran = scratch.run(&["dataset", "verify", "x.index.arrow", "--json"]);
    assert_eq!(ran.code, Some(6), "{}", ran.stderr);
    let json = ran.json();
    assert_eq!((&json[0]["schema"], &json[0]["kind"]), (&"straightway.dataset.bad/1".into(), &"changed".into()));
    assert!(json[0]["message"].as_str().unwrap().contains("100 bytes"));
    scratch.run(&["dataset", "iterate", "x.index.arrow", "--digest"]).fails(1, &["b.bin", "100 bytes", "--update"]);
    let update = ["dataset", "index", "tensorflow.tfrecord", "b.bin", "--out", "x.index.arrow", "--update", "--json"];
    let built = scratch.run(&update).ok().document("straightway.dataset.index/1");
    assert_eq!((built["taken_over"].as_u64(), built["dropped"].as_u64()), (Some(1), Some(1)));
    scratch.run(&["dataset", "verify", "x.index.arrow"]).ok();
}

#[test]
fn damaged_objects_end_it_or_are_listed() {
    let scratch = Scratch::new();
    copy(&scratch, "gnu.tar");
    let mut bytes = fs::read(testdata("gnu.tar")).unwrap();
    bytes[3] ^= 1;
    fs::write(scratch.path("bad.tar"), bytes).unwrap();
    fs::write(scratch.path("x.index.arrow"), "old").unwrap();
    let index = ["dataset", "index", "{bad,gnu}.tar", "--out", "x.index.arrow"];
    scratch.run(&index).fails(6, &["bad.tar", "checksum"]);
    assert_eq!(fs::read(scratch.path("x.index.arrow")).unwrap(), b"old");
    let ran = scratch.run(&[&index[..], &["--on-error", "quarantine=list.jsonl"]].concat()).ok();
    assert!(ran.text().contains("left out") && ran.text().contains("1 damaged"), "{}", ran.text());
    let list: Value = serde_json::from_slice(&fs::read(scratch.path("list.jsonl")).unwrap()).unwrap();
    assert!(list["uri"].as_str().unwrap().ends_with("bad.tar"));
    scratch.run(&[&index[..], &["--on-error", "warn"]].concat()).fails(2, &["quarantine=FILE"]);
    scratch.run(&["dataset", "stat", "gnu.tar"]).fails(11, &["gnu.tar", "no index", "; "]);
    scratch.run(&["dataset", "index", "absent", "--out", "y"]).fails(3, &["absent"]);
}

#[test]
fn small_files_become_archives_with_contents_on_boundaries() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path("set/a")).unwrap();
    for number in 0..30 {
        scratch.file(&format!("set/a/{number:02}.jpg"), 900 + number * 211);
        scratch.file(&format!("set/a/{number:02}.json"), 3 + number);
    }
    scratch.file(&format!("set/a/{}.txt", "x".repeat(150)), 10);
    let pack = ["dataset", "pack", "set", "--out", "packed", "--shard-size", "64k", "--json"];
    let packed = scratch.run(&pack).ok().document("straightway.dataset.pack/1");
    assert_eq!((packed["samples"].as_u64(), packed["packed_samples"].as_u64()), (Some(61), Some(31)));
    assert!(packed["shards"].as_u64().unwrap() > 3);
    let ran = scratch.run(&["dataset", "iterate", "packed/samples.index.arrow", "--digest", "--json"]).ok().json();
    let sources = scratch.run(&["dataset", "iterate", "set", "--digest", "--json"]).ok().json();
    let fields = |objects: &[Value]| -> Vec<(String, String)> {
        let of = |sample: &Value| {
            let key = sample["key"].as_str().unwrap().to_owned();
            let field = |field: &Value| {
                (format!("{key}.{}", field["name"].as_str().unwrap()), field["sha256"].as_str().unwrap().to_owned())
            };
            sample["fields"].as_array().unwrap().iter().map(field).collect::<Vec<_>>()
        };
        samples(objects).into_iter().flat_map(of).collect()
    };
    assert_eq!(fields(&ran), fields(&sources));
    for sample in samples(&ran) {
        for field in sample["fields"].as_array().unwrap() {
            let at = sample["offset"].as_u64().unwrap() + field["offset"].as_u64().unwrap();
            assert_eq!(at % 4096, 0, "{sample}");
        }
    }
    scratch.run(&pack).fails(10, &["packed", "not empty", "; "]);
    scratch
        .run(&["dataset", "pack", "set", "--out", "r", "--format", "tfrecord", "--align", "4k"])
        .fails(2, &["align"]);
    scratch.run(&["dataset", "pack", "set", "--out", "r", "--align", "1000"]).fails(2, &["power of two"]);
    fs::remove_dir(scratch.path("r")).unwrap();
    let records = ["dataset", "pack", "set", "--out", "r", "--format", "tfrecord", "--json"];
    let packed = scratch.run(&records).ok().document("straightway.dataset.pack/1");
    assert_eq!((packed["packed_samples"].as_u64(), packed["shards"].as_u64()), (Some(61), Some(1)));
    scratch.run(&["dataset", "verify", "r/samples.index.arrow"]).ok();
}

#[test]
fn gnu_tar_lists_and_extracts_what_was_packed() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("set")).unwrap();
    for number in 0..5 {
        scratch.file(&format!("set/{number}-{}.bin", "y".repeat(40 * number)), 5000 * number);
    }
    scratch.run(&["dataset", "pack", "set", "--out", "packed"]).ok();
    fs::create_dir(scratch.path("out")).unwrap();
    let archive = scratch.path("packed/shard-000000.tar");
    let tar = std::process::Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(scratch.path("out")).output();
    let Ok(tar) = tar else { return println!("skip tar: it is not installed") };
    assert!(tar.status.success() && tar.stderr.is_empty(), "{}", String::from_utf8_lossy(&tar.stderr));
    for number in 0..5 {
        let name = format!("{number}-{}.bin", "y".repeat(40 * number));
        assert!(
            fs::read(scratch.path("out").join(&name)).unwrap() == fs::read(scratch.path("set").join(&name)).unwrap()
        );
    }
}

/// Waits until `seen` holds.
#[expect(clippy::disallowed_methods, reason = "a test that watches another process has nothing to wait on but time")]
fn wait_until(mut seen: impl FnMut() -> bool) {
    let start = Instant::now();
    while !seen() {
        assert!(start.elapsed() < Duration::from_secs(30), "nothing happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_killed_index_leaves_the_old_one() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("set")).unwrap();
    for number in 0..16 {
        scratch.file(&format!("set/{number:02}.bin"), 8 << 20);
    }
    scratch.run(&["dataset", "index", "set/00.bin", "--out", "x.index.arrow"]).ok();
    let old = fs::read(scratch.path("x.index.arrow")).unwrap();
    let arguments = ["dataset", "index", "set", "--checksum", "--threads", "1", "--out", "x.index.arrow"];
    let mut child = scratch.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let is_partial = |name: &String| name.ends_with(".straightway-partial");
    wait_until(|| scratch.names().iter().any(is_partial) || child.try_wait().unwrap().is_some());
    child.kill().unwrap();
    if child.wait().unwrap().success() {
        return println!("skip kill: the index was done before the signal came");
    }
    assert_eq!(fs::read(scratch.path("x.index.arrow")).unwrap(), old);
    scratch.run(&arguments).ok();
    assert_ne!(fs::read(scratch.path("x.index.arrow")).unwrap(), old);
}

#[test]
fn a_full_disk_leaves_the_old_index() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("set")).unwrap();
    // Names of some length, so that the index is longer than the disk.
    for number in 0..3000 {
        fs::write(scratch.path("set").join(format!("{number:0200}.txt")), "").unwrap();
    }
    fs::create_dir(scratch.path("small")).unwrap();
    let small = scratch.path("small");
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(&small).output();
    if !matches!(&mounted, Ok(output) if output.status.success()) {
        println!("skip full disk: no file system can be mounted here ({mounted:?})");
        return;
    }
    fs::write(small.join("x.index.arrow"), "old").unwrap();
    let ran = scratch.run(&["dataset", "index", "set", "--out", "small/x.index.arrow"]);
    let left: Vec<_> = fs::read_dir(&small).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let old = fs::read(small.join("x.index.arrow"));
    let unmounted = std::process::Command::new("umount").arg(&small).status();
    assert!(unmounted.unwrap().success());
    ran.fails(7, &["space", "; "]);
    assert_eq!((left, old.unwrap()), (vec!["x.index.arrow".into()], b"old".to_vec()));
}
