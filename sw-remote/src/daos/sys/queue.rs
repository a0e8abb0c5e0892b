//! Reads under way, each an event of one event queue, and the thread that polls it.
//!
//! ```text
//!   begin ─► Pending: event, memory that the library writes, what must be there meanwhile ── owned by the queue's list
//!                                    │ polled: the event is over
//!   future ◄── Done, with the memory ┘     (nobody waits any more: the memory goes here, and not before)
//!   future given up ─► abort: the polling thread asks the library to stop; until it has, memory, place and handle stay with it
//! ```
//!
//! The thread is there while events are: the first of them starts it, and it ends a while after the last. It alone takes events from the list,
//! so that nobody else touches one that is gone. With a library that keeps events for good, memory stays quarantined: counted among the
//! requests that may be under way, and never given back, as DAOS 2.6 has no abort but in name.
// UNSAFETY: the library has pointers to memory of ours, and gives them back by polling.
#![expect(unsafe_code, reason = "hands memory to a library and takes it back")]

use std::{
    collections::HashMap,
    ffi::c_int,
    ptr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    Code, Failed, Library, check,
    dfs::Client,
    layout::{Event, Handle, Iov, SgList},
};
use crate::{
    Runtime,
    foreign::held::{Held, Keep},
    runtime::leak,
};

/// Events that are taken at a time.
const EVENTS_MAX: usize = 64;
/// Microseconds that one poll waits.
const POLL_WAIT_US: i64 = 1_000;
/// How long the thread waits for more when nothing is under way.
const IDLE: Duration = Duration::from_secs(1);
/// How long it waits where a poll failed, or found nothing at the end.
const NAP: Duration = Duration::from_millis(1);
/// How long it waits between polls that found nothing: libdaos may return at once where nothing of what it has runs.
const PAUSE: Duration = Duration::from_micros(200);
/// Polls without an event after the end of its owner, each of a millisecond or more: what the library has then it keeps.
const LAST_POLLS: u32 = 3_000;

/// What came of a read.
pub(in crate::daos) struct Done {
    pub(in crate::daos) failed: Option<Failed>,
    /// Bytes that were read, as the library tells them.
    pub(in crate::daos) moved: u64,
    /// The memory that it worked on.
    pub(in crate::daos) buffer: Vec<u8>,
}

/// A read that has begun.
pub(in crate::daos) struct Begun {
    pub(in crate::daos) end: oneshot::Receiver<Done>,
    number: u64,
}

/// Pointers into one that is pending, for the library.
pub(super) struct Parts {
    pub(super) event: *mut Event,
    pub(super) list: *mut SgList,
    pub(super) moved: *mut u64,
}

/// What the library works on.
#[repr(C)]
struct Pending {
    // First: its address is that of the whole.
    event: Event,
    list: SgList,
    iov: Iov,
    moved: u64,
    buffer: Vec<u8>,
    keep: Keep,
    done: oneshot::Sender<Done>,
}

/// One in the list.
struct Entry {
    whole: *mut Pending,
    number: u64,
}

// SAFETY: what it points to is on the heap, of parts that may go to other threads, and is touched by one at a time: that which has it from the
// list.
unsafe impl Send for Entry {}

/// Those under way, by their addresses.
#[derive(Default)]
struct Under {
    entries: HashMap<usize, Entry>,
    /// Numbers of those that nobody waits for any more.
    given_up: Vec<u64>,
    next: u64,
    /// There is a thread that polls.
    is_polled: bool,
    /// Its owner is gone.
    is_closed: bool,
    /// What the last poll said, if it was an error.
    failed: Option<Failed>,
}

impl Under {
    /// What the last poll said, as long as there is something that is polled: nothing else would be heard of it again.
    fn refuses(&self) -> Option<Failed> {
        self.failed.filter(|_| !self.entries.is_empty())
    }

    /// The one of that address, if it has that number.
    fn take(&mut self, address: usize, number: u64) -> Option<Entry> {
        self.entries.remove(&address).and_then(|entry| {
            if entry.number == number {
                return Some(entry);
            }
            self.entries.insert(address, entry);
            None
        })
    }
}

/// The queue.
pub(in crate::daos) struct Queue {
    library: Library,
    handle: Handle,
    /// One thread, which polls.
    threads: Runtime,
    under: Mutex<Under>,
    more: Condvar,
}

