//! What each fuzz target does with its bytes. Used by the libFuzzer targets here and by the bounded in-tree run
//! (`tests/mutations.rs`), so that both check the same things.

use std::fmt::Debug;

use sw_data::decode::{Limits, Rows, mds_shard, npz_array, parquet_rows, rows};
use sw_data::formats::{
    BinlogScan, Codec, ColumnCoding, Extent, FormatError, Grouping, MdsScan, NpyScan, NpzContent, NpzScan, ParquetRows,
    ParquetScan, Payloads, Physical, Scan, TarScan, TfRecordIndexScan, TfRecordScan, TokenIndexScan, Values,
    WdsIndexScan, Wrong, example, feature_bytes, mds_index,
};
use sw_data::samples::Format;

/// What a block of a few bytes may decode to.
const LIMITS: Limits = Limits { bytes: 1 << 20 };

/// Bytes of the file that a side-car or an index is about.
const OTHER_LEN: u64 = 20_480;

/// Walks `file` twice, by whole and by short reads, and checks what every walk promises.
fn walk<S: Scan<Found: PartialEq + Debug>>(
    begin: impl Fn() -> Result<S, FormatError>,
    file: &[u8],
) -> Result<Vec<S::Found>, FormatError> {
    let whole = once(begin(), file, 1);
    assert_eq!(whole, once(begin(), file, 3), "short reads change what is found");
    if let Err(error) = &whole {
        check_message(&error.to_string());
    }
    whole
}

fn once<S: Scan>(scan: Result<S, FormatError>, file: &[u8], part: u64) -> Result<Vec<S::Found>, FormatError> {
    let mut scan = scan?;
    let mut found = Vec::new();
    let mut steps = 0;
    loop {
        while let Some(next) = scan.next() {
            found.push(next);
        }
        while let Some(damaged) = scan.damaged() {
            assert_inside(damaged.extent, file.len() as u64);
        }
        let Some(need) = scan.need() else { return Ok(found) };
        assert!(need.len > 0);
        assert_inside(need, file.len() as u64);
        let from = usize::try_from(need.offset).expect("inside the slice");
        let len = usize::try_from(need.len.div_ceil(part)).expect("inside the slice");
        if let Err(error) = scan.push(&file[from..from + len]) {
            assert_eq!(scan.need(), None, "a walk that failed goes on");
            return Err(error);
        }
        steps += 1;
        assert!(steps < 1_000 + 20 * file.len(), "the walk makes no progress");
    }
}

fn assert_inside(extent: Extent, len: u64) {
    assert!(extent.offset.checked_add(extent.len).is_some_and(|end| end <= len), "{extent:?} of {len}");
}

/// One line that a terminal can show, of bounded length.
fn check_message(message: &str) {
    assert!(!message.chars().any(char::is_control), "{message:?}");
    assert!(message.len() < 10_000, "{} bytes", message.len());
}

fn told<T>(result: Result<T, FormatError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(error) => {
            let wrong = format!("{:?}", error.wrong);
            // The name of the kind, of which there are few.
            let kind = wrong.split([' ', '(', '{']).next().unwrap_or_default();
            KINDS.iter().find(|known| **known == kind).copied().unwrap_or("another kind")
        }
    }
}

const KINDS: [&str; 12] = [
    "Cut",
    "Shrank",
    "Checksum",
    "Field",
    "TooLong",
    "Unsupported",
    "OutOfFile",
    "Differs",
    "TwoFields",
    "TooMany",
    "Archive",
    "Column",
];

/// Takes `file` for an archive, with its members grouped to samples.
pub fn tar(file: &[u8]) -> &'static str {
    let len = file.len() as u64;
    let members = walk(|| TarScan::new(len), file);
    let mut grouping = Grouping::default();
    for member in members.as_deref().unwrap_or_default() {
        assert_inside(member.content, len);
        if let Ok(Some(sample)) = grouping.add(member) {
            assert!(!sample.fields.is_empty());
        }
    }
    grouping.finish();
    told(members)
}

