//! What each fuzz target does with its bytes. Used by the libFuzzer targets here and by the bounded in-tree run
//! (`tests/mutations.rs`), so that both check the same things.

use std::fmt::Debug;

use sw_data::formats::{
    Extent, FormatError, Grouping, MdsScan, NpyScan, Payloads, Scan, TarScan, TfRecordIndexScan, TfRecordScan,
    TokenIndexScan, Values, WdsIndexScan, example, feature_bytes, mds_index,
};

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
    assert!(message.len() < 1 << 21, "{} bytes", message.len());
}

fn told<T>(result: Result<T, FormatError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(error) => {
            let wrong = format!("{:?}", error.wrong);
            // The name of the kind, of which there are few.
            let kind = wrong.split([' ', '{']).next().unwrap_or_default();
            KINDS.iter().find(|known| **known == kind).copied().unwrap_or("another kind")
        }
    }
}

const KINDS: [&str; 10] =
    ["Cut", "Shrank", "Checksum", "Field", "TooLong", "Unsupported", "OutOfFile", "Differs", "TwoFields", "Damaged"];

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
