use proptest::prelude::*;

use super::*;

const DISK: Granularity = Granularity { block: 512, memory: 512 };
const MIB: u32 = 1 << 20;
const SLAB: u64 = 8192;

fn fine(at: u64, left: u64, most: u32, landed: Landed) -> Cut {
    cut(at, left, Grid { block: 512, edge: 512, end: u64::MAX }, most, landed)
}

/// An object of a little over 3 MiB whose last physical block is not whole.
fn wide(at: u64, left: u64, landed: Landed) -> Cut {
    cut(at, left, Grid::new(512, 3 * u64::from(MIB) + 1000, left, MIB, SLAB), MIB, landed)
}

#[test]
fn an_aligned_range_is_one_piece_in_place() {
    let got = fine(4096, 8192, MIB, Landed::InPlace);
    assert_eq!(got, Cut { offset: 4096, len: 8192, skip: 0, want: 8192, head: 0, tail: 0 });
    assert_eq!(got.bounced(), 0);
}

#[test]
fn an_odd_range_bounces_one_block_at_each_end() {
    let got = fine(4097, 8192, MIB, Landed::InPlace);
    assert_eq!(got, Cut { offset: 4096, len: 8704, skip: 1, want: 8192, head: 512, tail: 512 });
    assert_eq!(got.bounced(), 512);
}

#[test]
fn a_range_inside_two_blocks_is_bounced_as_a_whole() {
    assert_eq!(
        fine(700, 10, MIB, Landed::InPlace),
        Cut { offset: 512, len: 512, skip: 188, want: 10, head: 512, tail: 0 }
    );
    assert_eq!(
        fine(1000, 100, MIB, Landed::InPlace),
        Cut { offset: 512, len: 1024, skip: 488, want: 100, head: 1024, tail: 0 }
    );
}

#[test]
fn a_middle_chunk_ends_on_a_block() {
    let got = fine(100, 10_000, 4096, Landed::InPlace);
    assert_eq!((got.offset, got.len, got.want), (0, 4096, 3996));
}

#[test]
fn congruence_is_modulo_the_memory_alignment() {
    assert!(congruent(0x1_0201, 0x201, DISK));
    assert!(!congruent(0x1_0001, 0x201 + 1, DISK));
    assert!(congruent(0, 1000, Granularity::ANY));
}

#[test]
fn a_long_read_is_cut_at_physical_sectors() {
    let got = wide(1237, 600_000, Landed::InPlace);
    assert_eq!(got, Cut { offset: 0, len: 602_112, skip: 1237, want: 600_000, head: 4096, tail: 4096 });
    assert_eq!(got.bounced(), 4096 - 1237 + (601_237 - 598_016));
    let slab = wide(1237, 600_000, Landed::InSlab);
    assert_eq!(slab, Cut { head: 0, tail: 0, ..got });
}

#[test]
fn an_end_on_a_block_is_not_bounced_wherever_the_sectors_are() {
    // Both ends on blocks: nothing is ragged.
    assert_eq!(wide(512, 600_064, Landed::InPlace), Cut::whole(512, 600_064, MIB));
    let head = wide(1237, 600_875, Landed::InPlace);
    assert_eq!((head.offset, head.len, head.head, head.tail), (0, 602_112, 4096, 0));
    let tail = wide(512, 600_000, Landed::InPlace);
    assert_eq!((tail.offset, tail.head, tail.tail), (512, 0, 602_112 - 598_016));
}

#[test]
fn nothing_is_asked_for_past_the_last_block() {
    let end = 3 * u64::from(MIB) + 1000;
    let got = wide(end - 300_001, 300_001, Landed::InPlace);
    assert_eq!((got.offset + u64::from(got.len), got.tail), (3 * u64::from(MIB) + 1024, 1024));
}

#[test]
fn a_chunk_that_starts_beside_a_sector_keeps_to_its_limit() {
    let got = wide(512, u64::from(MIB) - 100, Landed::InPlace);
    assert_eq!((got.offset, got.len, got.want, got.tail), (512, MIB, MIB - 100, 512));
}

#[test]
fn short_reads_and_small_slabs_keep_to_blocks() {
    assert_eq!(wide(1237, 16_384, Landed::InPlace).offset, 1024);
    let small = Grid::new(512, u64::MAX, u64::from(MIB), MIB, 4096);
    assert_eq!((small.edge, Grid::new(4096, 1, 1, MIB, SLAB).edge), (512, 4096));
}

proptest! {
    #[test]
    fn chunks_cover_the_range_once_and_bounce_at_most_two_edges(
        at in 0u64..1 << 40,
        len in 1u64..200_000,
        block_log in 0u32..13,
        edge_log in 0u32..4,
        most_edges in 3u32..20,
        past in 0u64..5000,
        slab: bool,
    ) {
        let (block, edge) = (1u32 << block_log, 1u32 << (block_log + edge_log));
        let grid = Grid { block, edge, end: (at + len + past).next_multiple_of(u64::from(block)) };
        let most = most_edges * edge;
        let landed = if slab { Landed::InSlab } else { Landed::InPlace };
        let (mut position, end, mut bounced, mut bounce_bytes) = (at, at + len, 0, 0);
        // Fine blocks make long lists; a thousand chunks show as much as all of them.
        for _ in 0..1000 {
            if position == end { break; }
            let chunk = cut(position, end - position, grid, most, landed);
            prop_assert_eq!(chunk.offset + u64::from(chunk.skip), position);
            prop_assert_eq!(chunk.offset % u64::from(block), 0);
            prop_assert_eq!(chunk.len % block, 0);
            prop_assert!(chunk.len <= most && chunk.want > 0 && chunk.skip + chunk.want <= chunk.len);
            prop_assert!(chunk.skip < edge && chunk.len - chunk.skip - chunk.want < edge);
            prop_assert!(chunk.offset + u64::from(chunk.len) <= grid.end);
            prop_assert!(chunk.head + chunk.tail <= chunk.len && (chunk.head | chunk.tail) & (block - 1) == 0);
            // Wanted bytes outside the bounced ends are whole blocks in place.
            let core = chunk.offset + u64::from(chunk.head)..chunk.offset + u64::from(chunk.len - chunk.tail);
            prop_assert!(core.is_empty() || slab || (core.start >= position && core.end <= position + u64::from(chunk.want)));
            bounced += u64::from(chunk.bounced());
            bounce_bytes += chunk.head + chunk.tail;
            position += u64::from(chunk.want);
        }
        prop_assert!(bounce_bytes <= 2 * edge);
        if block == 1 || slab { prop_assert_eq!(bounced, 0); }
    }
}
