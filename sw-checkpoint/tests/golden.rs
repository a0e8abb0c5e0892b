//! Files of the real `safetensors` package, and hostile ones with the error each must give (`testdata/README.md`).

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

use std::path::{Path, PathBuf};

use sw_checkpoint::{
    Catalog, CatalogError, Dtype, Header, HeaderError, HeaderSpan, LoadLimits, LoadPlan, Pattern, Shard, ShardIndex,
    TensorSpec, Want, WritePlan,
};

fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(path)
}

fn golden(name: &str) -> (Vec<u8>, Header) {
    let bytes = std::fs::read(testdata("golden").join(name)).unwrap();
    let header = Header::from_head(&bytes, bytes.len() as u64).unwrap();
    (bytes, header)
}

fn data<'a>(bytes: &'a [u8], header: &Header, name: &str) -> &'a [u8] {
    let tensor = header.get(name).unwrap_or_else(|| panic!("no tensor {name}"));
    &bytes[usize::try_from(tensor.file_offset).unwrap()..usize::try_from(tensor.file_end()).unwrap()]
}

/// The bytes that `make.py` puts into a tensor.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 37 + 11) % 251).unwrap()).collect()
}

#[test]
fn every_numpy_dtype_is_read() {
    let (bytes, header) = golden("numpy-dtypes.safetensors");
    let names = [
        ("bool", Dtype::Bool),
        ("uint8", Dtype::U8),
        ("int8", Dtype::I8),
        ("uint16", Dtype::U16),
        ("int16", Dtype::I16),
        ("float16", Dtype::F16),
        ("uint32", Dtype::U32),
        ("int32", Dtype::I32),
        ("float32", Dtype::F32),
        ("uint64", Dtype::U64),
        ("int64", Dtype::I64),
        ("float64", Dtype::F64),
        ("complex64", Dtype::C64),
    ];
    assert_eq!(header.tensors().len(), names.len());
    for (name, dtype) in names {
        let name = format!("t.{name}");
        let tensor = header.get(&name).unwrap();
        assert_eq!((tensor.dtype, &*tensor.shape), (dtype, &[2, 3][..]), "{name}");
        let mut want = pattern(6 * usize::try_from(dtype.bits() / 8).unwrap());
        if dtype == Dtype::Bool {
            want.iter_mut().for_each(|byte| *byte &= 1);
        }
        assert_eq!(data(&bytes, &header, &name), want, "{name}");
    }
    assert_eq!(header.metadata()["note"], "naïve \"quoted\" \\ text");
    assert_eq!(header.metadata()["format"], "np");
}

#[test]
fn raw_dtypes_are_read() {
    let (bytes, header) = golden("raw-dtypes.safetensors");
    let names = [
        ("bfloat16", Dtype::Bf16, [2, 2], 8),
        ("float8_e4m3fn", Dtype::F8E4m3, [2, 2], 4),
        ("float8_e5m2", Dtype::F8E5m2, [2, 2], 4),
        ("float8_e8m0fnu", Dtype::F8E8m0, [2, 2], 4),
        ("float8_e4m3fnuz", Dtype::F8E4m3Fnuz, [2, 2], 4),
        ("float8_e5m2fnuz", Dtype::F8E5m2Fnuz, [2, 2], 4),
        ("float4_e2m1fn_x2", Dtype::F4, [2, 4], 4),
    ];
    assert_eq!(header.tensors().len(), names.len());
    for (name, dtype, shape, len) in names {
        let name = format!("raw.{name}");
        let tensor = header.get(&name).unwrap();
        assert_eq!((tensor.dtype, &*tensor.shape), (dtype, &shape[..]), "{name}");
        assert_eq!(data(&bytes, &header, &name), pattern(len), "{name}");
    }
}

