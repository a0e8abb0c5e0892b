//! What the fuzz target `rdma_target` does with its bytes. Used by the libFuzzer target here and by the bounded run in the tree
//! (`straightway/tests/rdma/hostile.rs`), so that both check the same things. It returns a word for what came out.
//!
//! ```text
//!   raw: [stage] then steps of 16 bytes ─► capsules that are almost right, with data behind them or by key ─► emulated NIC ─► the target
//!                                                                 what it answers, and what it wrote ◄─┘
//! ```
//!
//! Whatever a host says, on the admin queue and on an I/O queue:
//! - no thread of the target panics, and each command is answered once or its connection ends, but for event requests;
//! - answers have 16 bytes and name a command that was sent;
//! - nothing of the host's memory changes but the bytes that the command gave.

use std::{
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use sw_engine::seam::{
    Wake,
    verbs::{
        Access, Connected, Cq, Device, Mr, MrRequest, Pd, PrivateData, Qp, QpConfig, RecvWr, SendOp, SendWr, Wc,
        WcKind, WcStatus,
    },
};
use sw_mem::{Buffer, ByteLen, DmaSpan, RemoteAddr};
use sw_net::target::{Backing, Target, TargetConfig};
use sw_nvme::{
    fabrics::{ANY_CONTROLLER, CONNECT_DATA_BYTES, ConnectData, Nqn, QueueRequest},
    rdma::{
        capsule::{self, COMMAND_BYTES, KeyEnd, Keyed, RESPONSE_BYTES, Source},
        cm::Request,
    },
    wire::{Command, Completion, regs},
};
use sw_verbs::emulated::EmulatedDevice;

/// Bytes of one step.
const STEP_BYTES: usize = 16;
/// Steps of one input at most: fewer than the queue has entries, so that event requests that are held fill nothing.
const STEPS_MAX: usize = 20;
/// How long the target may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// Entries of the host's queues.
const ENTRIES: u16 = 32;
/// Places for answers.
const PLACES: u64 = 16;
/// Where the capsule lies in the host's memory; before it the answers do.
const CAPSULE: u64 = 4 << 10;
/// Where that begins which the target may reach, and its bytes.
const OPEN: u64 = 16 << 10;
const OPEN_BYTES: u64 = 24 << 10;
/// Where data of commands begins in it; before it and behind it nothing may change.
const DATA: u64 = 4 << 10;
const MEMORY: u64 = OPEN + OPEN_BYTES;
const POISON: u8 = 0xA5;
/// An event request.
const ASYNC_EVENT: u8 = 0x0C;
const FABRICS: u8 = 0x7F;

fn served() -> &'static Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let config = TargetConfig {
            namespaces: vec![Backing::Memory(1 << 20)],
            mdts: 1,
            queue_entries: ENTRIES,
            block_bytes: 512,
            ..TargetConfig::default()
        };
        Target::start_rdma(config, EmulatedDevice::open()).expect("a target on the loopback")
    })
}

/// Panics of the target's threads so far: they are caught where they are joined.
pub fn panics() -> u64 {
    served().counters().panics
}

/// How far the host came in good order before it sends the input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked,
    Connected,
    Enabled,
    Io,
}

/// A wake that is kept until it is waited for.
#[derive(Default)]
struct Bell {
    is_rung: Mutex<bool>,
    told: Condvar,
}

impl Wake for Bell {
    fn wake(&self) {
        *self.is_rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }
}

impl Bell {
    fn wait(&self) {
        let rung = self.is_rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.told.wait_timeout_while(rung, PATIENCE, |rung| !*rung);
        let (mut rung, end) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!end.timed_out(), "the target neither answers nor ends the connection");
        *rung = false;
    }
}

/// The connection is over.
struct Over;

/// A host's end of one queue.
struct Hand {
    qp: Box<dyn Qp>,
    cq: Arc<dyn Cq>,
    bell: Arc<Bell>,
    own: Box<dyn Mr>,
    pd: Arc<dyn Pd>,
    span: DmaSpan,
    /// Commands without an answer, by their identifier.
    sent: Vec<u16>,
    /// Receives that were not looked at.
    arrived: Vec<Wc>,
    stage: Stage,
}

