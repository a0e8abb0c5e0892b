//! The transport against the target of this crate: the engine's suite, and what a target can do wrong.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    thread::JoinHandle,
};

use sw_engine::{
    Object, ObjectId, Residency, Retry,
    seam::{IoKind, MemorySegment},
};
use sw_mem::{Buffer, ByteLen, DmaSpan};
use sw_nvme::{fabrics::Nqn, psk::Form, status, tcp::pdu::Digests, wire::command::opcode};
use sw_testkit::conformance::{
    End as CaseEnd,
    block_file::{self, Bed, Clock},
};

use super::*;
use crate::{
    controller::{Address, ControllerConfig, HostIdentity},
    directory::face,
    paths::Paths,
    target::{Access, Backing, CrossReset, Fault as Wrong, Seen, Target, TargetConfig, Tls},
    tls::HostTls,
};

const BOTH: Digests = Digests { header: true, data: true };

fn identity() -> HostIdentity {
    HostIdentity { nqn: Nqn::new("nqn.2026-11.io.straightway:host").unwrap(), id: [7; 16], keys: None, tls: None }
}

/// That of a host that has TLS where the target demands it.
fn identity_for(target: &TargetConfig) -> HostIdentity {
    let tls = target.tls.as_ref().map(|Tls { psk, derivation, kernel }| {
        let form = Form { derivation: *derivation, ..Form::default() };
        Arc::new(HostTls::new(psk.clone(), form, *kernel).unwrap())
    });
    HostIdentity { tls, ..identity() }
}

/// A target with a name of its own: what one test is in doubt of must not keep the writes of another one back.
fn own() -> TargetConfig {
    static TARGETS: AtomicU32 = AtomicU32::new(0);
    let number = TARGETS.fetch_add(1, Ordering::Relaxed);
    let subsystem = Nqn::new(&format!("nqn.2026-11.io.straightway:target-{number}")).unwrap();
    // Without a quicker proof than time; tests of that one ask for it.
    TargetConfig { subsystem, cross_reset: CrossReset::Refused, ..TargetConfig::default() }
}

/// A target, the association with it, and the thread that attends it.
struct Rig {
    target: Option<Target>,
    controller: Arc<Controller>,
    directory: Arc<Directory>,
    index: u32,
    attendant: Option<JoinHandle<()>>,
}

impl Rig {
    fn new(target: TargetConfig, host: ControllerConfig) -> Self {
        Self::in_directory(&Arc::default(), target, host)
    }

    fn in_directory(directory: &Arc<Directory>, target: TargetConfig, host: ControllerConfig) -> Self {
        let (subsystem, host_identity) = (target.subsystem.clone(), identity_for(&target));
        let target = Target::start(target).unwrap();
        let at = target.address();
        let address = Address { host: at.ip().to_string(), port: at.port(), subsystem };
        let controller = Controller::open(address, host_identity, host).unwrap();
        let mut rig = Self::of(controller, directory);
        rig.target = Some(target);
        rig
    }

    /// With an association with somebody else's target.
    fn of(controller: Arc<Controller>, directory: &Arc<Directory>) -> Self {
        let index = directory.add(Paths::of(controller.clone())).unwrap();
        let attended = controller.clone();
        let attendant = std::thread::Builder::new().spawn(move || attended.attend()).unwrap();
        Self { target: None, controller, directory: directory.clone(), index, attendant: Some(attendant) }
    }

    fn object(&self) -> Object {
        let facts = self.controller.facts();
        let namespace = &facts.namespaces[0];
        Object {
            id: Object::next_id(),
            name: "1".into(),
            len: namespace.len_bytes(),
            version: namespace.version(),
            faces: vec![face(Wire::Tcp, self.index, namespace, self.controller.landing()).unwrap()],
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(()),
        }
    }

    fn transport(&self, config: TcpConfig) -> TcpTransport {
        TcpTransport::new(self.directory.clone(), config).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.controller.shut_down();
        self.attendant.take().unwrap().join().unwrap();
    }
}

