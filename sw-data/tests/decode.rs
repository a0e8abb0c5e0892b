//! Samples that must be decoded, of files that other people's software wrote (`testdata/make.py`), and the same files damaged.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};
use sw_data::decode::{DecodeError, Limits, Rows, mds_shard, npz_array, parquet_rows, rows};
use sw_data::formats::{
    BINLOG_COLUMN, BinlogEvent, BinlogScan, ColumnCoding, Extent, FormatError, Layout, MdsCompression, MdsScan,
    NpzArray, NpzContent, NpzScan, ParquetRows, ParquetScan, Scan, Wrong, mds_index, scan_slice,
};
use sw_data::samples::Format;

fn file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)).unwrap()
}

fn bytes(file: &[u8], extent: Extent) -> &[u8] {
    let offset = usize::try_from(extent.offset).unwrap();
    &file[offset..offset + usize::try_from(extent.len).unwrap()]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn scan(file: &[u8], column: Option<&str>) -> Result<(Vec<ParquetRows>, ColumnCoding), FormatError> {
    let mut scan = ParquetScan::new(file.len() as u64, column)?;
    let found = scan_slice(&mut scan, file)?;
    Ok((found, scan.coding().unwrap()))
}

fn decode(coding: &ColumnCoding, block: &[u8]) -> Result<Rows, DecodeError> {
    let found = rows(Format::Parquet, &coding.to_string(), block, Limits::default());
    assert_eq!(found, parquet_rows(coding, block, Limits::default()));
    found
}

/// The value of every row, found in place or decoded, as a loader would have it.
fn values(file: &[u8], column: Option<&str>) -> Vec<Vec<u8>> {
    let (found, coding) = scan(file, column).unwrap();
    let mut values = Vec::new();
    for rows in found {
        match rows {
            ParquetRows::Values { first, rows } => {
                let at = |row| Extent { offset: first.offset + row * first.len, ..first };
                values.extend((0..rows).map(|row| bytes(file, at(row)).to_vec()));
            }
            ParquetRows::Missing { rows } => values.extend((0..rows).map(|_| Vec::new())),
            ParquetRows::Block { extent, first_row, rows } => {
                let decoded = decode(&coding, bytes(file, extent)).unwrap();
                let row = |row| decoded.get(usize::try_from(row).unwrap()).unwrap().to_vec();
                values.extend((first_row..first_row + rows).map(row));
            }
        }
    }
    values
}

fn parquet_names() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/parquet");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".parquet")).collect();
    names.sort();
    assert!(names.len() > 35, "{names:?}");
    names
}

