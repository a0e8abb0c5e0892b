//! Bytes written by hand from the tables of the specification. `tests/golden.rs` compares with other implementations.

use super::*;
use crate::wire::{
    admin::{CqInterrupt, Identify, QueueShape},
    log::{LogPage, Retain},
};

fn range(slba: u64, blocks: u32) -> LbaRange {
    LbaRange { nsid: 0x0A0B_0C0D, slba, nlb: BlockCount::new(blocks).expect("in range") }
}

#[test]
#[rustfmt::skip]
fn a_read_is_what_the_tables_say() {
    // Base, "Common Command Format"; NVM Command Set, "Read command".
    let want: [u8; 64] = [
        0x02, 0x00, 0x34, 0x12, // dword 0: opcode 02h, FUSE 0, PSDT 00b; CID
        0x0D, 0x0C, 0x0B, 0x0A, // dword 1: NSID
        0, 0, 0, 0, 0, 0, 0, 0, // dwords 2 and 3
        0, 0, 0, 0, 0, 0, 0, 0, // dwords 4 and 5: MPTR
        0x00, 0x12, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, // dwords 6 and 7: PRP1
        0x00, 0x00, 0x00, 0x00, 0xD0, 0xBA, 0xAD, 0x0B, // dwords 8 and 9: PRP2, poison
        0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01, // dwords 10 and 11: SLBA
        0x07, 0x00, 0x00, 0x40, // dword 12: NLB 7 (from zero) 15:0, FUA 30
        0, 0, 0, 0, // dword 13
        0, 0, 0, 0, 0, 0, 0, 0, // dwords 14 and 15
    ];
    let data = DataPointer::Prp(0x1_0000_1200, crate::prp::POISON_PRP);
    let read = Command::read(range(0x0102_0304_0506_0708, 8), data, IoFlags::FUA).with_cid(0x1234);
    assert_eq!(read.bytes(), &want);
    assert_eq!((read.opcode(), read.cid(), read.nsid(), read.data_pointer()), (2, 0x1234, 0x0A0B_0C0D, data));
    assert_eq!((read.range(), Command::new(want)), (range(0x0102_0304_0506_0708, 8), read));
    assert_eq!(IoFlags::from_dword12(read.dword(12)), IoFlags::FUA);
}

#[test]
#[rustfmt::skip]
fn queue_creation_is_what_the_tables_say() {
    // PCIe Transport / Base, "Create I/O Completion Queue command".
    let want: [u8; 64] = [
        0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0x00, 0x00, 0x00, 0x40, 0x00, 0x00, 0x00, 0x00, // PRP1: the queue
        0, 0, 0, 0, 0, 0, 0, 0,
        0x02, 0x00, 0xFF, 0x00, // dword 10: QID 15:0, QSIZE 31:16 from zero
        0x03, 0x00, 0x07, 0x00, // dword 11: PC 0, IEN 1, IV 31:16
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let shape = QueueShape { qid: 2, entries: 256, iova: sw_mem::Iova::new(0x4000_0000) };
    assert_eq!(Command::create_cq(shape, CqInterrupt::Vector(7)).expect("in range").bytes(), &want);
}

#[test]
fn identify_and_logs_are_what_the_tables_say() {
    let identify = Command::identify(Identify::CommandSetNamespace { nsid: 9, csi: 2 }, DataPointer::Prp(0x1000, 0));
    assert_eq!((identify.opcode(), identify.nsid()), (0x06, 9));
    assert_eq!([10, 11, 12].map(|index| identify.dword(index)), [0x05, 0x0200_0000, 0]);
    // LID 7:0, RAE 15, NUMDL 31:16: 1,024 dwords less one.
    let log = Command::get_log_page(LogPage::ChangedNamespaces(Retain::Keep), 0, 4096, DataPointer::Prp(0x1000, 0));
    assert_eq!(log.expect("in range").dword(10), 0x03FF_8004);
}

#[test]
fn a_block_count_is_one_to_65536_and_counts_from_zero_on_the_wire() {
    assert_eq!(BlockCount::new(0), None);
    assert_eq!(BlockCount::new(65_537), None);
    assert_eq!(BlockCount::new(65_536), Some(BlockCount::MAX));
    for blocks in [1, 2, 255, 65_536] {
        let command = Command::verify(range(0, blocks), IoFlags::NONE);
        assert_eq!(command.dword(12), blocks - 1);
        assert_eq!(command.range().nlb.get(), blocks);
    }
}

#[test]
fn the_reference_tag_is_the_low_half_of_the_first_block_only_where_it_is_used() {
    let at = range(0x1_2345_6789, 1);
    let tag = |flags| Command::write(at, DataPointer::None, flags).dword(14);
    assert_eq!(tag(IoFlags::NONE), 0);
    assert_eq!(tag(IoFlags::FUA | IoFlags::CHECK_GUARD), 0);
    assert_eq!(tag(IoFlags::PRACT), 0x2345_6789);
    assert_eq!(tag(IoFlags::CHECK_REFERENCE), 0x2345_6789);
}

#[test]
fn dataset_management_takes_1_to_256_ranges() {
    let command = |ranges| Command::dataset_management(1, ranges, DatasetAttribute::Deallocate, DataPointer::None);
    assert_eq!(command(0), None);
    assert_eq!(command(DSM_RANGES_MAX + 1), None);
    assert_eq!(command(DSM_RANGES_MAX).expect("in range").dword(10), 255);
    let integral = Command::dataset_management(1, 1, DatasetAttribute::IntegralRead, DataPointer::None);
    assert_eq!(integral.expect("in range").dword(11), 1);
}

#[test]
fn a_list_is_named_in_psdt() {
    let descriptor = crate::sgl::data_block(sw_mem::Iova::new(0x1000), 512);
    let read = Command::read(range(0, 1), DataPointer::Sgl(descriptor), IoFlags::NONE);
    assert_eq!(read.dword(0), 0x4002, "PSDT 01b in bits 15:14");
    assert_eq!(read.data_pointer(), DataPointer::Sgl(descriptor));
}
