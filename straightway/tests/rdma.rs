//! NVMe over RDMA on the emulated fabric: the engine's suite, the public interface, and peers that break the rules.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use straightway::{
    Buffer, ByteLen, Destination, Engine, Error, ErrorKind, Landing, Memory, Object, RouteMatch, Uri, WriteOutcome,
    target::{Access as FileAccess, Backing, Nqn, Target, TargetConfig, start_rdma_emulated},
};
use sw_engine::{
    ObjectId, Residency,
    seam::{
        IoKind, Transport, Wake,
        verbs::{
            Access, Connected, Cq, Device, Incoming, Mr, MrRequest, PrivateData, Qp, QpConfig, QpState, RecvWr,
            RemoteKey, SendOp, SendWr, Wc, WcKind, WcStatus,
        },
    },
};
use sw_mem::{DmaSpan, RemoteAddr};
use sw_net::{
    Address, Controller, ControllerConfig, Directory, HostIdentity, HostKeys, Paths, Registering, TcpConfig,
    TcpTransport, Way, Wire, face,
    target::{Authentication, Fault, Faults, Seen},
};
use sw_nvme::{
    auth::{Hash, Offer, RANDOM_BYTES, secret::Secret},
    rdma::{
        capsule::{self, Descriptor, KeyEnd, Keyed, Source},
        cm::{Accept, Refused, Request},
    },
    status::Status,
    wire::{Command, Completion, command::opcode, completion::CompletionFields},
};
use sw_testkit::conformance::{
    End as CaseEnd,
    block_file::{self, Bed, Clock},
};
use sw_verbs::{
    budget::{Budget, Budgeted},
    emulated::EmulatedDevice,
};

#[path = "rdma/addresses.rs"]
mod addresses;
#[path = "rdma/gone.rs"]
mod gone;
#[path = "rdma/hostile.rs"]
mod hostile;
#[path = "rdma/lanes.rs"]
mod lanes;
#[path = "rdma/ports.rs"]
mod ports;
#[path = "rdma/stale.rs"]
mod stale;

const BYTES: u64 = 32 << 20;
const LIMIT: Duration = Duration::from_secs(20);

#[expect(clippy::disallowed_methods, reason = "tests have a clock")]
fn now() -> Instant {
    Instant::now()
}

fn identity() -> HostIdentity {
    HostIdentity { nqn: Nqn::new("nqn.2026-11.io.straightway:host").unwrap(), id: [7; 16], keys: None, tls: None }
}

// ---- the engine's suite -------------------------------------------------------------------------------------------

struct Rig {
    controller: Arc<Controller>,
    index: u32,
    attendant: Option<JoinHandle<()>>,
    device: Arc<EmulatedDevice>,
    _target: Target,
}

impl Rig {
    fn new(directory: &Arc<Directory>, config: TargetConfig, host: ControllerConfig) -> Self {
        Self::with(directory, config, host, Budget::default())
    }

    fn with(directory: &Arc<Directory>, config: TargetConfig, host: ControllerConfig, budget: Budget) -> Self {
        Self::by(directory, config, host, (budget, Registering::PerCommand))
    }

    fn by(
        directory: &Arc<Directory>,
        config: TargetConfig,
        host: ControllerConfig,
        (budget, registering): (Budget, Registering),
    ) -> Self {
        let device = EmulatedDevice::open();
        Self::over(directory, config, host, (Budgeted::new(device.clone(), budget), device, registering))
    }

    /// By a device that is around an emulated one.
    fn over(
        directory: &Arc<Directory>,
        config: TargetConfig,
        host: ControllerConfig,
        (by, device, registering): (Arc<dyn Device>, Arc<EmulatedDevice>, Registering),
    ) -> Self {
        let subsystem = config.subsystem.clone();
        let target = start_rdma_emulated(config).unwrap();
        let at = target.address();
        let address = Address { host: at.ip().to_string(), port: at.port(), subsystem };
        let controller = Controller::open_by(Way::rdma(by, registering), address, identity(), host).unwrap();
        let index = directory.add(Paths::of(controller.clone())).unwrap();
        let attended = controller.clone();
        let attendant = std::thread::Builder::new().spawn(move || attended.attend()).unwrap();
        Self { controller, index, attendant: Some(attendant), device, _target: target }
    }

