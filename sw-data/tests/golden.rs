//! Files that other people's software wrote (`testdata/make.py`), and the same files cut and damaged.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::path::{Path, PathBuf};

use proptest::{prelude::*, sample::Index};
use serde_json::Value;
use sw_data::formats::{
    Array, Extent, Field, FormatError, Grouping, Layout, MdsScan, MdsShard, Member, NpyScan, Payloads, Sample, Scan,
    TarScan, TfRecordIndexScan, TfRecordScan, Token, TokenIndexScan, Values, WdsIndexScan, Wrong, example,
    feature_bytes, mds_index, scan_slice,
};

const TARS: [&str; 6] = ["python-ustar.tar", "python-gnu.tar", "python-pax.tar", "gnu.tar", "gnu-pax.tar", "v7.tar"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap()
}

fn expected(name: &str) -> Vec<Value> {
    serde_json::from_slice(&file(&format!("{name}.json"))).unwrap()
}

fn tar(file: &[u8]) -> Result<Vec<Member>, FormatError> {
    scan_slice(&mut TarScan::new(file.len() as u64)?, file)
}

fn records(file: &[u8], payloads: Payloads) -> Result<Vec<Extent>, FormatError> {
    let found = scan_slice(&mut TfRecordScan::new(file.len() as u64, payloads)?, file)?;
    Ok(found.into_iter().map(|record| record.payload).collect())
}

