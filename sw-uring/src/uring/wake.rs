//! Ends a wait of the ring's thread.
//!
//! ```text
//!   waiting thread                          waking thread
//!   IDLE ──CAS──► WAITING, enter the kernel  swap(WOKEN)
//!   WOKEN? then do not wait                  was WAITING? then write the eventfd
//!   back: swap(IDLE)
//! ```
//! The eventfd is polled by the ring, so that the write ends `io_uring_enter`. A wake of a thread that does not wait
//! costs one atomic swap and no system call. The swap of one side and the exchange of the other are on one cell, so
//! one of them always sees the other: no wake is lost. A second wake finds WOKEN and writes nothing.
// UNSAFETY: eventfd and write are system calls.
#![expect(unsafe_code, reason = "system calls on the eventfd")]

use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicU32, Ordering},
};

use sw_engine::seam::Wake;

const IDLE: u32 = 0;
const WAITING: u32 = 1;
const WOKEN: u32 = 2;

/// The shared cell and the eventfd.
pub(super) struct RingWaker {
    state: AtomicU32,
    eventfd: OwnedFd,
}

impl RingWaker {
    /// # Errors
    /// The errno of `eventfd`.
    pub(super) fn new() -> Result<Self, i32> {
        // SAFETY: no pointers; a descriptor or -1 comes back.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(crate::sys::errno());
        }
        // SAFETY: `eventfd` just returned it and nobody else has it.
        let eventfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { state: AtomicU32::new(IDLE), eventfd })
    }

    pub(super) fn eventfd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    /// Says that a wait begins. False: a wake came before; do not wait.
    pub(super) fn begin_wait(&self) -> bool {
        match self.state.compare_exchange(IDLE, WAITING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(_) => {
                self.state.store(IDLE, Ordering::Release);
                false
            }
        }
    }

    /// Takes a wake that came to a thread which looks instead of waiting.
    pub(super) fn take(&self) -> bool {
        self.state.compare_exchange(WOKEN, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The wait is over.
    pub(super) fn end_wait(&self) {
        self.state.swap(IDLE, Ordering::AcqRel);
    }
}

impl Wake for RingWaker {
    fn wake(&self) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == WAITING {
            let one = 1u64.to_ne_bytes();
            // SAFETY: the pointer and length name a live local array; the descriptor is ours. The eventfd does not
            // block, and it fails only when its 64-bit counter is full: then a wake-up is pending anyway.
            unsafe { libc::write(self.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_the_wait_makes_the_wait_return_once() {
        let waker = RingWaker::new().unwrap();
        waker.wake();
        assert!(!waker.begin_wait());
        assert!(waker.begin_wait());
        waker.end_wait();
    }

    #[test]
    fn only_a_wake_of_a_waiting_thread_writes_the_eventfd() {
        let waker = RingWaker::new().unwrap();
        let written = || {
            let mut count = [0u8; 8];
            // SAFETY: reads into a live local array.
            unsafe { libc::read(waker.eventfd(), count.as_mut_ptr().cast(), 8) > 0 }
        };
        waker.wake();
        assert!(!written());
        assert!(!waker.begin_wait());
        assert!(waker.begin_wait());
        waker.wake();
        waker.wake();
        assert!(written());
    }
}
