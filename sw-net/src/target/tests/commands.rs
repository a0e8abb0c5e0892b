//! Admin and I/O commands: what they answer, and what they refuse.

use sw_nvme::wire::{
    command::{DatasetAttribute, dsm_range},
    feature::{Feature, QueueCounts, Select, id},
    log::{AsyncEvent, Firmware, LogPage, Retain, Smart},
};

use super::*;

const FIELD: Status = Status::INVALID_FIELD.with_dnr();
const LENGTH: Status = Status::new(0, 0x0F).with_dnr();

fn get(admin: &mut Client, id: u8, data: Move) -> Done {
    admin.run(&Command::get_features(id, Select::Current, DataPointer::None), data).unwrap()
}

#[test]
fn features_are_set_and_told() {
    let (_target, _, mut admin, _io) = joined(|config| config.queues_max = 5, BOTH);
    let set = |feature: &Feature| Command::set_features(feature, DataPointer::None);
    let wanted = QueueCounts { submission: 32, completion: 32 }.encode().unwrap();
    let done = admin.run(&set(&Feature::NumberOfQueues { dword11: wanted }), Move::None).unwrap();
    assert_eq!(QueueCounts::decode(done.value as u32), QueueCounts { submission: 5, completion: 5 });
    assert_eq!(get(&mut admin, id::NUMBER_OF_QUEUES, Move::None).value, 4 << 16 | 4);
    let refused = admin.run(&set(&Feature::NumberOfQueues { dword11: 0xFFFF }), Move::None).unwrap();
    assert_eq!(told(&refused), FIELD);
    let events = Feature::AsyncEvents { bits: 0x1F };
    assert_eq!(admin.run(&set(&events), Move::None).unwrap().outcome, SUCCESS);
    assert_eq!(get(&mut admin, id::ASYNC_EVENTS, Move::None).value, 0x1F);
    // In a capsule, and by R2T.
    for (capsule, on) in [(8192, 1), (0, 0)] {
        admin.set_capsule_data_bytes(capsule);
        let behavior = set(&Feature::HostBehavior { advanced_retry: sw_nvme::wire::feature::Switch::Off });
        let mut data = vec![0; 512];
        data[0] = on;
        assert_eq!(admin.run(&behavior, Move::Out(data.clone())).unwrap().outcome, SUCCESS);
        assert_eq!(get(&mut admin, id::HOST_BEHAVIOR, Move::In(512)).data, data);
    }
    let keep_alive = Feature::KeepAliveTimer { timeout: Duration::from_millis(60_050) };
    assert_eq!(admin.run(&set(&keep_alive), Move::None).unwrap().outcome, SUCCESS);
    assert_eq!(get(&mut admin, id::KEEP_ALIVE_TIMER, Move::None).value, 60_100, "rounded up");
    let host_id = changed(&Command::get_features(id::HOST_IDENTIFIER, Select::Current, DataPointer::None), 44, &[1]);
    assert_eq!(admin.run(&host_id, Move::In(16)).unwrap().data, [7; 16]);
    // Not saveable; no such feature; the host's identifier is Connect's; no cache.
    let saved = changed(&set(&events), 43, &[0x80]);
    assert_eq!(told(&admin.run(&saved, Move::None).unwrap()), Status::new(1, 0x0D).with_dnr());
    assert_eq!(told(&get(&mut admin, 0x42, Move::None)), FIELD);
    let identifier = changed(&set(&Feature::AsyncEvents { bits: 1 }), 40, &[id::HOST_IDENTIFIER]);
    assert_eq!(told(&admin.run(&identifier, Move::None).unwrap()), Status::new(0, 0x0C).with_dnr());
    assert_eq!(told(&get(&mut admin, id::VOLATILE_WRITE_CACHE, Move::None)), FIELD);
}

