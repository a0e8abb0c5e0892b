//! What owner and guests say to each other: frames of a length (4 bytes, little endian) and so many bytes, both ends of one user and machine.

use std::{
    io::{self, BufReader, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType},
};
use sw_engine::Version;

use crate::{
    home::Home,
    index::{Rest, Word},
    key::{Named, ObjectKey},
    rules::Selection,
    shared::claims::now,
    status::{Evicted, KeptObject, Pinning, Status},
};

/// Bytes of a frame at most.
const FRAME_MAX: u32 = 16 << 20;
/// Bytes of memory for frames that a connection keeps.
const FRAME_KEPT: usize = 64 << 10;
/// Objects in one answer.
pub(crate) const PAGE_OBJECTS: usize = 10_000;
/// Blocks that are asked for at a time.
pub(crate) const FIND_MAX: usize = 1 << 16;
/// Which form of all this.
const FORM: u32 = 2;

/// What an owner says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) epoch: u64,
    pub(crate) block_bytes: u32,
}

/// How much of a block is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Whole,
    Part,
}

/// What a guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Where blocks are. Whole ones that are nowhere the guest brings.
    Find {
        object: ObjectKey,
        blocks: Vec<(u32, Wanted)>,
    },
    /// It has its locks. No answer.
    Taken,
    /// Bytes that it reads from the cache, and others. No answer.
    Read {
        hit_bytes: u64,
        missed_bytes: u64,
    },
    /// It does not bring these. No answer.
    GiveBack {
        object: ObjectKey,
        numbers: Vec<u32>,
    },
    /// Slots that could not be read, or whose bytes are wrong. No answer.
    Failed {
        slots: Vec<u32>,
    },
    /// A whole block: `len` bytes follow.
    Fill {
        named: Named,
        number: u32,
        len: u32,
        warmed: bool,
    },
    Missing {
        named: Named,
        offset: u64,
        most: u64,
    },
    Forget {
        object: ObjectKey,
    },
    Evict {
        selection: Selection,
    },
    Pin {
        named: Named,
        pinning: Pinning,
    },
    PinNames {
        what: String,
        pinning: Pinning,
    },
    /// Until all that came is kept.
    Settle {
        millis: u64,
    },
    Status,
    /// From one on.
    Objects {
        from: u64,
    },
}

/// What an owner answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// To be asked again.
    Later,
    Found(Vec<Option<Word>>),
    Range(Option<(u64, u64)>),
    Evicted(Evicted),
    Count(u64),
    Status(Box<Status>),
    Objects(Vec<KeptObject>),
}

/// What a frame that is none is called.
fn odd() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message is not one of the cache's")
}

/// Writes a frame.
struct Frame(Vec<u8>);

impl Frame {
    fn new(tag: u8) -> Self {
        Self(vec![0, 0, 0, 0, tag])
    }

    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX)).bytes(text.as_bytes())
    }

    fn option(self, text: Option<&str>) -> Self {
        self.u8(u8::from(text.is_some())).text(text.unwrap_or_default())
    }

    fn number(self, number: Option<u64>) -> Self {
        self.u8(u8::from(number.is_some())).u64(number.unwrap_or_default())
    }

    fn version(self, Version { identity, stamp }: &Version) -> Self {
        self.u64(identity.0).u64(identity.1).bytes(&stamp.to_le_bytes())
    }

    fn named(self, Named { realm, name, version, len }: &Named) -> Self {
        self.text(realm).text(name).version(version).u64(*len)
    }

    fn each<T>(self, items: &[T], put: impl Fn(Self, &T) -> Self) -> Self {
        let counted = self.u32(u32::try_from(items.len()).unwrap_or(u32::MAX));
        items.iter().fold(counted, put)
    }

    fn end(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&len.to_le_bytes());
        self.0
    }
}