fn bytes(file: &[u8], extent: Extent) -> &[u8] {
    let offset = usize::try_from(extent.offset).unwrap();
    &file[offset..offset + usize::try_from(extent.len).unwrap()]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn archives_of_python_and_gnu_tar_have_the_members_that_python_finds() {
    for name in TARS {
        let found: Vec<Value> = tar(&file(name))
            .unwrap()
            .into_iter()
            .map(|member| {
                let text = String::from_utf8(member.name).unwrap();
                serde_json::json!({"name": text, "offset": member.content.offset, "len": member.content.len})
            })
            .collect();
        assert_eq!(found, expected(name), "{name}");
        assert!(found.len() >= 3);
    }
}

#[test]
fn directories_and_links_are_gone_over_and_counted() {
    let file = file("python-pax.tar");
    let mut scan = TarScan::new(file.len() as u64).unwrap();
    scan_slice(&mut scan, &file).unwrap();
    assert_eq!(scan.passed(), 2);
}

#[test]
fn sparse_files_are_refused_by_name() {
    for name in ["sparse-gnu.tar", "sparse-pax.tar"] {
        let error = tar(&file(name)).unwrap_err();
        assert!(matches!(&error.wrong, Wrong::Unsupported { what: "a sparse file", .. }), "{name}: {error}");
        assert!(error.to_string().contains("sparse.bin"), "{error}");
    }
}

#[test]
fn samples_are_those_of_the_webdataset_library() {
    let file = file("webdataset.tar");
    let mut grouping = Grouping::default();
    let mut samples: Vec<Sample> =
        tar(&file).unwrap().iter().filter_map(|member| grouping.add(member).unwrap()).collect();
    samples.extend(grouping.finish());
    let found: Vec<Value> = samples
        .into_iter()
        .map(|sample| {
            let fields = sample.fields.into_iter().map(|field| (field.name, hex(bytes(&file, field.content)).into()));
            serde_json::json!({"key": sample.key, "fields": fields.collect::<serde_json::Map<_, _>>()})
        })
        .collect();
    assert_eq!(found, expected("webdataset.tar"));
}

#[test]
fn names_without_extension_and_notes_belong_to_no_sample() {
    let mut grouping = Grouping::default();
    let member = |name: &str| Member { name: name.into(), content: Extent { offset: 512, len: 1 } };
    let mut add = |name: &str| grouping.add(&member(name));
    for name in ["README", "a.dir/README", ".hidden", "a/.hidden", "__meta__/x.json", "a/__notes__"] {
        assert_eq!(add(name), Ok(None), "{name}");
    }
    assert_eq!(add("a.b/c.tar.GZ"), Ok(None));
    let twice = add("a.b/c.TAR.gz").unwrap_err();
    assert_eq!(twice.wrong, Wrong::TwoFields { key: "a.b/c".into(), field: "tar.gz".into() });
    // The sample is given up as a whole, also what comes behind; the next one is not.
    assert_eq!(add("a.b/c.third"), Ok(None));
    assert_eq!(add("a.b/d.jpg"), Ok(None));
    assert_eq!(add("a.b/e.jpg").unwrap().unwrap().key, "a.b/d");
    assert_eq!(grouping.skipped(), 9);
    grouping.finish();
    for number in 0..1024 {
        assert_eq!(grouping.add(&member(&format!("many.{number}"))), Ok(None));
    }
    let many = grouping.add(&member("many.more")).unwrap_err();
    assert_eq!(many.wrong, Wrong::TooMany { what: "the fields of a sample", max: 1024 });
    assert_eq!(grouping.finish(), None);
    let odd = Member { name: vec![b'a', 0xff, b'.', b'b'], content: Extent { offset: 0, len: 0 } };
    assert!(matches!(grouping.add(&odd).unwrap_err().wrong, Wrong::Field { .. }));
}

#[test]
fn records_of_tensorflow_are_found_with_and_without_reading_payloads() {
    let file = file("tensorflow.tfrecord");
    for payloads in [Payloads::GoOver, Payloads::Check] {
        let found: Vec<Value> =
            records(&file, payloads).unwrap().into_iter().map(|extent| hex(bytes(&file, extent)).into()).collect();
        assert_eq!(found, expected("tensorflow.tfrecord"));
    }
}

#[test]
fn a_damaged_payload_is_found_by_who_reads_it() {
    let mut file = file("tensorflow.tfrecord");
    let extent = records(&file, Payloads::GoOver).unwrap()[3];
    file[usize::try_from(extent.offset + 7).unwrap()] ^= 1;
    assert_eq!(records(&file, Payloads::GoOver).unwrap().len(), 5);
    let error = records(&file, Payloads::Check).unwrap_err();
    assert!(matches!(error.wrong, Wrong::Checksum { what: "a record's payload", .. }));
    assert_eq!(error.offset, extent.offset);
}

#[test]
fn a_long_record_is_read_in_pieces() {
    // 3 MiB and 5 bytes, framed by hand: more than the scan asks for at once.
    let payload: Vec<u8> = (0..(3u32 << 20) + 5).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let masked = |bytes: &[u8]| {
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
        u32::try_from(sum).unwrap().rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
    };
    let len = (payload.len() as u64).to_le_bytes();
    let mut file = [len.as_slice(), &masked(&len), &payload, &masked(&payload)].concat();
    let mut scan = TfRecordScan::new(file.len() as u64, Payloads::Check).unwrap();
    let mut asked = Vec::new();
    while let Some(need) = scan.need() {
        asked.push(need.len);
        scan.push(bytes(&file, need)).unwrap();
    }
    assert_eq!(asked, [12, 1 << 20, 1 << 20, 1 << 20, 9]);
    assert_eq!(scan.next().unwrap().framed(), Extent { offset: 0, len: file.len() as u64 });
    let last = file.len() - 5;
    file[last] ^= 0x80;
    assert!(records(&file, Payloads::Check).is_err());
}

#[test]
fn a_damaged_payload_is_told_and_the_walk_goes_on() {
    let mut file = file("tensorflow.tfrecord");
    let all = records(&file, Payloads::GoOver).unwrap();
    let third = usize::try_from(all[3].offset).unwrap();
    file[third + 7] ^= 1;
    let mut scan = TfRecordScan::new(file.len() as u64, Payloads::CheckAndGoOn).unwrap();
    let (mut found, mut bad) = (Vec::new(), Vec::new());
    while let Some(need) = scan.need() {
        scan.push(bytes(&file, need)).unwrap();
        found.extend(scan.next().map(|record| record.payload));
        bad.extend(scan.damaged());
    }
    assert_eq!(found, [&all[..3], &all[4..]].concat());
    assert_eq!(bad.len(), 1);
    assert_eq!(bad[0].extent, all[3]);
    assert!(matches!(bad[0].error.wrong, Wrong::Checksum { what: "a record's payload", .. }));
    // Behind a damaged length nothing is known.
    file[third - 12] ^= 1;
    assert!(matches!(records(&file, Payloads::CheckAndGoOn).unwrap_err().wrong, Wrong::Checksum { .. }));
}

#[test]
fn files_that_are_compressed_as_a_whole_are_refused_by_name() {
    for (name, said) in [("gzip.tfrecord", "GZIP"), ("zlib.tfrecord", "ZLIB")] {
        let error = records(&file(name), Payloads::GoOver).unwrap_err();
        assert!(matches!(&error.wrong, Wrong::Unsupported { name, .. } if name == said), "{name}: {error}");
    }
}

#[test]
fn features_are_those_that_tensorflow_reads() {
    let file = file("example.tfrecord");
    let mut found = Vec::new();
    for record in records(&file, Payloads::Check).unwrap() {
        let payload = bytes(&file, record);
        let text = |extent: &Extent| Value::from(hex(bytes(payload, *extent)));
        let features = example(payload).unwrap().into_iter().map(|feature| {
            let value = match &feature.values {
                Values::Bytes(extents) => extents.iter().map(text).collect(),
                Values::Floats(numbers) => numbers.iter().map(|number| Value::from(f64::from(*number))).collect(),
                Values::Ints(numbers) => numbers.iter().map(|number| Value::from(*number)).collect(),
                Values::Nothing => Value::Null,
            };
            (feature.name.to_owned(), value)
        });
        let features: serde_json::Map<_, _> = features.collect();
        let image = feature_bytes(payload, "image").unwrap().unwrap();
        assert_eq!(features["image"], Value::from(vec![text(&image)]));
        found.push(Value::from(features));
    }
    assert_eq!(found, expected("example.tfrecord"));
}

#[test]
fn a_cut_example_is_told() {
    let whole = file("tensorflow.example");
    for len in 1..whole.len() {
        assert!(matches!(example(&whole[..len]).unwrap_err().wrong, Wrong::Field { .. }), "{len}");
    }
}

#[test]
fn side_cars_of_dali_say_what_the_walks_find() {
    let (shard, index) = (file("tensorflow.tfrecord"), file("tensorflow.tfrecord.sidecar"));
    let mut scan = TfRecordIndexScan::new(index.len() as u64, shard.len() as u64).unwrap();
    let found = scan_slice(&mut scan, &index).unwrap().into_iter().map(|record| record.payload);
    assert_eq!(found.collect::<Vec<_>>(), records(&shard, Payloads::GoOver).unwrap());

    let (shard, index) = (file("webdataset.tar"), file("webdataset.tar.sidecar"));
    let mut scan = WdsIndexScan::new(index.len() as u64, shard.len() as u64).unwrap();
    let found = scan_slice(&mut scan, &index).unwrap();
    let mut grouping = Grouping::default();
    let mut samples: Vec<Sample> =
        tar(&shard).unwrap().iter().filter_map(|member| grouping.add(member).unwrap()).collect();
    samples.extend(grouping.finish());
    assert_eq!(found, samples);
}

#[test]
fn side_cars_that_do_not_fit_their_shards_are_told() {
    let index = file("tensorflow.tfrecord.sidecar");
    let read = |text: &[u8], len| {
        TfRecordIndexScan::new(text.len() as u64, len).and_then(|mut scan| scan_slice(&mut scan, text))
    };
    assert_eq!(read(&index, 1185).unwrap().len(), 5);
    // The newline behind the last number is not missed; anything else is.
    assert_eq!(read(&index[..index.len() - 1], 1185).unwrap().len(), 5);
    for len in 0..index.len() - 1 {
        assert!(read(&index[..len], 1185).is_err(), "{len}");
    }
    let length = "the length of the TFRecord file";
    assert_eq!(read(&index, 1186).unwrap_err().wrong, Wrong::Differs { what: length, here: 1186, index: 1185 });
    assert_eq!(read(&index, 1184).unwrap_err().wrong, Wrong::OutOfFile { what: "record", number: 4 });
    assert_eq!(read(b"", 1).unwrap_err().wrong, Wrong::Differs { what: length, here: 1, index: 0 });
    assert_eq!(read(b"", 0), Ok(Vec::new()));
    let place = "the place of a record";
    assert_eq!(
        read(
            b"0 17
18 17
",
            35
        )
        .unwrap_err()
        .wrong,
        Wrong::Differs { what: place, here: 17, index: 18 }
    );
    assert!(matches!(
        read(
            b"0 15
", 15
        )
        .unwrap_err()
        .wrong,
        Wrong::Field { .. }
    ));
    assert!(matches!(read(b"0 18446744073709551615", 9).unwrap_err().wrong, Wrong::OutOfFile { .. }));
    assert!(matches!(read(&[b'1'; 100], 9).unwrap_err().wrong, Wrong::TooLong { .. }));
}

#[test]
fn side_cars_that_do_not_fit_their_archives_are_told() {
    let read = |text: &str| {
        WdsIndexScan::new(text.len() as u64, 4096).and_then(|mut scan| scan_slice(&mut scan, text.as_bytes()))
    };
    let two = read(
        "v1.1 2
jpg 512 7 CLS 1024 1
jpg 2048 2048",
    )
    .unwrap();
    assert_eq!((two[0].key.as_str(), two[1].key.as_str()), ("0", "1"));
    assert_eq!(two[0].fields[1], Field { name: "cls".into(), content: Extent { offset: 1024, len: 1 } });
    let samples = "the number of samples";
    assert_eq!(
        read(
            "v1.1 2
jpg 512 7
"
        )
        .unwrap_err()
        .wrong,
        Wrong::Differs { what: samples, here: 1, index: 2 }
    );
    assert_eq!(
        read(
            "v1.1 0
jpg 512 7
"
        )
        .unwrap_err()
        .wrong,
        Wrong::Differs { what: samples, here: 1, index: 0 }
    );
    assert_eq!(
        read(
            "v1.1 1
jpg 4000 97"
        )
        .unwrap_err()
        .wrong,
        Wrong::OutOfFile { what: "sample", number: 0 }
    );
    assert!(matches!(
        read(
            "v1.3 1
"
        )
        .unwrap_err()
        .wrong,
        Wrong::Unsupported { .. }
    ));
    // A name with a space, two keys in a line, a word that is missing.
    for line in ["jpg 512 7 a b.jpg", "jpg 512 7 a.jpg cls 1024 1 b.cls", "jpg 512 7 a.jpg cls 1024", ""] {
        let error = read(&format!(
            "v1.2 1
{line}
"
        ))
        .unwrap_err();
        assert!(matches!(error.wrong, Wrong::Field { .. }), "{line}: {error}");
    }
}

fn npy(file: &[u8]) -> Result<Array, FormatError> {
    let mut found = scan_slice(&mut NpyScan::new(file.len() as u64)?, file)?;
    assert_eq!(found.len(), 1);
    Ok(found.remove(0))
}

#[test]
fn arrays_are_those_that_numpy_wrote() {
    for name in ["f4", "fortran", "scalar", "empty", "text", "dates", "bool", "v2"] {
        let name = format!("numpy-{name}.npy");
        let array = npy(&file(&name)).unwrap();
        let found = serde_json::json!({
            "descr": array.descr, "item_len": array.item_len, "shape": array.shape,
            "fortran": array.layout == Layout::ColumnMajor,
            "offset": array.content.offset, "len": array.content.len,
        });
        match array.items() {
            Ok(items) => {
                let all: Vec<Extent> = (0..items).map(|number| array.item(number).unwrap()).collect();
                assert_eq!(all.iter().map(|item| item.len).sum::<u64>(), array.content.len, "{name}");
                assert!(all.windows(2).all(|two| two[0].offset + two[0].len == two[1].offset));
                assert_eq!(array.item(items), None);
            }
            Err(error) => assert!(name.contains("fortran") && error.to_string().contains("shape [2, 3]"), "{error}"),
        }
        let wanted: Value = serde_json::from_slice(&file(&format!("{name}.json"))).unwrap();
        assert_eq!(found, wanted, "{name}");
    }
}

#[test]
fn structures_and_pickles_are_refused_by_name() {
    for (name, said) in [("structure", "[('a', '<i4'), ('b', '<f8', (2,))]"), ("objects", "|O")] {
        let error = npy(&file(&format!("numpy-{name}.npy"))).unwrap_err();
        assert!(
            matches!(&error.wrong, Wrong::Unsupported { what: "an element type", name } if name == said),
            "{error}"
        );
    }
}

#[test]
fn headers_that_numpy_would_not_write_are_refused() {
    let made = |header: &str| {
        let len = u16::try_from(header.len()).unwrap().to_le_bytes();
        npy(&[b"\x93NUMPY\x01\x00".as_slice(), &len, header.as_bytes(), &[0; 64]].concat())
    };
    let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }";
    assert_eq!(made(good).unwrap().content.len, 48);
    assert_eq!(made(&good.replace("(3, 4)", "(3L, 4L)")).unwrap().shape, [3, 4]);
    for (from, to) in [
        ("'shape': (3, 4)", "'fortran_order': True"),
        ("(3, 4)", "(3, -4)"),
        ("(3, 4)", "(3 4)"),
        ("(3, 4)", "(18446744073709551615, 2)"),
        ("False", "0"),
        ("'descr'", "'dtype'"),
        ("'descr': '<f4', ", ""),
        (", }", ", } + 1"),
        ("{", ""),
    ] {
        let error = made(&good.replacen(from, to, 1)).unwrap_err();
        assert!(matches!(error.wrong, Wrong::Field { .. }), "{from} as {to}: {error}");
    }
    let many = format!("({})", "1, ".repeat(65));
    assert!(matches!(made(&good.replace("(3, 4)", &many)).unwrap_err().wrong, Wrong::Field { .. }));
    assert!(matches!(made(&good.replace("(3, 4)", "(3, 40)")).unwrap_err().wrong, Wrong::Cut { missing: 416, .. }));
    let empty = made(&good.replace("(3, 4)", "(1099511627776, 0)")).unwrap();
    assert!(matches!(empty.items().unwrap_err().wrong, Wrong::TooMany { .. }));
    let newer = [b"\x93NUMPY\x04\x00".as_slice(), &[0; 80]].concat();
    assert!(matches!(npy(&newer).unwrap_err().wrong, Wrong::Unsupported { .. }));
}

