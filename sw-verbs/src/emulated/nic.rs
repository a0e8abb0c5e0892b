//! The two threads that stand for a NIC's engines, for one QP: one sends, one receives.
//!
//! They go on whatever the QP's owner does, as a NIC does, and end with the connection, [`LINGER`] behind the QP's end at the latest.

use std::{
    io::{self, Read},
    net::{Shutdown, TcpStream},
    sync::{Arc, PoisonError},
    thread::Builder,
    time::Duration,
};

use sw_engine::seam::verbs::{Access, QpState, RecvWr, RemoteKey, SendOp, WcStatus};

use super::{
    READS_MAX,
    frame::{CHUNK_BYTES, Frame, HEAD_BYTES, Kind},
    memory::{Copied, Use, Window},
    qp::{Core, Failure, Numbered, Reply},
    wire::{Ready, fill, now, put, wait},
};

/// How long a peer may take no byte, until requests end with [`WcStatus::RetryExc`].
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the peer's last words are waited for.
const LINGER: Duration = Duration::from_secs(1);
/// What stands for bytes of memory that was deregistered while it was read.
static ZEROES: [u8; 4096] = [0; 4096];

/// Why a thread stops.
enum Stop {
    /// The QP is over already.
    Over,
    /// It is over, and the peer has a frame of which the rest does not come.
    Torn,
    /// The peer's end of the connection is gone.
    Closed,
    System(io::Error),
    /// The peer broke the rules.
    Protocol(&'static str),
    /// The peer's request is refused, with what it is told, and what a receive here comes to.
    Refuse(u64, WcStatus, Option<WcStatus>),
    /// A request of ours failed.
    Failed(u64, WcStatus),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::System(error) }
    }
}

/// A message that is coming.
struct Message {
    psn: u64,
    kind: Kind,
    next: u32,
    total: u32,
    window: Option<Window>,
}

/// Starts both.
pub(super) fn start(core: &Arc<Core>, stream: TcpStream, rnr: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let stream = Arc::new(stream);
    let (reader, its) = (Arc::clone(core), Arc::clone(&stream));
    Builder::new().name(format!("rdma rx {}", core.number)).spawn(move || Reader::new(&reader, &its, rnr).run())?;
    let (writer, its) = (Arc::clone(core), Arc::clone(&stream));
    let started = Builder::new().name(format!("rdma tx {}", core.number)).spawn(move || write(&writer, &its));
    // The reader would wait for a peer that nobody tells of the end.
    started.map(drop).inspect_err(|_| drop(stream.shutdown(Shutdown::Both)))
}

impl Core {
    fn stop(&self, stop: Stop) {
        self.fail(match stop {
            Stop::Over | Stop::Torn => return,
            Stop::Closed => Failure::of("the peer ended the connection"),
            Stop::System(error) => Failure::of(format!("the connection was lost: {error}")),
            Stop::Protocol(rule) => Failure::of(format!("the peer broke the rules of the emulation: {rule}")),
            Stop::Refuse(psn, status, recv) => {
                let goodbye = Some(Frame::control(Kind::Nak, psn, status.code()));
                Failure { recv, goodbye, ..Failure::of(format!("a request of the peer's was refused: {status}")) }
            }
            Stop::Failed(psn, status) => {
                let goodbye = Some(Frame::control(Kind::Disconnect, 0, 0));
                Failure { send: Some((psn, status)), goodbye, ..Failure::of(format!("a request failed: {status}")) }
            }
        });
    }

