//! Whether a function is still ours, told by the kernel and told on to everybody who uses it.
//!
//! vfio-pci raises one event when the kernel wants the device back (hot removal, unbinding) and one when the device reported
//! a fatal error. A thread of its own waits for both, so that polling and waiting users learn of it alike and the data path
//! makes no system call for it. It first stops the function's DMA, then sets the mark after which every register reads as
//! all ones, then raises every interrupt of the function so that nobody sleeps on it.
//!
//! A function that the kernel wants back is closed then, whoever still holds registers of it: the kernel waits for that
//! (Linux `drivers/vfio/vfio_main.c`, `vfio_unregister_group_dev`), and a job may run on for days. Its group is left and its
//! claim is given up with it, so that it can be opened again when it is back. One whose memory is lent to other functions
//! is not closed so: that happens when the last region of it is gone.

use core::mem::ManuallyDrop;
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use sw_mem::ForkMark;

use crate::{
    claim::ControllerClaim,
    config::Config,
    space::Membership,
    sys::{
        self,
        event::{Epoll, EventFd},
        map::Reserved,
    },
};

/// Why a function is no longer used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Gone {
    /// The kernel asks for it back: it is being removed or unbound.
    Requested = 1,
    /// It reported an uncorrectable error.
    Failed = 2,
    /// Its registers are not mapped any more.
    Unmapped = 3,
    /// This process was forked from the one that opened it.
    Forked = 4,
    /// This process closed it.
    Closed = 5,
}

/// Why a function that was to be closed stays open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaysOpen {
    /// Its DMA could not be switched off: it may still reach memory of this process.
    Loud,
    /// Memory behind its BARs is lent to other functions, which reach it.
    Lent,
    /// The kernel refused what closing needs, with this errno.
    Refused(i32),
    /// It reported a fatal error: its users let go of it, nobody asked to close it.
    NotAsked,
    /// This process was forked from the one that has it.
    Forked,
}

impl StaysOpen {
    /// What the process can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Loud => "end the process: the kernel resets the function then",
            Self::Lent => "free the memory behind its BARs, then open it again",
            Self::Refused(_) => "free memory and descriptors, then open it again, or end the process",
            Self::NotAsked => "close what uses it",
            Self::Forked => "leave it to the parent",
        }
    }
}

impl core::fmt::Display for StaysOpen {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Loud => f.write_str("its DMA could not be switched off: it may still reach memory of this process"),
            Self::Lent => f.write_str("memory behind its BARs is lent to other functions"),
            Self::Refused(errno) => write!(f, "the kernel refused to let go of it (errno {errno})"),
            Self::NotAsked => f.write_str("it reported a fatal error, and its users have it still"),
            Self::Forked => f.write_str("a forked child leaves it alone"),
        }
    }
}

/// Shared by a function, its registers and its watcher.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    gone: AtomicU8,
    /// A child of a fork has the registers mapped, too: it must not touch them.
    fork: ForkMark,
    /// It can start no access any more, and never will again.
    stopped: AtomicBool,
    /// Its file is closed.
    closed: AtomicBool,
    /// BARs of it that other functions may reach: it stays open until they let go, or its addresses could become somebody
    /// else's.
    lent: AtomicUsize,
    interrupts: Mutex<Vec<Weak<EventFd>>>,
    bars: Mutex<Vec<Weak<Reserved>>>,
}

impl Presence {
    /// Whether this process was forked from the one that has the function.
    #[inline]
    pub(crate) fn is_child(&self) -> bool {
        self.fork.is_child()
    }

    /// Why it is gone, if it is.
    #[inline]
    pub(crate) fn gone(&self) -> Option<Gone> {
        if self.is_child() {
            return Some(Gone::Forked);
        }
        match self.gone.load(Ordering::Acquire) {
            1 => Some(Gone::Requested),
            2 => Some(Gone::Failed),
            3 => Some(Gone::Unmapped),
            5 => Some(Gone::Closed),
            _ => None,
        }
    }

    /// Marks it as gone, the first reason counts, and wakes whoever waits for its interrupts.
    pub(crate) fn lose(&self, why: Gone) {
        let _ = self.gone.compare_exchange(0, why as u8, Ordering::AcqRel, Ordering::Acquire);
        let interrupts = self.interrupts.lock().unwrap_or_else(PoisonError::into_inner);
        interrupts.iter().filter_map(Weak::upgrade).for_each(|event| event.raise());
    }

