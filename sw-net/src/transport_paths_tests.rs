//! Several paths to one namespace: which I/Os go by which, and what becomes of them when one is lost.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Mutex, atomic::AtomicBool},
};

use sw_nvme::{
    fabrics,
    paths::Spread,
    wire::{admin, log},
};

use super::*;
use crate::{
    paths::{PathReport, PathState},
    target::{PortAccess, PortState, Tells},
};

/// KATO of these tests: a fence of them takes twice as long.
pub(super) const KEEP_ALIVE: Duration = Duration::from_millis(600);

/// What the I/O queues of a target saw.
#[derive(Default)]
pub(super) struct Log {
    connections: Mutex<BTreeSet<u64>>,
    /// Writes of block 0 are never answered.
    pub(super) is_deaf: AtomicBool,
    /// The page of access is refused.
    is_secretive: AtomicBool,
}

impl crate::target::Faults for Arc<Log> {
    fn command(&self, seen: &Seen) -> Option<Wrong> {
        if seen.qid == 0 || seen.opcode == fabrics::OPCODE {
            let asks =
                (seen.qid, seen.opcode, seen.slba & 0xFF) == (0, admin::opcode::GET_LOG_PAGE, log::id::ANA.into());
            let is_refused = asks && self.is_secretive.load(Ordering::Acquire);
            return is_refused.then_some(Wrong::Status(status::Status::INTERNAL.with_dnr()));
        }
        self.connections.lock().unwrap().insert(seen.connection);
        let is_lost = seen.opcode == opcode::WRITE && seen.slba == 0 && self.is_deaf.load(Ordering::Acquire);
        is_lost.then_some(Wrong::NeverAnswer)
    }
}

impl Log {
    /// Connections that commands of I/O queues came by since.
    fn take(&self) -> BTreeSet<u64> {
        core::mem::take(&mut self.connections.lock().unwrap())
    }
}

/// A target with two ports, or two targets with one each, and an address with two paths.
pub(super) struct Two {
    pub(super) targets: Vec<Target>,
    pub(super) log: Arc<Log>,
    pub(super) controllers: Vec<Arc<Controller>>,
    paths: Arc<Paths>,
    pub(super) transport: TcpTransport,
    attendants: Vec<JoinHandle<()>>,
    numbers: u64,
}

impl Two {
    fn of(configs: Vec<TargetConfig>, log: Arc<Log>, spread: Spread, patience: Duration) -> Self {
        Self::by(configs, log, (spread, patience), (KEEP_ALIVE, &|_, at| at))
    }

    /// With KATO, and the address that a port is reached by.
    pub(super) fn by(
        configs: Vec<TargetConfig>,
        log: Arc<Log>,
        (spread, patience): (Spread, Duration),
        (keep_alive, reached_by): (Duration, &dyn Fn(usize, SocketAddr) -> SocketAddr),
    ) -> Self {
        let subsystem = configs[0].subsystem.clone();
        let targets: Vec<_> = configs.into_iter().map(|config| Target::start(config).unwrap()).collect();
        let host = ControllerConfig { keep_alive, patience: Duration::MAX, ..ControllerConfig::default() };
        let ports = targets.iter().flat_map(|target| target.addresses().to_vec()).enumerate();
        let ports = ports.map(|(port, at)| reached_by(port, at));
        let address =
            |at: SocketAddr| Address { host: at.ip().to_string(), port: at.port(), subsystem: subsystem.clone() };
        let open = |address: &Address| Controller::open(address.clone(), identity(), host).unwrap();
        let legs: Vec<_> = ports.map(address).map(|address| (address.clone(), open(&address))).collect();
        let controllers: Vec<_> = legs.iter().map(|(_, controller)| controller.clone()).collect();
        let legs = legs.into_iter().map(|(address, controller)| (address, Ok(controller))).collect();
        let paths = Paths::new("two".to_owned(), legs, spread, patience);
        let directory = Arc::<Directory>::default();
        directory.add(paths.clone()).unwrap();
        let attend = |controller: &Arc<Controller>| {
            let attended = controller.clone();
            std::thread::Builder::new().spawn(move || attended.attend()).unwrap()
        };
        let attendants = controllers.iter().map(attend).collect();
        let config = TcpConfig { command_timeout: Duration::from_millis(500), ..TcpConfig::default() };
        let transport = TcpTransport::new(directory, config).unwrap();
        Self { targets, log, controllers, paths, transport, attendants, numbers: 0 }
    }

