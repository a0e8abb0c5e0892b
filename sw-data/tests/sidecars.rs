//! Index files that lie beside shards, as DALI's tools write them; and features of records.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::{
    fs,
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use serde_json::Value;
use straightway::{Engine, Error, ErrorKind, GpuUse};
use sw_data::{
    index::{BuildOptions, Built, Checksums, Event, Index, OnError, SideCars, build_in_memory},
    samples::{Label, Place, Samples as _},
};
use sw_testkit::scratch::Scratch;

const OPTIONS: BuildOptions<'static> = BuildOptions::new(NonZeroUsize::new(2).unwrap());
const WALK: BuildOptions<'static> = BuildOptions { sidecars: SideCars::Ignore, ..OPTIONS };

fn scratch(tag: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag)
}

fn engine() -> Engine {
    Engine::builder().gpu(GpuUse::Off).reactors(1).build().unwrap()
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// What was built, and why side-cars were not used.
struct Made {
    built: Built,
    index: Index,
    unfit: Vec<String>,
}

fn make(engine: &Engine, source: &Path, options: &BuildOptions<'_>) -> Result<Made, Error> {
    let mut unfit = Vec::new();
    let sources = [source.to_str().unwrap().to_owned()];
    let (built, index) = build_in_memory(engine, &sources, options, &mut |event| {
        if let Event::SideCar { uri, sidecar, error } = event {
            assert!(uri.ends_with(source.to_str().unwrap()) && sidecar != uri, "{uri}: {sidecar}");
            unfit.push(error.to_string());
        }
        ControlFlow::Continue(())
    })?;
    assert_eq!(built.sidecars_unfit, unfit.len() as u64);
    Ok(Made { built, index, unfit })
}

/// Every sample: where, and what it is called.
fn all(index: &Index) -> Vec<(Place, Label)> {
    let numbers: Vec<u64> = (0..index.len()).collect();
    let (mut places, mut labels) = (Vec::new(), Vec::new());
    index.locate(&numbers, &mut places).unwrap();
    index.labels(&numbers, &mut labels).unwrap();
    places.into_iter().zip(labels).collect()
}

fn masked(bytes: &[u8]) -> [u8; 4] {
    let sum = u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes)).unwrap();
    sum.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Records of so many bytes in a file, and their side-car.
fn records(lens: &[u64]) -> (Vec<u8>, String) {
    let (mut file, mut lines) = (Vec::new(), String::new());
    for len in lens {
        let payload = vec![u8::try_from(len % 251).unwrap(); usize::try_from(*len).unwrap()];
        lines += &format!("{} {}\n", file.len(), len + 16);
        file.extend(len.to_le_bytes());
        file.extend(masked(&len.to_le_bytes()));
        file.extend(&payload);
        file.extend(masked(&payload));
    }
    (file, lines)
}

#[test]
fn samples_of_side_cars_are_those_of_the_walk() {
    let (scratch, engine) = (scratch("sidecar-same"), engine());
    // By the names that DALI's tools give, and by others.
    let beside = [
        ("tensorflow.tfrecord", &["tensorflow.tfrecord.idx", "tensorflow.idx", "tensorflow.tfrecord.index"][..]),
        ("webdataset.tar", &["webdataset.idx", "webdataset.tar.idx", "webdataset.tar.index"]),
    ];
    for (shard, names) in beside {
        let path = scratch.path(shard);
        fs::copy(testdata(shard), &path).unwrap();
        let walked = make(&engine, &path, &OPTIONS).unwrap();
        assert_eq!((walked.built.sidecars, walked.built.sidecar_samples), (0, 0));
        let wanted: Vec<_> =
            all(&walked.index).into_iter().map(|(place, label)| (Place { crc32c: None, ..place }, label)).collect();
        for name in names {
            fs::copy(testdata(&format!("{shard}.sidecar")), scratch.path(name)).unwrap();
            let Made { built, index, unfit } = make(&engine, &path, &OPTIONS).unwrap();
            assert_eq!((built.sidecars, built.sidecar_samples, built.checksums), (1, 5, 0), "{name}: {unfit:?}");
            // So few that the head of each is looked at.
            assert_eq!(built.sidecar_heads_unchecked, 0);
            assert_eq!(all(&index), wanted, "{name}");
            fs::remove_file(scratch.path(name)).unwrap();
        }
    }
}

