//! How a lane waits for its connections: epoll, and an eventfd with which other threads end the wait.
// UNSAFETY: epoll and eventfd are system calls.
#![expect(unsafe_code, reason = "system calls")]

#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::{Arc, OnceLock},
    time::Duration,
};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};

use sw_engine::seam::Wake;

/// Events that one wait takes; the next one takes the rest.
const EVENTS_MAX: i32 = 32;

/// Ends waits of a [`Waiter`]. The eventfd is there once something is waited for: a lane without connections has none, and a wake
/// of it costs no system call.
///
/// A lane is woken; or [`Bell`] rings, which ends a wait for a moment and is no wake-up.
#[derive(Default)]
pub(crate) struct EventWaker {
    /// There before the words say so.
    eventfd: OnceLock<OwnedFd>,
    words: Words,
}

/// The protocol without the eventfd, so that loom can run it in every order.
///
/// Invariant: a wake either finds the eventfd and writes it, or the wait that follows finds the word: each side stores its own word
/// first and looks at the other's behind a fence.
#[derive(Default)]
struct Words {
    is_woken: AtomicBool,
    is_rung: AtomicBool,
    has_eventfd: AtomicBool,
}

/// What somebody is told.
#[derive(Clone, Copy)]
enum Telling {
    Wake,
    Bell,
}

impl Words {
    /// Telling thread: whether the eventfd must be written.
    fn tell(&self, telling: Telling) -> bool {
        let word = match telling {
            Telling::Wake => &self.is_woken,
            Telling::Bell => &self.is_rung,
        };
        if word.swap(true, Ordering::AcqRel) {
            return false;
        }
        fence(Ordering::SeqCst);
        self.has_eventfd.load(Ordering::Acquire)
    }

    /// Waiting thread: the eventfd is there from now on.
    fn has_eventfd(&self) {
        self.has_eventfd.store(true, Ordering::Release);
        // Before the next look at the words.
        fence(Ordering::SeqCst);
    }

    fn is_told(&self) -> bool {
        self.is_woken.load(Ordering::Acquire) || self.is_rung.load(Ordering::Acquire)
    }

    /// Takes what came; whether a wake-up was among it. What is told behind it is found by the next wait before it sleeps.
    fn take(&self) -> bool {
        self.is_rung.swap(false, Ordering::AcqRel);
        self.is_woken.swap(false, Ordering::AcqRel)
    }
}

impl Wake for EventWaker {
    fn wake(&self) {
        self.tell(Telling::Wake);
    }
}

/// Rings for a lane, so that it looks at what it asked for.
pub(crate) struct Bell(Arc<EventWaker>);

impl Wake for Bell {
    fn wake(&self) {
        self.0.tell(Telling::Bell);
    }
}

