#![expect(clippy::cast_possible_truncation, reason = "lengths of tests are small")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::Instant,
};

use sw_nvme::{
    fabrics::{FabricsFacts, PropertySize},
    status::Status,
    tcp::pdu::Digests,
    wire::{Command, DataPointer, IoFlags, admin::Identify, command, identify, regs},
};

use super::*;

mod client;
mod commands;
mod connecting;
mod faulty;
mod gate;
mod hostile;
mod life;
mod recorded;
mod resets;

use client::{Client, Done, Fail, Host, Move, SUCCESS, at};

const NONE: Digests = Digests { header: false, data: false };
const BOTH: Digests = Digests { header: true, data: true };
/// How long a test waits for something that happens in another thread.
const PATIENCE: Duration = Duration::from_secs(10);

fn started(change: impl FnOnce(&mut TargetConfig)) -> (Target, TargetConfig) {
    let mut config = TargetConfig::default();
    change(&mut config);
    (Target::start(config.clone()).unwrap(), config)
}

/// A target with an enabled controller and one I/O queue.
fn joined(change: impl FnOnce(&mut TargetConfig), digests: Digests) -> (Target, Host, Client, Client) {
    let (target, config) = started(change);
    let host = Host::new(&config.subsystem, digests);
    let (admin, controller) = host.admin(target.address());
    let io = host.io(target.address(), controller, 1);
    (target, host, admin, io)
}

fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|at| ((at * 31 + at / 4096 * 7 + seed) % 251) as u8).collect()
}

#[expect(clippy::disallowed_methods, reason = "a test owns its clock")]
fn clock() -> Instant {
    Instant::now()
}

/// Waits until `holds`.
#[expect(clippy::disallowed_methods, reason = "a test that waits for another thread")]
fn until(what: &str, holds: impl Fn() -> bool) {
    let begin = clock();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what} does not come");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What the controller says of a command.
fn told(done: &Done) -> Status {
    match done.outcome {
        sw_nvme::tcp::host::Outcome::Told(status) => status,
        other => panic!("{other:?} is no status"),
    }
}

/// `command` with other bytes from `at` on.
fn changed(command: &Command, at: usize, bytes: &[u8]) -> Command {
    let mut raw = *command.bytes();
    raw[at..at + bytes.len()].copy_from_slice(bytes);
    Command::new(raw)
}

#[test]
fn what_is_written_in_capsules_and_by_wishes_is_read_back() {
    for digests in [NONE, BOTH, Digests { header: true, data: false }, Digests { header: false, data: true }] {
        let (target, config) = started(|config| config.r2t_bytes_max = 300 << 10);
        let host = Host::new(&config.subsystem, digests);
        let (_admin, controller) = host.admin(target.address());
        let mut io = host.io(target.address(), controller, 1);
        let large = pattern(1 << 20, 1);
        assert_eq!(io.write(16, 256, &large).unwrap().outcome, SUCCESS);
        let small = pattern(4096, 2);
        assert_eq!(io.write(20, 1, &small).unwrap().outcome, SUCCESS);
        let Done { outcome, data, .. } = io.read(15, 256, 4096).unwrap();
        assert_eq!(outcome, SUCCESS);
        assert!(data[..4096].iter().all(|byte| *byte == 0));
        assert!(data[4096..5 * 4096] == large[..4 * 4096] && data[5 * 4096..6 * 4096] == small[..]);
        assert!(data[6 * 4096..] == large[5 * 4096..255 * 4096]);
        let counters = target.counters();
        assert_eq!((counters.reads, counters.writes), (1, 2));
        assert_eq!((counters.read_bytes, counters.written_bytes), (1 << 20, (1 << 20) + 4096));
        assert_eq!((counters.connections, counters.connections_open, counters.controllers), (2, 2, 1));
        target.stop();
    }
}

