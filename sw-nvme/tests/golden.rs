//! Structures that other implementations laid out (`testdata/README.md`) are ours, field by field and byte by byte.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use sw_mem::{ByteLen, Iova};
use sw_nvme::{
    prp::Segment,
    sgl,
    status::{Status, sct},
    wire::{
        BlockCount, Command, DataPointer, IoFlags, LbaRange, NSID_ALL,
        admin::{CqInterrupt, Identify, QueueShape},
        command::{DatasetAttribute, dsm_range},
        completion::{Completion, CompletionFields},
        feature::{Feature, QueueCounts, Select, Switch, async_events, id},
        identify::{
            ControllerKind, DeallocatedReads, ExtendedFormat, FlushAll, GuardFormat, IdentifyController,
            IdentifyNamespace, NamespaceDescriptors, NvmLimits,
        },
        log::{CommandEffects, ErrorEntry, ErrorLocation, Firmware, LogPage, Retain, Smart},
        regs::{Aqa, Cap, Cc, Cmb, CommandSets, Crto, Csts, Pmrcap, Shutdown, ShutdownStatus, Version, cmbmsc},
    },
};

const SLBA: u64 = 0x1234_5678_9ABC_DEF0;

fn testdata(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(testdata("golden").join(name)).expect(name)
}

/// The lines of `golden.hex`: name and bytes.
fn lines() -> BTreeMap<String, Vec<u8>> {
    let text = fs::read_to_string(testdata("golden.hex")).expect("golden.hex");
    let parse = |line: &str| {
        let (name, hex) = line.split_once(' ').expect("a name and bytes");
        let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"));
        (name.to_owned(), bytes.collect())
    };
    text.lines().map(parse).collect()
}

/// Eight bytes that count up from `first`, as the generator fills counters.
fn counted(first: u8) -> u128 {
    let mut bytes = [0; 16];
    bytes[..8].iter_mut().enumerate().for_each(|(at, byte)| *byte = first + u8::try_from(at).expect("eight"));
    u128::from_le_bytes(bytes)
}

fn counting<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|at| first + u8::try_from(at).expect("short"))
}

#[test]
fn identify_controller_as_libnvme_lays_it_out() {
    let id = IdentifyController::decode(&golden("identify-controller.bin")).expect("a whole structure");
    assert_eq!((id.vendor, id.subsystem_vendor, id.controller_id), (0x1B36, 0x1AF4, 0x0102));
    assert_eq!((id.serial.as_str(), id.model.as_str()), ("SW-0001", "Straightway golden controller"));
    assert_eq!((id.firmware.as_str(), id.version), ("1.2.3", Version::V1_4));
    assert_eq!((id.ieee_oui, id.multi_path, id.mdts), ([0x52, 0x54, 0x00], 2, 7));
    assert_eq!(id.shutdown_limit, Some(Duration::from_millis(2500)));
    assert_eq!((id.async_events, id.attributes, id.kind), (0x300, 0x8001, ControllerKind::Io));
    assert!(id.host_id_128() && id.extended_formats() && !id.mdts_excludes_metadata());
    assert_eq!(id.fru_guid, counting(0x40));
    let delays = [0, 1, 2, 3].map(|crd| id.retry_delays.of(crd).as_millis());
    assert_eq!(delays, [0, 300, 5_000, 60_000]);
    assert!(id.admin.doorbell_buffers() && id.admin.namespace_management());
    assert_eq!((id.aborts_max, id.async_requests_max, id.error_entries, id.power_states), (4, 8, 64, 5));
    assert!(id.has_command_effects() && id.has_log_offsets());
    assert_eq!((id.log_attributes, id.vendor_commands), (6, 1));
    assert_eq!((id.warning_kelvin, id.critical_kelvin), (343, 373));
    assert_eq!((id.host_memory_preferred_4k, id.host_memory_min_4k), (0x8000, 0x2000));
    assert_eq!((id.capacity_bytes, id.unallocated_bytes), (counted(0x11), counted(0x21)));
    assert_eq!(id.keep_alive_unit, Some(Duration::from_secs(10)));
    assert_eq!((id.commands_max, id.namespaces), (1024, 256));
    let nvm = id.nvm;
    assert!(nvm.compare() && nvm.write_uncorrectable() && nvm.dataset_management() && nvm.write_zeroes());
    assert!(nvm.feature_select() && nvm.timestamp() && nvm.verify() && nvm.copy() && !nvm.reservations());
    assert_eq!((id.fused, id.format_attributes), (1, 4));
    assert_eq!((id.volatile_write_cache, id.flush_all), (true, FlushAll::Yes));
    assert_eq!((id.atomic_write_blocks, id.atomic_write_power_fail_blocks), (512, 8));
    assert_eq!((id.sgls, id.subsystem_nqn.as_str()), (0x00F4_0B02, "nqn.2019-08.org.example:golden"));
    let support = sgl::SglSupport::decode(id.sgls);
    assert_eq!((support.alignment, support.descriptor_threshold), (sgl::SglAlignment::Dword, 11));
    assert!(!support.bit_bucket && support.longer_than_data);
}