fn sequences(index: &[u8], tokens_len: u64) -> Result<(Vec<Extent>, TokenIndexScan), FormatError> {
    let mut scan = TokenIndexScan::new(index.len() as u64, tokens_len)?;
    Ok((scan_slice(&mut scan, index)?, scan))
}

#[test]
fn sequences_are_those_that_megatron_reads() {
    for (name, token) in [("megatron-u16", Token::U16), ("megatron-i32", Token::I32)] {
        let (index, tokens) = (file(&format!("{name}.idx")), file(&format!("{name}.bin")));
        let (found, scan) = sequences(&index, tokens.len() as u64).unwrap();
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0i64, |sum, byte| sum * 256 + i64::from(*byte));
        let item = usize::try_from(token.item_len()).unwrap();
        let read = |extent: &Extent| -> Vec<i64> { bytes(&tokens, *extent).chunks(item).map(number).collect() };
        let documents: Vec<i64> = bytes(&index, scan.documents_at().unwrap()).chunks(8).map(number).collect();
        let found = serde_json::json!({
            "sequences": found.iter().map(read).collect::<Vec<_>>(), "documents": documents,
        });
        let wanted: Value = serde_json::from_slice(&file(&format!("{name}.json"))).unwrap();
        assert_eq!(found, wanted, "{name}");
        assert_eq!(scan.shape().unwrap().token, token);
    }
}