/// Takes the bytes for what a host sends.
pub fn rdma_target(raw: &[u8]) -> &'static str {
    let [shape, steps @ ..] = raw else { return "short" };
    let stage = match shape % 8 {
        0 => Stage::Asked,
        1 => Stage::Connected,
        2..=3 => Stage::Enabled,
        _ => Stage::Io,
    };
    let (mut hand, _admin) = Hand::at(stage);
    let mut word = "nothing";
    for step in steps.chunks(STEP_BYTES).take(STEPS_MAX) {
        let mut whole = [0; STEP_BYTES];
        whole[..step.len()].copy_from_slice(step);
        match hand.step(&whole) {
            Ok("refused") if word == "success" => {}
            Ok(told) => word = told,
            Err(Over) => return "ended",
        }
    }
    word
}

impl Hand {
    /// A host that came so far; with the admin queue of its controller if this is an I/O queue.
    fn at(stage: Stage) -> (Self, Option<Self>) {
        let admin = match stage {
            Stage::Io => Some(Self::connected(0, ANY_CONTROLLER)),
            _ => None,
        };
        let admin = admin.map(|(mut hand, controller)| {
            hand.enable();
            (hand, controller)
        });
        let hand = match (stage, &admin) {
            (Stage::Asked, _) => Self::asked(0, ANY_CONTROLLER),
            (_, Some((_, controller))) => Self::connected(1, *controller).0,
            _ => Self::connected(0, ANY_CONTROLLER).0,
        };
        let mut hand = Self { stage, ..hand };
        if stage == Stage::Enabled {
            hand.enable();
        }
        (hand, admin.map(|(admin, _)| admin))
    }

    /// One whose queue pair is connected.
    fn asked(qid: u16, controller: u16) -> Self {
        let device = EmulatedDevice::open();
        let pd = device.alloc_pd().expect("a domain");
        let bell = Arc::new(Bell::default());
        let cq = device.create_cq(64, Arc::clone(&bell) as Arc<dyn Wake>).expect("a queue");
        let (send_cq, recv_cq) = (Arc::clone(&cq), Arc::clone(&cq));
        let config = QpConfig { send_cq, recv_cq, send_wr_max: 4, recv_wr_max: 16, rnr_wait: PATIENCE };
        let qp = pd.create_qp(config).expect("a queue pair");
        let span = Buffer::allocate(ByteLen(MEMORY)).expect("memory").into_span();
        let own = MrRequest { region: span.region(), at: span.offset(), len: OPEN, access: Access::LOCAL_WRITE };
        let own = pd.reg_mr(own).expect("a registration");
        let mut hand = Self { qp, cq, bell, own, pd, span, sent: Vec::new(), arrived: Vec::new(), stage: Stage::Asked };
        (0..PLACES).for_each(|place| hand.receive(place));
        let wish = Request { qid, receive_entries: ENTRIES, send_entries: ENTRIES, controller };
        let private = PrivateData::new(&wish.encode()).expect("private data");
        let to = served().address().to_string();
        let answer = hand.qp.connect(&to, &private, PATIENCE).expect("a connection");
        assert!(matches!(answer, Connected::Accepted(_)), "{answer:?}");
        hand
    }

    /// One behind a Connect that went well; the controller.
    fn connected(qid: u16, controller: u16) -> (Self, u16) {
        let mut hand = Self::asked(qid, controller);
        let name = |text: &str| Nqn::new(text).expect("a name");
        let data = ConnectData {
            host_id: [7; 16],
            controller,
            subsystem: name("nqn.2026-11.io.straightway:target"),
            host: name("nqn.2026-11.io.straightway:fuzz"),
        };
        let request = QueueRequest { qid, entries: ENTRIES, keep_alive_ms: 0 };
        let controller = hand.good(&Command::connect(request), &data.encode());
        (hand, controller as u16)
    }

    fn enable(&mut self) {
        self.good(&Command::property_set(regs::CC, 0x46_0001), &[]);
    }