#[test]
fn limits_of_the_nvm_command_set_as_libnvme_lays_them_out() {
    let limits = NvmLimits::decode(&golden("identify-controller-nvm.bin")).expect("a whole structure");
    let want = NvmLimits {
        verify_log2: 5,
        write_zeroes_log2: 6,
        write_uncorrectable_log2: 7,
        dsm_ranges: 64,
        dsm_range_blocks: 0x0040_0000,
        dsm_blocks: 0x0000_0001_0000_0002,
    };
    assert_eq!(limits, want);
}

#[test]
fn identify_namespace_as_libnvme_lays_it_out() {
    let raw = golden("identify-namespace.bin");
    let id = IdentifyNamespace::decode(&raw).expect("a whole structure").expect("an active namespace");
    assert_eq!((id.size_blocks, id.capacity_blocks, id.used_blocks), (0x1_2345_6780, 0x2345_6780, 0x0345_6780));
    assert_eq!(id.size_bytes(), 0x1_2345_6780 * 4096);
    assert_eq!((id.features, id.format.index, id.format.block_bytes), (0x17, 17, 4096));
    assert_eq!((id.format.metadata_bytes, id.format.relative_performance, id.metadata_interleaved), (8, 1, true));
    let formats = id.formats.iter().map(|format| (format.index, format.block_bytes, format.metadata_bytes));
    assert_eq!(formats.collect::<Vec<_>>(), [(0, 512, 0), (1, 4096, 0), (3, 512, 64), (17, 4096, 8)]);
    assert_eq!((id.metadata_abilities, id.protection_abilities), (3, 0x1F));
    assert_eq!((id.protection_type, id.protection_first, id.shared), (2, true, true));
    assert_eq!((id.format_left_percent, id.deallocated_reads), (Some(42), DeallocatedReads::Zeroes));
    assert!(id.write_zeroes_deallocates && id.thin() && id.deallocated_error() && id.write_protected);
    assert_eq!((id.atomic_write_blocks, id.atomic_write_power_fail_blocks), (Some(32), Some(16)));
    assert_eq!((id.io_boundary_blocks, id.capacity_bytes), (Some(256), counted(0x31)));
    assert_eq!((id.write_granularity_blocks, id.write_alignment_blocks), (Some(8), Some(4)));
    assert_eq!((id.deallocate_granularity_blocks, id.write_optimal_blocks), (Some(64), Some(128)));
    assert_eq!((id.copy_range_blocks, id.ana_group), (128, 5));
    assert_eq!((id.nguid, id.eui64), (counting(0xA0), counting(0xC0)));
}

#[test]
fn extended_formats_as_libnvme_lays_them_out() {
    let raw = golden("identify-namespace-nvm.bin");
    let of = |index| ExtendedFormat::decode(&raw, index).expect("a whole structure");
    assert_eq!(of(0), ExtendedFormat { storage_tag_bits: 0, guard: GuardFormat::Bits16 });
    assert_eq!(of(1), ExtendedFormat { storage_tag_bits: 16, guard: GuardFormat::Bits16 });
    assert_eq!(of(2), ExtendedFormat { storage_tag_bits: 0, guard: GuardFormat::Bits32 });
    assert_eq!(of(63), ExtendedFormat { storage_tag_bits: 48, guard: GuardFormat::Bits64 });
    assert!(ExtendedFormat::decode(&raw, 64).is_err());
}

#[test]
fn namespace_descriptors_as_libnvme_lays_them_out() {
    let found = NamespaceDescriptors::decode(&golden("identify-descriptors.bin")).expect("a good list");
    let want = NamespaceDescriptors {
        eui64: Some(counting(0x60)),
        nguid: Some(counting(0x50)),
        uuid: Some(counting(0x70)),
        csi: Some(0),
    };
    assert_eq!(found, want);
}