    fn with(spread: Spread, patience: Duration) -> Self {
        let log = Arc::new(Log::default());
        let more = vec![own().listen];
        let faults = Some(Arc::new(log.clone()) as Arc<dyn crate::target::Faults>);
        let config = TargetConfig { more, tells: Tells::Access, faults, ..own() };
        Self::of(vec![config], log, spread, patience)
    }

    fn new(spread: Spread) -> Self {
        Self::with(spread, Duration::from_secs(60))
    }

    pub(super) fn target(&self) -> &Target {
        &self.targets[0]
    }

    pub(super) fn object(&self) -> Object {
        self.object_of(0)
    }

    fn object_of(&self, number: usize) -> Object {
        let facts = self.controllers[0].facts();
        let namespace = &facts.namespaces[number];
        Object {
            id: Object::next_id(),
            name: "1".into(),
            len: namespace.len_bytes(),
            version: namespace.version(),
            faces: vec![face(Wire::Tcp, 0, namespace, self.controllers[0].landing()).unwrap()],
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(()),
        }
    }

    pub(super) fn submit(&mut self, object: &Object, kind: IoKind, block: u64, memory: &DmaSpan) -> u64 {
        self.numbers += 1;
        self.transport.submit(&io(object, kind, block * BLOCK, memory, self.numbers));
        self.numbers
    }

    /// One I/O to its end, which the engine's retries are not there for.
    pub(super) fn once(&mut self, object: &Object, kind: IoKind, block: u64) -> Result<u32, Fault> {
        let memory = span(BLOCK, 3);
        self.submit(object, kind, block, &memory);
        ends(&mut self.transport, 1, SOON).remove(0).result
    }

    /// The same, with those of the engine.
    pub(super) fn again(&mut self, object: &Object, kind: IoKind, block: u64) -> Result<u32, Fault> {
        let mut last = Ok(0);
        for _ in 0..4 {
            last = self.once(object, kind, block);
            if !matches!(last, Err(Fault { retry: Retry::Now, .. })) {
                break;
            }
        }
        last
    }

    /// Until all paths are connected what comes goes by the one that is.
    pub(super) fn settle(&mut self, object: &Object) {
        for _ in 0..20 {
            assert_eq!(self.again(object, IoKind::Read, 1), Ok(4096));
            lost::nap(20);
        }
        self.log.take();
    }

    fn reports(&self) -> Vec<PathReport> {
        self.paths.report(&self.controllers[0].facts().namespaces[0])
    }

    fn states(&self) -> Vec<PathState> {
        self.reports().into_iter().map(|one| one.state).collect()
    }

    fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let start = now();
        while !is_so(self) {
            assert!(now().since(start) < SOON, "{what}: {:?}", self.reports());
            lost::nap(20);
        }
    }
}

