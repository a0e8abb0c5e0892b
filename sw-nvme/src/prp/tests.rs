//! A walker that follows the specification on its own gives back exactly the bytes that were described.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// Chunks at given places, and what was written to them.
struct Lists {
    chunks: Vec<(u64, u32)>,
    entries: HashMap<u64, u64>,
}

impl Lists {
    fn new(chunks: &[(u64, u32)]) -> Self {
        Self { chunks: chunks.to_vec(), entries: HashMap::new() }
    }

    /// An entry, or what an earlier command left there.
    fn entry(&self, at: u64) -> u64 {
        self.entries.get(&at).copied().unwrap_or(0xDEAD_0000)
    }

    fn whole_pages(page: PageSize, count: u64) -> Self {
        let room = u32::try_from(page.bytes() / 8).expect("small");
        // With a gap between them, so that running past the end of one is noticed.
        let chunks: Vec<_> = (0..count).map(|n| (0x5000_0000 + 2 * n * page.bytes(), room)).collect();
        Self::new(&chunks)
    }
}

impl ListMemory for Lists {
    fn chunk(&self, index: u32) -> Option<(Iova, u32)> {
        let &(at, room) = self.chunks.get(usize::try_from(index).expect("small"))?;
        Some((Iova::new(at), room))
    }

    fn put(&mut self, index: u32, at_bytes: usize, entries: &[u8]) {
        let (at, room) = self.chunks[usize::try_from(index).expect("small")];
        assert!(at_bytes + entries.len() <= 8 * room as usize, "written past the chunk");
        for (n, entry) in entries.chunks_exact(8).enumerate() {
            let entry = u64::from_le_bytes(entry.try_into().expect("eight bytes"));
            self.entries.insert(at + at_bytes as u64 + 8 * n as u64, entry);
        }
    }
}

/// What a controller does with PRP1, PRP2 and a length: byte ranges, neighbours joined. Base, "Physical Region Page Entry
/// and List": PRP2 is a page if one more is needed, else a list; the last entry of a page of a list is the next list if
/// there is more than one page to come.
fn walk(page: PageSize, prps: Prps, len: u64, lists: &Lists) -> Vec<(u64, u64)> {
    let size = page.bytes();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut left = len;
    let mut take = |at: u64, left: &mut u64| {
        let part = (size - at % size).min(*left);
        *left -= part;
        match ranges.last_mut() {
            Some((start, len)) if *start + *len == at => *len += part,
            _ => ranges.push((at, part)),
        }
    };
    assert_eq!(prps.prp1 % 4, 0, "PRP1 is a multiple of 4");
    take(prps.prp1, &mut left);
    if left == 0 {
        assert_eq!(prps.prp2, POISON_PRP);
    } else if left <= size {
        assert_eq!(prps.prp2 % size, 0, "PRP2 is page aligned");
        take(prps.prp2, &mut left);
    } else {
        let mut at = prps.prp2;
        assert_eq!(at % 8, 0, "a list is aligned to its entries");
        while left > 0 {
            let entry = lists.entry(at);
            if (at + 8).is_multiple_of(size) && left > size {
                assert_eq!(entry % 8, 0, "a list is aligned to its entries");
                at = entry;
                continue;
            }
            assert_eq!(entry % size, 0, "an entry of a list is page aligned");
            take(entry, &mut left);
            at += 8;
        }
        // The entry behind the last is poison, if it belongs to the chunk at all.
        let mine = |&&(start, room): &&(u64, u32)| (start..start + 8 * u64::from(room)).contains(&at);
        if lists.chunks.iter().find(mine).is_some() && !at.is_multiple_of(size) {
            assert_eq!(lists.entry(at), POISON_PRP);
        }
    }
    ranges
}

fn joined(data: &[Segment]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for segment in data {
        match ranges.last_mut() {
            Some((start, len)) if *start + *len == segment.iova.raw() => *len += segment.len.0,
            _ => ranges.push((segment.iova.raw(), segment.len.0)),
        }
    }
    ranges
}

fn segment(iova: u64, len: u64) -> Segment {
    Segment { iova: Iova::new(iova), len: ByteLen(len) }
}

fn holds(page: PageSize, data: &[Segment], lists: &mut Lists) {
    let prps = describe(page, data, lists).unwrap_or_else(|error| panic!("{data:?}: {error}"));
    let len = data.iter().map(|segment| segment.len.0).sum();
    assert_eq!(walk(page, prps, len, lists), joined(data), "{data:?}");
    // The short way agrees where it answers.
    if let [one] = data
        && let Some(short) = short(page, *one)
    {
        assert_eq!(short, prps);
    }
}

