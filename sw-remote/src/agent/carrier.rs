//! Connections to an agent: frames in both directions, and a segment of memory behind a Unix socket.

use std::{
    io::{self, IoSlice},
    os::fd::AsFd,
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sw_agent::wire::{
    Breach, Frame, Header,
    frame::{DATA_HEAD_BYTES, HEADER_BYTES},
};
use sw_mem::SharedSegment;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::mpsc,
};

/// Frames that were read and not yet taken, at most.
const READ_AHEAD: usize = 8;
/// What a host says first on a Unix socket, with the descriptor of its segment: this, and the segment's length in 64 bits.
const PREFACE: &[u8; 8] = b"AGP\0seg1";

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// `unix:/PATH`.
    Unix(String),
    /// `HOST:PORT`.
    Tcp(String),
}

/// What came.
pub(super) enum Came {
    Frame(Frame, Vec<u8>),
    Broken(Breach),
    Lost,
}

/// A connection, as its owner uses it. Dropping it ends both directions.
pub(super) struct Connection {
    pub(super) frames: mpsc::Receiver<Came>,
    out: mpsc::UnboundedSender<Vec<u8>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // What was said last still goes out: the writer ends with its channel, and at the latest when its socket says so.
        self.reader.abort();
    }
}

impl Connection {
    /// Connects within `limit`, and hands the segment over where that can be.
    pub(super) async fn open(place: &Place, segment: &SharedSegment, limit: Duration) -> io::Result<Self> {
        let connected = async {
            match place {
                Place::Unix(path) => {
                    let stream = UnixStream::connect(path).await?;
                    stream.writable().await?;
                    hand_over(&stream, segment)?;
                    let (read, write) = stream.into_split();
                    Ok(Self::of(read, write))
                }
                Place::Tcp(at) => {
                    let stream = TcpStream::connect(at.as_str()).await?;
                    stream.set_nodelay(true)?;
                    let (read, write) = stream.into_split();
                    Ok(Self::of(read, write))
                }
            }
        };
        tokio::time::timeout(limit, connected).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn of(read: impl AsyncRead + Unpin + Send + 'static, write: impl AsyncWrite + Unpin + Send + 'static) -> Self {
        let (told, frames) = mpsc::channel(READ_AHEAD);
        // Bounded by credit: what a host may have under way.
        let (out, lines) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read_all(read, told));
        tokio::spawn(write_all(write, lines));
        Self { frames, out, reader }
    }

    /// Sends bytes behind those that were sent before. A connection that is lost tells so by [`Came::Lost`].
    pub(super) fn send(&self, bytes: Vec<u8>) {
        let _ = self.out.send(bytes);
    }
}

/// The first bytes, with the descriptor: to a new socket they go at once and whole.
fn hand_over(stream: &UnixStream, segment: &SharedSegment) -> io::Result<()> {
    let len = segment.region().len().0.to_le_bytes();
    let mut preface = [0; 16];
    preface[..8].copy_from_slice(PREFACE);
    preface[8..].copy_from_slice(&len);
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [segment.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(stream, &[IoSlice::new(&preface)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == preface.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

async fn read_all(mut from: impl AsyncRead + Unpin, told: mpsc::Sender<Came>) {
    loop {
        let came = read_one(&mut from).await;
        let is_last = !matches!(came, Came::Frame(..));
        if told.send(came).await.is_err() || is_last {
            return;
        }
    }
}

async fn read_one(from: &mut (impl AsyncRead + Unpin)) -> Came {
    let mut raw = [0; HEADER_BYTES];
    if from.read_exact(&mut raw).await.is_err() {
        return Came::Lost;
    }
    let header = match Header::decode(&raw) {
        Ok(header) => header,
        Err(breach) => return Came::Broken(breach),
    };
    // The header's decoder bounds it.
    let mut body = vec![0; sw_mem::index(u64::from(header.length))];
    if from.read_exact(&mut body).await.is_err() {
        return Came::Lost;
    }
    match Frame::decode(&header, &body) {
        Ok(frame @ Frame::Data(..)) => Came::Frame(frame, body.split_off(DATA_HEAD_BYTES.min(body.len()))),
        Ok(frame) => Came::Frame(frame, Vec::new()),
        Err(breach) => Came::Broken(breach),
    }
}

async fn write_all(mut to: impl AsyncWrite + Unpin, mut lines: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(bytes) = lines.recv().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