#[test]
fn smart_as_libnvme_lays_it_out() {
    let smart = Smart::decode(&golden("smart.bin")).expect("a whole page");
    assert_eq!((smart.critical_warning, smart.temperature_kelvin), (9, 0x137));
    assert_eq!((smart.spare_percent, smart.spare_threshold_percent, smart.used_percent), (98, 10, 103));
    assert_eq!(smart.data_units_read, u128::from_le_bytes(counting(1)));
    let counters = [
        smart.data_units_written,
        smart.read_commands,
        smart.write_commands,
        smart.busy_minutes,
        smart.power_cycles,
        smart.power_on_hours,
        smart.unsafe_shutdowns,
        smart.media_errors,
        smart.error_log_entries,
    ];
    assert_eq!(counters, [2, 3, 4, 5, 6, 7, 8, 9, 10].map(counted));
    assert_eq!((smart.warning_temperature_minutes, smart.critical_temperature_minutes), (0x0102_0304, 0x0506_0708));
}

#[test]
fn other_log_pages_as_libnvme_lays_them_out() {
    let entry = ErrorEntry::decode(&golden("error-entry.bin")).expect("whole").expect("used");
    let want = ErrorEntry {
        error_count: 0x0807_0605_0403_0201,
        sq_id: 3,
        cid: 0x0C41,
        status: Status::UNRECOVERED_READ,
        location: Some(ErrorLocation { byte: 48, bit: 5 }),
        lba: 0x1F_4000,
        nsid: 1,
    };
    assert_eq!(entry, want);
    let firmware = Firmware::decode(&golden("firmware.bin")).expect("a whole page");
    assert_eq!((firmware.active_slot, firmware.next_slot), (1, 2));
    assert_eq!(firmware.revisions.map(|text| text.to_string()), ["1.2.3", "1.2.4", "", "", "", "", ""]);
    let effects = CommandEffects::decode(&golden("command-effects.bin")).expect("a whole page");
    assert!(effects.admin(6).supported() && !effects.admin(6).changes_blocks() && !effects.admin(7).supported());
    assert!(effects.admin(0x80).changes_blocks() && effects.admin(0x80).changes_namespace());
    assert!(effects.io(1).supported() && effects.io(1).changes_blocks() && !effects.io(2).changes_blocks());
    assert!(effects.io(0xFF).changes_inventory() && effects.io(0xFF).changes_controller());
}

/// Compares what was built with the lines of the same name; every line of `golden.hex` is compared by one test.
fn compare(built: &[(&str, Command)]) {
    let lines = lines();
    for (name, command) in built {
        assert_eq!(command.bytes()[..], lines[*name][..], "{name}: {command:?}");
    }
}

fn range() -> LbaRange {
    LbaRange { nsid: 0x0102_0304, slba: SLBA, nlb: BlockCount::new(256).expect("in range") }
}

const PAGES: DataPointer = DataPointer::Prp(0x1122_3344_5566_7788, 0x99AA_BBCC_DDEE_0000);

#[test]
fn io_commands_as_spdk_lays_them_out() {
    let cid = |command: Command| command.with_cid(0x0C41);
    let none = IoFlags::NONE;
    let protected = IoFlags::PRACT | IoFlags::CHECK_GUARD | IoFlags::CHECK_REFERENCE;
    let block = DataPointer::Sgl(sgl::data_block(Iova::new(0x1122_3344_5566_7788), 0x2_0000));
    let support = sgl::SglSupport::decode(1);
    let at = |iova| Segment { iova: Iova::new(iova), len: ByteLen(0x1_0000) };
    let list = (Iova::new(0x1122_3344_5566_7000), &mut [[0; 16]; 4][..]);
    let (list, _) = sgl::describe(support, &[at(0x7000_0000), at(0x8000_0000)], list).expect("room");
    compare(&[
        ("read", cid(Command::read(range(), PAGES, none))),
        ("read_flags", cid(Command::read(range(), PAGES, IoFlags::FUA | IoFlags::LIMITED_RETRY))),
        ("read_protected", cid(Command::read(range(), PAGES, protected))),
        ("read_sgl", cid(Command::read(range(), block, none))),
        ("read_sgl_list", cid(Command::read(range(), list, none))),
        ("write", cid(Command::write(range(), PAGES, IoFlags::FUA))),
        ("compare", cid(Command::compare(range(), PAGES, none))),
        ("write_zeroes", cid(Command::write_zeroes(range(), IoFlags::DEALLOCATE))),
        ("verify", cid(Command::verify(range(), none))),
        ("write_uncorrectable", cid(Command::write_uncorrectable(range()))),
        ("flush", cid(Command::flush(0x0102_0304))),
        ("deallocate", Command::dataset_management(1, 3, DatasetAttribute::Deallocate, PAGES).expect("in range")),
    ]);
    assert_eq!(dsm_range(SLBA, 0x0102_0304)[..], lines()["dsm_range"][..]);
}

