//! Save and load by the engine, on real files.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use straightway::{Destination, Engine, ErrorKind, GpuUse, Memory, Uri, parse_policy};
use sw_checkpoint::{Dtype, IfExists, LayoutOptions, LoadOptions, Pattern, SaveOptions, TensorSpec, load, save};
use sw_testkit::scratch::Scratch;

fn scratch(tag: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag)
}

fn engine() -> Engine {
    Engine::builder().gpu(GpuUse::Off).build().unwrap()
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// A tensor's bytes: a function of its name, so that a mix-up shows.
fn bytes_of(name: &str, len: usize) -> Vec<u8> {
    let seed: usize = name.bytes().map(usize::from).sum();
    (0..len).map(|at| (at * 13 + seed + at / 511).to_le_bytes()[0]).collect()
}

fn tensors(engine: &Engine) -> Vec<(TensorSpec, Memory)> {
    let specs = [
        ("embed", Dtype::F32, vec![1000, 300]),
        ("odd", Dtype::U8, vec![1, 333]),
        ("empty", Dtype::F16, vec![0, 5]),
        ("scalar", Dtype::F64, vec![]),
        ("layer.0.w", Dtype::Bf16, vec![700, 513]),
        ("layer.1.w", Dtype::Bf16, vec![700, 513]),
    ];
    let with_memory = |(name, dtype, shape): (&str, Dtype, Vec<u64>)| {
        let count: u64 = shape.iter().product();
        let len = count
            * match dtype {
                Dtype::U8 => 1,
                Dtype::F32 => 4,
                Dtype::F64 => 8,
                _ => 2,
            };
        let mut buffer = engine.allocate(Destination::Host, len.max(1), 0).unwrap().into_buffer().unwrap();
        let bytes = bytes_of(name, usize::try_from(len).unwrap());
        buffer.as_mut_slice()[..bytes.len()].copy_from_slice(&bytes);
        let (exact, _) = buffer.split_at(len).unwrap();
        (TensorSpec { name: name.into(), dtype, shape }, Memory::from(exact))
    };
    specs.into_iter().map(with_memory).collect()
}

#[test]
fn what_is_saved_is_loaded_single_and_sharded() {
    let engine = engine();
    for (name, shard) in [("single", None), ("sharded", Some(800_000))] {
        let scratch = scratch(name);
        let layout = LayoutOptions { shard_len_max_bytes: shard, ..LayoutOptions::default() };
        let saved = save(
            &engine,
            scratch.root(),
            tensors(&engine),
            &SaveOptions { layout: layout.into(), ..SaveOptions::default() },
        )
        .unwrap();
        assert_eq!(saved.files.len(), if shard.is_some() { 5 } else { 2 }, "checksums are a file too");
        assert_eq!(saved.memory.len(), 6);
        let left: Vec<_> = fs::read_dir(scratch.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), saved.files.len(), "{left:?}");
        let loaded =
            load(&engine, &at(scratch.root()), &LoadOptions { digest: true, ..LoadOptions::default() }).unwrap();
        assert_eq!(loaded.tensors.len(), 6);
        for tensor in &loaded.tensors {
            let expected = bytes_of(&tensor.name, usize::try_from(tensor.len_bytes).unwrap());
            assert!(loaded.bytes_of(&engine, tensor).unwrap() == expected, "{}", tensor.name);
            assert_eq!(tensor.digest.unwrap(), <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(&expected)));
        }
        let read: u64 = loaded.files.iter().flat_map(|file| &file.ways).map(|way| way.path.bytes.total()).sum();
        assert!(read >= loaded.tensor_bytes, "every byte has a way");
    }
}

#[test]
fn a_checkpoint_inside_a_larger_object_is_loaded_from_there() {
    let (engine, scratch) = (engine(), scratch("inside"));
    save(&engine, scratch.root(), tensors(&engine), &SaveOptions::default()).unwrap();
    let file = fs::read(scratch.path("model.safetensors")).unwrap();
    let image = scratch.path("image");
    fs::write(&image, [&vec![9; 12_345][..], &file, &[9; 777]].concat()).unwrap();
    let of = Box::new(at(&image));
    let part = Uri::Part { of, offset: 12_345, len: Some(file.len() as u64) };
    let loaded = load(&engine, &part, &LoadOptions::default()).unwrap();
    assert_eq!(loaded.tensors.len(), 6);
    for tensor in &loaded.tensors {
        let expected = bytes_of(&tensor.name, usize::try_from(tensor.len_bytes).unwrap());
        assert!(loaded.bytes_of(&engine, tensor).unwrap() == expected, "{}", tensor.name);
    }
}

