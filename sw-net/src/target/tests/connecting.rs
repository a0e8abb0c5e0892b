//! Connect, properties, and what may come when.

use sw_nvme::{
    tcp::pdu::{self, Kind, Layout},
    wire::Completion,
};

use super::*;

/// SCT 1: statuses of Connect.
const INCOMPATIBLE: Status = Status::new(1, 0x80).with_dnr();
const PARAMETERS: Status = Status::new(1, 0x82).with_dnr();
const INVALID_HOST: Status = Status::new(1, 0x84).with_dnr();
const SEQUENCE: Status = Status::new(0, 0x0C).with_dnr();
/// IATTR 1: the wrong byte is in the data.
const DATA: u64 = 1 << 16;

/// Connect on a connection of its own: status and the first eight bytes.
fn connect(target: &Target, host: &Host, command: &Command, data: Vec<u8>) -> (Status, u64) {
    let mut client = Client::open(target.address(), host).unwrap();
    let done = client.run(command, Move::Out(data)).unwrap();
    (told(&done), done.value)
}

#[test]
fn an_admin_queue_is_refused_with_the_byte_that_is_wrong() {
    let (target, config) = started(|_| {});
    let host = Host::new(&config.subsystem, BOTH);
    let any = host.data(0xFFFF);
    let command = Command::connect(host.request(0));
    let data = |at: usize, bytes: &[u8]| {
        let mut data = any.clone();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        data
    };
    let refused = |command: &Command, data| connect(&target, &host, command, data);
    assert_eq!(refused(&changed(&command, 40, &[1, 0]), any.clone()), (INCOMPATIBLE, 0));
    assert_eq!(refused(&command, data(0, &[0; 16])), (PARAMETERS, DATA));
    assert_eq!(refused(&command, data(16, &[1, 0])), (PARAMETERS, DATA | 16));
    assert_eq!(refused(&command, data(270, b"x")), (PARAMETERS, DATA | 256));
    assert_eq!(refused(&command, data(256, b"iqn")), (PARAMETERS, DATA | 256));
    assert_eq!(refused(&command, data(512, &[0; 256])), (PARAMETERS, DATA | 512));
    // SQSIZE counts from zero: 31, 129 and 65,536 entries.
    for size_z in [30u16, 128, 0xFFFF] {
        assert_eq!(refused(&changed(&command, 44, &size_z.to_le_bytes()), any.clone()), (PARAMETERS, 44));
    }
    // Too little data, and data that is not in the capsule.
    assert_eq!(refused(&command, any[..1020].to_vec()).0, Status::new(0, 0x0F).with_dnr());
    let mut client = Client::open(target.address(), &host).unwrap();
    client.set_capsule_data_bytes(0);
    assert_eq!(told(&client.run(&command, Move::Out(any.clone())).unwrap()), Status::new(0, 0x11).with_dnr());
    assert_eq!(target.counters().controllers, 0);
    // The same connection may try again.
    client.set_capsule_data_bytes(8192);
    assert_eq!(client.run(&command, Move::Out(any)).unwrap().outcome, SUCCESS);
    until("the end of the others", || target.counters().connections_open == 1);
    assert_eq!(target.counters().controllers, 1);
}

#[test]
fn hosts_are_known_by_name_and_identifier() {
    let guest = Nqn::new("nqn.2026-11.io.straightway:test-host").unwrap();
    let (target, config) = started(|config| config.hosts = vec![guest]);
    let host = Host::new(&config.subsystem, NONE);
    let (_admin, _) = host.admin(target.address());
    let command = Command::connect(host.request(0));
    let stranger = Host { nqn: Nqn::new("nqn.2026-11.io.straightway:stranger").unwrap(), ..host.clone() };
    assert_eq!(connect(&target, &stranger, &command, stranger.data(0xFFFF)), (INVALID_HOST, 0));
    // The same name with another identifier.
    let twin = Host { id: [8; 16], ..host.clone() };
    assert_eq!(connect(&target, &twin, &command, twin.data(0xFFFF)), (INVALID_HOST, 0));
    let (_second, id) = host.admin(target.address());
    assert_eq!(id, 2);
}

