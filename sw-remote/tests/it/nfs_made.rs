//! A server of NFS version 3 that is made by hand, and does what servers should not.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sw_remote::nfs::NfsConfig;
use sw_testkit::pattern;

/// Bytes of the file that is there.
pub const LEN: usize = (3 << 20) + 17;
/// Statuses.
pub const IO: u32 = 5;
pub const ACCES: u32 = 13;
pub const JUKEBOX: u32 = 10008;
const NOENT: u32 = 2;
const EXIST: u32 = 17;
const STALE: u32 = 70;
const NOTSUPP: u32 = 10004;
/// Procedures.
pub const SETATTR: u32 = 2;
pub const READ: u32 = 6;
pub const WRITE: u32 = 7;
pub const CREATE: u32 = 8;
pub const REMOVE: u32 = 12;
pub const RENAME: u32 = 14;
pub const COMMIT: u32 = 21;

/// What the server does that it should not, or seldom does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Odd {
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
    /// Says the length that was asked for, and sends a record with so many bytes less.
    Lacks(usize),
    /// Sends records in fragments of so many bytes.
    Fragments(usize),
    /// Sends so many bytes in each hundredth of a second.
    Slow(usize),
    /// Does not answer this procedure, and does it.
    Silent(u32),
    /// Answers with a number that nobody used, and then as it should.
    Stranger,
    /// Changes some bytes of every answer, by a seed.
    Garbles(u64),
    /// Changes a bit of the mark of some answers to READ, by a seed.
    GarblesMarks(u64),
    /// Has lost what is not committed when the COMMIT comes.
    Loses,
    /// Says that it has no room.
    Full,
    /// Has what is written in stable storage at once.
    Stable,
    /// Says that it keeps what is written so, whatever it was asked.
    Keeps(u32),
    /// Does not answer the second WRITE that is to be stable, nor do it.
    HoldsSecondSync,
    /// Loses the answer to the next call of this procedure, which it has done.
    LosesAnswer(u32),
    /// Answers this procedure with a status, and does nothing.
    Says(u32, u32),
    /// Answers a RENAME with a status, and has done it.
    RenamesAndSays(u32),
    /// Closes the connection for the first RENAME, which it does when it is told to; says the status to those behind it.
    RenamesLateAndSays(u32),
    /// Answers the first RENAME with what is no answer, and does it when it is told to.
    RenamesLateAndLies,
    /// Loses the answer to the RENAME that it has done, and somebody else takes the name at once.
    Taken,
    /// Has no exclusive CREATE, and loses the answer to the first other one.
    GuardedLost,
    /// No exclusive CREATE.
    Guarded,
    /// Lists names that cannot be.
    WrongNames,
    /// Lists a page that leads to itself.
    Circle,
    /// Lists two pages that lead to each other.
    Circles,
    /// Has READDIR alone.
    NoPlus,
    /// Fragments without an end, all empty.
    Endless,
    /// As portmapper: a head that is none, with the port behind it.
    PortBehindNoHead,
}

/// A file that was made.
#[derive(Default)]
struct File {
    bytes: Vec<u8>,
    mode: u32,
    word: Vec<u8>,
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Sent,
    /// The connection is closed.
    Lost,
    /// What is sent is a call.
    Lie,
    /// Nothing is sent.
    Held,
}

#[derive(Default)]
pub struct State {
    odd: Odd,
    reads: u32,
    syncs: u32,
    generation: u32,
    names: BTreeMap<Vec<u8>, u64>,
    files: BTreeMap<u64, File>,
    /// A RENAME that is still to be done.
    late: Option<(Vec<u8>, Vec<u8>)>,
    /// It is done when a name is to be removed, just before that.
    pub is_late_before_remove: bool,
    fate: Fate,
    pub verifier: u64,
    seed: u64,
    /// Attributes that came with bytes were changed on their way.
    pub has_garbled_facts: bool,
    port: u16,
}