    /// Runs a command in good order; dword 0 of its completion.
    fn good(&mut self, command: &Command, data: &[u8]) -> u32 {
        let open = self.open();
        self.span.write(OPEN + DATA, data).expect("room");
        let at = open.remote(DATA).expect("a key");
        let keyed = Keyed { at, bytes: data.len() as u32, end: KeyEnd::Kept };
        let source = if data.is_empty() { Source::Nothing } else { Source::Keyed(keyed) };
        let raw = capsule::encode(command, 0xFFFE, source).expect("a short command");
        let answer = self.send(&raw).and_then(|()| self.answer(0xFFFE));
        let Ok(completion) = answer else { panic!("the connection ends in good order") };
        assert!(completion.status().is_success(), "{completion:?}");
        completion.dw0()
    }

    /// Opens the data to the target.
    fn open(&self) -> Box<dyn Mr> {
        let access = Access::LOCAL_WRITE.with(Access::REMOTE_READ).with(Access::REMOTE_WRITE);
        let at = self.span.offset() + OPEN;
        let memory = MrRequest { region: self.span.region(), at, len: OPEN_BYTES, access };
        self.pd.reg_mr(memory).expect("a registration")
    }

    fn receive(&mut self, place: u64) {
        let sge = self.own.sge(place * 64, 64).expect("a place");
        self.qp.post_recv(RecvWr { wr_id: place, sge }).expect("room for a receive");
    }

    /// Sends a capsule, and waits until it has gone.
    fn send(&mut self, bytes: &[u8]) -> Result<(), Over> {
        self.span.write(CAPSULE, bytes).expect("room");
        let memory = self.own.sge(CAPSULE, bytes.len() as u32).into();
        let wr = SendWr { wr_id: 99, op: SendOp::Send, memory };
        self.qp.post_send(wr).map_err(|_| Over)?;
        while self.next()?.kind != WcKind::Send {}
        Ok(())
    }

    /// The next completion; receives are kept.
    fn next(&mut self) -> Result<Wc, Over> {
        let mut one = Vec::with_capacity(1);
        loop {
            self.cq.arm().map_err(|_| Over)?;
            if self.cq.poll(&mut one) == 0 {
                self.bell.wait();
                continue;
            }
            let wc = one[0];
            if wc.status != WcStatus::Success {
                return Err(Over);
            }
            if wc.kind == WcKind::Recv {
                self.arrived.push(wc);
            }
            return Ok(wc);
        }
    }

    /// Waits for the answer to a command.
    fn answer(&mut self, cid: u16) -> Result<Completion, Over> {
        self.sent.push(cid);
        loop {
            while self.arrived.is_empty() {
                self.next()?;
            }
            let wc = self.arrived.remove(0);
            assert_eq!(wc.byte_len as usize, RESPONSE_BYTES, "an answer is one completion");
            let mut raw = [0; RESPONSE_BYTES];
            self.span.read(wc.wr_id * 64, &mut raw).expect("a place");
            self.receive(wc.wr_id);
            let completion = Completion::new(raw);
            let known = self.sent.iter().position(|sent| *sent == completion.cid());
            self.sent.remove(known.expect("an answer to a command that was not sent, or a second one"));
            if completion.cid() == cid {
                return Ok(completion);
            }
        }
    }

    /// Sends what a step says, almost right, and looks at what comes of it.
    fn step(&mut self, step: &[u8; STEP_BYTES]) -> Result<&'static str, Over> {
        let open = self.open();
        let made = made(step, open.remote(DATA).expect("a key"), self.stage);
        self.span.fill(OPEN, OPEN_BYTES, POISON).expect("room");
        self.send(&made.bytes)?;
        if made.bytes.first() == Some(&ASYNC_EVENT) {
            self.sent.push(made.cid);
            return Ok("held");
        }
        let completion = self.answer(made.cid)?;
        drop(open);
        if let Some((at, bytes)) = made.gives {
            let mut all = vec![0; OPEN_BYTES as usize];
            self.span.read(OPEN, &mut all).expect("room");
            let given = at..at + bytes;
            let other = |(at, byte): (usize, &u8)| *byte != POISON && !given.contains(&(at as u64));
            assert!(!all.iter().enumerate().any(other), "bytes changed that the command did not give");
        }
        Ok(if completion.status().is_success() { "success" } else { "refused" })
    }
}