#[test]
fn an_identifier_has_one_name_as_long_as_somebody_has_it() {
    let (target, config) = started(|_| {});
    let host = Host::new(&config.subsystem, NONE);
    let (admin, _) = host.admin(target.address());
    let command = Command::connect(host.request(0));
    let other = Nqn::new("nqn.2026-11.io.straightway:clone").unwrap();
    let clone = Host { nqn: other.clone(), ..host.clone() };
    assert_eq!(connect(&target, &clone, &command, clone.data(0xFFFF)), (INVALID_HOST, 0));
    // Somebody else altogether, and the clone once the first has gone.
    let (_third, _) = Host { nqn: other, id: [9; 16], ..host.clone() }.admin(target.address());
    drop(admin);
    until("the end of the first", || target.counters().controllers == 1);
    let clone = Host { nqn: Nqn::new("nqn.2026-11.io.straightway:late").unwrap(), ..host.clone() };
    assert_eq!(connect(&target, &clone, &command, clone.data(0xFFFF)).0, Status::SUCCESS);
}

#[test]
fn an_io_queue_belongs_to_a_controller_of_its_host_and_is_there_once() {
    let (target, config) = started(|config| config.queues_max = 2);
    let host = Host::new(&config.subsystem, BOTH);
    let mut admin = Client::open(target.address(), &host).unwrap();
    let done = admin.run(&Command::connect(host.request(0)), Move::Out(host.data(0xFFFF))).unwrap();
    let id = done.value as u16;
    let io = |qid| Command::connect(host.request(qid));
    assert_eq!(connect(&target, &host, &io(1), host.data(id)), (SEQUENCE, 0), "not enabled");
    admin.enable();
    assert_eq!(connect(&target, &host, &io(1), host.data(id + 1)), (PARAMETERS, DATA | 16));
    assert_eq!(connect(&target, &host, &io(3), host.data(id)), (PARAMETERS, 42));
    let stranger = Host { nqn: Nqn::new("nqn.2026-11.io.straightway:stranger").unwrap(), ..host.clone() };
    assert_eq!(connect(&target, &host, &io(1), stranger.data(id)), (PARAMETERS, DATA | 512));
    let twin = Host { id: [8; 16], ..host.clone() };
    assert_eq!(connect(&target, &host, &io(1), twin.data(id)), (PARAMETERS, DATA));
    let lost = Host { subsystem: Nqn::discovery(), ..host.clone() };
    assert_eq!(connect(&target, &host, &io(1), lost.data(id)), (PARAMETERS, DATA | 256));
    let mut first = host.io(target.address(), id, 1);
    assert_eq!(connect(&target, &host, &io(1), host.data(id)), (Status::INVALID_QUEUE_ID, 0));
    let _second = host.io(target.address(), id, 2);
    // Connect a second time, and a property on an I/O queue.
    first.set_capsule_data_bytes(1024);
    assert_eq!(told(&first.run(&io(1), Move::Out(host.data(id))).unwrap()), SEQUENCE);
    let get = Command::property_get(regs::CSTS, PropertySize::Four);
    assert_eq!(told(&first.run(&get, Move::None).unwrap()), Status::INVALID_OPCODE.with_dnr());
    assert_eq!(first.run(&Command::disconnect(), Move::None).unwrap().outcome, SUCCESS);
    assert_eq!(first.run(&Command::flush(1), Move::None).unwrap_err(), Fail::Closed);
    until("the end of the queue", || target.counters().connections_open == 2);
    let _again = host.io(target.address(), id, 1);
    assert_eq!(told(&admin.run(&Command::disconnect(), Move::None).unwrap()), Status::new(1, 0x85).with_dnr());
}

/// Sends a command as it stands; gives the flags of the data that comes, if some does, and the answer, if one does.
pub fn by_hand(stream: &mut TcpStream, command: &Command, carried: &[u8]) -> (Option<u8>, Option<Completion>) {
    let head = Layout::default().command(command, carried.len() as u32);
    stream.write_all(&[head.as_bytes(), carried].concat()).unwrap();
    let mut unit = [0; 24];
    stream.read_exact(&mut unit).unwrap();
    if unit[0] == Kind::CapsuleResp as u8 {
        return (None, Some(pdu::completion(&unit)));
    }
    let flags = unit[1];
    stream.read_exact(&mut vec![0; pdu::Data::decode(&unit).0.bytes as usize]).unwrap();
    if flags & pdu::flags::SUCCESS != 0 {
        return (Some(flags), None);
    }
    stream.read_exact(&mut unit).unwrap();
    (Some(flags), Some(pdu::completion(&unit)))
}

