use proptest::prelude::*;

use super::*;

/// A controller with this MDTS and CTRATT.MEM clear, and a namespace of 4 KiB blocks with this NOIOB.
fn limits(mdts: u8, lbads: u8, noiob: u16) -> Option<TransferLimits> {
    let mut controller = vec![0; 4096];
    (controller[77], controller[512], controller[513]) = (mdts, 0x66, 0x44);
    let controller = IdentifyController::decode(&controller).expect("good");
    TransferLimits::new(&controller, 4096, &namespace(lbads, noiob))
}

fn namespace(lbads: u8, noiob: u16) -> IdentifyNamespace {
    let mut raw = vec![0; 4096];
    (raw[0], raw[1], raw[130]) = (0, 16, lbads);
    raw[46..48].copy_from_slice(&noiob.to_le_bytes());
    (raw[24], raw[64], raw[66], raw[72]) = (1 << 4, 3, 1, 31);
    IdentifyNamespace::decode(&raw).expect("good").expect("active")
}

#[test]
fn mdts_is_a_power_of_two_of_the_smallest_page() {
    assert_eq!(mdts_bytes(0, 4096), None, "no limit");
    assert_eq!(mdts_bytes(5, 4096), Some(128 << 10));
    assert_eq!(mdts_bytes(5, 65_536), Some(2 << 20));
    assert_eq!(mdts_bytes(51, 4096), Some(1 << 63));
    assert_eq!(mdts_bytes(52, 4096), None, "past 64 bits");
    assert_eq!(mdts_bytes(255, 4096), None);
}

#[test]
fn a_command_moves_what_mdts_and_the_block_count_allow() {
    let most = |mdts, lbads| limits(mdts, lbads, 0).map(|limits| (limits.blocks_max.get(), limits.bytes_max()));
    assert_eq!(most(5, 9), Some((256, 128 << 10)));
    assert_eq!(most(5, 12), Some((32, 128 << 10)));
    assert_eq!(most(0, 9), Some((65_536, 32 << 20)), "16 bits of NLB");
    assert_eq!(most(0, 12), Some((65_536, 256 << 20)));
    assert_eq!(most(1, 13), Some((1, 8192)));
    assert_eq!(most(1, 14), None, "not one block fits");
}

#[test]
fn interleaved_metadata_counts_unless_the_controller_says_not() {
    let mut raw = vec![0; 4096];
    (raw[0], raw[1], raw[130], raw[128], raw[29]) = (0, 16, 9, 8, 1);
    let namespace = IdentifyNamespace::decode(&raw).expect("good").expect("active");
    let mut id = vec![0; 4096];
    (id[77], id[512], id[513]) = (5, 0x66, 0x44);
    let blocks = |id: &[u8]| {
        let controller = IdentifyController::decode(id).expect("good");
        TransferLimits::new(&controller, 4096, &namespace).expect("a block fits").blocks_max.get()
    };
    assert_eq!(blocks(&id), (128 << 10) / 520);
    id[98] = 1; // CTRATT bit 16
    assert_eq!(blocks(&id), 256);
}

#[test]
fn a_write_that_is_cut_ends_where_the_next_may_start() {
    // 25 blocks a command, NPWG 4, NPWA 2.
    let mut limits = limits(5, 12, 0).expect("a block fits");
    assert_eq!((limits.write_granularity_blocks, limits.write_alignment_blocks), (4, 2));
    limits.blocks_max = BlockCount::new(25).expect("not 0");
    let next = |limits: &TransferLimits, slba, left| limits.next_write(slba, left).map(BlockCount::get);
    assert_eq!(next(&limits, 0, 100), Some(24), "a multiple of NPWG");
    assert_eq!(next(&limits, 6, 100), Some(24), "from any multiple of NPWA");
    assert_eq!(next(&limits, 8, 100), Some(24));
    assert_eq!(next(&limits, 4, 25), Some(25), "the last one is whole");
    assert_eq!(next(&limits, 7, 100), Some(25), "7 + 25 is a multiple of NPWA");
    limits.write_alignment_blocks = 4;
    assert_eq!(next(&limits, 5, 100), Some(23), "5 + 23 is a multiple of NPWA");
    assert_eq!(next(&limits, 5, 0), None);
    limits.boundary_blocks = Some(10);
    assert_eq!(next(&limits, 0, 100), Some(10), "NOIOB cuts as it says");
    let coarse = TransferLimits { write_granularity_blocks: 64, boundary_blocks: None, ..limits };
    assert_eq!(next(&coarse, 0, 100), Some(25), "no such place within a command");
    assert_eq!(coarse.next(1, 100).map(BlockCount::get), Some(25), "a read is not concerned");
}

#[test]
fn commands_end_at_boundaries() {
    let limits = limits(5, 9, 100).expect("a block fits");
    let next = |slba, left| limits.next(slba, left).map(BlockCount::get);
    assert_eq!(next(0, 1000), Some(100));
    assert_eq!(next(99, 1000), Some(1));
    assert_eq!(next(130, 1000), Some(70));
    assert_eq!(next(130, 7), Some(7));
    assert_eq!(next(130, 0), None);
    assert_eq!(next(u64::MAX, 1), Some(1));
}

proptest! {
    #[test]
    fn pieces_are_whole_in_order_and_within_the_limits(
        slba in 0..1u64 << 40, blocks in 1..100_000u64, mdts in 0..9u8, noiob in 0..3_000u16,
        (npwg, npwa, writes) in (0..600u32, 0..600u32, any::<bool>()),
    ) {
        let limits = limits(mdts, 9, noiob).expect("a block fits");
        let limits = TransferLimits { write_granularity_blocks: npwg, write_alignment_blocks: npwa, ..limits };
        let (mut at, mut left) = (slba, blocks);
        while let Some(piece) = if writes { limits.next_write(at, left) } else { limits.next(at, left) } {
            let piece = u64::from(piece.get());
            prop_assert!(piece <= left && piece <= limits.blocks_max.get().into());
            if noiob != 0 {
                prop_assert_eq!(at / u64::from(noiob), (at + piece - 1) / u64::from(noiob));
            }
            (at, left) = (at + piece, left - piece);
        }
        prop_assert_eq!((at, left), (slba + blocks, 0));
    }
}