    fn object(&self) -> sw_engine::Object {
        let facts = self.controller.facts();
        let namespace = &facts.namespaces[0];
        sw_engine::Object {
            id: sw_engine::Object::next_id(),
            name: "1".into(),
            len: namespace.len_bytes(),
            version: namespace.version(),
            faces: vec![face(Wire::EmulatedRdma, self.index, namespace, self.controller.landing()).unwrap()],
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(()),
        }
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
    start: Instant,
}

static FILES: AtomicU32 = AtomicU32::new(0);

impl Files {
    fn new(what: &'static str, target: TargetConfig, host: ControllerConfig) -> Self {
        Self { what, target, host, directory: Arc::default(), rigs: Vec::new(), start: now() }
    }

    fn add(&mut self, content: &[u8], faults: Option<Arc<dyn Faults>>) -> block_file::Target {
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("straightway-rdma-{}-{number}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        let namespaces = vec![Backing::File(path.clone(), FileAccess::ReadWrite)];
        let target = TargetConfig { namespaces, block_bytes: 512, faults, ..self.target.clone() };
        let rig = Rig::new(&self.directory, target, self.host);
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
        let config = TcpConfig { queue_depth: 16, wire: Wire::EmulatedRdma, ..TcpConfig::default() };
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
        let medium = Status::UNRECOVERED_READ.with_dnr();
        let faults = move |seen: &Seen| (seen.qid > 0 && seen.opcode == opcode::READ).then_some(Fault::Status(medium));
        Ok(self.add(&[0; 64 << 10], Some(Arc::new(faults))))
    }

    fn now(&self) -> Duration {
        now() - self.start
    }

    fn clock(&self) -> Clock {
        Clock::Real
    }
}

/// Cases that mean nothing here, with their reasons in the report.
const SKIPS: &[&str] = &["any_offset_and_address_on_a_bytewise_face", "a_read_over_the_end_is_short_or_an_error"];

#[test]
fn the_transport_conforms() {
    let mut files = Files::new("nvme+rdma, emulated", own(), ControllerConfig::default());
    block_file::run(&mut files).assert_green(SKIPS);
    // Of commands nothing is registered any more: what is left are the capsules of the admin queues.
    for (.., rig) in &files.rigs {
        let (registrations, bytes) = rig.device.registered();
        assert!(registrations <= 2 && bytes <= 31 * 80, "{registrations} registrations of {bytes} bytes");
    }
}

#[test]
fn the_transport_conforms_with_few_commands_of_few_bytes() {
    let target = TargetConfig { mdts: 2, ..own() };
    let host = ControllerConfig { depth: 3, ..ControllerConfig::default() };
    block_file::run(&mut Files::new("nvme+rdma, emulated, small", target, host)).assert_green(SKIPS);
}

/// A target with a name of its own: what one test is in doubt of must not keep the writes of another one back.
fn own() -> TargetConfig {
    static TARGETS: AtomicU32 = AtomicU32::new(0);
    let number = TARGETS.fetch_add(1, Ordering::Relaxed);
    let subsystem = Nqn::new(&format!("nqn.2026-11.io.straightway:target-{number}")).unwrap();
    TargetConfig { subsystem, ..TargetConfig::default() }
}

fn of_memory(faults: Option<Arc<dyn Faults>>) -> TargetConfig {
    TargetConfig { namespaces: vec![Backing::Memory(BYTES)], faults, ..own() }
}

// ---- the public interface -----------------------------------------------------------------------------------------

/// Whether this machine has something that subsystems could know it by: without it no engine of its own can connect.
fn known() -> bool {
    let there = ["/etc/nvme/hostid", "/etc/machine-id"].iter().any(|path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().len() >= 32
    });
    if !there {
        println!("skip rdma: the machine has no hostid and no machine-id (the guests of the bed have one)");
    }
    there
}

fn target(faults: Option<Arc<dyn Faults>>) -> (Target, Uri) {
    let config = TargetConfig { namespaces: vec![Backing::Memory(BYTES)], faults, ..own() };
    let subsystem = config.subsystem.to_string();
    let target = start_rdma_emulated(config).unwrap();
    let uri = format!("nvme+rdma://{}/{subsystem}?nsid=1&fabric=emulated&serial=SWTARGET0001", target.address());
    (target, uri.parse().unwrap())
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 31 + at / 4096) % 251).unwrap()).collect()
}

