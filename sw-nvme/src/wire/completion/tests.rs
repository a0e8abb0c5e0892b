use super::*;

#[test]
#[rustfmt::skip]
fn an_entry_is_what_the_table_says() {
    // Base, "Common Completion Queue Entry Layout".
    let raw = [
        0x04, 0x03, 0x02, 0x01, // DW0
        0, 0, 0, 0, // DW1
        0x11, 0x00, 0x02, 0x00, // DW2: SQHD 15:0, SQID 31:16
        0x41, 0x0C, 0x01, 0x85, // DW3: CID 15:0, P 16, SC 24:17 (80h), SCT 27:25 (2), DNR 31
    ];
    let entry = Completion::new(raw);
    assert_eq!((entry.dw0(), entry.dw1(), entry.sq_head(), entry.sq_id()), (0x0102_0304, 0, 0x11, 2));
    assert_eq!((entry.cid(), entry.phase(), entry.status()), (0x0C41, true, Status::WRITE_FAULT.with_dnr()));
    assert!(phase_of(0x0001_0000) && !phase_of(0xFFFE_FFFF));
    assert_eq!(entry.bytes(), &raw);
}

#[test]
fn what_is_built_is_read_back() {
    let status = Status::NAMESPACE_NOT_READY.with_crd(3);
    for phase in [false, true] {
        let fields = CompletionFields { dw0: 7, sq_head: 0xFFFF, sq_id: 9, cid: 0xABCD, phase, status };
        let entry = Completion::build(fields);
        let read = CompletionFields {
            dw0: entry.dw0(),
            sq_head: entry.sq_head(),
            sq_id: entry.sq_id(),
            cid: entry.cid(),
            phase: entry.phase(),
            status: entry.status(),
        };
        assert_eq!(read, fields);
    }
}