impl EventWaker {
    fn tell(&self, telling: Telling) {
        if !self.words.tell(telling) {
            return;
        }
        let Some(eventfd) = self.eventfd.get() else { return };
        let one = 1u64.to_ne_bytes();
        // SAFETY: a live local array and a descriptor of ours. The eventfd does not block, and is full only when a wake-up is in it.
        unsafe { libc::write(eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Empties the eventfd, which a sleep found full: what was told by it may have been taken before.
    fn drain(&self) {
        let Some(eventfd) = self.eventfd.get() else { return };
        let mut count = [0; 8];
        // SAFETY: a live local array and a descriptor of ours, which does not block.
        unsafe { libc::read(eventfd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

/// What to wait for on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Bytes that come.
    Read,
    /// Room to send, too.
    ReadWrite,
}

impl Interest {
    fn events(self) -> u32 {
        // Constants of a few bits.
        let bits = match self {
            Self::Read => libc::EPOLLIN,
            Self::ReadWrite => libc::EPOLLIN | libc::EPOLLOUT,
        };
        u32::try_from(bits).unwrap_or(0)
    }
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct Waiter {
    /// Made with the first connection.
    epoll: Option<OwnedFd>,
    waker: Arc<EventWaker>,
}

impl Waiter {
    pub(crate) fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    /// What rings for this lane.
    pub(crate) fn bell(&self) -> Arc<dyn Wake> {
        Arc::new(Bell(self.waker.clone()))
    }

    /// Waits for this connection too, until its descriptor is closed.
    ///
    /// # Errors
    /// What the system says: descriptors run out.
    pub(crate) fn watch(&mut self, fd: RawFd) -> io::Result<()> {
        self.watch_bell()?;
        self.control(libc::EPOLL_CTL_ADD, fd, Interest::Read)
    }

    /// Waits for the bell, with which connections without a descriptor ring.
    ///
    /// # Errors
    /// As [`Waiter::watch`].
    pub(crate) fn watch_bell(&mut self) -> io::Result<()> {
        if self.epoll.is_none() {
            // SAFETY: no pointers; a descriptor or -1 comes back.
            let eventfd = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
            // SAFETY: no pointers; a descriptor or -1 comes back.
            self.epoll = Some(owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?);
            let eventfd = self.waker.eventfd.get_or_init(|| eventfd).as_raw_fd();
            self.control(libc::EPOLL_CTL_ADD, eventfd, Interest::Read)?;
            self.waker.words.has_eventfd();
        }
        Ok(())
    }

    /// Waits for this connection no more.
    pub(crate) fn forget(&self, fd: RawFd) {
        // One that is not watched is what it shall be.
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, Interest::Read);
    }

    /// Waits for this from now on.
    pub(crate) fn change(&self, fd: RawFd, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, interest)
    }

    fn control(&self, what: i32, fd: RawFd, interest: Interest) -> io::Result<()> {
        // A descriptor is not negative.
        let mut event = libc::epoll_event { events: interest.events(), u64: u64::try_from(fd).unwrap_or(u64::MAX) };
        let Some(epoll) = &self.epoll else { return Err(io::Error::from(io::ErrorKind::NotFound)) };
        // SAFETY: a live local event; both descriptors are open.
        match unsafe { libc::epoll_ctl(epoll.as_raw_fd(), what, fd, &raw mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits at most `timeout`, in whole milliseconds rounded up; without a connection, until a wake-up or for a millisecond. `true`:
    /// it took a wake-up. It may end early for nothing.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        if self.waker.words.is_told() {
            return self.waker.words.take();
        }
        let millis = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX as usize];
        let into = events.as_mut_ptr();
        let found = match &self.epoll {
            // SAFETY: a live local array of as many events.
            Some(epoll) => unsafe { libc::epoll_wait(epoll.as_raw_fd(), into, EVENTS_MAX, millis) },
            // SAFETY: no descriptors; a nap until the connection that was asked for is made.
            None => unsafe { libc::poll(std::ptr::null_mut(), 0, millis.min(1)) },
        };
        // All connections are looked at, whatever it says of them.
        let eventfd = self.waker.eventfd.get().and_then(|fd| u64::try_from(fd.as_raw_fd()).ok());
        let found = usize::try_from(found).unwrap_or(0);
        if events.iter().take(found).any(|event| Some(event.u64) == eventfd) {
            self.waker.drain();
        }
        self.waker.words.take()
    }
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a system call just returned it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// One that waits for something that never comes.
    fn waiter() -> (Waiter, std::net::TcpListener) {
        let quiet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut waiter = Waiter::default();
        waiter.watch(quiet.as_raw_fd()).unwrap();
        (waiter, quiet)
    }

    #[test]
    fn a_wake_ends_the_wait_it_precedes_and_no_other() {
        let (waiter, _quiet) = waiter();
        let waker = waiter.waker();
        waker.wake();
        waker.wake();
        assert!(waiter.wait(Duration::from_secs(60)));
        assert!(!waiter.wait(Duration::from_millis(1)));
    }

    #[test]
    fn a_bell_ends_a_wait_and_is_no_wake_up() {
        let (waiter, _quiet) = waiter();
        let bell = waiter.bell();
        bell.wake();
        let begun = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        assert!(!waiter.wait(Duration::from_secs(60)));
        assert!(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap() - begun < Duration::from_secs(30));
        waiter.waker().wake();
        bell.wake();
        assert!(waiter.wait(Duration::from_secs(60)));
        assert!(!waiter.wait(Duration::from_millis(1)));
    }

    #[test]
    fn a_wake_before_the_first_connection_is_not_lost() {
        let mut waiter = Waiter::default();
        assert!(!waiter.wait(Duration::from_secs(60)));
        waiter.waker().wake();
        let quiet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        waiter.watch(quiet.as_raw_fd()).unwrap();
        assert!(waiter.wait(Duration::from_secs(60)));
        assert!(!waiter.wait(Duration::from_millis(1)));
    }

    #[test]
    fn wakes_of_another_thread_are_never_lost() {
        let (waiter, _quiet) = waiter();
        let waker = waiter.waker();
        let (told, tell) = std::sync::mpsc::channel::<()>();
        let other = std::thread::Builder::new().spawn(move || {
            for () in tell {
                waker.wake();
            }
        });
        for _ in 0..2000 {
            told.send(()).unwrap();
            // The write of a wake-up that was taken before may come late, and ends a wait for nothing, once.
            assert!((0..3).any(|_| waiter.wait(Duration::from_secs(60))));
        }
        drop(told);
        other.unwrap().join().unwrap();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{
        sync::{Arc, Condvar, Mutex},
        thread,
    };

    use super::*;

    /// A lane's words and its eventfd, whose writes add up until it is emptied.
    #[derive(Default)]
    struct Lane {
        words: Words,
        written: Mutex<u32>,
        readable: Condvar,
    }

    impl Lane {
        fn tell(&self, telling: Telling) {
            if self.words.tell(telling) {
                *self.written.lock().unwrap() += 1;
                self.readable.notify_one();
            }
        }

        /// As [`Waiter::wait`], without an end in time: one that is not told is a deadlock, which loom reports.
        fn wait(&self) -> bool {
            if self.words.is_told() {
                return self.words.take();
            }
            let mut written = self.written.lock().unwrap();
            while *written == 0 {
                written = self.readable.wait(written).unwrap();
            }
            *written = 0;
            drop(written);
            self.words.take()
        }
    }

    /// The eventfd is made while somebody wakes: that wake finds it, or the wait finds the word.
    #[test]
    fn loom_a_wake_beside_the_first_wait_ends_it() {
        loom::model(|| {
            let lane = Arc::new(Lane::default());
            let other = lane.clone();
            let waker = thread::spawn(move || other.tell(Telling::Wake));
            lane.words.has_eventfd();
            // One that ends for nothing is waited again.
            while !lane.wait() {}
            waker.join().unwrap();
        });
    }

    /// Three threads have too many orders to run all of them: those with at most two preemptions.
    #[test]
    fn loom_a_wake_is_not_lost_for_a_bell_or_for_another_wake() {
        for second in [Telling::Wake, Telling::Bell] {
            let mut model = loom::model::Builder::new();
            model.preemption_bound = Some(2);
            model.check(move || {
                let lane = Arc::new(Lane::default());
                lane.words.has_eventfd();
                let tellers = [Telling::Wake, second].map(|telling| {
                    let other = lane.clone();
                    thread::spawn(move || other.tell(telling))
                });
                while !lane.wait() {}
                tellers.into_iter().for_each(|teller| teller.join().unwrap());
            });
        }
    }
}
