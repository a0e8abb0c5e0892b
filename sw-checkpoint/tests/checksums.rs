//! Checksums beside a checkpoint: compared by loads as they read, and by `verify`.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use straightway::{Destination, Engine, ErrorKind, GpuUse, Memory, Uri};
use sw_checkpoint::{
    CHECKSUMS_FILE, CHUNK_LEN_BYTES, Checkpoint, DcpOptions, Dtype, Layout, LoadOptions, SaveOptions, TensorSpec,
    Verification, Verify, Want, load, save,
};
use sw_testkit::scratch::Scratch;

/// Rows of the large tensor; a row has 1 KiB.
const ROWS: u64 = 9000;

fn engine() -> Engine {
    Engine::builder().gpu(GpuUse::Off).build().unwrap()
}

fn host(engine: &Engine, len: u64) -> Memory {
    let mut buffer = engine.allocate(Destination::Host, len, 0).unwrap().into_buffer().unwrap();
    buffer.as_mut_slice().iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 257 % 251).to_le_bytes()[0]);
    buffer.into()
}

/// A checkpoint of two and a bit chunks, and a small tensor.
fn saved(engine: &Engine, scratch: &Scratch, layout: Layout) -> PathBuf {
    let target = scratch.path("step-1");
    let spec = |name: &str, shape: Vec<u64>| TensorSpec { name: name.to_owned(), dtype: Dtype::U8, shape };
    let tensors = vec![
        (spec("large", vec![ROWS, 1 << 10]), host(engine, ROWS << 10)),
        (spec("small", vec![100]), host(engine, 100)),
    ];
    save(engine, &target, tensors, &SaveOptions { layout, ..SaveOptions::default() }).unwrap();
    target
}

fn at(path: &Path) -> Uri {
    Uri::from_path(path).unwrap()
}

fn with(verify: Verify) -> LoadOptions {
    LoadOptions { verify, ..LoadOptions::default() }
}