impl Rest<'_> {
    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let len = usize::try_from(self.u32()?).ok()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn option(&mut self) -> Option<Option<String>> {
        let is_some = self.u8()? != 0;
        let text = self.text()?;
        Some(is_some.then_some(text))
    }

    fn number(&mut self) -> Option<Option<u64>> {
        let is_some = self.u8()? != 0;
        let number = self.u64()?;
        Some(is_some.then_some(number))
    }

    fn version(&mut self) -> Option<Version> {
        Some(Version { identity: (self.u64()?, self.u64()?), stamp: i128::from_le_bytes(self.take()?) })
    }

    fn named(&mut self) -> Option<Named> {
        Some(Named { realm: self.text()?, name: self.text()?, version: self.version()?, len: self.u64()? })
    }

    fn pinning(&mut self) -> Option<Pinning> {
        Some(if self.u8()? == 0 { Pinning::Free } else { Pinning::Pinned })
    }

    fn each<T>(&mut self, get: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.u32()?;
        // Each has a byte at least, so nobody makes this long by a number.
        (0..count).map(|_| get(self)).collect()
    }
}

impl Request {
    pub(crate) fn frame(&self) -> Vec<u8> {
        let number = |frame: Frame, number: &u32| frame.u32(*number);
        let pinned = |pinning: &Pinning| u8::from(*pinning == Pinning::Pinned);
        match self {
            Self::Find { object, blocks } => Frame::new(0)
                .bytes(object)
                .each(blocks, |frame, (number, wanted)| frame.u32(*number).u8(u8::from(*wanted == Wanted::Whole))),
            Self::Taken => Frame::new(1),
            Self::GiveBack { object, numbers } => Frame::new(2).bytes(object).each(numbers, number),
            Self::Failed { slots } => Frame::new(3).each(slots, number),
            Self::Fill { named, number, len, warmed } => {
                Frame::new(4).named(named).u32(*number).u32(*len).u8(u8::from(*warmed))
            }
            Self::Missing { named, offset, most } => Frame::new(5).named(named).u64(*offset).u64(*most),
            Self::Forget { object } => Frame::new(6).bytes(object),
            Self::Evict { selection: Selection { name, older_than, larger_than } } => {
                let seconds = older_than.map(|age| age.as_secs());
                Frame::new(7).text(name).number(seconds).number(*larger_than)
            }
            Self::Pin { named, pinning } => Frame::new(8).named(named).u8(pinned(pinning)),
            Self::PinNames { what, pinning } => Frame::new(9).text(what).u8(pinned(pinning)),
            Self::Settle { millis } => Frame::new(10).u64(*millis),
            Self::Status => Frame::new(11),
            Self::Objects { from } => Frame::new(12).u64(*from),
            Self::Read { hit_bytes, missed_bytes } => Frame::new(13).u64(*hit_bytes).u64(*missed_bytes),
        }
        .end()
    }

    fn read(rest: &mut Rest<'_>) -> Option<Self> {
        Some(match rest.u8()? {
            0 => {
                let wanted = |whole| if whole == 0 { Wanted::Part } else { Wanted::Whole };
                Self::Find { object: rest.take()?, blocks: rest.each(|rest| Some((rest.u32()?, wanted(rest.u8()?))))? }
            }
            1 => Self::Taken,
            2 => Self::GiveBack { object: rest.take()?, numbers: rest.each(Rest::u32)? },
            3 => Self::Failed { slots: rest.each(Rest::u32)? },
            4 => Self::Fill { named: rest.named()?, number: rest.u32()?, len: rest.u32()?, warmed: rest.u8()? != 0 },
            5 => Self::Missing { named: rest.named()?, offset: rest.u64()?, most: rest.u64()? },
            6 => Self::Forget { object: rest.take()? },
            7 => {
                let (name, seconds, larger_than) = (rest.text()?, rest.number()?, rest.number()?);
                let older_than = seconds.map(Duration::from_secs);
                Self::Evict { selection: Selection { name, older_than, larger_than } }
            }
            8 => Self::Pin { named: rest.named()?, pinning: rest.pinning()? },
            9 => Self::PinNames { what: rest.text()?, pinning: rest.pinning()? },
            10 => Self::Settle { millis: rest.u64()? },
            11 => Self::Status,
            12 => Self::Objects { from: rest.u64()? },
            13 => Self::Read { hit_bytes: rest.u64()?, missed_bytes: rest.u64()? },
            _ => return None,
        })
    }