    /// Moves one chunk between socket and memory; `Ok(false)`: the key opens nothing any more.
    fn chunk(&self, stream: &TcpStream, window: &Window, ready: Ready) -> Result<bool, Stop> {
        let mut done = 0;
        let lock = if ready == Ready::ToRead { &self.rx } else { &self.tx };
        let mut until = now() + SEND_TIMEOUT;
        while done < window.len() {
            let part = window.part(done, window.len() - done);
            let copied = {
                let _copying = lock.lock().unwrap_or_else(PoisonError::into_inner);
                match (self.is_over(), ready) {
                    (true, _) => None,
                    (false, Ready::ToRead) => Some(part.receive(stream)?),
                    (false, Ready::ToWrite) => Some(part.send(stream)?),
                }
            };
            let Some(copied) = copied else {
                // The head said how much comes, and the last words stand behind it: in the midst they would be taken for bytes of the message.
                let is_whole = ready == Ready::ToRead || pad(stream, window.len() - done, LINGER).is_ok();
                return Err(if is_whole { Stop::Over } else { Stop::Torn });
            };
            match copied {
                Copied::Gone if ready == Ready::ToRead => return Ok(false),
                Copied::Gone => {
                    // The head said how much comes.
                    pad(stream, window.len() - done, SEND_TIMEOUT)?;
                    return Ok(false);
                }
                Copied::Bytes(0) => return Err(Stop::Closed),
                Copied::Bytes(bytes) => {
                    // At most the part's length.
                    done += u32::try_from(bytes).unwrap_or(0);
                    until = now() + SEND_TIMEOUT;
                }
                Copied::Blocked if ready == Ready::ToRead => drop(wait(stream, ready, Some(now() + LINGER))?),
                Copied::Blocked => {
                    if !wait(stream, ready, Some(until))? {
                        return Err(Stop::System(io::ErrorKind::TimedOut.into()));
                    }
                }
            }
        }
        Ok(true)
    }
}

/// Sends zeroes where bytes of memory were announced.
fn pad(stream: &TcpStream, bytes: u32, timeout: Duration) -> io::Result<()> {
    let (mut left, until) = (sw_mem::index(bytes.into()), now() + timeout);
    while left > 0 {
        let part = left.min(ZEROES.len());
        put(stream, ZEROES.get(..part).unwrap_or_default(), Some(until))?;
        left -= part;
    }
    Ok(())
}