fn data_file(target: &Path) -> PathBuf {
    let files = fs::read_dir(target).unwrap().map(|entry| entry.unwrap().path());
    files.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 16;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_whole_load_compares_every_byte_of_every_file() {
    for layout in [Layout::default(), Layout::Dcp(DcpOptions::default())] {
        let (engine, scratch) = (engine(), Scratch::new(env!("CARGO_TARGET_TMPDIR"), "checksums"));
        let target = saved(&engine, &scratch, layout);
        for verify in [Verify::Auto, Verify::Require] {
            let loaded = load(&engine, &at(&target), &with(verify)).unwrap();
            assert_eq!(loaded.verification, Verification::Compared);
            let [file] = loaded.files.as_slice() else { panic!("{:?}", loaded.files) };
            let len = fs::metadata(data_file(&target)).unwrap().len();
            assert_eq!((file.verified_bytes, file.unverified_bytes), (len, 0));
            // What was read: the tensors, what is between them, and the rests, each byte once.
            let read: u64 = file.ways.iter().map(|way| way.path.bytes.total()).sum();
            assert!(read <= len && loaded.rest_bytes < 1 << 20, "{read} {len} {}", loaded.rest_bytes);
        }
        let loaded = load(&engine, &at(&target), &with(Verify::Off)).unwrap();
        assert_eq!((loaded.verification, loaded.rest_bytes), (Verification::Off, 0));
        assert_eq!(loaded.files[0].verified_bytes, 0);
    }
}

#[test]
fn a_flipped_bit_anywhere_is_told_with_file_and_chunk() {
    let (engine, scratch) = (engine(), Scratch::new(env!("CARGO_TARGET_TMPDIR"), "checksums-flip"));
    let target = saved(&engine, &scratch, Layout::default());
    let file = data_file(&target);
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let len = fs::metadata(&file).unwrap().len();
    for place in [4096, CHUNK_LEN_BYTES - 1, CHUNK_LEN_BYTES, 2 * CHUNK_LEN_BYTES + 77, len - 1] {
        flip(&file, place);
        let error = load(&engine, &at(&target), &with(Verify::Auto)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChecksumMismatch, "{error}");
        let chunk = place / CHUNK_LEN_BYTES * CHUNK_LEN_BYTES;
        let text = error.to_string();
        assert!(text.contains(&name) && text.contains(&format!("bytes {chunk}+")), "{place}: {text}");
        load(&engine, &at(&target), &with(Verify::Off)).unwrap();
        let mut told = Vec::new();
        let checkpoint = Checkpoint::open(&engine, &at(&target)).unwrap();
        let each = |verified: sw_checkpoint::Verified| {
            told.extend(verified.mismatches);
            Ok::<(), straightway::Error>(())
        };
        checkpoint.verify(&engine, each).unwrap();
        let [one] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((one.algorithm, one.file_offset, one.file.as_str()), ("crc32c", chunk, name.as_str()));
        flip(&file, place);
    }
    let whole = fs::read(&file).unwrap();
    fs::write(&file, [&whole[..], &[0]].concat()).unwrap();
    // The format finds that itself; the checksums do too where it does not look.
    assert!(load(&engine, &at(&target), &with(Verify::Auto)).is_err());
}

#[test]
fn slices_are_compared_where_that_is_cheap_or_required() {
    let (engine, scratch) = (engine(), Scratch::new(env!("CARGO_TARGET_TMPDIR"), "checksums-slice"));
    let target = saved(&engine, &scratch, Layout::default());
    let checkpoint = Checkpoint::open(&engine, &at(&target)).unwrap();
    let len = fs::metadata(data_file(&target)).unwrap().len();
    // A few rows: not worth a chunk.
    let rows = [Want::slice(checkpoint.catalog(), "large", &[100..110, 0..1024]).unwrap()];
    let loaded = checkpoint.load(&engine, &rows, &with(Verify::Auto)).unwrap();
    let file = &loaded.files[0];
    assert_eq!((file.verified_bytes, loaded.rest_bytes), (0, 0));
    assert!(file.unverified_bytes >= 10 << 10);
    let loaded = checkpoint.load(&engine, &rows, &with(Verify::Require)).unwrap();
    let file = &loaded.files[0];
    assert_eq!((file.verified_bytes, file.unverified_bytes), (CHUNK_LEN_BYTES, 0));
    assert!(loaded.rest_bytes > CHUNK_LEN_BYTES / 2);
    // A column, gathered: every chunk of the tensor.
    let column = [Want::slice(checkpoint.catalog(), "large", &[0..ROWS, 7..9]).unwrap()];
    let loaded = checkpoint.load(&engine, &column, &with(Verify::Require)).unwrap();
    assert_eq!((loaded.files[0].verified_bytes, loaded.files[0].unverified_bytes), (len, 0));
    // The same bytes for two wants.
    let twice = [rows[0].clone(), rows[0].clone(), column[0].clone()];
    let loaded = checkpoint.load(&engine, &twice, &with(Verify::Require)).unwrap();
    assert_eq!((loaded.files[0].verified_bytes, loaded.files[0].unverified_bytes), (len, 0));
    flip(&data_file(&target), 4 << 20);
    assert!(checkpoint.load(&engine, &column, &with(Verify::Require)).is_err());
}

#[test]
fn without_checksums_nothing_changes_and_it_is_told() {
    let (engine, scratch) = (engine(), Scratch::new(env!("CARGO_TARGET_TMPDIR"), "checksums-none"));
    let target = saved(&engine, &scratch, Layout::default());
    let side = target.join(CHECKSUMS_FILE);
    let text = fs::read(&side).unwrap();
    fs::remove_file(&side).unwrap();
    let loaded = load(&engine, &at(&target), &with(Verify::Auto)).unwrap();
    assert_eq!((loaded.verification, loaded.rest_bytes), (Verification::NoChecksums, 0));
    assert!(loaded.files[0].unverified_bytes >= loaded.tensor_bytes);
    let error = load(&engine, &at(&target), &with(Verify::Require)).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains(CHECKSUMS_FILE), "{error}");
    // One that is damaged is an error unless it is not wanted.
    fs::write(&side, &text[..text.len() / 2]).unwrap();
    assert_eq!(load(&engine, &at(&target), &with(Verify::Auto)).unwrap_err().kind(), ErrorKind::BadFormat);
    load(&engine, &at(&target), &with(Verify::Off)).unwrap();
    // One that does not know the file.
    let other = br#"{ "format": "straightway-checksums", "version": 1, "chunk_bytes": 4194304, "files": {} }"#;
    fs::write(&side, other).unwrap();
    let loaded = load(&engine, &at(&target), &with(Verify::Auto)).unwrap();
    assert_eq!(loaded.files[0].verified_bytes, 0);
    assert_eq!(load(&engine, &at(&target), &with(Verify::Require)).unwrap_err().kind(), ErrorKind::NotFound);
    // One for another length.
    let len = fs::metadata(data_file(&target)).unwrap().len();
    let text = String::from_utf8(text).unwrap();
    let longer = text.replacen(&format!("\"bytes\": {len}"), &format!("\"bytes\": {}", len + 1), 1);
    assert_ne!(longer, text);
    fs::write(&side, longer).unwrap();
    let error = load(&engine, &at(&target), &with(Verify::Auto)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ChecksumMismatch, "{error}");
}
