use super::*;

/// What QEMU 7.2's controller read as in the project's guest (CAP, VS).
const QEMU_CAP: u64 = 0x0240_1820_0F01_07FF;

#[test]
fn the_capabilities_of_an_emulated_controller() {
    let cap = Cap::decode(QEMU_CAP).expect("a good register");
    assert_eq!((cap.queue_entries_max, cap.contiguous_queues_required, cap.arbitration), (2048, true, 0));
    assert_eq!((cap.ready_timeout, cap.doorbell_stride.bytes()), (Duration::from_millis(7_500), 4));
    assert_eq!((cap.page_bytes_min, cap.page_bytes_max), (4096, 65_536));
    assert_eq!(cap.command_sets, Cap::CSS_NVM | Cap::CSS_IOCS | Cap::CSS_ADMIN_ONLY);
    assert!(cap.controller_memory && !cap.persistent_memory && !cap.subsystem_reset && !cap.boot_partitions);
    assert_eq!(cap.ready_modes, ReadyModes { with_media: false, independent_of_media: false });
    assert_eq!(Version(0x0001_0400).to_string(), "1.4.0");
}

#[test]
fn impossible_capabilities_are_refused_with_the_field() {
    let field = |raw| match Cap::decode(raw) {
        Err(WireError::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(u64::MAX), "CAP");
    assert_eq!(field(QEMU_CAP & !0xFFFF), "CAP.MQES");
    // MPSMIN 5, MPSMAX 4.
    assert_eq!(field(QEMU_CAP | 5 << 48), "CAP.MPSMAX");
}

#[test]
fn a_timeout_of_zero_is_half_a_second_and_the_longer_limit_counts() {
    let cap = Cap::decode(QEMU_CAP & !(0xFF << 24)).expect("a good register");
    assert_eq!(cap.ready_timeout, HALF_SECOND);
    let crto = Crto::decode(0x0001_0078);
    // CRTO means nothing without CRMS, and never shortens CAP.TO.
    assert_eq!(cap.ready_limit(Some(crto)), HALF_SECOND);
    let modes = Cap::decode(QEMU_CAP | 1 << 59).expect("a good register");
    assert_eq!(modes.ready_limit(Some(crto)), Duration::from_secs(60));
    assert_eq!(modes.ready_limit(Some(Crto::decode(1))), Duration::from_millis(7_500));
    assert_eq!(modes.ready_limit(None), Duration::from_millis(7_500));
}

#[test]
fn doorbells_lie_by_queue_and_stride() {
    // PCIe Transport: 1000h + (2y + 0 or 1) * (4 << CAP.DSTRD).
    let packed = DoorbellStride::new(0);
    assert_eq!((packed.sq_tail(0), packed.cq_head(0)), (Some(0x1000), Some(0x1004)));
    assert_eq!((packed.sq_tail(3), packed.cq_head(3)), (Some(0x1018), Some(0x101C)));
    let wide = DoorbellStride::new(4);
    assert_eq!((wide.sq_tail(1), wide.cq_head(1)), (Some(0x1080), Some(0x10C0)));
    assert_eq!(DoorbellStride::new(15).cq_head(u16::MAX), None, "past 32 bits");
    assert_eq!(DoorbellStride::new(15).sq_tail(1), Some(0x4_1000));
}

#[test]
fn status_of_a_controller_that_is_gone_says_so_first() {
    let gone = Csts(u32::MAX);
    assert!(gone.is_gone());
    assert_eq!(format!("{gone:?}"), "CSTS all ones (gone)");
    assert!(!Csts(0).is_gone() && !Csts(0).is_ready());
    assert!(Csts(2).is_fatal());
    let shutdowns = [0, 4, 8, 12].map(|raw| Csts(raw).shutdown());
    let want = [ShutdownStatus::None, ShutdownStatus::Processing, ShutdownStatus::Complete, ShutdownStatus::Reserved];
    assert_eq!(shutdowns, want);
}

#[test]
fn the_configuration_is_written_whole() {
    // IOCQES 4 at 23:20, IOSQES 6 at 19:16, MPS 0, CSS 110b at 6:4, EN.
    let cc = Cc::enabled(0, CommandSets::All);
    assert_eq!(cc.raw(), 0x0046_0061);
    assert_eq!(Cc::enabled(0, CommandSets::Nvm).raw(), 0x0046_0001);
    assert_eq!(Cc::enabled(0, CommandSets::AdminOnly).raw(), 0x0046_0071);
    assert_eq!(cc.shutdown(Shutdown::Normal).raw(), 0x0046_4061);
    assert_eq!(cc.shutdown(Shutdown::Normal).shutdown(Shutdown::Abrupt).raw(), 0x0046_8061);
    assert!(cc.is_enabled() && !cc.disable().is_enabled() && !Cc::DISABLED.is_enabled());
    assert_eq!(Cc::from_raw(cc.raw()), cc);
}

#[test]
fn admin_queues_have_2_to_4096_entries() {
    let aqa = |sq_entries, cq_entries| Aqa { sq_entries, cq_entries }.encode();
    assert_eq!(aqa(2, 4096), Some(0x0FFF_0001));
    assert_eq!([aqa(1, 2), aqa(2, 1), aqa(4097, 2), aqa(2, 0)], [None; 4]);
}

#[test]
fn controller_memory_is_absent_or_somewhere_sensible() {
    assert_eq!(Cmb::decode(0, 0), Ok(None));
    // SZ 4 of 64 KiB, all uses, BAR 2, offset 3 units.
    let cmb = Cmb::decode(0x0000_3002, 0x0000_411F).expect("good").expect("there");
    assert_eq!((cmb.bar, cmb.offset_bytes, cmb.len_bytes), (2, 3 << 16, 4 << 16));
    assert!(cmb.uses.completion_queues && cmb.uses.lists && cmb.uses.write_data);
    let refused = |cmbloc, cmbsz| match Cmb::decode(cmbloc, cmbsz) {
        Err(WireError::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(1, 0x1000), "CMBLOC.BIR");
    assert_eq!(refused(6, 0x1000), "CMBLOC.BIR");
    assert_eq!(refused(2, 0x1700), "CMBSZ.SZU");
    // The largest that the fields can say: 2^20 - 1 units of 64 GiB.
    let most = Cmb::decode(0xFFFF_F000, 0xFFFF_F600).expect("good").expect("there");
    assert_eq!(most.len_bytes, 0xF_FFFF << 36);
    assert_eq!((cmbmsc(None), cmbmsc(Some(0x1_0000_0FFF))), (1, 0x1_0000_0003));
}

#[test]
fn persistent_memory_counts_in_half_seconds_or_minutes() {
    assert_eq!(Pmrcap::decode(0x0003_0000).timeout, Duration::from_millis(1_500));
    assert_eq!(Pmrcap::decode(0x0003_0100).timeout, Duration::from_secs(180));
    assert_eq!(Pmrcap::decode(5 << 5).bar, 5);
}
