//! `straightway load` of files that other people's software wrote: the `safetensors` package, and real weights that a
//! package on PyPI carries. The package itself says what is in them, digest by digest.
//!
//! Needs `target/pyenv` (made by the developer commands); says so and skips without it.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The interpreter, if it has the package.
fn python() -> Option<PathBuf> {
    let python = root().join("target/pyenv/bin/python");
    let found = Command::new(&python).args(["-c", "import safetensors, numpy"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    println!(
        "skipped: target/pyenv has no python with safetensors and numpy; `cargo xtask test --only interop` makes it"
    );
    None
}

fn script(python: &Path, args: &[&str]) -> Value {
    let output = Command::new(python).arg(root().join("sw-checkpoint/tests/interop.py")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Tensor name to dtype, shape and digest, as the command tells them.
fn loaded(path: &Path) -> BTreeMap<String, Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_straightway"))
        .args(["load", "--digest", "--json", path.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let tensors = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    tensors
        .filter(|line| line["schema"] == "straightway.load.tensor/1")
        .map(|line| {
            let entry = serde_json::json!({"dtype": line["dtype"], "shape": line["shape"], "sha256": line["sha256"]});
            (line["name"].as_str().unwrap().to_owned(), entry)
        })
        .collect()
}

fn agrees(python: &Path, path: &Path) -> usize {
    let answer = script(python, &["read", path.to_str().unwrap()]);
    let file = &answer["files"][path.to_str().unwrap()];
    let expected: BTreeMap<String, Value> = serde_json::from_value(file["tensors"].clone()).unwrap();
    assert_eq!(loaded(path), expected, "{}", path.display());
    expected.len()
}

#[test]
fn files_written_by_the_package_load_with_the_digests_that_it_tells() {
    let Some(python) = python() else { return };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("interop-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    script(&python, &["write", folder.to_str().unwrap(), "20261124"]);
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    let tensors: usize = files.map(|path| agrees(&python, &path)).sum();
    assert!(tensors > 50, "{tensors} tensors in twelve files");
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn real_weights_load_with_the_digests_that_the_package_tells() {
    let Some(python) = python() else { return };
    let libraries = fs::read_dir(root().join("target/pyenv/lib")).unwrap().map(|entry| entry.unwrap().path());
    let weights = libraries
        .map(|lib| lib.join("site-packages/silero_vad/data/silero_vad_16k.safetensors"))
        .find(|path| path.exists());
    let Some(weights) = weights else {
        println!("skipped: target/pyenv lacks the silero-vad package, which carries real weights");
        return;
    };
    assert_eq!(agrees(&python, &weights), 15);
}
