//! Members of archives in the pax format, with contents on boundaries.
//!
//! Source: POSIX.1-2017, utility `pax`, "ustar Interchange Format" and "pax Header Block". A content is moved to its boundary by an
//! extended header before its member whose `comment` is as long as is needed; the standard has readers ignore comments.

/// A header, and the unit in which everything is padded.
pub(super) const BLOCK: u64 = 512;
/// What ends an archive: two blocks of zeros.
pub(super) const END: [u8; 1024] = [0; 1024];
/// Bytes of a name that a header holds without splitting it.
const NAME_MAX: usize = 100;
/// Sizes from here on do not fit the digits of a header.
const SIZE_MAX: u64 = 1 << 33;

/// Everything before the content of a member whose header would begin at byte `at` of the archive.
pub(super) fn head(at: u64, name: &str, len: u64, align: u64) -> Vec<u8> {
    let mut records = Vec::new();
    if name.len() > NAME_MAX || !name.is_ascii() {
        records.extend(record("path", name.as_bytes()));
    }
    if len >= SIZE_MAX {
        records.extend(record("size", len.to_string().as_bytes()));
    }
    let align = align.max(BLOCK);
    let content_at = |extension: u64| (at + extension + BLOCK).is_multiple_of(align);
    let mut extension = if records.is_empty() { 0 } else { BLOCK + (records.len() as u64).next_multiple_of(BLOCK) };
    if !content_at(extension) {
        // At least a header and one block; then block by block until the content is on its boundary.
        extension = extension.max(2 * BLOCK);
        while !content_at(extension) {
            extension += BLOCK;
        }
        pad(&mut records, extension - BLOCK);
    }
    let mut head = Vec::new();
    if !records.is_empty() {
        head.extend(header(b'x', b"././@PaxHeader", records.len() as u64));
        head.extend_from_slice(&records);
        head.resize(head.len().next_multiple_of(512), 0);
    }
    head.extend(header(b'0', short(name), if len >= SIZE_MAX { 0 } else { len }));
    head
}

/// Zeros behind a content of so many bytes.
pub(super) fn padding(len: u64) -> &'static [u8] {
    const ZEROS: [u8; 512] = [0; 512];
    let missing = len.next_multiple_of(BLOCK) - len;
    ZEROS.get(..usize::try_from(missing).unwrap_or(0)).unwrap_or_default()
}

/// The part of a name that a header holds, cut between characters: readers that know extended headers take the name from there.
fn short(name: &str) -> &[u8] {
    let mut end = name.len().min(NAME_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name.as_bytes()[..end]
}

/// `LENGTH KEY=VALUE\n`, the length counting all of it.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let without = key.len() + value.len() + 3;
    let mut len = without + 1;
    while len != without + digits(len) {
        len = without + digits(len);
    }
    [len.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// Adds a comment, so that records end in the last of the blocks of `len` bytes.
fn pad(records: &mut Vec<u8>, len: u64) {
    /// `LENGTH comment=` and the line break, with a length of up to ten digits.
    const FRAME_MAX: usize = 20;
    let left = usize::try_from(len).unwrap_or(usize::MAX).saturating_sub(records.len());
    if left >= 512 {
        records.extend(record("comment", &vec![b' '; left - FRAME_MAX]));
    }
}

/// A header block: a regular file or an extended header, of nobody, of no time, so that the same samples give the same archive.
fn header(kind: u8, name: &[u8], len: u64) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{len:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{TarScan, scan_slice};

    #[test]
    fn contents_are_on_their_boundaries_and_names_are_what_they_were() {
        let names = ["a.jpg".to_owned(), format!("{}/b.cls", "d".repeat(200)), "ü.txt".to_owned(), "x".repeat(4000)];
        for align in [512, 1024, 4096, 65_536] {
            let mut archive = Vec::new();
            let mut wanted = Vec::new();
            for len in (0..40u64).map(|step| step * 97) {
                let name = &names[usize::try_from(len % 4).unwrap()];
                let name = format!("{len}-{name}");
                archive.extend(head(archive.len() as u64, &name, len, align));
                assert_eq!(archive.len() as u64 % align, 0, "{align} {len}");
                wanted.push((name.into_bytes(), archive.len() as u64, len));
                archive.resize(archive.len() + usize::try_from(len).unwrap(), 7);
                archive.extend_from_slice(padding(len));
            }
            archive.extend_from_slice(&END);
            let found = scan_slice(&mut TarScan::new(archive.len() as u64).unwrap(), &archive).unwrap();
            let found: Vec<_> =
                found.into_iter().map(|member| (member.name, member.content.offset, member.content.len)).collect();
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for value in [0, 1, 85, 86, 87, 88, 89, 90, 985, 990, 995] {
            let record = record("k", &vec![b'v'; value]);
            let text = str::from_utf8(&record).unwrap();
            assert_eq!(text.split_once(' ').unwrap().0.parse(), Ok(record.len()));
        }
    }

    #[test]
    fn sizes_beyond_the_digits_of_a_header_are_in_the_extended_one() {
        let head = head(0, "a", 9 << 30, 512);
        assert!(String::from_utf8_lossy(&head).contains("size=9663676416\n"));
    }
}