    pub(crate) fn of(frame: &[u8]) -> io::Result<Self> {
        whole(frame, Self::read)
    }
}

/// What a frame says, all of it.
fn whole<T>(frame: &[u8], read: impl Fn(&mut Rest<'_>) -> Option<T>) -> io::Result<T> {
    let mut rest = Rest(frame);
    read(&mut rest).filter(|_| rest.0.is_empty()).ok_or_else(odd)
}

fn put_status(frame: Frame, status: &Status) -> Frame {
    let dir = status.dir.to_string_lossy();
    let sums = [
        status.capacity_bytes,
        status.kept_bytes,
        status.blocks,
        status.objects,
        status.hit_bytes,
        status.missed_bytes,
        status.filled_blocks,
        status.evicted_blocks,
        status.damaged_blocks,
        status.left_blocks,
        status.fetched_blocks,
        status.guests,
    ];
    let told = sums.into_iter().fold(frame.text(&dir).u32(status.block_bytes), Frame::u64);
    told.option(status.fault.as_deref()).option(status.discarded.as_deref())
}

fn read_status(rest: &mut Rest<'_>) -> Option<Status> {
    Some(Status {
        dir: PathBuf::from(rest.text()?),
        block_bytes: rest.u32()?,
        capacity_bytes: rest.u64()?,
        kept_bytes: rest.u64()?,
        blocks: rest.u64()?,
        objects: rest.u64()?,
        hit_bytes: rest.u64()?,
        missed_bytes: rest.u64()?,
        filled_blocks: rest.u64()?,
        evicted_blocks: rest.u64()?,
        damaged_blocks: rest.u64()?,
        left_blocks: rest.u64()?,
        fetched_blocks: rest.u64()?,
        guests: rest.u64()?,
        fault: rest.option()?,
        discarded: rest.option()?,
    })
}

impl Reply {
    pub(crate) fn frame(&self) -> Vec<u8> {
        match self {
            Self::Later => Frame::new(0),
            Self::Found(words) => Frame::new(1).each(words, |frame, word| {
                let Word { slot, len, sum } = word.unwrap_or(Word { slot: u32::MAX, len: 0, sum: 0 });
                frame.u32(slot).u32(len).u64(sum)
            }),
            Self::Range(range) => {
                let (start, len) = range.unwrap_or_default();
                Frame::new(2).u8(u8::from(range.is_some())).u64(start).u64(len)
            }
            Self::Evicted(Evicted { blocks, bytes }) => Frame::new(3).u64(*blocks).u64(*bytes),
            Self::Count(count) => Frame::new(4).u64(*count),
            Self::Status(status) => put_status(Frame::new(5), status),
            Self::Objects(objects) => Frame::new(6).each(objects, |frame, object| {
                let KeptObject { name, version, len, kept_bytes, pinned, used_s } = object;
                frame.text(name).version(version).u64(*len).u64(*kept_bytes).u8(u8::from(*pinned)).u64(*used_s)
            }),
        }
        .end()
    }

    fn read(rest: &mut Rest<'_>) -> Option<Self> {
        Some(match rest.u8()? {
            0 => Self::Later,
            1 => Self::Found(rest.each(|rest| {
                let word = Word { slot: rest.u32()?, len: rest.u32()?, sum: rest.u64()? };
                Some((word.slot != u32::MAX).then_some(word))
            })?),
            2 => {
                let is_some = rest.u8()? != 0;
                let range = (rest.u64()?, rest.u64()?);
                Self::Range(is_some.then_some(range))
            }
            3 => Self::Evicted(Evicted { blocks: rest.u64()?, bytes: rest.u64()? }),
            4 => Self::Count(rest.u64()?),
            5 => Self::Status(Box::new(read_status(rest)?)),
            6 => Self::Objects(rest.each(|rest| {
                Some(KeptObject {
                    name: rest.text()?,
                    version: rest.version()?,
                    len: rest.u64()?,
                    kept_bytes: rest.u64()?,
                    pinned: rest.u8()? != 0,
                    used_s: rest.u64()?,
                })
            })?),
            _ => return None,
        })
    }
}

impl Hello {
    pub(crate) fn frame(&self) -> Vec<u8> {
        Frame::new(0).u32(FORM).u64(self.epoch).u32(self.block_bytes).end()
    }

    fn read(rest: &mut Rest<'_>) -> Option<Self> {
        (rest.u8()? == 0 && rest.u32()? == FORM).then_some(())?;
        Some(Self { epoch: rest.u64()?, block_bytes: rest.u32()? })
    }
}

/// A stream whose waits end.
#[derive(Debug)]
struct Timed {
    stream: UnixStream,
    /// Each wait takes so long at most, or all of them until then.
    limit: Duration,
    until: Option<Instant>,
}

impl Timed {
    /// What is left for a wait, if it is another one than the stream has.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.map(|until| until.saturating_duration_since(now()));
        if left == Some(Duration::ZERO) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.stream.set_read_timeout(Some(left))?;
        }
        self.stream.read(bytes)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.stream.set_write_timeout(Some(left))?;
        }
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Conn {
    stream: BufReader<Timed>,
    frame: Vec<u8>,
}