#[test]
fn scalars_empty_tensors_and_odd_names_are_read() {
    let (bytes, header) = golden("odd-shapes.safetensors");
    assert_eq!(&*header.get("scalar").unwrap().shape, [0_u64; 0]);
    assert_eq!(data(&bytes, &header, "scalar"), 7_i32.to_le_bytes());
    assert_eq!(header.get("empty").unwrap().len_bytes, 0);
    assert_eq!(&*header.get("empty.too").unwrap().shape, [3, 0]);
    assert_eq!(data(&bytes, &header, ""), [1]);
    assert_eq!(data(&bytes, &header, "ünï/cödé \n"), [0, 1, 2, 3, 4]);
    assert_eq!(header.get("deep").unwrap().shape.len(), 32);
    assert!(header.get("absent").is_none());
}

#[test]
fn a_file_without_tensors_is_read_and_planned() {
    let (_, header) = golden("no-tensors.safetensors");
    assert!(header.tensors().is_empty());
    let catalog = Catalog::single("no-tensors.safetensors".to_owned(), header);
    let plan =
        LoadPlan::new(&catalog, &Want::matching(&catalog, &Pattern::all()).unwrap(), LoadLimits::default()).unwrap();
    assert_eq!((plan.regions().len(), plan.parts().count()), (0, 0));
}

/// Our layout of the same tensors is the package's own, but for the padding.
#[test]
fn tensor_order_is_that_of_the_package() {
    for name in ["numpy-dtypes.safetensors", "raw-dtypes.safetensors", "many.safetensors"] {
        let (_, header) = golden(name);
        let mut specs: Vec<TensorSpec> = header
            .tensors()
            .iter()
            .map(|t| TensorSpec { name: t.name.to_string(), dtype: t.dtype, shape: t.shape.to_vec() })
            .collect();
        specs.reverse();
        let plan = WritePlan::new(&specs, &Default::default()).unwrap();
        let ours: Vec<&str> = plan.files[0].tensors.iter().map(|t| specs[t.spec].name.as_str()).collect();
        let theirs: Vec<&str> = header.tensors().iter().map(|t| &*t.name).collect();
        assert_eq!(ours, theirs, "{name}");
    }
}

fn sharded() -> (ShardIndex, Vec<Shard>) {
    let json = std::fs::read(testdata("golden/sharded.safetensors.index.json")).unwrap();
    let index = ShardIndex::parse(&json).unwrap();
    let shards = index.files().iter().map(|name| Shard { name: name.clone(), header: golden(name).1 }).collect();
    (index, shards)
}

#[test]
fn a_sharded_checkpoint_is_read() {
    let (index, mut shards) = sharded();
    shards.reverse();
    let catalog = Catalog::sharded(&index, shards).unwrap();
    assert_eq!(catalog.tensors().len(), 4);
    assert_eq!(catalog.claimed_len_bytes(), Some(catalog.tensor_len_bytes()));
    assert_eq!(catalog.get("block.2.a").map(|tensor| (tensor.file(), &*tensor.shape)), Some((Some(1), &[4, 2][..])));
}

#[test]
fn shards_that_disagree_with_the_index_are_refused() {
    let (index, shards) = sharded();
    let code = |shards: Vec<Shard>| Catalog::sharded(&index, shards).unwrap_err().code();
    assert_eq!(code(shards[..1].to_vec()), "missing-shard");
    assert_eq!(code(shards[1..].to_vec()), "missing-shard");
    assert_eq!(code([&shards[..], &shards[..1]].concat()), "unexpected-shard");
    let mut extra = shards.clone();
    extra.push(Shard { name: "zzz.safetensors".to_owned(), header: golden("many.safetensors").1 });
    assert_eq!(code(extra), "unexpected-shard");
    // Both names hold the first shard's tensors.
    let twice = vec![shards[0].clone(), Shard { name: shards[1].name.clone(), header: shards[0].header.clone() }];
    assert_eq!(code(twice), "wrong-shard");
    let other = vec![shards[0].clone(), Shard { name: shards[1].name.clone(), header: golden("many.safetensors").1 }];
    assert_eq!(code(other), "unlisted-tensor");
    let none =
        vec![shards[0].clone(), Shard { name: shards[1].name.clone(), header: golden("no-tensors.safetensors").1 }];
    let error = Catalog::sharded(&index, none).unwrap_err();
    assert!(matches!(error, CatalogError::MissingTensor { ref tensor, .. } if tensor == "block.2.a"), "{error}");
}

