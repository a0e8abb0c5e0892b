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
fn preferred_sizes_are_bytes() {
    let limits = limits(5, 12, 0).expect("a block fits");
    assert_eq!((limits.write_granularity_bytes, limits.write_alignment_bytes), (16 << 10, 8 << 10));
    assert_eq!(limits.write_optimal_bytes, Some(128 << 10));
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
    ) {
        let limits = limits(mdts, 9, noiob).expect("a block fits");
        let (mut at, mut left) = (slba, blocks);
        while let Some(piece) = limits.next(at, left) {
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
