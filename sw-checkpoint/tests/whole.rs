//! Whole checkpoints: verified, compared, converted; very many tensors, and a file that is too large to be read.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use straightway::{Engine, Error, GpuUse, Uri};
use sw_checkpoint::{
    Checkpoint, DcpOptions, Difference, Dtype, Layout, LayoutOptions, LoadLimits, LoadOptions, LoadPlan, Mismatch,
    Pattern, TensorSpec, Verified, Want, WritePlan, load,
};
use sw_testkit::scratch::Scratch;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn engine() -> Engine {
    Engine::builder().gpu(GpuUse::Off).build().unwrap()
}

fn open(engine: &Engine, path: &Path) -> Checkpoint {
    Checkpoint::open(engine, &Uri::from_path(path).unwrap()).unwrap()
}

fn scratch(tag: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag)
}

fn verified(engine: &Engine, path: &Path) -> Vec<Verified> {
    let mut all = Vec::new();
    open(engine, path)
        .verify(engine, |file| {
            all.push(file);
            Ok::<(), Error>(())
        })
        .unwrap();
    all
}

#[test]
fn every_byte_is_read_and_every_stored_checksum_agrees() {
    let engine = engine();
    for (name, files, least) in [("views.pt", 1, 8), ("training.pt", 1, 20), ("dcp", 4, 100), ("hf", 4, 0)] {
        let path = testdata("torch").join(name);
        let all = verified(&engine, &path);
        assert_eq!(all.len(), files, "{name}");
        assert!(all.iter().map(|file| file.checksums).sum::<u64>() >= least, "{name}");
        assert!(all.iter().all(|file| file.mismatches.is_empty()), "{name} {all:?}");
        for file in &all {
            let on_disk = if path.is_dir() { path.join(&file.name) } else { path.clone() };
            assert_eq!(file.read_bytes, fs::metadata(on_disk).unwrap().len(), "{name}");
        }
    }
}

#[test]
fn a_flipped_bit_of_any_storage_is_found_and_placed() {
    let (engine, scratch) = (engine(), scratch("flipped"));
    let whole = fs::read(testdata("torch/views.pt")).unwrap();
    let path = scratch.path("flipped.pt");
    let checkpoint = open(&engine, &testdata("torch/views.pt"));
    for tensor in checkpoint.catalog().tensors() {
        let at = tensor.chunks()[0].file_offset + tensor.len_bytes / 2;
        let mut bytes = whole.clone();
        bytes[usize::try_from(at).unwrap()] ^= 4;
        fs::write(&path, &bytes).unwrap();
        let all = verified(&engine, &path);
        let [Mismatch { what, file_offset, len_bytes, .. }] = all[0].mismatches.as_slice() else { panic!("{all:?}") };
        assert!(what.contains("/data/") && (*file_offset..file_offset + len_bytes).contains(&at), "{all:?}");
    }
    let mut blob = fs::read(testdata("torch/dcp/__1_0.distcp")).unwrap();
    for name in [".metadata", "__0_0.distcp", "__2_0.distcp", "__3_0.distcp"] {
        fs::copy(testdata("torch/dcp").join(name), scratch.path(name)).unwrap();
    }
    let dcp = open(&engine, &testdata("torch/dcp"));
    let chunk = dcp.catalog().get("model.rows").unwrap().chunks()[1].clone();
    blob[usize::try_from(chunk.file_offset).unwrap()] ^= 1;
    fs::write(scratch.path("__1_0.distcp"), &blob).unwrap();
    fs::remove_file(&path).unwrap();
    let all = verified(&engine, scratch.root());
    assert_eq!(all.iter().map(|file| file.mismatches.len()).sum::<usize>(), 1, "{all:?}");
    assert_eq!(all[1].mismatches[0].file_offset, chunk.file_offset);
}

fn differences(engine: &Engine, a: &Path, b: &Path) -> (u64, BTreeMap<String, Difference>) {
    let mut all = BTreeMap::new();
    let (a, b) = (open(engine, a), open(engine, b));
    let same = a.diff(engine, &b, |name, difference| {
        all.insert(name.to_owned(), difference);
        Ok::<(), Error>(())
    });
    (same.unwrap(), all)
}

