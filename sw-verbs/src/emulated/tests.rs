// UNSAFETY: a memfd is a system call's.
#![expect(unsafe_code, reason = "a system call")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::fd::FromRawFd,
    time::{Duration, Instant},
};

use sw_engine::{
    ErrorKind,
    seam::verbs::{
        Access, Connected, Device, Fabric, MrRequest, PrivateData, QpState, RecvWr, SendOp, SendWr, Wc, WcStatus,
    },
};
use sw_mem::{Buffer, ByteLen, DmaSpan, RemoteAddr};
use sw_testkit::conformance::{End, verbs};

use super::frame::{Frame, HEAD_BYTES, HELLO_BYTES, Hello, Kind, Word};
use super::*;
use crate::budget::{Budget, Budgeted};

struct Bed {
    begun: Instant,
    devices: Vec<Arc<EmulatedDevice>>,
}

impl verbs::Bed for Bed {
    fn name(&self) -> String {
        "emulated fabric over loopback".to_owned()
    }

    fn device(&mut self) -> Result<Arc<dyn Device>, End> {
        let device = EmulatedDevice::open();
        self.devices.push(Arc::clone(&device));
        // As the product has it.
        Ok(Budgeted::new(device, Budget::default()))
    }

    fn dma_buf(&mut self) -> Result<Box<dyn verbs::Behind>, End> {
        Ok(Box::new(Memfd::new()))
    }

    fn address(&self) -> String {
        "127.0.0.1:0".to_owned()
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn idle(&mut self) {
        std::thread::yield_now();
    }
}

/// In place of a dma-buf: memory behind a descriptor, of which nothing else is known.
pub(crate) struct Memfd(std::fs::File);

impl Memfd {
    pub(crate) fn new() -> Self {
        // SAFETY: a name that ends with zero.
        let fd = unsafe { libc::memfd_create(c"dma-buf".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: made above, and nobody else's.
        let file = std::fs::File::from(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) });
        file.set_len(8192).unwrap();
        Self(file)
    }
}

impl verbs::Behind for Memfd {
    fn fd(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&self.0)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        std::os::unix::fs::FileExt::read_exact_at(&self.0, &mut bytes, 0).unwrap();
        bytes
    }
}

#[test]
fn the_emulation_is_what_the_seam_asks_for() {
    let mut bed = Bed { begun: wire::now(), devices: Vec::new() };
    verbs::run(&mut bed).assert_green(&[]);
    for device in bed.devices {
        assert_eq!(device.registered(), (0, 0));
    }
}

#[test]
fn there_is_one_device_and_it_says_what_it_is() {
    let devices = EmulatedFabric.devices().unwrap();
    assert_eq!((devices.len(), devices[0].kind), (1, FabricKind::Emulated));
    let error = EmulatedFabric.open("mlx5_0").map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoDevice);
}

