//! One short conversation, over a wire that knows the units: before each of them, both ways, the connection is reset, closed one way, held
//! up for a while, or for ever. What comes of it is right bytes or an error of the network's kind, in time; and the next connection is clean.
// UNSAFETY: an option of a socket, for which the standard library has no call.
#![expect(unsafe_code, reason = "a connection is reset by an option of its socket")]

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Condvar, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64},
    },
    thread,
};

use sw_nvme::{
    tcp::pdu::{self, Data, IcResp, Kind, Layout, R2t},
    wire::Completion,
};

use super::*;

/// Whose units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Host,
    Controller,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Both ends are told that it is gone, at once.
    Reset,
    /// Who would have got the unit sees the end of the stream. The other way goes on.
    HalfClose,
    /// The unit is late.
    Delay,
    /// Nothing passes any more, either way, and nobody is told.
    Hold,
}

/// Before the unit of that number, counted over all connections.
#[derive(Clone, Copy, Debug)]
struct Cut {
    what: What,
    of: Of,
    before: u64,
}

/// One connection: its two ends, and whether it still carries anything.
struct Line {
    host: TcpStream,
    controller: TcpStream,
    is_cut: AtomicBool,
}

/// See the module documentation.
struct Wire {
    at: SocketAddr,
    target: SocketAddr,
    cut: Option<Cut>,
    /// Units of the host, and of the controller.
    seen: [AtomicU64; 2],
    is_over: Mutex<bool>,
    bell: Condvar,
    lines: Mutex<Vec<Weak<Line>>>,
    /// FES and FEI of what the host ended connections with.
    terms: Mutex<Vec<(u16, u32)>>,
}

const LATE: Duration = Duration::from_millis(60);

/// A whole unit; nothing at the end of the stream.
fn unit(from: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let (mut from, mut unit) = (from, vec![0; 8]);
    if from.read(&mut unit[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut unit[1..])?;
    let len = u32::from_le_bytes(unit[4..8].try_into().unwrap());
    unit.resize(len as usize, 0);
    from.read_exact(&mut unit[8..])?;
    Ok(Some(unit))
}

/// Closing it tells the other end at once, whatever is on its way.
fn end_by_reset(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let bytes = libc::socklen_t::try_from(size_of::<libc::linger>()).unwrap();
    // SAFETY: the option is a live local of that many bytes, and the descriptor is the stream's.
    let set = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), bytes)
    };
    assert_eq!(set, 0);
    // Whoever reads from it lets go of it then.
    let _ = stream.shutdown(Shutdown::Read);
}

impl Wire {
    fn new(target: SocketAddr, cut: Option<Cut>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Arc::new(Self {
            at: listener.local_addr().unwrap(),
            target,
            cut,
            seen: Default::default(),
            is_over: Mutex::new(false),
            bell: Condvar::new(),
            lines: Mutex::default(),
            terms: Mutex::default(),
        });
        let listening = wire.clone();
        thread::Builder::new().spawn(move || listening.listen(&listener)).unwrap();
        wire
    }

    fn listen(self: Arc<Self>, listener: &TcpListener) {
        while let (Ok((host, _)), Ok(controller)) = (listener.accept(), TcpStream::connect(self.target)) {
            host.set_nodelay(true).unwrap();
            controller.set_nodelay(true).unwrap();
            let line = Arc::new(Line { host, controller, is_cut: AtomicBool::new(false) });
            self.lines.lock().unwrap().push(Arc::downgrade(&line));
            if *self.is_over.lock().unwrap() {
                return;
            }
            for of in [Of::Host, Of::Controller] {
                let (wire, line) = (self.clone(), line.clone());
                thread::Builder::new().spawn(move || wire.pass(&line, of)).unwrap();
            }
        }
    }