#[test]
fn identify_commands_as_spdk_lays_them_out() {
    let identify = |what| Command::identify(what, PAGES);
    compare(&[
        ("identify_controller", identify(Identify::Controller)),
        ("identify_namespace", identify(Identify::Namespace { nsid: 7 })),
        ("identify_active", identify(Identify::ActiveNamespaces { after: 7 })),
        ("identify_descriptors", identify(Identify::NamespaceDescriptors { nsid: 7 })),
        ("identify_iocs_namespace", identify(Identify::CommandSetNamespace { nsid: 7, csi: 2 })),
        ("identify_iocs_controller", identify(Identify::CommandSetController { csi: 2 })),
        ("identify_iocs_active", identify(Identify::CommandSetNamespaces { after: 7, csi: 2 })),
        ("identify_ns_controllers", identify(Identify::NamespaceControllers { nsid: 7, from: 9 })),
        ("identify_controllers", identify(Identify::Controllers { from: 9 })),
        ("identify_iocs", identify(Identify::CommandSets)),
    ]);
}

#[test]
fn other_admin_commands_as_spdk_lays_them_out() {
    let queue = |entries| QueueShape { qid: 3, entries, iova: Iova::new(0x1122_3344_5566_7000) };
    let (shadow, events) = (Iova::new(0x1122_3344_5566_7788), Iova::new(0x99AA_BBCC_DDEE_0000));
    let far = Command::get_log_page(LogPage::Errors(Retain::Clear), 0x0123_4567_89AB_CDE0, 0x12_3457 * 4, PAGES);
    let smart = Command::get_log_page(LogPage::Smart(Retain::Keep), 0, 512, PAGES);
    compare(&[
        ("create_cq", Command::create_cq(queue(1024), CqInterrupt::Vector(5)).expect("in range")),
        ("create_cq_polled", Command::create_cq(queue(1024), CqInterrupt::Polled).expect("in range")),
        ("create_sq", Command::create_sq(queue(256), 3).expect("in range")),
        ("delete_sq", Command::delete_sq(3)),
        ("delete_cq", Command::delete_cq(3)),
        ("abort", Command::abort(3, 0x0C41)),
        ("async_event", Command::async_event_request().with_cid(2)),
        ("keep_alive", Command::keep_alive().with_cid(2)),
        ("doorbell_buffers", Command::doorbell_buffer_config(shadow, events)),
        ("get_log_smart", smart.expect("in range")),
        ("get_log_far", far.expect("in range")),
    ]);
    assert_eq!(smart.expect("in range").nsid(), NSID_ALL);
    assert_eq!(Command::create_sq(queue(1), 3), None);
    assert_eq!(Command::create_cq(queue(65_537), CqInterrupt::Polled), None);
    assert_eq!(Command::get_log_page(LogPage::Firmware, 2, 512, PAGES), None);
    assert_eq!(Command::get_log_page(LogPage::Firmware, 0, 0, PAGES), None);
}

#[test]
fn features_as_spdk_lays_them_out() {
    let set = |feature: Feature| {
        let data = if feature.data_bytes() == 0 { DataPointer::None } else { PAGES };
        Command::set_features(&feature, data)
    };
    let queues = QueueCounts { submission: 8, completion: 9 }.encode().expect("in range");
    let events = async_events::NAMESPACE_ATTRIBUTE | async_events::FIRMWARE_ACTIVATION;
    compare(&[
        ("set_queues", set(Feature::NumberOfQueues { dword11: queues })),
        ("set_arbitration", set(Feature::Arbitration { burst_log2: 5 })),
        ("set_temperature", set(Feature::TemperatureThreshold { kelvin: 343 })),
        ("set_recovery", set(Feature::ErrorRecovery { limit_100ms: 20, deallocated_error: Switch::On })),
        ("set_cache", set(Feature::VolatileWriteCache(Switch::On))),
        ("set_coalescing", set(Feature::InterruptCoalescing { entries: 16, time_100us: 2 })),
        ("set_vector", set(Feature::InterruptVector { vector: 5, coalescing: Switch::Off })),
        ("set_events", set(Feature::AsyncEvents { bits: events })),
        ("set_keep_alive", set(Feature::KeepAliveTimer { timeout: Duration::from_secs(10) })),
        ("set_host_id", set(Feature::HostIdentifier { id: [7; 16] })),
        ("set_timestamp", set(Feature::Timestamp { unix_ms: 1 })),
        ("set_behavior", set(Feature::HostBehavior { advanced_retry: Switch::On })),
        ("set_profile", set(Feature::CommandSetProfile { index: 3 })),
        ("get_queues", Command::get_features(id::NUMBER_OF_QUEUES, Select::Supported, DataPointer::None)),
    ]);
    assert_eq!(QueueCounts::decode(queues), QueueCounts { submission: 8, completion: 9 });
}