struct Files {
    what: &'static str,
    target: TargetConfig,
    host: ControllerConfig,
    directory: Arc<Directory>,
    rigs: Vec<(ObjectId, PathBuf, Rig)>,
    start: Time,
}

static FILES: AtomicU32 = AtomicU32::new(0);

impl Files {
    fn new(what: &'static str, target: TargetConfig, host: ControllerConfig) -> Self {
        Self { what, target, host, directory: Arc::default(), rigs: Vec::new(), start: now() }
    }

    fn add(&mut self, content: &[u8], faults: Option<Arc<dyn crate::target::Faults>>) -> block_file::Target {
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sw-net-{}-{number}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        let namespaces = vec![Backing::File(path.clone(), Access::ReadWrite)];
        let target = TargetConfig { namespaces, block_bytes: 512, faults, ..self.target.clone() };
        let rig = Rig::in_directory(&self.directory, target, self.host);
        let object = Arc::new(rig.object());
        self.rigs.push((object.id, path, rig));
        block_file::Target { object, face: 0 }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for (_, path, _) in &self.rigs {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Bed for Files {
    fn name(&self) -> String {
        self.what.to_owned()
    }

    fn transport(&mut self) -> Result<Box<dyn Transport>, CaseEnd> {
        let config = TcpConfig { queue_depth: 16, ..TcpConfig::default() };
        Ok(Box::new(TcpTransport::new(self.directory.clone(), config).unwrap()))
    }

    fn object(&mut self, content: &[u8]) -> Result<block_file::Target, CaseEnd> {
        if content.is_empty() || !content.len().is_multiple_of(512) {
            return Err(CaseEnd::Skip("a namespace has whole blocks".to_owned()));
        }
        Ok(self.add(content, None))
    }

    fn content(&mut self, target: &block_file::Target) -> Result<Vec<u8>, CaseEnd> {
        let (_, path, _) = self.rigs.iter().find(|(id, ..)| *id == target.object.id).unwrap();
        Ok(std::fs::read(path).unwrap())
    }

    fn failing_object(&mut self) -> Result<block_file::Target, CaseEnd> {
        let medium = status::Status::UNRECOVERED_READ.with_dnr();
        let faults = move |seen: &Seen| (seen.qid > 0 && seen.opcode == opcode::READ).then_some(Wrong::Status(medium));
        Ok(self.add(&[0; 64 << 10], Some(Arc::new(faults))))
    }

    fn now(&self) -> Duration {
        now().since(self.start)
    }

    fn clock(&self) -> Clock {
        Clock::Real
    }
}

/// Cases that mean nothing here, with their reasons in the report.
const SKIPS: &[&str] = &[
    "any_offset_and_address_on_a_bytewise_face",
    "memory_that_was_not_attached_is_refused",
    "a_read_over_the_end_is_short_or_an_error",
];

#[test]
fn the_transport_conforms() {
    block_file::run(&mut Files::new("nvme+tcp", own(), ControllerConfig::default())).assert_green(SKIPS);
}

#[test]
fn the_transport_conforms_with_digests_small_units_and_few_commands_of_few_bytes() {
    let target = TargetConfig {
        mdts: 2,
        capsule_data_bytes: 0,
        h2c_bytes_max: 4096,
        r2t_bytes_max: 6144,
        c2h_bytes_max: 1536,
        alignment: 7,
        ..own()
    };
    let host = ControllerConfig { digests: BOTH, depth: 3, ..ControllerConfig::default() };
    block_file::run(&mut Files::new("nvme+tcp, digests, small", target, host)).assert_green(SKIPS);
}

const BLOCK: u64 = 4096;

fn span(len: u64, byte: u8) -> DmaSpan {
    let mut buffer = Buffer::allocate(ByteLen(len)).unwrap();
    buffer.as_mut_slice().fill(byte);
    buffer.into_span()
}

fn io(object: &Object, kind: IoKind, offset: u64, memory: &DmaSpan, number: u64) -> Io {
    let len = u32::try_from(memory.len().0).unwrap();
    let segment = MemorySegment { place: memory.place(), len, region: memory.region().id() };
    let (token, handle) = (Token::from_raw(number), object.faces[0].handle);
    Io { token, kind, object: object.id, handle, offset, len, segment_count: 1, segments: [segment; 3] }
}

/// Ends of everything that is in flight, at most `limit` later.
fn ends(transport: &mut TcpTransport, count: usize, limit: Duration) -> Vec<IoDone> {
    let (start, mut all) = (now(), Vec::with_capacity(64));
    transport.ring().unwrap();
    while all.len() < count {
        assert!(now().since(start) < limit, "{} of {count} ended within {limit:?}", all.len());
        transport.poll(Wait::For { timeout: Duration::from_millis(20), min: 1 }, &mut all).unwrap();
    }
    all
}

const SOON: Duration = Duration::from_secs(20);

/// What one read of 16 blocks and one write of as many come to where commands of I/O queues end as `wrong`.
fn under(wrong: Wrong) -> (Result<u32, Fault>, Result<u32, Fault>) {
    let faults = move |seen: &Seen| (seen.qid > 0 && seen.opcode != sw_nvme::fabrics::OPCODE).then_some(wrong);
    let target = TargetConfig { faults: Some(Arc::new(faults)), ..own() };
    let rig = Rig::new(target, ControllerConfig { digests: BOTH, ..ControllerConfig::default() });
    let config = TcpConfig { command_timeout: Duration::from_millis(1500), ..TcpConfig::default() };
    let object = rig.object();
    let come_to = |kind, byte| {
        let mut transport = rig.transport(config);
        let memory = span(16 * BLOCK, byte);
        assert_eq!(transport.submit(&io(&object, kind, 0, &memory, 1)), Submit::Accepted);
        let done = ends(&mut transport, 1, SOON).remove(0);
        assert_eq!(transport.in_flight, 0);
        assert_eq!(transport.fence(Duration::from_secs(1), &mut Vec::new()), Fence::Quiet);
        done.result
    };
    (come_to(IoKind::Read, 0), come_to(IoKind::Write, 1))
}

#[test]
fn each_thing_that_a_target_does_wrong_is_told_for_what_it_is() {
    let lost = |retry| Err(Fault::new(ErrorKind::Io, 0).with_retry(retry));
    let broken = Err(Fault::new(ErrorKind::Protocol, 0));
    let short = Err(Fault::new(ErrorKind::ShortData, 0));
    let (again, never) = (Retry::Now, Retry::Never);
    let digest = Err(Fault::new(ErrorKind::ChecksumMismatch, 0).with_retry(again));
    for (wrong, read, write) in [
        // A read may be asked for again at once; a write may have been carried out.
        (Wrong::DropBefore, lost(again), lost(never)),
        // One unit is all of a read of that length.
        (Wrong::DropAfterUnit, Ok(65536), lost(never)),
        (Wrong::NeverAnswer, lost(again), lost(never)),
        (Wrong::HalfClose, lost(again), lost(never)),
        (Wrong::ShortData(4096), short, short),
        (Wrong::WrongHeaderDigest, broken, broken),
        (Wrong::UnknownCid, broken, broken),
        (Wrong::WrongOffset, broken, Ok(65536)),
        (Wrong::R2tOutOfRange, Ok(65536), broken),
        (Wrong::WrongDataDigest, digest, Ok(65536)),
        (Wrong::Delay(Duration::from_millis(100)), Ok(65536), Ok(65536)),
    ] {
        assert_eq!(under(wrong), (read, write), "{wrong:?}");
    }
}

#[test]
fn a_status_is_the_fault_that_it_names() {
    let medium = status::Status::UNRECOVERED_READ.with_dnr();
    let (read, write) = under(Wrong::Status(medium));
    for result in [read, write] {
        let fault = result.unwrap_err();
        assert_eq!((fault.code, fault.retry), (i32::from(medium.code()), Retry::Never));
        assert!(!fault.is_not_applied(), "some of it may be on the medium");
    }
    let outside = status::Status::new(status::sct::GENERIC, 0x80).with_dnr();
    assert!(under(Wrong::Status(outside)).1.is_err_and(|fault| fault.is_not_applied()));
}

#[test]
fn lost_connections_and_associations_are_made_again_under_the_same_objects() {
    let rig = Rig::new(own(), ControllerConfig::default());
    let object = rig.object();
    let mut transport = rig.transport(TcpConfig::default());
    let memory = span(BLOCK, 3);
    // As the engine does: a read that may be asked for again at once is.
    let mut read = || {
        let mut results = (0..3).map(|_| {
            transport.submit(&io(&object, IoKind::Read, 0, &memory, 1));
            ends(&mut transport, 1, SOON).remove(0).result
        });
        results.find(|result| result.is_ok_and(|_| true) || result.is_err_and(|fault| fault.retry != Retry::Now))
    };
    for round in 1..4 {
        assert_eq!(read(), Some(Ok(4096)), "round {round}");
        // All of them: the association goes, and its controller is another one afterwards.
        rig.target.as_ref().unwrap().drop_connections();
        assert_eq!(read(), Some(Ok(4096)), "round {round}");
        assert_eq!(rig.controller.facts().association, round + 1);
    }
}

#[test]
fn a_namespace_that_is_another_one_afterwards_is_not_read_as_the_old_one() {
    let one = own();
    let config = |serial: &str, listen| TargetConfig { serial: serial.to_owned(), listen, ..one.clone() };
    let mut rig = Rig::new(config("ONE", one.listen), ControllerConfig::default());
    let (old, memory) = (rig.object(), span(BLOCK, 3));
    let mut transport = rig.transport(TcpConfig::default());
    let mut read = |object: &Object| {
        transport.submit(&io(object, IoKind::Read, 0, &memory, 1));
        ends(&mut transport, 1, SOON).remove(0).result
    };
    assert_eq!(read(&old), Ok(4096));
    let at = rig.target.take().unwrap().address();
    rig.target = Some(Target::start(config("TWO", at)).unwrap());
    let mut results = (0..4).map(|_| read(&old));
    let end = results.find(|result| result.is_err_and(|fault| fault.retry == Retry::Never)).unwrap();
    assert_eq!(end, Err(Fault::new(ErrorKind::Changed, 0)));
    assert_eq!(read(&rig.object()), Ok(4096));
}

#[test]
fn no_write_follows_one_of_unknown_outcome_before_the_target_has_let_go_of_that() {
    // The first write of each of two connections is carried out or not; nobody knows.
    let faults = |seen: &Seen| {
        let first = seen.qid > 0 && seen.opcode == opcode::WRITE && seen.slba == 7;
        first.then_some(Wrong::DropBefore)
    };
    let keep_alive = Duration::from_millis(1500);
    let host = ControllerConfig { keep_alive, ..ControllerConfig::default() };
    let rig = Rig::new(TargetConfig { faults: Some(Arc::new(faults)), ..own() }, host);
    let object = rig.object();
    let (mut one, mut two) = (rig.transport(TcpConfig::default()), rig.transport(TcpConfig::default()));
    let memory = span(BLOCK, 1);
    let run = |lane: &mut TcpTransport, kind, block: u64| {
        lane.submit(&io(&object, kind, block * BLOCK, &memory, 1));
        ends(lane, 1, SOON).remove(0).result
    };
    assert_eq!(run(&mut two, IoKind::Write, 1), Ok(4096));
    let lost = run(&mut one, IoKind::Write, 7).unwrap_err();
    assert_eq!((lost.kind, lost.retry), (ErrorKind::Io, Retry::Never));
    let since = now();
    // Reads go on at once, as the engine asks for them again; another lane's writes wait as well.
    let read = (0..3).map(|_| run(&mut one, IoKind::Read, 1)).find(|result| result.is_ok());
    assert!(read.is_some() && now().since(since) < keep_alive / 2, "{read:?} after {:?}", now().since(since));
    let mut results = (0..2).map(|_| run(&mut two, IoKind::Write, 1));
    let written = results.find(|result| result.is_ok());
    let waited = now().since(since);
    // Twice KATO: a last sign of life may be on its way.
    let least = 2 * keep_alive - Duration::from_millis(100);
    assert!(written.is_some() && waited > least, "{written:?} after {waited:?}");
    // Afterwards nothing is waited for.
    let since = now();
    assert_eq!(run(&mut one, IoKind::Write, 2), Ok(4096));
    assert!(now().since(since) < keep_alive / 2);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "that the attendant waits gives no sign")]
fn a_target_that_is_silent_holds_up_no_close() {
    // Keep-alive is never answered, so that the attendant waits for one; nor are properties behind it.
    let faults = |seen: &Seen| (seen.qid == 0 && seen.opcode == 0x18).then_some(Wrong::NeverAnswer);
    let host = ControllerConfig { keep_alive: Duration::from_millis(200), ..ControllerConfig::default() };
    let rig = Rig::new(TargetConfig { faults: Some(Arc::new(faults)), ..own() }, host);
    std::thread::sleep(Duration::from_millis(400));
    let start = now();
    drop(rig);
    assert!(now().since(start) < Duration::from_secs(5), "{:?}", now().since(start));
}

#[test]
fn patience_has_an_end() {
    let host = ControllerConfig { patience: Duration::from_millis(700), ..ControllerConfig::default() };
    let mut rig = Rig::new(own(), host);
    let (object, memory) = (rig.object(), span(BLOCK, 3));
    let mut transport = rig.transport(TcpConfig::default());
    let mut read = || {
        transport.submit(&io(&object, IoKind::Read, 0, &memory, 1));
        ends(&mut transport, 1, SOON).remove(0).result
    };
    assert_eq!(read(), Ok(4096));
    drop(rig.target.take());
    let mut results = (0..3).map(|_| read());
    let end = results.find(|result| result.is_err_and(|fault| fault.retry == Retry::Never));
    assert_eq!(end, Some(Err(Fault::new(ErrorKind::NoDevice, 0))));
    assert!(rig.controller.is_gone());
    let why = rig.controller.lost().to_string();
    assert!(why.contains("tried for 0 s") && why.contains("open it again"), "{why}");
    assert_eq!(
        Paths::of(rig.controller.clone()).expect_up().err().map(|error| error.kind()),
        Some(ErrorKind::NoDevice)
    );
}

#[test]
#[expect(clippy::disallowed_methods, reason = "what comes for a command that was let go of gives no sign")]
fn what_is_cancelled_lands_nowhere_and_its_memory_is_free_at_once() {
    let faults = |seen: &Seen| {
        let reads = seen.qid > 0 && seen.opcode == opcode::READ && seen.slba == 0;
        reads.then_some(Wrong::Delay(Duration::from_secs(2)))
    };
    let rig = Rig::new(TargetConfig { faults: Some(Arc::new(faults)), ..own() }, ControllerConfig::default());
    let object = rig.object();
    let mut transport = rig.transport(TcpConfig::default());
    let memory = span(16 * BLOCK, 0xEE);
    transport.submit(&io(&object, IoKind::Read, 0, &memory, 1));
    let other = span(BLOCK, 0xEE);
    transport.submit(&io(&object, IoKind::Read, BLOCK * 100, &other, 2));
    assert_eq!(ends(&mut transport, 1, SOON)[0].token, Token::from_raw(2));
    let start = now();
    transport.cancel(Token::from_raw(1));
    let ended = ends(&mut transport, 1, SOON).remove(0);
    assert_eq!((ended.token, ended.result), (Token::from_raw(1), Err(Fault::new(ErrorKind::Cancelled, 0))));
    assert!(now().since(start) < Duration::from_secs(1), "it waited for the target");
    // The data comes all the same, behind it another read, and nothing of it lands.
    std::thread::sleep(Duration::from_millis(2200));
    transport.submit(&io(&object, IoKind::Read, BLOCK * 100, &other, 3));
    assert_eq!(ends(&mut transport, 1, SOON)[0].result, Ok(4096));
    let mut bytes = vec![0; sw_mem::index(16 * BLOCK)];
    memory.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0xEE));
}

