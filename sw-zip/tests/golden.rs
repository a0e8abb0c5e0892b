//! Archives that Python's zipfile wrote (`testdata/make.py`), and the same archives cut, extended and damaged.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::path::Path;

use proptest::{prelude::*, sample::Index};
use serde_json::Value;
use sw_zip::{Extent, Member, Method, Wrong, ZipError, ZipScan};

const GOOD: [&str; 5] = ["stored.zip", "deflated.zip", "zip64.zip", "piped.zip", "empty.zip"];

fn file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)).unwrap()
}

/// Walks with reads of at most `most` bytes.
fn walk(file: &[u8], most: u64) -> Result<Vec<Result<Member, ZipError>>, ZipError> {
    let mut scan = ZipScan::new(file.len() as u64)?;
    let mut found = Vec::new();
    loop {
        while let Some(member) = scan.next() {
            found.push(member);
        }
        let Some(need) = scan.need() else { return Ok(found) };
        assert!(need.len > 0 && need.offset + need.len <= file.len() as u64);
        let from = usize::try_from(need.offset).unwrap();
        let len = usize::try_from(need.len.min(most)).unwrap();
        if let Err(error) = scan.push(&file[from..from + len]) {
            assert_eq!(scan.need(), None);
            return Err(error);
        }
    }
}

fn members(file: &[u8]) -> Result<Vec<Member>, ZipError> {
    walk(file, u64::MAX)?.into_iter().collect()
}

#[test]
fn members_are_those_that_python_finds() {
    for name in GOOD {
        let file = file(name);
        let found = members(&file).unwrap().into_iter().map(|member| {
            serde_json::json!({
                "name": String::from_utf8(member.name).unwrap(), "deflated": member.method == Method::Deflated,
                "offset": member.content.offset, "stored": member.content.len, "len": member.len,
                "crc32": member.crc32,
            })
        });
        let found: Vec<Value> = found.collect();
        let wanted: Vec<Value> = if name == "empty.zip" {
            Vec::new()
        } else {
            serde_json::from_slice(&self::file(&format!("{name}.json"))).unwrap()
        };
        assert_eq!(found, wanted, "{name}");
        assert_eq!(walk(&file, 1), walk(&file, u64::MAX), "{name}");
    }
}

#[test]
fn other_methods_and_encryption_are_told_for_each_member() {
    let found = walk(&file("bzip2.zip"), u64::MAX).unwrap();
    let refused = |member: &&Result<Member, ZipError>| {
        matches!(member, Err(ZipError { wrong: Wrong::Method { method: 12 }, .. }))
    };
    assert_eq!((found.iter().filter(refused).count(), found.len()), (5, 5));
    let mut encrypted = file("stored.zip");
    let entry = encrypted.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    encrypted[entry + 8] |= 1;
    let found = walk(&encrypted, u64::MAX).unwrap();
    assert!(matches!(found[0], Err(ZipError { wrong: Wrong::Unsupported { .. }, .. })), "{found:?}");
    assert!(found[1..].iter().all(Result::is_ok));
}

/// Puts a zip64 end record and its locator before the end record, whose numbers become all ones.
fn with_end64(name: &str) -> Vec<u8> {
    let mut file = file(name);
    let end = file.split_off(file.len() - 22);
    let (members, len, offset) = (&end[10..12], &end[12..16], &end[16..20]);
    let record = file.len() as u64;
    file.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0-\0-\0\0\0\0\0\0\0\0\0");
    for number in [members, members, len, offset] {
        file.extend(number);
        file.extend(vec![0; 8 - number.len()]);
    }
    file.extend(b"PK\x06\x07\0\0\0\0");
    file.extend(record.to_le_bytes());
    file.extend([1, 0, 0, 0]);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([0xff; 12]);
    file.extend([0, 0]);
    file
}

