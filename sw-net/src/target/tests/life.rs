//! Beginnings and ends: keep-alive, limits, stop, and what is left behind.

use super::*;

#[test]
fn a_host_that_is_silent_past_its_keep_alive_loses_its_controller() {
    let (target, config) = started(|_| {});
    let host = Host { keep_alive_ms: 550, ..Host::new(&config.subsystem, BOTH) };
    let (mut admin, controller) = host.admin(target.address());
    let mut io = host.io(target.address(), controller, 1);
    let begin = clock();
    let mut beat = Duration::ZERO;
    while begin.elapsed() < Duration::from_millis(1300) {
        // The wait for an event that never comes is the pause.
        admin.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert_eq!(admin.end().unwrap_err(), Fail::TimedOut);
        admin.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(admin.run(&Command::keep_alive(), Move::None).unwrap().outcome, SUCCESS);
        beat = begin.elapsed();
    }
    assert_eq!(io.read(0, 1, 4096).unwrap().outcome, SUCCESS);
    // I/O does not count: the timer is that of the admin queue.
    assert_eq!(io.end().unwrap_err(), Fail::Closed);
    assert!(begin.elapsed() - beat >= Duration::from_millis(590), "KATO is a multiple of 100 ms, rounded up");
    assert_eq!(admin.end().unwrap_err(), Fail::Closed);
    until("the end of both", || target.counters().connections_open == 0);
    assert_eq!((target.counters().keep_alive_expired, target.counters().controllers), (1, 0));
}

fn count(of: &str) -> usize {
    std::fs::read_dir(of).unwrap().count()
}

/// Bytes of this process that are in memory and nobody else's.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let mut pages = pages.split(' ').skip(1).map(|pages| pages.parse::<usize>().unwrap());
    (pages.next().unwrap() - pages.next().unwrap()) * 4096
}

/// Memory that may be more after a thousand associations: of allocators that keep some, not of each.
const MORE_BYTES_MAX: usize = 2 << 20;

#[test]
fn a_thousand_associations_leave_no_thread_no_descriptor_and_no_memory() {
    let name = "target::tests::life::a_thousand_associations_leave_no_thread_no_descriptor_and_no_memory";
    if !sw_testkit::alone::in_own_process(name).unwrap() {
        return;
    }
    let (target, config) = started(|_| {});
    let host = Host::new(&config.subsystem, BOTH);
    let round = |count: u64| {
        for _ in 0..count {
            let (admin, controller) = host.admin(target.address());
            let mut io = host.io(target.address(), controller, 1);
            assert_eq!(io.read(3, 2, 4096).unwrap().outcome, SUCCESS);
            drop((admin, io));
            // One that comes to nothing.
            drop(TcpStream::connect(target.address()).unwrap());
            until("a place", || target.counters().connections_open < 64);
        }
        let there = target.counters().connections;
        until("the last ones", || target.counters().connections == there.next_multiple_of(3));
        until("the end of all", || target.counters().connections_open == 0);
    };
    // What is made once.
    round(50);
    let (threads, descriptors) = (2, count("/proc/self/fd"));
    until("the end of all threads", || count("/proc/self/task") <= threads + 1);
    let (threads, before) = (count("/proc/self/task"), resident());
    round(1000);
    let counters = target.counters();
    assert_eq!((counters.connections, counters.reads), (3150, 1050));
    assert_eq!((counters.controllers, counters.panics, counters.connections_refused), (0, 0, 0));
    until("the end of all threads", || count("/proc/self/task") == threads);
    assert_eq!(count("/proc/self/fd"), descriptors);
    let more = resident().saturating_sub(before);
    println!("{threads} threads, {descriptors} descriptors, {before} bytes, {more} more");
    assert!(more < MORE_BYTES_MAX, "{more} bytes more after 1,000 associations");
}

#[test]
fn one_connection_too_many_is_closed_and_counted() {
    let (target, config) = started(|config| config.connections_max = 2);
    let host = Host::new(&config.subsystem, NONE);
    let (_admin, controller) = host.admin(target.address());
    let io = host.io(target.address(), controller, 1);
    assert_eq!(Client::open(target.address(), &host).err(), Some(Fail::Closed));
    assert_eq!((target.counters().connections_refused, target.counters().connections), (1, 2));
    drop(io);
    until("a place", || target.counters().connections_open == 1);
    host.io(target.address(), controller, 1);
}

#[test]
fn a_connection_that_does_not_come_to_connect_is_closed() {
    let (target, config) = started(|config| config.connect_timeout = Duration::from_millis(300));
    let host = Host::new(&config.subsystem, NONE);
    // One that says nothing, one that stops in a unit, one that is initialised and asks for what may not come yet.
    let mut silent = TcpStream::connect(target.address()).unwrap();
    let mut stuck = TcpStream::connect(target.address()).unwrap();
    stuck.write_all(&[0, 0, 128]).unwrap();
    let mut early = Client::open(target.address(), &host).unwrap();
    let get = Command::property_get(regs::CAP, PropertySize::Eight);
    let begin = clock();
    while early.run(&get, Move::None).is_ok() {
        assert!(begin.elapsed() < PATIENCE);
    }
    assert_eq!((silent.read(&mut [0]).unwrap(), stuck.read(&mut [0]).unwrap()), (0, 0));
    until("their end", || target.counters().connections_open == 0);
    assert_eq!((target.counters().terminations, target.counters().keep_alive_expired), (0, 0));
    // One that is connected may be silent for ever without a keep-alive.
    let (mut admin, _) = host.admin(target.address());
    admin.stream.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    assert_eq!(admin.end().unwrap_err(), Fail::TimedOut);
}

#[test]
fn a_stop_ends_everything_soon_whatever_the_connections_wait_for() {
    let faults = |seen: &Seen| (seen.slba == 9).then_some(Fault::Delay(Duration::from_secs(3600)));
    let (target, host, mut admin, mut io) = joined(|config| config.faults = Some(Arc::new(faults)), BOTH);
    let address = target.address();
    // One that says nothing, one that stops in a unit, one with a command that is due in an hour, one that reads nothing.
    let silent = TcpStream::connect(address).unwrap();
    let mut stuck = TcpStream::connect(address).unwrap();
    stuck.write_all(&[0, 0, 128]).unwrap();
    io.begin(&Command::read(at(9, 1), DataPointer::None, IoFlags::NONE), Move::In(4096)).unwrap();
    let mut deaf = host.io(address, 1, 2);
    for _ in 0..24 {
        deaf.begin(&Command::read(at(0, 256), DataPointer::None, IoFlags::NONE), Move::In(1 << 20)).unwrap();
    }
    until("its first command", || target.counters().reads >= 1);
    let begin = clock();
    target.stop();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!((admin.end().unwrap_err(), io.end().unwrap_err()), (Fail::Closed, Fail::Closed));
    assert!(TcpStream::connect(address).is_err());
    drop(silent);
    // The port is free again.
    let again = Target::start(TargetConfig { listen: address, ..TargetConfig::default() }).unwrap();
    assert_eq!(again.address(), address);
}

#[test]
fn dropped_connections_are_made_anew() {
    let (target, host, mut admin, mut io) = joined(|_| {}, NONE);
    target.drop_connections();
    assert_eq!((admin.end().unwrap_err(), io.end().unwrap_err()), (Fail::Closed, Fail::Closed));
    until("the end of both", || target.counters().connections_open == 0);
    let (_admin, controller) = host.admin(target.address());
    assert_eq!(controller, 2);
    assert_eq!(host.io(target.address(), controller, 1).read(0, 1, 4096).unwrap().outcome, SUCCESS);
}
