//! NFS version 3 against a server of this process: one that is made by hand and does what servers should not, and one that is not ours
//! (`nfs3_server`), with its portmapper.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nfs3_server::{
    memfs::{MemFs, MemFsConfig},
    tcp::{NFSTcp, NFSTcpListener},
};
use sw_engine::{
    Error, ErrorKind, Object, WriteOutcome,
    seam::{EntryKind, Io, IoKind, MemorySegment, Names, OpenMode, Store, Submit, Transport, Wait},
};
use sw_mem::{Buffer, ByteLen};
use sw_remote::{
    Context, RemoteConfig, Runtime, System,
    nfs::{NFS, NfsConfig, NfsStores},
};
use sw_testkit::pattern;

use crate::client::{put, read, write};

const LEN: usize = (3 << 20) + 17;
const FILE: &str = "nfs://127.0.0.1/file";
const NEW: &str = "nfs://127.0.0.1/new";

/// What the server does that it should not, or seldom does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Odd {
    #[default]
    Nothing,
    /// Says JUKEBOX to so many READs and WRITEs.
    Jukebox(u32),
    /// Reads and writes so many bytes at a time.
    Short(u32),
    /// Tells nothing of the file with its bytes.
    Untold,
    /// The handle of the file is another one, and the old one is stale.
    Moved,
    /// As that, and the file is another.
    Replaced,
    /// The file is another one from the so-many-th READ on.
    ChangesAfter(u32),
    /// Ends the file before its length.
    EarlyEnd,
    /// Sends so many bytes more than were asked for, and says so.
    Surplus(u32),
    /// Says another length than it sends.
    Lies(u32),
    /// Sends records in fragments of so many bytes.
    Fragments(usize),
    /// Answers no READ.
    Silent,
    /// Answers with a number that nobody used, and then as it should.
    Stranger,
    /// Changes some bytes of every so-many-th answer, by a seed.
    Garbles(u64),
    /// Has lost what is not committed when the COMMIT comes.
    Loses,
    /// Says that it has no room.
    Full,
    /// Loses the answer to the next call of this procedure, which it has done.
    LosesAnswer(u32),
    /// Lists names that cannot be.
    WrongNames,
    /// Lists a page that leads to itself.
    Circle,
    /// Fragments without an end, all empty.
    Endless,
}

#[derive(Default)]
struct State {
    odd: Odd,
    reads: u32,
    generation: u32,
    new: Vec<u8>,
    is_there: bool,
    verifier: u64,
    seed: u64,
}

/// The server.
struct Peer {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct Xdr(Vec<u8>);

impl Xdr {
    fn word(mut self, word: u32) -> Self {
        self.0.extend(word.to_be_bytes());
        self
    }

    fn long(mut self, long: u64) -> Self {
        self.0.extend(long.to_be_bytes());
        self
    }

    fn opaque(self, bytes: &[u8]) -> Self {
        let mut made = self.word(u32::try_from(bytes.len()).unwrap());
        made.0.extend(bytes);
        made.0.resize(made.0.len().next_multiple_of(4), 0);
        made
    }

    /// Attributes: a file or a directory.
    fn facts(self, kind: u32, id: u64, len: u64, generation: u32) -> Self {
        let made = self.word(kind).word(0o644).word(1).word(0).word(0).long(len).long(len).long(0).long(7).long(id);
        made.word(1).word(1).word(2).word(generation).word(3).word(generation)
    }
}

/// Takes words and bytes from the front.
struct Args<'a>(&'a [u8]);

impl<'a> Args<'a> {
    fn word(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().unwrap())
    }

    fn long(&mut self) -> u64 {
        u64::from(self.word()) << 32 | u64::from(self.word())
    }

    fn index(&mut self) -> usize {
        usize::try_from(self.long()).unwrap()
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes
    }

    fn opaque(&mut self) -> &'a [u8] {
        let len = self.word() as usize;
        &self.bytes(len.next_multiple_of(4))[..len]
    }
}

impl State {
    fn file(&self) -> Vec<u8> {
        format!("file{}", self.generation).into_bytes()
    }

