//! Connections of hosts: the first bytes, frames in, frames and payload out.

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut, Read, Write},
    net::{Shutdown, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt};
use sw_agent::{
    agent::{ConnectionId, Ending, Event, Key},
    limits::DATA_BYTES_MAX,
    wire::{
        Descriptor, Frame, Header, Kind,
        frame::{DATA_HEAD_BYTES, DataHead, HEADER_BYTES},
    },
};
use sw_mem::{ByteLen, SharedSegment};

use super::{core::Shared, spawn};
use crate::Memory;

/// The first bytes of a host come within so long.
const FIRST: Duration = Duration::from_secs(5);
/// What a host says first on a Unix socket, with the descriptor of its segment.
const PREFACE: &[u8; 8] = b"AGP\0seg1";

/// What is to be sent.
pub(super) enum Out {
    Bytes(Vec<u8>),
    /// The bytes of a read, by frames; it has ended when they are sent.
    Payload(Key, Descriptor, Memory, Ending),
}

/// The queue of a connection's writer, and how it is ended.
pub(super) struct Outgoing {
    queue: Mutex<(VecDeque<Out>, Open)>,
    news: Condvar,
    stop: Box<dyn Fn() + Send + Sync>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Yes,
    /// What is queued is sent, and no more.
    No,
}

impl Outgoing {
    pub(super) fn send(&self, out: Out) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).0.push_back(out);
        self.news.notify_one();
    }

    pub(super) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).1 = Open::No;
        self.news.notify_one();
    }

    fn next(&self) -> Option<Out> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match (queue.0.pop_front(), queue.1) {
                (Some(out), _) => return Some(out),
                (None, Open::No) => return None,
                (None, Open::Yes) => queue = self.news.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Who is there, as the carrier knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    User(u32),
    Unknown,
}

pub(super) fn take_unix(shared: &Arc<Shared>, stream: UnixStream) {
    let shared = shared.clone();
    let _ = spawn("agent-host", move || {
        let Ok(peer) = sockopt::socket_peercred(&stream) else { return };
        let Ok(segment) = first_bytes(&stream) else { return };
        let (Ok(write), Ok(stop)) = (stream.try_clone(), stream.try_clone()) else { return };
        let _ = write.set_write_timeout(None);
        let stop = Box::new(move || drop(stop.shutdown(Shutdown::Both)));
        serve(&shared, stream, write, stop, (Peer::User(peer.uid.as_raw()), Some(segment)));
    });
}

pub(super) fn take_tcp(shared: &Arc<Shared>, stream: TcpStream) {
    let shared = shared.clone();
    let _ = spawn("agent-host", move || {
        let _ = stream.set_nodelay(true);
        let (Ok(write), Ok(stop)) = (stream.try_clone(), stream.try_clone()) else { return };
        let stop = Box::new(move || drop(stop.shutdown(Shutdown::Both)));
        serve(&shared, stream, write, stop, (Peer::Unknown, None));
    });
}