impl Queue {
    pub(super) fn new(library: Library) -> Result<Self, Failed> {
        let mut handle = Handle::NONE;
        // SAFETY: a place for the handle.
        check("daos_eq_create", unsafe { (library.daos.daos_eq_create)(&raw mut handle) })?;
        let (under, more) = (Mutex::default(), Condvar::new());
        Ok(Self { library, handle, threads: Runtime::for_calls(1), under, more })
    }

    fn under(&self) -> MutexGuard<'_, Under> {
        self.under.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads that the library has.
    pub(in crate::daos) fn count(&self) -> usize {
        self.under().entries.len()
    }

    /// Begins an operation on `buffer`, by a call that is given what it needs of it.
    pub(super) fn begin(
        client: &Arc<Held<Client>>,
        buffer: Vec<u8>,
        keep: Keep,
        call: impl FnOnce(Parts) -> Result<(), Failed>,
    ) -> Result<Begun, Failed> {
        let queue = &client.queue;
        if let Some(failed) = queue.under().refuses() {
            return Err(failed);
        }
        let (done, end) = oneshot::channel();
        let iov = Iov { base: ptr::null_mut(), room: buffer.len(), len: buffer.len() };
        let pending = Pending { event: Event::EMPTY, list: SgList::ONE, iov, moved: 0, buffer, keep, done };
        let whole = Box::into_raw(Box::new(pending));
        // SAFETY: it was just made, and nobody else has it; so in all that follows, up to the call.
        let pending = unsafe { &mut *whole };
        pending.iov.base = pending.buffer.as_mut_ptr().cast();
        pending.list.iovs = &raw mut pending.iov;
        let parts = Parts { event: &raw mut pending.event, list: &raw mut pending.list, moved: &raw mut pending.moved };
        let event = parts.event;
        // SAFETY: a place for an event that stays where it is, and a queue that is open.
        let made = unsafe { (queue.library.daos.daos_event_init)(event, queue.handle, ptr::null_mut()) };
        if let Err(failed) = check("daos_event_init", made) {
            // SAFETY: of `into_raw` above, and the library has nothing of it.
            drop(unsafe { Box::from_raw(whole) });
            return Err(failed);
        }
        let number = match queue.add(client, whole) {
            Ok(number) => number,
            Err(number) => {
                queue.take_back(whole, number);
                return Err(Failed { call: "a thread to poll events", code: Code::Errno(libc::EAGAIN) });
            }
        };
        match call(parts) {
            // From here on only the polling thread touches it.
            Ok(()) => {
                queue.more.notify_one();
                Ok(Begun { end, number })
            }
            Err(failed) => {
                queue.take_back(whole, number);
                Err(failed)
            }
        }
    }

    /// Puts one into the list, with a thread that polls. Its number, as an error if the system gives no thread.
    fn add(&self, client: &Arc<Held<Client>>, whole: *mut Pending) -> Result<u64, u64> {
        let mut under = self.under();
        under.next += 1;
        let number = under.next;
        under.entries.insert(whole.addr(), Entry { whole, number });
        if !under.is_polled {
            let (threads, client) = (self.threads.handle().map_err(|_| number)?, client.clone());
            threads.spawn_blocking(move || poll_all(client));
            under.is_polled = true;
        }
        Ok(number)
    }

    /// Takes back one that the library refused.
    fn take_back(&self, whole: *mut Pending, number: u64) {
        // One that was polled meanwhile is gone already, and another may have its address.
        let Some(entry) = self.under().take(whole.addr(), number) else { return };
        // SAFETY: it was in the list, so that nobody has freed it.
        let event = unsafe { &raw mut (*entry.whole).event };
        // SAFETY: an event that was made; one that runs is refused.
        let gave = unsafe { (self.library.daos.daos_event_fini)(event) };
        if gave == 0 {
            // SAFETY: of `into_raw`, taken from the list once, and the library has no part of it any more.
            drop(unsafe { Box::from_raw(entry.whole) });
        } else {
            tracing::warn!(gave, "libdaos keeps an event of a call that it refused: its memory stays with it");
            let mut under = self.under();
            under.entries.insert(entry.whole.addr(), entry);
        }
    }

    /// Asks the library to end a read that nobody waits for any more.
    pub(in crate::daos) fn give_up(&self, number: u64) {
        self.under().given_up.push(number);
        self.more.notify_one();
    }

    /// Lets the polling thread end: what it has not got soon the library keeps.
    pub(in crate::daos) fn close(&self) {
        self.under().is_closed = true;
        self.more.notify_one();
    }

