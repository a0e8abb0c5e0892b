//! Indexes of ours read by pyarrow, row by row, and shards of ours read by webdataset.
//!
//! Needs `target/pyenv/bin/python` with pyarrow and webdataset (made by the developer commands); says so and skips without them.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::{
    fs,
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use straightway::{Engine, GpuUse, Uri};
use sw_data::{
    index::{BuildOptions, Index, build},
    pack::{Container, PackOptions, pack},
    samples::Samples as _,
};
use sw_testkit::scratch::Scratch;

const OPTIONS: BuildOptions<'static> = BuildOptions::new(NonZeroUsize::new(2).unwrap());

/// The interpreter, or the reason to skip.
fn python(module: &str) -> Result<PathBuf, String> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pyenv/bin/python");
    match Command::new(&python).args(["-c", &format!("import {module}")]).output() {
        Ok(output) if output.status.success() => Ok(python),
        Ok(_) => Err(format!("target/pyenv has no {module}")),
        Err(error) => Err(format!("target/pyenv/bin/python does not start: {error}")),
    }
}

fn run(python: &Path, args: &[&str]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/index_interop.py");
    let output = Command::new(python).arg(script).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("version {} on the other side", answer["version"]);
    answer
}

fn made(scratch: &Scratch, engine: &Engine, sources: &[String]) -> (String, Index) {
    let to = scratch.text("x.index.arrow");
    let uri: Uri = to.parse().unwrap();
    build(engine, sources, &uri, &OPTIONS, &mut |_| ControlFlow::Continue(())).unwrap();
    let index = Index::open(engine, &uri).unwrap();
    (to, index)
}

fn engine() -> Engine {
    Engine::builder().gpu(GpuUse::Off).build().unwrap()
}

#[test]
fn pyarrow_reads_the_same_rows() {
    let python = match python("pyarrow") {
        Ok(python) => python,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "pyarrow");
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    for name in ["webdataset.tar", "tensorflow.tfrecord", "numpy-f4.npy"] {
        fs::copy(testdata.join(name), scratch.path(name)).unwrap();
    }
    // More than one batch of them.
    let elements = 100_000;
    let head = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({elements},), }}");
    let padded = format!("{head:117}\n");
    let long = [b"\x93NUMPY\x01\x00".as_slice(), &[118, 0], padded.as_bytes(), &vec![7; elements]].concat();
    fs::write(scratch.path("long.npy"), long).unwrap();
    let engine = engine();
    let sources = ["webdataset.tar", "tensorflow.tfrecord", "numpy-f4.npy", "long.npy"].map(|name| scratch.text(name));
    let (path, index) = made(&scratch, &engine, &sources);
    let numbers: Vec<u64> = (0..index.len()).collect();
    let (mut places, mut labels) = (Vec::new(), Vec::new());
    index.locate(&numbers, &mut places).unwrap();
    index.labels(&numbers, &mut labels).unwrap();
    let entries: Vec<_> = (0..index.object_count()).map(|object| index.object(object).unwrap()).collect();
    let ours: Vec<Value> = places
        .iter()
        .zip(&labels)
        .map(|(place, label)| {
            let entry = &entries[usize::try_from(place.object).unwrap()];
            let fields: Vec<Value> = label
                .parts
                .iter()
                .map(|part| json!({"name": part.name, "offset": part.extent.offset, "length": part.extent.len}))
                .collect();
            json!({
                "uri": Path::new(&entry.uri).file_name().unwrap().to_str(),
                "object_length": entry.len,
                "version": entry.version,
                "format": entry.format.name(),
                "offset": place.extent.offset,
                "length": place.extent.len,
                "row": place.row,
                "crc32c": place.crc32c,
                "key": label.key,
                "group": label.group,
                "fields": fields,
            })
        })
        .collect();
    let theirs = run(&python, &["index", &path]);
    let rows = theirs["rows"].as_array().unwrap();
    assert_eq!(rows.len(), ours.len());
    rows.iter().zip(&ours).for_each(|(theirs, ours)| assert_eq!(theirs, ours));
    let held: Vec<_> = (0..index.object_count()).map(|object| index.held(object).unwrap().samples).collect();
    assert_eq!(theirs["samples"], json!(held));
}

#[test]
fn webdataset_reads_what_was_packed() {
    let python = match python("webdataset") {
        Ok(python) => python,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "webdataset-packed");
    fs::create_dir_all(scratch.path("set")).unwrap();
    fs::create_dir_all(scratch.path("packed")).unwrap();
    let mut wanted = Vec::new();
    for number in 0..40usize {
        let key = format!("{number:03}-{}", "k".repeat(number * 5));
        fs::write(scratch.path(&format!("set/{key}.txt")), "t".repeat(number * 300)).unwrap();
        fs::write(scratch.path(&format!("set/{key}.cls")), number.to_string()).unwrap();
        wanted.push(json!({"key": key, "txt": number * 300, "cls": number.to_string()}));
    }
    let engine = engine();
    let (_, index) = made(&scratch, &engine, &[scratch.text("set")]);
    let options = PackOptions { container: Container::Tar { align: 4096 }, shard_bytes: 100_000 };
    let packed = pack(&engine, &index, &scratch.text("packed"), &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(packed.shards.len() > 2);
    let shards: Vec<&str> = packed.shards.iter().map(String::as_str).collect();
    let theirs = run(&python, &[&["webdataset"], &shards[..]].concat());
    assert_eq!(theirs["samples"], json!(wanted));
}