#[test]
fn the_product_reads_the_identify_pages_of_the_target() {
    let (target, config) = started(|config| {
        config.namespaces = vec![Backing::Memory(1 << 20), Backing::Memory(3 << 20)];
        config.block_bytes = 512;
    });
    let host = Host::new(&config.subsystem, BOTH);
    let (mut admin, id) = host.admin(target.address());
    let cap = regs::Cap::decode(admin.property(regs::CAP, PropertySize::Eight)).unwrap();
    assert_eq!((cap.queue_entries_max, cap.contiguous_queues_required), (128, true));
    assert_eq!(admin.property(regs::VS, PropertySize::Four), 0x1_0400);
    let page = identify::IdentifyController::decode(&admin.identify(Identify::Controller)).unwrap();
    assert_eq!((page.controller_id, page.mdts, page.namespaces, page.commands_max), (id, 8, 2, 128));
    assert_eq!((page.subsystem_nqn.as_str(), page.serial.as_str()), (config.subsystem.as_str(), "SWTARGET0001"));
    assert_eq!(page.keep_alive_unit, Some(Duration::from_millis(100)));
    assert_eq!(page.kind, identify::ControllerKind::Io);
    let capsule = FabricsFacts::decode(&admin.identify(Identify::Controller)).unwrap();
    assert_eq!(
        capsule,
        FabricsFacts { io_data_bytes: 8192, data_offset_16: 0, takes_offsets: true, quiesce: Duration::ZERO }
    );
    assert!(
        page.host_id_128() && page.nvm.write_zeroes() && page.nvm.dataset_management() && !page.volatile_write_cache
    );
    let list = identify::namespace_list("list", &admin.identify(Identify::ActiveNamespaces { after: 0 }), 0);
    assert_eq!(list, Ok(vec![1, 2]));
    let two = identify::IdentifyNamespace::decode(&admin.identify(Identify::Namespace { nsid: 2 })).unwrap().unwrap();
    assert_eq!((two.size_blocks, two.format.block_bytes, two.shared), (6144, 512, true));
    let names =
        identify::NamespaceDescriptors::decode(&admin.identify(Identify::NamespaceDescriptors { nsid: 2 })).unwrap();
    assert_eq!((names.nguid, names.csi), (Some(two.nguid), Some(0)));
}

#[test]
fn alignments_small_units_and_flow_control_change_the_wire_and_not_the_bytes() {
    let change = |config: &mut TargetConfig| {
        (config.alignment, config.c2h_bytes_max, config.h2c_bytes_max, config.r2t_bytes_max) = (31, 512, 4096, 10000);
        (config.capsule_data_bytes, config.mdts) = (0, 4);
    };
    let (target, config) = started(change);
    let host = Host { alignment: 7, capsule_data_bytes: 0, ..Host::new(&config.subsystem, BOTH) };
    let (_admin, controller) = host.admin(target.address());
    let mut io = Client::open(target.address(), &host).unwrap();
    assert_eq!((io.response.alignment, io.response.h2c_bytes_max), (31, 4096));
    // CATTR 0: SQHD counts, and every command has an answer of its own.
    let connect = changed(&Command::connect(host.request(1)), 46, &[0]);
    assert_eq!(io.run(&connect, Move::Out(host.data(controller))).unwrap().outcome, SUCCESS);
    io.set_capsule_data_bytes(0);
    let bytes = pattern(65536, 3);
    assert_eq!(io.write(0, 16, &bytes).unwrap().outcome, SUCCESS);
    let done = io.read(0, 16, 4096).unwrap();
    assert!(done.outcome == SUCCESS && done.data == bytes);
}

#[test]
fn many_commands_at_a_time_end_each_with_its_own_bytes() {
    let (_target, _, _admin, mut io) = joined(|_| {}, BOTH);
    let write = |slba| Command::write(at(slba, 8), DataPointer::None, IoFlags::NONE);
    let read = |slba| Command::read(at(slba, 8), DataPointer::None, IoFlags::NONE);
    // More writes by R2T than there are transfers.
    for index in 0..24 {
        io.begin(&write(index * 8), Move::Out(pattern(32768, index as usize))).unwrap();
    }
    for _ in 0..24 {
        assert_eq!(io.end().unwrap().outcome, SUCCESS);
    }
    for index in 0..24 {
        io.begin(&read(index * 8), Move::In(32768)).unwrap();
    }
    for _ in 0..24 {
        let done = io.end().unwrap();
        assert!(done.outcome == SUCCESS && done.data == pattern(32768, done.user as usize - 25), "{}", done.user);
    }
}