fn write(core: &Core, stream: &TcpStream) {
    loop {
        let mut state = core.state();
        let sent = if let Some(reply) = state.replies.pop_front() {
            drop(state);
            answer(core, stream, &reply)
        } else if state.phase == QpState::Error {
            break;
        } else if let Some(numbered) = state.next_request() {
            drop(state);
            request(core, stream, &numbered)
        } else {
            drop(core.changed.wait(state));
            continue;
        };
        if let Err(stop) = sent {
            // No last words in the midst of a frame.
            let is_torn =
                matches!(stop, Stop::Torn | Stop::Closed | Stop::System(_) | Stop::Failed(_, WcStatus::RetryExc));
            core.stop(stop);
            if is_torn {
                break;
            }
        }
    }
    // What the peer sent before it hears of the end is read, or a reset would take our last words with it.
    stream.shutdown(Shutdown::Write).ok();
    let until = now() + LINGER;
    let mut state = core.state();
    while !state.is_deaf && now() < until {
        let waited = core.changed.wait_timeout(state, until.saturating_duration_since(now()));
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    drop(state);
    stream.shutdown(Shutdown::Both).ok();
}

fn head(stream: &TcpStream, frame: &Frame) -> Result<(), Stop> {
    Ok(put(stream, &frame.encode(), Some(now() + SEND_TIMEOUT))?)
}

/// Sends a message in chunks, none of which is of two windows; `Ok(false)`: its memory is not open any more.
fn message(core: &Core, stream: &TcpStream, first: Frame, windows: &[Window]) -> Result<bool, Stop> {
    let mut at = 0;
    for window in windows {
        let mut done = 0;
        while done < window.len() {
            let len = (window.len() - done).min(CHUNK_BYTES);
            if !window.is_open() {
                return Ok(false);
            }
            head(stream, &Frame { at, len, ..first })?;
            if !core.chunk(stream, &window.part(done, len), Ready::ToWrite)? {
                return Ok(false);
            }
            (at, done) = (at + len, done + len);
        }
    }
    if at == 0 {
        head(stream, &first)?;
    }
    Ok(true)
}

fn answer(core: &Core, stream: &TcpStream, reply: &Reply) -> Result<(), Stop> {
    match reply {
        Reply::Control(frame) => head(stream, frame),
        Reply::Read(psn, window) => {
            let first = Frame { total: window.len(), ..Frame::control(Kind::ReadResponse, *psn, 0) };
            let sent = message(core, stream, first, core::slice::from_ref(window))?;
            if sent { Ok(()) } else { Err(Stop::Refuse(*psn, WcStatus::RemAccess, None)) }
        }
    }
}

fn request(core: &Core, stream: &TcpStream, numbered: &Numbered) -> Result<(), Stop> {
    let Numbered { psn, wr } = *numbered;
    // As long as a message may be: it was posted.
    let total = u32::try_from(wr.memory.bytes()).unwrap_or(u32::MAX);
    let (kind, addr, key) = match wr.op {
        SendOp::Send => (Kind::Send, 0, 0),
        SendOp::SendWithInvalidate(RemoteKey(key)) => (Kind::SendInvalidate, 0, key),
        SendOp::RdmaWrite(to) => (Kind::Write, to.addr, to.rkey()),
        SendOp::RdmaRead(from) => (Kind::ReadRequest, from.addr, from.rkey()),
    };
    let access = if kind == Kind::ReadRequest { Access::LOCAL_WRITE } else { Access::LOCAL_READ };
    let mut windows = Vec::with_capacity(wr.memory.pieces().len());
    for sge in wr.memory.pieces() {
        let window = core.keys.open(core.pd, (sge.lkey.0, Use::Local), (sge.addr, sge.len), access);
        windows.push(window.ok_or(Stop::Failed(psn, WcStatus::LocProt))?);
    }
    if kind == Kind::ReadRequest {
        windows.clear();
    }
    let first = Frame { kind, psn, addr, key, total, at: 0, len: 0 };
    let sent = message(core, stream, first, &windows).map_err(|stop| match stop {
        Stop::System(error) if error.kind() == io::ErrorKind::TimedOut => Stop::Failed(psn, WcStatus::RetryExc),
        stop => stop,
    })?;
    if !sent {
        return Err(Stop::Failed(psn, WcStatus::LocProt));
    }
    core.state().transmitted = psn + 1;
    core.changed.notify_all();
    Ok(())
}

struct Reader<'a> {
    core: &'a Core,
    stream: &'a TcpStream,
    rnr: Duration,
    message: Option<Message>,
    /// The number of the next message of the peer's.
    expected: u64,
}

impl<'a> Reader<'a> {
    fn new(core: &'a Core, stream: &'a TcpStream, rnr: Duration) -> Self {
        Self { core, stream, rnr, message: None, expected: 0 }
    }

    fn run(mut self) {
        let stop = loop {
            if let Err(stop) = self.frame() {
                break stop;
            }
        };
        let lingers = matches!(stop, Stop::Over | Stop::Refuse(..));
        self.core.stop(stop);
        if lingers {
            self.drop_rest();
        }
        self.core.state().is_deaf = true;
        self.core.changed.notify_all();
    }