impl Conn {
    /// Each wait of it takes so long at most; of [`Conn::tell`] and what follows it, all together.
    pub(crate) fn new(stream: UnixStream, limit: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let uid = rustix::net::sockopt::socket_peercred(&stream)?.uid;
        if uid != rustix::process::geteuid() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the other end is another user's"));
        }
        let timed = Timed { stream, limit, until: None };
        Ok(Self { stream: BufReader::with_capacity(64 << 10, timed), frame: Vec::new() })
    }

    fn begin(&mut self) {
        let timed = self.stream.get_mut();
        timed.until = Some(now() + timed.limit);
    }

    /// To the owner of a directory.
    pub(crate) fn to_owner(home: &Home, limit: Duration) -> io::Result<(Self, Hello)> {
        // Without waiting: an owner that stands still takes nobody, and its queue is finite.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(home.socket())?)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        let mut conn = Self::new(stream, limit)?;
        conn.begin();
        let hello = whole(conn.recv()?, Hello::read)?;
        Ok((conn, hello))
    }

    pub(crate) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(frame)
    }

    /// Whether the other end has not ended it, and says nothing: it is not its turn.
    pub(crate) fn is_open(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = rustix::net::recv(&self.stream.get_ref().stream, &mut [0; 1], flags);
        self.stream.buffer().is_empty() && matches!(peeked, Err(Errno::AGAIN))
    }

    /// The next frame, without its length.
    pub(crate) fn recv(&mut self) -> io::Result<&[u8]> {
        let mut len = [0; 4];
        self.stream.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len);
        if len > FRAME_MAX {
            return Err(odd());
        }
        self.frame.resize(sw_mem::index(len.into()), 0);
        // One long message does not keep its memory.
        self.frame.shrink_to(FRAME_KEPT.max(self.frame.len()));
        self.stream.read_exact(&mut self.frame)?;
        Ok(&self.frame)
    }

    /// Waits for the beginning of a frame, however long. Whether there is one.
    pub(crate) fn is_there_more(&mut self) -> io::Result<bool> {
        use std::io::BufRead as _;
        loop {
            match self.stream.fill_buf() {
                Err(cause) if matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                filled => return Ok(!filled?.is_empty()),
            }
        }
    }

    /// Bytes that are in no frame.
    pub(crate) fn recv_bytes(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(bytes)
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask(&mut self, request: &Request) -> io::Result<Reply> {
        self.tell(request)?;
        self.reply()
    }

    /// Says something. For its answer, if it has one, is left what this leaves.
    pub(crate) fn tell(&mut self, request: &Request) -> io::Result<()> {
        self.begin();
        self.send(&request.frame())
    }

    pub(crate) fn reply(&mut self) -> io::Result<Reply> {
        whole(self.recv()?, Reply::read)
    }
}

