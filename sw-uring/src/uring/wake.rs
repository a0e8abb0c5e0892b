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

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

use sw_engine::seam::Wake;

const IDLE: u32 = 0;
const WAITING: u32 = 1;
const WOKEN: u32 = 2;

/// The protocol without the eventfd, so that loom can run it in every order.
struct Word(AtomicU32);

impl Word {
    fn new() -> Self {
        Self(AtomicU32::new(IDLE))
    }

    /// Waiting thread: as [`RingWaker::begin_wait`].
    fn begin_wait(&self) -> bool {
        match self.0.compare_exchange(IDLE, WAITING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(_) => {
                // Not a store: it could pass the look at the work that follows and wipe out a second wake, whose work that
                // look had missed.
                self.0.swap(IDLE, Ordering::AcqRel);
                false
            }
        }
    }

    /// Waiting thread: as [`RingWaker::take`].
    fn take(&self) -> bool {
        self.0.compare_exchange(WOKEN, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Waiting thread: as [`RingWaker::end_wait`].
    fn end_wait(&self) {
        self.0.swap(IDLE, Ordering::AcqRel);
    }

    /// Waking thread: whether the other one waits and nobody has woken it yet, so that the eventfd must be written.
    fn wake(&self) -> bool {
        self.0.swap(WOKEN, Ordering::AcqRel) == WAITING
    }
}

/// The shared word and the eventfd.
pub(super) struct RingWaker {
    word: Word,
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
        Ok(Self { word: Word::new(), eventfd })
    }

    pub(super) fn eventfd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    /// Says that a wait begins. False: a wake came before; do not wait.
    pub(super) fn begin_wait(&self) -> bool {
        self.word.begin_wait()
    }

    /// Takes a wake that came to a thread which looks instead of waiting.
    pub(super) fn take(&self) -> bool {
        self.word.take()
    }

    /// The wait is over.
    pub(super) fn end_wait(&self) {
        self.word.end_wait();
    }
}

impl Wake for RingWaker {
    fn wake(&self) {
        if self.word.wake() {
            let one = 1u64.to_ne_bytes();
            // SAFETY: the pointer and length name a live local array; the descriptor is ours. The eventfd does not
            // block, and it fails only when its 64-bit counter is full: then a wake-up is pending anyway.
            unsafe { libc::write(self.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }
}

#[cfg(all(test, not(loom)))]
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

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{
        sync::{Arc, Condvar, Mutex, atomic::AtomicBool},
        thread,
    };

    use super::*;

    /// The eventfd: writes add up until a wait reads them.
    #[derive(Default)]
    struct Eventfd {
        written: Mutex<u32>,
        readable: Condvar,
    }

    impl Eventfd {
        fn write(&self) {
            *self.written.lock().unwrap() += 1;
            self.readable.notify_one();
        }

        fn wait(&self) -> u32 {
            let mut written = self.written.lock().unwrap();
            while *written == 0 {
                written = self.readable.wait(written).unwrap();
            }
            std::mem::take(&mut *written)
        }
    }

    #[derive(Default)]
    struct Shared {
        work: [AtomicBool; 2],
        word: Option<Word>,
        eventfd: Eventfd,
    }

    impl Shared {
        fn word(&self) -> &Word {
            self.word.as_ref().unwrap()
        }

        /// Waking thread: leaves work, then wakes.
        fn send(&self, at: usize) {
            // Relaxed: the word alone must carry it over.
            self.work[at].store(true, Ordering::Relaxed);
            if self.word().wake() {
                self.eventfd.write();
            }
        }

        /// Waiting thread: one look and one wait, as the transport's `poll` does it.
        fn wait(&self) {
            if self.word().begin_wait() {
                self.eventfd.wait();
                self.word().end_wait();
            }
        }

        fn has(&self, at: usize) -> bool {
            self.work[at].load(Ordering::Relaxed)
        }
    }

    fn shared() -> Arc<Shared> {
        Arc::new(Shared { word: Some(Word::new()), ..Shared::default() })
    }

    /// A lost wake is a wait without end, which loom reports as a deadlock.
    #[test]
    fn loom_no_wake_is_lost_and_work_is_seen_after_it() {
        loom::model(|| {
            let shared = shared();
            let other = shared.clone();
            let waker = thread::spawn(move || other.send(0));
            if !shared.has(0) {
                shared.wait();
                // Woken or not let to wait: in both cases by the wake, and what was left before it is there.
                assert!(shared.has(0));
            }
            waker.join().unwrap();
        });
    }

    /// Three threads have too many orders to run all of them: those with at most two preemptions, and all that each may read.
    #[test]
    fn loom_two_wakers_cost_two_waits_at_most_and_lose_nothing() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let shared = shared();
            let wakers = [0, 1].map(|at| {
                let other = shared.clone();
                thread::spawn(move || other.send(at))
            });
            let mut waits = 0;
            while !(shared.has(0) && shared.has(1)) {
                shared.wait();
                waits += 1;
            }
            wakers.into_iter().for_each(|waker| waker.join().unwrap());
            assert!(waits <= 2, "{waits} waits for two wakes");
        });
    }

    #[test]
    fn loom_a_wake_is_taken_once() {
        loom::model(|| {
            let shared = shared();
            let other = shared.clone();
            let waker = thread::spawn(move || other.send(0));
            let early = shared.word().take();
            assert!(!early || shared.has(0));
            waker.join().unwrap();
            assert_eq!(shared.word().take(), !early);
            assert!(!shared.word().take());
        });
    }
}