    /// Reads on until the peer ends its half, which it does when it hears of the end.
    fn drop_rest(&self) {
        let (until, mut from, mut dropped) = (now() + LINGER, self.stream, [0; 4096]);
        while now() < until {
            match from.read(&mut dropped) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if wait(self.stream, Ready::ToRead, Some(until)).is_err() {
                        return;
                    }
                }
                Ok(0) | Err(_) => return,
            }
        }
    }

    fn frame(&mut self) -> Result<(), Stop> {
        let mut raw = [0; HEAD_BYTES];
        fill(self.stream, &mut raw, None)?;
        if self.core.is_over() {
            return Err(Stop::Over);
        }
        let frame = Frame::decode(&raw).ok_or(Stop::Protocol("no frame that there is"))?;
        match frame.kind {
            Kind::Send | Kind::SendInvalidate => self.send(&frame),
            Kind::Write => self.write(&frame),
            Kind::ReadRequest => self.read(&frame),
            Kind::ReadResponse => self.response(&frame),
            Kind::Ack => {
                self.awaits(frame.psn, |numbered| !numbered.is_read())?;
                self.core.answered();
                Ok(())
            }
            Kind::Nak => {
                // Its bytes may be still on their way: the peer refuses by the first ones.
                if !self.core.state().sent.iter().any(|one| one.psn == frame.psn) {
                    return Err(Stop::Protocol("a refusal of a request that is not under way"));
                }
                // As on a NIC it answers what was before it, whose own answers the peer drops when it refuses; but no read, whose bytes did not come.
                let is_answered = |first: &Numbered| first.psn < frame.psn && !first.is_read();
                while self.core.state().sent.front().is_some_and(is_answered) {
                    self.core.answered();
                }
                let status = match WcStatus::of(frame.key) {
                    status @ (WcStatus::RemInvReq | WcStatus::RemAccess | WcStatus::RemOp | WcStatus::RnrRetryExc) => {
                        status
                    }
                    _ => WcStatus::RemOp,
                };
                Err(Stop::Failed(frame.psn, status))
            }
            Kind::Disconnect => Err(Stop::Closed),
        }
    }

    /// The next message of the peer's, or the rest of one that is coming.
    fn begins(&mut self, frame: &Frame) -> Result<bool, Stop> {
        match &self.message {
            None if frame.at == 0 && frame.psn == self.expected => {
                self.expected += 1;
                Ok(true)
            }
            Some(message)
                if (message.psn, message.kind, message.next, message.total)
                    == (frame.psn, frame.kind, frame.at, frame.total) =>
            {
                Ok(false)
            }
            _ => Err(Stop::Protocol("a message out of order")),
        }
    }

    /// Places a frame's payload; whether the message is complete.
    fn place(&mut self, frame: &Frame, refusal: Stop) -> Result<bool, Stop> {
        let Some(message) = &mut self.message else { return Ok(false) };
        if let Some(window) = &message.window
            && !self.core.chunk(self.stream, &window.part(frame.at, frame.len), Ready::ToRead)?
        {
            return Err(refusal);
        }
        message.next = frame.at + frame.len;
        if frame.is_last() {
            self.message = None;
        }
        Ok(frame.is_last())
    }

    fn send(&mut self, frame: &Frame) -> Result<(), Stop> {
        let Frame { psn, kind, total, .. } = *frame;
        if self.begins(frame)? {
            let wr = self.receive().ok_or(Stop::Refuse(psn, WcStatus::RnrRetryExc, None))?;
            if total > wr.sge.len {
                return Err(Stop::Refuse(psn, WcStatus::RemInvReq, Some(WcStatus::LocLen)));
            }
            let (lkey, at) = ((wr.sge.lkey.0, Use::Local), (wr.sge.addr, total));
            let window = self.core.keys.open(self.core.pd, lkey, at, Access::LOCAL_WRITE);
            let window = window.ok_or(Stop::Refuse(psn, WcStatus::RemOp, Some(WcStatus::LocProt)))?;
            self.message = Some(Message { psn, kind, next: 0, total, window: Some(window) });
        }
        if !self.place(frame, Stop::Refuse(psn, WcStatus::RemOp, Some(WcStatus::LocProt)))? {
            return Ok(());
        }
        let mut invalidated = None;
        if kind == Kind::SendInvalidate {
            if !self.core.keys.invalidate(self.core.pd, frame.key) {
                return Err(Stop::Refuse(psn, WcStatus::RemAccess, None));
            }
            invalidated = Some(RemoteKey(frame.key));
        }
        self.core.received(total, invalidated);
        self.reply(Reply::Control(Frame::control(Kind::Ack, psn, 0)))
    }

    /// The next receive; waits for one to be posted as long as the peer's retries would.
    fn receive(&self) -> Option<RecvWr> {
        let until = now() + self.rnr;
        let mut state = self.core.state();
        while state.phase == QpState::Rts {
            if let Some(wr) = state.receives.pop_front() {
                state.receiving = Some(wr);
                return Some(wr);
            }
            let left = until.saturating_duration_since(now());
            if left.is_zero() {
                return None;
            }
            state = self.core.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }

    fn write(&mut self, frame: &Frame) -> Result<(), Stop> {
        let Frame { psn, kind, total, .. } = *frame;
        if self.begins(frame)? {
            // Without bytes nothing is opened, and any key will do (InfiniBand).
            let window = if total == 0 { None } else { Some(self.opened(frame, Access::REMOTE_WRITE)?) };
            self.message = Some(Message { psn, kind, next: 0, total, window });
        }
        if self.place(frame, Stop::Refuse(psn, WcStatus::RemAccess, None))? {
            return self.reply(Reply::Control(Frame::control(Kind::Ack, psn, 0)));
        }
        Ok(())
    }

    fn reply(&self, reply: Reply) -> Result<(), Stop> {
        let is_taken = self.core.reply(reply);
        is_taken.then_some(()).ok_or(Stop::Protocol("more requests than may be under way"))
    }

    fn opened(&self, frame: &Frame, access: Access) -> Result<Window, Stop> {
        let window = self.core.keys.open(self.core.pd, (frame.key, Use::Remote), (frame.addr, frame.total), access);
        window.ok_or(Stop::Refuse(frame.psn, WcStatus::RemAccess, None))
    }

    fn read(&mut self, frame: &Frame) -> Result<(), Stop> {
        self.begins(frame)?;
        let reads = |replies: &std::collections::VecDeque<Reply>| {
            replies.iter().filter(|reply| matches!(reply, Reply::Read(..))).count()
        };
        if reads(&self.core.state().replies) >= usize::from(READS_MAX) {
            return Err(Stop::Refuse(frame.psn, WcStatus::RemInvReq, None));
        }
        let window = self.opened(frame, Access::REMOTE_READ)?;
        self.reply(Reply::Read(frame.psn, window))
    }

    /// The first request without its answer, if the answer that came is to it and all of it was sent.
    fn awaits(&self, psn: u64, fits: impl Fn(&Numbered) -> bool) -> Result<Numbered, Stop> {
        let mut state = self.core.state();
        match state.sent.front().copied() {
            Some(first) if first.psn == psn && fits(&first) => {
                // The last bytes may have been with the peer before the writer could say so; a peer that answers too early waits here.
                while state.transmitted <= psn && state.phase == QpState::Rts {
                    state = self.core.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                if state.phase == QpState::Rts { Ok(first) } else { Err(Stop::Over) }
            }
            _ => Err(Stop::Protocol("an answer to a request that is not under way")),
        }
    }

    fn response(&mut self, frame: &Frame) -> Result<(), Stop> {
        let first = self.awaits(frame.psn, Numbered::is_read)?;
        // A read has one piece, or none.
        let (sge, psn) = (first.wr.memory.pieces().first(), first.psn);
        let next = match &self.message {
            None => 0,
            Some(message) if (message.kind, message.psn) == (Kind::ReadResponse, psn) => message.next,
            Some(_) => return Err(Stop::Protocol("an answer in the midst of a message")),
        };
        if frame.total != sge.map_or(0, |sge| sge.len) || frame.at != next {
            return Err(Stop::Protocol("another answer to a read than was asked for"));
        }
        if frame.at == 0 {
            let window = match sge.filter(|sge| sge.len > 0) {
                None => None,
                Some(sge) => {
                    let (lkey, at) = ((sge.lkey.0, Use::Local), (sge.addr, sge.len));
                    let window = self.core.keys.open(self.core.pd, lkey, at, Access::LOCAL_WRITE);
                    Some(window.ok_or(Stop::Failed(psn, WcStatus::LocProt))?)
                }
            };
            self.message = Some(Message { psn, kind: Kind::ReadResponse, next: 0, total: frame.total, window });
        }
        if self.place(frame, Stop::Failed(psn, WcStatus::LocProt))? {
            self.core.answered();
        }
        Ok(())
    }
}