impl Home {
    /// Where the owner listens, by the open directory: paths of sockets are short.
    pub(crate) fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{}", self.as_fd_number(), crate::home::SOCKET))
    }

    fn as_fd_number(&self) -> i32 {
        self.dir().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let version = Version { identity: (1, u64::MAX), stamp: -9 };
        let named = Named { realm: "r".into(), name: "s3://b/ü".into(), version, len: 77 };
        vec![
            Request::Find { object: [7; 16], blocks: vec![(1, Wanted::Whole), (2, Wanted::Part)] },
            Request::Taken,
            Request::Read { hit_bytes: 1, missed_bytes: 2 },
            Request::GiveBack { object: [7; 16], numbers: vec![3, 4] },
            Request::Failed { slots: vec![] },
            Request::Fill { named: named.clone(), number: 4, len: 5, warmed: true },
            Request::Missing { named: named.clone(), offset: 1, most: 2 },
            Request::Forget { object: [8; 16] },
            Request::Evict { selection: Selection::default() },
            Request::Evict {
                selection: Selection {
                    name: "s3://b/".into(),
                    older_than: Some(Duration::from_secs(7)),
                    larger_than: Some(0),
                },
            },
            Request::Pin { named, pinning: Pinning::Pinned },
            Request::PinNames { what: "x".into(), pinning: Pinning::Free },
            Request::Settle { millis: 3 },
            Request::Status,
            Request::Objects { from: 9 },
        ]
    }

    fn replies() -> Vec<Reply> {
        let status = Status {
            dir: "/x".into(),
            block_bytes: 1,
            capacity_bytes: 2,
            kept_bytes: 3,
            blocks: 4,
            objects: 5,
            hit_bytes: 6,
            missed_bytes: 7,
            filled_blocks: 8,
            evicted_blocks: 9,
            damaged_blocks: 10,
            left_blocks: 11,
            fetched_blocks: 12,
            guests: 13,
            fault: Some("why".into()),
            discarded: None,
        };
        let (version, pinned) = (Version::default(), true);
        let object = KeptObject { name: "n".into(), version, len: 1, kept_bytes: 2, pinned, used_s: 3 };
        vec![
            Reply::Later,
            Reply::Found(vec![None, Some(Word { slot: 1, len: 2, sum: 3 })]),
            Reply::Range(None),
            Reply::Range(Some((1, 2))),
            Reply::Evicted(Evicted { blocks: 1, bytes: 2 }),
            Reply::Count(3),
            Reply::Status(Box::new(status)),
            Reply::Objects(vec![object]),
        ]
    }

    #[test]
    fn what_was_said_is_heard_and_half_of_it_is_nothing() {
        for request in requests() {
            let frame = request.frame();
            assert_eq!(Request::of(&frame[4..]).unwrap(), request);
            for end in 4..frame.len() {
                assert!(Request::of(&frame[4..end]).is_err(), "{request:?} cut at {end}");
            }
            assert!(Request::of(&[&frame[4..], &[0]].concat()).is_err());
        }
        for reply in replies() {
            let frame = reply.frame();
            assert_eq!(whole(&frame[4..], Reply::read).unwrap(), reply);
            for end in 4..frame.len() {
                assert!(whole(&frame[4..end], Reply::read).is_err(), "{reply:?} cut at {end}");
            }
        }
    }

    #[test]
    fn any_byte_of_a_message_may_be_another() {
        for request in requests() {
            let frame = request.frame();
            for (at, turn) in (4..frame.len()).flat_map(|at| [1, 0x80, 0xff].map(|turn| (at, turn))) {
                let mut frame = frame.clone();
                frame[at] ^= turn;
                drop(Request::of(&frame[4..]));
            }
        }
    }
}