/// The segment that a host lends.
fn first_bytes(stream: &UnixStream) -> io::Result<SharedSegment> {
    stream.set_read_timeout(Some(FIRST))?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0; 16];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let got = recvmsg(stream, &mut [IoSliceMut::new(&mut first)], &mut control, flags)?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptor: Option<OwnedFd> = descriptors.flatten().next();
    let (magic, len) = first.split_at(8);
    let len = u64::from_le_bytes(len.try_into().map_err(io::Error::other)?);
    match descriptor {
        Some(descriptor) if got.bytes == 16 && magic == PREFACE => {
            stream.set_read_timeout(None)?;
            SharedSegment::open(descriptor, ByteLen(len))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn serve(
    shared: &Arc<Shared>,
    mut read: impl Read,
    write: impl Write + Send + 'static,
    stop: Box<dyn Fn() + Send + Sync>,
    (peer, segment): (Peer, Option<SharedSegment>),
) {
    let queue = Mutex::new((VecDeque::new(), Open::Yes));
    let out = Arc::new(Outgoing { queue, news: Condvar::new(), stop });
    let Some(id) = shared.connected(out.clone(), peer, segment) else { return };
    let (sharing, sending) = (shared.clone(), out.clone());
    let writer = spawn("agent-send", move || send_all(&sharing, id, &sending, write));
    if writer.is_ok() {
        read_all(shared, id, &mut read);
    }
    shared.handle(id, Event::Disconnected, &[]);
    out.close();
    shared.disconnected(id);
}

fn read_all(shared: &Shared, id: ConnectionId, from: &mut impl Read) {
    loop {
        let mut raw = [0; HEADER_BYTES];
        if from.read_exact(&mut raw).is_err() {
            return;
        }
        let decoded = Header::decode(&raw).and_then(|header| {
            // The header's decoder bounds it.
            let mut body = vec![0; sw_mem::index(u64::from(header.length))];
            match from.read_exact(&mut body) {
                Ok(()) => Frame::decode(&header, &body).map(|frame| Some((frame, body))),
                Err(_) => Ok(None),
            }
        });
        match decoded {
            Ok(None) => return,
            Err(breach) => return shared.handle(id, Event::Broken(breach), &[]),
            Ok(Some((frame, body))) => take(shared, id, frame, &body),
        }
    }
}

fn take(shared: &Shared, id: ConnectionId, frame: Frame, body: &[u8]) {
    match frame {
        Frame::Control(message) => shared.handle(id, Event::Message(message), &[]),
        Frame::Descriptors(descriptors) => {
            descriptors.into_iter().for_each(|one| shared.handle(id, Event::Descriptor(one), &[]));
        }
        Frame::Data(DataHead { operation, epoch, lease, offset }, len) => {
            let payload = body.get(DATA_HEAD_BYTES..).unwrap_or_default();
            let len = len.min(u32::try_from(payload.len()).unwrap_or(u32::MAX));
            shared.handle(id, Event::Data { operation, epoch, lease, offset, len }, payload);
        }
        // Hosts complete nothing; what is not known may be passed over.
        Frame::Completions(_) | Frame::Unknown(_) => {}
    }
}

fn send_all(shared: &Shared, id: ConnectionId, out: &Outgoing, mut to: impl Write) {
    let mut is_lost = false;
    while let Some(next) = out.next() {
        match next {
            Out::Bytes(bytes) => is_lost = is_lost || to.write_all(&bytes).is_err(),
            Out::Payload(key, descriptor, memory, ending) => {
                is_lost = is_lost || send_payload(shared, id, (key, &descriptor), &memory, &mut to).is_err();
                drop(memory);
                shared.ended(key, ending);
            }
        }
        if is_lost {
            (out.stop)();
        }
    }
    (out.stop)();
}

fn send_payload(
    shared: &Shared,
    id: ConnectionId,
    (key, descriptor): (Key, &Descriptor),
    memory: &Memory,
    to: &mut impl Write,
) -> io::Result<()> {
    let mut at = 0;
    while at < descriptor.length {
        let len = (descriptor.length - at).min(DATA_BYTES_MAX);
        // It is being stopped: its completion says so.
        let Some(touch) = shared.touch(key, at, len) else { return Ok(()) };
        let mut frame = Vec::with_capacity(HEADER_BYTES + DATA_HEAD_BYTES + sw_mem::index(u64::from(len)));
        let length = u32::try_from(DATA_HEAD_BYTES).unwrap_or(0) + len;
        let (session, epoch) = (key.session, key.epoch);
        Header { kind: Kind::Data, message_type: 0, flags: 0, length, session, epoch }.encode(&mut frame);
        let (operation, lease, offset) = (key.operation, touch.lease, touch.offset);
        DataHead { operation, epoch, lease, offset }.encode(&mut frame);
        let head = frame.len();
        frame.resize(head + sw_mem::index(u64::from(len)), 0);
        if let Some(payload) = frame.get_mut(head..) {
            memory.read(u64::from(at), payload).map_err(io::Error::other)?;
        }
        to.write_all(&frame)?;
        shared.sent(id);
        at += len;
    }
    Ok(())
}