/// Converts everything, and gives the directory's checkpoint.
fn converted(engine: &Engine, from: &Path, to: &Path, pattern: &str, layout: &Layout) -> Vec<String> {
    let checkpoint = open(engine, from);
    let wants = checkpoint.wants(&Pattern::parse(pattern).unwrap()).unwrap();
    let positions: Vec<usize> = wants.iter().map(|want| want.tensor).collect();
    let (mut told, wanted) = (0, wants.iter().filter_map(|want| want.len_bytes(checkpoint.catalog())).sum::<u64>());
    let step = |bytes| {
        told += bytes;
        Ok::<(), Error>(())
    };
    let done = checkpoint.convert(engine, &positions, (to, layout), step).unwrap();
    assert_eq!((done.tensors, told), (positions.len() as u64, wanted));
    done.files
}

fn safetensors(shard: Option<u64>) -> Layout {
    LayoutOptions { shard_len_max_bytes: shard, ..LayoutOptions::default() }.into()
}

#[test]
fn what_is_converted_is_the_same_in_the_other_format() {
    let engine = engine();
    for (name, layout, files) in [
        ("views.pt", safetensors(None), 2),
        ("training.pt", safetensors(None), 2),
        ("dcp", safetensors(Some(200)), 4),
        ("hf", safetensors(None), 2),
        ("dcp-one", safetensors(None), 2),
        ("views.pt", Layout::Dcp(DcpOptions::default()), 3),
        ("dcp", Layout::Dcp(DcpOptions { file_len_max_bytes: Some(200) }), 4),
        ("hf", Layout::Dcp(DcpOptions::default()), 3),
    ] {
        let scratch = scratch("converted");
        let from = testdata("torch").join(name);
        let written = converted(&engine, &from, scratch.root(), "*", &layout);
        assert!(if files > 3 { written.len() > 3 } else { written.len() == files }, "{name} {written:?}");
        let (same, all) = differences(&engine, &from, scratch.root());
        assert!(all.is_empty() && same > 0, "{name} {all:?}");
        let checked = verified(&engine, scratch.root());
        assert!(checked.iter().all(|file| file.checked_bytes == file.read_bytes && file.mismatches.is_empty()));
        let other = |checkpoint: &Checkpoint| checkpoint.catalog().leaves().len();
        if matches!(layout, Layout::Dcp(_)) && name == "dcp" {
            assert_eq!(other(&open(&engine, scratch.root())), other(&open(&engine, &from)), "{name}");
        }
    }
}

#[test]
fn a_tensor_longer_than_a_batch_and_many_small_ones_are_converted() {
    let (engine, scratch) = (engine(), scratch("batches"));
    let mut specs = vec![TensorSpec { name: "long".to_owned(), dtype: Dtype::U8, shape: vec![70 << 10, 1 << 10] }];
    specs.extend((0..100).map(|at| TensorSpec {
        name: format!("small.{at}"),
        dtype: if at % 2 == 0 { Dtype::F32 } else { Dtype::Bf16 },
        shape: vec![at, 1 << 10],
    }));
    let plan = WritePlan::new(&specs, &LayoutOptions::default()).unwrap();
    let mut bytes = plan.files[0].head.clone();
    let head = bytes.len();
    bytes.extend((head..usize::try_from(plan.files[0].len_bytes).unwrap()).map(|at| (at / 997 % 251).to_le_bytes()[0]));
    let from = scratch.path("from.safetensors");
    fs::write(&from, bytes).unwrap();
    for (name, layout) in [("dcp", Layout::Dcp(DcpOptions::default())), ("shards", safetensors(Some(20 << 20)))] {
        converted(&engine, &from, &scratch.path(name), "*", &layout);
        let (same, all) = differences(&engine, &from, &scratch.path(name));
        assert!(all.is_empty() && same == 101, "{name} {all:?}");
    }
}

