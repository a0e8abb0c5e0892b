//! A connection with many calls under way at a time, told apart by their numbers.
//!
//! ```text
//!   call ─► queue ─► writer ─► server
//!   pump ◄─ head of an answer: whose is it?
//!     ├─ whole:   read, and handed to the call
//!     └─ payload: the receiving half itself is handed to the call, which lets the kernel put the bytes in place and gives it back,
//!                 however it ends: a call that is dropped touches nothing afterwards, and what is left of its answer is skipped
//! ```

use std::{
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::{Instant, timeout, timeout_at},
};

use super::{
    message::Message,
    wire::{Wire, send},
};

/// Calls that wait to be written.
const QUEUE: usize = 64;
/// Bytes of an answer that is no payload.
const ANSWER_MAX: usize = 2 << 20;
/// Ports that only a superuser binds, from the middle on as others do; and how many are tried.
const PRIVILEGED: std::ops::Range<u16> = 600..1024;
const PRIVILEGED_TRIES: u16 = 40;
/// A reply (RFC 5531 §9 "The RPC Message Protocol").
const REPLY: u32 = 1;

/// Why an answer did not come.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    pub(super) kind: io::ErrorKind,
    text: String,
}

impl Lost {
    /// Whether nothing was heard, rather than something that ended it.
    pub(super) fn is_silence(&self) -> bool {
        self.kind == io::ErrorKind::TimedOut
    }

    /// Whether the other end does not keep to the protocol.
    pub(super) fn is_lie(&self) -> bool {
        self.kind == io::ErrorKind::InvalidData
    }
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        let text = match error.kind() {
            io::ErrorKind::TimedOut => "the server is silent".to_owned(),
            io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
            _ => error.to_string(),
        };
        Self { kind: error.kind(), text }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Lost {}

/// Who waits for an answer.
enum Waiter {
    Whole(oneshot::Sender<Result<Bytes, Lost>>),
    Payload(oneshot::Sender<Result<Incoming, Lost>>),
}

/// The receiving half, behind the number of an answer; it goes back when this goes.
pub(super) struct Incoming {
    wire: Option<Wire>,
    back: Option<oneshot::Sender<Wire>>,
}

impl Incoming {
    /// # Errors
    /// Never, as long as it is held.
    pub(super) fn wire(&mut self) -> io::Result<&mut Wire> {
        self.wire.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let (Some(wire), Some(back)) = (self.wire.take(), self.back.take()) {
            // A pump that has gone wants nothing back.
            drop(back.send(wire));
        }
    }
}

/// A call under way.
struct Waiting {
    waiter: Waiter,
    /// When it was made, or a call before it was answered since: that a slow wire is busy with what was asked before is no silence.
    since: Instant,
}

/// Calls under way, by their numbers.
struct Calls {
    waiting: HashMap<u32, Waiting>,
    /// A call takes the bytes of its answer, each wait for them bounded.
    is_landing: bool,
    /// Since when nothing was heard that was waited for.
    quiet: Instant,
    /// Why no more are made.
    over: Option<Lost>,
}

struct Shared {
    calls: Mutex<Calls>,
    silence: Duration,
}

impl Shared {
    /// Every section is a few operations on a map.
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends everything for the reason that is told first.
    fn end(&self, why: Lost) {
        let mut calls = self.lock();
        let why = calls.over.get_or_insert(why).clone();
        let waiting = std::mem::take(&mut calls.waiting);
        drop(calls);
        for waiting in waiting.into_values() {
            match waiting.waiter {
                Waiter::Whole(tell) => drop(tell.send(Err(why.clone()))),
                Waiter::Payload(tell) => drop(tell.send(Err(why.clone()))),
            }
        }
    }

    /// Since when a call waits for nothing but its own answer.
    fn since(&self, xid: u32) -> Instant {
        let calls = self.lock();
        let waiting = calls.waiting.get(&xid).filter(|_| !calls.is_landing);
        waiting.map_or_else(Instant::now, |waiting| waiting.since)
    }

    /// Bytes moved, either way.
    fn moved(&self) {
        self.lock().quiet = Instant::now();
    }

    /// A call was answered as a whole.
    fn answered(&self, xid: u32) {
        let (mut calls, now) = (self.lock(), Instant::now());
        (calls.quiet, calls.is_landing) = (now, false);
        let behind = |other: u32| other.wrapping_sub(xid) < 1 << 31;
        calls.waiting.iter_mut().filter(|(other, _)| behind(**other)).for_each(|(_, waiting)| waiting.since = now);
    }

    /// Waits for the next answer.
    async fn wait(&self, wire: &mut Wire) -> Result<(), Lost> {
        loop {
            let heard = timeout(self.silence / 4, wire.wait()).await;
            let mut calls = self.lock();
            match heard {
                Ok(heard) => {
                    heard?;
                    calls.quiet = Instant::now();
                    return Ok(());
                }
                Err(_) if !calls.waiting.is_empty() && calls.quiet.elapsed() >= self.silence => {
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
                Err(_) => {}
            }
        }
    }

    /// Takes one answer to whom it is for.
    async fn answer(&self, mut wire: Wire) -> Result<Wire, Lost> {
        self.wait(&mut wire).await?;
        wire.begin().await?;
        let (xid, kind) = (wire.u32().await?, wire.u32().await?);
        if kind != REPLY {
            let text = "the server calls, where it should answer";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text).into());
        }
        let waiting = self.lock().waiting.remove(&xid);
        match waiting.map(|waiting| waiting.waiter) {
            // Of a call that was given up.
            None => {}
            Some(Waiter::Whole(tell)) => {
                let whole = match wire.rest(ANSWER_MAX).await {
                    Ok(whole) => whole,
                    Err(error) => {
                        let why = Lost::from(error);
                        drop(tell.send(Err(why.clone())));
                        return Err(why);
                    }
                };
                drop(tell.send(Ok(whole.into())));
            }
            Some(Waiter::Payload(tell)) => {
                let (back, returned) = oneshot::channel();
                self.lock().is_landing = true;
                // One that is not wanted any more is dropped with the answer, which gives the wire back.
                drop(tell.send(Ok(Incoming { wire: Some(wire), back: Some(back) })));
                wire = returned.await.map_err(|_| Lost::from(io::Error::from(io::ErrorKind::NotConnected)))?;
            }
        }
        wire.finish().await?;
        self.answered(xid);
        Ok(wire)
    }

