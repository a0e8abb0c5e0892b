//! The walk over the scatter gather list of a command, as a controller makes it.
//!
//! Written from the document alone (NVMe Base, "Scatter Gather List (SGL)"), as the walk over pages is.

use super::prp::{Bad, Run};

/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// Segments that a list has at most: beyond, it is a loop.
const SEGMENTS_MAX: u32 = 1024;

/// What a descriptor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Data,
    Segment,
    LastSegment,
}

#[derive(Clone, Copy, Debug)]
struct Descriptor {
    what: What,
    at: u64,
    len: u64,
}

/// Address, length, and above the reserved bits the type (7:4 of the last byte) and the subtype, which is 0 for addresses.
fn descriptor(bytes: [u8; 16]) -> Result<Descriptor, Bad> {
    let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, _, _, _, kind] = bytes;
    let at = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
    let len = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
    let what = match kind {
        0x00 => What::Data,
        0x20 => What::Segment,
        0x30 => What::LastSegment,
        _ => return Err(Bad::Entry(format!("descriptor type {kind:#04x}"))),
    };
    Ok(Descriptor { what, at, len })
}

/// The runs of memory of a command over `len` bytes, in order. `unit`: what addresses and lengths are multiples of.
pub(super) fn walk(
    first: [u8; 16],
    len: u64,
    unit: u64,
    mut read: impl FnMut(u64, u64) -> Option<Vec<u8>>,
) -> Result<Vec<Run>, Bad> {
    let mut runs = Vec::new();
    let mut list = vec![descriptor(first)?];
    for _ in 0..SEGMENTS_MAX {
        let mut next = None;
        let last = list.len().saturating_sub(1);
        for (nth, descriptor) in list.iter().enumerate() {
            match descriptor.what {
                What::Data if !descriptor.at.is_multiple_of(unit) || !descriptor.len.is_multiple_of(unit) => {
                    return Err(Bad::Entry(format!("{descriptor:x?} is not aligned to {unit}")));
                }
                What::Data => runs.push((descriptor.at, descriptor.len)),
                _ if nth != last => return Err(Bad::Entry(format!("{descriptor:x?} is not the last of its segment"))),
                _ => next = Some(*descriptor),
            }
        }
        let Some(segment) = next else {
            let sum: u64 = runs.iter().map(|(_, len)| len).sum();
            let fits = sum == len;
            return if fits { Ok(runs) } else { Err(Bad::Entry(format!("a list of {sum} bytes for {len}"))) };
        };
        if segment.len == 0 || !segment.len.is_multiple_of(DESCRIPTOR) || !segment.at.is_multiple_of(8) {
            return Err(Bad::Entry(format!("a segment that is none: {segment:x?}")));
        }
        let bytes = read(segment.at, segment.len).ok_or(Bad::Unreadable(segment.at))?;
        list = bytes.as_chunks().0.iter().map(|bytes| descriptor(*bytes)).collect::<Result<_, _>>()?;
        let goes_on = list.last().is_some_and(|last| last.what != What::Data);
        if goes_on != (segment.what == What::Segment) {
            return Err(Bad::Entry(format!("{segment:x?} and what it holds do not agree on which is the last")));
        }
    }
    Err(Bad::Entry(format!("more than {SEGMENTS_MAX} segments")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(kind: u8, at: u64, len: u32) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[15] = kind;
        bytes
    }

    fn walk_with(first: [u8; 16], len: u64, list: &[[u8; 16]]) -> Result<Vec<Run>, Bad> {
        walk(first, len, 4, |at, len| (at == 0x8000 && len == 16 * list.len() as u64).then(|| list.concat()))
    }

    #[test]
    fn one_descriptor_and_a_segment_of_them() {
        assert_eq!(walk_with(bytes(0, 0x1004, 512), 512, &[]), Ok(vec![(0x1004, 512)]));
        let list = [bytes(0, 0x2000, 8), bytes(0, 0x3000, 504)];
        assert_eq!(walk_with(bytes(0x30, 0x8000, 32), 512, &list), Ok(vec![(0x2000, 8), (0x3000, 504)]));
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        let list = [bytes(0, 0x2000, 8), bytes(0, 0x3000, 504)];
        for (first, len) in [
            (bytes(0, 0x1002, 512), 512),
            (bytes(0, 0x1000, 512), 1024),
            (bytes(0x10, 0x1000, 512), 512),
            (bytes(0x20, 0x8000, 32), 512),
            (bytes(0x30, 0x8000, 24), 512),
        ] {
            assert!(matches!(walk_with(first, len, &list), Err(Bad::Entry(_))), "{first:x?}");
        }
        assert_eq!(walk_with(bytes(0x30, 0x9000, 32), 512, &list), Err(Bad::Unreadable(0x9000)));
        let inner = [bytes(0x30, 0x8000, 32), bytes(0, 0x3000, 504)];
        assert!(matches!(walk_with(bytes(0x30, 0x8000, 32), 512, &inner), Err(Bad::Entry(_))));
        let endless = [bytes(0x20, 0x8000, 16)];
        assert!(matches!(walk_with(bytes(0x20, 0x8000, 16), 0, &endless), Err(Bad::Entry(_))));
    }
}
