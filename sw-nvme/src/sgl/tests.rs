use sw_mem::ByteLen;

use super::*;

const BYTE: u32 = 0x0001_0001;
const DWORD: u32 = 0x0004_0002;

fn at(iova: u64, len: u64) -> Segment {
    Segment { iova: Iova::new(iova), len: ByteLen(len) }
}

fn refused(sgls: u32, data: &[Segment]) -> NotSgl {
    describe(SglSupport::decode(sgls), data, (Iova::new(0x1000), &mut [[0; 16]; 4])).expect_err("refused")
}

#[test]
#[rustfmt::skip]
fn descriptors_are_what_the_tables_say() {
    // Base, "SGL Data Block descriptor": address 7:0, length 11:8, type 0h and subtype 0h in byte 15.
    let want = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x04, 0x03, 0x02, 0x01, 0, 0, 0, 0x00];
    assert_eq!(data_block(Iova::new(0x1122_3344_5566_7788), 0x0102_0304), want);
    assert_eq!(last_segment(Iova::new(0x1000), 32)[8..], [32, 0, 0, 0, 0, 0, 0, 0x30]);
}

#[test]
fn support_is_read_from_sgls() {
    let byte = SglSupport::decode(BYTE);
    assert_eq!((byte.alignment, byte.bit_bucket, byte.longer_than_data), (SglAlignment::Byte, true, false));
    let dword = SglSupport::decode(DWORD | 9 << 8);
    assert_eq!((dword.alignment, dword.bit_bucket, dword.longer_than_data), (SglAlignment::Dword, false, true));
    assert_eq!(dword.descriptor_threshold, 9);
    assert_eq!([0, 3].map(|sgls| SglSupport::decode(sgls).alignment), [SglAlignment::None; 2]);
}

#[test]
fn one_segment_is_in_the_command_and_more_are_in_a_list() {
    let support = SglSupport::decode(BYTE);
    let mut list = [[0xEE; 16]; 4];
    let one = describe(support, &[at(0x1003, 513)], (Iova::new(0x8000), &mut list)).expect("fits");
    assert_eq!(one, (DataPointer::Sgl(data_block(Iova::new(0x1003), 513)), 0));
    assert_eq!(list[0], [0xEE; 16], "the list is untouched");
    let three = [at(0x1000, 512), at(0x3000, 100), at(0x5001, 7)];
    let (pointer, bytes) = describe(support, &three, (Iova::new(0x8000), &mut list)).expect("fits");
    assert_eq!((pointer, bytes), (DataPointer::Sgl(last_segment(Iova::new(0x8000), 48)), 48));
    let want = three.map(|part| data_block(part.iova, u32::try_from(part.len.0).expect("short")));
    assert_eq!(list[..3], want);
    assert_eq!(list[3], [0xEE; 16]);
}

#[test]
fn what_the_controller_does_not_take_is_refused() {
    assert_eq!(refused(0, &[at(0x1000, 512)]), NotSgl::Unsupported);
    assert_eq!(refused(BYTE, &[]), NotSgl::Empty);
    assert_eq!(refused(BYTE, &[at(0x1000, 0)]), NotSgl::Empty);
    assert_eq!(refused(DWORD, &[at(0x1002, 512)]), NotSgl::Alignment { iova: Iova::new(0x1002) });
    assert_eq!(refused(DWORD, &[at(0x1000, 510)]), NotSgl::Alignment { iova: Iova::new(0x1000) });
    assert_eq!(refused(BYTE, &[at(0x1000, 1 << 32)]), NotSgl::TooLong { iova: Iova::new(0x1000) });
    assert_eq!(refused(BYTE, &[at(u64::MAX, 1)]), NotSgl::TooLong { iova: Iova::new(u64::MAX) });
    assert_eq!(refused(BYTE, &[at(0x1000, 1); 5]), NotSgl::ListFull { room: 4, wanted: 5 });
}