fn memory(bytes: &[u8]) -> Memory {
    let mut buffer = Buffer::allocate(ByteLen(bytes.len() as u64)).unwrap();
    buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    Memory::from(buffer)
}

fn read(engine: &Engine, object: &Object, at: u64, len: usize) -> Result<Vec<u8>, Error> {
    let memory = engine.allocate(Destination::Host, len as u64, 0)?;
    let memory = engine.read(object, at, memory).wait().ok()?.into_memory().unwrap();
    let mut got = vec![0; len];
    memory.read(0, &mut got)?;
    Ok(got)
}

#[test]
fn bytes_go_there_and_back_and_the_way_is_told_as_an_emulation() {
    if !known() {
        return;
    }
    let (target, uri) = target(None);
    let engine = Engine::builder().build().unwrap();
    let object = engine.open_for_update(&uri).unwrap();
    let content = bytes(9 << 20);
    let done = engine.write(&object, 1 << 20, memory(&content)).wait();
    let path = done.path;
    assert_eq!(done.ok().unwrap().result.unwrap(), content.len() as u64);
    // Never "dma": the kernel copied each byte between a socket and its place.
    assert_eq!((path.route.transport, path.route.landing), ("nvme+rdma-emulated", Landing::KernelCopy));
    assert_eq!((path.bytes.dma, path.cpu_copied, path.bounced), (0, content.len() as u64, 0));
    engine.flush(&object).wait().ok().unwrap();
    for (at, len) in [(0, content.len()), (4096, 8192), (5, 1), (4095, 2), (777_777, 3_000_001)] {
        assert_eq!(read(&engine, &object, (1 << 20) + at as u64, len).unwrap(), content[at..at + len], "{at}+{len}");
    }
    let counters = target.counters();
    assert_eq!((counters.terminations, counters.panics, counters.written_bytes), (0, 0, content.len() as u64));
    let demanded = Engine::builder().build().unwrap();
    let policy = straightway::Policy::Require(RouteMatch { transport: None, landing: Some(Landing::Dma) });
    let object = demanded.open(&uri).unwrap();
    let refused = demanded.read(&object, 0, memory(&[0; 4096])).policy(policy).wait().ok().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PolicyUnmet, "{refused}");
}

/// Once, at the first command of that kind on an I/O queue.
fn once(wanted: u8, fault: Fault) -> Arc<dyn Faults> {
    let used = AtomicU32::new(0);
    Arc::new(move |seen: &Seen| {
        let hit = seen.qid > 0 && seen.opcode == wanted && used.fetch_add(1, Ordering::Relaxed) == 0;
        hit.then_some(fault)
    })
}

#[test]
fn a_connection_that_is_lost_is_made_again_and_reads_go_on() {
    if !known() {
        return;
    }
    for fault in [Fault::DropBefore, Fault::DropAfter] {
        let (_target, uri) = target(Some(once(opcode::READ, fault)));
        let engine = Engine::builder().build().unwrap();
        let object = engine.open(&uri).unwrap();
        assert_eq!(read(&engine, &object, 4096, 1 << 20).unwrap(), vec![0; 1 << 20], "{fault:?}");
    }
}

#[test]
fn a_write_that_was_under_way_is_of_unknown_outcome() {
    if !known() {
        return;
    }
    let (_target, uri) = target(Some(once(opcode::WRITE, Fault::DropBefore)));
    let engine = Engine::builder().set("nvme_tcp_keep_alive_ms", "200").unwrap().build().unwrap();
    let object = engine.open_for_update(&uri).unwrap();
    let error = engine.write(&object, 0, memory(&[8; 4096])).wait().ok().unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Io, Some(WriteOutcome::Unknown)), "{error}");
    // Behind the fence the next one is carried out.
    engine.write(&object, 0, memory(&[9; 4096])).wait().ok().unwrap();
    assert_eq!(read(&engine, &object, 0, 4096).unwrap(), [9; 4096]);
}

#[test]
fn an_answer_to_nothing_ends_the_connection_as_a_breach() {
    if !known() {
        return;
    }
    let (_target, uri) = target(Some(once(opcode::READ, Fault::UnknownCid)));
    let engine = Engine::builder().build().unwrap();
    let object = engine.open(&uri).unwrap();
    let error = read(&engine, &object, 0, 4096).unwrap_err();
    assert!(error.kind() == ErrorKind::Protocol && error.to_string().contains("not under way"), "{error}");
    assert_eq!(read(&engine, &object, 0, 4096).unwrap(), [0; 4096]);
}