#[test]
fn one_and_two_pages_need_no_list() {
    let page = PageSize::KIB4;
    let one = describe(page, &[segment(0x1_0000, 4096)], &mut NoList);
    assert_eq!(one, Ok(Prps { prp1: 0x1_0000, prp2: POISON_PRP, list_bytes: 0 }));
    let inside = short(page, segment(0x1_0204, 16));
    assert_eq!(inside, Some(Prps { prp1: 0x1_0204, prp2: POISON_PRP, list_bytes: 0 }));
    let across = short(page, segment(0x1_0FFC, 4100));
    assert_eq!(across, Some(Prps { prp1: 0x1_0FFC, prp2: 0x1_1000, list_bytes: 0 }));
    let two = describe(page, &[segment(0x1_0800, 0x800), segment(0x9_0000, 512)], &mut NoList);
    assert_eq!(two, Ok(Prps { prp1: 0x1_0800, prp2: 0x9_0000, list_bytes: 0 }));
    assert_eq!(short(page, segment(0x1_0FFC, 4101)), None, "three pages");
    let full = describe(page, &[segment(0x1_0FFC, 4104)], &mut NoList);
    assert_eq!(full, Err(NotPrp::ListFull { fits_bytes: 4100 }));
}

#[test]
fn every_offset_and_every_list_boundary_is_walked_back() {
    for page in [PageSize::KIB4, PageSize::new(65_536).expect("in range")] {
        let per_page = page.bytes() / 8;
        let offsets = [0, 4, 512, page.bytes() / 2, page.bytes() - 512, page.bytes() - 4];
        // Pages: around one, two, a full list page, the page after it, and two full list pages.
        let corners = [1, 2, 3, 4, per_page, 2 * per_page - 1, 2 * per_page + 1];
        for offset in offsets {
            for pages in corners.iter().flat_map(|corner| [corner.saturating_sub(1).max(1), *corner, corner + 1]) {
                let full = pages * page.bytes() - offset;
                for len in [4, 512].into_iter().flat_map(|less| [full, full.saturating_sub(less).max(4)]) {
                    holds(page, &[segment((64 << 20) + offset, len)], &mut Lists::whole_pages(page, 4));
                }
            }
        }
    }
}

#[test]
fn every_dword_of_a_page_can_be_the_start() {
    for offset in (0..4096).step_by(4) {
        for len in [4, 512, 4096, 4100, 8192, 12_288] {
            holds(PageSize::KIB4, &[segment(0x1234_5000 + offset, len)], &mut Lists::whole_pages(PageSize::KIB4, 1));
        }
    }
}

#[test]
fn a_list_may_be_a_part_of_a_page_and_says_what_it_lacks() {
    let page = PageSize::KIB4;
    // 16 entries in the middle of a page: no place for a link, so that 17 pages with PRP1 are the most.
    let part = [(0x5000_0400, 16)];
    holds(page, &[segment(0x10_0000, 17 * 4096)], &mut Lists::new(&part));
    let fits_bytes = 17 * 4096 - 512;
    let error = describe(page, &[segment(0x10_0200, 17 * 4096)], &mut Lists::new(&part)).expect_err("18 pages");
    assert_eq!(error, NotPrp::ListFull { fits_bytes });
    holds(page, &[segment(0x10_0200, fits_bytes)], &mut Lists::new(&part));
    // A second chunk does not help: only the last entry of a page links.
    let apart = [(0x5000_0400, 16), (0x6000_0000, 16)];
    let error = describe(page, &[segment(0x10_0000, 18 * 4096)], &mut Lists::new(&apart)).expect_err("no place");
    assert_eq!(error, NotPrp::ListFull { fits_bytes: 17 * 4096 });
    // 16 entries at the end of a page can link to 4 more.
    let linked = [(0x5000_0F80, 16), (0x6000_0000, 4)];
    holds(page, &[segment(0x10_0000, 20 * 4096)], &mut Lists::new(&linked));
    let error = describe(page, &[segment(0x10_0000, 21 * 4096)], &mut Lists::new(&linked)).expect_err("one too many");
    assert_eq!(error, NotPrp::ListFull { fits_bytes: 20 * 4096 });
    let error = describe(page, &[segment(0x10_0000, 21 * 4096)], &mut Lists::new(&linked[..1])).expect_err("no second");
    assert_eq!(error, NotPrp::ListFull { fits_bytes: 17 * 4096 });
    // One that is full to its last entry, at the end of its page, has data there and no link.
    holds(page, &[segment(0x10_0000, 17 * 4096)], &mut Lists::new(&linked));
}

#[test]
fn a_misplaced_list_is_refused() {
    let data = [segment(0x10_0000, 64 * 4096)];
    for chunk in [(0x5000_0004, 16), (0x5000_0FF8, 2), (0x5000_0000, 0), (0x5000_0FF8, 1)] {
        let error = describe(PageSize::KIB4, &data, &mut Lists::new(&[chunk])).expect_err("misplaced");
        assert_eq!(error, NotPrp::Chunk { index: 0, iova: Iova::new(chunk.0) });
    }
}