#[test]
fn success_comes_with_the_data_only_where_the_queue_head_means_nothing() {
    let (target, config) = started(|_| {});
    let host = Host::new(&config.subsystem, NONE);
    let (_admin, id) = host.admin(target.address());
    let sgl = |bytes, kind| DataPointer::Sgl(hostile::descriptor(bytes, kind));
    let mut connect = changed(&Command::connect(host.request(1)), 24, &hostile::descriptor(1024, 1));
    connect = changed(&connect, 1, &[0x40]);
    let read = Command::read(at(0, 1), sgl(4096, 0x5A), IoFlags::NONE).with_cid(9);
    for (attributes, qid, heads) in [(4u8, 1, [0xFFFF, 0]), (0, 2, [1, 2])] {
        let mut stream = hostile::initialized(&target, NONE);
        let connect = changed(&changed(&connect, 46, &[attributes]), 42, &[qid]);
        let answer = by_hand(&mut stream, &connect, &host.data(id)).1.unwrap();
        assert_eq!((answer.status(), answer.sq_head(), answer.dw0()), (Status::SUCCESS, heads[0], u32::from(id)));
        let (flags, answer) = by_hand(&mut stream, &read, &[]);
        if attributes == 4 {
            assert_eq!((flags, answer), (Some(pdu::flags::LAST | pdu::flags::SUCCESS), None));
        } else {
            let answer = answer.unwrap();
            assert_eq!((flags, answer.status()), (Some(pdu::flags::LAST), Status::SUCCESS));
            assert_eq!((answer.sq_head(), answer.sq_id(), answer.cid()), (heads[1], 2, 9));
        }
    }
}

#[test]
fn nothing_comes_before_connect_and_admin_commands_come_once_enabled() {
    let (target, config) = started(|_| {});
    let host = Host::new(&config.subsystem, NONE);
    let mut admin = Client::open(target.address(), &host).unwrap();
    let identify = Command::identify(Identify::Controller, DataPointer::None);
    assert_eq!(told(&admin.run(&identify, Move::In(4096)).unwrap()), SEQUENCE);
    let get = Command::property_get(regs::CAP, PropertySize::Eight);
    assert_eq!(told(&admin.run(&get, Move::None).unwrap()), SEQUENCE);
    let connect = Command::connect(host.request(0));
    assert_eq!(admin.run(&connect, Move::Out(host.data(0xFFFF))).unwrap().outcome, SUCCESS);
    assert_eq!(told(&admin.run(&identify, Move::In(4096)).unwrap()), SEQUENCE);
    // Entries of other sizes than there are: CFS, and not ready.
    assert_eq!(admin.run(&Command::property_set(regs::CC, 1), Move::None).unwrap().outcome, SUCCESS);
    assert_eq!(admin.property(regs::CSTS, PropertySize::Four), 2);
    assert_eq!(admin.run(&Command::property_set(regs::CC, 0), Move::None).unwrap().outcome, SUCCESS);
    admin.enable();
    assert_eq!(admin.run(&identify, Move::In(4096)).unwrap().outcome, SUCCESS);
    for wrong in [
        Command::property_get(regs::CAP, PropertySize::Four),
        Command::property_get(regs::VS, PropertySize::Eight),
        Command::property_get(0x1000, PropertySize::Four),
        Command::property_set(regs::VS, 1),
    ] {
        assert_eq!(told(&admin.run(&wrong, Move::None).unwrap()), Status::INVALID_FIELD.with_dnr());
    }
}

#[test]
fn disabling_ends_the_io_queues_and_a_shutdown_is_said_to_be_done() {
    let (target, host, mut admin, mut io) = joined(|_| {}, BOTH);
    assert_eq!(admin.run(&Command::property_set(regs::CC, 0x0046_4001), Move::None).unwrap().outcome, SUCCESS);
    assert_eq!(admin.property(regs::CSTS, PropertySize::Four), 1 | 2 << 2);
    assert_eq!(admin.run(&Command::property_set(regs::CC, 0x0046_0000), Move::None).unwrap().outcome, SUCCESS);
    assert_eq!(admin.property(regs::CSTS, PropertySize::Four), 0);
    assert_eq!(io.run(&Command::flush(1), Move::None).unwrap_err(), Fail::Closed);
    until("the end of the queue", || target.counters().connections_open == 1);
    admin.enable();
    let mut io = host.io(target.address(), 1, 1);
    assert_eq!(io.run(&Command::flush(1), Move::None).unwrap().outcome, SUCCESS);
    // The controller goes with its admin queue, and takes its I/O queues along.
    drop(admin);
    assert_eq!(io.end().unwrap_err(), Fail::Closed);
    until("the end of the controller", || target.counters().controllers == 0);
}
