//! How a lane waits for its connections: epoll, and an eventfd with which other threads end the wait.
// UNSAFETY: epoll and eventfd are system calls.
#![expect(unsafe_code, reason = "system calls")]

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sw_engine::seam::Wake;

/// Events that one wait takes; the next one takes the rest.
const EVENTS_MAX: usize = 32;

/// Ends waits of a [`Waiter`].
pub(crate) struct EventWaker {
    eventfd: OwnedFd,
    /// A wake-up is in the eventfd, or about to be.
    is_woken: AtomicBool,
}

impl Wake for EventWaker {
    fn wake(&self) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            let one = 1u64.to_ne_bytes();
            // SAFETY: a live local array and a descriptor of ours. The eventfd does not block, and is full only when a wake-up is
            // in it.
            unsafe { libc::write(self.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }
}

impl EventWaker {
    /// Takes a wake-up that came.
    fn take(&self) -> bool {
        if !self.is_woken.load(Ordering::Acquire) {
            return false;
        }
        let mut count = [0; 8];
        // SAFETY: a live local array and a descriptor of ours, which does not block.
        unsafe { libc::read(self.eventfd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        // Behind the read: who wakes before this finds it set, and this takes that one too; who wakes after it writes again.
        self.is_woken.swap(false, Ordering::AcqRel)
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
pub(crate) struct Waiter {
    epoll: OwnedFd,
    waker: Arc<EventWaker>,
}

impl Waiter {
    /// # Errors
    /// What the system says: descriptors run out.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; a descriptor or -1 comes back.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: no pointers; a descriptor or -1 comes back.
        let eventfd = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        let waiter = Self { epoll, waker: Arc::new(EventWaker { eventfd, is_woken: AtomicBool::new(false) }) };
        waiter.control(libc::EPOLL_CTL_ADD, waiter.waker.eventfd.as_raw_fd(), Interest::Read)?;
        Ok(waiter)
    }

    pub(crate) fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    /// Waits for this connection too, until its descriptor is closed.
    pub(crate) fn watch(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, Interest::Read)
    }

    /// Waits for this from now on.
    pub(crate) fn change(&self, fd: RawFd, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, interest)
    }

    fn control(&self, what: i32, fd: RawFd, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.events(), u64: 0 };
        // SAFETY: a live local event; both descriptors are open.
        match unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), what, fd, &raw mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits at most `timeout`, in whole milliseconds rounded up. `true`: it took a wake-up.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let millis = timeout.as_micros().div_ceil(1000);
        let millis = i32::try_from(millis).unwrap_or(i32::MAX);
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        // SAFETY: a live local array of as many events. What it says is not looked at: all connections are.
        unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS_MAX as i32, millis) };
        self.waker.take()
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
mod tests {
    use super::*;

    #[test]
    fn a_wake_ends_the_wait_it_precedes_and_no_other() {
        let waiter = Waiter::new().unwrap();
        let waker = waiter.waker();
        waker.wake();
        waker.wake();
        assert!(waiter.wait(Duration::from_secs(60)));
        assert!(!waiter.wait(Duration::from_millis(1)));
    }

    #[test]
    fn wakes_of_another_thread_are_never_lost() {
        let waiter = Waiter::new().unwrap();
        let waker = waiter.waker();
        let (told, tell) = std::sync::mpsc::channel::<()>();
        let other = std::thread::Builder::new().spawn(move || {
            for () in tell {
                waker.wake();
            }
        });
        for _ in 0..2000 {
            told.send(()).unwrap();
            assert!(waiter.wait(Duration::from_secs(60)));
        }
        drop(told);
        other.unwrap().join().unwrap();
    }
}