#[test]
fn a_pattern_loads_only_what_it_names() {
    let (engine, scratch) = (engine(), scratch("pattern"));
    save(&engine, scratch.root(), tensors(&engine), &SaveOptions::default()).unwrap();
    let with = |pattern: &str| LoadOptions { tensors: Pattern::parse(pattern).unwrap(), ..LoadOptions::default() };
    let loaded = load(&engine, &at(scratch.root()), &with("layer.*")).unwrap();
    assert_eq!(
        loaded.tensors.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(),
        ["layer.0.w", "layer.1.w"]
    );
    assert_eq!(load(&engine, &at(scratch.root()), &with("nothing")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn files_of_the_real_package_are_loaded() {
    let engine = engine();
    let mut seen = 0;
    for entry in fs::read_dir(golden("golden")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let loaded = load(&engine, &at(&path), &LoadOptions::default()).unwrap();
            let whole = fs::read(&path).unwrap();
            let data: Vec<u8> =
                loaded.tensors.iter().flat_map(|tensor| loaded.bytes_of(&engine, tensor).unwrap()).collect();
            assert!(whole.ends_with(&data) && data.len() as u64 == loaded.tensor_bytes, "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 0);
}

#[test]
fn hostile_and_truncated_files_are_typed_errors() {
    let (engine, scratch) = (engine(), scratch("hostile"));
    save(&engine, scratch.root(), tensors(&engine), &SaveOptions::default()).unwrap();
    let whole = fs::read(scratch.path("model.safetensors")).unwrap();
    let path = scratch.path("cut.safetensors");
    for cut in [0, 1, 7, 8, 9, 100, 4096, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        assert_eq!(
            load(&engine, &at(&path), &LoadOptions::default()).unwrap_err().kind(),
            ErrorKind::BadFormat,
            "cut at {cut}"
        );
    }
    assert_eq!(
        load(&engine, &at(&scratch.path("none.safetensors")), &LoadOptions::default()).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let error = load(&engine, &at(scratch.root()), &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("2 safetensors files"), "{error}");
}

#[test]
fn a_policy_reaches_every_part_and_wrong_memory_is_refused() {
    let (engine, scratch) = (engine(), scratch("policy"));
    save(&engine, scratch.root(), tensors(&engine), &SaveOptions::default()).unwrap();
    let options = LoadOptions { policy: parse_policy("require=kernel-copy").unwrap(), ..LoadOptions::default() };
    let loaded = load(&engine, &at(scratch.root()), &options).unwrap();
    assert!(loaded.files[0].ways.iter().all(|way| way.path.route.landing == straightway::Landing::KernelCopy));
    let options = LoadOptions { policy: parse_policy("require=preadv2").unwrap(), ..LoadOptions::default() };
    assert_eq!(load(&engine, &at(scratch.root()), &options).unwrap_err().kind(), ErrorKind::PolicyUnmet);
    let mut wrong = tensors(&engine);
    wrong[0].0.shape = vec![1000, 301];
    let replace = SaveOptions { if_exists: IfExists::Replace, ..SaveOptions::default() };
    let error = save(&engine, scratch.root(), wrong, &replace).unwrap_err().error;
    assert_eq!(error.kind(), ErrorKind::ApiMisuse);
    assert!(load(&engine, &at(scratch.root()), &LoadOptions::default()).is_ok(), "the old checkpoint is still there");
}

/// The bytes of each tensor's memory that came back.
fn given_back(engine: &Engine, memory: &[Option<Memory>]) -> Vec<Vec<u8>> {
    memory.iter().map(|memory| engine.copy_to_host(memory.as_ref().unwrap()).unwrap()).collect()
}

#[test]
fn a_failed_save_gives_every_tensor_back() {
    let (engine, scratch) = (engine(), scratch("given-back"));
    let want: Vec<_> = tensors(&engine).iter().map(|(_, memory)| engine.copy_to_host(memory).unwrap()).collect();
    // Before anything is written: memory that is too short, and a layout that cannot be.
    let mut wrong = tensors(&engine);
    wrong[4].0.shape = vec![701, 513];
    let failed = save(&engine, scratch.root(), wrong, &SaveOptions::default()).unwrap_err();
    assert_eq!((failed.error.kind(), given_back(&engine, &failed.memory)), (ErrorKind::ApiMisuse, want.clone()));
    let mut twice = tensors(&engine);
    twice[1].0.name = "embed".into();
    let failed = save(&engine, scratch.root(), twice, &SaveOptions::default()).unwrap_err();
    assert_eq!(given_back(&engine, &failed.memory), want);
    // On the way: a policy that no write can meet.
    let policy = parse_policy("require=preadv2").unwrap();
    let failed = save(&engine, scratch.root(), tensors(&engine), &SaveOptions { policy, ..SaveOptions::default() });
    let failed = failed.unwrap_err();
    assert_eq!((failed.error.kind(), given_back(&engine, &failed.memory)), (ErrorKind::PolicyUnmet, want.clone()));
    let nowhere = scratch.path("none/model");
    let failed = save(&engine, &nowhere, tensors(&engine), &SaveOptions::default()).unwrap_err();
    assert_eq!((failed.error.kind(), given_back(&engine, &failed.memory)), (ErrorKind::NotFound, want));
    assert_eq!(fs::read_dir(scratch.root()).unwrap().count(), 0, "nothing is left behind");
}

fn at(path: &Path) -> Uri {
    Uri::from_path(path).unwrap()
}