    /// Adds a mapping that keeps the function's file open.
    pub(crate) fn tell_bar(&self, range: &Arc<Reserved>) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        bars.retain(|other| other.strong_count() > 0);
        bars.push(Arc::downgrade(range));
    }

    /// From now on it is closed by its users alone, unless the loan is dropped: then nobody got the memory.
    pub(crate) fn lend(self: &Arc<Self>) -> Loan {
        self.lent.fetch_add(1, Ordering::AcqRel);
        Loan(Arc::clone(self))
    }

    /// Whether its file was closed under those who still hold registers of it.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether its DMA was seen off after it was lost.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Lets go of the function's file, so that the kernel need not wait for those who still hold registers of it: the BARs
    /// become all ones, the descriptor becomes one of `/dev/null`.
    fn let_go(&self, device: BorrowedFd<'_>) -> Result<(), StaysOpen> {
        self.stopped.store(true, Ordering::Release);
        // The lock is kept to the end: a BAR that is mapped meanwhile comes after, and is given up by who mapped it.
        let bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        if self.lent.load(Ordering::Acquire) > 0 {
            return Err(StaysOpen::Lent);
        }
        let nothing = sys::open(Path::new("/dev/null"), libc::O_RDWR).map_err(StaysOpen::Refused)?;
        let blanked = bars.iter().filter_map(Weak::upgrade).try_for_each(|range| range.blank());
        blanked.and_then(|()| sys::replace(device, nothing.as_fd())).map_err(StaysOpen::Refused)?;
        self.closed.store(true, Ordering::Release);
        Ok(())
    }

    /// The mark itself, for the handler of bus errors: it may not take a lock.
    pub(crate) fn mark(&self) -> &AtomicU8 {
        &self.gone
    }

    /// Adds an interrupt to those that are raised when the function goes.
    pub(crate) fn tell(&self, event: &Arc<EventFd>) {
        let mut interrupts = self.interrupts.lock().unwrap_or_else(PoisonError::into_inner);
        interrupts.retain(|other| other.strong_count() > 0);
        interrupts.push(Arc::downgrade(event));
        drop(interrupts);
        if self.gone().is_some() {
            event.raise();
        }
    }
}

/// A BAR that is about to be lent.
#[derive(Debug)]
#[must_use = "dropped, it takes the loan back"]
pub(crate) struct Loan(Arc<Presence>);

