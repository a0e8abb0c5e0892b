use super::*;

#[test]
fn events_are_read_from_type_information_and_log_page() {
    // Base, "Asynchronous Event Request", completion dword 0: type 2:0, information 15:8, log page 23:16.
    let event = AsyncEvent::decode(0x0004_0002);
    assert_eq!(event, AsyncEvent { kind: EventKind::NamespaceAttribute, log_page: id::CHANGED_NAMESPACES });
    assert_eq!(AsyncEvent::decode(0x0002_0101).kind, EventKind::Temperature);
    assert_eq!(AsyncEvent::decode(0x0001_0300), AsyncEvent { kind: EventKind::PersistentInternal, log_page: 1 });
    assert_eq!(AsyncEvent::decode(0x0000_FF07).kind, EventKind::Other { kind: 7, info: 0xFF });
    let kinds = |kind: u32| [0, 1, 2, 3, 4, 5, 6].map(|info: u32| AsyncEvent::decode(info << 8 | kind).kind);
    assert_eq!(kinds(0)[5], EventKind::FirmwareLoad);
    assert_eq!(kinds(1)[2], EventKind::Spare);
    assert_eq!((kinds(2)[1], kinds(2)[3]), (EventKind::FirmwareActivation, EventKind::AnaChange));
    // Linux's `NVME_AER_NOTICE_CCR_COMPLETED`, with its page.
    let reset = AsyncEvent::decode(0x001E_F402);
    assert_eq!((reset.kind, reset.page()), (EventKind::ResetCompleted, Some(LogPage::Resets)));
    assert!(matches!(kinds(2)[2], EventKind::Other { kind: 2, info: 2 }));
}

#[test]
fn unused_error_entries_are_nothing_and_a_location_may_be_none() {
    let mut raw = [0; ERROR_ENTRY_BYTES];
    assert_eq!(ErrorEntry::decode(&raw), Ok(None));
    raw[0] = 1;
    (raw[14], raw[15]) = (0xFF, 0xFF);
    assert_eq!(ErrorEntry::decode(&raw).expect("whole").expect("used").location, None);
    assert!(ErrorEntry::decode(&raw[..63]).is_err());
}

#[test]
fn changed_namespaces_are_a_list_or_too_many() {
    let mut raw = vec![0; 4096];
    assert_eq!(ChangedNamespaces::decode(&raw), Ok(ChangedNamespaces::Listed(vec![])));
    raw[..8].copy_from_slice(&[3, 0, 0, 0, 9, 0, 0, 0]);
    assert_eq!(ChangedNamespaces::decode(&raw), Ok(ChangedNamespaces::Listed(vec![3, 9])));
    raw[..4].fill(0xFF);
    assert_eq!(ChangedNamespaces::decode(&raw), Ok(ChangedNamespaces::TooMany));
    assert!(ChangedNamespaces::decode(&raw[..4095]).is_err());
}

#[test]
fn short_pages_are_refused() {
    let raw = vec![0; 4095];
    assert!(Smart::decode(&raw[..511]).is_err() && Firmware::decode(&raw[..511]).is_err());
    assert!(CommandEffects::decode(&raw).is_err());
}