    fn facts_of(&self, xdr: Xdr, handle: &[u8]) -> Xdr {
        match handle {
            b"root" => xdr.facts(2, 1, 4096, 0),
            b"new" => xdr.facts(1, 9, self.new.len() as u64, 0),
            _ => xdr.facts(1, 5, LEN as u64, if self.odd == Odd::Replaced { 1 } else { 0 }),
        }
    }

    fn look_up(&self, name: &[u8]) -> Xdr {
        let handle = match name {
            b"file" => self.file(),
            b"new" if self.is_there => b"new".to_vec(),
            name if name.starts_with(b".new.") && !self.is_there => b"new".to_vec(),
            _ => return Xdr::default().word(2).word(0),
        };
        self.facts_of(Xdr::default().word(0).opaque(&handle).word(1), &handle).word(0)
    }

    fn read(&mut self, args: &mut Args<'_>) -> Xdr {
        let (handle, offset, count) = (args.opaque().to_vec(), args.long(), args.word());
        self.reads += 1;
        if handle != self.file() {
            return Xdr::default().word(70).word(0);
        }
        if let Odd::Jukebox(left @ 1..) = self.odd {
            self.odd = Odd::Jukebox(left - 1);
            return Xdr::default().word(10008).word(0);
        }
        let most = match self.odd {
            Odd::Short(most) => most.min(count),
            Odd::Surplus(more) => count + more,
            _ => count,
        };
        let left = LEN as u64 - offset;
        let len = if matches!(self.odd, Odd::Surplus(_)) { most } else { most.min(u32::try_from(left).unwrap()) };
        let bytes = pattern::bytes(1, offset, len as usize);
        let changed = matches!(self.odd, Odd::ChangesAfter(after) if self.reads > after);
        let xdr = match self.odd {
            Odd::Untold => Xdr::default().word(0).word(0),
            _ => Xdr::default().word(0).word(1).facts(1, 5, LEN as u64, u32::from(changed)),
        };
        let end = self.odd == Odd::EarlyEnd || u64::from(len) == left;
        let xdr = xdr.word(len).word(u32::from(end));
        match self.odd {
            Odd::Lies(len) => Xdr([xdr.word(len).0, bytes].concat()),
            _ => xdr.opaque(&bytes),
        }
    }

    fn write(&mut self, args: &mut Args<'_>) -> Xdr {
        let (_handle, offset, _count, how) = (args.opaque(), args.index(), args.word(), args.word());
        let bytes = args.opaque();
        if let Odd::Jukebox(left @ 1..) = self.odd {
            self.odd = Odd::Jukebox(left - 1);
            return Xdr::default().word(10008).word(0).word(0);
        }
        if self.odd == Odd::Full {
            return Xdr::default().word(28).word(0).word(0);
        }
        let len = if let Odd::Short(most) = self.odd { bytes.len().min(most as usize) } else { bytes.len() };
        let end = self.new.len().max(offset + len);
        self.new.resize(end, 0);
        self.new[offset..offset + len].copy_from_slice(&bytes[..len]);
        Xdr::default().word(0).word(0).word(0).word(u32::try_from(len).unwrap()).word(how).long(self.verifier)
    }

    fn list(&self) -> Xdr {
        let names: &[&[u8]] = match self.odd {
            Odd::WrongNames => &[b".", b"..", b"a/b", b"", b"\xff", b"file"],
            _ => &[b"file"],
        };
        let xdr = Xdr::default().word(0).word(0).long(1);
        let xdr = names.iter().fold(xdr, |xdr, name| xdr.word(1).long(5).opaque(name).long(0).word(0).word(0));
        xdr.word(0).word(u32::from(self.odd != Odd::Circle))
    }