#[test]
fn memory_that_pages_cannot_describe_is_refused_with_the_place_to_split() {
    let page = PageSize::KIB4;
    let refused = |data: &[Segment]| describe(page, data, &mut Lists::whole_pages(page, 1)).expect_err("refused");
    assert_eq!(refused(&[]), NotPrp::Empty);
    assert_eq!(refused(&[segment(0x1000, 0)]), NotPrp::Empty);
    assert_eq!(refused(&[segment(0x1000, 4096), segment(0x3000, 0)]), NotPrp::Empty);
    assert_eq!(refused(&[segment(0x1002, 4096)]), NotPrp::Start { iova: Iova::new(0x1002) });
    assert_eq!(refused(&[segment(u64::MAX - 4095, 4096)]), NotPrp::Wraps);
    // The first ends inside a page; the second starts inside one; the third boundary of three.
    assert_eq!(refused(&[segment(0x1000, 512), segment(0x3000, 512)]), NotPrp::Ragged { after_bytes: 512 });
    assert_eq!(refused(&[segment(0x1000, 4096), segment(0x3200, 512)]), NotPrp::Ragged { after_bytes: 4096 });
    let three = [segment(0x1000, 4096), segment(0x3000, 4096 + 4), segment(0x8000, 4096)];
    assert_eq!(refused(&three), NotPrp::Ragged { after_bytes: 8196 });
    assert_eq!(short(page, segment(0x1002, 512)), None);
    assert_eq!(short(page, segment(0x1000, 0)), None);
    assert_eq!(short(page, segment(u64::MAX - 4095, 8000)), None);
}

#[test]
fn the_last_page_of_the_address_space_can_be_described() {
    let at = u64::MAX - 4 * 4096 + 1;
    holds(PageSize::KIB4, &[segment(at, 4 * 4096 - 4)], &mut Lists::whole_pages(PageSize::KIB4, 1));
}

#[test]
fn list_bytes_are_entries_links_and_one_poison() {
    let page = PageSize::KIB4;
    let cost = |pages: u64| {
        let mut lists = Lists::whole_pages(page, 3);
        describe(page, &[segment(0x10_0000, pages * 4096)], &mut lists).expect("room").list_bytes
    };
    assert_eq!(cost(2), 0);
    assert_eq!(cost(3), 8 * (2 + 1));
    assert_eq!(cost(512), 8 * (511 + 1));
    assert_eq!(cost(513), 8 * 512, "a full page has no room for poison");
    assert_eq!(cost(514), 8 * (513 + 1 + 1), "a link and poison");
}

#[test]
fn page_sizes_are_those_that_a_controller_can_have() {
    assert_eq!(PageSize::new(4096), Some(PageSize::KIB4));
    assert!(PageSize::new(1 << 27).is_some());
    for bytes in [0, 512, 2048, 4097, 12_288, 1 << 28] {
        assert_eq!(PageSize::new(bytes), None);
    }
}

/// Two numbers: where the first segment starts inside a page, and for each segment its page and length.
fn memory(page: u64) -> impl Strategy<Value = Vec<Segment>> {
    let parts = prop::collection::vec((1..1u64 << 30, 0..40u64, 1..=page / 4), 1..5);
    (0..page / 4, parts).prop_map(move |(offset, parts)| {
        let last = parts.len() - 1;
        let mut offset = offset * 4;
        let mut place = |(index, (at, pages, tail)): (usize, (u64, u64, u64))| {
            let (start, len) = match index == last {
                // The last ends where it likes.
                true => (offset, pages * page + tail * 4),
                false => (offset, (pages + 1) * page - offset),
            };
            offset = 0;
            segment(at * page + start, len)
        };
        parts.into_iter().enumerate().map(&mut place).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_memory_on_pages_is_walked_back(data in memory(4096), room in 2u64..=512) {
        // Chunks of `room` entries that end with their page.
        let at = |n: u64| (0x5000_0000 + 0x2000 * n + 4096 - 8 * room, u32::try_from(room).expect("small"));
        let chunks: Vec<_> = (0..200).map(at).collect();
        holds(PageSize::KIB4, &data, &mut Lists::new(&chunks));
    }

    #[test]
    fn any_memory_on_large_pages_is_walked_back(data in memory(1 << 16)) {
        let page = PageSize::new(1 << 16).expect("in range");
        holds(page, &data, &mut Lists::whole_pages(page, 2));
    }

    #[test]
    fn any_segment_gives_pointers_that_are_walked_back_or_an_error(at: u64, unit in 0u32..13, len in 0u64..0x10_0000, more in 0u64..0x10_0000) {
        let (at, len) = (at >> unit << unit, len >> unit << unit);
        let data = [segment(at, len), segment(at.wrapping_add(len), more)];
        for data in [&data[..1], &data[..]] {
            let mut lists = Lists::whole_pages(PageSize::KIB4, 2);
            if let Ok(prps) = describe(PageSize::KIB4, data, &mut lists) {
                let total = data.iter().map(|segment| segment.len.0).sum();
                prop_assert_eq!(walk(PageSize::KIB4, prps, total, &lists), joined(data));
            }
        }
    }
}