/// Takes `file` for a TFRecord file, and its payloads for examples.
pub fn tfrecord(file: &[u8]) -> &'static str {
    let len = file.len() as u64;
    let over = walk(|| TfRecordScan::new(len, Payloads::GoOver), file);
    let checked = walk(|| TfRecordScan::new(len, Payloads::Check), file);
    let on = walk(|| TfRecordScan::new(len, Payloads::CheckAndGoOn), file);
    if let Ok(found) = &checked {
        assert_eq!(over.as_ref(), Ok(found));
        assert_eq!(on.as_ref(), Ok(found));
    }
    // What is found is what is not damaged, so that heads alone find as much or more.
    if let (Ok(over), Ok(on)) = (&over, &on) {
        assert!(on.iter().all(|record| over.contains(record)));
    }
    for record in over.iter().flatten() {
        assert_inside(record.framed(), len);
    }
    told(on)
}

/// Takes `bytes` for a `tf.train.Example`.
pub fn example_message(bytes: &[u8]) -> &'static str {
    let features = example(bytes);
    if let Ok(features) = &features {
        for feature in features {
            if let Values::Bytes(extents) = &feature.values {
                extents.iter().for_each(|extent| assert_inside(*extent, bytes.len() as u64));
                let one = feature_bytes(bytes, feature.name);
                assert_eq!(one.ok().flatten(), if extents.len() == 1 { Some(extents[0]) } else { None });
            }
        }
    }
    told(features)
}

/// Takes `file` for an MDS index if it begins like one, for a shard otherwise.
pub fn mds(file: &[u8]) -> &'static str {
    if file.first() == Some(&b'{') {
        return told(mds_index(file));
    }
    let len = file.len() as u64;
    let samples = file.first_chunk::<4>().map_or(0, |number| u64::from(u32::from_le_bytes(*number)));
    let found = walk(|| MdsScan::new(len, samples), file);
    for sample in found.iter().flatten() {
        assert_inside(*sample, len);
    }
    told(found)
}

/// Takes `file` for an array.
pub fn npy(file: &[u8]) -> &'static str {
    let found = walk(|| NpyScan::new(file.len() as u64), file);
    for array in found.iter().flatten() {
        assert_inside(array.content, file.len() as u64);
    }
    told(found)
}

/// Takes `file` for a binlog of Milvus, and decodes the Parquet files that are found in it.
pub fn binlog(file: &[u8]) -> &'static str {
    let found = walk(|| BinlogScan::new(file.len() as u64), file);
    for payload in found.iter().flatten() {
        assert_inside(payload.extent, file.len() as u64);
        let _outcome = parquet(part(file, payload.extent));
    }
    told(found)
}

/// Takes `file` for the index of a token file.
pub fn idx(file: &[u8]) -> &'static str {
    let found = walk(|| TokenIndexScan::new(file.len() as u64, OTHER_LEN), file);
    for sequence in found.iter().flatten() {
        assert_inside(*sequence, OTHER_LEN);
    }
    told(found)
}

/// Takes `file` for an index of DALI's: of a WebDataset archive if it begins like one, of a TFRecord file otherwise.
pub fn sidecar(file: &[u8]) -> &'static str {
    if file.first() == Some(&b'v') {
        let found = walk(|| WdsIndexScan::new(file.len() as u64, OTHER_LEN), file);
        for field in found.iter().flatten().flat_map(|sample| &sample.fields) {
            assert_inside(field.content, OTHER_LEN);
        }
        return told(found);
    }
    let found = walk(|| TfRecordIndexScan::new(file.len() as u64, 1185), file);
    for record in found.iter().flatten() {
        assert_inside(record.framed(), 1185);
    }
    told(found)
}