    /// Whether there is something to poll; waits a while for it. Gives events to abort.
    fn wait_more(&self) -> Option<Vec<*mut Event>> {
        let idle = |under: &mut Under| under.entries.is_empty() && !under.is_closed;
        let waited = self.more.wait_timeout_while(self.under(), IDLE, idle);
        let mut under = waited.unwrap_or_else(PoisonError::into_inner).0;
        if under.entries.is_empty() {
            under.is_polled = false;
            under.given_up.clear();
            under.failed = None;
            return None;
        }
        let numbers = std::mem::take(&mut under.given_up);
        let of = |number: &u64| under.entries.values().find(|entry| entry.number == *number);
        // SAFETY: it is in the list, from which only this thread takes what has begun.
        let event = |entry: &Entry| unsafe { &raw mut (*entry.whole).event };
        Some(numbers.iter().filter_map(of).map(event).collect())
    }

    /// Takes events that are over, and tells their ends. How many there were.
    fn poll(&self) -> Result<usize, Failed> {
        let mut events = [ptr::null_mut(); EVENTS_MAX];
        let most = u32::try_from(EVENTS_MAX).unwrap_or(u32::MAX);
        // SAFETY: a queue that is open, and as many places as are said.
        let gave = unsafe { (self.library.daos.daos_eq_poll)(self.handle, 1, POLL_WAIT_US, most, events.as_mut_ptr()) };
        let count = check("daos_eq_poll", gave)?;
        let count = usize::try_from(count).unwrap_or(0).min(EVENTS_MAX);
        for event in events.iter().take(count) {
            match self.under().entries.remove(&event.addr()) {
                Some(entry) => self.tell(&entry),
                None => tracing::warn!("libdaos told the end of an event that is none of ours"),
            }
        }
        Ok(count)
    }

    /// Tells the end of one that was taken from the list as it is over.
    fn tell(&self, entry: &Entry) {
        // SAFETY: it was in the list, so that nobody has freed it.
        let event = unsafe { &raw mut (*entry.whole).event };
        // SAFETY: an event that was polled, and is the library's no more.
        let _gave = unsafe { (self.library.daos.daos_event_fini)(event) };
        // SAFETY: of `into_raw`, taken from the list once.
        let pending = unsafe { Box::from_raw(entry.whole) };
        let Pending { event, moved, buffer, keep, done, .. } = *pending;
        // One that nobody waits for any more is dropped here, with its memory.
        drop(done.send(Done { failed: of_event(event.error), moved, buffer }));
        drop(keep);
    }

    /// Closes it, if nothing is under way. Whether it is so.
    pub(super) fn destroy(&self) -> bool {
        if self.count() > 0 || self.threads.is_in_child() {
            return false;
        }
        // SAFETY: a queue that is open, without events, and closed here only.
        let gave = unsafe { (self.library.daos.daos_eq_destroy)(self.handle, 0) };
        gave == 0
    }
}

/// What an event says: libdfs puts an errno there; what is below zero is a number of libdaos.
fn of_event(error: c_int) -> Option<Failed> {
    let failed = |code| Some(Failed { call: "dfs_read", code });
    match error {
        0 => None,
        errno if errno > 0 => failed(Code::Errno(errno)),
        der => failed(Code::Der(der.saturating_neg())),
    }
}

impl Begun {
    /// By which it is given up.
    pub(in crate::daos) fn number(&self) -> u64 {
        self.number
    }
}

/// Polls until nothing is under way for a while.
fn poll_all(client: Arc<Held<Client>>) {
    let mut empty = 0;
    while let Some(aborts) = client.queue.wait_more() {
        for event in aborts {
            // SAFETY: it is in the list, from which only this thread takes what has begun.
            let _gave = unsafe { (client.queue.library.daos.daos_event_abort)(event) };
        }
        let polled = client.queue.poll();
        let mut under = client.queue.under();
        under.failed = polled.err();
        if polled.is_ok_and(|count| count > 0) {
            empty = 0;
            continue;
        }
        if under.is_closed {
            empty += 1;
        }
        if empty > LAST_POLLS {
            tracing::warn!(
                events = under.entries.len(),
                "libdaos keeps reads that it never ended: their memory stays with it"
            );
            under.is_polled = false;
            drop(under);
            return leak(client);
        }
        let pause = if polled.is_err() || under.is_closed { NAP } else { PAUSE };
        let _woken = client.queue.more.wait_timeout(under, pause);
    }
}
