//! Samples that must be decoded, of files that other people's software wrote (`testdata/make.py`), found by an index.

use std::{collections::HashSet, fs, num::NonZeroUsize, ops::ControlFlow, path::Path, sync::Arc};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use straightway::Engine;
use sw_data::{
    decode::DecodeError,
    formats::Extent,
    index::{BuildOptions, Checksums, Index, build_in_memory},
    loader::{Dataset, Layout, LoadError, Loader, LoaderOptions, OnBad, PadTo, Why},
    order::Method,
    samples::{Format, Place, Samples as _},
    table::Table,
};
use sw_testkit::scratch::Scratch;

use crate::set::{entry, options};

fn testdata(name: &str) -> String {
    format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(testdata(name)).unwrap()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn index(engine: &Engine, sources: &[String], column: Option<&str>, checksums: Checksums) -> Arc<Index> {
    let options = BuildOptions { column, checksums, ..BuildOptions::new(NonZeroUsize::new(2).unwrap()) };
    Arc::new(build_in_memory(engine, sources, &options, &mut |_| ControlFlow::Continue(())).unwrap().1)
}

fn load(engine: &Engine, index: &Arc<Index>, options: LoaderOptions) -> Loader {
    Loader::new(engine, vec![Dataset::new(Arc::clone(index))], options, None).unwrap()
}

/// Every sample of an epoch, by number.
fn samples(loader: &Loader, len: u64) -> Vec<Vec<u8>> {
    let mut found = vec![None; usize::try_from(len).unwrap()];
    while let Some(batch) = loader.next_batch().unwrap() {
        for (at, id) in batch.ids().iter().enumerate() {
            let whole = batch.sample(at).unwrap();
            let before = found[usize::try_from(id.number).unwrap()].replace(whole.to_vec());
            assert!(before.is_none(), "{id} came twice");
        }
    }
    found.into_iter().map(|sample| sample.expect("every sample comes")).collect()
}

fn blocks(index: &Index) -> HashSet<(u32, Extent)> {
    let mut places = Vec::new();
    index.locate(&(0..index.len()).collect::<Vec<_>>(), &mut places).unwrap();
    places.iter().filter(|place| place.row.is_some()).map(|place| (place.object, place.extent)).collect()
}

#[test]
fn rows_of_parquet_are_those_that_pyarrow_reads() {
    let engine = Engine::builder().build().unwrap();
    let names =
        fs::read_dir(testdata("parquet")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let readable = |name: &String| name.ends_with(".parquet");
    let mut decoded = 0;
    for name in names.filter(readable) {
        let wanted = json(&format!("parquet/{name}.json"));
        let path = testdata(&format!("parquet/{name}"));
        let index = index(&engine, &[path], wanted["column"].as_str(), Checksums::Computed);
        assert_eq!(index.len(), wanted["rows"].as_u64().unwrap(), "{name}");
        let mut options = options(37);
        (options.seed, options.workers) = (decoded, 3);
        let loader = load(&engine, &index, options);
        let mut whole = Sha256::new();
        for value in samples(&loader, index.len()) {
            whole.update((value.len() as u64).to_le_bytes());
            whole.update(&value);
        }
        assert_eq!(hex(&whole.finalize()), wanted["sha256"].as_str().unwrap(), "{name}");
        assert_eq!(loader.stats().blocks, blocks(&index).len() as u64, "{name}: each block is decoded once");
        decoded += loader.stats().blocks;
    }
    assert!(decoded > 40, "{decoded}");
}

#[test]
fn deflated_arrays_are_those_that_numpy_wrote() {
    let engine = Engine::builder().build().unwrap();
    let index = index(&engine, &[testdata("deflated.npz"), testdata("stored.npz")], None, Checksums::Stored);
    let loader = load(&engine, &index, options(3));
    let (mut labels, wanted) = (Vec::new(), [json("deflated.npz.json"), json("stored.npz.json")]);
    index.labels(&(0..index.len()).collect::<Vec<_>>(), &mut labels).unwrap();
    let found = samples(&loader, index.len());
    assert_eq!(found.len(), wanted.iter().map(|wanted| wanted.as_object().unwrap().len()).sum::<usize>());
    for (label, sample) in labels.iter().zip(&found) {
        let group = usize::try_from(label.group).unwrap();
        assert_eq!(wanted[group][&label.key]["hex"], hex(sample), "{}", label.key);
    }
    assert!(loader.stats().blocks > 2);
}

#[test]
fn compressed_shards_have_the_samples_of_plain_ones_whatever_is_kept() {
    let engine = Engine::builder().build().unwrap();
    let plain = index(&engine, &[testdata("mds")], None, Checksums::Stored);
    let wanted = samples(&load(&engine, &plain, options(5)), plain.len());
    let packed = index(&engine, &[testdata("mds-zstd")], None, Checksums::Computed);
    let mut decoded = Vec::new();
    for block_bytes in [0, 1 << 20] {
        let mut options = options(5);
        (options.block_bytes, options.seed, options.ahead) = (block_bytes, 3, 1);
        let loader = load(&engine, &packed, options);
        assert_eq!(samples(&loader, packed.len()), wanted);
        decoded.push(loader.stats().blocks);
    }
    assert_eq!(decoded[1], 2);
    assert!(decoded[0] > 2, "nothing is kept, so that each batch decodes again: {decoded:?}");
}

#[test]
fn decoded_and_other_samples_share_batches_in_any_layout() {
    let engine = Engine::builder().build().unwrap();
    let index = index(&engine, &[testdata("mds"), testdata("mds-zstd")], None, Checksums::Stored);
    let each = usize::try_from(index.len()).unwrap() / 2;
    let mut options = options(4);
    options.layout = Layout::Padded(PadTo::Longest);
    let found = samples(&load(&engine, &index, options), index.len());
    assert_eq!(found[..each], found[each..]);
}

#[test]
fn a_damaged_block_is_an_error_with_the_name_of_its_object() {
    let engine = Engine::builder().build().unwrap();
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "decoded");
    let path = scratch.text("a.npz");
    fs::copy(testdata("deflated.npz"), &path).unwrap();
    let index = index(&engine, std::slice::from_ref(&path), None, Checksums::Stored);
    let (_, extent) = *blocks(&index).iter().min_by_key(|(_, extent)| extent.offset).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // The checksum that stands in the header of the member.
    bytes[usize::try_from(extent.offset).unwrap() + 14] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let mut places = Vec::new();
    index.locate(&(0..index.len()).collect::<Vec<_>>(), &mut places).unwrap();
    let bad = places.iter().filter(|place| place.extent == extent).count() as u64;
    let table = Table::new(vec![entry(&engine, &path, Format::Npz)], places).unwrap();
    let mut options = options(2);
    options.on_bad = OnBad::Quarantine { max: bad };
    let loader = Loader::new(&engine, vec![Dataset::new(Arc::new(table))], options, None).unwrap();
    let mut seen = 0;
    while let Some(batch) = loader.next_batch().unwrap() {
        seen += batch.len() as u64;
    }
    assert_eq!(seen, index.len() - bad);
    let quarantined = loader.quarantined();
    assert_eq!(quarantined.len() as u64, bad);
    assert!(matches!(quarantined[0].why, Why::Decode(DecodeError::Checksum { .. })), "{}", quarantined[0]);
    assert!(quarantined[0].to_string().contains(&path), "{}", quarantined[0]);
}

#[test]
fn a_row_that_a_block_does_not_have_is_told() {
    let engine = Engine::builder().build().unwrap();
    let packed = testdata("mds-zstd/shard.00000.mds.zstd");
    let object = entry(&engine, &packed, Format::Mds);
    let extent = Extent { offset: 0, len: object.len };
    let place = |row| Place { object: 0, extent, row: Some(row), crc32c: None };
    let table = Table::new(vec![object], vec![place(0), place(u32::MAX), place(1)]).unwrap();
    let mut options = options(1);
    options.method = Method::Sequence;
    let loader = Loader::new(&engine, vec![Dataset::new(Arc::new(table))], options, None).unwrap();
    assert_eq!(loader.next_batch().unwrap().unwrap().len(), 1);
    let error = loader.next_batch().unwrap_err();
    assert!(matches!(&error, LoadError::Sample(bad) if matches!(bad.why, Why::NoRow { row: u32::MAX, .. })), "{error}");
    assert_eq!(loader.next_batch().unwrap().unwrap().len(), 1, "the others are there");
}

#[test]
fn a_batch_that_cannot_be_planned_takes_no_block_with_it() {
    let engine = Engine::builder().build().unwrap();
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "decoded-budget");
    let (large, packed) = (scratch.text("large"), testdata("mds-zstd/shard.00000.mds.zstd"));
    fs::write(Path::new(&large), vec![1; 4 << 20]).unwrap();
    let objects = vec![entry(&engine, &large, Format::Raw), entry(&engine, &packed, Format::Mds)];
    let whole = |object: u32, row| {
        let extent = Extent { offset: 0, len: objects[usize::try_from(object).unwrap()].len };
        Place { object, extent, row, crc32c: None }
    };
    // The first batch wants the block, and is beyond the budget; the second wants the block alone.
    let places = vec![whole(0, None), whole(1, Some(0)), whole(1, Some(1)), whole(1, Some(2))];
    let table = Arc::new(Table::new(objects.clone(), places).unwrap());
    let mut options = options(2);
    (options.method, options.memory_bytes) = (Method::Sequence, 1 << 20);
    let loader = Loader::new(&engine, vec![Dataset::new(table)], options, None).unwrap();
    assert!(matches!(loader.next_batch(), Err(LoadError::OverBudget { .. })));
    assert_eq!(loader.next_batch().unwrap().unwrap().len(), 2);
}