impl Drop for Two {
    fn drop(&mut self) {
        self.controllers.iter().for_each(|controller| controller.shut_down());
        self.attendants.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

const OPTIMIZED: PathState = PathState::Told(PortAccess::Optimized);

#[test]
fn ios_go_by_all_paths_that_stand_best_or_by_the_first() {
    for (spread, count) in [(Spread::All, 2), (Spread::First, 1)] {
        let mut two = Two::new(spread);
        let object = two.object();
        two.settle(&object);
        let memory: Vec<_> = (0..8).map(|_| span(BLOCK, 0)).collect();
        for memory in &memory {
            two.submit(&object, IoKind::Read, 1, memory);
        }
        assert!(ends(&mut two.transport, 8, SOON).iter().all(|done| done.result == Ok(4096)));
        assert_eq!(two.log.take().len(), count, "{spread:?}");
        assert_eq!(two.states(), [OPTIMIZED, OPTIMIZED]);
    }
}

#[test]
fn reads_go_on_by_the_other_path_at_once_and_come_back() {
    let mut two = Two::new(Spread::First);
    let object = two.object();
    two.settle(&object);
    assert_eq!(two.once(&object, IoKind::Read, 1), Ok(4096));
    let first = two.log.take();
    two.target().set_port(0, PortState::Shut);
    let start = now();
    for block in 1..20 {
        assert_eq!(two.again(&object, IoKind::Read, block), Ok(4096));
    }
    assert!(now().since(start) < Duration::from_secs(2), "{:?}", now().since(start));
    assert!(two.log.take().is_disjoint(&first));
    // Writes, too: none was in doubt.
    assert_eq!(two.again(&object, IoKind::Write, 1), Ok(4096));
    two.until("the loss is told", |two| matches!(two.states()[0], PathState::Connecting(_)));
    let second = two.log.take();
    two.target().set_port(0, PortState::Open);
    two.until("the path is back", |two| two.states()[0] == OPTIMIZED);
    let is_back = (0..200).any(|_| {
        assert_eq!(two.again(&object, IoKind::Read, 1), Ok(4096));
        lost::nap(20);
        two.log.take().is_disjoint(&second)
    });
    assert!(is_back);
}

#[test]
fn a_write_in_doubt_by_one_path_keeps_writes_back_by_all() {
    let mut two = Two::new(Spread::First);
    let object = two.object();
    two.settle(&object);
    two.log.is_deaf.store(true, Ordering::Release);
    let fault = two.once(&object, IoKind::Write, 0).unwrap_err();
    let (doubted, unknown) = (now(), Retry::Never);
    assert_eq!((fault.retry, fault.code), (unknown, 0), "its outcome is unknown");
    two.log.is_deaf.store(false, Ordering::Release);
    two.target().set_port(0, PortState::Shut);
    // Reads go on meanwhile, by the other one.
    let memory = span(BLOCK, 9);
    let write = two.submit(&object, IoKind::Write, 1, &memory);
    assert_eq!(two.once(&object, IoKind::Read, 2), Ok(4096));
    assert!(now().since(doubted) < KEEP_ALIVE);
    let done = ends(&mut two.transport, 1, SOON).remove(0);
    assert_eq!((done.token, done.result), (Token::from_raw(write), Ok(4096)));
    let held = now().since(doubted);
    assert!(held >= 2 * KEEP_ALIVE - Duration::from_millis(100), "sent after {held:?}");
}

#[test]
fn a_path_that_does_not_reach_the_namespace_is_not_used_and_none_is_waited_for() {
    let mut two = Two::new(Spread::All);
    let object = two.object();
    assert_eq!(two.once(&object, IoKind::Read, 1), Ok(4096));
    two.target().set_access(0, 1, PortAccess::Inaccessible);
    two.target().set_access(1, 1, PortAccess::NonOptimized);
    // Told by a status or by an event, whichever comes first.
    for block in 1..9 {
        let kind = if block % 2 == 0 { IoKind::Read } else { IoKind::Write };
        assert_eq!(two.again(&object, kind, block), Ok(4096));
    }
    two.until("the change is told", |two| {
        two.states() == [PortAccess::Inaccessible, PortAccess::NonOptimized].map(PathState::Told)
    });
    two.log.take();
    let memory: Vec<_> = (0..8).map(|_| span(BLOCK, 0)).collect();
    for memory in &memory {
        two.submit(&object, IoKind::Read, 1, memory);
    }
    assert!(ends(&mut two.transport, 8, SOON).iter().all(|done| done.result == Ok(4096)));
    assert_eq!(two.log.take().len(), 1);
    // None is there: what is asked for waits, and ends when it is called off, or goes on.
    two.target().set_access(1, 1, PortAccess::Change);
    two.until("the change is told", |two| two.states()[1] == PathState::Told(PortAccess::Change));
    let memory = [span(BLOCK, 0), span(BLOCK, 0)];
    let [off, on] = memory.each_ref().map(|memory| two.submit(&object, IoKind::Read, 1, memory));
    let mut none = Vec::with_capacity(4);
    two.transport.poll(Wait::For { timeout: Duration::from_millis(300), min: 1 }, &mut none).unwrap();
    assert!(none.is_empty(), "{none:?}");
    two.transport.cancel(Token::from_raw(off));
    let done = ends(&mut two.transport, 1, SOON).remove(0);
    assert_eq!((done.token, done.result), (Token::from_raw(off), Err(Fault::new(ErrorKind::Cancelled, 0))));
    two.target().set_access(0, 1, PortAccess::Optimized);
    let done = ends(&mut two.transport, 1, SOON).remove(0);
    assert_eq!((done.token, done.result), (Token::from_raw(on), Ok(4096)));
    assert!(two.log.take().len() == 1 && two.transport.in_flight == 0);
}

#[test]
fn no_path_for_ever_or_for_longer_than_patience_ends_what_waits() {
    let mut two = Two::with(Spread::All, Duration::from_millis(500));
    let object = two.object();
    (0..2).for_each(|port| two.target().set_access(port, 1, PortAccess::Inaccessible));
    let start = now();
    let fault = two.again(&object, IoKind::Read, 1).unwrap_err();
    assert_eq!((fault.kind, fault.retry), (ErrorKind::NoDevice, Retry::Never));
    assert!(now().since(start) >= Duration::from_millis(500));
    let why = two.transport.explain(object.faces[0].handle, fault).unwrap().to_string();
    assert!(why.contains(": inaccessible"), "{why}");
    (0..2).for_each(|port| two.target().set_access(port, 1, PortAccess::PersistentLoss));
    let lost = PathState::Told(PortAccess::PersistentLoss);
    two.until("the loss is told", |two| two.states().iter().all(|state| *state == lost));
    let start = now();
    assert_eq!(two.once(&object, IoKind::Read, 1).unwrap_err().kind, ErrorKind::NoDevice);
    assert!(now().since(start) < Duration::from_millis(400), "nobody waits for what never comes");
}

#[test]
fn a_path_with_another_namespace_is_not_taken_for_one() {
    let log = Arc::new(Log::default());
    let faults = Some(Arc::new(log.clone()) as Arc<dyn crate::target::Faults>);
    let one = TargetConfig { faults, ..own() };
    let other = TargetConfig { serial: "OTHER".to_owned(), subsystem: one.subsystem.clone(), ..own() };
    let mut two = Two::of(vec![one, other], log, Spread::All, Duration::from_millis(500));
    let object = two.object();
    for block in 0..8 {
        assert_eq!(two.once(&object, IoKind::Write, block), Ok(4096));
    }
    assert_eq!(two.states(), [OPTIMIZED, PathState::AnotherNamespace]);
    assert_eq!([0, 1].map(|of| two.targets[of].counters().writes), [8, 0]);
    two.target().set_port(0, PortState::Shut);
    assert_eq!(two.again(&object, IoKind::Read, 1).unwrap_err().kind, ErrorKind::NoDevice);
    assert_eq!(two.targets[1].counters().reads, 0);
}

/// A target with two ports and two namespaces that tells how they are reached.
fn two_namespaces(log: &Arc<Log>) -> TargetConfig {
    let more = vec![own().listen];
    let faults = Some(Arc::new(log.clone()) as Arc<dyn crate::target::Faults>);
    let namespaces = vec![Backing::Memory(1 << 20), Backing::Memory(2 << 20)];
    TargetConfig { more, tells: Tells::Access, faults, namespaces, ..own() }
}

#[test]
fn a_page_of_access_that_is_refused_ends_no_association_and_is_asked_for_again() {
    let log = Arc::new(Log::default());
    log.is_secretive.store(true, Ordering::Release);
    let mut two = Two::of(vec![two_namespaces(&log)], log, Spread::First, Duration::from_secs(60));
    let object = two.object();
    // Nothing was ever told: commands find out.
    assert_eq!(two.states(), [PathState::NotTold, PathState::NotTold]);
    assert_eq!(two.again(&object, IoKind::Write, 1), Ok(4096));
    two.log.is_secretive.store(false, Ordering::Release);
    two.until("it is told", |two| two.states() == [OPTIMIZED, OPTIMIZED]);
    // What was told stays.
    two.log.is_secretive.store(true, Ordering::Release);
    two.target().set_access(0, 1, PortAccess::Inaccessible);
    lost::nap(2500);
    assert_eq!(two.states(), [OPTIMIZED, OPTIMIZED]);
    assert_eq!(two.again(&object, IoKind::Read, 1), Ok(4096));
    two.log.is_secretive.store(false, Ordering::Release);
    two.until("it is told", |two| two.states() == [PathState::Told(PortAccess::Inaccessible), OPTIMIZED]);
    assert!(two.controllers.iter().all(|controller| controller.facts().association == 1));
}

#[test]
fn a_namespace_that_is_refused_by_a_path_keeps_no_other_one_from_it() {
    let log = Arc::new(Log::default());
    let mut two = Two::of(vec![two_namespaces(&log)], log, Spread::First, Duration::from_secs(60));
    let [one, other] = [two.object(), two.object_of(1)];
    two.settle(&one);
    two.settle(&other);
    assert_eq!(two.once(&other, IoKind::Read, 1), Ok(4096));
    let first = two.log.take();
    // Found by a command, before it is told.
    two.log.is_secretive.store(true, Ordering::Release);
    two.target().set_access(0, 1, PortAccess::Inaccessible);
    assert_eq!(two.again(&one, IoKind::Read, 1), Ok(4096));
    two.log.take();
    assert_eq!(two.once(&one, IoKind::Read, 1), Ok(4096));
    assert!(two.log.take().is_disjoint(&first), "not asked there again");
    assert_eq!(two.once(&other, IoKind::Read, 1), Ok(4096));
    assert_eq!(two.log.take(), first, "the other namespace is reached as before");
}

#[test]
fn each_io_waits_for_a_path_as_long_as_it_is_without_one_itself() {
    let log = Arc::new(Log::default());
    let patience = Duration::from_millis(600);
    let mut two = Two::of(vec![two_namespaces(&log)], log, Spread::All, patience);
    let [one, other] = [two.object(), two.object_of(1)];
    (0..2).for_each(|port| two.target().set_access(port, 1, PortAccess::Inaccessible));
    two.until("the change is told", |two| {
        two.states().iter().all(|state| *state == PathState::Told(PortAccess::Inaccessible))
    });
    let waiting = [span(BLOCK, 0), span(BLOCK, 0)];
    let memory = span(BLOCK, 0);
    let start = now();
    two.submit(&one, IoKind::Read, 1, &waiting[0]);
    let (mut over, mut late) = (Vec::new(), None);
    // I/Os of another namespace go on meanwhile; one more that waits is half of patience behind.
    while over.len() < 2 {
        assert!(now().since(start) < SOON);
        if late.is_none() && now().since(start) >= patience / 2 {
            late = Some(two.submit(&one, IoKind::Read, 2, &waiting[1]));
        }
        let number = two.submit(&other, IoKind::Read, 1, &memory);
        let mut ended = ends(&mut two.transport, 1, SOON);
        while !ended.iter().any(|done| done.token == Token::from_raw(number)) {
            ended.extend(ends(&mut two.transport, 1, SOON));
        }
        over.extend(ended.into_iter().filter(|done| done.result.is_err()).map(|done| (done, now().since(start))));
    }
    for ((done, after), least) in over.iter().zip([patience, patience * 3 / 2]) {
        assert_eq!(done.result.unwrap_err().kind, ErrorKind::NoDevice);
        assert!(*after >= least && *after < least + patience / 3, "{after:?} instead of {least:?}");
    }
}

#[test]
fn a_namespace_that_a_controller_has_not_any_more_is_asked_for_by_others() {
    let log = Arc::new(Log::default());
    let of_first = Arc::new(AtomicU32::new(u32::MAX));
    let (gone, asked) = (Arc::new(AtomicBool::new(false)), of_first.clone());
    let one = TargetConfig { ..own() };
    let is_gone = gone.clone();
    let faults = move |seen: &Seen| {
        let is_refused = seen.qid > 0 && seen.opcode != fabrics::OPCODE && is_gone.load(Ordering::Acquire);
        is_refused.then(|| {
            asked.fetch_add(1, Ordering::AcqRel);
            Wrong::Status(status::Status::INVALID_NAMESPACE.with_dnr())
        })
    };
    let other = TargetConfig { faults: None, ..one.clone() };
    let one = TargetConfig { faults: Some(Arc::new(faults)), ..one };
    let mut two = Two::of(vec![one, other], log, Spread::First, Duration::from_secs(60));
    let object = two.object();
    two.settle(&object);
    gone.store(true, Ordering::Release);
    of_first.store(0, Ordering::Release);
    // Found by a command: a read goes by the other one, and what comes behind it at once.
    assert_eq!(two.again(&object, IoKind::Read, 1), Ok(4096));
    assert_eq!(two.once(&object, IoKind::Write, 1), Ok(4096));
    assert_eq!(of_first.load(Ordering::Acquire), 1);
    // Told: it is not even asked. What the command found counts no more by then.
    lost::nap(1500);
    let mut facts = crate::Facts::clone(&two.controllers[0].facts());
    facts.absent = Box::new([1]);
    facts.revision += 1000;
    two.controllers[0].publish(facts);
    assert_eq!(two.states(), [PathState::AnotherNamespace, OPTIMIZED]);
    assert_eq!(two.once(&object, IoKind::Read, 1), Ok(4096));
    assert_eq!(of_first.load(Ordering::Acquire), 1);
    // Nobody else has it either: who had it says so.
    two.targets[1].set_port(0, PortState::Shut);
    two.controllers[1].shut_down();
    assert_eq!(two.again(&object, IoKind::Read, 1).unwrap_err().kind, ErrorKind::NoDevice);
    assert!(of_first.load(Ordering::Acquire) >= 2);
}

/// Takes one connection and no more: whoever makes another one waits.
struct Swallows;

impl crate::target::Faults for Swallows {
    fn command(&self, _: &Seen) -> Option<Wrong> {
        None
    }

    fn initialize(&self, connection: u64) -> Option<crate::target::InitializeFault> {
        (connection > 0).then_some(crate::target::InitializeFault::NeverAnswer)
    }
}

#[test]
fn a_port_that_answers_no_connection_keeps_no_lane_waiting() {
    for spread in [Spread::All, Spread::First] {
        let log = Arc::new(Log::default());
        let one = own();
        let other = TargetConfig { faults: None, ..one.clone() };
        let one = TargetConfig { faults: Some(Arc::new(Swallows)), ..one };
        let mut two = Two::of(vec![one, other], log, spread, Duration::from_secs(60));
        let object = two.object();
        let start = now();
        for block in 0..8 {
            assert_eq!(two.once(&object, IoKind::Read, block), Ok(4096));
        }
        assert!(now().since(start) < Duration::from_secs(2), "{:?}", now().since(start));
    }
}

#[test]
fn who_asks_what_a_subsystem_says_is_told_by_the_first_path_that_is_up() {
    let two = Two::new(Spread::All);
    two.target().set_port(0, PortState::Shut);
    two.until("the loss is told", |two| matches!(two.states()[0], PathState::Connecting(_)));
    two.controllers[1].suspect();
    assert_eq!(two.paths.expect_up().unwrap().id, two.controllers[1].facts().id);
    let start = now();
    two.target().set_port(1, PortState::Shut);
    two.controllers[1].suspect();
    two.until("the loss is told", |two| matches!(two.states()[1], PathState::Connecting(_)));
    two.target().set_port(1, PortState::Open);
    assert_eq!(two.paths.expect_up().unwrap().id, two.controllers[1].facts().id);
    assert!(now().since(start) < Duration::from_secs(8), "{:?}", now().since(start));
}