#[test]
fn a_step_that_fails_leaves_nothing_behind() {
    let (engine, scratch) = (engine(), scratch("stopped"));
    let checkpoint = open(&engine, &testdata("torch/dcp"));
    let stop = |_: u64| Err(Error::new(straightway::ErrorKind::Cancelled, straightway::Verb::Copy));
    let outcome = checkpoint.convert(&engine, &[0, 1], (scratch.root(), &Layout::default()), stop);
    assert_eq!(outcome.unwrap_err().kind(), straightway::ErrorKind::Cancelled);
    assert_eq!(fs::read_dir(scratch.root()).unwrap().count(), 0);
}

#[test]
fn differences_are_named() {
    let engine = engine();
    let (same, all) = differences(&engine, &testdata("torch/dcp"), &testdata("torch/hf"));
    assert_eq!(same, 0);
    assert!(all.values().all(|difference| matches!(difference, Difference::OnlyInFirst | Difference::OnlyInSecond)));
    let scratch = scratch("different");
    let from = testdata("torch/views.pt");
    converted(&engine, &from, scratch.root(), "base,tail,rows", &safetensors(None));
    let path = scratch.path("model.safetensors");
    let at = open(&engine, &path).catalog().get("tail").unwrap().chunks()[0].file_offset;
    let mut bytes = fs::read(&path).unwrap();
    bytes[usize::try_from(at).unwrap() + 7] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (same, all) = differences(&engine, &from, &path);
    assert_eq!((same, &all["tail"]), (2, &Difference::Bytes { first: 7 }));
    assert_eq!(all["one"], Difference::OnlyInFirst);
    let (_, all) = differences(&engine, &testdata("torch/strided.pt"), &testdata("torch/strided.pt"));
    assert!(matches!(all["turned"], Difference::Unknown { .. }));
}

#[test]
fn a_sparse_file_of_a_hundred_gigabytes_is_planned_without_being_read() {
    let (engine, scratch) = (engine(), scratch("sparse"));
    let specs = [TensorSpec { name: "huge".to_owned(), dtype: Dtype::F32, shape: vec![25_000, 1 << 20] }];
    let plan = WritePlan::new(&specs, &LayoutOptions::default()).unwrap();
    let path = scratch.path("huge.safetensors");
    fs::write(&path, &plan.files[0].head).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(plan.files[0].len_bytes).unwrap();
    let checkpoint = open(&engine, &path);
    let whole = [Want::whole(checkpoint.catalog(), 0).unwrap()];
    let totals = LoadPlan::new(checkpoint.catalog(), &whole, LoadLimits::default()).unwrap().totals();
    assert_eq!(totals.tensor_bytes, 25_000 << 22);
    // A column: one short run a row, gathered; a row: one range.
    let column = [Want::slice(checkpoint.catalog(), "huge", &[0..25_000, 7..8]).unwrap()];
    let plan = LoadPlan::new(checkpoint.catalog(), &column, LoadLimits::default()).unwrap();
    assert_eq!((plan.extents().len(), plan.gathers().len(), plan.totals().read_bytes), (0, 1, 100_000));
    let row = [Want::slice(checkpoint.catalog(), "huge", &[24_999..25_000, 0..1000]).unwrap()];
    let loaded = checkpoint.load(&engine, &row, &LoadOptions::default()).unwrap();
    assert_eq!(loaded.bytes_of(&engine, &loaded.tensors[0]).unwrap(), vec![0; 4000]);
}

#[test]
fn ten_thousand_tensors_are_one_read() {
    let (engine, scratch) = (engine(), scratch("many"));
    let specs: Vec<TensorSpec> = (0..10_000)
        .map(|at| TensorSpec { name: format!("layer.{at}.weight"), dtype: Dtype::Bf16, shape: vec![4, at % 5] })
        .collect();
    let plan = WritePlan::new(&specs, &LayoutOptions::default()).unwrap();
    let file = &plan.files[0];
    let mut bytes = file.head.clone();
    bytes.resize(usize::try_from(file.len_bytes).unwrap(), 3);
    fs::write(scratch.path("many.safetensors"), bytes).unwrap();
    let loaded = load(&engine, &Uri::from_path(scratch.root()).unwrap(), &LoadOptions::default()).unwrap();
    assert_eq!(loaded.tensors.len(), 10_000);
    let reads: u64 = loaded.files.iter().flat_map(|file| &file.ways).map(|way| way.reads).sum();
    assert_eq!(reads, 1);
}