#[test]
fn an_index_of_another_file_is_noticed() {
    let index = file("megatron-i32.idx");
    let error = sequences(&index, 1291).unwrap_err();
    assert_eq!(error.wrong, Wrong::OutOfFile { what: "a sequence", number: 4 });
    // Its head, and 5 sequences of 12 bytes.
    assert_eq!(sequences(&index, 1292).unwrap().0.len(), 5);
    for len in 0..index.len() {
        let error = sequences(&index[..len], 1292).unwrap_err();
        assert!(matches!(error.wrong, Wrong::Cut { missing, .. } if missing > 0), "{len}: {error}");
    }
    let mut damaged = index.clone();
    damaged[9] = 2;
    assert!(matches!(sequences(&damaged, 1292).unwrap_err().wrong, Wrong::Unsupported { .. }));
    // A count that no file holds asks for nothing.
    let mut huge = index;
    huge[18..26].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(sequences(&huge, 1292).unwrap_err().wrong, Wrong::Cut { .. }));
}

fn mds(shard: &MdsShard, file: &[u8]) -> Result<Vec<Vec<Extent>>, FormatError> {
    let samples = scan_slice(&mut MdsScan::new(file.len() as u64, shard.samples)?, file)?;
    let head = |sample: &Extent| {
        let from = usize::try_from(sample.offset).unwrap();
        let len = usize::try_from(shard.head_len().min(sample.len)).unwrap();
        &file[from..from + len]
    };
    samples.iter().map(|sample| shard.columns_of(*sample, head(sample))).collect()
}

