//! `checkpoint` and `load` over files that PyTorch and Megatron wrote: what they print, and how they end.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::Scratch;

/// Files of other people's software, of the crate that reads them.
fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sw-checkpoint/testdata").join(name)
}

fn text(name: &str) -> String {
    testdata(name).to_str().unwrap().to_owned()
}

/// What `load --digest` tells of each tensor.
fn loaded(scratch: &Scratch, checkpoint: &str) -> BTreeMap<String, Value> {
    let lines = scratch.run(&["load", checkpoint, "--digest", "--json"]).ok().json();
    let tensors = lines.iter().filter(|line| line["schema"] == "straightway.load.tensor/1");
    let told = |line: &Value| {
        let rest = json!({"dtype": line["dtype"], "shape": line["shape"], "sha256": line["sha256"]});
        (line["name"].as_str().unwrap().to_owned(), rest)
    };
    tensors.map(told).collect()
}

/// Writes a copy with one byte of the middle changed.
fn damaged(scratch: &Scratch, from: &str, at: usize) -> &'static str {
    let mut bytes = fs::read(testdata(from)).unwrap();
    bytes[at] ^= 4;
    fs::write(scratch.path("damaged.pt"), bytes).unwrap();
    "damaged.pt"
}

/// Where the bytes of a tensor begin in the file of `torch.save` that holds them.
fn first_byte(scratch: &Scratch, checkpoint: &str, tensor: &str) -> usize {
    let lines = scratch.run(&["checkpoint", "show", checkpoint, "--json"]).ok().json();
    let of_it = lines.iter().find(|line| line["name"] == tensor && line.get("dtype").is_some()).unwrap();
    usize::try_from(of_it["chunks"][0]["file_offset"].as_u64().unwrap()).unwrap()
}

#[test]
fn files_of_torch_load_with_the_digests_that_torch_tells() {
    let scratch = Scratch::new();
    let expected: Value = serde_json::from_slice(&fs::read(testdata("torch/expect.json")).unwrap()).unwrap();
    let expected = expected["checkpoints"].as_object().unwrap();
    // Files of `torch.save`, a directory of DCP, and one of its export for Hugging Face.
    for name in ["views.pt", "training.pt", "dcp", "hf"] {
        assert!(expected.contains_key(name), "{name}");
    }
    for (name, expected) in expected {
        let wanted: BTreeMap<String, Value> = serde_json::from_value(expected.clone()).unwrap();
        assert_eq!(loaded(&scratch, &text(&format!("torch/{name}"))), wanted, "{name}");
    }
}

#[test]
fn a_directory_of_megatron_loads() {
    let scratch = Scratch::new();
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let weight: Vec<u8> = (0..24_u8).flat_map(|at| f32::from(at).to_le_bytes()).collect();
    for folder in ["megatron", "megatron/iter_0000007"] {
        let tensors = loaded(&scratch, &text(folder));
        assert_eq!(tensors["decoder.weight"]["sha256"], hex(&weight), "{folder}");
        assert_eq!(tensors["common.rng"]["sha256"], hex(&[0_i64, 1, 2].map(i64::to_le_bytes).concat()), "{folder}");
    }
}

#[test]
fn verify_ends_with_its_code_if_a_checksum_does_not_agree() {
    let scratch = Scratch::new();
    for whole in ["torch/views.pt", "torch/dcp", "torch/hf", "megatron"] {
        scratch.run(&["checkpoint", "verify", &text(whole)]).ok();
    }
    let at = first_byte(&scratch, &text("torch/views.pt"), "base");
    let path = damaged(&scratch, "torch/views.pt", at);
    scratch.run(&["checkpoint", "verify", path]).fails(6, &["damaged.pt", "crc32", "stored is", "; "]);
    let ran = scratch.run(&["checkpoint", "verify", path, "--json"]);
    let json = ran.json();
    let (last, report) = (json.last().unwrap(), &json[json.len() - 2]);
    assert_eq!((ran.code, last["exit"].as_u64(), &last["kind"]), (Some(6), Some(6), &json!("checksum_mismatch")));
    assert_eq!((&report["schema"], &report["mismatches"]), (&json!("straightway.checkpoint.verify/1"), &json!(1)));
    // What is no checkpoint any more, and what is not there, end with other codes.
    let whole = fs::read(testdata("torch/views.pt")).unwrap();
    fs::write(scratch.path("cut.pt"), &whole[..whole.len() - 1]).unwrap();
    scratch.run(&["checkpoint", "verify", "cut.pt"]).fails(11, &["cut.pt", "; "]);
    scratch.run(&["checkpoint", "verify", "absent.pt"]).fails(3, &["absent.pt"]);
}

#[test]
fn diff_ends_with_its_code_if_a_tensor_is_not_the_same() {
    let scratch = Scratch::new();
    let views = text("torch/views.pt");
    scratch.run(&["checkpoint", "diff", &views, &views]).ok();
    let path = damaged(&scratch, "torch/views.pt", first_byte(&scratch, &views, "base") + 3);
    scratch.run(&["checkpoint", "diff", &views, path]).fails(1, &["not the same"]);
    let json = scratch.run(&["checkpoint", "diff", &views, path, "--json"]).json();
    let base = json.iter().find(|line| line["name"] == "base").unwrap();
    assert_eq!((&base["difference"], base["first_byte"].as_u64()), (&json!("bytes"), Some(3)));
    scratch.run(&["checkpoint", "diff", &views, &text("torch/bare.pt")]).fails(1, &["not the same"]);
    scratch.run(&["checkpoint", "diff", &views, "absent.pt"]).fails(3, &["absent.pt"]);
}

#[test]
fn what_was_converted_by_command_is_the_same() {
    let scratch = Scratch::new();
    for (from, to) in [
        ("torch/dcp", "safetensors"),
        ("torch/hf", "dcp"),
        ("torch/training.pt", "safetensors"),
        ("megatron", "safetensors"),
    ] {
        let out = format!("{}-{to}", from.replace('/', "-"));
        scratch.run(&["checkpoint", "convert", &text(from), "--to", to, "--out", &out]).ok();
        scratch.run(&["checkpoint", "diff", &text(from), &out]).ok();
        scratch.run(&["checkpoint", "verify", &out]).ok();
        // What is there is not replaced.
        let again = ["checkpoint", "convert", &text("torch/bare.pt"), "--to", to, "--out", &out];
        scratch.run(&again).fails(10, &[&out, "; "]);
        scratch.run(&["checkpoint", "diff", &text(from), &out]).ok();
    }
}