/// The server.
pub struct Peer {
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
    fn facts(self, (kind, mode): (u32, u32), id: u64, len: u64, generation: u32) -> Self {
        let made = self.word(kind).word(mode).word(1).word(0).word(0).long(len).long(len).long(0).long(7).long(id);
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

/// The number in the handle of a file that was made.
fn id(handle: &[u8]) -> Option<u64> {
    std::str::from_utf8(handle.strip_prefix(b"new")?).unwrap().parse().ok()
}

impl State {
    fn file(&self) -> Vec<u8> {
        format!("file{}", self.generation).into_bytes()
    }

    fn facts_of(&self, xdr: Xdr, handle: &[u8]) -> Xdr {
        match id(handle) {
            Some(id) => {
                let file = &self.files[&id];
                xdr.facts((1, file.mode), id, file.bytes.len() as u64, 0)
            }
            None if handle == b"root" => xdr.facts((2, 0o755), 1, 4096, 0),
            None => xdr.facts((1, 0o644), 5, LEN as u64, if self.odd == Odd::Replaced { 1 } else { 0 }),
        }
    }

    fn look_up(&self, name: &[u8]) -> Xdr {
        let handle = match (name, self.names.get(name)) {
            (b"file", _) => self.file(),
            (_, Some(id)) => format!("new{id}").into_bytes(),
            _ => return Xdr::default().word(NOENT).word(0),
        };
        self.facts_of(Xdr::default().word(0).opaque(&handle).word(1), &handle).word(0)
    }

    fn read(&mut self, args: &mut Args<'_>) -> Xdr {
        let (handle, offset, count) = (args.opaque().to_vec(), args.long(), args.word());
        self.reads += 1;
        if let Some(id) = id(&handle) {
            let bytes = &self.files[&id].bytes[usize::try_from(offset).unwrap()..];
            let bytes = &bytes[..bytes.len().min(count as usize)];
            let xdr = self.facts_of(Xdr::default().word(0).word(1), &handle);
            return xdr.word(u32::try_from(bytes.len()).unwrap()).word(0).opaque(bytes);
        }
        if handle != self.file() {
            return Xdr::default().word(STALE).word(0);
        }
        if let Odd::Jukebox(left @ 1..) = self.odd {
            self.odd = Odd::Jukebox(left - 1);
            return Xdr::default().word(JUKEBOX).word(0);
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
            _ => Xdr::default().word(0).word(1).facts((1, 0o644), 5, LEN as u64, u32::from(changed)),
        };
        let end = self.odd == Odd::EarlyEnd || u64::from(len) == left;
        let xdr = xdr.word(len).word(u32::from(end));
        match self.odd {
            Odd::Lies(len) => Xdr([xdr.word(len).0, bytes].concat()),
            Odd::Lacks(less) => Xdr([xdr.word(len).0, bytes[..bytes.len().saturating_sub(less)].to_vec()].concat()),
            _ => xdr.opaque(&bytes),
        }
    }

    fn write(&mut self, args: &mut Args<'_>) -> Xdr {
        let (handle, offset, _count, how) = (args.opaque(), args.index(), args.word(), args.word());
        let bytes = args.opaque();
        if let Odd::Jukebox(left @ 1..) = self.odd {
            self.odd = Odd::Jukebox(left - 1);
            return Xdr::default().word(JUKEBOX).word(0).word(0);
        }
        if self.odd == Odd::Full {
            return Xdr::default().word(28).word(0).word(0);
        }
        self.syncs += u32::from(how == 2);
        if self.odd == Odd::HoldsSecondSync && self.syncs == 2 {
            self.fate = Fate::Held;
            return Xdr::default();
        }
        let len = if let Odd::Short(most) = self.odd { bytes.len().min(most as usize) } else { bytes.len() };
        let file = self.files.get_mut(&id(handle).unwrap()).unwrap();
        let end = file.bytes.len().max(offset + len);
        file.bytes.resize(end, 0);
        file.bytes[offset..offset + len].copy_from_slice(&bytes[..len]);
        let how = match self.odd {
            Odd::Stable => 2,
            Odd::Keeps(how) => how,
            _ => how,
        };
        Xdr::default().word(0).word(0).word(0).word(u32::try_from(len).unwrap()).word(how).long(self.verifier)
    }

    fn create(&mut self, args: &mut Args<'_>) -> Xdr {
        args.opaque();
        let (name, how) = (args.opaque().to_vec(), args.word());
        let word = if how == 2 { args.bytes(8).to_vec() } else { Vec::new() };
        if how == 2 && matches!(self.odd, Odd::Guarded | Odd::GuardedLost) {
            return Xdr::default().word(NOTSUPP).word(0).word(0);
        }
        let known = self.names.get(&name).copied();
        if let Some(known) = known.filter(|known| how != 2 || self.files[known].word != word) {
            assert!(known > 0);
            return Xdr::default().word(EXIST).word(0).word(0);
        }
        if self.odd == Odd::GuardedLost {
            (self.odd, self.fate) = (Odd::Guarded, Fate::Lost);
        }
        let id = known.unwrap_or_else(|| self.make(&name, word));
        Xdr::default().word(0).word(1).opaque(format!("new{id}").as_bytes()).word(0).word(0).word(0)
    }

    fn make(&mut self, name: &[u8], word: Vec<u8>) -> u64 {
        let id = 9 + self.files.len() as u64;
        self.files.insert(id, File { bytes: Vec::new(), mode: 0, word });
        self.names.insert(name.to_vec(), id);
        id
    }

    fn set(&mut self, args: &mut Args<'_>) -> Xdr {
        let handle = args.opaque();
        let mut word = || if args.word() == 1 { Some(args.word()) } else { None };
        let (mode, _owner, _group) = (word(), word(), word());
        let len = if args.word() == 1 { Some(args.index()) } else { None };
        if let Some(file) = id(handle).and_then(|id| self.files.get_mut(&id)) {
            file.mode = mode.unwrap_or(file.mode);
            file.bytes.resize(len.unwrap_or(file.bytes.len()), 0);
        }
        Xdr::default().word(0).word(0).word(0)
    }

    fn rename(&mut self, from: &[u8], to: &[u8]) -> u32 {
        let Some(id) = self.names.remove(from) else { return NOENT };
        self.names.insert(to.to_vec(), id);
        0
    }

    /// Does the RENAME that is still to be done, if there is one.
    pub fn rename_late(&mut self) {
        if let Some((from, to)) = self.late.take() {
            self.rename(&from, &to);
        }
    }

    fn asked_to_rename(&mut self, args: &mut Args<'_>) -> Xdr {
        args.opaque();
        let from = args.opaque().to_vec();
        args.opaque();
        let to = args.opaque().to_vec();
        let status = match (self.odd, &self.late) {
            (Odd::RenamesLateAndSays(_), None) => {
                (self.late, self.fate) = (Some((from, to)), Fate::Lost);
                0
            }
            (Odd::RenamesLateAndLies, None) => {
                (self.late, self.fate) = (Some((from, to)), Fate::Lie);
                0
            }
            (Odd::RenamesLateAndSays(status), Some(_)) => status,
            (Odd::RenamesAndSays(status), _) => {
                self.rename(&from, &to);
                status
            }
            (Odd::Taken, _) => {
                self.rename(&from, &to);
                self.make(&to, Vec::new());
                (self.odd, self.fate) = (Odd::Nothing, Fate::Lost);
                0
            }
            _ => self.rename(&from, &to),
        };
        Xdr::default().word(status).word(0).word(0).word(0).word(0)
    }

    fn list(&self, cookie: u64, procedure: u32) -> Xdr {
        if procedure == 17 && self.odd == Odd::NoPlus {
            return Xdr::default().word(NOTSUPP).word(0);
        }
        let names: &[&[u8]] = match self.odd {
            Odd::WrongNames => &[b".", b"..", b"a/b", b"", b"\xff", b"file"],
            _ => &[b"file"],
        };
        let next = if self.odd == Odd::Circles { 1 + u64::from(cookie == 1) } else { 0 };
        let xdr = Xdr::default().word(0).word(0).long(1);
        let xdr = names.iter().fold(xdr, |xdr, name| {
            let xdr = xdr.word(1).long(5).opaque(name).long(next);
            if procedure == 17 { xdr.word(0).word(0) } else { xdr }
        });
        xdr.word(0).word(u32::from(!matches!(self.odd, Odd::Circle | Odd::Circles)))
    }

    fn answer(&mut self, program: u32, procedure: u32, mut args: Args<'_>) -> Xdr {
        let good = Xdr::default().word(0);
        if let Odd::Says(which, status) = self.odd
            && (program, which) == (100_003, procedure)
        {
            return Xdr::default().word(status).word(0).word(0).word(0).word(0);
        }
        match (program, procedure) {
            (100_000, 3) => Xdr::default().word(self.port.into()),
            (100_005, 5) => Xdr::default().word(1).opaque(b"/").word(0).word(0),
            (100_005, 1) => good.opaque(b"root").word(1).word(1),
            (_, 19) => {
                let sizes = [1 << 20, 1 << 20, 1, 1 << 20, 1 << 20, 1, 65536];
                sizes.into_iter().fold(good.word(0), Xdr::word).long(1 << 40).word(0).word(1).word(0)
            }
            (_, 1) => {
                let handle = args.opaque().to_vec();
                if handle.starts_with(b"file") && handle != self.file() {
                    return Xdr::default().word(STALE);
                }
                self.facts_of(good, &handle)
            }
            (_, SETATTR) => self.set(&mut args),
            (_, 3) => {
                args.opaque();
                self.look_up(args.opaque())
            }
            (_, READ) => self.read(&mut args),
            (_, WRITE) => self.write(&mut args),
            (_, CREATE) => self.create(&mut args),
            (_, REMOVE) => {
                args.opaque();
                if self.is_late_before_remove {
                    self.rename_late();
                }
                let status = if self.names.remove(args.opaque()).is_some() { 0 } else { NOENT };
                Xdr::default().word(status).word(0).word(0)
            }
            (_, RENAME) => self.asked_to_rename(&mut args),
            (_, procedure @ (16 | 17)) => {
                args.opaque();
                self.list(args.long(), procedure)
            }
            (_, 18) => good.word(0).long(1 << 40).long(1 << 40).long(1 << 40).long(0).long(0).long(0).word(0),
            (_, COMMIT) => {
                if self.odd == Odd::Loses {
                    (self.odd, self.verifier) = (Odd::Nothing, self.verifier + 1);
                    self.files.get_mut(&id(args.opaque()).unwrap()).unwrap().bytes.clear();
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
    fn garble(&mut self, bytes: &mut Vec<u8>, procedure: u32) {
        let before = bytes.clone();
        for _ in 0..1 + self.random() % 3 {
            // The head is where lengths are.
            let most = (bytes.len() as u64).min(GARBLED as u64);
            let at = usize::try_from(4 + self.random() % (most - 4)).unwrap();
            bytes[at] = match self.random() % 3 {
                0 => 0xff,
                1 => 0,
                _ => bytes[at] ^ (1 << (self.random() % 8)),
            };
        }
        // Type and mode, length, file system and file, times of modification and of change: of those the client says what a version is.
        let told = [32..40, 52..60, 76..92, 100..116];
        let is_other = |place: std::ops::Range<usize>| bytes.get(place.clone()) != before.get(place);
        self.has_garbled_facts |= procedure == READ && told.into_iter().any(is_other);
        if self.random().is_multiple_of(8) {
            let len = usize::try_from(self.random() % bytes.len() as u64).unwrap();
            bytes.truncate(len.max(4));
        }
    }
}

/// Bytes from the beginning of an answer that are garbled, and those of them before the payload of a READ.
pub const GARBLED: usize = 180;
pub const HEAD: usize = 128;

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

/// The head of an answer that was taken.
fn head(xid: u32) -> Vec<u8> {
    Xdr::default().word(xid).word(1).word(0).word(0).word(0).word(0).0
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
        match std::mem::take(&mut state.fate) {
            Fate::Sent => {}
            Fate::Lost => return Ok(()),
            Fate::Held => continue,
            Fate::Lie => {
                socket.write_all(&record(&Xdr::default().word(xid).word(0).0, 1 << 24))?;
                continue;
            }
        }
        let mut bytes = [head(xid), body.0].concat();
        let (mut fragment, mut pace) = (1 << 24, usize::MAX);
        match state.odd {
            Odd::Silent(which) if which == procedure && program == 100_003 => continue,
            Odd::Fragments(len) => fragment = len,
            Odd::Slow(bytes) => pace = bytes,
            Odd::Stranger => socket.write_all(&record(&[head(xid ^ 0x8000_0000), vec![7; 99]].concat(), fragment))?,
            Odd::Garbles(_) if program == 100_003 && procedure != 19 => state.garble(&mut bytes, procedure),
            Odd::PortBehindNoHead if program == 100_000 => {
                bytes = Xdr::default().word(xid).word(1).word(7).word(state.port.into()).0;
            }
            Odd::LosesAnswer(lost) if lost == procedure && program == 100_003 => {
                state.odd = Odd::Nothing;
                return Ok(());
            }
            Odd::Endless if procedure == READ => {
                drop(state);
                loop {
                    socket.write_all(&[0; 4096])?;
                }
            }
            _ => {}
        }
        let mut bytes = record(&bytes, fragment);
        if matches!(state.odd, Odd::GarblesMarks(_)) && procedure == READ && state.random().is_multiple_of(2) {
            let bit = usize::try_from(state.random() % 32).unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        drop(state);
        for piece in bytes.chunks(pace) {
            socket.write_all(piece)?;
            if pace < usize::MAX {
                std::thread::park_timeout(Duration::from_millis(10));
            }
        }
    }
}

impl Peer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { port, ..State::default() }));
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

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, odd: Odd) {
        let mut state = self.state();
        (state.odd, state.reads, state.syncs, state.has_garbled_facts) = (odd, 0, 0, false);
        match odd {
            Odd::Moved | Odd::Replaced => state.generation += 1,
            Odd::Garbles(seed) | Odd::GarblesMarks(seed) => state.seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            _ => {}
        }
    }

    /// What is under the name `new`.
    pub fn written(&self) -> Vec<u8> {
        let state = self.state();
        state.files[&state.names[&b"new"[..]]].bytes.clone()
    }

    /// The mode of that.
    pub fn mode(&self) -> u32 {
        let state = self.state();
        state.files[&state.names[&b"new"[..]]].mode
    }

    /// Gives it one.
    pub fn set_mode(&self, mode: u32) {
        let mut state = self.state();
        let id = state.names[&b"new"[..]];
        state.files.get_mut(&id).unwrap().mode = mode;
    }

    /// Names that were made, and are there.
    pub fn names(&self) -> Vec<String> {
        self.state().names.keys().map(|name| String::from_utf8(name.clone()).unwrap()).collect()
    }

    /// Removes all of them.
    pub fn clear(&self) {
        self.state().names.clear();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn config(&self) -> NfsConfig {
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