#[test]
fn log_pages_are_zero_or_well_and_events_wait() {
    let (_target, _, mut admin, _io) = joined(|_| {}, NONE);
    let log = |admin: &mut Client, id: u8, offset: u64, bytes: u32| {
        let page = Command::get_log_page(LogPage::Smart(Retain::Clear), offset, bytes, DataPointer::None).unwrap();
        admin.run(&changed(&page, 40, &[id]), Move::In(bytes as usize)).unwrap()
    };
    assert!(log(&mut admin, 1, 0, 64).data.iter().all(|byte| *byte == 0));
    let smart = Smart::decode(&log(&mut admin, 2, 0, 512).data).unwrap();
    assert_eq!((smart.critical_warning, smart.temperature_kelvin, smart.spare_percent), (0, 300, 100));
    let firmware = Firmware::decode(&log(&mut admin, 3, 0, 512).data).unwrap();
    assert_eq!((firmware.active_slot, firmware.revisions[0].as_str()), (1, "1.0"));
    assert_eq!(log(&mut admin, 3, 8, 8).data, b"1.0     ");
    assert_eq!(log(&mut admin, 2, 508, 4096).data, [0; 4096], "past the end");
    assert_eq!(told(&log(&mut admin, 2, 516, 4)), FIELD);
    assert_eq!(told(&log(&mut admin, 0x70, 0, 1024)), Status::INVALID_LOG_PAGE.with_dnr());
    assert_eq!(told(&log(&mut admin, 2, 0, (1 << 20) + 4)), FIELD);
    for _ in 0..4 {
        admin.begin(&Command::async_event_request(), Move::None).unwrap();
    }
    let fifth = admin.begin(&Command::async_event_request(), Move::None).unwrap();
    let done = admin.end().unwrap();
    assert_eq!((done.user, told(&done)), (fifth.0, Status::AER_LIMIT.with_dnr()));
    let abort = admin.run(&Command::abort(0, 1), Move::None).unwrap();
    assert_eq!((abort.outcome, abort.value), (SUCCESS, 1));
    assert_eq!(AsyncEvent::decode(0).log_page, 0);
    let unknown = changed(&Command::keep_alive(), 0, &[0xC0]);
    assert_eq!(told(&admin.run(&unknown, Move::None).unwrap()), Status::INVALID_OPCODE.with_dnr());
}

#[test]
fn the_discovery_service_names_the_subsystem_and_where_it_is() {
    let (target, config) = started(|_| {});
    let host = Host::new(&Nqn::discovery(), BOTH);
    let (mut admin, _) = host.admin(target.address());
    let page = identify::IdentifyController::decode(&admin.identify(Identify::Controller)).unwrap();
    assert_eq!((page.kind, page.namespaces), (identify::ControllerKind::Discovery, 0));
    let log = Command::get_log_page(LogPage::Smart(Retain::Clear), 0, 2048, DataPointer::None).unwrap();
    let data = admin.run(&changed(&log, 40, &[0x70]), Move::In(2048)).unwrap().data;
    assert_eq!((data[0], data[8]), (1, 1));
    let entry = &data[1024..];
    assert_eq!(entry[..4], [3, 1, 2, 6]);
    let text = |at: usize, len: usize| String::from_utf8(entry[at..at + len].to_vec()).unwrap();
    assert_eq!(text(32, 32).trim_end(), target.address().port().to_string());
    assert_eq!(text(512, 256).trim_end(), "127.0.0.1");
    assert_eq!(text(256, 223).trim_end_matches('\0'), config.subsystem.as_str());
    let io =
        Client::open(target.address(), &host).unwrap().run(&Command::connect(host.request(1)), Move::Out(host.data(1)));
    assert_eq!(told(&io.unwrap()), Status::new(1, 0x82).with_dnr());
    assert_eq!(
        told(
            &admin.run(&Command::identify(Identify::Namespace { nsid: 1 }, DataPointer::None), Move::In(4096)).unwrap()
        ),
        Status::INVALID_NAMESPACE.with_dnr()
    );
}

#[test]
fn identify_refuses_what_is_not_there() {
    let (_target, _, mut admin, _io) = joined(|_| {}, NONE);
    let mut ask = |what, bytes| told(&admin.run(&Command::identify(what, DataPointer::None), Move::In(bytes)).unwrap());
    assert_eq!(ask(Identify::Namespace { nsid: 2 }, 4096), Status::INVALID_NAMESPACE.with_dnr());
    assert_eq!(ask(Identify::Namespace { nsid: 0 }, 4096), Status::INVALID_NAMESPACE.with_dnr());
    assert_eq!(ask(Identify::NamespaceDescriptors { nsid: u32::MAX }, 4096), Status::INVALID_NAMESPACE.with_dnr());
    assert_eq!(ask(Identify::ActiveNamespaces { after: u32::MAX }, 4096), Status::INVALID_NAMESPACE.with_dnr());
    assert_eq!(ask(Identify::CommandSets, 4096), FIELD);
    assert_eq!(ask(Identify::Controller, 4092), LENGTH);
}

