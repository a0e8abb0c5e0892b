//! The owner's side: a thread that takes connections, and one for each.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use rustix::net::Shutdown;
use sw_engine::Error;

use crate::{
    cache::{Inner, State},
    fill::{Ready, Work, refuse_thread},
    home::{self, wrong},
    index::Word,
    key::{BlockKey, ObjectKey},
    object::Cached,
    shared::{
        claims::{Who, now},
        wire::{Conn, FIND_MAX, Hello, PAGE_OBJECTS, Reply, Request, Wanted},
    },
};

/// Connections at a time, two for each process; more are not taken.
const CONNECTIONS_MAX: usize = 256;
/// Longest wait within a message, and for its taking.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes of blocks that one question has compared with their checksums; whoever asked asks again.
const CHECKED_MAX: u64 = 4 << 20;
/// Longest that a block from a guest waits for memory.
const FILL_WAIT: Duration = Duration::from_secs(2);
/// After an error of the listener.
const BREATH: Duration = Duration::from_millis(20);

/// What an owner listens at.
#[derive(Debug)]
pub(crate) struct Serving {
    listener: UnixListener,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    streams: HashMap<Who, UnixStream>,
    last: Who,
    is_over: bool,
    handles: Vec<JoinHandle<()>>,
}

impl Serving {
    /// Every section is operations on lists.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all connections; gives the threads, which end then.
    pub(crate) fn stop(&self) -> Vec<JoinHandle<()>> {
        let mut open = self.lock();
        open.is_over = true;
        // The other ends see it; what cannot be shut is closed already.
        let _ = rustix::net::shutdown(&self.listener, Shutdown::Both);
        for stream in open.streams.values() {
            let _ = rustix::net::shutdown(stream, Shutdown::Both);
        }
        std::mem::take(&mut open.handles)
    }
}

/// A connection in the list, until that is dropped: however its thread ends.
struct Entry {
    serving: Arc<Serving>,
    who: Who,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.serving.lock().streams.remove(&self.who);
    }
}

impl Inner {
    /// Listens for guests from now on.
    ///
    /// # Errors
    /// What the system says to the socket or the thread.
    pub(crate) fn serve(self: &Arc<Self>, epoch: u64) -> Result<(), Error> {
        let told = |cause: io::Error| wrong(&self.config.dir, cause);
        // Of one that was killed, if there is one: this process has the lock.
        self.home.remove(home::SOCKET)?;
        let listener = UnixListener::bind(self.home.socket()).map_err(told)?;
        let serving = Arc::new(Serving { listener, open: Mutex::default() });
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = Some(serving.clone());
        let (its, of) = (self.clone(), serving.clone());
        let hello = Hello { epoch, block_bytes: self.config.block_bytes };
        self.spawn("sw-cache-owner", &serving, move || its.accept(&of, hello))
    }

    fn spawn(
        self: &Arc<Self>,
        name: &str,
        serving: &Serving,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        let running = self.begin(Work::Guests);
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _running = running;
            work();
        });
        let handle = started.map_err(refuse_thread)?;
        let mut open = serving.lock();
        open.handles.retain(|handle| !handle.is_finished());
        open.handles.push(handle);
        Ok(())
    }

    fn accept(self: &Arc<Self>, serving: &Arc<Serving>, hello: Hello) {
        loop {
            let taken = serving.listener.accept();
            let mut open = serving.lock();
            if open.is_over {
                return;
            }
            let Ok((stream, _)) = taken else {
                drop(open);
                std::thread::park_timeout(BREATH);
                continue;
            };
            let (Ok(another), true) = (stream.try_clone(), open.streams.len() < CONNECTIONS_MAX) else { continue };
            open.last += 1;
            let who = open.last;
            open.streams.insert(who, another);
            drop(open);
            let (its, entry) = (self.clone(), Entry { serving: serving.clone(), who });
            // Without a thread it goes with what the thread would have done.
            let _started = self.spawn("sw-cache-guest", serving, move || {
                let _entry = entry;
                its.converse(who, stream, hello);
            });
        }
    }

    /// Talks to a guest until one of both ends it. What it had of the cache is let go of then.
    fn converse(&self, who: Who, stream: UnixStream, hello: Hello) {
        let ended = stream.try_clone().and_then(|end| {
            self.guests.fetch_add(1, Ordering::AcqRel);
            let mut session = Session { inner: self, who, end, told: Vec::new() };
            let mut conn = Conn::new(stream, SILENCE)?;
            conn.send(&hello.frame())?;
            while conn.is_there_more()? {
                let request = Request::of(conn.recv()?)?;
                if let Some(reply) = session.answer(&mut conn, request)? {
                    conn.send(&reply.frame())?;
                }
            }
            Ok(())
        });
        if let Err(cause) = ended {
            tracing::debug!(%cause, "a connection to the cache's owner ended");
        }
    }
}