    /// Passes units on until there are no more.
    fn pass(&self, line: &Line, of: Of) {
        let (from, mut to) = match of {
            Of::Host => (&line.host, &line.controller),
            Of::Controller => (&line.controller, &line.host),
        };
        while let Ok(Some(unit)) = unit(from) {
            if unit[0] == Kind::H2cTerm as u8 {
                self.terms.lock().unwrap().push(pdu::terminated(&unit));
            }
            let number = self.seen[of as usize].fetch_add(1, Ordering::AcqRel);
            let cut = self.cut.filter(|cut| cut.of == of && cut.before == number);
            match cut.map(|cut| cut.what) {
                Some(What::Reset) => {
                    line.is_cut.store(true, Ordering::Release);
                    end_by_reset(from);
                    end_by_reset(to);
                }
                Some(What::HalfClose) => {
                    let _ = to.shutdown(Shutdown::Write);
                    while let Ok(Some(_)) = self::unit(from) {}
                    return;
                }
                Some(What::Delay) => lost::nap(u64::try_from(LATE.as_millis()).unwrap()),
                Some(What::Hold) => line.is_cut.store(true, Ordering::Release),
                None => {}
            }
            if line.is_cut.load(Ordering::Acquire) {
                if self.cut.is_some_and(|cut| cut.what == What::Hold) {
                    drop(self.bell.wait_while(self.is_over.lock().unwrap(), |is_over| !*is_over));
                }
                return;
            }
            if to.write_all(&unit).is_err() {
                break;
            }
        }
        if !line.is_cut.load(Ordering::Acquire) {
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    fn count(&self, of: Of) -> u64 {
        self.seen[of as usize].load(Ordering::Acquire)
    }

    /// Ends all threads of it.
    fn end(&self) {
        *self.is_over.lock().unwrap() = true;
        self.bell.notify_all();
        for line in self.lines.lock().unwrap().iter().filter_map(Weak::upgrade) {
            let _ = (line.host.shutdown(Shutdown::Both), line.controller.shutdown(Shutdown::Both));
        }
        drop(TcpStream::connect(self.at));
    }
}

/// How long anything may take, on a machine that has other things to do.
const WITHIN: Duration = Duration::from_secs(15);
const READ_BLOCKS: u64 = 4;
const CAPSULE_AT: u64 = 100;
const R2T_AT: u64 = 200;

/// The host's end of a run.
struct Run {
    cut: Option<Cut>,
    rig: Rig,
    object: Object,
    transport: TcpTransport,
    number: u64,
}

impl Run {
    fn once(&mut self, kind: IoKind, at: u64, memory: &DmaSpan) -> Result<u32, Fault> {
        self.number += 1;
        let mut io = io(&self.object, kind, at * BLOCK, memory, self.number);
        if kind == IoKind::FlushData {
            (io.offset, io.len, io.segment_count) = (0, 0, 0);
        }
        assert_eq!(self.transport.submit(&io), Submit::Accepted);
        let end = ends(&mut self.transport, 1, WITHIN).remove(0);
        if let Err(fault) = end.result {
            assert_eq!(fault.kind, ErrorKind::Io, "{:?}: {kind:?}: {fault:?}", self.cut);
            assert!(self.cut.is_some_and(|cut| cut.what != What::Delay), "{:?}: {kind:?}: {fault:?}", self.cut);
        }
        end.result
    }

    /// As the engine does: what may be asked for again at once is.
    fn again(&mut self, kind: IoKind, at: u64, memory: &DmaSpan) -> Result<u32, Fault> {
        let start = now();
        loop {
            let result = self.once(kind, at, memory);
            assert!(now().since(start) < WITHIN, "{:?}: {kind:?}: {result:?}", self.cut);
            match result {
                Err(fault) if fault.retry == Retry::Now => {}
                end => return end,
            }
        }
    }

    /// What lies there, which must be had.
    fn read(&mut self, at: u64, blocks: u64) -> Vec<u8> {
        let memory = span(blocks * BLOCK, 0xEE);
        let whole = u32::try_from(blocks * BLOCK).unwrap();
        assert_eq!(self.again(IoKind::Read, at, &memory), Ok(whole), "{:?}", self.cut);
        let mut bytes = vec![0; whole as usize];
        memory.read(0, &mut bytes).unwrap();
        bytes
    }

    /// Writes `byte` over zeroes; what lies there then is as the answer said.
    fn write(&mut self, at: u64, blocks: u64, byte: u8) -> bool {
        let result = self.again(IoKind::Write, at, &span(blocks * BLOCK, byte));
        let there = self.read(at, blocks);
        let is_whole = there.iter().all(|found| *found == byte);
        match result {
            Ok(bytes) => assert!(u64::from(bytes) == blocks * BLOCK && is_whole, "{:?}", self.cut),
            // Unknown: each of its blocks is the old one or the new one.
            Err(fault) => {
                assert_eq!(fault.retry, Retry::Never, "{:?}", self.cut);
                let is_one = |block: &[u8]| [0, byte].contains(&block[0]) && block.iter().all(|it| *it == block[0]);
                assert!(there.chunks(usize::try_from(BLOCK).unwrap()).all(is_one), "{:?}", self.cut);
            }
        }
        result.is_ok()
    }
}

/// What came of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Came {
    host_units: u64,
    controller_units: u64,
    refused: u64,
    unknown: u64,
    /// It had fewer units than the clean one: a controller that is closed while its attendant waits for an answer is not told.
    missed: u64,
}

fn host() -> ControllerConfig {
    ControllerConfig {
        keep_alive: Duration::from_millis(500),
        timeout: Duration::from_millis(700),
        association_timeout: Duration::from_millis(1500),
        depth: 4,
        ..ControllerConfig::default()
    }
}

/// The conversation: an association, a read, a write in its capsule, a flush, a write by R2T.
fn converse(cut: Option<Cut>) -> Came {
    let config = TargetConfig {
        namespaces: vec![Backing::Memory(4 << 20)],
        r2t_bytes_max: 16384,
        h2c_bytes_max: 8192,
        c2h_bytes_max: 8192,
        ..own()
    };
    let subsystem = config.subsystem.clone();
    let target = Target::start(config).unwrap();
    let wire = Wire::new(target.address(), cut);
    let address = Address { host: wire.at.ip().to_string(), port: wire.at.port(), subsystem };
    let start = now();
    let opened = Controller::open(address, identity(), host());
    assert!(now().since(start) < WITHIN, "{cut:?}");
    let mut came = Came::default();
    match opened {
        Err(error) => {
            let kinds = [ErrorKind::Io, ErrorKind::NoDevice, ErrorKind::DeadlineExceeded];
            assert!(kinds.contains(&error.kind()), "{cut:?}: {error}");
            assert!(cut.is_some_and(|cut| cut.what != What::Delay), "{cut:?}: {error}");
            came.refused = 1;
        }
        Ok(controller) => came.unknown = through(controller, cut),
    }
    (came.host_units, came.controller_units) = (wire.count(Of::Host), wire.count(Of::Controller));
    wire.end();
    came
}

/// The conversation by an association; how many writes are of unknown outcome.
fn through(controller: Arc<Controller>, cut: Option<Cut>) -> u64 {
    let rig = Rig::of(controller, &Arc::default());
    let config = TcpConfig { command_timeout: Duration::from_millis(700), ..TcpConfig::default() };
    let (object, transport) = (rig.object(), rig.transport(config));
    let mut run = Run { cut, rig, object, transport, number: 0 };
    assert!(run.read(0, READ_BLOCKS).iter().all(|byte| *byte == 0), "{cut:?}");
    let capsule = run.write(CAPSULE_AT, 1, 1);
    // Of a flush that was under way nobody knows either; the caller asks once more.
    let flushed = (0..2).find_map(|_| run.again(IoKind::FlushData, 0, &span(BLOCK, 0)).ok());
    assert!(flushed.is_some(), "{cut:?}");
    let wished = run.write(R2T_AT, 8, 2);
    let Run { rig, transport, .. } = run;
    drop(transport);
    let start = now();
    drop(rig);
    assert!(now().since(start) < WITHIN, "{cut:?}");
    u64::from(!capsule) + u64::from(!wished)
}

/// Threads that have a run each: most of one is waiting.
const AT_A_TIME: usize = 24;

#[test]
fn a_conversation_that_is_cut_before_any_unit_comes_to_right_bytes_or_an_error_in_time() {
    let clean = converse(None);
    assert_eq!((clean.refused, clean.unknown), (0, 0));
    assert!(clean.host_units >= 25 && clean.controller_units >= 27, "{clean:?}");
    let of = [(Of::Host, clean.host_units), (Of::Controller, clean.controller_units)];
    let kinds = [What::Reset, What::HalfClose, What::Delay, What::Hold];
    let cuts = kinds.iter().flat_map(|what| {
        of.iter().flat_map(|(of, count)| (0..*count).map(|before| Cut { what: *what, of: *of, before }))
    });
    let cuts = Mutex::new(cuts.collect::<Vec<_>>());
    let (sum, runs) = (Mutex::new(Came::default()), cuts.lock().unwrap().len());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let Some(cut) = cuts.lock().unwrap().pop() else { return };
                    let came = converse(Some(cut));
                    let seen = [came.host_units, came.controller_units][cut.of as usize];
                    let mut sum = sum.lock().unwrap();
                    sum.missed += u64::from(seen <= cut.before);
                    (sum.refused, sum.unknown) = (sum.refused + came.refused, sum.unknown + came.unknown);
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap();
    println!("{runs} runs, {sum:?}");
    assert!(runs >= 200 && sum.refused > 30 && sum.unknown > 10 && sum.missed < 8, "{runs}, {sum:?}");
}

/// What the host says last to a target that answers Connect with what `lie` makes of its identifier, and what the caller is told.
fn last_word(lie: impl FnOnce(u16) -> Vec<u8> + Send + 'static) -> (Vec<u8>, ErrorKind) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap();
    let thread = thread::Builder::new().spawn(move || {
        let (mut host, _) = server.accept().unwrap();
        unit(&host).unwrap();
        let initialize = IcResp { format: 0, alignment: 0, digests: Digests::default(), h2c_bytes_max: 4096 };
        host.write_all(initialize.encode().as_bytes()).unwrap();
        let connect = pdu::command(&unit(&host).unwrap().unwrap());
        host.write_all(&lie(connect.cid())).unwrap();
        let mut rest = Vec::new();
        host.read_to_end(&mut rest).unwrap();
        rest
    });
    let address = Address { host: at.ip().to_string(), port: at.port(), subsystem: own().subsystem };
    let error = Controller::open(address, identity(), ControllerConfig::default()).map(drop).unwrap_err();
    (thread.unwrap().join().unwrap(), error.kind())
}

#[test]
fn a_peer_that_lies_is_told_which_rule_it_broke_and_in_which_field() {
    let answer = |cid| {
        let mut raw = [0; 16];
        raw[12..14].copy_from_slice(&u16::to_le_bytes(cid));
        Layout::default().response(&Completion::new(raw)).as_bytes().to_vec()
    };
    let other = move |at: usize, byte: u8| -> Box<dyn FnOnce(u16) -> Vec<u8> + Send> {
        Box::new(move |cid| {
            let mut unit = answer(cid);
            unit[at] = byte;
            unit
        })
    };
    let of = |cid| Data { cid, at: 0, bytes: 4 };
    let lies: [(_, (u16, u32)); 9] = [
        // Of the header: the type, a digest that was not agreed on, HLEN, PLEN below and above its parts.
        (other(0, 8), (1, 0)),
        (other(1, pdu::flags::HEADER_DIGEST), (1, 1)),
        (other(2, 16), (1, 2)),
        (other(4, 20), (1, 4)),
        (other(4, 28), (1, 4)),
        // CCCID: of no command; data, and a wish for data, of one that has none.
        (Box::new(move |cid| answer(cid ^ 1 << 10)), (1, 8)),
        (Box::new(move |cid| Layout::default().controller_data(of(cid), 0).as_bytes().to_vec()), (1, 8)),
        (Box::new(|cid| Layout::default().ready(R2t { cid, tag: 0, at: 0, bytes: 4 }).as_bytes().to_vec()), (1, 8)),
        // What a host sends.
        (Box::new(move |cid| Layout::default().host_data(of(cid), 0, 0).as_bytes().to_vec()), (2, 0)),
    ];
    for (number, (lie, why)) in lies.into_iter().enumerate() {
        let (said, kind) = last_word(lie);
        assert_eq!(
            (said.len(), said.first(), kind),
            (24, Some(&(Kind::H2cTerm as u8)), ErrorKind::Protocol),
            "{number}"
        );
        assert_eq!(pdu::terminated(&said), why, "{number}");
    }
}

#[test]
fn a_target_that_lies_on_a_queue_is_told_which_rule_it_broke() {
    for (wrong, kind, why) in [
        (Wrong::UnknownCid, IoKind::Read, (1, 8)),
        (Wrong::WrongHeaderDigest, IoKind::Read, (3, 0)),
        (Wrong::WrongOffset, IoKind::Read, (4, 0)),
        (Wrong::R2tOutOfRange, IoKind::Write, (4, 0)),
    ] {
        let faults = move |seen: &Seen| (seen.qid > 0 && seen.opcode != sw_nvme::fabrics::OPCODE).then_some(wrong);
        let config = TargetConfig { faults: Some(Arc::new(faults)), ..own() };
        let subsystem = config.subsystem.clone();
        let target = Target::start(config).unwrap();
        let wire = Wire::new(target.address(), None);
        let address = Address { host: wire.at.ip().to_string(), port: wire.at.port(), subsystem };
        let host = ControllerConfig { digests: BOTH, ..ControllerConfig::default() };
        let rig = Rig::of(Controller::open(address, identity(), host).unwrap(), &Arc::default());
        let (object, mut transport) = (rig.object(), rig.transport(TcpConfig::default()));
        transport.submit(&io(&object, kind, 0, &span(16 * BLOCK, 0), 1));
        let end = ends(&mut transport, 1, SOON).remove(0);
        assert_eq!(end.result, Err(Fault::new(ErrorKind::Protocol, 0)), "{wrong:?}");
        assert!((0..100).any(|_| !wire.terms.lock().unwrap().is_empty() || (lost::nap(20), false).1), "{wrong:?}");
        assert_eq!(*wire.terms.lock().unwrap(), [why], "{wrong:?}");
        drop((transport, rig));
        wire.end();
    }
}