#[test]
fn a_fork_and_a_wrong_configuration_are_refused() {
    let directory = Arc::new(Directory::default());
    for wrong in [
        TcpConfig { queue_depth: 0, ..TcpConfig::default() },
        TcpConfig { queue_depth: QUEUE_DEPTH_MAX + 1, ..TcpConfig::default() },
        TcpConfig { io_bytes_max: 0, ..TcpConfig::default() },
        TcpConfig { io_bytes_max: 5000, ..TcpConfig::default() },
    ] {
        assert_eq!(
            TcpTransport::new(directory.clone(), wrong).err().map(|error| error.kind()),
            Some(ErrorKind::ApiMisuse)
        );
    }
}

#[test]
fn lanes_beyond_the_queues_of_a_controller_are_told_so() {
    let rig = Rig::new(TargetConfig { queues_max: 2, ..own() }, ControllerConfig::default());
    let object = rig.object();
    let memory = span(BLOCK, 0);
    let mut lanes: Vec<_> = (0..3).map(|_| rig.transport(TcpConfig::default())).collect();
    let results: Vec<_> = lanes
        .iter_mut()
        .map(|lane| {
            lane.submit(&io(&object, IoKind::Read, 0, &memory, 1));
            ends(lane, 1, SOON).remove(0).result
        })
        .collect();
    assert_eq!(results[..2], [Ok(4096), Ok(4096)]);
    assert_eq!(results[2], Err(Fault::new(ErrorKind::ResourceLimit, Fault::NO_QUEUE_LEFT)));
    // One that goes leaves its queue.
    lanes.remove(0);
    lanes[1].submit(&io(&object, IoKind::Read, 0, &memory, 2));
    assert_eq!(ends(&mut lanes[1], 1, SOON)[0].result, Ok(4096));
}