#[test]
fn a_file_is_read_written_and_flushed_and_a_read_only_one_is_not_written() {
    let path = std::env::temp_dir().join(format!("sw-net-target-{}", std::process::id()));
    std::fs::write(&path, pattern(65536 + 100, 5)).unwrap();
    let backings = [Access::ReadWrite, Access::ReadOnly].map(|access| Backing::File(path.clone(), access));
    let (_target, _, mut admin, mut io) = joined(|config| config.namespaces = backings.to_vec(), NONE);
    assert!(identify::IdentifyController::decode(&admin.identify(Identify::Controller)).unwrap().volatile_write_cache);
    let two = identify::IdentifyNamespace::decode(&admin.identify(Identify::Namespace { nsid: 2 })).unwrap().unwrap();
    assert_eq!((two.size_blocks, two.write_protected), (16, true));
    let done = io.read(0, 16, 4096).unwrap();
    assert!(done.outcome == SUCCESS && done.data == pattern(65536, 5));
    let new = pattern(8192, 6);
    let forced = Command::write(at(4, 2), DataPointer::None, IoFlags::FUA);
    assert_eq!(io.run(&forced, Move::Out(new.clone())).unwrap().outcome, SUCCESS);
    assert_eq!(io.run(&Command::flush(1), Move::None).unwrap().outcome, SUCCESS);
    assert_eq!(io.run(&Command::write_zeroes(at(8, 2), IoFlags::NONE), Move::None).unwrap().outcome, SUCCESS);
    let there = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(there[4 * 4096..6 * 4096] == new && there[8 * 4096..10 * 4096].iter().all(|byte| *byte == 0));
    assert!(there[..4 * 4096] == pattern(65536, 5)[..4 * 4096] && there.len() == 65536 + 100);
    let other = |command: &Command| changed(command, 4, &2u32.to_le_bytes());
    let refused = io.run(&other(&forced), Move::Out(new)).unwrap();
    assert_eq!(told(&refused), Status::new(0, 0x20).with_dnr());
    let refused = io.run(&other(&Command::write_zeroes(at(0, 1), IoFlags::NONE)), Move::None).unwrap();
    assert_eq!(told(&refused), Status::new(0, 0x20).with_dnr());
    // The first write was one by R2T or in a capsule; both are refused before any data moves.
    let refused =
        io.run(&other(&Command::write(at(0, 8), DataPointer::None, IoFlags::NONE)), Move::Out(vec![0; 32768]));
    assert_eq!(told(&refused.unwrap()), Status::new(0, 0x20).with_dnr());
}

#[test]
fn a_configuration_outside_its_ranges_and_a_file_that_is_not_there_are_refused() {
    type Change = fn(&mut TargetConfig);
    let wrong: [Change; 13] = [
        |config| config.subsystem = Nqn::discovery(),
        |config| config.namespaces.clear(),
        |config| config.serial = "two words".to_owned(),
        |config| config.mdts = 0,
        |config| config.mdts = 9,
        |config| config.capsule_data_bytes = 8,
        |config| config.h2c_bytes_max = 2048,
        |config| config.queues_max = 0,
        |config| config.queue_entries = 31,
        |config| config.block_bytes = 1000,
        |config| config.alignment = 32,
        |config| config.connections_max = 0,
        |config| config.connect_timeout = Duration::ZERO,
    ];
    for change in wrong {
        let mut config = TargetConfig::default();
        change(&mut config);
        assert_eq!(Target::start(config).err().unwrap().kind(), ErrorKind::ApiMisuse);
    }
    let with = |backing| Target::start(TargetConfig { namespaces: vec![backing], ..TargetConfig::default() }).err();
    let gone = Backing::File("/nowhere/at/all".into(), Access::ReadOnly);
    assert_eq!(with(gone).unwrap().kind(), ErrorKind::NotFound);
    assert_eq!(with(Backing::Memory(4095)).unwrap().kind(), ErrorKind::ApiMisuse);
    assert_eq!(with(Backing::Memory(u64::MAX)).unwrap().kind(), ErrorKind::TooLarge);
    let (target, _) = started(|_| {});
    let taken = TargetConfig { listen: target.address(), ..TargetConfig::default() };
    assert_eq!(Target::start(taken).err().unwrap().kind(), ErrorKind::InUse);
}