#[test]
fn a_read_that_is_late_ends_for_its_caller_and_keeps_its_memory_until_the_answer() {
    if !known() {
        return;
    }
    let (_target, uri) = target(Some(once(opcode::READ, Fault::Delay(Duration::from_millis(600)))));
    let engine = Engine::builder().build().unwrap();
    let object = engine.open(&uri).unwrap();
    let limit = Duration::from_millis(100);
    let late = engine.read(&object, 0, memory(&[1; 4096])).deadline(limit).wait().ok().unwrap_err();
    assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{late}");
    assert_eq!(read(&engine, &object, 0, 4096).unwrap(), [0; 4096]);
}

#[test]
fn a_target_that_comes_back_is_gone_on_with() {
    if !known() {
        return;
    }
    let path = std::env::temp_dir().join(format!("straightway-rdma-back-{}", std::process::id()));
    std::fs::write(&path, bytes(4 << 20)).unwrap();
    let namespaces = vec![Backing::File(path.clone(), FileAccess::ReadWrite)];
    let config = TargetConfig { namespaces, ..own() };
    let target = start_rdma_emulated(config.clone()).unwrap();
    let (at, subsystem) = (target.address(), config.subsystem.to_string());
    let uri: Uri = format!("nvme+rdma://{at}/{subsystem}?nsid=1&fabric=emulated&serial=SWTARGET0001").parse().unwrap();
    let engine = Engine::builder().build().unwrap();
    let object = engine.open_for_update(&uri).unwrap();
    assert_eq!(read(&engine, &object, 4096, 8192).unwrap(), bytes(12288)[4096..]);
    target.drop_connections();
    assert_eq!(read(&engine, &object, 4096, 8192).unwrap(), bytes(12288)[4096..]);
    target.stop();
    let again = start_rdma_emulated(TargetConfig { listen: at, ..config }).unwrap();
    // The same object: a read waits for the next association, a write too.
    assert_eq!(read(&engine, &object, 4096, 8192).unwrap(), bytes(12288)[4096..]);
    engine.write(&object, 0, memory(&[7; 4096])).wait().ok().unwrap();
    object.check_unchanged().unwrap();
    again.stop();
    assert_eq!(std::fs::read(&path).unwrap()[..4097], [&[7; 4096][..], &bytes(4097)[4096..]].concat());
    std::fs::remove_file(path).unwrap();
}

#[test]
fn many_threads_share_a_namespace() {
    if !known() {
        return;
    }
    let (_target, uri) = target(None);
    let engine = Engine::builder().build().unwrap();
    let object = engine.open_for_update(&uri).unwrap();
    let content = bytes(4 << 20);
    engine.write(&object, 0, memory(&content)).wait().ok().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            let (engine, object, content) = (&engine, &object, &content);
            let reads = move || {
                for n in 0..40usize {
                    let at = (thread * 131 + n * 17) % 900 * 4096;
                    assert_eq!(read(engine, object, at as u64, 16384).unwrap(), content[at..at + 16384]);
                }
            };
            std::thread::Builder::new().spawn_scoped(scope, reads).unwrap();
        }
    });
}

// ---- peers that break the rules ------------------------------------------------------------------------------------

#[derive(Default)]
struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

/// One end of a connection by hand.
struct Hand {
    qp: Box<dyn Qp>,
    cq: Arc<dyn Cq>,
    mr: Box<dyn Mr>,
    span: DmaSpan,
}

impl Hand {
    fn new() -> Self {
        let device = EmulatedDevice::open();
        let (pd, cq) = (device.alloc_pd().unwrap(), device.create_cq(64, Arc::new(Nobody)).unwrap());
        let config = QpConfig {
            send_cq: cq.clone(),
            recv_cq: cq.clone(),
            send_wr_max: 16,
            recv_wr_max: 16,
            rnr_wait: Duration::from_secs(2),
        };
        let qp = pd.create_qp(config).unwrap();
        let span = Buffer::allocate(ByteLen(64 << 10)).unwrap().into_span();
        let access = Access::LOCAL_WRITE.with(Access::REMOTE_READ).with(Access::REMOTE_WRITE);
        let mr = pd.reg_mr(MrRequest { region: span.region(), at: span.offset(), len: 64 << 10, access }).unwrap();
        let mut made = Self { qp, cq, mr, span };
        for place in 0..8 {
            made.receive(place);
        }
        made
    }

