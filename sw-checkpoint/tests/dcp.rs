//! DCP directories of ours, read by torch itself: `torch.distributed.checkpoint.load`, `torch.load` of each blob, and the
//! ZIP module of Python.
//!
//! Needs `target/pyenv/bin/python` with `torch`; says so and skips without it.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use straightway::{Engine, GpuUse};
use sw_checkpoint::{
    Bytes, CHECKSUMS_FILE, Commit, Contents, DcpOptions, Dtype, IfExists, Layout, NewTensor, PendingCheckpoint, Rank,
    SaveOptions, Saver, SaverOptions, Slice, TensorSpec, commit,
};
use sw_testkit::scratch::Scratch;

/// The interpreter, or the reason to skip.
fn python() -> Result<PathBuf, String> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pyenv/bin/python");
    match Command::new(&python).args(["-c", "import torch.distributed.checkpoint"]).output() {
        Ok(output) if output.status.success() => Ok(python),
        Ok(_) => Err("target/pyenv has no torch".to_owned()),
        Err(error) => Err(format!("target/pyenv/bin/python does not start: {error}")),
    }
}

fn run(python: &Path, verb: &str, directory: &Path) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dcp.py");
    let output = Command::new(python).arg(script).arg(verb).arg(directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(name: &str, len: u64) -> Vec<u8> {
    let seed: u64 = name.bytes().map(u64::from).sum();
    // Below 64, so that a byte is no NaN in any element type, and 0 or 1 for a bool.
    (0..len)
        .map(|at| ((at * 13 + seed + at / 511) % if name.contains("bool") { 2 } else { 60 }).to_le_bytes()[0])
        .collect()
}

/// What torch calls each type that it has.
const TORCH: [(Dtype, &str, u64); 20] = [
    (Dtype::C32, "complex32", 4),
    (Dtype::C128, "complex128", 16),
    (Dtype::Bool, "bool", 1),
    (Dtype::U8, "uint8", 1),
    (Dtype::I8, "int8", 1),
    (Dtype::F8E5m2, "float8_e5m2", 1),
    (Dtype::F8E4m3, "float8_e4m3fn", 1),
    (Dtype::F8E8m0, "float8_e8m0fnu", 1),
    (Dtype::F8E4m3Fnuz, "float8_e4m3fnuz", 1),
    (Dtype::F8E5m2Fnuz, "float8_e5m2fnuz", 1),
    (Dtype::I16, "int16", 2),
    (Dtype::U16, "uint16", 2),
    (Dtype::F16, "float16", 2),
    (Dtype::Bf16, "bfloat16", 2),
    (Dtype::I32, "int32", 4),
    (Dtype::U32, "uint32", 4),
    (Dtype::F32, "float32", 4),
    (Dtype::C64, "complex64", 8),
    (Dtype::F64, "float64", 8),
    (Dtype::I64, "int64", 8),
];

fn engine() -> Engine {
    Engine::builder().gpu(GpuUse::Off).build().unwrap()
}

fn dcp(file_len_max_bytes: Option<u64>) -> SaveOptions {
    SaveOptions { layout: Layout::Dcp(DcpOptions { file_len_max_bytes }), ..SaveOptions::default() }
}

#[test]
fn torch_reads_every_type_and_shape_that_we_write() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "dcp-types");
    let (engine, mut specs, mut want) = (engine(), Vec::new(), BTreeMap::new());
    for (dtype, name, element) in TORCH {
        for (part, shape) in [vec![], vec![3, 5], vec![0, 7], vec![200, 1, 173], vec![300, 257]].into_iter().enumerate()
        {
            let name = (format!("m.{part} \"ü\"\n{name}"), name);
            let bytes = bytes_of(&name.0, shape.iter().product::<u64>() * element);
            want.insert(name.0.clone(), json!({"dtype": name.1, "shape": shape, "sha256": hex(&bytes)}));
            specs.push((TensorSpec { name: name.0, dtype, shape }, bytes));
        }
    }
    run(&python, "object", &scratch.path("seven.pt"));
    let seven = fs::read(scratch.path("seven.pt")).unwrap();
    let saver = Saver::new(&engine, SaverOptions::default()).unwrap();
    for (round, max) in [None, Some(1 << 20)].into_iter().enumerate() {
        let tensors = specs.iter().map(|(spec, bytes)| NewTensor::new(spec.clone(), Bytes::Source(bytes))).collect();
        let contents = Contents { tensors, objects: vec![("step".to_owned(), seven.clone())] };
        let target = scratch.path(&format!("round-{round}"));
        let saved = saver.save(&target, contents, &dcp(max)).unwrap().wait().unwrap();
        assert_eq!(saved.files.last().map(String::as_str), Some(CHECKSUMS_FILE));
        let answer = run(&python, "read", &target);
        println!("torch {} on the other side, {} files", answer["version"], saved.files.len());
        assert_eq!(answer["tensors"], json!(want));
        assert_eq!((&answer["objects"], &answer["aligned"]), (&json!({"step": 7}), &json!(true)));
    }
    let names = run(&python, "single", &scratch.path("round-0"));
    assert_eq!(names["names"].as_array().unwrap().len(), want.len() + 1);
}

#[test]
fn torch_reads_a_tensor_that_ranks_hold_together() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "dcp-ranks");
    let (engine, target) = (engine(), scratch.path("model"));
    let saver = Saver::new(&engine, SaverOptions::default()).unwrap();
    let whole = bytes_of("w", 7 * 1000 * 4);
    let pending = PendingCheckpoint::begin(&target, IfExists::Refuse).unwrap();
    let mut parts = Vec::new();
    for (number, rows) in [(0, 0..3_usize), (1, 3..7)] {
        let bytes = whole[rows.start * 4000..rows.end * 4000].to_vec();
        let count = u64::try_from(rows.len()).unwrap();
        let spec = TensorSpec { name: "w".to_owned(), dtype: Dtype::F32, shape: vec![count, 1000] };
        let slice = Slice { whole: vec![7, 1000], offsets: vec![u64::try_from(rows.start).unwrap(), 0] };
        let replicated = bytes_of("both", 40);
        let both = TensorSpec { name: "both".to_owned(), dtype: Dtype::I64, shape: vec![5] };
        let tensors = vec![
            NewTensor { spec, slice: Some(slice), bytes: Bytes::Source(&bytes) },
            NewTensor::new(both, Bytes::Source(&replicated)),
        ];
        let joined = PendingCheckpoint::join(pending.directory()).unwrap();
        let prepared = saver.prepare(&joined, Rank { number, of: 2 }, tensors.into(), &dcp(None)).unwrap();
        parts.push(prepared.wait().unwrap().part);
    }
    assert_eq!(parts[1].entries().map(|entry| entry.file.to_owned()).collect::<Vec<_>>(), ["__1_0.distcp"; 2]);
    let how = Commit { layout: dcp(None).layout, ..Commit::default() };
    commit(&engine, pending, parts, &how).unwrap();
    let answer = run(&python, "read", &target);
    assert_eq!(answer["tensors"]["w"], json!({"dtype": "float32", "shape": [7, 1000], "sha256": hex(&whole)}));
    assert_eq!(answer["tensors"]["both"]["sha256"], json!(hex(&bytes_of("both", 40))));
}