#[test]
fn samples_are_those_that_streaming_reads() {
    let shards = mds_index(&file("mds/index.json")).unwrap();
    assert_eq!(shards.len(), 2);
    let mut found = Vec::new();
    for shard in &shards {
        let file = file(&format!("mds/{}", shard.name));
        assert_eq!(file.len() as u64, shard.len);
        for columns in mds(shard, &file).unwrap() {
            let named = shard.columns.iter().zip(columns).map(|(column, extent)| {
                let value = bytes(&file, extent);
                let value = match column.encoding.as_str() {
                    "int" => i64::from_le_bytes(value.try_into().unwrap()).into(),
                    "str" => str::from_utf8(value).unwrap().into(),
                    _ => hex(value).into(),
                };
                (column.name.clone(), value)
            });
            found.push(Value::from(named.collect::<serde_json::Map<_, _>>()));
        }
    }
    assert_eq!(found, expected("mds"));
}

#[test]
fn shards_that_do_not_fit_their_index_are_told() {
    let shard = mds_index(&file("mds/index.json")).unwrap().remove(0);
    let whole = file("mds/shard.00000.mds");
    for len in 0..whole.len() {
        let error = mds(&shard, &whole[..len]).unwrap_err();
        assert!(matches!(error.wrong, Wrong::Cut { .. } | Wrong::OutOfFile { .. }), "{len}: {error}");
    }
    let other = MdsShard { samples: shard.samples + 1, ..shard.clone() };
    assert_eq!(
        mds(&other, &whole).unwrap_err().wrong,
        Wrong::Differs { what: "the number of samples", here: 5, index: 6 }
    );
    let narrower = MdsShard { columns: shard.columns[1..].to_vec(), ..shard };
    assert!(matches!(
        mds(&narrower, &whole).unwrap_err().wrong,
        Wrong::Field { field: "the columns of an MDS sample" }
    ));
}