    fn answer(&mut self, program: u32, procedure: u32, mut args: Args<'_>) -> Xdr {
        let good = Xdr::default().word(0);
        match (program, procedure) {
            (100_005, 5) => Xdr::default().word(1).opaque(b"/").word(0).word(0),
            (100_005, 1) => good.opaque(b"root").word(1).word(1),
            (_, 19) => {
                let sizes = [1 << 20, 1 << 20, 1, 1 << 20, 1 << 20, 1, 65536];
                sizes.into_iter().fold(good.word(0), Xdr::word).long(1 << 40).word(0).word(1).word(0)
            }
            (_, 1) => {
                let handle = args.opaque().to_vec();
                if handle.starts_with(b"file") && handle != self.file() {
                    return Xdr::default().word(70);
                }
                self.facts_of(good, &handle)
            }
            (_, 2) => {
                if args.opaque() == b"new" {
                    // Mode, owner, group: two words where they are said, one where not.
                    for _ in 0..3 {
                        if args.word() == 1 {
                            args.word();
                        }
                    }
                    if args.word() == 1 {
                        let len = args.index();
                        self.new.resize(len, 0);
                    }
                }
                good.word(0).word(0)
            }
            (_, 3) => {
                args.opaque();
                self.look_up(args.opaque())
            }
            (_, 6) => self.read(&mut args),
            (_, 7) => self.write(&mut args),
            (_, 8) => {
                (self.new, self.is_there) = (Vec::new(), false);
                good.word(1).opaque(b"new").word(0).word(0).word(0)
            }
            (_, 12) => good.word(0).word(0),
            (_, 14) if self.is_there => Xdr::default().word(2).word(0).word(0).word(0).word(0),
            (_, 14) => {
                self.is_there = true;
                good.word(0).word(0).word(0).word(0)
            }
            (_, 17) => self.list(),
            (_, 18) => good.word(0).long(1 << 40).long(1 << 40).long(1 << 40).long(0).long(0).long(0).word(0),
            (_, 21) => {
                if self.odd == Odd::Loses {
                    (self.odd, self.verifier) = (Odd::Nothing, self.verifier + 1);
                    self.new.clear();
                }
                good.word(0).word(0).long(self.verifier)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Numbers by the seed (xorshift).
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    /// Changes bytes of an answer behind its number, or its length.
    fn garble(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.random() % 3 {
            // The head is where lengths are.
            let most = (bytes.len() as u64).min(180);
            let at = usize::try_from(4 + self.random() % (most - 4)).unwrap();
            bytes[at] = match self.random() % 3 {
                0 => 0xff,
                1 => 0,
                _ => bytes[at] ^ (1 << (self.random() % 8)),
            };
        }
        if self.random().is_multiple_of(8) {
            let len = usize::try_from(self.random() % bytes.len() as u64).unwrap();
            bytes.truncate(len.max(4));
        }
    }
}

fn record(bytes: &[u8], fragment: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let count = bytes.len().div_ceil(fragment);
    for (number, piece) in bytes.chunks(fragment).enumerate() {
        let last = if number + 1 == count { 1 << 31 } else { 0 };
        out.extend((u32::try_from(piece.len()).unwrap() | last).to_be_bytes());
        out.extend(piece);
    }
    out
}

/// One connection, until it ends.
fn serve(mut socket: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    loop {
        let mut mark = [0; 4];
        socket.read_exact(&mut mark)?;
        let mut call = vec![0; (u32::from_be_bytes(mark) & !(1 << 31)) as usize];
        socket.read_exact(&mut call)?;
        let mut args = Args(&call);
        let (xid, _, _, program, _, procedure) =
            (args.word(), args.word(), args.word(), args.word(), args.word(), args.word());
        for _ in 0..2 {
            args.word();
            args.opaque();
        }
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let body = state.answer(program, procedure, args);
        let head = |xid: u32| Xdr::default().word(xid).word(1).word(0).word(0).word(0).word(0).0;
        let mut bytes = [head(xid), body.0].concat();
        let mut fragment = 1 << 24;
        match state.odd {
            Odd::Silent if procedure == 6 => continue,
            Odd::Fragments(len) => fragment = len,
            Odd::Stranger => socket.write_all(&record(&[head(xid ^ 0x8000_0000), vec![7; 99]].concat(), fragment))?,
            Odd::Garbles(_) if program == 100_003 && procedure != 19 => state.garble(&mut bytes),
            Odd::LosesAnswer(lost) if lost == procedure && program == 100_003 => {
                state.odd = Odd::Nothing;
                return Ok(());
            }
            Odd::Endless if procedure == 6 => {
                drop(state);
                loop {
                    socket.write_all(&[0; 4096])?;
                }
            }
            _ => {}
        }
        drop(state);
        socket.write_all(&record(&bytes, fragment))?;
    }
}

impl Peer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, state) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(State::default())));
        let serving = state.clone();
        #[expect(clippy::disallowed_methods, reason = "a server of this test's own, which ends with the process")]
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let state = serving.clone();
                std::thread::spawn(move || drop(serve(socket, &state)));
            }
        });
        Self { port, state }
    }

    fn set(&self, odd: Odd) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.odd, state.reads) = (odd, 0);
        match odd {
            Odd::Moved | Odd::Replaced => state.generation += 1,
            Odd::Garbles(seed) => state.seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            _ => {}
        }
    }

    fn written(&self) -> Vec<u8> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).new.clone()
    }

    fn config(&self) -> NfsConfig {
        NfsConfig {
            port: Some(self.port),
            mount_port: Some(self.port),
            connections: 2,
            silence: Duration::from_secs(20),
            patience: Duration::from_secs(60),
            ..NfsConfig::default()
        }
    }
}

