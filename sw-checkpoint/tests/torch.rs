//! Checkpoints that PyTorch wrote, loaded with the digests that PyTorch tells; and files that must be refused.
//!
//! The committed ones are in `testdata/torch`. Where `target/pyenv/bin/python` has torch, it writes more of them.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use straightway::{Destination, Engine, ErrorKind, GpuUse, Uri};
use sw_checkpoint::{Checkpoint, Dtype, Format, Held, LeafValue, LoadOptions, Loaded, PlanError, Want, load};
use sw_testkit::scratch::Scratch;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn engine() -> Engine {
    Engine::builder().gpu(GpuUse::Off).build().unwrap()
}

fn at(path: &Path) -> Uri {
    Uri::from_path(path).unwrap()
}

fn hex(digest: [u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn told(loaded: &Loaded) -> BTreeMap<String, Value> {
    let entry = |tensor: &sw_checkpoint::LoadedTensor| {
        let digest = tensor.digest.map(hex);
        json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "sha256": digest})
    };
    loaded.tensors.iter().map(|tensor| (tensor.name.clone(), entry(tensor))).collect()
}

/// Loads every checkpoint of a folder that `make_torch.py` filled, and compares.
fn agrees(folder: &Path) -> usize {
    let engine = engine();
    let expected: Value = serde_json::from_slice(&fs::read(folder.join("expect.json")).unwrap()).unwrap();
    let mut tensors = 0;
    for (name, expected) in expected["checkpoints"].as_object().unwrap() {
        let expected: BTreeMap<String, Value> = serde_json::from_value(expected.clone()).unwrap();
        let options = LoadOptions { digest: true, ..LoadOptions::default() };
        let loaded = load(&engine, &at(&folder.join(name)), &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(told(&loaded), expected, "{name}");
        tensors += expected.len();
    }
    tensors
}

#[test]
fn what_torch_wrote_loads_with_the_digests_that_torch_tells() {
    assert!(agrees(&testdata("torch")) > 60);
}

#[test]
fn what_torch_writes_now_loads_with_the_digests_that_it_tells() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pyenv/bin/python");
    let probe = Command::new(&python).args(["-c", "import torch"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return println!("skipped: target/pyenv has no torch");
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "torch-now");
    let output = Command::new(&python).arg(testdata("make_torch.py")).arg(scratch.root()).arg("7").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(agrees(scratch.root()) > 60);
}

#[test]
fn formats_are_told_apart_and_leaves_are_listed() {
    let engine = engine();
    let open = |name: &str| Checkpoint::open(&engine, &at(&testdata("torch").join(name))).unwrap();
    for (name, format) in [
        ("views.pt", Format::Torch),
        ("dcp", Format::Dcp),
        ("dcp/.metadata", Format::Dcp),
        ("hf", Format::SafetensorsDcp),
    ] {
        assert_eq!(open(name).catalog().format(), format, "{name}");
    }
    let training = open("training.pt");
    let leaf = |name: &str| training.catalog().leaves().iter().find(|leaf| leaf.name == name).unwrap().value.clone();
    assert_eq!(leaf("epoch"), LeafValue::Int(3));
    assert_eq!(leaf("best"), LeafValue::Float(0.25));
    assert_eq!(leaf("name"), LeafValue::Text("näme".to_owned()));
    assert_eq!(leaf("none"), LeafValue::None);
    assert_eq!(leaf("flags.1"), LeafValue::Bool(false));
    assert_eq!(leaf("large"), LeafValue::Other("a whole number of 11 bytes".to_owned()));
    assert_eq!(leaf("torch.dtype"), LeafValue::Other("torch.float32".to_owned()));
    assert_eq!(leaf("empty"), LeafValue::Other("a dict of 0".to_owned()));
    let dcp = open("dcp");
    let step = dcp.catalog().leaves().iter().find(|leaf| leaf.name == "step").unwrap();
    assert!(matches!(step.value, LeafValue::Stored { len_bytes: 500.., .. }), "{step:?}");
    let rows = dcp.catalog().get("model.rows").unwrap();
    assert_eq!((rows.chunks().len(), dcp.catalog().files().len()), (4, 4));
}

#[test]
fn views_of_one_storage_share_bytes_and_memory() {
    let engine = engine();
    let checkpoint = Checkpoint::open(&engine, &at(&testdata("torch/views.pt"))).unwrap();
    let wants = ["base", "tail", "one"]
        .map(|name| Want::whole(checkpoint.catalog(), checkpoint.catalog().position(name).unwrap()).unwrap());
    let loaded = checkpoint.load(&engine, &wants, &LoadOptions::default()).unwrap();
    let read: u64 = loaded.files.iter().flat_map(|file| &file.ways).map(|way| way.path.bytes.total()).sum();
    // Whole blocks around 160 bytes.
    assert!(read <= 8192, "{read}");
    assert_eq!(loaded.tensors[0].place.unwrap().1 + 120, loaded.tensors[1].place.unwrap().1);
}

#[test]
fn a_view_that_is_not_contiguous_is_listed_and_refused() {
    let engine = engine();
    let checkpoint = Checkpoint::open(&engine, &at(&testdata("torch/strided.pt"))).unwrap();
    let catalog = checkpoint.catalog();
    assert!(matches!(catalog.get("turned").unwrap().held, Held::Refused(_)));
    assert_eq!(&*catalog.get("spread").unwrap().shape, [4, 3]);
    let whole = |name: &str| [Want::whole(catalog, catalog.position(name).unwrap()).unwrap()];
    let error = checkpoint.load(&engine, &whole("turned"), &LoadOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("contiguous"), "{error}");
    assert!(checkpoint.load(&engine, &whole("whole"), &LoadOptions::default()).is_ok());
}

/// Why a file is refused; `None` if it is not.
fn refusal(path: &Path) -> Option<String> {
    let error = Checkpoint::open(&engine(), &at(path)).err()?;
    assert_eq!(error.kind(), ErrorKind::BadFormat, "{error}");
    Some(error.to_string())
}

#[test]
fn hostile_files_are_refused_in_words_and_nothing_runs() {
    let marker = Path::new("/tmp/straightway-was-here");
    assert!(!marker.exists());
    for (name, word) in [
        ("os-system.pt", "system"),
        ("os-system-4.pt", "system"),
        ("compressed.pt", "compressed"),
        ("big-endian.pt", "byte order"),
        ("past-storage.pt", "does not fit its storage"),
        ("offset-past-storage.pt", "does not fit its storage"),
        ("no-storage.pt", "data/9"),
        ("other-length.pt", "does not fit its storage"),
        ("negative-shape.pt", "expected was a shape"),
        ("huge-shape.pt", "no length in whole bytes"),
        ("strides-missing.pt", "as many strides"),
        ("unknown-storage.pt", "QInt8Storage"),
        ("deep.pt", "nested deeper"),
        ("circle.pt", "nested deeper"),
        ("memo-bomb.pt", "values"),
        ("legacy.pt", "before version 1.6"),
    ] {
        let found = refusal(&testdata("hostile-torch").join(name)).unwrap_or_default();
        assert!(found.contains(word), "{name}: {found}");
    }
    // What is odd about these does no harm: a zip archive by Python's own module, and a tensor without contiguous bytes.
    for name in ["python-zip.pt", "sparse.pt"] {
        assert_eq!(refusal(&testdata("hostile-torch").join(name)), None, "{name}");
    }
    assert!(!marker.exists());
}

#[test]
fn a_file_cut_anywhere_is_refused_or_its_tensors_do_not_reach_past_it() {
    let whole = fs::read(testdata("torch/views.pt")).unwrap();
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "torch-cut");
    let path = scratch.path("cut.pt");
    let engine = engine();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let error = Checkpoint::open(&engine, &at(&path)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadFormat, "{len}: {error}");
    }
}