#[test]
fn indexes_that_cannot_be_used_are_refused() {
    let text = String::from_utf8(file("mds/index.json")).unwrap();
    let refuse = |from: &str, to: &str| mds_index(text.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
    let packed = String::from_utf8(file("mds-zstd/index.json")).unwrap();
    let refused = mds_index(packed.replace("zstd\"", "br\"").as_bytes()).unwrap_err().to_string();
    assert!(refused.contains("a compression of MDS shards (shard.00000.mds.br, br)"), "{refused}");
    let lost = mds_index(packed.replace("zip_data", "other").as_bytes()).unwrap_err().to_string();
    assert!(lost.contains("the compressed file of an MDS shard"), "{lost}");
    assert!(refuse("shard.00000.mds", "../shard.00000.mds").contains("the name of an MDS shard"));
    assert!(refuse("\"mds\"", "\"jsonl\"").contains("jsonl 2"));
    assert!(refuse("\"box\", ", "").contains("the columns of an MDS shard"));
    assert!(mds_index(b"{}").unwrap_err().to_string().contains("the index of MDS shards"));
}

/// Walks with reads of a byte at a time.
fn by_the_byte<S: Scan>(mut scan: S, file: &[u8]) -> Vec<S::Found> {
    let mut found = Vec::new();
    loop {
        while let Some(next) = scan.next() {
            found.push(next);
        }
        let Some(need) = scan.need() else { return found };
        scan.push(bytes(file, Extent { len: 1, ..need })).unwrap();
    }
}

#[test]
fn short_reads_change_nothing() {
    for name in TARS {
        let file = file(name);
        assert_eq!(by_the_byte(TarScan::new(file.len() as u64).unwrap(), &file), tar(&file).unwrap());
    }
    let (index, array) = (file("megatron-u16.idx"), file("numpy-f4.npy"));
    let shard = file("mds/shard.00001.mds");
    let scan = || MdsScan::new(shard.len() as u64, 2).unwrap();
    assert_eq!(by_the_byte(scan(), &shard), scan_slice(&mut scan(), &shard).unwrap());
    let found = by_the_byte(TokenIndexScan::new(index.len() as u64, 646).unwrap(), &index);
    assert_eq!(found, sequences(&index, 646).unwrap().0);
    assert_eq!(by_the_byte(NpyScan::new(array.len() as u64).unwrap(), &array), [npy(&array).unwrap()]);
    let file = file("tensorflow.tfrecord");
    for payloads in [Payloads::GoOver, Payloads::Check] {
        let found = by_the_byte(TfRecordScan::new(file.len() as u64, payloads).unwrap(), &file);
        assert_eq!(found.iter().map(|record| record.payload).collect::<Vec<_>>(), records(&file, payloads).unwrap());
    }
}

#[test]
fn a_file_that_shrinks_is_told() {
    let mut scan = TarScan::new(10240).unwrap();
    assert!(matches!(scan.push(&[]).unwrap_err().wrong, Wrong::Shrank { .. }));
    assert_eq!(scan.need(), None);
}

/// A cut file either is a whole one that is shorter, or says so; what was found before is right.
#[test]
fn every_cut_is_noticed_or_harmless() {
    for name in TARS {
        let whole = file(name);
        let all = tar(&whole).unwrap();
        // The end mark begins at the block behind the last one that is not all zeros.
        let end = (whole.iter().rposition(|byte| *byte != 0).unwrap() + 1).next_multiple_of(512);
        for len in 0..whole.len() {
            match tar(&whole[..len]) {
                // Without an end mark it may end behind a member, padding or not.
                Ok(found) => assert_eq!(found, all[..found.len()], "{name} cut to {len}"),
                Err(error) => assert!(
                    matches!(error.wrong, Wrong::Cut { missing, .. } if missing > 0) && len < end + 1024,
                    "{name} cut to {len}: {error}"
                ),
            }
        }
    }
    let whole = file("tensorflow.tfrecord");
    let all = records(&whole, Payloads::GoOver).unwrap();
    for len in 0..whole.len() {
        let at_a_record = all.iter().any(|extent| extent.offset == len as u64 + 12);
        match records(&whole[..len], Payloads::Check) {
            Ok(found) => assert!(at_a_record && found == all[..found.len()], "cut to {len}"),
            Err(error) => {
                assert!(
                    !at_a_record && matches!(error.wrong, Wrong::Cut { missing, .. } if missing > 0),
                    "{len}: {error}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// The checksum of the damaged header is put right, so that the damage is believed.
    #[test]
    fn damage_that_is_believed_stays_inside_the_file(
        name in prop::sample::select(TARS.to_vec()),
        block in any::<Index>(),
        at in 0usize..512,
        bytes in prop::collection::vec(any::<u8>(), 1..14),
    ) {
        let mut file = file(name);
        let start = block.index(file.len() / 512) * 512;
        let end = (start + at + bytes.len()).min(start + 512);
        let len = end - start - at;
        file[start + at..end].copy_from_slice(&bytes[..len]);
        let header = &mut file[start..start + 512];
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        for member in tar(&file).unwrap_or_default() {
            let extent = member.content;
            prop_assert!(extent.offset.checked_add(extent.len).is_some_and(|end| end <= file.len() as u64));
        }
    }
}