    fn receive(&mut self, place: u64) {
        let sge = self.mr.sge(place * 64, 64).unwrap();
        self.qp.post_recv(RecvWr { wr_id: place, sge }).unwrap();
    }

    fn send(&mut self, op: SendOp, bytes: &[u8]) {
        self.span.write(32 << 10, bytes).unwrap();
        let sge = self.mr.sge(32 << 10, u32::try_from(bytes.len()).unwrap());
        self.qp.post_send(SendWr { wr_id: 99, op, memory: sge.into() }).unwrap();
    }

    /// The next completion of a kind; `None`: the connection is over.
    fn next(&mut self, kind: WcKind) -> Option<Wc> {
        let begun = now();
        let mut one = Vec::with_capacity(1);
        while now() - begun < LIMIT {
            one.clear();
            if self.cq.poll(&mut one) == 0 {
                std::thread::yield_now();
                continue;
            }
            if one[0].status != WcStatus::Success {
                return None;
            }
            if one[0].kind == kind {
                return Some(one[0]);
            }
        }
        panic!("nothing comes");
    }

    fn received(&mut self) -> Option<Vec<u8>> {
        let wc = self.next(WcKind::Recv)?;
        let mut raw = vec![0; usize::try_from(wc.byte_len).unwrap()];
        self.span.read(wc.wr_id * 64, &mut raw).unwrap();
        self.receive(wc.wr_id);
        Some(raw)
    }
}

fn words(bytes: &[u8]) -> PrivateData {
    PrivateData::new(bytes).unwrap()
}

#[test]
fn a_target_refuses_wishes_that_it_cannot_meet_with_the_reason() {
    let target = start_rdma_emulated(TargetConfig::default()).unwrap();
    let wish = Request { qid: 0, receive_entries: 32, send_entries: 32, controller: 0 };
    let mut format = wish.encode();
    format[0] = 1;
    for (private, why) in [
        (words(&wish.encode()[..31]), Refused::LENGTH),
        (words(&format), Refused::FORMAT),
        (words(&Request { qid: 999, ..wish }.encode()), Refused::QUEUE),
        (words(&Request { send_entries: 1, ..wish }.encode()), Refused::SEND_SIZE),
        (words(&Request { send_entries: 2000, ..wish }.encode()), Refused::SEND_SIZE),
        (words(&Request { receive_entries: 0, ..wish }.encode()), Refused::RECEIVE_SIZE),
    ] {
        match Hand::new().qp.connect(&target.address().to_string(), &private, LIMIT).unwrap() {
            Connected::Rejected(told) => assert_eq!(Refused::decode(told.as_bytes()), why),
            other => panic!("{private:?}: {other:?}"),
        }
    }
}

fn connected(target: &Target) -> Hand {
    let mut hand = Hand::new();
    let wish = Request { qid: 0, receive_entries: 32, send_entries: 32, controller: 0 };
    let answer = hand.qp.connect(&target.address().to_string(), &words(&wish.encode()), LIMIT).unwrap();
    let Connected::Accepted(told) = answer else { panic!("{answer:?}") };
    assert_eq!(Accept::decode(told.as_bytes()).unwrap().receive_entries, 32);
    hand
}