fn stores(config: NfsConfig) -> NfsStores {
    NfsStores::new(Context::new(Runtime::new(2)), || config)
}

/// A peer, its client, and a file that was opened before anything is odd.
fn opened() -> (Peer, NfsStores, Arc<Object>) {
    let peer = Peer::start();
    let stores = stores(peer.config());
    let object = stores.open(FILE, OpenMode::Read).unwrap();
    assert_eq!(object.len, LEN as u64);
    (peer, stores, object)
}

/// Reads into the middle of memory; what is around it stays as it was.
fn read_between(stores: &NfsStores, object: &Object, len: u32) -> Result<Vec<u8>, Error> {
    let mut buffer = Buffer::allocate(ByteLen(u64::from(len) + 8192)).unwrap();
    buffer.as_mut_slice().fill(0xaa);
    let mut transport = stores.context().transport(RemoteConfig { name: NFS, queue_depth: 4, io_bytes_max: 4 << 20 });
    let region = buffer.region();
    // Three pieces, the middle one of 5 bytes.
    let piece = |at: u32, len| MemorySegment {
        place: region.base().checked_add(ByteLen(4096 + u64::from(at))).unwrap(),
        len,
        region: region.id(),
    };
    let segments = [piece(0, 100), piece(100, 5), piece(105, len - 105)];
    let io = Io {
        token: sw_engine::Token::from_raw(1),
        kind: IoKind::Read,
        object: object.id,
        handle: object.faces[0].handle,
        offset: 0,
        len,
        segment_count: 3,
        segments,
    };
    assert_eq!(transport.submit(&io), Submit::Accepted);
    let mut done = Vec::with_capacity(4);
    while done.is_empty() {
        transport.poll(Wait::For { timeout: Duration::from_secs(1), min: 1 }, &mut done).unwrap();
    }
    let result = done[0].result;
    let explained = result.map_err(|fault| {
        let error = transport.explain(io.handle, fault);
        error.map_or_else(
            || Error::from_fault(fault, sw_engine::Verb::Read),
            |error| Error::new(error.kind(), error.verb()).detail(error.to_string()),
        )
    });
    drop(transport);
    let all = &buffer.as_mut_slice()[..len as usize + 8192];
    assert!(all[..4096].iter().chain(&all[4096 + len as usize..]).all(|byte| *byte == 0xaa), "bytes landed outside");
    explained.map(|moved| all[4096..4096 + moved as usize].to_vec())
}