/// Takes `file` for an archive of arrays, and inflates those that are deflated.
pub fn npz(file: &[u8]) -> &'static str {
    let found = walk(|| NpzScan::new(file.len() as u64), file);
    for array in found.iter().flatten() {
        assert_inside(array.member, file.len() as u64);
        assert_inside(array.block, file.len() as u64);
        assert!(array.block.offset + array.block.len == array.member.offset + array.member.len);
        match &array.content {
            NpzContent::Stored(array) => assert_inside(array.content, file.len() as u64),
            NpzContent::Deflated(len) => {
                let member = part(file, array.member);
                if let Ok(npz) = npz_array(member, Some(*len), Some(array.crc32), LIMITS) {
                    assert!(npz.file.len() as u64 == *len && npz.elements().len() <= npz.file.len());
                }
                drop(rows(Format::Npz, "", part(file, array.block), LIMITS));
            }
        }
    }
    told(found)
}

fn part(file: &[u8], extent: Extent) -> &[u8] {
    let from = usize::try_from(extent.offset).expect("inside the slice");
    &file[from..from + usize::try_from(extent.len).expect("inside the slice")]
}

/// Takes `file` for a Parquet file, and decodes the blocks that are found.
pub fn parquet(file: &[u8]) -> &'static str {
    let len = file.len() as u64;
    let mut column = None;
    let mut found = walk(|| ParquetScan::new(len, None), file);
    if let Err(FormatError { wrong: Wrong::Column { columns, .. }, .. }) = &found {
        column = columns.split(", ").next().map(str::to_owned);
        found = walk(|| ParquetScan::new(len, column.as_deref()), file);
    }
    let mut coding = None;
    if let Ok(mut scan) = ParquetScan::new(len, column.as_deref()) {
        while let (None, Some(need)) = (scan.coding(), scan.need()) {
            if scan.push(part(file, need)).is_err() {
                break;
            }
        }
        coding = scan.coding();
    }
    for rows in found.iter().flatten() {
        match (*rows, coding) {
            (ParquetRows::Values { first, rows }, _) => {
                let len_all = first.len.checked_mul(rows).expect("in the file");
                assert_inside(Extent { len: len_all, ..first }, len);
            }
            (ParquetRows::Missing { rows }, _) => assert!(rows > 0),
            (ParquetRows::Block { extent, rows, .. }, Some(coding)) => {
                assert!(rows > 0);
                assert_inside(extent, len);
                if let Ok(rows) = parquet_rows(&coding, part(file, extent), LIMITS) {
                    check_rows(&rows);
                }
            }
            (ParquetRows::Block { .. }, None) => panic!("a block, and nobody knows how it is coded"),
        }
    }
    told(found)
}

fn check_rows(rows: &Rows) {
    let all: usize = (0..rows.len()).map(|row| rows.get(row).expect("a row").len()).sum();
    assert!(all as u64 <= LIMITS.bytes);
    assert_eq!(rows.get(rows.len()), None);
}

/// By the number that [`block`] takes for them.
pub const CODECS: [Codec; 6] = [Codec::Plain, Codec::Snappy, Codec::Gzip, Codec::Lz4, Codec::Zstd, Codec::Brotli];

/// Takes `bytes` for a block of each kind; the first four say how a Parquet column is coded.
pub fn block(bytes: &[u8]) -> &'static str {
    const PHYSICALS: [Physical; 8] = [
        Physical::Bytes,
        Physical::Boolean,
        Physical::Int32,
        Physical::Int64,
        Physical::Int96,
        Physical::Float,
        Physical::Double,
        Physical::Fixed(5),
    ];
    let shard = mds_shard(bytes, LIMITS).map(|rows| check_rows(&rows));
    let array = npz_array(bytes, None, None, LIMITS).map(drop);
    let Some(([physical, codec, definition, repetition], block)) = bytes.split_first_chunk::<4>() else {
        return "too short";
    };
    let coding = ColumnCoding {
        physical: PHYSICALS[usize::from(*physical) % PHYSICALS.len()],
        codec: CODECS[usize::from(*codec) % CODECS.len()],
        definition: definition % 4,
        repetition: repetition % 3,
    };
    let rows = parquet_rows(&coding, block, LIMITS).map(|rows| check_rows(&rows));
    match (rows, shard, array) {
        (Ok(()), ..) => "rows",
        (_, Ok(()), _) => "shard",
        (.., Ok(())) => "array",
        _ => "none",
    }
}