#[test]
fn a_target_survives_hosts_that_break_the_rules() {
    let target = start_rdma_emulated(TargetConfig::default()).unwrap();
    let status = |raw: &[u8]| Completion::new(raw.try_into().unwrap()).status();
    // A capsule that is too short, and none at all.
    for bytes in [&[0u8; 63][..], &[]] {
        let mut hand = connected(&target);
        hand.send(SendOp::Send, bytes);
        assert_eq!(hand.received(), None);
    }
    // A command before Connect is answered; so is one without a list, and one whose data lies where none can.
    let mut hand = connected(&target);
    let plain = capsule::encode(&Command::keep_alive(), 5, Source::Nothing).unwrap();
    let (mut prp, mut offset) = (plain, plain);
    prp[1] = 0;
    offset[39] = 0x01;
    for (raw, code) in [(plain, 0x0C), (prp, 0x02), (offset, 0x0C)] {
        hand.send(SendOp::Send, &raw);
        assert_eq!(status(&hand.received().unwrap()).sc(), code);
    }
    // Connect whose data is behind a key that opens nothing: the target's read is refused, and both are over.
    let request = sw_nvme::fabrics::QueueRequest { qid: 0, entries: 32, keep_alive_ms: 0 };
    let stale = Keyed { at: RemoteAddr::new(4096, 0xBAD), bytes: 1024, end: KeyEnd::Kept };
    hand.send(SendOp::Send, &capsule::encode(&Command::connect(request), 6, Source::Keyed(stale)).unwrap());
    assert_eq!(hand.received(), None);
    // Another queue than was asked for.
    let mut hand = connected(&target);
    let other = sw_nvme::fabrics::QueueRequest { qid: 3, ..request };
    hand.send(SendOp::Send, &capsule::encode(&Command::connect(other), 6, Source::Keyed(stale)).unwrap());
    assert_eq!(hand.received(), None);
    // More data than Connect has.
    let mut hand = connected(&target);
    let long = Keyed { bytes: 1025, ..stale };
    hand.send(SendOp::Send, &capsule::encode(&Command::connect(request), 6, Source::Keyed(long)).unwrap());
    assert_eq!(status(&hand.received().unwrap()).sc(), 0x0F);
    let counters = target.counters();
    assert_eq!((counters.panics, counters.controllers), (0, 0));
}

#[test]
fn success_without_the_data_of_an_admin_command_is_found_out() {
    // The structures of a controller, of a namespace, of its names: whichever is claimed and never written.
    for unwritten in 0..4 {
        let count = AtomicU32::new(0);
        let fault = move |seen: &Seen| {
            let hit = seen.opcode == 0x06 && count.fetch_add(1, Ordering::Relaxed) == unwritten;
            hit.then_some(Fault::Status(Status::SUCCESS))
        };
        let config = of_memory(Some(Arc::new(fault)));
        let subsystem = config.subsystem.clone();
        let target = start_rdma_emulated(config).unwrap();
        let address = Address { host: "127.0.0.1".into(), port: target.address().port(), subsystem };
        let way = Way::rdma(EmulatedDevice::open(), Registering::PerCommand);
        let made = Controller::open_by(way, address, identity(), ControllerConfig::default());
        let error = made.map(drop).expect_err(&format!("Identify {unwritten}"));
        assert_eq!(error.kind(), ErrorKind::ShortData, "Identify {unwritten}: {error}");
    }
}

#[test]
fn hosts_show_who_they_are_over_rdma_too() {
    let secret = |byte| Secret::from_random(&[byte; RANDOM_BYTES], Hash::Sha512, Some(Hash::Sha256));
    let authentication =
        Authentication { secret: secret(1).into(), controller_secret: Some(secret(2).into()), offer: Offer::default() };
    let config = TargetConfig { authentication: Some(authentication), ..of_memory(None) };
    let named = config.subsystem.clone();
    let target = start_rdma_emulated(config).unwrap();
    let open = |keys: Option<(u8, u8)>| {
        let keys = keys.map(|(host, of)| Arc::new(HostKeys::new(secret(host), Some(secret(of)), Offer::default())));
        let subsystem = named.clone();
        let address = Address { host: "127.0.0.1".into(), port: target.address().port(), subsystem };
        let way = Way::rdma(EmulatedDevice::open(), Registering::PerCommand);
        let host = HostIdentity { keys, ..identity() };
        let made = Controller::open_by(way, address, host, ControllerConfig::default());
        made.map(|controller| controller.shut_down()).map_err(|error| error.kind())
    };
    assert_eq!(open(Some((1, 2))), Ok(()));
    for wrong in [None, Some((3, 2)), Some((1, 3))] {
        assert_eq!(open(wrong), Err(ErrorKind::PermissionDenied), "{wrong:?}");
    }
}