fn word(lines: &BTreeMap<String, Vec<u8>>, name: &str) -> u32 {
    u32::from_le_bytes(lines[name][..].try_into().expect("four bytes"))
}

#[test]
fn registers_as_spdk_lays_them_out() {
    let lines = lines();
    let long = |name: &str| u64::from_le_bytes(lines[name][..].try_into().expect("eight bytes"));
    let cap = Cap::decode(long("cap")).expect("a good register");
    assert_eq!((cap.queue_entries_max, cap.arbitration, cap.ready_timeout), (1024, 1, Duration::from_secs(20)));
    assert!(cap.contiguous_queues_required && cap.subsystem_reset && cap.boot_partitions);
    assert!(cap.persistent_memory && cap.controller_memory);
    assert!(cap.ready_modes.with_media && !cap.ready_modes.independent_of_media);
    assert_eq!((cap.page_bytes_min, cap.page_bytes_max, cap.doorbell_stride.bytes()), (8192, 65_536, 16));
    assert_eq!((cap.command_sets, cap.nvm_command_set()), (0x41, Some(CommandSets::All)));
    assert_eq!((cap.page_code(16_384), cap.page_code(4096), cap.page_code(131_072)), (Some(2), None, None));
    let cc = Cc::enabled(2, CommandSets::All).shutdown(Shutdown::Normal);
    assert_eq!((cc.raw(), cc.page_bytes()), (word(&lines, "cc"), 16_384));
    let csts = Csts(word(&lines, "csts"));
    assert!(csts.is_ready() && !csts.is_fatal() && csts.subsystem_was_reset() && csts.is_paused() && !csts.is_gone());
    assert_eq!(csts.shutdown(), ShutdownStatus::Complete);
    let aqa = Aqa { sq_entries: 32, cq_entries: 64 };
    assert_eq!((aqa.encode(), Aqa::decode(word(&lines, "aqa"))), (Some(word(&lines, "aqa")), aqa));
    let cmb = Cmb::decode(word(&lines, "cmbloc"), word(&lines, "cmbsz")).expect("good").expect("enabled");
    assert_eq!((cmb.bar, cmb.offset_bytes, cmb.len_bytes), (4, 0x12 << 20, 64 << 20));
    assert!(cmb.uses.submission_queues && cmb.uses.read_data && !cmb.uses.write_data && !cmb.uses.lists);
    assert_eq!(cmbmsc(Some(0x1234_5678_9FFF)), long("cmbmsc"));
    let crto = Crto::decode(word(&lines, "crto"));
    assert_eq!((crto.with_media, crto.independent_of_media), (Duration::from_secs(60), Duration::from_secs(5)));
    assert_eq!(cap.ready_limit(Some(crto)), Duration::from_secs(60));
    let pmrcap = Pmrcap::decode(word(&lines, "pmrcap"));
    let want =
        Pmrcap { read_data: true, write_data: false, bar: 3, timeout: Duration::from_secs(120), memory_space: true };
    assert_eq!(pmrcap, want);
}

#[test]
fn a_completion_as_spdk_lays_it_out() {
    let raw: [u8; 16] = lines()["completion"][..].try_into().expect("sixteen bytes");
    let entry = Completion::new(raw);
    assert_eq!((entry.dw0(), entry.sq_head(), entry.sq_id(), entry.cid()), (0x1122_3344, 0x5566, 3, 0x0C41));
    let status = entry.status();
    assert_eq!((entry.phase(), status.sct(), status.sc(), status.crd()), (true, sct::MEDIA, 0x81, 2));
    assert!(status.dnr() && !status.more());
    let fields = CompletionFields { dw0: 0x1122_3344, sq_head: 0x5566, sq_id: 3, cid: 0x0C41, phase: true, status };
    assert_eq!(Completion::build(fields), entry);
}

#[test]
fn every_golden_line_is_compared() {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden.rs")).expect("this file");
    for name in lines().keys() {
        assert!(source.contains(&format!("\"{name}\"")), "{name} is compared by no test");
    }
}