/// One connection.
struct Session<'a> {
    inner: &'a Inner,
    who: Who,
    end: UnixStream,
    /// Slots of the last answer, of which the guest may not have its locks yet.
    told: Vec<u32>,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // First: a guest that has its locks looks whether the connection is open still, and if so, its slots were held until then.
        let _ = rustix::net::shutdown(&self.end, Shutdown::Both);
        self.release();
        self.inner.state().claims.leave(self.who);
        self.inner.guests.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Session<'_> {
    fn release(&mut self) {
        if !self.told.is_empty() {
            let mut state = self.inner.state();
            self.told.drain(..).for_each(|slot| state.slots.release(slot));
        }
    }

    fn answer(&mut self, conn: &mut Conn, request: Request) -> io::Result<Option<Reply>> {
        let inner = self.inner;
        Ok(Some(match request {
            Request::Find { object, blocks } => self.find(object, &blocks),
            Request::Taken => {
                self.release();
                return Ok(None);
            }
            Request::Read { hit_bytes, missed_bytes } => {
                let sums = &mut inner.state().sums;
                sums.hit_bytes = sums.hit_bytes.saturating_add(hit_bytes);
                sums.missed_bytes = sums.missed_bytes.saturating_add(missed_bytes);
                return Ok(None);
            }
            Request::GiveBack { object, numbers } => {
                inner.give_back(self.who, numbers.into_iter().map(|number| BlockKey { object, number }));
                return Ok(None);
            }
            Request::Failed { slots } => {
                let slots: HashSet<u32> = slots.into_iter().collect();
                inner.retire(|slot| slots.contains(&slot));
                return Ok(None);
            }
            Request::Fill { named, number, len, warmed } => {
                let block = inner.block_bytes();
                let whole = named.len.checked_sub(u64::from(number) * block).map_or(0, |rest| rest.min(block));
                if u64::from(len) != whole || len == 0 {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a block is not one of its object"));
                }
                let mut buffer = inner.spare_buffer();
                let (bytes, rest) = buffer.split_at_mut(len as usize);
                conn.recv_bytes(bytes)?;
                rest.fill(0);
                let key = BlockKey { object: named.key(), number };
                let mut ready = Ready::new(key, Arc::new(named), (len, buffer));
                ready.is_warmed = warmed;
                Reply::Count(inner.enqueue(ready, FILL_WAIT).into())
            }
            Request::Missing { named, offset, most } => {
                Reply::Range(Cached::missing(inner, (&named.key(), named.len), offset, most))
            }
            Request::Forget { object } => Reply::Evicted(inner.forget(|key, _| *key == object)),
            Request::Evict { selection } => Reply::Evicted(inner.evict(&selection)),
            Request::Pin { named, pinning } => {
                inner.pin(&named, pinning);
                Reply::Count(1)
            }
            Request::PinNames { what, pinning } => Reply::Count(inner.pin_names(&what, pinning)),
            Request::Settle { millis } => {
                Reply::Count(inner.settled(u64::MAX, Duration::from_millis(millis).min(SILENCE)).into())
            }
            Request::Status => Reply::Status(Box::new(inner.status())),
            Request::Objects { from } => {
                let objects = inner.objects().into_iter().skip(sw_mem::index(from)).take(PAGE_OBJECTS);
                Reply::Objects(objects.collect())
            }
        }))
    }

    fn find(&mut self, object: ObjectKey, blocks: &[(u32, Wanted)]) -> Reply {
        self.release();
        let blocks = blocks.get(..FIND_MAX).unwrap_or(blocks);
        let keys = || blocks.iter().map(|(number, wanted)| (BlockKey { object, number: *number }, *wanted));
        let unchecked = unchecked(&mut self.inner.state(), keys().map(|(key, _)| key));
        if !unchecked.is_empty() {
            self.inner.verify(&unchecked);
            let mut state = self.inner.state();
            unchecked.iter().for_each(|(_, word)| state.slots.release(word.slot));
        }
        let mut state = self.inner.state();
        let (mut whole, mut parts, mut words) = (Vec::new(), Vec::new(), Vec::with_capacity(blocks.len()));
        for (key, wanted) in keys() {
            let word = match (state.blocks.get(&key), wanted) {
                (Some(block), _) if !block.is_verified => return Reply::Later,
                (Some(block), _) => Some(block.word),
                (None, Wanted::Whole) => {
                    whole.push(key.number);
                    None
                }
                (None, Wanted::Part) => {
                    parts.push(key.number);
                    None
                }
            };
            words.push(word);
        }
        if state.fault.is_none() && !state.claims.take(self.who, object, (&whole, &parts), now()) {
            return Reply::Later;
        }
        state.use_object(&object, self.inner.clock.now());
        for (word, (key, _)) in words.iter().zip(keys()) {
            if let Some(word) = word {
                state.slots.hold(word.slot);
                state.used(&key);
                self.told.push(word.slot);
            }
        }
        Reply::Found(words)
    }
}

/// Blocks that are to be compared first, held so that they stay.
fn unchecked(state: &mut State, keys: impl Iterator<Item = BlockKey>) -> Vec<(BlockKey, Word)> {
    let (mut blocks, mut left) = (Vec::new(), CHECKED_MAX);
    for key in keys {
        let Some(block) = state.blocks.get(&key).filter(|block| !block.is_verified) else { continue };
        // One at least, however large.
        if left < u64::from(block.word.len) && !blocks.is_empty() {
            break;
        }
        left = left.saturating_sub(block.word.len.into());
        blocks.push((key, block.word));
    }
    blocks.iter().for_each(|(_, word)| state.slots.hold(word.slot));
    blocks
}