#[test]
fn a_zip64_end_record_is_read() {
    let whole = with_end64("stored.zip");
    assert_eq!(members(&whole).unwrap(), members(&file("stored.zip")).unwrap());
    let record = whole.len() - 22 - 20 - 56;
    let mut damaged = whole.clone();
    damaged[record] = b'Q';
    assert!(matches!(members(&damaged).unwrap_err().wrong, Wrong::Record { what: "the zip64 end record" }));
    // The locator points behind itself.
    let mut damaged = whole.clone();
    damaged[record + 56 + 8] = 0xff;
    damaged[record + 56 + 9] = 0xff;
    assert!(matches!(members(&damaged).unwrap_err().wrong, Wrong::Outside { what: "the zip64 end record" }));
    let mut damaged = whole;
    damaged[record + 24] ^= 4;
    damaged[record + 32] ^= 4;
    assert!(matches!(members(&damaged).unwrap_err().wrong, Wrong::Count { here: 5, end: 1 }));
}

#[test]
fn more_members_than_a_piece_of_the_directory_holds() {
    // 20,000 empty members by hand: 1.2 MB of directory.
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for number in 0..20_000u32 {
        let name = format!("member-{number:05}");
        let offset = u32::try_from(file.len()).unwrap();
        file.extend(b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0");
        file.extend([0; 12]);
        file.extend([12, 0, 0, 0]);
        file.extend(name.as_bytes());
        directory.extend(b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0");
        directory.extend([0; 12]);
        directory.extend([12, 0]);
        directory.extend([0; 12]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let offset = u32::try_from(file.len()).unwrap();
    let len = u32::try_from(directory.len()).unwrap();
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([20_000u16.to_le_bytes(), 20_000u16.to_le_bytes()].concat());
    file.extend([len.to_le_bytes(), offset.to_le_bytes()].concat());
    // A comment that looks like an end record: the real one is the one whose comment ends with the file.
    let comment = b"PK\x05\x06 is no end record..";
    file.extend(u16::try_from(comment.len()).unwrap().to_le_bytes());
    file.extend(comment);
    let found = members(&file).unwrap();
    assert_eq!(found.len(), 20_000);
    for (number, member) in found.iter().enumerate() {
        assert_eq!(member.name, format!("member-{number:05}").as_bytes());
        assert_eq!(member.content, Extent { offset: 42 * (number as u64 + 1), len: 0 });
    }
}

#[test]
fn every_cut_is_noticed() {
    for name in GOOD {
        let whole = file(name);
        for len in 0..whole.len() {
            let error = members(&whole[..len]).unwrap_err();
            assert!(matches!(error.wrong, Wrong::NoEnd), "{name} cut to {len}: {error}");
            // Cut in front, nothing is where the directory says.
            if len > 0 && name != "empty.zip" {
                assert!(members(&whole[len..]).is_err(), "{name} without {len} in front");
            }
        }
    }
}

#[test]
fn a_member_that_is_another_one_is_told_and_the_rest_found() {
    let mut damaged = file("stored.zip");
    let wanted = members(&damaged).unwrap();
    let third = usize::try_from(wanted[2].content.offset).unwrap();
    damaged[third - 1] ^= 1;
    let found = walk(&damaged, u64::MAX).unwrap();
    assert!(matches!(found[2], Err(ZipError { wrong: Wrong::OtherMember { what: "its name" }, .. })), "{found:?}");
    let rest: Vec<_> = found.into_iter().filter_map(Result::ok).collect();
    assert_eq!(rest, [&wanted[..2], &wanted[3..]].concat());
}

#[test]
fn an_archive_that_shrinks_is_told() {
    let mut scan = ZipScan::new(1000).unwrap();
    assert_eq!(scan.push(&[]).unwrap_err().wrong, Wrong::Shrank);
    assert_eq!(scan.need(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn damage_gives_errors_or_members_inside_the_archive(
        name in prop::sample::select(GOOD.to_vec()),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 1..6),
        is_wide in any::<bool>(),
    ) {
        let mut file = if is_wide { with_end64("stored.zip") } else { file(name) };
        // The directory is in the last fifth: damage there means most.
        for (number, (place, byte)) in changes.into_iter().enumerate() {
            let window = if number % 2 == 0 { file.len() } else { file.len().min(500) };
            let at = file.len() - window + place.index(window);
            file[at] = byte;
        }
        let whole = walk(&file, u64::MAX);
        prop_assert_eq!(&whole, &walk(&file, 7));
        for member in whole.into_iter().flatten().flatten() {
            let Extent { offset, len } = member.content;
            prop_assert!(offset.checked_add(len).is_some_and(|end| end <= file.len() as u64));
        }
    }
}
