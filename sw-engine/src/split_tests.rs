use proptest::prelude::*;

use super::*;

const DISK: Granularity = Granularity { block: 512, memory: 512 };

#[test]
fn an_aligned_range_is_one_piece_in_place() {
    let got = cut(4096, 8192, DISK, 1 << 20, Landed::InPlace);
    assert_eq!(got, Cut { offset: 4096, len: 8192, skip: 0, want: 8192, head: 0, tail: 0 });
    assert_eq!(got.bounced(), 0);
}

#[test]
fn an_odd_range_bounces_one_block_at_each_end() {
    let got = cut(4097, 8192, DISK, 1 << 20, Landed::InPlace);
    assert_eq!(got, Cut { offset: 4096, len: 8704, skip: 1, want: 8192, head: 512, tail: 512 });
    assert_eq!(got.bounced(), 512);
}

#[test]
fn a_range_inside_two_blocks_is_bounced_as_a_whole() {
    assert_eq!(
        cut(700, 10, DISK, 1 << 20, Landed::InPlace),
        Cut { offset: 512, len: 512, skip: 188, want: 10, head: 512, tail: 0 }
    );
    assert_eq!(
        cut(1000, 100, DISK, 1 << 20, Landed::InPlace),
        Cut { offset: 512, len: 1024, skip: 488, want: 100, head: 1024, tail: 0 }
    );
}

#[test]
fn a_middle_chunk_ends_on_a_block() {
    let got = cut(100, 10_000, DISK, 4096, Landed::InPlace);
    assert_eq!((got.offset, got.len, got.want), (0, 4096, 3996));
}

#[test]
fn congruence_is_modulo_the_memory_alignment() {
    assert!(congruent(0x1_0201, 0x201, DISK));
    assert!(!congruent(0x1_0001, 0x201 + 1, DISK));
    assert!(congruent(0, 1000, Granularity::ANY));
}

proptest! {
    #[test]
    fn chunks_cover_the_range_once_and_bounce_at_most_two_blocks(
        at in 0u64..1 << 40,
        len in 1u64..200_000,
        block_log in 0u32..13,
        most_blocks in 3u32..20,
        slab: bool,
    ) {
        let granularity = Granularity { block: 1 << block_log, memory: 1 << block_log };
        let most = most_blocks << block_log;
        let landed = if slab { Landed::InSlab } else { Landed::InPlace };
        let (mut position, end, mut bounced, mut bounce_blocks) = (at, at + len, 0, 0);
        // Fine blocks make long lists; a thousand chunks show as much as all of them.
        for _ in 0..1000 {
            if position == end { break; }
            let chunk = cut(position, end - position, granularity, most, landed);
            prop_assert_eq!(chunk.offset + u64::from(chunk.skip), position);
            prop_assert_eq!(chunk.offset % u64::from(granularity.block), 0);
            prop_assert_eq!(chunk.len % granularity.block, 0);
            prop_assert!(chunk.len <= most && chunk.want > 0 && chunk.skip + chunk.want <= chunk.len);
            prop_assert!(chunk.len - chunk.skip - chunk.want < granularity.block);
            prop_assert!(chunk.head + chunk.tail <= chunk.len);
            bounced += u64::from(chunk.bounced());
            bounce_blocks += (chunk.head + chunk.tail) / granularity.block;
            position += u64::from(chunk.want);
        }
        prop_assert!(bounce_blocks <= 2);
        if granularity.block == 1 || slab { prop_assert_eq!(bounced, 0); }
    }
}