#[test]
fn what_a_server_may_do_is_coped_with() {
    let (peer, stores, object) = opened();
    let want = pattern::bytes(1, 0, LEN);
    for odd in [
        Odd::Nothing,
        Odd::Jukebox(3),
        Odd::Short(70_001),
        Odd::Untold,
        Odd::Moved,
        Odd::Fragments(1000),
        Odd::Fragments(1 << 16),
        Odd::Stranger,
        Odd::LosesAnswer(6),
    ] {
        peer.set(odd);
        assert!(read(&stores, &object).unwrap_or_else(|error| panic!("{odd:?}: {error}")) == want, "{odd:?}");
        assert!(read_between(&stores, &object, 1 << 20).unwrap() == want[..1 << 20], "{odd:?}");
    }
}

#[test]
fn what_a_server_may_not_do_is_an_error_and_nothing_lands_outside() {
    let (peer, stores, object) = opened();
    for (odd, kind) in [
        (Odd::EarlyEnd, ErrorKind::Protocol),
        (Odd::Surplus(1), ErrorKind::Protocol),
        (Odd::Surplus(1 << 20), ErrorKind::Protocol),
        (Odd::Lies(u32::MAX), ErrorKind::Protocol),
        (Odd::Lies(7), ErrorKind::Protocol),
        (Odd::Endless, ErrorKind::Protocol),
        (Odd::ChangesAfter(0), ErrorKind::Changed),
        (Odd::Replaced, ErrorKind::Changed),
    ] {
        peer.set(odd);
        let error = read_between(&stores, &object, 2 << 20).map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{odd:?}: {error}");
    }
    // As long as there is patience, and no longer.
    for (odd, silence, kind) in
        [(Odd::Jukebox(u32::MAX), 20_000, ErrorKind::Busy), (Odd::Silent, 300, ErrorKind::DeadlineExceeded)]
    {
        let peer = Peer::start();
        let stores = self::stores(NfsConfig {
            silence: Duration::from_millis(silence),
            patience: Duration::from_secs(1),
            ..peer.config()
        });
        let object = stores.open(FILE, OpenMode::Read).unwrap();
        peer.set(odd);
        let error = read_between(&stores, &object, 2 << 20).map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{odd:?}: {error}");
    }
    let (peer, stores, object) = opened();
    peer.set(Odd::ChangesAfter(2));
    assert_eq!(read(&stores, &object).map(drop).unwrap_err().kind(), ErrorKind::Changed, "in the middle");
}

#[test]
fn garbled_answers_end_in_errors_or_in_the_right_length() {
    let (peer, stores, object) = opened();
    for seed in 0..60 {
        peer.set(Odd::Garbles(seed));
        // Bytes themselves are not checked by the protocol; lengths and places are.
        if let Ok(bytes) = read_between(&stores, &object, 300_000) {
            assert_eq!(bytes.len(), 300_000, "{seed}");
        }
        drop(stores.stat(FILE));
        drop(stores.list("nfs://127.0.0.1/"));
    }
    peer.set(Odd::Nothing);
    assert!(read(&stores, &object).unwrap() == pattern::bytes(1, 0, LEN));
}