#[test]
fn what_is_no_emulation_is_refused() {
    let mut listener = EmulatedDevice::open().listen("127.0.0.1:0").unwrap();
    let mut stranger = TcpStream::connect(listener.address()).unwrap();
    stranger.write_all(&[0x16; 200]).unwrap();
    let mut incoming = listener.accept(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(incoming.request(Duration::from_secs(10)).unwrap_err().kind(), ErrorKind::Protocol);
    // One that says nothing is waited for as long as was said.
    let _silent = TcpStream::connect(listener.address()).unwrap();
    let mut incoming = listener.accept(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(incoming.request(Duration::from_millis(20)).unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert!(listener.accept(Duration::from_millis(1)).unwrap().is_none());
}

#[test]
fn a_budget_refuses_what_is_past_it_and_comes_back() {
    let device = EmulatedDevice::open();
    let budgeted = Budgeted::new(device.clone(), Budget { bytes_max: 8192, registrations_max: 2 });
    let (pd, other) = (budgeted.alloc_pd().unwrap(), budgeted.alloc_pd().unwrap());
    let memory = Buffer::allocate(ByteLen(16384)).unwrap().into_span();
    let of = |at, len| MrRequest { region: memory.region(), at, len, access: Access::LOCAL_WRITE };
    let first = pd.reg_mr(of(0, 4096)).unwrap();
    let past = other.reg_mr(of(0, 4097)).map(drop).unwrap_err();
    assert_eq!(past.kind(), ErrorKind::ResourceLimit);
    assert!(past.to_string().contains("4096 of 8192 left"), "{past}");
    let second = other.reg_mr(of(4096, 1)).unwrap();
    assert!(pd.reg_mr(of(0, 1)).is_err());
    // What the device refuses costs nothing.
    drop(second);
    assert!(pd.reg_mr(of(16384, 1)).is_err());
    let used = budgeted.used();
    assert_eq!((used.bytes, used.registrations, used.refused), (4096, 1, 2));
    first.deregister().unwrap();
    assert_eq!((budgeted.used().bytes, budgeted.used().registrations), (0, 0));
    assert_eq!(device.registered(), (0, 0));
}

#[test]
fn an_lkey_of_memory_that_a_peer_may_write_is_no_rkey_of_it() {
    // On a NIC both may be one number; here nobody gets used to that.
    let keys = Arc::new(memory::Keys::default());
    let memory = Buffer::allocate(ByteLen(4096)).unwrap().into_span();
    let access = Access::LOCAL_WRITE.with(Access::REMOTE_WRITE);
    let keeps = Keeps::Memory(memory.region().clone());
    let mr = keys.register(1, MrRequest { region: memory.region(), at: 0, len: 4096, access }, keeps).unwrap();
    let (sge, remote) = (mr.sge(0, 64).unwrap(), mr.remote(0).unwrap());
    let opens = |key, used| keys.open(1, (key, used), (sge.addr, 64), access).is_some();
    assert!(opens(sge.lkey.0, memory::Use::Local) && opens(remote.rkey(), memory::Use::Remote));
    assert!(!opens(sge.lkey.0, memory::Use::Remote) && !opens(remote.rkey(), memory::Use::Local));
}

#[derive(Default)]
struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

/// A queue pair, and a peer that is a socket.
struct ByHand {
    qp: Box<dyn Qp>,
    cq: Arc<dyn Cq>,
    mr: Box<dyn Mr>,
    span: DmaSpan,
    peer: TcpStream,
}

impl ByHand {
    fn new(bytes: u64) -> Self {
        let device = EmulatedDevice::open();
        let mut listener = device.listen("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.address()).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let hello = Hello { word: Word::Request, rnr_ms: 100, private: PrivateData::empty() };
        peer.write_all(&hello.encode()).unwrap();
        let (pd, cq) = (device.alloc_pd().unwrap(), device.create_cq(8, Arc::new(Nobody)).unwrap());
        let (send_cq, recv_cq) = (Arc::clone(&cq), Arc::clone(&cq));
        let rnr_wait = Duration::from_millis(100);
        let config = QpConfig { send_cq, recv_cq, send_wr_max: 4, recv_wr_max: 4, rnr_wait };
        let mut qp = pd.create_qp(config).unwrap();
        let incoming = listener.accept(Duration::from_secs(10)).unwrap().unwrap();
        qp.accept(incoming, &PrivateData::empty()).unwrap();
        peer.read_exact(&mut [0; HELLO_BYTES]).unwrap();
        let span = Buffer::allocate(ByteLen(bytes)).unwrap().into_span();
        let (region, at) = (span.region(), span.offset());
        let mr = pd.reg_mr(MrRequest { region, at, len: bytes, access: Access::LOCAL_WRITE }).unwrap();
        Self { qp, cq, mr, span, peer }
    }

    fn post(&mut self, wr_id: u64, op: SendOp, at: u64, len: u32) {
        let sge = self.mr.sge(at, len);
        self.qp.post_send(SendWr { wr_id, op, memory: sge.into() }).unwrap();
    }

    fn ends(&self, count: usize) -> Vec<(u64, WcStatus)> {
        let (mut all, begun) = (Vec::<Wc>::with_capacity(count), wire::now());
        while all.len() < count {
            assert!(begun.elapsed() < Duration::from_secs(20), "{all:?}");
            self.cq.poll(&mut all);
            std::thread::yield_now();
        }
        all.iter().map(|wc| (wc.wr_id, wc.status)).collect()
    }

    fn frame(&mut self) -> Option<Frame> {
        let mut raw = [0; HEAD_BYTES];
        self.peer.read_exact(&mut raw).ok()?;
        Some(Frame::decode(&raw).expect("no frame"))
    }

    fn tell(&mut self, frame: Frame, payload: &[u8]) {
        self.peer.write_all(&frame.encode()).unwrap();
        self.peer.write_all(payload).unwrap();
    }
}

const NOWHERE: RemoteAddr = RemoteAddr::new(0x1000, 1);

#[test]
fn a_refusal_answers_what_was_before_it() {
    let mut hand = ByHand::new(4096);
    hand.post(1, SendOp::RdmaWrite(NOWHERE), 0, 8);
    hand.post(2, SendOp::RdmaWrite(NOWHERE), 0, 8);
    hand.post(3, SendOp::RdmaWrite(NOWHERE), 0, 8);
    for psn in 0..3 {
        assert_eq!(hand.frame().unwrap().psn, psn);
        hand.peer.read_exact(&mut [0; 8]).unwrap();
    }
    // The answer to the first is not sent any more by a peer that refuses the second meanwhile.
    hand.tell(Frame::control(Kind::Nak, 1, WcStatus::RemAccess.code()), &[]);
    assert_eq!(hand.ends(3), [(1, WcStatus::Success), (2, WcStatus::RemAccess), (3, WcStatus::WrFlush)]);
}

#[test]
fn an_answer_in_the_midst_of_a_message_ends_the_connection() {
    let mut hand = ByHand::new(4096);
    let sge = hand.mr.sge(0, 64).unwrap();
    hand.qp.post_recv(RecvWr { wr_id: 1, sge }).unwrap();
    hand.post(2, SendOp::RdmaRead(NOWHERE), 64, 64);
    assert_eq!(hand.frame().unwrap().kind, Kind::ReadRequest);
    let half = Frame { total: 64, len: 32, ..Frame::control(Kind::Send, 0, 0) };
    hand.tell(half, &[1; 32]);
    // It says to be the second half of what was read.
    hand.tell(Frame { kind: Kind::ReadResponse, at: 32, ..half }, &[2; 32]);
    assert_eq!(hand.ends(2), [(2, WcStatus::WrFlush), (1, WcStatus::WrFlush)]);
    assert_eq!(hand.qp.state(), QpState::Error);
}

#[test]
fn the_last_words_stand_behind_a_frame_and_not_in_it() {
    const BYTES: u32 = 64 << 20;
    let mut hand = ByHand::new(BYTES.into());
    hand.span.fill(0, BYTES.into(), 0x77).unwrap();
    hand.post(1, SendOp::RdmaWrite(NOWHERE), 0, BYTES);
    // It is more than sockets take, and under way.
    let mut next = hand.frame();
    hand.qp.to_error();
    let mut last = Kind::Write;
    while let Some(frame) = next {
        let mut payload = vec![0; sw_mem::index(frame.len.into())];
        hand.peer.read_exact(&mut payload).expect("a frame without its end");
        assert!(payload.iter().all(|byte| [0, 0x77].contains(byte)), "last words in a message");
        last = frame.kind;
        next = hand.frame();
    }
    assert_eq!((last, hand.ends(1)), (Kind::Disconnect, vec![(1, WcStatus::WrFlush)]));
}

#[test]
fn a_wish_that_is_dropped_is_refused_without_a_word() {
    let device = EmulatedDevice::open();
    let mut listener = device.listen("127.0.0.1:0").unwrap();
    let (pd, cq) = (device.alloc_pd().unwrap(), device.create_cq(64, Arc::new(Nobody)).unwrap());
    let rnr_wait = Duration::ZERO;
    let config = QpConfig { send_cq: Arc::clone(&cq), recv_cq: cq, send_wr_max: 4, recv_wr_max: 4, rnr_wait };
    for is_read in [true, false] {
        let (mut qp, to) = (pd.create_qp(config.clone()).unwrap(), listener.address());
        let wisher = std::thread::Builder::new()
            .spawn(move || qp.connect(&to, &PrivateData::empty(), Duration::from_secs(10)))
            .unwrap();
        let mut incoming = listener.accept(Duration::from_secs(10)).unwrap().unwrap();
        if is_read {
            incoming.request(Duration::from_secs(10)).unwrap();
        }
        drop(incoming);
        let connected = wisher.join().unwrap();
        assert_eq!(connected.unwrap(), Connected::Rejected(PrivateData::empty()), "{is_read}");
    }
}

#[test]
fn a_completion_queue_of_another_device_makes_no_queue_pair() {
    let (device, other) = (EmulatedDevice::open(), EmulatedDevice::open());
    let cq = |of: &EmulatedDevice| of.create_cq(8, Arc::new(Nobody)).unwrap();
    let config =
        |send_cq, recv_cq| QpConfig { send_cq, recv_cq, send_wr_max: 4, recv_wr_max: 4, rnr_wait: Duration::ZERO };
    let pd = device.alloc_pd().unwrap();
    assert!(pd.create_qp(config(cq(&device), cq(&device))).is_ok());
    for (send, recv) in [(&other, &device), (&device, &other)] {
        let error = pd.create_qp(config(cq(send), cq(recv))).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ApiMisuse, "{error}");
    }
}