#[test]
fn rows_are_those_that_pyarrow_reads() {
    for name in parquet_names() {
        let wanted: Value = serde_json::from_slice(&file(&format!("parquet/{name}.json"))).unwrap();
        let values = values(&file(&format!("parquet/{name}")), wanted["column"].as_str());
        assert_eq!(values.len() as u64, wanted["rows"].as_u64().unwrap(), "{name}");
        let mut whole = Sha256::new();
        for value in &values {
            whole.update((value.len() as u64).to_le_bytes());
            whole.update(value);
        }
        assert_eq!(hex(&whole.finalize()), wanted["sha256"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn plain_values_are_found_in_place_and_others_by_the_page() {
    let kinds = |name: &str| {
        let (found, _) = scan(&file(&format!("parquet/{name}.parquet")), None).unwrap();
        let count = |wanted: fn(&ParquetRows) -> bool| found.iter().filter(|rows| wanted(rows)).count();
        (
            count(|rows| matches!(rows, ParquetRows::Values { .. })),
            count(|rows| matches!(rows, ParquetRows::Missing { .. })),
            count(|rows| matches!(rows, ParquetRows::Block { .. })),
        )
    };
    assert_eq!(kinds("plain-v1"), (60, 0, 0));
    assert_eq!(kinds("nulls-v2"), (51, 9, 0));
    assert_eq!(kinds("required-v1").2, 0);
    assert_eq!(kinds("long"), (4, 0, 0));
    // One block of the dictionary and what needs it, then values where they lie.
    let (plain, _, blocks) = kinds("fallback-v1");
    assert!(plain > 20 && blocks == 1, "{plain} {blocks}");
    // A page each, not the chunk.
    assert!(kinds("zstd-v1").2 > 1);
    let (found, _) = scan(&file("parquet/fixed.parquet"), Some("key")).unwrap();
    assert!(matches!(found[..], [ParquetRows::Values { first: Extent { len: 12, .. }, rows: 33 }]), "{found:?}");
}

#[test]
fn a_long_value_is_jumped_over() {
    let file = file("parquet/long.parquet");
    let mut scan = ParquetScan::new(file.len() as u64, None).unwrap();
    let mut asked = Vec::new();
    while let Some(need) = scan.need() {
        asked.push(need.len);
        scan.push(bytes(&file, need)).unwrap();
    }
    // The end of the file, the head of the page, its levels; the first lengths, the one behind 70,000 bytes alone, and the rest.
    assert_eq!(asked, [65_536, 256, 256, 65_536, 4, 40_011]);
}

#[test]
fn the_column_is_the_one_that_is_meant() {
    let two = file("parquet/two.parquet");
    let said = |column| scan(&two, column).unwrap_err().to_string();
    assert!(said(None).contains("several columns of byte strings; name one column of: a, b, c"), "{}", said(None));
    assert!(said(Some("d")).contains("there is no column d"));
    assert_eq!(values(&two, Some("c")), [b"z"]);
    let struct_ = file("parquet/struct.parquet");
    let (_, coding) = scan(&struct_, None).unwrap();
    assert_eq!(coding.to_string(), "bytes plain 2 0");
    // No bytes but one text.
    assert_eq!(scan(&file("parquet/text.parquet"), None).unwrap().1.to_string(), "bytes snappy 1 0");
    let none = scan(&file("parquet/int64.parquet"), None).unwrap_err().to_string();
    assert!(none.contains("no column of byte strings; name one column of: n"), "{none}");
}

#[test]
fn a_codec_that_is_not_read_is_refused_by_name() {
    // The footer has the codec of the column as a compact integer behind the header of its field, zigzag: 8 is BROTLI, 6 is LZO.
    let mut whole = file("parquet/brotli.parquet");
    let places: Vec<_> = (0..whole.len() - 1).filter(|&at| whole[at..at + 2] == [0x15, 8]).collect();
    let named = |whole: &[u8]| match scan(whole, None) {
        Err(error) => matches!(&error.wrong, Wrong::Unsupported { name, .. } if name == "LZO"),
        Ok(_) => false,
    };
    let found = places.into_iter().any(|at| {
        whole[at + 1] = 6;
        let found = named(&whole);
        whole[at + 1] = 8;
        found
    });
    assert!(found);
}

#[test]
fn every_cut_of_a_parquet_file_is_noticed() {
    for name in ["plain-v1", "zstd-v2", "lists-v1", "empty"] {
        let whole = file(&format!("parquet/{name}.parquet"));
        let column = (name == "lists-v1").then_some("tokens.list.element");
        for len in 0..whole.len() {
            assert!(scan(&whole[..len], column).is_err(), "{name} cut to {len}");
        }
    }
}

#[test]
fn every_cut_of_a_block_is_noticed() {
    for name in ["zstd-v2", "dictionary-v1", "snappy-v1", "gzip-v1", "lz4-v2", "brotli"] {
        let whole = file(&format!("parquet/{name}.parquet"));
        let (found, coding) = scan(&whole, None).unwrap();
        let ParquetRows::Block { extent, .. } = found[0] else { panic!("{name}") };
        let block = bytes(&whole, extent);
        let all = decode(&coding, block).unwrap();
        for len in 0..block.len() {
            match decode(&coding, &block[..len]) {
                Err(DecodeError::Damaged { .. }) => {}
                // Between two pages.
                Ok(rows) => assert!(rows.len() < all.len(), "{name} cut to {len}"),
                Err(other) => panic!("{name} cut to {len}: {other}"),
            }
        }
    }
}

#[test]
fn a_page_with_a_wrong_checksum_is_told() {
    let mut whole = file("parquet/checksum.parquet");
    let (found, coding) = scan(&whole, None).unwrap();
    let ParquetRows::Block { extent, .. } = found[0] else { panic!() };
    assert!(decode(&coding, bytes(&whole, extent)).is_ok());
    let last = usize::try_from(extent.offset + extent.len).unwrap() - 1;
    whole[last] ^= 1;
    let error = decode(&coding, bytes(&whole, extent)).unwrap_err();
    assert!(matches!(error, DecodeError::Checksum { what: "a page", .. }), "{error}");
}

#[test]
fn a_block_that_grows_beyond_the_limit_is_refused() {
    let whole = file("parquet/many.parquet");
    let (found, coding) = scan(&whole, None).unwrap();
    let ParquetRows::Block { extent, rows, .. } = found[0] else { panic!() };
    assert_eq!(rows, 30_000);
    let block = bytes(&whole, extent);
    let few = Limits { bytes: 200_000 };
    assert_eq!(parquet_rows(&coding, block, few), Err(DecodeError::TooLong { max: 200_000 }));
    assert_eq!(parquet_rows(&coding, block, Limits { bytes: 300_000 }).unwrap().len(), 30_000);
}

#[test]
fn missing_values_without_end_are_refused() {
    // A page of version 1 of 2²⁰ missing values of one row: levels of repetition 0, 1, 1, …, and of definition 0.
    let values = [0x80, 0x80, 0x80, 0x01];
    let rest_of_row = [0xfe, 0xff, 0x7f, 1];
    let levels = [&[6, 0, 0, 0, 2, 0][..], &rest_of_row, &[5, 0, 0, 0], &values, &[0]].concat();
    let len = u8::try_from(2 * levels.len()).unwrap();
    let head = [&[0x15, 0, 0x15, len, 0x15, len, 0x2c, 0x15][..], &values, &[0x15, 0, 0x15, 6, 0x15, 6, 0, 0]].concat();
    let page = [head, levels].concat();
    let coding: ColumnCoding = "bytes plain 2 1".parse().unwrap();
    let limits = Limits { bytes: 1 << 21 };
    let one = parquet_rows(&coding, &page, limits).unwrap();
    assert_eq!((one.len(), one.get(0)), (1, Some(&[][..])));
    assert_eq!(parquet_rows(&coding, &page.repeat(2), limits).unwrap().len(), 2);
    assert_eq!(parquet_rows(&coding, &page.repeat(3), limits), Err(DecodeError::TooLong { max: 1 << 21 }));
}

#[test]
fn compressed_shards_have_the_samples_of_plain_ones() {
    let (plain, packed) = (file("mds/index.json"), file("mds-zstd/index.json"));
    let shards = mds_index(&plain).unwrap().into_iter().zip(mds_index(&packed).unwrap());
    for (plain, packed) in shards {
        assert_eq!((packed.compression, packed.samples), (Some(MdsCompression::Zstd), plain.samples));
        let whole = file(&format!("mds/{}", plain.name));
        let samples = scan_slice(&mut MdsScan::new(whole.len() as u64, plain.samples).unwrap(), &whole).unwrap();
        let block = file(&format!("mds-zstd/{}", packed.name));
        assert_eq!(block.len() as u64, packed.len);
        let rows = mds_shard(&block, Limits::default()).unwrap();
        assert_eq!(rows.len(), samples.len());
        for (number, sample) in samples.into_iter().enumerate() {
            assert_eq!(rows.get(number), Some(bytes(&whole, sample)));
        }
        for len in 0..block.len() {
            assert!(mds_shard(&block[..len], Limits::default()).is_err(), "cut to {len}");
        }
        assert!(matches!(mds_shard(&block, Limits { bytes: 1000 }), Err(DecodeError::TooLong { .. })));
        // What it decodes to is no MDS shard by being compressed.
        assert!(mds_shard(&whole, Limits::default()).is_err());
    }
}

fn npz(file: &[u8]) -> Result<Vec<NpzArray>, FormatError> {
    scan_slice(&mut NpzScan::new(file.len() as u64)?, file)
}

#[test]
fn arrays_of_archives_are_those_that_numpy_reads() {
    for name in ["stored.npz", "deflated.npz"] {
        let whole = file(name);
        let found = npz(&whole).unwrap().into_iter().map(|found| {
            let member = bytes(&whole, found.member);
            let (array, elements) = match found.content {
                NpzContent::Stored(array) => {
                    let elements = bytes(&whole, array.content).to_vec();
                    assert_eq!(array.layout == Layout::ColumnMajor, found.name == "fortran");
                    (array, elements)
                }
                NpzContent::Deflated(len) => {
                    for len in 0..member.len() {
                        let cut = npz_array(&member[..len], None, Some(found.crc32), Limits::default());
                        assert!(cut.is_err(), "{} cut to {len}", found.name);
                    }
                    assert!(npz_array(member, Some(len - 1), None, Limits::default()).is_err());
                    assert!(npz_array(member, Some(len), Some(!found.crc32), Limits::default()).is_err());
                    assert!(npz_array(member, None, None, Limits { bytes: len - 1 }).is_err());
                    let npz = npz_array(member, Some(len), Some(found.crc32), Limits::default()).unwrap();
                    let elements = npz.elements().to_vec();
                    let mut block = bytes(&whole, found.block).to_vec();
                    let row = rows(Format::Npz, "", &block, Limits::default()).unwrap();
                    // The checksum of the header is that of the directory, and is compared.
                    block[14] ^= 1;
                    let wrong = rows(Format::Npz, "", &block, Limits::default()).unwrap_err();
                    assert!(matches!(wrong, DecodeError::Checksum { .. }), "{wrong}");
                    // A writer to a stream does not know it yet, and says so.
                    block[6] |= 8;
                    assert_eq!(rows(Format::Npz, "", &block, Limits::default()), Ok(row.clone()));
                    assert!(rows(Format::Npz, "", member, Limits::default()).is_err());
                    assert_eq!((row.len(), row.get(0)), (1, Some(&elements[..])));
                    (npz.array, elements)
                }
            };
            (found.name, serde_json::json!({"descr": array.descr, "shape": array.shape, "hex": hex(&elements)}))
        });
        let found: serde_json::Map<_, _> = found.collect();
        let wanted: Value = serde_json::from_slice(&file(&format!("{name}.json"))).unwrap();
        assert_eq!(Value::from(found), wanted, "{name}");
    }
}

#[test]
fn a_bad_array_is_told_and_the_others_are_found() {
    let whole = file("objects.npz");
    let mut scan = NpzScan::new(whole.len() as u64).unwrap();
    let found = scan_slice(&mut scan, &whole).unwrap();
    assert_eq!(found.iter().map(|array| array.name.as_str()).collect::<Vec<_>>(), ["good"]);
    let bad = scan.damaged().unwrap();
    assert!(matches!(&bad.error.wrong, Wrong::Unsupported { name, .. } if name == "|O"), "{bad:?}");
    assert!(bad.error.offset >= bad.extent.offset);
    for len in 0..whole.len() {
        assert!(matches!(npz(&whole[..len]).unwrap_err().wrong, Wrong::Archive(sw_zip::Wrong::NoEnd)), "{len}");
    }
}

/// Binlogs that Milvus 2.3.5 wrote: the keys 3,000 to 4,999 of a segment, and two deletes.
#[test]
fn binlogs_of_milvus_are_decoded() {
    let of = |name: &str, event| {
        let file = file(name);
        let found = scan_slice(&mut BinlogScan::new(file.len() as u64).unwrap(), &file).unwrap();
        assert_eq!((found.len(), found[0].event), (1, event));
        values(bytes(&file, found[0].extent), Some(BINLOG_COLUMN))
    };
    let keys: Vec<Vec<u8>> = (3000_i64..5000).map(|key| key.to_le_bytes().to_vec()).collect();
    assert_eq!(of("milvus/int64.binlog", BinlogEvent::Insert), keys);
    let mut deletes: Vec<Value> = of("milvus/deletes.binlog", BinlogEvent::Delete)
        .iter()
        .map(|line| serde_json::from_slice::<Value>(line).unwrap()["pk"].clone())
        .collect();
    deletes.sort_by_key(Value::as_i64);
    assert_eq!(deletes, [10, 11]);
}