/// Checks each file of a hostile folder against the folder's table.
fn check_hostile(folder: &str, code_of: impl Fn(&[u8]) -> Result<(), (&'static str, String)>) {
    let table = std::fs::read_to_string(testdata(folder).join("expect.tsv")).unwrap();
    for line in table.lines() {
        let (name, want) = line.split_once('\t').unwrap();
        let bytes = std::fs::read(testdata(folder).join(name)).unwrap();
        let (code, message) = code_of(&bytes).expect_err(name);
        assert_eq!(code, want, "{name}: {message}");
    }
    let files = std::fs::read_dir(testdata(folder)).unwrap().count() - 1;
    assert_eq!(table.lines().count(), files, "files without an expectation in {folder}");
}

#[test]
fn each_hostile_file_gives_its_error() {
    check_hostile("hostile", |bytes| match Header::from_head(bytes, bytes.len() as u64) {
        Ok(_) => Ok(()),
        Err(error) => Err((error.code(), error.to_string())),
    });
}

#[test]
fn each_hostile_index_gives_its_error() {
    check_hostile("hostile-index", |bytes| match ShardIndex::parse(bytes) {
        Ok(_) => Ok(()),
        Err(error) => Err((error.code(), error.to_string())),
    });
}

#[test]
fn errors_say_what_where_and_what_to_do() {
    let read = |name: &str| {
        let bytes = std::fs::read(testdata("hostile").join(name)).unwrap();
        Header::from_head(&bytes, bytes.len() as u64).unwrap_err()
    };
    assert_eq!(
        read("hole-inside.safetensors").to_string(),
        "1 bytes before tensor \"b\" at byte 114 belong to no tensor; the format forbids holes, so write the file again"
    );
    assert_eq!(
        read("dtype-unknown.safetensors").to_string(),
        "tensor \"a\" has dtype \"F128\", which is not one that safetensors 0.8 defines; a newer straightway may know it, or convert the file"
    );
    assert_eq!(
        read("length-zero.safetensors").to_string(),
        "header is empty at byte 8, the format demands `{`; this is another format, or the file is damaged"
    );
    let error = read("shape-negative.safetensors");
    assert!(
        matches!(&error, HeaderError::Json { file_offset: 8..60, within: Some(name), .. } if name == "a"),
        "{error:?}"
    );
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn a_slice_of_the_wrong_length_is_misuse() {
    let span = HeaderSpan::new(2_u64.to_le_bytes(), 10).unwrap();
    assert_eq!(Header::parse(span, b"{} ").unwrap_err().code(), "wrong-slice");
    assert!(Header::parse(span, b"{}").is_ok());
}

/// 100,000 tensors: correctness here; the time is measured with `examples/show.rs` in release.
#[test]
fn a_hundred_thousand_tensors_are_read() {
    let specs: Vec<TensorSpec> = (0..100_000)
        .map(|i| TensorSpec {
            name: format!("model.layers.{i}.mlp.experts.down_proj.weight"),
            dtype: Dtype::Bf16,
            shape: vec![2, 3],
        })
        .collect();
    let plan = WritePlan::new(&specs, &Default::default()).unwrap();
    let file = &plan.files[0];
    let header = Header::from_head(&file.head, file.len_bytes).unwrap();
    assert_eq!(header.tensors().len(), specs.len());
    let catalog = Catalog::single(file.name.clone(), header);
    let plan =
        LoadPlan::new(&catalog, &Want::matching(&catalog, &Pattern::all()).unwrap(), LoadLimits::default()).unwrap();
    assert_eq!((plan.extents().len(), plan.views().len()), (1, specs.len()));
}