#[test]
fn a_shard_with_a_side_car_is_not_walked_and_what_is_not_checked_is_counted() {
    let (scratch, engine) = (scratch("sidecar-unwalked"), engine());
    let (mut file, lines) = records(&[100; 1000]);
    let path = scratch.path("x.tfrecord");
    fs::write(scratch.path("x.tfrecord.idx"), lines).unwrap();
    // A head between those that are looked at, which every walk stumbles over.
    file[116 * 333] ^= 1;
    fs::write(&path, &file).unwrap();
    let made = make(&engine, &path, &OPTIONS).unwrap();
    assert_eq!((made.built.sidecars, made.index.len()), (1, 1000));
    let unchecked = made.built.sidecar_heads_unchecked;
    assert!((1000 - 17..=1000 - 9).contains(&unchecked), "{unchecked}");
    assert_eq!(make(&engine, &path, &WALK).err().unwrap().kind(), ErrorKind::ChecksumMismatch);
    // The same where all bytes are read anyhow.
    let computed = BuildOptions { checksums: Checksums::Computed, ..OPTIONS };
    assert_eq!(make(&engine, &path, &computed).err().unwrap().kind(), ErrorKind::ChecksumMismatch);
    // The last head is looked at: then the walk tells what is wrong.
    file[116 * 333] ^= 1;
    file[116 * 999 + 8] ^= 1;
    fs::write(&path, &file).unwrap();
    assert_eq!(make(&engine, &path, &OPTIONS).err().unwrap().kind(), ErrorKind::ChecksumMismatch);
}

#[test]
fn a_side_car_of_records_that_does_not_fit_is_told_and_the_shard_walked() {
    let (scratch, engine) = (scratch("sidecar-records"), engine());
    let (file, lines) = records(&[10, 20, 30, 40]);
    let path = scratch.path("x.tfrecord");
    fs::write(&path, &file).unwrap();
    let wanted = all(&make(&engine, &path, &OPTIONS).unwrap().index);
    // The third is a byte shorter and the last longer, so that all is accounted for.
    let moved = lines.replace("62 46", "62 45").replace("108 56", "107 57");
    assert!(lines.contains("62 46") && lines.contains("108 56"), "{lines}");
    for (text, word) in [
        (&lines[..lines.len() - "108 56\n".len()], "length of the TFRecord file"),
        ("", "length of the TFRecord file"),
        (&*moved, "length"),
        ("0 16\n17 17\n", "place of a record"),
        ("v1.2 1\n", "cannot be read"),
    ] {
        fs::write(scratch.path("x.idx"), text).unwrap();
        let Made { built, index, unfit } = make(&engine, &path, &OPTIONS).unwrap();
        assert_eq!((built.sidecars, built.sidecars_unfit, built.sidecar_samples), (0, 1, 0), "{text}");
        assert!(unfit[0].contains(word), "{text}: {}", unfit[0]);
        assert_eq!(all(&index), wanted, "{text}");
        // Another that fits is found behind it.
        fs::write(scratch.path("x.tfrecord.index"), "bad").unwrap();
        fs::write(scratch.path("x.idx"), &lines).unwrap();
        let made = make(&engine, &path, &OPTIONS).unwrap();
        assert_eq!((made.built.sidecars, made.unfit.len()), (1, 0));
        fs::remove_file(scratch.path("x.tfrecord.index")).unwrap();
    }
    // A shard that was cut: its side-car tells it, and the walk is what counts.
    fs::write(&path, &file[..file.len() - 1]).unwrap();
    assert_eq!(make(&engine, &path, &OPTIONS).err().unwrap().kind(), ErrorKind::ShortData);
    let skip = BuildOptions { on_error: OnError::Skip, ..OPTIONS };
    let built = make(&engine, &path, &skip).unwrap().built;
    assert_eq!((built.damaged, built.samples), (1, 0));
}

#[test]
fn a_side_car_of_an_archive_that_does_not_fit_is_told_and_the_archive_walked() {
    let (scratch, engine) = (scratch("sidecar-archive"), engine());
    let path = scratch.path("x.tar");
    fs::copy(testdata("webdataset.tar"), &path).unwrap();
    let lines = fs::read_to_string(testdata("webdataset.tar.sidecar")).unwrap();
    let wanted = all(&make(&engine, &path, &OPTIONS).unwrap().index);
    let without_last = lines[..lines.trim_end().rfind('\n').unwrap() + 1].replace("v1.2 5", "v1.2 4");
    let nameless: String = lines
        .replace("v1.2", "v1.1")
        .lines()
        .map(|line| line.split(' ').filter(|word| !word.contains('/')).collect::<Vec<_>>().join(" ") + "\n")
        .collect();
    for (text, word) in [
        // A sample of the archive that the side-car does not know: at the end, and in between.
        (without_last.as_str(), "goes on behind its last sample"),
        (&lines.replace("cls 3584 1 train/00001.cls ", ""), "archive train/00001.cls"),
        (&lines.replace("v1.2 5", "v1.2 6"), "number of samples"),
        (&lines.replace(" 1536 ", " 2048 "), "place of a member"),
        (&lines.replace(" 1536 200 ", " 1536 201 "), "archive train/00000.jpg"),
        (&lines.replace("train/00002", "train/00009"), "its index has train/00009.cls"),
        (&lines.replace(" 512 1 ", " 511 1 "), "place of a member"),
        (&nameless, "without names"),
        ("", "ends inside"),
    ] {
        assert_ne!(text, lines, "{word}");
        fs::write(scratch.path("x.idx"), text).unwrap();
        let Made { built, index, unfit } = make(&engine, &path, &OPTIONS).unwrap();
        assert_eq!((built.sidecars, built.sidecars_unfit), (0, 1), "{word}");
        assert!(unfit[0].contains(word), "{word}: {}", unfit[0]);
        assert_eq!(all(&index), wanted, "{word}");
    }
}