    async fn pump(&self, mut wire: Wire) {
        loop {
            match self.answer(wire).await {
                Ok(next) => wire = next,
                Err(why) => return self.end(why),
            }
        }
    }

    async fn write(&self, stream: &TcpStream, mut queue: mpsc::Receiver<Message>) {
        while let Some(message) = queue.recv().await {
            if let Err(error) = send(stream, &message.pieces(), self.silence, || self.moved()).await {
                return self.end(error.into());
            }
        }
    }
}

/// One. Its tasks end with it.
pub(super) struct Connection {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Message>,
    next: AtomicU32,
    tasks: [AbortHandle; 2],
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Takes a call out of those that are waited for, however it ends.
struct Waits<'a>(&'a Shared, u32);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting.remove(&self.1);
    }
}

impl Connection {
    /// Connects, from a port that only a superuser binds if this process may; servers want one that do not allow others (`insecure`).
    pub(super) async fn new(to: SocketAddr, silence: Duration) -> Result<Self, Lost> {
        let stream = timeout(silence, connect(to)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        socket2::SockRef::from(&stream).set_keepalive(true)?;
        let stream = Arc::new(stream);
        let calls = Calls { waiting: HashMap::new(), is_landing: false, quiet: Instant::now(), over: None };
        let shared = Arc::new(Shared { calls: Mutex::new(calls), silence });
        let (queue, messages) = mpsc::channel(QUEUE);
        let wire = Wire::new(stream.clone(), silence);
        let (pumping, writing) = (shared.clone(), shared.clone());
        let pump = tokio::spawn(async move { pumping.pump(wire).await });
        let write = tokio::spawn(async move { writing.write(&stream, messages).await });
        let next = AtomicU32::new(super::random_u32());
        Ok(Self { shared, queue, next, tasks: [pump.abort_handle(), write.abort_handle()] })
    }

    pub(super) fn is_over(&self) -> bool {
        self.shared.lock().over.is_some()
    }

    /// Ends it: its calls are lost, and made again elsewhere.
    pub(super) fn give_up(&self, why: &Lost) {
        self.shared.end(why.clone());
        self.tasks.iter().for_each(AbortHandle::abort);
    }

    fn enter(&self, xid: u32, waiter: Waiter) -> Result<Waits<'_>, Lost> {
        let mut calls = self.shared.lock();
        if let Some(why) = &calls.over {
            return Err(why.clone());
        }
        let since = Instant::now();
        if calls.waiting.is_empty() {
            calls.quiet = since;
        }
        calls.waiting.insert(xid, Waiting { waiter, since });
        Ok(Waits(&self.shared, xid))
    }

    async fn ask<T>(
        &self,
        (mut message, limit): (Message, Duration),
        waiter: fn(oneshot::Sender<Result<T, Lost>>) -> Waiter,
    ) -> Result<T, Lost> {
        let xid = self.next.fetch_add(1, Ordering::Relaxed);
        message.number(xid);
        let (answered, mut answer) = oneshot::channel();
        let _waits = self.enter(xid, waiter(answered))?;
        let gone = || Lost::from(io::Error::from(io::ErrorKind::NotConnected));
        self.queue.send(message).await.map_err(|_| gone())?;
        loop {
            let until = self.shared.since(xid) + limit;
            match timeout_at(until, &mut answer).await {
                Ok(answer) => return answer.map_err(|_| gone())?,
                Err(_) if self.shared.since(xid) + limit <= Instant::now() => {
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
                Err(_) => {}
            }
        }
    }

    /// Makes a call; gives what is behind the number of its answer. So long is waited for it when all that was asked before is answered.
    pub(super) async fn call(&self, message: Message, limit: Duration) -> Result<Bytes, Lost> {
        self.ask((message, limit), Waiter::Whole).await
    }

    /// Makes a call, and gives the answer as it comes in.
    pub(super) async fn stream(&self, message: Message, limit: Duration) -> Result<Incoming, Lost> {
        self.ask((message, limit), Waiter::Payload).await
    }
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = || if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let any = |port| match to {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], port)),
        SocketAddr::V6(_) => SocketAddr::from(([0u16; 8], port)),
    };
    let ports = PRIVILEGED.end - PRIVILEGED.start;
    let first = u16::try_from(super::random_u32() % u32::from(ports)).unwrap_or(0);
    for step in 0..PRIVILEGED_TRIES {
        let bound = socket()?;
        bound.set_reuseaddr(true)?;
        match bound.bind(any(PRIVILEGED.start + (first + step) % ports)) {
            Ok(()) => {}
            // Who may not bind one connects from another; the server says what it thinks of that.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            Err(_) => continue,
        }
        match bound.connect(to).await {
            // The same two ends have a connection that is not quite over.
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
            connected => return connected,
        }
    }
    socket()?.connect(to).await
}