#[test]
fn a_dcp_metadata_cut_or_changed_anywhere_never_panics() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "dcp-cut");
    for entry in fs::read_dir(testdata("torch/dcp-one")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), scratch.root().join(entry.file_name())).unwrap();
    }
    let engine = engine();
    let path = scratch.path(".metadata");
    let whole = fs::read(&path).unwrap();
    assert!(Checkpoint::open(&engine, &at(scratch.root())).is_ok());
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(Checkpoint::open(&engine, &at(scratch.root())).is_err(), "{len}");
        let mut changed = whole.clone();
        changed[len] ^= 0x15;
        fs::write(&path, &changed).unwrap();
        drop(Checkpoint::open(&engine, &at(scratch.root())));
    }
}

#[test]
fn files_that_do_not_match_the_metadata_are_told() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "dcp-mixed");
    let copy = |from: &str, to: &str| fs::copy(testdata("torch/dcp").join(from), scratch.root().join(to)).unwrap();
    copy(".metadata", ".metadata");
    for name in ["__0_0.distcp", "__1_0.distcp", "__2_0.distcp", "__3_0.distcp"] {
        copy(name, name);
    }
    assert_eq!(refusal(scratch.root()), None);
    // A file of another rank, which is not the same length in front.
    copy("__3_0.distcp", "__0_0.distcp");
    let found = refusal(scratch.root()).unwrap();
    assert!(found.contains("__0_0.distcp"), "{found}");
    let whole = fs::read(testdata("torch/dcp/__0_0.distcp")).unwrap();
    fs::write(scratch.path("__0_0.distcp"), &whole[..whole.len() - 1]).unwrap();
    let found = refusal(scratch.root()).unwrap();
    assert!(found.contains("incomplete"), "{found}");
    fs::remove_file(scratch.path("__0_0.distcp")).unwrap();
    let error = Checkpoint::open(&engine(), &at(scratch.root())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// Slices of a tensor in chunks, into fresh and into given memory, are those of the whole.
#[test]
fn any_slice_of_a_sharded_tensor_is_that_of_the_whole() {
    let engine = engine();
    for folder in ["dcp", "hf"] {
        let checkpoint = Checkpoint::open(&engine, &at(&testdata("torch").join(folder))).unwrap();
        let prefix = if folder == "dcp" { "model." } else { "" };
        for (name, ranges) in [
            ("rows", vec![2..9, 0..7]),
            ("rows", vec![0..10, 3..5]),
            ("columns", vec![1..6, 2..9]),
            ("columns", vec![0..6, 0..9]),
            ("grid", vec![3..7, 1..6]),
            ("cube", vec![1..3, 1..7, 2..4]),
            ("cube", vec![0..3, 4..4, 0..5]),
        ] {
            let name = format!("{prefix}{name}");
            let catalog = checkpoint.catalog();
            let tensor = catalog.get(&name).unwrap();
            let whole = [Want::whole(catalog, catalog.position(&name).unwrap()).unwrap()];
            let loaded = checkpoint.load(&engine, &whole, &LoadOptions::default()).unwrap();
            let all = loaded.bytes_of(&engine, &loaded.tensors[0]).unwrap();
            let item = usize::try_from(tensor.dtype.bits() / 8).unwrap();
            let expected = cut(&all, &tensor.shape, &ranges, item);
            let want = [Want::slice(catalog, &name, &ranges).unwrap()];
            let sliced = checkpoint.load(&engine, &want, &LoadOptions::default()).unwrap();
            assert_eq!(sliced.bytes_of(&engine, &sliced.tensors[0]).unwrap(), expected, "{name} {ranges:?}");
            let memory = if expected.is_empty() {
                Vec::new()
            } else {
                vec![engine.allocate(Destination::Host, expected.len() as u64, 0).unwrap()]
            };
            let given = checkpoint.load_into(&engine, &want, memory, &LoadOptions::default()).unwrap();
            assert_eq!(given.bytes_of(&engine, &given.tensors[0]).unwrap(), expected, "{name} {ranges:?} given");
        }
    }
}

/// The obvious definition of a slice.
fn cut(all: &[u8], shape: &[u64], ranges: &[std::ops::Range<u64>], item: usize) -> Vec<u8> {
    let mut indices = vec![0_usize];
    for (dim, range) in shape.iter().zip(ranges) {
        let (dim, range) = (
            usize::try_from(*dim).unwrap(),
            usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap(),
        );
        indices = indices.into_iter().flat_map(|index| range.clone().map(move |at| index * dim + at)).collect();
    }
    indices.into_iter().flat_map(|index| all[index * item..(index + 1) * item].to_vec()).collect()
}

#[test]
fn another_type_shape_or_slice_than_there_is_is_told() {
    let engine = engine();
    let checkpoint = Checkpoint::open(&engine, &at(&testdata("torch/dcp"))).unwrap();
    let catalog = checkpoint.catalog();
    assert!(Want::expecting(catalog, "model.rows", Dtype::F32, &[10, 7]).is_ok());
    let code = |outcome: Result<Want, PlanError>| outcome.unwrap_err().code();
    assert_eq!(code(Want::expecting(catalog, "model.rows", Dtype::Bf16, &[10, 7])), "other-tensor");
    assert_eq!(code(Want::expecting(catalog, "model.rows", Dtype::F32, &[7, 10])), "other-tensor");
    assert_eq!(code(Want::expecting(catalog, "rows", Dtype::F32, &[10, 7])), "no-tensor");
    for ranges in [vec![0..11, 0..7], vec![], vec![0..1, 0..1, 0..1], vec![u64::MAX..u64::MAX, 0..1]] {
        assert_eq!(code(Want::slice(catalog, "model.rows", &ranges)), "outside-tensor");
    }
    let short = vec![engine.allocate(Destination::Host, 279, 0).unwrap()];
    let want = [Want::expecting(catalog, "model.rows", Dtype::F32, &[10, 7]).unwrap()];
    let error = checkpoint.load_into(&engine, &want, short, &LoadOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ApiMisuse);
}

/// A directory of Megatron's own writer, found by its tracker file or named itself.
#[test]
fn a_megatron_directory_is_loaded_with_its_common_values() {
    let engine = engine();
    for folder in ["megatron", "megatron/iter_0000007"] {
        let checkpoint = Checkpoint::open(&engine, &at(&testdata(folder))).unwrap();
        let catalog = checkpoint.catalog();
        assert_eq!(catalog.format(), Format::Megatron);
        assert!(catalog.writer().unwrap().starts_with("Megatron torch_dist 1"), "{:?}", catalog.writer());
        let loaded = load(&engine, checkpoint.at(), &LoadOptions::default()).unwrap();
        let bytes = |name: &str| {
            let tensor = loaded.tensors.iter().find(|tensor| tensor.name == name).unwrap();
            loaded.bytes_of(&engine, tensor).unwrap()
        };
        let weight: Vec<u8> = (0..24_u8).flat_map(|at| f32::from(at).to_le_bytes()).collect();
        assert_eq!(bytes("decoder.weight"), weight);
        assert_eq!(bytes("common.rng"), [0_i64, 1, 2].map(i64::to_le_bytes).concat());
        let leaf = |name: &str| catalog.leaves().iter().find(|leaf| leaf.name == name).map(|leaf| leaf.value.clone());
        assert_eq!(leaf("common.iteration"), Some(LeafValue::Int(7)));
        assert_eq!(leaf("common.lr"), Some(LeafValue::Float(0.1)));
        assert!(catalog.leaves().iter().any(|leaf| matches!(leaf.value, LeafValue::Stored { .. })));
    }
}