#[test]
fn what_a_server_loses_is_written_again() {
    let peer = Peer::start();
    let stores = stores(peer.config());
    let bytes = pattern::bytes(2, 0, (5 << 20) + 3);
    for odd in [
        Odd::Nothing,
        Odd::Loses,
        Odd::Short(300_001),
        Odd::Jukebox(3),
        Odd::LosesAnswer(7),
        Odd::LosesAnswer(14),
        Odd::LosesAnswer(21),
    ] {
        peer.set(odd);
        put(&stores, NEW, &bytes).unwrap_or_else(|error| panic!("{odd:?}: {error}"));
        assert!(peer.written() == bytes, "{odd:?}");
    }
    // Written twice at one place, with a server that is another one meanwhile: the last bytes stay.
    let intent = stores.create(NEW, 100).unwrap();
    peer.set(Odd::Nothing);
    write(&stores, intent.object(), 0, &[1; 100]).unwrap();
    peer.state.lock().unwrap_or_else(PoisonError::into_inner).verifier += 1;
    write(&stores, intent.object(), 0, &[2; 100]).unwrap();
    intent.commit(Names::Durable).unwrap();
    assert_eq!(peer.written(), [2; 100]);
    // More than is kept: committed on the way.
    let large = pattern::bytes(3, 0, 70 << 20);
    put(&stores, NEW, &large).unwrap();
    assert!(peer.written() == large);
    peer.set(Odd::Full);
    let intent = stores.create(NEW, 100).unwrap();
    let error = write(&stores, intent.object(), 0, &[1; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let error = write(&stores, intent.object(), 1, &[1; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
    peer.set(Odd::Nothing);
    let hasty = self::stores(NfsConfig { patience: Duration::from_secs(1), ..peer.config() });
    let intent = hasty.create(NEW, 100).unwrap();
    peer.set(Odd::Jukebox(u32::MAX));
    let error = write(&hasty, intent.object(), 0, &[1; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    peer.set(Odd::Nothing);
    let intent = sw_remote::System::create_open(&stores, NEW).unwrap();
    let error = intent.commit(Names::Durable).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ApiMisuse, "{error}");
    assert_ne!(error.outcome(), Some(WriteOutcome::Applied));
}

#[test]
fn listings_leave_out_what_cannot_be_a_name_and_end() {
    let (peer, stores, _object) = opened();
    peer.set(Odd::WrongNames);
    let names: Vec<String> = stores.list("nfs://127.0.0.1/").unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, [FILE]);
    peer.set(Odd::Circle);
    assert_eq!(stores.list("nfs://127.0.0.1/").unwrap_err().kind(), ErrorKind::Protocol);
}

#[test]
fn addresses_and_names_that_cannot_be_are_refused() {
    let stores = stores(NfsConfig::default());
    for name in ["nfs://h:0/a", "nfs://h:x/a", "nfs://[::1/a", "nfs://::1/a", "nfs://:1/a"] {
        assert_eq!(stores.stat(name).unwrap_err().kind(), ErrorKind::BadUri, "{name}");
    }
    let (_peer, stores, _object) = opened();
    for name in ["nfs://127.0.0.1/a/../file", "nfs://127.0.0.1/./file"] {
        assert_eq!(stores.stat(name).unwrap_err().kind(), ErrorKind::BadUri, "{name}");
    }
    for name in ["nfs://127.0.0.1/", "nfs://127.0.0.1/a/", "nfs://127.0.0.1/.."] {
        assert_eq!(stores.create(name, 1).map(drop).unwrap_err().kind(), ErrorKind::BadUri, "{name}");
    }
    let error = stores.open(FILE, OpenMode::Update).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

/// Ports by the portmapper, all of it by a server that is not ours.
#[test]
fn another_server_is_found_by_its_portmapper_read_and_written() {
    let mut files = MemFsConfig::default();
    files.add_dir("/folder");
    files.add_file("/folder/file", pattern::bytes(4, 0, 300_000));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(NFSTcpListener::bind("127.0.0.1:0", MemFs::new(files).unwrap())).unwrap();
    let port = listener.get_listen_port();
    runtime.spawn(async move { listener.handle_forever().await });
    let stores = stores(NfsConfig { portmap_port: port, patience: Duration::from_secs(10), ..NfsConfig::default() });
    let file = "nfs://127.0.0.1/folder/file";
    let object = stores.open(file, OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == pattern::bytes(4, 0, 300_000));
    let listed = stores.list("nfs://127.0.0.1/").unwrap();
    assert_eq!(
        listed.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect::<Vec<_>>(),
        [("nfs://127.0.0.1/folder", EntryKind::Directory)]
    );
    let bytes = pattern::bytes(5, 0, (2 << 20) + 1);
    put(&stores, "nfs://127.0.0.1/folder/new", &bytes).unwrap();
    let object = stores.open("nfs://127.0.0.1/folder/new", OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == bytes);
    stores.remove("nfs://127.0.0.1/folder/new").unwrap();
    assert_eq!(stores.stat("nfs://127.0.0.1/folder/new").unwrap_err().kind(), ErrorKind::NotFound);
    runtime.shutdown_background();
}