#[test]
fn ranges_lengths_and_descriptors_of_io_are_checked() {
    let change = |config: &mut TargetConfig| {
        (config.namespaces, config.mdts) = (vec![Backing::Memory(64 * 4096)], 3);
    };
    let (target, _, _admin, mut io) = joined(change, BOTH);
    let range = Status::LBA_OUT_OF_RANGE.with_dnr();
    assert_eq!(told(&io.read(64, 1, 4096).unwrap()), range);
    assert_eq!(told(&io.read(63, 2, 4096).unwrap()), range);
    assert_eq!(told(&io.read(u64::MAX, 2, 4096).unwrap()), range);
    assert_eq!(told(&io.write(60, 5, &[1; 5 * 4096]).unwrap()), range);
    assert_eq!(told(&io.write(u64::MAX - 1, 1, &[1; 4096]).unwrap()), range);
    assert_eq!(told(&io.read(0, 9, 4096).unwrap()), FIELD, "past MDTS");
    assert_eq!(told(&io.write(0, 9, &[1; 9 * 4096]).unwrap()), FIELD);
    let read = Command::read(at(0, 2), DataPointer::None, IoFlags::NONE);
    let write = Command::write(at(0, 2), DataPointer::None, IoFlags::NONE);
    assert_eq!(told(&io.run(&read, Move::In(4096)).unwrap()), LENGTH);
    assert_eq!(told(&io.run(&write, Move::Out(vec![1; 4096])).unwrap()), LENGTH);
    assert_eq!(told(&io.run(&write, Move::Out(vec![1; 16384])).unwrap()), LENGTH);
    assert_eq!(told(&io.run(&changed(&read, 4, &[2]), Move::In(8192)).unwrap()), Status::INVALID_NAMESPACE.with_dnr());
    assert_eq!(told(&io.run(&changed(&read, 1, &[1]), Move::In(8192)).unwrap()), FIELD, "fused");
    let unknown = changed(&Command::flush(1), 0, &[0x7C]);
    assert_eq!(told(&io.run(&unknown, Move::None).unwrap()), Status::INVALID_OPCODE.with_dnr());
    assert_eq!(
        told(&io.run(&changed(&write, 0, &[0x81]), Move::Out(vec![1; 8192])).unwrap()),
        Status::INVALID_OPCODE.with_dnr()
    );
    // Nothing of it was written.
    assert!(io.read(0, 8, 4096).unwrap().data.iter().all(|byte| *byte == 0));
    assert_eq!((target.counters().writes, target.counters().terminations), (0, 0));
}

#[test]
fn zeroes_and_deallocation_make_blocks_zero() {
    let (_target, _, _admin, mut io) = joined(|_| {}, BOTH);
    let bytes = pattern(16 * 4096, 9);
    assert_eq!(io.write(0, 16, &bytes).unwrap().outcome, SUCCESS);
    assert_eq!(io.run(&Command::write_zeroes(at(2, 2), IoFlags::NONE), Move::None).unwrap().outcome, SUCCESS);
    let ranges = [dsm_range(5, 1), dsm_range(8, 3)].concat();
    let dsm = |what| Command::dataset_management(1, 2, what, DataPointer::None).unwrap();
    assert_eq!(io.run(&dsm(DatasetAttribute::IntegralRead), Move::Out(ranges.clone())).unwrap().outcome, SUCCESS);
    assert!(io.read(5, 1, 4096).unwrap().data == bytes[5 * 4096..6 * 4096], "advice");
    assert_eq!(io.run(&dsm(DatasetAttribute::Deallocate), Move::Out(ranges)).unwrap().outcome, SUCCESS);
    let data = io.read(0, 16, 4096).unwrap().data;
    for block in 0..16 {
        let (is, was) = (&data[block * 4096..][..4096], &bytes[block * 4096..][..4096]);
        let gone = [2, 3, 5, 8, 9, 10].contains(&block);
        assert!(if gone { is.iter().all(|byte| *byte == 0) } else { is == was }, "block {block}");
    }
    // As Linux sends it: room for 256 ranges, of which one counts; in the capsule, and by R2T.
    let one = Command::dataset_management(1, 1, DatasetAttribute::Deallocate, DataPointer::None).unwrap();
    for (slba, capsule) in [(12, 8192), (13, 0)] {
        let page = [dsm_range(slba, 1).to_vec(), [0xFF; 4080].to_vec()].concat();
        io.set_capsule_data_bytes(capsule);
        assert_eq!(io.run(&one, Move::Out(page)).unwrap().outcome, SUCCESS);
        assert!(io.read(slba, 1, 4096).unwrap().data.iter().all(|byte| *byte == 0));
    }
    assert_eq!(told(&io.run(&one, Move::Out(vec![0; 4112])).unwrap()), LENGTH);
    assert_eq!(told(&io.run(&dsm(DatasetAttribute::Deallocate), Move::Out(vec![0; 16])).unwrap()), LENGTH);
    let wrong = [dsm_range(0, 1), dsm_range(u64::MAX, 2)].concat();
    assert_eq!(
        told(&io.run(&dsm(DatasetAttribute::Deallocate), Move::Out(wrong)).unwrap()),
        Status::LBA_OUT_OF_RANGE.with_dnr()
    );
    assert!(io.read(0, 1, 4096).unwrap().data == bytes[..4096], "all ranges are checked first");
    assert_eq!(
        told(&io.run(&Command::write_zeroes(at(16383, 2), IoFlags::NONE), Move::None).unwrap()),
        Status::LBA_OUT_OF_RANGE.with_dnr()
    );
}
