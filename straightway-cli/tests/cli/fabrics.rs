//! Every command that reads, by an address of a subsystem behind TCP and behind the emulated fabric: what it says is what it says of the file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    support::{Scratch, content},
    target::{Offered, known},
};

/// Files of other people's software, of the crates that read them.
fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// A file that lies in a namespace.
struct Part {
    name: &'static str,
    at: u64,
    len: u64,
}

impl Part {
    fn uri(&self, of: &Offered) -> String {
        format!("{}&offset={}&len={}", of.uri(), self.at, self.len)
    }

    fn file(&self) -> String {
        testdata(self.name).display().to_string()
    }
}

/// Puts files into a disk, not at the beginning of a block, and tells where.
fn disk<const N: usize>(scratch: &Scratch, names: [&'static str; N]) -> [Part; N] {
    let mut disk = content(4 << 20);
    let mut at = 512;
    let parts = names.map(|name| {
        let bytes = fs::read(testdata(name)).unwrap();
        disk[at..at + bytes.len()].copy_from_slice(&bytes);
        let part = Part { name, at: at as u64, len: bytes.len() as u64 };
        at += bytes.len().next_multiple_of(512) + 512;
        part
    });
    fs::write(scratch.path("disk"), disk).unwrap();
    parts
}

/// Targets over the disk: TCP, RDMA.
fn targets(scratch: &Scratch) -> [Offered; 2] {
    [Offered::start(scratch, &["disk"]), Offered::start(scratch, &["disk", "--rdma-emulated"])]
}

/// Those of the lines that `schema` is of, without what names the place.
fn lines(scratch: &Scratch, schema: &str, arguments: &[&str]) -> Vec<Value> {
    let mut lines = scratch.run(arguments).ok().json();
    lines.retain(|line| line["schema"] == schema);
    assert!(!lines.is_empty(), "{arguments:?} says nothing of {schema}");
    for place in ["uri", "file", "chunks", "crc32c"] {
        lines.iter_mut().filter_map(Value::as_object_mut).for_each(|line| drop(line.remove(place)));
    }
    lines
}

#[test]
fn checkpoints_are_loaded_shown_and_verified_where_they_are() {
    if !known() {
        println!("skip fabrics: the machine has no hostid and no machine-id");
        return;
    }
    let scratch = Scratch::new();
    let shard = "sw-checkpoint/testdata/torch/hf/shard-00003-model-00001-of-00001.safetensors";
    let parts = disk(&scratch, [shard, "sw-checkpoint/testdata/torch/views.pt"]);
    for target in targets(&scratch) {
        for part in &parts {
            let (there, here) = (part.uri(&target), part.file());
            let load = |at: &str| lines(&scratch, "straightway.load.tensor/1", &["load", at, "--digest", "--json"]);
            assert_eq!(load(&there), load(&here), "{there}");
            let show =
                |at: &str| lines(&scratch, "straightway.checkpoint.tensor/1", &["checkpoint", "show", at, "--json"]);
            assert_eq!(show(&there), show(&here), "{there}");
            let ran = scratch.run(&["load", &there]).ok();
            let route = target.uri().split("://").next().unwrap();
            assert!(ran.text().contains(&format!("  {route}")), "{}", ran.text());
            scratch.run(&["checkpoint", "verify", &there]).ok();
            scratch.run(&["checkpoint", "diff", &there, &here]).ok();
        }
    }
    // A byte that is wrong there is found there.
    let file = scratch.path("disk");
    let mut bytes = fs::read(&file).unwrap();
    let stored = scratch.run(&["checkpoint", "show", &parts[1].file(), "--json"]).ok().json();
    let base = stored.iter().find(|line| line["name"] == "base").unwrap();
    bytes[usize::try_from(parts[1].at + base["chunks"][0]["file_offset"].as_u64().unwrap()).unwrap()] ^= 1;
    fs::write(&file, bytes).unwrap();
    for target in targets(&scratch) {
        scratch.run(&["checkpoint", "verify", &parts[1].uri(&target)]).fails(6, &["crc32", "; "]);
    }
}

#[test]
fn samples_are_indexed_and_read_where_they_are() {
    if !known() {
        println!("skip fabrics: the machine has no hostid and no machine-id");
        return;
    }
    let scratch = Scratch::new();
    let parts = disk(&scratch, ["sw-data/testdata/webdataset.tar", "sw-data/testdata/numpy-f4.npy"]);
    for target in targets(&scratch) {
        for (part, format) in parts.iter().zip(["tar", "npy"]) {
            let (there, here) = (part.uri(&target), part.file());
            let of = |source: &str, more: &[&str]| {
                let arguments = [&["dataset", "iterate", source, "--digest", "--json"][..], more].concat();
                lines(&scratch, "straightway.dataset.sample/1", &arguments)
            };
            let wanted = of(&here, &[]);
            assert_eq!(of(&there, &["--format", format]), wanted, "{there}");
            let index = format!("{format}.index.arrow");
            let make = ["dataset", "index", &there, "--format", format, "--checksum", "--out", &index, "--update"];
            scratch.run(&make).ok();
            assert_eq!(of(&index, &[]), wanted, "{there}");
            scratch.run(&["dataset", "verify", &index]).ok();
        }
    }
}