impl Loan {
    /// Somebody has the memory: it stays lent for the function's life.
    pub(crate) fn settle(self) {
        self.0.lent.fetch_add(1, Ordering::AcqRel);
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.lent.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the process has of a function in the kernel, shared by the function and its watcher. Dropped: the file is closed,
/// then its group is left.
#[derive(Debug)]
pub(crate) struct Hold {
    presence: Arc<Presence>,
    config: Config,
    device: OwnedFd,
    ties: Mutex<Ties>,
}

/// What ends with a function's file.
#[derive(Debug, Default)]
pub(crate) struct Ties {
    /// Its place in the space.
    pub(crate) member: Option<Membership>,
    /// Who says that it is this process's.
    pub(crate) claim: Option<Arc<ControllerClaim>>,
}

impl Hold {
    pub(crate) fn new(presence: Arc<Presence>, config: Config, device: OwnedFd, member: Option<Membership>) -> Self {
        Self { presence, config, device, ties: Mutex::new(Ties { member, claim: None }) }
    }

    fn ties(&self) -> MutexGuard<'_, Ties> {
        self.ties.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn presence(&self) -> &Arc<Presence> {
        &self.presence
    }

    /// Its file; one of `/dev/null` once it was closed.
    pub(crate) fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// From now on the claim ends with the function's file, whoever still has a handle of it.
    pub(crate) fn tie(&self, claim: Arc<ControllerClaim>) {
        self.ties().claim = Some(claim);
        // It was closed meanwhile: nobody else comes to give the claim up.
        if self.presence.is_closed() {
            self.untie();
        }
    }

    /// Leaves its group and gives its claim up. After the file was closed: a group with an open function is not left.
    fn untie(&self) {
        let Ties { member, claim } = core::mem::take(&mut *self.ties());
        drop(member);
        if let Some(claim) = claim {
            claim.release();
        }
    }

    /// Stops its DMA, tells everybody that it is gone, and, if it may be closed at once, closes it.
    pub(crate) fn lose(&self, why: Gone) -> Result<(), StaysOpen> {
        if self.presence.is_closed() {
            return Ok(());
        }
        let stopped = self.stop_dma();
        let for_good = stopped && matches!(why, Gone::Requested | Gone::Closed);
        tracing::debug!(?why, stopped, "a PCI function goes");
        if for_good {
            // Before anybody learns of it: who asks then must not find a file that answers no more.
            self.presence.stopped.store(true, Ordering::Release);
        }
        self.presence.lose(why);
        let closed = match (stopped, for_good) {
            (false, _) => Err(StaysOpen::Loud),
            (true, false) => Err(StaysOpen::NotAsked),
            (true, true) => self.presence.let_go(self.device.as_fd()),
        };
        match closed {
            Ok(()) => self.untie(),
            // Another thread has done it meanwhile.
            Err(_) if self.presence.is_closed() => return Ok(()),
            Err(StaysOpen::Lent) => {
                tracing::info!("its memory is lent: it is closed when the last region of it is gone");
            }
            Err(why) => tracing::warn!(%why, "could not close it: the kernel waits until its users are gone"),
        }
        closed
    }

    /// Takes bus mastership away; `true`: it can touch no memory any more. Asked again at the end: another thread may have
    /// stopped it for good and closed the file that was asked in between.
    pub(crate) fn stop_dma(&self) -> bool {
        let presence = &self.presence;
        presence.is_stopped() || self.config.stop_dma(self.device.as_fd()) || presence.is_stopped()
    }
}

/// The thread that waits for bad news. Dropping it ends it; in a forked child, which has no such thread, it is forgotten.
#[derive(Debug)]
pub(crate) struct Watcher {
    fork: ForkMark,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// What the kernel raises.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) request: EventFd,
    pub(crate) error: EventFd,
}

impl News {
    pub(crate) fn new() -> Result<Self, i32> {
        Ok(Self { request: EventFd::new()?, error: EventFd::new()? })
    }
}

impl Watcher {
    /// Waits for `news` of a function.
    pub(crate) fn start(name: &str, news: News, hold: Arc<Hold>) -> Result<Self, i32> {
        const REQUEST: u64 = 0;
        const ERROR: u64 = 1;
        const STOP: u64 = 2;
        let (set, stop) = (Epoll::new()?, Arc::new(EventFd::new()?));
        set.add(news.request.as_fd(), REQUEST)?;
        set.add(news.error.as_fd(), ERROR)?;
        set.add(stop.as_fd(), STOP)?;
        let watch = move |stop: Arc<EventFd>| {
            let mut ended = false;
            while !ended {
                set.wait(None, |number| match number {
                    REQUEST if news.request.take() => lose(&hold, Gone::Requested),
                    ERROR if news.error.take() => lose(&hold, Gone::Failed),
                    STOP => ended = stop.take(),
                    _ => {}
                });
            }
        };
        let builder = std::thread::Builder::new().name(format!("sw-vfio {name}"));
        let theirs = Arc::clone(&stop);
        let thread = builder.spawn(move || watch(theirs)).map_err(|error| crate::sys::code(&error))?;
        Ok(Self { fork: ForkMark::new(), stop, thread: Some(thread) })
    }
}

fn lose(hold: &Hold, why: Gone) {
    let known = hold.presence.gone();
    let closed = hold.lose(why).is_ok();
    if known.is_none() {
        tracing::warn!(?why, closed, "a PCI function is being taken away");
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if self.fork.is_child() {
            // Not even detached: the thread's own data is not there.
            let _parents = ManuallyDrop::new(self.thread.take());
            return;
        }
        self.stop.raise();
        if let Some(thread) = self.thread.take() {
            // It cannot panic in a way that matters here; its work is over.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_stops_dma_marks_and_wakes() {
        let (file, config) = crate::config::fake(0x0006);
        let news = News::new().unwrap();
        let presence = Arc::new(Presence::default());
        let interrupt = Arc::new(EventFd::new().unwrap());
        presence.tell(&interrupt);
        news.request.raise();
        let hold = Hold::new(Arc::clone(&presence), config, file.try_clone().unwrap(), None);
        let watcher = Watcher::start("test", news, Arc::new(hold)).unwrap();
        let set = Epoll::new().unwrap();
        set.add(interrupt.as_fd(), 0).unwrap();
        set.wait(Some(std::time::Duration::from_secs(20)), |_| ());
        assert!(interrupt.take(), "whoever waits for the interrupt is woken");
        assert_eq!(presence.gone(), Some(Gone::Requested));
        assert_eq!(config.command(file.as_fd()), Ok(0x0002), "memory stays on, DMA is off");
        presence.lose(Gone::Failed);
        assert_eq!(presence.gone(), Some(Gone::Requested), "the first reason counts");
        drop(watcher);
    }

    #[test]
    fn who_asks_while_another_thread_closes_it_learns_that_it_is_quiet() {
        for round in 0..500 {
            let (file, config) = crate::config::fake(0x0006);
            let hold = Hold::new(Arc::default(), config, file, None);
            let barrier = std::sync::Barrier::new(3);
            let (closed, also, stopped) = std::thread::scope(|scope| {
                let close = |why| {
                    let (hold, barrier) = (&hold, &barrier);
                    move || {
                        barrier.wait();
                        hold.lose(why).is_ok()
                    }
                };
                let (first, second) = (scope.spawn(close(Gone::Requested)), scope.spawn(close(Gone::Closed)));
                barrier.wait();
                let stopped = hold.stop_dma();
                (first.join().unwrap(), second.join().unwrap(), stopped)
            });
            assert!(closed && also && stopped, "round {round}: {closed} {also} {stopped}");
        }
    }

    #[test]
    fn a_loan_that_comes_to_nothing_is_taken_back() {
        let (file, config) = crate::config::fake(0x0006);
        let presence = Arc::new(Presence::default());
        let hold = Hold::new(Arc::clone(&presence), config, file, None);
        let (kept, failed) = (presence.lend(), presence.lend());
        drop(failed);
        assert_eq!(hold.lose(Gone::Requested), Err(StaysOpen::Lent), "the other one may still get it");
        drop(kept);
        assert_eq!(hold.lose(Gone::Requested), Ok(()));
        let (file, config) = crate::config::fake(0x0006);
        let presence = Arc::new(Presence::default());
        let hold = Hold::new(Arc::clone(&presence), config, file, None);
        presence.lend().settle();
        drop(presence.lend());
        assert_eq!(hold.lose(Gone::Requested), Err(StaysOpen::Lent));
    }

    #[test]
    fn a_forked_child_forgets_and_the_parent_is_watched_on() {
        let (file, config) = crate::config::fake(0x0006);
        let news = News::new().unwrap();
        let request = news.request.as_fd().try_clone_to_owned().unwrap();
        let presence = Arc::new(Presence::default());
        let interrupt = Arc::new(EventFd::new().unwrap());
        presence.tell(&interrupt);
        let hold = Hold::new(Arc::clone(&presence), config, file.try_clone().unwrap(), None);
        let mut watcher = Some(Watcher::start("test", news, Arc::new(hold)).unwrap());
        assert_eq!(presence.gone(), None);
        assert!(crate::fake::in_child(|| {
            interrupt.raise();
            // Would wait for a thread that is not there, and end the parent's.
            watcher = None;
            presence.gone() == Some(Gone::Forked)
        }));
        assert!(!interrupt.take(), "the child raised nothing");
        interrupt.raise();
        assert!(crate::fake::in_child(|| !interrupt.take()));
        assert!(interrupt.take(), "the child took nothing");
        std::io::Write::write_all(&mut std::fs::File::from(request), &1u64.to_ne_bytes()).unwrap();
        let set = Epoll::new().unwrap();
        set.add(interrupt.as_fd(), 0).unwrap();
        set.wait(Some(std::time::Duration::from_secs(20)), |_| ());
        assert_eq!(presence.gone(), Some(Gone::Requested), "the thread still watches");
        drop(watcher);
    }
}
