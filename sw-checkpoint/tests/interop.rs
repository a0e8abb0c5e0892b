//! Files of ours read by the real `safetensors` package, and files of the package read by us, tensor by tensor.
//!
//! Needs `target/pyenv/bin/python` with `safetensors` and `numpy` (made by the developer commands); says so and skips
//! without it. The committed golden files keep the reading side tested then.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};
use sw_checkpoint::{Dtype, FileLayout, Header, LayoutOptions, TensorSpec, WritePlan};

/// The interpreter, or the reason to skip.
fn python() -> Result<PathBuf, String> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pyenv/bin/python");
    if !python.exists() {
        return Err("target/pyenv/bin/python is not there".to_owned());
    }
    let probe = Command::new(&python).args(["-c", "import safetensors, numpy"]).output();
    match probe {
        Ok(output) if output.status.success() => Ok(python),
        Ok(_) => Err("target/pyenv has no safetensors or no numpy".to_owned()),
        Err(error) => Err(format!("target/pyenv/bin/python does not start: {error}")),
    }
}

fn run(python: &Path, args: &[&str]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop.py");
    let output = Command::new(python).arg(script).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("safetensors {} on the other side", answer["version"]);
    answer
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// What a header and its file's bytes say, in the words of `interop.py`.
fn describe(bytes: &[u8]) -> Value {
    let header = Header::from_head(bytes, bytes.len() as u64).unwrap();
    let tensors: BTreeMap<&str, Value> = header
        .tensors()
        .iter()
        .map(|t| {
            let range = usize::try_from(t.file_offset).unwrap()..usize::try_from(t.file_end()).unwrap();
            let entry = serde_json::json!({"dtype": t.dtype.name(), "shape": t.shape, "sha256": sha256(&bytes[range])});
            (&*t.name, entry)
        })
        .collect();
    serde_json::json!({"metadata": header.metadata(), "tensors": tensors})
}

/// Head and pseudo-random tensor bytes.
fn file_bytes(file: &FileLayout) -> Vec<u8> {
    let mut bytes = file.head.clone();
    for tensor in &file.tensors {
        assert_eq!(tensor.file_offset, bytes.len() as u64);
        bytes.extend((0..tensor.len_bytes).map(|i| (i * 31 + tensor.spec as u64 * 7 + 3).to_le_bytes()[0]));
    }
    assert_eq!(bytes.len() as u64, file.len_bytes);
    bytes
}

fn specs() -> Vec<TensorSpec> {
    let mut specs = Vec::new();
    for (at, dtype) in Dtype::ALL.into_iter().enumerate() {
        for (part, shape) in [vec![4, 2], vec![], vec![0, 3], vec![1, 8, 1 + at as u64]].into_iter().enumerate() {
            // One element of a 4- or 6-bit type is no whole byte.
            if shape.is_empty() && dtype.bits() < 8 {
                continue;
            }
            specs.push(TensorSpec { name: format!("t{part}.\"{dtype}\"\\ü\n"), dtype, shape });
        }
    }
    specs
}

#[test]
fn the_package_reads_our_files() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let folder = folder("interop-ours");
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("é\"".to_owned(), "\u{1}\\".to_owned())]);
    let whole = LayoutOptions { metadata, ..LayoutOptions::default() };
    let sharded = LayoutOptions { shard_len_max_bytes: Some(400), stem: "cut".to_owned(), ..whole.clone() };
    let empty = LayoutOptions { stem: "none".to_owned(), ..LayoutOptions::default() };
    let mut want = BTreeMap::new();
    for (specs, options) in [(specs(), whole), (specs(), sharded), (Vec::new(), empty)] {
        let plan = WritePlan::new(&specs, &options).unwrap();
        for file in &plan.files {
            let path = folder.join(&file.name);
            let bytes = file_bytes(file);
            fs::write(&path, &bytes).unwrap();
            want.insert(path.to_str().unwrap().to_owned(), describe(&bytes));
        }
    }
    assert!(want.len() > 4, "the sharded plan has several files");
    let paths: Vec<&str> = want.keys().map(String::as_str).collect();
    let answer = run(&python, &[&["read"], &paths[..]].concat());
    for (path, ours) in &want {
        assert_eq!(&answer["files"][path], ours, "{path}");
    }
}

#[test]
fn we_read_files_of_the_package() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let folder = folder("interop-theirs");
    for seed in ["1", "2", "3"] {
        let answer = run(&python, &["write", folder.to_str().unwrap(), seed]);
        let files = answer["files"].as_object().unwrap();
        assert_eq!(files.len(), 12);
        for (path, theirs) in files {
            assert_eq!(&describe(&fs::read(path).unwrap()), theirs, "{path}");
        }
    }
}