#[test]
fn two_hosts_of_one_name_and_identifier_do_io_side_by_side_and_neither_takes_the_others_connections() {
    let config = TargetConfig { queues_max: 1, ..own() };
    let subsystem = config.subsystem.clone();
    let target = Target::start(config).unwrap();
    let at = target.address();
    let rigs = [1u8, 2].map(|byte| {
        let address = Address { host: at.ip().to_string(), port: at.port(), subsystem: subsystem.clone() };
        let controller = Controller::open(address, identity(), ControllerConfig::default()).unwrap();
        (byte, Rig::of(controller, &Arc::default()))
    });
    assert_ne!(rigs[0].1.controller.facts().id, rigs[1].1.controller.facts().id);
    const BLOCKS: u64 = 200;
    // Each has every other block, and writes and reads them while the other one does.
    std::thread::scope(|scope| {
        for (byte, rig) in &rigs {
            scope.spawn(move || {
                let (object, mut transport) = (rig.object(), rig.transport(TcpConfig::default()));
                for block in (0..BLOCKS).map(|block| 2 * block + u64::from(*byte)) {
                    let fill = byte ^ u8::try_from(block % 64 * 4).unwrap();
                    let (out, back) = (span(BLOCK, fill), span(BLOCK, 0xEE));
                    for (kind, memory) in [(IoKind::Write, &out), (IoKind::Read, &back)] {
                        transport.submit(&io(&object, kind, block * BLOCK, memory, 1));
                        assert_eq!(ends(&mut transport, 1, SOON)[0].result, Ok(4096));
                    }
                    let mut bytes = vec![0; 4096];
                    back.read(0, &mut bytes).unwrap();
                    assert!(bytes.iter().all(|found| *found == fill), "host {byte}, block {block}");
                }
            });
        }
    });
    for (byte, rig) in &rigs {
        assert_eq!(rig.controller.facts().association, 1, "host {byte}");
    }
    let counters = target.counters();
    assert_eq!((counters.connections, counters.controllers), (4, 2), "each was connected once");
    assert_eq!((counters.reads, counters.writes), (2 * BLOCKS, 2 * BLOCKS));
}

#[path = "transport_tls_tests.rs"]
mod tls;

#[path = "transport_cut_tests.rs"]
mod cut;
#[path = "transport_lost_tests.rs"]
mod lost;
#[path = "transport_noise_tests.rs"]
mod noise;
#[path = "transport_paths_tests.rs"]
mod paths;
#[path = "transport_resets_tests.rs"]
mod resets;
