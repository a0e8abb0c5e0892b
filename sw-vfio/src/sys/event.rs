//! Event counters and waiting for them.
// UNSAFETY: libc calls on descriptors and on one local array.
#![expect(unsafe_code, reason = "system calls")]

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use sw_mem::ForkMark;

use super::{errno, owned, uninterrupted};

/// Events that one wait takes at most; more stay ready for the next.
pub(crate) const EVENTS_MAX: usize = 32;

/// A kernel event counter (`eventfd(2)`), not blocking. Parent and child of a fork share the counter, so a child neither
/// raises nor takes what was made before the fork: it would wake, or rob, the threads of its parent.
#[derive(Debug)]
pub(crate) struct EventFd {
    fd: OwnedFd,
    fork: ForkMark,
}

impl EventFd {
    pub(crate) fn new() -> Result<Self, i32> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(errno());
        }
        // SAFETY: the call just made it.
        Ok(Self { fd: unsafe { owned(fd) }, fork: ForkMark::new() })
    }

    /// Adds one; nothing in a forked child. A counter that is full is as good as raised.
    pub(crate) fn raise(&self) {
        if self.fork.is_child() {
            return;
        }
        let one = 1u64;
        // SAFETY: the call reads eight bytes of a live `u64`.
        let _ =
            uninterrupted(|| unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) });
    }

    /// Takes what was raised; `false` if nothing was, and in a forked child.
    pub(crate) fn take(&self) -> bool {
        if self.fork.is_child() {
            return false;
        }
        let mut count = 0u64;
        // SAFETY: the call writes eight bytes to a live `u64`.
        let read = || unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
        uninterrupted(read).is_ok_and(|done| done == 8)
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A set of descriptors to wait for (`epoll(7)`), each with a number of the caller's choice.
#[derive(Debug)]
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> Result<Self, i32> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(errno());
        }
        // SAFETY: the call just made it.
        Ok(Self(unsafe { owned(fd) }))
    }

    /// Adds a descriptor that is ready when it can be read. It leaves the set when it is closed.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, number: u64) -> Result<(), i32> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN.cast_unsigned(), u64: number };
        let (set, fd) = (self.0.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: the pointer names a live structure of the right type.
        uninterrupted(|| unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &raw mut event) }).map(drop)
    }

    /// Waits at most `timeout` (`None`: without a limit) and shows the numbers of what is ready. A signal ends it early.
    pub(crate) fn wait(&self, timeout: Option<Duration>, mut each: impl FnMut(u64)) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        let ready = self.wait_raw(timeout, &mut events);
        events.iter().take(ready).for_each(|event| each(event.u64));
    }

    fn wait_raw(&self, timeout: Option<Duration>, events: &mut [libc::epoll_event; EVENTS_MAX]) -> usize {
        let nanos = timeout.map(|span| libc::timespec {
            tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: span.subsec_nanos().into(),
        });
        let limit = nanos.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
        let (set, at, most) = (self.0.as_raw_fd(), events.as_mut_ptr(), EVENTS_MAX);
        // SAFETY: `at` names `most` live entries, `limit` a live time or nothing; no signal mask is given.
        let done = unsafe {
            libc::syscall(libc::SYS_epoll_pwait2, set, at, most, limit, core::ptr::null::<libc::sigset_t>(), 0usize)
        };
        if done < 0 && errno() == libc::ENOSYS {
            // A kernel before 5.11: whole milliseconds, rounded up so that a short wait does not spin.
            let millis =
                timeout.map_or(-1, |span| i32::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
            // SAFETY: as above.
            let done = unsafe { libc::epoll_wait(set, at, i32::try_from(most).unwrap_or(1), millis) };
            return usize::try_from(done).unwrap_or(0);
        }
        usize::try_from(done).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_counter_ends_a_wait_and_is_taken_once() {
        let (set, first, second) = (Epoll::new().unwrap(), EventFd::new().unwrap(), EventFd::new().unwrap());
        set.add(first.as_fd(), 7).unwrap();
        set.add(second.as_fd(), 9).unwrap();
        let ready = |timeout| {
            let mut seen = Vec::new();
            set.wait(Some(timeout), |number| seen.push(number));
            seen
        };
        assert!(ready(Duration::from_micros(200)).is_empty());
        second.raise();
        second.raise();
        assert_eq!(ready(Duration::from_secs(20)), [9]);
        assert!(second.take() && !second.take() && !first.take());
        assert!(ready(Duration::ZERO).is_empty());
    }
}
