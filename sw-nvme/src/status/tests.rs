use super::*;

#[test]
fn the_table_of_names_is_sorted_and_has_no_twins() {
    assert!(names::NAMES.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

#[test]
fn bits_of_the_field_are_where_the_base_specification_puts_them() {
    // Entry word 3 is DNR 31, M 30, CRD 29:28, SCT 27:25, SC 24:17, P 16.
    let status = Status::from_field(0b1_1_10_010_10000001_1);
    assert_eq!((status.sct(), status.sc(), status.crd()), (2, 0x81, 2));
    assert!(status.dnr() && status.more());
    assert_eq!(status, Status::new(2, 0x81).with_crd(2).with_dnr().also_more());
    assert_eq!(status.to_string(), "unrecovered read error (sct 2h, sc 81h, crd 2, more, dnr)");
}

impl Status {
    fn also_more(self) -> Self {
        Self(self.0 | 1 << 14)
    }
}