#[test]
fn a_target_that_is_stopped_waits_for_no_wish() {
    let (target, _) = target(None);
    let mut silent = std::net::TcpStream::connect(target.address()).unwrap();
    std::io::Write::write_all(&mut silent, b"SWRDMA").unwrap();
    let begun = now();
    while target.counters().connections_open == 0 {
        assert!(now() - begun < LIMIT, "nobody takes the connection");
        std::thread::yield_now();
    }
    let begun = now();
    target.stop();
    assert!(now() - begun < Duration::from_secs(1), "{:?}", now() - begun);
}

#[test]
fn errors_tell_the_emulation_as_one() {
    let config = TcpConfig { wire: Wire::EmulatedRdma, queue_depth: 0, ..TcpConfig::default() };
    let error = TcpTransport::new(Arc::default(), config).map(drop).unwrap_err();
    assert!(error.to_string().contains("nvme+rdma-emulated"), "{error}");
    let rig = Rig::new(&Arc::default(), of_memory(None), ControllerConfig::default());
    let told = rig.controller.lost().to_string();
    assert!(told.contains("nvme+rdma://127.0.0.1:") && told.contains("fabric=emulated"), "{told}");
}

/// What a target by hand does with the host's Connect.
#[derive(Clone, Copy, Debug)]
enum Lie {
    WrongCid,
    ShortResponse,
    WrongKey,
    PastTheWindow,
    FewPlaces,
    NoFormat,
}

fn liar(lie: Lie, mut incoming: Box<dyn Incoming>) {
    let mut hand = Hand::new();
    incoming.request(LIMIT).unwrap();
    let mut accept = Accept { receive_entries: if matches!(lie, Lie::FewPlaces) { 1 } else { 64 } }.encode();
    accept[0] = u8::from(matches!(lie, Lie::NoFormat));
    hand.qp.accept(incoming, &words(&accept)).unwrap();
    let Some(raw) = hand.received() else { return };
    let (command, _) = capsule::decode(&raw).unwrap();
    let Descriptor::Keyed(keyed) = capsule::descriptor(&command) else { panic!("no data") };
    let cid = if matches!(lie, Lie::WrongCid) { !command.cid() } else { command.cid() };
    let fields = CompletionFields { dw0: 1, sq_head: 0xFFFF, sq_id: 0, cid, phase: false, status: Status::SUCCESS };
    let completion = *Completion::build(fields).bytes();
    match lie {
        Lie::ShortResponse => hand.send(SendOp::Send, &completion[..15]),
        Lie::WrongKey => hand.send(SendOp::SendWithInvalidate(RemoteKey(keyed.at.rkey() ^ 2)), &completion),
        // What the host opened may be read, and not a byte more.
        Lie::PastTheWindow => {
            let past = RemoteAddr::new(keyed.at.addr + 1, keyed.at.rkey());
            let sge = hand.mr.sge(0, keyed.bytes);
            hand.qp.post_send(SendWr { wr_id: 1, op: SendOp::RdmaRead(past), memory: sge.into() }).unwrap();
        }
        _ => hand.send(SendOp::Send, &completion),
    }
    let begun = now();
    while hand.qp.state() != QpState::Error && now() - begun < LIMIT {
        std::thread::yield_now();
    }
}

#[test]
fn a_host_finds_out_targets_that_break_the_rules() {
    for (lie, kind) in [
        (Lie::WrongCid, ErrorKind::Protocol),
        (Lie::ShortResponse, ErrorKind::Protocol),
        (Lie::WrongKey, ErrorKind::Io),
        (Lie::PastTheWindow, ErrorKind::Io),
        (Lie::FewPlaces, ErrorKind::Protocol),
        (Lie::NoFormat, ErrorKind::Protocol),
    ] {
        let mut listener = EmulatedDevice::open().listen("127.0.0.1:0").unwrap();
        let port = listener.address().rsplit(':').next().unwrap().parse().unwrap();
        let target = std::thread::Builder::new().spawn(move || {
            liar(lie, listener.accept(LIMIT).unwrap().unwrap());
        });
        let device = EmulatedDevice::open();
        let subsystem = Nqn::new("nqn.2026-11.io.example:liar").unwrap();
        let address = Address { host: "127.0.0.1".into(), port, subsystem };
        let way = Way::rdma(device.clone(), Registering::PerCommand);
        let made = Controller::open_by(way, address, identity(), ControllerConfig::default());
        let error = made.map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{lie:?}: {error}");
        target.unwrap().join().unwrap();
        assert_eq!(device.registered(), (0, 0), "{lie:?}");
    }
}
