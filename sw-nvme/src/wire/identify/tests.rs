//! Bytes at the offsets of the tables, written by hand, and structures that a hostile controller may send.

use proptest::prelude::*;

use super::*;
use crate::wire::{ccr, command::IoFlags};

/// A page with bytes at given offsets.
fn page(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_BYTES];
    for (at, bytes) in parts {
        page[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    page
}

/// One active namespace of 1,000 blocks with one format of 2^`lbads` bytes and `ms` bytes of metadata.
fn namespace(lbads: u8, ms: u8, dps: u8) -> Vec<u8> {
    page(&[(0, &[0xE8, 3]), (29, &[dps]), (128, &[ms, 0, lbads, 0])])
}

fn decoded(raw: &[u8]) -> IdentifyNamespace {
    IdentifyNamespace::decode(raw).expect("good").expect("active")
}

fn refused<T: std::fmt::Debug>(answer: Result<T, WireError>) -> &'static str {
    match answer {
        Err(WireError::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

const CONTROLLER: &[(usize, &[u8])] = &[
    (0, &[0x4D, 0x14]),                  // VID
    (4, b"S5RTNC0T104269      "),        // SN
    (24, b"SAMSUNG MZWLJ7T6HALA-00AU3"), // MN, here with zeros behind it
    (64, b"EPK9CR5Q"),                   // FR
    (77, &[8]),                          // MDTS
    (78, &[0x41, 0]),                    // CNTLID
    (80, &[0, 3, 1, 0]),                 // VER 1.3
    (88, &[0x80, 0x96, 0x98, 0]),        // RTD3E, 10 s
    (92, &[0, 3, 0, 0]),                 // OAES
    (258, &[7, 15]),                     // ACL, AERL
    (512, &[0x66, 0x44]),                // SQES, CQES
    (516, &[32, 0, 0, 0]),               // NN
    (525, &[0]),                         // VWC
];

#[test]
fn a_controller_of_the_field() {
    let id = IdentifyController::decode(&page(CONTROLLER)).expect("good");
    assert_eq!((id.model.as_str(), id.serial.as_str()), ("SAMSUNG MZWLJ7T6HALA-00AU3", "S5RTNC0T104269"));
    assert_eq!((id.mdts, id.controller_id, id.namespaces), (8, 0x41, 32));
    assert_eq!(id.shutdown_limit, Some(std::time::Duration::from_secs(10)));
    assert_eq!((id.aborts_max, id.async_requests_max, id.flush_all), (8, 16, FlushAll::NotSaid));
    assert_eq!((id.kind, id.keep_alive_unit, id.volatile_write_cache), (ControllerKind::NotReported, None, false));
    assert_eq!(id.subsystem_nqn.as_str(), "");
}

#[test]
fn a_life_of_a_controller_is_where_linux_has_it() {
    // `struct nvme_id_ctrl` of Linux's series of 2026: ciu at 135, cirn at 136, ccrl at 1807; ciu is never 0 there.
    let raw = page(&[(78, &[7]), (135, &[3, 8, 7, 6, 5, 4, 3, 2, 1]), (512, &[0x66, 0x44]), (1807, &[4])]);
    let told = IdentifyController::decode(&raw).expect("a controller");
    let random = 0x0102_0304_0506_0708;
    assert_eq!(told.instance(), Some(ccr::Instance { controller: 7, uniquifier: 3, random }));
    assert_eq!(told.resets_max, 4);
    let silent = IdentifyController::decode(&page(&[(136, &[1; 8]), (512, &[0x66, 0x44])])).expect("a controller");
    assert_eq!((silent.instance(), silent.resets_max), (None, 0));
}

#[test]
fn queue_entries_of_another_size_are_refused() {
    let with = |at: usize, value: u8| {
        let mut raw = page(CONTROLLER);
        raw[at] = value;
        IdentifyController::decode(&raw)
    };
    assert_eq!(refused(with(512, 0x77)), "SQES");
    assert_eq!(refused(with(512, 0x55)), "SQES");
    assert_eq!(refused(with(512, 0)), "SQES");
    assert_eq!(refused(with(513, 0x55)), "CQES");
    assert!(with(512, 0x76).is_ok() && with(513, 0x54).is_ok(), "larger ones may be possible besides");
}

#[test]
fn short_structures_are_refused_by_every_decoder() {
    let raw = page(CONTROLLER);
    let cut = &raw[..IDENTIFY_BYTES - 1];
    assert!(matches!(IdentifyController::decode(cut), Err(WireError::Short { got_bytes: 4095, want_bytes: 4096, .. })));
    assert!(IdentifyNamespace::decode(cut).is_err() && NamespaceDescriptors::decode(cut).is_err());
    assert!(NvmLimits::decode(cut).is_err() && ExtendedFormat::decode(cut, 0).is_err());
    assert!(namespace_list("list", cut, 0).is_err() && controller_list(cut).is_err());
    assert!(command_set_combination(cut, 1).is_err());
}

#[test]
fn a_namespace_of_zeros_is_not_active() {
    assert_eq!(IdentifyNamespace::decode(&page(&[])), Ok(None));
}

#[test]
fn impossible_namespaces_are_refused_with_the_field() {
    let of = |parts: &[(usize, &[u8])]| {
        let mut raw = namespace(9, 0, 0);
        for (at, bytes) in parts {
            raw[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        IdentifyNamespace::decode(&raw)
    };
    assert!(of(&[]).is_ok());
    assert_eq!(refused(of(&[(0, &[0, 0])])), "NSZE");
    assert_eq!(refused(of(&[(25, &[64])])), "NLBAF");
    assert_eq!(refused(of(&[(25, &[63]), (82, &[1])])), "NLBAF");
    assert_eq!(refused(of(&[(26, &[1])])), "FLBAS");
    assert_eq!(refused(of(&[(130, &[8])])), "LBADS");
    assert_eq!(refused(of(&[(130, &[0])])), "LBADS");
    assert_eq!(refused(of(&[(130, &[32])])), "LBADS");
    assert!(of(&[(130, &[31])]).is_ok());
    // 2^55 blocks of 512 bytes have 2^64 bytes.
    assert_eq!(refused(of(&[(0, &[0, 0, 0, 0, 0, 0, 0x80, 0])])), "NSZE");
    assert!(of(&[(0, &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 0])]).is_ok());
}

#[test]
fn high_bits_of_the_format_index_count_with_more_than_16_formats_only() {
    let mut raw = namespace(9, 0, 0);
    // FLBAS 6:5 are 01b. With 16 formats that means nothing, with 17 it names format 16.
    (raw[25], raw[26]) = (15, 0x20);
    assert_eq!(decoded(&raw).format.index, 0);
    raw[25] = 16;
    raw[128 + 4 * 16 + 2] = 12;
    let id = decoded(&raw);
    assert_eq!((id.format.index, id.format.block_bytes), (16, 4096));
    assert_eq!(id.formats.len(), 2, "formats of size 0 are unused");
}

#[test]
fn preferred_sizes_count_only_where_the_namespace_says_so() {
    let mut raw = namespace(12, 0, 0);
    (raw[64], raw[66], raw[68], raw[72], raw[46]) = (15, 7, 3, 31, 0);
    let id = decoded(&raw);
    assert_eq!((id.write_granularity_blocks, id.write_optimal_blocks, id.io_boundary_blocks), (None, None, None));
    raw[24] = 1 << 4;
    let id = decoded(&raw);
    assert_eq!((id.write_granularity_blocks, id.write_alignment_blocks), (Some(16), Some(8)));
    assert_eq!((id.deallocate_granularity_blocks, id.write_optimal_blocks), (Some(4), Some(32)));
    raw[24] = 2 << 4;
    assert_eq!(decoded(&raw).deallocate_granularity_blocks, None, "10b has it elsewhere");
    assert_eq!((decoded(&raw).atomic_write_blocks, decoded(&raw).format_left_percent), (None, None));
}

#[test]
fn plain_blocks_have_no_metadata_verdict() {
    assert_eq!(MetadataVerdict::of(&decoded(&namespace(12, 0, 0)), None), MetadataVerdict::None);
}

#[test]
fn eight_bytes_of_protection_information_are_made_and_stripped_by_the_controller() {
    let (guard, reference) = (IoFlags::CHECK_GUARD, IoFlags::CHECK_REFERENCE);
    for (kind, checks) in [(1, guard | reference), (2, guard | reference), (3, guard)] {
        for first in [0, 8] {
            let verdict = MetadataVerdict::of(&decoded(&namespace(12, 8, kind | first)), None);
            let want = Protection { read: IoFlags::PRACT | checks, write: IoFlags::PRACT, verify: checks };
            assert_eq!(verdict, MetadataVerdict::Stripped(want));
        }
    }
    let plain = ExtendedFormat { storage_tag_bits: 0, guard: GuardFormat::Bits16 };
    assert!(matches!(MetadataVerdict::of(&decoded(&namespace(9, 8, 1)), Some(plain)), MetadataVerdict::Stripped(_)));
}

#[test]
fn other_metadata_is_refused_with_its_reason() {
    let reason = |ms, dps, extended| match MetadataVerdict::of(&decoded(&namespace(12, ms, dps)), extended) {
        MetadataVerdict::Refused(reason) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(8, 0, None), MetadataReason::Plain { metadata_bytes: 8 });
    assert_eq!(reason(64, 0, None), MetadataReason::Plain { metadata_bytes: 64 });
    assert_eq!(reason(16, 1, None), MetadataReason::BesideProtection { metadata_bytes: 16 });
    assert_eq!(reason(0, 1, None), MetadataReason::NoRoom { metadata_bytes: 0 });
    assert_eq!(reason(7, 3, None), MetadataReason::NoRoom { metadata_bytes: 7 });
    assert_eq!(reason(8, 4, None), MetadataReason::UnknownType { protection_type: 4 });
    let with = |storage_tag_bits, guard| Some(ExtendedFormat { storage_tag_bits, guard });
    assert_eq!(reason(8, 1, with(16, GuardFormat::Bits16)), MetadataReason::StorageTag { bits: 16 });
    assert_eq!(reason(16, 1, with(0, GuardFormat::Bits64)), MetadataReason::Guard(GuardFormat::Bits64));
    assert_eq!(reason(8, 0, None).to_string(), "each block has 8 bytes of metadata");
}

#[test]
fn descriptors_end_at_a_length_of_zero_and_inside_the_page() {
    assert_eq!(NamespaceDescriptors::decode(&page(&[])), Ok(NamespaceDescriptors::default()));
    let csi = page(&[(0, &[4, 1, 0, 0, 2]), (5, &[0x99, 0, 0, 0]), (9, &[3, 16])]);
    let found = NamespaceDescriptors::decode(&csi).expect("good");
    assert_eq!((found.csi, found.uuid), (Some(2), None), "nothing behind the end counts");
    assert_eq!(refused(NamespaceDescriptors::decode(&page(&[(0, &[1, 16])]))), "NIDL");
    assert_eq!(refused(NamespaceDescriptors::decode(&page(&[(0, &[3, 8])]))), "NIDL");
    // Unknown types of 255 bytes up to one that ends past the page.
    let mut raw = page(&[]);
    (0..16).for_each(|n| raw[n * 259..n * 259 + 2].copy_from_slice(&[0x80, 255]));
    assert_eq!(refused(NamespaceDescriptors::decode(&raw)), "NIDL");
}

#[test]
fn lists_ascend() {
    let list = |ids: &[u32], after| {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        namespace_list("list", &page(&[(0, &bytes)]), after)
    };
    assert_eq!(list(&[], 0), Ok(vec![]));
    assert_eq!(list(&[1, 2, 9, 0, 7], 0), Ok(vec![1, 2, 9]));
    assert_eq!(list(&[8, 9], 7), Ok(vec![8, 9]));
    let full: Vec<u32> = (1..=1024).collect();
    assert_eq!(list(&full, 0), Ok(full));
    for (ids, after) in [(&[2, 2][..], 0), (&[3, 2], 0), (&[7], 7), (&[1, NSID_ALL], 0)] {
        assert_eq!(refused(list(ids, after)), "namespace list");
    }
    assert_eq!(controller_list(&page(&[(0, &[2, 0, 1, 0, 5, 0, 9, 0])])), Ok(vec![1, 5]));
    assert_eq!(refused(controller_list(&page(&[(0, &[2, 0, 5, 0, 5, 0])]))), "controller list");
    assert_eq!(refused(controller_list(&page(&[(0, &[0, 8])]))), "NUMCNTL");
}

#[test]
fn the_smallest_combination_of_command_sets_is_taken() {
    // NVM and zoned; NVM alone; key value.
    let raw = page(&[(0, &[5]), (8, &[1]), (16, &[2])]);
    assert_eq!(command_set_combination(&raw, 1), Ok(Some((1, 1))));
    assert_eq!(command_set_combination(&raw, 4), Ok(Some((0, 5))));
    assert_eq!(command_set_combination(&raw, 8), Ok(None));
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(parts in prop::collection::vec((0..4096usize, any::<u8>()), 0..200)) {
        let mut raw = page(CONTROLLER);
        for (at, byte) in parts {
            raw[at] = byte;
        }
        let _ = IdentifyController::decode(&raw).map(|id| format!("{id:?}"));
        if let Ok(Some(id)) = IdentifyNamespace::decode(&raw) {
            prop_assert!(id.size_bytes() >= 512 && id.format.block_bytes.is_power_of_two());
            prop_assert!(id.formats.contains(&id.format));
        }
        let _ = NamespaceDescriptors::decode(&raw);
        let _ = namespace_list("list", &raw, 0);
        let _ = controller_list(&raw);
    }
}
