use super::*;

fn delays() -> RetryDelays {
    RetryDelays::from_crdt([1, 20, 0])
}

#[test]
fn the_table_of_names_is_sorted_and_has_no_twins() {
    assert!(names::NAMES.windows(2).all(|pair| pair[0].0 < pair[1].0));
    for &(code, name) in names::NAMES {
        assert_eq!(names::name(code), Some(name));
        assert!(!name.is_empty() && name.is_ascii() && name.to_lowercase() == name, "{name}");
    }
}

#[test]
fn bits_of_the_field_are_where_the_base_specification_puts_them() {
    // Base, "Status Field": DNR 15, M 14, CRD 13:12, SCT 11:9, SC 8:1 of the upper half of dword 3; bit 0 is P.
    let status = Status::from_field(1 << 15 | 1 << 14 | 2 << 12 | 2 << 9 | 0x81 << 1 | 1);
    assert_eq!((status.sct(), status.sc(), status.crd()), (sct::MEDIA, 0x81, 2));
    assert!(status.dnr() && status.more());
    assert_eq!(status.code(), 0x281);
    assert_eq!(Status::from_field(1 << 15), Status::new(0, 0).with_dnr());
    assert_eq!(Status::from_field(3 << 12), Status::new(0, 0).with_crd(3));
}

#[test]
fn success_is_a_type_and_a_code_of_zero_whatever_else_is_set() {
    assert!(Status::SUCCESS.is_success());
    assert!(Status::from_field(0xF001).is_success(), "DNR, M and CRD mean nothing with success");
    assert!(!Status::new(1, 0).is_success());
    assert!(!Status::new(0, 1).is_success());
    assert_eq!(Status::SUCCESS.fault(&delays()), None);
    assert_eq!(Status::SUCCESS.class(), Class::Success);
}

#[test]
fn the_text_has_name_numbers_and_bits() {
    let text = |status: Status| status.to_string();
    assert_eq!(text(Status::UNRECOVERED_READ.with_dnr()), "unrecovered read error (sct 2h, sc 81h, dnr)");
    assert_eq!(text(Status::from_field(0x7000 | 0x82 << 1)), "namespace not ready (sct 0h, sc 82h, crd 3, more)");
    assert_eq!(text(Status::new(7, 0xC0)), "vendor specific (sct 7h, sc c0h)");
    assert_eq!(text(Status::new(0, 0x7E)), "unknown status (sct 0h, sc 7eh)");
    assert!(Status::LBA_OUT_OF_RANGE.remedy().is_some() && Status::new(7, 1).remedy().is_none());
}

#[test]
fn classes_follow_from_type_code_and_dnr() {
    let class = |status: Status| status.class();
    assert_eq!(class(Status::NAMESPACE_NOT_READY.with_crd(2)), Class::Retryable { crd: 2 });
    assert_eq!(class(Status::INTERNAL), Class::Retryable { crd: 0 });
    assert_eq!(class(Status::INTERNAL.with_dnr()), Class::NotRetryable);
    assert_eq!(class(Status::WRITE_FAULT.with_dnr()), Class::Media);
    assert_eq!(class(Status::INVALID_NAMESPACE.with_dnr()), Class::NamespaceGone);
    assert_eq!(class(Status::ABORT_REQUESTED), Class::Aborted);
    assert_eq!(class(Status::ABORTED_SQ_DELETION), Class::Aborted);
    assert_eq!(class(Status::new(sct::PATH, 0x71)), Class::Aborted);
    assert_eq!(class(Status::new(sct::PATH, 0x02)), Class::Path);
    assert_eq!(class(Status::new(sct::VENDOR, 0x11).with_dnr()), Class::NotRetryable);
}

#[test]
fn retries_wait_as_long_as_crd_says_and_dnr_forbids_them() {
    let retry = |status: Status| status.retry(&delays());
    assert_eq!(retry(Status::INTERNAL), Retry::Now);
    assert_eq!(retry(Status::INTERNAL.with_crd(1)), Retry::After(Duration::from_millis(100)));
    assert_eq!(retry(Status::INTERNAL.with_crd(2)), Retry::After(Duration::from_secs(2)));
    assert_eq!(retry(Status::INTERNAL.with_crd(3)), Retry::Now, "a delay of zero is none");
    assert_eq!(retry(Status::INTERNAL.with_crd(1).with_dnr()), Retry::Never);
    assert_eq!(retry(Status::SUCCESS), Retry::Never);
}

#[test]
fn faults_carry_the_kind_that_the_caller_can_act_on() {
    let kind = |sct, sc| Status::new(sct, sc).fault(&delays()).map(|fault| fault.kind);
    let table = [
        (0, 0x01, ErrorKind::Unsupported),
        (0, 0x02, ErrorKind::Protocol),
        (0, 0x04, ErrorKind::Io),
        (0, 0x0B, ErrorKind::NoDevice),
        (0, 0x13, ErrorKind::Protocol),
        (0, 0x14, ErrorKind::TooLarge),
        (0, 0x20, ErrorKind::PermissionDenied),
        (0, 0x80, ErrorKind::OutOfRange),
        (0, 0x81, ErrorKind::NoSpace),
        (0, 0x82, ErrorKind::Busy),
        (0, 0x83, ErrorKind::InUse),
        (1, 0x02, ErrorKind::Protocol),
        (1, 0x05, ErrorKind::ResourceLimit),
        (1, 0x09, ErrorKind::Unsupported),
        (1, 0x82, ErrorKind::PermissionDenied),
        (2, 0x80, ErrorKind::Io),
        (2, 0x81, ErrorKind::Io),
        (2, 0x85, ErrorKind::ChecksumMismatch),
        (2, 0x86, ErrorKind::PermissionDenied),
        (3, 0x02, ErrorKind::Io),
        (7, 0xFF, ErrorKind::Io),
    ];
    for (sct, sc, want) in table {
        assert_eq!(kind(sct, sc), Some(want), "sct {sct} sc {sc:#x}");
    }
    let fault = Status::UNRECOVERED_READ.with_dnr().fault(&delays());
    assert_eq!(fault, Some(Fault::new(ErrorKind::Io, 0x281)));
}

#[test]
fn a_refusal_is_told_as_one_that_wrote_nothing_and_nothing_else_is() {
    let untouched = |status: Status| status.with_dnr().fault(&delays()).is_some_and(|fault| fault.is_not_applied());
    let all = (0..8).flat_map(|sct| (0..=0xFF).map(move |sc| Status::new(sct, sc)));
    let refusals: Vec<&str> = all.filter(|status| untouched(*status)).map(|status| status.name().unwrap()).collect();
    let told = [
        "invalid command opcode",
        "invalid field in command",
        "atomic write unit exceeded",
        "lba out of range",
        "conflicting attributes",
        "invalid protection information",
        "attempted write to read only range",
        "command size limit exceeded",
    ];
    assert_eq!(refusals, told);
}

#[test]
fn every_field_has_a_class_a_text_and_no_surprise() {
    for field in 0..=u16::MAX {
        let status = Status::from_field(field);
        assert_eq!(status, Status::from_field(field | 1), "the phase is no part of it");
        assert_eq!(status.is_success(), status.fault(&delays()).is_none());
        assert_eq!(status.is_success(), status.class() == Class::Success);
        assert!(!status.to_string().is_empty());
        if status.dnr() {
            assert_eq!(status.retry(&delays()), Retry::Never);
            assert!(!matches!(status.class(), Class::Retryable { .. }));
        }
    }
}
