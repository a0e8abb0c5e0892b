//! The walk over the physical region pages of a command, as a controller makes it.
//!
//! Written from the document alone (NVMe Base, "Physical Region Page Entry and List"), so that it shares no mistake with
//! the driver that fills the entries.

/// Why a walk ends early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// An entry breaks the rules; the text says which.
    Entry(String),
    /// A list is where nothing can be read.
    Unreadable(u64),
}

/// A run of bytes: address and length.
pub(super) type Run = (u64, u64);

/// Bytes of a list entry.
const ENTRY: u64 = 8;

/// The runs of memory of a command over `len` bytes, in order. `read` gives the bytes of a list.
pub(super) fn walk(
    prp1: u64,
    prp2: u64,
    len: u64,
    page: u64,
    mut read: impl FnMut(u64, u64) -> Option<Vec<u8>>,
) -> Result<Vec<Run>, Bad> {
    let bad = |text: String| Err(Bad::Entry(text));
    if len == 0 {
        return Ok(Vec::new());
    }
    if !prp1.is_multiple_of(4) {
        return bad(format!("PRP1 {prp1:#x} is no multiple of 4"));
    }
    let first = len.min(page - prp1 % page);
    let mut runs = vec![(prp1, first)];
    let mut left = len - first;
    if left == 0 {
        return Ok(runs);
    }
    if left <= page {
        if !prp2.is_multiple_of(page) {
            return bad(format!("PRP2 {prp2:#x} has an offset in its page"));
        }
        runs.push((prp2, left));
        return Ok(runs);
    }
    if !prp2.is_multiple_of(ENTRY) {
        return bad(format!("the list at {prp2:#x} is not aligned to its entries"));
    }
    let mut list = prp2;
    while left > 0 {
        let room = (page - list % page) / ENTRY;
        let wanted = left.div_ceil(page);
        // A list that goes on has the address of its next page as its last entry.
        let (entries, goes_on) = if wanted > room { (room, true) } else { (wanted, false) };
        let bytes = read(list, entries * ENTRY).ok_or(Bad::Unreadable(list))?;
        let mut values = bytes.as_chunks().0.iter().map(|entry| u64::from_le_bytes(*entry));
        for _ in 0..entries - u64::from(goes_on) {
            let Some(entry) = values.next() else { return Err(Bad::Unreadable(list)) };
            if !entry.is_multiple_of(page) {
                return bad(format!("list entry {entry:#x} has an offset in its page"));
            }
            let here = left.min(page);
            runs.push((entry, here));
            left -= here;
        }
        if goes_on {
            let Some(next) = values.next() else { return Err(Bad::Unreadable(list)) };
            if !next.is_multiple_of(page) {
                return bad(format!("the list goes on at {next:#x}, which has an offset in its page"));
            }
            list = next;
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const PAGE: u64 = 4096;

    fn walk_lists(prp1: u64, prp2: u64, len: u64, lists: &BTreeMap<u64, Vec<u64>>) -> Result<Vec<Run>, Bad> {
        walk(prp1, prp2, len, PAGE, |at, len| {
            let (start, list) = lists.range(..=at).next_back()?;
            let bytes: Vec<u8> = list.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            let from = usize::try_from(at - start).ok()?;
            bytes.get(from..from + usize::try_from(len).ok()?).map(<[u8]>::to_vec)
        })
    }

    #[test]
    fn one_and_two_pages_need_no_list() {
        let none = BTreeMap::new();
        assert_eq!(walk_lists(0x1000, 0xBAD, 4096, &none), Ok(vec![(0x1000, 4096)]));
        assert_eq!(walk_lists(0x1E00, 0x7000, 1024, &none), Ok(vec![(0x1E00, 512), (0x7000, 512)]));
        assert_eq!(walk_lists(0x1E00, 0x7000, 512 + 4096, &none), Ok(vec![(0x1E00, 512), (0x7000, 4096)]));
        assert!(matches!(walk_lists(0x1E00, 0x7004, 1024, &none), Err(Bad::Entry(_))));
        assert!(matches!(walk_lists(0x1E02, 0x7000, 1024, &none), Err(Bad::Entry(_))));
        assert_eq!(walk_lists(7, 7, 0, &none), Ok(vec![]));
    }

    #[test]
    fn a_list_that_fills_its_page_exactly_has_no_chain() {
        let entries: Vec<u64> = (0..512).map(|n| 0x10_0000 + n * PAGE).collect();
        let lists = BTreeMap::from([(0x8000, entries.clone())]);
        let runs = walk_lists(0x1000, 0x8000, 513 * PAGE, &lists).unwrap();
        assert_eq!((runs.len(), runs.last()), (513, Some(&(0x10_0000 + 511 * PAGE, PAGE))));
        // One page more, and the last entry is where the list goes on.
        let mut chained = entries;
        chained[511] = 0x9000;
        let lists = BTreeMap::from([(0x8000, chained), (0x9000, vec![0x50_0000, 0x51_0000])]);
        let runs = walk_lists(0x1000, 0x8000, 513 * PAGE + 10, &lists).unwrap();
        assert_eq!(runs[512..], [(0x50_0000, PAGE), (0x51_0000, 10)]);
    }

    #[test]
    fn a_list_may_begin_inside_its_page() {
        let mut page = vec![0xDEAD; 510];
        page.extend([0x2_0000, 0x9000]);
        let lists = BTreeMap::from([(0x8000, page), (0x9000, vec![0x3_0000, 0x4_0000])]);
        let runs = walk_lists(0x1000, 0x8000 + 510 * 8, 4 * PAGE, &lists).unwrap();
        assert_eq!(runs, [(0x1000, PAGE), (0x2_0000, PAGE), (0x3_0000, PAGE), (0x4_0000, PAGE)]);
        assert!(matches!(walk_lists(0x1000, 0x8004, 3 * PAGE, &lists), Err(Bad::Entry(_))));
        assert_eq!(walk_lists(0x1000, 0x7000, 3 * PAGE, &lists), Err(Bad::Unreadable(0x7000)));
    }

    #[test]
    fn offsets_in_a_list_are_refused() {
        let lists = BTreeMap::from([(0x8000, vec![0x2_0000, 0x3_0200])]);
        assert!(matches!(walk_lists(0x1000, 0x8000, 3 * PAGE, &lists), Err(Bad::Entry(_))));
    }
}
