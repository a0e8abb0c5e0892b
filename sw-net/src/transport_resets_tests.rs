//! A quicker proof than time that an old controller is done: another one reset it. Writes go on then, and not before.

use std::{
    io::{ErrorKind as IoErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Condvar, Mutex, atomic::AtomicBool},
};

use sw_nvme::{paths::Spread, resets::Verdict};

use super::{paths::*, *};
use crate::target::CrossReset;

/// Waits, a little at a time, until something is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = now();
    while !is_so() {
        assert!(now().since(start) < SOON, "{what}");
        lost::nap(5);
    }
}

/// A network before a port that may swallow everything from some moment on, the ends of connections included: neither end hears of the other.
struct Network {
    at: SocketAddr,
    is_down: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Network {
    fn before(port: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (at, is_down, is_over) = (listener.local_addr().unwrap(), Arc::default(), Arc::default());
        let flags: [Arc<AtomicBool>; 2] = [Arc::clone(&is_down), Arc::clone(&is_over)];
        let thread = std::thread::Builder::new().spawn(move || listen(&listener, port, &flags)).unwrap();
        Self { at, is_down, is_over, threads: vec![thread] }
    }

    fn goes_down(&self) {
        self.is_down.store(true, Ordering::Release);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Takes connections, and carries bytes both ways.
fn listen(listener: &TcpListener, port: SocketAddr, [is_down, is_over]: &[Arc<AtomicBool>; 2]) {
    let mut threads = Vec::new();
    let mut kept = Vec::new();
    while !is_over.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((host, _)) if is_down.load(Ordering::Acquire) => kept.push(host),
            Ok((host, _)) => {
                let target = TcpStream::connect(port).unwrap();
                for (from, to) in [(&host, &target), (&target, &host)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let flags = [is_down.clone(), is_over.clone()];
                    threads.push(std::thread::Builder::new().spawn(move || carry(from, to, &flags)).unwrap());
                }
            }
            Err(_) => lost::nap(5),
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn carry(mut from: TcpStream, mut to: TcpStream, [is_down, is_over]: &[Arc<AtomicBool>; 2]) {
    from.set_nonblocking(false).unwrap();
    from.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let mut bytes = vec![0; 1 << 16];
    while !is_over.load(Ordering::Acquire) {
        let came = match from.read(&mut bytes) {
            Err(error) if matches!(error.kind(), IoErrorKind::WouldBlock | IoErrorKind::TimedOut) => continue,
            came => came.unwrap_or(0),
        };
        if is_down.load(Ordering::Acquire) {
            lost::nap(5);
        } else if came == 0 || to.write_all(&bytes[..came]).is_err() {
            let _ = to.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

/// Two ports of a target that resets controllers so, the first one behind a network.
fn two(how: CrossReset, keep_alive: Duration, faults: Option<Arc<dyn crate::target::Faults>>) -> (Two, Network) {
    let log = Arc::new(Log::default());
    let config = TargetConfig { more: vec![own().listen], cross_reset: how, faults, ..own() };
    let network = std::cell::RefCell::new(None);
    let reached_by = |port: usize, at: SocketAddr| match port {
        0 => network.borrow_mut().insert(Network::before(at)).at,
        _ => at,
    };
    let two = Two::by(vec![config], log, (Spread::First, Duration::from_secs(60)), (keep_alive, &reached_by));
    (two, network.into_inner().unwrap())
}

/// A write whose outcome is unknown, by the first path, whose network is gone from then on.
fn doubt(two: &mut Two, network: &Network, object: &Object) {
    two.settle(object);
    network.goes_down();
    let fault = two.once(object, IoKind::Write, 0).unwrap_err();
    assert_eq!((fault.retry, fault.code), (Retry::Never, 0), "its outcome is unknown");
}

#[test]
fn a_write_goes_by_the_other_path_once_it_has_reset_the_controller_of_one_in_doubt() {
    // A fence of a minute.
    let (mut two, network) = two(CrossReset::Offered, Duration::from_secs(30), None);
    let object = two.object();
    let start = now();
    doubt(&mut two, &network, &object);
    assert_eq!(two.again(&object, IoKind::Write, 1), Ok(4096));
    assert!(now().since(start) < SOON, "{:?}", now().since(start));
    assert_eq!((two.controllers[0].family().proofs(), two.target().counters().cross_resets), (1, 1));
}

#[test]
fn the_next_association_of_the_only_path_asks_for_the_last_one() {
    let is_deaf = Arc::new(AtomicBool::new(true));
    let deaf = is_deaf.clone();
    let faults = move |seen: &Seen| {
        let is_write = seen.qid > 0 && seen.opcode == opcode::WRITE;
        (is_write && deaf.load(Ordering::Acquire)).then_some(Wrong::NeverAnswer)
    };
    let config = TargetConfig { cross_reset: CrossReset::Offered, faults: Some(Arc::new(faults)), ..own() };
    let rig = Rig::new(config, ControllerConfig { keep_alive: Duration::from_secs(30), ..ControllerConfig::default() });
    let config = TcpConfig { command_timeout: Duration::from_millis(500), ..TcpConfig::default() };
    let (object, mut transport, memory) = (rig.object(), rig.transport(config), span(BLOCK, 7));
    let mut write = |number| {
        transport.submit(&io(&object, IoKind::Write, 0, &memory, number));
        ends(&mut transport, 1, SOON).remove(0).result
    };
    assert_eq!(write(1).unwrap_err().retry, Retry::Never);
    is_deaf.store(false, Ordering::Release);
    assert_eq!(write(2), Ok(4096));
    // The target had noticed that the first one is over, or was told so: done at once in either case.
    assert_eq!((rig.controller.family().proofs(), rig.controller.facts().association), (1, 2));
}

#[test]
fn a_reset_that_fails_leaves_writes_behind_the_fence() {
    // Longer than it takes to be in doubt: a controller that the target gave up by then is over, whatever it does with resets.
    let keep_alive = Duration::from_secs(2);
    let (mut two, network) = two(CrossReset::Fails, keep_alive, None);
    let object = two.object();
    doubt(&mut two, &network, &object);
    let doubted = now();
    assert_eq!(two.again(&object, IoKind::Write, 1), Ok(4096));
    let held = now().since(doubted);
    assert!(held >= 2 * keep_alive - Duration::from_millis(100), "sent after {held:?}");
    assert_eq!((two.controllers[0].family().proofs(), two.target().counters().cross_resets), (0, 0));
}

/// Holds up whoever carries a write of block 0 out, until it is let go on.
#[derive(Default)]
struct Held {
    may_go_on: Mutex<bool>,
    changed: Condvar,
    is_off: AtomicBool,
}

impl Held {
    fn let_go(&self) {
        *self.may_go_on.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

#[test]
fn a_write_that_is_carried_out_late_comes_before_the_next_one() {
    let held = Arc::new(Held::default());
    let holds = held.clone();
    let faults = move |seen: &Seen| {
        let is_its = seen.qid > 0 && seen.opcode == opcode::WRITE && seen.slba == 0;
        if is_its && !holds.is_off.swap(true, Ordering::AcqRel) {
            drop(holds.changed.wait_timeout_while(holds.may_go_on.lock().unwrap(), SOON, |go_on| !*go_on).unwrap());
        }
        None
    };
    let (mut two, network) = two(CrossReset::Offered, Duration::from_secs(30), Some(Arc::new(faults)));
    let object = two.object();
    two.settle(&object);
    let memory = span(BLOCK, 3);
    two.submit(&object, IoKind::Write, 0, &memory);
    two.transport.ring().unwrap();
    until("the write comes", || held.is_off.load(Ordering::Acquire));
    network.goes_down();
    let fault = ends(&mut two.transport, 1, SOON).remove(0).result.unwrap_err();
    assert_eq!((fault.retry, fault.code), (Retry::Never, 0), "its outcome is unknown");
    let memory = span(BLOCK, 9);
    let write = two.submit(&object, IoKind::Write, 0, &memory);
    let mut none = Vec::with_capacity(4);
    for _ in 0..10 {
        two.transport.poll(Wait::For { timeout: Duration::from_millis(100), min: 1 }, &mut none).unwrap();
    }
    // It was asked for and accepted, and is not over.
    assert!(none.is_empty(), "{none:?}");
    assert_eq!((two.target().counters().cross_resets, two.controllers[0].family().proofs()), (1, 0));
    assert_eq!(two.target().counters().writes, 0);
    held.let_go();
    let done = ends(&mut two.transport, 1, SOON).remove(0);
    assert_eq!((done.token, done.result), (Token::from_raw(write), Ok(4096)));
    assert_eq!((two.controllers[0].family().proofs(), two.target().counters().writes), (1, 2));
    // The later one is what is there.
    let memory = span(BLOCK, 0);
    two.submit(&object, IoKind::Read, 0, &memory);
    assert_eq!(ends(&mut two.transport, 1, SOON).remove(0).result, Ok(4096));
    let mut bytes = [0; 4096];
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [9; 4096]);
}

#[test]
fn another_subsystem_of_the_same_name_is_not_asked() {
    let log = Arc::new(Log::default());
    let faults = Some(Arc::new(log.clone()) as Arc<dyn crate::target::Faults>);
    let one = TargetConfig { cross_reset: CrossReset::Offered, faults, ..own() };
    let other = TargetConfig { serial: "OTHER".to_owned(), subsystem: one.subsystem.clone(), ..one.clone() };
    let patience = (Spread::First, Duration::from_secs(60));
    let mut two = Two::by(vec![one, other], log, patience, (Duration::from_secs(30), &|_, at| at));
    let object = two.object();
    two.settle(&object);
    two.target().set_port(0, crate::target::PortState::Shut);
    let controllers = two.controllers.clone();
    controllers[0].doubt(&controllers[0].facts());
    until("the association ends", || !controllers[0].is_up(&controllers[0].facts()));
    lost::nap(1500);
    assert_eq!((controllers[0].family().proofs(), two.targets[1].counters().cross_resets), (0, 0));
    // There is one to be asked about, of a controller that is asked by whoever may.
    two.target().set_port(0, crate::target::PortState::Open);
    until("the next association asks", || controllers[0].family().proofs() == 1);
}

#[test]
fn what_was_asked_through_an_association_that_is_lost_may_be_asked_again_by_another_one() {
    let (mut two, network) = two(CrossReset::Fails, Duration::from_secs(30), None);
    let object = two.object();
    doubt(&mut two, &network, &object);
    let family = two.controllers[0].family().clone();
    let errands = |member| crate::errands::of(member, &two.controllers[1].facts(), &identity()).unwrap();
    until("it fails", || family.has_claim(&errands(100)));
    let errand = family.claim(&errands(100)).unwrap();
    assert!(!family.has_claim(&errands(200)), "one at a time");
    family.settle(&errand, Verdict::Failed);
    assert!(family.has_claim(&errands(200)) && !family.has_claim(&errands(100)));
}