/// A capsule to be sent.
struct Made {
    bytes: Vec<u8>,
    cid: u16,
    /// What of the open memory the command gives, from where and how much; `None` if it may be anything.
    gives: Option<(u64, u64)>,
}

fn made(step: &[u8; STEP_BYTES], data: RemoteAddr, stage: Stage) -> Made {
    let [kind, twist, _, opcode, ..] = *step;
    let word = |at: usize| u16::from_le_bytes([step[at], step[at + 1]]);
    let known = match stage {
        Stage::Io => [0x01, 0x02, 0x01, 0x02, 0x01, 0x02, 0x00, FABRICS],
        _ => [0x06, 0x06, 0x06, FABRICS, FABRICS, 0x02, 0x0A, ASYNC_EVENT],
    };
    let mut raw = [0; COMMAND_BYTES];
    raw[0] = if kind % 8 == 0 { opcode } else { known[usize::from(opcode % 8)] };
    let cid = word(4) % 8;
    raw[1] = if twist & 1 == 0 { 0x40 } else { step[6] };
    raw[2..4].copy_from_slice(&cid.to_le_bytes());
    raw[4] = if raw[0] == FABRICS { opcode >> 4 } else { 1 };
    let blocks_z = u16::from(opcode >> 3) % 16;
    let bytes = match raw[0] {
        0x06 => 4096,
        FABRICS => CONNECT_DATA_BYTES as u32,
        _ => 512 * (u32::from(blocks_z) + 1),
    };
    let bytes = if twist & 2 == 0 { bytes } else { u32::from(word(8)) };
    let (behind, gives) = place(step, bytes, &mut raw, data);
    // Dwords 10 to 12: SLBA and NLB, CNS, a property.
    let low = if twist & 0x20 != 0 { word(10) } else { word(10) % if raw[0] == 0x06 { 4 } else { 2048 } };
    raw[40..42].copy_from_slice(&low.to_le_bytes());
    raw[42] = if twist & 0x40 == 0 { 0 } else { step[12] };
    raw[44] = if raw[0] == FABRICS { step[13] } else { 0 };
    raw[48..50].copy_from_slice(&blocks_z.to_le_bytes());
    raw[63] = if twist & 0x80 == 0 { 0 } else { step[14] };
    let mut capsule = raw.to_vec();
    capsule.resize(COMMAND_BYTES + usize::from(behind), opcode);
    // Cut short, seldom.
    if kind & 0xF8 == 0xF8 {
        capsule.truncate(usize::from(step[15]) % COMMAND_BYTES);
    }
    Made { bytes: capsule, cid, gives }
}

/// Says where the data of a command lies: how much of it is behind the command, and what of the open memory it gives.
fn place(
    step: &[u8; STEP_BYTES],
    bytes: u32,
    raw: &mut [u8; COMMAND_BYTES],
    data: RemoteAddr,
) -> (u16, Option<(u64, u64)>) {
    let [_, twist, flip, ..] = *step;
    let (word, shift) = (u16::from_le_bytes([step[8], step[9]]), u64::from(step[7] % 16) * 8);
    match twist >> 2 & 7 {
        // As much as is said, or not.
        5 | 6 => {
            raw[32..36].copy_from_slice(&bytes.to_le_bytes());
            raw[39] = 0x01;
            raw[24] = if flip & 0x30 == 0x30 { step[7] } else { 0 };
            let behind = if flip & 0xC0 == 0xC0 { word } else { bytes as u16 };
            (behind % 9000, Some((0, 0)))
        }
        7 => {
            raw[39] = step[7];
            (0, Some((0, 0)))
        }
        _ => {
            let wild = flip & 0xF0 == 0xF0;
            let addr = if wild { u64::from(word) << (flip & 15) } else { data.addr + shift };
            raw[24..32].copy_from_slice(&addr.to_le_bytes());
            raw[32..35].copy_from_slice(&bytes.to_le_bytes()[..3]);
            raw[35..39].copy_from_slice(&(data.rkey() ^ u32::from(flip & 0xE0 == 0xE0)).to_le_bytes());
            raw[39] = if step[6] & 1 == 0 { 0x40 } else { 0x4F };
            (0, (!wild).then_some((DATA + shift, u64::from(bytes))))
        }
    }
}