#[test]
fn who_wants_checksums_of_records_has_them_read_again() {
    let (scratch, engine) = (scratch("sidecar-update"), engine());
    let (file, lines) = records(&[10, 20]);
    let path = scratch.path("x.tfrecord");
    fs::write(&path, file).unwrap();
    fs::write(scratch.path("x.idx"), lines).unwrap();
    let older = make(&engine, &path, &OPTIONS).unwrap().index;
    let again = |options: &BuildOptions<'_>| {
        let built = make(&engine, &path, &BuildOptions { older: Some(&older), ..*options }).unwrap().built;
        (built.taken_over, built.checksums)
    };
    assert_eq!((again(&OPTIONS), again(&WALK)), ((1, 0), (0, 2)));
}

fn bytes_of(path: &Path, place: &Place) -> Vec<u8> {
    let file = fs::read(path).unwrap();
    let from = usize::try_from(place.extent.offset).unwrap();
    file[from..from + usize::try_from(place.extent.len).unwrap()].to_vec()
}

#[test]
fn a_feature_of_each_record_is_a_sample_with_its_checksum() {
    let (scratch, engine) = (scratch("feature"), engine());
    let path = scratch.path("example.tfrecord");
    fs::copy(testdata("example.tfrecord"), &path).unwrap();
    let expected: Vec<Value> = serde_json::from_slice(&fs::read(testdata("example.tfrecord.json")).unwrap()).unwrap();
    let image = BuildOptions { column: Some("image"), ..OPTIONS };
    let made = make(&engine, &path, &image).unwrap();
    assert_eq!((made.built.samples, made.built.checksums), (4, 4));
    for ((place, label), (number, wanted)) in all(&made.index).iter().zip(expected.iter().enumerate()) {
        let bytes = bytes_of(&path, place);
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(wanted["image"], serde_json::json!([text]));
        let sum = u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes)).unwrap();
        assert_eq!((place.crc32c, place.row, &*label.key), (Some(sum), None, &*number.to_string()));
    }
    // Whole records are other samples, and are not taken for these; nor the other way.
    let records = make(&engine, &path, &BuildOptions { older: Some(&made.index), ..OPTIONS }).unwrap();
    let same = make(&engine, &path, &BuildOptions { older: Some(&made.index), ..image }).unwrap();
    assert_eq!((records.built.taken_over, same.built.taken_over), (0, 1));
    assert!(all(&records.index)[1].0.extent.len > all(&made.index)[1].0.extent.len);
    assert_eq!(
        make(&engine, &path, &BuildOptions { older: Some(&records.index), ..image }).unwrap().built.taken_over,
        0
    );
}

#[test]
fn a_feature_that_is_no_sample_or_is_damaged_is_told() {
    let (scratch, engine) = (scratch("no-feature"), engine());
    let path = scratch.path("example.tfrecord");
    let mut file = fs::read(testdata("example.tfrecord")).unwrap();
    fs::write(&path, &file).unwrap();
    let of = |column| make(&engine, &path, &BuildOptions { column: Some(column), ..OPTIONS }).err().unwrap();
    let error = of("none");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("record 0 has no feature none"), "{error}");
    assert!(error.to_string().contains("image") && error.to_string().contains("box"), "{error}");
    for several in ["size", "names", "empty"] {
        assert_eq!(of(several).kind(), ErrorKind::Unsupported, "{several}");
    }
    // A payload that is no message.
    let (plain, _) = records(&[100]);
    fs::write(&path, plain).unwrap();
    assert_eq!(of("image").kind(), ErrorKind::BadFormat);
    let last = file.len() - 10;
    file[last] ^= 1;
    fs::write(&path, &file).unwrap();
    assert_eq!(of("image").kind(), ErrorKind::ChecksumMismatch);
    // Who asks for whole records is not told of payloads, which are not read.
    assert!(make(&engine, &path, &OPTIONS).is_ok());
}
